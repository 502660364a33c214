//! Layers with quantizer slots.

mod layer;
mod linear;
mod param;

pub use crate::tensor::operator::functional;
pub use layer::Layer;
pub use linear::Linear;
pub use param::Param;
