use std::fmt;

use regex::Regex;

use super::{DependsOn, Fragment};
use crate::lexer::is_plain_body;
use crate::{ExtensionError, Facts};

/// `[re:P]`: children whose whole name a regular expression matches.
///
/// The syntax is what Python's `re` and the `regex` crate share: no look-around, no back-references, matching in linear
/// time. Where both accept a pattern and differ, Python's reading holds: a `{` that begins no repetition is a brace, and
/// a bracket within brackets is a bracket. In a query, `]` within the pattern is written `\]`.
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
        let translated = translate(pattern)?;
        // Alone first: `a)|(b` must not pass because of the parentheses put around it.
        Regex::new(&translated)
            .and_then(|_| Regex::new(&format!(r"\A(?:{translated})\z")))
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

/// The pattern with what Python reads otherwise written so that the `regex` crate reads it the same.
fn translate(pattern: &str) -> Result<String, ExtensionError> {
    let mut out = String::with_capacity(pattern.len() + 8);
    let mut rest = pattern;
    // Whether inside of brackets, and if so, whether a closing one would still be literal.
    let (mut in_class, mut at_class_start) = (false, false);
    // Whether a repetition came just before, and whether it can still be made lazy.
    let (mut after_repetition, mut may_be_lazy) = (false, false);
    while let Some(c) = rest.chars().next() {
        let mut taken = c.len_utf8();
        let is_class_start = std::mem::take(&mut at_class_start);
        let was_repetition = std::mem::take(&mut after_repetition);
        let may_be_lazy_now = std::mem::take(&mut may_be_lazy);
        let braces = if c == '{' && !in_class { repetition(&rest[1..]) } else { None };
        if !in_class && (matches!(c, '*' | '+' | '?') || braces.is_some()) {
            let is_lazy = c == '?' && may_be_lazy_now;
            if was_repetition && !is_lazy {
                return Err(ExtensionError::new("invalid regular expression: multiple repeat"));
            }
            // A question mark after an opening parenthesis begins a flag or a kind of group.
            let is_group_kind = c == '?' && out.ends_with('(') && !out.ends_with(r"\(");
            (after_repetition, may_be_lazy) = (!is_group_kind, !is_group_kind && !is_lazy);
        }
        match c {
            '\\' => {
                let escaped = rest[1..].chars().next();
                taken += escaped.map_or(0, char::len_utf8);
                if escaped == Some('Z') && !in_class {
                    out.push_str(r"\z");
                } else {
                    // The braces of `\p{L}` and `\x{41}` belong to the escape.
                    if matches!(escaped, Some('p' | 'P' | 'x' | 'u' | 'U'))
                        && let Some(braces) = rest[taken..].strip_prefix('{')
                        && let Some(end) = braces.find('}')
                    {
                        taken += end + 2;
                    }
                    out.push_str(&rest[..taken]);
                }
            }
            '[' if !in_class => {
                (in_class, at_class_start) = (true, true);
                taken += usize::from(rest[1..].starts_with('^'));
                out.push_str(&rest[..taken]);
            }
            ']' if in_class && !is_class_start => {
                in_class = false;
                out.push(c);
            }
            // In brackets, the crate nests brackets and has `&&`, `--` and `~~` as operators.
            '[' | '&' | '~' if in_class => out.extend(['\\', c]),
            '-' if in_class && rest[1..].starts_with('-') => {
                // One is the sign of a range, the other one of its ends.
                out.push_str(if is_class_start { r"\--" } else { r"-\-" });
                taken += 1;
            }
            '{' if !in_class => match braces {
                Some((least, most, len)) => {
                    let least = if least.is_empty() { "0" } else { least };
                    let most = most.map_or(String::new(), |most| format!(",{most}"));
                    out.push_str(&format!("{{{least}{most}}}"));
                    taken += len;
                }
                None => out.push_str(r"\{"),
            },
            c => out.push(c),
        }
        rest = &rest[taken..];
    }
    Ok(out)
}

/// The bounds of a repetition, the text being what follows its opening brace, and the length up to the closing one:
/// `2}`, `2,}`, `,3}`, `2,3}`, `,}`.
fn repetition(text: &str) -> Option<(&str, Option<&str>, usize)> {
    let (inside, _) = text.split_once('}')?;
    let (least, most) = match inside.split_once(',') {
        Some((least, most)) => (least, Some(most)),
        None => (inside, None),
    };
    let is_number = |text: &str| text.chars().all(|c| c.is_ascii_digit());
    let is_repetition = !inside.is_empty() && is_number(least) && most.is_none_or(is_number);
    is_repetition.then_some((least, most, inside.len() + 1))
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
                // Its second backslash would join a bracket after it.
                Some('\\') => body.push_str(r"\x5c"),
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
        DependsOn::Name
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
    fn patterns_mean_what_python_reads() {
        for (pattern, matching, other) in [
            ("a{", "a{", "a"),
            ("a{2}", "aa", "a{2}"),
            ("a{,2}", "aa", "aaa"),
            ("a{x}", "a{x}", "a"),
            ("a{,}b", "aaab", "a{,}b"),
            ("a{}", "a{}", "a"),
            ("a{2,}?b??", "aaa", "a"),
            ("(?:a|b)+?", "ab", "c"),
            (r"\(?a", "(a", "?a"),
            ("[[]", "[", "]"),
            ("[]a]", "]", "["),
            ("[^]a]", "x", "]"),
            ("[a&&b]", "&", "c"),
            ("[a[b]x", "[x", "ax]"),
            (r"\p{L}+\Z", "é", "1"),
            (r"[+--]", ",", "a"),
            (r"[--0]", "/", "a"),
        ] {
            let fragment = PatternFragment::new(pattern).unwrap();
            assert!(fragment.whole.is_match(matching), "{pattern} on {matching}");
            assert!(!fragment.whole.is_match(other), "{pattern} on {other}");
        }
        for pattern in
            ["[", "(", "*", "a**", "a+{2}", "a{2}*", "a???", "[z-a]", r"a\", "(?=a)", r"(a)\1"]
        {
            assert!(PatternFragment::new(pattern).is_err(), "{pattern}");
        }
    }

    #[test]
    fn parentheses_do_not_combine_with_ours() {
        assert!(PatternFragment::new("a)|(b").is_err());
    }
}
