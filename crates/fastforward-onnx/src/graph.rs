//! An ONNX file as it is: loaded without loss, looked at, changed, written back.

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use prost::Message;

use crate::dtype::DType;
use crate::error::{Error, ErrorKind, Result};
use crate::proto::{
    GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorProto, TensorShapeProto,
    TypeProto, ValueInfoProto,
    tensor_shape_proto::{Dimension, dimension},
    type_proto,
};

mod check;
mod constant;
mod external;
mod index;
mod save;
mod stored;
mod weights;

pub(crate) use check::describe as check_describe;
pub(crate) use constant::constants_of;
pub(crate) use index::{captured_names, defined_names};
pub(crate) use save::{DataFile, Fill, data_path, filled_tensor};
pub(crate) use stored::Stored;
pub(crate) use weights::dtype_name;

/// Tensor messages decoded and made.
pub(crate) mod data {
    pub(crate) use super::check::dtype_and_shape;
    pub(crate) use super::constant::{
        constant_node_value, pack_codes, packed_bytes, raw_tensor, tensor_from_floats, to_f32,
        to_i64,
    };
}

pub use constant::{
    Constant, ConstantOrigin, tensor_from_codes, tensor_from_f32, tensor_from_floats,
    tensor_from_i64,
};
pub use index::{GraphIndex, Use};
pub use save::Saved;

/// Newest IR version of the schema in [`crate::proto`].
pub const MAX_IR_VERSION: i64 = 14;
/// Newest version of the standard operator set that is known.
pub const MAX_OPSET: i64 = 28;

/// A loaded ONNX file.
///
/// Everything in it is reachable and changeable through [`Model::proto`] and
/// [`Model::proto_mut`]; the other methods are views that spare the caller the
/// format's variants. Inline tensor data stays in the buffer that was read;
/// tensor data in external files is read when asked for.
///
/// ```
/// use fastforward_onnx::graph::Model;
/// # let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/digits/digits_mlp.onnx");
///
/// let model = Model::load(path.as_ref())?;
/// assert_eq!(model.inputs()[0].to_string(), "image: float32 [N, 1, 8, 8]");
/// assert_eq!(model.opset("").unwrap(), 13);
/// let bias = model.constant("fc3.bias").unwrap();
/// assert_eq!(bias.info()?.shape, [10]);
/// # Ok::<(), fastforward_onnx::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Model {
    proto: ModelProto,
    path: Option<PathBuf>,
    /// Where external data files lie.
    folder: Option<PathBuf>,
    canonical: bool,
    /// How many tensors had external data when it was read.
    n_external: usize,
    /// The files that it was read from, where those are weights without a graph.
    weights: Option<weights::WeightFiles>,
}

impl Model {
    /// Reads the file at `path`.
    ///
    /// A file of weights, `*.safetensors` or the index of several, `*.safetensors.index.json`, becomes a graph without nodes:
    /// its tensors are initializers whose data lies in it.
    ///
    /// Takes as much memory as the file has bytes; external data is checked
    /// against the size of its file but not read.
    ///
    /// # Errors
    /// `Io`; `Malformed` for bytes that are no ONNX file or are cut short;
    /// `Unsupported` for an IR or operator set version that is too new and for
    /// unknown element types; `ExternalData` for a data file that is missing,
    /// too short, or outside the model's folder; `InvalidGraph` for a file that
    /// contradicts itself. All problems of a kind are reported at once.
    pub fn load(path: &Path) -> Result<Self> {
        let metadata = std::fs::metadata(path).map_err(|e| Error::io("read", path, e))?;
        if !metadata.is_file() {
            return Err(Error::new(
                ErrorKind::Io,
                format!("cannot read `{}`: not a file", path.display()),
            ));
        }
        if weights::holds_weights(path) {
            return weights::load(path);
        }
        let bytes = std::fs::read(path).map_err(|e| Error::io("read", path, e))?;
        let folder = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        let mut model = Self::from_bytes(bytes, Some(folder))
            .map_err(|error| error.within(format_args!("`{}`", path.display())))?;
        model.path = Some(path.to_owned());
        Ok(model)
    }

