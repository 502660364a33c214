//! How good outputs are, and how far quantized ones are from float ones.
//!
//! Each measure is an accumulator: it takes batches as they come, two of a kind merge, and sums are `f64` in the order of
//! the samples. [`Metric`] names them for configurations and reports.
//!
//! ```
//! use fastforward_core::ArrayView;
//! use fastforward_core::metrics::{Batch, Metric};
//! let metric: Metric = "top1".parse()?;
//! let mut accuracy = metric.accumulator();
//! let scores = [0.1, 0.7, 0.2, 0.9, 0.0, 0.1]; // [samples = 2, classes = 3]
//! let batch = Batch { output: ArrayView::new(&scores, &[2, 3])?, reference: None, labels: Some(&[1, 2]) };
//! accuracy.update(&batch)?;
//! assert_eq!(accuracy.value(), Some(50.0));
//!
//! let error = "topk1".parse::<Metric>().unwrap_err();
//! assert!(error.to_string().contains("did you mean `top1`?"));
//! # Ok::<(), fastforward_core::Error>(())
//! ```

mod classification;
mod difference;
mod divergence;
mod likelihood;

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

pub use classification::{Agreement, TopK};
pub use difference::{CosineSimilarity, MaxAbsDifference, MeanSquaredError, Sqnr};
pub use divergence::KlDivergence;
pub use likelihood::Likelihood;

use crate::{ArrayView, Error, ErrorKind};

/// What an evaluation measures.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Metric {
    /// `top1`, `top5`, `top<k>`: the share of samples whose label is among the `k` highest scores, in percent.
    TopK(usize),
    /// `agreement`: the share of samples to which both models give the same highest score, in percent.
    Agreement,
    /// `sqnr`: the power of the float output over that of the difference, in decibels.
    Sqnr,
    /// `mse`: the mean squared difference.
    Mse,
    /// `max_abs`: the largest difference.
    MaxAbs,
    /// `cosine`: the mean cosine of the angle between both outputs.
    Cosine,
    /// `kl`: the mean Kullback-Leibler divergence of the softmax of both outputs, in nats.
    Kl,
}

impl Metric {
    /// Top-1 accuracy.
    pub const TOP1: Self = Self::TopK(1);
    /// Top-5 accuracy.
    pub const TOP5: Self = Self::TopK(5);

    /// The metrics with the names that configurations use. Any other `top<k>` is one, too.
    pub const NAMES: [(&'static str, Self); 8] = [
        ("top1", Self::TOP1),
        ("top5", Self::TOP5),
        ("agreement", Self::Agreement),
        ("sqnr", Self::Sqnr),
        ("mse", Self::Mse),
        ("max_abs", Self::MaxAbs),
        ("cosine", Self::Cosine),
        ("kl", Self::Kl),
    ];

    /// The name that configurations use.
    pub fn name(self) -> Cow<'static, str> {
        match self {
            Self::TopK(k) if k != 1 && k != 5 => Cow::Owned(format!("top{k}")),
            _ => Cow::Borrowed(
                Self::NAMES.iter().find(|(_, metric)| *metric == self).map_or("", |(name, _)| name),
            ),
        }
    }

    /// Whether outputs are compared with labels; else they are compared with those of a reference model.
    pub fn needs_labels(self) -> bool {
        matches!(self, Self::TopK(_))
    }

    /// Whether a smaller value is better.
    pub fn is_error(self) -> bool {
        matches!(self, Self::Mse | Self::MaxAbs | Self::Kl)
    }

