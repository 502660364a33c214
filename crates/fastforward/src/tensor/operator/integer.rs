//! Products of 8-bit codes in integers, exact until they are scaled.
//!
//! A kernel here runs when [integer execution](crate::flags::integer_execution_mode) is on, nothing records gradients, both
//! operands are quantized to at most 8 bits, the input on one scale and the weight on one or one per output channel, and no
//! batch of parameters is left out. The result differs from the product of the dequantized operands by rounding only, within
//! [`ff_kernels::simulation_bound`].

use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use ff_kernels::{Affine, CodeView, KernelError, integer_linear, integer_matmul};

use super::call::{Argument, Call};
use super::dispatch::{Kernel, Predicate};
use crate::tensor::{Error, QuantizedTensor, Result, Value};
use crate::{ErrorKind, flags};

/// The operators, when their kernels run, and the kernels.
pub(super) fn built_in() -> Vec<(&'static str, Predicate, Kernel)> {
    let kernel = |f: fn(&Call<'_>) -> Result<Value>| -> Kernel { Arc::new(f) };
    vec![
        ("linear", Predicate::new(|call| weighted(call).is_some()), kernel(linear)),
        ("matmul", Predicate::new(|call| product(call, "other").is_some()), kernel(matmul)),
        ("mm", Predicate::new(|call| product(call, "mat2").is_some()), kernel(matmul)),
        ("bmm", Predicate::new(|call| product(call, "mat2").is_some()), kernel(matmul)),
    ]
}

/// Whether a tensor can be an operand of an integer product.
fn is_integer(x: &QuantizedTensor) -> bool {
    x.num_bits() <= 8 && x.dtype() == DType::F32 && x.device().is_cpu() && !x.track_op()
}

/// Whether integers may be used and strict mode has nothing to say.
fn is_wanted(call: &Call<'_>) -> bool {
    flags::integer_execution() && call.output.allows_any()
}

fn affine(x: &QuantizedTensor) -> Affine<'_> {
    x.context().parameters().affine()
}

fn wrong(call: &Call<'_>, error: &KernelError) -> Error {
    Error::operator(call.operator.name, error)
}

/// An input on one scale, a weight on one scale or one per output channel, and a bias.
struct Weighted<'a> {
    input: &'a QuantizedTensor,
    weight: &'a QuantizedTensor,
    bias: Option<&'a Value>,
}

fn weighted<'a>(call: &Call<'a>) -> Option<Weighted<'a>> {
    if !is_wanted(call) {
        return None;
    }
    let input = call.value("input")?.as_quantized().filter(|x| is_integer(x))?;
    let weight = call.value("weight")?.as_quantized().filter(|x| is_integer(x))?;
    let bias = match call.argument("bias") {
        Argument::Value(bias) if bias.track_op() || bias.dtype() != DType::F32 => return None,
        Argument::Value(bias) => Some(bias),
        _ => None,
    };
    let scales = weight.context();
    let fits = input.context().is_per_tensor()
        && (scales.is_per_tensor() || scales.channel_axis() == Some(0))
        && input.rank() > 0
        && weight.rank() > 1;
    fits.then_some(Weighted { input, weight, bias })
}

impl Weighted<'_> {
    fn bias(&self) -> Result<Option<Vec<f32>>> {
        self.bias.map(|bias| Ok(bias.dequantize()?.flatten_all()?.to_vec1()?)).transpose()
    }
}

fn linear(call: &Call<'_>) -> Result<Value> {
    let Some(operands) = weighted(call) else { return Err(mismatch(call)) };
    let (input, weight) = (operands.input, operands.weight.packed()?);
    let [n_out, n_in] = weight.shape();
    let (Some((&depth, outer)), true) = (input.dims().split_last(), operands.weight.rank() == 2)
    else {
        return Err(Error::operator(
            "linear",
            "an input [.., in] and a weight [out, in] are needed",
        ));
    };
    if depth != n_in {
        let what = format!("`input` has {depth} features, `weight` takes {n_in}");
        return Err(Error::operator("linear", what));
    }
    let rows: usize = outer.iter().product();
    let codes = input.codes()?.contiguous();
    let view = CodeView::new(codes.as_i8()?, [rows, depth]).map_err(|error| wrong(call, &error))?;
    let bias = operands.bias()?;
    let mut out = vec![0.0; rows * n_out];
    let w_affine = affine(operands.weight);
    integer_linear(view, affine(input), weight, w_affine, bias.as_deref(), &mut out)
        .map_err(|error| wrong(call, &error))?;
    let mut shape = outer.to_vec();
    shape.push(n_out);
    call.finish(Tensor::from_vec(out, shape, &Device::Cpu)?)
}

/// Two activations, each on one scale, with the same leading axes.
fn product<'a>(
    call: &Call<'a>,
    second: &str,
) -> Option<(&'a QuantizedTensor, &'a QuantizedTensor)> {
    if !is_wanted(call) {
        return None;
    }
    let one = |name: &str| {
        let x = call.value(name)?.as_quantized()?;
        (is_integer(x) && x.context().is_per_tensor() && x.rank() >= 2).then_some(x)
    };
    let (left, right) = (one("input")?, one(second)?);
    let (l, r) = (left.dims(), right.dims());
    let leading = l.len() - 2;
    let fits = l.len() == r.len() && l[..leading] == r[..leading] && l[leading + 1] == r[leading];
    // `mm` and `bmm` ask for their ranks themselves: those calls go to the float operator, which says so.
    let rank_fits = match call.operator.name {
        "mm" => leading == 0,
        "bmm" => leading == 1,
        _ => true,
    };
    (fits && rank_fits).then_some((left, right))
}

fn matmul(call: &Call<'_>) -> Result<Value> {
    let second = if call.operator.name == "matmul" { "other" } else { "mat2" };
    let Some((left, right)) = product(call, second) else { return Err(mismatch(call)) };
    let leading = left.rank() - 2;
    let batch: usize = left.dims()[..leading].iter().product();
    let (m, k, n) = (left.dims()[leading], right.dims()[leading], right.dims()[leading + 1]);
    let (l, r) = (left.codes()?.contiguous(), right.codes()?.contiguous());
    let l = CodeView::new(l.as_i8()?, [batch, m, k]).map_err(|error| wrong(call, &error))?;
    let r = CodeView::new(r.as_i8()?, [batch, k, n]).map_err(|error| wrong(call, &error))?;
    let mut out = vec![0.0; batch * m * n];
    integer_matmul(l, affine(left), r, affine(right), &mut out)
        .map_err(|error| wrong(call, &error))?;
    let mut shape = left.dims()[..leading].to_vec();
    shape.extend([m, n]);
    call.finish(Tensor::from_vec(out, shape, &Device::Cpu)?)
}

/// A kernel was called with arguments that its predicate does not accept.
fn mismatch(call: &Call<'_>) -> Error {
    Error::new(
        ErrorKind::Operator,
        format!("{}: the integer kernel does not take these arguments", call.operator.name),
    )
}
