//! Resizing of the spatial axes.

mod taps;

#[cfg(test)]
mod tests;

use candle_core::{DType, Tensor};

use super::custom::{self, Kernel};
use super::parallel::fill_rows;
use super::pool::{adaptive_windows, average};
use super::real::Real;
use super::shape::Around;
use super::spatial::{Problems, check_size};
use crate::tensor::Result;
use taps::{Along, Taps};

/// What [`interpolate`] makes of the input; [`Interpolate::size`] and [`Interpolate::scale`] have torch's defaults.
#[derive(Clone, Debug, PartialEq)]
pub struct Interpolate {
    /// How large the result is.
    pub resize: Resize,
    /// How its values come about.
    pub mode: InterpolateMode,
    /// Whether the first and last elements keep their places, rather than the outer edges of theirs; only for the modes
    /// from linear to trilinear. `None` is no.
    pub align_corners: Option<bool>,
    /// Whether factors only say the size of the result, whose ratio to the size of the input is then used. `None` is no.
    pub recompute_scale_factor: Option<bool>,
    /// Whether windows grow with the factor when an image shrinks; only for bilinear and bicubic.
    pub antialias: bool,
}

impl Interpolate {
    /// To a size: one number for all spatial axes, or one for each.
    pub fn size(size: impl Into<Vec<usize>>, mode: InterpolateMode) -> Self {
        Self::new(Resize::Size(size.into()), mode)
    }

    /// By a factor: one number for all spatial axes, or one for each.
    pub fn scale(factor: impl Into<Vec<f64>>, mode: InterpolateMode) -> Self {
        Self::new(Resize::Scale(factor.into()), mode)
    }

    fn new(resize: Resize, mode: InterpolateMode) -> Self {
        Self { resize, mode, align_corners: None, recompute_scale_factor: None, antialias: false }
    }
}

/// How large the result of [`interpolate`] is.
#[derive(Clone, Debug, PartialEq)]
pub enum Resize {
    /// So many positions along all spatial axes, or along each.
    Size(Vec<usize>),
    /// So many times the positions of the input, rounded down, along all spatial axes, or along each.
    Scale(Vec<f64>),
}

/// How the values of [`interpolate`] come about.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum InterpolateMode {
    /// The element at `⌊position · scale⌋`.
    #[default]
    Nearest,
    /// The element whose centre is nearest.
    NearestExact,
    /// Between two neighbours; one spatial axis.
    Linear,
    /// Linear along both of two spatial axes.
    Bilinear,
    /// Cubic convolution with a = -3/4 (-1/2 with antialias) along both of two spatial axes.
    Bicubic,
    /// Linear along all three of three spatial axes.
    Trilinear,
    /// Averages, as of adaptive pooling.
    Area,
}

impl InterpolateMode {
    fn name(self) -> &'static str {
        match self {
            Self::Nearest => "nearest",
            Self::NearestExact => "nearest-exact",
            Self::Linear => "linear",
            Self::Bilinear => "bilinear",
            Self::Bicubic => "bicubic",
            Self::Trilinear => "trilinear",
            Self::Area => "area",
        }
    }

    /// The number of spatial axes, if the mode is for one.
    fn axes(self) -> Option<usize> {
        match self {
            Self::Linear => Some(1),
            Self::Bilinear | Self::Bicubic => Some(2),
            Self::Trilinear => Some(3),
            Self::Nearest | Self::NearestExact | Self::Area => None,
        }
    }
}

