//! Histograms that stream: bins of a power-of-two width, which grows with the data.

use rayon::prelude::*;

use super::minmax::min_max;
use crate::error::{KernelError, KernelErrorKind, SITES_SHOWN, check_len};
use crate::simd::{Vectorized, dispatch};
use crate::tiling::Tiling;

/// How often values fall where, over any amount of data in bounded memory.
///
/// Bin `k` holds the values in `[k·w, (k+1)·w)`. The width `w` is the smallest power of two at which
/// the bins from minimum to maximum are at most `max_bins` (and not finer than the largest value's
/// own precision); when data widens the range, neighbouring bins are added together. Bin edges are
/// multiples of the width, so a coarser histogram is exactly what counting anew would have given:
/// the result depends on the data alone, not on the order or the batches in which it came.
///
/// ```
/// use ff_kernels::Histogram;
/// let mut seen = Histogram::new(8)?;
/// seen.add(&[0.5, 1.0, 1.25, 2.75])?;
/// assert_eq!(seen.bin_width(), 0.5);
/// seen.add(&[7.9])?;
/// assert_eq!(seen.bin_width(), 1.0);
/// let counts: Vec<u64> = seen.bins().map(|bin| bin.count).collect();
/// assert_eq!(counts, [1, 2, 1, 0, 0, 0, 0, 1]);
/// # Ok::<(), ff_kernels::KernelError>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct Histogram {
    max_bins: usize,
    /// The bin width is `2^exponent`.
    exponent: i32,
    /// Number of the first bin.
    first: i64,
    counts: Vec<u64>,
    count: u64,
    min: f32,
    max: f32,
}

/// One bin of a [`Histogram`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Bin {
    /// Lower edge, included.
    pub lower: f64,
    /// Upper edge, not included.
    pub upper: f64,
    /// Number of values.
    pub count: u64,
}

/// The finest width: the smallest positive f32.
const MIN_EXPONENT: i32 = -149;

impl Histogram {
    /// No data yet.
    ///
    /// # Errors
    /// Fewer than 2 bins, which cannot hold both signs, or more than 2^24.
    pub fn new(max_bins: usize) -> Result<Self, KernelError> {
        if !(2..=1 << 24).contains(&max_bins) {
            return Err(KernelErrorKind::Option {
                what: "number of bins",
                must_be: "in 2..=16777216",
                found: max_bins as f64,
            }
            .into());
        }
        Ok(Histogram {
            max_bins,
            exponent: MIN_EXPONENT,
            first: 0,
            counts: Vec::new(),
            count: 0,
            min: f32::INFINITY,
            max: f32::NEG_INFINITY,
        })
    }

    /// Counts values.
    ///
    /// # Errors
    /// NaN or infinities (nothing is counted then).
    pub fn add(&mut self, x: &[f32]) -> Result<(), KernelError> {
        if let Some(err) = not_finite(x) {
            return Err(err);
        }
        let min = x.iter().copied().fold(f32::INFINITY, f32::min);
        let max = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        self.cover(min, max);
        let (scale, first) = (self.per_unit(), self.first);
        count_into(&mut self.counts, x, scale, first);
        self.count += x.len() as u64;
        Ok(())
    }

    /// Takes in what another histogram has counted.
    ///
    /// # Errors
    /// Another maximal number of bins.
    pub fn merge(&mut self, other: &Histogram) -> Result<(), KernelError> {
        check_len("histogram to merge", self.max_bins, other.max_bins)?;
        self.cover(other.min, other.max);
        let shift = self.exponent - other.exponent;
        for (k, &count) in (other.first..).zip(&other.counts) {
            if count > 0 {
                self.counts[(halve(k, shift) - self.first) as usize] += count;
            }
        }
        self.count += other.count;
        Ok(())
    }

    /// Number of values counted.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Smallest and largest value, exactly; `None` without data.
    pub fn range(&self) -> Option<(f32, f32)> {
        (self.count > 0).then_some((self.min, self.max))
    }

    /// Width of every bin.
    pub fn bin_width(&self) -> f64 {
        f64::from(self.exponent).exp2()
    }

