//! That gradients reach every parameter and the input.

use candle_core::Var;
use fastforward::module::named_parameters;
use fastforward::nn::*;
use fastforward::tensor::Result;
use fastforward::tensor::float::{self, AvgPool, Conv, ConvTranspose};

use crate::common::{Weights, noise, numbers};

/// The gradient of the sum of squares of what a layer computes is there and not zero, for each parameter and the input.
#[track_caller]
fn check(layer: &dyn Layer, shape: &[usize]) {
    let x = Var::from_tensor(&noise(shape)).unwrap();
    let y = crate::common::float(layer, &x).unwrap();
    // Not the plain sum of squares: that of what is normalized does not depend on the input.
    let loss = (y.sqr().unwrap() * &noise(y.dims())).unwrap().sum_all().unwrap();
    let gradients = loss.backward().unwrap();
    let mut variables = vec![("input".to_owned(), x)];
    for (name, parameter) in named_parameters(layer) {
        let parameter = parameter.downcast_ref::<Param>().unwrap();
        variables.push((name, parameter.var().expect("parameters of a `VarMap` are variables")));
    }
    for (name, variable) in variables {
        let gradient = gradients.get(&variable);
        let gradient = gradient.unwrap_or_else(|| panic!("no gradient for `{name}`"));
        assert_eq!(gradient.dims(), variable.dims(), "`{name}`");
        let numbers = numbers(gradient);
        assert!(numbers.iter().all(|g| g.is_finite()), "`{name}`: {numbers:?}");
        assert!(numbers.iter().any(|g| g.abs() > 1e-6), "`{name}`: {numbers:?}");
    }
}

#[test]
fn gradients_reach_every_parameter_and_the_input() -> Result<()> {
    let w = Weights::new();
    let vb = |name: &str| w.vb().pp(name);
    check(&Linear::new(6, 3, true, vb("linear"))?, &[4, 6]);
    check(&LayerNorm::new(&[6], 1e-5, true, vb("layer_norm"))?, &[4, 6]);
    check(&RmsNorm::new(&[6], None, vb("rms_norm"))?, &[4, 6]);
    check(&GroupNorm::new(2, 6, 1e-5, vb("group_norm"))?, &[4, 6, 5]);
    for layer in [
        &ReLU::new() as &dyn Layer,
        &ReLU6::new(),
        &GELU::default(),
        &SiLU::new(),
        &Sigmoid::new(),
        &Tanh::new(),
        &Hardswish::new(),
        &Hardsigmoid::new(),
        &LeakyReLU::default(),
        &Softmax::new(-1),
        &Identity,
        &Flatten::default(),
    ] {
        check(layer, &[2, 3, 4]);
    }
    let conv = Conv { groups: 2, ..Conv::default() };
    check(&Conv1d::new(4, 6, [3], conv, true, vb("conv1d"))?, &[2, 4, 7]);
    check(&Conv2d::new(3, 6, [3; 2], Conv::default(), true, vb("conv2d"))?, &[2, 3, 5, 5]);
    check(&Conv3d::new(3, 2, [2; 3], Conv::default(), true, vb("conv3d"))?, &[2, 3, 3, 3, 3]);
    let transposed = ConvTranspose { groups: 2, ..ConvTranspose::default() };
    check(&ConvTranspose1d::new(4, 6, [3], transposed, true, vb("t1"))?, &[2, 4, 7]);
    let transposed = ConvTranspose { stride: [2; 2], ..ConvTranspose::default() };
    check(&ConvTranspose2d::new(3, 6, [3; 2], transposed, true, vb("t2"))?, &[2, 3, 5, 5]);
    let transposed = ConvTranspose::default();
    check(&ConvTranspose3d::new(3, 2, [2; 3], transposed, true, vb("t3"))?, &[2, 3, 3, 3, 3]);
    check(&AvgPool1d::new(AvgPool::new([2])), &[2, 3, 5]);
    check(&AvgPool2d::new(AvgPool::new([2; 2])), &[2, 3, 5, 5]);
    check(&AvgPool3d::new(AvgPool::new([2; 3])), &[2, 3, 2, 4, 4]);
    check(&MaxPool2d::new(float::MaxPool2d::new([2; 2])), &[2, 3, 5, 5]);
    check(&AdaptiveAvgPool2d::new([Some(2), None]), &[2, 3, 5, 5]);
    check(&RotaryEmbedding::new(4, 8, 10.0, true, crate::common::CPU)?, &[2, 5, 4]);
    check(&Dropout::new(0.3, 1)?, &[4, 6]);
    {
        let _training = fastforward::flags::training_mode(true);
        check(&Dropout::new(0.3, 1)?, &[4, 6]);
    }
    let model = Sequential::new()
        .add(Linear::new(6, 4, true, vb("0"))?)
        .add(GELU::default())
        .add(LayerNorm::new(&[4], 1e-5, true, vb("2"))?);
    check(&model, &[4, 6]);
    Ok(())
}
