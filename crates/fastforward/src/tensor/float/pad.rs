//! Padding of the last axes.

use candle_core::{DType, Tensor};

use super::spatial::{Problems, check_size};
use crate::tensor::Result;

/// What [`pad`] adds, and where.
#[derive(Clone, Debug, PartialEq)]
pub struct Pad {
    /// Positions before and after the last axis, then before and after the last but one, and so on; negative numbers cut
    /// positions away.
    pub pad: Vec<isize>,
    /// What the added positions hold.
    pub mode: PadMode,
}

impl Pad {
    /// Adds zeros: torch's default.
    pub fn zeros(pad: impl Into<Vec<isize>>) -> Self {
        Self { pad: pad.into(), mode: PadMode::default() }
    }
}

/// What added positions hold.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum PadMode {
    /// One value, rounded to the dtype of the input.
    Constant(f64),
    /// The input mirrored at its first and last element, which are not repeated.
    Reflect,
    /// The first and the last element.
    Replicate,
    /// The input from its other end.
    Circular,
}

impl Default for PadMode {
    fn default() -> Self {
        Self::Constant(0.0)
    }
}

impl PadMode {
    fn name(self) -> &'static str {
        match self {
            Self::Constant(_) => "constant",
            Self::Reflect => "reflect",
            Self::Replicate => "replicate",
            Self::Circular => "circular",
        }
    }
}

/// Pads the last axes, as `torch.nn.functional.pad`.
///
/// [`PadMode::Constant`] works on any number of axes and on any dtype; the other modes, as in torch, on the last axis of
/// `[(batch,) channels, width]`, the last two of `[(batch,) channels, height, width]` or the last three of `[(batch,) channels,
/// depth, height, width]`. Differentiable; an element that is shown several times receives all their gradients.
///
/// # Errors
///
/// A list that is odd or longer than the axes; a mode that does not fit the axes; more positions than an axis has to
/// mirror or to wrap around; a cut that leaves less than nothing; a value that the dtype cannot hold.
///
/// ```
/// use candle_core::{Device, Tensor};
/// use fastforward::tensor::float::{Pad, PadMode, pad};
///
/// let x = Tensor::new(&[[1f32, 2., 3.]], &Device::Cpu)?;
/// assert_eq!(pad(&x, &Pad::zeros([1, -1]))?.to_vec2::<f32>()?, [[0., 1., 2.]]);
/// let mirrored = Pad { pad: vec![2, 1], mode: PadMode::Reflect };
/// assert_eq!(pad(&x, &mirrored)?.to_vec2::<f32>()?, [[3., 2., 1., 2., 3., 2.]]);
/// # Ok::<(), fastforward::tensor::Error>(())
/// ```
pub fn pad(x: &Tensor, options: &Pad) -> Result<Tensor> {
    let Pad { pad, mode } = options;
    let mut problems = Problems::new("pad");
    let axes = pad.len() / 2;
    problems.check(pad.len().is_multiple_of(2), || {
        format!("pad must hold two numbers per axis, found {}: {pad:?}", pad.len())
    });
    problems.check(axes <= x.rank(), || {
        format!("pad {pad:?} is for {axes} axes, the input {:?} has {}", x.dims(), x.rank())
    });
    if !matches!(mode, PadMode::Constant(_)) {
        let fits = (1..=3).contains(&axes) && [axes + 1, axes + 2].contains(&x.rank());
        problems.check(fits, || {
            format!(
                "mode `{}` pads the last axis of 2 or 3, the last two of 3 or 4, or the last three of 4 or 5; found {axes} \
                 of the {} axes of the input {:?}",
                mode.name(),
                x.rank(),
                x.dims()
            )
        });
    }
    problems.stop()?;

    let mut dims = x.dims().to_vec();
    let mut steps = Vec::new();
    for (i, both) in pad.chunks_exact(2).enumerate() {
        let (axis, before, after) = (x.rank() - 1 - i, both[0], both[1]);
        let size = dims[axis];
        let limit = match mode {
            PadMode::Constant(_) => None,
            PadMode::Reflect => Some(size.saturating_sub(1)),
            PadMode::Circular => Some(size),
            PadMode::Replicate => Some(if size == 0 { 0 } else { usize::MAX }),
        };
        if let Some(limit) = limit {
            let most = usize::try_from(before.max(after)).unwrap_or(0);
            problems.check(most <= limit, || {
                format!(
                    "mode `{}` can add at most {limit} positions to axis {axis} of {size}, pad says {before} and {after}",
                    mode.name()
                )
            });
        }
        let padded =
            size.checked_add_signed(before).and_then(|size| size.checked_add_signed(after));
        // A cut may exceed what the other side adds, but not all there is.
        let cut = |by: isize| usize::try_from(by.saturating_neg()).unwrap_or(0);
        let kept = size.checked_sub(cut(before)).and_then(|size| size.checked_sub(cut(after)));
        match (padded, kept) {
            (Some(padded), Some(_)) => dims[axis] = padded,
            _ => problems.add(format!(
                "pad {before} and {after} cut more than the {size} positions of axis {axis}, or add more than can be counted"
            )),
        }
        if (before, after) != (0, 0) {
            steps.push((axis, before, after));
        }
    }
    check_size(&mut problems, &dims);
    if let PadMode::Constant(value) = mode
        && let Some(range) = integers(x.dtype())
    {
        problems.check(value.fract() == 0.0 && range.contains(value), || {
            format!("the value {value} does not exist in {}", x.dtype().as_str())
        });
    }
    problems.stop()?;

    let mut out = x.clone();
    for (axis, before, after) in steps {
        out = match mode {
            PadMode::Constant(value) => constant(&out, axis, before, after, *value)?,
            // Needs its operand contiguous.
            _ => out
                .contiguous()?
                .index_select(&source(*mode, out.dims()[axis], before, after, x)?, axis)?,
        };
    }
    Ok(out)
}

