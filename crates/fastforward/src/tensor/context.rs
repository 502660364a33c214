//! How codes are decoded, and how that follows data through changes of shape.

use std::fmt;
use std::sync::Arc;

use candle_core::DType;

use super::codes::positions;
use super::{Error, Result};
use crate::ErrorKind;
use crate::quantization::Granularity;
use crate::quantization::affine::{AffineGrid, AffineParameters};

/// The parameters that decode the codes of one tensor, and which codes each belongs to.
///
/// A context is bound to the shape of its data: the tile has one extent per dimension, and there is one scale (and
/// offset) per tile in row-major order of the tiles (spec §4.1).
#[derive(Clone, Debug, PartialEq)]
pub struct QuantizationContext {
    parameters: Arc<AffineParameters>,
    shape: Vec<usize>,
    tile: Vec<usize>,
    dtype: DType,
}

impl QuantizationContext {
    /// The context of data of this shape on this grid, that dequantizes to `dtype`.
    ///
    /// # Errors
    /// [`ErrorKind::Granularity`] when the granularity does not fit the shape, or the number of scales the number of
    /// tiles; [`ErrorKind::Operator`] when `dtype` is no float type.
    pub fn new(grid: &AffineGrid, shape: &[usize], dtype: DType) -> Result<Self> {
        if !dtype.is_float() {
            return Err(Error::operator(
                "quantize",
                format_args!(
                    "data of type {dtype:?} is not float; convert it with `to_dtype` first"
                ),
            ));
        }
        let tile = grid.granularity.tile_shape(shape)?;
        let context =
            Self { parameters: Arc::clone(&grid.parameters), shape: shape.to_vec(), tile, dtype };
        let expected: usize = context.grid_shape().iter().product();
        let found = grid.parameters.scale.len();
        if found == expected {
            return Ok(context);
        }
        Err(Error::new(
            ErrorKind::Granularity,
            format!(
                "{} cuts data of shape {shape:?} into {expected} tiles, but there are {found} scales",
                grid.granularity
            ),
        ))
    }

    /// One scale and offset per tile.
    pub fn parameters(&self) -> &Arc<AffineParameters> {
        &self.parameters
    }

    /// The shape of the data.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// The shape of one tile.
    pub fn tile_shape(&self) -> &[usize] {
        &self.tile
    }

    /// The float type that codes become when they are dequantized.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// The bits of one code.
    pub fn num_bits(&self) -> u32 {
        self.parameters.num_bits
    }

    /// Whether one scale stands for the whole tensor.
    pub fn is_per_tensor(&self) -> bool {
        self.parameters.scale.len() == 1
    }

    /// The axis along which each index has a scale of its own, if there is exactly one such axis and all others are
    /// whole.
    pub fn channel_axis(&self) -> Option<usize> {
        let mut cut = (0..self.shape.len()).filter(|&axis| self.tile[axis] != self.shape[axis]);
        let axis = cut.next()?;
        (cut.next().is_none() && self.tile[axis] == 1).then_some(axis)
    }

    /// The simplest granularity with these tiles.
    pub fn granularity(&self) -> Granularity {
        if self.is_per_tensor() {
            return Granularity::PerTensor;
        }
        Granularity::from_sizes(&self.shape, &self.tile)
            .unwrap_or_else(|_| Granularity::per_tile(&self.tile))
    }

    /// The grid, as quantizers know it.
    pub fn grid(&self) -> AffineGrid {
        AffineGrid { granularity: self.granularity(), parameters: Arc::clone(&self.parameters) }
    }

    /// The number of tiles along each axis.
    fn grid_shape(&self) -> Vec<usize> {
        self.shape.iter().zip(&self.tile).map(|(&d, &t)| d.checked_div(t).unwrap_or(1)).collect()
    }

