//! What a quantizer is for.

use std::fmt;
use std::hash::{Hash, Hasher};

use crate::intern::Interner;

/// A symbol in a hierarchy whose levels are separated by `/`: `parameter/weight` lies under `parameter`.
///
/// Tags are interned: the same text is the same tag. Nothing is normalized; `a//b` has an empty level (spec §3.1).
///
/// ```
/// use mpath::Tag;
/// let tag = Tag::new("parameter/weight");
/// assert_eq!(tag, Tag::new("parameter") / "weight");
/// let levels: Vec<&str> = tag.hierarchy().map(Tag::as_str).collect();
/// assert_eq!(levels, ["parameter/weight", "parameter"]);
/// assert_eq!(tag.to_string(), "#parameter/weight");
/// ```
#[derive(Clone, Copy, PartialOrd, Ord)]
pub struct Tag(&'static str);

static TAGS: Interner<str> = Interner::new();

impl Tag {
    /// The tag of this text.
    pub fn new(text: &str) -> Self {
        Tag(TAGS.intern(text, || Box::leak(text.into())))
    }

    /// The text of the tag, without the `#` that printing adds.
    pub fn as_str(self) -> &'static str {
        self.0
    }

    /// The tag, then each shorter prefix down to the first level.
    pub fn hierarchy(self) -> impl Iterator<Item = Tag> {
        std::iter::successors(Some(self), |tag| {
            tag.0.rfind('/').map(|slash| Tag::new(&tag.0[..slash]))
        })
    }
}

impl PartialEq for Tag {
    fn eq(&self, other: &Self) -> bool {
        // The length distinguishes the empty tag from others that may share its address.
        std::ptr::eq(self.0, other.0)
    }
}

impl Eq for Tag {}

impl Hash for Tag {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.as_ptr().hash(state);
        self.0.len().hash(state);
    }
}

impl From<&str> for Tag {
    fn from(text: &str) -> Self {
        Tag::new(text)
    }
}

impl std::ops::Div<&str> for Tag {
    type Output = Tag;
    fn div(self, level: &str) -> Tag {
        Tag::new(&format!("{}/{level}", self.0))
    }
}

impl std::ops::Div<Tag> for Tag {
    type Output = Tag;
    fn div(self, level: Tag) -> Tag {
        self / level.as_str()
    }
}

impl std::ops::Div<Tag> for &str {
    type Output = Tag;
    fn div(self, level: Tag) -> Tag {
        Tag::new(self) / level
    }
}

impl fmt::Display for Tag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "#{}", self.0)
    }
}

impl fmt::Debug for Tag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

/// An immutable set of tags, closed under prefixes and sorted: with `a/b` it holds `a`.
///
/// Sets are interned, so copying is copying an address and comparing is comparing addresses.
///
/// ```
/// use mpath::{Tag, TagSet};
/// let tags = TagSet::new([Tag::new("parameter/weight")]);
/// assert!(tags.contains(Tag::new("parameter")));
/// assert!(!tags.contains(Tag::new("weight")));
/// ```
#[derive(Clone, Copy)]
pub struct TagSet(&'static [Tag]);

static TAG_SETS: Interner<[Tag]> = Interner::new();

impl TagSet {
    /// The set of these tags and all their prefixes.
    pub fn new(tags: impl IntoIterator<Item = Tag>) -> Self {
        let mut all: Vec<Tag> = tags.into_iter().flat_map(Tag::hierarchy).collect();
        all.sort_unstable();
        all.dedup();
        TagSet(TAG_SETS.intern(&all, || Box::leak(all.clone().into_boxed_slice())))
    }

    /// The set without tags.
    pub fn empty() -> Self {
        TagSet::new([])
    }

    /// This set and one more tag, with its prefixes.
    pub fn with(self, tag: Tag) -> Self {
        if self.contains(tag) { self } else { TagSet::new(self.0.iter().copied().chain([tag])) }
    }

    /// Whether the tag is in the set.
    pub fn contains(self, tag: Tag) -> bool {
        self.0.contains(&tag)
    }

    /// Whether every tag of `other` is in this set.
    pub fn is_superset(self, other: TagSet) -> bool {
        other.0.iter().all(|&tag| self.contains(tag))
    }

    /// The tags, sorted.
    pub fn as_slice(self) -> &'static [Tag] {
        self.0
    }
}

impl PartialEq for TagSet {
    fn eq(&self, other: &Self) -> bool {
        std::ptr::eq(self.0, other.0)
    }
}

impl Eq for TagSet {}

impl Hash for TagSet {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.as_ptr().hash(state);
        self.0.len().hash(state);
    }
}

impl Default for TagSet {
    fn default() -> Self {
        TagSet::empty()
    }
}

impl fmt::Debug for TagSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_are_kept_as_written() {
        let levels: Vec<&str> = Tag::new("/a//").hierarchy().map(Tag::as_str).collect();
        assert_eq!(levels, ["/a//", "/a/", "/a", ""]);
    }

    #[test]
    fn sets_hold_prefixes_and_compare_by_content() {
        let a = TagSet::new([Tag::new("x/y"), Tag::new("b")]);
        assert_eq!(a, TagSet::empty().with(Tag::new("b")).with(Tag::new("x/y")));
        assert_eq!(a.as_slice().iter().map(|t| t.as_str()).collect::<Vec<_>>(), ["b", "x", "x/y"]);
        assert!(a.is_superset(TagSet::empty()));
        assert_ne!(a, TagSet::empty());
    }
}
