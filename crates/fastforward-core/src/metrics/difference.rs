//! Differences between outputs, value by value.

use ff_kernels::{Difference, SQNR_EPSILON};

use super::{elements, samples_of_pair};
use crate::{ArrayView, Error, ErrorKind};

/// Signal to quantization noise ratio (spec §13).
///
/// ```text
/// ratio = mean(reference^2) / (mean((reference - output)^2) + 1e-15)     per sample along the first axis
/// SQNR  = 10 * log10(mean of the ratios)                                 in decibels
/// ```
///
/// ```
/// use fastforward_core::ArrayView;
/// use fastforward_core::metrics::Sqnr;
/// let mut sqnr = Sqnr::default();
/// sqnr.update(ArrayView::new(&[1.0; 6], &[2, 3])?, ArrayView::new(&[0.9; 6], &[2, 3])?)?;
/// assert!((sqnr.decibels().unwrap() - 20.0).abs() < 1e-5);
/// # Ok::<(), fastforward_core::Error>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sqnr {
    sum_of_ratios: f64,
    samples: u64,
}

impl Sqnr {
    /// Adds samples.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidData`] when shapes differ, there is no sample, or a value is not finite.
    pub fn update(&mut self, reference: ArrayView<'_>, output: ArrayView<'_>) -> Result<(), Error> {
        let mut sum = 0.0;
        let samples = for_each_sample(reference, output, |sample| {
            sum += sample.mean_reference_squared() / (sample.mse() + SQNR_EPSILON);
        })?;
        self.sum_of_ratios += sum;
        self.samples += samples;
        Ok(())
    }

    /// Adds what another accumulator saw.
    pub fn merge(&mut self, later: &Self) {
        self.sum_of_ratios += later.sum_of_ratios;
        self.samples += later.samples;
    }

    /// The ratio in decibels; `None` before the first sample, minus infinity for a reference of zeros.
    pub fn decibels(&self) -> Option<f64> {
        (self.samples > 0).then(|| 10.0 * (self.sum_of_ratios / self.samples as f64).log10())
    }
}

/// The mean over the samples of the cosine of the angle between both outputs, each flattened to a vector.
///
/// Two zero vectors are alike (1), a zero and another one are not (0).
#[derive(Clone, Debug, Default, PartialEq)]
pub struct CosineSimilarity {
    sum: f64,
    samples: u64,
}

impl CosineSimilarity {
    /// Adds samples.
    ///
    /// # Errors
    /// As for [`Sqnr::update`].
    pub fn update(&mut self, reference: ArrayView<'_>, output: ArrayView<'_>) -> Result<(), Error> {
        let mut sum = 0.0;
        let samples = for_each_sample(reference, output, |sample| sum += sample.cosine())?;
        self.sum += sum;
        self.samples += samples;
        Ok(())
    }

    /// Adds what another accumulator saw.
    pub fn merge(&mut self, later: &Self) {
        self.sum += later.sum;
        self.samples += later.samples;
    }

    /// The mean cosine, -1 to 1; `None` before the first sample.
    pub fn value(&self) -> Option<f64> {
        (self.samples > 0).then(|| self.sum / self.samples as f64)
    }
}

/// The mean of the squared differences of all values.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct MeanSquaredError(Difference);

impl MeanSquaredError {
    /// Adds samples.
    ///
    /// # Errors
    /// As for [`Sqnr::update`].
    pub fn update(&mut self, reference: ArrayView<'_>, output: ArrayView<'_>) -> Result<(), Error> {
        self.0 = self.0.merge(&difference(reference, output)?);
        Ok(())
    }

    /// Adds what another accumulator saw.
    pub fn merge(&mut self, later: &Self) {
        self.0 = self.0.merge(&later.0);
    }

    /// The mean; `None` before the first sample.
    pub fn value(&self) -> Option<f64> {
        (self.0.len > 0).then(|| self.0.mse())
    }
}

/// The largest absolute difference of two values.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct MaxAbsDifference(Difference);

impl MaxAbsDifference {
    /// Adds samples.
    ///
    /// # Errors
    /// As for [`Sqnr::update`].
    pub fn update(&mut self, reference: ArrayView<'_>, output: ArrayView<'_>) -> Result<(), Error> {
        self.0 = self.0.merge(&difference(reference, output)?);
        Ok(())
    }

    /// Adds what another accumulator saw.
    pub fn merge(&mut self, later: &Self) {
        self.0 = self.0.merge(&later.0);
    }

    /// The largest difference; `None` before the first sample.
    pub fn value(&self) -> Option<f64> {
        (self.0.len > 0).then_some(self.0.max_abs)
    }
}

fn difference(reference: ArrayView<'_>, output: ArrayView<'_>) -> Result<Difference, Error> {
    samples_of_pair(reference, output)?;
    compare(&elements(reference), &elements(output))
}

/// Calls `each` with the statistics of every sample in order, unless one of them cannot be compared; gives back their
/// number.
fn for_each_sample(
    reference: ArrayView<'_>,
    output: ArrayView<'_>,
    mut each: impl FnMut(Difference),
) -> Result<u64, Error> {
    let samples = samples_of_pair(reference, output)?;
    let sample_len = output.len() / samples;
    let (reference, output) = (elements(reference), elements(output));
    for (at, (a, b)) in
        reference.chunks_exact(sample_len).zip(output.chunks_exact(sample_len)).enumerate()
    {
        each(compare(a, b).map_err(|error| error.at(format_args!("sample {at}")))?);
    }
    Ok(samples as u64)
}

fn compare(reference: &[f32], output: &[f32]) -> Result<Difference, Error> {
    let found = Difference::of(reference, output).map_err(|error| {
        Error::new(ErrorKind::InvalidData, error.to_string()).with_source(error)
    })?;
    // Squares of f32 values cannot overflow an f64, so only values that are not finite give such sums.
    if found.sum_reference_squared.is_finite() && found.sum_other_squared.is_finite() {
        return Ok(found);
    }
    let is_bad = |(_, value): &(usize, &f32)| !value.is_finite();
    let bad =
        |values: &[f32]| values.iter().enumerate().find(is_bad).map(|(at, &value)| (at, value));
    let message = match (bad(reference), bad(output)) {
        (Some((at, value)), _) => format!("value {at} of the reference is {value}"),
        (None, Some((at, value))) => format!("value {at} of the output is {value}"),
        (None, None) => "a sum of squares is not finite".to_owned(),
    };
    Err(Error::new(ErrorKind::InvalidData, message))
}
