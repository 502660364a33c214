//! Minimum and maximum per tile.

use crate::error::{KernelError, KernelErrorKind, check_len};
use crate::reduce::{Fold, fold};
use crate::tiling::Tiling;

/// Minimum and maximum per tile, as far as numbers go, and which tiles hold NaN.
///
/// A tile without numbers (empty, or all NaN) has `min` = +inf and `max` = -inf, which is also the
/// state before any data and the neutral element of [`MinMax::merge`]. A zero is always `+0`.
#[derive(Debug, Clone, PartialEq)]
pub struct MinMax {
    /// Smallest number of each tile, infinities included. `[num_tiles]`
    pub min: Vec<f32>,
    /// Largest number of each tile, infinities included. `[num_tiles]`
    pub max: Vec<f32>,
    /// Tiles that hold a NaN, ascending.
    pub nan_tiles: Vec<usize>,
}

/// Minimum and maximum of each tile of `x`, in one pass.
///
/// NaN are left out of both and reported in [`MinMax::nan_tiles`]; infinities are values like any
/// other, see [`MinMax::infinite_tiles`].
///
/// # Errors
/// A slice of the wrong length.
///
/// ```
/// use ff_kernels::{Tiling, min_max};
/// let x = [1.0, -2.0, f32::NAN, 4.0, 0.5, f32::INFINITY]; // [2, 3]
/// let per_row = min_max(&x, &Tiling::new(&[2, 3], &[1, 3])?)?;
/// assert_eq!((per_row.min[0], per_row.max[0]), (-2.0, 1.0));
/// assert_eq!(per_row.nan_tiles, [0]);
/// assert_eq!(per_row.infinite_tiles(), [1]);
/// # Ok::<(), ff_kernels::KernelError>(())
/// ```
pub fn min_max(x: &[f32], tiling: &Tiling) -> Result<MinMax, KernelError> {
    tiling.check_input(x.len())?;
    let accs = fold(&Extremes, tiling, None, x, &mut []);
    Ok(MinMax {
        // Adding zero makes the sign of a zero independent of the order of comparison.
        min: accs.iter().map(|a| a.min + 0.0).collect(),
        max: accs.iter().map(|a| a.max + 0.0).collect(),
        nan_tiles: (0..accs.len()).filter(|&tile| accs[tile].nan != 0).collect(),
    })
}

/// Twin of [`min_max`].
///
/// # Errors
/// As [`min_max`].
pub fn min_max_reference(x: &[f32], tiling: &Tiling) -> Result<MinMax, KernelError> {
    tiling.check_input(x.len())?;
    let mut found = MinMax::empty(tiling.num_tiles());
    for tile in 0..tiling.num_tiles() {
        for element in tiling.tile_elements(tile) {
            let x = x[element.input];
            if x.is_nan() {
                if found.nan_tiles.last() != Some(&tile) {
                    found.nan_tiles.push(tile);
                }
            } else {
                found.min[tile] = found.min[tile].min(x) + 0.0;
                found.max[tile] = found.max[tile].max(x) + 0.0;
            }
        }
    }
    Ok(found)
}

impl MinMax {
    /// No data yet.
    pub fn empty(num_tiles: usize) -> Self {
        MinMax {
            min: vec![f32::INFINITY; num_tiles],
            max: vec![f32::NEG_INFINITY; num_tiles],
            nan_tiles: Vec::new(),
        }
    }

    /// Number of tiles.
    pub fn num_tiles(&self) -> usize {
        self.min.len()
    }

    /// Takes in what is known of the same tiles from other data. The order of merging does not
    /// matter.
    ///
    /// # Errors
    /// Another number of tiles.
    pub fn merge(&mut self, other: &MinMax) -> Result<(), KernelError> {
        check_len("range to merge", self.num_tiles(), other.num_tiles())?;
        for (a, &b) in self.min.iter_mut().zip(&other.min) {
            *a = a.min(b);
        }
        for (a, &b) in self.max.iter_mut().zip(&other.max) {
            *a = a.max(b);
        }
        self.nan_tiles.extend(&other.nan_tiles);
        self.nan_tiles.sort_unstable();
        self.nan_tiles.dedup();
        Ok(())
    }

    /// Tiles that hold an infinity, ascending. Tiles without numbers are not among them.
    pub fn infinite_tiles(&self) -> Vec<usize> {
        (0..self.num_tiles())
            .filter(|&t| self.min[t] == f32::NEG_INFINITY || self.max[t] == f32::INFINITY)
            .collect()
    }

