//! What cannot work is refused, and leaves the model as it was.

use candle_core::Tensor;
use fastforward::algorithms::TuneOptions;
use fastforward::module::Module;
use fastforward::nn::{Embedding, Layer, Linear, ReLU, Sequential};
use fastforward::quantization::{QuantizerSlot, TrainableOptions, trainable};
use fastforward::tensor::{Result, Value};
use fastforward::{ErrorKind, Module as DeriveModule};

use crate::common::*;

#[track_caller]
fn check(algorithms: &str, expected: &[&str]) {
    let (model, data) = (network(), batches(1));
    let targets = quantize(&model, &configuration(3, true, algorithms), &data);
    let before = weights(&model);
    let error = run(&model, &targets, &data).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Rule, "{error}");
    let text = error.to_string();
    for part in expected {
        assert!(text.contains(part), "`{part}` is missing in\n{text}");
    }
    assert_eq!(weights(&model), before);
}

#[test]
fn everything_that_cannot_work_is_said_at_once() {
    check(
        "
[[algorithm]]
type = \"equalize\"
[[algorithm]]
type = \"join_ranges\"
[[algorithm]]
type = \"gptq\"
query = \"9\"
[[algorithm]]
type = \"adaround\"
query = \"1\"
[[algorithm]]
type = \"hqq\"
[[algorithm]]
type = \"adaround\"
block_layers = 2
",
        &[
            "5 algorithms cannot work",
            "quant.toml:9: `equalize` comes before ranges; hand it to `prepare`, calibrate, and hand `tune` the others",
            "quant.toml:13: `9` matches nothing",
            "quant.toml:16: `1` matches no weight that `adaround` can work on: none of them has a quantizer",
            "quant.toml:19: there is no weight that `hqq` can work on: `0.weight_quantizer`: its quantizer is symmetric",
            "quant.toml:21: `block_layers` cuts a graph into blocks",
        ],
    );
}

#[test]
fn biases_are_corrected_on_the_way_in_graphs_only() {
    let section = "[[algorithm]]\ntype = \"gptq\"\ncorrect_bias = true\n";
    let (model, config) = (network(), configuration(3, true, &section.repeat(2)));
    let error = fastforward::algorithms::targets(&config, &model).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Rule, "{error}");
    let text = error.to_string();
    for line in ["quant.toml:8: ", "quant.toml:11: "] {
        assert!(text.contains(&format!("{line}`correct_bias` is for graph files")), "{text}");
    }
}

#[test]
fn ranges_after_codes_are_refused() {
    let text =
        "[[algorithm]]\ntype = \"gptq\"\n[[algorithm]]\ntype = \"sequential_mse\"\nquery = \"5\"\n";
    check(
        text,
        &[
            "`sequential_mse` chooses ranges of weights whose codes `gptq` (quant.toml:8) has chosen",
        ],
    );
}

#[test]
fn no_data_and_data_that_is_no_number() {
    let (model, data) = (network(), batches(2));
    let text =
        "[[algorithm]]\ntype = \"activation_weighted_mse\"\n[[algorithm]]\ntype = \"adaround\"\n";
    let targets = quantize(&model, &configuration(3, true, text), &data);
    let slots = |model: &Sequential| -> Vec<String> {
        let all = fastforward::module::named_slots(model);
        all.iter().map(|one| format!("{:?}", one.slot.quantizer().to_saved())).collect()
    };
    let before = (weights(&model), slots(&model));
    let error = run(&model, &targets, &[]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NoData);
    assert_eq!(error.to_string(), "no calibration data, but 4 layers whose inputs are needed");

    let mut wrong = numbers(&data[1]);
    wrong[7] = f32::NAN;
    let wrong = Tensor::from_vec(wrong, data[1].shape(), data[1].device()).unwrap();
    let error = run(&model, &targets, &[data[0].clone(), wrong]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidData, "{error}");
    assert!(error.to_string().starts_with("`0`: "), "{error}");
    assert_eq!((weights(&model), slots(&model)), before);
}

#[test]
fn an_error_of_the_forward_or_the_data_comes_back_and_nothing_has_changed() {
    let (model, data) = (network(), batches(3));
    let text = "[[algorithm]]\ntype = \"gptq\"\n";
    let targets = quantize(&model, &configuration(3, true, text), &data);
    let before = weights(&model);
    let calls = std::cell::Cell::new(0);
    let _lenient = fastforward::flags::strict_quantization(false);
    let forward = |model: &Sequential, x: &Tensor| {
        calls.set(calls.get() + 1);
        match calls.get() {
            11 => Err(fastforward::tensor::Error::new(ErrorKind::Io, "the camera is gone")),
            _ => model.forward_tensor(x),
        }
    };
    let batches = || data.iter().cloned().map(Ok);
    let options = TuneOptions::default();
    let error =
        fastforward::algorithms::tune(&model, &targets, batches, forward, &options).unwrap_err();
    assert_eq!(error.to_string(), "the camera is gone");
    assert_eq!(weights(&model), before);
    let broken = || {
        let gone = fastforward::tensor::Error::new(ErrorKind::Io, "the disk is gone");
        std::iter::once(Err::<Tensor, _>(gone))
    };
    let forward = |model: &Sequential, x: &Tensor| model.forward_tensor(x);
    let error =
        fastforward::algorithms::tune(&model, &targets, broken, forward, &options).unwrap_err();
    assert_eq!(error.to_string(), "the disk is gone");
}

