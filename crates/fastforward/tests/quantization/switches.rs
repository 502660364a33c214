//! Quantization and strictness switched for a part of a model or a thread, always given back; and tags from a forward.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Barrier};
use std::thread;

use candle_core::{Device, Tensor};
use fastforward::module::named_slots;
use fastforward::mpath::Tag;
use fastforward::nn::{Layer, Linear, functional as F};
use fastforward::quantization::quantizer::RangeSettable;
use fastforward::quantization::{
    LinearQuantizer, LinearQuantizerConfig, QuantizerSlot, annotate_operator_metadata,
    disable_quantization, enable_quantization, strict_quantization_for_module,
};
use fastforward::range_setting::{EstimationOptions, EstimatorConfig, NoData, estimate_ranges};
use fastforward::tensor::{Apply, Result, Value};
use fastforward::{ErrorKind, Module, flags};

/// Two linear layers, a product, a sum, a sigmoid and a relu.
#[derive(Module)]
struct Net {
    first: Linear,
    second: Linear,
    product_quantizer: QuantizerSlot,
    sum_quantizer: QuantizerSlot,
    sigmoid_quantizer: QuantizerSlot,
    relu_quantizer: QuantizerSlot,
}

impl Net {
    fn new() -> Self {
        let linear = |seed: f32| {
            let weight: Vec<f32> = (0..4).map(|i| ((i as f32 + seed) * 0.9).sin()).collect();
            let weight = Tensor::from_vec(weight, (2, 2), &Device::Cpu).unwrap();
            let bias = Tensor::new(&[0.1f32, -0.2], &Device::Cpu).unwrap();
            Linear::from_tensors(weight, Some(bias)).unwrap()
        };
        Self {
            first: linear(1.0),
            second: linear(5.0),
            product_quantizer: QuantizerSlot::output(),
            sum_quantizer: QuantizerSlot::output(),
            sigmoid_quantizer: QuantizerSlot::output(),
            relu_quantizer: QuantizerSlot::output(),
        }
    }

    /// The same with a quantizer in every slot.
    fn quantized() -> Self {
        let net = Self::new();
        for entry in named_slots(&net) {
            entry.slot.replace(quantizer(-2.0, 2.0));
        }
        net
    }

    fn forward(&self, x: &Value) -> Result<Value> {
        let a = self.first.forward(x)?;
        let b = self.second.forward(x)?;
        let product = F::mul(&a, &a, &self.product_quantizer)?;
        let sum = F::add(&product, &b, 1.0, &self.sum_quantizer)?;
        let sigmoid = F::sigmoid(&sum, &self.sigmoid_quantizer)?;
        F::relu(&sigmoid, &self.relu_quantizer)
    }
}

fn quantizer(min: f32, max: f32) -> Arc<LinearQuantizer> {
    let quantizer = LinearQuantizer::new(LinearQuantizerConfig::new(4).asymmetric()).unwrap();
    quantizer.set_quantization_range(&[min], &[max]).unwrap();
    Arc::new(quantizer)
}

fn input() -> Value {
    Value::from(Tensor::new(&[[0.37f32, -1.1], [0.83, 0.61]], &Device::Cpu).unwrap())
}

fn floats(value: &Value) -> Vec<Vec<f32>> {
    value.dequantize().unwrap().to_vec2::<f32>().unwrap()
}

fn lenient(net: &Net) -> Vec<Vec<f32>> {
    let _lenient = flags::strict_quantization(false);
    floats(&net.forward(&input()).unwrap())
}

#[test]
fn a_disabled_model_computes_as_the_float_model() {
    let net = Net::quantized();
    let float = lenient(&Net::new());
    let quantized = floats(&net.forward(&input()).unwrap());
    assert_ne!(quantized, float);
    {
        let off = disable_quantization(&net);
        assert_eq!(off.len(), named_slots(&net).len());
        assert!(!flags::strict());
        assert_eq!(floats(&net.forward(&input()).unwrap()), float);
        // Once more changes nothing, and one guard does not take away the other's.
        let again = disable_quantization(&net);
        drop(off);
        assert!(!flags::strict());
        assert_eq!(floats(&net.forward(&input()).unwrap()), float);
        drop(again);
    }
    assert!(flags::strict());
    assert_eq!(floats(&net.forward(&input()).unwrap()), quantized);
}

