//! A folder that gets all of its files, or none.

use std::fs;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// Files on their way into a folder.
///
/// They are written into a folder beside their places and moved when everything is known to be right. When this is
/// dropped before, what was written is removed, and so are the folders that were made.
#[derive(Debug)]
pub(super) struct Outputs {
    folder: PathBuf,
    staging: PathBuf,
    /// The outermost folder that did not exist.
    made: Option<PathBuf>,
}

impl Outputs {
    /// Makes `folder`, and in it the place where files are written first.
    ///
    /// # Errors
    /// `Io` naming the folder when it cannot be made or written to.
    pub(super) fn create(folder: &Path) -> Result<Self> {
        let made = folder
            .ancestors()
            .take_while(|ancestor| !ancestor.as_os_str().is_empty() && !ancestor.exists())
            .last()
            .map(Path::to_owned);
        let staging = folder.join(format!(".fastforward-{}.part", std::process::id()));
        // From here on the drop cleans up, also when the folder is made but not the one in it.
        let outputs = Self { folder: folder.to_owned(), staging, made };
        fs::create_dir_all(&outputs.staging)
            .map_err(|error| Error::io("write into the output folder", folder, error))?;
        Ok(outputs)
    }

    /// Where files are written first.
    pub(super) fn staging(&self) -> &Path {
        &self.staging
    }

    /// Moves all files to their places, those of `last` at the end.
    ///
    /// # Errors
    /// `Io` naming the file that cannot be moved.
    pub(super) fn publish(mut self, last: &str) -> Result<()> {
        let mut files = Vec::new();
        list(&self.staging, Path::new(""), &mut files)?;
        files.sort_by_key(|file| (file == Path::new(last), file.clone()));
        for file in files {
            let place = self.folder.join(&file);
            if let Some(parent) = place.parent() {
                fs::create_dir_all(parent).map_err(|e| Error::io("make folder", parent, e))?;
            }
            fs::rename(self.staging.join(&file), &place)
                .map_err(|error| Error::io("write", &place, error))?;
        }
        self.made = None;
        Ok(())
    }
}

impl Drop for Outputs {
    fn drop(&mut self) {
        // There is no way to tell, and nothing better to do, when cleaning up fails as well.
        let _staging = fs::remove_dir_all(&self.staging);
        let Some(made) = &self.made else { return };
        // What somebody else put there meanwhile stays: only empty folders are removed.
        for folder in self.folder.ancestors().take_while(|folder| folder.starts_with(made)) {
            let _folder = fs::remove_dir(folder);
        }
    }
}

/// The files below `folder`, as paths relative to it.
fn list(folder: &Path, below: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    let failed = |error| Error::io("read folder", folder, error);
    for entry in fs::read_dir(folder).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let name = below.join(entry.file_name());
        if entry.file_type().map_err(failed)?.is_dir() {
            list(&entry.path(), &name, files)?;
        } else {
            files.push(name);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_published_leaves_no_trace() {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("a/b");
        let outputs = Outputs::create(&out).unwrap();
        fs::write(outputs.staging().join("file"), "half").unwrap();
        drop(outputs);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_folder_that_was_there_stays() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("mine"), "mine").unwrap();
        drop(Outputs::create(folder.path()).unwrap());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn published_files_replace_older_ones() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("report.json"), "old").unwrap();
        let outputs = Outputs::create(folder.path()).unwrap();
        fs::create_dir(outputs.staging().join("state")).unwrap();
        fs::write(outputs.staging().join("state/state.json"), "state").unwrap();
        fs::write(outputs.staging().join("report.json"), "new").unwrap();
        outputs.publish("report.json").unwrap();
        assert_eq!(fs::read_to_string(folder.path().join("report.json")).unwrap(), "new");
        assert_eq!(fs::read_to_string(folder.path().join("state/state.json")).unwrap(), "state");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2);
    }

    #[test]
    fn a_file_in_the_place_of_the_folder_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("taken");
        fs::write(&out, "").unwrap();
        let error = Outputs::create(&out).unwrap_err();
        assert!(error.to_string().contains("taken"), "{error}");
        assert!(out.is_file());
    }
}