    /// The context of the same data with its axes in another order.
    pub(crate) fn permute(&self, axes: &[usize]) -> Self {
        let grid = self.grid_shape();
        let strides = row_major_strides(&grid);
        let order = |of: &[usize]| -> Vec<usize> { axes.iter().map(|&axis| of[axis]).collect() };
        let picked = positions(&order(&grid), &order(&strides), 0);
        self.with_tiles(order(&self.shape), order(&self.tile), Some(&picked))
    }

    /// The context of the indices `start, start + step, ..` of one axis, `len` of them.
    pub(crate) fn slice(&self, axis: usize, start: usize, len: usize, step: usize) -> Result<Self> {
        let (mut shape, mut tile) = (self.shape.clone(), self.tile.clone());
        let size = self.tile[axis];
        shape[axis] = len;
        if size == self.shape[axis] {
            tile[axis] = len;
            return Ok(self.with_tiles(shape, tile, None));
        }
        let first = start / size;
        let last = start.saturating_add(step.saturating_mul(len.saturating_sub(1))) / size;
        let mut grid = self.grid_shape();
        let (count, stride) = if len == 0 || first == last {
            tile[axis] = len;
            (grid[axis].min(1), 1)
        } else if size == 1 {
            (len, step)
        } else if step == 1 && start.is_multiple_of(size) && len.is_multiple_of(size) {
            (len / size, 1)
        } else {
            return Err(Error::operator(
                "slice",
                format_args!(
                    "indices {start}..{} in steps of {step} cut through blocks of {size} along axis {axis}; a slice \
                     stays quantized when it takes whole blocks, or lies in one",
                    start.saturating_add(step.saturating_mul(len))
                ),
            ));
        };
        let mut strides = row_major_strides(&grid);
        let offset = first.min(grid[axis].saturating_sub(1)) * strides[axis];
        grid[axis] = count;
        strides[axis] *= stride;
        let picked = positions(&grid, &strides, offset);
        Ok(self.with_tiles(shape, tile, Some(&picked)))
    }

    /// The context of the same elements, in the same order, in another shape.
    pub(crate) fn reshape(&self, shape: &[usize]) -> Result<Self> {
        match reshape_tile(&self.shape, &self.tile, shape) {
            Some(tile) => Ok(self.with_tiles(shape.to_vec(), tile, None)),
            None => Err(Error::operator(
                "reshape",
                format_args!(
                    "{} of data of shape {:?} is no tiling of shape {shape:?}; dequantize first, or keep the axes that \
                     have scales of their own",
                    self.granularity(),
                    self.shape
                ),
            )),
        }
    }

    /// The context of the same data repeated along axes of extent 1 and new leading ones.
    pub(crate) fn broadcast(&self, shape: &[usize]) -> Self {
        let new = shape.len() - self.shape.len();
        let tile = (0..shape.len())
            .map(|axis| match axis.checked_sub(new) {
                Some(old) if self.shape[old] == shape[axis] => self.tile[old],
                _ => shape[axis],
            })
            .collect();
        self.with_tiles(shape.to_vec(), tile, None)
    }

