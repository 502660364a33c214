//! What algorithms did.

use std::fmt;

use serde::Serialize;

/// What an algorithm did.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct AlgorithmReport {
    /// Where the algorithm was asked for: file and line, or what the caller wrote.
    pub source: String,
    /// Its type.
    pub algorithm: &'static str,
    /// What `before` and `after` of its changes say, in words.
    pub measure: &'static str,
    /// What it changed, in the order in which it did.
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
    /// The layer, the slot, or the block.
    pub name: String,
    /// The measure without the algorithm.
    pub before: f64,
    /// The same with it; `None` where it is not measured.
    pub after: Option<f64>,
    /// Output channels that were left as they were, because they could not be improved.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rows_kept: Option<usize>,
}

/// A line for the algorithm and what its numbers say, one for each change, one for each thing that was kept.
impl fmt::Display for AlgorithmReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.algorithm, self.measure)?;
        let width = self.changes.iter().map(|one| one.name.len()).max().unwrap_or(0);
        for one in &self.changes {
            write!(f, "\n  {:width$}  {:.3e}", one.name, one.before)?;
            if let Some(after) = one.after {
                write!(f, " -> {after:.3e}")?;
            }
            if let Some(rows) = one.rows_kept.filter(|&rows| rows > 0) {
                write!(f, ", {rows} channels kept")?;
            }
        }
        self.kept.iter().try_for_each(|one| write!(f, "\n  kept {one}"))
    }
}
