//! A model as a tree that queries can walk.

use std::collections::{HashMap, HashSet};

use mpath::{Class, Facts, Kind, Node, TagSet};

use super::walk::{Part, Step, walk};
use super::{Module, Visitor};
use crate::quantization::quantizer::QuantizerSlot;

/// A node of a model: a module, or the quantizer that stands in a slot.
#[derive(Clone, Copy)]
pub enum NodeRef<'a> {
    /// A module.
    Module(&'a dyn Module),
    /// A quantizer slot. To a query it is the quantizer that stands in it now.
    Slot(&'a QuantizerSlot),
}

impl<'a> NodeRef<'a> {
    /// The slot, if this node is one.
    pub fn as_slot(self) -> Option<&'a QuantizerSlot> {
        match self {
            NodeRef::Slot(slot) => Some(slot),
            NodeRef::Module(_) => None,
        }
    }

    /// The module, if this node is one.
    pub fn as_module(self) -> Option<&'a dyn Module> {
        match self {
            NodeRef::Module(module) => Some(module),
            NodeRef::Slot(_) => None,
        }
    }
}

/// Two references are equal when they are the same node of the same model.
impl PartialEq for NodeRef<'_> {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (NodeRef::Slot(a), NodeRef::Slot(b)) => a.id() == b.id(),
            // A module may lie at the address of its first field; then their types differ.
            (NodeRef::Module(a), NodeRef::Module(b)) => {
                std::ptr::addr_eq(*a, *b) && type_of(*a) == type_of(*b)
            }
            _ => false,
        }
    }
}

impl Eq for NodeRef<'_> {}

fn type_of(module: &dyn Module) -> std::any::TypeId {
    let module: &dyn std::any::Any = module;
    module.type_id()
}

impl Facts for NodeRef<'_> {
    fn class(&self) -> Class {
        match self {
            NodeRef::Module(module) => module.class(),
            NodeRef::Slot(slot) => slot.class(),
        }
    }

    fn tags(&self) -> Option<TagSet> {
        match self {
            NodeRef::Module(_) => None,
            NodeRef::Slot(slot) => Some(slot.tags()),
        }
    }

    #[inline]
    fn kind(&self) -> Kind {
        match self {
            NodeRef::Module(module) => Kind::new(module.class(), None),
            NodeRef::Slot(slot) => slot.kind(),
        }
    }
}

impl Node for NodeRef<'_> {
    #[inline]
    fn for_each_child(&self, visit: &mut dyn FnMut(&str, Self)) {
        if let NodeRef::Module(module) = self {
            module.visit(&mut Children(visit));
        }
    }

    #[inline]
    fn identity(&self) -> Option<usize> {
        match self {
            NodeRef::Module(module) => module.identity(),
            NodeRef::Slot(slot) => Some(slot.id()),
        }
    }

    #[inline]
    fn is_leaf(&self) -> bool {
        matches!(self, NodeRef::Slot(_))
    }
}

struct Children<'f, 'a>(&'f mut dyn FnMut(&str, NodeRef<'a>));

impl<'a> Visitor<'a> for Children<'_, 'a> {
    fn module(&mut self, name: &str, module: &'a dyn Module) {
        (self.0)(name, NodeRef::Module(module));
    }

    fn slot(&mut self, name: &str, slot: &'a QuantizerSlot) {
        (self.0)(name, NodeRef::Slot(slot));
    }
}

/// A slot of a model, with every name under which it can be reached.
#[derive(Clone, Debug)]
pub struct SlotEntry {
    /// Full names joined with `.`, in declaration order; the first is the one that is shown.
    pub names: Vec<String>,
    /// The slot.
    pub slot: QuantizerSlot,
}

impl SlotEntry {
    /// The name that is shown.
    pub fn name(&self) -> &str {
        &self.names[0]
    }
}

/// Every slot of a model, each once, in declaration order.
pub fn named_slots(model: &dyn Module) -> Vec<SlotEntry> {
    let mut entries: Vec<SlotEntry> = Vec::new();
    let mut index: HashMap<usize, usize> = HashMap::new();
    walk(model, |Step { full_name, part, .. }| {
        let Part::Slot(slot) = part else { return };
        let at = *index.entry(slot.id()).or_insert_with(|| {
            entries.push(SlotEntry { names: Vec::new(), slot: slot.clone() });
            entries.len() - 1
        });
        entries[at].names.push(full_name.to_owned());
    });
    entries
}

/// Gives every slot of a model its full name as [label](QuantizerSlot::label); a slot with several names gets the first.
///
/// Initializing a model by rules and loading a quantization state do the same; calibration labels the slots that have no
/// label yet.
///
/// ```
/// # use fastforward_core::quantization::QuantizerSlot;
/// use fastforward_core::module::name_slots;
/// let model = vec![vec![QuantizerSlot::input()]];
/// name_slots(&model);
/// assert_eq!(model[0][0].label().as_deref(), Some("0.0"));
/// ```
pub fn name_slots(model: &dyn Module) {
    let mut named: HashSet<usize> = HashSet::new();
    walk(model, |Step { full_name, part, .. }| {
        if let Part::Slot(slot) = part
            && named.insert(slot.id())
        {
            slot.set_label(full_name);
        }
    });
}
