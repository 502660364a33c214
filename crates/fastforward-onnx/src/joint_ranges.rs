//! One range for what targets compute on one grid: the inputs of a concatenation, the operands of a residual addition.

use std::collections::HashMap;
use std::fmt;

use fastforward_core::quantization::affine::SavedQuantizer;
use serde::Serialize;

use crate::error::{Error, ErrorKind, Result};
use crate::graph::{GraphIndex, Model};
use crate::proto::NodeProto;
use crate::tree::{Role, Site, Tree};

/// Gives the quantizers around each `Concat`, and around each addition if asked for, one common range: the smallest that
/// holds all of theirs.
///
/// A target that joins codes without computing on them needs the same scale and offset at all inputs of a `Concat` and at
/// its output; some want the operands of a residual addition on one grid. The quantizer of an input is the one at that
/// input, or else the one where the value is computed, also before operations that only move data. Groups that share a
/// quantizer become one. Call it after ranges are set.
///
/// A group whose quantizers differ in more than their ranges, have none yet, or more than one tile, stays as it is; the
/// report says why.
///
/// # Errors
/// `Quantizer` where a quantizer refuses its range.
pub fn join_ranges(model: &Model, tree: &Tree, options: &JoinOptions) -> Result<JoinReport> {
    let finder = Finder::new(model, tree);
    let mut groups: Vec<Group> = Vec::new();
    for (position, node) in model.graph().node.iter().enumerate() {
        let is_joined = match node.op_type() {
            _ if !matches!(node.domain(), "" | "ai.onnx") => false,
            "Concat" => options.concatenations,
            "Add" | "Sum" => options.additions,
            _ => false,
        };
        if !is_joined {
            continue;
        }
        let mut slots = finder.inputs(position, node, model);
        // The operands of a sum share a range, its result has its own.
        if node.op_type() == "Concat" {
            slots.extend(finder.output(node));
        }
        slots.sort_unstable();
        slots.dedup();
        let mut group = Group { nodes: vec![node.label().to_owned()], slots };
        if group.slots.len() < 2 {
            continue;
        }
        let is_apart = |other: &Group| other.slots.iter().all(|slot| !group.slots.contains(slot));
        let (apart, touching): (Vec<Group>, Vec<Group>) = groups.into_iter().partition(is_apart);
        groups = apart;
        for other in touching {
            group.nodes.splice(0..0, other.nodes);
            group.slots.extend(other.slots);
        }
        group.slots.sort_unstable();
        group.slots.dedup();
        groups.push(group);
    }
    let mut report = JoinReport::default();
    for group in groups {
        let sites: Vec<&Site> = group.slots.iter().map(|&at| &tree.sites()[at]).collect();
        match common_range(&sites) {
            Ok(Common { min, max, narrowest }) => {
                for site in &sites {
                    let quantizer = site.slot.quantizer();
                    if let Some(settable) = quantizer.as_range_settable() {
                        settable.set_quantization_range(&[min], &[max]).map_err(|error| {
                            Error::new(ErrorKind::Quantizer, format!("`{}`: {error}", site.name))
                                .caused_by(error)
                        })?;
                    }
                }
                report.joined.push(JoinedRange {
                    nodes: group.nodes,
                    slots: sites.iter().map(|site| site.name.clone()).collect(),
                    min,
                    max,
                    narrowest,
                });
            }
            Err(reason) => report.kept.push(KeptRanges { nodes: group.nodes, reason }),
        }
    }
    Ok(report)
}

/// Which quantizers share a range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct JoinOptions {
    /// Those at the inputs and the output of `Concat`.
    pub concatenations: bool,
    /// Those at the operands of `Add` and `Sum`.
    pub additions: bool,
}

impl Default for JoinOptions {
    /// Concatenations only.
    fn default() -> Self {
        Self { concatenations: true, additions: false }
    }
}

/// What [`join_ranges`] did, in the order of the graph.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct JoinReport {
    /// The groups with one range.
    pub joined: Vec<JoinedRange>,
    /// The groups that stay as they are.
    pub kept: Vec<KeptRanges>,
}

/// Quantizers with one range.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct JoinedRange {
    /// The concatenations and additions that need it.
    pub nodes: Vec<String>,
    /// The slots.
    pub slots: Vec<String>,
    /// The smallest value.
    pub min: f32,
    /// The largest.
    pub max: f32,
    /// The width of the narrowest of the ranges they had.
    pub narrowest: f64,
}

/// Quantizers that keep ranges of their own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct KeptRanges {
    /// The concatenations and additions that would need one.
    pub nodes: Vec<String>,
    /// Why.
    pub reason: String,
}

impl fmt::Display for JoinedRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "`{}`: {} slots from {} to {}",
            self.nodes.join("`, `"),
            self.slots.len(),
            self.min,
            self.max
        )
    }
}

