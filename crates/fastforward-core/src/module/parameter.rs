//! Weights and biases: what a model learns.

use std::any::{Any, TypeId};
use std::collections::HashMap;
use std::sync::Arc;

use super::walk::{Part, Step, walk};
use super::{Module, VisitorMut};
use crate::quantization::quantizer::QuantizerSlot;

/// Data that belongs to a model: a weight, a bias.
///
/// The tree knows its shape and size. What holds the elements is the engine's affair, which gets its own type back with
/// [`downcast_ref`](trait.Parameter.html#method.downcast_ref) and
/// [`downcast_mut`](trait.Parameter.html#method.downcast_mut), through `Box` and `Arc` too:
///
/// ```
/// use fastforward_core::module::{Module, Parameter, named_parameters};
/// use std::sync::Arc;
///
/// struct Weight(Vec<f32>, [usize; 1]);
///
/// impl Parameter for Weight {
///     fn shape(&self) -> &[usize] { &self.1 }
///     fn dtype(&self) -> &str { "f32" }
///     fn size_bytes(&self) -> usize { 4 * self.0.len() }
/// }
///
/// #[derive(Module)]
/// # #[module(crate = "fastforward_core")]
/// struct Scale { weight: Arc<Weight> }
///
/// let model = Scale { weight: Arc::new(Weight(vec![1.0, 2.0], [2])) };
/// let (name, parameter) = &named_parameters(&model)[0];
/// assert_eq!(name, "weight");
/// assert_eq!(parameter.downcast_ref::<Weight>().map(|weight| weight.0[1]), Some(2.0));
/// ```
pub trait Parameter: Any + Send + Sync {
    /// One extent per dimension.
    fn shape(&self) -> &[usize];
    /// The name of the element type, `f32`.
    fn dtype(&self) -> &str;
    /// The bytes the elements take.
    fn size_bytes(&self) -> usize;

    /// A number that two parameters share exactly when they are handles of the same data, as tied weights are; `None` when
    /// this is the only handle. An `Arc` answers with its address where the parameter in it says nothing.
    fn identity(&self) -> Option<usize> {
        None
    }
}

impl dyn Parameter {
    /// This parameter as the type it has, or as what a `Box` or `Arc` that it is points to.
    pub fn downcast_ref<P: Parameter>(&self) -> Option<&P> {
        let any: &dyn Any = self;
        if let Some(parameter) = any.downcast_ref::<P>() {
            Some(parameter)
        } else if let Some(pointer) = any.downcast_ref::<Arc<P>>() {
            Some(pointer)
        } else if let Some(pointer) = any.downcast_ref::<Box<P>>() {
            Some(pointer)
        } else if let Some(pointer) = any.downcast_ref::<Arc<dyn Parameter>>() {
            pointer.as_ref().downcast_ref()
        } else if let Some(pointer) = any.downcast_ref::<Box<dyn Parameter>>() {
            pointer.as_ref().downcast_ref()
        } else {
            None
        }
    }

    /// The same with mutable access; of an `Arc` only while it has one owner.
    pub fn downcast_mut<P: Parameter>(&mut self) -> Option<&mut P> {
        let any: &mut dyn Any = self;
        if any.is::<P>() {
            any.downcast_mut::<P>()
        } else if any.is::<Arc<P>>() {
            Arc::get_mut(any.downcast_mut::<Arc<P>>()?)
        } else if any.is::<Box<P>>() {
            any.downcast_mut::<Box<P>>().map(AsMut::as_mut)
        } else if any.is::<Arc<dyn Parameter>>() {
            Arc::get_mut(any.downcast_mut::<Arc<dyn Parameter>>()?)?.downcast_mut()
        } else {
            any.downcast_mut::<Box<dyn Parameter>>()?.as_mut().downcast_mut()
        }
    }
}

/// A parameter of a model, with every name under which it can be reached.
#[derive(Clone)]
pub struct ParameterEntry<'a> {
    /// Full names joined with `.`, in declaration order; the first is the one that is shown.
    pub names: Vec<String>,
    /// The parameter.
    pub parameter: &'a dyn Parameter,
}

impl ParameterEntry<'_> {
    /// The name that is shown.
    pub fn name(&self) -> &str {
        &self.names[0]
    }
}

