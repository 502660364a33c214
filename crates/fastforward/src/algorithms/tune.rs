//! Algorithms carried out on a model in code.

use std::path::PathBuf;

use super::bias;
use super::choose::{Task, choose};
use super::data::{Data, Feed, reached};
use super::layer::Layer;
use super::network::{Network, values};
use super::offsets;
use super::plan::{Plan, Target, Work, nothing_left, plan, unreached};
use super::report::{AlgorithmChange, AlgorithmReport};
use crate::algorithms::layerwise::Journal;
use crate::config::{Algorithm, AlgorithmStage, BiasMethod};
use crate::module::{Module, named_shared_parameters, named_slots};
use crate::nn::Param;
use crate::tensor::Result;
use crate::{files, flags};

/// Carries algorithms out on a model whose quantizers have ranges: ranges and offsets first, then weights layer by layer, then biases,
/// whatever the order of `targets`; those of one stage in the order of `targets`.
///
/// `batches` is asked for the calibration data anew for each pass over it, and `forward` runs the model on one batch; what it
/// returns is not looked at. Both have to do the same every time. Layers are [`Linear`](crate::nn::Linear),
/// [`Conv1d`](crate::nn::Conv1d), [`Conv2d`](crate::nn::Conv2d) and [`Conv3d`](crate::nn::Conv3d), grouped too, in the order in
/// which the forward of the first batch reaches them, on this thread. A layer that is called several times sees the inputs of
/// all calls. An algorithm with `inputs = "original"` sees what layers are fed in float; with `"quantized"` what they are fed
/// when all layers before are as they were chosen, with the flags of this thread: integer products included, unless
/// [switched off](crate::flags::integer_execution_mode).
///
/// No activation is kept: sums over products of inputs stay, `16 · inputs²` bytes for a layer and group, 40 where float and
/// quantized inputs are compared. For `L` layers with quantized inputs there are `L` passes over the data.
///
/// What changes are the parameters of the layers and the quantizers in the slots of their weights. A weight whose codes were
/// chosen holds values on its quantizer's grid afterwards, which finds the same codes again. Tensors that the caller holds are
/// not touched: a parameter gets a tensor of its own. Only a trainable one stays the variable it was, with other values, so
/// that a `VarMap` sees them. On an error, or a panic in `forward`, the model is as it was.
///
/// ```
/// use candle_core::{Device, Tensor};
/// use fastforward as ff;
/// use ff::algorithms::{targets, tune, TuneOptions};
/// use ff::config::QuantConfigFile;
/// use ff::nn::{Layer, Linear};
/// use ff::quantization::quant_init::{model_context, InitializeOptions};
/// use ff::range_setting::{estimate_ranges_with, EstimationOptions};
///
/// let weight = Tensor::new(&[[0.4f32, 0.4]], &Device::Cpu)?;
/// let model = Linear::from_tensors(weight.clone(), None)?;
/// let data = [Tensor::new(&[[1f32, 1.0], [2.0, 2.0]], &Device::Cpu)?];
/// let config = QuantConfigFile::parse(r#"
/// schema_version = 1
/// [[rule]]
/// query = "weight_quantizer"
/// quantizer = { type = "linear", num_bits = 2 }
/// range = { estimator = "running_minmax" }
/// [[algorithm]]
/// type = "adaround"
/// "#, "quant.toml", ".".as_ref())?;
///
/// let _lenient = ff::flags::strict_quantization(false); // activations stay floats
/// let rules = config.quantization_config(model_context(&model))?;
/// let done = rules.initialize(&model, InitializeOptions::default())?;
/// let ranges = estimate_ranges_with(config.estimators(&done.resolution)?, EstimationOptions::default())?;
/// model.forward_tensor(&data[0])?;
/// ranges.finish()?;
///
/// let reports = tune(
///     &model,
///     &targets(&config, &model)?,
///     || data.iter().map(Ok),
///     |model, x| model.forward_tensor(x),
///     &TuneOptions::default(),
/// )?;
/// // Only the sum of the weights counts for inputs that are always the same.
/// let change = &reports[0].changes[0];
/// assert!(change.after.unwrap() <= change.before);
/// assert_eq!(weight.to_vec2::<f32>()?, [[0.4, 0.4]]); // the caller's tensor
/// # Ok::<(), ff::tensor::Error>(())
/// ```
///
/// # Errors
/// [`ErrorKind::Rule`](crate::ErrorKind::Rule) with every algorithm that cannot work, before anything runs: a query that
/// matches nothing, weights that are no layer's or have no calibrated linear quantizer, what comes before ranges;
/// [`ErrorKind::NoData`](crate::ErrorKind::NoData) without a batch; [`ErrorKind::InvalidData`](crate::ErrorKind::InvalidData)
/// for inputs that are not finite or have another shape; [`ErrorKind::Io`](crate::ErrorKind::Io) for the journal; what
/// `batches` and `forward` report.
pub fn tune<M, B, I, R>(
    model: &M,
    targets: &[Target],
    batches: impl Fn() -> I,
    forward: impl Fn(&M, &B) -> Result<R>,
    options: &TuneOptions,
) -> Result<Vec<AlgorithmReport>>
where
    M: Module,
    I: IntoIterator<Item = Result<B>>,
{
    carry_out(model, targets, &Feed { model, batches, forward }, options)
}

