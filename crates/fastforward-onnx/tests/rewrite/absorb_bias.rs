//! Bias absorption: the same results from smaller activations.

use std::collections::BTreeMap;

use fastforward_core::algorithms::ChannelStatistics;
use fastforward_core::algorithms::absorption::Absorption;
use fastforward_onnx::calibrate::RunOptions;
use fastforward_onnx::graph::{Model, tensor_from_f32};
use fastforward_onnx::proto::{NodeProto, attribute_float, node};
use fastforward_onnx::rewrite::{
    AbsorbOptions, AbsorbReport, absorb_biases, absorbable_values, channel_statistics,
};
use fastforward_onnx::shapes::ShapeTable;
use fastforward_onnx::tensor::Tensor;

use crate::support::{graph, graph_with, numbers, output, values, with_ints};

fn statistics(model: &Model) -> BTreeMap<String, ChannelStatistics> {
    let found = absorbable_values(model, &ShapeTable::default()).unwrap();
    let named: Vec<(&str, isize)> =
        found.iter().map(|(name, axis)| (name.as_str(), *axis)).collect();
    let shape = model.inputs()[0].fixed_shape().unwrap();
    let x = Tensor::from_f32(shape.clone(), numbers(77, shape.iter().product())).unwrap();
    let batch = [Ok(vec![("x".to_owned(), x)])];
    let seen = channel_statistics(model, &named, batch, &RunOptions::default()).unwrap();
    found.iter().zip(seen).map(|((name, _), seen)| (name.clone(), seen)).collect()
}

/// Absorbs what was seen: the same results up to rounding, and `value` smaller.
#[track_caller]
fn check(mut model: Model, value: &str) -> AbsorbReport {
    let largest =
        |model: &Model| values(model, &[value])[0].to_f32().into_iter().fold(0.0, f32::max);
    let (before, range) = (output(&model), largest(&model));
    let seen = statistics(&model);
    let report = absorb_biases(&mut model, &seen, &AbsorbOptions::default()).unwrap();
    model.check().unwrap();
    assert_eq!(report.absorbed.len(), 1, "{report:?}");
    assert!(report.absorbed[0].channels > 0, "{report:?}");
    for (before, after) in before.iter().zip(output(&model)) {
        assert!((before - after).abs() <= 2e-5 * before.abs().max(50.0), "{before} {after}");
    }
    assert!(largest(&model) < range / 2.0, "{} {range}", largest(&model));
    report
}

/// `c1`, `between`, `c2`; the first bias lifts all channels far above 0.
fn layers(between: Vec<NodeProto>) -> Model {
    let last = if between.is_empty() { "a" } else { "b" };
    let mut nodes = vec![node("Conv", "c1", &["x", "w1", "b1"], &["a"])];
    nodes.extend(between);
    nodes.push(node("Conv", "c2", &[last, "w2"], &["y"]));
    let weights: [(&str, &[usize]); 1] = [("w2", &[4, 6, 2, 2])];
    let first = tensor_from_f32("w1", &[6, 3, 1, 1], &numbers(3, 18));
    let lift = tensor_from_f32("b1", &[6], &[50.0, 60.0, 55.0, 52.0, 58.0, 51.0]);
    let shift = tensor_from_f32("shift", &[6, 1, 1], &[1.0, -2.0, 3.0, 4.0, 5.0, 6.0]);
    graph_with(&[2, 3, 5, 5], nodes, &weights, vec![first, lift, shift])
}

#[test]
fn what_was_seen_below_every_value_moves_on() {
    check(layers(vec![]), "a");
    for op in ["Relu", "LeakyRelu", "Identity"] {
        check(layers(vec![node(op, "r", &["a"], &["b"])]), "b");
    }
    let pool = with_ints(node("MaxPool", "p", &["r"], &["b"]), "kernel_shape", &[2, 2]);
    let pool = with_ints(pool, "strides", &[1, 1]);
    check(layers(vec![node("Relu", "r", &["a"], &["r"]), pool]), "b");
    let sums = vec![
        node("Add", "s1", &["a", "shift"], &["s"]),
        node("Relu", "r", &["s"], &["r"]),
        node("Sub", "s2", &["r", "shift"], &["b"]),
    ];
    let report = check(layers(sums), "r");
    assert_eq!(report.absorbed[0].value, "s");
}

