//! What kinds of files data comes from, and which tensors they hold.

use std::cmp::Ordering;
use std::path::{Path, PathBuf};

use indexmap::IndexMap;
use serde::Serialize;

use super::tensor::{StoredTensor, format_error, io_error, size_bytes};
use super::{npy, npz, safetensors_file};
use crate::{Error, ErrorKind};

/// Where data lies.
#[derive(Clone, Debug, PartialEq)]
pub enum DataPath {
    /// One `.safetensors`, `.npz` or `.npy` file, or a folder. A `.npy` file holds one tensor named like the file. A
    /// folder of `.npy` files is one tensor named like the folder; a folder of such folders holds one tensor for each.
    One(PathBuf),
    /// For each tensor name the file or folder that holds this tensor, or that holds only one tensor.
    Several(IndexMap<String, PathBuf>),
}

/// What one file of a folder holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum EachFile {
    /// One sample, without a batch axis.
    #[default]
    Sample,
    /// Several samples along the first axis.
    Batch,
}

/// A file that was read, and what it held: for reports.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FileDigest {
    /// The file.
    pub path: PathBuf,
    /// Its length.
    pub size_bytes: u64,
    /// The SHA-256 of its bytes in hexadecimal digits.
    pub sha256: String,
}

impl FileDigest {
    /// Reads a file once, in pieces.
    ///
    /// # Errors
    /// [`ErrorKind::Io`] when the file cannot be read.
    pub fn of(path: &Path) -> Result<Self, Error> {
        let metadata = path.metadata().map_err(|e| io_error(path, "cannot be read", e))?;
        let (size_bytes, sha256) = (metadata.len(), crate::files::sha256(path)?);
        Ok(Self { path: path.to_path_buf(), size_bytes, sha256 })
    }
}

/// The tensors that data holds.
#[derive(Debug)]
pub(super) struct Source {
    pub(super) tensors: Vec<StoredTensor>,
    /// What is in the files but cannot be used, with the reason.
    pub(super) passed_over: Vec<String>,
    /// The file, or the files, for messages.
    pub(super) name: String,
}

impl Source {
    pub(super) fn open(data: &DataPath, each_file: EachFile) -> Result<Self, Error> {
        match data {
            DataPath::One(path) => {
                let (tensors, passed_over) = open_path(path, each_file)?;
                Ok(Self { tensors, passed_over, name: path.display().to_string() })
            }
            DataPath::Several(members) => {
                let mut problems = vec![];
                let mut kind = ErrorKind::InvalidData;
                let mut tensors = vec![];
                for (name, path) in members {
                    match open_member(name, path, each_file) {
                        Ok(tensor) => tensors.push(tensor),
                        Err(error) => {
                            kind = error.kind();
                            problems.push(error.to_string());
                        }
                    }
                }
                if !problems.is_empty() {
                    return Err(Error::of_problems(kind, "data files cannot be used", &problems));
                }
                let name = format!("the {} data files", members.len());
                Ok(Self { tensors, passed_over: vec![], name })
            }
        }
    }

    /// The tensors by name, for messages.
    pub(super) fn holds(&self) -> String {
        let mut text = if self.tensors.is_empty() {
            format!("{} holds no usable tensor", self.name)
        } else {
            let names: Vec<String> =
                self.tensors.iter().map(|tensor| format!("`{}`", tensor.name)).collect();
            format!("{} holds {}", self.name, names.join(", "))
        };
        if !self.passed_over.is_empty() {
            text.push_str(&format!("; not usable: {}", self.passed_over.join(", ")));
        }
        text
    }
}

fn open_member(name: &str, path: &Path, each_file: EachFile) -> Result<StoredTensor, Error> {
    let (mut tensors, _) = open_path(path, each_file)?;
    let at = match tensors.iter().position(|tensor| tensor.name == name) {
        Some(at) => at,
        None if tensors.len() == 1 => 0,
        None => {
            let names: Vec<String> = tensors.iter().map(|t| format!("`{}`", t.name)).collect();
            return Err(format_error(
                path,
                format!(
                    "no tensor `{name}` and not just one tensor; it holds {}",
                    names.join(", ")
                ),
            ));
        }
    };
    let mut tensor = tensors.swap_remove(at);
    name.clone_into(&mut tensor.name);
    Ok(tensor)
}

fn open_path(path: &Path, each_file: EachFile) -> Result<(Vec<StoredTensor>, Vec<String>), Error> {
    let metadata = path.metadata().map_err(|e| io_error(path, "cannot be opened", e))?;
    if metadata.is_dir() {
        return open_folder(path, each_file);
    }
    match path.extension().and_then(|extension| extension.to_str()) {
        Some("safetensors") => safetensors_file::open(path),
        Some("npz") => npz::open(path),
        Some("npy") => Ok((vec![npy::open(path)?], vec![])),
        _ => Err(format_error(
            path,
            "unknown kind of data file; .safetensors, .npz, .npy and folders of .npy files can be read",
        )),
    }
}

