//! The rounding of a weight, in strips of rows.
//!
//! Loops are written out: only what is inlined for certain becomes the instructions of the level chosen at run time.

use super::factor::HessianFactor;
use super::strip::{DEPTH, Row, STRIP, TILE, tile};
use crate::affine::Bounds;
use crate::lanes::{Fused, Lanes};

/// Columns that are prepared together where nothing else says how many.
pub(super) const CHUNK: usize = 256;
/// Strips that go through a chunk of the factor while it is in the second cache.
pub(super) const PANEL: usize = 8;

/// 32 rows of the weight, column by column in the order of the factor.
///
/// With `D = W - Q` for the columns done, the errors `E` of the reference are `D R`, and a column's corrected weight is
/// `w + (Σ_{k before} D_k R_k) / R_jj`: what the columns before it leave to make up for.
pub(super) struct Strip {
    /// Weights; quantized weights once their column is done.
    pub(super) weight: Vec<Row>,
    /// What rounding took from the weights of the columns done.
    pub(super) lost: Vec<Row>,
    /// Sums over the columns before the chunk, for the chunk's columns.
    before: Vec<Row>,
    /// `Σ E²` of each row.
    pub(super) damped: [f64; STRIP],
    /// What of that is due to damping.
    pub(super) penalty: [f64; STRIP],
    /// `Σ E²` of each column.
    pub(super) column_error: Vec<f64>,
    /// Smallest and largest corrected weights of the groups asked for.
    pub(super) ranges: Vec<(Row, Row)>,
    /// The tile row of each row.
    pub(super) tile_rows: [usize; STRIP],
    /// The number of the first row.
    pub(super) first: usize,
    /// Rows that exist.
    pub(super) live: usize,
}

impl Strip {
    pub(super) fn new(
        weight: Vec<Row>,
        tile_rows: [usize; STRIP],
        first: usize,
        live: usize,
    ) -> Self {
        Strip {
            first,
            lost: vec![[0.0; STRIP]; weight.len()],
            before: Vec::new(),
            damped: [0.0; STRIP],
            penalty: [0.0; STRIP],
            column_error: vec![0.0; weight.len()],
            ranges: Vec::new(),
            weight,
            tile_rows,
            live,
        }
    }