impl fmt::Display for KeptRanges {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}` keep their ranges: {}", self.nodes.join("`, `"), self.reason)
    }
}

/// Slots that need one range, as positions of their first sites.
struct Group {
    nodes: Vec<String>,
    slots: Vec<usize>,
}

/// Finds the quantizer that a value has.
struct Finder<'m> {
    model: &'m Model,
    index: GraphIndex,
    /// By node, position, and whether it is an output: the first site of the slot.
    sites: HashMap<(usize, usize, bool), usize>,
}

impl<'m> Finder<'m> {
    fn new(model: &'m Model, tree: &Tree) -> Self {
        let mut first_of = HashMap::new();
        let mut sites = HashMap::new();
        for (at, site) in tree.sites().iter().enumerate() {
            if site.slot.is_stub() || !site.node.graph.is_empty() {
                continue;
            }
            let first = *first_of.entry(site.slot.id()).or_insert(at);
            let key = (site.node.index, site.position, site.role == Role::Output);
            sites.insert(key, first);
        }
        Self { model, index: model.index(), sites }
    }

    fn inputs(&self, position: usize, node: &NodeProto, model: &Model) -> Vec<usize> {
        let mut found = Vec::new();
        for (input, value) in node.input.iter().enumerate() {
            if model.constant(value).is_some() {
                continue; // A constant can be written on any grid.
            }
            match self.sites.get(&(position, input, false)) {
                Some(&site) => found.push(site),
                None => found.extend(self.of_value(value)),
            }
        }
        found
    }

    /// The quantizer where a value is computed, or before it was moved.
    fn of_value(&self, value: &str) -> Option<usize> {
        let mut value = value;
        loop {
            let position = self.index.producer(value)?;
            let node = &self.model.graph().node[position];
            let output = node.output.iter().position(|output| output == value)?;
            if let Some(&site) = self.sites.get(&(position, output, true)) {
                return Some(site);
            }
            let is_standard = matches!(node.domain(), "" | "ai.onnx");
            if !is_standard || !MOVES.contains(&node.op_type()) {
                return None;
            }
            // What a pool or a pad reads may be quantized right there.
            if let Some(&site) = self.sites.get(&(position, 0, false)) {
                return Some(site);
            }
            value = node.input_at(0)?;
        }
    }

    /// The quantizers of a result: its own, or else those of its readers.
    fn output(&self, node: &NodeProto) -> Vec<usize> {
        let Some(value) = node.output.first() else { return Vec::new() };
        let own = self.index.producer(value).and_then(|node| self.sites.get(&(node, 0, true)));
        match own {
            Some(&site) => vec![site],
            None => {
                let readers = self.index.consumers(value).iter();
                let site = |reader: &crate::graph::Use| {
                    self.sites.get(&(reader.node, reader.input?, false)).copied()
                };
                readers.filter_map(site).collect()
            }
        }
    }
}

/// Operators whose result holds no other values than what they read.
const MOVES: [&str; 12] = [
    "Reshape",
    "Flatten",
    "Transpose",
    "Squeeze",
    "Unsqueeze",
    "Identity",
    "Dropout",
    "Slice",
    "Split",
    "Expand",
    "Tile",
    "MaxPool",
];

/// A range that holds others.
struct Common {
    min: f32,
    max: f32,
    /// The width of the narrowest of them.
    narrowest: f64,
}

/// The smallest range that holds those of all sites, if they may share one.
fn common_range(sites: &[&Site]) -> Result<Common, String> {
    let (min, max, narrowest) = (f32::INFINITY, f32::NEG_INFINITY, f64::INFINITY);
    let mut common = Common { min, max, narrowest };
    let mut settings = None;
    for site in sites {
        let quantizer = site.slot.quantizer();
        let Some(SavedQuantizer::Linear(config, _)) = quantizer.to_saved() else {
            return Err(format!("`{}`: {quantizer} is not a LinearQuantizer", site.name));
        };
        let range = quantizer.as_range_settable().and_then(|one| one.quantization_range());
        let Some((min, max)) = range else {
            return Err(format!("`{}`: {quantizer} has no range yet", site.name));
        };
        let ([min], [max]) = (min.as_slice(), max.as_slice()) else {
            return Err(format!("`{}`: {quantizer} has {} ranges", site.name, min.len()));
        };
        match &settings {
            None => settings = Some((config, site)),
            Some((other, first)) if *other != config => {
                return Err(format!(
                    "`{}` and `{}` differ in more than their ranges",
                    first.name, site.name
                ));
            }
            Some(_) => {}
        }
        let width = f64::from(*max) - f64::from(*min);
        common = Common {
            min: common.min.min(*min),
            max: common.max.max(*max),
            narrowest: common.narrowest.min(width),
        };
    }
    Ok(common)
}
