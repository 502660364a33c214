//! Algorithms that come before ranges, on a model in code.

mod flow;
mod nodes;
mod trace;

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;

use candle_core::{DType, Tensor};
use fastforward_onnx::graph::Model;
use fastforward_onnx::rewrite::{PrepareOptions as GraphOptions, Prepared, prepare as on_graph};
use fastforward_onnx::shapes::ShapeTable;
use fastforward_onnx::tree::{Role, Tree};

use self::flow::{Flow, FlowError};
pub(super) use self::trace::Trace;
use super::data::{Data, Feed};
use super::layer::{Layer, NoLayer, layers};
use super::network::{Network, values};
use super::plan::{Target, matches};
use super::report::{AlgorithmChange, AlgorithmReport};
use crate::algorithms::absorption::Absorption;
use crate::algorithms::equalization::Relu6;
use crate::config::{Algorithm, AlgorithmStage};
use crate::module::{Module, Parameter, name_slots, named_slots};
use crate::nn::Param;
use crate::quantization::affine::SavedQuantizer;
use crate::quantization::quantizer::default_tags;
use crate::quantization::{disable_quantization, find_parameter_quantizers};
use crate::tensor::{Error, Result, Value};
use crate::{ErrorKind, flags};

/// Carries out the algorithms that come before ranges: `equalize`, `absorb_bias`, `smooth` and `awq`, in the order of
/// `targets`. Rules come before it, since `awq` asks for the bits of weights; ranges after it, since they move.
///
/// What follows what is read off the forward of the first batch: every operator of
/// [`functional`](crate::tensor::operator::functional), which all layers of [`nn`](crate::nn) call, and every change of
/// shape of a [`Value`] shows what it reads and gives. The algorithms then work on that graph exactly as on one from a file
/// (`fastforward_onnx::rewrite`), and the parameters of the model take what its constants became. Names in reports are those
/// of modules.
///
/// # What is not seen
/// Operations on candle tensors beside the operators are not seen; a value that only such code reads is known to be read by
/// code, and kept. A value that an operator *and* such code read looks as if only the operator did. Therefore the outputs of
/// the first batch are compared, before and after each algorithm: they may differ by a thousandth of their largest magnitude
/// (a twentieth where parameters hold 16-bit floats). Where they differ by more, everything is as it was and an error says
/// so. `absorb_bias` with `amount = "three_sigma"`, which changes outputs on purpose, is preceded by a trial with factors,
/// which must not.
///
/// The forward has to call the same operators for every batch, on this thread. All values of one batch are held while its
/// forward is read off.
///
/// Parameters change in place, as for [`tune`](super::tune): tensors that the caller holds do not.
///
/// ```
/// use candle_core::{Device, Tensor};
/// use fastforward::algorithms::{PrepareOptions, ScaleRounding, Target, equalization::Relu6, prepare};
/// use fastforward::config::Algorithm;
/// use fastforward::flags;
/// use fastforward::nn::{Layer, Linear, ReLU, Sequential};
///
/// let _lenient = flags::strict_quantization(false); // no quantizers yet
/// // The channels between the two differ by a factor of 64.
/// let first = Tensor::new(&[[64.0f32, 8.0], [1.0, 0.5]], &Device::Cpu)?;
/// let second = Tensor::new(&[[1.0f32, 64.0]], &Device::Cpu)?;
/// let model = Sequential::new()
///     .add(Linear::from_tensors(first, None)?)
///     .add(ReLU::new())
///     .add(Linear::from_tensors(second, None)?);
/// let data = [Tensor::new(&[[1.0f32, 2.0], [-3.0, 5.0]], &Device::Cpu)?];
/// let before = model.forward_tensor(&data[0])?.dequantize()?;
///
/// let equalize = Algorithm::Equalize {
///     rounding: ScaleRounding::PowerOfTwo,
///     relu6: Relu6::Keep,
///     bound_biases: true,
/// };
/// let reports = prepare(
///     &model,
///     &[Target::new(equalize)],
///     || data.iter().map(Ok),
///     |model, x| model.forward_tensor(x),
///     &PrepareOptions::default(),
/// )?;
/// assert_eq!(reports[0].changes[0].name, "0 -> 2");
/// assert_eq!(reports[0].changes[0].after, Some(1.0));
/// let after = model.forward_tensor(&data[0])?.dequantize()?;
/// assert_eq!(before.to_vec2::<f32>()?, after.to_vec2::<f32>()?); // the very same floats
/// # Ok::<(), fastforward::tensor::Error>(())
/// ```
///
/// # Errors
/// [`ErrorKind::Rule`] with every algorithm that cannot work, before anything runs: one of another stage, a query where the
/// whole network is looked at or that matches nothing, a `relu6` that rewrites nodes, quantizers that have ranges already;
/// [`ErrorKind::NoData`] without a batch; [`ErrorKind::InvalidData`] for outputs that change, forwards that differ from batch
/// to batch, and parameters that would have to be several; what `batches` and `forward` report. On an error, or a panic in
/// `forward`, the model is as it was.
pub fn prepare<M, B, I, R>(
    model: &M,
    targets: &[Target],
    batches: impl Fn() -> I,
    forward: impl Fn(&M, &B) -> Result<R>,
    options: &PrepareOptions,
) -> Result<Vec<AlgorithmReport>>
where
    M: Module,
    I: IntoIterator<Item = Result<B>>,
    R: Outputs,
{
    let outputs = Rc::new(RefCell::new(Vec::new()));
    let returned = Rc::clone(&outputs);
    let forward = |model: &M, batch: &B| {
        *returned.borrow_mut() = forward(model, batch)?.outputs();
        Ok(())
    };
    carry_out(model, targets, &Feed { model, batches, forward }, &outputs, options)
}

