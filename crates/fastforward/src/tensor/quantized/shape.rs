//! Changes of shape that stay on the grid, each exact for the codes, the floats and the scales.

use std::ops::Range;

use candle_core::Tensor;

use super::super::codes::CodeTensor;
use super::super::context::QuantizationContext;
use super::super::{Error, Result};
use super::{QuantizedTensor, recovers};

impl QuantizedTensor {
    /// The same elements, in the same order, in another shape. The scales must be able to follow: axes without scales of
    /// their own split and merge freely, an axis with scales may be split into axes that all have scales.
    ///
    /// # Errors
    /// [`ErrorKind::Operator`](crate::ErrorKind::Operator) when the number of elements differs or the tiles are no tiles of
    /// the new shape.
    pub fn reshape(&self, shape: &[usize]) -> Result<Self> {
        if shape.iter().product::<usize>() != self.elem_count() {
            return Err(Error::operator(
                "reshape",
                format_args!(
                    "shape {:?} has {} elements, {shape:?} has {}",
                    self.dims(),
                    self.elem_count(),
                    shape.iter().product::<usize>()
                ),
            ));
        }
        let context = self.context().reshape(shape)?;
        self.apply(context, |values| values.reshape(shape), |codes| Ok(codes.reshape(shape)))
    }

    /// [`reshape`](Self::reshape) under torch's name for it.
    ///
    /// # Errors
    /// As for [`reshape`](Self::reshape).
    pub fn view(&self, shape: &[usize]) -> Result<Self> {
        self.reshape(shape)
    }

    /// The axes `from..=to` as one.
    ///
    /// # Errors
    /// As for [`reshape`](Self::reshape); also when an axis does not exist.
    pub fn flatten(&self, from: isize, to: isize) -> Result<Self> {
        let (from, to) = (self.axis("flatten", from)?, self.axis("flatten", to)?);
        if from > to {
            return Err(Error::operator(
                "flatten",
                format_args!("axis {from} comes after axis {to}"),
            ));
        }
        let dims = self.dims();
        let mut shape = dims[..from].to_vec();
        shape.push(dims[from..=to].iter().product());
        shape.extend_from_slice(&dims[to + 1..]);
        self.reshape(&shape)
    }

    /// Two axes exchanged.
    ///
    /// # Errors
    /// [`ErrorKind::Operator`](crate::ErrorKind::Operator) when an axis does not exist.
    pub fn transpose(&self, a: isize, b: isize) -> Result<Self> {
        let (a, b) = (self.axis("transpose", a)?, self.axis("transpose", b)?);
        let mut axes: Vec<isize> = (0..self.rank() as isize).collect();
        axes.swap(a, b);
        self.permute(&axes)
    }

    /// The axes in another order.
    ///
    /// # Errors
    /// [`ErrorKind::Operator`](crate::ErrorKind::Operator) when `axes` does not name every axis once.
    pub fn permute(&self, axes: &[isize]) -> Result<Self> {
        let order =
            axes.iter().map(|&axis| self.axis("permute", axis)).collect::<Result<Vec<_>>>()?;
        let mut sorted = order.clone();
        sorted.sort_unstable();
        if !sorted.iter().copied().eq(0..self.rank()) {
            return Err(Error::operator(
                "permute",
                format_args!("axes {axes:?} do not name each of {} axes once", self.rank()),
            ));
        }
        let context = self.context().permute(&order);
        self.apply(context, |values| values.permute(order.clone()), |codes| codes.permute(&order))
    }

