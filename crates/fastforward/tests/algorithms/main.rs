//! Algorithms carried out on models in code.
#![cfg(feature = "eager")]

mod biases;
mod blocks;
mod common;
mod layerwise;
mod refused;
mod resumed;
