//! Rewrites that keep what a graph computes.

mod fold_batch_norm;

pub use fold_batch_norm::{FoldReport, Folded, Kept, fold_batch_norm};
