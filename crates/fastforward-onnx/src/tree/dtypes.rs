//! Element types of values, as far as they follow from the graph.

use std::collections::HashMap;

use crate::dtype::DType;
use crate::proto::{AttributeProto, GraphProto, NodeProto};

/// The element types of the values that `graph` computes, given those it reads.
///
/// Files seldom state the types of intermediate values, and only floats can be quantized. The rules follow the operator
/// set where an operator does not simply keep the type of its first input; where nothing is known, nothing is claimed.
pub(super) fn infer(graph: &GraphProto, known: &mut HashMap<String, DType>) {
    for node in &graph.node {
        for (position, output) in node.output.iter().enumerate() {
            if output.is_empty() || known.contains_key(output) {
                continue;
            }
            if let Some(dtype) = output_dtype(node, position, known) {
                known.insert(output.clone(), dtype);
            }
        }
    }
}

fn output_dtype(
    node: &NodeProto,
    position: usize,
    known: &HashMap<String, DType>,
) -> Option<DType> {
    let input = |at: usize| node.input_at(at).and_then(|name| known.get(name)).copied();
    let stated = |name: &str| {
        let number = node.find_attribute(name).map(AttributeProto::i)?;
        DType::from_onnx(i32::try_from(number).ok()?).ok()
    };
    match node.op_type() {
        "Shape" | "Size" | "ArgMax" | "ArgMin" | "NonZero" | "NonMaxSuppression" => {
            Some(DType::I64)
        }
        "TopK" | "Unique" if position > 0 => Some(DType::I64),
        "MaxPool" if position == 1 => Some(DType::I64),
        "Dropout" if position == 1 => Some(DType::Bool),
        "Equal" | "Greater" | "GreaterOrEqual" | "Less" | "LessOrEqual" | "Not" | "And" | "Or"
        | "Xor" | "IsNaN" | "IsInf" => Some(DType::Bool),
        "Cast" => stated("to"),
        "CastLike" | "Where" => input(1),
        "ConstantOfShape" => node
            .find_attribute("value")
            .and_then(|attribute| attribute.t.as_ref())
            .map_or(Some(DType::F32), |tensor| DType::from_onnx(tensor.data_type()).ok()),
        "EyeLike" | "RandomNormalLike" | "RandomUniformLike" => stated("dtype").or(input(0)),
        "RandomNormal" | "RandomUniform" => stated("dtype").or(Some(DType::F32)),
        "QuantizeLinear" => input(2).or(stated("output_dtype")).or(Some(DType::U8)),
        "DequantizeLinear" => input(1),
        "DynamicQuantizeLinear" => Some(if position == 1 { DType::F32 } else { DType::U8 }),
        "MatMulInteger" | "ConvInteger" => Some(DType::I32),
        "QLinearConv" | "QLinearMatMul" => input(7).or(input(1)),
        "OneHot" => input(2),
        "If" | "Loop" | "Scan" | "Optional" | "OptionalGetElement" | "SequenceAt"
        | "StringNormalizer" => None,
        // An operator of another domain keeps what it does to itself.
        _ if !matches!(node.domain(), "" | "ai.onnx") => None,
        _ => input(0),
    }
}
