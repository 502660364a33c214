//! Slots whose widths are chosen together, and the best choices of them.

use std::ops::Range;

use super::candidates::{Candidate, Swept};
use super::front::{Front, LIMIT, Price};
use super::sizes::Sizes;
use super::whole::{Choices, Whole};
use super::{Budget, Curve, Point, SweptSlots};
use crate::error::Result;
use crate::pipeline::{Job, Progress};

/// How many corners of a curve are measured.
const MEASURED: usize = 8;

/// The slots of one kind, which a budget of their own decides; or all, where a bound on the metric does.
///
/// Weights and activations with a budget each are two parts: losses are added and neither takes of the other's budget, so
/// the best choice of both is the best of each.
pub(super) struct Part {
    kind: SweptSlots,
    pub(super) slots: Range<usize>,
    pub(super) budget: Option<Budget>,
    sizes: Sizes,
}

impl Part {
    /// The parts of a sweep, and a refusal of budgets that no choice meets.
    pub(super) fn all(job: &Job, swept: &Swept, budgets: &[Budget]) -> Result<Vec<Self>> {
        let metric = budgets.iter().find(|budget| budget.decides().is_none());
        let kinds: Vec<(SweptSlots, Option<Budget>)> = match metric {
            Some(&budget) => {
                let kind = match swept.n_weights {
                    0 => SweptSlots::Activations,
                    n if n == swept.slots.len() => SweptSlots::Weights,
                    _ => SweptSlots::All,
                };
                vec![(kind, Some(budget))]
            }
            None => [SweptSlots::Weights, SweptSlots::Activations]
                .map(|kind| {
                    let own = budgets.iter().find(|budget| budget.decides() == Some(kind));
                    (kind, own.copied())
                })
                .to_vec(),
        };
        let mut parts = Vec::new();
        for (kind, budget) in kinds {
            let slots = swept.range(kind);
            if slots.is_empty() {
                continue;
            }
            let sizes = Sizes::new(job, &swept.slots[slots.clone()], budget)?;
            if let Some(budget) = budget {
                sizes.check(swept, &swept.slots[slots.clone()], budget)?;
            }
            parts.push(Self { kind, slots, budget, sizes });
        }
        Ok(parts)
    }

    /// The best choices; `losses` are by slot of the whole sweep, and width.
    pub(super) fn priced<'s>(&'s self, swept: &'s Swept, losses: &'s [Vec<f64>]) -> Priced<'s> {
        let slots = &swept.slots[self.slots.clone()];
        let losses = &losses[self.slots.clone()];
        let prices: Vec<Vec<Price>> = slots
            .iter()
            .zip(losses)
            .map(|(slot, losses)| {
                let bits = swept.bits(slot);
                let sized = losses.iter().enumerate();
                sized
                    .map(|(at, &loss)| Price { cost: self.sizes.cost(slot, at, bits), loss })
                    .collect()
            })
            .collect();
        let front = Front::new(&prices, LIMIT);
        Priced { part: self, swept, slots, losses, front, measured: Vec::new() }
    }
}

/// A part, with prices.
pub(super) struct Priced<'s> {
    pub(super) part: &'s Part,
    swept: &'s Swept,
    slots: &'s [Candidate],
    losses: &'s [Vec<f64>],
    pub(super) front: Front,
    /// Points of the front that were measured, with the metric.
    pub(super) measured: Vec<(usize, f64)>,
}

impl Priced<'_> {
    /// The point of the front with the least loss that the budget of the part allows, if that is a size.
    pub(super) fn within_budget(&self) -> Option<usize> {
        self.front.within(self.part.sizes.left(self.part.budget?)?)
    }

    /// The choices of the whole sweep at a point: the slots of other parts are left to their rules.
    pub(super) fn choices(&self, point: usize) -> Choices {
        self.among_all(&self.front.choices(point))
    }

    fn among_all(&self, choices: &[usize]) -> Choices {
        let mut all = vec![None; self.swept.slots.len()];
        for (all, &choice) in all[self.part.slots.clone()].iter_mut().zip(choices) {
            *all = Some(choice);
        }
        all
    }

    /// A point of the front.
    pub(super) fn point(&self, at: usize) -> Point {
        let metric = self.measured.iter().find(|(known, _)| *known == at).map(|(_, value)| *value);
        Point { metric, ..self.point_of(&self.front.choices(at)) }
    }

    fn point_of(&self, choices: &[usize]) -> Point {
        self.part.sizes.point(choices, self.swept, self.slots, self.losses)
    }

    /// The choices with one width for each kind of slot.
    fn uniform(&self) -> Vec<Vec<usize>> {
        let choice = |weights: usize, activations: usize| {
            let of = |slot: &Candidate| if slot.is_activation() { activations } else { weights };
            self.slots.iter().map(of).collect()
        };
        let (weights, activations) =
            (self.swept.weight_bits.len(), self.swept.activation_bits.len());
        match self.part.kind {
            SweptSlots::Weights => (0..weights).map(|at| choice(at, 0)).collect(),
            SweptSlots::Activations => (0..activations).map(|at| choice(0, at)).collect(),
            SweptSlots::All => (0..weights)
                .flat_map(|weights| (0..activations).map(move |at| (weights, at)))
                .map(|(weights, activations)| choice(weights, activations))
                .collect(),
        }
    }

    /// The curve; the metric of some of its corners, of `chosen`, and of uniform widths, if `whole` is there to measure it.
    pub(super) fn curve(
        &mut self,
        chosen: Option<usize>,
        whole: Option<&Whole>,
        progress: &dyn Progress,
    ) -> Result<Curve> {
        let choices = self.uniform();
        let mut uniform: Vec<Point> = choices.iter().map(|one| self.point_of(one)).collect();
        let mut shown = self.front.corners();
        if let Some(whole) = whole {
            let last = shown.len() - 1;
            let n_measured = MEASURED.min(shown.len());
            let mut wanted: Vec<usize> =
                (0..n_measured).map(|at| shown[at * last / (n_measured - 1).max(1)]).collect();
            wanted.extend(chosen);
            wanted.sort_unstable();
            wanted.dedup();
            wanted.retain(|at| self.measured.iter().all(|(known, _)| known != at));
            let mut networks: Vec<Choices> = wanted.iter().map(|&at| self.choices(at)).collect();
            networks.extend(choices.iter().map(|one| self.among_all(one)));
            let values = whole.metrics(&networks, progress)?;
            let (of_front, of_uniform) = values.split_at(wanted.len());
            self.measured.extend(wanted.into_iter().zip(of_front.iter().copied()));
            for (uniform, &value) in uniform.iter_mut().zip(of_uniform) {
                uniform.metric = Some(value);
            }
        }
        shown.extend(self.measured.iter().map(|(at, _)| *at).chain(chosen));
        shown.sort_unstable();
        shown.dedup();
        Ok(Curve {
            slots: self.part.kind,
            uniform,
            points: shown.into_iter().map(|at| self.point(at)).collect(),
            is_exact: self.front.is_exact,
        })
    }
}
