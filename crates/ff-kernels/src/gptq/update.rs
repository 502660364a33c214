//! The rounding of a weight, in strips of rows.
//!
//! Loops are written out: only what is inlined for certain becomes the instructions of the level chosen at run time.

use super::factor::HessianFactor;
use crate::affine::Bounds;
use crate::lanes::{Fused, Lanes};
use crate::product::{DEPTH, Lane, PANEL, Tile, WIDTH, add_product};

/// Columns that are prepared together where nothing else says how many.
pub(super) const CHUNK: usize = 256;
/// Strips that go through a chunk of the factor while it is in the second cache.
pub(super) const SHARED: usize = 8;

/// 32 rows of the weight, column by column in the order of the factor.
///
/// With `D = W - Q` for the columns done, the errors `E` of the reference are `D R`, and a column's corrected weight is
/// `w + (Σ_{k before} D_k R_k) / R_jj`: what the columns before it leave to make up for.
#[derive(Default)]
pub(super) struct Strip {
    /// Weights; quantized weights once their column is done.
    pub(super) weight: Vec<Lane<f32>>,
    /// What rounding took from the weights of the columns done.
    pub(super) lost: Vec<Lane<f32>>,
    /// Sums over the columns before the chunk, for the chunk's columns.
    before: Vec<Tile<f32>>,
    /// `Σ E²` of each row.
    pub(super) damped: Lane<f64>,
    /// What of that is due to damping.
    pub(super) penalty: Lane<f64>,
    /// `Σ E²` of each column.
    pub(super) column_error: Vec<f64>,
    /// Smallest and largest corrected weights of the groups asked for.
    pub(super) ranges: Vec<(Lane<f32>, Lane<f32>)>,
    /// The tile row of each row.
    pub(super) tile_rows: [usize; WIDTH],
    /// The number of the first row.
    pub(super) first: usize,
    /// Rows that exist.
    pub(super) live: usize,
}

impl Strip {
    /// Makes room for other rows.
    pub(super) fn reset(&mut self, columns: usize, first: usize, live: usize) {
        self.weight.resize(columns, Lane::default());
        self.lost.resize(columns, Lane::default());
        (self.damped, self.penalty) = (Lane::default(), Lane::default());
        self.column_error = vec![0.0; columns];
        (self.first, self.live) = (first, live);
    }

    /// Goes through `columns` from left to right. `next` gets a column, the sum over all columns before it of what was
    /// lost times the factor, and the factor's diagonal; it says what this column loses.
    #[inline(always)]
    fn substitute<L: Lanes<f32>>(
        &mut self,
        lanes: L,
        factor: &HessianFactor,
        columns: std::ops::Range<usize>,
        lost: Option<&mut [Lane<f32>]>,
        mut next: impl FnMut(&mut Extra<'_>, usize, &Lane<f32>, f32) -> Lane<f32>,
    ) {
        let Strip { weight, lost: own, before, damped, penalty, column_error, .. } = self;
        let (ranges, live) = (&mut self.ranges, self.live);
        let mut extra = Extra { weight, damped, penalty, column_error, ranges, live };
        let lost = lost.unwrap_or(own);
        let first_group = columns.start / PANEL;
        for group in first_group..columns.end.div_ceil(PANEL) {
            let from = columns.start.max(group * PANEL);
            let to = columns.end.min((group + 1) * PANEL);
            let factor = factor.group(group);
            let done = columns.start..from;
            let mut sums = before[group - first_group];
            add_product(lanes, &factor[done.clone()], &lost[done], &mut sums);
            for column in from..to {
                let at = column - group * PANEL;
                let row = &factor[column];
                let now = next(&mut extra, column, &sums[at], row[at]);
                for (sums, factor) in sums.iter_mut().zip(row).skip(at + 1) {
                    for (sum, lost) in sums.iter_mut().zip(&*now) {
                        *sum += factor * lost;
                    }
                }
                lost[column] = now;
            }
        }
    }
}

/// What of a strip a column's rounding may change.
struct Extra<'a> {
    weight: &'a mut [Lane<f32>],
    damped: &'a mut Lane<f64>,
    penalty: &'a mut Lane<f64>,
    column_error: &'a mut [f64],
    ranges: &'a mut Vec<(Lane<f32>, Lane<f32>)>,
    live: usize,
}

