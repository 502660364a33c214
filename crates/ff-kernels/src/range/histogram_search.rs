//! Candidate ranges judged by histograms: streaming data is kept as counts, and the search runs over the counts.

use rayon::prelude::*;

use super::histogram::Histogram;
use super::min_error::Candidates;
use super::parameters::{RangeOptions, parameters_for_range};
use crate::error::{KernelError, check_len};
use crate::grid::IntegerGrid;

/// The mean squared error of every candidate of every tile, `[num_tiles, num_candidates]`, as if each bin's values were
/// spread evenly over it.
///
/// With scale `s`, offset `o` and bounds `lo`, `hi`, a value `x` stands at `t = x/s - round(o)` on the grid and is `d(t) = t -
/// clamp(round(t), lo, hi)` away from its code. A bin from `a` to `b` contributes the exact mean of the square,
///
/// ```text
/// s² · (G(t_b) - G(t_a)) / (t_b - t_a),     G(t) = (clamp(round(t), lo, hi) - lo) / 12 + d(t)³ / 3
/// ```
///
/// whether it lies inside one step, spans many, or is clipped. The outermost bins end at the data's minimum and maximum.
/// Against [`candidate_errors`](crate::candidate_errors) of the data itself only the places of values inside their bins
/// are lost.
///
/// # Errors
/// Another number of histograms than tiles; a grid that [`parameters_for_range`] refuses.
///
/// ```
/// use ff_kernels::*;
/// let mut seen = Histogram::new(2048)?;
/// let mut x: Vec<f32> = (0..3000).map(|i| (i as f32 * 0.7).sin()).collect();
/// x.push(9.0); // an outlier, which is better clipped
/// seen.add(&x)?;
/// let candidates = Candidates::new(&[-1.0], &[9.0], true, 90, CandidateLayout::default())?;
/// let errors = histogram_errors(&[seen], &candidates, IntegerGrid::signed(4)?, &RangeOptions::default())?;
/// let (_, max) = candidates.ranges(&best_candidates(&errors, 90)?)?;
/// assert!(max[0] < 3.0);
/// # Ok::<(), KernelError>(())
/// ```
pub fn histogram_errors(
    histograms: &[Histogram],
    candidates: &Candidates,
    grid: IntegerGrid,
    options: &RangeOptions,
) -> Result<Vec<f64>, KernelError> {
    search(histograms, candidates, grid, options, mean_squared_error)
}

/// The divergence (Kullback-Leibler, in nats) of every candidate of every tile, `[num_tiles, num_candidates]`: how much of
/// the distribution of values quantization loses.
///
/// With `P` the shares of the bins whose centres a candidate does not clip, the clipped values added to the outermost of
/// these, and `Q` the shares without the clipped values, every code's share spread evenly over its bins that are not empty:
///
/// ```text
/// D = Σ P·ln(P / ((1 - ε)·Q + ε / number of bins kept)),     ε = 1e-4
/// ```
///
/// The method is that of calibration by entropy (S. Migacz, 8-bit inference with TensorRT, GTC 2017), for any grid. As
/// there, zeros do not count, which every grid holds exactly: the bin with zero is cut down to the larger of its neighbours. A
/// candidate that keeps fewer bins than the grid has codes could not show any loss; its divergence is infinite, unless the
/// tile has no more bins than that. A tile without data has divergence 0 everywhere.
///
/// # Errors
/// As [`histogram_errors`].
pub fn histogram_divergences(
    histograms: &[Histogram],
    candidates: &Candidates,
    grid: IntegerGrid,
    options: &RangeOptions,
) -> Result<Vec<f64>, KernelError> {
    search(histograms, candidates, grid, options, divergence)
}

/// The integers of a candidate's codes on the real line.
#[derive(Clone, Copy)]
struct Steps {
    scale: f64,
    /// Rounded.
    offset: f64,
    lo: f64,
    hi: f64,
}

impl Steps {
    /// Where a value stands among the codes.
    #[inline(always)]
    fn position(self, x: f64) -> f64 {
        x / self.scale - self.offset
    }

    /// `G` of [`histogram_errors`].
    #[inline(always)]
    fn cumulated(self, t: f64) -> f64 {
        let code = t.round_ties_even().clamp(self.lo, self.hi);
        let d = t - code;
        (code - self.lo) / 12.0 + d * d * d / 3.0
    }
}

