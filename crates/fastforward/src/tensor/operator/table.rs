//! The operator table.

use candle_core::Tensor;

use crate::tensor::float;

use super::call::{Argument, Attribute, Call, Output, ValueOrNumber};
use super::spec::{OperandSpec, OperatorSpec, Role};

/// A second operand as a float operator takes it.
enum Other {
    Tensor(Tensor),
    Scalar(f64),
    Integer(i64),
}

impl<'a> From<&'a Other> for float::Operand<'a> {
    fn from(other: &'a Other) -> Self {
        match other {
            Other::Tensor(tensor) => Self::Tensor(tensor),
            Other::Scalar(number) => Self::Scalar(*number),
            Other::Integer(number) => Self::Integer(*number),
        }
    }
}

/// An operand as the call records it.
macro_rules! as_argument {
    (Quantized, $operand:ident) => {
        Argument::Value($operand)
    };
    (OptionalQuantized, $operand:ident) => {
        $operand.map_or(Argument::Absent, Argument::Value)
    };
    (MaybeQuantized, $operand:ident) => {
        $operand.map_or(Argument::Absent, Argument::Value)
    };
    (QuantizedOrNumber, $operand:ident) => {
        match $operand {
            ValueOrNumber::Value(value) => Argument::Value(value),
            ValueOrNumber::Number(number) => Argument::Number(number),
            ValueOrNumber::Integer(number) => Argument::Number(number as f64),
        }
    };
    (Sequence, $operand:ident) => {
        Argument::Sequence($operand)
    };
    (Plain, $operand:ident) => {
        Argument::Plain($operand)
    };
}

/// An operand before it is recorded.
macro_rules! received {
    (QuantizedOrNumber, $operand:ident) => {
        let $operand: ValueOrNumber<'a> = $operand.into();
    };
    ($role:ident, $operand:ident) => {};
}

/// The floats of an operand.
macro_rules! dequantized {
    (Quantized, $operand:ident) => {
        $operand.dequantize()?
    };
    (OptionalQuantized, $operand:ident) => {
        $operand.map(Value::dequantize).transpose()?
    };
    (MaybeQuantized, $operand:ident) => {
        $operand.map(Value::dequantize).transpose()?
    };
    (QuantizedOrNumber, $operand:ident) => {
        match $operand {
            ValueOrNumber::Value(value) => Other::Tensor(value.dequantize()?),
            ValueOrNumber::Number(number) => Other::Scalar(number),
            ValueOrNumber::Integer(number) => Other::Integer(number),
        }
    };
    (Sequence, $operand:ident) => {
        $operand.iter().map(Value::dequantize).collect::<Result<Vec<Tensor>>>()?
    };
    (Plain, $operand:ident) => {
        $operand
    };
}

/// The same as the float operator takes them.
macro_rules! borrowed {
    (OptionalQuantized, $operand:ident) => {
        $operand.as_ref()
    };
    (MaybeQuantized, $operand:ident) => {
        $operand.as_ref()
    };
    (Plain, $operand:ident) => {
        $operand
    };
    ($role:ident, $operand:ident) => {
        &$operand
    };
}

macro_rules! role_text {
    (Quantized) => {
        "quantized in strict mode"
    };
    (OptionalQuantized) => {
        "quantized in strict mode, if given"
    };
    (MaybeQuantized) => {
        "may be float, may be absent"
    };
    (QuantizedOrNumber) => {
        "a number, or quantized in strict mode"
    };
    (Sequence) => {
        "each quantized in strict mode"
    };
    (Plain) => {
        "a plain tensor"
    };
}