/// Resizes the spatial axes, as `torch.nn.functional.interpolate`.
///
/// `x` is `[batch, channels, ..]` with one to three spatial axes. Position `i` of an axis lies at `(i + 1/2) · scale - 1/2` of
/// the input, with `align_corners` at `i · scale`, where `scale` is the ratio of the sizes (or 1 / factor), with `align_corners`
/// the ratio of the sizes less 1. The modes compute from there along each axis, with the elements at the edges
/// continued outwards. Differentiable; f16 and bf16 are computed in f32 and rounded once.
///
/// # Errors
///
/// Shapes, settings or a dtype that do not fit, each with what would; `antialias` together with `align_corners`, which is
/// not supported; a device other than the CPU.
///
/// ```
/// use candle_core::{Device, Tensor};
/// use fastforward::tensor::float::{Interpolate, InterpolateMode, interpolate};
///
/// let x = Tensor::new(&[[[0f32, 4.]]], &Device::Cpu)?;
/// let wide = interpolate(&x, &Interpolate::size([4], InterpolateMode::Linear))?;
/// assert_eq!(wide.to_vec3::<f32>()?, [[[0., 1., 3., 4.]]]);
/// # Ok::<(), fastforward::tensor::Error>(())
/// ```
pub fn interpolate(x: &Tensor, options: &Interpolate) -> Result<Tensor> {
    let name = "interpolate";
    let Interpolate { resize, mode, align_corners, recompute_scale_factor, antialias } = options;
    let mut problems = Problems::new(name);
    problems.check((3..=5).contains(&x.rank()), || {
        format!(
            "input must be [batch, channels, ..] with 1 to 3 spatial axes, found {:?}",
            x.dims()
        )
    });
    problems.stop()?;
    let input = &x.dims()[2..];
    let axes = input.len();
    problems.check(mode.axes().is_none_or(|wanted| wanted == axes), || {
        format!(
            "mode `{}` is for another number of spatial axes than the {axes} of {:?}",
            mode.name(),
            x.dims()
        )
    });
    problems.check(mode.axes().is_some() || align_corners.is_none(), || {
        format!(
            "align_corners belongs to the modes linear, bilinear, bicubic and trilinear, found `{}`",
            mode.name()
        )
    });
    let windowed = matches!(mode, InterpolateMode::Bilinear | InterpolateMode::Bicubic);
    problems.check(!antialias || windowed, || {
        format!("antialias belongs to the modes bilinear and bicubic, found `{}`", mode.name())
    });
    problems.check(!antialias || *align_corners != Some(true), || {
        "antialias together with align_corners is not supported; leave one of them out".to_owned()
    });
    let (given, what) = match resize {
        Resize::Size(size) => (size.len(), "size"),
        Resize::Scale(factor) => (factor.len(), "scale_factor"),
    };
    problems.check(given == 1 || given == axes, || {
        format!(
            "{what} must hold one number, or one for each of the {axes} spatial axes, found {given}"
        )
    });
    problems.check(!input.contains(&0), || {
        format!("the input {:?} is empty along a spatial axis", x.dims())
    });
    let recompute = *recompute_scale_factor == Some(true);
    problems.check(!recompute || matches!(resize, Resize::Scale(_)), || {
        "recompute_scale_factor means nothing with a size; leave it out, or give a scale_factor"
            .to_owned()
    });
    problems.stop()?;

    let each = |i: usize| if given == 1 { 0 } else { i };
    let mut output = Vec::new();
    let mut factors = vec![None; axes];
    for (i, size) in input.iter().enumerate() {
        let positions = match resize {
            Resize::Size(size) => size[each(i)],
            Resize::Scale(factor) => {
                let factor = factor[each(i)];
                let positions = *size as f64 * factor;
                let usable = factor.is_finite() && factor > 0.0 && positions < isize::MAX as f64;
                problems
                    .check(usable, || format!("scale_factor {factor} must be positive and finite"));
                factors[i] = (!recompute).then_some(factor);
                if usable { positions as usize } else { 1 }
            }
        };
        problems.check(positions > 0, || {
            format!(
                "spatial axis {i} of {size} would have no positions left; it needs one at least"
            )
        });
        output.push(positions);
    }
    let out = [&x.dims()[..2], &output[..]].concat();
    check_size(&mut problems, &out);
    problems.stop()?;

    if *mode == InterpolateMode::Area {
        return match (input, &output[..]) {
            (&[a], &[x0]) => area(name, x, [a], [x0]),
            (&[a, b], &[x0, x1]) => area(name, x, [a, b], [x0, x1]),
            (&[a, b, c], &[x0, x1, x2]) => area(name, x, [a, b, c], [x0, x1, x2]),
            _ => unreachable!("the rank was checked"),
        };
    }
    let along = |i: usize| Along {
        mode: *mode,
        input: input[i],
        output: output[i],
        factor: factors[i],
        align_corners: *align_corners == Some(true),
        antialias: *antialias,
        single: x.dtype() != DType::F64,
    };
    let steps = (0..axes).map(|i| along(i).taps()).collect();
    custom::apply(Resample { dims: x.dims().to_vec(), steps }, [x], out)
}

