//! Windows of a convolution as rows of a matrix.

use std::ops::Range;

use ff_kernels::ConvShape;

/// How a convolution's windows lie on its input `[batch, groups · channels, ..]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Windows {
    /// Input channels of one group.
    pub channels: usize,
    /// Groups of channels.
    pub groups: usize,
    /// Taps along each axis, each at least 1.
    pub kernel: Vec<usize>,
    /// Input positions from one window to the next, along each axis; at least 1.
    pub strides: Vec<usize>,
    /// Input positions from one tap to the next, along each axis; at least 1.
    pub dilations: Vec<usize>,
    /// Zeros around the input.
    pub padding: WindowPadding,
}

/// Zeros around the input of a convolution.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WindowPadding {
    /// Before each axis, then after each.
    Explicit(Vec<i64>),
    /// So much that there is an output for each `stride` inputs, an odd one before or after.
    Same {
        /// Whether it stands before.
        odd_before: bool,
    },
}

/// One axis of a concrete input.
#[derive(Clone, Copy, Debug)]
struct Axis {
    extent: usize,
    outputs: usize,
    before: i64,
}

impl Windows {
    /// The windows on an input of this shape.
    ///
    /// # Errors
    /// An input of another rank or number of channels, an empty one; settings that are no convolution's.
    pub fn on(&self, shape: &[usize]) -> Result<Unfolding<'_>, String> {
        let rank = self.kernel.len();
        let (&[batch, channels, ref extents @ ..], true) = (shape, shape.len() == rank + 2) else {
            return Err(format!("its input has shape {shape:?}, expected {} axes", rank + 2));
        };
        let expected = self.groups * self.channels;
        if channels != expected {
            return Err(format!("its input has {channels} channels, expected {expected}"));
        }
        self.check()?;
        if extents.contains(&0) {
            return Err(format!("its input of shape {shape:?} is empty"));
        }
        let axes: Vec<Axis> = (0..rank).map(|at| self.axis(at, extents[at])).collect();
        let positions: usize = axes.iter().map(|axis| axis.outputs).product();
        let plane = extents.iter().product();
        Ok(Unfolding { windows: self, len: batch * positions, axes, plane, positions })
    }

    /// The convolution of an input of this shape to `out_channels` by these windows.
    ///
    /// ```
    /// use fastforward_core::algorithms::layerwise::{WindowPadding, Windows};
    /// let windows = Windows {
    ///     channels: 3,
    ///     groups: 1,
    ///     kernel: vec![5],
    ///     strides: vec![2],
    ///     dilations: vec![1],
    ///     padding: WindowPadding::Explicit(vec![2, 2]),
    /// };
    /// assert_eq!(windows.conv_shape(&[1, 3, 8], 4)?.output, [1, 1, 4]);
    /// # Ok::<(), String>(())
    /// ```
    ///
    /// # Errors
    /// As for [`on`](Self::on); more than three axes, and padding that takes from the input.
    pub fn conv_shape(&self, shape: &[usize], out_channels: usize) -> Result<ConvShape, String> {
        let axes = self.on(shape)?.axes;
        let rank = axes.len();
        if rank > 3 {
            return Err(format!("windows of {rank} axes, expected 3 at most"));
        }
        let mut found = ConvShape {
            batch: shape[0],
            in_channels: shape[1],
            out_channels,
            groups: self.groups,
            input: [1; 3],
            output: [1; 3],
            kernel: [1; 3],
            stride: [1; 3],
            dilation: [1; 3],
            padding: [0; 3],
        };
        for (at, axis) in axes.iter().enumerate() {
            let to = 3 - rank + at;
            found.input[to] = axis.extent;
            found.output[to] = axis.outputs;
            found.kernel[to] = self.kernel[at];
            found.stride[to] = self.strides[at];
            found.dilation[to] = self.dilations[at];
            found.padding[to] = usize::try_from(axis.before)
                .map_err(|_| format!("a padding of {}, expected none below 0", axis.before))?;
        }
        Ok(found)
    }

    fn check(&self) -> Result<(), String> {
        let rank = self.kernel.len();
        for (what, found) in
            [("kernel", &self.kernel), ("strides", &self.strides), ("dilations", &self.dilations)]
        {
            if found.len() != rank || found.contains(&0) {
                return Err(format!("`{what}` is {found:?}, expected {rank} positive numbers"));
            }
        }
        match &self.padding {
            WindowPadding::Explicit(pads) if pads.len() != 2 * rank => {
                Err(format!("{} paddings, expected {}", pads.len(), 2 * rank))
            }
            _ => Ok(()),
        }
    }

    fn axis(&self, at: usize, extent: usize) -> Axis {
        let (kernel, stride) = (self.kernel[at], self.strides[at]);
        let reach = (kernel - 1) * self.dilations[at] + 1;
        match &self.padding {
            WindowPadding::Explicit(pads) => {
                let (before, after) = (pads[at], pads[at + self.kernel.len()]);
                let room = extent as i64 + before + after - reach as i64;
                let outputs = if room < 0 { 0 } else { room as usize / stride + 1 };
                Axis { extent, outputs, before }
            }
            WindowPadding::Same { odd_before } => {
                let outputs = extent.div_ceil(stride);
                let total = (outputs.saturating_sub(1) * stride + reach).saturating_sub(extent);
                let before = if *odd_before { total.div_ceil(2) } else { total / 2 };
                Axis { extent, outputs, before: before as i64 }
            }
        }
    }
}

