//! Files of weights without a graph: safetensors, one file or several with an index.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Read;
use std::path::{Component, Path};

use bytes::Bytes;
use serde::Deserialize;

use super::constant::raw_tensor;
use super::{Model, external};
use crate::dtype::DType;
use crate::error::{Error, ErrorKind, Result};
use crate::proto::{GraphProto, ModelProto, OperatorSetIdProto, TensorProto};

/// The end of the name of a file of weights.
const SUFFIX: &str = ".safetensors";
/// The end of the name of an index over several.
const INDEX_SUFFIX: &str = ".safetensors.index.json";
/// A longer header is no header; the format's own limit.
const MAX_HEADER: u64 = 100_000_000;

/// What a model was read from, where that is no graph.
#[derive(Clone, Debug)]
pub(crate) struct WeightFiles {
    /// The files by the names that stand in the model's messages.
    pub(crate) files: BTreeMap<String, WeightFile>,
    /// Whether an index names them.
    pub(crate) has_index: bool,
}

/// One file of weights.
#[derive(Clone, Debug)]
pub(crate) struct WeightFile {
    /// What the file says about itself.
    pub(crate) metadata: BTreeMap<String, String>,
}

/// Whether the name of a file says that it holds weights without a graph.
pub(super) fn holds_weights(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    name.ends_with(SUFFIX) || name.ends_with(INDEX_SUFFIX)
}

/// Reads the headers: every tensor becomes an initializer whose data lies in its file.
pub(super) fn load(path: &Path) -> Result<Model> {
    let folder = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let has_index = path.to_string_lossy().ends_with(INDEX_SUFFIX);
    let index = if has_index { read_index(path)? } else { BTreeMap::new() };
    let names: BTreeSet<String> = if has_index {
        index.values().cloned().collect()
    } else {
        BTreeSet::from([path.file_name().unwrap_or_default().to_string_lossy().into_owned()])
    };
    let mut tensors = Vec::new();
    let mut files = BTreeMap::new();
    let mut problems = Vec::new();
    for name in names {
        match read_header(&folder.join(&name), &name) {
            Ok((found, metadata)) => {
                tensors.extend(found);
                files.insert(name, WeightFile { metadata });
            }
            Err(error) => problems.push(error),
        }
    }
    match problems.as_slice() {
        [] => {}
        [first, ..] => {
            let kind = first.kind();
            return Err(match problems.len() {
                1 => problems.remove(0),
                _ => Error::many(kind, problems.iter().map(ToString::to_string).collect()),
            });
        }
    }
    let mut seen = BTreeSet::new();
    let twice = tensors.iter().map(|tensor| tensor.name()).filter(|name| !seen.insert(*name));
    let twice: Vec<String> =
        twice.map(|name| format!("tensor `{name}` stands in two files")).collect();
    if !twice.is_empty() {
        return Err(Error::many(ErrorKind::InvalidGraph, twice)
            .within(format_args!("`{}`", path.display())));
    }
    let stands: BTreeMap<&str, Option<&str>> =
        tensors.iter().map(|tensor| (tensor.name(), Model::location(tensor))).collect();
    let missing: Vec<String> = index
        .iter()
        .filter(|(tensor, file)| stands.get(tensor.as_str()) != Some(&Some(file)))
        .map(|(tensor, file)| format!("tensor `{tensor}` is not in `{file}`, where it should be"))
        .collect();
    if !missing.is_empty() {
        return Err(
            Error::many(ErrorKind::Malformed, missing).within(format_args!("`{}`", path.display()))
        );
    }
    let proto = ModelProto {
        ir_version: Some(super::MAX_IR_VERSION),
        opset_import: vec![OperatorSetIdProto { domain: None, version: Some(super::MAX_OPSET) }],
        graph: Some(GraphProto { initializer: tensors, ..GraphProto::default() }),
        ..ModelProto::default()
    };
    let mut model = Model::from_proto(proto, Some(folder))
        .map_err(|error| error.within(format_args!("`{}`", path.display())))?;
    model.path = Some(path.to_owned());
    model.weights = Some(WeightFiles { files, has_index });
    Ok(model)
}

/// The file of each tensor, as an index says.
fn read_index(path: &Path) -> Result<BTreeMap<String, String>> {
    #[derive(Deserialize)]
    struct Index {
        weight_map: BTreeMap<String, String>,
    }
    let malformed =
        |what: String| Error::new(ErrorKind::Malformed, format!("`{}`: {what}", path.display()));
    let text = std::fs::read(path).map_err(|error| Error::io("read", path, error))?;
    let index: Index = serde_json::from_slice(&text)
        .map_err(|error| malformed(format!("not an index of safetensors files: {error}")))?;
    for name in index.weight_map.values() {
        let parts = Path::new(name).components();
        if parts.clone().count() != 1 || !parts.clone().all(|p| matches!(p, Component::Normal(_))) {
            return Err(malformed(format!(
                "it names the file `{name}`, expected one in its own folder"
            )));
        }
    }
    if index.weight_map.is_empty() {
        return Err(malformed("it names no file".to_owned()));
    }
    Ok(index.weight_map)
}

