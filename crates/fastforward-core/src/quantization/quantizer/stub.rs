//! The placeholder in an empty slot.

use std::fmt;
use std::sync::{Arc, LazyLock};

use mpath::Class;

use super::{Flow, Quantizer};
use crate::module::classes;
use crate::quantization::affine::QuantizedArray;
use crate::{ArrayView, Error, ErrorKind};

/// A quantizer that leaves data as it is (spec §3.5).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct QuantizerStub;

/// The stub that stands in all empty slots.
pub(crate) fn stub() -> &'static Arc<dyn Quantizer> {
    static STUB: LazyLock<Arc<dyn Quantizer>> = LazyLock::new(|| Arc::new(QuantizerStub));
    &STUB
}

impl Quantizer for QuantizerStub {
    fn class(&self) -> Class {
        classes::quantizer_stub()
    }

    fn is_stub(&self) -> bool {
        true
    }

    fn quantize(&self, _x: ArrayView<'_>) -> Result<QuantizedArray, Error> {
        Err(Error::new(
            ErrorKind::UnsetQuantizer,
            "a QuantizerStub has no grid; put a quantizer into the slot first",
        ))
    }

    fn forward(&self, _x: ArrayView<'_>) -> Result<Flow, Error> {
        Ok(Flow::Unchanged)
    }
}

impl fmt::Display for QuantizerStub {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("QuantizerStub()")
    }
}
