//! Estimators by name, as configurations choose them.

use std::fmt;
use std::sync::Arc;

use serde::de::{DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Serialize};

use super::estimator::RangeEstimator;
use super::histogram_grid::{HistogramCriterion, HistogramGrid, HistogramGridConfig};
use super::min_error::{CandidateGrid, ErrorFunction, MinErrorGrid, MinErrorGridConfig};
use super::percentile::{Percentile, PercentileConfig};
use super::running_minmax::RunningMinMax;
use super::smoothed_minmax::SmoothedMinMax;
use crate::Error;
use crate::module::SlotEntry;

/// An estimator with its settings, as data.
///
/// In a file it is a table whose `estimator` names the kind, or that name alone where the defaults will do. Unknown names
/// and options are errors that suggest the nearest one.
///
/// ```
/// use fastforward_core::range_setting::EstimatorConfig;
/// #[derive(serde::Deserialize)]
/// struct Rule { range: EstimatorConfig }
///
/// let rule: Rule = toml::from_str("range = { estimator = 'smoothed_minmax', gamma = 0.2 }").unwrap();
/// assert_eq!(rule.range, EstimatorConfig::SmoothedMinmax { gamma: 0.2 });
/// let rule: Rule = toml::from_str("range = 'running_minmax'").unwrap();
/// assert_eq!(rule.range, EstimatorConfig::RunningMinmax);
/// let error = toml::from_str::<Rule>("range = { estimator = 'percentil' }").err().unwrap();
/// assert!(error.to_string().contains("did you mean `percentile`?"));
/// ```
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "estimator", rename_all = "snake_case")]
pub enum EstimatorConfig {
    /// [`RunningMinMax`].
    RunningMinmax,
    /// [`SmoothedMinMax`].
    SmoothedMinmax {
        /// The weight of the newest batch, above 0 and at most 1. The default is 0.1; the reference's is 1, which smooths
        /// nothing.
        gamma: f64,
    },
    /// [`MinErrorGrid`].
    MinErrorGrid(MinErrorGridConfig),
    /// [`Percentile`].
    Percentile(PercentileConfig),
    /// [`HistogramGrid`] by squared error.
    HistogramMse(HistogramGridConfig),
    /// [`HistogramGrid`] by entropy.
    Entropy(HistogramGridConfig),
}

/// Each estimator's name with the names of its options.
const ESTIMATORS: [(&str, &[&str]); 6] = [
    ("running_minmax", &[]),
    ("smoothed_minmax", &["gamma"]),
    ("min_error_grid", &["num_candidates", "grid", "absolute_margin", "relative_margin", "error"]),
    ("percentile", &["percentile", "num_bins"]),
    ("histogram_mse", &["num_candidates", "num_bins"]),
    ("entropy", &["num_candidates", "num_bins"]),
];

const DEFAULT_GAMMA: f64 = 0.1;

impl EstimatorConfig {
    /// The range of all data.
    pub fn running_minmax() -> Self {
        Self::RunningMinmax
    }

    /// A moving average of the batches' extremes.
    pub fn smoothed_minmax(gamma: f64) -> Self {
        Self::SmoothedMinmax { gamma }
    }

    /// The best of `num_candidates` ranges by mean squared error.
    pub fn min_error_grid(num_candidates: usize) -> Self {
        Self::MinErrorGrid(MinErrorGridConfig { num_candidates, ..MinErrorGridConfig::default() })
    }

    /// The range of the central `percentile` percent of the values.
    pub fn percentile(percentile: f64) -> Self {
        Self::Percentile(PercentileConfig { percentile, ..PercentileConfig::default() })
    }

