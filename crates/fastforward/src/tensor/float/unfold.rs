//! Windows of an image as columns.

use candle_core::Tensor;

use super::custom::{self, Kernel};
use super::real::Real;
use super::spatial::{Problems, batched, check_size, reach, split};
use crate::tensor::Result;

/// The settings of [`unfold`]; [`Unfold::new`] has torch's defaults.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unfold {
    /// Positions of a window.
    pub kernel_size: [usize; 2],
    /// Input positions from one position of a window to the next.
    pub dilation: [usize; 2],
    /// Zeros on both sides of each axis.
    pub padding: [usize; 2],
    /// Input positions from one window to the next.
    pub stride: [usize; 2],
}

impl Unfold {
    /// All windows inside the input.
    pub fn new(kernel_size: [usize; 2]) -> Self {
        Self { kernel_size, dilation: [1; 2], padding: [0; 2], stride: [1; 2] }
    }
}

/// The windows of an image as columns, as `torch.nn.functional.unfold`.
///
/// `x` is `[batch, channels, height, width]`, or without the batch; the result `[batch, channels · kernel height · kernel
/// width, windows]`. Window `(h, w)` is column `h · windows along the width + w`, its position `(c, i, j)` is row
/// `(c · kernel height + i) · kernel width + j`. There are `⌊(size + 2 · padding - dilation · (kernel - 1) - 1) / stride⌋ + 1`
/// windows along each axis, and zeros around the input. Differentiable: an element's gradient is the sum over its
/// windows. f16 and bf16 are kept, and their gradients summed in f32.
///
/// # Errors
///
/// Shapes, settings or a dtype that do not fit, each with what would; a device other than the CPU.
///
/// ```
/// use candle_core::{Device, Tensor};
/// use fastforward::tensor::float::{Unfold, unfold};
///
/// let x = Tensor::new(&[[[1f32, 2., 3.], [4., 5., 6.]]], &Device::Cpu)?;
/// let columns = unfold(&x, &Unfold::new([2, 2]))?;
/// assert_eq!(columns.to_vec2::<f32>()?, [[1., 2.], [2., 3.], [4., 5.], [5., 6.]]);
/// # Ok::<(), fastforward::tensor::Error>(())
/// ```
pub fn unfold(x: &Tensor, options: &Unfold) -> Result<Tensor> {
    let name = "unfold";
    let Unfold { kernel_size, dilation, padding, stride } = options;
    let (x, unbatched) = batched(name, x, 2)?;
    let mut problems = Problems::new(name);
    problems.positive("kernel_size", kernel_size);
    problems.positive("dilation", dilation);
    problems.positive("stride", stride);
    problems.stop()?;
    let ([batch, channels], size) = split::<2>(x.dims()).expect("a batched input has four axes");
    let mut windows = [0; 2];
    for axis in 0..2 {
        let padded = padding[axis].checked_mul(2).and_then(|both| both.checked_add(size[axis]));
        let (Some(reach), Some(padded)) = (reach(kernel_size[axis], dilation[axis]), padded) else {
            problems.add(format!("the settings {options:?} overflow along axis {axis}"));
            continue;
        };
        problems.check(reach <= padded, || {
            format!(
                "along spatial axis {axis} a window reaches over {reach} positions, more than the padded input of \
                 {padded}"
            )
        });
        windows[axis] = padded.saturating_sub(reach) / stride[axis] + 1;
    }
    check_size(
        &mut problems,
        &[batch, channels, kernel_size[0], kernel_size[1], windows[0], windows[1]],
    );
    problems.stop()?;
    let rows = channels * kernel_size[0] * kernel_size[1];
    let planes = batch * channels;
    let out = custom::apply(
        Columns { options: options.clone(), planes, size, windows },
        [&x],
        (batch, rows, windows[0] * windows[1]),
    )?;
    Ok(if unbatched { out.squeeze(0)? } else { out })
}

struct Columns {
    options: Unfold,
    planes: usize,
    size: [usize; 2],
    windows: [usize; 2],
}

