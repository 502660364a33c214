//! Elementary functions on `f32` and `f64`.
//!
//! Those on `f32` are written without branches, so that a loop over them is compiled to vector instructions, and
//! without fused multiplication, so that every machine computes the same bits. Their coefficients are least-squares
//! fits with Chebyshev weights; the tests state how far they are from the function. Those on `f64` are the standard
//! library's; they serve double precision, where the tests of gradients live.

use std::fmt::Debug;
use std::ops::{Add, AddAssign, Div, Mul, MulAssign, Neg, Sub, SubAssign};

/// `f32` or `f64`: what kernels compute in.
pub(crate) trait Real:
    ff_kernels::Real
    + Copy
    + Debug
    + Default
    + PartialOrd
    + Send
    + Sync
    + Add<Output = Self>
    + Sub<Output = Self>
    + Mul<Output = Self>
    + Div<Output = Self>
    + Neg<Output = Self>
    + AddAssign
    + SubAssign
    + MulAssign
    + 'static
{
    const ZERO: Self;
    const ONE: Self;
    const INFINITY: Self;
    fn of(value: f64) -> Self;
    fn to_f64(self) -> f64;
    fn exp(self) -> Self;
    fn tanh(self) -> Self;
    fn erf(self) -> Self;
    fn sin_cos(self) -> (Self, Self);
    fn ln(self) -> Self;
    fn sqrt(self) -> Self;
    fn floor(self) -> Self;
    fn powf(self, exponent: Self) -> Self;
    /// The remainder of the division rounded to zero, as C's `fmod`.
    fn fmod(self, other: Self) -> Self;
    fn copysign(self, sign: Self) -> Self;

    /// The larger one; NaN if either is.
    #[inline(always)]
    fn larger(self, other: Self) -> Self {
        // Both comparisons are false for NaN.
        if self > other || self.is_nan() { self } else { other }
    }

    /// `1 / (1 + exp(-x))`
    #[inline(always)]
    fn sigmoid(self) -> Self {
        Self::ONE / (Self::ONE + (-self).exp())
    }
}

/// `Σ coefficients[i] * x^i`
#[inline(always)]
fn polynomial<const N: usize>(x: f32, coefficients: [f32; N]) -> f32 {
    let mut sum = coefficients[N - 1];
    for i in (0..N - 1).rev() {
        sum = sum * x + coefficients[i];
    }
    sum
}

/// Adding and subtracting it rounds to an integer, ties to even; the integer stands in the low bits of the sum.
const ROUND_F32: f32 = 12_582_912.0;

/// `exp(x)`, within 2 units in the last place, also where the result is subnormal.
#[inline(always)]
fn exp_f32(x: f32) -> f32 {
    // Beyond these the result is infinite or zero anyway. NaN passes.
    let x = if x > 90.0 { 90.0 } else { x };
    let x = if x < -110.0 { -110.0 } else { x };
    // x = k ln 2 + r, ln 2 in two parts whose first has few enough bits for k * LN_2_HIGH to be exact.
    const LN_2_HIGH: f32 = 0.693_359_4;
    const LN_2_LOW: f32 = -2.121_944_4e-4;
    let magic = x * std::f32::consts::LOG2_E + ROUND_F32;
    let k = magic - ROUND_F32;
    let r = (x - k * LN_2_HIGH) - k * LN_2_LOW;
    let p = polynomial(r, [0.5, 0.166_665_73, 0.041_666_363, 8.363_776e-3, 1.394_216e-3]);
    let e = (p * r * r + r) + 1.0;
    // 2^k in two factors, since k alone may exceed the exponents of f32.
    let k = magic.to_bits() as i32 - ROUND_F32.to_bits() as i32;
    let half = k >> 1;
    let power = |k: i32| f32::from_bits(((k + 127) << 23) as u32);
    e * power(half) * power(k - half)
}

