//! Quantize and dequantize in one pass, with gradients, as custom operators of candle.

use candle_core::{
    CpuStorage, CustomOp1, CustomOp2, CustomOp3, DType, InplaceOp1, Layout, Shape, Tensor,
};
use ff_kernels::{Affine, Gradients, IntegerGrid, Tiling, Uniform};

use super::view::{self, on_the_cpu_only, tensor_of, with_view};
use super::{Error, Result};
use crate::quantization::affine::AffineParameters;
use crate::{Array, ArrayView, ErrorKind};

/// The grid of fake quantization without its scales and offsets.
#[derive(Clone, Debug)]
pub(crate) struct GridShape {
    /// The shape of one tile of the data.
    pub tile: Vec<usize>,
    pub num_bits: u32,
    pub narrow_range: bool,
}

/// `x` on the grid with constant parameters; the gradient goes straight through where nothing is clipped.
pub(crate) fn fake_quantize(
    x: &Tensor,
    grid: GridShape,
    scale: &[f32],
    offset: Option<&[f32]>,
) -> Result<Tensor> {
    let dtype = x.dtype();
    if !x.track_op() {
        let array = with_view(x, |view| Ok(grid.forward(view, Affine { scale, offset })?))?;
        return tensor_of(array, dtype);
    }
    let op = Constant { grid, scale: scale.to_vec(), offset: offset.map(<[f32]>::to_vec) };
    Ok(x.to_dtype(DType::F32)?.apply_op1(op)?.to_dtype(dtype)?)
}

/// Writes what [`fake_quantize`] gives over `x`, a contiguous `f32` tensor without history, with one scale for all of it.
pub(crate) fn fake_quantize_in_place(x: &Tensor, parameters: &AffineParameters) -> Result<()> {
    Ok(x.inplace_op1(&InPlace(uniform_of(parameters)?))?)
}

/// The grid of parameters for one tile.
pub(crate) fn uniform_of(parameters: &AffineParameters) -> Result<Uniform> {
    let AffineParameters { num_bits, narrow_range, .. } = *parameters;
    let grid = GridShape { tile: Vec::new(), num_bits, narrow_range };
    let uniform = Uniform::new(parameters.affine(), grid.integers()?);
    Ok(uniform.map_err(|e| crate::Error::new(ErrorKind::InvalidData, e.to_string()))?)
}

struct InPlace(Uniform);

impl InplaceOp1 for InPlace {
    fn name(&self) -> &'static str {
        "fake_quantize"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> candle_core::Result<()> {
        match (storage, layout.contiguous_offsets()) {
            (CpuStorage::F32(all), Some((start, end))) => {
                self.0.fake_quantize(&mut all[start..end]);
                Ok(())
            }
            _ => {
                let what = "expected elements of type F32 in row-major order";
                Err(Error::new(ErrorKind::Tensor, what).into_candle())
            }
        }
    }
}

/// `x` on the grid with parameters that learn: flat `f32` tensors with one element per tile (spec §4.5).
///
/// With `lsq`, the gradient of the scale is multiplied by `1 / sqrt(n · hi)` for tiles of `n` elements, as in Learned Step
/// Size Quantization (Esser et al., 2020, §2.2).
pub(crate) fn fake_quantize_learned(
    x: &Tensor,
    grid: GridShape,
    scale: &Tensor,
    offset: Option<&Tensor>,
    lsq: bool,
) -> Result<Tensor> {
    let dtype = x.dtype();
    let op = Learned { grid, lsq };
    let x = x.to_dtype(DType::F32)?;
    let y = match offset {
        Some(offset) => x.apply_op3(scale, offset, op)?,
        None => x.apply_op2(scale, op)?,
    };
    Ok(y.to_dtype(dtype)?)
}

/// Other values in the place of `x`, with the gradient of `x` as if they were `x` (straight-through).
pub(crate) fn straight_through(x: &Tensor, values: Array) -> Result<Tensor> {
    let dtype = x.dtype();
    let values = tensor_of(values, dtype)?;
    if !x.track_op() {
        return Ok(values);
    }
    Ok(x.apply_op2(&values, StraightThrough)?)
}

