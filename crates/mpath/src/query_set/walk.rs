//! Walking a tree without recursion.

use std::collections::HashSet;
use std::ops::Range;

use super::matcher::{DEAD, Matcher, SetId};
use super::part::Part;
use super::{Path, Visit};
use crate::limits::{MAX_DEPTH, MAX_NODES};
use crate::tree::{too_deep, too_many_nodes};
use crate::{Error, Node};

/// The state of a walk. Its buffers grow to the size of the widest path; then nothing is allocated any more.
pub(super) struct Walk<'a, N> {
    steps: Steps<'a>,
    frames: Vec<Frame<N>>,
    /// The children of the nodes on the path that are still to be visited, in order.
    waiting: Vec<Child<N>>,
    /// Their names.
    names: String,
    siblings: Siblings,
    /// What of the tree is walked.
    part: Part,
}

/// What the visit of one node needs.
struct Steps<'a> {
    matcher: Matcher<'a>,
    /// The state sets of the frames, apart because the matcher may renumber them.
    sets: Vec<SetId>,
    /// The names of the nodes on the path, joined by dots, and where each one ends.
    joined: String,
    ends: Vec<usize>,
    visited: usize,
    only_matches: bool,
}

/// A node on the path whose children are being visited.
struct Frame<N> {
    node: N,
    identity: Option<usize>,
    /// The children still to visit.
    waiting: Range<usize>,
    /// What to shorten the buffers to when they are done.
    waiting_before: usize,
    names_before: usize,
}

#[derive(Clone)]
struct Child<N> {
    node: N,
    identity: Option<usize>,
    /// Whether it is an ancestor of the children between which the tree is cut, or their parent.
    is_above_cut: bool,
    name: Range<usize>,
}

impl<'a, N: Node> Walk<'a, N> {
    pub(super) fn new(matcher: Matcher<'a>, only_matches: bool, part: Part) -> Self {
        Walk {
            steps: Steps {
                matcher,
                sets: Vec::new(),
                joined: String::new(),
                ends: Vec::new(),
                visited: 0,
                only_matches,
            },
            frames: Vec::new(),
            waiting: Vec::new(),
            names: String::new(),
            siblings: Siblings::default(),
            part,
        }
    }

