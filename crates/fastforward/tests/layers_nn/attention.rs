//! Attention against values of torch 2.15 in f64, made by
//! `torch.nn.functional.scaled_dot_product_attention` and `torch.nn.MultiheadAttention(batch_first=True)`.

use std::sync::{Arc, Mutex};

use candle_core::{DType, Tensor, Var};
use fastforward::module::{name_slots, named_parameters, named_slots};
use fastforward::nn::functional::scaled_dot_product_attention;
use fastforward::nn::*;
use fastforward::quantization::quant_init::{InitializeOptions, QuantizationConfig, QuantizerSpec};
use fastforward::quantization::quantizer::{Flow, OverrideGuard, Quantizer, QuantizerOverride};
use fastforward::quantization::{DynamicLinearQuantizerConfig, QuantizerSlot};
use fastforward::tensor::{Apply, Result, Value};
use fastforward::{ArrayView, ErrorKind, flags};

use crate::common::{CPU, Weights, check_close, check_numbers, noise, numbers};

/// Queries, keys and values of two heads.
fn operands() -> [Tensor; 3] {
    let (q, k, v) = (noise(&[1, 2, 3, 4]), noise(&[1, 2, 5, 4]), noise(&[1, 2, 5, 3]));
    [q, (k * 0.7).unwrap(), (v * -0.5).unwrap()]
}

/// Which of five keys each of three queries may attend to; the second to none.
fn keep() -> Tensor {
    Tensor::new(&[[1u8, 0, 1, 0, 1], [0; 5], [1, 1, 0, 0, 0]], CPU).unwrap()
}

fn attend([q, k, v]: [Tensor; 3], options: &AttentionOptions) -> Result<Tensor> {
    let _lenient = flags::strict_quantization(false);
    let [q, k, v] = [q, k, v].map(Value::from);
    scaled_dot_product_attention(&q, &k, &v, options, &AttentionSlots::default())?.dequantize()
}

fn masked(mask: AttentionMask) -> AttentionOptions {
    AttentionOptions { mask, ..AttentionOptions::default() }
}

#[test]
fn without_a_mask() -> Result<()> {
    let y = attend(operands(), &AttentionOptions::default())?;
    assert_eq!(y.dims(), [1, 2, 3, 3]);
    check_numbers(
        &y,
        &[
            0.0617779, -0.1453887, 0.6250017, 0.3044221, -0.5742305, 0.7614580, 0.3666324,
            -0.2295762, 0.5968461, 0.0878815, 0.3569331, 0.0625432, 0.0605753, 0.3323549,
            -0.2388326, -0.3219501, -0.1476735, -0.3886413,
        ],
        1e-6,
    );
    Ok(())
}

#[test]
fn causal() -> Result<()> {
    let y = attend(operands(), &masked(AttentionMask::Causal))?;
    check_numbers(
        &y,
        &[
            0.0045118, -0.7847015, 0.5852268, 0.2241915, -0.8466676, 0.8931908, 0.4092145,
            -0.3522069, 0.5806798, -0.4983485, -0.2163129, -0.8766524, 0.2939306, 0.6386971,
            0.1012782, -0.4391613, -0.2801544, -0.7064593,
        ],
        1e-6,
    );
    Ok(())
}

/// The second query attends to nothing and finds 0.
#[test]
fn with_a_mask_of_what_to_keep() -> Result<()> {
    let expected = &[
        -0.0235025, -0.1781356, 0.6041027, 0.0000000, 0.0000000, 0.0000000, 0.2033874, -0.8407993,
        0.8640260, -0.2012588, 0.0784551, -0.6050451, 0.0000000, 0.0000000, 0.0000000, -0.4101675,
        -0.1211499, -0.7678083,
    ];
    check_numbers(&attend(operands(), &masked(AttentionMask::Keep(keep())))?, expected, 1e-6);
    // Neither a finite number in the place of minus infinity nor a mask that broadcasts changes that.
    let options = AttentionOptions {
        neg_inf: -1e4,
        ..masked(AttentionMask::Keep(keep().reshape((1, 1, 3, 5))?))
    };
    check_numbers(&attend(operands(), &options)?, expected, 1e-6);
    // Scores of any size do not bring a masked row back.
    let [q, k, v] = operands();
    let large = attend([(q * 1e3)?, k, v], &AttentionOptions { neg_inf: -10.0, ..options })?;
    check_numbers(&large.narrow(2, 1, 1)?, &[0.0; 6], 0.0);
    Ok(())
}

