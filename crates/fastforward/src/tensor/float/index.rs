//! Rows by their number: embedding tables, and adding to chosen rows.

use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp1, InplaceOp1, Layout, Shape, Tensor};
use half::{bf16, f16};

use super::custom::{Kernel, Stored, apply, check_cpu, dense, with_storages};
use super::real::Real;
use super::shape::{Around, axis, check_float};
use super::whole;
use crate::tensor::{Error, Result};

/// The settings of [`embedding`], with PyTorch's defaults.
#[derive(Debug, Clone, PartialEq)]
pub struct Embedding {
    /// A row that gets no gradient; negative numbers count from the end.
    pub padding_idx: Option<i64>,
    /// Rows that are looked up and longer than this are shortened to it, in the table itself.
    pub max_norm: Option<f64>,
    /// The `p` of the p-norm that `max_norm` limits; infinity is the largest absolute value.
    pub norm_type: f64,
    /// Whether a row's gradient is divided by how often the row was looked up.
    pub scale_grad_by_freq: bool,
    /// Sparse gradients, which candle does not have: `true` is an error.
    pub sparse: bool,
}

impl Default for Embedding {
    fn default() -> Self {
        Self {
            padding_idx: None,
            max_norm: None,
            norm_type: 2.0,
            scale_grad_by_freq: false,
            sparse: false,
        }
    }
}

/// The rows of `weight` (`[rows, width]`) that `ids` names, in shape `[..ids, width]`.
///
/// ```
/// use candle_core::{Device, Tensor};
/// use fastforward::tensor::float::{Embedding, embedding};
///
/// let weight = Tensor::new(&[[1.0f32, 2.0], [3.0, 4.0]], &Device::Cpu)?;
/// let ids = Tensor::new(&[1u32, 1, 0], &Device::Cpu)?;
/// let y = embedding(&ids, &weight, &Embedding::default())?;
/// assert_eq!(y.to_vec2::<f32>()?, [[3.0, 4.0], [3.0, 4.0], [1.0, 2.0]]);
/// # Ok::<(), fastforward::tensor::Error>(())
/// ```
///
/// # Errors
///
/// `ids` are no integers, or one is no row; `weight` is no matrix of floats; a tensor is not on the CPU;
/// `padding_idx` is no row; `norm_type` is not positive; `sparse`.
pub fn embedding(ids: &Tensor, weight: &Tensor, options: &Embedding) -> Result<Tensor> {
    let name = "embedding";
    let error = |what: String| Err(Error::operator(name, what));
    check_float(name, "the weight", weight)?;
    let &[n_rows, width] = weight.dims() else {
        let found = weight.dims();
        return error(format!("the weight has shape {found:?}; it must be [rows, width]"));
    };
    let rows = rows(name, "ids", ids, n_rows)?;
    if options.sparse {
        return error(
            "sparse gradients are not supported; leave sparse off: the values are the same".into(),
        );
    }
    let padding = match options.padding_idx {
        None => None,
        Some(row) => {
            let from_start = if row < 0 { row + n_rows as i64 } else { row };
            match usize::try_from(from_start) {
                Ok(row) if row < n_rows => Some(row),
                _ => return error(format!("padding_idx is {row}; the weight has {n_rows} rows")),
            }
        }
    };
    if let Some(max_norm) = options.max_norm {
        if options.norm_type.is_nan() || options.norm_type <= 0.0 {
            return error(format!("norm_type is {}; it must be positive", options.norm_type));
        }
        let mut rows = rows.to_vec();
        rows.sort_unstable();
        rows.dedup();
        weight.inplace_op1(&Shorten { rows, width, max_norm, norm_type: options.norm_type })?;
    }
    let mut dims = ids.dims().to_vec();
    dims.push(width);
    let op = Rows {
        rows,
        n_rows,
        width,
        padding,
        by_frequency: options.scale_grad_by_freq,
        shape: Shape::from(dims),
    };
    Ok(if weight.track_op() { weight.apply_op1(op)? } else { weight.apply_op1_no_bwd(&op)? })
}

