//! From a checked job to verified files.

use std::collections::HashMap;
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::thread;

use fastforward_core::ArrayView;
use fastforward_core::config::{ActivationType, EvaluationSection};
use fastforward_core::files::write_whole;
use fastforward_core::module::SlotEntry;
use fastforward_core::quantization::Granularity;
use fastforward_core::quantization::affine::SavedQuantizer;
use fastforward_core::quantization::state::{StateInfo, save_quantization_state};
use fastforward_core::range_setting::{ObserverOptions, RangeObserver, SlotEstimate, UpdatePolicy};

use super::algorithms::Tuned;
use super::measure::{Evaluation, measure};
use super::outputs::Outputs;
use super::report::{
    BatchNorm, Check, Layers, Program, REPORT_VERSION, Report, ReportedOptions, ReportedRange,
    ReportedSlot, SourceData, SourceFile, SourceModel, SourceSamples,
};
use super::samples::Samples;
use super::summary::file_name;
use super::{Job, JobData, Plan, Progress, Stage};
use crate::calibrate::{self, Batch, RunOptions, SiteObserver, Watched, calibrate, show_constant};
use crate::compare::{self, LayerDifference};
use crate::engine::{BatchInput, Engine, check_operators};
use crate::error::{Error, ErrorKind, Result};
use crate::export::{
    CONFIG_FILE, ExportOptions, ExportSummary, Signedness, export, export_to, export_weights,
    verify_weights, weights_problem,
};
use crate::graph::{Model, data_path};
use crate::placement::ConstantFinder;
use crate::shapes::ShapeTable;
use crate::simulate::{SimulateOptions, simulate};
use crate::tensor::Tensor;
use crate::tree::{Role, Site};
use crate::verify::{Verification, VerifyOptions, verify_and_compare};

/// The names of what [`Job::quantize`] writes beside the model.
const REPORT: &str = "report.json";
const STATE: &str = "state";

/// Where the engine is needed although no range comes from data.
const NEEDS_ENGINE: &str =
    "[evaluation], which executes the model (constants can be quantized without it)";

/// What [`Job::quantize`] did.
#[derive(Clone, Debug)]
pub struct Quantized {
    /// All of it, as in `report.json`.
    pub report: Report,
    /// The quantized model.
    pub model: PathBuf,
    /// The report.
    pub report_file: PathBuf,
}

impl Quantized {
    /// The conditions of the configuration that do not hold.
    pub fn failed_checks(&self) -> impl Iterator<Item = &Check> {
        self.report.checks.iter().filter(|check| !check.holds)
    }
}

impl Job {
    /// The files that [`Job::quantize`] writes into `out`: the model, called `<model>.qdq.onnx`, `report.json`, the
    /// quantization state, `state/state.json` and `state/state.safetensors`, and for a model whose data lies in other files
    /// `<model>.qdq.onnx.data`. Of weights without a graph: the files under their names, `report.json`, the state, and
    /// `quantization_config.json`.
    pub fn outputs(&self, out: &Path) -> Vec<PathBuf> {
        if let Some(weights) = self.model.weight_files() {
            let main = match self.model.path().and_then(Path::file_name) {
                Some(name) => out.join(name),
                None => out.to_owned(),
            };
            let state = out.join(STATE);
            let mut outputs = vec![
                main.clone(),
                out.join(REPORT),
                state.join("state.json"),
                state.join("state.safetensors"),
                out.join(CONFIG_FILE),
            ];
            let files = weights.files.keys().map(|name| out.join(name));
            outputs.extend(files.filter(|file| *file != main));
            return outputs;
        }
        let stem = self.model.path().and_then(Path::file_stem).unwrap_or_default();
        let mut model = stem.to_owned();
        model.push(".qdq.onnx");
        let (model, state) = (out.join(model), out.join(STATE));
        let data = self.model.has_external_data().then(|| data_path(&model));
        let mut outputs = vec![
            model,
            out.join(REPORT),
            state.join("state.json"),
            state.join("state.safetensors"),
        ];
        outputs.extend(data);
        outputs
    }

