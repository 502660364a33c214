//! Quantization switched off and on again, for a model or a part of it (spec §8.3).

use std::any::Any;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::flags::{FlagGuard, strict_quantization};
use crate::quantization::quantizer::{
    Flow, Onlooker, Onward, OverrideGuard, Quantizer, QuantizerOverride, QuantizerSlot,
    StrictnessGuard,
};
use crate::range_setting::SlotSource;
use crate::{ArrayView, Error};

/// Lets every quantizer of a model pass data as it is, and turns strict mode off for this thread, while the guard lives.
///
/// Overrides that are put on later, such as range estimators, still see the data. Quantization is off for every thread that
/// uses the model; strict mode only for this one.
///
/// ```
/// use std::sync::Arc;
/// use candle_core::{Device, Tensor};
/// use fastforward::module::SlotEntry;
/// use fastforward::quantization::quantizer::RangeSettable;
/// use fastforward::quantization::{
///     LinearQuantizer, LinearQuantizerConfig, QuantizerSlot, disable_quantization, enable_quantization,
/// };
/// use fastforward::tensor::{Apply, Value};
///
/// let quantizer = LinearQuantizer::new(LinearQuantizerConfig::new(2))?;
/// quantizer.set_quantization_range(&[-2.0], &[1.0])?;
/// let slot = QuantizerSlot::input();
/// slot.replace(Arc::new(quantizer));
/// let slots = vec![SlotEntry { names: vec!["x".into()], slot: slot.clone() }];
/// let x = Value::from(Tensor::new(&[0.6f32], &Device::Cpu)?);
/// assert!(slot.apply(&x)?.is_quantized());
/// {
///     let _off = disable_quantization(&slots);
///     assert!(!slot.apply(&x)?.is_quantized());
///     let _on = enable_quantization(&slots);
///     assert!(slot.apply(&x)?.is_quantized());
/// }
/// assert!(slot.apply(&x)?.is_quantized());
/// # Ok::<(), fastforward::tensor::Error>(())
/// ```
pub fn disable_quantization<S: SlotSource + ?Sized>(source: &S) -> DisableGuard {
    let overrides = source
        .slot_entries()
        .into_iter()
        .filter(|entry| !entry.slot.is_stub())
        .map(|entry| pass_through(&entry.slot))
        .collect();
    DisableGuard { overrides, _strict: strict_quantization(false) }
}

/// Lets the quantizers below `source` work again inside of [`disable_quantization`], while the guard lives. Strict mode stays
/// as it is.
pub fn enable_quantization<S: SlotSource + ?Sized>(source: &S) -> EnableGuard {
    let mut switched: Vec<Arc<dyn Any + Send + Sync>> = Vec::new();
    for entry in source.slot_entries() {
        for one in entry.slot.overrides() {
            let any: Arc<dyn Any + Send + Sync> = one;
            if let Some(switch) = any.downcast_ref::<Disable>() {
                switch.enabled.fetch_add(1, Ordering::AcqRel);
                switched.push(any);
            }
        }
    }
    EnableGuard { switched }
}

/// Strict mode, on or off, for the operators whose output slots stand in `source`, while the guard lives: in every thread,
/// whatever the thread's own switch says.
pub fn strict_quantization_for_module<S: SlotSource + ?Sized>(
    strict: bool,
    source: &S,
) -> ModuleStrictness {
    let slots = source.slot_entries();
    ModuleStrictness {
        guards: slots.iter().map(|entry| entry.slot.push_strictness(strict)).collect(),
    }
}

/// Keeps quantization off; made by [`disable_quantization`].
#[must_use = "quantization is switched on again when the guard is dropped"]
#[derive(Debug)]
pub struct DisableGuard {
    overrides: Vec<OverrideGuard>,
    _strict: FlagGuard,
}

impl DisableGuard {
    /// How many slots are switched off.
    pub fn len(&self) -> usize {
        self.overrides.len()
    }

    /// Whether there was no quantizer to switch off.
    pub fn is_empty(&self) -> bool {
        self.overrides.is_empty()
    }
}

/// Keeps quantization on inside of a switched off model; made by [`enable_quantization`].
#[must_use = "quantization is switched off again when the guard is dropped"]
pub struct EnableGuard {
    switched: Vec<Arc<dyn Any + Send + Sync>>,
}

impl Drop for EnableGuard {
    fn drop(&mut self) {
        for switch in self.switched.iter().filter_map(|any| any.downcast_ref::<Disable>()) {
            switch.enabled.fetch_sub(1, Ordering::AcqRel);
        }
    }
}

/// Keeps the strictness of a module; made by [`strict_quantization_for_module`].
#[must_use = "strictness goes back when the guard is dropped"]
pub struct ModuleStrictness {
    guards: Vec<StrictnessGuard>,
}

impl ModuleStrictness {
    /// How many slots follow this strictness.
    pub fn len(&self) -> usize {
        self.guards.len()
    }

    /// Whether there was no slot.
    pub fn is_empty(&self) -> bool {
        self.guards.is_empty()
    }
}

/// One switch per slot: a part of a model can be enabled without the rest.
#[derive(Default)]
struct Disable {
    /// How many guards enable it.
    enabled: AtomicUsize,
}

impl QuantizerOverride for Disable {
    fn call(
        &self,
        quantizer: &dyn Quantizer,
        next: &dyn Fn(ArrayView<'_>) -> Result<Flow, Error>,
        x: ArrayView<'_>,
    ) -> Result<Flow, Error> {
        match self.look(quantizer, x)? {
            Onward::Next => next(x),
            Onward::Out => Ok(Flow::Unchanged),
        }
    }

    fn as_onlooker(&self) -> Option<&dyn Onlooker> {
        Some(self)
    }
}

impl Onlooker for Disable {
    fn look(&self, _quantizer: &dyn Quantizer, _x: ArrayView<'_>) -> Result<Onward, Error> {
        let enabled = self.enabled.load(Ordering::Acquire) > 0;
        Ok(if enabled { Onward::Next } else { Onward::Out })
    }
}

/// Lets a slot pass data as it is.
fn pass_through(slot: &QuantizerSlot) -> OverrideGuard {
    slot.push_override(Arc::new(Disable::default()))
}
