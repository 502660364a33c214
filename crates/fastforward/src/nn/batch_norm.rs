//! Normalization of channels by statistics of the training data.

mod fold;

use std::sync::{Mutex, PoisonError};

use candle_core::Tensor;
use candle_nn::VarBuilder;

use super::check::Problems;
use super::mode::Mode;
use super::norm::check_eps;
use super::{Layer, Param, functional as F};
use crate::Module;
use crate::quantization::QuantizerSlot;
use crate::tensor::float::{BatchStatistics, batch_norm_training};
use crate::tensor::operator::{Argument, Call, find};
use crate::tensor::{Apply, Error, Result, Value};

pub use fold::{FoldBatchNorm, fold_batch_norm};

/// The settings of [`BatchNorm`]; [`Default`] is torch's.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BatchNormOptions {
    /// Added to the variance.
    pub eps: f64,
    /// The weight of a batch in the running statistics, 0 to 1.
    pub momentum: f64,
    /// Whether there are weight and bias.
    pub affine: bool,
}

impl Default for BatchNormOptions {
    fn default() -> Self {
        Self { eps: 1e-5, momentum: 0.1, affine: true }
    }
}

/// `(x - mean) / sqrt(variance + eps) · weight + bias` for each channel of `[n, channels, ..]`, with any number of axes after
/// the channels; with slots for input, weight, bias and output.
///
/// In evaluation, the default, mean and variance are the running statistics. They are parameters of the model, so that they
/// are saved and loaded with it, but no gradient reaches them and they have no slots. In training they are those of the batch,
/// gradients flow through them, and the running ones become `(1 - momentum) · running + momentum · batch`, with the unbiased
/// variance. A layer trains where [`flags::training_mode`](crate::flags::training_mode) says so, unless its mode is
/// [fixed](Self::set_training), as it often is in quantization-aware training. Threads that train one model together each see
/// whole updates of the running statistics, in no fixed order.
///
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use candle_nn::{VarBuilder, VarMap};
/// use fastforward::flags;
/// use fastforward::nn::{BatchNorm, BatchNormOptions, Layer};
///
/// let weights = VarMap::new();
/// let vb = VarBuilder::from_varmap(&weights, DType::F32, &Device::Cpu);
/// let layer = BatchNorm::new(1, BatchNormOptions { momentum: 1.0, ..Default::default() }, vb)?;
/// let x = Tensor::new(&[[4f32], [8.0]], &Device::Cpu)?;
/// let _lenient = flags::strict_quantization(false); // no quantizers yet
/// {
///     let _training = flags::training_mode(true);
///     layer.forward_tensor(&x)?;
/// }
/// assert_eq!(layer.running_mean.tensor().to_vec1::<f32>()?, [6.0]);
/// assert_eq!(layer.running_var.tensor().to_vec1::<f32>()?, [8.0]);
/// # Ok::<(), fastforward::tensor::Error>(())
/// ```
#[derive(Module, Debug)]
#[module(class = fastforward::module::classes::batch_norm())]
pub struct BatchNorm {
    /// Settings.
    #[module(skip)]
    pub options: BatchNormOptions,
    /// `[channels]`
    pub weight: Option<Param>,
    /// `[channels]`
    pub bias: Option<Param>,
    /// `[channels]`; not learned.
    pub running_mean: Param,
    /// `[channels]`; not learned.
    pub running_var: Param,
    mode: Mode,
    /// Held while the running statistics are updated.
    #[module(skip)]
    update: Mutex<()>,
    /// `activation/input`
    pub input_quantizer: QuantizerSlot,
    /// `parameter/weight`; absent without a weight.
    pub weight_quantizer: Option<QuantizerSlot>,
    /// `parameter/bias`; absent without a bias.
    pub bias_quantizer: Option<QuantizerSlot>,
    /// `activation/output`
    pub output_quantizer: QuantizerSlot,
}

impl BatchNorm {
    /// A layer whose parameters come from, or are made by, a `VarBuilder`: `weight` of ones, `bias` of zeros, `running_mean`
    /// of zeros, `running_var` of ones. From a `VarMap` the running statistics are variables too; as no gradient reaches them,
    /// optimizers leave them alone.
    ///
    /// # Errors
    /// [`ErrorKind::Tensor`](crate::ErrorKind::Tensor) when the builder has no such tensors of these shapes, otherwise as for
    /// [`from_params`](Self::from_params).
    pub fn new(num_features: usize, options: BatchNormOptions, vb: VarBuilder<'_>) -> Result<Self> {
        use candle_nn::init::{ONE, ZERO};
        let get = |name: &str, init| vb.get_with_hints(num_features, name, init);
        let weight = options.affine.then(|| get("weight", ONE)).transpose()?;
        let bias = options.affine.then(|| get("bias", ZERO)).transpose()?;
        let (mean, variance) = (get("running_mean", ZERO)?, get("running_var", ONE)?);
        Self::from_tensors(weight, bias, mean, variance, options)
    }

    /// A layer with these parameters and running statistics.
    ///
    /// # Errors
    /// As for [`from_params`](Self::from_params).
    pub fn from_tensors(
        weight: Option<Tensor>,
        bias: Option<Tensor>,
        running_mean: Tensor,
        running_var: Tensor,
        options: BatchNormOptions,
    ) -> Result<Self> {
        let (weight, bias) = (weight.map(Param::new), bias.map(Param::new));
        Self::from_params(weight, bias, running_mean.into(), running_var.into(), options)
    }