/// How [`prepare`] works.
#[derive(Clone, Debug)]
pub struct PrepareOptions {
    /// About how many bytes the sums over the inputs of several layers may take together, for `awq`; one value's own are held
    /// whatever they take.
    pub max_moment_bytes: u64,
}

impl Default for PrepareOptions {
    /// 1 GiB.
    fn default() -> Self {
        Self { max_moment_bytes: 1 << 30 }
    }
}

/// What a forward returns, to be compared.
///
/// ```
/// use fastforward::algorithms::Outputs;
/// use fastforward::tensor::Value;
///
/// struct Detections { boxes: Value, scores: Value }
///
/// impl Outputs for Detections {
///     fn outputs(&self) -> Vec<Value> {
///         vec![self.boxes.clone(), self.scores.clone()]
///     }
/// }
/// ```
pub trait Outputs {
    /// All of its values.
    fn outputs(&self) -> Vec<Value>;
}

impl Outputs for Value {
    fn outputs(&self) -> Vec<Value> {
        vec![self.clone()]
    }
}

impl Outputs for Tensor {
    fn outputs(&self) -> Vec<Value> {
        vec![self.into()]
    }
}

impl<T: Outputs> Outputs for Vec<T> {
    fn outputs(&self) -> Vec<Value> {
        self.iter().flat_map(Outputs::outputs).collect()
    }
}

impl<A: Outputs, B: Outputs> Outputs for (A, B) {
    fn outputs(&self) -> Vec<Value> {
        [self.0.outputs(), self.1.outputs()].concat()
    }
}

impl Target {
    /// Whether [`prepare`] carries it out; else [`tune`](super::tune) does.
    ///
    /// ```
    /// use fastforward::algorithms::Target;
    /// use fastforward::config::QuantConfigFile;
    /// # let text = "schema_version = 1\n[[algorithm]]\ntype = \"gptq\"\n[[algorithm]]\ntype = \"equalize\"\n";
    /// # let config = QuantConfigFile::parse(text, "quant.toml", ".".as_ref())?;
    /// # let model = fastforward::nn::ReLU::new();
    ///
    /// let targets = fastforward::algorithms::targets(&config, &model)?;
    /// let (before, after): (Vec<_>, Vec<_>) =
    ///     targets.into_iter().partition(Target::comes_before_ranges);
    /// // prepare(.., &before, ..), ranges, tune(.., &after, ..)
    /// assert_eq!((before[0].algorithm.name(), after[0].algorithm.name()), ("equalize", "gptq"));
    /// # Ok::<(), fastforward::tensor::Error>(())
    /// ```
    pub fn comes_before_ranges(&self) -> bool {
        self.algorithm.stage() == AlgorithmStage::Prepare
    }
}