#[test]
fn with_a_mask_to_add_and_a_scale() -> Result<()> {
    let mask = AttentionMask::Add(noise(&[3, 5]));
    let y = attend(operands(), &AttentionOptions { scale: Some(0.3), ..masked(mask) })?;
    check_numbers(
        &y,
        &[
            -0.0696017, -0.1457008, 0.7530713, 0.4040244, 0.0017105, 0.6174415, 0.6280997,
            0.3491119, 0.2677160, 0.2536261, 0.6070610, 0.0087216, -0.0325070, 0.1990519,
            -0.1691690, -0.3798782, -0.3736765, -0.2512976,
        ],
        1e-6,
    );
    Ok(())
}

#[test]
fn heads_of_keys_that_serve_several_queries() -> Result<()> {
    let [q, k, v] = operands();
    let q = Tensor::cat(&[&q, &(&q * 0.5)?], 1)?;
    let options = AttentionOptions { enable_gqa: true, ..AttentionOptions::default() };
    let y = attend([q.clone(), k.clone(), v.clone()], &options)?;
    check_numbers(
        &y,
        &[
            0.0617779, -0.1453887, 0.6250017, 0.3044221, -0.5742305, 0.7614580, 0.3666324,
            -0.2295762, 0.5968461, 0.3777286, 0.0180795, 0.5830378, -0.0180182, -0.1222913,
            0.6610577, 0.1818948, -0.0598291, 0.5765906, -0.0252456, 0.2204227, -0.2253531,
            0.0772056, 0.3120351, 0.0388496, -0.0519435, 0.1386853, -0.0425219, -0.0284059,
            0.2031014, -0.0439408, -0.0215525, 0.2125067, -0.2475444, -0.2491077, -0.0791533,
            -0.2800191,
        ],
        1e-6,
    );
    let error = attend([q.narrow(1, 0, 3)?, k, v], &options).unwrap_err();
    assert_eq!(
        error.to_string(),
        "scaled_dot_product_attention: the heads of [1, 2, 5, 4] do not divide those of the query [1, 3, 3, 4], axis -3 of both"
    );
    Ok(())
}

#[test]
fn gradients_are_those_of_torch_with_a_masked_row_too() -> Result<()> {
    let variables = operands().map(|tensor| Var::from_tensor(&tensor).unwrap());
    let inputs = [0, 1, 2].map(|at: usize| variables[at].as_tensor().clone());
    let y = attend(inputs, &masked(AttentionMask::Keep(keep())))?;
    let gradients = (&y * noise(y.dims()))?.sum_all()?.backward()?;
    let gradient = |at: usize| gradients.get(&variables[at]).unwrap();
    check_numbers(
        gradient(0),
        &[
            0.0333125, -0.2083543, 0.0127339, -0.1191390, 0.0000000, 0.0000000, 0.0000000,
            0.0000000, -0.0151811, 0.0299844, 0.0051445, 0.0093180, -0.0154909, -0.1972368,
            0.3148430, 0.1406595, 0.0000000, 0.0000000, 0.0000000, 0.0000000, 0.1231399,
            -0.0481179, -0.2843454, -0.1379656,
        ],
        1e-6,
    );
    check_numbers(
        gradient(1),
        &[
            0.0032158, -0.3117912, 0.2067155, 0.0714679, -0.0015068, 0.0145542, 0.0149625,
            0.0149283, -0.0010355, 0.1801014, -0.1343188, -0.0523491, 0.0000000, 0.0000000,
            0.0000000, 0.0000000, -0.0006735, 0.1171356, -0.0873592, -0.0340471, 0.1783509,
            -0.1986017, -0.4872251, 0.0295769, -0.0886219, 0.1488420, 0.1981487, 0.1601212,
            0.0400936, -0.0222341, -0.1291678, 0.0847627, 0.0000000, 0.0000000, 0.0000000,
            0.0000000, -0.1298226, 0.0719937, 0.4182442, -0.2744608,
        ],
        1e-6,
    );
    check_numbers(
        gradient(2),
        &[
            -0.1967795, 0.4731816, -0.4635906, -1.5549809, -1.3364402, 0.1053442, -0.0009301,
            0.1617590, -0.1206391, 0.0000000, 0.0000000, 0.0000000, -0.0044187, 0.7684972,
            -0.5731417, 0.4717080, -0.0525664, 1.1474951, 0.0917969, 0.0398453, 0.1614813,
            -0.1638344, -0.1684314, -0.1680461, 0.0000000, 0.0000000, 0.0000000, -0.5468897,
            -0.5622348, -0.5609488,
        ],
        1e-6,
    );
    Ok(())
}

