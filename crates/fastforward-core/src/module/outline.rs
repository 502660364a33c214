//! The printed tree.

use std::fmt;

use mpath::Class;
use serde::Serialize;

use super::{Module, Parameter, Visitor};
use crate::quantization::quantizer::QuantizerSlot;

/// A model as an indented tree: one line per module, slot and parameter.
///
/// ```text
/// conv1: Conv
///   weight: f32 [16, 1, 3, 3]
///   input_quantizer: QuantizerStub #activation/input
///   weight_quantizer: LinearQuantizer(num_bits=8, symmetric=True, granularity=PerChannel(channel=0)) #parameter/weight
/// ```
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Outline {
    /// The root module. Its name is empty.
    pub root: OutlineNode,
}

/// One line of an [`Outline`] and the lines indented below it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct OutlineNode {
    /// The name among the parent's children.
    pub name: String,
    /// `module`, `slot` or `parameter`.
    pub kind: &'static str,
    /// The class of a module or of the quantizer in a slot; the element type of a parameter.
    pub class: String,
    /// The quantizer in a slot with its settings, when it is not a stub.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub quantizer: Option<String>,
    /// The shape of a parameter, or of the data a slot sees when that is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shape: Option<Vec<usize>>,
    /// The bytes a parameter takes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size_bytes: Option<usize>,
    /// The tags of a slot that are not prefixes of its other tags.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tags: Vec<String>,
    /// What stands below.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub children: Vec<OutlineNode>,
}

impl Outline {
    /// The outline of a model.
    pub fn new(model: &dyn Module) -> Self {
        let mut root = OutlineNode::of_module("", model.class());
        model.visit(&mut Builder { node: &mut root });
        Self { root }
    }
}

impl OutlineNode {
    fn of_module(name: &str, class: Class) -> Self {
        Self {
            name: name.to_owned(),
            kind: "module",
            class: class.name().to_owned(),
            quantizer: None,
            shape: None,
            size_bytes: None,
            tags: vec![],
            children: vec![],
        }
    }
}

struct Builder<'n> {
    node: &'n mut OutlineNode,
}

impl<'a> Visitor<'a> for Builder<'_> {
    fn module(&mut self, name: &str, module: &'a dyn Module) {
        let mut child = OutlineNode::of_module(name, module.class());
        module.visit(&mut Builder { node: &mut child });
        self.node.children.push(child);
    }

    fn slot(&mut self, name: &str, slot: &'a QuantizerSlot) {
        let quantizer = slot.quantizer();
        let metadata = slot.metadata();
        self.node.children.push(OutlineNode {
            kind: "slot",
            quantizer: (!quantizer.is_stub()).then(|| quantizer.to_string()),
            shape: metadata.shape().map(<[usize]>::to_vec),
            tags: metadata.leaf_tags().iter().map(ToString::to_string).collect(),
            ..OutlineNode::of_module(name, quantizer.class())
        });
    }

    fn parameter(&mut self, name: &str, parameter: &'a dyn Parameter) {
        self.node.children.push(OutlineNode {
            kind: "parameter",
            class: parameter.dtype().to_owned(),
            shape: Some(parameter.shape().to_vec()),
            size_bytes: Some(parameter.size_bytes()),
            ..OutlineNode::of_module(name, super::classes::module())
        });
    }
}

impl fmt::Display for Outline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.root.class)?;
        for child in &self.root.children {
            child.write(f, 1)?;
        }
        Ok(())
    }
}

impl OutlineNode {
    fn write(&self, f: &mut fmt::Formatter<'_>, depth: usize) -> fmt::Result {
        let label = self.quantizer.as_ref().unwrap_or(&self.class);
        write!(f, "{:indent$}{}: {label}", "", self.name, indent = 2 * depth)?;
        if let Some(shape) = &self.shape {
            write!(f, " {shape:?}")?;
        }
        for tag in &self.tags {
            write!(f, " {tag}")?;
        }
        writeln!(f)?;
        self.children.iter().try_for_each(|child| child.write(f, depth + 1))
    }
}