fn carry_out(
    model: &dyn Module,
    targets: &[Target],
    data: &dyn Data,
    outputs: &RefCell<Vec<Value>>,
    options: &PrepareOptions,
) -> Result<Vec<AlgorithmReport>> {
    let _constants = flags::inference();
    name_slots(model);
    let (layers, others) = layers(model);
    let meant = check(model, targets, &layers, &others)?;
    if targets.is_empty() {
        return Ok(Vec::new());
    }
    let trace = Trace::of(model, data, outputs)?;
    let mut graph = trace.graph.clone();
    let tree = Tree::new(&graph);
    copy_quantizers(model, &trace, &tree)?;
    let mut parameters = Parameters::new(model);
    let run = || first(model, data, outputs);
    // What the outputs have to stay; algorithms that change them on purpose move it.
    let mut float = numbers(&outputs.borrow())?;
    let shapes = ShapeTable::stated(&graph);
    let mut reports = Vec::new();
    for (target, meant) in targets.iter().zip(meant) {
        let is_lossy =
            matches!(target.algorithm, Algorithm::AbsorbBias { amount: Absorption::ThreeSigma });
        if is_lossy {
            try_factors(&graph, &trace, &mut parameters, &run)
                .map_err(|error| error.at(&target.source))?;
        }
        let slots = meant.sites(&trace, &tree);
        let options = GraphOptions {
            shapes: &shapes,
            meant: (&tree, &slots),
            max_moment_bytes: options.max_moment_bytes,
            add_missing_biases: false,
        };
        let mut flow =
            Flow { model, trace: &trace, data, layers: &layers, parameters: &mut parameters };
        let done = on_graph(&mut graph, &target.algorithm, &mut flow, &options)
            .map_err(|FlowError(error)| error.at(&target.source))?;
        parameters.set(&trace, &graph)?;
        let now = run()?;
        match is_lossy {
            true => float = now,
            false => {
                compare(&float, &now, &parameters).map_err(|error| error.at(&target.source))?;
            }
        }
        reports.push(report(target, meant, done));
    }
    parameters.network.keep()?;
    Ok(reports)
}

/// The weights that an algorithm is for.
#[derive(Default)]
struct Meant {
    weights: Vec<Param>,
    kept: Vec<String>,
}

impl Meant {
    /// The slots of these weights in the tree of the graph.
    fn sites(&self, trace: &Trace, tree: &Tree) -> Vec<String> {
        let is_meant = |value: &str| {
            let own = trace.parameters.iter().filter(|(name, _)| name == value);
            let mut own = own.map(|(_, parameter)| parameter.identity());
            own.any(|identity| self.weights.iter().any(|weight| weight.identity() == identity))
        };
        let weights = tree.set_sites().filter(|site| site.role == Role::Weight);
        weights.filter(|site| is_meant(&site.value)).map(|site| site.name.clone()).collect()
    }
}

/// What each target is for.
///
/// # Errors
/// [`ErrorKind::Rule`] with everything that cannot work.
fn check(
    model: &dyn Module,
    targets: &[Target],
    layers: &[Layer],
    others: &[NoLayer],
) -> Result<Vec<Meant>> {
    let mut problems = Vec::new();
    let mut all = Vec::new();
    for target in targets {
        let name = target.algorithm.name();
        let found = match &target.algorithm {
            algorithm if algorithm.stage() != AlgorithmStage::Prepare => {
                Err(format!("`{name}` works on a network with ranges; hand it to `tune`"))
            }
            Algorithm::Awq { .. } => awq_weights(model, target, layers, others),
            _ if target.query.is_some() => {
                Err(format!("`{name}` looks at the whole network; leave out the query"))
            }
            Algorithm::Equalize { relu6: Relu6::PerChannel | Relu6::Relu, .. } => {
                let text = "`relu6` puts other operators into a graph, which Rust code says itself; write `ReLU` where a \
                            bound may go, and leave `relu6` out";
                Err(text.to_owned())
            }
            _ => Ok(Meant::default()),
        };
        match found {
            Ok(meant) => all.push(meant),
            Err(problem) => problems.push(format!("{}: {problem}", target.source)),
        }
    }
    let has_range = |slot: &crate::quantization::QuantizerSlot| {
        matches!(slot.quantizer().to_saved(), Some(SavedQuantizer::Linear(_, Some(_))))
    };
    let calibrated: Vec<String> = named_slots(model)
        .iter()
        .filter(|entry| has_range(&entry.slot))
        .map(|entry| format!("`{}`", entry.name()))
        .collect();
    if !calibrated.is_empty() && !targets.is_empty() {
        problems.push(format!(
            "ranges were set before, which no longer fit afterwards: {}; prepare first, then calibrate",
            calibrated.join(", ")
        ));
    }
    match problems.is_empty() {
        true => Ok(all),
        false => {
            let summary = "algorithms cannot work";
            Err(crate::Error::of_problems(ErrorKind::Rule, summary, &problems).into())
        }
    }
}

