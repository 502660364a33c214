//! The core of FastForward: what a quantized model is, without any tensor library.
//!
//! A *model* is a tree of named [modules](module::Module). Some children are [*quantizer
//! slots*](quantization::quantizer::QuantizerSlot): places where a quantizer may stand. A slot starts as a stub, carries
//! tags that say what it is for, and is filled by [rules](quantization::quant_init). A [range
//! estimator](range_setting) watches data flow through the slots and sets scales and offsets.
//!
//! Everything here works on slices with a shape and strides; an engine (a graph executor, an eager tensor library) makes
//! the data flow past the slots.
#![forbid(unsafe_code)]

pub use mpath;

pub mod algorithms;
pub mod array;
pub mod config;
pub mod data;
mod error;
pub mod files;
pub mod metrics;
pub mod module;
pub mod quantization;
pub mod range_setting;
pub mod weights;

pub use array::{Array, ArrayView};
pub use error::{Error, ErrorKind};
pub use module::{Module, Visitor, VisitorMut};
