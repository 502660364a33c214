//! Walking a model without recursion, so that its depth costs memory and no stack.

use super::{Module, Parameter, Visitor};
use crate::quantization::quantizer::QuantizerSlot;

/// What stands under a name in a module.
#[derive(Clone, Copy)]
pub(super) enum Part<'a> {
    Module(&'a dyn Module),
    Slot(&'a QuantizerSlot),
    Parameter(&'a dyn Parameter),
}

/// A part on the walk.
pub(super) struct Step<'w, 'a> {
    /// How many modules are around the part; 1 for what the root holds.
    pub(super) depth: usize,
    /// The names from the root to the part, joined with `.`.
    pub(super) full_name: &'w str,
    /// The last of these names.
    pub(super) name: &'w str,
    pub(super) part: Part<'a>,
}

/// Shows every part below `model`, depth first in declaration order. What is reached twice is shown twice.
pub(super) fn walk<'a>(model: &'a dyn Module, mut on: impl FnMut(Step<'_, 'a>)) {
    let mut level = Level::default();
    model.visit(&mut level);
    let mut waiting = Waiting::default();
    waiting.push(&level, 0, 1);
    let mut full_name = String::new();
    while let Some(Entry { name, prefix, depth, part, .. }) = waiting.pop() {
        full_name.truncate(prefix);
        if depth > 1 {
            full_name.push('.');
        }
        let start = full_name.len();
        full_name.push_str(&waiting.names[name]);
        on(Step { depth, full_name: &full_name, name: &full_name[start..], part });
        if let Part::Module(module) = part {
            level.clear();
            module.visit(&mut level);
            waiting.push(&level, full_name.len(), depth + 1);
        }
    }
}

/// What one module holds, in declaration order.
#[derive(Default)]
struct Level<'a> {
    names: String,
    /// Each with where its name ends.
    parts: Vec<(usize, Part<'a>)>,
}

impl<'a> Level<'a> {
    fn add(&mut self, name: &str, part: Part<'a>) {
        self.names.push_str(name);
        self.parts.push((self.names.len(), part));
    }

    fn clear(&mut self) {
        self.names.clear();
        self.parts.clear();
    }
}

impl<'a> Visitor<'a> for Level<'a> {
    fn module(&mut self, name: &str, module: &'a dyn Module) {
        self.add(name, Part::Module(module));
    }

    fn slot(&mut self, name: &str, slot: &'a QuantizerSlot) {
        self.add(name, Part::Slot(slot));
    }

    fn parameter(&mut self, name: &str, parameter: &'a dyn Parameter) {
        self.add(name, Part::Parameter(parameter));
    }
}

/// The parts that are known and not yet shown. The last entry is the next to be shown.
#[derive(Default)]
struct Waiting<'a> {
    /// The names of all entries, those of one level in declaration order.
    names: String,
    entries: Vec<Entry<'a>>,
}

struct Entry<'a> {
    name: std::ops::Range<usize>,
    /// Where the names of its level end: nothing behind that is needed when this entry's turn comes.
    names_end: usize,
    /// How long the full name of the module around it is.
    prefix: usize,
    depth: usize,
    part: Part<'a>,
}

impl<'a> Waiting<'a> {
    fn push(&mut self, level: &Level<'a>, prefix: usize, depth: usize) {
        let base = self.names.len();
        self.names.push_str(&level.names);
        let names_end = self.names.len();
        let mut end = names_end;
        for (at, &(_, part)) in level.parts.iter().enumerate().rev() {
            let start = base + if at == 0 { 0 } else { level.parts[at - 1].0 };
            self.entries.push(Entry { name: start..end, names_end, prefix, depth, part });
            end = start;
        }
    }

    fn pop(&mut self) -> Option<Entry<'a>> {
        let entry = self.entries.pop()?;
        self.names.truncate(entry.names_end);
        Some(entry)
    }
}
