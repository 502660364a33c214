//! What is chosen, and that reports tell the truth.

use candle_core::{DType, Device, Tensor};
use candle_nn::{VarBuilder, VarMap};
use fastforward::algorithms::{Target, TuneOptions};
use fastforward::config::{Algorithm, LayerInputs};
use fastforward::nn::{Conv1d, Layer, Linear};
use fastforward::quantization::affine::SavedQuantizer;
use fastforward::tensor::float::{Conv, Padding};
use ff_kernels::{AdaRoundOptions, Affine, HqqOptions, MomentSums, Tiling, adaround, hqq};

use crate::common::*;

const LAYERS: [&str; 4] = ["0", "2", "5", "7"];

#[test]
fn every_algorithm_improves_every_layer_or_leaves_it() {
    for inputs in ["original", "quantized"] {
        for name in
            ["sequential_mse", "activation_weighted_mse", "gptq", "adaround", "coordinate_descent"]
        {
            let text = format!("[[algorithm]]\ntype = \"{name}\"\ninputs = \"{inputs}\"\n");
            let (model, data) = (network(), batches(3));
            let targets = quantize(&model, &configuration(2, true, &text), &data);
            let reports = run(&model, &targets, &data).unwrap();
            let changes = &reports[0].changes;
            let names: Vec<&str> = changes.iter().map(|one| one.name.as_str()).collect();
            assert_eq!(names, LAYERS, "{name}");
            let worse = changes.iter().find(|one| one.after.unwrap() > one.before);
            assert!(worse.is_none(), "{name} {inputs}: {worse:?}");
            let ratio: f64 = changes.iter().map(|one| one.after.unwrap() / one.before).product();
            let most = if name.ends_with("mse") { 0.9 } else { 0.75 };
            assert!(ratio.powf(0.25) < most, "{name} {inputs}: {ratio} {changes:?}");
        }
    }
}

#[test]
fn the_same_as_the_kernel_on_what_the_layer_is_fed() {
    let x = noise(&[64, 5], 9);
    let weight = noise(&[4, 5], 8);
    let model = Linear::from_tensors(weight.clone(), None).unwrap();
    let config =
        configuration(3, true, "[[algorithm]]\ntype = \"adaround\"\ninputs = \"original\"\n");
    let data = [x.clone()];
    let targets = quantize(&model, &config, &data);
    let Some(SavedQuantizer::Linear(_, Some(parameters))) =
        model.weight_quantizer.quantizer().to_saved()
    else {
        panic!("the weight is calibrated")
    };
    run(&model, &targets, &data).unwrap();

    let mut sums = MomentSums::new(5);
    sums.add(&numbers(&x)).unwrap();
    let expected = adaround(
        &numbers(&weight),
        &sums.finish(),
        &Tiling::new(&[4, 5], &[1, 5]).unwrap(),
        Affine { scale: &parameters.scale, offset: None },
        parameters.grid().unwrap(),
        &AdaRoundOptions::default(),
    );
    assert_eq!(numbers(&model.weight.tensor()), expected.unwrap().weight);
}

/// The error that a report tells is that of the layer's output, as anybody can measure it.
#[test]
fn the_reported_error_is_that_of_the_output() {
    let options = Conv { padding: Padding::Explicit([2]), dilation: [2], groups: 2, stride: [3] };
    let float = Conv1d::from_tensors(noise(&[6, 2, 3], 1), None, options.clone()).unwrap();
    for (algorithm, bits) in [("gptq", 3), ("adaround", 2), ("sequential_mse", 2)] {
        let text = format!("[[algorithm]]\ntype = \"{algorithm}\"\ninputs = \"original\"\n");
        let model = Conv1d::from_tensors(noise(&[6, 2, 3], 1), None, options.clone()).unwrap();
        let data = [noise(&[5, 4, 17], 2), noise(&[3, 4, 11], 3)];
        let config = configuration(bits, true, &text);
        let targets = quantize(&model, &config, &data);
        let before = share(&outputs(&float, &data), &outputs(&model, &data));
        let reports = run(&model, &targets, &data).unwrap();
        let after = share(&outputs(&float, &data), &outputs(&model, &data));
        let change = &reports[0].changes[0];
        for (reported, measured) in [(change.before, before), (change.after.unwrap(), after)] {
            assert!((reported - measured).abs() < 1e-5 * measured, "{reported} {measured}");
        }
        assert!(after < before);
    }
}

#[test]
fn quantized_inputs_make_up_for_errors_before() {
    let (data, float) = (batches(4), network());
    let error = |inputs: &str| {
        let text = format!("[[algorithm]]\ntype = \"adaround\"\ninputs = \"{inputs}\"\n");
        let model = network();
        let targets = quantize(&model, &configuration(2, true, &text), &data);
        run(&model, &targets, &data).unwrap();
        share(&outputs(&float, &data), &outputs(&model, &data))
    };
    let (original, quantized) = (error("original"), error("quantized"));
    assert!(quantized < 0.8 * original, "{quantized} {original}");
}

#[test]
fn weights_are_on_their_grids_and_the_callers_tensors_are_as_they_were() {
    let weight = noise(&[4, 5], 8);
    let before = numbers(&weight);
    let model = Linear::from_tensors(weight.clone(), None).unwrap();
    let config = configuration(2, true, "[[algorithm]]\ntype = \"gptq\"\n");
    let data = [noise(&[64, 5], 9)];
    let targets = quantize(&model, &config, &data);
    run(&model, &targets, &data).unwrap();
    assert_eq!(numbers(&weight), before);
    let chosen = model.weight.tensor();
    let quantized = model.weight.quantized(&model.weight_quantizer).unwrap();
    assert_eq!(numbers(&quantized.dequantize().unwrap()), numbers(&chosen));
    assert_ne!(numbers(&chosen), before);
}