    /// Refuses an output folder in which a file would replace one that is read, or cannot stand where it belongs.
    ///
    /// # Errors
    /// `Io` naming each such file.
    pub fn check_outputs(&self, out: &Path, data: &JobData) -> Result<()> {
        let mut inputs: Vec<PathBuf> = Vec::new();
        inputs.extend(self.model.path().map(Path::to_owned));
        inputs.extend(self.model.data_files()?);
        inputs.push(PathBuf::from(self.config.name()));
        for samples in data.calibration.iter().chain(&data.evaluation) {
            inputs.extend(samples.paths()?);
        }
        let inputs: Vec<PathBuf> =
            inputs.into_iter().filter_map(|path| path.canonicalize().ok()).collect();
        let mut problems = Vec::new();
        for output in self.outputs(out) {
            let path = output.display();
            if output.canonicalize().is_ok_and(|output| inputs.contains(&output)) {
                problems.push(format!("`{path}` is read by this job and would be replaced"));
            }
            if output.is_dir() {
                problems.push(format!("`{path}` is a folder; a file is written there"));
            }
        }
        let state = out.join(STATE);
        if state.exists() && !state.is_dir() {
            problems.push(format!("`{}` is a file; a folder is made there", state.display()));
        }
        if problems.is_empty() { Ok(()) } else { Err(Error::many(ErrorKind::Io, problems)) }
    }

    /// Calibrates, measures, exports, reads back, compares, and puts the files of [`Job::outputs`] into `out`, which is
    /// made if it is missing.
    ///
    /// On an error `out` is as it was before, but for what finished layers left there: where weights are chosen layer by
    /// layer, each layer is written into a folder `.fastforward-journal` as it is finished, from which the same job goes on
    /// when it is started again. A job that is done removes the folder. A condition of the configuration that does not hold is no error: see
    /// [`Quantized::failed_checks`].
    ///
    /// # Errors
    /// `Rules` as [`Job::check`]; those of [`Job::open_data`]; `Io` when `out` cannot be written to; `Quantizer` for
    /// quantizers that ONNX cannot express where they stand; `Verification` when what was written does not compute what
    /// was simulated; the errors of engine and data.
    pub fn quantize(&self, out: &Path, progress: &dyn Progress) -> Result<Quantized> {
        self.check()?;
        let data = self.open_data()?;
        self.check_outputs(out, &data)?;
        if data.calibration.is_none() && data.evaluation.is_some() {
            check_operators(&self.model).map_err(|error| error.within(NEEDS_ENGINE))?;
        }
        let outputs = Outputs::create(out)?;
        let staging = outputs.staging();
        let written = self.write_files(staging, out, &data, progress);
        // Files are known by where they will stand.
        let (report, tuned) = written.map_err(|error| error.moved(staging, out))?;
        outputs.publish(REPORT)?;
        if let Some(tuned) = &tuned {
            tuned.forget()?;
        }
        let [model, report_file] = [0, 1].map(|at| self.outputs(out)[at].clone());
        Ok(Quantized { report, model, report_file })
    }

