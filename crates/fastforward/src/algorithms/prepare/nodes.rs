//! Operators as nodes of a graph.

use fastforward_onnx::proto::{
    AttributeProto, attribute_float, attribute_int, attribute_ints, attribute_string,
};

use super::trace::DOMAIN;
use crate::algorithms::layer::windows;
use crate::algorithms::layerwise::WindowPadding;
use crate::tensor::float::{AvgPool, Conv, MaxPool2d, Pad, PadMode};
use crate::tensor::operator::Call;
use crate::tensor::probe::Reshaping;

/// A node without its names.
pub(super) struct Described {
    pub(super) op_type: &'static str,
    pub(super) domain: &'static str,
    pub(super) inputs: Vec<String>,
    pub(super) attributes: Vec<AttributeProto>,
}

impl Described {
    fn new(op_type: &'static str, inputs: Vec<String>) -> Self {
        Self { op_type, domain: "", inputs, attributes: Vec::new() }
    }

    fn with(mut self, attributes: impl IntoIterator<Item = AttributeProto>) -> Self {
        self.attributes.extend(attributes);
        self
    }

    /// An operator that ONNX has not, or not so: nothing passes it.
    fn own(name: &'static str, inputs: Vec<String>) -> Self {
        Self { domain: DOMAIN, ..Self::new(name, inputs) }
    }
}

/// The node of a call whose operands have these names, absent ones the empty name. `constant` makes a constant of a number.
///
/// A `linear` is a `Gemm` whatever the number of axes, which ONNX does not allow: the graph is looked at, not executed.
pub(super) fn describe(
    call: &Call<'_>,
    mut inputs: Vec<String>,
    mut constant: impl FnMut(f32) -> String,
) -> Described {
    let name = call.operator.name;
    let dims = call.values().next().map_or(&[][..], |value| value.dims());
    let rank = dims.len();
    let is_plain = |name: &str| call.attribute::<f64>(name).is_none_or(|&alpha| alpha == 1.0);
    let over_last =
        || call.attribute::<Vec<usize>>("normalized_shape").is_some_and(|s| s.len() == 1);
    let has_weight = call.value("weight").is_some();
    match name {
        "linear" => Described::new("Gemm", inputs).with([attribute_int("transB", 1)]),
        "conv1d" => convolution::<1>(call, rank, inputs),
        "conv2d" => convolution::<2>(call, rank, inputs),
        "conv3d" => convolution::<3>(call, rank, inputs),
        "relu" => Described::new("Relu", inputs),
        "leaky_relu" => Described::new("LeakyRelu", inputs),
        "relu6" => {
            inputs.extend([constant(0.0), constant(6.0)]);
            Described::new("Clip", inputs)
        }
        "positive" => Described::new("Identity", inputs),
        "negative" => Described::new("Neg", inputs),
        "dropout" if call.attribute::<bool>("training") == Some(&false) => {
            Described::new("Dropout", inputs)
        }
        "max_pool2d" if rank == 4 => match call.attribute::<MaxPool2d>("options") {
            Some(options) => Described::new("MaxPool", inputs).with([
                attribute_ints("kernel_shape", &signed(&options.kernel_size)),
                attribute_ints("pads", &signed(&[options.padding, options.padding].concat())),
                attribute_int("ceil_mode", options.ceil_mode.into()),
            ]),
            None => Described::own(name, inputs),
        },
        "avg_pool1d" => average::<1>(call, rank, inputs),
        "avg_pool2d" => average::<2>(call, rank, inputs),
        "avg_pool3d" => average::<3>(call, rank, inputs),
        "adaptive_avg_pool2d" if rank == 4 => Described::new("AveragePool", inputs),
        "mean" | "sum" => {
            let op_type = if name == "mean" { "ReduceMean" } else { "ReduceSum" };
            let axis = call.attribute::<Option<isize>>("dim").copied().flatten();
            Described::new(op_type, inputs)
                .with(axis.map(|axis| attribute_ints("axes", &[axis as i64])))
                .with([attribute_int("keepdims", 0)])
        }
        "permute" => match call.attribute::<Vec<isize>>("dims") {
            Some(order) => transposed(rank, order, inputs),
            None => Described::own(name, inputs),
        },
        "pad" => match call.attribute::<Pad>("options") {
            Some(options) => padded(options, rank, inputs),
            None => Described::own(name, inputs),
        },
        "add" if is_plain("alpha") => Described::new("Add", inputs),
        "sub" if is_plain("alpha") => Described::new("Sub", inputs),
        "mul" => Described::new("Mul", inputs),
        "div" => Described::new("Div", inputs),
        "matmul" | "mm" => Described::new("MatMul", inputs),
        "cat" => Described::new("Concat", inputs),
        "softmax" => Described::new("Softmax", inputs),
        "sigmoid" => Described::new("Sigmoid", inputs),
        "tanh" => Described::new("Tanh", inputs),
        "gelu" => Described::new("Gelu", inputs),
        "layer_norm" if has_weight && over_last() => {
            Described::new("LayerNormalization", inputs).with([attribute_int("axis", -1)])
        }
        "rms_norm" if has_weight && over_last() => {
            Described::new("RMSNormalization", inputs).with([attribute_int("axis", -1)])
        }
        "group_norm" if has_weight => Described::new("GroupNormalization", inputs),
        "batch_norm" if has_weight => {
            // Scale and shift stand before mean and variance.
            inputs[1..].rotate_left(2);
            Described::new("BatchNormalization", inputs)
        }
        _ => Described::own(name, inputs),
    }
}

