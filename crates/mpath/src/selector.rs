//! Queries as values.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::ops::{BitAnd, BitOr, Div, Not, Range};
use std::sync::Arc;

use crate::automaton::Lists;
use crate::fragment::{Inverted, Joint, nesting};
use crate::limits::{MAX_FRAGMENTS, MAX_NESTING};
use crate::{Error, ErrorKind, Fragment, NameFragment, Wildcard};

/// A query: segments, each of which is a [`Fragment`] or a group of alternative selectors.
///
/// Selectors come from [`Context::query`](crate::Context::query) or from fragments, and combine to others:
/// `a / b` is `a/b`, `a | b` is `{a, b}`, and for selectors of one fragment `a & b` and `!a` (written `~a` in a query)
/// may succeed. They are immutable, cheap to clone, and equal when they have the same structure. What was parsed prints
/// as a text that parses to an equal selector in the same context.
///
/// ```
/// use mpath::{Context, Selector};
/// let context = Context::new();
/// let layer = context.query("encoder/layer")?;
/// let query = layer / (Selector::name("query") | Selector::name("key")) / (!Selector::name("bias"))?;
/// assert_eq!(query.to_string(), "encoder/layer/{query, key}/~bias");
/// assert_eq!(query, context.query(&query.to_string())?);
/// # Ok::<(), mpath::Error>(())
/// ```
///
/// A selector that would exceed the [`limits`](crate::limits) prints as `<too large>` and is refused by every search.
#[derive(Clone)]
pub struct Selector {
    segments: Arc<[Segment]>,
    start: usize,
    /// The number of fragments; `usize::MAX` for what exceeds the limits.
    size: usize,
    /// How deep groups are nested.
    depth: usize,
}

/// What stands between two slashes.
#[derive(Clone)]
pub struct Segment {
    kind: SegmentKind,
    source: Option<Source>,
}

/// The two kinds of segments.
#[derive(Clone, PartialEq, Eq, Hash)]
pub enum SegmentKind {
    /// A test on one level (or, if it repeats, on any number of levels).
    Fragment(Arc<dyn Fragment>),
    /// Alternatives, each with one segment or more.
    Group(Arc<[Selector]>),
}

/// Where a segment was written.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Source {
    pub(crate) text: Arc<str>,
    pub(crate) span: Range<usize>,
}

impl Selector {
    /// The selector `**`, the beginning of most selectors built in code.
    pub fn root() -> Self {
        Selector::from_fragment(Wildcard::AnyPath)
    }

    /// The selector of the child of this name.
    pub fn name(name: &str) -> Self {
        Selector::from_fragment(NameFragment::new(name))
    }

    /// The selector of one fragment.
    pub fn from_fragment(fragment: impl Fragment) -> Self {
        Selector::from_shared(Arc::new(fragment))
    }

    /// The selector of one fragment that is shared already.
    pub fn from_shared(fragment: Arc<dyn Fragment>) -> Self {
        Selector::of(vec![Segment { kind: SegmentKind::Fragment(fragment), source: None }])
    }

    /// The selector of any of the alternatives, `{a, b, ...}`.
    ///
    /// # Errors
    /// [`ErrorKind::Composition`] if there is no alternative.
    pub fn group(alternatives: impl IntoIterator<Item = Selector>) -> Result<Self, Error> {
        let alternatives: Vec<Selector> = alternatives.into_iter().collect();
        if alternatives.is_empty() {
            let message = "a group needs at least one alternative";
            return Err(Error::new(ErrorKind::Composition, message));
        }
        Ok(Selector::of(vec![Segment {
            kind: SegmentKind::Group(alternatives.into()),
            source: None,
        }]))
    }

    /// The selector of these segments, of which there is at least one.
    pub(crate) fn of(segments: Vec<Segment>) -> Self {
        let mut size: usize = 0;
        let mut depth = 0;
        for segment in &segments {
            match &segment.kind {
                SegmentKind::Fragment(_) => size = size.saturating_add(1),
                SegmentKind::Group(alternatives) => {
                    size = size.saturating_add(1);
                    for alternative in alternatives.iter() {
                        size = size.saturating_add(alternative.size);
                        depth = depth.max(1 + alternative.depth);
                    }
                }
            }
        }
        if size > MAX_FRAGMENTS || depth > MAX_NESTING {
            return Selector { segments: Arc::new([]), start: 0, size: usize::MAX, depth: 0 };
        }
        Selector { segments: segments.into(), start: 0, size, depth }
    }

