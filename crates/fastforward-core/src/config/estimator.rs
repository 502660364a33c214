//! How a rule says that ranges are found.

use serde::Deserialize;
use toml::de::ValueDeserializer;

use super::reader::{Problems, Value};
use crate::range_setting::EstimatorConfig;

pub(super) fn read_estimator(value: &Value<'_>, problems: &Problems) -> Option<EstimatorConfig> {
    match EstimatorConfig::deserialize(ValueDeserializer::from(value.clone())) {
        Ok(estimator) => Some(estimator),
        Err(error) => {
            let message = error.message().trim_end_matches('.').replace('\n', "; ");
            let (message, help) = match message.split_once("; did you mean ") {
                Some((message, near)) => (message.to_owned(), format!("did you mean {near}")),
                None => (message, String::new()),
            };
            problems.add(error.span().unwrap_or(value.span()), message, help);
            None
        }
    }
}

/// The table that reads back as this estimator, on one line, its name first.
pub(super) fn render_estimator(estimator: &EstimatorConfig) -> String {
    let table = toml::Table::try_from(estimator).unwrap_or_default();
    let (name, options): (Vec<_>, Vec<_>) = table.iter().partition(|(key, _)| *key == "estimator");
    let entries: Vec<String> =
        name.into_iter().chain(options).map(|(key, value)| format!("{key} = {value}")).collect();
    format!("{{ {} }}", entries.join(", "))
}
