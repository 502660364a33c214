//! A linear layer on codes.

use rayon::prelude::*;

use super::buffer::Buffer;
use super::finish::{Columns, Finish, Row, Sum};
use super::operand::{ACTIVATION, ANY_CODE, Operand, WEIGHT, Width};
use super::product::Product;
use super::view::{CodeView, elements};
use super::weight::{PackedWeight, survey};
use crate::affine::Affine;
use crate::error::{KernelError, check_len};
use crate::simd::{Vectorized, dispatch};
use crate::uniform::Uniform;

/// Writes `out[i, j] = s_a[i]·s_w[j]·Σ_k (q_a[i, k] + o_a[i])(q_w[j, k] + o_w[j]) + bias[j]`.
///
/// Offsets are rounded first, half to even. `a` is `[rows, in]`, with any strides; its parameters
/// are one set, or one per row. The weight's are one set, or one per output channel. `out` is
/// `[rows, out]`, contiguous.
///
/// The sum is exact. It is rounded to f32 once, multiplied with `s_a·s_w` rounded to f32, and the
/// bias is added; how far that can be from floats is [`simulation_bound`](super::simulation_bound).
///
/// # Errors
/// Shapes that do not agree; scales that are not positive and finite, or whose product is infinite;
/// offsets above [`MAX_OFFSET`](super::MAX_OFFSET) in magnitude; sums that might not fit 64 bits,
/// which takes offsets near that limit and more than 2^15 terms. Nothing is written then.
pub fn integer_linear(
    a: CodeView<'_, 2>,
    a_affine: Affine<'_>,
    weight: &PackedWeight,
    w_affine: Affine<'_>,
    bias: Option<&[f32]>,
    out: &mut [f32],
) -> Result<(), KernelError> {
    let job = Job::new((a, a_affine), (weight.shape(), weight.range(), w_affine), bias, out.len())?;
    job.run(&Product::shared(), a, weight, bias, Target::Floats(out));
    Ok(())
}

/// [`integer_linear`], and each result [quantized](crate::quantize) while it is in the cache: `out` holds codes, and no float is
/// kept. Says whether there was NaN, which infinite biases can make; the codes of such results mean nothing.
///
/// # Errors
/// Those of [`integer_linear`].
///
/// ```
/// use ff_kernels::{Affine, CodeView, IntegerGrid, PackedWeight, Uniform, integer_linear_codes};
/// let weight = PackedWeight::new(CodeView::new(&[1, -2, 3, 4, 0, -1], [2, 3])?);
/// let x = CodeView::new(&[10, 20, 30], [1, 3])?;
/// let (x_affine, w_affine) =
///     (Affine { scale: &[0.5], offset: Some(&[2.0]) }, Affine { scale: &[0.25, 1.0], offset: None });
/// let to = Uniform::new(Affine { scale: &[0.25], offset: None }, IntegerGrid::signed(8)?)?;
/// let mut out = [0; 2];
/// assert!(!integer_linear_codes(x, x_affine, &weight, w_affine, Some(&[0.0, 1.0]), &to, &mut out)?);
/// assert_eq!(out, [32, 36]); // 8 and 9
/// # Ok::<(), ff_kernels::KernelError>(())
/// ```
pub fn integer_linear_codes(
    a: CodeView<'_, 2>,
    a_affine: Affine<'_>,
    weight: &PackedWeight,
    w_affine: Affine<'_>,
    bias: Option<&[f32]>,
    to: &Uniform,
    out: &mut [i8],
) -> Result<bool, KernelError> {
    let job = Job::new((a, a_affine), (weight.shape(), weight.range(), w_affine), bias, out.len())?;
    Ok(job.run(&Product::shared(), a, weight, bias, Target::Codes(to, out)))
}

/// [`integer_linear`] by its definition, in 128-bit integers, on the plain codes of the weight
/// (`[out, in]`).
///
/// # Errors
/// Those of [`integer_linear`].
pub fn integer_linear_reference(
    a: CodeView<'_, 2>,
    a_affine: Affine<'_>,
    weight: CodeView<'_, 2>,
    w_affine: Affine<'_>,
    bias: Option<&[f32]>,
    out: &mut [f32],
) -> Result<(), KernelError> {
    let range = survey(weight.transposed()).0;
    let job = Job::new((a, a_affine), (weight.shape(), range, w_affine), bias, out.len())?;
    let ([rows, n_in], [n_out, _]) = (a.shape(), weight.shape());
    for i in 0..rows {
        for j in 0..n_out {
            let mut sum = 0i128;
            for k in 0..n_in {
                let left = i64::from(a.get([i, k])) + job.left.offset(i);
                let right = i64::from(weight.get([j, k])) + job.right.offset(j);
                sum += i128::from(left) * i128::from(right);
            }
            let out = &mut out[i * n_out + j];
            *out = sum as f32 * (job.left.scale(i) * job.right.scale(j));
            if let Some(bias) = bias {
                *out += bias[j];
            }
        }
    }
    Ok(())
}

/// Rows that are worked on together.
const ROWS: usize = 64;

/// Operands that were checked.
pub(super) struct Job {
    left: Operand,
    right: Operand,
    width: Width,
}

