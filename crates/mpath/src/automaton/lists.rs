//! Selectors as linked lists in which equal tails are one.

use std::collections::HashMap;
use std::sync::Arc;

use crate::fragment::Inverted;
use crate::hash::FastMap;
use crate::selector::{Segment, SegmentKind};
use crate::{Fragment, Selector};

use super::FragmentId;

/// The number of a list. Equal lists have equal numbers.
pub(crate) type ListId = u32;

/// The empty list.
pub(super) const NIL: ListId = 0;

/// The first element of a list.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(super) enum Seg {
    Fragment(FragmentId),
    Group(Arc<[ListId]>),
}

#[derive(Clone, PartialEq, Eq, Hash)]
struct Cell {
    seg: Seg,
    next: ListId,
}

/// All lists made so far.
pub(crate) struct Lists {
    fragments: Vec<Arc<dyn Fragment>>,
    fragment_ids: HashMap<Arc<dyn Fragment>, FragmentId>,
    /// The lists numbered from 1.
    cells: Vec<Cell>,
    ids: FastMap<Cell, ListId>,
    /// For each list, [`NIL`] included: whether it matches the empty path, that is, adds nothing to what was matched.
    matches_nothing: Vec<bool>,
}

impl Lists {
    pub(crate) fn new() -> Self {
        Lists {
            fragments: Vec::new(),
            fragment_ids: HashMap::new(),
            cells: Vec::new(),
            ids: FastMap::default(),
            matches_nothing: vec![true],
        }
    }

    /// The list of a selector.
    pub(crate) fn add(&mut self, selector: &Selector) -> ListId {
        selector.segments().iter().rev().fold(NIL, |next, segment| {
            let seg = match segment.kind() {
                SegmentKind::Fragment(fragment) => Seg::Fragment(self.intern(fragment)),
                SegmentKind::Group(alternatives) => {
                    Seg::Group(alternatives.iter().map(|selector| self.add(selector)).collect())
                }
            };
            self.cons(seg, next)
        })
    }

    /// The selector of a list.
    pub(crate) fn selector(&self, mut list: ListId) -> Selector {
        let mut segments = Vec::new();
        while list != NIL {
            let (seg, next) = self.split(list);
            segments.push(Segment::new(match seg {
                Seg::Fragment(id) => SegmentKind::Fragment(self.fragment(*id).clone()),
                Seg::Group(alternatives) => SegmentKind::Group(
                    alternatives.iter().map(|&alternative| self.selector(alternative)).collect(),
                ),
            }));
            list = next;
        }
        Selector::of(segments)
    }

    /// The same list with a simpler beginning: see [`Selector::simplify`].
    pub(crate) fn simplify(&mut self, list: ListId) -> ListId {
        if list == NIL {
            return list;
        }
        let (head, next) = self.split(list);
        match head.clone() {
            Seg::Fragment(id) if self.is_any_path(id) => {
                let rest = self.strip(next);
                self.cons(Seg::Fragment(id), rest)
            }
            Seg::Group(alternatives) => {
                let Some(any_path) = self.leading_any_path(alternatives[0]) else { return list };
                if !alternatives
                    .iter()
                    .all(|&alternative| self.leading_any_path(alternative).is_some())
                {
                    return list;
                }
                let rest = self.strip(list);
                self.cons(Seg::Fragment(any_path), rest)
            }
            Seg::Fragment(_) => list,
        }
    }

    /// What is left to match after a `**`: without leading `**`, in alternatives neither, and without groups that add
    /// nothing because one alternative is just `**`.
    fn strip(&mut self, mut list: ListId) -> ListId {
        while list != NIL {
            let (head, next) = self.split(list);
            match head.clone() {
                Seg::Fragment(id) if self.is_any_path(id) => list = next,
                Seg::Fragment(_) => break,
                Seg::Group(alternatives) => {
                    let stripped: Vec<ListId> = alternatives
                        .iter()
                        .map(|&alternative| self.strip_plain(alternative))
                        .collect();
                    if !stripped.contains(&NIL) {
                        return self.cons(Seg::Group(stripped.into()), next);
                    }
                    list = next;
                }
            }
        }
        list
    }