/// `tanh(x)`, within 4 units in the last place.
#[inline(always)]
fn tanh_f32(x: f32) -> f32 {
    let a = x.abs();
    let u = x * x;
    let small =
        polynomial(u, [-0.333_333_22, 0.133_322_69, -0.053_780_45, 0.020_689_69, -5.685_931e-3]);
    let small = a + a * u * small;
    // 1 - 2 / (e^2a + 1): no cancellation from here on.
    let large = 1.0 - 2.0 / (exp_f32(2.0 * a) + 1.0);
    let magnitude = if a < 0.6875 { small } else { large };
    magnitude.copysign(x)
}

/// The error function, within 4 units in the last place.
#[inline(always)]
fn erf_f32(x: f32) -> f32 {
    let a = x.abs();
    let small = a * polynomial(
        x * x,
        [
            std::f32::consts::FRAC_2_SQRT_PI,
            -0.376_126_26,
            0.112_836,
            -0.026_854_445,
            5.189_535e-3,
            -8.020_841e-4,
            7.889_12e-5,
        ],
    );
    // 1 - exp(ln erfc(a)); beyond 3.95 the result rounds to 1. NaN passes.
    let b = if a > 3.95 { 3.95 } else { a };
    let large = polynomial(
        b,
        [
            2.564_369_5e-4,
            1.127_426_1,
            0.637_599_97,
            0.103_566_95,
            -0.022_052_028,
            2.999_548_8e-3,
            -1.915_05e-4,
        ],
    );
    let large = 1.0 - exp_f32(-large);
    let magnitude = if a < 1.0 { small } else { large };
    magnitude.copysign(x)
}

/// Sine and cosine, within 1 unit in the last place: computed in `f64` up to 100 000, beyond that by the standard
/// library.
#[inline(always)]
fn sin_cos_f32(x: f32) -> (f32, f32) {
    if x.abs() > 1e5 {
        // Rare: the only branch, which a loop over ordinary values never takes.
        return x.sin_cos();
    }
    const ROUND: f64 = 6_755_399_441_055_744.0;
    let x = f64::from(x);
    let magic = x * std::f64::consts::FRAC_2_PI + ROUND;
    let k = magic - ROUND;
    // pi/2 in two parts: the first has 33 bits, so its product with k < 2^17 is exact.
    const HIGH: f64 = 1.570_796_326_734_125_6;
    const LOW: f64 = 6.077_100_506_506_192e-11;
    let r = (x - k * HIGH) - k * LOW;
    let u = r * r;
    let s =
        ((2.724_123_914e-6 * u - 1.984_003_041e-4) * u + 8.333_331_821e-3) * u - 1.666_666_666e-1;
    // As a product, so that -0 keeps its sign.
    let s = r * (1.0 + u * s);
    let c = (((-2.702_835_953e-7 * u + 2.479_725_744e-5) * u - 1.388_887_501e-3) * u
        + 4.166_666_651e-2)
        * u
        - 0.5;
    let c = 1.0 + u * c;
    let quadrant = magic.to_bits();
    let (sin, cos) = if quadrant & 1 == 0 { (s, c) } else { (c, s) };
    let sin = if quadrant & 2 == 0 { sin } else { -sin };
    let cos = if quadrant.wrapping_add(1) & 2 == 0 { cos } else { -cos };
    (sin as f32, cos as f32)
}

macro_rules! real {
    ($t:ident, $exp:expr, $tanh:expr, $erf:expr, $sin_cos:expr) => {
        impl Real for $t {
            const ZERO: Self = 0.0;
            const ONE: Self = 1.0;
            const INFINITY: Self = $t::INFINITY;

            #[inline(always)]
            fn of(value: f64) -> Self {
                value as $t
            }

            #[inline(always)]
            fn to_f64(self) -> f64 {
                self as f64
            }

            #[inline(always)]
            fn exp(self) -> Self {
                $exp(self)
            }

            #[inline(always)]
            fn tanh(self) -> Self {
                $tanh(self)
            }

            #[inline(always)]
            fn erf(self) -> Self {
                $erf(self)
            }

            #[inline(always)]
            fn sin_cos(self) -> (Self, Self) {
                $sin_cos(self)
            }

            #[inline(always)]
            fn ln(self) -> Self {
                $t::ln(self)
            }

            #[inline(always)]
            fn sqrt(self) -> Self {
                $t::sqrt(self)
            }

            #[inline(always)]
            fn floor(self) -> Self {
                $t::floor(self)
            }

            #[inline(always)]
            fn powf(self, exponent: Self) -> Self {
                $t::powf(self, exponent)
            }

            #[inline(always)]
            fn fmod(self, other: Self) -> Self {
                self % other
            }

            #[inline(always)]
            fn copysign(self, sign: Self) -> Self {
                $t::copysign(self, sign)
            }
        }
    };
}