/// The weights that `awq` is for.
fn awq_weights(
    model: &dyn Module,
    target: &Target,
    layers: &[Layer],
    others: &[NoLayer],
) -> std::result::Result<Meant, String> {
    let matched = target.query.as_ref().map(|query| matches(model, query)).transpose()?;
    let is_meant = |slot: &str| {
        let module = slot.rsplit_once('.').map_or("", |(module, _)| module);
        matched.as_ref().is_none_or(|names| names.contains(slot) || names.contains(module))
    };
    let mut meant = Meant::default();
    for layer in layers.iter().filter(|layer| is_meant(&layer.slot_name)) {
        match layer.weight_slot.quantizer().to_saved() {
            Some(SavedQuantizer::Linear(..) | SavedQuantizer::DynamicLinear(_)) => {
                meant.weights.push(layer.weight.clone());
            }
            _ => meant.kept.push(format!("`{}`: its quantizer is not linear", layer.slot_name)),
        }
    }
    let other = others.iter().filter(|other| is_meant(&other.slot_name));
    meant.kept.extend(other.map(|other| format!("`{}`: {}", other.slot_name, other.reason)));
    if meant.weights.is_empty() {
        let what = match &target.query {
            Some(query) => format!("`{query}` matches no weight that"),
            None => "there is no weight that".to_owned(),
        };
        let reasons = match meant.kept.as_slice() {
            [] => "none of them has a quantizer; rules come before".to_owned(),
            kept => kept.join("; "),
        };
        return Err(format!("{what} `awq` can work on: {reasons}"));
    }
    Ok(meant)
}

/// Gives the graph's constants the quantizers that the model's parameters have.
fn copy_quantizers(model: &dyn Module, trace: &Trace, tree: &Tree) -> Result<()> {
    let mut quantizers = HashMap::new();
    for tag in [default_tags::weight(), default_tags::bias()] {
        for found in find_parameter_quantizers(model, tag)? {
            quantizers.insert(found.parameter.identity(), found.slot);
        }
    }
    for site in tree.sites().iter().filter(|site| !matches!(site.role, Role::Input | Role::Output))
    {
        let parameter = trace.parameters.iter().find(|(name, _)| *name == site.value);
        let slot = parameter.and_then(|(_, parameter)| quantizers.get(&parameter.identity()));
        if let Some(slot) = slot {
            site.slot.replace(slot.quantizer());
        }
    }
    Ok(())
}

/// The parameters of a model, which take what the constants of its graph became; dropped, they are as they were.
struct Parameters<'m> {
    network: Network<'m>,
    /// What was set last.
    set: Option<Model>,
}

impl<'m> Parameters<'m> {
    fn new(model: &'m dyn Module) -> Self {
        Self { network: Network::new(model), set: None }
    }

    /// Gives each parameter the values of its constant.
    fn set(&mut self, trace: &Trace, graph: &Model) -> Result<()> {
        let nodes = trace.graph.graph().node.iter().zip(&graph.graph().node);
        if let Some((node, _)) = nodes.clone().find(|(old, new)| old.input != new.input) {
            let text = format!(
                "`{}` would need parameters of its own, which it shares with other layers now",
                node.label()
            );
            return Err(Error::new(ErrorKind::InvalidData, text));
        }
        let before = self.set.as_ref().unwrap_or(&trace.graph);
        for (name, parameter) in &trace.parameters {
            let (Some(old), Some(new)) = (before.constant(name), graph.constant(name)) else {
                continue; // It holds numbers that nothing here changes.
            };
            if old.bytes().map_err(of_graph)? != new.bytes().map_err(of_graph)? {
                self.network.set(parameter, new.to_f32().map_err(of_graph)?)?;
            }
        }
        self.set = Some(graph.clone());
        Ok(())
    }

    /// How far outputs may move, as a part of their largest magnitude.
    fn tolerance(&self) -> f64 {
        let is_half = |parameter: &Param| matches!(parameter.dtype(), DType::F16 | DType::BF16);
        let mut found = crate::module::named_shared_parameters(self.network.model).into_iter();
        let has_halves =
            found.any(|entry| entry.parameter.downcast_ref::<Param>().is_some_and(is_half));
        if has_halves { 0.05 } else { 1e-3 }
    }
}

/// What the float network gives for the first batch.
fn first(
    model: &dyn Module,
    data: &dyn Data,
    outputs: &RefCell<Vec<Value>>,
) -> Result<Vec<Vec<f32>>> {
    data.each(1, &mut |forward| {
        let _float = disable_quantization(model);
        forward()
    })?;
    numbers(&outputs.borrow())
}

