//! Save a quantized model, load it elsewhere, and what happens when the files do not fit.
//!
//!     cargo run --release -p fastforward-rs --example save_load
#![allow(missing_docs, unreachable_pub, reason = "tests run this file as a module")]

#[cfg(not(test))] // the tests bring it
mod support;

use std::io::{self, Write};

use crate::support::{Result, digits, measure};
use candle_core::{DType, Device, Tensor};
use candle_nn::{VarBuilder, VarMap};
use fastforward::Module;
use fastforward::flags;
use fastforward::metrics::Metric;
use fastforward::nn::{Layer, Linear, ReLU};
use fastforward::quantization::quant_init::{InitializeOptions, QuantizationConfig};
use fastforward::quantization::state::StateInfo;
use fastforward::quantization::{
    Granularity, LinearQuantizerConfig, SaveOptions, fuse_qdq_weights, load_quantized_model,
    save_quantized_model,
};
use fastforward::range_setting::{EstimationOptions, EstimatorConfig, estimate_ranges};
use fastforward::tensor::Value;

/// A classifier of handwritten digits.
#[derive(Module)]
struct Digits {
    fc1: Linear,
    relu1: ReLU,
    fc2: Linear,
    relu2: ReLU,
    fc3: Linear,
}

impl Digits {
    fn new(vb: &VarBuilder<'_>) -> Result<Self> {
        Ok(Self {
            fc1: Linear::new(64, 64, true, vb.pp("fc1"))?,
            relu1: ReLU::new(),
            fc2: Linear::new(64, 32, true, vb.pp("fc2"))?,
            relu2: ReLU::new(),
            fc3: Linear::new(32, 10, true, vb.pp("fc3"))?,
        })
    }
}

impl Layer for Digits {
    fn forward(&self, x: &Value) -> fastforward::tensor::Result<Value> {
        let x = self.relu1.forward(&self.fc1.forward(x)?)?;
        let x = self.relu2.forward(&self.fc2.forward(&x)?)?;
        self.fc3.forward(&x)
    }
}

fn main() -> Result<()> {
    run(&mut io::stdout())
}

pub fn run(out: &mut dyn Write) -> Result<()> {
    let _lenient = flags::strict_quantization(false);
    let _constants = flags::inference();
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("digits-w4a8");

    let model = Digits::new(&digits::weights()?)?;
    let mut config = QuantizationConfig::for_model(&model);
    let weight = LinearQuantizerConfig::new(4).with_granularity(Granularity::per_channel(0));
    config.add_rule("**/[quantizer:parameter/weight]", weight)?;
    config.add_rule(
        "**/[cls:Linear]/[quantizer:activation/input]",
        LinearQuantizerConfig::new(8).asymmetric(),
    )?;
    let done = config.initialize(&model, InitializeOptions::default())?;
    let estimation =
        estimate_ranges(&model, EstimatorConfig::running_minmax(), EstimationOptions::default())?;
    model.forward_tensor(&digits::images(0..512)?)?;
    estimation.finish()?;
    // What is saved may be the latent weights, or, as here, those that the quantizers make of them.
    fuse_qdq_weights(&model, false)?;
    let info = StateInfo::new("digits").with_rules(&done.resolution);
    save_quantized_model(&model, &path, &info, SaveOptions::default())?;
    writeln!(out, "saved:")?;
    let mut files: Vec<_> = std::fs::read_dir(&path)?.collect::<io::Result<_>>()?;
    files.sort_by_key(std::fs::DirEntry::file_name);
    for file in files {
        writeln!(
            out,
            "  {:24} {:>7} bytes",
            file.file_name().to_string_lossy(),
            file.metadata()?.len()
        )?;
    }

    // Elsewhere: the same architecture with any weights.
    let fresh = VarMap::new();
    let loaded = Digits::new(&VarBuilder::from_varmap(&fresh, DType::F32, &Device::Cpu))?;
    load_quantized_model(&loaded, &path, Some("digits"), InitializeOptions::default())?;
    let images = digits::images(digits::TEST)?;
    let outputs =
        |model: &Digits| -> Result<Tensor> { Ok(model.forward_tensor(&images)?.dequantize()?) };
    let (saved, read) = (outputs(&model)?, outputs(&loaded)?);
    let labels = digits::labels(digits::TEST)?;
    writeln!(
        out,
        "accuracy before saving {:.1} %",
        measure(Metric::TOP1, &saved, None, Some(&labels))?
    )?;
    writeln!(
        out,
        "accuracy after loading {:.1} %",
        measure(Metric::TOP1, &read, None, Some(&labels))?
    )?;
    let difference = measure(Metric::MaxAbs, &read, Some(&saved), None)?;
    writeln!(out, "largest difference     {difference}")?;

    // Files that do not fit are refused before anything is changed.
    for (what, result) in [
        (
            "another model",
            load_quantized_model(&loaded, &path, Some("letters"), InitializeOptions::default()),
        ),
        (
            "slots that are full",
            load_quantized_model(&loaded, &path, None, InitializeOptions::default()),
        ),
    ] {
        if let Err(error) = result {
            writeln!(out, "\n{what}: {error}")?;
        }
    }
    Ok(())
}
