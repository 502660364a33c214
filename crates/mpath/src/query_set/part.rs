//! A walk cut into parts, for threads.

use std::collections::VecDeque;
use std::ops::Range;

use crate::Node;

/// A part of a walk: some of the children of one node, with all below them.
///
/// The first part has everything before these in the order of the walk, too, the last one everything behind.
#[derive(Clone, Debug)]
pub struct Part {
    /// The way from the root to that node: the number of the child at each level.
    way: Vec<usize>,
    children: Range<usize>,
    pub(super) is_first: bool,
    is_last: bool,
}

/// A node has to have so many children to be cut between them.
const MIN_CHILDREN: usize = 16;
/// How many nodes are looked at for one that has.
const MAX_LOOKED_AT: usize = 256;
/// How many children are looked at to tell how many nodes there are.
const SAMPLES: usize = 8;

impl Part {
    /// Everything.
    pub(super) fn whole() -> Self {
        Self { way: Vec::new(), children: 0..usize::MAX, is_first: true, is_last: true }
    }

    /// At most `count` parts of about `min_nodes` nodes or more each, in the order of the walk.
    pub(super) fn cut<N: Node>(root: N, count: usize, min_nodes: usize) -> Vec<Self> {
        let whole = || vec![Self::whole()];
        if count < 2 {
            return whole();
        }
        let Some((way, children)) = widest(root) else { return whole() };
        let samples: Vec<N> =
            (0..SAMPLES).map(|at| children[at * children.len() / SAMPLES]).collect();
        let enough =
            count.saturating_mul(min_nodes).saturating_mul(SAMPLES) / children.len() + SAMPLES;
        let sampled: usize = samples.into_iter().map(|child| 1 + count_below(child, enough)).sum();
        let nodes = sampled.saturating_mul(children.len()) / SAMPLES;
        let count = count.min(nodes / min_nodes.max(1)).min(children.len());
        if count < 2 {
            return whole();
        }
        let first = |part: usize| part * children.len() / count;
        let parts = (0..count).map(|part| Self {
            way: way.clone(),
            children: first(part)..if part + 1 < count { first(part + 1) } else { usize::MAX },
            is_first: part == 0,
            is_last: part + 1 == count,
        });
        parts.collect()
    }

    /// The children that this part visits of the node at this depth on the way, and the one with which the way goes on.
    pub(super) fn children(&self, depth: usize) -> (Range<usize>, Option<usize>) {
        match self.way.get(depth) {
            None => (self.children.clone(), None),
            Some(&next) => {
                let from = if self.is_first { 0 } else { next };
                let to = if self.is_last { usize::MAX } else { next + 1 };
                (from..to, Some(next))
            }
        }
    }
}

/// The first node, level by level, with many children: the way to it, and these.
fn widest<N: Node>(root: N) -> Option<(Vec<usize>, Vec<N>)> {
    let mut waiting = VecDeque::from([(Vec::new(), root)]);
    for _ in 0..MAX_LOOKED_AT {
        let (way, node) = waiting.pop_front()?;
        let mut children = Vec::new();
        node.for_each_child(&mut |_, child| children.push(child));
        if children.len() >= MIN_CHILDREN {
            return Some((way, children));
        }
        // What may stand below itself is not gone into.
        let open = children.into_iter().enumerate();
        let open = open.filter(|(_, child)| !child.is_leaf() && child.identity().is_none());
        waiting.extend(open.map(|(at, child)| ([&way[..], &[at]].concat(), child)));
    }
    None
}

/// The nodes below one, or `enough` of them.
fn count_below<N: Node>(node: N, enough: usize) -> usize {
    let (mut open, mut count) = (vec![node], 0);
    while let Some(node) = open.pop().filter(|_| count < enough) {
        node.for_each_child(&mut |_, child| {
            count += 1;
            if !child.is_leaf() {
                open.push(child);
            }
        });
    }
    count
}
