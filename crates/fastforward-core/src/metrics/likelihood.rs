//! How probable a model finds a text.

use crate::{Error, ErrorKind};

/// The likelihood of a text under a model, from the log-probability (natural logarithm) of each token.
///
/// ```text
/// perplexity    = exp(-mean of the log-probabilities)
/// bits per byte = -sum of the log-probabilities / ln 2 / bytes of text
/// ```
///
/// Bits per byte compare models with different tokenizers; perplexities do not.
///
/// ```
/// use fastforward_core::metrics::Likelihood;
/// let mut text = Likelihood::default();
/// text.update(&[0.5f64.ln(), 0.125f64.ln()], 8)?; // two tokens, eight bytes
/// assert!((text.perplexity().unwrap() - 4.0).abs() < 1e-12);
/// assert!((text.bits_per_byte().unwrap() - 0.5).abs() < 1e-12);
/// # Ok::<(), fastforward_core::Error>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Likelihood {
    sum: f64,
    tokens: u64,
    bytes: u64,
}

impl Likelihood {
    /// Adds the log-probabilities of some tokens, and the bytes of text that these stand for.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidData`] for a log-probability that is NaN or positive.
    pub fn update(&mut self, log_probabilities: &[f64], bytes: u64) -> Result<(), Error> {
        if let Some(at) = log_probabilities.iter().position(|&log| log.is_nan() || log > 0.0) {
            return Err(Error::new(
                ErrorKind::InvalidData,
                format!("log-probability {} of token {at} is not at most 0", log_probabilities[at]),
            ));
        }
        self.sum += log_probabilities.iter().sum::<f64>();
        self.tokens += log_probabilities.len() as u64;
        self.bytes += bytes;
        Ok(())
    }

    /// Adds what another accumulator saw.
    pub fn merge(&mut self, later: &Self) {
        self.sum += later.sum;
        self.tokens += later.tokens;
        self.bytes += later.bytes;
    }

    /// The perplexity per token; `None` before the first token.
    pub fn perplexity(&self) -> Option<f64> {
        (self.tokens > 0).then(|| (-self.sum / self.tokens as f64).exp())
    }

    /// The information per byte of text; `None` before the first byte.
    pub fn bits_per_byte(&self) -> Option<f64> {
        (self.bytes > 0).then(|| -self.sum / std::f64::consts::LN_2 / self.bytes as f64)
    }
}
