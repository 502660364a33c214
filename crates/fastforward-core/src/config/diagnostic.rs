//! Problems in a configuration's text, shown at their place.

use std::fmt::Write;
use std::ops::Range;

use crate::{Error, ErrorKind};

/// A text with the name that messages give it.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct SourceText {
    pub(super) name: String,
    pub(super) text: String,
}

/// Something wrong at a place of the text.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Problem {
    /// The bytes of the text that are wrong.
    pub(super) span: Range<usize>,
    /// What is wrong.
    pub(super) message: String,
    /// What would be right; empty when that is not known.
    pub(super) help: String,
}

impl SourceText {
    /// The line and column of a byte, both counted from 1, columns in characters.
    pub(super) fn position(&self, at: usize) -> (usize, usize) {
        let before = self.text.get(..at).unwrap_or(&self.text);
        let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
        (before.matches('\n').count() + 1, before[line_start..].chars().count() + 1)
    }

    /// One error that shows every problem at its place, in the order of the text.
    pub(super) fn error(&self, mut problems: Vec<Problem>) -> Error {
        problems.sort_by_key(|problem| (problem.span.start, problem.span.end));
        problems.dedup();
        let shown: Vec<String> = problems.iter().map(|problem| self.show(problem)).collect();
        let message = match shown.as_slice() {
            [one] => one.clone(),
            many => format!("{} problems in {}:\n\n{}", many.len(), self.name, many.join("\n\n")),
        };
        Error::new(ErrorKind::Config, message)
    }

    fn show(&self, problem: &Problem) -> String {
        let start = problem.span.start.min(self.text.len());
        let (line, column) = self.position(start);
        let content = self.text.lines().nth(line - 1).unwrap_or("");
        let number = line.to_string();
        let margin = " ".repeat(number.len());
        let marked = self.text.get(start..problem.span.end).unwrap_or("");
        let carets = marked.lines().next().unwrap_or("").chars().count().max(1);

        let Problem { message, help, .. } = problem;
        let Excerpt { text, before } = Excerpt::new(content, column - 1, carets);
        let mut out = format!("{}:{line}:{column}: {message}\n{margin} |\n", self.name);
        let _ = writeln!(out, "{}", format!("{number} | {text}").trim_end());
        let _ = write!(out, "{margin} | {:before$}{}", "", "^".repeat(carets.min(MAX_MARKED)));
        if !help.is_empty() {
            let _ = write!(out, " {help}");
        }
        out
    }
}

/// The part of a line around a place, in characters.
struct Excerpt {
    text: String,
    /// The characters before the place.
    before: usize,
}

const MAX_LINE: usize = 120;
const MAX_MARKED: usize = 60;

impl Excerpt {
    fn new(line: &str, at: usize, marked: usize) -> Self {
        let visible = |c: char| if c.is_control() { ' ' } else { c };
        let chars: Vec<char> = line.chars().map(visible).collect();
        let end = at + marked.min(MAX_MARKED);
        let from = if end > MAX_LINE { at.saturating_sub(MAX_LINE / 2) } else { 0 };
        let until = chars.len().min(from + MAX_LINE);
        let mut text: String = chars.get(from..until).unwrap_or(&[]).iter().collect();
        let mut before = at - from;
        if from > 0 {
            text.insert(0, '…');
            before += 1;
        }
        if until < chars.len() {
            text.push('…');
        }
        Self { text: text.trim_end().to_owned(), before }
    }
}
