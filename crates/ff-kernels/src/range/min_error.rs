//! The min-error grid: of many candidate ranges, the one that quantizes the data best.

use rayon::prelude::*;

use super::minmax::min_max;
use super::parameters::{RangeOptions, check, tile_parameters};
use super::{OneSided, parameters_for_range};
use crate::affine::Bounds;
use crate::error::{KernelError, KernelErrorKind, check_len};
use crate::grid::IntegerGrid;
use crate::reduce::{add, by_halves};
use crate::simd::{Vectorized, dispatch};
use crate::tiling::{TileReader, Tiling};

/// Candidate ranges for every tile.
///
/// Candidate `i` of a tile is the range `anchor + factor_i · (end - anchor)`, the ends being those
/// of the tile's data (with the layout's margins), the factors common to all tiles.
///
/// ```
/// use ff_kernels::*;
/// let mut x: Vec<f32> = (0..60).map(|i| i as f32 / 30.0 - 1.0).collect();
/// x.push(3.0); // an outlier, which is better clipped
/// let tiling = Tiling::whole(&[61])?;
/// let range = min_max(&x, &tiling)?;
/// let grid = IntegerGrid::signed(3)?;
/// let options = RangeOptions::default();
/// let candidates =
///     Candidates::new(&range.min, &range.max, true, 50, CandidateLayout::default())?;
/// let best = search_min_error(&x, &tiling, &candidates, grid, &options)?;
/// let (min, max) = candidates.ranges(&best)?;
/// assert!(max[0] < 3.0 && min[0] == -max[0]);
/// # Ok::<(), KernelError>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct Candidates {
    /// Lower and upper factor of each candidate.
    factors: Vec<(f32, f32)>,
    lower: Vec<f32>,
    upper: Vec<f32>,
    anchor: Vec<f32>,
}

/// Where candidate ranges lie, given the minimum and maximum of each tile.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum CandidateLayout {
    /// The reference's grid (spec §6.6), with `M = relative·max + absolute` and `m = relative·min -
    /// absolute`:
    ///
    /// - no tile has `m < 0`: `[0, t·M]` with `t` from `1/n` to 1;
    /// - symmetric: `[-t·a, t·a]` with `a = max(|m|, |M|)`;
    /// - asymmetric: all pairs of `[f·(relative·m + absolute), g·(relative·M + absolute)]` with `f` and
    ///   `g` from 1 to 0.6 and from 0.6 to 1. That is `n` pairs if `n` is a square or below 4, else
    ///   more. The reference never evaluates the surplus and always chooses the first of them;
    ///   here they are candidates like any other.
    Reference {
        /// Added to both ends, 0.5 in the reference.
        absolute_margin: f32,
        /// Multiplies both ends, 1 in the reference.
        relative_margin: f32,
    },
    /// Ranges within the data's own, without margins: symmetric `[-t·a, t·a]` with `a = max(|min|,
    /// |max|)` and `t` from `1/n` to 1; asymmetric all pairs of ends moved towards zero (or towards
    /// the end nearest to it) by factors from `smallest` to 1, at most `n` pairs.
    Fitted {
        /// The smallest factor of asymmetric ranges, in `0..1`.
        smallest: f32,
        /// When symmetric candidates of data that is never negative are `[0, t·max]`; to be
        /// the same as in the [`RangeOptions`] that turn candidates into parameters.
        one_sided: OneSided,
    },
}

impl Default for CandidateLayout {
    fn default() -> Self {
        CandidateLayout::Fitted { smallest: 0.2, one_sided: OneSided::Global }
    }
}

impl CandidateLayout {
    /// The reference's layout with the reference's margins.
    pub const REFERENCE: Self =
        CandidateLayout::Reference { absolute_margin: 0.5, relative_margin: 1.0 };
}

