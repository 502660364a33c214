//! Writing a model whole, with its external data.

use std::collections::BTreeSet;
use std::fs::{File, OpenOptions};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use prost::Message;

use super::Model;
use super::check::checked_size;
use super::constant::packed_bytes;
use super::external::{self, ExternalRange, is_external};
use crate::dtype::DType;
use crate::error::{Error, ErrorKind, Result};
use crate::proto::{GraphProto, TensorProto};

/// A protobuf message cannot be larger than this.
const MAX_MESSAGE_BYTES: usize = i32::MAX as usize;
/// Tensors smaller than this stay inline even when others are moved out.
const MIN_EXTERNAL_BYTES: usize = 1024;
/// Where a tensor starts in a data file: a page, so that it can be mapped.
const ALIGNMENT: u64 = 4096;

/// The files that [`Model::save`] wrote.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Saved {
    /// The model.
    pub model: PathBuf,
    /// Its external data, where there is any.
    pub data: Option<PathBuf>,
    /// Bytes of all files together.
    pub size_bytes: u64,
}

impl Model {
    /// The bytes of the model's file.
    ///
    /// External data stays external: the bytes refer to the files as before.
    pub fn to_bytes(&self) -> Vec<u8> {
        self.proto().encode_to_vec()
    }

    /// Writes the model to `path`, and beside it a data file where the model
    /// has external data or would be larger than 2 GiB.
    ///
    /// An unchanged model gives the bytes that were read (see
    /// [`Model::is_canonical`]), and an unchanged set of external tensors the
    /// same data file under the same name. Each file is written beside its
    /// place and then renamed, so no half-written file is ever seen, and the
    /// files that the model was read from are never replaced.
    ///
    /// # Errors
    /// `Io` when a file cannot be written, or when it would replace a file that
    /// the model was read from; `ExternalData` when a data file cannot be read.
    pub fn save(&self, path: &Path) -> Result<Saved> {
        let plan = self.plan_external(path)?;
        let Some(plan) = plan else {
            self.refuse_to_replace(path)?;
            let bytes = self.to_bytes();
            let mut file = NewFile::create(path)?;
            file.write(&bytes)?;
            file.finish()?;
            return Ok(Saved {
                model: path.to_owned(),
                data: None,
                size_bytes: bytes.len() as u64,
            });
        };

        let data_path = path.with_file_name(&plan.file_name);
        self.refuse_to_replace(path)?;
        self.refuse_to_replace(&data_path)?;
        let mut proto = self.proto().clone();
        let mut data = NewFile::create(&data_path)?;
        match plan.layout {
            Layout::Copy(source) => data.copy(&source)?,
            Layout::Rewrite { min_bytes } => {
                let graph = proto.graph.get_or_insert_default();
                each_tensor_mut(graph, &mut |tensor| {
                    let (dtype, _, size_bytes) = checked_size(tensor)?;
                    let moves = is_external(tensor) || size_bytes >= min_bytes;
                    if dtype == DType::String || !moves {
                        return Ok(());
                    }
                    let bytes = packed_bytes(tensor, self.folder())?;
                    let offset = data.pad_to(ALIGNMENT)?;
                    data.write(&bytes)?;
                    external::refer(tensor, &plan.file_name, offset, bytes.len() as u64);
                    Ok(())
                })?;
            }
        }
        let bytes = proto.encode_to_vec();
        let mut file = NewFile::create(path)?;
        file.write(&bytes)?;
        let size_bytes = data.written + bytes.len() as u64;
        data.finish()?;
        file.finish()?;
        Ok(Saved { model: path.to_owned(), data: Some(data_path), size_bytes })
    }

    /// Decides where external data goes; `None` where there is none.
    fn plan_external(&self, path: &Path) -> Result<Option<Plan>> {
        let ranges = self.external_ranges()?;
        let too_large = self.proto().encoded_len() > MAX_MESSAGE_BYTES;
        if self.n_external == 0 && ranges.is_empty() && !too_large {
            return Ok(None);
        }

        let locations: BTreeSet<&str> =
            ranges.iter().map(|range| range.location.as_str()).collect();
        let single = (locations.len() == 1).then(|| ranges[0].clone());
        if let Some(range) = single
            && !too_large
            && ranges.len() == self.n_external
            && Path::new(&range.location).components().count() == 1
            && !is_same_file(&path.with_file_name(&range.location), &range.path)
        {
            let layout = Layout::Copy(range.path);
            return Ok(Some(Plan { file_name: range.location, layout }));
        }
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        // Tensors that replaced external ones are inline now and move out again.
        let moves_out = too_large || ranges.len() != self.n_external;
        let min_bytes = if moves_out { MIN_EXTERNAL_BYTES } else { usize::MAX };
        Ok(Some(Plan { file_name: format!("{name}.data"), layout: Layout::Rewrite { min_bytes } }))
    }

