//! The automaton made deterministic, as far as a walk needs it.

use crate::automaton::{Automaton, FragmentId, StateId};
use crate::hash::{FACTOR, FastMap};
use crate::{DependsOn, Facts, Kind, NameFragment};

/// The number of a set of states.
pub(super) type SetId = u32;

/// The empty set: nothing below can match.
pub(super) const DEAD: SetId = 0;

/// How much is remembered before starting afresh. Tests of this crate forget all the time.
const MAX_KINDS: usize = if cfg!(test) { 1 } else { 1 << 14 };
const MAX_TRUTHS: usize = if cfg!(test) { 2 } else { 1 << 14 };
const MAX_TRANSITIONS: usize = if cfg!(test) { 3 } else { 1 << 18 };
/// The most states in all sets, and queries in all lists of matches, together.
const MAX_SET_STATES: usize = if cfg!(test) { 8 } else { 1 << 22 };

/// What was learned on a walk so far. Forgetting any of it costs time only.
pub(super) struct Matcher<'a> {
    automaton: &'a Automaton,
    /// The fragments, by what their answers depend on: on the class and the tags alone, on the name too, or on more.
    of_kind: Vec<FragmentId>,
    of_name: Vec<FragmentId>,
    asked: Vec<FragmentId>,
    /// Those among `of_name` that are plain names, by the name.
    plain_names: FastMap<Box<str>, FragmentId>,

    /// The answers that depend on the kind, as bits.
    kinds: FastMap<Kind, Box<[u64]>>,
    /// Which fragments match, as bits: a truth.
    truths: Interned<u64>,
    /// Sorted states, closed under what may match no level.
    sets: Interned<StateId>,
    matches: Interned<u32>,
    transitions: FastMap<(SetId, u32), (SetId, u32)>,
    /// The steps taken last, by hash; those from [`DEAD`] are none.
    recent: Vec<Recent>,
    /// The names of the steps whose names are more than their words.
    long_names: Vec<String>,
    /// Which of the steps that share a place is forgotten next.
    next_way: usize,

    bits: Vec<u64>,
    builder: SetBuilder,
    matched: Vec<u32>,
}

impl<'a> Matcher<'a> {
    pub(super) fn new(automaton: &'a Automaton) -> Self {
        let (mut of_kind, mut of_name, mut asked) = (Vec::new(), Vec::new(), Vec::new());
        let mut plain_names = FastMap::default();
        for (id, fragment) in (0..).zip(automaton.fragments()) {
            match fragment.depends_on() {
                DependsOn::ClassAndTags => of_kind.push(id),
                DependsOn::Anything => asked.push(id),
                _ => match fragment.downcast_ref::<NameFragment>() {
                    // Equal fragments have one number.
                    Some(plain) => drop(plain_names.insert(plain.name().into(), id)),
                    None => of_name.push(id),
                },
            }
        }
        let mut matcher = Matcher {
            automaton,
            of_kind,
            of_name,
            asked,
            plain_names,
            kinds: FastMap::default(),
            truths: Interned::default(),
            sets: Interned::default(),
            matches: Interned::default(),
            transitions: FastMap::default(),
            recent: vec![Recent::NONE; NUM_RECENT],
            long_names: Vec::new(),
            next_way: 0,
            bits: vec![0; automaton.fragments().len().div_ceil(64)],
            builder: SetBuilder::new(automaton.num_states()),
            matched: Vec::new(),
        };
        matcher.sets.intern(&[]);
        matcher.matches.intern(&[]);
        matcher
    }

    /// The set of states at the root.
    pub(super) fn start(&mut self) -> SetId {
        for &state in self.automaton.starts() {
            self.builder.add(self.automaton, state);
        }
        self.builder.take(|states| self.sets.intern(states))
    }

    /// The set of states below a child, given those beside it (the last of `path`), and the number of the list of
    /// queries that match the child.
    ///
    /// The sets on `path` may be renumbered.
    #[inline]
    pub(super) fn step<F: Facts>(
        &mut self,
        path: &mut [SetId],
        name: &str,
        node: &F,
    ) -> (SetId, u32) {
        let Some(&set) = path.last() else { return (DEAD, 0) };
        if set == DEAD {
            return (DEAD, 0);
        }
        if !self.asked.is_empty() {
            let truth = self.truth(name, node);
            return self.step_by_truth(path, set, truth);
        }
        let (words, kind) = (Words::of(name), node.kind());
        let first = words.place(set);
        for (at, recent) in (first..).zip(&self.recent[first..first + WAYS]) {
            if (recent.words, recent.set, recent.kind) == (words, set, kind)
                && (words.are_whole_name() || self.long_names[at] == name)
            {
                return recent.result;
            }
        }
        self.step_anew(path, name, node, first, Recent { words, set, kind, result: (DEAD, 0) })
    }

