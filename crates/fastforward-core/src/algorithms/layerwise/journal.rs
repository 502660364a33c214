//! Finished layers and blocks on disk, so that a run that was interrupted goes on where it stopped.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::{BlockOutcome, LayerOutcome};
use crate::files::write_whole;
use crate::{Error, ErrorKind};

/// What a layer got.
#[derive(Clone, Debug, PartialEq)]
pub struct Finished {
    /// The weight on its grid, in the layout of the graph or the parameter; `None` where rounding to nearest is to decide.
    pub weight: Option<Vec<f32>>,
    /// The scales of its quantizer.
    pub scale: Vec<f32>,
    /// The offsets.
    pub offset: Option<Vec<f32>>,
    /// The bias of each output channel, where it was corrected.
    pub bias: Option<Vec<f32>>,
    /// What was done.
    pub outcome: LayerOutcome,
}

/// What a block got.
#[derive(Clone, Debug, PartialEq)]
pub struct FinishedBlock {
    /// The weights of its layers on their grids; `None` where they stay as they were.
    pub weights: Option<Vec<Vec<f32>>>,
    /// What was done.
    pub outcome: BlockOutcome,
}

/// A folder with one file per finished layer or block, in the order in which they were finished.
///
/// Every file is written aside and renamed, so that it is whole or absent. The folder belongs to one job: what another
/// one left there, with other rules, data or another model, is removed and not used.
#[derive(Debug)]
pub struct Journal {
    folder: PathBuf,
    found: usize,
}

const JOB: &str = "job.json";

#[derive(Serialize, Deserialize)]
struct JobFile<'a> {
    schema_version: u32,
    #[serde(borrow)]
    job: Cow<'a, str>,
}

const VERSION: u32 = 1;

impl Journal {
    /// Takes up the journal in `folder`, or begins one; `job` is a digest of everything that the result depends on.
    ///
    /// # Errors
    /// `Io` when the folder cannot be read or made.
    pub fn open(folder: &Path, job: &str) -> Result<Self, Error> {
        let mut journal = Self { folder: folder.to_owned(), found: 0 };
        let text = fs::read_to_string(folder.join(JOB)).unwrap_or_default();
        let same = serde_json::from_str::<JobFile<'_>>(&text)
            .is_ok_and(|file| file.schema_version == VERSION && file.job == job);
        if same {
            while journal.file(journal.found).is_file() {
                journal.found += 1;
            }
            return Ok(journal);
        }
        journal.clear()?;
        fs::create_dir_all(folder).map_err(|error| failed("make", folder, error))?;
        let file = JobFile { schema_version: VERSION, job: job.into() };
        let text = serde_json::to_string(&file)
            .map_err(|error| Error::new(ErrorKind::Io, error.to_string()))?;
        write_whole(&folder.join(JOB), |out| out.write_all(text.as_bytes()))?;
        Ok(journal)
    }

    /// How many layers an earlier run finished.
    pub fn found(&self) -> usize {
        self.found
    }

    /// Whether an earlier run finished layer `number`.
    pub fn has(&self, number: usize) -> bool {
        number < self.found
    }

    /// Removes the journal: the job is done.
    ///
    /// # Errors
    /// `Io` naming the folder.
    pub fn clear(&self) -> Result<(), Error> {
        match fs::remove_dir_all(&self.folder) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(failed("remove", &self.folder, error))
            }
            _ => Ok(()),
        }
    }

    fn file(&self, number: usize) -> PathBuf {
        self.folder.join(format!("{number:05}.safetensors"))
    }

    /// Layer `number` as an earlier run finished it; `None` if none did, or if the file is not what this program writes.
    pub fn read(&self, number: usize, slot: &str) -> Option<Finished> {
        let (outcome, tensors) = self.entry::<LayerOutcome>(number)?;
        let floats = |name: &str| tensors.get(name).cloned();
        (outcome.slot == slot).then_some(())?;
        Some(Finished {
            weight: floats("weight"),
            scale: floats("scale")?,
            offset: floats("offset"),
            bias: floats("bias"),
            outcome,
        })
    }

    /// Adds a finished layer.
    ///
    /// # Errors
    /// `Io` naming the file.
    pub fn write(&self, number: usize, finished: &Finished) -> Result<(), Error> {
        let mut tensors = vec![("scale".to_owned(), &finished.scale[..])];
        let optional =
            [("weight", &finished.weight), ("offset", &finished.offset), ("bias", &finished.bias)];
        let present = optional.iter().filter_map(|(name, values)| Some((name, values.as_ref()?)));
        tensors.extend(present.map(|(name, values)| ((*name).to_owned(), &values[..])));
        self.add(number, &tensors, &finished.outcome)
    }

    /// Block `number`, with this name, as for [`read`](Self::read).
    pub fn read_block(&self, number: usize, name: &str) -> Option<FinishedBlock> {
        let (outcome, tensors) = self.entry::<BlockOutcome>(number)?;
        (outcome.name == name).then_some(())?;
        let weights: Option<Vec<Vec<f32>>> =
            (0..tensors.len()).map(|at| tensors.get(&format!("weight{at}")).cloned()).collect();
        Some(FinishedBlock { weights: weights.filter(|all| !all.is_empty()), outcome })
    }

    /// Adds a finished block.
    ///
    /// # Errors
    /// `Io` naming the file.
    pub fn write_block(&self, number: usize, finished: &FinishedBlock) -> Result<(), Error> {
        let weights = finished.weights.iter().flatten().enumerate();
        let tensors: Vec<(String, &[f32])> =
            weights.map(|(at, weight)| (format!("weight{at}"), &weight[..])).collect();
        self.add(number, &tensors, &finished.outcome)
    }

    /// The outcome and the tensors of a file.
    fn entry<O: DeserializeOwned>(&self, number: usize) -> Option<(O, HashMap<String, Vec<f32>>)> {
        if number >= self.found {
            return None;
        }
        let bytes = fs::read(self.file(number)).ok()?;
        let (_, metadata) = SafeTensors::read_metadata(&bytes).ok()?;
        let outcome = serde_json::from_str(metadata.metadata().as_ref()?.get("outcome")?).ok()?;
        let tensors = SafeTensors::deserialize(&bytes).ok()?;
        let floats = |(name, tensor): (String, TensorView<'_>)| {
            let bytes = (tensor.dtype() == Dtype::F32).then(|| tensor.data())?;
            let values = bytes.as_chunks::<4>().0.iter().map(|&b| f32::from_le_bytes(b)).collect();
            Some((name, values))
        };
        Some((outcome, tensors.tensors().into_iter().map(floats).collect::<Option<_>>()?))
    }

    fn add<O: Serialize>(
        &self,
        number: usize,
        tensors: &[(String, &[f32])],
        outcome: &O,
    ) -> Result<(), Error> {
        let written = |error: &dyn std::fmt::Display| {
            Error::new(ErrorKind::Io, format!("cannot write layer {number}: {error}"))
        };
        let bytes: Vec<Vec<u8>> = tensors
            .iter()
            .map(|(_, values)| values.iter().flat_map(|v| v.to_le_bytes()).collect())
            .collect();
        let views = tensors
            .iter()
            .zip(&bytes)
            .map(|((name, _), bytes)| {
                Ok((name, TensorView::new(Dtype::F32, vec![bytes.len() / 4], bytes)?))
            })
            .collect::<Result<Vec<_>, safetensors::SafeTensorError>>()
            .map_err(|error| written(&error))?;
        let outcome = serde_json::to_string(outcome).map_err(|error| written(&error))?;
        let metadata = HashMap::from([("outcome".to_owned(), outcome)]);
        let text =
            safetensors::serialize(views, Some(metadata)).map_err(|error| written(&error))?;
        write_whole(&self.file(number), |file| file.write_all(&text))
    }
}

