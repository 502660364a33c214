//! Pooling: averages and maxima over windows of the spatial axes.

use candle_core::Tensor;
use ff_kernels::{
    AveragePool, MaxPool, Window, average_pool, average_pool_gradient, max_pool, max_pool_gradient,
};

use super::custom::{self, Kernel};
use super::real::Real;
use super::spatial::{Problems, batched, check_size, reach, split, three};
use crate::tensor::Result;

/// The settings of average pooling over `N` axes; [`AvgPool::new`] has torch's defaults.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AvgPool<const N: usize> {
    /// Positions of a window.
    pub kernel_size: [usize; N],
    /// Input positions from one window to the next; `None` is the kernel size.
    pub stride: Option<[usize; N]>,
    /// Zeros on both sides of each axis, at most half the kernel.
    pub padding: [usize; N],
    /// Whether a last window that begins inside the input or its left padding may reach out of it.
    pub ceil_mode: bool,
    /// Whether the divisor counts the zeros of the padding.
    pub count_include_pad: bool,
}

impl<const N: usize> AvgPool<N> {
    /// Windows side by side, without padding.
    pub fn new(kernel_size: [usize; N]) -> Self {
        Self {
            kernel_size,
            stride: None,
            padding: [0; N],
            ceil_mode: false,
            count_include_pad: true,
        }
    }
}

/// The settings of maximum pooling over two axes; [`MaxPool2d::new`] has torch's defaults.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MaxPool2d {
    /// Positions of a window.
    pub kernel_size: [usize; 2],
    /// Input positions from one window to the next; `None` is the kernel size.
    pub stride: Option<[usize; 2]>,
    /// Places that do not count on both sides of each axis, at most half the kernel's reach.
    pub padding: [usize; 2],
    /// Input positions from one position of a window to the next.
    pub dilation: [usize; 2],
    /// Whether a last window that begins inside the input or its left padding may reach out of it.
    pub ceil_mode: bool,
}

impl MaxPool2d {
    /// Windows side by side, without padding.
    pub fn new(kernel_size: [usize; 2]) -> Self {
        Self { kernel_size, stride: None, padding: [0; 2], dilation: [1; 2], ceil_mode: false }
    }
}

/// Averages over windows of one axis, as `torch.nn.functional.avg_pool1d`: [`avg_pool2d`] says how.
///
/// # Errors
///
/// As [`avg_pool2d`].
pub fn avg_pool1d(x: &Tensor, options: &AvgPool<1>) -> Result<Tensor> {
    avg_pool("avg_pool1d", x, options)
}

/// Averages over windows of two axes, as `torch.nn.functional.avg_pool2d`.
///
/// `x` is `[batch, channels, height, width]`, or without the batch. Along each axis there are `1 +
/// ⌊(size + 2 · padding - kernel) / stride⌋` windows; with `ceil_mode` the quotient is rounded up, except for a window that would begin in the
/// padding at the end. A window's sum is divided by its positions: those inside the input and, if `count_include_pad`,
/// inside its padding. Differentiable; f16 and bf16 are computed in f32 and rounded once.
///
/// # Errors
///
/// Shapes, settings or a dtype that do not fit, each with what would; a device other than the CPU.
///
/// ```
/// use candle_core::{Device, Tensor};
/// use fastforward::tensor::float::{AvgPool, avg_pool2d};
///
/// let x = Tensor::new(&[[[1f32, 3., 5.], [1., 3., 8.]]], &Device::Cpu)?;
/// let options = AvgPool { ceil_mode: true, ..AvgPool::new([2, 2]) };
/// assert_eq!(avg_pool2d(&x, &options)?.to_vec3::<f32>()?, [[[2., 6.5]]]);
/// # Ok::<(), fastforward::tensor::Error>(())
/// ```
pub fn avg_pool2d(x: &Tensor, options: &AvgPool<2>) -> Result<Tensor> {
    avg_pool("avg_pool2d", x, options)
}

