//! Slots whose data is watched by those who ask for its range only.

use std::sync::Arc;

use candle_core::Tensor;

use super::apply::{Memory, finish, placed, quantize};
use super::{Result, Value, record};
use crate::quantization::Granularity;
use crate::quantization::quantizer::{Onward, Quantizer, QuantizerOverride, QuantizerSlot};
use crate::range_setting::TileRanges;

/// The overrides of a slot, all of which ask for nothing but the range of each tile: who knows the ranges of data without
/// looking at it again, because they were found while the data was made or it is a weight that was here before, sends it
/// through the slot with [`apply`](Self::apply).
pub(crate) struct RangeWatch<'a> {
    slot: &'a QuantizerSlot,
    quantizer: Arc<dyn Quantizer>,
    /// Oldest first; not empty.
    overrides: Vec<Arc<dyn QuantizerOverride>>,
}

impl<'a> RangeWatch<'a> {
    /// `None` where nobody watches the slot, or somebody wants to see the data itself.
    pub(crate) fn of(slot: &'a QuantizerSlot) -> Option<Self> {
        if slot.override_count() == 0 || record::is_recording() {
            return None;
        }
        let (quantizer, overrides) = (slot.quantizer(), slot.overrides());
        let looks = |one: &Arc<dyn QuantizerOverride>| {
            one.as_onlooker().is_some_and(|onlooker| onlooker.as_range_onlooker().is_some())
        };
        let fits = quantizer.as_range_settable().is_some()
            && !overrides.is_empty()
            && overrides.iter().all(looks);
        fits.then_some(Self { slot, quantizer, overrides })
    }

    /// The quantizer that stood in the slot.
    pub(crate) fn quantizer(&self) -> &Arc<dyn Quantizer> {
        &self.quantizer
    }

    /// How the data is cut into tiles.
    pub(crate) fn granularity(&self) -> Granularity {
        let settable = self.quantizer.as_range_settable();
        settable.map_or(Granularity::PerTensor, |settable| settable.granularity().clone())
    }

    /// Shows the ranges of `n_elements` finite values, newest override first, until one of them lets the data out.
    pub(crate) fn look(&self, ranges: &TileRanges, n_elements: usize) -> Result<Onward> {
        let bounds = (&ranges.min[..], &ranges.max[..]);
        for one in self.overrides.iter().rev() {
            let Some(onlooker) = one.as_onlooker().and_then(|one| one.as_range_onlooker()) else {
                continue;
            };
            let onward = onlooker.look_at_ranges(&*self.quantizer, bounds, n_elements);
            match placed(self.slot, onward.map_err(Into::into))? {
                Onward::Next => {}
                Onward::Out => return Ok(Onward::Out),
            }
        }
        Ok(Onward::Next)
    }

    /// Sends data with these ranges through the slot; it lies in memory of its own, which may be written over.
    pub(crate) fn apply(&self, x: Tensor, ranges: &TileRanges) -> Result<Value> {
        match self.look(ranges, x.elem_count())? {
            Onward::Out => Ok(x.into()),
            Onward::Next => {
                placed(self.slot, quantize(&*self.quantizer, &x, Memory::Own).and_then(finish))
            }
        }
    }
}