/// The tensors of a file, sorted by name, as references to where their data lies; and its metadata.
fn read_header(path: &Path, name: &str) -> Result<(Vec<TensorProto>, BTreeMap<String, String>)> {
    #[derive(Deserialize)]
    struct Entry {
        dtype: String,
        shape: Vec<u64>,
        data_offsets: [u64; 2],
    }
    let malformed = |what: String| {
        let text = format!("`{}`: {what}", path.display());
        Error::new(ErrorKind::Malformed, text)
    };
    let mut file = File::open(path).map_err(|error| Error::io("read", path, error))?;
    let size = file.metadata().map_err(|error| Error::io("read", path, error))?.len();
    let mut length = [0; 8];
    let mut read = |bytes: &mut [u8]| {
        file.read_exact(bytes).map_err(|error| {
            malformed(format!("not a safetensors file, or cut short: {error}")).caused_by(error)
        })
    };
    read(&mut length)?;
    let length = u64::from_le_bytes(length);
    if length > MAX_HEADER || 8 + length > size {
        return Err(malformed(format!(
            "not a safetensors file, or cut short: a header of {length} bytes in a file of {size}"
        )));
    }
    let mut header = vec![0; length as usize];
    read(&mut header)?;
    let mut header: BTreeMap<String, serde_json::Value> = serde_json::from_slice(&header)
        .map_err(|error| malformed(format!("not a safetensors file: {error}")))?;
    let metadata = match header.remove("__metadata__") {
        None => BTreeMap::new(),
        Some(metadata) => serde_json::from_value(metadata)
            .map_err(|error| malformed(format!("its metadata are no texts: {error}")))?,
    };

    let mut problems = Vec::new();
    let mut tensors = Vec::new();
    let mut ranges = Vec::new();
    let data = 8 + length;
    for (tensor, entry) in header {
        let mut wrong = |what: String| problems.push(format!("tensor `{tensor}`: {what}"));
        let Entry { dtype, shape, data_offsets: [start, end] } = match serde_json::from_value(entry)
        {
            Ok(entry) => entry,
            Err(error) => {
                wrong(error.to_string());
                continue;
            }
        };
        let Some(known) = dtype_of(&dtype) else {
            wrong(format!("element type {dtype} is not supported"));
            continue;
        };
        if start > end || data.checked_add(end).is_none_or(|end| end > size) {
            wrong(format!(
                "its data stands at {start} to {end}, but the file holds {} bytes of data; is it cut short?",
                size - data
            ));
            continue;
        }
        let dims: Vec<usize> = shape
            .iter()
            .filter_map(|&size| i64::try_from(size).ok().map(|size| size as usize))
            .collect();
        let bytes = crate::tensor::n_elements(&dims).and_then(|count| known.size_bytes(count));
        if dims.len() != shape.len() || bytes.is_none_or(|bytes| bytes as u64 != end - start) {
            wrong(format!("{} bytes do not fill {dtype} of shape {shape:?}", end - start));
            continue;
        }
        ranges.push((start, end, tensor.clone()));
        let mut made = raw_tensor(&tensor, known, &dims, Bytes::new());
        external::refer(&mut made, name, data + start, end - start);
        tensors.push(made);
    }
    ranges.sort();
    let overlaps = ranges.windows(2).filter(|pair| pair[0].1 > pair[1].0);
    problems.extend(
        overlaps.map(|pair| format!("tensors `{}` and `{}` overlap", pair[0].2, pair[1].2)),
    );
    if problems.is_empty() {
        // The format knows no gaps: where there is one, header and data are not of one file.
        let ends = ranges.iter().map(|&(start, end, _)| (start, end));
        let mut known = 0;
        for (start, end) in ends.chain([(size - data, size - data)]) {
            if start > known {
                problems.push(format!("bytes {known} to {start} of its data belong to no tensor"));
            }
            known = end;
        }
    }
    if problems.is_empty() {
        Ok((tensors, metadata))
    } else {
        Err(Error::many(ErrorKind::Malformed, problems)
            .within(format_args!("`{}`", path.display())))
    }
}

/// The names of element types, ours beside the format's.
const DTYPES: &[(&str, DType)] = &[
    ("F64", DType::F64),
    ("F32", DType::F32),
    ("F16", DType::F16),
    ("BF16", DType::BF16),
    ("F8_E4M3", DType::F8E4M3FN),
    ("F8_E5M2", DType::F8E5M2),
    ("I64", DType::I64),
    ("I32", DType::I32),
    ("I16", DType::I16),
    ("I8", DType::I8),
    ("U64", DType::U64),
    ("U32", DType::U32),
    ("U16", DType::U16),
    ("U8", DType::U8),
    ("BOOL", DType::Bool),
];

fn dtype_of(name: &str) -> Option<DType> {
    DTYPES.iter().find(|(known, _)| *known == name).map(|(_, dtype)| *dtype)
}

/// What safetensors files call an element type.
pub(crate) fn dtype_name(dtype: DType) -> Option<&'static str> {
    DTYPES.iter().find(|(_, known)| *known == dtype).map(|(name, _)| *name)
}

impl Model {
    /// The files of weights that the model was read from; `None` for a graph.
    pub(crate) fn weight_files(&self) -> Option<&WeightFiles> {
        self.weights.as_ref()
    }

    /// Whether the model is weights without a graph: it can be quantized, but not executed.
    pub fn is_weights(&self) -> bool {
        self.weights.is_some()
    }

    /// Where the data of an initializer lies, by the name of the file.
    pub(crate) fn location(tensor: &TensorProto) -> Option<&str> {
        let entry = tensor.external_data.iter().find(|entry| entry.key() == "location")?;
        Some(entry.value())
    }
}