/// Integers that must lie in `0..n_rows`; the error lists the first that do not.
fn rows(operator: &str, operand: &str, ids: &Tensor, n_rows: usize) -> Result<Arc<[usize]>> {
    check_cpu(operator, ids)?;
    if !ids.dtype().is_int() {
        let found = ids.dtype().as_str();
        return Err(Error::operator(
            operator,
            format!("{operand} has dtype {found}; it must hold integers"),
        ));
    }
    let ids = whole::elements(ids)?;
    let inside = |id: i64| usize::try_from(id).ok().filter(|&row| row < n_rows);
    let outside: Vec<i64> = ids.iter().copied().filter(|&id| inside(id).is_none()).collect();
    if !outside.is_empty() {
        let some: Vec<String> = outside.iter().take(5).map(i64::to_string).collect();
        let more = if outside.len() > 5 { ", .." } else { "" };
        return Err(Error::operator(
            operator,
            format!("{operand} holds {}{more}; it must lie in 0..{n_rows}", some.join(", ")),
        ));
    }
    Ok(ids.into_iter().filter_map(inside).collect())
}

/// Copies rows; it never converts the whole table.
struct Rows {
    rows: Arc<[usize]>,
    n_rows: usize,
    width: usize,
    padding: Option<usize>,
    by_frequency: bool,
    shape: Shape,
}

impl Rows {
    fn copy<T: Copy>(&self, data: &[T], layout: &Layout) -> Vec<T> {
        let data = dense(data, layout);
        let mut out = Vec::with_capacity(self.rows.len() * self.width);
        for &row in self.rows.iter() {
            out.extend_from_slice(&data[row * self.width..][..self.width]);
        }
        out
    }

    fn gradient<T: Real>(&self, g: &[T]) -> Vec<T> {
        let mut counts = vec![0u32; if self.by_frequency { self.n_rows } else { 0 }];
        if self.by_frequency {
            for &row in self.rows.iter() {
                counts[row] += 1;
            }
        }
        let mut out = vec![T::ZERO; self.n_rows * self.width];
        for (i, &row) in self.rows.iter().enumerate() {
            if self.padding == Some(row) {
                continue;
            }
            let scale = counts.get(row).map_or(T::ONE, |&n| T::ONE / T::of(f64::from(n)));
            let g = &g[i * self.width..][..self.width];
            for (out, &g) in out[row * self.width..][..self.width].iter_mut().zip(g) {
                *out += g * scale;
            }
        }
        out
    }
}

impl CustomOp1 for Rows {
    fn name(&self) -> &'static str {
        "embedding"
    }

    fn cpu_fwd(
        &self,
        weight: &CpuStorage,
        layout: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        let out = match weight {
            CpuStorage::F32(data) => CpuStorage::F32(self.copy(data, layout)),
            CpuStorage::F64(data) => CpuStorage::F64(self.copy(data, layout)),
            CpuStorage::F16(data) => CpuStorage::F16(self.copy(data, layout)),
            CpuStorage::BF16(data) => CpuStorage::BF16(self.copy(data, layout)),
            _ => return Err(no_floats()),
        };
        Ok((out, self.shape.clone()))
    }

    fn bwd(&self, weight: &Tensor, _y: &Tensor, g: &Tensor) -> candle_core::Result<Option<Tensor>> {
        if !weight.track_op() {
            return Ok(None);
        }
        fn run<S: Stored>(
            rows: &Rows,
            (storage, layout): (&CpuStorage, &Layout),
            shape: &Shape,
        ) -> candle_core::Result<Option<Tensor>> {
            let Some(g) = S::dense(storage, layout) else { return Ok(None) };
            S::tensor(rows.gradient(&g), shape).map(Some)
        }
        let mut found = None;
        with_storages(&[g], |operands| {
            found = match operands[0].0 {
                CpuStorage::F32(_) => run::<f32>(self, operands[0], weight.shape())?,
                CpuStorage::F64(_) => run::<f64>(self, operands[0], weight.shape())?,
                CpuStorage::F16(_) => run::<f16>(self, operands[0], weight.shape())?,
                CpuStorage::BF16(_) => run::<bf16>(self, operands[0], weight.shape())?,
                _ => None,
            };
            Ok(())
        })?;
        found.map(Some).ok_or_else(no_floats)
    }
}

