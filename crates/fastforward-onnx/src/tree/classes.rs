//! The classes of a graph's nodes, and the names under which queries find them.

use fastforward_core::module::classes::{module, reference_names};
use mpath::Class;

use crate::proto::NodeProto;

/// The class of a graph.
pub fn graph() -> Class {
    Class::define("Graph", "onnx::Graph", &[module()])
}

/// The class of a name that holds others: `encoder` in `/encoder/MatMul`.
pub fn scope() -> Class {
    Class::define("Scope", "onnx::Scope", &[module()])
}

/// The class of an operator of the standard set.
pub fn operator(op_type: &str) -> Class {
    Class::define(op_type, &format!("onnx::{op_type}"), &[module()])
}

/// The class of a layer as frameworks name it: `Linear`, `Conv2d`.
fn layer(name: &str) -> Class {
    Class::define(name, &format!("fastforward::nn::{name}"), &[module()])
}

/// The class of a node. A node that is what frameworks call a layer is of that class too: a `Gemm`, or a `MatMul` with a
/// constant operand, is a `Linear`; a `Conv` with a rank 4 weight is a `Conv2d`.
pub(super) fn of_node(node: &NodeProto, weight_rank: Option<usize>) -> Class {
    let domain = node.domain();
    if !matches!(domain, "" | "ai.onnx") {
        let op_type = node.op_type();
        return Class::define(op_type, &format!("{domain}::{op_type}"), &[module()]);
    }
    let base = operator(node.op_type());
    match layer_name(node.op_type(), weight_rank) {
        Some(name) if name != node.op_type() => {
            Class::define(base.name(), &format!("{}/{name}", base.path()), &[base, layer(name)])
        }
        _ => base,
    }
}

fn layer_name(op_type: &str, weight_rank: Option<usize>) -> Option<&'static str> {
    Some(match (op_type, weight_rank) {
        ("Gemm" | "MatMul", Some(_)) => "Linear",
        ("Conv", Some(3)) => "Conv1d",
        ("Conv", Some(4)) => "Conv2d",
        ("Conv", Some(5)) => "Conv3d",
        ("ConvTranspose", Some(3)) => "ConvTranspose1d",
        ("ConvTranspose", Some(4)) => "ConvTranspose2d",
        ("ConvTranspose", Some(5)) => "ConvTranspose3d",
        ("Gather", Some(_)) => "Embedding",
        ("LayerNormalization", _) => "LayerNorm",
        ("RMSNormalization", _) => "RMSNorm",
        ("GroupNormalization", _) => "GroupNorm",
        ("BatchNormalization", _) => "BatchNorm2d",
        ("Relu", _) => "ReLU",
        ("PRelu", _) => "PReLU",
        ("LeakyRelu", _) => "LeakyReLU",
        ("Gelu", _) => "GELU",
        ("HardSwish", _) => "Hardswish",
        ("HardSigmoid", _) => "Hardsigmoid",
        _ => return None,
    })
}

/// Every name that `[cls:NAME]` may use on a graph, beside the short names and paths of the classes that occur in it:
/// the standard operators, and layers under the names that PyTorch and FastForward for Python give them.
pub fn names() -> Vec<(String, Class)> {
    let mut names: Vec<(String, Class)> =
        reference_names().into_iter().map(|(name, class)| (name.to_owned(), class)).collect();
    for class in
        [graph(), scope()].into_iter().chain(STANDARD_OPERATORS.iter().map(|op| operator(op)))
    {
        names.push((class.name().to_owned(), class));
        names.push((class.path().to_owned(), class));
    }
    for &name in LAYERS {
        // `Softmax` is an operator already; the layer of that name is the operator.
        let class = if STANDARD_OPERATORS.contains(&name) { operator(name) } else { layer(name) };
        if !STANDARD_OPERATORS.contains(&name) {
            names.push((name.to_owned(), class));
        }
        for prefix in [
            "torch.nn.",
            "fastforward::nn::",
            "fastforward.nn.Quantized",
            "ff.nn.Quantized",
            "Quantized",
        ] {
            names.push((format!("{prefix}{name}"), class));
        }
    }
    names
}

/// Whether the standard set has, or had, an operator of this name.
pub(crate) fn is_standard_operator(op_type: &str) -> bool {
    STANDARD_OPERATORS.contains(&op_type)
}

const LAYERS: &[&str] = &[
    "Linear",
    "Conv1d",
    "Conv2d",
    "Conv3d",
    "ConvTranspose1d",
    "ConvTranspose2d",
    "ConvTranspose3d",
    "Embedding",
    "LayerNorm",
    "RMSNorm",
    "GroupNorm",
    "BatchNorm2d",
    "ReLU",
    "PReLU",
    "LeakyReLU",
    "GELU",
    "Hardswish",
    "Hardsigmoid",
    "Softmax",
    "Sigmoid",
    "Tanh",
];

