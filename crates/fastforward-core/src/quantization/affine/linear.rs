//! The static affine quantizer.

use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};

use mpath::Class;
use serde::{Deserialize, Serialize};

use super::arithmetic::{fake_quantize, integer_grid, parameters_for_range, quantize};
use super::{AffineGrid, AffineParameters, QuantizedArray, RangeSettings, SavedQuantizer};
use crate::module::classes;
use crate::quantization::Granularity;
use crate::quantization::quantizer::{Flow, Quantizer, RangeSettable, unset_error};
use crate::{ArrayView, Error, ErrorKind};

/// The settings of a [`LinearQuantizer`].
///
/// ```
/// use fastforward_core::quantization::{Granularity, LinearQuantizerConfig};
/// let config = LinearQuantizerConfig { granularity: Granularity::per_channel(0), ..LinearQuantizerConfig::new(4) };
/// assert!(config.range.symmetric);
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LinearQuantizerConfig {
    /// The bits of one code, 1 to 25: wider grids are not exact in `f32`.
    pub num_bits: u32,
    /// How data is cut into tiles with parameters of their own.
    pub granularity: Granularity,
    /// How a range becomes parameters.
    pub range: RangeSettings,
}

impl LinearQuantizerConfig {
    /// A symmetric quantizer of the whole tensor.
    pub fn new(num_bits: u32) -> Self {
        Self { num_bits, granularity: Granularity::PerTensor, range: RangeSettings::default() }
    }

    /// The same, asymmetric.
    pub fn asymmetric(mut self) -> Self {
        self.range.symmetric = false;
        self
    }

    /// The same with this granularity.
    pub fn with_granularity(mut self, granularity: Granularity) -> Self {
        self.granularity = granularity;
        self
    }
}

/// Static affine quantization (spec §3.7, §4.2): `q = clamp(round(x / scale - round(offset)), lo, hi)`, rounding half
/// to even.
///
/// The parameters are unset until a range is given, by hand or by an estimator.
///
/// ```
/// use fastforward_core::ArrayView;
/// use fastforward_core::quantization::{LinearQuantizer, LinearQuantizerConfig, Quantizer};
/// use fastforward_core::quantization::quantizer::RangeSettable;
/// let quantizer = LinearQuantizer::new(LinearQuantizerConfig::new(8))?;
/// quantizer.set_quantization_range(&[-1.0], &[2.0])?;
/// let x = [0.5, -3.0];
/// let codes = quantizer.quantize(ArrayView::new(&x, &[2])?)?;
/// assert_eq!(codes.codes.to_i32(), [32, -128]);
/// # Ok::<(), fastforward_core::Error>(())
/// ```
#[derive(Debug)]
pub struct LinearQuantizer {
    config: LinearQuantizerConfig,
    parameters: RwLock<Option<Arc<AffineParameters>>>,
}

impl LinearQuantizer {
    /// A quantizer without a range.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidSettings`] when the bit width is not 1 to 25, or a narrow range leaves no code.
    pub fn new(config: LinearQuantizerConfig) -> Result<Self, Error> {
        integer_grid(config.num_bits, config.range.narrow_range)?;
        Ok(Self { config, parameters: RwLock::new(None) })
    }

    /// The settings.
    pub fn config(&self) -> &LinearQuantizerConfig {
        &self.config
    }

    /// The parameters, `None` while unset.
    pub fn parameters(&self) -> Option<AffineParameters> {
        self.shared_parameters().map(Arc::unwrap_or_clone)
    }

