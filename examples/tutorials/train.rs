//! Quantization-aware training: what 2 and 3 bits lose, and how training gets it back.
//!
//!     cargo run --release -p fastforward-rs --example train            # clothes
//!     cargo run --release -p fastforward-rs --example train -- digits     # the rows `training` of docs/accuracy.md
//!
//! Rounds the weights of a classifier to few bits, then trains weights and scales together on 512 images to give the outputs of
//! the float model again (distillation). Gradients pass straight through the rounding; scales learn. The order of images is
//! fixed and nothing is drawn at random: every run gives the same figures.
#![allow(missing_docs, unreachable_pub, reason = "tests run this file as a module")]

#[cfg(not(test))] // the tests bring it
mod fashion_cnn;
#[cfg(not(test))] // the tests bring it
mod support;

use std::io::{self, Write};

use crate::fashion_cnn::{BatchNorms, FashionCnn};
use crate::support::{Result, digits, fashion, measure};
use candle_core::{DType, Tensor};
use candle_nn::{AdamW, Optimizer, ParamsAdamW, VarBuilder};
use fastforward::Module;
use fastforward::flags;
use fastforward::metrics::Metric;
use fastforward::module::{SlotEntry, named_shared_parameters};
use fastforward::nn::{Conv2d, Flatten, Layer, Linear, MaxPool2d, Param, ReLU};
use fastforward::quantization::quant_init::{InitializeOptions, QuantizationConfig};
use fastforward::quantization::{Granularity, LinearQuantizerConfig, TrainableOptions, trainable};
use fastforward::range_setting::{
    EstimationOptions, EstimatorConfig, MinErrorGridConfig, UpdatePolicy, estimate_ranges,
};
use fastforward::tensor::float::{self, Conv, Padding};
use fastforward::tensor::{self, Value};

fn main() -> Result<()> {
    let out = &mut io::stdout();
    match std::env::args().nth(1).as_deref() {
        None | Some("clothes") => {
            for num_bits in [3, 2] {
                run(out, num_bits, 30, 2000)?;
            }
            Ok(())
        }
        Some("digits") => {
            for network in [Network::Cnn, Network::Mlp] {
                for num_bits in [4, 3, 2] {
                    run_digits(out, network, num_bits, 100)?;
                }
            }
            Ok(())
        }
        Some(other) => Err(format!("no data set `{other}`: `clothes` or `digits`").into()),
    }
}

/// What training did, in percent of right answers.
#[derive(Clone, Copy, Debug)]
pub struct Outcome {
    pub float: f64,
    pub rounded: f64,
    pub trained: f64,
}

/// What a network is trained with and judged by.
struct Task<'a> {
    train: Tensor,
    test: Tensor,
    labels: &'a [u64],
    /// Other images each epoch, the same on every run, from a batch and the number of the step.
    vary: fn(&Tensor, usize) -> Result<Tensor>,
    /// Whether inputs of layers have 8 bits; floats if not.
    activations: bool,
    /// The learning rate of the first step; scales of the small networks become negative at the rate of the large one.
    rate: f64,
}

/// Trains for some epochs and evaluates on the first `test` of the 2,000 test images of clothes.
pub fn run(out: &mut dyn Write, num_bits: u32, epochs: usize, test: usize) -> Result<Outcome> {
    let weights = fashion::weights()?;
    let task = Task {
        train: fashion::images(fashion::CALIBRATION)?,
        test: fashion::images(fashion::TEST)?.narrow(0, 0, test)?,
        labels: &fashion::labels(fashion::TEST)?[..test],
        vary: shifted,
        activations: false,
        rate: 0.002,
    };
    let teacher = FashionCnn::new(&weights, BatchNorms::Folded)?;
    let model = FashionCnn::new(&weights, BatchNorms::Folded)?;
    let outcome = train(&teacher, &model, &task, num_bits, epochs)?;
    report(out, "clothes", num_bits, epochs, outcome)?;
    Ok(outcome)
}

/// Trains on the first 512 images of digits, with 8-bit inputs of layers, and evaluates on the 500 images for testing.
pub fn run_digits(
    out: &mut dyn Write,
    network: Network,
    num_bits: u32,
    epochs: usize,
) -> Result<Outcome> {
    let task = Task {
        train: digits::images(0..512)?.reshape(((), 1, 8, 8))?,
        test: digits::images(digits::TEST)?.reshape(((), 1, 8, 8))?,
        labels: &digits::labels(digits::TEST)?,
        vary: |images, _| Ok(images.clone()),
        activations: true,
        rate: 0.0005,
    };
    let (name, outcome) = match network {
        Network::Cnn => {
            let weights = digits::cnn_weights()?;
            let (teacher, model) = (DigitsCnn::new(&weights)?, DigitsCnn::new(&weights)?);
            ("digits_cnn", train(&teacher, &model, &task, num_bits, epochs)?)
        }
        Network::Mlp => {
            let weights = digits::weights()?;
            let (teacher, model) = (DigitsMlp::new(&weights)?, DigitsMlp::new(&weights)?);
            ("digits_mlp", train(&teacher, &model, &task, num_bits, epochs)?)
        }
    };
    report(out, name, num_bits, epochs, outcome)?;
    Ok(outcome)
}

