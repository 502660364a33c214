//! Names, labels and parameters of models made by hand, and how deep these may be.

use std::sync::Arc;

use fastforward_core::module::{
    Module, Outline, Parameter, Visitor, VisitorMut, classes, for_each_parameter_mut, name_slots,
    named_parameters, named_shared_parameters, named_slots,
};
use fastforward_core::quantization::quant_init::{
    InitializeOptions, QuantizationConfig, QuantizerSpec,
};
use fastforward_core::quantization::{LinearQuantizer, LinearQuantizerConfig, QuantizerSlot};
use fastforward_core::range_setting::{
    EstimationOptions, EstimatorConfig, NoData, estimate_ranges,
};
use mpath::Class;

#[derive(Module)]
#[module(crate = "fastforward_core")]
struct Layer {
    input_quantizer: QuantizerSlot,
    output_quantizer: QuantizerSlot,
}

fn layer() -> Layer {
    Layer { input_quantizer: QuantizerSlot::input(), output_quantizer: QuantizerSlot::output() }
}

fn labels(model: &dyn Module) -> Vec<Option<String>> {
    named_slots(model).iter().map(|entry| entry.slot.label().map(|l| l.to_string())).collect()
}

fn some(names: &[&str]) -> Vec<Option<String>> {
    names.iter().map(|name| Some((*name).to_owned())).collect()
}

#[test]
fn slots_are_labelled_with_the_first_of_their_full_names() {
    let mut model = vec![vec![layer()], vec![layer()]];
    model[1][0].input_quantizer = model[0][0].output_quantizer.clone();
    assert_eq!(labels(&model), [None, None, None]);
    name_slots(&model);
    let expected = some(&["0.0.input_quantizer", "0.0.output_quantizer", "1.0.output_quantizer"]);
    assert_eq!(labels(&model), expected);

    // Naming again changes nothing, also not the allocation.
    let before = model[0][0].input_quantizer.label().unwrap();
    name_slots(&model);
    assert!(Arc::ptr_eq(&before, &model[0][0].input_quantizer.label().unwrap()));
    name_slots(&model[1]);
    assert_eq!(labels(&model[1]), some(&["0.input_quantizer", "0.output_quantizer"]));
}

#[test]
fn initializing_labels_every_slot_and_calibration_those_without_label() {
    let model = vec![layer(), layer()];
    let calibrate = |part: &Layer| {
        let options = EstimationOptions { no_data: NoData::Report, ..Default::default() };
        estimate_ranges(part, EstimatorConfig::running_minmax(), options)
            .unwrap()
            .finish()
            .unwrap();
    };
    let quantizer = LinearQuantizer::new(LinearQuantizerConfig::new(8)).unwrap();
    model[1].input_quantizer.replace(Arc::new(quantizer));
    calibrate(&model[1]);
    assert_eq!(
        labels(&model),
        [None, None, some(&["input_quantizer"])[0].clone(), Some("output_quantizer".into())]
    );

    let mut config = QuantizationConfig::for_model(&model);
    config.add_rule("1/output_quantizer", QuantizerSpec::linear(8)).unwrap();
    config.resolve(&model).unwrap();
    assert_eq!(labels(&model)[0], None, "resolving changes nothing");
    config.initialize(&model, InitializeOptions::default()).unwrap();
    let full = some(&[
        "0.input_quantizer",
        "0.output_quantizer",
        "1.input_quantizer",
        "1.output_quantizer",
    ]);
    assert_eq!(labels(&model), full);
    calibrate(&model[1]);
    assert_eq!(labels(&model), full);
}

/// One level of a deep model: a slot, and the level below.
struct Level {
    slot: Option<QuantizerSlot>,
    below: Option<Box<Level>>,
}

impl Module for Level {
    fn class(&self) -> Class {
        Class::define("Level", "walk::Level", &[classes::module()])
    }
    fn visit<'a>(&'a self, visitor: &mut dyn Visitor<'a>) {
        if let Some(below) = &self.below {
            visitor.module("b", &**below);
        }
        if let Some(slot) = &self.slot {
            visitor.slot("q", slot);
        }
    }
    fn visit_mut(&mut self, visitor: &mut dyn VisitorMut) {
        if let Some(below) = &mut self.below {
            visitor.module("b", &mut **below);
        }
        if let Some(slot) = &mut self.slot {
            visitor.slot("q", slot);
        }
    }
}

impl Drop for Level {
    fn drop(&mut self) {
        let mut below = self.below.take();
        while let Some(mut level) = below {
            below = level.below.take();
        }
    }
}

fn tower(levels: usize) -> Level {
    let mut top = Level { slot: Some(QuantizerSlot::input()), below: None };
    for _ in 1..levels {
        top = Level { slot: None, below: Some(Box::new(top)) };
    }
    top.slot = Some(QuantizerSlot::output());
    top
}

