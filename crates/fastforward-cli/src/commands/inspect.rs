//! `inspect`: a model as a tree.

use std::fmt::Write;

use fastforward_core::module::{Outline, OutlineNode};
use fastforward_onnx::graph::Model;
use fastforward_onnx::pipeline::ModelSummary;
use fastforward_onnx::tree::Tree;
use serde::Serialize;

use crate::args::Inspect;
use crate::output::Outcome;
use crate::text::{bytes, count, many};

#[derive(Serialize)]
struct Inspected {
    #[serde(flatten)]
    summary: ModelSummary,
    tree: OutlineNode,
}

pub(super) fn run(args: &Inspect) -> anyhow::Result<Outcome> {
    let model = Model::load(&args.model)?;
    let tree = Tree::new(&model);
    let summary = ModelSummary::new(&model, &tree)?;
    let mut root = Outline::new(tree.root()).root;
    if !args.slots {
        leave_out_slots(&mut root);
    }
    let hidden = args.depth.map_or(0, |depth| cut(&mut root, depth));

    let mut text = header(&summary);
    text.push('\n');
    for child in &root.children {
        write_node(&mut text, child, 0);
    }
    let mut notes = Vec::new();
    if hidden > 0 {
        notes.push(format!("{} below are not shown", many(hidden, "line")));
    }
    let outcome = Outcome::done(text, &Inspected { summary, tree: root })?;
    Ok(Outcome { notes, ..outcome })
}

/// The file in numbers, as every command shows it.
pub(super) fn header(summary: &ModelSummary) -> String {
    let opsets: Vec<String> = summary
        .opsets
        .iter()
        .map(|set| match set.domain.as_str() {
            "ai.onnx" => format!("opset {}", set.version),
            domain => format!("{domain} {}", set.version),
        })
        .collect();
    let producer = match summary.producer.as_str() {
        "" => String::new(),
        producer => format!(", by {producer}"),
    };
    let kind = match (summary.format, summary.ir_version) {
        (Some(format), _) => format.to_owned(),
        (None, version) => format!("{}, IR {}", opsets.join(", "), version.unwrap_or_default()),
    };
    let mut text = format!("{}: {}, {kind}{producer}\n", summary.file, bytes(summary.file_bytes));
    for (title, values) in [("input", &summary.inputs), ("output", &summary.outputs)] {
        for value in values {
            let _ = writeln!(text, "  {title:<11}{value}");
        }
    }
    let totals = summary.parameters;
    if summary.format.is_none() {
        let _ = writeln!(text, "  {:<11}{}", "nodes", count(summary.nodes as u64));
    }
    let _ = writeln!(
        text,
        "  {:<11}{} in {}, {}",
        "parameters",
        count(totals.elements),
        many(totals.tensors, "tensor"),
        bytes(totals.bytes)
    );
    let _ = writeln!(text, "  {:<11}{}", "slots", count(summary.slots as u64));
    text
}

fn leave_out_slots(node: &mut OutlineNode) {
    node.children.retain(|child| child.kind != "slot");
    node.children.iter_mut().for_each(leave_out_slots);
}

/// Cuts the tree below so many levels, and says how many lines that took away.
fn cut(node: &mut OutlineNode, levels: usize) -> usize {
    fn size(node: &OutlineNode) -> usize {
        node.children.iter().map(|child| 1 + size(child)).sum()
    }
    if levels == 0 {
        let hidden = size(node);
        node.children.clear();
        return hidden;
    }
    node.children.iter_mut().map(|child| cut(child, levels - 1)).sum()
}

fn write_node(out: &mut String, node: &OutlineNode, depth: usize) {
    let label = node.quantizer.as_ref().unwrap_or(&node.class);
    let _ = write!(out, "{:indent$}{}: {label}", "", node.name, indent = 2 * depth);
    if let Some(shape) = &node.shape {
        let _ = write!(out, " {shape:?}");
    }
    if let Some(size) = node.size_bytes {
        let _ = write!(out, "  {}", bytes(size as u64));
    }
    for tag in &node.tags {
        let _ = write!(out, " {tag}");
    }
    out.push('\n');
    node.children.iter().for_each(|child| write_node(out, child, depth + 1));
}
