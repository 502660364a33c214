//! Normalization within each sample: layer, root-mean-square and group normalization.

use candle_core::{DType, Shape, Tensor};
use ff_kernels::Uniform;

use super::codes::{CodesOf, Quantized, quantize_rows};
use super::custom::{Kernel, apply, in_wider};
use super::finish::Finish;
use super::parallel::{fill_rows, sum_of, sum_rows};
use super::real::Real;
use super::shape::check_float;
use crate::tensor::{Error, Result};

/// `(x - mean) / sqrt(variance + eps) * weight + bias` over the last axes, those of `normalized_shape`.
///
/// Mean and (biased) variance are those of the axes normalized over; `weight` and `bias` have their shape
/// (Ba, Kiros and Hinton, "Layer Normalization", 2016). Beside `x` in `f16` or `bf16` they may be in `f32`. PyTorch's default for `eps` is `1e-5`.
///
/// ```
/// use candle_core::{Device, Tensor};
/// use fastforward::tensor::float::layer_norm;
///
/// let x = Tensor::new(&[[1.0f32, 3.0], [-2.0, 2.0]], &Device::Cpu)?;
/// let y = layer_norm(&x, &[2], None, None, 0.0)?;
/// assert_eq!(y.to_vec2::<f32>()?, [[-1.0, 1.0], [-1.0, 1.0]]);
/// # Ok::<(), fastforward::tensor::Error>(())
/// ```
///
/// # Errors
///
/// `normalized_shape` does not end the shape of `x`, or is not that of `weight` and `bias`; operands of several dtypes,
/// of one that is no float, or not on the CPU.
pub fn layer_norm(
    x: &Tensor,
    normalized_shape: &[usize],
    weight: Option<&Tensor>,
    bias: Option<&Tensor>,
    eps: f64,
) -> Result<Tensor> {
    over_last_axes("layer_norm", x, normalized_shape, weight, bias, eps, true)
}

/// `x / sqrt(mean(x²) + eps) * weight` over the last axes, those of `normalized_shape`.
///
/// `eps` is the distance from 1 to the next number of the type that is computed in if `None`: that of `f32`, also for
/// `f16` and `bf16`, or that of `f64`
/// (Zhang and Sennrich, "Root Mean Square Layer Normalization", 2019).
///
/// # Errors
///
/// As [`layer_norm`].
pub fn rms_norm(
    x: &Tensor,
    normalized_shape: &[usize],
    weight: Option<&Tensor>,
    eps: Option<f64>,
) -> Result<Tensor> {
    let computed = if x.dtype() == DType::F64 { f64::EPSILON } else { f64::from(f32::EPSILON) };
    let eps = eps.unwrap_or(computed);
    over_last_axes("rms_norm", x, normalized_shape, weight, None, eps, false)
}

/// [`layer_norm`] over groups of `channels / num_groups` channels of `x`, which is `[batch, channels, ..]`.
///
/// `weight` and `bias` have one element for each channel (Wu and He, "Group Normalization", 2018).
///
/// # Errors
///
/// `num_groups` is zero or does not divide the channels; `weight` or `bias` is not `[channels]`; operands of several
/// dtypes, of one that is no float, or not on the CPU.
pub fn group_norm(
    x: &Tensor,
    num_groups: usize,
    weight: Option<&Tensor>,
    bias: Option<&Tensor>,
    eps: f64,
) -> Result<Tensor> {
    let name = "group_norm";
    check_float(name, "the input", x)?;
    let &[batch, channels, ref spatial @ ..] = x.dims() else {
        let found = x.dims();
        return Err(Error::operator(
            name,
            format!("the input has shape {found:?}; it must be [batch, channels, ..]"),
        ));
    };
    if num_groups == 0 || channels % num_groups != 0 {
        return Err(Error::operator(
            name,
            format!(
                "num_groups is {num_groups}; it must divide the {channels} channels of the input"
            ),
        ));
    }
    for (operand, tensor) in [("weight", weight), ("bias", bias)] {
        check_parameter(name, operand, tensor, &[channels])?;
    }
    let spatial = spatial.iter().product::<usize>();
    let n_columns = channels / num_groups * spatial;
    let kernel = Normalize {
        name,
        n_rows: batch * num_groups,
        n_columns,
        groups: num_groups,
        n_parameters: channels / num_groups,
        spatial,
        centered: true,
        has_weight: weight.is_some(),
        eps,
    };
    run(kernel, x, weight, bias)
}

