//! Operators from codes to codes, where the output quantizer is known before the result is.
//!
//! A kernel here runs when [integer execution](crate::flags::integer_execution_mode) is on, nothing records gradients, the
//! operands are quantized to at most 8 bits on one scale each, and so is the output, by a static quantizer that nothing
//! watches. It gives the codes that the output quantizer makes of the float operator on the dequantized operands, bit by bit,
//! and neither those floats nor the operands' exist as tensors: functions of one element become a table of 256 codes, others
//! work row by row in the cache.

use candle_core::{DType, Device, Tensor};
use ff_kernels::Uniform;

use super::call::{Argument, Call};
use super::dispatch::{Kernel, Predicate, row};
use super::integer::{is_integer, is_wanted};
use crate::flags;
use crate::quantization::affine::AffineGrid;
use crate::quantization::{Granularity, LinearQuantizer};
use crate::tensor::float::{
    self, CodePair, CodesOf, GeluApproximation, map_codes, normalize_codes, pair_codes,
    softmax_codes,
};
use crate::tensor::{QuantizedTensor, Result, Value, record, uniform_of};

/// The operators, when their kernels run, and the kernels.
pub(super) fn built_in() -> Vec<(&'static str, Predicate, Kernel)> {
    let mut all = Vec::new();
    for name in [
        "relu",
        "relu6",
        "leaky_relu",
        "hardswish",
        "hardsigmoid",
        "sigmoid",
        "tanh",
        "silu",
        "gelu",
        "exp",
        "sin",
        "cos",
        "negative",
    ] {
        all.push(row(name, |call| unary(call).is_some(), by_table));
    }
    for name in ["add", "sub", "mul", "div"] {
        all.push(row(name, |call| unary(call).is_some(), by_table));
        all.push(row(name, |call| pair(call).is_some(), by_pairs));
    }
    all.push(row("softmax", |call| rows(call).is_some(), softmax));
    all.push(row("layer_norm", |call| normalized(call).is_some(), normalize));
    all.push(row("rms_norm", |call| normalized(call).is_some(), normalize));
    all
}

/// The grid on which an output slot puts whatever it is given.
pub(super) struct OutputGrid {
    grid: AffineGrid,
    pub(super) uniform: Uniform,
}

impl OutputGrid {
    /// `None` where the slot has no static quantizer with one scale and at most 8 bits, or something watches it.
    pub(super) fn of(call: &Call<'_>) -> Option<Self> {
        let slot = call.output.slot()?;
        if slot.override_count() > 0 || record::is_recording() || flags::exporting() {
            return None;
        }
        let quantizer = slot.quantizer();
        let any: &dyn std::any::Any = &*quantizer;
        let linear = any.downcast_ref::<LinearQuantizer>()?;
        let parameters = linear.shared_parameters()?;
        let granularity = linear.config().granularity.clone();
        // With offsets beyond that, codes cannot be told from the values they stand for.
        let is_far = parameters.rounded_offset(0).abs() > (1u32 << 20) as f32;
        if granularity != Granularity::PerTensor || parameters.num_bits > 8 || is_far {
            return None;
        }
        let uniform = uniform_of(&parameters).ok()?;
        Some(Self { grid: AffineGrid { granularity, parameters }, uniform })
    }

    /// Codes on this grid as a tensor.
    pub(super) fn tensor(&self, codes: Vec<i8>, shape: &[usize]) -> Result<Value> {
        Ok(QuantizedTensor::from_own_codes(codes, &self.grid, shape)?.into())
    }

    /// Values on this grid as a tensor.
    pub(super) fn values(&self, values: Tensor) -> Result<Value> {
        Ok(QuantizedTensor::from_own_values(values, &self.grid)?.into())
    }
}

/// An operand of a kernel here.
fn operand<'a>(call: &Call<'a>, name: &str) -> Option<&'a QuantizedTensor> {
    let x = call.value(name)?.as_quantized()?;
    (is_integer(x) && x.context().is_per_tensor()).then_some(x)
}