impl GridShape {
    fn integers(&self) -> Result<IntegerGrid> {
        let grid = if self.narrow_range {
            IntegerGrid::narrow(self.num_bits)
        } else {
            IntegerGrid::signed(self.num_bits)
        };
        Ok(grid.map_err(|e| crate::Error::new(ErrorKind::InvalidSettings, e.to_string()))?)
    }

    fn tiling(&self, x: ArrayView<'_>) -> Result<Tiling> {
        let tiling = match x.strides() {
            None => Tiling::new(x.shape(), &self.tile),
            Some(strides) => Tiling::strided(x.shape(), strides, &self.tile),
        };
        Ok(tiling.map_err(|e| crate::Error::new(ErrorKind::Granularity, e.to_string()))?)
    }

    fn forward(&self, x: ArrayView<'_>, affine: Affine<'_>) -> Result<Array> {
        let mut out = vec![0.0; x.len()];
        ff_kernels::fake_quantize(x.data(), &self.tiling(x)?, affine, self.integers()?, &mut out)
            .map_err(|e| crate::Error::new(ErrorKind::InvalidData, e.to_string()))?;
        Ok(Array { data: out, shape: x.shape().to_vec() })
    }

    /// The gradient of the input as a tensor, and those of the parameters.
    fn backward(
        &self,
        x: &Tensor,
        affine: Affine<'_>,
        upstream: &Tensor,
    ) -> Result<(Tensor, Gradients)> {
        let upstream = upstream.contiguous()?;
        let (grad_x, gradients) = with_view(x, |x| {
            Ok(with_view(&upstream, |g| {
                let mut grad_x = vec![0.0; x.len()];
                let gradients = ff_kernels::fake_quantize_backward(
                    x.data(),
                    &self.tiling(x)?,
                    affine,
                    self.integers()?,
                    g.data(),
                    &mut grad_x,
                )
                .map_err(|e| crate::Error::new(ErrorKind::InvalidData, e.to_string()))?;
                Ok((grad_x, gradients))
            })?)
        })?;
        Ok((Tensor::from_vec(grad_x, x.shape(), x.device())?, gradients))
    }
}

/// Storage as a view of `f32`.
fn view_of<'a>(storage: &'a CpuStorage, layout: &'a Layout) -> Result<ArrayView<'a>> {
    let CpuStorage::F32(all) = storage else {
        return Err(Error::new(ErrorKind::Tensor, "expected elements of type F32"));
    };
    view::view_of(all, layout)
}

fn storage_of(array: Array) -> (CpuStorage, Shape) {
    (CpuStorage::F32(array.data), Shape::from(array.shape))
}

struct Constant {
    grid: GridShape,
    scale: Vec<f32>,
    offset: Option<Vec<f32>>,
}

impl Constant {
    fn affine(&self) -> Affine<'_> {
        Affine { scale: &self.scale, offset: self.offset.as_deref() }
    }
}

impl CustomOp1 for Constant {
    fn name(&self) -> &'static str {
        "fake_quantize"
    }

    fn cpu_fwd(
        &self,
        storage: &CpuStorage,
        layout: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        let out = view_of(storage, layout).and_then(|x| self.grid.forward(x, self.affine()));
        out.map(storage_of).map_err(Error::into_candle)
    }

    fn bwd(&self, x: &Tensor, _y: &Tensor, g: &Tensor) -> candle_core::Result<Option<Tensor>> {
        let (grad_x, _) = self.grid.backward(x, self.affine(), g).map_err(Error::into_candle)?;
        Ok(Some(grad_x))
    }
}

struct Learned {
    grid: GridShape,
    lsq: bool,
}

impl Learned {
    fn forward(
        &self,
        x: ArrayView<'_>,
        scale: ArrayView<'_>,
        offset: Option<ArrayView<'_>>,
    ) -> Result<Array> {
        check_scales(scale.data())?;
        self.grid.forward(x, Affine { scale: scale.data(), offset: offset.map(|o| o.data()) })
    }

