//! `[[algorithm]]` of a configuration, carried out on a model.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::Path;
use std::time::Instant;

use fastforward_core::algorithms::equalization::EqualizationOptions;
use fastforward_core::config::{Algorithm, AlgorithmEntry, AlgorithmStage, BiasMethod};
use fastforward_core::files;
use fastforward_core::module::NodeRef;
use fastforward_core::quantization::affine::SavedQuantizer;
use ff_kernels::HqqOptions;
use mpath::{SearchOptions, Selector};
use serde::Serialize;

use super::quantize::batches;
use super::report::{SourceData, SourceFile, SourceSamples};
use super::{Job, Progress, Samples, Stage};
use crate::error::{Error, Result};
use crate::graph::Model;
use crate::joint_ranges::{JoinOptions, join_ranges};
use crate::layerwise::{
    Context, Journal, LayerOutcome, LayerProgress, LayerTask, LinearLayer, choose_weights,
    linear_layers, refine_offsets,
};
use crate::rewrite::{
    AbsorbOptions, CorrectOptions, EqualizeOptions, SmoothOptions, absorb_biases,
    absorbable_values, channel_statistics, correct_biases, correct_biases_from_inputs, equalize,
    smooth, smoothable_values,
};
use crate::shapes::ShapeTable;
use crate::simulate::SimulateOptions;
use crate::tree::{Role, Site};

/// The folder below the output folder in which finished layers are kept until the job is done.
pub(super) const JOURNAL: &str = ".fastforward-journal";

/// What an algorithm is for, before anything is computed.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PlannedAlgorithm {
    /// The line of the configuration at which it stands.
    pub line: usize,
    /// Its type.
    pub algorithm: &'static str,
    /// Which weights it is for, where the configuration says.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub query: Option<String>,
    /// The slots of the weights it works on, in the order of the graph; empty for what looks at the whole network.
    pub slots: Vec<String>,
    /// Slots it would be for but cannot work on, and why.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub kept: Vec<String>,
}

/// What an algorithm did.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct AlgorithmReport {
    /// The line of the configuration at which it stands.
    pub line: usize,
    /// Its type.
    pub algorithm: &'static str,
    /// What `before` and `after` of its changes say, in words.
    pub measure: &'static str,
    /// What it changed, in the order of the graph.
    pub changes: Vec<AlgorithmChange>,
    /// What it left as it was, and why.
    pub kept: Vec<String>,
    /// Bytes of the sums over a layer's inputs, at their most; `None` for what keeps none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub moment_bytes: Option<u64>,
}

/// One thing that an algorithm changed.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct AlgorithmChange {
    /// The layer, slot or value.
    pub name: String,
    /// The measure without the algorithm.
    pub before: f64,
    /// The same with it; `None` where it is not measured.
    pub after: Option<f64>,
    /// Output channels that were left as they were, because they could not be improved.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rows_kept: Option<usize>,
}

impl AlgorithmReport {
    fn new(entry: &AlgorithmEntry, measure: &'static str) -> Self {
        Self {
            line: entry.line,
            algorithm: entry.algorithm.name(),
            measure,
            changes: Vec::new(),
            kept: Vec::new(),
            moment_bytes: None,
        }
    }

    fn change(&mut self, name: impl Into<String>, before: f64, after: Option<f64>) {
        self.changes.push(AlgorithmChange { name: name.into(), before, after, rows_kept: None });
    }
}

