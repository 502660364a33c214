//! The operators that the execution engine knows.

use crate::graph::check_describe as describe;
use crate::proto::{GraphProto, NodeProto};

/// Whether graphs with the operator `op_type` of `domain` can be executed.
///
/// Operators that [`crate::lower`] expresses by others are not in the list.
///
/// ```
/// use fastforward_onnx::engine::is_supported;
/// assert!(is_supported("", "Conv"));
/// assert!(!is_supported("", "DeformConv"));
/// ```
pub fn is_supported(domain: &str, op_type: &str) -> bool {
    match domain {
        "" | "ai.onnx" => STANDARD.lines().any(|known| known == op_type),
        "com.microsoft" => MICROSOFT.lines().any(|known| known == op_type),
        _ => false,
    }
}

/// Names every node whose operator is unknown, nested graphs included.
pub(super) fn check(graph: &GraphProto, problems: &mut Vec<String>) {
    for node in &graph.node {
        if !is_supported(node.domain(), node.op_type()) {
            let domain = match node.domain() {
                "" => String::new(),
                domain => format!(" of the domain `{domain}`"),
            };
            problems.push(format!(
                "{}{domain} is not supported by the execution engine",
                describe(node)
            ));
        }
    }
    for (_, nested) in graph.node.iter().flat_map(NodeProto::subgraphs) {
        check(nested, problems);
    }
}

/// One operator in a line; a test compares both lists with the engine itself.
const STANDARD: &str = include_str!("operators/standard.txt");

const MICROSOFT: &str = include_str!("operators/microsoft.txt");