    /// The context of data laid one after the other along an axis.
    pub(crate) fn cat(parts: &[&Self], axis: usize) -> Result<Self> {
        let first = parts[0];
        let refuse = |what: &str| {
            Err(Error::operator(
                "cat",
                format_args!(
                    "{what}, so the result has no common grid; give the parts one quantizer, or pass an output quantizer"
                ),
            ))
        };
        let mut shape = first.shape.clone();
        shape[axis] = parts.iter().map(|part| part.shape[axis]).sum();
        let same = |a: &Self| {
            (a.num_bits(), a.parameters.narrow_range, a.dtype)
                == (first.num_bits(), first.parameters.narrow_range, first.dtype)
        };
        if !parts.iter().all(|part| same(part)) {
            return refuse("the parts have different bit widths, code ranges or types");
        }
        let whole = |a: &&Self| a.tile[axis] == a.shape[axis];
        let elsewhere = |a: &&Self| {
            (0..shape.len()).all(|other| other == axis || a.tile[other] == first.tile[other])
        };
        if !parts.iter().all(elsewhere) {
            return refuse("the parts are tiled differently");
        }
        let mut tile = first.tile.clone();
        if parts.iter().all(whole) && parts.iter().all(|a| a.parameters == first.parameters) {
            tile[axis] = shape[axis];
            return Ok(first.with_tiles(shape, tile, None));
        }
        // Tiles of one index are scales of their own along the axis, also where a part has only that one index.
        let single = parts.iter().all(|a| a.tile[axis] == 1);
        if (parts.iter().any(whole) && !single)
            || !parts.iter().all(|a| a.tile[axis] == first.tile[axis])
        {
            return refuse("the parts have different scales or offsets");
        }
        // Each part has scales along the axis: they are laid one after the other as the data is.
        let grids: Vec<Vec<usize>> = parts.iter().map(|part| part.grid_shape()).collect();
        let outer: usize = grids[0][..axis].iter().product();
        let has_offset = parts.iter().any(|part| part.parameters.offset.is_some());
        let (mut scale, mut offset) = (Vec::new(), Vec::new());
        for row in 0..outer {
            for (part, grid) in parts.iter().zip(&grids) {
                let width: usize = grid[axis..].iter().product();
                let range = row * width..(row + 1) * width;
                scale.extend_from_slice(&part.parameters.scale[range.clone()]);
                match &part.parameters.offset {
                    Some(values) => offset.extend_from_slice(&values[range]),
                    None => offset.extend(range.map(|_| 0.0)),
                }
            }
        }
        let parameters = AffineParameters {
            scale,
            offset: has_offset.then_some(offset),
            ..AffineParameters::clone(&first.parameters)
        };
        Ok(Self { parameters: Arc::new(parameters), shape, tile, dtype: first.dtype })
    }

    /// The context of the data times `factor`, and whether each code `q` becomes its mirror image for it: `-1 - q`, or
    /// `-q` on a narrow range.
    ///
    /// A negative factor mirrors the grid, so that scales stay positive: with `q' = -1 - q`, `(q + o)·s·k =
    /// (q' + 1 - o)·s·|k|`.
    pub(crate) fn scaled(&self, factor: f64) -> Result<(Self, bool)> {
        let refuse = |scale: f32| {
            Error::operator(
                "mul",
                format_args!(
                    "times {factor} makes a scale of {scale}, which is no grid; dequantize first, or pass an output quantizer"
                ),
            )
        };
        let mirrored = factor < 0.0;
        let scale = self
            .parameters
            .scale
            .iter()
            .map(|&scale| {
                let scaled = scale * factor.abs() as f32;
                if scaled > 0.0 && scaled.is_finite() { Ok(scaled) } else { Err(refuse(scaled)) }
            })
            .collect::<Result<Vec<f32>>>()?;
        let shift = if self.parameters.narrow_range { 0.0 } else { 1.0 };
        let offset = match (&self.parameters.offset, mirrored) {
            (offset, false) => offset.clone(),
            (Some(offset), true) => {
                Some(offset.iter().map(|o| shift - o.round_ties_even()).collect())
            }
            (None, true) if shift == 0.0 => None,
            (None, true) => Some(vec![shift; scale.len()]),
        };
        let parameters =
            AffineParameters { scale, offset, ..AffineParameters::clone(&self.parameters) };
        Ok((Self { parameters: Arc::new(parameters), ..self.clone() }, mirrored))
    }

    /// Another shape and tile, with the parameters of the tiles in `picked`, or all of them.
    fn with_tiles(&self, shape: Vec<usize>, tile: Vec<usize>, picked: Option<&[usize]>) -> Self {
        let parameters = match picked {
            Some(picked) if !picked.iter().copied().eq(0..self.parameters.scale.len()) => {
                let pick = |of: &Vec<f32>| picked.iter().map(|&at| of[at]).collect();
                Arc::new(AffineParameters {
                    scale: pick(&self.parameters.scale),
                    offset: self.parameters.offset.as_ref().map(pick),
                    ..AffineParameters::clone(&self.parameters)
                })
            }
            _ => Arc::clone(&self.parameters),
        };
        Self { parameters, shape, tile, dtype: self.dtype }
    }
}

