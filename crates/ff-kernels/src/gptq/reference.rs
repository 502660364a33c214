//! The algorithm as it is written down: what the fast one is tested against.

use super::hessian::Hessian;
use super::{DeadColumns, FactorOptions, GptqOptions};
use crate::affine::Bounds;
use crate::error::{KernelError, KernelErrorKind};
use crate::grid::IntegerGrid;
use crate::range::{Parameters, min_max_reference, parameters_for_range};
use crate::tiling::Tiling;

/// Twin of [`gptq`](crate::gptq): the loops of spec §10.1, in f64, with the Hessian inverted and its inverse factored.
/// Gives the weight and the parameters of its tiles.
///
/// Neither is damping raised nor nearest rounding preferred.
///
/// # Errors
/// As [`gptq`](crate::gptq) and [`HessianFactor::new`](crate::HessianFactor::new).
pub fn gptq_reference(
    weight: &[f32],
    tiling: &Tiling,
    grid: IntegerGrid,
    hessian: &mut Hessian,
    factor: &FactorOptions,
    options: &GptqOptions,
) -> Result<(Vec<f32>, Parameters), KernelError> {
    let [rows, columns] = *tiling.shape() else {
        let (what, found) = ("shape of a weight matrix", tiling.shape().len());
        return Err(KernelErrorKind::Length { what, expected: 2, found }.into());
    };
    let width = tiling.tile_shape()[1];
    let tile_rows = tiling.grid()[0];
    let tile_columns = tiling.grid()[1];
    let dead = hessian.dead_columns();
    let mut h = hessian.matrix();
    dead.iter().for_each(|&d| h[d * columns + d] = 1.0);
    let diagonal: Vec<f64> = (0..columns).map(|i| h[i * columns + i]).collect();
    let mean = diagonal.iter().sum::<f64>() / columns as f64;
    let mut order: Vec<usize> = (0..columns).collect();
    if factor.act_order {
        order.sort_by(|&a, &b| (diagonal[b] as f32).total_cmp(&(diagonal[a] as f32)));
    }

    let range = min_max_reference(weight, tiling)?;
    range.check_finite()?;
    let initial = parameters_for_range(&range.min, &range.max, grid, &options.range)?;
    let mut scale = initial.scale;
    let mut has_offset = initial.offset.is_some();
    let mut offset = initial.offset.unwrap_or_else(|| vec![0.0; scale.len()]);

    // W and U, with columns in order.
    let strides = tiling.strides();
    let mut w = vec![0.0; rows * columns];
    for r in 0..rows {
        for (c, &from) in order.iter().enumerate() {
            let zero = options.dead_columns == DeadColumns::Zero && dead.contains(&from);
            let value = weight[r * strides[0] + from * strides[1]];
            w[r * columns + c] = if zero { 0.0 } else { f64::from(value) };
        }
    }
    let mut damped = vec![0.0; columns * columns];
    for (r, &from_row) in order.iter().enumerate() {
        for (c, &from_column) in order.iter().enumerate() {
            damped[r * columns + c] = h[from_row * columns + from_column];
        }
        damped[r * columns + r] += factor.perc_damp * mean;
    }
    let u = inverse(&damped, columns).and_then(|inverse| cholesky(&inverse, columns));
    let u = u.ok_or(KernelErrorKind::NotPositiveDefinite { damping: factor.perc_damp })?;
    // The lower factor's transpose: `H⁻¹ = Uᵀ U`.
    let u = |r: usize, c: usize| u[c * columns + r];

    let bounds = Bounds::new(grid);
    let regroups = width > 1 && width < columns && !options.static_groups && !factor.act_order;
    let mut q = vec![0.0f32; rows * columns];
    for begin in (0..columns).step_by(options.block_size) {
        let end = columns.min(begin + options.block_size);
        let mut block = w.clone();
        let mut errors = vec![0.0; rows * columns];
        for j in begin..end {
            if regroups && j % width == 0 {
                // Of `w`, not of `block`: corrections inside the block are not yet visible.
                let mut min = vec![f32::INFINITY; tile_rows];
                let mut max = vec![f32::NEG_INFINITY; tile_rows];
                for r in 0..rows {
                    let tile = r / tiling.tile_shape()[0];
                    for c in j..j + width {
                        let value = w[r * columns + c] as f32;
                        (min[tile], max[tile]) = (min[tile].min(value), max[tile].max(value));
                    }
                }
                let found = parameters_for_range(&min, &max, grid, &options.range)?;
                has_offset |= found.offset.is_some();
                let found_offset = found.offset.unwrap_or_else(|| vec![0.0; tile_rows]);
                for tile in 0..tile_rows {
                    scale[tile * tile_columns + j / width] = found.scale[tile];
                    offset[tile * tile_columns + j / width] = found_offset[tile];
                }
            }
            for r in 0..rows {
                let tile = tiling.tile_of(&[r, order[j]]);
                let (s, o) = (scale[tile], offset[tile].round_ties_even());
                let value = block[r * columns + j];
                let code = bounds.clamp((value as f32 / s - o).round_ties_even());
                let rounded = (code + o) * s;
                let error = (value - f64::from(rounded)) / u(j, j);
                for k in j + 1..end {
                    block[r * columns + k] -= error * u(j, k);
                }
                q[r * columns + order[j]] = rounded;
                errors[r * columns + j] = error;
            }
        }
        for r in 0..rows {
            for k in end..columns {
                let sum: f64 = (begin..end).map(|j| errors[r * columns + j] * u(j, k)).sum();
                w[r * columns + k] -= sum;
            }
        }
    }
    Ok((q, Parameters { scale, offset: has_offset.then_some(offset) }))
}

