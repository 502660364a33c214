//! Products of matrices.
//!
//! The products themselves are candle's, on strided operands without copies. Candle's backward pass computes the
//! gradients of both operands, also of frozen ones, and transposes by copying; this one does neither.

mod operands;

use candle_core::{CpuStorage, CustomOp2, CustomOp3, Layout, Shape, Tensor};
use ff_kernels::simd::{Vectorized, dispatch};
use half::{bf16, f16};

pub(crate) use self::operands::merge;
use self::operands::{batch_of, contiguous, gemm, rows_of, several_dtypes, widen};
use super::custom::{Stored, check_floats, dense};
use super::finish::Finish;
use super::parallel::for_each_chunk;
use super::reduce::{column_sums, sum_to};
use super::shape::broadcast_dims;
use crate::tensor::{Error, Result};

/// `x Wᵀ + b`: `x` is `[.., in]`, `weight` `[out, in]` (or `[in]`, which gives `[..]`), `bias` `[out]`.
///
/// `f16` and `bf16` are multiplied and summed in `f32`, and rounded once.
///
/// ```
/// use candle_core::{Device, Tensor};
/// use fastforward::tensor::float::linear;
///
/// let x = Tensor::new(&[[1.0f32, 2.0]], &Device::Cpu)?;
/// let weight = Tensor::new(&[[1.0f32, 0.0], [0.0, 1.0], [1.0, 1.0]], &Device::Cpu)?;
/// let bias = Tensor::new(&[0.5f32, 0.5, 0.0], &Device::Cpu)?;
/// assert_eq!(linear(&x, &weight, Some(&bias))?.to_vec2::<f32>()?, [[1.5, 2.5, 3.0]]);
/// # Ok::<(), fastforward::tensor::Error>(())
/// ```
///
/// # Errors
///
/// Shapes that do not fit; operands of several dtypes, of one that is no float, or not on the CPU.
pub fn linear(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    run(x, weight, bias, None)
}

/// [`linear`] of `f32` operands that track nothing, the results finished in the cache.
pub(crate) fn linear_then(
    x: &Tensor,
    weight: &Tensor,
    bias: &Tensor,
    then: Finish,
) -> Result<Tensor> {
    run(x, weight, Some(bias), Some(then))
}

fn run(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>, then: Option<Finish>) -> Result<Tensor> {
    if weight.rank() == 1 {
        let bias = match bias {
            Some(bias) if bias.elem_count() == 1 => Some(bias.reshape(1)?),
            Some(bias) => {
                let found = bias.dims();
                return Err(Error::operator(
                    "linear",
                    format!(
                        "the bias has shape {found:?}; beside a weight of one axis it must be one element"
                    ),
                ));
            }
            None => None,
        };
        let y = run(x, &weight.unsqueeze(0)?, bias.as_ref(), then)?;
        return Ok(y.squeeze(y.rank() - 1)?);
    }
    let (x_dims, weight_dims) = (x.dims(), weight.dims());
    let (Some((&k, leading)), &[n, k_weight]) = (x_dims.split_last(), weight_dims) else {
        return Err(Error::operator(
            "linear",
            format!(
                "the input has shape {x_dims:?} and the weight {weight_dims:?}; they must be [.., in] and [out, in]"
            ),
        ));
    };
    if k != k_weight {
        return Err(Error::operator(
            "linear",
            format!(
                "the input has shape {x_dims:?}, its last axis must be {k_weight} for a weight of shape {weight_dims:?}"
            ),
        ));
    }
    let op = Linear { m: leading.iter().product(), k, n, leading: leading.to_vec(), then };
    let Some(bias) = bias else {
        check_floats("linear", &[x, weight])?;
        let tracks = x.track_op() || weight.track_op();
        return Ok(if tracks {
            x.apply_op2(weight, op)?
        } else {
            x.apply_op2_no_bwd(weight, &op)?
        });
    };
    if bias.dims() != [n] {
        let found = bias.dims();
        return Err(Error::operator(
            "linear",
            format!(
                "the bias has shape {found:?}; for a weight of shape {weight_dims:?} it must be [{n}]"
            ),
        ));
    }
    check_floats("linear", &[x, weight, bias])?;
    let tracks = x.track_op() || weight.track_op() || bias.track_op();
    Ok(if tracks { x.apply_op3(weight, bias, op)? } else { x.apply_op3_no_bwd(weight, bias, &op)? })
}