#[test]
fn a_part_is_enabled_inside_a_disabled_model() {
    let net = Net::quantized();
    let x = input();
    let _off = disable_quantization(&net);
    {
        let _on = enable_quantization(&net.second);
        assert!(!flags::strict(), "enabling leaves strict mode as it is");
        assert!(net.second.forward(&x).unwrap().is_quantized());
        assert!(!net.first.forward(&x).unwrap().is_quantized());
        {
            let _nested = enable_quantization(&net);
            assert!(net.first.forward(&x).unwrap().is_quantized());
        }
        // The inner guard gave back only what it took.
        assert!(net.second.forward(&x).unwrap().is_quantized());
        assert!(!net.first.forward(&x).unwrap().is_quantized());
        // Disabling that comes after the enabling holds.
        let _off_again = disable_quantization(&net.second);
        assert!(!net.second.forward(&x).unwrap().is_quantized());
    }
    assert!(!net.second.forward(&x).unwrap().is_quantized());
}

#[test]
fn stubs_are_not_touched_by_disabling() {
    let net = Net::new();
    net.first.input_quantizer.replace(quantizer(-1.0, 1.0));
    let off = disable_quantization(&net);
    assert_eq!(off.len(), 1);
    assert_eq!(net.first.weight_quantizer.override_count(), 0);
    // A quantizer that is put into an emptied slot while the guard lives is off as well.
    net.first.input_quantizer.replace(quantizer(-2.0, 2.0));
    assert!(!net.first.input_quantizer.apply(&input()).unwrap().is_quantized());
    drop(off);
    assert!(net.first.input_quantizer.apply(&input()).unwrap().is_quantized());
}

/// Spec §8.3: the newest override runs first.
#[test]
fn an_estimator_inside_of_disabling_sees_the_data_and_one_outside_does_not() {
    let options = EstimationOptions { no_data: NoData::Report, ..Default::default() };
    let slot = QuantizerSlot::input();
    slot.replace(quantizer(-1.0, 1.0));
    let slots =
        vec![fastforward::module::SlotEntry { names: vec!["x".into()], slot: slot.clone() }];
    {
        let _off = disable_quantization(&slots);
        let calibration =
            estimate_ranges(&slots, EstimatorConfig::running_minmax(), options.clone()).unwrap();
        let y = slot.apply(&input()).unwrap();
        assert!(!y.is_quantized());
        assert_eq!(floats(&y), floats(&input()));
        let report = calibration.finish().unwrap();
        let range = report.slots[0].range.as_ref().unwrap();
        assert_eq!((range.min[0], range.max[0]), (-1.1, 0.83));
    }
    let range = || slot.quantizer().as_range_settable().unwrap().quantization_range().unwrap();
    let before = range();
    assert!((before.0[0] + 1.1).abs() < 0.1 && (before.1[0] - 0.83).abs() < 0.1, "{before:?}");

    let calibration = estimate_ranges(&slots, EstimatorConfig::running_minmax(), options).unwrap();
    {
        let _off = disable_quantization(&slots);
        slot.apply(&Value::from(Tensor::new(&[100f32], &Device::Cpu).unwrap())).unwrap();
    }
    assert_eq!(calibration.finish().unwrap().slots[0].batches, 0);
    assert_eq!(range(), before);
}

#[test]
fn a_panic_gives_everything_back() {
    let net = Net::quantized();
    let quantized = floats(&net.forward(&input()).unwrap());
    let caught = catch_unwind(AssertUnwindSafe(|| {
        let _off = disable_quantization(&net);
        let _on = enable_quantization(&net.first);
        let _strict = strict_quantization_for_module(false, &net);
        let _inference = flags::inference();
        panic!("unwinds through the guards");
    }));
    assert!(caught.is_err());
    let caught = catch_unwind(AssertUnwindSafe(|| {
        let _all = annotate_operator_metadata(&net, || panic!("unwinds through the recording"));
    }));
    assert!(caught.is_err());
    assert!(flags::strict() && !flags::is_inference());
    for entry in named_slots(&net) {
        assert_eq!((entry.slot.override_count(), entry.slot.strictness()), (0, None));
    }
    assert_eq!(floats(&net.forward(&input()).unwrap()), quantized);
}

