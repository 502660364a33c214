//! What can be wrong with a query, or with using its result.

use std::error::Error as StdError;
use std::fmt;
use std::ops::Range;

use crate::suggest;

/// An error in a query, in its composition, or in the use of its result.
///
/// Displayed, an error in a text points at the place, says what was expected there, and names what was probably meant:
///
/// ```
/// let context = mpath::Context::new();
/// let error = context.query("**/[clas:Linear]").unwrap_err();
/// assert_eq!(error.to_string(), "\
/// query parse error:
///     **/[clas:Linear]
///         ^^^^
/// error: `clas` is not a known extension
/// help: did you mean `class` or `cls`?");
/// ```
pub struct Error(Box<Inner>);

struct Inner {
    kind: ErrorKind,
    message: String,
    place: Option<(Box<str>, Range<usize>)>,
    alias: Option<String>,
    suggestions: Vec<String>,
    note: Option<String>,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

/// The kinds of [`Error`].
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The text is not a query.
    Syntax,
    /// `[tag:...]` names no registered extension.
    UnknownExtension,
    /// `&name` names no alias.
    UnknownAlias,
    /// `[cls:NAME]` names no registered class.
    UnknownClass,
    /// An extension refused its body: a regular expression that is none, for instance.
    ExtensionFailed,
    /// A query is too long, too deeply nested, or becomes so when its aliases are expanded.
    QueryTooLarge,
    /// Selectors cannot be combined this way: `~` or `&` of more than one fragment.
    Composition,
    /// An extension, or an alias, of that name exists already.
    Duplicate,
    /// Two collections come from different trees.
    DifferentRoots,
    /// The tree no longer holds the node that a result recorded.
    UnsafeUpdate,
    /// A replacement was refused by the tree.
    UpdateFailed,
    /// A path names no node of the tree.
    UnknownPath,
    /// A tree has more levels than are walked.
    TreeTooDeep,
    /// A tree has more nodes than are walked.
    TreeTooLarge,
}

impl Error {
    pub(crate) fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Error(Box::new(Inner {
            kind,
            message: message.into(),
            place: None,
            alias: None,
            suggestions: Vec::new(),
            note: None,
            source: None,
        }))
    }

    pub(crate) fn at(mut self, text: &str, span: Range<usize>) -> Self {
        self.0.place = Some((text.into(), span));
        self
    }

    pub(crate) fn in_alias(mut self, name: &str) -> Self {
        self.0.alias = Some(name.into());
        self
    }

    pub(crate) fn suggesting(mut self, suggestions: Vec<String>) -> Self {
        self.0.suggestions = suggestions;
        self
    }

    /// Suggests the nearest of the known names.
    pub(crate) fn suggesting_near<'a>(
        self,
        word: &str,
        known: impl IntoIterator<Item = &'a str>,
    ) -> Self {
        let near = suggest::ranked(word, known).into_iter().take(3).map(str::to_owned).collect();
        self.suggesting(near)
    }

    pub(crate) fn note(mut self, note: impl Into<String>) -> Self {
        self.0.note = Some(note.into());
        self
    }

    pub(crate) fn caused_by(mut self, source: Option<Box<dyn StdError + Send + Sync>>) -> Self {
        self.0.source = source;
        self
    }

    /// What kind of error this is.
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// What is wrong, in one phrase, without the place.
    pub fn message(&self) -> &str {
        &self.0.message
    }

    /// The text of the query, if the error is in a text.
    pub fn query(&self) -> Option<&str> {
        self.0.place.as_ref().map(|(text, _)| &**text)
    }

    /// The bytes of the query that the error is about. Empty at the end of the text.
    pub fn span(&self) -> Option<Range<usize>> {
        self.0.place.as_ref().map(|(_, span)| span.clone())
    }

    /// The alias in whose definition the error is.
    pub fn alias(&self) -> Option<&str> {
        self.0.alias.as_deref()
    }

    /// What was probably meant, likeliest first.
    pub fn suggestions(&self) -> &[String] {
        &self.0.suggestions
    }

    /// Whether the text of a query is at fault: what the reference calls `MPathParseError`.
    pub fn is_parse_error(&self) -> bool {
        use ErrorKind::*;
        matches!(
            self.kind(),
            Syntax
                | UnknownExtension
                | UnknownAlias
                | UnknownClass
                | ExtensionFailed
                | QueryTooLarge
        )
    }

    /// Whether selectors were combined in a way that has no meaning: what the reference calls `MPathQueryError`.
    pub fn is_query_error(&self) -> bool {
        self.kind() == ErrorKind::Composition
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Inner { message, place, alias, suggestions, note, .. } = &*self.0;
        if let Some(alias) = alias {
            write!(f, "in alias `{alias}`: ")?;
        }
        match place {
            None => {
                f.write_str(message)?;
                if let Some(help) = did_you_mean(suggestions) {
                    write!(f, "; {help}")?;
                }
                if let Some(note) = note {
                    write!(f, "; {note}")?;
                }
                Ok(())
            }
            Some((text, span)) => {
                let kind = if self.is_parse_error() { "query parse error" } else { "query error" };
                writeln!(f, "{kind}:")?;
                let (line, carets) = excerpt(text, span.clone());
                write!(f, "    {line}\n    {carets}\nerror: {message}")?;
                if let Some(help) = did_you_mean(suggestions) {
                    write!(f, "\nhelp: {help}")?;
                }
                if let Some(note) = note {
                    write!(f, "\nnote: {note}")?;
                }
                Ok(())
            }
        }
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {self}", self.kind())
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.0.source.as_deref().map(|source| source as &(dyn StdError + 'static))
    }
}

/// What an extension says when it cannot make a selector of its body.
///
/// ```
/// use mpath::ExtensionError;
/// let known = ["activation", "parameter"];
/// let error = ExtensionError::new("`paramter` is no tag").suggesting("paramter", known);
/// assert_eq!(error.to_string(), "`paramter` is no tag; did you mean `parameter`?");
/// ```
#[derive(Debug)]
pub struct ExtensionError {
    pub(crate) kind: ErrorKind,
    pub(crate) message: String,
    pub(crate) span: Option<Range<usize>>,
    pub(crate) suggestions: Vec<String>,
    pub(crate) note: Option<String>,
    pub(crate) source: Option<Box<dyn StdError + Send + Sync>>,
}

impl ExtensionError {
    /// An error with this message, a lower-case phrase.
    pub fn new(message: impl Into<String>) -> Self {
        ExtensionError {
            kind: ErrorKind::ExtensionFailed,
            message: message.into(),
            span: None,
            suggestions: Vec::new(),
            note: None,
            source: None,
        }
    }

    pub(crate) fn kind(mut self, kind: ErrorKind) -> Self {
        self.kind = kind;
        self
    }

    /// Points at bytes of the body instead of the whole body.
    #[must_use]
    pub fn at(mut self, span: Range<usize>) -> Self {
        self.span = Some(span);
        self
    }

    /// Suggests those of the known names that are near `word`.
    #[must_use]
    pub fn suggesting<'a>(mut self, word: &str, known: impl IntoIterator<Item = &'a str>) -> Self {
        self.suggestions =
            suggest::ranked(word, known).into_iter().take(3).map(str::to_owned).collect();
        self
    }

    /// Adds a remark, a lower-case phrase.
    #[must_use]
    pub fn note(mut self, note: impl Into<String>) -> Self {
        self.note = Some(note.into());
        self
    }

    /// Keeps the error that led to this one.
    #[must_use]
    pub fn caused_by(mut self, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }
}