/// The numbers of an integer dtype that `f64` holds exactly.
fn integers(dtype: DType) -> Option<std::ops::RangeInclusive<f64>> {
    match dtype {
        DType::U8 => Some(0.0..=255.0),
        DType::U32 => Some(0.0..=f64::from(u32::MAX)),
        DType::I16 => Some(f64::from(i16::MIN)..=f64::from(i16::MAX)),
        DType::I32 => Some(f64::from(i32::MIN)..=f64::from(i32::MAX)),
        DType::I64 => Some(-9_007_199_254_740_992.0..=9_007_199_254_740_992.0),
        _ => None,
    }
}

fn constant(x: &Tensor, axis: usize, before: isize, after: isize, value: f64) -> Result<Tensor> {
    let size = x.dims()[axis];
    let cut = |by: isize| usize::try_from(by.saturating_neg()).unwrap_or(0);
    let kept = x.narrow(axis, cut(before), size - cut(before) - cut(after))?;
    let fill = |n: isize| {
        let n = usize::try_from(n).ok().filter(|n| *n > 0)?;
        let mut dims = x.dims().to_vec();
        dims[axis] = n;
        let fill = Tensor::full(value, dims, x.device());
        Some(fill.and_then(|fill| fill.to_dtype(x.dtype())))
    };
    let parts: Vec<Tensor> = [fill(before), Some(Ok(kept)), fill(after)]
        .into_iter()
        .flatten()
        .collect::<candle_core::Result<_>>()?;
    Ok(Tensor::cat(&parts, axis)?)
}

