//! What the layers compute, against candle's layers and against formulas.

use candle_core::Tensor;
use candle_nn::Module as _;
use fastforward::ErrorKind;
use fastforward::nn::*;
use fastforward::tensor::Result;
use fastforward::tensor::float::GeluApproximation;

use crate::common::{CPU, Weights, check_close, check_numbers, float, noise};

#[test]
fn layers_made_from_candles_compute_the_same() -> Result<()> {
    let (x, weight, bias) = (noise(&[4, 6]), noise(&[6]), (noise(&[6]) * 0.3)?);
    let linear = candle_nn::Linear::new(noise(&[3, 6]), Some(noise(&[3])));
    check_close(&float(&Linear::from_candle(&linear)?, &x)?, &linear.forward(&x)?, 1e-5);

    let norm = candle_nn::LayerNorm::new(weight.clone(), bias.clone(), 1e-3);
    check_close(&float(&LayerNorm::from_candle(&norm)?, &x)?, &norm.forward(&x)?, 1e-5);
    let norm = candle_nn::LayerNorm::new_no_bias(weight.clone(), 1e-3);
    check_close(&float(&LayerNorm::from_candle(&norm)?, &x)?, &norm.forward(&x)?, 1e-5);
    let norm = candle_nn::RmsNorm::new(weight.clone(), 1e-3);
    check_close(&float(&RmsNorm::from_candle(&norm)?, &x)?, &norm.forward(&x)?, 1e-5);

    let x = noise(&[2, 6, 5]);
    let norm = candle_nn::GroupNorm::new(weight.clone(), bias.clone(), 6, 3, 1e-3)?;
    let ours = GroupNorm::from_tensors(3, 6, Some(weight), Some(bias), 1e-3)?;
    check_close(&float(&ours, &x)?, &norm.forward(&x)?, 1e-5);
    Ok(())
}

#[test]
fn a_candle_norm_that_keeps_the_mean_is_no_layer_norm() {
    let norm = candle_nn::LayerNorm::rms_norm(noise(&[6]), 1e-3);
    let error = LayerNorm::from_candle(&norm).unwrap_err();
    assert!(error.to_string().contains("`RmsNorm` is the layer that does not"), "{error}");
}

/// Values of torch 2.15, for -2, -0.5, 0, 1 and 7.
#[test]
fn activations_compute_what_torch_computes() -> Result<()> {
    let x = Tensor::new(&[-2f32, -0.5, 0.0, 1.0, 7.0], CPU)?;
    let check = |layer: &dyn Layer, expected: [f64; 5]| -> Result<()> {
        check_numbers(&float(layer, &x)?, &expected, 1e-6);
        Ok(())
    };
    check(&ReLU::new(), [0.0, 0.0, 0.0, 1.0, 7.0])?;
    check(&ReLU6::new(), [0.0, 0.0, 0.0, 1.0, 6.0])?;
    check(&LeakyReLU::default(), [-0.02, -0.005, 0.0, 1.0, 7.0])?;
    check(&LeakyReLU::new(0.5), [-1.0, -0.25, 0.0, 1.0, 7.0])?;
    check(&GELU::default(), [-0.045500264, -0.154268769, 0.0, 0.841344746, 7.0])?;
    check(&GELU::new(GeluApproximation::Tanh), [-0.045402306, -0.15428599, 0.0, 0.841191991, 7.0])?;
    check(&SiLU::new(), [-0.238405844, -0.188770334, 0.0, 0.731058579, 6.993622642])?;
    check(&Sigmoid::new(), [0.119202922, 0.377540669, 0.5, 0.731058579, 0.999088949])?;
    check(&Tanh::new(), [-0.96402758, -0.462117157, 0.0, 0.761594156, 0.999998337])?;
    check(&Hardswish::new(), [-0.333333333, -0.208333333, 0.0, 0.666666667, 7.0])?;
    check(&Hardsigmoid::new(), [0.166666667, 0.416666667, 0.5, 0.666666667, 1.0])?;
    Ok(())
}

#[test]
fn softmax_is_along_the_axis_that_is_asked_for() -> Result<()> {
    let x = Tensor::new(&[[0f32, 1.0], [0.0, 1.0]], CPU)?;
    check_numbers(&float(&Softmax::new(0), &x)?, &[0.5; 4], 1e-7);
    let (low, high) = (0.26894142, 0.73105858);
    check_numbers(&float(&Softmax::new(-1), &x)?, &[low, high, low, high], 1e-7);
    Ok(())
}

#[test]
fn norms_without_parameters_only_normalize() -> Result<()> {
    let x = Tensor::new(&[[1f32, 3.0], [-4.0, 4.0]], CPU)?;
    let norm = LayerNorm::from_tensors(&[2], None, None, 0.0)?;
    check_numbers(&float(&norm, &x)?, &[-1.0, 1.0, -1.0, 1.0], 1e-6);
    let norm = RmsNorm::from_tensors(&[2], None, Some(0.0))?;
    let root = 5f64.sqrt();
    check_numbers(&float(&norm, &x)?, &[1.0 / root, 3.0 / root, -1.0, 1.0], 1e-6);
    Ok(())
}

#[test]
fn new_parameters_are_those_of_torch() -> Result<()> {
    let weights = Weights::new();
    let norm = LayerNorm::new(&[2, 3], 1e-5, true, weights.vb())?;
    let [weight, bias] = [&norm.weight, &norm.bias].map(|p| p.as_ref().unwrap().tensor());
    check_numbers(&weight, &[1.0; 6], 0.0);
    check_numbers(&bias, &[0.0; 6], 0.0);
    Ok(())
}

/// Every wrong shape is reported, not the first.
#[test]
fn parameters_that_do_not_fit_are_refused() {
    #[track_caller]
    fn check<L>(made: Result<L>, message: &str) {
        let error = made.err().unwrap();
        assert_eq!(error.kind(), ErrorKind::Operator);
        assert_eq!(error.to_string(), message);
    }
    let some = |shape: &[usize]| Some(noise(shape));
    check(
        LayerNorm::from_tensors(&[4], some(&[3]), some(&[4, 1]), -1.0),
        "LayerNorm: eps is -1, expected a number that is not negative; weight has shape [3], expected [4]; bias has shape \
         [4, 1], expected [4]",
    );
    check(
        RmsNorm::from_tensors(&[], None, None),
        "RmsNorm: the normalized shape has no axes, expected at least one",
    );
    check(
        GroupNorm::from_tensors(4, 6, some(&[4]), None, 1e-5),
        "GroupNorm: 4 groups do not divide 6 channels; weight has shape [4], expected [6]",
    );
}
