//! Operators of two operands from a function of two elements.

use candle_core::{DType, Tensor};
use ff_kernels::Uniform;

use super::super::activation::{Elementwise, Unary, map_and_finish};
use super::super::broadcast::Broadcast;
use super::super::codes::{CodesOf, ELEMENTS, Quantized, quantize_rows};
use super::super::custom::{Kernel, apply, check_cpu, is_float};
use super::super::finish::Finish;
use super::super::parallel::map_then;
use super::super::real::Real;
use super::super::shape::broadcast_shape;
use super::super::whole::{self, WholeResult};
use super::{Operand, ValuesOrNumber};
use crate::tensor::Result;

/// A function of two elements and its derivatives, all `#[inline(always)]`.
pub(super) trait Pair: Send + Sync + 'static {
    const NAME: &'static str;
    /// Whether there are derivatives.
    const DIFFERENTIABLE: bool = true;
    /// The function of two integers; `None` if integers are converted to floats first.
    const WHOLE: Option<fn(&Self, i64, i64) -> WholeResult> = None;
    fn value<T: Real>(&self, a: T, b: T) -> T;
    fn by_a<T: Real>(&self, a: T, b: T) -> T;
    fn by_b<T: Real>(&self, a: T, b: T) -> T;
}

struct Binary<P> {
    pair: P,
    broadcast: Broadcast,
}

impl<P: Pair> Kernel<2> for Binary<P> {
    fn name(&self) -> &'static str {
        P::NAME
    }

    fn is_differentiable(&self) -> bool {
        P::DIFFERENTIABLE
    }

    fn forward<T: Real>(&self, [a, b]: [&[T]; 2]) -> Vec<T> {
        self.broadcast.zip(
            a,
            b,
            #[inline(always)]
            |a, b| self.pair.value(a, b),
        )
    }

    fn backward<T: Real>(
        &self,
        [a, b]: [&[T]; 2],
        _y: &[T],
        g: &[T],
        [a_wanted, b_wanted]: [bool; 2],
    ) -> [Option<Vec<T>>; 2] {
        let a_grad = a_wanted.then(|| {
            self.broadcast.reduce_to_a(self.broadcast.zip_with(
                a,
                b,
                g,
                #[inline(always)]
                |a, b, g| g * self.pair.by_a(a, b),
            ))
        });
        let b_grad = b_wanted.then(|| {
            self.broadcast.reduce_to_b(self.broadcast.zip_with(
                a,
                b,
                g,
                #[inline(always)]
                |a, b, g| g * self.pair.by_b(a, b),
            ))
        });
        [a_grad, b_grad]
    }
}

/// A pair whose second operand is a number.
struct WithScalar<P>(P, f64);

impl<P: Pair> Elementwise for WithScalar<P> {
    const NAME: &'static str = P::NAME;
    const DIFFERENTIABLE: bool = P::DIFFERENTIABLE;

    #[inline(always)]
    fn value<T: Real>(&self, x: T) -> T {
        self.0.value(x, T::of(self.1))
    }

    #[inline(always)]
    fn derivative<T: Real>(&self, x: T, _y: T) -> T {
        self.0.by_a(x, T::of(self.1))
    }
}

/// The operator of a pair: on integers if both operands are and the pair has a function of integers, else on floats.
pub(super) fn run<P: Pair>(pair: P, a: &Tensor, b: Operand<'_>) -> Result<Tensor> {
    let with_scalar = |pair, scalar| {
        let a = to_float(P::NAME, a)?;
        apply(Unary(WithScalar(pair, scalar)), [&a], a.shape())
    };
    match (b, P::WHOLE) {
        (Operand::Scalar(b), _) => with_scalar(pair, b),
        (Operand::Integer(b), Some(f)) if a.dtype().is_int() => {
            whole::binary(P::NAME, a, &Tensor::new(b, a.device())?, |a, b| f(&pair, a, b))
        }
        (Operand::Integer(b), _) => with_scalar(pair, b as f64),
        (Operand::Tensor(b), Some(f)) if a.dtype().is_int() && b.dtype().is_int() => {
            whole::binary(P::NAME, a, b, |a, b| f(&pair, a, b))
        }
        (Operand::Tensor(b), _) => {
            let (a, b) = promote(P::NAME, a, b)?;
            let shape = broadcast_shape(P::NAME, &a, &b)?;
            let broadcast = Broadcast::new(a.dims(), b.dims(), shape.dims());
            apply(Binary { pair, broadcast }, [&a, &b], shape)
        }
    }
}

/// The operator of a pair on codes of equal shapes, as codes.
pub(super) fn run_codes<P: Pair>(pair: P, operands: [CodesOf<'_>; 2], to: &Uniform) -> Quantized {
    quantize_rows(
        operands,
        ELEMENTS,
        to,
        #[inline(always)]
        |_, [a, b], out| {
            for ((out, &a), &b) in out.iter_mut().zip(a).zip(b) {
                *out = pair.value(a, b);
            }
        },
    )
}

/// The same on values of equal shapes, the results finished in the cache.
pub(super) fn run_then<P: Pair>(
    pair: P,
    a: &[f32],
    b: ValuesOrNumber<'_>,
    then: &Finish,
) -> Vec<f32> {
    match b {
        ValuesOrNumber::Values(b) => map_then(
            [a, b],
            #[inline(always)]
            |[a, b]| pair.value(a, b),
            #[inline(always)]
            |results| then.block(results),
        ),
        ValuesOrNumber::Number(b) => map_and_finish(&WithScalar(pair, b), a, then),
    }
}

/// The tensor itself if it holds floats; integers become `f32`, PyTorch's default.
fn to_float(operator: &str, x: &Tensor) -> Result<Tensor> {
    check_cpu(operator, x)?;
    Ok(if is_float(x.dtype()) { x.clone() } else { x.to_dtype(DType::F32)? })
}

/// Both operands in the dtype that PyTorch computes in, if that is a float type.
fn promote(operator: &str, a: &Tensor, b: &Tensor) -> Result<(Tensor, Tensor)> {
    check_cpu(operator, a)?;
    check_cpu(operator, b)?;
    let (x, y) = (a.dtype(), b.dtype());
    let to = match (is_float(x), is_float(y)) {
        (true, true) if x == y => return Ok((a.clone(), b.clone())),
        // A tensor without axes does not widen one that has some.
        (true, true) if a.rank() == 0 && b.rank() > 0 => y,
        (true, true) if b.rank() == 0 && a.rank() > 0 => x,
        (true, true) if x == DType::F64 || y == DType::F64 => DType::F64,
        (true, true) => DType::F32,
        (true, false) => x,
        (false, true) => y,
        (false, false) => DType::F32,
    };
    Ok((a.to_dtype(to)?, b.to_dtype(to)?))
}
