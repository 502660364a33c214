//! The convolution as a custom operator: the kernels, and which of them is the gradient of which.

use candle_core::Tensor;
use ff_kernels::{ConvShape, channel_sums, conv, conv_transposed, conv_weight_gradient};

use super::super::custom::{self, Kernel};
use super::super::real::Real;
use crate::tensor::Result;

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

/// The operator checks all sizes before it makes a [`Map`], and operands of custom operators keep their shapes.
const SETTLED: &str = "the sizes were checked when the operator was called";

impl Map {
    /// Applies the map to an input with a batch axis, which the result loses again if it was not there before.
    pub(super) fn apply(
        self,
        x: &Tensor,
        weight: &Tensor,
        bias: Option<&Tensor>,
        unbatched: bool,
    ) -> Result<Tensor> {
        let shape = self.out.clone();
        let out = match bias {
            Some(bias) => custom::apply(self, [x, weight, bias], shape)?,
            None => custom::apply(self, [x, weight], shape)?,
        };
        Ok(if unbatched { out.squeeze(0)? } else { out })
    }

    fn run<T: Real>(
        &self,
        direction: Direction,
        [x, weight]: [&[T]; 2],
        bias: Option<&[T]>,
        len: usize,
    ) -> Vec<T> {
        let mut out = vec![T::ZERO; len];
        match direction {
            Direction::Forward => conv(&self.shape, x, weight, bias, &mut out),
            Direction::Transposed => conv_transposed(&self.shape, x, weight, bias, &mut out),
        }
        .expect(SETTLED);
        out
    }

    fn forward<T: Real>(&self, operands: [&[T]; 2], bias: Option<&[T]>) -> Vec<T> {
        self.run(self.direction, operands, bias, self.out.iter().product())
    }

    fn x_gradient<T: Real>(&self, [x, weight]: [&[T]; 2], grad: &[T]) -> Vec<T> {
        let back = match self.direction {
            Direction::Forward => Direction::Transposed,
            Direction::Transposed => Direction::Forward,
        };
        self.run(back, [grad, weight], None, x.len())
    }

    fn weight_gradient<T: Real>(&self, [x, weight]: [&[T]; 2], grad: &[T]) -> Vec<T> {
        let mut out = vec![T::ZERO; weight.len()];
        match self.direction {
            Direction::Forward => conv_weight_gradient(&self.shape, x, grad, &mut out),
            Direction::Transposed => conv_weight_gradient(&self.shape, grad, x, &mut out),
        }
        .expect(SETTLED);
        out
    }

    fn bias_gradient<T: Real>(&self, grad: &[T]) -> Vec<T> {
        let positions = self.out[2..].iter().product();
        let sums = channel_sums(grad, self.out[0], self.out[1], positions).expect(SETTLED);
        sums.into_iter().map(T::of).collect()
    }
}

impl Kernel<2> for Map {
    fn name(&self) -> &'static str {
        self.name
    }

    fn forward<T: Real>(&self, operands: [&[T]; 2]) -> Vec<T> {
        self.forward(operands, None)
    }

    fn backward<T: Real>(
        &self,
        operands: [&[T]; 2],
        _output: &[T],
        grad: &[T],
        [x, weight]: [bool; 2],
    ) -> [Option<Vec<T>>; 2] {
        [
            x.then(|| self.x_gradient(operands, grad)),
            weight.then(|| self.weight_gradient(operands, grad)),
        ]
    }
}

impl Kernel<3> for Map {
    fn name(&self) -> &'static str {
        self.name
    }

    fn forward<T: Real>(&self, [x, weight, bias]: [&[T]; 3]) -> Vec<T> {
        self.forward([x, weight], Some(bias))
    }

    fn backward<T: Real>(
        &self,
        [x, weight, _]: [&[T]; 3],
        _output: &[T],
        grad: &[T],
        wanted: [bool; 3],
    ) -> [Option<Vec<T>>; 3] {
        let operands = [x, weight];
        let [x, weight, bias] = wanted;
        [
            x.then(|| self.x_gradient(operands, grad)),
            weight.then(|| self.weight_gradient(operands, grad)),
            bias.then(|| self.bias_gradient(grad)),
        ]
    }
}
