//! Right answers, and equal ones.

use super::{check_scores, elements, rows_of_scores, samples_of_pair};
use crate::{ArrayView, Error, ErrorKind};

/// Top-k accuracy: the share of samples whose label is among the `k` highest scores.
///
/// Of equal scores the class with the lower number comes first. Scores are `[samples, classes]`; axes of extent 1 behind do
/// no harm, and with more axes each position before the last is a sample.
#[derive(Clone, Debug, PartialEq)]
pub struct TopK {
    k: usize,
    right: u64,
    samples: u64,
}

impl TopK {
    /// An accumulator that has seen nothing.
    pub fn new(k: usize) -> Self {
        Self { k, right: 0, samples: 0 }
    }

    /// How many of the highest scores count.
    pub fn k(&self) -> usize {
        self.k
    }

    /// Adds samples with one label each.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidData`] when there are not as many labels as samples, not as many classes as `k`, or a label is
    /// no class (all such are counted, the first is named), or a score is NaN.
    pub fn update(&mut self, scores: ArrayView<'_>, labels: &[u64]) -> Result<(), Error> {
        let wrong = |message: String| Err(Error::new(ErrorKind::InvalidData, message));
        let (samples, classes) = rows_of_scores(scores)?;
        if labels.len() != samples {
            return wrong(format!("{samples} samples need as many labels, found {}", labels.len()));
        }
        if classes < self.k {
            return wrong(format!("top{} needs {} classes, found {classes}", self.k, self.k));
        }
        let mut beyond = labels.iter().enumerate().filter(|&(_, &label)| label >= classes as u64);
        if let Some((at, label)) = beyond.next() {
            return wrong(format!(
                "{} of {samples} labels are no class: label {label} of sample {at}, expected 0 to {}",
                1 + beyond.count(),
                classes - 1
            ));
        }
        let scores = elements(scores);
        check_scores("the score", &scores, classes)?;
        for (row, &label) in scores.chunks_exact(classes).zip(labels) {
            let (label, own) = (label as usize, row[label as usize]);
            let before = row[..label].iter().filter(|&&score| score >= own).count();
            let behind = row[label + 1..].iter().filter(|&&score| score > own).count();
            self.right += u64::from(before + behind < self.k);
        }
        self.samples += samples as u64;
        Ok(())
    }

    /// Adds what another accumulator with the same `k` saw.
    pub fn merge(&mut self, later: &Self) {
        self.right += later.right;
        self.samples += later.samples;
    }

    /// The number of samples that were right.
    pub fn right(&self) -> u64 {
        self.right
    }

    /// The number of samples.
    pub fn samples(&self) -> u64 {
        self.samples
    }

    /// The share of right samples, 0 to 1; `None` before the first one.
    pub fn accuracy(&self) -> Option<f64> {
        (self.samples > 0).then(|| self.right as f64 / self.samples as f64)
    }
}

/// The share of samples to which two models give the same highest score, shaped as for [`TopK`].
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Agreement {
    same: u64,
    samples: u64,
}

impl Agreement {
    /// Adds samples.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidData`] when shapes differ, there is no sample, or a score is NaN.
    pub fn update(&mut self, reference: ArrayView<'_>, output: ArrayView<'_>) -> Result<(), Error> {
        samples_of_pair(reference, output)?;
        let (samples, classes) = rows_of_scores(output)?;
        let (reference, output) = (elements(reference), elements(output));
        check_scores("the reference's score", &reference, classes)?;
        check_scores("the output's score", &output, classes)?;
        for (a, b) in reference.chunks_exact(classes).zip(output.chunks_exact(classes)) {
            self.same += u64::from(highest(a) == highest(b));
        }
        self.samples += samples as u64;
        Ok(())
    }

    /// Adds what another accumulator saw.
    pub fn merge(&mut self, later: &Self) {
        self.same += later.same;
        self.samples += later.samples;
    }

    /// The number of samples on which both agree.
    pub fn same(&self) -> u64 {
        self.same
    }

    /// The number of samples.
    pub fn samples(&self) -> u64 {
        self.samples
    }

    /// The share of samples on which both agree, 0 to 1; `None` before the first one.
    pub fn share(&self) -> Option<f64> {
        (self.samples > 0).then(|| self.same as f64 / self.samples as f64)
    }
}

/// The class with the highest score, the lowest number among equals.
fn highest(scores: &[f32]) -> usize {
    let mut best = 0;
    for (class, &score) in scores.iter().enumerate() {
        if score > scores[best] {
            best = class;
        }
    }
    best
}
