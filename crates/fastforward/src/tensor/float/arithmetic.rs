//! Arithmetic of two operands, which broadcast.

use candle_core::{DType, Tensor};

use super::activation::{Elementwise, Unary};
use super::broadcast::Broadcast;
use super::custom::{Kernel, apply, check_cpu, is_float};
use super::real::Real;
use super::shape::broadcast_shape;
use crate::tensor::{Error, Result};

/// The second operand of an arithmetic operator.
#[derive(Debug, Clone, Copy)]
pub enum Operand<'a> {
    /// A tensor, which broadcasts.
    Tensor(&'a Tensor),
    /// A number; it does not change the dtype of a float tensor.
    Scalar(f64),
}

impl<'a> From<&'a Tensor> for Operand<'a> {
    fn from(tensor: &'a Tensor) -> Self {
        Self::Tensor(tensor)
    }
}

impl From<f64> for Operand<'_> {
    fn from(scalar: f64) -> Self {
        Self::Scalar(scalar)
    }
}

/// A function of two elements and its derivatives, all `#[inline(always)]`.
trait Pair: Send + Sync + 'static {
    const NAME: &'static str;
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

    #[inline(always)]
    fn value<T: Real>(&self, x: T) -> T {
        self.0.value(x, T::of(self.1))
    }

    #[inline(always)]
    fn derivative<T: Real>(&self, x: T, _y: T) -> T {
        self.0.by_a(x, T::of(self.1))
    }
}

fn run<P: Pair>(pair: P, a: &Tensor, b: Operand<'_>) -> Result<Tensor> {
    match b {
        Operand::Scalar(b) => {
            let a = to_float(P::NAME, a)?;
            apply(Unary(WithScalar(pair, b)), [&a], a.shape())
        }
        Operand::Tensor(b) => {
            let (a, b) = promote(P::NAME, a, b)?;
            let shape = broadcast_shape(P::NAME, &a, &b)?;
            let broadcast = Broadcast::new(a.dims(), b.dims(), shape.dims());
            apply(Binary { pair, broadcast }, [&a, &b], shape)
        }
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
        (false, false) => {
            return Err(Error::operator(
                operator,
                format!(
                    "the operands have dtypes {} and {}; one must be f32, f64, f16 or bf16",
                    x.as_str(),
                    y.as_str()
                ),
            ));
        }
    };
    Ok((a.to_dtype(to)?, b.to_dtype(to)?))
}

/// `x + alpha * other`
///
/// Floats of several dtypes, and integers beside floats, are converted as PyTorch does: to the wider one; `f16` beside
/// `bf16` to `f32`; a tensor without axes does not widen one that has some.
///
/// ```
/// use candle_core::{Device, Tensor};
/// use fastforward::tensor::float::add;
///
/// let x = Tensor::new(&[[1.0f32, 2.0], [3.0, 4.0]], &Device::Cpu)?;
/// let row = Tensor::new(&[10.0f32, 20.0], &Device::Cpu)?;
/// assert_eq!(add(&x, &row, 1.0)?.to_vec2::<f32>()?, [[11.0, 22.0], [13.0, 24.0]]);
/// assert_eq!(add(&row, 1.0, 2.0)?.to_vec1::<f32>()?, [12.0, 22.0]);
/// # Ok::<(), fastforward::tensor::Error>(())
/// ```
///
/// # Errors
///
/// Shapes that do not broadcast; operands of which none holds floats, or that are not on the CPU.
pub fn add<'a>(x: &Tensor, other: impl Into<Operand<'a>>, alpha: f64) -> Result<Tensor> {
    run(Add(alpha), x, other.into())
}

struct Add(f64);

impl Pair for Add {
    const NAME: &'static str = "add";

    #[inline(always)]
    fn value<T: Real>(&self, a: T, b: T) -> T {
        a + b * T::of(self.0)
    }

    #[inline(always)]
    fn by_a<T: Real>(&self, _a: T, _b: T) -> T {
        T::ONE
    }

    #[inline(always)]
    fn by_b<T: Real>(&self, _a: T, _b: T) -> T {
        T::of(self.0)
    }
}

