//! What each algorithm works on, before anything is computed.

use std::collections::HashSet;

use mpath::{SearchOptions, Selector};

use super::layer::{Layer, NoLayer, layers};
use super::offsets;
use crate::ErrorKind;
use crate::config::{Algorithm, AlgorithmStage, QuantConfigFile};
use crate::module::{Module, NodeRef, name_slots};
use crate::quantization::quant_init::model_context;
use crate::quantization::quantizer::default_tags;
use crate::quantization::{ParameterQuantizer, find_parameter_quantizers};
use crate::tensor::{Error, Result};

/// An algorithm, and the weights it is for.
///
/// ```
/// use fastforward::algorithms::Target;
/// use fastforward::config::{Algorithm, LayerInputs};
///
/// let target = Target::new(Algorithm::CoordinateDescent { inputs: LayerInputs::Quantized });
/// assert!(target.query.is_none()); // all weights that have a quantizer
/// ```
#[derive(Clone, Debug)]
pub struct Target {
    /// What is done.
    pub algorithm: Algorithm,
    /// Slots of weights, or their modules; `None` for all that have a quantizer. Algorithms that look at the whole network
    /// have none.
    pub query: Option<Selector>,
    /// Where it was asked for, for messages and reports: file and line, or the name of the algorithm.
    pub source: String,
}

impl Target {
    /// An algorithm for all weights that have a quantizer.
    pub fn new(algorithm: Algorithm) -> Self {
        let source = algorithm.name().to_owned();
        Self { algorithm, query: None, source }
    }

    /// The same for what a query matches.
    pub fn at(self, query: Selector) -> Self {
        Self { query: Some(query), ..self }
    }
}

/// The algorithms of a configuration, in the order of the file, with their queries as this model understands them.
///
/// # Errors
/// [`ErrorKind::Config`] with every query that does not parse; [`ErrorKind::Rule`] with every section that asks for
/// `correct_bias`, which only a graph has.
pub fn targets(config: &QuantConfigFile, model: &dyn Module) -> Result<Vec<Target>> {
    let (_, queries) = config.queries(model_context(model))?;
    let asked = config.algorithms.iter().filter(|entry| entry.correct_bias);
    let problems: Vec<String> = asked
        .map(|entry| {
            format!(
                "{}: `correct_bias` is for graph files; leave it out, and put `bias_correction` at the end",
                entry.source
            )
        })
        .collect();
    if !problems.is_empty() {
        let summary = "algorithms cannot work";
        return Err(crate::Error::of_problems(ErrorKind::Rule, summary, &problems).into());
    }
    let target = |(entry, query): (&crate::config::AlgorithmEntry, Option<Selector>)| Target {
        algorithm: entry.algorithm.clone(),
        query,
        source: entry.source.clone(),
    };
    Ok(config.algorithms.iter().zip(queries).map(target).collect())
}

/// What is worked on.
pub(super) struct Plan {
    /// The layers of the model, in declaration order.
    pub(super) layers: Vec<Layer>,
    /// All weights that have a quantizer.
    pub(super) weights: Vec<ParameterQuantizer>,
    /// One for each target.
    pub(super) works: Vec<Work>,
}

/// What one algorithm works on.
#[derive(Default)]
pub(super) struct Work {
    /// The slots of weights.
    pub(super) slots: Vec<String>,
    /// Slots it would be for but cannot work on, and why.
    pub(super) kept: Vec<String>,
}

/// What each target works on.
///
/// # Errors
/// [`ErrorKind::Rule`] with everything that cannot work.
pub(super) fn plan(model: &dyn Module, targets: &[Target]) -> Result<Plan> {
    name_slots(model);
    let (layers, others) = layers(model);
    let weights = find_parameter_quantizers(model, default_tags::weight())?;
    let mut plan = Plan { layers, weights, works: Vec::new() };
    let mut problems = Vec::new();
    for target in targets {
        let work = plan.work(model, target, &others).unwrap_or_else(|problem| {
            problems.push(format!("{}: {problem}", target.source));
            Work::default()
        });
        plan.works.push(work);
    }
    problems.extend(order_problems(targets, &plan.works));
    match problems.is_empty() {
        true => Ok(plan),
        false => {
            let summary = "algorithms cannot work";
            Err(crate::Error::of_problems(ErrorKind::Rule, summary, &problems).into())
        }
    }
}

impl Plan {
    /// The layer with this slot for its weight.
    pub(super) fn layer(&self, slot: &str) -> Option<&Layer> {
        self.layers.iter().find(|layer| layer.slot_name == slot)
    }