    /// What [`Job::quantize`] does with `data`, its files in `folder`, from where they will go to `out`.
    fn write_files(
        &self,
        folder: &Path,
        out: &Path,
        data: &JobData,
        progress: &dyn Progress,
    ) -> Result<(Report, Option<Tuned>)> {
        let data_files = self.model.data_files()?;
        let places = self.outputs(folder);

        let judges = data.evaluation.as_ref().or(data.calibration.as_ref());
        let samples = data.calibration.as_ref();
        let shapes = self.shapes(samples.or(judges))?;
        let mut tuned = match self.config.algorithms.is_empty() {
            true => None,
            false => Some(Tuned::prepare(self, samples, &shapes, progress)?),
        };
        let job = tuned.as_ref().map_or(self, |tuned| &tuned.job);
        // The same bytes are read for both, so they come from the disk once.
        let (estimates, data_files) = thread::scope(|scope| {
            let hashed = scope.spawn(|| {
                data_files.iter().map(|path| source_file(path, None)).collect::<Result<Vec<_>>>()
            });
            let estimates = job.calibrate(samples, progress);
            (estimates, hashed.join())
        });
        let estimates = estimates?;
        let data_files = data_files.unwrap_or_else(|panic| resume_unwind(panic))?;
        let sources = SourceData {
            calibration: samples.map(source_samples).transpose()?,
            evaluation: data.evaluation.as_ref().map(source_samples).transpose()?,
        };
        if let Some(tuned) = &mut tuned {
            tuned.tune(out, &data_files, &sources, samples, &shapes, progress)?;
        }
        let job = tuned.as_ref().map_or(self, |tuned| &tuned.job);
        let changed = tuned.as_ref().map_or(&[][..], |tuned| &tuned.changed);
        let summary = job.write_model(&places[0], progress)?;
        let (verification, constants) =
            job.verify(&places[0], &summary, judges, &shapes, progress)?;
        let layers = job.layers(constants, changed, judges, &shapes, progress)?;
        let section = self.config.evaluation.as_ref();
        let evaluation = match (section, &data.evaluation) {
            (Some(section), Some(samples)) => {
                Some(job.evaluate(&places[0], samples, section, progress)?)
            }
            _ => None,
        };
        let plan = job.plan()?;
        // A single file of weights is its own data.
        let model_sha256 = match (&job.model_sha256, data_files.as_slice()) {
            (Some(sha256), _) => sha256.clone(),
            (None, files) => files.first().map(|file| file.sha256.clone()).unwrap_or_default(),
        };
        job.save_state(folder, &plan, &model_sha256)?;

        let checks = match (section, &evaluation) {
            (Some(section), Some(evaluation)) => checks(section, evaluation),
            _ => Vec::new(),
        };
        let files: Vec<SourceFile> = [&places[..1], &places[2..]]
            .concat()
            .iter()
            .filter(|path| path.exists())
            .map(|path| source_file(path, Some(folder)))
            .collect::<Result<_>>()?;
        let report = Report {
            schema_version: REPORT_VERSION,
            program: Program { name: "fastforward", version: env!("CARGO_PKG_VERSION") },
            config: source_file(self.config.name().as_ref(), None)?,
            data: sources,
            seeds: Vec::new(),
            options: ReportedOptions {
                activations: match job.activations() {
                    Signedness::Unsigned => "u8",
                    Signedness::Signed => "s8",
                },
            },
            batch_norm: BatchNorm {
                folded: job.folded.folded.iter().map(ToString::to_string).collect(),
                kept: job.folded.kept.iter().map(ToString::to_string).collect(),
            },
            slots: reported_slots(&plan, &estimates),
            model: SourceModel { sha256: model_sha256, data: data_files, summary: plan.model },
            rules: plan.rules,
            algorithms: tuned.as_ref().map(Tuned::reports).unwrap_or_default(),
            evaluation,
            layers,
            export: summary,
            verification,
            checks,
            files,
        };
        let mut text = serde_json::to_string_pretty(&report).map_err(|error| {
            Error::new(ErrorKind::Io, format!("cannot write the report: {error}"))
        })?;
        text.push('\n');
        write_whole(&places[1], |file| file.write_all(text.as_bytes()))?;
        Ok((report, tuned))
    }

    /// The shapes of activations, as far as two samples show them.
    pub(super) fn shapes(&self, samples: Option<&Samples>) -> Result<ShapeTable> {
        let Some(batch) = samples.and_then(|samples| samples.batches().next()).transpose()? else {
            return Ok(ShapeTable::stated(&self.model));
        };
        let first: Vec<(String, Tensor)> = batch
            .inputs
            .into_iter()
            .map(|(name, tensor)| {
                let rows = tensor.shape().first().map_or(0, |&rows| rows.min(2));
                Ok((name, tensor.rows(0..rows)?))
            })
            .collect::<Result<_>>()?;
        let inputs: Vec<BatchInput<'_>> =
            first.iter().map(|(name, tensor)| BatchInput { name, tensor, shared: false }).collect();
        let engine = Engine::new(&self.model, &self.engine_options())?;
        ShapeTable::recorded(&self.model, &engine, &inputs)
    }

