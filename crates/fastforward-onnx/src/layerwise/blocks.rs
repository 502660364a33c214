//! Blocks: stretches of a graph whose weights are rounded together.

mod dense;
mod operation;
mod reconstruct;
mod refine;
mod spatial;
mod tape;
mod value;

use std::collections::{HashMap, HashSet};

use super::layer::LinearLayer;
use crate::graph::{Model, captured_names};
use crate::proto::NodeProto;
use operation::Operation;

pub(super) use reconstruct::{Networks, reconstruct};

/// A stretch of a graph between two values, past which nothing enters or leaves it, with the layers whose weights are to be
/// rounded together.
#[derive(Clone, Debug)]
pub struct Block {
    /// The names of its layers.
    pub name: String,
    /// The value it reads.
    pub input: String,
    /// The value it gives.
    pub output: String,
    /// Its layers, in the order of the graph.
    pub layers: Vec<LinearLayer>,
}

/// Cuts a graph into blocks of at least so many of `layers`, which come in the order of the graph.
///
/// A cut is where a single value connects what is before and behind, so that branches that meet again stay together. From
/// the first cut on, a block takes in as much as it needs for `at_least` layers, and what follows without a layer: an
/// activation, a pool. What is left at the end belongs to the block before. A stretch with an operator whose gradient is not
/// known ends a block and belongs to none; the reasons come second, for each layer that is in no block.
///
/// Gradients are known of `Conv`, `Gemm` and `MatMul` with a constant weight, `Add`, `Relu`, `LeakyRelu`, `Clip`, `MaxPool`,
/// `AveragePool`, `GlobalMaxPool`, `GlobalAveragePool`, `Flatten`, `Reshape` to a constant shape, `Identity` and `Dropout`.
///
/// ```
/// use fastforward_core::quantization::{LinearQuantizer, LinearQuantizerConfig};
/// use fastforward_onnx::layerwise::{blocks, linear_layers};
/// use fastforward_onnx::{graph::Model, rewrite::fold_batch_norm, tree::{Role, Tree}};
/// # let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/fashion/fashion_cnn.onnx");
///
/// let mut model = Model::load(path.as_ref())?;
/// fold_batch_norm(&mut model)?;
/// let tree = Tree::new(&model);
/// for site in tree.sites().iter().filter(|site| site.role == Role::Weight) {
///     site.slot.replace(std::sync::Arc::new(LinearQuantizer::new(LinearQuantizerConfig::new(2)).unwrap()));
/// }
/// let (layers, _) = linear_layers(&model, &tree)?;
/// let (found, kept) = blocks(&model, &layers, 2);
/// let names: Vec<&str> = found.iter().map(|block| block.name.as_str()).collect();
/// assert_eq!(names, ["conv1, dw", "pw, res1, res2", "conv2, fc1, logits"]);
/// assert!(kept.is_empty());
/// # Ok::<(), fastforward_onnx::Error>(())
/// ```
pub fn blocks(model: &Model, layers: &[LinearLayer], at_least: usize) -> (Vec<Block>, Vec<String>) {
    let stretches = stretches(model);
    let mut found: Vec<Block> = Vec::new();
    let mut kept = Vec::new();
    let mut open: Option<Block> = None;
    for stretch in &stretches {
        let own: Vec<LinearLayer> = layers
            .iter()
            .filter(|layer| stretch.nodes.contains(&layer.weight.node.index))
            .cloned()
            .collect();
        if let Some(reason) = &stretch.problem {
            kept.extend(own.iter().map(|layer| format!("`{}`: {reason}", layer.name)));
            close(&mut open, &mut found, &mut kept, at_least);
            continue;
        }
        // A block that has all it needs is closed by the next layer.
        if !own.is_empty() && open.as_ref().is_some_and(|block| block.layers.len() >= at_least) {
            close(&mut open, &mut found, &mut kept, at_least);
        }
        match &mut open {
            None if own.is_empty() => {}
            None => {
                open = Some(Block {
                    name: String::new(),
                    input: stretch.input.clone(),
                    output: stretch.output.clone(),
                    layers: own,
                });
            }
            Some(block) => {
                block.layers.extend(own);
                block.output.clone_from(&stretch.output);
            }
        }
    }
    close(&mut open, &mut found, &mut kept, at_least);
    for block in &mut found {
        let names: Vec<&str> = block.layers.iter().map(|layer| layer.name.as_str()).collect();
        block.name = names.join(", ");
    }
    let cut: HashSet<usize> = stretches.iter().flat_map(|one| &one.nodes).copied().collect();
    let uncut = layers.iter().filter(|layer| !cut.contains(&layer.weight.node.index));
    kept.extend(
        uncut.map(|layer| format!("`{}`: no single values lie before and behind it", layer.name)),
    );
    (found, kept)
}