    /// A layer with these parameters and running statistics, which it may share with others.
    ///
    /// # Errors
    /// [`ErrorKind::Operator`](crate::ErrorKind::Operator) when the shapes are not `[channels]`, settings are out of range, or
    /// `affine` and the parameters contradict each other.
    pub fn from_params(
        weight: Option<Param>,
        bias: Option<Param>,
        running_mean: Param,
        running_var: Param,
        options: BatchNormOptions,
    ) -> Result<Self> {
        let mut problems = Problems::new("BatchNorm");
        check_eps(&mut problems, options.eps);
        problems.check((0.0..=1.0).contains(&options.momentum), || {
            format!("momentum is {}, expected one in 0..=1", options.momentum)
        });
        let given = weight.is_some() || bias.is_some();
        problems.check(options.affine == given, || {
            let found = if given { "given" } else { "missing" };
            format!("affine is {}, but weight or bias are {found}", options.affine)
        });
        problems.check(running_mean.dims().len() == 1, || {
            format!("running_mean has shape {:?}, expected [channels]", running_mean.dims())
        });
        let channels = running_mean.dims();
        problems.shape("running_var", &running_var, channels);
        problems.shape("weight", &weight, channels);
        problems.shape("bias", &bias, channels);
        problems.stop()?;
        Ok(Self {
            options,
            mode: Mode::default(),
            update: Mutex::new(()),
            input_quantizer: QuantizerSlot::input(),
            weight_quantizer: weight.as_ref().map(|weight| QuantizerSlot::weight(weight.dims())),
            bias_quantizer: bias.as_ref().map(|bias| QuantizerSlot::bias(bias.dims())),
            output_quantizer: QuantizerSlot::output(),
            weight,
            bias,
            running_mean,
            running_var,
        })
    }

    /// The same layer as one of candle's.
    ///
    /// # Errors
    /// As for [`from_params`](Self::from_params).
    pub fn from_candle(layer: &candle_nn::BatchNorm) -> Result<Self> {
        let (weight, bias) = layer.weight_and_bias().unzip();
        let options = BatchNormOptions {
            eps: layer.eps(),
            momentum: layer.momentum(),
            affine: weight.is_some(),
        };
        let (mean, variance) = (layer.running_mean().clone(), layer.running_var().clone());
        Self::from_tensors(weight.cloned(), bias.cloned(), mean, variance, options)
    }

    /// Fixes whether the layer trains, or, with `None`, leaves it to the thread.
    pub fn set_training(&self, training: Option<bool>) {
        self.mode.set(training);
    }

    fn train(&self, x: &Value, weight: Option<&Value>, bias: Option<&Value>) -> Result<Value> {
        let (mean, variance) = (self.running_mean.tensor(), self.running_var.tensor());
        let optional = |value: Option<&Value>| value.map(Value::dequantize).transpose();
        let Some(operator) = find("batch_norm") else {
            return Err(Error::operator("batch_norm", "the table has no such operator"));
        };
        let arguments = [
            Argument::Value(x),
            Argument::Plain(&mean),
            Argument::Plain(&variance),
            optional_argument(weight),
            optional_argument(bias),
        ];
        let eps = self.options.eps;
        let output = (&self.output_quantizer).into();
        let call = Call { operator, arguments: &arguments, attributes: &[&eps], output };
        let mut found = None;
        let y = call.run_float(|| {
            let (weight, bias) = (optional(weight)?, optional(bias)?);
            let x = x.dequantize()?;
            let (y, batch) = batch_norm_training(&x, weight.as_ref(), bias.as_ref(), eps)?;
            found = Some(batch);
            Ok(y)
        })?;
        if let Some(batch) = found {
            self.update(&batch)?;
        }
        Ok(y)
    }

    fn update(&self, batch: &BatchStatistics) -> Result<()> {
        let _one_at_a_time = self.update.lock().unwrap_or_else(PoisonError::into_inner);
        let momentum = self.options.momentum;
        let mixed = |running: &Param, batch: &Tensor| -> Result<Tensor> {
            let batch = batch.to_dtype(running.dtype())?;
            Ok(((running.tensor().detach() * (1.0 - momentum))? + (batch * momentum)?)?)
        };
        let mean = mixed(&self.running_mean, &batch.mean)?;
        let variance = mixed(&self.running_var, &batch.variance)?;
        self.running_mean.set(&mean)?;
        self.running_var.set(&variance)
    }
}

fn optional_argument(value: Option<&Value>) -> Argument<'_> {
    value.map_or(Argument::Absent, Argument::Value)
}

impl Layer for BatchNorm {
    fn forward(&self, x: &Value) -> Result<Value> {
        let x = self.input_quantizer.apply(x)?;
        let weight = Param::quantized_option(self.weight.as_ref(), self.weight_quantizer.as_ref())?;
        let bias = Param::quantized_option(self.bias.as_ref(), self.bias_quantizer.as_ref())?;
        let (weight, bias) = (weight.as_ref(), bias.as_ref());
        if self.mode.is_training() {
            return self.train(&x, weight, bias);
        }
        let mean = self.running_mean.tensor().detach();
        let variance = self.running_var.tensor().detach();
        F::batch_norm(&x, &mean, &variance, weight, bias, self.options.eps, &self.output_quantizer)
    }
}