    /// Every `step`th index of a range of one axis, as `x[a:b:step]` of Python.
    ///
    /// # Errors
    /// [`ErrorKind::Operator`](crate::ErrorKind::Operator) when the range lies outside of the axis, the step is zero, or the
    /// range cuts through blocks.
    pub fn slice(&self, axis: isize, range: Range<usize>, step: usize) -> Result<Self> {
        let axis = self.axis("slice", axis)?;
        let extent = self.dims()[axis];
        if range.start > range.end || range.end > extent || step == 0 {
            return Err(Error::operator(
                "slice",
                format_args!(
                    "{range:?} in steps of {step} is no range of axis {axis} with {extent} indices"
                ),
            ));
        }
        let len = range.len().div_ceil(step);
        let context = self.context().slice(axis, range.start, len, step)?;
        let start = range.start;
        self.apply(
            context,
            |values| match step {
                1 => values.narrow(axis, start, len),
                _ => {
                    let picked = (0..len as u32).map(|i| start as u32 + i * step as u32).collect();
                    let picked = Tensor::from_vec(picked, len, values.device())?;
                    values.index_select(&picked, axis)
                }
            },
            |codes| Ok(codes.slice(axis, start, len, step)),
        )
    }

    /// `len` indices of one axis.
    ///
    /// # Errors
    /// As for [`slice`](Self::slice).
    pub fn narrow(&self, axis: isize, start: usize, len: usize) -> Result<Self> {
        self.slice(axis, start..start.saturating_add(len), 1)
    }

    /// One index of one axis, which goes away.
    ///
    /// # Errors
    /// As for [`slice`](Self::slice).
    pub fn select(&self, axis: isize, index: usize) -> Result<Self> {
        let at = self.axis("select", axis)?;
        let picked = self.narrow(axis, index, 1)?;
        picked.squeeze(at as isize)
    }

    /// A new axis of extent 1.
    ///
    /// # Errors
    /// [`ErrorKind::Operator`](crate::ErrorKind::Operator) when there is no such place.
    pub fn unsqueeze(&self, axis: isize) -> Result<Self> {
        let places = self.rank() as isize + 1;
        let at = if axis < 0 { axis + places } else { axis };
        if !(0..places).contains(&at) {
            return Err(Error::operator(
                "unsqueeze",
                format_args!("no place {axis} in {} axes", self.rank()),
            ));
        }
        let mut shape = self.dims().to_vec();
        shape.insert(at as usize, 1);
        self.reshape(&shape)
    }

    /// An axis of extent 1 goes away.
    ///
    /// # Errors
    /// [`ErrorKind::Operator`](crate::ErrorKind::Operator) when the axis does not exist or has another extent.
    pub fn squeeze(&self, axis: isize) -> Result<Self> {
        let axis = self.axis("squeeze", axis)?;
        let mut shape = self.dims().to_vec();
        if shape.remove(axis) != 1 {
            return Err(Error::operator(
                "squeeze",
                format_args!("axis {axis} of shape {:?} has more than one index", self.dims()),
            ));
        }
        self.reshape(&shape)
    }

    /// The same data repeated along axes of extent 1 and new leading ones, without copying codes.
    ///
    /// # Errors
    /// [`ErrorKind::Operator`](crate::ErrorKind::Operator) when the shapes do not fit.
    pub fn expand(&self, shape: &[usize]) -> Result<Self> {
        let fits = shape.len() >= self.rank()
            && self.dims().iter().rev().zip(shape.iter().rev()).all(|(&d, &n)| d == n || d == 1);
        if !fits {
            return Err(Error::operator(
                "expand",
                format_args!("shape {:?} does not broadcast to {shape:?}", self.dims()),
            ));
        }
        let context = self.context().broadcast(shape);
        self.apply(context, |values| values.broadcast_as(shape), |codes| codes.broadcast(shape))
    }

    /// The same data in row-major order.
    ///
    /// # Errors
    /// [`ErrorKind::Tensor`](crate::ErrorKind::Tensor) from candle.
    pub fn contiguous(&self) -> Result<Self> {
        let context = self.context().clone();
        self.apply(context, Tensor::contiguous, |codes| Ok(codes.contiguous()))
    }