#[test]
fn half_precision_is_computed_in_single() -> Result<()> {
    let narrow = operands().map(|tensor| tensor.to_dtype(DType::F16).unwrap());
    let single = narrow.clone().map(|tensor| tensor.to_dtype(DType::F32).unwrap());
    let found = attend(narrow, &AttentionOptions::default())?;
    assert_eq!(found.dtype(), DType::F16);
    let expected = attend(single, &AttentionOptions::default())?.to_dtype(DType::F16)?;
    check_close(&found, &expected, 0.0);
    Ok(())
}

#[test]
fn dropout_drops_probabilities_by_its_seed() -> Result<()> {
    let with = |p: f64, seed: u64| {
        let dropout = Some(AttentionDropout { p, seed });
        attend(operands(), &AttentionOptions { dropout, ..AttentionOptions::default() })
    };
    check_close(&with(0.5, 1)?, &with(0.5, 1)?, 0.0);
    assert_ne!(numbers(&with(0.5, 1)?), numbers(&with(0.5, 2)?));
    check_numbers(&with(1.0, 1)?, &[0.0; 18], 0.0);
    check_close(&with(0.0, 1)?, &attend(operands(), &AttentionOptions::default())?, 0.0);
    Ok(())
}

#[test]
fn operands_that_do_not_fit_are_refused() {
    let [q, k, v] = operands();
    let check = |operands: [Tensor; 3], options: AttentionOptions, part: &str| {
        let error = attend(operands, &options).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Operator);
        assert!(error.to_string().contains(part), "{error}");
    };
    let plain = AttentionOptions::default;
    check([q.clone(), v.clone(), v.clone()], plain(), "must have the same last axis");
    check([q.clone(), k.clone(), q.clone()], plain(), "key and value the same one before it");
    check([noise(&[4]), k.clone(), v.clone()], plain(), "must have two axes or more");
    let scale = AttentionOptions { scale: Some(-1.0), ..plain() };
    check([q.clone(), k.clone(), v.clone()], scale, "the scale is -1");
    let mask = masked(AttentionMask::Keep(noise(&[3, 5])));
    check([q.clone(), k.clone(), v.clone()], mask, "must be of integers, found F32");
    let half = q.to_dtype(DType::F16).unwrap();
    check([half, k, v], plain(), "have types [F16, F32, F32], expected one");
}

/// A layer of width 4 with two heads and the weights that the values of torch were made with.
fn multihead() -> Result<MultiheadAttention> {
    let out = Linear::from_tensors(noise(&[4, 4]), Some((noise(&[4]) * 0.1)?))?;
    let packed = InProjection::Packed(noise(&[12, 4]).into());
    MultiheadAttention::from_params(2, packed, Some((noise(&[12]) * 0.3)?.into()), out)
}

