//! Changing a graph: fresh names, nodes put in between, inputs that read something else.

use std::collections::{BTreeMap, HashMap, HashSet};

use crate::graph::{GraphIndex, defined_names};
use crate::proto::{GraphProto, NodeProto, TensorProto};
use crate::tree::NestedGraph;

/// Changes to a graph and the graphs nested in it, collected first and made at once.
///
/// Positions are those of the unchanged graph, so changes can be collected in any order.
#[derive(Debug, Default)]
pub(crate) struct Edits {
    graphs: BTreeMap<Vec<NestedGraph>, GraphEdits>,
}

/// The changes to one graph.
#[derive(Debug, Default)]
pub(crate) struct GraphEdits {
    /// Nodes to put before the node at a position.
    inserted: Vec<(usize, NodeProto)>,
    initializers: Vec<TensorProto>,
    /// Node, input, and the value it shall read.
    inputs: Vec<(usize, usize, String)>,
    /// Node, output, and the name it shall have.
    outputs: Vec<(usize, usize, String)>,
    /// What nested graphs shall see in place of a value.
    captured: HashMap<String, String>,
}

impl Edits {
    /// The changes to the graph at `path`.
    pub(crate) fn graph(&mut self, path: &[NestedGraph]) -> &mut GraphEdits {
        self.graphs.entry(path.to_vec()).or_default()
    }

    /// Makes the changes.
    pub(crate) fn apply(self, root: &mut GraphProto) {
        // Inner graphs first: changes to a graph move the nodes that hold inner ones.
        let mut graphs: Vec<_> = self.graphs.into_iter().collect();
        graphs.sort_by_key(|(path, _)| std::cmp::Reverse(path.len()));
        for (path, edits) in graphs {
            if let Some(graph) = graph_at_mut(root, &path) {
                edits.apply(graph);
            }
        }
    }
}

impl GraphEdits {
    /// Puts `node` before the node at `position`; later calls put theirs behind earlier ones.
    pub(crate) fn insert(&mut self, position: usize, node: NodeProto) {
        self.inserted.push((position, node));
    }

    pub(crate) fn add_initializer(&mut self, tensor: TensorProto) {
        self.initializers.push(tensor);
    }

    pub(crate) fn set_input(&mut self, node: usize, position: usize, value: &str) {
        self.inputs.push((node, position, value.to_owned()));
    }

    pub(crate) fn set_output(&mut self, node: usize, position: usize, value: &str) {
        self.outputs.push((node, position, value.to_owned()));
    }

    /// Makes the graphs nested in any node read `to` where they read `from`.
    pub(crate) fn set_captured(&mut self, from: &str, to: &str) {
        self.captured.insert(from.to_owned(), to.to_owned());
    }

    fn apply(mut self, graph: &mut GraphProto) {
        if !self.captured.is_empty() {
            for node in &mut graph.node {
                replace_captured(node, &self.captured);
            }
        }
        for (node, position, value) in self.inputs {
            graph.node[node].input[position] = value;
        }
        for (node, position, value) in self.outputs {
            graph.node[node].output[position] = value;
        }
        graph.initializer.extend(self.initializers);
        if self.inserted.is_empty() {
            return;
        }
        self.inserted.sort_by_key(|&(position, _)| position); // stable
        let old = std::mem::take(&mut graph.node);
        graph.node.reserve(old.len() + self.inserted.len());
        let mut inserted = self.inserted.into_iter().peekable();
        for (position, node) in old.into_iter().enumerate() {
            while let Some((_, new)) = inserted.next_if(|&(before, _)| before <= position) {
                graph.node.push(new);
            }
            graph.node.push(node);
        }
        graph.node.extend(inserted.map(|(_, node)| node));
    }
}

fn replace_captured(node: &mut NodeProto, names: &HashMap<String, String>) {
    let nested = node.attribute.iter_mut().flat_map(|a| a.g.iter_mut().chain(&mut a.graphs));
    for graph in nested {
        let own: HashSet<&str> = defined_names(graph).collect();
        let visible: HashMap<String, String> = names
            .iter()
            .filter(|(from, _)| !own.contains(from.as_str()))
            .map(|(from, to)| (from.clone(), to.clone()))
            .collect();
        for inner in &mut graph.node {
            for input in &mut inner.input {
                if let Some(to) = visible.get(input) {
                    input.clone_from(to);
                }
            }
            replace_captured(inner, &visible);
        }
        for output in &mut graph.output {
            if let Some(to) = visible.get(output.name()) {
                output.name = Some(to.clone());
            }
        }
    }
}

/// The graph at `path`, below `root`.
pub(crate) fn graph_at<'g>(root: &'g GraphProto, path: &[NestedGraph]) -> Option<&'g GraphProto> {
    path.iter().try_fold(root, |graph, step| {
        let attributes = &graph.node.get(step.node)?.attribute;
        attributes.iter().find(|attribute| attribute.name() == step.attribute)?.g.as_ref()
    })
}

