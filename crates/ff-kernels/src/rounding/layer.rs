//! A layer's weight as the algorithms see it: rows of numbers, each with its own step and grid.

use rayon::prelude::*;

use super::Rounded;
use super::moments::LayerMoments;
use crate::affine::{Affine, Bounds};
use crate::error::{KernelError, check_finite, check_len};
use crate::grid::IntegerGrid;
use crate::product::{Lane, Panels, WIDTH, lanes_of};
use crate::tiling::Tiling;

/// The sum of squared errors of each output, as a mean over samples: for every row `d = w - ŵ` of `weight - quantized`,
///
/// ```text
/// E (w·x - ŵ·x̂)² = d G dᵀ + 2 d·b + k    with  G = E x̂ x̂ᵀ,  b = E[x̂ (x-x̂)ᵀ] w,  k = wᵀ E[(x-x̂)(x-x̂)ᵀ] w
/// ```
///
/// where `x̂` is what the quantized network feeds the layer and `x` what the float one did (`b` and `k` are zero if both
/// are the same). Both weights are `[rows, features]`. Sums are f64 in a fixed order, products are fused where the
/// machine can: the same bytes for any number of threads, and on all machines with fused multiplication.
///
/// # Errors
/// Weights that are not rows of as many numbers as the layer has inputs, or of different length.
///
/// ```
/// use ff_kernels::{MomentSums, reconstruction_losses};
/// let mut sums = MomentSums::new(2);
/// sums.add(&[1.0, 0.0, 1.0, 2.0])?; // two samples
/// let losses = reconstruction_losses(&[0.4, 0.9], &[0.0, 1.0], &sums.finish())?;
/// assert!((losses[0] - (0.4f64.powi(2) + 0.2f64.powi(2)) / 2.0).abs() < 1e-6);
/// # Ok::<(), ff_kernels::KernelError>(())
/// ```
pub fn reconstruction_losses(
    weight: &[f32],
    quantized: &[f32],
    moments: &LayerMoments,
) -> Result<Vec<f64>, KernelError> {
    let rows = check_rows(weight, moments)?;
    check_len("quantized weight", weight.len(), quantized.len())?;
    Ok(Judge::new(moments).losses(weight, quantized, rows))
}

/// Twin of [`reconstruction_losses`]: the formula as plain sums.
///
/// # Errors
/// As [`reconstruction_losses`].
pub fn reconstruction_losses_reference(
    weight: &[f32],
    quantized: &[f32],
    moments: &LayerMoments,
) -> Result<Vec<f64>, KernelError> {
    let rows = check_rows(weight, moments)?;
    check_len("quantized weight", weight.len(), quantized.len())?;
    let n = moments.features();
    let bilinear = |a: &[f64], matrix: &[f64], b: &[f64]| -> f64 {
        (0..n * n).map(|at| a[at / n] * matrix[at] * b[at % n]).sum()
    };
    let row = |row: usize| {
        let w: Vec<f64> = weight[row * n..][..n].iter().map(|w| f64::from(*w)).collect();
        let other = &quantized[row * n..][..n];
        let d: Vec<f64> = w.iter().zip(other).map(|(w, q)| w - f64::from(*q)).collect();
        let shift = moments.shift.as_ref().map_or(0.0, |shift| {
            2.0 * bilinear(&d, &shift.cross, &w) + bilinear(&w, &shift.energy, &w)
        });
        (bilinear(&d, &moments.gram, &d) + shift).max(0.0)
    };
    Ok((0..rows).map(row).collect())
}

/// The number of rows of a weight for these moments.
pub(super) fn check_rows(weight: &[f32], moments: &LayerMoments) -> Result<usize, KernelError> {
    let n = moments.features();
    if n == 0 || !weight.len().is_multiple_of(n) {
        let expected = weight.len().checked_div(n).map_or(0, |rows| (rows + 1) * n);
        check_len("weight (whole rows of features)", expected, weight.len())?;
    }
    Ok(weight.len().checked_div(n).unwrap_or(0))
}