fn attend_by_heads(
    layer: &MultiheadAttention,
    [query, key, value]: [Tensor; 3],
    mask: AttentionMask,
) -> Result<Tensor> {
    let _lenient = flags::strict_quantization(false);
    let [query, key, value] = [query, key, value].map(Value::from);
    layer.attend(&query, &key, &value, &mask)?.dequantize()
}

#[test]
fn several_heads_compute_what_torch_computes() -> Result<()> {
    let layer = multihead()?;
    let (x, memory) = (noise(&[2, 3, 4]), (noise(&[2, 5, 4]) * 0.8)?);
    let own = || [x.clone(), x.clone(), x.clone()];
    let expected = &[
        7.9064156,
        -7.5235360,
        -0.1205420,
        -2.3322866,
        4.6619859,
        -12.3424382,
        -3.3566462,
        -6.5986719,
        6.4934076,
        -9.4812798,
        -1.4068895,
        -4.4657236,
        1.7303313,
        0.9438720,
        -1.7507257,
        -0.2100804,
        7.4412740,
        -12.8654985,
        -0.8910664,
        -7.8482385,
        -7.5711430,
        -10.5466700,
        -6.5688069,
        -6.0946850,
    ];
    check_numbers(&attend_by_heads(&layer, own(), AttentionMask::None)?, expected, 2e-5);
    check_numbers(&crate::common::float(&layer, &x)?, expected, 2e-5);
    // Without a batch.
    let one = own().map(|x| x.get(1).unwrap());
    check_numbers(&attend_by_heads(&layer, one, AttentionMask::None)?, &expected[12..], 2e-5);
    check_numbers(
        &attend_by_heads(&layer, own(), AttentionMask::Causal)?,
        &[
            4.6115251,
            -12.4210165,
            -3.4101458,
            -6.6579330,
            4.6568158,
            -12.3499950,
            -3.3616974,
            -6.6056997,
            6.4934076,
            -9.4812798,
            -1.4068895,
            -4.4657236,
            -0.1517226,
            7.2245762,
            5.7590819,
            -3.9885602,
            7.4973659,
            -12.7523494,
            -0.8091291,
            -7.8322859,
            -7.5711430,
            -10.5466700,
            -6.5688069,
            -6.0946850,
        ],
        2e-5,
    );
    check_numbers(
        &attend_by_heads(&layer, [x.clone(), memory.clone(), memory], AttentionMask::None)?,
        &[
            6.4955899,
            -10.4876116,
            -1.1883849,
            -2.7533144,
            5.1764182,
            -8.0515425,
            -1.6541700,
            -1.9098444,
            5.2996979,
            -7.5120517,
            -1.2520038,
            -2.0435917,
            0.8600746,
            -4.8817137,
            -5.0012618,
            2.9492972,
            6.4796531,
            -6.3385493,
            -1.5354092,
            -3.4028144,
            -0.0146083,
            -7.8723238,
            -2.4622326,
            -1.7191794,
        ],
        2e-5,
    );
    Ok(())
}

#[test]
fn keys_and_values_may_have_widths_of_their_own() -> Result<()> {
    let weights = [&[4, 4], &[4, 3], &[4, 5]].map(|shape| Param::new(noise(shape)));
    let out = Linear::from_tensors((noise(&[4, 4]) * 0.5)?, None)?;
    let layer = MultiheadAttention::from_params(2, InProjection::Separate(weights), None, out)?;
    let operands = [noise(&[2, 3, 4]), noise(&[2, 5, 3]), noise(&[2, 5, 5])];
    check_numbers(
        &attend_by_heads(&layer, operands, AttentionMask::None)?,
        &[
            4.2289555,
            -15.8913627,
            -9.5967475,
            -1.9227443,
            4.1947423,
            -17.4652163,
            -10.0664927,
            -5.1171353,
            4.1884005,
            -17.4528286,
            -10.0688530,
            -5.0648493,
            0.0974960,
            6.2963127,
            3.9086083,
            1.0447599,
            -0.5803007,
            4.5507775,
            2.5867466,
            1.5844793,
            -2.9080534,
            -0.1984188,
            -2.4149751,
            3.1346832,
        ],
        2e-5,
    );
    let slots = named_slots(&layer);
    let names: Vec<&str> = slots.iter().take(3).map(|entry| entry.name()).collect();
    assert_eq!(
        names,
        ["q_proj_weight_quantizer", "k_proj_weight_quantizer", "v_proj_weight_quantizer"]
    );
    Ok(())
}

