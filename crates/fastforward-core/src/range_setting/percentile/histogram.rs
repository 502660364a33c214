//! Counts in bins that widen as data demands.

/// How often values fall into bins `[i * width, (i + 1) * width)`, `width` a power of two.
///
/// Bins are aligned to zero, so a bin of double width is exactly two old ones, and the histogram of a set of values does
/// not depend on how they came.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Histogram {
    /// The smallest and largest value seen; `None` before any.
    extremes: Option<(f32, f32)>,
    /// The base-2 logarithm of the width of a bin.
    exponent: i32,
    /// The index `i` of the first bin.
    first: i64,
    counts: Vec<u64>,
}

impl Histogram {
    /// Makes room for values between two finite bounds that are themselves values.
    pub(super) fn cover(&mut self, min: f32, max: f32, num_bins: usize) {
        let (min, max) = match self.extremes {
            Some((before_min, before_max)) => (before_min.min(min), before_max.max(max)),
            None => (min, max),
        };
        let exponent = exponent_for(min, max, num_bins);
        if self.extremes.is_some() {
            self.coarsen(exponent);
        }
        self.exponent = exponent;
        let (first, last) = (index(min, exponent), index(max, exponent));
        // Bounds only move outwards, and a bin of the older data is one of these.
        let before = if self.extremes.is_some() { (self.first - first) as usize } else { 0 };
        let mut counts = vec![0; (last - first + 1) as usize];
        counts[before..][..self.counts.len()].copy_from_slice(&self.counts);
        self.counts = counts;
        self.first = first;
        self.extremes = Some((min, max));
    }

    /// Counts a value that [`cover`](Self::cover) made room for.
    pub(super) fn count(&mut self, value: f32) {
        self.counts[(index(value, self.exponent) - self.first) as usize] += 1;
    }

    /// Adds the counts of another histogram.
    pub(super) fn merge(&mut self, other: &Histogram, num_bins: usize) {
        let Some((min, max)) = other.extremes else { return };
        self.cover(min, max, num_bins);
        let mut other = other.clone();
        other.coarsen(self.exponent);
        let start = (other.first - self.first) as usize;
        for (count, other) in self.counts[start..].iter_mut().zip(&other.counts) {
            *count += other;
        }
    }

    /// The range that leaves out at most this share of the values at each end.
    pub(super) fn central_range(&self, outside: f64) -> (f32, f32) {
        let Some((min, max)) = self.extremes else { return (0.0, 0.0) };
        let total: u64 = self.counts.iter().sum();
        // The sum of a share and its rounding error may lie a hair below a whole number: 1e-9 of a value is none.
        let outside = (total as f64 * outside + 1e-9).floor() as u64;
        // One value at least is left between the ends.
        let outside = outside.min(total.saturating_sub(1) / 2);
        if outside == 0 {
            return (min, max);
        }
        let first_beyond = |counts: &mut dyn Iterator<Item = &u64>| {
            let mut seen = 0;
            counts
                .take_while(|&&count| {
                    seen += count;
                    seen <= outside
                })
                .count() as i64
        };
        let lowest = self.first + first_beyond(&mut self.counts.iter());
        let highest =
            self.first + self.counts.len() as i64 - first_beyond(&mut self.counts.iter().rev());
        let edge = |index: i64| (index as f64 * width(self.exponent)) as f32;
        (edge(lowest).max(min), edge(highest).min(max))
    }

    /// Joins neighbouring bins until they are this wide.
    fn coarsen(&mut self, exponent: i32) {
        let shift = exponent - self.exponent;
        if shift <= 0 || self.counts.is_empty() {
            return;
        }
        // Indices have at most 2^26 or so values on each side of zero: a shift by more says no more than the sign.
        let shift = shift.min(62);
        let first = self.first >> shift;
        let last = (self.first + self.counts.len() as i64 - 1) >> shift;
        let mut counts = vec![0; (last - first + 1) as usize];
        for (at, count) in self.counts.iter().enumerate() {
            counts[(((self.first + at as i64) >> shift) - first) as usize] += count;
        }
        self.counts = counts;
        self.first = first;
        self.exponent = exponent;
    }
}

