//! Arithmetic of two operands, which broadcast.

mod pair;

use candle_core::Tensor;
use ff_kernels::Uniform;

use self::pair::{Pair, run, run_codes, run_then};
use super::activation::{Elementwise, Unary};
use super::codes::{CodesOf, Quantized};
use super::custom::apply;
use super::finish::Finish;
use super::real::Real;
use super::whole::{self, WholeResult};
use crate::tensor::{Error, Result};

/// The second operand of an arithmetic operator.
#[derive(Debug, Clone, Copy)]
pub enum Operand<'a> {
    /// A tensor, which broadcasts.
    Tensor(&'a Tensor),
    /// A number; it does not change the dtype of a float tensor, and makes `f32` of integers.
    Scalar(f64),
    /// A whole number, which leaves integers integers.
    Integer(i64),
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

impl From<i64> for Operand<'_> {
    fn from(integer: i64) -> Self {
        Self::Integer(integer)
    }
}

/// `x + alpha * other`
///
/// Floats of several dtypes, and integers beside floats, are converted as PyTorch does: to the wider one; `f16` beside
/// `bf16` to `f32`; a tensor without axes does not widen one that has some. Integers beside integers stay
/// integers and wrap.
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
/// Shapes that do not broadcast; operands that are not on the CPU; an `alpha` with a fraction for integers.
pub fn add<'a>(x: &Tensor, other: impl Into<Operand<'a>>, alpha: f64) -> Result<Tensor> {
    run(Add(alpha), x, other.into())
}

struct Add(f64);

