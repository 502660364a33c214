//! Recipes on the example networks.

use fastforward_core::quantization::{Granularity, LinearQuantizerConfig};
use fastforward_onnx::calibrate::RunOptions;
use fastforward_onnx::compare::compare_layers;
use fastforward_onnx::engine::EngineOptions;
use fastforward_onnx::export::{ExportOptions, Signedness, export};
use fastforward_onnx::graph::Model;
use fastforward_onnx::rewrite::fold_batch_norm;
use fastforward_onnx::tree::{Role, Tree};

use crate::data::{Images, example, images};
use crate::way::{Outcome, Recipe, engine, per_channel, quantize, run, w8a8};

fn fashion() -> Model {
    let mut model = example("fashion/fashion_cnn.onnx");
    fold_batch_norm(&mut model).unwrap();
    model
}

fn calibration() -> Images {
    images("fashion/calib512.safetensors", 255.0)
}

fn test_images() -> Images {
    images("fashion/test2000.safetensors", 255.0)
}

/// Runs a recipe on the folded fashion network and expects at most `lost` of the first 300 test images to be lost, in
/// the simulation and in the file.
#[track_caller]
fn check_fashion(recipe: &Recipe, lost: usize) -> Outcome {
    let model = fashion();
    let test = test_images().rows(0..300);
    let outcome = run(&model, recipe, &calibration().rows(0..256), &test.rows(0..100));
    let float = test.correct(&engine(&model));
    let simulated = test.correct(&engine(&outcome.simulated.model));
    let written = test.correct(&engine(&Model::load(&outcome.path).unwrap()));
    assert!(simulated + lost >= float, "{float} in float, {simulated} simulated");
    assert!(written + lost >= float, "{float} in float, {written} in the file");
    outcome
}

#[test]
fn w8a8_keeps_the_accuracy_on_all_test_images() {
    let model = fashion();
    let test = test_images();
    let outcome = run(&model, &w8a8(), &calibration(), &test.rows(0..500));
    assert_eq!(test.correct(&engine(&model)), 1825);
    let simulated = test.correct(&engine(&outcome.simulated.model));
    let written = test.correct(&engine(&Model::load(&outcome.path).unwrap()));
    assert!((1819..=1831).contains(&simulated), "{simulated}"); // 0.3 points
    assert!((1819..=1831).contains(&written), "{written}");

    let summary = &outcome.exported.summary;
    assert_eq!(
        (summary.opset.as_ref().unwrap().before, summary.opset.as_ref().unwrap().after),
        (13, 13)
    );
    assert!(
        summary.opset.as_ref().unwrap().reasons.is_empty()
            && summary.opset.as_ref().unwrap().rewritten.is_empty()
    );
    assert!(summary.size.constant_bytes_after * 100 < summary.size.constant_bytes_before * 30);
    // Eight layers, each with a weight and a bias.
    assert_eq!(summary.constants.len(), 16);
    assert_eq!(summary.biases.len(), 8);
    assert!(summary.biases.iter().all(|bias| bias.left_because.is_none()));
    assert!(summary.activations.iter().all(|one| one.dtype == "uint8"));
    let weight = summary.constants.iter().find(|one| one.value == "conv2.weight").unwrap();
    assert_eq!((weight.dtype, weight.scales, weight.axis), ("int8", 64, Some(0)));
    let bias = summary.constants.iter().find(|one| one.value == "conv2.bias").unwrap();
    assert_eq!((bias.dtype, bias.scales), ("int32", 64));

    let logits = &outcome.verification.outputs[0];
    assert_eq!(outcome.verification.batches, 5);
    assert_eq!(logits.same_rounding.max_abs_difference, 0.0, "{logits:?}");
    assert!(logits.simulation.same_top1.unwrap() >= 0.99, "{logits:?}");
}

#[test]
fn every_recipe_is_exported_verified_and_accurate() {
    let a8 = LinearQuantizerConfig::new(8).asymmetric();
    let unsigned = ExportOptions::default();
    let signed = ExportOptions { activations: Signedness::Signed, ..unsigned.clone() };
    let recipes = [
        (Recipe { name: "w8a8_s8", options: signed, ..w8a8() }, 5),
        (
            Recipe {
                name: "per_tensor",
                weights: |_| Some(LinearQuantizerConfig::new(8)),
                ..w8a8()
            },
            10,
        ),
        (Recipe { name: "weights_only", activations: None, ..w8a8() }, 5),
        (Recipe { name: "w4_per_channel", weights: |site| per_channel(site, 4), ..w8a8() }, 25),
        (
            Recipe {
                name: "a16",
                activations: Some(LinearQuantizerConfig::new(16).asymmetric()),
                ..w8a8()
            },
            3,
        ),
        (
            Recipe {
                name: "unsigned_weights",
                weights: |site| Some(per_channel(site, 6)?.asymmetric()),
                options: ExportOptions { weights: Signedness::Unsigned, ..unsigned.clone() },
                activations: Some(a8),
            },
            10,
        ),
    ];
    for (recipe, lost) in recipes {
        let outcome = check_fashion(&recipe, lost);
        let logits = &outcome.verification.outputs[0];
        assert_eq!(logits.same_rounding.max_abs_difference, 0.0, "{}: {logits:?}", recipe.name);
    }
}

