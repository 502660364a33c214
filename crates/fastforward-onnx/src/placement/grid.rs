//! A constant on the grid of its quantizer.

use std::sync::Arc;

use fastforward_core::ArrayView;
use fastforward_core::quantization::affine::{AffineGrid, AffineParameters, PART_ELEMENTS, Part};
use fastforward_core::quantization::{Granularity, Quantizer};
use ff_kernels::Difference;
use rayon::prelude::*;

use super::PlacedConstant;
use crate::compare::difference;
use crate::error::{Error, ErrorKind, Result};

/// The grid of a constant.
pub(crate) enum Grid {
    /// That of a slot.
    Quantizer(Arc<dyn Quantizer>),
    /// 32-bit codes at given scales: one, or one per index of an axis.
    Bias { scale: Vec<f32>, axis: Option<usize> },
}

/// A constant as integer codes, which are computed when they are written.
pub(crate) struct Coded {
    pub(crate) shape: Vec<usize>,
    /// The shape of one tile.
    pub(crate) tile: Vec<usize>,
    pub(crate) codes: CodesOf,
    /// Those of the quantizer, shared with it; of a bias, 32 bits and no offset.
    pub(crate) parameters: Arc<AffineParameters>,
}

/// Where codes come from.
pub(crate) enum CodesOf {
    /// They are computed part by part.
    Grid(AffineGrid),
    /// They are there.
    Whole(Vec<i32>),
}

/// Some codes, in the order of the elements.
pub(crate) enum SomeCodes<'c> {
    I8(&'c [i8]),
    I32(&'c [i32]),
}

/// An element that is not what it should be.
pub(crate) struct Mismatch {
    pub(crate) element: usize,
    pub(crate) found: f32,
    pub(crate) expected: f32,
}

/// Fills a buffer with what somebody else makes of the codes of a part.
pub(crate) type Decode<'d> = &'d (dyn Fn(&Part, &mut Vec<f32>) -> Result<()> + Sync);

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

    /// The grid of the constant, where it needs no look at the data.
    fn static_grid(&self) -> Option<AffineGrid> {
        match &self.grid {
            Grid::Quantizer(quantizer) => quantizer.static_grid(),
            Grid::Bias { .. } => None,
        }
    }

    /// The bits of the quantizer's codes.
    pub(crate) fn grid_bits(&self) -> Option<u32> {
        match &self.grid {
            Grid::Quantizer(quantizer) => quantizer.num_bits(),
            Grid::Bias { .. } => None,
        }
    }

    /// The constant as codes.
    pub(crate) fn coded(&self) -> Result<Coded> {
        let shape = self.constant.info()?.shape;
        let tile_of = |granularity: &Granularity| {
            granularity.tile_shape(&shape).map_err(|error| self.wrong(error))
        };
        if let Some(grid) = self.static_grid() {
            let (tile, parameters) = (tile_of(&grid.granularity)?, Arc::clone(&grid.parameters));
            return Ok(Coded { tile, codes: CodesOf::Grid(grid), parameters, shape });
        }
        let values = self.constant.to_f32()?;
        let (tile, codes, parameters) = match &self.grid {
            Grid::Quantizer(quantizer) => {
                let view = ArrayView::new(&values, &shape).map_err(|e| self.wrong(e))?;
                let quantized = quantizer.quantize(view).map_err(|e| self.wrong(e))?;
                (tile_of(&quantized.granularity)?, quantized.codes.to_i32(), quantized.parameters)
            }
            Grid::Bias { scale, axis } => {
                let granularity = axis
                    .map_or(Granularity::PerTensor, |axis| Granularity::per_channel(axis as isize));
                let codes = bias_codes(&values, &self.bias_scales(scale, *axis)?);
                let parameters = AffineParameters {
                    num_bits: 32,
                    narrow_range: false,
                    scale: scale.clone(),
                    offset: None,
                };
                let codes = codes.into_iter().map(|code| code as i32).collect();
                (tile_of(&granularity)?, codes, parameters)
            }
        };
        Ok(Coded { tile, codes: CodesOf::Whole(codes), parameters: Arc::new(parameters), shape })
    }

    /// Hands on the codes of `coded`, which is this constant's, in the order of the elements.
    pub(crate) fn write_codes(
        &self,
        coded: &Coded,
        write: &mut dyn FnMut(SomeCodes<'_>) -> Result<()>,
    ) -> Result<()> {
        let grid = match &coded.codes {
            CodesOf::Whole(codes) => return write(SomeCodes::I32(codes)),
            CodesOf::Grid(grid) => grid,
        };
        let floats = self.constant.floats()?;
        let read = |first: usize, out: &mut [f32]| floats.read(first, out);
        let result = if coded.parameters.num_bits <= 8 {
            grid.quantize_in_parts(&coded.shape, read, |codes| write(SomeCodes::I8(codes)))
        } else {
            grid.quantize_in_parts(&coded.shape, read, |codes| write(SomeCodes::I32(codes)))
        };
        result.map_err(|error: Error| {
            if error.is_of_files() {
                return error;
            }
            let text = format!("`{}` (constant `{}`): {error}", self.place(), self.constant.name());
            Error::new(ErrorKind::Quantizer, text).caused_by(error)
        })
    }

    /// How far the quantizer moves the constant, and with `decode` the first element that decodes to something else than
    /// the quantizer makes of it.
    ///
    /// Memory does not grow with the constant. The sums are those of parts of fixed size in their order, the same for any
    /// number of threads.
    pub(crate) fn compare(
        &self,
        decode: Option<Decode<'_>>,
    ) -> Result<(Difference, Option<Mismatch>)> {
        let shape = self.constant.info()?.shape;
        let floats = self.constant.floats()?;
        let grid = self.static_grid();
        let (parts, whole) = match &grid {
            Some(grid) => {
                let parts = grid.parts(&shape, PART_ELEMENTS).map_err(|e| self.wrong(e))?;
                (parts, None)
            }
            None => (vec![Part::whole(&shape)], Some(self.fake_quantized()?)),
        };
        let one = |buffers: &mut Buffers, part: &Part| -> Result<_> {
            let Buffers { x, rounded, decoded } = buffers;
            x.resize(part.elements.len(), 0.0);
            floats.read(part.elements.start, x)?;
            let expected: &[f32] = match (&grid, &whole) {
                (Some(grid), _) => {
                    rounded.resize(x.len(), 0.0);
                    part.fake_quantize(&grid.parameters, x, rounded)
                        .map_err(|error| self.wrong(error))?;
                    rounded
                }
                (None, whole) => whole.as_deref().unwrap_or(&[]),
            };
            let mut mismatch = None;
            if let Some(decode) = decode {
                decode(part, decoded)?;
                let differs = |(found, expected): (&f32, &f32)| found != expected;
                mismatch = decoded.iter().zip(expected).position(differs).map(|at| Mismatch {
                    element: part.elements.start + at,
                    found: decoded[at],
                    expected: expected[at],
                });
            }
            Ok((difference(x, expected)?, mismatch))
        };
        let results: Vec<Result<(Difference, Option<Mismatch>)>> = parts
            .par_iter()
            .map_init(Buffers::default, |buffers, part| one(buffers, part))
            .collect();
        let mut all = (Difference::default(), None);
        for result in results {
            let (difference, mismatch) = result?;
            all = (all.0.merge(&difference), all.1.or(mismatch));
        }
        Ok(all)
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

/// What one thread compares parts in.
#[derive(Default)]
struct Buffers {
    x: Vec<f32>,
    rounded: Vec<f32>,
    decoded: Vec<f32>,
}
