//! Operators on floats whose results are put on the grid of the output quantizer while they are in the cache, or watched there.
//!
//! A kernel here runs where nothing records gradients, the operands are `f32`, and the output slot is one of these:
//!
//! - it has one scale and at most 8 bits, by a static quantizer that nothing watches, and [integer
//!   execution](crate::flags::integer_execution_mode) is off. The kernel gives what the output quantizer makes of the float
//!   operator's result, bit by bit; that result never exists as a tensor. Other operators make it and then write over it.
//! - estimators ask for the smallest and largest of all results and for nothing else, and no operand has codes that integer
//!   kernels would take. They are found block by block; the results are the float operator's.

use std::sync::Arc;

use candle_core::{DType, Device, Tensor};

use super::call::{Argument, Call};
use super::codes::OutputGrid;
use super::dispatch::{Kernel, Predicate, row};
use super::spec::Role;
use crate::flags;
use crate::quantization::Granularity;
use crate::range_setting::TileRanges;
use crate::tensor::apply::apply_own;
use crate::tensor::float::{
    CodePair, Extremes, Finish, ValuesOrNumber, elementwise_then, from_floats, linear_then,
    normalize_then, pair_then, softmax_then,
};
use crate::tensor::{RangeWatch, Result, Value};

/// The operators, when their kernels run, and the kernels.
pub(super) fn built_in() -> Vec<(&'static str, Predicate, Kernel)> {
    let mut all = Vec::new();
    for name in [
        "relu",
        "relu6",
        "hardswish",
        "hardsigmoid",
        "sigmoid",
        "tanh",
        "silu",
        "exp",
        "sin",
        "cos",
    ] {
        all.push(row(name, is_wanted, elementwise));
    }
    for name in ["add", "sub", "mul", "div"] {
        all.push(row(name, |call| pair(call).is_some(), by_pairs));
    }
    all.push(row("softmax", |call| rows(call).is_some(), softmax));
    all.push(row("layer_norm", |call| normalized(call).is_some(), normalize));
    all.push(row("rms_norm", |call| normalized(call).is_some(), normalize));
    all.push(row("linear", |call| with_bias(call).is_some(), linear));
    all
}

/// Where results go.
enum Target<'a> {
    Grid(OutputGrid),
    Watched(RangeWatch<'a>, Arc<Extremes>),
}

impl<'a> Target<'a> {
    /// `None` where the output slot has to see the whole of a result.
    fn of(call: &Call<'a>) -> Option<Self> {
        let integers = flags::integer_execution();
        if let Some(watch) = call.output.slot().and_then(RangeWatch::of) {
            let fits = watch.granularity() == Granularity::PerTensor
                && !(integers && call.values().any(Value::is_quantized));
            return fits.then(|| Self::Watched(watch, Arc::new(Extremes::new())));
        }
        if integers { None } else { OutputGrid::of(call).map(Self::Grid) }
    }

    fn then(&self) -> Finish {
        match self {
            Self::Grid(to) => Finish::Grid(to.uniform),
            Self::Watched(_, extremes) => Finish::Range(Arc::clone(extremes)),
        }
    }

    /// Sends what a kernel made, and finished block by block, through the output slot.
    fn take(&self, call: &Call<'_>, values: Tensor) -> Result<Value> {
        let (watch, extremes) = match self {
            Self::Grid(to) => return to.values(values),
            Self::Watched(watch, extremes) => (watch, extremes),
        };
        match (extremes.finite(), call.output.slot()) {
            (Some((min, max)), _) => {
                watch.apply(values, &TileRanges { min: vec![min], max: vec![max] })
            }
            // What there is to say about NaN and infinities needs the data.
            (None, Some(slot)) => apply_own(slot, values),
            (None, None) => Err(call.mismatch()),
        }
    }

    fn take_values(&self, call: &Call<'_>, values: Vec<f32>, shape: &[usize]) -> Result<Value> {
        self.take(call, Tensor::from_vec(values, shape, &Device::Cpu)?)
    }
}

/// Whether results may go to their target block by block, and strict mode has nothing to say.
fn is_wanted(call: &Call<'_>) -> bool {
    let is_strict = call.output.is_strict();
    let fits = |(role, argument): (Role, &Argument<'_>)| match (role, argument) {
        (Role::Plain | Role::MaybeQuantized, Argument::Value(value)) => is_plain_f32(value),
        (_, Argument::Value(value)) => is_plain_f32(value) && (value.is_quantized() || !is_strict),
        (_, Argument::Number(_) | Argument::Absent) => true,
        _ => false,
    };
    let roles = call.operator.operands.iter().map(|operand| operand.role);
    roles.zip(call.arguments).all(fits) && Target::of(call).is_some()
}

fn is_plain_f32(value: &Value) -> bool {
    let on_cpu = match value {
        Value::Float(tensor) => tensor.device().is_cpu(),
        Value::Quantized(tensor) => tensor.device().is_cpu(),
    };
    // What is recorded has a history to keep; under inference, history ends at the slot.
    on_cpu && value.dtype() == DType::F32 && (!value.track_op() || flags::is_inference())
}

fn floats(call: &Call<'_>, name: &str) -> Result<Tensor> {
    call.value(name).ok_or_else(|| call.mismatch())?.dequantize()
}

