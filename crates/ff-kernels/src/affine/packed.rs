//! Codes of 2 and 4 bits, without writing them one per byte in between.

use std::marker::PhantomData;

use super::quotient::{Corrected, Divided};
use super::{Affine, Bounds, Dequantize, Quantize, not_a_number};
use crate::error::{KernelError, KernelErrorKind, check_len};
use crate::grid::IntegerGrid;
use crate::map::{Map, Parameters, Pass, in_parallel};
use crate::pack::{Packed, pack_known, unpack_into};
use crate::simd::{Vectorized, dispatch};
use crate::stream::{self, Sink};
use crate::tiling::Tiling;

/// Writes the integer codes of `x`, packed: [`pack`](crate::pack) of [`quantize`](crate::quantize), in one pass.
///
/// `out` has [`Packed::packed_len`] bytes for the elements in C order of the data shape; unused bits of the last byte are
/// zero.
///
/// # Errors
/// As [`quantize`](crate::quantize); codes of `grid` that are not values of the packed type.
///
/// ```
/// use ff_kernels::{Affine, IntegerGrid, Packed, Tiling, quantize_packed};
/// let tiling = Tiling::whole(&[3])?;
/// let affine = Affine { scale: &[0.5], offset: None };
/// let mut bytes = [0; 2];
/// quantize_packed(&[0.5, -1.0, 9.0], &tiling, affine, IntegerGrid::signed(4)?, Packed::Int4, &mut bytes)?;
/// assert_eq!(bytes, [0xe1, 0x07]); // 1, -2, 7
/// # Ok::<(), ff_kernels::KernelError>(())
/// ```
pub fn quantize_packed(
    x: &[f32],
    tiling: &Tiling,
    affine: Affine<'_>,
    grid: IntegerGrid,
    packed: Packed,
    out: &mut [u8],
) -> Result<(), KernelError> {
    if grid.lo() < packed.lo() || grid.hi() > packed.hi() {
        let smallest = Packed::smallest(grid).map_or(grid.smallest_code(), Packed::name);
        let (lo, hi) = (grid.lo().into(), grid.hi().into());
        return Err(KernelErrorKind::CodeType { lo, hi, code: packed.name(), smallest }.into());
    }
    let tiling = affine.check(tiling)?;
    tiling.check_input(x.len())?;
    check_len("packed output", packed.packed_len(tiling.len()), out.len())?;
    let grid = Bounds::new(grid);
    let nan = if Corrected::applies(affine, tiling.tile_len()) {
        quantize_with(&Quantize::<i8, Corrected>::new(grid), &tiling, affine, x, packed, out)
    } else {
        quantize_with(&Quantize::<i8, Divided>::new(grid), &tiling, affine, x, packed, out)
    };
    if nan { Err(not_a_number(x, &tiling)) } else { Ok(()) }
}

fn quantize_with<M: Map<In = f32, Out = i8>>(
    kernel: &M,
    tiling: &Tiling,
    affine: Affine<'_>,
    x: &[f32],
    packed: Packed,
    out: &mut [u8],
) -> bool {
    let parameters = &Parameters::new::<M>(tiling.plan(), affine);
    let streaming = stream::worthwhile::<u8>(out.len());
    let len = tiling.len();
    in_parallel(out, packed.per_byte(), |start, out| {
        dispatch(QuantizeChunk { kernel, parameters, x, len, packed, out, start, streaming })
    })
}

/// Writes the values that packed codes stand for: [`dequantize`](crate::dequantize) of [`unpack`](crate::unpack), in one
/// pass.
///
/// # Errors
/// Slices of the wrong length; a tiling with strides, through which packed codes cannot be read; scales that are not
/// positive and finite.
///
/// ```
/// use ff_kernels::{Affine, Packed, Tiling, dequantize_packed};
/// let affine = Affine { scale: &[0.5], offset: None };
/// let mut values = [0.0; 3];
/// dequantize_packed(&[0xe1, 0x07], Packed::Int4, &Tiling::whole(&[3])?, affine, &mut values)?;
/// assert_eq!(values, [0.5, -1.0, 3.5]);
/// # Ok::<(), ff_kernels::KernelError>(())
/// ```
pub fn dequantize_packed(
    bytes: &[u8],
    packed: Packed,
    tiling: &Tiling,
    affine: Affine<'_>,
    out: &mut [f32],
) -> Result<(), KernelError> {
    let tiling = affine.check(tiling)?;
    if !tiling.is_contiguous() {
        return Err(KernelErrorKind::Strided { what: "packed input" }.into());
    }
    check_len("packed input", packed.packed_len(tiling.len()), bytes.len())?;
    check_len("output", tiling.len(), out.len())?;
    let parameters = &Parameters::new::<Dequantize<i8>>(tiling.plan(), affine);
    let streaming = stream::worthwhile::<f32>(out.len());
    in_parallel(out, 1, |start, out| {
        dispatch(DequantizeChunk { parameters, bytes, packed, out, start, streaming });
        false
    });
    Ok(())
}

/// Codes that exist one per byte at a time.
const BLOCK: usize = 2048;

struct QuantizeChunk<'a, M: Map> {
    kernel: &'a M,
    parameters: &'a Parameters<'a>,
    x: &'a [f32],
    /// Number of all elements.
    len: usize,
    packed: Packed,
    out: &'a mut [u8],
    /// Number of the first element.
    start: usize,
    streaming: bool,
}

