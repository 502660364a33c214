//! Which slots and parameters a layer shows, under which names and tags.

use fastforward::Module;
use fastforward::module::{named_parameters, named_slots};
use fastforward::nn::*;
use fastforward::tensor::Result;
use fastforward::tensor::float::{self, AvgPool, Conv, ConvTranspose};

use crate::common::{CPU, Weights};

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
    fn conv<const N: usize>() -> Conv<N> {
        Conv { groups: 2, ..Conv::default() }
    }
    fn transposed<const N: usize>() -> ConvTranspose<N> {
        ConvTranspose { groups: 2, ..ConvTranspose::default() }
    }

    check(Linear::new(3, 2, true, vb("a"))?, "Linear", &all, &["weight", "bias"]);
    check(Linear::new(3, 2, false, vb("b"))?, "Linear", &without_bias, &["weight"]);
    check(LayerNorm::new(&[3], 1e-5, true, vb("c"))?, "LayerNorm", &all, &["weight", "bias"]);
    check(LayerNorm::new(&[3], 1e-5, false, vb("d"))?, "LayerNorm", &without_bias, &["weight"]);
    check(LayerNorm::from_tensors(&[3], None, None, 1e-5)?, "LayerNorm", &around, &[]);
    check(RmsNorm::new(&[3], None, vb("e"))?, "RmsNorm", &without_bias, &["weight"]);
    check(RmsNorm::from_tensors(&[3], None, None)?, "RmsNorm", &around, &[]);
    check(GroupNorm::new(2, 4, 1e-5, vb("f"))?, "GroupNorm", &all, &["weight", "bias"]);
    check(GroupNorm::from_tensors(2, 4, None, None, 1e-5)?, "GroupNorm", &around, &[]);
    check(Conv1d::new(4, 6, [3], conv(), true, vb("g"))?, "Conv1d", &all, &["weight", "bias"]);
    check(Conv1d::new(4, 6, [3], conv(), false, vb("h"))?, "Conv1d", &without_bias, &["weight"]);
    check(Conv2d::new(4, 6, [3; 2], conv(), true, vb("i"))?, "Conv2d", &all, &["weight", "bias"]);
    check(Conv3d::new(4, 6, [3; 3], conv(), true, vb("j"))?, "Conv3d", &all, &["weight", "bias"]);
    let layer = ConvTranspose1d::new(4, 6, [3], transposed(), true, vb("k"))?;
    check(layer, "ConvTranspose1d", &all, &["weight", "bias"]);
    let layer = ConvTranspose2d::new(4, 6, [3; 2], transposed(), true, vb("l"))?;
    check(layer, "ConvTranspose2d", &all, &["weight", "bias"]);
    let layer = ConvTranspose3d::new(4, 6, [3; 3], transposed(), false, vb("m"))?;
    check(layer, "ConvTranspose3d", &without_bias, &["weight"]);
    let layer = BatchNorm::new(4, BatchNormOptions::default(), vb("n"))?;
    check(layer, "BatchNorm", &all, &["weight", "bias", "running_mean", "running_var"]);
    let plain = BatchNormOptions { affine: false, ..Default::default() };
    let layer = BatchNorm::new(4, plain, vb("o"))?;
    check(layer, "BatchNorm", &around, &["running_mean", "running_var"]);
    let layer = Embedding::new(5, 3, Default::default(), vb("p"))?;
    check(layer, "Embedding", &[WEIGHT, OUTPUT], &["weight"]);
    check(AvgPool1d::new(AvgPool::new([2])), "AvgPool1d", &around, &[]);
    check(AvgPool2d::new(AvgPool::new([2; 2])), "AvgPool2d", &around, &[]);
    check(AvgPool3d::new(AvgPool::new([2; 3])), "AvgPool3d", &around, &[]);
    check(MaxPool2d::new(float::MaxPool2d::new([2; 2])), "MaxPool2d", &around, &[]);
    check(AdaptiveAvgPool2d::new([Some(1), None]), "AdaptiveAvgPool2d", &around, &[]);
    check(Dropout::new(0.5, 0)?, "Dropout", &around, &[]);
    let layer = RotaryEmbedding::new(4, 8, 10_000.0, false, CPU)?;
    check(layer, "RotaryEmbedding", &around, &[]);
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
    check(Add::new(), "Add", &[INPUT, ("input_quantizer_1", "#activation/input"), OUTPUT], &[]);
    check(Identity, "Identity", &[], &[]);
    check(Flatten::default(), "Flatten", &[], &[]);
    check(Sequential::new(), "Sequential", &[], &[]);
    Ok(())
}

#[test]
fn slots_of_attention() -> Result<()> {
    let w = Weights::new();
    let attention = [
        ("scaled_query_quantizer", "#attention/scaled"),
        ("scaled_key_quantizer", "#attention/scaled"),
        ("attn_scores_quantizer", "#activation/output #attention/scores"),
        ("attn_mask_quantizer", "#attention/mask"),
        ("masked_scores_quantizer", "#attention/masked_scores"),
        ("attn_weights_quantizer", "#activation/input #activation/output #attention/probabilities"),
        ("dropout_quantizer", "#attention/dropout"),
        ("output_quantizer", "#activation/output"),
    ];
    check(ScaledDotProductAttention::new(), "ScaledDotProductAttention", &attention, &[]);

    let layer = MultiheadAttention::new(4, 2, Default::default(), w.vb())?;
    let both = "#activation/input #activation/output";
    let own = [
        ("in_proj_weight_quantizer", "#parameter/weight"),
        ("in_proj_bias_quantizer", "#parameter/bias"),
        ("query_quantizer", "#activation/input"),
        ("key_quantizer", "#activation/input"),
        ("value_quantizer", "#activation/input"),
        ("projected_query_quantizer", both),
        ("projected_key_quantizer", both),
        ("projected_value_quantizer", both),
    ];
    let names: Vec<String> =
        attention.iter().map(|(name, _)| format!("attention.{name}")).collect();
    let mut slots = own.to_vec();
    slots.extend(names.iter().zip(&attention).map(|(name, (_, tags))| (name.as_str(), *tags)));
    // One slot with two names, the first of which is shown.
    slots.last_mut().unwrap().1 = both;
    slots.extend([
        ("out_proj.weight_quantizer", "#parameter/weight"),
        ("out_proj.bias_quantizer", "#parameter/bias"),
        ("out_proj.output_quantizer", "#activation/output"),
    ]);
    let parameters = ["in_proj_weight", "in_proj_bias", "out_proj.weight", "out_proj.bias"];
    let shared = named_slots(&layer);
    let shared = shared.iter().find(|entry| entry.names.len() > 1).unwrap();
    assert_eq!(shared.names, ["attention.output_quantizer", "out_proj.input_quantizer"]);
    check(layer, "MultiheadAttention", &slots, &parameters);
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
