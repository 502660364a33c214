//! Scales and offsets that learn: gradients by formula, a training that PyTorch made, and the way back.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

use candle_core::{Device, Tensor, Var};
use candle_nn::{AdamW, Optimizer, ParamsAdamW};
use fastforward::module::SlotEntry;
use fastforward::nn::{Layer, Linear, Param};
use fastforward::quantization::affine::AffineParameters;
use fastforward::quantization::quantizer::Quantizer;
use fastforward::quantization::{
    DynamicLinearQuantizer, DynamicLinearQuantizerConfig, Granularity, LinearQuantizer,
    LinearQuantizerConfig, QuantizerSlot, TrainableOptions, TrainableQuantizer, trainable,
};
use fastforward::tensor::{Apply, Value};
use fastforward::{ErrorKind, flags};
use serde_json::Value as Json;

fn with_parameters(
    config: LinearQuantizerConfig,
    scale: Vec<f32>,
    offset: Option<Vec<f32>>,
) -> Arc<LinearQuantizer> {
    let quantizer = LinearQuantizer::new(config).unwrap();
    let num_bits = quantizer.config().num_bits;
    let parameters = AffineParameters { num_bits, narrow_range: false, scale, offset };
    quantizer.set_parameters(parameters).unwrap();
    Arc::new(quantizer)
}

fn entries(slots: &[(&str, &QuantizerSlot)]) -> Vec<SlotEntry> {
    slots
        .iter()
        .map(|(name, slot)| SlotEntry { names: vec![(*name).to_owned()], slot: (*slot).clone() })
        .collect()
}

fn asymmetric(num_bits: u32) -> LinearQuantizerConfig {
    LinearQuantizerConfig::new(num_bits).asymmetric()
}

/// Spec §4.5: `x = [-10, .3, .9, 10]`, `s = .5`, `o = .2`, 3 bits, upstream ones.
#[test]
fn gradients_are_those_of_the_formula() {
    for (lsq, factor) in [(false, 1.0), (true, 1.0 / (4.0f32 * 3.0).sqrt())] {
        let slot = QuantizerSlot::input();
        slot.replace(with_parameters(asymmetric(3), vec![0.5], Some(vec![0.2])));
        let options = TrainableOptions { lsq_gradient_scaling: lsq, ..Default::default() };
        let learned = trainable(&entries(&[("x", &slot)]), options).unwrap();
        let names: Vec<String> = learned.named_vars().into_iter().map(|(name, _)| name).collect();
        assert_eq!(names, ["x.scale", "x.offset"]);
        let x = Var::new(&[-10f32, 0.3, 0.9, 10.0], &Device::Cpu).unwrap();
        let y = slot.apply(&Value::from(x.as_tensor())).unwrap().dequantize().unwrap();
        assert_eq!(y.to_vec1::<f32>().unwrap(), [-2.0, 0.5, 1.0, 1.5]);
        let gradients = y.sum_all().unwrap().backward().unwrap();
        let of = |var: &Var| gradients.get(var.as_tensor()).unwrap().to_vec1::<f32>().unwrap();
        let vars = learned.vars();
        assert_eq!(of(&x), [0.0, 1.0, 1.0, 0.0]);
        // -4 and 3 where clipped, 1 - 0.6 and 2 - 1.8 inside.
        let (scale, offset) = (of(&vars[0])[0], of(&vars[1])[0]);
        assert!((scale - factor * -0.4).abs() < 1e-6, "{scale}");
        assert!((offset - 1.0).abs() < 1e-6, "{offset}: the offset has no factor");
    }
}