    /// The name in configurations.
    pub fn name(&self) -> &'static str {
        match self {
            Self::RunningMinmax => "running_minmax",
            Self::SmoothedMinmax { .. } => "smoothed_minmax",
            Self::MinErrorGrid(_) => "min_error_grid",
            Self::Percentile(_) => "percentile",
            Self::HistogramMse(_) => HistogramCriterion::Mse.name(),
            Self::Entropy(_) => HistogramCriterion::Entropy.name(),
        }
    }

    /// An estimator with these settings.
    ///
    /// # Errors
    /// [`InvalidSettings`](crate::ErrorKind::InvalidSettings) naming the option that is out of bounds.
    pub fn build(&self) -> Result<Box<dyn RangeEstimator>, Error> {
        Ok(match self {
            Self::RunningMinmax => Box::new(RunningMinMax::new()),
            Self::SmoothedMinmax { gamma } => Box::new(SmoothedMinMax::new(*gamma)?),
            Self::MinErrorGrid(config) => Box::new(MinErrorGrid::new(config.clone())?),
            Self::Percentile(config) => Box::new(Percentile::new(config.clone())?),
            Self::HistogramMse(config) => {
                Box::new(HistogramGrid::new(HistogramCriterion::Mse, config.clone())?)
            }
            Self::Entropy(config) => {
                Box::new(HistogramGrid::new(HistogramCriterion::Entropy, config.clone())?)
            }
        })
    }

    /// The estimator of this name with the defaults.
    fn by_name(name: &str) -> Option<Self> {
        Some(match name {
            "running_minmax" => Self::RunningMinmax,
            "smoothed_minmax" => Self::SmoothedMinmax { gamma: DEFAULT_GAMMA },
            "min_error_grid" => Self::MinErrorGrid(MinErrorGridConfig::default()),
            "percentile" => Self::Percentile(PercentileConfig::default()),
            "histogram_mse" => Self::HistogramMse(HistogramGridConfig::default()),
            "entropy" => Self::Entropy(HistogramGridConfig::default()),
            _ => return None,
        })
    }
}

impl<'de> Deserialize<'de> for EstimatorConfig {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ConfigVisitor)
    }
}

struct ConfigVisitor;

impl<'de> Visitor<'de> for ConfigVisitor {
    type Value = EstimatorConfig;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the name of an estimator, or a table with `estimator` and its options")
    }

    fn visit_str<E: serde::de::Error>(self, name: &str) -> Result<EstimatorConfig, E> {
        EstimatorName::parse(name).map(|EstimatorName(_, config)| config)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<EstimatorConfig, A::Error> {
        let mut estimator: Option<EstimatorName> = None;
        let mut options = Options::default();
        let mut seen: Vec<&'static str> = Vec::new();
        while let Some(key) = map.next_key_seed(Key(estimator.as_ref()))? {
            if key == "estimator" {
                if estimator.is_some() {
                    return Err(A::Error::duplicate_field("estimator"));
                }
                estimator = Some(map.next_value()?);
                continue;
            }
            if seen.contains(&key) {
                return Err(A::Error::duplicate_field(key));
            }
            seen.push(key);
            match key {
                "gamma" => options.gamma = Some(map.next_value()?),
                "num_candidates" => options.num_candidates = Some(map.next_value()?),
                "grid" => options.grid = Some(map.next_value()?),
                "absolute_margin" => options.absolute_margin = Some(map.next_value()?),
                "relative_margin" => options.relative_margin = Some(map.next_value()?),
                "error" => options.error = Some(map.next_value()?),
                "percentile" => options.percentile = Some(map.next_value()?),
                "num_bins" => options.num_bins = Some(map.next_value()?),
                _ => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        let estimator = estimator.ok_or_else(|| {
            let names: Vec<&str> = ESTIMATORS.iter().map(|(name, _)| *name).collect();
            A::Error::custom(format!("no `estimator` is named, expected {}", one_of(&names)))
        })?;
        // Options that came before the name could not be checked against it.
        if let Some(key) = seen.into_iter().find(|key| !estimator.has_option(key)) {
            return Err(estimator.unknown_option(key));
        }
        let config = options.apply(estimator.1);
        config.build().map_err(A::Error::custom)?;
        Ok(config)
    }
}

/// The name of an estimator with that estimator's defaults.
struct EstimatorName(&'static str, EstimatorConfig);

impl EstimatorName {
    fn parse<E: serde::de::Error>(name: &str) -> Result<Self, E> {
        EstimatorConfig::by_name(name).map(|config| Self(config.name(), config)).ok_or_else(|| {
            let names: Vec<&str> = ESTIMATORS.iter().map(|(name, _)| *name).collect();
            E::custom(format!("unknown estimator `{name}`{}", did_you_mean(name, &names)))
        })
    }

    fn options(&self) -> &'static [&'static str] {
        ESTIMATORS.iter().find(|(name, _)| *name == self.0).map_or(&[], |(_, options)| options)
    }

    fn has_option(&self, key: &str) -> bool {
        self.options().contains(&key)
    }

    fn unknown_option<E: serde::de::Error>(&self, key: &str) -> E {
        let what = format!("estimator `{}` has no option `{key}`", self.0);
        let owner = ESTIMATORS.iter().find(|(_, options)| options.contains(&key));
        match owner {
            Some((name, _)) => E::custom(format!("{what}; `{name}` has")),
            None if self.options().is_empty() => E::custom(format!("{what}; it has none")),
            None => E::custom(format!("{what}{}", did_you_mean(key, self.options()))),
        }
    }
}

impl<'de> Deserialize<'de> for EstimatorName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct NameVisitor;
        impl Visitor<'_> for NameVisitor {
            type Value = EstimatorName;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("the name of an estimator")
            }
            fn visit_str<E: serde::de::Error>(self, name: &str) -> Result<EstimatorName, E> {
                EstimatorName::parse(name)
            }
        }
        deserializer.deserialize_str(NameVisitor)
    }
}

