//! Factors that move between layers.

use serde::{Deserialize, Serialize};

/// Which factors may move between two layers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ScaleRounding {
    /// Powers of two only: each factor is rounded to the nearest one on the logarithmic scale, so that it is off by
    /// at most `sqrt(2)`. Multiplying a float by a power of two changes only its exponent. The network therefore computes
    /// the very same floats, except where a value leaves the range of normal floats.
    #[default]
    PowerOfTwo,
    /// The factors as they are. Every parameter is rounded once, to a relative error of at most `2^-24` in 32-bit floats.
    Unrounded,
}

impl ScaleRounding {
    /// The factor to use in the place of `scale`, a positive normal number.
    ///
    /// ```
    /// use fastforward_core::algorithms::ScaleRounding;
    /// assert_eq!(ScaleRounding::PowerOfTwo.round(0.7), 0.5); // 0.7 < sqrt(1/2)
    /// assert_eq!(ScaleRounding::PowerOfTwo.round(0.71), 1.0);
    /// assert_eq!(ScaleRounding::Unrounded.round(0.71), 0.71);
    /// ```
    pub fn round(self, scale: f64) -> f64 {
        match self {
            Self::PowerOfTwo => {
                let below = power_of_two_below(scale);
                if scale / below < std::f64::consts::SQRT_2 { below } else { 2.0 * below }
            }
            Self::Unrounded => scale,
        }
    }

    /// Rounds factors of which only the ratios matter.
    ///
    /// A common factor of all channels changes no ratio of ranges, so powers of two are taken of `scale / g`, with the `g`
    /// between `sqrt(1/2)` and `sqrt(2)` that leaves the factors closest to `g` times a power of two. Channels that lie
    /// close together stay so.
    ///
    /// ```
    /// use fastforward_core::algorithms::ScaleRounding;
    /// let mut scales = [0.68, 0.7, 0.72, 2.8];
    /// ScaleRounding::PowerOfTwo.round_together(&mut scales);
    /// assert_eq!(scales, [1.0, 1.0, 1.0, 4.0]);
    /// ```
    pub fn round_together(self, scales: &mut [f64]) {
        if self == Self::Unrounded {
            return;
        }
        /// Candidates for `g`, evenly on the logarithmic scale.
        const N_CANDIDATES: u32 = 32;
        let mut step = 2f64;
        (0..N_CANDIDATES.ilog2()).for_each(|_| step = step.sqrt());
        let mut candidate = std::f64::consts::FRAC_1_SQRT_2;
        let mut best = (f64::INFINITY, 1.0);
        for _ in 0..N_CANDIDATES {
            let off = scales.iter().map(|scale| {
                let ratio = scale / candidate;
                let off = ratio / self.round(ratio);
                off + 1.0 / off
            });
            let cost: f64 = off.sum();
            if cost < best.0 {
                best = (cost, candidate);
            }
            candidate *= step;
        }
        scales.iter_mut().for_each(|scale| *scale = self.round(*scale / best.1));
    }

    /// The smallest factor to use that is not less than `scale`, a positive normal number.
    ///
    /// ```
    /// use fastforward_core::algorithms::ScaleRounding;
    /// assert_eq!(ScaleRounding::PowerOfTwo.round_up(0.51), 1.0);
    /// assert_eq!(ScaleRounding::PowerOfTwo.round_up(0.5), 0.5);
    /// ```
    pub fn round_up(self, scale: f64) -> f64 {
        match self {
            Self::PowerOfTwo => {
                let below = power_of_two_below(scale);
                if scale == below { below } else { 2.0 * below }
            }
            Self::Unrounded => scale,
        }
    }
}

/// The largest power of two that is not more than `scale`: its exponent alone.
fn power_of_two_below(scale: f64) -> f64 {
    debug_assert!(scale.is_normal() && scale > 0.0);
    f64::from_bits(scale.to_bits() & (0x7ff << 52))
}
