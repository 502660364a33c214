//! Weight ranges chosen by what they do to the layer's output.

use rayon::prelude::*;

use super::layer::{Judge, matrix};
use super::moments::LayerMoments;
use crate::affine::Bounds;
use crate::error::{KernelError, check_len};
use crate::grid::IntegerGrid;
use crate::product::{Lane, Panels, WIDTH, lanes_of};
use crate::range::{Candidates, Parameters, RangeOptions, parameters_for_range};
use crate::simd::{Vectorized, dispatch};
use crate::tiling::Tiling;

/// Parameters chosen among candidates, and what that gained.
#[derive(Debug, Clone, PartialEq)]
pub struct RangeChoice {
    /// Scale and offset of each tile.
    pub parameters: Parameters,
    /// The candidate of each tile; see [`Candidates::ranges`].
    pub chosen: Vec<usize>,
    /// The loss of each row, rounded to nearest, with the widest candidate of each tile.
    pub before: Vec<f64>,
    /// The loss of each row, rounded to nearest, with the chosen ones.
    pub after: Vec<f64>,
}

impl RangeChoice {
    /// The loss of all rows with the widest candidate of each tile.
    pub fn loss_before(&self) -> f64 {
        self.before.iter().sum()
    }

    /// The loss of all rows with the chosen candidates.
    pub fn loss_after(&self) -> f64 {
        self.after.iter().sum()
    }
}

/// Chooses the range of each tile by the error of the layer's output: "sequential MSE".
///
/// What is minimised is the sum over rows of [`reconstruction_losses`](crate::reconstruction_losses) of the weight
/// rounded to nearest, errors of one tile making up for those of another included. Every tile starts with its widest
/// candidate; then, in the order of the columns, each takes the candidate with the least loss, all other tiles being as
/// they are: those before have chosen, those after are still widest. So no step raises the loss. Tiles with the same
/// columns (channels, say) do not depend on each other.
///
/// `tiling` is as for [`adaround`](crate::adaround), `candidates` are those of its tiles. Takes about as many products of
/// the weight with `G` as there are candidates, divided by the number of tiles along a row. The same bytes for any number
/// of threads, and on all machines with fused multiplication.
///
/// # Errors
/// Another number of inputs than the moments have; weights that are not finite; another number of tiles; what
/// [`parameters_for_range`] refuses.
///
/// ```
/// use ff_kernels::*;
/// let mut sums = MomentSums::new(3);
/// sums.add(&[1.0, 1.0, 0.0, 2.0, 1.0, 0.0])?; // the third input is always zero
/// let weight = [0.3, -0.5, 40.0];
/// let tiling = Tiling::whole(&[1, 3])?;
/// let range = min_max(&weight, &tiling)?;
/// let layout = CandidateLayout::default();
/// let candidates = Candidates::new(&range.min, &range.max, true, 100, layout)?;
/// let (grid, options) = (IntegerGrid::signed(3)?, RangeOptions::default());
/// let choice =
///     sequential_mse(&weight, &sums.finish(), &tiling, &candidates, grid, &options)?;
/// assert!(choice.loss_after() < 0.5 * choice.loss_before());
/// # Ok::<(), KernelError>(())
/// ```
pub fn sequential_mse(
    weight: &[f32],
    moments: &LayerMoments,
    tiling: &Tiling,
    candidates: &Candidates,
    grid: IntegerGrid,
    options: &RangeOptions,
) -> Result<RangeChoice, KernelError> {
    let mut search = Search::new(weight, moments, tiling, candidates, grid, options)?;
    let judge = Judge::new(moments);
    let before = judge.losses(&search.weight, &search.quantized, search.rows);
    if !tiling.is_empty() {
        search.by_output(&judge);
    }
    let after = judge.losses(&search.weight, &search.quantized, search.rows);
    Ok(search.finish(before, after))
}

/// Chooses the range of each tile by its squared error, each weight's multiplied by the mean square of its input.
///
/// What is minimised is `Σ_j E[x̂_j²] (w_j - ŵ_j)²` over each tile: [`sequential_mse`] for inputs that do not depend on each
/// other, at a small fraction of its time. Arguments and errors are the same.
///
/// # Errors
/// As [`sequential_mse`].
pub fn activation_weighted_mse(
    weight: &[f32],
    moments: &LayerMoments,
    tiling: &Tiling,
    candidates: &Candidates,
    grid: IntegerGrid,
    options: &RangeOptions,
) -> Result<RangeChoice, KernelError> {
    let mut search = Search::new(weight, moments, tiling, candidates, grid, options)?;
    let before = search.weighted_losses();
    if !tiling.is_empty() {
        search.by_weights();
    }
    let after = search.weighted_losses();
    Ok(search.finish(before, after))
}