#[test]
fn a_trainable_parameter_stays_its_variable() {
    let weights = VarMap::new();
    let vb = VarBuilder::from_varmap(&weights, DType::F32, &Device::Cpu);
    let model = Linear::new(5, 4, false, vb).unwrap();
    let var = model.weight.var().unwrap();
    let config = configuration(2, true, "[[algorithm]]\ntype = \"adaround\"\n");
    let data = [noise(&[64, 5], 9)];
    let targets = quantize(&model, &config, &data);
    let before = numbers(&var);
    run(&model, &targets, &data).unwrap();
    assert_eq!(model.weight.var().unwrap().id(), var.id());
    assert_eq!(numbers(&var), numbers(&model.weight.tensor()));
    assert_ne!(numbers(&var), before);
}

#[test]
fn queries_choose_layers_and_stages_go_before_order() {
    let (model, data) = (network(), batches(2));
    let text = "
[[algorithm]]
type = \"bias_correction\"
[[algorithm]]
type = \"sequential_mse\"
query = \"**/[cls:Linear]\"
[[algorithm]]
type = \"gptq\"
query = \"{0, 5}/weight_quantizer\"
[[algorithm]]
type = \"coordinate_descent\"
query = \"5\"
";
    let targets = quantize(&model, &configuration(3, true, text), &data);
    let reports = run(&model, &targets, &data).unwrap();
    let changed = |at: usize| -> Vec<&str> {
        reports[at].changes.iter().map(|one| one.name.as_str()).collect()
    };
    assert_eq!(changed(0), LAYERS);
    assert_eq!(changed(1), ["5", "7"]);
    assert_eq!(changed(2), ["0", "5"]);
    assert_eq!(changed(3), ["5"]);
    assert_eq!(reports[2].source, "quant.toml:14");
    assert!(reports[2].moment_bytes.is_some() && reports[0].moment_bytes.is_none());
    // What one algorithm left is what the next one finds, judged by other inputs.
    assert!(reports[3].changes[0].after <= reports[3].changes[0].before.into());
    let text = reports[2].to_string();
    assert!(
        text.starts_with("gptq: error of a layer's output, as part of its power\n  0  "),
        "{text}"
    );
}

#[test]
fn offsets_without_data() {
    let weight = (noise(&[4, 64], 8).abs().unwrap() + 0.1).unwrap();
    let before = numbers(&weight);
    let model = Linear::from_tensors(weight, None).unwrap();
    quantize(&model, &configuration(3, false, ""), &[noise(&[8, 64], 1)]);
    let parameters = || match model.weight_quantizer.quantizer().to_saved() {
        Some(SavedQuantizer::Linear(_, Some(parameters))) => parameters,
        other => panic!("{other:?}"),
    };
    let options = HqqOptions { whole_offsets: false, ..HqqOptions::default() };
    let start = parameters();
    let tiling = Tiling::new(&[4, 64], &[1, 64]).unwrap();
    let expected = hqq(&before, &tiling, start.affine(), start.grid().unwrap(), &options).unwrap();
    // No batch is asked for.
    let reports = run(&model, &[Target::new(Algorithm::Hqq { options })], &[]).unwrap();
    let change = &reports[0].changes[0];
    assert_eq!(change.name, "weight_quantizer");
    assert_eq!(
        (change.before, change.after),
        (expected.loss_before(), Some(expected.loss_after()))
    );
    assert!(expected.loss_after() < expected.loss_before());
    assert_eq!(parameters().offset, Some(expected.offset));
    assert_eq!(numbers(&model.weight.tensor()), before); // offsets alone
}

#[test]
fn little_memory_means_more_passes_not_other_weights() {
    let data = batches(2);
    let text = "[[algorithm]]\ntype = \"adaround\"\ninputs = \"original\"\n";
    let chosen = |max_moment_bytes| {
        let model = network();
        let targets = quantize(&model, &configuration(2, true, text), &data);
        let passes = std::cell::Cell::new(0);
        let options = TuneOptions { max_moment_bytes, ..TuneOptions::default() };
        let batches = || {
            passes.set(passes.get() + 1);
            data.iter().map(Ok)
        };
        let _lenient = fastforward::flags::strict_quantization(false);
        let forward = |model: &fastforward::nn::Sequential, x: &&Tensor| model.forward_tensor(x);
        fastforward::algorithms::tune(&model, &targets, batches, forward, &options).unwrap();
        (weights(&model), passes.get())
    };
    let (all, few_passes) = chosen(1 << 30);
    let (same, many_passes) = chosen(0);
    assert_eq!(all, same);
    assert_eq!((few_passes, many_passes), (2, 5)); // one to see the order of the layers
}

#[test]
fn an_algorithm_said_in_rust_is_that_of_a_file() {
    let data = batches(2);
    let text =
        "[[algorithm]]\ntype = \"coordinate_descent\"\ninputs = \"original\"\nquery = \"5\"\n";
    let (a, b) = (network(), network());
    let config = configuration(2, true, text);
    let of_file = quantize(&a, &config, &data);
    quantize(&b, &config, &data);
    let query = fastforward::quantization::quant_init::model_context(&b).query("5").unwrap();
    let algorithm = Algorithm::CoordinateDescent { inputs: LayerInputs::Original };
    run(&a, &of_file, &data).unwrap();
    run(&b, &[Target::new(algorithm).at(query)], &data).unwrap();
    assert_eq!(weights(&a), weights(&b));
}
