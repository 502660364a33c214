//! A YAML text as a tree of nodes that know their lines. Nothing is built from tags, and an alias is the node it names, not a
//! copy: a small file stays small in memory.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use saphyr_parser::{Event, Parser, ScalarStyle, Tag};

/// Deeper than any state is; a bound for what walks the tree.
const MAX_DEPTH: usize = 32;

/// What is wrong, and in which line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Problem {
    pub(super) line: usize,
    pub(super) what: String,
}

#[derive(Debug)]
pub(super) struct Node {
    pub(super) line: usize,
    /// Written out: `!ff.obj`, `tag:yaml.org,2002:python/tuple`.
    pub(super) tag: Option<String>,
    pub(super) content: Content,
}

#[derive(Debug)]
pub(super) enum Content {
    /// The text, and whether it stands without quotes: then `4`, `true` and `null` are no strings.
    Scalar(String, bool),
    Sequence(Vec<Arc<Node>>),
    Mapping(Vec<(String, Arc<Node>)>),
}

impl Node {
    pub(super) fn problem(&self, what: impl Into<String>) -> Problem {
        Problem { line: self.line, what: what.into() }
    }

    /// What the node is, for messages.
    pub(super) fn kind(&self) -> String {
        let tag = self.tag.as_ref().map_or_else(String::new, |tag| format!(" with tag `{tag}`"));
        match &self.content {
            Content::Scalar(text, _) => format!("`{text}`{tag}"),
            Content::Sequence(_) => format!("a sequence{tag}"),
            Content::Mapping(_) => format!("a mapping{tag}"),
        }
    }

    /// The text of a scalar that has no tag.
    pub(super) fn text(&self) -> Option<&str> {
        match &self.content {
            Content::Scalar(text, _) if self.tag.is_none() => Some(text),
            _ => None,
        }
    }

    /// The text of a scalar that is not quoted and has no tag.
    fn plain(&self) -> Option<&str> {
        match &self.content {
            Content::Scalar(text, true) if self.tag.is_none() => Some(text),
            _ => None,
        }
    }

    pub(super) fn is_null(&self) -> bool {
        matches!(self.plain(), Some("null" | "~" | ""))
    }

    pub(super) fn as_bool(&self) -> Option<bool> {
        match self.plain()? {
            "true" => Some(true),
            "false" => Some(false),
            _ => None,
        }
    }

    pub(super) fn as_integer(&self) -> Option<i64> {
        self.plain()?.parse().ok()
    }

    /// The children of a mapping that has no tag.
    pub(super) fn as_mapping(&self) -> Option<&[(String, Arc<Node>)]> {
        match &self.content {
            Content::Mapping(children) if self.tag.is_none() => Some(children),
            _ => None,
        }
    }
}

/// A collection that is not closed yet.
struct Open {
    line: usize,
    anchor: usize,
    tag: Option<String>,
    is_mapping: bool,
    items: Vec<Arc<Node>>,
}

/// The one document of a text.
pub(super) fn parse(text: &str) -> Result<Arc<Node>, Problem> {
    let mut anchors: HashMap<usize, Arc<Node>> = HashMap::new();
    let mut open: Vec<Open> = Vec::new();
    let mut root: Option<Arc<Node>> = None;
    for event in Parser::new_from_str(text) {
        let (event, span) = event.map_err(|error| Problem {
            line: error.marker().line(),
            what: format!("no YAML: {}", error.info()),
        })?;
        let line = span.start.line();
        let wrong = |what: &str| Problem { line, what: what.to_owned() };
        let (node, anchor) = match event {
            Event::SequenceStart(..) | Event::MappingStart(..) if open.len() == MAX_DEPTH => {
                return Err(wrong("collections are nested too deeply"));
            }
            Event::SequenceStart(anchor, tag) => {
                open.push(Open::new(line, anchor, tag.as_deref(), false));
                continue;
            }
            Event::MappingStart(anchor, tag) => {
                open.push(Open::new(line, anchor, tag.as_deref(), true));
                continue;
            }
            Event::SequenceEnd | Event::MappingEnd => {
                let Some(closed) = open.pop() else {
                    return Err(wrong("the end of a collection that has not begun"));
                };
                let anchor = closed.anchor;
                (closed.close()?, anchor)
            }
            Event::Scalar(text, style, anchor, tag) => {
                let is_plain = style == ScalarStyle::Plain;
                let content = Content::Scalar(text.into_owned(), is_plain);
                let tag = tag.as_deref().map(written_out);
                (Arc::new(Node { line, tag, content }), anchor)
            }
            Event::Alias(anchor) => match anchors.get(&anchor) {
                Some(node) => (Arc::clone(node), 0),
                // An alias inside of what it names would make the tree endless.
                None => return Err(wrong("an alias of something that is not complete")),
            },
            Event::DocumentStart(_) if root.is_some() => {
                return Err(wrong("a second document"));
            }
            _ => continue,
        };
        if anchor != 0 {
            anchors.insert(anchor, Arc::clone(&node));
        }
        match open.last_mut() {
            Some(around) => around.items.push(node),
            None => root = Some(node),
        }
    }
    root.ok_or_else(|| Problem { line: 1, what: "the file is empty".to_owned() })
}

impl Open {
    fn new(line: usize, anchor: usize, tag: Option<&Tag>, is_mapping: bool) -> Self {
        Self { line, anchor, tag: tag.map(written_out), is_mapping, items: Vec::new() }
    }

    fn close(self) -> Result<Arc<Node>, Problem> {
        let content = if self.is_mapping {
            let mut children = Vec::with_capacity(self.items.len() / 2);
            let mut taken = HashSet::new();
            for pair in self.items.chunks(2) {
                let [key, value] = pair else { continue };
                let Some(name) = key.text() else {
                    return Err(key.problem(format!("a key is {}, expected a string", key.kind())));
                };
                if !taken.insert(name.to_owned()) {
                    return Err(key.problem(format!("`{name}` is given twice")));
                }
                children.push((name.to_owned(), Arc::clone(value)));
            }
            Content::Mapping(children)
        } else {
            Content::Sequence(self.items)
        };
        Ok(Arc::new(Node { line: self.line, tag: self.tag, content }))
    }
}

fn written_out(tag: &Tag) -> String {
    format!("{}{}", tag.handle, tag.suffix)
}
