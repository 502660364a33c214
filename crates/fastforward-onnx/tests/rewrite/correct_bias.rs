//! Bias correction: means that quantization moved come back.

use std::collections::BTreeMap;
use std::sync::Arc;

use fastforward_core::quantization::{LinearQuantizer, LinearQuantizerConfig};
use fastforward_onnx::calibrate::{Batch, RunOptions};
use fastforward_onnx::graph::{Model, tensor_from_f32};
use fastforward_onnx::proto::{attribute_float, node};
use fastforward_onnx::rewrite::{
    BiasReport, CorrectOptions, add_missing_biases, channel_statistics, correct_biases,
    correct_biases_from_inputs,
};
use fastforward_onnx::shapes::ShapeTable;
use fastforward_onnx::simulate::{SimulateOptions, simulate};
use fastforward_onnx::tensor::Tensor;
use fastforward_onnx::tree::{Role, Tree};

use crate::quantized::{Case, digits, engine, fashion, quantized_per_tensor};
use crate::support::{bits, graph, numbers, output, with};

/// A tree with quantized weights and nothing else.
fn quantized_weights(model: &Model, n_bits: u32) -> Tree {
    let tree = Tree::new(model);
    for site in tree.sites().iter().filter(|site| site.role == Role::Weight) {
        let quantizer = LinearQuantizer::new(LinearQuantizerConfig::new(n_bits)).unwrap();
        let weight = model.constant(&site.value).unwrap().to_f32().unwrap();
        let largest = weight.iter().fold(0.0f32, |largest, value| largest.max(value.abs()));
        site.slot.replace(Arc::new(quantizer));
        let quantizer = site.slot.quantizer();
        quantizer
            .as_range_settable()
            .unwrap()
            .set_quantization_range(&[-largest], &[largest])
            .unwrap();
    }
    tree
}

/// Batches for the input that a graph states, of positive numbers: their mean is not zero.
fn batches(model: &Model) -> Vec<fastforward_onnx::Result<Batch>> {
    let shape = model.inputs()[0].fixed_shape().unwrap();
    let batch = |seed| {
        let x = numbers(seed, shape.iter().product()).into_iter().map(f32::abs).collect();
        Ok(vec![("x".to_owned(), Tensor::from_f32(shape.clone(), x).unwrap())])
    };
    (0..3).map(batch).collect()
}

fn correct(model: &mut Model, tree: &Tree) -> BiasReport {
    let float = model.clone();
    correct_against(model, &float, tree)
}

fn correct_against(model: &mut Model, float: &Model, tree: &Tree) -> BiasReport {
    let batches = || batches(float);
    correct_biases(model, float, tree, batches, &CorrectOptions::default(), &mut ()).unwrap()
}

/// The model with its weights on their grids, as what chooses codes leaves it.
fn with_codes(model: &Model, tree: &Tree) -> Model {
    let simulated = simulate(model, tree, &SimulateOptions::default()).unwrap().model;
    let mut chosen = model.clone();
    for site in tree.sites().iter().filter(|site| site.role == Role::Weight) {
        let codes = simulated.constant(&format!("{}_fake_quantized", site.value)).unwrap();
        let shape = codes.info().unwrap().shape;
        let codes = codes.to_f32().unwrap();
        assert_ne!(codes, model.constant(&site.value).unwrap().to_f32().unwrap());
        chosen.set_constant(tensor_from_f32(&site.value, &shape, &codes));
    }
    chosen
}

fn biases(model: &Model, report: &BiasReport) -> Vec<f32> {
    let names = report.corrected.iter().map(|one| one.bias.as_str());
    names.flat_map(|name| model.constant(name).unwrap().to_f32().unwrap()).collect()
}

/// Layers of every kind, the later ones behind an activation.
fn layers() -> Model {
    let mut gemm = with(node("Gemm", "gemm", &["flat", "w3", "b3"], &["g"]), "transB", 1);
    gemm.attribute.push(attribute_float("beta", 0.5));
    let nodes = vec![
        node("Conv", "conv", &["x", "w1"], &["c"]),
        node("Relu", "r1", &["c"], &["r"]),
        with(node("Conv", "grouped", &["r", "w2", "b2"], &["d"]), "group", 2),
        node("Flatten", "flat", &["d"], &["flat"]),
        gemm,
        node("MatMul", "product", &["g", "w4"], &["m"]),
        node("Add", "add", &["b4", "m"], &["s"]),
        node("MatMul", "last", &["s", "w5"], &["y"]),
    ];
    let weights: [(&str, &[usize]); 8] = [
        ("w1", &[4, 3, 2, 2]),
        ("w2", &[6, 2, 2, 2]),
        ("b2", &[6]),
        ("w3", &[5, 24]),
        ("b3", &[1]),
        ("w4", &[5, 7]),
        ("b4", &[7]),
        ("w5", &[7, 2]),
    ];
    graph(&[8, 3, 4, 4], nodes, &weights)
}

