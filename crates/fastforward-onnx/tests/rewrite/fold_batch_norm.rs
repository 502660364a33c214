//! Folding keeps what a graph computes, and says why it did not fold.

use fastforward_onnx::engine::{Engine, EngineOptions};
use fastforward_onnx::graph::{Model, tensor_from_f32};
use fastforward_onnx::proto::{NodeProto, TensorProto, attribute_float, attribute_int, node};
use fastforward_onnx::rewrite::{FoldReport, fold_batch_norm};

use crate::fashion;
use crate::support::{graph_with, numbers, output, with};

fn tensor(name: &str, shape: &[usize]) -> TensorProto {
    let seed = name.bytes().map(u64::from).sum();
    let mut values = numbers(seed, shape.iter().product());
    if name.ends_with("var") {
        values.iter_mut().for_each(|value| *value = value.abs() + 0.1);
    }
    tensor_from_f32(name, shape, &values)
}

/// A graph from `x` to `y` that ends in a batch normalization of `n_channels`.
fn model(
    x_shape: &[usize],
    nodes: Vec<NodeProto>,
    weights: &[(&str, &[usize])],
    n_channels: usize,
) -> Model {
    let mut nodes = nodes;
    let value = nodes.last().unwrap().output[0].clone();
    let parameters = ["bn.scale", "bn.shift", "bn.mean", "bn.var"];
    let mut inputs = vec![value.as_str()];
    inputs.extend(parameters);
    nodes.push(node("BatchNormalization", "bn", &inputs, &["y"]));
    let weights = weights.iter().map(|(name, shape)| tensor(name, shape));
    let constants = weights.chain(parameters.map(|name| tensor(name, &[n_channels]))).collect();
    graph_with(x_shape, nodes, &[], constants)
}

/// Folds, compares before and after, and returns the folded model and the report.
#[track_caller]
fn check_folds(mut model: Model) -> Model {
    let before = output(&model);
    let report = fold_batch_norm(&mut model).unwrap();
    assert_eq!((report.folded.len(), report.kept.len()), (1, 0), "{report:?}");
    model.check().unwrap();
    assert!(model.graph().node.iter().all(|node| node.op_type() != "BatchNormalization"));
    let after = output(&model);
    for (before, after) in before.iter().zip(&after) {
        assert!((before - after).abs() <= 1e-5 * before.abs().max(1.0), "{before} {after}");
    }
    let unused: Vec<&str> =
        model.constants().map(|c| c.name()).filter(|name| name.starts_with("bn.")).collect();
    assert!(unused.is_empty(), "{unused:?}");
    model
}

#[track_caller]
fn check_keeps(mut model: Model, reason: &str) {
    let before = model.to_bytes();
    let report = fold_batch_norm(&mut model).unwrap();
    let reasons: Vec<&str> = report.kept.iter().map(|kept| kept.reason.as_str()).collect();
    assert_eq!((report.folded.len(), reasons), (0, vec![reason]));
    assert!(model.to_bytes() == before);
}

#[test]
fn convolutions_with_and_without_bias() {
    let conv = node("Conv", "c", &["x", "c.weight"], &["c"]);
    let folded = check_folds(model(&[2, 3, 5, 5], vec![conv], &[("c.weight", &[4, 3, 3, 3])], 4));
    assert_eq!(folded.graph().node[0].input, ["x", "c.weight", "c.bias"]);

    let grouped = with(node("Conv", "c", &["x", "w", "b"], &["c"]), "group", 3);
    let weights: [(&str, &[usize]); 2] = [("w", &[6, 1, 3, 3]), ("b", &[6])];
    check_folds(model(&[2, 3, 5, 5], vec![grouped], &weights, 6));
}

#[test]
fn transposed_convolutions_count_channels_within_groups() {
    let conv = with(node("ConvTranspose", "c", &["x", "w"], &["c"]), "group", 2);
    check_folds(model(&[1, 4, 3, 3], vec![conv], &[("w", &[4, 3, 2, 2])], 6));
}

