//! A configuration written as text.

use std::fmt::Write;
use std::path::Path;

use super::algorithm;
use super::estimator::render_estimator;
use super::{
    ActivationType, Algorithm, AlgorithmEntry, BiasMethod, LayerInputs, Metric, QuantConfigFile,
    RuleEntry, SCHEMA_VERSION,
};
use crate::data::{DataPath, DataSpec, EachFile, InputSpec, InputType};
use crate::quantization::Granularity;
use crate::quantization::affine::{OneSided, RangeSettings};
use crate::quantization::quant_init::{ChannelAxis, Expect, QuantizerSpec};

impl QuantConfigFile {
    /// The configuration as canonical text: sections in a fixed order, what is left to defaults left out, paths relative
    /// to `folder` where they lie below it. Comments are not kept. Parsed again, it gives the same configuration.
    ///
    /// ```
    /// use std::path::Path;
    /// use fastforward_core::config::QuantConfigFile;
    /// let text = "schema_version=1\n[[rule]]\nquantizer='none'\nquery='head/**'\noptional=false\n";
    /// let config = QuantConfigFile::parse(text, "quant.toml", Path::new("."))?;
    /// assert_eq!(config.to_toml(Path::new(".")), r#"schema_version = 1
    ///
    /// [[rule]]
    /// query = "head/**"
    /// quantizer = "none"
    /// "#);
    /// # Ok::<(), fastforward_core::Error>(())
    /// ```
    pub fn to_toml(&self, folder: &Path) -> String {
        let mut sections = vec![Section::new("").with("schema_version", SCHEMA_VERSION)];
        if self.model.fold_batch_norm {
            sections.push(Section::new("[model]").with("fold_batch_norm", true));
        }
        for (name, input) in &self.inputs {
            sections.push(render_input(name, input));
        }
        if let Some(calibration) = &self.calibration {
            let section = render_data(Section::new("[calibration]"), &calibration.data, folder);
            sections.push(section.with("batch_size", calibration.batch_size));
        }
        if let Some(evaluation) = &self.evaluation {
            let section = render_data(Section::new("[evaluation]"), &evaluation.data, folder);
            let section = section
                .with("batch_size", evaluation.batch_size)
                .with("metric", quoted(name_of(&Metric::NAMES, evaluation.metric)))
                .with_some("output", evaluation.output.as_deref().map(quoted))
                .with_some("min_metric", evaluation.min_metric.map(float))
                .with_some("max_metric", evaluation.max_metric.map(float))
                .with_some("max_drop", evaluation.max_drop.map(float));
            sections.push(section);
        }
        if let Some(activations) = self.export.activations {
            let name = quoted(name_of(&ActivationType::NAMES, activations));
            sections.push(Section::new("[export]").with("activations", name));
        }
        if !self.aliases.is_empty() {
            let section = self.aliases.iter().fold(Section::new("[aliases]"), |section, alias| {
                section.with(&key(&alias.name), quoted(&alias.query.text))
            });
            sections.push(section);
        }
        sections.extend(self.rules.iter().map(render_rule));
        sections.extend(self.algorithms.iter().map(render_algorithm));
        let texts: Vec<String> = sections.into_iter().map(|section| section.0).collect();
        texts.join("\n")
    }
}

/// The lines of a section.
struct Section(String);

impl Section {
    fn new(header: &str) -> Self {
        Self(if header.is_empty() { String::new() } else { format!("{header}\n") })
    }

    fn with(mut self, key: &str, value: impl std::fmt::Display) -> Self {
        let _ = writeln!(self.0, "{key} = {value}");
        self
    }

    fn with_some(self, key: &str, value: Option<impl std::fmt::Display>) -> Self {
        match value {
            Some(value) => self.with(key, value),
            None => self,
        }
    }
}

