use std::sync::Arc;

use fastforward_core::quantization::{LinearQuantizer, LinearQuantizerConfig};

use super::*;
use crate::dtype::DType;
use crate::graph::{Dim, ValueInfo, tensor_from_f32, tensor_from_i64};
use crate::layerwise::linear_layers;
use crate::proto::{
    GraphProto, ModelProto, OperatorSetIdProto, TensorProto, attribute_float, attribute_int,
    attribute_ints, node,
};
use crate::tree::{Role, Tree};

/// Numbers in `-1..1`.
pub(super) fn numbers(seed: u64, len: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..len).map(|_| next()).collect()
}

/// A graph from `x` to `outputs` with weights of these shapes.
pub(super) fn graph(
    nodes: Vec<NodeProto>,
    weights: &[(&str, &[usize])],
    constants: Vec<TensorProto>,
    outputs: &[&str],
) -> Model {
    let info = |name: &str, shape: Option<Vec<Dim>>| {
        ValueInfo { name: name.to_owned(), dtype: Some(DType::F32), shape }.to_proto()
    };
    let weight = |(number, (name, shape)): (usize, &(&str, &[usize]))| {
        let len = shape.iter().product::<usize>();
        let fan_in = shape.iter().skip(1).product::<usize>().max(1) as f32;
        let values =
            numbers(number as u64 + 3, len).into_iter().map(|w| w * (2.0 / fan_in).sqrt() * 1.5);
        tensor_from_f32(name, shape, &values.collect::<Vec<f32>>())
    };
    let graph = GraphProto {
        name: Some("test".to_owned()),
        node: nodes,
        initializer: weights.iter().enumerate().map(weight).chain(constants).collect(),
        input: vec![info("x", None)],
        output: outputs.iter().map(|name| info(name, None)).collect(),
        ..GraphProto::default()
    };
    let proto = ModelProto {
        ir_version: Some(8),
        graph: Some(graph),
        opset_import: vec![OperatorSetIdProto { domain: None, version: Some(13) }],
        ..ModelProto::default()
    };
    let model = Model::from_proto(proto, None).unwrap();
    model.check().unwrap();
    model
}

/// A tree with quantizers at all weights, and its layers.
pub(super) fn with_layers(model: &Model, n_bits: u32) -> (Tree, Vec<LinearLayer>) {
    let tree = Tree::new(model);
    for site in tree.sites().iter().filter(|site| site.role == Role::Weight) {
        let quantizer = LinearQuantizer::new(LinearQuantizerConfig::new(n_bits)).unwrap();
        site.slot.replace(Arc::new(quantizer));
        let quantizer = site.slot.quantizer();
        let weight = model.constant(&site.value).unwrap().to_f32().unwrap();
        let largest = weight.iter().fold(0.0f32, |largest, value| largest.max(value.abs()));
        let settable = quantizer.as_range_settable().unwrap();
        settable.set_quantization_range(&[-largest], &[largest]).unwrap();
    }
    let (layers, others) = linear_layers(model, &tree).unwrap();
    assert_eq!(others, []);
    (tree, layers)
}

/// Every operator with a gradient: convolutions, a residual branch, pools, rows.
pub(super) fn everything() -> Model {
    let with = |mut node: NodeProto, attributes: Vec<crate::proto::AttributeProto>| {
        node.attribute = attributes;
        node
    };
    let pads = || attribute_ints("pads", &[1, 1, 1, 1]);
    let kernel = |n: i64| attribute_ints("kernel_shape", &[n, n]);
    let strides = |n: i64| attribute_ints("strides", &[n, n]);
    let nodes = vec![
        with(node("Conv", "c1", &["x", "w1", "b1"], &["v1"]), vec![pads()]),
        node("Relu", "relu", &["v1"], &["v2"]),
        with(node("MaxPool", "pool", &["v2"], &["v3"]), vec![kernel(2), strides(2)]),
        with(
            node("Conv", "c2", &["v3", "w2"], &["v4"]),
            vec![pads(), attribute_int("group", 2), attribute_ints("dilations", &[1, 1])],
        ),
        node("Clip", "clip", &["v4", "lo", "hi"], &["v5"]),
        node("Conv", "c3", &["v5", "w3", "b3"], &["v6"]),
        node("Add", "add", &["v6", "v3"], &["v7"]),
        with(node("LeakyRelu", "leaky", &["v7"], &["v8"]), vec![attribute_float("alpha", 0.2)]),
        with(
            node("AveragePool", "mean", &["v8"], &["v9"]),
            vec![kernel(2), pads(), strides(2), attribute_int("count_include_pad", 1)],
        ),
        with(node("Conv", "c4", &["v9", "w4", "b4"], &["v10"]), vec![strides(2), pads()]),
        node("Identity", "same", &["v10"], &["v11"]),
        node("GlobalAveragePool", "gap", &["v11"], &["v12"]),
        node("Flatten", "flat", &["v12"], &["v13"]),
        with(
            node("Gemm", "fc", &["v13", "w5", "b5"], &["v14"]),
            vec![
                attribute_int("transB", 1),
                attribute_float("alpha", 0.75),
                attribute_float("beta", 0.5),
            ],
        ),
        node("Relu", "relu_fc", &["v14"], &["v15"]),
        node("Reshape", "rows", &["v15", "shape"], &["v16"]),
        node("MatMul", "product", &["v16", "w6"], &["v17"]),
        node("Add", "bias", &["b6", "v17"], &["y"]),
    ];
    let weights: [(&str, &[usize]); 11] = [
        ("w1", &[6, 4, 3, 3]),
        ("b1", &[6]),
        ("w2", &[6, 3, 3, 3]),
        ("w3", &[6, 6, 1, 1]),
        ("b3", &[6]),
        ("w4", &[8, 6, 3, 3]),
        ("b4", &[8]),
        ("w5", &[10, 8]),
        ("b5", &[10]),
        ("w6", &[5, 3]),
        ("b6", &[3]),
    ];
    let constants = vec![
        tensor_from_f32("lo", &[], &[-0.4]),
        tensor_from_f32("hi", &[], &[0.9]),
        tensor_from_i64("shape", &[3], &[0, 2, -1]),
    ];
    graph(nodes, &weights, constants, &["y"])
}