    /// The unit to print behind a value: `%`, `dB`, `nat`, or nothing.
    pub fn unit(self) -> &'static str {
        match self {
            Self::TopK(_) | Self::Agreement => "%",
            Self::Sqnr => "dB",
            Self::Kl => "nat",
            Self::Mse | Self::MaxAbs | Self::Cosine => "",
        }
    }

    /// An accumulator that has seen nothing.
    pub fn accumulator(self) -> MetricAccumulator {
        MetricAccumulator(match self {
            Self::TopK(k) => Kind::TopK(TopK::new(k)),
            Self::Agreement => Kind::Agreement(Agreement::default()),
            Self::Sqnr => Kind::Sqnr(Sqnr::default()),
            Self::Mse => Kind::Mse(MeanSquaredError::default()),
            Self::MaxAbs => Kind::MaxAbs(MaxAbsDifference::default()),
            Self::Cosine => Kind::Cosine(CosineSimilarity::default()),
            Self::Kl => Kind::Kl(KlDivergence::default()),
        })
    }
}

impl fmt::Display for Metric {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name())
    }
}

impl FromStr for Metric {
    type Err = Error;

    /// # Errors
    /// [`ErrorKind::InvalidSettings`] for an unknown name, with the nearest one.
    fn from_str(name: &str) -> Result<Self, Error> {
        let known = Self::NAMES.iter().find(|(known, _)| *known == name);
        let top = || -> Option<Self> {
            let digits =
                name.strip_prefix("top").filter(|digits| !digits.starts_with(['+', '0']))?;
            digits.parse().ok().map(Self::TopK)
        };
        known.map(|(_, metric)| *metric).or_else(top).ok_or_else(|| {
            let names = Self::NAMES.map(|(name, _)| name);
            let hint = match mpath::suggest::nearest(name, names) {
                Some(nearest) => format!("; did you mean `{nearest}`?"),
                None => format!(", expected one of `{}`", names.join("`, `")),
            };
            Error::new(ErrorKind::InvalidSettings, format!("unknown metric `{name}`{hint}"))
        })
    }
}

/// What a model gave for some samples, and what that is compared with.
#[derive(Clone, Copy, Debug)]
pub struct Batch<'a> {
    /// The outputs that are judged. `[samples, ..]`
    pub output: ArrayView<'a>,
    /// What a reference model gave for the same samples, in the same shape.
    pub reference: Option<ArrayView<'a>>,
    /// The class of each sample.
    pub labels: Option<&'a [u64]>,
}

/// The streaming value of any [`Metric`].
#[derive(Clone, Debug, PartialEq)]
pub struct MetricAccumulator(Kind);

#[derive(Clone, Debug, PartialEq)]
enum Kind {
    TopK(TopK),
    Agreement(Agreement),
    Sqnr(Sqnr),
    Mse(MeanSquaredError),
    MaxAbs(MaxAbsDifference),
    Cosine(CosineSimilarity),
    Kl(KlDivergence),
}

impl MetricAccumulator {
    /// The metric that is accumulated.
    pub fn metric(&self) -> Metric {
        match &self.0 {
            Kind::TopK(top) => Metric::TopK(top.k()),
            Kind::Agreement(_) => Metric::Agreement,
            Kind::Sqnr(_) => Metric::Sqnr,
            Kind::Mse(_) => Metric::Mse,
            Kind::MaxAbs(_) => Metric::MaxAbs,
            Kind::Cosine(_) => Metric::Cosine,
            Kind::Kl(_) => Metric::Kl,
        }
    }

    /// Adds a batch.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidData`] when labels or reference are missing where they are needed, shapes or numbers of samples
    /// differ, or a value is not finite. Nothing is added then.
    pub fn update(&mut self, batch: &Batch<'_>) -> Result<(), Error> {
        let metric = self.metric();
        let missing = |what: &str| {
            Error::new(ErrorKind::InvalidData, format!("metric `{metric}` needs {what}"))
        };
        let reference = || batch.reference.ok_or_else(|| missing("the outputs of a reference"));
        match &mut self.0 {
            Kind::TopK(top) => {
                top.update(batch.output, batch.labels.ok_or_else(|| missing("labels"))?)
            }
            Kind::Agreement(agreement) => agreement.update(reference()?, batch.output),
            Kind::Sqnr(sqnr) => sqnr.update(reference()?, batch.output),
            Kind::Mse(mse) => mse.update(reference()?, batch.output),
            Kind::MaxAbs(max) => max.update(reference()?, batch.output),
            Kind::Cosine(cosine) => cosine.update(reference()?, batch.output),
            Kind::Kl(kl) => kl.update(reference()?, batch.output),
        }
    }

