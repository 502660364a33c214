//! HQQ: offsets that suit most weights of a tile, rather than its outliers, found without data.

use rayon::prelude::*;

use super::math::{exp2, log2};
use crate::affine::{Affine, Bounds};
use crate::error::{KernelError, KernelErrorKind, check_finite};
use crate::grid::IntegerGrid;
use crate::tiling::Tiling;

/// How [`hqq`] searches; the defaults are those of the authors' implementation.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct HqqOptions {
    /// `p` of the norm whose power is minimised, in `0..=1` and not 0: the smaller, the less outliers count.
    pub norm: f32,
    /// `β` of the first iteration, positive: how closely errors that are set free must be followed.
    pub beta: f32,
    /// What `β` is multiplied by after each iteration, at least 1.
    pub kappa: f32,
    /// The most iterations; a tile ends earlier when its error no longer falls.
    pub iterations: usize,
    /// Whether offsets are whole numbers of steps, as everywhere else in this crate. If not, they are any number: for
    /// formats that store a float minimum or zero point.
    pub whole_offsets: bool,
}

impl Default for HqqOptions {
    fn default() -> Self {
        Self { norm: 0.7, beta: 10.0, kappa: 1.01, iterations: 20, whole_offsets: true }
    }
}

/// Offsets found, and what they gain.
#[derive(Debug, Clone, PartialEq)]
pub struct Hqq {
    /// One offset per tile.
    pub offset: Vec<f32>,
    /// The quantized weight: `(q + o) s` with `q = clamp(round(w/s - o))`, in C order of the weight's shape.
    pub weight: Vec<f32>,
    /// `Σ |w - ŵ|^p` of each tile with the offset it came with.
    pub before: Vec<f64>,
    /// `Σ |w - ŵ|^p` of each tile.
    pub after: Vec<f64>,
}

impl Hqq {
    /// `Σ |w - ŵ|^p` of all tiles with the offsets they came with.
    pub fn loss_before(&self) -> f64 {
        self.before.iter().sum()
    }

    /// `Σ |w - ŵ|^p` of all tiles.
    pub fn loss_after(&self) -> f64 {
        self.after.iter().sum()
    }
}

/// Half-quadratic quantization (Badri & Shaji 2023, "Half-Quadratic Quantization of Large Machine Learning Models"): finds
/// offsets, scales being fixed, that minimise `Σ |w - ŵ|^p`. Needs no data.
///
/// Each tile alternates, from the offset it came with, with `ŵ = (q + o) s`:
///
/// ```text
/// q = clamp(round(w/s - o), lo, hi)
/// e = sign(w - ŵ) · max(|w - ŵ| - |w - ŵ|^(p-1) / β, 0)         errors of outliers, set free
/// o = mean((w - e)/s - q)                                      what the others want;  β := κ β
/// ```
///
/// and the best offset met is kept, so that no tile is worse than with the offset it came with. Errors are measured in units
/// of the scale, for which `β` need not know how large weights are. Any tiling, strided views included; tiles are
/// independent, sums are f64 in the order of the tile: the same bytes on every machine and for any number of threads.
///
/// # Errors
/// Weights that are not finite; parameters that [`fake_quantize`](crate::fake_quantize) refuses; options outside their domain.
///
/// ```
/// use ff_kernels::*;
/// let weight = [0.02, 0.31, 0.29, 0.62, 0.6, 0.91];
/// let tiling = Tiling::whole(&[6])?;
/// let affine = Affine { scale: &[0.3], offset: Some(&[1.4]) };
/// let options = HqqOptions { whole_offsets: false, ..Default::default() };
/// let found = hqq(&weight, &tiling, affine, IntegerGrid::signed(2)?, &options)?;
/// assert!(found.loss_after() < 0.5 * found.loss_before());
/// # Ok::<(), KernelError>(())
/// ```
pub fn hqq(
    weight: &[f32],
    tiling: &Tiling,
    affine: Affine<'_>,
    grid: IntegerGrid,
    options: &HqqOptions,
) -> Result<Hqq, KernelError> {
    let found = hqq_offsets(weight, tiling, affine, grid, options)?;
    let grid = Bounds::new(grid);
    let mut out = vec![0.0; tiling.len()];
    for (tile, offset) in found.offset.iter().enumerate() {
        let scale = affine.scale[tile];
        for element in tiling.tile_elements(tile) {
            let code = code(weight[element.input], scale, *offset, grid);
            out[element.output] = (code + offset) * scale;
        }
    }
    Ok(Hqq { weight: out, offset: found.offset, before: found.before, after: found.after })
}

/// Offsets found without the weight they make, and what they gain.
#[derive(Debug, Clone, PartialEq)]
pub struct HqqOffsets {
    /// One offset per tile.
    pub offset: Vec<f32>,
    /// `Σ |w - ŵ|^p` of each tile with the offset it came with.
    pub before: Vec<f64>,
    /// `Σ |w - ŵ|^p` of each tile.
    pub after: Vec<f64>,
}

/// The offsets of [`hqq`] alone: beside the weight it takes at most 4 MiB for each thread, whatever the tiles.
///
/// # Errors
/// As [`hqq`].
pub fn hqq_offsets(
    weight: &[f32],
    tiling: &Tiling,
    affine: Affine<'_>,
    grid: IntegerGrid,
    options: &HqqOptions,
) -> Result<HqqOffsets, KernelError> {
    options.check()?;
    let tiling = affine.check(tiling)?;
    tiling.check_input(weight.len())?;
    match tiling.is_contiguous() {
        true => check_finite(weight.iter().map(|w| w.is_finite()))?,
        false => {
            let finite = |number| weight[tiling.input_of(number)].is_finite();
            check_finite((0..tiling.len()).map(finite))?;
        }
    }
    let found: Vec<Found> = (0..tiling.num_tiles())
        .into_par_iter()
        .map(|tile| {
            let offset = affine.offset.map_or(0.0, |offset| offset[tile]);
            let tile = Tile {
                weight: Weights::of(weight, &tiling, tile),
                scale: affine.scale[tile],
                grid: Bounds::new(grid),
                options,
            };
            tile.search(offset)
        })
        .collect();
    Ok(HqqOffsets {
        offset: found.iter().map(|found| found.offset).collect(),
        before: found.iter().map(|found| found.before).collect(),
        after: found.iter().map(|found| found.after).collect(),
    })
}

