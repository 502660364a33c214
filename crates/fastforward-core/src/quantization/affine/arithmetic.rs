//! Quantizers' settings and arrays, handed to the kernels.

use ff_kernels::{
    Affine, Degenerate, IntegerGrid, KernelError, KernelErrorKind, RangeOptions, Tiling,
};

use super::{AffineParameters, Codes, OneSided, QuantizedArray, RangeSettings};
use crate::quantization::Granularity;
use crate::{Array, ArrayView, Error, ErrorKind};

/// Codes of `x` on the grid of `parameters`.
pub(crate) fn quantize(
    x: ArrayView<'_>,
    granularity: &Granularity,
    parameters: AffineParameters,
) -> Result<QuantizedArray, Error> {
    let codes = quantize_codes(x, granularity, &parameters)?;
    Ok(QuantizedArray {
        codes,
        shape: x.shape().to_vec(),
        granularity: granularity.clone(),
        parameters,
    })
}

/// The integer codes of `x`, row-major: `clamp(round(x / s - round(o)), lo, hi)`, rounding half to even (spec §4.2).
///
/// # Errors
/// [`ErrorKind::Granularity`] when the shape does not fit the granularity or the number of scales;
/// [`ErrorKind::InvalidData`] for NaN.
pub fn quantize_codes(
    x: ArrayView<'_>,
    granularity: &Granularity,
    parameters: &AffineParameters,
) -> Result<Codes, Error> {
    let tiling = tiling(x, granularity)?;
    parameters.check_tiles(x.shape(), granularity, tiling.num_tiles())?;
    let grid = parameters.grid()?;
    let mut codes = Codes::zeros(parameters.num_bits, x.len());
    let affine = parameters.affine();
    match &mut codes {
        Codes::I8(out) => ff_kernels::quantize(x.data(), &tiling, affine, grid, out),
        Codes::I16(out) => ff_kernels::quantize(x.data(), &tiling, affine, grid, out),
        Codes::I32(out) => ff_kernels::quantize(x.data(), &tiling, affine, grid, out),
    }
    .map_err(|error| data_error(error, x))?;
    Ok(codes)
}

/// `x` rounded to the grid of `parameters`.
pub(crate) fn fake_quantize(
    x: ArrayView<'_>,
    granularity: &Granularity,
    parameters: &AffineParameters,
) -> Result<Array, Error> {
    let mut data = vec![0.0; x.len()];
    fake_quantize_into(x, granularity, parameters, &mut data)?;
    Ok(Array { data, shape: x.shape().to_vec() })
}

/// `x` rounded to the grid of `parameters`, row-major, into a buffer of as many elements.
pub(crate) fn fake_quantize_into(
    x: ArrayView<'_>,
    granularity: &Granularity,
    parameters: &AffineParameters,
    out: &mut [f32],
) -> Result<(), Error> {
    let tiling = tiling(x, granularity)?;
    parameters.check_tiles(x.shape(), granularity, tiling.num_tiles())?;
    ff_kernels::fake_quantize(x.data(), &tiling, parameters.affine(), parameters.grid()?, out)
        .map_err(|error| data_error(error, x))
}

/// The floats that codes stand for.
pub(crate) fn dequantize(quantized: &QuantizedArray) -> Result<Array, Error> {
    let QuantizedArray { codes, shape, granularity, parameters } = quantized;
    let tile = granularity.tile_shape(shape)?;
    let tiling = Tiling::new(shape, &tile).map_err(granularity_error)?;
    parameters.check_tiles(shape, granularity, tiling.num_tiles())?;
    let mut data = vec![0.0; tiling.len()];
    let affine = parameters.affine();
    match codes {
        Codes::I8(codes) => ff_kernels::dequantize(codes, &tiling, affine, &mut data),
        Codes::I16(codes) => ff_kernels::dequantize(codes, &tiling, affine, &mut data),
        Codes::I32(codes) => ff_kernels::dequantize(codes, &tiling, affine, &mut data),
    }
    .map_err(|error| Error::new(ErrorKind::InvalidData, error.to_string()).with_source(error))?;
    Ok(Array { data, shape: shape.clone() })
}

