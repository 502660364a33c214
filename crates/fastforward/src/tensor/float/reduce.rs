//! Sums, means and running sums.

use candle_core::{CpuStorage, Layout, Shape, Tensor};
use half::{bf16, f16};

use super::broadcast::sum_to_shape;
use super::custom::{Kernel, Stored, apply, check_cpu, with_storages};
use super::parallel::{fill_rows, sum_of, sum_rows};
use super::real::Real;
use super::shape::{Around, axis, check_float};
use super::whole;
use crate::tensor::{Error, Result};

/// The sum of all elements, or along one axis, which `keepdim` leaves with size 1. Integers are summed as `i64`.
///
/// Sums are taken in parts of fixed sizes, whose sums are added in `f64`: long ones stay exact to some units in the last
/// place, and are the same for any number of threads.
///
/// ```
/// use candle_core::{Device, Tensor};
/// use fastforward::tensor::float::sum;
///
/// let x = Tensor::new(&[[1.0f32, 2.0], [3.0, 4.0]], &Device::Cpu)?;
/// assert_eq!(sum(&x, None, false)?.to_scalar::<f32>()?, 10.0);
/// assert_eq!(sum(&x, Some(-1), false)?.to_vec1::<f32>()?, [3.0, 7.0]);
/// # Ok::<(), fastforward::tensor::Error>(())
/// ```
///
/// # Errors
///
/// `dim` is no axis of `x`; `x` is not on the CPU.
pub fn sum(x: &Tensor, dim: Option<i64>, keepdim: bool) -> Result<Tensor> {
    let (around, shape) = reduction("sum", x, dim, keepdim)?;
    if x.dtype().is_int() {
        check_cpu("sum", x)?;
        let (Around { outer, n, inner }, x) = (around, whole::elements(x)?);
        let at = |i: usize, j: usize| x[(i / inner * n + j) * inner + i % inner];
        let total = |i: usize| (0..n).map(|j| at(i, j)).fold(0, i64::wrapping_add);
        let out: Vec<i64> = (0..outer * inner).map(total).collect();
        return Ok(Tensor::from_vec(out, shape, &candle_core::Device::Cpu)?);
    }
    apply(Sum { name: "sum", around, factor: 1.0 }, [x], shape)
}

/// The mean of all elements, or along one axis, which `keepdim` leaves with size 1; NaN of nothing.
///
/// # Errors
///
/// `dim` is no axis of `x`; `x` does not hold floats, or is not on the CPU.
pub fn mean(x: &Tensor, dim: Option<i64>, keepdim: bool) -> Result<Tensor> {
    check_float("mean", "the input", x)?;
    let (around, shape) = reduction("mean", x, dim, keepdim)?;
    apply(Sum { name: "mean", around, factor: 1.0 / around.n as f64 }, [x], shape)
}

/// What is summed, and the shape of the result.
fn reduction(
    operator: &str,
    x: &Tensor,
    dim: Option<i64>,
    keepdim: bool,
) -> Result<(Around, Shape)> {
    let mut dims = x.dims().to_vec();
    let around = match dim {
        Some(dim) => {
            let axis = axis(operator, dim, x.rank())?;
            let around = Around::axis(&dims, axis);
            if keepdim && !dims.is_empty() {
                dims[axis] = 1;
            } else if !dims.is_empty() {
                dims.remove(axis);
            }
            around
        }
        None => {
            dims = vec![1; if keepdim { dims.len() } else { 0 }];
            Around { outer: 1, n: x.elem_count(), inner: 1 }
        }
    };
    Ok((around, Shape::from(dims)))
}

struct Sum {
    name: &'static str,
    around: Around,
    factor: f64,
}

impl Kernel<1> for Sum {
    fn name(&self) -> &'static str {
        self.name
    }

    fn forward<T: Real>(&self, [x]: [&[T]; 1]) -> Vec<T> {
        let mut sums = sum_middle(x, self.around);
        if self.factor != 1.0 {
            for sum in &mut sums {
                // A mean of nothing is 0 * infinity: NaN, as it should be.
                *sum *= T::of(self.factor);
            }
        }
        sums
    }

    fn backward<T: Real>(
        &self,
        _x: [&[T]; 1],
        _y: &[T],
        g: &[T],
        [wanted]: [bool; 1],
    ) -> [Option<Vec<T>>; 1] {
        let Around { outer, n, inner } = self.around;
        let factor = T::of(self.factor);
        [wanted.then(|| {
            if inner == 1 {
                return fill_rows(
                    outer,
                    n,
                    #[inline(always)]
                    |row, out| out.fill(g[row] * factor),
                );
            }
            fill_rows(
                outer * n,
                inner,
                #[inline(always)]
                |row, out| {
                    for (out, &g) in out.iter_mut().zip(&g[row / n * inner..][..inner]) {
                        *out = g * factor;
                    }
                },
            )
        })]
    }
}