fn failed(what: &str, folder: &Path, source: std::io::Error) -> Error {
    let text = format!("cannot {what} folder `{}`: {source}", folder.display());
    Error::new(ErrorKind::Io, text).with_source(source)
}

#[cfg(test)]
mod tests {
    use super::super::{BiasStep, StepOutcome};
    use super::*;

    fn finished(slot: &str) -> Finished {
        Finished {
            weight: (slot == "conv1").then(|| vec![0.5, -1.25, f32::MIN_POSITIVE]),
            scale: vec![0.25],
            offset: Some(vec![3.0]),
            bias: (slot == "conv2").then(|| vec![-0.5]),
            outcome: LayerOutcome {
                layer: slot.to_owned(),
                slot: slot.to_owned(),
                rows: 1,
                columns: 3,
                groups: 1,
                moment_bytes: 72,
                steps: vec![StepOutcome {
                    algorithm: 1,
                    signal: 1e-17,
                    loss_before: 0.1 + 0.2,
                    loss: 1e-17,
                    samples: 7,
                    rows_kept: 0,
                }],
                bias: (slot == "conv2").then_some(BiasStep::Corrected {
                    signal: 3.0,
                    loss_before: 0.3,
                    loss: 0.1 + 0.1,
                }),
            },
        }
    }

    #[test]
    fn so_do_finished_blocks() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path().join("journal");
        let block = |weights: Option<Vec<Vec<f32>>>| FinishedBlock {
            outcome: BlockOutcome {
                name: "conv1, conv2".to_owned(),
                output: "y".to_owned(),
                signal: 3.0,
                loss_before: 0.1 + 0.2,
                loss: 1e-17,
                kept_because: weights.is_none().then(|| "no gradient".to_owned()),
            },
            weights,
        };
        let journal = Journal::open(&folder, "a").unwrap();
        let chosen = block(Some(vec![vec![0.5, -1.25], vec![f32::MIN_POSITIVE]]));
        journal.write_block(0, &chosen).unwrap();
        journal.write_block(1, &block(None)).unwrap();
        let again = Journal::open(&folder, "a").unwrap();
        assert_eq!(again.read_block(0, "conv1, conv2"), Some(chosen));
        assert_eq!(again.read_block(1, "conv1, conv2"), Some(block(None)));
        assert_eq!(again.read_block(0, "conv2"), None);
        // A layer is no block.
        assert_eq!(again.read(0, "conv1, conv2"), None);
    }

    #[test]
    fn finished_layers_come_back_to_the_same_job_only() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path().join("journal");
        let journal = Journal::open(&folder, "a").unwrap();
        assert_eq!(journal.found(), 0);
        journal.write(0, &finished("conv1")).unwrap();
        journal.write(1, &finished("conv2")).unwrap();

        let again = Journal::open(&folder, "a").unwrap();
        assert_eq!(again.found(), 2);
        assert_eq!(again.read(0, "conv1"), Some(finished("conv1")));
        assert_eq!(again.read(1, "conv2"), Some(finished("conv2")));
        assert_eq!(again.read(1, "conv3"), None);
        assert_eq!(again.read(2, "conv2"), None);
        // What is cut short or is something else counts as not there.
        fs::write(again.file(0), "no tensors").unwrap();
        assert_eq!(again.read(0, "conv1"), None);

        let other = Journal::open(&folder, "b").unwrap();
        assert_eq!(other.found(), 0);
        assert!(!other.file(1).exists());
        other.clear().unwrap();
        other.clear().unwrap();
        assert!(!folder.exists());
    }
}