impl Pair for Add {
    const NAME: &'static str = "add";
    const WHOLE: Option<fn(&Self, i64, i64) -> WholeResult> =
        Some(|add, a, b| Ok(a.wrapping_add(b.wrapping_mul(whole_alpha(add.0)?))));

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
    const WHOLE: Option<fn(&Self, i64, i64) -> WholeResult> =
        Some(|sub, a, b| Ok(a.wrapping_sub(b.wrapping_mul(whole_alpha(sub.0)?))));

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

/// Operators of two operands that there are from codes to codes, and from values to values finished in the cache.
#[derive(Clone, Copy, Debug)]
pub(crate) enum CodePair {
    /// With `alpha`.
    Add(f64),
    /// With `alpha`.
    Sub(f64),
    Mul,
    Div,
}

/// Such an operator on codes of equal shapes, as codes.
pub(crate) fn pair_codes(pair: CodePair, operands: [CodesOf<'_>; 2], to: &Uniform) -> Quantized {
    match pair {
        CodePair::Add(alpha) => run_codes(Add(alpha), operands, to),
        CodePair::Sub(alpha) => run_codes(Sub(alpha), operands, to),
        CodePair::Mul => run_codes(Mul, operands, to),
        CodePair::Div => run_codes(Div, operands, to),
    }
}

/// A second operand of [`pair_then`].
#[derive(Clone, Copy, Debug)]
pub(crate) enum ValuesOrNumber<'a> {
    /// As many as of the first.
    Values(&'a [f32]),
    Number(f64),
}

/// Such an operator on values, the results finished in the cache.
pub(crate) fn pair_then(
    pair: CodePair,
    a: &[f32],
    b: ValuesOrNumber<'_>,
    then: &Finish,
) -> Vec<f32> {
    match pair {
        CodePair::Add(alpha) => run_then(Add(alpha), a, b, then),
        CodePair::Sub(alpha) => run_then(Sub(alpha), a, b, then),
        CodePair::Mul => run_then(Mul, a, b, then),
        CodePair::Div => run_then(Div, a, b, then),
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
    const WHOLE: Option<fn(&Self, i64, i64) -> WholeResult> = Some(|_, a, b| Ok(a.wrapping_mul(b)));

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

/// The factor of [`add`] and [`sub`] for integers.
fn whole_alpha(alpha: f64) -> WholeResult {
    if alpha.fract() == 0.0 && alpha.abs() <= 9e15 {
        Ok(alpha as i64)
    } else {
        Err(format!("alpha is {alpha}; for integers it must be whole"))
    }
}

/// `x / other` rounded down; of integers an integer.
///
/// As in PyTorch the result has no gradient: a backward pass through it is an error.
///
/// # Errors
///
/// As [`add`]; an integer divided by zero.
pub fn floor_divide<'a>(x: &Tensor, other: impl Into<Operand<'a>>) -> Result<Tensor> {
    run(FloorDivide, x, other.into())
}

struct FloorDivide;

/// The quotient rounded down, as PyTorch finds it: from the exact remainder, so `1 / 0.1` in `f32` gives 9.
#[inline(always)]
fn floor_quotient<T: Real>(a: T, b: T) -> T {
    if b == T::ZERO {
        return a / b;
    }
    let rest = a.fmod(b);
    let mut quotient = (a - rest) / b;
    if rest != T::ZERO && (b < T::ZERO) != (rest < T::ZERO) {
        quotient -= T::ONE;
    }
    if quotient == T::ZERO {
        return T::ZERO.copysign(a / b);
    }
    let whole = quotient.floor();
    if quotient - whole > T::of(0.5) { whole + T::ONE } else { whole }
}

impl Pair for FloorDivide {
    const NAME: &'static str = "floor_divide";
    const DIFFERENTIABLE: bool = false;
    const WHOLE: Option<fn(&Self, i64, i64) -> WholeResult> = Some(|_, a, b| match b {
        0 => Err("an integer is divided by zero".into()),
        _ => Ok(a.wrapping_div(b) - i64::from(a.wrapping_rem(b) != 0 && (a < 0) != (b < 0))),
    });

    #[inline(always)]
    fn value<T: Real>(&self, a: T, b: T) -> T {
        floor_quotient(a, b)
    }

    #[inline(always)]
    fn by_a<T: Real>(&self, _a: T, _b: T) -> T {
        T::ZERO
    }

    #[inline(always)]
    fn by_b<T: Real>(&self, _a: T, _b: T) -> T {
        T::ZERO
    }
}

/// `x - floor(x / other) * other`: the remainder has the sign of `other`, as Python's `%`.
///
/// Its derivative by `x` is 1, by `other` minus the quotient rounded down.
///
/// # Errors
///
/// As [`add`]; an integer divided by zero.
pub fn remainder<'a>(x: &Tensor, other: impl Into<Operand<'a>>) -> Result<Tensor> {
    run(Remainder, x, other.into())
}

struct Remainder;

impl Pair for Remainder {
    const NAME: &'static str = "remainder";
    const WHOLE: Option<fn(&Self, i64, i64) -> WholeResult> = Some(|_, a, b| match b {
        0 => Err("an integer is divided by zero".into()),
        _ => {
            let rest = a.wrapping_rem(b);
            Ok(if rest != 0 && (rest < 0) != (b < 0) { rest + b } else { rest })
        }
    });

    #[inline(always)]
    fn value<T: Real>(&self, a: T, b: T) -> T {
        let rest = a.fmod(b);
        if rest != T::ZERO && (b < T::ZERO) != (rest < T::ZERO) { rest + b } else { rest }
    }

    #[inline(always)]
    fn by_a<T: Real>(&self, _a: T, _b: T) -> T {
        T::ONE
    }

    #[inline(always)]
    fn by_b<T: Real>(&self, a: T, b: T) -> T {
        -floor_quotient(a, b)
    }
}

/// `x` to the power of `exponent`, which is a tensor or a number.
///
/// Gradients at the edges are PyTorch's: an exponent of 0 gives `x` the gradient 0, and a base of 0 gives an exponent
/// that is not negative the gradient 0.
///
/// # Errors
///
/// As [`add`]; integers to a power that is a negative number.
pub fn pow<'a>(x: &Tensor, exponent: impl Into<Operand<'a>>) -> Result<Tensor> {
    match exponent.into() {
        Operand::Integer(exponent) if exponent < 0 && x.dtype().is_int() => Err(Error::operator(
            "pow",
            format!("integers are raised to {exponent}; convert them to floats first"),
        )),
        Operand::Integer(exponent) if !x.dtype().is_int() => {
            run(Pow, x, Operand::Scalar(exponent as f64))
        }
        exponent => run(Pow, x, exponent),
    }
}

struct Pow;

/// Powers that are exact, or nearly, without logarithms are computed so, as in PyTorch.
#[inline(always)]
fn power<T: Real>(a: T, b: T) -> T {
    if b == T::of(2.0) {
        a * a
    } else if b == T::ONE {
        a
    } else if b == T::of(3.0) {
        a * a * a
    } else if b == T::of(-1.0) {
        T::ONE / a
    } else if b == T::of(-2.0) {
        T::ONE / (a * a)
    } else {
        a.powf(b)
    }
}

impl Pair for Pow {
    const NAME: &'static str = "pow";
    const WHOLE: Option<fn(&Self, i64, i64) -> WholeResult> = Some(|_, a, b| {
        Ok(match (a, b) {
            (1, _) => 1,
            (-1, b) => 1 - 2 * (b & 1),
            (_, i64::MIN..0) => 0,
            (a, b) => wrapping_power(a, b),
        })
    });

