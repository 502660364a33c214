//! The best of many ranges, by the error that quantizing with them makes.

use std::sync::Arc;

use ff_kernels::{
    CandidateLayout, Candidates, IntegerGrid, KernelError, best_candidates, candidate_errors,
    search_min_error,
};
use serde::{Deserialize, Serialize};

use super::estimator::{
    RangeEstimator, TileRanges, bad_values, check_memory, check_tiles, tile_ranges, tiling_of,
};
use crate::quantization::affine::integer_grid;
use crate::quantization::quantizer::RangeSettable;
use crate::{ArrayView, Error, ErrorKind};

/// Grid search for the range with the smallest error (spec §6.6).
///
/// The first batch fixes a grid of candidate ranges. Each batch is quantized with every one of them and the error of each
/// tile,
///
/// ```text
/// error[tile][candidate] += mean over the tile of (x - fake_quantize(x))^2
/// ```
///
/// is summed over the batches in `f64`. Every tile takes the candidate with its smallest sum, the lowest index among equal
/// ones. Every candidate is evaluated, also where the grid has more of them than were asked for (the reference takes one of
/// those unseen).
///
/// Estimators merge when they share a grid: observe one batch, [`fork`](RangeEstimator::fork) for the other workers, merge
/// what they saw. It cannot continue from an existing range, which is no candidate.
///
/// Memory is about 16 bytes per tile and candidate; more than 2^28 of these are refused. Data that is there as a whole
/// ([`RangeEstimator::range_of_whole`]) takes some bytes per tile, for any number of candidates.
#[derive(Clone, Debug)]
pub struct MinErrorGrid {
    config: MinErrorGridConfig,
    search: Option<Search>,
}

#[derive(Clone, Debug)]
struct Search {
    /// Shared by all forks.
    candidates: Arc<Candidates>,
    /// `[tile][candidate]`, flat.
    errors: Vec<f64>,
    batches: u64,
}

/// The settings of a [`MinErrorGrid`].
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct MinErrorGridConfig {
    /// How many ranges are tried, 1 to 65536. An asymmetric quantizer searches both ends: squares use all of them.
    pub num_candidates: usize,
    /// How the candidates are placed.
    pub grid: CandidateGrid,
    /// Moves both ends of the first batch's range outwards; `None` is the grid's own default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub absolute_margin: Option<f64>,
    /// Multiplies both ends of the first batch's range; `None` is 1. More than 1 leaves room for later batches.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub relative_margin: Option<f64>,
    /// What is made small.
    pub error: ErrorFunction,
}

impl Default for MinErrorGridConfig {
    fn default() -> Self {
        Self {
            num_candidates: 100,
            grid: CandidateGrid::default(),
            absolute_margin: None,
            relative_margin: None,
            error: ErrorFunction::default(),
        }
    }
}

/// How candidate ranges are placed around the minimum and maximum that each tile has in the first batch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CandidateGrid {
    /// The range of the data and smaller ones: see [`CandidateLayout::Fitted`]. Data without negative values keeps a
    /// one-sided grid. Margins move ends away from zero; the absolute one is 0 unless said otherwise.
    #[default]
    Standard,
    /// The reference's grid: see [`CandidateLayout::Reference`]. The absolute margin is 0.5 unless said otherwise. It makes
    /// small non-negative data look negative, so that a symmetric quantizer misses its one-sided grid.
    Reference,
}

/// What a [`MinErrorGrid`] makes small.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum ErrorFunction {
    /// The mean of the squared differences.
    #[default]
    Mse,
}

impl MinErrorGridConfig {
    /// The candidates for tiles with these ranges in the first batch.
    fn candidates(
        &self,
        first: &TileRanges,
        quantizer: &dyn RangeSettable,
    ) -> Result<Candidates, KernelError> {
        let options = quantizer.range_settings().options();
        let relative = self.relative_margin.unwrap_or(1.0) as f32;
        let (mut first, layout) = (
            first.clone(),
            match self.grid {
                CandidateGrid::Reference => CandidateLayout::Reference {
                    absolute_margin: self.absolute_margin.unwrap_or(0.5) as f32,
                    relative_margin: relative,
                },
                CandidateGrid::Standard => match CandidateLayout::default() {
                    CandidateLayout::Fitted { smallest, .. } => {
                        CandidateLayout::Fitted { smallest, one_sided: options.one_sided }
                    }
                    other => other,
                },
            },
        );
        if self.grid == CandidateGrid::Standard {
            let absolute = self.absolute_margin.unwrap_or(0.0) as f32;
            let below = |&&mut min: &&mut f32| min < 0.0;
            first.min.iter_mut().filter(below).for_each(|min| *min = relative * *min - absolute);
            let above = |&&mut max: &&mut f32| max > 0.0;
            first.max.iter_mut().filter(above).for_each(|max| *max = relative * *max + absolute);
        }
        let (min, max) = (&first.min, &first.max);
        Candidates::new(min, max, options.symmetric, self.num_candidates, layout)
    }
}

impl MinErrorGrid {
    /// An estimator that has seen nothing.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidSettings`] for no candidates, or more than 65536; for a margin that is negative or not finite,
    /// and for a relative margin of 0.
    pub fn new(config: MinErrorGridConfig) -> Result<Self, Error> {
        let mut wrong = Vec::new();
        if !(1..=1 << 16).contains(&config.num_candidates) {
            wrong.push(format!(
                "num_candidates must be 1 to 65536, found {}",
                config.num_candidates
            ));
        }
        if let Some(margin) = config.absolute_margin
            && !(margin >= 0.0 && margin.is_finite())
        {
            wrong.push(format!("absolute_margin must be finite and at least 0, found {margin}"));
        }
        if let Some(margin) = config.relative_margin
            && !(margin > 0.0 && margin.is_finite())
        {
            wrong.push(format!("relative_margin must be finite and above 0, found {margin}"));
        }
        if wrong.is_empty() {
            Ok(Self { config, search: None })
        } else {
            Err(Error::of_problems(ErrorKind::InvalidSettings, "options are out of bounds", &wrong))
        }
    }

