//! Convolutions on codes.

mod direct;
mod filter;
mod unfolded;
mod window;

pub use filter::PackedFilter;
pub use window::ConvWindow;

use super::finish::Sum;
use super::operand::{ACTIVATION, ANY_CODE, Operand, WEIGHT, Width};
use super::product::Product;
use super::view::{CodeView, elements};
use crate::affine::Affine;
use crate::error::{KernelError, KernelErrorKind, check_len};
use filter::{Form, Kind};

/// Writes the convolution of `x` with a filter, as PyTorch's `conv2d` defines it (a correlation).
///
/// With `(c, y, x)` over the channels of the output channel's group and the window,
///
/// `out[n, j, oy, ox] = s_x·s_w[j]·Σ (q_x[n, c, iy, ix] + o_x)(q_w[j, c, y, x] + o_w[j]) + bias[j]`
///
/// where `iy = oy·stride + y·dilation - padding`, `ix` alike, and terms outside of the input are
/// left out: padding is a true zero, also where no code stands for zero. Offsets are rounded first,
/// half to even. `x` is `[batch, channels, height, width]`, with any strides and one set of
/// parameters; those of the filter are one set, or one per output channel. A 1-d convolution has
/// height 1 everywhere. `out` is `[batch, out, height, width]` with
/// [`ConvWindow::output_size`], contiguous. Exactness and rounding are those of
/// [`integer_linear`](super::integer_linear), with `channels / groups · height · width` terms.
///
/// # Errors
/// As [`integer_linear`](super::integer_linear); windows that do not fit the padded input; strides
/// or dilations of zero.
///
/// ```
/// use ff_kernels::{Affine, CodeView, ConvWindow, PackedFilter, integer_conv};
/// let x = CodeView::new(&[1, 2, 3, 4], [1, 1, 1, 4])?;
/// let filter = PackedFilter::new(CodeView::new(&[1, 2, 3], [1, 1, 1, 3])?, 1)?;
/// let window = ConvWindow { padding: [[0, 0], [1, 1]], ..ConvWindow::default() };
/// // The code of zero would be -300: it does not exist, and padding is zero nevertheless.
/// let x_affine = Affine { scale: &[0.5], offset: Some(&[300.0]) };
/// let mut out = [0.0; 4];
/// integer_conv(x, x_affine, &filter, Affine { scale: &[1.0], offset: None }, window, None, &mut out)?;
/// assert_eq!(out, [0.5 * (2.0 * 301.0 + 3.0 * 302.0), 907.0, 910.0, 0.5 * (303.0 + 2.0 * 304.0)]);
/// # Ok::<(), ff_kernels::KernelError>(())
/// ```
pub fn integer_conv(
    x: CodeView<'_, 4>,
    x_affine: Affine<'_>,
    filter: &PackedFilter,
    w_affine: Affine<'_>,
    window: ConvWindow,
    bias: Option<&[f32]>,
    out: &mut [f32],
) -> Result<(), KernelError> {
    let job = Job::new((x, x_affine), (filter.kind(), w_affine), window, bias, out)?;
    job.run(&Product::shared(), x, filter, out);
    Ok(())
}