struct Search<'a> {
    rows: usize,
    columns: usize,
    tiling: &'a Tiling,
    gram: &'a [f64],
    grid: Bounds,
    /// `[rows, columns]`
    weight: Vec<f32>,
    /// The weight rounded with the current choice.
    quantized: Vec<f32>,
    /// For each candidate those of all tiles.
    parameters: Vec<Parameters>,
    /// For each tile.
    widest: Vec<usize>,
    chosen: Vec<usize>,
}

/// What a choice for the tiles of some columns changes, by rows and candidates: `[rows, candidates]`.
type Changes = Vec<Vec<f64>>;

impl<'a> Search<'a> {
    fn new(
        weight: &[f32],
        moments: &'a LayerMoments,
        tiling: &'a Tiling,
        candidates: &Candidates,
        grid: IntegerGrid,
        options: &RangeOptions,
    ) -> Result<Self, KernelError> {
        check_len("set of candidates", tiling.num_tiles(), candidates.num_tiles())?;
        let (rows, columns, weight) = matrix(weight, tiling)?;
        check_len("inputs of the weight", moments.features, columns)?;
        let tiles = tiling.num_tiles();
        let parameters = (0..candidates.num_candidates())
            .map(|candidate| {
                let (min, max) = candidates.ranges(&vec![candidate; tiles])?;
                parameters_for_range(&min, &max, grid, options)
            })
            .collect::<Result<Vec<_>, _>>()?;
        let widest: Vec<usize> = (0..tiles)
            .map(|tile| {
                let width = |candidate: usize| {
                    let (min, max) = candidates.range(candidate, tile);
                    f64::from(max) - f64::from(min)
                };
                (1..parameters.len())
                    .fold(0, |best, c| if width(c) > width(best) { c } else { best })
            })
            .collect();
        let mut search = Self {
            rows,
            columns,
            tiling,
            gram: &moments.gram,
            grid: Bounds::new(grid),
            quantized: vec![0.0; weight.len()],
            weight,
            parameters,
            chosen: widest.clone(),
            widest,
        };
        (0..tiles).for_each(|tile| search.quantize(tile));
        Ok(search)
    }

    /// Rows that a tile spans.
    fn tile_rows(&self) -> usize {
        self.tiling.tile_shape().first().copied().unwrap_or(1)
    }

    /// Tiles side by side: sets of columns that share tiles.
    fn column_sets(&self) -> usize {
        self.tiling.grid().iter().skip(1).product()
    }

    /// The columns of a set.
    fn columns_of(&self, set: usize) -> Vec<usize> {
        let len = self.tiling.tile_len() / self.tile_rows();
        self.tiling.tile_elements(set).take(len).map(|element| element.output).collect()
    }

    /// Scale and rounded offset.
    fn of(&self, candidate: usize, tile: usize) -> (f32, f32) {
        let parameters = &self.parameters[candidate];
        let offset = parameters.offset.as_ref().map_or(0.0, |o| o[tile].round_ties_even());
        (parameters.scale[tile], offset)
    }

    /// Rounds a tile with its choice.
    fn quantize(&mut self, tile: usize) {
        let (scale, offset) = self.of(self.chosen[tile], tile);
        for element in self.tiling.tile_elements(tile) {
            let code = (self.weight[element.output] / scale - offset).round_ties_even();
            self.quantized[element.output] = (self.grid.clamp(code) + offset) * scale;
        }
    }

