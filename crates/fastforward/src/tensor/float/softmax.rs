//! Softmax and its logarithm along one axis.

use candle_core::{DType, Tensor};
use ff_kernels::Uniform;

use super::codes::{CodesOf, Quantized, quantize_rows};
use super::custom::{Kernel, apply};
use super::finish::Finish;
use super::parallel::{fill_rows, max_of, sum_of};
use super::real::Real;
use super::shape::{Around, axis, check_float};
use crate::tensor::{Error, Result};

/// `exp(x_i) / Σ_j exp(x_j)` along `dim`, in `dtype` if one is given.
///
/// The largest element is subtracted first, so nothing overflows. A row of minus infinities gives NaN, as in PyTorch.
///
/// ```
/// use candle_core::{Device, Tensor};
/// use fastforward::tensor::float::softmax;
///
/// let x = Tensor::new(&[[0.0f32, 0.0], [1000.0, 0.0]], &Device::Cpu)?;
/// assert_eq!(softmax(&x, -1, None)?.to_vec2::<f32>()?, [[0.5, 0.5], [1.0, 0.0]]);
/// # Ok::<(), fastforward::tensor::Error>(())
/// ```
///
/// # Errors
///
/// `dim` is no axis of `x`; `x` or `dtype` is no float type, or `x` is not on the CPU.
pub fn softmax(x: &Tensor, dim: i64, dtype: Option<DType>) -> Result<Tensor> {
    run(x, dim, dtype, false)
}

/// `x_i - ln Σ_j exp(x_j)` along `dim`, in `dtype` if one is given.
///
/// # Errors
///
/// As [`softmax`].
pub fn log_softmax(x: &Tensor, dim: i64, dtype: Option<DType>) -> Result<Tensor> {
    run(x, dim, dtype, true)
}

fn run(x: &Tensor, dim: i64, dtype: Option<DType>, logarithm: bool) -> Result<Tensor> {
    let kernel = |around| Softmax { around, logarithm };
    let name = if logarithm { "log_softmax" } else { "softmax" };
    let around = Around::axis(x.dims(), axis(name, dim, x.rank())?);
    let x = match dtype {
        Some(dtype) if dtype != x.dtype() => {
            if !super::custom::is_float(dtype) {
                let found = dtype.as_str();
                return Err(Error::operator(
                    name,
                    format!("dtype is {found}; it must be a float type"),
                ));
            }
            &x.to_dtype(dtype)?
        }
        _ => x,
    };
    check_float(name, "the input", x)?;
    apply(kernel(around), [x], x.shape())
}

/// [`softmax`] of codes in rows of `n_columns`, as codes.
pub(crate) fn softmax_codes(x: CodesOf<'_>, n_columns: usize, to: &Uniform) -> Quantized {
    quantize_rows(
        [x],
        n_columns,
        to,
        #[inline(always)]
        |_, [x], out| row_forward(x, out, false),
    )
}

/// [`softmax`] of values in rows of `n_columns`, which is not zero, the results finished in the cache.
pub(crate) fn softmax_then(x: &[f32], n_columns: usize, then: &Finish) -> Vec<f32> {
    fill_rows(
        x.len() / n_columns,
        n_columns,
        #[inline(always)]
        |row, out| {
            row_forward(&x[row * n_columns..][..n_columns], out, false);
            then.block(out);
        },
    )
}

struct Softmax {
    around: Around,
    logarithm: bool,
}

impl Kernel<1> for Softmax {
    fn name(&self) -> &'static str {
        if self.logarithm { "log_softmax" } else { "softmax" }
    }

    fn forward<T: Real>(&self, [x]: [&[T]; 1]) -> Vec<T> {
        let Around { outer, n, inner } = self.around;
        let logarithm = self.logarithm;
        if inner == 1 {
            return fill_rows(
                outer,
                n,
                #[inline(always)]
                |row, out| row_forward(&x[row * n..][..n], out, logarithm),
            );
        }
        fill_rows(
            outer,
            n * inner,
            #[inline(always)]
            |row, out| columns_forward(&x[row * n * inner..][..n * inner], out, inner, logarithm),
        )
    }

    fn backward<T: Real>(
        &self,
        _x: [&[T]; 1],
        y: &[T],
        g: &[T],
        [wanted]: [bool; 1],
    ) -> [Option<Vec<T>>; 1] {
        let Around { outer, n, inner } = self.around;
        let logarithm = self.logarithm;
        [wanted.then(|| {
            fill_rows(
                outer,
                n * inner,
                #[inline(always)]
                |row, out| {
                    let range = row * n * inner..(row + 1) * n * inner;
                    let (y, g) = (&y[range.clone()], &g[range]);
                    if inner == 1 {
                        row_backward(y, g, out, logarithm);
                    } else {
                        columns_backward(y, g, out, inner, logarithm);
                    }
                },
            )
        })]
    }
}