fn no_floats() -> candle_core::Error {
    Error::operator("embedding", "the weight holds no floats").into_candle()
}

/// Shortens rows of a table in place.
struct Shorten {
    rows: Vec<usize>,
    width: usize,
    max_norm: f64,
    norm_type: f64,
}

impl Shorten {
    fn run<T: Copy>(
        &self,
        data: &mut [T],
        layout: &Layout,
        get: impl Fn(T) -> f64,
        set: impl Fn(f64) -> T,
    ) {
        let (row_stride, stride) = match layout.stride() {
            &[row_stride, stride] => (row_stride, stride),
            // The table is a matrix: its shape was checked.
            _ => return,
        };
        for row in &self.rows {
            let at = |i: usize| layout.start_offset() + row * row_stride + i * stride;
            let size = |i: usize| get(data[at(i)]).abs();
            let p = self.norm_type;
            let norm = if p == 2.0 {
                (0..self.width).map(|i| size(i) * size(i)).sum::<f64>().sqrt()
            } else if p.is_infinite() {
                (0..self.width).map(size).fold(0.0, f64::max)
            } else {
                (0..self.width).map(|i| size(i).powf(p)).sum::<f64>().powf(1.0 / p)
            };
            if norm > self.max_norm {
                // PyTorch's guard against division by zero.
                let scale = self.max_norm / (norm + 1e-7);
                for i in 0..self.width {
                    data[at(i)] = set(get(data[at(i)]) * scale);
                }
            }
        }
    }
}

impl InplaceOp1 for Shorten {
    fn name(&self) -> &'static str {
        "embedding"
    }

    fn cpu_fwd(&self, weight: &mut CpuStorage, layout: &Layout) -> candle_core::Result<()> {
        match weight {
            CpuStorage::F32(data) => self.run(data, layout, f64::from, |v| v as f32),
            CpuStorage::F64(data) => self.run(data, layout, |v| v, |v| v),
            CpuStorage::F16(data) => self.run(data, layout, f16::to_f64, f16::from_f64),
            CpuStorage::BF16(data) => self.run(data, layout, bf16::to_f64, bf16::from_f64),
            _ => return Err(no_floats()),
        }
        Ok(())
    }
}

/// `x` with `alpha * source[i]` added to its entry `index[i]` along `dim`, for each `i` in turn.
///
/// `source` has the shape of `x`, with as many entries along `dim` as `index`. An index may repeat; its additions are
/// made in order, so the bytes are the same for any number of threads.
///
/// # Errors
///
/// Shapes that do not fit; an index that is no integer or no entry; operands of several dtypes or not on the CPU; an
/// `alpha` with a fraction for integers.
pub fn index_add(
    x: &Tensor,
    dim: i64,
    index: &Tensor,
    source: &Tensor,
    alpha: f64,
) -> Result<Tensor> {
    let name = "index_add";
    let axis = axis(name, dim, x.rank())?;
    let around = Around::axis(x.dims(), axis);
    let rows = match index.dims() {
        [] | [_] => rows(name, "index", index, around.n)?,
        found => {
            return Err(Error::operator(
                name,
                format!("index has shape {found:?}; it must be a vector"),
            ));
        }
    };
    let mut dims = x.dims().to_vec();
    if let Some(n) = dims.get_mut(axis) {
        *n = rows.len();
    }
    if source.dims() != dims || (x.rank() == 0 && rows.len() != 1) {
        let found = source.dims();
        return Err(Error::operator(
            name,
            format!(
                "source has shape {found:?}; for an input of shape {:?} and {} indices along axis {axis} it must be \
                 {dims:?}",
                x.dims(),
                rows.len()
            ),
        ));
    }
    if x.dtype().is_int() && source.dtype() == x.dtype() {
        check_cpu(name, x)?;
        if alpha.fract() != 0.0 || alpha.abs() > 9e15 {
            return Err(Error::operator(
                name,
                format!("alpha is {alpha}; for integers it must be whole"),
            ));
        }
        let (mut out, source) = (whole::elements(x)?, whole::elements(source)?);
        IndexAdd { rows, around, alpha }.each(|to, from| {
            out[to] = out[to].wrapping_add(source[from].wrapping_mul(alpha as i64));
        });
        let out = Tensor::from_vec(out, x.shape(), &candle_core::Device::Cpu)?;
        return Ok(out.to_dtype(x.dtype())?);
    }
    apply(IndexAdd { rows, around, alpha }, [x, source], x.shape())
}

