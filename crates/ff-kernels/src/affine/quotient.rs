//! `x / scale`, by division or by multiplication.

use super::Affine;
use crate::map::Step;
use crate::simd::fuses;

/// A way to divide by a scale. `of` must be `#[inline(always)]`.
pub(crate) trait Quotient: Copy + Default + Send + Sync {
    /// Whether [`Step::inverse`] is needed.
    const BY_INVERSE: bool;
    /// `x / scale`, as far as it decides about a code.
    fn of(x: f32, step: Step) -> f32;
}

/// The machine's division, for all numbers.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Divided;

impl Quotient for Divided {
    const BY_INVERSE: bool = false;

    #[inline(always)]
    fn of(x: f32, step: Step) -> f32 {
        x / step.scale
    }
}

/// A multiplication by the inverse and one correction, several times as fast as a division.
///
/// With `y` = 1/s rounded, `q` = x·y rounded, and the remainder `r` = x - q·s rounded once, `q + r·y` rounded once is the
/// rounded quotient, bit for bit (Markstein, "Computation of elementary functions on the IBM RISC System/6000 processor",
/// 1990), where [`Corrected::applies`] and the quotient is below 2^26 and not tiny:
///
/// - A quotient of two 24-bit numbers is never halfway between two of them, and 1/(2S) units of its last place away from
///   there at least, S being the 24-bit significand of the scale.
/// - `y` is off by S·2^-48 of its value at most, so `q` is off by less than 1.5 units. Where `q` is one of the two
///   neighbours of the quotient, `r` is exact, and the corrected value, before it is rounded, is off by |x/s - q|·S·2^-48;
///   near halfway that is S·2^-49, less than the distance 1/(2S), so it rounds as the quotient does.
/// - Where `q` is farther off, the corrected value is off by 3·2^-24 units at most. The quotient could be as near to halfway
///   as that only if x·y were off by a whole unit but for 3·2^-24, that is with S = 2^24 - 1 and a quotient that is less than
///   3 units below 2^24; those are 2^24 - 1 and 2^24 - 2 to within 2^-22 units, not near halfway.
///
/// Tiny quotients (below 2^-26), where `r` may lose bits, stay tiny: they round to the code of zero either way. From 2^26 on
/// the product alone says that the code is clamped, and infinities must not reach the correction.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Corrected;

impl Corrected {
    /// Whether codes computed with this are those of [`Divided`], and sooner there.
    pub(crate) fn applies(affine: Affine<'_>, tile_len: usize) -> bool {
        const SMALL: f32 = 1.0 / (1u64 << 60) as f32;
        const LARGE: f32 = (1u64 << 60) as f32;
        const MAX_OFFSET: f32 = (1 << 24) as f32;
        /// Shorter tiles do not pay for their inverse.
        const MIN_TILE: usize = 16;
        fuses()
            && tile_len >= MIN_TILE
            && affine.scale.iter().fold(true, |all, &s| all & (SMALL..=LARGE).contains(&s))
            && affine.offset.is_none_or(|offset| {
                offset.iter().fold(true, |all, &o| all & (o.abs() <= MAX_OFFSET))
            })
    }
}

impl Quotient for Corrected {
    const BY_INVERSE: bool = true;

    #[inline(always)]
    fn of(x: f32, step: Step) -> f32 {
        const CLAMPED: f32 = (1 << 26) as f32;
        let q = x * step.inverse;
        let remainder = (-q).mul_add(step.scale, x);
        let corrected = remainder.mul_add(step.inverse, q);
        if q.abs() < CLAMPED { corrected } else { q }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(x: f32, scale: f32) {
        let step = Step { scale, inverse: 1.0 / scale, offset: 0.0 };
        let (got, expected) = (Corrected::of(x, step), x / scale);
        assert_eq!(got, expected, "{x:e} / {scale:e}");
    }

    /// The numerators in `2^23..2^24` whose quotients by `s` come nearest to halfway between two numbers: `2·x·2^j = (2m + 1)·s
    /// + c` for small odd or even `c`, so `x = c / 2^(j+1) mod s`.
    fn near_halfway(s: u64, f: impl Fn(u64)) {
        if s.is_multiple_of(2) {
            return; // all quotients are farther from halfway than those by odd numbers can be
        }
        for j in [23u32, 24] {
            // 2^-(j + 1) mod s
            let half = s.div_ceil(2);
            let (mut inverse, mut base, mut n) = (1u64, half % s, j + 1);
            while n > 0 {
                if n & 1 == 1 {
                    inverse = inverse * base % s;
                }
                base = base * base % s;
                n >>= 1;
            }
            // An odd multiple of s plus c is even + c: c is odd for odd s.
            for c in [1u64, 3, 5, 7] {
                for c in [c, s - c % s] {
                    let first = inverse * c % s;
                    for x in [first, first + s] {
                        if (1 << 23..1 << 24).contains(&x) {
                            f(x);
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn corrected_products_are_quotients_where_that_is_hardest() {
        let all: u64 = 1 << 23;
        let some = (0..all).step_by(if cfg!(debug_assertions) { 509 } else { 1 });
        let ends = (0..64).chain(all - 64..all);
        for s in some.chain(ends).map(|low| all + low) {
            near_halfway(s, |x| check(x as f32, s as f32));
        }
    }

    #[test]
    fn any_numbers_have_their_quotient() {
        let mut state = 0x2545_f491_4f6c_dd1du64;
        for _ in 0..if cfg!(debug_assertions) { 1_000_000 } else { 100_000_000 } {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            let s = f32::from_bits(state as u32 & 0x007f_ffff | 0x3f80_0000);
            let s =
                s * 2f32.powi((state >> 23 & 127) as i32 - 60).clamp(2f32.powi(-60), 2f32.powi(59));
            let x = f32::from_bits((state >> 32) as u32);
            let expected = x / s;
            if x.is_nan() {
                continue;
            }
            let step = Step { scale: s, inverse: 1.0 / s, offset: 0.0 };
            let got = Corrected::of(x, step);
            if expected.abs() < 2f32.powi(-26) {
                assert!(got.abs() <= 2f32.powi(-26), "{x:e} / {s:e}");
            } else if expected.abs() < (1 << 25) as f32 {
                assert_eq!(got, expected, "{x:e} / {s:e}");
            } else {
                let limit = (1 << 25) as f32 * expected.signum();
                assert!(got / limit >= 1.0, "{x:e} / {s:e}");
            }
        }
    }

    #[test]
    fn what_may_go_wrong_is_left_to_the_division() {
        let applies = |scale: f32, offset: f32| {
            Corrected::applies(Affine { scale: &[scale], offset: Some(&[offset]) }, 16)
        };
        assert_eq!(applies(1.0, 0.0), fuses());
        assert!(!applies(1e-20, 0.0) && !applies(1e20, 0.0) && !applies(1.0, 2e7));
    }
}
