//! The rounding of a layer's weight, step by step.

use std::ops::Range;

use rayon::prelude::*;

use super::factor::HessianFactor;
use super::nearest::Loss;
use super::update::{Accumulate, CHUNK, Grid, Ranges, Round, SHARED, Strip};
use super::{DeadColumns, GptqOptions, GptqResult, NearestRounding};
use crate::affine::Bounds;
use crate::error::{KernelError, KernelErrorKind, check_len};
use crate::grid::IntegerGrid;
use crate::lanes::dispatch_fused;
use crate::product::{Lane, WIDTH};
use crate::range::{OneSided, Parameters, min_max, parameters_for_range};
use crate::tiling::Tiling;

/// The work, checked.
pub(super) struct Layer<'a> {
    pub(super) weight: &'a [f32],
    pub(super) tiling: &'a Tiling,
    pub(super) grid: IntegerGrid,
    pub(super) factor: &'a HessianFactor,
    pub(super) options: &'a GptqOptions,
    pub(super) rows: usize,
    pub(super) columns: usize,
    /// Rows and columns of a tile.
    pub(super) tile: (usize, usize),
    pub(super) dead: Vec<bool>,
}

impl Layer<'_> {
    /// Rounds, beginning with these parameters.
    pub(super) fn solve(&self, initial: Tiles) -> Result<GptqResult, KernelError> {
        let Layer { factor, options, rows, columns, .. } = *self;
        let mut result = GptqResult {
            weight: vec![0.0; rows * columns],
            parameters: Parameters { scale: Vec::new(), offset: None },
            loss: 0.0,
            nearest_loss: None,
            nearest_rows: 0,
            column_error: vec![0.0; columns],
        };
        let mut tiles = initial.clone();
        if result.weight.is_empty() {
            result.parameters = tiles.parameters();
            return Ok(result);
        }
        let steps = self.steps();
        let batch = self.batch();
        let batches = result.weight.par_chunks_mut(batch * WIDTH * columns).enumerate();
        let done: Vec<Result<Done, KernelError>> = batches
            .map_init(Vec::new, |strips, (number, out)| {
                self.solve_batch(&steps, &initial, number * batch, strips, out)
            })
            .collect();

        let mut losses = Vec::with_capacity(rows);
        for done in done {
            let done = done?;
            // Strip by strip, so that the sums do not depend on what a batch is.
            for errors in done.column_errors {
                for (column, error) in factor.order().iter().zip(errors) {
                    result.column_error[*column] += error;
                }
            }
            losses.extend(done.losses);
            if self.regroups() {
                tiles.replace(done.first_tile, &done.tiles);
            }
        }
        let mut kept = losses;
        if options.nearest != NearestRounding::Ignore {
            let nearest = self.nearest(&kept, &initial);
            if options.nearest == NearestRounding::Report {
                result.nearest_loss = Some(nearest.iter().map(Loss::undamped).sum());
            }
            self.prefer_nearest(&mut kept, &nearest, &initial, &mut tiles, &mut result);
        }
        result.loss = kept.iter().map(Loss::undamped).sum();
        result.parameters = tiles.parameters();
        Ok(result)
    }

    /// Strips that are rounded from the first column to the last before others are begun: few, so that they stay in
    /// the caches; all of them where ranges computed anew are of rows in several, or parameters depend on the ranges of
    /// all rows.
    fn batch(&self) -> usize {
        let strips = self.rows.div_ceil(WIDTH);
        let range = &self.options.range;
        let together = range.symmetric && range.one_sided == OneSided::Global;
        let independent = !self.regroups() || (WIDTH.is_multiple_of(self.tile.0) && !together);
        if independent { self.panel(strips) } else { strips }
    }

    /// Rounds the strips from `first` on to `out`, which says how many they are. `strips` is memory to work in.
    fn solve_batch(
        &self,
        steps: &[Step],
        initial: &Tiles,
        first: usize,
        strips: &mut Vec<Strip>,
        out: &mut [f32],
    ) -> Result<Done, KernelError> {
        let rows = first * WIDTH..first * WIDTH + out.len() / self.columns;
        let tile_rows = rows.start / self.tile.0..rows.end.div_ceil(self.tile.0);
        let mut tiles = initial.part(&tile_rows);
        strips.resize_with(rows.len().div_ceil(WIDTH), Strip::default);
        let panel = self.panel(strips.len());
        strips.par_chunks_mut(panel).enumerate().for_each(|(number, strips)| {
            for (i, strip) in strips.iter_mut().enumerate() {
                self.load(first + number * panel + i, tile_rows.start, strip);
            }
        });
        for step in steps {
            if let Some(window) = &step.window {
                self.ranges(strips, window, &mut tiles)?;
            }
            self.round(strips, step, &tiles);
        }
        let parts = out.par_chunks_mut(panel * WIDTH * self.columns);
        parts.zip(strips.par_chunks(panel)).for_each(|(out, strips)| {
            for (strip, out) in strips.iter().zip(out.chunks_mut(WIDTH * self.columns)) {
                self.store(strip, out);
            }
        });
        Ok(Done {
            first_tile: tile_rows.start,
            tiles,
            losses: strips.iter().flat_map(|s| (0..s.live).map(|row| s.loss(row))).collect(),
            column_errors: strips.iter_mut().map(|s| std::mem::take(&mut s.column_error)).collect(),
        })
    }
}

