//! What is asked of a sweep.

use std::fmt;

use serde::Serialize;

use super::Budget;
use super::candidates::Swept;
use crate::error::{Error, ErrorKind, Result};

/// How [`Job::sensitivity`](crate::pipeline::Job::sensitivity) sweeps, and what it looks for.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SensitivityOptions {
    /// Which slots to sweep; `None` for those that the budgets decide: of weights for a bound on the metric, all without a
    /// budget.
    pub slots: Option<SweptSlots>,
    /// The widths to try for weights, 1 to 16; `None` for [`SensitivityOptions::WEIGHT_BITS`].
    pub bits: Option<Vec<u32>>,
    /// The widths to try for activations, those that export can write; `None` for
    /// [`SensitivityOptions::ACTIVATION_BITS`].
    pub activation_bits: Option<Vec<u32>>,
    /// How a network is judged in which one slot is quantized.
    pub score: SensitivityScore,
    /// The samples it is judged on; `None` for those of `[evaluation]` if there are any, else of `[calibration]`.
    pub data: Option<ScoreData>,
    /// At most so many of them.
    pub samples: Option<usize>,
    /// Which slots to sweep, by a query for slots or modules; `None` for all weights and activations that have a linear
    /// quantizer. A query may also choose biases and other constants, which count as weights.
    pub query: Option<String>,
    /// What the widths must keep to: one budget for weights, one for activations, or a bound on the metric alone; none for
    /// prices only.
    pub budgets: Vec<Budget>,
    /// Whether the metric of `[evaluation]` is measured for some points of the curves.
    pub measure: bool,
}

/// Which slots are swept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum SweptSlots {
    /// Constants.
    Weights,
    /// Inputs and outputs of nodes.
    Activations,
    /// Both.
    All,
}

impl fmt::Display for SweptSlots {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Weights => "weights",
            Self::Activations => "activations",
            Self::All => "all",
        })
    }
}

/// What a network loses when a slot is quantized: a number that is 0 where nothing changes, and grows.
///
/// Losses of slots are added where widths are chosen. For independent errors that is what happens to their powers, so
/// noise over signal is the one that adds up best; the metric is the one that counts, in steps of one sample.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum SensitivityScore {
    /// Noise over signal, `sum (y - y')^2 / sum y^2` over all samples, the mean over the outputs of the graph that are
    /// floats. Shown in decibels, `-10 log10` of it.
    #[default]
    Sqnr,
    /// The mean Kullback-Leibler divergence of the softmax of the judged output from that of the float one, in nats.
    Kl,
    /// What the metric of `[evaluation]` loses against the float network: percentage points for accuracies.
    Metric,
}

/// A section of the configuration that names data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ScoreData {
    /// `[calibration]`
    Calibration,
    /// `[evaluation]`
    Evaluation,
}

impl fmt::Display for ScoreData {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Calibration => "[calibration]",
            Self::Evaluation => "[evaluation]",
        })
    }
}

impl SensitivityOptions {
    /// The widths that are tried for weights if nothing else is said.
    pub const WEIGHT_BITS: [u32; 5] = [2, 3, 4, 6, 8];
    /// The widths that are tried for activations if nothing else is said.
    pub const ACTIVATION_BITS: [u32; 3] = [4, 8, 16];

    /// The bound on the metric, if there is one.
    pub(super) fn metric_bound(&self) -> Option<Budget> {
        self.budgets.iter().copied().find(|budget| budget.decides().is_none())
    }

    /// The slots that are meant, and the widths of weights and of activations: ascending, each once.
    ///
    /// # Errors
    /// `Input` for widths that are none, and for budgets that do not go together or do not decide what is swept.
    pub(super) fn checked(&self) -> Result<(SweptSlots, Vec<u32>, Vec<u32>)> {
        let mut problems = Vec::new();
        let meant = self.meant().map_err(|problem| problems.push(problem));
        let weights = self.bits.as_deref().unwrap_or(&Self::WEIGHT_BITS);
        let activations = self.activation_bits.as_deref().unwrap_or(&Self::ACTIVATION_BITS);
        let weights = checked_widths(weights, &mut problems);
        let activations = checked_widths(activations, &mut problems);
        match meant {
            Ok(meant) if problems.is_empty() => Ok((meant, weights, activations)),
            _ => Err(Error::many(ErrorKind::Input, problems)),
        }
    }

    /// Refuses widths for slots of which none are swept.
    pub(super) fn check_widths(&self, swept: &Swept) -> Result<()> {
        let n_activations = swept.slots.len() - swept.n_weights;
        let unused = [
            ("weights", self.bits.is_some() && swept.n_weights == 0),
            ("activations", self.activation_bits.is_some() && n_activations == 0),
        ];
        let Some((kind, _)) = unused.into_iter().find(|(_, is_unused)| *is_unused) else {
            return Ok(());
        };
        Err(Error::new(
            ErrorKind::Input,
            format!(
                "there are widths to try for {kind}, but no {kind} are swept; leave the widths out, or sweep them with \
                 --slots {kind} or --slots all"
            ),
        ))
    }