    /// Whether the selector exceeds the limits on its size or nesting.
    pub fn is_too_large(&self) -> bool {
        self.size == usize::MAX
    }

    /// An error if the selector exceeds the limits.
    pub(crate) fn check_size(&self) -> Result<(), Error> {
        if !self.is_too_large() {
            return Ok(());
        }
        let message = format!(
            "the selector is too large: at most {MAX_FRAGMENTS} fragments and {MAX_NESTING} nested groups can be searched"
        );
        Err(Error::new(ErrorKind::QueryTooLarge, message))
    }

    /// The segments.
    pub fn segments(&self) -> &[Segment] {
        &self.segments[self.start..]
    }

    /// The number of segments; a group counts one.
    #[expect(clippy::len_without_is_empty, reason = "no selector is empty")]
    pub fn len(&self) -> usize {
        self.segments().len()
    }

    /// The segment at this place, as a selector of its own.
    pub fn get(&self, index: usize) -> Option<Selector> {
        self.segments().get(index).map(|segment| Selector::of(vec![segment.clone()]))
    }

    /// The selector, the selector without its first segment, and so on: `a/b/c`, `b/c`, `c`.
    pub fn tails(&self) -> impl Iterator<Item = Selector> + use<'_> {
        (self.start..self.segments.len()).map(|start| Selector { start, ..self.clone() })
    }

    /// The segments up to, not including, this place; `None` if that leaves none.
    pub(crate) fn prefix(&self, len: usize) -> Option<Selector> {
        (len > 0).then(|| Selector::of(self.segments()[..len].to_vec()))
    }

    /// An equivalent selector with a simpler beginning (spec §1.9).
    ///
    /// Several `**` at the beginning become one. A group after it loses the `**` at the beginning of its alternatives,
    /// and the group itself if one alternative is just `**`, for then it adds nothing to the `**` before it. A group at
    /// the beginning whose alternatives all begin with `**` is turned into `**` and a group.
    ///
    /// ```
    /// let context = mpath::Context::new();
    /// let simple = |query| context.query(query).unwrap().simplify().to_string();
    /// assert_eq!(simple("**/**/a"), "**/a");
    /// assert_eq!(simple("{**/a, **/b}/c"), "**/{a, b}/c");
    /// assert_eq!(simple("{**, **/a}"), "**");
    /// assert_eq!(simple("a/**/**"), "a/**/**");
    /// ```
    #[must_use]
    pub fn simplify(&self) -> Selector {
        if self.is_too_large() {
            return self.clone();
        }
        let mut lists = Lists::new();
        let list = lists.add(self);
        let simple = lists.simplify(list);
        if simple == list { self.clone() } else { lists.selector(simple) }
    }

    /// The one fragment of a selector that is nothing else.
    pub(crate) fn single(&self) -> Option<&Arc<dyn Fragment>> {
        match self.segments() {
            [Segment { kind: SegmentKind::Fragment(fragment), .. }] => Some(fragment),
            _ => None,
        }
    }

    /// The fragment that both selectors consist of, joined: `a & b`.
    ///
    /// # Errors
    /// [`ErrorKind::Composition`] unless both have exactly one segment and that is not a group.
    pub fn join(&self, other: &Selector) -> Result<Selector, Error> {
        let fragments = [self.operand("join", "`&`")?, other.operand("join", "`&`")?];
        Selector::checked(Joint::new(fragments))
    }

    /// The fragment that the selector consists of, inverted: `~a`.
    ///
    /// # Errors
    /// [`ErrorKind::Composition`] unless it has exactly one segment and that is not a group.
    pub fn invert(&self) -> Result<Selector, Error> {
        Selector::checked(Inverted::new(self.operand("invert", "`~`")?))
    }

    fn operand(&self, verb: &str, operator: &str) -> Result<Arc<dyn Fragment>, Error> {
        self.check_size()?;
        self.single().cloned().ok_or_else(|| {
            let found = match self.segments() {
                [_] => "a group".to_owned(),
                several => format!("{} segments", several.len()),
            };
            let message = format!(
                "cannot {verb} `{self}`: {operator} needs a single fragment, found {found}"
            );
            Error::new(ErrorKind::Composition, message)
        })
    }

    fn checked(fragment: impl Fragment) -> Result<Selector, Error> {
        if nesting(&fragment) > MAX_NESTING {
            let message = format!("fragments are nested more than {MAX_NESTING} deep");
            return Err(Error::new(ErrorKind::QueryTooLarge, message));
        }
        Ok(Selector::from_fragment(fragment))
    }

    /// This selector with every segment marked as written there.
    pub(crate) fn written_at(mut self, text: &Arc<str>, span: Range<usize>) -> Selector {
        let source = Source { text: text.clone(), span };
        let segments = self.segments().iter();
        let segments =
            segments.map(|s| Segment { kind: s.kind.clone(), source: Some(source.clone()) });
        self.segments = segments.collect();
        self.start = 0;
        self
    }
}