/// What each algorithm of a configuration works on, and what is wrong with them.
pub(super) fn plan(job: &Job) -> Result<(Vec<PlannedAlgorithm>, Vec<String>)> {
    let mut planned = Vec::new();
    let mut problems = Vec::new();
    let needs_layers =
        job.config.algorithms.iter().any(|one| one.algorithm.stage() == AlgorithmStage::Weights);
    let (layers, others) = match needs_layers && !job.model.is_weights() {
        true => linear_layers(&job.model, &job.tree)?,
        false => Default::default(),
    };
    for (entry, query) in job.config.algorithms.iter().zip(&job.targets) {
        let name = entry.algorithm.name();
        let stage = entry.algorithm.stage();
        let mut plan = PlannedAlgorithm {
            line: entry.line,
            algorithm: name,
            query: entry.query.as_ref().map(|query| query.text.clone()),
            slots: Vec::new(),
            kept: Vec::new(),
        };
        let needs_graph = !matches!(entry.algorithm, Algorithm::Hqq { .. });
        if job.model.is_weights() && needs_graph {
            problems.push(format!(
                "{}: `{name}` executes the network, and a file of weights has no graph that says how; without one there is \
                 `hqq`",
                entry.source
            ));
            planned.push(plan);
            continue;
        }
        let is_whole = matches!(entry.algorithm, Algorithm::JoinRanges { .. });
        if is_whole || matches!(stage, AlgorithmStage::Prepare | AlgorithmStage::Correct) {
            planned.push(plan);
            continue;
        }
        let matched = match query.as_ref().map(|query| matches(job, query)).transpose() {
            Ok(matched) => matched,
            Err(problem) => {
                problems.push(format!("{}: {problem}", entry.source));
                planned.push(plan);
                continue;
            }
        };
        let is_meant = |site: &str| matched.as_ref().is_none_or(|names| is_matched(names, site));
        let mut kept = Vec::new();
        if stage == AlgorithmStage::Ranges {
            for site in weight_slots(job).filter(|site| is_meant(&site.name)) {
                match offsets_problem(site) {
                    None => plan.slots.push(site.name.clone()),
                    Some(reason) => kept.push(format!("`{}`: {reason}", site.name)),
                }
            }
        } else {
            let meant = layers.iter().filter(|layer| is_meant(&layer.weight.name));
            for layer in meant {
                match layer_problem(layer) {
                    None => plan.slots.push(layer.weight.name.clone()),
                    Some(reason) => kept.push(format!("`{}`: {reason}", layer.weight.name)),
                }
            }
            let others = others.iter().filter(|(site, _)| is_meant(site));
            kept.extend(others.map(|(site, reason)| format!("`{site}`: {reason}")));
        }
        if plan.slots.is_empty() {
            let what = match &entry.query {
                Some(query) => format!("`{}` matches no weight that", query.text),
                None => "there is no weight that".to_owned(),
            };
            let reasons = match kept.as_slice() {
                [] => "none of them has a quantizer".to_owned(),
                kept => kept.join("; "),
            };
            problems.push(format!("{}: {what} `{name}` can work on: {reasons}", entry.source));
        }
        plan.kept = kept;
        planned.push(plan);
    }
    problems.extend(order_problems(job, &planned));
    Ok((planned, problems))
}

/// Ranges that are chosen for codes that were.
fn order_problems(job: &Job, planned: &[PlannedAlgorithm]) -> Vec<String> {
    let mut problems = Vec::new();
    let chooses_codes = |algorithm: &Algorithm| {
        matches!(
            algorithm,
            Algorithm::Gptq { .. }
                | Algorithm::AdaRound { .. }
                | Algorithm::CoordinateDescent { .. }
        )
    };
    let entries = &job.config.algorithms;
    for (at, (entry, plan)) in entries.iter().zip(planned).enumerate() {
        if chooses_codes(&entry.algorithm) || entry.algorithm.stage() != AlgorithmStage::Weights {
            continue;
        }
        let before = entries[..at].iter().zip(planned).find(|(other, others)| {
            chooses_codes(&other.algorithm)
                && others.slots.iter().any(|slot| plan.slots.contains(slot))
        });
        if let Some((other, _)) = before {
            problems.push(format!(
                "{}: `{}` chooses ranges of weights whose codes `{}` (line {}) has chosen; put it before",
                entry.source, entry.algorithm, other.algorithm, other.line
            ));
        }
    }
    problems
}

/// The full names that a query matches, or why there is none.
pub(super) fn matches(job: &Job, query: &Selector) -> std::result::Result<HashSet<String>, String> {
    let root = NodeRef::Module(job.tree.root());
    let context = job.tree.context();
    let found = mpath::search(query, root, &SearchOptions::new(&context))
        .map_err(|error| error.to_string())?;
    if found.is_empty() {
        let diagnosis = mpath::diagnose(query, root).map_err(|error| error.to_string())?;
        return Err(diagnosis.map_or_else(
            || format!("`{query}` matches nothing"),
            |diagnosis| diagnosis.to_string(),
        ));
    }
    Ok(found.iter().map(|one| one.full_name().to_owned()).collect())
}

