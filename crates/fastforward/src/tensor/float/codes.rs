//! Operators from codes to codes: decoded, computed and quantized row by row, each row while it is in the cache.
//!
//! The results are those of the same operator on the dequantized operands, quantized afterwards, bit by bit.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use ff_kernels::Uniform;
use ff_kernels::simd::{Vectorized, dispatch};

use super::parallel::for_each_chunk;

/// Codes in row-major order that share a scale and an offset.
#[derive(Clone, Copy)]
pub(crate) struct CodesOf<'a> {
    pub(crate) codes: &'a [i8],
    pub(crate) scale: f32,
    /// Rounded to an integer.
    pub(crate) offset: f32,
}

impl CodesOf<'_> {
    /// The values of some of the codes.
    #[inline(always)]
    fn decode(&self, start: usize, out: &mut [f32]) {
        for (out, &code) in out.iter_mut().zip(&self.codes[start..]) {
            *out = (f32::from(code) + self.offset) * self.scale;
        }
    }
}

/// The codes of results; `None` if there was NaN among the results, which has no code.
pub(crate) type Quantized = Option<Vec<i8>>;

/// The length of a row where elements have nothing to do with their neighbours.
pub(crate) const ELEMENTS: usize = 1024;
/// Elements per unit of parallel work, about.
const CHUNK: usize = 1 << 14;

/// Results of `f(row, values, results)` on rows of `n_columns` of equally many codes, as codes. The last row may be shorter.
///
/// `f` must be `#[inline(always)]` for vector instructions to be used.
pub(super) fn quantize_rows<const N: usize>(
    operands: [CodesOf<'_>; N],
    n_columns: usize,
    to: &Uniform,
    f: impl Fn(usize, [&[f32]; N], &mut [f32]) + Sync,
) -> Quantized {
    let mut codes = vec![0; operands[0].codes.len()];
    if codes.is_empty() {
        return Some(codes);
    }
    let rows = (CHUNK / n_columns).max(1);
    let found_nan = AtomicBool::new(false);
    for_each_chunk(&mut codes, rows * n_columns, &|i, codes| {
        if dispatch(Rows { operands, first_row: i * rows, n_columns, to, codes, f: &f }) {
            found_nan.store(true, Relaxed);
        }
    });
    (!found_nan.into_inner()).then_some(codes)
}

struct Rows<'a, F, const N: usize> {
    operands: [CodesOf<'a>; N],
    first_row: usize,
    n_columns: usize,
    to: &'a Uniform,
    codes: &'a mut [i8],
    f: &'a F,
}

impl<F: Fn(usize, [&[f32]; N], &mut [f32]), const N: usize> Vectorized for Rows<'_, F, N> {
    type Output = bool;

    #[inline(always)]
    fn run(self) -> bool {
        let Self { operands, first_row, n_columns, to, codes, f } = self;
        let mut values: [Vec<f32>; N] = std::array::from_fn(
            #[inline(always)]
            |_| vec![0.0; n_columns],
        );
        let mut results = vec![0.0; n_columns];
        let mut found_nan = false;
        for (i, codes) in codes.chunks_mut(n_columns).enumerate() {
            let (row, len) = (first_row + i, codes.len());
            for (values, operand) in values.iter_mut().zip(&operands) {
                operand.decode(row * n_columns, &mut values[..len]);
            }
            let results = &mut results[..len];
            f(
                row,
                values.each_ref().map(
                    #[inline(always)]
                    |values| &values[..len],
                ),
                results,
            );
            found_nan |= to.codes(results, codes);
        }
        found_nan
    }
}

/// Each code replaced by the one that a table of all 256 has for it, the first for -128.
pub(crate) fn map_codes(codes: &[i8], table: &[i8; 256]) -> Vec<i8> {
    let mut out = vec![0; codes.len()];
    for_each_chunk(&mut out, CHUNK, &|i, out| {
        for (out, &code) in out.iter_mut().zip(&codes[i * CHUNK..]) {
            *out = table[usize::from(code.cast_unsigned() ^ 0x80)];
        }
    });
    out
}
