//! Path queries over any tree of named nodes.
//!
//! `encoder/**/[cls:Linear]/[quantizer:parameter/weight]` reads: below `encoder`, at any depth, each node of class
//! `Linear`, and in it each quantizer tagged `parameter/weight`.
#![forbid(unsafe_code)]

mod class;
mod collection;
mod context;
mod diagnosis;
mod error;
mod fragment;
pub mod limits;
mod node;
mod query_set;
mod search;
mod selector;
pub mod suggest;
mod tag;

mod automaton;
mod hash;
mod intern;
mod lexer;
mod parser;
mod tree;

pub use class::Class;
pub use collection::{ApplyOptions, FilterResult, MPathCollection, Replace};
pub use context::{Aliases, Context, Extension, ExtensionScope};
pub use diagnosis::{Diagnosis, Step, Suggestion, Verdict, Why, diagnose, why};
pub use error::{Error, ErrorKind, ExtensionError};
pub use fragment::{
    ClassFragment, DependsOn, Disjoint, Fragment, Inverted, Joint, NameFragment, PatternFragment,
    PredicateFragment, Wildcard,
};
pub use node::{Facts, Node};
pub use query_set::{Path, QuerySet, Visit};
pub use search::{Query, SearchOptions, search};
pub use selector::{Segment, SegmentKind, Selector, Source};
pub use tag::{Tag, TagSet};
