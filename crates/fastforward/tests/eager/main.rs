//! Quantized tensors, operators and strict mode, through the public API.
#![cfg(feature = "eager")]

mod corners;
mod documentation;
mod fused;
mod integer;
mod kept;
mod quantized;
mod strict;
mod watched;

use std::sync::Arc;

use candle_core::{Device, Tensor};
use fastforward::quantization::affine::{AffineGrid, AffineParameters};
use fastforward::quantization::quantizer::RangeSettable;
use fastforward::quantization::{Granularity, LinearQuantizer, LinearQuantizerConfig};
use fastforward::tensor::{QuantizedTensor, Result};

/// Reproducible numbers in `-1..1`.
fn noise(count: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    (0..count).map(|_| next()).collect()
}

fn tensor(shape: &[usize], seed: u64) -> Tensor {
    let data = noise(shape.iter().product(), seed);
    Tensor::from_vec(data, shape, &Device::Cpu).unwrap()
}

/// A quantizer with a range of `-1..1` for each of `tiles` tiles.
fn quantizer(num_bits: u32, granularity: Granularity, tiles: usize) -> Arc<LinearQuantizer> {
    let config = LinearQuantizerConfig::new(num_bits).asymmetric().with_granularity(granularity);
    let quantizer = LinearQuantizer::new(config).unwrap();
    let max: Vec<f32> = (0..tiles).map(|tile| 1.0 / (1 + tile) as f32).collect();
    quantizer.set_quantization_range(&vec![-1.0; tiles], &max).unwrap();
    Arc::new(quantizer)
}

/// A tensor quantized with parameters that differ from tile to tile.
fn quantized(x: &Tensor, num_bits: u32, granularity: Granularity) -> Result<QuantizedTensor> {
    let tiles = granularity.num_parameters(x.dims())?;
    let scale = (0..tiles).map(|tile| 0.01 * (1 + tile) as f32).collect();
    let offset = Some((0..tiles).map(|tile| tile as f32 - 1.0).collect());
    let parameters = AffineParameters { num_bits, narrow_range: false, scale, offset };
    QuantizedTensor::quantize(x, &AffineGrid { granularity, parameters: parameters.into() })
}

fn values(x: &Tensor) -> Vec<f32> {
    x.flatten_all().unwrap().to_vec1().unwrap()
}
