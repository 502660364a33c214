//! The best of many ranges for data that streams, judged by what was counted.

use ff_kernels::{
    CandidateLayout, Candidates, IntegerGrid, RangeOptions, best_candidates, histogram_divergences,
    histogram_errors,
};
use serde::Serialize;

use super::estimator::{RangeEstimator, TileRanges};
use super::histogram::{TileHistograms, check_bins, kernel_error};
use crate::quantization::affine::integer_grid;
use crate::quantization::quantizer::RangeSettable;
use crate::{ArrayView, Error, ErrorKind};

/// Counts all data, then takes for each tile the candidate range that is best by a [criterion](HistogramCriterion).
///
/// Candidates are those of [`MinErrorGrid`](super::MinErrorGrid) with its standard grid, but between the minimum and maximum
/// of *all* data, where that one fixes them with the first batch, and the data is looked at once, where that one quantizes
/// it once per candidate. Judged are the counts:
///
/// - by squared error, values are taken as spread evenly over their bin ([`ff_kernels::histogram_errors`]);
/// - by entropy, the range is taken whose quantized values are distributed most like the values themselves
///   ([`ff_kernels::histogram_divergences`]). It clips far more than squared error does: good for 8-bit activations with
///   rare outliers, too much for 4 bits.
///
/// The first of equal candidates wins. Counts are exact: any order of the batches and any way of merging gives the same
/// range. Memory is `num_bins * 8` bytes per tile; more than 2^28 bins in all are refused.
#[derive(Clone, Debug)]
pub struct HistogramGrid {
    criterion: HistogramCriterion,
    config: HistogramGridConfig,
    seen: TileHistograms,
    /// The grid and the options of the quantizer whose data was seen.
    target: Option<(IntegerGrid, RangeOptions)>,
}

/// By what a [`HistogramGrid`] chooses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HistogramCriterion {
    /// The least mean squared error: estimator `histogram_mse`.
    Mse,
    /// The least divergence of the distributions: estimator `entropy`.
    Entropy,
}

/// The settings of a [`HistogramGrid`].
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct HistogramGridConfig {
    /// How many ranges are tried, 1 to 65536. An asymmetric quantizer searches both ends: squares use all of them.
    pub num_candidates: usize,
    /// How many bins there are at most, 16 to 65536. For entropy, 8 per code or more: with few bins per code little
    /// information seems lost.
    pub num_bins: usize,
}

impl HistogramCriterion {
    /// The name of the estimator in configurations.
    pub fn name(self) -> &'static str {
        match self {
            Self::Mse => "histogram_mse",
            Self::Entropy => "entropy",
        }
    }
}

impl Default for HistogramGridConfig {
    fn default() -> Self {
        Self { num_candidates: 100, num_bins: 4096 }
    }
}

impl HistogramGrid {
    /// An estimator that has seen nothing.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidSettings`] when the number of candidates or bins is out of bounds.
    pub fn new(criterion: HistogramCriterion, config: HistogramGridConfig) -> Result<Self, Error> {
        let mut wrong = Vec::new();
        if !(1..=1 << 16).contains(&config.num_candidates) {
            wrong.push(format!(
                "num_candidates must be 1 to 65536, found {}",
                config.num_candidates
            ));
        }
        check_bins(config.num_bins, &mut wrong);
        if wrong.is_empty() {
            let seen = TileHistograms::new(config.num_bins);
            Ok(Self { criterion, config, seen, target: None })
        } else {
            Err(Error::of_problems(ErrorKind::InvalidSettings, "options are out of bounds", &wrong))
        }
    }

    /// What decides.
    pub fn criterion(&self) -> HistogramCriterion {
        self.criterion
    }

    /// The settings.
    pub fn config(&self) -> &HistogramGridConfig {
        &self.config
    }

    fn search(&self) -> Result<Option<TileRanges>, Error> {
        let Some((grid, options)) = self.target else { return Ok(None) };
        let tiles = self.seen.tiles();
        let (min, max): (Vec<f32>, Vec<f32>) =
            tiles.iter().map(|tile| tile.range().unwrap_or((0.0, 0.0))).unzip();
        let layout = match CandidateLayout::default() {
            CandidateLayout::Fitted { smallest, .. } => {
                CandidateLayout::Fitted { smallest, one_sided: options.one_sided }
            }
            other => other,
        };
        let candidates =
            Candidates::new(&min, &max, options.symmetric, self.config.num_candidates, layout)
                .map_err(kernel_error)?;
        let judged = match self.criterion {
            HistogramCriterion::Mse => histogram_errors(tiles, &candidates, grid, &options),
            HistogramCriterion::Entropy => {
                histogram_divergences(tiles, &candidates, grid, &options)
            }
        };
        let best = judged
            .and_then(|judged| best_candidates(&judged, candidates.num_candidates()))
            .and_then(|best| candidates.ranges(&best));
        let (min, max) = best.map_err(kernel_error)?;
        Ok(Some(TileRanges { min, max }))
    }
}