    /// The bins in ascending order, empty ones between others included.
    pub fn bins(&self) -> impl ExactSizeIterator<Item = Bin> + '_ {
        let width = self.bin_width();
        self.counts.iter().enumerate().map(move |(i, &count)| {
            let k = (self.first + i as i64) as f64;
            Bin { lower: k * width, upper: (k + 1.0) * width, count }
        })
    }

    /// A value that the given share of the data does not exceed, to within a bin's width: linear
    /// inside the bin, never outside the data. 0 gives the minimum, 1 the maximum, exactly; `None`
    /// without data.
    ///
    /// # Errors
    /// A share outside `0..=1`.
    ///
    /// ```
    /// use ff_kernels::Histogram;
    /// let mut seen = Histogram::new(2048)?;
    /// seen.add(&(0..=1000).map(|i| i as f32).collect::<Vec<_>>())?;
    /// let p99 = seen.quantile(0.99)?.unwrap();
    /// assert!((p99 - 990.0).abs() <= seen.bin_width() as f32);
    /// # Ok::<(), ff_kernels::KernelError>(())
    /// ```
    pub fn quantile(&self, share: f64) -> Result<Option<f32>, KernelError> {
        if !(0.0..=1.0).contains(&share) {
            return Err(KernelErrorKind::Option {
                what: "share",
                must_be: "in 0..=1",
                found: share,
            }
            .into());
        }
        if self.count == 0 || share == 0.0 || share == 1.0 {
            return Ok(self.range().map(|(min, max)| if share == 0.0 { min } else { max }));
        }
        let target = share * self.count as f64;
        let mut below = 0u64;
        for bin in self.bins() {
            let upto = below + bin.count;
            if upto as f64 >= target && bin.count > 0 {
                let inside = (target - below as f64) / bin.count as f64;
                let value = bin.lower + inside * (bin.upper - bin.lower);
                return Ok(Some((value as f32).clamp(self.min, self.max)));
            }
            below = upto;
        }
        Ok(Some(self.max))
    }

    /// Widens the range to `min..=max`, making bins coarser where necessary.
    fn cover(&mut self, min: f32, max: f32) {
        if min > max {
            return; // no data
        }
        let had_data = !self.counts.is_empty();
        (self.min, self.max) = (self.min.min(min) + 0.0, self.max.max(max) + 0.0);
        let (lo, hi) = (f64::from(self.min), f64::from(self.max));
        let mut exponent = self.exponent.max(precision_exponent(self.min, self.max));
        let bin = |x: f64, exponent: i32| (x * f64::from(-exponent).exp2()).floor() as i64;
        while bin(hi, exponent) - bin(lo, exponent) >= self.max_bins as i64 {
            exponent += 1;
        }
        let (first, last) = (bin(lo, exponent), bin(hi, exponent));
        let mut counts = vec![0; (last - first + 1) as usize];
        if had_data {
            let shift = exponent - self.exponent;
            for (k, &count) in (self.first..).zip(&self.counts) {
                counts[(halve(k, shift) - first) as usize] += count;
            }
        }
        (self.exponent, self.first, self.counts) = (exponent, first, counts);
    }

    /// Bins per unit of value: a power of two, exact.
    fn per_unit(&self) -> f64 {
        f64::from(-self.exponent).exp2()
    }
}