/// [`integer_conv`] by its definition, in 128-bit integers, on the plain codes of the filter
/// (`[out, channels / groups, height, width]`).
///
/// # Errors
/// Those of [`integer_conv`].
pub fn integer_conv_reference(
    x: CodeView<'_, 4>,
    x_affine: Affine<'_>,
    filter: CodeView<'_, 4>,
    w_affine: Affine<'_>,
    window: ConvWindow,
    bias: Option<&[f32]>,
    out: &mut [f32],
) -> Result<(), KernelError> {
    let [n_out, depth, kernel_height, kernel_width] = filter.shape();
    let [batch, channels, height, width] = x.shape();
    let groups = channels.checked_div(depth).unwrap_or(1).max(1);
    filter::check_groups(filter.shape(), groups)?;
    let kind = Kind { shape: filter.shape(), groups, range: filter::range(filter) };
    let job = Job::new((x, x_affine), (kind, w_affine), window, bias, out)?;
    let [out_height, out_width] = job.out_size;
    let inside =
        |at: usize, padding: usize, size: usize| at.checked_sub(padding).filter(|&at| at < size);
    let mut outs = out.iter_mut();
    for n in 0..batch {
        for j in 0..n_out {
            let first = j / (n_out / groups) * depth;
            for oy in 0..out_height {
                for ox in 0..out_width {
                    let mut sum = 0i128;
                    for c in 0..depth {
                        for ky in 0..kernel_height {
                            for kx in 0..kernel_width {
                                let y = oy * window.stride[0] + ky * window.dilation[0];
                                let x_at = ox * window.stride[1] + kx * window.dilation[1];
                                let y = inside(y, window.padding[0][0], height);
                                let x_at = inside(x_at, window.padding[1][0], width);
                                if let (Some(y), Some(x_at)) = (y, x_at) {
                                    let left = i64::from(filter.get([j, c, ky, kx]));
                                    let right = i64::from(x.get([n, first + c, y, x_at]));
                                    sum += i128::from(left + job.filter.offset(j))
                                        * i128::from(right + job.x.offset(0));
                                }
                            }
                        }
                    }
                    let out = outs.next().expect("the length was checked");
                    *out = sum as f32 * (job.x.scale(0) * job.filter.scale(j));
                    if let Some(bias) = bias {
                        *out += bias[j];
                    }
                }
            }
        }
    }
    Ok(())
}

/// A convolution that was checked.
pub(super) struct Job<'a> {
    x: Operand,
    filter: Operand,
    bias: Option<&'a [f32]>,
    window: ConvWindow,
    out_size: [usize; 2],
    width: Width,
}

impl<'a> Job<'a> {
    /// Checks everything there is to check.
    pub(super) fn new(
        (x, x_affine): (CodeView<'_, 4>, Affine<'_>),
        (kind, w_affine): (Kind, Affine<'_>),
        window: ConvWindow,
        bias: Option<&'a [f32]>,
        out: &[f32],
    ) -> Result<Self, KernelError> {
        let Kind { shape: [n_out, depth, ref kernel @ ..], groups, range } = kind;
        let [batch, channels, height, width] = x.shape();
        check_len("channel axis of the input", groups * depth, channels)?;
        let out_size = window.output_size([height, width], *kernel)?;
        check_len("output", elements(&[batch, n_out, out_size[0], out_size[1]])?, out.len())?;
        check_len("bias", n_out, bias.map_or(n_out, <[f32]>::len))?;
        let x = Operand::new(&ACTIVATION, x_affine, 1)?;
        let filter = Operand::new(&WEIGHT, w_affine, n_out)?;
        let terms = elements(&kind.shape[1..])?;
        let width = Width::of(terms, (&x, ANY_CODE), (&filter, range))?;
        Ok(Job { x, filter, bias, window, out_size, width })
    }

    pub(super) fn run(
        &self,
        product: &Product,
        x: CodeView<'_, 4>,
        filter: &PackedFilter,
        out: &mut [f32],
    ) {
        match self.width {
            _ if out.is_empty() => {}
            Width::Narrow => self.run_in::<i32>(product, x, filter, out),
            Width::Wide => self.run_in::<i64>(product, x, filter, out),
        }
    }

    fn run_in<S: Sum>(
        &self,
        product: &Product,
        x: CodeView<'_, 4>,
        filter: &PackedFilter,
        out: &mut [f32],
    ) {
        match filter.form() {
            Form::Product(groups) => unfolded::run::<S>(self, product, x, (filter, groups), out),
            Form::Direct(codes) => direct::run::<S>(self, x, (filter, codes), out),
        }
    }

    /// The scale of an output channel.
    fn scale(&self, channel: usize) -> f32 {
        self.x.scale(0) * self.filter.scale(channel)
    }
}

/// Fails unless an option is at least 1.
fn at_least_one(what: &'static str, found: usize) -> Result<(), KernelError> {
    if found > 0 {
        return Ok(());
    }
    Err(KernelErrorKind::Option { what, must_be: "at least 1", found: 0.0 }.into())
}