#[test]
fn means_come_back_in_layers_of_every_kind() {
    let mut model = layers();
    assert_eq!(add_missing_biases(&mut model).unwrap(), ["conv.bias", "w5.bias"]);
    model.check().unwrap();
    assert_eq!(bits(&output(&model)), bits(&output(&layers())));

    let original = model.clone();
    let tree = quantized_weights(&model, 3);
    let report = correct(&mut model, &tree);
    let names: Vec<&str> = report.corrected.iter().map(|one| one.layer.as_str()).collect();
    assert_eq!(names, ["conv", "grouped", "gemm", "product", "last"], "{report:?}");
    assert_eq!(report.kept, []);
    for one in &report.corrected {
        let left = one.shift_after.unwrap() / one.shift_before;
        assert!(one.shift_before > 1e-3 && left < 1e-5, "{one}");
    }
    // The biases hold it, not the report alone.
    let simulated = simulate(&model, &tree, &SimulateOptions::default()).unwrap();
    let values = [("c", 1), ("g", 1), ("y", 1)];
    let options = RunOptions::default();
    let seen = |model: &Model| {
        let seen = channel_statistics(model, &values, batches(&original), &options).unwrap();
        seen.iter().flat_map(|one| one.mean()).collect::<Vec<f64>>()
    };
    for (float, corrected) in seen(&original).iter().zip(seen(&simulated.model)) {
        assert!((float - corrected).abs() < 1e-5 * float.abs().max(1.0), "{float} {corrected}");
    }
}

#[test]
fn what_cannot_be_corrected_is_kept_with_a_reason() {
    let mut model = layers();
    let tree = quantized_weights(&model, 3);
    let bias = tree.sites().iter().find(|site| site.name == "grouped.bias_quantizer").unwrap();
    let quantizer = LinearQuantizer::new(LinearQuantizerConfig::new(8)).unwrap();
    bias.slot.replace(Arc::new(quantizer));
    let quantizer = bias.slot.quantizer();
    quantizer.as_range_settable().unwrap().set_quantization_range(&[-1.0], &[1.0]).unwrap();
    let before = model.constant("b2").unwrap().to_f32().unwrap();
    let report = correct(&mut model, &tree);
    let kept: Vec<String> = report.kept.iter().map(ToString::to_string).collect();
    assert_eq!(
        kept,
        [
            "`grouped` not corrected: its bias has a quantizer of its own",
            "`last` not corrected: it adds no bias; `add_missing_biases` gives it one",
        ]
    );
    assert_eq!(model.constant("b2").unwrap().to_f32().unwrap(), before);
    assert_eq!(report.corrected[0].bias, "conv.bias"); // A convolution needs no new node.
    assert_eq!(model.graph().node.len(), layers().graph().node.len());
}

#[test]
fn nothing_quantized_is_nothing_to_correct() {
    let mut model = layers();
    let before = model.to_bytes();
    let tree = Tree::new(&model);
    assert_eq!(correct(&mut model, &tree), BiasReport::default());
    assert!(model.to_bytes() == before);
}

