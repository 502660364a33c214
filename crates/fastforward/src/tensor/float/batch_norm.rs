//! Normalization of each channel over the batch.

use std::sync::Arc;

use candle_core::{DType, Device, Tensor};

use super::activation::rsqrt;
use super::arithmetic::{add, mul, sub};
use super::custom::{Kernel, apply, in_wider};
use super::norm::check_parameter;
use super::parallel::{fill_rows, sum_of};
use super::real::Real;
use super::shape::check_float;
use crate::tensor::{Error, Result};

/// What [`batch_norm_training`] found in a batch, one element for each channel; nothing is tracked.
#[derive(Debug, Clone)]
pub struct BatchStatistics {
    /// The mean.
    pub mean: Tensor,
    /// The variance with divisor `n - 1`, as running variances keep it.
    pub variance: Tensor,
}

/// `(x - mean) / sqrt(variance + eps) * weight + bias` with statistics that are given, as in evaluation.
///
/// `x` is `[batch, channels, ..]`; every other operand has one element for each channel
/// (Ioffe and Szegedy, "Batch Normalization", 2015). Beside `x` in `f16` or `bf16` they may be in `f32`.
///
/// # Errors
///
/// Shapes that do not fit; operands of several dtypes, of one that is no float, or not on the CPU.
pub fn batch_norm(
    x: &Tensor,
    mean: &Tensor,
    variance: &Tensor,
    weight: Option<&Tensor>,
    bias: Option<&Tensor>,
    eps: f64,
) -> Result<Tensor> {
    let (channels, spatial) = geometry(x)?;
    let operands = [
        ("the mean", Some(mean)),
        ("the variance", Some(variance)),
        ("weight", weight),
        ("bias", bias),
    ];
    for (operand, tensor) in operands {
        check_parameter("batch_norm", operand, tensor, &[channels])?;
    }
    // One factor and one summand for each channel, as PyTorch computes it; for narrow inputs in f32.
    let wide = |parameter: &Tensor| match parameter.dtype() {
        DType::F16 | DType::BF16 => parameter.to_dtype(DType::F32),
        _ => Ok(parameter.clone()),
    };
    let factor = rsqrt(&add(&wide(variance)?, eps, 1.0)?)?;
    let factor = match weight {
        Some(weight) => mul(&factor, &wide(weight)?)?,
        None => factor,
    };
    let summand = mul(&wide(mean)?, &factor)?;
    let summand = match bias {
        Some(bias) => sub(&wide(bias)?, &summand, 1.0)?,
        None => mul(&summand, -1.0)?,
    };
    in_wider(x, [Some(&factor), Some(&summand)], |x, _| {
        apply(PerChannel { channels, spatial }, [x, &factor, &summand], x.shape())
    })
}

/// [`batch_norm`] with the mean and (biased) variance of the batch itself, as in training; and those statistics, for
/// running ones.
///
/// Gradients flow through the statistics.
///
/// # Errors
///
/// As [`batch_norm`], and if a channel has one element only, whose variance is zero.
pub fn batch_norm_training(
    x: &Tensor,
    weight: Option<&Tensor>,
    bias: Option<&Tensor>,
    eps: f64,
) -> Result<(Tensor, BatchStatistics)> {
    let (channels, spatial) = geometry(x)?;
    for (operand, tensor) in [("weight", weight), ("bias", bias)] {
        check_parameter("batch_norm", operand, tensor, &[channels])?;
    }
    let count = x.elem_count().checked_div(channels).unwrap_or(0);
    if count < 2 && channels > 0 {
        let found = x.dims();
        return Err(Error::operator(
            "batch_norm",
            format!(
                "the input has shape {found:?}; training needs more than one element in each channel"
            ),
        ));
    }
    // Narrow inputs have their statistics in f32.
    let wide = if x.dtype() == DType::F64 { DType::F64 } else { DType::F32 };
    let data = x.detach().to_dtype(wide)?;
    let found = apply(Moments { channels, spatial }, [&data], (channels, 2))?;
    let moments: Vec<[f64; 2]> = found
        .to_dtype(DType::F64)?
        .to_vec2::<f64>()?
        .into_iter()
        .map(|row| [row[0], row[1]])
        .collect();
    let unbiased = count as f64 / (count as f64 - 1.0);
    let of = |values: Vec<f64>| -> Result<Tensor> {
        Ok(Tensor::from_vec(values, channels, &Device::Cpu)?.to_dtype(wide)?)
    };
    let statistics = BatchStatistics {
        mean: of(moments.iter().map(|m| m[0]).collect())?,
        variance: of(moments.iter().map(|m| m[1] * unbiased).collect())?,
    };
    let kernel = Training {
        channels,
        spatial,
        moments: moments
            .iter()
            .map(|[mean, variance]| [*mean, 1.0 / (variance + eps).sqrt()])
            .collect(),
        has_weight: weight.is_some(),
    };
    let y = in_wider(x, [weight, bias], |x, [weight, bias]| match (weight, bias) {
        (None, None) => apply(kernel, [x], x.shape()),
        (Some(weight), None) => apply(kernel, [x, weight], x.shape()),
        (None, Some(bias)) => apply(kernel, [x, bias], x.shape()),
        (Some(weight), Some(bias)) => apply(kernel, [x, weight, bias], x.shape()),
    })?;
    Ok((y, statistics))
}