fn open_folder(
    path: &Path,
    each_file: EachFile,
) -> Result<(Vec<StoredTensor>, Vec<String>), Error> {
    let folder = list(path)?;
    if !folder.arrays.is_empty() {
        return Ok((vec![join(path, &folder.arrays, each_file)?], vec![]));
    }
    let mut tensors = vec![];
    for inner in &folder.folders {
        let arrays = list(inner)?.arrays;
        if !arrays.is_empty() {
            tensors.push(join(inner, &arrays, each_file)?);
        }
    }
    if tensors.is_empty() {
        let found = folder.other.first().map_or_else(
            || "it is empty".to_owned(),
            |other| format!("it holds files such as {}", other.display()),
        );
        return Err(format_error(path, format!("no .npy file in this folder; {found}")));
    }
    Ok((tensors, vec![]))
}

/// What a folder holds, each kind sorted by name.
#[derive(Default)]
struct Folder {
    arrays: Vec<PathBuf>,
    folders: Vec<PathBuf>,
    other: Vec<PathBuf>,
}

fn list(path: &Path) -> Result<Folder, Error> {
    let wrong = |error| io_error(path, "cannot be listed", error);
    let mut folder = Folder::default();
    for entry in path.read_dir().map_err(wrong)? {
        let entry = entry.map_err(wrong)?.path();
        let hidden =
            entry.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
        if hidden {
            continue;
        }
        if entry.is_dir() {
            folder.folders.push(entry);
        } else if entry.extension().is_some_and(|extension| extension == "npy") {
            folder.arrays.push(entry);
        } else {
            folder.other.push(entry);
        }
    }
    for paths in [&mut folder.arrays, &mut folder.folders, &mut folder.other] {
        paths.sort_by(|a, b| natural_order(&a.to_string_lossy(), &b.to_string_lossy()));
    }
    Ok(folder)
}

/// The files of a folder as one tensor.
fn join(path: &Path, files: &[PathBuf], each_file: EachFile) -> Result<StoredTensor, Error> {
    let mut whole: Option<StoredTensor> = None;
    let mut problems = vec![];
    let mut kind = ErrorKind::InvalidData;
    for file in files {
        let mut part = match npy::open(file) {
            Ok(part) => part,
            Err(error) => {
                kind = error.kind();
                problems.push(error.to_string());
                continue;
            }
        };
        match each_file {
            EachFile::Sample => {
                part.shape.insert(0, 1);
                part.segments.iter_mut().for_each(|segment| segment.samples = 1);
            }
            EachFile::Batch if part.shape.is_empty() => {
                problems
                    .push(format!("{}: a single number is no batch of samples", file.display()));
                continue;
            }
            EachFile::Batch => {}
        }
        match &mut whole {
            None => whole = Some(part),
            Some(whole) => {
                if part.element != whole.element || part.sample_shape() != whole.sample_shape() {
                    problems.push(format!(
                        "{}: samples are {} of shape {:?}, those before {} of shape {:?}",
                        file.display(),
                        part.element,
                        part.sample_shape(),
                        whole.element,
                        whole.sample_shape()
                    ));
                    continue;
                }
                whole.shape[0] += part.shape[0];
                whole.segments.append(&mut part.segments);
            }
        }
    }
    if let (Some(whole), true) = (&whole, problems.is_empty())
        && size_bytes(whole.element, &whole.shape).is_none()
    {
        problems.push(format!("{}: the samples together are too many", path.display()));
    }
    match whole {
        Some(mut whole) if problems.is_empty() => {
            whole.name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            whole.file = path.to_path_buf();
            Ok(whole)
        }
        _ => Err(Error::of_problems(kind, "files of the folder cannot be used", &problems)),
    }
}

/// Names in the order people expect: runs of digits compare as numbers, so `img2` comes before `img10`.
fn natural_order(a: &str, b: &str) -> Ordering {
    let (mut x, mut y) = (a.as_bytes(), b.as_bytes());
    loop {
        let digits = |text: &[u8]| text.iter().take_while(|byte| byte.is_ascii_digit()).count();
        let order = match (digits(x), digits(y)) {
            (0, _) | (_, 0) => match (x.first(), y.first()) {
                (Some(p), Some(q)) => {
                    let order = p.cmp(q);
                    (x, y) = (&x[1..], &y[1..]);
                    order
                }
                // Equal but for leading zeros: any fixed order does.
                (None, None) => return a.cmp(b),
                (p, q) => p.cmp(&q),
            },
            (m, n) => {
                let number = |text: &[u8]| -> Vec<u8> {
                    text.iter().copied().skip_while(|&byte| byte == b'0').collect()
                };
                let (p, q) = (number(&x[..m]), number(&y[..n]));
                (x, y) = (&x[m..], &y[n..]);
                p.len().cmp(&q.len()).then_with(|| p.cmp(&q))
            }
        };
        if order != Ordering::Equal {
            return order;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_in_names_compare_as_numbers() {
        let mut names = ["img10", "img2", "img02b", "img1", "b", "img", "a9"];
        names.sort_by(|a, b| natural_order(a, b));
        assert_eq!(names, ["a9", "b", "img", "img1", "img2", "img02b", "img10"]);
    }
}
