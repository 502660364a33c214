//! One path of a tree, and how far a selector matches it.

use crate::selector::SegmentKind;
use crate::{Error, ErrorKind, Facts, Node, Selector};

/// How many ways to read a path are tried.
const MAX_READINGS: usize = 10_000;

/// A way to read the beginning of a path.
struct Reading<N> {
    /// The length of the chain without its last node, and that node.
    len: usize,
    last: Option<(String, N)>,
    /// Where the next name begins in the text.
    end: usize,
}

/// The nodes on a path below the root, with their names.
pub(super) struct Chain<N>(Vec<(String, N)>);

impl<N: Facts> Chain<N> {
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// The name at this position.
    pub(super) fn name(&self, position: usize) -> Option<&str> {
        self.0.get(position).map(|(name, _)| &**name)
    }

    pub(super) fn names(&self) -> Vec<String> {
        self.0.iter().map(|(name, _)| name.clone()).collect()
    }

    pub(super) fn full_name(&self, len: usize) -> String {
        let names: Vec<&str> = self.0[..len].iter().map(|(name, _)| &**name).collect();
        names.join(".")
    }

    /// For each number of segments, from none to all, which beginnings of the path they match, by length.
    pub(super) fn positions(&self, selector: &Selector) -> Vec<Vec<bool>> {
        let mut start = vec![false; self.len() + 1];
        start[0] = true;
        let mut all = vec![start];
        for segment in selector.segments() {
            let next = self.after(&all[all.len() - 1], segment.kind());
            all.push(next);
        }
        all
    }

    /// The positions that a segment leads to.
    fn after(&self, positions: &[bool], segment: &SegmentKind) -> Vec<bool> {
        let mut next = vec![false; positions.len()];
        match segment {
            SegmentKind::Fragment(fragment) => {
                let repeats = fragment.repeats();
                for (at, (name, node)) in self.0.iter().enumerate() {
                    next[at] |= repeats && positions[at];
                    let from = positions[at] || repeats && next[at];
                    next[at + 1] = from && fragment.matches(name, node);
                }
                next[self.len()] |= repeats && positions[self.len()];
            }
            SegmentKind::Group(alternatives) => {
                for alternative in alternatives.iter() {
                    let mut after = positions.to_vec();
                    for segment in alternative.segments() {
                        after = self.after(&after, segment.kind());
                    }
                    next.iter_mut().zip(after).for_each(|(next, after)| *next |= after);
                }
            }
        }
        next
    }
}

impl<N: Node> Chain<N> {
    /// The path of this name. Names may have dots themselves: then the tree decides where a name ends.
    pub(super) fn find(root: N, path: &str) -> Result<Self, Error> {
        let mut todo = vec![Reading { len: 0, last: None, end: 0 }];
        let mut chain: Vec<(String, N)> = Vec::new();
        let mut best: (usize, Vec<String>) = (0, Vec::new());
        // Each reading is another node of the tree, unless nodes are shared.
        for _ in 0..MAX_READINGS {
            let Some(Reading { len, last, end }) = todo.pop() else { break };
            chain.truncate(len);
            chain.extend(last);
            if end > path.len() {
                return Ok(Chain(chain));
            }
            let node = chain.last().map_or(root, |(_, node)| *node);
            let mut found = Vec::new();
            let mut names = Vec::new();
            node.for_each_child(&mut |name, child| {
                names.push(name.to_owned());
                let Some(rest) = path[end..].strip_prefix(name) else { return };
                if rest.is_empty() || rest.starts_with(['.', '/']) {
                    let last = Some((name.to_owned(), child));
                    found.push(Reading { len: chain.len(), last, end: end + name.len() + 1 });
                }
            });
            if end >= best.0 {
                best = (end, names);
            }
            todo.extend(found.into_iter().rev());
        }
        let (end, names) = best;
        let before = path[..end].trim_end_matches(['.', '/']);
        let missing = path[end..].split(['.', '/']).next().unwrap_or_default();
        let place = if before.is_empty() { "the root".to_owned() } else { format!("`{before}`") };
        let message = format!("`{path}` names no node: {place} has no child `{missing}`");
        let known = names.iter().map(String::as_str);
        Err(Error::new(ErrorKind::UnknownPath, message).suggesting_near(missing, known))
    }
}
