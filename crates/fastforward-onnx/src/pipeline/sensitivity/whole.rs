//! Networks with all of their quantizers, simulated and measured.

use std::sync::Arc;

use fastforward_core::metrics::Metric;
use fastforward_core::quantization::Quantizer;

use super::candidates::Weight;
use super::front::Front;
use super::judge::{Judge, Yardstick};
use super::{Budget, MeasuredBy};
use crate::error::{Error, ErrorKind, Result};
use crate::pipeline::measure::output_name;
use crate::pipeline::{Job, Progress, Stage};
use crate::shapes::ShapeTable;
use crate::simulate::{Rounding, SimulateOptions, simulate};

/// The network as the rules quantize it, whose weights take any of their widths.
pub(super) struct Whole {
    /// With ranges set.
    job: Job,
    /// Where each weight stands, and its quantizers by width.
    weights: Vec<(usize, Vec<Arc<dyn Quantizer>>)>,
    shapes: ShapeTable,
    judge: Judge,
    metric: Metric,
}

impl Whole {
    pub(super) fn new(
        job: &Job,
        metric: Metric,
        weights: &[Weight],
        progress: &dyn Progress,
    ) -> Result<Self> {
        let data = job.open_data()?;
        let (Some(evaluation), Some(section)) = (data.evaluation, &job.config.evaluation) else {
            return Err(job.no_evaluation("measuring"));
        };
        let shapes = job.shapes(data.calibration.as_ref().or(Some(&evaluation)))?;
        let work = job.on(job.model.clone())?;
        work.calibrate(data.calibration.as_ref(), progress)?;
        let output = output_name(&job.model, section.output.as_deref())?;
        let yardstick = Yardstick::Metric(metric);
        let judge =
            Judge::new(&job.model, evaluation, vec![output], yardstick, job.engine_options())?;
        let weights = weights.iter().map(|one| (one.site, one.quantizers.clone())).collect();
        Ok(Self { job: work, weights, shapes, judge, metric })
    }

    /// The metric for each choice of widths.
    pub(super) fn metrics(
        &self,
        choices: &[Vec<usize>],
        progress: &dyn Progress,
    ) -> Result<Vec<f64>> {
        let Job { model, tree, .. } = &self.job;
        let network = |at: usize| {
            for ((site, quantizers), &width) in self.weights.iter().zip(&choices[at]) {
                tree.sites()[*site].slot.replace(quantizers[width].clone());
            }
            // As the exported file rounds, so that a bound that holds here holds there.
            let options =
                SimulateOptions { rounding: Rounding::BeforeOffset, shapes: self.shapes.clone() };
            Ok(("the quantized network".to_owned(), simulate(model, tree, &options)?.model))
        };
        self.judge.announce(Stage::Evaluate, choices.len(), progress);
        let values = self.judge.each(choices.len(), model.weight_bytes(), &network, progress)?;
        progress.finish();
        Ok(values)
    }

    /// The point of the front that holds a bound on the metric while one below it, which was tried, does not: the smallest
    /// one where the metric grows with the size. What is measured on the way is added to `measured`.
    pub(super) fn bisect(
        &self,
        front: &Front,
        bound: Budget,
        measured: &mut Vec<(usize, f64)>,
        progress: &dyn Progress,
    ) -> Result<usize> {
        let holds = |value: f64| match bound {
            Budget::MetricAtLeast(bound) => value >= bound,
            Budget::MetricAtMost(bound) => value <= bound,
            Budget::AverageBits(_) | Budget::Bytes(_) => false,
        };
        let mut value_at = |point: usize| {
            let value = self.metrics(&[front.choices(point)], progress)?[0];
            measured.push((point, value));
            Ok::<f64, Error>(value)
        };
        let (mut fails, mut meets) = (0, front.points().len() - 1);
        let best = value_at(meets)?;
        if !holds(best) {
            let sign = if self.metric.is_error() { "<=" } else { ">=" };
            let text = format!(
                "budget `{bound}` cannot be met: with the least loss that the widths allow, `{}` is {best}; the nearest \
                 budget that can be met is `metric{sign}{best}`",
                self.metric
            );
            return Err(Error::new(ErrorKind::Input, text));
        }
        if meets == 0 || holds(value_at(fails)?) {
            return Ok(0);
        }
        while meets - fails > 1 {
            let middle = fails + (meets - fails) / 2;
            if holds(value_at(middle)?) {
                meets = middle;
            } else {
                fails = middle;
            }
        }
        Ok(meets)
    }

    pub(super) fn measured_by(&self) -> MeasuredBy {
        MeasuredBy {
            metric: self.metric.name().into_owned(),
            unit: self.metric.unit(),
            samples: self.judge.n_samples(),
            float: self.judge.float,
        }
    }
}
