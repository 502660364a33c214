//! What a field of a module may be, told by its type.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::fmt::Display;
use std::marker::PhantomData;
use std::ops::{Range, RangeInclusive};
use std::path::PathBuf;
use std::time::Duration;

use indexmap::IndexMap;

use super::{Module, Parameter, Visitor, VisitorMut};
use crate::quantization::quantizer::{QuantizerMetadata, QuantizerSlot};

/// A type that may be a field of a struct with `#[derive(Module)]`.
///
/// A macro sees the tokens of a field, not which traits its type has; this trait is where the compiler tells. It is
/// implemented for
///
/// - every [`Element`]: a module, a [`QuantizerSlot`], or an `Option` of either,
/// - every [`Parameter`], an `Option` of one, and lists and maps of either,
/// - every type that is [`Data`], which is not shown at all.
///
/// There is no implementation for other types, so a field is never left out in silence: a type that is neither is an
/// error at that field, and one says `#[module(skip)]` or implements [`Data`]. `Kind` is a marker that keeps these
/// cases apart; it is always inferred.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is neither a module, a quantizer slot, a parameter nor plain data",
    label = "a field of a module cannot have this type",
    note = "if it holds modules, slots or parameters: derive or implement `Module` for it",
    note = "if it is data: write `#[module(skip)]` above the field, or implement the marker trait `Data` for the type",
    note = "if it is a type parameter: bound it, as in `M: Module`",
    note = "children in a `HashMap` have no fixed order: use `BTreeMap` or `IndexMap`"
)]
pub trait Field<Kind> {
    /// Shows the visitor what the field is, under this name.
    fn show<'a>(&'a self, name: &str, visitor: &mut dyn Visitor<'a>);

    /// The same with mutable access.
    fn show_mut(&mut self, name: &str, visitor: &mut dyn VisitorMut);
}

/// The markers that tell the implementations of [`Field`] apart.
pub mod kind {
    /// A child of the tree, or an absent one: see [`Element`](super::Element).
    pub enum Child {}
    /// A parameter.
    pub enum Parameter {}
    /// A parameter that may be absent.
    pub enum OptionalParameter {}
    /// A list or map of parameters.
    pub enum Parameters {}
    /// A list or map of parameters that may be absent.
    pub enum OptionalParameters {}
    /// Data that is no part of the tree.
    pub enum Data {}
}

/// A child of the tree: a module, a quantizer slot, or an `Option` of either. What a list or a map of modules holds.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is neither a module nor a quantizer slot",
    note = "a list or map holds modules, `QuantizerSlot`s, or `Option`s of these"
)]
pub trait Element: Send + Sync + 'static {
    /// Shows the visitor this child under this name; nothing if it is absent.
    fn show<'a>(&'a self, name: &str, visitor: &mut dyn Visitor<'a>);

    /// The same with mutable access.
    fn show_mut(&mut self, name: &str, visitor: &mut dyn VisitorMut);
}

/// Plain data: a type whose values hold no module, slot or parameter. `#[derive(Module)]` passes over such fields.
///
/// Implemented for numbers, `bool`, `char`, strings, paths, durations, ranges, and for options, tuples and collections
/// of these. Implementing it for a settings type of one's own saves writing `#[module(skip)]` above each of its uses:
///
/// ```
/// use fastforward_core::module::Data;
/// struct Padding { top: usize, left: usize }
/// impl Data for Padding {}
/// ```
pub trait Data {}

#[diagnostic::do_not_recommend]
impl<E: Element> Field<kind::Child> for E {
    fn show<'a>(&'a self, name: &str, visitor: &mut dyn Visitor<'a>) {
        Element::show(self, name, visitor);
    }

    fn show_mut(&mut self, name: &str, visitor: &mut dyn VisitorMut) {
        Element::show_mut(self, name, visitor);
    }
}

#[diagnostic::do_not_recommend]
impl<P: Parameter> Field<kind::Parameter> for P {
    fn show<'a>(&'a self, name: &str, visitor: &mut dyn Visitor<'a>) {
        visitor.parameter(name, self);
    }

    fn show_mut(&mut self, name: &str, visitor: &mut dyn VisitorMut) {
        visitor.parameter(name, self);
    }
}

