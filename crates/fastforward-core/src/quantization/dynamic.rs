//! Affine quantization whose parameters come from the data itself.

use std::fmt;

use mpath::Class;
use serde::{Deserialize, Serialize};

use crate::module::classes;
use crate::quantization::Granularity;
use crate::quantization::affine::{
    self, AffineGrid, AffineParameters, QuantizedArray, RangeSettings, SavedQuantizer,
    integer_grid, write_settings,
};
use crate::quantization::quantizer::{Flow, Quantizer};
use crate::{ArrayView, Error};

/// The settings of a [`DynamicLinearQuantizer`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DynamicLinearQuantizerConfig {
    /// The bits of one code, 1 to 25.
    pub num_bits: u32,
    /// How data is cut into tiles with parameters of their own.
    pub granularity: Granularity,
    /// How a range becomes parameters.
    pub range: RangeSettings,
}

impl DynamicLinearQuantizerConfig {
    /// An asymmetric quantizer of the whole tensor: the default is the opposite of `LinearQuantizer`'s, as in the
    /// reference (spec §3.8).
    pub fn new(num_bits: u32) -> Self {
        Self {
            num_bits,
            granularity: Granularity::PerTensor,
            range: RangeSettings { symmetric: false, ..RangeSettings::default() },
        }
    }
}

/// Affine quantization with a scale and an offset made from each tensor's own minimum and maximum (spec §4.6).
///
/// It has no range to set, so range estimators refuse it unless told to skip it.
pub struct DynamicLinearQuantizer {
    config: DynamicLinearQuantizerConfig,
    inference: Option<Box<ParameterInference>>,
}

/// Makes the parameters for one tensor.
type ParameterInference = dyn Fn(&DynamicLinearQuantizerConfig, ArrayView<'_>) -> Result<AffineParameters, Error>
    + Send
    + Sync;

impl DynamicLinearQuantizer {
    /// A quantizer with these settings.
    ///
    /// # Errors
    /// [`InvalidSettings`](crate::ErrorKind::InvalidSettings) when the bit width is not 1 to 25, or a narrow range
    /// leaves no code.
    pub fn new(config: DynamicLinearQuantizerConfig) -> Result<Self, Error> {
        integer_grid(config.num_bits, config.range.narrow_range)?;
        Ok(Self { config, inference: None })
    }

    /// The same with parameters from `infer` instead of each tile's minimum and maximum (spec §3.8). What it returns is
    /// used unchanged. Such a quantizer has no saved form.
    ///
    /// ```
    /// use fastforward_core::ArrayView;
    /// use fastforward_core::quantization::affine::AffineParameters;
    /// use fastforward_core::quantization::{DynamicLinearQuantizer, DynamicLinearQuantizerConfig, Quantizer};
    /// let quantizer = DynamicLinearQuantizer::new(DynamicLinearQuantizerConfig::new(8))?
    ///     .with_parameter_inference(|config, _data| {
    ///         let num_bits = config.num_bits;
    ///         Ok(AffineParameters { num_bits, narrow_range: false, scale: vec![0.5], offset: None })
    ///     });
    /// let codes = quantizer.quantize(ArrayView::new(&[1.0, -2.0], &[2])?)?;
    /// assert_eq!(codes.codes.to_i32(), [2, -4]);
    /// # Ok::<(), fastforward_core::Error>(())
    /// ```
    #[must_use]
    pub fn with_parameter_inference<F>(self, infer: F) -> Self
    where
        F: Fn(&DynamicLinearQuantizerConfig, ArrayView<'_>) -> Result<AffineParameters, Error>
            + Send
            + Sync
            + 'static,
    {
        Self { inference: Some(Box::new(infer)), ..self }
    }

    fn parameters(&self, x: ArrayView<'_>) -> Result<AffineParameters, Error> {
        let DynamicLinearQuantizerConfig { num_bits, granularity, range } = &self.config;
        match &self.inference {
            Some(infer) => infer(&self.config, x),
            None => affine::dynamic_parameters(x, granularity, *num_bits, range),
        }
    }

    /// The settings.
    pub fn config(&self) -> &DynamicLinearQuantizerConfig {
        &self.config
    }
}

impl fmt::Debug for DynamicLinearQuantizer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DynamicLinearQuantizer")
            .field("config", &self.config)
            .field("has_inference", &self.inference.is_some())
            .finish()
    }
}

impl Quantizer for DynamicLinearQuantizer {
    fn class(&self) -> Class {
        classes::dynamic_linear_quantizer()
    }

    fn quantize(&self, x: ArrayView<'_>) -> Result<QuantizedArray, Error> {
        let parameters = self.parameters(x)?;
        affine::quantize(x, &self.config.granularity, parameters)
    }

    fn forward(&self, x: ArrayView<'_>) -> Result<Flow, Error> {
        let parameters = self.parameters(x)?;
        affine::fake_quantize(x, &self.config.granularity, &parameters).map(Flow::Changed)
    }

    fn affine_grid(&self, x: ArrayView<'_>) -> Result<Option<AffineGrid>, Error> {
        let parameters = std::sync::Arc::new(self.parameters(x)?);
        Ok(Some(AffineGrid { granularity: self.config.granularity.clone(), parameters }))
    }

    fn num_bits(&self) -> Option<u32> {
        Some(self.config.num_bits)
    }

    fn to_saved(&self) -> Option<SavedQuantizer> {
        // A closure cannot be written down.
        self.inference.is_none().then(|| SavedQuantizer::DynamicLinear(self.config.clone()))
    }
}

impl fmt::Display for DynamicLinearQuantizer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_settings(
            f,
            "DynamicLinearQuantizer",
            self.config.num_bits,
            &self.config.granularity,
            &self.config.range,
        )
    }
}