/// Whether the slot of a weight, or the module it belongs to, is among the matches.
pub(super) fn is_matched(names: &HashSet<String>, site: &str) -> bool {
    names.contains(site) || site.rsplit_once('.').is_some_and(|(module, _)| names.contains(module))
}

fn weight_slots(job: &Job) -> impl Iterator<Item = &Site> {
    job.tree.set_slots().filter(|site| site.role == Role::Weight)
}

fn offsets_problem(site: &Site) -> Option<String> {
    match site.slot.quantizer().to_saved() {
        Some(SavedQuantizer::Linear(config, _)) if config.range.symmetric => Some(
            "its quantizer is symmetric, and hqq moves offsets; write `symmetric = false`"
                .to_owned(),
        ),
        Some(SavedQuantizer::Linear(..)) => None,
        _ => Some("its quantizer has no offsets that are set before".to_owned()),
    }
}

fn layer_problem(layer: &LinearLayer) -> Option<String> {
    let Some(SavedQuantizer::Linear(config, _)) = layer.weight.slot.quantizer().to_saved() else {
        return Some("its quantizer is none with scales that are set before".to_owned());
    };
    let tile = match config.granularity.tile_shape(layer.shape()) {
        Ok(tile) => tile,
        Err(error) => return Some(error.to_string()),
    };
    layer.tiles(&tile).err().map(|error| error.to_string())
}

/// A job on a model of its own, which its algorithms change.
pub(super) struct Tuned {
    pub(super) job: Job,
    /// The constants that hold other values than in float.
    pub(super) changed: Vec<String>,
    /// By the position of the algorithm.
    reports: BTreeMap<usize, AlgorithmReport>,
    journal: Option<Journal>,
}

impl Tuned {
    /// Lets the algorithms work that come before ranges.
    pub(super) fn prepare(
        job: &Job,
        samples: Option<&Samples>,
        shapes: &ShapeTable,
        progress: &dyn Progress,
    ) -> Result<Self> {
        let mut reports = BTreeMap::new();
        let job = job.prepared(samples, shapes, &mut reports, progress)?;
        Ok(Self { job, changed: Vec::new(), reports, journal: None })
    }

    /// Lets those work that need ranges. `out` is where finished layers are kept.
    pub(super) fn tune(
        &mut self,
        out: &Path,
        model_files: &[SourceFile],
        sources: &SourceData,
        samples: Option<&Samples>,
        shapes: &ShapeTable,
        progress: &dyn Progress,
    ) -> Result<()> {
        let (planned, _) = plan(&self.job)?;
        self.job.refine(&planned, &mut self.reports, progress)?;
        if self.job.algorithms(AlgorithmStage::Weights).next().is_some() {
            let journal = self.job.journal(out, model_files, sources.calibration.as_ref())?;
            let reports = &mut self.reports;
            self.changed =
                self.job.choose(&planned, samples, &journal, shapes, reports, progress)?;
            self.journal = Some(journal);
        }
        let corrected = self.job.correct(samples, shapes, &mut self.reports, progress)?;
        self.changed.extend(corrected);
        Ok(())
    }

    /// What was done, in the order of the file.
    pub(super) fn reports(&self) -> Vec<AlgorithmReport> {
        self.reports.values().cloned().collect()
    }

    /// Removes what would have let an interrupted job go on.
    pub(super) fn forget(&self) -> Result<()> {
        Ok(self.journal.as_ref().map_or(Ok(()), Journal::clear)?)
    }
}

impl Job {
    fn algorithms(&self, stage: AlgorithmStage) -> impl Iterator<Item = (usize, &AlgorithmEntry)> {
        let all = self.config.algorithms.iter().enumerate();
        all.filter(move |(_, entry)| entry.algorithm.stage() == stage)
    }