/// Moments laid out for computing losses.
pub(super) struct Judge {
    features: usize,
    pub(super) gram: Panels<f64>,
    /// `E[x̂ (x-x̂)ᵀ]`, transposed, and `E[(x-x̂)(x-x̂)ᵀ]`.
    shift: Option<[Panels<f64>; 2]>,
}

impl Judge {
    pub(super) fn new(moments: &LayerMoments) -> Self {
        let n = moments.features();
        Self {
            features: n,
            gram: Panels::new(n, n, |k, j| moments.gram[k * n + j]),
            shift: moments.shift.as_ref().map(|shift| {
                [
                    Panels::new(n, n, |k, j| shift.cross[j * n + k]),
                    Panels::new(n, n, |k, j| shift.energy[k * n + j]),
                ]
            }),
        }
    }

    /// The loss of every row.
    pub(super) fn losses(&self, weight: &[f32], quantized: &[f32], rows: usize) -> Vec<f64> {
        let strips: Vec<usize> = (0..rows).step_by(WIDTH).collect();
        let losses: Vec<Lane<f64>> = strips
            .par_iter()
            .map(|first| {
                let w = lanes_of(weight, self.features, *first);
                let (linear, constant) = self.shift(&w);
                self.strip(&w, &lanes_of(quantized, self.features, *first), &linear, constant)
            })
            .collect();
        losses.iter().flatten().copied().take(rows).collect()
    }

    /// `b` and `k` of 32 rows; nothing for `b` if it is zero.
    pub(super) fn shift(&self, w: &[Lane<f32>]) -> (Vec<Lane<f64>>, Lane<f64>) {
        let mut constant = Lane([0.0; WIDTH]);
        let Some([cross, energy]) = &self.shift else {
            return (Vec::new(), constant);
        };
        let w: Vec<Lane<f64>> = w.iter().map(|lane| Lane(lane.map(f64::from))).collect();
        let (mut linear, mut products) =
            (vec![Lane([0.0; WIDTH]); w.len()], vec![Lane([0.0; WIDTH]); w.len()]);
        cross.multiply_add(&w, &mut linear);
        energy.multiply_add(&w, &mut products);
        for (w, products) in w.iter().zip(&products) {
            for ((sum, w), product) in constant.iter_mut().zip(w).zip(products) {
                *sum += w * product;
            }
        }
        (linear, constant)
    }

    /// The losses of 32 rows.
    fn strip(
        &self,
        w: &[Lane<f32>],
        quantized: &[Lane<f32>],
        linear: &[Lane<f64>],
        constant: Lane<f64>,
    ) -> Lane<f64> {
        let mut d = vec![Lane([0.0; WIDTH]); w.len()];
        for ((d, w), q) in d.iter_mut().zip(w).zip(quantized) {
            for ((d, w), q) in d.iter_mut().zip(w).zip(q) {
                *d = f64::from(*w) - f64::from(*q);
            }
        }
        let mut products = vec![Lane([0.0; WIDTH]); w.len()];
        self.gram.multiply_add(&d, &mut products);
        let mut losses = constant;
        for (j, (d, products)) in d.iter().zip(&products).enumerate() {
            let linear = linear.get(j).unwrap_or(&Lane([0.0; WIDTH]));
            for r in 0..WIDTH {
                losses[r] += d[r] * (products[r] + 2.0 * linear[r]);
            }
        }
        // A sum of squares, which rounding may have left just below zero.
        Lane(losses.map(|loss| if loss < 0.0 { 0.0 } else { loss }))
    }
}

/// A weight that is to be put on a grid.
pub(super) struct Layer {
    pub(super) rows: usize,
    pub(super) columns: usize,
    /// `[rows, columns]`, as the three that follow.
    pub(super) weight: Vec<f32>,
    pub(super) scale: Vec<f32>,
    /// Rounded.
    pub(super) offset: Vec<f32>,
    /// What rounding to nearest gives.
    pub(super) nearest: Vec<f32>,
    pub(super) grid: Bounds,
}

