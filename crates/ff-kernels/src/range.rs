//! Ranges: from data to minimum and maximum, from those to scale and offset, and back.

mod minmax;
mod parameters;

pub use minmax::{MinMax, min_max, min_max_reference};
pub use parameters::{
    Degenerate, OneSided, Parameters, RangeOptions, parameters_for_range, quantization_range,
};
