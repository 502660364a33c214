//! Integer codes with a shape and strides: what candle has no element type for.

use std::borrow::Cow;
use std::sync::Arc;

use candle_core::Layout;

use super::float::{dense, merge};
use super::{Error, Result};
use crate::ErrorKind;
use crate::quantization::affine::Codes;

/// Integer codes in the smallest type that holds them, seen through a layout.
///
/// Views share their codes: transposing, permuting, narrowing and broadcasting copy nothing.
#[derive(Clone, Debug)]
pub struct CodeTensor {
    codes: Arc<Codes>,
    layout: Layout,
}

/// Runs the same expression on the slice of each variant.
macro_rules! each_type {
    ($codes:expr, $slice:ident => $body:expr) => {
        match $codes {
            Codes::I8($slice) => Codes::I8($body),
            Codes::I16($slice) => Codes::I16($body),
            Codes::I32($slice) => Codes::I32($body),
        }
    };
}

impl CodeTensor {
    /// Codes in row-major order.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidData`] when there are not as many codes as the shape has elements.
    pub fn new(codes: Codes, shape: &[usize]) -> Result<Self> {
        let expected: usize = shape.iter().product();
        if codes.len() != expected {
            return Err(Error::new(
                ErrorKind::InvalidData,
                format!("shape {shape:?} needs {expected} codes, found {}", codes.len()),
            ));
        }
        Ok(Self { codes: Arc::new(codes), layout: Layout::contiguous(shape) })
    }

    /// One extent per dimension.
    pub fn dims(&self) -> &[usize] {
        self.layout.dims()
    }

    /// The number of codes.
    pub fn len(&self) -> usize {
        self.layout.shape().elem_count()
    }

    /// Whether there is no code.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether the codes lie in row-major order without gaps.
    pub fn is_contiguous(&self) -> bool {
        self.layout.is_contiguous()
    }

    /// The codes in row-major order, copied only if they lie otherwise.
    pub fn to_contiguous(&self) -> Cow<'_, Codes> {
        if self.is_contiguous() && self.layout.start_offset() == 0 && self.len() == self.codes.len()
        {
            return Cow::Borrowed(&self.codes);
        }
        let layout = &self.layout;
        Cow::Owned(each_type!(&*self.codes, all => dense(all, layout).into_owned()))
    }

    /// The codes in row-major order, widened.
    pub fn to_i32(&self) -> Vec<i32> {
        self.to_contiguous().to_i32()
    }

    /// The codes of at most 8 bits, if they lie in row-major order.
    pub(crate) fn as_i8(&self) -> Result<&[i8]> {
        match (&*self.codes, self.layout.contiguous_offsets()) {
            (Codes::I8(codes), Some((start, end))) => Ok(&codes[start..end]),
            _ => Err(Error::new(
                ErrorKind::InvalidData,
                "expected codes of at most 8 bits in row-major order",
            )),
        }
    }

    /// The codes of at most 8 bits as a batch of matrices: the codes from the first one on, and the strides of batch, rows and
    /// columns. They are copied only where the axes before the last two do not lie evenly, and then so that the last two
    /// keep their order in memory.
    pub(crate) fn matrices(&self) -> Result<(Cow<'_, [i8]>, [usize; 3])> {
        let (Codes::I8(all), Some(matrix)) = (&*self.codes, self.dims().len().checked_sub(2))
        else {
            return Err(Error::new(
                ErrorKind::InvalidData,
                "expected codes of at most 8 bits with two axes or more",
            ));
        };
        let (dims, strides) = (self.dims(), self.layout.stride());
        if let Some((_, batch)) = merge(&dims[..matrix], &strides[..matrix]) {
            let start = self.layout.start_offset().min(all.len());
            let strides = [batch, strides[matrix], strides[matrix + 1]];
            return Ok((Cow::Borrowed(&all[start..]), strides));
        }
        let (rows, columns) = (dims[matrix], dims[matrix + 1]);
        if strides[matrix] < strides[matrix + 1] {
            let turned = self.layout.transpose(matrix, matrix + 1)?;
            return Ok((dense(all, &turned), [rows * columns, 1, rows]));
        }
        Ok((dense(all, &self.layout), [rows * columns, columns, 1]))
    }

    /// The same codes in row-major order.
    pub fn contiguous(&self) -> Self {
        match self.to_contiguous() {
            Cow::Borrowed(_) => self.clone(),
            Cow::Owned(codes) => {
                Self { codes: Arc::new(codes), layout: Layout::contiguous(self.dims()) }
            }
        }
    }

    /// The same codes, in the same order, in another shape.
    pub(crate) fn reshape(&self, shape: &[usize]) -> Self {
        let codes = self.contiguous().codes;
        Self { codes, layout: Layout::contiguous(shape) }
    }

    pub(crate) fn permute(&self, axes: &[usize]) -> Result<Self> {
        Ok(Self { codes: Arc::clone(&self.codes), layout: self.layout.permute(axes)? })
    }

    pub(crate) fn broadcast(&self, shape: &[usize]) -> Result<Self> {
        Ok(Self { codes: Arc::clone(&self.codes), layout: self.layout.broadcast_as(shape)? })
    }

    /// Every `step`th of the indices `start..start + step * len` of one axis.
    pub(crate) fn slice(&self, axis: usize, start: usize, len: usize, step: usize) -> Self {
        let (mut dims, mut strides) = (self.dims().to_vec(), self.layout.stride().to_vec());
        // An empty slice may begin behind the last code, and one index needs no step.
        let start = if len == 0 { 0 } else { start };
        let offset = self.layout.start_offset() + start * strides[axis];
        dims[axis] = len;
        if len > 1 {
            strides[axis] *= step;
        }
        Self { codes: Arc::clone(&self.codes), layout: Layout::new(dims.into(), strides, offset) }
    }

    /// Codes one after the other along an axis; shapes agree elsewhere, and all have the same type.
    pub(crate) fn cat(parts: &[&Self], axis: usize) -> Result<Self> {
        let first = parts[0];
        let mut shape = first.dims().to_vec();
        shape[axis] = parts.iter().map(|part| part.dims()[axis]).sum();
        let outer: usize = shape[..axis].iter().product();
        let inner: usize = shape[axis + 1..].iter().product();
        let parts: Vec<(Cow<'_, Codes>, usize)> =
            parts.iter().map(|part| (part.to_contiguous(), part.dims()[axis] * inner)).collect();
        macro_rules! join {
            ($variant:ident) => {{
                let mut all = Vec::with_capacity(shape.iter().product());
                for row in 0..outer {
                    for (codes, width) in &parts {
                        let Codes::$variant(codes) = &**codes else {
                            return Err(Error::operator("cat", "codes of different types"));
                        };
                        all.extend_from_slice(&codes[row * width..][..*width]);
                    }
                }
                Codes::$variant(all)
            }};
        }
        let codes = match &*parts[0].0 {
            Codes::I8(_) => join!(I8),
            Codes::I16(_) => join!(I16),
            Codes::I32(_) => join!(I32),
        };
        Self::new(codes, &shape)
    }

    /// `f` of every code, in row-major order; the results must fit the type.
    pub(crate) fn map(&self, f: impl Fn(i32) -> i32) -> Self {
        let layout = &self.layout;
        let codes = match &*self.codes {
            Codes::I8(all) => Codes::I8(
                dense(all, layout).into_owned().into_iter().map(|q| f(q.into()) as i8).collect(),
            ),
            Codes::I16(all) => Codes::I16(
                dense(all, layout).into_owned().into_iter().map(|q| f(q.into()) as i16).collect(),
            ),
            Codes::I32(all) => {
                Codes::I32(dense(all, layout).into_owned().into_iter().map(f).collect())
            }
        };
        Self { codes: Arc::new(codes), layout: Layout::contiguous(self.dims()) }
    }
}

