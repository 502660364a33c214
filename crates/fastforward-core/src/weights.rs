//! Weights too large to be held in several forms at once: read, quantized and written tensor by tensor.

mod floats;

pub use floats::FloatType;
