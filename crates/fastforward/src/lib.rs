//! FastForward: neural-network quantization by rules over a tree of modules.
//!
//! A model is a tree of [modules](module::Module); some of its children are [quantizer
//! slots](quantization::QuantizerSlot). Rules say which slot gets which quantizer, data sets the ranges, and every
//! decision is on record:
//!
//! ```
//! use fastforward as ff;
//! use ff::quantization::quant_init::{InitializeOptions, QuantizationConfig, QuantizerSpec};
//!
//! #[derive(ff::Module)]
//! struct Linear {
//!     weight_quantizer: ff::quantization::QuantizerSlot,
//! }
//!
//! let model = Linear { weight_quantizer: ff::quantization::QuantizerSlot::weight(&[8, 4]) };
//! let mut config = QuantizationConfig::for_model(&model);
//! config.add_rule("**/[quantizer:parameter/weight]", QuantizerSpec::linear(8))?;
//! let done = config.initialize(&model, InitializeOptions::default())?;
//! let slot = done.resolution.slot("weight_quantizer").unwrap();
//! assert_eq!(slot.winner.unwrap().rule, 0);
//! assert_eq!(model.weight_quantizer.quantizer().num_bits(), Some(8));
//! # Ok::<(), ff::Error>(())
//! ```
//!
//! # Where things are
//!
//! | module | what it holds |
//! |---|---|
//! | [`mpath`] | path queries: `encoder/**/[cls:Linear]/[quantizer:parameter/weight]` |
//! | [`module`] | [`Module`] and its derive, visitors, the printed tree |
//! | [`quantization::quant_init`] | [`QuantizationConfig`](quantization::quant_init::QuantizationConfig), [`QuantizerCollection`](quantization::quant_init::QuantizerCollection), [`find_quantizers`](quantization::quant_init::find_quantizers) |
//! | [`quantization`] | slots, [`LinearQuantizer`](quantization::LinearQuantizer), [`DynamicLinearQuantizer`](quantization::DynamicLinearQuantizer), granularities, state on disk |
//! | [`range_setting`] | [`estimate_ranges`](range_setting::estimate_ranges) and its estimators |
//! | [`algorithms`] | what few bits need: `prepare` moves factors before ranges are found, `tune` chooses weights layer by layer, `[[algorithm]]` says how |
//! | [`config`], [`data`], [`metrics`] | `quant.toml`, samples from files, what is measured |
//!
//! The names are those of FastForward for Python, whose users know them; where that system is wrong, the documentation
//! of the item says what is done instead. Graph files are the business of the crate `fastforward-onnx`, and of the
//! program `fastforward`.
#![forbid(unsafe_code)]

// `#[derive(Module)]` names this library; so do the modules defined in it.
extern crate self as fastforward;

pub use fastforward_core::*;

pub mod algorithms;
pub mod quantization;

#[cfg(feature = "eager")]
pub mod flags;
#[cfg(feature = "eager")]
pub mod nn;
#[cfg(feature = "eager")]
pub mod tensor;

/// The examples of the README run as tests.
#[cfg(doctest)]
#[doc = include_str!("../../../README.md")]
pub struct Readme;