impl Extra<'_> {
    /// Takes note of a column's errors.
    #[inline(always)]
    fn count(&mut self, column: usize, errors: &Lane<f32>, lost: &Lane<f32>, added: f64) {
        let mut squares = [0.0; WIDTH];
        for r in 0..WIDTH {
            let (error, lost) = (f64::from(errors[r]), f64::from(lost[r]));
            squares[r] = error * error;
            self.damped[r] += squares[r];
            self.penalty[r] += lost * lost * added;
        }
        squares[self.live..].fill(0.0);
        // Halves on halves, which registers can do.
        let mut half = WIDTH / 2;
        while half > 0 {
            let (low, high) = squares.split_at_mut(half);
            low.iter_mut().zip(high).for_each(|(low, high)| *low += *high);
            half /= 2;
        }
        self.column_error[column] = squares[0];
    }
}

/// Sums over the columns before `columns`, for strips that share the work on the factor.
pub(super) struct Accumulate<'a> {
    pub(super) strips: &'a mut [Strip],
    pub(super) factor: &'a HessianFactor,
    pub(super) columns: std::ops::Range<usize>,
}

impl Fused<f32> for Accumulate<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes<f32>>(self, lanes: L) {
        let groups = self.columns.start / PANEL..self.columns.end.div_ceil(PANEL);
        for strip in &mut *self.strips {
            strip.before.clear();
            strip.before.resize(groups.len(), [Lane::default(); PANEL]);
        }
        for from in (0..self.columns.start).step_by(DEPTH) {
            let rows = from..self.columns.start.min(from + DEPTH);
            for strip in &mut *self.strips {
                for (group, before) in groups.clone().zip(&mut strip.before) {
                    let left = &self.factor.group(group)[rows.clone()];
                    add_product(lanes, left, &strip.lost[rows.clone()], before);
                }
            }
        }
    }
}

/// The ranges of the weights in `columns`, corrected for what the columns before lost, in groups of `group` columns:
/// what the reference sees of them at the beginning of a block.
pub(super) struct Ranges<'a> {
    pub(super) strip: &'a mut Strip,
    pub(super) factor: &'a HessianFactor,
    pub(super) columns: std::ops::Range<usize>,
    /// Where the first group begins.
    pub(super) first: usize,
    pub(super) group: usize,
    /// Memory to work in.
    pub(super) work: &'a mut Vec<Lane<f32>>,
}

impl Fused<f32> for Ranges<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes<f32>>(self, lanes: L) {
        let Ranges { strip, factor, columns, first, group, work } = self;
        strip.ranges.clear();
        let groups = (columns.end - first) / group;
        strip
            .ranges
            .resize(groups, (Lane([f32::INFINITY; WIDTH]), Lane([f32::NEG_INFINITY; WIDTH])));
        work.resize(columns.end, Lane::default());
        // Losing what is still to be made up for leaves nothing to the next: `corrected = w - Z` where `Z R + D R = 0`.
        strip.substitute(
            lanes,
            factor,
            columns,
            Some(work),
            #[inline(always)]
            |strip, column, sums, pivot| {
                let mut lost = Lane::default();
                for r in 0..WIDTH {
                    lost[r] = -sums[r] / pivot;
                }
                if column >= first {
                    let (min, max) = &mut strip.ranges[(column - first) / group];
                    for r in 0..WIDTH {
                        let corrected = strip.weight[column][r] - lost[r];
                        min[r] = if corrected < min[r] { corrected } else { min[r] };
                        max[r] = if corrected > max[r] { corrected } else { max[r] };
                    }
                }
                lost
            },
        );
    }
}

/// Scales and rounded offsets, tile column by tile column: `[tile columns, tile rows]`.
#[derive(Clone, Copy)]
pub(super) struct Grid<'a> {
    pub(super) scale: &'a [f32],
    pub(super) offset: &'a [f32],
    pub(super) tile_rows: usize,
    /// Columns of a tile.
    pub(super) width: usize,
    pub(super) bounds: Bounds,
}

/// Scales and offsets of a strip's rows, in the tile column looked up last.
struct Lookup<'a> {
    grid: Grid<'a>,
    rows: [usize; WIDTH],
    column: usize,
    scale: Lane<f32>,
    offset: Lane<f32>,
}

impl<'a> Lookup<'a> {
    fn new(grid: Grid<'a>, strip: &Strip) -> Self {
        let none = usize::MAX;
        let rows = strip.tile_rows;
        Lookup { grid, rows, column: none, scale: Lane([1.0; WIDTH]), offset: Lane::default() }
    }

