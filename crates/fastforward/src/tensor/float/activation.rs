//! Functions of one element, each with its exact derivative.

use candle_core::Tensor;

use super::custom::{Kernel, apply};
use super::finish::Finish;
use super::parallel::{map, map_then};
use super::real::Real;
use crate::tensor::Result;

/// How [`gelu`] computes the normal distribution.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum GeluApproximation {
    /// By the error function.
    #[default]
    None,
    /// By a hyperbolic tangent of a cubic polynomial.
    Tanh,
}

/// A function of one element and its derivative.
///
/// Both methods must be `#[inline(always)]` and free of branches where speed matters.
pub(super) trait Elementwise: Send + Sync + 'static {
    const NAME: &'static str;
    /// Whether there is a derivative.
    const DIFFERENTIABLE: bool = true;
    fn value<T: Real>(&self, x: T) -> T;
    /// The derivative at `x`, where `y` is the value there.
    fn derivative<T: Real>(&self, x: T, y: T) -> T;
}

pub(super) struct Unary<E>(pub(super) E);

impl<E: Elementwise> Kernel<1> for Unary<E> {
    fn name(&self) -> &'static str {
        E::NAME
    }

    fn is_differentiable(&self) -> bool {
        E::DIFFERENTIABLE
    }

    fn forward<T: Real>(&self, inputs: [&[T]; 1]) -> Vec<T> {
        map(
            inputs,
            #[inline(always)]
            |[x]| self.0.value(x),
        )
    }

    fn backward<T: Real>(
        &self,
        [x]: [&[T]; 1],
        y: &[T],
        g: &[T],
        [wanted]: [bool; 1],
    ) -> [Option<Vec<T>>; 1] {
        [wanted.then(|| {
            map(
                [x, y, g],
                #[inline(always)]
                |[x, y, g]| g * self.0.derivative(x, y),
            )
        })]
    }
}

