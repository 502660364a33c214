//! Rewrites that keep what a graph computes, and those that bring a quantized graph closer to it.

mod absorb_bias;
mod awq;
mod channels;
mod correct_bias;
mod equalize;
mod fold_batch_norm;
mod layer;
mod migrate;
mod path;
mod prepare;
mod smooth;

pub use absorb_bias::{
    AbsorbOptions, AbsorbReport, AbsorbedBias, KeptBiasPair, absorb_biases, absorbable_values,
};
pub use awq::{AwqOptions, AwqReport, ScaledLayer, ScaledValue, awq};
pub use channels::channel_statistics;
pub(crate) use correct_bias::correctable;
pub use correct_bias::{
    BiasReport, CorrectOptions, CorrectedBias, KeptBias, add_missing_biases, correct_biases,
    correct_biases_from_inputs,
};
pub use equalize::{
    EqualizeOptions, EqualizeReport, EqualizedChain, EqualizedJoint, KeptLayer, Relu6,
    RewrittenClip, equalize,
};
pub use fold_batch_norm::{FoldReport, Folded, Kept, fold_batch_norm};
pub use prepare::{Activations, Executed, PrepareOptions, Prepared, prepare};
pub use smooth::{
    KeptValue, SmoothOptions, SmoothReport, SmoothedValue, smooth, smoothable_values,
};
