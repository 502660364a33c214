//! Static affine quantization: `q = clamp(round(x/s - round(o)), lo, hi)`, `x^ = (q + round(o))·s`.

mod backward;
mod packed;
mod quotient;
mod reach;
mod reference;

pub use backward::{Gradients, fake_quantize_backward};
pub use packed::{dequantize_packed, quantize_packed};
pub use reference::{
    dequantize_reference, fake_quantize_backward_reference, fake_quantize_reference,
    quantize_reference,
};

use std::borrow::Cow;
use std::marker::PhantomData;

use self::quotient::{Corrected, Divided, Quotient};
use self::reach::Reach;
use crate::error::{KernelError, KernelErrorKind, SITES_SHOWN, check_len};
use crate::grid::{Code, IntegerGrid};
use crate::map::{Map, Step, map, one_by_one};
use crate::tiling::Tiling;

/// Affine parameters: one scale, and maybe one offset, per tile.
///
/// Tiles are numbered as in [`Tiling`]. A single scale (and offset) stands for all tiles. Offsets
/// need not be integers: they are rounded, half to even, wherever they are used. No offset is an
/// offset of zero.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Affine<'a> {
    /// Step between neighbouring codes, positive and finite. `[num_tiles]`
    pub scale: &'a [f32],
    /// The number added to a code to get its multiple of the scale, finite. `[num_tiles]`
    pub offset: Option<&'a [f32]>,
}

/// Writes the integer codes of `x`.
///
/// `out[i] = clamp(round(x[i] / s - round(o)), lo, hi)` with the scale and offset of the element's
/// tile: the rounded quotient, all in f32, halves rounded to even after the offset is subtracted (spec
/// §4.2). Infinities saturate. `out` is contiguous in C order of the data shape.
///
/// # Errors
/// Codes of `grid` that are not values of `C`; slices of the wrong length; scales that are not
/// positive and finite; NaN in the data (`out` is then unspecified).
///
/// ```
/// use ff_kernels::{Affine, IntegerGrid, Tiling, quantize};
/// let tiling = Tiling::whole(&[4])?;
/// let affine = Affine { scale: &[0.5], offset: Some(&[1.0]) };
/// let mut codes = [0i8; 4];
/// quantize(&[-9.0, 0.0, 1.25, f32::INFINITY], &tiling, affine, IntegerGrid::signed(4)?, &mut codes)?;
/// assert_eq!(codes, [-8, -1, 2, 7]); // 1.25 / 0.5 - 1 = 1.5 rounds to 2
/// # Ok::<(), ff_kernels::KernelError>(())
/// ```
pub fn quantize<C: Code>(
    x: &[f32],
    tiling: &Tiling,
    affine: Affine<'_>,
    grid: IntegerGrid,
    out: &mut [C],
) -> Result<(), KernelError> {
    grid.check_fits::<C>()?;
    let tiling = affine.check(tiling)?;
    tiling.check_input(x.len())?;
    check_len("output", tiling.len(), out.len())?;
    let grid = Bounds::new(grid);
    let nan = if Corrected::applies(affine, tiling.tile_len()) {
        map(&Quantize::<C, Corrected>::new(grid), &tiling, affine, x, out)
    } else {
        map(&Quantize::<C, Divided>::new(grid), &tiling, affine, x, out)
    };
    if nan { Err(not_a_number(x, &tiling)) } else { Ok(()) }
}

/// Writes the values that codes stand for: `out[i] = (q[i] + round(o)) · s` (spec §4.3).
///
/// `codes` may be a strided view as the tiling says; `out` is contiguous.
///
/// # Errors
/// Slices of the wrong length; scales that are not positive and finite.
pub fn dequantize<C: Code>(
    codes: &[C],
    tiling: &Tiling,
    affine: Affine<'_>,
    out: &mut [f32],
) -> Result<(), KernelError> {
    let tiling = affine.check(tiling)?;
    tiling.check_input(codes.len())?;
    check_len("output", tiling.len(), out.len())?;
    map(&Dequantize::<C>(PhantomData), &tiling, affine, codes, out);
    Ok(())
}

/// Quantizes and dequantizes in one pass, without storing codes.
///
/// Exactly [`dequantize`] of [`quantize`], except that NaN stays NaN and that no integer type
/// limits the grid.
///
/// # Errors
/// Slices of the wrong length; scales that are not positive and finite.
pub fn fake_quantize(
    x: &[f32],
    tiling: &Tiling,
    affine: Affine<'_>,
    grid: IntegerGrid,
    out: &mut [f32],
) -> Result<(), KernelError> {
    let tiling = affine.check(tiling)?;
    tiling.check_input(x.len())?;
    check_len("output", tiling.len(), out.len())?;
    let grid = Bounds::new(grid);
    if Corrected::applies(affine, tiling.tile_len()) {
        map(&FakeQuantize::<Corrected> { grid, kind: PhantomData }, &tiling, affine, x, out);
    } else {
        map(&FakeQuantize::<Divided> { grid, kind: PhantomData }, &tiling, affine, x, out);
    }
    Ok(())
}

