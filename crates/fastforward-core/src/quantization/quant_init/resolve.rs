//! Finding out which rule decides which slot, in one walk for all rules.

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasherDefault, Hasher};

use mpath::{FilterResult, Part, QuerySet, Visit};
use rayon::prelude::*;

use super::resolution::{Candidate, Name, Record, Resolution, Slots};
use super::rule::Rule;
use super::{QuantizationConfig, query_error};
use crate::Error;
use crate::module::{Module, NodeRef};

/// A part of a tree that a thread walks has so many nodes or more: below, learning what queries do costs more than it gains.
const MIN_NODES: usize = 10_000;

impl QuantizationConfig {
    /// Who decides each slot of `model`, found in one walk for all rules. Changes nothing.
    ///
    /// A large tree is cut into parts that the threads of the current rayon pool walk; the answer does not depend on how
    /// many there are.
    ///
    /// # Errors
    /// [`ErrorKind::Query`](crate::ErrorKind::Query) when the model has more nodes or levels than are walked.
    pub fn resolve(&self, model: &dyn Module) -> Result<Resolution, Error> {
        self.resolve_in_parts(model, rayon::current_num_threads(), MIN_NODES)
    }

    fn resolve_in_parts(
        &self,
        model: &dyn Module,
        count: usize,
        min_nodes: usize,
    ) -> Result<Resolution, Error> {
        let rules = self.rules();
        let set = QuerySet::new(rules.iter().map(|rule| &rule.query)).map_err(query_error)?;
        let parts = set.parts(NodeRef::Module(model), count, min_nodes);
        let found: Vec<Found> = match parts.as_slice() {
            [whole] => vec![self.find(model, &set, whole)?],
            parts => parts
                .par_iter()
                .map(|part| self.find(model, &set, part))
                .collect::<Result<_, Error>>()?,
        };
        let Found { mut records, names, mut lists, is_ascending, visited } = Found::join(found);
        mpath::limits::check_nodes(visited).map_err(query_error)?;
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

    /// The slots in a part of the tree.
    fn find(&self, model: &dyn Module, set: &QuerySet, part: &Part) -> Result<Found, Error> {
        let mut found = Found { is_ascending: true, ..Found::default() };
        let mut last_id = 0;
        let visited = set.walk_part(NodeRef::Module(model), part, |visit| {
            let Some(slot) = visit.node.as_slot() else { return };
            found.is_ascending &= last_id < slot.id();
            last_id = slot.id();
            let start = found.names.len();
            visit.path.write_full_name(&mut found.names);
            let list = match self.has_own_score() {
                false => found.lists.of_matches(visit.matches, self.rules()),
                true => found.lists.scored(self.candidates(visit)),
            };
            found.records.push(Record {
                slot: slot.clone(),
                seen: (!slot.is_stub()).then(|| slot.quantizer()),
                name: Name { start, len: found.names.len() - start },
                list,
            });
        });
        found.visited = visited.map_err(query_error)?;
        Ok(found)
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

/// What a walk met.
#[derive(Default)]
struct Found {
    records: Vec<Record>,
    /// All their names, one after the other.
    names: String,
    lists: Lists,
    /// Whether each slot lies in memory behind the one before, in the order in which the model was built, as a rule: then none
    /// occurs twice.
    is_ascending: bool,
    visited: usize,
}

impl Found {
    /// What parts met, one after the other, as one walk would have met it.
    fn join(parts: Vec<Self>) -> Self {
        let mut parts = parts.into_iter();
        let mut all = parts.next().unwrap_or_default();
        for part in parts {
            let lists: Vec<u32> =
                part.lists.lists.into_iter().map(|list| all.lists.scored(list.into())).collect();
            let before = all.names.len();
            all.names.push_str(&part.names);
            let last = all.records.last().map_or(0, |record| record.slot.id());
            all.is_ascending &= part.is_ascending
                && part.records.first().is_none_or(|record| last < record.slot.id());
            all.records.extend(part.records.into_iter().map(|record| Record {
                name: Name { start: before + record.name.start, ..record.name },
                list: lists[record.list as usize],
                ..record
            }));
            all.visited += part.visited;
        }
        all
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

#[cfg(test)]
mod tests {
    use mpath::Class;

    use super::*;
    use crate::module::{Visitor, VisitorMut, classes};
    use crate::quantization::LinearQuantizerConfig;
    use crate::quantization::quantizer::QuantizerSlot;

    /// Layers in a row, of two slots each.
    struct Row(Vec<(String, [QuantizerSlot; 2])>);

    const NAMES: [&str; 2] = ["weight_quantizer", "output_quantizer"];

    impl Module for Row {
        fn class(&self) -> Class {
            classes::module()
        }
        fn visit<'a>(&'a self, visitor: &mut dyn Visitor<'a>) {
            for (name, slots) in &self.0 {
                visitor.slot(&format!("{name}_{}", NAMES[0]), &slots[0]);
                visitor.slot(&format!("{name}_{}", NAMES[1]), &slots[1]);
            }
        }
        fn visit_mut(&mut self, _visitor: &mut dyn VisitorMut) {}
    }

    #[test]
    fn parts_decide_what_one_walk_does() {
        let layer =
            |at: usize| (at.to_string(), [QuantizerSlot::weight(&[8, 4]), QuantizerSlot::output()]);
        let mut layers: Vec<_> = (0..40).map(layer).collect();
        // A slot of two names, and one that lies in memory before the others.
        layers[33].1[1] = layers[2].1[1].clone();
        layers.swap(0, 39);
        let model = Row(layers);
        let mut config = QuantizationConfig::for_model(&model);
        for (query, bits) in [
            ("**/[quantizer:parameter/weight]", 8),
            ("[re:3.*]", 4),
            ("[re:.*output.*]", 6),
            ("[name:33_output_quantizer]", 5),
        ] {
            config.add_rule(query, LinearQuantizerConfig::new(bits)).unwrap();
        }
        let scored = config.clone().with_precedence_score(|rule, found| {
            i64::from(found.full_names().any(|name| name.contains('7'))) * rule.priority
        });
        for config in [config, scored] {
            let outline = |parts| {
                let found = config.resolve_in_parts(&model, parts, 1).unwrap();
                let slot = |slot: crate::quantization::quant_init::SlotResolution<'_>| {
                    let names: Vec<&str> = slot.names().collect();
                    format!("{names:?} {:?} {:?}", slot.winner, slot.losers)
                };
                found.slots().map(slot).collect::<Vec<_>>()
            };
            let whole = outline(1);
            assert_eq!(whole.len(), 79);
            for parts in 2..6 {
                assert_eq!(outline(parts), whole, "{parts} parts");
            }
        }
    }
}
