//! Writing a model whole, with its external data.

use std::collections::{BTreeSet, HashSet};
use std::io::Write;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use fastforward_core::files::{CopyError, FileRange, NewFile, ReadAt, write_whole};
use prost::Message;

use super::Model;
use super::check::{self, checked_size};
use super::constant::raw_tensor;
use super::external::{self, ExternalRange, is_external};
use super::stored::stored;
use crate::dtype::DType;
use crate::error::{Error, ErrorKind, Result};
use crate::proto::{GraphProto, ModelProto, TensorProto};
use crate::tensor::n_elements;

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
        self.save_limited(path, MAX_MESSAGE_BYTES)
    }

    /// [`Model::save`] where a message cannot be larger than `max_message_bytes`.
    fn save_limited(&self, path: &Path, max_message_bytes: usize) -> Result<Saved> {
        let plan = self.plan_external(path, max_message_bytes)?;
        self.refuse_to_replace(path)?;
        let Some(plan) = plan else {
            return save_graph(self.proto(), path);
        };
        let data_path = path.with_file_name(&plan.file_name);
        self.refuse_to_replace(&data_path)?;
        let mut data = DataFile::create(&data_path, plan.file_name)?;
        match plan.layout {
            Layout::Copy(source) => {
                let len = source.metadata().map_err(|e| Error::io("read", &source, e))?.len();
                let source = FileRange::open(&source, 0, len).map_err(io_error)?;
                data.copy(&source, ErrorKind::Io)?;
                save_with(self.proto(), path, data)
            }
            Layout::Rewrite { min_bytes } => {
                let mut proto = self.proto().clone();
                let graph = proto.graph.get_or_insert_default();
                each_tensor_mut(graph, &mut |tensor| {
                    data.take_in(tensor, min_bytes, self.folder())
                })?;
                save_with(&proto, path, data)
            }
        }
    }

    /// Writes the model to `path`, whose data file `data` holds the tensors called `stored` already. Other tensors with
    /// external data are copied into it, and where the message would be too large those that are not small.
    ///
    /// That no file is replaced which the model was read from, [`Model::data_file`] has checked.
    ///
    /// # Errors
    /// As [`Model::save`], and as [`Model::from_proto`].
    pub(crate) fn save_beside(
        mut self,
        path: &Path,
        mut data: DataFile,
        stored: &HashSet<String>,
    ) -> Result<Saved> {
        let min_bytes = match self.proto().encoded_len() > MAX_MESSAGE_BYTES {
            true => MIN_EXTERNAL_BYTES,
            false => usize::MAX,
        };
        let folder = self.folder().map(Path::to_owned);
        each_tensor_mut(self.graph_mut(), &mut |tensor| match stored.contains(tensor.name()) {
            true => Ok(()),
            false => data.take_in(tensor, min_bytes, folder.as_deref()),
        })?;
        let (data_path, data_bytes) = data.finish()?;
        check::check_model(self.proto(), Some(path.parent().unwrap_or(Path::new(""))))?;
        let saved = save_graph(self.proto(), path)?;
        Ok(Saved { data: Some(data_path), size_bytes: saved.size_bytes + data_bytes, ..saved })
    }

    /// A data file for a model that will be [saved beside](Model::save_beside) it at `path`.
    ///
    /// # Errors
    /// `Io` when it cannot be made, or when it or the model would replace a file that this model was read from.
    pub(crate) fn data_file(&self, path: &Path) -> Result<DataFile> {
        let target = data_path(path);
        self.refuse_to_replace(path)?;
        self.refuse_to_replace(&target)?;
        let name = target.file_name().unwrap_or_default().to_string_lossy().into_owned();
        DataFile::create(&target, name)
    }

    /// Decides where external data goes; `None` where there is none.
    fn plan_external(&self, path: &Path, max_message_bytes: usize) -> Result<Option<Plan>> {
        let ranges = self.external_ranges()?;
        let too_large = self.proto().encoded_len() > max_message_bytes;
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
        let file_name = data_path(path);
        let file_name = file_name.file_name().unwrap_or_default().to_string_lossy().into_owned();
        // Tensors that replaced external ones are inline now and move out again.
        let moves_out = too_large || ranges.len() != self.n_external;
        let min_bytes = if moves_out { MIN_EXTERNAL_BYTES } else { usize::MAX };
        Ok(Some(Plan { file_name, layout: Layout::Rewrite { min_bytes } }))
    }

    pub(super) fn external_ranges(&self) -> Result<Vec<ExternalRange>> {
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

/// Where the external data of a model at `path` is written: `model.onnx.data` beside `model.onnx`.
pub(crate) fn data_path(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".data");
    path.with_file_name(name)
}

fn save_graph(proto: &ModelProto, path: &Path) -> Result<Saved> {
    let bytes = proto.encode_to_vec();
    write_whole(path, |file| file.write_all(&bytes)).map_err(io_error)?;
    Ok(Saved { model: path.to_owned(), data: None, size_bytes: bytes.len() as u64 })
}

/// The data first: a model that is there has its data.
fn save_with(proto: &ModelProto, path: &Path, data: DataFile) -> Result<Saved> {
    let (data_path, data_bytes) = data.finish()?;
    let saved = save_graph(proto, path)?;
    Ok(Saved { data: Some(data_path), size_bytes: saved.size_bytes + data_bytes, ..saved })
}

/// Hands the bytes of a tensor over, part by part.
pub(crate) type Fill<'a> = dyn FnMut(&mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> + 'a;

