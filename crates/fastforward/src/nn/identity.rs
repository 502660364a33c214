//! Layers that compute nothing.

use super::Layer;
use crate::Module;
use crate::tensor::{Result, Value};

/// Gives what it gets; a place holder. It has no slots: what comes in quantized goes out quantized.
#[derive(Module, Clone, Copy, Debug, Default, PartialEq, Eq)]
#[module(class = fastforward::module::classes::identity())]
pub struct Identity;

impl Layer for Identity {
    fn forward(&self, x: &Value) -> Result<Value> {
        Ok(x.clone())
    }
}

/// The axes from `start_dim` to `end_dim` as one. It has no slots: what comes in quantized goes out quantized, on the same
/// grid.
///
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use fastforward::nn::{Flatten, Layer};
///
/// let x = Tensor::zeros((2, 3, 4, 5), DType::F32, &Device::Cpu)?;
/// assert_eq!(Flatten::default().forward_tensor(&x)?.dims(), [2, 60]);
/// assert_eq!(Flatten::new(-2, -1).forward_tensor(&x)?.dims(), [2, 3, 20]);
/// # Ok::<(), fastforward::tensor::Error>(())
/// ```
#[derive(Module, Clone, Copy, Debug, PartialEq, Eq)]
#[module(class = fastforward::module::classes::flatten())]
pub struct Flatten {
    /// The first axis, counted from the end if negative.
    pub start_dim: isize,
    /// The last axis, counted from the end if negative.
    pub end_dim: isize,
}

impl Flatten {
    /// The layer for these axes.
    pub fn new(start_dim: isize, end_dim: isize) -> Self {
        Self { start_dim, end_dim }
    }
}

impl Default for Flatten {
    /// All axes after the first, as in torch.
    fn default() -> Self {
        Self::new(1, -1)
    }
}

impl Layer for Flatten {
    fn forward(&self, x: &Value) -> Result<Value> {
        x.flatten(self.start_dim, self.end_dim)
    }
}
