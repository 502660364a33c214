//! What a search found.

use std::fmt;
use std::ops::{Index, RangeBounds};
use std::sync::Arc;

use crate::{Error, ErrorKind, Fragment, Node};

/// Nodes of one tree in an order, each with its name and its parent.
///
/// Set operations compare elements by full name, node, parent and attribute, keep the order of the left operand, and
/// refuse collections of different roots. Comparing needs handles that are equal exactly when they are the same node.
#[derive(Clone)]
pub struct MPathCollection<N> {
    root: N,
    results: Vec<FilterResult<N>>,
}

/// One node that matched a query.
#[derive(Clone)]
pub struct FilterResult<N> {
    /// The name by which the node was found, then its others.
    full_names: Arc<[Arc<str>]>,
    /// The node.
    pub node: N,
    /// Its parent on the path by which it was found.
    pub parent: N,
    parent_attribute: Arc<str>,
    fragment_matches: Arc<[Arc<dyn Fragment>]>,
}

/// A tree whose nodes can be replaced.
///
/// Handles of nodes are read-only, so it takes something else to change the tree: the tree itself if handles are
/// indices, nothing if nodes have slots with shared ownership.
pub trait Replace<N> {
    /// What is put into the tree.
    type New;

    /// The child that the parent has now under this name.
    fn child(&self, parent: N, attribute: &str) -> Option<N>;

    /// Puts a node in the place of the child of this name, and returns its handle.
    ///
    /// # Errors
    /// Whatever makes the replacement impossible.
    fn replace(
        &mut self,
        parent: N,
        attribute: &str,
        new: Self::New,
    ) -> Result<N, Box<dyn std::error::Error + Send + Sync>>;
}

/// What [`MPathCollection::apply`] does with what its function returns.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ApplyOptions {
    /// Refuse to replace a node that is not the one recorded in the collection any more.
    pub safe: bool,
    /// Replace nodes; otherwise the function is called and its results are dropped.
    pub update: bool,
}

impl Default for ApplyOptions {
    /// Safe, and with updates.
    fn default() -> Self {
        ApplyOptions { safe: true, update: true }
    }
}

impl<N: Copy> MPathCollection<N> {
    /// A collection of results in the tree of this root.
    pub fn new(root: N, results: Vec<FilterResult<N>>) -> Self {
        MPathCollection { root, results }
    }

    /// The root of the tree.
    pub fn root(&self) -> N {
        self.root
    }

    /// The number of results.
    pub fn len(&self) -> usize {
        self.results.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.results.is_empty()
    }

    /// The result at this place.
    pub fn get(&self, index: usize) -> Option<&FilterResult<N>> {
        self.results.get(index)
    }

    /// The results in this range, cut to what there is.
    #[must_use]
    pub fn slice(&self, range: impl RangeBounds<usize>) -> Self {
        use std::ops::Bound::*;
        let start = match range.start_bound() {
            Included(&start) => start,
            Excluded(&start) => start.saturating_add(1),
            Unbounded => 0,
        };
        let end = match range.end_bound() {
            Included(&end) => end.saturating_add(1),
            Excluded(&end) => end,
            Unbounded => self.len(),
        };
        let end = end.min(self.len());
        self.with(self.results[start.min(end)..end].to_vec())
    }

    /// The results, in order.
    pub fn iter(&self) -> std::slice::Iter<'_, FilterResult<N>> {
        self.results.iter()
    }

    /// The results, in order.
    pub fn as_slice(&self) -> &[FilterResult<N>] {
        &self.results
    }

    /// Removes the result at this place, or returns `None`.
    pub fn remove(&mut self, index: usize) -> Option<FilterResult<N>> {
        (index < self.len()).then(|| self.results.remove(index))
    }

    /// Adds a result at the end, whether or not it is there.
    pub fn append(&mut self, result: FilterResult<N>) {
        self.results.push(result);
    }

    /// Keeps the results that satisfy the condition.
    pub fn retain(&mut self, condition: impl FnMut(&FilterResult<N>) -> bool) {
        self.results.retain(condition);
    }

    /// What the function returns for each name and node.
    pub fn map<T>(&self, mut function: impl FnMut(&str, N) -> T) -> Vec<T> {
        self.iter().map(|result| function(result.full_name(), result.node)).collect()
    }

    /// Names and nodes.
    pub fn named_modules(&self) -> impl Iterator<Item = (&str, N)> {
        self.iter().map(|result| (result.full_name(), result.node))
    }

    /// The nodes.
    pub fn modules(&self) -> impl Iterator<Item = N> + use<'_, N> {
        self.iter().map(|result| result.node)
    }

    /// The parent of each node, and the node.
    pub fn parents(&self) -> impl Iterator<Item = (N, N)> + use<'_, N> {
        self.iter().map(|result| (result.parent, result.node))
    }

    fn with(&self, results: Vec<FilterResult<N>>) -> Self {
        MPathCollection { root: self.root, results }
    }
}

