//! Remembering, for one forward, which operator and which slot a value came from (spec §9).

use std::cell::RefCell;
use std::collections::HashMap;

use candle_core::{Tensor, TensorId};

use super::Value;
use crate::quantization::quantizer::QuantizerSlot;

thread_local! {
    static RECORDING: RefCell<Option<Recording>> = const { RefCell::new(None) };
}

/// What one forward showed: which operator feeds a slot, which one it feeds.
#[derive(Default)]
struct Recording {
    origins: HashMap<TensorId, Origin>,
    /// Ids are only told apart while their tensors live.
    alive: Vec<Tensor>,
    neighbours: Vec<Neighbour>,
}

#[derive(Clone)]
enum Origin {
    Operator(&'static str),
    Slot(QuantizerSlot),
}

/// A slot directly before or after an operator.
#[derive(Clone)]
pub(crate) struct Neighbour {
    pub slot: QuantizerSlot,
    pub before: bool,
    pub operator: &'static str,
}

/// Runs `f` and says which slots stood next to which operators.
pub(crate) fn record<R>(f: impl FnOnce() -> R) -> (R, Vec<Neighbour>) {
    struct Restore(Option<Recording>);
    impl Drop for Restore {
        fn drop(&mut self) {
            let before = self.0.take();
            RECORDING.with_borrow_mut(|current| *current = before);
        }
    }
    let restore = Restore(RECORDING.replace(Some(Recording::default())));
    let result = f();
    let found = RECORDING.with_borrow_mut(|current| current.take());
    drop(restore);
    (result, found.map_or_else(Vec::new, |recording| recording.neighbours))
}

/// Whether a forward is being recorded: slots then pass everything as it is.
pub(crate) fn is_recording() -> bool {
    RECORDING.with_borrow(Option::is_some)
}

/// A value that leaves a slot as it came.
pub(crate) fn through_slot(slot: &QuantizerSlot, x: &Value) -> Value {
    with(x, |recording, tensor| {
        if let Some(Origin::Operator(operator)) = recording.origins.get(&tensor.id()).cloned() {
            recording.neighbours.push(Neighbour { slot: slot.clone(), before: false, operator });
        }
        // The same storage under another name: the value before the slot may be used elsewhere.
        let renamed = tensor.reshape(tensor.shape()).unwrap_or_else(|_| tensor.clone());
        recording.remember(&renamed, Origin::Slot(slot.clone()));
        renamed.into()
    })
    .unwrap_or_else(|| x.clone())
}

/// An operator takes a value.
pub(crate) fn into_operator(operator: &'static str, x: &Value) {
    with(x, |recording, tensor| {
        if let Some(Origin::Slot(slot)) = recording.origins.get(&tensor.id()).cloned() {
            recording.neighbours.push(Neighbour { slot, before: true, operator });
        }
    });
}

/// An operator gives a value.
pub(crate) fn out_of_operator(operator: &'static str, y: &Value) {
    with(y, |recording, tensor| recording.remember(tensor, Origin::Operator(operator)));
}

impl Recording {
    fn remember(&mut self, tensor: &Tensor, origin: Origin) {
        self.origins.insert(tensor.id(), origin);
        self.alive.push(tensor.clone());
    }
}

fn with<R>(x: &Value, f: impl FnOnce(&mut Recording, &Tensor) -> R) -> Option<R> {
    let Value::Float(tensor) = x else { return None };
    RECORDING.with_borrow_mut(|recording| recording.as_mut().map(|recording| f(recording, tensor)))
}
