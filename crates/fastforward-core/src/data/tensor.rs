//! A tensor that lies in files, read by ranges of samples.

use std::fmt;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::ElementType;
use crate::{Error, ErrorKind};

/// A tensor in one file, or spread over the files of a folder: what is known without reading its elements.
#[derive(Clone, Debug)]
pub struct StoredTensor {
    /// The name in the file; for a file that holds one unnamed tensor, the file's name without extension.
    pub name: String,
    /// The type of the stored elements.
    pub element: ElementType,
    /// One extent per dimension; the first one counts the samples.
    pub shape: Vec<usize>,
    /// The file or folder the tensor lies in.
    pub file: PathBuf,
    /// Where the samples lie, in their order.
    pub(super) segments: Vec<Segment>,
}

/// Consecutive samples of a tensor, in one place.
#[derive(Clone, Debug)]
pub(super) struct Segment {
    pub(super) place: Place,
    pub(super) samples: usize,
    pub(super) big_endian: bool,
}

/// Where bytes lie.
#[derive(Clone, Debug)]
pub(super) enum Place {
    /// At an offset in a file. That the file is long enough was checked when it was opened.
    File { path: Arc<Path>, offset: u64 },
    /// In memory, because the file holds them compressed.
    Memory(Arc<[u8]>),
}

impl StoredTensor {
    /// A tensor in one place.
    pub(super) fn in_one_place(
        name: String,
        element: ElementType,
        shape: Vec<usize>,
        file: &Path,
        place: Place,
        big_endian: bool,
    ) -> Self {
        let samples = shape.first().copied().unwrap_or(0);
        let segments = vec![Segment { place, samples, big_endian }];
        Self { name, element, shape, file: file.to_path_buf(), segments }
    }

    /// The number of samples, zero for a scalar.
    pub fn num_samples(&self) -> usize {
        self.shape.first().copied().unwrap_or(0)
    }

    /// The shape of one sample.
    pub fn sample_shape(&self) -> &[usize] {
        self.shape.get(1..).unwrap_or(&[])
    }

    /// The bytes of one sample.
    fn sample_bytes(&self) -> usize {
        self.sample_shape().iter().product::<usize>() * self.element.size_bytes()
    }

    /// The elements of some samples as little-endian bytes.
    pub(super) fn read(&self, samples: Range<usize>) -> Result<Vec<u8>, Error> {
        let sample_bytes = self.sample_bytes();
        let mut bytes = Vec::with_capacity(samples.len() * sample_bytes);
        let mut first = 0;
        for segment in &self.segments {
            let last = first + segment.samples;
            let from = samples.start.max(first);
            let until = samples.end.min(last);
            if from < until {
                let start = bytes.len();
                let skip = (from - first) * sample_bytes;
                let length = (until - from) * sample_bytes;
                match &segment.place {
                    Place::Memory(all) => bytes.extend_from_slice(&all[skip..skip + length]),
                    Place::File { path, offset } => {
                        bytes.resize(start + length, 0);
                        read_at(path, offset + skip as u64, &mut bytes[start..])?;
                    }
                }
                if segment.big_endian {
                    for element in bytes[start..].chunks_exact_mut(self.element.size_bytes()) {
                        element.reverse();
                    }
                }
            }
            first = last;
        }
        Ok(bytes)
    }
}

/// As messages name it: ``tensor `images` of calib.safetensors``.
impl fmt::Display for StoredTensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "tensor `{}` of {}", self.name, self.file.display())
    }
}

fn read_at(path: &Path, offset: u64, into: &mut [u8]) -> Result<(), Error> {
    let read = || -> std::io::Result<()> {
        let mut file = File::open(path)?;
        file.seek(SeekFrom::Start(offset))?;
        file.read_exact(into)
    };
    let mut read = read;
    read().map_err(|error| io_error(path, "cannot be read", error))
}

/// An error about a file.
pub(super) fn io_error(path: &Path, what: &str, error: std::io::Error) -> Error {
    let reason = match error.kind() {
        std::io::ErrorKind::NotFound => "no such file".to_owned(),
        std::io::ErrorKind::UnexpectedEof => "the file ends too early".to_owned(),
        _ => error.to_string(),
    };
    Error::new(ErrorKind::Io, format!("{} {what}: {reason}", path.display())).with_source(error)
}

/// An error about what a file holds.
pub(super) fn format_error(path: &Path, what: impl fmt::Display) -> Error {
    Error::new(ErrorKind::InvalidData, format!("{}: {what}", path.display()))
}

/// The bytes that a tensor of this type and shape takes; `None` when no memory has as many, also not for some of its
/// axes: the product of any extents can then be taken without a check.
pub(super) fn size_bytes(element: ElementType, shape: &[usize]) -> Option<usize> {
    let most = shape.iter().try_fold(element.size_bytes(), |n, &e| n.checked_mul(e.max(1)))?;
    isize::try_from(most).ok()?;
    Some(if shape.contains(&0) { 0 } else { most })
}
