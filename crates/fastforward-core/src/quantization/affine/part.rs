//! Large tensors, quantized piece by piece.

use std::ops::Range;

use ff_kernels::{Affine, Code, KernelError, Tiling};
use rayon::prelude::*;

use super::{AffineGrid, AffineParameters};
use crate::{Error, ErrorKind};

/// Consecutive elements of a tensor that are an array themselves, with tiles and parameters of their own: what a tensor is
/// cut into where it is too large to be held in several forms at once.
///
/// Quantizing the parts of a tensor gives, one after the other, exactly what quantizing the tensor gives.
///
/// ```
/// use std::sync::Arc;
/// use fastforward_core::quantization::Granularity;
/// use fastforward_core::quantization::affine::{AffineGrid, AffineParameters};
///
/// let parameters = AffineParameters { num_bits: 8, narrow_range: false, scale: vec![1.0, 2.0, 4.0], offset: None };
/// let grid = AffineGrid { granularity: Granularity::per_channel(0), parameters: Arc::new(parameters) };
/// let x = [8.0, 9.0, 8.0, 9.0, 8.0, 9.0];
/// let mut codes = Vec::new();
/// for part in grid.parts(&[3, 2], 4)? {
///     let mut some = vec![0i8; part.elements.len()];
///     part.quantize(&grid.parameters, &x[part.elements.clone()], &mut some)?;
///     codes.extend(some);
/// }
/// assert_eq!(codes, [8, 9, 4, 4, 2, 2]);
/// # Ok::<(), fastforward_core::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// The elements of the tensor, in row-major order.
    pub elements: Range<usize>,
    /// Where the part stands: one index along each of the tensor's first axes, and rows along the next one. All of the axes
    /// behind it belong to the part.
    pub index: Vec<usize>,
    /// The rows along the axis behind those of `index`.
    pub rows: Range<usize>,
    /// The shape of the part: the number of rows, then the tensor's further axes.
    pub shape: Vec<usize>,
    /// The shape of a tile of the part.
    pub tile: Vec<usize>,
    /// The tiles of the tensor that the part lies in.
    pub tiles: Range<usize>,
}

/// Row counts are multiples of this where there are as many, so that parts of packed codes begin with a byte.
const ROWS_TOGETHER: usize = 8;

/// Cuts a tensor of this shape, in tiles of this shape, into parts of about `max_elements` elements and no more, in the
/// order of its elements.
///
/// `tile` has the rank of `shape` and divides it, as [`Granularity::tile_shape`](crate::quantization::Granularity) ensures.
pub(crate) fn parts(shape: &[usize], tile: &[usize], max_elements: usize) -> Vec<Part> {
    if shape.contains(&0) {
        return Vec::new();
    }
    if shape.is_empty() {
        let index = Vec::new();
        let (shape, tile) = (Vec::new(), Vec::new());
        return vec![Part { elements: 0..1, index, rows: 0..1, shape, tile, tiles: 0..1 }];
    }
    let max_elements = max_elements.max(1);
    let inner = |axis: usize| shape[axis + 1..].iter().product::<usize>();
    // The outermost axis of which some rows fit.
    let axis = (0..shape.len()).find(|&axis| inner(axis) <= max_elements).unwrap_or(0);
    let row_len = inner(axis);
    let max_rows = (max_elements / row_len).clamp(1, shape[axis]);
    // Whole tiles where they fit, and as many rows as fill bytes.
    let whole = if tile[axis] <= max_rows { tile[axis] } else { 1 };
    let even = whole * ROWS_TOGETHER / largest_common_divisor(whole, ROWS_TOGETHER);
    let step = if even <= max_rows { even } else { whole };
    let max_rows = max_rows - max_rows % step;
    let grid: Vec<usize> = shape.iter().zip(tile).map(|(size, tile)| size / tile).collect();
    let inner_tiles: usize = grid[axis + 1..].iter().product();

    let mut parts = Vec::new();
    let outer: usize = shape[..axis].iter().product();
    let mut index = vec![0; axis];
    for number in 0..outer {
        let first_tile = index
            .iter()
            .enumerate()
            .fold(0, |at, (axis, &index)| at * grid[axis] + index / tile[axis])
            * grid[axis];
        let first_element = number * shape[axis] * row_len;
        let mut row = 0;
        while row < shape[axis] {
            // A part holds whole tiles, or lies within one.
            let end_of_tile = (row / tile[axis] + 1) * tile[axis];
            let limit = if tile[axis] > max_rows { end_of_tile } else { shape[axis] };
            let end = (row + max_rows).min(limit);
            let rows = end - row;
            let tiles = first_tile + row / tile[axis]..first_tile + (end - 1) / tile[axis] + 1;
            let of = |first: usize, from: &[usize]| [&[first], &from[axis + 1..]].concat();
            parts.push(Part {
                elements: first_element + row * row_len..first_element + end * row_len,
                index: index.clone(),
                rows: row..end,
                shape: of(rows, shape),
                tile: of(tile[axis].min(rows), tile),
                tiles: tiles.start * inner_tiles..tiles.end * inner_tiles,
            });
            row = end;
        }
        for (at, size) in index.iter_mut().zip(shape).rev() {
            *at += 1;
            if *at < *size {
                break;
            }
            *at = 0;
        }
    }
    parts
}

