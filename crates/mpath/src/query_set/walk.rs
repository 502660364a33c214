//! Walking a tree without recursion.

use std::collections::HashSet;
use std::ops::Range;

use super::matcher::{DEAD, Matcher, SetId};
use super::{Path, Visit};
use crate::limits::{MAX_DEPTH, MAX_NODES};
use crate::tree::{too_deep, too_many_nodes};
use crate::{Error, Node};

/// The state of a walk. Its buffers grow to the size of the widest path; then nothing is allocated any more.
pub(super) struct Walk<'a, N> {
    matcher: Matcher<'a>,
    frames: Vec<Frame<N>>,
    /// The state sets of the frames, apart because the matcher may renumber them.
    sets: Vec<SetId>,
    /// The children of all nodes on the path, in order.
    children: Vec<Child<N>>,
    /// Their names.
    names: String,
    /// Where among these the names on the path are.
    path: Vec<Range<usize>>,
}

/// A node on the path whose children are being visited.
struct Frame<N> {
    node: N,
    identity: Option<usize>,
    /// The children still to visit.
    children: Range<usize>,
    /// What to shorten the buffers to when they are done.
    children_before: usize,
    names_before: usize,
}

#[derive(Clone)]
struct Child<N> {
    node: N,
    identity: Option<usize>,
    name: Range<usize>,
}

impl<'a, N: Node> Walk<'a, N> {
    pub(super) fn new(matcher: Matcher<'a>) -> Self {
        Walk {
            matcher,
            frames: Vec::new(),
            sets: Vec::new(),
            children: Vec::new(),
            names: String::new(),
            path: Vec::new(),
        }
    }

    pub(super) fn run(
        mut self,
        root: N,
        only_matches: bool,
        mut visit: impl FnMut(&Visit<'_, N>),
    ) -> Result<(), Error> {
        let start = self.matcher.start();
        self.descend(root, root.identity(), start);
        let mut visited: usize = 0;
        while let Some(frame) = self.frames.last_mut() {
            let parent = frame.node;
            let Some(index) = frame.children.next() else {
                self.children.truncate(frame.children_before);
                self.names.truncate(frame.names_before);
                self.frames.pop();
                self.sets.pop();
                self.path.pop();
                continue;
            };
            visited += 1;
            if visited > MAX_NODES {
                return Err(too_many_nodes());
            }
            let Child { node, identity, name: range } = self.children[index].clone();
            let name = &self.names[range.clone()];
            if self.frames.len() > MAX_DEPTH {
                return Err(too_deep(name));
            }
            let (next, matches) = self.matcher.step(&mut self.sets, name, &node);
            self.path.push(range);
            let matches = self.matcher.matches(matches);
            if !only_matches || !matches.is_empty() {
                let path = Path { names: &self.names, path: &self.path };
                visit(&Visit { path, node, parent, matches });
            }
            if (only_matches && next == DEAD) || !self.descend(node, identity, next) {
                self.path.pop();
            }
        }
        Ok(())
    }

    /// Goes on with the children of a node; false if it has none, or stands below itself.
    fn descend(&mut self, node: N, identity: Option<usize>, set: SetId) -> bool {
        let Walk { children, names, .. } = self;
        let (children_before, names_before) = (children.len(), names.len());
        let mut num_shared = 0;
        node.for_each_child(&mut |name, child| {
            let start = names.len();
            names.push_str(name);
            let identity = child.identity();
            num_shared += usize::from(identity.is_some());
            children.push(Child { node: child, identity, name: start..names.len() });
        });
        if children.len() == children_before {
            return false;
        }
        let is_below_itself =
            identity.is_some() && self.frames.iter().any(|frame| frame.identity == identity);
        if is_below_itself {
            self.children.truncate(children_before);
            self.names.truncate(names_before);
            return false;
        }
        if num_shared > 1 {
            self.drop_repeated(children_before);
        }
        let children = children_before..self.children.len();
        self.frames.push(Frame { node, identity, children, children_before, names_before });
        self.sets.push(set);
        true
    }

    /// Drops the children from here on that were there under another name.
    fn drop_repeated(&mut self, first: usize) {
        const FEW: usize = 16;
        let siblings = &self.children[first..];
        let has_repeated = if siblings.len() <= FEW {
            (1..siblings.len()).any(|i| {
                let identity = siblings[i].identity;
                identity.is_some() && siblings[..i].iter().any(|child| child.identity == identity)
            })
        } else {
            let mut seen = HashSet::new();
            siblings
                .iter()
                .filter_map(|child| child.identity)
                .any(|identity| !seen.insert(identity))
        };
        if has_repeated {
            let mut seen = HashSet::new();
            let mut kept = self.children.split_off(first);
            kept.retain(|child| child.identity.is_none_or(|identity| seen.insert(identity)));
            self.children.append(&mut kept);
        }
    }
}
