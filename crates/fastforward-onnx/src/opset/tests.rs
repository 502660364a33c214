use super::*;
use crate::engine::{Engine, EngineOptions};
use crate::proto::{
    ModelProto, OperatorSetIdProto, TypeProto, ValueInfoProto, attribute_float, attribute_int,
    attribute_ints, type_proto,
};
use crate::tensor::Tensor;

fn with_attributes(mut node: NodeProto, attributes: Vec<AttributeProto>) -> NodeProto {
    node.attribute = attributes;
    node
}

fn float(name: &str) -> ValueInfoProto {
    ValueInfoProto {
        name: Some(name.into()),
        r#type: Some(TypeProto {
            value: Some(type_proto::Value::TensorType(type_proto::Tensor {
                elem_type: Some(crate::dtype::DType::F32.to_onnx()),
                shape: None,
            })),
            ..TypeProto::default()
        }),
        ..ValueInfoProto::default()
    }
}

/// `x` through `nodes` to `y`.
fn model(opset: i64, nodes: Vec<NodeProto>) -> Model {
    let graph = GraphProto {
        node: nodes,
        name: Some("g".into()),
        input: vec![float("x")],
        output: vec![float("y")],
        ..GraphProto::default()
    };
    let proto = ModelProto {
        ir_version: Some(4),
        graph: Some(graph),
        opset_import: vec![OperatorSetIdProto { domain: None, version: Some(opset) }],
        ..ModelProto::default()
    };
    Model::from_proto(proto, None).unwrap()
}

/// The upgraded graph computes `expected` from the numbers 0, 1, 2, .. in `shape`.
#[track_caller]
fn check(opset: i64, target: i64, nodes: Vec<NodeProto>, shape: &[usize], expected: &Tensor) {
    let mut model = model(opset, nodes);
    upgrade(&mut model, target).unwrap();
    model.check().unwrap();
    let engine = Engine::new(&model, &EngineOptions::default()).unwrap();
    let values = (0..shape.iter().product()).map(|at: usize| at as f32).collect();
    let x = Tensor::from_f32(shape.to_vec(), values).unwrap();
    let y = engine.run(&[("x", &x)], &["y"]).unwrap().remove(0);
    assert_eq!(y.shape(), expected.shape());
    for (found, expected) in y.to_f32().iter().zip(expected.to_f32()) {
        assert!((found - expected).abs() < 1e-6, "{found} {expected}");
    }
}

#[track_caller]
fn tensor(shape: &[usize], values: &[f32]) -> Tensor {
    Tensor::from_f32(shape.to_vec(), values.to_vec()).unwrap()
}

#[test]
fn attributes_become_inputs() {
    let unsqueeze =
        with_attributes(node("Unsqueeze", "u", &["x"], &["y"]), vec![attribute_ints("axes", &[0])]);
    check(7, 13, vec![unsqueeze], &[2], &tensor(&[1, 2], &[0.0, 1.0]));
    let clip =
        with_attributes(node("Clip", "c", &["x"], &["y"]), vec![attribute_float("max", 1.5)]);
    check(7, 11, vec![clip], &[3], &tensor(&[3], &[0.0, 1.0, 1.5]));
    let pad = with_attributes(
        node("Pad", "p", &["x"], &["y"]),
        vec![attribute_ints("pads", &[1, 0]), attribute_float("value", 9.0)],
    );
    check(10, 21, vec![pad], &[2], &tensor(&[3], &[9.0, 0.0, 1.0]));
    let slice = with_attributes(
        node("Slice", "s", &["x"], &["y"]),
        vec![attribute_ints("starts", &[1]), attribute_ints("ends", &[3])],
    );
    check(9, 10, vec![slice], &[4], &tensor(&[2], &[1.0, 2.0]));
    let sum =
        with_attributes(node("ReduceSum", "r", &["x"], &["y"]), vec![attribute_ints("axes", &[1])]);
    check(11, 13, vec![sum], &[2, 2], &tensor(&[2, 1], &[1.0, 5.0]));
    let mean = with_attributes(
        node("ReduceMean", "r", &["x"], &["y"]),
        vec![attribute_ints("axes", &[0])],
    );
    check(13, 18, vec![mean], &[2, 2], &tensor(&[1, 2], &[1.0, 2.0]));
    let all =
        with_attributes(node("ReduceMax", "r", &["x"], &["y"]), vec![attribute_ints("axes", &[])]);
    check(13, 21, vec![all], &[2, 2], &tensor(&[1, 1], &[3.0]));
}

