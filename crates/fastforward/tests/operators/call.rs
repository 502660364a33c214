//! The one place that calls the operators.

mod attention;
mod elementwise;
mod layers;
pub mod shapes;
pub mod spatial;

use std::collections::BTreeMap;

use candle_core::Tensor;
use fastforward::tensor::{Error, Result};

use crate::arguments::Arguments;

/// What an operator gave.
pub struct Outcome {
    pub result: Tensor,
    /// Operands that the operator changes, after the call.
    pub updated: BTreeMap<&'static str, Tensor>,
}

impl From<Tensor> for Outcome {
    fn from(result: Tensor) -> Self {
        Self { result, updated: BTreeMap::new() }
    }
}

/// Calls the operator of this name; a name without an arm is an error.
pub fn call(op: &str, a: &Arguments) -> Result<Outcome> {
    let families = [layers::call, spatial::call, elementwise::call, shapes::call, attention::call];
    let called = families.iter().find_map(|family| family(op, a));
    called.unwrap_or_else(|| Err(Error::operator(op, "no arm calls it")))
}
