//! The tree of modules.

pub mod classes;
mod containers;
pub mod field;
mod outline;
mod parameter;
mod tree;
mod walk;

use std::any::Any;

use mpath::Class;

pub use field::{Data, Element, Field};
pub use outline::{Outline, OutlineNode};
pub use parameter::{
    Parameter, ParameterEntry, for_each_parameter_mut, named_parameters, named_shared_parameters,
};
pub use tree::{NodeRef, SlotEntry, name_slots, named_slots};

/// Writes [`Module`](trait@Module) from the fields of a struct or the variants of an enum.
///
/// ```
/// use fastforward_core::module::{Module, Outline};
/// use fastforward_core::quantization::QuantizerSlot;
///
/// #[derive(Module)]
/// # #[module(crate = "fastforward_core")]
/// struct Linear {
///     in_features: usize,
///     weight_quantizer: QuantizerSlot,
///     output_quantizer: Option<QuantizerSlot>,
/// }
///
/// #[derive(Module)]
/// # #[module(crate = "fastforward_core")]
/// struct Mlp {
///     layers: Vec<Linear>,
///     #[module(rename = "head")]
///     classifier: Box<dyn Module>,
/// }
///
/// let linear = |n| Linear {
///     in_features: n,
///     weight_quantizer: QuantizerSlot::weight(&[2, n]),
///     output_quantizer: None,
/// };
/// let model = Mlp { layers: vec![linear(3), linear(2)], classifier: Box::new(linear(2)) };
/// let expected = "
/// Mlp
///   layers: ModuleList
///     0: Linear
///       weight_quantizer: QuantizerStub [2, 3] #parameter/weight
///     1: Linear
///       weight_quantizer: QuantizerStub [2, 2] #parameter/weight
///   head: Linear
///     weight_quantizer: QuantizerStub [2, 2] #parameter/weight
/// ";
/// assert_eq!(Outline::new(&model).to_string(), expected.trim_start());
/// ```
///
/// # What a field is
///
/// Its type says, without attributes, in generic structs too (`struct Residual<M: Module> { inner: M }`):
///
/// | type | in the tree |
/// |---|---|
/// | `M: Module`, `Box<M>`, `Box<dyn Module>`, `Box<dyn Layer>` of your own `trait Layer: Module` | a child under the field's name |
/// | `Arc<M>`, `Arc<dyn Module>` | the same; all owners show one [identity](Module::identity) |
/// | `Vec` or array of children | a `ModuleList`; its children are `0`, `1`, ... |
/// | `BTreeMap` or `IndexMap` of children | a `ModuleDict`; its children are named by the keys |
/// | [`QuantizerSlot`] | a slot |
/// | a [`Parameter`] | a parameter |
/// | `Vec`, array, `BTreeMap` or `IndexMap` of parameters | parameters named `field.0` or `field.key` |
/// | `Option` of a child, slot or parameter | the same, or absent |
/// | numbers, strings and collections of these: [`Data`] | not shown |
///
/// Any other type is a compile error at that field. A macro cannot see which traits a type has, and guessing "data"
/// would lose a module in silence; so the [`Field`] trait decides, and what it does not know is said:
/// `#[module(skip)]`, or [`Data`] implemented once for a settings type.
///
/// Fields of a tuple struct are named `0`, `1`, ...
///
/// # Enums
///
/// A variant with one unnamed field *is* the module in it: it shows that module's class and children, so that in
/// `enum Block { Conv(Conv), Attention(Attention) }` queries see `blocks/0/weight_quantizer` and `[cls:Conv]`. Any
/// other variant has the enum's class and shows its fields as a struct does.
///
/// # Attributes
///
/// | on the type | |
/// |---|---|
/// | `#[module(class = "Name")]` | the short name of the class, instead of the type's |
/// | `#[module(class = expression)]` | a [class](Class) that exists already: `classes::linear()` |
/// | `#[module(extends = expression)]` | a class that it extends, besides `Module`; may be repeated, or a list `[a(), b()]` |
/// | `#[module(crate = "path")]` | where this library is found, if not at `::fastforward` |
///
/// | on a field | |
/// |---|---|
/// | `#[module(skip)]` | the field is not shown |
/// | `#[module(rename = "name")]` | the child's name, instead of the field's |
/// | `#[module(aliases)]` | the field holds the [aliases](Module::aliases) that queries on this model may use |
///
/// The path of the class is the module path of the type and the name of the class, `my_crate::net::Linear`.
pub use fastforward_macros::Module;

use crate::quantization::quantizer::QuantizerSlot;

/// A named part of a model, with parts of its own.
///
/// [`#[derive(Module)]`](derive@Module) writes this from the fields of a struct or enum; writing it by hand is a line per
/// child:
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
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a module",
    label = "not a module",
    note = "derive or implement `Module` for it"
)]
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