    /// Tiles that no number has been seen of, ascending.
    pub fn tiles_without_data(&self) -> Vec<usize> {
        (0..self.num_tiles()).filter(|&t| self.min[t] > self.max[t]).collect()
    }

    /// Fails unless every tile has seen data, all of it finite.
    ///
    /// # Errors
    /// [`KernelErrorKind::NonFiniteRange`] with every tile that holds an infinity, holds a NaN (its
    /// range is given as NaN), or has seen no number.
    pub fn check_finite(&self) -> Result<(), KernelError> {
        let mut nan = self.nan_tiles.iter().copied().peekable();
        let mut tiles = Vec::new();
        for (tile, (&min, &max)) in self.min.iter().zip(&self.max).enumerate() {
            if nan.next_if_eq(&tile).is_some() {
                tiles.push((tile, f32::NAN, f32::NAN));
            } else if !(min.is_finite() && max.is_finite()) {
                tiles.push((tile, min, max));
            }
        }
        if tiles.is_empty() {
            Ok(())
        } else {
            Err(KernelErrorKind::NonFiniteRange { tiles }.into())
        }
    }
}

struct Extremes;

#[derive(Clone, Copy)]
struct Extreme {
    min: f32,
    max: f32,
    /// Not zero if a NaN was met.
    nan: u32,
}

/// Accumulators kept side by side in a segment.
const WIDTH: usize = 32;

/// `a` unless `x` is smaller; NaN is not smaller.
#[inline(always)]
fn smaller(x: f32, a: f32) -> f32 {
    if x < a { x } else { a }
}

/// `a` unless `x` is larger; NaN is not larger.
#[inline(always)]
fn larger(x: f32, a: f32) -> f32 {
    if x > a { x } else { a }
}

impl Fold for Extremes {
    type Acc = Extreme;
    type Lanes = (Vec<f32>, Vec<f32>, Vec<u32>);
    const HAS_OUTPUT: bool = false;

    fn empty(&self) -> Extreme {
        Extreme { min: f32::INFINITY, max: f32::NEG_INFINITY, nan: 0 }
    }

    #[inline(always)]
    fn merge(&self, a: Extreme, b: Extreme) -> Extreme {
        Extreme { min: smaller(b.min, a.min), max: larger(b.max, a.max), nan: a.nan | b.nan }
    }

    #[inline(always)]
    fn segment(&self, x: &[f32], _: f32, _: f32, _: usize, _: &mut [f32]) -> Extreme {
        let (mut min, mut max) = ([f32::INFINITY; WIDTH], [f32::NEG_INFINITY; WIDTH]);
        let mut nan = [0u32; WIDTH];
        let (chunks, rest) = x.as_chunks::<WIDTH>();
        for x in chunks {
            for i in 0..WIDTH {
                min[i] = smaller(x[i], min[i]);
                max[i] = larger(x[i], max[i]);
                nan[i] |= u32::from(x[i].is_nan());
            }
        }
        let mut all = self.empty();
        for i in 0..WIDTH {
            all = self.merge(all, Extreme { min: min[i], max: max[i], nan: nan[i] });
        }
        for &x in rest {
            all.min = smaller(x, all.min);
            all.max = larger(x, all.max);
            all.nan |= u32::from(x.is_nan());
        }
        all
    }

    fn new_lanes(&self, len: usize) -> Self::Lanes {
        (vec![f32::INFINITY; len], vec![f32::NEG_INFINITY; len], vec![0; len])
    }

    #[inline(always)]
    fn lanes(
        &self,
        (min, max, nan): &mut Self::Lanes,
        at: usize,
        x: &[f32],
        _: (&[f32], &[f32]),
        _: usize,
        _: &mut [f32],
    ) {
        let n = x.len();
        let (min, max, nan) = (&mut min[at..][..n], &mut max[at..][..n], &mut nan[at..][..n]);
        for i in 0..n {
            min[i] = smaller(x[i], min[i]);
            max[i] = larger(x[i], max[i]);
            nan[i] |= u32::from(x[i].is_nan());
        }
    }

    fn take_lane(&self, (min, max, nan): &mut Self::Lanes, at: usize) -> Extreme {
        Extreme {
            min: std::mem::replace(&mut min[at], f32::INFINITY),
            max: std::mem::replace(&mut max[at], f32::NEG_INFINITY),
            nan: std::mem::take(&mut nan[at]),
        }
    }
}