#[test]
fn blocks_of_4_bits_raise_the_operator_set() {
    let recipe = Recipe {
        name: "w4_blocks",
        weights: |site| {
            // Blocks of 16 input channels where there are so many.
            let shape = site.slot.metadata().shape()?.to_vec();
            if shape[1] % 16 != 0 {
                return per_channel(site, 8);
            }
            let blocks = Granularity::per_block(&[1], &[16], &[0]);
            Some(LinearQuantizerConfig::new(4).with_granularity(blocks))
        },
        activations: Some(LinearQuantizerConfig::new(8).asymmetric()),
        options: ExportOptions::default(),
    };
    let outcome = check_fashion(&recipe, 25);
    let summary = &outcome.exported.summary;
    assert_eq!(
        (summary.opset.as_ref().unwrap().before, summary.opset.as_ref().unwrap().after),
        (13, 21)
    );
    assert_eq!(
        summary.opset.as_ref().unwrap().reasons,
        ["4-bit codes of `pw.weight_quantizer` and 5 other sites"]
    );
    assert_eq!(outcome.exported.model.proto().ir_version(), 10);
    let res1 = summary.constants.iter().find(|one| one.value == "res1.weight").unwrap();
    // One scale per output channel, block and kernel position: [32, 2, 3, 3].
    assert_eq!((res1.dtype, res1.scales, res1.block_size), ("int4", 576, 16));
    assert!(res1.zero_point.is_none());
    // A bias over blocks has no single scale, and says so.
    let left: Vec<&str> = summary
        .biases
        .iter()
        .filter(|bias| bias.left_because.is_some())
        .map(|bias| bias.value.as_str())
        .collect();
    // The blocks of `pw` span all of its input channels: they are its channels.
    assert_eq!(left, ["res1.bias", "res2.bias", "conv2.bias", "fc1.bias", "fc2.bias"]);
}

#[test]
fn two_bits_go_into_four_where_the_target_is_older() {
    let recipe = |max_opset| Recipe {
        name: "w2",
        weights: |site| per_channel(site, 2),
        activations: None,
        options: ExportOptions { max_opset, ..ExportOptions::default() },
    };
    for (max_opset, dtype, opset) in [(25, "int2", 25), (21, "int4", 21), (13, "int8", 13)] {
        let model = example("digits/digits_mlp.onnx");
        let digits = images("digits/digits.safetensors", 16.0).rows(0..50);
        let outcome = run(&model, &recipe(max_opset), &digits, &digits);
        let summary = &outcome.exported.summary;
        assert!(summary.constants.iter().all(|one| (one.dtype, one.bits) == (dtype, 2)));
        assert_eq!(summary.opset.as_ref().unwrap().after, opset);
    }
}

#[test]
fn digits_keep_their_accuracy() {
    let model = example("digits/digits_cnn.onnx");
    let digits = images("digits/digits.safetensors", 16.0);
    let recipe = Recipe { name: "digits_w8a8", ..w8a8() };
    let outcome = run(&model, &recipe, &digits.rows(0..256), &digits.rows(1000..1200));
    let float = digits.correct(&engine(&model));
    let quantized = digits.correct(&engine(&outcome.simulated.model));
    assert!(float > 1700 && quantized + 6 >= float, "{float} {quantized}");
}

#[test]
fn the_same_bytes_for_any_number_of_threads() {
    let model = fashion();
    let images = calibration().rows(0..128);
    let bytes = |n_threads| {
        let tree = Tree::new(&model);
        let engine = EngineOptions { n_threads: Some(n_threads), ..EngineOptions::default() };
        quantize(&model, &tree, &w8a8(), &images, &engine);
        export(&model, &tree, &ExportOptions::default()).unwrap().model.to_bytes()
    };
    let one = bytes(1);
    assert!(one == bytes(2));
    assert!(one == bytes(1));
}

#[test]
fn layers_are_compared_worst_first_in_any_amount_of_memory() {
    let model = fashion();
    let outcome = run(
        &model,
        &Recipe { name: "compared", weights: |site| per_channel(site, 4), ..w8a8() },
        &calibration().rows(0..128),
        &test_images().rows(0..10),
    );
    let test = test_images().rows(0..64);
    let compare = |max_bytes| {
        let options = RunOptions { max_bytes, ..RunOptions::default() };
        let batches = test.batches(32);
        compare_layers(&model, &outcome.tree, &outcome.simulated, batches, &options, &mut ())
            .unwrap()
    };
    let rows = compare(1 << 29);
    assert_eq!(rows, compare(1));
    assert!(rows.is_sorted_by(|a, b| a.sqnr_db <= b.sqnr_db));
    let n_outputs = outcome.tree.sites().iter().filter(|s| s.role == Role::Output).count();
    assert!(rows.len() >= n_outputs + 16);
    // Weights of 4 bits cost far more than activations of 8.
    let input = rows.iter().find(|row| row.name == "conv1.input_quantizer").unwrap();
    let weight = rows.iter().find(|row| row.name == "res1.weight_quantizer").unwrap();
    assert!(input.sqnr_db > 40.0 && weight.sqnr_db < 25.0, "{input:?} {weight:?}");
}