/// A key of the table: an error here points at the key itself.
struct Key<'a>(Option<&'a EstimatorName>);

impl<'de> DeserializeSeed<'de> for Key<'_> {
    type Value = &'static str;
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<&'static str, D::Error> {
        deserializer.deserialize_identifier(self)
    }
}

impl Visitor<'_> for Key<'_> {
    type Value = &'static str;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an option of an estimator")
    }

    fn visit_str<E: serde::de::Error>(self, key: &str) -> Result<&'static str, E> {
        if key == "estimator" {
            return Ok("estimator");
        }
        let all: Vec<&'static str> =
            ESTIMATORS.iter().flat_map(|(_, options)| options.iter().copied()).collect();
        match (self.0, all.iter().find(|&&known| known == key)) {
            (Some(estimator), _) if !estimator.has_option(key) => {
                Err(estimator.unknown_option(key))
            }
            (_, Some(known)) => Ok(known),
            (_, None) => {
                let mut names = all;
                names.push("estimator");
                Err(E::custom(format!("unknown option `{key}`{}", did_you_mean(key, &names))))
            }
        }
    }
}

/// Every option of every estimator, as far as it is given.
#[derive(Default)]
struct Options {
    gamma: Option<f64>,
    num_candidates: Option<usize>,
    grid: Option<CandidateGrid>,
    absolute_margin: Option<f64>,
    relative_margin: Option<f64>,
    error: Option<ErrorFunction>,
    percentile: Option<f64>,
    num_bins: Option<usize>,
}

impl Options {
    fn apply(self, mut config: EstimatorConfig) -> EstimatorConfig {
        fn set<T>(field: &mut T, given: Option<T>) {
            if let Some(value) = given {
                *field = value;
            }
        }
        match &mut config {
            EstimatorConfig::RunningMinmax => {}
            EstimatorConfig::SmoothedMinmax { gamma } => set(gamma, self.gamma),
            EstimatorConfig::MinErrorGrid(grid) => {
                set(&mut grid.num_candidates, self.num_candidates);
                set(&mut grid.grid, self.grid);
                grid.absolute_margin = self.absolute_margin;
                grid.relative_margin = self.relative_margin;
                set(&mut grid.error, self.error);
            }
            EstimatorConfig::Percentile(percentile) => {
                set(&mut percentile.percentile, self.percentile);
                set(&mut percentile.num_bins, self.num_bins);
            }
            EstimatorConfig::HistogramMse(grid) | EstimatorConfig::Entropy(grid) => {
                set(&mut grid.num_candidates, self.num_candidates);
                set(&mut grid.num_bins, self.num_bins);
            }
        }
        config
    }
}

