//! Class and tags as one number.

use std::fmt;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{OnceLock, PoisonError, RwLock};

use crate::hash::FastMap;
use crate::{Class, TagSet};

/// A class and tags, interned: all that a fragment may ask about a node besides its name, as one number.
///
/// Equal exactly for equal classes and equal tags. What a walk learns about one node it knows for all nodes of that name
/// and kind.
///
/// ```
/// use mpath::{Class, Kind, Tag, TagSet};
/// let stub = Class::define("QuantizerStub", "example::QuantizerStub", &[]);
/// let tags = TagSet::new([Tag::new("parameter/weight")]);
/// assert_eq!(Kind::new(stub, Some(tags)), Kind::new(stub, Some(tags)));
/// assert_ne!(Kind::new(stub, Some(tags)), Kind::new(stub, None));
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Kind(u32);

/// Numbers not given to a kind yet.
static NEXT: AtomicU32 = AtomicU32::new(1);

static WITH_TAGS: OnceLock<RwLock<FastMap<(Class, TagSet), Kind>>> = OnceLock::new();

impl Kind {
    /// The kind of nodes of this class with these tags; `None` for nodes that are no quantizers.
    #[inline]
    pub fn new(class: Class, tags: Option<TagSet>) -> Self {
        match tags {
            None => class.kind(),
            Some(tags) => Kind::with_tags(class, tags),
        }
    }

    fn with_tags(class: Class, tags: TagSet) -> Self {
        let kinds = WITH_TAGS.get_or_init(RwLock::default);
        // A panic while the lock is held cannot leave the map inconsistent: insertion is all that is done under it.
        let known =
            kinds.read().unwrap_or_else(PoisonError::into_inner).get(&(class, tags)).copied();
        known.unwrap_or_else(|| {
            let mut kinds = kinds.write().unwrap_or_else(PoisonError::into_inner);
            *kinds.entry((class, tags)).or_insert_with(Kind::fresh)
        })
    }

    /// The kind of no node.
    pub(crate) const NOBODYS: Kind = Kind(0);

    /// A kind that no node has yet.
    ///
    /// Classes and sets of tags live as long as the process, at more than four bytes each, so numbers do not run out before
    /// memory does.
    pub(crate) fn fresh() -> Self {
        Kind(NEXT.fetch_add(1, Ordering::Relaxed))
    }
}

impl fmt::Debug for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Kind({})", self.0)
    }
}

/// The kind of a node that may change while others look at it: a place for quantizers.
#[derive(Debug)]
pub struct AtomicKind(AtomicU32);

impl AtomicKind {
    /// A node of this kind.
    pub fn new(kind: Kind) -> Self {
        AtomicKind(AtomicU32::new(kind.0))
    }

    /// The kind of the node now.
    #[inline]
    pub fn get(&self) -> Kind {
        Kind(self.0.load(Ordering::Acquire))
    }

    /// Makes the node one of another kind.
    pub fn set(&self, kind: Kind) {
        self.0.store(kind.0, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Tag;

    #[test]
    fn kinds_are_equal_exactly_where_class_and_tags_are() {
        let classes = ["A", "B"].map(|name| Class::define(name, &format!("kind::{name}"), &[]));
        let tags = [None, Some(TagSet::empty()), Some(TagSet::new([Tag::new("kind/tag")]))];
        let all = || classes.iter().flat_map(|&class| tags.map(|tags| (class, tags)));
        for (a, b) in all().flat_map(|a| all().map(move |b| (a, b))) {
            assert_eq!(Kind::new(a.0, a.1) == Kind::new(b.0, b.1), a == b, "{a:?} {b:?}");
        }
        let changing = AtomicKind::new(Kind::new(classes[0], None));
        changing.set(Kind::new(classes[1], tags[2]));
        assert_eq!(changing.get(), Kind::new(classes[1], tags[2]));
    }
}