fn largest_common_divisor(a: usize, b: usize) -> usize {
    if b == 0 { a } else { largest_common_divisor(b, a % b) }
}

impl AffineGrid {
    /// A tensor of this shape, cut into parts of at most `max_elements` elements, in their order.
    ///
    /// # Errors
    /// [`ErrorKind::Granularity`] when the tensor cannot be cut into tiles, or into another number of tiles than there are
    /// scales.
    pub fn parts(&self, shape: &[usize], max_elements: usize) -> Result<Vec<Part>, Error> {
        let tile = self.granularity.tile_shape(shape)?;
        if shape.contains(&0) {
            return Ok(Vec::new());
        }
        let tiles = shape.iter().zip(&tile).map(|(size, tile)| size / tile).product();
        self.parameters.check_tiles(shape, &self.granularity, tiles)?;
        Ok(parts(shape, &tile, max_elements))
    }
}

/// Elements of a part, where nothing else is asked for: all forms of it stay in the cache of a core.
pub const PART_ELEMENTS: usize = 1 << 18;
/// Parts that are quantized before their codes are handed on.
const PARTS_TOGETHER: usize = 8;

impl AffineGrid {
    /// Quantizes a tensor of this shape without ever holding it whole: `read` fills a slice with the elements from a number
    /// on, on several threads, and `write` takes the codes in the order of the elements.
    ///
    /// # Errors
    /// As [`parts`](AffineGrid::parts) and [`Part::quantize`]; what `read` and `write` report. Of several errors of a group
    /// of parts the first in the order of the elements is given.
    pub fn quantize_in_parts<C: Code, E: From<Error> + Send>(
        &self,
        shape: &[usize],
        read: impl Fn(usize, &mut [f32]) -> Result<(), E> + Sync,
        mut write: impl FnMut(&[C]) -> Result<(), E>,
    ) -> Result<(), E> {
        let parts = self.parts(shape, PART_ELEMENTS)?;
        let mut codes = vec![Vec::new(); PARTS_TOGETHER.min(parts.len())];
        for group in parts.chunks(PARTS_TOGETHER) {
            let results: Vec<Result<(), E>> = group
                .par_iter()
                .zip(&mut codes)
                .map_init(Vec::new, |x: &mut Vec<f32>, (part, codes)| {
                    let len = part.elements.len();
                    x.resize(len, 0.0);
                    codes.resize(len, C::default());
                    read(part.elements.start, x)?;
                    Ok(part.quantize(&self.parameters, x, codes)?)
                })
                .collect();
            results.into_iter().collect::<Result<(), E>>()?;
            codes[..group.len()].iter().try_for_each(|codes| write(codes))?;
        }
        Ok(())
    }
}