/// Ends a block; one with too few layers goes to its neighbour before.
fn close(
    open: &mut Option<Block>,
    found: &mut Vec<Block>,
    kept: &mut Vec<String>,
    at_least: usize,
) {
    let Some(block) = open.take() else { return };
    if block.layers.len() >= at_least {
        found.push(block);
        return;
    }
    match found.last_mut() {
        Some(before) if before.output == block.input => {
            before.layers.extend(block.layers);
            before.output = block.output;
        }
        _ => kept.extend(block.layers.iter().map(|layer| {
            let count = block.layers.len();
            format!("`{}`: only {count} of {at_least} layers follow each other there", layer.name)
        })),
    }
}

/// What lies between two cuts that follow each other.
struct Stretch {
    input: String,
    output: String,
    nodes: HashSet<usize>,
    /// Why it has no gradient.
    problem: Option<String>,
}

fn stretches(model: &Model) -> Vec<Stretch> {
    let (graph, index) = (model.graph(), model.index());
    let n_nodes = graph.node.len();
    let constants: HashSet<&str> = model.constants().map(|constant| constant.name()).collect();
    // Where each activation is read last; those that nothing reads live where they are made.
    let mut live: HashMap<&str, usize> = HashMap::new();
    let last_use = |value: &str, made: usize| {
        let uses = index.consumers(value).iter().map(|one| one.node).max();
        uses.unwrap_or(if index.is_output(value) { n_nodes } else { made })
    };
    let inputs = graph.input.iter().map(|input| input.name());
    for input in inputs.filter(|name| !constants.contains(name)) {
        live.insert(input, last_use(input, 0));
    }
    let mut varying: HashSet<&str> = live.keys().copied().collect();
    let mut found = Vec::new();
    let mut nodes = HashSet::new();
    let mut input = single(&live, None);
    let mut problem = None;
    for (at, node) in graph.node.iter().enumerate() {
        let is_varying = |name: &str| varying.contains(name);
        if !reads_varying(node, &varying) {
            continue;
        }
        nodes.insert(at);
        if problem.is_none() {
            problem = Operation::of(node, model, &is_varying)
                .err()
                .map(|reason| format!("`{}` ({}): {reason}", node.label(), node.op_type()));
        }
        live.retain(|_, last| *last > at);
        for output in node.output.iter().filter(|name| !name.is_empty()) {
            varying.insert(output);
            let last = last_use(output, at);
            if last > at {
                live.insert(output, last);
            }
        }
        let Some(output) = single(&live, Some(node)) else { continue };
        // What leaves on the way, as an output of the graph, is not seen by the block's error.
        let leaves = nodes
            .iter()
            .flat_map(|&node| &graph.node[node].output)
            .find(|name| **name != output && index.is_output(name));
        let leaves = leaves.map(|name| format!("`{name}` is an output of the graph"));
        if let Some(input) = input.replace(output.clone()) {
            let problem = problem.take().or(leaves);
            let nodes = std::mem::take(&mut nodes);
            found.push(Stretch { input, output, nodes, problem });
        } else {
            problem = None;
            nodes.clear();
        }
    }
    found
}

/// The only value that is still to be read, if `node` made it.
fn single(live: &HashMap<&str, usize>, node: Option<&NodeProto>) -> Option<String> {
    let mut names = live.keys();
    let (Some(name), None) = (names.next(), names.next()) else { return None };
    let made = node.is_none_or(|node| node.output.iter().any(|output| output == name));
    made.then(|| (*name).to_owned())
}

/// Whether a node reads an activation, itself or in a graph inside it.
fn reads_varying(node: &NodeProto, varying: &HashSet<&str>) -> bool {
    let is_varying = |name: &String| varying.contains(name.as_str());
    node.input.iter().any(is_varying) || captured_names(node).iter().any(is_varying)
}

#[cfg(test)]
mod tests;
