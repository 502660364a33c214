//! Rewrites that prepare a graph for few bits: what they keep, what they gain, and why they refuse.

mod absorb_bias;
mod awq;
mod correct_bias;
#[path = "../quantize/data.rs"]
mod data;
mod equalize;
#[path = "../engine/fashion.rs"]
mod fashion;
mod fold_batch_norm;
mod joint_ranges;
mod quantized;
mod smooth;
mod support;
