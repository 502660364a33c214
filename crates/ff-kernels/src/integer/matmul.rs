//! A matrix product of two activations on codes.

use rayon::prelude::*;

use super::linear::{Target, rows};
use super::operand::{ANY_CODE, LEFT, Operand, RIGHT, Width};
use super::product::Product;
use super::view::{CodeView, elements};
use super::weight::PackedWeight;
use crate::affine::Affine;
use crate::error::{KernelError, check_len};
use crate::uniform::Uniform;

/// Writes `out[b, i, j] = s_l·s_r·Σ_k (q_l[b, i, k] + o_l)(q_r[b, k, j] + o_r)`.
///
/// Offsets are rounded first, half to even; each operand has one set of parameters. `left` is
/// `[batch, m, k]` and `right` `[batch, k, n]`, with any strides: a transposed right side needs no
/// copy, and a batch stride of 0 uses one matrix for the whole batch (and packs it once). `out` is
/// `[batch, m, n]`, contiguous. Exactness and rounding are those of
/// [`integer_linear`](super::integer_linear).
///
/// # Errors
/// As [`integer_linear`](super::integer_linear).
///
/// ```
/// use ff_kernels::{Affine, CodeView, integer_matmul};
/// let left = CodeView::new(&[1, 2, 3, 4], [1, 2, 2])?;
/// let right = CodeView::strided(&[5, 6, 7, 8], [1, 2, 2], [4, 1, 2])?; // [[5, 7], [6, 8]]
/// let half = Affine { scale: &[0.5], offset: None };
/// let mut out = [0.0; 4];
/// integer_matmul(left, half, right, half, &mut out)?;
/// assert_eq!(out, [4.25, 5.75, 9.75, 13.25]);
/// # Ok::<(), ff_kernels::KernelError>(())
/// ```
pub fn integer_matmul(
    left: CodeView<'_, 3>,
    left_affine: Affine<'_>,
    right: CodeView<'_, 3>,
    right_affine: Affine<'_>,
    out: &mut [f32],
) -> Result<(), KernelError> {
    let job = Job::new((left, left_affine), (right, right_affine), out.len())?;
    job.run(&Product::shared(), left, right, Target::Floats(out));
    Ok(())
}

/// [`integer_matmul`], and each result [quantized](crate::quantize) while it is in the cache; says whether there was NaN, which
/// sums without a bias never make.
///
/// # Errors
/// As [`integer_linear`](super::integer_linear).
pub fn integer_matmul_codes(
    left: CodeView<'_, 3>,
    left_affine: Affine<'_>,
    right: CodeView<'_, 3>,
    right_affine: Affine<'_>,
    to: &Uniform,
    out: &mut [i8],
) -> Result<bool, KernelError> {
    let job = Job::new((left, left_affine), (right, right_affine), out.len())?;
    Ok(job.run(&Product::shared(), left, right, Target::Codes(to, out)))
}

/// [`integer_matmul`] by its definition, in 128-bit integers.
///
/// # Errors
/// Those of [`integer_matmul`].
pub fn integer_matmul_reference(
    left: CodeView<'_, 3>,
    left_affine: Affine<'_>,
    right: CodeView<'_, 3>,
    right_affine: Affine<'_>,
    out: &mut [f32],
) -> Result<(), KernelError> {
    let job = Job::new((left, left_affine), (right, right_affine), out.len())?;
    let ([batch, m, depth], [_, _, n]) = (left.shape(), right.shape());
    let scale = job.left.scale(0) * job.right.scale(0);
    for b in 0..batch {
        for i in 0..m {
            for j in 0..n {
                let term = |k| {
                    let left = i64::from(left.get([b, i, k])) + job.left.offset(0);
                    let right = i64::from(right.get([b, k, j])) + job.right.offset(0);
                    i128::from(left) * i128::from(right)
                };
                out[(b * m + i) * n + j] = (0..depth).map(term).sum::<i128>() as f32 * scale;
            }
        }
    }
    Ok(())
}

struct Job {
    left: Operand,
    right: Operand,
    width: Width,
}

impl Job {
    fn new(
        (left, left_affine): (CodeView<'_, 3>, Affine<'_>),
        (right, right_affine): (CodeView<'_, 3>, Affine<'_>),
        out: usize,
    ) -> Result<Self, KernelError> {
        let ([batch, m, depth], [right_batch, right_depth, n]) = (left.shape(), right.shape());
        check_len("batch of the right codes", batch, right_batch)?;
        check_len("column of the right codes", depth, right_depth)?;
        check_len("output", elements(&[batch, m, n])?, out)?;
        let left = Operand::new(&LEFT, left_affine, 1)?;
        let right = Operand::new(&RIGHT, right_affine, 1)?;
        let width = Width::of(depth, (&left, ANY_CODE), (&right, ANY_CODE))?;
        Ok(Job { left, right, width })
    }

    fn run(
        &self,
        product: &Product,
        left: CodeView<'_, 3>,
        right: CodeView<'_, 3>,
        out: Target<'_>,
    ) -> bool {
        let ([batch, m, _], [_, _, n]) = (left.shape(), right.shape());
        if batch * m * n == 0 {
            return false;
        }
        let pack = |b| PackedWeight::pack(product, right.matrix(b).transposed());
        let shared = (batch == 1 || right.strides()[0] == 0).then(|| pack(0));
        let multiply = |b: usize, out: Target<'_>| {
            let own;
            let right = match &shared {
                Some(right) => right,
                None => {
                    own = pack(b);
                    &own
                }
            };
            let (left, right) = ((left.matrix(b), &self.left), (right, &self.right));
            match self.width {
                Width::Narrow => rows::<i32>(product, left, right, None, out),
                Width::Wide => rows::<i64>(product, left, right, None, out),
            }
        };
        match out {
            Target::Floats(out) => {
                let matrices = out.par_chunks_mut(m * n).enumerate();
                matrices.for_each(|(b, out)| {
                    multiply(b, Target::Floats(out));
                });
                false
            }
            Target::Codes(to, out) => {
                let matrices = out.par_chunks_mut(m * n).enumerate();
                let found = matrices.map(|(b, out)| multiply(b, Target::Codes(to, out)));
                found.reduce(|| false, |a, b| a | b)
            }
        }
    }
}
