//! Bringing a model to a newer operator set.

mod inputs;
mod meaning;

use std::collections::HashMap;

use crate::edit::Names;
use crate::error::{Error, ErrorKind, Result};
use crate::graph::{Model, check_describe as describe, tensor_from_f32, tensor_from_i64};
use crate::proto::{AttributeProto, GraphProto, NodeProto, node};
use crate::tree::classes;

/// The newest operator set that [`upgrade`] goes to: the one with 2-bit integers.
pub const MAX_TARGET: i64 = 25;

/// The oldest operator set that [`upgrade`] comes from. Before it, operators broadcast by attributes.
pub const MIN_SOURCE: i64 = 7;

/// Brings the standard operator set of `model` to version `target`, and returns the nodes that were rewritten.
///
/// Every node whose operator has another meaning or another form in the new set is rewritten so that it computes what it
/// did: attributes become inputs (`Squeeze`, `ReduceSum`, `Pad`, `Clip`, ..), defaults that changed are stated
/// (`RoiAlign`), operators that were replaced are (`Upsample`, `Scatter`), and where the meaning changed it is spelled
/// out (`Softmax` over several axes). Values keep their names. The IR version is raised to the one that came with the
/// set. A model that is at `target` or beyond is left as it is.
///
/// ```
/// use fastforward_onnx::{graph::Model, opset};
/// # let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/fashion/fashion_cnn.onnx");
/// let mut model = Model::load(path.as_ref())?;
/// let rewritten = opset::upgrade(&mut model, 21)?;
/// assert!(rewritten.is_empty()); // its operators are the same in set 13 and in set 21
/// assert_eq!(model.opset(""), Some(21));
/// # Ok::<(), fastforward_onnx::Error>(())
/// ```
///
/// # Errors
/// `Unsupported` naming every node that cannot be rewritten, and why; for a set older than [`MIN_SOURCE`] or a target
/// beyond [`MAX_TARGET`]. The model is then as before.
pub fn upgrade(model: &mut Model, target: i64) -> Result<Vec<String>> {
    let source = model.opset("").unwrap_or(1);
    if target <= source {
        return Ok(Vec::new());
    }
    let unsupported = |text: String| Err(Error::new(ErrorKind::Unsupported, text));
    if target > MAX_TARGET {
        return unsupported(format!(
            "operator set {target} is beyond {MAX_TARGET}, the newest that models are brought to"
        ));
    }
    if source < MIN_SOURCE {
        return unsupported(format!(
            "the model uses operator set {source}; only set {MIN_SOURCE} and newer ones are brought to \
             {target}"
        ));
    }
    let mut upgrader = Upgrader {
        source,
        target,
        names: Names::of(model.graph()),
        ranks: ranks(model),
        rewritten: Vec::new(),
        problems: Vec::new(),
    };
    let mut graph = model.graph().clone();
    upgrader.graph(&mut graph);
    if !upgrader.problems.is_empty() {
        return Err(Error::many(ErrorKind::Unsupported, upgrader.problems));
    }
    *model.graph_mut() = graph;
    model.set_opset("", target);
    let ir_version = model.proto().ir_version().max(ir_version_of(target));
    model.proto_mut().ir_version = Some(ir_version);
    Ok(upgrader.rewritten)
}

/// The IR version that was released with an operator set.
fn ir_version_of(opset: i64) -> i64 {
    match opset {
        ..=8 => 3,
        9 => 4,
        10 => 5,
        11 => 6,
        12..=14 => 7,
        15..=18 => 8,
        19 | 20 => 9,
        21 | 22 => 10,
        23 => 11,
        24 => 12,
        _ => 13,
    }
}

fn ranks(model: &Model) -> HashMap<String, i64> {
    let infos = model.value_infos().into_iter();
    infos.filter_map(|(name, info)| Some((name, info.shape?.len() as i64))).collect()
}

struct Upgrader {
    source: i64,
    target: i64,
    names: Names,
    /// The number of axes of values of the main graph, where it is known.
    ranks: HashMap<String, i64>,
    rewritten: Vec<String>,
    problems: Vec<String>,
}

/// A node on its way, with what stands before and after it.
struct Step<'u> {
    upgrader: &'u mut Upgrader,
    node: NodeProto,
    before: Vec<NodeProto>,
    after: Vec<NodeProto>,
    initializers: &'u mut Vec<crate::proto::TensorProto>,
}

impl Upgrader {
    fn graph(&mut self, graph: &mut GraphProto) {
        let old = std::mem::take(&mut graph.node);
        let mut initializers = Vec::new();
        for mut node in old {
            for attribute in &mut node.attribute {
                let nested = attribute.g.iter_mut().chain(&mut attribute.graphs);
                nested.for_each(|nested| self.graph(nested));
            }
            if !matches!(node.domain(), "" | "ai.onnx") {
                graph.node.push(node);
                continue;
            }
            let description = describe(&node);
            if !classes::is_standard_operator(node.op_type()) {
                self.problems.push(format!(
                    "{description} is none of the standard operators, so what it becomes in operator set {} is \
                     unknown",
                    self.target
                ));
                continue;
            }
            let unchanged = node.clone();
            let mut step = Step {
                upgrader: self,
                node,
                before: Vec::new(),
                after: Vec::new(),
                initializers: &mut initializers,
            };
            let result = step.run();
            let Step { node, before, after, .. } = step;
            if let Err(reason) = result {
                self.problems.push(format!("{description}: {reason}"));
                continue;
            }
            if node != unchanged || !before.is_empty() || !after.is_empty() {
                self.rewritten.push(description);
            }
            graph.node.extend(before);
            graph.node.push(node);
            graph.node.extend(after);
        }
        graph.initializer.extend(initializers);
    }
}

