//! Convolutions and matrix products with a constant weight, as rewrites see them.

use fastforward_core::algorithms::ScaleRounding;
use half::{bf16, f16};

use crate::dtype::DType;
use crate::error::Result;
use crate::graph::{Dim, GraphIndex, Model, ValueInfo, data};
use crate::proto::{NodeProto, TensorProto};
use crate::shapes::ShapeTable;

/// A node that multiplies what it reads with a constant weight.
#[derive(Clone, Debug)]
pub(super) struct Layer {
    /// The position of the node.
    pub(super) node: usize,
    pub(super) weight: String,
    pub(super) dtype: DType,
    pub(super) shape: Vec<usize>,
    pub(super) layout: WeightLayout,
    /// Where the channels stand in the values around it.
    pub(super) axis: ChannelAxis,
}

/// The axis of a value that counts channels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ChannelAxis {
    /// Axes behind it.
    pub(super) from_end: usize,
    /// Axes of the value, where that is known.
    pub(super) rank: Option<usize>,
}

impl ChannelAxis {
    /// The axis counted from the first, where that is known.
    pub(super) fn index(self) -> Option<usize> {
        self.rank?.checked_sub(self.from_end + 1)
    }
}

/// Whether a node is a layer: `None` if it is of another kind, the reason if its weight cannot be changed.
pub(super) fn layer_at(
    model: &Model,
    node: usize,
    shapes: &ShapeTable,
) -> Result<Option<std::result::Result<Layer, String>>> {
    let position = node;
    let node = &model.graph().node[position];
    if !["Conv", "ConvTranspose", "Gemm", "MatMul"].iter().any(|op| node.is_standard(op)) {
        return Ok(None);
    }
    let name = node.input_at(1).unwrap_or("");
    let Some(weight) = model.constant(name) else {
        return Ok(Some(Err(match model.constant(node.input_at(0).unwrap_or("")) {
            Some(left) => format!("its weight `{}` is the left operand", left.name()),
            None => format!("its weight `{name}` is not constant"),
        })));
    };
    let info = weight.info()?;
    if !matches!(info.dtype, DType::F32 | DType::F16 | DType::BF16) {
        return Ok(Some(Err(format!("its weight `{name}` has type {}", info.dtype))));
    }
    let Some(layout) = WeightLayout::of(node, &info.shape) else {
        return Ok(Some(Err(format!(
            "its weight `{name}` has the unexpected shape {:?}",
            info.shape
        ))));
    };
    let axis = match node.op_type() {
        "Gemm" if node.int_or("transA", 0) != 0 => {
            return Ok(Some(Err("it transposes what it reads (`transA`)".to_owned())));
        }
        // A graph that was read off a program may multiply more than matrices.
        "Gemm" => {
            let rank = shapes.rank(node.output.first().map_or("", String::as_str));
            ChannelAxis { from_end: 0, rank: rank.or(Some(2)) }
        }
        "MatMul" => {
            let output = node.output.first().map_or("", String::as_str);
            let input = node.input_at(0).unwrap_or("");
            let rank = shapes.rank(output).or_else(|| shapes.rank(input));
            ChannelAxis { from_end: 0, rank }
        }
        _ => ChannelAxis { from_end: info.shape.len() - 2, rank: Some(info.shape.len()) },
    };
    Ok(Some(Ok(Layer {
        node: position,
        weight: name.to_owned(),
        dtype: info.dtype,
        shape: info.shape,
        layout,
        axis,
    })))
}

/// Which channels each element of a weight connects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct WeightLayout {
    rows: usize,
    columns: usize,
    /// Elements for each pair of channels.
    kernel: usize,
    pub(super) groups: usize,
    rows_are_outputs: bool,
}

impl WeightLayout {
    fn of(node: &NodeProto, shape: &[usize]) -> Option<Self> {
        let [rows, columns, kernel @ ..] = shape else { return None };
        let is_convolution = matches!(node.op_type(), "Conv" | "ConvTranspose");
        if kernel.is_empty() == is_convolution || shape.contains(&0) {
            return None;
        }
        let groups = match is_convolution {
            true => usize::try_from(node.int_or("group", 1)).ok()?,
            false => 1,
        };
        let rows_are_outputs = match node.op_type() {
            "Conv" => true,
            "Gemm" => node.int_or("transB", 0) != 0,
            _ => false,
        };
        (groups > 0 && rows.is_multiple_of(groups)).then(|| Self {
            rows: *rows,
            columns: *columns,
            kernel: kernel.iter().product(),
            groups,
            rows_are_outputs,
        })
    }