/// A tensor that holds what `fill` writes.
pub(crate) fn filled_tensor(
    name: &str,
    dtype: DType,
    shape: &[usize],
    fill: &mut Fill<'_>,
) -> Result<TensorProto> {
    let size_bytes = n_elements(shape).and_then(|count| dtype.size_bytes(count));
    let mut bytes = Vec::with_capacity(size_bytes.unwrap_or(0));
    fill(&mut |some| {
        bytes.extend_from_slice(some);
        Ok(())
    })?;
    Ok(raw_tensor(name, dtype, shape, bytes.into()))
}

/// A data file that is being written.
pub(crate) struct DataFile {
    file: NewFile,
    name: String,
}

impl DataFile {
    fn create(target: &Path, name: String) -> Result<Self> {
        Ok(Self { file: NewFile::create(target).map_err(io_error)?, name })
    }

    /// Puts the file in its place, and gives its path and length.
    fn finish(self) -> Result<(PathBuf, u64)> {
        let path = self.file.target().to_owned();
        Ok((path, self.file.finish().map_err(io_error)?))
    }

    fn put(&mut self, bytes: &[u8]) -> Result<()> {
        self.file.write_all(bytes).map_err(|error| io_error(self.file.failed(error)))
    }

    /// Fills with zeros up to where a tensor of `size_bytes` begins, and returns the position.
    fn begin(&mut self, size_bytes: usize) -> Result<u64> {
        let offset = self.file.written().next_multiple_of(ALIGNMENT);
        self.file.will_take(offset + size_bytes as u64);
        self.put(&vec![0; (offset - self.file.written()) as usize])?;
        Ok(offset)
    }

    /// Appends bytes that are read piece by piece; what goes wrong with them is of the kind `unreadable`.
    fn copy(&mut self, source: &impl ReadAt, unreadable: ErrorKind) -> Result<()> {
        self.file.will_take(self.file.written() + source.len());
        source.copy_to(&mut self.file).map_err(|error| match error {
            CopyError::Read(error) => Error::new(unreadable, error.to_string()).caused_by(error),
            CopyError::Write(error) => io_error(self.file.failed(error)),
        })
    }

    /// Appends what `fill` writes and gives a tensor that refers to it, or one that holds it where it is small.
    pub(crate) fn store(
        &mut self,
        name: &str,
        dtype: DType,
        shape: &[usize],
        fill: &mut Fill<'_>,
    ) -> Result<TensorProto> {
        let size_bytes = n_elements(shape).and_then(|count| dtype.size_bytes(count)).unwrap_or(0);
        if size_bytes < MIN_EXTERNAL_BYTES {
            return filled_tensor(name, dtype, shape, fill);
        }
        let mut tensor = raw_tensor(name, dtype, shape, Bytes::new());
        let offset = self.begin(size_bytes)?;
        fill(&mut |bytes| self.put(bytes))?;
        external::refer(&mut tensor, &self.name, offset, self.file.written() - offset);
        Ok(tensor)
    }

    /// Moves the data of `tensor` here where it is external or has at least `min_bytes`, a piece at a time.
    fn take_in(
        &mut self,
        tensor: &mut TensorProto,
        min_bytes: usize,
        folder: Option<&Path>,
    ) -> Result<()> {
        let (dtype, _, size_bytes) = checked_size(tensor)?;
        if dtype == DType::String || !(is_external(tensor) || size_bytes >= min_bytes) {
            return Ok(());
        }
        let source = stored(tensor, folder)?;
        let offset = self.begin(size_bytes)?;
        self.copy(&source, ErrorKind::ExternalData)?;
        external::refer(tensor, &self.name, offset, size_bytes as u64);
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

/// The message of the core, as an error of a file.
fn io_error(error: fastforward_core::Error) -> Error {
    Error::new(ErrorKind::Io, error.to_string()).caused_by(error)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::tensor_from_f32;

    #[test]
    fn a_model_that_is_too_large_for_one_message_gets_a_data_file() {
        let mut proto = ModelProto { ir_version: Some(8), ..ModelProto::default() };
        let values: Vec<f32> = (0..5000).map(|at| at as f32).collect();
        proto
            .opset_import
            .push(crate::proto::OperatorSetIdProto { domain: None, version: Some(17) });
        proto.graph = Some(GraphProto {
            initializer: vec![
                tensor_from_f32("small", &[10], &values[..10]),
                tensor_from_f32("large", &[2, 600], &values[..1200]),
                tensor_from_f32("larger", &[5000], &values),
            ],
            ..GraphProto::default()
        });
        let model = Model::from_proto(proto, None).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.onnx");
        let limit = model.proto().encoded_len();

        let saved = model.save_limited(&path, limit).unwrap();
        assert_eq!((saved.data, saved.size_bytes), (None, limit as u64));

        let saved = model.save_limited(&path, limit - 1).unwrap();
        let data = saved.data.unwrap();
        assert_eq!(data, folder.path().join("model.onnx.data"));
        let sizes = [&path, &data].map(|path| path.metadata().unwrap().len());
        assert_eq!(saved.size_bytes, sizes[0] + sizes[1]);
        assert!(sizes[0] < 1000, "{sizes:?}");
        let again = Model::load(&path).unwrap();
        assert_eq!(again.data_files().unwrap(), [data]);
        for (name, is_external) in [("small", false), ("large", true), ("larger", true)] {
            let found = again.constant(name).unwrap();
            assert_eq!(found.is_external(), is_external, "{name}");
            let expected = model.constant(name).unwrap();
            assert_eq!(found.bytes().unwrap(), expected.bytes().unwrap(), "{name}");
            assert_eq!(found.info().unwrap(), expected.info().unwrap());
        }
        assert_eq!(fs_names(folder.path()), ["model.onnx", "model.onnx.data"]);
    }

    fn fs_names(folder: &Path) -> Vec<String> {
        let entries = std::fs::read_dir(folder).unwrap();
        let mut names: Vec<String> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}
