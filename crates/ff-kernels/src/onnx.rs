//! The arithmetic of ONNX's QuantizeLinear, DequantizeLinear and DynamicQuantizeLinear.
//!
//! ONNX adds its integer zero point *after* rounding; [`quantize`](crate::quantize) subtracts its
//! offset *before*. With `zero_point = -round(offset)` both dequantize alike, but for odd zero
//! points exact ties round to different neighbours: `x / s = 0.5` with zero point 1 (offset -1) is
//! code 1 here (`round(0.5) + 1`) and code 2 there (`round(0.5 + 1)`).

use std::marker::PhantomData;

use crate::affine::{Affine, not_a_number};
use crate::error::{KernelError, KernelErrorKind, check_len};
use crate::grid::Code;
use crate::map::{Map, Step, map};
use crate::range::MinMax;
use crate::tiling::Tiling;

/// Scale and zero point of each tile; one value stands for all tiles.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LinearParameters<'a> {
    /// Positive and finite. `[num_tiles]`
    pub scale: &'a [f32],
    /// The code of zero, within `-2^24 ..= 2^24`; none is zero. `[num_tiles]`
    pub zero_point: Option<&'a [i32]>,
}

/// QuantizeLinear: `saturate(round(x / scale) + zero_point)` to `lo..=hi`, halves to even.
///
/// `lo..=hi` are the bounds of the ONNX type (`-8..=7` for int4, `0..=65535` for uint16, any other
/// up to 32 bits), whatever type `C` stores them. `x` may be a strided view, `out` is contiguous.
///
/// # Errors
/// `lo..=hi` not within `C`; slices of the wrong length; scales that are not positive and finite;
/// zero points outside `lo..=hi` or beyond 2^24; NaN in the data (`out` is then unspecified).
///
/// ```
/// use ff_kernels::{LinearParameters, Tiling, quantize_linear};
/// let p = LinearParameters { scale: &[0.5], zero_point: Some(&[128]) };
/// let mut y = [0u8; 4];
/// quantize_linear(&[-99.0, 0.25, 0.75, 99.0], &Tiling::whole(&[4])?, p, (0, 255), &mut y)?;
/// assert_eq!(y, [0, 128, 130, 255]);
/// # Ok::<(), ff_kernels::KernelError>(())
/// ```
pub fn quantize_linear<C: Code>(
    x: &[f32],
    tiling: &Tiling,
    parameters: LinearParameters<'_>,
    (lo, hi): (i32, i32),
    out: &mut [C],
) -> Result<(), KernelError> {
    if lo >= hi {
        let reason = "needs at least two codes, in ascending order";
        return Err(KernelErrorKind::Grid { lo: lo.into(), hi: hi.into(), reason }.into());
    }
    if lo < C::MIN || hi > C::MAX {
        let code = C::NAME;
        let (lo, hi) = (lo.into(), hi.into());
        let smallest = smallest_code(lo, hi);
        return Err(KernelErrorKind::CodeType { lo, hi, code, smallest }.into());
    }
    let offset = parameters.offset(Some((lo, hi)))?;
    let affine = Affine { scale: parameters.scale, offset: offset.as_deref() };
    let tiling = affine.check(tiling)?;
    tiling.check_input(x.len())?;
    check_len("output", tiling.len(), out.len())?;
    // Up to 2^22 f32 holds `round(x / s) + zero_point` exactly, or far outside the bounds.
    let nan = if lo >= -(1 << 22) && hi <= 1 << 22 {
        map(
            &QuantizeLinear { lo: lo as f32, hi: hi as f32, code: PhantomData },
            &tiling,
            affine,
            x,
            out,
        )
    } else {
        map(
            &QuantizeWide { lo: lo.into(), hi: hi.into(), code: PhantomData },
            &tiling,
            affine,
            x,
            out,
        )
    };
    if nan { Err(not_a_number(x, &tiling)) } else { Ok(()) }
}

