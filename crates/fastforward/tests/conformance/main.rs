//! Conformance with the Python system: its answers, kept as data, against ours.
//!
//! The cases lie in `conformance/golden` (its README says what they hold), or in the folder named by `FF_GOLDEN_DIR`.
//! Where we differ on purpose, [`differences`] says when, why, and how.

#![allow(clippy::print_stdout, reason = "a test says which differences it met")]
#![allow(unreachable_pub, reason = "items are shared between the modules of one test")]

mod differences;
mod golden;
mod granularity;
mod order;
mod tree;

mod affine;
mod config;
mod dynamic;
mod estimators;
mod mpath;
mod ranges;
mod tags;
#[cfg(feature = "eager")]
mod tensor;