/// Counts each tile of `x` into its own histogram, `[num_tiles]`.
///
/// # Errors
/// A slice of the wrong length, another number of histograms, data that is not finite (all tiles are
/// listed; nothing is counted then).
pub fn histograms(
    x: &[f32],
    tiling: &Tiling,
    histograms: &mut [Histogram],
) -> Result<(), KernelError> {
    check_len("list of histograms", tiling.num_tiles(), histograms.len())?;
    let range = min_max(x, tiling)?;
    if tiling.is_empty() {
        return Ok(());
    }
    range.check_finite()?;
    let (reader, tile_len) = (tiling.tile_reader(), tiling.tile_len());
    let count = |counts: &mut [u64], tile: usize, from: usize, to: usize, per_unit: f64, first| {
        let mut buffer = [0.0; BLOCK];
        for at in (from..to).step_by(BLOCK) {
            let x = reader.read(x, tile, at, BLOCK.min(to - at), &mut buffer);
            count_into(counts, x, per_unit, first);
        }
    };
    for (tile, histogram) in histograms.iter_mut().enumerate() {
        histogram.cover(range.min[tile], range.max[tile]);
        histogram.count += tile_len as u64;
    }
    if tile_len <= CHUNK {
        histograms.par_iter_mut().enumerate().for_each(|(tile, h)| {
            let (per_unit, first) = (h.per_unit(), h.first);
            count(&mut h.counts, tile, 0, tile_len, per_unit, first);
        });
        return Ok(());
    }
    for (tile, h) in histograms.iter_mut().enumerate() {
        let (per_unit, first, bins) = (h.per_unit(), h.first, h.counts.len());
        // Counts are whole numbers: the order in which parts are added does not matter.
        let new = (0..tile_len.div_ceil(CHUNK))
            .into_par_iter()
            .fold(
                || vec![0; bins],
                |mut counts, i| {
                    count(
                        &mut counts,
                        tile,
                        i * CHUNK,
                        ((i + 1) * CHUNK).min(tile_len),
                        per_unit,
                        first,
                    );
                    counts
                },
            )
            .reduce(
                || vec![0; bins],
                |mut a, b| {
                    a.iter_mut().zip(b).for_each(|(a, b)| *a += b);
                    a
                },
            );
        h.counts.iter_mut().zip(new).for_each(|(old, new)| *old += new);
    }
    Ok(())
}

/// Elements read at once.
const BLOCK: usize = 1024;
/// Elements per unit of parallel work inside a long tile.
const CHUNK: usize = 1 << 18;

/// Counts values known to lie within the bins.
fn count_into(counts: &mut [u64], x: &[f32], per_unit: f64, first: i64) {
    let mut bins = [0i32; BLOCK];
    for x in x.chunks(BLOCK) {
        let bins = &mut bins[..x.len()];
        dispatch(BinsOf { x, per_unit, first: first as f64, bins });
        for &bin in bins.iter() {
            counts[bin as usize] += 1;
        }
    }
}

/// Which bin, counted from the first, each value belongs to. Bins are at most 2^24 apart, so all
/// differences are exact.
struct BinsOf<'a> {
    x: &'a [f32],
    per_unit: f64,
    first: f64,
    bins: &'a mut [i32],
}

impl Vectorized for BinsOf<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        for (bin, &x) in self.bins.iter_mut().zip(self.x) {
            *bin = ((f64::from(x) * self.per_unit).floor() - self.first) as i32;
        }
    }
}

/// `floor(k / 2^shift)`.
fn halve(k: i64, shift: i32) -> i64 {
    k >> shift.min(63)
}

/// The exponent of the last bit of the larger of two values in magnitude.
fn precision_exponent(min: f32, max: f32) -> i32 {
    let biased = (min.abs().max(max.abs()).to_bits() >> 23) as i32;
    biased.max(1) - 127 - 23
}

