//! What each weight costs at each width, and the widths that a budget buys.

mod budget;
mod candidates;
mod front;
mod judge;
mod report;
mod sizes;
mod whole;
mod write;

use std::fmt;
use std::path::Path;

use fastforward_core::config::EvaluationSection;
use fastforward_core::metrics::Metric;
use serde::Serialize;

pub use budget::Budget;
pub use report::{Allocation, MeasuredBy, Point, ScoredBy, Sensitivity, WeightPrice, WeightPrices};
pub use write::MixedFile;

use super::measure::output_name;
use super::summary::file_name;
use super::{Job, Progress, Samples, Stage};
use crate::error::{Error, ErrorKind, Result};
use crate::simulate::{SimulateOptions, simulate};
use crate::tree::Tree;
use candidates::{Weight, weights};
use front::{Front, LIMIT, Price};
use judge::{Judge, Yardstick};
use sizes::Sizes;
use whole::Whole;

/// How [`Job::sensitivity`] sweeps, and what it looks for.
#[derive(Clone, Debug, PartialEq)]
pub struct SensitivityOptions {
    /// The widths to try.
    pub bits: Vec<u32>,
    /// How a network is judged in which one weight is quantized.
    pub score: SensitivityScore,
    /// The samples it is judged on; `None` for those of `[evaluation]` if there are any, else of `[calibration]`.
    pub data: Option<ScoreData>,
    /// At most so many of them.
    pub samples: Option<usize>,
    /// Which weights to sweep, by a query for their slots or modules; `None` for all that have a linear quantizer.
    pub query: Option<String>,
    /// What the widths must keep to; `None` for prices only.
    pub budget: Option<Budget>,
    /// Whether the metric of `[evaluation]` is measured for some points of the curve.
    pub measure: bool,
}

impl Default for SensitivityOptions {
    /// 2, 3, 4, 6 and 8 bits for every weight, judged by noise over signal on all samples.
    fn default() -> Self {
        Self {
            bits: vec![2, 3, 4, 6, 8],
            score: SensitivityScore::Sqnr,
            data: None,
            samples: None,
            query: None,
            budget: None,
            measure: false,
        }
    }
}

/// What a network loses when a weight is quantized: a number that is 0 where nothing changes, and grows.
///
/// Losses of weights are added where widths are chosen. For independent errors that is what happens to their powers, so
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