/// Averages over windows of three axes, as `torch.nn.functional.avg_pool3d`: [`avg_pool2d`] says how.
///
/// # Errors
///
/// As [`avg_pool2d`].
pub fn avg_pool3d(x: &Tensor, options: &AvgPool<3>) -> Result<Tensor> {
    avg_pool("avg_pool3d", x, options)
}

/// Averages so that one axis has a given size, as `torch.nn.functional.adaptive_avg_pool1d`: [`adaptive_avg_pool2d`]
/// says how.
///
/// # Errors
///
/// As [`adaptive_avg_pool2d`].
pub fn adaptive_avg_pool1d(x: &Tensor, output_size: [Option<usize>; 1]) -> Result<Tensor> {
    adaptive("adaptive_avg_pool1d", x, output_size)
}

/// Averages so that two axes have given sizes, as `torch.nn.functional.adaptive_avg_pool2d`; `[Some(1), Some(1)]` is
/// global average pooling.
///
/// `x` is `[batch, channels, height, width]`, or without the batch. Output position `o` of `out` averages input
/// positions `⌊o · size / out⌋` up to `⌈(o + 1) · size / out⌉`; `None` keeps the size of an axis. Differentiable; f16
/// and bf16 are computed in f32 and rounded once.
///
/// # Errors
///
/// Shapes or a dtype that do not fit, each with what would; a device other than the CPU.
pub fn adaptive_avg_pool2d(x: &Tensor, output_size: [Option<usize>; 2]) -> Result<Tensor> {
    adaptive("adaptive_avg_pool2d", x, output_size)
}

/// Averages so that three axes have given sizes, as `torch.nn.functional.adaptive_avg_pool3d`: [`adaptive_avg_pool2d`]
/// says how.
///
/// # Errors
///
/// As [`adaptive_avg_pool2d`].
pub fn adaptive_avg_pool3d(x: &Tensor, output_size: [Option<usize>; 3]) -> Result<Tensor> {
    adaptive("adaptive_avg_pool3d", x, output_size)
}

/// Maxima over windows of two axes, as `torch.nn.functional.max_pool2d`.
///
/// `x` is `[batch, channels, height, width]`, or without the batch; the number of windows is that of [`avg_pool2d`] with
/// `dilation · (kernel - 1) + 1` for the kernel. A NaN in a window is its maximum. The gradient goes to the first maximum
/// of each window. f16 and bf16 stay what they are: a maximum needs no rounding.
///
/// # Errors
///
/// Shapes, settings or a dtype that do not fit, each with what would; a device other than the CPU.
///
/// ```
/// use candle_core::{Device, Tensor};
/// use fastforward::tensor::float::{MaxPool2d, max_pool2d};
///
/// let x = Tensor::new(&[[[1f32, 3., 5.], [7., 3., 8.], [0., 1., 2.]]], &Device::Cpu)?;
/// // The pooling of a ResNet's stem.
/// let options = MaxPool2d { stride: Some([2, 2]), padding: [1, 1], ..MaxPool2d::new([3, 3]) };
/// assert_eq!(max_pool2d(&x, &options)?.to_vec3::<f32>()?, [[[7., 8.], [7., 8.]]]);
/// # Ok::<(), fastforward::tensor::Error>(())
/// ```
pub fn max_pool2d(x: &Tensor, options: &MaxPool2d) -> Result<Tensor> {
    let name = "max_pool2d";
    let MaxPool2d { kernel_size, padding, dilation, ceil_mode, .. } = options;
    let stride = options.stride.unwrap_or(*kernel_size);
    let (x, unbatched) = batched(name, x, 2)?;
    let mut problems = Problems::new(name);
    problems.positive("kernel_size", kernel_size);
    problems.positive("stride", &stride);
    problems.positive("dilation", dilation);
    problems.stop()?;
    let (_, input) = split::<2>(x.dims()).expect("a batched input has four axes");
    let mut output = [0; 2];
    for axis in 0..2 {
        let Some(reach) = reach(kernel_size[axis], dilation[axis]) else {
            problems.add(format!("the settings {options:?} overflow along axis {axis}"));
            continue;
        };
        let window =
            Along { size: input[axis], reach, stride: stride[axis], padding: padding[axis] };
        output[axis] = window.count(axis, *ceil_mode, &mut problems);
    }
    problems.stop()?;
    let pool = MaxPool {
        planes: x.dims()[0] * x.dims()[1],
        input,
        output,
        kernel: *kernel_size,
        stride,
        dilation: *dilation,
        padding: *padding,
    };
    let out = [&x.dims()[..2], &output].concat();
    Pool { name, kind: Kind::Max(pool), out }.apply(&x, unbatched)
}