impl<N: Copy + PartialEq> MPathCollection<N> {
    /// Whether the result is in the collection.
    pub fn contains(&self, result: &FilterResult<N>) -> bool {
        self.results.contains(result)
    }

    /// The results of both: those of this collection, then those that only the other has.
    ///
    /// # Errors
    /// [`ErrorKind::DifferentRoots`] if the collections come from different trees.
    pub fn union(&self, other: &Self) -> Result<Self, Error> {
        self.check_root(other, "union")?;
        let (left, right) = (self.distinct(&[], false), other.distinct(&self.results, false));
        Ok(self.with(left.into_iter().chain(right).collect()))
    }

    /// The results that are in both, in the order of this collection.
    ///
    /// # Errors
    /// [`ErrorKind::DifferentRoots`] if the collections come from different trees.
    pub fn intersection(&self, other: &Self) -> Result<Self, Error> {
        self.check_root(other, "intersection")?;
        Ok(self.with(self.distinct(&other.results, true)))
    }

    /// The results that the other does not have, in the order of this collection.
    ///
    /// # Errors
    /// [`ErrorKind::DifferentRoots`] if the collections come from different trees.
    pub fn difference(&self, other: &Self) -> Result<Self, Error> {
        self.check_root(other, "difference")?;
        Ok(self.with(self.distinct(&other.results, false)))
    }

    /// The results that only one of both has: those of this collection, then those of the other.
    ///
    /// # Errors
    /// [`ErrorKind::DifferentRoots`] if the collections come from different trees.
    pub fn symmetric_difference(&self, other: &Self) -> Result<Self, Error> {
        self.check_root(other, "symmetric difference")?;
        let (left, right) =
            (self.distinct(&other.results, false), other.distinct(&self.results, false));
        Ok(self.with(left.into_iter().chain(right).collect()))
    }

    /// Calls a function with each name and node; what it returns takes the place of the node.
    ///
    /// The function is called for all nodes before anything is replaced, and in safe mode nothing is replaced unless
    /// every place still holds the node that the collection recorded. Only the one place that a result records is
    /// changed: a node with several names keeps the others. With `update: false` the function is called and the tree is
    /// left alone.
    ///
    /// # Errors
    /// [`ErrorKind::UnsafeUpdate`], naming every place that holds another node than recorded;
    /// [`ErrorKind::UpdateFailed`] if the tree refuses a replacement, those before it being made.
    pub fn apply<R: Replace<N>>(
        &mut self,
        tree: &mut R,
        options: ApplyOptions,
        mut function: impl FnMut(&str, N) -> Option<R::New>,
    ) -> Result<(), Error> {
        let news: Vec<Option<R::New>> = self.map(|name, node| function(name, node));
        if !options.update {
            return Ok(());
        }
        let replaced = self.results.iter().zip(&news).filter(|(_, new)| new.is_some());
        let stale: Vec<String> = replaced
            .map(|(result, _)| result)
            .filter(|result| {
                tree.child(result.parent, &result.parent_attribute) != Some(result.node)
            })
            .map(|result| format!("`{}`", result.full_name()))
            .collect();
        if options.safe && !stale.is_empty() {
            let message = format!(
                "unsafe update: {} no longer the node that was found; search again, or update without `safe`",
                if let [one] = stale.as_slice() {
                    format!("{one} is")
                } else {
                    format!("{} are", stale.join(", "))
                }
            );
            return Err(Error::new(ErrorKind::UnsafeUpdate, message));
        }
        for (result, new) in self.results.iter_mut().zip(news) {
            let Some(new) = new else { continue };
            match tree.replace(result.parent, &result.parent_attribute, new) {
                Ok(node) => result.node = node,
                Err(error) => {
                    let message = format!("cannot replace `{}`: {error}", result.full_name());
                    return Err(Error::new(ErrorKind::UpdateFailed, message).caused_by(Some(error)));
                }
            }
        }
        Ok(())
    }

    fn check_root(&self, other: &Self, operation: &str) -> Result<(), Error> {
        if self.root == other.root {
            return Ok(());
        }
        let message = format!(
            "cannot form the {operation}: the collections are results of searches in different trees"
        );
        Err(Error::new(ErrorKind::DifferentRoots, message))
    }

