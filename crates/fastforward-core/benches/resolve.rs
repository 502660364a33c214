//! Twenty rules over models of 1,000 to 100,000 nodes, beside a bare walk of the same model.
//!
//! `cargo bench -p fastforward-core --bench resolve` uses one thread, with `FF_BENCH_THREADS=2` before it two. The goal for
//! matching is within five times the bare walk, and for everything a tenth of a second.

use divan::{Bencher, black_box};
use fastforward_core::module::{Module, NodeRef, Visitor, VisitorMut, classes, named_slots};
use fastforward_core::quantization::QuantizerSlot;
use fastforward_core::quantization::quant_init::{
    InitializeOptions, OverwritePolicy, QuantizationConfig, QuantizerSpec,
};
use mpath::{Class, Facts, Node, Part, QuerySet};
use rayon::prelude::*;

/// The program's.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() {
    let threads = std::env::var("FF_BENCH_THREADS").ok().and_then(|n| n.parse().ok());
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads.unwrap_or(1));
    pool.build_global().expect("the pool is built once");
    divan::main();
}

struct Layer {
    class: Class,
    children: Vec<(String, Layer)>,
    slots: Vec<(&'static str, QuantizerSlot)>,
}

impl Module for Layer {
    fn class(&self) -> Class {
        self.class
    }
    fn visit<'a>(&'a self, visitor: &mut dyn Visitor<'a>) {
        self.children.iter().for_each(|(name, child)| visitor.module(name, child));
        self.slots.iter().for_each(|(name, slot)| visitor.slot(name, slot));
    }
    fn visit_mut(&mut self, visitor: &mut dyn VisitorMut) {
        self.children.iter_mut().for_each(|(name, child)| visitor.module(name, child));
        self.slots.iter_mut().for_each(|(name, slot)| visitor.slot(name, slot));
    }
}

fn class(name: &str) -> Class {
    Class::define(name, &format!("bench::{name}"), &[classes::module()])
}

fn linear(with_bias: bool) -> Layer {
    let mut slots = vec![
        ("input_quantizer", QuantizerSlot::input()),
        ("weight_quantizer", QuantizerSlot::weight(&[64, 64])),
        ("output_quantizer", QuantizerSlot::output()),
    ];
    if with_bias {
        slots.insert(2, ("bias_quantizer", QuantizerSlot::bias(&[64])));
    }
    Layer { class: class("Linear"), children: vec![], slots }
}

fn scope(class_name: &str, children: Vec<(&str, Layer)>) -> Layer {
    let children = children.into_iter().map(|(name, child)| (name.to_owned(), child)).collect();
    Layer { class: class(class_name), children, slots: vec![] }
}

/// About how many nodes the models have.
const SIZES: [usize; 3] = [1_000, 10_000, 100_000];

/// A decoder of blocks of 37 nodes, and five nodes around them.
fn model(nodes: usize) -> Layer {
    let block = || {
        let projections = ["q_proj", "k_proj", "v_proj", "o_proj"];
        let attention = projections.map(|name| (name, linear(false))).into();
        let mlp = ["gate_proj", "up_proj", "down_proj"].map(|name| (name, linear(true))).into();
        let norm = Layer {
            class: class("RmsNorm"),
            children: vec![],
            slots: vec![("output_quantizer", QuantizerSlot::output())],
        };
        scope(
            "Block",
            vec![
                ("self_attn", scope("Attention", attention)),
                ("mlp", scope("Mlp", mlp)),
                ("norm", norm),
            ],
        )
    };
    let layers = (0..nodes.div_ceil(37)).map(|at| (at.to_string(), block())).collect();
    let layers = Layer { class: class("ModuleList"), children: layers, slots: vec![] };
    scope("Model", vec![("layers", layers), ("head", linear(false))])
}

