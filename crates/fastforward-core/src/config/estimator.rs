//! How a rule says that ranges are found.

use super::reader::{Fields, Problems, Value};
use super::render::float;

/// A range estimator and its settings (spec §6).
#[derive(Clone, Debug, Default, PartialEq)]
pub enum EstimatorEntry {
    /// The smallest and largest value seen. The default.
    #[default]
    RunningMinMax,
    /// An exponential average of each batch's minimum and maximum.
    SmoothedMinMax {
        /// The weight of a new batch, above 0 and at most 1.
        gamma: f64,
    },
    /// The candidate range with the least error.
    MinErrorGrid {
        /// How many candidates are tried.
        num_candidates: usize,
    },
    /// The range that leaves out a share of the values on each side.
    Percentile {
        /// The share that is kept, in percent, above 50 and at most 100.
        percentile: f64,
    },
}

const NAMES: [(&str, &[&str]); 4] = [
    ("running_minmax", &["estimator"]),
    ("smoothed_minmax", &["estimator", "gamma"]),
    ("min_error_grid", &["estimator", "num_candidates"]),
    ("percentile", &["estimator", "percentile"]),
];

pub(super) fn read_estimator(value: &Value<'_>, problems: &Problems) -> Option<EstimatorEntry> {
    let ignored = Problems::default();
    let any = Fields::of_value(value, "`range`", &[], &ignored);
    let named = any.as_ref().and_then(|fields| fields.get("estimator")?.get_ref().as_str());
    let known = NAMES.iter().find(|(name, _)| Some(*name) == named).map(|(_, keys)| *keys);
    // While the estimator is not known, every key of any estimator is.
    let all: Vec<&str> = NAMES.iter().flat_map(|(_, keys)| keys.iter().copied()).collect();
    let fields = Fields::of_value(value, "`range`", known.unwrap_or(&all), problems)?;
    fields.require("estimator", "\"running_minmax\"");
    let names: Vec<(&str, usize)> =
        NAMES.iter().enumerate().map(|(at, (name, _))| (*name, at)).collect();
    Some(match fields.one_of("estimator", &names)? {
        0 => EstimatorEntry::RunningMinMax,
        1 => EstimatorEntry::SmoothedMinMax {
            gamma: fields
                .number("gamma", "above 0 and at most 1", |gamma| gamma > 0.0 && gamma <= 1.0)
                .unwrap_or(1.0),
        },
        2 => EstimatorEntry::MinErrorGrid {
            num_candidates: fields.count("num_candidates", 1).unwrap_or(100),
        },
        _ => EstimatorEntry::Percentile {
            percentile: fields
                .number("percentile", "above 50 and at most 100", |p| p > 50.0 && p <= 100.0)
                .unwrap_or(99.99),
        },
    })
}

pub(super) fn render_estimator(estimator: &EstimatorEntry) -> String {
    let option = match estimator {
        EstimatorEntry::RunningMinMax => return "{ estimator = \"running_minmax\" }".to_owned(),
        EstimatorEntry::SmoothedMinMax { gamma } => {
            format!("smoothed_minmax\", gamma = {}", float(*gamma))
        }
        EstimatorEntry::MinErrorGrid { num_candidates } => {
            format!("min_error_grid\", num_candidates = {num_candidates}")
        }
        EstimatorEntry::Percentile { percentile } => {
            format!("percentile\", percentile = {}", float(*percentile))
        }
    };
    format!("{{ estimator = \"{option} }}")
}
