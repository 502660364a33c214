use std::fmt;

use regex::Regex;

use super::{DependsOn, Fragment};
use crate::lexer::is_plain_body;
use crate::{ExtensionError, Facts};

/// `[re:P]`: children whose whole name a regular expression matches.
///
/// The syntax is that of the `regex` crate: no look-around, no back-references, matching in linear time. Inside the
/// brackets of a query, `]` is written `\]`.
///
/// ```
/// let query = mpath::Context::new().query(r"[re:[qkv\]_proj]")?;
/// assert_eq!(query.to_string(), r"[re:[qkv\]_proj]");
/// # Ok::<(), mpath::Error>(())
/// ```
#[derive(Clone)]
pub struct PatternFragment {
    /// The pattern as a body of `[re:...]`; equal for equal patterns.
    body: Box<str>,
    whole: Regex,
}

impl PatternFragment {
    /// The names that `pattern` matches from beginning to end.
    ///
    /// # Errors
    /// If the pattern is not a regular expression, or one too large.
    pub fn new(pattern: &str) -> Result<Self, ExtensionError> {
        // Alone first: `a)|(b` must not pass because of the parentheses put around it.
        Regex::new(pattern)
            .and_then(|_| Regex::new(&format!(r"\A(?:{pattern})\z")))
            .map(|whole| PatternFragment { body: body_of(pattern).into(), whole })
            .map_err(|error| {
                let text = error.to_string();
                let last = text.lines().last().unwrap_or_default();
                let message = last.strip_prefix("error: ").unwrap_or(last);
                let refused = ExtensionError::new(format!("invalid regular expression: {message}"));
                let refused = if message.contains("look-around") || message.contains("backref") {
                    refused.note("what must not match can be said with `~[re:...]`")
                } else {
                    refused
                };
                refused.caused_by(error)
            })
    }

    pub(crate) fn from_body(body: &str) -> Result<Self, ExtensionError> {
        PatternFragment::new(&unescape(body))
    }
}

/// The pattern that a body stands for: `\[` and `\]` are brackets of the pattern (spec §1.4).
fn unescape(body: &str) -> String {
    body.replace("\\[", "[").replace("\\]", "]")
}

/// A body that stands for the pattern wherever it is written.
fn body_of(pattern: &str) -> String {
    if is_plain_body(pattern) && unescape(pattern) == pattern {
        return pattern.to_owned();
    }
    let mut body = String::with_capacity(pattern.len() + 8);
    let mut rest = pattern.chars();
    while let Some(c) = rest.next() {
        match c {
            '\\' => match rest.next() {
                // In a body, `\[` means `[`, and a quote opens a string even after a backslash.
                Some('[') => body.push_str(r"\x5b"),
                Some(']') => body.push_str(r"\x5d"),
                Some('"') => body.push_str(r"\x22"),
                Some(c) => body.extend(['\\', c]),
                None => body.push('\\'),
            },
            '"' => body.push_str(r"\x22"),
            ']' => body.push_str(r"\]"),
            c => body.push(c),
        }
    }
    body
}

impl Fragment for PatternFragment {
    fn matches(&self, name: &str, _: &dyn Facts) -> bool {
        self.whole.is_match(name)
    }

    fn depends_on(&self) -> DependsOn {
        DependsOn::NameClassAndTags
    }

    fn key(&self) -> String {
        self.body.to_string()
    }
}

impl fmt::Display for PatternFragment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[re:{}]", self.body)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bodies_read_back_as_the_same_pattern() {
        for pattern in
            ["", "a|b", "[qkv]_proj", r"\[\]", r"a\\", r"[\]]", "\"a", "\"a]\"", r#"\""#, r"\d+\.x"]
        {
            let body = body_of(pattern);
            let again = unescape(&body);
            assert_eq!(body_of(&again), body, "{pattern}");
            assert!(is_plain_body(&body), "{body}");
            let (one, two) = (Regex::new(pattern).unwrap(), Regex::new(&again).unwrap());
            for text in ["", "a", "b", "q_proj", "[]", "]", "\"a", "\"", "a\\", "7.x"] {
                assert_eq!(one.is_match(text), two.is_match(text), "{pattern} on {text}");
            }
        }
    }

    #[test]
    fn parentheses_do_not_combine_with_ours() {
        assert!(PatternFragment::new("a)|(b").is_err());
    }
}