/// `x - alpha * other`; see [`add`].
///
/// # Errors
///
/// As [`add`].
pub fn sub<'a>(x: &Tensor, other: impl Into<Operand<'a>>, alpha: f64) -> Result<Tensor> {
    run(Sub(alpha), x, other.into())
}

struct Sub(f64);

impl Pair for Sub {
    const NAME: &'static str = "sub";

    #[inline(always)]
    fn value<T: Real>(&self, a: T, b: T) -> T {
        a - b * T::of(self.0)
    }

    #[inline(always)]
    fn by_a<T: Real>(&self, _a: T, _b: T) -> T {
        T::ONE
    }

    #[inline(always)]
    fn by_b<T: Real>(&self, _a: T, _b: T) -> T {
        -T::of(self.0)
    }
}

/// `x * other`; dtypes as in [`add`].
///
/// # Errors
///
/// As [`add`].
pub fn mul<'a>(x: &Tensor, other: impl Into<Operand<'a>>) -> Result<Tensor> {
    run(Mul, x, other.into())
}

struct Mul;

impl Pair for Mul {
    const NAME: &'static str = "mul";

    #[inline(always)]
    fn value<T: Real>(&self, a: T, b: T) -> T {
        a * b
    }

    #[inline(always)]
    fn by_a<T: Real>(&self, _a: T, b: T) -> T {
        b
    }

    #[inline(always)]
    fn by_b<T: Real>(&self, a: T, _b: T) -> T {
        a
    }
}

/// `x / other`; dtypes as in [`add`].
///
/// # Errors
///
/// As [`add`].
pub fn div<'a>(x: &Tensor, other: impl Into<Operand<'a>>) -> Result<Tensor> {
    run(Div, x, other.into())
}

struct Div;

impl Pair for Div {
    const NAME: &'static str = "div";

    #[inline(always)]
    fn value<T: Real>(&self, a: T, b: T) -> T {
        a / b
    }

    #[inline(always)]
    fn by_a<T: Real>(&self, _a: T, b: T) -> T {
        T::ONE / b
    }

