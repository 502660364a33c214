//! The sections beside the rules: the model, its inputs, data, metrics, export.

use std::path::{Path, PathBuf};

use indexmap::IndexMap;
use toml::de::DeValue;

use super::reader::{Fields, Problems, Value, wrong_type};
use crate::data::{DataPath, DataSpec, EachFile, InputSpec, InputType};

/// `[model]`: what happens to the graph before it is quantized.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ModelSection {
    /// Whether batch normalizations are folded into the layers before them.
    pub fold_batch_norm: bool,
}

/// `[calibration]`: the samples that ranges are set from.
#[derive(Clone, Debug, PartialEq)]
pub struct CalibrationSection {
    /// The samples.
    pub data: DataSpec,
    /// How many samples run at once.
    pub batch_size: usize,
}

/// `[evaluation]`: the samples that the quantized model is judged by, and how.
#[derive(Clone, Debug, PartialEq)]
pub struct EvaluationSection {
    /// The samples.
    pub data: DataSpec,
    /// How many samples run at once.
    pub batch_size: usize,
    /// What is measured.
    pub metric: Metric,
    /// The output that is judged; `None` for the only one, or the first.
    pub output: Option<String>,
    /// The least metric of the quantized model: percent for top-k, decibel for SQNR.
    pub min_metric: Option<f64>,
    /// The largest metric of the quantized model, for metrics that measure an error.
    pub max_metric: Option<f64>,
    /// By how much the quantized model may be worse than the float model: percentage points for top-k.
    pub max_drop: Option<f64>,
}

/// What an evaluation measures.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Metric {
    /// The share of samples whose label has the highest score, in percent.
    Top1,
    /// The share of samples whose label is among the five highest scores, in percent.
    Top5,
    /// The mean squared difference from the float model's output.
    Mse,
    /// The float output's power over that of the difference, in decibel.
    Sqnr,
    /// The cosine of the angle between the quantized and the float output.
    Cosine,
    /// The Kullback-Leibler divergence of the output distributions.
    Kl,
}

impl Metric {
    /// Every metric with the name a configuration uses for it.
    pub const NAMES: [(&'static str, Self); 6] = [
        ("top1", Self::Top1),
        ("top5", Self::Top5),
        ("mse", Self::Mse),
        ("sqnr", Self::Sqnr),
        ("cosine", Self::Cosine),
        ("kl", Self::Kl),
    ];

    /// The name a configuration uses.
    pub fn name(self) -> &'static str {
        Self::NAMES.iter().find(|(_, metric)| *metric == self).map_or("", |(name, _)| name)
    }

    /// Whether the metric compares outputs with labels, not with the float model's outputs.
    pub fn needs_labels(self) -> bool {
        matches!(self, Self::Top1 | Self::Top5)
    }

    /// Whether a smaller value is better.
    pub fn is_error(self) -> bool {
        matches!(self, Self::Mse | Self::Kl)
    }
}

/// `[export]`: how the quantized file is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ExportSection {
    /// The integer type of activations; `None` for the exporter's choice.
    pub activations: Option<ActivationType>,
}

/// Whether exported activations are signed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ActivationType {
    /// `"u8"`: unsigned, of the quantizer's bit width.
    Unsigned,
    /// `"s8"`: signed, of the quantizer's bit width.
    Signed,
}

