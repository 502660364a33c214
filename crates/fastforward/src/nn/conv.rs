//! Convolutions and their transposes.

use candle_core::Tensor;
use candle_nn::{Init, VarBuilder};

use super::check::Problems;
use super::{Layer, Param, functional as F};
use crate::Module;
use crate::quantization::QuantizerSlot;
use crate::tensor::float::{Conv, ConvTranspose, Padding};
use crate::tensor::{Apply, Result, Value};

/// What the settings of a convolution and of a transposed one have in common, as far as layers need it.
trait Settings<const N: usize> {
    /// The axis of the weight that counts output channels.
    const OUT_AXIS: usize = 0;

    /// The shape of the weight.
    fn weight_shape(&self, channels: [usize; 2], kernel_size: [usize; N]) -> Vec<usize>;
    /// How many channels a weight makes, and what is wrong with it.
    fn check(&self, weight: &[usize], problems: &mut Problems) -> Option<usize>;
}

impl<const N: usize> Settings<N> for Conv<N> {
    fn weight_shape(&self, [input, output]: [usize; 2], kernel_size: [usize; N]) -> Vec<usize> {
        [&[output, input / self.groups.max(1)], &kernel_size[..]].concat()
    }

    fn check(&self, weight: &[usize], problems: &mut Problems) -> Option<usize> {
        check_rank::<N>(weight, "[out, in / groups, kernel size..]", problems)?;
        let (groups, out) = (self.groups, weight[0]);
        problems.check(groups > 0 && out.is_multiple_of(groups), || {
            format!(
                "{groups} groups do not divide the {out} output channels of a weight {weight:?}"
            )
        });
        Some(out)
    }
}

impl<const N: usize> Settings<N> for ConvTranspose<N> {
    const OUT_AXIS: usize = 1;

    fn weight_shape(&self, [input, output]: [usize; 2], kernel_size: [usize; N]) -> Vec<usize> {
        [&[input, output / self.groups.max(1)], &kernel_size[..]].concat()
    }

    fn check(&self, weight: &[usize], problems: &mut Problems) -> Option<usize> {
        check_rank::<N>(weight, "[in, out / groups, kernel size..]", problems)?;
        let (groups, input) = (self.groups, weight[0]);
        problems.check(groups > 0 && input.is_multiple_of(groups), || {
            format!(
                "{groups} groups do not divide the {input} input channels of a weight {weight:?}"
            )
        });
        Some(weight[1] * groups)
    }
}

/// `None`, and a problem, unless there are two axes for channels and `N` others.
fn check_rank<const N: usize>(
    weight: &[usize],
    expected: &str,
    problems: &mut Problems,
) -> Option<()> {
    let fits = weight.len() == N + 2;
    problems.check(fits, || {
        format!("weight has shape {weight:?}, expected {} axes: {expected}", N + 2)
    });
    fits.then_some(())
}

/// The tensors `weight` and `bias`, initialized as in torch: uniform within one over the root of the inputs of an output.
fn make<const N: usize>(
    layer: &'static str,
    channels: [usize; 2],
    kernel_size: [usize; N],
    (options, groups): (&impl Settings<N>, usize),
    bias: bool,
    vb: VarBuilder<'_>,
) -> Result<(Tensor, Option<Tensor>)> {
    let mut problems = Problems::new(layer);
    for (what, count) in [("input", channels[0]), ("output", channels[1])] {
        problems.check(groups > 0 && count.is_multiple_of(groups), || {
            format!("{groups} groups do not divide {count} {what} channels")
        });
    }
    problems.stop()?;
    let shape = options.weight_shape(channels, kernel_size);
    let fan_in: usize = shape[1..].iter().product();
    let bound = 1.0 / (fan_in.max(1) as f64).sqrt();
    let uniform = Init::Uniform { lo: -bound, up: bound };
    let weight = vb.get_with_hints(shape, "weight", uniform)?;
    let bias = bias.then(|| vb.get_with_hints(channels[1], "bias", uniform)).transpose()?;
    Ok((weight, bias))
}

