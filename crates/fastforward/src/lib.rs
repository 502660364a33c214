//! FastForward: neural network quantization by rules over a tree of modules.
pub use fastforward_core::*;
pub use mpath;
