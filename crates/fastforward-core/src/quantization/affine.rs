//! Affine quantization: integer codes, a scale and an offset per tile.

mod arithmetic;
mod linear;
mod parameters;
mod part;
mod quantized;
mod settings;

pub use arithmetic::quantize_codes;
pub(crate) use arithmetic::{dynamic_parameters, fake_quantize, integer_grid, quantize, tiling};
pub(crate) use linear::write_settings;
pub use linear::{LinearQuantizer, LinearQuantizerConfig};
pub use parameters::{AffineGrid, AffineParameters};
pub(crate) use part::parts;
pub use part::{PART_ELEMENTS, Part};
pub use quantized::{Codes, QuantizedArray};
pub use settings::{OneSided, RangeSettings, SavedQuantizer};
