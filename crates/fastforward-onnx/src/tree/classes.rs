//! The classes of a graph's nodes, and the names under which queries find them.

use fastforward_core::module::classes::{self as layers, module};
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

/// The class of weights without a graph.
pub fn weights() -> Class {
    Class::define("Weights", "onnx::Weights", &[module()])
}

/// The class of an operator of the standard set.
pub fn operator(op_type: &str) -> Class {
    Class::define(op_type, &format!("onnx::{op_type}"), &[module()])
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
    match layer_of(node, weight_rank) {
        Some(layer) => {
            let path = format!("{}/{}", base.path(), layer.name());
            Class::define(base.name(), &path, &[base, layer])
        }
        None => base,
    }
}

fn layer_of(node: &NodeProto, weight_rank: Option<usize>) -> Option<Class> {
    // One extent per axis that a window moves along.
    let window = || {
        let attribute = node.find_attribute("kernel_shape")?;
        Some(attribute.ints.len())
    };
    Some(match (node.op_type(), weight_rank) {
        ("Gemm" | "MatMul", Some(_)) => layers::linear(),
        ("Conv", Some(3)) => layers::conv1d(),
        ("Conv", Some(4)) => layers::conv2d(),
        ("Conv", Some(5)) => layers::conv3d(),
        ("ConvTranspose", Some(3)) => layers::conv_transpose1d(),
        ("ConvTranspose", Some(4)) => layers::conv_transpose2d(),
        ("ConvTranspose", Some(5)) => layers::conv_transpose3d(),
        ("Gather", Some(_)) => layers::embedding(),
        ("LayerNormalization", _) => layers::layer_norm(),
        ("RMSNormalization", _) => layers::rms_norm(),
        ("GroupNormalization", _) => layers::group_norm(),
        ("BatchNormalization", _) => layers::batch_norm(),
        ("Relu", _) => layers::relu(),
        ("PRelu", _) => layers::prelu(),
        ("LeakyRelu", _) => layers::leaky_relu(),
        ("Gelu", _) => layers::gelu(),
        ("HardSwish", _) => layers::hardswish(),
        ("HardSigmoid", _) => layers::hardsigmoid(),
        ("Sigmoid", _) => layers::sigmoid(),
        ("Tanh", _) => layers::tanh(),
        ("Softmax", _) => layers::softmax(),
        ("AveragePool", _) => match window()? {
            1 => layers::avg_pool1d(),
            2 => layers::avg_pool2d(),
            3 => layers::avg_pool3d(),
            _ => return None,
        },
        ("MaxPool", _) => match window()? {
            1 => layers::max_pool1d(),
            2 => layers::max_pool2d(),
            3 => layers::max_pool3d(),
            _ => return None,
        },
        ("Dropout", _) => layers::dropout(),
        ("Identity", _) => layers::identity(),
        ("Flatten", _) => layers::flatten(),
        ("RotaryEmbedding", _) => layers::rotary_embedding(),
        _ => return None,
    })
}

/// The names that `[cls:NAME]` may use on any graph, beside those of the library's classes: the standard operators, by
/// short name and by path. Of a name that is an operator's and a layer's, `Softmax`, the operator is meant; its nodes are
/// both.
pub fn names() -> impl Iterator<Item = (&'static str, Class)> {
    [graph(), scope(), weights()]
        .into_iter()
        .chain(STANDARD_OPERATORS.iter().map(|op| operator(op)))
        .flat_map(|class| [(class.name(), class), (class.path(), class)])
}

/// Whether the standard set has, or had, an operator of this name.
pub(crate) fn is_standard_operator(op_type: &str) -> bool {
    STANDARD_OPERATORS.contains(&op_type)
}

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

#[cfg(test)]
mod tests {
    use fastforward_core::quantization::quant_init::default_context;

    use super::*;
    use crate::proto;

    /// What a query names on a model in code is what it names on a graph.
    #[test]
    fn nodes_are_the_layers_of_the_library_under_their_usual_names() {
        let context = default_context();
        let pool = |op_type, kernel: &[i64]| {
            let mut node = proto::node(op_type, "n", &["x"], &["y"]);
            node.attribute = vec![proto::attribute_ints("kernel_shape", kernel)];
            node
        };
        let node = |op_type| proto::node(op_type, "n", &["x", "w"], &["y"]);
        for (node, weight_rank, name) in [
            (node("Gemm"), Some(2), "ff.nn.QuantizedLinear"),
            (node("Conv"), Some(4), "torch.nn.Conv2d"),
            (node("BatchNormalization"), None, "torch.nn.BatchNorm1d"),
            (node("RMSNormalization"), None, "torch.nn.RMSNorm"),
            (node("Relu"), None, "ff.nn.QuantizedRelu"),
            (node("Softmax"), None, "torch.nn.Softmax"),
            (pool("MaxPool", &[3, 3]), None, "torch.nn.MaxPool2d"),
            (pool("AveragePool", &[3]), None, "AvgPool1d"),
        ] {
            let class = of_node(&node, weight_rank);
            assert!(class.is_a(context.class(name).unwrap()), "{name}");
            assert!(class.is_a(operator(node.op_type())), "{name}");
            assert_eq!(class.name(), node.op_type());
        }
        assert_eq!(of_node(&node("MatMul"), None), operator("MatMul"));
        assert_eq!(of_node(&node("MaxPool"), None), operator("MaxPool"));
    }

    #[test]
    fn no_name_means_two_things_but_short_names_of_operators() {
        let context = default_context();
        for (name, class) in names() {
            let other = context.class(name).filter(|&other| other != class);
            assert!(other.is_none() || name == class.name(), "{name}: {other:?} and {class:?}");
        }
    }
}