/// What is left of a batch of strips.
struct Done {
    /// The first row of tiles that `tiles` are of.
    first_tile: usize,
    tiles: Tiles,
    /// Of each row.
    losses: Vec<Loss>,
    /// Of each strip, columns in the order of the factor.
    column_errors: Vec<Vec<f64>>,
}

/// Parameters, tile column by tile column: `[tile columns, tile rows]`.
#[derive(Clone)]
pub(super) struct Tiles {
    /// Rows of tiles.
    pub(super) rows: usize,
    pub(super) scale: Vec<f32>,
    /// Not rounded; zero where there is none.
    pub(super) offset: Vec<f32>,
    pub(super) has_offset: bool,
}

impl Tiles {
    fn parameters(self) -> Parameters {
        let transposed = |values: &[f32]| {
            let columns = values.len() / self.rows.max(1);
            let at = |i: usize| values[i % columns * self.rows + i / columns];
            (0..values.len()).map(at).collect()
        };
        let offset = self.has_offset.then(|| transposed(&self.offset));
        Parameters { scale: transposed(&self.scale), offset }
    }

    /// Some of the rows.
    fn part(&self, rows: &Range<usize>) -> Tiles {
        let part = |values: &[f32]| {
            values
                .chunks_exact(self.rows)
                .flat_map(|values| &values[rows.clone()])
                .copied()
                .collect()
        };
        let (scale, offset) = (part(&self.scale), part(&self.offset));
        Tiles { rows: rows.len(), scale, offset, has_offset: self.has_offset }
    }

    /// Takes the rows from `first` on from `others`.
    fn replace(&mut self, first: usize, others: &Tiles) {
        let (rows, part) = (self.rows, others.rows);
        let replace = |values: &mut [f32], others: &[f32]| {
            for (values, others) in values.chunks_mut(rows).zip(others.chunks(part)) {
                values[first..][..others.len()].copy_from_slice(others);
            }
        };
        self.has_offset |= others.has_offset;
        replace(&mut self.scale, &others.scale);
        replace(&mut self.offset, &others.offset);
    }
}

/// A part of the columns.
struct Step {
    /// Whose corrected weights give ranges before the part is rounded.
    window: Option<Window>,
    columns: Range<usize>,
}

/// Columns in groups; the window begins where corrections were last made visible.
struct Window {
    columns: Range<usize>,
    /// Where the first group begins.
    first: usize,
}

impl<'a> Layer<'a> {
    pub(super) fn new(
        weight: &'a [f32],
        tiling: &'a Tiling,
        grid: IntegerGrid,
        factor: &'a HessianFactor,
        options: &'a GptqOptions,
    ) -> Result<Self, KernelError> {
        check_len("shape of a weight matrix", 2, tiling.shape().len())?;
        let (rows, columns) = (tiling.shape()[0], tiling.shape()[1]);
        check_len("features of the hessian for the weight's columns", columns, factor.features())?;
        tiling.check_input(weight.len())?;
        if options.block_size == 0 {
            let (what, must_be) = ("block size", "at least 1");
            return Err(KernelErrorKind::Option { what, must_be, found: 0.0 }.into());
        }
        let mut dead = vec![false; columns];
        factor.dead_columns().iter().for_each(|&column| dead[column] = true);
        let tile = (tiling.tile_shape()[0].max(1), tiling.tile_shape()[1].max(1));
        Ok(Layer { weight, tiling, grid, factor, options, rows, columns, tile, dead })
    }

