//! The sum of two values.

use super::functional as F;
use crate::Module;
use crate::quantization::QuantizerSlot;
use crate::tensor::{Apply, Result, Value};

/// `a + b`, each through a slot of its own: what a residual connection needs to be seen by rules.
///
/// The slots are called as those of an `Add` in a graph file, so that the same rules address both.
#[derive(Module, Debug)]
#[module(class = "Add", extends = [fastforward::module::classes::quantized_module()])]
pub struct Add {
    /// `activation/input`, of the first value.
    pub input_quantizer: QuantizerSlot,
    /// `activation/input`, of the second value.
    pub input_quantizer_1: QuantizerSlot,
    /// `activation/output`
    pub output_quantizer: QuantizerSlot,
}

impl Add {
    /// The layer with empty slots.
    pub fn new() -> Self {
        Self {
            input_quantizer: QuantizerSlot::input(),
            input_quantizer_1: QuantizerSlot::input(),
            output_quantizer: QuantizerSlot::output(),
        }
    }

    /// The sum; shapes broadcast.
    ///
    /// # Errors
    /// What a quantizer or the operator reports.
    pub fn forward(&self, a: &Value, b: &Value) -> Result<Value> {
        let (a, b) = (self.input_quantizer.apply(a)?, self.input_quantizer_1.apply(b)?);
        F::add(&a, &b, 1.0, &self.output_quantizer)
    }
}

impl Default for Add {
    fn default() -> Self {
        Self::new()
    }
}