    /// A step that is not among the recent ones, which it joins at one of the places from `first` on.
    #[cold]
    fn step_anew(
        &mut self,
        path: &mut [SetId],
        name: &str,
        node: &dyn Facts,
        first: usize,
        mut step: Recent,
    ) -> (SetId, u32) {
        let truth = self.truth(name, node);
        step.result = self.step_by_truth(path, step.set, truth);
        // The set may have been renumbered on the way.
        step.set = path.last().copied().unwrap_or(DEAD);
        let ways = &self.recent[first..first + WAYS];
        let at = first + ways.iter().position(|one| one.set == DEAD).unwrap_or(self.next_way);
        self.next_way = (self.next_way + 1) % WAYS;
        self.recent[at] = step;
        if !step.words.are_whole_name() {
            if self.long_names.is_empty() {
                self.long_names.resize(NUM_RECENT, String::new());
            }
            name.clone_into(&mut self.long_names[at]);
        }
        step.result
    }

    fn step_by_truth(&mut self, path: &mut [SetId], set: SetId, truth: u32) -> (SetId, u32) {
        match self.transitions.get(&(set, truth)) {
            Some(&known) => known,
            None => self.learn(path, truth),
        }
    }

    /// The queries in a list of matches.
    pub(super) fn matches(&self, list: u32) -> &[u32] {
        self.matches.get(list)
    }

    /// Which fragments match the child.
    fn truth(&mut self, name: &str, node: &dyn Facts) -> u32 {
        let kind = node.kind();
        match self.kinds.get(&kind) {
            Some(known) => self.bits.copy_from_slice(known),
            None => {
                self.bits.fill(0);
                for &id in &self.of_kind {
                    set_bit(&mut self.bits, id, self.automaton.matches(id, name, node));
                }
                if self.kinds.len() >= MAX_KINDS {
                    self.kinds.clear();
                }
                self.kinds.insert(kind, self.bits.as_slice().into());
            }
        }
        if let Some(&id) = self.plain_names.get(name) {
            set_bit(&mut self.bits, id, true);
        }
        for &id in self.of_name.iter().chain(&self.asked) {
            set_bit(&mut self.bits, id, self.automaton.matches(id, name, node));
        }
        if self.truths.len() >= MAX_TRUTHS {
            self.forget_truths();
        }
        self.truths.intern(&self.bits)
    }

    fn forget_truths(&mut self) {
        self.truths.clear();
        self.transitions.clear();
    }

    /// Works out a transition from the last set of `path`.
    #[cold]
    fn learn(&mut self, path: &mut [SetId], truth: u32) -> (SetId, u32) {
        let remembered = self.sets.total + self.matches.total;
        if remembered > MAX_SET_STATES || self.transitions.len() >= MAX_TRANSITIONS {
            self.forget_sets(path);
        }
        let set = path[path.len() - 1];
        let bits = self.truths.get(truth);
        self.matched.clear();
        for &state in self.sets.get(set) {
            for arm in self.automaton.arms(state) {
                if bits[arm.fragment as usize / 64] & 1 << (arm.fragment % 64) == 0 {
                    continue;
                }
                self.matched.extend(arm.accepts);
                for next in [arm.again, arm.rest].into_iter().flatten() {
                    self.builder.add(self.automaton, next);
                }
            }
        }
        self.matched.sort_unstable();
        self.matched.dedup();
        let next = self.builder.take(|states| self.sets.intern(states));
        let found = (next, self.matches.intern(&self.matched));
        self.transitions.insert((set, truth), found);
        found
    }

    /// Forgets all sets but those on the path.
    fn forget_sets(&mut self, path: &mut [SetId]) {
        self.matches.clear();
        self.matches.intern(&[]);
        let old = std::mem::take(&mut self.sets);
        self.sets.intern(&[]);
        for set in path {
            *set = self.sets.intern(old.get(*set));
        }
        self.transitions.clear();
        self.recent.fill(Recent::NONE);
    }
}

/// How many steps are remembered by all that they depend on.
const NUM_RECENT: usize = 1 << 11;

/// How many of these are looked at for one step.
///
/// Which ones depends on the set and the name but not on the kind, which often comes from memory that nothing else
/// touched: so the processor can guess that it is the one found there, and go on before it has arrived.
const WAYS: usize = 4;

