//! What can go wrong between a graph file and its results.

use std::fmt;
use std::path::Path;

/// The result of this crate's functions.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An error with everything that was found wrong, each problem a phrase that
/// names its place.
///
/// ```
/// use fastforward_onnx::{ErrorKind, graph::Model};
///
/// let error = Model::from_bytes(Vec::new(), None).unwrap_err();
/// assert_eq!(error.kind(), ErrorKind::Malformed);
/// ```
#[derive(Debug)]
pub struct Error {
    kind: ErrorKind,
    place: Option<String>,
    problems: Vec<String>,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

/// What an [`Error`] is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// A file could not be opened, read or written.
    Io,
    /// The bytes are no ONNX file, or a file cut short.
    Malformed,
    /// The file is well formed, but contradicts itself or the ONNX rules.
    InvalidGraph,
    /// A version, operator or type that this crate or its engine lacks.
    Unsupported,
    /// Tensor data outside the file is missing, too short or out of bounds.
    ExternalData,
    /// A tensor, node or value that was asked for does not exist.
    NotFound,
    /// A value given by the caller has the wrong name, type, shape or content.
    Input,
    /// The engine failed while it computed.
    Execution,
    /// A quantizer has no range, does not fit its data, or cannot be written where it stands.
    Quantizer,
    /// A written file does not compute what it should.
    Verification,
    /// A query that is none, or a rule that decides nothing, or not as much as it should.
    Rules,
    /// The core refused a setting, a range or data.
    Core(fastforward_core::ErrorKind),
}

impl Error {
    pub(crate) fn new(kind: ErrorKind, problem: impl Into<String>) -> Self {
        Self::many(kind, vec![problem.into()])
    }

    /// One error for all of `problems`, of which there is at least one.
    pub(crate) fn many(kind: ErrorKind, problems: Vec<String>) -> Self {
        debug_assert!(!problems.is_empty());
        Self { kind, place: None, problems, source: None }
    }

    pub(crate) fn io(action: &str, path: &Path, source: std::io::Error) -> Self {
        let mut error =
            Self::new(ErrorKind::Io, format!("cannot {action} `{}`: {source}", path.display()));
        error.source = Some(Box::new(source));
        error
    }

    /// Says in which file or node it happened; the outermost place comes first.
    #[must_use]
    pub(crate) fn within(mut self, place: impl fmt::Display) -> Self {
        self.place = Some(match self.place {
            Some(inner) => format!("{place}: in {inner}"),
            None => place.to_string(),
        });
        self
    }

    #[must_use]
    pub(crate) fn caused_by(
        mut self,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        self.source = Some(source.into());
        self
    }

    /// The same with each path below the folder `from` as one below `to`.
    #[must_use]
    pub(crate) fn moved(mut self, from: &Path, to: &Path) -> Self {
        let [from, to] = [from, to].map(|path| path.display().to_string());
        for text in self.problems.iter_mut().chain(&mut self.place) {
            *text = text.replace(&from, &to);
        }
        self
    }

    /// What the error is about.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// Whether a file could not be read or written.
    pub(crate) fn is_of_files(&self) -> bool {
        use fastforward_core::ErrorKind as Core;
        matches!(self.kind, ErrorKind::Io | ErrorKind::ExternalData | ErrorKind::Core(Core::Io))
    }

    /// The problems, each a lower-case phrase, in the order of the file.
    pub fn problems(&self) -> &[String] {
        &self.problems
    }
}

/// The same message; the core's error is the source.
impl From<fastforward_core::Error> for Error {
    fn from(error: fastforward_core::Error) -> Self {
        Self::new(ErrorKind::Core(error.kind()), error.to_string()).caused_by(error)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(place) = &self.place {
            write!(f, "in {place}: ")?;
        }
        match self.problems.as_slice() {
            [problem] => f.write_str(problem),
            problems => {
                write!(f, "{} problems", problems.len())?;
                problems
                    .iter()
                    .try_for_each(|problem| write!(f, "\n  {}", problem.replace('\n', "\n  ")))
            }
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_deref().map(|source| source as _)
    }
}