impl Affine<'_> {
    /// Fails unless there are parameters for the tiling's tiles and all can be used; gives back the
    /// tiling to use with them.
    pub(crate) fn check<'t>(&self, tiling: &'t Tiling) -> Result<Cow<'t, Tiling>, KernelError> {
        if let Some(offset) = self.offset {
            check_len("offset", self.scale.len(), offset.len())?;
        }
        let tiling = if self.scale.len() == 1 && tiling.num_tiles() != 1 {
            Cow::Owned(tiling.as_whole())
        } else {
            check_len("scale", tiling.num_tiles(), self.scale.len())?;
            Cow::Borrowed(tiling)
        };
        check_each("scale", "positive and finite", self.scale, |s| s > 0.0 && s < f32::INFINITY)?;
        check_each("offset", "finite", self.offset.unwrap_or(&[]), |o| o.abs() < f32::INFINITY)?;
        Ok(tiling)
    }
}

/// Fails unless all values are good, naming those that are not.
pub(crate) fn check_each(
    what: &'static str,
    must_be: &'static str,
    values: &[f32],
    good: impl Fn(f32) -> bool,
) -> Result<(), KernelError> {
    // A plain conjunction is vectorised; the sites are looked for only when there are some.
    if values.iter().fold(true, |all, &v| all & good(v)) {
        return Ok(());
    }
    let bad = values.iter().copied().enumerate().filter(|&(_, v)| !good(v));
    Err(KernelErrorKind::Parameter { what, must_be, tiles: bad.collect() }.into())
}

/// Where the NaN are in data known to hold some.
pub(crate) fn not_a_number(x: &[f32], tiling: &Tiling) -> KernelError {
    let (mut count, mut first) = (0, Vec::new());
    for number in 0..tiling.len() {
        if x[tiling.input_of(number)].is_nan() {
            count += 1;
            if first.len() < SITES_SHOWN {
                first.push(number);
            }
        }
    }
    KernelErrorKind::NotANumber { count, first }.into()
}

/// A grid's bounds in f32, where they are exact.
#[derive(Clone, Copy)]
pub(crate) struct Bounds {
    pub(crate) lo: f32,
    pub(crate) hi: f32,
}

impl Bounds {
    pub(crate) fn new(grid: IntegerGrid) -> Self {
        Bounds { lo: grid.lo() as f32, hi: grid.hi() as f32 }
    }

    /// `value` clamped; NaN stays NaN.
    #[inline(always)]
    pub(crate) fn clamp(self, value: f32) -> f32 {
        let value = if value < self.lo { self.lo } else { value };
        if value > self.hi { self.hi } else { value }
    }

    /// `value` clamped, as an integer; NaN becomes the lower bound.
    #[inline(always)]
    pub(crate) fn clamp_to_int(self, value: f32) -> i32 {
        let value = if value > self.lo { value } else { self.lo };
        let value = if value < self.hi { value } else { self.hi };
        debug_assert!((self.lo..=self.hi).contains(&value));
        // SAFETY: the first comparison is false for NaN, so `value` lies between the bounds of an
        // `IntegerGrid`, which fit in i32.
        unsafe { value.to_int_unchecked::<i32>() }
    }
}

struct Quantize<C, Q> {
    grid: Bounds,
    kind: PhantomData<(C, Q)>,
}

impl<C, Q> Quantize<C, Q> {
    fn new(grid: Bounds) -> Self {
        Quantize { grid, kind: PhantomData }
    }
}

impl<C: Code, Q: Quotient> Map for Quantize<C, Q> {
    type In = f32;
    type Out = C;
    const BY_INVERSE: bool = Q::BY_INVERSE;

    #[inline(always)]
    fn one(&self, x: f32, step: Step) -> C {
        let p = Q::of(x, step) - step.offset.round_ties_even();
        C::from_i32(self.grid.clamp_to_int(p.round_ties_even()))
    }

    #[inline(always)]
    fn odd(&self, x: f32) -> bool {
        x.is_nan()
    }

    #[inline(always)]
    fn alike(&self, x: &[f32], step: Step, out: &mut [C]) -> bool {
        /// Fewer elements do not pay for the two divisions that find the reach.
        const MIN_LEN: usize = 256;
        if Q::BY_INVERSE
            && x.len() >= MIN_LEN
            && let Some(reach) = Reach::new(self.grid, step)
        {
            return reach.quantize(x, step, out);
        }
        one_by_one(self, x, step, out)
    }
}

struct Dequantize<C>(PhantomData<C>);

impl<C: Code> Map for Dequantize<C> {
    type In = C;
    type Out = f32;
    const SIMPLE: bool = true;

    #[inline(always)]
    fn one(&self, code: C, step: Step) -> f32 {
        (code.to_i32() as f32 + step.offset.round_ties_even()) * step.scale
    }
}

struct FakeQuantize<Q> {
    grid: Bounds,
    kind: PhantomData<Q>,
}

impl<Q: Quotient> Map for FakeQuantize<Q> {
    type In = f32;
    type Out = f32;
    const BY_INVERSE: bool = Q::BY_INVERSE;

    #[inline(always)]
    fn one(&self, x: f32, step: Step) -> f32 {
        let offset = step.offset.round_ties_even();
        let p = Q::of(x, step) - offset;
        (self.grid.clamp(p.round_ties_even()) + offset) * step.scale
    }
}

#[cfg(test)]
mod tests;