    /// Walks; returns how many nodes were visited.
    pub(super) fn run(
        mut self,
        root: N,
        mut visit: impl FnMut(&Visit<'_, N>),
    ) -> Result<usize, Error> {
        let start = self.steps.matcher.start();
        self.descend(root, (root.identity(), true), start, &mut visit)?;
        while let Some(frame) = self.frames.last_mut() {
            let Some(index) = frame.waiting.next() else {
                self.waiting.truncate(frame.waiting_before);
                self.names.truncate(frame.names_before);
                self.frames.pop();
                self.steps.sets.pop();
                self.steps.leave();
                continue;
            };
            let parent = frame.node;
            let Child { node, identity, is_above_cut, name } = self.waiting[index].clone();
            let name = &self.names[name];
            let next = match is_above_cut && !self.part.is_first {
                // The first part visits it.
                true => self.steps.pass(name, node),
                false => self.steps.visit(name, node, parent, &mut visit)?,
            };
            if node.is_leaf() || (self.steps.only_matches && next == DEAD) {
                continue;
            }
            self.steps.enter(name);
            if !self.descend(node, (identity, is_above_cut), next, &mut visit)? {
                self.steps.leave();
            }
        }
        Ok(self.steps.visited)
    }

    /// Goes on with the children of a node; false if nothing is left to be done there.
    ///
    /// Leaves are visited at once, up to the first child that is none.
    fn descend(
        &mut self,
        node: N,
        (identity, is_above_cut): (Option<usize>, bool),
        set: SetId,
        visit: &mut impl FnMut(&Visit<'_, N>),
    ) -> Result<bool, Error> {
        let Walk { steps, frames, waiting, names, siblings, part } = self;
        if identity.is_some() && frames.iter().any(|frame| frame.identity == identity) {
            return Ok(false); // It stands below itself.
        }
        let (waiting_before, names_before) = (waiting.len(), names.len());
        let is_too_deep = frames.len() >= MAX_DEPTH;
        let mut problem = None;
        siblings.clear();
        steps.sets.push(set);
        // Below the cut all children are visited.
        let (own, to_cut) = match is_above_cut {
            true => part.children(frames.len()),
            false => (0..usize::MAX, None),
        };
        let mut number = 0;
        node.for_each_child(&mut |name, child| {
            if problem.is_some() {
                return;
            }
            let at = number;
            number += 1;
            if is_too_deep {
                problem = Some(too_deep(name));
                return;
            }
            let identity = child.identity();
            if identity.is_some_and(|identity| !siblings.insert(identity)) {
                return;
            }
            if !own.contains(&at) {
                return; // Another part visits it.
            }
            let is_above_cut = to_cut == Some(at);
            if waiting.len() == waiting_before && child.is_leaf() {
                problem = steps.visit(name, child, node, visit).err();
            } else {
                let start = names.len();
                names.push_str(name);
                let name = start..names.len();
                waiting.push(Child { node: child, identity, is_above_cut, name });
            }
        });
        if let Some(problem) = problem {
            return Err(problem);
        }
        if waiting.len() == waiting_before {
            steps.sets.pop();
            return Ok(false);
        }
        let waiting = waiting_before..waiting.len();
        frames.push(Frame { node, identity, waiting, waiting_before, names_before });
        Ok(true)
    }
}

impl Steps<'_> {
    /// Goes past a child that another part visits, and returns the set of states below it.
    fn pass<N: Node>(&mut self, name: &str, node: N) -> SetId {
        self.matcher.step(&mut self.sets, name, &node).0
    }

    /// Visits a child of the node that the path ends at, and returns the set of states below it.
    #[inline]
    fn visit<N: Node>(
        &mut self,
        name: &str,
        node: N,
        parent: N,
        visit: &mut impl FnMut(&Visit<'_, N>),
    ) -> Result<SetId, Error> {
        self.visited += 1;
        if self.visited > MAX_NODES {
            return Err(too_many_nodes());
        }
        let (next, matches) = self.matcher.step(&mut self.sets, name, &node);
        let matches = self.matcher.matches(matches);
        if !self.only_matches || !matches.is_empty() {
            let path = Path { parent: &self.joined, ends: &self.ends, name };
            visit(&Visit { path, node, parent, matches });
        }
        Ok(next)
    }

    /// Makes the path one name longer.
    fn enter(&mut self, name: &str) {
        if !self.ends.is_empty() {
            self.joined.push('.');
        }
        self.joined.push_str(name);
        self.ends.push(self.joined.len());
    }

    /// Makes the path one name shorter.
    fn leave(&mut self) {
        self.ends.pop();
        self.joined.truncate(self.ends.last().copied().unwrap_or(0));
    }
}

/// The identities of the children of one node that were met so far.
#[derive(Default)]
struct Siblings {
    few: [usize; FEW],
    len: usize,
    many: HashSet<usize>,
}

/// How many are compared one by one.
const FEW: usize = 8;

impl Siblings {
    /// Whether the child was not met before.
    #[inline]
    fn insert(&mut self, identity: usize) -> bool {
        let Some(place) = self.few.get_mut(self.len) else {
            return self.insert_into_many(identity);
        };
        *place = identity;
        let is_new = !self.few[..self.len].contains(&identity);
        self.len += usize::from(is_new);
        is_new
    }

    #[cold]
    fn insert_into_many(&mut self, identity: usize) -> bool {
        if self.many.is_empty() {
            self.many.extend(self.few);
        }
        self.many.insert(identity)
    }

    #[inline]
    fn clear(&mut self) {
        self.len = 0;
        if !self.many.is_empty() {
            self.many.clear();
        }
    }
}