impl<M: Map<In = f32, Out = i8>> Vectorized for QuantizeChunk<'_, M> {
    type Output = bool;

    #[inline(always)]
    fn run(self) -> bool {
        let per_byte = self.packed.per_byte();
        let end = (self.start + self.out.len() * per_byte).min(self.len);
        let mut pass = Pass::new(self.kernel, self.parameters);
        let mut sink = Sink::new(self.out, self.streaming);
        let mut codes = [0i8; BLOCK];
        let (mut at, mut odd) = (self.start, false);
        while at < end {
            let room = sink.room();
            let len = BLOCK.min(room.len() * per_byte).min(end - at);
            let codes = &mut codes[..len];
            odd |= pass.run(at..at + len, self.x, 0, &mut Sink::new(codes, false));
            let n_bytes = self.packed.packed_len(len);
            pack_known(codes, self.packed, &mut room[..n_bytes]);
            sink.advance(n_bytes);
            at += len;
        }
        sink.finish();
        odd
    }
}

struct DequantizeChunk<'a> {
    parameters: &'a Parameters<'a>,
    bytes: &'a [u8],
    packed: Packed,
    out: &'a mut [f32],
    /// Number of the first element, a multiple of those in a byte.
    start: usize,
    streaming: bool,
}

impl Vectorized for DequantizeChunk<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let (start, end) = (self.start, self.start + self.out.len());
        let kernel = Dequantize::<i8>(PhantomData);
        let mut pass = Pass::new(&kernel, self.parameters);
        let mut sink = Sink::new(self.out, self.streaming);
        let mut codes = [0i8; BLOCK];
        for at in (start..end).step_by(BLOCK) {
            let codes = &mut codes[..BLOCK.min(end - at)];
            let bytes = &self.bytes[at / self.packed.per_byte()..];
            unpack_into(bytes, self.packed, codes);
            pass.run(at..at + codes.len(), codes, at, &mut sink);
        }
        sink.finish();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{pack, quantize};

    fn grid(bits: u32) -> IntegerGrid {
        IntegerGrid::signed(bits).unwrap()
    }

    #[test]
    fn grids_that_the_type_does_not_hold_are_refused() {
        let tiling = Tiling::whole(&[2]).unwrap();
        let affine = Affine { scale: &[1.0], offset: None };
        let run = |grid, packed| {
            quantize_packed(&[0.0; 2], &tiling, affine, grid, packed, &mut [0])
                .map_err(|e| e.to_string())
        };
        assert_eq!(run(grid(4), Packed::Int4), Ok(()));
        assert_eq!(run(IntegerGrid::narrow(4).unwrap(), Packed::Int4), Ok(()));
        assert_eq!(
            run(grid(3), Packed::Int2).unwrap_err(),
            "codes -4..=3 do not fit int2, the smallest type that holds them is int4"
        );
        assert_eq!(
            run(grid(8), Packed::Int4).unwrap_err(),
            "codes -128..=127 do not fit int4, the smallest type that holds them is i8"
        );
        assert!(run(grid(4), Packed::Uint4).is_err());
        assert!(run(IntegerGrid::unsigned(2).unwrap(), Packed::Uint2).is_ok());
    }

    #[test]
    fn wrong_lengths_strides_and_nan_are_refused() {
        let tiling = Tiling::new(&[3], &[3]).unwrap();
        let affine = Affine { scale: &[1.0], offset: None };
        let quantize = |x: &[f32], bytes: &mut [u8]| {
            quantize_packed(x, &tiling, affine, grid(4), Packed::Int4, bytes)
                .map_err(|e| e.to_string())
        };
        assert!(quantize(&[0.0; 3], &mut [0; 3]).is_err());
        assert!(quantize(&[0.0; 2], &mut [0; 2]).is_err());
        assert_eq!(
            quantize(&[0.0, f32::NAN, 1.0], &mut [0; 2]).unwrap_err(),
            "1 NaN in the data, at element 1"
        );
        let strided = Tiling::strided(&[3], &[2], &[3]).unwrap();
        let error = dequantize_packed(&[0; 2], Packed::Int4, &strided, affine, &mut [0.0; 3]);
        assert_eq!(
            error.unwrap_err().to_string(),
            "packed input must be contiguous, the tiling has strides"
        );
        let short = dequantize_packed(&[0; 1], Packed::Int4, &tiling, affine, &mut [0.0; 3]);
        assert!(short.is_err());
    }

    #[test]
    fn large_data_is_that_of_two_passes_for_any_number_of_threads() {
        // Large enough for output past the caches: 8 MiB of bytes, and an odd code at the end.
        let shape = [4099, 4097];
        let len = shape[0] * shape[1];
        let x: Vec<f32> = (0..len).map(|i| ((i * 7919) % 1009) as f32 / 63.0 - 8.0).collect();
        let tiling = Tiling::new(&shape, &[1, shape[1]]).unwrap();
        let scale: Vec<f32> = (0..shape[0]).map(|i| 0.25 + (i % 13) as f32 * 0.125).collect();
        let affine = Affine { scale: &scale, offset: None };
        let mut codes = vec![0i8; len];
        quantize(&x, &tiling, affine, grid(4), &mut codes).unwrap();
        let mut expected = vec![0; len.div_ceil(2)];
        pack(&codes, Packed::Int4, &mut expected).unwrap();
        let mut values = vec![0.0; len];
        crate::dequantize(&codes, &tiling, affine, &mut values).unwrap();
        for threads in [1, 3] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| {
                let mut bytes = vec![9; expected.len()];
                quantize_packed(&x, &tiling, affine, grid(4), Packed::Int4, &mut bytes).unwrap();
                assert!(bytes == expected);
                let mut found = vec![9.0; len];
                dequantize_packed(&bytes, Packed::Int4, &tiling, affine, &mut found).unwrap();
                assert!(found == values);
            });
        }
    }
}