fn avg_pool<const N: usize>(
    name: &'static str,
    x: &Tensor,
    options: &AvgPool<N>,
) -> Result<Tensor> {
    let AvgPool { kernel_size, padding, ceil_mode, count_include_pad, .. } = options;
    let stride = options.stride.unwrap_or(*kernel_size);
    let (x, unbatched) = batched(name, x, N)?;
    let mut problems = Problems::new(name);
    problems.positive("kernel_size", kernel_size);
    problems.positive("stride", &stride);
    problems.stop()?;
    let (_, input) = split::<N>(x.dims()).expect("a batched input has two more axes");
    let mut windows: [Vec<Window>; N] = std::array::from_fn(|_| Vec::new());
    for axis in 0..N {
        let (size, reach, padding) = (input[axis], kernel_size[axis], padding[axis]);
        let along = Along { size, reach, stride: stride[axis], padding };
        let count = along.count(axis, *ceil_mode, &mut problems);
        windows[axis] = (0..count)
            .map(|o| {
                // On the padded axis, which also ends the last window of `ceil_mode`.
                let start = o * stride[axis];
                let end = (start + reach).min(size + 2 * padding);
                let span = start.saturating_sub(padding)..end.saturating_sub(padding).min(size);
                let count = if *count_include_pad { end - start } else { span.len().max(1) };
                Window { span, count }
            })
            .collect();
    }
    problems.stop()?;
    average(name, &x, unbatched, input, windows)
}

fn adaptive<const N: usize>(
    name: &'static str,
    x: &Tensor,
    output_size: [Option<usize>; N],
) -> Result<Tensor> {
    let (x, unbatched) = batched(name, x, N)?;
    let (_, input) = split::<N>(x.dims()).expect("a batched input has two more axes");
    let windows = adaptive_windows(name, input, output_size)?;
    average(name, &x, unbatched, input, windows)
}

/// The windows that make every axis as long as asked for.
pub(super) fn adaptive_windows<const N: usize>(
    name: &'static str,
    input: [usize; N],
    output_size: [Option<usize>; N],
) -> Result<[Vec<Window>; N]> {
    let mut problems = Problems::new(name);
    problems.check(!input.contains(&0), || {
        format!("the input is empty along a spatial axis: {input:?}")
    });
    for axis in 0..N {
        let overflow =
            output_size[axis].unwrap_or(1).checked_add(1).and_then(|n| n.checked_mul(input[axis]));
        problems.check(overflow.is_some(), || {
            format!("output_size {output_size:?} overflows along axis {axis}")
        });
    }
    problems.stop()?;
    Ok(std::array::from_fn(|axis| {
        let size = input[axis];
        let out = output_size[axis].unwrap_or(size);
        (0..out)
            .map(|o| {
                let span = o * size / out..((o + 1) * size).div_ceil(out);
                Window { count: span.len(), span }
            })
            .collect()
    }))
}