/// The product of two tensors by PyTorch's rules.
///
/// Two vectors give their inner product; a vector beside a matrix is a row on the left and a column on the right, and
/// its axis is gone from the result; other axes than the last two are a batch and broadcast.
///
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use fastforward::tensor::float::matmul;
///
/// let a = Tensor::ones((2, 1, 3, 4), DType::F32, &Device::Cpu)?;
/// let b = Tensor::ones((5, 4, 6), DType::F32, &Device::Cpu)?;
/// assert_eq!(matmul(&a, &b)?.dims(), [2, 5, 3, 6]);
/// # Ok::<(), fastforward::tensor::Error>(())
/// ```
///
/// # Errors
///
/// Shapes that do not fit; operands of several dtypes, of one that is no float, or not on the CPU.
pub fn matmul(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    product("matmul", a, b)
}

/// The product of two matrices, `[m, k]` and `[k, n]`.
///
/// # Errors
///
/// As [`matmul`], and if an operand is no matrix.
pub fn mm(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    if a.rank() != 2 || b.rank() != 2 {
        return Err(wrong_shapes("mm", a, b, "both must be matrices"));
    }
    product("mm", a, b)
}

/// The products of a batch of matrices, `[b, m, k]` and `[b, k, n]`; nothing broadcasts.
///
/// # Errors
///
/// As [`matmul`], and if an operand is no batch of as many matrices as the other.
pub fn bmm(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    if a.rank() != 3 || b.rank() != 3 || a.dims()[0] != b.dims()[0] {
        return Err(wrong_shapes("bmm", a, b, "they must be [b, m, k] and [b, k, n]"));
    }
    product("bmm", a, b)
}

fn wrong_shapes(operator: &str, a: &Tensor, b: &Tensor, right: &str) -> Error {
    let (a, b) = (a.dims(), b.dims());
    Error::operator(operator, format!("the operands have shapes {a:?} and {b:?}; {right}"))
}

fn product(operator: &'static str, a: &Tensor, b: &Tensor) -> Result<Tensor> {
    check_floats(operator, &[a, b])?;
    match (a.rank(), b.rank()) {
        (0, _) | (_, 0) => {
            return Err(wrong_shapes(operator, a, b, "both need at least one axis"));
        }
        (1, _) => {
            let y = product(operator, &a.unsqueeze(0)?, b)?;
            // The row that `a` was turned into; it is the last axis where `b` was a vector.
            let axis = y.rank() - if b.rank() == 1 { 1 } else { 2 };
            return Ok(y.squeeze(axis)?);
        }
        (_, 1) => {
            let y = product(operator, a, &b.unsqueeze(1)?)?;
            return Ok(y.squeeze(y.rank() - 1)?);
        }
        _ => {}
    }
    let Some(geometry) = Geometry::new(a.dims(), b.dims()) else {
        return Err(wrong_shapes(
            operator,
            a,
            b,
            "they must be [.., m, k] and [.., k, n] with batch axes that broadcast",
        ));
    };
    let op = MatMul { operator, geometry };
    let tracks = a.track_op() || b.track_op();
    Ok(if tracks { a.apply_op2(b, op)? } else { a.apply_op2_no_bwd(b, &op)? })
}

/// The sizes of a product of matrices.
struct Geometry {
    /// The batch axes of the result.
    batch: Vec<usize>,
    m: usize,
    k: usize,
    n: usize,
}

impl Geometry {
    /// `None` if the shapes do not fit.
    fn new(a: &[usize], b: &[usize]) -> Option<Self> {
        let ([a_batch @ .., m, k], [b_batch @ .., k_b, n]) = (a, b) else { return None };
        let batch = broadcast_dims(a_batch, b_batch)?;
        (k == k_b).then_some(Self { batch, m: *m, k: *k, n: *n })
    }

    fn shape(&self) -> Shape {
        let mut dims = self.batch.clone();
        dims.extend([self.m, self.n]);
        Shape::from(dims)
    }

