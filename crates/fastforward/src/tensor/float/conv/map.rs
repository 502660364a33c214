//! The convolution as a custom operator: the kernels, and which of them is the gradient of which.

use candle_core::backend::BackendStorage;
use candle_core::{
    CpuStorage, CustomOp2, CustomOp3, Layout, Result as CandleResult, Shape, Tensor,
};
use ff_kernels::{
    ConvShape, KernelError, channel_sums, conv, conv_transposed, conv_weight_gradient,
};

use super::super::spatial::{Element, by_dtype, common_float, elements, widened, with_elements};
use crate::tensor::{Error, Result};

/// A convolution with all sizes settled.
#[derive(Clone, Debug)]
pub(super) struct Map {
    pub(super) name: &'static str,
    pub(super) shape: ConvShape,
    pub(super) direction: Direction,
    /// The shape of the result.
    pub(super) out: Vec<usize>,
}

/// Which way the convolution of `shape` is applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Direction {
    Forward,
    /// From the output of the convolution to its input.
    Transposed,
}

impl Map {
    /// Applies the map to an input with a batch axis, which the result loses again if it was not there before.
    pub(super) fn apply(
        self,
        x: &Tensor,
        weight: &Tensor,
        bias: Option<&Tensor>,
        unbatched: bool,
    ) -> Result<Tensor> {
        let operands = [("input", Some(x)), ("weight", Some(weight)), ("bias", bias)];
        let dtype = common_float(self.name, &operands)?;
        let (x, weight) = (widened(x)?, widened(weight)?);
        let out = match bias {
            Some(bias) => x.apply_op3(&weight, &widened(bias)?, self)?,
            None => x.apply_op2(&weight, self)?,
        };
        let out = out.to_dtype(dtype)?;
        Ok(if unbatched { out.squeeze(0)? } else { out })
    }

    /// The convolution one way or the other, into a new buffer.
    fn run<T: Element>(
        &self,
        direction: Direction,
        operands: [&[T]; 2],
        bias: Option<&[T]>,
        len: usize,
    ) -> CandleResult<Vec<T>> {
        let mut out = vec![T::default(); len];
        let [x, weight] = operands;
        let done = match direction {
            Direction::Forward => conv(&self.shape, x, weight, bias, &mut out),
            Direction::Transposed => conv_transposed(&self.shape, x, weight, bias, &mut out),
        };
        self.checked(done.map(|()| out))
    }

    fn forward<T: Element>(
        &self,
        x: (&CpuStorage, &Layout),
        weight: (&CpuStorage, &Layout),
        bias: Option<(&CpuStorage, &Layout)>,
    ) -> CandleResult<(CpuStorage, Shape)> {
        let slice = |(storage, layout)| elements::<T>(self.name, storage, layout);
        let bias = bias.map(slice).transpose()?;
        let len = self.out.iter().product();
        let out = self.run(self.direction, [slice(x)?, slice(weight)?], bias, len)?;
        Ok((T::to_cpu_storage_owned(out), Shape::from(self.out.clone())))
    }

    /// The gradients of input and weight, of those that need one.
    fn backward<T: Element>(
        &self,
        x: &Tensor,
        weight: &Tensor,
        grad: &Tensor,
    ) -> CandleResult<(Option<Tensor>, Option<Tensor>)> {
        let x_grad = x.track_op().then(|| {
            let back = match self.direction {
                Direction::Forward => Direction::Transposed,
                Direction::Transposed => Direction::Forward,
            };
            let operands = [grad, weight];
            let out = with_elements::<T, _, 2>(self.name, operands, |operands| {
                self.run(back, operands, None, x.elem_count())
            })??;
            Tensor::from_vec(out, x.shape(), x.device())
        });
        let weight_grad = weight.track_op().then(|| {
            let operands = match self.direction {
                Direction::Forward => [x, grad],
                Direction::Transposed => [grad, x],
            };
            let out = with_elements::<T, _, 2>(self.name, operands, |[x, y]| {
                let mut out = vec![T::default(); weight.elem_count()];
                let done = conv_weight_gradient(&self.shape, x, y, &mut out);
                self.checked(done.map(|()| out))
            })??;
            Tensor::from_vec(out, weight.shape(), weight.device())
        });
        Ok((x_grad.transpose()?, weight_grad.transpose()?))
    }

    fn bias_gradient<T: Element>(&self, grad: &Tensor) -> CandleResult<Tensor> {
        let [batch, channels, ref positions @ ..] = self.out[..] else {
            return Err(Error::operator(self.name, "the result has no channels").into_candle());
        };
        let sums = with_elements::<T, _, 1>(self.name, [grad], |[grad]| {
            self.checked(channel_sums(grad, batch, channels, positions.iter().product()))
        })??;
        let sums: Vec<T> = sums.into_iter().map(T::from_f64).collect();
        Tensor::from_vec(sums, channels, grad.device())
    }

    fn checked<R>(&self, done: std::result::Result<R, KernelError>) -> CandleResult<R> {
        done.map_err(|error| Error::operator(self.name, error).into_candle())
    }
}

impl CustomOp2 for Map {
    fn name(&self) -> &'static str {
        self.name
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
    ) -> CandleResult<(CpuStorage, Shape)> {
        by_dtype!(self.name, x.dtype(), T => {
            self.forward::<T>((x, x_layout), (weight, weight_layout), None)
        })
    }

    fn bwd(
        &self,
        x: &Tensor,
        weight: &Tensor,
        _out: &Tensor,
        grad: &Tensor,
    ) -> CandleResult<(Option<Tensor>, Option<Tensor>)> {
        by_dtype!(self.name, grad.dtype(), T => self.backward::<T>(x, weight, grad))
    }
}

impl CustomOp3 for Map {
    fn name(&self) -> &'static str {
        self.name
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
        bias: &CpuStorage,
        bias_layout: &Layout,
    ) -> CandleResult<(CpuStorage, Shape)> {
        by_dtype!(self.name, x.dtype(), T => {
            self.forward::<T>((x, x_layout), (weight, weight_layout), Some((bias, bias_layout)))
        })
    }

    fn bwd(
        &self,
        x: &Tensor,
        weight: &Tensor,
        bias: &Tensor,
        _out: &Tensor,
        grad: &Tensor,
    ) -> CandleResult<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        by_dtype!(self.name, grad.dtype(), T => {
            let (x, weight) = self.backward::<T>(x, weight, grad)?;
            let bias = bias.track_op().then(|| self.bias_gradient::<T>(grad)).transpose()?;
            Ok((x, weight, bias))
        })
    }
}
