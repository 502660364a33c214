//! What algorithms are for, before anything is computed.

use std::collections::HashSet;

use fastforward_core::config::{Algorithm, AlgorithmStage};
use fastforward_core::module::NodeRef;
use fastforward_core::quantization::affine::SavedQuantizer;
use mpath::{SearchOptions, Selector};
use serde::Serialize;

use crate::error::Result;
use crate::layerwise::{LinearLayer, blocks, linear_layers};
use crate::pipeline::Job;
use crate::tree::{Role, Site};

/// What an algorithm is for, before anything is computed.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PlannedAlgorithm {
    /// The line of the configuration at which it stands.
    pub line: usize,
    /// Its type.
    pub algorithm: &'static str,
    /// Which weights it is for, where the configuration says.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub query: Option<String>,
    /// The slots of the weights it works on, in the order of the graph; empty for what looks at the whole network.
    pub slots: Vec<String>,
    /// The blocks that are rounded together, by the names of their layers.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub blocks: Vec<String>,
    /// Slots it would be for but cannot work on, and why.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub kept: Vec<String>,
}

/// What each algorithm of a configuration works on, and what is wrong with them.
pub(in crate::pipeline) fn plan(job: &Job) -> Result<(Vec<PlannedAlgorithm>, Vec<String>)> {
    let mut planned = Vec::new();
    let mut problems = Vec::new();
    let needs_layers = job.config.algorithms.iter().any(|one| looks_at_layers(&one.algorithm));
    let (layers, others) = match needs_layers && !job.model.is_weights() {
        true => linear_layers(&job.model, &job.tree)?,
        false => Default::default(),
    };
    for (entry, query) in job.config.algorithms.iter().zip(&job.targets) {
        let name = entry.algorithm.name();
        let mut plan = PlannedAlgorithm {
            line: entry.line,
            algorithm: name,
            query: entry.query.as_ref().map(|query| query.text.clone()),
            slots: Vec::new(),
            blocks: Vec::new(),
            kept: Vec::new(),
        };
        let needs_graph = !matches!(entry.algorithm, Algorithm::Hqq { .. });
        if job.model.is_weights() && needs_graph {
            problems.push(format!(
                "{}: `{name}` executes the network, and a file of weights has no graph that says how; without one there is \
                 `hqq`",
                entry.source
            ));
            planned.push(plan);
            continue;
        }
        let looks_at_offsets = matches!(entry.algorithm, Algorithm::Hqq { .. });
        if !looks_at_offsets && !looks_at_layers(&entry.algorithm) {
            planned.push(plan);
            continue;
        }
        let matched = match query.as_ref().map(|query| matches(job, query)).transpose() {
            Ok(matched) => matched,
            Err(problem) => {
                problems.push(format!("{}: {problem}", entry.source));
                planned.push(plan);
                continue;
            }
        };
        let is_meant = |site: &str| matched.as_ref().is_none_or(|names| is_matched(names, site));
        let mut kept = Vec::new();
        if looks_at_offsets {
            for site in weight_slots(job).filter(|site| is_meant(&site.name)) {
                match offsets_problem(site) {
                    None => plan.slots.push(site.name.clone()),
                    Some(reason) => kept.push(format!("`{}`: {reason}", site.name)),
                }
            }
        } else {
            let meant = layers.iter().filter(|layer| is_meant(&layer.weight.name));
            for layer in meant {
                match layer_problem(layer) {
                    None => plan.slots.push(layer.weight.name.clone()),
                    Some(reason) => kept.push(format!("`{}`: {reason}", layer.weight.name)),
                }
            }
            if let Algorithm::AdaRound { block_layers, .. } = entry.algorithm
                && block_layers > 1
            {
                let own = layers.iter().filter(|one| plan.slots.contains(&one.weight.name));
                let own: Vec<LinearLayer> = own.cloned().collect();
                let (found, single) = blocks(&job.model, &own, block_layers);
                plan.blocks = found.into_iter().map(|block| block.name).collect();
                kept.extend(single.iter().map(|reason| format!("in no block: {reason}")));
            }
            let others = others.iter().filter(|(site, _)| is_meant(site));
            kept.extend(others.map(|(site, reason)| format!("`{site}`: {reason}")));
        }
        if plan.slots.is_empty() {
            let what = match &entry.query {
                Some(query) => format!("`{}` matches no weight that", query.text),
                None => "there is no weight that".to_owned(),
            };
            let reasons = match kept.as_slice() {
                [] => "none of them has a quantizer".to_owned(),
                kept => kept.join("; "),
            };
            problems.push(format!("{}: {what} `{name}` can work on: {reasons}", entry.source));
        }
        plan.kept = kept;
        planned.push(plan);
    }
    problems.extend(order_problems(job, &planned));
    Ok((planned, problems))
}

