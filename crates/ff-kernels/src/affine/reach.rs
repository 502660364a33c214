//! Codes of many elements that share their parameters, clamped before they are divided.

use super::Bounds;
use crate::grid::Code;
use crate::map::Step;

/// The inputs between which nothing is clamped.
///
/// A code grows with its input, rounding included. So where `lo` and `hi` are inputs whose codes are the bounds of the grid,
/// clamping inputs to them does what clamping codes does, and everything after it is finite and small: no quotient needs a
/// second look, and one addition rounds and converts.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Reach {
    lo: f32,
    hi: f32,
}

/// Added to a number below 2^22, it leaves the nearest integer, of two the even one, in the low bits of the sum.
const ROUNDER: f32 = (3 << 22) as f32;
/// Bits of a sum with [`ROUNDER`] that are always the same.
const FIXED_BITS: u32 = !0 << 23;

impl Reach {
    /// The reach of a grid for a tile that [`Corrected`](super::quotient::Corrected) applies to, if it can be told exactly.
    #[inline(always)]
    pub(crate) fn new(grid: Bounds, step: Step) -> Option<Self> {
        const MAX_CODE: f32 = (1 << 21) as f32;
        let offset = step.offset.round_ties_even();
        let input_of = |code: f32| (code + offset) * step.scale;
        let is = |x: f32, code: f32| (x / step.scale - offset).round_ties_even() == code;
        let (lo, hi) = (input_of(grid.lo), input_of(grid.hi));
        let exact =
            -MAX_CODE <= grid.lo && grid.hi <= MAX_CODE && is(lo, grid.lo) && is(hi, grid.hi);
        exact.then_some(Reach { lo, hi })
    }

    /// Writes the codes of elements of one tile: `clamp(round_half_even(x / scale - round(offset)))`. Whether one was NaN.
    #[inline(always)]
    pub(crate) fn quantize<C: Code>(self, x: &[f32], step: Step, out: &mut [C]) -> bool {
        let Step { scale, inverse, offset } = step;
        let offset = offset.round_ties_even();
        let mut seen = 0;
        for (out, &x) in out.iter_mut().zip(x) {
            // These let NaN pass.
            let x = if x > self.hi { self.hi } else { x };
            let x = if x < self.lo { self.lo } else { x };
            let q = x * inverse;
            let remainder = (-q).mul_add(scale, x);
            let p = remainder.mul_add(inverse, q) - offset;
            let bits = (p + ROUNDER).to_bits();
            seen |= bits ^ ROUNDER.to_bits();
            *out = C::from_i32(bits.wrapping_sub(ROUNDER.to_bits()).cast_signed());
        }
        seen & FIXED_BITS != 0
    }
}
