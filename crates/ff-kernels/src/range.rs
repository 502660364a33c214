//! Ranges: from data to minimum and maximum, from those to scale and offset, and back.

mod histogram;
mod histogram_search;
mod min_error;
mod minmax;
mod moments;
mod parameters;

pub use histogram::{Bin, Histogram, histograms};
pub use histogram_search::{histogram_divergences, histogram_errors};
pub use min_error::{
    CandidateLayout, Candidates, best_candidates, candidate_errors, candidate_errors_reference,
    search_min_error,
};
pub use minmax::{MinMax, min_max, min_max_reference};
pub use moments::{Moments, moments, moments_reference};
pub use parameters::{
    Degenerate, OneSided, Parameters, RangeOptions, parameters_for_range, quantization_range,
};