impl Segment {
    /// What the segment is.
    pub fn kind(&self) -> &SegmentKind {
        &self.kind
    }

    /// Where the segment was written, if it was; an alias is written where it is used.
    pub fn source(&self) -> Option<&Source> {
        self.source.as_ref()
    }

    pub(crate) fn new(kind: SegmentKind) -> Self {
        Segment { kind, source: None }
    }
}

impl Source {
    /// The whole text of the query.
    pub fn query(&self) -> &str {
        &self.text
    }

    /// The bytes of the query that the segment was written as.
    pub fn span(&self) -> Range<usize> {
        self.span.clone()
    }

    /// What was written.
    pub fn text(&self) -> &str {
        &self.text[self.span.clone()]
    }
}

impl PartialEq for Segment {
    fn eq(&self, other: &Self) -> bool {
        self.kind == other.kind
    }
}

impl Eq for Segment {}

impl Hash for Segment {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.kind.hash(state);
    }
}

impl PartialEq for Selector {
    fn eq(&self, other: &Self) -> bool {
        self.is_too_large() == other.is_too_large() && self.segments() == other.segments()
    }
}

impl Eq for Selector {}

impl Hash for Selector {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.segments().hash(state);
    }
}

impl Div for &Selector {
    type Output = Selector;
    fn div(self, below: &Selector) -> Selector {
        if self.is_too_large() || below.is_too_large() {
            return if self.is_too_large() { self.clone() } else { below.clone() };
        }
        Selector::of(self.segments().iter().chain(below.segments()).cloned().collect())
    }
}

/// Both alternatives. `a | b | c` is `{a, b, c}`; alternatives are neither reordered nor dropped.
impl BitOr for &Selector {
    type Output = Selector;
    fn bitor(self, other: &Selector) -> Selector {
        if self.is_too_large() || other.is_too_large() {
            return if self.is_too_large() { self.clone() } else { other.clone() };
        }
        let mut alternatives = match self.segments() {
            // Only what this operator made, not a group that was written with its braces.
            [Segment { kind: SegmentKind::Group(alternatives), source: None }] => {
                alternatives.to_vec()
            }
            _ => vec![self.clone()],
        };
        alternatives.push(other.clone());
        Selector::of(vec![Segment::new(SegmentKind::Group(alternatives.into()))])
    }
}

impl BitAnd for &Selector {
    type Output = Result<Selector, Error>;
    fn bitand(self, other: &Selector) -> Self::Output {
        self.join(other)
    }
}

impl Not for &Selector {
    type Output = Result<Selector, Error>;
    fn not(self) -> Self::Output {
        self.invert()
    }
}