struct IndexAdd {
    rows: Arc<[usize]>,
    around: Around,
    alpha: f64,
}

impl IndexAdd {
    /// Calls `f` with the place of each element of `source` in the input and in `source`.
    fn each(&self, mut f: impl FnMut(usize, usize)) {
        let Around { outer, n, inner } = self.around;
        for o in 0..outer {
            for (i, &row) in self.rows.iter().enumerate() {
                let (to, from) = ((o * n + row) * inner, (o * self.rows.len() + i) * inner);
                for k in 0..inner {
                    f(to + k, from + k);
                }
            }
        }
    }
}

impl Kernel<2> for IndexAdd {
    fn name(&self) -> &'static str {
        "index_add"
    }

    fn forward<T: Real>(&self, [x, source]: [&[T]; 2]) -> Vec<T> {
        let mut out = x.to_vec();
        let alpha = T::of(self.alpha);
        self.each(|to, from| out[to] += source[from] * alpha);
        out
    }

    fn backward<T: Real>(
        &self,
        [_x, source]: [&[T]; 2],
        _y: &[T],
        g: &[T],
        [x_wanted, source_wanted]: [bool; 2],
    ) -> [Option<Vec<T>>; 2] {
        let source_grad = source_wanted.then(|| {
            let mut out = vec![T::ZERO; source.len()];
            let alpha = T::of(self.alpha);
            self.each(|to, from| out[from] = g[to] * alpha);
            out
        });
        [x_wanted.then(|| g.to_vec()), source_grad]
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device, Var};

    use super::super::testing::*;
    use super::*;

    fn ids(x: &[i64]) -> Tensor {
        Tensor::new(x, &Device::Cpu).unwrap()
    }

    #[test]
    fn rows_are_looked_up_with_exact_gradients() {
        for dtype in [DType::F64, DType::F32, DType::F16, DType::BF16] {
            let weight = numbers(&[5, 3], 1).to_dtype(dtype).unwrap();
            let rows = values(&weight);
            let expected: Vec<f64> =
                [4, 0, 4, 2].iter().flat_map(|&r| rows[r * 3..][..3].to_vec()).collect();
            for index in [DType::U8, DType::U32, DType::I64] {
                let ids = ids(&[4, 0, 4, 2]).to_dtype(index).unwrap().reshape((2, 2)).unwrap();
                for weight in [weight.clone(), strided(&weight)] {
                    let y = embedding(&ids, &weight, &Embedding::default()).unwrap();
                    assert_eq!((y.dims(), y.dtype()), (&[2, 2, 3][..], dtype));
                    assert_close(&y, &expected, 0.0);
                }
            }
        }
        let scalar = Tensor::new(3i64, &Device::Cpu).unwrap();
        let weight = [numbers(&[5, 3], 1)];
        assert_eq!(embedding(&scalar, &weight[0], &Embedding::default()).unwrap().dims(), [3]);
        check_gradients(&weight, |t| embedding(&ids(&[4, 0, 4]), &t[0], &Embedding::default()));
    }

    /// PyTorch 2.15: `F.embedding(tensor([1, 1, 3, 0]), w, padding_idx=3, scale_grad_by_freq=True).sum().backward()`
    #[test]
    fn padding_gets_no_gradient_and_frequent_rows_a_scaled_one() {
        let w = Var::ones((5, 2), DType::F32, &Device::Cpu).unwrap();
        let grad = |options: &Embedding| {
            let y = embedding(&ids(&[1, 1, 3, 0]), &w, options).unwrap();
            values(y.sum_all().unwrap().backward().unwrap().get(&w).unwrap())
        };
        let mut options = Embedding { padding_idx: Some(-2), ..Default::default() };
        assert_eq!(grad(&options), [1.0, 1.0, 2.0, 2.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]);
        options.scale_grad_by_freq = true;
        assert_eq!(grad(&options), [1.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]);
    }

    #[test]
    fn long_rows_are_shortened_in_the_table() {
        let rows = [[3f32, 4.0], [3.0, 4.0], [0.3, 0.4]];
        let cases =
            [(2.0, [0.6, 0.8]), (1.0, [3.0 / 7.0, 4.0 / 7.0]), (f64::INFINITY, [0.75, 1.0])];
        for (norm_type, short) in cases {
            let weight = Tensor::new(&rows, &Device::Cpu).unwrap();
            let options = Embedding { max_norm: Some(1.0), norm_type, ..Default::default() };
            let y = embedding(&ids(&[0, 2, 0]), &weight, &options).unwrap();
            assert_close(&y, &[short[0], short[1], 0.3, 0.4, short[0], short[1]], 1e-6);
            assert_close(&weight, &[short[0], short[1], 3.0, 4.0, 0.3, 0.4], 1e-6);
        }
    }

    #[test]
    fn rows_are_added_with_exact_gradients() {
        let inputs = [numbers(&[2, 4, 3], 1), numbers(&[2, 3, 3], 2)];
        let y = index_add(&inputs[0], 1, &ids(&[3, 0, 3]), &inputs[1], 0.5).unwrap();
        let (x, s) = (values(&inputs[0]), values(&inputs[1]));
        let mut expected = x;
        for o in 0..2 {
            for (i, row) in [3, 0, 3].into_iter().enumerate() {
                for k in 0..3 {
                    expected[(o * 4 + row) * 3 + k] += 0.5 * s[(o * 3 + i) * 3 + k];
                }
            }
        }
        assert_close(&y, &expected, 1e-15);
        check_gradients(&inputs, |t| index_add(&t[0], 1, &ids(&[3, 0, 3]), &t[1], 0.5));
        let y = index_add(&ids(&[1, 2, 3]), 0, &ids(&[1, 1]), &ids(&[5, 6]), 2.0).unwrap();
        assert_eq!(y.to_vec1::<i64>().unwrap(), [1, 24, 3]);
        let y = index_add(&inputs[0], 1, &ids(&[]), &inputs[1].narrow(1, 0, 0).unwrap(), 1.0);
        assert_close(&y.unwrap(), &values(&inputs[0]), 0.0);
        let nothing = Tensor::zeros((0, 2), DType::I64, &Device::Cpu).unwrap();
        let column = nothing.narrow(1, 1, 1).unwrap().squeeze(1).unwrap(); // starts behind its storage
        assert_eq!(
            embedding(&column, &inputs[0].get(0).unwrap(), &Embedding::default()).unwrap().dims(),
            [0, 3]
        );
    }

    #[test]
    fn errors_name_what_is_wrong() {
        let weight = numbers(&[3, 2], 1);
        let look_up = |ids: &Tensor, options: &Embedding| {
            embedding(ids, &weight, options).unwrap_err().to_string()
        };
        let plain = Embedding::default();
        assert_eq!(
            look_up(&ids(&[0, 3, -1]), &plain),
            "embedding: ids holds 3, -1; it must lie in 0..3"
        );
        assert_eq!(look_up(&weight, &plain), "embedding: ids has dtype f64; it must hold integers");
        let sparse = Embedding { sparse: true, ..plain.clone() };
        assert!(look_up(&ids(&[0]), &sparse).starts_with("embedding: sparse gradients"));
        let padding = Embedding { padding_idx: Some(3), ..plain };
        assert_eq!(
            look_up(&ids(&[0]), &padding),
            "embedding: padding_idx is 3; the weight has 3 rows"
        );
        assert_eq!(
            index_add(&weight, 0, &ids(&[0]), &weight, 1.0).unwrap_err().to_string(),
            "index_add: source has shape [3, 2]; for an input of shape [3, 2] and 1 indices along axis 0 it must be \
             [1, 2]"
        );
    }
}