/// Each tile has a scale of its own, and the factor counts the elements of one tile.
#[test]
fn gradients_of_tiles_stay_in_their_tiles() {
    let config = LinearQuantizerConfig::new(3).with_granularity(Granularity::per_channel(0));
    for (lsq, factor) in [(false, 1.0), (true, 1.0 / (2.0f32 * 3.0).sqrt())] {
        let slot = QuantizerSlot::weight(&[2, 2]);
        slot.replace(with_parameters(config.clone(), vec![0.5, 0.25], None));
        let options = TrainableOptions { lsq_gradient_scaling: lsq, ..Default::default() };
        let learned = trainable(&entries(&[("w", &slot)]), options).unwrap();
        let x = Var::new(&[[0.3f32, 9.0], [0.3, 0.1]], &Device::Cpu).unwrap();
        // Transposed and back: what is not contiguous has the same gradients.
        let strided = x.as_tensor().t().unwrap().contiguous().unwrap().t().unwrap();
        let y = slot.apply(&Value::from(strided)).unwrap().dequantize().unwrap();
        let upstream = Tensor::new(&[[1f32, 2.0], [3.0, 4.0]], &Device::Cpu).unwrap();
        let loss = (y * upstream).unwrap().sum_all().unwrap();
        let gradients = loss.backward().unwrap();
        let of = |var: &Var| gradients.get(var.as_tensor()).unwrap().clone();
        assert_eq!(of(&x).to_vec2::<f32>().unwrap(), [[1.0, 0.0], [3.0, 4.0]]);
        let scale = of(&learned.vars()[0]).to_vec1::<f32>().unwrap();
        // r - p: 1 - 0.6, 3 where clipped; 1 - 1.2, 0 - 0.4.
        for (found, expected) in scale.iter().zip([0.4 + 6.0, 3.0 * -0.2 + 4.0 * -0.4]) {
            assert!((found - factor * expected).abs() < 1e-5, "{scale:?}");
        }
    }
}

/// What is quantized when `finish` is through is what was quantized before it.
#[test]
fn finish_puts_linear_quantizers_back() {
    let (input, weight, shared) =
        (QuantizerSlot::input(), QuantizerSlot::weight(&[2]), QuantizerSlot::output());
    let (stub, dynamic) = (QuantizerSlot::input(), QuantizerSlot::input());
    let quantizer = with_parameters(asymmetric(8), vec![0.1], Some(vec![3.3]));
    let symmetric = with_parameters(LinearQuantizerConfig::new(4), vec![0.3], None);
    input.replace(quantizer.clone());
    shared.replace(quantizer);
    weight.replace(symmetric.clone());
    let per_batch =
        Arc::new(DynamicLinearQuantizer::new(DynamicLinearQuantizerConfig::new(8)).unwrap());
    dynamic.replace(per_batch.clone());
    let slots = entries(&[
        ("input", &input),
        ("weight", &weight),
        ("shared", &shared),
        ("stub", &stub),
        ("dynamic", &dynamic),
    ]);
    let learned = trainable(&slots, TrainableOptions::default()).unwrap();
    let names: Vec<String> = learned.named_vars().into_iter().map(|(name, _)| name).collect();
    assert_eq!(names, ["input.scale", "input.offset", "weight.scale"]);
    assert!(input.holds(&shared.quantizer()), "one quantizer stays one");
    assert!(stub.is_stub() && dynamic.holds(&(per_batch as Arc<dyn Quantizer>)));
    // To queries and to what is saved it is a linear quantizer.
    assert_eq!(input.class().name(), "LinearQuantizer");
    assert_eq!(
        input.quantizer().to_string(),
        "LinearQuantizer(num_bits=8, symmetric=False, granularity=PerTensor())"
    );
    // A second call finds what learns already.
    let again = trainable(&slots, TrainableOptions::default()).unwrap();
    assert_eq!(again.vars()[0].as_tensor().id(), learned.vars()[0].as_tensor().id());

    learned.vars()[0].set(&Tensor::new(&[0.2f32], &Device::Cpu).unwrap()).unwrap();
    let x = Value::from(Tensor::new(&[1.93f32, -0.4], &Device::Cpu).unwrap());
    let through = |slot: &QuantizerSlot| {
        let y = slot.apply(&x).unwrap().dequantize().unwrap();
        y.to_vec1::<f32>().unwrap()
    };
    let before = (through(&input), through(&weight));
    learned.finish().unwrap();
    assert_eq!((through(&input), through(&weight)), before);
    let any: &dyn std::any::Any = &*input.quantizer();
    assert!(any.is::<LinearQuantizer>());
    assert!(input.holds(&shared.quantizer()), "one quantizer stays one");
    assert_eq!(weight.quantizer().to_saved(), symmetric.to_saved());
    let saved = format!("{:?}", input.quantizer().to_saved());
    assert!(saved.contains("scale: [0.2]") && saved.contains("offset: Some([3.3])"), "{saved}");
}