/// Channels, and elements of one channel that lie side by side.
fn geometry(x: &Tensor) -> Result<(usize, usize)> {
    check_float("batch_norm", "the input", x)?;
    match x.dims() {
        [_, channels, spatial @ ..] => Ok((*channels, spatial.iter().product())),
        found => Err(Error::operator(
            "batch_norm",
            format!("the input has shape {found:?}; it must be [batch, channels, ..]"),
        )),
    }
}

/// `f` of the elements of each channel of `a` and `b`, summed: two sums for each channel.
fn channel_sums<T: Real>(
    a: &[T],
    b: &[T],
    channels: usize,
    spatial: usize,
    f: impl Fn(usize, T, T) -> [T; 2] + Sync,
) -> Vec<T> {
    let batch = a.len().checked_div(channels * spatial).unwrap_or(0);
    fill_rows(
        channels,
        2,
        #[inline(always)]
        |channel, out| {
            let mut sums = [0.0, 0.0];
            for sample in 0..batch {
                let at = (sample * channels + channel) * spatial;
                let (a, b) = (&a[at..][..spatial], &b[at..][..spatial]);
                for (k, sum) in sums.iter_mut().enumerate() {
                    *sum += sum_of(
                        [a, b],
                        #[inline(always)]
                        |[a, b]| f(channel, a, b)[k],
                    )
                    .to_f64();
                }
            }
            out.copy_from_slice(&sums.map(T::of));
        },
    )
}

/// Mean and biased variance of each channel.
struct Moments {
    channels: usize,
    spatial: usize,
}

impl Kernel<1> for Moments {
    fn name(&self) -> &'static str {
        "batch_norm"
    }

    fn forward<T: Real>(&self, [x]: [&[T]; 1]) -> Vec<T> {
        let (channels, spatial) = (self.channels, self.spatial);
        let n = T::of(x.len().checked_div(channels).unwrap_or(0) as f64);
        let sums = channel_sums(
            x,
            x,
            channels,
            spatial,
            #[inline(always)]
            |_, x, _| [x, x],
        );
        let means: Vec<T> = sums.chunks_exact(2).map(|s| s[0] / n).collect();
        let mut moments = channel_sums(
            x,
            x,
            channels,
            spatial,
            #[inline(always)]
            |channel, x, _| {
                let d = x - means[channel];
                [d * d, d * d]
            },
        );
        for (moments, mean) in moments.chunks_exact_mut(2).zip(means) {
            moments[1] = moments[1] / n;
            moments[0] = mean;
        }
        moments
    }

    fn backward<T: Real>(
        &self,
        _x: [&[T]; 1],
        _y: &[T],
        _g: &[T],
        _wanted: [bool; 1],
    ) -> [Option<Vec<T>>; 1] {
        // It runs on data that tracks nothing.
        [None]
    }
}

/// `x * factor + summand`, one of each for a channel.
struct PerChannel {
    channels: usize,
    spatial: usize,
}

impl Kernel<3> for PerChannel {
    fn name(&self) -> &'static str {
        "batch_norm"
    }

    fn forward<T: Real>(&self, [x, factor, summand]: [&[T]; 3]) -> Vec<T> {
        rows(
            x,
            self.channels,
            self.spatial,
            #[inline(always)]
            |channel, _, x| x * factor[channel] + summand[channel],
        )
    }

    fn backward<T: Real>(
        &self,
        [x, factor, _]: [&[T]; 3],
        _y: &[T],
        g: &[T],
        wanted: [bool; 3],
    ) -> [Option<Vec<T>>; 3] {
        let x_grad = wanted[0].then(|| {
            rows(
                g,
                self.channels,
                self.spatial,
                #[inline(always)]
                |channel, _, g| g * factor[channel],
            )
        });
        if !(wanted[1] || wanted[2]) {
            return [x_grad, None, None];
        }
        let sums = channel_sums(
            x,
            g,
            self.channels,
            self.spatial,
            #[inline(always)]
            |_, x, g| [x * g, g],
        );
        let sum = |k: usize| sums.iter().skip(k).step_by(2).copied().collect();
        [x_grad, wanted[1].then(|| sum(0)), wanted[2].then(|| sum(1))]
    }
}

