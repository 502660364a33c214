//! Tensors: candle's, with every operator whose gradient or speed candle gets wrong done right, and quantized ones.
//!
//! This module is the one place that knows which functions of candle may be used; everything above it goes through here.

mod error;
pub mod float;

pub use error::{Error, Result};
