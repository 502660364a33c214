//! Convolution over one, two or three spatial axes: the map itself, its transpose, and the gradient of its weight.
//!
//! # How it works
//!
//! No column matrix is built. The padded input is laid out once so that every tap of the kernel reads *consecutive*
//! elements for consecutive output positions (see [`grid`]); then row `k = (channel, tap)` of the column matrix is the
//! slice that begins at `offset[k]`, and a register-tiled product runs over those slices directly (see [`product`]).
//! Strides, dilations, groups, depthwise kernels and the transposed map are all this one product with other offsets;
//! a 1×1 kernel reads the input in place.

mod grid;
mod product;
mod weight;

#[cfg(test)]
mod tests;

use rayon::prelude::*;

use crate::error::{KernelError, KernelErrorKind};
use crate::lanes::Real;
use grid::Grid;
use product::{Packed, Product, Start, product};

/// The sizes of a convolution: everything but the numbers.
///
/// Three spatial axes always; a convolution over fewer has leading axes of size 1. Tensors are in C order:
/// input `[batch, in_channels, input..]`, weight `[out_channels, in_channels / groups, kernel..]`, output
/// `[batch, out_channels, output..]`.
///
/// Output position `o` and tap `t` of an axis meet at input position `o · stride + t · dilation - padding`; what lies
/// outside the input counts as zero, so the padding after an axis needs no number: it follows from `output`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConvShape {
    /// Images.
    pub batch: usize,
    /// Channels of the input, all groups together.
    pub in_channels: usize,
    /// Channels of the output, all groups together.
    pub out_channels: usize,
    /// Groups of channels that do not see each other; divides both numbers of channels.
    pub groups: usize,
    /// Spatial extents of the input.
    pub input: [usize; 3],
    /// Spatial extents of the output.
    pub output: [usize; 3],
    /// Taps along each axis.
    pub kernel: [usize; 3],
    /// Input positions from one output position to the next.
    pub stride: [usize; 3],
    /// Input positions from one tap to the next.
    pub dilation: [usize; 3],
    /// Input positions that the first tap lies before the input.
    pub padding: [usize; 3],
}

/// Convolves: `out[n, o, p] = bias[o] + Σ_{c, t} weight[o, c, t] · x[n, c, p · stride + t · dilation - padding]`.
///
/// # Errors
///
/// A slice has another length than `shape` says, or `shape` is no convolution.
///
/// ```
/// use ff_kernels::{ConvShape, conv};
///
/// let shape = ConvShape {
///     batch: 1,
///     in_channels: 1,
///     out_channels: 1,
///     groups: 1,
///     input: [1, 1, 4],
///     output: [1, 1, 4],
///     kernel: [1, 1, 3],
///     stride: [1; 3],
///     dilation: [1; 3],
///     padding: [0, 0, 1],
/// };
/// let mut out = [0.0; 4];
/// conv(&shape, &[1.0, 2.0, 3.0, 4.0], &[1.0, 0.0, -1.0], Some(&[10.0]), &mut out)?;
/// assert_eq!(out, [8.0, 8.0, 8.0, 13.0]);
/// # Ok::<(), ff_kernels::KernelError>(())
/// ```
pub fn conv<T: Real>(
    shape: &ConvShape,
    x: &[T],
    weight: &[T],
    bias: Option<&[T]>,
    out: &mut [T],
) -> Result<(), KernelError> {
    let sizes = shape.check()?;
    length("input", sizes.x, x.len())?;
    length("weight", sizes.weight, weight.len())?;
    length("output", sizes.y, out.len())?;
    bias.map_or(Ok(()), |bias| length("bias", shape.out_channels, bias.len()))?;
    if out.is_empty() {
        return Ok(());
    }
    if x.is_empty() {
        fill_bias(shape.batch, shape.out_channels, bias, out);
        return Ok(());
    }
    let shape = &shape.flattened();
    let grid = Grid::new(shape);
    let (in_group, out_group) = shape.group_channels();
    let depth = in_group * grid.taps.len();
    let weights: Vec<Packed<T>> = weight
        .chunks(out_group * depth)
        .map(|weight| Packed::new(out_group, depth, |o, k| weight[o * depth + k]))
        .collect();
    let in_place = grid.reads_in_place(shape);
    let plane = if in_place { grid.extent() } else { grid.plane };
    let offsets: Vec<usize> = (0..in_group)
        .flat_map(|c| grid.taps.iter().map(move |tap| (c, tap)))
        .map(|(c, tap)| (c * grid.phases.len() + tap.phase) * plane + tap.shift)
        .collect();
    let store = grid.output_store(shape);
    let x_unit = in_group * shape.input.iter().product::<usize>();
    for_units(shape, out_group * store.plane, out, |unit, out, scratch, parallel| {
        let x = &x[unit * x_unit..][..x_unit];
        let source = if in_place {
            x
        } else {
            grid.lay_out_input(shape, x, scratch, parallel);
            &scratch[..]
        };
        let weights = &weights[unit % shape.groups];
        let (offsets, positions, store) = (&offsets, grid.positions, &store);
        let start = Start::of(bias, unit % shape.groups, out_group);
        product(Product { weights, offsets, source, positions, store, start }, out, parallel);
    });
    Ok(())
}

