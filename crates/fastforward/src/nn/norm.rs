//! Normalization by statistics of the sample itself.

use candle_core::Tensor;
use candle_nn::VarBuilder;

use super::check::Problems;
use super::{Layer, Param, functional as F};
use crate::Module;
use crate::quantization::QuantizerSlot;
use crate::tensor::{Apply, Error, Result, Value};

/// `(x - mean) / sqrt(variance + eps) · weight + bias` over the last axes, with slots for input, weight, bias and output
/// (spec §5.7).
///
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use candle_nn::{VarBuilder, VarMap};
/// use fastforward::nn::{Layer, LayerNorm};
///
/// let weights = VarMap::new();
/// let vb = VarBuilder::from_varmap(&weights, DType::F32, &Device::Cpu);
/// let layer = LayerNorm::new(&[2], 1e-5, true, vb)?;
/// let _lenient = fastforward::flags::strict_quantization(false); // no quantizers yet
/// let y = layer.forward_tensor(&Tensor::new(&[[1f32, 3.0]], &Device::Cpu)?)?.dequantize()?;
/// assert!((y.to_vec2::<f32>()?[0][1] - 1.0).abs() < 1e-5);
/// # Ok::<(), fastforward::tensor::Error>(())
/// ```
#[derive(Module, Debug)]
#[module(class = fastforward::module::classes::layer_norm())]
pub struct LayerNorm {
    /// The extents of the axes that are normalized over.
    pub normalized_shape: Vec<usize>,
    /// Added to the variance.
    pub eps: f64,
    /// `normalized_shape`
    pub weight: Option<Param>,
    /// `normalized_shape`
    pub bias: Option<Param>,
    /// `activation/input`
    pub input_quantizer: QuantizerSlot,
    /// `parameter/weight`; absent without a weight.
    pub weight_quantizer: Option<QuantizerSlot>,
    /// `parameter/bias`; absent without a bias.
    pub bias_quantizer: Option<QuantizerSlot>,
    /// `activation/output`
    pub output_quantizer: QuantizerSlot,
}

impl LayerNorm {
    /// A layer whose parameters come from, or are made by, a `VarBuilder`: `weight`, of ones, and `bias`, of zeros. torch's
    /// `eps` is `1e-5`.
    ///
    /// # Errors
    /// [`ErrorKind::Tensor`](crate::ErrorKind::Tensor) when the builder has no such tensors of these shapes, otherwise as for
    /// [`from_params`](Self::from_params).
    pub fn new(
        normalized_shape: &[usize],
        eps: f64,
        bias: bool,
        vb: VarBuilder<'_>,
    ) -> Result<Self> {
        let weight = vb.get_with_hints(normalized_shape, "weight", candle_nn::init::ONE)?;
        let bias = bias
            .then(|| vb.get_with_hints(normalized_shape, "bias", candle_nn::init::ZERO))
            .transpose()?;
        Self::from_tensors(normalized_shape, Some(weight), bias, eps)
    }

    /// A layer with these parameters.
    ///
    /// # Errors
    /// As for [`from_params`](Self::from_params).
    pub fn from_tensors(
        normalized_shape: &[usize],
        weight: Option<Tensor>,
        bias: Option<Tensor>,
        eps: f64,
    ) -> Result<Self> {
        Self::from_params(normalized_shape, weight.map(Param::new), bias.map(Param::new), eps)
    }

    /// A layer with these parameters, which it may share with others.
    ///
    /// # Errors
    /// [`ErrorKind::Operator`](crate::ErrorKind::Operator) when a parameter is not of shape `normalized_shape`, or that has
    /// no axes.
    pub fn from_params(
        normalized_shape: &[usize],
        weight: Option<Param>,
        bias: Option<Param>,
        eps: f64,
    ) -> Result<Self> {
        let mut problems = Problems::new("LayerNorm");
        check_normalized(&mut problems, normalized_shape, eps);
        problems.shape("weight", &weight, normalized_shape);
        problems.shape("bias", &bias, normalized_shape);
        problems.stop()?;
        Ok(Self {
            normalized_shape: normalized_shape.to_vec(),
            eps,
            input_quantizer: QuantizerSlot::input(),
            weight_quantizer: weight.as_ref().map(|weight| QuantizerSlot::weight(weight.dims())),
            bias_quantizer: bias.as_ref().map(|bias| QuantizerSlot::bias(bias.dims())),
            output_quantizer: QuantizerSlot::output(),
            weight,
            bias,
        })
    }

    /// The same layer as one of candle's.
    ///
    /// # Errors
    /// [`ErrorKind::Operator`](crate::ErrorKind::Operator) when that one does not remove the mean: it is an [`RmsNorm`].
    pub fn from_candle(layer: &candle_nn::LayerNorm) -> Result<Self> {
        if !layer.remove_mean() {
            let what =
                "the candle layer does not remove the mean; `RmsNorm` is the layer that does not";
            return Err(Error::operator("LayerNorm", what));
        }
        let (weight, bias) = (layer.weight().clone(), layer.bias().cloned());
        let normalized_shape = weight.dims().to_vec();
        Self::from_tensors(&normalized_shape, Some(weight), bias, layer.eps())
    }
}