/// Whether an algorithm works on layers, each by itself: those that have a query, but for `hqq`, which needs no layer.
fn looks_at_layers(algorithm: &Algorithm) -> bool {
    algorithm.stage() == AlgorithmStage::Weights || matches!(algorithm, Algorithm::Awq { .. })
}

/// Ranges that are chosen for codes that were.
fn order_problems(job: &Job, planned: &[PlannedAlgorithm]) -> Vec<String> {
    let mut problems = Vec::new();
    let chooses_codes = |algorithm: &Algorithm| {
        matches!(
            algorithm,
            Algorithm::Gptq { .. }
                | Algorithm::AdaRound { .. }
                | Algorithm::CoordinateDescent { .. }
        )
    };
    let entries = &job.config.algorithms;
    for (at, (entry, plan)) in entries.iter().zip(planned).enumerate() {
        if chooses_codes(&entry.algorithm) || entry.algorithm.stage() != AlgorithmStage::Weights {
            continue;
        }
        let before = entries[..at].iter().zip(planned).find(|(other, others)| {
            chooses_codes(&other.algorithm)
                && others.slots.iter().any(|slot| plan.slots.contains(slot))
        });
        if let Some((other, _)) = before {
            problems.push(format!(
                "{}: `{}` chooses ranges of weights whose codes `{}` (line {}) has chosen; put it before",
                entry.source, entry.algorithm, other.algorithm, other.line
            ));
        }
    }
    problems
}

/// The full names that a query matches, or why there is none.
pub(in crate::pipeline) fn matches(
    job: &Job,
    query: &Selector,
) -> std::result::Result<HashSet<String>, String> {
    let root = NodeRef::Module(job.tree.root());
    let context = job.tree.context();
    let found = mpath::search(query, root, &SearchOptions::new(&context))
        .map_err(|error| error.to_string())?;
    if found.is_empty() {
        let diagnosis = mpath::diagnose(query, root).map_err(|error| error.to_string())?;
        return Err(diagnosis.map_or_else(
            || format!("`{query}` matches nothing"),
            |diagnosis| diagnosis.to_string(),
        ));
    }
    Ok(found.iter().map(|one| one.full_name().to_owned()).collect())
}

/// Whether the slot of a weight, or the module it belongs to, is among the matches.
pub(in crate::pipeline) fn is_matched(names: &HashSet<String>, site: &str) -> bool {
    names.contains(site) || site.rsplit_once('.').is_some_and(|(module, _)| names.contains(module))
}

pub(super) fn weight_slots(job: &Job) -> impl Iterator<Item = &Site> {
    job.tree.set_slots().filter(|site| site.role == Role::Weight)
}

fn offsets_problem(site: &Site) -> Option<String> {
    match site.slot.quantizer().to_saved() {
        Some(SavedQuantizer::Linear(config, _)) if config.range.symmetric => Some(
            "its quantizer is symmetric, and hqq moves offsets; write `symmetric = false`"
                .to_owned(),
        ),
        Some(SavedQuantizer::Linear(..)) => None,
        _ => Some("its quantizer has no offsets that are set before".to_owned()),
    }
}

fn layer_problem(layer: &LinearLayer) -> Option<String> {
    let Some(SavedQuantizer::Linear(config, _)) = layer.weight.slot.quantizer().to_saved() else {
        return Some("its quantizer is none with scales that are set before".to_owned());
    };
    let tile = match config.granularity.tile_shape(layer.shape()) {
        Ok(tile) => tile,
        Err(error) => return Some(error.to_string()),
    };
    layer.tiles(&tile).err().map(|error| error.to_string())
}