    fn by_output(&mut self, judge: &Judge) {
        let n = self.columns;
        // `G d + b` of every row, 32 rows side by side.
        let mut slopes: Vec<Vec<Lane<f64>>> = (0..self.rows)
            .step_by(WIDTH)
            .collect::<Vec<_>>()
            .par_iter()
            .map(|&first| {
                let w = lanes_of(&self.weight, n, first);
                let errors = differences(&w, &lanes_of(&self.quantized, n, first));
                let (linear, _) = judge.shift(&w);
                let mut slopes =
                    if linear.is_empty() { vec![Lane([0.0; WIDTH]); n] } else { linear };
                judge.gram.multiply_add(&errors, &mut slopes);
                slopes
            })
            .collect();
        for set in 0..self.column_sets() {
            let columns = self.columns_of(set);
            let m = columns.len();
            let gram = Panels::new(m, m, |k, j| self.gram[columns[k] * n + columns[j]] as f32);
            let changes: Changes = (0..self.rows)
                .into_par_iter()
                .map(|row| {
                    let at = |k: &usize| slopes[row / WIDTH][*k][row % WIDTH];
                    let slopes: Vec<f64> = columns.iter().map(at).collect();
                    self.changes(set, row, &columns, |moved, sums| {
                        let mut products = vec![Lane([0.0f32; WIDTH]); m];
                        gram.multiply_add(moved, &mut products);
                        // Σ_j δ_j (2 a_j + (G δ)_j)
                        add_terms(
                            sums,
                            moved,
                            slopes.iter().zip(&products),
                            #[inline(always)]
                            |(slope, products), i, moved| {
                                moved * (2.0 * *slope + f64::from(products[i]))
                            },
                        );
                    })
                })
                .collect();
            let old = self.quantized.clone();
            self.choose(set, &changes);
            if set + 1 == self.column_sets() {
                break;
            }
            let gram = Panels::new(m, n, |k, j| self.gram[columns[k] * n + j]);
            slopes.par_iter_mut().enumerate().for_each(|(strip, slopes)| {
                let lanes = |rows: &[f32]| -> Vec<Lane<f32>> {
                    let lanes = lanes_of(rows, n, strip * WIDTH);
                    columns.iter().map(|column| lanes[*column]).collect()
                };
                let moved = differences(&lanes(&old), &lanes(&self.quantized));
                gram.multiply_add(&moved, slopes);
            });
        }
    }

    fn by_weights(&mut self) {
        for set in 0..self.column_sets() {
            let columns = self.columns_of(set);
            let weights: Vec<f64> =
                columns.iter().map(|column| self.gram[column * (self.columns + 1)]).collect();
            let changes: Changes = (0..self.rows)
                .into_par_iter()
                .map(|row| {
                    let error = |column: &usize| {
                        let at = row * self.columns + column;
                        f64::from(self.weight[at]) - f64::from(self.quantized[at])
                    };
                    let errors: Vec<f64> = columns.iter().map(error).collect();
                    self.changes(set, row, &columns, |moved, sums| {
                        // Σ_j g_j δ_j (2 d_j + δ_j)
                        add_terms(
                            sums,
                            moved,
                            weights.iter().zip(&errors),
                            #[inline(always)]
                            |(weight, error), _, moved| *weight * moved * (2.0 * *error + moved),
                        );
                    })
                })
                .collect();
            self.choose(set, &changes);
        }
    }

    /// What each candidate changes for a row, summed by `sum` from what it moves each weight by (the current value less
    /// the new one), 32 candidates side by side.
    fn changes(
        &self,
        set: usize,
        row: usize,
        columns: &[usize],
        sum: impl Fn(&[Lane<f32>], &mut Lane<f64>),
    ) -> Vec<f64> {
        let tile = row / self.tile_rows() * self.column_sets() + set;
        let candidates = self.parameters.len();
        let mut changes = Vec::with_capacity(candidates);
        let mut moved = vec![Lane([0.0; WIDTH]); columns.len()];
        for first in (0..candidates).step_by(WIDTH) {
            let of = |i: usize| self.of((first + i).min(candidates - 1), tile);
            let scale = Lane::from_fn(|i| of(i).0);
            let offset = Lane::from_fn(|i| of(i).1);
            let at = row * self.columns;
            let (weight, current) = (&self.weight[at..], &self.quantized[at..]);
            let grid = self.grid;
            dispatch(Moves { columns, weight, current, scale, offset, grid, moved: &mut moved });
            let mut sums = Lane([0.0; WIDTH]);
            sum(&moved, &mut sums);
            changes.extend(sums.iter().take(candidates - first));
        }
        changes
    }

