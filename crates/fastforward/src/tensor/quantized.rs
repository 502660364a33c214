//! Tensors of integer codes.

mod shape;

use std::fmt;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use candle_core::{DType, Device, Tensor};
use ff_kernels::{CodeView, PackedFilter, PackedWeight, Tiling};

use super::codes::CodeTensor;
use super::context::QuantizationContext;
use super::fake_quantize::{
    GridShape, check_device, fake_quantize, fake_quantize_in_place, fake_quantize_learned,
};
use super::view::{tensor_of, with_view};
use super::{Error, Result};
use crate::quantization::Granularity;
use crate::quantization::affine::{AffineGrid, Codes};
use crate::{Array, ErrorKind, flags};

/// A quantized tensor: integer codes in the smallest type that holds them, and the [context](QuantizationContext) that
/// decodes them (spec §5.1).
///
/// A clone is the same tensor. The codes and the floats they stand for are both made when they are first asked for: while
/// gradients are recorded the tensor starts as floats on its grid, with their history; otherwise as codes.
///
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use fastforward::quantization::affine::{AffineGrid, AffineParameters};
/// use fastforward::quantization::Granularity;
/// use fastforward::tensor::QuantizedTensor;
///
/// let parameters = AffineParameters { num_bits: 4, narrow_range: false, scale: vec![0.5, 0.25], offset: None };
/// let grid = AffineGrid { granularity: Granularity::per_channel(0), parameters: parameters.into() };
/// let x = Tensor::new(&[[0.6f32, -9.0], [0.6, 0.1]], &Device::Cpu)?;
/// let quantized = QuantizedTensor::quantize(&x, &grid)?;
/// assert_eq!(quantized.codes()?.to_i32(), [1, -8, 2, 0]);
/// assert_eq!(quantized.dequantize()?.to_vec2::<f32>()?, [[0.5, -4.0], [0.5, 0.0]]);
/// // The scales follow their channels:
/// let turned = quantized.transpose(0, 1)?;
/// assert_eq!(turned.granularity(), Granularity::per_channel(1));
/// assert_eq!(turned.dequantize()?.to_vec2::<f32>()?, [[0.5, 0.5], [-4.0, 0.0]]);
/// # Ok::<(), fastforward::tensor::Error>(())
/// ```
#[derive(Clone)]
pub struct QuantizedTensor(Arc<Inner>);

struct Inner {
    context: QuantizationContext,
    device: Device,
    /// At least one of the two is there from the beginning.
    codes: OnceLock<CodeTensor>,
    /// On the grid, of the context's type, with history if gradients are recorded.
    values: OnceLock<Tensor>,
    /// The codes as integer products take a weight.
    packed: OnceLock<PackedWeight>,
    /// The same as integer convolutions took it last.
    filter: Mutex<Option<Arc<PackedFilter>>>,
}

impl QuantizedTensor {
    /// Puts floats on a grid, with straight-through gradients: `codes = clamp(round(x / s - round(o)), lo, hi)`, each tile
    /// with its own `s` and `o` (spec §4.2, §4.5). The gradient of `x` is that of the result where nothing was clipped, else
    /// zero.
    ///
    /// # Errors
    /// [`ErrorKind::Granularity`] when the grid does not fit the shape, [`ErrorKind::InvalidData`] for NaN (when codes are
    /// made) and element types other than F16, BF16 and F32, [`ErrorKind::Tensor`] for data that is not on the CPU.
    pub fn quantize(x: &Tensor, grid: &AffineGrid) -> Result<Self> {
        check_device(x)?;
        let context = QuantizationContext::new(grid, x.dims(), x.dtype())?;
        let parameters = &context.parameters();
        if !x.track_op() && (flags::integer_execution() || !recovers(&context)) {
            let codes = make_codes(x, &context)?;
            return Ok(Self::from_parts(context, Some(codes), None));
        }
        let (scale, offset) = (&parameters.scale, parameters.offset.as_deref());
        let values = fake_quantize(x, grid_shape(&context), scale, offset)?;
        let codes =
            if recovers(&context) { None } else { Some(make_codes(&x.detach(), &context)?) };
        Ok(Self::from_parts(context, codes, Some(values)))
    }

