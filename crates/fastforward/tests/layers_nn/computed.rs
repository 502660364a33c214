//! What the layers compute, against candle's layers and against formulas.

use std::collections::HashMap;

use candle_core::Tensor;
use candle_nn::{Module as _, VarBuilder};
use fastforward::ErrorKind;
use fastforward::module::named_parameters;
use fastforward::nn::*;
use fastforward::tensor::Result;
use fastforward::tensor::float::{self, AvgPool, Conv, ConvTranspose, GeluApproximation};

use crate::common::{CPU, Weights, check_close, check_numbers, float as run, noise, numbers};

#[test]
fn layers_made_from_candles_compute_the_same() -> Result<()> {
    let (x, weight, bias) = (noise(&[4, 6]), noise(&[6]), (noise(&[6]) * 0.3)?);
    let linear = candle_nn::Linear::new(noise(&[3, 6]), Some(noise(&[3])));
    check_close(&run(&Linear::from_candle(&linear)?, &x)?, &linear.forward(&x)?, 1e-5);

    let norm = candle_nn::LayerNorm::new(weight.clone(), bias.clone(), 1e-3);
    check_close(&run(&LayerNorm::from_candle(&norm)?, &x)?, &norm.forward(&x)?, 1e-5);
    let norm = candle_nn::LayerNorm::new_no_bias(weight.clone(), 1e-3);
    check_close(&run(&LayerNorm::from_candle(&norm)?, &x)?, &norm.forward(&x)?, 1e-5);
    let norm = candle_nn::RmsNorm::new(weight.clone(), 1e-3);
    check_close(&run(&RmsNorm::from_candle(&norm)?, &x)?, &norm.forward(&x)?, 1e-5);

    let x = noise(&[2, 6, 5]);
    let norm = candle_nn::GroupNorm::new(weight.clone(), bias.clone(), 6, 3, 1e-3)?;
    let ours = GroupNorm::from_tensors(3, 6, Some(weight), Some(bias), 1e-3)?;
    check_close(&run(&ours, &x)?, &norm.forward(&x)?, 1e-5);
    Ok(())
}

#[test]
fn convolutions_made_from_candles_compute_the_same() -> Result<()> {
    let (x, kernel) = (noise(&[2, 4, 9]), noise(&[6, 2, 3]));
    let config = candle_nn::Conv1dConfig {
        padding: 2,
        stride: 2,
        dilation: 2,
        groups: 2,
        ..Default::default()
    };
    let conv = candle_nn::Conv1d::new(kernel, Some(noise(&[6])), config);
    check_close(&run(&Conv1d::from_candle(&conv)?, &x)?, &conv.forward(&x)?, 1e-4);

    let (x, kernel) = (noise(&[2, 4, 7, 9]), noise(&[6, 2, 3, 2]));
    let config = candle_nn::Conv2dConfig {
        padding: 1,
        stride: 2,
        dilation: 1,
        groups: 2,
        ..Default::default()
    };
    let conv = candle_nn::Conv2d::new(kernel, Some(noise(&[6])), config);
    check_close(&run(&Conv2d::from_candle(&conv)?, &x)?, &conv.forward(&x)?, 1e-4);

    let x = noise(&[2, 4, 5]);
    let config = candle_nn::ConvTranspose1dConfig {
        padding: 1,
        output_padding: 1,
        stride: 2,
        dilation: 1,
        groups: 2,
    };
    let conv = candle_nn::ConvTranspose1d::new(noise(&[4, 3, 3]), Some(noise(&[6])), config);
    check_close(&run(&ConvTranspose1d::from_candle(&conv)?, &x)?, &conv.forward(&x)?, 1e-4);

    let x = noise(&[2, 4, 5, 3]);
    let config =
        candle_nn::ConvTranspose2dConfig { padding: 1, output_padding: 1, stride: 2, dilation: 1 };
    let conv = candle_nn::ConvTranspose2d::new(noise(&[4, 3, 3, 3]), Some(noise(&[3])), config);
    check_close(&run(&ConvTranspose2d::from_candle(&conv)?, &x)?, &conv.forward(&x)?, 1e-4);
    Ok(())
}