/// What stands in the way, for the message.
type Refusal = Result<(), String>;

impl Step<'_> {
    /// Every change between the two sets, oldest first. Operators that are not named kept their meaning and form.
    fn run(&mut self) -> Refusal {
        self.at(9, &["BatchNormalization"], Self::batch_normalization_without_spatial)?;
        self.at(9, &["Upsample"], |step| step.floats_to_input("scales", 1))?;
        self.at(9, &["Scan"], |_| Err("its inputs changed in set 9".to_owned()))?;
        self.at(10, &["Slice"], Self::slice_inputs)?;
        self.at(10, &["TopK"], |step| step.ints_to_input("k", 1))?;
        self.at(10, &["Upsample"], Self::upsample_is_resize)?;
        self.at(10, &["Dropout"], Self::dropout_without_float_mask)?;
        self.at(11, &["Clip"], Self::clip_inputs)?;
        self.at(11, &["Pad"], Self::pad_inputs)?;
        self.at(11, &["Resize"], Self::resize_was_asymmetric)?;
        self.at(11, &["Scatter"], |step| step.rename("ScatterElements"))?;
        self.at(12, &["Dropout"], Self::dropout_inputs)?;
        self.at(13, &["Softmax", "LogSoftmax", "Hardmax"], Self::softmax_over_one_axis)?;
        self.at(13, &["Squeeze", "Unsqueeze", "ReduceSum"], |step| step.ints_to_input("axes", 1))?;
        self.at(13, &["Split"], |step| step.ints_to_input("split", 1))?;
        self.at(14, &["BatchNormalization"], Self::batch_normalization_at_inference)?;
        self.at(16, &["RoiAlign"], Self::roi_align_was_half_a_pixel_off)?;
        self.at(18, &["Split"], Self::split_says_how_many)?;
        self.at(18, REDUCTIONS, |step| step.ints_to_input("axes", 1))?;
        self.at(20, &["DFT"], Self::dft_axis)?;
        self.at(20, &["GridSample"], Self::grid_sample_modes)?;
        self.at(21, &["GroupNormalization"], Self::group_normalization_per_channel)
    }

    /// Makes a change that came with `version`, if it lies between the two sets and is about this operator.
    fn at(&mut self, version: i64, ops: &[&str], change: fn(&mut Self) -> Refusal) -> Refusal {
        let applies = self.upgrader.source < version && version <= self.upgrader.target;
        if applies && ops.contains(&self.node.op_type()) { change(self) } else { Ok(()) }
    }

    fn take_attribute(&mut self, name: &str) -> Option<AttributeProto> {
        let at = self.node.attribute.iter().position(|attribute| attribute.name() == name)?;
        Some(self.node.attribute.remove(at))
    }

    fn rename(&mut self, op_type: &str) -> Refusal {
        self.node.op_type = Some(op_type.to_owned());
        Ok(())
    }

    /// Makes `value` the input at `position`, leaving out optional ones before it.
    fn set_input(&mut self, position: usize, value: String) {
        if self.node.input.len() <= position {
            self.node.input.resize(position + 1, String::new());
        }
        self.node.input[position] = value;
    }

    fn base(&self, what: &str) -> String {
        let output = self.node.output.iter().find(|name| !name.is_empty());
        format!("{}_{what}", output.map_or("node", String::as_str))
    }

    fn ints(&mut self, what: &str, shape: &[usize], values: &[i64]) -> String {
        let name = self.upgrader.names.fresh(&self.base(what));
        self.initializers.push(tensor_from_i64(&name, shape, values));
        name
    }

    fn floats(&mut self, what: &str, shape: &[usize], values: &[f32]) -> String {
        let name = self.upgrader.names.fresh(&self.base(what));
        self.initializers.push(tensor_from_f32(&name, shape, values));
        name
    }

    /// A node before this one, and the name of what it computes.
    fn prepend(&mut self, op_type: &str, what: &str, inputs: &[&str]) -> String {
        let output = self.upgrader.names.fresh(&self.base(what));
        let name = self.upgrader.names.fresh(&format!("{output}_{op_type}"));
        self.before.push(node(op_type, &name, inputs, &[&output]));
        output
    }
}

/// The reductions whose axes became an input in set 18; `ReduceSum` was five sets ahead.
const REDUCTIONS: &[&str] = &[
    "ReduceL1",
    "ReduceL2",
    "ReduceLogSum",
    "ReduceLogSumExp",
    "ReduceMax",
    "ReduceMean",
    "ReduceMin",
    "ReduceProd",
    "ReduceSumSquare",
];

#[cfg(test)]
mod tests;
