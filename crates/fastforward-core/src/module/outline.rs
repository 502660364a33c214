//! The printed tree.

use std::fmt;

use mpath::Class;
use serde::Serialize;

use super::walk::{Part, Step, walk};
use super::{Module, Parameter};
use crate::quantization::quantizer::QuantizerSlot;

/// A model as an indented tree: one line per module, slot and parameter.
///
/// ```text
/// conv1: Conv
///   weight: f32 [16, 1, 3, 3]
///   input_quantizer: QuantizerStub #activation/input
///   weight_quantizer: LinearQuantizer(num_bits=8, symmetric=True, granularity=PerChannel(channel=0)) #parameter/weight
/// ```
///
/// Making, printing and dropping one needs no stack, however deep the model; cloning, comparing and serializing one go as
/// deep as it does.
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
        // The modules around the part that comes next, the root first.
        let mut open = vec![OutlineNode::of_module("", model.class())];
        walk(model, |Step { depth, name, part, .. }| {
            close(&mut open, depth);
            open.push(match part {
                Part::Module(module) => OutlineNode::of_module(name, module.class()),
                Part::Slot(slot) => OutlineNode::of_slot(name, slot),
                Part::Parameter(parameter) => OutlineNode::of_parameter(name, parameter),
            });
        });
        close(&mut open, 1);
        Self { root: open.remove(0) }
    }
}

/// Hands nodes to the nodes around them until `depth` are left.
fn close(open: &mut Vec<OutlineNode>, depth: usize) {
    while open.len() > depth.max(1) {
        let done = open.pop();
        if let Some(around) = open.last_mut() {
            around.children.extend(done);
        }
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

    fn of_slot(name: &str, slot: &QuantizerSlot) -> Self {
        let quantizer = slot.quantizer();
        let metadata = slot.metadata();
        let mut node = Self::of_module(name, quantizer.class());
        node.kind = "slot";
        node.quantizer = (!quantizer.is_stub()).then(|| quantizer.to_string());
        node.shape = metadata.shape().map(<[usize]>::to_vec);
        node.tags = metadata.leaf_tags().iter().map(ToString::to_string).collect();
        node
    }

    fn of_parameter(name: &str, parameter: &dyn Parameter) -> Self {
        let mut node = Self::of_module(name, super::classes::module());
        node.kind = "parameter";
        node.class = parameter.dtype().to_owned();
        node.shape = Some(parameter.shape().to_vec());
        node.size_bytes = Some(parameter.size_bytes());
        node
    }
}

/// Takes the tree apart level by level: a deep one would otherwise need as much stack.
impl Drop for OutlineNode {
    fn drop(&mut self) {
        let mut below = std::mem::take(&mut self.children);
        while let Some(mut node) = below.pop() {
            below.append(&mut node.children);
        }
    }
}

impl fmt::Display for Outline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.root.class)?;
        let mut waiting: Vec<(usize, &OutlineNode)> =
            self.root.children.iter().rev().map(|child| (1, child)).collect();
        while let Some((depth, node)) = waiting.pop() {
            node.write_line(f, depth)?;
            waiting.extend(node.children.iter().rev().map(|child| (depth + 1, child)));
        }
        Ok(())
    }
}

impl OutlineNode {
    fn write_line(&self, f: &mut fmt::Formatter<'_>, depth: usize) -> fmt::Result {
        let label = self.quantizer.as_ref().unwrap_or(&self.class);
        write!(f, "{:indent$}{}: {label}", "", self.name, indent = 2 * depth)?;
        if let Some(shape) = &self.shape {
            write!(f, " {shape:?}")?;
        }
        for tag in &self.tags {
            write!(f, " {tag}")?;
        }
        writeln!(f)
    }
}
