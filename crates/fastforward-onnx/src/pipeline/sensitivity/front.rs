//! The best choices for every cost.

use std::cmp::Ordering;

/// A way to choose: what it costs, and what it loses.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Price {
    pub(super) cost: u64,
    pub(super) loss: f64,
}

/// Every combination of one choice per item that no other combination beats in both cost and loss: the Pareto front of the
/// multiple-choice knapsack with additive losses.
///
/// Items are added one after the other, and after each one only what is not dominated is kept (Nemhauser and Ullmann,
/// "Discrete Dynamic Programming and Capital Allocation", 1969). What is dominated as a part is dominated as a whole, so the
/// result is exact while no step keeps more than the limit. Where one does, it keeps combinations evenly spread over the
/// front, both ends among them: what is found still costs and loses what it says, but better ones may be missed.
#[derive(Debug)]
pub(super) struct Front {
    /// By rising cost and falling loss.
    points: Vec<Price>,
    /// Of each item and each combination of the items up to it: the combination before, and the choice.
    steps: Vec<Vec<(u32, u16)>>,
    pub(super) is_exact: bool,
}

/// Combinations that are kept after each item.
pub(super) const LIMIT: usize = 1 << 15;

impl Front {
    /// `items` holds the choices of each; at least one item, at least one choice each, no loss NaN.
    pub(super) fn new(items: &[Vec<Price>], limit: usize) -> Self {
        let mut points = vec![Price { cost: 0, loss: 0.0 }];
        let mut steps = Vec::with_capacity(items.len());
        let mut is_exact = true;
        for choices in items {
            let mut all: Vec<(Price, u32, u16)> = Vec::with_capacity(points.len() * choices.len());
            for (at, point) in points.iter().enumerate() {
                all.extend(choices.iter().enumerate().map(|(choice, price)| {
                    let price =
                        Price { cost: point.cost + price.cost, loss: point.loss + price.loss };
                    (price, at as u32, choice as u16)
                }));
            }
            all.sort_by(|(a, from_a, by_a), (b, from_b, by_b)| {
                (a.cost.cmp(&b.cost))
                    .then(a.loss.total_cmp(&b.loss))
                    .then((from_a, by_a).cmp(&(from_b, by_b)))
            });
            let mut best = None;
            all.retain(|(price, ..)| {
                let is_better = best.is_none_or(|best| price.loss < best);
                if is_better {
                    best = Some(price.loss);
                }
                is_better
            });
            if all.len() > limit {
                is_exact = false;
                let last = all.len() - 1;
                all = (0..limit).map(|at| all[at * last / (limit - 1)]).collect();
            }
            points = all.iter().map(|(price, ..)| *price).collect();
            steps.push(all.into_iter().map(|(_, from, choice)| (from, choice)).collect());
        }
        Self { points, steps, is_exact }
    }

    /// By rising cost and falling loss; never empty.
    pub(super) fn points(&self) -> &[Price] {
        &self.points
    }

    /// The choice of each item in the combination at `point`.
    pub(super) fn choices(&self, point: usize) -> Vec<usize> {
        let mut at = point;
        let mut choices: Vec<usize> = self
            .steps
            .iter()
            .rev()
            .map(|step| {
                let (from, choice) = step[at];
                at = from as usize;
                usize::from(choice)
            })
            .collect();
        choices.reverse();
        choices
    }

    /// The combination with the least loss of those that cost at most `budget`.
    pub(super) fn within(&self, budget: u64) -> Option<usize> {
        self.points.partition_point(|point| point.cost <= budget).checked_sub(1)
    }

