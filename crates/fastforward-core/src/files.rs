//! Files and folders that are there whole or not at all.

mod new_file;
mod positioned;

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process;
use std::sync::atomic::{AtomicU64, Ordering};

use sha2::{Digest, Sha256};

use crate::{Error, ErrorKind};

pub use new_file::NewFile;
pub use positioned::{CopyError, FileRange, ReadAt};

/// Writes a file so that nobody ever sees a part of it: into a file beside it, synced, then renamed.
///
/// An existing file is replaced at the end; if anything goes wrong before, it stays as it was.
///
/// # Errors
/// [`ErrorKind::Io`] naming the path.
pub fn write_whole(
    path: &Path,
    write: impl FnOnce(&mut dyn Write) -> std::io::Result<()>,
) -> Result<(), Error> {
    let mut file = NewFile::create(path)?;
    write(&mut file).map_err(|error| file.failed(error))?;
    file.finish().map(drop)
}

/// Writes a folder so that nobody ever sees a part of it: `write` fills a folder beside it, which is then renamed.
///
/// A folder that is there and empty counts as absent. Any other is refused, or with `replace` put aside, and back if
/// something goes wrong; but only if it holds nothing besides `known` files: what somebody else put there is not ours to
/// remove.
///
/// # Errors
/// What `write` reports; [`ErrorKind::Io`] naming the path, and every file that is not known. Nothing has changed then.
pub fn write_folder_whole<T, E: From<Error>>(
    folder: &Path,
    known: &[&str],
    replace: bool,
    write: impl FnOnce(&Path) -> Result<T, E>,
) -> Result<T, E> {
    let failed = |source: std::io::Error| {
        Error::new(ErrorKind::Io, format!("cannot write folder `{}`: {source}", folder.display()))
            .with_source(source)
    };
    let refused = |what: String| {
        Error::new(ErrorKind::Io, format!("cannot write folder `{}`: {what}", folder.display()))
    };
    let exists = fs::symlink_metadata(folder).is_ok();
    // The folder itself is replaced, not a link to it.
    let place = if exists { fs::canonicalize(folder).map_err(failed)? } else { folder.to_owned() };
    if place.file_name().is_none() {
        return Err(refused("it has no name of its own".to_owned()).into());
    }
    if exists {
        check_replaceable(&place, known, replace).map_err(refused)?;
    }
    if let Some(parent) = place.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        fs::create_dir_all(parent).map_err(failed)?;
    }
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let named = |what: &str| {
        let mut name = place.file_name().unwrap_or_default().to_os_string();
        name.push(format!(".{}-{count}.{what}", process::id()));
        place.with_file_name(name)
    };
    let aside = AsideFolder(named("part"));
    fs::create_dir(&aside.0).map_err(failed)?;
    let result = write(&aside.0)?;
    if !exists {
        fs::rename(&aside.0, &place).map_err(failed)?;
        return Ok(result);
    }
    let old = AsideFolder(named("old"));
    fs::rename(&place, &old.0).map_err(failed)?;
    if let Err(error) = fs::rename(&aside.0, &place) {
        // If this fails too, the old folder must not be removed: it is all there is.
        fs::rename(&old.0, &place).map_err(|_| {
            let kept = old.0.display().to_string();
            std::mem::forget(old);
            refused(format!("{error}; what was there is now in `{kept}`"))
        })?;
        return Err(failed(error).into());
    }
    Ok(result)
}

/// What stands against replacing a folder that is there.
fn check_replaceable(place: &Path, known: &[&str], replace: bool) -> Result<(), String> {
    if !place.is_dir() {
        return Err("there is a file of this name".to_owned());
    }
    let mut entries = Vec::new();
    for entry in fs::read_dir(place).map_err(|error| error.to_string())? {
        entries.push(entry.map_err(|error| error.to_string())?);
    }
    if entries.is_empty() {
        return Ok(());
    }
    if !replace {
        return Err("it exists; choose another, or allow to replace it".to_owned());
    }
    let mut foreign: Vec<String> = entries
        .iter()
        .filter(|entry| {
            let is_known = known.iter().any(|name| entry.file_name() == *name);
            !is_known || entry.file_type().is_ok_and(|kind| kind.is_dir())
        })
        .map(|entry| format!("`{}`", entry.file_name().display()))
        .collect();
    foreign.sort();
    if foreign.is_empty() {
        return Ok(());
    }
    Err(format!("it holds {}, which would be lost; choose another", foreign.join(", ")))
}

/// Removes a folder, if it is still there.
struct AsideFolder(PathBuf);

