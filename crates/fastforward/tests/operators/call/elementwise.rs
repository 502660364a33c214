//! Activations, arithmetic, bits.

use fastforward::tensor::Result;
use fastforward::tensor::float::{self, GeluApproximation, Operand};

use super::Outcome;
use crate::arguments::Arguments;

pub fn call(op: &str, a: &Arguments) -> Option<Result<Outcome>> {
    let input = || a.tensor("input");
    // A tensor or a number; whole numbers leave integers integers.
    let second = |name: &'static str| match (a.optional(name), a.attribute(name)) {
        (Some(tensor), _) => Operand::Tensor(tensor),
        (None, Some(number)) if number.is_i64() => Operand::Integer(a.integer(name).unwrap()),
        (None, _) => Operand::Scalar(a.number(name).expect("a second operand")),
    };
    let other = || second("other");
    let alpha = || a.number("alpha").unwrap_or(1.0);
    let result = match op {
        "relu" => float::relu(input()),
        "relu6" => float::relu6(input()),
        "sigmoid" => float::sigmoid(input()),
        "tanh" => float::tanh(input()),
        "hardswish" => float::hardswish(input()),
        "silu" => float::silu(input()),
        "gelu" => float::gelu(
            input(),
            match a.text("approximate").expect("given") {
                "none" => GeluApproximation::None,
                "tanh" => GeluApproximation::Tanh,
                other => panic!("unknown approximation {other}"),
            },
        ),
        "exp" => float::exp(input()),
        "sin" => float::sin(input()),
        "cos" => float::cos(input()),
        "add" => float::add(input(), other(), alpha()),
        "sub" => float::sub(input(), other(), alpha()),
        "mul" => float::mul(input(), other()),
        "div" => float::div(input(), other()),
        "floor_divide" => float::floor_divide(input(), other()),
        "remainder" => float::remainder(input(), other()),
        "pow" => float::pow(input(), second("exponent")),
        "negative" => float::negative(input()),
        "positive" => float::positive(input()),
        "bitwise_and" => float::bitwise_and(input(), other()),
        "bitwise_or" => float::bitwise_or(input(), other()),
        "bitwise_xor" => float::bitwise_xor(input(), other()),
        "bitwise_not" => float::bitwise_not(input()),
        "bitwise_left_shift" => float::bitwise_left_shift(input(), other()),
        "bitwise_right_shift" => float::bitwise_right_shift(input(), other()),
        "dropout" => {
            let training = a.flag("training").expect("given");
            float::dropout(input(), a.number("p").expect("given"), training, 1)
        }
        _ => return None,
    };
    Some(result.map(Outcome::from))
}
