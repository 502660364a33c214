//! Layers with quantizer slots.
//!
//! A layer is a struct of public fields: its parameters, its settings, and a slot for each tensor that may be quantized
//! (spec §5.7). [`Layer::forward`] sends the input and the parameters through their slots and calls the operator of
//! [`functional`] with the output slot. Parameters are named as in torch, so that weights saved there load through a
//! `VarBuilder`.
//!
//! | slot | tag | there is none |
//! |---|---|---|
//! | `input_quantizer` | `activation/input` | in [`Embedding`], whose input are numbers of rows |
//! | `weight_quantizer` | `parameter/weight` | in layers without a weight |
//! | `bias_quantizer` | `parameter/bias` | in layers without a bias |
//! | `output_quantizer` | `activation/output` | |
//!
//! [`Sequential`], [`Identity`] and [`Flatten`] have no slots; attention has more, which its documentation lists.
//!
//! A layer of one's own is made the same way: see [`Linear`], whose source is the pattern.

mod activation;
mod add;
mod attention;
mod batch_norm;
mod check;
mod containers;
mod conv;
mod dropout;
mod embedding;
pub mod functional;
mod identity;
mod layer;
mod linear;
mod mode;
mod multihead_attention;
mod norm;
mod param;
mod pool;
mod rotary;
mod sequential;
mod setting;

pub use activation::{
    GELU, Hardsigmoid, Hardswish, LeakyReLU, ReLU, ReLU6, SiLU, Sigmoid, Softmax, Tanh,
    activation_from_candle,
};
pub use add::Add;
pub use attention::{
    AttentionDropout, AttentionMask, AttentionOptions, AttentionSlots, ScaledDotProductAttention,
};
pub use batch_norm::{BatchNorm, BatchNormOptions, FoldBatchNorm, fold_batch_norm};
pub use containers::{ModuleDict, ModuleList};
pub use conv::{Conv1d, Conv2d, Conv3d, ConvTranspose1d, ConvTranspose2d, ConvTranspose3d};
pub use dropout::Dropout;
pub use embedding::Embedding;
pub use identity::{Flatten, Identity};
pub use layer::Layer;
pub use linear::Linear;
pub use multihead_attention::{InProjection, MultiheadAttention, MultiheadAttentionOptions};
pub use norm::{GroupNorm, LayerNorm, RmsNorm};
pub use param::Param;
pub use pool::{AdaptiveAvgPool2d, AvgPool1d, AvgPool2d, AvgPool3d, MaxPool2d};
pub use rotary::RotaryEmbedding;
pub use sequential::Sequential;
