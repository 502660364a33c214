//! The whole job: from a model, rules and data to a verified quantized file.
//!
//! ```no_run
//! use std::path::Path;
//! use fastforward_onnx::pipeline::{Job, JobOptions, Silent};
//!
//! let job = Job::open(Path::new("model.onnx"), Path::new("quant.toml"), &JobOptions::default())?;
//! let plan = job.plan()?;
//! println!("{} of {} slots get a quantizer", plan.quantized_slots(), plan.slots.len());
//! let quantized = job.quantize(Path::new("out"), &Silent)?;
//! assert_eq!(quantized.failed_checks().count(), 0);
//! # Ok::<(), fastforward_onnx::Error>(())
//! ```
//!
//! # Design
//!
//! Everything that can be wrong without computing is found by [`Job::open`] and [`Job::check`], everything that data can
//! be wrong with before its first element is read by [`Job::open_data`]; a job that starts computing is a job that was
//! checked whole. Each step returns a value that can be printed, compared and saved. Nothing of it depends on the clock,
//! on where files lie, or on the number of threads.

mod algorithms;
mod evaluate;
mod job;
mod measure;
mod outputs;
mod plan;
mod progress;
mod quantize;
mod report;
mod samples;
mod sensitivity;
mod story;
mod summary;

pub use algorithms::{AlgorithmChange, AlgorithmReport, PlannedAlgorithm};
pub use evaluate::evaluate;
pub use job::{Job, JobData, JobOptions};
pub use measure::{Evaluation, Measured, Scores};
pub use plan::{Plan, PlannedBytes, PlannedQuantizer, PlannedRule, PlannedSlot};
pub use progress::{Progress, Silent, Stage};
pub use quantize::Quantized;
pub use report::{
    BatchNorm, Check, Layers, Program, REPORT_VERSION, Report, ReportedOptions, ReportedRange,
    ReportedSlot, SourceData, SourceFile, SourceModel, SourceSamples,
};
pub use samples::{DataFile, SampleBatch, Samples};
pub use sensitivity::{
    Allocation, Budget, Curve, MeasuredBy, MixedFile, Point, ScoreData, ScoredBy, Sensitivity,
    SensitivityOptions, SensitivityScore, SlotPrice, SlotPrices, SweptSlots, SweptWidth,
};
pub use story::{RuleVerdict, SlotStory, Stop, Verdict};
pub use summary::{ModelSummary, OpsetVersion, Totals};