impl fmt::Display for QuantizationContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "num_bits={}, granularity={}", self.num_bits(), self.granularity())?;
        if self.is_per_tensor() {
            write!(f, ", scale={}", self.parameters.scale[0])?;
            if self.parameters.offset.is_some() {
                write!(f, ", offset={}", self.parameters.rounded_offset(0))?;
            }
        }
        Ok(())
    }
}

fn row_major_strides(shape: &[usize]) -> Vec<usize> {
    let mut strides = vec![1; shape.len()];
    for axis in (1..shape.len()).rev() {
        strides[axis - 1] = strides[axis] * shape[axis];
    }
    strides
}

/// The tile that cuts `new` exactly as `tile` cuts `old`, tile by tile in the same order, if there is one.
///
/// Axes of both shapes are matched in groups with the same number of elements. In a group, tiles are runs of
/// consecutive elements or nothing can be said.
fn reshape_tile(old: &[usize], tile: &[usize], new: &[usize]) -> Option<Vec<usize>> {
    if old.contains(&0) {
        return (old == tile).then(|| new.to_vec());
    }
    let long = |shape: &[usize]| -> Vec<usize> {
        (0..shape.len()).filter(|&axis| shape[axis] != 1).collect()
    };
    let (old_axes, new_axes) = (long(old), long(new));
    let mut result = vec![1; new.len()];
    let (mut i, mut j) = (0, 0);
    while i < old_axes.len() && j < new_axes.len() {
        let (from, to) = (i, j);
        let (mut p, mut q) = (old[old_axes[i]], new[new_axes[j]]);
        while p != q {
            if p < q {
                i += 1;
                p *= old[*old_axes.get(i)?];
            } else {
                j += 1;
                q *= new[*new_axes.get(j)?];
            }
        }
        (i, j) = (i + 1, j + 1);
        // The length of the run of elements that is a tile here.
        let mut run = 1;
        let mut ended = false;
        for &axis in old_axes[from..i].iter().rev() {
            if ended && tile[axis] != 1 {
                return None;
            }
            run *= tile[axis];
            ended |= tile[axis] != old[axis];
        }
        for &axis in new_axes[to..j].iter().rev() {
            let extent = new[axis];
            if run.is_multiple_of(extent) {
                (result[axis], run) = (extent, run / extent);
            } else if extent.is_multiple_of(run) {
                (result[axis], run) = (run, 1);
            } else {
                return None;
            }
        }
    }
    Some(result)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(old: &[usize], tile: &[usize], new: &[usize], expected: Option<&[usize]>) {
        assert_eq!(
            reshape_tile(old, tile, new).as_deref(),
            expected,
            "{old:?} {tile:?} -> {new:?}"
        );
    }

    #[test]
    fn tiles_follow_a_reshape_exactly_or_not_at_all() {
        // per tensor
        check(&[2, 3, 4], &[2, 3, 4], &[6, 4], Some(&[6, 4]));
        // the channel axis stays, others merge and split
        check(&[8, 3, 5, 5], &[1, 3, 5, 5], &[8, 75], Some(&[1, 75]));
        check(&[8, 75], &[1, 75], &[8, 3, 25], Some(&[1, 3, 25]));
        // channels are split into heads
        check(&[10, 12], &[10, 1], &[10, 3, 4], Some(&[10, 1, 1]));
        check(&[10, 3, 4], &[10, 1, 1], &[10, 12], Some(&[10, 1]));
        // rows of blocks
        check(&[4, 64], &[1, 32], &[4, 2, 32], Some(&[1, 1, 32]));
        check(&[4, 64], &[1, 32], &[256], Some(&[32]));
        check(&[4, 6], &[1, 3], &[3, 8], None);
        // columns cannot be merged with rows
        check(&[4, 6], &[4, 1], &[24], None);
        // axes of extent 1 come and go
        check(&[4, 1, 6], &[1, 1, 6], &[1, 4, 6, 1], Some(&[1, 1, 6, 1]));
        check(&[0, 3], &[0, 3], &[3, 0], Some(&[3, 0]));
        check(&[0, 3], &[0, 1], &[3, 0], None);
    }

    fn context(shape: &[usize], granularity: Granularity) -> QuantizationContext {
        let count = granularity.num_parameters(shape).unwrap();
        let scale = (1..=count).map(|at| at as f32).collect();
        let offset = Some((0..count).map(|at| at as f32).collect());
        let parameters = AffineParameters { num_bits: 4, narrow_range: false, scale, offset };
        let grid = AffineGrid { granularity, parameters: Arc::new(parameters) };
        QuantizationContext::new(&grid, shape, DType::F32).unwrap()
    }

    #[test]
    fn scales_follow_their_channels() {
        let both = context(&[2, 5, 3], Granularity::PerChannel { axes: vec![0, 2] });
        let turned = both.permute(&[2, 1, 0]);
        assert_eq!(turned.parameters.scale, [1.0, 4.0, 2.0, 5.0, 3.0, 6.0]);
        assert_eq!((turned.shape(), turned.tile_shape()), (&[3, 5, 2][..], &[1, 5, 1][..]));
        let every_second = both.slice(2, 0, 2, 2).unwrap();
        assert_eq!(every_second.parameters.scale, [1.0, 3.0, 4.0, 6.0]);
        assert_eq!(both.slice(1, 1, 2, 1).unwrap().parameters.scale.len(), 6);
        assert_eq!(both.slice(0, 1, 1, 1).unwrap().parameters.scale, [4.0, 5.0, 6.0]);
    }

    #[test]
    fn slices_take_whole_blocks_or_stay_in_one() {
        let blocks = context(&[1, 12], Granularity::per_block(&[1], &[4], &[0]));
        assert_eq!(blocks.slice(1, 4, 8, 1).unwrap().parameters.scale, [2.0, 3.0]);
        let inside = blocks.slice(1, 5, 3, 1).unwrap();
        assert_eq!(
            (inside.parameters.scale.as_slice(), inside.tile_shape()),
            (&[2.0][..], &[1, 3][..])
        );
        let error = blocks.slice(1, 2, 4, 1).unwrap_err().to_string();
        assert!(
            error.starts_with("slice: indices 2..6 in steps of 1 cut through blocks of 4"),
            "{error}"
        );
    }

    #[test]
    fn parts_are_joined_on_one_grid_only() {
        let channels = context(&[2, 3], Granularity::per_channel(0));
        let joined = QuantizationContext::cat(&[&channels, &channels], 0).unwrap();
        assert_eq!(joined.parameters.scale, [1.0, 2.0, 1.0, 2.0]);
        let wide = QuantizationContext::cat(&[&channels, &channels], 1).unwrap();
        assert_eq!((wide.shape(), wide.tile_shape()), (&[2, 6][..], &[1, 6][..]));
        let tensor = context(&[2, 3], Granularity::PerTensor);
        let (other, _) = tensor.scaled(2.0).unwrap();
        assert!(QuantizationContext::cat(&[&tensor, &other], 0).is_err());
        assert!(QuantizationContext::cat(&[&tensor, &channels], 0).is_err());
        assert_eq!(
            QuantizationContext::cat(&[&tensor, &tensor], 0).unwrap().granularity(),
            Granularity::PerTensor
        );
    }

    #[test]
    fn a_factor_scales_or_mirrors_the_grid() {
        let tensor = context(&[2], Granularity::PerTensor);
        assert!(tensor.scaled(0.0).is_err() && tensor.scaled(f64::NAN).is_err());
        let (mirrored, flips) = tensor.scaled(-0.5).unwrap();
        assert!(flips);
        assert_eq!(
            (mirrored.parameters.scale[0], mirrored.parameters.rounded_offset(0)),
            (0.5, 1.0)
        );
    }
}