fn render_input(name: &str, input: &InputSpec) -> Section {
    let floats = |values: &[f64]| match values {
        [] => None,
        [one] => Some(float(*one)),
        many => {
            Some(format!("[{}]", many.iter().map(|&x| float(x)).collect::<Vec<_>>().join(", ")))
        }
    };
    Section::new(&format!("[inputs.{}]", key(name)))
        .with_some("tensor", input.tensor.as_deref().map(quoted))
        .with_some("dtype", input.dtype.map(|dtype| quoted(name_of(&InputType::NAMES, dtype))))
        .with_some("reshape", input.reshape.as_ref().map(|shape| format!("{shape:?}")))
        .with_some("transpose", input.transpose.as_ref().map(|axes| format!("{axes:?}")))
        .with_some("scale", input.scale.map(float))
        .with_some("divide_by", input.divide_by.map(float))
        .with_some("mean", floats(&input.mean))
        .with_some("std", floats(&input.std))
        .with_some("channel_axis", input.channel_axis)
}

fn render_data(section: Section, data: &DataSpec, folder: &Path) -> Section {
    let path = |path: &Path| {
        let path = path.strip_prefix(folder).unwrap_or(path);
        quoted(&path.to_string_lossy())
    };
    let value = match &data.data {
        DataPath::One(file) => path(file),
        DataPath::Several(files) => {
            let files: Vec<String> = files
                .iter()
                .map(|(name, file)| format!("{} = {}", key(name), path(file)))
                .collect();
            format!("{{ {} }}", files.join(", "))
        }
    };
    let each_file = (data.each_file == EachFile::Batch).then(|| quoted("batch"));
    section
        .with("data", value)
        .with_some("each_file", each_file)
        .with_some("skip", (data.skip > 0).then_some(data.skip))
        .with_some("samples", data.samples)
        .with_some("labels", data.labels.as_deref().map(quoted))
}

fn render_rule(rule: &RuleEntry) -> Section {
    Section::new("[[rule]]")
        .with_some("name", rule.name.as_deref().map(quoted))
        .with("query", quoted(&rule.query.text))
        .with("quantizer", render_quantizer(&rule.quantizer))
        .with_some("range", rule.estimator.as_ref().map(render_estimator))
        .with_some("optional", rule.optional.then_some(true))
        .with_some("expect", rule.expect.map(render_expect))
        .with_some("priority", (rule.priority != 1).then_some(rule.priority))
}

/// An algorithm with all of its options, which are what it did.
fn render_algorithm(entry: &AlgorithmEntry) -> Section {
    let float32 = |value: f32| float(narrow(value));
    let section = Section::new("[[algorithm]]")
        .with("type", quoted(entry.algorithm.name()))
        .with_some("query", entry.query.as_ref().map(|query| quoted(&query.text)));
    let inputs = entry.algorithm.inputs();
    let section =
        section.with_some("inputs", inputs.map(|one| quoted(name_of(&LayerInputs::NAMES, one))));
    let section = section.with_some("correct_bias", entry.correct_bias.then_some(true));
    match &entry.algorithm {
        Algorithm::Equalize { rounding, relu6, bound_biases } => section
            .with("rounding", quoted(name_of(&algorithm::ROUNDINGS, *rounding)))
            .with("relu6", quoted(name_of(&algorithm::RELU6, *relu6)))
            .with("bound_biases", bound_biases),
        Algorithm::AbsorbBias { amount } => {
            section.with("amount", quoted(name_of(&algorithm::AMOUNTS, *amount)))
        }
        Algorithm::Smooth { alpha, rounding } => section
            .with("alpha", float(*alpha))
            .with("rounding", quoted(name_of(&algorithm::ROUNDINGS, *rounding))),
        Algorithm::Awq { steps, rounding } => section
            .with("steps", steps)
            .with("rounding", quoted(name_of(&algorithm::ROUNDINGS, *rounding))),
        Algorithm::JoinRanges { concatenations, additions } => {
            section.with("concatenations", concatenations).with("additions", additions)
        }
        Algorithm::SequentialMse { candidates, .. }
        | Algorithm::ActivationWeightedMse { candidates, .. } => {
            section.with("candidates", candidates)
        }
        Algorithm::Gptq { factor, options, .. } => section
            .with("block_size", options.block_size)
            .with("damping", float(factor.perc_damp))
            .with("max_damping", float(factor.max_perc_damp))
            .with("act_order", factor.act_order)
            .with("static_groups", options.static_groups)
            .with("dead_columns", quoted(name_of(&algorithm::DEAD_COLUMNS, options.dead_columns))),
        Algorithm::AdaRound { options, block_layers, .. } => section
            .with("iterations", options.iterations)
            .with("learning_rate", float32(options.learning_rate))
            .with("regularizer", float32(options.regularizer))
            .with("warm_up", float32(options.warm_up))
            .with("descent", options.descent)
            .with("block_layers", block_layers),
        Algorithm::CoordinateDescent { .. } => section,
        Algorithm::Hqq { options } => section
            .with("norm", float32(options.norm))
            .with("beta", float32(options.beta))
            .with("kappa", float32(options.kappa))
            .with("iterations", options.iterations),
        Algorithm::BiasCorrection { method } => {
            section.with("method", quoted(name_of(&BiasMethod::NAMES, *method)))
        }
    }
}

