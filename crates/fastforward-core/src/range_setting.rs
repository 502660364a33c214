//! Setting ranges from data: estimators watch what flows past quantizers and give each tile its minimum and maximum.
//!
//! [`estimate_ranges`] puts an estimator on every quantizer of a model for as long as its guard lives:
//!
//! ```
//! use std::sync::Arc;
//! use fastforward_core::ArrayView;
//! use fastforward_core::module::SlotEntry;
//! use fastforward_core::quantization::{LinearQuantizer, LinearQuantizerConfig, QuantizerSlot};
//! use fastforward_core::range_setting::{EstimationOptions, EstimatorConfig, estimate_ranges};
//!
//! let slot = QuantizerSlot::input();
//! slot.replace(Arc::new(LinearQuantizer::new(LinearQuantizerConfig::new(8).asymmetric())?));
//! let slots = vec![SlotEntry { names: vec!["layer.input_quantizer".into()], slot: slot.clone() }];
//!
//! let calibration = estimate_ranges(&slots, EstimatorConfig::running_minmax(), EstimationOptions::default())?;
//! for batch in [[-1.0, 0.5], [0.25, 3.0]] {
//!     slot.forward(ArrayView::new(&batch, &[2])?)?; // a model's forward does this
//! }
//! let report = calibration.finish()?;
//! assert_eq!(report.slots[0].batches, 2);
//! assert_eq!(report.slots[0].range.as_ref().unwrap().min, [-1.0]);
//! assert_eq!(report.slots[0].range.as_ref().unwrap().max, [3.0]);
//! # Ok::<(), fastforward_core::Error>(())
//! ```
//!
//! # Design
//!
//! A [`RangeEstimator`] is the statistics of one quantizer: it sees batches and names a range, in bounded memory, and
//! two of a kind merge. A [`RangeObserver`] ties one to a slot and decides when the range is written. The guard puts
//! observers on slots as overrides. An engine that sees values without slots in its way, a graph executor, drives
//! observers itself.

mod config;
mod estimate;
mod estimator;
mod histogram;
mod histogram_grid;
mod min_error;
mod observer;
mod percentile;
mod running_minmax;
mod smoothed_minmax;

pub use config::{EstimatorConfig, EstimatorFactory};
pub use estimate::{
    EstimationGuard, EstimationOptions, EstimationReport, NoData, SkippedSlot, SlotEstimate,
    SlotSource, estimate_ranges, estimate_ranges_with,
};
pub use estimator::{RangeEstimator, ReadElements, TileRanges, Unread, tile_ranges};
pub use ff_kernels::{CandidateLayout, Candidates};
pub use histogram_grid::{HistogramCriterion, HistogramGrid, HistogramGridConfig};
pub use min_error::{CandidateGrid, ErrorFunction, MinErrorGrid, MinErrorGridConfig};
pub use observer::{InitialRange, ObserverOptions, RangeObserver, UpdatePolicy};
pub use percentile::{Percentile, PercentileConfig};
pub use running_minmax::RunningMinMax;
pub use smoothed_minmax::SmoothedMinMax;
