//! Measuring files that are there already.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use fastforward_core::config::QuantConfigFile;
use fastforward_core::files::write_whole;

use super::measure::{Evaluation, measure};
use super::samples::Samples;
use super::{JobOptions, Progress};
use crate::engine::EngineOptions;
use crate::error::{Error, ErrorKind, Result};
use crate::graph::Model;
use crate::tensor::Tensor;

/// Measures one or more files with the data and the metric of `[evaluation]` in `config`, side by side: the others are
/// compared with the first.
///
/// With `predictions`, the outputs of the only model are written there as safetensors: `outputs` as the model gives them,
/// in f32, and `top1`, the place of the largest element along the last axis, in i64.
///
/// # Errors
/// Those of [`Model::load`] and [`QuantConfigFile::load`], of all files at once; `Input` when there is no `[evaluation]`,
/// or predictions are wanted of several models; those of data and engine; `Io` when predictions cannot be written.
pub fn evaluate(
    models: &[PathBuf],
    config: &Path,
    options: &JobOptions,
    predictions: Option<&Path>,
    progress: &dyn Progress,
) -> Result<Evaluation> {
    let mut problems = Vec::new();
    let mut kind = None;
    let mut note = |error: Error| {
        kind.get_or_insert(error.kind());
        problems.push(error.to_string());
    };
    let config = QuantConfigFile::load(config).map_err(|error| note(error.into())).ok();
    let loaded: Vec<Model> =
        models.iter().filter_map(|path| Model::load(path).map_err(&mut note).ok()).collect();
    let section = config.as_ref().and_then(|config| config.evaluation.as_ref());
    if let (Some(config), None) = (&config, section) {
        let text = format!("{}: there is no [evaluation] that says where data is", config.name());
        note(Error::new(ErrorKind::Input, text));
    }
    if predictions.is_some() && models.len() != 1 {
        let text = format!("predictions are written of one model, {} are given", models.len());
        note(Error::new(ErrorKind::Input, text));
    }
    if let Some(section) = section
        && !section.metric.needs_labels()
        && models.len() == 1
        && predictions.is_none()
    {
        let text = format!(
            "metric `{}` compares models with the first one, and only one is given; name a second, or choose a metric of \
             labels such as `top1`",
            section.metric.name()
        );
        note(Error::new(ErrorKind::Input, text));
    }
    let (Some(config), Some(section), Some(first), None) = (&config, section, loaded.first(), kind)
    else {
        let kind = kind.unwrap_or(ErrorKind::Input);
        problems.dedup();
        return Err(match problems.is_empty() {
            true => Error::new(kind, "there is no model to measure"),
            false => Error::many(kind, problems),
        });
    };
    let batch_size = options.batch_size.unwrap_or(section.batch_size);
    let samples = Samples::open(&section.data, &config.inputs, first, batch_size, "[evaluation]")?;
    let engine = EngineOptions { n_threads: options.n_threads, ..EngineOptions::default() };
    let models: Vec<(&Model, &Path)> =
        loaded.iter().zip(models).map(|(model, path)| (model, path.as_path())).collect();
    let Some(path) = predictions else {
        return measure(&models, &samples, section, &engine, progress, None);
    };

    let mut result = None;
    let n_samples = samples.len();
    let written = write_whole(path, |file| {
        let mut predictions = Predictions { file, n_samples, shape: None, top1: Vec::new() };
        let mut sink = |output: &Tensor| predictions.add(output);
        let measured = measure(&models, &samples, section, &engine, progress, Some(&mut sink));
        let finished = measured.is_ok().then(|| predictions.finish());
        result = Some(measured);
        finished.unwrap_or_else(|| Err(io::Error::other("the evaluation failed")))
    });
    match result {
        Some(Err(error)) => Err(error),
        Some(Ok(evaluation)) => written.map(|()| evaluation).map_err(Error::from),
        None => Err(written.err().map_or_else(
            || Error::new(ErrorKind::Io, "predictions were not written"),
            Error::from,
        )),
    }
}

/// A safetensors file that is written as outputs come: first their elements, then the classes, which are kept.
struct Predictions<'f> {
    file: &'f mut dyn Write,
    n_samples: usize,
    /// The shape of the outputs of all samples, known from the first batch.
    shape: Option<Vec<usize>>,
    top1: Vec<i64>,
}

impl Predictions<'_> {
    fn add(&mut self, output: &Tensor) -> Result<()> {
        let failed = |error: io::Error| {
            Error::new(ErrorKind::Io, format!("cannot write predictions: {error}"))
        };
        let (Some(&classes), [_, rest @ ..]) = (output.shape().last(), output.shape()) else {
            return Err(Error::new(
                ErrorKind::Input,
                "the output is a scalar, expected one row per sample",
            ));
        };
        if self.shape.as_ref().is_some_and(|shape| &shape[1..] != rest) {
            let text = format!(
                "the output changes its shape to {:?}; predictions need one",
                output.shape()
            );
            return Err(Error::new(ErrorKind::Input, text));
        }
        if self.shape.is_none() {
            let shape = [&[self.n_samples], rest].concat();
            self.file.write_all(&header(&shape)).map_err(failed)?;
            self.shape = Some(shape);
        }
        let values = output.to_f32();
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        self.file.write_all(&bytes).map_err(failed)?;
        self.top1.extend(values.chunks_exact(classes.max(1)).map(highest));
        Ok(())
    }

    fn finish(self) -> io::Result<()> {
        let bytes: Vec<u8> = self.top1.iter().flat_map(|class| class.to_le_bytes()).collect();
        self.file.write_all(&bytes)
    }
}

/// The place of the largest element, the first of equal ones.
fn highest(row: &[f32]) -> i64 {
    let mut best = 0;
    for (at, &value) in row.iter().enumerate() {
        if value > row[best] {
            best = at;
        }
    }
    best as i64
}

/// The beginning of the file: the length of the header, and the header, filled up to a multiple of 8 bytes.
fn header(shape: &[usize]) -> Vec<u8> {
    let outputs = 4 * shape.iter().product::<usize>();
    let rows = &shape[..shape.len() - 1];
    let end = outputs + 8 * rows.iter().product::<usize>();
    let mut text = serde_json::json!({
        "outputs": { "dtype": "F32", "shape": shape, "data_offsets": [0, outputs] },
        "top1": { "dtype": "I64", "shape": rows, "data_offsets": [outputs, end] },
    })
    .to_string();
    while !text.len().is_multiple_of(8) {
        text.push(' ');
    }
    [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn predictions_read_back() {
        let mut file = Vec::new();
        let mut predictions =
            Predictions { file: &mut file, n_samples: 3, shape: None, top1: Vec::new() };
        let batch =
            |rows: usize, values: &[f32]| Tensor::from_f32(vec![rows, 2], values.to_vec()).unwrap();
        predictions.add(&batch(2, &[0.0, 1.0, 5.0, 5.0])).unwrap();
        predictions.add(&batch(1, &[2.0, -1.0])).unwrap();
        predictions.finish().unwrap();
        let read = safetensors::SafeTensors::deserialize(&file).unwrap();
        let top1 = read.tensor("top1").unwrap();
        assert_eq!((top1.shape(), top1.data()[0]), (&[3usize][..], 1));
        assert!(top1.data()[1..].iter().all(|&byte| byte == 0));
        assert_eq!(read.tensor("outputs").unwrap().shape(), [3, 2]);
    }
}
