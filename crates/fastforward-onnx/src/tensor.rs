//! Tensors that go into a graph and come out of it.

use crate::dtype::DType;
use crate::error::{Error, ErrorKind, Result};
use std::borrow::Cow;

/// Numbers with a shape, in row-major order.
///
/// ```
/// use fastforward_onnx::tensor::Tensor;
///
/// let t = Tensor::from_f32(vec![2, 3], vec![0.0; 6])?;
/// assert_eq!(t.shape(), [2, 3]);
/// assert!(Tensor::from_f32(vec![2, 3], vec![0.0; 5]).is_err());
/// # Ok::<(), fastforward_onnx::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Tensor {
    shape: Vec<usize>,
    data: TensorData,
}

/// The elements of a [`Tensor`].
///
/// Types narrower than these are held in the next wider one: `float16` in
/// `F32`, `int4` in `I8`.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)] // Each variant is the Rust type of its elements.
#[non_exhaustive]
pub enum TensorData {
    F32(Vec<f32>),
    F64(Vec<f64>),
    I8(Vec<i8>),
    U8(Vec<u8>),
    I16(Vec<i16>),
    U16(Vec<u16>),
    I32(Vec<i32>),
    I64(Vec<i64>),
    Bool(Vec<bool>),
}

/// Runs `$body` with `$values` bound to the vector, whatever its type.
macro_rules! each_data {
    ($data:expr, $values:ident => $body:expr) => {
        match $data {
            TensorData::F32($values) => $body,
            TensorData::F64($values) => $body,
            TensorData::I8($values) => $body,
            TensorData::U8($values) => $body,
            TensorData::I16($values) => $body,
            TensorData::U16($values) => $body,
            TensorData::I32($values) => $body,
            TensorData::I64($values) => $body,
            TensorData::Bool($values) => $body,
        }
    };
}

impl Tensor {
    /// A tensor of any type.
    ///
    /// # Errors
    /// `Input` when the number of elements is not the product of `shape`.
    pub fn new(shape: Vec<usize>, data: TensorData) -> Result<Self> {
        let found = data.len();
        match n_elements(&shape) {
            Some(expected) if expected == found => Ok(Self { shape, data }),
            _ => Err(Error::new(
                ErrorKind::Input,
                format!("{found} elements do not fill a tensor of shape {shape:?}"),
            )),
        }
    }

    /// A tensor of 32-bit floats; see [`Tensor::new`].
    ///
    /// # Errors
    /// `Input` when the number of elements is not the product of `shape`.
    pub fn from_f32(shape: Vec<usize>, data: Vec<f32>) -> Result<Self> {
        Self::new(shape, TensorData::F32(data))
    }

    /// The size of each axis; empty for a scalar.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// The elements.
    pub fn data(&self) -> &TensorData {
        &self.data
    }

    /// The shape and the elements.
    pub fn into_parts(self) -> (Vec<usize>, TensorData) {
        (self.shape, self.data)
    }

    /// The element type.
    pub fn dtype(&self) -> DType {
        self.data.dtype()
    }

    /// The number of elements.
    pub fn len(&self) -> usize {
        self.data.len()
    }

    /// Whether there is no element.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes that the elements take in memory.
    pub fn size_bytes(&self) -> usize {
        each_data!(&self.data, values => size_of_val(values.as_slice()))
    }

    /// The elements, where they are 32-bit floats.
    pub fn as_f32(&self) -> Option<&[f32]> {
        match &self.data {
            TensorData::F32(values) => Some(values),
            _ => None,
        }
    }