#[test]
fn strictness_of_a_module_holds_for_it_alone() {
    let net = Net::new();
    let x = input();
    let is_strict = |result: Result<Value>| match result {
        Ok(_) => false,
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::Strict, "{error}");
            true
        }
    };
    {
        let guard = strict_quantization_for_module(false, &net.first);
        assert_eq!(guard.len(), 4);
        assert!(!is_strict(net.first.forward(&x)) && is_strict(net.second.forward(&x)));
        assert!(flags::strict(), "the thread's switch stays");
        let _inner = strict_quantization_for_module(true, &net.first);
        assert!(is_strict(net.first.forward(&x)));
    }
    assert!(is_strict(net.first.forward(&x)));
    let _lenient = flags::strict_quantization(false);
    let _strict = strict_quantization_for_module(true, &net.second);
    assert!(!is_strict(net.first.forward(&x)) && is_strict(net.second.forward(&x)));
}

#[test]
fn an_error_of_strict_mode_names_operator_operand_and_module() {
    let net = Net::new();
    fastforward::module::name_slots(&net);
    let text = net.forward(&input()).unwrap_err().to_string();
    for part in ["`first`", "linear", "operand `input`", "operand `weight`", "[2, 2]"] {
        assert!(text.contains(part), "no {part} in {text}");
    }
}

/// Threads that evaluate one model, while another holds strict mode off for itself.
#[test]
fn a_shared_model_is_evaluated_in_parallel_while_a_thread_is_lenient() {
    let net = Arc::new(Net::quantized());
    let floats_only = Arc::new(Net::new());
    let expected = floats(&net.forward(&input()).unwrap());
    let expected_float = lenient(&floats_only);
    const STRICT: usize = 3;
    let lenient_holds = Arc::new(Barrier::new(STRICT + 1));
    let strict_are_done = Arc::new(Barrier::new(STRICT + 1));
    thread::scope(|scope| {
        for _ in 0..STRICT {
            scope.spawn(|| {
                lenient_holds.wait();
                for _ in 0..20 {
                    assert!(flags::strict());
                    assert_eq!(floats(&net.forward(&input()).unwrap()), expected);
                    let error = floats_only.forward(&input()).unwrap_err();
                    assert_eq!(error.kind(), ErrorKind::Strict);
                }
                strict_are_done.wait();
            });
        }
        scope.spawn(|| {
            let _lenient = flags::strict_quantization(false);
            lenient_holds.wait();
            for _ in 0..20 {
                assert_eq!(floats(&floats_only.forward(&input()).unwrap()), expected_float);
                assert_eq!(floats(&net.forward(&input()).unwrap()), expected);
            }
            strict_are_done.wait();
            assert!(!flags::strict());
        });
    });
    assert!(flags::strict());
}

/// The tags `before/..` and `after/..` of every slot that has some.
fn neighbours(net: &Net) -> BTreeMap<String, Vec<String>> {
    let mut all = BTreeMap::new();
    for entry in named_slots(net) {
        let tags = entry.slot.metadata().leaf_tags();
        let tags: Vec<String> = tags
            .iter()
            .map(|tag| tag.as_str().to_owned())
            .filter(|tag| tag.starts_with("before/") || tag.starts_with("after/"))
            .collect();
        all.insert(entry.name().to_owned(), tags);
    }
    all
}

/// The example of spec §9.
#[test]
fn one_forward_tells_what_stands_next_to_each_slot() {
    let expected: BTreeMap<String, Vec<String>> = [
        ("first.input_quantizer", &["before/linear"][..]),
        ("first.weight_quantizer", &["before/linear"]),
        ("first.bias_quantizer", &["before/linear"]),
        ("first.output_quantizer", &["after/linear", "before/mul"]),
        ("second.input_quantizer", &["before/linear"]),
        ("second.weight_quantizer", &["before/linear"]),
        ("second.bias_quantizer", &["before/linear"]),
        ("second.output_quantizer", &["after/linear", "before/add"]),
        ("product_quantizer", &["after/mul", "before/add"]),
        ("sum_quantizer", &["after/add", "before/sigmoid"]),
        ("sigmoid_quantizer", &["after/sigmoid", "before/relu"]),
        ("relu_quantizer", &["after/relu"]),
    ]
    .into_iter()
    .map(|(name, tags)| (name.to_owned(), tags.iter().map(|&tag| tag.to_owned()).collect()))
    .collect();
    // Stubs and quantizers are tagged alike, and quantizers do not change what is recorded.
    for net in [Net::new(), Net::quantized()] {
        let held: Vec<_> = named_slots(&net).iter().map(|entry| entry.slot.quantizer()).collect();
        let mut seen = None;
        annotate_operator_metadata(&net, || {
            seen = Some(net.forward(&input())?);
            Ok(())
        })
        .unwrap();
        let mut found = neighbours(&net);
        found.values_mut().for_each(|tags| tags.sort());
        assert_eq!(found, expected);
        assert_eq!(floats(&seen.unwrap()), lenient(&Net::new()));
        for (entry, quantizer) in named_slots(&net).iter().zip(held) {
            assert!(entry.slot.holds(&quantizer) && entry.slot.override_count() == 0);
        }
        // The prefixes are tags too, as of every tag.
        assert!(net.sum_quantizer.tags().contains(Tag::new("before")));
        assert!(flags::strict() && !flags::is_inference());
    }
}

