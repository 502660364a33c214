use std::sync::Arc;

use fastforward_core::quantization::{LinearQuantizer, LinearQuantizerConfig};

use super::*;
use crate::dtype::DType;
use crate::engine::EngineOptions;
use crate::graph::{Model, tensor_from_f32};
use crate::layerwise::linear_layers;
use crate::proto::{
    AttributeProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TypeProto,
    ValueInfoProto, attribute_int, attribute_ints, attribute_proto::AttributeType, node,
    type_proto,
};
use crate::tree::Tree;

fn value(name: &str) -> ValueInfoProto {
    let tensor = type_proto::Tensor { elem_type: Some(DType::F32.to_onnx()), shape: None };
    ValueInfoProto {
        name: Some(name.into()),
        r#type: Some(TypeProto {
            value: Some(type_proto::Value::TensorType(tensor)),
            ..TypeProto::default()
        }),
        ..ValueInfoProto::default()
    }
}

fn waves(shape: &[usize], pace: f32) -> Vec<f32> {
    (0..shape.iter().product()).map(|at: usize| (at as f32 * pace).sin()).collect()
}

/// `y = op(x, w)`.
fn model(op: NodeProto, weight: &[usize]) -> Model {
    let graph = GraphProto {
        name: Some("g".into()),
        node: vec![op],
        initializer: vec![tensor_from_f32("w", weight, &waves(weight, 0.7))],
        input: vec![value("x")],
        output: vec![value("y")],
        ..GraphProto::default()
    };
    let proto = ModelProto {
        ir_version: Some(8),
        graph: Some(graph),
        opset_import: vec![OperatorSetIdProto { domain: None, version: Some(13) }],
        ..ModelProto::default()
    };
    Model::from_proto(proto, None).unwrap()
}

fn operator(op_type: &str, attributes: Vec<AttributeProto>) -> NodeProto {
    let mut op = node(op_type, "layer", &["x", "w"], &["y"]);
    op.attribute = attributes;
    op
}

fn auto_pad(text: &str) -> AttributeProto {
    AttributeProto {
        name: Some("auto_pad".into()),
        r#type: Some(AttributeType::String as i32),
        s: Some(text.as_bytes().to_vec()),
        ..AttributeProto::default()
    }
}

fn with_weight_quantizer(model: &Model) -> Tree {
    let tree = Tree::new(model);
    let site = tree.sites().iter().find(|site| site.name == "layer.weight_quantizer").unwrap();
    site.slot.replace(Arc::new(LinearQuantizer::new(LinearQuantizerConfig::new(4)).unwrap()));
    tree
}

/// The squares of the layer's outputs, summed per output channel, are what the moments say: `n · w G wᵀ`.
#[track_caller]
fn check(op: NodeProto, weight: &[usize], x: &[usize], channel_axis: usize) {
    let model = model(op, weight);
    let tree = with_weight_quantizer(&model);
    let (layers, others) = linear_layers(&model, &tree).unwrap();
    assert_eq!(others, []);
    let layer = &layers[0];
    let engine = Engine::new(&model, &EngineOptions::default()).unwrap();
    let batches: Vec<Tensor> = [0.31, 0.57]
        .iter()
        .map(|&pace| Tensor::from_f32(x.to_vec(), waves(x, pace)).unwrap())
        .collect();
    let fed = batches.iter().map(|x| Ok(vec![("x".to_owned(), x.clone())]));
    let network = Network { engine: &engine, values: vec![layer.value.clone()] };
    let options = RunOptions::default();
    let moments = gather((&network, None), &[layer], fed.clone(), &options, || ()).unwrap();
    let moments = moments[0].clone();
    // Beside itself nothing moves.
    let paired =
        gather((&network, Some(&network)), &[layer], fed, &options, || ()).unwrap().remove(0);
    for (one, two) in moments.iter().zip(&paired) {
        let near = |(a, b): (&f64, &f64)| (a - b).abs() <= 1e-9 * a.abs().max(1.0);
        assert!(one.gram().iter().zip(two.gram()).all(near));
    }

    let mut expected = vec![0.0; layer.rows];
    for x in &batches {
        let y = engine.run(&[("x", x)], &["y"]).unwrap().remove(0);
        let inner: usize = y.shape()[channel_axis + 1..].iter().product();
        assert_eq!(y.shape()[channel_axis], layer.rows);
        for (at, y) in y.as_f32().unwrap().iter().enumerate() {
            expected[at / inner % layer.rows] += f64::from(*y).powi(2);
        }
    }
    let matrix = layer.to_matrix(&waves(weight, 0.7));
    assert_eq!(layer.from_matrix(&matrix), waves(weight, 0.7));
    for (row, (w, expected)) in matrix.chunks(layer.columns).zip(expected).enumerate() {
        let group = &moments[row / (layer.rows / layer.groups)];
        let h = group.gram();
        let mut found = 0.0;
        for (i, &a) in w.iter().enumerate() {
            for (j, &b) in w.iter().enumerate() {
                found += f64::from(a) * h[i * layer.columns + j] * f64::from(b);
            }
        }
        found *= group.count() as f64;
        assert!((found - expected).abs() < 1e-4 * expected, "row {row}: {found} {expected}");
    }
}