fn rules(model: &Layer) -> QuantizationConfig {
    let mut config = QuantizationConfig::for_model(model);
    for query in [
        "**/[quantizer:parameter/weight]",
        "**/[quantizer:activation/input]",
        "**/[quantizer:activation/output]",
        "**/[quantizer:parameter/bias]",
        "layers/*/self_attn/*/[quantizer:parameter/weight]",
        "layers/*/mlp/*/[quantizer:parameter/weight]",
        "layers/*/mlp/down_proj/**",
        "layers/[re:\\d*[05\\]]/**/weight_quantizer",
        "layers/{0, 1, 2}/**",
        "**/[cls:Attention]/{q_proj, k_proj}/output_quantizer",
        "**/[cls:Mlp]/**/[quantizer:activation/output]",
        "**/~[cls:Linear]/output_quantizer",
        "**/norm/*",
        "**/v_proj/[quantizer:activation]",
        "head/**",
        "layers/[re:1.*]/norm/output_quantizer",
        "**/o_proj/input_quantizer",
        "layers/**/gate_proj/[quantizer:parameter]",
        "layers/*/{mlp/up_proj, self_attn/o_proj}/bias_quantizer",
        "**/[cls:Block]/mlp/**/input_quantizer",
    ] {
        config.add_rule(query, QuantizerSpec::linear(8)).expect("the queries parse");
    }
    config
}

fn count(node: NodeRef<'_>) -> usize {
    let mut nodes = 1;
    node.for_each_child(&mut |name, child| {
        black_box(name);
        nodes += count(child);
    });
    nodes
}

#[divan::bench(args = SIZES)]
fn bare_walk(bencher: Bencher<'_, '_>, nodes: usize) {
    let model = model(nodes);
    bencher.bench_local(|| count(NodeRef::Module(&model)));
}

/// The same, looking at what queries look at, behind the lock of each slot.
#[divan::bench(args = SIZES)]
fn bare_walk_looking_at_class_and_tags(bencher: Bencher<'_, '_>, nodes: usize) {
    fn look(node: NodeRef<'_>) -> usize {
        let mut nodes = 1;
        node.for_each_child(&mut |name, child| {
            black_box((name, child.class(), child.tags()));
            nodes += look(child);
        });
        nodes
    }
    let model = model(nodes);
    bencher.bench_local(|| look(NodeRef::Module(&model)));
}

/// What any answer that names every slot in a text of its own must at least do.
#[divan::bench(args = SIZES)]
fn list_slots(bencher: Bencher<'_, '_>, nodes: usize) {
    let model = model(nodes);
    bencher.bench_local(|| named_slots(&model));
}

#[divan::bench(args = SIZES)]
fn match_20_rules(bencher: Bencher<'_, '_>, nodes: usize) {
    let model = model(nodes);
    let config = rules(&model);
    let queries: Vec<_> = config.rules().iter().map(|rule| rule.query.clone()).collect();
    bencher.bench_local(|| {
        let mut matches = 0;
        let set = QuerySet::new(&queries).expect("the queries are small");
        set.walk(NodeRef::Module(&model), |visit| matches += visit.matches.len())
            .expect("the model is small enough");
        matches
    });
}

/// The same by the threads of the pool, each with states of its own.
#[divan::bench(args = SIZES)]
fn match_20_rules_in_parts(bencher: Bencher<'_, '_>, nodes: usize) {
    let model = model(nodes);
    let config = rules(&model);
    let queries: Vec<_> = config.rules().iter().map(|rule| rule.query.clone()).collect();
    bencher.bench_local(|| {
        let set = QuerySet::new(&queries).expect("the queries are small");
        let root = NodeRef::Module(&model);
        let parts = set.parts(root, rayon::current_num_threads(), 10_000);
        let count = |part: &Part| {
            let mut matches = 0;
            set.walk_part(root, part, |visit| matches += visit.matches.len())
                .expect("the model is small enough");
            matches
        };
        parts.par_iter().map(count).sum::<usize>()
    });
}

/// Which rule decides which slot, with all names, winners and losers.
#[divan::bench(args = SIZES)]
fn resolve_20_rules(bencher: Bencher<'_, '_>, nodes: usize) {
    let model = model(nodes);
    let config = rules(&model);
    bencher.bench_local(|| config.resolve(&model).expect("the model is small enough"));
}

/// The same, and a new quantizer in every slot that a rule decides.
#[divan::bench(args = SIZES)]
fn initialize_20_rules(bencher: Bencher<'_, '_>, nodes: usize) {
    let model = model(nodes);
    let config = rules(&model);
    let options = InitializeOptions {
        overwrite_policy: OverwritePolicy::Overwrite,
        ..InitializeOptions::default()
    };
    bencher.bench_local(|| config.initialize(&model, options).expect("the rules can be followed"));
}