fn over_last_axes(
    name: &'static str,
    x: &Tensor,
    normalized_shape: &[usize],
    weight: Option<&Tensor>,
    bias: Option<&Tensor>,
    eps: f64,
    centered: bool,
) -> Result<Tensor> {
    check_float(name, "the input", x)?;
    if normalized_shape.is_empty() || !x.dims().ends_with(normalized_shape) {
        let found = x.dims();
        return Err(Error::operator(
            name,
            format!(
                "normalized_shape is {normalized_shape:?}; it must be the last axes of the input, which has shape {found:?}"
            ),
        ));
    }
    for (operand, tensor) in [("weight", weight), ("bias", bias)] {
        check_parameter(name, operand, tensor, normalized_shape)?;
    }
    let n_columns = normalized_shape.iter().product::<usize>();
    let n_rows = x.elem_count().checked_div(n_columns).unwrap_or(0);
    run(
        Normalize::rows(name, [n_rows, n_columns], weight.is_some(), eps, centered),
        x,
        weight,
        bias,
    )
}

pub(super) fn check_parameter(
    name: &str,
    operand: &str,
    tensor: Option<&Tensor>,
    dims: &[usize],
) -> Result<()> {
    match tensor {
        Some(tensor) if tensor.dims() != dims => {
            let found = tensor.dims();
            Err(Error::operator(
                name,
                format!("{operand} has shape {found:?}; it must be {dims:?}"),
            ))
        }
        _ => Ok(()),
    }
}

fn run(
    kernel: Normalize,
    x: &Tensor,
    weight: Option<&Tensor>,
    bias: Option<&Tensor>,
) -> Result<Tensor> {
    in_wider(x, [weight, bias], |x, [weight, bias]| {
        let shape: &Shape = x.shape();
        match (weight, bias) {
            (None, None) => apply(kernel, [x], shape),
            (Some(weight), None) => apply(kernel, [x, weight], shape),
            (None, Some(bias)) => apply(kernel, [x, bias], shape),
            (Some(weight), Some(bias)) => apply(kernel, [x, weight, bias], shape),
        }
    })
}

/// Rows of `n_columns` elements, each normalized by itself; the operands are `x`, and weight and bias if there are any.
struct Normalize {
    name: &'static str,
    n_rows: usize,
    n_columns: usize,
    /// Rows repeat their parameters every so many rows.
    groups: usize,
    /// Parameters for each row: `n_columns / spatial`.
    n_parameters: usize,
    /// Neighbouring elements that share a parameter.
    spatial: usize,
    /// Whether the mean is subtracted.
    centered: bool,
    has_weight: bool,
    eps: f64,
}

impl Normalize {
    /// Rows of neighbouring elements, each with a parameter of its own.
    fn rows(
        name: &'static str,
        [n_rows, n_columns]: [usize; 2],
        has_weight: bool,
        eps: f64,
        centered: bool,
    ) -> Self {
        Self {
            name,
            n_rows,
            n_columns,
            groups: 1,
            n_parameters: n_columns,
            spatial: 1,
            centered,
            has_weight,
            eps,
        }
    }

    /// Mean (zero if it is not subtracted) and reciprocal deviation.
    #[inline(always)]
    fn statistics<T: Real>(&self, x: &[T]) -> (T, T) {
        let n = T::of(x.len() as f64);
        let mean = if self.centered {
            sum_of(
                [x],
                #[inline(always)]
                |[x]| x,
            ) / n
        } else {
            T::ZERO
        };
        let variance = sum_of(
            [x],
            #[inline(always)]
            |[x]| (x - mean) * (x - mean),
        ) / n;
        (mean, T::ONE / (variance + T::of(self.eps)).sqrt())
    }