    /// The settings.
    pub fn config(&self) -> &MinErrorGridConfig {
        &self.config
    }

    /// The grid; `None` before the first batch.
    pub fn candidates(&self) -> Option<&Candidates> {
        self.search.as_ref().map(|search| &*search.candidates)
    }

    /// The summed error of every candidate, `[num_tiles, num_candidates]`; `None` before the first batch.
    pub fn errors(&self) -> Option<&[f64]> {
        self.search.as_ref().map(|search| search.errors.as_slice())
    }

    /// The number of the best candidate of each tile; `None` before the first batch.
    pub fn best(&self) -> Option<Vec<usize>> {
        let search = self.search.as_ref().filter(|search| search.batches > 0)?;
        best_candidates(&search.errors, search.candidates.num_candidates()).ok()
    }
}

impl RangeEstimator for MinErrorGrid {
    fn name(&self) -> &str {
        "min_error_grid"
    }

    fn observe(&mut self, x: ArrayView<'_>, quantizer: &dyn RangeSettable) -> Result<(), Error> {
        let found = tile_ranges(x, quantizer.granularity())?;
        if !found.is_finite() {
            return Err(bad_values(x, "infinite", f32::is_infinite));
        }
        if let Some(search) = &mut self.search {
            return search.add(x, quantizer);
        }
        check_memory(found.len(), self.config.num_candidates, "candidates")?;
        let candidates = self.config.candidates(&found, quantizer).map_err(kernel_error)?;
        let mut search = Search::new(Arc::new(candidates));
        search.add(x, quantizer)?;
        self.search = Some(search);
        Ok(())
    }

    fn range(&self) -> Option<TileRanges> {
        let (min, max) = self.candidates()?.ranges(&self.best()?).ok()?;
        Some(TileRanges { min, max })
    }

    fn range_of_whole(
        &self,
        x: ArrayView<'_>,
        quantizer: &dyn RangeSettable,
    ) -> Result<Option<TileRanges>, Error> {
        let found = tile_ranges(x, quantizer.granularity())?;
        if !found.is_finite() {
            return Err(bad_values(x, "infinite", f32::is_infinite));
        }
        let candidates = match &self.search {
            // A fork keeps the candidates that the first batch fixed, and so does this.
            Some(search) => Arc::clone(&search.candidates),
            None => Arc::new(self.config.candidates(&found, quantizer).map_err(kernel_error)?),
        };
        drop(found);
        let tiling = tiling_of(x, quantizer.granularity())?;
        check_tiles(candidates.num_tiles(), tiling.num_tiles())?;
        let options = quantizer.range_settings().options();
        let best = search_min_error(x.data(), &tiling, &candidates, grid_of(quantizer)?, &options)
            .map_err(kernel_error)?;
        let (min, max) = candidates.ranges(&best).map_err(kernel_error)?;
        Ok(Some(TileRanges { min, max }))
    }

    fn merge(&mut self, later: &dyn RangeEstimator) -> Result<(), Error> {
        let later = self.same_kind(later)?;
        let Some(second) = &later.search else { return Ok(()) };
        let Some(first) = &mut self.search else {
            self.search = Some(second.clone());
            return Ok(());
        };
        if !Arc::ptr_eq(&first.candidates, &second.candidates)
            && first.candidates != second.candidates
        {
            return Err(Error::new(
                ErrorKind::Estimator,
                "min_error_grid estimators with different candidates cannot merge; fork the others from the one that \
                 observed the first batch",
            ));
        }
        first.errors.iter_mut().zip(&second.errors).for_each(|(sum, later)| *sum += later);
        first.batches += second.batches;
        Ok(())
    }

    fn fork(&self) -> Box<dyn RangeEstimator> {
        let search = self.search.as_ref().map(|search| Search::new(Arc::clone(&search.candidates)));
        Box::new(Self { config: self.config.clone(), search })
    }
}

impl Search {
    fn new(candidates: Arc<Candidates>) -> Self {
        let errors = vec![0.0; candidates.num_tiles() * candidates.num_candidates()];
        Self { candidates, errors, batches: 0 }
    }

    /// Adds the errors of one batch. The kernel checks everything before it adds anything.
    fn add(&mut self, x: ArrayView<'_>, quantizer: &dyn RangeSettable) -> Result<(), Error> {
        let tiling = tiling_of(x, quantizer.granularity())?;
        check_tiles(self.candidates.num_tiles(), tiling.num_tiles())?;
        let grid = grid_of(quantizer)?;
        let (candidates, options) = (&self.candidates, quantizer.range_settings().options());
        candidate_errors(x.data(), &tiling, candidates, grid, &options, &mut self.errors)
            .map_err(kernel_error)?;
        self.batches += 1;
        Ok(())
    }
}

/// The codes that the quantizer has.
fn grid_of(quantizer: &dyn RangeSettable) -> Result<IntegerGrid, Error> {
    let num_bits = quantizer.num_bits().ok_or_else(|| {
        Error::new(
            ErrorKind::Unsupported,
            "min_error_grid needs to know how many bits the quantizer has",
        )
    })?;
    integer_grid(num_bits, quantizer.range_settings().narrow_range)
}

fn kernel_error(error: KernelError) -> Error {
    Error::new(ErrorKind::InvalidRange, error.to_string()).with_source(error)
}

#[cfg(test)]
mod tests;
