//! Quantizers' settings and arrays, handed to the kernels.

use super::{AffineParameters, Codes, QuantizedArray, RangeSettings};
use crate::quantization::Granularity;
use crate::{Array, ArrayView, Error, ErrorKind};

/// Codes of `x` on the grid of `parameters`.
pub(crate) fn quantize(
    x: ArrayView<'_>,
    granularity: &Granularity,
    parameters: AffineParameters,
) -> Result<QuantizedArray, Error> {
    let array = x.to_array();
    let tiles = tile_indices(&array.shape, granularity, parameters.scale.len())?;
    let (lo, hi) = (parameters.lo() as f32, parameters.hi() as f32);
    let mut codes = Vec::with_capacity(array.data.len());
    for (at, (&value, &tile)) in array.data.iter().zip(&tiles).enumerate() {
        if value.is_nan() {
            return Err(Error::new(
                ErrorKind::InvalidData,
                format!("NaN at index {at} has no code"),
            ));
        }
        let position = value / parameters.scale[tile] - parameters.rounded_offset(tile);
        codes.push(position.round_ties_even().clamp(lo, hi) as i32);
    }
    Ok(QuantizedArray {
        codes: Codes::from_i32(codes, parameters.num_bits)?,
        shape: array.shape,
        granularity: granularity.clone(),
        parameters,
    })
}

/// `x` rounded to the grid of `parameters`.
pub(crate) fn fake_quantize(
    x: ArrayView<'_>,
    granularity: &Granularity,
    parameters: &AffineParameters,
) -> Result<Array, Error> {
    let mut array = x.to_array();
    let tiles = tile_indices(&array.shape, granularity, parameters.scale.len())?;
    let (lo, hi) = (parameters.lo() as f32, parameters.hi() as f32);
    for (value, &tile) in array.data.iter_mut().zip(&tiles) {
        let offset = parameters.rounded_offset(tile);
        let position = *value / parameters.scale[tile] - offset;
        *value = (position.round_ties_even().clamp(lo, hi) + offset) * parameters.scale[tile];
    }
    Ok(array)
}

/// The floats that codes stand for.
pub(crate) fn dequantize(quantized: &QuantizedArray) -> Result<Array, Error> {
    let parameters = &quantized.parameters;
    let tiles = tile_indices(&quantized.shape, &quantized.granularity, parameters.scale.len())?;
    let data = quantized
        .codes
        .to_i32()
        .iter()
        .zip(&tiles)
        .map(|(&code, &tile)| {
            (code as f32 + parameters.rounded_offset(tile)) * parameters.scale[tile]
        })
        .collect();
    Array::new(data, quantized.shape.clone())
}

/// The parameters of data of its own: per-tile minimum and maximum, offsets rounded.
pub(crate) fn dynamic_parameters(
    x: ArrayView<'_>,
    granularity: &Granularity,
    num_bits: u32,
    range: &RangeSettings,
) -> Result<AffineParameters, Error> {
    let _ = (x, granularity, num_bits, range);
    Err(Error::new(ErrorKind::InvalidData, "pending"))
}

/// The parameters for one range per tile.
pub(crate) fn parameters_for_range(
    min: &[f32],
    max: &[f32],
    num_bits: u32,
    range: &RangeSettings,
) -> Result<AffineParameters, Error> {
    let _ = (min, max, num_bits, range);
    Err(Error::new(ErrorKind::InvalidRange, "pending"))
}

fn tile_indices(
    shape: &[usize],
    granularity: &Granularity,
    scales: usize,
) -> Result<Vec<usize>, Error> {
    let tile = granularity.tile_shape(shape)?;
    let found = granularity.num_parameters(shape)?;
    if found != scales {
        return Err(Error::new(
            ErrorKind::Granularity,
            format!("data of shape {shape:?} has {found} tiles, the quantizer {scales} scales"),
        ));
    }
    let count: usize = shape.iter().product();
    Ok((0..count)
        .map(|mut at| {
            let (mut index, mut stride) = (0, 1);
            for axis in (0..shape.len()).rev() {
                let position = at % shape[axis];
                at /= shape[axis];
                index += position / tile[axis] * stride;
                stride *= shape[axis] / tile[axis];
            }
            index
        })
        .collect())
}
