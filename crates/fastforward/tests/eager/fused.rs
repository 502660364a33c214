//! What is computed and quantized in one go is what is computed first and quantized afterwards, bit by bit.

use std::sync::Arc;

use candle_core::{Device, Tensor};
use fastforward::flags;
use fastforward::nn::functional as F;
use fastforward::quantization::quantizer::RangeSettable;
use fastforward::quantization::{LinearQuantizer, LinearQuantizerConfig, QuantizerSlot};
use fastforward::tensor::float::GeluApproximation;
use fastforward::tensor::{Apply, Result, Value};

fn slot(num_bits: u32, min: f32, max: f32) -> QuantizerSlot {
    let quantizer =
        LinearQuantizer::new(LinearQuantizerConfig::new(num_bits).asymmetric()).unwrap();
    quantizer.set_quantization_range(&[min], &[max]).unwrap();
    let slot = QuantizerSlot::output();
    slot.replace(Arc::new(quantizer));
    slot
}

/// Values on a grid, from a fixed sequence.
fn quantized(shape: &[usize], seed: usize, (min, max): (f32, f32)) -> Value {
    let n: usize = shape.iter().product();
    let value = |i: usize| {
        let part = ((i + seed) * 7919 % 10_007) as f32 / 10_007.0;
        min + (max - min) * (1.2 * part - 0.1)
    };
    let x = Tensor::from_vec((0..n).map(value).collect::<Vec<_>>(), shape, &Device::Cpu).unwrap();
    slot(8, min, max).apply(&x.into()).unwrap()
}

/// Shape, codes and values.
type Bits = (Vec<usize>, Vec<i32>, Vec<u32>);

/// Codes and floats of a result, as bits. There are no codes where there is NaN.
fn bits(result: Result<Value>) -> std::result::Result<Bits, String> {
    let value = result.map_err(|error| error.to_string())?;
    let floats = value.dequantize().unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
    let codes = match value.as_quantized() {
        Some(quantized) if !floats.iter().any(|x| x.is_nan()) => {
            quantized.codes().unwrap().to_i32()
        }
        _ => Vec::new(),
    };
    let floats = floats.into_iter().map(|x| if x.is_nan() { f32::NAN } else { x }.to_bits());
    Ok((value.dims().to_vec(), codes, floats.collect()))
}

#[track_caller]
fn check(name: &str, range: (f32, f32), operator: impl Fn(&QuantizerSlot) -> Result<Value>) {
    for integer in [true, false] {
        let _mode = flags::integer_execution_mode(integer);
        for num_bits in [8, 3] {
            let slot = slot(num_bits, range.0, range.1);
            let fused = bits(operator(&slot));
            let result = operator(&QuantizerSlot::output());
            let unfused = bits(result.and_then(|y| slot.apply(&y.dequantize()?.into())));
            assert_eq!(fused, unfused, "{name}, {num_bits} bits, integers: {integer}");
        }
    }
}

#[test]
fn functions_of_one_element() {
    for shape in [&[3, 5][..], &[2, 130, 300], &[0, 4], &[]] {
        let x = quantized(shape, 1, (-3.0, 2.0));
        check("relu", (0.0, 1.5), |to| F::relu(&x, to));
        check("relu6", (0.0, 1.5), |to| F::relu6(&x, to));
        check("leaky_relu", (-1.0, 1.5), |to| F::leaky_relu(&x, 0.1, to));
        check("hardswish", (-1.0, 1.5), |to| F::hardswish(&x, to));
        check("hardsigmoid", (0.0, 1.0), |to| F::hardsigmoid(&x, to));
        check("sigmoid", (0.0, 1.0), |to| F::sigmoid(&x, to));
        check("tanh", (-1.0, 1.0), |to| F::tanh(&x, to));
        check("silu", (-1.0, 2.0), |to| F::silu(&x, to));
        for approximation in [GeluApproximation::None, GeluApproximation::Tanh] {
            check("gelu", (-1.0, 2.0), |to| F::gelu(&x, approximation, to));
        }
        check("exp", (0.0, 5.0), |to| F::exp(&x, to));
        check("sin", (-1.0, 1.0), |to| F::sin(&x, to));
        check("cos", (-1.0, 1.0), |to| F::cos(&x, to));
        check("negative", (-2.0, 2.0), |to| F::negative(&x, to));
        check("add", (-2.0, 2.0), |to| F::add(&x, 0.7, 2.0, to));
        check("sub", (-2.0, 2.0), |to| F::sub(&x, 0.7, 2.0, to));
        check("mul", (-2.0, 2.0), |to| F::mul(&x, 0.125, to));
        check("div", (-2.0, 2.0), |to| F::div(&x, 0.3, to));
        check("div", (-2.0, 2.0), |to| F::div(&x, 0.0, to)); // NaN where x is zero
    }
}

