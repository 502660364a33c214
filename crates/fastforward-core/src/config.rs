//! `quant.toml`: rules, data and metrics as a file.
//!
//! ```
//! use std::path::Path;
//! use fastforward_core::config::QuantConfigFile;
//! let config = QuantConfigFile::parse(r#"
//! schema_version = 1
//!
//! [calibration]
//! data = "calib.safetensors"
//!
//! [[rule]]
//! query = "**/[quantizer:parameter/weight]"
//! quantizer = { type = "linear", num_bits = 8, granularity = { per_channel = 0 } }
//! "#, "quant.toml", Path::new("."))?;
//! assert_eq!(config.rules[0].source, "quant.toml:7");
//! # Ok::<(), fastforward_core::Error>(())
//! ```
//!
//! Every mistake is an error that points at its place, and all of them are reported at once:
//!
//! ```
//! # use std::path::Path;
//! # use fastforward_core::config::QuantConfigFile;
//! let error = QuantConfigFile::parse("schema_version = 1\nrules = []\n", "quant.toml", Path::new(".")).unwrap_err();
//! assert_eq!(error.to_string(), "\
//! quant.toml:2:1: unknown key `rules` in the file
//!   |
//! 2 | rules = []
//!   | ^^^^^ did you mean `rule`?");
//! ```

mod algorithm;
mod build;
mod diagnostic;
mod estimator;
mod presets;
mod reader;
mod render;
mod rule;
mod sections;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::path::Path;

use indexmap::IndexMap;
use toml::de::{DeTable, DeValue};

pub use algorithm::{Algorithm, AlgorithmEntry, AlgorithmStage, BiasMethod, LayerInputs};
pub use presets::Preset;
pub use rule::{QueryText, RuleEntry};
pub use sections::{
    ActivationType, CalibrationSection, EvaluationSection, ExportSection, Metric, ModelSection,
};

use crate::data::InputSpec;
use crate::{Error, ErrorKind};
use diagnostic::{Problem, SourceText};
use reader::{Fields, Problems, integer, wrong_type};

/// The version of the schema that is read and written.
pub const SCHEMA_VERSION: i64 = 1;

/// A configuration file, checked as far as that needs neither model nor data.
#[derive(Clone, Debug, PartialEq)]
pub struct QuantConfigFile {
    /// `[model]`
    pub model: ModelSection,
    /// `[inputs.NAME]`: how data becomes the inputs of the model, in calibration and evaluation alike.
    pub inputs: IndexMap<String, InputSpec>,
    /// `[calibration]`
    pub calibration: Option<CalibrationSection>,
    /// `[evaluation]`
    pub evaluation: Option<EvaluationSection>,
    /// `[export]`
    pub export: ExportSection,
    /// `[aliases]`: names for queries, in the order of the file; each may use those before it.
    pub aliases: Vec<AliasEntry>,
    /// `[[rule]]`, in the order of the file.
    pub rules: Vec<RuleEntry>,
    /// `[[algorithm]]`, in the order of the file.
    pub algorithms: Vec<AlgorithmEntry>,
    source: SourceText,
}

/// A name for a query, used as `&name`.
#[derive(Clone, Debug, PartialEq)]
pub struct AliasEntry {
    /// The name.
    pub name: String,
    /// What it stands for.
    pub query: QueryText,
}

const ROOT_KEYS: [&str; 9] = [
    "schema_version",
    "model",
    "inputs",
    "calibration",
    "evaluation",
    "export",
    "aliases",
    "rule",
    "algorithm",
];

