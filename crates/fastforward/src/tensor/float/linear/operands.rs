//! Operands of products as the matrix product takes them: in one wide type, with as few axes as strides allow.

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, Layout, Shape};
use half::{bf16, f16};

use super::super::custom::{Stored, dense};
use crate::tensor::Error;

/// A batch of `b` products `[m, k] [k, n]`; layouts have two axes or three.
pub(super) fn gemm(
    (lhs, lhs_layout): (&CpuStorage, &Layout),
    (rhs, rhs_layout): (&CpuStorage, &Layout),
    (b, m, n, k): (usize, usize, usize, usize),
) -> candle_core::Result<CpuStorage> {
    let wide = |storage: &CpuStorage| matches!(storage, CpuStorage::F32(_) | CpuStorage::F64(_));
    if b * m * n == 0 || k == 0 {
        let zeros = vec![0.0f32; b * m * n];
        return Ok(match lhs {
            CpuStorage::F64(_) => CpuStorage::F64(vec![0.0; b * m * n]),
            CpuStorage::F16(_) => f16::store(zeros),
            CpuStorage::BF16(_) => bf16::store(zeros),
            _ => CpuStorage::F32(zeros),
        });
    }
    if wide(lhs) {
        return lhs.matmul(rhs, (b, m, n, k), lhs_layout, rhs_layout);
    }
    let (lhs_wide, lhs_layout) = widen(lhs, lhs_layout)?;
    let (rhs_wide, rhs_layout) = widen(rhs, rhs_layout)?;
    let y = lhs_wide.get().matmul(rhs_wide.get(), (b, m, n, k), &lhs_layout, &rhs_layout)?;
    match (lhs, y) {
        (CpuStorage::F16(_), CpuStorage::F32(y)) => Ok(f16::store(y)),
        (CpuStorage::BF16(_), CpuStorage::F32(y)) => Ok(bf16::store(y)),
        _ => Err(several_dtypes()),
    }
}

/// A storage that is borrowed or made for the occasion.
pub(super) enum Held<'a> {
    Borrowed(&'a CpuStorage),
    Own(CpuStorage),
}

impl Held<'_> {
    pub(super) fn get(&self) -> &CpuStorage {
        match self {
            Self::Borrowed(storage) => storage,
            Self::Own(storage) => storage,
        }
    }
}

/// The operand itself, or in `f32` if it is narrower.
pub(super) fn widen<'a>(
    storage: &'a CpuStorage,
    layout: &Layout,
) -> candle_core::Result<(Held<'a>, Layout)> {
    let wide = match storage {
        CpuStorage::F16(_) => f16::dense(storage, layout),
        CpuStorage::BF16(_) => bf16::dense(storage, layout),
        _ => return Ok((Held::Borrowed(storage), layout.clone())),
    };
    let wide = wide.ok_or_else(several_dtypes)?;
    Ok((Held::Own(CpuStorage::F32(wide.into_owned())), Layout::contiguous(layout.shape().clone())))
}

/// A row-major copy of the operand under another shape.
pub(super) fn contiguous(
    storage: &CpuStorage,
    layout: &Layout,
    shape: impl Into<Shape>,
) -> candle_core::Result<(CpuStorage, Layout)> {
    let copy = match storage {
        CpuStorage::F32(data) => CpuStorage::F32(dense(data, layout).into_owned()),
        CpuStorage::F64(data) => CpuStorage::F64(dense(data, layout).into_owned()),
        CpuStorage::F16(data) => CpuStorage::F16(dense(data, layout).into_owned()),
        CpuStorage::BF16(data) => CpuStorage::BF16(dense(data, layout).into_owned()),
        _ => return Err(several_dtypes()),
    };
    Ok((copy, Layout::contiguous(shape)))
}

/// A stack of matrices as one matrix with all their rows, if strides allow it.
pub(super) fn rows_of(layout: &Layout) -> Option<Layout> {
    let (dims, strides) = (layout.dims(), layout.stride());
    let (k, leading) = dims.split_last()?;
    let (k_stride, strides) = strides.split_last()?;
    let (rows, stride) = merge(leading, strides)?;
    Some(Layout::new(Shape::from((rows, *k)), vec![stride, *k_stride], layout.start_offset()))
}

/// A stack of matrices with one batch axis, if strides allow it.
pub(super) fn batch_of(layout: &Layout) -> Option<Layout> {
    let (dims, strides) = (layout.dims(), layout.stride());
    let at = dims.len() - 2;
    let (count, stride) = merge(&dims[..at], &strides[..at])?;
    Some(Layout::new(
        Shape::from((count, dims[at], dims[at + 1])),
        vec![stride, strides[at], strides[at + 1]],
        layout.start_offset(),
    ))
}

/// Several axes as one: its size and stride. Axes of size 1 have no say.
pub(crate) fn merge(dims: &[usize], strides: &[usize]) -> Option<(usize, usize)> {
    let mut merged: Option<(usize, usize)> = None;
    for (&dim, &stride) in dims.iter().zip(strides).rev().filter(|(dim, _)| **dim != 1) {
        merged = match merged {
            None => Some((dim, stride)),
            Some((size, inner)) if stride == size * inner => Some((size * dim, inner)),
            Some(_) => return None,
        };
    }
    Some(merged.unwrap_or((1, 0)))
}

pub(super) fn several_dtypes() -> candle_core::Error {
    Error::operator("linear", "the operands have several dtypes; convert them to one").into_candle()
}
