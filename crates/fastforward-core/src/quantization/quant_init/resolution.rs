//! Which rule decides which slot, and what is wrong with the rules.

use std::fmt;
use std::sync::{Arc, OnceLock};

use serde::Serialize;

use super::rule::{Expect, Rule};
use crate::module::SlotEntry;
use crate::quantization::quantizer::{Quantizer, QuantizerSlot, stub};
use crate::{Error, ErrorKind};

/// What the rules of a configuration mean for a model. Making it changes nothing.
#[derive(Clone, Debug)]
pub struct Resolution {
    /// What each rule came to, in the order of the rules.
    pub rules: Vec<RuleUse>,
    slots: Slots,
    /// The names of the slots, sorted; made when a slot is first asked for by name.
    by_name: OnceLock<Vec<(Name, usize)>>,
}

/// Who decides one slot.
#[derive(Clone, Copy, Debug)]
pub struct SlotResolution<'r> {
    /// The slot.
    pub slot: &'r QuantizerSlot,
    /// The quantizer that stood there when the rules were resolved.
    pub seen: &'r Arc<dyn Quantizer>,
    /// The rule that decides the slot; `None` when no rule matches it.
    pub winner: Option<Candidate>,
    /// The rules that match the slot and lose, best first.
    pub losers: &'r [Candidate],
    name: &'r str,
    more_names: &'r [(usize, Name)],
    all_names: &'r str,
}

/// A rule that matches a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
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

impl<'r> SlotResolution<'r> {
    /// The name that is shown.
    pub fn name(&self) -> &'r str {
        self.name
    }

    /// Every full name of the slot, in declaration order; the first is the one that is shown.
    pub fn names(&self) -> impl Iterator<Item = &'r str> + use<'r> {
        let all = self.all_names;
        std::iter::once(self.name).chain(self.more_names.iter().map(move |&(_, name)| name.of(all)))
    }

    /// The slot with its names.
    pub fn to_entry(&self) -> SlotEntry {
        SlotEntry { names: self.names().map(str::to_owned).collect(), slot: self.slot.clone() }
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
    pub(super) fn new(slots: Slots, rules: Vec<RuleUse>) -> Self {
        Self { rules, slots, by_name: OnceLock::new() }
    }

    /// Every slot of the model, each once, in declaration order.
    pub fn slots(&self) -> impl ExactSizeIterator<Item = SlotResolution<'_>> {
        (0..self.slots.records.len()).map(|at| self.slots.get(at))
    }

    /// The slot of this name; any of its names will do.
    pub fn slot(&self, name: &str) -> Option<SlotResolution<'_>> {
        let all = &self.slots.names;
        let by_name = self.by_name.get_or_init(|| {
            let first = self.slots.records.iter().map(|record| record.name).zip(0..);
            let more = self.slots.more_names.iter().map(|&(at, name)| (name, at));
            let mut sorted: Vec<(Name, usize)> = first.chain(more).collect();
            sorted.sort_by(|(a, _), (b, _)| a.of(all).cmp(b.of(all)));
            sorted
        });
        let end = by_name.partition_point(|(known, _)| known.of(all) <= name);
        let &(known, at) = by_name[..end].last()?;
        (known.of(all) == name).then(|| self.slots.get(at))
    }
}

/// The slots of a model and the rules that match them, with all text in one piece and every list of rules held once.
#[derive(Clone, Debug)]
pub(super) struct Slots {
    pub(super) records: Vec<Record>,
    pub(super) names: String,
    /// The names of slots beyond the first, by the position of the slot.
    pub(super) more_names: Vec<(usize, Name)>,
    /// Rules that match, best first.
    pub(super) lists: Vec<Box<[Candidate]>>,
}

/// A slot as it was met.
#[derive(Clone, Debug)]
pub(super) struct Record {
    pub(super) slot: QuantizerSlot,
    /// The quantizer that stood there; `None` for a stub.
    pub(super) seen: Option<Arc<dyn Quantizer>>,
    pub(super) name: Name,
    /// The number of the list of rules that match it.
    pub(super) list: u32,
}

/// Where a name stands in the text of all names.
#[derive(Clone, Copy, Debug)]
pub(super) struct Name {
    pub(super) start: usize,
    pub(super) len: usize,
}

impl Name {
    fn of(self, all: &str) -> &str {
        &all[self.start..self.start + self.len]
    }
}

impl Slots {
    fn get(&self, at: usize) -> SlotResolution<'_> {
        let Record { slot, seen, name, list } = &self.records[at];
        let (winner, losers) = match &*self.lists[*list as usize] {
            [] => (None, &[][..]),
            [winner, losers @ ..] => (Some(*winner), losers),
        };
        let first = self.more_names.partition_point(|&(slot, _)| slot < at);
        let more = &self.more_names[first..];
        let count = more.iter().take_while(|&&(slot, _)| slot == at).count();
        SlotResolution {
            slot,
            seen: seen.as_ref().unwrap_or_else(|| stub()),
            winner,
            losers,
            name: name.of(&self.names),
            more_names: &more[..count],
            all_names: &self.names,
        }
    }

    /// Counts, per rule, what it matched and won.
    pub(super) fn tally(&self, rules: &[Rule]) -> Vec<RuleUse> {
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
        let mut counts = vec![0; self.lists.len()];
        for record in &self.records {
            counts[record.list as usize] += 1;
        }
        for (list, count) in self.lists.iter().zip(counts).filter(|&(_, count)| count > 0) {
            let [winner, losers @ ..] = &**list else { continue };
            uses[winner.rule].matched += count;
            uses[winner.rule].won += count;
            for loser in losers {
                uses[loser.rule].matched += count;
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