/// The shortest number that reads back as this one.
fn narrow(value: f32) -> f64 {
    value.to_string().parse().unwrap_or_else(|_| f64::from(value))
}

fn render_expect(expect: Expect) -> String {
    match expect {
        Expect::Exactly(count) => count.to_string(),
        Expect::AtLeast(count) => quoted(&format!(">={count}")),
        Expect::AtMost(count) => quoted(&format!("<={count}")),
    }
}

fn render_quantizer(quantizer: &QuantizerSpec) -> String {
    let (kind, num_bits, range, granularity) = match quantizer {
        QuantizerSpec::None => return quoted("none"),
        QuantizerSpec::Linear { config, channel } => {
            let granularity = match channel {
                ChannelAxis::AsGiven => render_granularity(&config.granularity),
                ChannelAxis::OfOutput => Some(quoted("per_output_channel")),
            };
            ("linear", config.num_bits, config.range, granularity)
        }
        QuantizerSpec::DynamicLinear(config) => {
            let granularity = render_granularity(&config.granularity);
            ("dynamic_linear", config.num_bits, config.range, granularity)
        }
    };
    let mut text =
        format!("{{ type = \"{kind}\", num_bits = {num_bits}, symmetric = {}", range.symmetric);
    let defaults = RangeSettings::default();
    for (key, value, default) in [
        ("allow_one_sided", range.allow_one_sided, defaults.allow_one_sided),
        ("zero_in_range", range.zero_in_range, defaults.zero_in_range),
        ("narrow_range", range.narrow_range, defaults.narrow_range),
        ("scale_floor", range.scale_floor, defaults.scale_floor),
        ("power_of_two", range.power_of_two, defaults.power_of_two),
    ] {
        if value != default {
            let _ = write!(text, ", {key} = {value}");
        }
    }
    if range.one_sided == OneSided::PerTile {
        text.push_str(", one_sided = \"per_tile\"");
    }
    if let Some(granularity) = granularity {
        let _ = write!(text, ", granularity = {granularity}");
    }
    text.push_str(" }");
    text
}

fn render_granularity(granularity: &Granularity) -> Option<String> {
    Some(match granularity {
        Granularity::PerTensor => return None,
        Granularity::PerChannel { axes } => match axes.as_slice() {
            [axis] => format!("{{ per_channel = {axis} }}"),
            axes => format!("{{ per_channel = {axes:?} }}"),
        },
        Granularity::PerBlock { dims, sizes, per_channel_dims } => format!(
            "{{ per_block = {{ dims = {dims:?}, sizes = {sizes:?}, per_channel_dims = {per_channel_dims:?} }} }}"
        ),
        Granularity::PerTile { shape } => format!("{{ per_tile = {shape:?} }}"),
    })
}

fn name_of<T: PartialEq>(names: &[(&'static str, T)], value: T) -> &'static str {
    names.iter().find(|(_, named)| *named == value).map_or("", |(name, _)| name)
}

/// A string with its quotes.
fn quoted(text: &str) -> String {
    toml::Value::String(text.to_owned()).to_string()
}

/// A number that reads back as the same float.
fn float(value: f64) -> String {
    toml::Value::Float(value).to_string()
}

/// A key, quoted if it must be.
fn key(name: &str) -> String {
    let is_bare = !name.is_empty()
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-'));
    if is_bare { name.to_owned() } else { toml_key(name) }
}

/// A quoted key. Keys cannot span lines as strings can.
fn toml_key(name: &str) -> String {
    let mut out = String::from('"');
    for c in name.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            c if c.is_control() => {
                let _ = write!(out, "\\u{:04X}", u32::from(c));
            }
            c => out.push(c),
        }
    }
    out.push('"');
    out
}