macro_rules! operators_on_values {
    ($($operator:ident $method:ident $output:ty;)+) => {$(
        impl $operator for Selector {
            type Output = $output;
            fn $method(self, other: Selector) -> $output {
                (&self).$method(&other)
            }
        }
        impl $operator<&Selector> for Selector {
            type Output = $output;
            fn $method(self, other: &Selector) -> $output {
                (&self).$method(other)
            }
        }
    )+};
}

operators_on_values! {
    Div div Selector;
    BitOr bitor Selector;
    BitAnd bitand Result<Selector, Error>;
}

impl Not for Selector {
    type Output = Result<Selector, Error>;
    fn not(self) -> Self::Output {
        self.invert()
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_too_large() {
            return f.write_str("<too large>");
        }
        write_separated(f, self.segments(), "/")
    }
}

impl fmt::Display for Segment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.kind {
            SegmentKind::Fragment(fragment) => fragment.fmt(f),
            SegmentKind::Group(alternatives) => {
                f.write_str("{")?;
                write_separated(f, alternatives, ", ")?;
                f.write_str("}")
            }
        }
    }
}

impl fmt::Debug for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "<selector: {self}>")
    }
}

impl fmt::Debug for Segment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "<segment: {self}>")
    }
}

impl fmt::Debug for SegmentKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Segment::new(self.clone()).fmt(f)
    }
}

fn write_separated<T: fmt::Display>(
    f: &mut fmt::Formatter<'_>,
    parts: &[T],
    separator: &str,
) -> fmt::Result {
    for (i, part) in parts.iter().enumerate() {
        if i > 0 {
            f.write_str(separator)?;
        }
        part.fmt(f)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Context;

    fn parse(text: &str) -> Selector {
        Context::new().query(text).unwrap()
    }

    #[test]
    fn composition_is_associative() {
        let [a, b, c] = ["a/b", "{c, d}", "**"].map(parse);
        assert_eq!(&(&a / &b) / &c, &a / &(&b / &c));
        assert_eq!((&a / &b).to_string(), "a/b/{c, d}");
    }

    #[test]
    fn alternatives_of_any_length() {
        let either = parse("a/b") | parse("c") | parse("{d, e}");
        assert_eq!(either.to_string(), "{a/b, c, {d, e}}");
        assert_eq!((parse("{a, b}") | parse("c")).to_string(), "{{a, b}, c}");
    }

    #[test]
    fn parts() {
        let query = parse("a/{b, c/d}/e");
        assert_eq!(query.len(), 3);
        assert_eq!(query.get(1).unwrap().to_string(), "{b, c/d}");
        assert_eq!(query.get(3), None);
        let tails: Vec<String> = query.tails().map(|tail| tail.to_string()).collect();
        assert_eq!(tails, ["a/{b, c/d}/e", "{b, c/d}/e", "e"]);
    }

    #[test]
    fn only_single_fragments_join_and_invert() {
        assert_eq!((parse("a") & parse("*")).unwrap().to_string(), "<a & *>");
        for query in ["a/b", "{a}"] {
            assert!((parse(query) & parse("a")).unwrap_err().is_query_error());
            assert!((!parse(query)).unwrap_err().is_query_error());
        }
        let message = (!parse("a/b")).unwrap_err().to_string();
        assert_eq!(message, "cannot invert `a/b`: `~` needs a single fragment, found 2 segments");
    }

    #[test]
    fn growing_without_end_ends_in_an_error() {
        let mut nested = parse("a");
        let mut long = parse("a");
        let mut inverted = parse("a");
        let mut joint = parse("a");
        for _ in 0..10_000 {
            nested = (&parse("x") | &nested) / parse("b");
            long = &long / &long;
            inverted = (!inverted).unwrap();
            joint = (joint & parse("b")).and_then(|joint| !joint).unwrap_or_else(|_| parse("a"));
        }
        assert!(nested.is_too_large() && long.is_too_large());
        assert!(long.check_size().is_err());
        assert_eq!(inverted.to_string().len(), 10_001);
    }

    #[test]
    fn equality_is_structural() {
        assert_eq!(parse("a/ [regex:x]"), parse("/a/[re:x]"));
        assert_ne!(parse("a"), parse("[re:a]"));
        assert_ne!(parse("{a}"), parse("a"));
    }
}