fn report(
    out: &mut dyn Write,
    name: &str,
    num_bits: u32,
    epochs: usize,
    Outcome { float, rounded, trained }: Outcome,
) -> Result<()> {
    writeln!(
        out,
        "{name}, {num_bits} bits: float {float:.2} %, rounded {rounded:.2} %, after {epochs} epochs {trained:.2} %"
    )?;
    Ok(())
}

fn outputs(model: &impl Layer, images: &Tensor) -> Result<Tensor> {
    let _constants = flags::inference();
    let _simulated = flags::integer_execution_mode(false);
    let count = images.dim(0)?;
    let parts = (0..count.div_ceil(100))
        .map(|batch| {
            let first = batch * 100;
            model.forward_tensor(&images.narrow(0, first, 100.min(count - first))?)?.dequantize()
        })
        .collect::<tensor::Result<Vec<_>>>()?;
    Ok(Tensor::cat(&parts, 0)?)
}

/// Rounds the weights of `model`, which is the same as `teacher` so far, and trains it.
fn train<M: Layer>(
    teacher: &M,
    model: &M,
    task: &Task<'_>,
    num_bits: u32,
    epochs: usize,
) -> Result<Outcome> {
    let top1 = |model: &M| -> Result<f64> {
        measure(Metric::TOP1, &outputs(model, &task.test)?, None, Some(task.labels))
    };
    let _lenient = flags::strict_quantization(false);
    let float = top1(model)?;
    calibrate(model, task, num_bits)?;
    let rounded = top1(model)?;

    // Weights and scales learn; scales at the pace of the weights (LSQ).
    let mut vars = Vec::new();
    for entry in named_shared_parameters(model) {
        if let Some(parameter) = entry.parameter.downcast_ref::<Param>() {
            vars.push(parameter.make_trainable()?);
        }
    }
    let options = TrainableOptions { lsq_gradient_scaling: true, ..TrainableOptions::default() };
    let scales = trainable(model, options)?;
    vars.extend(scales.vars());
    let batches = task.train.dim(0)? / 64;
    let steps = epochs * batches;
    let mut optimizer =
        AdamW::new(vars, ParamsAdamW { lr: 0.0, weight_decay: 0.0, ..Default::default() })?;
    for step in 0..steps {
        // A cosine from the task's rate to zero.
        let done = step as f64 / steps as f64;
        optimizer.set_learning_rate(0.5 * task.rate * (1.0 + (std::f64::consts::PI * done).cos()));
        let batch = (task.vary)(&task.train.narrow(0, step % batches * 64, 64)?, step)?;
        let target = {
            let _constants = flags::inference();
            float::softmax(&teacher.forward_tensor(&batch)?.dequantize()?, -1, None)?
        };
        let found = float::log_softmax(&model.forward_tensor(&batch)?.dequantize()?, -1, None)?;
        let loss = (target * found)?.sum_all()?.affine(-1.0 / 64.0, 0.0)?;
        optimizer.backward_step(&loss)?;
    }
    scales.finish()?;
    let trained = top1(model)?;
    Ok(Outcome { float, rounded, trained })
}

/// Quantizers with ranges for the weights of all layers, a scale per output channel, and for inputs where they are asked for.
fn calibrate(model: &impl Layer, task: &Task<'_>, num_bits: u32) -> Result<()> {
    if task.activations {
        // From the smallest to the largest value in the float network.
        let query = "**/{[cls:Conv2d],[cls:Linear]}/[quantizer:activation/input]";
        let slots = fill(model, query, LinearQuantizerConfig::new(8).asymmetric())?;
        let options = EstimationOptions {
            disable_quantization: true,
            update: UpdatePolicy::AtEnd,
            ..EstimationOptions::default()
        };
        let estimation = estimate_ranges(&slots, EstimatorConfig::running_minmax(), options)?;
        outputs(model, &task.train)?;
        estimation.finish()?;
    }
    // The range with the smallest squared error; weights are the same for every image, so one is enough.
    let spec = LinearQuantizerConfig::new(num_bits).with_granularity(Granularity::per_channel(0));
    let slots = fill(model, "**/[quantizer:parameter/weight]", spec)?;
    let search = EstimatorConfig::MinErrorGrid(MinErrorGridConfig::default());
    let estimation = estimate_ranges(&slots, search, EstimationOptions::default())?;
    outputs(model, &task.train.narrow(0, 0, 1)?)?;
    estimation.finish()?;
    Ok(())
}

