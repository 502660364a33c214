//! How large networks are whose slots have this or that width.

use super::candidates::{Candidate, Swept};
use super::{Budget, Point};
use crate::error::{Error, ErrorKind, Result};
use crate::pipeline::Job;

/// What sizes are counted in, and what they are made of, for slots whose widths are chosen together.
pub(super) struct Sizes {
    in_bytes: bool,
    /// Elements of all these slots.
    elements: u64,
    /// Bytes of all constants but these slots.
    other_bytes: u64,
}

impl Sizes {
    pub(super) fn new(job: &Job, slots: &[Candidate], budget: Option<Budget>) -> Result<Self> {
        let all = job.plan()?.constants.after;
        let swept: u64 = slots.iter().map(|slot| slot.bytes_now).sum();
        Ok(Self {
            in_bytes: matches!(budget, Some(Budget::Bytes(_))),
            elements: slots.iter().map(|slot| slot.elements).sum(),
            other_bytes: all.saturating_sub(swept),
        })
    }

    /// What a slot at a width takes of the budget.
    pub(super) fn cost(&self, slot: &Candidate, width: usize, bits: &[u32]) -> u64 {
        if self.in_bytes { slot.bytes[width] } else { slot.elements * u64::from(bits[width]) }
    }

    /// What a budget leaves for the slots, in the unit of costs; `None` for one that is no size, or is too small for what is
    /// not swept.
    pub(super) fn left(&self, budget: Budget) -> Option<u64> {
        match budget {
            // A whole number of bits, which rounding must not take one from.
            Budget::AverageBits(bits) | Budget::ActivationBits(bits) => {
                let total = bits * self.elements as f64;
                Some((total * (1.0 + 4.0 * f64::EPSILON)).floor() as u64)
            }
            Budget::Bytes(bytes) => bytes.checked_sub(self.other_bytes),
            Budget::MetricAtLeast(_) | Budget::MetricAtMost(_) => None,
        }
    }

    /// Refuses a size that no choice of widths has.
    pub(super) fn check(&self, swept: &Swept, slots: &[Candidate], budget: Budget) -> Result<()> {
        if let Budget::MetricAtLeast(_) | Budget::MetricAtMost(_) = budget {
            return Ok(());
        }
        let narrowest = |slot| {
            let bits = swept.bits(slot);
            (0..bits.len()).map(|at| self.cost(slot, at, bits)).min()
        };
        let least: u64 = slots.iter().filter_map(narrowest).sum();
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
            Budget::ActivationBits(_) => format!(
                "the narrowest width is {0}; the nearest budget that can be met is `activation_bits<={0}`",
                swept.activation_bits[0]
            ),
            _ => format!(
                "the narrowest width is {0}; the nearest budget that can be met is `{0}bits`",
                swept.weight_bits[0]
            ),
        };
        Err(Error::new(ErrorKind::Input, format!("budget `{budget}` cannot be met: {text}")))
    }

    /// The network in which each slot has the width chosen for it; `losses` are by slot and width.
    pub(super) fn point(
        &self,
        choices: &[usize],
        swept: &Swept,
        slots: &[Candidate],
        losses: &[Vec<f64>],
    ) -> Point {
        let bits: Vec<u32> =
            choices.iter().zip(slots).map(|(&at, slot)| swept.bits(slot)[at]).collect();
        let average = |of_activations: bool| {
            let of_kind =
                bits.iter().zip(slots).filter(|(_, slot)| slot.is_activation() == of_activations);
            let (sum, elements) = of_kind.fold((0, 0), |(sum, elements), (&bits, slot)| {
                (sum + slot.elements * u64::from(bits), elements + slot.elements)
            });
            (elements > 0).then(|| sum as f64 / elements as f64)
        };
        let swept_bytes: u64 = choices.iter().zip(slots).map(|(&at, slot)| slot.bytes[at]).sum();
        Point {
            average_bits: average(false),
            activation_bits: average(true),
            bytes: self.other_bytes + swept_bytes,
            loss: choices.iter().zip(losses).map(|(&at, losses)| losses[at]).sum(),
            metric: None,
            bits,
        }
    }
}
