//! What each slot costs at each width, and the widths that budgets buy.

mod budget;
mod candidates;
mod front;
mod judge;
mod options;
mod part;
mod report;
mod sizes;
mod whole;
mod write;

use std::path::Path;

use fastforward_core::config::EvaluationSection;
use fastforward_core::metrics::Metric;

pub use budget::Budget;
pub use options::{ScoreData, SensitivityOptions, SensitivityScore, SweptSlots};
pub use report::{
    Allocation, Curve, MeasuredBy, Point, ScoredBy, Sensitivity, SlotPrice, SlotPrices, SweptWidth,
};
pub use write::MixedFile;

use super::measure::output_name;
use super::summary::file_name;
use super::{Job, Progress, Samples, Stage};
use crate::error::{Error, ErrorKind, Result};
use crate::shapes::ShapeTable;
use crate::simulate::{Rounding, SimulateOptions, simulate};
use crate::tree::Tree;
use candidates::Swept;
use judge::{Judge, Yardstick};
use part::{Part, Priced};
use whole::Whole;

impl Job {
    /// Quantizes each slot alone, at each width, and finds how much the network loses by it; then chooses a width for each
    /// slot, so that the sum of the losses is the least that the budgets allow.
    ///
    /// A slot gets the quantizer of its rule at another width, with the range that the rule's estimator finds for that
    /// width; everything else stays in float. The choice is exact (a dynamic program over the Pareto front of the
    /// multiple-choice knapsack) unless [`Curve::is_exact`] says otherwise. A bound on the metric is met by the point of
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
    /// let budgets = vec![Budget::AverageBits(4.0), Budget::ActivationBits(8.0)];
    /// let options = SensitivityOptions { budgets, ..SensitivityOptions::default() };
    /// let file = MixedFile::new(&job, Path::new("mixed.toml"))?;
    /// let found = job.sensitivity(&options, &Silent)?;
    /// file.write(&found)?;
    /// # Ok::<(), fastforward_onnx::Error>(())
    /// ```
    ///
    /// # Errors
    /// `Rules` as [`Job::check`]; `Input` for widths that are none, for data that is not there, for budgets that contradict
    /// each other or leave slots undecided, and for one that cannot be met, with the nearest that can; `Quantizer` for
    /// widths that the exported file cannot hold; `Unsupported` for weights without a graph; those of data and engine.
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
        let (meant, weight_bits, activation_bits) = options.checked()?;
        self.check()?;
        let (section, data) = self.judged_on(options)?;
        let measuring = self.measuring(options)?;
        let query = options.query.as_deref();
        let mut swept = Swept::find(self, meant, weight_bits, activation_bits, query)?;
        options.check_widths(&swept)?;
        let weight_widths = swept.widths(self, SweptSlots::Weights)?;
        let activation_widths = swept.widths(self, SweptSlots::Activations)?;
        let calibration = match activation_widths.is_empty() {
            true => None,
            false => self.open_data()?.calibration,
        };
        if let Some(samples) = &calibration {
            swept.count_activations(self, samples)?;
        }
        // What no width can meet is refused before more is computed.
        let parts = Part::all(self, &swept, &options.budgets)?;

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
        swept.set_ranges(self, calibration.as_ref(), progress)?;
        let shapes = self.shapes(calibration.as_ref().or(Some(&samples)))?;
        let judge =
            Judge::new(&self.model, samples, outputs.clone(), yardstick, self.engine_options())?;
        let losses = self.sweep(&swept, &judge, &shapes, progress)?;
        drop(judge);

