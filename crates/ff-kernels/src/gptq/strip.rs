//! The one product that all of GPTQ is made of, on matrices cut into strips.
//!
//! A strip holds 32 columns of a matrix, row after row. The product of a strip's transpose with 8 columns of another
//! matrix keeps its 8 × 32 sums in registers. Sums run over the rows in ascending order, one term after the other;
//! multiplications and additions are fused where the machine can.

use crate::lanes::Lanes;

/// Columns of a strip.
pub(super) const STRIP: usize = 32;
/// Columns on the other side of a tile of sums.
pub(super) const TILE: usize = 8;
/// Rows that are multiplied at once: a strip of them stays in the first cache.
pub(super) const DEPTH: usize = 256;

/// Rows that are asked for ahead of their use.
const AHEAD: usize = 24;

/// One row of a strip.
pub(super) type Row = [f32; STRIP];
/// Sums of 8 columns with the 32 of a strip.
pub(super) type Sums = [Row; TILE];

/// `sums[m][r] = Σ_k left[k][at + m] · right[k][r]`, over the rows that both sides have.
#[inline(always)]
pub(super) fn tile<L: Lanes<f32>, const WIDTH: usize>(
    lanes: L,
    left: &[[f32; WIDTH]],
    at: usize,
    right: &[Row],
) -> Sums {
    let mut sums = [[0.0; STRIP]; TILE];
    for from in (0..STRIP).step_by(2 * L::COUNT) {
        if L::COUNT == 16 {
            part::<L, WIDTH, 8>(lanes, left, at, right, from, &mut sums);
        } else {
            let (low, high) = sums.split_at_mut(4);
            part::<L, WIDTH, 4>(lanes, left, at, right, from, low);
            part::<L, WIDTH, 4>(lanes, left, at + 4, right, from, high);
        }
    }
    sums
}

/// As many sums as there are registers for: `M` columns with those of two registers.
#[inline(always)]
fn part<L: Lanes<f32>, const WIDTH: usize, const M: usize>(
    lanes: L,
    left: &[[f32; WIDTH]],
    at: usize,
    right: &[Row],
    from: usize,
    out: &mut [Row],
) {
    let mut sums = [[lanes.splat(0.0); 2]; M];
    for (left, right) in left.iter().zip(right) {
        // The other side was used just before; this one comes from further away.
        lanes.prefetch(left.as_ptr().wrapping_add(AHEAD * WIDTH + at));
        let left: &[f32; M] = left[at..].first_chunk().expect("the tile lies inside its strip");
        let right = &right[from..];
        let (a, b) = (lanes.load(right), lanes.load(&right[L::COUNT..]));
        for (sums, left) in sums.iter_mut().zip(left) {
            let left = lanes.splat(*left);
            sums[0] = lanes.multiply_add(left, a, sums[0]);
            sums[1] = lanes.multiply_add(left, b, sums[1]);
        }
    }
    for (out, sums) in out.iter_mut().zip(sums) {
        lanes.store(sums[0], &mut out[from..]);
        lanes.store(sums[1], &mut out[from + L::COUNT..]);
    }
}
