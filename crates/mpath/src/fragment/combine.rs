//! Fragments made of fragments.

use std::fmt;
use std::sync::Arc;

use super::{DependsOn, Fragment};
use crate::Facts;

/// `~f`: what `f` does not match.
///
/// `~~f` is `f`, and `~**`, like `~*`, matches nothing.
#[derive(Clone)]
pub struct Inverted {
    inner: Arc<dyn Fragment>,
    times: usize,
}

impl Inverted {
    /// What `fragment` does not match.
    pub fn new(fragment: Arc<dyn Fragment>) -> Self {
        match fragment.downcast_ref::<Inverted>() {
            Some(Inverted { inner, times }) => Inverted { inner: inner.clone(), times: times + 1 },
            None => Inverted { inner: fragment, times: 1 },
        }
    }

    /// The fragment after all the `~`.
    pub fn inner(&self) -> &dyn Fragment {
        &*self.inner
    }

    pub(crate) fn shared_inner(&self) -> &Arc<dyn Fragment> {
        &self.inner
    }

    /// Whether the inversions cancel out.
    pub(crate) fn is_even(&self) -> bool {
        self.times.is_multiple_of(2)
    }
}

impl Fragment for Inverted {
    fn matches(&self, name: &str, node: &dyn Facts) -> bool {
        self.inner.matches(name, node) == self.is_even()
    }

    fn repeats(&self) -> bool {
        // Any number of levels of which each matches nothing would be none, and `~**` is to match nothing at all.
        self.inner.repeats() && (self.is_even() || !self.inner.is_any_path())
    }

    fn depends_on(&self) -> DependsOn {
        self.inner.depends_on()
    }

    fn key(&self) -> String {
        format!("{}:{}", self.times, qualified_key(&self.inner))
    }
}

impl fmt::Display for Inverted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for _ in 0..self.times {
            f.write_str("~")?;
        }
        self.inner.fmt(f)
    }
}

/// What all of several fragments match. It has no text form: it prints as `<a & b>`.
///
/// Repeats if all of the fragments do.
#[derive(Clone)]
pub struct Joint(Box<[Arc<dyn Fragment>]>);

/// What any of several fragments matches. It has no text form: it prints as `<a | b>`.
///
/// Repeats if all of the fragments do. The alternatives of a query, `{a, b/c}`, are groups; this is the same for single
/// fragments, as one fragment.
#[derive(Clone)]
pub struct Disjoint(Box<[Arc<dyn Fragment>]>);

impl Joint {
    /// What all of the fragments match; everything if there are none.
    pub fn new(fragments: impl IntoIterator<Item = Arc<dyn Fragment>>) -> Self {
        let mut all = Vec::new();
        for fragment in fragments {
            match fragment.downcast_ref::<Joint>() {
                Some(Joint(parts)) => all.extend(parts.iter().cloned()),
                None => all.push(fragment),
            }
        }
        Joint(all.into())
    }

    /// The fragments.
    pub fn fragments(&self) -> &[Arc<dyn Fragment>] {
        &self.0
    }
}

impl Disjoint {
    /// What any of the fragments matches; nothing if there are none.
    pub fn new(fragments: impl IntoIterator<Item = Arc<dyn Fragment>>) -> Self {
        let mut all = Vec::new();
        for fragment in fragments {
            match fragment.downcast_ref::<Disjoint>() {
                Some(Disjoint(parts)) => all.extend(parts.iter().cloned()),
                None => all.push(fragment),
            }
        }
        Disjoint(all.into())
    }

    /// The fragments.
    pub fn fragments(&self) -> &[Arc<dyn Fragment>] {
        &self.0
    }
}

impl Fragment for Joint {
    fn matches(&self, name: &str, node: &dyn Facts) -> bool {
        self.0.iter().all(|fragment| fragment.matches(name, node))
    }

    fn repeats(&self) -> bool {
        all_repeat(&self.0)
    }

    fn depends_on(&self) -> DependsOn {
        depend_on(&self.0)
    }

    fn key(&self) -> String {
        self.0.iter().map(qualified_key).collect()
    }
}

impl Fragment for Disjoint {
    fn matches(&self, name: &str, node: &dyn Facts) -> bool {
        self.0.iter().any(|fragment| fragment.matches(name, node))
    }

    fn repeats(&self) -> bool {
        all_repeat(&self.0)
    }

    fn depends_on(&self) -> DependsOn {
        depend_on(&self.0)
    }

    fn key(&self) -> String {
        self.0.iter().map(qualified_key).collect()
    }
}

impl fmt::Display for Joint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_separated(f, &self.0, " & ")
    }
}

impl fmt::Display for Disjoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_separated(f, &self.0, " | ")
    }
}

/// How deep fragments stand within fragments.
pub(crate) fn nesting(fragment: &dyn Fragment) -> usize {
    let deepest = |parts: &[Arc<dyn Fragment>]| {
        1 + parts.iter().map(|part| nesting(&**part)).max().unwrap_or(0)
    };
    if let Some(Inverted { inner, .. }) = fragment.downcast_ref() {
        1 + nesting(&**inner)
    } else if let Some(Joint(parts)) = fragment.downcast_ref() {
        deepest(parts)
    } else if let Some(Disjoint(parts)) = fragment.downcast_ref() {
        deepest(parts)
    } else {
        0
    }
}

fn all_repeat(fragments: &[Arc<dyn Fragment>]) -> bool {
    !fragments.is_empty() && fragments.iter().all(|fragment| fragment.repeats())
}

fn depend_on(fragments: &[Arc<dyn Fragment>]) -> DependsOn {
    let all = fragments.iter().map(|fragment| fragment.depends_on());
    let either = |a, b| match (a, b) {
        (a, b) if a == b => a,
        (DependsOn::Anything, _) | (_, DependsOn::Anything) => DependsOn::Anything,
        _ => DependsOn::NameClassAndTags,
    };
    all.reduce(either).unwrap_or(DependsOn::ClassAndTags)
}

/// A key that distinguishes fragments of different types, too, and can stand beside others.
fn qualified_key(fragment: &Arc<dyn Fragment>) -> String {
    let key = fragment.key();
    format!("{:?}{}:{key}", super::concrete(&**fragment).type_id(), key.len())
}

fn write_separated(
    f: &mut fmt::Formatter<'_>,
    parts: &[Arc<dyn Fragment>],
    separator: &str,
) -> fmt::Result {
    f.write_str("<")?;
    for (i, part) in parts.iter().enumerate() {
        if i > 0 {
            f.write_str(separator)?;
        }
        part.fmt(f)?;
    }
    f.write_str(">")
}
