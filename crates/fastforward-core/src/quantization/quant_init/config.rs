//! An ordered list of rules.

use std::fmt;
use std::sync::Arc;

use mpath::{Aliases, Context, FilterResult, Query};

use super::resolution::{Resolution, SlotResolution};
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

    /// Whether scores are more than the rules' priorities.
    pub(super) fn has_own_score(&self) -> bool {
        self.score.is_some()
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
        let mut decided = Vec::new();
        let mut assignments = Vec::new();
        for (at, one) in resolution.slots().enumerate() {
            one.slot.set_label(one.name());
            if let Some(winner) = one.winner {
                let SlotResolution { slot, seen, .. } = one;
                let factory = &self.rules[winner.rule].factory;
                decided.push(at);
                assignments.push(Assignment { name: one.name(), slot, seen, factory });
            }
        }
        let outcomes = fill(&assignments, options)?;
        let outcomes = decided.into_iter().zip(outcomes).collect();
        Ok(Initialization { resolution, outcomes })
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