/// `f(channel, place, element)` for each element.
fn rows<T: Real>(
    x: &[T],
    channels: usize,
    spatial: usize,
    f: impl Fn(usize, usize, T) -> T + Sync,
) -> Vec<T> {
    if spatial == 1 {
        return fill_rows(
            x.len().checked_div(channels).unwrap_or(0),
            channels,
            #[inline(always)]
            |row, out| {
                let x = &x[row * channels..][..channels];
                for (c, out) in out.iter_mut().enumerate() {
                    *out = f(c, row * channels + c, x[c]);
                }
            },
        );
    }
    fill_rows(
        x.len().checked_div(spatial).unwrap_or(0),
        spatial,
        #[inline(always)]
        |row, out| {
            let x = &x[row * spatial..][..spatial];
            for (i, out) in out.iter_mut().enumerate() {
                *out = f(row % channels, row * spatial + i, x[i]);
            }
        },
    )
}

struct Training {
    channels: usize,
    spatial: usize,
    /// Mean and reciprocal deviation of each channel.
    moments: Arc<[[f64; 2]]>,
    has_weight: bool,
}

impl Training {
    fn moments<T: Real>(&self) -> Vec<[T; 2]> {
        self.moments.iter().map(|m| m.map(T::of)).collect()
    }
}

