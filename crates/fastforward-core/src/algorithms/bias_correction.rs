//! Bias correction: the mean error that quantization adds, taken off the bias.

use super::ChannelStatistics;
use crate::{Error, ErrorKind};

/// What to add to a bias so that the output of a quantized layer has the mean of the float one.
///
/// Rounding weights changes the mean of each output channel, `E[W x]`, by an amount that does not average out. It is
/// known when both are measured, and a bias can take it back:
///
/// ```text
/// b_c += E[y_c] - E[y^_c]
/// ```
///
/// with `y` the float output and `y^` that of the quantized layer on quantized inputs (Nagel et al. 2019,
/// [arXiv 1906.04721](https://arxiv.org/abs/1906.04721), section 4.2 and appendix D). Layers are corrected in their order,
/// so that `y^` of later ones comes from corrected earlier ones.
///
/// # Errors
/// [`ErrorKind::InvalidData`] when the two have other channels, or one of them has seen nothing.
///
/// ```
/// use fastforward_core::ArrayView;
/// use fastforward_core::algorithms::{ChannelStatistics, bias_correction::correction};
///
/// let seen = |data: &[f32]| -> Result<ChannelStatistics, fastforward_core::Error> {
///     let mut seen = ChannelStatistics::new(1);
///     seen.observe(ArrayView::new(data, &[2, 2])?)?;
///     Ok(seen)
/// };
/// let (float, quantized) = (seen(&[1.0, 5.0, 3.0, 7.0])?, seen(&[0.5, 5.0, 2.5, 7.5])?);
/// assert_eq!(correction(&float, &quantized)?, [0.5, -0.25]);
/// # Ok::<(), fastforward_core::Error>(())
/// ```
pub fn correction(
    float: &ChannelStatistics,
    quantized: &ChannelStatistics,
) -> Result<Vec<f64>, Error> {
    if float.n_channels() != quantized.n_channels() {
        return Err(Error::new(
            ErrorKind::InvalidData,
            format!(
                "{} channels in float, {} when quantized",
                float.n_channels(),
                quantized.n_channels()
            ),
        ));
    }
    if float.count() == 0 || quantized.count() == 0 {
        return Err(Error::new(ErrorKind::InvalidData, "no data to take means of"));
    }
    Ok(float.mean().iter().zip(quantized.mean()).map(|(y, other)| y - other).collect())
}

/// The same from the weights' error alone and the means of what the layer reads:
///
/// ```text
/// b_o += sum over i of (W - W^)[o, i] * E[x_i]
/// ```
///
/// `error[o, i]` is the sum of `W - W^` over the kernel between two channels, `[outputs, inputs / groups]`. It leaves out
/// what quantized inputs add, and takes every position of a convolution to lie inside (padding makes those at the border
/// smaller).
///
/// # Errors
/// [`ErrorKind::InvalidData`] when the shapes do not fit.
///
/// ```
/// use fastforward_core::algorithms::bias_correction::correction_from_inputs;
/// // Two outputs of one group with three inputs.
/// let error = [0.5, 0.0, -0.25, 0.0, 1.0, 0.0];
/// assert_eq!(correction_from_inputs(&error, 2, 1, &[1.0, 2.0, 4.0])?, [-0.5, 2.0]);
/// # Ok::<(), fastforward_core::Error>(())
/// ```
pub fn correction_from_inputs(
    error: &[f64],
    outputs: usize,
    groups: usize,
    input_means: &[f64],
) -> Result<Vec<f64>, Error> {
    let fits = outputs > 0
        && groups > 0
        && outputs.is_multiple_of(groups)
        && input_means.len().is_multiple_of(groups)
        && !input_means.is_empty()
        && error.len() == outputs * (input_means.len() / groups);
    if !fits {
        return Err(Error::new(
            ErrorKind::InvalidData,
            format!(
                "{} errors and {} means do not fit {outputs} outputs in {groups} groups",
                error.len(),
                input_means.len()
            ),
        ));
    }
    let columns = input_means.len() / groups;
    let rows_per_group = outputs / groups;
    let rows = error.chunks_exact(columns).enumerate().map(|(row, errors)| {
        let means = &input_means[row / rows_per_group * columns..][..columns];
        errors.iter().zip(means).map(|(error, mean)| error * mean).sum()
    });
    Ok(rows.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_have_their_own_means() {
        let found = correction_from_inputs(&[1.0, 1.0], 2, 2, &[3.0, 5.0]).unwrap();
        assert_eq!(found, [3.0, 5.0]);
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let error = correction_from_inputs(&[1.0; 5], 2, 1, &[1.0; 3]).unwrap_err();
        assert_eq!(error.to_string(), "5 errors and 3 means do not fit 2 outputs in 1 groups");
        let nothing = ChannelStatistics::new(0);
        let error = correction(&nothing, &nothing).unwrap_err();
        assert_eq!(error.to_string(), "no data to take means of");
    }
}
