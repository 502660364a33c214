//! The formulas, written as they are read: what the fast kernels are tested against.

use super::backward::Gradients;
use super::{Affine, Bounds};
use crate::error::{KernelError, check_len};
use crate::grid::{Code, IntegerGrid};
use crate::tiling::Tiling;

/// Twin of [`quantize`](crate::quantize): codes as `i32`, NaN as `None`.
///
/// # Errors
/// As [`quantize`](crate::quantize), except for NaN.
pub fn quantize_reference(
    x: &[f32],
    tiling: &Tiling,
    affine: Affine<'_>,
    grid: IntegerGrid,
) -> Result<Vec<Option<i32>>, KernelError> {
    let bounds = Bounds::new(grid);
    map_reference(x, tiling, affine, |x, s, o| {
        let code = (x / s - o).round_ties_even().clamp(bounds.lo, bounds.hi);
        (!code.is_nan()).then_some(code as i32)
    })
}

/// Twin of [`dequantize`](crate::dequantize).
///
/// # Errors
/// As [`dequantize`](crate::dequantize).
pub fn dequantize_reference<C: Code>(
    codes: &[C],
    tiling: &Tiling,
    affine: Affine<'_>,
) -> Result<Vec<f32>, KernelError> {
    map_reference(codes, tiling, affine, |q, s, o| (q.to_i32() as f32 + o) * s)
}

/// Twin of [`fake_quantize`](crate::fake_quantize).
///
/// # Errors
/// As [`fake_quantize`](crate::fake_quantize).
pub fn fake_quantize_reference(
    x: &[f32],
    tiling: &Tiling,
    affine: Affine<'_>,
    grid: IntegerGrid,
) -> Result<Vec<f32>, KernelError> {
    let bounds = Bounds::new(grid);
    map_reference(x, tiling, affine, |x, s, o| {
        ((x / s - o).round_ties_even().clamp(bounds.lo, bounds.hi) + o) * s
    })
}

/// Twin of [`fake_quantize_backward`](crate::fake_quantize_backward): the input's gradient and the
/// parameters'. Sums are added element after element, so they agree to rounding only.
///
/// # Errors
/// As [`fake_quantize_backward`](crate::fake_quantize_backward).
pub fn fake_quantize_backward_reference(
    x: &[f32],
    tiling: &Tiling,
    affine: Affine<'_>,
    grid: IntegerGrid,
    grad_out: &[f32],
) -> Result<(Vec<f32>, Gradients), KernelError> {
    let tiling = affine.check(tiling)?;
    tiling.check_input(x.len())?;
    check_len("upstream gradient", tiling.len(), grad_out.len())?;
    let (lo, hi) = (grid.lo() as f32, grid.hi() as f32);
    let mut grad_x = vec![0.0; tiling.len()];
    let (mut scale, mut offset) = (Vec::new(), Vec::new());
    for tile in 0..tiling.num_tiles() {
        let s = affine.scale[tile];
        let o = affine.offset.map_or(0.0, |o| o[tile].round_ties_even());
        let (mut grad_s, mut grad_o) = (0.0f64, 0.0f64);
        for element in tiling.tile_elements(tile) {
            let (x, g) = (x[element.input], grad_out[element.output]);
            let p = x / s - o;
            let r = p.round_ties_even();
            if r < lo || r > hi {
                let bound = if r < lo { lo } else { hi };
                grad_s += f64::from(g * (bound + o));
                grad_o += f64::from(s * g);
            } else {
                grad_x[element.output] = g;
                grad_s += f64::from(g * (r - p));
            }
        }
        scale.push(grad_s as f32);
        offset.push(grad_o as f32);
    }
    Ok((grad_x, Gradients { scale, offset: affine.offset.map(|_| offset) }))
}

/// `f(x, scale, rounded offset)` of every element, tile by tile.
fn map_reference<T: Copy, U: Clone + Default>(
    x: &[T],
    tiling: &Tiling,
    affine: Affine<'_>,
    f: impl Fn(T, f32, f32) -> U,
) -> Result<Vec<U>, KernelError> {
    let tiling = affine.check(tiling)?;
    tiling.check_input(x.len())?;
    let mut out = vec![U::default(); tiling.len()];
    for tile in 0..tiling.num_tiles() {
        let offset = affine.offset.map_or(0.0, |o| o[tile].round_ties_even());
        for element in tiling.tile_elements(tile) {
            out[element.output] = f(x[element.input], affine.scale[tile], offset);
        }
    }
    Ok(out)
}
