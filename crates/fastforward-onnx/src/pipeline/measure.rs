//! How good models are, side by side.

use std::path::Path;

use fastforward_core::ArrayView;
use fastforward_core::config::EvaluationSection;
use fastforward_core::files::sha256;
use fastforward_core::metrics::{Batch, Metric, MetricAccumulator};
use serde::Serialize;

use super::samples::Samples;
use super::summary::file_name;
use super::{Progress, Stage};
use crate::engine::{Engine, EngineOptions};
use crate::error::{Error, ErrorKind, Result};
use crate::graph::Model;
use crate::tensor::Tensor;

/// What was measured of one or more models on the same samples.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Evaluation {
    /// The number of samples.
    pub samples: usize,
    /// The output that is judged.
    pub output: String,
    /// The metric that counts, by its name in configurations.
    pub metric: String,
    /// One entry per model, in the order they were given. The others are compared with the first.
    pub models: Vec<Scores>,
}

/// What was measured of one model.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Scores {
    /// The file's name, without its folder.
    pub file: String,
    /// Bytes of the file, without external data.
    pub file_bytes: u64,
    /// The SHA-256 of the file.
    pub sha256: String,
    /// The metrics, the one that counts first. Those that compare with the first model are left out for that model
    /// itself.
    pub metrics: Vec<Measured>,
}

/// A metric and its value.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Measured {
    /// The name in configurations.
    pub metric: String,
    /// The value; infinite, which JSON shows as `null`, where nothing differs.
    pub value: f64,
    /// Its unit.
    pub unit: &'static str,
}

impl Evaluation {
    /// The value of the metric that counts, of the model at this position.
    pub fn value(&self, model: usize) -> Option<f64> {
        self.models.get(model)?.value(&self.metric)
    }
}

impl Scores {
    /// The value of a metric.
    pub fn value(&self, metric: &str) -> Option<f64> {
        self.metrics.iter().find(|one| one.metric == metric).map(|one| one.value)
    }
}

/// What is done with the outputs of a model while it is measured.
pub(super) type Sink<'s> = &'s mut dyn FnMut(&Tensor) -> Result<()>;

/// Measures models on the same samples, batch by batch.
///
/// # Errors
/// `NotFound` for an output that a model lacks; those of [`Engine::new`] and [`Engine::run`]; `Core` for samples that
/// cannot be read and outputs that the metric cannot judge.
pub(super) fn measure(
    models: &[(&Model, &Path)],
    samples: &Samples,
    section: &EvaluationSection,
    engine: &EngineOptions,
    progress: &dyn Progress,
    mut sink: Option<Sink<'_>>,
) -> Result<Evaluation> {
    let counts: Metric = section.metric.name().parse()?;
    let Some(((first, _), others)) = models.split_first() else {
        return Err(Error::new(ErrorKind::Input, "there is no model to measure"));
    };
    let output = output_name(first, section.output.as_deref())?;
    for (other, path) in others {
        if !other.outputs().iter().any(|one| one.name == output) {
            let text = format!("`{}` has no output `{output}`", path.display());
            return Err(Error::new(ErrorKind::NotFound, text));
        }
    }
    let engines: Vec<Engine> = models
        .iter()
        .map(|(model, path)| {
            Engine::new(model, engine)
                .map_err(|error| error.within(format_args!("`{}`", path.display())))
        })
        .collect::<Result<_>>()?;

    let metrics = metrics_of(counts, samples.labels().is_some());
    let mut accumulators: Vec<Vec<MetricAccumulator>> = Vec::new();
    progress.start(Stage::Evaluate, samples.len());
    for batch in samples.batches() {
        let batch = batch?;
        let mut reference: Option<(Vec<f32>, Vec<usize>)> = None;
        let outputs = [output.as_str()];
        let runs: Vec<(&Engine, &[&str])> =
            engines.iter().map(|engine| (engine, &outputs[..])).collect();
        let found = Engine::run_side_by_side(&batch.feed(), &runs);
        for (at, found) in found.into_iter().enumerate() {
            let place = |error: Error| {
                let path = models[at].1.display();
                error.within(format_args!("`{path}`, samples from {}", batch.first))
            };
            let found = found.map_err(place)?.into_iter().next().ok_or_else(|| {
                Error::new(ErrorKind::Execution, format!("no value for `{output}`"))
            })?;
            if let Some(sink) = &mut sink {
                sink(&found)?;
            }
            let shape = found.shape().to_vec();
            let values = found.to_f32();
            let judged = Batch {
                output: ArrayView::new(&values, &shape)?,
                reference: match &reference {
                    Some((values, shape)) => Some(ArrayView::new(values, shape)?),
                    None => None,
                },
                labels: batch.labels,
            };
            if accumulators.len() == at {
                // Which metrics there can be is known from the first output.
                let classes = shape.last().copied().unwrap_or(0);
                let wanted = metrics.iter().filter(|&&metric| {
                    let has_subject = metric.needs_labels() || at > 0;
                    // What was asked for is tried in any case, and says what is wrong.
                    let fits = metric == counts
                        || match metric {
                            Metric::TopK(k) => classes > k,
                            Metric::Agreement | Metric::Kl => classes > 1,
                            _ => true,
                        };
                    has_subject && fits
                });
                accumulators.push(wanted.map(|metric| metric.accumulator()).collect());
            }
            for accumulator in &mut accumulators[at] {
                accumulator.update(&judged).map_err(|error| place(error.into()))?;
            }
            if reference.is_none() {
                reference = Some((values, shape));
            }
        }
        progress.advance(batch.len());
    }
    progress.finish();

    let scores = models.iter().zip(accumulators).map(|((_, path), accumulators)| {
        Ok(Scores {
            file: file_name(path),
            file_bytes: path.metadata().map_or(0, |file| file.len()),
            sha256: sha256(path)?,
            metrics: accumulators
                .iter()
                .filter_map(|one| {
                    let metric = one.metric();
                    let value = one.value()?;
                    Some(Measured {
                        metric: metric.name().into_owned(),
                        value,
                        unit: metric.unit(),
                    })
                })
                .collect(),
        })
    });
    Ok(Evaluation {
        samples: samples.len(),
        output,
        metric: counts.name().into_owned(),
        models: scores.collect::<Result<_>>()?,
    })
}

/// The metric that counts, and those that anyone would ask for next.
fn metrics_of(counts: Metric, has_labels: bool) -> Vec<Metric> {
    let more =
        [Metric::TOP1, Metric::TOP5, Metric::Agreement, Metric::Sqnr, Metric::Cosine, Metric::Kl];
    let more = more.into_iter().filter(|&metric| metric != counts);
    let known = more.filter(|metric| has_labels || !metric.needs_labels());
    std::iter::once(counts).chain(known).collect()
}

/// The output that is judged: the one that is named, else the first.
pub(super) fn output_name(model: &Model, wanted: Option<&str>) -> Result<String> {
    let outputs = model.outputs();
    let names: Vec<&str> = outputs.iter().map(|output| output.name.as_str()).collect();
    match wanted {
        None => names
            .first()
            .map(|name| (*name).to_owned())
            .ok_or_else(|| Error::new(ErrorKind::InvalidGraph, "the model has no output")),
        Some(name) if names.contains(&name) => Ok(name.to_owned()),
        Some(name) => {
            let hint = match mpath::suggest::nearest(name, names.iter().copied()) {
                Some(near) => format!("did you mean `{near}`?"),
                None => format!("it has `{}`", names.join("`, `")),
            };
            let text = format!("[evaluation]: the model has no output `{name}`; {hint}");
            Err(Error::new(ErrorKind::NotFound, text))
        }
    }
}
