//! The part of a tree that a search has seen, with every node numbered.

use std::ops::Range;
use std::sync::Arc;

use crate::hash::FastMap;
use crate::limits::{MAX_DEPTH, MAX_NAMES, MAX_NODES};
use crate::{Error, ErrorKind, Node};

/// The number of a node; a shared node has one.
pub(crate) type NodeId = u32;

/// The root.
pub(crate) const ROOT: NodeId = 0;

/// The nodes seen so far. Children are asked for once, when a search first comes to a node.
pub(crate) struct Tree<N> {
    nodes: Vec<Entry<N>>,
    edges: Vec<Edge>,
    names: String,
    by_identity: FastMap<usize, NodeId>,
}

struct Entry<N> {
    node: N,
    depth: usize,
    children: Option<Range<usize>>,
}

/// One name of a child in its parent.
pub(crate) struct Edge {
    name: Range<usize>,
    pub(crate) child: NodeId,
    /// Another name of a child of the same parent that was there before. Queries see only the first (spec §1.1).
    pub(crate) is_repeated: bool,
}

impl<N: Node> Tree<N> {
    pub(crate) fn new(root: N) -> Self {
        let mut tree = Tree {
            nodes: vec![Entry { node: root, depth: 0, children: None }],
            edges: Vec::new(),
            names: String::new(),
            by_identity: FastMap::default(),
        };
        if let Some(identity) = root.identity() {
            tree.by_identity.insert(identity, ROOT);
        }
        tree
    }

    pub(crate) fn node(&self, id: NodeId) -> N {
        self.nodes[id as usize].node
    }

    pub(crate) fn edge(&self, edge: usize) -> &Edge {
        &self.edges[edge]
    }

    pub(crate) fn name(&self, edge: usize) -> &str {
        &self.names[self.edges[edge].name.clone()]
    }

    /// The edges to the children of a node, in order.
    pub(crate) fn children(&mut self, id: NodeId) -> Result<Range<usize>, Error> {
        let Entry { node, depth, children } = &self.nodes[id as usize];
        if let Some(children) = children {
            return Ok(children.clone());
        }
        let (node, depth) = (*node, depth + 1);
        let first = self.edges.len();
        let Tree { nodes, edges, names, by_identity } = self;
        let mut too_large = false;
        node.for_each_child(&mut |name, child| {
            if nodes.len() >= MAX_NODES || edges.len() >= MAX_NODES {
                too_large = true;
                return;
            }
            let new = nodes.len() as NodeId;
            let id = match child.identity() {
                Some(identity) => *by_identity.entry(identity).or_insert(new),
                None => new,
            };
            if id == new {
                nodes.push(Entry { node: child, depth, children: None });
            }
            let start = names.len();
            names.push_str(name);
            edges.push(Edge { name: start..names.len(), child: id, is_repeated: false });
        });
        if too_large {
            return Err(too_many_nodes());
        }
        let children = first..self.edges.len();
        if depth > MAX_DEPTH && !children.is_empty() {
            return Err(too_deep(&self.names[self.edges[first].name.clone()]));
        }
        self.mark_repeated(children.clone());
        self.nodes[id as usize].children = Some(children.clone());
        Ok(children)
    }

    fn mark_repeated(&mut self, children: Range<usize>) {
        // Only a node that was known before can be known by another name.
        let oldest = self.edges[children.clone()].iter().map(|edge| edge.child).collect::<Vec<_>>();
        if oldest.windows(2).all(|pair| pair[0] < pair[1]) {
            return;
        }
        let mut seen = std::collections::HashSet::new();
        for edge in &mut self.edges[children] {
            edge.is_repeated = !seen.insert(edge.child);
        }
    }

    /// All names of the given nodes, up to [`MAX_NAMES`] each.
    pub(crate) fn all_names(&mut self, of: &[NodeId]) -> Result<Vec<Vec<Arc<str>>>, Error> {
        let mut id: usize = 0;
        while id < self.nodes.len() {
            self.children(id as NodeId)?;
            id += 1;
        }
        let mut parents: Vec<Vec<(NodeId, usize)>> = vec![Vec::new(); self.nodes.len()];
        for (id, entry) in (0..).zip(&self.nodes) {
            for edge in entry.children.clone().unwrap_or_default() {
                parents[self.edges[edge].child as usize].push((id, edge));
            }
        }
        let mut on_path = vec![false; self.nodes.len()];
        Ok(of.iter().map(|&node| self.names_of(node, &parents, &mut on_path)).collect())
    }

    /// The names of a node: the paths from it up to the root, backwards.
    fn names_of(
        &self,
        node: NodeId,
        parents: &[Vec<(NodeId, usize)>],
        on_path: &mut [bool],
    ) -> Vec<Arc<str>> {
        let mut names = Vec::new();
        // The edges so far, and for each node on the way how many of the ways up from it were tried.
        let mut path: Vec<usize> = Vec::new();
        let mut tried: Vec<(NodeId, usize)> = vec![(node, 0)];
        on_path[node as usize] = true;
        // Paths through a cycle may end nowhere, so counting names is not enough to come to an end.
        let mut budget = 4 * MAX_NAMES * (self.nodes[node as usize].depth + 1);
        while let Some((at, next)) = tried.last_mut() {
            let up = if budget == 0 || names.len() == MAX_NAMES {
                None
            } else if *at == ROOT {
                let parts: Vec<&str> = path.iter().rev().map(|&edge| self.name(edge)).collect();
                names.push(parts.join(".").into());
                None
            } else {
                parents[*at as usize].get(*next).copied()
            };
            let Some((parent, edge)) = up else {
                on_path[*at as usize] = false;
                tried.pop();
                path.pop();
                continue;
            };
            *next += 1;
            budget -= 1;
            if !on_path[parent as usize] {
                on_path[parent as usize] = true;
                path.push(edge);
                tried.push((parent, 0));
            }
        }
        names
    }

    /// Whether a node that can have several names was seen.
    pub(crate) fn has_shared_nodes(&self) -> bool {
        !self.by_identity.is_empty()
    }
}

pub(crate) fn too_many_nodes() -> Error {
    Error::new(
        ErrorKind::TreeTooLarge,
        format!("the tree is too large: more than {MAX_NODES} nodes were visited"),
    )
}

pub(crate) fn too_deep(name: &str) -> Error {
    let message = format!("the tree is too deep: `{name}` lies more than {MAX_DEPTH} levels down");
    Error::new(ErrorKind::TreeTooDeep, message)
}