/// DequantizeLinear: `(q - zero_point) * scale`, the difference exact.
///
/// `codes` may be a strided view, `out` is contiguous.
///
/// # Errors
/// Slices of the wrong length; scales that are not positive and finite; zero points beyond 2^24.
pub fn dequantize_linear<C: Code>(
    codes: &[C],
    tiling: &Tiling,
    parameters: LinearParameters<'_>,
    out: &mut [f32],
) -> Result<(), KernelError> {
    let offset = parameters.offset(None)?;
    let affine = Affine { scale: parameters.scale, offset: offset.as_deref() };
    let tiling = affine.check(tiling)?;
    tiling.check_input(codes.len())?;
    check_len("output", tiling.len(), out.len())?;
    map(&DequantizeLinear::<C>(PhantomData), &tiling, affine, codes, out);
    Ok(())
}

/// The u8 scale and zero point that DynamicQuantizeLinear derives from a tensor's range.
///
/// With zero taken into the range, `scale = (max - min) / 255` and `zero_point = saturate(round(0 -
/// min / scale))`. Where minimum and maximum are both zero the operator's definition divides by
/// zero; the scale is then 1, as runtimes have it.
///
/// # Errors
/// A range of more than one tile, without data, or not finite.
pub fn dynamic_linear_parameters(range: &MinMax) -> Result<(f32, u8), KernelError> {
    check_len("range", 1, range.num_tiles())?;
    range.check_finite()?;
    let (min, max) = (range.min[0].min(0.0), range.max[0].max(0.0));
    let span = max - min;
    let scale = if span.is_finite() { span / 255.0 } else { max / 255.0 - min / 255.0 };
    if scale == 0.0 {
        return Ok((1.0, 0));
    }
    let zero_point = (0.0 - min / scale).clamp(0.0, 255.0).round_ties_even();
    Ok((scale, zero_point as u8))
}

impl LinearParameters<'_> {
    /// The zero points in f32, in which they are exact.
    fn offset(&self, bounds: Option<(i32, i32)>) -> Result<Option<Vec<f32>>, KernelError> {
        const LIMIT: i32 = 1 << 24;
        let Some(zero_point) = self.zero_point else { return Ok(None) };
        check_len("zero point", self.scale.len(), zero_point.len())?;
        let (lo, hi) = bounds.unwrap_or((-LIMIT, LIMIT));
        let (lo, hi) = (lo.max(-LIMIT), hi.min(LIMIT));
        let bad = |(_, z): &(usize, i32)| !(lo..=hi).contains(z);
        let sites = zero_point.iter().copied().enumerate().filter(bad);
        let tiles: Vec<(usize, f32)> = sites.map(|(tile, z)| (tile, z as f32)).collect();
        if tiles.is_empty() {
            return Ok(Some(zero_point.iter().map(|&z| z as f32).collect()));
        }
        let must_be = "a code of its type, within 2^24 of zero";
        Err(KernelErrorKind::Parameter { what: "zero point", must_be, tiles }.into())
    }
}

fn smallest_code(lo: i64, hi: i64) -> &'static str {
    let fits = |min: i32, max: i32| i64::from(min) <= lo && hi <= i64::from(max);
    if fits(i8::MIN.into(), i8::MAX.into()) {
        "i8"
    } else if fits(0, u8::MAX.into()) {
        "u8"
    } else if fits(i16::MIN.into(), i16::MAX.into()) {
        "i16"
    } else if fits(0, u16::MAX.into()) {
        "u16"
    } else {
        "i32"
    }
}

struct QuantizeLinear<C> {
    lo: f32,
    hi: f32,
    code: PhantomData<C>,
}

impl<C: Code> Map for QuantizeLinear<C> {
    type In = f32;
    type Out = C;

    #[inline(always)]
    fn one(&self, x: f32, Step { scale, offset: zero_point, .. }: Step) -> C {
        let code = (x / scale).round_ties_even() + zero_point;
        let code = if code > self.lo { code } else { self.lo };
        let code = if code < self.hi { code } else { self.hi };
        C::from_i32(code as i32)
    }

