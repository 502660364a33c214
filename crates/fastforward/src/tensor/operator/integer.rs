//! Products of 8-bit codes in integers, exact until they are scaled.
//!
//! A kernel here runs when [integer execution](crate::flags::integer_execution_mode) is on, nothing records gradients, both
//! operands are quantized to at most 8 bits, the input on one scale and the weight on one or one per output channel, and no
//! batch of parameters is left out. The result differs from the product of the dequantized operands by rounding only, within
//! [`ff_kernels::simulation_bound`].

use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use ff_kernels::{
    Affine, CodeView, ConvWindow, KernelError, MAX_OFFSET, integer_conv, integer_linear,
    integer_linear_codes, integer_matmul, integer_matmul_codes,
};

use super::call::{Argument, Call};
use super::codes::OutputGrid;
use super::dispatch::{Kernel, Predicate};
use crate::flags;
use crate::tensor::float::{Conv, Padding};
use crate::tensor::{Error, QuantizedTensor, Result, Value};

/// The operators, when their kernels run, and the kernels.
pub(super) fn built_in() -> Vec<(&'static str, Predicate, Kernel)> {
    let kernel = |f: fn(&Call<'_>) -> Result<Value>| -> Kernel { Arc::new(f) };
    vec![
        ("linear", Predicate::new(|call| weighted(call).is_some()), kernel(linear)),
        ("conv1d", Predicate::new(|call| windows(call).is_some()), kernel(conv)),
        ("conv2d", Predicate::new(|call| windows(call).is_some()), kernel(conv)),
        ("matmul", Predicate::new(|call| product(call, "other").is_some()), kernel(matmul)),
        ("mm", Predicate::new(|call| product(call, "mat2").is_some()), kernel(matmul)),
        ("bmm", Predicate::new(|call| product(call, "mat2").is_some()), kernel(matmul)),
    ]
}

/// The fewest rows for which packing the right side of a product pays.
const MIN_ROWS: usize = 8;

/// Whether a tensor can be an operand of an integer product.
pub(super) fn is_integer(x: &QuantizedTensor) -> bool {
    let parameters = x.context().parameters();
    let offsets = parameters.offset.iter().flatten();
    x.num_bits() <= 8
        && x.dtype() == DType::F32
        && x.device().is_cpu()
        && !x.track_op()
        && offsets.fold(0.0, |most: f32, offset| most.max(offset.abs())) < MAX_OFFSET
}

/// Whether integers may be used and strict mode has nothing to say.
pub(super) fn is_wanted(call: &Call<'_>) -> bool {
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
    if weight.rank() < 2 {
        return None;
    }
    let bias = match call.argument("bias") {
        Argument::Value(bias) if bias.track_op() || bias.dtype() != DType::F32 => return None,
        // What does not fit is the float operator's, which says so.
        Argument::Value(bias) if bias.dims() != &weight.dims()[..1] => return None,
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
    let Some(operands) = weighted(call) else { return Err(call.mismatch()) };
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
    let mut shape = outer.to_vec();
    shape.push(n_out);
    let (x_affine, w_affine, bias) = (affine(input), affine(operands.weight), bias.as_deref());
    if let Some(to) = OutputGrid::of(call) {
        let mut out = vec![0; rows * n_out];
        let nan =
            integer_linear_codes(view, x_affine, weight, w_affine, bias, &to.uniform, &mut out);
        if !nan.map_err(|error| wrong(call, &error))? {
            return to.tensor(out, &shape);
        }
    }
    let mut out = vec![0.0; rows * n_out];
    integer_linear(view, x_affine, weight, w_affine, bias, &mut out)
        .map_err(|error| wrong(call, &error))?;
    call.finish(Tensor::from_vec(out, shape, &Device::Cpu)?)
}

/// A convolution over one or two axes, seen as one over two.
struct Windows<'a> {
    operands: Weighted<'a>,
    window: ConvWindow,
    groups: usize,
    /// `[n, c, h, w]` and `[out, c / groups, kh, kw]`
    shapes: [[usize; 4]; 2],
}

fn windows<'a>(call: &Call<'a>) -> Option<Windows<'a>> {
    let operands = weighted(call)?;
    let (one, two) = (call.attribute::<Conv<1>>("options"), call.attribute::<Conv<2>>("options"));
    let (stride, padding, dilation, groups) = match (one, two) {
        (Some(one), _) => {
            let padding = match one.padding {
                Padding::Explicit([p]) => Some([0, p]),
                Padding::Valid => Some([0, 0]),
                Padding::Same => None,
            };
            ([1, one.stride[0]], padding, [1, one.dilation[0]], one.groups)
        }
        (None, Some(two)) => {
            let padding = match two.padding {
                Padding::Explicit(padding) => Some(padding),
                Padding::Valid => Some([0, 0]),
                Padding::Same => None,
            };
            (two.stride, padding, two.dilation, two.groups)
        }
        (None, None) => return None,
    };
    // Inputs without a batch axis, and whatever does not fit, are the float operator's: it knows what to say.
    let four = |dims: &[usize]| match *dims {
        [a, b, w] if one.is_some() => Some([a, b, 1, w]),
        [a, b, h, w] if one.is_none() => Some([a, b, h, w]),
        _ => None,
    };
    let shapes = [four(operands.input.dims())?, four(operands.weight.dims())?];
    let [[_, c, h, w], [out, depth, kh, kw]] = shapes;
    let padding = padding.or_else(|| {
        // As many zeros as keep the size, the odd one at the end.
        (stride == [1, 1]).then_some([usize::MAX; 2])
    })?;
    let around = |axis: usize, kernel: usize| match padding[axis] {
        usize::MAX => {
            let all = dilation[axis] * kernel.saturating_sub(1);
            [all / 2, all - all / 2]
        }
        padding => [padding, padding],
    };
    let window = ConvWindow { stride, padding: [around(0, kh), around(1, kw)], dilation };
    let fits = groups > 0 && c == depth * groups && out.is_multiple_of(groups);
    let has_output = window.output_size([h, w], [kh, kw]).is_ok();
    (fits && has_output).then_some(Windows { operands, window, groups, shapes })
}