impl Layer {
    pub(super) fn new(
        weight: &[f32],
        moments: &LayerMoments,
        tiling: &Tiling,
        affine: Affine<'_>,
        grid: IntegerGrid,
    ) -> Result<Self, KernelError> {
        let tiling = affine.check(tiling)?;
        let (rows, columns, weight) = matrix(weight, &tiling)?;
        check_len("inputs of the weight", moments.features(), columns)?;
        let scale = expand(&tiling, affine.scale);
        let offset = match affine.offset {
            Some(offset) => {
                let rounded: Vec<f32> = offset.iter().map(|o| o.round_ties_even()).collect();
                expand(&tiling, &rounded)
            }
            None => vec![0.0; weight.len()],
        };
        let mut layer = Self {
            rows,
            columns,
            weight,
            scale,
            offset,
            nearest: Vec::new(),
            grid: Bounds::new(grid),
        };
        layer.nearest = layer.round(&layer.weight);
        Ok(layer)
    }

    /// Fake quantization: the nearest numbers on the grid.
    pub(super) fn round(&self, values: &[f32]) -> Vec<f32> {
        let parameters = self.scale.iter().zip(&self.offset);
        let round = |(value, (scale, offset)): (&f32, (&f32, &f32))| {
            (self.grid.clamp((value / scale - offset).round_ties_even()) + offset) * scale
        };
        values.iter().zip(parameters).map(round).collect()
    }

    /// The better of two, row by row: what was found, or rounding to nearest.
    pub(super) fn finish(&self, judge: &Judge, mut found: Vec<f32>) -> Rounded {
        let before = judge.losses(&self.weight, &self.nearest, self.rows);
        let mut after = judge.losses(&self.weight, &found, self.rows);
        let mut rows_kept = 0;
        for (row, (before, after)) in before.iter().zip(&mut after).enumerate() {
            // What is not a number is not better either.
            let better = *after < *before;
            if !better {
                let range = row * self.columns..(row + 1) * self.columns;
                found[range.clone()].copy_from_slice(&self.nearest[range]);
                *after = *before;
                rows_kept += 1;
            }
        }
        Rounded { weight: found, before, after, rows_kept }
    }
}

/// Rows, columns and numbers of a weight that a tiling describes; the first dimension is that of the rows.
pub(super) fn matrix(
    weight: &[f32],
    tiling: &Tiling,
) -> Result<(usize, usize, Vec<f32>), KernelError> {
    tiling.check_input(weight.len())?;
    let rows = tiling.shape().first().copied().unwrap_or(1);
    let columns = tiling.shape().iter().skip(1).product();
    let weight: Vec<f32> = if tiling.is_contiguous() {
        weight.to_vec()
    } else {
        (0..tiling.len()).map(|number| weight[tiling.input_of(number)]).collect()
    };
    check_finite(weight.iter().map(|w| w.is_finite()))?;
    Ok((rows, columns, weight))
}

/// The parameter of every element, in C order of the data.
pub(super) fn expand(tiling: &Tiling, parameters: &[f32]) -> Vec<f32> {
    let (shape, tile, grid) = (tiling.shape(), tiling.tile_shape(), tiling.grid());
    let Some(last) = shape.len().checked_sub(1) else {
        return parameters.to_vec();
    };
    let mut out = Vec::with_capacity(tiling.len());
    if tiling.is_empty() {
        return out;
    }
    for line in 0..tiling.len() / shape[last] {
        let (mut rest, mut first, mut step) = (line, 0, grid[last]);
        for axis in (0..last).rev() {
            first += rest % shape[axis] / tile[axis] * step;
            rest /= shape[axis];
            step *= grid[axis];
        }
        for parameter in &parameters[first..][..grid[last]] {
            out.extend(std::iter::repeat_n(*parameter, tile[last]));
        }
    }
    out
}
