//! The parts of a query that look at one node.

mod class;
mod combine;
mod name;
mod pattern;
mod predicate;
mod wildcard;

use std::any::Any;
use std::fmt;
use std::hash::{Hash, Hasher};

use crate::Facts;

pub use class::ClassFragment;
pub(crate) use combine::nesting;
pub use combine::{Disjoint, Inverted, Joint};
pub use name::NameFragment;
pub use pattern::PatternFragment;
pub use predicate::PredicateFragment;
pub use wildcard::Wildcard;

/// One test on a node: what stands between two slashes of a query.
///
/// Implement it for a type of your own, make selectors of it with
/// [`Selector::from_fragment`](crate::Selector::from_fragment), and give it a text form by registering an
/// [`Extension`](crate::Extension).
///
/// ```
/// use std::fmt;
/// use mpath::{Context, DependsOn, Facts, Fragment, Selector};
///
/// /// Matches names of at least so many letters: `[longer:8]`.
/// struct LongerThan(usize);
///
/// impl Fragment for LongerThan {
///     fn matches(&self, name: &str, _: &dyn Facts) -> bool {
///         name.len() >= self.0
///     }
///     fn depends_on(&self) -> DependsOn {
///         DependsOn::Name
///     }
/// }
///
/// impl fmt::Display for LongerThan {
///     fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
///         write!(f, "[longer:{}]", self.0)
///     }
/// }
///
/// let mut context = Context::new();
/// context.register_extension("longer", |body: &str, _: &Context| {
///     let letters = body.parse().map_err(|_| mpath::ExtensionError::new("expected a number"))?;
///     Ok(Selector::from_fragment(LongerThan(letters)))
/// })?;
/// assert_eq!(context.query("**/[longer:8]/x")?.to_string(), "**/[longer:8]/x");
/// # Ok::<(), mpath::Error>(())
/// ```
pub trait Fragment: fmt::Display + Any + Send + Sync {
    /// Whether a child passes the test, given the name it has in its parent.
    fn matches(&self, name: &str, node: &dyn Facts) -> bool;

    /// Whether the fragment stands for any number of levels, none included, each of which passes the test: `**`.
    fn repeats(&self) -> bool {
        false
    }

    /// What the answer of [`matches`](Fragment::matches) depends on. An engine that walks many nodes remembers answers
    /// for children that are equal in these, unless told that it depends on anything.
    fn depends_on(&self) -> DependsOn {
        DependsOn::Anything
    }

    /// A text that is equal for two fragments of the same type exactly when they are the same test.
    fn key(&self) -> String {
        self.to_string()
    }

    /// Fragments of this type that would match the given child, as text; used to suggest what was meant when nothing
    /// matched.
    fn alternatives(&self, name: &str, node: &dyn Facts) -> Vec<String> {
        let _ = (name, node);
        Vec::new()
    }
}

/// What the answer of a fragment depends on.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum DependsOn {
    /// On nothing but the name of the child: the answer may be remembered for all children of this name.
    Name,
    /// On nothing but the class and the tags of the child, or on nothing at all.
    ClassAndTags,
    /// On nothing but the name, the class and the tags of the child.
    NameClassAndTags,
    /// On anything: every node has to be asked.
    Anything,
}

/// Structural: the same type and the same [`key`](Fragment::key).
impl PartialEq for dyn Fragment {
    fn eq(&self, other: &Self) -> bool {
        std::ptr::addr_eq(self, other)
            || concrete(self).type_id() == concrete(other).type_id() && self.key() == other.key()
    }
}

impl Eq for dyn Fragment {}

impl Hash for dyn Fragment {
    fn hash<H: Hasher>(&self, state: &mut H) {
        concrete(self).type_id().hash(state);
        self.key().hash(state);
    }
}

impl fmt::Debug for dyn Fragment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl dyn Fragment {
    /// The fragment as the type it was made from.
    pub fn downcast_ref<T: Fragment>(&self) -> Option<&T> {
        concrete(self).downcast_ref()
    }

    /// Whether this is `**`, however many pairs of `~` stand before it.
    pub(crate) fn is_any_path(&self) -> bool {
        if let Some(inverted) = self.downcast_ref::<Inverted>() {
            return inverted.is_even() && inverted.inner().is_any_path();
        }
        self.downcast_ref::<Wildcard>() == Some(&Wildcard::AnyPath)
    }
}

/// The value behind the trait object, whose `type_id` is that of the concrete type.
fn concrete(fragment: &dyn Fragment) -> &dyn Any {
    fragment
}
