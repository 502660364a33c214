//! How far two distributions are apart.

use super::{elements, rows_of_scores, samples_of_pair};
use crate::{ArrayView, Error, ErrorKind};

/// The mean over the samples of the Kullback-Leibler divergence of what two models believe, in nats:
///
/// ```text
/// p = softmax(reference), q = softmax(output)       over the classes of a sample
/// KL(p || q) = sum of p * (log p - log q)
/// ```
///
/// It is 0 when the scores agree up to a constant, and never negative. Arguments are scores before the softmax (logits),
/// shaped as for [`TopK`](super::TopK). Arithmetic is `f64`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct KlDivergence {
    sum: f64,
    samples: u64,
}

impl KlDivergence {
    /// Adds samples.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidData`] when shapes differ, there is no sample, or a score is not finite.
    pub fn update(&mut self, reference: ArrayView<'_>, output: ArrayView<'_>) -> Result<(), Error> {
        samples_of_pair(reference, output)?;
        let (samples, classes) = rows_of_scores(output)?;
        let (reference, output) = (elements(reference), elements(output));
        for (what, scores) in [("reference", &reference), ("output", &output)] {
            if let Some(at) = scores.iter().position(|score| !score.is_finite()) {
                return Err(Error::new(
                    ErrorKind::InvalidData,
                    format!(
                        "the {what}'s score of sample {} for class {} is {}",
                        at / classes,
                        at % classes,
                        scores[at]
                    ),
                ));
            }
        }
        for (p, q) in reference.chunks_exact(classes).zip(output.chunks_exact(classes)) {
            self.sum += divergence(p, q);
        }
        self.samples += samples as u64;
        Ok(())
    }

    /// Adds what another accumulator saw.
    pub fn merge(&mut self, later: &Self) {
        self.sum += later.sum;
        self.samples += later.samples;
    }

    /// The mean divergence; `None` before the first sample.
    pub fn value(&self) -> Option<f64> {
        (self.samples > 0).then(|| self.sum / self.samples as f64)
    }
}

fn divergence(reference: &[f32], output: &[f32]) -> f64 {
    let (p, q) = (LogSoftmax::of(reference), LogSoftmax::of(output));
    let sum: f64 = reference
        .iter()
        .zip(output)
        .map(|(&a, &b)| {
            let (log_p, log_q) = (p.of_score(a), q.of_score(b));
            log_p.exp() * (log_p - log_q)
        })
        .sum();
    // Rounding may leave a hair below zero.
    sum.max(0.0)
}

/// `log softmax(scores)`, computed from the largest score so that nothing overflows.
struct LogSoftmax {
    largest: f64,
    log_sum: f64,
}

impl LogSoftmax {
    fn of(scores: &[f32]) -> Self {
        let largest = f64::from(scores.iter().copied().fold(f32::NEG_INFINITY, f32::max));
        let sum: f64 = scores.iter().map(|&score| (f64::from(score) - largest).exp()).sum();
        Self { largest, log_sum: sum.ln() }
    }

    fn of_score(&self, score: f32) -> f64 {
        f64::from(score) - self.largest - self.log_sum
    }
}