#[test]
fn a_scale_that_training_drove_out_of_the_positive_numbers_is_refused() {
    let slots = [QuantizerSlot::input(), QuantizerSlot::input(), QuantizerSlot::input()];
    for slot in &slots {
        slot.replace(with_parameters(asymmetric(8), vec![0.1], Some(vec![0.0])));
    }
    let all = entries(&[("a", &slots[0]), ("b", &slots[1]), ("c", &slots[2])]);
    let learned = trainable(&all, TrainableOptions::default()).unwrap();
    let set = |at: usize, value: f32| {
        let (_, var) = learned.named_vars().swap_remove(at);
        var.set(&Tensor::new(&[value], &Device::Cpu).unwrap()).unwrap();
    };
    set(0, -0.1);
    set(5, f32::NAN);
    let x = Value::from(Tensor::new(&[1f32], &Device::Cpu).unwrap());
    let error = slots[0].apply(&x).unwrap_err();
    assert!(error.to_string().contains("the learned scale of tile 0 is -0.1"), "{error}");
    let error = learned.finish().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidRange);
    let text = error.to_string();
    assert!(text.contains("`a`: scale -0.1") && text.contains("`c`: offset NaN"), "{text}");
    for slot in &slots {
        let any: &dyn std::any::Any = &*slot.quantizer();
        assert!(any.is::<TrainableQuantizer>(), "nothing was replaced");
    }
}

#[test]
fn quantizers_without_a_range_are_all_named() {
    let slots = [QuantizerSlot::input(), QuantizerSlot::input(), QuantizerSlot::input()];
    let unset = || Arc::new(LinearQuantizer::new(LinearQuantizerConfig::new(4)).unwrap());
    slots[0].replace(unset());
    slots[1].replace(with_parameters(asymmetric(8), vec![0.1], Some(vec![0.0])));
    slots[2].replace(unset());
    let all = entries(&[("a", &slots[0]), ("b", &slots[1]), ("c", &slots[2])]);
    let error = trainable(&all, TrainableOptions::default()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::UnsetQuantizer);
    assert!(error.to_string().contains("`a`") && error.to_string().contains("`c`"), "{error}");
    let any: &dyn std::any::Any = &*slots[1].quantizer();
    assert!(any.is::<LinearQuantizer>(), "nothing was replaced");
}

#[test]
fn what_is_not_to_learn_has_no_gradient() {
    let slot = QuantizerSlot::input();
    slot.replace(with_parameters(asymmetric(3), vec![0.5], Some(vec![0.2])));
    let options = TrainableOptions { offset: false, ..Default::default() };
    let learned = trainable(&entries(&[("x", &slot)]), options).unwrap();
    assert_eq!(learned.named_vars().len(), 1);
    let any: Arc<dyn std::any::Any + Send + Sync> = slot.quantizer();
    let quantizer = any.downcast::<TrainableQuantizer>().unwrap();
    let x = Tensor::new(&[-10f32, 0.3], &Device::Cpu).unwrap();
    let y = slot.apply(&Value::from(x)).unwrap().dequantize().unwrap();
    let gradients = y.sum_all().unwrap().backward().unwrap();
    assert!(gradients.get(quantizer.scale().as_tensor()).is_some());
    assert!(gradients.get(quantizer.offset().unwrap().as_tensor()).is_none());
    // In inference nothing is recorded, and the values are the same.
    let _inference = flags::inference();
    let x = Value::from(Tensor::new(&[-10f32, 0.3], &Device::Cpu).unwrap());
    let constant = slot.apply(&x).unwrap().dequantize().unwrap();
    assert!(!constant.track_op());
    assert_eq!(constant.to_vec1::<f32>().unwrap(), y.to_vec1::<f32>().unwrap());
}

/// `conformance/operators`: three steps of a training with learned scales, as PyTorch computes them.
#[test]
fn a_training_goes_as_in_pytorch() {
    let folder = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../conformance/operators"));
    let text = std::fs::read(folder.join("training.json")).unwrap();
    let file: Json = serde_json::from_slice(&text).unwrap();
    let tensors =
        candle_core::safetensors::load(folder.join("training.safetensors"), &Device::Cpu).unwrap();
    let cases = file["cases"].as_array().unwrap();
    assert_eq!(cases.len(), 2);
    for case in cases {
        train(case, &tensors);
    }
}

