//! Stored codes, decoded part by part.

use std::ops::Range;
use std::path::Path;

use fastforward_core::quantization::affine::Part;

use super::{Layout, Operands, dequantize_linear, is_dequantize, unsupported};
use crate::dtype::DType;
use crate::error::{Error, ErrorKind, Result};
use crate::graph::{Constant, Stored};
use crate::proto::{NodeProto, TensorProto};

/// A `DequantizeLinear` of stored codes with scales in `float32`, computed for parts of the tensor. What it takes does not
/// grow with the codes.
pub(crate) struct Decoder<'a> {
    operands: Operands<'a>,
    codes: Constant<'a>,
    stored: Stored,
}

impl<'a> Decoder<'a> {
    /// The decoder of a node whose inputs are known; see [`super::evaluate`].
    pub(crate) fn new(
        node: &NodeProto,
        inputs: &[Option<&'a TensorProto>],
        folder: Option<&'a Path>,
    ) -> Result<Self> {
        let operands = Operands::read(node, inputs, folder)?;
        let dtype = operands.x_dtype;
        let is_known = dtype.is_int() && (dtype.bits() <= 16 || dtype == DType::I32);
        if !is_dequantize(node) || !is_known {
            return Err(unsupported("input", operands.x_dtype));
        }
        if operands.scale_dtype != DType::F32 {
            return Err(unsupported("scale", operands.scale_dtype));
        }
        operands.check_zero_point()?;
        let codes = Constant::at(operands.x, folder);
        let stored = codes.stored()?;
        Ok(Self { operands, codes, stored })
    }

    /// The shape of the codes.
    pub(crate) fn shape(&self) -> &[usize] {
        &self.operands.shape
    }

    /// The floats of a part.
    pub(crate) fn decode(&self, part: &Part) -> Result<Vec<f32>> {
        let (layout, scales) = self.operands.layout.part(part)?;
        let mut codes = vec![0; part.elements.len()];
        self.codes.read_codes(
            self.operands.x_dtype,
            &self.stored,
            part.elements.start,
            &mut Vec::new(),
            &mut codes,
        )?;
        let zero_point = self.operands.zero_point.as_ref();
        let zero_point = zero_point.map(|(_, values)| &values[scales.clone()]);
        dequantize_linear(&codes, &layout, &self.operands.scale[scales], zero_point)
    }
}

impl Layout {
    /// The layout of a part of the tensor, and the scales that are its.
    ///
    /// # Errors
    /// `InvalidGraph` when the part begins or ends within a block of several rows and does not lie within one.
    fn part(&self, part: &Part) -> Result<(Self, Range<usize>)> {
        let Some(axis) = self.axis else {
            return Ok((Self::new(&part.shape, &[], 0, 0)?, 0..1));
        };
        let (first, rows) = (part.index.len(), part.rows.clone());
        if !self.is_blocked {
            return match axis.checked_sub(first) {
                None => {
                    let at = part.index[axis];
                    Ok((Self::new(&part.shape, &[], 0, 0)?, at..at + 1))
                }
                Some(0) => Ok((Self::new(&part.shape, &[rows.len()], 0, 0)?, rows)),
                Some(axis) => {
                    let scales = self.n_scales;
                    Ok((Self::new(&part.shape, &[scales], axis as i64, 0)?, 0..scales))
                }
            };
        }
        // The scales have the shape of the tensor, but for the axis of the blocks.
        let mut shape = self.shape.clone();
        shape[axis] = self.n_blocks;
        let outer = part.index.iter().enumerate().fold(0, |at, (dim, &index)| {
            at * shape[dim] + if dim == axis { index / self.block_len } else { index }
        }) * shape[first];
        let inner: usize = shape[first + 1..].iter().product();
        let (rows, axis, block_len) = match axis.checked_sub(first) {
            // Within one block every element has a scale of its own.
            None => (rows, 0, 1),
            Some(0) => {
                let blocks = rows.start / self.block_len..(rows.end - 1) / self.block_len + 1;
                let begins = rows.start.is_multiple_of(self.block_len);
                let ends = rows.end.is_multiple_of(self.block_len) || rows.end == self.axis_len;
                let block_len = match (begins && ends, blocks.len()) {
                    (true, _) => self.block_len,
                    (false, 1) => rows.len(),
                    (false, _) => {
                        return Err(Error::new(
                            ErrorKind::InvalidGraph,
                            format!("rows {rows:?} do not consist of blocks of {}", self.block_len),
                        ));
                    }
                };
                (blocks, 0, block_len)
            }
            Some(axis) => (rows, axis, self.block_len),
        };
        let scale_shape = [&[rows.len()], &shape[first + 1..]].concat();
        let scales = (outer + rows.start) * inner..(outer + rows.end) * inner;
        Ok((Self::new(&part.shape, &scale_shape, axis as i64, block_len as i64)?, scales))
    }
}

#[cfg(test)]
mod tests {
    use fastforward_core::quantization::Granularity;
    use fastforward_core::quantization::affine::{AffineGrid, AffineParameters};