impl Drop for AsideFolder {
    fn drop(&mut self) {
        // After the rename there is nothing to remove, which is the only error that can be expected.
        let _gone = fs::remove_dir_all(&self.0);
    }
}

/// The SHA-256 of a file, in hexadecimal digits; read piece by piece.
///
/// # Errors
/// [`ErrorKind::Io`] naming the path.
pub fn sha256(path: &Path) -> Result<String, Error> {
    let failed = |source: std::io::Error| {
        Error::new(ErrorKind::Io, format!("cannot read `{}`: {source}", path.display()))
            .with_source(source)
    };
    let mut hash = Sha256::new();
    let mut file = File::open(path).map_err(failed)?;
    let mut piece = vec![0u8; 1 << 17];
    loop {
        match std::io::Read::read(&mut file, &mut piece).map_err(failed)? {
            0 => break,
            n => hash.update(&piece[..n]),
        }
    }
    Ok(hexadecimal(&hash.finalize()))
}

/// The SHA-256 of bytes, in hexadecimal digits.
pub fn sha256_of(bytes: &[u8]) -> String {
    hexadecimal(&Sha256::digest(bytes))
}

fn hexadecimal(digest: &[u8]) -> String {
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_write_leaves_the_old_file_and_nothing_else() {
        let folder = std::env::temp_dir().join(format!("ff-files-{}", process::id()));
        fs::create_dir_all(&folder).unwrap();
        let path = folder.join("out.json");
        write_whole(&path, |out| out.write_all(b"first")).unwrap();
        let error = write_whole(&path, |out| {
            out.write_all(b"sec")?;
            Err(std::io::Error::other("disk full"))
        })
        .unwrap_err();
        assert!(error.to_string().ends_with("out.json`: disk full"), "{error}");
        assert_eq!(fs::read(&path).unwrap(), b"first");
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 1);
        assert_eq!(
            sha256(&path).unwrap(),
            "a7937b64b8caa58f03721bb6bacf5c78cb235febe0e70b1b84cd99541461a08e"
        );
        fs::remove_dir_all(&folder).unwrap();
    }

    fn names(folder: &Path) -> Vec<String> {
        let entries = fs::read_dir(folder).unwrap();
        let mut names: Vec<String> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_folder_is_written_whole_or_not_at_all() {
        let around = tempfile::tempdir().unwrap();
        let folder = around.path().join("deep/model");
        let save = |replace: bool, text: &str, fail: bool| {
            write_folder_whole(&folder, &["a", "b"], replace, |aside| {
                write_whole(&aside.join("a"), |out| out.write_all(text.as_bytes()))?;
                if fail { Err(Error::new(ErrorKind::State, "stopped")) } else { Ok(7) }
            })
        };
        let message = |result: Result<i32, Error>| result.unwrap_err().to_string();
        assert_eq!(message(save(false, "zero", true)), "stopped");
        assert!(!folder.exists());
        assert_eq!(save(false, "one", false).unwrap(), 7);
        let error = message(save(false, "two", false));
        assert!(error.ends_with("it exists; choose another, or allow to replace it"), "{error}");
        assert_eq!(message(save(true, "two", true)), "stopped");
        assert_eq!(fs::read_to_string(folder.join("a")).unwrap(), "one");
        fs::write(folder.join("b"), "stale").unwrap();
        save(true, "three", false).unwrap();
        assert_eq!(fs::read_to_string(folder.join("a")).unwrap(), "three");
        assert_eq!(names(&folder), ["a"]);
        fs::write(folder.join("thesis"), "mine").unwrap();
        let error = message(save(true, "four", false));
        assert!(
            error.ends_with("it holds `thesis`, which would be lost; choose another"),
            "{error}"
        );
        assert_eq!(fs::read_to_string(folder.join("a")).unwrap(), "three");
        assert_eq!(names(&around.path().join("deep")), ["model"]);
    }

    #[test]
    fn an_empty_folder_is_filled_and_a_file_is_not_replaced() {
        let around = tempfile::tempdir().unwrap();
        let write = |place: &Path| {
            write_folder_whole(place, &["a"], true, |aside| {
                write_whole(&aside.join("a"), |out| out.write_all(b"a"))
            })
        };
        let empty = around.path().join("empty");
        fs::create_dir(&empty).unwrap();
        write(&empty).unwrap();
        assert_eq!(names(&empty), ["a"]);
        let file = around.path().join("file");
        fs::write(&file, "mine").unwrap();
        let error = write(&file).unwrap_err().to_string();
        assert!(error.ends_with("there is a file of this name"), "{error}");
        assert_eq!(fs::read_to_string(&file).unwrap(), "mine");
        assert_eq!(names(around.path()), ["empty", "file"]);
    }
}
