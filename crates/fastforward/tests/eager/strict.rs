//! Strict mode: what it refuses, and in which words.

use fastforward::module::name_slots;
use fastforward::nn::{Layer, Linear, functional as F};
use fastforward::quantization::{Granularity, QuantizerSlot};
use fastforward::tensor::{Apply, Output, Value};
use fastforward::{ErrorKind, Module, flags};

use super::{quantized, quantizer, tensor};

#[derive(Module)]
struct Block {
    fc: Linear,
}

#[test]
fn an_error_names_operator_operands_and_module() {
    let model =
        Block { fc: Linear::from_tensors(tensor(&[2, 3], 1), Some(tensor(&[2], 2))).unwrap() };
    let x = tensor(&[4, 3], 3);
    let error = model.fc.forward_tensor(&x).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Strict);
    name_slots(&model);
    let error = model.fc.forward_tensor(&x).unwrap_err();
    assert_eq!(
        error.to_string(),
        "`fc`: linear in strict mode: operand `input` is a float tensor of shape [4, 3], operand `weight` is a float \
         tensor of shape [2, 3]; fill the quantizer slots, or turn strict mode off for this thread with \
         `flags::strict_quantization(false)`"
    );
    model.fc.weight_quantizer.replace(quantizer(4, Granularity::per_channel(0), 2));
    let input = Value::from(quantized(&x, 8, Granularity::PerTensor).unwrap());
    // A bias may be float, an output slot may be a stub, an input may come quantized.
    assert!(!model.fc.forward(&input).unwrap().is_quantized());
    model.fc.output_quantizer.replace(quantizer(8, Granularity::PerTensor, 1));
    assert!(model.fc.forward(&input).unwrap().is_quantized());
}

#[test]
fn an_output_quantizer_is_needed_and_a_stub_will_do() {
    let x = Value::from(quantized(&tensor(&[2], 1), 8, Granularity::PerTensor).unwrap());
    let error = F::relu(&x, Output::none()).unwrap_err().to_string();
    assert!(error.contains("it has no output quantizer (a stub will do)"), "{error}");
    assert!(F::relu(&x, &QuantizerSlot::output()).is_ok());
    assert!(F::relu(&x, Output::none().strict(false)).is_ok());
    let _lenient = flags::strict_quantization(false);
    assert!(F::relu(&x, Output::none()).is_ok());
    assert!(F::relu(&x, Output::none().strict(true)).is_err());
}

#[test]
fn numbers_times_quantized_tensors_stay_quantized() {
    let x = Value::from(quantized(&tensor(&[2], 1), 8, Granularity::PerTensor).unwrap());
    assert!(F::mul(&x, 2.0, Output::none()).unwrap().is_quantized());
    assert!(F::add(&x, 2.0, 1.0, Output::none()).is_err());
    assert!(!F::add(&x, 2.0, 1.0, &QuantizerSlot::output()).unwrap().is_quantized());
}

#[test]
fn quantizing_twice_is_refused_in_strict_mode() {
    let slot = QuantizerSlot::input();
    slot.replace(quantizer(8, Granularity::PerTensor, 1));
    let once = slot.apply(&tensor(&[3], 1).into()).unwrap();
    assert_eq!(slot.apply(&once).unwrap_err().kind(), ErrorKind::Strict);
    let _lenient = flags::strict_quantization(false);
    assert!(slot.apply(&once).unwrap().is_quantized());
}

#[test]
fn export_mode_returns_floats_on_the_grid() {
    let slot = QuantizerSlot::input();
    slot.replace(quantizer(3, Granularity::PerTensor, 1));
    let x = Value::from(tensor(&[3], 1));
    let quantized = slot.apply(&x).unwrap().dequantize().unwrap().to_vec1::<f32>().unwrap();
    let _export = flags::export_mode(true);
    let exported = slot.apply(&x).unwrap();
    assert!(!exported.is_quantized());
    assert_eq!(exported.dequantize().unwrap().to_vec1::<f32>().unwrap(), quantized);
    assert!(F::relu(&exported, Output::none()).is_ok());
}