/// How [`tune`] works.
#[derive(Clone, Debug)]
pub struct TuneOptions {
    /// About how many bytes the sums over the float inputs of several layers may take together, which are then gathered in one
    /// pass; one layer's own are held whatever they take.
    pub max_moment_bytes: u64,
    /// Where finished layers are kept, so that an interrupted run goes on where it stopped; nowhere by default.
    pub resume: Option<Resume>,
}

impl Default for TuneOptions {
    /// 1 GiB, and no journal.
    fn default() -> Self {
        Self { max_moment_bytes: 1 << 30, resume: None }
    }
}

/// A journal of finished layers. It belongs to one model, with these values and quantizers, these algorithms and this data:
/// what another run left is removed and not used. The folder is removed when the run is done.
#[derive(Clone, Debug)]
pub struct Resume {
    /// The folder, which is made if it is not there.
    pub folder: PathBuf,
    /// What the calibration data is called, such as a digest of its file: another name is other data. The inputs of layers
    /// in the first batch are compared as well.
    pub data: String,
}

fn carry_out(
    model: &dyn Module,
    targets: &[Target],
    data: &dyn Data,
    options: &TuneOptions,
) -> Result<Vec<AlgorithmReport>> {
    let _constants = flags::inference();
    let mut network = Network::new(model);
    let mut run = Run::new(&network, targets, data)?;
    // Before anything changes: what the result depends on.
    let journal = options.resume.as_ref().map(|resume| {
        let job = digest(model, targets, [&resume.data, &run.fed])?;
        Ok::<_, crate::tensor::Error>(Journal::open(&resume.folder, &job)?)
    });
    let journal = journal.transpose()?;
    run.refine(&mut network, data)?;
    run.choose(&mut network, data, journal.as_ref(), options, usize::MAX)?;
    run.correct(&mut network, data)?;
    network.keep()?;
    if let Some(journal) = &journal {
        journal.clear()?;
    }
    Ok(run.reports)
}

/// Algorithms that are carried out, stage by stage.
pub(super) struct Run<'t> {
    targets: &'t [Target],
    plan: Plan,
    /// The slots of the weights of layers, in the order in which the forward reaches these.
    order: Vec<String>,
    /// A digest of what they are fed by the first batch.
    fed: String,
    /// For how many of them weights were chosen.
    chosen: usize,
    /// One for each target.
    pub(super) reports: Vec<AlgorithmReport>,
}

