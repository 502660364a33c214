//! That gradients reach every parameter and the input.

use candle_core::Var;
use fastforward::module::named_parameters;
use fastforward::nn::*;
use fastforward::tensor::Result;

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
    let model = Sequential::new()
        .add(Linear::new(6, 4, true, vb("0"))?)
        .add(GELU::default())
        .add(LayerNorm::new(&[4], 1e-5, true, vb("2"))?);
    check(&model, &[4, 6]);
    Ok(())
}