/// The positions that a strided view shows, in its row-major order.
pub(crate) fn positions(shape: &[usize], strides: &[usize], offset: usize) -> Vec<usize> {
    let mut all = vec![offset];
    for (&extent, &stride) in shape.iter().zip(strides) {
        all = all.iter().flat_map(|&at| (0..extent).map(move |i| at + i * stride)).collect();
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    fn six() -> CodeTensor {
        CodeTensor::new(Codes::I8(vec![0, 1, 2, 3, 4, 5]), &[2, 3]).unwrap()
    }

    #[test]
    fn views_share_their_codes_and_read_in_order() {
        let codes = six();
        assert_eq!(codes.permute(&[1, 0]).unwrap().to_i32(), [0, 3, 1, 4, 2, 5]);
        assert_eq!(codes.slice(1, 0, 2, 2).to_i32(), [0, 2, 3, 5]);
        assert_eq!(codes.slice(0, 1, 1, 1).to_i32(), [3, 4, 5]);
        assert_eq!(
            codes.slice(0, 1, 1, 1).broadcast(&[2, 3]).unwrap().to_i32(),
            [3, 4, 5, 3, 4, 5]
        );
        assert_eq!(codes.permute(&[1, 0]).unwrap().reshape(&[6]).to_i32(), [0, 3, 1, 4, 2, 5]);
        assert!(CodeTensor::new(Codes::I8(vec![0]), &[2]).is_err());
    }

    #[test]
    fn matrices_are_found_where_they_lie() {
        let codes = CodeTensor::new(Codes::I8((0..120).collect()), &[2, 3, 4, 5]).unwrap();
        for (axes, copied) in [
            ([0, 1, 2, 3], false),
            ([0, 1, 3, 2], false),
            ([0, 2, 1, 3], true),
            ([0, 2, 3, 1], true),
            ([3, 1, 0, 2], true),
        ] {
            let turned = codes.permute(&axes).unwrap();
            for turned in [turned.clone(), turned.slice(3, 1, 2, 1)] {
                let (all, [batch, row, column]) = turned.matrices().unwrap();
                let &[a, b, m, n] = turned.dims() else { unreachable!() };
                let at = |i: usize| (i / (m * n)) * batch + (i / n % m) * row + (i % n) * column;
                let found: Vec<i32> = (0..a * b * m * n).map(|i| all[at(i)].into()).collect();
                assert_eq!(found, turned.to_i32(), "{axes:?}");
                assert_eq!(matches!(all, Cow::Owned(_)), copied, "{axes:?}");
            }
        }
        assert!(six().slice(0, 0, 0, 1).matrices().unwrap().0.len() <= 6);
    }

    #[test]
    fn codes_are_joined_along_any_axis() {
        let (a, b) = (six(), six().slice(1, 2, 1, 1));
        assert_eq!(CodeTensor::cat(&[&a, &a], 0).unwrap().dims(), [4, 3]);
        assert_eq!(CodeTensor::cat(&[&a, &b], 1).unwrap().to_i32(), [0, 1, 2, 2, 3, 4, 5, 5]);
    }
}