#[inline(always)]
fn row_forward<T: Real>(x: &[T], out: &mut [T], logarithm: bool) {
    let max = max_of(x);
    for (out, &x) in out.iter_mut().zip(x) {
        *out = (x - max).exp();
    }
    let sum = sum_of(
        [&*out],
        #[inline(always)]
        |[e]| e,
    );
    if logarithm {
        let shift = sum.ln();
        for (out, &x) in out.iter_mut().zip(x) {
            *out = (x - max) - shift;
        }
    } else {
        for out in out.iter_mut() {
            *out = *out / sum;
        }
    }
}

/// The axis is the outer one of a matrix whose rows hold `inner` elements.
#[inline(always)]
fn columns_forward<T: Real>(x: &[T], out: &mut [T], inner: usize, logarithm: bool) {
    let mut max = vec![-T::INFINITY; inner];
    for x in x.chunks_exact(inner) {
        for (max, &x) in max.iter_mut().zip(x) {
            *max = x.larger(*max);
        }
    }
    let mut sum = vec![T::ZERO; inner];
    for (out, x) in out.chunks_exact_mut(inner).zip(x.chunks_exact(inner)) {
        for i in 0..inner {
            let e = (x[i] - max[i]).exp();
            out[i] = e;
            sum[i] += e;
        }
    }
    if logarithm {
        for (max, sum) in max.iter_mut().zip(&sum) {
            *max += sum.ln();
        }
    }
    for (out, x) in out.chunks_exact_mut(inner).zip(x.chunks_exact(inner)) {
        for i in 0..inner {
            out[i] = if logarithm { x[i] - max[i] } else { out[i] / sum[i] };
        }
    }
}

#[inline(always)]
fn row_backward<T: Real>(y: &[T], g: &[T], out: &mut [T], logarithm: bool) {
    if logarithm {
        let sum = sum_of(
            [g],
            #[inline(always)]
            |[g]| g,
        );
        for ((out, &y), &g) in out.iter_mut().zip(y).zip(g) {
            *out = g - y.exp() * sum;
        }
    } else {
        let sum = sum_of(
            [y, g],
            #[inline(always)]
            |[y, g]| y * g,
        );
        for ((out, &y), &g) in out.iter_mut().zip(y).zip(g) {
            *out = y * (g - sum);
        }
    }
}

