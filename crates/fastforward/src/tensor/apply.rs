//! Data through a slot: overrides first, then the quantizer, on tensors.

use std::any::Any;
use std::cell::Cell;

use candle_core::Tensor;

use super::fake_quantize::straight_through;
use super::view::{tensor_of, with_view};
use super::{Error, QuantizedTensor, Result, Value, record};
use crate::quantization::quantizer::{Flow, Onlooker, Onward, Quantizer, QuantizerSlot};
use crate::quantization::trainable::TrainableQuantizer;
use crate::{Array, ErrorKind, flags};

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
        placed(self, apply(self, x, Memory::Shared))
    }
}

/// [`Apply::apply`] for a result that lies in memory of its own, which may be written over.
pub(super) fn apply_own(slot: &QuantizerSlot, x: Tensor) -> Result<Value> {
    placed(slot, apply(slot, &x.into(), Memory::Own))
}

/// What a quantizer that stood in a slot makes of data that others see, whatever stands there now and watches it.
pub(crate) fn quantize_alone(
    slot: &QuantizerSlot,
    quantizer: &dyn Quantizer,
    x: &Tensor,
) -> Result<Value> {
    placed(slot, quantize(quantizer, x, Memory::Shared).and_then(finish))
}

/// Who sees the memory of the data.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Memory {
    Shared,
    /// Nobody once it is quantized.
    Own,
}

/// The error with the slot's name before it.
pub(super) fn placed<T>(slot: &QuantizerSlot, result: Result<T>) -> Result<T> {
    match (result, slot.label()) {
        (Err(error), Some(label)) => Err(error.at(format_args!("`{label}`"))),
        (result, _) => result,
    }
}

fn apply(slot: &QuantizerSlot, x: &Value, memory: Memory) -> Result<Value> {
    if record::is_recording() {
        return Ok(record::through_slot(slot, x));
    }
    let quantizer = slot.quantizer();
    let overridden = slot.override_count() > 0;
    if !overridden && quantizer.is_stub() {
        return Ok(x.clone());
    }
    let float = match x {
        Value::Float(tensor) if flags::is_inference() => tensor.detach(),
        Value::Float(tensor) => tensor.clone(),
        Value::Quantized(tensor) if overridden && quantizer.is_stub() => tensor.dequantize()?,
        Value::Quantized(tensor) => {
            if !flags::exporting() && slot.strictness().unwrap_or_else(flags::strict) {
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
        return finish(quantize(&*quantizer, &float, memory)?);
    }
    let overrides = slot.overrides();
    if let Some(onlookers) = overrides.iter().rev().map(|one| one.as_onlooker()).collect() {
        return looked_at(onlookers, &*quantizer, x, (&float, memory));
    }
    // Other overrides see a copy of the data as the core knows it: they may set the very tensor that it came from. If what
    // comes out is, bit by bit, what the quantizer makes of what went in, it is made again as a tensor with history;
    // whatever else an override did has no formula, and its gradient passes through.
    let data = with_view(&float, |view| Ok(view.to_array()))?;
    let reached = Cell::new(false);
    let innermost = |inner: crate::ArrayView<'_>| {
        reached.set(true);
        quantizer.forward(inner)
    };
    match slot.forward_with(&*quantizer, &innermost, data.view())? {
        Flow::Unchanged => Ok(x.clone()),
        Flow::Changed(array) => {
            if reached.get()
                && let Ok(own) = quantize(&*quantizer, &float, Memory::Shared)
                && same_bits(&own.dequantize()?, &array)?
            {
                return finish(own);
            }
            Ok(straight_through(&float, array)?.into())
        }
    }
}

/// Data that is seen where it lies by overrides that do not change it, newest first, and then quantized unless one of them
/// lets it out.
fn looked_at(
    onlookers: Vec<&dyn Onlooker>,
    quantizer: &dyn Quantizer,
    x: &Value,
    (float, memory): (&Tensor, Memory),
) -> Result<Value> {
    for onlooker in onlookers {
        match with_view(float, |view| onlooker.look(quantizer, view))? {
            Onward::Next => {}
            Onward::Out => return Ok(x.clone()),
        }
    }
    if quantizer.is_stub() { Ok(x.clone()) } else { finish(quantize(quantizer, float, memory)?) }
}

/// Whether a tensor holds what an array becomes in the tensor's type, bit by bit.
fn same_bits(x: &Tensor, array: &Array) -> Result<bool> {
    let expected = tensor_of(array.clone(), x.dtype())?;
    let bits = |x: &Tensor| with_view(x, |view| Ok(view.to_array().data));
    let (a, b) = (bits(&x.detach())?, bits(&expected)?);
    Ok(a.len() == b.len() && a.iter().zip(&b).all(|(a, b)| a.to_bits() == b.to_bits()))
}

pub(super) fn quantize(quantizer: &dyn Quantizer, x: &Tensor, memory: Memory) -> Result<Value> {
    let any: &dyn Any = quantizer;
    if let Some(trainable) = any.downcast_ref::<TrainableQuantizer>()
        && !flags::is_inference()
    {
        return Ok(trainable.quantize_tensor(x)?.into());
    }
    if let Some(grid) = with_view(x, |view| quantizer.affine_grid(view))? {
        let quantized = match memory {
            Memory::Shared => QuantizedTensor::quantize(x, &grid)?,
            Memory::Own => QuantizedTensor::quantize_own(x, &grid)?,
        };
        return Ok(quantized.into());
    }
    match with_view(x, |view| quantizer.forward(view))? {
        Flow::Unchanged => Ok(x.into()),
        Flow::Changed(array) => Ok(straight_through(x, array)?.into()),
    }
}

/// In export mode there are only floats.
pub(super) fn finish(value: Value) -> Result<Value> {
    if flags::exporting() { Ok(value.dequantize()?.into()) } else { Ok(value) }
}