impl QuantConfigFile {
    /// Reads a file. Paths in it are relative to its folder.
    ///
    /// # Errors
    /// [`ErrorKind::Io`] when it cannot be read; else as for [`parse`](Self::parse).
    pub fn load(path: &Path) -> Result<Self, Error> {
        let text = std::fs::read(path).map_err(|error| {
            let reason = match error.kind() {
                std::io::ErrorKind::NotFound => "no such file".to_owned(),
                _ => error.to_string(),
            };
            let message = format!("{} cannot be read: {reason}", path.display());
            Error::new(ErrorKind::Io, message).with_source(error)
        })?;
        let text = String::from_utf8(text).map_err(|error| {
            let at = error.utf8_error().valid_up_to();
            let message = format!("{} is not UTF-8 text: byte {at} is none", path.display());
            Error::new(ErrorKind::Config, message)
        })?;
        let folder = path.parent().unwrap_or(Path::new(""));
        Self::parse(&text, &path.display().to_string(), folder)
    }

    /// Reads the text of a file. Messages call it `name`; paths in it are relative to `folder`.
    ///
    /// # Errors
    /// [`ErrorKind::Config`] with every problem at its place: text that is no TOML, unknown keys, missing keys, values
    /// of the wrong type or outside their range.
    pub fn parse(text: &str, name: &str, folder: &Path) -> Result<Self, Error> {
        let source = SourceText { name: name.to_owned(), text: text.to_owned() };
        let (root, errors) = DeTable::parse_recoverable(text);
        if !errors.is_empty() {
            return Err(source.error(syntax_problems(&errors, text)));
        }
        let problems = Problems::default();
        check_version(root.get_ref(), &problems);
        let newer = problems.into_vec();
        if !newer.is_empty() {
            return Err(source.error(newer));
        }

        let problems = Problems::default();
        let root = Fields::new(root.get_ref(), 0..0, "the file", &ROOT_KEYS, &problems);
        let model = sections::read_model(&root);
        let inputs = sections::read_inputs(root.get("inputs"), &problems);
        let calibration = sections::read_calibration(&root, folder);
        let evaluation = sections::read_evaluation(&root, folder);
        let export = sections::read_export(&root);
        let aliases = read_aliases(&root, &source);
        let rules = read_rules(&root, &source);
        let algorithms = algorithm::read_algorithms(&root, &source);
        let problems = problems.into_vec();
        if !problems.is_empty() {
            return Err(source.error(problems));
        }
        Ok(Self {
            model,
            inputs,
            calibration,
            evaluation,
            export,
            aliases,
            rules,
            algorithms,
            source,
        })
    }

    /// The name that messages give the file.
    pub fn name(&self) -> &str {
        &self.source.name
    }

    /// The text of the file.
    pub fn text(&self) -> &str {
        &self.source.text
    }

    /// An error about some bytes of a query, shown at their place in the file.
    pub fn query_error(
        &self,
        query: &QueryText,
        span: std::ops::Range<usize>,
        message: &str,
        help: &str,
    ) -> Error {
        self.source.error(vec![self.query_problem(query, span, message, help)])
    }

    fn query_problem(
        &self,
        query: &QueryText,
        span: std::ops::Range<usize>,
        message: &str,
        help: &str,
    ) -> Problem {
        // A string without escapes stands in the file as it is: the place can be shown exactly. Otherwise the whole
        // string is.
        let raw = self.source.text.get(query.span.clone()).unwrap_or("");
        let span = match raw.find(&query.text) {
            Some(at) => {
                let start = query.span.start + at;
                start + span.start..start + span.end.max(span.start)
            }
            None => query.span.clone(),
        };
        Problem { span, message: message.to_owned(), help: help.to_owned() }
    }
}

/// The first problem of each line: what follows on a line is mostly the parser looking for its way back.
fn syntax_problems(errors: &[toml::de::Error], text: &str) -> Vec<Problem> {
    let mut lines = BTreeSet::new();
    let line = |problem: &Problem| {
        let before = text.get(..problem.span.start).unwrap_or(text);
        before.matches('\n').count()
    };
    let mut problems: Vec<Problem> =
        errors.iter().map(|error| syntax_problem(error, text)).collect();
    problems.sort_by_key(|problem| problem.span.start);
    problems.retain(|problem| lines.insert(line(problem)));
    problems
}