impl<'t> Run<'t> {
    /// Sees what there is to do; with data that is needed, in which order.
    pub(super) fn new(
        network: &Network<'_>,
        targets: &'t [Target],
        data: &dyn Data,
    ) -> Result<Self> {
        let mut plan = plan(network.model, targets)?;
        let needs_data = targets.iter().any(|target| target.algorithm.needs_data());
        let (order, fed) = match needs_data {
            true => reached(network, &plan.layers, data)?,
            false => Default::default(),
        };
        let order: Vec<String> =
            order.iter().map(|&at| plan.layers[at].slot_name.clone()).collect();
        leave_out_unreached(&mut plan, targets, &order)?;
        let report = |(target, work): (&Target, &Work)| AlgorithmReport {
            source: target.source.clone(),
            algorithm: target.algorithm.name(),
            measure: measure(&target.algorithm),
            changes: Vec::new(),
            kept: work.kept.clone(),
            moment_bytes: None,
        };
        let reports = targets.iter().zip(&plan.works).map(report).collect();
        Ok(Self { targets, plan, order, fed, chosen: 0, reports })
    }

    fn of_stage(&self, stage: AlgorithmStage) -> Vec<(usize, &'t Algorithm)> {
        let all = self.targets.iter().enumerate();
        let own = all.filter(|(_, target)| target.algorithm.stage() == stage);
        own.map(|(at, target)| (at, &target.algorithm)).collect()
    }