real!(f32, exp_f32, tanh_f32, erf_f32, sin_cos_f32);
real!(f64, f64::exp, f64::tanh, candle_core::cpu::erf::erf_f64, f64::sin_cos);

#[cfg(test)]
mod tests {
    use super::*;

    /// The largest distance from `exact` in units in the last place, over values that fill the range.
    fn worst(range: std::ops::Range<f32>, f: fn(f32) -> f32, exact: fn(f64) -> f64) -> f64 {
        let n = 400_003;
        let step = (f64::from(range.end) - f64::from(range.start)) / f64::from(n);
        let error = |i: i32| {
            let x = (f64::from(range.start) + step * f64::from(i)) as f32;
            let y = exact(f64::from(x));
            let unit = f64::from(y.abs() as f32).max(f64::from(f32::MIN_POSITIVE));
            let ulp =
                f64::from(f32::from_bits((unit as f32).to_bits() + 1)) - f64::from(unit as f32);
            (f64::from(f(x)) - y).abs() / ulp
        };
        (0..=n).map(error).fold(0.0, f64::max)
    }

    #[test]
    fn functions_are_within_their_stated_distance() {
        use candle_core::cpu::erf::erf_f64;
        /// Name, range, function, its exact twin, and the distance in units in the last place.
        type Case = (&'static str, std::ops::Range<f32>, fn(f32) -> f32, fn(f64) -> f64, f64);
        let cases: [Case; 12] = [
            ("exp", -1.0..1.0, exp_f32, f64::exp, 2.0),
            ("exp", -103.0..88.0, exp_f32, f64::exp, 2.0),
            ("tanh", -1.0..1.0, tanh_f32, f64::tanh, 4.0),
            ("tanh", -12.0..12.0, tanh_f32, f64::tanh, 4.0),
            ("tanh", -1e-3..1e-3, tanh_f32, f64::tanh, 2.0),
            ("erf", -1.5..1.5, erf_f32, erf_f64, 4.0),
            ("erf", -6.0..6.0, erf_f32, erf_f64, 4.0),
            ("erf", -1e-3..1e-3, erf_f32, erf_f64, 4.0),
            ("sin", -10.0..10.0, |x| sin_cos_f32(x).0, f64::sin, 1.0),
            ("cos", -10.0..10.0, |x| sin_cos_f32(x).1, f64::cos, 1.0),
            ("sin", -1e5..1e5, |x| sin_cos_f32(x).0, f64::sin, 1.0),
            ("cos", -2e9..2e9, |x| sin_cos_f32(x).1, f64::cos, 1.0),
        ];
        for (name, range, f, exact, limit) in cases {
            let worst = worst(range.clone(), f, exact);
            assert!(worst <= limit, "{name} on {range:?}: {worst} units in the last place");
        }
    }

    #[test]
    fn functions_keep_special_values() {
        let inf = f32::INFINITY;
        assert_eq!((exp_f32(inf), exp_f32(-inf), exp_f32(0.0)), (inf, 0.0, 1.0));
        assert_eq!((exp_f32(89.0), exp_f32(-104.5)), (inf, 0.0));
        assert_eq!(exp_f32(-103.0), (-103f32).exp());
        assert_eq!((tanh_f32(inf), tanh_f32(-inf)), (1.0, -1.0));
        assert_eq!((erf_f32(inf), erf_f32(-inf)), (1.0, -1.0));
        assert!(tanh_f32(-0.0).is_sign_negative() && erf_f32(-0.0).is_sign_negative());
        for f in [exp_f32, tanh_f32, erf_f32, |x| sin_cos_f32(x).0, |x| sin_cos_f32(x).1] {
            assert!(f(f32::NAN).is_nan());
        }
        assert!(sin_cos_f32(inf).0.is_nan());
    }
}