impl Job {
    /// Quantizes each weight alone, at each width, and finds how much the network loses by it; then chooses a width for each
    /// weight, so that the sum of the losses is the least that the budget allows.
    ///
    /// A weight gets the quantizer of its rule at another width, with the range that the rule's estimator finds for that
    /// width; everything else stays in float. The choice is exact (a dynamic program over the Pareto front of the
    /// multiple-choice knapsack) unless [`Sensitivity::is_exact`] says otherwise. A bound on the metric is met by the point of
    /// that front that bisection finds: whole networks are simulated and measured, the one that is chosen holds the bound,
    /// and one that was tried just below it does not. Algorithms of the configuration are not applied: prices are those of
    /// rounding to the nearest code.
    ///
    /// Results are the same for any number of threads.
    ///
    /// ```no_run
    /// use std::path::Path;
    /// use fastforward_onnx::pipeline::{Budget, Job, JobOptions, MixedFile, SensitivityOptions, Silent};
    ///
    /// let job = Job::open(Path::new("model.onnx"), Path::new("quant.toml"), &JobOptions::default())?;
    /// let options =
    ///     SensitivityOptions { budget: Some(Budget::AverageBits(4.0)), ..SensitivityOptions::default() };
    /// let file = MixedFile::new(&job, Path::new("mixed.toml"))?;
    /// let found = job.sensitivity(&options, &Silent)?;
    /// file.write(&found)?;
    /// # Ok::<(), fastforward_onnx::Error>(())
    /// ```
    ///
    /// # Errors
    /// `Rules` as [`Job::check`]; `Input` for widths that are none, for data that is not there, and for a budget that cannot
    /// be met, with the nearest that can; `Unsupported` for weights without a graph; those of data and engine.
    pub fn sensitivity(
        &self,
        options: &SensitivityOptions,
        progress: &dyn Progress,
    ) -> Result<Sensitivity> {
        if self.model.is_weights() {
            return Err(Error::new(
                ErrorKind::Unsupported,
                "sensitivity is found by executing the network, and a file of weights has no graph that says how",
            ));
        }
        let bits = checked_widths(&options.bits)?;
        self.check()?;
        let (section, data) = self.judged_on(options)?;
        let measuring = self.measuring(options)?;
        let weights = weights(self, &bits, options.query.as_deref())?;
        let sizes = Sizes::new(self, &weights, options.budget)?;
        // What no width can meet is refused before anything is computed.
        sizes.check(&weights, options.budget, &bits)?;

        let yardstick = match (options.score, section) {
            (SensitivityScore::Sqnr, _) => Yardstick::Noise,
            (SensitivityScore::Kl, _) => Yardstick::Metric(Metric::Kl),
            (SensitivityScore::Metric, Some(section)) => Yardstick::Metric(metric_of(section)?),
            (SensitivityScore::Metric, None) => return Err(self.no_evaluation("--score metric")),
        };
        let outputs = match yardstick {
            Yardstick::Noise => self.model.outputs().into_iter().map(|one| one.name).collect(),
            Yardstick::Metric(_) => {
                let output = self.config.evaluation.as_ref().and_then(|one| one.output.as_deref());
                vec![output_name(&self.model, output)?]
            }
        };
        let samples = self.scored_samples(data, options.samples)?;
        let n_samples = samples.len();
        let judge =
            Judge::new(&self.model, samples, outputs.clone(), yardstick, self.engine_options())?;
        let losses = self.sweep(&weights, &bits, &judge, progress)?;
        let prices: Vec<Vec<Price>> = weights
            .iter()
            .zip(&losses)
            .map(|(weight, losses)| {
                let sized = losses.iter().enumerate();
                sized
                    .map(|(at, &loss)| Price { cost: sizes.cost(weight, at, &bits), loss })
                    .collect()
            })
            .collect();
        drop(judge);

        let front = Front::new(&prices, LIMIT);
        let point = |choices: &[usize]| sizes.point(choices, &weights, &prices, &bits);
        let mut found = Sensitivity {
            model: file_name(self.original.path().unwrap_or(Path::new(""))),
            config: file_name(self.config.name().as_ref()),
            scored: ScoredBy {
                score: options.score,
                metric: match (options.score, yardstick) {
                    (SensitivityScore::Metric, Yardstick::Metric(one)) => {
                        Some(one.name().into_owned())
                    }
                    _ => None,
                },
                data,
                samples: n_samples,
                outputs,
            },
            uniform: (0..bits.len()).map(|at| point(&vec![at; weights.len()])).collect(),
            curve: Vec::new(),
            is_exact: front.is_exact,
            measured: None,
            allocation: None,
            notes: self.notes(),
            weights: prices_of(&weights, &losses, &bits),
            bits,
        };
        let whole = match measuring {
            Some(metric) => Some(Whole::new(self, metric, &weights, progress)?),
            None => None,
        };
        let mut measured: Vec<(usize, f64)> = Vec::new();
        let chosen = match options.budget {
            None => None,
            Some(Budget::AverageBits(_) | Budget::Bytes(_)) => {
                options.budget.and_then(|one| front.within(sizes.left(one)?))
            }
            Some(budget @ (Budget::MetricAtLeast(_) | Budget::MetricAtMost(_))) => match &whole {
                Some(whole) => Some(whole.bisect(&front, budget, &mut measured, progress)?),
                None => return Err(self.no_evaluation(&budget.to_string())),
            },
        };
        if let (Some(whole), true) = (&whole, options.measure) {
            let corners = front.corners();
            let shown = 8.min(corners.len());
            let last = corners.len() - 1;
            let mut wanted: Vec<usize> =
                (0..shown).map(|at| corners[at * last / (shown - 1).max(1)]).collect();
            wanted.extend(chosen);
            wanted.sort_unstable();
            wanted.dedup();
            wanted.retain(|at| measured.iter().all(|(known, _)| known != at));
            let mut choices: Vec<Vec<usize>> = wanted.iter().map(|&at| front.choices(at)).collect();
            choices.extend((0..found.bits.len()).map(|at| vec![at; weights.len()]));
            let values = whole.metrics(&choices, progress)?;
            measured.extend(wanted.iter().copied().zip(values.iter().copied()));
            for (uniform, &value) in found.uniform.iter_mut().zip(&values[wanted.len()..]) {
                uniform.metric = Some(value);
            }
        }
        let mut shown = front.corners();
        shown.extend(measured.iter().map(|(at, _)| *at).chain(chosen));
        shown.sort_unstable();
        shown.dedup();
        let shown_point = |at: usize| Point {
            metric: measured.iter().find(|(known, _)| *known == at).map(|(_, value)| *value),
            ..sizes.point(&front.choices(at), &weights, &prices, &found.bits)
        };
        found.curve = shown.into_iter().map(shown_point).collect();
        found.allocation = options
            .budget
            .zip(chosen)
            .map(|(budget, at)| Allocation { budget, point: shown_point(at) });
        found.measured = whole.as_ref().map(Whole::measured_by);
        Ok(found)
    }

