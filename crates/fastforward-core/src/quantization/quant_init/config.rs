//! An ordered list of rules.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use mpath::{Aliases, Context, FilterResult, Query, QuerySet};

use super::resolution::{Candidate, Resolution, SlotResolution};
use super::rule::Rule;
use super::transaction::{Assignment, InitializeOptions, Outcome, fill};
use super::{Factory, model_context, query_error};
use crate::Error;
use crate::module::{Module, NodeRef};

/// Rules that decide which quantizer stands in which slot (spec §2.3).
///
/// Of the rules that match a slot the one with the highest [`precedence_score`](Self::precedence_score) wins; of equal
/// ones the rule added last.
#[derive(Clone)]
pub struct QuantizationConfig {
    rules: Vec<Rule>,
    context: Context,
    aliases: Aliases,
    score: Option<Arc<Score>>,
}

type Score = dyn for<'m> Fn(&Rule, &FilterResult<NodeRef<'m>>) -> i64 + Send + Sync;

impl QuantizationConfig {
    /// No rules. Queries may name what is in `context`.
    pub fn new(context: Context) -> Self {
        Self { rules: Vec::new(), context, aliases: Aliases::new(), score: None }
    }

    /// No rules. Queries may name the classes that occur in `model`, and its aliases.
    pub fn for_model(model: &dyn Module) -> Self {
        let aliases = model.aliases().cloned().unwrap_or_default();
        Self { aliases, ..Self::new(model_context(model)) }
    }

    /// The same with these aliases for the queries of rules added later.
    #[must_use]
    pub fn with_aliases(self, aliases: Aliases) -> Self {
        Self { aliases, ..self }
    }

    /// The same with this function as [`precedence_score`](Self::precedence_score).
    #[must_use]
    pub fn with_precedence_score<F>(self, score: F) -> Self
    where
        F: for<'m> Fn(&Rule, &FilterResult<NodeRef<'m>>) -> i64 + Send + Sync + 'static,
    {
        Self { score: Some(Arc::new(score)), ..self }
    }

    /// Adds a rule: `factory` makes the quantizers of the slots that `query` matches.
    ///
    /// # Errors
    /// [`ErrorKind::Query`](crate::ErrorKind::Query) when the query does not parse.
    pub fn add_rule<'q>(
        &mut self,
        query: impl Into<Query<'q>>,
        factory: impl Into<Factory>,
    ) -> Result<&mut Self, Error> {
        let query = match query.into() {
            Query::Selector(selector) => selector.clone(),
            Query::Text(text) => {
                self.context.query_with(text, &self.aliases).map_err(query_error)?
            }
        };
        Ok(self.add(Rule::new(query, factory)))
    }

    /// Adds a rule with all its settings.
    pub fn add(&mut self, rule: Rule) -> &mut Self {
        self.rules.push(rule);
        self
    }

    /// The rules, in the order they were added.
    pub fn rules(&self) -> &[Rule] {
        &self.rules
    }

    /// What the queries of the rules may name.
    pub fn context(&self) -> &Context {
        &self.context
    }

    /// The score of a rule for one slot it matches: the rule's priority, unless
    /// [`with_precedence_score`](Self::with_precedence_score) says otherwise. The highest wins.
    pub fn precedence_score(&self, rule: &Rule, result: &FilterResult<NodeRef<'_>>) -> i64 {
        match &self.score {
            Some(score) => score(rule, result),
            None => rule.priority,
        }
    }

    /// Who decides each slot of `model`, found in one walk for all rules. Changes nothing.
    ///
    /// # Errors
    /// [`ErrorKind::Query`](crate::ErrorKind::Query) when the model has more nodes or levels than are walked.
    pub fn resolve(&self, model: &dyn Module) -> Result<Resolution, Error> {
        let set = QuerySet::new(self.rules.iter().map(|rule| &rule.query)).map_err(query_error)?;
        let mut slots: Vec<SlotResolution> = Vec::new();
        let mut index: HashMap<usize, usize, SlotIds> = HashMap::default();
        set.walk(NodeRef::Module(model), |visit| {
            let Some(slot) = visit.node.as_slot() else { return };
            let at = *index.entry(slot.id()).or_insert_with(|| {
                slots.push(SlotResolution {
                    names: Vec::new(),
                    slot: slot.clone(),
                    seen: slot.quantizer(),
                    winner: None,
                    losers: Vec::new(),
                });
                slots.len() - 1
            });
            let SlotResolution { names, winner, losers, .. } = &mut slots[at];
            names.push(visit.path.full_name());
            for &rule in visit.matches {
                let rule = rule as usize;
                // A slot with several names counts once per rule, under the first name that matches.
                if winner.iter().chain(losers.iter()).all(|known| known.rule != rule) {
                    let score = match &self.score {
                        Some(score) => score(&self.rules[rule], &visit.to_result()),
                        None => self.rules[rule].priority,
                    };
                    // Which of them wins is decided when all are known.
                    let candidate = Candidate { rule, score };
                    match winner {
                        None => *winner = Some(candidate),
                        Some(_) => losers.push(candidate),
                    }
                }
            }
        })
        .map_err(query_error)?;
        for slot in slots.iter_mut().filter(|slot| !slot.losers.is_empty()) {
            slot.losers.extend(slot.winner.take());
            slot.losers.sort_unstable_by_key(|known| std::cmp::Reverse((known.score, known.rule)));
            slot.winner = Some(slot.losers.remove(0));
        }
        let mut rules = Resolution::tally(&slots, &self.rules);
        for (usage, rule) in rules.iter_mut().zip(&self.rules) {
            if usage.matched == 0 {
                usage.diagnosis = Some(diagnose(rule, model)?);
            }
        }
        Ok(Resolution::new(slots, rules))
    }

    /// Fills the slots of `model` as the rules say: every one, or none.
    ///
    /// Factories are called once per slot, in declaration order, after every slot was checked. Rules that decide
    /// nothing are reported in the result; call [`Resolution::check`] to refuse them. Every slot, decided or not, gets its
    /// full name as [label](crate::quantization::QuantizerSlot::label).
    ///
    /// # Errors
    /// As for [`resolve`](Self::resolve) and
    /// [`QuantizerCollection::initialize`](super::QuantizerCollection::initialize).
    pub fn initialize(
        &self,
        model: &dyn Module,
        options: InitializeOptions,
    ) -> Result<Initialization, Error> {
        let resolution = self.resolve(model)?;
        self.apply(resolution, options)
    }

    /// Fills the slots of an earlier resolution: with `safe`, each slot must still hold what it held then.
    ///
    /// # Errors
    /// As for [`initialize`](Self::initialize).
    pub fn apply(
        &self,
        resolution: Resolution,
        options: InitializeOptions,
    ) -> Result<Initialization, Error> {
        for slot in &resolution.slots {
            slot.slot.set_label(slot.name());
        }
        let decided: Vec<(usize, Candidate)> = resolution
            .slots
            .iter()
            .enumerate()
            .filter_map(|(at, slot)| Some((at, slot.winner?)))
            .collect();
        let assignments: Vec<Assignment<'_>> = decided
            .iter()
            .map(|&(at, winner)| {
                let slot = &resolution.slots[at];
                Assignment {
                    name: slot.name().to_owned(),
                    slot: slot.slot.clone(),
                    seen: Arc::clone(&slot.seen),
                    factory: &self.rules[winner.rule].factory,
                }
            })
            .collect();
        let outcomes = fill(&assignments, options)?;
        let outcomes =
            decided.into_iter().map(|(at, _)| at).zip(outcomes).collect::<Vec<(usize, Outcome)>>();
        Ok(Initialization { resolution, outcomes })
    }
}