fn did_you_mean(word: &str, known: &[&str]) -> String {
    match mpath::suggest::nearest(word, known.iter().copied()) {
        Some(nearest) => format!("; did you mean `{nearest}`?"),
        None => format!(", expected {}", one_of(known)),
    }
}

fn one_of(names: &[&str]) -> String {
    let quoted: Vec<String> = names.iter().map(|name| format!("`{name}`")).collect();
    match quoted.as_slice() {
        [only] => only.clone(),
        many => format!("one of {}", many.join(", ")),
    }
}

/// Makes an estimator for a slot: from an [`EstimatorConfig`], or by a function of your own.
#[derive(Clone)]
pub struct EstimatorFactory(Source);

type Build = dyn Fn(&SlotEntry) -> Result<Box<dyn RangeEstimator>, Error> + Send + Sync;

#[derive(Clone)]
enum Source {
    Config(EstimatorConfig),
    Function(Arc<Build>),
}

impl EstimatorFactory {
    /// Estimators made by a function that is given the slot with its names.
    pub fn new(
        build: impl Fn(&SlotEntry) -> Result<Box<dyn RangeEstimator>, Error> + Send + Sync + 'static,
    ) -> Self {
        Self(Source::Function(Arc::new(build)))
    }

    /// An estimator for this slot.
    ///
    /// # Errors
    /// What the settings or the function find wrong.
    pub fn build(&self, entry: &SlotEntry) -> Result<Box<dyn RangeEstimator>, Error> {
        match &self.0 {
            Source::Config(config) => config.build(),
            Source::Function(build) => build(entry),
        }
    }

    /// Whether both make the same estimators: equal settings, or the very same function.
    pub fn is_same(&self, other: &Self) -> bool {
        match (&self.0, &other.0) {
            (Source::Config(a), Source::Config(b)) => a == b,
            (Source::Function(a), Source::Function(b)) => Arc::ptr_eq(a, b),
            _ => false,
        }
    }
}

impl From<EstimatorConfig> for EstimatorFactory {
    fn from(config: EstimatorConfig) -> Self {
        Self(Source::Config(config))
    }
}