impl ActivationType {
    /// Every type with the name a configuration uses for it.
    pub const NAMES: [(&'static str, Self); 2] = [("u8", Self::Unsigned), ("s8", Self::Signed)];
}

pub(super) fn read_model(root: &Fields<'_, '_>) -> ModelSection {
    let Some(model) = root.table("model", "[model]", &["fold_batch_norm"]) else {
        return ModelSection::default();
    };
    ModelSection { fold_batch_norm: model.boolean("fold_batch_norm").unwrap_or(false) }
}

pub(super) fn read_export(root: &Fields<'_, '_>) -> ExportSection {
    let Some(export) = root.table("export", "[export]", &["activations"]) else {
        return ExportSection::default();
    };
    ExportSection { activations: export.one_of("activations", &ActivationType::NAMES) }
}

const INPUT_KEYS: [&str; 9] = [
    "tensor",
    "dtype",
    "scale",
    "divide_by",
    "mean",
    "std",
    "channel_axis",
    "reshape",
    "transpose",
];

pub(super) fn read_inputs(
    value: Option<&Value<'_>>,
    problems: &Problems,
) -> IndexMap<String, InputSpec> {
    let mut inputs = IndexMap::new();
    let Some(value) = value else { return inputs };
    let DeValue::Table(table) = value.get_ref() else {
        wrong_type(problems, value.span(), "[inputs]", "a table", value.get_ref());
        return inputs;
    };
    for (name, value) in super::reader::entries(table) {
        let place = format!("[inputs.{}]", name.get_ref());
        if let Some(fields) = Fields::of_value(value, place, &INPUT_KEYS, problems) {
            inputs.insert(name.get_ref().to_string(), read_input(&fields));
        }
    }
    inputs
}

fn read_input(input: &Fields<'_, '_>) -> InputSpec {
    let problems = input.problems;
    if input.get("scale").is_some() && input.get("divide_by").is_some() {
        problems.add(
            input.span_of("divide_by"),
            format!("{} has `scale` and `divide_by`", input.place),
            "remove one of them",
        );
    }
    let dtype = input.one_of("dtype", &InputType::NAMES);
    if let Some(dtype) = dtype.filter(|dtype| !dtype.is_float()) {
        for key in ["scale", "divide_by", "mean", "std"] {
            if input.get(key).is_some() {
                problems.add(
                    input.span_of(key),
                    format!(
                        "{} has dtype {dtype}, integers cannot be scaled or normalized",
                        input.place
                    ),
                    format!("remove `{key}`"),
                );
            }
        }
    }
    let std = input.numbers("std").unwrap_or_default();
    if std.contains(&0.0) {
        problems.add(input.span_of("std"), "`std` must not be zero", "");
    }
    let mean = input.numbers("mean").unwrap_or_default();
    if let (2.., 2..) = (mean.len(), std.len())
        && mean.len() != std.len()
    {
        problems.add(
            input.span_of("std"),
            format!("`mean` has {} values, `std` has {}", mean.len(), std.len()),
            "give one per channel",
        );
    }
    let channel_axis = input
        .integer("channel_axis", i64::MIN..=i64::MAX)
        .and_then(|axis| isize::try_from(axis).ok());
    if channel_axis.is_some() && input.get("mean").is_none() && input.get("std").is_none() {
        problems.add(input.span_of("channel_axis"), "`channel_axis` needs `mean` or `std`", "");
    }
    InputSpec {
        tensor: input.string("tensor").map(str::to_owned),
        dtype,
        scale: input.number("scale", "a finite number other than zero", |x| x != 0.0),
        divide_by: input.number("divide_by", "a finite number other than zero", |x| x != 0.0),
        mean,
        std,
        channel_axis,
        reshape: read_reshape(input),
        transpose: input.integers("transpose", "a list of axes of one sample, such as [2, 0, 1]"),
    }
}

fn read_reshape(input: &Fields<'_, '_>) -> Option<Vec<usize>> {
    let extents: Vec<i64> = input.integers("reshape", "a list of extents, such as [1, 28, 28]")?;
    let shape: Option<Vec<usize>> =
        extents.iter().map(|&extent| usize::try_from(extent).ok().filter(|&e| e > 0)).collect();
    if shape.is_none() {
        let help = match extents.as_slice() {
            [-1, rest @ ..] if rest.iter().all(|&extent| extent > 0) => {
                format!("leave out the batch axis: {rest:?}")
            }
            _ => String::new(),
        };
        let message = "`reshape` must be the shape of one sample, in positive numbers";
        input.problems.add(input.span_of("reshape"), message, help);
    }
    shape
}

const DEFAULT_BATCH_SIZE: usize = 64;

const CALIBRATION_KEYS: [&str; 5] = ["data", "each_file", "skip", "samples", "batch_size"];

pub(super) fn read_calibration(root: &Fields<'_, '_>, folder: &Path) -> Option<CalibrationSection> {
    let section = root.table("calibration", "[calibration]", &CALIBRATION_KEYS)?;
    let data = read_data(&section, folder, None);
    let batch_size = read_batch_size(&section);
    Some(CalibrationSection { data: data?, batch_size })
}

const EVALUATION_KEYS: [&str; 11] = [
    "data",
    "each_file",
    "skip",
    "samples",
    "batch_size",
    "labels",
    "metric",
    "output",
    "min_metric",
    "max_metric",
    "max_drop",
];

pub(super) fn read_evaluation(root: &Fields<'_, '_>, folder: &Path) -> Option<EvaluationSection> {
    let section = root.table("evaluation", "[evaluation]", &EVALUATION_KEYS)?;
    let problems = section.problems;
    let labels = section.string("labels").map(str::to_owned);
    let has_labels = section.get("labels").is_some();
    let data = read_data(&section, folder, labels);
    let batch_size = read_batch_size(&section);
    let output = section.string("output").map(str::to_owned);
    let finite = |key| section.number(key, "a finite number", |_| true);
    let (min_metric, max_metric) = (finite("min_metric"), finite("max_metric"));
    let max_drop = section.number("max_drop", "a number not below zero", |drop| drop >= 0.0);
    // What follows depends on the metric.
    let metric = match section.get("metric") {
        Some(_) => section.one_of("metric", &Metric::NAMES)?,
        None if has_labels => Metric::Top1,
        None => Metric::Sqnr,
    };
    let name = metric.name();
    if metric.needs_labels() && !has_labels {
        problems.add(
            section.span_of("metric"),
            format!("metric `{name}` compares with labels"),
            "add `labels = \"...\"`, the name of a tensor with one class index per sample",
        );
    }
    if metric.is_error() && min_metric.is_some() {
        let message = format!("metric `{name}` measures an error, which has no floor");
        problems.add(section.span_of("min_metric"), message, "use `max_metric`");
    }
    if !metric.is_error() && max_metric.is_some() {
        let message = format!("for metric `{name}` larger is better");
        problems.add(section.span_of("max_metric"), message, "use `min_metric`");
    }
    if !metric.needs_labels() && max_drop.is_some() {
        problems.add(
            section.span_of("max_drop"),
            format!(
                "metric `{name}` compares with the float model, which has no value to drop from"
            ),
            if metric.is_error() { "use `max_metric`" } else { "use `min_metric`" },
        );
    }
    Some(EvaluationSection {
        data: data?,
        batch_size,
        metric,
        output,
        min_metric,
        max_metric,
        max_drop,
    })
}

fn read_batch_size(section: &Fields<'_, '_>) -> usize {
    section.count("batch_size", 1).unwrap_or(DEFAULT_BATCH_SIZE)
}

fn read_data(section: &Fields<'_, '_>, folder: &Path, labels: Option<String>) -> Option<DataSpec> {
    section.require("data", "\"samples.safetensors\"");
    let data = section.get("data").and_then(|value| read_path(value, folder, section.problems));
    let each_file = section
        .one_of("each_file", &[("sample", EachFile::Sample), ("batch", EachFile::Batch)])
        .unwrap_or_default();
    let skip = section.count("skip", 0).unwrap_or(0);
    let samples = section.count("samples", 1);
    Some(DataSpec { data: data?, each_file, labels, skip, samples })
}

/// A path, or one for each of several tensors.
fn read_path(value: &Value<'_>, folder: &Path, problems: &Problems) -> Option<DataPath> {
    let path = |value: &Value<'_>, place: &str| -> Option<PathBuf> {
        match value.get_ref() {
            DeValue::String(path) if path.is_empty() => {
                problems.add(value.span(), format!("{place} is empty"), "");
                None
            }
            DeValue::String(path) => Some(folder.join(path.as_ref())),
            other => {
                wrong_type(problems, value.span(), place, "the path of a file or folder", other);
                None
            }
        }
    };
    match value.get_ref() {
        DeValue::Table(table) if table.is_empty() => {
            problems.add(value.span(), "`data` names no file", "write { tensor = \"file.npy\" }");
            None
        }
        DeValue::Table(table) => super::reader::entries(table)
            .into_iter()
            .map(|(name, value)| {
                let place = format!("`data.{}`", name.get_ref());
                Some((name.get_ref().to_string(), path(value, &place)?))
            })
            .collect::<Option<IndexMap<String, PathBuf>>>()
            .map(DataPath::Several),
        _ => path(value, "`data`").map(DataPath::One),
    }
}