    fn backward(
        &self,
        x: &Tensor,
        scale: &Tensor,
        offset: Option<&Tensor>,
        upstream: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let (scales, offsets) =
            (scale.to_vec1::<f32>()?, offset.map(Tensor::to_vec1::<f32>).transpose()?);
        let affine = Affine { scale: &scales, offset: offsets.as_deref() };
        let (grad_x, mut gradients) = self.grid.backward(x, affine, upstream)?;
        if self.lsq {
            let hi = f64::from(self.grid.integers()?.hi().max(1));
            let elements = (x.elem_count() / scales.len().max(1)).max(1) as f64;
            let factor = (1.0 / (elements * hi).sqrt()) as f32;
            gradients.scale.iter_mut().for_each(|g| *g *= factor);
        }
        let wanted = |tensor: &Tensor, values: Vec<f32>| {
            let shape = tensor.shape();
            tensor.track_op().then(|| Tensor::from_vec(values, shape, tensor.device())).transpose()
        };
        let grad_scale = wanted(scale, gradients.scale)?;
        let grad_offset = match (offset, gradients.offset) {
            (Some(offset), Some(values)) => wanted(offset, values)?,
            _ => None,
        };
        Ok((x.track_op().then_some(grad_x), grad_scale, grad_offset))
    }
}

/// Fails with advice when training drove a scale out of the positive numbers.
fn check_scales(scale: &[f32]) -> Result<()> {
    let Some(tile) = scale.iter().position(|&s| !(s > 0.0 && s.is_finite())) else { return Ok(()) };
    Err(Error::new(
        ErrorKind::InvalidRange,
        format!(
            "the learned scale of tile {tile} is {}, not positive and finite: lower the learning rate of the \
             scales (`lsq_gradient_scaling`, where it is off, makes their gradients smaller)",
            scale[tile]
        ),
    ))
}

impl CustomOp2 for Learned {
    fn name(&self) -> &'static str {
        "fake_quantize_learned"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        scale: &CpuStorage,
        scale_layout: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        let out = || self.forward(view_of(x, x_layout)?, view_of(scale, scale_layout)?, None);
        out().map(storage_of).map_err(Error::into_candle)
    }

    fn bwd(
        &self,
        x: &Tensor,
        scale: &Tensor,
        _y: &Tensor,
        g: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>)> {
        let (x, scale, _) = self.backward(x, scale, None, g).map_err(Error::into_candle)?;
        Ok((x, scale))
    }
}

impl CustomOp3 for Learned {
    fn name(&self) -> &'static str {
        "fake_quantize_learned"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        scale: &CpuStorage,
        scale_layout: &Layout,
        offset: &CpuStorage,
        offset_layout: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        let out = || {
            let offset = view_of(offset, offset_layout)?;
            self.forward(view_of(x, x_layout)?, view_of(scale, scale_layout)?, Some(offset))
        };
        out().map(storage_of).map_err(Error::into_candle)
    }

    fn bwd(
        &self,
        x: &Tensor,
        scale: &Tensor,
        offset: &Tensor,
        _y: &Tensor,
        g: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        self.backward(x, scale, Some(offset), g).map_err(Error::into_candle)
    }
}

struct StraightThrough;

impl CustomOp2 for StraightThrough {
    fn name(&self) -> &'static str {
        "straight_through"
    }

    fn cpu_fwd(
        &self,
        _x: &CpuStorage,
        _x_layout: &Layout,
        values: &CpuStorage,
        layout: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        debug_assert!(layout.is_contiguous());
        Ok((values.clone(), layout.shape().clone()))
    }

    fn bwd(
        &self,
        _x: &Tensor,
        _values: &Tensor,
        _y: &Tensor,
        g: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>)> {
        Ok((Some(g.clone()), None))
    }
}

/// Fails unless the tensor lies where the kernels run.
pub(crate) fn check_device(x: &Tensor) -> Result<()> {
    if x.device().is_cpu() { Ok(()) } else { Err(on_the_cpu_only(x.device())) }
}
