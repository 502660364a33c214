//! The 8-, 6- and 4-bit floating-point formats of ONNX.

use crate::dtype::DType;

/// One floating-point format narrow enough to list its values.
pub(crate) struct MiniFloat {
    /// `(value, code)` of every finite number that is not negative, ascending.
    finite: Vec<(f32, u8)>,
    /// First value that rounds above the largest finite one, were the format wider.
    overflow: f32,
    /// What a number too large becomes when it does not saturate.
    too_large: Option<u8>,
    nan: Option<u8>,
    sign_bit: u8,
    has_negative_zero: bool,
}

impl MiniFloat {
    /// The format of `dtype`, or `None` where it is no signed float so narrow.
    pub(crate) fn of(dtype: DType) -> Option<Self> {
        let (sign_bit, codes): (u8, u8) = match dtype {
            DType::F8E4M3FN | DType::F8E4M3FNUZ | DType::F8E5M2 | DType::F8E5M2FNUZ => (0x80, 0x7f),
            DType::F6E2M3 | DType::F6E3M2 => (0x20, 0x1f),
            DType::F4E2M1 => (0x08, 0x07),
            _ => return None,
        };
        let finite: Vec<(f32, u8)> = (0..=codes)
            .map(|code| (decode(dtype, code), code))
            .filter(|(value, _)| value.is_finite())
            .collect();
        let (largest, before) = (finite[finite.len() - 1].0, finite[finite.len() - 2].0);
        let (too_large, nan) = match dtype {
            DType::F8E4M3FN => (Some(0x7f), Some(0x7f)),
            DType::F8E5M2 => (Some(0x7c), Some(0x7f)),
            DType::F8E4M3FNUZ | DType::F8E5M2FNUZ => (Some(0x80), Some(0x80)),
            _ => (None, None),
        };
        Some(Self {
            finite,
            overflow: largest + (largest - before) / 2.0,
            too_large,
            nan,
            sign_bit,
            has_negative_zero: !matches!(dtype, DType::F8E4M3FNUZ | DType::F8E5M2FNUZ),
        })
    }

    /// The code nearest to `x`, ties to the even code.
    ///
    /// A value out of range becomes the largest finite one when `saturate`,
    /// otherwise infinity or NaN, whichever the format has.
    pub(crate) fn encode(&self, x: f32, saturate: bool) -> u8 {
        if x.is_nan() {
            // The narrow formats have no NaN; like the reference evaluator they saturate.
            return self.nan.unwrap_or(self.finite[self.finite.len() - 1].1);
        }
        let magnitude = x.abs();
        let sign = if x.is_sign_negative() { self.sign_bit } else { 0 };
        let last = self.finite.len() - 1;
        let overflows = magnitude > self.overflow
            || (magnitude == self.overflow && self.finite[last].1 % 2 == 1)
            || magnitude.is_infinite();
        if overflows
            && !saturate
            && let Some(code) = self.too_large
        {
            return if code == 0x80 { code } else { code | sign };
        }
        // First finite value that is at least as large.
        let above = self.finite.partition_point(|&(value, _)| value < magnitude).min(last);
        let below = above.saturating_sub(1);
        let (low, high) = (self.finite[below], self.finite[above]);
        let code = if magnitude >= high.0 {
            high.1
        } else {
            let (down, up) = (magnitude - low.0, high.0 - magnitude);
            if down < up || (down == up && low.1 % 2 == 0) { low.1 } else { high.1 }
        };
        if code == 0 && !self.has_negative_zero { 0 } else { code | sign }
    }
}

/// The value of `code` in the format `dtype`, one of the 4-, 6- and 8-bit floats.
pub(crate) fn decode(dtype: DType, code: u8) -> f32 {
    let (exponent_bits, mantissa_bits, bias) = match dtype {
        DType::F8E4M3FN => (4, 3, 7),
        DType::F8E4M3FNUZ => (4, 3, 8),
        DType::F8E5M2 => (5, 2, 15),
        DType::F8E5M2FNUZ => (5, 2, 16),
        DType::F6E2M3 => (2, 3, 1),
        DType::F6E3M2 => (3, 2, 3),
        DType::F4E2M1 => (2, 1, 1),
        DType::F8E8M0 => {
            return if code == 0xff { f32::NAN } else { (f64::from(code) - 127.0).exp2() as f32 };
        }
        _ => return f32::NAN,
    };
    match (dtype, code) {
        (DType::F8E4M3FN, 0x7f | 0xff) | (DType::F8E4M3FNUZ | DType::F8E5M2FNUZ, 0x80) => {
            return f32::NAN;
        }
        (DType::F8E5M2, 0x7c) => return f32::INFINITY,
        (DType::F8E5M2, 0xfc) => return f32::NEG_INFINITY,
        (DType::F8E5M2, 0x7d..=0x7f | 0xfd..=0xff) => return f32::NAN,
        _ => {}
    }
    let mantissa = code & ((1 << mantissa_bits) - 1);
    let exponent = (code >> mantissa_bits) & ((1 << exponent_bits) - 1);
    let fraction = f32::from(mantissa) / f32::from(1u8 << mantissa_bits);
    let magnitude = if exponent == 0 {
        fraction * f32::powi(2.0, 1 - bias)
    } else {
        (1.0 + fraction) * f32::powi(2.0, i32::from(exponent) - bias)
    };
    let negative = code >> (exponent_bits + mantissa_bits) & 1 == 1;
    if negative { -magnitude } else { magnitude }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIGNED: [DType; 7] = [
        DType::F8E4M3FN,
        DType::F8E4M3FNUZ,
        DType::F8E5M2,
        DType::F8E5M2FNUZ,
        DType::F6E2M3,
        DType::F6E3M2,
        DType::F4E2M1,
    ];

    #[test]
    fn largest_values_are_those_of_the_specification() {
        let largest = |dtype| MiniFloat::of(dtype).unwrap().finite.last().unwrap().0;
        assert_eq!(SIGNED.map(largest), [448.0, 240.0, 57344.0, 57344.0, 7.5, 28.0, 6.0]);
        assert_eq!(decode(DType::F8E8M0, 127), 1.0);
        assert_eq!(decode(DType::F8E8M0, 0), f32::powi(2.0, -127));
    }

    #[test]
    fn every_code_survives_decoding_and_encoding() {
        for dtype in SIGNED {
            let format = MiniFloat::of(dtype).unwrap();
            for code in 0..=(format.sign_bit | (format.sign_bit - 1)) {
                let value = decode(dtype, code);
                if !value.is_nan() {
                    assert_eq!(format.encode(value, false), code, "{dtype:?} {code:#x} = {value}");
                }
            }
        }
    }

    #[test]
    fn ties_go_to_the_even_code_and_the_range_saturates_only_when_asked() {
        let e4m3 = MiniFloat::of(DType::F8E4M3FN).unwrap();
        // 1.0 is 0x38, 1.125 is 0x39, 1.25 is 0x3a.
        assert_eq!(e4m3.encode(1.0625, true), 0x38);
        assert_eq!(e4m3.encode(1.1875, true), 0x3a);
        assert_eq!(e4m3.encode(464.0, false), 0x7e); // halfway to 480, even
        assert_eq!(e4m3.encode(465.0, false), 0x7f); // NaN
        assert_eq!(e4m3.encode(-465.0, true), 0xfe);
        let e5m2 = MiniFloat::of(DType::F8E5M2).unwrap();
        assert_eq!(e5m2.encode(f32::INFINITY, false), 0x7c);
        assert_eq!(e5m2.encode(f32::INFINITY, true), 0x7b);
    }
}