#[test]
fn the_error_of_the_weights_tells_the_same_where_inputs_are_float() {
    let nodes = vec![node("Conv", "conv", &["x", "w", "b"], &["y"])];
    let model = graph(&[4, 3, 5, 5], nodes, &[("w", &[4, 3, 1, 1]), ("b", &[4])]);
    let tree = quantized_weights(&model, 3);
    let [mut measured, mut computed] = [model.clone(), model.clone()];
    correct(&mut measured, &tree);
    let options = RunOptions::default();
    let seen = channel_statistics(&model, &[("x", 1)], batches(&model), &options).unwrap();
    let means = BTreeMap::from([("x".to_owned(), seen[0].mean())]);
    let shapes = ShapeTable::default();
    let report = correct_biases_from_inputs(&mut computed, &model, &tree, &means, &shapes).unwrap();
    assert_eq!((report.corrected.len(), report.kept.len()), (1, 0));
    let bias = |model: &Model| model.constant("b").unwrap().to_f32().unwrap();
    let before = bias(&model);
    for ((measured, computed), before) in bias(&measured).iter().zip(bias(&computed)).zip(before) {
        assert!((measured - computed).abs() < 1e-5, "{measured} {computed}");
        assert!((measured - before).abs() > 1e-4);
    }

    let nothing = BTreeMap::new();
    let report =
        correct_biases_from_inputs(&mut computed, &model, &tree, &nothing, &shapes).unwrap();
    assert_eq!(report.kept[0].reason, "no means of its input `x` are given");
}

#[test]
fn codes_that_were_chosen_are_not_what_is_measured_against() {
    let mut model = layers();
    add_missing_biases(&mut model).unwrap();
    let tree = quantized_weights(&model, 3);
    let mut expected = model.clone();
    let report = correct(&mut expected, &tree);
    assert_eq!(report.corrected.len(), 5);

    let mut chosen = with_codes(&model, &tree);
    let found = correct_against(&mut chosen, &model, &tree);
    assert_eq!(found, report);
    assert_eq!(biases(&chosen, &found), biases(&expected, &report));
}

#[test]
fn neither_are_they_where_the_error_is_computed() {
    let mut nodes = vec![
        node("Flatten", "flat", &["x"], &["f"]),
        with(node("Gemm", "gemm", &["f", "w", "b"], &["y"]), "transB", 1),
    ];
    nodes[1].attribute.push(attribute_float("alpha", 0.5));
    let model = graph(&[4, 3, 2, 2], nodes, &[("w", &[5, 12]), ("b", &[5])]);
    let tree = quantized_weights(&model, 3);
    let mut expected = model.clone();
    let report = correct(&mut expected, &tree);

    let options = RunOptions::default();
    let seen = channel_statistics(&model, &[("f", 1)], batches(&model), &options).unwrap();
    let means = BTreeMap::from([("f".to_owned(), seen[0].mean())]);
    let mut chosen = with_codes(&model, &tree);
    // What was taken off is not taken off again.
    for _ in 0..2 {
        let shapes = ShapeTable::default();
        let found =
            correct_biases_from_inputs(&mut chosen, &model, &tree, &means, &shapes).unwrap();
        assert_eq!(found.kept, []);
        let pairs = biases(&chosen, &found).into_iter().zip(biases(&expected, &report));
        for (found, expected) in pairs {
            assert!((found - expected).abs() < 1e-5, "{found} {expected}");
        }
    }
    assert_ne!(biases(&chosen, &report), biases(&model, &report));
}

/// How many images are right with these bits for weights, per tensor: before and after, with all biases at once.
fn check(mut case: Case, n_bits: u32) -> [usize; 2] {
    let tree = quantized_per_tensor(&case.model, &case.calibration, n_bits);
    let correct_images = |model: &Model| {
        let simulated = simulate(model, &tree, &SimulateOptions::default()).unwrap();
        case.test.correct(&engine(&simulated.model))
    };
    let before = correct_images(&case.model);
    let batches = || case.calibration.batches(128);
    let mut model = case.model.clone();
    let options = CorrectOptions::default();
    let report =
        correct_biases(&mut model, &case.model, &tree, batches, &options, &mut ()).unwrap();
    assert_eq!(report.kept, []);
    for one in &report.corrected {
        assert!(one.shift_after.unwrap() < one.shift_before / 2.0, "{one}");
    }
    let after = correct_images(&model);
    case.model = model;
    [before, after]
}

#[test]
fn fewer_bits_lose_less() {
    // 652 and 1239 of 2000; 433 and 468, 454 and 466 of 500 (on a machine with AVX-512).
    let [before, after] = check(fashion(), 4);
    assert!(after > before + 400, "{before} {after}");
    let [before, after] = check(digits("digits/digits_cnn.onnx"), 3);
    assert!(after > before + 20, "{before} {after}");
    let [before, after] = check(digits("digits/digits_mlp.onnx"), 3);
    assert!(after > before + 5, "{before} {after}");
}
