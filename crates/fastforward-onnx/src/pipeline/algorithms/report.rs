//! What algorithms did.

use fastforward_core::config::AlgorithmEntry;
use serde::Serialize;

/// What an algorithm did.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct AlgorithmReport {
    /// The line of the configuration at which it stands.
    pub line: usize,
    /// Its type.
    pub algorithm: &'static str,
    /// What `before` and `after` of its changes say, in words.
    pub measure: &'static str,
    /// What it changed, in the order of the graph.
    pub changes: Vec<AlgorithmChange>,
    /// What it left as it was, and why.
    pub kept: Vec<String>,
    /// Bytes of the sums over a layer's inputs, at their most; `None` for what keeps none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub moment_bytes: Option<u64>,
}

/// One thing that an algorithm changed.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct AlgorithmChange {
    /// The layer, slot or value.
    pub name: String,
    /// The measure without the algorithm.
    pub before: f64,
    /// The same with it; `None` where it is not measured.
    pub after: Option<f64>,
    /// Output channels that were left as they were, because they could not be improved.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rows_kept: Option<usize>,
}

impl AlgorithmReport {
    pub(super) fn new(entry: &AlgorithmEntry, measure: &'static str) -> Self {
        Self {
            line: entry.line,
            algorithm: entry.algorithm.name(),
            measure,
            changes: Vec::new(),
            kept: Vec::new(),
            moment_bytes: None,
        }
    }

    pub(super) fn change(&mut self, name: impl Into<String>, before: f64, after: Option<f64>) {
        self.changes.push(AlgorithmChange { name: name.into(), before, after, rows_kept: None });
    }
}
