//! Rounding in two additions.
//!
//! The engine rounds number by number, with a call for each where the processor's baseline has no instruction for it;
//! additions it does for many numbers at once. Among numbers from 2²³ to 2²⁴ the floats are the whole numbers, so adding
//! 1.5 · 2²³ rounds, ties to even, and subtracting it again is exact. The one difference to rounding is that a negative
//! number near zero becomes 0 and not -0.

/// 1.5 · 2²³.
const WHOLE: f32 = 12_582_912.0;

/// The largest magnitude that is rounded so, 2²².
const LARGEST: f32 = 4_194_304.0;

/// What to add to a number and to subtract from the sum.
pub(crate) struct Constants {
    pub(crate) added: f32,
    pub(crate) subtracted: Vec<f32>,
}

/// The constants that make `round(x) + offset` of numbers `x` within whole bounds, exactly; one subtrahend for each
/// offset. `None` where a bound or an offset is too large or not whole.
pub(crate) fn by_adding(bounds: [f32; 2], offsets: &[f32]) -> Option<Constants> {
    let fits = |value: &f32| value.abs() <= LARGEST && value.fract() == 0.0;
    (bounds.iter().all(fits) && offsets.iter().all(fits)).then(|| Constants {
        added: WHOLE,
        subtracted: offsets.iter().map(|offset| WHOLE - offset).collect(),
    })
}

/// The value of which all are copies.
pub(crate) fn one_of(values: &[f32]) -> Option<f32> {
    let (&first, rest) = values.split_first()?;
    rest.iter().all(|&other| other == first).then_some(first)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_round_as_rounding_does() {
        let offsets = [0.0, 1.0, -1.0, 255.0, -32_768.0, LARGEST, -LARGEST];
        for bounds in [[-8.0, 7.0], [0.0, 255.0], [-32_768.0, 65_535.0], [-LARGEST, LARGEST]] {
            let Constants { added, subtracted } = by_adding(bounds, &offsets).unwrap();
            let mut values = vec![f32::INFINITY, f32::NEG_INFINITY, 1e-30, -0.3, LARGEST, -LARGEST];
            values.extend((-40_000..40_000).flat_map(|x| {
                let half = x as f32 * 0.5;
                [half, half.next_up(), half.next_down(), half * 104.9]
            }));
            for x in values {
                for (offset, subtracted) in offsets.iter().zip(&subtracted) {
                    let expected = x.round_ties_even().clamp(bounds[0], bounds[1]) + offset;
                    let found = x.clamp(bounds[0], bounds[1]) + added - subtracted;
                    assert_eq!(found, expected, "{x} + {offset} within {bounds:?}");
                }
            }
        }
    }

    #[test]
    fn what_is_too_large_is_left_to_rounding() {
        assert!(by_adding([0.0, 2.0 * LARGEST], &[0.0]).is_none());
        assert!(by_adding([0.0, 255.0], &[-LARGEST - 1.0]).is_none());
        assert!(by_adding([0.0, 0.5], &[0.0]).is_none());
        assert!(by_adding([f32::NAN, 1.0], &[0.0]).is_none());
    }
}