    /// The same for a tensor that nobody else sees: in simulation the floats on the grid take the place of its own.
    pub(crate) fn quantize_own(x: &Tensor, grid: &AffineGrid) -> Result<Self> {
        if !x.track_op() && !flags::integer_execution() && x.dtype() == DType::F32 {
            check_device(x)?;
            let context = QuantizationContext::new(grid, x.dims(), x.dtype())?;
            if context.is_per_tensor() && recovers(&context) && x.is_contiguous() {
                fake_quantize_in_place(x, context.parameters())?;
                return Ok(Self::from_parts(context, None, Some(x.clone())));
            }
        }
        Self::quantize(x, grid)
    }

    /// The same with a scale and an offset that learn: `f32` variables with one element per tile, whose values are those of
    /// `grid`.
    pub(crate) fn quantize_learned(
        x: &Tensor,
        grid: &AffineGrid,
        scale: &Tensor,
        offset: Option<&Tensor>,
        lsq: bool,
    ) -> Result<Self> {
        check_device(x)?;
        let context = QuantizationContext::new(grid, x.dims(), x.dtype())?;
        let values = fake_quantize_learned(x, grid_shape(&context), scale, offset, lsq)?;
        let codes =
            if recovers(&context) { None } else { Some(make_codes(&x.detach(), &context)?) };
        Ok(Self::from_parts(context, codes, Some(values)))
    }

    /// A tensor of codes that were made elsewhere.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidData`] when a code lies outside of the grid, or the shapes differ.
    pub fn from_codes(codes: CodeTensor, context: QuantizationContext) -> Result<Self> {
        if codes.dims() != context.shape() {
            return Err(Error::new(
                ErrorKind::InvalidData,
                format!(
                    "codes of shape {:?} do not fit a context of shape {:?}",
                    codes.dims(),
                    context.shape()
                ),
            ));
        }
        let (lo, hi) = (context.parameters().lo(), context.parameters().hi());
        let wide = codes.to_i32();
        if let Some(at) = wide.iter().position(|code| !(lo..=hi).contains(&i64::from(*code))) {
            return Err(Error::new(
                ErrorKind::InvalidData,
                format!("code {} at index {at} is not in {lo}..={hi}", wide[at]),
            ));
        }
        // In the smallest type that holds every code of the grid, as if they had been made here.
        let codes = CodeTensor::new(Codes::from_i32(&wide, context.num_bits())?, context.shape())?;
        Ok(Self::from_parts(context, Some(codes), None))
    }

    /// Codes that a kernel made on this grid, in row-major order.
    pub(crate) fn from_own_codes(
        codes: Vec<i8>,
        grid: &AffineGrid,
        shape: &[usize],
    ) -> Result<Self> {
        let context = QuantizationContext::new(grid, shape, DType::F32)?;
        Ok(Self::from_parts(context, Some(CodeTensor::new(Codes::I8(codes), shape)?), None))
    }

    /// Values without history that a kernel put on this grid, one from whose values codes can be found again.
    pub(crate) fn from_own_values(values: Tensor, grid: &AffineGrid) -> Result<Self> {
        let context = QuantizationContext::new(grid, values.dims(), values.dtype())?;
        debug_assert!(recovers(&context));
        Ok(Self::from_parts(context, None, Some(values)))
    }

    fn from_parts(
        context: QuantizationContext,
        codes: Option<CodeTensor>,
        values: Option<Tensor>,
    ) -> Self {
        let once = |codes: Option<CodeTensor>| codes.map_or_else(OnceLock::new, OnceLock::from);
        let device = values.as_ref().map_or(Device::Cpu, |values| values.device().clone());
        let values = values.map_or_else(OnceLock::new, OnceLock::from);
        let (packed, filter) = (OnceLock::new(), Mutex::new(None));
        Self(Arc::new(Inner { context, device, codes: once(codes), values, packed, filter }))
    }