fn search(
    histograms: &[Histogram],
    candidates: &Candidates,
    grid: IntegerGrid,
    options: &RangeOptions,
    judge: fn(&Histogram, Steps) -> f64,
) -> Result<Vec<f64>, KernelError> {
    let (n, num_tiles) = (candidates.num_candidates(), candidates.num_tiles());
    check_len("list of histograms", num_tiles, histograms.len())?;
    // One-sidedness may depend on all tiles, so parameters are made for all of them at once.
    let parameters = (0..n)
        .map(|candidate| {
            let (min, max) = candidates.ranges(&vec![candidate; num_tiles])?;
            parameters_for_range(&min, &max, grid, options)
        })
        .collect::<Result<Vec<_>, _>>()?;
    let mut judged = vec![0.0; num_tiles * n];
    judged.par_iter_mut().enumerate().for_each(|(at, judged)| {
        let (tile, candidate) = (at / n, at % n);
        let p = &parameters[candidate];
        let offset = p.offset.as_ref().map_or(0.0, |o| o[tile]);
        let steps = Steps {
            scale: p.scale[tile].into(),
            offset: offset.round_ties_even().into(),
            lo: f64::from(grid.lo()),
            hi: f64::from(grid.hi()),
        };
        *judged = judge(&histograms[tile], steps);
    });
    Ok(judged)
}

fn mean_squared_error(histogram: &Histogram, steps: Steps) -> f64 {
    let Some((min, max)) = histogram.range() else { return 0.0 };
    let (min, max) = (f64::from(min), f64::from(max));
    let mut sum = 0.0;
    for bin in histogram.bins().filter(|bin| bin.count > 0) {
        let (a, b) = (bin.lower.max(min), bin.upper.min(max));
        let (a, b) = (steps.position(a), steps.position(b));
        let mean = if b > a {
            (steps.cumulated(b) - steps.cumulated(a)) / (b - a)
        } else {
            let d = a - a.round_ties_even().clamp(steps.lo, steps.hi);
            d * d
        };
        sum += bin.count as f64 * mean;
    }
    sum * steps.scale * steps.scale / histogram.count() as f64
}

/// The share of `Q` that is spread over all bins, so that none is 0.
const SMOOTHING: f64 = 1e-4;

fn divergence(histogram: &Histogram, steps: Steps) -> f64 {
    if histogram.count() == 0 {
        return 0.0;
    }
    // The bins that are kept, each with its code, and how many values lie below and above.
    let (mut below, mut above, mut total) = (0, 0, 0);
    let mut kept: Vec<(f64, u64)> = Vec::new();
    let bins = histogram.bins().len();
    let zeros = surplus_zeros(histogram);
    for bin in histogram.bins() {
        let has_zero = (bin.lower..bin.upper).contains(&0.0);
        let count = bin.count - if has_zero { zeros } else { 0 };
        total += count;
        let code = steps.position((bin.lower + bin.upper) / 2.0).round_ties_even();
        match code {
            code if code < steps.lo => below += count,
            code if code > steps.hi => above += count,
            code => kept.push((code, count)),
        }
    }
    let codes = steps.hi - steps.lo + 1.0;
    let inside: u64 = kept.iter().map(|&(_, count)| count).sum();
    if inside == 0 || ((kept.len() as f64) < codes && kept.len() < bins) {
        return f64::INFINITY;
    }
    let last = kept.len() - 1;
    let (total, inside) = (total as f64, inside as f64);
    let floor = SMOOTHING / kept.len() as f64;
    let mut sum = 0.0;
    let mut start = 0;
    while start < kept.len() {
        let code = kept[start].0;
        let end = start + kept[start..].iter().take_while(|&&(other, _)| other == code).count();
        let group = &kept[start..end];
        let mass: u64 = group.iter().map(|&(_, count)| count).sum();
        let filled = group.iter().filter(|&&(_, count)| count > 0).count();
        for (at, &(_, count)) in (start..).zip(group) {
            let clipped = if at == 0 { below } else { 0 } + if at == last { above } else { 0 };
            let p = (count + clipped) as f64 / total;
            if p > 0.0 {
                let q = if count > 0 { mass as f64 / (filled as f64 * inside) } else { 0.0 };
                sum += p * (p / ((1.0 - SMOOTHING) * q + floor)).ln();
            }
        }
        start = end;
    }
    sum
}