    /// The elements as 32-bit floats, copied only where they are converted.
    pub(crate) fn floats(&self) -> Cow<'_, [f32]> {
        match self.as_f32() {
            Some(values) => Cow::Borrowed(values),
            None => Cow::Owned(self.to_f32()),
        }
    }

    /// The elements as 32-bit floats, converted where they are not (`bool` to 0 and 1).
    pub fn to_f32(&self) -> Vec<f32> {
        match &self.data {
            TensorData::F32(values) => values.clone(),
            TensorData::F64(values) => values.iter().map(|&x| x as f32).collect(),
            TensorData::I8(values) => values.iter().map(|&x| f32::from(x)).collect(),
            TensorData::U8(values) => values.iter().map(|&x| f32::from(x)).collect(),
            TensorData::I16(values) => values.iter().map(|&x| f32::from(x)).collect(),
            TensorData::U16(values) => values.iter().map(|&x| f32::from(x)).collect(),
            TensorData::I32(values) => values.iter().map(|&x| x as f32).collect(),
            TensorData::I64(values) => values.iter().map(|&x| x as f32).collect(),
            TensorData::Bool(values) => values.iter().map(|&x| f32::from(u8::from(x))).collect(),
        }
    }

    /// The same elements under another shape.
    ///
    /// # Errors
    /// `Input` when the shapes hold different numbers of elements.
    pub fn reshape(self, shape: Vec<usize>) -> Result<Self> {
        Self::new(shape, self.data)
    }

    /// The entries `range` of the first axis, copied.
    ///
    /// # Errors
    /// `Input` for a scalar, and when `range` leaves the axis.
    pub fn rows(&self, range: std::ops::Range<usize>) -> Result<Self> {
        let n_rows = self.shape.first().copied().unwrap_or(0);
        if self.shape.is_empty() || range.start > range.end || range.end > n_rows {
            return Err(Error::new(
                ErrorKind::Input,
                format!("rows {range:?} do not lie in a tensor of shape {:?}", self.shape),
            ));
        }
        let row_len: usize = self.shape[1..].iter().product();
        let span = range.start * row_len..range.end * row_len;
        let mut shape = self.shape.clone();
        shape[0] = range.len();
        fn cut<T: Clone>(values: &[T], span: std::ops::Range<usize>) -> Vec<T> {
            values[span].to_vec()
        }
        let data = match &self.data {
            TensorData::F32(values) => TensorData::F32(cut(values, span)),
            TensorData::F64(values) => TensorData::F64(cut(values, span)),
            TensorData::I8(values) => TensorData::I8(cut(values, span)),
            TensorData::U8(values) => TensorData::U8(cut(values, span)),
            TensorData::I16(values) => TensorData::I16(cut(values, span)),
            TensorData::U16(values) => TensorData::U16(cut(values, span)),
            TensorData::I32(values) => TensorData::I32(cut(values, span)),
            TensorData::I64(values) => TensorData::I64(cut(values, span)),
            TensorData::Bool(values) => TensorData::Bool(cut(values, span)),
        };
        Ok(Self { shape, data })
    }
}

impl TensorData {
    /// The number of elements.
    pub fn len(&self) -> usize {
        each_data!(self, values => values.len())
    }

    /// Whether there is no element.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The element type.
    pub fn dtype(&self) -> DType {
        match self {
            Self::F32(_) => DType::F32,
            Self::F64(_) => DType::F64,
            Self::I8(_) => DType::I8,
            Self::U8(_) => DType::U8,
            Self::I16(_) => DType::I16,
            Self::U16(_) => DType::U16,
            Self::I32(_) => DType::I32,
            Self::I64(_) => DType::I64,
            Self::Bool(_) => DType::Bool,
        }
    }
}

/// The product of `shape`, or `None` where it overflows.
pub(crate) fn n_elements(shape: &[usize]) -> Option<usize> {
    shape.iter().try_fold(1usize, |product, &size| product.checked_mul(size))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_copied_and_checked() {
        let t = Tensor::new(vec![3, 2], TensorData::U8(vec![0, 1, 2, 3, 4, 5])).unwrap();
        assert_eq!(
            t.rows(1..3).unwrap(),
            Tensor::new(vec![2, 2], TensorData::U8(vec![2, 3, 4, 5])).unwrap()
        );
        assert!(t.rows(2..4).is_err());
        assert!(Tensor::from_f32(vec![], vec![1.0]).unwrap().rows(0..0).is_err());
    }

    #[test]
    fn a_shape_that_overflows_is_an_error() {
        assert!(Tensor::from_f32(vec![usize::MAX, 2], vec![]).is_err());
    }
}