fn area<const N: usize>(
    name: &'static str,
    x: &Tensor,
    input: [usize; N],
    output: [usize; N],
) -> Result<Tensor> {
    let windows = adaptive_windows(name, input, output.map(Some))?;
    average(name, x, false, input, windows)
}

/// Weighted sums along each spatial axis, one axis after the other.
struct Resample {
    /// The shape of the input.
    dims: Vec<usize>,
    /// For each spatial axis.
    steps: Vec<Taps>,
}

impl Kernel<1> for Resample {
    fn name(&self) -> &'static str {
        "interpolate"
    }

    fn forward<T: Real>(&self, [x]: [&[T]; 1]) -> Vec<T> {
        let mut dims = self.dims.clone();
        let mut out: Option<Vec<T>> = None;
        for (i, taps) in self.steps.iter().enumerate().rev() {
            let around = Around::axis(&dims, i + 2);
            out = Some(along(out.as_deref().unwrap_or(x), around, taps));
            dims[i + 2] = taps.len();
        }
        out.unwrap_or_default()
    }

    fn backward<T: Real>(
        &self,
        _x: [&[T]; 1],
        _output: &[T],
        grad: &[T],
        [wanted]: [bool; 1],
    ) -> [Option<Vec<T>>; 1] {
        [wanted.then(|| {
            let mut dims = self.dims.clone();
            for (i, taps) in self.steps.iter().enumerate() {
                dims[i + 2] = taps.len();
            }
            let mut out: Option<Vec<T>> = None;
            for (i, taps) in self.steps.iter().enumerate() {
                let around = Around::axis(&dims, i + 2);
                let back = taps.transposed(self.dims[i + 2]);
                out = Some(along(out.as_deref().unwrap_or(grad), around, &back));
                dims[i + 2] = self.dims[i + 2];
            }
            out.unwrap_or_default()
        })]
    }
}

/// Applies taps along one axis.
fn along<T: Real>(x: &[T], around: Around, taps: &Taps) -> Vec<T> {
    let Around { outer, n, inner } = around;
    let taps: Vec<Vec<(usize, T)>> = (0..taps.len())
        .map(|i| taps.of(i).iter().map(|(at, weight)| (*at, T::of(*weight))).collect())
        .collect();
    if inner == 1 {
        return fill_rows(
            outer,
            taps.len(),
            #[inline(always)]
            |row, out| {
                let x = &x[row * n..][..n];
                for (out, taps) in out.iter_mut().zip(&taps) {
                    if let Some(((at, weight), rest)) = taps.split_first() {
                        *out = x[*at] * *weight;
                        for (at, weight) in rest {
                            *out += x[*at] * *weight;
                        }
                    }
                }
            },
        );
    }
    fill_rows(
        outer * taps.len(),
        inner,
        #[inline(always)]
        |row, out| {
            let x = &x[row / taps.len() * n * inner..][..n * inner];
            for (i, (at, weight)) in taps[row % taps.len()].iter().enumerate() {
                let x = &x[at * inner..][..inner];
                if i == 0 {
                    for (out, x) in out.iter_mut().zip(x) {
                        *out = *x * *weight;
                    }
                } else {
                    for (out, x) in out.iter_mut().zip(x) {
                        *out += *x * *weight;
                    }
                }
            }
        },
    )
}
