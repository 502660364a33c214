//! Quantization-aware training: what 2 and 3 bits lose, and how training gets it back.
//!
//!     cargo run --release -p fastforward-rs --example train
//!
//! Rounds the weights of a classifier of clothes to 2 and 3 bits, then trains weights and scales together on 512 images to give
//! the outputs of the float model again (distillation). Gradients pass straight through the rounding; scales learn.
#![allow(missing_docs, unreachable_pub, reason = "tests run this file as a module")]

#[cfg(not(test))] // the tests bring it
mod fashion_cnn;
#[cfg(not(test))] // the tests bring it
mod support;

use std::io::{self, Write};

use crate::fashion_cnn::{BatchNorms, FashionCnn};
use crate::support::{Result, fashion, measure};
use candle_core::{DType, Tensor};
use candle_nn::{AdamW, Optimizer, ParamsAdamW};
use fastforward::flags;
use fastforward::metrics::Metric;
use fastforward::module::named_shared_parameters;
use fastforward::nn::{Layer, Param};
use fastforward::quantization::quant_init::{InitializeOptions, QuantizationConfig};
use fastforward::quantization::{Granularity, LinearQuantizerConfig, TrainableOptions, trainable};
use fastforward::range_setting::{
    EstimationOptions, EstimatorConfig, MinErrorGridConfig, estimate_ranges,
};
use fastforward::tensor::float;

fn main() -> Result<()> {
    for num_bits in [3, 2] {
        run(&mut io::stdout(), num_bits, 30, 2000)?;
    }
    Ok(())
}

/// What training did, in percent of right answers.
#[derive(Clone, Copy, Debug)]
pub struct Outcome {
    pub float: f64,
    pub rounded: f64,
    pub trained: f64,
}

fn outputs(model: &FashionCnn, images: &Tensor) -> Result<Tensor> {
    let _constants = flags::inference();
    let _simulated = flags::integer_execution_mode(false);
    let count = images.dim(0)?;
    let parts = (0..count.div_ceil(100))
        .map(|batch| {
            let first = batch * 100;
            model.forward_tensor(&images.narrow(0, first, 100.min(count - first))?)?.dequantize()
        })
        .collect::<fastforward::tensor::Result<Vec<_>>>()?;
    Ok(Tensor::cat(&parts, 0)?)
}

/// Trains for some epochs and evaluates on the first `test` of the 2,000 test images.
pub fn run(out: &mut dyn Write, num_bits: u32, epochs: usize, test: usize) -> Result<Outcome> {
    let weights = fashion::weights()?;
    let teacher = FashionCnn::new(&weights, BatchNorms::Folded)?;
    let model = FashionCnn::new(&weights, BatchNorms::Folded)?;
    let images = fashion::images(fashion::TEST)?.narrow(0, 0, test)?;
    let labels = fashion::labels(fashion::TEST)?;
    let top1 = |model: &FashionCnn| -> Result<f64> {
        measure(Metric::TOP1, &outputs(model, &images)?, None, Some(&labels[..test]))
    };
    let _lenient = flags::strict_quantization(false);
    let float = top1(&model)?;

    // The weights of all layers, a scale per output channel, the range with the smallest squared error.
    let mut config = QuantizationConfig::for_model(&model);
    let spec = LinearQuantizerConfig::new(num_bits).with_granularity(Granularity::per_channel(0));
    config.add_rule("**/[quantizer:parameter/weight]", spec)?;
    config.initialize(&model, InitializeOptions::default())?.resolution.check()?;
    let train = fashion::images(fashion::CALIBRATION)?;
    let search = EstimatorConfig::MinErrorGrid(MinErrorGridConfig::default());
    let estimation = estimate_ranges(&model, search, EstimationOptions::default())?;
    outputs(&model, &train.narrow(0, 0, 1)?)?;
    estimation.finish()?;
    let rounded = top1(&model)?;

    // Weights and scales learn; scales at the pace of the weights (LSQ).
    let mut vars = Vec::new();
    for entry in named_shared_parameters(&model) {
        if let Some(parameter) = entry.parameter.downcast_ref::<Param>() {
            vars.push(parameter.make_trainable()?);
        }
    }
    let options = TrainableOptions { lsq_gradient_scaling: true, ..TrainableOptions::default() };
    let scales = trainable(&model, options)?;
    vars.extend(scales.vars());
    let steps = epochs * train.dim(0)?.div_ceil(64);
    let mut optimizer =
        AdamW::new(vars, ParamsAdamW { lr: 0.0, weight_decay: 0.0, ..Default::default() })?;
    for step in 0..steps {
        // A cosine from 0.002 to zero.
        let done = step as f64 / steps as f64;
        optimizer.set_learning_rate(0.001 * (1.0 + (std::f64::consts::PI * done).cos()));
        let batch = shifted(&train.narrow(0, step % 8 * 64, 64)?, step)?;
        let target = {
            let _constants = flags::inference();
            float::softmax(&teacher.forward_tensor(&batch)?.dequantize()?, -1, None)?
        };
        let found = float::log_softmax(&model.forward_tensor(&batch)?.dequantize()?, -1, None)?;
        let loss = (target * found)?.sum_all()?.affine(-1.0 / 64.0, 0.0)?;
        optimizer.backward_step(&loss)?;
    }
    scales.finish()?;
    let trained = top1(&model)?;
    writeln!(
        out,
        "{num_bits} bits: float {float:.2} %, rounded {rounded:.2} %, after {epochs} epochs {trained:.2} %"
    )?;
    Ok(Outcome { float, rounded, trained })
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