/// Slots are told apart by addresses, which are spread well enough by one multiplication.
type SlotIds = std::hash::BuildHasherDefault<SlotIdHasher>;

#[derive(Default)]
struct SlotIdHasher(u64);

impl std::hash::Hasher for SlotIdHasher {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|&byte| self.write_usize(usize::from(byte)));
    }
    fn write_usize(&mut self, id: usize) {
        // The high bits of the product depend on all bits of the number; the table looks at the low ones.
        self.0 = (self.0 ^ id as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_right(32);
    }
}

/// What an initialization did.
#[derive(Clone, Debug)]
pub struct Initialization {
    /// Who decided each slot, and what is wrong with the rules.
    pub resolution: Resolution,
    /// For each slot that a rule decides, its position in the resolution and what became of it.
    pub outcomes: Vec<(usize, Outcome)>,
}

/// Why a rule matches no quantizer slot.
fn diagnose(rule: &Rule, model: &dyn Module) -> Result<String, Error> {
    let root = NodeRef::Module(model);
    if let Some(diagnosis) = mpath::diagnose(&rule.query, root).map_err(query_error)? {
        return Ok(diagnosis.to_string());
    }
    let mut first: Option<String> = None;
    let mut count = 0usize;
    QuerySet::new([&rule.query])
        .and_then(|set| {
            set.walk_matches(root, |visit| {
                count += 1;
                first.get_or_insert_with(|| visit.path.full_name());
            })
        })
        .map_err(query_error)?;
    let first = first.unwrap_or_default();
    Ok(format!(
        "it matches {count} modules, `{first}` the first, and none is a quantizer slot; `{}/*` would match their slots",
        rule.query
    ))
}

/// As the reference prints it: one rule per line.
impl fmt::Display for QuantizationConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.rules.is_empty() {
            return f.write_str("QuantizationConfig()");
        }
        writeln!(f, "QuantizationConfig(")?;
        for rule in &self.rules {
            writeln!(f, "  {rule}")?;
        }
        f.write_str(")")
    }
}

impl fmt::Debug for QuantizationConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