impl Candidates {
    /// About `num_candidates` candidates for tiles with these minima and maxima; see
    /// [`CandidateLayout`] for how many exactly.
    ///
    /// # Errors
    /// Minima and maxima of different number, or not finite; no candidates; margins that are not finite;
    /// a smallest factor outside `0..1`.
    pub fn new(
        min: &[f32],
        max: &[f32],
        symmetric: bool,
        num_candidates: usize,
        layout: CandidateLayout,
    ) -> Result<Self, KernelError> {
        check_len("maximum", min.len(), max.len())?;
        let option = |what, must_be, found| KernelErrorKind::Option { what, must_be, found };
        if num_candidates == 0 {
            return Err(option("number of candidates", "at least 1", 0.0).into());
        }
        let bad = |i: &usize| !(min[*i].is_finite() && max[*i].is_finite());
        let tiles: Vec<_> = (0..min.len()).filter(bad).map(|i| (i, min[i], max[i])).collect();
        if !tiles.is_empty() {
            return Err(KernelErrorKind::NonFiniteRange { tiles }.into());
        }
        let n = num_candidates;
        match layout {
            CandidateLayout::Reference { absolute_margin: a, relative_margin: r } => {
                for (what, value) in [("absolute margin", a), ("relative margin", r)] {
                    if !value.is_finite() {
                        return Err(option(what, "finite", value.into()).into());
                    }
                }
                Ok(Self::reference(min, max, symmetric, n, a, r))
            }
            CandidateLayout::Fitted { smallest, one_sided } => {
                if !(0.0..1.0).contains(&smallest) {
                    return Err(option("smallest factor", "in 0..1", smallest.into()).into());
                }
                Ok(Self::fitted(min, max, symmetric, n, smallest, one_sided))
            }
        }
    }

    fn reference(min: &[f32], max: &[f32], symmetric: bool, n: usize, a: f32, r: f32) -> Self {
        let lower: Vec<f32> = min.iter().map(|m| r * m - a).collect();
        let upper: Vec<f32> = max.iter().map(|m| r * m + a).collect();
        let anchor = vec![0.0; min.len()];
        if lower.iter().all(|&m| m >= 0.0) {
            let factors = linspace(1.0 / n as f32, 1.0, n).map(|t| (0.0, t)).collect();
            return Candidates { factors, lower, upper, anchor };
        }
        if symmetric {
            let reach: Vec<f32> =
                lower.iter().zip(&upper).map(|(m, big)| m.abs().max(big.abs())).collect();
            let factors = linspace(1.0 / n as f32, 1.0, n).map(|t| (-t, t)).collect();
            return Candidates { factors, lower: reach.clone(), upper: reach, anchor };
        }
        let n_lower = n.isqrt();
        let n_upper = n_lower + n - n_lower * n_lower;
        Candidates {
            factors: pairs(linspace(1.0, 0.6, n_lower), linspace(0.6, 1.0, n_upper)),
            lower: lower.iter().map(|m| r * m + a).collect(),
            upper: upper.iter().map(|m| r * m + a).collect(),
            anchor,
        }
    }

    fn fitted(
        min: &[f32],
        max: &[f32],
        symmetric: bool,
        n: usize,
        smallest: f32,
        one_sided: OneSided,
    ) -> Self {
        if symmetric {
            let never_negative = min.iter().all(|&m| m >= 0.0);
            let upper: Vec<f32> =
                min.iter().zip(max).map(|(lo, hi)| lo.abs().max(hi.abs())).collect();
            let lower = min.iter().zip(&upper).map(|(&lo, &reach)| match one_sided {
                OneSided::Global if never_negative => 0.0,
                OneSided::PerTile if lo >= 0.0 => 0.0,
                _ => -reach,
            });
            return Candidates {
                factors: linspace(1.0 / n as f32, 1.0, n).map(|t| (t, t)).collect(),
                lower: lower.collect(),
                upper,
                anchor: vec![0.0; min.len()],
            };
        }
        let n_lower = n.isqrt();
        Candidates {
            factors: pairs(linspace(1.0, smallest, n_lower), linspace(smallest, 1.0, n / n_lower)),
            lower: min.to_vec(),
            upper: max.to_vec(),
            anchor: min.iter().zip(max).map(|(&lo, &hi)| 0f32.min(hi).max(lo)).collect(),
        }
    }

    /// Number of candidates of each tile.
    pub fn num_candidates(&self) -> usize {
        self.factors.len()
    }

    /// Number of tiles.
    pub fn num_tiles(&self) -> usize {
        self.lower.len()
    }

