//! The best of many ranges, by the error that quantizing with them makes.

mod candidates;

use std::sync::Arc;

use serde::{Deserialize, Serialize};

pub use candidates::{CandidateGrid, Candidates};

use super::estimator::{
    RangeEstimator, TileRanges, bad_values, check_tiles, tile_ranges, tiling_of,
};
use crate::quantization::affine::{AffineParameters, fake_quantize_into};
use crate::quantization::quantizer::RangeSettable;
use crate::{ArrayView, Error, ErrorKind};

/// Grid search for the range with the smallest error (spec §6.6).
///
/// The first batch fixes a grid of candidate ranges. Each batch is quantized with every one of them and the error of each
/// tile,
///
/// ```text
/// error[candidate][tile] += mean over the tile of (x - fake_quantize(x))^2
/// ```
///
/// is summed over the batches in `f64`. Every tile takes the candidate with its smallest sum, the lowest index among equal
/// ones.
///
/// Estimators merge when they share a grid: observe one batch, [`fork`](RangeEstimator::fork) for the other workers, merge
/// what they saw. It cannot continue from an existing range, which is no candidate.
#[derive(Clone, Debug)]
pub struct MinErrorGrid {
    config: MinErrorGridConfig,
    search: Option<Search>,
}

#[derive(Clone, Debug)]
struct Search {
    fixed: Arc<Fixed>,
    /// The summed error of each candidate, tile by tile.
    errors: Vec<Vec<f64>>,
    batches: u64,
}

/// What the first batch decides for all others.
#[derive(Debug, PartialEq)]
struct Fixed {
    candidates: Candidates,
    /// The parameters of the quantizer for each candidate.
    parameters: Vec<AffineParameters>,
}

/// The settings of a [`MinErrorGrid`].
///
/// With rows' minimum `m` and maximum `M` in the first batch, the grid spans `relative_margin * m - absolute_margin` to
/// `relative_margin * M + absolute_margin`; [`CandidateGrid`] says how.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct MinErrorGridConfig {
    /// How many ranges are tried, at least 1. An asymmetric quantizer searches both ends: squares use all of them.
    pub num_candidates: usize,
    /// How the candidates are placed.
    pub grid: CandidateGrid,
    /// Added to both ends; `None` is the grid's own default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub absolute_margin: Option<f64>,
    /// Multiplies both ends; `None` is the grid's own default.
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

/// What a [`MinErrorGrid`] makes small.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum ErrorFunction {
    /// The mean of the squared differences.
    #[default]
    Mse,
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
        self.search.as_ref().map(|search| &search.fixed.candidates)
    }

    /// The summed error of every candidate, tile by tile; `None` before the first batch.
    pub fn errors(&self) -> Option<&[Vec<f64>]> {
        self.search.as_ref().map(|search| search.errors.as_slice())
    }

    /// The number of the best candidate of each tile; `None` before the first batch.
    pub fn best(&self) -> Option<Vec<usize>> {
        let search = self.search.as_ref().filter(|search| search.batches > 0)?;
        Some(
            (0..search.fixed.candidates.num_tiles())
                .map(|tile| {
                    let mut best = 0;
                    for (candidate, errors) in search.errors.iter().enumerate() {
                        if errors[tile] < search.errors[best][tile] {
                            best = candidate;
                        }
                    }
                    best
                })
                .collect(),
        )
    }

    fn begin(&self, first: &TileRanges, quantizer: &dyn RangeSettable) -> Result<Search, Error> {
        let candidates = Candidates::new(first, quantizer.is_symmetric(), &self.config);
        let parameters = (0..candidates.len())
            .map(|at| quantizer.parameters_for_range(&candidates.min()[at], &candidates.max()[at]))
            .collect::<Result<_, Error>>()?;
        let errors = vec![vec![0.0; first.len()]; candidates.len()];
        Ok(Search { fixed: Arc::new(Fixed { candidates, parameters }), errors, batches: 0 })
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
        let mut search = self.begin(&found, quantizer)?;
        search.add(x, quantizer)?;
        self.search = Some(search);
        Ok(())
    }

    fn range(&self) -> Option<TileRanges> {
        let best = self.best()?;
        let candidates = self.candidates()?;
        let pick = |bounds: &[Vec<f32>]| {
            best.iter().enumerate().map(|(tile, &candidate)| bounds[candidate][tile]).collect()
        };
        Some(TileRanges { min: pick(candidates.min()), max: pick(candidates.max()) })
    }

    fn merge(&mut self, later: &dyn RangeEstimator) -> Result<(), Error> {
        let later = self.same_kind(later)?;
        let Some(second) = &later.search else { return Ok(()) };
        let Some(first) = &mut self.search else {
            self.search = Some(second.clone());
            return Ok(());
        };
        if !Arc::ptr_eq(&first.fixed, &second.fixed) && first.fixed != second.fixed {
            return Err(Error::new(
                ErrorKind::Estimator,
                "min_error_grid estimators with different candidates cannot merge; fork the others from the one that \
                 observed the first batch",
            ));
        }
        for (sums, later) in first.errors.iter_mut().flatten().zip(second.errors.iter().flatten()) {
            *sums += later;
        }
        first.batches += second.batches;
        Ok(())
    }

    fn fork(&self) -> Box<dyn RangeEstimator> {
        let search = self.search.as_ref().map(|search| Search {
            fixed: Arc::clone(&search.fixed),
            errors: vec![vec![0.0; search.fixed.candidates.num_tiles()]; search.errors.len()],
            batches: 0,
        });
        Box::new(Self { config: self.config.clone(), search })
    }
}

impl Search {
    /// Adds the errors of one batch, whose values are all finite.
    fn add(&mut self, x: ArrayView<'_>, quantizer: &dyn RangeSettable) -> Result<(), Error> {
        let tiling = tiling_of(x, quantizer.granularity())?;
        check_tiles(self.fixed.candidates.num_tiles(), tiling.num_tiles())?;
        let array = x.to_array();
        let mut rounded = vec![0.0; array.data.len()];
        let mut added = Vec::with_capacity(self.errors.len());
        for parameters in &self.fixed.parameters {
            fake_quantize_into(array.view(), quantizer.granularity(), parameters, &mut rounded)?;
            let mut errors = Vec::with_capacity(tiling.num_tiles());
            for tile in 0..tiling.num_tiles() {
                let sum: f64 = tiling
                    .tile_elements(tile)
                    .map(|at| f64::from(array.data[at.output] - rounded[at.output]).powi(2))
                    .sum();
                errors.push(sum / tiling.tile_len() as f64);
            }
            added.push(errors);
        }
        for (sums, added) in self.errors.iter_mut().flatten().zip(added.into_iter().flatten()) {
            *sums += added;
        }
        self.batches += 1;
        Ok(())
    }
}

#[cfg(test)]
mod tests;