#[test]
fn matrix_products() {
    check(operator("MatMul", vec![]), &[5, 3], &[2, 7, 5], 2);
    check(operator("Gemm", vec![]), &[5, 3], &[4, 5], 1);
    check(operator("Gemm", vec![attribute_int("transB", 1)]), &[3, 5], &[4, 5], 1);
}

#[test]
fn convolutions() {
    let conv = |attributes| operator("Conv", attributes);
    check(conv(vec![]), &[4, 3, 3, 2], &[2, 3, 6, 5], 1);
    check(
        conv(vec![
            attribute_ints("pads", &[1, 0, 2, 1]),
            attribute_ints("strides", &[2, 1]),
            attribute_ints("dilations", &[1, 2]),
        ]),
        &[4, 3, 3, 2],
        &[2, 3, 6, 5],
        1,
    );
    check(conv(vec![attribute_int("group", 3)]), &[6, 2, 3, 3], &[2, 6, 5, 5], 1);
    check(conv(vec![attribute_int("group", 4)]), &[4, 1, 3, 3], &[1, 4, 5, 5], 1);
    check(conv(vec![attribute_ints("pads", &[2, 1])]), &[3, 2, 4], &[2, 2, 9], 1);
    for auto in ["SAME_UPPER", "VALID"] {
        let strides = attribute_ints("strides", &[2, 2]);
        check(conv(vec![auto_pad(auto), strides]), &[2, 2, 3, 2], &[1, 2, 6, 7], 1);
    }
    let kernel = attribute_ints("kernel_shape", &[3, 3]);
    check(conv(vec![auto_pad("SAME_LOWER"), kernel]), &[2, 2, 3, 3], &[1, 2, 6, 7], 1);
}

#[test]
fn an_odd_row_of_padding_stands_before_or_after() {
    let windows = |auto: &str| {
        let op = operator("Conv", vec![auto_pad(auto)]);
        let windows = super::super::layer::windows_of(&op, 1, 1, &[2]).unwrap();
        let mut rows = Vec::new();
        let unfolding = windows.on(&[1, 1, 3]).unwrap();
        unfolding.write(&[1.0, 2.0, 3.0], 0, 0..unfolding.count(), &mut rows);
        rows
    };
    assert_eq!(windows("SAME_UPPER"), [1.0, 2.0, 2.0, 3.0, 3.0, 0.0]);
    assert_eq!(windows("SAME_LOWER"), [0.0, 1.0, 1.0, 2.0, 2.0, 3.0]);
    // The engine pads after, and would be wrong.
    let model = model(operator("Conv", vec![auto_pad("SAME_LOWER")]), &[1, 1, 2]);
    let error = Engine::new(&model, &EngineOptions::default()).unwrap_err();
    assert!(error.to_string().contains("SAME_UPPER"), "{error}");
}

#[test]
fn layers_that_are_no_products_say_why() {
    let reason = |op: NodeProto, weight: &[usize]| {
        let model = model(op, weight);
        let (layers, others) = linear_layers(&model, &with_weight_quantizer(&model)).unwrap();
        assert!(layers.is_empty());
        let others: Vec<String> =
            others.iter().map(|(slot, reason)| format!("`{slot}`: {reason}")).collect();
        others.join("; ")
    };
    assert_eq!(
        reason(operator("Gemm", vec![attribute_int("transA", 1)]), &[5, 3]),
        "`layer.weight_quantizer`: its input is transposed"
    );
    assert_eq!(
        reason(operator("ConvTranspose", vec![]), &[2, 3, 2, 2]),
        "`layer.weight_quantizer`: a `ConvTranspose` is no matrix product"
    );
    assert_eq!(
        reason(operator("MatMul", vec![]), &[2, 5, 3]),
        "`layer.weight_quantizer`: a weight of shape [2, 5, 3] is not one matrix"
    );
}

#[test]
fn data_that_does_not_fit_is_refused() {
    let model = model(operator("MatMul", vec![]), &[5, 3]);
    let tree = with_weight_quantizer(&model);
    let layer = &linear_layers(&model, &tree).unwrap().0[0];
    let mut sums = [MomentSums::new(layer.columns)];
    let x = Tensor::from_f32(vec![2, 4], vec![0.0; 8]).unwrap();
    let error = add(layer, &mut sums, &x, None).unwrap_err();
    assert_eq!(
        error.to_string(),
        "`layer` (value `x`): its input has shape [2, 4], expected [.., 5]"
    );
    let x = Tensor::from_f32(vec![1, 5], vec![f32::NAN; 5]).unwrap();
    assert_eq!(add(layer, &mut sums, &x, None).unwrap_err().kind(), ErrorKind::Input);
    let engine = Engine::new(&model, &EngineOptions::default()).unwrap();
    let network = Network { engine: &engine, values: vec![layer.value.clone()] };
    let options = RunOptions::default();
    let error = gather((&network, None), &[layer], [], &options, || ()).unwrap_err();
    assert!(error.to_string().starts_with("no calibration data"), "{error}");
}
