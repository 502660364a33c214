//! The slots that are swept, each with a quantizer for each width.

use std::collections::HashSet;
use std::ops::Range;
use std::sync::Arc;

use fastforward_core::ArrayView;
use fastforward_core::quantization::affine::SavedQuantizer;
use fastforward_core::quantization::quantizer::QuantizerStub;
use fastforward_core::quantization::{LinearQuantizer, LinearQuantizerConfig, Quantizer};
use mpath::Aliases;

use super::{SweptSlots, SweptWidth};
use crate::calibrate::{SiteObserver, Watched, calibrate};
use crate::error::{Error, ErrorKind, Result};
use crate::pipeline::plan::quantized_bytes;
use crate::pipeline::{Job, Progress, Samples, algorithms};
use crate::placement::ConstantFinder;
use crate::tree::{Role, Site};

/// A slot that is swept.
pub(super) struct Candidate {
    /// Where its first site stands in [`Tree::sites`](crate::tree::Tree::sites), of every tree of the model.
    pub(super) site: usize,
    pub(super) role: Role,
    /// Every full name of the slot.
    pub(super) names: Vec<String>,
    /// The rule that decides it.
    pub(super) rule: usize,
    /// Of a constant all, of an activation those of one sample.
    pub(super) elements: u64,
    /// The width that the rule gives it.
    pub(super) num_bits: u32,
    /// By width: bytes of codes, scales and zero points of a constant, 0 for activations.
    pub(super) bytes: Vec<u64>,
    /// The same at the width that the rule gives.
    pub(super) bytes_now: u64,
    /// By width: the rule's quantizer at that width, its range set. Empty until [`Swept::set_ranges`].
    pub(super) quantizers: Vec<Arc<dyn Quantizer>>,
    config: LinearQuantizerConfig,
}

impl Candidate {
    /// The name that is shown.
    pub(super) fn name(&self) -> &str {
        &self.names[0]
    }

    pub(super) fn is_activation(&self) -> bool {
        is_activation(self.role)
    }

    fn at_width(&self, num_bits: u32) -> Result<Arc<dyn Quantizer>> {
        let config = LinearQuantizerConfig { num_bits, ..self.config.clone() };
        let quantizer = LinearQuantizer::new(config).map_err(|error| {
            Error::from(error).within(format_args!("`{}` at {num_bits} bits", self.name()))
        })?;
        Ok(Arc::new(quantizer))
    }
}

/// What is swept: constants in the order of the graph, then activations.
pub(super) struct Swept {
    pub(super) slots: Vec<Candidate>,
    pub(super) n_weights: usize,
    /// The widths of constants, ascending.
    pub(super) weight_bits: Vec<u32>,
    /// The widths of activations, ascending.
    pub(super) activation_bits: Vec<u32>,
}

impl Swept {
    /// The slots with a linear quantizer, those that `query` matches if there is one.
    ///
    /// `samples` are those of calibration; activations are counted in their first batch.
    pub(super) fn find(
        job: &Job,
        meant: SweptSlots,
        weight_bits: Vec<u32>,
        activation_bits: Vec<u32>,
        query: Option<&str>,
    ) -> Result<Self> {
        let matched = query.map(|query| matched(job, query)).transpose()?;
        let mut finder = ConstantFinder::new(&job.model);
        let (mut weights, mut activations, mut left_out) = (Vec::new(), Vec::new(), Vec::new());
        let mut seen = HashSet::new();
        for (at, site) in job.tree.sites().iter().enumerate() {
            if site.slot.is_stub() || !seen.insert(site.slot.id()) {
                continue;
            }
            let Some(slot) = job.resolution.slot(&site.name) else { continue };
            let is_activation = is_activation(site.role);
            let names: Vec<String> = slot.names().map(str::to_owned).collect();
            let is_meant = match &matched {
                None => is_activation || site.role == Role::Weight,
                Some(matched) => names.iter().any(|name| algorithms::is_matched(matched, name)),
            };
            let Some(winner) = slot.winner.filter(|_| is_meant) else { continue };
            match meant {
                SweptSlots::Weights if is_activation => {
                    left_out.push(format!("`{}` is an activation", site.name));
                    continue;
                }
                SweptSlots::Activations if !is_activation => {
                    left_out.push(format!("`{}` is a constant", site.name));
                    continue;
                }
                _ => {}
            }
            let Some(SavedQuantizer::Linear(config, _)) = site.slot.quantizer().to_saved() else {
                left_out.push(format!("the quantizer of `{}` is not linear", site.name));
                continue;
            };
            let mut candidate = Candidate {
                site: at,
                role: site.role,
                names,
                rule: winner.rule,
                elements: 0,
                num_bits: config.num_bits,
                bytes: vec![0; activation_bits.len()],
                bytes_now: 0,
                quantizers: Vec::new(),
                config,
            };
            if is_activation {
                activations.push(candidate);
                continue;
            }
            let shape = finder.find(site)?.1.info()?.shape;
            let bytes = |num_bits| quantized_bytes(&candidate.config.granularity, &shape, num_bits);
            candidate.bytes_now = bytes(candidate.num_bits)?;
            candidate.bytes = weight_bits.iter().map(|&bits| bytes(bits)).collect::<Result<_>>()?;
            candidate.elements = shape.iter().map(|&size| size as u64).product();
            weights.push(candidate);
        }
        let is_empty = |slots: &[Candidate]| slots.is_empty();
        let no_weights = weights.iter().all(|weight: &Candidate| weight.elements == 0);
        let nothing = match meant {
            SweptSlots::Weights if no_weights => Some("weight"),
            SweptSlots::Activations if is_empty(&activations) => Some("activation"),
            SweptSlots::All if no_weights && is_empty(&activations) => Some("slot"),
            _ => None,
        };
        if let Some(nothing) = nothing {
            return Err(nothing_to_sweep(nothing, query, left_out));
        }
        let n_weights = weights.len();
        weights.extend(activations);
        Ok(Self { slots: weights, n_weights, weight_bits, activation_bits })
    }

