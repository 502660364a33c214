//! Convolutions, and their transposes, over one, two or three axes.

mod map;

#[cfg(test)]
mod tests;

use candle_core::Tensor;
use ff_kernels::ConvShape;

use super::spatial::{Problems, batched, check_size, reach, split, three};
use crate::tensor::{Error, Result};
use map::{Direction, Map};

/// The settings of a convolution over `N` axes; [`Default`] is torch's: stride 1, no padding, dilation 1, one group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conv<const N: usize> {
    /// Input positions from one output position to the next.
    pub stride: [usize; N],
    /// Zeros around the input.
    pub padding: Padding<N>,
    /// Input positions from one tap of the kernel to the next.
    pub dilation: [usize; N],
    /// Groups of channels that do not see each other.
    pub groups: usize,
}

impl<const N: usize> Default for Conv<N> {
    fn default() -> Self {
        Self { stride: [1; N], padding: Padding::default(), dilation: [1; N], groups: 1 }
    }
}

/// Zeros around the input of a convolution.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Padding<const N: usize> {
    /// So many before and after each axis.
    Explicit([usize; N]),
    /// As many as make the output as large as the input, the odd one at the end; only for a stride of 1.
    Same,
    /// None.
    Valid,
}

impl<const N: usize> Default for Padding<N> {
    fn default() -> Self {
        Self::Explicit([0; N])
    }
}

/// The settings of a transposed convolution over `N` axes; [`Default`] is torch's: stride 1, no padding, dilation 1, one
/// group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConvTranspose<const N: usize> {
    /// Output positions from one input position to the next.
    pub stride: [usize; N],
    /// Positions cut from each side of the output.
    pub padding: [usize; N],
    /// Positions added to the end of the output, fewer than the stride or the dilation.
    pub output_padding: [usize; N],
    /// Groups of channels that do not see each other.
    pub groups: usize,
    /// Output positions from one tap of the kernel to the next.
    pub dilation: [usize; N],
}

impl<const N: usize> Default for ConvTranspose<N> {
    fn default() -> Self {
        Self {
            stride: [1; N],
            padding: [0; N],
            output_padding: [0; N],
            groups: 1,
            dilation: [1; N],
        }
    }
}

/// Convolves over one axis, as `torch.nn.functional.conv1d`: [`conv2d`] says how.
///
/// # Errors
///
/// As [`conv2d`].
pub fn conv1d(
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    options: &Conv<1>,
) -> Result<Tensor> {
    conv("conv1d", x, weight, bias, options)
}

/// Convolves over two axes, as `torch.nn.functional.conv2d`.
///
/// `x` is `[batch, in, height, width]`, or without the batch; `weight` is `[out, in / groups, kernel height, kernel
/// width]`, `bias` is `[out]`:
///
/// `out[n, o, p] = bias[o] + Σ_{c, t} weight[o, c, t] · x[n, c, p · stride + t · dilation - padding]`
///
/// with zeros outside `x`, and `⌊(size + 2 · padding - dilation · (kernel - 1) - 1) / stride⌋ + 1` positions along each
/// axis. Differentiable in all three; gradients are computed for the operands that need one. All operands are f32 or
/// f64, or all f16 or bf16, which are computed in f32 and rounded once.
///
/// # Errors
///
/// Shapes, settings or dtypes that do not fit, each with what would; a device other than the CPU.
///
/// ```
/// use candle_core::{Device, Tensor};
/// use fastforward::tensor::float::{Conv, Padding, conv2d};
///
/// let x = Tensor::arange(0f32, 9., &Device::Cpu)?.reshape((1, 1, 3, 3))?;
/// let weight = Tensor::ones((1, 1, 3, 3), x.dtype(), x.device())?;
/// let same = Conv { padding: Padding::Same, ..Conv::default() };
/// let sums = conv2d(&x, &weight, None, &same)?;
/// assert_eq!(sums.flatten_all()?.to_vec1::<f32>()?, [8., 15., 12., 21., 36., 27., 20., 33., 24.]);
/// # Ok::<(), fastforward::tensor::Error>(())
/// ```
pub fn conv2d(
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    options: &Conv<2>,
) -> Result<Tensor> {
    conv("conv2d", x, weight, bias, options)
}

/// Convolves over three axes, as `torch.nn.functional.conv3d`: [`conv2d`] says how.
///
/// # Errors
///
/// As [`conv2d`].
pub fn conv3d(
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    options: &Conv<3>,
) -> Result<Tensor> {
    conv("conv3d", x, weight, bias, options)
}

/// Transposed convolution over one axis, as `torch.nn.functional.conv_transpose1d`: [`conv_transpose2d`] says how.
///
/// # Errors
///
/// As [`conv2d`].
pub fn conv_transpose1d(
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    options: &ConvTranspose<1>,
) -> Result<Tensor> {
    conv_transpose("conv_transpose1d", x, weight, bias, options)
}

