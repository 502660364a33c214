//! The operators that the execution engine knows.

use crate::graph::check_describe as describe;
use crate::proto::{GraphProto, NodeProto};

/// Whether graphs with the operator `op_type` of `domain` can be executed.
///
/// Operators that [`crate::lower`] expresses by others are not in the list.
///
/// ```
/// use fastforward_onnx::engine::is_supported;
/// assert!(is_supported("", "Conv"));
/// assert!(!is_supported("", "DeformConv"));
/// ```
pub fn is_supported(domain: &str, op_type: &str) -> bool {
    match domain {
        "" | "ai.onnx" => STANDARD.binary_search(&op_type).is_ok(),
        "com.microsoft" => MICROSOFT.binary_search(&op_type).is_ok(),
        _ => false,
    }
}

/// Names every node whose operator is unknown, nested graphs included.
pub(super) fn check(graph: &GraphProto, problems: &mut Vec<String>) {
    for node in &graph.node {
        if !is_supported(node.domain(), node.op_type()) {
            let domain = match node.domain() {
                "" => String::new(),
                domain => format!(" of the domain `{domain}`"),
            };
            problems.push(format!(
                "{}{domain} is not supported by the execution engine",
                describe(node)
            ));
        }
    }
    for (_, nested) in graph.node.iter().flat_map(NodeProto::subgraphs) {
        check(nested, problems);
    }
}

/// Sorted by bytes; a test compares both lists with the engine itself.
#[rustfmt::skip]
const STANDARD: &[&str] = &[
    "Abs",
    "Acos",
    "Acosh",
    "Add",
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
    "BitCast",
    "Cast",
    "CastLike",
    "Ceil",
    "Clip",
    "Concat",
    "ConcatFromSequence",
    "Constant",
    "ConstantOfShape",
    "Conv",
    "ConvInteger",
    "ConvTranspose",
    "Cos",
    "Cosh",
    "CumSum",
    "DepthToSpace",
    "DequantizeLinear",
    "Div",
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
    "GlobalMaxPool",
    "Greater",
    "GreaterOrEqual",
    "GridSample",
    "HardSigmoid",
    "HardSwish",
    "Identity",
    "If",
    "InstanceNormalization",
    "IsInf",
    "IsNaN",
    "LSTM",
    "LayerNormalization",
    "LeakyRelu",
    "Less",
    "LessOrEqual",
    "Log",
    "LogSoftmax",
    "Loop",
    "LpNormalization",
    "MatMul",
    "MatMulInteger",
    "Max",
    "MaxPool",
    "Mean",
    "Min",
    "Mod",
    "Mul",
    "Neg",
    "NonMaxSuppression",
    "NonZero",
    "Not",
    "OneHot",
    "Or",
    "PRelu",
    "Pad",
    "Pow",
    "QuantizeLinear",
    "RMSNormalization",
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
    "Relu",
    "Reshape",
    "Resize",
    "ReverseSequence",
    "RotaryEmbedding",
    "Round",
    "Scatter",
    "ScatterElements",
    "ScatterND",
    "SequenceAt",
    "SequenceConstruct",
    "SequenceEmpty",
    "SequenceErase",
    "SequenceInsert",
    "SequenceLength",
    "Shape",
    "Sigmoid",
    "Sign",
    "SimplifiedLayerNormalization",
    "Sin",
    "Sinh",
    "Size",
    "Slice",
    "Softmax",
    "Softplus",
    "Softsign",
    "Split",
    "SplitToSequence",
    "Sqrt",
    "Squeeze",
    "Sub",
    "Sum",
    "Swish",
    "Tan",
    "Tanh",
    "Tile",
    "TopK",
    "Transpose",
    "Trilu",
    "Unsqueeze",
    "Upsample",
    "Where",
    "Xor",
];

#[rustfmt::skip]
const MICROSOFT: &[&str] = &[
    "BiasGelu",
    "DynamicQuantizeLSTM",
    "FastGelu",
    "Gelu",
    "GroupQueryAttention",
    "MatMulNBits",
    "MultiHeadAttention",
    "QuickGelu",
    "RotaryEmbedding",
    "SkipLayerNormalization",
    "SkipSimplifiedLayerNormalization",
];