    pub(super) fn outputs(&self) -> usize {
        if self.rows_are_outputs { self.rows } else { self.columns * self.groups }
    }

    pub(super) fn inputs(&self) -> usize {
        if self.rows_are_outputs { self.columns * self.groups } else { self.rows }
    }

    /// Calls `each` with every element's position, output channel and input channel.
    pub(super) fn for_each(&self, mut each: impl FnMut(usize, usize, usize)) {
        let rows_per_group = self.rows / self.groups;
        let mut position = 0;
        for row in 0..self.rows {
            let first = row / rows_per_group * self.columns;
            for column in first..first + self.columns {
                let (output, input) =
                    if self.rows_are_outputs { (row, column) } else { (column, row) };
                for _ in 0..self.kernel {
                    each(position, output, input);
                    position += 1;
                }
            }
        }
    }

    /// The largest magnitude between each output channel and each block of `block` input channels of its group,
    /// `[outputs, inputs / groups / block]`, of finite weights; `None` where the groups cut a block.
    pub(super) fn magnitudes(&self, weight: &[f32], block: usize) -> Option<Vec<f32>> {
        let per_group = self.inputs() / self.groups;
        if !per_group.is_multiple_of(block) {
            return None;
        }
        let columns = per_group / block;
        let mut magnitudes = vec![0.0f32; self.outputs() * columns];
        self.for_each(|position, output, input| {
            let largest = &mut magnitudes[output * columns + input % per_group / block];
            *largest = largest.max(weight[position].abs());
        });
        Some(magnitudes)
    }
}

/// Where a layer adds its bias.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Bias {
    /// The node and the input that read it.
    pub(super) node: usize,
    pub(super) input: usize,
    /// The constant; `None` where there is none yet.
    pub(super) name: Option<String>,
    /// The shape with which the node adds it.
    pub(super) shape: Vec<usize>,
    /// One value for each output channel.
    pub(super) values: Vec<f32>,
    /// What the node multiplies them with: the `beta` of a `Gemm`.
    pub(super) factor: f64,
}

/// The bias that a node itself adds, or why it cannot be changed; `None` for `MatMul`, which adds none.
pub(super) fn own_bias(
    model: &Model,
    layer: &Layer,
) -> Result<std::result::Result<Option<Bias>, String>> {
    let node = &model.graph().node[layer.node];
    if node.is_standard("MatMul") {
        return Ok(Ok(None));
    }
    let n_channels = layer.layout.outputs();
    let mut bias = Bias {
        node: layer.node,
        input: 2,
        name: None,
        shape: vec![n_channels],
        values: vec![0.0; n_channels],
        factor: if node.is_standard("Gemm") { node.float_or("beta", 1.0).into() } else { 1.0 },
    };
    if bias.factor == 0.0 {
        return Ok(Err("it multiplies its bias by 0".to_owned()));
    }
    let Some(name) = node.input_at(2) else { return Ok(Ok(Some(bias))) };
    let Some(constant) = model.constant(name) else {
        return Ok(Err(format!("its bias `{name}` is not constant")));
    };
    let shape = constant.info()?.shape;
    let values = constant.to_f32()?;
    if shape.last() == Some(&n_channels) && values.len() == n_channels {
        (bias.shape, bias.values) = (shape, values);
    } else if let [single] = values.as_slice() {
        bias.values = vec![*single; n_channels];
    } else {
        return Ok(Err(format!(
            "its bias `{name}` of shape {shape:?} is not one number for each channel"
        )));
    }
    bias.name = Some(name.to_owned());
    Ok(Ok(Some(bias)))
}

/// The bias that a layer adds, by itself or by an `Add` behind a `MatMul`, or why it cannot be changed; `None` for a
/// `MatMul` without one.
pub(super) fn bias_of(
    model: &Model,
    index: &GraphIndex,
    layer: &Layer,
) -> Result<std::result::Result<Option<Bias>, String>> {
    let graph = model.graph();
    if !graph.node[layer.node].is_standard("MatMul") {
        return own_bias(model, layer);
    }
    let product = graph.node[layer.node].output.first().map_or("", String::as_str);
    let [reader] = index.consumers(product) else { return Ok(Ok(None)) };
    let add = &graph.node[reader.node];
    let (Some(input), true) = (reader.input, add.is_standard("Add")) else { return Ok(Ok(None)) };
    let input = 1 - input.min(1);
    let name = add.input_at(input).unwrap_or("");
    let Some(constant) = model.constant(name).filter(|_| !index.is_output(product)) else {
        return Ok(Ok(None));
    };
    let (shape, values) = (constant.info()?.shape, constant.to_f32()?);
    let n_channels = layer.layout.outputs();
    if shape.last() != Some(&n_channels) || values.len() != n_channels {
        return Ok(Ok(None));
    }
    let name = Some(name.to_owned());
    Ok(Ok(Some(Bias { node: reader.node, input, name, shape, values, factor: 1.0 })))
}

