//! The linear layer.

use candle_core::Tensor;
use candle_nn::VarBuilder;

use super::{Layer, Param, functional as F};
use crate::Module;
use crate::quantization::QuantizerSlot;
use crate::tensor::{Apply, Error, Result, Value};

/// `y = x · weightᵀ + bias`, with slots for input, weight, bias and output (spec §5.7).
///
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use candle_nn::{VarBuilder, VarMap};
/// use fastforward::nn::{Layer, Linear};
///
/// let weights = VarMap::new();
/// let layer = Linear::new(3, 2, true, VarBuilder::from_varmap(&weights, DType::F32, &Device::Cpu))?;
/// let _lenient = fastforward::flags::strict_quantization(false); // no quantizers yet
/// let y = layer.forward_tensor(&Tensor::zeros((5, 3), DType::F32, &Device::Cpu)?)?;
/// assert_eq!(y.dims(), [5, 2]);
/// # Ok::<(), fastforward::tensor::Error>(())
/// ```
#[derive(Module, Debug)]
#[module(class = fastforward::module::classes::linear())]
pub struct Linear {
    /// `[out, in]`
    pub weight: Param,
    /// `[out]`
    pub bias: Option<Param>,
    /// `activation/input`
    pub input_quantizer: QuantizerSlot,
    /// `parameter/weight`
    pub weight_quantizer: QuantizerSlot,
    /// `parameter/bias`; absent without a bias.
    pub bias_quantizer: Option<QuantizerSlot>,
    /// `activation/output`
    pub output_quantizer: QuantizerSlot,
}

impl Linear {
    /// A layer whose parameters come from, or are made by, a `VarBuilder`: `weight` and `bias`, initialized as in torch.
    ///
    /// # Errors
    /// [`ErrorKind::Tensor`](crate::ErrorKind::Tensor) when the builder has no such tensors of these shapes.
    pub fn new(
        in_features: usize,
        out_features: usize,
        bias: bool,
        vb: VarBuilder<'_>,
    ) -> Result<Self> {
        let bound = 1.0 / (in_features.max(1) as f64).sqrt();
        let uniform = candle_nn::Init::Uniform { lo: -bound, up: bound };
        let weight = vb.get_with_hints((out_features, in_features), "weight", uniform)?;
        let bias = bias.then(|| vb.get_with_hints(out_features, "bias", uniform)).transpose()?;
        Self::from_tensors(weight, bias)
    }

    /// A layer with these parameters.
    ///
    /// # Errors
    /// [`ErrorKind::Operator`](crate::ErrorKind::Operator) when the shapes are not `[out, in]` and `[out]`.
    pub fn from_tensors(weight: Tensor, bias: Option<Tensor>) -> Result<Self> {
        Self::from_params(weight.into(), bias.map(Param::new))
    }

    /// A layer with these parameters, which it may share with others.
    ///
    /// # Errors
    /// As for [`from_tensors`](Self::from_tensors).
    pub fn from_params(weight: Param, bias: Option<Param>) -> Result<Self> {
        let wrong = |what: &str, found: &[usize], expected: &str| {
            let text = format!("{what} has shape {found:?}, expected {expected}");
            Err(Error::operator("Linear", text))
        };
        let &[out, _] = weight.dims() else {
            return wrong("weight", weight.dims(), "[out, in]");
        };
        if let Some(bias) = &bias
            && bias.dims() != [out]
        {
            return wrong("bias", bias.dims(), &format!("[{out}]"));
        }
        Ok(Self {
            input_quantizer: QuantizerSlot::input(),
            weight_quantizer: QuantizerSlot::weight(weight.dims()),
            bias_quantizer: bias.as_ref().map(|bias| QuantizerSlot::bias(bias.dims())),
            output_quantizer: QuantizerSlot::output(),
            weight,
            bias,
        })
    }

    /// The same layer as one of candle's.
    ///
    /// # Errors
    /// As for [`from_tensors`](Self::from_tensors).
    pub fn from_candle(layer: &candle_nn::Linear) -> Result<Self> {
        Self::from_tensors(layer.weight().clone(), layer.bias().cloned())
    }
}

impl Layer for Linear {
    fn forward(&self, x: &Value) -> Result<Value> {
        self.forward_quantized(&self.input_quantizer.apply(x)?)
    }
}

impl Linear {
    /// The output for what has been through the input slot already.
    pub(super) fn forward_quantized(&self, x: &Value) -> Result<Value> {
        let weight = self.weight.quantized(&self.weight_quantizer)?;
        let bias = Param::quantized_option(self.bias.as_ref(), self.bias_quantizer.as_ref())?;
        F::linear(x, &weight, bias.as_ref(), &self.output_quantizer)
    }
}