#[test]
fn matrix_products_in_every_form() {
    for trans_b in [0, 1] {
        let mut gemm = with(node("Gemm", "g", &["x", "w", "b"], &["g"]), "transB", trans_b);
        gemm.attribute.push(attribute_float("alpha", 0.5));
        gemm.attribute.push(attribute_float("beta", 3.0));
        let shape: &[usize] = if trans_b == 1 { &[5, 4] } else { &[4, 5] };
        check_folds(model(&[3, 4], vec![gemm], &[("w", shape), ("b", &[1, 5])], 5));
    }
    let gemm = node("Gemm", "g", &["x", "w"], &["g"]);
    check_folds(model(&[3, 4], vec![gemm], &[("w", &[4, 5])], 5));

    let product = node("MatMul", "m", &["x", "w"], &["m"]);
    check_folds(model(&[3, 4], vec![product.clone()], &[("w", &[4, 5])], 5));
    let add = node("Add", "a", &["b", "m"], &["a"]);
    check_folds(model(&[3, 4], vec![product, add], &[("w", &[4, 5]), ("b", &[5])], 5));
}

#[test]
fn a_shared_weight_is_copied() {
    let conv = node("Conv", "c", &["x", "w", "b"], &["c"]);
    let mut shared = model(&[1, 2, 4, 4], vec![conv], &[("w", &[2, 2, 1, 1]), ("b", &[2])], 2);
    let other = node("Conv", "d", &["y", "w", "b"], &["z"]);
    shared.graph_mut().node.push(other);
    let before = shared.constant("w").unwrap().to_f32().unwrap();
    let folded = check_folds(shared);
    assert_eq!(folded.graph().node[0].input, ["x", "w.folded", "c.bias"]);
    assert_eq!(folded.constant("w").unwrap().to_f32().unwrap(), before);
}

#[test]
fn what_cannot_be_folded_stays_with_a_reason() {
    let conv = node("Conv", "c", &["x", "w"], &["c"]);
    let plain = || model(&[1, 2, 4, 4], vec![conv.clone()], &[("w", &[2, 2, 1, 1])], 2);

    let mut used_twice = plain();
    used_twice.graph_mut().node.push(node("Relu", "r", &["c"], &["r"]));
    check_keeps(used_twice, "its input `c` is used elsewhere too");

    let mut training = plain();
    training.graph_mut().node[1].attribute.push(attribute_int("training_mode", 1));
    check_keeps(training, "it normalizes in training mode");

    let relu = node("Relu", "r", &["x"], &["c"]);
    check_keeps(
        model(&[1, 2, 4, 4], vec![relu], &[], 2),
        "its input comes from `Relu`, expected a convolution or matrix product",
    );

    check_keeps(
        model(&[1, 2, 4, 4], vec![conv.clone()], &[("w", &[3, 2, 1, 1])], 2),
        "it has 2 channels, but the layer before it 3",
    );

    let mut negative = plain();
    negative.set_constant(tensor_from_f32("bn.var", &[2], &[-1.0, 1.0]));
    check_keeps(negative, "its parameters give no finite factor");

    let product = node("MatMul", "m", &["x", "w"], &["m"]);
    check_keeps(
        model(&[1, 5, 4], vec![product], &[("w", &[4, 5])], 5),
        "`m` is not known to be a matrix",
    );
}

#[test]
fn the_example_network_keeps_its_accuracy() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/fashion/fashion_cnn.onnx");
    let original = Model::load(path.as_ref()).unwrap();
    let mut folded = original.clone();
    let FoldReport { folded: names, kept } = fold_batch_norm(&mut folded).unwrap();
    assert_eq!(names.len(), 6);
    assert_eq!(kept, []);
    folded.check().unwrap();

    let engine = |model: &Model| Engine::new(model, &EngineOptions::default()).unwrap();
    let (before, after) = (engine(&original), engine(&folded));
    let (images, _) = fashion::test_images();
    let images = images.rows(0..200).unwrap();
    let logits =
        |engine: &Engine| engine.run(&[("image", &images)], &["logits"]).unwrap()[0].to_f32();
    for (before, after) in logits(&before).iter().zip(logits(&after)) {
        assert!((before - after).abs() < 2e-5 * before.abs().max(1.0), "{before} {after}");
    }
    assert_eq!(fashion::correct(&after), 1825);
}
