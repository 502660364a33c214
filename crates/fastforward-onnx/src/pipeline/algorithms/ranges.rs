//! Algorithms that work on ranges that were set.

use std::collections::BTreeMap;
use std::time::Instant;

use fastforward_core::config::{Algorithm, AlgorithmEntry, AlgorithmStage};
use ff_kernels::HqqOptions;

use super::plan::weight_slots;
use super::{AlgorithmReport, PlannedAlgorithm};
use crate::error::Result;
use crate::joint_ranges::{JoinOptions, join_ranges};
use crate::layerwise::refine_offsets;
use crate::pipeline::{Job, Progress, Stage};

impl Job {
    /// Works on ranges that were set.
    pub(super) fn refine(
        &self,
        planned: &[PlannedAlgorithm],
        reports: &mut BTreeMap<usize, AlgorithmReport>,
        progress: &dyn Progress,
    ) -> Result<()> {
        for (at, entry) in self.algorithms(AlgorithmStage::Ranges) {
            progress.start(Stage::Algorithm(entry.algorithm.name()), 0);
            let started = Instant::now();
            let report = match entry.algorithm {
                Algorithm::Hqq { options } => self.refine_offsets(entry, &planned[at], &options)?,
                Algorithm::JoinRanges { concatenations, additions } => {
                    self.join_ranges(entry, &JoinOptions { concatenations, additions })?
                }
                ref other => AlgorithmReport::new(entry, other.name()),
            };
            reports.insert(at, report);
            progress.algorithm(at, started.elapsed().as_secs_f64());
            progress.finish();
        }
        Ok(())
    }

    fn refine_offsets(
        &self,
        entry: &AlgorithmEntry,
        planned: &PlannedAlgorithm,
        options: &HqqOptions,
    ) -> Result<AlgorithmReport> {
        let sites = weight_slots(self).filter(|site| planned.slots.contains(&site.name));
        let found = refine_offsets(&self.model, sites, options)?;
        let mut report =
            AlgorithmReport::new(entry, "sparse error of a weight, in units of its scales");
        for one in found {
            report.change(one.slot, one.loss_before, Some(one.loss));
        }
        report.kept.clone_from(&planned.kept);
        Ok(report)
    }

    fn join_ranges(
        &self,
        entry: &AlgorithmEntry,
        options: &JoinOptions,
    ) -> Result<AlgorithmReport> {
        let found = join_ranges(&self.model, &self.tree, options)?;
        let mut report =
            AlgorithmReport::new(entry, "width of the narrowest range, and of the common one");
        for one in &found.joined {
            let common = f64::from(one.max) - f64::from(one.min);
            report.change(one.slots.join(", "), one.narrowest, Some(common));
        }
        let kept = found.kept.iter();
        report.kept.extend(kept.map(|one| format!("`{}`: {}", one.nodes.join("`, `"), one.reason)));
        Ok(report)
    }
}
