//! A moving average of the batches' extremes.

use super::estimator::{RangeEstimator, TileRanges, tile_ranges};
use crate::quantization::quantizer::RangeSettable;
use crate::{ArrayView, Error, ErrorKind};

/// Exponentially smoothed minimum and maximum (spec §6.5), which one unusual batch cannot stretch for good:
///
/// ```text
/// first batch:  min := min(batch)
/// later ones:   min := gamma * min(batch) + (1 - gamma) * min      and max likewise
/// ```
///
/// in `f32`, as the reference computes it. With `gamma` 1 the last batch wins. If a bound of any tile is infinite, the next
/// batch replaces the bounds of all tiles.
///
/// Merging continues the average as if the other's batches had come after this one's; it agrees with one estimator that
/// sees all of them up to rounding.
#[derive(Clone, Debug)]
pub struct SmoothedMinMax {
    gamma: f64,
    state: Option<State>,
}

#[derive(Clone, Debug)]
struct State {
    range: TileRanges,
    /// Where the average started: `range = weight(steps) * anchor + (a part of the batches alone)`.
    anchor: TileRanges,
    /// How many batches were mixed in since; a first batch counts, being mixed with itself.
    steps: u64,
    /// Whether an infinite bound made a batch replace everything that was there before.
    forgot: bool,
}

impl SmoothedMinMax {
    /// An estimator that has seen nothing; `gamma` is the weight of the newest batch.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidSettings`] unless `0 < gamma <= 1`.
    pub fn new(gamma: f64) -> Result<Self, Error> {
        if !(gamma > 0.0 && gamma <= 1.0) {
            return Err(Error::new(
                ErrorKind::InvalidSettings,
                format!("gamma must be above 0 and at most 1, found {gamma}"),
            ));
        }
        Ok(Self { gamma, state: None })
    }

    /// The weight of the newest batch.
    pub fn gamma(&self) -> f64 {
        self.gamma
    }
}

impl RangeEstimator for SmoothedMinMax {
    fn name(&self) -> &str {
        "smoothed_minmax"
    }

    fn observe(&mut self, x: ArrayView<'_>, quantizer: &dyn RangeSettable) -> Result<(), Error> {
        self.observe_ranges(tile_ranges(x, quantizer.granularity())?)
    }

    fn needs_ranges_only(&self) -> bool {
        true
    }

    fn observe_ranges(&mut self, found: TileRanges) -> Result<(), Error> {
        let Some(state) = &mut self.state else {
            self.state =
                Some(State { range: found.clone(), anchor: found, steps: 1, forgot: false });
            return Ok(());
        };
        state.range.check_tiles(&found)?;
        if !state.range.is_finite() {
            *state = State { range: found.clone(), anchor: found, steps: 1, forgot: true };
            return Ok(());
        }
        // The weights are rounded to f32 one by one, as the reference does.
        let (new, old) = (self.gamma as f32, (1.0 - self.gamma) as f32);
        let mix = |bounds: &mut [f32], found: &[f32]| {
            for (bound, found) in bounds.iter_mut().zip(found) {
                *bound = new * found + old * *bound;
            }
        };
        mix(&mut state.range.min, &found.min);
        mix(&mut state.range.max, &found.max);
        state.steps += 1;
        Ok(())
    }

    fn range(&self) -> Option<TileRanges> {
        self.state.as_ref().map(|state| state.range.clone())
    }

    fn start_from(&mut self, range: TileRanges) -> Result<(), Error> {
        self.state = Some(State { range: range.clone(), anchor: range, steps: 0, forgot: false });
        Ok(())
    }

    fn merge(&mut self, later: &dyn RangeEstimator) -> Result<(), Error> {
        let later = self.same_kind(later)?;
        if later.gamma != self.gamma {
            return Err(Error::new(
                ErrorKind::Estimator,
                format!(
                    "smoothed_minmax with gamma {} cannot merge with gamma {}",
                    self.gamma, later.gamma
                ),
            ));
        }
        let Some(second) = &later.state else { return Ok(()) };
        match &mut self.state {
            Some(_) if second.steps == 0 => {}
            Some(first) => first.append(second, self.gamma)?,
            None => self.state = Some(second.clone()),
        }
        Ok(())
    }

    fn fork(&self) -> Box<dyn RangeEstimator> {
        Box::new(Self { gamma: self.gamma, state: None })
    }
}