    /// The losses, by weight and width.
    fn sweep(
        &self,
        weights: &[Weight],
        bits: &[u32],
        judge: &Judge,
        progress: &dyn Progress,
    ) -> Result<Vec<Vec<f64>>> {
        judge.announce(Stage::Sweep, weights.len() * bits.len(), progress);
        let mut losses = Vec::with_capacity(weights.len());
        for weight in weights {
            let network = |at: usize| {
                let tree = Tree::new(&self.model);
                tree.sites()[weight.site].slot.replace(weight.quantizers[at].clone());
                let model = simulate(&self.model, &tree, &SimulateOptions::default())?.model;
                Ok((format!("`{}` at {} bits", weight.name(), bits[at]), model))
            };
            let values = judge.each(bits.len(), self.model.weight_bytes(), &network, progress)?;
            losses.push(values.into_iter().map(|value| judge.loss(value)).collect());
        }
        progress.finish();
        Ok(losses)
    }

    /// Which samples judge the sweep, and the section of evaluation that says how, if one is needed.
    fn judged_on(
        &self,
        options: &SensitivityOptions,
    ) -> Result<(Option<&EvaluationSection>, ScoreData)> {
        let section = self.config.evaluation.as_ref();
        let has_calibration = self.config.calibration.is_some();
        let data = match options.data {
            Some(ScoreData::Evaluation) if section.is_none() => {
                return Err(self.no_evaluation("--on evaluation"));
            }
            Some(ScoreData::Calibration) if !has_calibration => {
                let text = format!(
                    "{}: --on calibration needs [calibration], which says where the samples are",
                    self.config.name()
                );
                return Err(Error::new(ErrorKind::Input, text));
            }
            Some(data) => data,
            None if section.is_some() => ScoreData::Evaluation,
            None if has_calibration => ScoreData::Calibration,
            None => {
                let text = format!(
                    "{}: sensitivity is found on samples, and there is neither [evaluation] nor [calibration] that says \
                     where they are",
                    self.config.name()
                );
                return Err(Error::new(ErrorKind::Input, text));
            }
        };
        if options.score == SensitivityScore::Metric && section.is_none() {
            return Err(self.no_evaluation("--score metric"));
        }
        Ok((section, data))
    }

    /// The metric of whole networks, where one is asked for.
    fn measuring(&self, options: &SensitivityOptions) -> Result<Option<Metric>> {
        let bound = match options.budget {
            Some(Budget::MetricAtLeast(bound)) => Some((bound, true)),
            Some(Budget::MetricAtMost(bound)) => Some((bound, false)),
            _ => None,
        };
        if bound.is_none() && !options.measure {
            return Ok(None);
        }
        let what = options.budget.filter(|_| bound.is_some());
        let what = what.map_or_else(|| "--measure".to_owned(), |budget| budget.to_string());
        let Some(section) = &self.config.evaluation else { return Err(self.no_evaluation(&what)) };
        let metric = metric_of(section)?;
        let wrong =
            |text: String| Err(Error::new(ErrorKind::Input, format!("budget `{what}`: {text}")));
        match bound {
            Some((_, true)) if metric.is_error() => {
                wrong(format!("of `{metric}` less is better; write `metric<=...`"))
            }
            Some((_, false)) if !metric.is_error() => {
                wrong(format!("of `{metric}` more is better; write `metric>=...`"))
            }
            Some((bound, true)) if metric.unit() == "%" && bound > 0.0 && bound <= 1.0 => {
                wrong(format!("`{metric}` is in percent; write `metric>={}`", 100.0 * bound))
            }
            _ => Ok(Some(metric)),
        }
    }