#[test]
fn tags_add_up_over_calls_and_a_failed_forward_tags_nothing() {
    let net = Net::new();
    let error = annotate_operator_metadata(&net, || {
        net.first.forward(&input())?;
        Err(fastforward::tensor::Error::operator("test", "fails after the first layer"))
    })
    .unwrap_err();
    assert_eq!(error.to_string(), "test: fails after the first layer");
    assert!(neighbours(&net).values().all(Vec::is_empty));

    let slot = &net.first.output_quantizer;
    let relu = || F::relu(&net.first.forward(&input())?, &net.relu_quantizer).map(drop);
    let sigmoid = || F::sigmoid(&net.first.forward(&input())?, &net.relu_quantizer).map(drop);
    annotate_operator_metadata(&net, relu).unwrap();
    annotate_operator_metadata(&net, sigmoid).unwrap();
    let has = |tag: &str| slot.tags().contains(Tag::new(tag));
    assert!(has("before/relu") && has("before/sigmoid") && has("after/linear"));
    assert!(!has("before/linear"));
}

#[test]
fn slots_of_other_models_are_not_tagged() {
    let (net, other) = (Net::new(), Net::new());
    annotate_operator_metadata(&net, || {
        net.first.forward(&input())?;
        other.first.forward(&input()).map(drop)
    })
    .unwrap();
    assert_eq!(neighbours(&net)["first.output_quantizer"], ["after/linear"]);
    assert!(neighbours(&other).values().all(Vec::is_empty));
    assert_eq!(net.class().name(), "Net");
}

#[test]
fn annotating_and_weights_that_are_kept_do_not_disturb_each_other() {
    let _constants = flags::inference();
    let weight = Tensor::new(&[[0.3f32, -0.9], [0.5, 0.1]], &Device::Cpu).unwrap();
    let layer = Linear::from_tensors(weight, None).unwrap();
    let config = LinearQuantizerConfig::new(2);
    let quantizer = LinearQuantizer::new(config).unwrap();
    quantizer.set_quantization_range(&[-1.0], &[1.0]).unwrap();
    layer.weight_quantizer.replace(Arc::new(quantizer));
    let x = Tensor::new(&[[1f32, 2.0]], &Device::Cpu).unwrap();
    let forward = || {
        let _lenient = flags::strict_quantization(false);
        layer.forward_tensor(&x).unwrap().dequantize().unwrap().to_vec2::<f32>().unwrap()
    };
    // A forward keeps the quantized weight; annotating sees the slot all the same.
    let quantized = forward();
    annotate_operator_metadata(&layer, || layer.forward_tensor(&x).map(drop)).unwrap();
    assert!(layer.weight_quantizer.tags().contains(Tag::new("before/linear")));
    assert_eq!(forward(), quantized);
    // Annotating first keeps nothing.
    let another = Linear::from_tensors(layer.weight.tensor(), None).unwrap();
    another.weight_quantizer.replace(layer.weight_quantizer.quantizer());
    annotate_operator_metadata(&another, || another.forward_tensor(&x).map(drop)).unwrap();
    let _lenient = flags::strict_quantization(false);
    let y = another.forward_tensor(&x).unwrap().dequantize().unwrap();
    assert_eq!(y.to_vec2::<f32>().unwrap(), quantized);
}