    /// Sets the range of every quantizer that has one: of constants one after the other, of activations from samples.
    pub(super) fn calibrate(
        &self,
        samples: Option<&Samples>,
        progress: &dyn Progress,
    ) -> Result<HashMap<String, ReportedRange>> {
        let mut sites = Vec::new();
        let mut observers = Vec::new();
        let mut estimates = HashMap::new();
        let mut problems = Vec::new();
        // Not the estimate itself, which has a range for each tile of each slot.
        let mut note = |estimate: &SlotEstimate| {
            let range = ReportedRange::of(estimate);
            estimates.extend(range.map(|range| (estimate.names[0].clone(), range)));
        };
        let mut finder = ConstantFinder::new(&self.model);
        let mut constants = Vec::new();
        for site in self.tree.set_slots() {
            let resolved = self.resolution.slot(&site.name);
            let rule = resolved.and_then(|slot| slot.winner).map(|winner| winner.rule);
            let estimator = rule.and_then(|rule| self.config.rules[rule].estimator.as_ref());
            let Some(estimator) = estimator else { continue };
            let entry = resolved.map_or_else(
                || SlotEntry { names: vec![site.name.clone()], slot: site.slot.clone() },
                |slot| slot.to_entry(),
            );
            let options = ObserverOptions { update: UpdatePolicy::AtEnd, ..Default::default() };
            let observer = RangeObserver::new(entry, estimator.build()?, options)?;
            if matches!(site.role, Role::Input | Role::Output) {
                observers.push(Observing(observer));
                sites.push(site);
            } else {
                constants.push((site, observer));
            }
        }
        // The buffer has its final size at once: growing would hold two of them. What nobody writes to takes no memory.
        let sizes = constants.iter().map(|(site, _)| {
            let shape = finder.find(site)?.1.info()?.shape;
            Ok(shape.iter().product())
        });
        let largest = sizes.collect::<Result<Vec<usize>>>()?.into_iter().max().unwrap_or(0);
        let mut buffer = vec![0.0; largest];
        progress.start(Stage::Constants, constants.len());
        for (site, mut observer) in constants {
            note(&show_constant(site, &mut finder, &mut buffer, |x| observer.observe_unread(x))?);
            progress.advance(1);
        }
        drop(buffer);
        progress.finish();

        if !sites.is_empty() {
            let watched = sites
                .iter()
                .zip(&mut observers)
                .map(|(&site, observer)| Watched { site, observer })
                .collect();
            progress.start(Stage::Calibrate, samples.map_or(0, Samples::len));
            calibrate(
                &self.model,
                watched,
                batches(samples),
                &self.run_options(),
                &mut Steps::new(samples, progress),
            )?;
            for Observing(observer) in &mut observers {
                match observer.finish() {
                    Ok(estimate) => note(&estimate),
                    Err(error) => problems.push(error.to_string()),
                }
            }
            progress.finish();
        }
        if problems.is_empty() {
            return Ok(estimates);
        }
        Err(Error::many(ErrorKind::Core(fastforward_core::ErrorKind::NoData), problems))
    }

    /// Writes the model: where its data lies in other files, tensor by tensor.
    fn write_model(&self, path: &Path, progress: &dyn Progress) -> Result<ExportSummary> {
        progress.start(Stage::Export, 0);
        if self.model.is_weights() {
            let folder = path.parent().unwrap_or(Path::new(""));
            let summary = export_weights(&self.model, &self.tree, folder)?;
            progress.finish();
            return Ok(summary);
        }
        let options = self.export_options();
        let summary = if self.model.has_external_data() {
            export_to(&self.model, &self.tree, &options, path)?.1
        } else {
            let exported = export(&self.model, &self.tree, &options)?;
            exported.model.save(path)?;
            exported.summary
        };
        progress.finish();
        Ok(summary)
    }