fn not_finite(x: &[f32]) -> Option<KernelError> {
    let sites = x.iter().enumerate().filter(|(_, x)| !x.is_finite());
    let first: Vec<usize> = sites.clone().map(|(i, _)| i).take(SITES_SHOWN).collect();
    if first.is_empty() {
        return None;
    }
    Some(KernelErrorKind::NotFinite { count: sites.count(), first }.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn of(max_bins: usize, x: &[f32]) -> Histogram {
        let mut h = Histogram::new(max_bins).unwrap();
        h.add(x).unwrap();
        h
    }

    fn value() -> impl Strategy<Value = f32> {
        prop_oneof![
            8 => -10f32..10.0,
            2 => (-40i32..40).prop_map(|e| 2f32.powi(e)),
            2 => (-40i32..40).prop_map(|e| -(2f32.powi(e))),
            1 => prop_oneof![Just(0.0), Just(-0.0), Just(1e-45), Just(-1e-45), Just(f32::MAX), Just(f32::MIN)],
        ]
    }

    proptest! {
        #[test]
        fn order_batches_and_merging_do_not_matter(
            mut x in prop::collection::vec(value(), 1..80),
            cut in any::<prop::sample::Index>(),
            max_bins in 2usize..70,
        ) {
            let whole = of(max_bins, &x);
            let (a, b) = x.split_at(cut.index(x.len()));
            let mut streamed = of(max_bins, a);
            streamed.add(b).unwrap();
            prop_assert_eq!(&streamed, &whole);
            let mut merged = of(max_bins, b);
            merged.merge(&of(max_bins, a)).unwrap();
            prop_assert_eq!(&merged, &whole);
            x.reverse();
            prop_assert_eq!(&of(max_bins, &x), &whole);

            prop_assert!(whole.bins().len() <= max_bins);
            prop_assert_eq!(whole.bins().map(|b| b.count).sum::<u64>(), x.len() as u64);
            for bin in whole.bins() {
                let inside = |&&v: &&f32| bin.lower <= f64::from(v) && f64::from(v) < bin.upper;
                prop_assert_eq!(x.iter().filter(inside).count() as u64, bin.count);
            }
        }

        #[test]
        fn quantiles_are_a_bin_off_at_most(
            mut x in prop::collection::vec(value(), 1..80),
            share in 0f64..=1.0,
        ) {
            let h = of(64, &x);
            let got = f64::from(h.quantile(share).unwrap().unwrap());
            x.sort_by(f32::total_cmp);
            // Some value at least `share` of the data does not exceed, and the one before.
            let rank = (share * x.len() as f64).ceil() as usize;
            let exact = f64::from(x[rank.clamp(1, x.len()) - 1]);
            let width = h.bin_width();
            prop_assert!((got - exact).abs() <= width * (1.0 + 1e-6), "{} {} {}", got, exact, width);
        }
    }

    #[test]
    fn tiles_have_histograms_of_their_own() {
        let x: Vec<f32> = (0..6000).map(|i| ((i * 37) % 1009) as f32 / 250.0 - 2.0).collect();
        for tile in [[60, 100], [1, 100], [60, 1], [20, 50]] {
            for strides in [[100, 1], [1, 60]] {
                let tiling = Tiling::strided(&[60, 100], &strides, &tile).unwrap();
                let mut hs = vec![Histogram::new(100).unwrap(); tiling.num_tiles()];
                histograms(&x, &tiling, &mut hs).unwrap();
                histograms(&x, &tiling, &mut hs).unwrap();
                for (number, h) in hs.iter().enumerate() {
                    let of_tile: Vec<f32> =
                        tiling.tile_elements(number).map(|e| x[e.input]).collect();
                    let mut expected = of(100, &of_tile);
                    expected.add(&of_tile).unwrap();
                    assert_eq!(*h, expected);
                }
            }
        }
    }

    #[test]
    fn long_tiles_are_counted_in_parts() {
        let x: Vec<f32> = (0..700_000).map(|i| ((i * 37) % 1009) as f32 / 250.0).collect();
        let tiling = Tiling::whole(&[x.len()]).unwrap();
        let mut hs = [Histogram::new(500).unwrap()];
        histograms(&x, &tiling, &mut hs).unwrap();
        assert_eq!(hs[0], of(500, &x));
    }

    #[test]
    fn usual_suspects() {
        let empty = of(16, &[]);
        assert_eq!((empty.count(), empty.range(), empty.quantile(0.5).unwrap()), (0, None, None));
        let constant = of(16, &[0.3; 7]);
        assert_eq!(constant.bins().len(), 1);
        assert_eq!(constant.quantile(0.5).unwrap(), Some(0.3));
        let zero = of(16, &[0.0, -0.0]);
        assert_eq!((zero.bins().len(), zero.quantile(0.9).unwrap()), (1, Some(0.0)));
        let outlier = of(16, &[0.1, 0.2, 1e9]);
        assert_eq!(outlier.quantile(1.0).unwrap(), Some(1e9));
        assert_eq!(outlier.bins().next().unwrap().count, 2);
        let extremes = of(2, &[f32::MAX, f32::MIN]);
        assert_eq!(extremes.bins().map(|b| b.count).collect::<Vec<_>>(), [1, 1]);
        let err = Histogram::new(8).unwrap().add(&[1.0, f32::NAN, f32::INFINITY]).unwrap_err();
        assert_eq!(err.to_string(), "2 values are not finite, at element 1, element 2");
        assert!(Histogram::new(1).is_err());
        assert!(empty.quantile(1.5).is_err() && empty.quantile(f64::NAN).is_err());
        assert!(of(4, &[1.0]).merge(&of(5, &[1.0])).is_err());
    }
}
