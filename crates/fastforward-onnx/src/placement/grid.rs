//! A constant on the grid of its quantizer.

use std::sync::Arc;

use fastforward_core::ArrayView;
use fastforward_core::quantization::{Granularity, Quantizer};

use super::PlacedConstant;
use crate::error::{Error, ErrorKind, Result};

/// The grid of a constant.
pub(crate) enum Grid {
    /// That of a slot.
    Quantizer(Arc<dyn Quantizer>),
    /// 32-bit codes at given scales: one, or one per index of an axis.
    Bias { scale: Vec<f32>, axis: Option<usize> },
}

/// A constant as integer codes.
pub(crate) struct Coded {
    pub(crate) shape: Vec<usize>,
    /// The shape of one tile.
    pub(crate) tile: Vec<usize>,
    pub(crate) codes: Vec<i64>,
    pub(crate) num_bits: u32,
    /// One per tile, in row-major order of the grid of tiles.
    pub(crate) scale: Vec<f32>,
    /// Rounded; one per tile.
    pub(crate) offset: Vec<f32>,
}

impl PlacedConstant<'_> {
    /// The name under which errors and reports speak of it.
    pub(crate) fn place(&self) -> &str {
        self.sites.first().map_or(self.constant.name(), String::as_str)
    }

    /// The constant rounded to its grid, by the quantizer itself.
    pub(crate) fn fake_quantized(&self) -> Result<Vec<f32>> {
        let values = self.constant.to_f32()?;
        match &self.grid {
            Grid::Quantizer(quantizer) => {
                let shape = self.constant.info()?.shape;
                let view = ArrayView::new(&values, &shape).map_err(|e| self.wrong(e))?;
                let flow = quantizer.forward(view).map_err(|e| self.wrong(e))?;
                Ok(flow.into_array(view).data)
            }
            Grid::Bias { scale, axis } => {
                let scale_of = self.bias_scales(scale, *axis)?;
                let codes = bias_codes(&values, &scale_of);
                Ok(codes.into_iter().zip(&scale_of).map(|(code, scale)| code * scale).collect())
            }
        }
    }

    /// The constant as codes.
    pub(crate) fn coded(&self) -> Result<Coded> {
        let values = self.constant.to_f32()?;
        let shape = self.constant.info()?.shape;
        match &self.grid {
            Grid::Quantizer(quantizer) => {
                let view = ArrayView::new(&values, &shape).map_err(|e| self.wrong(e))?;
                let quantized = quantizer.quantize(view).map_err(|e| self.wrong(e))?;
                let tile = quantized.granularity.tile_shape(&shape).map_err(|e| self.wrong(e))?;
                let parameters = quantized.parameters;
                let tiles = parameters.scale.len();
                Ok(Coded {
                    tile,
                    codes: quantized.codes.to_i32().into_iter().map(i64::from).collect(),
                    num_bits: parameters.num_bits,
                    offset: (0..tiles).map(|tile| parameters.rounded_offset(tile)).collect(),
                    scale: parameters.scale,
                    shape,
                })
            }
            Grid::Bias { scale, axis } => {
                let granularity = axis
                    .map_or(Granularity::PerTensor, |axis| Granularity::per_channel(axis as isize));
                let codes = bias_codes(&values, &self.bias_scales(scale, *axis)?);
                Ok(Coded {
                    tile: granularity.tile_shape(&shape).map_err(|e| self.wrong(e))?,
                    codes: codes.into_iter().map(|code| code as i64).collect(),
                    num_bits: 32,
                    offset: vec![0.0; scale.len()],
                    scale: scale.clone(),
                    shape,
                })
            }
        }
    }

    /// The scale of every element of a bias.
    fn bias_scales(&self, scale: &[f32], axis: Option<usize>) -> Result<Vec<f32>> {
        let shape = self.constant.info()?.shape;
        let len: usize = shape.iter().product();
        let inner: usize = axis.map_or(len, |axis| shape[axis + 1..].iter().product());
        Ok((0..len).map(|at| scale[at / inner.max(1) % scale.len()]).collect())
    }

    pub(crate) fn wrong(&self, error: fastforward_core::Error) -> Error {
        let text = format!("`{}` (constant `{}`): {error}", self.place(), self.constant.name());
        Error::new(ErrorKind::Quantizer, text).caused_by(error)
    }
}

/// `round(b / s)`, half to even, as floats that hold integers.
pub(super) fn bias_codes(values: &[f32], scale_of: &[f32]) -> Vec<f32> {
    values.iter().zip(scale_of).map(|(value, scale)| (value / scale).round_ties_even()).collect()
}
