use std::fmt;

use super::{DependsOn, Fragment};
use crate::Facts;

/// `*` and `**`: any child.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Wildcard {
    /// `*`: one level, whatever it is.
    AnyChild,
    /// `**`: any number of levels, none included.
    AnyPath,
}

impl Fragment for Wildcard {
    fn matches(&self, _: &str, _: &dyn Facts) -> bool {
        true
    }

    fn repeats(&self) -> bool {
        *self == Wildcard::AnyPath
    }

    fn depends_on(&self) -> DependsOn {
        DependsOn::ClassAndTags
    }
}

impl fmt::Display for Wildcard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Wildcard::AnyChild => "*",
            Wildcard::AnyPath => "**",
        })
    }
}
