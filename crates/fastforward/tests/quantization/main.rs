//! What tensors add to quantization: saved models, fused weights, switches, learned scales.
#![cfg(feature = "eager")]

mod fuse;
mod state;
mod state_python;
mod switches;
mod trainable;
