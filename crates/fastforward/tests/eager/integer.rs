//! The integer path agrees with the simulation.

use fastforward::flags;
use fastforward::nn::functional as F;
use fastforward::quantization::Granularity;
use fastforward::tensor::{Output, Value};

use super::{quantized, tensor, values};

/// Runs an operator in integers and simulated; results may differ by rounding of `terms` products only.
fn check(terms: usize, magnitude: f64, run: impl Fn() -> fastforward::tensor::Result<Value>) {
    let _lenient = flags::strict_quantization(false);
    let integer = values(&run().unwrap().dequantize().unwrap());
    let _simulated = flags::integer_execution_mode(false);
    let simulated = values(&run().unwrap().dequantize().unwrap());
    let bound = ff_kernels::simulation_bound(terms, magnitude);
    assert_eq!(integer.len(), simulated.len());
    for (a, b) in integer.iter().zip(&simulated) {
        assert!(f64::from((a - b).abs()) <= bound, "{a} and {b} differ by more than {bound}");
    }
}

#[test]
fn linear_layers() {
    for (weight_granularity, bits) in
        [(Granularity::PerTensor, 8), (Granularity::per_channel(0), 4)]
    {
        let x = tensor(&[3, 5, 70], 1);
        let x = Value::from(quantized(&x, 8, Granularity::PerTensor).unwrap());
        let w = Value::from(quantized(&tensor(&[9, 70], 2), bits, weight_granularity).unwrap());
        let bias = Value::from(tensor(&[9], 3));
        check(70, 80.0, || F::linear(&x, &w, Some(&bias), Output::none()));
        check(70, 80.0, || F::linear(&x, &w, None, Output::none()));
    }
}

#[test]
fn products_of_activations() {
    let a = Value::from(quantized(&tensor(&[2, 3, 4, 33], 1), 8, Granularity::PerTensor).unwrap());
    let b = Value::from(quantized(&tensor(&[2, 3, 5, 33], 2), 8, Granularity::PerTensor).unwrap());
    let b = b.transpose(-1, -2).unwrap();
    check(33, 40.0, || F::matmul(&a, &b, Output::none()));
    let (a, b) = (a.select_first(), b.select_first());
    check(33, 40.0, || F::bmm(&a, &b, Output::none()));
}

trait First {
    fn select_first(&self) -> Value;
}

impl First for Value {
    fn select_first(&self) -> Value {
        self.narrow(0, 0, 1).unwrap().squeeze(0).unwrap()
    }
}

#[test]
fn shapes_that_do_not_fit_are_named_on_both_paths() {
    let _lenient = flags::strict_quantization(false);
    let x = Value::from(quantized(&tensor(&[2, 6], 1), 8, Granularity::PerTensor).unwrap());
    let w = Value::from(quantized(&tensor(&[3, 5], 2), 8, Granularity::PerTensor).unwrap());
    let integer = F::linear(&x, &w, None, Output::none()).unwrap_err();
    let _simulated = flags::integer_execution_mode(false);
    let simulated = F::linear(&x, &w, None, Output::none()).unwrap_err();
    assert_eq!((integer.kind(), simulated.kind()), (simulated.kind(), integer.kind()));
}

#[test]
fn convolutions() {
    use fastforward::tensor::float::{Conv, Padding};
    let x = Value::from(quantized(&tensor(&[2, 4, 9, 7], 1), 8, Granularity::PerTensor).unwrap());
    let bias = Value::from(tensor(&[6], 3));
    for (groups, stride, padding) in [
        (1, [1, 1], Padding::Explicit([1, 1])),
        (2, [2, 1], Padding::Explicit([0, 2])),
        (2, [1, 1], Padding::Same),
        (1, [1, 1], Padding::Valid),
    ] {
        let w = tensor(&[6, 4 / groups, 3, 2], 2);
        let w = Value::from(quantized(&w, 8, Granularity::per_channel(0)).unwrap());
        let options = Conv { stride, padding, groups, ..Conv::default() };
        check(24, 40.0, || F::conv2d(&x, &w, Some(&bias), &options, Output::none()));
    }
    let x = Value::from(quantized(&tensor(&[2, 4, 9], 1), 8, Granularity::PerTensor).unwrap());
    let w = Value::from(quantized(&tensor(&[6, 4, 3], 2), 4, Granularity::PerTensor).unwrap());
    let options = Conv { dilation: [2], padding: Padding::Explicit([1]), ..Conv::default() };
    check(12, 40.0, || F::conv1d(&x, &w, None, &options, Output::none()));
}