#[test]
fn parameters_are_made_and_named_as_in_torch() -> Result<()> {
    let weights = Weights::new();
    let options = MultiheadAttentionOptions { kdim: Some(3), ..Default::default() };
    MultiheadAttention::new(4, 2, Default::default(), weights.vb().pp("a"))?;
    MultiheadAttention::new(4, 2, options, weights.vb().pp("b"))?;
    let data = weights.0.data().lock().unwrap();
    let mut names: Vec<&str> = data.keys().map(String::as_str).collect();
    names.sort_unstable();
    assert_eq!(
        names,
        [
            "a.in_proj_bias",
            "a.in_proj_weight",
            "a.out_proj.bias",
            "a.out_proj.weight",
            "b.in_proj_bias",
            "b.k_proj_weight",
            "b.out_proj.bias",
            "b.out_proj.weight",
            "b.q_proj_weight",
            "b.v_proj_weight",
        ]
    );
    Ok(())
}

#[test]
fn gradients_reach_every_weight_of_every_head() -> Result<()> {
    let weights = Weights::new();
    let layer = MultiheadAttention::new(4, 2, Default::default(), weights.vb())?;
    let _lenient = flags::strict_quantization(false);
    let x: Value = noise(&[2, 3, 4]).into();
    let y = layer.attend(&x, &x, &x, &AttentionMask::Causal)?.dequantize()?;
    let gradients = y.sqr()?.sum_all()?.backward()?;
    for (name, parameter) in named_parameters(&layer) {
        let var = parameter.downcast_ref::<Param>().unwrap().var().unwrap();
        let gradient = gradients.get(&var).unwrap_or_else(|| panic!("no gradient for {name}"));
        assert!(numbers(gradient).iter().any(|g| g.abs() > 1e-6), "{name}");
    }
    Ok(())
}

fn fill(model: &dyn fastforward::Module, queries: &[&str]) -> Result<()> {
    let mut config = QuantizationConfig::for_model(model);
    for query in queries {
        let dynamic = QuantizerSpec::DynamicLinear(DynamicLinearQuantizerConfig::new(8));
        config.add_rule(*query, dynamic)?;
    }
    config.initialize(model, InitializeOptions::default())?;
    Ok(())
}

/// The same with weights so small that the softmax is not sharp.
fn gentle() -> Result<MultiheadAttention> {
    let layer = multihead()?;
    for (_, parameter) in named_parameters(&layer) {
        let parameter = parameter.downcast_ref::<Param>().unwrap();
        parameter.set(&(parameter.tensor() * 0.3)?)?;
    }
    Ok(layer)
}

/// Rules for inputs alone, and rules for outputs alone with the input quantized, are enough for strict mode, causal or not.
#[test]
fn usual_rules_fill_what_strict_mode_asks_for() -> Result<()> {
    let x = noise(&[2, 3, 4]);
    let by_input = gentle()?;
    fill(&by_input, &["**/[quantizer:parameter/weight]", "**/[quantizer:activation/input]"])?;
    let by_output = gentle()?;
    fill(&by_output, &["**/[quantizer:parameter/weight]", "**/[quantizer:activation/output]"])?;
    let slot = QuantizerSlot::input();
    let place = vec![slot.clone()];
    fill(&place, &["**"])?;
    let quantized = slot.apply(&x.clone().into())?;
    for mask in [AttentionMask::None, AttentionMask::Causal] {
        let own = [x.clone(), x.clone(), x.clone()];
        let expected = attend_by_heads(&gentle()?, own, mask.clone())?;
        let float: Value = x.clone().into();
        let y = by_input.attend(&float, &float, &float, &mask)?;
        check_close(&y.dequantize()?, &expected, 0.02);
        let y = by_output.attend(&quantized, &quantized, &quantized, &mask)?;
        assert!(y.is_quantized());
        check_close(&y.dequantize()?, &expected, 0.02);
    }
    Ok(())
}

