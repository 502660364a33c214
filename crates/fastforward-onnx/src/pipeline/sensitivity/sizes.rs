//! How large networks are whose weights have this or that width.

use super::candidates::Weight;
use super::front::Price;
use super::{Budget, Point};
use crate::error::{Error, ErrorKind, Result};
use crate::pipeline::Job;

/// What sizes are counted in, and what they are made of.
pub(super) struct Sizes {
    in_bytes: bool,
    /// Elements of all weights that are swept.
    elements: u64,
    /// Bytes of the constants that are not swept.
    other_bytes: u64,
}

impl Sizes {
    pub(super) fn new(job: &Job, weights: &[Weight], budget: Option<Budget>) -> Result<Self> {
        let all = job.plan()?.constants.after;
        let swept: u64 = weights.iter().map(|weight| weight.bytes_now).sum();
        Ok(Self {
            in_bytes: matches!(budget, Some(Budget::Bytes(_))),
            elements: weights.iter().map(|weight| weight.elements).sum(),
            other_bytes: all.saturating_sub(swept),
        })
    }

    /// What a weight at a width takes of the budget.
    pub(super) fn cost(&self, weight: &Weight, width: usize, bits: &[u32]) -> u64 {
        if self.in_bytes { weight.bytes[width] } else { weight.elements * u64::from(bits[width]) }
    }

    /// What a budget leaves for the weights, in the unit of costs; `None` for one that is no size, or is too small for what
    /// is not swept.
    pub(super) fn left(&self, budget: Budget) -> Option<u64> {
        match budget {
            // A whole number of bits, which rounding must not take one from.
            Budget::AverageBits(bits) => {
                let total = bits * self.elements as f64;
                Some((total * (1.0 + 4.0 * f64::EPSILON)).floor() as u64)
            }
            Budget::Bytes(bytes) => bytes.checked_sub(self.other_bytes),
            Budget::MetricAtLeast(_) | Budget::MetricAtMost(_) => None,
        }
    }

    /// Refuses a size that no choice of widths has.
    pub(super) fn check(
        &self,
        weights: &[Weight],
        budget: Option<Budget>,
        bits: &[u32],
    ) -> Result<()> {
        let Some(budget @ (Budget::AverageBits(_) | Budget::Bytes(_))) = budget else {
            return Ok(());
        };
        let narrowest = |weight| (0..bits.len()).map(|at| self.cost(weight, at, bits)).min();
        let least: u64 = weights.iter().filter_map(narrowest).sum();
        if self.left(budget).is_some_and(|left| left >= least) {
            return Ok(());
        }
        let text = match budget {
            Budget::Bytes(_) => format!(
                "with each weight as small as the widths allow, the constants take {} B, {} B of them not swept; the \
                 nearest budget that can be met is `{}B`",
                self.other_bytes + least,
                self.other_bytes,
                self.other_bytes + least,
            ),
            _ => format!(
                "the narrowest width is {0}; the nearest budget that can be met is `{0}bits`",
                bits[0]
            ),
        };
        Err(Error::new(ErrorKind::Input, format!("budget `{budget}` cannot be met: {text}")))
    }

    /// The network in which each weight has the width chosen for it.
    pub(super) fn point(
        &self,
        choices: &[usize],
        weights: &[Weight],
        prices: &[Vec<Price>],
        bits: &[u32],
    ) -> Point {
        let chosen = || choices.iter().zip(weights);
        let code_bits: u64 =
            chosen().map(|(&at, weight)| weight.elements * u64::from(bits[at])).sum();
        Point {
            average_bits: code_bits as f64 / self.elements as f64,
            bytes: self.other_bytes + chosen().map(|(&at, weight)| weight.bytes[at]).sum::<u64>(),
            loss: choices.iter().zip(prices).map(|(&at, prices)| prices[at].loss).sum(),
            metric: None,
            bits: choices.iter().map(|&at| bits[at]).collect(),
        }
    }
}