    /// Parameters of a row: one for each `spatial` elements.
    #[inline(always)]
    fn parameters<'a, T>(&self, all: Option<&'a [T]>, row: usize) -> Option<&'a [T]> {
        let n = self.n_parameters;
        all.map(
            #[inline(always)]
            |all| &all[row % self.groups * n..][..n],
        )
    }

    /// One row normalized.
    #[inline(always)]
    fn row<T: Real>(
        &self,
        row: usize,
        x: &[T],
        weight: Option<&[T]>,
        bias: Option<&[T]>,
        out: &mut [T],
    ) {
        let (mean, scale) = self.statistics(x);
        let weight = self.parameters(weight, row);
        let bias = self.parameters(bias, row);
        match (weight, bias) {
            (None, None) => fill(
                out,
                1,
                #[inline(always)]
                |i, _| (x[i] - mean) * scale,
            ),
            (Some(weight), None) => fill(
                out,
                self.spatial,
                #[inline(always)]
                |i, p| (x[i] - mean) * scale * weight[p],
            ),
            (None, Some(bias)) => fill(
                out,
                self.spatial,
                #[inline(always)]
                |i, p| (x[i] - mean) * scale + bias[p],
            ),
            (Some(weight), Some(bias)) => fill(
                out,
                self.spatial,
                #[inline(always)]
                |i, p| (x[i] - mean) * scale * weight[p] + bias[p],
            ),
        }
    }

    fn split<'a, T, const N: usize>(
        &self,
        inputs: [&'a [T]; N],
    ) -> (&'a [T], Option<&'a [T]>, Option<&'a [T]>) {
        let weight = if self.has_weight { inputs.get(1) } else { None };
        let bias = inputs.get(if self.has_weight { 2 } else { 1 });
        (inputs[0], weight.copied(), bias.copied())
    }
}

/// `out[i] = f(i, i / spatial)`, the second being the parameter's index.
#[inline(always)]
fn fill<T: Real>(out: &mut [T], spatial: usize, f: impl Fn(usize, usize) -> T) {
    if spatial == 1 {
        for (i, out) in out.iter_mut().enumerate() {
            *out = f(i, i);
        }
    } else {
        for (p, out) in out.chunks_exact_mut(spatial).enumerate() {
            for (i, out) in out.iter_mut().enumerate() {
                *out = f(p * spatial + i, p);
            }
        }
    }
}

/// [`layer_norm`], or without `centered` [`rms_norm`], of codes in rows as long as the parameters, as codes.
pub(crate) fn normalize_codes(
    x: CodesOf<'_>,
    n_columns: usize,
    [weight, bias]: [Option<&[f32]>; 2],
    (eps, centered): (f64, bool),
    to: &Uniform,
) -> Quantized {
    let n_rows = x.codes.len().checked_div(n_columns).unwrap_or(0);
    let normalize = Normalize::rows("", [n_rows, n_columns], weight.is_some(), eps, centered);
    quantize_rows(
        [x],
        n_columns,
        to,
        #[inline(always)]
        |row, [x], out| normalize.row(row, x, weight, bias, out),
    )
}

/// The same of values, the results finished in the cache.
pub(crate) fn normalize_then(
    x: &[f32],
    n_columns: usize,
    [weight, bias]: [Option<&[f32]>; 2],
    (eps, centered): (f64, bool),
    then: &Finish,
) -> Vec<f32> {
    let n_rows = x.len().checked_div(n_columns).unwrap_or(0);
    let normalize = Normalize::rows("", [n_rows, n_columns], weight.is_some(), eps, centered);
    fill_rows(
        n_rows,
        n_columns,
        #[inline(always)]
        |row, out| {
            normalize.row(row, &x[row * n_columns..][..n_columns], weight, bias, out);
            then.block(out);
        },
    )
}

