//! Small graphs, and how they are computed.

use fastforward_onnx::dtype::DType;
use fastforward_onnx::engine::{Engine, EngineOptions};
use fastforward_onnx::graph::{Dim, Model, ValueInfo, tensor_from_f32};
use fastforward_onnx::proto::{
    GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorProto, attribute_int,
    attribute_ints,
};
use fastforward_onnx::tensor::Tensor;

/// Numbers between -1 and 1, different for each seed.
pub(crate) fn numbers(seed: u64, n: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..n).map(|_| next()).collect()
}

/// Numbers whose magnitudes differ by up to a factor of a thousand from row to row of the first axis.
fn weight(name: &str, shape: &[usize]) -> TensorProto {
    let seed = name.bytes().fold(7u64, |seed, byte| seed * 31 + u64::from(byte));
    let len: usize = shape.iter().product();
    let row = len / shape.first().copied().unwrap_or(1).max(1);
    let exponents = numbers(seed + 1, len);
    let values = numbers(seed, len).into_iter().enumerate();
    let values = values.map(|(at, value)| value * (5.0 * exponents[at / row.max(1)]).exp2());
    tensor_from_f32(name, shape, &values.collect::<Vec<f32>>())
}

/// A graph from `x` to `y` with weights of these shapes.
pub(crate) fn graph(x: &[usize], nodes: Vec<NodeProto>, weights: &[(&str, &[usize])]) -> Model {
    graph_with(x, nodes, weights, Vec::new())
}

/// The same with these constants, too.
pub(crate) fn graph_with(
    x: &[usize],
    nodes: Vec<NodeProto>,
    weights: &[(&str, &[usize])],
    constants: Vec<TensorProto>,
) -> Model {
    let info = |name: &str, shape: Option<&[usize]>| {
        let shape = shape.map(|shape| shape.iter().map(|&n| Dim::Fixed(n)).collect());
        ValueInfo { name: name.to_owned(), dtype: Some(DType::F32), shape }.to_proto()
    };
    let graph = GraphProto {
        name: Some("test".to_owned()),
        node: nodes,
        initializer: weights
            .iter()
            .map(|(name, shape)| weight(name, shape))
            .chain(constants)
            .collect(),
        input: vec![info("x", Some(x))],
        output: vec![info("y", None)],
        ..GraphProto::default()
    };
    let proto = ModelProto {
        ir_version: Some(8),
        opset_import: vec![OperatorSetIdProto { domain: None, version: Some(17) }],
        graph: Some(graph),
        ..ModelProto::default()
    };
    Model::from_proto(proto, None).unwrap()
}

/// The node with an integer attribute.
pub(crate) fn with(mut node: NodeProto, name: &str, value: i64) -> NodeProto {
    node.attribute.push(attribute_int(name, value));
    node
}

/// The node with an attribute of integers.
pub(crate) fn with_ints(mut node: NodeProto, name: &str, values: &[i64]) -> NodeProto {
    node.attribute.push(attribute_ints(name, values));
    node
}

/// Values of the graph for an input of the shape that it states, by name.
pub(crate) fn values(model: &Model, names: &[&str]) -> Vec<Tensor> {
    let shape = model.inputs()[0].fixed_shape().unwrap();
    let x = numbers(77, shape.iter().product());
    let x = Tensor::from_f32(shape, x).unwrap();
    let engine = Engine::new(model, &EngineOptions::default()).unwrap();
    engine.run(&[("x", &x)], names).unwrap()
}

pub(crate) fn output(model: &Model) -> Vec<f32> {
    values(model, &["y"])[0].to_f32()
}

/// The bits of floats, to compare them exactly.
pub(crate) fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}