fn elementwise(call: &Call<'_>) -> Result<Value> {
    let Some(to) = Target::of(call) else { return Err(call.mismatch()) };
    let x = floats(call, "input")?;
    let mut is_known = true;
    let values = from_floats([&x], |[x]| {
        let values = elementwise_then(call.operator.name, x, &to.then());
        is_known = values.is_some();
        values.unwrap_or_default()
    })?;
    if is_known { to.take_values(call, values, x.dims()) } else { Err(call.mismatch()) }
}

fn pair(call: &Call<'_>) -> Option<CodePair> {
    let alpha = || call.attribute::<f64>("alpha").copied();
    let pair = match call.operator.name {
        "add" => CodePair::Add(alpha()?),
        "sub" => CodePair::Sub(alpha()?),
        "mul" => CodePair::Mul,
        _ => CodePair::Div,
    };
    let fits = match call.argument("other") {
        Argument::Number(_) => true,
        Argument::Value(other) => call.value("input")?.dims() == other.dims(),
        _ => false,
    };
    (fits && is_wanted(call)).then_some(pair)
}

fn by_pairs(call: &Call<'_>) -> Result<Value> {
    let (Some(pair), Some(to)) = (pair(call), Target::of(call)) else {
        return Err(call.mismatch());
    };
    let a = floats(call, "input")?;
    let values = match call.argument("other") {
        Argument::Number(number) => {
            from_floats([&a], |[a]| pair_then(pair, a, ValuesOrNumber::Number(number), &to.then()))?
        }
        _ => from_floats([&a, &floats(call, "other")?], |[a, b]| {
            pair_then(pair, a, ValuesOrNumber::Values(b), &to.then())
        })?,
    };
    to.take_values(call, values, a.dims())
}

/// How long the rows are of which each has a softmax.
fn rows(call: &Call<'_>) -> Option<usize> {
    let dims = call.value("input")?.dims();
    let dim = *call.attribute::<isize>("dim")?;
    let dtype = call.attribute::<Option<DType>>("dtype")?;
    let is_last = dim == -1 || dim + 1 == dims.len() as isize;
    let fits = is_last && dtype.is_none_or(|dtype| dtype == DType::F32) && is_wanted(call);
    dims.last().copied().filter(|&n| fits && n > 0)
}

fn softmax(call: &Call<'_>) -> Result<Value> {
    let (Some(n_columns), Some(to)) = (rows(call), Target::of(call)) else {
        return Err(call.mismatch());
    };
    let x = floats(call, "input")?;
    let values = from_floats([&x], |[x]| softmax_then(x, n_columns, &to.then()))?;
    to.take_values(call, values, x.dims())
}

/// The number of elements that are normalized together, and `eps`.
fn normalized(call: &Call<'_>) -> Option<(usize, f64)> {
    let shape = call.attribute::<Vec<usize>>("normalized_shape")?;
    let eps = match call.operator.name {
        "layer_norm" => *call.attribute::<f64>("eps")?,
        _ => call.attribute::<Option<f64>>("eps")?.unwrap_or(f64::from(f32::EPSILON)),
    };
    let parameter = |name: &str| call.value(name).is_none_or(|value| value.dims() == shape);
    let fits = !shape.is_empty()
        && !shape.contains(&0)
        && call.value("input")?.dims().ends_with(shape)
        && parameter("weight")
        && parameter("bias")
        && is_wanted(call);
    fits.then_some((shape.iter().product(), eps))
}

fn normalize(call: &Call<'_>) -> Result<Value> {
    let (Some((n_columns, eps)), Some(to)) = (normalized(call), Target::of(call)) else {
        return Err(call.mismatch());
    };
    let settings = (eps, call.operator.name == "layer_norm");
    let x = floats(call, "input")?;
    let parameter = |name: &str| call.value(name).map(Value::dequantize).transpose();
    let then = to.then();
    let run = |x: &[f32], parameters: [Option<&[f32]>; 2]| {
        normalize_then(x, n_columns, parameters, settings, &then)
    };
    let values = match (parameter("weight")?, parameter("bias")?) {
        (None, None) => from_floats([&x], |[x]| run(x, [None, None])),
        (Some(w), None) => from_floats([&x, &w], |[x, w]| run(x, [Some(w), None])),
        (None, Some(b)) => from_floats([&x, &b], |[x, b]| run(x, [None, Some(b)])),
        (Some(w), Some(b)) => from_floats([&x, &w, &b], |[x, w, b]| run(x, [Some(w), Some(b)])),
    }?;
    to.take_values(call, values, x.dims())
}

fn with_bias<'a>(call: &Call<'a>) -> Option<[&'a Value; 3]> {
    let operands = [call.value("input")?, call.value("weight")?, call.value("bias")?];
    is_wanted(call).then_some(operands)
}

fn linear(call: &Call<'_>) -> Result<Value> {
    let (Some([x, weight, bias]), Some(to)) = (with_bias(call), Target::of(call)) else {
        return Err(call.mismatch());
    };
    // Without history: under inference it ends here.
    let [x, weight, bias] = [x.detach(), weight.detach(), bias.detach()];
    let (x, weight, bias) = (x.dequantize()?, weight.dequantize()?, bias.dequantize()?);
    to.take(call, linear_then(&x, &weight, &bias, to.then())?)
}
