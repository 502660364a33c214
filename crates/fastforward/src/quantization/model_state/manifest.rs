//! `manifest.json`: what a saved model is, and which files belong to it.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::files::{sha256_of, write_whole};
use crate::{Error, ErrorKind};

/// The version of the format that is written, and the only one that is read.
pub(super) const VERSION: u32 = 1;
pub(super) const MANIFEST: &str = "manifest.json";
pub(super) const WEIGHTS: &str = "weights.safetensors";
/// The files that the manifest binds: the state, as the core writes it, and the weights.
pub(super) const BOUND: [&str; 3] = ["state.json", "state.safetensors", WEIGHTS];
/// Every file of a saved model.
pub(super) const FILES: [&str; 4] = [MANIFEST, BOUND[0], BOUND[1], BOUND[2]];

const FORMAT: &str = "fastforward quantized model";

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Manifest {
    format: String,
    version: u32,
    fastforward_version: String,
    /// What the model is called.
    pub(super) model: String,
    /// The path of the class of its root.
    pub(super) class: String,
    /// The SHA-256 of each of the other files, by name.
    pub(super) files: BTreeMap<String, String>,
    /// Every parameter once, in declaration order.
    pub(super) weights: Vec<SavedWeight>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SavedWeight {
    /// Every full name; under the first the elements are stored.
    pub(super) names: Vec<String>,
    /// The element type as safetensors calls it.
    pub(super) dtype: String,
    pub(super) shape: Vec<usize>,
}

/// What every version says of itself.
#[derive(Deserialize)]
struct Head {
    format: String,
    version: u32,
}

impl Manifest {
    pub(super) fn new(
        model: &str,
        class: &str,
        files: BTreeMap<String, String>,
        weights: Vec<SavedWeight>,
    ) -> Self {
        Self {
            format: FORMAT.to_owned(),
            version: VERSION,
            fastforward_version: env!("CARGO_PKG_VERSION").to_owned(),
            model: model.to_owned(),
            class: class.to_owned(),
            files,
            weights,
        }
    }

    pub(super) fn write(&self, folder: &Path) -> Result<(), Error> {
        let mut text = serde_json::to_string_pretty(self).map_err(|source| {
            Error::new(ErrorKind::State, source.to_string()).with_source(source)
        })?;
        text.push('\n');
        write_whole(&folder.join(MANIFEST), |out| out.write_all(text.as_bytes()))
    }

    /// The manifest of a folder, if it is of this format and version.
    pub(super) fn read(folder: &Path) -> Result<Self, Error> {
        let path = folder.join(MANIFEST);
        let wrong =
            |what: String| Error::new(ErrorKind::State, format!("`{}`: {what}", path.display()));
        let text = read(&path)?;
        let head: Head = serde_json::from_slice(&text).map_err(|e| wrong(e.to_string()))?;
        if head.format != FORMAT {
            return Err(wrong(format!("its format is `{}`, expected `{FORMAT}`", head.format)));
        }
        if head.version != VERSION {
            return Err(wrong(format!(
                "version {} of the format, expected {VERSION}",
                head.version
            )));
        }
        let manifest: Self = serde_json::from_slice(&text).map_err(|e| wrong(e.to_string()))?;
        if !manifest.files.keys().eq(BOUND) {
            let found: Vec<&str> = manifest.files.keys().map(String::as_str).collect();
            let expected = BOUND.join("`, `");
            return Err(wrong(format!(
                "it lists the files `{}`, expected `{expected}`",
                found.join("`, `")
            )));
        }
        Ok(manifest)
    }

    /// The bytes of the weights, when all files are those that were saved with the manifest. The files of the state are
    /// read again by the core, which knows what is in them.
    pub(super) fn read_bound(&self, folder: &Path) -> Result<Vec<u8>, Error> {
        let (mut damaged, mut weights) = (Vec::new(), Vec::new());
        for (name, expected) in &self.files {
            let bytes = read(&folder.join(name))?;
            if sha256_of(&bytes) != *expected {
                damaged.push(format!(
                    "`{name}` is not the file that was saved with `{MANIFEST}`: it is damaged, or of another save"
                ));
            }
            if name == WEIGHTS {
                weights = bytes;
            }
        }
        if damaged.is_empty() {
            return Ok(weights);
        }
        let error = Error::of_problems(ErrorKind::State, "files do not belong together", &damaged);
        Err(error.at(format_args!("`{}`", folder.display())))
    }
}

fn read(path: &PathBuf) -> Result<Vec<u8>, Error> {
    fs::read(path).map_err(|source| {
        Error::new(ErrorKind::Io, format!("cannot read `{}`: {source}", path.display()))
            .with_source(source)
    })
}
