//! Weights chosen layer by layer, by what they do to each layer's output: what graphs and models in code share.
//!
//! A layer that multiplies with a constant is one or more matrix products; a convolution's input is unfolded to one row per
//! output position ([`Windows`]). How far its output moves when its weight changes is a function of second moments of these
//! rows alone ([`LayerMoments`](ff_kernels::LayerMoments)), so that no activation is kept.
//!
//! [`LayerProblem`] holds one layer's weight as a matrix and lets algorithms work on it, each of which says with [`Seen`]
//! what it looks at; [`MatrixTiles`] tells how a quantizer's tiles lie on that matrix; [`Journal`] keeps finished layers.

mod journal;
mod matrix;
mod problem;
mod rows;
mod windows;

use serde::{Deserialize, Serialize};

pub use journal::{Finished, FinishedBlock, Journal};
pub use matrix::{MatrixTiles, transpose};
pub use problem::{LayerProblem, Seen, Step, calibrated};
pub use rows::InputRows;
pub use windows::{Unfolding, WindowPadding, Windows};

/// What choosing a layer's weight did.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LayerOutcome {
    /// The module.
    pub layer: String,
    /// The slot of its weight.
    pub slot: String,
    /// Output channels.
    pub rows: usize,
    /// Inputs of one output.
    pub columns: usize,
    /// How many products the layer is.
    pub groups: usize,
    /// Bytes that the sums over its inputs took, at their most.
    pub moment_bytes: u64,
    /// What each algorithm did, in the order in which they worked on it.
    pub steps: Vec<StepOutcome>,
    /// What became of its bias; `None` where it was not to be corrected.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bias: Option<BiasStep>,
}

/// What rounding the weights of a block together did.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BlockOutcome {
    /// The block.
    pub name: String,
    /// The value that it gives.
    pub output: String,
    /// `Σ ‖y‖²` of this value in float, over all data.
    pub signal: f64,
    /// `Σ ‖y - ŷ‖²` with the weights that were found.
    pub loss_before: f64,
    /// The same with those that were chosen; never more.
    pub loss: f64,
    /// Why its layers keep what was chosen for each of them, where its gradient is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kept_because: Option<String>,
}

/// What correcting a layer's bias did, once its weight was chosen.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum BiasStep {
    /// It was corrected.
    Corrected {
        /// `E‖W x‖²`
        signal: f64,
        /// `E‖W x - Ŵ x^‖²` with the weight that was chosen.
        loss_before: f64,
        /// The same with the mean error of each output taken off.
        loss: f64,
    },
    /// It stays as it is, for this reason.
    Kept(String),
}

/// What one algorithm did to a layer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StepOutcome {
    /// The position of the algorithm in the task.
    pub algorithm: usize,
    /// `E‖W x‖²` over the samples: the mean square of the outputs of all rows together.
    pub signal: f64,
    /// `E‖W x - Ŵ x^‖²` as the algorithm found it: rounded to nearest, or as one before it left it.
    pub loss_before: f64,
    /// The same as the algorithm left it.
    pub loss: f64,
    /// Rows of input that were seen, of all groups.
    pub samples: u64,
    /// Output channels that the algorithm left as they were, because it could not improve them.
    pub rows_kept: usize,
}
