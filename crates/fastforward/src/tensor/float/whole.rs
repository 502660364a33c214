//! Integer tensors: arithmetic that wraps, and operators on bits.

use candle_core::{DType, Tensor};

use super::custom::check_cpu;
use super::shape::broadcast_shape;
use crate::tensor::{Error, Result};

/// One element of a result, or what is wrong.
pub(super) type WholeResult = std::result::Result<i64, String>;

/// `f` of each pair of elements, which broadcast; computed in 64 bits and wrapped to the dtype that PyTorch would choose.
pub(super) fn binary(
    operator: &str,
    a: &Tensor,
    b: &Tensor,
    f: impl Fn(i64, i64) -> WholeResult,
) -> Result<Tensor> {
    let dtype = promote(operator, a, b)?;
    let shape = broadcast_shape(operator, a, b)?;
    let (a, b) = (elements(&a.broadcast_as(&shape)?)?, elements(&b.broadcast_as(&shape)?)?);
    let out: std::result::Result<Vec<i64>, String> =
        a.into_iter().zip(b).map(|(a, b)| f(a, b)).collect();
    let out = out.map_err(|what| Error::operator(operator, what))?;
    Ok(Tensor::from_vec(out, shape, &candle_core::Device::Cpu)?.to_dtype(dtype)?)
}

/// `f` of each element, wrapped to the dtype of `x`.
pub(super) fn unary(operator: &str, x: &Tensor, f: impl Fn(i64) -> i64) -> Result<Tensor> {
    check_cpu(operator, x)?;
    let out: Vec<i64> = elements(x)?.into_iter().map(f).collect();
    Ok(Tensor::from_vec(out, x.shape(), &candle_core::Device::Cpu)?.to_dtype(x.dtype())?)
}

/// The elements in row-major order.
pub(super) fn elements(x: &Tensor) -> Result<Vec<i64>> {
    if x.elem_count() == 0 {
        return Ok(Vec::new()); // candle cuts the storage at the view's offset, which may lie beyond the end
    }
    Ok(x.to_dtype(DType::I64)?.flatten_all()?.to_vec1()?)
}

/// The dtype of an operator on two integer tensors: the wider one; a tensor without axes does not widen one with some.
fn promote(operator: &str, a: &Tensor, b: &Tensor) -> Result<DType> {
    check_cpu(operator, a)?;
    check_cpu(operator, b)?;
    let (x, y) = (a.dtype(), b.dtype());
    if !(x.is_int() && y.is_int()) {
        return Err(Error::operator(
            operator,
            format!(
                "the operands have dtypes {} and {}; it works on integers",
                x.as_str(),
                y.as_str()
            ),
        ));
    }
    use DType::{I16, I32, I64, U8, U32};
    Ok(match (x, y) {
        _ if x == y => x,
        _ if a.rank() == 0 && b.rank() > 0 => y,
        _ if b.rank() == 0 && a.rank() > 0 => x,
        (U8, other) | (other, U8) => other,
        (I16, I32) | (I32, I16) => I32,
        // Neither `u32` nor a narrower signed type holds what the other does.
        (U32, _) | (_, U32) => I64,
        _ => I64,
    })
}

fn operand<'a>(
    x: &Tensor,
    other: super::Operand<'a>,
    name: &str,
) -> Result<std::borrow::Cow<'a, Tensor>> {
    use std::borrow::Cow;
    match other {
        super::Operand::Tensor(other) => Ok(Cow::Borrowed(other)),
        super::Operand::Integer(other) => Ok(Cow::Owned(Tensor::new(other, x.device())?)),
        super::Operand::Scalar(other) if other.fract() == 0.0 && other.abs() <= 9e15 => {
            Ok(Cow::Owned(Tensor::new(other as i64, x.device())?))
        }
        super::Operand::Scalar(other) => Err(Error::operator(
            name,
            format!("the second operand is {other}; it must be a whole number"),
        )),
    }
}

