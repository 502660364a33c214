//! Kernels that keep quantized data quantized (spec §5.4).

use std::sync::Arc;

use super::call::{Argument, Call};
use super::dispatch::{Kernel, Predicate};
use crate::tensor::{QuantizedTensor, Result, Value};

/// The operators, when their kernels run, and the kernels.
pub(super) fn built_in() -> Vec<(&'static str, Predicate, Kernel)> {
    let kernel = |f: fn(&Call<'_>) -> Result<Value>| -> Kernel { Arc::new(f) };
    vec![
        ("mul", Predicate::new(|call| by_number(call).is_some()), kernel(mul)),
        (
            "cat",
            Predicate::new(|call| call.output.slot().is_none() && parts(call).is_some()),
            kernel(cat),
        ),
        (
            "permute",
            Predicate::new(|call| call.output.is_stub() && input(call).is_some()),
            kernel(permute),
        ),
        (
            "positive",
            Predicate::new(|call| call.output.is_stub() && input(call).is_some()),
            kernel(positive),
        ),
    ]
}

fn input<'a>(call: &Call<'a>) -> Option<&'a QuantizedTensor> {
    call.value("input")?.as_quantized()
}

/// A quantized tensor times a number, with nothing to do for the output.
fn by_number<'a>(call: &Call<'a>) -> Option<(&'a QuantizedTensor, f64)> {
    match call.argument("other") {
        // A factor that leaves no grid, such as zero, is the float operator's.
        Argument::Number(factor) if call.output.is_stub() => {
            let input = input(call)?;
            input.context().scaled(factor).is_ok().then_some((input, factor))
        }
        _ => None,
    }
}

fn mul(call: &Call<'_>) -> Result<Value> {
    match by_number(call) {
        Some((input, factor)) => call.finish(input.mul_scalar(factor)?),
        None => Err(call.mismatch()),
    }
}

/// Quantized tensors that share a grid.
fn parts<'a>(call: &Call<'a>) -> Option<Vec<&'a QuantizedTensor>> {
    let Argument::Sequence(values) = call.argument("tensors") else { return None };
    let parts: Vec<&QuantizedTensor> =
        values.iter().map(Value::as_quantized).collect::<Option<_>>()?;
    let dim = *call.attribute::<isize>("dim")?;
    QuantizedTensor::check_cat(&parts, dim).is_ok().then_some(parts)
}

fn cat(call: &Call<'_>) -> Result<Value> {
    match (parts(call), call.attribute::<isize>("dim")) {
        (Some(parts), Some(&dim)) => call.finish(QuantizedTensor::cat(&parts, dim)?),
        _ => Err(call.mismatch()),
    }
}

fn permute(call: &Call<'_>) -> Result<Value> {
    match (input(call), call.attribute::<Vec<isize>>("dims")) {
        (Some(input), Some(dims)) => call.finish(input.permute(dims)?),
        _ => Err(call.mismatch()),
    }
}

fn positive(call: &Call<'_>) -> Result<Value> {
    match input(call) {
        Some(input) => call.finish(input.clone()),
        None => Err(call.mismatch()),
    }
}
