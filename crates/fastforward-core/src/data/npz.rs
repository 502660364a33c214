//! Reading the directory of an `.npz` file: a zip archive of NumPy arrays.
//!
//! Members that are stored as they are (`numpy.savez`) are read by ranges of samples. A compressed member
//! (`numpy.savez_compressed`) can only be unpacked from its start, so it is unpacked once, in its own element type.

use std::fs::File;
use std::io::{BufReader, Read};
use std::path::Path;
use std::sync::Arc;

use npyz::zip::{CompressionMethod, ZipArchive};

use super::npy;
use super::tensor::{Place, StoredTensor, format_error, io_error};
use crate::Error;

/// The arrays of an archive in its order, and the members that are no readable arrays with the reason.
pub(super) fn open(path: &Path) -> Result<(Vec<StoredTensor>, Vec<String>), Error> {
    let file = File::open(path).map_err(|e| io_error(path, "cannot be opened", e))?;
    let length = file.metadata().map_err(|e| io_error(path, "cannot be read", e))?.len();
    let mut archive = ZipArchive::new(BufReader::new(file)).map_err(|error| {
        format_error(path, format!("not a complete npz file (a zip archive): {error}"))
            .with_source(error)
    })?;
    let shared_path: Arc<Path> = path.into();
    let mut tensors = vec![];
    let mut passed_over = vec![];
    for index in 0..archive.len() {
        let mut member = archive.by_index(index).map_err(|error| {
            format_error(path, format!("member {index} cannot be read: {error}")).with_source(error)
        })?;
        let file_name = member.name().to_owned();
        let Some(name) = file_name.strip_suffix(".npy") else {
            passed_over.push(format!("`{file_name}` (no .npy)"));
            continue;
        };
        let start = member.data_start();
        let stored = member.compression() == CompressionMethod::Stored;
        let header = match npy::read_header(&mut member) {
            Ok(header) => header,
            Err(what) => {
                passed_over.push(format!("`{name}` ({what})"));
                continue;
            }
        };
        let in_member =
            |what: String| format_error(path, format!("truncated: array `{name}` {what}"));
        let needed = header.data_bytes();
        let place = if stored {
            let end = start.checked_add(header.bytes).and_then(|at| at.checked_add(needed));
            if end.is_none_or(|end| end > length)
                || header.bytes.saturating_add(needed) > member.size()
            {
                return Err(in_member(format!(
                    "of shape {:?} needs {needed} bytes, the member has {}",
                    header.shape,
                    member.size().saturating_sub(header.bytes)
                )));
            }
            Place::File { path: Arc::clone(&shared_path), offset: start + header.bytes }
        } else {
            // The vector grows as bytes arrive: the header's shape is only a claim.
            let mut bytes = vec![];
            member.by_ref().take(needed).read_to_end(&mut bytes).map_err(|error| {
                format_error(path, format!("array `{name}` cannot be unpacked: {error}"))
                    .with_source(error)
            })?;
            if bytes.len() as u64 != needed {
                return Err(in_member(format!(
                    "of shape {:?} needs {needed} bytes, the member has {}",
                    header.shape,
                    bytes.len()
                )));
            }
            Place::Memory(bytes.into())
        };
        tensors.push(StoredTensor::in_one_place(
            name.to_owned(),
            header.element,
            header.shape,
            path,
            place,
            header.big_endian,
        ));
    }
    Ok((tensors, passed_over))
}