    /// The values nearest to `x` in a column of the weight.
    #[inline(always)]
    fn nearest(&mut self, column: usize, x: &Lane<f32>) -> Lane<f32> {
        let tile_column = column / self.grid.width;
        if tile_column != self.column {
            self.column = tile_column;
            let tiles = tile_column * self.grid.tile_rows..(tile_column + 1) * self.grid.tile_rows;
            let (scale, offset) = (&self.grid.scale[tiles.clone()], &self.grid.offset[tiles]);
            for r in 0..WIDTH {
                (self.scale[r], self.offset[r]) = (scale[self.rows[r]], offset[self.rows[r]]);
            }
        }
        let mut values = Lane::default();
        for r in 0..WIDTH {
            let (scale, offset) = (self.scale[r], self.offset[r]);
            let code = self.grid.bounds.clamp((x[r] / scale - offset).round_ties_even());
            values[r] = (code + offset) * scale;
        }
        values
    }
}

/// Rounds `columns`, each corrected for what those before it lost.
pub(super) struct Round<'a> {
    pub(super) strip: &'a mut Strip,
    pub(super) factor: &'a HessianFactor,
    pub(super) columns: std::ops::Range<usize>,
    pub(super) grid: Grid<'a>,
}

impl Fused<f32> for Round<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes<f32>>(self, lanes: L) {
        let Round { strip, factor, columns, grid } = self;
        let (order, added) = (factor.order(), factor.added());
        let mut lookup = Lookup::new(grid, strip);
        strip.substitute(
            lanes,
            factor,
            columns,
            None,
            #[inline(always)]
            |strip, column, sums, pivot| {
                let weight = strip.weight[column];
                // Known before the sums are, unlike a quotient.
                let inverse = 1.0 / pivot;
                let mut corrected = Lane::default();
                for r in 0..WIDTH {
                    corrected[r] = weight[r] + sums[r] * inverse;
                }
                let rounded = lookup.nearest(order[column], &corrected);
                let (mut lost, mut errors) = (Lane::default(), Lane::default());
                for r in 0..WIDTH {
                    lost[r] = weight[r] - rounded[r];
                    errors[r] = (corrected[r] - rounded[r]) * pivot;
                }
                strip.count(column, &errors, &lost, added[column]);
                strip.weight[column] = rounded;
                lost
            },
        );
    }
}

/// What rounding every weight to the nearest value loses; the weights stay as they are.
pub(super) struct Nearest<'a> {
    pub(super) strip: &'a mut Strip,
    pub(super) factor: &'a HessianFactor,
    pub(super) grid: Grid<'a>,
}

impl Fused<f32> for Nearest<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes<f32>>(self, _lanes: L) {
        let Nearest { strip, factor, grid } = self;
        let mut lookup = Lookup::new(grid, strip);
        let columns = factor.order().iter().zip(factor.added());
        for ((column, added), (weight, lost)) in
            columns.zip(strip.weight.iter().zip(&mut strip.lost))
        {
            let rounded = lookup.nearest(*column, weight);
            for r in 0..WIDTH {
                lost[r] = weight[r] - rounded[r];
                strip.penalty[r] += f64::from(lost[r]) * f64::from(lost[r]) * added;
            }
        }
    }
}

/// The errors in `columns` of weights whose losses are known.
pub(super) struct Judge<'a> {
    pub(super) strip: &'a mut Strip,
    pub(super) factor: &'a HessianFactor,
    pub(super) columns: std::ops::Range<usize>,
    /// Memory to work in.
    pub(super) work: &'a mut Vec<Lane<f32>>,
}

impl Fused<f32> for Judge<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes<f32>>(self, lanes: L) {
        let Judge { strip, factor, columns, work } = self;
        let mut known = std::mem::take(&mut strip.lost);
        work.resize(columns.end, Lane::default());
        strip.substitute(
            lanes,
            factor,
            columns,
            Some(work),
            #[inline(always)]
            |strip, column, sums, pivot| {
                let lost = known[column];
                for r in 0..WIDTH {
                    let error = f64::from(sums[r] + lost[r] * pivot);
                    strip.damped[r] += error * error;
                }
                lost
            },
        );
        std::mem::swap(&mut strip.lost, &mut known);
    }
}