/// Running sums along `dim`: element `i` is the sum of the elements up to and with `i`. Integers are summed as `i64`.
///
/// # Errors
///
/// `dim` is no axis of `x`; `x` is not on the CPU.
pub fn cumsum(x: &Tensor, dim: i64) -> Result<Tensor> {
    let around = Around::axis(x.dims(), axis("cumsum", dim, x.rank())?);
    if x.dtype().is_int() {
        check_cpu("cumsum", x)?;
        let mut out = whole::elements(x)?;
        for i in 0..out.len() {
            if !(i / around.inner).is_multiple_of(around.n) {
                out[i] = out[i].wrapping_add(out[i - around.inner]);
            }
        }
        return Ok(Tensor::from_vec(out, x.shape(), &candle_core::Device::Cpu)?);
    }
    apply(CumulativeSum(around), [x], x.shape())
}

struct CumulativeSum(Around);

impl CumulativeSum {
    /// Running sums, from the end if `reverse`; they are kept in `f64` and rounded one by one.
    fn run<T: Real>(&self, x: &[T], reverse: bool) -> Vec<T> {
        let Around { outer, n, inner } = self.0;
        fill_rows(
            outer,
            n * inner,
            #[inline(always)]
            |row, out| {
                let x = &x[row * n * inner..][..n * inner];
                let mut sums = vec![0.0; inner];
                for step in 0..n {
                    let at = if reverse { n - 1 - step } else { step } * inner;
                    for (i, sum) in sums.iter_mut().enumerate() {
                        *sum += x[at + i].to_f64();
                        out[at + i] = T::of(*sum);
                    }
                }
            },
        )
    }
}

impl Kernel<1> for CumulativeSum {
    fn name(&self) -> &'static str {
        "cumsum"
    }

    fn forward<T: Real>(&self, [x]: [&[T]; 1]) -> Vec<T> {
        self.run(x, false)
    }

    fn backward<T: Real>(
        &self,
        _x: [&[T]; 1],
        _y: &[T],
        g: &[T],
        [wanted]: [bool; 1],
    ) -> [Option<Vec<T>>; 1] {
        [wanted.then(|| self.run(g, true))]
    }
}

/// Sums of `[outer, n, inner]` over the middle.
pub(super) fn sum_middle<T: Real>(x: &[T], around: Around) -> Vec<T> {
    /// Elements of a row that are summed as one; the sums are added one after the other.
    const PART: usize = 4096;
    let Around { outer, n, inner } = around;
    if n == 0 {
        return vec![T::ZERO; outer * inner];
    }
    if inner == 1 {
        let parts = n.div_ceil(PART);
        let part = n.div_ceil(parts);
        let partial = fill_rows(
            outer * parts,
            1,
            #[inline(always)]
            |i, out| {
                let (row, p) = (i / parts, i % parts);
                out[0] = sum_of(
                    [&x[row * n..][(p * part).min(n)..((p + 1) * part).min(n)]],
                    #[inline(always)]
                    |[x]| x,
                );
            },
        );
        if parts == 1 {
            return partial;
        }
        let total = |row: &[T]| T::of(row.iter().map(|v| v.to_f64()).sum());
        return partial.chunks_exact(parts).map(total).collect();
    }
    let mut out = Vec::with_capacity(outer * inner);
    for x in x.chunks_exact((n * inner).max(1)) {
        out.extend(sum_rows(
            n,
            inner,
            n * inner,
            #[inline(always)]
            |row, sums: &mut [T]| {
                for (sum, &x) in sums.iter_mut().zip(&x[row * inner..][..inner]) {
                    *sum += x;
                }
            },
        ));
    }
    out
}

/// Sums a tensor over the axes along which a tensor of shape `dims` would be repeated to reach its shape: the gradient
/// of broadcasting. Nothing is tracked.
pub(super) fn sum_to(x: &Tensor, dims: &[usize]) -> candle_core::Result<Tensor> {
    if x.dims() == dims {
        return Ok(x.clone());
    }
    reduced(x, Shape::from(dims), &Reduction::To(x.dims(), dims))
}

/// Sums over the rows of a tensor seen as a matrix of `m` rows and `n` columns. Nothing is tracked.
pub(super) fn column_sums(x: &Tensor, m: usize, n: usize) -> candle_core::Result<Tensor> {
    reduced(x, Shape::from(n), &Reduction::Middle(Around { outer: 1, n: m, inner: n }))
}

/// What to sum over.
enum Reduction<'a> {
    Middle(Around),
    /// From a shape to one that is repeated to reach it.
    To(&'a [usize], &'a [usize]),
}

