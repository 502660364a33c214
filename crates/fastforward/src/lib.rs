//! FastForward: neural network quantization by rules over a tree of modules.
#![forbid(unsafe_code)]

// `#[derive(Module)]` names this library; so do the modules defined in it.
extern crate self as fastforward;

pub use fastforward_core::*;

/// The examples of the README run as tests.
#[cfg(doctest)]
#[doc = include_str!("../../../README.md")]
pub struct Readme;
