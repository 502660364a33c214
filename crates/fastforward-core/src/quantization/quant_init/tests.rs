//! What the golden cases of family `config` do not reach.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use mpath::{Class, SearchOptions};

use super::*;
use crate::module::{Module, Visitor, VisitorMut, classes};
use crate::quantization::quantizer::{Quantizer, QuantizerSlot};
use crate::quantization::{Granularity, LinearQuantizerConfig};

/// A module with any children.
struct Node {
    class: &'static str,
    modules: Vec<(&'static str, Node)>,
    slots: Vec<(&'static str, QuantizerSlot)>,
}

impl Module for Node {
    fn class(&self) -> Class {
        Class::define(self.class, &format!("test::{}", self.class), &[classes::module()])
    }
    fn visit<'a>(&'a self, visitor: &mut dyn Visitor<'a>) {
        self.modules.iter().for_each(|(name, module)| visitor.module(name, module));
        self.slots.iter().for_each(|(name, slot)| visitor.slot(name, slot));
    }
    fn visit_mut(&mut self, visitor: &mut dyn VisitorMut) {
        self.modules.iter_mut().for_each(|(name, module)| visitor.module(name, module));
        self.slots.iter_mut().for_each(|(name, slot)| visitor.slot(name, slot));
    }
}

fn linear() -> Node {
    Node {
        class: "Linear",
        modules: vec![],
        slots: vec![
            ("weight_quantizer", QuantizerSlot::weight(&[8, 4])),
            ("output_quantizer", QuantizerSlot::output()),
        ],
    }
}

/// `encoder/{0, 1}` and `head`, each with a weight and an output slot.
fn model() -> Node {
    let encoder =
        Node { class: "List", modules: vec![("0", linear()), ("1", linear())], slots: vec![] };
    Node { class: "Net", modules: vec![("encoder", encoder), ("head", linear())], slots: vec![] }
}

fn bits(model: &Node) -> Vec<(String, Option<u32>)> {
    crate::module::named_slots(model)
        .into_iter()
        .map(|entry| (entry.name().to_owned(), entry.slot.quantizer().num_bits()))
        .collect()
}

fn config(model: &Node, rules: &[(&str, u32)]) -> QuantizationConfig {
    let mut config = QuantizationConfig::for_model(model);
    for (query, num_bits) in rules {
        config.add_rule(*query, QuantizerSpec::linear(*num_bits)).unwrap();
    }
    config
}

#[test]
fn winners_losers_and_scores_are_on_record() {
    let model = model();
    let mut config = config(&model, &[("**/[quantizer:parameter]", 8), ("encoder/**", 4)]);
    config.add(Rule {
        priority: 7,
        ..Rule::new(
            mpath::Selector::name("head") / mpath::Selector::root(),
            QuantizerSpec::linear(2),
        )
    });
    let resolution = config.resolve(&model).unwrap();
    let encoder = resolution.slot("encoder.0.weight_quantizer").unwrap();
    assert_eq!(encoder.winner, Some(Candidate { rule: 1, score: 1 }));
    assert_eq!(encoder.losers, [Candidate { rule: 0, score: 1 }]);
    let head = resolution.slot("head.weight_quantizer").unwrap();
    assert_eq!(head.winner, Some(Candidate { rule: 2, score: 7 }));
    assert!(bits(&model).iter().all(|(_, bits)| bits.is_none()), "resolving changes nothing");
    assert_eq!(
        resolution.check().unwrap_err().to_string(),
        "rule `**/[quantizer:parameter]` never wins: all 3 slots it matches are decided by `encoder/**` and `head/**`; \
         move it after them, raise its priority, or remove it"
    );
}

#[test]
fn a_misspelt_rule_is_refused_with_a_suggestion() {
    let model = model();
    let config =
        config(&model, &[("encodr/**/weight_quantizer", 8), ("**/[quantizer:paramter]", 8)]);
    let problems: Vec<String> =
        config.resolve(&model).unwrap().problems().iter().map(ToString::to_string).collect();
    assert_eq!(problems.len(), 2);
    assert!(problems[0].contains("encoder"), "{}", problems[0]);
    assert!(problems[1].contains("parameter"), "{}", problems[1]);
}

#[test]
fn a_rule_that_matches_modules_only_says_so() {
    let model = model();
    let config = config(&model, &[("encoder/*", 8)]);
    let problem = config.resolve(&model).unwrap().problems()[0].to_string();
    assert_eq!(
        problem,
        "rule `encoder/*` matches no quantizer slot: it matches 2 modules, `encoder.0` the first, and none is a quantizer \
         slot; `encoder/*/*` would match their slots"
    );
}

#[test]
fn expectations_are_checked_even_where_the_rule_is_optional() {
    let model = model();
    let mut config = QuantizationConfig::for_model(&model);
    let query = config.context().query("**/[quantizer:parameter/weight]").unwrap();
    config.add(Rule {
        expect: Some("2".parse().unwrap()),
        optional: true,
        ..Rule::new(query, QuantizerSpec::linear(8))
    });
    let error = config.resolve(&model).unwrap().check().unwrap_err();
    assert_eq!(
        error.to_string(),
        "rule `**/[quantizer:parameter/weight]` matches 3 slots, expected 2"
    );
}

#[test]
fn one_failing_factory_leaves_every_slot_as_it_was() {
    let model = model();
    let mut config = config(&model, &[("**/[quantizer:activation]", 8)]);
    config
        .add_rule(
            "**/weight_quantizer",
            LinearQuantizerConfig::new(4).with_granularity(Granularity::per_block(
                &[1],
                &[3],
                &[0],
            )),
        )
        .unwrap();
    let error = config.initialize(&model, InitializeOptions::default()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Granularity);
    assert!(error.to_string().starts_with("3 quantizers cannot be made:"), "{error}");
    assert!(bits(&model).iter().all(|(_, bits)| bits.is_none()));
}

#[test]
fn a_shared_slot_is_one_slot_with_two_names() {
    let mut model = model();
    let shared = model.modules[1].1.slots[0].1.clone();
    model.modules[0].1.modules[1].1.slots[0].1 = shared;
    let calls = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&calls);
    let mut config = QuantizationConfig::for_model(&model);
    config
        .add_rule("**/weight_quantizer", move |_: &str, current: &Arc<dyn Quantizer>| {
            counted.fetch_add(1, Ordering::Relaxed);
            Ok(Arc::clone(current))
        })
        .unwrap();
    let done = config.initialize(&model, InitializeOptions::default()).unwrap();
    let slot = done.resolution.slot("head.weight_quantizer").unwrap();
    let names: Vec<&str> = slot.names().collect();
    assert_eq!(names, ["encoder.1.weight_quantizer", "head.weight_quantizer"]);
    assert_eq!(done.resolution.slot("encoder.1.weight_quantizer").unwrap().name(), names[0]);
    assert_eq!((done.resolution.slots().len(), calls.load(Ordering::Relaxed)), (5, 2));
}