    /// The integer codes.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidData`] when the data held NaN.
    pub fn codes(&self) -> Result<&CodeTensor> {
        if let Some(codes) = self.0.codes.get() {
            return Ok(codes);
        }
        // Requantizing what is on the grid finds its codes again.
        let codes = make_codes(&self.dequantize()?.detach(), &self.0.context)?;
        Ok(self.0.codes.get_or_init(|| codes))
    }

    /// Whether both are the same tensor, with all that is kept beside it.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// The codes of a weight `[out, in]`, rearranged once for integer products.
    pub(crate) fn packed(&self) -> Result<&PackedWeight> {
        if let Some(packed) = self.0.packed.get() {
            return Ok(packed);
        }
        let &[n_out, n_in] = self.dims() else {
            return Err(Error::operator(
                "linear",
                format_args!("weight has shape {:?}, expected [out, in]", self.dims()),
            ));
        };
        let codes = self.codes()?.contiguous();
        let view = CodeView::new(codes.as_i8()?, [n_out, n_in])
            .map_err(|error| Error::new(ErrorKind::InvalidData, error.to_string()))?;
        let packed = PackedWeight::new(view);
        Ok(self.0.packed.get_or_init(|| packed))
    }

    /// The codes of a filter `[out, c / groups, kh, kw]`, rearranged for integer convolutions and kept.
    pub(crate) fn packed_filter(
        &self,
        shape: [usize; 4],
        groups: usize,
    ) -> Result<Arc<PackedFilter>> {
        // Made before the lock is taken: making codes may run on threads that come here themselves.
        let codes = self.codes()?.contiguous();
        let mut kept = self.0.filter.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(filter) = &*kept
            && filter.groups() == groups
            && filter.shape() == shape
        {
            return Ok(Arc::clone(filter));
        }
        let wrong = |error: ff_kernels::KernelError| Error::operator("conv", error);
        let view = CodeView::new(codes.as_i8()?, shape).map_err(wrong)?;
        let filter = Arc::new(PackedFilter::new(view, groups).map_err(wrong)?);
        *kept = Some(Arc::clone(&filter));
        Ok(filter)
    }

    /// The codes if they are there already.
    pub(crate) fn ready_codes(&self) -> Option<&CodeTensor> {
        self.0.codes.get()
    }

    /// The floats if they are there already.
    pub(crate) fn ready_values(&self) -> Option<&Tensor> {
        self.0.values.get()
    }

    /// The floats that the codes stand for, `(q + round(o)) · s`, of the type that was quantized. Gradients flow through.
    ///
    /// # Errors
    /// [`ErrorKind::Tensor`] from candle.
    pub fn dequantize(&self) -> Result<Tensor> {
        if let Some(values) = self.0.values.get() {
            return Ok(values.clone());
        }
        let values = make_values(self.codes()?, &self.0.context)?;
        Ok(self.0.values.get_or_init(|| values).clone())
    }

    /// How the codes are decoded.
    pub fn context(&self) -> &QuantizationContext {
        &self.0.context
    }

    /// How the data is cut into tiles: the simplest granularity that says so.
    pub fn granularity(&self) -> Granularity {
        self.0.context.granularity()
    }

    /// The bits of one code.
    pub fn num_bits(&self) -> u32 {
        self.0.context.num_bits()
    }

    /// One extent per dimension.
    pub fn dims(&self) -> &[usize] {
        self.0.context.shape()
    }

    /// The number of dimensions.
    pub fn rank(&self) -> usize {
        self.dims().len()
    }

    /// The number of elements.
    pub fn elem_count(&self) -> usize {
        self.dims().iter().product()
    }

    /// The float type that it dequantizes to.
    pub fn dtype(&self) -> DType {
        self.0.context.dtype()
    }

