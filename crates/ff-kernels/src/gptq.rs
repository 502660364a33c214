//! GPTQ: weights rounded column by column, each column making up for the errors of those before it.

mod factor;
mod hessian;
mod reference;
mod update;

#[cfg(test)]
mod tests;

pub use factor::{FactorOptions, HessianFactor};
pub use hessian::Hessian;
pub use reference::{gptq_reference, hessian_loss};

use std::ops::Range;

use rayon::prelude::*;

use crate::affine::{Affine, Bounds};
use crate::error::{KernelError, KernelErrorKind, check_len};
use crate::grid::IntegerGrid;
use crate::lanes::dispatch_fused;
use crate::product::{Lane, WIDTH};
use crate::range::{Parameters, RangeOptions, min_max, parameters_for_range};
use crate::tiling::Tiling;
use update::{Accumulate, CHUNK, Grid, Judge, Nearest, Ranges, Round, SHARED, Strip};

/// How [`gptq`] rounds. The default is the reference's (spec §10.1), with a guard that it lacks.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct GptqOptions {
    /// Columns whose corrections become visible together to the ranges of groups that are computed anew. This is all
    /// that it changes: otherwise columns go in pieces that suit the machine. At least 1; default 128.
    pub block_size: usize,
    /// Groups of columns keep the ranges of the weights as they came, rather than of the weights corrected for the
    /// columns before. Always so if the factor goes by act-order. Default `false`.
    pub static_groups: bool,
    /// What becomes of weights whose input was never seen other than zero.
    pub dead_columns: DeadColumns,
    /// How ranges become parameters.
    pub range: RangeOptions,
    /// What is done about weights that nearest rounding would serve better.
    pub nearest: NearestRounding,
}

impl Default for GptqOptions {
    fn default() -> Self {
        GptqOptions {
            block_size: 128,
            static_groups: false,
            dead_columns: DeadColumns::Keep,
            range: RangeOptions::default(),
            nearest: NearestRounding::Guard,
        }
    }
}

/// Weights whose input was zero in every sample. They do not matter to the samples; to other inputs they may.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeadColumns {
    /// They are rounded like others, as the reference does: what the samples missed still works. The default.
    Keep,
    /// They become the grid's value nearest to zero, as in the paper's code.
    Zero,
}

/// Whether a row that nearest rounding would serve better gets it.
///
/// GPTQ is greedy: it has no smaller loss than nearest rounding on every row, only on nearly all. Comparing costs up to
/// as much again as rounding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NearestRounding {
    /// No comparison: what the reference does.
    Ignore,
    /// Rows that would lose less, or all but as little, are rounded to nearest. The comparison of a row ends as soon as
    /// it is decided. The default.
    Guard,
    /// As [`NearestRounding::Guard`], with every comparison brought to its end: the result has
    /// [`GptqResult::nearest_loss`].
    Report,
}

/// What [`gptq`] gives back.
#[derive(Debug, Clone, PartialEq)]
pub struct GptqResult {
    /// The weight, on the grid: [`quantize`](crate::quantize) with the same parameters gives its codes. Contiguous.
    /// `[rows, columns]`
    pub weight: Vec<f32>,
    /// The parameters of each tile.
    pub parameters: Parameters,
    /// `tr((W - Q) H (W - Q)ᵀ)`: twice the squared error of the outputs, averaged over samples. `H` is what the samples
    /// give, without damping. Sums of f32 products: with relative errors of about 1e-4 of the damped loss.
    pub loss: f64,
    /// The same for rounding every weight to nearest on the grid of the weight's own ranges; only with
    /// [`NearestRounding::Report`].
    pub nearest_loss: Option<f64>,
    /// Rows for which nearest rounding was taken and differs.
    pub nearest_rows: usize,
    /// Of each column, what GPTQ's rounding of it adds to the loss (with damping) once the later columns have made up
    /// for what they can, before any row was rounded to nearest. `[columns]`
    pub column_error: Vec<f64>,
}