/// Defines layers. A row reads: documentation, name, class, operator, settings, axes, shape of the weight.
macro_rules! convolutions {
    ($(
        $(#[$doc:meta])*
        $name:ident, $class:ident, $operator:ident, $options:ident<$n:literal>, $weight_doc:literal;
    )*) => { $(
        $(#[$doc])*
        #[derive(Module, Debug)]
        #[module(class = fastforward::module::classes::$class())]
        pub struct $name {
            /// Stride, padding, dilation, groups.
            #[module(skip)]
            pub options: $options<$n>,
            #[doc = $weight_doc]
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

        impl $name {
            /// A layer whose parameters come from, or are made by, a `VarBuilder`: `weight` and `bias`, initialized as in
            /// torch.
            ///
            /// # Errors
            /// [`ErrorKind::Tensor`](crate::ErrorKind::Tensor) when the builder has no such tensors of these shapes,
            /// [`ErrorKind::Operator`](crate::ErrorKind::Operator) when the groups do not divide the channels.
            pub fn new(
                in_channels: usize,
                out_channels: usize,
                kernel_size: [usize; $n],
                options: $options<$n>,
                bias: bool,
                vb: VarBuilder<'_>,
            ) -> Result<Self> {
                let channels = [in_channels, out_channels];
                let settings = (&options, options.groups);
                let (weight, bias) =
                    make(stringify!($name), channels, kernel_size, settings, bias, vb)?;
                Self::from_tensors(weight, bias, options)
            }

            /// A layer with these parameters.
            ///
            /// # Errors
            /// As for [`from_params`](Self::from_params).
            pub fn from_tensors(
                weight: Tensor,
                bias: Option<Tensor>,
                options: $options<$n>,
            ) -> Result<Self> {
                Self::from_params(weight.into(), bias.map(Param::new), options)
            }

            /// A layer with these parameters, which it may share with others.
            ///
            /// # Errors
            /// [`ErrorKind::Operator`](crate::ErrorKind::Operator) when the shapes do not fit each other or the groups.
            pub fn from_params(
                weight: Param,
                bias: Option<Param>,
                options: $options<$n>,
            ) -> Result<Self> {
                let mut problems = Problems::new(stringify!($name));
                if let Some(out) = options.check(weight.dims(), &mut problems) {
                    problems.shape("bias", &bias, &[out]);
                }
                problems.stop()?;
                Ok(Self {
                    options,
                    input_quantizer: QuantizerSlot::input(),
                    weight_quantizer: QuantizerSlot::weight_along(
                        weight.dims(),
                        <$options<$n> as Settings<$n>>::OUT_AXIS,
                    ),
                    bias_quantizer: bias.as_ref().map(|bias| QuantizerSlot::bias(bias.dims())),
                    output_quantizer: QuantizerSlot::output(),
                    weight,
                    bias,
                })
            }
        }

        impl Layer for $name {
            fn forward(&self, x: &Value) -> Result<Value> {
                let x = self.input_quantizer.apply(x)?;
                let weight = self.weight.quantized(&self.weight_quantizer)?;
                let bias =
                    Param::quantized_option(self.bias.as_ref(), self.bias_quantizer.as_ref())?;
                F::$operator(&x, &weight, bias.as_ref(), &self.options, &self.output_quantizer)
            }
        }
    )* };
}

convolutions! {
    /// Convolution of `[n, in, length]`, with slots for input, weight, bias and output (spec §5.7); [`Conv2d`] says more.
    Conv1d, conv1d, conv1d, Conv<1>, "`[out, in / groups, kernel]`";
    /// Convolution of `[n, in, height, width]`, with slots for input, weight, bias and output (spec §5.7).
    ///
    /// ```
    /// use candle_core::{DType, Device, Tensor};
    /// use candle_nn::{VarBuilder, VarMap};
    /// use fastforward::nn::{Conv2d, Layer};
    /// use fastforward::tensor::float::{Conv, Padding};
    ///
    /// let weights = VarMap::new();
    /// let vb = VarBuilder::from_varmap(&weights, DType::F32, &Device::Cpu);
    /// let options = Conv { stride: [2, 2], padding: Padding::Explicit([1, 1]), ..Conv::default() };
    /// let layer = Conv2d::new(3, 8, [3, 3], options, true, vb)?;
    /// let _lenient = fastforward::flags::strict_quantization(false); // no quantizers yet
    /// let y = layer.forward_tensor(&Tensor::zeros((1, 3, 28, 28), DType::F32, &Device::Cpu)?)?;
    /// assert_eq!(y.dims(), [1, 8, 14, 14]);
    /// # Ok::<(), fastforward::tensor::Error>(())
    /// ```
    Conv2d, conv2d, conv2d, Conv<2>, "`[out, in / groups, kernel height, kernel width]`";
    /// Convolution of `[n, in, depth, height, width]`, with slots for input, weight, bias and output; [`Conv2d`] says more.
    Conv3d, conv3d, conv3d, Conv<3>,
        "`[out, in / groups, kernel depth, kernel height, kernel width]`";
    /// Transposed convolution of `[n, in, length]`, with slots for input, weight, bias and output; [`ConvTranspose2d`] says
    /// more.
    ConvTranspose1d, conv_transpose1d, conv_transpose1d, ConvTranspose<1>,
        "`[in, out / groups, kernel]`";
    /// Transposed convolution of `[n, in, height, width]`, with slots for input, weight, bias and output.
    ///
    /// ```
    /// use candle_core::{Device, Tensor};
    /// use fastforward::nn::{ConvTranspose2d, Layer};
    /// use fastforward::tensor::float::ConvTranspose;
    ///
    /// let weight = Tensor::new(&[[[[1f32, 10.0]]]], &Device::Cpu)?;
    /// let layer = ConvTranspose2d::from_tensors(weight, None, ConvTranspose::default())?;
    /// let _lenient = fastforward::flags::strict_quantization(false); // no quantizers yet
    /// let y = layer.forward_tensor(&Tensor::new(&[[[[1f32, 2.0]]]], &Device::Cpu)?)?.dequantize()?;
    /// assert_eq!(y.flatten_all()?.to_vec1::<f32>()?, [1.0, 12.0, 20.0]);
    /// # Ok::<(), fastforward::tensor::Error>(())
    /// ```
    ConvTranspose2d, conv_transpose2d, conv_transpose2d, ConvTranspose<2>,
        "`[in, out / groups, kernel height, kernel width]`";
    /// Transposed convolution of `[n, in, depth, height, width]`, with slots for input, weight, bias and output;
    /// [`ConvTranspose2d`] says more.
    ConvTranspose3d, conv_transpose3d, conv_transpose3d, ConvTranspose<3>,
        "`[in, out / groups, kernel depth, kernel height, kernel width]`";
}

/// Layers that candle has too. Its settings are one number for all axes.
macro_rules! from_candle {
    ($($name:ident: |$config:ident| $options:expr;)*) => { $(
        impl $name {
            /// The same layer as one of candle's.
            ///
            /// # Errors
            /// As for [`from_params`](Self::from_params).
            pub fn from_candle(layer: &candle_nn::$name) -> Result<Self> {
                let $config = layer.config();
                Self::from_tensors(layer.weight().clone(), layer.bias().cloned(), $options)
            }
        }
    )* };
}

from_candle! {
    Conv1d: |config| Conv {
        stride: [config.stride],
        padding: Padding::Explicit([config.padding]),
        dilation: [config.dilation],
        groups: config.groups,
    };
    Conv2d: |config| Conv {
        stride: [config.stride; 2],
        padding: Padding::Explicit([config.padding; 2]),
        dilation: [config.dilation; 2],
        groups: config.groups,
    };
    ConvTranspose1d: |config| ConvTranspose {
        stride: [config.stride],
        padding: [config.padding],
        output_padding: [config.output_padding],
        groups: config.groups,
        dilation: [config.dilation],
    };
    ConvTranspose2d: |config| ConvTranspose {
        stride: [config.stride; 2],
        padding: [config.padding; 2],
        output_padding: [config.output_padding; 2],
        groups: 1,
        dilation: [config.dilation; 2],
    };
}
