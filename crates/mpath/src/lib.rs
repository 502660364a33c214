//! Path queries over any tree of named nodes.
//!
//! `encoder/**/[cls:Linear]/[quantizer:parameter/weight]` reads: below `encoder`, at any depth, each node of class
//! `Linear`, and in it each quantizer tagged `parameter/weight`. Rules about a large model are a few such lines.
//!
//! ```
//! use mpath::{Class, Context, Facts, Node, SearchOptions, TagSet, search};
//!
//! struct Module {
//!     class: Class,
//!     children: Vec<(&'static str, Module)>,
//! }
//!
//! impl Facts for &Module {
//!     fn class(&self) -> Class {
//!         self.class
//!     }
//!     fn tags(&self) -> Option<TagSet> {
//!         None
//!     }
//! }
//!
//! impl Node for &Module {
//!     fn for_each_child(&self, visit: &mut dyn FnMut(&str, Self)) {
//!         for (name, child) in &self.children {
//!             visit(name, child);
//!         }
//!     }
//! }
//!
//! let linear = Class::define("Linear", "example::Linear", &[]);
//! let block = Class::define("Block", "example::Block", &[]);
//! let leaf = |class| Module { class, children: vec![] };
//! let layer = Module { class: block, children: vec![("norm", leaf(block)), ("proj", leaf(linear))] };
//! let model = Module { class: block, children: vec![("layer", layer), ("head", leaf(linear))] };
//!
//! let mut context = Context::new();
//! context.register_class("Linear", linear);
//! let found = search("**/[cls:Linear]", &model, &SearchOptions::new(&context))?;
//! assert_eq!(found.map(|name, _| name.to_owned()), ["layer.proj", "head"]);
//! # Ok::<(), mpath::Error>(())
//! ```
//!
//! # Where to look
//!
//! - [`language`]: how queries are written.
//! - [`Node`]: what a tree has to offer. [`Class`] and [`Tag`]: what a node may be; [`Kind`]: both, as a number.
//! - [`Context`]: what names in a query mean; it parses. [`Selector`]: a parsed query. [`Fragment`]: one test in it.
//! - [`search`]: one query, a collection of results. [`QuerySet`]: many queries in one walk.
//! - [`diagnose`] and [`why`]: why a query matches nothing, or not that.
//! - [`Error`]: what can be wrong, with the place and a suggestion; [`suggest`] finds the latter.
//!
//! # Design
//!
//! A selector becomes an automaton. Its states are what may be left to match, suffixes of the selector simplified at the
//! beginning, and equal ones are one state; so there are about as many as fragments, and groups with `**` need no care.
//! A search keeps pairs of state and node and takes each once: that makes it linear, lets nodes be shared or even form
//! cycles, and gives the order of the reference, which keeps the same pairs. A query set follows all states of all
//! queries together and remembers where a set of them leads for a name and a [`Kind`]. Nothing recurses on the tree.
//!
//! The crate knows nothing of tensors or quantizers: a tag is a text with levels, a class a name with ancestors.
#![forbid(unsafe_code)]

mod class;
mod collection;
mod context;
mod diagnosis;
mod error;
mod fragment;
mod kind;
pub mod language;
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
pub use kind::{AtomicKind, Kind};
pub use node::{Facts, Node};
pub use query_set::{Part, Path, QuerySet, Visit};
pub use search::{Query, SearchOptions, search};
pub use selector::{Segment, SegmentKind, Selector, Source};
pub use tag::{Tag, TagSet};
