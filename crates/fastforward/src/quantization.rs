//! Quantizers, the slots they stand in, and the rules that put them there; with tensors, also what trains and freezes them.

pub use fastforward_core::quantization::*;

#[cfg(feature = "eager")]
mod annotate;
#[cfg(feature = "eager")]
mod disable;
#[cfg(feature = "eager")]
mod fuse;
#[cfg(feature = "eager")]
pub mod model_state;
#[cfg(feature = "eager")]
pub mod python_state;
#[cfg(feature = "eager")]
pub mod trainable;

#[cfg(feature = "eager")]
pub use annotate::annotate_operator_metadata;
#[cfg(feature = "eager")]
pub use disable::{
    DisableGuard, EnableGuard, ModuleStrictness, disable_quantization, enable_quantization,
    strict_quantization_for_module,
};
#[cfg(feature = "eager")]
pub use fuse::{
    ParameterQuantizer, find_parameter_quantizers, freeze_parameters, fuse_qdq_weights,
    stub_weight_quantizers,
};
#[cfg(feature = "eager")]
pub use model_state::{LoadOptions, SaveOptions, load_quantized_model, save_quantized_model};
#[cfg(feature = "eager")]
pub use python_state::load_python_quantization_state;
#[cfg(feature = "eager")]
pub use trainable::{TrainableOptions, TrainableParameters, TrainableQuantizer, trainable};
