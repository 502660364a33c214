//! Weights chosen layer by layer, by what they do to each layer's output.
//!
//! A layer that multiplies with a constant is one or more matrix products: `Gemm`, `MatMul`, and `Conv`, whose input is
//! unfolded to one row per output position. How far its output moves when its weight changes is a function of second
//! moments of these rows alone, so that no activation is kept: batches run through the graph and are added up.
//!
//! # Design
//!
//! [`LinearLayer`] says what a layer is and turns its weight into matrices `[output channels, inputs]` and back; nothing
//! behind it knows of operators and axes. [`choose_weights`] goes through the layers; what looks at data is handed moments
//! of what it asks for: inputs in float, in the quantized network, or both. [`refine_offsets`] needs no data.

mod gather;
mod journal;
mod layer;
mod matrix;
mod method;
mod offsets;
mod run;
mod unfold;

use serde::{Deserialize, Serialize};

pub use journal::Journal;
pub use layer::{LinearLayer, NoLayer, linear_layers};
pub use matrix::MatrixTiles;
pub use offsets::{OffsetOutcome, refine_offsets};
pub use run::{Context, LayerProgress, LayerTask, choose_weights};

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
