//! Where candidate ranges lie.

use serde::{Deserialize, Serialize};

use super::MinErrorGridConfig;
use crate::range_setting::TileRanges;

/// How candidate ranges are placed, for rows with minimum `m` and maximum `M` in the first batch, widened by the margins.
/// `linspace(a, b, n)` are `n` evenly spaced numbers from `a` to `b`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CandidateGrid {
    /// Shrunken copies of the range of the data together with zero, `[f * min(m, 0), g * max(M, 0)]`; margins are 0
    /// absolute and 1 relative unless said otherwise.
    ///
    /// A symmetric quantizer, and a row all on one side of zero, shrink by one factor out of `1/N, 2/N, .., 1`. Data
    /// without negative values so keeps a one-sided grid. Otherwise the ends shrink on their own, each by
    /// `1/n, 2/n, .., 1` with `n = floor(sqrt(N))`, lower end fastest.
    #[default]
    Standard,
    /// The reference's grid (spec §6.6), margins 0.5 absolute and 1 relative unless said otherwise.
    ///
    /// No lower end below zero: `[0, t * M]`, `t` out of `linspace(1/N, 1, N)`. Else symmetric: `[-t * a, t * a]` with
    /// `a = max(|m|, |M|)`. Else asymmetric: the margins are applied a second time with the absolute one's sign the same at
    /// both ends, and `floor(sqrt(N))` lower ends with factors `linspace(1, 0.6, ..)` are combined with upper ones with
    /// factors `linspace(0.6, 1, ..)`. That can be more than `N` candidates; the reference leaves the surplus unevaluated
    /// and takes one of them, here each is evaluated.
    ///
    /// The absolute margin makes small non-negative data look negative, so that a symmetric quantizer misses its one-sided
    /// grid.
    Reference,
}

impl CandidateGrid {
    fn absolute_margin(self) -> f64 {
        match self {
            Self::Standard => 0.0,
            Self::Reference => 0.5,
        }
    }
}

/// A grid of candidate ranges.
#[derive(Clone, Debug, PartialEq)]
pub struct Candidates {
    min: Vec<Vec<f32>>,
    max: Vec<Vec<f32>>,
}

impl Candidates {
    /// The candidates for tiles with these ranges in the first batch. All arithmetic is `f32`, in the reference's order.
    pub(super) fn new(first: &TileRanges, symmetric: bool, config: &MinErrorGridConfig) -> Self {
        let margins = Margins {
            absolute: config.absolute_margin.unwrap_or(config.grid.absolute_margin()) as f32,
            relative: config.relative_margin.unwrap_or(1.0) as f32,
        };
        match config.grid {
            CandidateGrid::Standard => standard(first, symmetric, config.num_candidates, margins),
            CandidateGrid::Reference => reference(first, symmetric, config.num_candidates, margins),
        }
    }

    /// The number of candidates.
    pub fn len(&self) -> usize {
        self.min.len()
    }

    /// Whether there is no candidate.
    pub fn is_empty(&self) -> bool {
        self.min.is_empty()
    }

    /// The number of tiles.
    pub fn num_tiles(&self) -> usize {
        self.min.first().map_or(0, Vec::len)
    }

    /// The lower ends: `[candidate][tile]`.
    pub fn min(&self) -> &[Vec<f32>] {
        &self.min
    }

    /// The upper ends: `[candidate][tile]`.
    pub fn max(&self) -> &[Vec<f32>] {
        &self.max
    }
}

#[derive(Clone, Copy)]
struct Margins {
    absolute: f32,
    relative: f32,
}

impl Margins {
    fn lower(self, min: f32) -> f32 {
        self.relative * min - self.absolute
    }

    fn upper(self, max: f32) -> f32 {
        self.relative * max + self.absolute
    }
}

fn standard(first: &TileRanges, symmetric: bool, n: usize, margins: Margins) -> Candidates {
    // A symmetric range shrinks as a whole even where one tile is one-sided, so all candidates of all tiles agree on which
    // tiles have negative values: a quantizer that decides one-sidedness for all tiles together decides the same each time.
    let two_sided = |tile: usize| !symmetric && first.min[tile] < 0.0 && first.max[tile] > 0.0;
    let per_end = n.isqrt();
    let any_two_sided = (0..first.len()).any(two_sided);
    let count = if any_two_sided { per_end * per_end } else { n };
    // Fractions, rounded once: the candidates for `n` are then exactly among those for any multiple of `n`.
    let fraction = |at: usize, n: usize| (at + 1) as f32 / n as f32;
    let mut candidates = Candidates { min: Vec::new(), max: Vec::new() };
    for at in 0..count {
        let factors = |tile: usize| match two_sided(tile) {
            true => (fraction(at % per_end, per_end), fraction(at / per_end, per_end)),
            false => (fraction(at, count), fraction(at, count)),
        };
        let bounds = (0..first.len()).map(|tile| {
            let (shrink_min, shrink_max) = factors(tile);
            let (min, max) = (first.min[tile], first.max[tile]);
            let lower = if min < 0.0 { shrink_min * margins.lower(min) } else { 0.0 };
            let upper = if max > 0.0 { shrink_max * margins.upper(max) } else { 0.0 };
            (lower, upper)
        });
        let (min, max) = bounds.unzip();
        candidates.min.push(min);
        candidates.max.push(max);
    }
    candidates
}

fn reference(first: &TileRanges, symmetric: bool, n: usize, margins: Margins) -> Candidates {
    let lower: Vec<f32> = first.min.iter().map(|&min| margins.lower(min)).collect();
    let upper: Vec<f32> = first.max.iter().map(|&max| margins.upper(max)).collect();
    let scaled = |bounds: &[f32], factor: f32| -> Vec<f32> {
        bounds.iter().map(|bound| factor * bound).collect()
    };
    let factors = linspace((1.0 / n as f64) as f32, 1.0, n);
    if lower.iter().all(|&bound| bound >= 0.0) {
        return Candidates {
            min: vec![vec![0.0; lower.len()]; n],
            max: factors.iter().map(|&factor| scaled(&upper, factor)).collect(),
        };
    }
    if symmetric {
        let largest: Vec<f32> =
            lower.iter().zip(&upper).map(|(lower, upper)| lower.abs().max(upper.abs())).collect();
        return Candidates {
            min: factors.iter().map(|&factor| scaled(&largest, -factor)).collect(),
            max: factors.iter().map(|&factor| scaled(&largest, factor)).collect(),
        };
    }
    let again = |bounds: &[f32]| -> Vec<f32> {
        bounds.iter().map(|bound| margins.relative * bound + margins.absolute).collect()
    };
    let (lower, upper) = (again(&lower), again(&upper));
    let n_lower = n.isqrt();
    let n_upper = n_lower + n - n_lower * n_lower;
    let mut candidates = Candidates { min: Vec::new(), max: Vec::new() };
    for upper_factor in linspace(0.6, 1.0, n_upper) {
        for lower_factor in linspace(1.0, 0.6, n_lower) {
            candidates.min.push(scaled(&lower, lower_factor));
            candidates.max.push(scaled(&upper, upper_factor));
        }
    }
    candidates
}

/// `n` evenly spaced numbers from `start` to `end`, counted from the nearer end and rounded once, as `torch.linspace` does.
fn linspace(start: f32, end: f32, n: usize) -> Vec<f32> {
    if n == 1 {
        return vec![start];
    }
    let step = (end - start) / (n - 1) as f32;
    (0..n)
        .map(|at| match at < n / 2 {
            true => step.mul_add(at as f32, start),
            false => (-step).mul_add((n - 1 - at) as f32, end),
        })
        .collect()
}
