//! Algorithms that come before ranges.

use std::collections::BTreeMap;
use std::time::Instant;

use fastforward_core::algorithms::equalization::EqualizationOptions;
use fastforward_core::config::{Algorithm, AlgorithmEntry, AlgorithmStage};

use super::weights::share;
use super::{AlgorithmReport, plan};
use crate::error::{Error, Result};
use crate::graph::Model;
use crate::pipeline::quantize::batches;
use crate::pipeline::{Job, Progress, Samples, Stage};
use crate::rewrite::{
    AbsorbOptions, AwqOptions, EqualizeOptions, SmoothOptions, absorb_biases, absorbable_values,
    awq, channel_statistics, equalize, smooth, smoothable_values,
};
use crate::shapes::ShapeTable;

impl Job {
    /// The same job on a model of its own, prepared by the algorithms that come before ranges.
    pub(super) fn prepared(
        &self,
        samples: Option<&Samples>,
        shapes: &ShapeTable,
        reports: &mut BTreeMap<usize, AlgorithmReport>,
        progress: &dyn Progress,
    ) -> Result<Job> {
        let mut model = self.model.clone();
        for (at, entry) in self.algorithms(AlgorithmStage::Prepare) {
            progress.start(Stage::Algorithm(entry.algorithm.name()), 0);
            let started = Instant::now();
            let report = self.prepare(at, entry, &mut model, samples, shapes)?;
            reports.insert(at, report);
            progress.algorithm(at, started.elapsed().as_secs_f64());
            progress.finish();
        }
        let job = self.on(model)?;
        job.check()?;
        Ok(job)
    }

    fn prepare(
        &self,
        at: usize,
        entry: &AlgorithmEntry,
        model: &mut Model,
        samples: Option<&Samples>,
        shapes: &ShapeTable,
    ) -> Result<AlgorithmReport> {
        let statistics = |model: &Model, values: &[(String, isize)]| {
            let named: Vec<(&str, isize)> =
                values.iter().map(|(name, axis)| (name.as_str(), *axis)).collect();
            let found = channel_statistics(model, &named, batches(samples), &self.run_options())?;
            let names = values.iter().map(|(name, _)| name.clone());
            Ok::<_, Error>(names.zip(found).collect::<BTreeMap<_, _>>())
        };
        let shapes = shapes.clone();
        Ok(match entry.algorithm {
            Algorithm::Equalize { rounding, relu6, bound_biases } => {
                let equalization = EqualizationOptions { rounding, ..Default::default() };
                let options = EqualizeOptions { equalization, relu6, bound_biases, shapes };
                let found = equalize(model, &options)?;
                let mut report = AlgorithmReport::new(
                    entry,
                    "largest range of a layer's output channels over the smallest",
                );
                for joint in found.chains.iter().flat_map(|chain| &chain.joints) {
                    let spread = joint.spread;
                    let name = format!("{} -> {}", joint.producer, joint.consumer);
                    report.change(name, spread.producer_before, Some(spread.producer_after));
                }
                let kept = found.kept.iter().filter(|one| !one.ends_chain);
                report.kept.extend(kept.map(|one| format!("`{}`: {}", one.layer, one.reason)));
                report
            }
            Algorithm::AbsorbBias { amount } => {
                let values = absorbable_values(model, &shapes)?;
                let seen = statistics(model, &values)?;
                let options = AbsorbOptions { absorption: amount, shapes };
                let found = absorb_biases(model, &seen, &options)?;
                let mut report =
                    AlgorithmReport::new(entry, "most that a channel never falls below");
                for one in found.absorbed.iter().filter(|one| one.channels > 0) {
                    let name = format!("{} -> {}", one.producer, one.consumer);
                    report.change(name, one.largest, Some(0.0));
                }
                let idle = found.absorbed.iter().filter(|one| one.channels == 0);
                report.kept.extend(idle.map(|one| {
                    format!("`{}`: no channel of `{}` stays above 0", one.producer, one.value)
                }));
                let kept = found.kept.iter();
                report.kept.extend(kept.map(|one| format!("`{}`: {}", one.layer, one.reason)));
                report
            }
            Algorithm::Smooth { alpha, rounding } => {
                let values = smoothable_values(model, &shapes)?;
                let seen = statistics(model, &values)?;
                let largest = |seen: &fastforward_core::algorithms::ChannelStatistics| {
                    let (min, max) = (seen.min(), seen.max());
                    min.iter().zip(&max).map(|(min, max)| min.abs().max(max.abs())).collect()
                };
                let maxima: BTreeMap<String, Vec<f32>> =
                    seen.iter().map(|(name, seen)| (name.clone(), largest(seen))).collect();
                let options = SmoothOptions { alpha, rounding, insert: false, shapes };
                let found = smooth(model, &maxima, &options)?;
                let mut report = AlgorithmReport::new(
                    entry,
                    "largest magnitude of an activation over the mean one of its channels",
                );
                for one in &found.smoothed {
                    report.change(&one.value, one.outlier_before, Some(one.outlier_after));
                }
                let kept = found.kept.iter();
                report.kept.extend(kept.map(|one| format!("`{}`: {}", one.value, one.reason)));
                report
            }
            Algorithm::Awq { steps, rounding } => {
                // What was rewritten before has nodes of its own.
                let job = self.on(model.clone())?;
                let planned = plan(&job)?.0.swap_remove(at);
                let options = AwqOptions { steps, rounding, shapes, run: self.run_options() };
                let data = || batches(samples);
                let found = awq(model, &job.tree, &planned.slots, data, &options)?;
                let measure = "error of a layer's output rounded to nearest, as part of its power";
                let mut report = AlgorithmReport::new(entry, measure);
                for one in found.scaled.iter().flat_map(|one| &one.layers) {
                    let (before, after) = (one.loss_before, one.loss);
                    let after = Some(share(after, one.signal));
                    report.change(&one.layer, share(before, one.signal), after);
                }
                report.kept = planned.kept;
                let kept = found.kept.iter();
                report.kept.extend(kept.map(|one| format!("`{}`: {}", one.value, one.reason)));
                report.moment_bytes = Some(found.moment_bytes);
                report
            }
            ref other => AlgorithmReport::new(entry, other.name()),
        })
    }
}
