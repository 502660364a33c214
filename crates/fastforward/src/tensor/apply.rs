//! Data through a slot: overrides first, then the quantizer, on tensors.

use std::any::Any;
use std::cell::Cell;

use candle_core::Tensor;

use super::fake_quantize::straight_through;
use super::view::with_view;
use super::{Error, QuantizedTensor, Result, Value, record};
use crate::quantization::quantizer::{Flow, Quantizer, QuantizerSlot};
use crate::quantization::trainable::TrainableQuantizer;
use crate::{ErrorKind, flags};

/// Quantizer slots on tensors.
pub trait Apply {
    /// Sends a value through the slot: overrides, newest first, then the quantizer.
    ///
    /// A stub returns the value as it is. What a quantizer with an affine grid returns is a [`QuantizedTensor`], and
    /// gradients pass straight through where nothing is clipped. When an override changes the data itself, or the quantizer
    /// has no affine grid, the result is a float tensor whose gradient is passed on unchanged.
    ///
    /// # Errors
    /// [`ErrorKind::UnsetQuantizer`] before a range is set; [`ErrorKind::Strict`] for a value that is quantized already, in
    /// strict mode (otherwise it is dequantized first); what the quantizer or an override reports. The message names the
    /// slot if it has a [label](QuantizerSlot::label).
    fn apply(&self, x: &Value) -> Result<Value>;
}

impl Apply for QuantizerSlot {
    fn apply(&self, x: &Value) -> Result<Value> {
        let result = apply(self, x);
        match (result, self.label()) {
            (Err(error), Some(label)) => Err(error.at(format_args!("`{label}`"))),
            (result, _) => result,
        }
    }
}

fn apply(slot: &QuantizerSlot, x: &Value) -> Result<Value> {
    let quantizer = slot.quantizer();
    let overridden = slot.override_count() > 0;
    if !overridden && quantizer.is_stub() {
        return Ok(record::through_slot(slot, x));
    }
    let float = match x {
        Value::Float(tensor) if flags::is_inference() => tensor.detach(),
        Value::Float(tensor) => tensor.clone(),
        Value::Quantized(tensor) if overridden && quantizer.is_stub() => tensor.dequantize()?,
        Value::Quantized(tensor) => {
            let strict = slot.strictness().unwrap_or_else(flags::strict);
            if strict {
                return Err(Error::new(
                    ErrorKind::Strict,
                    format!(
                        "{quantizer} is given a value that is quantized already ({tensor:?}); empty the slot, feed it \
                         floats, or turn strict mode off to dequantize first"
                    ),
                ));
            }
            tensor.dequantize()?
        }
    };
    if !overridden {
        return finish(quantize(&*quantizer, &float)?);
    }
    // The overrides see the data as the core knows it. If what comes out is what the quantizer made of what went in, it is
    // made again as a tensor with history; whatever else an override did has no formula, and its gradient passes through.
    let made = Cell::new(None);
    let flow = with_view(&float, |view| {
        let innermost = |inner: crate::ArrayView<'_>| {
            let flow = quantizer.forward(inner)?;
            if let Flow::Changed(array) = &flow
                && std::ptr::eq(inner.data(), view.data())
            {
                made.set(Some(array.data.as_ptr()));
            }
            Ok(flow)
        };
        slot.forward_with(&*quantizer, &innermost, view)
    })?;
    match flow {
        Flow::Unchanged => Ok(record::through_slot(slot, x)),
        Flow::Changed(array) if made.get() == Some(array.data.as_ptr()) => {
            finish(quantize(&*quantizer, &float)?)
        }
        Flow::Changed(array) => Ok(straight_through(&float, array)?.into()),
    }
}

fn quantize(quantizer: &dyn Quantizer, x: &Tensor) -> Result<Value> {
    let any: &dyn Any = quantizer;
    if let Some(trainable) = any.downcast_ref::<TrainableQuantizer>()
        && !flags::is_inference()
    {
        return Ok(trainable.quantize_tensor(x)?.into());
    }
    if let Some(grid) = with_view(x, |view| quantizer.affine_grid(view))? {
        return Ok(QuantizedTensor::quantize(x, &grid)?.into());
    }
    match with_view(x, |view| quantizer.forward(view))? {
        Flow::Unchanged => Ok(x.into()),
        Flow::Changed(array) => Ok(straight_through(x, array)?.into()),
    }
}

/// In export mode there are only floats.
fn finish(value: Value) -> Result<Value> {
    if flags::exporting() { Ok(value.dequantize()?.into()) } else { Ok(value) }
}
