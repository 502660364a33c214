//! linear, matmul, mm, bmm, softmax, normalizations.

use fastforward::tensor::Result;
use fastforward::tensor::float;

use super::Outcome;
use crate::arguments::Arguments;

pub fn call(op: &str, a: &Arguments) -> Option<Result<Outcome>> {
    let input = || a.tensor("input");
    let shape = || {
        let shape = a.integers("normalized_shape").expect("given");
        shape.iter().map(|&extent| extent as usize).collect::<Vec<_>>()
    };
    let eps = || a.number("eps").unwrap_or(1e-5);
    let dim = || a.integer("dim").expect("given");
    let result = match op {
        "linear" => float::linear(input(), a.tensor("weight"), a.optional("bias")),
        "matmul" => float::matmul(input(), a.tensor("other")),
        "mm" => float::mm(input(), a.tensor("mat2")),
        "bmm" => float::bmm(input(), a.tensor("mat2")),
        "softmax" => float::softmax(input(), dim(), a.dtype("dtype")),
        "log_softmax" => float::log_softmax(input(), dim(), a.dtype("dtype")),
        "layer_norm" => {
            float::layer_norm(input(), &shape(), a.optional("weight"), a.optional("bias"), eps())
        }
        "rms_norm" => float::rms_norm(input(), &shape(), a.optional("weight"), a.number("eps")),
        "group_norm" => float::group_norm(
            input(),
            a.integer("num_groups").expect("given") as usize,
            a.optional("weight"),
            a.optional("bias"),
            eps(),
        ),
        "batch_norm" => return Some(batch_norm(a)),
        _ => return None,
    };
    Some(result.map(Outcome::from))
}

/// In training, running statistics move by `momentum` towards those of the batch.
fn batch_norm(a: &Arguments) -> Result<Outcome> {
    let (input, weight, bias) = (a.tensor("input"), a.optional("weight"), a.optional("bias"));
    let eps = a.number("eps").unwrap_or(1e-5);
    let running = ["running_mean", "running_var"].map(|name| (name, a.optional(name)));
    if !a.flag("training").expect("given") {
        let [mean, variance] = running.map(|(_, running)| running.expect("given"));
        return float::batch_norm(input, mean, variance, weight, bias, eps).map(Outcome::from);
    }
    let momentum = a.number("momentum").unwrap_or(0.1);
    let (result, found) = float::batch_norm_training(input, weight, bias, eps)?;
    let mut outcome = Outcome::from(result);
    for ((name, running), found) in running.into_iter().zip([found.mean, found.variance]) {
        if let Some(running) = running {
            let moved = ((running * (1.0 - momentum))? + (found * momentum)?)?;
            outcome.updated.insert(name, moved);
        }
    }
    Ok(outcome)
}
