//! Selectors as automata.
//!
//! Matching a selector step by step leaves a rest to match: a suffix of the selector, its beginning simplified. There
//! are about as many different rests as fragments. Each is a state; an [`Arm`] of a state is a test on a child and the
//! states in which a child that passes leaves the search.

mod lists;

use std::ops::Range;
use std::sync::Arc;

use crate::hash::FastMap;
use crate::{Error, Facts, Fragment, Selector};

pub(crate) use lists::Lists;
use lists::{ListId, NIL, Seg};

/// The number of a state.
pub(crate) type StateId = u32;

/// The number of a distinct fragment.
pub(crate) type FragmentId = u32;

/// One way to go on from a state: what a child must match, and what is left to match then.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Arm {
    pub(crate) fragment: FragmentId,
    /// If the fragment repeats: the state that has this arm alone.
    pub(crate) again: Option<StateId>,
    /// What is to be matched below a child that passes; none at the end of the selector.
    pub(crate) rest: Option<StateId>,
    /// The query that a child that passes matches, because the rest may match nothing.
    pub(crate) accepts: Option<u32>,
}

/// The states of several selectors, which share fragments but no states.
pub(crate) struct Automaton {
    lists: Lists,
    /// For each state, where its arms stand.
    states: Vec<Range<u32>>,
    arms: Vec<Arm>,
    /// The initial state of each selector.
    starts: Vec<StateId>,
}

impl Automaton {
    /// The automaton of these selectors, numbered as queries in order.
    pub(crate) fn new<'s>(
        selectors: impl IntoIterator<Item = &'s Selector>,
    ) -> Result<Self, Error> {
        let mut automaton = Automaton {
            lists: Lists::new(),
            states: Vec::new(),
            arms: Vec::new(),
            starts: Vec::new(),
        };
        for (query, selector) in (0u32..).zip(selectors) {
            selector.check_size()?;
            automaton.add(query, selector);
        }
        Ok(automaton)
    }

    fn add(&mut self, query: u32, selector: &Selector) {
        let list = self.lists.add(selector);
        let first = self.lists.simplify(list);
        let mut ids: FastMap<ListId, StateId> = FastMap::default();
        let mut todo: Vec<ListId> = Vec::new();
        let base = self.states.len();
        let mut intern = |list: ListId, todo: &mut Vec<ListId>| {
            *ids.entry(list).or_insert_with(|| {
                todo.push(list);
                (base + todo.len() - 1) as StateId
            })
        };
        self.starts.push(intern(first, &mut todo));
        let mut heads: Vec<ListId> = Vec::new();
        let mut next = 0;
        while next < todo.len() {
            let list = todo[next];
            next += 1;
            heads.clear();
            self.lists.heads(list, &mut heads);
            let first_arm = self.arms.len() as u32;
            for &head in &heads {
                let (Seg::Fragment(fragment), after) = self.lists.split(head) else {
                    unreachable!("heads are lists that begin with a fragment")
                };
                let (fragment, rest) = (*fragment, self.lists.simplify(after));
                let repeats = self.lists.fragment(fragment).repeats();
                self.arms.push(Arm {
                    fragment,
                    again: repeats.then(|| intern(head, &mut todo)),
                    rest: (rest != NIL).then(|| intern(rest, &mut todo)),
                    accepts: self.lists.matches_nothing(after).then_some(query),
                });
            }
            self.states.push(first_arm..self.arms.len() as u32);
        }
    }

    pub(crate) fn start(&self, query: usize) -> StateId {
        self.starts[query]
    }

    pub(crate) fn starts(&self) -> &[StateId] {
        &self.starts
    }

    pub(crate) fn arms(&self, state: StateId) -> &[Arm] {
        let arms = &self.states[state as usize];
        &self.arms[arms.start as usize..arms.end as usize]
    }

    pub(crate) fn num_states(&self) -> usize {
        self.states.len()
    }

    /// Whether a fragment matches a child of this name.
    pub(crate) fn matches(&self, fragment: FragmentId, name: &str, node: &dyn Facts) -> bool {
        self.fragments()[fragment as usize].matches(name, node)
    }

    pub(crate) fn fragments(&self) -> &[Arc<dyn Fragment>] {
        self.lists.fragments()
    }
}
