//! Quantization of values that were just made: one scale for all, block by block or in place.

use rayon::prelude::*;

use crate::affine::{Affine, Bounds};
use crate::error::{KernelError, check_len};
use crate::grid::IntegerGrid;
use crate::simd::{Vectorized, dispatch};

/// An integer grid with one scale and offset, made ready for many blocks of values.
///
/// The results are those of [`quantize`](crate::quantize) and [`fake_quantize`](crate::fake_quantize) with one tile, bit by
/// bit. Where a loop makes values block by block, it quantizes each block while that is in the cache:
///
/// ```
/// use ff_kernels::{Affine, IntegerGrid, Uniform};
/// let grid = IntegerGrid::signed(4)?;
/// let uniform = Uniform::new(Affine { scale: &[0.5], offset: Some(&[1.0]) }, grid)?;
/// let mut x = [-9.0, 0.0, 1.25, f32::INFINITY];
/// let mut codes = [0; 4];
/// assert!(!uniform.codes(&x, &mut codes)); // no NaN
/// assert_eq!(codes, [-8, -1, 2, 7]);
/// uniform.fake_quantize(&mut x);
/// assert_eq!(x, [-3.5, 0.0, 1.5, 4.0]);
/// # Ok::<(), ff_kernels::KernelError>(())
/// ```
#[derive(Debug, Clone, Copy)]
pub struct Uniform {
    scale: f32,
    /// `1 / scale`, rounded.
    inverse: f32,
    /// Rounded to an integer.
    offset: f32,
    lo: f32,
    hi: f32,
    /// Products with `inverse` that are closer to an integer than this round as the quotients do.
    safe: f32,
}

/// Values that are quantized together.
const BLOCK: usize = 64;
/// Elements per unit of parallel work.
const CHUNK: usize = 1 << 15;
/// Below this many elements threads cost more than they save.
const MIN_PARALLEL: usize = 1 << 17;

impl Uniform {
    /// A grid for one tile.
    ///
    /// # Errors
    /// More or fewer scales or offsets than one; a scale that is not positive and finite, an offset that is not finite.
    pub fn new(affine: Affine<'_>, grid: IntegerGrid) -> Result<Self, KernelError> {
        check_len("scale", 1, affine.scale.len())?;
        affine.check(&crate::Tiling::whole(&[1])?)?;
        let scale = affine.scale[0];
        let offset = affine.offset.map_or(0.0, |offset| offset[0].round_ties_even());
        let bounds = Bounds::new(grid);
        let inverse = 1.0 / scale;
        // With u = 2^-24, `x · inverse` is within 3.01·u of `x / scale`, relatively, and subtracting the offset adds u to
        // either. Where one of them rounds to a code, `x / scale` is at most `most`, so the two are closer to each
        // other than 6·u·most: both round to the same code unless a tie lies between them. Where neither does, both
        // are clamped to the same bound.
        let most = bounds.hi.max(-bounds.lo) + offset.abs() + 1.0;
        let is_normal = scale.is_normal() && inverse.is_normal();
        let safe = if is_normal { 0.5 - most * 2f32.powi(-21) } else { 0.0 };
        Ok(Uniform { scale, inverse, offset, lo: bounds.lo, hi: bounds.hi, safe })
    }

    /// Writes the codes of as many values, and says whether there was NaN among them (whose code is the lowest one).
    ///
    /// Codes that `i8` does not hold wrap: the grid is the caller's to choose.
    #[inline(always)]
    pub fn codes(&self, x: &[f32], out: &mut [i8]) -> bool {
        let mut nan = false;
        let (blocks, rest) = x.as_chunks::<BLOCK>();
        let (out_blocks, out_rest) = out.as_chunks_mut::<BLOCK>();
        for (x, out) in blocks.iter().zip(out_blocks) {
            nan |= self.block_of_codes(x, out);
        }
        if !rest.is_empty() {
            let (mut x, mut out) = ([0.0; BLOCK], [0; BLOCK]);
            x[..rest.len()].copy_from_slice(rest);
            nan |= self.block_of_codes(&x, &mut out);
            out_rest.copy_from_slice(&out[..rest.len()]);
        }
        nan
    }

    #[inline(always)]
    fn bounds(&self) -> Bounds {
        Bounds { lo: self.lo, hi: self.hi }
    }

    #[inline(always)]
    fn block_of_codes(&self, x: &[f32; BLOCK], out: &mut [i8; BLOCK]) -> bool {
        let mut rounded = [0.0; BLOCK];
        let exact = self.round(x, &mut rounded);
        for (out, rounded) in out.iter_mut().zip(rounded) {
            *out = self.bounds().clamp_to_int(rounded) as i8;
        }
        // What is near a tie was divided, and so was NaN.
        exact && x.iter().fold(false, |nan, x| nan | x.is_nan())
    }

    /// Quantizes and dequantizes values where they are. NaN stays NaN.
    pub fn fake_quantize(&self, x: &mut [f32]) {
        if x.len() < MIN_PARALLEL || rayon::current_num_threads() == 1 {
            dispatch(InPlace { uniform: self, x });
        } else {
            x.par_chunks_mut(CHUNK).for_each(|x| dispatch(InPlace { uniform: self, x }));
        }
    }