impl<const N: usize> Kernel<N> for Training {
    fn name(&self) -> &'static str {
        "batch_norm"
    }

    fn forward<T: Real>(&self, inputs: [&[T]; N]) -> Vec<T> {
        let moments = self.moments::<T>();
        let ones = vec![T::ONE; self.channels];
        let zeros = vec![T::ZERO; self.channels];
        let weight = if self.has_weight { inputs[1] } else { &ones };
        let bias = inputs.get(if self.has_weight { 2 } else { 1 }).copied().unwrap_or(&zeros);
        rows(
            inputs[0],
            self.channels,
            self.spatial,
            #[inline(always)]
            |c, _, x| (x - moments[c][0]) * moments[c][1] * weight[c] + bias[c],
        )
    }

    fn backward<T: Real>(
        &self,
        inputs: [&[T]; N],
        _y: &[T],
        g: &[T],
        wanted: [bool; N],
    ) -> [Option<Vec<T>>; N] {
        let x = inputs[0];
        let moments = self.moments::<T>();
        // For each channel the gradients of weight and bias.
        let sums = channel_sums(
            x,
            g,
            self.channels,
            self.spatial,
            #[inline(always)]
            |c, x, g| [g * ((x - moments[c][0]) * moments[c][1]), g],
        );
        let mut grads = [const { None }; N];
        if wanted[0] {
            let n = T::of(x.len().checked_div(self.channels).unwrap_or(0) as f64);
            let ones = vec![T::ONE; self.channels];
            let weight = if self.has_weight { inputs[1] } else { &ones };
            // scale * weight * (g - mean(g) - h * mean(g * h)), where h is the normalized input.
            grads[0] = Some(rows(
                x,
                self.channels,
                self.spatial,
                #[inline(always)]
                |c, i, x| {
                    let [mean, scale] = moments[c];
                    let h = (x - mean) * scale;
                    scale * weight[c] * (g[i] - sums[2 * c + 1] / n - h * (sums[2 * c] / n))
                },
            ));
        }
        for i in 1..N {
            let k = if self.has_weight && i == 1 { 0 } else { 1 };
            grads[i] = wanted[i].then(|| sums.iter().skip(k).step_by(2).copied().collect());
        }
        grads
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::*;

    const SHAPES: [&[usize]; 3] = [&[5, 3], &[2, 3, 4], &[2, 3, 2, 3]];

    fn twin(
        x: &Tensor,
        stats: impl Fn(usize, &[f64]) -> (f64, f64),
        w: &Tensor,
        b: &Tensor,
    ) -> Vec<f64> {
        let (n, c) = (x.dims()[0], x.dims()[1]);
        let s = x.elem_count() / n / c;
        let (v, w, b) = (values(x), values(w), values(b));
        let mut out = vec![0.0; v.len()];
        for channel in 0..c {
            let places: Vec<usize> =
                (0..n * s).map(|i| (i / s * c + channel) * s + i % s).collect();
            let elements: Vec<f64> = places.iter().map(|&i| v[i]).collect();
            let (mean, variance) = stats(channel, &elements);
            for i in places {
                out[i] = (v[i] - mean) / (variance + 1e-5).sqrt() * w[channel] + b[channel];
            }
        }
        out
    }

    fn of_batch(_: usize, x: &[f64]) -> (f64, f64) {
        let mean = x.iter().sum::<f64>() / x.len() as f64;
        (mean, x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / x.len() as f64)
    }

    #[test]
    fn results_equal_the_definition_in_every_dtype() {
        for (dtype, tolerance) in
            [(DType::F64, 1e-13), (DType::F32, 5e-6), (DType::F16, 5e-3), (DType::BF16, 5e-2)]
        {
            for shape in SHAPES {
                let t = |dims: &[usize], seed| numbers(dims, seed).to_dtype(dtype).unwrap();
                let (x, w, b) = (t(shape, 1), t(&[3], 2), t(&[3], 3));
                let (mean, variance) = (t(&[3], 4), t(&[3], 5).sqr().unwrap());
                let (m, v) = (values(&mean), values(&variance));
                for x in [x.clone(), strided(&x)] {
                    let y = batch_norm(&x, &mean, &variance, Some(&w), Some(&b), 1e-5).unwrap();
                    assert_eq!(y.dtype(), dtype);
                    assert_close(&y, &twin(&x, |c, _| (m[c], v[c]), &w, &b), tolerance);
                    let (y, statistics) =
                        batch_norm_training(&x, Some(&w), Some(&b), 1e-5).unwrap();
                    assert_close(&y, &twin(&x, of_batch, &w, &b), tolerance);
                    assert_eq!(statistics.mean.dims(), [3]);
                    assert!(!statistics.mean.track_op());
                }
            }
        }
    }

    #[test]
    fn every_operand_has_an_exact_gradient() {
        for shape in SHAPES {
            let positive = (numbers(&[3], 5).sqr().unwrap() + 0.5).unwrap();
            let inputs =
                [numbers(shape, 1), numbers(&[3], 2), positive, numbers(&[3], 3), numbers(&[3], 4)];
            check_gradients(&inputs, |t| {
                batch_norm(&t[0], &t[1], &t[2], Some(&t[3]), Some(&t[4]), 1e-5)
            });
            check_gradients(&inputs[..3], |t| batch_norm(&t[0], &t[1], &t[2], None, None, 1e-5));
            let inputs = [numbers(shape, 1), numbers(&[3], 2), numbers(&[3], 3)];
            let train = |x: &Tensor, w: Option<&Tensor>, b: Option<&Tensor>| {
                Ok(batch_norm_training(x, w, b, 1e-5)?.0)
            };
            check_gradients(&inputs, |t| train(&t[0], Some(&t[1]), Some(&t[2])));
            check_gradients(&inputs[..2], |t| train(&t[0], None, Some(&t[1])));
            check_gradients(&inputs[..2], |t| train(&t[0], Some(&t[1]), None));
            check_gradients(&inputs[..1], |t| train(&t[0], None, None));
        }
    }

    #[test]
    fn statistics_are_those_of_running_ones() {
        let x = Tensor::new(&[[1f32, 2.0], [3.0, 5.0]], &Device::Cpu).unwrap();
        let (_, statistics) = batch_norm_training(&x, None, None, 1e-5).unwrap();
        assert_close(&statistics.mean, &[2.0, 3.5], 0.0);
        assert_close(&statistics.variance, &[2.0, 4.5], 1e-7);
    }

    #[test]
    fn errors_name_what_is_wrong() {
        let one = numbers(&[1, 3], 1);
        assert_eq!(
            batch_norm_training(&one, None, None, 1e-5).unwrap_err().to_string(),
            "batch_norm: the input has shape [1, 3]; training needs more than one element in each channel"
        );
        let two = numbers(&[2], 1);
        assert_eq!(
            batch_norm(&one, &two, &two, None, None, 1e-5).unwrap_err().to_string(),
            "batch_norm: the mean has shape [2]; it must be [3]"
        );
    }
}
