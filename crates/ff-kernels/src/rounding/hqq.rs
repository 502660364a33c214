//! HQQ: offsets that suit most weights of a tile, rather than its outliers, found without data.

use rayon::prelude::*;

use super::layer::matrix;
use super::math::{exp2, log2};
use crate::affine::{Affine, Bounds};
use crate::error::{KernelError, KernelErrorKind};
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
    options.check()?;
    let tiling = affine.check(tiling)?;
    let (_, _, weight) = matrix(weight, &tiling)?;
    let found: Vec<Found> = (0..tiling.num_tiles())
        .into_par_iter()
        .map(|tile| {
            let of = |element: crate::tiling::Element| weight[element.output];
            let offset = affine.offset.map_or(0.0, |offset| offset[tile]);
            let tile = Tile {
                weight: tiling.tile_elements(tile).map(of).collect(),
                scale: affine.scale[tile],
                grid: Bounds::new(grid),
                options,
            };
            tile.search(offset)
        })
        .collect();
    let mut out = vec![0.0; weight.len()];
    for (tile, found) in found.iter().enumerate() {
        for (element, value) in tiling.tile_elements(tile).zip(&found.weight) {
            out[element.output] = *value;
        }
    }
    Ok(Hqq {
        weight: out,
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

struct Tile<'a> {
    weight: Vec<f32>,
    scale: f32,
    grid: Bounds,
    options: &'a HqqOptions,
}

struct Found {
    offset: f32,
    weight: Vec<f32>,
    before: f64,
    after: f64,
}

impl Tile<'_> {
    fn search(&self, offset: f32) -> Found {
        let mut offset = self.allowed(offset);
        let weight = self.quantized(offset);
        let before = self.loss(&weight);
        let mut best = Found { offset, weight, before, after: before };
        let mut beta = self.options.beta;
        for _ in 0..self.options.iterations {
            offset = self.allowed(self.next(offset, beta));
            beta *= self.options.kappa;
            let weight = self.quantized(offset);
            let after = self.loss(&weight);
            let falls = after < best.after;
            if !falls {
                break;
            }
            best = Found { offset, weight, after, ..best };
        }
        best
    }

    fn allowed(&self, offset: f32) -> f32 {
        if self.options.whole_offsets { offset.round_ties_even() } else { offset }
    }

    fn code(&self, weight: f32, offset: f32) -> f32 {
        self.grid.clamp((weight / self.scale - offset).round_ties_even())
    }

    fn quantized(&self, offset: f32) -> Vec<f32> {
        self.weight.iter().map(|w| (self.code(*w, offset) + offset) * self.scale).collect()
    }

    /// The offset that weights want whose large errors are set free.
    fn next(&self, offset: f32, beta: f32) -> f32 {
        let wanted = |weight: &f32| {
            let code = self.code(*weight, offset);
            let position = weight / self.scale;
            let error = position - (code + offset);
            let size = error.abs();
            let shrunk = (size - self.power(size, self.options.norm - 1.0) / beta).max(0.0);
            f64::from(position - shrunk.copysign(error) - code)
        };
        (self.weight.iter().map(wanted).sum::<f64>() / self.weight.len() as f64) as f32
    }

    /// `Σ |w - ŵ|^p`
    fn loss(&self, quantized: &[f32]) -> f64 {
        let term = |(weight, quantized): (&f32, &f32)| {
            let error = (weight - quantized).abs();
            if error == 0.0 { 0.0 } else { f64::from(self.power(error, self.options.norm)) }
        };
        self.weight.iter().zip(quantized).map(term).sum()
    }

    fn power(&self, x: f32, exponent: f32) -> f32 {
        exp2(exponent * log2(x.max(f32::MIN_POSITIVE)))
    }
}
