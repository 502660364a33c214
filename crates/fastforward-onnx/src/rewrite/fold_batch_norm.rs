//! Batch normalization folded into the layer before it.

use crate::dtype::DType;
use crate::error::Result;
use crate::graph::{GraphIndex, Model, data};
use crate::proto::{NodeProto, TensorProto, attribute_float};
use crate::rewrite::layer::{add_constant, free_name};

/// Folds each `BatchNormalization` into the `Conv`, `ConvTranspose`, `Gemm`,
/// `MatMul` or `MatMul` + `Add` that alone feeds it.
///
/// With `f = scale / sqrt(var + epsilon)` for each output channel, the layer
/// gets the weight `W · f` and the bias `(b - mean) · f + shift`, computed in
/// 64-bit floats and rounded once. The layer then produces the value that the
/// normalization produced, under its name; the value between them is gone. A
/// bias that was absent is created, named after the weight: `conv1.weight`
/// gets `conv1.bias`.
///
/// A weight that other nodes read is copied for this layer. Constants that
/// nothing reads any more are removed. Nested graphs are left alone.
///
/// # Errors
/// `ExternalData` when a constant cannot be read. Normalizations that cannot be
/// folded are no error; the report says why.
///
/// ```
/// use fastforward_onnx::{graph::Model, rewrite::fold_batch_norm};
/// # let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/fashion/fashion_cnn.onnx");
///
/// let mut model = Model::load(path.as_ref())?;
/// let report = fold_batch_norm(&mut model)?;
/// assert_eq!(report.folded.len(), 6);
/// assert_eq!(report.folded[0].to_string(), "`bn1` folded into `conv1` (Conv)");
/// assert!(model.constant("conv1.bias").is_some());
/// # Ok::<(), fastforward_onnx::Error>(())
/// ```
pub fn fold_batch_norm(model: &mut Model) -> Result<FoldReport> {
    let mut report = FoldReport::default();
    let is_batch_norm = |node: &NodeProto| node.is_standard("BatchNormalization");
    let outputs: Vec<String> = (model.graph().node.iter().filter(|node| is_batch_norm(node)))
        .filter_map(|node| node.output.first().cloned())
        .collect();
    for output in outputs {
        let index = model.index();
        let Some(position) = index.producer(&output) else { continue };
        let name = model.graph().node[position].label().to_owned();
        match plan(model, &index, position)? {
            Ok(plan) => {
                let layer = &model.graph().node[plan.layer];
                report.folded.push(Folded {
                    batch_norm: name,
                    layer: layer.label().to_owned(),
                    op_type: layer.op_type().to_owned(),
                });
                apply(model, position, plan);
            }
            Err(reason) => report.kept.push(Kept { batch_norm: name, reason }),
        }
    }
    Ok(report)
}

/// What [`fold_batch_norm`] did, in the order of the graph.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FoldReport {
    /// The normalizations that are gone.
    pub folded: Vec<Folded>,
    /// The normalizations that stayed.
    pub kept: Vec<Kept>,
}

/// A normalization that was folded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Folded {
    /// Its node.
    pub batch_norm: String,
    /// The node that computes it now.
    pub layer: String,
    /// The operator of that node.
    pub op_type: String,
}

/// A normalization that could not be folded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kept {
    /// Its node.
    pub batch_norm: String,
    /// Why it stayed.
    pub reason: String,
}

impl std::fmt::Display for Folded {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "`{}` folded into `{}` ({})", self.batch_norm, self.layer, self.op_type)
    }
}

impl std::fmt::Display for Kept {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "`{}` not folded: {}", self.batch_norm, self.reason)
    }
}