    fn work(
        &self,
        model: &dyn Module,
        target: &Target,
        others: &[NoLayer],
    ) -> std::result::Result<Work, String> {
        let name = target.algorithm.name();
        match target.algorithm.stage() {
            AlgorithmStage::Prepare => {
                return Err(format!(
                    "`{name}` comes before ranges; hand it to `prepare`, calibrate, and hand `tune` the others"
                ));
            }
            AlgorithmStage::Ranges
                if cfg!(not(feature = "graph"))
                    && !matches!(target.algorithm, Algorithm::Hqq { .. }) =>
            {
                let text = "asks which values meet; switch the feature `graph` on, or leave it out";
                return Err(format!("`{name}` {text}"));
            }
            AlgorithmStage::Ranges | AlgorithmStage::Correct
                if !matches!(target.algorithm, Algorithm::Hqq { .. }) =>
            {
                return match target.query {
                    Some(_) => {
                        Err(format!("`{name}` looks at the whole network; leave out the query"))
                    }
                    None => Ok(Work::default()),
                };
            }
            AlgorithmStage::Ranges | AlgorithmStage::Correct | AlgorithmStage::Weights => {}
        }
        if let Algorithm::AdaRound { block_layers: 2.., .. } = target.algorithm {
            let text = "`block_layers` cuts a graph into blocks, which Rust code does not show; leave it out, and call \
                        `reconstruct_blocks`";
            return Err(text.to_owned());
        }
        let matched = target.query.as_ref().map(|query| matches(model, query)).transpose()?;
        let is_meant = |slot: &str| {
            let module = slot.rsplit_once('.').map_or("", |(module, _)| module);
            matched.as_ref().is_none_or(|names| names.contains(slot) || names.contains(module))
        };
        let mut work = Work::default();
        let mut add = |slot: &str, problem: Option<String>| match problem {
            None => work.slots.push(slot.to_owned()),
            Some(reason) => work.kept.push(format!("`{slot}`: {reason}")),
        };
        if matches!(target.algorithm, Algorithm::Hqq { .. }) {
            for weight in self.weights.iter().filter(|one| is_meant(&one.slot_name)) {
                let mut same = self.weights.iter().filter(|one| one.slot.id() == weight.slot.id());
                let other = same.find(|one| one.slot_name != weight.slot_name);
                let shared = other.map(|one| format!("its quantizer is also `{}`", one.slot_name));
                add(&weight.slot_name, shared.or_else(|| offsets::problem(&weight.slot)));
            }
        } else {
            for layer in self.layers.iter().filter(|layer| is_meant(&layer.slot_name)) {
                add(&layer.slot_name, layer.quantizer().err().map(|error| error.to_string()));
            }
            for other in others.iter().filter(|other| is_meant(&other.slot_name)) {
                add(&other.slot_name, Some(other.reason.clone()));
            }
        }
        if work.slots.is_empty() {
            let what = match &target.query {
                Some(query) => format!("`{query}` matches no weight that"),
                None => "there is no weight that".to_owned(),
            };
            let reasons = match work.kept.as_slice() {
                [] => "none of them has a quantizer".to_owned(),
                kept => kept.join("; "),
            };
            return Err(format!("{what} `{name}` can work on: {reasons}"));
        }
        Ok(work)
    }
}

/// The full names that a query matches, or why there is none.
pub(super) fn matches(
    model: &dyn Module,
    query: &Selector,
) -> std::result::Result<HashSet<String>, String> {
    let root = NodeRef::Module(model);
    let context = model_context(model);
    let found = mpath::search(query, root, &SearchOptions::new(&context))
        .map_err(|error| error.to_string())?;
    if found.is_empty() {
        let diagnosis = mpath::diagnose(query, root).map_err(|error| error.to_string())?;
        return Err(diagnosis.map_or_else(
            || format!("`{query}` matches nothing"),
            |diagnosis| diagnosis.to_string(),
        ));
    }
    Ok(found.iter().flat_map(|one| one.full_names().map(str::to_owned)).collect())
}

/// Ranges that are chosen for codes that were.
fn order_problems(targets: &[Target], works: &[Work]) -> Vec<String> {
    let mut problems = Vec::new();
    let chooses_codes = |algorithm: &Algorithm| {
        matches!(
            algorithm,
            Algorithm::Gptq { .. }
                | Algorithm::AdaRound { .. }
                | Algorithm::CoordinateDescent { .. }
        )
    };
    for (at, (target, work)) in targets.iter().zip(works).enumerate() {
        let is_late = target.algorithm.stage() == AlgorithmStage::Weights
            && !chooses_codes(&target.algorithm);
        let mut before = targets[..at].iter().zip(works).filter(|_| is_late);
        let found = before.find(|(other, others)| {
            chooses_codes(&other.algorithm)
                && others.slots.iter().any(|slot| work.slots.contains(slot))
        });
        if let Some((other, _)) = found {
            problems.push(format!(
                "{}: `{}` chooses ranges of weights whose codes `{}` ({}) has chosen; put it before",
                target.source, target.algorithm, other.algorithm, other.source
            ));
        }
    }
    problems
}

/// The layers that a forward reaches, of those that are worked on; and why the others are not.
pub(super) fn unreached(layer: &Layer) -> String {
    format!(
        "`{}`: the forward of the first batch does not call its operator on this thread",
        layer.slot_name
    )
}

/// An error about what remains to be worked on.
pub(super) fn nothing_left(target: &Target, kept: &[String]) -> Error {
    let text = format!(
        "{}: no weight remains that `{}` can work on: {}",
        target.source,
        target.algorithm,
        kept.join("; ")
    );
    Error::new(ErrorKind::Rule, text)
}
