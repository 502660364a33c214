//! Smoothing: the difficulty of quantizing moved from activations to weights.

use super::ScaleRounding;
use crate::{Error, ErrorKind};

/// The factor by which each channel of an activation is divided, and its weights multiplied.
///
/// ```text
/// s_j = max|x_j|^alpha / max|w_j|^(1 - alpha)
/// ```
///
/// (Xiao et al. 2022, [arXiv 2211.10438](https://arxiv.org/abs/2211.10438), equation 4). With `alpha` 1 all channels of
/// the activation get the range 1, with 0 those of the weights. A channel that is always 0, or that no weight reads,
/// keeps the factor 1. Powers of two are taken of all factors together, see [`ScaleRounding::round_together`].
///
/// The powers are products of square roots, which every machine rounds alike; `alpha` is used to 32 binary digits.
///
/// # Errors
/// [`ErrorKind::InvalidSettings`] when `alpha` is not between 0 and 1; [`ErrorKind::InvalidData`] when the two differ in
/// length, or a maximum is negative or not finite.
///
/// ```
/// use fastforward_core::algorithms::{ScaleRounding, smoothing::smoothing_scales};
/// let scales = smoothing_scales(&[64.0, 1.0, 0.0], &[1.0, 4.0, 2.0], 0.5, ScaleRounding::Unrounded)?;
/// assert_eq!(scales, [8.0, 0.5, 1.0]);
/// # Ok::<(), fastforward_core::Error>(())
/// ```
pub fn smoothing_scales(
    activation_max: &[f32],
    weight_max: &[f32],
    alpha: f64,
    rounding: ScaleRounding,
) -> Result<Vec<f64>, Error> {
    if !(0.0..=1.0).contains(&alpha) {
        return Err(Error::new(
            ErrorKind::InvalidSettings,
            format!("alpha must be between 0 and 1, found {alpha}"),
        ));
    }
    let wrong = |problem: String| Err(Error::new(ErrorKind::InvalidData, problem));
    if activation_max.len() != weight_max.len() {
        return wrong(format!(
            "{} channels of an activation, but {} of its weights",
            activation_max.len(),
            weight_max.len()
        ));
    }
    for (what, values) in [("activation", activation_max), ("weight", weight_max)] {
        if let Some(at) = values.iter().position(|value| !(value.is_finite() && *value >= 0.0)) {
            return wrong(format!(
                "the largest {what} of channel {at} is {}, expected 0 or more",
                values[at]
            ));
        }
    }
    let pairs = activation_max.iter().zip(weight_max).enumerate();
    let live: Vec<usize> =
        pairs.filter(|(_, (x, w))| **x > 0.0 && **w > 0.0).map(|(channel, _)| channel).collect();
    let mut found: Vec<f64> = live
        .iter()
        .map(|&channel| {
            let (x, w) = (f64::from(activation_max[channel]), f64::from(weight_max[channel]));
            power(x, alpha) / power(w, 1.0 - alpha)
        })
        .collect();
    rounding.round_together(&mut found);
    let mut scales = vec![1.0; activation_max.len()];
    for (channel, scale) in live.into_iter().zip(found) {
        scales[channel] = scale;
    }
    Ok(scales)
}

/// `x^alpha` for `x > 0` and `alpha` between 0 and 1, by the binary digits of `alpha`.
fn power(x: f64, alpha: f64) -> f64 {
    const DIGITS: u32 = 32;
    let digits = (alpha * 2f64.powi(DIGITS as i32)).round() as u64;
    let mut product = if digits >> DIGITS == 1 { x } else { 1.0 };
    let mut root = x;
    for digit in (0..DIGITS).rev() {
        root = root.sqrt();
        if digits >> digit & 1 == 1 {
            product *= root;
        }
    }
    product
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn powers_are_those_of_the_library() {
        for x in [1e-40, 1e-3, 0.7, 1.0, 3.0, 1e30] {
            for alpha in [0.0, 0.1, 0.25, 0.5, 0.8, 0.999, 1.0] {
                let (found, wanted) = (power(x, alpha), x.powf(alpha));
                assert!((found / wanted - 1.0).abs() < 1e-7, "{x} {alpha} {found} {wanted}");
            }
        }
        assert_eq!(power(2.25, 0.5), 1.5);
        assert_eq!(power(7.0, 1.0), 7.0);
    }

    #[test]
    fn the_ends_of_alpha_even_out_one_side() {
        let (x, w) = ([5.0, 0.1, 3.0], [0.5, 20.0, 1.0]);
        let scales = |alpha| smoothing_scales(&x, &w, alpha, ScaleRounding::Unrounded).unwrap();
        for (x, s) in x.iter().zip(scales(1.0)) {
            assert!((f64::from(*x) / s - 1.0).abs() < 1e-12);
        }
        for (w, s) in w.iter().zip(scales(0.0)) {
            assert!((f64::from(*w) * s - 1.0).abs() < 1e-12);
        }
        for ((x, w), s) in x.iter().zip(&w).zip(scales(0.5)) {
            assert!((f64::from(*x) / s / (f64::from(*w) * s) - 1.0).abs() < 1e-12);
        }
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let check = |x: &[f32], w: &[f32], alpha: f64, message: &str| {
            let error = smoothing_scales(x, w, alpha, ScaleRounding::PowerOfTwo).unwrap_err();
            assert_eq!(error.to_string(), message);
        };
        check(&[], &[], 1.5, "alpha must be between 0 and 1, found 1.5");
        check(&[], &[], f64::NAN, "alpha must be between 0 and 1, found NaN");
        check(&[1.0], &[], 0.5, "1 channels of an activation, but 0 of its weights");
        let infinite = f32::INFINITY;
        check(
            &[1.0],
            &[infinite],
            0.5,
            "the largest weight of channel 0 is inf, expected 0 or more",
        );
        check(
            &[-1.0],
            &[1.0],
            0.5,
            "the largest activation of channel 0 is -1, expected 0 or more",
        );
    }
}