macro_rules! bitwise {
    ($($(#[$doc:meta])* $name:ident = |$a:ident, $b:ident| $f:expr;)*) => {$(
        $(#[$doc])*
        ///
        /// # Errors
        ///
        /// Operands that hold no integers, do not broadcast, or are not on the CPU.
        pub fn $name<'a>(x: &Tensor, other: impl Into<super::Operand<'a>>) -> Result<Tensor> {
            let other = operand(x, other.into(), stringify!($name))?;
            binary(stringify!($name), x, &other, |$a, $b| Ok($f))
        }
    )*};
}

bitwise! {
    /// The bits that are set in both integers.
    ///
    /// ```
    /// use candle_core::{Device, Tensor};
    /// use fastforward::tensor::float::bitwise_and;
    ///
    /// let x = Tensor::new(&[0b1100i64, 0b1010], &Device::Cpu)?;
    /// assert_eq!(bitwise_and(&x, 0b0110i64)?.to_vec1::<i64>()?, [0b0100, 0b0010]);
    /// # Ok::<(), fastforward::tensor::Error>(())
    /// ```
    bitwise_and = |a, b| a & b;

    /// The bits that are set in either integer.
    bitwise_or = |a, b| a | b;

    /// The bits that are set in one of the integers only.
    bitwise_xor = |a, b| a ^ b;
}

/// The complement of each bit.
///
/// candle has no booleans: a mask of 0 and 1 in `u8` becomes 255 and 254.
///
/// # Errors
///
/// `x` holds no integers, or is not on the CPU.
pub fn bitwise_not(x: &Tensor) -> Result<Tensor> {
    if !x.dtype().is_int() {
        let found = x.dtype().as_str();
        return Err(Error::operator(
            "bitwise_not",
            format!("the input has dtype {found}; it works on integers"),
        ));
    }
    unary("bitwise_not", x, |x| !x)
}

/// The width of an integer dtype.
fn bits(dtype: DType) -> i64 {
    dtype.size_in_bytes() as i64 * 8
}

/// `x << other`. A shift by a negative number, or by as many bits as there are, gives 0.
///
/// # Errors
///
/// Operands that hold no integers, do not broadcast, or are not on the CPU.
pub fn bitwise_left_shift<'a>(x: &Tensor, other: impl Into<super::Operand<'a>>) -> Result<Tensor> {
    let name = "bitwise_left_shift";
    let other = operand(x, other.into(), name)?;
    let width = bits(promote(name, x, &other)?);
    binary(name, x, &other, |a, b| Ok(if (0..width).contains(&b) { a << b } else { 0 }))
}

