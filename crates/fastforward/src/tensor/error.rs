//! The error of everything that touches tensors.

use std::error::Error as StdError;
use std::fmt;
use std::ops::Deref;

use crate::ErrorKind;

/// What a function on tensors returns.
pub type Result<T> = std::result::Result<T, Error>;

/// An error of the core or of candle, so that `?` works on both in a `forward`.
///
/// It dereferences to [`fastforward::Error`](crate::Error), whose [`kind`](crate::Error::kind) tells cases apart, and
/// converts back into it. What candle reports has the kind [`ErrorKind::Tensor`], unless one of our own errors
/// went through a candle operator: that comes out as it went in.
#[derive(Debug)]
pub struct Error(crate::Error);

/// What a built-in kernel says when a call no longer is one that its predicate accepts: a quantizer was replaced, or an
/// override came, since the predicate was asked. The float operator takes over.
#[derive(Debug)]
struct Declined;

impl fmt::Display for Declined {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("what the kernel's predicate accepted has changed since")
    }
}

impl StdError for Declined {}

impl Error {
    /// An error of this kind with this message.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self(crate::Error::new(kind, message))
    }

    /// The error of an operator: its name, then what is wrong.
    pub fn operator(operator: &str, what: impl fmt::Display) -> Self {
        Self::new(ErrorKind::Operator, format!("{operator}: {what}"))
    }

    /// The error of a kernel whose predicate would not accept the call any more.
    pub(super) fn declined(operator: &str) -> Self {
        let message = format!("{operator}: the kernel does not take these arguments");
        Self(crate::Error::new(ErrorKind::Operator, message).with_source(Declined))
    }

    pub(super) fn is_declined(&self) -> bool {
        self.source().is_some_and(|source| source.is::<Declined>())
    }

    /// The same error, its message preceded by where it happened.
    pub fn at(self, place: impl fmt::Display) -> Self {
        Self(self.0.at(place))
    }

    /// The error as the core knows it.
    pub fn into_inner(self) -> crate::Error {
        self.0
    }

    /// The error as candle can carry it through a custom operator; [`From`] takes it out again.
    pub(crate) fn into_candle(self) -> candle_core::Error {
        candle_core::Error::WrappedContext { wrapped: Box::new(self), context: String::new() }
    }
}

impl Deref for Error {
    type Target = crate::Error;

    fn deref(&self) -> &crate::Error {
        &self.0
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.0.source()
    }
}

impl From<crate::Error> for Error {
    fn from(error: crate::Error) -> Self {
        Self(error)
    }
}

impl From<Error> for crate::Error {
    fn from(error: Error) -> Self {
        error.0
    }
}

impl From<candle_core::Error> for Error {
    fn from(error: candle_core::Error) -> Self {
        match own(error) {
            Ok(own) => own,
            Err(error) => {
                Self(crate::Error::new(ErrorKind::Tensor, error.to_string()).with_source(error))
            }
        }
    }
}

/// Our own error, if candle only carried it.
fn own(error: candle_core::Error) -> std::result::Result<Error, candle_core::Error> {
    use candle_core::Error as Candle;
    match error {
        Candle::WrappedContext { wrapped, context } => match wrapped.downcast::<Error>() {
            Ok(own) => Ok(*own),
            Err(wrapped) => Err(Candle::WrappedContext { wrapped, context }),
        },
        Candle::WithBacktrace { inner, backtrace } => {
            own(*inner).map_err(|inner| Candle::WithBacktrace { inner: Box::new(inner), backtrace })
        }
        Candle::Context { inner, context } => {
            own(*inner).map_err(|inner| Candle::Context { inner: Box::new(inner), context })
        }
        other => Err(other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_errors_pass_through_candle_unchanged() {
        let error = Error::operator("conv2d", "the kernel is larger than the input");
        let carried = error.into_candle().bt().context("while running the model");
        let back = Error::from(carried);
        assert_eq!(back.kind(), ErrorKind::Operator);
        assert_eq!(back.to_string(), "conv2d: the kernel is larger than the input");
        let foreign = Error::from(candle_core::Error::Msg("out of memory".into()));
        assert_eq!(
            (foreign.kind(), foreign.to_string().as_str()),
            (ErrorKind::Tensor, "out of memory")
        );
    }
}
