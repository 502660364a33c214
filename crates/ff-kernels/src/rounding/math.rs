//! Powers and exponentials that are the same on every machine, and that the compiler can vectorise.

/// `2^x` for `x` in `-126..=126`, clamped outside; to 3e-7 relative.
#[inline(always)]
pub(super) fn exp2(x: f32) -> f32 {
    let x = x.clamp(-126.0, 126.0);
    let whole = x.round_ties_even();
    let y = (x - whole) * std::f32::consts::LN_2;
    // Taylor's series: |y| is at most ln(2)/2, where the first term left out is 1e-7.
    let tail = 1.0 / 24.0 + y * (1.0 / 120.0 + y * (1.0 / 720.0));
    let series = 1.0 + y * (1.0 + y * (0.5 + y * (1.0 / 6.0 + y * tail)));
    // Adding 1.5·2^23 leaves the integer in the low bits.
    let exponent = (whole + 12_582_912.0).to_bits().wrapping_shl(23);
    f32::from_bits(series.to_bits().wrapping_add(exponent))
}

/// The binary logarithm of a positive normal number, to 1e-6 absolute or 3e-7 relative, whichever is more.
#[inline(always)]
pub(super) fn log2(x: f32) -> f32 {
    // What is left after the exponent is taken away lies in `[√½, √2)`.
    let shifted = x.to_bits().wrapping_sub(std::f32::consts::FRAC_1_SQRT_2.to_bits());
    let exponent = (shifted as i32) >> 23;
    let m = f32::from_bits(x.to_bits().wrapping_sub((exponent as u32) << 23));
    // ln m = 2 artanh(s)
    let s = (m - 1.0) / (m + 1.0);
    let s2 = s * s;
    let series = 1.0 + s2 * (1.0 / 3.0 + s2 * (1.0 / 5.0 + s2 * (1.0 / 7.0 + s2 * (1.0 / 9.0))));
    exponent as f32 + 2.0 * std::f32::consts::LOG2_E * s * series
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn powers_and_logarithms_are_close() {
        for i in -12_600..=12_600 {
            let x = i as f32 / 100.0;
            let exact = f64::from(x).exp2();
            assert!((f64::from(exp2(x)) / exact - 1.0).abs() < 3e-7, "2^{x}");
        }
        for i in 0..4_000_000u32 {
            let x = f32::from_bits(f32::MIN_POSITIVE.to_bits() + i * 500);
            let exact = f64::from(x).log2();
            let error = (f64::from(log2(x)) - exact).abs();
            assert!(error < 1e-6_f64.max(3e-7 * exact.abs()), "log2 {x}: {error}");
        }
        assert_eq!((exp2(0.0), exp2(10.0), log2(1.0), log2(8.0)), (1.0, 1024.0, 0.0, 3.0));
    }
}
