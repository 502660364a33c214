//! Text to tokens (spec §1.2).

use std::ops::Range;

use unicode_ident::{is_xid_continue, is_xid_start};

/// A piece of the text, with the bytes it stands at.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Token {
    pub(crate) kind: TokenKind,
    pub(crate) span: Range<usize>,
}

/// What a token is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum TokenKind {
    /// One of `[ ] { } : , ~ & / \ *`, or any other character that has no meaning.
    Char(char),
    /// A run of decimal digits, the first one ASCII.
    Digits,
    /// A Unicode identifier.
    Identifier,
    /// A quoted piece; it hides brackets in the body of an extension.
    Quoted,
    /// The end of the text.
    End,
}

/// The tokens of the text, one at a time. White space separates tokens and is otherwise dropped.
#[derive(Clone)]
pub(crate) struct Lexer<'t> {
    text: &'t str,
    position: usize,
    /// Set when no quote that could close a string is left, so that looking for one is not repeated.
    no_closing_quote: bool,
}

impl<'t> Lexer<'t> {
    pub(crate) fn new(text: &'t str) -> Self {
        Lexer { text, position: 0, no_closing_quote: false }
    }

    /// The next token; `End` again and again at the end.
    pub(crate) fn next_token(&mut self) -> Token {
        let rest = &self.text[self.position..];
        let trimmed = rest.trim_start_matches(is_space);
        let start = self.text.len() - trimmed.len();
        let Some(first) = trimmed.chars().next() else {
            self.position = self.text.len();
            return Token { kind: TokenKind::End, span: start..start };
        };
        let (kind, len) = match first {
            '0'..='9' => (TokenKind::Digits, run(trimmed, is_digit)),
            '"' => match self.closing_quote(start) {
                Some(end) => (TokenKind::Quoted, end - start),
                None => (TokenKind::Char('"'), 1),
            },
            c if c == '_' || is_xid_start(c) => {
                (TokenKind::Identifier, run(trimmed, is_xid_continue))
            }
            c => (TokenKind::Char(c), c.len_utf8()),
        };
        self.position = start + len;
        Token { kind, span: start..start + len }
    }

    /// The end of the string that the quote at `start` opens: after the next quote that no backslash precedes.
    fn closing_quote(&mut self, start: usize) -> Option<usize> {
        if self.no_closing_quote {
            return None;
        }
        let bytes = self.text.as_bytes();
        let closing = (start + 1..bytes.len()).find(|&i| bytes[i] == b'"' && bytes[i - 1] != b'\\');
        self.no_closing_quote = closing.is_none();
        closing.map(|quote| quote + 1)
    }
}

/// Whether a plain path fragment can name this.
pub(crate) fn is_name(text: &str) -> bool {
    let mut lexer = Lexer::new(text);
    let token = lexer.next_token();
    matches!(token.kind, TokenKind::Digits | TokenKind::Identifier) && token.span == (0..text.len())
}

/// Whether the text, as the body of an extension, ends at the bracket that follows it, whatever comes after.
pub(crate) fn is_plain_body(text: &str) -> bool {
    let mut lexer = Lexer::new(text);
    let mut escaped = false;
    loop {
        match lexer.next_token().kind {
            TokenKind::End => return !escaped,
            // Not closed here: what follows the body could close it.
            TokenKind::Char('"') => return false,
            TokenKind::Char(']') if !escaped => return false,
            kind => escaped = kind == TokenKind::Char('\\') && !escaped,
        }
    }
}

/// What the reference takes for white space: Unicode's, and the four ASCII separators.
fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)
}

/// Decimal digits of any script: numerals that may go on, but not begin, an identifier.
fn is_digit(c: char) -> bool {
    c.is_numeric() && is_xid_continue(c) && !is_xid_start(c)
}

/// The length in bytes of the first character and those after it that satisfy the condition.
fn run(text: &str, condition: impl Fn(char) -> bool) -> usize {
    text.char_indices().skip(1).find(|&(_, c)| !condition(c)).map_or(text.len(), |(i, _)| i)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, expected: &[&str]) {
        let mut lexer = Lexer::new(text);
        let mut tokens = Vec::new();
        loop {
            let token = lexer.next_token();
            if token.kind == TokenKind::End {
                break;
            }
            tokens.push(&text[token.span]);
        }
        assert_eq!(tokens, expected);
    }

    #[test]
    fn names_digits_and_signs() {
        check("/layer1/_a/héllo/12a", &["/", "layer1", "/", "_a", "/", "héllo", "/", "12", "a"]);
        check(" a\u{a0}b\n* *", &["a", "b", "*", "*"]);
        check(
            "a²/1²/1\u{663}/\u{663}",
            &["a", "²", "/", "1", "²", "/", "1\u{663}", "/", "\u{663}"],
        );
    }

    #[test]
    fn strings_end_at_a_quote_that_no_backslash_precedes() {
        check(r#"x"a\"]"y"#, &["x", r#""a\"]""#, "y"]);
        check(r#""ab"#, &["\"", "ab"]);
    }

    #[test]
    fn plain_bodies() {
        for text in ["", "a.b", r"a\]b", r#""a]""#, r"\\"] {
            assert!(is_plain_body(text), "{text}");
        }
        for text in ["]", "\"", r"\\]", r"a\", r#"\""#] {
            assert!(!is_plain_body(text), "{text}");
        }
    }
}