/// The transpose of [`conv`]: spreads `y` (of the output's shape) over `x` (of the input's shape).
///
/// `x[n, c, i] = bias[c] + Σ weight[o, c, t] · y[n, o, p]` over all `o` and all `p, t` that meet at `i`. With the
/// gradient of a convolution's output this is the gradient of its input; with a bias (one per *input* channel) it is
/// the transposed convolution.
///
/// # Errors
///
/// A slice has another length than `shape` says, or `shape` is no convolution.
pub fn conv_transposed<T: Real>(
    shape: &ConvShape,
    y: &[T],
    weight: &[T],
    bias: Option<&[T]>,
    x: &mut [T],
) -> Result<(), KernelError> {
    let sizes = shape.check()?;
    length("input", sizes.x, x.len())?;
    length("weight", sizes.weight, weight.len())?;
    length("output", sizes.y, y.len())?;
    bias.map_or(Ok(()), |bias| length("bias", shape.in_channels, bias.len()))?;
    if x.is_empty() {
        return Ok(());
    }
    let shape = &shape.flattened();
    let grid = if y.is_empty() {
        None
    } else {
        Some(Grid::new(shape)).filter(|grid| grid.covers_input(shape))
    };
    let covered = grid.is_some();
    if !covered {
        fill_bias(shape.batch, shape.in_channels, bias, x);
    }
    if y.is_empty() {
        return Ok(());
    }
    let grid = grid.unwrap_or_else(|| Grid::new(shape));
    let (in_group, out_group) = shape.group_channels();
    let taps = grid.taps.len();
    let in_place = grid.reads_in_place(shape);
    let front = if in_place { 0 } else { grid.max_shift() };
    let plane = if in_place { grid.extent() } else { grid::pitch(front + grid.extent()) };
    // One product per phase: its taps are those that reach the input positions of the phase.
    let phases: Vec<_> = (0..grid.phases.len())
        .map(|phase| {
            let taps_here: Vec<(usize, usize)> = (0..taps)
                .filter(|&t| grid.taps[t].phase == phase)
                .map(|t| (t, grid.taps[t].shift))
                .collect();
            let here = taps_here.len();
            let weights: Vec<Packed<T>> = weight
                .chunks(out_group * in_group * taps)
                .map(|weight| {
                    Packed::new(in_group, out_group * here, |c, k| {
                        let (o, t) = (k / here, taps_here[k % here].0);
                        weight[(o * in_group + c) * taps + t]
                    })
                })
                .collect();
            let offsets: Vec<usize> = (0..out_group)
                .flat_map(|o| taps_here.iter().map(move |(_, shift)| o * plane + front - shift))
                .collect();
            (weights, offsets, grid.input_store(shape, phase))
        })
        .collect();
    let y_unit = out_group * shape.output.iter().product::<usize>();
    let x_unit = in_group * shape.input.iter().product::<usize>();
    for_units(shape, x_unit, x, |unit, x, scratch, parallel| {
        let y = &y[unit * y_unit..][..y_unit];
        let source = if in_place {
            y
        } else {
            grid.lay_out_output(shape, y, front, plane, scratch, parallel);
            &scratch[..]
        };
        for (weights, offsets, store) in &phases {
            let weights = &weights[unit % shape.groups];
            let positions = grid.extent();
            let start = match covered {
                true => Start::of(bias, unit % shape.groups, in_group),
                false => Start::Output,
            };
            product(Product { weights, offsets, source, positions, store, start }, x, parallel);
        }
    });
    Ok(())
}

