//! Ranges that leave the outermost values out.

use ff_kernels::{Bin, Histogram};
use serde::Serialize;

use super::estimator::{RangeEstimator, TileRanges};
use super::histogram::{TileHistograms, check_bins};
use crate::quantization::affine::{Part, parts};
use crate::quantization::quantizer::RangeSettable;
use crate::{ArrayView, Error, ErrorKind};

/// The range of the central `percentile` percent of each tile's values: as many may be clipped below as above.
///
/// ```text
/// k = floor(count * (1 - percentile / 100) / 2)     values may lie outside at each end
/// min = the lower edge of the bin of the (k+1)-th smallest value, max = the upper edge of that of the (k+1)-th largest
/// ```
///
/// Values are counted in bins whose width, a power of two, is the smallest that covers the tile's data with `num_bins` bins;
/// it doubles as data demands. A bound is so at most one bin outside the exact percentile, never inside, and never beyond
/// the smallest or largest value seen. With `k = 0` it is exactly that value. Counts are exact: any order of the batches
/// and any way of merging gives the same range.
///
/// Memory is `num_bins * 8` bytes per tile; more than 2^28 bins in all are refused. Data that is there as a whole
/// ([`RangeEstimator::range_of_whole`]) takes the bins of some tiles at a time, where tiles are made of neighbours.
#[derive(Clone, Debug)]
pub struct Percentile {
    config: PercentileConfig,
    seen: TileHistograms,
}

/// The settings of a [`Percentile`].
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PercentileConfig {
    /// How many percent of the values the range contains at least, above 0 and at most 100.
    pub percentile: f64,
    /// How many bins there are at most, 16 to 65536.
    pub num_bins: usize,
}

impl Default for PercentileConfig {
    fn default() -> Self {
        Self { percentile: 99.99, num_bins: 2048 }
    }
}

impl Percentile {
    /// An estimator that has seen nothing.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidSettings`] when the percentile or the number of bins is out of bounds.
    pub fn new(config: PercentileConfig) -> Result<Self, Error> {
        let mut wrong = Vec::new();
        if !(config.percentile > 0.0 && config.percentile <= 100.0) {
            wrong.push(format!(
                "percentile must be above 0 and at most 100, found {}",
                config.percentile
            ));
        }
        check_bins(config.num_bins, &mut wrong);
        if wrong.is_empty() {
            Ok(Self { seen: TileHistograms::new(config.num_bins), config })
        } else {
            Err(Error::of_problems(ErrorKind::InvalidSettings, "options are out of bounds", &wrong))
        }
    }

    /// The settings.
    pub fn config(&self) -> &PercentileConfig {
        &self.config
    }
}

/// The bins that are filled at once where data is there as a whole: 4 MiB of them.
const BINS_AT_ONCE: usize = 1 << 19;

impl RangeEstimator for Percentile {
    fn name(&self) -> &str {
        "percentile"
    }

    fn observe(&mut self, x: ArrayView<'_>, quantizer: &dyn RangeSettable) -> Result<(), Error> {
        self.seen.observe(x, quantizer)
    }

    fn range(&self) -> Option<TileRanges> {
        if self.seen.tiles().is_empty() {
            return None;
        }
        let outside = (1.0 - self.config.percentile / 100.0) / 2.0;
        let (min, max) = self.seen.tiles().iter().map(|tile| central_range(tile, outside)).unzip();
        Some(TileRanges { min, max })
    }

    fn range_of_whole(
        &self,
        x: ArrayView<'_>,
        quantizer: &dyn RangeSettable,
    ) -> Result<Option<TileRanges>, Error> {
        let tile = quantizer.granularity().tile_shape(x.shape())?;
        let tile_len = tile.iter().product::<usize>();
        let tiles_at_once = (BINS_AT_ONCE / self.config.num_bins).max(1);
        let parts = parts(x.shape(), &tile, tile_len.saturating_mul(tiles_at_once));
        // Of the same rank, so that the granularity means the same, and whole tiles each.
        let is_plain = |part: &Part| {
            part.index.is_empty() && part.elements.len() == part.tiles.len() * tile_len
        };
        let whole = |x| {
            let mut estimator = self.fork();
            estimator.observe(x, quantizer)?;
            Ok(estimator.range())
        };
        if x.strides().is_some() || parts.len() < 2 || !parts.iter().all(is_plain) {
            return whole(x);
        }
        let mut all = TileRanges { min: Vec::new(), max: Vec::new() };
        for part in &parts {
            let some = ArrayView::new(&x.data()[part.elements.clone()], &part.shape)?;
            match whole(some) {
                Ok(Some(TileRanges { min, max })) => {
                    all.min.extend(min);
                    all.max.extend(max);
                }
                Ok(None) => return Ok(None),
                // Said anew with the positions in all of the data.
                Err(error) => return whole(x).and(Err(error)),
            }
        }
        Ok(Some(all))
    }

