//! Path queries over any tree of named nodes.
//!
//! `encoder/**/[cls:Linear]/[quantizer:parameter/weight]` reads: below `encoder`, at any depth, each node of class
//! `Linear`, and in it each quantizer tagged `parameter/weight`.
#![forbid(unsafe_code)]

mod class;
mod intern;
mod node;
mod tag;

pub use class::Class;
pub use node::{Facts, Node};
pub use tag::{Tag, TagSet};
