//! Moving elements: permuting axes, concatenating; and tensors filled with one value.

use candle_core::{DType, Tensor};

use super::custom::is_float;
use super::shape::axis;
use crate::tensor::{Error, Result};

/// `x` with its axes in the order `dims`, as a view.
///
/// # Errors
///
/// `dims` does not name each axis of `x` once; negative numbers count from the end.
pub fn permute(x: &Tensor, dims: &[i64]) -> Result<Tensor> {
    let rank = x.rank();
    let wrong = || {
        Error::operator(
            "permute",
            format!("dims is {dims:?}; it must name each of the {rank} axes of the input once"),
        )
    };
    if dims.len() != rank {
        return Err(wrong());
    }
    let mut order = Vec::with_capacity(rank);
    for &dim in dims {
        let axis = axis("permute", dim, rank)?;
        if order.contains(&axis) {
            return Err(wrong());
        }
        order.push(axis);
    }
    Ok(x.permute(order)?)
}

/// The tensors one after the other along `dim`.
///
/// Tensors of shape `[0]` are left out, as in PyTorch; floats of several dtypes become the widest.
///
/// # Errors
///
/// No tensors; shapes that differ in other axes than `dim`; integers beside other dtypes.
pub fn cat(tensors: &[&Tensor], dim: i64) -> Result<Tensor> {
    let error = |what: String| Err(Error::operator("cat", what));
    let some: Vec<&Tensor> = tensors.iter().copied().filter(|t| t.dims() != [0]).collect();
    let Some(first) = some.first().or(tensors.first()).copied() else {
        return error("there are no tensors".into());
    };
    if some.is_empty() {
        return Ok(first.clone());
    }
    if first.rank() == 0 {
        return error("a tensor has no axes; unsqueeze it first".into());
    }
    let axis = axis("cat", dim, first.rank())?;
    let other_axes = |t: &Tensor| {
        let mut dims = t.dims().to_vec();
        if axis < dims.len() {
            dims.remove(axis);
        }
        (t.rank(), dims)
    };
    if some.iter().any(|t| other_axes(t) != other_axes(first)) {
        let found: Vec<_> = some.iter().map(|t| t.dims()).collect();
        return error(format!(
            "the tensors have shapes {found:?}; they may differ in axis {axis} only"
        ));
    }
    let dtypes: Vec<DType> = some.iter().map(|t| t.dtype()).collect();
    if dtypes.iter().all(|d| *d == dtypes[0]) {
        return Ok(Tensor::cat(&some, axis)?);
    }
    if !dtypes.iter().all(|d| is_float(*d)) {
        let found: Vec<_> = dtypes.iter().map(|d| d.as_str()).collect();
        return error(format!("the tensors have dtypes {}; convert them to one", found.join(", ")));
    }
    let to = if dtypes.contains(&DType::F64) { DType::F64 } else { DType::F32 };
    let converted: candle_core::Result<Vec<_>> = some.iter().map(|t| t.to_dtype(to)).collect();
    Ok(Tensor::cat(&converted?, axis)?)
}

/// Zeros in the shape and on the device of `x`, in its dtype or another.
///
/// # Errors
///
/// The dtype cannot be filled.
pub fn zeros_like(x: &Tensor, dtype: Option<DType>) -> Result<Tensor> {
    Ok(Tensor::zeros(x.shape(), dtype.unwrap_or(x.dtype()), x.device())?)
}

/// Ones in the shape and on the device of `x`, in its dtype or another.
///
/// # Errors
///
/// The dtype cannot be filled.
pub fn ones_like(x: &Tensor, dtype: Option<DType>) -> Result<Tensor> {
    Ok(Tensor::ones(x.shape(), dtype.unwrap_or(x.dtype()), x.device())?)
}

/// A tensor to be overwritten, in the shape and on the device of `x`; its values are no one's business, and zero.
///
/// # Errors
///
/// The dtype cannot be filled.
pub fn empty_like(x: &Tensor, dtype: Option<DType>) -> Result<Tensor> {
    zeros_like(x, dtype)
}