    /// What is swept, as slots and budgets say.
    fn meant(&self) -> Result<SweptSlots, String> {
        let texts = |budgets: &[Budget]| {
            let texts: Vec<String> = budgets.iter().map(|budget| format!("`{budget}`")).collect();
            texts.join(" and ")
        };
        if self.metric_bound().is_some() {
            return match self.budgets.as_slice() {
                [_] => Ok(self.slots.unwrap_or(SweptSlots::Weights)),
                _ => Err(format!(
                    "budgets {}: a bound on the metric decides all widths that are swept, so it stands alone",
                    texts(&self.budgets)
                )),
            };
        }
        let of = |kind: SweptSlots| -> Vec<Budget> {
            self.budgets.iter().copied().filter(|one| one.decides() == Some(kind)).collect()
        };
        let (weights, activations) = (of(SweptSlots::Weights), of(SweptSlots::Activations));
        for (budgets, kind) in [(&weights, "weights"), (&activations, "activations")] {
            if budgets.len() > 1 {
                return Err(format!(
                    "budgets {} both decide the widths of {kind}; give one",
                    texts(budgets)
                ));
            }
        }
        let decided = match (weights.is_empty(), activations.is_empty()) {
            (true, true) => return Ok(self.slots.unwrap_or(SweptSlots::All)),
            (false, true) => SweptSlots::Weights,
            (true, false) => SweptSlots::Activations,
            (false, false) => SweptSlots::All,
        };
        match self.slots {
            Some(slots) if slots != decided => Err(format!(
                "--slots {slots} does not fit the budget {}, which decides {}; leave --slots out, or {}",
                texts(&self.budgets),
                match decided {
                    SweptSlots::All => "weights and activations".to_owned(),
                    one => format!("{one} only"),
                },
                match slots {
                    SweptSlots::All => {
                        "give weights (`4bits`) and activations (`activation_bits<=8`) a budget each"
                    }
                    SweptSlots::Weights => "give only a budget for weights, such as `4bits`",
                    SweptSlots::Activations => "give only one for them: `activation_bits<=8`",
                }
            )),
            _ => Ok(decided),
        }
    }
}

/// The widths, ascending, each once.
fn checked_widths(bits: &[u32], problems: &mut Vec<String>) -> Vec<u32> {
    let wrong = bits.iter().filter(|bits| !(1..=16).contains(*bits));
    problems
        .extend(wrong.map(|bits| format!("codes of {bits} bits are not swept, expected 1 to 16")));
    if bits.is_empty() {
        problems.push("there is no width to sweep".to_owned());
    }
    let mut bits = bits.to_vec();
    bits.sort_unstable();
    bits.dedup();
    bits
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(slots: Option<SweptSlots>, budgets: &[&str], expected: Result<SweptSlots, &str>) {
        let budgets = budgets.iter().map(|one| one.parse().unwrap()).collect();
        let options = SensitivityOptions { slots, budgets, ..Default::default() };
        match (options.checked(), expected) {
            (Ok((found, ..)), Ok(expected)) => assert_eq!(found, expected),
            (Err(found), Err(expected)) => {
                assert_eq!(found.kind(), ErrorKind::Input);
                assert!(found.to_string().contains(expected), "{found}");
            }
            (found, expected) => panic!("{found:?}, expected {expected:?}"),
        }
    }

    #[test]
    fn budgets_say_what_is_swept() {
        use SweptSlots::{Activations, All, Weights};
        check(None, &[], Ok(All));
        check(Some(Activations), &[], Ok(Activations));
        check(None, &["4bits"], Ok(Weights));
        check(None, &["30kB"], Ok(Weights));
        check(None, &["activation_bits<=8"], Ok(Activations));
        check(None, &["activation_bits<=8", "4bits"], Ok(All));
        check(Some(All), &["activation_bits<=8", "4bits"], Ok(All));
        check(None, &["metric>=90"], Ok(Weights));
        check(Some(All), &["metric>=90"], Ok(All));
        check(Some(Activations), &["metric>=90"], Ok(Activations));
    }

    #[test]
    fn budgets_that_do_not_go_together_are_refused() {
        use SweptSlots::{Activations, All, Weights};
        check(None, &["4bits", "30kB"], Err("`4 bits` and `30000 B` both decide"));
        let twice = ["activation_bits<=8", "activation_bits<=6"];
        check(None, &twice, Err("both decide the widths of activations"));
        check(None, &["4bits", "metric>=90"], Err("stands alone"));
        check(None, &["metric>=80", "metric>=90"], Err("stands alone"));
        check(Some(All), &["4bits"], Err("decides weights only; leave --slots out"));
        check(Some(Activations), &["4bits"], Err("give only one for them"));
        check(Some(Weights), &["activation_bits<=8"], Err("decides activations only"));
    }

    #[test]
    fn widths_are_sorted_and_every_wrong_one_is_named() {
        let bits = |bits: &[u32]| SensitivityOptions {
            bits: Some(bits.to_vec()),
            ..SensitivityOptions::default()
        };
        assert_eq!(bits(&[8, 2, 8]).checked().unwrap().1, [2, 8]);
        let error = bits(&[0, 4, 17]).checked().unwrap_err().to_string();
        assert!(error.contains("codes of 0 bits") && error.contains("codes of 17 bits"), "{error}");
        assert!(bits(&[]).checked().unwrap_err().to_string().contains("no width"));
    }
}
