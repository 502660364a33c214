//! ONNX graphs as FastForward module trees.
//!
//! # What this crate solves
//!
//! A graph file is read without loss ([`graph::Model`]), its values are
//! computed by name ([`engine::Engine`]), it is rewritten ([`rewrite`]), and it is
//! written back with every untouched part as it was.
//!
//! Quantization goes through a [`tree::Tree`] of slots: rules fill them,
//! [`calibrate`] shows each slot its data, [`simulate`] computes the graph with
//! the quantizers at work, [`export`] writes them as `QuantizeLinear` and
//! `DequantizeLinear`, [`verify`] reads the file back and proves that it means the
//! same, and [`compare`] tells which layer loses what.
//!
//! ```no_run
//! use std::path::Path;
//! use fastforward_onnx::{engine::{Engine, EngineOptions}, graph::Model, tensor::Tensor};
//!
//! # fn main() -> Result<(), fastforward_onnx::Error> {
//! let model = Model::load(Path::new("model.onnx"))?;
//! let engine = Engine::new(&model, &EngineOptions::default())?;
//! let image = Tensor::from_f32(vec![1, 1, 28, 28], vec![0.0; 784])?;
//! let logits = engine.run(&[("image", &image)], &["logits"])?;
//! # let _ = logits;
//! # Ok(())
//! # }
//! ```
//!
//! # Design
//!
//! The file is held as the types generated from the official schema
//! ([`proto`]), because they lose nothing that the schema knows; everything
//! else is a view over them. Execution belongs to rten. What rten cannot
//! execute is expressed by plain nodes in a *working copy* ([`lower`]), which
//! is never what is written.
//!
//! What the quantizers ask of the graph (which reader sees which value on which
//! grid, which bias gets which scale) is decided once, for simulation and export
//! alike. Both then only put their nodes where that decision says, so that they
//! can differ in nothing but arithmetic, which [`verify`] compares.

#![forbid(unsafe_code)]

pub mod graph;

pub mod engine;

pub mod lower;

pub mod tree;

pub mod calibrate;

pub mod simulate;

pub mod export;

pub mod verify;

pub mod compare;

pub mod layerwise;

pub mod opset;

pub mod rewrite;

pub mod joint_ranges;

pub mod pipeline;

pub mod shapes;

pub mod qdq;

pub mod tensor;

pub mod dtype;

mod minifloat;

mod placement;
mod rounding;

mod edit;

pub mod proto;

mod error;

pub use error::{Error, ErrorKind, Result};
