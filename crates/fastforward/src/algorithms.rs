//! Algorithms that prepare a network for few bits, and choose its weights: the arithmetic that graphs and models in code
//! share; `prepare` and [`tune`], which carry the algorithms of a configuration out on a model in code, before its ranges are
//! found and after; and [`reconstruct_blocks`], which rounds the weights of several layers together.
//!
//! The `[[algorithm]]` sections of a `quant.toml` mean the same for a graph file and for a model: types, keys, defaults and
//! stages are those of `docs/algorithms.md`. What differs is how data flows. A graph is executed by the program; a model by a
//! closure of the caller, which is handed one batch at a time. The operators that run in it tell which layer is fed what, so
//! that layers are worked on in the order in which the forward reaches them.

pub use fastforward_core::algorithms::*;

#[cfg(feature = "eager")]
mod bias;
#[cfg(feature = "eager")]
mod blocks;
#[cfg(feature = "eager")]
mod choose;
#[cfg(feature = "eager")]
mod data;
#[cfg(feature = "graph")]
mod join;
#[cfg(feature = "eager")]
mod layer;
#[cfg(feature = "eager")]
mod network;
#[cfg(feature = "eager")]
mod offsets;
#[cfg(feature = "eager")]
mod plan;
#[cfg(feature = "graph")]
mod prepare;
#[cfg(feature = "eager")]
mod report;
#[cfg(feature = "eager")]
mod tune;

#[cfg(feature = "eager")]
pub use blocks::{Block, BlockOptions, reconstruct_blocks};
#[cfg(feature = "eager")]
pub use plan::{Target, targets};
#[cfg(feature = "graph")]
pub use prepare::{Outputs, PrepareOptions, prepare};
#[cfg(feature = "eager")]
pub use report::{AlgorithmChange, AlgorithmReport};
#[cfg(feature = "eager")]
pub use tune::{Resume, TuneOptions, tune};