#[test]
fn scoring_can_be_replaced() {
    let model = model();
    let config = config(&model, &[("**/[quantizer:parameter]", 8), ("**/weight_quantizer", 4)])
        .with_precedence_score(|rule, result| {
            let first_layer = result.full_name().starts_with("encoder.0");
            i64::from(first_layer && rule.query.to_string().contains("quantizer:parameter"))
        });
    config.initialize(&model, InitializeOptions::default()).unwrap();
    let weights: Vec<Option<u32>> = bits(&model).into_iter().step_by(2).map(|(_, b)| b).collect();
    assert_eq!(weights, [Some(8), Some(4), Some(4)]);
}

#[test]
fn none_takes_a_slot_away_from_more_general_rules() {
    let model = model();
    let mut config = config(&model, &[("**/weight_quantizer", 8)]);
    config.add_rule("head/**", QuantizerSpec::None).unwrap();
    let done = config.initialize(&model, InitializeOptions::default()).unwrap();
    assert!(done.resolution.check().is_ok());
    assert_eq!(model.modules[1].1.slots[0].1.quantizer().num_bits(), None);
}

#[test]
fn an_old_resolution_is_applied_only_if_nothing_changed() {
    let model = model();
    let config = config(&model, &[("**", 8)]);
    let resolution = config.resolve(&model).unwrap();
    config.initialize(&model, InitializeOptions::default()).unwrap();
    let overwrite =
        InitializeOptions { overwrite_policy: OverwritePolicy::Overwrite, ..Default::default() };
    let error = config.apply(resolution.clone(), overwrite).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::UnsafeUpdate);
    let unsafe_too = InitializeOptions { safe: false, ..overwrite };
    config.apply(resolution, unsafe_too).unwrap();
}