#[inline(always)]
fn columns_backward<T: Real>(y: &[T], g: &[T], out: &mut [T], inner: usize, logarithm: bool) {
    let mut sum = vec![T::ZERO; inner];
    for (y, g) in y.chunks_exact(inner).zip(g.chunks_exact(inner)) {
        for i in 0..inner {
            sum[i] += if logarithm { g[i] } else { y[i] * g[i] };
        }
    }
    let rows = y.chunks_exact(inner).zip(g.chunks_exact(inner));
    for (out, (y, g)) in out.chunks_exact_mut(inner).zip(rows) {
        for i in 0..inner {
            out[i] = if logarithm { g[i] - y[i].exp() * sum[i] } else { y[i] * (g[i] - sum[i]) };
        }
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Var};

    use super::super::testing::*;
    use super::*;

    /// Softmax along the middle of `[outer, n, inner]` by the definition.
    fn twin(x: &Tensor, axis: usize) -> Vec<f64> {
        let Around { outer, n, inner } = Around::axis(x.dims(), axis);
        let x = values(x);
        let mut out = vec![0.0; x.len()];
        for o in 0..outer {
            for i in 0..inner {
                let at = |j: usize| (o * n + j) * inner + i;
                let sum: f64 = (0..n).map(|j| x[at(j)].exp()).sum();
                for j in 0..n {
                    out[at(j)] = x[at(j)].exp() / sum;
                }
            }
        }
        out
    }

    #[test]
    fn softmax_equals_its_definition_along_every_axis() {
        for (dtype, tolerance) in
            [(DType::F64, 1e-14), (DType::F32, 1e-6), (DType::F16, 1e-3), (DType::BF16, 1e-2)]
        {
            let x = numbers(&[3, 67, 4], 1).to_dtype(dtype).unwrap();
            for axis in 0..3 {
                let expected = twin(&x, axis);
                for x in [x.clone(), strided(&x)] {
                    assert_close(
                        &softmax(&x, axis as i64 - 3, None).unwrap(),
                        &expected,
                        tolerance,
                    );
                    let logarithms: Vec<f64> = expected.iter().map(|y| y.ln()).collect();
                    assert_close(
                        &log_softmax(&x, axis as i64, None).unwrap(),
                        &logarithms,
                        tolerance,
                    );
                }
            }
        }
        let scalar = Tensor::new(3f32, &Device::Cpu).unwrap();
        assert_close(&softmax(&scalar, 0, None).unwrap(), &[1.0], 0.0);
    }

    #[test]
    fn softmax_has_exact_gradients() {
        for dim in 0..3 {
            let x = [numbers(&[2, 5, 3], 1)];
            check_gradients(&x, |t| softmax(&t[0], dim, None));
            check_gradients(&x, |t| log_softmax(&t[0], dim, None));
        }
    }

    /// candle_nn's `softmax_last_dim` has no gradient: the variable below gets none.
    #[test]
    fn the_gradient_reaches_a_variable_below_in_every_dtype() {
        for dtype in [DType::F32, DType::F64, DType::F16, DType::BF16] {
            let v = Var::from_tensor(&numbers(&[2, 3], 1).to_dtype(dtype).unwrap()).unwrap();
            let y = softmax(&(v.as_tensor() * 2.0).unwrap(), -1, None).unwrap();
            let grads = y.sqr().unwrap().sum_all().unwrap().backward().unwrap();
            let grad = grads.get(&v).expect("a gradient");
            assert_eq!(grad.dtype(), dtype);
            assert!(values(grad).iter().any(|&g| g != 0.0));
        }
    }

    #[test]
    fn the_dtype_is_converted_before() {
        let v = Var::from_tensor(&numbers(&[2, 3], 1).to_dtype(DType::F16).unwrap()).unwrap();
        let y = softmax(&v, 1, Some(DType::F32)).unwrap();
        assert_eq!(y.dtype(), DType::F32);
        assert_close(&y, &twin(&v, 1), 1e-6);
        let grads = y.sqr().unwrap().sum_all().unwrap().backward().unwrap();
        assert_eq!(grads.get(&v).unwrap().dtype(), DType::F16);
        let codes = Tensor::new(&[1i64, 2], &Device::Cpu).unwrap();
        assert_close(&softmax(&codes, 0, Some(DType::F64)).unwrap(), &twin(&codes, 0), 1e-12);
    }

    #[test]
    fn infinities_and_nan_are_as_in_pytorch() {
        let inf = f32::INFINITY;
        let x = Tensor::new(&[[-inf, 0.0, -inf], [-inf; 3], [f32::NAN, 0.0, 1.0]], &Device::Cpu)
            .unwrap();
        let nan = f64::NAN;
        for x in [x.clone(), x.t().unwrap().contiguous().unwrap().t().unwrap()] {
            let y = softmax(&x, 1, None).unwrap();
            assert_close(&y, &[0.0, 1.0, 0.0, nan, nan, nan, nan, nan, nan], 0.0);
        }
        let y = softmax(&x.t().unwrap(), 0, None).unwrap();
        assert_close(&y.t().unwrap(), &[0.0, 1.0, 0.0, nan, nan, nan, nan, nan, nan], 0.0);
    }

    #[test]
    fn any_number_of_threads_gives_the_same_bytes() {
        let x = numbers(&[64, 1000], 1).to_dtype(DType::F32).unwrap();
        check_threads(|| {
            let v = Var::from_tensor(&x).unwrap();
            let y = softmax(&v, -1, None).unwrap();
            let grads = y.sqr().unwrap().sum_all().unwrap().backward().unwrap();
            [bits(&y), bits(grads.get(&v).unwrap())].concat()
        });
    }

    #[test]
    fn errors_name_what_is_wrong() {
        let x = numbers(&[2, 3], 1);
        let message = |r: Result<Tensor>| r.unwrap_err().to_string();
        assert_eq!(
            message(softmax(&x, 2, None)),
            "softmax: dim is 2, but the input has 2 axes: it must lie in -2..=1"
        );
        assert_eq!(
            message(log_softmax(&x, 0, Some(DType::U8))),
            "log_softmax: dtype is u8; it must be a float type"
        );
        let codes = x.to_dtype(DType::I64).unwrap();
        assert_eq!(
            message(softmax(&codes, 0, None)),
            "softmax: the input has dtype i64; it must be f32, f64, f16 or bf16"
        );
    }
}