    /// Reads a file's bytes; `folder` is where its external data lies.
    ///
    /// # Errors
    /// As [`Model::load`], and `ExternalData` when there is external data but
    /// no folder.
    pub fn from_bytes(bytes: impl Into<Bytes>, folder: Option<&Path>) -> Result<Self> {
        let bytes = bytes.into();
        let size = bytes.len();
        // The length of a header that is JSON.
        let is_weights = bytes.get(4..9).is_some_and(|some| some == b"\0\0\0\0{");
        let proto = ModelProto::decode(bytes).map_err(|error| {
            let text = match is_weights {
                true => "not an ONNX file; it begins as safetensors do, whose names end with `.safetensors`".to_owned(),
                false => format!("not an ONNX file, or cut short: {error}"),
            };
            Error::new(ErrorKind::Malformed, text)
                .caused_by(error)
        })?;
        // Every byte of a canonical encoding is accounted for by a known field.
        let canonical = proto.encoded_len() == size;
        Ok(Self { canonical, ..Self::from_proto(proto, folder)? })
    }

    /// Wraps messages made in memory, with the same checks as a file.
    ///
    /// # Errors
    /// As [`Model::from_bytes`].
    pub fn from_proto(proto: ModelProto, folder: Option<&Path>) -> Result<Self> {
        check::check_model(&proto, folder)?;
        let mut model = Self {
            proto,
            path: None,
            folder: folder.map(Path::to_owned),
            canonical: true,
            n_external: 0,
            weights: None,
        };
        model.n_external = model.external_tensors().count();
        Ok(model)
    }

    /// The file's messages.
    pub fn proto(&self) -> &ModelProto {
        &self.proto
    }

    /// The file's messages, to be changed. [`Model::check`] says whether they
    /// still make sense.
    pub fn proto_mut(&mut self) -> &mut ModelProto {
        &mut self.proto
    }

    /// The main graph.
    pub fn graph(&self) -> &GraphProto {
        static EMPTY: std::sync::LazyLock<GraphProto> =
            std::sync::LazyLock::new(GraphProto::default);
        self.proto.graph.as_ref().unwrap_or(&EMPTY)
    }

    /// The main graph, to be changed.
    pub fn graph_mut(&mut self) -> &mut GraphProto {
        self.proto.graph.get_or_insert_default()
    }

    /// Checks the model again, after changes.
    ///
    /// # Errors
    /// As [`Model::from_proto`].
    pub fn check(&self) -> Result<()> {
        check::check_model(&self.proto, self.folder.as_deref())
    }

    /// The file this model was loaded from.
    pub fn path(&self) -> Option<&Path> {
        self.path.as_deref()
    }

    /// Whether writing the model unchanged gives the bytes that were read.
    ///
    /// `false` means that the file used fields unknown to the schema (they are
    /// lost on writing) or another than the canonical encoding (nothing is lost).
    pub fn is_canonical(&self) -> bool {
        self.canonical
    }

    /// The imported version of an operator set; `""` and `"ai.onnx"` are the standard one.
    pub fn opset(&self, domain: &str) -> Option<i64> {
        let wanted = normal_domain(domain);
        let import = self.proto.opset_import.iter().find(|i| normal_domain(i.domain()) == wanted);
        import.map(OperatorSetIdProto::version)
    }

    /// Imports `version` of an operator set, in the place of any other version.
    pub fn set_opset(&mut self, domain: &str, version: i64) {
        let wanted = normal_domain(domain);
        match self.proto.opset_import.iter_mut().find(|i| normal_domain(i.domain()) == wanted) {
            Some(import) => import.version = Some(version),
            None => self.proto.opset_import.push(OperatorSetIdProto {
                domain: Some(domain.to_owned()),
                version: Some(version),
            }),
        }
    }

    /// What must be fed: the graph's inputs without those that are initializers
    /// (which files of IR version 3 list among them).
    pub fn inputs(&self) -> Vec<ValueInfo> {
        let graph = self.graph();
        let is_weight = |name: &str| graph.initializer.iter().any(|tensor| tensor.name() == name);
        graph.input.iter().filter(|input| !is_weight(input.name())).map(ValueInfo::of).collect()
    }