impl std::fmt::Debug for ParameterEntry<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ParameterEntry")
            .field("names", &self.names)
            .field("dtype", &self.parameter.dtype())
            .field("shape", &self.parameter.shape())
            .finish()
    }
}

/// Every parameter of a model with its full name, in declaration order. A shared one comes once per name.
pub fn named_parameters(model: &dyn Module) -> Vec<(String, &dyn Parameter)> {
    let mut found = Vec::new();
    walk(model, |Step { full_name, part, .. }| {
        if let Part::Parameter(parameter) = part {
            found.push((full_name.to_owned(), parameter));
        }
    });
    found
}

/// Every parameter of a model once, with all its names, in declaration order.
///
/// Parameters are one when they have the same [identity](Parameter::identity), or are the very same field, reached through
/// a shared module.
pub fn named_shared_parameters(model: &dyn Module) -> Vec<ParameterEntry<'_>> {
    let mut entries: Vec<ParameterEntry<'_>> = Vec::new();
    let mut index: HashMap<Place, usize> = HashMap::new();
    walk(model, |Step { full_name, part, .. }| {
        let Part::Parameter(parameter) = part else { return };
        let new = entries.len();
        let at = match Place::of(parameter) {
            Some(place) => *index.entry(place).or_insert(new),
            None => new,
        };
        if at == new {
            entries.push(ParameterEntry { names: Vec::new(), parameter });
        }
        entries[at].names.push(full_name.to_owned());
    });
    entries
}

/// What tells parameters apart.
#[derive(PartialEq, Eq, Hash)]
enum Place {
    Identity(usize),
    /// A struct may lie at the address of its first field; then their types differ.
    Address(usize, TypeId),
}

impl Place {
    /// `None` for a type without size: its values may all lie at one address.
    fn of(parameter: &dyn Parameter) -> Option<Self> {
        if let Some(identity) = parameter.identity() {
            return Some(Self::Identity(identity));
        }
        let any: &dyn Any = parameter;
        let address = std::ptr::from_ref(parameter).cast::<()>().addr();
        (size_of_val(parameter) > 0).then(|| Self::Address(address, any.type_id()))
    }
}

/// Calls `change` with every parameter that has one owner, and its full name, in declaration order. Modules behind an
/// `Arc` with several owners are passed over; their parameters have to change through `&self`, if they can.
///
/// The walk needs stack for each level of the model: some thousands of levels are safe.
pub fn for_each_parameter_mut(
    model: &mut dyn Module,
    change: &mut dyn FnMut(&str, &mut dyn Parameter),
) {
    struct Walk<'f> {
        full_name: String,
        change: &'f mut dyn FnMut(&str, &mut dyn Parameter),
    }
    impl Walk<'_> {
        fn under(&mut self, name: &str, run: impl FnOnce(&mut Self)) {
            let around = self.full_name.len();
            if around > 0 {
                self.full_name.push('.');
            }
            self.full_name.push_str(name);
            run(self);
            self.full_name.truncate(around);
        }
    }
    impl VisitorMut for Walk<'_> {
        fn module(&mut self, name: &str, module: &mut dyn Module) {
            self.under(name, |walk| module.visit_mut(walk));
        }
        fn slot(&mut self, _name: &str, _slot: &mut QuantizerSlot) {}
        fn parameter(&mut self, name: &str, parameter: &mut dyn Parameter) {
            self.under(name, |walk| (walk.change)(&walk.full_name, parameter));
        }
    }
    model.visit_mut(&mut Walk { full_name: String::new(), change });
}

impl<P: Parameter + ?Sized> Parameter for Box<P> {
    fn shape(&self) -> &[usize] {
        (**self).shape()
    }

    fn dtype(&self) -> &str {
        (**self).dtype()
    }

    fn size_bytes(&self) -> usize {
        (**self).size_bytes()
    }

    fn identity(&self) -> Option<usize> {
        (**self).identity()
    }
}

impl<P: Parameter + ?Sized> Parameter for Arc<P> {
    fn shape(&self) -> &[usize] {
        (**self).shape()
    }

    fn dtype(&self) -> &str {
        (**self).dtype()
    }

    fn size_bytes(&self) -> usize {
        (**self).size_bytes()
    }

    fn identity(&self) -> Option<usize> {
        (**self).identity().or_else(|| Some(Arc::as_ptr(self).cast::<()>().addr()))
    }
}
