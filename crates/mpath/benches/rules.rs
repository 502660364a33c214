//! Twenty rules over a hundred thousand modules, beside the bare walk of the same tree.

use std::hint::black_box;

use mpath::{
    Class, Context, DependsOn, Facts, Fragment, Kind, Node, QuerySet, SearchOptions, Selector, Tag,
    TagSet, search,
};

fn main() {
    divan::main();
}

struct Tree(Vec<Entry>);

struct Entry {
    class: Class,
    tags: Option<TagSet>,
    kind: Kind,
    children: Vec<(String, usize)>,
}

impl Entry {
    fn new(class: Class, tags: Option<TagSet>) -> Self {
        Entry { class, tags, kind: Kind::new(class, tags), children: Vec::new() }
    }
}

#[derive(Clone, Copy)]
struct Handle<'t>(&'t Tree, usize);

impl Facts for Handle<'_> {
    fn class(&self) -> Class {
        self.0.0[self.1].class
    }

    fn tags(&self) -> Option<TagSet> {
        self.0.0[self.1].tags
    }

    fn kind(&self) -> Kind {
        self.0.0[self.1].kind
    }
}

impl Node for Handle<'_> {
    fn for_each_child(&self, visit: &mut dyn FnMut(&str, Self)) {
        for (name, child) in &self.0.0[self.1].children {
            visit(name, Handle(self.0, *child));
        }
    }

    fn is_leaf(&self) -> bool {
        self.0.0[self.1].children.is_empty()
    }
}

const CLASSES: [&str; 7] =
    ["Module", "Linear", "LayerNorm", "Attention", "Mlp", "ModuleList", "QuantizerStub"];

fn class(name: &str) -> Class {
    let module = Class::define("Module", "bench::Module", &[]);
    if name == "Module" {
        module
    } else {
        Class::define(name, &format!("bench::{name}"), &[module])
    }
}

impl Tree {
    fn add(&mut self, parent: usize, name: &str, class_name: &str) -> usize {
        self.0.push(Entry::new(class(class_name), None));
        let child = self.0.len() - 1;
        self.0[parent].children.push((name.to_owned(), child));
        child
    }

    fn add_linear(&mut self, parent: usize, name: &str) {
        let linear = self.add(parent, name, "Linear");
        for (name, tag) in [
            ("weight_quantizer", "parameter/weight"),
            ("bias_quantizer", "parameter/bias"),
            ("input_quantizer", "activation/input"),
            ("output_quantizer", "activation/output"),
        ] {
            let slot = self.add(linear, name, "QuantizerStub");
            self.0[slot] = Entry::new(class("QuantizerStub"), Some(TagSet::new([Tag::new(tag)])));
        }
    }

    /// A transformer of as many layers as make at least so many modules.
    fn transformer(modules: usize) -> Self {
        let mut tree = Tree(vec![Entry::new(class("Module"), None)]);
        let layers = tree.add(0, "layers", "ModuleList");
        let mut number = 0;
        while tree.0.len() < modules {
            let layer = tree.add(layers, &number.to_string(), "Module");
            let attention = tree.add(layer, "attn", "Attention");
            for name in ["q_proj", "k_proj", "v_proj", "o_proj"] {
                tree.add_linear(attention, name);
            }
            let mlp = tree.add(layer, "mlp", "Mlp");
            for name in ["gate", "up", "down"] {
                tree.add_linear(mlp, name);
            }
            tree.add(layer, "norm1", "LayerNorm");
            tree.add(layer, "norm2", "LayerNorm");
            number += 1;
        }
        tree.add_linear(0, "head");
        tree
    }
}

struct Tagged(TagSet, String);

impl Fragment for Tagged {
    fn matches(&self, _: &str, node: &dyn Facts) -> bool {
        node.tags().is_some_and(|tags| tags.is_superset(self.0))
    }

    fn depends_on(&self) -> DependsOn {
        DependsOn::ClassAndTags
    }
}

impl std::fmt::Display for Tagged {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "[quantizer:{}]", self.1)
    }
}