    /// Tensors one after the other along an axis. They must share their parameters, or have scales along that very axis.
    ///
    /// # Errors
    /// [`ErrorKind::Operator`](crate::ErrorKind::Operator) when there is nothing to join, shapes do not fit, or the result
    /// has no common grid.
    pub fn cat(parts: &[&Self], axis: isize) -> Result<Self> {
        let (axis, context) = Self::check_cat(parts, axis)?;
        // Codes are joined where all are there, and made where floats would not give them back; floats where their history
        // or their device counts.
        let codes = if parts.iter().all(|part| part.ready_codes().is_some()) || !recovers(&context)
        {
            let all = parts.iter().map(|part| part.codes()).collect::<Result<Vec<_>>>()?;
            Some(CodeTensor::cat(&all, axis)?)
        } else {
            None
        };
        let values = if codes.is_none() || parts.iter().any(|part| part.keeps_floats()) {
            let all = parts.iter().map(|part| part.dequantize()).collect::<Result<Vec<_>>>()?;
            Some(Tensor::cat(&all, axis)?)
        } else {
            None
        };
        Ok(Self::from_parts(context, codes, values))
    }

    /// The axis counted from the first, and the context of the result.
    pub(crate) fn check_cat(parts: &[&Self], axis: isize) -> Result<(usize, QuantizationContext)> {
        let Some(first) = parts.first() else {
            return Err(Error::operator("cat", "nothing to join"));
        };
        let axis = first.axis("cat", axis)?;
        for part in parts {
            let fits = part.rank() == first.rank()
                && (0..first.rank())
                    .all(|other| other == axis || part.dims()[other] == first.dims()[other]);
            if !fits {
                return Err(Error::operator(
                    "cat",
                    format_args!(
                        "shapes {:?} and {:?} differ beyond axis {axis}",
                        first.dims(),
                        part.dims()
                    ),
                ));
            }
        }
        let contexts: Vec<&QuantizationContext> = parts.iter().map(|part| part.context()).collect();
        Ok((axis, QuantizationContext::cat(&contexts, axis)?))
    }

    /// Times a number: the scales take it up, the codes stay (spec §5.4). A negative factor mirrors the codes, so that
    /// scales stay positive.
    ///
    /// # Errors
    /// [`ErrorKind::Operator`](crate::ErrorKind::Operator) when a scale would become zero or infinite.
    pub fn mul_scalar(&self, factor: f64) -> Result<Self> {
        let (context, mirrored) = self.context().scaled(factor)?;
        let narrow = context.parameters().narrow_range;
        self.apply(
            context,
            |values| values.affine(factor, 0.0),
            |codes| {
                Ok(match (mirrored, narrow) {
                    (false, _) => codes.clone(),
                    (true, true) => codes.map(|q| -q),
                    (true, false) => codes.map(|q| -1 - q),
                })
            },
        )
    }

    /// Whether the floats have what codes do not: a history, or a place on another device.
    fn keeps_floats(&self) -> bool {
        self.track_op() || !self.device().is_cpu()
    }

    /// Does the same to whatever is there: the floats, the codes, or both.
    fn apply(
        &self,
        context: QuantizationContext,
        values: impl FnOnce(&Tensor) -> candle_core::Result<Tensor>,
        codes: impl FnOnce(&CodeTensor) -> Result<CodeTensor>,
    ) -> Result<Self> {
        let codes = self.0.codes.get().map(codes).transpose()?;
        let keep = codes.is_none() || self.keeps_floats();
        let values = self.0.values.get().filter(|_| keep).map(values).transpose()?;
        Ok(Self::from_parts(context, codes, values))
    }

    /// An axis counted from the first.
    fn axis(&self, operator: &str, axis: isize) -> Result<usize> {
        let from_first = if axis < 0 { axis + self.rank() as isize } else { axis };
        usize::try_from(from_first).ok().filter(|&axis| axis < self.rank()).ok_or_else(|| {
            Error::operator(operator, format_args!("no axis {axis} in shape {:?}", self.dims()))
        })
    }
}
