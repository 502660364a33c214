//! Sums, means and running sums.

use candle_core::{CpuStorage, Layout, Shape, Tensor};
use half::{bf16, f16};

use super::broadcast::sum_to_shape;
use super::custom::{Stored, with_storages};
use super::parallel::{fill_rows, sum_of, sum_rows};
use super::real::Real;
use super::shape::Around;
use crate::tensor::Error;

/// Sums of `[outer, n, inner]` over the middle.
pub(super) fn sum_middle<T: Real>(x: &[T], around: Around) -> Vec<T> {
    /// Elements of a row that are summed as one; the sums are added one after the other.
    const PART: usize = 4096;
    let Around { outer, n, inner } = around;
    if n == 0 {
        return vec![T::ZERO; outer * inner];
    }
    if inner == 1 {
        let parts = n.div_ceil(PART);
        let part = n.div_ceil(parts);
        let partial = fill_rows(
            outer * parts,
            1,
            #[inline(always)]
            |i, out| {
                let (row, p) = (i / parts, i % parts);
                out[0] = sum_of(
                    [&x[row * n..][(p * part).min(n)..((p + 1) * part).min(n)]],
                    #[inline(always)]
                    |[x]| x,
                );
            },
        );
        if parts == 1 {
            return partial;
        }
        let total = |row: &[T]| T::of(row.iter().map(|v| v.to_f64()).sum());
        return partial.chunks_exact(parts).map(total).collect();
    }
    let mut out = Vec::with_capacity(outer * inner);
    for x in x.chunks_exact((n * inner).max(1)) {
        out.extend(sum_rows(
            n,
            inner,
            n * inner,
            #[inline(always)]
            |row, sums: &mut [T]| {
                for (sum, &x) in sums.iter_mut().zip(&x[row * inner..][..inner]) {
                    *sum += x;
                }
            },
        ));
    }
    out
}

/// Sums a tensor over the axes along which a tensor of shape `dims` would be repeated to reach its shape: the gradient
/// of broadcasting. Nothing is tracked.
pub(super) fn sum_to(x: &Tensor, dims: &[usize]) -> candle_core::Result<Tensor> {
    if x.dims() == dims {
        return Ok(x.clone());
    }
    reduced(x, Shape::from(dims), &Reduction::To(x.dims(), dims))
}

/// Sums over the rows of a tensor seen as a matrix of `m` rows and `n` columns. Nothing is tracked.
pub(super) fn column_sums(x: &Tensor, m: usize, n: usize) -> candle_core::Result<Tensor> {
    reduced(x, Shape::from(n), &Reduction::Middle(Around { outer: 1, n: m, inner: n }))
}

/// What to sum over.
enum Reduction<'a> {
    Middle(Around),
    /// From a shape to one that is repeated to reach it.
    To(&'a [usize], &'a [usize]),
}

fn reduced(x: &Tensor, shape: Shape, reduction: &Reduction<'_>) -> candle_core::Result<Tensor> {
    fn run<S: Stored>(
        (storage, layout): (&CpuStorage, &Layout),
        shape: &Shape,
        reduction: &Reduction<'_>,
    ) -> candle_core::Result<Option<Tensor>> {
        let Some(x) = S::dense(storage, layout) else { return Ok(None) };
        let sums = match *reduction {
            Reduction::Middle(around) => sum_middle(&x, around),
            Reduction::To(from, to) => sum_to_shape(x, from, to).into_owned(),
        };
        S::tensor(sums, shape).map(Some)
    }
    let mut found = None;
    with_storages(&[x], |operands| {
        found = match operands[0].0 {
            CpuStorage::F32(_) => run::<f32>(operands[0], &shape, reduction)?,
            CpuStorage::F64(_) => run::<f64>(operands[0], &shape, reduction)?,
            CpuStorage::F16(_) => run::<f16>(operands[0], &shape, reduction)?,
            CpuStorage::BF16(_) => run::<bf16>(operands[0], &shape, reduction)?,
            _ => None,
        };
        Ok(())
    })?;
    found.ok_or_else(|| Error::operator("sum", "the input holds no floats").into_candle())
}