    #[inline(always)]
    fn by_b<T: Real>(&self, a: T, b: T) -> T {
        -(a / b / b)
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::super::testing::*;
    use super::*;

    type Operator = fn(&Tensor, Operand<'_>) -> Result<Tensor>;
    type Twin = fn(f64, f64) -> f64;

    fn operators() -> Vec<(Operator, Twin)> {
        vec![
            (|a, b| add(a, b, 1.0), |a, b| a + b),
            (|a, b| add(a, b, -2.5), |a, b| a - 2.5 * b),
            (|a, b| sub(a, b, 0.5), |a, b| a - 0.5 * b),
            (|a, b| mul(a, b), |a, b| a * b),
            (|a, b| div(a, b), |a, b| a / b),
        ]
    }

    /// Shapes that meet in every way: equal, one element, rows, columns, both sides repeated.
    const SHAPES: [(&[usize], &[usize]); 10] = [
        (&[3, 4], &[3, 4]),
        (&[], &[3]),
        (&[2, 3], &[]),
        (&[2, 3, 4], &[4]),
        (&[2, 3, 4], &[3, 1]),
        (&[4], &[2, 3, 4]),
        (&[2, 1, 4], &[3, 1]),
        (&[2, 1, 4, 1], &[1, 3, 1, 5]),
        (&[1, 1], &[2, 2]),
        (&[2, 3, 2, 2], &[1, 3, 1, 1]),
    ];

    fn positive(x: &Tensor) -> Tensor {
        (x.sqr().unwrap() + 0.5).unwrap()
    }

    #[test]
    fn operands_broadcast_as_candles_do() {
        for (dtype, tolerance) in
            [(DType::F64, 1e-14), (DType::F32, 2e-7), (DType::F16, 1e-3), (DType::BF16, 8e-3)]
        {
            for (a, b) in SHAPES {
                let (a, b) = (numbers(a, 1), positive(&numbers(b, 2)));
                let (a, b) = (a.to_dtype(dtype).unwrap(), b.to_dtype(dtype).unwrap());
                let shape = a.shape().broadcast_shape_binary_op(b.shape(), "test").unwrap();
                let wide = |x: &Tensor| values(&x.broadcast_as(shape.clone()).unwrap());
                for (operator, twin) in operators() {
                    let expected: Vec<f64> =
                        wide(&a).into_iter().zip(wide(&b)).map(|(a, b)| twin(a, b)).collect();
                    for (a, b) in [(a.clone(), b.clone()), (strided(&a), strided(&b))] {
                        let y = operator(&a, (&b).into()).unwrap();
                        assert_eq!((y.dims(), y.dtype()), (shape.dims(), dtype));
                        assert_close(&y, &expected, tolerance);
                    }
                    let expected: Vec<f64> =
                        values(&a).into_iter().map(|a| twin(a, 0.75)).collect();
                    assert_close(&operator(&a, 0.75.into()).unwrap(), &expected, tolerance);
                }
            }
        }
    }

    #[test]
    fn both_operands_have_exact_gradients() {
        for (operator, _) in operators() {
            for (a, b) in SHAPES {
                let inputs = [numbers(a, 1), positive(&numbers(b, 2))];
                check_gradients(&inputs, |t| operator(&t[0], (&t[1]).into()));
            }
            check_gradients(&[numbers(&[3, 2], 1)], |t| operator(&t[0], 1.5.into()));
        }
    }

    #[test]
    fn an_operand_may_be_both() {
        let v = candle_core::Var::new(&[1f32, 2.0, 3.0], &Device::Cpu).unwrap();
        let y = mul(&v, v.as_tensor()).unwrap();
        let grads = y.sum_all().unwrap().backward().unwrap();
        assert_close(grads.get(&v).unwrap(), &[2.0, 4.0, 6.0], 0.0);
    }

    #[test]
    fn dtypes_are_promoted_as_in_pytorch() {
        use DType::{BF16, F16, F32, F64, I64, U8};
        let cases = [
            ((F16, 1), (BF16, 1), F32),
            ((F32, 1), (BF16, 1), F32),
            ((F32, 1), (F64, 1), F64),
            ((F32, 1), (F64, 0), F32),
            ((F64, 0), (F16, 1), F16),
            ((F64, 0), (F16, 0), F64),
            ((I64, 1), (F16, 1), F16),
            ((F32, 1), (U8, 1), F32),
        ];
        let tensor = |(dtype, rank): (DType, usize)| {
            Tensor::ones(&[2][..rank], DType::F32, &Device::Cpu).unwrap().to_dtype(dtype).unwrap()
        };
        for (a, b, expected) in cases {
            let y = add(&tensor(a), &tensor(b), 1.0).unwrap();
            assert_eq!(y.dtype(), expected, "{a:?} {b:?}");
            assert_eq!(values(&y)[0], 2.0);
        }
        assert_eq!(add(&tensor((I64, 1)), 0.5, 1.0).unwrap().dtype(), F32);
    }

    #[test]
    fn any_number_of_threads_gives_the_same_bytes() {
        let x = numbers(&[700, 300], 1).to_dtype(DType::F32).unwrap();
        let row = numbers(&[300], 2).to_dtype(DType::F32).unwrap();
        check_threads(|| {
            let (x, row) = (
                candle_core::Var::from_tensor(&x).unwrap(),
                candle_core::Var::from_tensor(&row).unwrap(),
            );
            let y = mul(&x, row.as_tensor()).unwrap();
            let grads = mul(&y, &y).unwrap().sum_all().unwrap().backward().unwrap();
            [bits(&y), bits(grads.get(&x).unwrap()), bits(grads.get(&row).unwrap())].concat()
        });
    }

    #[test]
    fn errors_name_what_is_wrong() {
        let message = |r: Result<Tensor>| r.unwrap_err().to_string();
        assert_eq!(
            message(add(&numbers(&[2, 3], 1), &numbers(&[2], 1), 1.0)),
            "add: the operands have shapes [2, 3] and [2], which do not broadcast: aligned at the end, axes must be \
             equal or 1"
        );
    }
}