    fn verify(
        &self,
        path: &Path,
        summary: &ExportSummary,
        samples: Option<&Samples>,
        shapes: &ShapeTable,
        progress: &dyn Progress,
    ) -> Result<(Verification, Vec<LayerDifference>)> {
        progress.start(Stage::Verify, samples.map_or(0, Samples::len));
        if self.model.is_weights() {
            let folder = path.parent().unwrap_or(Path::new(""));
            let mut rows = Vec::new();
            let constants = verify_weights(&self.model, &self.tree, folder, &mut |placed, d| {
                rows.push(compare::constant_row(placed, d));
            })?;
            progress.finish();
            let verification = Verification {
                constants,
                activations: 0,
                batches: 0,
                outputs: Vec::new(),
                not_executed: vec!["there is no graph".to_owned()],
            };
            return Ok((verification, rows));
        }
        let verified = verify_and_compare(
            path,
            &self.model,
            &self.tree,
            summary,
            batches(samples),
            &VerifyOptions { engine: self.engine_options(), shapes: shapes.clone() },
            &mut Steps::new(samples, progress),
        )?;
        progress.finish();
        Ok(verified)
    }

    /// How far quantization moves each value, beside `constants`, of which some were `changed` before.
    fn layers(
        &self,
        mut constants: Vec<LayerDifference>,
        changed: &[String],
        samples: Option<&Samples>,
        shapes: &ShapeTable,
        progress: &dyn Progress,
    ) -> Result<Layers> {
        if !changed.is_empty() {
            compare::replace_changed(
                &mut constants,
                changed,
                &self.reference,
                &self.model,
                &self.tree,
            )?;
        }
        if samples.is_none() {
            // The simulation holds all constants in float, and nothing would be computed with it.
            compare::sort(&mut constants);
            return Ok(Layers { samples: 0, differences: constants });
        }
        let options = SimulateOptions { shapes: shapes.clone(), ..SimulateOptions::default() };
        let simulated = simulate(&self.model, &self.tree, &options)?;
        progress.start(Stage::Compare, samples.map_or(0, Samples::len));
        let differences = compare::compare_activations(
            &self.reference,
            &self.tree,
            &simulated,
            constants,
            batches(samples),
            &self.run_options(),
            &mut Steps::new(samples, progress),
        )?;
        progress.finish();
        Ok(Layers { samples: samples.map_or(0, Samples::len), differences })
    }

    /// The metrics of the model as it was given, and of the file that was written.
    fn evaluate(
        &self,
        path: &Path,
        samples: &Samples,
        section: &EvaluationSection,
        progress: &dyn Progress,
    ) -> Result<Evaluation> {
        let written = Model::load(path)?;
        let source = self.original.path().unwrap_or(Path::new(""));
        let models = [(&self.original, source), (&written, path)];
        measure(&models, samples, section, &self.engine_options(), progress, None)
    }

    fn save_state(&self, folder: &Path, plan: &Plan, model_sha256: &str) -> Result<()> {
        let rules = plan.slots.iter().filter_map(|slot| {
            let rule = &plan.rules[slot.rule?];
            let text = format!("{} ({}:{})", rule.label(), plan.config, rule.line);
            Some((slot.names[0].clone(), text))
        });
        let info = StateInfo {
            model: plan.model.file.clone(),
            model_sha256: Some(model_sha256.to_owned()),
            rules: rules.collect(),
        };
        Ok(save_quantization_state(self.tree.root(), &folder.join(STATE), &info, false)?)
    }

    pub(super) fn export_options(&self) -> ExportOptions {
        ExportOptions { activations: self.activations(), ..ExportOptions::default() }
    }

    /// What will stand in the exported file at a site, or why nothing can.
    pub(super) fn exported_as(&self, site: &Site) -> Option<String> {
        if site.slot.is_stub() {
            return None;
        }
        if let Some(problem) = self.export_problem(site) {
            return Some(format!("not possible: {problem}"));
        }
        if self.model.is_weights() {
            let bits = site.slot.quantizer().num_bits()?;
            return Some(format!("codes of {bits} bits in int32 words"));
        }
        let stored = self.export_options().stored_as(site).ok()?;
        Some(format!("{} codes, operator set {} or newer", stored.dtype, stored.opset))
    }

