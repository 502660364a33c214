//! Batch normalization: its statistics in evaluation and training, and folding it away.

use candle_core::{DType, Tensor};
use candle_nn::ModuleT;
use fastforward::module::name_slots;
use fastforward::nn::*;
use fastforward::quantization::DynamicLinearQuantizerConfig;
use fastforward::quantization::quant_init::{InitializeOptions, QuantizationConfig, QuantizerSpec};
use fastforward::tensor::Result;
use fastforward::tensor::float::{Conv, ConvTranspose, Padding};
use fastforward::{ErrorKind, flags};

use crate::common::{CPU, Weights, check_close, check_numbers, float, noise, numbers};

/// A norm of `n` channels with statistics and parameters that are all different.
fn norm(n: usize) -> Result<BatchNorm> {
    let (mean, variance) = (noise(&[n]), (noise(&[n]).sqr()? + 0.5)?);
    let (weight, bias) = ((noise(&[n]) * 0.7)?, (noise(&[n]) + 0.25)?);
    let options = BatchNormOptions { eps: 1e-3, ..BatchNormOptions::default() };
    BatchNorm::from_tensors(Some(weight), Some(bias), mean, variance, options)
}

#[test]
fn evaluation_and_training_are_those_of_candle() -> Result<()> {
    let ours = norm(3)?;
    let tensor = |parameter: &Param| parameter.tensor();
    let theirs = candle_nn::BatchNorm::new_with_momentum(
        3,
        tensor(&ours.running_mean),
        tensor(&ours.running_var),
        tensor(ours.weight.as_ref().unwrap()),
        tensor(ours.bias.as_ref().unwrap()),
        1e-3,
        0.1,
    )?;
    let copied = BatchNorm::from_candle(&theirs)?;
    for shape in [&[4, 3][..], &[4, 3, 5], &[2, 3, 2, 4], &[2, 3, 2, 2, 2]] {
        let x = noise(shape);
        check_close(&float(&ours, &x)?, &theirs.forward_t(&x, false)?, 1e-5);
        check_close(&float(&copied, &x)?, &theirs.forward_t(&x, false)?, 1e-5);
    }
    let x = noise(&[4, 3, 5]);
    let _training = flags::training_mode(true);
    check_close(&float(&ours, &x)?, &theirs.forward_t(&x, true)?, 1e-5);
    check_close(&ours.running_mean.tensor(), theirs.running_mean(), 1e-6);
    check_close(&ours.running_var.tensor(), theirs.running_var(), 1e-5);
    Ok(())
}

#[test]
fn a_norm_of_candle_without_parameters_has_none_here() -> Result<()> {
    let (mean, variance) = (noise(&[3]), (noise(&[3]).sqr()? + 0.5)?);
    let theirs = candle_nn::BatchNorm::new_no_bias(3, mean, variance, 1e-5)?;
    let ours = BatchNorm::from_candle(&theirs)?;
    assert!(ours.weight.is_none() && ours.weight_quantizer.is_none() && !ours.options.affine);
    let x = noise(&[4, 3]);
    check_close(&float(&ours, &x)?, &theirs.forward_t(&x, false)?, 1e-5);
    Ok(())
}

#[test]
fn the_mode_is_that_of_the_thread_unless_it_is_fixed() -> Result<()> {
    let layer = norm(3)?;
    let x = noise(&[4, 3]);
    let mean = || numbers(&layer.running_mean.tensor());
    let before = mean();
    float(&layer, &x)?;
    assert_eq!(mean(), before);
    {
        let _training = flags::training_mode(true);
        layer.set_training(Some(false));
        float(&layer, &x)?;
        assert_eq!(mean(), before);
        layer.set_training(None);
        // Another thread is in evaluation.
        std::thread::scope(|scope| scope.spawn(|| float(&layer, &x).map(drop)).join().unwrap())?;
        assert_eq!(mean(), before);
        float(&layer, &x)?;
        assert_ne!(mean(), before);
    }
    let after = mean();
    layer.set_training(Some(true));
    float(&layer, &x)?;
    assert_ne!(mean(), after);
    Ok(())
}