#[test]
fn functions_of_two_elements() {
    for shape in [&[3, 5][..], &[2, 130, 300], &[0, 4]] {
        let (a, b) = (quantized(shape, 1, (-3.0, 2.0)), quantized(shape, 77, (-1.0, 4.0)));
        check("add", (-2.0, 4.0), |to| F::add(&a, &b, 1.0, to));
        check("add", (-2.0, 4.0), |to| F::add(&a, &b, -0.3, to));
        check("sub", (-2.0, 4.0), |to| F::sub(&a, &b, 1.0, to));
        check("mul", (-2.0, 4.0), |to| F::mul(&a, &b, to));
        check("div", (-2.0, 4.0), |to| F::div(&a, &b, to)); // 0 / 0
        // What broadcasts, and one tensor twice.
        let row = quantized(&shape[shape.len() - 1..], 5, (-1.0, 1.0));
        check("add", (-2.0, 4.0), |to| F::add(&a, &row, 1.0, to));
        check("mul", (-2.0, 4.0), |to| F::mul(&a, &a, to));
    }
}

#[test]
fn functions_of_rows() {
    for shape in [&[3, 5][..], &[2, 130, 300], &[2, 0, 4], &[7]] {
        let x = quantized(shape, 1, (-3.0, 2.0));
        let n = shape[shape.len() - 1];
        check("softmax", (0.0, 0.5), |to| F::softmax(&x, -1, None, to));
        check("softmax", (0.0, 0.5), |to| F::softmax(&x, 0, None, to));
        let (weight, bias) = (quantized(&[n], 3, (-1.0, 2.0)), quantized(&[n], 4, (-1.0, 1.0)));
        let float: Value = bias.dequantize().unwrap().into();
        for bias in [None, Some(&bias), Some(&float)] {
            check("layer_norm", (-2.0, 2.0), |to| {
                F::layer_norm(&x, Some(&weight), bias, vec![n], 1e-5, to)
            });
            check("layer_norm", (-2.0, 2.0), |to| F::layer_norm(&x, None, bias, vec![n], 1e-5, to));
            // A float weight: strict mode refuses it either way.
            check("layer_norm", (-2.0, 2.0), |to| {
                F::layer_norm(&x, Some(&float), bias, vec![n], 1e-5, to)
            });
        }
        for eps in [None, Some(1e-3)] {
            check("rms_norm", (-2.0, 2.0), |to| F::rms_norm(&x, Some(&weight), vec![n], eps, to));
        }
    }
}

#[test]
fn products() {
    let x = quantized(&[3, 70, 40], 1, (-3.0, 2.0));
    let weight = quantized(&[50, 40], 9, (-0.5, 0.5));
    let bias = quantized(&[50], 4, (-1.0, 1.0));
    let float: Value = bias.dequantize().unwrap().into();
    for bias in [None, Some(&bias), Some(&float)] {
        check("linear", (-5.0, 5.0), |to| F::linear(&x, &weight, bias, to));
    }
    // Infinite sums, and NaN.
    let infinite: Value = Tensor::full(f32::INFINITY, 50, &Device::Cpu).unwrap().into();
    check("linear", (-5.0, 5.0), |to| F::linear(&x, &weight, Some(&infinite), to));
    let nan: Value = Tensor::full(f32::NAN, 50, &Device::Cpu).unwrap().into();
    check("linear", (-5.0, 5.0), |to| F::linear(&x, &weight, Some(&nan), to));

    // Heads beside each other, as attention cuts them: strided, and transposed.
    let heads = |seed| {
        let x = quantized(&[2, 30, 4 * 16], seed, (-1.0, 1.0));
        x.reshape(&[2, 30, 4, 16]).unwrap().transpose(1, 2).unwrap()
    };
    let (query, key) = (heads(1), heads(2));
    let turned = key.transpose(-2, -1).unwrap();
    check("matmul", (-4.0, 4.0), |to| F::matmul(&query, &turned, to));
    let scores = slot(8, -4.0, 4.0);
    let scores = F::matmul(&query, &turned, &scores).unwrap();
    check("matmul", (-9.0, 9.0), |to| F::matmul(&scores, &key, to));
}

#[test]
fn operands_are_left_as_they_are() {
    let _simulated = flags::integer_execution_mode(false);
    let _lenient = flags::strict_quantization(false);
    let values = || (0..6).map(|i| i as f32 * 0.37).collect::<Vec<_>>();
    let x = Tensor::from_vec(values(), (2, 3), &Device::Cpu).unwrap();
    let (value, to) = (Value::from(&x), slot(4, -1.0, 1.0));
    // Operators that give what they took, or a view of it.
    let same = F::positive(&value, &to).unwrap();
    let turned = F::permute(&value, vec![1, 0], &to).unwrap();
    let kept = F::dropout(&value, 0.5, false, 1, &to).unwrap();
    assert!(same.is_quantized() && turned.is_quantized() && kept.is_quantized());
    assert_eq!(x.flatten_all().unwrap().to_vec1::<f32>().unwrap(), values());
}