#[diagnostic::do_not_recommend]
impl<P: Parameter> Field<kind::OptionalParameter> for Option<P> {
    fn show<'a>(&'a self, name: &str, visitor: &mut dyn Visitor<'a>) {
        if let Some(parameter) = self {
            visitor.parameter(name, parameter);
        }
    }

    fn show_mut(&mut self, name: &str, visitor: &mut dyn VisitorMut) {
        if let Some(parameter) = self {
            visitor.parameter(name, parameter);
        }
    }
}

macro_rules! parameters {
    ($([$($generics:tt)*] $kind:ident: $list:ty, $item:ty;)*) => { $(
        /// Each parameter under the field's name, `.`, and its number or key.
        #[diagnostic::do_not_recommend]
        impl<$($generics)*> Field<kind::$kind> for $list {
            fn show<'a>(&'a self, name: &str, visitor: &mut dyn Visitor<'a>) {
                for (key, parameter) in self.entries() {
                    Field::<$item>::show(parameter, &format!("{name}.{key}"), visitor);
                }
            }

            fn show_mut(&mut self, name: &str, visitor: &mut dyn VisitorMut) {
                for (key, parameter) in self.entries_mut() {
                    Field::<$item>::show_mut(parameter, &format!("{name}.{key}"), visitor);
                }
            }
        }
    )* };
}

parameters! {
    [P: Parameter] Parameters: Vec<P>, kind::Parameter;
    [P: Parameter] OptionalParameters: Vec<Option<P>>, kind::OptionalParameter;
    [P: Parameter, const N: usize] Parameters: [P; N], kind::Parameter;
    [P: Parameter, const N: usize] OptionalParameters: [Option<P>; N], kind::OptionalParameter;
    [K: Display + Ord, P: Parameter] Parameters: BTreeMap<K, P>, kind::Parameter;
    [K: Display + Ord, P: Parameter] OptionalParameters: BTreeMap<K, Option<P>>, kind::OptionalParameter;
    [K: Display, P: Parameter, S] Parameters: IndexMap<K, P, S>, kind::Parameter;
    [K: Display, P: Parameter, S] OptionalParameters: IndexMap<K, Option<P>, S>, kind::OptionalParameter;
}

/// The parts of a list or map with their numbers or keys.
trait Entries {
    type Key<'k>: Display
    where
        Self: 'k;
    type Item;
    fn entries(&self) -> impl Iterator<Item = (Self::Key<'_>, &Self::Item)>;
    fn entries_mut(&mut self) -> impl Iterator<Item = (Self::Key<'_>, &mut Self::Item)>;
}

macro_rules! entries {
    ($([$($generics:tt)*] $list:ty: $key:ty, $item:ty => $($numbered:ident)?;)*) => { $(
        impl<$($generics)*> Entries for $list {
            type Key<'k> = $key where Self: 'k;
            type Item = $item;
            fn entries(&self) -> impl Iterator<Item = (Self::Key<'_>, &$item)> {
                self.iter()$(.$numbered())?
            }
            fn entries_mut(&mut self) -> impl Iterator<Item = (Self::Key<'_>, &mut $item)> {
                self.iter_mut()$(.$numbered())?
            }
        }
    )* };
}

entries! {
    [P] Vec<P>: usize, P => enumerate;
    [P, const N: usize] [P; N]: usize, P => enumerate;
    [K: Display + Ord, P] BTreeMap<K, P>: &'k K, P => ;
    [K: Display, P, S] IndexMap<K, P, S>: &'k K, P => ;
}

#[diagnostic::do_not_recommend]
impl<D: Data + ?Sized> Field<kind::Data> for D {
    fn show<'a>(&'a self, _name: &str, _visitor: &mut dyn Visitor<'a>) {}

    fn show_mut(&mut self, _name: &str, _visitor: &mut dyn VisitorMut) {}
}

#[diagnostic::do_not_recommend]
impl<M: Module> Element for M {
    fn show<'a>(&'a self, name: &str, visitor: &mut dyn Visitor<'a>) {
        visitor.module(name, self);
    }

    fn show_mut(&mut self, name: &str, visitor: &mut dyn VisitorMut) {
        visitor.module(name, self);
    }
}

#[diagnostic::do_not_recommend]
impl<M: Module> Element for Option<M> {
    fn show<'a>(&'a self, name: &str, visitor: &mut dyn Visitor<'a>) {
        if let Some(module) = self {
            visitor.module(name, module);
        }
    }