impl<const N: usize> Kernel<N> for Normalize {
    fn name(&self) -> &'static str {
        self.name
    }

    fn forward<T: Real>(&self, inputs: [&[T]; N]) -> Vec<T> {
        let (x, weight, bias) = self.split(inputs);
        let n = self.n_columns;
        fill_rows(
            self.n_rows,
            n,
            #[inline(always)]
            |row, out| self.row(row, &x[row * n..][..n], weight, bias, out),
        )
    }

    fn backward<T: Real>(
        &self,
        inputs: [&[T]; N],
        _y: &[T],
        g: &[T],
        wanted: [bool; N],
    ) -> [Option<Vec<T>>; N] {
        let (x, weight, _) = self.split(inputs);
        let mut grads = [const { None }; N];
        if wanted[0] {
            grads[0] = Some(self.input_gradient(x, weight, g));
        }
        if wanted[1..].iter().any(|&w| w) {
            let [weight_grad, bias_grad] = self.parameter_gradients(x, g);
            let mut found =
                if self.has_weight { vec![weight_grad, bias_grad] } else { vec![bias_grad] }
                    .into_iter();
            for i in 1..N {
                let grad = found.next();
                grads[i] = if wanted[i] { grad } else { None };
            }
        }
        grads
    }
}

impl Normalize {
    fn input_gradient<T: Real>(&self, x: &[T], weight: Option<&[T]>, g: &[T]) -> Vec<T> {
        let n = self.n_columns;
        // With h = (x - mean) * scale and u = g * weight: scale * (u - mean(u) - h * mean(u * h)).
        fill_rows(
            self.n_rows,
            n,
            #[inline(always)]
            |row, out| {
                let x = &x[row * n..][..n];
                let g = &g[row * n..][..n];
                let (mean, scale) = self.statistics(x);
                match self.parameters(weight, row) {
                    Some(weight) => fill(
                        out,
                        self.spatial,
                        #[inline(always)]
                        |i, p| g[i] * weight[p],
                    ),
                    None => out.copy_from_slice(g),
                }
                let along = sum_of(
                    [&*out, x],
                    #[inline(always)]
                    |[u, x]| u * ((x - mean) * scale),
                ) / T::of(n as f64);
                let shift = if self.centered {
                    sum_of(
                        [&*out],
                        #[inline(always)]
                        |[u]| u,
                    ) / T::of(n as f64)
                } else {
                    T::ZERO
                };
                for (out, &x) in out.iter_mut().zip(x) {
                    *out = scale * (*out - shift - (x - mean) * scale * along);
                }
            },
        )
    }

    /// The gradients of weight and bias.
    fn parameter_gradients<T: Real>(&self, x: &[T], g: &[T]) -> [Vec<T>; 2] {
        let (n, spatial) = (self.n_columns, self.spatial);
        let per_row = self.n_parameters;
        let width = per_row * self.groups;
        let mut sums = sum_rows(
            self.n_rows,
            2 * width,
            x.len(),
            #[inline(always)]
            |row, sums| {
                let x = &x[row * n..][..n];
                let g = &g[row * n..][..n];
                if x.is_empty() {
                    return;
                }
                let (mean, scale) = self.statistics(x);
                let (weight, bias) = sums.split_at_mut(width);
                let first = row % self.groups * per_row;
                let weight = &mut weight[first..][..per_row];
                let bias = &mut bias[first..][..per_row];
                if spatial == 1 {
                    for i in 0..per_row {
                        weight[i] += g[i] * ((x[i] - mean) * scale);
                        bias[i] += g[i];
                    }
                } else {
                    for p in 0..per_row {
                        let x = &x[p * spatial..][..spatial];
                        let g = &g[p * spatial..][..spatial];
                        weight[p] += sum_of(
                            [x, g],
                            #[inline(always)]
                            |[x, g]| g * ((x - mean) * scale),
                        );
                        bias[p] += sum_of(
                            [g],
                            #[inline(always)]
                            |[g]| g,
                        );
                    }
                }
            },
        );
        let bias = sums.split_off(width);
        [sums, bias]
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Var};

    use super::super::testing::*;
    use super::*;