/// With a kernel of one position each of them is a linear layer over the channels.
#[test]
fn convolutions_over_three_axes_by_a_single_position() -> Result<()> {
    let (x, weight, bias) = (noise(&[2, 3, 2, 2, 4]), noise(&[5, 3]), noise(&[5]));
    let flat = x.flatten_from(2)?;
    let expected = (weight.broadcast_matmul(&flat)?.broadcast_add(&bias.reshape((5, 1))?))?;
    let expected = expected.reshape((2, 5, 2, 2, 4))?;
    let kernel = weight.reshape((5, 3, 1, 1, 1))?;
    let layer = Conv3d::from_tensors(kernel, Some(bias.clone()), Conv::default())?;
    check_close(&run(&layer, &x)?, &expected, 1e-5);
    let kernel = weight.t()?.reshape((3, 5, 1, 1, 1))?;
    let layer = ConvTranspose3d::from_tensors(kernel, Some(bias), ConvTranspose::default())?;
    check_close(&run(&layer, &x)?, &expected, 1e-5);
    Ok(())
}

#[test]
fn pools_of_windows() -> Result<()> {
    let x = noise(&[2, 3, 6, 8]);
    let (mean, max) = (AvgPool2d::new(AvgPool::new([2, 4])), float::MaxPool2d::new([2, 4]));
    check_close(&run(&mean, &x)?, &x.avg_pool2d((2, 4))?, 1e-6);
    check_close(&run(&MaxPool2d::new(max), &x)?, &x.max_pool2d((2, 4))?, 0.0);
    let all = AdaptiveAvgPool2d::new([Some(1), Some(1)]);
    check_close(&run(&all, &x)?, &x.mean_keepdim((2, 3))?, 1e-6);
    let rows = AdaptiveAvgPool2d::new([None, Some(1)]);
    check_close(&run(&rows, &x)?, &x.mean_keepdim(3)?, 1e-6);

    let line = noise(&[2, 3, 6]);
    let by_two = line.reshape((2, 3, 3, 2))?.mean(3)?;
    check_close(&run(&AvgPool1d::new(AvgPool::new([2])), &line)?, &by_two, 1e-6);
    let block = noise(&[2, 3, 4, 2, 2]);
    let halves = block.reshape((2, 3, 2, 8))?.mean(3)?.reshape((2, 3, 2, 1, 1))?;
    check_close(&run(&AvgPool3d::new(AvgPool::new([2; 3])), &block)?, &halves, 1e-6);
    Ok(())
}