#[test]
fn a_model_may_have_a_hundred_thousand_levels() {
    const LEVELS: usize = 100_000;
    let model = tower(LEVELS);
    let slots = named_slots(&model);
    // The level below comes first, so the deepest slot does.
    assert_eq!(slots[0].name(), format!("{}q", "b.".repeat(LEVELS - 1)));
    assert_eq!(slots[1].name(), "q");
    name_slots(&model);
    assert_eq!(slots[0].slot.label().as_deref(), Some(slots[0].name()));
    assert!(named_parameters(&model).is_empty());
    let outline = Outline::new(&model);
    let mut node = &outline.root;
    let mut levels = 1;
    while let Some(below) = node.children.iter().find(|child| child.kind == "module") {
        node = below;
        levels += 1;
    }
    assert_eq!(levels, LEVELS);
    assert_eq!(node.children[0].name, "q");
    let error = QuantizationConfig::for_model(&model).resolve(&model).unwrap_err();
    assert_eq!(error.to_string(), "the tree is too deep: `b` lies more than 4096 levels down");
}

#[test]
fn a_deep_outline_is_printed() {
    let text = Outline::new(&tower(3000)).to_string();
    assert_eq!(text.lines().count(), 3002);
    assert!(text.ends_with("\n  q: QuantizerStub #activation/output\n"));
}

struct Weight {
    value: f32,
    /// Handles of the same data, as a tensor library's are.
    storage: Option<usize>,
}

impl Parameter for Weight {
    fn shape(&self) -> &[usize] {
        &[]
    }
    fn dtype(&self) -> &str {
        "f32"
    }
    fn size_bytes(&self) -> usize {
        4
    }
    fn identity(&self) -> Option<usize> {
        self.storage
    }
}

fn weight(value: f32, storage: Option<usize>) -> Weight {
    Weight { value, storage }
}

#[derive(Module)]
#[module(crate = "fastforward_core")]
struct Tied {
    plain: Weight,
    handle: Weight,
    same_handle: Weight,
    counted: Arc<Weight>,
    counted_again: Arc<Weight>,
    object: Box<dyn Parameter>,
    shared: Arc<dyn Parameter>,
    first: Arc<Inner>,
    second: Arc<Inner>,
}

#[derive(Module)]
#[module(crate = "fastforward_core")]
struct Inner {
    weight: Weight,
}

fn tied() -> Tied {
    let counted = Arc::new(weight(3.0, None));
    let inner = Arc::new(Inner { weight: weight(6.0, None) });
    Tied {
        plain: weight(1.0, None),
        handle: weight(2.0, Some(7)),
        same_handle: weight(2.0, Some(7)),
        counted: Arc::clone(&counted),
        counted_again: counted,
        object: Box::new(weight(4.0, None)),
        shared: Arc::new(weight(5.0, None)),
        first: Arc::clone(&inner),
        second: inner,
    }
}

#[test]
fn a_parameter_has_every_name_and_its_own_type() {
    let model = tied();
    let all: Vec<String> = named_parameters(&model).into_iter().map(|(name, _)| name).collect();
    assert_eq!(all.len(), 9);
    let entries = named_shared_parameters(&model);
    let found: Vec<(String, f32)> = entries
        .iter()
        .map(|entry| {
            let weight = entry.parameter.downcast_ref::<Weight>().expect("every parameter is one");
            (entry.names.join(" "), weight.value)
        })
        .collect();
    let expected = [
        ("plain", 1.0),
        ("handle same_handle", 2.0),
        ("counted counted_again", 3.0),
        ("object", 4.0),
        ("shared", 5.0),
        ("first.weight second.weight", 6.0),
    ];
    assert_eq!(found, expected.map(|(names, value)| (names.to_owned(), value)));
    let other: &dyn Parameter = &model.plain;
    assert!(other.downcast_ref::<Arc<Weight>>().is_none());
}

#[test]
fn parameters_with_one_owner_can_be_changed() {
    let mut model = tied();
    let mut seen = Vec::new();
    for_each_parameter_mut(&mut model, &mut |name, parameter| {
        let changed = parameter.downcast_mut::<Weight>().map(|weight| weight.value *= 10.0);
        seen.push((name.to_owned(), changed.is_some()));
    });
    let expected = [
        ("plain", true),
        ("handle", true),
        ("same_handle", true),
        ("counted", false),
        ("counted_again", false),
        ("object", true),
        ("shared", true),
    ];
    assert_eq!(seen, expected.map(|(name, changed)| (name.to_owned(), changed)));
    let value = |name: &str| {
        let found = named_parameters(&model).into_iter().find(|(known, _)| known == name);
        found.and_then(|(_, parameter)| Some(parameter.downcast_ref::<Weight>()?.value))
    };
    assert_eq!((value("object"), value("counted")), (Some(40.0), Some(3.0)));
}