    /// Minimum and maximum of one candidate of one tile.
    ///
    /// # Panics
    /// If there is no such candidate or tile.
    pub fn range(&self, candidate: usize, tile: usize) -> (f32, f32) {
        let (lower, upper) = self.factors[candidate];
        let anchor = self.anchor[tile];
        (anchor + lower * (self.lower[tile] - anchor), anchor + upper * (self.upper[tile] - anchor))
    }

    /// Minima and maxima of one chosen candidate per tile.
    ///
    /// # Errors
    /// Another number of choices than tiles; a choice that is no candidate.
    pub fn ranges(&self, chosen: &[usize]) -> Result<(Vec<f32>, Vec<f32>), KernelError> {
        check_len("choice of candidates", self.num_tiles(), chosen.len())?;
        if let Some(&found) = chosen.iter().find(|&&c| c >= self.num_candidates()) {
            return Err(KernelErrorKind::Option {
                what: "chosen candidate",
                must_be: "below the number of candidates",
                found: found as f64,
            }
            .into());
        }
        Ok(chosen.iter().enumerate().map(|(tile, &c)| self.range(c, tile)).unzip())
    }
}

/// Adds the mean squared error of every candidate of every tile to `errors`, which is `[num_tiles,
/// num_candidates]`: over several batches, call it once per batch.
///
/// The error of a candidate is that of quantizing and dequantizing with its parameters (as
/// [`parameters_for_range`] gives them for all tiles at once), except that `x / s` is `x · (1/s)`:
/// that moves decisions only between neighbours that are equally far from `x`. Sums are f64 over
/// short f32 sums, in a fixed order. All candidates of a tile are evaluated while a block of it is
/// in cache.
///
/// # Errors
/// Slices of the wrong length; another number of tiles; data that is not finite (all tiles are
/// listed); a grid that [`parameters_for_range`] refuses.
pub fn candidate_errors(
    x: &[f32],
    tiling: &Tiling,
    candidates: &Candidates,
    grid: IntegerGrid,
    options: &RangeOptions,
    errors: &mut [f64],
) -> Result<(), KernelError> {
    let n = candidates.num_candidates();
    check_len("table of errors", candidates.num_tiles() * n, errors.len())?;
    let search = Search::new(x, tiling, candidates, grid, options)?;
    if !tiling.is_empty() {
        search.for_each_tile(errors, n, |totals, sums| {
            totals.iter_mut().zip(sums).for_each(|(total, sum)| *total += sum);
        });
    }
    Ok(())
}

/// The candidate with the least error of each tile, for data at hand as a whole: as
/// [`candidate_errors`] and [`best_candidates`], but without a table of all errors.
///
/// # Errors
/// As [`candidate_errors`].
pub fn search_min_error(
    x: &[f32],
    tiling: &Tiling,
    candidates: &Candidates,
    grid: IntegerGrid,
    options: &RangeOptions,
) -> Result<Vec<usize>, KernelError> {
    let search = Search::new(x, tiling, candidates, grid, options)?;
    let mut best = vec![0; tiling.num_tiles()];
    if !tiling.is_empty() {
        search.for_each_tile(&mut best, 1, |best, sums| best[0] = lowest(sums));
    }
    Ok(best)
}

/// The candidate with the least error of each tile; the first of equals.
///
/// `errors` is `[num_tiles, num_candidates]`.
///
/// # Errors
/// A length that is not a multiple of `num_candidates`.
pub fn best_candidates(errors: &[f64], num_candidates: usize) -> Result<Vec<usize>, KernelError> {
    if num_candidates == 0 || !errors.len().is_multiple_of(num_candidates) {
        let expected = errors.len().div_ceil(num_candidates.max(1)) * num_candidates;
        check_len("table of errors", expected.max(1), errors.len())?;
    }
    Ok(errors.chunks_exact(num_candidates.max(1)).map(lowest).collect())
}

