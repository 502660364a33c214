//! The weights that are swept, each with a quantizer for each width.

use std::collections::HashSet;
use std::sync::Arc;

use fastforward_core::quantization::affine::SavedQuantizer;
use fastforward_core::quantization::quantizer::QuantizerStub;
use fastforward_core::quantization::{LinearQuantizer, LinearQuantizerConfig, Quantizer};
use mpath::Aliases;

use crate::error::{Error, ErrorKind, Result};
use crate::pipeline::plan::quantized_bytes;
use crate::pipeline::{Job, Silent, algorithms};
use crate::placement::ConstantFinder;
use crate::tree::Role;

/// A weight that is swept.
pub(super) struct Weight {
    /// Where its first site stands in [`Tree::sites`](crate::tree::Tree::sites), of every tree of the model.
    pub(super) site: usize,
    /// Every full name of its slot.
    pub(super) names: Vec<String>,
    /// The rule that decides it.
    pub(super) rule: usize,
    pub(super) elements: u64,
    /// The width that the rule gives it.
    pub(super) num_bits: u32,
    /// By width: bytes of codes, scales and zero points.
    pub(super) bytes: Vec<u64>,
    /// The same at the width that the rule gives.
    pub(super) bytes_now: u64,
    /// By width: the rule's quantizer at that width, its range set.
    pub(super) quantizers: Vec<Arc<dyn Quantizer>>,
}

impl Weight {
    /// The name that is shown.
    pub(super) fn name(&self) -> &str {
        &self.names[0]
    }
}

/// The weights with a linear quantizer, those that `query` matches if there is one.
pub(super) fn weights(job: &Job, bits: &[u32], query: Option<&str>) -> Result<Vec<Weight>> {
    let matched = query.map(|query| matched(job, query)).transpose()?;
    let mut finder = ConstantFinder::new(&job.model);
    let mut weights = Vec::new();
    let mut configs: Vec<LinearQuantizerConfig> = Vec::new();
    let mut left_out = Vec::new();
    let mut seen = HashSet::new();
    for (at, site) in job.tree.sites().iter().enumerate() {
        if site.slot.is_stub() || !seen.insert(site.slot.id()) {
            continue;
        }
        let Some(slot) = job.resolution.slot(&site.name) else { continue };
        let names: Vec<String> = slot.names().map(str::to_owned).collect();
        let is_meant = match &matched {
            None => site.role == Role::Weight,
            Some(matched) => names.iter().any(|name| algorithms::is_matched(matched, name)),
        };
        let Some(winner) = slot.winner.filter(|_| is_meant) else { continue };
        if matches!(site.role, Role::Input | Role::Output) {
            left_out.push(format!("`{}` is an activation", site.name));
            continue;
        }
        let Some(SavedQuantizer::Linear(config, _)) = site.slot.quantizer().to_saved() else {
            left_out.push(format!("the quantizer of `{}` is not linear", site.name));
            continue;
        };
        let shape = finder.find(site)?.1.info()?.shape;
        let bytes = |num_bits| quantized_bytes(&config.granularity, &shape, num_bits);
        weights.push(Weight {
            site: at,
            names,
            rule: winner.rule,
            elements: shape.iter().map(|&size| size as u64).product(),
            num_bits: config.num_bits,
            bytes: bits.iter().map(|&bits| bytes(bits)).collect::<Result<_>>()?,
            bytes_now: bytes(config.num_bits)?,
            quantizers: Vec::new(),
        });
        configs.push(config);
    }
    if weights.iter().all(|weight| weight.elements == 0) {
        let what = match query {
            Some(query) => format!("`{query}` matches no weight with a linear quantizer"),
            None => "the rules give no weight a linear quantizer".to_owned(),
        };
        left_out.truncate(3);
        let why = match left_out.as_slice() {
            [] => String::new(),
            left_out => format!(": {}", left_out.join(", ")),
        };
        return Err(Error::new(
            ErrorKind::Input,
            format!("{what}, so there is nothing to sweep{why}"),
        ));
    }
    for &num_bits in bits {
        let quantizers = at_width(job, &weights, &configs, num_bits)?;
        for (weight, quantizer) in weights.iter_mut().zip(quantizers) {
            weight.quantizers.push(quantizer);
        }
    }
    Ok(weights)
}

/// The quantizers of the weights at one width, with ranges as the rules find them.
fn at_width(
    job: &Job,
    weights: &[Weight],
    configs: &[LinearQuantizerConfig],
    num_bits: u32,
) -> Result<Vec<Arc<dyn Quantizer>>> {
    let work = job.on(job.model.clone())?;
    let set: Vec<_> = work.tree.set_slots().collect();
    for site in set {
        site.slot.replace(Arc::new(QuantizerStub));
    }
    let sites = work.tree.sites();
    for (weight, config) in weights.iter().zip(configs) {
        let config = LinearQuantizerConfig { num_bits, ..config.clone() };
        let quantizer = LinearQuantizer::new(config).map_err(|error| {
            let place = format!("`{}` at {num_bits} bits", weight.name());
            Error::from(error).within(place)
        })?;
        sites[weight.site].slot.replace(Arc::new(quantizer));
    }
    work.calibrate(None, &Silent)?;
    Ok(weights.iter().map(|weight| sites[weight.site].slot.quantizer()).collect())
}

/// The full names that a query matches, which may use the aliases of the configuration.
fn matched(job: &Job, query: &str) -> Result<HashSet<String>> {
    let wrong = |text: String| Error::new(ErrorKind::Input, format!("--query: {text}"));
    let in_query = |error: mpath::Error| wrong(error.to_string());
    let context = job.tree.context();
    let mut aliases = Aliases::new();
    for alias in &job.config.aliases {
        context
            .query_with(&alias.query.text, &aliases)
            .and_then(|selector| aliases.define(&alias.name, selector))
            .map_err(in_query)?;
    }
    let selector = context.query_with(query, &aliases).map_err(in_query)?;
    algorithms::matches(job, &selector).map_err(wrong)
}