/// Puts an `Add` of zeros behind a `MatMul`; returns the name of the zeros.
pub(super) fn add_bias_node(model: &mut Model, layer: &Layer) -> Option<String> {
    let mut names = crate::edit::Names::of(model.graph());
    let stem = layer.weight.strip_suffix(".weight").unwrap_or(&layer.weight);
    let bias = names.fresh(&format!("{stem}.bias"));
    let n_channels = layer.layout.outputs();
    let zeros =
        data::tensor_from_floats(&bias, layer.dtype, &[n_channels], &vec![0.0; n_channels])?;
    add_constant(model, zeros);
    let product = &mut model.graph_mut().node[layer.node];
    let label = product.label().to_owned();
    let value = product.output.first()?.clone();
    let before = names.fresh(&format!("{value}_product"));
    product.output[0].clone_from(&before);
    let name = names.fresh(&format!("{label}_bias"));
    let add = crate::proto::node("Add", &name, &[&before, &bias], &[&value]);
    model.graph_mut().node.insert(layer.node + 1, add);
    Some(bias)
}

/// Makes `bias.node` read `bias.values` in the place of the constant `bias.name`, which is copied first if others read
/// it, too. Returns the name of the constant.
pub(super) fn set_bias(model: &mut Model, dtype: DType, bias: &Bias) -> Option<String> {
    let index = model.index();
    let name = match &bias.name {
        Some(name) if is_read_once(&index, name) => name.clone(),
        other => {
            let node = &model.graph().node[bias.node];
            let weight = node.input_at(1).unwrap_or("");
            let stem = match (other, weight.strip_suffix(".weight")) {
                (Some(name), _) => name.clone(),
                (None, Some(stem)) => format!("{stem}.bias"),
                (None, None) => format!("{}.bias", node.label()),
            };
            free_name(model, &stem)
        }
    };
    let tensor = data::tensor_from_floats(&name, dtype, &bias.shape, &bias.values)?;
    add_constant(model, tensor);
    let inputs = &mut model.graph_mut().node[bias.node].input;
    inputs.resize(inputs.len().max(bias.input + 1), String::new());
    inputs[bias.input].clone_from(&name);
    Some(name)
}

/// `value * factor` as a number of the type `dtype`, or `None` where the type cannot hold it as well as others.
pub(super) fn scaled(
    value: f32,
    factor: f64,
    dtype: DType,
    rounding: ScaleRounding,
) -> Option<f32> {
    let wanted = f64::from(value) * factor;
    let (rounded, precision) = match dtype {
        DType::F16 => (f16::from_f64(wanted).to_f32(), 2f64.powi(-11)),
        DType::BF16 => (bf16::from_f64(wanted).to_f32(), 2f64.powi(-8)),
        _ => (wanted as f32, 2f64.powi(-24)),
    };
    let error = (f64::from(rounded) - wanted).abs();
    let holds = match rounding {
        ScaleRounding::PowerOfTwo => error == 0.0,
        ScaleRounding::Unrounded => error <= precision * wanted.abs(),
    };
    holds.then_some(rounded)
}

/// Whether one input of one node is all that reads `name`.
pub(super) fn is_read_once(index: &GraphIndex, name: &str) -> bool {
    let uses = index.consumers(name);
    uses.len() == 1 && uses[0].input.is_some() && !index.is_output(name)
}

/// Puts `tensor` into the graph; files before IR version 4 list it as an input too.
pub(super) fn add_constant(model: &mut Model, tensor: TensorProto) {
    let is_listed = model.graph().input.iter().any(|input| input.name() == tensor.name());
    if model.proto().ir_version() < 4 && model.constant(tensor.name()).is_none() && !is_listed {
        let info = ValueInfo {
            name: tensor.name().to_owned(),
            dtype: DType::from_onnx(tensor.data_type()).ok(),
            shape: Some(tensor.dims.iter().map(|&size| Dim::Fixed(size as usize)).collect()),
        };
        model.graph_mut().input.push(info.to_proto());
    }
    model.set_constant(tensor);
}

/// `base`, or `base` with a number, that no value of the model is called.
pub(super) fn free_name(model: &Model, base: &str) -> String {
    crate::edit::Names::of(model.graph()).fresh(base)
}