/// Twin of [`candidate_errors`]: the mean squared errors of one batch, `[num_tiles,
/// num_candidates]`, by true division and plain f64 sums.
///
/// # Errors
/// As [`parameters_for_range`] and [`fake_quantize`](crate::fake_quantize).
pub fn candidate_errors_reference(
    x: &[f32],
    tiling: &Tiling,
    candidates: &Candidates,
    grid: IntegerGrid,
    options: &RangeOptions,
) -> Result<Vec<f64>, KernelError> {
    let (n, num_tiles) = (candidates.num_candidates(), tiling.num_tiles());
    let mut errors = vec![0.0; num_tiles * n];
    for candidate in 0..n {
        let (min, max) = candidates.ranges(&vec![candidate; num_tiles])?;
        let p = parameters_for_range(&min, &max, grid, options)?;
        let values = crate::fake_quantize_reference(x, tiling, p.affine(), grid)?;
        for tile in 0..num_tiles {
            let mut sum = 0.0;
            for e in tiling.tile_elements(tile) {
                sum += (f64::from(values[e.output]) - f64::from(x[e.input])).powi(2);
            }
            errors[tile * n + candidate] = sum / tiling.tile_len() as f64;
        }
    }
    Ok(errors)
}

fn lowest(errors: &[f64]) -> usize {
    let mut best = 0;
    for (i, &error) in errors.iter().enumerate() {
        if error < errors[best] {
            best = i;
        }
    }
    best
}

/// `n` values from `start` to `end`, symmetric in its rounding like the reference's; `n == 1` gives
/// the start.
fn linspace(start: f32, end: f32, n: usize) -> impl Iterator<Item = f32> + Clone {
    // With one rounding per value and the halves cut where the reference cuts them, bit for bit its numbers.
    let step = if n > 1 { (end - start) / (n - 1) as f32 } else { 0.0 };
    (0..n).map(move |i| {
        if n == 1 || i < n / 2 {
            step.mul_add(i as f32, start)
        } else {
            (-step).mul_add((n - 1 - i) as f32, end)
        }
    })
}

/// Every pair, the lower factor changing fastest.
fn pairs(
    lower: impl Iterator<Item = f32> + Clone,
    upper: impl Iterator<Item = f32>,
) -> Vec<(f32, f32)> {
    upper.flat_map(|u| lower.clone().map(move |l| (l, u))).collect()
}

struct Search<'a> {
    x: &'a [f32],
    tiling: &'a Tiling,
    reader: TileReader<'a>,
    candidates: &'a Candidates,
    /// For each candidate, whether no tile's range has a negative minimum.
    never_negative: Vec<bool>,
    grid: Bounds,
    options: &'a RangeOptions,
}

/// A candidate's parameters as the inner loop wants them.
#[derive(Clone, Copy)]
struct Step {
    scale: f32,
    /// `1 / scale`, if finite.
    inverse: f32,
    offset: f32,
}

/// Elements of one tile read at once.
const BLOCK: usize = 1024;
/// Elements per unit of parallel work inside a long tile.
const CHUNK: usize = 1 << 16;

impl<'a> Search<'a> {
    fn new(
        x: &'a [f32],
        tiling: &'a Tiling,
        candidates: &'a Candidates,
        grid: IntegerGrid,
        options: &'a RangeOptions,
    ) -> Result<Self, KernelError> {
        check_len("set of candidates", tiling.num_tiles(), candidates.num_tiles())?;
        check(&[], &[], grid, options)?;
        let range = min_max(x, tiling)?;
        if !tiling.is_empty() {
            range.check_finite()?;
        }
        let tiles = 0..tiling.num_tiles();
        let never_negative = (0..candidates.num_candidates())
            .map(|c| tiles.clone().all(|tile| candidates.range(c, tile).0 >= 0.0))
            .collect();
        Ok(Search {
            x,
            tiling,
            reader: tiling.tile_reader(),
            candidates,
            never_negative,
            grid: Bounds::new(grid),
            options,
        })
    }

