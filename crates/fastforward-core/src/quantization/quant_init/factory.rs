//! What makes the quantizer that a rule puts into a slot.

use std::error::Error as StdError;
use std::fmt;
use std::sync::Arc;

use super::CHANNEL_AXIS;
use crate::quantization::affine::{LinearQuantizer, LinearQuantizerConfig};
use crate::quantization::dynamic::{DynamicLinearQuantizer, DynamicLinearQuantizerConfig};
use crate::quantization::granularity::Granularity;
use crate::quantization::quantizer::{Quantizer, QuantizerSlot, QuantizerStub};
use crate::{Error, ErrorKind};

/// A quantizer factory: a specification, or a closure over the slot's full name and the quantizer that stands there.
///
/// ```
/// use std::sync::Arc;
/// use fastforward_core::quantization::quant_init::{Factory, QuantizerSpec};
/// use fastforward_core::quantization::{LinearQuantizerConfig, Quantizer};
///
/// let eight_bits: Factory = QuantizerSpec::linear(8).into();
/// let keep = Factory::new(|_name, current: &Arc<dyn Quantizer>| Ok(Arc::clone(current)));
/// assert_eq!(eight_bits.to_string(), "LinearQuantizer(num_bits=8, symmetric=True, granularity=PerTensor())");
/// assert_eq!(keep.to_string(), "factory(<module_name>, <current_quantizer>)");
/// ```
#[derive(Clone)]
pub struct Factory(Kind);

#[derive(Clone)]
enum Kind {
    Spec(QuantizerSpec),
    Closure { label: String, make: Arc<Make> },
}

type Make = dyn Fn(&str, &Arc<dyn Quantizer>) -> Result<Arc<dyn Quantizer>, Box<dyn StdError + Send + Sync>>
    + Send
    + Sync;

impl Factory {
    /// A factory that calls `make` with the full name of the slot and the quantizer that stands there now.
    pub fn new<F>(make: F) -> Self
    where
        F: Fn(
                &str,
                &Arc<dyn Quantizer>,
            ) -> Result<Arc<dyn Quantizer>, Box<dyn StdError + Send + Sync>>
            + Send
            + Sync
            + 'static,
    {
        Self(Kind::Closure { label: "factory".to_owned(), make: Arc::new(make) })
    }

    /// The same, printed under this name.
    pub fn named(self, label: impl Into<String>) -> Self {
        match self.0 {
            Kind::Closure { make, .. } => Self(Kind::Closure { label: label.into(), make }),
            spec => Self(spec),
        }
    }

    /// The specification, if this factory is one.
    pub fn spec(&self) -> Option<&QuantizerSpec> {
        match &self.0 {
            Kind::Spec(spec) => Some(spec),
            Kind::Closure { .. } => None,
        }
    }

    /// The quantizer for a slot.
    ///
    /// # Errors
    /// [`ErrorKind::Factory`] naming the slot, with the factory's own error as its source.
    pub fn make(
        &self,
        name: &str,
        slot: &QuantizerSlot,
        current: &Arc<dyn Quantizer>,
    ) -> Result<Arc<dyn Quantizer>, Error> {
        match &self.0 {
            Kind::Spec(spec) => spec.make(slot).map_err(|error| error.at(format!("`{name}`"))),
            Kind::Closure { make, .. } => make(name, current).map_err(|source| {
                Error::new(
                    ErrorKind::Factory,
                    format!("`{name}`: the quantizer factory failed: {source}"),
                )
                .with_source(source)
            }),
        }
    }
}

impl fmt::Display for Factory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Kind::Spec(spec) => spec.fmt(f),
            Kind::Closure { label, .. } => write!(f, "{label}(<module_name>, <current_quantizer>)"),
        }
    }
}

impl fmt::Debug for Factory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl From<QuantizerSpec> for Factory {
    fn from(spec: QuantizerSpec) -> Self {
        Self(Kind::Spec(spec))
    }
}

impl From<LinearQuantizerConfig> for Factory {
    fn from(config: LinearQuantizerConfig) -> Self {
        QuantizerSpec::Linear { config, channel: ChannelAxis::AsGiven }.into()
    }
}