    fn show_mut(&mut self, name: &str, visitor: &mut dyn VisitorMut) {
        if let Some(module) = self {
            visitor.module(name, module);
        }
    }
}

impl Element for QuantizerSlot {
    fn show<'a>(&'a self, name: &str, visitor: &mut dyn Visitor<'a>) {
        visitor.slot(name, self);
    }

    fn show_mut(&mut self, name: &str, visitor: &mut dyn VisitorMut) {
        visitor.slot(name, self);
    }
}

impl Element for Option<QuantizerSlot> {
    fn show<'a>(&'a self, name: &str, visitor: &mut dyn Visitor<'a>) {
        if let Some(slot) = self {
            visitor.slot(name, slot);
        }
    }

    fn show_mut(&mut self, name: &str, visitor: &mut dyn VisitorMut) {
        if let Some(slot) = self {
            visitor.slot(name, slot);
        }
    }
}

/// The module that an enum's variant with one unnamed field stands for. Every module is one.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a module, and a variant with one unnamed field stands for the module in it",
    label = "not a module",
    note = "if it is data: write `#[module(skip)]` before it",
    note = "if it is a slot, a parameter or an optional module: give the field a name, `Variant {{ name: ... }}`",
    note = "if it holds modules, slots or parameters: derive or implement `Module` for it"
)]
pub trait Payload {
    /// The module.
    fn as_module(&self) -> &dyn Module;
    /// The module, mutably.
    fn as_module_mut(&mut self) -> &mut dyn Module;
}

#[diagnostic::do_not_recommend]
impl<M: Module> Payload for M {
    fn as_module(&self) -> &dyn Module {
        self
    }

    fn as_module_mut(&mut self) -> &mut dyn Module {
        self
    }
}

/// What a field with `#[module(aliases)]` holds: [`mpath::Aliases`], or an `Option` of these.
#[diagnostic::on_unimplemented(
    message = "`{Self}` holds no aliases",
    label = "a field with `#[module(aliases)]` is an `mpath::Aliases`, or an `Option` of one"
)]
pub trait HoldsAliases {
    /// The aliases, if there are some.
    fn aliases(&self) -> Option<&mpath::Aliases>;
}

impl HoldsAliases for mpath::Aliases {
    fn aliases(&self) -> Option<&mpath::Aliases> {
        Some(self)
    }
}

impl HoldsAliases for Option<mpath::Aliases> {
    fn aliases(&self) -> Option<&mpath::Aliases> {
        self.as_ref()
    }
}

macro_rules! data {
    ($($ty:ty),* $(,)?) => { $(impl Data for $ty {})* };
}

data!(
    (),
    bool,
    char,
    u8,
    u16,
    u32,
    u64,
    u128,
    usize,
    i8,
    i16,
    i32,
    i64,
    i128,
    isize,
    f32,
    f64,
    half::f16,
    half::bf16,
    str,
    String,
    PathBuf,
    Duration,
    mpath::Aliases,
    mpath::Class,
    mpath::Tag,
    mpath::TagSet,
    QuantizerMetadata,
);

impl<T: ?Sized> Data for PhantomData<T> {}
impl<D: Data> Data for Option<D> {}
impl<D: Data> Data for Vec<D> {}
impl<D: Data> Data for [D] {}
impl<D: Data, const N: usize> Data for [D; N] {}
impl<D: Data> Data for VecDeque<D> {}
impl<D: Data> Data for BTreeSet<D> {}
impl<D: Data, S> Data for HashSet<D, S> {}
impl<K: Data, D: Data> Data for BTreeMap<K, D> {}
impl<K: Data, D: Data, S> Data for HashMap<K, D, S> {}
impl<K: Data, D: Data, S> Data for IndexMap<K, D, S> {}
impl<D: Data> Data for Range<D> {}
impl<D: Data> Data for RangeInclusive<D> {}
impl<D: Data + ?Sized> Data for &D {}
impl<D: Data + ?Sized> Data for Box<D> {}
impl<D: Data + ?Sized> Data for std::sync::Arc<D> {}

macro_rules! data_tuples {
    ($(($($name:ident)+))*) => { $(impl<$($name: Data),+> Data for ($($name,)+) {})* };
}

data_tuples!((A) (A B) (A B C) (A B C D) (A B C D E) (A B C D E F));