/// The gradient of the weight: `grad[o, c, t] = Σ_{n, p} y[n, o, p] · x[n, c, p · stride + t · dilation - padding]`,
/// where `y` is the gradient of the output.
///
/// Where `x` is infinite or NaN, taps that never meet the place may become NaN as well.
///
/// # Errors
///
/// A slice has another length than `shape` says, or `shape` is no convolution.
pub fn conv_weight_gradient<T: Real>(
    shape: &ConvShape,
    x: &[T],
    y: &[T],
    grad: &mut [T],
) -> Result<(), KernelError> {
    let sizes = shape.check()?;
    length("input", sizes.x, x.len())?;
    length("weight", sizes.weight, grad.len())?;
    length("output", sizes.y, y.len())?;
    grad.fill(T::default());
    if x.is_empty() || y.is_empty() || grad.is_empty() {
        return Ok(());
    }
    weight::gradient(&shape.flattened(), x, y, grad);
    Ok(())
}

/// The sum over images and positions of each channel: the gradient of a convolution's bias.
///
/// `y` is `[batch, channels, positions]`; sums are kept in double precision.
///
/// # Errors
///
/// `y` has not `batch · channels · positions` elements.
pub fn channel_sums<T: Real>(
    y: &[T],
    batch: usize,
    channels: usize,
    positions: usize,
) -> Result<Vec<f64>, KernelError> {
    length("values", batch * channels * positions, y.len())?;
    let mut sums = vec![0.0; channels];
    if positions == 0 {
        return Ok(sums);
    }
    for image in y.chunks(channels * positions) {
        for (sum, y) in sums.iter_mut().zip(image.chunks(positions)) {
            // Lanes of their own, so that the additions need not wait for each other.
            let mut lanes = [0.0; 16];
            let chunks = y.chunks_exact(16);
            let tail: f64 = chunks.remainder().iter().map(|y| y.widen()).sum();
            for chunk in chunks {
                for (lane, y) in lanes.iter_mut().zip(chunk) {
                    *lane += y.widen();
                }
            }
            *sum += lanes.iter().sum::<f64>() + tail;
        }
    }
    Ok(sums)
}

/// How many elements each tensor has.
struct Sizes {
    x: usize,
    weight: usize,
    y: usize,
}

impl ConvShape {
    /// Checks what the arithmetic relies on.
    fn check(&self) -> Result<Sizes, KernelError> {
        let positive = [
            ("groups", &[self.groups][..]),
            ("kernel", &self.kernel),
            ("stride", &self.stride),
            ("dilation", &self.dilation),
        ];
        for (what, values) in positive {
            if values.contains(&0) {
                return Err(option(what, "positive", 0));
            }
        }
        for (what, channels) in
            [("in_channels", self.in_channels), ("out_channels", self.out_channels)]
        {
            if !channels.is_multiple_of(self.groups) {
                return Err(option(what, "a multiple of the number of groups", channels));
            }
        }
        let size = |channels: usize, batch: usize, spatial: &[usize; 3]| {
            let shape = [batch, channels, spatial[0], spatial[1], spatial[2]];
            product_of(&shape).ok_or_else(|| too_large(&shape))
        };
        // Positions on the padded grid must be countable too.
        for axis in 0..3 {
            let reach = |n: usize, step: usize| n.checked_mul(step);
            let last = reach(self.output[axis], self.stride[axis])
                .zip(reach(self.kernel[axis], self.dilation[axis]))
                .and_then(|(a, b)| a.checked_add(b))
                .and_then(|n| n.checked_add(self.padding[axis]))
                .filter(|n| isize::try_from(*n).is_ok());
            if last.is_none() {
                return Err(too_large(&[
                    self.output[axis],
                    self.stride[axis],
                    self.kernel[axis],
                    self.dilation[axis],
                ]));
            }
        }
        Ok(Sizes {
            x: size(self.in_channels, self.batch, &self.input)?,
            weight: size(self.out_channels, self.in_channels / self.groups, &self.kernel)?,
            y: size(self.out_channels, self.batch, &self.output)?,
        })
    }