/// `value` everywhere, in the shape and on the device of `x`, in its dtype or another.
///
/// # Errors
///
/// The value does not fit the dtype: a fraction, or beyond its range, for integers.
pub fn full_like(x: &Tensor, value: f64, dtype: Option<DType>) -> Result<Tensor> {
    let dtype = dtype.unwrap_or(x.dtype());
    if dtype.is_int() {
        // Beyond 2^53 a float does not tell neighbouring integers apart.
        let (low, high) = match dtype {
            DType::U8 => (0.0, 255.0),
            DType::U32 => (0.0, f64::from(u32::MAX)),
            DType::I16 => (-32768.0, 32767.0),
            DType::I32 => (f64::from(i32::MIN), f64::from(i32::MAX)),
            _ => (-9_007_199_254_740_992.0, 9_007_199_254_740_992.0),
        };
        if value.fract() != 0.0 || !(low..=high).contains(&value) {
            let name = dtype.as_str();
            return Err(Error::operator(
                "full_like",
                format!("the value is {value}; {name} holds whole numbers in {low}..={high}"),
            ));
        }
    }
    Ok(Tensor::full(value, x.shape(), x.device())?.to_dtype(dtype)?)
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::super::testing::*;
    use super::*;

    #[test]
    fn axes_are_permuted() {
        let x = numbers(&[2, 3, 4], 1);
        let y = permute(&x, &[-1, 0, -2]).unwrap();
        assert_eq!(y.dims(), [4, 2, 3]);
        assert_eq!(values(&y)[5], values(&x)[2 * 4 + 12]);
        check_gradients(std::slice::from_ref(&x), |t| permute(&t[0], &[2, 0, 1]));
        for dims in [&[0, 1][..], &[0, 1, 1], &[0, 1, 3]] {
            assert!(permute(&x, dims).unwrap_err().to_string().starts_with("permute: dim"));
        }
    }

    #[test]
    fn tensors_are_concatenated() {
        let (a, b) = (numbers(&[2, 3], 1), numbers(&[2, 1], 2));
        let y = cat(&[&a, &b], -1).unwrap();
        let (u, v) = (values(&a), values(&b));
        assert_close(&y, &[u[0], u[1], u[2], v[0], u[3], u[4], u[5], v[1]], 0.0);
        check_gradients(&[a.clone(), b.clone()], |t| cat(&[&t[0], &t[1]], 1));
        let none = Tensor::zeros(0, DType::F64, &Device::Cpu).unwrap();
        assert_eq!(cat(&[&none, &a, &none], 0).unwrap().dims(), [2, 3]);
        assert_eq!(cat(&[&none], 0).unwrap().dims(), [0]);
        let wide = cat(&[&a.to_dtype(DType::F16).unwrap(), &a.to_dtype(DType::BF16).unwrap()], 0);
        assert_eq!(wide.unwrap().dtype(), DType::F32);
        assert_eq!(
            cat(&[&a, &b], 0).unwrap_err().to_string(),
            "cat: the tensors have shapes [[2, 3], [2, 1]]; they may differ in axis 0 only"
        );
        assert!(cat(&[], 0).is_err());
        assert!(cat(&[&a, &a.to_dtype(DType::I64).unwrap()], 0).is_err());
    }

    #[test]
    fn tensors_are_filled() {
        let x = numbers(&[2, 3], 1);
        assert_close(&zeros_like(&x, None).unwrap(), &[0.0; 6], 0.0);
        assert_eq!(empty_like(&x, Some(DType::F16)).unwrap().dims(), [2, 3]);
        let y = ones_like(&x, Some(DType::I64)).unwrap();
        assert_eq!(y.to_vec2::<i64>().unwrap(), [[1; 3]; 2]);
        let y = full_like(&x, 2.5, Some(DType::BF16)).unwrap();
        assert_close(&y, &[2.5; 6], 0.0);
        assert_eq!(
            full_like(&x, 256.0, Some(DType::U8)).unwrap_err().to_string(),
            "full_like: the value is 256; u8 holds whole numbers in 0..=255"
        );
        assert!(full_like(&x, 0.5, Some(DType::I64)).is_err());
    }
}