/// `name ["torch names"] (operands: roles; attributes: types) "summary" => float operator;`
macro_rules! operators {
    ($(
        $name:ident $origin:ident [$($torch:literal),*]
        ($($operand:ident: $role:ident),* $(; $($attribute:ident: $ty:ty),*)?)
        $summary:literal => $float:expr;
    )*) => {
        /// The operators: those of the reference (spec §5.5) and ours.
        pub static OPERATORS: &[OperatorSpec] = &[$(
            OperatorSpec {
                name: stringify!($name),
                summary: $summary,
                torch: &[$($torch),*],
                operands: &[$(OperandSpec { name: stringify!($operand), role: Role::$role }),*],
                attributes: &[$($(stringify!($attribute)),*)?],
                in_reference: operators!(@origin $origin),
            }
        ),*];

        /// The operators as functions on values, one per row of the [table](OPERATORS): operands, settings, then the output:
        /// a slot, or [`Output::none`].
        ///
        /// ```
        /// use candle_core::{Device, Tensor};
        /// use fastforward::nn::functional as F;
        /// use fastforward::quantization::QuantizerSlot;
        /// use fastforward::tensor::Value;
        ///
        /// let x = Value::from(Tensor::new(&[[1f32, -2.0]], &Device::Cpu)?);
        /// let output = QuantizerSlot::output();
        /// let error = F::relu(&x, &output).unwrap_err();
        /// assert!(error.to_string().starts_with("relu in strict mode: operand `input` is a float tensor of shape [1, 2]"));
        /// let _lenient = fastforward::flags::strict_quantization(false);
        /// assert_eq!(F::relu(&x, &output)?.dequantize()?.to_vec2::<f32>()?, [[1.0, 0.0]]);
        /// # Ok::<(), fastforward::tensor::Error>(())
        /// ```
        pub mod functional {
            use candle_core::DType;

            use super::*;
            use crate::tensor::float::{self, *};
            use crate::tensor::{Result, Value};

            $(
                #[doc = concat!($summary, ".\n\n")]
                $(#[doc = concat!("- `", stringify!($operand), "`: ", role_text!($role), "\n")])*
                $(#[doc = concat!("\nIn torch: `", $torch, "`.")])*
                ///
                /// # Errors
                /// [`ErrorKind::Strict`](crate::ErrorKind::Strict) as strict mode says,
                /// [`ErrorKind::Operator`](crate::ErrorKind::Operator) when shapes, settings or types do not fit, and what the
                /// output quantizer reports.
                #[allow(clippy::too_many_arguments, clippy::allow_attributes)]
                pub fn $name<'a>(
                    $($operand: operators!(@type $role, 'a),)*
                    $($($attribute: $ty,)*)?
                    output: impl Into<Output<'a>>,
                ) -> Result<Value> {
                    $(received!($role, $operand);)*
                    let arguments = [$(as_argument!($role, $operand)),*];
                    let attributes: &[&dyn Attribute] = &[$($(&$attribute),*)?];
                    let operator = &OPERATORS[Row::$name as usize];
                    let call = Call { operator, arguments: &arguments, attributes, output: output.into() };
                    call.run(|| {
                        $(let $operand = dequantized!($role, $operand);)*
                        $(let $operand = borrowed!($role, $operand);)*
                        $float
                    })
                }
            )*
        }

        /// The places of the rows.
        #[expect(non_camel_case_types, reason = "rows are named as their functions")]
        enum Row { $($name),* }
    };
    (@origin reference) => { true };
    (@origin ours) => { false };
    (@type Quantized, $a:lifetime) => { &$a Value };
    (@type OptionalQuantized, $a:lifetime) => { Option<&$a Value> };
    (@type MaybeQuantized, $a:lifetime) => { Option<&$a Value> };
    (@type QuantizedOrNumber, $a:lifetime) => { impl Into<ValueOrNumber<$a>> };
    (@type Sequence, $a:lifetime) => { &$a [Value] };
    (@type Plain, $a:lifetime) => { &$a Tensor };
}

operators! {
    linear reference ["F.linear"] (input: Quantized, weight: Quantized, bias: MaybeQuantized)
        "`input · weightᵀ + bias`, `[.., in]` and `[out, in]` to `[.., out]`" => float::linear(input, weight, bias);
    conv1d reference ["F.conv1d"] (input: Quantized, weight: Quantized, bias: MaybeQuantized; options: &Conv<1>)
        "Convolution of `[n, c, l]` with `[out, c / groups, k]`" => float::conv1d(input, weight, bias, options);
    conv2d reference ["F.conv2d"] (input: Quantized, weight: Quantized, bias: MaybeQuantized; options: &Conv<2>)
        "Convolution of `[n, c, h, w]` with `[out, c / groups, kh, kw]`" => float::conv2d(input, weight, bias, options);
    conv3d reference ["F.conv3d"] (input: Quantized, weight: Quantized, bias: MaybeQuantized; options: &Conv<3>)
        "Convolution of `[n, c, d, h, w]` with `[out, c / groups, kd, kh, kw]`" => float::conv3d(input, weight, bias, options);
    softmax reference ["F.softmax", "torch.softmax"] (input: Quantized; dim: isize, dtype: Option<DType>)
        "`exp(x) / Σ exp(x)` along an axis" => float::softmax(input, dim as i64, dtype);
    relu reference ["F.relu", "torch.relu"] (input: Quantized)
        "`max(x, 0)`" => float::relu(input);
    sigmoid reference ["F.sigmoid", "torch.sigmoid"] (input: Quantized)
        "`1 / (1 + exp(-x))`" => float::sigmoid(input);
    conv_transpose1d reference ["F.conv_transpose1d"]
        (input: Quantized, weight: Quantized, bias: MaybeQuantized; options: &ConvTranspose<1>)
        "Transposed convolution of `[n, c, l]` with `[c, out / groups, k]`" => float::conv_transpose1d(input, weight, bias, options);
    conv_transpose2d reference ["F.conv_transpose2d"]
        (input: Quantized, weight: Quantized, bias: MaybeQuantized; options: &ConvTranspose<2>)
        "Transposed convolution of `[n, c, h, w]` with `[c, out / groups, kh, kw]`" => float::conv_transpose2d(input, weight, bias, options);
    conv_transpose3d reference ["F.conv_transpose3d"]
        (input: Quantized, weight: Quantized, bias: MaybeQuantized; options: &ConvTranspose<3>)
        "Transposed convolution of `[n, c, d, h, w]` with `[c, out / groups, kd, kh, kw]`" => float::conv_transpose3d(input, weight, bias, options);
    avg_pool1d reference ["F.avg_pool1d"] (input: Quantized; options: &AvgPool<1>)
        "The mean of each window of `[n, c, l]`" => float::avg_pool1d(input, options);
    avg_pool2d reference ["F.avg_pool2d"] (input: Quantized; options: &AvgPool<2>)
        "The mean of each window of `[n, c, h, w]`" => float::avg_pool2d(input, options);
    avg_pool3d reference ["F.avg_pool3d"] (input: Quantized; options: &AvgPool<3>)
        "The mean of each window of `[n, c, d, h, w]`" => float::avg_pool3d(input, options);
    embedding reference ["F.embedding"] (input: Plain, weight: Quantized; options: &Embedding)
        "The rows of `weight` that `input` numbers" => float::embedding(input, weight, options);
    layer_norm reference ["F.layer_norm", "torch.layer_norm"]
        (input: Quantized, weight: OptionalQuantized, bias: MaybeQuantized; normalized_shape: Vec<usize>, eps: f64)
        "`(x - mean) / sqrt(variance + eps) · weight + bias` over the last axes" => float::layer_norm(input, &normalized_shape, weight, bias, eps);
    matmul reference ["torch.matmul"] (input: Quantized, other: Quantized)
        "The matrix product, broadcast over leading axes" => float::matmul(input, other);
    mm reference ["torch.mm"] (input: Quantized, mat2: Quantized)
        "The product of two matrices" => float::mm(input, mat2);
    bmm reference ["torch.bmm"] (input: Quantized, mat2: Quantized)
        "The products of two batches of matrices" => float::bmm(input, mat2);
    add reference ["torch.add"] (input: Quantized, other: QuantizedOrNumber; alpha: f64)
        "`input + alpha · other`" => float::add(input, other, alpha);
    sub reference ["torch.sub"] (input: Quantized, other: QuantizedOrNumber; alpha: f64)
        "`input - alpha · other`" => float::sub(input, other, alpha);
    mul reference ["torch.mul"] (input: Quantized, other: QuantizedOrNumber)
        "`input · other`" => float::mul(input, other);
    div reference ["torch.div"] (input: Quantized, other: QuantizedOrNumber)
        "`input / other`" => float::div(input, other);
    floor_divide reference ["torch.floor_divide"] (input: Quantized, other: QuantizedOrNumber)
        "`floor(input / other)`" => float::floor_divide(input, other);
    remainder reference ["torch.remainder"] (input: Quantized, other: QuantizedOrNumber)
        "`input - other · floor(input / other)`: the sign of `other`" => float::remainder(input, other);
    bitwise_left_shift reference ["torch.bitwise_left_shift"] (input: Quantized, other: QuantizedOrNumber)
        "`input << other`, on integers" => float::bitwise_left_shift(input, other);
    bitwise_right_shift reference ["torch.bitwise_right_shift"] (input: Quantized, other: QuantizedOrNumber)
        "`input >> other`, on integers" => float::bitwise_right_shift(input, other);
    pow reference ["torch.pow"] (input: Quantized, exponent: QuantizedOrNumber)
        "`input` to the power of `exponent`" => float::pow(input, exponent);
    sum reference ["torch.sum"] (input: Quantized; dim: Option<isize>)
        "The sum along an axis, or of everything" => float::sum(input, dim.map(|dim| dim as i64), false);
    bitwise_not reference ["torch.bitwise_not"] (input: Quantized)
        "`!input`, on integers" => float::bitwise_not(input);
    negative reference ["torch.negative", "torch.neg"] (input: Quantized)
        "`-input`" => float::negative(input);
    positive reference ["torch.positive"] (input: Quantized)
        "`input` as it is" => float::positive(input);
    bitwise_and reference ["torch.bitwise_and"] (input: Quantized, other: Quantized)
        "`input & other`, on integers" => float::bitwise_and(input, other);
    bitwise_or reference ["torch.bitwise_or"] (input: Quantized, other: Quantized)
        "`input | other`, on integers" => float::bitwise_or(input, other);
    bitwise_xor reference ["torch.bitwise_xor"] (input: Quantized, other: Quantized)
        "`input ^ other`, on integers" => float::bitwise_xor(input, other);
    silu reference ["F.silu"] (input: Quantized)
        "`x · sigmoid(x)`" => float::silu(input);
    gelu reference ["F.gelu"] (input: Quantized; approximate: GeluApproximation)
        "`x · Φ(x)`" => float::gelu(input, approximate);
    dropout reference ["F.dropout"] (input: Quantized; p: f64, training: bool, seed: u64)
        "Zeros at random, the rest times `1 / (1 - p)`; nothing outside of training" => float::dropout(input, p, training, seed);
    permute reference ["torch.permute"] (input: Quantized; dims: Vec<isize>)
        "The axes in another order" => float::permute(input, &dims.iter().map(|&dim| dim as i64).collect::<Vec<_>>());
    cat reference ["torch.cat", "torch.concat", "torch.concatenate"] (tensors: Sequence; dim: isize)
        "Tensors one after the other along an axis" => float::cat(&tensors.iter().collect::<Vec<_>>(), dim as i64);
    index_add reference ["torch.index_add"] (input: Quantized, index: Plain, source: Quantized; dim: isize, alpha: f64)
        "`input` with `alpha` times the slices of `source` added where `index` says" => float::index_add(input, dim as i64, index, source, alpha);
    cumsum reference ["torch.cumsum"] (input: Quantized; dim: isize)
        "Running sums along an axis" => float::cumsum(input, dim as i64);
    pad reference ["F.pad"] (input: Quantized; options: &Pad)
        "More elements at the ends of the last axes" => float::pad(input, options);
    max_pool2d reference ["F.max_pool2d"] (input: Quantized; options: &MaxPool2d)
        "The largest of each window of `[n, c, h, w]`" => float::max_pool2d(input, options);
    interpolate reference ["F.interpolate"] (input: Quantized; options: &Interpolate)
        "Another number of elements along the spatial axes" => float::interpolate(input, options);
    unfold reference ["F.unfold"] (input: Quantized; options: &Unfold)
        "The windows of `[n, c, h, w]` as columns, `[n, c · kh · kw, windows]`" => float::unfold(input, options);
    ones_like reference ["torch.ones_like"] (input: Quantized; dtype: Option<DType>)
        "Ones of the same shape" => float::ones_like(input, dtype);
    zeros_like reference ["torch.zeros_like"] (input: Quantized; dtype: Option<DType>)
        "Zeros of the same shape" => float::zeros_like(input, dtype);
    empty_like reference ["torch.empty_like"] (input: Quantized; dtype: Option<DType>)
        "A tensor of the same shape to be written over; it holds zeros" => float::empty_like(input, dtype);
    full_like reference ["torch.full_like"] (input: Quantized; fill_value: f64, dtype: Option<DType>)
        "One number, in the same shape" => float::full_like(input, fill_value, dtype);
    exp reference ["torch.exp"] (input: Quantized)
        "`e` to the power of `x`" => float::exp(input);
    sin reference ["torch.sin"] (input: Quantized)
        "The sine, `x` in radians" => float::sin(input);
    cos reference ["torch.cos"] (input: Quantized)
        "The cosine, `x` in radians" => float::cos(input);
    rms_norm reference ["F.rms_norm", "torch.rms_norm"]
        (input: Quantized, weight: OptionalQuantized; normalized_shape: Vec<usize>, eps: Option<f64>)
        "`x / sqrt(mean(x²) + eps) · weight` over the last axes" => float::rms_norm(input, &normalized_shape, weight, eps);
    tanh ours ["torch.tanh", "F.tanh"] (input: Quantized)
        "The hyperbolic tangent" => float::tanh(input);
    relu6 ours ["F.relu6"] (input: Quantized)
        "`min(max(x, 0), 6)`" => float::relu6(input);
    hardswish ours ["F.hardswish"] (input: Quantized)
        "`x · min(max(x + 3, 0), 6) / 6`" => float::hardswish(input);
    hardsigmoid ours ["F.hardsigmoid"] (input: Quantized)
        "`min(max(x + 3, 0), 6) / 6`" => float::hardsigmoid(input);
    leaky_relu ours ["F.leaky_relu"] (input: Quantized; negative_slope: f64)
        "`x`, or `negative_slope · x` below zero" => float::leaky_relu(input, negative_slope);
    log_softmax ours ["F.log_softmax", "torch.log_softmax"] (input: Quantized; dim: isize, dtype: Option<DType>)
        "`x - ln Σ exp(x)` along an axis" => float::log_softmax(input, dim as i64, dtype);
    group_norm ours ["F.group_norm", "torch.group_norm"]
        (input: Quantized, weight: OptionalQuantized, bias: MaybeQuantized; num_groups: usize, eps: f64)
        "Each group of channels of `[n, c, ..]` to mean 0 and variance 1, times `weight`, plus `bias`" => float::group_norm(input, num_groups, weight, bias, eps);
    batch_norm ours ["F.batch_norm", "torch.batch_norm"]
        (input: Quantized, mean: Plain, variance: Plain, weight: OptionalQuantized, bias: MaybeQuantized; eps: f64)
        "`(x - mean) / sqrt(variance + eps) · weight + bias` per channel of `[n, c, ..]`" => float::batch_norm(input, mean, variance, weight, bias, eps);
    adaptive_avg_pool2d ours ["F.adaptive_avg_pool2d"] (input: Quantized; output_size: &[Option<usize>; 2])
        "The means of as many windows as asked for" => float::adaptive_avg_pool2d(input, *output_size);
    mean ours ["torch.mean"] (input: Quantized; dim: Option<isize>)
        "The mean along an axis, or of everything" => float::mean(input, dim.map(|dim| dim as i64), false);
    rotary ours [] (input: Quantized, cos: Plain, sin: Plain; interleaved: bool)
        "Pairs of the last axis turned by an angle that grows with the position" => float::rotary(input, cos, sin, interleaved);
}
