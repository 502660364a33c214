//! Trees written as indented outlines, one node a line: `name: Class #tag #tag =identity`.
#![allow(dead_code, unreachable_pub, reason = "each test uses a part")]

use mpath::{Class, Context, ExtensionError, Facts, Fragment, Node, Selector, Tag, TagSet};

/// A tree as a table of nodes; the first is the root.
pub struct Tree {
    nodes: Vec<Entry>,
}

pub struct Entry {
    pub class: Class,
    pub tags: Option<TagSet>,
    pub identity: Option<usize>,
    pub children: Vec<(String, usize)>,
}

/// A handle of a node.
#[derive(Clone, Copy)]
pub struct Handle<'t> {
    tree: &'t Tree,
    pub index: usize,
}

impl Tree {
    /// A tree that is only a root.
    pub fn new() -> Self {
        let mut tree = Tree { nodes: Vec::new() };
        tree.add(None, "", class("Module"));
        tree
    }

    /// Adds a node and returns its index.
    pub fn add(&mut self, parent: Option<usize>, name: &str, class: Class) -> usize {
        let index = self.nodes.len();
        self.nodes.push(Entry { class, tags: None, identity: None, children: Vec::new() });
        if let Some(parent) = parent {
            self.nodes[parent].children.push((name.to_owned(), index));
        }
        index
    }

    pub fn entry(&mut self, index: usize) -> &mut Entry {
        &mut self.nodes[index]
    }

    /// Reads an outline. A node with the identity of an earlier one is that node again; its subtree is not read twice.
    pub fn parse(outline: &str) -> Self {
        let mut tree = Tree::new();
        let mut path: Vec<usize> = vec![0];
        let mut skip_below = usize::MAX;
        for line in outline.lines().filter(|line| !line.trim().is_empty()) {
            let level = (line.len() - line.trim_start().len()) / 2;
            if level > skip_below {
                continue;
            }
            skip_below = usize::MAX;
            path.truncate(level + 1);
            let mut words = line.split_whitespace();
            let first = words.next().unwrap();
            let (name, has_class) = match first.strip_suffix(':') {
                Some(name) => (name, true),
                None => (first, false),
            };
            let node_class = class(if has_class { words.next().unwrap() } else { "Module" });
            let mut tags = None;
            let mut identity = None;
            for word in words {
                if let Some(tag) = word.strip_prefix('#') {
                    tags = Some(tags.unwrap_or_else(TagSet::empty).with(Tag::new(tag)));
                } else if let Some(number) = word.strip_prefix('=') {
                    identity = Some(number.parse().unwrap());
                }
            }
            let known =
                tree.nodes.iter().position(|n| identity.is_some() && n.identity == identity);
            let index = match known {
                Some(index) => {
                    tree.nodes[path[level]].children.push((name.to_owned(), index));
                    skip_below = level;
                    index
                }
                None => {
                    let index = tree.add(Some(path[level]), name, node_class);
                    tree.nodes[index].tags = tags;
                    tree.nodes[index].identity = identity;
                    index
                }
            };
            path.push(index);
        }
        tree
    }

    pub fn root(&self) -> Handle<'_> {
        Handle { tree: self, index: 0 }
    }

    pub fn len(&self) -> usize {
        self.nodes.len()
    }
}

impl PartialEq for Handle<'_> {
    fn eq(&self, other: &Self) -> bool {
        std::ptr::eq(self.tree, other.tree) && self.index == other.index
    }
}

impl Facts for Handle<'_> {
    fn class(&self) -> Class {
        self.tree.nodes[self.index].class
    }

    fn tags(&self) -> Option<TagSet> {
        self.tree.nodes[self.index].tags
    }
}

impl Node for Handle<'_> {
    fn for_each_child(&self, visit: &mut dyn FnMut(&str, Self)) {
        for (name, index) in &self.tree.nodes[self.index].children {
            visit(name, Handle { tree: self.tree, index: *index });
        }
    }

    fn identity(&self) -> Option<usize> {
        self.tree.nodes[self.index].identity
    }
}

/// The classes of outlines: all extend `Module`, and `Sub` extends `L`.
pub fn class(name: &str) -> Class {
    let module = Class::define("Module", "outline::Module", &[]);
    match name {
        "Module" => module,
        "Sub" => Class::define("Sub", "outline::Sub", &[class("L")]),
        other => Class::define(other, &format!("outline::{other}"), &[module]),
    }
}

/// A context with the classes of outlines and an extension `[quantizer:tag, tag]`.
pub fn context() -> Context {
    let mut context = Context::new();
    for name in ["Module", "L", "M", "Sub"] {
        context.register_class(name, class(name));
    }
    for tag in ["quantizer", "qtag"] {
        context.register_extension(tag, tagged).unwrap();
    }
    context
}

fn tagged(body: &str, _: &Context) -> Result<Selector, ExtensionError> {
    let tags = body.split(',').map(|tag| Tag::new(tag.trim())).collect();
    Ok(Selector::from_fragment(Tagged(tags)))
}

/// All of several tags.
pub struct Tagged(pub Vec<Tag>);

impl Fragment for Tagged {
    fn matches(&self, _: &str, node: &dyn Facts) -> bool {
        node.tags().is_some_and(|tags| self.0.iter().all(|&tag| tags.contains(tag)))
    }

    fn depends_on(&self) -> mpath::DependsOn {
        mpath::DependsOn::NameClassAndTags
    }

    fn alternatives(&self, _: &str, node: &dyn Facts) -> Vec<String> {
        let tags = node.tags().map(TagSet::as_slice).unwrap_or_default();
        tags.iter().map(|tag| format!("[quantizer:{}]", tag.as_str())).collect()
    }
}

impl std::fmt::Display for Tagged {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let tags: Vec<&str> = self.0.iter().map(|tag| tag.as_str()).collect();
        write!(f, "[quantizer:{}]", tags.join(", "))
    }
}