#[test]
fn collections_hold_quantizers_only_and_keep_their_order() {
    let model = model();
    let weights = find_quantizers(&model, "**/weight_quantizer", None).unwrap();
    assert_eq!(
        weights.names(),
        ["head.weight_quantizer", "encoder.1.weight_quantizer", "encoder.0.weight_quantizer"]
    );
    assert!(find_quantizers(&model, "encoder/*", None).unwrap().is_empty());

    let context = model_context(&model);
    let modules =
        mpath::search("[cls:Linear]", NodeRef::Module(&model), &SearchOptions::new(&context))
            .unwrap();
    let mut all = find_quantizers(&model, "head/*", None).unwrap();
    assert!(all.append(modules[0].clone()).is_err());
    assert!(all.append(weights.results()[1].clone()).is_ok());
    assert_eq!(
        all.intersection(&weights).unwrap().names(),
        ["head.weight_quantizer", "encoder.1.weight_quantizer"]
    );
    assert_eq!(all.difference(&weights).unwrap().names(), ["head.output_quantizer"]);
    assert_eq!(
        weights.symmetric_difference(&all).unwrap().names(),
        ["encoder.0.weight_quantizer", "head.output_quantizer"]
    );
    let other = self::model();
    let elsewhere = find_quantizers(&other, "**", None).unwrap();
    assert_eq!(weights.union(&elsewhere).unwrap_err().kind(), ErrorKind::Query);
    assert_eq!(
        all.to_string().lines().nth(1),
        Some("    <0: head.weight_quantizer: QuantizerStub>,")
    );
}

#[test]
fn a_set_operation_remembers_what_was_seen() {
    let model = model();
    let weights = find_quantizers(&model, "**/weight_quantizer", None).unwrap();
    config(&model, &[("head/weight_quantizer", 8)])
        .initialize(&model, InitializeOptions::default())
        .unwrap();
    let later = find_quantizers(&model, "head/*", None).unwrap();
    // The left operand saw a stub in `head.weight_quantizer`, and that is what counts.
    let mut both = weights.union(&later).unwrap();
    let error =
        both.initialize(QuantizerSpec::linear(4), InitializeOptions::default()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::UnsafeUpdate);
}

#[test]
fn output_channels_come_from_the_slot() {
    let spec = QuantizerSpec::Linear {
        config: LinearQuantizerConfig::new(8),
        channel: ChannelAxis::OfOutput,
    };
    let slot = QuantizerSlot::new(
        crate::quantization::QuantizerMetadata::weight()
            .with_shape(&[4, 8])
            .with_attribute(CHANNEL_AXIS, "1"),
    );
    let made = spec.make(&slot).unwrap();
    assert_eq!(made.as_range_settable().unwrap().granularity(), &Granularity::per_channel(1));
    let error = spec.make(&QuantizerSlot::input()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidSettings);
    assert!(spec.to_string().contains("PerChannel(channel=output)"));
}

#[test]
fn printing_shows_one_rule_per_line() {
    let model = model();
    assert_eq!(QuantizationConfig::for_model(&model).to_string(), "QuantizationConfig()");
    let mut config = config(&model, &[("[class:Linear]/{a, b}", 4)]);
    let keep = Factory::new(|_, current| Ok(Arc::clone(current))).named("keep");
    config.add_rule("**", keep).unwrap();
    assert_eq!(
        config.to_string(),
        "QuantizationConfig(\n  [cls:Linear]/{a, b} => LinearQuantizer(num_bits=4, symmetric=True, \
         granularity=PerTensor())\n  ** => keep(<module_name>, <current_quantizer>)\n)"
    );
}

#[test]
fn user_classes_need_no_registration() {
    let model = model();
    let found = find_quantizers(&model, "encoder/[cls:Linear]/weight_quantizer", None).unwrap();
    assert_eq!(found.len(), 2);
    let error = find_quantizers(&model, "**/[cls:Liner]", None).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Query);
    assert!(error.to_string().contains("did you mean `Linear`"), "{error}");
}

#[test]
fn a_model_shared_at_every_level_is_walked_once() {
    struct Twice([Arc<dyn Module>; 2]);
    impl Module for Twice {
        fn class(&self) -> Class {
            Class::define("Twice", "test::Twice", &[classes::module()])
        }
        fn visit<'a>(&'a self, visitor: &mut dyn Visitor<'a>) {
            visitor.module("a", &self.0[0]);
            visitor.module("b", &self.0[1]);
        }
        fn visit_mut(&mut self, _: &mut dyn VisitorMut) {}
    }
    let mut part: Arc<dyn Module> = Arc::new(linear());
    for _ in 0..60 {
        part = Arc::new(Twice([Arc::clone(&part), part]));
    }
    // 2^60 paths lead to the linear layer.
    assert!(model_context(&part).class("Linear").is_some());
}

#[test]
fn a_model_too_deep_to_walk_is_an_error() {
    let mut model = linear();
    for _ in 0..100_000 {
        model = Node { class: "Deep", modules: vec![("inner", model)], slots: vec![] };
    }
    let error = find_quantizers(&model, "**/missing", None).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Query);
    // Dropping it would recurse.
    std::mem::forget(model);
}