    /// The slots of a kind.
    pub(super) fn range(&self, kind: SweptSlots) -> Range<usize> {
        match kind {
            SweptSlots::Weights => 0..self.n_weights,
            SweptSlots::Activations => self.n_weights..self.slots.len(),
            SweptSlots::All => 0..self.slots.len(),
        }
    }

    /// The widths of a slot.
    pub(super) fn bits(&self, slot: &Candidate) -> &[u32] {
        if slot.is_activation() { &self.activation_bits } else { &self.weight_bits }
    }

    /// How codes of each width are stored, of one kind of slots: the type, and the first operator set that has it.
    ///
    /// # Errors
    /// `Quantizer` with each width that export cannot write.
    pub(super) fn widths(&self, job: &Job, kind: SweptSlots) -> Result<Vec<SweptWidth>> {
        let slots = &self.slots[self.range(kind)];
        let Some(first) = slots.first() else { return Ok(Vec::new()) };
        let work = job.on(job.model.clone())?;
        let sites = work.tree.sites();
        let mut widths = Vec::new();
        let mut problems = Vec::new();
        for &bits in self.bits(first) {
            let mut width: Option<SweptWidth> = None;
            for slot in slots {
                let site = &sites[slot.site];
                site.slot.replace(slot.at_width(bits)?);
                match job.export_options().stored_as(site) {
                    Ok(stored) => {
                        let opset = width.map_or(0, |width| width.opset).max(stored.opset);
                        width = Some(SweptWidth { bits, stored_as: stored.dtype.name(), opset });
                    }
                    Err(error) => {
                        problems.push(error.to_string());
                        break;
                    }
                }
            }
            widths.extend(width);
        }
        if problems.is_empty() {
            Ok(widths)
        } else {
            Err(Error::many(ErrorKind::Quantizer, problems))
        }
    }

    /// Counts the elements that one sample has at each activation, in the first batch.
    pub(super) fn count_activations(&mut self, job: &Job, samples: &Samples) -> Result<()> {
        struct Counter(usize);
        impl SiteObserver for Counter {
            fn observe(&mut self, x: ArrayView<'_>) -> Result<(), fastforward_core::Error> {
                self.0 = x.data().len();
                Ok(())
            }
        }
        let activations = &mut self.slots[self.n_weights..];
        let Some(batch) = samples.batches().next().transpose()? else { return Ok(()) };
        let rows = batch.len().max(1);
        let mut counters: Vec<Counter> = activations.iter().map(|_| Counter(0)).collect();
        let sites = job.tree.sites();
        let watched = activations.iter().zip(&mut counters);
        let watched =
            watched.map(|(slot, observer)| Watched { site: &sites[slot.site], observer }).collect();
        calibrate(&job.model, watched, [Ok(batch.inputs)], &job.run_options(), &mut ())?;
        for (slot, Counter(elements)) in activations.iter_mut().zip(counters) {
            slot.elements = elements.div_ceil(rows) as u64;
        }
        if !activations.is_empty() && activations.iter().all(|slot| slot.elements == 0) {
            return Err(Error::new(
                ErrorKind::Input,
                "the activations hold no elements, so there is nothing to sweep",
            ));
        }
        Ok(())
    }

    /// Makes the quantizers of all widths, with ranges as the rules find them for that width.
    pub(super) fn set_ranges(
        &mut self,
        job: &Job,
        samples: Option<&Samples>,
        progress: &dyn Progress,
    ) -> Result<()> {
        for kind in [SweptSlots::Weights, SweptSlots::Activations] {
            let range = self.range(kind);
            let Some(first) = self.slots[range.clone()].first() else { continue };
            for bits in self.bits(first).to_vec() {
                let work = job.on(job.model.clone())?;
                let set: Vec<&Site> = work.tree.set_slots().collect();
                for site in set {
                    site.slot.replace(Arc::new(QuantizerStub));
                }
                let sites = work.tree.sites();
                for slot in &self.slots[range.clone()] {
                    sites[slot.site].slot.replace(slot.at_width(bits)?);
                }
                work.calibrate(samples, progress)?;
                for slot in &mut self.slots[range.clone()] {
                    slot.quantizers.push(sites[slot.site].slot.quantizer());
                }
            }
        }
        Ok(())
    }
}

fn is_activation(role: Role) -> bool {
    matches!(role, Role::Input | Role::Output)
}

fn nothing_to_sweep(nothing: &str, query: Option<&str>, mut left_out: Vec<String>) -> Error {
    let what = match query {
        Some(query) => format!("`{query}` matches no {nothing} with a linear quantizer"),
        None => format!("the rules give no {nothing} a linear quantizer"),
    };
    // Without a query, that slots of the other kind are left out goes without saying.
    left_out.retain(|reason| query.is_some() || reason.ends_with("not linear"));
    left_out.truncate(3);
    let why = match left_out.as_slice() {
        [] => String::new(),
        left_out => format!(": {}", left_out.join(", ")),
    };
    Error::new(ErrorKind::Input, format!("{what}, so there is nothing to sweep{why}"))
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