fn numbers(outputs: &[Value]) -> Result<Vec<Vec<f32>>> {
    let floats = |value: &Value| values(&value.dequantize()?.to_dtype(DType::F32)?);
    outputs.iter().map(floats).collect()
}

/// # Errors
/// [`ErrorKind::InvalidData`] when outputs differ.
fn compare(before: &[Vec<f32>], after: &[Vec<f32>], parameters: &Parameters<'_>) -> Result<()> {
    let sizes = |outputs: &[Vec<f32>]| outputs.iter().map(Vec::len).collect::<Vec<_>>();
    if sizes(before) != sizes(after) {
        let text = "the forward does not return as much for the same batch each time";
        return Err(Error::new(ErrorKind::InvalidData, text));
    }
    let tolerance = parameters.tolerance();
    for (before, after) in before.iter().zip(after) {
        let largest = before.iter().fold(0.0f32, |largest, value| largest.max(value.abs()));
        let apart = before.iter().zip(after).map(|(a, b)| match a.to_bits() == b.to_bits() {
            true => 0.0,
            false => (a - b).abs(),
        });
        // NaN counts as far apart, and stays.
        let apart = apart.fold(0.0f32, |most, one| match most.is_nan() || one <= most {
            true => most,
            false => one,
        });
        let share = f64::from(apart) / f64::from(largest.max(f32::MIN_POSITIVE));
        if share.is_nan() || share > tolerance {
            let text = format!(
                "the outputs of the first batch change by {share:.1e} of their largest magnitude, expected at most \
                 {tolerance:.0e}: the forward takes values past the operators that show what follows what; compute with \
                 `tensor::operator::functional` and methods of `Value`, or leave the algorithm out"
            );
            return Err(Error::new(ErrorKind::InvalidData, text));
        }
    }
    Ok(())
}

/// Equalizes a network whose channels were scaled apart: what it gives must stay, if what follows what was seen rightly.
fn try_factors(
    graph: &Model,
    trace: &Trace,
    parameters: &mut Parameters<'_>,
    run: &dyn Fn() -> Result<Vec<Vec<f32>>>,
) -> Result<()> {
    let mut trial = graph.clone();
    for (name, _) in &trace.parameters {
        let Some(constant) = trial.constant(name) else { continue };
        let (info, mut values) =
            (constant.info().map_err(of_graph)?, constant.to_f32().map_err(of_graph)?);
        if info.shape.len() < 2 {
            continue;
        }
        let rows = info.shape[0].max(1);
        let columns = (values.len() / rows).max(1);
        for (row, values) in values.chunks_mut(columns).enumerate() {
            let factor = [1.0, 0.25, 2.0][row % 3];
            values.iter_mut().for_each(|value| *value *= factor);
        }
        let new =
            fastforward_onnx::graph::tensor_from_floats(name, info.dtype, &info.shape, &values);
        if let Some(new) = new {
            trial.set_constant(new);
        }
    }
    parameters.set(trace, &trial)?;
    let before = run()?;
    let options =
        fastforward_onnx::rewrite::EqualizeOptions { bound_biases: false, ..Default::default() };
    fastforward_onnx::rewrite::equalize(&mut trial, &options).map_err(of_graph)?;
    parameters.set(trace, &trial)?;
    let after = run()?;
    parameters.set(trace, graph)?;
    compare(&before, &after, parameters)
}

fn report(target: &Target, meant: Meant, done: Prepared) -> AlgorithmReport {
    let changes = done.changes.into_iter().map(|(name, before, after)| AlgorithmChange {
        name,
        before,
        after: Some(after),
        rows_kept: None,
    });
    let mut kept = meant.kept;
    kept.extend(done.kept);
    AlgorithmReport {
        source: target.source.clone(),
        algorithm: target.algorithm.name(),
        measure: done.measure,
        changes: changes.collect(),
        kept,
        moment_bytes: done.moment_bytes,
    }
}

/// An error of the graph's side.
pub(super) fn of_graph(error: fastforward_onnx::Error) -> Error {
    let kind = match error.kind() {
        fastforward_onnx::ErrorKind::Core(kind) => kind,
        fastforward_onnx::ErrorKind::Quantizer => ErrorKind::InvalidSettings,
        _ => ErrorKind::InvalidData,
    };
    Error::new(kind, error.to_string())
}

impl From<fastforward_onnx::Error> for FlowError {
    fn from(error: fastforward_onnx::Error) -> Self {
        Self(of_graph(error))
    }
}
