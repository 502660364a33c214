//! Networks with all of their quantizers, simulated and measured.

use std::sync::Arc;

use fastforward_core::metrics::Metric;
use fastforward_core::quantization::Quantizer;

use super::candidates::Swept;
use super::judge::{Judge, Yardstick};
use super::part::Priced;
use super::{Budget, MeasuredBy};
use crate::error::{Error, ErrorKind, Result};
use crate::pipeline::measure::output_name;
use crate::pipeline::{Job, Progress, Stage};
use crate::shapes::ShapeTable;
use crate::simulate::{Rounding, SimulateOptions, simulate};

/// The width of each slot of a sweep, by its position; `None` for that of its rule.
pub(super) type Choices = Vec<Option<usize>>;

/// The network as the rules quantize it, whose swept slots take any of their widths.
pub(super) struct Whole {
    /// With ranges set.
    job: Job,
    slots: Vec<Slot>,
    shapes: ShapeTable,
    judge: Judge,
    metric: Metric,
}

/// Where a slot stands, the quantizer of its rule, and those by width.
struct Slot {
    site: usize,
    own: Arc<dyn Quantizer>,
    by_width: Vec<Arc<dyn Quantizer>>,
}

impl Whole {
    pub(super) fn new(
        job: &Job,
        metric: Metric,
        swept: &Swept,
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
        let sites = work.tree.sites();
        let slots = swept.slots.iter().map(|one| Slot {
            site: one.site,
            own: sites[one.site].slot.quantizer(),
            by_width: one.quantizers.clone(),
        });
        let slots = slots.collect();
        Ok(Self { job: work, slots, shapes, judge, metric })
    }

    /// The metric for each choice of widths.
    pub(super) fn metrics(&self, choices: &[Choices], progress: &dyn Progress) -> Result<Vec<f64>> {
        let Job { model, tree, .. } = &self.job;
        let network = |at: usize| {
            for (slot, width) in self.slots.iter().zip(&choices[at]) {
                let quantizer = width.map_or(&slot.own, |width| &slot.by_width[width]);
                tree.sites()[slot.site].slot.replace(quantizer.clone());
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
    /// one where the metric grows with the size. What is measured on the way is added to what the part knows.
    pub(super) fn bisect(
        &self,
        priced: &mut Priced<'_>,
        bound: Budget,
        progress: &dyn Progress,
    ) -> Result<usize> {
        let holds = |value: f64| match bound {
            Budget::MetricAtLeast(bound) => value >= bound,
            Budget::MetricAtMost(bound) => value <= bound,
            Budget::AverageBits(_) | Budget::Bytes(_) | Budget::ActivationBits(_) => false,
        };
        let (mut fails, mut meets) = (0, priced.front.points().len() - 1);
        let mut value_at = |point: usize| {
            let value = self.metrics(&[priced.choices(point)], progress)?[0];
            priced.measured.push((point, value));
            Ok::<f64, Error>(value)
        };
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