/// The parameters that data gives itself: from each tile's minimum and maximum, offsets rounded (spec §4.6).
pub(crate) fn dynamic_parameters(
    x: ArrayView<'_>,
    granularity: &Granularity,
    num_bits: u32,
    range: &RangeSettings,
) -> Result<AffineParameters, Error> {
    if x.is_empty() {
        return Err(Error::new(
            ErrorKind::InvalidData,
            format!("data of shape {:?} is empty and has no range", x.shape()),
        ));
    }
    let found = ff_kernels::min_max(x.data(), &tiling(x, granularity)?)
        .map_err(|error| data_error(error, x))?;
    found.check_finite().map_err(|error| data_error(error, x))?;
    let mut parameters = parameters_for_range(&found.min, &found.max, num_bits, range)?;
    for offset in parameters.offset.iter_mut().flatten() {
        *offset = offset.round_ties_even();
    }
    Ok(parameters)
}

/// The parameters for one range per tile.
pub(crate) fn parameters_for_range(
    min: &[f32],
    max: &[f32],
    num_bits: u32,
    range: &RangeSettings,
) -> Result<AffineParameters, Error> {
    let wrong = |error: KernelError| {
        Error::new(ErrorKind::InvalidRange, error.to_string()).with_source(error)
    };
    if min.is_empty() {
        return Err(Error::new(
            ErrorKind::InvalidRange,
            "a range needs at least one tile, found none",
        ));
    }
    let grid = integer_grid(num_bits, range.narrow_range)?;
    let found =
        ff_kernels::parameters_for_range(min, max, grid, &range.options()).map_err(wrong)?;
    Ok(AffineParameters {
        num_bits,
        narrow_range: range.narrow_range,
        scale: found.scale,
        offset: found.offset,
    })
}

impl RangeSettings {
    /// These settings as the kernels know them.
    pub fn options(&self) -> RangeOptions {
        RangeOptions {
            symmetric: self.symmetric,
            one_sided: match (self.allow_one_sided, self.one_sided) {
                (false, _) => ff_kernels::OneSided::Never,
                (true, OneSided::PerTensor) => ff_kernels::OneSided::Global,
                (true, OneSided::PerTile) => ff_kernels::OneSided::PerTile,
            },
            include_zero: self.zero_in_range,
            power_of_two: self.power_of_two,
            degenerate: if self.scale_floor { Degenerate::Repair } else { Degenerate::Reference },
            ..RangeOptions::default()
        }
    }
}

impl AffineParameters {
    /// Scales and offsets as the kernels take them.
    pub fn affine(&self) -> Affine<'_> {
        Affine { scale: &self.scale, offset: self.offset.as_deref() }
    }

    /// The codes there are.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidSettings`] for a bit width that no quantizer has.
    pub fn grid(&self) -> Result<IntegerGrid, Error> {
        integer_grid(self.num_bits, self.narrow_range)
    }

    pub(super) fn check_tiles(
        &self,
        shape: &[usize],
        granularity: &Granularity,
        num_tiles: usize,
    ) -> Result<(), Error> {
        let found = self.scale.len();
        if found == num_tiles {
            return Ok(());
        }
        Err(Error::new(
            ErrorKind::Granularity,
            format!(
                "{granularity} cuts data of shape {shape:?} into {num_tiles} tiles, but the quantizer has {found} scales"
            ),
        ))
    }
}

/// The grid of a bit width.
pub(crate) fn integer_grid(num_bits: u32, narrow_range: bool) -> Result<IntegerGrid, Error> {
    let grid =
        if narrow_range { IntegerGrid::narrow(num_bits) } else { IntegerGrid::signed(num_bits) };
    grid.map_err(|error| {
        Error::new(ErrorKind::InvalidSettings, format!("num_bits: {error}")).with_source(error)
    })
}

/// The tiles of data, as the kernels know them.
pub(crate) fn tiling(x: ArrayView<'_>, granularity: &Granularity) -> Result<Tiling, Error> {
    let tile = granularity.tile_shape(x.shape())?;
    match x.strides() {
        None => Tiling::new(x.shape(), &tile),
        Some(strides) => Tiling::strided(x.shape(), strides, &tile),
    }
    .map_err(granularity_error)
}

fn granularity_error(error: KernelError) -> Error {
    Error::new(ErrorKind::Granularity, error.to_string()).with_source(error)
}

fn data_error(error: KernelError, x: ArrayView<'_>) -> Error {
    let kind = match error.kind() {
        KernelErrorKind::TileDoesNotDivide { .. } => ErrorKind::Granularity,
        _ => ErrorKind::InvalidData,
    };
    Error::new(kind, format!("data of shape {:?}: {error}", x.shape())).with_source(error)
}