impl From<DynamicLinearQuantizerConfig> for Factory {
    fn from(config: DynamicLinearQuantizerConfig) -> Self {
        QuantizerSpec::DynamicLinear(config).into()
    }
}

impl<F> From<F> for Factory
where
    F: Fn(&str, &Arc<dyn Quantizer>) -> Result<Arc<dyn Quantizer>, Box<dyn StdError + Send + Sync>>
        + Send
        + Sync
        + 'static,
{
    fn from(make: F) -> Self {
        Factory::new(make)
    }
}

/// A quantizer by its settings: what a rules file can name.
#[derive(Clone, Debug, PartialEq)]
pub enum QuantizerSpec {
    /// No quantizer: the slot is left in float. As the last word of a rule it takes a slot away from more general rules.
    None,
    /// A [`LinearQuantizer`].
    Linear {
        /// Its settings.
        config: LinearQuantizerConfig,
        /// Whether the granularity is as given or follows the slot's output channels.
        channel: ChannelAxis,
    },
    /// A [`DynamicLinearQuantizer`].
    DynamicLinear(DynamicLinearQuantizerConfig),
}

/// Where the axis of a per-channel quantizer comes from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ChannelAxis {
    /// From the granularity in the settings.
    #[default]
    AsGiven,
    /// From the slot: the axis of output channels of the weight that stands there, which differs between operators
    /// (`Conv` 0, `MatMul` the last).
    OfOutput,
}

impl QuantizerSpec {
    /// A symmetric linear quantizer of whole tensors.
    pub fn linear(num_bits: u32) -> Self {
        Self::Linear { config: LinearQuantizerConfig::new(num_bits), channel: ChannelAxis::AsGiven }
    }

    /// The bits of one code; `None` for no quantizer.
    pub fn num_bits(&self) -> Option<u32> {
        match self {
            Self::None => None,
            Self::Linear { config, .. } => Some(config.num_bits),
            Self::DynamicLinear(config) => Some(config.num_bits),
        }
    }

    /// The quantizer for a slot.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidSettings`] for settings no quantizer has, or for output channels of a slot that has none;
    /// [`ErrorKind::Granularity`] when the granularity does not fit the shape that the slot is known to see.
    pub fn make(&self, slot: &QuantizerSlot) -> Result<Arc<dyn Quantizer>, Error> {
        let metadata = slot.metadata();
        let check = |granularity: &Granularity| match metadata.shape() {
            Some(shape) => granularity.tile_shape(shape).map(drop),
            None => Ok(()),
        };
        match self {
            Self::None => Ok(Arc::new(QuantizerStub)),
            Self::Linear { config, channel } => {
                let mut config = config.clone();
                if *channel == ChannelAxis::OfOutput {
                    let axis = metadata.attributes().get(CHANNEL_AXIS);
                    let axis = axis.and_then(|axis| axis.parse().ok()).ok_or_else(|| {
                        Error::new(
                            ErrorKind::InvalidSettings,
                            "granularity `per_output_channel` needs a weight with an axis of output channels, and this \
                             slot has none; use `per_tensor` or `{ per_channel = AXIS }`",
                        )
                    })?;
                    config.granularity = Granularity::per_channel(axis);
                }
                check(&config.granularity)?;
                Ok(Arc::new(LinearQuantizer::new(config)?))
            }
            Self::DynamicLinear(config) => {
                check(&config.granularity)?;
                Ok(Arc::new(DynamicLinearQuantizer::new(config.clone())?))
            }
        }
    }
}

impl fmt::Display for QuantizerSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use crate::quantization::affine::write_settings;
        match self {
            Self::None => f.write_str("none"),
            Self::Linear { config, channel } => {
                let granularity: &dyn fmt::Display = match channel {
                    ChannelAxis::AsGiven => &config.granularity,
                    ChannelAxis::OfOutput => &"PerChannel(channel=output)",
                };
                write_settings(f, "LinearQuantizer", config.num_bits, granularity, &config.range)
            }
            Self::DynamicLinear(config) => write_settings(
                f,
                "DynamicLinearQuantizer",
                config.num_bits,
                &config.granularity,
                &config.range,
            ),
        }
    }
}