fn train(case: &Json, tensors: &HashMap<String, Tensor>) {
    let id = case["id"].as_str().unwrap();
    let stored = |key: &Json| tensors[key.as_str().unwrap()].clone();
    let values = |key: &Json| stored(key).flatten_all().unwrap().to_vec1::<f32>().unwrap();
    let number = |value: &Json| value.as_f64().unwrap();
    let bits = |which: &str| case[which]["num_bits"].as_u64().unwrap() as u32;
    let var = |key: &str| {
        Param::new(Var::from_tensor(&stored(&case["initial"][key])).unwrap().as_tensor().clone())
    };

    let layer = Linear::from_params(var("weight"), Some(var("bias"))).unwrap();
    let rows = LinearQuantizerConfig::new(bits("weight_quantizer"))
        .with_granularity(Granularity::per_channel(0));
    let initial = &case["initial"];
    layer.weight_quantizer.replace(with_parameters(rows, values(&initial["weight_scale"]), None));
    layer.input_quantizer.replace(with_parameters(
        asymmetric(bits("input_quantizer")),
        values(&initial["input_scale"]),
        Some(values(&initial["input_offset"])),
    ));
    let factor = number(&case["weight_quantizer"]["scale_gradient_factor"]);
    let options =
        TrainableOptions { lsq_gradient_scaling: factor != 1.0, ..TrainableOptions::default() };
    let learned = trainable(&layer, options).unwrap();

    let mut vars: Vec<(&str, Var)> = vec![
        ("weight", layer.weight.var().unwrap()),
        ("bias", layer.bias.as_ref().unwrap().var().unwrap()),
    ];
    for (name, var) in learned.named_vars() {
        let name = match name.as_str() {
            "weight_quantizer.scale" => "weight_scale",
            "input_quantizer.scale" => "input_scale",
            "input_quantizer.offset" => "input_offset",
            other => panic!("{id}: {other} should not learn"),
        };
        vars.push((name, var));
    }
    assert_eq!(vars.len(), 5);
    let settings = &case["optimizer"];
    assert_eq!(settings["name"], "AdamW");
    let settings = ParamsAdamW {
        lr: number(&settings["lr"]),
        beta1: number(&settings["betas"][0]),
        beta2: number(&settings["betas"][1]),
        eps: number(&settings["eps"]),
        weight_decay: number(&settings["weight_decay"]),
    };
    let all = vars.iter().map(|(_, var)| var.clone()).collect();
    let mut optimizer = AdamW::new(all, settings).unwrap();

    let tolerance = |key: &str| {
        let text = case[key].as_str().unwrap();
        text.strip_prefix("relative ").unwrap().parse::<f32>().unwrap()
    };
    let (of_gradients, of_parameters) =
        (tolerance("gradient_tolerance"), tolerance("parameter_tolerance"));
    let steps = case["steps"].as_array().unwrap();
    assert_eq!(steps.len(), 3);
    for (at, step) in steps.iter().enumerate() {
        let close = |what: &str, found: &Tensor, key: &Json, tolerance: f32| {
            let found = found.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            let expected = values(key);
            assert_eq!(found.len(), expected.len(), "{id}, step {at}: {what}");
            let largest = expected.iter().fold(0f32, |largest, x| largest.max(x.abs()));
            for (found, expected) in found.iter().zip(&expected) {
                let error = (found - expected).abs();
                assert!(
                    error <= tolerance * largest,
                    "{id}, step {at}: {what} is {found}, expected {expected}"
                );
            }
        };
        let x = Var::from_tensor(&stored(&step["input"])).unwrap();
        let y = layer.forward(&Value::from(x.as_tensor())).unwrap().dequantize().unwrap();
        close("output", &y, &step["output"], of_gradients);
        let difference = (&y - stored(&step["target"])).unwrap();
        let loss = difference.sqr().unwrap().mean_all().unwrap();
        close("loss", &loss, &step["loss"], of_gradients);
        let gradients = loss.backward().unwrap();
        let wanted = &step["gradients"];
        close("gradient of input", gradients.get(&x).unwrap(), &wanted["input"], of_gradients);
        for (name, var) in &vars {
            let gradient = gradients.get(var.as_tensor()).unwrap();
            close(&format!("gradient of {name}"), gradient, &wanted[*name], of_gradients);
        }
        optimizer.step(&gradients).unwrap();
        for (name, var) in &vars {
            close(name, var.as_tensor(), &step["after"][*name], of_parameters);
        }
    }
    learned.finish().unwrap();
    let saved = layer.input_quantizer.quantizer();
    let range = saved.as_range_settable().unwrap().quantization_range();
    assert!(range.is_some(), "{id}: the learned range is kept");
}