    /// [`fake_quantize`](Self::fake_quantize) inside of a loop that is compiled for an instruction set already.
    #[inline(always)]
    pub fn fake_quantize_block(&self, x: &mut [f32]) {
        let (blocks, rest) = x.as_chunks_mut::<BLOCK>();
        for x in blocks {
            self.block_in_place(x);
        }
        if !rest.is_empty() {
            let mut block = [0.0; BLOCK];
            block[..rest.len()].copy_from_slice(rest);
            self.block_in_place(&mut block);
            rest.copy_from_slice(&block[..rest.len()]);
        }
    }

    #[inline(always)]
    fn block_in_place(&self, x: &mut [f32; BLOCK]) {
        let mut rounded = [0.0; BLOCK];
        self.round(x, &mut rounded);
        for (x, rounded) in x.iter_mut().zip(rounded) {
            *x = (self.bounds().clamp(rounded) + self.offset) * self.scale;
        }
    }

    /// Writes `round(x / scale - offset)`, and says whether it had to divide: nearly always a product tells.
    #[inline(always)]
    fn round(&self, x: &[f32; BLOCK], out: &mut [f32; BLOCK]) -> bool {
        let mut safe_ones = 0;
        for (out, x) in out.iter_mut().zip(x) {
            let quotient = x * self.inverse - self.offset;
            *out = quotient.round_ties_even();
            // False for NaN and infinities too.
            safe_ones += usize::from((quotient - *out).abs() < self.safe);
        }
        if safe_ones == BLOCK {
            return false;
        }
        for (out, x) in out.iter_mut().zip(x) {
            *out = (x / self.scale - self.offset).round_ties_even();
        }
        true
    }
}

struct InPlace<'a> {
    uniform: &'a Uniform,
    x: &'a mut [f32],
}

impl Vectorized for InPlace<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        self.uniform.fake_quantize_block(self.x);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Tiling, fake_quantize_reference, quantize_reference};

    /// Values around every tie of the grid, each with its neighbours, and those that are no numbers of the grid.
    fn values(scale: f32, offset: f32, grid: IntegerGrid) -> Vec<f32> {
        let mut x = vec![0.0, -0.0, f32::INFINITY, f32::NEG_INFINITY, f32::MAX, f32::MIN, 1e-45];
        let step = (grid.steps() / 600).max(1);
        for code in (grid.lo() - 3..=grid.hi() + 3).step_by(step as usize) {
            let tie = (code as f32 + 0.5 + offset.round_ties_even()) * scale;
            let (mut below, mut above) = (tie, tie);
            x.push(tie);
            for _ in 0..9 {
                (below, above) = (below.next_down(), above.next_up());
                x.extend([below, above]);
            }
            x.push((code as f32 + 0.3 + offset) * scale);
        }
        x
    }

    #[test]
    fn products_round_as_quotients_do() {
        let scales = [
            1.0,
            0.5,
            0.1,
            0.017_3,
            3.7e-3,
            123.456,
            7e-20,
            3e25,
            f32::MIN_POSITIVE,
            1e-40,
            f32::MAX,
        ];
        for bits in [1, 2, 4, 8, 16, 25] {
            let grid = IntegerGrid::signed(bits).unwrap();
            for scale in scales {
                for offset in [0.0, 128.0, -127.6, 3.5, 1e6, 16_777_088.0] {
                    let offsets = [offset];
                    let affine = Affine { scale: &[scale], offset: Some(&offsets) };
                    let mut x = values(scale, offset, grid);
                    let tiling = Tiling::whole(&[x.len()]).unwrap();
                    let uniform = Uniform::new(affine, grid).unwrap();
                    if bits <= 8 {
                        let mut codes = vec![0i8; x.len()];
                        assert!(!uniform.codes(&x, &mut codes));
                        let expected = quantize_reference(&x, &tiling, affine, grid).unwrap();
                        let codes: Vec<_> = codes.into_iter().map(|q| Some(i32::from(q))).collect();
                        assert_eq!(codes, expected, "{bits} {scale} {offset}");
                    }
                    x.push(f32::NAN);
                    let tiling = Tiling::whole(&[x.len()]).unwrap();
                    let expected = fake_quantize_reference(&x, &tiling, affine, grid).unwrap();
                    uniform.fake_quantize(&mut x);
                    let bits_of = |x: &[f32]| x.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
                    assert_eq!(bits_of(&x), bits_of(&expected), "{bits} {scale} {offset}");
                }
            }
        }
    }

    #[test]
    fn nan_is_found_in_every_place() {
        let grid = IntegerGrid::signed(8).unwrap();
        let uniform = Uniform::new(Affine { scale: &[0.1], offset: None }, grid).unwrap();
        for len in [1, 63, 64, 65, 200] {
            let mut codes = vec![0; len];
            assert!(!uniform.codes(&vec![0.31; len], &mut codes));
            for at in 0..len {
                let mut x = vec![0.31; len];
                x[at] = f32::NAN;
                assert!(uniform.codes(&x, &mut codes), "{at} of {len}");
            }
        }
    }

    #[test]
    fn a_grid_has_one_scale() {
        let grid = IntegerGrid::signed(8).unwrap();
        for scale in [&[][..], &[1.0, 1.0], &[0.0], &[f32::NAN]] {
            assert!(Uniform::new(Affine { scale, offset: None }, grid).is_err());
        }
        let no_number = Affine { scale: &[1.0], offset: Some(&[f32::INFINITY]) };
        assert!(Uniform::new(no_number, grid).is_err());
    }
}
