//! Which slots and parameters a layer shows, under which names and tags.

use fastforward::Module;
use fastforward::module::{named_parameters, named_slots};
use fastforward::nn::*;
use fastforward::tensor::Result;

use crate::common::Weights;

const INPUT: (&str, &str) = ("input_quantizer", "#activation/input");
const WEIGHT: (&str, &str) = ("weight_quantizer", "#parameter/weight");
const BIAS: (&str, &str) = ("bias_quantizer", "#parameter/bias");
const OUTPUT: (&str, &str) = ("output_quantizer", "#activation/output");

/// A layer, its class, its slots with their tags, and its parameters.
#[track_caller]
fn check(layer: impl Module, class: &str, slots: &[(&str, &str)], parameters: &[&str]) {
    assert_eq!(layer.class().name(), class);
    let found = named_slots(&layer);
    let found: Vec<(&str, String)> = found
        .iter()
        .map(|entry| {
            let tags = entry.slot.metadata().leaf_tags();
            let tags: Vec<String> = tags.iter().map(ToString::to_string).collect();
            (entry.name(), tags.join(" "))
        })
        .collect();
    let expected: Vec<(&str, String)> =
        slots.iter().map(|&(name, tags)| (name, tags.to_owned())).collect();
    assert_eq!(found, expected, "slots of {class}");
    let found: Vec<String> = named_parameters(&layer).into_iter().map(|(name, _)| name).collect();
    assert_eq!(found, parameters, "parameters of {class}");
}

#[test]
fn slots_tags_and_parameters_of_every_layer() -> Result<()> {
    let w = Weights::new();
    let vb = |name: &str| w.vb().pp(name);
    let all = [INPUT, WEIGHT, BIAS, OUTPUT];
    let without_bias = [INPUT, WEIGHT, OUTPUT];
    let around = [INPUT, OUTPUT];

    check(Linear::new(3, 2, true, vb("a"))?, "Linear", &all, &["weight", "bias"]);
    check(Linear::new(3, 2, false, vb("b"))?, "Linear", &without_bias, &["weight"]);
    check(LayerNorm::new(&[3], 1e-5, true, vb("c"))?, "LayerNorm", &all, &["weight", "bias"]);
    check(LayerNorm::new(&[3], 1e-5, false, vb("d"))?, "LayerNorm", &without_bias, &["weight"]);
    check(LayerNorm::from_tensors(&[3], None, None, 1e-5)?, "LayerNorm", &around, &[]);
    check(RmsNorm::new(&[3], None, vb("e"))?, "RmsNorm", &without_bias, &["weight"]);
    check(RmsNorm::from_tensors(&[3], None, None)?, "RmsNorm", &around, &[]);
    check(GroupNorm::new(2, 4, 1e-5, vb("f"))?, "GroupNorm", &all, &["weight", "bias"]);
    check(GroupNorm::from_tensors(2, 4, None, None, 1e-5)?, "GroupNorm", &around, &[]);
    check(ReLU::new(), "ReLU", &around, &[]);
    check(ReLU6::new(), "ReLU6", &around, &[]);
    check(GELU::default(), "GELU", &around, &[]);
    check(SiLU::new(), "SiLU", &around, &[]);
    check(Sigmoid::new(), "Sigmoid", &around, &[]);
    check(Tanh::new(), "Tanh", &around, &[]);
    check(Hardswish::new(), "Hardswish", &around, &[]);
    check(Hardsigmoid::new(), "Hardsigmoid", &around, &[]);
    check(LeakyReLU::default(), "LeakyReLU", &around, &[]);
    check(Softmax::new(-1), "Softmax", &around, &[]);
    check(Identity, "Identity", &[], &[]);
    check(Flatten::default(), "Flatten", &[], &[]);
    check(Sequential::new(), "Sequential", &[], &[]);
    Ok(())
}

#[test]
fn parameter_slots_know_the_shapes_of_their_parameters() -> Result<()> {
    let w = Weights::new();
    let layer = Linear::new(3, 2, true, w.vb())?;
    let shapes: Vec<Option<Vec<usize>>> = named_slots(&layer)
        .iter()
        .map(|entry| entry.slot.metadata().shape().map(<[usize]>::to_vec))
        .collect();
    assert_eq!(shapes, [None, Some(vec![2, 3]), Some(vec![2]), None]);
    Ok(())
}