/// Runs `f` on the codes of tensors, in row-major order.
fn with_codes<R, const N: usize>(
    tensors: [&QuantizedTensor; N],
    f: impl FnOnce([CodesOf<'_>; N]) -> R,
) -> Result<R> {
    let mut dense = Vec::with_capacity(N);
    for tensor in tensors {
        dense.push(tensor.codes()?.contiguous());
    }
    let mut all = [CodesOf { codes: &[], scale: 1.0, offset: 0.0 }; N];
    for ((slot, codes), tensor) in all.iter_mut().zip(&dense).zip(tensors) {
        let parameters = tensor.context().parameters();
        let (scale, offset) = (parameters.scale[0], parameters.rounded_offset(0));
        *slot = CodesOf { codes: codes.as_i8()?, scale, offset };
    }
    Ok(f(all))
}

/// A function of one element: the operand, and the float operator on any tensor in its place.
type Unary<'a> = (&'a QuantizedTensor, OnTensor<'a>);

/// A float operator on one tensor.
type OnTensor<'a> = Box<dyn Fn(&Tensor) -> Result<Tensor> + 'a>;

fn unary<'a>(call: &'a Call<'a>) -> Option<Unary<'a>> {
    if !is_wanted(call) {
        return None;
    }
    let x = operand(call, "input")?;
    let plain = |f: fn(&Tensor) -> Result<Tensor>| -> OnTensor<'a> { Box::new(f) };
    let number = || match call.argument("other") {
        Argument::Number(number) => Some(number),
        _ => None,
    };
    let f: OnTensor<'a> = match call.operator.name {
        "relu" => plain(float::relu),
        "relu6" => plain(float::relu6),
        "hardswish" => plain(float::hardswish),
        "hardsigmoid" => plain(float::hardsigmoid),
        "sigmoid" => plain(float::sigmoid),
        "tanh" => plain(float::tanh),
        "silu" => plain(float::silu),
        "exp" => plain(float::exp),
        "sin" => plain(float::sin),
        "cos" => plain(float::cos),
        "negative" => plain(float::negative),
        "gelu" => {
            let approximation = *call.attribute::<GeluApproximation>("approximate")?;
            Box::new(move |x| float::gelu(x, approximation))
        }
        "leaky_relu" => {
            let slope = *call.attribute::<f64>("negative_slope")?;
            Box::new(move |x| float::leaky_relu(x, slope))
        }
        "add" | "sub" => {
            let (number, alpha) = (number()?, *call.attribute::<f64>("alpha")?);
            let f = if call.operator.name == "add" { float::add } else { float::sub };
            Box::new(move |x| f(x, float::Operand::Scalar(number), alpha))
        }
        "mul" => {
            let number = number()?;
            Box::new(move |x| float::mul(x, number))
        }
        "div" => {
            let number = number()?;
            Box::new(move |x| float::div(x, number))
        }
        _ => return None,
    };
    OutputGrid::of(call)?;
    Some((x, f))
}

fn by_table(call: &Call<'_>) -> Result<Value> {
    let Some((x, f)) = unary(call) else { return Err(call.mismatch()) };
    let unfused = || call.finish(f(&x.dequantize()?)?);
    let Some(to) = OutputGrid::of(call) else { return unfused() };
    let parameters = x.context().parameters();
    let (scale, offset) = (parameters.scale[0], parameters.rounded_offset(0));
    let values: Vec<f32> =
        (i8::MIN..=i8::MAX).map(|code| (f32::from(code) + offset) * scale).collect();
    let results = f(&Tensor::from_vec(values, 256, &Device::Cpu)?)?.to_vec1::<f32>()?;
    let mut table = [0; 256];
    // Whether the code that stands for NaN occurs is the float operator's to find.
    if to.uniform.codes(&results, &mut table) {
        return unfused();
    }
    let codes = with_codes([x], |[x]| map_codes(x.codes, &table))?;
    to.tensor(codes, x.dims())
}

/// Two operands of one shape.
fn pair<'a>(call: &Call<'a>) -> Option<(CodePair, [&'a QuantizedTensor; 2])> {
    if !is_wanted(call) {
        return None;
    }
    let operands = [operand(call, "input")?, operand(call, "other")?];
    let alpha = || call.attribute::<f64>("alpha").copied();
    let pair = match call.operator.name {
        "add" => CodePair::Add(alpha()?),
        "sub" => CodePair::Sub(alpha()?),
        "mul" => CodePair::Mul,
        "div" => CodePair::Div,
        _ => return None,
    };
    let fits = operands[0].dims() == operands[1].dims() && OutputGrid::of(call).is_some();
    fits.then_some((pair, operands))
}

fn by_pairs(call: &Call<'_>) -> Result<Value> {
    let Some((pair, [a, b])) = pair(call) else { return Err(call.mismatch()) };
    if let Some(to) = OutputGrid::of(call)
        && let Some(codes) = with_codes([a, b], |both| pair_codes(pair, both, &to.uniform))?
    {
        return to.tensor(codes, a.dims());
    }
    let (a, b) = (a.dequantize()?, b.dequantize()?);
    call.finish(match pair {
        CodePair::Add(alpha) => float::add(&a, &b, alpha)?,
        CodePair::Sub(alpha) => float::sub(&a, &b, alpha)?,
        CodePair::Mul => float::mul(&a, &b)?,
        CodePair::Div => float::div(&a, &b)?,
    })
}

/// An operand of which each row of the last axis has a softmax.
fn rows<'a>(call: &Call<'a>) -> Option<&'a QuantizedTensor> {
    if !is_wanted(call) {
        return None;
    }
    let x = operand(call, "input")?;
    let dim = *call.attribute::<isize>("dim")?;
    let is_last = x.rank() > 0 && (dim == -1 || dim == x.rank() as isize - 1);
    let dtype = call.attribute::<Option<DType>>("dtype")?;
    let fits = is_last && dtype.is_none_or(|dtype| dtype == DType::F32);
    (fits && OutputGrid::of(call).is_some()).then_some(x)
}

