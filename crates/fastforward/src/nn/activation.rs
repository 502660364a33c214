//! Activations: functions of each element, and softmax.

use candle_nn::Activation;

use super::setting::layers_with_a_setting;
use super::{Layer, functional as F};
use crate::Module;
use crate::quantization::QuantizerSlot;
use crate::tensor::float::GeluApproximation;
use crate::tensor::{Apply, Error, Result, Value};

/// Defines activations that have no settings. A row reads: documentation, name, class, operator.
macro_rules! activations {
    ($($(#[$doc:meta])* $name:ident, $class:ident, $operator:ident;)*) => { $(
        $(#[$doc])*
        #[derive(Module, Debug)]
        #[module(class = fastforward::module::classes::$class())]
        pub struct $name {
            /// `activation/input`
            pub input_quantizer: QuantizerSlot,
            /// `activation/output`
            pub output_quantizer: QuantizerSlot,
        }

        impl $name {
            /// The activation with empty slots.
            pub fn new() -> Self {
                Self {
                    input_quantizer: QuantizerSlot::input(),
                    output_quantizer: QuantizerSlot::output(),
                }
            }
        }

        impl Default for $name {
            fn default() -> Self {
                Self::new()
            }
        }

        impl Layer for $name {
            fn forward(&self, x: &Value) -> Result<Value> {
                F::$operator(&self.input_quantizer.apply(x)?, &self.output_quantizer)
            }
        }
    )* };
}

activations! {
    /// `max(x, 0)`, with slots for input and output (spec §5.7).
    ///
    /// ```
    /// use candle_core::{Device, Tensor};
    /// use fastforward::nn::{Layer, ReLU};
    ///
    /// let _lenient = fastforward::flags::strict_quantization(false); // no quantizers yet
    /// let y = ReLU::new().forward_tensor(&Tensor::new(&[-1f32, 2.0], &Device::Cpu)?)?;
    /// assert_eq!(y.dequantize()?.to_vec1::<f32>()?, [0.0, 2.0]);
    /// # Ok::<(), fastforward::tensor::Error>(())
    /// ```
    ReLU, relu, relu;
    /// `min(max(x, 0), 6)`, with slots for input and output.
    ReLU6, relu6, relu6;
    /// `x · sigmoid(x)`, with slots for input and output (spec §5.7).
    SiLU, silu, silu;
    /// `1 / (1 + exp(-x))`, with slots for input and output.
    Sigmoid, sigmoid, sigmoid;
    /// The hyperbolic tangent, with slots for input and output.
    Tanh, tanh, tanh;
    /// `x · relu6(x + 3) / 6`, with slots for input and output.
    Hardswish, hardswish, hardswish;
    /// `relu6(x + 3) / 6`, with slots for input and output.
    Hardsigmoid, hardsigmoid, hardsigmoid;
}

layers_with_a_setting! {
    /// `x · Φ(x)` for the standard normal distribution `Φ`, with slots for input and output.
    ///
    /// By default `Φ` is computed by the error function, as in torch.
    GELU, gelu, gelu(*approximate);
    /// How `Φ` is computed.
    approximate: GeluApproximation;

    /// `x`, or `negative_slope · x` below zero, with slots for input and output.
    ///
    /// By default the slope is 0.01, as in torch.
    LeakyReLU, leaky_relu, leaky_relu(*negative_slope);
    /// The slope below zero.
    negative_slope: f64;

    /// `exp(x) / Σ exp(x)` along an axis, with slots for input and output.
    ///
    /// ```
    /// use candle_core::{Device, Tensor};
    /// use fastforward::nn::{Layer, Softmax};
    ///
    /// let _lenient = fastforward::flags::strict_quantization(false); // no quantizers yet
    /// let y = Softmax::new(-1).forward_tensor(&Tensor::new(&[[5f32, 5.0]], &Device::Cpu)?)?;
    /// assert_eq!(y.dequantize()?.to_vec2::<f32>()?, [[0.5, 0.5]]);
    /// # Ok::<(), fastforward::tensor::Error>(())
    /// ```
    Softmax, softmax, softmax(*dim, None);
    /// The axis, counted from the end if negative.
    dim: isize;
}

impl Default for GELU {
    fn default() -> Self {
        Self::new(GeluApproximation::None)
    }
}

impl Default for LeakyReLU {
    fn default() -> Self {
        Self::new(0.01)
    }
}

/// The layer for one of candle's activations, which configurations of models name.
///
/// ```
/// use fastforward::nn::activation_from_candle;
/// let layer = activation_from_candle(candle_nn::Activation::Swish)?;
/// assert_eq!(layer.class().name(), "SiLU");
/// # Ok::<(), fastforward::tensor::Error>(())
/// ```
///
/// # Errors
/// [`ErrorKind::Operator`](crate::ErrorKind::Operator) for those that there is no layer for: `Relu2`, `Swiglu`, `Mish`, `Elu`.
pub fn activation_from_candle(activation: Activation) -> Result<Box<dyn Layer>> {
    Ok(match activation {
        Activation::Gelu => Box::new(GELU::default()),
        Activation::NewGelu | Activation::GeluPytorchTanh => {
            Box::new(GELU::new(GeluApproximation::Tanh))
        }
        Activation::Relu => Box::new(ReLU::new()),
        Activation::Relu6 => Box::new(ReLU6::new()),
        Activation::Silu | Activation::Swish => Box::new(SiLU::new()),
        Activation::Sigmoid => Box::new(Sigmoid::new()),
        Activation::HardSigmoid => Box::new(Hardsigmoid::new()),
        Activation::HardSwish => Box::new(Hardswish::new()),
        Activation::LeakyRelu(negative_slope) => Box::new(LeakyReLU::new(negative_slope)),
        Activation::Relu2 | Activation::Swiglu | Activation::Mish | Activation::Elu(_) => {
            let what = format!("there is no layer for candle's `{activation:?}`");
            return Err(Error::operator("activation_from_candle", what));
        }
    })
}
