//! Tensors: candle's, with every operator whose gradient or speed candle gets wrong done right, and quantized ones.
//!
//! This module is the one place that knows which functions of candle may be used; everything above it goes through here.

mod apply;
mod codes;
mod context;
mod error;
mod fake_quantize;
pub mod float;
pub mod operator;
pub(crate) mod probe;
mod quantized;
pub(crate) mod record;
mod value;
mod view;
mod watch;

pub use apply::Apply;
pub(crate) use apply::quantize_alone;
pub use codes::CodeTensor;
pub use context::QuantizationContext;
pub use error::{Error, Result};
pub(crate) use fake_quantize::uniform_of;
pub use operator::{Output, ValueOrNumber, functional};
pub use quantized::QuantizedTensor;
pub use value::Value;
pub use view::tensor_from;
pub(crate) use view::with_view;
pub(crate) use watch::RangeWatch;