    fn no_evaluation(&self, what: &str) -> Error {
        Error::new(
            ErrorKind::Input,
            format!(
                "{}: {what} needs [evaluation], which says what is measured on which samples",
                self.config.name()
            ),
        )
    }

    fn scored_samples(&self, data: ScoreData, at_most: Option<usize>) -> Result<Samples> {
        let (spec, batch_size, place) =
            match (data, &self.config.evaluation, &self.config.calibration) {
                (ScoreData::Evaluation, Some(section), _) => {
                    (&section.data, section.batch_size, "[evaluation]")
                }
                (ScoreData::Calibration, _, Some(section)) => {
                    (&section.data, section.batch_size, "[calibration]")
                }
                _ => return Err(self.no_evaluation("the sweep")),
            };
        let mut spec = spec.clone();
        spec.samples = match (spec.samples, at_most) {
            (Some(stated), Some(most)) => Some(stated.min(most)),
            (stated, None) => stated,
            (None, Some(most)) => {
                // More than there are would be an error of the data set.
                let batch_size = self.options.batch_size.unwrap_or(batch_size);
                let all =
                    Samples::open(&spec, &self.config.inputs, &self.model, batch_size, place)?;
                Some(all.len().min(most))
            }
        };
        let batch_size = self.options.batch_size.unwrap_or(batch_size);
        Samples::open(&spec, &self.config.inputs, &self.model, batch_size, place)
    }

    fn notes(&self) -> Vec<String> {
        let mut algorithms: Vec<&str> =
            self.config.algorithms.iter().map(|one| one.algorithm.name()).collect();
        algorithms.dedup();
        match algorithms.as_slice() {
            [] => Vec::new(),
            names => vec![format!(
                "prices are of rounding to the nearest code, without {}, which `quantize` applies",
                names.join(", ")
            )],
        }
    }
}

impl Judge {
    /// What a value means as a loss.
    fn loss(&self, value: f64) -> f64 {
        match (self.yardstick(), self.float) {
            (Yardstick::Noise, _) => value,
            (Yardstick::Metric(metric), _) if metric.is_error() => value,
            (Yardstick::Metric(Metric::Sqnr), _) => 10f64.powf(-value / 10.0),
            (Yardstick::Metric(Metric::Cosine), _) => 1.0 - value,
            (Yardstick::Metric(_), Some(float)) => float - value,
            (Yardstick::Metric(_), None) => 100.0 - value,
        }
    }
}

/// The widths, ascending, each once.
fn checked_widths(bits: &[u32]) -> Result<Vec<u32>> {
    let wrong: Vec<String> = bits
        .iter()
        .filter(|bits| !(1..=16).contains(*bits))
        .map(|bits| format!("codes of {bits} bits are not swept, expected 1 to 16"))
        .collect();
    if !wrong.is_empty() {
        return Err(Error::many(ErrorKind::Input, wrong));
    }
    if bits.is_empty() {
        return Err(Error::new(ErrorKind::Input, "there is no width to sweep"));
    }
    let mut bits = bits.to_vec();
    bits.sort_unstable();
    bits.dedup();
    Ok(bits)
}

fn metric_of(section: &EvaluationSection) -> Result<Metric> {
    Ok(section.metric.name().parse()?)
}

fn prices_of(weights: &[Weight], losses: &[Vec<f64>], bits: &[u32]) -> Vec<WeightPrices> {
    let prices = weights.iter().zip(losses).map(|(weight, losses)| WeightPrices {
        names: weight.names.clone(),
        rule: weight.rule,
        elements: weight.elements,
        num_bits: weight.num_bits,
        prices: bits
            .iter()
            .zip(&weight.bytes)
            .zip(losses)
            .map(|((&bits, &bytes), &loss)| WeightPrice { bits, bytes, loss })
            .collect(),
    });
    prices.collect()
}