/// Rounds a weight to the grid so that the output of its layer changes little (Frantar et al., GPTQ, 2023; spec §10.1).
///
/// The weight is `[rows, columns]`, a row for each output, as `tiling` says; it may be a strided view. A tile's range is
/// that of its weights. Columns are rounded one after the other, each corrected so that it makes up for what rounding
/// took from the columns before. Where tiles are groups of columns, wider than one and narrower than the weight, a
/// group's range is computed anew from corrected weights when rounding reaches it; see [`GptqOptions::static_groups`].
///
/// Rows do not depend on each other, except through groups' ranges; the result is the same for any number of threads.
/// Sums are of fused multiplications where the machine has them, so a weight near the middle of two values may go either
/// way on another machine.
///
/// # Errors
/// A tiling that is not of a matrix, or of another number of columns than the factor's; a slice of the wrong length;
/// weights that are not finite; a block size of 0; whatever [`parameters_for_range`] refuses.
///
/// ```
/// use ff_kernels::{FactorOptions, GptqOptions, Hessian, HessianFactor, IntegerGrid, Tiling, gptq};
/// let mut hessian = Hessian::new(2)?;
/// hessian.add(&[1.0, 0.9, -0.5, -0.6, 0.2, 0.3])?; // three samples, the two inputs nearly alike
/// let factor = HessianFactor::new(&mut hessian, &FactorOptions::default())?;
/// let weight = [0.34, 1.4]; // on the grid of steps of 0.2: 0.4 and 1.4
/// let options = GptqOptions::default();
/// let result = gptq(&weight, &Tiling::whole(&[1, 2])?, IntegerGrid::signed(4)?, &factor, &options)?;
/// assert!(result.loss < 0.01);
/// # Ok::<(), ff_kernels::KernelError>(())
/// ```
pub fn gptq(
    weight: &[f32],
    tiling: &Tiling,
    grid: IntegerGrid,
    factor: &HessianFactor,
    options: &GptqOptions,
) -> Result<GptqResult, KernelError> {
    let layer = Layer::new(weight, tiling, grid, factor, options)?;
    layer.solve(layer.initial()?)
}

/// As [`gptq`] with [static groups](GptqOptions::static_groups), but with parameters from elsewhere, such as a search for
/// ranges, in place of those for the smallest and largest weights.
///
/// # Errors
/// As [`gptq`]; parameters of the wrong number, scales that are not positive and finite, offsets that are not finite.
pub fn gptq_with_parameters(
    weight: &[f32],
    tiling: &Tiling,
    affine: Affine<'_>,
    grid: IntegerGrid,
    factor: &HessianFactor,
    options: &GptqOptions,
) -> Result<GptqResult, KernelError> {
    let options = GptqOptions { static_groups: true, ..*options };
    let layer = Layer::new(weight, tiling, grid, factor, &options)?;
    check_len("scale", tiling.num_tiles(), affine.scale.len())?;
    affine.check(tiling)?;
    layer.solve(layer.tiles(affine.scale, affine.offset))
}

