//! Modules with one input and one output.

use std::sync::Arc;

use candle_core::Tensor;

use crate::module::Module;
use crate::tensor::{Result, Value};

/// A module that makes one value of one value: what [`Sequential`](super::Sequential) holds.
///
/// Modules with other signatures are ordinary modules with a `forward` of their own.
pub trait Layer: Module {
    /// The output for an input.
    ///
    /// # Errors
    /// What an operator or a quantizer of the layer reports.
    fn forward(&self, x: &Value) -> Result<Value>;

    /// The same for floats.
    ///
    /// # Errors
    /// As for [`forward`](Layer::forward).
    fn forward_tensor(&self, x: &Tensor) -> Result<Value> {
        self.forward(&x.into())
    }
}

impl<L: Layer + ?Sized> Layer for Box<L> {
    fn forward(&self, x: &Value) -> Result<Value> {
        (**self).forward(x)
    }
}

/// A layer with several owners; see [`Module`] for what that means for the tree.
impl<L: Layer + ?Sized> Layer for Arc<L> {
    fn forward(&self, x: &Value) -> Result<Value> {
        (**self).forward(x)
    }
}