/// Saved by torch under the names of a module's parameters, loaded by the same names.
#[test]
fn weights_of_torch_load_by_their_names() -> Result<()> {
    let tensors: HashMap<String, Tensor> = [
        ("conv.weight", &[4, 2, 3, 3][..]),
        ("conv.bias", &[4]),
        ("norm.weight", &[4]),
        ("norm.bias", &[4]),
        ("norm.running_mean", &[4]),
        ("norm.running_var", &[4]),
        ("attention.in_proj_weight", &[12, 4]),
        ("attention.in_proj_bias", &[12]),
        ("attention.out_proj.weight", &[4, 4]),
        ("attention.out_proj.bias", &[4]),
        ("table.weight", &[7, 4]),
        ("head.weight", &[2, 4]),
        ("head.bias", &[2]),
    ]
    .into_iter()
    .map(|(name, shape)| (name.to_owned(), noise(shape)))
    .collect();
    let bytes = safetensors::serialize(&tensors, None).unwrap();
    let vb = VarBuilder::from_buffered_safetensors(bytes, candle_core::DType::F32, CPU)?;

    #[derive(fastforward::Module)]
    struct Model {
        conv: Conv2d,
        norm: BatchNorm,
        attention: MultiheadAttention,
        table: Embedding,
        head: Linear,
    }
    let model = Model {
        conv: Conv2d::new(2, 4, [3, 3], Conv::default(), true, vb.pp("conv"))?,
        norm: BatchNorm::new(4, BatchNormOptions::default(), vb.pp("norm"))?,
        attention: MultiheadAttention::new(4, 2, Default::default(), vb.pp("attention"))?,
        table: Embedding::new(7, 4, Default::default(), vb.pp("table"))?,
        head: Linear::new(4, 2, true, vb.pp("head"))?,
    };
    let found = named_parameters(&model);
    assert_eq!(found.len(), tensors.len());
    for (name, parameter) in found {
        let parameter = parameter.downcast_ref::<Param>().unwrap();
        check_close(&parameter.tensor(), &tensors[&name], 0.0);
    }
    let missing = Linear::new(4, 3, true, vb.pp("head")).unwrap_err();
    assert_eq!(missing.kind(), ErrorKind::Tensor);
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
        check_numbers(&run(layer, &x)?, &expected, 1e-6);
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
fn activations_made_from_candles_compute_the_same() -> Result<()> {
    use candle_nn::Activation;
    let x = (noise(&[50]) * 4.0)?;
    for activation in [
        Activation::Gelu,
        Activation::NewGelu,
        Activation::GeluPytorchTanh,
        Activation::Relu,
        Activation::Relu6,
        Activation::Silu,
        Activation::Swish,
        Activation::Sigmoid,
        Activation::HardSigmoid,
        Activation::HardSwish,
        Activation::LeakyRelu(0.2),
    ] {
        check_close(
            &run(&activation_from_candle(activation)?, &x)?,
            &activation.forward(&x)?,
            1e-5,
        );
    }
    let error = activation_from_candle(Activation::Elu(1.0)).err().unwrap();
    assert_eq!(
        error.to_string(),
        "activation_from_candle: there is no layer for candle's `Elu(1.0)`"
    );
    Ok(())
}

#[test]
fn softmax_is_along_the_axis_that_is_asked_for() -> Result<()> {
    let x = Tensor::new(&[[0f32, 1.0], [0.0, 1.0]], CPU)?;
    check_numbers(&run(&Softmax::new(0), &x)?, &[0.5; 4], 1e-7);
    let (low, high) = (0.26894142, 0.73105858);
    check_numbers(&run(&Softmax::new(-1), &x)?, &[low, high, low, high], 1e-7);
    Ok(())
}

#[test]
fn norms_without_parameters_only_normalize() -> Result<()> {
    let x = Tensor::new(&[[1f32, 3.0], [-4.0, 4.0]], CPU)?;
    let norm = LayerNorm::from_tensors(&[2], None, None, 0.0)?;
    check_numbers(&run(&norm, &x)?, &[-1.0, 1.0, -1.0, 1.0], 1e-6);
    let norm = RmsNorm::from_tensors(&[2], None, Some(0.0))?;
    let root = 5f64.sqrt();
    check_numbers(&run(&norm, &x)?, &[1.0 / root, 3.0 / root, -1.0, 1.0], 1e-6);
    Ok(())
}

#[test]
fn new_parameters_are_those_of_torch() -> Result<()> {
    let weights = Weights::new();
    let norm = LayerNorm::new(&[2, 3], 1e-5, true, weights.vb())?;
    let [weight, bias] = [&norm.weight, &norm.bias].map(|p| p.as_ref().unwrap().tensor());
    check_numbers(&weight, &[1.0; 6], 0.0);
    check_numbers(&bias, &[0.0; 6], 0.0);

    // Uniform within one over the root of the inputs of an output.
    #[track_caller]
    fn check_bound(parameter: &Param, bound: f64) {
        let largest =
            numbers(&parameter.tensor()).into_iter().fold(0.0, |a: f64, x| a.max(x.abs()));
        assert!(largest <= bound && largest > 0.9 * bound, "{largest}, bound {bound}");
    }
    let vb = |name: &str| weights.vb().pp(name);
    check_bound(&Linear::new(100, 50, true, vb("a"))?.weight, 0.1);
    let halves = Conv { groups: 2, ..Conv::default() };
    check_bound(&Conv2d::new(8, 64, [5, 5], halves, false, vb("b"))?.weight, 0.1);
    let halves = ConvTranspose { groups: 2, ..ConvTranspose::default() };
    let layer = ConvTranspose2d::new(64, 8, [5, 5], halves, true, vb("c"))?;
    check_bound(&layer.weight, 0.1);
    let layer = MultiheadAttention::new(24, 2, Default::default(), vb("d"))?;
    check_bound(layer.in_proj_weight.as_ref().unwrap(), 0.25);
    check_bound(&layer.out_proj.weight, 1.0 / 24f64.sqrt());
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
        Conv2d::from_tensors(noise(&[4, 2, 3]), None, Conv::default()),
        "Conv2d: weight has shape [4, 2, 3], expected 4 axes: [out, in / groups, kernel size..]",
    );
    check(
        Conv1d::from_tensors(noise(&[4, 2, 3]), some(&[3]), Conv { groups: 3, ..Conv::default() }),
        "Conv1d: 3 groups do not divide the 4 output channels of a weight [4, 2, 3]; bias has shape [3], expected [4]",
    );
    let three = ConvTranspose { groups: 3, ..ConvTranspose::default() };
    check(
        ConvTranspose1d::from_tensors(noise(&[4, 2, 3]), some(&[4]), three.clone()),
        "ConvTranspose1d: 3 groups do not divide the 4 input channels of a weight [4, 2, 3]; bias has shape [4], expected [6]",
    );
    check(
        ConvTranspose1d::new(4, 6, [3], three, true, Weights::new().vb()),
        "ConvTranspose1d: 3 groups do not divide 4 input channels",
    );
    check(
        GroupNorm::from_tensors(4, 6, some(&[4]), None, 1e-5),
        "GroupNorm: 4 groups do not divide 6 channels; weight has shape [4], expected [6]",
    );
}