    /// Rows of `n` elements normalized by the definition; `p(row, column)` is the parameters' index.
    fn twin(
        x: &Tensor,
        n: usize,
        centered: bool,
        eps: f64,
        weight: Option<&Tensor>,
        bias: Option<&Tensor>,
        p: impl Fn(usize, usize) -> usize,
    ) -> Vec<f64> {
        let weight = weight.map(values);
        let bias = bias.map(values);
        let mut out = Vec::new();
        for (row, x) in values(x).chunks(n).enumerate() {
            let mean = if centered { x.iter().sum::<f64>() / n as f64 } else { 0.0 };
            let variance = x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n as f64;
            for (column, x) in x.iter().enumerate() {
                let i = p(row, column);
                let y = (x - mean) / (variance + eps).sqrt();
                let y = y * weight.as_ref().map_or(1.0, |w| w[i]);
                out.push(y + bias.as_ref().map_or(0.0, |b| b[i]));
            }
        }
        out
    }

    const DTYPES: [(DType, f64); 4] =
        [(DType::F64, 1e-13), (DType::F32, 2e-6), (DType::F16, 2e-3), (DType::BF16, 2e-2)];

    #[test]
    fn normalizations_equal_their_definition_in_every_dtype() {
        for (dtype, tolerance) in DTYPES {
            let x = numbers(&[2, 6, 7, 5], 1).to_dtype(dtype).unwrap();
            let w = numbers(&[7, 5], 2).to_dtype(dtype).unwrap();
            let b = numbers(&[7, 5], 3).to_dtype(dtype).unwrap();
            let channel_w = numbers(&[6], 4).to_dtype(dtype).unwrap();
            let channel_b = numbers(&[6], 5).to_dtype(dtype).unwrap();
            for x in [x.clone(), strided(&x)] {
                for (w, b) in
                    [(None, None), (Some(&w), None), (None, Some(&b)), (Some(&w), Some(&b))]
                {
                    let y = layer_norm(&x, &[7, 5], w, b, 1e-5).unwrap();
                    assert_close(&y, &twin(&x, 35, true, 1e-5, w, b, |_, i| i), tolerance);
                }
                for w in [None, Some(&w)] {
                    let y = rms_norm(&x, &[7, 5], w, Some(1e-3)).unwrap();
                    assert_close(&y, &twin(&x, 35, false, 1e-3, w, None, |_, i| i), tolerance);
                }
                let (w, b) = (&channel_w, &channel_b);
                for (w, b) in [(None, None), (Some(w), None), (None, Some(b)), (Some(w), Some(b))] {
                    let y = group_norm(&x, 3, w, b, 1e-5).unwrap();
                    let p = |row: usize, i: usize| row % 3 * 2 + i / 35;
                    assert_close(&y, &twin(&x, 70, true, 1e-5, w, b, p), tolerance);
                }
            }
        }
    }

    #[test]
    fn every_operand_has_an_exact_gradient() {
        let x = numbers(&[2, 4, 3], 1);
        let (w, b) = (numbers(&[4, 3], 2), numbers(&[4, 3], 3));
        let (cw, cb) = (numbers(&[4], 2), numbers(&[4], 3));
        let inputs = [x.clone(), w.clone(), b.clone()];
        check_gradients(&inputs[..1], |t| layer_norm(&t[0], &[3], None, None, 1e-5));
        check_gradients(&inputs, |t| layer_norm(&t[0], &[4, 3], Some(&t[1]), Some(&t[2]), 1e-5));
        check_gradients(&inputs[..2], |t| layer_norm(&t[0], &[4, 3], Some(&t[1]), None, 1e-5));
        check_gradients(&inputs[..2], |t| layer_norm(&t[0], &[4, 3], None, Some(&t[1]), 1e-5));
        check_gradients(&inputs[..1], |t| rms_norm(&t[0], &[3], None, None));
        check_gradients(&inputs[..2], |t| rms_norm(&t[0], &[4, 3], Some(&t[1]), Some(0.1)));
        let inputs = [x, cw, cb];
        check_gradients(&inputs, |t| group_norm(&t[0], 2, Some(&t[1]), Some(&t[2]), 1e-5));
        check_gradients(&inputs[..1], |t| group_norm(&t[0], 1, None, None, 1e-5));
        check_gradients(&inputs[..2], |t| group_norm(&t[0], 4, None, Some(&t[1]), 1e-5));
    }