fn softmax(call: &Call<'_>) -> Result<Value> {
    let Some(x) = rows(call) else { return Err(call.mismatch()) };
    let n_columns = x.dims().last().copied().unwrap_or(1);
    if let Some(to) = OutputGrid::of(call)
        && let Some(codes) = with_codes([x], |[x]| softmax_codes(x, n_columns, &to.uniform))?
    {
        return to.tensor(codes, x.dims());
    }
    call.finish(float::softmax(&x.dequantize()?, -1, None)?)
}

/// An operand whose last axes are normalized, by the mean and variance or by the mean square.
struct Normalized<'a> {
    x: &'a QuantizedTensor,
    shape: Vec<usize>,
    weight: Option<&'a Value>,
    bias: Option<&'a Value>,
    eps: f64,
}

fn normalized<'a>(call: &Call<'a>) -> Option<Normalized<'a>> {
    if !is_wanted(call) {
        return None;
    }
    let x = operand(call, "input")?;
    let shape = call.attribute::<Vec<usize>>("normalized_shape")?.clone();
    let eps = match call.operator.name {
        "layer_norm" => *call.attribute::<f64>("eps")?,
        _ => call.attribute::<Option<f64>>("eps")?.unwrap_or(f64::from(f32::EPSILON)),
    };
    let parameter = |name: &str| match call.argument(name) {
        Argument::Value(value) => {
            let fits = !value.track_op() && value.dtype() == DType::F32 && value.dims() == shape;
            fits.then_some(Some(value))
        }
        _ => Some(None),
    };
    let (weight, bias) = (parameter("weight")?, parameter("bias")?);
    // A float weight is strict mode's to refuse.
    let allowed = !call.output.is_strict() || weight.is_none_or(Value::is_quantized);
    let fits = !shape.is_empty() && x.dims().ends_with(&shape) && !shape.contains(&0);
    let fits = fits && allowed && OutputGrid::of(call).is_some();
    fits.then_some(Normalized { x, shape, weight, bias, eps })
}

fn normalize(call: &Call<'_>) -> Result<Value> {
    let Some(Normalized { x, shape, weight, bias, eps }) = normalized(call) else {
        return Err(call.mismatch());
    };
    let floats = |value: Option<&Value>| value.map(Value::dequantize).transpose();
    let (weight, bias) = (floats(weight)?, floats(bias)?);
    let centered = call.operator.name == "layer_norm";
    if let Some(to) = OutputGrid::of(call) {
        let values = |tensor: &Option<Tensor>| -> Result<Option<Vec<f32>>> {
            Ok(tensor.as_ref().map(|t| t.flatten_all()?.to_vec1()).transpose()?)
        };
        let (weight, bias) = (values(&weight)?, values(&bias)?);
        let parameters = [weight.as_deref(), bias.as_deref()];
        let n_columns = shape.iter().product();
        let codes = with_codes([x], |[x]| {
            normalize_codes(x, n_columns, parameters, (eps, centered), &to.uniform)
        })?;
        if let Some(codes) = codes {
            return to.tensor(codes, x.dims());
        }
    }
    let (x, weight, bias) = (x.dequantize()?, weight.as_ref(), bias.as_ref());
    call.finish(if centered {
        float::layer_norm(&x, &shape, weight, bias, eps)?
    } else {
        float::rms_norm(&x, &shape, weight, Some(eps))?
    })
}
