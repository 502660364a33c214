//! Bytes read piece by piece.

use std::fmt;
use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use crate::{Error, ErrorKind};

/// Bytes that are read where they are needed, in any order and from any thread.
///
/// A file is never mapped: pages of a mapped file count as memory of the process, those that are read do not.
pub trait ReadAt: Sync {
    /// How many bytes there are.
    fn len(&self) -> u64;

    /// Whether there are none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Fills `out` with the bytes from `offset` on.
    ///
    /// # Errors
    /// [`ErrorKind::Io`] naming the file, also when there are fewer bytes.
    fn read_at(&self, offset: u64, out: &mut [u8]) -> Result<(), Error>;

    /// Writes all bytes, a piece at a time.
    ///
    /// # Errors
    /// As [`read_at`](ReadAt::read_at); what `out` reports.
    fn copy_to(&self, out: &mut dyn Write) -> Result<(), CopyError> {
        let mut piece = vec![0; (PIECE as u64).min(self.len()) as usize];
        let mut offset = 0;
        while offset < self.len() {
            let len = (self.len() - offset).min(PIECE as u64) as usize;
            self.read_at(offset, &mut piece[..len]).map_err(CopyError::Read)?;
            out.write_all(&piece[..len]).map_err(CopyError::Write)?;
            offset += len as u64;
        }
        Ok(())
    }
}

/// What went wrong with a copy.
#[derive(Debug)]
pub enum CopyError {
    /// The bytes cannot be read.
    Read(Error),
    /// They cannot be written.
    Write(io::Error),
}

/// Bytes that are copied at a time.
const PIECE: usize = 1 << 18;

impl ReadAt for [u8] {
    fn len(&self) -> u64 {
        <[u8]>::len(self) as u64
    }

    fn read_at(&self, offset: u64, out: &mut [u8]) -> Result<(), Error> {
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        let found = start.checked_add(out.len()).and_then(|end| self.get(start..end));
        let found = found.ok_or_else(|| {
            let text =
                format!("{} bytes at {offset} are wanted, but there are {}", out.len(), self.len());
            Error::new(ErrorKind::Io, text)
        })?;
        out.copy_from_slice(found);
        Ok(())
    }
}

/// A stretch of a file.
///
/// ```
/// use fastforward_core::files::{FileRange, ReadAt};
/// # let folder = std::env::temp_dir().join(format!("ff-range-{}", std::process::id()));
/// # std::fs::create_dir_all(&folder)?;
/// # let path = folder.join("file");
/// std::fs::write(&path, b"0123456789")?;
/// let range = FileRange::open(&path, 2, 5)?;
/// let mut bytes = [0; 2];
/// range.read_at(3, &mut bytes)?;
/// assert_eq!(&bytes, b"56");
/// assert!(range.read_at(4, &mut bytes).is_err());
/// assert!(FileRange::open(&path, 2, 9).is_err());
/// # std::fs::remove_dir_all(&folder)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct FileRange {
    file: File,
    path: PathBuf,
    offset: u64,
    len: u64,
}

impl FileRange {
    /// The `len` bytes from `offset` on.
    ///
    /// # Errors
    /// [`ErrorKind::Io`] naming the file when it cannot be opened or does not hold them.
    pub fn open(path: &Path, offset: u64, len: u64) -> Result<Self, Error> {
        let file = File::open(path).map_err(|error| failed(path, &error).with_source(error))?;
        let size = file.metadata().map_err(|error| failed(path, &error).with_source(error))?.len();
        if offset.checked_add(len).is_none_or(|end| end > size) {
            return Err(failed(
                path,
                &format_args!("{len} bytes at {offset} are wanted, but it has {size}"),
            ));
        }
        Ok(Self { file, path: path.to_owned(), offset, len })
    }
}

fn failed(path: &Path, what: &dyn fmt::Display) -> Error {
    Error::new(ErrorKind::Io, format!("cannot read `{}`: {what}", path.display()))
}

impl ReadAt for FileRange {
    fn len(&self) -> u64 {
        self.len
    }

    fn read_at(&self, offset: u64, out: &mut [u8]) -> Result<(), Error> {
        let end = offset.checked_add(out.len() as u64);
        if end.is_none_or(|end| end > self.len) {
            let what = format!("{} bytes at {offset} of {} are wanted", out.len(), self.len);
            return Err(failed(&self.path, &what));
        }
        read_exact_at(&self.file, out, self.offset + offset).map_err(|error| {
            let what = match error.kind() {
                io::ErrorKind::UnexpectedEof => "it became shorter while it was read".to_owned(),
                _ => error.to_string(),
            };
            failed(&self.path, &what).with_source(error)
        })
    }
}

#[cfg(unix)]
fn read_exact_at(file: &File, out: &mut [u8], offset: u64) -> io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, out, offset)
}

#[cfg(windows)]
fn read_exact_at(file: &File, mut out: &mut [u8], mut offset: u64) -> io::Result<()> {
    while !out.is_empty() {
        match std::os::windows::fs::FileExt::seek_read(file, out, offset) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(n) => {
                out = &mut out[n..];
                offset += n as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Elsewhere a file has one position, so readers take turns.
#[cfg(not(any(unix, windows)))]
fn read_exact_at(file: &File, out: &mut [u8], offset: u64) -> io::Result<()> {
    use std::io::{Read, Seek, SeekFrom};
    static TURN: std::sync::Mutex<()> = std::sync::Mutex::new(());
    let _turn = TURN.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let mut file = file;
    file.seek(SeekFrom::Start(offset))?;
    file.read_exact(out)
}
