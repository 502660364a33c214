//! The elements of a candle tensor as a slice with strides.

use candle_core::{CpuStorage, DType, Device, Layout, Storage, Tensor};

use super::{Error, Result};
use crate::data::{ArrayData, NamedArray};
use crate::{Array, ArrayView, ErrorKind};

/// Runs `f` on the `f32` elements of a tensor where they lie; other float types are converted first.
///
/// # Errors
/// [`ErrorKind::Tensor`] when the tensor is not on the CPU, [`ErrorKind::InvalidData`] when its type is no float type of
/// at most 32 bits.
pub(crate) fn with_view<R>(
    x: &Tensor,
    f: impl FnOnce(ArrayView<'_>) -> std::result::Result<R, crate::Error>,
) -> Result<R> {
    let converted;
    let x = match x.dtype() {
        DType::F32 => x,
        DType::F16 | DType::BF16 => {
            converted = x.detach().to_dtype(DType::F32)?;
            &converted
        }
        other => {
            return Err(Error::new(
                ErrorKind::InvalidData,
                format!(
                    "data of type {other:?} is not quantized: scales and kernels are F32; convert it with \
                     `to_dtype(DType::F32)`"
                ),
            ));
        }
    };
    let (storage, layout) = x.storage_and_layout();
    let Storage::Cpu(CpuStorage::F32(all)) = &*storage else {
        return Err(on_the_cpu_only(x.device()));
    };
    Ok(f(view_of(all, layout)?)?)
}

/// The elements that a layout shows.
pub(crate) fn view_of<'a>(all: &'a [f32], layout: &'a Layout) -> Result<ArrayView<'a>> {
    // An empty view may begin behind the last element.
    let elements = all.get(layout.start_offset()..).unwrap_or(&[]);
    Ok(if layout.is_contiguous() {
        ArrayView::new(&elements[..layout.shape().elem_count()], layout.dims())?
    } else {
        ArrayView::with_strides(elements, layout.dims(), layout.stride())?
    })
}

/// Where the `f32` elements of a tensor and of all its views lie; `None` if there are none.
pub(crate) fn memory_of(x: &Tensor) -> Option<*const f32> {
    match &*x.storage_and_layout().0 {
        Storage::Cpu(CpuStorage::F32(all)) if !all.is_empty() => Some(all.as_ptr()),
        _ => None,
    }
}

/// One input of a batch of data as a tensor: floats as F32, integers as I64.
///
/// ```
/// use fastforward::data::{ArrayData, InputType, NamedArray};
/// use fastforward::tensor::tensor_from;
/// // As batches of a `Dataset` hold them.
/// let data = ArrayData::Float(vec![0.5; 6]);
/// let images = NamedArray { name: "images".into(), dtype: InputType::F32, shape: vec![2, 3], data };
/// assert_eq!(tensor_from(&images)?.to_vec2::<f32>()?, [[0.5; 3], [0.5; 3]]);
/// # Ok::<(), fastforward::tensor::Error>(())
/// ```
///
/// # Errors
/// [`ErrorKind::Tensor`] from candle.
pub fn tensor_from(array: &NamedArray) -> Result<Tensor> {
    Ok(match &array.data {
        ArrayData::Float(data) => Tensor::from_slice(data, array.shape.as_slice(), &Device::Cpu)?,
        ArrayData::Integer(data) => Tensor::from_slice(data, array.shape.as_slice(), &Device::Cpu)?,
    })
}

/// A tensor with the elements of an array.
pub(crate) fn tensor_of(array: Array, dtype: DType) -> Result<Tensor> {
    let tensor = Tensor::from_vec(array.data, array.shape, &Device::Cpu)?;
    Ok(if dtype == DType::F32 { tensor } else { tensor.to_dtype(dtype)? })
}

pub(crate) fn on_the_cpu_only(device: &Device) -> Error {
    Error::new(
        ErrorKind::Tensor,
        format!(
            "quantization runs on the CPU, the data is on {:?}; move it with `to_device`",
            device.location()
        ),
    )
}
