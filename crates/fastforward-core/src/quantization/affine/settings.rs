//! How a range becomes a scale and an offset, and how a quantizer is written down.

use serde::{Deserialize, Serialize};

use super::{AffineParameters, LinearQuantizerConfig};
use crate::quantization::dynamic::DynamicLinearQuantizerConfig;

/// How a range becomes a scale and an offset (spec §4.4), and the options beside the reference's behaviour.
///
/// The defaults are the reference's, with two exceptions, each because the reference's choice breaks what users build
/// on top: `zero_in_range` (padding, ReLU and every exporter need an exact zero) and `scale_floor` (a constant or
/// all-zero tensor must not give NaN). [`RangeSettings::reference`] switches both off.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RangeSettings {
    /// Whether negative and positive values share one scale without offset.
    pub symmetric: bool,
    /// Whether symmetric data without negative values uses the whole grid for the positive side, by an offset of
    /// `2^(bits-1)`.
    pub allow_one_sided: bool,
    /// Whether one negative minimum makes all tiles two-sided.
    pub one_sided: OneSided,
    /// Whether an asymmetric range is widened so that it contains zero.
    pub zero_in_range: bool,
    /// Whether the lowest code is left out, so that the grid is symmetric: `-127..=127` at 8 bits.
    pub narrow_range: bool,
    /// Whether each scale is rounded up to a power of two, for targets that shift instead of multiplying.
    pub power_of_two: bool,
    /// Whether a degenerate range (constant zero data) gets the smallest sensible scale instead of zero, which would
    /// make NaN of the data.
    pub scale_floor: bool,
}

/// Over which tiles one-sidedness is decided.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OneSided {
    /// One decision for the whole parameter vector, as the reference does: exporters can then store one zero point.
    #[default]
    PerTensor,
    /// One decision per tile: tighter when some channels have no negative value.
    PerTile,
}

impl Default for RangeSettings {
    fn default() -> Self {
        Self {
            symmetric: true,
            allow_one_sided: true,
            one_sided: OneSided::PerTensor,
            zero_in_range: true,
            narrow_range: false,
            power_of_two: false,
            scale_floor: true,
        }
    }
}

impl RangeSettings {
    /// Exactly what the reference system does.
    pub fn reference() -> Self {
        Self { zero_in_range: false, scale_floor: false, ..Self::default() }
    }
}

/// A quantizer written down: settings, and parameters if it has some. What state files hold.
#[derive(Clone, Debug, PartialEq)]
pub enum SavedQuantizer {
    /// A [`LinearQuantizer`](super::LinearQuantizer); `None` when its range was never set.
    Linear(LinearQuantizerConfig, Option<AffineParameters>),
    /// A [`DynamicLinearQuantizer`](crate::quantization::DynamicLinearQuantizer).
    DynamicLinear(DynamicLinearQuantizerConfig),
}
