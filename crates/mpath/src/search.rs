//! Finding what a query matches.

use std::sync::Arc;

use crate::automaton::{Arm, Automaton, StateId};
use crate::tree::{NodeId, ROOT, Tree};
use crate::{Aliases, Context, Error, FilterResult, Fragment, MPathCollection, Node, Selector};

/// The nodes below `root` that match `query`, in the order of the reference (spec §1.10).
///
/// The root itself is never matched. A node with several names is found once, under the name by which it was reached
/// first, and knows the others: [`FilterResult::full_names`].
///
/// The search keeps a stack of (what is left to match, node) and takes the most recent pair: matches of one parent are
/// adjacent and in order, and of several siblings the last one's subtree is explored first. Each pair is taken once, so
/// the time is at most linear in nodes × fragments; neither the tree nor the query can exhaust the call stack.
///
/// ```
/// use mpath::{Context, SearchOptions, search};
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
/// let found = search("**/x", tree, &SearchOptions::new(&Context::new()))?;
/// let names: Vec<&str> = found.iter().map(|result| result.full_name()).collect();
/// assert_eq!(names, ["b.x", "a.x"]);
/// # Ok::<(), mpath::Error>(())
/// ```
///
/// # Errors
/// If the query is a text that does not parse, or the query or the tree exceeds the [`limits`](crate::limits).
pub fn search<'q, N: Node>(
    query: impl Into<Query<'q>>,
    root: N,
    options: &SearchOptions<'_>,
) -> Result<MPathCollection<N>, Error> {
    match query.into() {
        Query::Selector(selector) => find(selector, root, options.all_names),
        Query::Text(text) => find(&options.parse(text)?, root, options.all_names),
    }
}

/// A query as text, parsed with the options of the search, or as a selector.
#[derive(Clone, Copy, Debug)]
pub enum Query<'q> {
    /// What [`Context::query_with`] parses.
    Text(&'q str),
    /// A selector.
    Selector(&'q Selector),
}

impl<'q> From<&'q str> for Query<'q> {
    fn from(text: &'q str) -> Self {
        Query::Text(text)
    }
}

impl<'q> From<&'q String> for Query<'q> {
    fn from(text: &'q String) -> Self {
        Query::Text(text)
    }
}

impl<'q> From<&'q Selector> for Query<'q> {
    fn from(selector: &'q Selector) -> Self {
        Query::Selector(selector)
    }
}

/// How to search.
#[derive(Clone, Debug)]
pub struct SearchOptions<'o> {
    /// What the names in a query text mean.
    pub context: &'o Context,
    /// The aliases of a query text. If given, they replace those of the root.
    pub aliases: Option<&'o Aliases>,
    /// The aliases that the root brings with it, used if no others are given (spec §1.7).
    pub root_aliases: Option<&'o Aliases>,
    /// Whether to find all names of shared nodes, for which the whole tree is walked once if it has any.
    pub all_names: bool,
}

impl<'o> SearchOptions<'o> {
    /// No aliases; all names.
    pub fn new(context: &'o Context) -> Self {
        SearchOptions { context, aliases: None, root_aliases: None, all_names: true }
    }

    /// The same with these aliases, which replace those of the root.
    #[must_use]
    pub fn with_aliases(self, aliases: &'o Aliases) -> Self {
        SearchOptions { aliases: Some(aliases), ..self }
    }

    /// Parses a query text as a search with these options does.
    ///
    /// # Errors
    /// See [`Context::query_with`].
    pub fn parse(&self, text: &str) -> Result<Selector, Error> {
        match self.aliases.or(self.root_aliases) {
            Some(aliases) => self.context.query_with(text, aliases),
            None => self.context.query(text),
        }
    }
}

fn find<N: Node>(
    selector: &Selector,
    root: N,
    all_names: bool,
) -> Result<MPathCollection<N>, Error> {
    let automaton = Automaton::new([selector])?;
    let mut search = Search {
        seen: Seen::new(automaton.num_states()),
        tree: Tree::new(root),
        stack: vec![Pair { state: automaton.start(0), node: ROOT, path: None }],
        steps: Vec::new(),
        picked: Seen::new(1),
        found: Vec::new(),
        automaton: &automaton,
    };
    search.seen.insert(automaton.start(0), ROOT);
    while let Some(pair) = search.stack.pop() {
        search.visit_children(pair)?;
    }
    search.into_results(root, all_names)
}

struct Search<'a, N> {
    automaton: &'a Automaton,
    tree: Tree<N>,
    stack: Vec<Pair>,
    seen: Seen,
    /// The paths by which nodes were reached, each a step and the number of the path before it.
    steps: Vec<Step>,
    picked: Seen,
    found: Vec<u32>,
}

