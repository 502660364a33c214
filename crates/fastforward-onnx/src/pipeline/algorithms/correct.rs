//! Biases corrected for weights that are final.

use std::collections::BTreeMap;
use std::time::Instant;

use fastforward_core::config::{Algorithm, AlgorithmEntry, AlgorithmStage, BiasMethod};

use super::AlgorithmReport;
use crate::error::Result;
use crate::pipeline::quantize::batches;
use crate::pipeline::{Job, Progress, Samples, Stage};
use crate::rewrite::{
    CorrectOptions, channel_statistics, correct_biases, correct_biases_from_inputs,
    smoothable_values,
};
use crate::shapes::ShapeTable;
use crate::simulate::SimulateOptions;

impl Job {
    /// Corrects biases for what the weights are now. Returns the constants that changed.
    pub(super) fn correct(
        &mut self,
        samples: Option<&Samples>,
        shapes: &ShapeTable,
        reports: &mut BTreeMap<usize, AlgorithmReport>,
        progress: &dyn Progress,
    ) -> Result<Vec<String>> {
        let entries: Vec<(usize, AlgorithmEntry)> = self
            .algorithms(AlgorithmStage::Correct)
            .map(|(at, entry)| (at, entry.clone()))
            .collect();
        let mut changed = Vec::new();
        for (at, entry) in entries {
            let Algorithm::BiasCorrection { method } = entry.algorithm else { continue };
            progress.start(Stage::Algorithm(entry.algorithm.name()), 0);
            let started = Instant::now();
            let simulate = SimulateOptions { shapes: shapes.clone(), ..SimulateOptions::default() };
            let run = self.run_options();
            let mut model = self.model.clone();
            let found = match method {
                BiasMethod::Measured => {
                    let options = CorrectOptions { simulate, run };
                    let data = || batches(samples);
                    correct_biases(
                        &mut model,
                        &self.reference,
                        &self.tree,
                        data,
                        &options,
                        &mut (),
                    )?
                }
                BiasMethod::Analytic => {
                    let values = smoothable_values(&self.reference, shapes)?;
                    let named: Vec<(&str, isize)> =
                        values.iter().map(|(name, axis)| (name.as_str(), *axis)).collect();
                    let seen = channel_statistics(&self.reference, &named, batches(samples), &run)?;
                    let means = values.iter().zip(&seen);
                    let means =
                        means.map(|((name, _), seen)| (name.clone(), seen.mean())).collect();
                    let float = &self.reference;
                    correct_biases_from_inputs(&mut model, float, &self.tree, &means, shapes)?
                }
            };
            let measure =
                "error of the mean of a layer's output, root of the mean square over channels";
            let mut report = AlgorithmReport::new(&entry, measure);
            for one in &found.corrected {
                report.change(&one.layer, one.shift_before, one.shift_after);
                changed.push(one.bias.clone());
            }
            let kept = found.kept.iter();
            report.kept.extend(kept.map(|one| format!("`{}`: {}", one.layer, one.reason)));
            reports.insert(at, report);
            self.model = model;
            progress.algorithm(at, started.elapsed().as_secs_f64());
            progress.finish();
        }
        Ok(changed)
    }
}
