//! One rule of a configuration.

use std::fmt;
use std::str::FromStr;

use mpath::Selector;

use super::Factory;
use crate::{Error, ErrorKind};

/// A query, and the factory of the quantizers for the slots it matches.
#[derive(Clone, Debug)]
pub struct Rule {
    /// Which slots.
    pub query: Selector,
    /// What makes their quantizers.
    pub factory: Factory,
    /// What messages call the rule; without a name it is called by its query.
    pub name: Option<String>,
    /// Where the rule was written, `w8a8.toml:12`.
    pub source: Option<String>,
    /// The score of the rule where the configuration has no scoring of its own. Higher wins.
    pub priority: i64,
    /// Whether it is fine if the rule decides nothing.
    pub optional: bool,
    /// How many slots the rule should match.
    pub expect: Option<Expect>,
}

impl Rule {
    /// A rule of score 1 that must decide something.
    pub fn new(query: Selector, factory: impl Into<Factory>) -> Self {
        Self {
            query,
            factory: factory.into(),
            name: None,
            source: None,
            priority: 1,
            optional: false,
            expect: None,
        }
    }

    /// What a message calls this rule: its name or query, and where it stands.
    pub fn label(&self) -> String {
        let name = self.name.clone().unwrap_or_else(|| self.query.to_string());
        match &self.source {
            Some(source) => format!("`{name}` ({source})"),
            None => format!("`{name}`"),
        }
    }
}

/// As the reference prints it: `**/[quantizer:parameter/weight] => LinearQuantizer(num_bits=4, ..)`.
impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} => {}", self.query, self.factory)
    }
}

/// How many slots a rule should match.
///
/// ```
/// use fastforward_core::quantization::quant_init::Expect;
/// let some: Expect = ">=1".parse()?;
/// assert!(some.holds(3) && !some.holds(0));
/// assert_eq!("32".parse::<Expect>()?, Expect::Exactly(32));
/// # Ok::<(), fastforward_core::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Expect {
    /// This many.
    Exactly(usize),
    /// This many or more.
    AtLeast(usize),
    /// This many or fewer.
    AtMost(usize),
}

impl Expect {
    /// Whether a number of matches is as expected.
    pub fn holds(self, matches: usize) -> bool {
        match self {
            Self::Exactly(count) => matches == count,
            Self::AtLeast(count) => matches >= count,
            Self::AtMost(count) => matches <= count,
        }
    }
}

impl FromStr for Expect {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let (make, digits): (fn(usize) -> Self, &str) = match text.trim() {
            rest if rest.starts_with(">=") => (Self::AtLeast, &rest[2..]),
            rest if rest.starts_with("<=") => (Self::AtMost, &rest[2..]),
            rest if rest.starts_with("==") => (Self::Exactly, &rest[2..]),
            rest => (Self::Exactly, rest),
        };
        digits.trim().parse().map(make).map_err(|_| {
            Error::new(
                ErrorKind::InvalidSettings,
                format!("an expected count is a number such as `32`, `\">=1\"` or `\"<=4\"`, found `{text}`"),
            )
        })
    }
}

impl fmt::Display for Expect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exactly(count) => write!(f, "{count}"),
            Self::AtLeast(count) => write!(f, "at least {count}"),
            Self::AtMost(count) => write!(f, "at most {count}"),
        }
    }
}