/// The node of a change of shape.
pub(super) fn describe_shape(how: &Reshaping<'_>, input: String) -> Described {
    let inputs = vec![input];
    match (how.order, how.name) {
        (Some(order), _) => {
            Described::new("Transpose", inputs).with([attribute_ints("perm", &signed(order))])
        }
        // Elements keep their order; shapes are stated.
        (None, "reshape" | "flatten" | "squeeze" | "unsqueeze") => {
            Described::new("Reshape", inputs)
        }
        (None, "contiguous") => Described::new("Identity", inputs),
        (None, name) => Described::own(name, inputs),
    }
}

fn convolution<const N: usize>(call: &Call<'_>, rank: usize, inputs: Vec<String>) -> Described {
    let weight = call.value("weight").map_or(&[][..], |weight| weight.dims());
    let options = call.attribute::<Conv<N>>("options");
    let (Some(options), true) = (options, rank == N + 2 && weight.len() == rank) else {
        return Described::own(call.operator.name, inputs); // Without an axis of the batch.
    };
    let windows = windows(options, weight);
    let pads = match windows.padding {
        WindowPadding::Explicit(pads) => pads,
        _ => return Described::own(call.operator.name, inputs),
    };
    Described::new("Conv", inputs).with([
        attribute_int("group", options.groups as i64),
        attribute_ints("kernel_shape", &signed(&windows.kernel)),
        attribute_ints("strides", &signed(&windows.strides)),
        attribute_ints("dilations", &signed(&windows.dilations)),
        attribute_ints("pads", &pads),
    ])
}

fn average<const N: usize>(call: &Call<'_>, rank: usize, inputs: Vec<String>) -> Described {
    match call.attribute::<AvgPool<N>>("options").filter(|_| rank == N + 2) {
        Some(options) => Described::new("AveragePool", inputs).with([
            attribute_ints("kernel_shape", &signed(&options.kernel_size)),
            attribute_ints("pads", &signed(&[options.padding, options.padding].concat())),
            attribute_int("ceil_mode", options.ceil_mode.into()),
            attribute_int("count_include_pad", options.count_include_pad.into()),
        ]),
        None => Described::own(call.operator.name, inputs),
    }
}

fn transposed(rank: usize, order: &[isize], inputs: Vec<String>) -> Described {
    let from_first = |&axis: &isize| if axis < 0 { axis + rank as isize } else { axis } as i64;
    let order: Vec<i64> = order.iter().map(from_first).collect();
    Described::new("Transpose", inputs).with([attribute_ints("perm", &order)])
}

fn padded(options: &Pad, rank: usize, inputs: Vec<String>) -> Described {
    let mut pads = vec![0; 2 * rank];
    for (at, pair) in options.pad.chunks(2).enumerate().filter(|(at, _)| *at < rank) {
        for (side, &count) in pair.iter().enumerate() {
            pads[side * rank + rank - 1 - at] = count as i64;
        }
    }
    let (mode, value) = match options.mode {
        PadMode::Constant(value) => ("constant", value),
        PadMode::Reflect => ("reflect", 0.0),
        PadMode::Replicate => ("edge", 0.0),
        PadMode::Circular => ("wrap", 0.0),
    };
    Described::new("Pad", inputs).with([
        attribute_string("mode", mode),
        attribute_float("value", value as f32),
        attribute_ints("pads", &pads),
    ])
}

fn signed(numbers: &[usize]) -> Vec<i64> {
    numbers.iter().map(|&number| number as i64).collect()
}