/// Declares public operators of one operand without settings.
macro_rules! elementwise {
    ($($(#[$doc:meta])* $name:ident = $kernel:ident, |$x:ident| $value:expr, |$dx:ident, $dy:ident| $derivative:expr;)*) => {$(
        struct $kernel;

        impl Elementwise for $kernel {
            const NAME: &'static str = stringify!($name);

            #[inline(always)]
            fn value<T: Real>(&self, $x: T) -> T {
                $value
            }

            #[inline(always)]
            fn derivative<T: Real>(&self, $dx: T, $dy: T) -> T {
                $derivative
            }
        }

        $(#[$doc])*
        ///
        /// # Errors
        ///
        /// `x` does not hold floats, or is not on the CPU.
        pub fn $name(x: &Tensor) -> Result<Tensor> {
            apply(Unary($kernel), [x], x.shape())
        }
    )*

        /// The operator of this name on values, its results finished in the cache; `None` for one that is not in this list.
        pub(crate) fn elementwise_then(name: &str, x: &[f32], then: &Finish) -> Option<Vec<f32>> {
            match name {
                $(stringify!($name) => Some(map_and_finish(&$kernel, x, then)),)*
                _ => None,
            }
        }
    };
}

/// A function of each element, its results finished in the cache.
pub(super) fn map_and_finish<E: Elementwise>(f: &E, x: &[f32], then: &Finish) -> Vec<f32> {
    map_then(
        [x],
        #[inline(always)]
        |[x]| f.value(x),
        #[inline(always)]
        |results| then.block(results),
    )
}

elementwise! {
    /// `max(x, 0)`; NaN stays NaN. The derivative at 0 is 0.
    ///
    /// ```
    /// use candle_core::{Device, Tensor};
    /// use fastforward::tensor::float;
    ///
    /// let x = Tensor::new(&[-1.0f32, 0.0, 2.0], &Device::Cpu)?;
    /// assert_eq!(float::relu(&x)?.to_vec1::<f32>()?, [0.0, 0.0, 2.0]);
    /// # Ok::<(), fastforward::tensor::Error>(())
    /// ```
    relu = Relu,
        |x| x.larger(T::ZERO),
        |_x, y| if y <= T::ZERO { T::ZERO } else { T::ONE };

    /// `min(max(x, 0), 6)`; NaN stays NaN. The derivative at 0 and 6 is 0.
    relu6 = Relu6,
        |x| if x > T::of(6.0) { T::of(6.0) } else { x.larger(T::ZERO) },
        |x, _y| if x <= T::ZERO || x >= T::of(6.0) { T::ZERO } else { T::ONE };

    /// `1 / (1 + exp(-x))`
    sigmoid = Sigmoid, |x| x.sigmoid(), |_x, y| y * (T::ONE - y);

    /// The hyperbolic tangent.
    tanh = Tanh, |x| x.tanh(), |_x, y| T::ONE - y * y;

    /// `x * sigmoid(x)`
    silu = Silu,
        |x| x / (T::ONE + (-x).exp()),
        |x, _y| {
            let s = x.sigmoid();
            s * (T::ONE + x * (T::ONE - s))
        };

    /// `x * relu6(x + 3) / 6`. The derivative is 0 at -3 and 1 at 3.
    hardswish = HardSwish,
        |x| {
            let t = x + T::of(3.0);
            let t = if t > T::of(6.0) { T::of(6.0) } else { t.larger(T::ZERO) };
            x * t / T::of(6.0)
        },
        |x, _y| {
            let middle = x / T::of(3.0) + T::of(0.5);
            let right = if x >= T::of(3.0) { T::ONE } else { middle };
            if x <= T::of(-3.0) { T::ZERO } else { right }
        };

    /// `relu6(x + 3) / 6`. The derivative at -3 and 3 is 0.
    hardsigmoid = HardSigmoid,
        |x| {
            let t = x + T::of(3.0);
            let t = if t > T::of(6.0) { T::of(6.0) } else { t.larger(T::ZERO) };
            t / T::of(6.0)
        },
        |x, _y| if x > T::of(-3.0) && x < T::of(3.0) { T::of(1.0 / 6.0) } else { T::ZERO };

    /// `e^x`
    exp = Exp, |x| x.exp(), |_x, y| y;

    /// The sine of an angle in radians.
    sin = Sin, |x| x.sin_cos().0, |x, _y| x.sin_cos().1;

    /// The cosine of an angle in radians.
    cos = Cos, |x| x.sin_cos().1, |x, _y| -x.sin_cos().0;

    /// The square root; NaN of negative numbers. The derivative at 0 is infinite.
    sqrt = Sqrt, |x| x.sqrt(), |_x, y| T::of(0.5) / y;

    /// `1 / sqrt(x)`
    rsqrt = Rsqrt, |x| T::ONE / x.sqrt(), |_x, y| T::of(-0.5) * y * y * y;
}

/// `x` where it is positive, else `negative_slope * x`; the derivative at 0 is `negative_slope`.
///
/// # Errors
///
/// `x` does not hold floats, or is not on the CPU.
pub fn leaky_relu(x: &Tensor, negative_slope: f64) -> Result<Tensor> {
    apply(Unary(LeakyRelu(negative_slope)), [x], x.shape())
}

struct LeakyRelu(f64);

impl Elementwise for LeakyRelu {
    const NAME: &'static str = "leaky_relu";

    #[inline(always)]
    fn value<T: Real>(&self, x: T) -> T {
        if x > T::ZERO { x } else { x * T::of(self.0) }
    }

    #[inline(always)]
    fn derivative<T: Real>(&self, x: T, _y: T) -> T {
        if x > T::ZERO { T::ONE } else { T::of(self.0) }
    }
}

/// `x Φ(x)`, where `Φ` is the distribution function of the standard normal distribution.
///
/// With [`GeluApproximation::Tanh`] it is `x/2 (1 + tanh(sqrt(2/π) (x + 0.044715 x³)))`
/// (Hendrycks and Gimpel, "Gaussian Error Linear Units", 2016).
///
/// ```
/// use candle_core::{Device, Tensor};
/// use fastforward::tensor::float::{GeluApproximation, gelu};
///
/// let x = Tensor::new(&[-1.0f32, 0.0, 1.0], &Device::Cpu)?;
/// let y = gelu(&x, GeluApproximation::None)?.to_vec1::<f32>()?;
/// assert!((y[2] - 0.841_344_7).abs() < 1e-6 && y[1] == 0.0);
/// # Ok::<(), fastforward::tensor::Error>(())
/// ```
///
/// # Errors
///
/// `x` does not hold floats, or is not on the CPU.
pub fn gelu(x: &Tensor, approximation: GeluApproximation) -> Result<Tensor> {
    match approximation {
        GeluApproximation::None => apply(Unary(Gelu), [x], x.shape()),
        GeluApproximation::Tanh => apply(Unary(GeluTanh), [x], x.shape()),
    }
}

struct Gelu;

impl Gelu {
    #[inline(always)]
    fn distribution<T: Real>(x: T) -> T {
        T::of(0.5) * (T::ONE + (x * T::of(std::f64::consts::FRAC_1_SQRT_2)).erf())
    }
}

impl Elementwise for Gelu {
    const NAME: &'static str = "gelu";

    #[inline(always)]
    fn value<T: Real>(&self, x: T) -> T {
        x * Self::distribution(x)
    }

    #[inline(always)]
    fn derivative<T: Real>(&self, x: T, _y: T) -> T {
        // 1 / sqrt(2π)
        const HEIGHT: f64 = 0.398_942_280_401_432_7;
        let density = (x * x * T::of(-0.5)).exp() * T::of(HEIGHT);
        Self::distribution(x) + x * density
    }
}

struct GeluTanh;

// sqrt(2/π)
const SLOPE: f64 = 0.797_884_560_802_865_4;
const CUBIC: f64 = 0.044_715;

impl Elementwise for GeluTanh {
    const NAME: &'static str = "gelu";

    #[inline(always)]
    fn value<T: Real>(&self, x: T) -> T {
        let inner = T::of(SLOPE) * (x + T::of(CUBIC) * x * x * x);
        T::of(0.5) * x * (T::ONE + inner.tanh())
    }

    #[inline(always)]
    fn derivative<T: Real>(&self, x: T, _y: T) -> T {
        let t = (T::of(SLOPE) * (x + T::of(CUBIC) * x * x * x)).tanh();
        let inner = T::of(SLOPE) * (T::ONE + T::of(3.0 * CUBIC) * x * x);
        T::of(0.5) * (T::ONE + t) + T::of(0.5) * x * (T::ONE - t * t) * inner
    }
}

/// `x` limited to `[min, max]`; NaN stays NaN. The derivative is 1 inside and at the bounds, 0 outside.
///
/// Where `min > max`, every element becomes `max`. A bound that is `None` does not limit.
///
/// # Errors
///
/// `x` does not hold floats, or is not on the CPU; both bounds are missing.
pub fn clamp(x: &Tensor, min: Option<f64>, max: Option<f64>) -> Result<Tensor> {
    if min.is_none() && max.is_none() {
        return Err(crate::tensor::Error::operator("clamp", "neither min nor max is given"));
    }
    let bounds = Clamp { min: min.unwrap_or(f64::NEG_INFINITY), max: max.unwrap_or(f64::INFINITY) };
    apply(Unary(bounds), [x], x.shape())
}

struct Clamp {
    min: f64,
    max: f64,
}

impl Elementwise for Clamp {
    const NAME: &'static str = "clamp";

    #[inline(always)]
    fn value<T: Real>(&self, x: T) -> T {
        let (min, max) = (T::of(self.min), T::of(self.max));
        let x = if x < min { min } else { x };
        if x > max { max } else { x }
    }

    #[inline(always)]
    fn derivative<T: Real>(&self, x: T, _y: T) -> T {
        if x >= T::of(self.min) && x <= T::of(self.max) { T::ONE } else { T::ZERO }
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device, Var};

    use super::super::testing::*;
    use super::*;

    type Operator = fn(&Tensor) -> Result<Tensor>;
    type Twin = fn(f64) -> f64;

    /// Every operator with its definition on one number.
    fn operators() -> Vec<(&'static str, Operator, Twin)> {
        fn logistic(x: f64) -> f64 {
            1.0 / (1.0 + (-x).exp())
        }
        fn hard(x: f64) -> f64 {
            (x + 3.0).clamp(0.0, 6.0) / 6.0
        }
        vec![
            ("relu", relu, |x| x.max(0.0)),
            ("relu6", relu6, |x| x.clamp(0.0, 6.0)),
            ("sigmoid", sigmoid, logistic),
            ("tanh", tanh, f64::tanh),
            ("silu", silu, |x| x * logistic(x)),
            ("hardswish", hardswish, |x| x * hard(x)),
            ("hardsigmoid", hardsigmoid, hard),
            ("exp", exp, f64::exp),
            ("sin", sin, f64::sin),
            ("cos", cos, f64::cos),
            ("leaky_relu", |x| leaky_relu(x, 0.1), |x| if x > 0.0 { x } else { 0.1 * x }),
            (
                "gelu",
                |x| gelu(x, GeluApproximation::None),
                |x| 0.5 * x * candle_core::cpu::erf::erfc_f64(-x * std::f64::consts::FRAC_1_SQRT_2),
            ),
            (
                "gelu tanh",
                |x| gelu(x, GeluApproximation::Tanh),
                |x| {
                    let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3));
                    0.5 * x * (1.0 + inner.tanh())
                },
            ),
            ("clamp", |x| clamp(x, Some(-1.5), Some(2.5)), |x| x.clamp(-1.5, 2.5)),
            ("clamp min", |x| clamp(x, Some(-1.5), None), |x| x.max(-1.5)),
        ]
    }

    #[test]
    fn operators_equal_their_definition_in_every_dtype() {
        for (dtype, tolerance) in
            [(DType::F64, 1e-14), (DType::F32, 3e-7), (DType::F16, 1e-3), (DType::BF16, 8e-3)]
        {
            // More than one block of the loop, and a part of one.
            let x = (numbers(&[3, 211], 1) * 4.0).unwrap().to_dtype(dtype).unwrap();
            for (name, operator, twin) in operators() {
                let expected: Vec<f64> = values(&x).into_iter().map(twin).collect();
                for x in [x.clone(), strided(&x)] {
                    let y = operator(&x).unwrap();
                    assert_eq!((y.dims(), y.dtype()), (x.dims(), dtype), "{name}");
                    assert_close(&y, &expected, tolerance);
                }
            }
            let x = (x.sqr().unwrap() + 0.1).unwrap();
            let expected: Vec<f64> = values(&x).into_iter().map(f64::sqrt).collect();
            assert_close(&sqrt(&x).unwrap(), &expected, tolerance);
            let expected: Vec<f64> = expected.iter().map(|y| 1.0 / y).collect();
            assert_close(&rsqrt(&x).unwrap(), &expected, tolerance);
        }
    }

    #[test]
    fn operators_have_exact_gradients() {
        // Away from the kinks, where differences mean nothing.
        let x = [(numbers(&[5, 7], 1) * 2.2).unwrap()];
        for (_, operator, _) in operators() {
            check_gradients(&x, |t| operator(&t[0]));
        }
        let x = [(x[0].sqr().unwrap() + 0.5).unwrap()];
        check_gradients(&x, |t| sqrt(&t[0]));
        check_gradients(&x, |t| rsqrt(&t[0]));
    }

    /// The gradients of f32 come from other code than those of f64.
    #[test]
    fn gradients_in_f32_are_those_in_f64() {
        let x = (numbers(&[700], 1) * 3.0).unwrap().to_dtype(DType::F32).unwrap();
        for (name, operator, _) in operators() {
            let grad = |dtype| {
                let v = Var::from_tensor(&x.to_dtype(dtype).unwrap()).unwrap();
                let grads = operator(&v).unwrap().sum_all().unwrap().backward().unwrap();
                values(grads.get(&v).unwrap())
            };
            for (a, b) in grad(DType::F32).into_iter().zip(grad(DType::F64)) {
                assert!((a - b).abs() <= 2e-6 * (1.0 + b.abs()), "{name}: {a}, expected {b}");
            }
        }
    }

    #[track_caller]
    fn check_gradient_at(operator: impl Fn(&Tensor) -> Result<Tensor>, cases: &[(f32, f32)]) {
        let (x, expected): (Vec<f32>, Vec<f32>) = cases.iter().copied().unzip();
        let v = Var::new(x, &Device::Cpu).unwrap();
        let grads = operator(&v).unwrap().sum_all().unwrap().backward().unwrap();
        assert_eq!(grads.get(&v).unwrap().to_vec1::<f32>().unwrap(), expected);
    }

    #[test]
    fn gradients_at_kinks_are_pytorchs() {
        let nan = f32::NAN;
        check_gradient_at(relu, &[(-1.0, 0.0), (0.0, 0.0), (-0.0, 0.0), (1.0, 1.0), (nan, 1.0)]);
        check_gradient_at(relu6, &[(0.0, 0.0), (3.0, 1.0), (6.0, 0.0), (7.0, 0.0), (nan, 1.0)]);
        check_gradient_at(|x| leaky_relu(x, 0.5), &[(0.0, 0.5), (1.0, 1.0)]);
        check_gradient_at(
            hardswish,
            &[(-4.0, 0.0), (-3.0, 0.0), (0.0, 0.5), (3.0, 1.0), (4.0, 1.0)],
        );
        check_gradient_at(hardsigmoid, &[(-3.0, 0.0), (3.0, 0.0)]);
        check_gradient_at(
            |x| clamp(x, Some(-1.0), Some(1.0)),
            &[(-2.0, 0.0), (-1.0, 1.0), (0.0, 1.0), (1.0, 1.0), (2.0, 0.0)],
        );
        check_gradient_at(sqrt, &[(0.0, f32::INFINITY), (4.0, 0.25)]);
    }

    #[test]
    fn special_values_are_pytorchs() {
        let inf = f32::INFINITY;
        let x = Tensor::new(&[-inf, -100.0, -0.0, 100.0, inf, f32::NAN], &Device::Cpu).unwrap();
        let check =
            |y: Result<Tensor>, expected: [f64; 6]| assert_close(&y.unwrap(), &expected, 0.0);
        let (nan, inf) = (f64::NAN, f64::INFINITY);
        check(relu(&x), [0.0, 0.0, 0.0, 100.0, inf, nan]);
        check(relu6(&x), [0.0, 0.0, 0.0, 6.0, 6.0, nan]);
        check(silu(&x), [nan, 0.0, 0.0, 100.0, inf, nan]);
        check(sigmoid(&x), [0.0, 0.0, 0.5, 1.0, 1.0, nan]);
        check(exp(&x), [0.0, f64::from((-100f32).exp()), 1.0, inf, inf, nan]);
        check(tanh(&x), [-1.0, -1.0, 0.0, 1.0, 1.0, nan]);
        check(clamp(&x, Some(2.0), Some(1.0)), [1.0, 1.0, 1.0, 1.0, 1.0, nan]);
        check(sqrt(&x), [nan, nan, 0.0, 10.0, inf, nan]);
        let zero = sin(&Tensor::new(&[-0f32], &Device::Cpu).unwrap()).unwrap();
        assert!(zero.to_vec1::<f32>().unwrap()[0].is_sign_negative());
    }

    #[test]
    fn what_is_no_float_is_refused() {
        let codes = Tensor::new(&[1i64, 2], &Device::Cpu).unwrap();
        assert_eq!(
            relu(&codes).unwrap_err().to_string(),
            "relu: an operand has dtype i64; it works on f32, f64, f16 and bf16"
        );
        let x = numbers(&[2], 1);
        assert_eq!(
            clamp(&x, None, None).unwrap_err().to_string(),
            "clamp: neither min nor max is given"
        );
    }

    #[test]
    fn nothing_is_kept_where_nothing_tracks() {
        let x = numbers(&[4], 1);
        assert!(!gelu(&x, GeluApproximation::None).unwrap().track_op());
        let empty = Tensor::zeros((0, 3), DType::F32, &Device::Cpu).unwrap();
        assert_eq!(relu(&empty).unwrap().dims(), [0, 3]);
    }
}
