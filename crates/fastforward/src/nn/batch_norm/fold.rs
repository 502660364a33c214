//! Batch normalization made part of the layer before it.

use candle_core::{DType, Tensor};

use super::BatchNorm;
use crate::ErrorKind;
use crate::nn::{
    Conv1d, Conv2d, Conv3d, ConvTranspose1d, ConvTranspose2d, ConvTranspose3d, Linear, Param,
};
use crate::quantization::QuantizerSlot;
use crate::tensor::{Error, Result};

/// A layer that computes what `layer` and then `norm`, in evaluation, compute.
///
/// With `factor = weight_norm / sqrt(running_var + eps)` for each channel that the layer makes,
///
/// - `weight = weight_layer · factor`,
/// - `bias = (bias_layer - running_mean) · factor + bias_norm`,
///
/// computed in `f64` and rounded once. (Jacob et al., "Quantization and Training of Neural Networks for Efficient
/// Integer-Arithmetic-Only Inference", 2018, §3.2.) The result has the input slot of the layer and the output slot of the
/// norm. Its parameters are constants of their own; its other slots are new.
///
/// ```
/// use candle_core::{Device, Tensor};
/// use fastforward::nn::{BatchNorm, BatchNormOptions, Linear, fold_batch_norm};
///
/// let number = |x: f32| Tensor::new(&[x], &Device::Cpu);
/// let linear = Linear::from_tensors(Tensor::new(&[[2f32]], &Device::Cpu)?, Some(number(3.0)?))?;
/// let options = BatchNormOptions { eps: 0.0, ..Default::default() };
/// let norm = BatchNorm::from_tensors(
///     Some(number(10.0)?), Some(number(1.0)?), number(5.0)?, number(4.0)?, options,
/// )?;
/// let folded = fold_batch_norm(&linear, &norm)?;
/// assert_eq!(folded.weight.tensor().to_vec2::<f32>()?, [[10.0]]);
/// assert_eq!(folded.bias.unwrap().tensor().to_vec1::<f32>()?, [-9.0]);
/// # Ok::<(), fastforward::tensor::Error>(())
/// ```
///
/// # Errors
/// [`ErrorKind::Operator`] when the norm has not as many channels as the layer makes; [`ErrorKind::InvalidSettings`] when a slot
/// is filled whose data there is no longer: that between the two, or one of their parameters. Fold before quantizing.
pub fn fold_batch_norm<L: FoldBatchNorm>(layer: &L, norm: &BatchNorm) -> Result<L> {
    layer.fold_batch_norm(norm)
}

/// Layers that a batch normalization can become part of; see [`fold_batch_norm`].
pub trait FoldBatchNorm: Sized {
    /// See [`fold_batch_norm`].
    ///
    /// # Errors
    /// As for [`fold_batch_norm`].
    fn fold_batch_norm(&self, norm: &BatchNorm) -> Result<Self>;
}

/// A row reads: layer, then how it is made of weight and bias, then the shape that one factor per output channel has beside
/// the weight.
macro_rules! fold {
    ($($name:ident: |$layer:ident, $weight:ident, $bias:ident| $made:expr, $groups:expr;)*) => { $(
        impl FoldBatchNorm for $name {
            fn fold_batch_norm(&self, norm: &BatchNorm) -> Result<Self> {
                check_slots(
                    [
                        ("the weight slot of the layer", Some(&self.weight_quantizer)),
                        ("the bias slot of the layer", self.bias_quantizer.as_ref()),
                        ("the output slot of the layer", Some(&self.output_quantizer)),
                    ],
                    norm,
                )?;
                let $layer = self;
                let groups: Option<usize> = $groups;
                let ($weight, $bias) =
                    folded(stringify!($name), &self.weight, self.bias.as_ref(), norm, groups)?;
                let mut made = $made?;
                made.input_quantizer = self.input_quantizer.clone();
                made.output_quantizer = norm.output_quantizer.clone();
                Ok(made)
            }
        }
    )* };
}

