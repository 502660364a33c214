//! Many queries, one walk.

mod matcher;
mod part;
mod walk;

use crate::automaton::Automaton;
use crate::{Error, FilterResult, Node, Selector};

use matcher::Matcher;
pub use part::Part;
use walk::Walk;

/// Several queries that are matched in one walk of a tree.
///
/// The queries are compiled to one automaton, which becomes deterministic as far as the walk needs it: for each node
/// the walk looks up what equal names, classes and tags passed before, and where that leads from here. So twenty queries
/// cost little more than one, and the walk not much more than a bare walk of the tree.
///
/// ```
/// use mpath::{Context, QuerySet};
/// # use mpath::{Class, Facts, Node, TagSet};
/// # #[derive(Clone, Copy, PartialEq)] struct Tree(&'static [(&'static str, Tree)]);
/// # impl Facts for Tree {
/// #     fn class(&self) -> Class { Class::define("Module", "doc::Module", &[]) }
/// #     fn tags(&self) -> Option<TagSet> { None }
/// # }
/// # impl Node for Tree {
/// #     fn for_each_child(&self, visit: &mut dyn FnMut(&str, Self)) {
/// #         for (name, child) in self.0 { visit(name, *child) }
/// #     }
/// # }
/// # let tree = Tree(&[("a", Tree(&[("x", Tree(&[])), ("y", Tree(&[]))])), ("b", Tree(&[("x", Tree(&[]))]))]);
/// let context = Context::new();
/// let queries = [context.query("**/x")?, context.query("a/*")?];
/// let mut found = Vec::new();
/// QuerySet::new(&queries)?.walk(tree, |visit| {
///     found.push((visit.path.full_name(), visit.matches.to_vec()));
/// })?;
/// let expected: [(&str, &[u32]); 5] =
///     [("a", &[]), ("a.x", &[0, 1]), ("a.y", &[1]), ("b", &[]), ("b.x", &[0])];
/// assert!(found.iter().map(|(name, matches)| (&**name, &**matches)).eq(expected));
/// # Ok::<(), mpath::Error>(())
/// ```
pub struct QuerySet {
    automaton: Automaton,
}

/// A node on a walk.
#[derive(Clone, Copy)]
pub struct Visit<'w, N> {
    /// Where the node is.
    pub path: Path<'w>,
    /// The node.
    pub node: N,
    /// Its parent.
    pub parent: N,
    /// The queries that match the node, by their number in the set, ascending.
    pub matches: &'w [u32],
}

/// The names from the root to a node.
#[derive(Clone, Copy)]
pub struct Path<'w> {
    /// The names of the nodes around, joined by dots, and where each one ends.
    parent: &'w str,
    ends: &'w [usize],
    name: &'w str,
}

impl QuerySet {
    /// The set of these queries, numbered in order.
    ///
    /// # Errors
    /// If a selector exceeds the [`limits`](crate::limits).
    pub fn new<'s>(queries: impl IntoIterator<Item = &'s Selector>) -> Result<Self, Error> {
        Ok(QuerySet { automaton: Automaton::new(queries)? })
    }

    /// The number of queries.
    pub fn len(&self) -> usize {
        self.automaton.starts().len()
    }

    /// Whether there are no queries.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Visits every node below `root`, parents before children and children in order, with the queries that match it.
    ///
    /// A shared node is visited once for each of its names, except that a second name in the same parent is not seen
    /// (spec §1.1) and that a node is not visited below itself.
    ///
    /// # Errors
    /// If the tree exceeds the [`limits`](crate::limits).
    pub fn walk<N: Node>(&self, root: N, visit: impl FnMut(&Visit<'_, N>)) -> Result<(), Error> {
        self.walk_part(root, &Part::whole(), visit).map(drop)
    }

    /// Cuts a [`walk`](QuerySet::walk) into at most `count` parts of about `min_nodes` nodes or more each. Walked one after the
    /// other they visit what the walk visits, in its order; so threads may walk one each. A tree that is too small, or has no
    /// node with many children near the root, is one part.
    ///
    /// ```
    /// # use mpath::{Class, Context, Facts, Node, QuerySet, TagSet};
    /// # #[derive(Clone, Copy)] struct Wide(u8);
    /// # impl Facts for Wide {
    /// #     fn class(&self) -> Class { Class::define("Module", "doc::Module", &[]) }
    /// #     fn tags(&self) -> Option<TagSet> { None }
    /// # }
    /// # impl Node for Wide {
    /// #     fn for_each_child(&self, visit: &mut dyn FnMut(&str, Self)) {
    /// #         let count = [40, 3, 0][usize::from(self.0)];
    /// #         (0..count).for_each(|at| visit(&at.to_string(), Wide(self.0 + 1)));
    /// #     }
    /// # }
    /// # let tree = Wide(0);
    /// let set = QuerySet::new(&[Context::new().query("*/1")?])?;
    /// let parts = set.parts(tree, 2, 50);
    /// assert_eq!(parts.len(), 2);
    /// let mut names = Vec::new();
    /// for part in &parts {
    ///     set.walk_part(tree, part, |visit| names.push(visit.path.full_name()))?;
    /// }
    /// assert_eq!(names.len(), 40 + 3 * 40);
    /// # let mut all = Vec::new();
    /// # set.walk(tree, |visit| all.push(visit.path.full_name()))?;
    /// # assert_eq!(names, all);
    /// # Ok::<(), mpath::Error>(())
    /// ```
    pub fn parts<N: Node>(&self, root: N, count: usize, min_nodes: usize) -> Vec<Part> {
        Part::cut(root, count, min_nodes)
    }

    /// Visits the nodes of one of the [`parts`](QuerySet::parts) of this tree, and returns how many there were. The limit of
    /// nodes holds for each part; [`limits::check_nodes`](crate::limits::check_nodes) checks their sum.
    ///
    /// # Errors
    /// If the part exceeds the [`limits`](crate::limits).
    pub fn walk_part<N: Node>(
        &self,
        root: N,
        part: &Part,
        visit: impl FnMut(&Visit<'_, N>),
    ) -> Result<usize, Error> {
        Walk::new(Matcher::new(&self.automaton), false, part.clone()).run(root, visit)
    }

    /// Visits the nodes below `root` that at least one query matches, in the order of [`walk`](QuerySet::walk), leaving
    /// out subtrees in which there can be none.
    ///
    /// # Errors
    /// If the tree exceeds the [`limits`](crate::limits).
    pub fn walk_matches<N: Node>(
        &self,
        root: N,
        visit: impl FnMut(&Visit<'_, N>),
    ) -> Result<(), Error> {
        Walk::new(Matcher::new(&self.automaton), true, Part::whole()).run(root, visit).map(drop)
    }
}

impl<N: Copy> Visit<'_, N> {
    /// What a search that found this node would return, without the names it has elsewhere and without the fragments
    /// that led to it.
    pub fn to_result(&self) -> FilterResult<N> {
        FilterResult::new(
            vec![self.path.full_name().into()],
            self.node,
            self.parent,
            self.path.name(),
            Vec::new(),
        )
    }
}

impl<'w> Path<'w> {
    /// The names, joined by dots.
    pub fn full_name(&self) -> String {
        let mut joined = String::new();
        self.write_full_name(&mut joined);
        joined
    }

    /// Appends the names, joined by dots, to a buffer.
    pub fn write_full_name(&self, buffer: &mut String) {
        if !self.ends.is_empty() {
            buffer.push_str(self.parent);
            buffer.push('.');
        }
        buffer.push_str(self.name);
    }

    /// The name of the node in its parent.
    pub fn name(&self) -> &'w str {
        self.name
    }

    /// The number of names.
    pub fn depth(&self) -> usize {
        self.ends.len() + 1
    }

    /// The names, that of the node last.
    pub fn names(&self) -> impl ExactSizeIterator<Item = &'w str> + use<'w> {
        let Path { parent, ends, name } = *self;
        let name_at = move |at: usize| match ends.get(at) {
            Some(&end) => &parent[at.checked_sub(1).map_or(0, |before| ends[before] + 1)..end],
            None => name,
        };
        (0..self.depth()).map(name_at)
    }
}

