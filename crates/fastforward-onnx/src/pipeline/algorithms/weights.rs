//! Weights chosen layer by layer, and the journal of it.

use std::collections::BTreeMap;
use std::path::Path;

use fastforward_core::config::{Algorithm, AlgorithmEntry, AlgorithmStage};
use fastforward_core::files;

use super::{AlgorithmChange, AlgorithmReport, PlannedAlgorithm};
use crate::error::Result;
use crate::graph::Model;
use crate::layerwise::{
    BiasStep, BlockOutcome, BlockTask, Context, Journal, LayerOutcome, LayerProgress, LayerTask,
    LinearLayer, Outcome, Task, blocks, choose_weights, linear_layers,
};
use crate::pipeline::quantize::batches;
use crate::pipeline::report::{SourceFile, SourceSamples};
use crate::pipeline::{Job, Progress, Samples, Stage};
use crate::rewrite::correctable;
use crate::shapes::ShapeTable;
use crate::simulate::SimulateOptions;

/// The folder below the output folder in which finished layers are kept until the job is done.
const JOURNAL: &str = ".fastforward-journal";

impl Job {
    /// Chooses weights layer by layer, with what an earlier run left in the journal.
    pub(super) fn choose(
        &mut self,
        planned: &[PlannedAlgorithm],
        samples: Option<&Samples>,
        journal: &Journal,
        shapes: &ShapeTable,
        reports: &mut BTreeMap<usize, AlgorithmReport>,
        progress: &dyn Progress,
    ) -> Result<Vec<String>> {
        let entries: Vec<(usize, &AlgorithmEntry)> =
            self.algorithms(AlgorithmStage::Weights).collect();
        let (layers, _) = linear_layers(&self.model, &self.tree)?;
        let mut blocks = block_tasks(&self.model, &entries, planned, &layers);
        // The positions, in the configuration, of the algorithms of each task.
        let mut numbers: Vec<Vec<usize>> = Vec::new();
        let mut tasks = Vec::new();
        for layer in layers {
            let own: Vec<&(usize, &AlgorithmEntry)> = (entries.iter())
                .filter(|(at, _)| planned[*at].slots.contains(&layer.weight.name))
                .collect();
            if own.is_empty() {
                continue;
            }
            let algorithms = own.iter().map(|(_, entry)| entry.algorithm.clone()).collect();
            numbers.push(own.iter().map(|(at, _)| *at).collect());
            let correct_bias = own.iter().any(|(_, entry)| entry.correct_bias);
            // A block follows its last layer.
            let ends = |task: &BlockTask| {
                let last = task.block.layers.last();
                last.is_some_and(|last| last.weight.name == layer.weight.name)
            };
            let ended: Vec<(usize, BlockTask)> =
                blocks.extract_if(.., |(_, task)| ends(task)).collect();
            tasks.push(Task::Layer(Box::new(LayerTask { layer, algorithms, correct_bias })));
            for (at, task) in ended {
                numbers.push(vec![at]);
                tasks.push(Task::Block(task));
            }
        }
        let mut changed: Vec<String> =
            layers_of(&tasks).map(|task| task.layer.weight.value.clone()).collect();
        let context = Context {
            simulation: SimulateOptions { shapes: shapes.clone(), ..SimulateOptions::default() },
            run: self.run_options(),
            journal,
        };
        progress.start(Stage::Layers, tasks.len());
        let mut listen = Layers { progress, numbers: &numbers, done: 0 };
        let mut model = self.model.clone();
        let data = || batches(samples);
        let found = choose_weights(&mut model, &self.tree, &tasks, data, &context, &mut listen)?;
        progress.finish();
        for (at, entry) in &entries {
            let mut report =
                AlgorithmReport::new(entry, "error of a layer's output, as part of its power");
            report.kept.clone_from(&planned[*at].kept);
            reports.insert(*at, report);
        }
        for (outcome, numbers) in found.iter().zip(&numbers) {
            let outcome = match outcome {
                Outcome::Layer(outcome) => outcome,
                Outcome::Block(outcome) => {
                    if let Some(report) = numbers.first().and_then(|at| reports.get_mut(at)) {
                        report_block(report, outcome);
                    }
                    continue;
                }
            };
            for step in &outcome.steps {
                let Some(report) = numbers.get(step.algorithm).and_then(|at| reports.get_mut(at))
                else {
                    continue;
                };
                report.changes.push(AlgorithmChange {
                    name: outcome.layer.clone(),
                    before: share(step.loss_before, step.signal),
                    after: Some(share(step.loss, step.signal)),
                    rows_kept: Some(step.rows_kept),
                });
                let bytes = report.moment_bytes.get_or_insert(0);
                *bytes = (*bytes).max(outcome.moment_bytes);
            }
            // The algorithm that asked for it, the last of several.
            let asked = numbers.iter().rev().find(|at| self.config.algorithms[**at].correct_bias);
            let Some(report) = asked.and_then(|at| reports.get_mut(at)) else { continue };
            match &outcome.bias {
                Some(BiasStep::Corrected { signal, loss_before, loss }) => {
                    let after = Some(share(*loss, *signal));
                    report.change(
                        format!("{} (bias)", outcome.layer),
                        share(*loss_before, *signal),
                        after,
                    );
                }
                Some(BiasStep::Kept(reason)) => {
                    report.kept.push(format!("the bias of `{}`: {reason}", outcome.layer));
                }
                None => {}
            }
        }
        for (task, outcome) in tasks.iter().zip(&found) {
            let (Task::Layer(task), Outcome::Layer(outcome)) = (task, outcome) else { continue };
            if let Some(BiasStep::Corrected { .. }) = outcome.bias {
                let node = task.layer.weight.node.index;
                let bias = correctable(&model, &self.tree, node, shapes)?;
                changed.extend(bias.and_then(|bias| Some(bias.ok()?.constant()?.to_owned())));
            }
        }
        self.model = model;
        Ok(changed)
    }

