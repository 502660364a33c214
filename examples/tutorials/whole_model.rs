//! A whole model: rules, calibration, accuracy.
//!
//!     cargo run --release -p fastforward-rs --example whole_model
//!
//! Quantizes a convolutional classifier of clothes to 8 bits by three rules, finds the ranges on 512 images, and measures what
//! that costs on 2,000 others.
#![allow(missing_docs, unreachable_pub, reason = "tests run this file as a module")]

#[cfg(not(test))] // the tests bring it
mod fashion_cnn;
#[cfg(not(test))] // the tests bring it
mod support;

use std::io::{self, Write};

use crate::fashion_cnn::{BatchNorms, FashionCnn};
use crate::support::{Result, fashion, measure};
use candle_core::Tensor;
use fastforward::flags;
use fastforward::metrics::Metric;
use fastforward::nn::Layer;
use fastforward::quantization::quant_init::{InitializeOptions, QuantizationConfig, QuantizerSpec};
use fastforward::quantization::{Granularity, LinearQuantizerConfig};
use fastforward::range_setting::{
    EstimationOptions, EstimatorConfig, UpdatePolicy, estimate_ranges,
};

fn main() -> Result<()> {
    run(&mut io::stdout())
}

/// The outputs for images, in batches, without gradients.
pub fn outputs(model: &FashionCnn, images: &Tensor) -> Result<Tensor> {
    let _constants = flags::inference();
    let count = images.dim(0)?;
    let parts = (0..count.div_ceil(100))
        .map(|batch| {
            let first = batch * 100;
            let images = images.narrow(0, first, 100.min(count - first))?;
            model.forward_tensor(&images)?.dequantize()
        })
        .collect::<fastforward::tensor::Result<Vec<_>>>()?;
    Ok(Tensor::cat(&parts, 0)?)
}

pub fn run(out: &mut dyn Write) -> Result<()> {
    let model = FashionCnn::new(&fashion::weights()?, BatchNorms::Folded)?;
    let (images, labels) = (fashion::images(fashion::TEST)?, fashion::labels(fashion::TEST)?);
    // Not every layer gets quantizers: between those that do, floats flow.
    let _lenient = flags::strict_quantization(false);
    let float = outputs(&model, &images)?;
    // Folding batch normalization into the convolutions before it changes the floats by rounding only.
    let unfolded = FashionCnn::new(&fashion::weights()?, BatchNorms::Kept)?;
    let largest = measure(Metric::MaxAbs, &float, Some(&outputs(&unfolded, &images)?), None)?;
    writeln!(out, "folding changes the outputs by at most {largest:.0e}\n")?;

    let per_channel = LinearQuantizerConfig::new(8).with_granularity(Granularity::per_channel(0));
    let activation = LinearQuantizerConfig::new(8).asymmetric();
    let mut config = QuantizationConfig::for_model(&model);
    config.add_rule("**/{[cls:Conv2d],[cls:Linear]}/[quantizer:parameter/weight]", per_channel)?;
    config.add_rule(
        "**/{[cls:Conv2d],[cls:Linear]}/[quantizer:activation/input]",
        activation.clone(),
    )?;
    config.add_rule("{res_add,gap}/[quantizer:activation/input]", activation)?;

    // A rule that matches nothing is found before anything happens.
    let mut wrong = QuantizationConfig::for_model(&model);
    wrong.add_rule("**/conv3/[quantizer:parameter/weight]", QuantizerSpec::linear(8))?;
    for problem in wrong.resolve(&model)?.problems() {
        writeln!(out, "A wrong rule: {problem}\n")?;
    }

    let done = config.initialize(&model, InitializeOptions::default())?;
    done.resolution.check()?;
    for rule in &done.resolution.rules {
        writeln!(out, "{:>2} slots by {}", rule.won, rule.label)?;
    }

    // Ranges: those of float activations, over all calibration images.
    let options = EstimationOptions {
        disable_quantization: true,
        update: UpdatePolicy::AtEnd,
        ..EstimationOptions::default()
    };
    let estimation = estimate_ranges(&model, EstimatorConfig::running_minmax(), options)?;
    outputs(&model, &fashion::images(fashion::CALIBRATION)?)?;
    let ranges = estimation.finish()?;
    writeln!(out, "{:>2} ranges set", ranges.slots.len())?;

    let quantized = outputs(&model, &images)?;
    let top1 = |output: &Tensor| measure(Metric::TOP1, output, None, Some(&labels));
    writeln!(out, "\nfloat      {:.2} %", top1(&float)?)?;
    writeln!(out, "quantized  {:.2} %", top1(&quantized)?)?;
    let agreement = measure(Metric::Agreement, &quantized, Some(&float), None)?;
    writeln!(out, "agreement  {agreement:.2} %")?;

    // Products were computed on integer codes. Simulated in floats they differ by rounding, which may move a value that lies
    // near a tie to the next step of a later quantizer.
    let _simulated = flags::integer_execution_mode(false);
    let simulated = outputs(&model, &images)?;
    let largest = measure(Metric::MaxAbs, &quantized, Some(&simulated), None)?;
    writeln!(out, "integers and simulation differ by at most {largest:.1e}")?;
    Ok(())
}