impl fmt::Debug for EstimatorFactory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Source::Config(config) => config.fmt(f),
            Source::Function(_) => f.write_str("EstimatorFactory(..)"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Deserialize)]
    struct Rule {
        range: EstimatorConfig,
    }

    #[track_caller]
    fn check(toml: &str, expected: EstimatorConfig) {
        let rule: Rule = toml::from_str(toml).unwrap();
        assert_eq!(rule.range, expected);
        // What is written is read again.
        let json = serde_json::to_string(&expected).unwrap();
        assert_eq!(serde_json::from_str::<EstimatorConfig>(&json).unwrap(), expected, "{json}");
        assert_eq!(expected.build().unwrap().name(), expected.name());
    }

    #[test]
    fn estimators_by_name_and_with_options() {
        check("range = 'running_minmax'", EstimatorConfig::RunningMinmax);
        check("range = { estimator = 'smoothed_minmax' }", EstimatorConfig::smoothed_minmax(0.1));
        check(
            "range = { gamma = 1, estimator = 'smoothed_minmax' }",
            EstimatorConfig::smoothed_minmax(1.0),
        );
        check(
            "range = { estimator = 'percentile', percentile = 99.9 }",
            EstimatorConfig::percentile(99.9),
        );
        check(
            "range = { estimator = 'percentile', num_bins = 64 }",
            EstimatorConfig::Percentile(PercentileConfig { num_bins: 64, ..Default::default() }),
        );
        check(
            "range = { estimator = 'min_error_grid', num_candidates = 81 }",
            EstimatorConfig::min_error_grid(81),
        );
        check(
            "[range]\nestimator = 'min_error_grid'\ngrid = 'reference'\nabsolute_margin = 0.25\nrelative_margin = 1.5\nerror = 'mse'",
            EstimatorConfig::MinErrorGrid(MinErrorGridConfig {
                grid: CandidateGrid::Reference,
                absolute_margin: Some(0.25),
                relative_margin: Some(1.5),
                ..Default::default()
            }),
        );
    }

    /// The message, and the text it points at.
    #[track_caller]
    fn check_error(toml: &str, message: &str, place: &str) {
        let error = toml::from_str::<Rule>(toml).unwrap_err();
        assert_eq!(error.message(), message);
        assert_eq!(&toml[error.span().unwrap()], place);
    }

    #[test]
    fn mistakes_are_pointed_at() {
        check_error(
            "range = 'runing_minmax'",
            "unknown estimator `runing_minmax`; did you mean `running_minmax`?",
            "'runing_minmax'",
        );
        check_error(
            "range = { estimator = 'quartiles' }",
            "unknown estimator `quartiles`, expected one of `running_minmax`, `smoothed_minmax`, `min_error_grid`, \
             `percentile`, `histogram_mse`, `entropy`",
            "'quartiles'",
        );
        check_error(
            "range = { estimator = 'smoothed_minmax', gama = 0.1 }",
            "estimator `smoothed_minmax` has no option `gama`; did you mean `gamma`?",
            "gama",
        );
        check_error(
            "range = { estimator = 'percentile', gamma = 0.1 }",
            "estimator `percentile` has no option `gamma`; `smoothed_minmax` has",
            "gamma",
        );
        check_error(
            "range = { estimator = 'running_minmax', wide = true }",
            "estimator `running_minmax` has no option `wide`; it has none",
            "wide",
        );
        check_error(
            "range = { gamma = 0.1 }",
            "no `estimator` is named, expected one of `running_minmax`, `smoothed_minmax`, `min_error_grid`, \
             `percentile`, `histogram_mse`, `entropy`",
            "{ gamma = 0.1 }",
        );
        check_error(
            "range = { estimator = 'smoothed_minmax', gamma = 2.0 }",
            "gamma must be above 0 and at most 1, found 2",
            "{ estimator = 'smoothed_minmax', gamma = 2.0 }",
        );
    }

    /// JSON keeps the order of keys, so options can come before the name they belong to.
    #[test]
    fn options_before_the_name_are_checked_too() {
        let message =
            |json: &str| serde_json::from_str::<EstimatorConfig>(json).unwrap_err().to_string();
        let early = message(r#"{ "gamma": 0.1, "estimator": "running_minmax" }"#);
        assert!(
            early.starts_with(
                "estimator `running_minmax` has no option `gamma`; `smoothed_minmax` has"
            ),
            "{early}"
        );
        let unknown = message(r#"{ "num_candidate": 3, "estimator": "min_error_grid" }"#);
        assert!(
            unknown.starts_with("unknown option `num_candidate`; did you mean `num_candidates`?"),
            "{unknown}"
        );
        let twice = message(r#"{ "estimator": "percentile", "num_bins": 64, "num_bins": 32 }"#);
        assert!(twice.starts_with("duplicate field `num_bins`"), "{twice}");
    }

    #[test]
    fn factories_are_the_same_by_settings_or_by_identity() {
        let config = |n| EstimatorFactory::from(EstimatorConfig::min_error_grid(n));
        assert!(config(4).is_same(&config(4)) && !config(4).is_same(&config(9)));
        let make = || EstimatorFactory::new(|_| EstimatorConfig::RunningMinmax.build());
        let one = make();
        assert!(one.is_same(&one.clone()) && !one.is_same(&make()) && !one.is_same(&config(4)));
    }
}
