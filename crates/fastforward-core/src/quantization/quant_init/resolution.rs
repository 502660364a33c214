//! Which rule decides which slot, and what is wrong with the rules.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, OnceLock};

use serde::Serialize;

use super::rule::{Expect, Rule};
use crate::quantization::quantizer::{Quantizer, QuantizerSlot};
use crate::{Error, ErrorKind};

/// What the rules of a configuration mean for a model. Making it changes nothing.
#[derive(Clone, Debug)]
pub struct Resolution {
    /// Every slot of the model, each once, in declaration order.
    pub slots: Vec<SlotResolution>,
    /// What each rule came to, in the order of the rules.
    pub rules: Vec<RuleUse>,
    /// Where each name stands among the slots; made when a slot is first asked for by name.
    by_name: OnceLock<HashMap<String, usize>>,
}

/// Who decides one slot.
#[derive(Clone, Debug)]
pub struct SlotResolution {
    /// Every full name of the slot, in declaration order.
    pub names: Vec<String>,
    /// The slot.
    pub slot: QuantizerSlot,
    /// The quantizer that stood there when the rules were resolved.
    pub seen: Arc<dyn Quantizer>,
    /// The rule that decides the slot; `None` when no rule matches it.
    pub winner: Option<Candidate>,
    /// The rules that match the slot and lose, best first.
    pub losers: Vec<Candidate>,
}

/// A rule that matches a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Candidate {
    /// The position of the rule.
    pub rule: usize,
    /// Its precedence score for this slot.
    pub score: i64,
}

/// What a rule came to.
#[derive(Clone, Debug)]
pub struct RuleUse {
    /// What messages call the rule.
    pub label: String,
    /// How many slots it matches.
    pub matched: usize,
    /// How many slots it decides.
    pub won: usize,
    /// The rules that decide the slots it matches, when it decides none itself; in the order of the rules.
    pub shadowed_by: Vec<usize>,
    /// Where matching ended, when it matches nothing.
    pub diagnosis: Option<String>,
    /// Whether it is fine if the rule decides nothing.
    pub optional: bool,
    /// How many slots it should match.
    pub expect: Option<Expect>,
}

/// What is wrong with one rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RuleProblem {
    /// It matches nothing.
    Unmatched {
        /// What messages call the rule.
        rule: String,
        /// The step at which matching ended, the nearest path, and what was probably meant.
        diagnosis: String,
    },
    /// It matches slots, and other rules decide all of them.
    Shadowed {
        /// What messages call the rule.
        rule: String,
        /// How many slots it matches.
        matched: usize,
        /// What messages call the rules that win.
        by: Vec<String>,
    },
    /// It does not match as many slots as it expects.
    Unexpected {
        /// What messages call the rule.
        rule: String,
        /// What it expects.
        expected: Expect,
        /// How many slots it matches.
        matched: usize,
    },
}

impl fmt::Display for RuleProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unmatched { rule, diagnosis } => {
                write!(f, "rule {rule} matches no quantizer slot: {diagnosis}")
            }
            Self::Shadowed { rule, matched, by } => write!(
                f,
                "rule {rule} never wins: {} decided by {}; move it after them, raise its priority, or remove it",
                match matched {
                    1 => "the only slot it matches is".to_owned(),
                    count => format!("all {count} slots it matches are"),
                },
                by.join(" and ")
            ),
            Self::Unexpected { rule, expected, matched } => {
                write!(f, "rule {rule} matches {matched} slots, expected {expected}")
            }
        }
    }
}

impl SlotResolution {
    /// The name that is shown.
    pub fn name(&self) -> &str {
        &self.names[0]
    }
}

impl Resolution {
    /// What is wrong with the rules that must decide something, in the order of the rules.
    pub fn problems(&self) -> Vec<RuleProblem> {
        let mut problems = Vec::new();
        for usage in &self.rules {
            let rule = usage.label.clone();
            if !usage.optional && usage.matched == 0 {
                let diagnosis = usage.diagnosis.clone().unwrap_or_default();
                problems.push(RuleProblem::Unmatched { rule: rule.clone(), diagnosis });
            } else if !usage.optional && usage.won == 0 && usage.matched > 0 {
                let by = usage.shadowed_by.iter().map(|&at| self.rules[at].label.clone()).collect();
                problems.push(RuleProblem::Shadowed {
                    rule: rule.clone(),
                    matched: usage.matched,
                    by,
                });
            }
            if let Some(expected) = usage.expect
                && !expected.holds(usage.matched)
            {
                problems.push(RuleProblem::Unexpected { rule, expected, matched: usage.matched });
            }
        }
        problems
    }

    /// Refuses rules that are wrong: what a rules file and the command line do. In the library an unmatched rule is
    /// only reported.
    ///
    /// # Errors
    /// [`ErrorKind::Rule`] with every problem.
    pub fn check(&self) -> Result<(), Error> {
        let problems: Vec<String> = self.problems().iter().map(ToString::to_string).collect();
        if problems.is_empty() {
            return Ok(());
        }
        Err(Error::of_problems(ErrorKind::Rule, "rules are wrong", &problems))
    }

    /// A resolution of these parts.
    pub(super) fn new(slots: Vec<SlotResolution>, rules: Vec<RuleUse>) -> Self {
        Self { slots, rules, by_name: OnceLock::new() }
    }

    /// The slot of this name; any of its names will do.
    pub fn slot(&self, name: &str) -> Option<&SlotResolution> {
        let by_name = self.by_name.get_or_init(|| {
            let names = self.slots.iter().enumerate();
            names
                .flat_map(|(at, slot)| slot.names.iter().map(move |name| (name.clone(), at)))
                .collect()
        });
        by_name.get(name).and_then(|&at| self.slots.get(at))
    }

    /// Counts, per rule, what it matched and won.
    pub(super) fn tally(slots: &[SlotResolution], rules: &[Rule]) -> Vec<RuleUse> {
        let mut uses: Vec<RuleUse> = rules
            .iter()
            .map(|rule| RuleUse {
                label: rule.label(),
                matched: 0,
                won: 0,
                shadowed_by: Vec::new(),
                diagnosis: None,
                optional: rule.optional,
                expect: rule.expect,
            })
            .collect();
        for slot in slots {
            let Some(winner) = slot.winner else { continue };
            uses[winner.rule].matched += 1;
            uses[winner.rule].won += 1;
            for loser in &slot.losers {
                uses[loser.rule].matched += 1;
                if !uses[loser.rule].shadowed_by.contains(&winner.rule) {
                    uses[loser.rule].shadowed_by.push(winner.rule);
                }
            }
        }
        for usage in &mut uses {
            if usage.won > 0 {
                usage.shadowed_by.clear();
            }
            usage.shadowed_by.sort_unstable();
        }
        uses
    }
}