fn graph_at_mut<'g>(root: &'g mut GraphProto, path: &[NestedGraph]) -> Option<&'g mut GraphProto> {
    path.iter().try_fold(root, |graph, step| {
        let attributes = &mut graph.node.get_mut(step.node)?.attribute;
        attributes.iter_mut().find(|attribute| attribute.name() == step.attribute)?.g.as_mut()
    })
}

/// Removes those of `names` that are constants of `graph` which nothing uses any more.
pub(crate) fn remove_unused_constants(graph: &mut GraphProto, names: &HashSet<String>) {
    let index = GraphIndex::new(graph);
    let is_unused = |name: &str| names.contains(name) && index.is_unused(name);
    graph.initializer.retain(|tensor| !is_unused(tensor.name()));
    graph.node.retain(|node| {
        !(node.is_standard("Constant") && node.output.first().is_some_and(|name| is_unused(name)))
    });
    // Files of IR version 3 list initializers among the inputs: left there, they would have to be fed.
    graph.input.retain(|input| !is_unused(input.name()));
    graph.value_info.retain(|value| !is_unused(value.name()));
    graph.quantization_annotation.retain(|annotation| !is_unused(annotation.tensor_name()));
}

/// Names of values and nodes that are not taken anywhere in a model.
#[derive(Clone, Debug)]
pub(crate) struct Names {
    taken: HashSet<String>,
}

impl Names {
    /// The names that `graph` and the graphs nested in it leave free.
    pub(crate) fn of(graph: &GraphProto) -> Self {
        fn collect(graph: &GraphProto, taken: &mut HashSet<String>) {
            taken.extend(defined_names(graph).map(str::to_owned));
            taken.extend(graph.node.iter().flat_map(|node| node.input.iter().cloned()));
            taken.extend(graph.node.iter().map(|node| node.name().to_owned()));
            for (_, nested) in graph.node.iter().flat_map(NodeProto::subgraphs) {
                collect(nested, taken);
            }
        }
        let mut taken = HashSet::new();
        collect(graph, &mut taken);
        Self { taken }
    }

    /// `wanted`, or `wanted_1`, `wanted_2`, .. if that is taken.
    pub(crate) fn fresh(&mut self, wanted: &str) -> String {
        let mut name = wanted.to_owned();
        let mut number = 0;
        while !self.taken.insert(name.clone()) {
            number += 1;
            name = format!("{wanted}_{number}");
        }
        name
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::{AttributeProto, ValueInfoProto, node};

    fn value(name: &str) -> ValueInfoProto {
        ValueInfoProto { name: Some(name.into()), ..ValueInfoProto::default() }
    }

    #[test]
    fn nodes_are_inserted_in_the_order_of_the_calls() {
        let mut graph = GraphProto {
            node: vec![node("A", "a", &["x"], &["y"]), node("B", "b", &["y"], &["z"])],
            ..GraphProto::default()
        };
        let mut edits = Edits::default();
        let changes = edits.graph(&[]);
        changes.insert(1, node("P", "p", &["y"], &["p"]));
        changes.insert(2, node("R", "r", &[], &[]));
        changes.insert(1, node("Q", "q", &["p"], &["q"]));
        changes.set_input(1, 0, "q");
        edits.apply(&mut graph);
        let names: Vec<&str> = graph.node.iter().map(|node| node.name()).collect();
        assert_eq!(names, ["a", "p", "q", "b", "r"]);
        assert_eq!(graph.node[3].input, ["q"]);
    }

    #[test]
    fn nested_graphs_see_the_new_value_unless_they_define_their_own() {
        let nested = |defines: &str| GraphProto {
            node: vec![node("Neg", "", &["x"], &["n"]), node("Abs", "", &["n"], &[defines])],
            output: vec![value("x")],
            ..GraphProto::default()
        };
        let branch = |name: &str, defines: &str| AttributeProto {
            name: Some(name.into()),
            g: Some(nested(defines)),
            ..AttributeProto::default()
        };
        let mut holder = node("If", "if", &["c"], &["y"]);
        holder.attribute = vec![branch("then_branch", "a"), branch("else_branch", "x")];
        let mut graph = GraphProto { node: vec![holder], ..GraphProto::default() };
        let mut edits = Edits::default();
        edits.graph(&[]).set_captured("x", "x2");
        edits.apply(&mut graph);
        let branches: Vec<&GraphProto> = graph.node[0].subgraphs().map(|(_, g)| g).collect();
        assert_eq!(branches[0].node[0].input, ["x2"]);
        assert_eq!(branches[0].output[0].name(), "x2");
        assert_eq!(branches[1].node[0].input, ["x"]);
    }

    #[test]
    fn taken_names_are_numbered() {
        let graph =
            GraphProto { node: vec![node("A", "n", &["x"], &["y"])], ..GraphProto::default() };
        let mut names = Names::of(&graph);
        assert_eq!(names.fresh("y"), "y_1");
        assert_eq!(names.fresh("y"), "y_2");
        assert_eq!(names.fresh("z"), "z");
    }
}