impl std::fmt::Display for Path<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if !self.ends.is_empty() {
            write!(f, "{}.", self.parent)?;
        }
        f.write_str(self.name)
    }
}

impl std::fmt::Debug for Path<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.names()).finish()
    }
}

impl std::fmt::Debug for QuerySet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("QuerySet")
            .field("queries", &self.len())
            .field("states", &self.automaton.num_states())
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::{Class, Context, Facts, PredicateFragment, SearchOptions, TagSet, search};

    /// A node of a tree without end but for its depth, in which names follow from where they stand.
    #[derive(Clone, Copy)]
    struct Grown {
        seed: u64,
        depth: u32,
    }

    impl Facts for Grown {
        fn class(&self) -> Class {
            Class::define("Grown", "query_set::Grown", &[])
        }

        fn tags(&self) -> Option<TagSet> {
            None
        }
    }

    impl Node for Grown {
        fn for_each_child(&self, visit: &mut dyn FnMut(&str, Self)) {
            let num_children = if self.depth == 7 { 0 } else { 3 };
            for i in 0..num_children {
                let seed = (self.seed + i).wrapping_mul(0x5851_f42d_4c95_7f2d).rotate_left(29);
                let name = [
                    "a",
                    "b",
                    "c",
                    "d",
                    "a_name_of_more_than_16_bytes",
                    "a_name_of_less_than_99_bytes",
                ][(seed >> 7) as usize % 6];
                visit(&format!("{name}{i}"), Grown { seed, depth: self.depth + 1 });
            }
        }
    }

    /// In this build the matcher keeps next to nothing: what it forgets must not change what matches.
    #[test]
    fn forgetting_changes_nothing() {
        let context = Context::new();
        let texts =
            ["**/a0/**", "**/[re:b.]/**/a1", "*/{**, c1}/**/~a0/d2", "{a0/**, **/c2}/*", "**"];
        let mut selectors: Vec<Selector> =
            texts.iter().map(|text| context.query(text).unwrap()).collect();
        for with_predicate in [false, true] {
            if with_predicate {
                let even = PredicateFragment::new(|name, _| name.ends_with(['0', '2']));
                selectors.push(Selector::root() / Selector::from_fragment(even) / Selector::root());
            }
            let root = Grown { seed: 7, depth: 0 };
            let mut walked = vec![BTreeSet::new(); selectors.len()];
            QuerySet::new(&selectors)
                .unwrap()
                .walk(root, |visit| {
                    for &query in visit.matches {
                        walked[query as usize].insert(visit.path.full_name());
                    }
                })
                .unwrap();
            for (selector, walked) in selectors.iter().zip(walked) {
                let found = search(selector, root, &SearchOptions::new(&context)).unwrap();
                let found: BTreeSet<String> =
                    found.map(|name, _| name.to_owned()).into_iter().collect();
                assert!(!found.is_empty(), "{selector}");
                assert_eq!(walked, found, "{selector}");
            }
        }
    }
}
