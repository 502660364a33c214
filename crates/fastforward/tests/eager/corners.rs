//! Inputs at the edges: empty slices, other code types, factors without a grid, overrides that edit in place.

use std::sync::Arc;

use candle_core::{DType, Var};
use fastforward::nn::functional as F;
use fastforward::quantization::affine::Codes;
use fastforward::quantization::quantizer::{Flow, Quantizer, QuantizerOverride};
use fastforward::quantization::{Granularity, QuantizerSlot};
use fastforward::tensor::{Apply, CodeTensor, Output, QuantizedTensor, Value};
use fastforward::{ArrayView, Error, flags};

use super::{quantized, quantizer, tensor, values};

/// Adds one to what the quantizer made, in the very same memory.
struct AddOne;

impl QuantizerOverride for AddOne {
    fn call(
        &self,
        _quantizer: &dyn Quantizer,
        next: &dyn Fn(ArrayView<'_>) -> Result<Flow, Error>,
        x: ArrayView<'_>,
    ) -> Result<Flow, Error> {
        let mut array = next(x)?.into_array(x);
        array.data.iter_mut().for_each(|value| *value += 1.0);
        Ok(Flow::Changed(array))
    }
}

#[test]
fn an_override_may_edit_what_the_quantizer_made() {
    let slot = QuantizerSlot::input();
    slot.replace(quantizer(8, Granularity::PerTensor, 1));
    let x = Value::from(tensor(&[5], 1));
    let plain = values(&slot.apply(&x).unwrap().dequantize().unwrap());
    let _edit = slot.push_override(Arc::new(AddOne));
    let edited = slot.apply(&x).unwrap();
    assert!(!edited.is_quantized());
    let edited = values(&edited.dequantize().unwrap());
    assert!(plain.iter().zip(&edited).all(|(a, b)| a + 1.0 == *b), "{plain:?} {edited:?}");
}

#[test]
fn empty_slices_of_empty_slices_are_empty() {
    let q = quantized(&tensor(&[2, 3], 1), 8, Granularity::per_channel(0)).unwrap();
    let empty = q.slice(0, 2..2, 1).unwrap().slice(1, 3..3, 1).unwrap();
    assert_eq!(empty.dequantize().unwrap().dims(), [0, 0]);
    assert!(q.slice(0, 0..2, usize::MAX).unwrap().codes().unwrap().to_i32().len() == 3);
    let slot = QuantizerSlot::input();
    slot.replace(quantizer(8, Granularity::PerTensor, 1));
    let floats = tensor(&[2, 3], 1).narrow(0, 2, 0).unwrap().narrow(1, 3, 0).unwrap();
    assert_eq!(slot.apply(&floats.into()).unwrap().dims(), [0, 0]);
}

#[test]
fn codes_made_elsewhere_get_the_smallest_type() {
    let q = quantized(&tensor(&[8, 8], 1), 8, Granularity::PerTensor).unwrap();
    let wide = Codes::I32(q.codes().unwrap().to_i32());
    let codes = CodeTensor::new(wide, &[8, 8]).unwrap();
    let made = Value::from(QuantizedTensor::from_codes(codes, q.context().clone()).unwrap());
    let _lenient = flags::strict_quantization(false);
    let expected = F::linear(&q.clone().into(), &q.into(), None, Output::none()).unwrap();
    let found = F::linear(&made, &made, None, Output::none()).unwrap();
    assert_eq!(values(&found.dequantize().unwrap()), values(&expected.dequantize().unwrap()));
}

#[test]
fn joined_codes_are_the_codes_of_the_parts_in_every_type() {
    let x = tensor(&[2, 9], 1).to_dtype(DType::BF16).unwrap();
    let plain = quantized(&x, 10, Granularity::PerTensor).unwrap();
    let var = Var::from_tensor(&x).unwrap();
    let tracked = quantized(var.as_tensor(), 10, Granularity::PerTensor).unwrap();
    let joined = QuantizedTensor::cat(&[&tracked, &plain], 0).unwrap();
    assert!(joined.track_op());
    let both = [plain.codes().unwrap().to_i32(), plain.codes().unwrap().to_i32()].concat();
    assert_eq!(joined.codes().unwrap().to_i32(), both);
    // One index each, with scales of their own: tokens of a cache.
    let row = |scale: usize| {
        let all = quantized(&tensor(&[3, 4], 2), 8, Granularity::per_channel(0)).unwrap();
        all.narrow(0, scale, 1).unwrap()
    };
    let cache = QuantizedTensor::cat(&[&row(0), &row(2)], 0).unwrap();
    assert_eq!(cache.context().parameters().scale.len(), 2);
}

#[test]
fn a_factor_that_leaves_no_grid_is_the_float_operators() {
    let _lenient = flags::strict_quantization(false);
    let q = Value::from(quantized(&tensor(&[3], 1), 8, Granularity::PerTensor).unwrap());
    let zeros = F::mul(&q, 0.0, Output::none()).unwrap();
    assert!(
        !zeros.is_quantized() && values(&zeros.dequantize().unwrap()).iter().all(|x| *x == 0.0)
    );
}

#[test]
fn axes_in_the_wrong_order_are_refused_for_floats_too() {
    assert!(Value::from(tensor(&[2, 3, 4], 1)).flatten(2, 1).is_err());
}
