//! Finding out which rule decides which slot, in one walk for all rules.

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasherDefault, Hasher};

use mpath::{FilterResult, QuerySet, Visit};

use super::resolution::{Candidate, Name, Record, Resolution, Slots};
use super::rule::Rule;
use super::{QuantizationConfig, query_error};
use crate::Error;
use crate::module::{Module, NodeRef};

impl QuantizationConfig {
    /// Who decides each slot of `model`, found in one walk for all rules. Changes nothing.
    ///
    /// # Errors
    /// [`ErrorKind::Query`](crate::ErrorKind::Query) when the model has more nodes or levels than are walked.
    pub fn resolve(&self, model: &dyn Module) -> Result<Resolution, Error> {
        let rules = self.rules();
        let set = QuerySet::new(rules.iter().map(|rule| &rule.query)).map_err(query_error)?;
        let mut lists = Lists::default();
        let mut names = String::new();
        let mut records: Vec<Record> = Vec::new();
        // Slots lie in memory in the order in which the model was built, as a rule: then none occurs twice.
        let mut is_ascending = true;
        let mut last_id = 0;
        set.walk(NodeRef::Module(model), |visit| {
            let Some(slot) = visit.node.as_slot() else { return };
            is_ascending &= last_id < slot.id();
            last_id = slot.id();
            let start = names.len();
            visit.path.write_full_name(&mut names);
            let list = match self.has_own_score() {
                false => lists.of_matches(visit.matches, rules),
                true => lists.scored(self.candidates(visit)),
            };
            records.push(Record {
                slot: slot.clone(),
                seen: (!slot.is_stub()).then(|| slot.quantizer()),
                name: Name { start, len: names.len() - start },
                list,
            });
        })
        .map_err(query_error)?;
        let more_names = match is_ascending {
            true => Vec::new(),
            false => merge_repeated(&mut records, &mut lists),
        };
        let slots = Slots { records, names, more_names, lists: lists.lists };
        let mut uses = slots.tally(rules);
        for (usage, rule) in uses.iter_mut().zip(rules) {
            if usage.matched == 0 {
                usage.diagnosis = Some(diagnose(rule, model)?);
            }
        }
        Ok(Resolution::new(slots, uses))
    }

    fn candidates(&self, visit: &Visit<'_, NodeRef<'_>>) -> Vec<Candidate> {
        if visit.matches.is_empty() {
            return Vec::new();
        }
        let result: FilterResult<NodeRef<'_>> = visit.to_result();
        let scored = visit.matches.iter().map(|&rule| {
            let rule = rule as usize;
            Candidate { rule, score: self.precedence_score(&self.rules()[rule], &result) }
        });
        scored.collect()
    }
}

/// Makes one record of those of one slot: the first, with all names and all rules.
///
/// Returns the names that are not the first of their slot.
fn merge_repeated(records: &mut Vec<Record>, lists: &mut Lists) -> Vec<(usize, Name)> {
    let mut ids: Vec<usize> = records.iter().map(|record| record.slot.id()).collect();
    ids.sort_unstable();
    let repeated: HashSet<usize> =
        ids.windows(2).filter(|pair| pair[0] == pair[1]).map(|pair| pair[0]).collect();
    let mut more_names = Vec::new();
    if repeated.is_empty() {
        return more_names;
    }
    let mut first: HashMap<usize, usize> = HashMap::new();
    let mut merged: Vec<Record> = Vec::with_capacity(records.len());
    for record in records.drain(..) {
        let id = record.slot.id();
        let at = match repeated.contains(&id) {
            true => *first.entry(id).or_insert(merged.len()),
            false => merged.len(),
        };
        match merged.get_mut(at) {
            None => merged.push(record),
            Some(known) => {
                more_names.push((at, record.name));
                known.list = lists.union(known.list, record.list);
            }
        }
    }
    *records = merged;
    // Stable: the names of a slot stay in order.
    more_names.sort_by_key(|&(at, _)| at);
    more_names
}

/// Lists of rules that match a slot, best first. Most slots share a few.
struct Lists {
    lists: Vec<Box<[Candidate]>>,
    numbers: HashMap<Box<[Candidate]>, u32>,
    /// The list of rules that match, where their priorities are all that counts.
    by_matches: HashMap<Box<[u32]>, u32, BuildHasherDefault<MatchesHasher>>,
}

impl Default for Lists {
    fn default() -> Self {
        let empty: Box<[Candidate]> = Box::default();
        let numbers = HashMap::from([(empty.clone(), 0)]);
        Self { lists: vec![empty], numbers, by_matches: HashMap::default() }
    }
}

impl Lists {
    fn of_matches(&mut self, matches: &[u32], rules: &[Rule]) -> u32 {
        if let Some(&known) = self.by_matches.get(matches) {
            return known;
        }
        let candidates = matches.iter().map(|&rule| {
            let rule = rule as usize;
            Candidate { rule, score: rules[rule].priority }
        });
        let number = self.scored(candidates.collect());
        self.by_matches.insert(matches.into(), number);
        number
    }

    fn scored(&mut self, mut candidates: Vec<Candidate>) -> u32 {
        candidates.sort_unstable_by_key(|known| std::cmp::Reverse((known.score, known.rule)));
        if let Some(&known) = self.numbers.get(candidates.as_slice()) {
            return known;
        }
        let number = self.lists.len() as u32;
        let list: Box<[Candidate]> = candidates.into();
        self.lists.push(list.clone());
        self.numbers.insert(list, number);
        number
    }

    /// A slot with several names counts once per rule, under the first name that matches.
    fn union(&mut self, first: u32, second: u32) -> u32 {
        let [first, second] = [first, second].map(|list| &self.lists[list as usize]);
        let mut all = first.to_vec();
        all.extend(second.iter().filter(|new| first.iter().all(|known| known.rule != new.rule)));
        self.scored(all)
    }
}

/// Hashes a few small numbers, which do not come from outside.
#[derive(Default)]
struct MatchesHasher(u64);

impl Hasher for MatchesHasher {
    fn finish(&self) -> u64 {
        // The high bits of a product depend on all bits of its factors; the table looks at the low ones, too.
        self.0 ^ self.0 >> 32
    }
    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.write_u64(u64::from_le_bytes(word));
        }
    }
    fn write_u64(&mut self, word: u64) {
        self.0 = (self.0.rotate_left(23) ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
    fn write_usize(&mut self, number: usize) {
        self.write_u64(number as u64);
    }
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
