//! Quantized weights are kept exactly as long as nothing about them changes.

use candle_core::{DType, Device, Tensor, Var};
use fastforward::flags;
use fastforward::nn::Param;
use fastforward::quantization::quantizer::RangeSettable;
use fastforward::quantization::{Granularity, QuantizerSlot};
use fastforward::tensor::Value;

use super::{quantizer, tensor, values};

/// Whether two calls gave the very same tensor.
fn is_same(a: &Value, b: &Value) -> bool {
    let codes = |value: &Value| value.as_quantized().unwrap().codes().unwrap() as *const _;
    codes(a) == codes(b)
}

#[test]
fn a_weight_is_quantized_once_for_inference() {
    let _constants = flags::inference();
    let weight = Param::new(tensor(&[3, 4], 1));
    let slot = QuantizerSlot::weight(&[3, 4]);
    let range = quantizer(8, Granularity::PerTensor, 1);
    slot.replace(range.clone());
    let quantized = || weight.quantized(&slot).unwrap();
    let first = quantized();
    assert!(is_same(&first, &quantized()));
    range.set_quantization_range(&[-2.0], &[2.0]).unwrap();
    let wider = quantized();
    assert!(!is_same(&first, &wider));
    slot.replace(quantizer(4, Granularity::PerTensor, 1));
    assert_eq!(quantized().as_quantized().unwrap().num_bits(), 4);
    weight.set(&Tensor::zeros((3, 4), DType::F32, &Device::Cpu).unwrap()).unwrap();
    assert!(values(&quantized().dequantize().unwrap()).iter().all(|x| *x == 0.0));
}

#[test]
fn a_variable_is_quantized_anew_except_under_one_inference_guard() {
    let var = Var::from_tensor(&tensor(&[3, 4], 1)).unwrap();
    let weight = Param::new(var.as_tensor().clone());
    let slot = QuantizerSlot::weight(&[3, 4]);
    slot.replace(quantizer(8, Granularity::PerTensor, 1));
    let quantized = || weight.quantized(&slot).unwrap();
    assert!(quantized().track_op(), "training sees gradients");
    let first = {
        let _constants = flags::inference();
        let first = quantized();
        assert!(!first.track_op() && is_same(&first, &quantized()));
        first
    };
    // An optimizer steps behind the parameter's back.
    var.set(&var.as_tensor().affine(-1.0, 0.0).unwrap()).unwrap();
    let _constants = flags::inference();
    let second = quantized();
    assert_ne!(
        first.as_quantized().unwrap().codes().unwrap().to_i32(),
        second.as_quantized().unwrap().codes().unwrap().to_i32()
    );
    // So is a step while gradients are recorded in between.
    {
        let _gradients = flags::recording();
        var.set(&var.as_tensor().affine(0.5, 0.0).unwrap()).unwrap();
    }
    assert!(!is_same(&second, &quantized()));
    // A change through the parameter is seen under the same guard.
    weight.set(&tensor(&[3, 4], 1)).unwrap();
    assert_eq!(
        quantized().as_quantized().unwrap().codes().unwrap().to_i32(),
        first.as_quantized().unwrap().codes().unwrap().to_i32()
    );
}

#[test]
fn what_is_kept_is_of_the_quantizer_it_is_kept_for() {
    let _constants = flags::inference();
    let weight = Param::new(tensor(&[64, 64], 1));
    let slot = QuantizerSlot::weight(&[64, 64]);
    let quantizers = [2, 8].map(|num_bits| quantizer(num_bits, Granularity::PerTensor, 1));
    slot.replace(quantizers[0].clone());
    for round in 0..200 {
        let now = quantizers[round % 2].clone();
        let num_bits = [2, 8][round % 2];
        std::thread::scope(|scope| {
            scope.spawn(|| slot.replace(now));
            weight.quantized(&slot).unwrap();
        });
        let value = weight.quantized(&slot).unwrap();
        assert_eq!(value.as_quantized().unwrap().num_bits(), num_bits, "round {round}");
    }
}