/// For each position of the padded axis, the position of the input that it shows.
fn source(mode: PadMode, size: usize, before: isize, after: isize, x: &Tensor) -> Result<Tensor> {
    let size = size as i64;
    let shown: Vec<i64> = (-(before as i64)..size + after as i64)
        .map(|at| match mode {
            PadMode::Reflect if at < 0 => -at,
            PadMode::Reflect if at >= size => 2 * (size - 1) - at,
            PadMode::Replicate => at.clamp(0, size - 1),
            PadMode::Circular => at.rem_euclid(size),
            PadMode::Reflect | PadMode::Constant(_) => at,
        })
        .collect();
    let n = shown.len();
    Ok(Tensor::from_vec(shown, n, x.device())?)
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::super::testing::{check_gradients, numbers, values};
    use super::*;

    const MODES: [PadMode; 4] =
        [PadMode::Constant(0.5), PadMode::Reflect, PadMode::Replicate, PadMode::Circular];

    /// The definition on nested positions.
    fn expected(x: &Tensor, options: &Pad) -> Vec<f64> {
        let (dims, data) = (x.dims(), values(x));
        let pad_of = |axis: usize| {
            let i = dims.len() - 1 - axis;
            let get = |k: usize| options.pad.get(2 * i + k).copied().unwrap_or(0);
            (get(0), get(1))
        };
        let out: Vec<usize> = (0..dims.len())
            .map(|a| (dims[a] as isize + pad_of(a).0 + pad_of(a).1) as usize)
            .collect();
        (0..out.iter().product::<usize>())
            .map(|mut flat| {
                let (mut index, mut stride) = (Some(0), 1);
                for axis in (0..dims.len()).rev() {
                    let n = dims[axis] as isize;
                    let mut at = (flat % out[axis]) as isize - pad_of(axis).0;
                    flat /= out[axis];
                    if !(0..n).contains(&at) {
                        match options.mode {
                            PadMode::Constant(_) => index = None,
                            PadMode::Reflect => at = if at < 0 { -at } else { 2 * n - 2 - at },
                            PadMode::Replicate => at = if at < 0 { 0 } else { n - 1 },
                            PadMode::Circular => at = if at < 0 { at + n } else { at - n },
                        }
                    }
                    index = index.map(|index| index + at as usize * stride);
                    stride *= dims[axis];
                }
                index.map_or(0.5, |index| data[index])
            })
            .collect()
    }

    #[test]
    fn every_mode_is_its_definition_with_its_gradient() {
        for mode in MODES {
            for (dims, pad) in [
                (&[2, 4][..], &[1, 3][..]),
                (&[2, 3, 4], &[0, 2]),
                (&[2, 3, 4], &[3, 1, 1, 2]),
                (&[1, 2, 3, 4], &[-1, 2, 2, -2]),
                (&[2, 2, 3, 3, 4], &[2, 0, 1, 1, 2, -1]),
            ] {
                let options = Pad { pad: pad.to_vec(), mode };
                let x = numbers(dims, 1);
                let y = super::pad(&x, &options).unwrap();
                assert_eq!(values(&y), expected(&x, &options), "{options:?} of {dims:?}");
                check_gradients(&[x], |t| super::pad(&t[0], &options));
            }
        }
    }

    #[test]
    fn constants_pad_any_axes_and_dtypes() {
        let x = Tensor::from_vec(vec![1u8, 2], (1, 1, 1, 1, 2), &Device::Cpu).unwrap();
        let options = Pad { pad: vec![0, 1, 0, 0, 0, 0, 0, 0, 1, 0], mode: PadMode::Constant(7.0) };
        let y = pad(&x, &options).unwrap();
        assert_eq!((y.dims(), y.dtype()), (&[2, 1, 1, 1, 3][..], DType::U8));
        assert_eq!(y.flatten_all().unwrap().to_vec1::<u8>().unwrap(), [7, 7, 7, 1, 2, 7]);
        // Cut to nothing, filled up again; infinities are values too.
        let options = Pad { pad: vec![-1, -1], mode: PadMode::default() };
        assert_eq!(pad(&x, &options).unwrap().dims(), [1, 1, 1, 1, 0]);
        let x = Tensor::new(&[1f32, 2.], &Device::Cpu).unwrap();
        let options = Pad { pad: vec![-2, 1], mode: PadMode::Constant(f64::NEG_INFINITY) };
        assert_eq!(pad(&x, &options).unwrap().to_vec1::<f32>().unwrap(), [f32::NEG_INFINITY]);
    }

    #[test]
    fn whatever_does_not_fit_is_said() {
        let x = numbers(&[2, 3], 1);
        let say = |pad: &[isize], mode| {
            super::pad(&x, &Pad { pad: pad.to_vec(), mode }).unwrap_err().to_string()
        };
        let zero = PadMode::default();
        assert_eq!(say(&[1], zero), "pad: pad must hold two numbers per axis, found 1: [1]");
        assert_eq!(
            say(&[1; 6], zero),
            "pad: pad [1, 1, 1, 1, 1, 1] is for 3 axes, the input [2, 3] has 2"
        );
        assert!(say(&[-2, -2], zero).contains("cut more than the 3 positions of axis 1"));
        assert!(say(&[isize::MAX, isize::MAX], zero).contains("add more than can be counted"));
        assert!(say(&[isize::MAX, 0], zero).contains("more than memory can hold"));
        assert_eq!(
            say(&[3, 0], PadMode::Reflect),
            "pad: mode `reflect` can add at most 2 positions to axis 1 of 3, pad says 3 and 0"
        );
        assert!(say(&[4, 0], PadMode::Circular).contains("at most 3 positions"));
        assert!(
            say(&[1, 1, 1, 1], PadMode::Replicate).contains("mode `replicate` pads the last axis")
        );
        let codes = x.to_dtype(DType::U8).unwrap();
        let half = Pad { pad: vec![1, 0], mode: PadMode::Constant(-1.0) };
        let message = super::pad(&codes, &half).unwrap_err().to_string();
        assert_eq!(message, "pad: the value -1 does not exist in u8");
    }
}
