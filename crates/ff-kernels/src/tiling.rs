//! Tiles: which elements of a tensor share their quantization parameters.

mod plan;
mod reader;

use std::ops::Range;

pub(crate) use plan::{Piece, Plan, Tiles, Walk};
pub(crate) use reader::TileReader;

use crate::error::{AxisMismatch, KernelError, KernelErrorKind, check_len};

/// A tensor's shape cut into equal tiles, over contiguous data or a strided view.
///
/// With data shape `D` and tile shape `t` of the same rank, dimension `d` has `D[d] / t[d]` tiles.
/// Tiles are numbered in C order of this grid, elements inside a tile in C order of the tile
/// (spec §4.1). No granularity needs more: per tensor is `t == D`, per channel is `t[axis] == 1`
/// and `t == D` elsewhere, per block has the block size on its axis.
///
/// The input of a kernel may be a strided view (`strides` in elements, zero for a broadcast axis);
/// outputs, codes and upstream gradients are always contiguous, in C order of the data shape.
///
/// Empty data is allowed. A dimension of size 0 has one tile if the tile's extent is also 0, else
/// none.
///
/// ```
/// use ff_kernels::Tiling;
/// let tiling = Tiling::new(&[4, 6], &[2, 3])?;
/// assert_eq!((tiling.num_tiles(), tiling.tile_len()), (4, 6));
/// assert_eq!(tiling.tile_of(&[1, 4]), 1);
/// let offsets: Vec<usize> = tiling.tile_elements(1).map(|e| e.input).collect();
/// assert_eq!(offsets, [3, 4, 5, 9, 10, 11]);
///
/// let err = Tiling::new(&[6, 4, 5], &[4, 2, 3]).unwrap_err();
/// assert_eq!(err.to_string(), "tile does not divide the data: axis 0 has 6 by 4, axis 2 has 5 by 3");
/// # Ok::<(), ff_kernels::KernelError>(())
/// ```
#[derive(Debug, Clone)]
pub struct Tiling {
    shape: Vec<usize>,
    tile: Vec<usize>,
    strides: Vec<usize>,
    grid: Vec<usize>,
    len: usize,
    num_tiles: usize,
    tile_len: usize,
    /// Length that an input slice needs at least; exactly, when contiguous.
    extent: usize,
    contiguous: bool,
    plan: Plan,
}

/// An element of a tile, as listed by [`Tiling::tile_elements`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Element {
    /// Where it lies in the (possibly strided) input.
    pub input: usize,
    /// Its number in C order of the data shape: where it lies in every output.
    pub output: usize,
}

impl Tiling {
    /// Tiles over contiguous data.
    ///
    /// # Errors
    /// Another rank than the data; tile dimensions that do not divide the data (all are listed);
    /// more elements than `usize` counts.
    pub fn new(shape: &[usize], tile: &[usize]) -> Result<Self, KernelError> {
        check_rank("tile", shape, tile)?;
        Self::build(shape, contiguous_strides(shape)?, tile)
    }

    /// Tiles over a strided view: element `i` lies at `Σ i[d] * strides[d]` of the input slice.
    ///
    /// # Errors
    /// As [`Tiling::new`], and strides of another rank.
    pub fn strided(
        shape: &[usize],
        strides: &[usize],
        tile: &[usize],
    ) -> Result<Self, KernelError> {
        check_rank("tile", shape, tile)?;
        check_rank("strides", shape, strides)?;
        contiguous_strides(shape)?;
        Self::build(shape, strides.to_vec(), tile)
    }

    /// One tile over the whole of contiguous data.
    pub fn whole(shape: &[usize]) -> Result<Self, KernelError> {
        Self::new(shape, shape)
    }

    fn build(shape: &[usize], strides: Vec<usize>, tile: &[usize]) -> Result<Self, KernelError> {
        let axes: Vec<AxisMismatch> = (0..shape.len())
            .filter(|&axis| !shape[axis].is_multiple_of(tile[axis]))
            .map(|axis| AxisMismatch { axis, size: shape[axis], tile: tile[axis] })
            .collect();
        if !axes.is_empty() {
            return Err(KernelErrorKind::TileDoesNotDivide { axes }.into());
        }
        let too_large = || KernelError::from(KernelErrorKind::TooLarge { shape: shape.to_vec() });
        let grid: Vec<usize> =
            shape.iter().zip(tile).map(|(&d, &t)| d.checked_div(t).unwrap_or(1)).collect();
        let len = shape.iter().product();
        // `contiguous_strides` has checked the product of the non-zero extents, which bounds both.
        let num_tiles = grid.iter().product();
        let tile_len = tile.iter().product();
        let contiguous = is_contiguous(shape, &strides);
        let extent = if len == 0 {
            0
        } else {
            let mut last = 0usize;
            for (&d, &s) in shape.iter().zip(&strides) {
                last = (d - 1)
                    .checked_mul(s)
                    .and_then(|step| last.checked_add(step))
                    .ok_or_else(too_large)?;
            }
            last.checked_add(1).filter(|&e| e <= isize::MAX as usize).ok_or_else(too_large)?
        };
        let plan = if len == 0 { Plan::empty() } else { Plan::new(shape, tile, &grid, &strides) };
        Ok(Tiling {
            shape: shape.to_vec(),
            tile: tile.to_vec(),
            strides,
            grid,
            len,
            num_tiles,
            tile_len,
            extent,
            contiguous,
            plan,
        })
    }