/// The operators of the standard set, so that a query may name one that a graph happens not to use.
const STANDARD_OPERATORS: &[&str] = &[
    "Abs",
    "Acos",
    "Acosh",
    "Add",
    "AffineGrid",
    "And",
    "ArgMax",
    "ArgMin",
    "Asin",
    "Asinh",
    "Atan",
    "Atanh",
    "Attention",
    "AveragePool",
    "BatchNormalization",
    "Bernoulli",
    "BitCast",
    "BitShift",
    "BitwiseAnd",
    "BitwiseNot",
    "BitwiseOr",
    "BitwiseXor",
    "BlackmanWindow",
    "Cast",
    "CastLike",
    "CausalConvWithState",
    "Ceil",
    "Celu",
    "CenterCropPad",
    "Clip",
    "Col2Im",
    "Compress",
    "Concat",
    "ConcatFromSequence",
    "Constant",
    "ConstantOfShape",
    "Conv",
    "ConvInteger",
    "ConvTranspose",
    "Cos",
    "Cosh",
    "CumProd",
    "CumSum",
    "DFT",
    "DeformConv",
    "DepthToSpace",
    "DequantizeLinear",
    "Det",
    "Div",
    "Dropout",
    "DynamicQuantizeLinear",
    "Einsum",
    "Elu",
    "Equal",
    "Erf",
    "Exp",
    "Expand",
    "EyeLike",
    "Flatten",
    "Floor",
    "GRU",
    "Gather",
    "GatherElements",
    "GatherND",
    "Gelu",
    "Gemm",
    "GlobalAveragePool",
    "GlobalLpPool",
    "GlobalMaxPool",
    "Greater",
    "GreaterOrEqual",
    "GridSample",
    "GroupNormalization",
    "HammingWindow",
    "HannWindow",
    "HardSigmoid",
    "HardSwish",
    "Hardmax",
    "Identity",
    "If",
    "ImageDecoder",
    "InstanceNormalization",
    "IsInf",
    "IsNaN",
    "LRN",
    "LSTM",
    "LayerNormalization",
    "LeakyRelu",
    "Less",
    "LessOrEqual",
    "LinearAttention",
    "Log",
    "LogSoftmax",
    "Loop",
    "LpNormalization",
    "LpPool",
    "MatMul",
    "MatMulInteger",
    "Max",
    "MaxPool",
    "MaxRoiPool",
    "MaxUnpool",
    "Mean",
    "MeanVarianceNormalization",
    "MelWeightMatrix",
    "Min",
    "Mish",
    "Mod",
    "Mul",
    "Multinomial",
    "Neg",
    "NegativeLogLikelihoodLoss",
    "NonMaxSuppression",
    "NonZero",
    "Not",
    "OneHot",
    "Optional",
    "OptionalGetElement",
    "OptionalHasElement",
    "Or",
    "PRelu",
    "Pad",
    "Pow",
    "QLinearConv",
    "QLinearMatMul",
    "QuantizeLinear",
    "RMSNormalization",
    "RNN",
    "RandomNormal",
    "RandomNormalLike",
    "RandomUniform",
    "RandomUniformLike",
    "Range",
    "Reciprocal",
    "ReduceL1",
    "ReduceL2",
    "ReduceLogSum",
    "ReduceLogSumExp",
    "ReduceMax",
    "ReduceMean",
    "ReduceMin",
    "ReduceProd",
    "ReduceSum",
    "ReduceSumSquare",
    "RegexFullMatch",
    "Relu",
    "Reshape",
    "Resize",
    "ReverseSequence",
    "RoiAlign",
    "RotaryEmbedding",
    "Round",
    "STFT",
    "Scan",
    "Scatter",
    "ScatterElements",
    "ScatterND",
    "Selu",
    "SequenceAt",
    "SequenceConstruct",
    "SequenceEmpty",
    "SequenceErase",
    "SequenceInsert",
    "SequenceLength",
    "SequenceMap",
    "Shape",
    "Shrink",
    "Sigmoid",
    "Sign",
    "Sin",
    "Sinh",
    "Size",
    "Slice",
    "Softmax",
    "SoftmaxCrossEntropyLoss",
    "Softplus",
    "Softsign",
    "SpaceToDepth",
    "Split",
    "SplitToSequence",
    "Sqrt",
    "Squeeze",
    "StringConcat",
    "StringNormalizer",
    "StringSplit",
    "Sub",
    "Sum",
    "SwiGLU",
    "Swish",
    "Tan",
    "Tanh",
    "TensorScatter",
    "TfIdfVectorizer",
    "ThresholdedRelu",
    "Tile",
    "TopK",
    "Transpose",
    "Trilu",
    "Unique",
    "Unsqueeze",
    "Upsample",
    "Where",
    "Xor",
];