impl State {
    /// Continues with what `later` saw. Mixing in `n` batches is `x -> (1 - gamma)^n * x + b` for some `b`; what is known
    /// of `later` is its value for `x = anchor`, and the value for any other `x` lies `(1 - gamma)^n * (x - anchor)` off.
    fn append(&mut self, later: &State, gamma: f64) -> Result<(), Error> {
        self.range.check_tiles(&later.range)?;
        if later.forgot || !self.range.is_finite() {
            *self = State { forgot: true, ..later.clone() };
            return Ok(());
        }
        let weight = (1.0 - gamma).powf(later.steps as f64);
        let shift = |bounds: &mut [f32], later: &[f32], anchor: &[f32]| {
            for ((bound, &later), &anchor) in bounds.iter_mut().zip(later).zip(anchor) {
                *bound = if later.is_finite() && anchor.is_finite() {
                    (f64::from(later) + weight * (f64::from(*bound) - f64::from(anchor))) as f32
                } else {
                    later
                };
            }
        };
        shift(&mut self.range.min, &later.range.min, &later.anchor.min);
        shift(&mut self.range.max, &later.range.max, &later.anchor.max);
        self.steps += later.steps;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quantization::{Granularity, LinearQuantizer, LinearQuantizerConfig};

    fn quantizer() -> LinearQuantizer {
        let config = LinearQuantizerConfig::new(8)
            .asymmetric()
            .with_granularity(Granularity::per_channel(0));
        LinearQuantizer::new(config).unwrap()
    }

    /// Each batch is one `[min, max]` pair per tile.
    fn observe(estimator: &mut SmoothedMinMax, batches: &[[[f32; 2]; 2]]) {
        for batch in batches {
            let view = ArrayView::new(batch.as_flattened(), &[2, 2]).unwrap();
            estimator.observe(view, &quantizer()).unwrap();
        }
    }

    /// Spec A.3: batches `x`, `2x`, `0.5x` of the spec's input, whose extremes are -2 and 1.88.
    #[test]
    fn the_specs_example() {
        let mut estimator = SmoothedMinMax::new(0.25).unwrap();
        let batch = |factor: f32| [[-2.0 * factor, 1.88 * factor]; 2];
        observe(&mut estimator, &[batch(1.0), batch(2.0), batch(0.5)]);
        let range = estimator.range().unwrap();
        assert_eq!(range.min, [-2.125; 2]);
        assert!((range.max[0] - 1.9975).abs() < 1e-6, "{range:?}");
    }

    #[test]
    fn with_gamma_one_the_last_batch_wins() {
        let mut estimator = SmoothedMinMax::new(1.0).unwrap();
        observe(&mut estimator, &[[[-9.0, 9.0]; 2], [[-1.0, 2.0], [0.0, 3.0]]]);
        let range = estimator.range().unwrap();
        assert_eq!((range.min, range.max), (vec![-1.0, 0.0], vec![2.0, 3.0]));
    }

    #[test]
    fn an_infinite_bound_makes_the_next_batch_replace_all_tiles() {
        let mut estimator = SmoothedMinMax::new(0.5).unwrap();
        observe(&mut estimator, &[[[-1.0, 1.0], [-1.0, 1.0]], [[-3.0, 3.0], [0.0, f32::INFINITY]]]);
        // One tile is infinite, the other is averaged as ever.
        assert_eq!(estimator.range().unwrap().max, [2.0, f32::INFINITY]);
        observe(&mut estimator, &[[[-8.0, 8.0], [-4.0, 4.0]]]);
        let range = estimator.range().unwrap();
        assert_eq!((range.min, range.max), (vec![-8.0, -4.0], vec![8.0, 4.0]));
    }

    #[test]
    fn merging_continues_the_average() {
        let batches = [
            [[-1.0, 1.0], [-2.0, 0.5]],
            [[-4.0, 2.0], [-1.0, 8.0]],
            [[-0.5, 3.0], [-3.0, 1.0]],
            [[-2.0, 2.5], [-1.5, 4.0]],
            [[-7.0, 0.5], [-0.5, 2.0]],
        ];
        for gamma in [0.1, 0.5, 1.0] {
            for cut in 0..=batches.len() {
                for cut_again in cut..=batches.len() {
                    let mut whole = SmoothedMinMax::new(gamma).unwrap();
                    let mut first = whole.clone();
                    let (mut second, mut third) = (first.clone(), first.clone());
                    observe(&mut whole, &batches);
                    observe(&mut first, &batches[..cut]);
                    observe(&mut second, &batches[cut..cut_again]);
                    observe(&mut third, &batches[cut_again..]);
                    second.merge(&third).unwrap();
                    first.merge(&second).unwrap();
                    let (expected, merged) = (whole.range().unwrap(), first.range().unwrap());
                    for (a, b) in [(&expected.min, &merged.min), (&expected.max, &merged.max)] {
                        for (a, b) in a.iter().zip(b) {
                            assert!(
                                (a - b).abs() < 1e-5,
                                "gamma {gamma}, {cut}, {cut_again}: {a} {b}"
                            );
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn merging_continues_from_an_existing_range_and_past_infinities() {
        let start = TileRanges { min: vec![-10.0; 2], max: vec![10.0; 2] };
        let infinite = [[0.0, f32::INFINITY], [0.0, 1.0]];
        let (a, b) = ([[-1.0, 1.0]; 2], [[-2.0, 4.0]; 2]);
        for batches in
            [vec![a, b], vec![a, infinite, b], vec![infinite, a, b], vec![a, b, infinite]]
        {
            for cut in 0..=batches.len() {
                let mut whole = SmoothedMinMax::new(0.5).unwrap();
                whole.start_from(start.clone()).unwrap();
                let (mut first, mut second) = (whole.clone(), SmoothedMinMax::new(0.5).unwrap());
                observe(&mut whole, &batches);
                observe(&mut first, &batches[..cut]);
                observe(&mut second, &batches[cut..]);
                first.merge(&second).unwrap();
                // These sums are exact in f32, so nothing is lost by merging.
                assert_eq!(whole.range(), first.range(), "{batches:?} cut at {cut}");
            }
        }
    }

    #[test]
    fn wrong_settings_are_refused() {
        for gamma in [0.0, -0.1, 1.1, f64::NAN] {
            let error = SmoothedMinMax::new(gamma).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidSettings, "{error}");
        }
        let mut estimator = SmoothedMinMax::new(0.5).unwrap();
        let other = SmoothedMinMax::new(0.25).unwrap();
        assert_eq!(estimator.merge(&other).unwrap_err().kind(), ErrorKind::Estimator);
    }
}
