//! The module trees of the golden files.

use std::collections::BTreeMap;
use std::sync::Arc;

use fastforward::module::{Module, Visitor, VisitorMut};
use fastforward::mpath::{Class, Context};
use fastforward::quantization::quant_init::default_context;
use fastforward::quantization::{
    LinearQuantizer, LinearQuantizerConfig, QuantizerMetadata, QuantizerSlot, Tag,
};
use serde_json::Value;

use crate::golden::texts;

/// The classes of a family, with what `[cls:NAME]` may name.
pub struct Classes(BTreeMap<String, Class>);

impl Classes {
    /// Reads `class_table`.
    pub fn read(table: &Value) -> (Self, Context) {
        let ancestors = table["classes"].as_object().expect("classes");
        let mut classes = BTreeMap::new();
        for name in ancestors.keys() {
            define(name, ancestors, &mut classes);
        }
        let mut context = default_context();
        for (name, class) in table["context"].as_object().expect("context") {
            context.register_class(name, classes[class.as_str().expect("a class")]);
        }
        (Self(classes), context)
    }
}

fn define(
    name: &str,
    ancestors: &serde_json::Map<String, Value>,
    classes: &mut BTreeMap<String, Class>,
) -> Class {
    use fastforward::module::classes as known;
    if let Some(&class) = classes.get(name) {
        return class;
    }
    let class = match name {
        // The classes that slots have are the library's own.
        "Module" => known::module(),
        "Quantizer" => known::quantizer(),
        "QuantizerStub" => known::quantizer_stub(),
        "LinearQuantizer" => known::linear_quantizer(),
        _ => {
            let extends: Vec<Class> = texts(&ancestors[name])
                .into_iter()
                .filter(|&ancestor| ancestor != name)
                .map(|ancestor| define(ancestor, ancestors, classes))
                .collect();
            Class::define(name, &format!("golden::{name}"), &extends)
        }
    };
    classes.insert(name.to_owned(), class);
    class
}

/// A module of a golden tree.
pub struct Tree {
    class: Class,
    children: Vec<(String, Child)>,
}

enum Child {
    Module(Tree),
    Slot(QuantizerSlot),
}

impl Tree {
    /// Makes a fresh tree of a node.
    pub fn build(node: &Value, classes: &Classes) -> Self {
        let children = node["children"].as_object().expect("children");
        let child = |node: &Value| match node["class"].as_str().expect("a class") {
            class @ ("QuantizerStub" | "LinearQuantizer") => {
                let tags = node.get("tags").map(texts).unwrap_or_default();
                let slot =
                    QuantizerSlot::new(QuantizerMetadata::new(tags.into_iter().map(Tag::new)));
                if class == "LinearQuantizer" {
                    let existing = LinearQuantizer::new(LinearQuantizerConfig::new(8));
                    slot.replace(Arc::new(existing.expect("8 bits")));
                }
                Child::Slot(slot)
            }
            _ => Child::Module(Tree::build(node, classes)),
        };
        Self {
            class: classes.0[node["class"].as_str().expect("a class")],
            children: children.iter().map(|(name, node)| (name.clone(), child(node))).collect(),
        }
    }
}

impl Module for Tree {
    fn class(&self) -> Class {
        self.class
    }

    fn visit<'a>(&'a self, visitor: &mut dyn Visitor<'a>) {
        for (name, child) in &self.children {
            match child {
                Child::Module(module) => visitor.module(name, module),
                Child::Slot(slot) => visitor.slot(name, slot),
            }
        }
    }

    fn visit_mut(&mut self, visitor: &mut dyn VisitorMut) {
        for (name, child) in &mut self.children {
            match child {
                Child::Module(module) => visitor.module(name, module),
                Child::Slot(slot) => visitor.slot(name, slot),
            }
        }
    }
}