#[test]
fn split_states_how_many_parts() {
    let split = || node("Split", "s", &["x"], &["a", "y"]);
    check(11, 21, vec![split()], &[4], &tensor(&[2], &[2.0, 3.0]));
    let uneven = with_attributes(split(), vec![attribute_ints("split", &[1, 3])]);
    check(11, 13, vec![uneven], &[4], &tensor(&[3], &[1.0, 2.0, 3.0]));
}

#[test]
fn softmax_over_several_axes_stays_that() {
    let softmax =
        with_attributes(node("Softmax", "s", &["x"], &["y"]), vec![attribute_int("axis", 1)]);
    let exps: Vec<f32> = (0..4).map(|at| (at as f32).exp()).collect();
    let total: f32 = exps.iter().sum();
    let expected: Vec<f32> = exps.iter().map(|e| e / total).collect();
    check(11, 13, vec![softmax], &[1, 2, 2], &tensor(&[1, 2, 2], &expected));
}

#[test]
fn upsample_becomes_resize_with_the_old_coordinates() {
    let upsample = with_attributes(
        node("Upsample", "u", &["x"], &["y"]),
        vec![AttributeProto {
            name: Some("scales".into()),
            r#type: Some(crate::proto::attribute_proto::AttributeType::Floats as i32),
            floats: vec![1.0, 1.0, 1.0, 2.0],
            ..AttributeProto::default()
        }],
    );
    check(8, 21, vec![upsample], &[1, 1, 1, 2], &tensor(&[1, 1, 1, 4], &[0.0, 0.0, 1.0, 1.0]));
}

#[test]
fn nested_graphs_are_rewritten_too() {
    let squeeze = with_attributes(
        node("Squeeze", "s", &["x"], &["inner"]),
        vec![attribute_ints("axes", &[0])],
    );
    let branch = |name: &str| AttributeProto {
        name: Some(name.into()),
        r#type: Some(crate::proto::attribute_proto::AttributeType::Graph as i32),
        g: Some(GraphProto {
            node: vec![squeeze.clone()],
            output: vec![float("inner")],
            ..GraphProto::default()
        }),
        ..AttributeProto::default()
    };
    let holder = with_attributes(
        node("If", "if", &["c"], &["y"]),
        vec![branch("then_branch"), branch("else_branch")],
    );
    let mut model = model(12, vec![node("IsNaN", "c", &["x"], &["c"]), holder]);
    let rewritten = upgrade(&mut model, 13).unwrap();
    assert_eq!(rewritten, ["operator `Squeeze` (node `s`)"; 2]);
    let inner = model.graph().node[1].subgraphs().next().unwrap().1;
    assert_eq!(inner.node[0].input.len(), 2);
    assert_eq!(inner.initializer.len(), 1);
    assert_eq!(model.proto().ir_version(), 7);
}

#[test]
fn every_node_that_cannot_be_rewritten_is_named_and_nothing_changes() {
    let mut bad = model(
        7,
        vec![
            with_attributes(
                node("BatchNormalization", "bn", &["x", "x", "x", "x", "x"], &["a"]),
                vec![attribute_int("spatial", 0)],
            ),
            node("Affine", "old", &["a"], &["y"]),
        ],
    );
    let before = bad.proto().clone();
    let error = upgrade(&mut bad, 13).unwrap_err();
    assert_eq!(error.problems().len(), 2);
    assert!(
        error.problems()[0].starts_with("operator `BatchNormalization` (node `bn`): "),
        "{error}"
    );
    assert!(error.problems()[1].starts_with("operator `Affine` (node `old`) is none"), "{error}");
    assert_eq!(bad.proto(), &before);
    assert!(upgrade(&mut model(6, vec![node("Relu", "r", &["x"], &["y"])]), 13).is_err());
    assert!(upgrade(&mut bad, MAX_TARGET + 1).is_err());
}