    /// The same job on a model of its own, prepared by the algorithms that come before ranges.
    fn prepared(
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
            let report = self.prepare(entry, &mut model, samples, shapes)?;
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
            ref other => AlgorithmReport::new(entry, other.name()),
        })
    }

    fn refine_offsets(
        &self,
        entry: &AlgorithmEntry,
        planned: &PlannedAlgorithm,
        options: &HqqOptions,
    ) -> Result<AlgorithmReport> {
        let sites = weight_slots(self).filter(|site| planned.slots.contains(&site.name));
        let found = refine_offsets(&self.model, sites, options)?;
        let mut report =
            AlgorithmReport::new(entry, "sparse error of a weight, in units of its scales");
        for one in found {
            report.change(one.slot, one.loss_before, Some(one.loss));
        }
        report.kept.clone_from(&planned.kept);
        Ok(report)
    }

    fn join_ranges(
        &self,
        entry: &AlgorithmEntry,
        options: &JoinOptions,
    ) -> Result<AlgorithmReport> {
        let width = |site: &Site| {
            let quantizer = site.slot.quantizer();
            let (min, max) = quantizer.as_range_settable()?.quantization_range()?;
            Some(f64::from(*max.first()?) - f64::from(*min.first()?))
        };
        let before: HashMap<String, f64> = (self.tree.set_sites())
            .filter_map(|site| Some((site.name.clone(), width(site)?)))
            .collect();
        let found = join_ranges(&self.model, &self.tree, options)?;
        let mut report =
            AlgorithmReport::new(entry, "width of the narrowest range, and of the common one");
        for one in &found.joined {
            let widths = one.slots.iter().filter_map(|slot| before.get(slot));
            let narrowest = widths.copied().fold(f64::INFINITY, f64::min);
            let common = f64::from(one.max) - f64::from(one.min);
            report.change(one.slots.join(", "), narrowest, Some(common));
        }
        let kept = found.kept.iter();
        report.kept.extend(kept.map(|one| format!("`{}`: {}", one.nodes.join("`, `"), one.reason)));
        Ok(report)
    }

    /// Works on ranges that were set.
    fn refine(
        &self,
        planned: &[PlannedAlgorithm],
        reports: &mut BTreeMap<usize, AlgorithmReport>,
        progress: &dyn Progress,
    ) -> Result<()> {
        for (at, entry) in self.algorithms(AlgorithmStage::Ranges) {
            progress.start(Stage::Algorithm(entry.algorithm.name()), 0);
            let started = Instant::now();
            let report = match entry.algorithm {
                Algorithm::Hqq { options } => self.refine_offsets(entry, &planned[at], &options)?,
                Algorithm::JoinRanges { concatenations, additions } => {
                    self.join_ranges(entry, &JoinOptions { concatenations, additions })?
                }
                ref other => AlgorithmReport::new(entry, other.name()),
            };
            reports.insert(at, report);
            progress.algorithm(at, started.elapsed().as_secs_f64());
            progress.finish();
        }
        Ok(())
    }

    /// Chooses weights layer by layer, with what an earlier run left in the journal.
    fn choose(
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
            tasks.push(LayerTask { layer, algorithms });
        }
        let changed = tasks.iter().map(|task| task.layer.weight.value.clone()).collect();
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
        }
        self.model = model;
        Ok(changed)
    }

    /// Corrects biases for what the weights are now. Returns the constants that changed.
    fn correct(
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
                    correct_biases(&mut model, &self.tree, data, &options, &mut ())?
                }
                BiasMethod::Analytic => {
                    let values = smoothable_values(&self.reference, shapes)?;
                    let named: Vec<(&str, isize)> =
                        values.iter().map(|(name, axis)| (name.as_str(), *axis)).collect();
                    let seen = channel_statistics(&self.reference, &named, batches(samples), &run)?;
                    let means = values.iter().zip(&seen);
                    let means =
                        means.map(|((name, _), seen)| (name.clone(), seen.mean())).collect();
                    correct_biases_from_inputs(&mut model, &self.tree, &means, shapes)?
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

    /// The journal of a job that chooses weights, below the output folder.
    ///
    /// What the weights depend on is in its name for the job: the model, the data it reads, the configuration, the options
    /// and the version of the program.
    fn journal(
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

fn share(loss: f64, signal: f64) -> f64 {
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
}