    /// What the graph computes.
    pub fn outputs(&self) -> Vec<ValueInfo> {
        self.graph().output.iter().map(ValueInfo::of).collect()
    }

    /// What the file states about every value of the main graph: inputs,
    /// outputs, recorded intermediate values and constants.
    pub fn value_infos(&self) -> HashMap<String, ValueInfo> {
        let graph = self.graph();
        let stated = graph.value_info.iter().chain(&graph.input).chain(&graph.output);
        let mut infos: HashMap<String, ValueInfo> =
            stated.map(|value| (value.name().to_owned(), ValueInfo::of(value))).collect();
        for constant in self.constants() {
            if let Ok(info) = constant.info() {
                let shape = Some(info.shape.iter().map(|&size| Dim::Fixed(size)).collect());
                let name = constant.name().to_owned();
                infos.insert(name.clone(), ValueInfo { name, dtype: Some(info.dtype), shape });
            }
        }
        infos
    }

    /// The constants of the main graph: initializers, then `Constant` nodes.
    pub fn constants(&self) -> impl Iterator<Item = Constant<'_>> {
        constant::constants_of(self.graph(), self.folder.as_deref())
    }

    /// The constants of the main graph, then those of the graphs nested in its nodes.
    pub fn all_constants(&self) -> impl Iterator<Item = Constant<'_>> {
        self.all_graphs().flat_map(|graph| constant::constants_of(graph, self.folder.as_deref()))
    }

    /// The main graph, then the graphs nested in its nodes, outer ones first.
    pub fn all_graphs(&self) -> impl Iterator<Item = &GraphProto> {
        let mut graphs = vec![self.graph()];
        let mut at = 0;
        while let Some(&graph) = graphs.get(at) {
            let nested = graph.node.iter().flat_map(NodeProto::subgraphs);
            graphs.extend(nested.map(|(_, graph)| graph));
            at += 1;
        }
        graphs.into_iter()
    }

    /// The constant called `name`, an initializer or the output of a `Constant` node.
    pub fn constant(&self, name: &str) -> Option<Constant<'_>> {
        self.constants().find(|constant| constant.name() == name)
    }

    /// Puts `tensor` where the constant of its name stands, or adds it as an
    /// initializer.
    ///
    /// A `Constant` node keeps its place and gets the attribute `value`.
    pub fn set_constant(&mut self, tensor: TensorProto) {
        constant::set_constant(self.graph_mut(), tensor);
    }

    /// Who produces and who consumes each value of the main graph.
    pub fn index(&self) -> GraphIndex {
        GraphIndex::new(self.graph())
    }

    /// Bytes of all constants of the main graph, inline and external, strings aside.
    pub fn weight_bytes(&self) -> u64 {
        self.constants().filter_map(|c| c.info().ok()).map(|info| info.size_bytes as u64).sum()
    }

    /// The files besides its own that the model's data lies in, each once, sorted.
    ///
    /// # Errors
    /// As [`Model::load`], where files changed since.
    pub fn data_files(&self) -> Result<Vec<PathBuf>> {
        let files: BTreeSet<PathBuf> =
            self.external_ranges()?.into_iter().map(|range| range.path).collect();
        Ok(files.into_iter().collect())
    }

    /// The tensors with external data, nested graphs included.
    fn external_tensors(&self) -> impl Iterator<Item = &TensorProto> {
        let mut tensors = Vec::new();
        save::each_tensor(self.graph(), &mut |tensor| tensors.push(tensor));
        tensors.into_iter().filter(|tensor| external::is_external(tensor))
    }

    /// Whether tensors had their data in other files when the model was read.
    pub fn has_external_data(&self) -> bool {
        self.n_external > 0
    }

    pub(crate) fn folder(&self) -> Option<&Path> {
        self.folder.as_deref()
    }
}

fn normal_domain(domain: &str) -> &str {
    if domain.is_empty() { "ai.onnx" } else { domain }
}

