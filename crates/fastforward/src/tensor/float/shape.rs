//! Axes and shapes as PyTorch counts them, with errors that name the operator.

use candle_core::{DType, Shape, Tensor};

use super::custom::{check_cpu, is_float};
use crate::tensor::{Error, Result};

/// The axis that `dim` means: negative ones count from the end. A tensor without axes accepts 0 and -1.
pub(crate) fn axis(operator: &str, dim: i64, rank: usize) -> Result<usize> {
    let n = rank.max(1) as i64;
    if dim < -n || dim >= n {
        return Err(Error::operator(
            operator,
            format!(
                "dim is {dim}, but the input has {rank} axes: it must lie in {}..={}",
                -n,
                n - 1
            ),
        ));
    }
    Ok(if dim < 0 { dim + n } else { dim } as usize)
}

/// A tensor's elements as `[outer, n, inner]`, where `n` is the size of one axis.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Around {
    pub(crate) outer: usize,
    pub(crate) n: usize,
    pub(crate) inner: usize,
}

impl Around {
    /// What is around `axis`; a tensor without axes is one element.
    pub(crate) fn axis(dims: &[usize], axis: usize) -> Self {
        match dims {
            [] => Self { outer: 1, n: 1, inner: 1 },
            _ => Self {
                outer: dims[..axis].iter().product(),
                n: dims[axis],
                inner: dims[axis + 1..].iter().product(),
            },
        }
    }
}

/// The shape to which operands broadcast; two axes match if they are equal or one of them is 1.
pub(crate) fn broadcast_shape(operator: &str, a: &Tensor, b: &Tensor) -> Result<Shape> {
    broadcast_dims(a.dims(), b.dims()).map(Shape::from).ok_or_else(|| {
        Error::operator(
            operator,
            format!(
                "the operands have shapes {:?} and {:?}, which do not broadcast: aligned at the end, axes must be \
                 equal or 1",
                a.dims(),
                b.dims()
            ),
        )
    })
}

/// See [`broadcast_shape`].
pub(crate) fn broadcast_dims(a: &[usize], b: &[usize]) -> Option<Vec<usize>> {
    let rank = a.len().max(b.len());
    let at = |dims: &[usize], i: usize| (i + dims.len()).checked_sub(rank).map_or(1, |i| dims[i]);
    (0..rank)
        .map(|i| match (at(a, i), at(b, i)) {
            (a, b) if a == b => Some(a),
            (1, n) | (n, 1) => Some(n),
            _ => None,
        })
        .collect()
}

/// Errors unless the tensor holds floats and is on the CPU.
pub(crate) fn check_float(operator: &str, operand: &str, tensor: &Tensor) -> Result<DType> {
    check_cpu(operator, tensor)?;
    let dtype = tensor.dtype();
    if is_float(dtype) {
        return Ok(dtype);
    }
    Err(Error::operator(
        operator,
        format!("{operand} has dtype {}; it must be f32, f64, f16 or bf16", dtype.as_str()),
    ))
}