impl Layer for LayerNorm {
    fn forward(&self, x: &Value) -> Result<Value> {
        let x = self.input_quantizer.apply(x)?;
        let weight = Param::quantized_option(self.weight.as_ref(), self.weight_quantizer.as_ref())?;
        let bias = Param::quantized_option(self.bias.as_ref(), self.bias_quantizer.as_ref())?;
        let shape = self.normalized_shape.clone();
        F::layer_norm(&x, weight.as_ref(), bias.as_ref(), shape, self.eps, &self.output_quantizer)
    }
}

/// `x / sqrt(mean(x²) + eps) · weight` over the last axes, with slots for input, weight and output.
///
/// ```
/// use candle_core::{Device, Tensor};
/// use fastforward::nn::{Layer, RmsNorm};
///
/// let weight = Tensor::new(&[1f32, 10.0], &Device::Cpu)?;
/// let layer = RmsNorm::from_tensors(&[2], Some(weight), Some(0.0))?;
/// let _lenient = fastforward::flags::strict_quantization(false); // no quantizers yet
/// let y = layer.forward_tensor(&Tensor::new(&[[3f32, 3.0]], &Device::Cpu)?)?;
/// assert_eq!(y.dequantize()?.to_vec2::<f32>()?, [[1.0, 10.0]]);
/// # Ok::<(), fastforward::tensor::Error>(())
/// ```
#[derive(Module, Debug)]
#[module(class = fastforward::module::classes::rms_norm())]
pub struct RmsNorm {
    /// The extents of the axes that are normalized over.
    pub normalized_shape: Vec<usize>,
    /// Added to the mean of the squares; `None` is the distance from 1 to the next number of the type computed in.
    pub eps: Option<f64>,
    /// `normalized_shape`
    pub weight: Option<Param>,
    /// `activation/input`
    pub input_quantizer: QuantizerSlot,
    /// `parameter/weight`; absent without a weight.
    pub weight_quantizer: Option<QuantizerSlot>,
    /// `activation/output`
    pub output_quantizer: QuantizerSlot,
}

impl RmsNorm {
    /// A layer whose parameter comes from, or is made by, a `VarBuilder`: `weight`, of ones. torch's `eps` is `None`.
    ///
    /// # Errors
    /// [`ErrorKind::Tensor`](crate::ErrorKind::Tensor) when the builder has no such tensor of this shape, otherwise as for
    /// [`from_params`](Self::from_params).
    pub fn new(normalized_shape: &[usize], eps: Option<f64>, vb: VarBuilder<'_>) -> Result<Self> {
        let weight = vb.get_with_hints(normalized_shape, "weight", candle_nn::init::ONE)?;
        Self::from_tensors(normalized_shape, Some(weight), eps)
    }

    /// A layer with this parameter.
    ///
    /// # Errors
    /// As for [`from_params`](Self::from_params).
    pub fn from_tensors(
        normalized_shape: &[usize],
        weight: Option<Tensor>,
        eps: Option<f64>,
    ) -> Result<Self> {
        Self::from_params(normalized_shape, weight.map(Param::new), eps)
    }

    /// A layer with this parameter, which it may share with others.
    ///
    /// # Errors
    /// [`ErrorKind::Operator`](crate::ErrorKind::Operator) when the weight is not of shape `normalized_shape`, or that has no
    /// axes.
    pub fn from_params(
        normalized_shape: &[usize],
        weight: Option<Param>,
        eps: Option<f64>,
    ) -> Result<Self> {
        let mut problems = Problems::new("RmsNorm");
        check_normalized(&mut problems, normalized_shape, eps.unwrap_or(0.0));
        problems.shape("weight", &weight, normalized_shape);
        problems.stop()?;
        Ok(Self {
            normalized_shape: normalized_shape.to_vec(),
            eps,
            input_quantizer: QuantizerSlot::input(),
            weight_quantizer: weight.as_ref().map(|weight| QuantizerSlot::weight(weight.dims())),
            output_quantizer: QuantizerSlot::output(),
            weight,
        })
    }

    /// The same layer as one of candle's.
    ///
    /// # Errors
    /// As for [`from_params`](Self::from_params).
    pub fn from_candle(layer: &candle_nn::RmsNorm) -> Result<Self> {
        let normalized_shape = layer.weight().dims().to_vec();
        Self::from_tensors(&normalized_shape, Some(layer.weight().clone()), Some(layer.eps()))
    }
}