/// A step that was taken, and where it led.
#[derive(Clone, Copy)]
struct Recent {
    words: Words,
    set: SetId,
    kind: Kind,
    result: (SetId, u32),
}

impl Recent {
    const NONE: Self = Recent {
        words: Words { first: 0, last: 0, len: 0 },
        set: DEAD,
        kind: Kind::NOBODYS,
        result: (DEAD, 0),
    };
}

/// The beginning and the end of a name, and its length: all of a name of at most 16 bytes.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Words {
    first: u64,
    last: u64,
    len: u32,
}

impl Words {
    #[inline]
    fn of(name: &str) -> Self {
        let bytes = name.as_bytes();
        let four = |bytes: &[u8; 4]| u64::from(u32::from_le_bytes(*bytes));
        // The two parts may overlap: with the length they still tell all names apart.
        let (first, last) =
            if let (Some(first), Some(last)) = (bytes.first_chunk(), bytes.last_chunk()) {
                (u64::from_le_bytes(*first), u64::from_le_bytes(*last))
            } else if let (Some(first), Some(last)) = (bytes.first_chunk(), bytes.last_chunk()) {
                (four(first), four(last))
            } else {
                (bytes.iter().fold(0, |word, &byte| word << 8 | u64::from(byte)), 0)
            };
        Words { first, last, len: bytes.len() as u32 }
    }

    fn are_whole_name(self) -> bool {
        self.len <= 16
    }

    /// The first place in `recent` of steps from this set to a node of this name.
    #[inline]
    fn place(self, set: SetId) -> usize {
        let a = self.first ^ u64::from(set).rotate_left(40);
        let b = self.last ^ u64::from(self.len).rotate_left(32);
        let hash = a.wrapping_mul(FACTOR) ^ b.wrapping_mul(OTHER_FACTOR);
        // The high bits of a product depend on all bits of its factors.
        (hash >> (u64::BITS - (NUM_RECENT / WAYS).ilog2())) as usize * WAYS
    }
}

/// Another odd constant with a balanced bit pattern: the square root of 3, scaled.
const OTHER_FACTOR: u64 = 0xbb67_ae85_84ca_a73b;

fn set_bit(bits: &mut [u64], index: u32, value: bool) {
    bits[index as usize / 64] |= u64::from(value) << (index % 64);
}

/// Slices numbered so that equal slices have equal numbers.
struct Interned<T> {
    values: Vec<std::rc::Rc<[T]>>,
    ids: FastMap<std::rc::Rc<[T]>, u32>,
    /// The length of all slices together.
    total: usize,
}

impl<T> Default for Interned<T> {
    fn default() -> Self {
        Interned { values: Vec::new(), ids: FastMap::default(), total: 0 }
    }
}

impl<T: Copy + Eq + std::hash::Hash> Interned<T> {
    fn intern(&mut self, value: &[T]) -> u32 {
        if let Some(&id) = self.ids.get(value) {
            return id;
        }
        let id = self.values.len() as u32;
        let value: std::rc::Rc<[T]> = value.into();
        self.total += value.len();
        self.values.push(value.clone());
        self.ids.insert(value, id);
        id
    }

    fn get(&self, id: u32) -> &[T] {
        &self.values[id as usize]
    }

    fn len(&self) -> usize {
        self.values.len()
    }

    fn clear(&mut self) {
        *self = Interned::default();
    }
}

/// Collects states, and with each those that it stands for when its fragment matches no level.
struct SetBuilder {
    states: Vec<StateId>,
    /// For each state, the round in which it was last added.
    added: Vec<u32>,
    round: u32,
}

impl SetBuilder {
    fn new(num_states: usize) -> Self {
        SetBuilder { states: Vec::new(), added: vec![0; num_states], round: 1 }
    }

    fn add(&mut self, automaton: &Automaton, state: StateId) {
        let first = self.states.len();
        self.push(state);
        let mut next = first;
        while let Some(&state) = self.states.get(next) {
            next += 1;
            for arm in automaton.arms(state) {
                if let (Some(_), Some(rest)) = (arm.again, arm.rest) {
                    self.push(rest);
                }
            }
        }
    }

    fn push(&mut self, state: StateId) {
        let added = &mut self.added[state as usize];
        if *added != self.round {
            *added = self.round;
            self.states.push(state);
        }
    }

    /// Sorts the states, hands them over, and starts anew.
    fn take<T>(&mut self, use_states: impl FnOnce(&[StateId]) -> T) -> T {
        self.states.sort_unstable();
        let result = use_states(&self.states);
        self.states.clear();
        self.round = self.round.checked_add(1).unwrap_or_else(|| {
            self.added.fill(0);
            1
        });
        result
    }
}