    /// The corners of the lower convex hull, from the cheapest to the one with the least loss: those for which there is a
    /// price of a unit of cost at which nothing is better.
    pub(super) fn corners(&self) -> Vec<usize> {
        let slope = |a: usize, b: usize| {
            let (a, b) = (self.points[a], self.points[b]);
            (b.loss - a.loss) / (b.cost - a.cost) as f64
        };
        let mut corners: Vec<usize> = Vec::new();
        for at in 0..self.points.len() {
            while let [.., before, last] = corners[..] {
                // Infinite losses have no slope; they are the first ones, and stay.
                match slope(before, last).partial_cmp(&slope(last, at)) {
                    Some(Ordering::Less) | None => break,
                    Some(_) => corners.pop(),
                };
            }
            corners.push(at);
        }
        corners
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A small generator of numbers (Knuth's constants).
    fn numbers(seed: u64) -> impl FnMut(u64) -> u64 {
        let mut state = seed;
        move |below| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) % below
        }
    }

    /// Losses are quarters, so that sums are exact in any order.
    fn problem(seed: u64) -> Vec<Vec<Price>> {
        let mut next = numbers(seed);
        (0..2 + seed % 4)
            .map(|_| {
                (0..1 + next(5))
                    .map(|_| Price { cost: next(40), loss: next(60) as f64 / 4.0 })
                    .collect()
            })
            .collect()
    }

    fn every_combination(items: &[Vec<Price>]) -> Vec<Price> {
        items.iter().fold(vec![Price { cost: 0, loss: 0.0 }], |all, choices| {
            all.iter()
                .flat_map(|a| {
                    choices.iter().map(|b| Price { cost: a.cost + b.cost, loss: a.loss + b.loss })
                })
                .collect()
        })
    }

    #[test]
    fn nothing_is_better_than_the_front() {
        for seed in 0..200 {
            let items = problem(seed);
            let front = Front::new(&items, LIMIT);
            let all = every_combination(&items);
            assert!(front.is_exact);
            for budget in 0..220 {
                let best = all
                    .iter()
                    .filter(|one| one.cost <= budget)
                    .map(|one| one.loss)
                    .min_by(f64::total_cmp);
                let found = front.within(budget).map(|at| front.points()[at].loss);
                assert_eq!(found, best, "seed {seed}, budget {budget}");
            }
        }
    }

    #[test]
    fn choices_cost_and_lose_what_the_point_says() {
        for (seed, limit) in (0..50).flat_map(|seed| [(seed, LIMIT), (seed, 3)]) {
            let items = problem(seed);
            let front = Front::new(&items, limit);
            for (at, point) in front.points().iter().enumerate() {
                let prices = front.choices(at).into_iter().zip(&items).map(|(at, item)| item[at]);
                let (cost, loss) =
                    prices.fold((0, 0.0), |(cost, loss), one| (cost + one.cost, loss + one.loss));
                assert_eq!(Price { cost, loss }, *point, "seed {seed}");
            }
        }
    }

    #[test]
    fn beyond_the_limit_both_ends_stay_and_it_is_said() {
        let items: Vec<Vec<Price>> = (0..8)
            .map(|item| {
                (0..5)
                    .map(|bits| Price { cost: (bits + 1) << item, loss: 1.0 / (1 + bits) as f64 })
                    .collect()
            })
            .collect();
        let (exact, thinned) = (Front::new(&items, LIMIT), Front::new(&items, 16));
        assert!(exact.is_exact && !thinned.is_exact);
        assert_eq!(thinned.points().len(), 16);
        assert_eq!(thinned.points().first(), exact.points().first());
        assert_eq!(thinned.points().last(), exact.points().last());
    }

    #[test]
    fn corners_lie_below_every_line_between_others() {
        for seed in 0..100 {
            let front = Front::new(&problem(seed), LIMIT);
            let corners = front.corners();
            assert_eq!(corners.first(), Some(&0));
            assert_eq!(corners.last(), Some(&(front.points().len() - 1)));
            for pair in corners.windows(2) {
                let [a, b] = [front.points()[pair[0]], front.points()[pair[1]]];
                for point in &front.points()[pair[0]..pair[1]] {
                    let share = (point.cost - a.cost) as f64 / (b.cost - a.cost) as f64;
                    assert!(point.loss >= a.loss + share * (b.loss - a.loss) - 1e-9, "seed {seed}");
                }
            }
        }
    }
}
