//! The one error type of the core.

use std::error::Error as StdError;
use std::fmt;

/// What went wrong, so that a program can tell cases apart without reading the message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// A query cannot be parsed or composed; the source is an [`mpath::Error`].
    Query,
    /// A rule matched nothing, never wins, or did not match as often as it expects.
    Rule,
    /// A slot already holds a quantizer and the overwrite policy forbids replacing it.
    AlreadySet,
    /// A slot no longer holds the quantizer that was seen when the collection was made.
    UnsafeUpdate,
    /// A quantizer factory failed.
    Factory,
    /// A quantizer was used before its range was set.
    UnsetQuantizer,
    /// A range, a scale or an offset that makes no grid.
    InvalidRange,
    /// A granularity that does not fit the shape of the data.
    Granularity,
    /// A bit width, or a combination of settings, that no quantizer has.
    InvalidSettings,
    /// The data cannot be quantized: NaN, wrong length, empty.
    InvalidData,
    /// An estimator was asked to handle a quantizer that has no range.
    Unsupported,
    /// A range estimator failed in a way of its own, or two of them cannot be merged.
    Estimator,
    /// A quantizer saw no data during calibration.
    NoData,
    /// A saved state does not fit: wrong version, wrong model, missing or unexpected entries.
    State,
    /// A configuration file is wrong.
    Config,
    /// Strict mode met a float where a quantized value is expected, or an operator without an output quantizer.
    Strict,
    /// An operator cannot do what it was asked: shapes or settings that do not fit, a type it has no kernel for.
    Operator,
    /// The tensor library failed; the source is its error.
    Tensor,
    /// A file cannot be read or written.
    Io,
}

/// An error of the core: its [kind](Error::kind), and a message that names the place and what would have been right.
#[derive(Debug)]
pub struct Error {
    kind: ErrorKind,
    message: String,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

impl Error {
    /// An error of this kind with this message.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), source: None }
    }

    /// The same error with the error that caused it.
    pub fn with_source(mut self, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// One error for several problems of one kind: a single one stands alone, more become a list.
    pub fn of_problems(kind: ErrorKind, summary: &str, problems: &[String]) -> Self {
        let message = match problems {
            [one] => one.clone(),
            many => format!("{} {summary}:\n  - {}", many.len(), many.join("\n  - ")),
        };
        Self::new(kind, message)
    }

    /// The same error, its message preceded by where it happened.
    pub fn at(mut self, place: impl fmt::Display) -> Self {
        self.message = format!("{place}: {}", self.message);
        self
    }

    /// What went wrong.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.source.as_deref().map(|source| source as &(dyn StdError + 'static))
    }
}