impl Columns {
    /// Calls `visit` with each element of the result, by its number, and the element of the input that it shows.
    fn pairs(&self, mut visit: impl FnMut(usize, usize)) {
        let Unfold { kernel_size, dilation, padding, stride } = &self.options;
        let [height, width] = self.size;
        let [rows, columns] = self.windows;
        let place = |axis: usize, window: usize, tap: usize| {
            (window * stride[axis] + tap * dilation[axis])
                .checked_sub(padding[axis])
                .filter(|place| *place < self.size[axis])
        };
        let mut out = 0;
        for plane in 0..self.planes {
            for i in 0..kernel_size[0] {
                for j in 0..kernel_size[1] {
                    for row in 0..rows {
                        if let Some(h) = place(0, row, i) {
                            for column in 0..columns {
                                if let Some(w) = place(1, column, j) {
                                    visit(out + column, (plane * height + h) * width + w);
                                }
                            }
                        }
                        out += columns;
                    }
                }
            }
        }
    }

    fn len(&self) -> usize {
        let window: usize = self.options.kernel_size.iter().product();
        self.planes * window * self.windows[0] * self.windows[1]
    }
}

impl Kernel<1> for Columns {
    fn name(&self) -> &'static str {
        "unfold"
    }

    fn forward<T: Real>(&self, [x]: [&[T]; 1]) -> Vec<T> {
        let mut out = vec![T::ZERO; self.len()];
        self.pairs(|o, i| out[o] = x[i]);
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
            self.pairs(|o, i| out[i] += grad[o]);
            out
        })]
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};
    use proptest::prelude::*;

    use super::super::testing::{check_gradients, numbers, values};
    use super::super::{Conv, Padding, conv2d};
    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        /// The product of a weight with the columns is the convolution.
        #[test]
        fn columns_are_those_of_convolution(
            size in [4usize..7, 4usize..7],
            kernel_size in [1usize..4, 1usize..4],
            stride in [1usize..4, 1usize..3],
            padding in [0usize..3, 0usize..3],
            dilation in [1usize..2, 1usize..2],
        ) {
            let x = numbers(&[2, 3, size[0], size[1]], 1);
            let weight = numbers(&[4, 3, kernel_size[0], kernel_size[1]], 2);
            let options = Unfold { kernel_size, dilation, padding, stride };
            let columns = unfold(&x, &options).unwrap();
            let flat = weight.flatten_from(1).unwrap().unsqueeze(0).unwrap();
            let product = flat.broadcast_matmul(&columns).unwrap();
            let conv = Conv { stride, padding: Padding::Explicit(padding), dilation, groups: 1 };
            let expected = conv2d(&x, &weight, None, &conv).unwrap();
            for (a, b) in values(&product).iter().zip(values(&expected)) {
                prop_assert!((a - b).abs() < 1e-12);
            }
            check_gradients(&[x], |t| unfold(&t[0], &options));
        }
    }

    /// Values of `torch.nn.functional` 2.15.
    #[test]
    fn results_are_those_of_pytorch() {
        let x = Tensor::arange(0f32, 12., &Device::Cpu).unwrap().reshape((1, 1, 3, 4)).unwrap();
        let options =
            Unfold { dilation: [2, 1], padding: [1, 0], stride: [1, 2], ..Unfold::new([2, 2]) };
        let columns = unfold(&x, &options).unwrap();
        assert_eq!(columns.dims(), [1, 4, 6]);
        let expected = [
            [0., 0., 0., 2., 4., 6.],
            [0., 0., 1., 3., 5., 7.],
            [4., 6., 8., 10., 0., 0.],
            [5., 7., 9., 11., 0., 0.],
        ];
        assert_eq!(columns.squeeze(0).unwrap().to_vec2::<f32>().unwrap(), expected);
    }

    #[test]
    fn whatever_does_not_fit_is_said() {
        let say = |result: Result<Tensor>| result.unwrap_err().to_string();
        let x = numbers(&[1, 2, 3, 3], 1);
        let zero = Unfold { stride: [0, 1], ..Unfold::new([0, 2]) };
        assert_eq!(
            say(unfold(&x, &zero)),
            "unfold: kernel_size must be positive, found [0, 2]; stride must be positive, found [0, 1]"
        );
        assert_eq!(
            say(unfold(&x, &Unfold::new([4, 1]))),
            "unfold: along spatial axis 0 a window reaches over 4 positions, more than the padded input of 3"
        );
        let huge = Unfold { padding: [usize::MAX / 4; 2], ..Unfold::new([1, 1]) };
        assert!(say(unfold(&x, &huge)).contains("more than memory can hold"));
        let whole = x.to_dtype(DType::U8).unwrap();
        assert!(say(unfold(&whole, &Unfold::new([1, 1]))).contains("dtype u8"));
        assert!(
            say(unfold(&numbers(&[3, 3], 1), &Unfold::new([1, 1]))).contains("must have 4 axes")
        );
    }
}
