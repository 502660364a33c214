//! Algorithms that come before ranges.

use std::collections::BTreeMap;
use std::time::Instant;

use fastforward_core::config::{Algorithm, AlgorithmEntry, AlgorithmStage};

use super::{AlgorithmReport, plan};
use crate::error::Result;
use crate::graph::Model;
use crate::pipeline::quantize::batches;
use crate::pipeline::{Job, Progress, Samples, Stage};
use crate::rewrite::{Executed, PrepareOptions, prepare};
use crate::shapes::ShapeTable;

impl Job {
    /// The same job on a model of its own, prepared by the algorithms that come before ranges.
    pub(super) fn prepared(
        &self,
        samples: Option<&Samples>,
        shapes: &ShapeTable,
        reports: &mut BTreeMap<usize, AlgorithmReport>,
        progress: &dyn Progress,
    ) -> Result<Job> {
        let mut model = self.model.clone();
        for (at, entry) in self.algorithms(AlgorithmStage::Prepare) {
            progress.start(Stage::Algorithm(entry.algorithm.name()), 0);
            let started = Instant::now();
            let report = self.prepare(at, entry, &mut model, samples, shapes)?;
            reports.insert(at, report);
            progress.algorithm(at, started.elapsed().as_secs_f64());
            progress.finish();
        }
        let job = self.on(model)?;
        job.check()?;
        Ok(job)
    }

    fn prepare(
        &self,
        at: usize,
        entry: &AlgorithmEntry,
        model: &mut Model,
        samples: Option<&Samples>,
        shapes: &ShapeTable,
    ) -> Result<AlgorithmReport> {
        // What was rewritten before has nodes of its own.
        let rewritten = match entry.algorithm {
            Algorithm::Awq { .. } => Some(self.on(model.clone())?),
            _ => None,
        };
        let job = rewritten.as_ref().unwrap_or(self);
        let (slots, kept) = match rewritten.is_some() {
            true => {
                let planned = plan(job)?.0.swap_remove(at);
                (planned.slots, planned.kept)
            }
            false => Default::default(),
        };
        let run = self.run_options();
        let options = PrepareOptions {
            shapes,
            meant: (&job.tree, &slots),
            max_moment_bytes: 2 * run.max_bytes as u64,
            add_missing_biases: true,
        };
        let mut activations = Executed::new(|| batches(samples), run);
        let done = prepare(model, &entry.algorithm, &mut activations, &options)?;
        let mut report = AlgorithmReport::new(entry, done.measure);
        for (name, before, after) in done.changes {
            report.change(name, before, Some(after));
        }
        report.kept = kept;
        report.kept.extend(done.kept);
        report.moment_bytes = done.moment_bytes;
        Ok(report)
    }
}
