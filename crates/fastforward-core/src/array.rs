//! Float data with a shape: what flows past a quantizer.

use crate::{Error, ErrorKind};

/// Borrowed `f32` data with a shape and, when the elements are not in row-major order, strides.
///
/// ```
/// use fastforward_core::ArrayView;
/// let data = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0];
/// let matrix = ArrayView::new(&data, &[2, 3])?; // [rows, columns]
/// let transposed = ArrayView::with_strides(&data, &[3, 2], &[1, 3])?;
/// assert_eq!(matrix.len(), 6);
/// assert_eq!(transposed.to_array().data, [1.0, 4.0, 2.0, 5.0, 3.0, 6.0]);
/// # Ok::<(), fastforward_core::Error>(())
/// ```
#[derive(Clone, Copy, Debug)]
pub struct ArrayView<'a> {
    data: &'a [f32],
    shape: &'a [usize],
    strides: Option<&'a [usize]>,
}

impl<'a> ArrayView<'a> {
    /// Data in row-major order.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidData`] when the data does not have as many elements as the shape.
    pub fn new(data: &'a [f32], shape: &'a [usize]) -> Result<Self, Error> {
        let expected = element_count(shape)?;
        if data.len() != expected {
            return Err(Error::new(
                ErrorKind::InvalidData,
                format!("shape {shape:?} needs {expected} elements, found {}", data.len()),
            ));
        }
        Ok(Self { data, shape, strides: None })
    }

    /// Data whose element `[i, j, ..]` lies at `i * strides[0] + j * strides[1] + ..`.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidData`] when there is not one stride per dimension or the last element lies outside the data.
    pub fn with_strides(
        data: &'a [f32],
        shape: &'a [usize],
        strides: &'a [usize],
    ) -> Result<Self, Error> {
        if shape.len() != strides.len() {
            return Err(Error::new(
                ErrorKind::InvalidData,
                format!("shape {shape:?} needs {} strides, found {strides:?}", shape.len()),
            ));
        }
        if element_count(shape)? > 0 {
            let last = shape.iter().zip(strides).try_fold(0usize, |last, (&extent, &stride)| {
                last.checked_add((extent - 1).checked_mul(stride)?)
            });
            if last.is_none_or(|last| last >= data.len()) {
                return Err(Error::new(
                    ErrorKind::InvalidData,
                    format!(
                        "shape {shape:?} with strides {strides:?} reaches beyond {} elements",
                        data.len()
                    ),
                ));
            }
        }
        Ok(Self { data, shape, strides: Some(strides) })
    }

    /// The underlying elements; in row-major order exactly if [`strides`](Self::strides) is `None`.
    pub fn data(&self) -> &'a [f32] {
        self.data
    }

    /// One extent per dimension.
    pub fn shape(&self) -> &'a [usize] {
        self.shape
    }

    /// The strides in elements, `None` for row-major data.
    pub fn strides(&self) -> Option<&'a [usize]> {
        self.strides
    }

    /// The number of elements.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether there is no element.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The elements copied in row-major order.
    pub fn to_array(&self) -> Array {
        let data = match self.strides {
            None => self.data.to_vec(),
            Some(strides) => gather(self.data, self.shape, strides),
        };
        Array { data, shape: self.shape.to_vec() }
    }
}

/// Owned `f32` data in row-major order.
#[derive(Clone, Debug, PartialEq)]
pub struct Array {
    /// The elements, last dimension fastest.
    pub data: Vec<f32>,
    /// One extent per dimension; their product is the number of elements.
    pub shape: Vec<usize>,
}

impl Array {
    /// Data with a shape.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidData`] when the data does not have as many elements as the shape.
    pub fn new(data: Vec<f32>, shape: Vec<usize>) -> Result<Self, Error> {
        ArrayView::new(&data, &shape)?;
        Ok(Self { data, shape })
    }

    /// This array, borrowed.
    pub fn view(&self) -> ArrayView<'_> {
        ArrayView { data: &self.data, shape: &self.shape, strides: None }
    }
}

fn element_count(shape: &[usize]) -> Result<usize, Error> {
    shape.iter().try_fold(1usize, |count, &extent| count.checked_mul(extent)).ok_or_else(|| {
        Error::new(ErrorKind::InvalidData, format!("shape {shape:?} has too many elements"))
    })
}

fn gather(data: &[f32], shape: &[usize], strides: &[usize]) -> Vec<f32> {
    let count: usize = shape.iter().product();
    let mut out = Vec::with_capacity(count);
    let mut index = vec![0usize; shape.len()];
    for _ in 0..count {
        let at: usize = index.iter().zip(strides).map(|(&i, &stride)| i * stride).sum();
        out.push(data[at]);
        for axis in (0..shape.len()).rev() {
            index[axis] += 1;
            if index[axis] < shape[axis] {
                break;
            }
            index[axis] = 0;
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strides_that_leave_the_data_are_refused() {
        let data = [0.0; 6];
        assert!(ArrayView::with_strides(&data, &[2, 3], &[3, 1]).is_ok());
        assert!(ArrayView::with_strides(&data, &[2, 3], &[4, 1]).is_err());
        assert!(ArrayView::with_strides(&data, &[2, 3], &[3]).is_err());
        assert!(ArrayView::with_strides(&data, &[2, 3], &[usize::MAX, 1]).is_err());
        assert!(ArrayView::with_strides(&[], &[0, 3], &[9, 9]).is_ok());
    }

    #[test]
    fn wrong_lengths_are_refused() {
        assert!(ArrayView::new(&[1.0], &[2]).is_err());
        assert!(ArrayView::new(&[1.0], &[]).is_ok());
        assert!(ArrayView::new(&[], &[usize::MAX, 2]).is_err());
    }
}
