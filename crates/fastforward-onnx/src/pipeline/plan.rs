//! What rules mean for a model, before any data is touched.

use std::collections::HashSet;

use serde::Serialize;

use fastforward_core::quantization::quantizer::RangeSettable;
use fastforward_core::quantization::{Granularity, Quantizer};
use fastforward_core::range_setting::EstimatorConfig;

use super::Job;
use super::algorithms::{self, PlannedAlgorithm};
use super::summary::{ModelSummary, file_name};
use crate::error::Result;
use crate::placement::ConstantFinder;
use crate::tree::{Role, Site};

/// Which rule decides each slot of a model, and what that makes of it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Plan {
    /// The model.
    pub model: ModelSummary,
    /// The name of the configuration's file.
    pub config: String,
    /// Every slot, in the order of the nodes.
    pub slots: Vec<PlannedSlot>,
    /// Every rule, in the order of the file.
    pub rules: Vec<PlannedRule>,
    /// Every algorithm, in the order of the file, and the weights it works on.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub algorithms: Vec<PlannedAlgorithm>,
    /// What is wrong with the rules; empty where nothing is.
    pub problems: Vec<String>,
    /// Bytes of all constants of the model, as they are and as they will be.
    pub constants: PlannedBytes,
}

/// A slot and the rule that decides it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PlannedSlot {
    /// Every full name of the slot; the first is the one that is shown.
    pub names: Vec<String>,
    /// What stands there: `weight`, `bias`, `constant`, `input` or `output`.
    pub role: &'static str,
    /// The position of the rule that decides the slot; `None` where no rule matches it.
    pub rule: Option<usize>,
    /// The rules that match the slot and lose, best first.
    pub losers: Vec<usize>,
    /// The quantizer with its settings; `None` where the slot stays in float.
    pub quantizer: Option<PlannedQuantizer>,
    /// Bytes of the constant at the slot, as it is and as it will be.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes: Option<PlannedBytes>,
}

/// A quantizer as rules make it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PlannedQuantizer {
    /// As quantizers print themselves.
    pub text: String,
    /// The bits of one code.
    pub num_bits: u32,
    /// Whether there is no offset; `None` for quantizers that do not say.
    pub symmetric: Option<bool>,
    /// How data is cut into tiles, in words.
    pub granularity: Option<String>,
    /// How the range is found; `None` where no range is set.
    pub estimator: Option<String>,
}

/// A rule and what came of it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PlannedRule {
    /// The rule's name, where it has one.
    pub name: Option<String>,
    /// The line of the configuration at which it stands.
    pub line: usize,
    /// Which slots it is for.
    pub query: String,
    /// What they get.
    pub quantizer: String,
    /// How ranges are found.
    pub estimator: Option<String>,
    /// The precedence score.
    pub priority: i64,
    /// Whether it is fine if the rule decides nothing.
    pub optional: bool,
    /// How many slots it matches.
    pub matched: usize,
    /// How many slots it decides.
    pub won: usize,
}

/// Bytes before and after.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct PlannedBytes {
    /// As it is.
    pub before: u64,
    /// As it will be: codes, scales and zero points.
    pub after: u64,
}

impl PlannedRule {
    /// What tables call the rule: its name, else its query.
    pub fn label(&self) -> &str {
        self.name.as_deref().unwrap_or(&self.query)
    }
}

impl Plan {
    pub(super) fn new(job: &Job) -> Result<Self> {
        let model = ModelSummary::new(&job.model, &job.tree)?;
        let mut seen = HashSet::new();
        let mut slots = Vec::new();
        let mut finder = ConstantFinder::new(&job.model);
        let mut constants =
            PlannedBytes { before: model.parameters.bytes, after: model.parameters.bytes };
        for site in job.tree.sites() {
            if !seen.insert(site.slot.id()) {
                continue;
            }
            let slot = PlannedSlot::new(job, site, &mut finder);
            if let Some(bytes) = slot.bytes {
                constants.after = (constants.after + bytes.after).saturating_sub(bytes.before);
            }
            slots.push(slot);
        }
        let rules =
            job.config.rules.iter().zip(&job.resolution.rules).map(|(entry, usage)| PlannedRule {
                name: entry.name.clone(),
                line: entry.line,
                query: entry.query.text.clone(),
                quantizer: entry.quantizer.to_string(),
                estimator: entry.estimator.as_ref().map(estimator_in_words),
                priority: entry.priority,
                optional: entry.optional,
                matched: usage.matched,
                won: usage.won,
            });
        Ok(Self {
            config: file_name(job.config.name().as_ref()),
            slots,
            rules: rules.collect(),
            algorithms: algorithms::plan(job)?.0,
            problems: job.problems(),
            constants,
            model,
        })
    }

    /// How many slots get a quantizer.
    pub fn quantized_slots(&self) -> usize {
        self.slots.iter().filter(|slot| slot.quantizer.is_some()).count()
    }