    /// Adds what another accumulator of the same metric saw after this one.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidSettings`] when the metrics differ.
    pub fn merge(&mut self, later: &MetricAccumulator) -> Result<(), Error> {
        match (&mut self.0, &later.0) {
            (Kind::TopK(a), Kind::TopK(b)) if a.k() == b.k() => a.merge(b),
            (Kind::Agreement(a), Kind::Agreement(b)) => a.merge(b),
            (Kind::Sqnr(a), Kind::Sqnr(b)) => a.merge(b),
            (Kind::Mse(a), Kind::Mse(b)) => a.merge(b),
            (Kind::MaxAbs(a), Kind::MaxAbs(b)) => a.merge(b),
            (Kind::Cosine(a), Kind::Cosine(b)) => a.merge(b),
            (Kind::Kl(a), Kind::Kl(b)) => a.merge(b),
            _ => {
                return Err(Error::new(
                    ErrorKind::InvalidSettings,
                    format!(
                        "metric `{}` cannot be added to metric `{}`",
                        later.metric(),
                        self.metric()
                    ),
                ));
            }
        }
        Ok(())
    }

    /// The value in the metric's [unit](Metric::unit); `None` before the first sample.
    pub fn value(&self) -> Option<f64> {
        match &self.0 {
            Kind::TopK(top) => top.accuracy().map(|share| 100.0 * share),
            Kind::Agreement(agreement) => agreement.share().map(|share| 100.0 * share),
            Kind::Sqnr(sqnr) => sqnr.decibels(),
            Kind::Mse(mse) => mse.value(),
            Kind::MaxAbs(max) => max.value(),
            Kind::Cosine(cosine) => cosine.value(),
            Kind::Kl(kl) => kl.value(),
        }
    }
}

/// The elements in row-major order, copied only if they are not.
fn elements(x: ArrayView<'_>) -> Cow<'_, [f32]> {
    match x.strides() {
        None => Cow::Borrowed(x.data()),
        Some(_) => Cow::Owned(x.to_array().data),
    }
}

/// Fails unless both have the same shape with at least one sample; gives back the number of samples along the first axis.
fn samples_of_pair(reference: ArrayView<'_>, output: ArrayView<'_>) -> Result<usize, Error> {
    if reference.shape() != output.shape() {
        return Err(Error::new(
            ErrorKind::InvalidData,
            format!(
                "output of shape {:?} cannot be compared with a reference of shape {:?}",
                output.shape(),
                reference.shape()
            ),
        ));
    }
    match output.shape().first() {
        Some(&samples) if !output.is_empty() => Ok(samples),
        _ => Err(Error::new(
            ErrorKind::InvalidData,
            format!("output of shape {:?} has no samples", output.shape()),
        )),
    }
}

/// How many rows of how many scores there are: classes lie along the last axis that is longer than 1, or the last axis.
fn rows_of_scores(output: ArrayView<'_>) -> Result<(usize, usize), Error> {
    let shape = output.shape();
    let Some(last) = shape.len().checked_sub(1).filter(|_| !output.is_empty()) else {
        return Err(Error::new(
            ErrorKind::InvalidData,
            format!("output of shape {shape:?} has no samples"),
        ));
    };
    // The first axis counts samples, however few.
    let classes = (1..=last).rev().find(|&axis| shape[axis] > 1).unwrap_or(last.min(1));
    Ok((output.len() / shape[classes], shape[classes]))
}

/// Fails if there is a score that is NaN.
fn check_scores(what: &str, scores: &[f32], classes: usize) -> Result<(), Error> {
    match scores.iter().position(|score| score.is_nan()) {
        None => Ok(()),
        Some(at) => Err(Error::new(
            ErrorKind::InvalidData,
            format!("{what} of sample {} for class {} is NaN", at / classes, at % classes),
        )),
    }
}

#[cfg(test)]
mod tests;
