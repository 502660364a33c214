//! Algorithms carried out on models in code.
#![cfg(feature = "eager")]

mod biases;
mod blocks;
mod common;
mod layerwise;
#[cfg(feature = "graph")]
mod prepared;
mod refused;
mod resumed;