    #[inline(always)]
    fn value<T: Real>(&self, a: T, b: T) -> T {
        power(a, b)
    }

    #[inline(always)]
    fn by_a<T: Real>(&self, a: T, b: T) -> T {
        if b == T::ZERO { T::ZERO } else { b * power(a, b - T::ONE) }
    }

    #[inline(always)]
    fn by_b<T: Real>(&self, a: T, b: T) -> T {
        if a == T::ZERO && b >= T::ZERO { T::ZERO } else { power(a, b) * a.ln() }
    }
}

/// By squaring; `exponent` is not negative.
fn wrapping_power(mut base: i64, mut exponent: i64) -> i64 {
    let mut power = 1i64;
    while exponent > 0 {
        if exponent & 1 == 1 {
            power = power.wrapping_mul(base);
        }
        base = base.wrapping_mul(base);
        exponent >>= 1;
    }
    power
}

/// `-x`; of unsigned integers it wraps.
///
/// # Errors
///
/// `x` is not on the CPU.
pub fn negative(x: &Tensor) -> Result<Tensor> {
    if x.dtype().is_int() {
        return whole::unary("negative", x, i64::wrapping_neg);
    }
    apply(Unary(Negative), [x], x.shape())
}

struct Negative;

impl Elementwise for Negative {
    const NAME: &'static str = "negative";

    #[inline(always)]
    fn value<T: Real>(&self, x: T) -> T {
        -x
    }

    #[inline(always)]
    fn derivative<T: Real>(&self, _x: T, _y: T) -> T {
        -T::ONE
    }
}

/// `x` itself.
///
/// # Errors
///
/// None today; the operator may refuse dtypes that are not numbers.
pub fn positive(x: &Tensor) -> Result<Tensor> {
    Ok(x.clone())
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};

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
            (|a, b| remainder(a, b), |a, b| a - (a / b).floor() * b),
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
    fn powers_are_exact_and_have_exact_gradients() {
        let base = positive(&numbers(&[3, 1, 4], 1));
        let exponent = numbers(&[2, 1], 2);
        check_gradients(&[base.clone(), exponent.clone()], |t| pow(&t[0], &t[1]));
        for (dtype, tolerance) in [(DType::F64, 1e-14), (DType::F32, 1e-6), (DType::BF16, 8e-3)] {
            let base = base.to_dtype(dtype).unwrap();
            for e in [-2.0, -1.0, 0.0, 0.5, 1.0, 2.0, 2.5, 3.0] {
                let expected: Vec<f64> = values(&base).iter().map(|x| x.powf(e)).collect();
                assert_close(&pow(&base, e).unwrap(), &expected, tolerance);
            }
        }
        for e in [-2.0, -1.0, 0.0, 0.5, 1.0, 2.0, 2.5, 3.0] {
            check_gradients(std::slice::from_ref(&base), |t| pow(&t[0], e));
        }
        check_gradients(&[numbers(&[5], 3)], |t| negative(&t[0]));
    }