/// Everything that a fold changes.
struct Plan {
    /// The node that holds the weight.
    layer: usize,
    /// The node that produces the layer's result: itself, or the `Add` after a `MatMul`.
    last: usize,
    weight: TensorProto,
    bias: TensorProto,
    slot: BiasSlot,
    /// Whether the `beta` of a `Gemm` becomes 1.
    resets_beta: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum BiasSlot {
    /// The third input of the layer.
    Third,
    /// This input of the `Add` after the layer.
    OfAdd(usize),
    /// A new `Add` after the layer.
    NewAdd,
}

/// Either what to do, or why not.
type Decision = std::result::Result<Plan, String>;

fn plan(model: &Model, index: &GraphIndex, position: usize) -> Result<Decision> {
    let graph = model.graph();
    let node = &graph.node[position];
    macro_rules! keep {
        ($($reason:tt)*) => { return Ok(Err(format!($($reason)*))) };
    }
    let is_training = node.int_or("training_mode", 0) != 0
        || node.output.iter().skip(1).any(|name| !name.is_empty())
        || (model.opset("").is_some_and(|v| v < 7) && node.int_or("is_test", 0) == 0);
    if is_training {
        keep!("it normalizes in training mode");
    }
    if node.int_or("spatial", 1) == 0 {
        keep!("it normalizes each position on its own");
    }
    let parameter = |position: usize| node.input_at(position).and_then(|name| model.constant(name));
    let (Some(scale), Some(shift), Some(mean), Some(var)) =
        (parameter(1), parameter(2), parameter(3), parameter(4))
    else {
        keep!("its parameters are not constant");
    };
    let epsilon = f64::from(node.float_or("epsilon", 1e-5));
    let wide = |values: Vec<f32>| values.into_iter().map(f64::from).collect::<Vec<f64>>();
    let (scale, shift) = (wide(scale.to_f32()?), wide(shift.to_f32()?));
    let (mean, var) = (wide(mean.to_f32()?), wide(var.to_f32()?));
    let n_channels = scale.len();
    if [shift.len(), mean.len(), var.len()] != [n_channels; 3] {
        keep!("its parameters differ in length");
    }
    let factor: Vec<f64> = scale.iter().zip(&var).map(|(s, v)| s / (v + epsilon).sqrt()).collect();
    if factor.iter().chain(&shift).chain(&mean).any(|value| !value.is_finite()) {
        keep!("its parameters give no finite factor");
    }

    let input = node.input_at(0).unwrap_or("");
    let Some(last) = index.producer(input) else {
        keep!("its input `{input}` is computed by no node");
    };
    if index.consumers(input).len() != 1 || index.is_output(input) {
        keep!("its input `{input}` is used elsewhere too");
    }
    let (layer, add_bias) = match graph.node[last].op_type() {
        _ if !matches!(graph.node[last].domain(), "" | "ai.onnx") => {
            keep!("its input comes from `{}`", graph.node[last].op_type())
        }
        "Conv" | "ConvTranspose" | "Gemm" | "MatMul" => (last, None),
        "Add" => match matmul_before(model, index, last) {
            Ok((layer, bias)) => (layer, Some(bias)),
            Err(reason) => return Ok(Err(reason)),
        },
        other => keep!("its input comes from `{other}`, expected a convolution or matrix product"),
    };
    let layer_node = &graph.node[layer];
    let weight_name = layer_node.input_at(1).unwrap_or("");
    let Some(weight) = model.constant(weight_name) else {
        keep!("the weight `{weight_name}` is not constant");
    };
    let info = weight.info()?;
    if !matches!(info.dtype, DType::F32 | DType::F16 | DType::BF16) {
        keep!("the weight `{weight_name}` has type {}", info.dtype);
    }
    if layer_node.op_type() == "MatMul" {
        let rank = model.value_infos().get(input).and_then(|info| Some(info.shape.as_ref()?.len()));
        let rank = rank.or_else(|| {
            let x = layer_node.input_at(0)?;
            Some(model.value_infos().get(x)?.shape.as_ref()?.len())
        });
        if rank != Some(2) || info.shape.len() != 2 {
            keep!("`{input}` is not known to be a matrix");
        }
    }
    let Some(channels) = Channels::of(layer_node, &info.shape) else {
        keep!("the weight `{weight_name}` has the unexpected shape {:?}", info.shape);
    };
    if channels.count != n_channels {
        keep!("it has {n_channels} channels, but the layer before it {}", channels.count);
    }

    // The bias, as the layer adds it today.
    let (slot, bias_name) = match (layer_node.op_type(), add_bias) {
        (_, Some((position, name))) => (BiasSlot::OfAdd(position), Some(name)),
        ("MatMul", None) => (BiasSlot::NewAdd, None),
        _ => (BiasSlot::Third, layer_node.input_at(2).map(str::to_owned)),
    };
    let beta = match layer_node.op_type() {
        "Gemm" => f64::from(layer_node.float_or("beta", 1.0)),
        _ => 1.0,
    };
    let mut bias = vec![0.0; n_channels];
    if let Some(name) = &bias_name {
        let Some(constant) = model.constant(name) else {
            keep!("the bias `{name}` is not constant");
        };
        let shape = constant.info()?.shape;
        let values = wide(constant.to_f32()?);
        let is_row = shape.last() == Some(&n_channels) && values.len() == n_channels;
        if !is_row && values.len() != 1 {
            keep!("the bias `{name}` of shape {shape:?} is not one number for each channel");
        }
        for (channel, bias) in bias.iter_mut().enumerate() {
            *bias = beta * if is_row { values[channel] } else { values[0] };
        }
    }
    for (channel, bias) in bias.iter_mut().enumerate() {
        *bias = (*bias - mean[channel]) * factor[channel] + shift[channel];
    }

    let values = weight.to_f32()?;
    let scaled = values.iter().enumerate().map(|(position, &value)| {
        (f64::from(value) * factor[channels.of_element(position)]) as f32
    });
    let scaled: Vec<f32> = scaled.collect();
    let bias: Vec<f32> = bias.into_iter().map(|value| value as f32).collect();
    if scaled.iter().chain(&bias).any(|value| !value.is_finite()) {
        keep!("the folded weight would not be finite");
    }
    let is_shared = index.consumers(weight_name).len() > 1 || index.is_output(weight_name);
    let new_weight_name = if is_shared {
        free_name(model, &format!("{weight_name}.folded"))
    } else {
        weight_name.to_owned()
    };
    let new_bias_name = match &bias_name {
        Some(name) if index.consumers(name).len() == 1 && !index.is_output(name) => name.clone(),
        _ => {
            let stem = weight_name.strip_suffix(".weight").unwrap_or(layer_node.label());
            free_name(model, &format!("{stem}.bias"))
        }
    };
    let (Some(weight), Some(bias)) = (
        data::tensor_from_floats(&new_weight_name, info.dtype, &info.shape, &scaled),
        data::tensor_from_floats(&new_bias_name, info.dtype, &[n_channels], &bias),
    ) else {
        keep!("the weight `{weight_name}` has type {}", info.dtype);
    };
    Ok(Ok(Plan { layer, last, weight, bias, slot, resets_beta: beta != 1.0 }))
}

/// The `MatMul` whose result the `Add` at `position` adds a constant to, with
/// the constant's place and name.
fn matmul_before(
    model: &Model,
    index: &GraphIndex,
    position: usize,
) -> std::result::Result<(usize, (usize, String)), String> {
    let graph = model.graph();
    let add = &graph.node[position];
    for (bias_slot, product_slot) in [(1, 0), (0, 1)] {
        let (Some(bias), Some(product)) = (add.input_at(bias_slot), add.input_at(product_slot))
        else {
            continue;
        };
        let Some(layer) = index.producer(product) else { continue };
        if model.constant(bias).is_none() || !graph.node[layer].is_standard("MatMul") {
            continue;
        }
        if index.consumers(product).len() != 1 || index.is_output(product) {
            return Err(format!("the product `{product}` is used elsewhere too"));
        }
        return Ok((layer, (bias_slot, bias.to_owned())));
    }
    Err("its input comes from `Add`, expected a convolution or matrix product".to_owned())
}

/// Which output channel each element of a weight belongs to.
struct Channels {
    count: usize,
    /// Elements with the same position on the channel axis that follow each other.
    inner: usize,
    /// Size of the channel axis.
    axis_len: usize,
    /// Elements of one group; all of them where groups do not matter.
    group_len: usize,
}

impl Channels {
    fn of(node: &NodeProto, shape: &[usize]) -> Option<Self> {
        let len: usize = shape.iter().product();
        let axis = match node.op_type() {
            "Conv" => 0,
            "ConvTranspose" => 1,
            "Gemm" if node.int_or("transB", 0) != 0 => 0,
            _ => 1,
        };
        let axis_len = *shape.get(axis)?;
        if shape.len() < 2 || len == 0 {
            return None;
        }
        let inner = shape[axis + 1..].iter().product();
        // [in, out / groups, ..]: the rows of one group lead to its own outputs.
        let groups = match node.op_type() {
            "ConvTranspose" => usize::try_from(node.int_or("group", 1)).ok().filter(|&g| g > 0)?,
            _ => 1,
        };
        if !len.is_multiple_of(groups) {
            return None;
        }
        Some(Self { count: axis_len * groups, inner, axis_len, group_len: len / groups })
    }