    pub(super) fn tile_rows(&self) -> usize {
        self.rows / self.tile.0
    }

    /// Whether groups get new ranges.
    pub(super) fn regroups(&self) -> bool {
        let groups = self.tile.1 > 1 && self.tile.1 < self.columns;
        groups && !self.options.static_groups && !self.factor.act_order()
    }

    /// The parameters for the ranges of the weights as they came.
    pub(super) fn initial(&self) -> Result<Tiles, KernelError> {
        if self.rows == 0 || self.columns == 0 {
            return Ok(Tiles { rows: 0, scale: Vec::new(), offset: Vec::new(), has_offset: false });
        }
        let range = min_max(self.weight, self.tiling)?;
        range.check_finite()?;
        let found = parameters_for_range(&range.min, &range.max, self.grid, &self.options.range)?;
        Ok(self.tiles(&found.scale, found.offset.as_deref()))
    }

    /// Parameters that are given tile row by tile row.
    pub(super) fn tiles(&self, scale: &[f32], offset: Option<&[f32]>) -> Tiles {
        let (tile_rows, tile_columns) = (self.tile_rows(), self.columns / self.tile.1);
        let transposed = |values: &[f32]| -> Vec<f32> {
            let at = |i: usize| values[i % tile_rows * tile_columns + i / tile_rows];
            (0..values.len()).map(at).collect()
        };
        let scale = transposed(scale);
        let offset_of = offset.map_or(vec![0.0; scale.len()], transposed);
        Tiles { rows: tile_rows, scale, offset: offset_of, has_offset: offset.is_some() }
    }

    pub(super) fn grid<'t>(&self, tiles: &'t Tiles, rounded_offset: &'t [f32]) -> Grid<'t> {
        Grid {
            scale: &tiles.scale,
            offset: rounded_offset,
            tile_rows: tiles.rows,
            width: self.tile.1,
            bounds: Bounds::new(self.grid),
        }
    }

    /// A strip of the weight, its columns in the order of the factor; rows of tiles are counted from `first_tile` on.
    pub(super) fn load(&self, number: usize, first_tile: usize, strip: &mut Strip) {
        let first = number * WIDTH;
        let live = (self.rows - first).min(WIDTH);
        strip.reset(self.columns, first, live);
        let Strip { weight, lost, .. } = strip;
        let weights = if self.factor.act_order() { &mut *lost } else { &mut *weight };
        if live < WIDTH {
            weights.fill(Lane::default());
        }
        let [row_step, column_step] = [self.tiling.strides()[0], self.tiling.strides()[1]];
        // A few columns at a time, as many as a line of the cache holds.
        for (part, out) in weights.chunks_mut(16).enumerate() {
            for r in 0..live {
                let from = &self.weight[(first + r) * row_step + part * 16 * column_step..];
                out.iter_mut().enumerate().for_each(|(c, out)| out[r] = from[c * column_step]);
            }
        }
        let order = self.factor.order();
        if self.factor.act_order() {
            weight.iter_mut().zip(order).for_each(|(weight, &column)| *weight = lost[column]);
        }
        if self.options.dead_columns == DeadColumns::Zero {
            let dead = order.iter().zip(weight).filter(|(column, _)| self.dead[**column]);
            dead.for_each(|(_, weight)| *weight = Lane::default());
        }
        let tile_row = |r: usize| (first + r.min(live - 1)) / self.tile.0 - first_tile;
        strip.tile_rows = std::array::from_fn(tile_row);
    }

