//! The operators of the [table](crate::tensor::operator::OPERATORS) as functions, and attention, which is made of several.
//!
//! See [`crate::tensor::operator`] for what each of them does about strict mode and kernels.

pub use super::attention::{
    AttentionDropout, AttentionMask, AttentionOptions, AttentionSlots, scaled_dot_product_attention,
};
pub use crate::tensor::operator::functional::*;
