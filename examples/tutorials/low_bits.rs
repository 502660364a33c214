//! Two bits: what rounding to nearest loses, and how the algorithms of a configuration get it back without training.
//!
//!     cargo run --release -p fastforward-rs --example low_bits
//!
//! Quantizes the weights of a classifier of clothes to 2 bits by the rules of `examples/fashion/low_bits.toml`, which the
//! program takes for the graph file as well, and lets its algorithms choose ranges and codes on 512 images: layer by layer, and
//! by the outputs of three blocks.
#![allow(missing_docs, unreachable_pub, reason = "tests run this file as a module")]

#[cfg(not(test))] // the tests bring it
mod fashion_cnn;
#[cfg(not(test))] // the tests bring it
mod support;

use std::io::{self, Write};

use crate::fashion_cnn::{BatchNorms, FashionCnn};
use crate::support::{Result, examples, fashion, measure};
use candle_core::Tensor;
use fastforward::algorithms::{
    Block, BlockOptions, TuneOptions, reconstruct_blocks, targets, tune,
};
use fastforward::config::QuantConfigFile;
use fastforward::flags;
use fastforward::metrics::Metric;
use fastforward::nn::Layer;
use fastforward::quantization::quant_init::{InitializeOptions, model_context};
use fastforward::range_setting::{EstimationOptions, UpdatePolicy, estimate_ranges_with};

fn main() -> Result<()> {
    run(&mut io::stdout(), 1000).map(drop)
}

/// Right answers among 2,000, in percent.
#[derive(Clone, Copy, Debug)]
pub struct Outcome {
    pub float: f64,
    pub nearest: f64,
    pub by_layer: f64,
    pub by_block: f64,
}

fn top1(model: &FashionCnn) -> Result<f64> {
    let _constants = flags::inference();
    let images = fashion::images(fashion::TEST)?;
    let outputs = batches(&images, 100)?
        .iter()
        .map(|batch| model.forward_tensor(batch)?.dequantize())
        .collect::<fastforward::tensor::Result<Vec<_>>>()?;
    let labels = fashion::labels(fashion::TEST)?;
    measure(Metric::TOP1, &Tensor::cat(&outputs, 0)?, None, Some(&labels))
}

fn batches(images: &Tensor, size: usize) -> Result<Vec<Tensor>> {
    let firsts = (0..images.dim(0)?).step_by(size);
    Ok(firsts.map(|first| images.narrow(0, first, size)).collect::<candle_core::Result<_>>()?)
}

/// The model with the quantizers and ranges of the configuration.
fn quantized(config: &QuantConfigFile, data: &[Tensor]) -> Result<FashionCnn> {
    let model = FashionCnn::new(&fashion::weights()?, BatchNorms::Folded)?;
    let rules = config.quantization_config(model_context(&model))?;
    let done = rules.initialize(&model, InitializeOptions::default())?;
    done.resolution.check()?;
    let options = EstimationOptions {
        disable_quantization: true,
        update: UpdatePolicy::AtEnd,
        ..EstimationOptions::default()
    };
    let ranges = estimate_ranges_with(config.estimators(&done.resolution)?, options)?;
    for batch in data {
        model.forward_tensor(batch)?;
    }
    ranges.finish()?;
    Ok(model)
}

/// Lets the algorithms of the file work layer by layer, and as many iterations as said on each block.
pub fn run(out: &mut dyn Write, iterations: usize) -> Result<Outcome> {
    // Not every layer gets quantizers, and products are computed on floats that stand for codes.
    let _lenient = flags::strict_quantization(false);
    let _simulated = flags::integer_execution_mode(false);
    let float = top1(&FashionCnn::new(&fashion::weights()?, BatchNorms::Folded)?)?;
    let config = QuantConfigFile::load(&examples().join("fashion/low_bits.toml"))?;
    let data = batches(&fashion::images(fashion::CALIBRATION)?, 64)?;
    let forward = |model: &FashionCnn, images: &&Tensor| model.forward_tensor(images);

    // The algorithms of the file: the model is run on all batches, once for each layer.
    let model = quantized(&config, &data)?;
    let nearest = top1(&model)?;
    let algorithms = targets(&config, &model)?;
    let options = TuneOptions::default();
    let reports = tune(&model, &algorithms, || data.iter().map(Ok), forward, &options)?;
    for report in &reports {
        writeln!(out, "{report}\n")?;
    }
    let by_layer = top1(&model)?;

    // The same, and then what codes do to the output of several layers together.
    let model = quantized(&config, &data)?;
    let context = model_context(&model);
    let block = |name: &str, query: &str| -> Result<Block> {
        Ok(Block::together(name, &model, &context.query(query)?)?)
    };
    let blocks = [
        block("stem", "{conv1, relu1, dw, relu6_dw, pw, relu6_pw}")?,
        block("residual", "{res1, relu_r1, res2, res_add, relu_res}")?,
        block("head", "{conv2, relu2, gap, fc1, relu_fc1, logits}")?,
    ];
    let options = BlockOptions { iterations, ..BlockOptions::default() };
    let batches = || data.iter().map(Ok);
    let reports = reconstruct_blocks(&model, &algorithms, &blocks, batches, forward, &options)?;
    writeln!(out, "{}\n", reports[reports.len() - 1])?;
    let by_block = top1(&model)?;

    writeln!(out, "float                          {float:.2} %")?;
    writeln!(out, "2 bits, rounded to nearest     {nearest:.2} %")?;
    writeln!(out, "2 bits, chosen layer by layer  {by_layer:.2} %")?;
    writeln!(out, "2 bits, chosen block by block  {by_block:.2} %")?;
    Ok(Outcome { float, nearest, by_layer, by_block })
}