fn syntax_problem(error: &toml::de::Error, text: &str) -> Problem {
    let span = error.span().unwrap_or(0..0);
    let message = match text.get(span.clone()).is_none_or(str::is_empty) {
        true if error.message().starts_with("string values must be quoted") => "a value is missing",
        _ => error.message().trim_end_matches('.'),
    };
    let message = message.replace('\n', "; ");
    let word = text.get(span.clone()).unwrap_or("").trim();
    let is_word = !word.is_empty() && word.chars().all(|c| c.is_alphanumeric() || c == '_');
    // Only a value can have been meant to be one of these, not a key.
    let is_value = message.contains("must be quoted") || message.contains("invalid boolean");
    let help =
        match mpath::suggest::nearest(word, ["true", "false"]).filter(|_| is_value && is_word) {
            Some(near) => format!("did you mean `{near}`?"),
            None if is_word && message.contains("must be quoted") => format!("write \"{word}\""),
            None => String::new(),
        };
    Problem { span, message: format!("not valid TOML: {message}"), help }
}

/// A file of another version is refused by that alone: its other keys mean what this program cannot know.
fn check_version(root: &DeTable<'_>, problems: &Problems) {
    let help = format!("this program reads `schema_version = {SCHEMA_VERSION}`");
    match root.get("schema_version") {
        None => {
            let keys: Vec<_> =
                root.keys().filter(|key| !ROOT_KEYS.contains(&key.get_ref().as_ref())).collect();
            let near = mpath::suggest::nearest(
                "schema_version",
                keys.iter().map(|key| key.get_ref().as_ref()),
            );
            match keys.iter().find(|key| near == Some(key.get_ref().as_ref())) {
                Some(key) => problems.add(
                    key.span(),
                    format!("unknown key `{}` in the file", key.get_ref()),
                    "did you mean `schema_version`?",
                ),
                None => problems.add(0..0, "the file has no `schema_version`", help),
            }
        }
        Some(value) => match integer(value.get_ref()) {
            Some(SCHEMA_VERSION) => {}
            Some(other) => {
                problems.add(
                    value.span(),
                    format!("schema version {other} is not supported"),
                    help,
                );
            }
            None => problems.add(value.span(), "`schema_version` must be an integer", help),
        },
    }
}

fn read_aliases(root: &Fields<'_, '_>, source: &SourceText) -> Vec<AliasEntry> {
    let Some(value) = root.get("aliases") else { return vec![] };
    let DeValue::Table(table) = value.get_ref() else {
        wrong_type(root.problems, value.span(), "[aliases]", "a table", value.get_ref());
        return vec![];
    };
    let mut aliases = vec![];
    for (name, value) in reader::entries(table) {
        let name = name.get_ref().to_string();
        match QueryText::new(value, source) {
            Some(query) => aliases.push(AliasEntry { name, query }),
            None => {
                let place = format!("alias `{name}`");
                wrong_type(root.problems, value.span(), &place, "a query", value.get_ref());
            }
        }
    }
    aliases
}

fn read_rules(root: &Fields<'_, '_>, source: &SourceText) -> Vec<RuleEntry> {
    let Some(value) = root.get("rule") else { return vec![] };
    let DeValue::Array(array) = value.get_ref() else {
        let message = "`rule` must be a list of tables";
        root.problems.add(value.span(), message, "write [[rule]] with two brackets");
        return vec![];
    };
    let mut rules: Vec<RuleEntry> = vec![];
    for value in array {
        let Some(rule) = rule::read_rule(value, source, root.problems) else { continue };
        let namesake = rules.iter().find(|other| other.name.is_some() && other.name == rule.name);
        if let (Some(other), Some(name)) = (namesake, value.get_ref().get("name")) {
            let message = format!("the rule of line {} has this name already", other.line);
            root.problems.add(name.span(), message, "");
        }
        rules.push(rule);
    }
    rules
}