/// By how much the bin with zero rises above its neighbours: zeros, as after a ReLU, which every grid holds exactly.
fn surplus_zeros(histogram: &Histogram) -> u64 {
    let mut bins = histogram.bins();
    let Some(at) = bins.position(|bin| (bin.lower..bin.upper).contains(&0.0)) else { return 0 };
    let count = |at: usize| histogram.bins().nth(at).map_or(0, |bin| bin.count);
    let neighbours = count(at + 1).max(at.checked_sub(1).map_or(0, count));
    count(at).saturating_sub(neighbours)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{CandidateLayout, Tiling, best_candidates, candidate_errors_reference, min_max};

    /// Roughly normal numbers, some of them far out.
    fn data(n: usize, seed: u64) -> Vec<f32> {
        let mut state = seed;
        let mut next = || {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 40) as f32 / (1 << 24) as f32 - 0.5
        };
        (0..n)
            .map(|i| {
                let x = next() + next() + next() + next();
                if i % 500 == 7 { x * 8.0 } else { x }
            })
            .collect()
    }

    fn histogram(x: &[f32], bins: usize) -> Histogram {
        let mut histogram = Histogram::new(bins).unwrap();
        histogram.add(x).unwrap();
        histogram
    }

    #[test]
    fn the_cumulated_error_is_the_integral_of_the_squared_distance() {
        let steps = Steps { scale: 0.3, offset: 2.0, lo: -8.0, hi: 7.0 };
        let n = 200_000;
        let (from, to) = (-12.3, 11.9);
        let width = (to - from) / f64::from(n);
        let mut sum = 0.0;
        for i in 0..n {
            let t: f64 = from + (f64::from(i) + 0.5) * width;
            let d = t - t.round_ties_even().clamp(steps.lo, steps.hi);
            sum += d * d * width;
            if i % 1000 == 999 {
                let exact =
                    steps.cumulated(from + f64::from(i + 1) * width) - steps.cumulated(from);
                assert!((sum - exact).abs() < 1e-6 * exact, "{i}: {sum} {exact}");
            }
        }
    }

    #[test]
    fn errors_of_counts_are_close_to_those_of_the_data() {
        let x = data(20_000, 3);
        let tiling = Tiling::whole(&[x.len()]).unwrap();
        let range = min_max(&x, &tiling).unwrap();
        for (symmetric, bits) in [(true, 4), (false, 4), (true, 8), (false, 8), (true, 2)] {
            let options = RangeOptions { symmetric, ..Default::default() };
            let grid = IntegerGrid::signed(bits).unwrap();
            let layout = CandidateLayout::default();
            let candidates =
                Candidates::new(&range.min, &range.max, symmetric, 64, layout).unwrap();
            let exact =
                candidate_errors_reference(&x, &tiling, &candidates, grid, &options).unwrap();
            let counted =
                histogram_errors(&[histogram(&x, 4096)], &candidates, grid, &options).unwrap();
            for (exact, counted) in exact.iter().zip(&counted) {
                assert!(
                    (exact - counted).abs() < 0.03 * exact,
                    "{symmetric} {bits}: {exact} {counted}"
                );
            }
            let n = candidates.num_candidates();
            let best = best_candidates(&counted, n).unwrap()[0];
            let least = exact.iter().copied().fold(f64::INFINITY, f64::min);
            assert!(exact[best] <= 1.01 * least, "{} {least}", exact[best]);
        }
    }

    #[test]
    fn tiles_are_judged_apart() {
        let (a, b) = (data(5000, 1), data(5000, 2));
        let (lo, hi) = ([-4.0, -2.0], [4.0, 2.0]);
        let layout = CandidateLayout::default();
        let (grid, options) = (IntegerGrid::signed(4).unwrap(), RangeOptions::default());
        let histograms = [histogram(&a, 1024), histogram(&b, 1024)];
        for judge in [histogram_errors, histogram_divergences] {
            let both = Candidates::new(&lo, &hi, true, 10, layout).unwrap();
            let both = judge(&histograms, &both, grid, &options).unwrap();
            for tile in 0..2 {
                let one =
                    Candidates::new(&lo[tile..=tile], &hi[tile..=tile], true, 10, layout).unwrap();
                let one = judge(&histograms[tile..=tile], &one, grid, &options).unwrap();
                assert_eq!(both[tile * 10..][..10], one);
            }
            let candidates = Candidates::new(&lo, &hi, true, 10, layout).unwrap();
            assert!(judge(&histograms[..1], &candidates, grid, &options).is_err());
        }
    }

    #[test]
    fn one_value_has_the_error_of_that_value() {
        let seen = histogram(&[0.7; 9], 64);
        let candidates =
            Candidates::new(&[0.7], &[0.7], false, 1, CandidateLayout::default()).unwrap();
        let grid = IntegerGrid::signed(3).unwrap();
        let options = RangeOptions { symmetric: false, ..Default::default() };
        let found = histogram_errors(&[seen], &candidates, grid, &options).unwrap();
        let tiling = Tiling::whole(&[1]).unwrap();
        let exact = candidate_errors_reference(&[0.7], &tiling, &candidates, grid, &options);
        assert!((found[0] - exact.unwrap()[0]).abs() < 1e-12);
        let none = [Histogram::new(64).unwrap()];
        for judge in [histogram_errors, histogram_divergences] {
            assert_eq!(judge(&none, &candidates, grid, &options).unwrap(), [0.0]);
        }
    }

    /// By hand: four bins of two codes each, nothing clipped; then the last two bins clipped.
    #[test]
    fn divergences_by_hand() {
        let mut x = Vec::new();
        for (at, count) in [(1.25, 4), (1.75, 2), (2.25, 1), (2.75, 1)] {
            x.extend(vec![at; count]);
        }
        let mut seen = Histogram::new(4).unwrap();
        seen.add(&x).unwrap();
        assert_eq!((seen.bin_width(), seen.bins().len()), (0.5, 4));
        let of = |scale: f64, codes: (f64, f64)| {
            divergence(&seen, Steps { scale, offset: 1.0 / scale - 0.5, lo: codes.0, hi: codes.1 })
        };
        // Centres at 0.75, 1.25, 1.75, 2.25 steps: codes 1, 1, 2, 2; shares 1/2, 1/4, 1/8, 1/8.
        let smooth = |q: f64| (1.0 - 1e-4) * q + 1e-4 / 4.0;
        let expected = [(0.5, 0.375), (0.25, 0.375), (0.125, 0.125), (0.125, 0.125)]
            .iter()
            .map(|&(p, q): &(f64, f64)| p * (p / smooth(q)).ln())
            .sum::<f64>();
        assert!((of(1.0, (1.0, 2.0)) - expected).abs() < 1e-12);
        // Only code 1 is kept: 8 values, of which 2 lie above, on bins of 4 and 2.
        let smooth = |q: f64| (1.0 - 1e-4) * q + 1e-4 / 2.0;
        let expected = [(0.5, 0.5), (0.5, 0.5)]
            .iter()
            .map(|&(p, q): &(f64, f64)| p * (p / smooth(q)).ln())
            .sum::<f64>();
        assert!((of(1.0, (1.0, 1.0)) - expected).abs() < 1e-12);
        // One bin kept of four shows nothing on six codes.
        assert!(of(0.5, (1.0, 4.0)).is_finite());
        assert_eq!(of(0.5, (-4.0, 1.0)), f64::INFINITY);
    }

    #[test]
    fn zeros_do_not_count() {
        let x: Vec<f32> = data(20_000, 5).iter().map(|x| x.abs()).collect();
        let (grid, options) = (IntegerGrid::signed(5).unwrap(), RangeOptions::default());
        let max = x.iter().copied().fold(0.0, f32::max);
        let candidates =
            Candidates::new(&[0.0], &[max], true, 50, CandidateLayout::default()).unwrap();
        let judged = |zeros: usize| {
            let mut seen = histogram(&x, 2048);
            seen.add(&vec![0.0; zeros]).unwrap();
            histogram_divergences(&[seen], &candidates, grid, &options).unwrap()
        };
        assert_eq!(judged(1_000), judged(100_000));
    }
}