/// Transposed convolution over two axes, as `torch.nn.functional.conv_transpose2d`.
///
/// `x` is `[batch, in, height, width]`, or without the batch; `weight` is `[in, out / groups, kernel height, kernel
/// width]`, `bias` is `[out]`. It is the gradient of [`conv2d`] by its input: `x[n, c, p] · weight[c, o, t]` is added to
/// position `p · stride + t · dilation - padding` of the output, which has `(size - 1) · stride - 2 · padding + dilation ·
/// (kernel - 1) + output_padding + 1` positions along each axis. Gradients and dtypes are those of [`conv2d`].
///
/// # Errors
///
/// As [`conv2d`].
///
/// ```
/// use candle_core::{Device, Tensor};
/// use fastforward::tensor::float::{ConvTranspose, conv_transpose2d};
///
/// let x = Tensor::new(&[[[1f32, 2.]]], &Device::Cpu)?;
/// let weight = Tensor::new(&[[[[1f32, 10., 100.]]]], &Device::Cpu)?;
/// let options = ConvTranspose { stride: [1, 2], ..ConvTranspose::default() };
/// let spread = conv_transpose2d(&x, &weight, None, &options)?;
/// assert_eq!(spread.to_vec3::<f32>()?, [[[1., 10., 102., 20., 200.]]]);
/// # Ok::<(), fastforward::tensor::Error>(())
/// ```
pub fn conv_transpose2d(
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    options: &ConvTranspose<2>,
) -> Result<Tensor> {
    conv_transpose("conv_transpose2d", x, weight, bias, options)
}

/// Transposed convolution over three axes, as `torch.nn.functional.conv_transpose3d`: [`conv_transpose2d`] says how.
///
/// # Errors
///
/// As [`conv2d`].
pub fn conv_transpose3d(
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    options: &ConvTranspose<3>,
) -> Result<Tensor> {
    conv_transpose("conv_transpose3d", x, weight, bias, options)
}

fn conv<const N: usize>(
    name: &'static str,
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    options: &Conv<N>,
) -> Result<Tensor> {
    let Conv { stride, padding, dilation, groups } = options;
    let (x, unbatched) = batched(name, x, N)?;
    let operands = Operands::<N>::new(name, &x, weight)?;
    let (x_channels, out_channels) = (operands.x_channels, operands.weight_channels[0]);
    let mut problems = Problems::new(name);
    operands.check_settings(&mut problems, *groups, stride, dilation);
    problems.stop()?;
    problems.check(operands.weight_channels[1].checked_mul(*groups) == Some(x_channels), || {
        format!(
            "input {:?} has {x_channels} channels, the weight {:?} with {groups} groups wants {}",
            x.dims(),
            weight.dims(),
            operands.weight_channels[1].saturating_mul(*groups)
        )
    });
    problems.check(out_channels.is_multiple_of(*groups), || {
        format!(
            "{groups} groups do not divide the {out_channels} output channels of the weight {:?}",
            weight.dims()
        )
    });
    Operands::<N>::check_bias(&mut problems, bias, out_channels);

    let mut output = [0; N];
    let mut before = [0; N];
    for axis in 0..N {
        // Taps times dilation, plus one: the extent of the kernel over the input.
        let reach = reach(operands.kernel[axis], dilation[axis]);
        let (first, both) = match padding {
            Padding::Valid => (0, Some(0)),
            Padding::Explicit(padding) => (padding[axis], padding[axis].checked_mul(2)),
            Padding::Same => {
                problems.check(stride[axis] == 1, || {
                    format!("padding `same` needs a stride of 1, found {stride:?}")
                });
                (reach.map_or(0, |reach| (reach - 1) / 2), reach.map(|reach| reach - 1))
            }
        };
        before[axis] = first;
        let padded = both.and_then(|both| operands.size[axis].checked_add(both));
        let (Some(reach), Some(padded)) = (reach, padded) else {
            problems.add(format!("the settings {options:?} overflow along axis {axis}"));
            continue;
        };
        problems.check(reach <= padded, || {
            format!(
                "along spatial axis {axis} the kernel reaches over {reach} positions (kernel {}, dilation {}), more than \
                 the padded input of {padded}",
                operands.kernel[axis], dilation[axis]
            )
        });
        output[axis] = padded.saturating_sub(reach) / stride[axis] + 1;
    }
    let out = [&[x.dims()[0], out_channels], &output[..]].concat();
    check_size(&mut problems, &out);
    problems.stop()?;

    let shape = ConvShape {
        batch: x.dims()[0],
        in_channels: x_channels,
        out_channels,
        groups: *groups,
        input: three(operands.size, 1),
        output: three(output, 1),
        kernel: three(operands.kernel, 1),
        stride: three(*stride, 1),
        dilation: three(*dilation, 1),
        padding: three(before, 0),
    };
    let map = Map { name, shape, direction: Direction::Forward, out };
    map.apply(&x, weight, bias, unbatched)
}