/// `x >> other`, with the sign kept. A shift by a negative number, or by as many bits as there are, gives 0 or -1.
///
/// # Errors
///
/// As [`bitwise_left_shift`].
pub fn bitwise_right_shift<'a>(x: &Tensor, other: impl Into<super::Operand<'a>>) -> Result<Tensor> {
    let name = "bitwise_right_shift";
    let other = operand(x, other.into(), name)?;
    let width = bits(promote(name, x, &other)?);
    binary(name, x, &other, |a, b| Ok(a >> if (0..width).contains(&b) { b } else { 63 }))
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::super::{Operand, add, floor_divide, mul, negative, pow, remainder, sub};
    use super::*;

    fn i64s(x: &[i64]) -> Tensor {
        Tensor::new(x, &Device::Cpu).unwrap()
    }

    #[track_caller]
    fn check(found: Result<Tensor>, dtype: DType, expected: &[i64]) {
        let found = found.unwrap();
        assert_eq!((found.dtype(), &elements(&found).unwrap()[..]), (dtype, expected));
    }

    #[test]
    fn arithmetic_of_integers_is_pythons() {
        let (a, b) = (i64s(&[7, -7, 7, -7]), i64s(&[2, 2, -2, -2]));
        check(floor_divide(&a, &b), DType::I64, &[3, -4, -4, 3]);
        check(remainder(&a, &b), DType::I64, &[1, 1, -1, -1]);
        check(add(&a, &b, 3.0), DType::I64, &[13, -1, 1, -13]);
        check(sub(&a, 1i64, 2.0), DType::I64, &[5, -9, 5, -9]);
        check(pow(&i64s(&[2, -3, 0, 7]), &i64s(&[10, 3, 0, 2])), DType::I64, &[1024, -27, 1, 49]);
        check(pow(&i64s(&[1, -1, -1, 5]), &i64s(&[-1, -1, -2, -1])), DType::I64, &[1, -1, 1, 0]);
        check(pow(&i64s(&[2]), 62i64), DType::I64, &[1 << 62]);
    }

    #[test]
    fn narrow_integers_wrap_and_are_promoted() {
        let bytes = Tensor::new(&[200u8, 255], &Device::Cpu).unwrap();
        check(add(&bytes, &bytes, 1.0), DType::U8, &[144, 254]);
        check(mul(&bytes, 2i64), DType::U8, &[144, 254]);
        check(negative(&bytes), DType::U8, &[56, 1]);
        check(negative(&i64s(&[3, -4])), DType::I64, &[-3, 4]);
        let short = Tensor::new(&[1i16, -1], &Device::Cpu).unwrap();
        check(add(&bytes, &short, 1.0), DType::I16, &[201, 254]);
        check(add(&short, &i64s(&[1, 1]), 1.0), DType::I64, &[2, 0]);
        let scalar = Tensor::new(1i64, &Device::Cpu).unwrap();
        check(add(&short, &scalar, 1.0), DType::I16, &[2, 0]);
    }

    #[test]
    fn bits_are_as_in_pytorch() {
        let a = Tensor::new(&[-5i32, 5, 3], &Device::Cpu).unwrap();
        let b = Tensor::new(&[31i32, 32, 40], &Device::Cpu).unwrap();
        check(bitwise_left_shift(&a, &b), DType::I32, &[-2147483648, 0, 0]);
        let b = Tensor::new(&[1i32, 32, -1], &Device::Cpu).unwrap();
        check(bitwise_right_shift(&a, &b), DType::I32, &[-3, 0, 0]);
        check(bitwise_right_shift(&a, 32i64), DType::I32, &[-1, 0, 0]);
        let bytes = Tensor::new(&[3u8, 200], &Device::Cpu).unwrap();
        check(bitwise_left_shift(&bytes, 7.0), DType::U8, &[128, 0]);
        check(bitwise_not(&bytes), DType::U8, &[252, 55]);
        check(bitwise_xor(&bytes, &bytes), DType::U8, &[0, 0]);
        check(bitwise_or(&a, 4i64), DType::I32, &[-1, 5, 7]);
        check(bitwise_and(&a, &b), DType::I32, &[1, 0, 3]);
    }

    #[test]
    fn errors_name_what_is_wrong() {
        let message = |r: Result<Tensor>| r.unwrap_err().to_string();
        let (x, f) = (i64s(&[1]), Tensor::new(&[1f32], &Device::Cpu).unwrap());
        assert_eq!(
            message(bitwise_and(&x, &f)),
            "bitwise_and: the operands have dtypes i64 and f32; it works on integers"
        );
        assert_eq!(
            message(bitwise_not(&f)),
            "bitwise_not: the input has dtype f32; it works on integers"
        );
        assert_eq!(
            message(bitwise_left_shift(&x, 0.5)),
            "bitwise_left_shift: the second operand is 0.5; it must be a whole number"
        );
        assert_eq!(message(floor_divide(&x, 0i64)), "floor_divide: an integer is divided by zero");
        assert_eq!(message(add(&x, &x, 0.5)), "add: alpha is 0.5; for integers it must be whole");
        assert_eq!(
            message(pow(&x, Operand::Integer(-1))),
            "pow: integers are raised to -1; convert them to floats first"
        );
    }
}