    /// Gives `f` the `per_tile` results of each tile and the mean squared errors of its candidates.
    fn for_each_tile<R: Send>(
        &self,
        results: &mut [R],
        per_tile: usize,
        f: impl Fn(&mut [R], &[f64]) + Sync,
    ) {
        let n = self.candidates.num_candidates();
        let tile_len = self.tiling.tile_len();
        if tile_len <= CHUNK {
            // Short tiles are given out by the handful.
            let handful = (BLOCK * 16 / tile_len).max(1);
            results.par_chunks_mut(per_tile * handful).enumerate().for_each(|(i, results)| {
                let mut sums = vec![0.0; n];
                let mut steps = Vec::with_capacity(n);
                for (j, results) in results.chunks_mut(per_tile).enumerate() {
                    let tile = i * handful + j;
                    self.steps(tile, &mut steps);
                    sums.fill(0.0);
                    dispatch(Part {
                        search: self,
                        tile,
                        from: 0,
                        to: tile_len,
                        steps: &steps,
                        sums: &mut sums,
                    });
                    self.finish(&steps, &mut sums);
                    f(results, &sums);
                }
            });
            return;
        }
        for (tile, results) in results.chunks_mut(per_tile).enumerate() {
            let mut steps = Vec::with_capacity(n);
            self.steps(tile, &mut steps);
            let parts: Vec<Vec<f64>> = (0..tile_len.div_ceil(CHUNK))
                .into_par_iter()
                .map(|i| {
                    let mut sums = vec![0.0; n];
                    let (from, to) = (i * CHUNK, ((i + 1) * CHUNK).min(tile_len));
                    dispatch(Part { search: self, tile, from, to, steps: &steps, sums: &mut sums });
                    sums
                })
                .collect();
            let mut sums = vec![0.0; n];
            for part in parts {
                sums.iter_mut().zip(part).for_each(|(sum, part)| *sum += part);
            }
            self.finish(&steps, &mut sums);
            f(results, &sums);
        }
    }

    fn steps(&self, tile: usize, steps: &mut Vec<Step>) {
        steps.clear();
        steps.extend(self.never_negative.iter().enumerate().map(|(c, &never_negative)| {
            let (min, max) = self.candidates.range(c, tile);
            let (scale, offset) =
                tile_parameters(min, max, never_negative, self.grid, self.options);
            let offset = offset.unwrap_or(0.0).round_ties_even();
            Step { scale, inverse: 1.0 / scale, offset }
        }));
    }

    /// From sums of squares in steps to means of squares.
    fn finish(&self, steps: &[Step], sums: &mut [f64]) {
        let len = self.tiling.tile_len() as f64;
        for (step, sum) in steps.iter().zip(sums) {
            let scale = f64::from(step.scale);
            *sum = *sum * (scale * scale) / len;
            if sum.is_nan() {
                // A candidate without usable parameters.
                *sum = f64::INFINITY;
            }
        }
    }
}

/// Elements `from..to` of a tile, for all candidates: adds squared errors in units of the step.
struct Part<'a, 'b> {
    search: &'b Search<'a>,
    tile: usize,
    from: usize,
    to: usize,
    steps: &'b [Step],
    sums: &'b mut [f64],
}

impl Vectorized for Part<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let Part { search, tile, from, to, steps, sums } = self;
        let mut buffer = [0.0; BLOCK];
        let mut at = from;
        while at < to {
            let len = BLOCK.min(to - at);
            let x = search.reader.read(search.x, tile, at, len, &mut buffer);
            for (step, sum) in steps.iter().zip(sums.iter_mut()) {
                *sum += f64::from(squared_error(x, *step, search.grid));
            }
            at += len;
        }
    }
}

/// Accumulators kept side by side.
const WIDTH: usize = 32;

/// `Σ (clamp(round(p)) - p)²` with `p = x / s - o`: the error in units of the scale.
#[inline(always)]
fn squared_error(x: &[f32], step: Step, grid: Bounds) -> f32 {
    let Step { scale, inverse, offset } = step;
    let mut sums = [0.0f32; WIDTH];
    let (chunks, rest) = x.as_chunks::<WIDTH>();
    if inverse.is_finite() {
        for x in chunks {
            for (sum, x) in sums.iter_mut().zip(x) {
                *sum += square_of_error(x * inverse - offset, grid);
            }
        }
        for (sum, x) in sums.iter_mut().zip(rest) {
            *sum += square_of_error(x * inverse - offset, grid);
        }
    } else {
        for x in x.chunks(WIDTH) {
            for (sum, x) in sums.iter_mut().zip(x) {
                *sum += square_of_error(x / scale - offset, grid);
            }
        }
    }
    by_halves(sums, add)
}

#[inline(always)]
fn square_of_error(p: f32, grid: Bounds) -> f32 {
    let error = grid.clamp(p.round_ties_even()) - p;
    error * error
}

#[cfg(test)]
mod tests;
