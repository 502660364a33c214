//! A small network, its data, and what is measured on it.

use candle_core::{Device, Tensor};
use fastforward::algorithms::{AlgorithmReport, Target, TuneOptions, targets, tune};
use fastforward::config::QuantConfigFile;
use fastforward::flags;
use fastforward::module::Module;
use fastforward::nn::{Conv2d, Flatten, Layer, Linear, ReLU, Sequential};
use fastforward::quantization::quant_init::{InitializeOptions, model_context};
use fastforward::range_setting::{
    EstimationOptions, EstimatorConfig, NoData, UpdatePolicy, estimate_ranges,
};
use fastforward::tensor::Result;
use fastforward::tensor::float::{Conv, Padding};

/// Numbers between -1 and 1 that look like chance, and are the same on every run.
pub(crate) fn noise(shape: &[usize], seed: usize) -> Tensor {
    let count = shape.iter().product();
    let mut state = seed as u64 * 7919 + 1;
    let mut next = || {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    let data: Vec<f32> = (0..count).map(|_| next()).collect();
    Tensor::from_vec(data, shape, &Device::Cpu).unwrap()
}

/// Convolutions, one of them grouped and strided, and two linear layers: `[n, 4, 6, 6]` to `[n, 3]`.
pub(crate) fn network() -> Sequential {
    let conv = |shape: &[usize], seed, options: Conv<2>| {
        let bias = noise(&shape[..1], seed + 100);
        Conv2d::from_tensors(noise(shape, seed), Some(bias), options).unwrap()
    };
    let linear = |shape: &[usize], seed| {
        let bias = noise(&shape[..1], seed + 100);
        Linear::from_tensors(noise(shape, seed), Some(bias)).unwrap()
    };
    let grouped =
        Conv { stride: [2, 1], padding: Padding::Explicit([1, 0]), groups: 2, ..Conv::default() };
    Sequential::new()
        .add(conv(&[6, 4, 3, 3], 1, Conv { padding: Padding::Same, ..Conv::default() }))
        .add(ReLU::new())
        .add(conv(&[8, 3, 3, 2], 2, grouped))
        .add(ReLU::new())
        .add(Flatten::default())
        .add(linear(&[10, 8 * 3 * 5], 3))
        .add(ReLU::new())
        .add(linear(&[3, 10], 4))
}

/// Inputs in which channels go together, so that rounding errors of weights can make up for each other.
pub(crate) fn batches(count: usize) -> Vec<Tensor> {
    let batch = |seed| {
        let shared = noise(&[16, 1, 6, 6], seed);
        let own = noise(&[16, 4, 6, 6], seed + 50);
        (shared.broadcast_as((16, 4, 6, 6)).unwrap() + own * 0.5).unwrap()
    };
    (0..count).map(batch).collect()
}

/// Rules for weights of `num_bits` and inputs of 8, and these algorithms.
pub(crate) fn configuration(num_bits: u32, symmetric: bool, algorithms: &str) -> QuantConfigFile {
    let text = format!(
        "schema_version = 1
[[rule]]
query = \"**/[quantizer:parameter/weight]\"
quantizer = {{ type = \"linear\", num_bits = {num_bits}, symmetric = {symmetric}, granularity = \"per_output_channel\" }}
[[rule]]
query = \"**/{{[cls:Conv2d], [cls:Linear]}}/[quantizer:activation/input]\"
quantizer = {{ type = \"linear\", num_bits = 8, symmetric = false }}
{algorithms}"
    );
    QuantConfigFile::parse(&text, "quant.toml", ".".as_ref()).unwrap()
}

/// The quantizers of a configuration, with ranges.
pub(crate) fn quantize<M: Module + Layer>(
    model: &M,
    config: &QuantConfigFile,
    data: &[Tensor],
) -> Vec<Target> {
    let rules = config.quantization_config(model_context(model)).unwrap();
    rules.initialize(model, InitializeOptions::default()).unwrap();
    let _lenient = flags::strict_quantization(false);
    let options = EstimationOptions {
        disable_quantization: true,
        update: UpdatePolicy::AtEnd,
        no_data: NoData::Report,
        ..EstimationOptions::default()
    };
    let ranges = estimate_ranges(model, EstimatorConfig::running_minmax(), options).unwrap();
    data.iter().for_each(|x| drop(model.forward_tensor(x).unwrap()));
    ranges.finish().unwrap();
    targets(config, model).unwrap()
}

pub(crate) fn run<M: Module + Layer>(
    model: &M,
    targets: &[Target],
    data: &[Tensor],
) -> Result<Vec<AlgorithmReport>> {
    run_with(model, targets, data, &TuneOptions::default())
}

pub(crate) fn run_with<M: Module + Layer>(
    model: &M,
    targets: &[Target],
    data: &[Tensor],
    options: &TuneOptions,
) -> Result<Vec<AlgorithmReport>> {
    let _lenient = flags::strict_quantization(false);
    tune(model, targets, || data.iter().map(Ok), |model, x| model.forward_tensor(x), options)
}

/// The numbers of a tensor.
pub(crate) fn numbers(x: &Tensor) -> Vec<f32> {
    x.flatten_all().unwrap().to_vec1().unwrap()
}

/// All weights of the network, one after the other.
pub(crate) fn weights(model: &dyn Module) -> Vec<f32> {
    let all = fastforward::module::named_shared_parameters(model);
    let params =
        all.iter().filter_map(|one| one.parameter.downcast_ref::<fastforward::nn::Param>());
    params.flat_map(|one| numbers(&one.tensor())).collect()
}

/// The outputs over all batches, in simulation.
pub(crate) fn outputs<M: Layer>(model: &M, data: &[Tensor]) -> Vec<f32> {
    let _lenient = flags::strict_quantization(false);
    let outputs = data.iter().map(|x| model.forward_tensor(x).unwrap().dequantize().unwrap());
    outputs.flat_map(|y| numbers(&y)).collect()
}

/// `Σ (a - b)²` as a part of `Σ a²`.
pub(crate) fn share(a: &[f32], b: &[f32]) -> f64 {
    let square = |x: f32| f64::from(x) * f64::from(x);
    let error: f64 = a.iter().zip(b).map(|(a, b)| square(a - b)).sum();
    error / a.iter().map(|&a| square(a)).sum::<f64>()
}
