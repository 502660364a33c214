use std::fmt;
use std::sync::Arc;

use super::Fragment;
use crate::Facts;

/// A test given as a closure. It has no text form: it prints as `<predicate>`.
///
/// Every clone of one `PredicateFragment` is equal to it; two made separately differ even when the closure is the
/// same.
///
/// ```
/// use mpath::{PredicateFragment, Selector};
/// let wide = PredicateFragment::new(|name, _node| name.ends_with("_wide"));
/// let selector = Selector::root() / Selector::from_fragment(wide);
/// assert_eq!(selector.to_string(), "**/<predicate>");
/// ```
#[derive(Clone)]
pub struct PredicateFragment(Arc<Test>);

type Test = dyn Fn(&str, &dyn Facts) -> bool + Send + Sync;

impl PredicateFragment {
    /// The test that `matches(name, node)` makes.
    pub fn new(matches: impl Fn(&str, &dyn Facts) -> bool + Send + Sync + 'static) -> Self {
        PredicateFragment(Arc::new(matches))
    }
}

impl Fragment for PredicateFragment {
    fn matches(&self, name: &str, node: &dyn Facts) -> bool {
        (self.0)(name, node)
    }

    fn key(&self) -> String {
        // Closures without captures have no storage of their own, but the counters beside them in the `Arc` do.
        format!("{:p}", Arc::as_ptr(&self.0).cast::<()>())
    }
}

impl fmt::Display for PredicateFragment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("<predicate>")
    }
}