fn reduced(x: &Tensor, shape: Shape, reduction: &Reduction<'_>) -> candle_core::Result<Tensor> {
    fn run<S: Stored>(
        (storage, layout): (&CpuStorage, &Layout),
        shape: &Shape,
        reduction: &Reduction<'_>,
    ) -> candle_core::Result<Option<Tensor>> {
        let Some(x) = S::dense(storage, layout) else { return Ok(None) };
        let sums = match *reduction {
            Reduction::Middle(around) => sum_middle(&x, around),
            Reduction::To(from, to) => sum_to_shape(x, from, to).into_owned(),
        };
        S::tensor(sums, shape).map(Some)
    }
    let mut found = None;
    with_storages(&[x], |operands| {
        found = match operands[0].0 {
            CpuStorage::F32(_) => run::<f32>(operands[0], &shape, reduction)?,
            CpuStorage::F64(_) => run::<f64>(operands[0], &shape, reduction)?,
            CpuStorage::F16(_) => run::<f16>(operands[0], &shape, reduction)?,
            CpuStorage::BF16(_) => run::<bf16>(operands[0], &shape, reduction)?,
            _ => None,
        };
        Ok(())
    })?;
    found.ok_or_else(|| Error::operator("sum", "the input holds no floats").into_candle())
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device, Var};

    use super::super::testing::*;
    use super::*;

    #[test]
    fn sums_equal_their_definition_along_every_axis() {
        for (dtype, tolerance) in
            [(DType::F64, 1e-13), (DType::F32, 2e-6), (DType::F16, 2e-3), (DType::BF16, 2e-2)]
        {
            let x = numbers(&[3, 50, 4], 1).to_dtype(dtype).unwrap();
            for axis in 0..3 {
                let Around { outer, n, inner } = Around::axis(x.dims(), axis);
                let data = values(&x);
                let at = |i: usize, j: usize| data[(i / inner * n + j) * inner + i % inner];
                let sums: Vec<f64> =
                    (0..outer * inner).map(|i| (0..n).map(|j| at(i, j)).sum()).collect();
                let means: Vec<f64> = sums.iter().map(|s| s / n as f64).collect();
                let mut running = data.clone();
                for i in 0..running.len() {
                    if i / inner % n > 0 {
                        running[i] += running[i - inner];
                    }
                }
                for x in [x.clone(), strided(&x)] {
                    let dim = axis as i64;
                    let y = sum(&x, Some(dim - 3), false).unwrap();
                    assert_eq!((y.rank(), y.dtype()), (2, dtype));
                    assert_close(&y, &sums, tolerance);
                    let y = mean(&x, Some(dim), true).unwrap();
                    assert_eq!(y.dims()[axis], 1);
                    assert_close(&y, &means, tolerance);
                    assert_close(&cumsum(&x, dim).unwrap(), &running, tolerance);
                }
            }
            let total: f64 = values(&x).iter().sum();
            assert_close(&sum(&x, None, false).unwrap(), &[total], tolerance);
            assert_eq!(mean(&x, None, true).unwrap().dims(), [1, 1, 1]);
        }
    }

    #[test]
    fn sums_have_exact_gradients() {
        let x = [numbers(&[2, 4, 3], 1)];
        check_gradients(&x, |t| sum(&t[0], None, false));
        check_gradients(&x, |t| mean(&t[0], None, true));
        for dim in 0..3 {
            check_gradients(&x, |t| sum(&t[0], Some(dim), false));
            check_gradients(&x, |t| mean(&t[0], Some(dim), true));
            check_gradients(&x, |t| cumsum(&t[0], dim));
        }
    }

    #[test]
    fn a_long_sum_stays_exact_and_is_the_same_for_any_number_of_threads() {
        let x = Tensor::full(0.1f32, 3_000_000, &Device::Cpu).unwrap();
        assert_close(&sum(&x, None, false).unwrap(), &[300_000.0], 2e-6);
        let x = numbers(&[300, 2000], 1).to_dtype(DType::F32).unwrap();
        check_threads(|| {
            let v = Var::from_tensor(&x).unwrap();
            let (a, b) = (sum(&v, Some(0), false).unwrap(), sum(&v, None, false).unwrap());
            let y = a.broadcast_add(&b).unwrap();
            let grads = y.sqr().unwrap().sum_all().unwrap().backward().unwrap();
            [bits(&a), bits(&b), bits(grads.get(&v).unwrap())].concat()
        });
    }

    #[test]
    fn integers_are_summed_as_i64() {
        let x = Tensor::new(&[[200u8, 100], [3, 4]], &Device::Cpu).unwrap();
        let y = sum(&x, Some(0), false).unwrap();
        assert_eq!(y.to_vec1::<i64>().unwrap(), [203, 104]);
        let y = cumsum(&x, 1).unwrap();
        assert_eq!(y.to_vec2::<i64>().unwrap(), [[200, 300], [3, 7]]);
    }

    #[test]
    fn nothing_sums_to_zero() {
        let x = Tensor::zeros((0, 3), DType::F32, &Device::Cpu).unwrap();
        assert_close(&sum(&x, Some(0), false).unwrap(), &[0.0; 3], 0.0);
        assert_close(&mean(&x, Some(0), false).unwrap(), &[f64::NAN; 3], 0.0);
        assert_eq!(sum(&x, Some(1), false).unwrap().dims(), [0]);
        assert_eq!(cumsum(&x, 0).unwrap().dims(), [0, 3]);
        assert_eq!(
            sum(&x, Some(2), false).unwrap_err().to_string(),
            "sum: dim is 2, but the input has 2 axes: it must lie in -2..=1"
        );
    }
}