    /// candle_nn's `layer_norm` and `rms_norm` have no gradient: the variable below gets none.
    #[test]
    fn the_gradient_reaches_a_variable_below_in_every_dtype() {
        for (dtype, _) in DTYPES {
            let v = Var::from_tensor(&numbers(&[2, 3], 1).to_dtype(dtype).unwrap()).unwrap();
            let ones = Tensor::ones(3, dtype, &Device::Cpu).unwrap();
            for y in [
                layer_norm(&v, &[3], Some(&ones), Some(&ones), 1e-5).unwrap(),
                rms_norm(&v, &[3], Some(&ones), Some(1e-1)).unwrap(),
            ] {
                let grads = (y.exp().unwrap()).sum_all().unwrap().backward().unwrap();
                let grad = grads.get(&v).expect("a gradient");
                assert_eq!(grad.dtype(), dtype);
                assert!(values(grad).iter().any(|&g| g != 0.0));
            }
        }
    }

    #[test]
    fn any_number_of_threads_gives_the_same_bytes() {
        let x = numbers(&[100, 8, 100], 1).to_dtype(DType::F32).unwrap();
        let (w, b) = (numbers(&[100], 2), numbers(&[8], 3));
        let (w, b) = (w.to_dtype(DType::F32).unwrap(), b.to_dtype(DType::F32).unwrap());
        check_threads(|| {
            let v = Var::from_tensor(&x).unwrap();
            let (w, b) = (Var::from_tensor(&w).unwrap(), Var::from_tensor(&b).unwrap());
            let y = layer_norm(&v, &[100], Some(&w), Some(&w), 1e-5).unwrap();
            let y = group_norm(&y, 4, Some(&b), Some(&b), 1e-5).unwrap();
            let grads = y.sqr().unwrap().sum_all().unwrap().backward().unwrap();
            let grads = [&v, &w, &b].map(|v| bits(grads.get(v).unwrap()));
            [bits(&y), grads.concat()].concat()
        });
    }

    #[test]
    fn empty_inputs_give_empty_results() {
        let x = Tensor::zeros((0, 4), DType::F32, &Device::Cpu).unwrap();
        let w = Var::ones(4, DType::F32, &Device::Cpu).unwrap();
        let y = layer_norm(&x, &[4], Some(&w), None, 1e-5).unwrap();
        assert_eq!(y.dims(), [0, 4]);
        let grads = y.sum_all().unwrap().backward().unwrap();
        assert_close(grads.get(&w).unwrap(), &[0.0; 4], 0.0);
        let x = Tensor::zeros((2, 4, 0), DType::F32, &Device::Cpu).unwrap();
        let y = group_norm(&x, 2, Some(&w), None, 1e-5).unwrap();
        let grads = y.sum_all().unwrap().backward().unwrap();
        assert_close(grads.get(&w).unwrap(), &[0.0; 4], 0.0);
    }

    #[test]
    fn errors_name_what_is_wrong() {
        let x = numbers(&[2, 6, 4], 1);
        let message = |r: Result<Tensor>| r.unwrap_err().to_string();
        assert_eq!(
            message(layer_norm(&x, &[6], None, None, 1e-5)),
            "layer_norm: normalized_shape is [6]; it must be the last axes of the input, which has shape [2, 6, 4]"
        );
        assert_eq!(
            message(rms_norm(&x, &[4], Some(&x), None)),
            "rms_norm: weight has shape [2, 6, 4]; it must be [4]"
        );
        assert_eq!(
            message(group_norm(&x, 4, None, None, 1e-5)),
            "group_norm: num_groups is 4; it must divide the 6 channels of the input"
        );
        assert!(group_norm(&numbers(&[3], 1), 1, None, None, 1e-5).is_err());
        assert!(group_norm(&x, 0, None, None, 1e-5).is_err());
    }
}
