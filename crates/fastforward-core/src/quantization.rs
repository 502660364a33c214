//! Quantizers, the slots they stand in, and the rules that put them there.

pub mod affine;
pub mod dynamic;
pub mod granularity;
pub mod quant_init;
pub mod quantizer;
pub mod state;

pub use affine::{LinearQuantizer, LinearQuantizerConfig};
pub use dynamic::{DynamicLinearQuantizer, DynamicLinearQuantizerConfig};
pub use granularity::Granularity;
pub use quantizer::{Quantizer, QuantizerMetadata, QuantizerSlot, QuantizerStub, Tag};