        let whole = match measuring {
            Some(metric) => Some(Whole::new(self, metric, &swept, progress)?),
            None => None,
        };
        let mut priced: Vec<Priced<'_>> =
            parts.iter().map(|part| part.priced(&swept, &losses)).collect();
        let mut chosen = Vec::with_capacity(priced.len());
        for one in &mut priced {
            chosen.push(match (one.part.budget, &whole) {
                (Some(bound), Some(whole)) if bound.decides().is_none() => {
                    Some(whole.bisect(one, bound, progress)?)
                }
                _ => one.within_budget(),
            });
        }
        let judging = whole.as_ref().filter(|_| options.measure);
        let curves = priced.iter_mut().zip(&chosen);
        let curves = curves
            .map(|(one, &chosen)| one.curve(chosen, judging, progress))
            .collect::<Result<Vec<_>>>()?;
        let chosen: Option<Vec<usize>> = chosen.into_iter().collect();
        let allocation = match chosen.filter(|_| !options.budgets.is_empty()) {
            Some(chosen) => Some(Allocation {
                budgets: options.budgets.clone(),
                point: allocated(&priced, &chosen, judging, progress)?,
            }),
            None => None,
        };
        let metric = match (options.score, yardstick) {
            (SensitivityScore::Metric, Yardstick::Metric(one)) => Some(one.name().into_owned()),
            _ => None,
        };
        Ok(Sensitivity {
            model: file_name(self.original.path().unwrap_or(Path::new(""))),
            config: file_name(self.config.name().as_ref()),
            scored: ScoredBy { score: options.score, metric, data, samples: n_samples, outputs },
            weight_widths,
            activation_widths,
            slots: prices_of(&swept, &losses),
            curves,
            measured: whole.as_ref().map(Whole::measured_by),
            allocation,
            notes: self.notes(),
        })
    }

    /// The losses, by slot and width.
    fn sweep(
        &self,
        swept: &Swept,
        judge: &Judge,
        shapes: &ShapeTable,
        progress: &dyn Progress,
    ) -> Result<Vec<Vec<f64>>> {
        let n_networks = swept.slots.iter().map(|slot| slot.quantizers.len()).sum();
        judge.announce(Stage::Sweep, n_networks, progress);
        let mut losses = Vec::with_capacity(swept.slots.len());
        for slot in &swept.slots {
            let bits = swept.bits(slot);
            let network = |at: usize| {
                let tree = Tree::new(&self.model);
                tree.sites()[slot.site].slot.replace(slot.quantizers[at].clone());
                let options =
                    SimulateOptions { rounding: Rounding::BeforeOffset, shapes: shapes.clone() };
                let model = simulate(&self.model, &tree, &options)?.model;
                Ok((format!("`{}` at {} bits", slot.name(), bits[at]), model))
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
        let bound = match options.metric_bound() {
            Some(Budget::MetricAtLeast(bound)) => Some((bound, true)),
            Some(Budget::MetricAtMost(bound)) => Some((bound, false)),
            _ => None,
        };
        if bound.is_none() && !options.measure {
            return Ok(None);
        }
        let what = options
            .metric_bound()
            .map_or_else(|| "--measure".to_owned(), |budget| budget.to_string());
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

fn metric_of(section: &EvaluationSection) -> Result<Metric> {
    Ok(section.metric.name().parse()?)
}

/// The choices of all parts as one network, measured if it was not and there is something to measure it with.
fn allocated(
    priced: &[Priced<'_>],
    chosen: &[usize],
    whole: Option<&Whole>,
    progress: &dyn Progress,
) -> Result<Point> {
    let mut points = priced.iter().zip(chosen).map(|(one, &at)| one.point(at));
    let Some(mut point) = points.next() else {
        return Err(Error::new(ErrorKind::Input, "there is nothing to sweep"));
    };
    // One part that decides all slots was measured with its curve.
    let Some(other) = points.next() else { return Ok(point) };
    point.activation_bits = other.activation_bits;
    point.loss += other.loss;
    point.bits.extend(other.bits);
    point.metric = None;
    if let Some(whole) = whole {
        let mut choices = priced[0].choices(chosen[0]);
        for (all, one) in choices.iter_mut().zip(priced[1].choices(chosen[1])) {
            *all = all.or(one);
        }
        point.metric = whole.metrics(&[choices], progress)?.first().copied();
    }
    Ok(point)
}

fn prices_of(swept: &Swept, losses: &[Vec<f64>]) -> Vec<SlotPrices> {
    let prices = swept.slots.iter().zip(losses).map(|(slot, losses)| SlotPrices {
        names: slot.names.clone(),
        role: slot.role.name(),
        rule: slot.rule,
        elements: slot.elements,
        num_bits: slot.num_bits,
        prices: swept
            .bits(slot)
            .iter()
            .zip(&slot.bytes)
            .zip(losses)
            .map(|((&bits, &bytes), &loss)| SlotPrice { bits, bytes, loss })
            .collect(),
    });
    prices.collect()
}
