//! Where a filter stands over its input.

use std::ops::Range;

use super::at_least_one;
use crate::error::{KernelError, KernelErrorKind};

/// How a filter slides over its input, for height and width.
///
/// The default is a step of one over the input as it is. For 1-d data, the entries for the height
/// stay as they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ConvWindow {
    /// Steps of the window, at least 1.
    pub stride: [usize; 2],
    /// Zeros before and after the input.
    pub padding: [[usize; 2]; 2],
    /// Steps between the elements of the window, at least 1.
    pub dilation: [usize; 2],
}

impl Default for ConvWindow {
    fn default() -> Self {
        ConvWindow { stride: [1; 2], padding: [[0; 2]; 2], dilation: [1; 2] }
    }
}

impl ConvWindow {
    /// Height and width of the output: along each axis
    /// `⌊(input + before + after - dilation·(kernel - 1) - 1) / stride⌋ + 1`.
    ///
    /// # Errors
    /// A stride, a dilation or a kernel of zero; a window that is larger than the padded input.
    ///
    /// ```
    /// use ff_kernels::ConvWindow;
    /// let window = ConvWindow { stride: [2, 1], padding: [[1, 1], [0, 1]], ..Default::default() };
    /// assert_eq!(window.output_size([28, 28], [3, 3])?, [14, 27]);
    /// # Ok::<(), ff_kernels::KernelError>(())
    /// ```
    pub fn output_size(
        &self,
        input: [usize; 2],
        kernel: [usize; 2],
    ) -> Result<[usize; 2], KernelError> {
        let mut out = [0; 2];
        for (axis, name) in [(0, "height"), (1, "width")] {
            at_least_one("stride", self.stride[axis])?;
            at_least_one("dilation", self.dilation[axis])?;
            at_least_one("extent of the filter", kernel[axis])?;
            let [before, after] = self.padding[axis];
            let padded = input[axis].checked_add(before).and_then(|n| n.checked_add(after));
            let window =
                (kernel[axis] - 1).checked_mul(self.dilation[axis]).and_then(|n| n.checked_add(1));
            let (Some(padded), Some(window)) = (padded, window) else {
                let shape = vec![input[axis], before, after, kernel[axis], self.dilation[axis]];
                return Err(KernelErrorKind::TooLarge { shape }.into());
            };
            if window > padded {
                return Err(KernelErrorKind::Window { axis: name, window, input: padded }.into());
            }
            out[axis] = (padded - window) / self.stride[axis] + 1;
        }
        Ok(out)
    }

    /// The outputs, of `n_out`, at which element `k` of the window lies inside of the input.
    pub(super) fn inside(&self, axis: usize, k: usize, input: usize, n_out: usize) -> Range<usize> {
        let (stride, before) = (self.stride[axis], self.padding[axis][0]);
        let at = k * self.dilation[axis];
        let first = before.saturating_sub(at).div_ceil(stride).min(n_out);
        let end = (input + before).saturating_sub(at).div_ceil(stride).min(n_out);
        first..end.max(first)
    }

    /// The input under element `k` of the window at output `out`, which must be inside.
    pub(super) fn input(&self, axis: usize, k: usize, out: usize) -> usize {
        out * self.stride[axis] + k * self.dilation[axis] - self.padding[axis][0]
    }

    /// Whether outputs are inputs, one by one.
    pub(super) fn is_identity(&self, kernel: [usize; 2]) -> bool {
        kernel == [1; 2] && self.stride == [1; 2] && self.padding == [[0; 2]; 2]
    }
}