    /// Whether every output position reads the same input position, and no other.
    fn is_pointwise(&self) -> bool {
        self.kernel == [1; 3]
            && self.stride == [1; 3]
            && self.padding == [0; 3]
            && self.input == self.output
    }

    /// The same convolution with all positions along one axis, if it does not look around.
    fn flattened(&self) -> Self {
        let mut shape = self.clone();
        if self.is_pointwise() {
            shape.input = [1, 1, self.input.iter().product()];
            shape.output = shape.input;
        }
        shape
    }

    /// Input and output channels of one group.
    fn group_channels(&self) -> (usize, usize) {
        (self.in_channels / self.groups, self.out_channels / self.groups)
    }

    /// Multiplications of one group of one image.
    fn unit_work(&self) -> usize {
        let (in_group, out_group) = self.group_channels();
        [in_group, out_group]
            .iter()
            .chain(&self.kernel)
            .chain(&self.output)
            .fold(1usize, |work, n| work.saturating_mul(*n))
    }
}

fn product_of(shape: &[usize]) -> Option<usize> {
    shape.iter().try_fold(1usize, |size, n| size.checked_mul(*n))
}

fn option(what: &'static str, must_be: &'static str, found: usize) -> KernelError {
    KernelErrorKind::Option { what, must_be, found: found as f64 }.into()
}

fn too_large(shape: &[usize]) -> KernelError {
    KernelErrorKind::TooLarge { shape: shape.to_vec() }.into()
}

fn length(what: &'static str, expected: usize, found: usize) -> Result<(), KernelError> {
    if expected == found {
        return Ok(());
    }
    Err(KernelErrorKind::Length { what, expected, found }.into())
}

/// Fills every plane with its bias.
fn fill_bias<T: Real>(batch: usize, channels: usize, bias: Option<&[T]>, out: &mut [T]) {
    let Some(bias) = bias else { return out.fill(T::default()) };
    let plane = out.len() / (batch * channels);
    for (plane, bias) in out.chunks_mut(plane).zip(bias.iter().cycle()) {
        plane.fill(*bias);
    }
}

/// Fewer multiplications than this are not worth another thread.
const MIN_PARALLEL: usize = 1 << 17;
/// From this many units on, each is done by one thread.
const MANY_UNITS: usize = 8;

/// Runs `work` for each group of each image: on threads of their own where there are many, else one after the other
/// with threads inside. Which of the two depends on the shape alone, and neither changes a sum.
fn for_units<T: Real>(
    shape: &ConvShape,
    unit_len: usize,
    out: &mut [T],
    work: impl Fn(usize, &mut [T], &mut Vec<T>, bool) + Sync,
) {
    let units = shape.batch * shape.groups;
    if units >= MANY_UNITS && units.saturating_mul(shape.unit_work()) >= MIN_PARALLEL {
        out.par_chunks_mut(unit_len)
            .enumerate()
            .for_each_init(Vec::new, |scratch, (unit, out)| work(unit, out, scratch, false));
    } else {
        let parallel = shape.unit_work() >= MIN_PARALLEL;
        let mut scratch = Vec::new();
        for (unit, out) in out.chunks_mut(unit_len).enumerate() {
            work(unit, out, &mut scratch, parallel);
        }
    }
}