/// `tr((W - Q) H (W - Q)ᵀ)` in f64, row by row: `[rows]`. `weight` and `rounded` are contiguous `[rows, columns]`, `h` is
/// `[columns, columns]`.
///
/// # Panics
/// If the lengths do not fit together.
pub fn hessian_loss(weight: &[f32], rounded: &[f32], h: &[f64], columns: usize) -> Vec<f64> {
    assert_eq!(h.len(), columns * columns, "a square matrix");
    assert_eq!(weight.len(), rounded.len(), "two weights of the same shape");
    let rows = weight.chunks_exact(columns).zip(rounded.chunks_exact(columns));
    rows.map(|(weight, rounded)| {
        let lost: Vec<f64> =
            weight.iter().zip(rounded).map(|(w, q)| f64::from(*w) - f64::from(*q)).collect();
        let of_row =
            |(h, a): (&[f64], &f64)| a * h.iter().zip(&lost).map(|(h, b)| h * b).sum::<f64>();
        h.chunks_exact(columns).zip(&lost).map(of_row).sum()
    })
    .collect()
}

/// The lower factor `L` of `A = L Lᵀ`, row by row, if there is one.
fn cholesky(a: &[f64], n: usize) -> Option<Vec<f64>> {
    let mut l = vec![0.0; n * n];
    for r in 0..n {
        for c in 0..=r {
            let sum: f64 = (0..c).map(|k| l[r * n + k] * l[c * n + k]).sum();
            let rest = a[r * n + c] - sum;
            l[r * n + c] = if r > c {
                rest / l[c * n + c]
            } else if rest > 0.0 {
                rest.sqrt()
            } else {
                return None;
            };
        }
    }
    Some(l)
}

/// `A⁻¹` for a positive definite `A`.
fn inverse(a: &[f64], n: usize) -> Option<Vec<f64>> {
    let l = cholesky(a, n)?;
    // `M = L⁻¹`, then `A⁻¹ = Mᵀ M`.
    let mut m = vec![0.0; n * n];
    for c in 0..n {
        for r in c..n {
            let sum: f64 = (c..r).map(|k| l[r * n + k] * m[k * n + c]).sum();
            m[r * n + c] = (f64::from(u8::from(r == c)) - sum) / l[r * n + r];
        }
    }
    let entry = |r: usize, c: usize| (r.max(c)..n).map(|k| m[k * n + r] * m[k * n + c]).sum();
    Some((0..n * n).map(|i| entry(i / n, i % n)).collect())
}