    /// The parameters as they stand, without a copy: other parameters are another `Arc`, the same ones the
    /// same.
    pub fn shared_parameters(&self) -> Option<Arc<AffineParameters>> {
        self.parameters.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Sets the parameters themselves, as a loader does.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidRange`] when bits differ from the settings, lengths differ, a scale is not positive and
    /// finite or an offset is not finite.
    pub fn set_parameters(&self, parameters: AffineParameters) -> Result<(), Error> {
        let wrong = |what: String| Err(Error::new(ErrorKind::InvalidRange, what));
        if parameters.num_bits != self.config.num_bits
            || parameters.narrow_range != self.config.range.narrow_range
        {
            return wrong(format!(
                "parameters are for {} bits (narrow range: {}), the quantizer has {} (narrow range: {})",
                parameters.num_bits,
                parameters.narrow_range,
                self.config.num_bits,
                self.config.range.narrow_range
            ));
        }
        if let Some(offset) = &parameters.offset {
            if offset.len() != parameters.scale.len() {
                return wrong(format!(
                    "{} scales need as many offsets, found {}",
                    parameters.scale.len(),
                    offset.len()
                ));
            }
            if let Some(at) = offset.iter().position(|value| !value.is_finite()) {
                return wrong(format!("offset {} of tile {at} is not finite", offset[at]));
            }
        }
        if let Some(at) =
            parameters.scale.iter().position(|&value| !(value > 0.0 && value.is_finite()))
        {
            return wrong(format!(
                "scale {} of tile {at} is not positive and finite",
                parameters.scale[at]
            ));
        }
        self.put(parameters);
        Ok(())
    }

    /// Parameters that are the same as before stay the same `Arc`: what was quantized with them holds.
    fn put(&self, parameters: AffineParameters) {
        let mut place = self.parameters.write().unwrap_or_else(PoisonError::into_inner);
        if !place.as_deref().is_some_and(|standing| standing.is_same(&parameters)) {
            *place = Some(Arc::new(parameters));
        }
    }

    fn set(&self) -> Result<Arc<AffineParameters>, Error> {
        self.shared_parameters().ok_or_else(|| unset_error(self.class()))
    }
}

impl Quantizer for LinearQuantizer {
    fn class(&self) -> Class {
        classes::linear_quantizer()
    }

    fn quantize(&self, x: ArrayView<'_>) -> Result<QuantizedArray, Error> {
        quantize(x, &self.config.granularity, Arc::unwrap_or_clone(self.set()?))
    }

    fn forward(&self, x: ArrayView<'_>) -> Result<Flow, Error> {
        let parameters = self.set()?;
        fake_quantize(x, &self.config.granularity, &parameters).map(Flow::Changed)
    }

    fn affine_grid(&self, _x: ArrayView<'_>) -> Result<Option<AffineGrid>, Error> {
        self.set()?;
        Ok(self.static_grid())
    }

    fn static_grid(&self) -> Option<AffineGrid> {
        let granularity = self.config.granularity.clone();
        Some(AffineGrid { granularity, parameters: self.shared_parameters()? })
    }

    fn num_bits(&self) -> Option<u32> {
        Some(self.config.num_bits)
    }

    fn as_range_settable(&self) -> Option<&dyn RangeSettable> {
        Some(self)
    }

    fn to_saved(&self) -> Option<SavedQuantizer> {
        Some(SavedQuantizer::Linear(self.config.clone(), self.parameters()))
    }
}

impl RangeSettable for LinearQuantizer {
    fn granularity(&self) -> &Granularity {
        &self.config.granularity
    }

    fn range_settings(&self) -> RangeSettings {
        self.config.range
    }

    fn quantization_range(&self) -> Option<(Vec<f32>, Vec<f32>)> {
        self.shared_parameters().map(|parameters| parameters.quantization_range())
    }

    fn set_quantization_range(&self, min: &[f32], max: &[f32]) -> Result<(), Error> {
        self.put(self.parameters_for_range(min, max)?);
        Ok(())
    }

    fn reset_parameters(&self) {
        *self.parameters.write().unwrap_or_else(PoisonError::into_inner) = None;
    }

    fn parameters_for_range(&self, min: &[f32], max: &[f32]) -> Result<AffineParameters, Error> {
        parameters_for_range(min, max, self.config.num_bits, &self.config.range)
    }
}

/// As the reference prints it: `LinearQuantizer(num_bits=8, symmetric=True, granularity=PerTensor())`, then the options
/// that differ from the defaults.
impl fmt::Display for LinearQuantizer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_settings(
            f,
            "LinearQuantizer",
            self.config.num_bits,
            &self.config.granularity,
            &self.config.range,
        )
    }
}

pub(crate) fn write_settings(
    f: &mut fmt::Formatter<'_>,
    class: &str,
    num_bits: u32,
    granularity: &dyn fmt::Display,
    range: &RangeSettings,
) -> fmt::Result {
    let python = |value: bool| if value { "True" } else { "False" };
    write!(
        f,
        "{class}(num_bits={num_bits}, symmetric={}, granularity={granularity}",
        python(range.symmetric)
    )?;
    let defaults = RangeSettings::default();
    for (name, value, default) in [
        ("allow_one_sided", range.allow_one_sided, defaults.allow_one_sided),
        ("zero_in_range", range.zero_in_range, defaults.zero_in_range),
        ("narrow_range", range.narrow_range, defaults.narrow_range),
        ("power_of_two", range.power_of_two, defaults.power_of_two),
        ("scale_floor", range.scale_floor, defaults.scale_floor),
    ] {
        if value != default {
            write!(f, ", {name}={}", python(value))?;
        }
    }
    if range.one_sided != defaults.one_sided {
        f.write_str(", one_sided=per_tile")?;
    }
    f.write_str(")")
}