fold! {
    Linear: |_layer, weight, bias| Linear::from_tensors(weight, Some(bias)), None;
    Conv1d: |layer, weight, bias| Self::from_tensors(weight, Some(bias), layer.options.clone()), None;
    Conv2d: |layer, weight, bias| Self::from_tensors(weight, Some(bias), layer.options.clone()), None;
    Conv3d: |layer, weight, bias| Self::from_tensors(weight, Some(bias), layer.options.clone()), None;
    ConvTranspose1d: |layer, weight, bias| Self::from_tensors(weight, Some(bias), layer.options.clone()), Some(layer.options.groups);
    ConvTranspose2d: |layer, weight, bias| Self::from_tensors(weight, Some(bias), layer.options.clone()), Some(layer.options.groups);
    ConvTranspose3d: |layer, weight, bias| Self::from_tensors(weight, Some(bias), layer.options.clone()), Some(layer.options.groups);
}

/// Weight and bias of the layer that computes both. The outputs of a weight are along its first axis, or, with `groups`, along
/// the second, for one group of the first after the other.
fn folded(
    layer: &str,
    weight: &Param,
    bias: Option<&Param>,
    norm: &BatchNorm,
    groups: Option<usize>,
) -> Result<(Tensor, Tensor)> {
    let dtype = weight.dtype();
    let dims = weight.dims().to_vec();
    // Settings may have been changed since they were checked.
    let groups = groups.map(|groups| groups.max(1));
    let outputs = groups.map_or(dims[0], |groups| dims[1] * groups);
    let &[channels] = norm.running_mean.dims() else {
        return Err(no_channels(layer, norm, outputs));
    };
    if channels != outputs {
        return Err(no_channels(layer, norm, outputs));
    }
    let wide = |parameter: &Param| -> Result<Tensor> {
        Ok(parameter.tensor().detach().to_dtype(DType::F64)?)
    };
    let wide_or = |parameter: Option<&Param>, number: f64| match parameter {
        Some(parameter) => wide(parameter),
        None => Ok(Tensor::full(number, channels, norm.running_mean.tensor().device())?),
    };
    let deviation = (wide(&norm.running_var)? + norm.options.eps)?.sqrt()?;
    let factor = (wide_or(norm.weight.as_ref(), 1.0)? / deviation)?;
    let weight = wide(weight)?;
    let weight = match groups {
        None => {
            let mut beside = vec![1; dims.len()];
            beside[0] = channels;
            weight.broadcast_mul(&factor.reshape(beside)?)?
        }
        Some(groups) => {
            // [groups, in / groups, out / groups, kernel] beside [groups, 1, out / groups, 1].
            let kernel: usize = dims[2..].iter().product();
            let apart = weight.reshape((groups, dims[0] / groups, dims[1], kernel))?;
            let factor = factor.reshape((groups, 1, dims[1], 1))?;
            apart.broadcast_mul(&factor)?.reshape(dims)?
        }
    };
    let centred = (wide_or(bias, 0.0)? - wide(&norm.running_mean)?)?;
    let bias = ((centred * factor)? + wide_or(norm.bias.as_ref(), 0.0)?)?;
    Ok((weight.to_dtype(dtype)?, bias.to_dtype(dtype)?))
}

fn no_channels(layer: &str, norm: &BatchNorm, outputs: usize) -> Error {
    let found = norm.running_mean.dims();
    let what = format!("{layer} makes {outputs} channels, the batch normalization takes {found:?}");
    Error::operator("fold_batch_norm", what)
}

fn check_slots(layer: [(&str, Option<&QuantizerSlot>); 3], norm: &BatchNorm) -> Result<()> {
    let of_norm = [
        ("the input slot of the norm", Some(&norm.input_quantizer)),
        ("the weight slot of the norm", norm.weight_quantizer.as_ref()),
        ("the bias slot of the norm", norm.bias_quantizer.as_ref()),
    ];
    let filled: Vec<&str> = layer
        .iter()
        .chain(&of_norm)
        .filter(|(_, slot)| slot.is_some_and(|slot| !slot.is_stub()))
        .map(|(name, _)| *name)
        .collect();
    if filled.is_empty() {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::InvalidSettings,
        format!(
            "fold_batch_norm: filled are {}, for data that folding does away with; fold before quantizing",
            filled.join(", ")
        ),
    ))
}