impl RangeEstimator for HistogramGrid {
    fn name(&self) -> &str {
        self.criterion.name()
    }

    fn observe(&mut self, x: ArrayView<'_>, quantizer: &dyn RangeSettable) -> Result<(), Error> {
        let settings = quantizer.range_settings();
        let num_bits = quantizer.num_bits().ok_or_else(|| {
            let name = self.name();
            Error::new(
                ErrorKind::Unsupported,
                format!("{name} needs to know how many bits the quantizer has"),
            )
        })?;
        let target = (integer_grid(num_bits, settings.narrow_range)?, settings.options());
        if self.target.is_some_and(|before| before != target) {
            return Err(Error::new(
                ErrorKind::Estimator,
                format!("{}: the quantizer's settings changed between batches", self.name()),
            ));
        }
        self.seen.observe(x, quantizer)?;
        if self.target.replace(target).is_none() {
            // A search can fail for what the quantizer is, not for what the data is: the first batch shows it.
            let what =
                |error: Error| error.at(format_args!("{} for {quantizer}", self.criterion.name()));
            self.search().map_err(what)?;
        }
        Ok(())
    }

    fn range(&self) -> Option<TileRanges> {
        // What the search can refuse, `observe` has refused.
        self.search().ok().flatten()
    }

    fn merge(&mut self, later: &dyn RangeEstimator) -> Result<(), Error> {
        let later = self.same_kind(later)?;
        let same_target =
            self.target.is_none() || later.target.is_none() || self.target == later.target;
        if self.criterion != later.criterion || self.config != later.config || !same_target {
            return Err(Error::new(
                ErrorKind::Estimator,
                format!(
                    "estimators with different settings cannot merge: {} {:?} and {} {:?}",
                    self.name(),
                    self.config,
                    later.name(),
                    later.config
                ),
            ));
        }
        self.seen.merge(&later.seen)?;
        self.target = self.target.or(later.target);
        Ok(())
    }