impl Layer<'_> {
    /// Rounds, beginning with these parameters.
    fn solve(&self, initial: Tiles) -> Result<GptqResult, KernelError> {
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
    /// the caches; all of them where ranges computed anew are of rows in several.
    fn batch(&self) -> usize {
        let strips = self.rows.div_ceil(WIDTH);
        let independent = !self.regroups() || WIDTH.is_multiple_of(self.tile.0);
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

/// What two losses must differ by, as a part of them, for the difference to be more than rounding.
const TOLERANCE: f64 = 1e-3;

/// The loss of a row.
#[derive(Debug, Clone, Copy)]
struct Loss {
    damped: f64,
    /// What damping adds.
    penalty: f64,
}

impl Loss {
    fn undamped(&self) -> f64 {
        (self.damped - self.penalty).max(0.0)
    }

    /// The loss is at least this.
    fn at_least(&self) -> f64 {
        self.damped * (1.0 - TOLERANCE) - self.penalty
    }

    /// The loss is at most this.
    fn at_most(&self) -> f64 {
        self.damped * (1.0 + TOLERANCE) - self.penalty
    }

    fn add(self, other: &Loss) -> Loss {
        Loss { damped: self.damped + other.damped, penalty: self.penalty + other.penalty }
    }
}

/// Parameters, tile column by tile column: `[tile columns, tile rows]`.
#[derive(Clone)]
struct Tiles {
    /// Rows of tiles.
    rows: usize,
    scale: Vec<f32>,
    /// Not rounded; zero where there is none.
    offset: Vec<f32>,
    has_offset: bool,
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

/// The work, checked.
struct Layer<'a> {
    weight: &'a [f32],
    tiling: &'a Tiling,
    grid: IntegerGrid,
    factor: &'a HessianFactor,
    options: &'a GptqOptions,
    rows: usize,
    columns: usize,
    /// Rows and columns of a tile.
    tile: (usize, usize),
    dead: Vec<bool>,
}

impl<'a> Layer<'a> {
    fn new(
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

    fn tile_rows(&self) -> usize {
        self.rows / self.tile.0
    }

    /// Whether groups get new ranges.
    fn regroups(&self) -> bool {
        let groups = self.tile.1 > 1 && self.tile.1 < self.columns;
        groups && !self.options.static_groups && !self.factor.act_order()
    }

    /// The parameters for the ranges of the weights as they came.
    fn initial(&self) -> Result<Tiles, KernelError> {
        if self.rows == 0 || self.columns == 0 {
            return Ok(Tiles { rows: 0, scale: Vec::new(), offset: Vec::new(), has_offset: false });
        }
        let range = min_max(self.weight, self.tiling)?;
        range.check_finite()?;
        let found = parameters_for_range(&range.min, &range.max, self.grid, &self.options.range)?;
        Ok(self.tiles(&found.scale, found.offset.as_deref()))
    }

    /// Parameters that are given tile row by tile row.
    fn tiles(&self, scale: &[f32], offset: Option<&[f32]>) -> Tiles {
        let (tile_rows, tile_columns) = (self.tile_rows(), self.columns / self.tile.1);
        let transposed = |values: &[f32]| -> Vec<f32> {
            let at = |i: usize| values[i % tile_rows * tile_columns + i / tile_rows];
            (0..values.len()).map(at).collect()
        };
        let scale = transposed(scale);
        let offset_of = offset.map_or(vec![0.0; scale.len()], transposed);
        Tiles { rows: tile_rows, scale, offset: offset_of, has_offset: offset.is_some() }
    }

    fn grid<'t>(&self, tiles: &'t Tiles, rounded_offset: &'t [f32]) -> Grid<'t> {
        Grid {
            scale: &tiles.scale,
            offset: rounded_offset,
            tile_rows: tiles.rows,
            width: self.tile.1,
            bounds: Bounds::new(self.grid),
        }
    }

    /// A strip of the weight, its columns in the order of the factor; rows of tiles are counted from `first_tile` on.
    fn load(&self, number: usize, first_tile: usize, strip: &mut Strip) {
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
    fn panel(&self, strips: usize) -> usize {
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

    /// The loss of rounding each row to nearest; infinite where that is certainly more than `losses`.
    fn nearest(&self, losses: &[Loss], tiles: &Tiles) -> Vec<Loss> {
        let rounded: Vec<f32> = tiles.offset.iter().map(|o| o.round_ties_even()).collect();
        let (factor, grid) = (self.factor, self.grid(tiles, &rounded));
        // Rows that are decided together need all of their losses.
        let ends_early = self.options.nearest == NearestRounding::Guard && self.unit() == 1;
        let num_strips = self.rows.div_ceil(WIDTH);
        let panel = self.panel(num_strips);
        let mut found = vec![Loss { damped: f64::INFINITY, penalty: 0.0 }; self.rows];
        found.par_chunks_mut(panel * WIDTH).enumerate().for_each(|(number, found)| {
            let first = number * panel;
            let numbers = first..num_strips.min(first + panel);
            let mut strips: Vec<Strip> = numbers
                .map(|number| {
                    let mut strip = Strip::default();
                    self.load(number, 0, &mut strip);
                    strip
                })
                .collect();
            for strip in &mut strips {
                dispatch_fused(Nearest { strip, factor, grid });
            }
            let mut work = Vec::new();
            for from in (0..self.columns).step_by(CHUNK) {
                let columns = from..self.columns.min(from + CHUNK);
                dispatch_fused(Accumulate {
                    strips: &mut strips,
                    factor,
                    columns: columns.clone(),
                });
                for strip in &mut strips {
                    dispatch_fused(Judge {
                        strip,
                        factor,
                        columns: columns.clone(),
                        work: &mut work,
                    });
                }
                if ends_early {
                    strips.retain(|strip| {
                        let mut rows = losses[strip.first..][..strip.live].iter().enumerate();
                        !rows.all(|(r, loss)| strip.loss(r).at_least() > loss.at_most())
                    });
                }
            }
            for strip in strips {
                for r in 0..strip.live {
                    found[strip.first - first * WIDTH + r] = strip.loss(r);
                }
            }
        });
        found
    }

    /// Rows that are decided together: those whose parameters were computed anew together.
    fn unit(&self) -> usize {
        if self.regroups() { self.tile.0 } else { 1 }
    }

    /// Rounds the rows to nearest that are not certainly served better by what was found.
    fn prefer_nearest(
        &self,
        losses: &mut [Loss],
        nearest: &[Loss],
        initial: &Tiles,
        tiles: &mut Tiles,
        result: &mut GptqResult,
    ) {
        let (unit, tile_rows) = (self.unit(), self.tile_rows());
        let bounds = Bounds::new(self.grid);
        let total = |losses: &[Loss]| {
            losses.iter().fold(Loss { damped: 0.0, penalty: 0.0 }, |sum, loss| sum.add(loss))
        };
        for first in (0..self.rows).step_by(unit.max(1)) {
            let rows = first..first + unit;
            if total(&nearest[rows.clone()]).at_least() > total(&losses[rows.clone()]).at_most() {
                continue;
            }
            losses[rows.clone()].copy_from_slice(&nearest[rows.clone()]);
            if self.regroups() {
                for at in (first / self.tile.0..tiles.scale.len()).step_by(tile_rows) {
                    (tiles.scale[at], tiles.offset[at]) = (initial.scale[at], initial.offset[at]);
                }
            }
            let [row_step, column_step] = [self.tiling.strides()[0], self.tiling.strides()[1]];
            for row in rows {
                let out = &mut result.weight[row * self.columns..][..self.columns];
                let mut differs = false;
                for (column, out) in out.iter_mut().enumerate() {
                    let at = column / self.tile.1 * tile_rows + row / self.tile.0;
                    let (scale, offset) = (initial.scale[at], initial.offset[at].round_ties_even());
                    let zero = self.dead[column] && self.options.dead_columns == DeadColumns::Zero;
                    let weight = self.weight[row * row_step + column * column_step];
                    let weight = if zero { 0.0 } else { weight };
                    let code = bounds.clamp((weight / scale - offset).round_ties_even());
                    let value = (code + offset) * scale;
                    differs |= value != *out;
                    *out = value;
                }
                result.nearest_rows += usize::from(differs);
            }
        }
    }
}

impl Strip {
    fn loss(&self, row: usize) -> Loss {
        Loss { damped: self.damped[row], penalty: self.penalty[row] }
    }
}
