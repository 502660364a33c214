//! What a command has to say, and where it goes.

use std::io::{self, IsTerminal, Write};

use serde::Serialize;
use terminal_size::{Width, terminal_size_of};

/// The result of a command, for people and for programs, and how the program ends.
#[derive(Debug)]
pub(crate) struct Outcome {
    /// For standard output.
    pub(crate) text: String,
    /// The same facts for programs, as JSON text: what is said of a file and what stands in it are equal to the last digit.
    pub(crate) json: String,
    /// Words about the result, for standard error.
    pub(crate) notes: Vec<String>,
    pub(crate) exit: Exit,
}

/// How the program ends; documented in `--help`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    Done = 0,
    CheckFailed = 1,
    Failed = 2,
    WrongRules = 3,
}

impl Outcome {
    /// A command that did what it should.
    pub(crate) fn done(text: String, json: &impl Serialize) -> anyhow::Result<Self> {
        let json = format!("{}\n", serde_json::to_string_pretty(json)?);
        Ok(Self { text, json, notes: Vec::new(), exit: Exit::Done })
    }

    /// The same with words for standard error, and another end.
    pub(crate) fn with_note(mut self, note: String, exit: Exit) -> Self {
        self.notes.push(note);
        self.exit = exit;
        self
    }

    /// Prints the result.
    ///
    /// # Errors
    /// When standard output takes no more, unless its reader has gone, as `head` does.
    pub(crate) fn print(&self, as_json: bool, quiet: bool) -> io::Result<()> {
        if as_json {
            to_stdout(&self.json)?;
        } else {
            to_stdout(&self.text)?;
        }
        // What the program did not do is said even if it should be quiet.
        if !quiet || self.exit != Exit::Done {
            self.notes.iter().for_each(|note| to_stderr(note));
        }
        Ok(())
    }
}

pub(crate) fn to_stdout(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    let written = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    match written {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => other,
    }
}

/// Where standard error is closed there is nobody left to tell.
pub(crate) fn to_stderr(text: &str) {
    let _unread = writeln!(io::stderr().lock(), "{text}");
}

/// The characters in a line of the terminal that shows the results; `None` where no terminal does.
pub(crate) fn line_width() -> Option<usize> {
    let out = io::stdout();
    if !out.is_terminal() {
        return None;
    }
    terminal_size_of(out).map(|(Width(width), _)| usize::from(width))
}