/// Something left to match below a node.
#[derive(Clone, Copy)]
struct Pair {
    state: StateId,
    node: NodeId,
    /// The last step on the way to the node.
    path: Option<u32>,
}

struct Step {
    before: Option<u32>,
    parent: NodeId,
    edge: usize,
    fragment: u32,
}

impl<N: Node> Search<'_, N> {
    fn visit_children(&mut self, pair: Pair) -> Result<(), Error> {
        let automaton = self.automaton;
        let arms = automaton.arms(pair.state);
        for edge in self.tree.children(pair.node)? {
            let child = self.tree.edge(edge).child;
            if self.tree.edge(edge).is_repeated {
                continue;
            }
            for arm in arms {
                let fragment = &automaton.fragments()[arm.fragment as usize];
                let passes = fragment.matches(self.tree.name(edge), &self.tree.node(child));
                self.follow(pair, edge, child, arm, passes);
            }
        }
        Ok(())
    }

    fn follow(&mut self, pair: Pair, edge: usize, child: NodeId, arm: &Arm, passes: bool) {
        // What repeats may also stand for no level at all: then the rest is matched here.
        let here = |search: &mut Self| {
            if let (Some(_), Some(rest)) = (arm.again, arm.rest) {
                search.push(Pair { state: rest, ..pair });
            }
        };
        if !passes {
            return here(self);
        }
        let step = self.steps.len() as u32;
        self.steps.push(Step {
            before: pair.path,
            parent: pair.node,
            edge,
            fragment: arm.fragment,
        });
        let below = |state| Pair { state, node: child, path: Some(step) };
        let mut used = false;
        if arm.accepts.is_some() && self.picked.insert(0, child) {
            self.found.push(step);
            used = true;
        }
        if let Some(again) = arm.again {
            used |= self.push(below(again));
        }
        here(self);
        if let Some(rest) = arm.rest {
            used |= self.push(below(rest));
        }
        if !used {
            self.steps.pop();
        }
    }

    fn push(&mut self, pair: Pair) -> bool {
        let new = self.seen.insert(pair.state, pair.node);
        if new {
            self.stack.push(pair);
        }
        new
    }

    fn into_results(mut self, root: N, all_names: bool) -> Result<MPathCollection<N>, Error> {
        let nodes: Vec<NodeId> = self
            .found
            .iter()
            .map(|&step| self.tree.edge(self.steps[step as usize].edge).child)
            .collect();
        let mut other_names = if all_names && self.tree.has_shared_nodes() {
            self.tree.all_names(&nodes)?
        } else {
            vec![Vec::new(); nodes.len()]
        };
        let mut results = Vec::with_capacity(nodes.len());
        for ((&last, &node), others) in self.found.iter().zip(&nodes).zip(&mut other_names) {
            let mut names: Vec<&str> = Vec::new();
            let mut fragments: Vec<Arc<dyn Fragment>> = Vec::new();
            let mut next = Some(last);
            while let Some(step) = next {
                let step = &self.steps[step as usize];
                names.push(self.tree.name(step.edge));
                fragments.push(self.automaton.fragments()[step.fragment as usize].clone());
                next = step.before;
            }
            names.reverse();
            fragments.reverse();
            let full_name: Arc<str> = names.join(".").into();
            others.retain(|name| *name != full_name);
            let full_names = std::iter::once(full_name).chain(others.drain(..)).collect();
            let last = &self.steps[last as usize];
            results.push(FilterResult::new(
                full_names,
                self.tree.node(node),
                self.tree.node(last.parent),
                names.last().copied().unwrap_or_default(),
                fragments,
            ));
        }
        Ok(MPathCollection::new(root, results))
    }
}

/// Pairs of a small number and a node, as bits; rows appear when first needed.
struct Seen {
    words_per_node: usize,
    /// For each node, where its words begin in `words`, plus one; 0 for none.
    rows: Vec<u32>,
    words: Vec<u64>,
}

impl Seen {
    fn new(states: usize) -> Self {
        Seen { words_per_node: states.div_ceil(64), rows: Vec::new(), words: Vec::new() }
    }

    /// Adds the pair; false if it was there.
    fn insert(&mut self, state: u32, node: NodeId) -> bool {
        let node = node as usize;
        if node >= self.rows.len() {
            self.rows.resize(node + 1, 0);
        }
        if self.rows[node] == 0 {
            self.rows[node] = (self.words.len() / self.words_per_node) as u32 + 1;
            self.words.resize(self.words.len() + self.words_per_node, 0);
        }
        let row = (self.rows[node] - 1) as usize * self.words_per_node;
        let word = &mut self.words[row + state as usize / 64];
        let bit = 1 << (state % 64);
        let new = *word & bit == 0;
        *word |= bit;
        new
    }
}