    /// Values and gradients of PyTorch 2.15, `y.sum().backward()`.
    #[test]
    fn edges_are_pytorchs() {
        use candle_core::Var;
        #[track_caller]
        fn check(
            operator: impl Fn(&Tensor, &Tensor) -> Result<Tensor>,
            [a, b]: [&[f64]; 2],
            [y, da, db]: [&[f64]; 3],
        ) {
            let (a, b) = (Var::new(a, &Device::Cpu).unwrap(), Var::new(b, &Device::Cpu).unwrap());
            let result = operator(&a, &b).unwrap();
            assert_close(&result, y, 1e-15);
            let grads = result.sum_all().unwrap().backward().unwrap();
            assert_close(grads.get(&a).unwrap(), da, 1e-15);
            assert_close(grads.get(&b).unwrap(), db, 1e-15);
        }
        let (inf, nan) = (f64::INFINITY, f64::NAN);
        check(
            |a, b| pow(a, b),
            [&[2.0, 0.0, 0.0, -2.0, 0.0, -1.0], &[3.0, 0.0, 2.0, 2.0, -1.0, 0.5]],
            [
                &[8.0, 1.0, 0.0, 4.0, inf, nan],
                &[12.0, 0.0, 0.0, -4.0, -inf, nan],
                &[5.545177444479562, 0.0, 0.0, nan, -inf, nan],
            ],
        );
        check(
            |a, b| remainder(a, b),
            [&[5.0, -5.0, 5.0, -5.0, 1.0, 0.0], &[3.0, 3.0, -3.0, -3.0, inf, 0.0]],
            [&[2.0, 1.0, -1.0, -2.0, 1.0, nan], &[1.0; 6], &[-1.0, 2.0, 2.0, -1.0, 0.0, nan]],
        );
        let quotient = |a: f32, b: f32| {
            let a = Tensor::new(&[a], &Device::Cpu).unwrap();
            floor_divide(&a, f64::from(b)).unwrap().to_vec1::<f32>().unwrap()[0]
        };
        assert_eq!(quotient(1.0, 0.1), 9.0);
        assert_eq!(
            (quotient(-7.0, 2.0), quotient(7.0, -2.0), quotient(5.0, 0.0)),
            (-4.0, -4.0, f32::INFINITY)
        );
        assert!(quotient(0.0, 0.0).is_nan() && quotient(-0.0, 3.0).is_sign_negative());
        assert_eq!(quotient(-1.0, f32::INFINITY), -1.0);
        let rest =
            remainder(&Tensor::new(&[-1f32, 1.0], &Device::Cpu).unwrap(), f64::INFINITY).unwrap();
        assert_eq!(rest.to_vec1::<f32>().unwrap(), [f32::INFINITY, 1.0]);
    }

    #[test]
    fn what_has_no_derivative_refuses_a_backward_pass() {
        let v = candle_core::Var::new(&[5f32, -5.0], &Device::Cpu).unwrap();
        for y in [floor_divide(&v, 2.0), floor_divide(&v, v.as_tensor())] {
            let error = y.unwrap().sum_all().unwrap().backward().unwrap_err();
            assert_eq!(
                crate::tensor::Error::from(error).to_string(),
                "floor_divide: it has no derivative; detach its operands"
            );
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
        assert_eq!(div(&tensor((I64, 1)), &tensor((U8, 1))).unwrap().dtype(), F32);
        assert_eq!(div(&tensor((I64, 1)), 2i64).unwrap().dtype(), F32);
        assert_eq!(mul(&tensor((F16, 1)), 2i64).unwrap().dtype(), F16);
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