    /// Works on ranges that were set.
    pub(super) fn refine(&mut self, network: &mut Network<'_>, data: &dyn Data) -> Result<()> {
        for (at, algorithm) in self.of_stage(AlgorithmStage::Ranges) {
            match algorithm {
                Algorithm::Hqq { options } => {
                    for weight in &self.plan.weights {
                        if self.plan.works[at].slots.contains(&weight.slot_name) {
                            let change = offsets::refine(network, weight, options)?;
                            self.reports[at].changes.push(change);
                        }
                    }
                }
                &Algorithm::JoinRanges { concatenations, additions } => {
                    let (changes, kept) = join(network, concatenations, additions, data)?;
                    self.reports[at].changes = changes;
                    self.reports[at].kept.extend(kept);
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// How many layers the forward has reached when it has been through these.
    pub(super) fn reached_after(&self, layers: &[Layer]) -> usize {
        let is_own = |slot: &String| layers.iter().any(|layer| layer.slot_name == *slot);
        self.order.iter().rposition(is_own).map_or(0, |at| at + 1)
    }

    /// Chooses ranges and codes layer by layer: for those of the first `until` layers that it was not called for before.
    pub(super) fn choose(
        &mut self,
        network: &mut Network<'_>,
        data: &dyn Data,
        journal: Option<&Journal>,
        options: &TuneOptions,
        until: usize,
    ) -> Result<()> {
        let until = until.min(self.order.len()).max(self.chosen);
        let own = std::mem::replace(&mut self.chosen, until)..until;
        let mut tasks = Vec::new();
        for layer in self.order[own].iter().filter_map(|slot| self.plan.layer(slot)) {
            let mut algorithms = self.of_stage(AlgorithmStage::Weights);
            algorithms.retain(|(at, _)| self.plan.works[*at].slots.contains(&layer.slot_name));
            if !algorithms.is_empty() {
                tasks.push(Task { layer, algorithms });
            }
        }
        let outcomes = choose(network, &tasks, data, journal, options.max_moment_bytes)?;
        for (outcome, task) in outcomes.iter().zip(&tasks) {
            for step in &outcome.steps {
                let Some(&(at, _)) = task.algorithms.get(step.algorithm) else { continue };
                let share = |loss| if step.signal > 0.0 { loss / step.signal } else { loss };
                let report = &mut self.reports[at];
                report.changes.push(AlgorithmChange {
                    name: outcome.layer.clone(),
                    before: share(step.loss_before),
                    after: Some(share(step.loss)),
                    rows_kept: Some(step.rows_kept),
                });
                let bytes = report.moment_bytes.get_or_insert(0);
                *bytes = (*bytes).max(outcome.moment_bytes);
            }
        }
        Ok(())
    }

    /// Corrects biases for what the weights are now.
    pub(super) fn correct(&mut self, network: &mut Network<'_>, data: &dyn Data) -> Result<()> {
        for (at, algorithm) in self.of_stage(AlgorithmStage::Correct) {
            let Algorithm::BiasCorrection { method } = algorithm else { continue };
            let layers = &self.plan.layers;
            let idle = layers.iter().filter(|layer| !self.order.contains(&layer.slot_name));
            let mut kept: Vec<String> = idle.map(unreached).collect();
            let mut found: Vec<(&Layer, &Param)> = Vec::new();
            for layer in self.order.iter().filter_map(|slot| self.plan.layer(slot)) {
                match bias::bias_of(layer) {
                    Ok(bias) => found.push((layer, bias)),
                    Err(reason) => kept.push(format!("`{}`: {reason}", layer.name)),
                }
            }
            self.reports[at].kept.extend(kept);
            if !found.is_empty() {
                self.reports[at].changes = match method {
                    BiasMethod::Measured => bias::measured(network, &found, data)?,
                    BiasMethod::Analytic => bias::analytic(network, &found, data)?,
                };
            }
        }
        Ok(())
    }
}

/// Weights of layers that no data comes to cannot be chosen by it.
fn leave_out_unreached(plan: &mut Plan, targets: &[Target], order: &[String]) -> Result<()> {
    let Plan { layers, works, .. } = plan;
    for (target, work) in targets.iter().zip(works) {
        if target.algorithm.stage() != AlgorithmStage::Weights {
            continue;
        }
        for layer in layers.iter().filter(|layer| !order.contains(&layer.slot_name)) {
            if let Some(at) = work.slots.iter().position(|slot| *slot == layer.slot_name) {
                work.slots.remove(at);
                work.kept.push(unreached(layer));
            }
        }
        if work.slots.is_empty() {
            return Err(nothing_left(target, &work.kept));
        }
    }
    Ok(())
}

/// What [`join`](super::join::join) does, as far as graphs can be read off.
#[cfg(feature = "graph")]
fn join(
    network: &mut Network<'_>,
    concatenations: bool,
    additions: bool,
    data: &dyn Data,
) -> Result<(Vec<AlgorithmChange>, Vec<String>)> {
    let options = fastforward_onnx::joint_ranges::JoinOptions { concatenations, additions };
    super::join::join(network, &options, data)
}

/// Refused when it was planned.
#[cfg(not(feature = "graph"))]
fn join(
    _network: &mut Network<'_>,
    _concatenations: bool,
    _additions: bool,
    _data: &dyn Data,
) -> Result<(Vec<AlgorithmChange>, Vec<String>)> {
    Ok(Default::default())
}

/// What the numbers of a report say.
fn measure(algorithm: &Algorithm) -> &'static str {
    match algorithm.stage() {
        AlgorithmStage::Weights => "error of a layer's output, as part of its power",
        AlgorithmStage::Correct => {
            "error of the mean of a layer's output, root of the mean square over channels"
        }
        AlgorithmStage::Ranges if matches!(algorithm, Algorithm::JoinRanges { .. }) => {
            "width of the narrowest range, and of the common one"
        }
        AlgorithmStage::Ranges | AlgorithmStage::Prepare => {
            "sparse error of a weight, in units of its scales"
        }
    }
}

/// A digest of everything that the result depends on, as far as it is known here.
fn digest(model: &dyn Module, targets: &[Target], data: [&str; 2]) -> Result<String> {
    let mut parts = vec![env!("CARGO_PKG_VERSION").to_owned()];
    parts.extend(data.map(str::to_owned));
    for target in targets {
        parts.push(format!("{:?} {:?}", target.algorithm, target.query));
    }
    for entry in named_shared_parameters(model) {
        let Some(parameter) = entry.parameter.downcast_ref::<Param>() else { continue };
        let bytes: Vec<u8> = match values(&parameter.tensor()) {
            Ok(values) => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
            // A type that has no quantizer: its values flow into what layers are fed.
            Err(_) => Vec::new(),
        };
        parts.push(format!("{:?} {}", entry.names, files::sha256_of(&bytes)));
    }
    for entry in named_slots(model) {
        parts.push(format!("{:?} {:?}", entry.names, entry.slot.quantizer().to_saved()));
    }
    Ok(files::sha256_of(parts.join("\0").as_bytes()))
}
