//! A graph as a tree of modules with quantizer slots.

mod build;
pub mod classes;
mod context;
mod dtypes;
mod roles;
mod weights;

use std::collections::{BTreeSet, HashMap, HashSet};
use std::fmt;

use fastforward_core::module::{Module, Parameter, Visitor, VisitorMut};
use fastforward_core::quantization::QuantizerSlot;
use mpath::Class;

pub use roles::Role;

use crate::graph::Model;

/// A graph seen as a tree of modules.
///
/// Node names give the paths: the node `/encoder/layer.0/MatMul` is the module `encoder.layer.0.MatMul`; a node without
/// a name is called after its operator and position, `Conv_3`. Each quantizable operand is a slot of its node:
/// `input_quantizer` (`input_quantizer_1`, .. for further ones), `weight_quantizer`, `bias_quantizer`,
/// `constant_quantizer`, `output_quantizer`, tagged by role and by the operators next to it.
///
/// Weights without a graph make a tree of their names: `layers.0.q_proj.weight` is the parameter `weight` of the module
/// `layers.0.q_proj`. Their classes are what the ranks of the parameters and the name of the module tell: a module with a
/// `weight` of two axes is a `Linear`, or an `Embedding` where its name says so.
///
/// Nodes inside `If`, `Loop` and `Scan` stand below the node that holds them. Their constants have slots; their
/// activations have none, because no engine shows them.
pub struct Tree {
    root: GraphModule,
    sites: Vec<Site>,
}

/// A place for a quantizer: a slot and the operand it stands at.
#[derive(Clone, Debug)]
pub struct Site {
    /// The full name of the slot, `conv1.weight_quantizer`.
    pub name: String,
    /// The slot. Nodes that read the same constant in the same role share one slot.
    pub slot: QuantizerSlot,
    /// What the operand is to the node.
    pub role: Role,
    /// The node.
    pub node: NodeId,
    /// The position among the node's inputs, or outputs for [`Role::Output`].
    pub position: usize,
    /// The name of the value in the graph.
    pub value: String,
    /// The axis of output channels, for weights that have one.
    pub channel_axis: Option<usize>,
}

/// Where a node is: the way through nested graphs, then its position.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeId {
    /// The nested graphs around the node, outermost first; empty for a node of the main graph.
    pub graph: Vec<NestedGraph>,
    /// The position among the nodes of the innermost graph.
    pub index: usize,
}

/// One step into a nested graph.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NestedGraph {
    /// The position of the node that holds the graph.
    pub node: usize,
    /// The attribute that holds the graph, `then_branch`.
    pub attribute: String,
}

impl Tree {
    /// The tree of a model's graph, or of the names of its weights where it has none. All slots are stubs.
    pub fn new(model: &Model) -> Self {
        if model.is_weights() { weights::build(model) } else { build::build(model) }
    }

    /// The graph as a module.
    pub fn root(&self) -> &dyn Module {
        &self.root
    }

    /// Every place for a quantizer, in the order of the nodes.
    pub fn sites(&self) -> &[Site] {
        &self.sites
    }

    /// The sites whose slot holds a quantizer.
    pub fn set_sites(&self) -> impl Iterator<Item = &Site> {
        self.sites.iter().filter(|site| !site.slot.is_stub())
    }

    /// The first site of each slot that holds a quantizer: what calibration observes.
    pub fn set_slots(&self) -> impl Iterator<Item = &Site> {
        let mut seen = HashSet::new();
        self.set_sites().filter(move |site| seen.insert(site.slot.id()))
    }

    /// The classes that occur in the tree, in the order in which they first do.
    pub fn classes(&self) -> Vec<Class> {
        let mut classes = Vec::new();
        self.root.collect_classes(&mut BTreeSet::new(), &mut classes);
        classes
    }
}

impl fmt::Debug for Tree {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tree").field("sites", &self.sites).finish_non_exhaustive()
    }
}

/// A node, a scope, or the whole graph.
struct GraphModule {
    class: Class,
    children: Vec<(String, Child)>,
    /// Where the child modules stand among the children.
    modules: HashMap<String, usize>,
}

enum Child {
    Module(GraphModule),
    Slot(QuantizerSlot),
    Parameter(ConstantInfo),
}

/// A constant of the graph, as printing shows it.
struct ConstantInfo {
    shape: Vec<usize>,
    dtype: &'static str,
    size_bytes: usize,
}

impl GraphModule {
    fn new(class: Class) -> Self {
        Self { class, children: Vec::new(), modules: HashMap::new() }
    }

    fn collect_classes(&self, found: &mut BTreeSet<&'static str>, classes: &mut Vec<Class>) {
        if found.insert(self.class.path()) {
            classes.push(self.class);
        }
        for (_, child) in &self.children {
            if let Child::Module(module) = child {
                module.collect_classes(found, classes);
            }
        }
    }
}

impl Module for GraphModule {
    fn class(&self) -> Class {
        self.class
    }

    fn visit<'a>(&'a self, visitor: &mut dyn Visitor<'a>) {
        for (name, child) in &self.children {
            match child {
                Child::Module(module) => visitor.module(name, module),
                Child::Slot(slot) => visitor.slot(name, slot),
                Child::Parameter(parameter) => visitor.parameter(name, parameter),
            }
        }
    }

    fn visit_mut(&mut self, visitor: &mut dyn VisitorMut) {
        for (name, child) in &mut self.children {
            match child {
                Child::Module(module) => visitor.module(name, module),
                Child::Slot(slot) => visitor.slot(name, slot),
                Child::Parameter(parameter) => visitor.parameter(name, parameter),
            }
        }
    }
}

impl Parameter for ConstantInfo {
    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn dtype(&self) -> &str {
        self.dtype
    }

    fn size_bytes(&self) -> usize {
        self.size_bytes
    }
}