impl HqqOptions {
    fn check(&self) -> Result<(), KernelError> {
        let positive = |v: f32| v > 0.0 && v.is_finite();
        let domains = [
            ("norm", "above 0 and at most 1", self.norm, self.norm > 0.0 && self.norm <= 1.0),
            ("beta", "positive and finite", self.beta, positive(self.beta)),
            (
                "kappa",
                "at least 1 and finite",
                self.kappa,
                self.kappa >= 1.0 && positive(self.kappa),
            ),
        ];
        for (what, must_be, found, good) in domains {
            if !good {
                let found = found.into();
                return Err(KernelErrorKind::Option { what, must_be, found }.into());
            }
        }
        Ok(())
    }
}

/// The weights of a tile, side by side or where they lie.
enum Weights<'a> {
    Copied(Vec<f32>),
    Where(&'a [f32], &'a Tiling, usize),
}

impl<'a> Weights<'a> {
    /// The most weights of a tile that are copied, since reading them again and again is faster then.
    const MOST_COPIED: usize = 1 << 20;

    fn of(weight: &'a [f32], tiling: &'a Tiling, tile: usize) -> Self {
        if tiling.tile_len() > Self::MOST_COPIED {
            return Self::Where(weight, tiling, tile);
        }
        Self::Copied(tiling.tile_elements(tile).map(|element| weight[element.input]).collect())
    }

    /// A sum over all weights in the order of the tile.
    fn sum(&self, term: impl Fn(f32) -> f64) -> f64 {
        match self {
            Self::Copied(weights) => weights.iter().map(|weight| term(*weight)).sum(),
            Self::Where(weight, tiling, tile) => {
                tiling.tile_elements(*tile).map(|element| term(weight[element.input])).sum()
            }
        }
    }

    fn len(&self) -> usize {
        match self {
            Self::Copied(weights) => weights.len(),
            Self::Where(_, tiling, _) => tiling.tile_len(),
        }
    }
}

/// The code of a weight.
fn code(weight: f32, scale: f32, offset: f32, grid: Bounds) -> f32 {
    grid.clamp((weight / scale - offset).round_ties_even())
}

struct Tile<'a> {
    weight: Weights<'a>,
    scale: f32,
    grid: Bounds,
    options: &'a HqqOptions,
}

struct Found {
    offset: f32,
    before: f64,
    after: f64,
}

impl Tile<'_> {
    fn search(&self, offset: f32) -> Found {
        let mut offset = self.allowed(offset);
        let before = self.loss(offset);
        let mut best = Found { offset, before, after: before };
        let mut beta = self.options.beta;
        for _ in 0..self.options.iterations {
            offset = self.allowed(self.next(offset, beta));
            beta *= self.options.kappa;
            let after = self.loss(offset);
            let falls = after < best.after;
            if !falls {
                break;
            }
            best = Found { offset, after, ..best };
        }
        best
    }

    fn allowed(&self, offset: f32) -> f32 {
        if self.options.whole_offsets { offset.round_ties_even() } else { offset }
    }

    fn code(&self, weight: f32, offset: f32) -> f32 {
        code(weight, self.scale, offset, self.grid)
    }

    /// The offset that weights want whose large errors are set free.
    fn next(&self, offset: f32, beta: f32) -> f32 {
        let wanted = |weight: f32| {
            let code = self.code(weight, offset);
            let position = weight / self.scale;
            let error = position - (code + offset);
            let size = error.abs();
            let shrunk = (size - self.power(size, self.options.norm - 1.0) / beta).max(0.0);
            f64::from(position - shrunk.copysign(error) - code)
        };
        (self.weight.sum(wanted) / self.weight.len() as f64) as f32
    }

    /// `Σ |w - ŵ|^p`
    fn loss(&self, offset: f32) -> f64 {
        self.weight.sum(|weight| {
            let quantized = (self.code(weight, offset) + offset) * self.scale;
            let error = (weight - quantized).abs();
            if error == 0.0 { 0.0 } else { f64::from(self.power(error, self.options.norm)) }
        })
    }

    fn power(&self, x: f32, exponent: f32) -> f32 {
        exp2(exponent * log2(x.max(f32::MIN_POSITIVE)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_where_they_lie_sum_up_as_copied_ones() {
        let (rows, columns) = (6, 8);
        let weight: Vec<f32> = (0..rows * columns).map(|at| (at as f32 * 0.37).sin()).collect();
        for tile in [[6, 8], [1, 8], [6, 1], [2, 4]] {
            let tiling = Tiling::new(&[rows, columns], &tile).unwrap();
            for tile in 0..tiling.num_tiles() {
                let options = HqqOptions::default();
                let of = |weight| {
                    let grid = Bounds::new(IntegerGrid::signed(3).unwrap());
                    let found = Tile { weight, scale: 0.21, grid, options: &options }.search(0.4);
                    (found.offset, found.before, found.after)
                };
                let copied = of(Weights::of(&weight, &tiling, tile));
                assert_eq!(copied, of(Weights::Where(&weight, &tiling, tile)));
            }
        }
    }
}