/// The blocks of a graph, and why layers are in none.
fn cut(model: &Model, at_least: usize) -> (Vec<[String; 3]>, Vec<String>) {
    let (_, layers) = with_layers(model, 4);
    let (blocks, kept) = blocks(model, &layers, at_least);
    (blocks.into_iter().map(|one| [one.name, one.input, one.output]).collect(), kept)
}

#[track_caller]
fn check(model: &Model, at_least: usize, expected: &[[&str; 3]], kept: &[&str]) {
    let (found, reasons) = cut(model, at_least);
    assert_eq!(found, expected);
    assert_eq!(reasons, kept);
}

#[test]
fn branches_that_meet_again_stay_together() {
    let model = everything();
    check(
        &model,
        1,
        &[
            ["c1", "x", "v3"],
            ["c2, c3", "v3", "v9"],
            ["c4", "v9", "v13"],
            ["fc", "v13", "v16"],
            ["product", "v16", "y"],
        ],
        &[],
    );
    // What is left goes to the block before.
    check(&model, 2, &[["c1, c2, c3", "x", "v9"], ["c4, fc, product", "v9", "y"]], &[]);
    check(&model, 3, &[["c1, c2, c3", "x", "v9"], ["c4, fc, product", "v9", "y"]], &[]);
    check(&model, 4, &[["c1, c2, c3, c4, fc, product", "x", "y"]], &[]);
}

#[test]
fn an_operator_without_gradient_ends_a_block() {
    let nodes = vec![
        node("MatMul", "a", &["x", "w1"], &["v1"]),
        node("MatMul", "b", &["v1", "w2"], &["v2"]),
        node("Softmax", "s", &["v2"], &["v3"]),
        node("MatMul", "c", &["v3", "w3"], &["v4"]),
        node("Sigmoid", "gate", &["v4"], &["v5"]),
        node("MatMul", "d", &["v4", "w4"], &["v6"]),
        node("Mul", "m", &["v5", "v6"], &["v7"]),
        node("MatMul", "e", &["v7", "w5"], &["v8"]),
        node("MatMul", "f", &["v8", "w6"], &["y"]),
    ];
    let shape: &[usize] = &[4, 4];
    let weights = ["w1", "w2", "w3", "w4", "w5", "w6"].map(|name| (name, shape));
    let model = graph(nodes, &weights, vec![], &["y"]);
    check(
        &model,
        2,
        &[["a, b", "x", "v2"], ["e, f", "v7", "y"]],
        &[
            "`d`: `gate` (Sigmoid): its gradient is not known here",
            "`c`: only 1 of 2 layers follow each other there",
        ],
    );
}

#[test]
fn what_leaves_a_stretch_on_the_way_ends_a_block_too() {
    let nodes = vec![
        node("MatMul", "a", &["x", "w1"], &["v1"]),
        node("MatMul", "b", &["v1", "w2"], &["v2"]),
        node("MatMul", "c", &["v2", "w3"], &["v3"]),
        node("Add", "sum", &["v3", "v2"], &["y"]),
    ];
    let shape: &[usize] = &[4, 4];
    let weights = ["w1", "w2", "w3"].map(|name| (name, shape));
    // The output of a stretch may be one of the graph, what is inside may not.
    let model = graph(nodes, &weights, vec![], &["v2", "v3", "y"]);
    check(
        &model,
        1,
        &[["a", "x", "v1"], ["b", "v1", "v2"]],
        &["`c`: `v3` is an output of the graph"],
    );
}
