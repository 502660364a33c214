//! Tokens to selectors (spec §1.3).

use std::ops::Range;
use std::sync::Arc;

use crate::lexer::{Lexer, Token, TokenKind};
use crate::limits::{MAX_FRAGMENTS, MAX_NESTING, MAX_QUERY_BYTES};
use crate::selector::{Segment, SegmentKind};
use crate::{Aliases, Context, Error, ErrorKind, NameFragment, Selector, Wildcard};

/// Parses a query.
pub(crate) fn parse(text: &str, context: &Context, aliases: &Aliases) -> Result<Selector, Error> {
    if text.len() > MAX_QUERY_BYTES {
        let message =
            format!("the query has {} bytes, at most {MAX_QUERY_BYTES} are accepted", text.len());
        return Err(Error::new(ErrorKind::QueryTooLarge, message));
    }
    let mut lexer = Lexer::new(text);
    let token = lexer.next_token();
    let mut parser =
        Parser { text: text.into(), context, aliases, lexer, token, depth: 0, fragments: 0 };
    parser.query()
}

struct Parser<'p> {
    text: Arc<str>,
    context: &'p Context,
    aliases: &'p Aliases,
    lexer: Lexer<'p>,
    /// The token that comes next.
    token: Token,
    /// The number of groups that are open.
    depth: usize,
    /// The number of fragments so far, with those of aliases.
    fragments: usize,
}

