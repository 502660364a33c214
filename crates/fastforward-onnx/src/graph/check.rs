//! What must hold before a model is worked with.

use std::collections::HashSet;
use std::path::Path;

use super::{MAX_IR_VERSION, MAX_OPSET, constant, external, index, normal_domain};
use crate::dtype::DType;
use crate::error::{Error, ErrorKind, Result};
use crate::proto::{GraphProto, ModelProto, NodeProto, TensorProto};

/// Checks versions first, then everything in the graphs.
pub(super) fn check_model(model: &ModelProto, folder: Option<&Path>) -> Result<()> {
    let malformed = |text: &str| Err(Error::new(ErrorKind::Malformed, text));
    let Some(graph) = &model.graph else {
        return malformed("no graph found: the file is empty, cut short, or not an ONNX model");
    };
    if model.ir_version.is_none() {
        return malformed("no IR version found: the file is cut short, or not an ONNX model");
    }
    if model.ir_version() > MAX_IR_VERSION {
        let found = model.ir_version();
        return Err(Error::new(
            ErrorKind::Unsupported,
            format!("IR version {found} is newer than {MAX_IR_VERSION}, the newest one known"),
        ));
    }
    if model.opset_import.is_empty() && model.ir_version() >= 3 {
        return malformed("no operator set is imported: the file is cut short");
    }
    for import in &model.opset_import {
        if normal_domain(import.domain()) == "ai.onnx"
            && !(1..=MAX_OPSET).contains(&import.version())
        {
            return Err(Error::new(
                ErrorKind::Unsupported,
                format!(
                    "operator set `ai.onnx` version {} is unknown, expected 1 to {MAX_OPSET}",
                    import.version()
                ),
            ));
        }
    }

    let mut checker = Checker { folder, problems: Vec::new() };
    checker.graph(graph, &mut Vec::new());
    checker.finish()
}

/// Collects what is wrong, with its kind, in the order of the file.
struct Checker<'a> {
    folder: Option<&'a Path>,
    problems: Vec<(ErrorKind, String)>,
}

impl Checker<'_> {
    fn invalid(&mut self, problem: String) {
        self.problems.push((ErrorKind::InvalidGraph, problem));
    }

    /// `scopes` holds the names that the enclosing graphs define.
    fn graph<'g>(&mut self, graph: &'g GraphProto, scopes: &mut Vec<HashSet<&'g str>>) {
        for tensor in &graph.initializer {
            if tensor.name().is_empty() {
                self.invalid("an initializer has no name".to_owned());
            }
            self.tensor(tensor, &format!("initializer `{}`", tensor.name()));
        }
        for value in graph.input.iter().chain(&graph.output) {
            if value.name().is_empty() {
                self.invalid("a graph input or output has no name".to_owned());
            }
        }

        let mut defined: HashSet<&str> = HashSet::new();
        let inputs = graph.input.iter().map(|input| input.name());
        for name in inputs.chain(graph.initializer.iter().map(|tensor| tensor.name())) {
            defined.insert(name);
        }
        for node in &graph.node {
            for output in node.output.iter().filter(|name| !name.is_empty()) {
                if !defined.insert(output) {
                    self.invalid(format!("value `{output}` is defined twice"));
                }
            }
        }
        defined.extend(index::defined_names(graph));
        scopes.push(defined);

        let is_known = |name: &str, scopes: &[HashSet<&str>]| {
            name.is_empty() || scopes.iter().any(|scope| scope.contains(name))
        };
        for node in &graph.node {
            self.node(node);
            for input in &node.input {
                if !is_known(input, scopes) {
                    self.invalid(format!(
                        "{} uses the value `{input}`, which nothing defines",
                        describe(node)
                    ));
                }
            }
            for (_, nested) in node.subgraphs() {
                self.graph(nested, scopes);
            }
        }
        for output in &graph.output {
            if !is_known(output.name(), scopes) {
                self.invalid(format!("nothing defines the graph output `{}`", output.name()));
            }
        }
        scopes.pop();
    }

    fn node(&mut self, node: &NodeProto) {
        if node.op_type().is_empty() {
            self.invalid(format!("node `{}` names no operator", node.label()));
        }
        if node.is_standard("Constant") && node.output.len() != 1 {
            self.invalid(format!(
                "{} has {} outputs, expected 1",
                describe(node),
                node.output.len()
            ));
        }
        for attribute in &node.attribute {
            for tensor in attribute.t.iter().chain(&attribute.tensors) {
                let place = format!("attribute `{}` of {}", attribute.name(), describe(node));
                self.tensor(tensor, &place);
            }
        }
    }

    fn tensor(&mut self, tensor: &TensorProto, place: &str) {
        if let Err(error) = constant::check_tensor(tensor, self.folder) {
            let kind = error.kind();
            self.problems.push((kind, format!("{place}: {error}")));
        }
    }

    /// One error of the first problem's kind, with all problems.
    fn finish(self) -> Result<()> {
        let Some(&(kind, _)) = self.problems.first() else {
            return Ok(());
        };
        Err(Error::many(kind, self.problems.into_iter().map(|(_, problem)| problem).collect()))
    }
}

/// ``operator `Conv` (node `conv1`)``.
pub(crate) fn describe(node: &NodeProto) -> String {
    format!("operator `{}` (node `{}`)", node.op_type(), node.label())
}

/// The size of the data of `tensor`, whose dimensions and type are checked.
pub(super) fn checked_size(tensor: &TensorProto) -> Result<(DType, usize, usize)> {
    let dtype = DType::from_onnx(tensor.data_type())?;
    let invalid = |problem: String| Error::new(ErrorKind::InvalidGraph, problem);
    let n_elements = tensor.dims.iter().try_fold(1usize, |product, &dim| {
        let dim = usize::try_from(dim)
            .map_err(|_| invalid(format!("shape {:?} has a negative size", tensor.dims)))?;
        product
            .checked_mul(dim)
            .ok_or_else(|| invalid(format!("shape {:?} has too many elements", tensor.dims)))
    })?;
    let size_bytes = dtype
        .size_bytes(n_elements)
        .ok_or_else(|| invalid(format!("shape {:?} has too many elements", tensor.dims)))?;
    if tensor.segment.is_some() {
        return Err(Error::new(
            ErrorKind::Unsupported,
            "a tensor stored in segments cannot be read".to_owned(),
        ));
    }
    if external::is_external(tensor) && dtype == DType::String {
        return Err(invalid("strings cannot be stored in external data".to_owned()));
    }
    Ok((dtype, n_elements, size_bytes))
}

/// Element type and shape of `tensor`.
pub(crate) fn dtype_and_shape(tensor: &TensorProto) -> Result<(DType, Vec<usize>)> {
    let (dtype, _, _) = checked_size(tensor)?;
    Ok((dtype, tensor.dims.iter().map(|&dim| dim as usize).collect()))
}
