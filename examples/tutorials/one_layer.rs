//! One layer from scratch: what a quantizer slot, a range and strict mode are.
//!
//!     cargo run --release -p fastforward-rs --example one_layer
//!
//! Takes the first layer of a small classifier of handwritten digits (`examples/digits`), puts quantizers into its slots by
//! hand, and looks at what comes out.
#![allow(missing_docs, unreachable_pub, reason = "tests run this file as a module")]

#[cfg(not(test))] // the tests bring it
mod support;

use std::io::{self, Write};
use std::sync::Arc;

use crate::support::{Result, digits, measure};
use fastforward::flags;
use fastforward::metrics::Metric;
use fastforward::module::{Outline, named_slots};
use fastforward::nn::{Layer, Linear};
use fastforward::quantization::quantizer::RangeSettable;
use fastforward::quantization::{Granularity, LinearQuantizer, LinearQuantizerConfig};
use fastforward::range_setting::{EstimationOptions, EstimatorConfig, estimate_ranges};

fn main() -> Result<()> {
    run(&mut io::stdout())
}

pub fn run(out: &mut dyn Write) -> Result<()> {
    // A layer is made from a `VarBuilder`, from tensors, or from candle's own layer.
    let layer = Linear::new(64, 64, true, digits::weights()?.pp("fc1"))?;
    let images = digits::images(0..256)?; // [256, 64], 0 to 1
    writeln!(out, "The layer, with four empty slots:\n\n{}", Outline::new(&layer))?;

    // Strict mode is on from the start: floats do not slip through unnoticed.
    if let Err(error) = layer.forward_tensor(&images) {
        writeln!(out, "Without quantizers: {error}\n")?;
    }
    let float = {
        let _lenient = flags::strict_quantization(false);
        layer.forward_tensor(&images)?.dequantize()?
    };

    // The weight: 4 bits, symmetric, a scale for each of the 64 outputs. Its range is that of its values.
    let config = LinearQuantizerConfig::new(4).with_granularity(Granularity::per_channel(0));
    let quantizer = LinearQuantizer::new(config)?;
    let weight = layer.weight.tensor();
    let (min, max) = (weight.min(1)?.to_vec1::<f32>()?, weight.max(1)?.to_vec1::<f32>()?);
    quantizer.set_quantization_range(&min, &max)?;
    layer.weight_quantizer.replace(Arc::new(quantizer));

    // Input and output: 8 bits, asymmetric. Their ranges come from data that flows through.
    for slot in [&layer.input_quantizer, &layer.output_quantizer] {
        slot.replace(Arc::new(LinearQuantizer::new(LinearQuantizerConfig::new(8).asymmetric())?));
    }
    // The weight has its range: only the quantizers that still need one are estimated.
    let activations: Vec<_> = named_slots(&layer)
        .into_iter()
        .filter(|entry| entry.slot.metadata().is_activation_quantizer())
        .collect();
    let estimation = estimate_ranges(
        &activations,
        EstimatorConfig::running_minmax(),
        EstimationOptions::default(),
    )?;
    layer.forward_tensor(&images)?;
    for slot in estimation.finish()?.slots {
        let Some(range) = slot.range else { continue };
        writeln!(out, "{:17} {:8.4} to {:7.4}", slot.names[0], range.min[0], range.max[0])?;
    }

    let quantized = layer.forward_tensor(&images)?;
    writeln!(out, "\nThe layer, quantized:\n\n{}", Outline::new(&layer))?;
    let codes = quantized.as_quantized().ok_or("the output is quantized")?;
    writeln!(out, "The output: {codes:?}")?;
    writeln!(out, "its first codes: {:?}", &codes.codes()?.to_i32()[..8])?;

    let sqnr = measure(Metric::Sqnr, &quantized.dequantize()?, Some(&float), None)?;
    writeln!(out, "signal to quantization noise: {sqnr:.1} dB")?;
    Ok(())
}