pub(super) fn average<const N: usize>(
    name: &'static str,
    x: &Tensor,
    unbatched: bool,
    input: [usize; N],
    windows: [Vec<Window>; N],
) -> Result<Tensor> {
    let output = windows.each_ref().map(Vec::len);
    let out = [&x.dims()[..2], &output].concat();
    let mut all: [Vec<Window>; 3] = std::array::from_fn(|_| vec![Window { span: 0..1, count: 1 }]);
    for (slot, windows) in all[3 - N..].iter_mut().zip(windows) {
        *slot = windows;
    }
    let planes = x.dims()[0] * x.dims()[1];
    let pool = AveragePool { planes, input: three(input, 1), windows: all };
    Pool { name, kind: Kind::Average(pool), out }.apply(x, unbatched)
}

/// Windows along one axis.
struct Along {
    size: usize,
    /// From the first position of a window to its last, both counted.
    reach: usize,
    stride: usize,
    padding: usize,
}

impl Along {
    /// How many windows there are.
    fn count(&self, axis: usize, ceil_mode: bool, problems: &mut Problems) -> usize {
        let Self { size, reach, stride, padding } = *self;
        problems.check(padding <= reach / 2, || {
            format!(
                "padding {padding} along spatial axis {axis} must be at most half the kernel, which reaches over {reach}"
            )
        });
        let padded = padding.checked_mul(2).and_then(|both| both.checked_add(size));
        let rest = padded.and_then(|padded| padded.checked_sub(reach));
        let Some(rest) = rest else {
            problems.add(format!(
                "along spatial axis {axis} the kernel reaches over {reach} positions, more than the input of {size} \
                 with its padding of {padding} on both sides"
            ));
            return 0;
        };
        let count = if ceil_mode { rest.div_ceil(stride) } else { rest / stride } + 1;
        // The last window must begin inside the input or the padding before it.
        if ceil_mode && (count - 1) * stride >= size + padding { count - 1 } else { count }
    }
}

/// A pooling with all sizes settled, as a custom operator.
#[derive(Clone, Debug)]
struct Pool {
    name: &'static str,
    kind: Kind,
    /// The shape of the result.
    out: Vec<usize>,
}

#[derive(Clone, Debug)]
enum Kind {
    Average(AveragePool),
    Max(MaxPool),
}

/// The operator checks all sizes before it makes a [`Pool`], and operands of custom operators keep their shapes.
const SETTLED: &str = "the sizes were checked when the operator was called";

impl Pool {
    /// Applies the pooling to an input with a batch axis, which the result loses again if it was not there before.
    fn apply(self, x: &Tensor, unbatched: bool) -> Result<Tensor> {
        let shape = self.out.clone();
        let mut problems = Problems::new(self.name);
        check_size(&mut problems, &shape);
        problems.stop()?;
        let out = custom::apply(self, [x], shape)?;
        Ok(if unbatched { out.squeeze(0)? } else { out })
    }
}

impl Kernel<1> for Pool {
    fn name(&self) -> &'static str {
        self.name
    }

    fn forward<T: Real>(&self, [x]: [&[T]; 1]) -> Vec<T> {
        let mut out = vec![T::ZERO; self.out.iter().product()];
        match &self.kind {
            Kind::Average(pool) => average_pool(pool, x, &mut out),
            Kind::Max(pool) => max_pool(pool, x, &mut out),
        }
        .expect(SETTLED);
        out
    }

    fn backward<T: Real>(
        &self,
        [x]: [&[T]; 1],
        _output: &[T],
        grad: &[T],
        [wanted]: [bool; 1],
    ) -> [Option<Vec<T>>; 1] {
        [wanted.then(|| {
            let mut out = vec![T::ZERO; x.len()];
            match &self.kind {
                Kind::Average(pool) => average_pool_gradient(pool, grad, &mut out),
                Kind::Max(pool) => max_pool_gradient(pool, x, grad, &mut out),
            }
            .expect(SETTLED);
            out
        })]
    }
}

#[cfg(test)]
mod tests;