    /// The product, in row-major order.
    fn run(
        &self,
        (a, a_layout): (&CpuStorage, &Layout),
        (b, b_layout): (&CpuStorage, &Layout),
    ) -> candle_core::Result<CpuStorage> {
        let Self { batch, m, k, n } = self;
        let (m, k, n) = (*m, *k, *n);
        let b_rank = b_layout.dims().len();
        let single = b_layout.dims()[..b_rank - 2].iter().all(|&d| d == 1);
        if single {
            // One matrix on the right: the batch on the left is more rows.
            let rows = batch.iter().product::<usize>() * m;
            let (b_dims, b_strides) = (b_layout.dims(), b_layout.stride());
            let b_layout = Layout::new(
                Shape::from(&b_dims[b_rank - 2..]),
                b_strides[b_rank - 2..].to_vec(),
                b_layout.start_offset(),
            );
            return match rows_of(a_layout) {
                Some(a_layout) => gemm((a, &a_layout), (b, &b_layout), (1, rows, n, k)),
                None => {
                    let (a, a_layout) = contiguous(a, a_layout, (rows, k))?;
                    gemm((&a, &a_layout), (b, &b_layout), (1, rows, n, k))
                }
            };
        }
        let count = batch.iter().product();
        let expand = |layout: &Layout, rows: usize, columns: usize| {
            let mut dims = batch.clone();
            dims.extend([rows, columns]);
            layout.broadcast_as(dims)
        };
        let (a_layout, b_layout) = (expand(a_layout, m, k)?, expand(b_layout, k, n)?);
        let a_own;
        let (a, a_layout) = match batch_of(&a_layout) {
            Some(layout) => (a, layout),
            None => {
                a_own = contiguous(a, &a_layout, (count, m, k))?;
                (&a_own.0, a_own.1.clone())
            }
        };
        let b_own;
        let (b, b_layout) = match batch_of(&b_layout) {
            Some(layout) => (b, layout),
            None => {
                b_own = contiguous(b, &b_layout, (count, k, n))?;
                (&b_own.0, b_own.1.clone())
            }
        };
        gemm((a, &a_layout), (b, &b_layout), (count, m, n, k))
    }
}

struct MatMul {
    operator: &'static str,
    geometry: Geometry,
}

impl CustomOp2 for MatMul {
    fn name(&self) -> &'static str {
        self.operator
    }

    fn cpu_fwd(
        &self,
        a: &CpuStorage,
        a_layout: &Layout,
        b: &CpuStorage,
        b_layout: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        Ok((self.geometry.run((a, a_layout), (b, b_layout))?, self.geometry.shape()))
    }

    fn bwd(
        &self,
        a: &Tensor,
        b: &Tensor,
        _y: &Tensor,
        g: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>)> {
        let Geometry { batch, m, k, n } = &self.geometry;
        let transposed = |t: &Tensor| t.transpose(t.rank() - 1, t.rank() - 2);
        let (a_data, b_data) = (a.detach(), b.detach());
        let a_grad = match a.track_op() {
            true => Some(sum_to(&plain(g, &transposed(&b_data)?)?, a.dims())?),
            false => None,
        };
        let b_grad = match b.track_op() {
            true if b.elem_count() == k * n => {
                // One matrix on the right: summing over the batch is part of the product.
                let rows = batch.iter().product::<usize>() * m;
                let a =
                    a_data.broadcast_as([&batch[..], &[*m, *k]].concat())?.reshape((rows, *k))?;
                let g = g.reshape((rows, *n))?;
                Some(plain(&a.t()?, &g)?.reshape(b.dims())?)
            }
            true => Some(sum_to(&plain(&transposed(&a_data)?, g)?, b.dims())?),
            false => None,
        };
        Ok((a_grad, b_grad))
    }
}

/// The product of tensors that track nothing, as the shapes of an operator's operands and gradient allow it.
fn plain(a: &Tensor, b: &Tensor) -> candle_core::Result<Tensor> {
    let geometry = Geometry::new(a.dims(), b.dims()).ok_or_else(|| {
        wrong_shapes("matmul", a, b, "a gradient must have the result's").into_candle()
    })?;
    a.apply_op2_no_bwd(b, &MatMul { operator: "matmul", geometry })
}

struct Linear {
    /// Rows of the input, `leading` multiplied.
    m: usize,
    k: usize,
    n: usize,
    leading: Vec<usize>,
    /// What becomes of sums with the bias in the cache.
    then: Option<Finish>,
}

