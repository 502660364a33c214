//! `[[algorithm]]` of a configuration, carried out on a model.

mod correct;
mod plan;
mod prepare;
mod ranges;
mod report;
mod weights;

use std::collections::BTreeMap;
use std::path::Path;

use fastforward_core::config::{AlgorithmEntry, AlgorithmStage};

use super::report::{SourceData, SourceFile};
use super::{Job, Progress, Samples};
use crate::error::Result;
use crate::layerwise::Journal;
use crate::shapes::ShapeTable;

pub use plan::PlannedAlgorithm;
pub(super) use plan::{is_matched, matches, plan};
pub use report::{AlgorithmChange, AlgorithmReport};

/// A job on a model of its own, which its algorithms change.
pub(super) struct Tuned {
    pub(super) job: Job,
    /// The constants that hold other values than in float.
    pub(super) changed: Vec<String>,
    /// By the position of the algorithm.
    reports: BTreeMap<usize, AlgorithmReport>,
    journal: Option<Journal>,
}

impl Tuned {
    /// Lets the algorithms work that come before ranges.
    pub(super) fn prepare(
        job: &Job,
        samples: Option<&Samples>,
        shapes: &ShapeTable,
        progress: &dyn Progress,
    ) -> Result<Self> {
        let mut reports = BTreeMap::new();
        let job = job.prepared(samples, shapes, &mut reports, progress)?;
        Ok(Self { job, changed: Vec::new(), reports, journal: None })
    }

    /// Lets those work that need ranges. `out` is where finished layers are kept.
    pub(super) fn tune(
        &mut self,
        out: &Path,
        model_files: &[SourceFile],
        sources: &SourceData,
        samples: Option<&Samples>,
        shapes: &ShapeTable,
        progress: &dyn Progress,
    ) -> Result<()> {
        let (planned, _) = plan(&self.job)?;
        self.job.refine(&planned, &mut self.reports, progress)?;
        if self.job.algorithms(AlgorithmStage::Weights).next().is_some() {
            let journal = self.job.journal(out, model_files, sources.calibration.as_ref())?;
            let reports = &mut self.reports;
            self.changed =
                self.job.choose(&planned, samples, &journal, shapes, reports, progress)?;
            self.journal = Some(journal);
        }
        let corrected = self.job.correct(samples, shapes, &mut self.reports, progress)?;
        self.changed.extend(corrected);
        Ok(())
    }

    /// What was done, in the order of the file.
    pub(super) fn reports(&self) -> Vec<AlgorithmReport> {
        self.reports.values().cloned().collect()
    }

    /// Removes what would have let an interrupted job go on.
    pub(super) fn forget(&self) -> Result<()> {
        Ok(self.journal.as_ref().map_or(Ok(()), Journal::clear)?)
    }
}

impl Job {
    fn algorithms(&self, stage: AlgorithmStage) -> impl Iterator<Item = (usize, &AlgorithmEntry)> {
        let all = self.config.algorithms.iter().enumerate();
        all.filter(move |(_, entry)| entry.algorithm.stage() == stage)
    }
}