/// The exponent of the smallest width whose bins cover a range: as few as asked for, and none narrower than the distance
/// of neighbouring `f32` values at the range's far end. Grows with the range, whichever way it grows.
fn exponent_for(min: f32, max: f32, num_bins: usize) -> i32 {
    let largest = f64::from(min.abs().max(max.abs()));
    // A positive f32 is a normal f64, whose exponent can be read off its bits.
    let mut exponent = match largest > 0.0 {
        true => ((largest.to_bits() >> 52) & 0x7ff) as i32 - 1023 - 23,
        // Of no range that holds anything else it is smaller.
        false => -149 - 23,
    };
    while index(max, exponent) - index(min, exponent) >= num_bins as i64 {
        exponent += 1;
    }
    exponent
}

/// The bin of a finite value. Scaling by a power of two is exact in `f64`.
fn index(value: f32, exponent: i32) -> i64 {
    (f64::from(value) * width(-exponent)).floor() as i64
}

fn width(exponent: i32) -> f64 {
    f64::from_bits(((1023 + exponent) as u64) << 52)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(values: &[f32], num_bins: usize) -> Histogram {
        let mut histogram = Histogram::default();
        add(&mut histogram, values, num_bins);
        histogram
    }

    fn add(histogram: &mut Histogram, values: &[f32], num_bins: usize) {
        let (min, max) = values
            .iter()
            .fold((f32::INFINITY, f32::NEG_INFINITY), |(a, b), &v| (a.min(v), b.max(v)));
        histogram.cover(min, max, num_bins);
        values.iter().for_each(|&value| histogram.count(value));
    }

    /// Values over many orders of magnitude, both signs, zeros among them.
    fn values(seed: u32, count: u32) -> Vec<f32> {
        (0..count)
            .map(|i| {
                let bits = (i + 1).wrapping_mul(2654435761).wrapping_add(seed.wrapping_mul(40503));
                let magnitude = ((bits >> 8) % 60) as i32 - 30;
                let value = ((bits % 1000) as f32 - 500.0) * 2f32.powi(magnitude / 3);
                if bits % 17 == 0 { 0.0 } else { value }
            })
            .collect()
    }

    #[test]
    fn a_histogram_does_not_depend_on_the_order_or_the_parts() {
        for seed in 0..20 {
            let all = values(seed, 300);
            let whole = of(&all, 64);
            assert_eq!(whole.counts.iter().sum::<u64>(), 300);
            assert!(whole.counts.len() <= 64);
            let mut batch_by_batch = Histogram::default();
            for batch in all.rchunks(7) {
                add(&mut batch_by_batch, batch, 64);
            }
            assert_eq!(whole, batch_by_batch);
            let (head, tail) = all.split_at(30 * seed as usize % 300);
            let mut merged = Histogram::default();
            merged.merge(&of(tail, 64), 64);
            if !head.is_empty() {
                merged.merge(&of(head, 64), 64);
            }
            assert_eq!(whole, merged);
        }
    }

    #[test]
    fn extreme_values_have_bins() {
        for values in [
            vec![0.0; 3],
            vec![0.0, f32::from_bits(1)],
            vec![f32::MAX, -f32::MAX, 1e-40],
            vec![f32::MAX; 2],
            vec![1.0, 1.0 + f32::EPSILON],
            vec![-5.0],
        ] {
            for num_bins in [16, 1 << 16] {
                let histogram = of(&values, num_bins);
                assert_eq!(histogram.counts.iter().sum::<u64>(), values.len() as u64);
                assert!(histogram.counts.len() <= num_bins, "{values:?}");
                let mut grown = of(&values[..1], num_bins);
                values[1..].iter().for_each(|&value| add(&mut grown, &[value], num_bins));
                assert_eq!(grown, histogram);
            }
        }
    }
}