    /// The slot of this name; any of its names will do.
    pub fn slot(&self, name: &str) -> Option<&PlannedSlot> {
        self.slots.iter().find(|slot| slot.names.iter().any(|one| one == name))
    }
}

impl PlannedSlot {
    fn new(job: &Job, site: &Site, finder: &mut ConstantFinder<'_>) -> Self {
        let resolved = job.resolution.slot(&site.name);
        let winner = resolved.and_then(|slot| slot.winner);
        let quantizer = site.slot.quantizer();
        let quantizer = (!quantizer.is_stub()).then(|| PlannedQuantizer {
            text: quantizer.to_string(),
            num_bits: quantizer.num_bits().unwrap_or(0),
            symmetric: quantizer.as_range_settable().map(RangeSettable::is_symmetric),
            granularity: granularity(&*quantizer).map(|granularity| in_words(&granularity)),
            estimator: winner
                .and_then(|winner| job.config.rules.get(winner.rule)?.estimator.as_ref())
                .map(estimator_in_words),
        });
        Self {
            names: resolved.map_or_else(
                || vec![site.name.clone()],
                |slot| slot.names().map(str::to_owned).collect(),
            ),
            role: site.role.name(),
            rule: winner.map(|winner| winner.rule),
            losers: resolved
                .map(|slot| slot.losers.iter().map(|loser| loser.rule).collect())
                .unwrap_or_default(),
            bytes: constant_bytes(site, finder),
            quantizer,
        }
    }
}

/// Bytes of the constant at a site, and of what replaces it.
fn constant_bytes(site: &Site, finder: &mut ConstantFinder<'_>) -> Option<PlannedBytes> {
    if matches!(site.role, Role::Input | Role::Output) {
        return None;
    }
    let info = finder.find(site).ok()?.1.info().ok()?;
    let before = info.size_bytes as u64;
    let quantizer = site.slot.quantizer();
    let (Some(num_bits), Some(granularity)) = (quantizer.num_bits(), granularity(&*quantizer))
    else {
        return Some(PlannedBytes { before, after: before });
    };
    let after = quantized_bytes(&granularity, &info.shape, num_bits).ok()?;
    Some(PlannedBytes { before, after })
}

/// Bytes of the codes, scales and zero points of a constant.
///
/// # Errors
/// `Core` when the granularity does not fit the shape.
pub(super) fn quantized_bytes(
    granularity: &Granularity,
    shape: &[usize],
    num_bits: u32,
) -> Result<u64> {
    let elements: u64 = shape.iter().map(|&size| size as u64).product();
    let tiles = granularity.num_parameters(shape)? as u64;
    let stored_bits = u64::from(stored_bits(num_bits));
    let packed = |count: u64| (count * stored_bits).div_ceil(8);
    Ok(packed(elements) + packed(tiles) + 4 * tiles)
}

/// The bits of the narrowest integer type that holds codes of `num_bits` bits.
pub(super) fn stored_bits(num_bits: u32) -> u32 {
    [2, 4, 8, 16].into_iter().find(|&bits| num_bits <= bits).unwrap_or(32)
}

/// How a quantizer cuts data into tiles.
pub(super) fn granularity(quantizer: &dyn Quantizer) -> Option<Granularity> {
    quantizer.as_range_settable().map(|settable| settable.granularity().clone())
}

/// A granularity in a few words: `per channel 0`, `blocks of 32`.
pub(super) fn in_words(granularity: &Granularity) -> String {
    let list = |axes: &[isize]| axes.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    let sizes =
        |sizes: &[usize]| sizes.iter().map(ToString::to_string).collect::<Vec<_>>().join("x");
    match granularity {
        Granularity::PerTensor => "per tensor".to_owned(),
        Granularity::PerChannel { axes } => format!("per channel {}", list(axes)),
        Granularity::PerBlock { dims, sizes: extents, .. } => {
            format!("blocks of {} along {}", sizes(extents), list(dims))
        }
        Granularity::PerTile { shape } => format!("tiles of {}", sizes(shape)),
    }
}

/// An estimator with what distinguishes it: `percentile 99.99`.
fn estimator_in_words(estimator: &EstimatorConfig) -> String {
    match estimator {
        EstimatorConfig::RunningMinmax => "min-max".to_owned(),
        EstimatorConfig::SmoothedMinmax { gamma } => format!("smoothed min-max {gamma}"),
        EstimatorConfig::MinErrorGrid(grid) => format!("min-error {}", grid.num_candidates),
        EstimatorConfig::Percentile(one) => format!("percentile {}", one.percentile),
        EstimatorConfig::HistogramMse(grid) => format!("histogram mse {}", grid.num_candidates),
        EstimatorConfig::Entropy(grid) => format!("entropy {}", grid.num_candidates),
    }
}
