//! Bias correction: the mean error of each output taken out of the bias.

use super::layer::{check_rows, reconstruction_losses};
use super::moments::LayerMoments;
use crate::error::{KernelError, check_len};

/// What to add to a bias, and what that gains.
#[derive(Debug, Clone, PartialEq)]
pub struct BiasCorrection {
    /// To be added to the bias of each row.
    pub bias: Vec<f32>,
    /// The loss of each row, see [`reconstruction_losses`].
    pub before: Vec<f64>,
    /// The loss of each row with the correction.
    pub after: Vec<f64>,
}

impl BiasCorrection {
    /// The loss of all rows without the correction.
    pub fn loss_before(&self) -> f64 {
        self.before.iter().sum()
    }

    /// The loss of all rows with the correction.
    pub fn loss_after(&self) -> f64 {
        self.after.iter().sum()
    }
}

/// The mean error of each output, `W E[x] - Ŵ E[x̂]`: added to the bias, it leaves outputs right on average (Nagel et al.
/// 2019, arXiv 1906.04721, section 4.2; with the means of calibration data, exact and not an estimate from batch
/// normalization).
///
/// With `x̂` the inputs that the quantized network feeds the layer and `x` the float network's, as far as the moments
/// know both. A row's loss falls by the square of its correction: `E(e - E e)² = E e² - (E e)²`. Weights are `[rows,
/// features]`. Means are f64 sums in a fixed order.
///
/// # Errors
/// Weights that are not rows of as many numbers as the layer has inputs, or of different length.
///
/// ```
/// use ff_kernels::{MomentSums, bias_correction};
/// let mut sums = MomentSums::new(2);
/// sums.add(&[1.0, 0.0, 3.0, 2.0])?; // means 2 and 1
/// let correction = bias_correction(&[0.4, 0.9], &[0.5, 1.0], &sums.finish())?;
/// assert!((correction.bias[0] - (-0.1 * 2.0 - 0.1 * 1.0)).abs() < 1e-6);
/// assert!(correction.loss_after() < 0.5 * correction.loss_before());
/// # Ok::<(), ff_kernels::KernelError>(())
/// ```
pub fn bias_correction(
    weight: &[f32],
    quantized: &[f32],
    moments: &LayerMoments,
) -> Result<BiasCorrection, KernelError> {
    check_rows(weight, moments)?;
    check_len("quantized weight", weight.len(), quantized.len())?;
    let n = moments.features.max(1);
    let mean_error = |(weight, quantized): (&[f32], &[f32])| {
        let mut sum = 0.0;
        for j in 0..n {
            let (w, q) = (f64::from(weight[j]), f64::from(quantized[j]));
            let shift = moments.shift.as_ref().map_or(0.0, |shift| shift.mean[j]);
            sum += (w - q) * moments.mean[j] + w * shift;
        }
        sum
    };
    let means: Vec<f64> =
        weight.chunks_exact(n).zip(quantized.chunks_exact(n)).map(mean_error).collect();
    let before = reconstruction_losses(weight, quantized, moments)?;
    // Rounding may leave a loss just below zero, or that of a row without error just above it.
    let after = |(loss, mean): (&f64, &f64)| (loss - mean * mean).clamp(0.0, *loss);
    let after = before.iter().zip(&means).map(after).collect();
    Ok(BiasCorrection { bias: means.iter().map(|mean| *mean as f32).collect(), before, after })
}