/// The windows of a convolution on one input.
#[derive(Debug)]
pub struct Unfolding<'w> {
    windows: &'w Windows,
    axes: Vec<Axis>,
    /// Numbers of one channel of one image.
    plane: usize,
    /// Windows of one image.
    positions: usize,
    /// Windows of all images.
    len: usize,
}

impl Unfolding<'_> {
    /// Windows of all images.
    pub fn count(&self) -> usize {
        self.len
    }

    /// Writes some of the windows of one group: rows of `channels · kernel`, in the order of a weight's elements; zeros
    /// where a window reaches into the padding.
    pub fn write(&self, x: &[f32], group: usize, windows: Range<usize>, out: &mut Vec<f32>) {
        let Windows { channels, groups, kernel, .. } = self.windows;
        let mut offsets = vec![None; kernel.iter().product()];
        out.clear();
        for window in windows {
            let (image, position) = (window / self.positions, window % self.positions);
            self.offsets(position, &mut offsets);
            let start = (image * groups + group) * channels * self.plane;
            for channel in x[start..start + channels * self.plane].chunks_exact(self.plane) {
                out.extend(offsets.iter().map(|at| at.map_or(0.0, |at: usize| channel[at])));
            }
        }
    }

    /// Where in a channel each tap of the window at `position` reads; `None` in the padding.
    fn offsets(&self, mut position: usize, offsets: &mut [Option<usize>]) {
        let Self { windows, axes, .. } = self;
        let mut corner = vec![0i64; axes.len()];
        for (at, axis) in axes.iter().enumerate().rev() {
            corner[at] = (position % axis.outputs * windows.strides[at]) as i64 - axis.before;
            position /= axis.outputs;
        }
        for (tap, offset) in offsets.iter_mut().enumerate() {
            let (mut tap, mut stride, mut found) = (tap, 1, Some(0));
            for (at, axis) in axes.iter().enumerate().rev() {
                let index = corner[at] + (tap % windows.kernel[at] * windows.dilations[at]) as i64;
                tap /= windows.kernel[at];
                found = match usize::try_from(index) {
                    Ok(index) if index < axis.extent => {
                        found.map(|sum: usize| sum + index * stride)
                    }
                    _ => None,
                };
                stride *= axis.extent;
            }
            *offset = found;
        }
    }
}
