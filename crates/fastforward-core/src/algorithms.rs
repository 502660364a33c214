//! Algorithms that prepare a network for few bits: the arithmetic, on slices, for graphs and models in code alike.
//!
//! Each works on what all networks have, layers with output and input channels. Who holds the network (a graph, a tree
//! of modules) finds the layers that belong together, calls the arithmetic here, and puts the results back.

pub mod equalization;

pub mod absorption;

pub mod smoothing;

pub mod bias_correction;

pub mod layerwise;

mod scaling;

mod statistics;

pub use scaling::ScaleRounding;
pub use statistics::ChannelStatistics;
