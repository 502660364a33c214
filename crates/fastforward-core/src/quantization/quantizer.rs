//! What a quantizer is, and the slot it stands in.

mod metadata;
mod slot;
mod stub;

use std::any::Any;
use std::fmt;

use mpath::Class;

pub use metadata::{QuantizerMetadata, default_tags};
pub use mpath::{Tag, TagSet};
pub use slot::{
    Onlooker, Onward, OverrideGuard, QuantizerOverride, QuantizerSlot, RangeOnlooker, SlotUpdate,
    StrictnessGuard, apply_updates,
};
pub use stub::QuantizerStub;
pub(crate) use stub::stub;

use crate::quantization::affine::{AffineGrid, QuantizedArray, RangeSettings};
use crate::quantization::granularity::Granularity;
use crate::{Array, ArrayView, Error, ErrorKind};

/// Maps floats to a grid.
///
/// A quantizer is shared and immutable from the outside: its parameters (a range) change behind a lock, so that a model
/// can be calibrated while others read it. Printing shows the settings: `LinearQuantizer(num_bits=8, ..)`.
pub trait Quantizer: Any + fmt::Debug + fmt::Display + Send + Sync {
    /// What `[cls:...]` sees.
    fn class(&self) -> Class;

    /// Whether this is a placeholder that leaves data as it is.
    fn is_stub(&self) -> bool {
        false
    }

    /// The integer codes of `x` with the parameters that decode them.
    ///
    /// # Errors
    /// [`ErrorKind::UnsetQuantizer`] before a range is set, [`ErrorKind::Granularity`] when the shape does not fit,
    /// [`ErrorKind::InvalidData`] for NaN.
    fn quantize(&self, x: ArrayView<'_>) -> Result<QuantizedArray, Error>;

    /// What data becomes by being quantized and dequantized; [`Flow::Unchanged`] when it stays the very same.
    ///
    /// # Errors
    /// As for [`quantize`](Quantizer::quantize), except that NaN stays NaN where no range is taken from the data.
    fn forward(&self, x: ArrayView<'_>) -> Result<Flow, Error>;

    /// The grid on which [`quantize`](Quantizer::quantize) puts this very data, for engines that quantize by themselves,
    /// with gradients or into integers. `None` when there is none: a stub, or a quantizer that is not affine.
    ///
    /// # Errors
    /// As for [`quantize`](Quantizer::quantize), as far as they show without quantizing.
    fn affine_grid(&self, x: ArrayView<'_>) -> Result<Option<AffineGrid>, Error> {
        let _ = x;
        Ok(None)
    }

    /// The grid on which [`quantize`](Quantizer::quantize) puts whatever data it is given, without a copy of the parameters.
    /// `None` where that depends on the data, before a range is set, and for a quantizer that is not affine or does not say.
    fn static_grid(&self) -> Option<AffineGrid> {
        None
    }

    /// The bits of one code, `None` for a stub.
    fn num_bits(&self) -> Option<u32> {
        None
    }

    /// This quantizer as one whose range can be set, if it has one.
    fn as_range_settable(&self) -> Option<&dyn RangeSettable> {
        None
    }

    /// Everything needed to make this quantizer again, parameters included; `None` when it cannot be saved.
    fn to_saved(&self) -> Option<crate::quantization::affine::SavedQuantizer> {
        None
    }
}

/// Whether data came out as it went in.
#[derive(Clone, Debug, PartialEq)]
pub enum Flow {
    /// The very same data.
    Unchanged,
    /// Other data of the same shape.
    Changed(Array),
}

impl Flow {
    /// The data that flows on, copied if it is unchanged.
    pub fn into_array(self, input: ArrayView<'_>) -> Array {
        match self {
            Flow::Unchanged => input.to_array(),
            Flow::Changed(array) => array,
        }
    }
}

/// A quantizer whose parameters follow from a range of values: what range estimators work on (spec §6.1).
pub trait RangeSettable: Quantizer {
    /// How data is cut into tiles with parameters of their own.
    fn granularity(&self) -> &Granularity;

    /// How a range becomes parameters: what a search over candidate ranges evaluates.
    fn range_settings(&self) -> RangeSettings;

    /// Whether positive and negative values share one scale without offset.
    fn is_symmetric(&self) -> bool {
        self.range_settings().symmetric
    }

    /// The smallest and largest value that each tile represents, in tile order; `None` while unset.
    fn quantization_range(&self) -> Option<(Vec<f32>, Vec<f32>)>;

    /// Sets the parameters from one minimum and maximum per tile.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidRange`] when the lengths differ, there is no tile, or a bound is not finite. A minimum above its
    /// maximum is none: as in the reference, the formula is applied to it as it stands (spec §4.4). Whether there are as
    /// many tiles as the data has shows when data is quantized.
    fn set_quantization_range(&self, min: &[f32], max: &[f32]) -> Result<(), Error>;

    /// Back to unset.
    fn reset_parameters(&self);

    /// The scale and offset that this quantizer would take for a range, without taking them: what a search over
    /// candidate ranges evaluates.
    ///
    /// # Errors
    /// As for [`set_quantization_range`](RangeSettable::set_quantization_range).
    fn parameters_for_range(
        &self,
        min: &[f32],
        max: &[f32],
    ) -> Result<crate::quantization::affine::AffineParameters, Error>;
}

/// The error of a quantizer that is used before it has a range.
pub(crate) fn unset_error(class: Class) -> Error {
    Error::new(
        ErrorKind::UnsetQuantizer,
        format!(
            "{class} has no range yet; set one with `set_quantization_range` or calibrate with \
             `estimate_ranges`"
        ),
    )
}