#[test]
fn a_layer_without_a_range_is_named() {
    let model = network();
    let config = configuration(3, true, "[[algorithm]]\ntype = \"gptq\"\n");
    let targets = quantize(&model, &config, &[]);
    let error = run(&model, &targets, &batches(1)).unwrap_err();
    assert!(
        error
            .to_string()
            .contains("`0.weight_quantizer`: its quantizer has no range; calibrate first"),
        "{error}"
    );
}

#[test]
fn a_quantizer_that_learns_is_not_replaced() {
    let (model, data) = (network(), batches(1));
    for algorithm in ["gptq", "hqq"] {
        let text = format!("[[algorithm]]\ntype = \"{algorithm}\"\n");
        let config = configuration(3, algorithm != "hqq", &text);
        let model = if algorithm == "gptq" { &model } else { &network() };
        let targets = quantize(model, &config, &data);
        let learned = trainable(model, TrainableOptions::default()).unwrap();
        let error = run(model, &targets, &data).unwrap_err();
        let expected =
            "`0.weight_quantizer`: its quantizer is being trained; `finish` the training first";
        assert!(error.to_string().contains(expected), "{error}");
        learned.finish().unwrap();
        run(model, &targets, &data).unwrap();
    }
}

#[test]
fn a_panic_leaves_the_model_as_it_was() {
    let (model, data) = (network(), batches(2));
    let targets =
        quantize(&model, &configuration(3, true, "[[algorithm]]\ntype = \"gptq\"\n"), &data);
    let (before, expected) = (weights(&model), outputs(&model, &data));
    let calls = std::cell::Cell::new(0);
    let forward = |model: &Sequential, x: &&Tensor| {
        calls.set(calls.get() + 1);
        // In the pass for the third layer, when two have other weights.
        assert!(calls.get() < 6, "a panic of the caller's");
        let _lenient = fastforward::flags::strict_quantization(false);
        model.forward_tensor(x)
    };
    let options = TuneOptions::default();
    let tuned = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        fastforward::algorithms::tune(&model, &targets, || data.iter().map(Ok), forward, &options)
    }));
    assert!(tuned.is_err());
    assert_eq!(weights(&model), before);
    assert_eq!(outputs(&model, &data), expected);
    run(&model, &targets, &data).unwrap();
    assert_ne!(weights(&model), before);
}

/// A layer that another one shares its weight with, an embedding, one that no data comes to, one that is well.
#[derive(DeriveModule)]
struct Odd {
    embedding: Embedding,
    tied: Linear,
    also_tied: Linear,
    idle: Linear,
    good: Linear,
    relu: ReLU,
    weight_quantizer: QuantizerSlot,
}

impl Layer for Odd {
    fn forward(&self, x: &Value) -> Result<Value> {
        let x = self.relu.forward(&self.tied.forward(x)?)?;
        self.good.forward(&self.also_tied.forward(&x)?)
    }
}

#[test]
fn weights_that_are_no_layers_are_kept_with_the_reason() {
    let tied = Linear::from_tensors(noise(&[4, 4], 1), None).unwrap();
    let model = Odd {
        embedding: Embedding::from_tensors(noise(&[6, 4], 2), Default::default()).unwrap(),
        also_tied: Linear::from_params(tied.weight.clone(), None).unwrap(),
        tied,
        idle: Linear::from_tensors(noise(&[4, 4], 3), None).unwrap(),
        good: Linear::from_tensors(noise(&[2, 4], 4), None).unwrap(),
        relu: ReLU::new(),
        weight_quantizer: QuantizerSlot::weight(&[1]),
    };
    let data = [noise(&[32, 4], 5)];
    let targets =
        quantize(&model, &configuration(3, true, "[[algorithm]]\ntype = \"gptq\"\n"), &data);
    // Those that no data comes to have ranges as well.
    for slot in [&model.embedding.weight_quantizer, &model.idle.weight_quantizer] {
        let quantizer = slot.quantizer();
        let settable = quantizer.as_range_settable().unwrap();
        let tiles = if slot.id() == model.idle.weight_quantizer.id() { 4 } else { 6 };
        settable.set_quantization_range(&vec![-1.0; tiles], &vec![1.0; tiles]).unwrap();
    }
    let reports = run(&model, &targets, &data).unwrap();
    let changed: Vec<&str> = reports[0].changes.iter().map(|one| one.name.as_str()).collect();
    assert_eq!(changed, ["good"]);
    let kept = reports[0].kept.join("\n");
    for expected in [
        "`tied.weight_quantizer`: its weight is also `also_tied.weight`",
        "`also_tied.weight_quantizer`: its weight is also `tied.weight`",
        "`embedding.weight_quantizer`: a `Embedding` is no matrix product",
        "`idle.weight_quantizer`: the forward of the first batch does not call its operator on this thread",
        "`weight_quantizer`: a `Odd` is no matrix product",
    ] {
        assert!(kept.contains(expected), "`{expected}` is missing in\n{kept}");
    }
    // Asked for alone, there is nothing to do.
    let context = fastforward::quantization::quant_init::model_context(&model);
    let mut target = targets[0].clone();
    target.query = Some(context.query("idle").unwrap());
    let error = run(&model, &[target], &data).unwrap_err();
    assert!(error.to_string().contains("no weight remains that `gptq` can work on"), "{error}");
    let _: &dyn Module = &model;
}
