//! Files that are there whole or not at all.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process;

use sha2::{Digest, Sha256};

use crate::{Error, ErrorKind};

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
    let failed = |source: std::io::Error| {
        Error::new(ErrorKind::Io, format!("cannot write `{}`: {source}", path.display()))
            .with_source(source)
    };
    let aside = Aside(beside(path));
    let mut file = BufWriter::new(File::create(&aside.0).map_err(failed)?);
    write(&mut file).map_err(failed)?;
    let file = file.into_inner().map_err(|error| failed(error.into_error()))?;
    file.sync_all().map_err(failed)?;
    drop(file);
    fs::rename(&aside.0, path).map_err(failed)
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
    let mut piece = vec![0u8; 1 << 16];
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

fn beside(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(format!(".{}.part", process::id()));
    path.with_file_name(name)
}

/// Removes the file aside unless it was renamed away.
struct Aside(PathBuf);

impl Drop for Aside {
    fn drop(&mut self) {
        // After the rename there is nothing to remove, which is the only error that can be expected.
        let _gone = fs::remove_file(&self.0);
    }
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
}