    use super::*;

    /// Every element of every part finds the scale that it has in the whole.
    #[track_caller]
    fn check(shape: &[usize], tile: &[usize], layout: &Layout) {
        let granularity = Granularity::per_tile(tile);
        let tiles = granularity.num_parameters(shape).unwrap();
        let parameters = AffineParameters {
            num_bits: 8,
            narrow_range: false,
            scale: vec![1.0; tiles],
            offset: None,
        };
        let grid = AffineGrid { granularity, parameters: parameters.into() };
        for max_elements in [1, 2, 3, 4, 6, 10, 12, 24, 100] {
            for part in grid.parts(shape, max_elements).unwrap() {
                let (found, scales) = layout.part(&part).unwrap();
                assert_eq!(found.n_scales(), scales.len());
                for at in 0..part.elements.len() {
                    assert_eq!(
                        scales.start + found.scale_of(at),
                        layout.scale_of(part.elements.start + at),
                        "{shape:?} in parts of {max_elements}, element {at} of {part:?}"
                    );
                }
            }
        }
    }

    #[test]
    fn rows_that_do_not_consist_of_blocks_are_refused() {
        let layout = Layout::new(&[8], &[2], 0, 4).unwrap();
        let part = |rows: Range<usize>| Part { rows: rows.clone(), ..Part::whole(&[rows.len()]) };
        assert!(layout.part(&part(3..6)).is_err());
        assert_eq!(layout.part(&part(5..7)).unwrap().1, 1..2);
    }

    #[test]
    fn parts_have_the_scales_of_the_whole() {
        let layout = |shape: &[usize], scales: &[usize], axis, block| {
            Layout::new(shape, scales, axis, block).unwrap()
        };
        check(&[4, 6], &[4, 6], &layout(&[4, 6], &[], 0, 0));
        check(&[4, 6], &[1, 6], &layout(&[4, 6], &[4], 0, 0));
        check(&[4, 6], &[4, 1], &layout(&[4, 6], &[6], 1, 0));
        check(&[4, 6], &[1, 3], &layout(&[4, 6], &[4, 2], 1, 3));
        check(&[4, 6], &[2, 3], &layout(&[4, 6], &[4, 2], 1, 3));
        check(&[4, 6], &[2, 1], &layout(&[4, 6], &[2, 6], 0, 2));
        check(&[4, 6], &[4, 3], &layout(&[4, 6], &[1, 6], 0, 4));
        check(&[2, 4, 3, 5], &[1, 2, 3, 5], &layout(&[2, 4, 3, 5], &[2, 4, 3, 1], 3, 5));
        check(&[2, 4, 3, 5], &[1, 2, 1, 1], &layout(&[2, 4, 3, 5], &[2, 2, 3, 5], 1, 2));
        check(&[2, 4, 3, 5], &[2, 4, 1, 5], &layout(&[2, 4, 3, 5], &[3], 2, 0));
    }
}