    /// Where the floats are.
    pub fn device(&self) -> &Device {
        &self.0.device
    }

    /// Whether gradients are recorded.
    pub fn track_op(&self) -> bool {
        self.0.values.get().is_some_and(Tensor::track_op)
    }

    /// The same values without history.
    pub fn detach(&self) -> Self {
        if !self.track_op() {
            return self.clone();
        }
        let values = self.0.values.get().map(Tensor::detach);
        Self::from_parts(self.0.context.clone(), self.0.codes.get().cloned(), values)
    }

    /// The same values, dequantized into another float type: a plain tensor (spec §5.1).
    ///
    /// # Errors
    /// [`ErrorKind::Tensor`] from candle.
    pub fn to_dtype(&self, dtype: DType) -> Result<Tensor> {
        Ok(self.dequantize()?.to_dtype(dtype)?)
    }

    /// The same tensor with its floats on another device. Codes stay where integers are computed, on the CPU.
    ///
    /// # Errors
    /// [`ErrorKind::Tensor`] from candle.
    pub fn to_device(&self, device: &Device) -> Result<Self> {
        if self.0.device.same_device(device) {
            return Ok(self.clone());
        }
        let values = self.dequantize()?.to_device(device)?;
        let codes = self.codes()?.clone();
        Ok(Self::from_parts(self.0.context.clone(), Some(codes), Some(values)))
    }
}

/// Whether codes can be found again from the floats they stand for: those must be exact enough to tell neighbours apart.
fn recovers(context: &QuantizationContext) -> bool {
    let parameters = context.parameters();
    let offset = (0..parameters.scale.len())
        .map(|tile| parameters.rounded_offset(tile).abs())
        .fold(0.0, f32::max);
    context.dtype() == DType::F32 && offset + parameters.hi() as f32 <= (1u32 << 21) as f32
}

fn grid_shape(context: &QuantizationContext) -> GridShape {
    GridShape {
        tile: context.tile_shape().to_vec(),
        num_bits: context.num_bits(),
        narrow_range: context.parameters().narrow_range,
    }
}

fn make_codes(x: &Tensor, context: &QuantizationContext) -> Result<CodeTensor> {
    let parameters = context.parameters();
    let granularity = Granularity::per_tile(context.tile_shape());
    let codes =
        with_view(x, |x| crate::quantization::affine::quantize_codes(x, &granularity, parameters))?;
    CodeTensor::new(codes, context.shape())
}

fn make_values(codes: &CodeTensor, context: &QuantizationContext) -> Result<Tensor> {
    let parameters = context.parameters();
    let tiling = Tiling::new(context.shape(), context.tile_shape())
        .map_err(|error| Error::new(ErrorKind::Granularity, error.to_string()))?;
    let mut data = vec![0.0; codes.len()];
    match &*codes.to_contiguous() {
        Codes::I8(codes) => ff_kernels::dequantize(codes, &tiling, parameters.affine(), &mut data),
        Codes::I16(codes) => ff_kernels::dequantize(codes, &tiling, parameters.affine(), &mut data),
        Codes::I32(codes) => ff_kernels::dequantize(codes, &tiling, parameters.affine(), &mut data),
    }
    .map_err(|error| Error::new(ErrorKind::InvalidData, error.to_string()))?;
    tensor_of(Array { data, shape: context.shape().to_vec() }, context.dtype())
}

impl fmt::Debug for QuantizedTensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "QuantizedTensor({:?}, {}, {:?})", self.dims(), self.0.context, self.dtype())
    }
}

/// The dequantized values, then the context: `QuantizedTensor([2, 2], num_bits=8, granularity=PerTensor(), scale=0.5, F32)`.
impl fmt::Display for QuantizedTensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.dequantize() {
            Ok(values) => write!(f, "{values}\n{self:?}"),
            Err(error) => write!(f, "{self:?}: {error}"),
        }
    }
}