fn context() -> Context {
    let mut context = Context::new();
    for name in CLASSES {
        context.register_class(name, class(name));
    }
    let tagged = |body: &str, _: &Context| {
        let tags = TagSet::new(body.split(',').map(|tag| Tag::new(tag.trim())));
        Ok(Selector::from_fragment(Tagged(tags, body.to_owned())))
    };
    context.register_extension("quantizer", tagged).expect("the tag is new");
    context
}

const RULES: [&str; 20] = [
    "**",
    "**/[quantizer:parameter/weight]",
    "**/[quantizer:parameter/bias]",
    "**/[quantizer:activation]",
    "**/[cls:Linear]/[quantizer:activation/input]",
    "**/[cls:Linear]/[quantizer:activation/output]",
    "layers/0/**",
    "layers/*/attn/*/[quantizer:parameter]",
    "layers/[re:1\\d*]/mlp/**",
    "**/attn/{q_proj, k_proj}/weight_quantizer",
    "**/mlp/{gate, up}/**",
    "**/~[cls:Linear]/[cls:QuantizerStub]",
    "**/[re:.*_proj]/[quantizer:parameter/weight]",
    "**/{attn/o_proj, mlp/down}/output_quantizer",
    "head/**",
    "**/norm1",
    "{layers/**, head}/[re:(weight|bias)_quantizer]",
    "**/[cls:Mlp]/**/[quantizer:parameter/weight]",
    "layers/[re:[0-9\\]*[02468\\]]/**/weight_quantizer",
    "**/down/**",
];

const MODULES: usize = 100_000;

/// Visits every node and looks at what queries look at.
fn bare_walk(node: Handle<'_>, seen: &mut usize) {
    node.for_each_child(&mut |name, child| {
        *seen += 1;
        black_box((name, child.class(), child.tags()));
        bare_walk(child, seen);
    });
}

#[divan::bench]
fn bare(bencher: divan::Bencher<'_, '_>) {
    let tree = Tree::transformer(MODULES);
    bencher.bench_local(|| {
        let mut seen = 0;
        bare_walk(Handle(&tree, 0), &mut seen);
        seen
    });
}

/// The same, knowing the full name of every node, as a walk of a query set does.
fn bare_walk_with_names(node: Handle<'_>, path: &mut String, seen: &mut usize) {
    node.for_each_child(&mut |name, child| {
        let len = path.len();
        path.push('.');
        path.push_str(name);
        *seen += 1;
        black_box((&path, child.class(), child.tags()));
        bare_walk_with_names(child, path, seen);
        path.truncate(len);
    });
}

#[divan::bench]
fn bare_with_names(bencher: divan::Bencher<'_, '_>) {
    let tree = Tree::transformer(MODULES);
    bencher.bench_local(|| {
        let mut seen = 0;
        bare_walk_with_names(Handle(&tree, 0), &mut String::new(), &mut seen);
        seen
    });
}

#[divan::bench(args = [0, 1, 5, 20])]
fn rules_in_one_walk(bencher: divan::Bencher<'_, '_>, rules: usize) {
    let tree = Tree::transformer(MODULES);
    let context = context();
    let selectors: Vec<Selector> =
        RULES[..rules].iter().map(|rule| context.query(rule).expect("rules parse")).collect();
    bencher.bench_local(|| {
        let mut matches = 0;
        let queries = QuerySet::new(&selectors).expect("rules are small");
        let walk = queries.walk(Handle(&tree, 0), |visit| matches += visit.matches.len());
        walk.expect("the tree is small");
        matches
    });
}

#[divan::bench(args = ["**", "**/[quantizer:parameter/weight]", "layers/0/attn/q_proj"])]
fn search_once(bencher: divan::Bencher<'_, '_>, query: &str) {
    let tree = Tree::transformer(MODULES);
    let context = context();
    let selector = context.query(query).expect("the query parses");
    let options = SearchOptions::new(&context);
    bencher.bench_local(|| search(&selector, Handle(&tree, 0), &options).expect("small").len());
}

#[divan::bench]
fn parse_twenty_rules(bencher: divan::Bencher<'_, '_>) {
    let context = context();
    bencher.bench_local(|| {
        for rule in RULES {
            black_box(context.query(black_box(rule)).expect("rules parse"));
        }
    });
}