#[test]
fn strict_mode_names_the_step_that_is_not_quantized() -> Result<()> {
    let model = vec![multihead()?];
    name_slots(&model);
    let x: Value = noise(&[2, 3, 4]).into();
    let error = model[0].attend(&x, &x, &x, &AttentionMask::None).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Strict);
    assert!(
        error.to_string().starts_with("`0`: linear in strict mode: operand `input`"),
        "{error}"
    );

    // Of the slots of the layer itself, none of `attention`.
    fill(&model, &["**/[quantizer:parameter/weight]", "0/[quantizer:activation/input]"])?;
    let error = model[0].attend(&x, &x, &x, &AttentionMask::Causal).unwrap_err();
    let start = "`0.attention`: matmul in strict mode: operand `input` is a float tensor of shape [2, 2, 3, 3]; ";
    assert!(error.to_string().starts_with(start), "{error}");
    Ok(())
}

/// Notes the names of the slots that data goes through.
struct Recorded {
    seen: Arc<Mutex<Vec<String>>>,
    _guards: Vec<OverrideGuard>,
}

struct Note(String, Arc<Mutex<Vec<String>>>);

impl QuantizerOverride for Note {
    fn call(
        &self,
        _: &dyn Quantizer,
        next: &dyn Fn(ArrayView<'_>) -> std::result::Result<Flow, fastforward::Error>,
        x: ArrayView<'_>,
    ) -> std::result::Result<Flow, fastforward::Error> {
        self.1.lock().unwrap().push(self.0.clone());
        next(x)
    }
}

impl Recorded {
    fn on(model: &dyn fastforward::Module) -> Self {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let guards = named_slots(model)
            .into_iter()
            .map(|entry| {
                let note = Note(entry.name().to_owned(), Arc::clone(&seen));
                entry.slot.push_override(Arc::new(note))
            })
            .collect();
        Self { seen, _guards: guards }
    }

    fn names(&self) -> Vec<String> {
        self.seen.lock().unwrap().clone()
    }
}

/// All of the eight slots of the function quantize what the reference says (spec §5.6), with a mask that fits on a grid.
#[test]
fn every_step_has_a_quantizer() -> Result<()> {
    let attention = ScaledDotProductAttention::new();
    fill(&attention, &["**"])?;
    let [q, k, v] = operands().map(Value::from);
    let options = AttentionOptions {
        neg_inf: -50.0,
        dropout: Some(AttentionDropout { p: 0.0, seed: 0 }),
        ..masked(AttentionMask::Keep(keep()))
    };
    let _lenient = flags::strict_quantization(false);
    let seen = Recorded::on(&attention);
    let y = attention.forward(&q, &k, &v, &options)?;
    assert!(y.is_quantized());
    assert_eq!(
        seen.names(),
        [
            "scaled_query_quantizer",
            "scaled_key_quantizer",
            "attn_scores_quantizer",
            "attn_mask_quantizer",
            "masked_scores_quantizer",
            "attn_weights_quantizer",
            "dropout_quantizer",
            "output_quantizer",
        ]
    );
    check_numbers(
        &y.dequantize()?,
        &[
            -0.0235025, -0.1781356, 0.6041027, 0.0000000, 0.0000000, 0.0000000, 0.2033874,
            -0.8407993, 0.8640260, -0.2012588, 0.0784551, -0.6050451, 0.0000000, 0.0000000,
            0.0000000, -0.4101675, -0.1211499, -0.7678083,
        ],
        0.05,
    );
    Ok(())
}