    fn external_ranges(&self) -> Result<Vec<ExternalRange>> {
        let locate = |tensor: &TensorProto| {
            let (_, _, size_bytes) = checked_size(tensor)?;
            external::locate(tensor, size_bytes, self.folder())
        };
        self.external_tensors().map(locate).collect()
    }

    fn refuse_to_replace(&self, target: &Path) -> Result<()> {
        let ranges = self.external_ranges()?;
        let data = ranges.iter().map(|range| range.path.as_path());
        let mut sources = self.path().into_iter().chain(data);
        if sources.any(|source| is_same_file(target, source)) {
            return Err(Error::new(
                ErrorKind::Io,
                format!("cannot write `{}`: the model was read from it", target.display()),
            ));
        }
        Ok(())
    }
}

struct Plan {
    file_name: String,
    layout: Layout,
}

enum Layout {
    /// The data file as it is, for tensors that did not change.
    Copy(PathBuf),
    /// A new data file, with all external tensors and those of at least `min_bytes`.
    Rewrite { min_bytes: usize },
}

/// Calls `visit` for every tensor that may be external: initializers and
/// tensor attributes, nested graphs included, in the order of the file.
pub(super) fn each_tensor<'g>(graph: &'g GraphProto, visit: &mut dyn FnMut(&'g TensorProto)) {
    graph.initializer.iter().for_each(&mut *visit);
    for attribute in graph.node.iter().flat_map(|node| &node.attribute) {
        attribute.t.iter().chain(&attribute.tensors).for_each(&mut *visit);
        for nested in attribute.g.iter().chain(&attribute.graphs) {
            each_tensor(nested, visit);
        }
    }
}

/// [`each_tensor`], to change them.
fn each_tensor_mut(
    graph: &mut GraphProto,
    visit: &mut dyn FnMut(&mut TensorProto) -> Result<()>,
) -> Result<()> {
    graph.initializer.iter_mut().try_for_each(&mut *visit)?;
    for attribute in graph.node.iter_mut().flat_map(|node| &mut node.attribute) {
        attribute.t.iter_mut().chain(&mut attribute.tensors).try_for_each(&mut *visit)?;
        for nested in attribute.g.iter_mut().chain(&mut attribute.graphs) {
            each_tensor_mut(nested, visit)?;
        }
    }
    Ok(())
}

fn is_same_file(a: &Path, b: &Path) -> bool {
    match (a.canonicalize(), b.canonicalize()) {
        (Ok(a), Ok(b)) => a == b,
        _ => false,
    }
}

/// A file that appears under its name only when it is whole.
struct NewFile {
    target: PathBuf,
    temporary: PathBuf,
    writer: Option<BufWriter<File>>,
    written: u64,
}

impl NewFile {
    fn create(target: &Path) -> Result<Self> {
        static COUNTER: AtomicU64 = AtomicU64::new(0);
        let name = target.file_name().ok_or_else(|| {
            Error::new(ErrorKind::Io, format!("cannot write `{}`: no file name", target.display()))
        })?;
        let number = COUNTER.fetch_add(1, Ordering::Relaxed);
        let temporary = target.with_file_name(format!(
            ".{}.{}-{number}.tmp",
            name.to_string_lossy(),
            std::process::id()
        ));
        let file = OpenOptions::new().write(true).create_new(true).open(&temporary);
        let file = file.map_err(|e| Error::io("write", target, e))?;
        Ok(Self {
            target: target.to_owned(),
            temporary,
            writer: Some(BufWriter::new(file)),
            written: 0,
        })
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        let Some(writer) = &mut self.writer else { return Ok(()) };
        writer.write_all(bytes).map_err(|e| Error::io("write", &self.target, e))?;
        self.written += bytes.len() as u64;
        Ok(())
    }

    /// Fills with zeros up to a multiple of `alignment` and returns the position.
    fn pad_to(&mut self, alignment: u64) -> Result<u64> {
        let padding = self.written.next_multiple_of(alignment) - self.written;
        self.write(&vec![0; padding as usize])?;
        Ok(self.written)
    }

    fn copy(&mut self, source: &Path) -> Result<()> {
        let Some(writer) = &mut self.writer else { return Ok(()) };
        let mut file = File::open(source).map_err(|e| Error::io("read", source, e))?;
        self.written +=
            std::io::copy(&mut file, writer).map_err(|e| Error::io("write", &self.target, e))?;
        Ok(())
    }

    fn finish(mut self) -> Result<()> {
        let failed = |e| Error::io("write", &self.target, e);
        if let Some(writer) = self.writer.take() {
            let file = writer.into_inner().map_err(|e| failed(e.into_error()))?;
            file.sync_all().map_err(failed)?;
        }
        std::fs::rename(&self.temporary, &self.target).map_err(failed)
    }
}

impl Drop for NewFile {
    fn drop(&mut self) {
        // After `finish` the temporary file no longer exists.
        let _ = std::fs::remove_file(&self.temporary);
    }
}
