//! What flows through a model: floats or codes.

use std::fmt;
use std::ops::Range;

use candle_core::{DType, Device, Tensor};

use super::probe::{self, Reshaping};
use super::{QuantizedTensor, Result, record};

/// A float tensor or a quantized one.
///
/// ```
/// use candle_core::{Device, Tensor};
/// use fastforward::tensor::Value;
/// let x = Value::from(Tensor::new(&[1f32, 2.0], &Device::Cpu)?);
/// assert!(!x.is_quantized());
/// assert_eq!(x.dequantize()?.to_vec1::<f32>()?, [1.0, 2.0]);
/// # Ok::<(), fastforward::tensor::Error>(())
/// ```
#[derive(Clone)]
pub enum Value {
    /// Plain numbers.
    Float(Tensor),
    /// Codes on a grid.
    Quantized(QuantizedTensor),
}

impl From<Tensor> for Value {
    fn from(tensor: Tensor) -> Self {
        Self::Float(tensor)
    }
}

impl From<&Tensor> for Value {
    fn from(tensor: &Tensor) -> Self {
        Self::Float(tensor.clone())
    }
}

impl From<QuantizedTensor> for Value {
    fn from(tensor: QuantizedTensor) -> Self {
        Self::Quantized(tensor)
    }
}

impl Value {
    /// Whether this is quantized.
    pub fn is_quantized(&self) -> bool {
        matches!(self, Self::Quantized(_))
    }

    /// The quantized tensor, if it is one.
    pub fn as_quantized(&self) -> Option<&QuantizedTensor> {
        match self {
            Self::Quantized(tensor) => Some(tensor),
            Self::Float(_) => None,
        }
    }

    /// The float tensor, if it is one.
    pub fn as_float(&self) -> Option<&Tensor> {
        match self {
            Self::Float(tensor) => Some(tensor),
            Self::Quantized(_) => None,
        }
    }

    /// The floats, whatever it is.
    ///
    /// # Errors
    /// As for [`QuantizedTensor::dequantize`].
    pub fn dequantize(&self) -> Result<Tensor> {
        match self {
            Self::Float(tensor) => Ok(tensor.clone()),
            Self::Quantized(tensor) => tensor.dequantize(),
        }
    }

    /// One extent per dimension.
    pub fn dims(&self) -> &[usize] {
        match self {
            Self::Float(tensor) => tensor.dims(),
            Self::Quantized(tensor) => tensor.dims(),
        }
    }

    /// The number of dimensions.
    pub fn rank(&self) -> usize {
        self.dims().len()
    }

    /// The type of the floats.
    pub fn dtype(&self) -> DType {
        match self {
            Self::Float(tensor) => tensor.dtype(),
            Self::Quantized(tensor) => tensor.dtype(),
        }
    }

    /// Whether gradients are recorded.
    pub fn track_op(&self) -> bool {
        match self {
            Self::Float(tensor) => tensor.track_op(),
            Self::Quantized(tensor) => tensor.track_op(),
        }
    }

    /// The same values without history.
    pub fn detach(&self) -> Self {
        match self {
            Self::Float(tensor) => tensor.detach().into(),
            Self::Quantized(tensor) => tensor.detach().into(),
        }
    }

    /// The same values on another device.
    ///
    /// # Errors
    /// [`ErrorKind::Tensor`](crate::ErrorKind::Tensor) from candle.
    pub fn to_device(&self, device: &Device) -> Result<Self> {
        Ok(match self {
            Self::Float(tensor) => tensor.to_device(device)?.into(),
            Self::Quantized(tensor) => tensor.to_device(device)?.into(),
        })
    }

    /// Floats of another type: quantized values are dequantized.
    ///
    /// # Errors
    /// [`ErrorKind::Tensor`](crate::ErrorKind::Tensor) from candle.
    pub fn to_dtype(&self, dtype: DType) -> Result<Tensor> {
        Ok(self.dequantize()?.to_dtype(dtype)?)
    }
}

/// Changes of shape, which quantized values survive where their grid allows; see the methods of [`QuantizedTensor`].
impl Value {
    /// The same elements in another shape.
    ///
    /// # Errors
    /// As for [`QuantizedTensor::reshape`].
    pub fn reshape(&self, shape: &[usize]) -> Result<Self> {
        self.each(
            "reshape",
            |float| Ok(float.reshape(shape)?),
            |quantized| quantized.reshape(shape),
        )
    }

    /// The axes `from..=to` as one.
    ///
    /// # Errors
    /// As for [`QuantizedTensor::flatten`].
    pub fn flatten(&self, from: isize, to: isize) -> Result<Self> {
        self.each(
            "flatten",
            |float| {
                let (from, to) = (axis(float, "flatten", from)?, axis(float, "flatten", to)?);
                if from > to {
                    let what = format!("axis {from} comes after axis {to}");
                    return Err(super::Error::operator("flatten", what));
                }
                Ok(float.flatten(from, to)?)
            },
            |quantized| quantized.flatten(from, to),
        )
    }

    /// Two axes exchanged.
    ///
    /// # Errors
    /// As for [`QuantizedTensor::transpose`].
    pub fn transpose(&self, a: isize, b: isize) -> Result<Self> {
        self.ordered(
            "transpose",
            |rank| {
                let mut order: Vec<usize> = (0..rank).collect();
                order.swap(from_first(rank, "transpose", a)?, from_first(rank, "transpose", b)?);
                Ok(Some(order))
            },
            |float| Ok(float.transpose(axis(float, "transpose", a)?, axis(float, "transpose", b)?)?),
            |quantized| quantized.transpose(a, b),
        )
    }