#[test]
fn running_statistics_are_saved_and_not_learned() -> Result<()> {
    let weights = Weights::new();
    let layer = BatchNorm::new(3, BatchNormOptions::default(), weights.vb())?;
    let x = noise(&[4, 3]);
    for training in [false, true] {
        let _mode = flags::training_mode(training);
        let loss = (float(&layer, &x)?.sqr()? * noise(&[4, 3]))?.sum_all()?;
        let gradients = loss.backward()?;
        for learned in [&layer.weight, &layer.bias] {
            let var = learned.as_ref().unwrap().var().unwrap();
            assert!(gradients.get(&var).is_some());
        }
        for statistics in [&layer.running_mean, &layer.running_var] {
            assert!(gradients.get(&statistics.var().unwrap()).is_none());
        }
    }
    // What the map saves is what the layer has.
    let saved = weights.0.data().lock().unwrap()["running_mean"].as_tensor().clone();
    check_close(&saved, &layer.running_mean.tensor(), 0.0);
    assert!(numbers(&saved).iter().any(|mean| *mean != 0.0));
    Ok(())
}

#[test]
fn strict_mode_holds_in_training_too() -> Result<()> {
    let model = vec![norm(3)?];
    name_slots(&model);
    for training in [false, true] {
        let _mode = flags::training_mode(training);
        let error = model[0].forward_tensor(&noise(&[4, 3])).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Strict);
        let start =
            "`0`: batch_norm in strict mode: operand `input` is a float tensor of shape [4, 3]";
        assert!(error.to_string().starts_with(start), "{error}");
    }
    Ok(())
}

#[test]
fn what_does_not_fit_is_refused() -> Result<()> {
    let error = BatchNorm::from_tensors(
        Some(noise(&[2])),
        None,
        noise(&[3]),
        noise(&[4]),
        BatchNormOptions { eps: -1.0, momentum: 2.0, affine: false },
    )
    .unwrap_err();
    assert_eq!(
        error.to_string(),
        "BatchNorm: eps is -1, expected a number that is not negative; momentum is 2, expected one in 0..=1; affine is false, \
         but weight or bias are given; running_var has shape [4], expected [3]; weight has shape [2], expected [3]"
    );
    Ok(())
}

/// A folded layer computes what the two compute.
#[track_caller]
fn check_folded<L: Layer + FoldBatchNorm>(layer: L, norm: &BatchNorm, shape: &[usize]) {
    let x = noise(shape);
    let one_after_the_other = float(norm, &float(&layer, &x).unwrap()).unwrap();
    let folded = fold_batch_norm(&layer, norm).unwrap();
    check_close(&float(&folded, &x).unwrap(), &one_after_the_other, 2e-5);
}

#[test]
fn folding_changes_nothing() -> Result<()> {
    let norm = norm(4)?;
    let conv = |groups: usize| Conv { groups, ..Conv::default() };
    check_folded(Linear::from_tensors(noise(&[4, 3]), None)?, &norm, &[5, 3]);
    check_folded(Linear::from_tensors(noise(&[4, 3]), Some(noise(&[4])))?, &norm, &[5, 3]);
    let bias = || Some((noise(&[4]) * 0.5).unwrap());
    let kernel = noise(&[4, 3, 2]);
    check_folded(Conv1d::from_tensors(kernel, bias(), Conv::default())?, &norm, &[2, 3, 5]);
    let options = Conv { padding: Padding::Explicit([1, 1]), ..conv(2) };
    let kernel = noise(&[4, 1, 2, 3]);
    check_folded(Conv2d::from_tensors(kernel, None, options)?, &norm, &[2, 2, 4, 4]);
    let kernel = noise(&[4, 2, 1, 2, 2]);
    check_folded(Conv3d::from_tensors(kernel, bias(), Conv::default())?, &norm, &[1, 2, 2, 3, 3]);

    let transposed = ConvTranspose { groups: 2, stride: [2], ..ConvTranspose::default() };
    let kernel = noise(&[6, 2, 3]);
    check_folded(ConvTranspose1d::from_tensors(kernel, bias(), transposed)?, &norm, &[2, 6, 4]);
    let kernel = noise(&[3, 4, 2, 2]);
    let layer = ConvTranspose2d::from_tensors(kernel, None, ConvTranspose::default())?;
    check_folded(layer, &norm, &[2, 3, 3, 3]);
    let kernel = noise(&[2, 4, 1, 2, 2]);
    let layer = ConvTranspose3d::from_tensors(kernel, bias(), ConvTranspose::default())?;
    check_folded(layer, &norm, &[1, 2, 2, 3, 3]);

    let plain = BatchNormOptions { affine: false, ..BatchNormOptions::default() };
    let (mean, variance) = (noise(&[4]), (noise(&[4]).abs()? + 0.5)?);
    let without_parameters = BatchNorm::from_tensors(None, None, mean, variance, plain)?;
    check_folded(Linear::from_tensors(noise(&[4, 3]), None)?, &without_parameters, &[5, 3]);
    Ok(())
}