    #[inline(always)]
    fn odd(&self, x: f32) -> bool {
        x.is_nan()
    }
}

/// For bounds that f32 does not reach exactly.
struct QuantizeWide<C> {
    lo: f64,
    hi: f64,
    code: PhantomData<C>,
}

impl<C: Code> Map for QuantizeWide<C> {
    type In = f32;
    type Out = C;

    #[inline(always)]
    fn one(&self, x: f32, Step { scale, offset: zero_point, .. }: Step) -> C {
        let code = f64::from((x / scale).round_ties_even()) + f64::from(zero_point);
        C::from_i32(code.clamp(self.lo, self.hi) as i32)
    }

    #[inline(always)]
    fn odd(&self, x: f32) -> bool {
        x.is_nan()
    }
}

struct DequantizeLinear<C>(PhantomData<C>);

impl<C: Code> Map for DequantizeLinear<C> {
    type In = C;
    type Out = f32;
    const SIMPLE: bool = true;

    #[inline(always)]
    fn one(&self, code: C, Step { scale, offset: zero_point, .. }: Step) -> f32 {
        let difference = if C::MAX < 1 << 24 {
            code.to_i32() as f32 - zero_point
        } else {
            (i64::from(code.to_i32()) - zero_point as i64) as f32
        };
        difference * scale
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{IntegerGrid, min_max, quantize};
    use proptest::prelude::*;

    fn whole(len: usize) -> Tiling {
        Tiling::whole(&[len]).unwrap()
    }

    #[test]
    fn operator_examples() {
        // The example of the operator's page for QuantizeLinear and its inverse.
        let x = [0.0, 2.0, 3.0, 1000.0, -254.0, -1000.0];
        let p = LinearParameters { scale: &[2.0], zero_point: Some(&[128]) };
        let mut y = [0u8; 6];
        quantize_linear(&x, &whole(6), p, (0, 255), &mut y).unwrap();
        assert_eq!(y, [128, 129, 130, 255, 1, 0]);
        let mut back = [0.0; 4];
        dequantize_linear(&[0u8, 3, 128, 255], &whole(4), p, &mut back).unwrap();
        assert_eq!(back, [-256.0, -250.0, 0.0, 254.0]);
    }

    #[test]
    fn ties_differ_from_ours_for_odd_zero_points_only() {
        let x = [0.5, 1.5, -0.5, -1.5];
        for (zero_point, expected, ours) in
            [(1, [1, 3, 1, -1], [2, 2, 0, 0]), (2, [2, 4, 2, 0], [2, 4, 2, 0])]
        {
            let mut y = [0i8; 4];
            let p = LinearParameters { scale: &[1.0], zero_point: Some(&[zero_point]) };
            quantize_linear(&x, &whole(4), p, (-128, 127), &mut y).unwrap();
            assert_eq!(y, expected);
            let affine = Affine { scale: &[1.0], offset: Some(&[-zero_point as f32]) };
            quantize(&x, &whole(4), affine, IntegerGrid::signed(8).unwrap(), &mut y).unwrap();
            assert_eq!(y, ours);
        }
    }

    #[test]
    fn wide_types_saturate_exactly() {
        let x = [3e9, -3e9, 2.0f32.powi(30), f32::INFINITY, f32::NEG_INFINITY, 0.5];
        let p = LinearParameters { scale: &[1.0], zero_point: None };
        let mut y = [0i32; 6];
        quantize_linear(&x, &whole(6), p, (i32::MIN, i32::MAX), &mut y).unwrap();
        assert_eq!(y, [i32::MAX, i32::MIN, 1 << 30, i32::MAX, i32::MIN, 0]);
        let mut back = [0.0; 2];
        let p = LinearParameters { scale: &[0.5], zero_point: Some(&[-3]) };
        dequantize_linear(&[i32::MAX, i32::MIN], &whole(2), p, &mut back).unwrap();
        assert_eq!(back, [2.0f32.powi(30), -(2.0f32.powi(30))]);
    }

    #[test]
    fn unusable_input_is_refused() {
        let good = LinearParameters { scale: &[1.0], zero_point: Some(&[0]) };
        let run = |p, bounds| quantize_linear(&[0.0], &whole(1), p, bounds, &mut [0i8]);
        run(good, (-8, 7)).unwrap();
        let err = run(good, (0, 255)).unwrap_err();
        assert_eq!(
            err.to_string(),
            "codes 0..=255 do not fit i8, the smallest type that holds them is u8"
        );
        assert!(run(good, (7, -8)).is_err());
        let outside = LinearParameters { scale: &[1.0], zero_point: Some(&[8]) };
        assert!(run(outside, (-8, 7)).is_err());
        assert!(run(LinearParameters { scale: &[0.0], ..good }, (-8, 7)).is_err());
        assert!(run(LinearParameters { zero_point: Some(&[0, 0]), ..good }, (-8, 7)).is_err());
        let err = quantize_linear(&[f32::NAN], &whole(1), good, (-8, 7), &mut [0i8]).unwrap_err();
        assert_eq!(err.to_string(), "1 NaN in the data, at element 0");
    }

    #[test]
    fn dynamic_parameters_of_the_operator() {
        for (x, scale, zero_point) in [
            // The three examples of the operator's page.
            (&[0.0, 2.0, -3.0, -2.5, 1.34, 0.5][..], 0.019_607_844, 153),
            (&[-1.0, -2.1, -1.3, -2.5, -3.34, -4.0], 0.015_686_275, 255),
            (&[1.0, 2.1, 1.3, 2.5, 3.34, 4.0, 1.5, 2.6, 3.9, 4.0, 3.0, 2.345], 0.015_686_275, 0),
            (&[0.0, -0.0], 1.0, 0),
        ] {
            let range = min_max(x, &whole(x.len())).unwrap();
            assert_eq!(dynamic_linear_parameters(&range).unwrap(), (scale, zero_point), "{x:?}");
        }
        let range = min_max(&[1.0, f32::INFINITY], &whole(2)).unwrap();
        assert!(dynamic_linear_parameters(&range).is_err());
        assert!(dynamic_linear_parameters(&MinMax::empty(1)).is_err());
    }

    proptest! {
        #[test]
        fn agrees_with_the_formula(
            x in prop::collection::vec(
                prop_oneof![-300f32..300.0, (-600i32..600).prop_map(|k| k as f32 * 0.25)], 12),
            scale in prop::collection::vec(prop_oneof![Just(0.5f32), 0.01f32..4.0], 4),
            zero_point in prop::collection::vec(-128i32..128, 4),
            rows in any::<bool>(),
        ) {
            // Four rows of three, or four columns of three.
            let (shape, tile) = if rows { ([4, 3], [1, 3]) } else { ([3, 4], [3, 1]) };
            let tiling = Tiling::new(&shape, &tile).unwrap();
            let p = LinearParameters { scale: &scale, zero_point: Some(&zero_point) };
            let mut codes = vec![0i8; 12];
            quantize_linear(&x, &tiling, p, (-128, 127), &mut codes).unwrap();
            let mut wide = vec![0i32; 12];
            quantize_linear(&x, &tiling, p, (i32::MIN, i32::MAX), &mut wide).unwrap();
            let mut values = vec![0.0; 12];
            dequantize_linear(&codes, &tiling, p, &mut values).unwrap();
            for tile in 0..4 {
                for e in tiling.tile_elements(tile) {
                    let rounded = f64::from((x[e.input] / scale[tile]).round_ties_even());
                    let code = rounded + f64::from(zero_point[tile]);
                    prop_assert_eq!(f64::from(wide[e.output]), code);
                    let q = codes[e.output];
                    prop_assert_eq!(f64::from(q), code.clamp(-128.0, 127.0));
                    let value = (i32::from(q) - zero_point[tile]) as f32 * scale[tile];
                    prop_assert_eq!(values[e.output], value);
                }
            }
        }
    }
}
