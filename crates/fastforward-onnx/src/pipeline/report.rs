//! What a job did, as a file.

use fastforward_core::range_setting::SlotEstimate;
use serde::Serialize;

use super::algorithms::AlgorithmReport;
use super::measure::Evaluation;
use super::plan::{PlannedRule, PlannedSlot};
use super::samples::DataFile;
use super::summary::ModelSummary;
use crate::compare::LayerDifference;
use crate::export::ExportSummary;
use crate::verify::Verification;

/// The version of the report's layout. It changes when a field changes its meaning or goes.
pub const REPORT_VERSION: u32 = 1;

/// Everything a job did and found: from the same inputs the same bytes, on any day, in any folder, with any number of
/// threads.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// [`REPORT_VERSION`].
    pub schema_version: u32,
    /// The program and its version.
    pub program: Program,
    /// The model that was quantized.
    pub model: SourceModel,
    /// The configuration.
    pub config: SourceFile,
    /// The data.
    pub data: SourceData,
    /// What random numbers started from: nothing is random.
    pub seeds: Vec<u64>,
    /// What was decided beside the configuration, defaults included.
    pub options: ReportedOptions,
    /// The batch normalizations that were folded, and those that could not be.
    pub batch_norm: BatchNorm,
    /// The rules, in the order of the file.
    pub rules: Vec<PlannedRule>,
    /// What each algorithm of the configuration did, in the order of the file.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub algorithms: Vec<AlgorithmReport>,
    /// Every slot: which rule decided it, against which others, and the range that was found.
    pub slots: Vec<ReportedSlot>,
    /// The metrics of the float model and of the written file; `None` without evaluation data.
    pub evaluation: Option<Evaluation>,
    /// How far quantization moves each value, worst first.
    pub layers: Layers,
    /// What was written, and why.
    pub export: ExportSummary,
    /// What was read back and found equal.
    pub verification: Verification,
    /// The conditions of the configuration.
    pub checks: Vec<Check>,
    /// The files beside this report.
    pub files: Vec<SourceFile>,
}

/// The program that wrote a report.
#[derive(Clone, Debug, Serialize)]
pub struct Program {
    /// Its name.
    pub name: &'static str,
    /// Its version.
    pub version: &'static str,
}

/// A model with the hash of its file.
#[derive(Clone, Debug, Serialize)]
pub struct SourceModel {
    /// The SHA-256 of the file.
    pub sha256: String,
    /// The files that its external data lies in, sorted by path.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub data: Vec<SourceFile>,
    /// The file in numbers.
    #[serde(flatten)]
    pub summary: ModelSummary,
}

/// A file with its hash.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SourceFile {
    /// The file's name; below the output folder for what was written.
    pub file: String,
    /// Its length.
    pub size_bytes: u64,
    /// The SHA-256 of its bytes.
    pub sha256: String,
}

/// The files that data was read from.
#[derive(Clone, Debug, Serialize)]
pub struct SourceData {
    /// For calibration.
    pub calibration: Option<SourceSamples>,
    /// For evaluation.
    pub evaluation: Option<SourceSamples>,
}

/// Files, and how many samples were used.
#[derive(Clone, Debug, Serialize)]
pub struct SourceSamples {
    /// The number of samples.
    pub samples: usize,
    /// Samples that were computed at once.
    pub batch_size: usize,
    /// The files, sorted by path.
    pub files: Vec<DataFile>,
}

/// What was decided beside the configuration.
#[derive(Clone, Debug, Serialize)]
pub struct ReportedOptions {
    /// The codes of activations: `u8` or `s8`, of whatever width.
    pub activations: &'static str,
}

/// What became of batch normalizations.
#[derive(Clone, Debug, Default, Serialize)]
pub struct BatchNorm {
    /// In words.
    pub folded: Vec<String>,
    /// With the reason.
    pub kept: Vec<String>,
}

/// A slot in a report.
#[derive(Clone, Debug, Serialize)]
pub struct ReportedSlot {
    /// What was planned.
    #[serde(flatten)]
    pub planned: PlannedSlot,
    /// What calibration found; `None` for slots without a range.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub range: Option<ReportedRange>,
}

/// A range that calibration found. All tiles are in the quantization state.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ReportedRange {
    /// The batches that were seen.
    pub batches: u64,
    /// The values that were seen.
    pub values: u64,
    /// The number of tiles, each with a range of its own.
    pub tiles: usize,
    /// The smallest minimum of all tiles.
    pub min: f32,
    /// The largest maximum of all tiles.
    pub max: f32,
}

impl ReportedRange {
    pub(super) fn of(estimate: &SlotEstimate) -> Option<Self> {
        let range = estimate.range.as_ref()?;
        Some(Self {
            batches: estimate.batches,
            values: estimate.elements,
            tiles: range.min.len(),
            min: range.min.iter().copied().fold(f32::INFINITY, f32::min),
            max: range.max.iter().copied().fold(f32::NEG_INFINITY, f32::max),
        })
    }
}

/// How far quantization moves each value.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Layers {
    /// The samples that were compared; 0 where only constants were.
    pub samples: usize,
    /// Worst first.
    pub differences: Vec<LayerDifference>,
}

/// A condition of the configuration.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Check {
    /// The key that states it, `max_drop`.
    pub name: &'static str,
    /// The bound.
    pub bound: f64,
    /// What was found.
    pub found: f64,
    /// Whether it holds.
    pub holds: bool,
}