    /// The journal of a job that chooses weights, below the output folder.
    ///
    /// What the weights depend on is in its name for the job: the model, the data it reads, the configuration, the options
    /// and the version of the program.
    pub(super) fn journal(
        &self,
        out: &Path,
        model_files: &[SourceFile],
        samples: Option<&SourceSamples>,
    ) -> Result<Journal> {
        let options = format!("{:?} {:?}", self.options.activations, self.options.batch_size);
        let mut parts = vec![
            env!("CARGO_PKG_VERSION"),
            self.model_sha256.as_deref().unwrap_or_default(),
            &options,
            self.config.text(),
        ];
        parts.extend(model_files.iter().map(|file| file.sha256.as_str()));
        parts.extend(samples.iter().flat_map(|one| &one.files).map(|file| file.sha256.as_str()));
        let job = files::sha256_of(parts.join("\0").as_bytes());
        Ok(Journal::open(&out.join(JOURNAL), &job)?)
    }
}

fn layers_of(tasks: &[Task]) -> impl Iterator<Item = &LayerTask> {
    tasks.iter().filter_map(|task| match task {
        Task::Layer(task) => Some(&**task),
        Task::Block(_) => None,
    })
}

/// The blocks that sections ask for, each with the position of its section.
fn block_tasks(
    model: &Model,
    entries: &[(usize, &AlgorithmEntry)],
    planned: &[PlannedAlgorithm],
    layers: &[LinearLayer],
) -> Vec<(usize, BlockTask)> {
    let mut found = Vec::new();
    for (at, entry) in entries {
        let Algorithm::AdaRound { options, inputs, block_layers } = entry.algorithm else {
            continue;
        };
        if block_layers < 2 {
            continue;
        }
        let own = layers.iter().filter(|layer| planned[*at].slots.contains(&layer.weight.name));
        let own: Vec<LinearLayer> = own.cloned().collect();
        let (blocks, _) = blocks(model, &own, block_layers);
        let task = |block| (*at, BlockTask { block, options, inputs });
        found.extend(blocks.into_iter().map(task));
    }
    found
}

fn report_block(report: &mut AlgorithmReport, outcome: &BlockOutcome) {
    match &outcome.kept_because {
        Some(reason) => report.kept.push(format!("the block of `{}`: {reason}", outcome.name)),
        None => {
            let [before, after] = [outcome.loss_before, outcome.loss];
            let after = share(after, outcome.signal);
            let before = share(before, outcome.signal);
            report.change(format!("{} (block)", outcome.name), before, Some(after));
        }
    }
}

/// A loss as a part of the power of what it is a loss of.
pub(super) fn share(loss: f64, signal: f64) -> f64 {
    if signal > 0.0 { loss / signal } else { loss }
}

/// Tells of layers.
struct Layers<'p> {
    progress: &'p dyn Progress,
    numbers: &'p [Vec<usize>],
    done: usize,
}

impl LayerProgress for Layers<'_> {
    fn layer(&mut self, outcome: &LayerOutcome, seconds: Option<&[f64]>) {
        self.progress.advance(1);
        if let (Some(seconds), Some(numbers)) = (seconds, self.numbers.get(self.done)) {
            for (at, seconds) in numbers.iter().zip(seconds) {
                self.progress.algorithm(*at, *seconds);
            }
        }
        if seconds.is_none() {
            self.progress.resumed(&outcome.layer);
        }
        self.done += 1;
    }

    fn block(&mut self, outcome: &BlockOutcome, seconds: Option<f64>) {
        self.progress.advance(1);
        match (seconds, self.numbers.get(self.done).and_then(|numbers| numbers.first())) {
            (Some(seconds), Some(at)) => self.progress.algorithm(*at, seconds),
            (Some(_), None) => {}
            (None, _) => self.progress.resumed(&outcome.name),
        }
        self.done += 1;
    }
}