fn conv_transpose<const N: usize>(
    name: &'static str,
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    options: &ConvTranspose<N>,
) -> Result<Tensor> {
    let ConvTranspose { stride, padding, output_padding, groups, dilation } = options;
    let (x, unbatched) = batched(name, x, N)?;
    let operands = Operands::<N>::new(name, &x, weight)?;
    let x_channels = operands.x_channels;
    let mut problems = Problems::new(name);
    operands.check_settings(&mut problems, *groups, stride, dilation);
    problems.stop()?;
    problems.check(operands.weight_channels[0] == x_channels, || {
        format!(
            "input {:?} has {x_channels} channels, the weight {:?} wants {}",
            x.dims(),
            weight.dims(),
            operands.weight_channels[0]
        )
    });
    problems.check(x_channels.is_multiple_of(*groups), || {
        format!(
            "{groups} groups do not divide the {x_channels} channels of the input {:?}",
            x.dims()
        )
    });
    let out_channels = operands.weight_channels[1].saturating_mul(*groups);
    Operands::<N>::check_bias(&mut problems, bias, out_channels);

    let mut output = [0; N];
    for axis in 0..N {
        let extra = output_padding[axis];
        problems.check(extra < stride[axis] || extra < dilation[axis], || {
            format!(
                "output_padding {extra} along spatial axis {axis} must be less than the stride {} or the dilation {}",
                stride[axis], dilation[axis]
            )
        });
        let full = || {
            let moved = operands.size[axis].checked_sub(1)?.checked_mul(stride[axis])?;
            moved.checked_add(reach(operands.kernel[axis], dilation[axis])?)?.checked_add(extra)
        };
        let (Some(full), Some(cut)) = (full(), padding[axis].checked_mul(2)) else {
            problems.add(if operands.size[axis] == 0 {
                format!("input {:?} is empty along spatial axis {axis}", x.dims())
            } else {
                format!("the settings {options:?} overflow along axis {axis}")
            });
            continue;
        };
        problems.check(cut < full, || {
            format!(
                "along spatial axis {axis} the padding {} cuts away all {full} positions of the output",
                padding[axis]
            )
        });
        output[axis] = full.saturating_sub(cut);
    }
    let out = [&[x.dims()[0], out_channels], &output[..]].concat();
    check_size(&mut problems, &out);
    problems.stop()?;

    // The transpose of the convolution that maps the output back to `x`.
    let shape = ConvShape {
        batch: x.dims()[0],
        in_channels: out_channels,
        out_channels: x_channels,
        groups: *groups,
        input: three(output, 1),
        output: three(operands.size, 1),
        kernel: three(operands.kernel, 1),
        stride: three(*stride, 1),
        dilation: three(*dilation, 1),
        padding: three(*padding, 0),
    };
    let map = Map { name, shape, direction: Direction::Transposed, out };
    map.apply(&x, weight, bias, unbatched)
}

/// What the shapes of input (with its batch axis) and weight say.
struct Operands<const N: usize> {
    x_channels: usize,
    size: [usize; N],
    /// The first two axes of the weight.
    weight_channels: [usize; 2],
    kernel: [usize; N],
}

impl<const N: usize> Operands<N> {
    fn new(name: &'static str, x: &Tensor, weight: &Tensor) -> Result<Self> {
        let (Some((_, size)), Some((weight_channels, kernel))) =
            (split::<N>(x.dims()), split::<N>(weight.dims()))
        else {
            let found = weight.dims();
            let what = format!("weight must have {} axes, found {found:?}", N + 2);
            return Err(Error::operator(name, what));
        };
        Ok(Self { x_channels: x.dims()[1], size, weight_channels, kernel })
    }

    fn check_settings(
        &self,
        problems: &mut Problems,
        groups: usize,
        stride: &[usize; N],
        dilation: &[usize; N],
    ) {
        problems.positive("groups", &[groups]);
        problems.positive("stride", stride);
        problems.positive("dilation", dilation);
        problems.positive("the kernel of the weight", &self.kernel);
    }

    fn check_bias(problems: &mut Problems, bias: Option<&Tensor>, out_channels: usize) {
        if let Some(bias) = bias {
            problems.check(bias.dims() == [out_channels], || {
                format!(
                    "bias must be [{out_channels}], one number per output channel, found {:?}",
                    bias.dims()
                )
            });
        }
    }
}