    /// Gives each tile of these columns the candidate that lowers the loss most.
    fn choose(&mut self, set: usize, changes: &Changes) {
        let sets = self.column_sets();
        for (group, rows) in changes.chunks(self.tile_rows()).enumerate() {
            let tile = group * sets + set;
            let total = |candidate: usize| rows.iter().map(|row| row[candidate]).sum::<f64>();
            // The current choice changes nothing.
            let mut best = (self.chosen[tile], 0.0);
            for candidate in 0..self.parameters.len() {
                let change = total(candidate);
                if change < best.1 {
                    best = (candidate, change);
                }
            }
            self.chosen[tile] = best.0;
            self.quantize(tile);
        }
    }

    fn weighted_losses(&self) -> Vec<f64> {
        let n = self.columns;
        let row = |row: usize| {
            (0..n)
                .map(|j| {
                    let at = row * n + j;
                    let error = f64::from(self.weight[at]) - f64::from(self.quantized[at]);
                    self.gram[j * (n + 1)] * error * error
                })
                .sum()
        };
        (0..self.rows).map(row).collect()
    }

    /// The result. Rows that share tiles and that rounding in f32 has fooled go back to where they started.
    fn finish(mut self, before: Vec<f64>, mut after: Vec<f64>) -> RangeChoice {
        let (rows, sets) = (self.tile_rows().max(1), self.column_sets());
        for (group, (before, after)) in before.chunks(rows).zip(after.chunks_mut(rows)).enumerate()
        {
            let holds = after.iter().sum::<f64>() <= before.iter().sum();
            if !holds {
                after.copy_from_slice(before);
                let tiles = group * sets..(group + 1) * sets;
                self.chosen[tiles.clone()].copy_from_slice(&self.widest[tiles]);
            }
        }
        let tiles = 0..self.tiling.num_tiles();
        let scale = tiles.clone().map(|tile| self.parameters[self.chosen[tile]].scale[tile]);
        let has_offset = self.parameters.iter().any(|p| p.offset.is_some());
        let offset = |tile: usize| {
            let offset = self.parameters[self.chosen[tile]].offset.as_ref();
            offset.map_or(0.0, |offset| offset[tile])
        };
        let parameters = Parameters {
            scale: scale.collect(),
            offset: has_offset.then(|| tiles.map(offset).collect()),
        };
        RangeChoice { parameters, chosen: self.chosen, before, after }
    }
}

fn differences(left: &[Lane<f32>], right: &[Lane<f32>]) -> Vec<Lane<f64>> {
    let difference = |(left, right): (&Lane<f32>, &Lane<f32>)| {
        Lane::from_fn(|r| f64::from(left[r]) - f64::from(right[r]))
    };
    left.iter().zip(right).map(difference).collect()
}

/// By how much each of 32 candidates moves the weights of a row: their current values less the new ones.
struct Moves<'a> {
    columns: &'a [usize],
    weight: &'a [f32],
    current: &'a [f32],
    scale: Lane<f32>,
    offset: Lane<f32>,
    grid: Bounds,
    moved: &'a mut [Lane<f32>],
}

impl Vectorized for Moves<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        for (column, moved) in self.columns.iter().zip(self.moved) {
            let (weight, current) = (self.weight[*column], self.current[*column]);
            for ((moved, scale), offset) in moved.iter_mut().zip(&self.scale).zip(&self.offset) {
                let code = (weight / scale - offset).round_ties_even();
                *moved = current - (self.grid.clamp(code) + offset) * scale;
            }
        }
    }
}

/// Adds `term` of what goes with each weight, of the number of a candidate and of what that moves the weight by, for 32
/// candidates side by side.
fn add_terms<A: Iterator>(
    sums: &mut Lane<f64>,
    moved: &[Lane<f32>],
    with: A,
    term: impl Fn(&A::Item, usize, f64) -> f64,
) {
    dispatch(Terms { moved, with, term, sums });
}

struct Terms<'a, A, F> {
    moved: &'a [Lane<f32>],
    with: A,
    term: F,
    sums: &'a mut Lane<f64>,
}

impl<A: Iterator, F: Fn(&A::Item, usize, f64) -> f64> Vectorized for Terms<'_, A, F> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        for (moved, with) in self.moved.iter().zip(self.with) {
            for i in 0..WIDTH {
                self.sums[i] += (self.term)(&with, i, f64::from(moved[i]));
            }
        }
    }
}