    fn merge(&mut self, later: &dyn RangeEstimator) -> Result<(), Error> {
        let later = self.same_kind(later)?;
        if self.config != later.config {
            return Err(Error::new(
                ErrorKind::Estimator,
                format!(
                    "percentile estimators with different settings cannot merge: {:?} and {:?}",
                    self.config, later.config
                ),
            ));
        }
        self.seen.merge(&later.seen)
    }

    fn fork(&self) -> Box<dyn RangeEstimator> {
        Box::new(Self {
            seen: TileHistograms::new(self.config.num_bins),
            config: self.config.clone(),
        })
    }
}

/// The range that leaves out at most this share of the values at each end.
fn central_range(histogram: &Histogram, outside: f64) -> (f32, f32) {
    let Some((min, max)) = histogram.range() else { return (0.0, 0.0) };
    let count = histogram.count();
    // The product of a share and a count may lie a hair below a whole number: 1e-9 of a value is none.
    let outside = (count as f64 * outside + 1e-9).floor() as u64;
    // One value at least is left between the ends.
    let outside = outside.min(count.saturating_sub(1) / 2);
    if outside == 0 {
        return (min, max);
    }
    // The first bin with which more than `outside` values are counted.
    let beyond = |seen: &mut u64, bin: &Bin| {
        *seen += bin.count;
        *seen > outside
    };
    let (mut below, mut above) = (0, 0);
    let bins: Vec<Bin> = histogram.bins().collect();
    let lowest = bins.iter().find(|bin| beyond(&mut below, bin));
    let highest = bins.iter().rev().find(|bin| beyond(&mut above, bin));
    let lowest = lowest.map_or(min, |bin| bin.lower as f32);
    let highest = highest.map_or(max, |bin| bin.upper as f32);
    (lowest.max(min), highest.min(max))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quantization::{Granularity, LinearQuantizer, LinearQuantizerConfig};

    #[track_caller]
    fn range(percentile: f64, data: &[f32]) -> (f32, f32) {
        let quantizer = LinearQuantizer::new(LinearQuantizerConfig::new(8)).unwrap();
        let config = PercentileConfig { percentile, ..PercentileConfig::default() };
        let mut estimator = Percentile::new(config).unwrap();
        for batch in data.chunks(100) {
            estimator.observe(ArrayView::new(batch, &[batch.len()]).unwrap(), &quantizer).unwrap();
        }
        let range = estimator.range().unwrap();
        (range.min[0], range.max[0])
    }

    #[test]
    fn one_outlier_among_a_thousand_is_left_out() {
        let mut data: Vec<f32> = (0..1000).map(|i| i as f32 / 1000.0).collect();
        data[500] = 1000.0;
        assert_eq!(range(100.0, &data), (0.0, 1000.0));
        // Half a value may lie outside at each end: none.
        assert_eq!(range(99.9, &data), (0.0, 1000.0));
        // One value at each end. A bin is 0.5 wide, since 2048 of them reach the outlier.
        assert_eq!(range(99.8, &data), (0.0, 1.0));
    }

    #[test]
    fn at_least_the_percentile_lies_within_and_bounds_are_one_bin_off_at_most() {
        // Bins are 1/2048 wide for these values, each of which is the lower edge of one.
        let data: Vec<f32> = (0..1000).map(|i| ((i * 37) % 1000) as f32 / 1024.0).collect();
        for (percentile, outside) in [(98.0, 10.0), (90.0, 50.0), (50.0, 250.0)] {
            let (min, max) = range(percentile, &data);
            assert_eq!(min, outside / 1024.0);
            assert_eq!(max, (999.0 - outside) / 1024.0 + 1.0 / 2048.0);
            let within = data.iter().filter(|&&x| (min..=max).contains(&x)).count();
            assert!(within as f64 >= 10.0 * percentile);
        }
    }

    #[test]
    fn usual_suspects() {
        assert_eq!(range(99.0, &[3.0]), (3.0, 3.0));
        assert_eq!(range(50.0, &[0.0; 10]), (0.0, 0.0));
        assert_eq!(range(50.0, &[-2.5; 1000]), (-2.5, -2.5));
        let (min, max) = range(1e-9, &[1.0, 2.0, 3.0, 4.0]);
        assert!(min <= max, "{min} {max}");
    }

    #[test]
    fn tiles_count_apart_and_merging_is_exact() {
        let config = LinearQuantizerConfig::new(8).with_granularity(Granularity::per_channel(1));
        let quantizer = LinearQuantizer::new(config).unwrap();
        let data: Vec<f32> = (0..4000).map(|i| ((i * 53) % 997) as f32 - 300.0).collect();
        let new = || {
            let config = PercentileConfig { percentile: 97.0, num_bins: 50 };
            Percentile::new(config).unwrap()
        };
        let observe = |estimator: &mut Percentile, data: &[f32]| {
            let shape = [data.len() / 4, 4];
            estimator.observe(ArrayView::new(data, &shape).unwrap(), &quantizer).unwrap();
        };
        let mut whole = new();
        observe(&mut whole, &data);
        let (mut first, mut second) = (new(), new());
        observe(&mut first, &data[2000..]);
        observe(&mut second, &data[..1200]);
        observe(&mut second, &data[1200..2000]);
        first.merge(&second).unwrap();
        assert_eq!(whole.seen, first.seen);
        assert_eq!(whole.range(), first.range());
        assert_eq!(whole.range().unwrap().len(), 4);
        assert_eq!(whole.range().unwrap().min[0], {
            let column: Vec<f32> = data.iter().copied().step_by(4).collect();
            let quantizer = LinearQuantizer::new(LinearQuantizerConfig::new(8)).unwrap();
            let mut alone = new();
            alone.observe(ArrayView::new(&column, &[1000]).unwrap(), &quantizer).unwrap();
            alone.range().unwrap().min[0]
        });
    }

    #[test]
    fn data_that_is_there_as_a_whole_has_the_range_of_one_batch() {
        let data: Vec<f32> = (0..600 * 32).map(|i| ((i * 7919) % 10007) as f32 - 5000.0).collect();
        for granularity in [
            Granularity::PerTensor,
            Granularity::per_channel(0),
            Granularity::per_channel(1),
            Granularity::per_block(&[1], &[8], &[0]),
            Granularity::per_block(&[0], &[6], &[]),
        ] {
            let config = LinearQuantizerConfig::new(8).with_granularity(granularity);
            let quantizer = LinearQuantizer::new(config).unwrap();
            let config = PercentileConfig { percentile: 80.0, ..PercentileConfig::default() };
            let mut estimator = Percentile::new(config).unwrap();
            let view = ArrayView::new(&data, &[600, 32]).unwrap();
            let whole = estimator.range_of_whole(view, &quantizer).unwrap();
            assert!(estimator.range().is_none());
            estimator.observe(view, &quantizer).unwrap();
            assert_eq!(estimator.range(), whole);
        }
    }

    #[test]
    fn statistics_that_memory_cannot_hold_are_refused() {
        let config = LinearQuantizerConfig::new(8).with_granularity(Granularity::per_tile(&[1]));
        let quantizer = LinearQuantizer::new(config).unwrap();
        let data = vec![1.0; 1 << 13];
        let config = PercentileConfig { num_bins: 1 << 16, ..PercentileConfig::default() };
        let mut estimator = Percentile::new(config).unwrap();
        let view = ArrayView::new(&data, &[1 << 13]).unwrap();
        let error = estimator.observe(view, &quantizer).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidSettings);
        assert!(error.to_string().starts_with("65536 bins for each of 8192 tiles"), "{error}");
    }

    #[test]
    fn wrong_settings_are_all_named() {
        let config = PercentileConfig { percentile: 0.0, num_bins: 1 };
        let message = Percentile::new(config).unwrap_err().to_string();
        assert!(message.contains("percentile") && message.contains("num_bins"), "{message}");
        for percentile in [-1.0, 100.1, f64::NAN] {
            let config = PercentileConfig { percentile, ..PercentileConfig::default() };
            assert_eq!(Percentile::new(config).unwrap_err().kind(), ErrorKind::InvalidSettings);
        }
        let mut one = Percentile::new(PercentileConfig::default()).unwrap();
        let other =
            Percentile::new(PercentileConfig { num_bins: 32, ..one.config.clone() }).unwrap();
        assert_eq!(one.merge(&other).unwrap_err().kind(), ErrorKind::Estimator);
    }
}