    /// The results that are (not) in the other list, each once.
    fn distinct(&self, others: &[FilterResult<N>], present: bool) -> Vec<FilterResult<N>> {
        // Results of one name that differ in something else are rare: a list for each name is short.
        let mut by_name: std::collections::HashMap<&str, Vec<(bool, &FilterResult<N>)>> =
            std::collections::HashMap::new();
        for other in others {
            by_name.entry(other.full_name()).or_default().push((true, other));
        }
        let mut kept = Vec::new();
        for result in &self.results {
            let known = by_name.entry(result.full_name()).or_default();
            let is_present = known.iter().any(|&(is_other, known)| is_other && known == result);
            let is_kept = known.iter().any(|&(is_other, known)| !is_other && known == result);
            if is_present == present && !is_kept {
                known.push((false, result));
                kept.push(result.clone());
            }
        }
        kept
    }
}

impl<N> FilterResult<N> {
    /// A result. The full names begin with that by which the node was found; the attribute is the last part of it.
    pub(crate) fn new(
        full_names: Vec<Arc<str>>,
        node: N,
        parent: N,
        parent_attribute: &str,
        fragment_matches: Vec<Arc<dyn Fragment>>,
    ) -> Self {
        FilterResult {
            full_names: full_names.into(),
            node,
            parent,
            parent_attribute: parent_attribute.into(),
            fragment_matches: fragment_matches.into(),
        }
    }

    /// The names on the path by which the node was found, joined by dots.
    pub fn full_name(&self) -> &str {
        &self.full_names[0]
    }

    /// All names of the node: that by which it was found, then the others. Only a shared node has others; at most
    /// [`MAX_NAMES`](crate::limits::MAX_NAMES) are collected.
    pub fn full_names(&self) -> impl ExactSizeIterator<Item = &str> {
        self.full_names.iter().map(|name| &**name)
    }

    /// The name that the node has in its parent.
    pub fn parent_attribute(&self) -> &str {
        &self.parent_attribute
    }

    /// The fragment that matched at each level of the path by which the node was found. Not compared.
    pub fn fragment_matches(&self) -> &[Arc<dyn Fragment>] {
        &self.fragment_matches
    }
}

impl<N: Copy + PartialEq> FilterResult<N> {
    /// Puts a node in the place of this one, and returns the result that it is now.
    ///
    /// # Errors
    /// [`ErrorKind::UnsafeUpdate`] if `safe` and the place no longer holds the node found;
    /// [`ErrorKind::UpdateFailed`] if the tree refuses the replacement.
    pub fn update<R: Replace<N>>(
        &self,
        tree: &mut R,
        new: R::New,
        safe: bool,
    ) -> Result<Self, Error> {
        let mut updated = MPathCollection { root: self.parent, results: vec![self.clone()] };
        let mut new = Some(new);
        updated.apply(tree, ApplyOptions { safe, update: true }, |_, _| new.take())?;
        Ok(FilterResult { node: updated.results[0].node, ..self.clone() })
    }
}

impl<N: PartialEq> PartialEq for FilterResult<N> {
    fn eq(&self, other: &Self) -> bool {
        self.full_name() == other.full_name()
            && self.node == other.node
            && self.parent == other.parent
            && self.parent_attribute == other.parent_attribute
    }
}

impl<N: Eq> Eq for FilterResult<N> {}

/// The same root, and equal results in the same order.
impl<N: PartialEq> PartialEq for MPathCollection<N> {
    fn eq(&self, other: &Self) -> bool {
        self.root == other.root && self.results == other.results
    }
}

impl<N: Eq> Eq for MPathCollection<N> {}

impl<N> Index<usize> for MPathCollection<N> {
    type Output = FilterResult<N>;
    fn index(&self, index: usize) -> &FilterResult<N> {
        &self.results[index]
    }
}

impl<'c, N> IntoIterator for &'c MPathCollection<N> {
    type Item = &'c FilterResult<N>;
    type IntoIter = std::slice::Iter<'c, FilterResult<N>>;
    fn into_iter(self) -> Self::IntoIter {
        self.results.iter()
    }
}

impl<N> IntoIterator for MPathCollection<N> {
    type Item = FilterResult<N>;
    type IntoIter = std::vec::IntoIter<FilterResult<N>>;
    fn into_iter(self) -> Self::IntoIter {
        self.results.into_iter()
    }
}

impl<N: Node> fmt::Display for FilterResult<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FilterResult(name={}, type={})", self.full_name(), self.node.class())
    }
}

impl<N: Node> fmt::Debug for FilterResult<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// One line for each result, as the reference prints them (spec §1.12).
impl<N: Node> fmt::Display for MPathCollection<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.results.is_empty() {
            return f.write_str("MPathCollection([])");
        }
        writeln!(f, "MPathCollection([")?;
        for (i, result) in self.results.iter().enumerate() {
            writeln!(f, "    <{i}: {}: {}>,", result.full_name(), result.node.class())?;
        }
        f.write_str("])")
    }
}

impl<N: Node> fmt::Debug for MPathCollection<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
