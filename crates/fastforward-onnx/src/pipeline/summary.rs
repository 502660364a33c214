//! What a model file holds, in numbers.

use serde::Serialize;

use crate::error::Result;
use crate::graph::{Model, ValueInfo};
use crate::tree::Tree;

/// A model file in numbers.
///
/// ```
/// use fastforward_onnx::{graph::Model, pipeline::ModelSummary, tree::Tree};
/// # let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/digits/digits_mlp.onnx");
///
/// let model = Model::load(path.as_ref())?;
/// let summary = ModelSummary::new(&model, &Tree::new(&model))?;
/// assert_eq!(summary.parameters.elements, 6_570);
/// assert_eq!(summary.outputs, ["logits: float32 [N, 10]"]);
/// # Ok::<(), fastforward_onnx::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ModelSummary {
    /// The file's name, without its folder.
    pub file: String,
    /// Bytes of the file, without external data.
    pub file_bytes: u64,
    /// What kind of file it is, where it is no graph: `safetensors`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub format: Option<&'static str>,
    /// The version of the file format; `None` where it is no graph.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ir_version: Option<i64>,
    /// The version of each operator set, the standard one under `ai.onnx`.
    pub opsets: Vec<OpsetVersion>,
    /// The program that wrote the file, where it says so.
    pub producer: String,
    /// What must be fed: name, type and shape.
    pub inputs: Vec<String>,
    /// What is computed: name, type and shape.
    pub outputs: Vec<String>,
    /// The number of nodes, those of nested graphs included.
    pub nodes: usize,
    /// The constants that nodes work with, those of nested graphs included.
    pub parameters: Totals,
    /// The number of quantizer slots; a slot with several names counts once.
    pub slots: usize,
}

/// A version of an operator set.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct OpsetVersion {
    /// The set's name.
    pub domain: String,
    /// Its version.
    pub version: i64,
}

/// How many tensors, elements and bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Totals {
    /// Tensors.
    pub tensors: usize,
    /// Elements of all tensors.
    pub elements: u64,
    /// Bytes of all tensors.
    pub bytes: u64,
}

impl ModelSummary {
    /// The numbers of a model and its tree.
    ///
    /// # Errors
    /// `InvalidGraph` for a constant that cannot be understood.
    pub fn new(model: &Model, tree: &Tree) -> Result<Self> {
        let proto = model.proto();
        let mut opsets: Vec<OpsetVersion> = proto
            .opset_import
            .iter()
            .map(|import| OpsetVersion {
                domain: match import.domain() {
                    "" => "ai.onnx".to_owned(),
                    other => other.to_owned(),
                },
                version: import.version(),
            })
            .collect();
        opsets.sort_by(|a, b| a.domain.cmp(&b.domain));
        let producer = format!("{} {}", proto.producer_name(), proto.producer_version());
        let mut parameters = Totals::default();
        for constant in model.all_constants() {
            let info = constant.info()?;
            parameters.tensors += 1;
            parameters.elements += info.shape.iter().map(|&size| size as u64).product::<u64>();
            parameters.bytes += info.size_bytes as u64;
        }
        let slots: std::collections::HashSet<usize> =
            tree.sites().iter().map(|site| site.slot.id()).collect();
        let path = model.path();
        Ok(Self {
            file: path.map(file_name).unwrap_or_default(),
            file_bytes: path.and_then(|path| path.metadata().ok()).map_or(0, |file| file.len()),
            format: model.is_weights().then_some("safetensors"),
            ir_version: (!model.is_weights()).then(|| proto.ir_version()),
            opsets: if model.is_weights() { Vec::new() } else { opsets },
            producer: producer.trim().to_owned(),
            inputs: model.inputs().iter().map(ValueInfo::to_string).collect(),
            outputs: model.outputs().iter().map(ValueInfo::to_string).collect(),
            nodes: model.all_graphs().map(|graph| graph.node.len()).sum(),
            parameters,
            slots: slots.len(),
        })
    }
}

/// The last part of a path: reports must not depend on where a file lies.
pub(crate) fn file_name(path: &std::path::Path) -> String {
    path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned()
}