    /// Why the quantizer at a site cannot be exported, as far as its settings tell.
    pub(super) fn export_problem(&self, site: &Site) -> Option<String> {
        let quantizer = site.slot.quantizer();
        if let Some(SavedQuantizer::DynamicLinear(_)) = quantizer.to_saved() {
            return Some(format!(
                "`{}`: {quantizer} takes its parameters from the data, which QuantizeLinear and DequantizeLinear cannot \
                 express; use `type = \"linear\"`",
                site.name
            ));
        }
        if self.model.is_weights() {
            return weights_problem(site);
        }
        let is_activation = matches!(site.role, Role::Input | Role::Output);
        match quantizer.as_range_settable().map(|settable| settable.granularity().clone()) {
            Some(Granularity::PerBlock { .. } | Granularity::PerTile { .. }) if is_activation => {
                Some(format!(
                    "`{}`: activations cannot be quantized in blocks; use \"per_tensor\" or {{ per_channel = AXIS }}",
                    site.name
                ))
            }
            _ => self.export_options().stored_as(site).err().map(|error| error.to_string()),
        }
    }

    fn activations(&self) -> Signedness {
        match self.options.activations.or(self.config.export.activations) {
            Some(ActivationType::Signed) => Signedness::Signed,
            Some(ActivationType::Unsigned) | None => Signedness::Unsigned,
        }
    }

    pub(super) fn run_options(&self) -> RunOptions {
        RunOptions { engine: self.engine_options(), ..RunOptions::default() }
    }
}

/// A range observer at a site.
struct Observing(RangeObserver);

impl SiteObserver for Observing {
    fn observe(&mut self, x: ArrayView<'_>) -> Result<(), fastforward_core::Error> {
        self.0.observe(x)
    }
}

/// The batches of samples; none without samples.
pub(super) fn batches(samples: Option<&Samples>) -> impl Iterator<Item = Result<Batch>> + '_ {
    samples.into_iter().flat_map(|samples| samples.batches().map(|batch| Ok(batch?.inputs)))
}

/// Tells of batches as of samples.
struct Steps<'p> {
    progress: &'p dyn Progress,
    batch_size: usize,
    left: usize,
}

impl<'p> Steps<'p> {
    fn new(samples: Option<&Samples>, progress: &'p dyn Progress) -> Self {
        Self {
            progress,
            batch_size: samples.map_or(0, Samples::batch_size),
            left: samples.map_or(0, Samples::len),
        }
    }
}

impl calibrate::Progress for Steps<'_> {
    fn batch(&mut self, _done: usize, _total: Option<usize>) {
        let done = self.batch_size.min(self.left);
        self.left -= done;
        self.progress.advance(done);
    }
}

fn reported_slots(plan: &Plan, estimates: &HashMap<String, ReportedRange>) -> Vec<ReportedSlot> {
    let slots = plan.slots.iter().map(|planned| ReportedSlot {
        range: estimates.get(&planned.names[0]).cloned(),
        planned: planned.clone(),
    });
    slots.collect()
}

fn source_samples(samples: &Samples) -> Result<SourceSamples> {
    Ok(SourceSamples {
        samples: samples.len(),
        batch_size: samples.batch_size(),
        files: samples.files()?,
    })
}

/// A file with its hash, named relative to `folder` where one is given.
fn source_file(path: &Path, folder: Option<&Path>) -> Result<SourceFile> {
    let failed = |error| Error::io("read", path, error);
    let below = folder.and_then(|folder| path.strip_prefix(folder).ok());
    Ok(SourceFile {
        file: match below {
            Some(below) => below.to_string_lossy().replace('\\', "/"),
            None => file_name(path),
        },
        size_bytes: path.metadata().map_err(failed)?.len(),
        sha256: fastforward_core::files::sha256(path)?,
    })
}

/// What the configuration demands of the quantized model.
fn checks(section: &EvaluationSection, evaluation: &Evaluation) -> Vec<Check> {
    let Some(found) = evaluation.value(1) else { return Vec::new() };
    let mut checks = Vec::new();
    // Written so that NaN does not hold.
    if let Some(bound) = section.min_metric {
        checks.push(Check { name: "min_metric", bound, found, holds: found >= bound });
    }
    if let Some(bound) = section.max_metric {
        checks.push(Check { name: "max_metric", bound, found, holds: found <= bound });
    }
    if let (Some(bound), Some(float)) = (section.max_drop, evaluation.value(0)) {
        let found = float - found;
        checks.push(Check { name: "max_drop", bound, found, holds: found <= bound });
    }
    checks
}
