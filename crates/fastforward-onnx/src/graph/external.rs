//! Tensor data in files beside the model.

use std::path::{Component, Path, PathBuf};

use crate::error::{Error, ErrorKind, Result};
use crate::proto::{StringStringEntryProto, TensorProto, tensor_proto};

/// A stretch of a data file, checked to lie inside it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ExternalRange {
    /// As the file states it, relative to the model's folder.
    pub(super) location: String,
    pub(super) path: PathBuf,
    pub(super) offset: u64,
    pub(super) length: u64,
}

/// Whether the data of `tensor` lies in another file.
pub(crate) fn is_external(tensor: &TensorProto) -> bool {
    tensor.data_location() == tensor_proto::DataLocation::External
}

/// Finds the `size_bytes` bytes of `tensor`.
///
/// The location must name a file below `folder` without leaving it, the stated
/// length must be the tensor's size, and the file must hold the whole range.
pub(super) fn locate(
    tensor: &TensorProto,
    size_bytes: usize,
    folder: Option<&Path>,
) -> Result<ExternalRange> {
    let wrong = |problem: String| Error::new(ErrorKind::ExternalData, problem);
    let entry = |key: &str| {
        tensor
            .external_data
            .iter()
            .find(|entry| entry.key() == key)
            .map(StringStringEntryProto::value)
    };
    let number = |key: &str, default: u64| match entry(key) {
        None => Ok(default),
        Some(text) => text
            .parse()
            .map_err(|_| wrong(format!("external data has the {key} `{text}`, expected a number"))),
    };

    let location =
        entry("location").ok_or_else(|| wrong("external data states no location".to_owned()))?;
    let path = Path::new(location);
    let stays_inside = !location.is_empty()
        && !location.contains('\\')
        && path.components().all(|part| matches!(part, Component::Normal(_) | Component::CurDir));
    if !stays_inside {
        return Err(wrong(format!(
            "external data lies in `{location}`, expected a path inside the model's folder"
        )));
    }
    let size_bytes = size_bytes as u64;
    let (offset, length) = (number("offset", 0)?, number("length", size_bytes)?);
    if length != size_bytes {
        return Err(wrong(format!(
            "external data states {length} bytes, but type and shape need {size_bytes}"
        )));
    }
    let folder = folder.ok_or_else(|| {
        wrong(format!(
            "external data lies in `{location}`, but the model was not read from a folder"
        ))
    })?;
    let path = folder.join(path);
    let metadata = std::fs::metadata(&path).map_err(|error| {
        wrong(format!("cannot read external data `{}`: {error}", path.display()))
    })?;
    if !metadata.is_file() {
        return Err(wrong(format!("external data `{}` is not a file", path.display())));
    }
    let end = offset.checked_add(length);
    if end.is_none_or(|end| end > metadata.len()) {
        return Err(wrong(format!(
            "external data needs {length} bytes at {offset}, but `{}` has {}",
            path.display(),
            metadata.len()
        )));
    }
    Ok(ExternalRange { location: location.to_owned(), path, offset, length })
}

/// Makes `tensor` refer to a range of the file `location`.
pub(super) fn refer(tensor: &mut TensorProto, location: &str, offset: u64, length: u64) {
    let entry = |key: &str, value: String| StringStringEntryProto {
        key: Some(key.to_owned()),
        value: Some(value),
    };
    clear_data(tensor);
    tensor.external_data = vec![
        entry("location", location.to_owned()),
        entry("offset", offset.to_string()),
        entry("length", length.to_string()),
    ];
    tensor.data_location = Some(tensor_proto::DataLocation::External as i32);
}

/// Removes the data of `tensor`, wherever it is; type and shape stay.
pub(super) fn clear_data(tensor: &mut TensorProto) {
    tensor.raw_data = None;
    tensor.float_data.clear();
    tensor.int32_data.clear();
    tensor.int64_data.clear();
    tensor.double_data.clear();
    tensor.uint64_data.clear();
    tensor.string_data.clear();
    tensor.external_data.clear();
    tensor.data_location = None;
}
