//! Minimum and maximum per tile.

use crate::error::{KernelError, KernelErrorKind, check_len};
use crate::map::{Step, Steps};
use crate::reduce::{Fold, Row, by_halves, fold};
use crate::tiling::{Tiles, Tiling, Walk};

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
    let nan = accs.iter().any(|acc| acc.nan);
    Ok(MinMax {
        // Adding zero makes the sign of a zero independent of the order of comparison.
        min: accs.iter().map(|a| a.min + 0.0).collect(),
        max: accs.iter().map(|a| a.max + 0.0).collect(),
        nan_tiles: if nan { nan_tiles(x, tiling) } else { Vec::new() },
    })
}

/// The tiles that hold a NaN, for data known to hold some.
fn nan_tiles(x: &[f32], tiling: &Tiling) -> Vec<usize> {
    let mut found = vec![false; tiling.num_tiles()];
    let plan = tiling.plan();
    plan.walk(0..tiling.len(), Walk::Plain, |piece| {
        for i in 0..piece.len {
            if x[piece.input + i * plan.stride()].is_nan() {
                let tile = match piece.tiles {
                    Tiles::One(tile) => tile,
                    Tiles::Lanes { base, phase } | Tiles::Short { base, phase } => {
                        base + plan.lane_tile(phase + i)
                    }
                };
                found[tile] = true;
            }
        }
    });
    (0..found.len()).filter(|&tile| found[tile]).collect()
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
    /// Whether a NaN was met: in this tile, or in another one of the same chunk.
    nan: bool,
}

/// Accumulators kept side by side in a segment.
const WIDTH: usize = 32;

/// `a` unless `x` is smaller; NaN is not smaller.
#[inline(always)]
fn smaller(a: f32, x: f32) -> f32 {
    if x < a { x } else { a }
}

/// `a` unless `x` is larger; NaN is not larger.
#[inline(always)]
fn larger(a: f32, x: f32) -> f32 {
    if x > a { x } else { a }
}

/// Accumulators of a segment, in registers.
struct LocalLanes<const N: usize> {
    min: [f32; N],
    max: [f32; N],
    /// Largest magnitude, as bits: above those of infinity if a NaN was met.
    magnitude: [u32; N],
}

impl<const N: usize> LocalLanes<N> {
    const EMPTY: Self =
        LocalLanes { min: [f32::INFINITY; N], max: [f32::NEG_INFINITY; N], magnitude: [0; N] };

    #[inline(always)]
    fn add(&mut self, x: &[f32; N]) {
        for (i, &x) in x.iter().enumerate() {
            self.min[i] = smaller(self.min[i], x);
            self.max[i] = larger(self.max[i], x);
            self.magnitude[i] = self.magnitude[i].max(x.to_bits() & 0x7fff_ffff);
        }
    }

    #[inline(always)]
    fn total(self) -> Extreme {
        Extreme {
            min: by_halves(self.min, smaller),
            max: by_halves(self.max, larger),
            nan: by_halves(self.magnitude, u32::max) > f32::INFINITY.to_bits(),
        }
    }
}

#[derive(Default)]
struct Lanes {
    min: Vec<f32>,
    max: Vec<f32>,
    nan: bool,
}

impl Fold for Extremes {
    type Acc = Extreme;
    type Lanes = Lanes;
    const HAS_OUTPUT: bool = false;

    fn empty(&self) -> Extreme {
        Extreme { min: f32::INFINITY, max: f32::NEG_INFINITY, nan: false }
    }

    #[inline(always)]
    fn merge(&self, a: Extreme, b: Extreme) -> Extreme {
        Extreme { min: smaller(a.min, b.min), max: larger(a.max, b.max), nan: a.nan | b.nan }
    }

    #[inline(always)]
    fn segment(&self, _: &mut Lanes, Row { x, .. }: Row<'_>, _: Step) -> Extreme {
        let (wide, rest) = x.as_chunks::<WIDTH>();
        let (narrow, rest) = rest.as_chunks::<{ WIDTH / 2 }>();
        let mut lanes = LocalLanes::<WIDTH>::EMPTY;
        for x in wide {
            lanes.add(x);
        }
        let mut all = if wide.is_empty() { self.empty() } else { lanes.total() };
        for x in narrow {
            let mut lanes = LocalLanes::<{ WIDTH / 2 }>::EMPTY;
            lanes.add(x);
            all = self.merge(all, lanes.total());
        }
        for &x in rest {
            // A NaN is neither smaller nor larger.
            all = self.merge(all, Extreme { min: x, max: x, nan: x.is_nan() });
        }
        all
    }

    fn new_lanes(&self, len: usize) -> Lanes {
        Lanes { min: vec![f32::INFINITY; len], max: vec![f32::NEG_INFINITY; len], nan: false }
    }

    #[inline(always)]
    fn lanes<const R: usize>(
        &self,
        lanes: &mut Lanes,
        at: usize,
        rows: [Row<'_>; R],
        _: Steps<'_>,
    ) {
        let n = rows[0].x.len();
        let rows = rows.map(|row| &row.x[..n]);
        let (min, max) = (&mut lanes.min[at..][..n], &mut lanes.max[at..][..n]);
        let mut nan = false;
        for i in 0..n {
            let (mut least, mut most) = (min[i], max[i]);
            for row in rows {
                least = smaller(least, row[i]);
                most = larger(most, row[i]);
                nan |= row[i].is_nan();
            }
            (min[i], max[i]) = (least, most);
        }
        lanes.nan |= nan;
    }

    fn take_lane(&self, lanes: &mut Lanes, at: usize) -> Extreme {
        Extreme {
            min: std::mem::replace(&mut lanes.min[at], f32::INFINITY),
            max: std::mem::replace(&mut lanes.max[at], f32::NEG_INFINITY),
            nan: lanes.nan,
        }
    }
}
