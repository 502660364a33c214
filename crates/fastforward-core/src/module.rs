//! The tree of modules.

pub mod classes;
mod outline;
mod tree;

use std::any::Any;

use mpath::Class;

pub use outline::{Outline, OutlineNode};
pub use tree::{NodeRef, SlotEntry, named_parameters, named_slots};

use crate::quantization::quantizer::QuantizerSlot;

/// A named part of a model, with parts of its own.
///
/// `#[derive(Module)]` (crate `fastforward-macros`) writes this from the fields of a struct; writing it by hand is three
/// lines per child:
///
/// ```
/// use fastforward_core::module::{Module, Visitor, VisitorMut, classes, named_slots};
/// use fastforward_core::quantization::quantizer::QuantizerSlot;
/// use mpath::Class;
///
/// struct Layer { weight_quantizer: QuantizerSlot }
///
/// impl Module for Layer {
///     fn class(&self) -> Class {
///         Class::define("Layer", "example::Layer", &[classes::module()])
///     }
///     fn visit<'a>(&'a self, visitor: &mut dyn Visitor<'a>) {
///         visitor.slot("weight_quantizer", &self.weight_quantizer);
///     }
///     fn visit_mut(&mut self, visitor: &mut dyn VisitorMut) {
///         visitor.slot("weight_quantizer", &mut self.weight_quantizer);
///     }
/// }
///
/// let layer = Layer { weight_quantizer: QuantizerSlot::weight(&[8, 4]) };
/// assert_eq!(named_slots(&layer)[0].names, ["weight_quantizer"]);
/// ```
pub trait Module: Any + Send + Sync {
    /// What this module is: the class that `[cls:...]` sees.
    fn class(&self) -> Class;

    /// Shows the visitor each child, slot and parameter once, in declaration order.
    fn visit<'a>(&'a self, visitor: &mut dyn Visitor<'a>);

    /// The same with mutable access, in the same order.
    fn visit_mut(&mut self, visitor: &mut dyn VisitorMut);

    /// Aliases that queries on this model may use when none are given (spec §1.7).
    fn aliases(&self) -> Option<&mpath::Aliases> {
        None
    }

    /// A number that two references share exactly when they are the same module; `None` when it has one owner, as a
    /// plain field does. A module held by several owners (`Arc<M>`) returns its address.
    fn identity(&self) -> Option<usize> {
        None
    }
}

/// What a module shows of itself, borrowed.
pub trait Visitor<'a> {
    /// A child module.
    fn module(&mut self, name: &str, module: &'a dyn Module);
    /// A place for a quantizer.
    fn slot(&mut self, name: &str, slot: &'a QuantizerSlot);
    /// A parameter: data that belongs to the model. Visitors that do not care inherit this empty body.
    fn parameter(&mut self, name: &str, parameter: &'a dyn Parameter) {
        let _ = (name, parameter);
    }
}

/// What a module shows of itself, mutably.
pub trait VisitorMut {
    /// A child module.
    fn module(&mut self, name: &str, module: &mut dyn Module);
    /// A place for a quantizer.
    fn slot(&mut self, name: &str, slot: &mut QuantizerSlot);
    /// A parameter. Visitors that do not care inherit this empty body.
    fn parameter(&mut self, name: &str, parameter: &mut dyn Parameter) {
        let _ = (name, parameter);
    }
}

/// Data that belongs to a model: a weight, a bias.
pub trait Parameter: Any + Send + Sync {
    /// One extent per dimension.
    fn shape(&self) -> &[usize];
    /// The name of the element type, `f32`.
    fn dtype(&self) -> &str;
    /// The bytes the elements take.
    fn size_bytes(&self) -> usize;
}