    fn fork(&self) -> Box<dyn RangeEstimator> {
        Box::new(Self {
            criterion: self.criterion,
            config: self.config.clone(),
            seen: TileHistograms::new(self.config.num_bins),
            target: None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Array;
    use crate::quantization::quantizer::Quantizer;
    use crate::quantization::{Granularity, LinearQuantizer, LinearQuantizerConfig};
    use crate::range_setting::EstimatorConfig;

    /// Bell-shaped values in two columns, the second ten times the first, a few far out.
    fn data(rows: usize) -> Array {
        let mut state = 1u64;
        let mut next = || {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 40) as f32 / (1 << 24) as f32 - 0.5
        };
        let mut values = Vec::new();
        for row in 0..rows {
            let far = if row % 400 == 3 { 6.0 } else { 1.0 };
            for column in [1.0, 10.0] {
                values.push((next() + next() + next() + next()) * far * column);
            }
        }
        Array::new(values, vec![rows, 2]).unwrap()
    }

    fn quantizer(num_bits: u32, symmetric: bool) -> LinearQuantizer {
        let config =
            LinearQuantizerConfig::new(num_bits).with_granularity(Granularity::per_channel(1));
        LinearQuantizer::new(if symmetric { config } else { config.asymmetric() }).unwrap()
    }

    fn estimate(config: &EstimatorConfig, x: &Array, quantizer: &LinearQuantizer) -> TileRanges {
        let mut estimator = config.build().unwrap();
        for rows in x.data.chunks(600) {
            let shape = [rows.len() / 2, 2];
            estimator.observe(ArrayView::new(rows, &shape).unwrap(), quantizer).unwrap();
        }
        estimator.range().unwrap()
    }

    /// The squared error of quantizing all of `x` within a range.
    fn error(x: &Array, quantizer: &LinearQuantizer, range: &TileRanges) -> f64 {
        quantizer.set_quantization_range(&range.min, &range.max).unwrap();
        let y = quantizer.forward(x.view()).unwrap().into_array(x.view());
        x.data.iter().zip(&y.data).map(|(x, y)| f64::from(x - y).powi(2)).sum()
    }

    #[test]
    fn squared_error_is_nearly_the_least_that_the_grid_search_over_all_data_finds() {
        let x = data(6000);
        for (num_bits, symmetric) in [(3, true), (3, false), (8, true), (8, false)] {
            let quantizer = quantizer(num_bits, symmetric);
            let counted = EstimatorConfig::HistogramMse(HistogramGridConfig::default());
            let counted = error(&x, &quantizer, &estimate(&counted, &x, &quantizer));
            let mut grid = EstimatorConfig::min_error_grid(100).build().unwrap();
            grid.observe(x.view(), &quantizer).unwrap();
            let searched = error(&x, &quantizer, &grid.range().unwrap());
            assert!(counted <= 1.01 * searched, "{num_bits} {symmetric}: {counted} {searched}");
            let all = estimate(&EstimatorConfig::running_minmax(), &x, &quantizer);
            let all = error(&x, &quantizer, &all);
            assert!(counted <= 1.0001 * all, "{num_bits} {symmetric}: {counted} {all}");
        }
    }

    #[test]
    fn entropy_clips_outliers_of_each_column() {
        let x = data(6000);
        for symmetric in [true, false] {
            let quantizer = quantizer(4, symmetric);
            let entropy = EstimatorConfig::Entropy(HistogramGridConfig::default());
            let range = estimate(&entropy, &x, &quantizer);
            let all = estimate(&EstimatorConfig::running_minmax(), &x, &quantizer);
            for column in 0..2 {
                assert!(range.max[column] < 0.7 * all.max[column], "{range:?} {all:?}");
                assert!(range.max[column] > 0.1 * all.max[column], "{range:?} {all:?}");
            }
        }
    }

    #[test]
    fn order_and_merging_do_not_matter() {
        let x = data(3000);
        let quantizer = quantizer(4, false);
        for criterion in [HistogramCriterion::Mse, HistogramCriterion::Entropy] {
            let new = || HistogramGrid::new(criterion, HistogramGridConfig::default()).unwrap();
            let observe = |estimator: &mut dyn RangeEstimator, from: usize, to: usize| {
                let rows = &x.data[2 * from..2 * to];
                estimator.observe(ArrayView::new(rows, &[to - from, 2]).unwrap(), &quantizer)
            };
            let mut whole = new();
            whole.observe(x.view(), &quantizer).unwrap();
            let (mut first, mut second) = (new(), new().fork());
            observe(&mut first, 2000, 3000).unwrap();
            observe(&mut *second, 500, 2000).unwrap();
            observe(&mut *second, 0, 500).unwrap();
            first.merge(&*second).unwrap();
            assert_eq!(first.range(), whole.range());
            assert!(new().range().is_none());
        }
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let wrong = HistogramGridConfig { num_candidates: 0, num_bins: 1 };
        let message = HistogramGrid::new(HistogramCriterion::Mse, wrong).unwrap_err().to_string();
        assert!(message.contains("num_candidates") && message.contains("num_bins"), "{message}");
        let new =
            |criterion| HistogramGrid::new(criterion, HistogramGridConfig::default()).unwrap();
        let (mut mse, entropy) = (new(HistogramCriterion::Mse), new(HistogramCriterion::Entropy));
        assert_eq!(mse.merge(&entropy).unwrap_err().kind(), ErrorKind::Estimator);
        let x = data(10);
        mse.observe(x.view(), &quantizer(4, true)).unwrap();
        let error = mse.observe(x.view(), &quantizer(5, true)).unwrap_err();
        assert!(error.to_string().contains("settings changed"), "{error}");
        let infinite = Array::new(vec![f32::INFINITY; 2], vec![1, 2]).unwrap();
        assert_eq!(
            mse.observe(infinite.view(), &quantizer(4, true)).unwrap_err().kind(),
            ErrorKind::InvalidData
        );
    }

    #[test]
    fn a_quantizer_that_has_no_range_to_search_is_refused_with_the_first_batch() {
        let one_bit = quantizer(1, true);
        for criterion in [HistogramCriterion::Mse, HistogramCriterion::Entropy] {
            let mut estimator =
                HistogramGrid::new(criterion, HistogramGridConfig::default()).unwrap();
            let found = estimator.observe(data(10).view(), &one_bit);
            assert_eq!(found.is_ok(), estimator.range().is_some(), "{found:?}");
        }
    }
}