impl Part {
    /// A tensor of this shape as its only part, in one tile.
    pub fn whole(shape: &[usize]) -> Self {
        Self {
            elements: 0..shape.iter().product(),
            index: Vec::new(),
            rows: 0..shape.first().copied().unwrap_or(1),
            shape: shape.to_vec(),
            tile: shape.to_vec(),
            tiles: 0..1,
        }
    }

    /// The codes of the part's elements `x`.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidData`] for NaN, slices of another length than the part's, and codes that `C` does not hold;
    /// [`ErrorKind::Granularity`] for parameters of another tensor.
    pub fn quantize<C: Code>(
        &self,
        parameters: &AffineParameters,
        x: &[f32],
        codes: &mut [C],
    ) -> Result<(), Error> {
        let (tiling, affine) = (self.tiling()?, self.affine(parameters)?);
        ff_kernels::quantize(x, &tiling, affine, parameters.grid()?, codes)
            .map_err(|error| self.wrong(error))
    }

    /// The part's elements `x` rounded to their grid.
    ///
    /// # Errors
    /// As [`quantize`](Part::quantize), except that NaN stays NaN.
    pub fn fake_quantize(
        &self,
        parameters: &AffineParameters,
        x: &[f32],
        out: &mut [f32],
    ) -> Result<(), Error> {
        let (tiling, affine) = (self.tiling()?, self.affine(parameters)?);
        ff_kernels::fake_quantize(x, &tiling, affine, parameters.grid()?, out)
            .map_err(|error| self.wrong(error))
    }

    fn tiling(&self) -> Result<Tiling, Error> {
        Tiling::new(&self.shape, &self.tile).map_err(|error| {
            Error::new(ErrorKind::Granularity, error.to_string()).with_source(error)
        })
    }

