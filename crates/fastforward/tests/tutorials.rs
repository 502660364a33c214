//! The tutorials of `examples/tutorials` run, and show what they promise.
#![cfg(feature = "eager")]
#![allow(
    dead_code,
    reason = "the tutorials have a `main`, and share files of which each uses a part"
)]

#[path = "../../../examples/tutorials/fashion_cnn.rs"]
mod fashion_cnn;
#[path = "../../../examples/tutorials/support.rs"]
mod support;

#[path = "../../../examples/tutorials/low_bits.rs"]
mod low_bits;
#[path = "../../../examples/tutorials/mpath_tour.rs"]
mod mpath_tour;
#[path = "../../../examples/tutorials/one_layer.rs"]
mod one_layer;
#[path = "../../../examples/tutorials/save_load.rs"]
mod save_load;
#[path = "../../../examples/tutorials/train.rs"]
mod train;
#[path = "../../../examples/tutorials/whole_model.rs"]
mod whole_model;

use std::io::Write;

/// What a tutorial prints.
fn text<E: std::fmt::Debug>(run: impl FnOnce(&mut dyn Write) -> Result<(), E>) -> String {
    let mut out = Vec::new();
    run(&mut out).unwrap();
    String::from_utf8(out).unwrap()
}

#[track_caller]
fn check(text: &str, expected: &[&str]) {
    for line in expected {
        assert!(text.contains(line), "`{line}` is missing in\n{text}");
    }
}

/// The number that follows `label` on its line.
#[track_caller]
fn number(text: &str, label: &str) -> f64 {
    let line =
        text.lines().find(|line| line.starts_with(label)).unwrap_or_else(|| panic!("{text}"));
    let word = line[label.len()..].split_whitespace().next().unwrap_or_default();
    word.parse().unwrap_or_else(|_| panic!("`{line}` has no number"))
}

#[test]
fn one_layer_from_scratch() {
    let text = text(one_layer::run);
    check(
        &text,
        &[
            "weight_quantizer: QuantizerStub [64, 64] #parameter/weight",
            "Without quantizers: linear in strict mode: operand `input` is a float tensor of shape [256, 64]",
            "weight_quantizer: LinearQuantizer(num_bits=4, symmetric=True, granularity=PerChannel(channel=0))",
            "The output: QuantizedTensor([256, 64], num_bits=8",
        ],
    );
    assert!(number(&text, "signal to quantization noise:") > 15.0, "{text}");
}

#[test]
fn a_whole_model() {
    let text = text(whole_model::run);
    check(&text, &["A wrong rule: rule", "matches no quantizer slot", "19 ranges set"]);
    let (float, quantized) = (number(&text, "float"), number(&text, "quantized"));
    assert_eq!(float, 91.25);
    assert!((float - quantized).abs() < 1.0, "{text}");
    assert!(number(&text, "agreement") > 97.0, "{text}");
}

#[test]
fn training_recovers_most_of_what_rounding_loses() {
    let mut out = Vec::new();
    let outcome = train::run(&mut out, 2, 4, 500).unwrap();
    let (lost, regained) = (outcome.float - outcome.rounded, outcome.trained - outcome.rounded);
    assert!(lost > 10.0 && regained > 0.5 * lost, "{outcome:?}");
}

#[test]
fn training_recovers_digits_at_two_bits() {
    for (network, float) in [(train::Network::Cnn, 95.0), (train::Network::Mlp, 93.6)] {
        let outcome = train::run_digits(&mut Vec::new(), network, 2, 20).unwrap();
        assert!((outcome.float - float).abs() < 1e-9, "{network:?}: {outcome:?}");
        // Far above rounding with the same ranges, and near the float network.
        assert!(outcome.trained > outcome.rounded, "{network:?}: {outcome:?}");
        assert!(outcome.trained > 0.95 * outcome.float, "{network:?}: {outcome:?}");
    }
}

#[test]
fn few_bits_without_training() {
    let mut out = Vec::new();
    let outcome = low_bits::run(&mut out, 100).unwrap();
    assert_eq!(outcome.float, 91.25);
    // The graph file gets 88.75 % by the same algorithms.
    assert!(outcome.nearest < 40.0 && outcome.by_layer > 87.0, "{outcome:?}");
    assert!(outcome.by_block > 80.0, "{outcome:?}");
    check(&String::from_utf8(out).unwrap(), &["adaround: error of a layer's output", "  conv1 "]);
}

#[test]
fn saved_and_loaded() {
    let text = text(save_load::run);
    check(&text, &["weights.safetensors", "another model: ", "slots that are full: "]);
    assert_eq!(number(&text, "largest difference"), 0.0);
    assert!(number(&text, "accuracy after loading") > 85.0, "{text}");
}

#[test]
fn the_tour_of_queries() {
    let text = text(mpath_tour::run);
    check(
        &text,
        &[
            "**/down\n    `**` is any number of steps, also none\n    - layers.0.mlp.down\n    - layers.1.mlp.down",
            "    - layers.0.query.weight_quantizer",
            "did you mean `Linear`?",
        ],
    );
}