    fn of_element(&self, position: usize) -> usize {
        position / self.group_len * self.axis_len + position / self.inner % self.axis_len
    }
}

fn apply(model: &mut Model, position: usize, plan: Plan) {
    let batch_norm = model.graph().node[position].clone();
    let output = batch_norm.output[0].clone();
    let gone = batch_norm.input[0].clone();
    let old_inputs: Vec<String> = batch_norm.input[1..].to_vec();
    let weight_name = plan.weight.name().to_owned();
    add_constant(model, plan.weight);

    let mut new_add = None;
    let mut replaced = Vec::new();
    let bias_name = plan.bias.name().to_owned();
    add_constant(model, plan.bias);
    match plan.slot {
        BiasSlot::Third => {
            let inputs = &mut model.graph_mut().node[plan.layer].input;
            inputs.resize(3.max(inputs.len()), String::new());
            replaced.push(std::mem::replace(&mut inputs[2], bias_name));
        }
        BiasSlot::OfAdd(slot) => {
            let inputs = &mut model.graph_mut().node[plan.last].input;
            replaced.push(std::mem::replace(&mut inputs[slot], bias_name));
        }
        BiasSlot::NewAdd => {
            let inputs = [gone.as_str(), &bias_name];
            new_add = Some(crate::proto::node("Add", batch_norm.name(), &inputs, &[&output]));
        }
    }
    let graph = model.graph_mut();
    replaced.push(std::mem::replace(&mut graph.node[plan.layer].input[1], weight_name));
    if plan.resets_beta {
        let attributes = &mut graph.node[plan.layer].attribute;
        attributes.retain(|attribute| attribute.name() != "beta");
        attributes.push(attribute_float("beta", 1.0));
    }
    match new_add {
        // The addition takes the place of the normalization.
        Some(add) => graph.node[position] = add,
        None => {
            graph.node[plan.last].output[0] = output;
            graph.value_info.retain(|value| value.name() != gone);
            graph.node.remove(position);
        }
    }
    remove_unused(model, old_inputs.into_iter().chain(replaced).collect());
}

/// Removes those constants among `names` that nothing reads.
fn remove_unused(model: &mut Model, names: Vec<String>) {
    let index = model.index();
    let unused: Vec<String> = names
        .into_iter()
        .filter(|name| !name.is_empty() && index.is_unused(name) && model.constant(name).is_some())
        .collect();
    let is_unused = |name: &str| unused.iter().any(|other| other == name);
    let graph = model.graph_mut();
    graph.initializer.retain(|tensor| !is_unused(tensor.name()));
    graph.input.retain(|input| !is_unused(input.name()));
    graph.value_info.retain(|value| !is_unused(value.name()));
    graph.node.retain(|node| {
        !(node.is_standard("Constant") && node.output.first().is_some_and(|name| is_unused(name)))
    });
}