impl Parser<'_> {
    /// `query = [ "/" ] selector END`
    fn query(&mut self) -> Result<Selector, Error> {
        if self.is('/') {
            self.advance();
        }
        let selector = self.selector()?;
        if self.token.kind == TokenKind::End {
            // Aliases may have brought in more than was written.
            let whole = 0..self.text.len();
            return if selector.is_too_large() { Err(self.too_large(whole)) } else { Ok(selector) };
        }
        let error = self.unexpected("`/` or the end of the query");
        Err(match self.token.kind {
            TokenKind::Char(']' | '}') => error.note("it closes nothing"),
            TokenKind::Char('.' | '-') | TokenKind::Identifier | TokenKind::Digits => error.note(
                "names other than identifiers and numbers are written `[name:...]`, patterns `[re:...]`",
            ),
            TokenKind::Char('|') => error.note("alternatives are written `{a, b}`"),
            TokenKind::Char('*') => error.note("patterns are written `[re:...]`"),
            _ => error,
        })
    }

    /// `selector = fragment { "/" fragment } [ "/" ]`, the last slash only at the end of the text.
    fn selector(&mut self) -> Result<Selector, Error> {
        let mut segments = Vec::new();
        self.fragment(&mut segments)?;
        while self.is('/') {
            self.advance();
            if self.token.kind == TokenKind::End {
                break;
            }
            self.fragment(&mut segments)?;
        }
        Ok(Selector::of(segments))
    }

    /// `fragment = path | wildcard | extension | group | negation | alias`
    fn fragment(&mut self, segments: &mut Vec<Segment>) -> Result<(), Error> {
        let start = self.token.span.start;
        let mut inversions = 0;
        let mut operand = start;
        while self.is('~') {
            self.advance();
            inversions += 1;
            operand = self.token.span.start;
        }
        let (mut selector, end) = self.plain_fragment()?;
        self.fragments += selector.segments().len();
        if selector.is_too_large() || self.fragments > MAX_FRAGMENTS {
            return Err(self.too_large(start..end));
        }
        for _ in 0..inversions {
            let Ok(inverted) = selector.invert() else {
                let found = match selector.segments() {
                    [_] => "a group",
                    _ => "several",
                };
                let message = format!("`~` needs a single fragment, found {found}");
                return Err(self.error(ErrorKind::Composition, message, operand..end));
            };
            selector = inverted;
        }
        segments.extend_from_slice(selector.written_at(&self.text, start..end).segments());
        Ok(())
    }

    /// A fragment without `~`, and where it ends.
    fn plain_fragment(&mut self) -> Result<(Selector, usize), Error> {
        let Token { kind, span } = self.token.clone();
        match kind {
            TokenKind::Identifier | TokenKind::Digits => {
                self.advance();
                let name = NameFragment::new(&self.text[span.clone()]);
                Ok((Selector::from_fragment(name), span.end))
            }
            TokenKind::Char('*') => {
                self.advance();
                if !self.is('*') {
                    return Ok((Selector::from_fragment(Wildcard::AnyChild), span.end));
                }
                let end = self.token.span.end;
                self.advance();
                Ok((Selector::from_fragment(Wildcard::AnyPath), end))
            }
            TokenKind::Char('[') => self.extension(),
            TokenKind::Char('{') => self.group(),
            TokenKind::Char('&') => self.alias(),
            _ => Err(self.unexpected("a name, `*`, `**`, `[...]`, `{...}`, `~` or `&`")),
        }
    }

    /// `group = "{" selector { "," selector } "}"`
    fn group(&mut self) -> Result<(Selector, usize), Error> {
        let open = self.token.span.clone();
        if self.depth == MAX_NESTING {
            let message = format!("groups are nested more than {MAX_NESTING} deep");
            return Err(self.error(ErrorKind::QueryTooLarge, message, open));
        }
        self.depth += 1;
        self.advance();
        let mut alternatives = vec![self.selector()?];
        while self.is(',') {
            self.advance();
            alternatives.push(self.selector()?);
        }
        let end = self.token.span.end;
        self.close('}', open)?;
        self.depth -= 1;
        let kind = SegmentKind::Group(alternatives.into());
        Ok((Selector::of(vec![Segment::new(kind)]), end))
    }

    /// `alias = "&" IDENTIFIER`
    fn alias(&mut self) -> Result<(Selector, usize), Error> {
        self.advance();
        let (name, span) = self.identifier("the name of an alias after `&`")?;
        let Some(selector) = self.aliases.get(&name) else {
            let message = format!("`{name}` is not a known alias");
            let known = self.aliases.iter().map(|(name, _)| name);
            let error = self.error(ErrorKind::UnknownAlias, message, span);
            return Err(error.suggesting_near(&name, known));
        };
        Ok((selector.clone(), span.end))
    }

    /// `extension = "[" IDENTIFIER ":" body "]"`, the body up to the first bracket that is not escaped.
    fn extension(&mut self) -> Result<(Selector, usize), Error> {
        let open = self.token.span.clone();
        self.advance();
        let (tag, tag_span) = self.identifier("the tag of an extension after `[`")?;
        if !self.is(':') {
            return Err(self.unexpected("`:` after the tag of an extension"));
        }
        let body_start = self.token.span.end;
        let mut escaped = false;
        loop {
            self.advance();
            match self.token.kind {
                TokenKind::Char(']') if !escaped => break,
                TokenKind::End => {
                    let message = "unclosed `[`, expected `]`";
                    return Err(self.error(ErrorKind::Syntax, message, open));
                }
                kind => escaped = kind == TokenKind::Char('\\') && !escaped,
            }
        }
        let Range { start: body_end, end } = self.token.span;
        self.advance();
        let Some(extension) = self.context.extension(&tag) else {
            let message = format!("`{tag}` is not a known extension");
            let error = self.error(ErrorKind::UnknownExtension, message, tag_span);
            return Err(error.suggesting_near(&tag, self.context.extension_tags()));
        };
        let body = &self.text[body_start..body_end];
        let selector = extension.build(body, self.context).map_err(|error| {
            let inner = error.span.filter(|span| {
                span.start <= span.end
                    && body.is_char_boundary(span.start)
                    && body.is_char_boundary(span.end)
            });
            let span = match inner {
                Some(inner) => body_start + inner.start..body_start + inner.end,
                None => body_start..body_end,
            };
            let with_place = self
                .error(error.kind, error.message, span)
                .suggesting(error.suggestions)
                .caused_by(error.source);
            match error.note {
                Some(note) => with_place.note(note),
                None => with_place,
            }
        })?;
        Ok((selector, end))
    }

    fn identifier(&mut self, expected: &str) -> Result<(String, Range<usize>), Error> {
        if self.token.kind != TokenKind::Identifier {
            return Err(self.unexpected(expected));
        }
        let span = self.token.span.clone();
        let name = self.text[span.clone()].to_owned();
        self.advance();
        Ok((name, span))
    }

    fn close(&mut self, bracket: char, open: Range<usize>) -> Result<(), Error> {
        if self.is(bracket) {
            self.advance();
            return Ok(());
        }
        if self.token.kind == TokenKind::End {
            let message =
                format!("unclosed `{}`, expected `,` or `{bracket}`", &self.text[open.clone()]);
            return Err(self.error(ErrorKind::Syntax, message, open));
        }
        Err(self.unexpected(&format!("`,` or `{bracket}`")))
    }

    fn is(&self, c: char) -> bool {
        self.token.kind == TokenKind::Char(c)
    }

    fn advance(&mut self) {
        self.token = self.lexer.next_token();
    }

    fn unexpected(&self, expected: &str) -> Error {
        let Token { kind, span } = &self.token;
        let found = match kind {
            TokenKind::End => "the end of the query".to_owned(),
            _ => format!("`{}`", &self.text[span.clone()]),
        };
        let message = format!("expected {expected}, found {found}");
        self.error(ErrorKind::Syntax, message, span.clone())
    }

    fn too_large(&self, span: Range<usize>) -> Error {
        let message = format!(
            "the query is too large: at most {MAX_FRAGMENTS} fragments and {MAX_NESTING} nested groups are accepted"
        );
        self.error(ErrorKind::QueryTooLarge, message, span)
    }

    fn error(&self, kind: ErrorKind, message: impl Into<String>, span: Range<usize>) -> Error {
        Error::new(kind, message).at(&self.text, span)
    }
}
