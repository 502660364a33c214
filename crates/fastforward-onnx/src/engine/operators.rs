//! The operators that the execution engine knows.

use crate::error::{Error, ErrorKind, Result};
use crate::graph::{Model, check_describe as describe};
use crate::lower;
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

/// Refuses a model with operators that cannot be executed, without preparing anything: constants are not looked at.
///
/// ```
/// use fastforward_onnx::{engine::check_operators, graph::Model};
/// # let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/digits/digits_mlp.onnx");
///
/// let mut model = Model::load(path.as_ref())?;
/// assert!(check_operators(&model).is_ok());
/// model.graph_mut().node[0].op_type = Some("Rectify".into());
/// assert!(check_operators(&model).unwrap_err().to_string().starts_with("operator `Rectify`"));
/// # Ok::<(), fastforward_onnx::Error>(())
/// ```
///
/// # Errors
/// `Unsupported` naming each node whose operator is neither known to the engine nor expressed by others, nested graphs
/// included.
pub fn check_operators(model: &Model) -> Result<()> {
    let mut problems = Vec::new();
    check(model.graph(), &lower::is_expressed, &mut problems);
    if problems.is_empty() { Ok(()) } else { Err(Error::many(ErrorKind::Unsupported, problems)) }
}

/// Names every node whose operator is unknown, to `is_known` too, nested graphs included.
pub(super) fn check(
    graph: &GraphProto,
    is_known: &dyn Fn(&NodeProto) -> bool,
    problems: &mut Vec<String>,
) {
    for node in &graph.node {
        if !is_supported(node.domain(), node.op_type()) && !is_known(node) {
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
        check(nested, is_known, problems);
    }
}

/// One operator in a line; a test compares both lists with the engine itself.
const STANDARD: &str = include_str!("operators/standard.txt");

const MICROSOFT: &str = include_str!("operators/microsoft.txt");