fn conv(call: &Call<'_>) -> Result<Value> {
    let Some(Windows { operands, window, groups, shapes: [x_shape, w_shape] }) = windows(call)
    else {
        return Err(call.mismatch());
    };
    let fail = |error: KernelError| wrong(call, &error);
    let filter = operands.weight.packed_filter(w_shape, groups)?;
    let codes = operands.input.codes()?.contiguous();
    let x = CodeView::new(codes.as_i8()?, x_shape).map_err(fail)?;
    let [n, _, h, w] = x_shape;
    let [out_channels, _, kh, kw] = w_shape;
    let [out_h, out_w] = window.output_size([h, w], [kh, kw]).map_err(fail)?;
    let mut out = vec![0.0; n * out_channels * out_h * out_w];
    let bias = operands.bias()?;
    let (x_affine, w_affine) = (affine(operands.input), affine(operands.weight));
    integer_conv(x, x_affine, &filter, w_affine, window, bias.as_deref(), &mut out)
        .map_err(fail)?;
    let shape = match operands.input.rank() {
        3 => vec![n, out_channels, out_w],
        _ => vec![n, out_channels, out_h, out_w],
    };
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
    // A product of few rows is dearer to pack than to compute.
    let worth = l[leading] >= MIN_ROWS;
    let fits =
        worth && l.len() == r.len() && l[..leading] == r[..leading] && l[leading + 1] == r[leading];
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
    let Some((left, right)) = product(call, second) else { return Err(call.mismatch()) };
    let leading = left.rank() - 2;
    let batch: usize = left.dims()[..leading].iter().product();
    let (m, k, n) = (left.dims()[leading], right.dims()[leading], right.dims()[leading + 1]);
    let (l, r) = (left.codes()?.matrices()?, right.codes()?.matrices()?);
    let view = |codes, shape, strides| {
        CodeView::strided(codes, shape, strides).map_err(|error| wrong(call, &error))
    };
    let (l, r) = (view(&l.0, [batch, m, k], l.1)?, view(&r.0, [batch, k, n], r.1)?);
    let mut shape = left.dims()[..leading].to_vec();
    shape.extend([m, n]);
    if let Some(to) = OutputGrid::of(call) {
        let mut out = vec![0; batch * m * n];
        let nan = integer_matmul_codes(l, affine(left), r, affine(right), &to.uniform, &mut out);
        if !nan.map_err(|error| wrong(call, &error))? {
            return to.tensor(out, &shape);
        }
    }
    let mut out = vec![0.0; batch * m * n];
    integer_matmul(l, affine(left), r, affine(right), &mut out)
        .map_err(|error| wrong(call, &error))?;
    call.finish(Tensor::from_vec(out, shape, &Device::Cpu)?)
}
