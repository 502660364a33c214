//! Reading the header of a safetensors file.
//!
//! Eight bytes of header length, a JSON object that maps names to type, shape and byte range, then the bytes. Only the
//! header is read here; samples are read when they are asked for.

use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;

use serde::Deserialize;

use super::ElementType;
use super::tensor::{Place, StoredTensor, format_error, io_error, size_bytes};
use crate::Error;

/// As the format's specification limits it.
const MAX_HEADER_BYTES: u64 = 100_000_000;

#[derive(Deserialize)]
struct Entry {
    dtype: String,
    shape: Vec<usize>,
    data_offsets: [u64; 2],
}

/// The tensors of a file, in the order of their bytes. Types that no input can take are passed over, and named in the
/// second list.
pub(super) fn open(path: &Path) -> Result<(Vec<StoredTensor>, Vec<String>), Error> {
    let mut file = File::open(path).map_err(|e| io_error(path, "cannot be opened", e))?;
    let length = file.metadata().map_err(|e| io_error(path, "cannot be read", e))?.len();
    let not_one = |what: String| format_error(path, format!("not a safetensors file: {what}"));

    let mut prefix = [0; 8];
    if length < 8 {
        return Err(not_one(format!("it has {length} bytes, the header length alone takes 8")));
    }
    file.read_exact(&mut prefix).map_err(|e| io_error(path, "cannot be read", e))?;
    let header_bytes = u64::from_le_bytes(prefix);
    if header_bytes > MAX_HEADER_BYTES {
        return Err(not_one(format!("its header would take {header_bytes} bytes")));
    }
    if header_bytes > length - 8 {
        return Err(format_error(
            path,
            format!("truncated: the header takes {header_bytes} bytes, {} are there", length - 8),
        ));
    }
    let mut header = vec![0; header_bytes as usize];
    file.read_exact(&mut header).map_err(|e| io_error(path, "cannot be read", e))?;
    let header: serde_json::Map<String, serde_json::Value> = serde_json::from_slice(&header)
        .map_err(|error| {
            not_one(format!("its header is no JSON object ({error})")).with_source(error)
        })?;

    let data_start = 8 + header_bytes;
    let data_bytes = length - data_start;
    let shared_path: Arc<Path> = path.into();
    let mut tensors = vec![];
    let mut passed_over = vec![];
    for (name, entry) in header {
        if name == "__metadata__" {
            continue;
        }
        let entry = Entry::deserialize(entry)
            .map_err(|error| format_error(path, format!("entry of tensor `{name}`: {error}")))?;
        let [start, end] = entry.data_offsets;
        if start > end {
            return Err(format_error(
                path,
                format!("tensor `{name}` ends at byte {end}, before it starts at {start}"),
            ));
        }
        if end > data_bytes {
            return Err(format_error(
                path,
                format!(
                    "truncated: tensor `{name}` ends at byte {end} of the data, {data_bytes} are there"
                ),
            ));
        }
        let Some(element) = ElementType::from_safetensors(&entry.dtype) else {
            passed_over.push(format!("`{name}` ({})", entry.dtype));
            continue;
        };
        if size_bytes(element, &entry.shape).is_none_or(|needed| needed as u64 != end - start) {
            return Err(format_error(
                path,
                format!(
                    "tensor `{name}` of type {element} and shape {:?} does not take the {} bytes it has",
                    entry.shape,
                    end - start
                ),
            ));
        }
        let place = Place::File { path: Arc::clone(&shared_path), offset: data_start + start };
        tensors.push((
            start,
            StoredTensor::in_one_place(name, element, entry.shape, path, place, false),
        ));
    }
    tensors.sort_by(|(a, x), (b, y)| a.cmp(b).then_with(|| x.name.cmp(&y.name)));
    Ok((tensors.into_iter().map(|(_, tensor)| tensor).collect(), passed_over))
}