    fn affine<'p>(&self, parameters: &'p AffineParameters) -> Result<Affine<'p>, Error> {
        let whole = parameters.affine();
        let some = |values: &'p [f32]| {
            values.get(self.tiles.clone()).ok_or_else(|| {
                Error::new(
                    ErrorKind::Granularity,
                    format!("tiles {:?} of a tensor that has {}", self.tiles, values.len()),
                )
            })
        };
        Ok(Affine { scale: some(whole.scale)?, offset: whole.offset.map(some).transpose()? })
    }

    fn wrong(&self, error: KernelError) -> Error {
        let text = format!("elements {:?}: {error}", self.elements);
        Error::new(ErrorKind::InvalidData, text).with_source(error)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::ArrayView;
    use crate::quantization::Granularity;
    use crate::quantization::affine::{Codes, quantize_codes};

    /// Parts of any size, put together, are the tensor.
    #[track_caller]
    fn check(shape: &[usize], granularity: Granularity) {
        let tiles = granularity.num_parameters(shape).unwrap();
        let parameters = AffineParameters {
            num_bits: 8,
            narrow_range: false,
            scale: (0..tiles).map(|tile| 0.25 + tile as f32).collect(),
            offset: Some((0..tiles).map(|tile| (tile % 5) as f32 - 2.0).collect()),
        };
        let len: usize = shape.iter().product();
        let x: Vec<f32> = (0..len).map(|at| (at * 37 % 101) as f32 - 50.0).collect();
        let view = ArrayView::new(&x, shape).unwrap();
        let Codes::I8(expected) = quantize_codes(view, &granularity, &parameters).unwrap() else {
            panic!("8 bits are stored in i8");
        };
        let grid = AffineGrid { granularity, parameters: Arc::new(parameters) };
        for max_elements in [1, 2, 3, 5, 8, 12, 24, 100, 1000] {
            let parts = grid.parts(shape, max_elements).unwrap();
            let mut codes = vec![0i8; len];
            let mut next = 0;
            for part in parts {
                assert_eq!(part.elements.start, next, "{shape:?} in parts of {max_elements}");
                assert!(part.elements.len() <= max_elements);
                assert_eq!(part.shape.iter().product::<usize>(), part.elements.len());
                next = part.elements.end;
                let range = part.elements.clone();
                part.quantize(&grid.parameters, &x[range.clone()], &mut codes[range]).unwrap();
            }
            assert_eq!((next, &codes), (len, &expected), "{shape:?} in parts of {max_elements}");
        }
        assert_eq!(in_parts(&grid, shape, &x), expected);
    }

    fn in_parts(grid: &AffineGrid, shape: &[usize], x: &[f32]) -> Vec<i8> {
        let mut codes: Vec<i8> = Vec::new();
        let read = |first: usize, out: &mut [f32]| -> Result<(), Error> {
            out.copy_from_slice(&x[first..first + out.len()]);
            Ok(())
        };
        let write = |some: &[i8]| {
            codes.extend(some);
            Ok(())
        };
        grid.quantize_in_parts(shape, read, write).unwrap();
        codes
    }

    #[test]
    fn parts_are_quantized_as_the_whole_is() {
        check(&[7], Granularity::PerTensor);
        check(&[], Granularity::PerTensor);
        check(&[0, 3], Granularity::PerTensor);
        check(&[6, 4], Granularity::PerTensor);
        check(&[6, 4], Granularity::per_channel(0));
        check(&[6, 4], Granularity::per_channel(1));
        check(&[6, 8], Granularity::per_block(&[1], &[4], &[0]));
        check(&[6, 8], Granularity::per_block(&[0], &[3], &[1]));
        check(&[6, 8], Granularity::per_tile(&[2, 4]));
        check(&[33, 5], Granularity::per_channel(0));
        check(&[1, 24], Granularity::per_block(&[1], &[6], &[]));
        check(&[4, 3, 2, 5], Granularity::per_tile(&[2, 3, 1, 5]));
        check(&[4, 3, 2, 5], Granularity::per_channel(2));
    }

    #[test]
    fn more_parts_than_are_quantized_together_come_in_order() {
        let shape = [PART_ELEMENTS / 16 + 3, 150];
        let parameters = AffineParameters {
            num_bits: 8,
            narrow_range: false,
            scale: (0..shape[0]).map(|row| 0.5 + row as f32 / 4096.0).collect(),
            offset: None,
        };
        let x: Vec<f32> = (0..shape[0] * shape[1]).map(|at| (at % 200) as f32 - 99.0).collect();
        let view = ArrayView::new(&x, &shape).unwrap();
        let granularity = Granularity::per_channel(0);
        let expected = quantize_codes(view, &granularity, &parameters).unwrap();
        let grid = AffineGrid { granularity, parameters: Arc::new(parameters) };
        assert!(grid.parts(&shape, PART_ELEMENTS).unwrap().len() > PARTS_TOGETHER);
        assert_eq!(Codes::I8(in_parts(&grid, &shape, &x)), expected);
    }

    #[test]
    fn parameters_of_another_tensor_are_refused() {
        let parameters = AffineParameters {
            num_bits: 4,
            narrow_range: false,
            scale: vec![1.0; 3],
            offset: None,
        };
        let grid = AffineGrid {
            granularity: Granularity::per_channel(0),
            parameters: Arc::new(parameters),
        };
        assert!(grid.parts(&[4, 2], 4).is_err());
        let part = &grid.parts(&[3, 2], 100).unwrap()[0];
        let few = AffineParameters { scale: vec![1.0], ..(*grid.parameters).clone() };
        assert!(part.quantize(&few, &[0.0; 6], &mut [0i8; 6]).is_err());
        assert!(part.quantize(&grid.parameters, &[0.0; 5], &mut [0i8; 6]).is_err());
    }
}
