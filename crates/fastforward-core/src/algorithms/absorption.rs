//! Bias absorption: what a channel never falls below, moved to the next layer's bias.

use serde::{Deserialize, Serialize};

use super::ChannelStatistics;

/// How much of a channel may be taken away before a `Relu` and given back behind it.
///
/// For `0 <= c <= x`, `relu(x) = relu(x - c) + c`: the layer before the `Relu` gets the bias `b - c`, the one behind it
/// `b + sum of W c`. The range of the activation between them shrinks by `c` (Nagel et al. 2019,
/// [arXiv 1906.04721](https://arxiv.org/abs/1906.04721), section 4.1.3).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Absorption {
    /// `c = max(0, min)`: never more than was seen, so that nothing changes for the data that were seen.
    #[default]
    Minimum,
    /// `c = max(0, mean - 3 std)`, as in the paper: more than 1 value in 1000 of a normal distribution lies below.
    ThreeSigma,
}

impl Absorption {
    /// The `c` of each channel, 0 where nothing was seen.
    ///
    /// ```
    /// use fastforward_core::{ArrayView, algorithms::{ChannelStatistics, absorption::Absorption}};
    ///
    /// let mut seen = ChannelStatistics::new(1);
    /// seen.observe(ArrayView::new(&[10.0, -1.0, 12.0, 5.0], &[2, 2])?)?;
    /// assert_eq!(Absorption::Minimum.amounts(&seen), [10.0, 0.0]);
    /// assert_eq!(Absorption::ThreeSigma.amounts(&seen), [8.0, 0.0]); // 11 - 3 * 1, and 2 - 3 * 3
    /// # Ok::<(), fastforward_core::Error>(())
    /// ```
    pub fn amounts(self, seen: &ChannelStatistics) -> Vec<f64> {
        if seen.count() == 0 {
            return vec![0.0; seen.n_channels()];
        }
        match self {
            Self::Minimum => seen.min().into_iter().map(|min| f64::from(min).max(0.0)).collect(),
            Self::ThreeSigma => {
                let both = seen.mean().into_iter().zip(seen.std());
                both.map(|(mean, std)| (mean - 3.0 * std).max(0.0)).collect()
            }
        }
    }
}