impl Linear {
    fn forward(
        &self,
        x: (&CpuStorage, &Layout),
        (weight, layout): (&CpuStorage, &Layout),
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        let geometry = Geometry { batch: self.leading.clone(), m: 1, k: self.k, n: self.n };
        // Rows as a batch of matrices with one row each, all times one matrix: that is one product.
        let mut dims = self.leading.clone();
        dims.extend([1, self.k]);
        let mut strides = x.1.stride().to_vec();
        strides.insert(strides.len() - 1, self.k);
        let x_layout = Layout::new(Shape::from(dims), strides, x.1.start_offset());
        let y = geometry.run((x.0, &x_layout), (weight, &layout.transpose(0, 1)?))?;
        let mut dims = self.leading.clone();
        dims.push(self.n);
        Ok((y, Shape::from(dims)))
    }

    fn backward(
        &self,
        x: &Tensor,
        weight: &Tensor,
        g: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>)> {
        let g = g.reshape((self.m, self.n))?;
        let x_grad = match x.track_op() {
            true => Some(plain(&g, &weight.detach())?.reshape(x.dims())?),
            false => None,
        };
        let weight_grad = match weight.track_op() {
            true => Some(plain(&g.t()?, &x.detach().reshape((self.m, self.k))?)?),
            false => None,
        };
        Ok((x_grad, weight_grad))
    }
}

impl CustomOp2 for Linear {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        self.forward((x, x_layout), (weight, weight_layout))
    }

    fn bwd(
        &self,
        x: &Tensor,
        weight: &Tensor,
        _y: &Tensor,
        g: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>)> {
        self.backward(x, weight, g)
    }
}

impl CustomOp3 for Linear {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
        bias: &CpuStorage,
        bias_layout: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        // Narrow types stay in f32 until the bias is added.
        let (x, x_layout) = widen(x, x_layout)?;
        let (weight, weight_layout) = widen(weight, weight_layout)?;
        let (y, shape) = self.forward((x.get(), &x_layout), (weight.get(), &weight_layout))?;
        let y = match (y, bias) {
            (CpuStorage::F64(y), CpuStorage::F64(bias)) => {
                CpuStorage::F64(add_bias(y, &dense(bias, bias_layout)))
            }
            (CpuStorage::F32(y), CpuStorage::F32(bias)) => {
                let bias = dense(bias, bias_layout);
                CpuStorage::F32(match &self.then {
                    Some(then) => add_bias_then(y, &bias, then),
                    None => add_bias(y, &bias),
                })
            }
            (CpuStorage::F32(y), CpuStorage::F16(_)) => {
                let bias = f16::dense(bias, bias_layout).unwrap_or_default();
                f16::store(add_bias(y, &bias))
            }
            (CpuStorage::F32(y), CpuStorage::BF16(_)) => {
                let bias = bf16::dense(bias, bias_layout).unwrap_or_default();
                bf16::store(add_bias(y, &bias))
            }
            _ => return Err(several_dtypes()),
        };
        Ok((y, shape))
    }

    fn bwd(
        &self,
        x: &Tensor,
        weight: &Tensor,
        bias: &Tensor,
        _y: &Tensor,
        g: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let (x, weight) = self.backward(x, weight, g)?;
        let bias = match bias.track_op() {
            true => Some(column_sums(g, self.m, self.n)?),
            false => None,
        };
        Ok((x, weight, bias))
    }
}

/// [`add_bias`], and something done with the sums while they are in the cache.
fn add_bias_then(mut y: Vec<f32>, bias: &[f32], then: &Finish) -> Vec<f32> {
    if bias.is_empty() {
        return y;
    }
    let rows = ((1 << 14) / bias.len()).max(1);
    for_each_chunk(&mut y, rows * bias.len(), &|_, y| dispatch(BiasThen { y, bias, then }));
    y
}

struct BiasThen<'a> {
    y: &'a mut [f32],
    bias: &'a [f32],
    then: &'a Finish,
}

impl Vectorized for BiasThen<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        for y in self.y.chunks_exact_mut(self.bias.len()) {
            for (y, &bias) in y.iter_mut().zip(self.bias) {
                *y += bias;
            }
            self.then.block(y);
        }
    }
}