    /// Goes through `columns` from left to right. `next` gets a column, the sum over all columns before it of what was
    /// lost times the factor, and the factor's diagonal; it says what this column loses.
    #[inline(always)]
    fn substitute<L: Lanes<f32>>(
        &mut self,
        lanes: L,
        factor: &HessianFactor,
        columns: std::ops::Range<usize>,
        lost: Option<&mut [Row]>,
        mut next: impl FnMut(&mut Extra<'_>, usize, &Row, f32) -> Row,
    ) {
        let Strip { weight, lost: own, before, damped, penalty, column_error, .. } = self;
        let (ranges, live) = (&mut self.ranges, self.live);
        let mut extra = Extra { weight, damped, penalty, column_error, ranges, live };
        let lost = lost.unwrap_or(own);
        let first_group = columns.start / TILE;
        for group in first_group..columns.end.div_ceil(TILE) {
            let from = columns.start.max(group * TILE);
            let to = columns.end.min((group + 1) * TILE);
            let factor = factor.group(group);
            let done = columns.start..from;
            let mut sums = tile(lanes, &factor[done.clone()], 0, &lost[done]);
            let before = &before[(group - first_group) * TILE..][..TILE];
            for (sums, before) in sums.iter_mut().zip(before) {
                for (sum, before) in sums.iter_mut().zip(before) {
                    *sum += before;
                }
            }
            for column in from..to {
                let at = column - group * TILE;
                let row = &factor[column];
                let now = next(&mut extra, column, &sums[at], row[at]);
                for (sums, factor) in sums.iter_mut().zip(row).skip(at + 1) {
                    for (sum, lost) in sums.iter_mut().zip(&now) {
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
    weight: &'a mut [Row],
    damped: &'a mut [f64; STRIP],
    penalty: &'a mut [f64; STRIP],
    column_error: &'a mut [f64],
    ranges: &'a mut Vec<(Row, Row)>,
    live: usize,
}

impl Extra<'_> {
    /// Takes note of a column's errors.
    #[inline(always)]
    fn count(&mut self, column: usize, errors: &Row, lost: &Row, added: f64) {
        let mut squares = [0.0; STRIP];
        for r in 0..STRIP {
            let (error, lost) = (f64::from(errors[r]), f64::from(lost[r]));
            squares[r] = error * error;
            self.damped[r] += squares[r];
            self.penalty[r] += lost * lost * added;
        }
        self.column_error[column] = squares[..self.live].iter().sum();
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
        let groups = self.columns.start / TILE..self.columns.end.div_ceil(TILE);
        for strip in &mut *self.strips {
            strip.before.clear();
            strip.before.resize(groups.len() * TILE, [0.0; STRIP]);
        }
        for from in (0..self.columns.start).step_by(DEPTH) {
            let rows = from..self.columns.start.min(from + DEPTH);
            for strip in &mut *self.strips {
                let tiles = strip.before.as_chunks_mut::<TILE>().0;
                for (group, before) in groups.clone().zip(tiles) {
                    let left = &self.factor.group(group)[rows.clone()];
                    let sums = tile(lanes, left, 0, &strip.lost[rows.clone()]);
                    for (before, sums) in before.iter_mut().zip(&sums) {
                        for (before, sum) in before.iter_mut().zip(sums) {
                            *before += sum;
                        }
                    }
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
    pub(super) work: &'a mut Vec<Row>,
}

impl Fused<f32> for Ranges<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes<f32>>(self, lanes: L) {
        let Ranges { strip, factor, columns, first, group, work } = self;
        strip.ranges.clear();
        let groups = (columns.end - first) / group;
        strip.ranges.resize(groups, ([f32::INFINITY; STRIP], [f32::NEG_INFINITY; STRIP]));
        work.resize(columns.end, [0.0; STRIP]);
        // Losing what is still to be made up for leaves nothing to the next: `corrected = w - Z` where `Z R + D R = 0`.
        strip.substitute(
            lanes,
            factor,
            columns,
            Some(work),
            #[inline(always)]
            |strip, column, sums, pivot| {
                let mut lost = [0.0; STRIP];
                for r in 0..STRIP {
                    lost[r] = -sums[r] / pivot;
                }
                if column >= first {
                    let (min, max) = &mut strip.ranges[(column - first) / group];
                    for r in 0..STRIP {
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
    rows: [usize; STRIP],
    column: usize,
    scale: Row,
    offset: Row,
}

impl<'a> Lookup<'a> {
    fn new(grid: Grid<'a>, strip: &Strip) -> Self {
        let none = usize::MAX;
        let rows = strip.tile_rows;
        Lookup { grid, rows, column: none, scale: [1.0; STRIP], offset: [0.0; STRIP] }
    }

    /// The values nearest to `x` in a column of the weight.
    #[inline(always)]
    fn nearest(&mut self, column: usize, x: &Row) -> Row {
        let tile_column = column / self.grid.width;
        if tile_column != self.column {
            self.column = tile_column;
            let tiles = tile_column * self.grid.tile_rows..(tile_column + 1) * self.grid.tile_rows;
            let (scale, offset) = (&self.grid.scale[tiles.clone()], &self.grid.offset[tiles]);
            for r in 0..STRIP {
                (self.scale[r], self.offset[r]) = (scale[self.rows[r]], offset[self.rows[r]]);
            }
        }
        let mut values = [0.0; STRIP];
        for r in 0..STRIP {
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
                let mut corrected = [0.0; STRIP];
                for r in 0..STRIP {
                    corrected[r] = weight[r] + sums[r] / pivot;
                }
                let rounded = lookup.nearest(order[column], &corrected);
                let (mut lost, mut errors) = ([0.0; STRIP], [0.0; STRIP]);
                for r in 0..STRIP {
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
            for r in 0..STRIP {
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
    pub(super) work: &'a mut Vec<Row>,
}

impl Fused<f32> for Judge<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes<f32>>(self, lanes: L) {
        let Judge { strip, factor, columns, work } = self;
        let mut known = std::mem::take(&mut strip.lost);
        work.resize(columns.end, [0.0; STRIP]);
        strip.substitute(
            lanes,
            factor,
            columns,
            Some(work),
            #[inline(always)]
            |strip, column, sums, pivot| {
                let lost = known[column];
                for r in 0..STRIP {
                    let error = f64::from(sums[r] + lost[r] * pivot);
                    strip.damped[r] += error * error;
                }
                lost
            },
        );
        std::mem::swap(&mut strip.lost, &mut known);
    }
}