/// Rounded once: the result is the nearest to the one in `f64`.
#[test]
fn folding_is_exact_to_the_last_digit() -> Result<()> {
    let norm = norm(4)?;
    let linear = Linear::from_tensors(noise(&[4, 3]), Some(noise(&[4])))?;
    let folded = fold_batch_norm(&linear, &norm)?;
    let wide = |p: &Param| numbers(&p.tensor());
    let (gamma, beta) = (wide(norm.weight.as_ref().unwrap()), wide(norm.bias.as_ref().unwrap()));
    let (mean, var) = (wide(&norm.running_mean), wide(&norm.running_var));
    let (w, b) = (wide(&linear.weight), wide(linear.bias.as_ref().unwrap()));
    let factor = |channel: usize| gamma[channel] / (var[channel] + 1e-3).sqrt();
    let weight: Vec<f64> = (0..12).map(|at| f64::from((w[at] * factor(at / 3)) as f32)).collect();
    check_numbers(&folded.weight.tensor(), &weight, 0.0);
    let bias: Vec<f64> =
        (0..4).map(|c| f64::from(((b[c] - mean[c]) * factor(c) + beta[c]) as f32)).collect();
    check_numbers(&folded.bias.unwrap().tensor(), &bias, 0.0);
    Ok(())
}

#[test]
fn a_folded_layer_stands_between_the_same_slots() -> Result<()> {
    let (linear, norm) = (Linear::from_tensors(noise(&[4, 3]), None)?, norm(4)?);
    let folded = fold_batch_norm(&linear, &norm)?;
    assert_eq!(folded.input_quantizer.id(), linear.input_quantizer.id());
    assert_eq!(folded.output_quantizer.id(), norm.output_quantizer.id());
    assert_ne!(folded.weight_quantizer.id(), linear.weight_quantizer.id());
    Ok(())
}

#[test]
fn filled_slots_and_other_channels_are_not_folded() -> Result<()> {
    let (linear, norm) = (Linear::from_tensors(noise(&[4, 3]), None)?, norm(4)?);
    let other = Linear::from_tensors(noise(&[3, 4]), None)?;
    assert_eq!(
        fold_batch_norm(&other, &norm).unwrap_err().to_string(),
        "fold_batch_norm: Linear makes 3 channels, the batch normalization takes [4]"
    );
    let model: Sequential = (linear, norm).into();
    let mut config = QuantizationConfig::for_model(&model);
    let dynamic = QuantizerSpec::DynamicLinear(DynamicLinearQuantizerConfig::new(8));
    config.add_rule("0/weight_quantizer", dynamic.clone())?;
    config.add_rule("1/input_quantizer", dynamic)?;
    config.initialize(&model, InitializeOptions::default())?;
    let any: [&dyn std::any::Any; 2] = [model.get("0").unwrap(), model.get("1").unwrap()];
    let (linear, norm) = (any[0].downcast_ref::<Linear>(), any[1].downcast_ref::<BatchNorm>());
    let error = fold_batch_norm(linear.unwrap(), norm.unwrap()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidSettings);
    assert_eq!(
        error.to_string(),
        "fold_batch_norm: filled are the weight slot of the layer, the input slot of the norm, for data that folding does away \
         with; fold before quantizing"
    );
    Ok(())
}

#[test]
fn half_precision_parameters_stay_that() -> Result<()> {
    let half = |shape: &[usize]| noise(shape).to_dtype(DType::F16).unwrap();
    let ones = || Tensor::ones(4, DType::F32, CPU);
    let linear = Linear::from_tensors(half(&[4, 3]), None)?;
    let norm = BatchNorm::from_tensors(Some(ones()?), None, ones()?, ones()?, Default::default())?;
    let folded = fold_batch_norm(&linear, &norm)?;
    assert_eq!([folded.weight.dtype(), folded.bias.unwrap().dtype()], [DType::F16; 2]);
    Ok(())
}