    /// Writes a strip's weights, row by row and with columns where they belong.
    fn store(&self, strip: &Strip, out: &mut [f32]) {
        let columns = self.columns;
        let mut sorted;
        let mut weight = &strip.weight;
        if self.factor.act_order() {
            sorted = vec![Lane::default(); columns];
            for (&column, weight) in self.factor.order().iter().zip(weight) {
                sorted[column] = *weight;
            }
            weight = &sorted;
        }
        for (part, weight) in weight.chunks(16).enumerate() {
            for (r, out) in out.chunks_exact_mut(columns).enumerate() {
                let out = &mut out[part * 16..][..weight.len()];
                out.iter_mut().zip(weight).for_each(|(out, weight)| *out = weight[r]);
            }
        }
    }

    /// The parts of the columns, and where new ranges come in.
    fn steps(&self) -> Vec<Step> {
        let mut steps = Vec::new();
        let mut chunks = |columns: Range<usize>, mut window: Option<Window>| {
            for from in columns.clone().step_by(CHUNK) {
                let columns = from..columns.end.min(from + CHUNK);
                steps.push(Step { window: window.take(), columns });
            }
        };
        if !self.regroups() {
            chunks(0..self.columns, None);
            return steps;
        }
        let (block, width) = (self.options.block_size, self.tile.1);
        let groups: Vec<usize> = (0..self.columns).step_by(width).collect();
        // Groups that begin in one block see the same corrections.
        let together: Vec<&[usize]> = groups.chunk_by(|a, b| a / block == b / block).collect();
        for (i, groups) in together.iter().enumerate() {
            let begin = |groups: &[usize]| groups[0] / block * block;
            let end = together.get(i + 1).map_or(self.columns, |next| begin(next));
            let last = groups[groups.len() - 1] + width;
            let window = Window { columns: begin(groups)..last, first: groups[0] };
            chunks(begin(groups)..end, Some(window));
        }
        steps
    }

    /// Strips that share the work on the factor.
    pub(super) fn panel(&self, strips: usize) -> usize {
        strips.div_ceil(rayon::current_num_threads()).clamp(1, SHARED)
    }

    /// New parameters for the groups of a window.
    fn ranges(
        &self,
        strips: &mut [Strip],
        window: &Window,
        tiles: &mut Tiles,
    ) -> Result<(), KernelError> {
        let (factor, group) = (self.factor, self.tile.1);
        let panel = self.panel(strips.len());
        strips.par_chunks_mut(panel).for_each(|strips| {
            let columns = window.columns.clone();
            dispatch_fused(Accumulate { strips, factor, columns });
            let mut work = Vec::new();
            for strip in strips {
                let (columns, first, work) = (window.columns.clone(), window.first, &mut work);
                dispatch_fused(Ranges { strip, factor, columns, first, group, work });
            }
        });
        let tile_rows = tiles.rows;
        for number in 0..(window.columns.end - window.first) / group {
            let mut min = vec![f32::INFINITY; tile_rows];
            let mut max = vec![f32::NEG_INFINITY; tile_rows];
            for strip in &*strips {
                let (low, high) = &strip.ranges[number];
                for (r, &tile) in strip.tile_rows.iter().enumerate().take(strip.live) {
                    (min[tile], max[tile]) = (min[tile].min(low[r]), max[tile].max(high[r]));
                }
            }
            let found = parameters_for_range(&min, &max, self.grid, &self.options.range)?;
            let at = (window.first / group + number) * tile_rows;
            tiles.scale[at..][..tile_rows].copy_from_slice(&found.scale);
            tiles.has_offset |= found.offset.is_some();
            let offset = found.offset.unwrap_or_else(|| vec![0.0; tile_rows]);
            tiles.offset[at..][..tile_rows].copy_from_slice(&offset);
        }
        Ok(())
    }

    /// Rounds a part of the columns.
    fn round(&self, strips: &mut [Strip], step: &Step, tiles: &Tiles) {
        let rounded: Vec<f32> = tiles.offset.iter().map(|o| o.round_ties_even()).collect();
        let (factor, grid) = (self.factor, self.grid(tiles, &rounded));
        let panel = self.panel(strips.len());
        strips.par_chunks_mut(panel).for_each(|strips| {
            let columns = step.columns.clone();
            if step.window.is_none() {
                dispatch_fused(Accumulate { strips, factor, columns: columns.clone() });
            }
            for strip in strips {
                dispatch_fused(Round { strip, factor, columns: columns.clone(), grid });
            }
        });
    }
}
