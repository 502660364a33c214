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
//!
//! [`blocks`](blocks()) cuts a graph into stretches of several layers. Their weights are rounded together by gradients of
//! the block's own operators, in closed form.

mod blocks;
mod float;
mod gather;
mod layer;
mod offsets;
mod run;

pub use blocks::{Block, blocks};
pub use fastforward_core::algorithms::layerwise::{
    BiasStep, BlockOutcome, Journal, LayerOutcome, MatrixTiles, StepOutcome,
};
pub(crate) use float::{float_moments, float_moments_bytes};
pub use layer::{LinearLayer, NoLayer, linear_layers};
pub use offsets::{OffsetOutcome, refine_offsets};
pub use run::{BlockTask, Context, LayerProgress, LayerTask, Outcome, Task, choose_weights};
