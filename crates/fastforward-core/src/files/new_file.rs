//! A file that is written aside.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::{Error, ErrorKind};

/// A file that appears under its name only when it is whole: it is written beside its place, synced, then renamed.
///
/// When it is dropped before it is [finished](NewFile::finish), what was written is removed, and a file that stood in its
/// place is as it was.
///
/// ```
/// use std::io::Write;
/// use fastforward_core::files::NewFile;
/// let folder = tempfile::tempdir()?;
/// let path = folder.path().join("out.bin");
/// let mut file = NewFile::create(&path)?;
/// file.write_all(b"whole").map_err(|error| file.failed(error))?;
/// assert!(!path.exists());
/// assert_eq!(file.finish()?, 5);
/// assert_eq!(std::fs::read(&path)?, b"whole");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct NewFile {
    target: PathBuf,
    aside: PathBuf,
    writer: BufWriter<File>,
    written: u64,
    takes: u64,
}

impl NewFile {
    /// A file that will stand at `target`.
    ///
    /// # Errors
    /// [`ErrorKind::Io`] naming the path.
    pub fn create(target: &Path) -> Result<Self, Error> {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let Some(name) = target.file_name() else {
            let text = format!("cannot write `{}`: no file name", target.display());
            return Err(Error::new(ErrorKind::Io, text));
        };
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let aside = format!(".{}.{}-{count}.part", name.to_string_lossy(), process::id());
        let aside = target.with_file_name(aside);
        let file = OpenOptions::new().write(true).create_new(true).open(&aside);
        let file = file.map_err(|error| cannot_write(target, error, 0))?;
        Ok(Self {
            target: target.to_owned(),
            aside,
            writer: BufWriter::new(file),
            written: 0,
            takes: 0,
        })
    }

    /// Says how many bytes the file will have at least, for the error when there is no room.
    pub fn will_take(&mut self, bytes: u64) {
        self.takes = self.takes.max(bytes);
    }

    /// Where the file will stand.
    pub fn target(&self) -> &Path {
        &self.target
    }

    /// How many bytes were written.
    pub fn written(&self) -> u64 {
        self.written
    }

    /// What to report when writing fails: the place, and where there is no room for the file, how much it takes.
    pub fn failed(&self, error: io::Error) -> Error {
        cannot_write(&self.target, error, self.takes)
    }

    /// Puts the file in its place, and says how long it is.
    ///
    /// # Errors
    /// [`ErrorKind::Io`] naming the path; nothing has changed then.
    pub fn finish(mut self) -> Result<u64, Error> {
        let result = self.writer.flush().and_then(|()| self.writer.get_ref().sync_all());
        let result = result.and_then(|()| fs::rename(&self.aside, &self.target));
        result.map_err(|error| self.failed(error))?;
        Ok(self.written)
    }
}

impl Write for NewFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.will_take(self.written + bytes.len() as u64);
        let written = self.writer.write(bytes)?;
        self.written += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.writer.flush()
    }
}

impl Drop for NewFile {
    fn drop(&mut self) {
        // After `finish` there is nothing to remove, which is the only error that can be expected.
        let _gone = fs::remove_file(&self.aside);
    }
}

fn cannot_write(path: &Path, error: io::Error, takes: u64) -> Error {
    use io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
    let mut text = format!("cannot write `{}`: {error}", path.display());
    if takes > 0 && matches!(error.kind(), StorageFull | QuotaExceeded | FileTooLarge) {
        text += &format!("; the file takes at least {takes} bytes");
    }
    Error::new(ErrorKind::Io, text).with_source(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entries(folder: &Path) -> usize {
        fs::read_dir(folder).unwrap().count()
    }

    #[test]
    fn a_file_that_is_not_finished_leaves_the_old_one_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("out");
        fs::write(&path, "old").unwrap();
        let (mut first, mut second) =
            (NewFile::create(&path).unwrap(), NewFile::create(&path).unwrap());
        first.write_all(b"first").unwrap();
        second.write_all(b"second").unwrap();
        drop(first);
        assert_eq!((fs::read(&path).unwrap(), entries(folder.path())), (b"old".to_vec(), 2));
        assert_eq!(second.finish().unwrap(), 6);
        assert_eq!((fs::read(&path).unwrap(), entries(folder.path())), (b"second".to_vec(), 1));
    }

    #[test]
    fn want_of_room_is_reported_with_what_the_file_takes() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("out");
        let full = || io::Error::from(io::ErrorKind::StorageFull);
        let mut file = NewFile::create(&path).unwrap();
        file.write_all(&[0; 10]).unwrap();
        let end = "; the file takes at least 10 bytes";
        assert!(file.failed(full()).to_string().ends_with(end));
        file.will_take(1000);
        file.will_take(100);
        let error = file.failed(full()).to_string();
        assert!(error.starts_with(&format!("cannot write `{}`: ", path.display())), "{error}");
        assert!(error.ends_with("; the file takes at least 1000 bytes"), "{error}");
        let error = file.failed(io::ErrorKind::PermissionDenied.into()).to_string();
        assert!(!error.contains("1000"), "{error}");
    }
}