impl fmt::Display for ExtensionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        if let Some(help) = did_you_mean(&self.suggestions) {
            write!(f, "; {help}")?;
        }
        if let Some(note) = &self.note {
            write!(f, "; {note}")?;
        }
        Ok(())
    }
}

impl StdError for ExtensionError {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.source.as_deref().map(|source| source as &(dyn StdError + 'static))
    }
}

pub(crate) fn did_you_mean(suggestions: &[String]) -> Option<String> {
    let quoted: Vec<String> = suggestions.iter().map(|s| format!("`{s}`")).collect();
    match quoted.as_slice() {
        [] => None,
        [one] => Some(format!("did you mean {one}?")),
        [first @ .., last] => Some(format!("did you mean {} or {last}?", first.join(", "))),
    }
}

/// The line around the span, and carets under the span. Long lines are cut.
fn excerpt(text: &str, span: Range<usize>) -> (String, String) {
    const BEFORE: usize = 60;
    const AFTER: usize = 40;
    let line_start = text[..span.start].rfind('\n').map_or(0, |newline| newline + 1);
    let line_end = text[span.start..].find('\n').map_or(text.len(), |len| span.start + len);
    let before: Vec<char> = text[line_start..span.start].chars().collect();
    let marked: Vec<char> =
        text[span.start..span.end.clamp(span.start, line_end)].chars().collect();
    let after: Vec<char> = text[span.end.clamp(span.start, line_end)..line_end].chars().collect();

    let mut line = String::new();
    let mut carets = String::new();
    if before.len() > BEFORE {
        line.push('…');
        carets.push(' ');
    }
    for &c in &before[before.len().saturating_sub(BEFORE)..] {
        line.push(if c.is_control() { ' ' } else { c });
        carets.push(' ');
    }
    for &c in marked.iter().take(AFTER) {
        line.push(if c.is_control() { ' ' } else { c });
        carets.push('^');
    }
    if marked.is_empty() {
        carets.push('^');
    }
    if marked.len() <= AFTER {
        line.extend(after.iter().take(AFTER).map(|&c| if c.is_control() { ' ' } else { c }));
    }
    if marked.len() > AFTER || after.len() > AFTER {
        line.push('…');
    }
    (line.trim_end().to_owned(), carets)
}