    /// The axes in another order.
    ///
    /// # Errors
    /// As for [`QuantizedTensor::permute`].
    pub fn permute(&self, axes: &[isize]) -> Result<Self> {
        self.ordered(
            "permute",
            |rank| {
                let order = axes.iter().map(|&axis| from_first(rank, "permute", axis));
                order.collect::<Result<_>>().map(Some)
            },
            |float| {
                let order: Result<Vec<usize>> =
                    axes.iter().map(|&a| axis(float, "permute", a)).collect();
                Ok(float.permute(order?)?)
            },
            |quantized| quantized.permute(axes),
        )
    }

    /// Every `step`th index of a range of one axis.
    ///
    /// # Errors
    /// As for [`QuantizedTensor::slice`].
    pub fn slice(&self, along: isize, range: Range<usize>, step: usize) -> Result<Self> {
        self.each(
            "slice",
            |float| {
                let at = axis(float, "slice", along)?;
                if range.start > range.end || range.end > float.dims()[at] || step == 0 {
                    return Err(super::Error::operator(
                        "slice",
                        format_args!(
                            "{range:?} in steps of {step} is no range of axis {at} of {:?}",
                            float.dims()
                        ),
                    ));
                }
                if step == 1 {
                    return Ok(float.narrow(at, range.start, range.len())?);
                }
                let picked: Vec<u32> =
                    range.clone().step_by(step).map(|index| index as u32).collect();
                let count = picked.len();
                Ok(float.index_select(&Tensor::from_vec(picked, count, float.device())?, at)?)
            },
            |quantized| quantized.slice(along, range.clone(), step),
        )
    }

    /// `len` indices of one axis.
    ///
    /// # Errors
    /// As for [`QuantizedTensor::slice`].
    pub fn narrow(&self, along: isize, start: usize, len: usize) -> Result<Self> {
        self.slice(along, start..start.saturating_add(len), 1)
    }

    /// A new axis of extent 1.
    ///
    /// # Errors
    /// As for [`QuantizedTensor::unsqueeze`].
    pub fn unsqueeze(&self, at: isize) -> Result<Self> {
        self.each(
            "unsqueeze",
            |float| {
                let from_first = if at < 0 { at + float.rank() as isize + 1 } else { at };
                Ok(float.unsqueeze(from_first.try_into().unwrap_or(usize::MAX))?)
            },
            |quantized| quantized.unsqueeze(at),
        )
    }

    /// An axis of extent 1 goes away.
    ///
    /// # Errors
    /// As for [`QuantizedTensor::squeeze`].
    pub fn squeeze(&self, at: isize) -> Result<Self> {
        self.each(
            "squeeze",
            |float| Ok(float.squeeze(axis(float, "squeeze", at)?)?),
            |quantized| quantized.squeeze(at),
        )
    }

    /// The same data repeated along axes of extent 1 and new leading ones.
    ///
    /// # Errors
    /// As for [`QuantizedTensor::expand`].
    pub fn expand(&self, shape: &[usize]) -> Result<Self> {
        self.each(
            "expand",
            |float| Ok(float.broadcast_as(shape)?),
            |quantized| quantized.expand(shape),
        )
    }

    /// The same data in row-major order.
    ///
    /// # Errors
    /// [`ErrorKind::Tensor`](crate::ErrorKind::Tensor) from candle.
    pub fn contiguous(&self) -> Result<Self> {
        self.each("contiguous", |float| Ok(float.contiguous()?), QuantizedTensor::contiguous)
    }

    /// Does the same to whichever it is; a recording sees it as an operator of this name.
    fn each(
        &self,
        name: &'static str,
        float: impl FnOnce(&Tensor) -> Result<Tensor>,
        quantized: impl FnOnce(&QuantizedTensor) -> Result<QuantizedTensor>,
    ) -> Result<Self> {
        self.ordered(name, |_| Ok(None), float, quantized)
    }

    /// The same for axes that change places: `order` says how, for so many of them.
    fn ordered(
        &self,
        name: &'static str,
        order: impl FnOnce(usize) -> Result<Option<Vec<usize>>>,
        float: impl FnOnce(&Tensor) -> Result<Tensor>,
        quantized: impl FnOnce(&QuantizedTensor) -> Result<QuantizedTensor>,
    ) -> Result<Self> {
        record::into_operator(name, self);
        let result = match self {
            Self::Float(tensor) => float(tensor)?.into(),
            Self::Quantized(tensor) => quantized(tensor)?.into(),
        };
        record::out_of_operator(name, &result);
        if let Some(probe) = probe::current() {
            let order = order(self.rank())?;
            probe.reshaped(&Reshaping { name, order: order.as_deref() }, self, &result)?;
        }
        Ok(result)
    }
}

/// An axis of a tensor counted from the first.
fn axis(tensor: &Tensor, operator: &str, axis: isize) -> Result<usize> {
    let wrong = || format!("no axis {axis} in shape {:?}", tensor.dims());
    counted(tensor.rank(), axis).ok_or_else(|| super::Error::operator(operator, wrong()))
}

/// An axis of so many counted from the first.
fn from_first(rank: usize, operator: &str, axis: isize) -> Result<usize> {
    let wrong = || format!("no axis {axis} among {rank}");
    counted(rank, axis).ok_or_else(|| super::Error::operator(operator, wrong()))
}

fn counted(rank: usize, axis: isize) -> Option<usize> {
    let from_first = if axis < 0 { axis + rank as isize } else { axis };
    usize::try_from(from_first).ok().filter(|&axis| axis < rank)
}

impl fmt::Debug for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Float(tensor) => write!(f, "Float({:?}, {:?})", tensor.dims(), tensor.dtype()),
            Self::Quantized(tensor) => tensor.fmt(f),
        }
    }
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Float(tensor) => tensor.fmt(f),
            Self::Quantized(tensor) => tensor.fmt(f),
        }
    }
}