    /// The data shape.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// The tile shape.
    pub fn tile_shape(&self) -> &[usize] {
        &self.tile
    }

    /// The input's strides, in elements.
    pub fn strides(&self) -> &[usize] {
        &self.strides
    }

    /// Tiles along each dimension.
    pub fn grid(&self) -> &[usize] {
        &self.grid
    }

    /// Number of elements of the data.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether the data has no elements.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Number of tiles, which is the number of parameters.
    pub fn num_tiles(&self) -> usize {
        self.num_tiles
    }

    /// Number of elements of one tile.
    pub fn tile_len(&self) -> usize {
        self.tile_len
    }

    /// Whether the input is contiguous, in C order.
    pub fn is_contiguous(&self) -> bool {
        self.contiguous
    }

    /// The tile that holds the element at `index`, one coordinate per dimension.
    ///
    /// # Panics
    /// If `index` has another rank or lies outside the data.
    pub fn tile_of(&self, index: &[usize]) -> usize {
        assert_eq!(index.len(), self.shape.len(), "index of another rank than the data");
        let mut number = 0;
        for (axis, &i) in index.iter().enumerate() {
            assert!(i < self.shape[axis], "index outside the data on axis {axis}");
            number = number * self.grid[axis] + i / self.tile[axis];
        }
        number
    }

    /// The elements of one tile, in C order of the tile.
    ///
    /// Plain index arithmetic, independent of the paths that the kernels take: the reference twins
    /// are built on it.
    ///
    /// # Panics
    /// If there is no such tile.
    pub fn tile_elements(&self, tile: usize) -> impl Iterator<Item = Element> + '_ {
        assert!(tile < self.num_tiles, "tile {tile} of {}", self.num_tiles);
        let mut first = vec![0; self.shape.len()];
        let mut rest = tile;
        for axis in (0..self.shape.len()).rev() {
            first[axis] = rest % self.grid[axis] * self.tile[axis];
            rest /= self.grid[axis];
        }
        (0..self.tile_len).map(move |number| {
            let (mut rest, mut input, mut output, mut out_stride) = (number, 0, 0, 1);
            for axis in (0..self.shape.len()).rev() {
                let at = first[axis] + rest % self.tile[axis];
                rest /= self.tile[axis];
                input += at * self.strides[axis];
                output += at * out_stride;
                out_stride *= self.shape[axis];
            }
            Element { input, output }
        })
    }

    /// Fails unless `input` can be read under this tiling.
    pub(crate) fn check_input(&self, found: usize) -> Result<(), KernelError> {
        if self.contiguous {
            check_len("input", self.len, found)
        } else if found < self.extent {
            Err(KernelErrorKind::OutOfBounds { needed: self.extent, found }.into())
        } else {
            Ok(())
        }
    }

    /// The same data as a single tile; used where one parameter stands for all tiles.
    pub(crate) fn as_whole(&self) -> Tiling {
        Self::build(&self.shape, self.strides.clone(), &self.shape)
            .expect("a shape that was valid with its tile is valid as one tile")
    }

    pub(crate) fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Input offset of the element with number `output`.
    pub(crate) fn input_of(&self, output: usize) -> usize {
        if self.contiguous {
            return output;
        }
        let (mut rest, mut input) = (output, 0);
        for (&d, &s) in self.shape.iter().zip(&self.strides).rev() {
            input += rest % d * s;
            rest /= d;
        }
        input
    }

    /// How to read tiles one by one.
    pub(crate) fn tile_reader(&self) -> TileReader<'_> {
        TileReader::new(self)
    }

    /// Cuts `0..len` into ranges of `chunk` elements; the cut depends on the shape only.
    pub(crate) fn num_chunks(&self, chunk: usize) -> usize {
        self.len.div_ceil(chunk)
    }

    /// Range of the chunk with that number, see [`Self::num_chunks`].
    pub(crate) fn chunk_range(&self, chunk: usize, number: usize) -> Range<usize> {
        number * chunk..((number + 1) * chunk).min(self.len)
    }
}

fn check_rank(what: &'static str, shape: &[usize], other: &[usize]) -> Result<(), KernelError> {
    if shape.len() == other.len() {
        Ok(())
    } else {
        Err(KernelErrorKind::RankMismatch { what, data: shape.len(), found: other.len() }.into())
    }
}

/// C-order strides; fails if the extents that are not zero multiply to more than `isize::MAX`.
fn contiguous_strides(shape: &[usize]) -> Result<Vec<usize>, KernelError> {
    let mut strides = vec![0; shape.len()];
    let mut step = 1usize;
    for (stride, &d) in strides.iter_mut().zip(shape).rev() {
        *stride = step;
        step = step
            .checked_mul(d.max(1))
            .filter(|&s| s <= isize::MAX as usize)
            .ok_or_else(|| KernelErrorKind::TooLarge { shape: shape.to_vec() })?;
    }
    Ok(strides)
}

/// Whether the strides are those of C order, as far as they matter.
fn is_contiguous(shape: &[usize], strides: &[usize]) -> bool {
    let mut step = 1;
    for (&d, &s) in shape.iter().zip(strides).rev() {
        if d == 0 {
            return true;
        }
        if d > 1 && s != step {
            return false;
        }
        step *= d;
    }
    true
}

#[cfg(test)]
mod tests;