#[test]
fn products_of_matrices_scale_what_they_take() {
    let mut gemm = node("Gemm", "g", &["r", "w2", "b2"], &["y"]);
    gemm.attribute.push(attribute_float("alpha", 0.5));
    gemm.attribute.push(attribute_float("beta", 4.0));
    let nodes = vec![
        node("MatMul", "m", &["x", "w1"], &["a"]),
        node("Add", "add", &["lift", "a"], &["s"]),
        node("Relu", "r", &["s"], &["r"]),
        gemm,
    ];
    let weights: [(&str, &[usize]); 2] = [("w2", &[4, 2]), ("b2", &[2])];
    let first = tensor_from_f32("w1", &[3, 4], &numbers(3, 12));
    let lift = tensor_from_f32("lift", &[4], &[50.0, 60.0, 55.0, 52.0]);
    let report = check(graph_with(&[5, 3], nodes, &weights, vec![first, lift]), "r");
    assert_eq!(report.absorbed[0].to_string(), "`m` to `g`: 4 channels, up to 58.814");
}

#[test]
fn three_deviations_take_more_than_the_minimum() {
    let mut model = layers(vec![node("Relu", "r", &["a"], &["b"])]);
    let seen = BTreeMap::from([("a".to_owned(), {
        let mut seen = ChannelStatistics::new(0);
        // Of six channels the first was once 0.
        let mut data = vec![50.0f32; 600];
        data[0] = 0.0;
        let view = fastforward_core::ArrayView::new(&data, &[6, 100]).unwrap();
        seen.observe(view).unwrap();
        seen
    })]);
    let mut other = model.clone();
    let minimum = absorb_biases(&mut model, &seen, &AbsorbOptions::default()).unwrap();
    assert_eq!(minimum.absorbed[0].channels, 5);
    let options = AbsorbOptions { absorption: Absorption::ThreeSigma, ..Default::default() };
    let sigma = absorb_biases(&mut other, &seen, &options).unwrap();
    assert_eq!(sigma.absorbed[0].channels, 6);
    assert!(other.constant("b1").unwrap().to_f32().unwrap()[0] < 20.0);
}

#[test]
fn what_cannot_be_absorbed_stays_with_a_reason() {
    #[track_caller]
    fn check_kept(mut model: Model, reason: &str) {
        let before = model.to_bytes();
        let report =
            absorb_biases(&mut model, &BTreeMap::new(), &AbsorbOptions::default()).unwrap();
        assert_eq!(report.kept[0].reason, reason, "{report:?}");
        assert!(report.absorbed.is_empty());
        assert!(model.to_bytes() == before);
    }
    let mut padded = layers(vec![node("Relu", "r", &["a"], &["b"])]);
    let last = padded.graph_mut().node.pop().unwrap();
    padded.graph_mut().node.push(with_ints(last, "pads", &[1, 1, 1, 1]));
    check_kept(padded, "`c2` (Conv) pads its input with 0, which is no constant of the channel");

    let one = |op: &str| vec![node(op, "between", &["a"], &["b"])];
    check_kept(layers(one("Abs")), "`between` (Abs) does not let a constant pass");
    check_kept(layers(one("Relu")), "no statistics of `a` are given");
    let turned = vec![node("Sub", "between", &["shift", "a"], &["b"])];
    check_kept(layers(turned), "`between` (Sub) does not let a constant pass");
    let late = vec![
        node("Identity", "i", &["a"], &["i"]),
        node("Add", "late", &["i", "shift"], &["s"]),
        node("Relu", "r", &["s"], &["b"]),
    ];
    check_kept(layers(late), "`late` (Add) does not let a constant pass");
    let twice = vec![
        node("Relu", "r1", &["a"], &["r"]),
        node("Sub", "s", &["r", "shift"], &["s"]),
        node("Relu", "r2", &["s"], &["b"]),
    ];
    check_kept(layers(twice), "`r2` (Relu) does not let a constant pass");

    let nodes =
        vec![node("Gemm", "g", &["x", "w1"], &["a"]), node("MatMul", "m", &["a", "w2"], &["y"])];
    let model = graph(&[2, 3], nodes, &[("w1", &[3, 4]), ("w2", &[4, 2])]);
    check_kept(model, "`m` adds no bias; `add_missing_biases` gives it one");
}