impl Job {
    /// Checks everything there is to check. The right operand is a shape `[out, in]`, the range of
    /// its codes, and its parameters.
    pub(super) fn new(
        (a, a_affine): (CodeView<'_, 2>, Affine<'_>),
        ([n_out, n_in], range, w_affine): ([usize; 2], (i8, i8), Affine<'_>),
        bias: Option<&[f32]>,
        out: usize,
    ) -> Result<Self, KernelError> {
        let [rows, columns] = a.shape();
        check_len("row of activation codes", n_in, columns)?;
        check_len("output", elements(&[rows, n_out])?, out)?;
        check_len("bias", n_out, bias.map_or(n_out, <[f32]>::len))?;
        let left = Operand::new(&ACTIVATION, a_affine, rows)?;
        let right = Operand::new(&WEIGHT, w_affine, n_out)?;
        let width = Width::of(n_in, (&left, ANY_CODE), (&right, range))?;
        Ok(Job { left, right, width })
    }

    pub(super) fn run(
        &self,
        product: &Product,
        a: CodeView<'_, 2>,
        weight: &PackedWeight,
        bias: Option<&[f32]>,
        out: Target<'_>,
    ) -> bool {
        let (left, right) = (&self.left, &self.right);
        match self.width {
            Width::Narrow => rows::<i32>(product, (a, left), (weight, right), bias, out),
            Width::Wide => rows::<i64>(product, (a, left), (weight, right), bias, out),
        }
    }
}

/// Where results go.
pub(super) enum Target<'a> {
    Floats(&'a mut [f32]),
    Codes(&'a Uniform, &'a mut [i8]),
}

/// Computes all rows, in chunks side by side, and says whether NaN was quantized.
pub(super) fn rows<S: Sum>(
    product: &Product,
    (a, left): (CodeView<'_, 2>, &Operand),
    (weight, right): (&PackedWeight, &Operand),
    bias: Option<&[f32]>,
    out: Target<'_>,
) -> bool {
    let [n_out, _] = weight.shape();
    if n_out == 0 {
        return false;
    }
    let columns = Columns::<S>::new(weight.sums(), right, bias);
    let chunk_of_rows = |(chunk, out): (usize, &mut [f32])| {
        let a = a.rows(chunk * ROWS, out.len() / n_out);
        let [n_rows, n_in] = a.shape();
        let mut bytes = Buffer::<u8>::take(n_rows * n_in);
        let rows: Vec<Row<S>> = (0..n_rows)
            .map(|i| {
                let mut sum = 0;
                if n_in > 0 {
                    let bytes = &mut bytes[i * n_in..][..n_in];
                    unsigned_row(a, i, bytes);
                    if columns.need_row_sums() {
                        sum = bytes.iter().map(|&u| i64::from(u) - 128).sum();
                    }
                }
                let i = chunk * ROWS + i;
                let sum = sum + n_in as i64 * left.offset(i);
                let zero = S::of(left.offset(i) - 128);
                Row { scale: left.scale(i), zero, sum: S::of(sum) }
            })
            .collect();
        let mut first = 0;
        for panel in weight.panels() {
            let width = panel.width;
            let mut raw = Buffer::<i32>::take(n_rows * width);
            if let [block] = &panel.blocks[..] {
                product.multiply(&bytes, (n_rows, n_in, 0), block, &mut raw);
                Finish { raw: &raw, rows: &rows, columns: &columns, first, width, out }.apply();
            } else {
                let mut total = Buffer::<S>::zeros(n_rows * width);
                let mut at = 0;
                for block in &panel.blocks {
                    product.multiply(&bytes, (n_rows, n_in, at), block, &mut raw);
                    for (total, &raw) in total.iter_mut().zip(raw.iter()) {
                        *total = total.plus(raw.into());
                    }
                    at += block.depth();
                }
                Finish { raw: &total, rows: &rows, columns: &columns, first, width, out }.apply();
            }
            first += width;
        }
    };
    let chunk_of_codes = |to: &Uniform, chunk: usize, codes: &mut [i8]| {
        let mut floats = Buffer::<f32>::take(codes.len());
        chunk_of_rows((chunk, &mut floats));
        dispatch(ToCodes { to, floats: &floats, codes })
    };
    // Waking a thread for a single chunk would cost more than the chunk.
    match out {
        Target::Floats(out) if out.len() <= ROWS * n_out => chunk_of_rows((0, out)),
        Target::Floats(out) => {
            out.par_chunks_mut(ROWS * n_out).enumerate().for_each(chunk_of_rows);
        }
        Target::Codes(to, codes) if codes.len() <= ROWS * n_out => {
            return chunk_of_codes(to, 0, codes);
        }
        Target::Codes(to, codes) => {
            let chunks = codes.par_chunks_mut(ROWS * n_out).enumerate();
            let found = chunks.map(|(chunk, codes)| chunk_of_codes(to, chunk, codes));
            return found.reduce(|| false, |a, b| a | b);
        }
    }
    false
}

struct ToCodes<'a> {
    to: &'a Uniform,
    floats: &'a [f32],
    codes: &'a mut [i8],
}

impl Vectorized for ToCodes<'_> {
    type Output = bool;

    #[inline(always)]
    fn run(self) -> bool {
        self.to.codes(self.floats, self.codes)
    }
}

/// Writes `code + 128` for the codes of a row that has some.
fn unsigned_row(a: CodeView<'_, 2>, i: usize, bytes: &mut [u8]) {
    let (start, stride) = (a.at([i, 0]), a.strides()[1]);
    if stride == 1 {
        for (byte, &code) in bytes.iter_mut().zip(&a.memory()[start..]) {
            *byte = code.cast_unsigned() ^ 0x80;
        }
    } else {
        for (k, byte) in bytes.iter_mut().enumerate() {
            *byte = a.memory()[start + k * stride].cast_unsigned() ^ 0x80;
        }
    }
}