impl Layer for RmsNorm {
    fn forward(&self, x: &Value) -> Result<Value> {
        let x = self.input_quantizer.apply(x)?;
        let weight = Param::quantized_option(self.weight.as_ref(), self.weight_quantizer.as_ref())?;
        let shape = self.normalized_shape.clone();
        F::rms_norm(&x, weight.as_ref(), shape, self.eps, &self.output_quantizer)
    }
}

/// [`LayerNorm`] over groups of the channels of `[n, channels, ..]`, with slots for input, weight, bias and output; weight
/// and bias have an element for each channel.
#[derive(Module, Debug)]
#[module(class = fastforward::module::classes::group_norm())]
pub struct GroupNorm {
    /// How many groups the channels make.
    pub num_groups: usize,
    /// How many channels the input has.
    pub num_channels: usize,
    /// Added to the variance.
    pub eps: f64,
    /// `[channels]`
    pub weight: Option<Param>,
    /// `[channels]`
    pub bias: Option<Param>,
    /// `activation/input`
    pub input_quantizer: QuantizerSlot,
    /// `parameter/weight`; absent without a weight.
    pub weight_quantizer: Option<QuantizerSlot>,
    /// `parameter/bias`; absent without a bias.
    pub bias_quantizer: Option<QuantizerSlot>,
    /// `activation/output`
    pub output_quantizer: QuantizerSlot,
}

impl GroupNorm {
    /// A layer whose parameters come from, or are made by, a `VarBuilder`: `weight`, of ones, and `bias`, of zeros. torch's
    /// `eps` is `1e-5`.
    ///
    /// # Errors
    /// [`ErrorKind::Tensor`](crate::ErrorKind::Tensor) when the builder has no such tensors of these shapes, otherwise as for
    /// [`from_params`](Self::from_params).
    pub fn new(
        num_groups: usize,
        num_channels: usize,
        eps: f64,
        vb: VarBuilder<'_>,
    ) -> Result<Self> {
        let weight = vb.get_with_hints(num_channels, "weight", candle_nn::init::ONE)?;
        let bias = vb.get_with_hints(num_channels, "bias", candle_nn::init::ZERO)?;
        Self::from_tensors(num_groups, num_channels, Some(weight), Some(bias), eps)
    }

    /// A layer with these parameters.
    ///
    /// # Errors
    /// As for [`from_params`](Self::from_params).
    pub fn from_tensors(
        num_groups: usize,
        num_channels: usize,
        weight: Option<Tensor>,
        bias: Option<Tensor>,
        eps: f64,
    ) -> Result<Self> {
        let (weight, bias) = (weight.map(Param::new), bias.map(Param::new));
        Self::from_params(num_groups, num_channels, weight, bias, eps)
    }

    /// A layer with these parameters, which it may share with others.
    ///
    /// # Errors
    /// [`ErrorKind::Operator`](crate::ErrorKind::Operator) when the groups do not divide the channels, or a parameter is not
    /// `[channels]`.
    pub fn from_params(
        num_groups: usize,
        num_channels: usize,
        weight: Option<Param>,
        bias: Option<Param>,
        eps: f64,
    ) -> Result<Self> {
        let mut problems = Problems::new("GroupNorm");
        problems.check(num_groups > 0 && num_channels.is_multiple_of(num_groups), || {
            format!("{num_groups} groups do not divide {num_channels} channels")
        });
        check_eps(&mut problems, eps);
        problems.shape("weight", &weight, &[num_channels]);
        problems.shape("bias", &bias, &[num_channels]);
        problems.stop()?;
        Ok(Self {
            num_groups,
            num_channels,
            eps,
            input_quantizer: QuantizerSlot::input(),
            weight_quantizer: weight.as_ref().map(|weight| QuantizerSlot::weight(weight.dims())),
            bias_quantizer: bias.as_ref().map(|bias| QuantizerSlot::bias(bias.dims())),
            output_quantizer: QuantizerSlot::output(),
            weight,
            bias,
        })
    }
}

impl Layer for GroupNorm {
    fn forward(&self, x: &Value) -> Result<Value> {
        let x = self.input_quantizer.apply(x)?;
        let weight = Param::quantized_option(self.weight.as_ref(), self.weight_quantizer.as_ref())?;
        let bias = Param::quantized_option(self.bias.as_ref(), self.bias_quantizer.as_ref())?;
        let (weight, bias) = (weight.as_ref(), bias.as_ref());
        F::group_norm(&x, weight, bias, self.num_groups, self.eps, &self.output_quantizer)
    }
}

fn check_normalized(problems: &mut Problems, normalized_shape: &[usize], eps: f64) {
    problems.check(!normalized_shape.is_empty(), || {
        "the normalized shape has no axes, expected at least one".to_owned()
    });
    check_eps(problems, eps);
}

pub(super) fn check_eps(problems: &mut Problems, eps: f64) {
    problems.check(eps >= 0.0, || format!("eps is {eps}, expected a number that is not negative"));
}