/// Puts quantizers into the slots that a query names.
fn fill(
    model: &impl Layer,
    query: &str,
    quantizer: LinearQuantizerConfig,
) -> Result<Vec<SlotEntry>> {
    let mut config = QuantizationConfig::for_model(model);
    config.add_rule(query, quantizer)?;
    let resolution = config.initialize(model, InitializeOptions::default())?.resolution;
    resolution.check()?;
    let filled = resolution.slots().filter(|slot| slot.winner.is_some());
    Ok(filled.map(|slot| slot.to_entry()).collect())
}

/// Images moved by up to two pixels, every second batch mirrored: other images each epoch, the same on every run.
fn shifted(images: &Tensor, step: usize) -> Result<Tensor> {
    let padded = images.pad_with_zeros(2, 2, 2)?.pad_with_zeros(3, 2, 2)?;
    let (down, right) = (step * 7 % 5, step * 3 % 5);
    let moved = padded.narrow(2, down, 28)?.narrow(3, right, 28)?;
    if step.is_multiple_of(2) {
        return Ok(moved);
    }
    let mirror: Vec<u32> = (0..28).rev().collect();
    Ok(moved
        .contiguous()?
        .index_select(&Tensor::new(mirror, images.device())?, 3)?
        .to_dtype(DType::F32)?)
}

/// The networks of `examples/digits`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Network {
    Cnn,
    Mlp,
}

/// The twin of `digits_cnn.onnx`: `[n, 1, 8, 8]` to `[n, 10]`.
#[derive(Module)]
struct DigitsCnn {
    c1: Conv2d,
    r1: ReLU,
    p1: MaxPool2d,
    c2: Conv2d,
    r2: ReLU,
    p2: MaxPool2d,
    flat: Flatten,
    g1: Linear,
    r3: ReLU,
    logits: Linear,
}

impl DigitsCnn {
    fn new(vb: &VarBuilder<'_>) -> Result<Self> {
        let conv = |c_in, c_out, name: &str| {
            let options = Conv { padding: Padding::Explicit([1; 2]), ..Default::default() };
            Conv2d::new(c_in, c_out, [3, 3], options, true, vb.pp(name))
        };
        let pool = || MaxPool2d::new(float::MaxPool2d::new([2, 2]));
        Ok(Self {
            c1: conv(1, 8, "conv1")?,
            r1: ReLU::new(),
            p1: pool(),
            c2: conv(8, 16, "conv2")?,
            r2: ReLU::new(),
            p2: pool(),
            flat: Flatten::default(),
            g1: Linear::new(64, 32, true, vb.pp("fc1"))?,
            r3: ReLU::new(),
            logits: Linear::new(32, 10, true, vb.pp("fc2"))?,
        })
    }
}

impl Layer for DigitsCnn {
    fn forward(&self, x: &Value) -> tensor::Result<Value> {
        let x = self.p1.forward(&self.r1.forward(&self.c1.forward(x)?)?)?;
        let x = self.p2.forward(&self.r2.forward(&self.c2.forward(&x)?)?)?;
        let x = self.g1.forward(&self.flat.forward(&x)?)?;
        self.logits.forward(&self.r3.forward(&x)?)
    }
}

/// The twin of `digits_mlp.onnx`: `[n, 1, 8, 8]` to `[n, 10]`.
#[derive(Module)]
struct DigitsMlp {
    flat: Flatten,
    fc1: Linear,
    relu1: ReLU,
    fc2: Linear,
    relu2: ReLU,
    fc3: Linear,
}

impl DigitsMlp {
    fn new(vb: &VarBuilder<'_>) -> Result<Self> {
        Ok(Self {
            flat: Flatten::default(),
            fc1: Linear::new(64, 64, true, vb.pp("fc1"))?,
            relu1: ReLU::new(),
            fc2: Linear::new(64, 32, true, vb.pp("fc2"))?,
            relu2: ReLU::new(),
            fc3: Linear::new(32, 10, true, vb.pp("fc3"))?,
        })
    }
}

impl Layer for DigitsMlp {
    fn forward(&self, x: &Value) -> tensor::Result<Value> {
        let x = self.relu1.forward(&self.fc1.forward(&self.flat.forward(x)?)?)?;
        let x = self.relu2.forward(&self.fc2.forward(&x)?)?;
        self.fc3.forward(&x)
    }
}
