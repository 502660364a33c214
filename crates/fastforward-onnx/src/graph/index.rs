//! Who produces and who consumes a value.

use std::collections::{HashMap, HashSet};

use crate::proto::{GraphProto, NodeProto};

/// Producer and consumers of every value of one graph, by node position.
///
/// A value used inside a nested graph (`If`, `Loop`) counts as used by the node
/// that holds the nested graph.
///
/// ```
/// use fastforward_onnx::graph::Model;
/// # let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/digits/digits_mlp.onnx");
/// let model = Model::load(path.as_ref())?;
/// let index = model.index();
/// assert_eq!(index.producer("logits"), Some(5));
/// assert_eq!(index.consumers("r1")[0].node, 3);
/// assert!(index.is_output("logits"));
/// # Ok::<(), fastforward_onnx::Error>(())
/// ```
#[derive(Clone, Debug, Default)]
pub struct GraphIndex {
    producers: HashMap<String, usize>,
    consumers: HashMap<String, Vec<Use>>,
    outputs: HashSet<String>,
}

/// One place where a value is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Use {
    /// Position of the node in its graph.
    pub node: usize,
    /// Position among the node's inputs; `None` for a use inside a nested graph.
    pub input: Option<usize>,
}

impl GraphIndex {
    /// The index of `graph`.
    pub fn new(graph: &GraphProto) -> Self {
        let mut index = Self {
            outputs: graph.output.iter().map(|output| output.name().to_owned()).collect(),
            ..Self::default()
        };
        for (position, node) in graph.node.iter().enumerate() {
            for output in node.output.iter().filter(|name| !name.is_empty()) {
                index.producers.entry(output.clone()).or_insert(position);
            }
            for (slot, input) in node.input.iter().enumerate().filter(|(_, name)| !name.is_empty())
            {
                let uses = index.consumers.entry(input.clone()).or_default();
                uses.push(Use { node: position, input: Some(slot) });
            }
            for name in captured_names(node) {
                let uses = index.consumers.entry(name).or_default();
                uses.push(Use { node: position, input: None });
            }
        }
        index
    }

    /// Position of the node that produces `value`; `None` for inputs and initializers.
    pub fn producer(&self, value: &str) -> Option<usize> {
        self.producers.get(value).copied()
    }

    /// The uses of `value`, in the order of the nodes.
    pub fn consumers(&self, value: &str) -> &[Use] {
        self.consumers.get(value).map_or(&[], Vec::as_slice)
    }

    /// Whether the graph returns `value`.
    pub fn is_output(&self, value: &str) -> bool {
        self.outputs.contains(value)
    }

    /// Whether nothing uses `value` and the graph does not return it.
    pub fn is_unused(&self, value: &str) -> bool {
        self.consumers(value).is_empty() && !self.is_output(value)
    }
}

/// The outer values that the nested graphs of `node` use, each once, sorted.
pub(crate) fn captured_names(node: &NodeProto) -> Vec<String> {
    let mut names: Vec<String> =
        node.subgraphs().flat_map(|(_, graph)| free_names(graph)).collect();
    names.sort_unstable();
    names.dedup();
    names
}

/// The names that `graph` uses but does not define.
fn free_names(graph: &GraphProto) -> Vec<String> {
    let defined: HashSet<&str> = defined_names(graph).collect();
    let mut free: Vec<String> = Vec::new();
    for node in &graph.node {
        free.extend(node.input.iter().filter(|name| !defined.contains(name.as_str())).cloned());
        free.extend(
            captured_names(node).into_iter().filter(|name| !defined.contains(name.as_str())),
        );
    }
    let returned = graph.output.iter().map(|output| output.name());
    free.extend(returned.filter(|name| !defined.contains(name)).map(str::to_owned));
    free.retain(|name| !name.is_empty());
    free
}

/// The names that `graph` itself defines: inputs, initializers, outputs of nodes.
pub(crate) fn defined_names(graph: &GraphProto) -> impl Iterator<Item = &str> {
    let inputs = graph.input.iter().map(|input| input.name());
    let weights = graph.initializer.iter().map(|tensor| tensor.name());
    let sparse = graph.sparse_initializer.iter().filter_map(|t| Some(t.values.as_ref()?.name()));
    let computed = graph.node.iter().flat_map(|node| node.output.iter().map(String::as_str));
    inputs.chain(weights).chain(sparse).chain(computed).filter(|name| !name.is_empty())
}