    fn strip_plain(&self, mut list: ListId) -> ListId {
        while self.leading_any_path(list).is_some() {
            list = self.split(list).1;
        }
        list
    }

    /// The `**` that the list begins with.
    fn leading_any_path(&self, list: ListId) -> Option<FragmentId> {
        if list == NIL {
            return None;
        }
        match self.split(list).0 {
            &Seg::Fragment(id) if self.is_any_path(id) => Some(id),
            _ => None,
        }
    }

    /// The ways to go on: the list itself if it begins with a fragment, else each alternative followed by the rest, and
    /// so on for groups within alternatives.
    pub(super) fn heads(&mut self, list: ListId, heads: &mut Vec<ListId>) {
        // The order is part of the order of results; alternatives are therefore pushed last first.
        let mut todo = vec![list];
        while let Some(list) = todo.pop() {
            let (head, next) = self.split(list);
            match head.clone() {
                Seg::Fragment(_) => {
                    if !heads.contains(&list) {
                        heads.push(list);
                    }
                }
                Seg::Group(alternatives) => {
                    for &alternative in alternatives.iter().rev() {
                        todo.push(self.append(alternative, next));
                    }
                }
            }
        }
    }

    fn append(&mut self, mut list: ListId, next: ListId) -> ListId {
        let mut segs = Vec::new();
        while list != NIL {
            let (seg, next) = self.split(list);
            segs.push(seg.clone());
            list = next;
        }
        segs.into_iter().rev().fold(next, |next, seg| self.cons(seg, next))
    }

    fn cons(&mut self, seg: Seg, next: ListId) -> ListId {
        let matches_nothing = self.matches_nothing(next)
            && match &seg {
                Seg::Fragment(id) => self.fragment(*id).repeats(),
                Seg::Group(alternatives) => {
                    alternatives.iter().any(|&alternative| self.matches_nothing(alternative))
                }
            };
        let cell = Cell { seg, next };
        if let Some(&id) = self.ids.get(&cell) {
            return id;
        }
        self.cells.push(cell.clone());
        self.matches_nothing.push(matches_nothing);
        let id = self.cells.len() as ListId;
        self.ids.insert(cell, id);
        id
    }

    /// The first element and the rest of a list that is not [`NIL`].
    pub(super) fn split(&self, list: ListId) -> (&Seg, ListId) {
        let cell = &self.cells[list as usize - 1];
        (&cell.seg, cell.next)
    }

    /// Whether the list matches the empty path.
    pub(crate) fn matches_nothing(&self, list: ListId) -> bool {
        self.matches_nothing[list as usize]
    }

    pub(super) fn fragment(&self, id: FragmentId) -> &Arc<dyn Fragment> {
        &self.fragments[id as usize]
    }

    pub(super) fn fragments(&self) -> &[Arc<dyn Fragment>] {
        &self.fragments
    }

    fn is_any_path(&self, id: FragmentId) -> bool {
        self.fragment(id).is_any_path()
    }

    /// The number of a fragment; equal fragments have one, and pairs of `~` are none.
    fn intern(&mut self, fragment: &Arc<dyn Fragment>) -> FragmentId {
        let fragment = match fragment.downcast_ref::<Inverted>() {
            Some(inverted) if inverted.is_even() => inverted.shared_inner().clone(),
            Some(inverted) => Arc::new(Inverted::new(inverted.shared_inner().clone())),
            None => fragment.clone(),
        };
        let new = self.fragments.len() as FragmentId;
        *self.fragment_ids.entry(fragment).or_insert_with_key(|fragment| {
            self.fragments.push(fragment.clone());
            new
        })
    }
}