/// Name, element type and shape of a value, as far as the file states them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ValueInfo {
    /// The value's name.
    pub name: String,
    /// The element type; `None` where unknown, or where the value is no tensor.
    pub dtype: Option<DType>,
    /// The axes; `None` where even their number is unknown.
    pub shape: Option<Vec<Dim>>,
}

/// The size of one axis.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Dim {
    /// Always this many.
    Fixed(usize),
    /// The same number wherever the name stands.
    Symbolic(String),
    /// Any number.
    Unknown,
}

/// Element type, shape and size of a tensor whose shape is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorInfo {
    /// The element type.
    pub dtype: DType,
    /// The size of each axis.
    pub shape: Vec<usize>,
    /// Bytes of the packed elements.
    pub size_bytes: usize,
}

impl ValueInfo {
    /// What `value` states.
    pub fn of(value: &ValueInfoProto) -> Self {
        let tensor = value.r#type.as_ref().and_then(tensor_type);
        Self {
            name: value.name().to_owned(),
            dtype: tensor.and_then(|t| DType::from_onnx(t.elem_type()).ok()),
            shape: tensor.and_then(|t| t.shape.as_ref()).map(|shape| {
                let dims = shape.dim.iter().map(|dim| match &dim.value {
                    Some(dimension::Value::DimValue(size)) => {
                        usize::try_from(*size).map_or(Dim::Unknown, Dim::Fixed)
                    }
                    // Some exporters write `?` for every size they do not know.
                    Some(dimension::Value::DimParam(name)) if !name.is_empty() && name != "?" => {
                        Dim::Symbolic(name.clone())
                    }
                    _ => Dim::Unknown,
                });
                dims.collect()
            }),
        }
    }

    /// The message that states this; the inverse of [`ValueInfo::of`].
    pub fn to_proto(&self) -> ValueInfoProto {
        let dims = |dims: &[Dim]| {
            let value = |dim: &Dim| match dim {
                Dim::Fixed(size) => Some(dimension::Value::DimValue(*size as i64)),
                Dim::Symbolic(name) => Some(dimension::Value::DimParam(name.clone())),
                Dim::Unknown => None,
            };
            let dim = |dim| Dimension { denotation: None, value: value(dim) };
            TensorShapeProto { dim: dims.iter().map(dim).collect() }
        };
        let tensor = |dtype: DType| type_proto::Tensor {
            elem_type: Some(dtype.to_onnx()),
            shape: self.shape.as_deref().map(dims),
        };
        let kind = |dtype| TypeProto {
            denotation: None,
            value: Some(type_proto::Value::TensorType(tensor(dtype))),
        };
        ValueInfoProto {
            name: Some(self.name.clone()),
            r#type: self.dtype.map(kind),
            ..ValueInfoProto::default()
        }
    }

    /// The shape, where every axis is fixed.
    pub fn fixed_shape(&self) -> Option<Vec<usize>> {
        self.shape.as_ref()?.iter().map(Dim::fixed).collect()
    }
}

impl Dim {
    /// The size, where it is fixed.
    pub fn fixed(&self) -> Option<usize> {
        match self {
            Self::Fixed(size) => Some(*size),
            _ => None,
        }
    }
}

fn tensor_type(kind: &TypeProto) -> Option<&type_proto::Tensor> {
    match &kind.value {
        Some(type_proto::Value::TensorType(tensor)) => Some(tensor),
        _ => None,
    }
}

impl fmt::Display for Dim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fixed(size) => write!(f, "{size}"),
            Self::Symbolic(name) => f.write_str(name),
            Self::Unknown => f.write_str("?"),
        }
    }
}

impl fmt::Display for ValueInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let dtype = self.dtype.map_or("?", DType::name);
        write!(f, "{}: {dtype} {}", self.name, ShapeText(self.shape.as_deref()))
    }
}

/// `[N, 1, 28, 28]`, or `[..]` where the number of axes is unknown.
pub(crate) struct ShapeText<'a>(pub(crate) Option<&'a [Dim]>);

impl fmt::Display for ShapeText<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(dims) = self.0 else {
            return f.write_str("[..]");
        };
        let dims: Vec<String> = dims.iter().map(Dim::to_string).collect();
        write!(f, "[{}]", dims.join(", "))
    }
}