fn add_bias<T: Copy + std::ops::AddAssign + Send + Sync>(mut y: Vec<T>, bias: &[T]) -> Vec<T> {
    if bias.is_empty() {
        return y;
    }
    let rows = ((1 << 14) / bias.len()).max(1);
    for_each_chunk(&mut y, rows * bias.len(), &|_, y| {
        for y in y.chunks_exact_mut(bias.len()) {
            for (y, &bias) in y.iter_mut().zip(bias) {
                *y += bias;
            }
        }
    });
    y
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device, Var};

    use super::super::testing::*;
    use super::*;

    /// The product of matrices by the definition, in `f64`.
    fn twin(a: &Tensor, b: &Tensor) -> Vec<f64> {
        let (m, k) = a.dims2().unwrap();
        let n = b.dims()[1];
        let (a, b) = (values(a), values(b));
        let cell = |i: usize, j: usize| (0..k).map(|l| a[i * k + l] * b[l * n + j]).sum::<f64>();
        (0..m * n).map(|i| cell(i / n, i % n)).collect()
    }

    #[test]
    fn linear_equals_its_definition_in_every_dtype() {
        for (dtype, tolerance) in
            [(DType::F64, 1e-12), (DType::F32, 1e-5), (DType::F16, 4e-3), (DType::BF16, 3e-2)]
        {
            let x = numbers(&[2, 3, 7], 1).to_dtype(dtype).unwrap();
            let w = numbers(&[5, 7], 2).to_dtype(dtype).unwrap();
            let b = numbers(&[5], 3).to_dtype(dtype).unwrap();
            let rows = twin(&x.reshape((6, 7)).unwrap(), &w.t().unwrap());
            for (x, w) in [(x.clone(), w.clone()), (strided(&x), strided(&w))] {
                let y = linear(&x, &w, None).unwrap();
                assert_eq!((y.dims(), y.dtype()), (&[2, 3, 5][..], dtype));
                assert_close(&y, &rows, tolerance);
                let y = linear(&x, &w, Some(&b)).unwrap();
                let b = values(&b);
                let rows: Vec<f64> = rows.iter().enumerate().map(|(i, y)| y + b[i % 5]).collect();
                assert_close(&y, &rows, tolerance);
            }
        }
    }

    #[test]
    fn linear_has_exact_gradients() {
        let inputs = [numbers(&[2, 3, 4], 1), numbers(&[5, 4], 2), numbers(&[5], 3)];
        check_gradients(&inputs, |t| linear(&t[0], &t[1], Some(&t[2])));
        check_gradients(&inputs[..2], |t| linear(&t[0], &t[1], None));
        let inputs = [numbers(&[2, 4], 1), numbers(&[4], 2), numbers(&[1], 3)];
        check_gradients(&inputs, |t| linear(&t[0], &t[1], Some(&t[2])));
        check_gradients(&[numbers(&[4], 1), numbers(&[3, 4], 2)], |t| linear(&t[0], &t[1], None));
    }

    #[test]
    fn matmul_follows_pytorch_shapes_and_has_exact_gradients() {
        // Left, right, result: batches that broadcast on one side, on both, and not at all.
        let cases: [(&[usize], &[usize], &[usize]); 11] = [
            (&[3], &[3], &[]),
            (&[3], &[3, 2], &[2]),
            (&[2, 3], &[3], &[2]),
            (&[2, 4, 3], &[3], &[2, 4]),
            (&[3], &[2, 3, 4], &[2, 4]),
            (&[2, 3], &[3, 4], &[2, 4]),
            (&[2, 2, 3], &[3, 4], &[2, 2, 4]),
            (&[2, 3], &[2, 3, 4], &[2, 2, 4]),
            (&[2, 1, 2, 3], &[3, 3, 2], &[2, 3, 2, 2]),
            (&[2, 1, 2, 3], &[1, 3, 3, 2], &[2, 3, 2, 2]),
            (&[2, 2, 2, 3], &[2, 2, 3, 2], &[2, 2, 2, 2]),
        ];
        for (a, b, shape) in cases {
            let inputs = [numbers(a, 1), numbers(b, 2)];
            assert_eq!(matmul(&inputs[0], &inputs[1]).unwrap().dims(), shape, "{a:?} {b:?}");
            check_gradients(&inputs, |t| matmul(&t[0], &t[1]));
        }
        let (a, b) = (numbers(&[4, 6], 1), numbers(&[6, 3], 2));
        assert_close(&mm(&a, &b).unwrap(), &twin(&a, &b), 1e-12);
        let (a, b) = (numbers(&[2, 4, 6], 1), numbers(&[2, 6, 3], 2));
        let expected: Vec<f64> =
            (0..2).flat_map(|i| twin(&a.get(i).unwrap(), &b.get(i).unwrap())).collect();
        assert_close(&bmm(&strided(&a), &strided(&b)).unwrap(), &expected, 1e-12);
        let a = numbers(&[2, 1, 4, 6], 1);
        let b = numbers(&[3, 6, 3], 2);
        let cell = |i: usize| twin(&a.get(i / 3).unwrap().get(0).unwrap(), &b.get(i % 3).unwrap());
        let expected: Vec<f64> = (0..6).flat_map(cell).collect();
        assert_close(&matmul(&a, &b).unwrap(), &expected, 1e-12);
    }

    #[test]
    fn empty_products_are_zeros() {
        let x = Tensor::zeros((2, 0), DType::F32, &Device::Cpu).unwrap();
        let w = Tensor::zeros((3, 0), DType::F32, &Device::Cpu).unwrap();
        let b = Tensor::new(&[1f32, 2.0, 3.0], &Device::Cpu).unwrap();
        assert_close(&linear(&x, &w, Some(&b)).unwrap(), &[1.0, 2.0, 3.0, 1.0, 2.0, 3.0], 0.0);
        let none = Tensor::zeros((0, 4), DType::F32, &Device::Cpu).unwrap();
        let w = Tensor::zeros((3, 4), DType::F32, &Device::Cpu).unwrap();
        assert_eq!(linear(&none, &w, Some(&b)).unwrap().dims(), [0, 3]);
    }

    #[test]
    fn any_number_of_threads_gives_the_same_bytes() {
        let x = numbers(&[300, 200], 1).to_dtype(DType::F32).unwrap();
        let w = numbers(&[250, 200], 2).to_dtype(DType::F32).unwrap();
        let b = numbers(&[250], 3).to_dtype(DType::F32).unwrap();
        check_threads(|| {
            let (x, w, b) = (
                Var::from_tensor(&x).unwrap(),
                Var::from_tensor(&w).unwrap(),
                Var::from_tensor(&b).unwrap(),
            );
            let y = linear(&x, &w, Some(&b)).unwrap();
            let grads = y.sqr().unwrap().sum_all().unwrap().backward().unwrap();
            let mut all = bits(&y);
            for v in [&x, &w, &b] {
                all.extend(bits(grads.get(v).unwrap()));
            }
            all
        });
    }

    #[test]
    fn errors_name_operator_and_operand() {
        let t = |dims: &[usize]| numbers(dims, 1);
        let message = |r: Result<Tensor>| r.unwrap_err().to_string();
        assert_eq!(
            message(linear(&t(&[2, 3]), &t(&[4, 5]), None)),
            "linear: the input has shape [2, 3], its last axis must be 5 for a weight of shape [4, 5]"
        );
        assert_eq!(
            message(linear(&t(&[2, 3]), &t(&[4, 3]), Some(&t(&[3])))),
            "linear: the bias has shape [3]; for a weight of shape [4, 3] it must be [4]"
        );
        assert_eq!(
            message(linear(&t(&[]), &t(&[4, 3]), None)),
            "linear: the input has shape [] and the weight [4, 3]; they must be [.., in] and [out, in]"
        );
        assert_eq!(
            message(matmul(&t(&[2, 3]), &t(&[4, 5]))),
            "matmul: the operands have shapes [2, 3] and [4, 5]; they must be [.., m, k] and [.., k, n] with batch \
             axes that broadcast"
        );
        assert!(matmul(&t(&[]), &t(&[4, 5])).is_err());
        assert!(mm(&t(&[2, 3, 4]), &t(&[4, 5])).is_err());
        assert!(bmm(&t(&[2, 3, 4]), &t(&[1, 4, 5])).is_err());
        let narrow = t(&[4, 3]).to_dtype(DType::F16).unwrap();
        assert_eq!(
            message(linear(&t(&[2, 3]), &narrow, None)),
            "linear: operands have dtypes f64, f16; convert them to one"
        );
        let codes = t(&[2, 3]).to_dtype(DType::U8).unwrap();
        assert!(
            message(linear(&codes, &codes, None)).starts_with("linear: an operand has dtype u8")
        );
    }
}
