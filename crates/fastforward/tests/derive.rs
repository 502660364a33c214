//! `#[derive(Module)]`: the tree that each kind of field gives.

use std::collections::BTreeMap;
use std::sync::Arc;

use fastforward::module::{Outline, Parameter, classes, named_parameters, named_slots};
use fastforward::mpath::{Aliases, Class, Context, Node};
use fastforward::quantization::QuantizerSlot;
use fastforward::{Module, Visitor, VisitorMut};

/// The one place that says how a tree is printed.
#[track_caller]
fn check(model: &dyn Module, expected: &str) {
    assert_eq!(Outline::new(model).to_string(), expected.trim_start());
}

struct Weight {
    shape: Vec<usize>,
}

impl Parameter for Weight {
    fn shape(&self) -> &[usize] {
        &self.shape
    }
    fn dtype(&self) -> &str {
        "f32"
    }
    fn size_bytes(&self) -> usize {
        4 * self.shape.iter().product::<usize>()
    }
}

#[derive(Module)]
struct Linear {
    weight: Weight,
    bias: Option<Weight>,
    input_quantizer: QuantizerSlot,
    output_quantizer: Option<QuantizerSlot>,
    out_features: usize,
    name: String,
    stride: (usize, usize),
}

fn linear(n: usize) -> Linear {
    Linear {
        weight: Weight { shape: vec![n, n] },
        bias: (n > 1).then(|| Weight { shape: vec![n] }),
        input_quantizer: QuantizerSlot::input(),
        output_quantizer: (n > 2).then(QuantizerSlot::output),
        out_features: n,
        name: "fc".into(),
        stride: (1, 1),
    }
}

#[derive(Module)]
struct Relu;

#[test]
fn fields_are_shown_in_order_and_options_may_be_absent() {
    check(
        &linear(3),
        "
Linear
  weight: f32 [3, 3]
  bias: f32 [3]
  input_quantizer: QuantizerStub #activation/input
  output_quantizer: QuantizerStub #activation/output
",
    );
    check(
        &linear(1),
        "
Linear
  weight: f32 [1, 1]
  input_quantizer: QuantizerStub #activation/input
",
    );
    let unused = linear(1);
    assert_eq!((unused.out_features, unused.name.as_str(), unused.stride), (1, "fc", (1, 1)));
    check(&Relu, "Relu\n");
}

#[derive(Module)]
struct Containers {
    list: Vec<Relu>,
    array: [Relu; 2],
    nested: Vec<Vec<Relu>>,
    some: Vec<Option<Relu>>,
    objects: Vec<Box<dyn Module>>,
    map: BTreeMap<&'static str, Relu>,
    insertion: indexmap::IndexMap<String, Relu>,
    slots: Vec<QuantizerSlot>,
    numbers: Vec<f32>,
    absent: Option<Box<dyn Module>>,
}

#[test]
fn lists_number_their_children_and_maps_name_them() {
    let model = Containers {
        list: vec![Relu],
        array: [Relu, Relu],
        nested: vec![vec![Relu], vec![]],
        some: vec![None, Some(Relu)],
        objects: vec![Box::new(Relu), Box::new(vec![Relu])],
        map: BTreeMap::from([("up", Relu), ("down", Relu)]),
        insertion: [("up".to_owned(), Relu), ("down".to_owned(), Relu)].into_iter().collect(),
        slots: vec![QuantizerSlot::input(), QuantizerSlot::output()],
        numbers: vec![1.0],
        absent: None,
    };
    assert_eq!(model.numbers.len(), 1);
    check(
        &model,
        "
Containers
  list: ModuleList
    0: Relu
  array: ModuleList
    0: Relu
    1: Relu
  nested: ModuleList
    0: ModuleList
      0: Relu
    1: ModuleList
  some: ModuleList
    1: Relu
  objects: ModuleList
    0: Relu
    1: ModuleList
      0: Relu
  map: ModuleDict
    down: Relu
    up: Relu
  insertion: ModuleDict
    up: Relu
    down: Relu
  slots: ModuleList
    0: QuantizerStub #activation/input
    1: QuantizerStub #activation/output
",
    );
}

/// A trait of the user's own, as models have it: `forward` over one's own values.
trait Layer: Module {
    fn forward(&self, x: f32) -> f32;
}

impl Layer for Relu {
    fn forward(&self, x: f32) -> f32 {
        x.max(0.0)
    }
}

#[derive(Module)]
struct Residual<M: Module> {
    inner: M,
    stack: Vec<M>,
}

#[derive(Module)]
struct Stack {
    layers: Vec<Box<dyn Layer>>,
    wrapped: Residual<Relu>,
}

#[test]
fn generic_modules_and_objects_of_own_traits_are_children() {
    let model = Stack {
        layers: vec![Box::new(Relu)],
        wrapped: Residual { inner: Relu, stack: vec![Relu] },
    };
    assert_eq!(model.layers.iter().fold(-1.0, |x, layer| layer.forward(x)), 0.0);
    check(
        &model,
        "
Stack
  layers: ModuleList
    0: Relu
  wrapped: Residual
    inner: Relu
    stack: ModuleList
      0: Relu
",
    );
}

#[derive(Module)]
#[module(class = "Conv2d", extends = base())]
struct Convolution {
    #[module(rename = "weight_quantizer")]
    quantizer: QuantizerSlot,
    #[module(skip)]
    hidden: Relu,
    r#type: Relu,
}

fn base() -> Class {
    Class::define("Base", "derive::Base", &[])
}

#[test]
fn attributes_rename_skip_and_classify() {
    let model = Convolution { quantizer: QuantizerSlot::weight(&[1]), hidden: Relu, r#type: Relu };
    check(&model.hidden, "Relu\n");
    check(
        &model,
        "
Conv2d
  weight_quantizer: QuantizerStub [1] #parameter/weight
  type: Relu
",
    );
    let class = model.class();
    assert_eq!(class.path(), "derive::Conv2d");
    assert!(class.is_a(base()) && class.is_a(classes::module()));
    assert_eq!(Relu.class().ancestors(), [classes::module()]);
}

#[derive(Module)]
enum Block {
    Linear(Linear),
    Boxed(Box<Linear>),
    Shared(Arc<Relu>),
    Gated { gate: Relu, slope: f32 },
    Pair(Relu, Relu),
    Leaky(#[module(skip)] f32),
    Named(#[module(rename = "only")] Relu),
    Empty,
}

#[derive(Module)]
enum Never {}

#[derive(Module)]
enum Activation {
    Relu(Relu),
}

#[test]
fn a_variant_with_one_unnamed_field_is_the_module_in_it() {
    let shared = Arc::new(Relu);
    let blocks = vec![
        Block::Linear(linear(1)),
        Block::Boxed(Box::new(linear(1))),
        Block::Shared(Arc::clone(&shared)),
        Block::Gated { gate: Relu, slope: 0.5 },
        Block::Pair(Relu, Relu),
        Block::Leaky(0.1),
        Block::Named(Relu),
        Block::Empty,
    ];
    check(
        &blocks,
        "
ModuleList
  0: Linear
    weight: f32 [1, 1]
    input_quantizer: QuantizerStub #activation/input
  1: Linear
    weight: f32 [1, 1]
    input_quantizer: QuantizerStub #activation/input
  2: Relu
  3: Block
    gate: Relu
  4: Block
    0: Relu
    1: Relu
  5: Block
  6: Block
    only: Relu
  7: Block
",
    );
    let Block::Leaky(slope) = &blocks[5] else { panic!("the sixth block is leaky") };
    assert_eq!(*slope, 0.1);
    assert!(matches!(blocks[3], Block::Gated { slope: 0.5, .. }));
    assert_eq!(blocks[2].identity(), shared.identity());
    assert_eq!(blocks[3].identity(), None);
    assert_eq!(Activation::Relu(Relu).class(), Relu.class());
    check(&None::<Never>.map_or_else(Vec::new, |never| vec![never]), "ModuleList\n");
}

#[derive(Module)]
struct Tied {
    first: Arc<Linear>,
    second: Arc<Linear>,
    third: Arc<dyn Module>,
}

#[test]
fn owners_of_a_shared_module_show_one_identity_and_its_slots_have_every_name() {
    let one = Arc::new(linear(1));
    let mut model =
        Tied { first: Arc::clone(&one), second: Arc::clone(&one), third: Arc::new(linear(1)) };
    let mut identities = vec![];
    fastforward::module::NodeRef::Module(&model)
        .for_each_child(&mut |_, child| identities.push(child.identity()));
    assert!(
        identities[0].is_some() && identities[0] == identities[1] && identities[0] != identities[2]
    );
    let slots = named_slots(&model);
    assert_eq!(slots[0].names, ["first.input_quantizer", "second.input_quantizer"]);
    assert_eq!(slots[1].names, ["third.input_quantizer"]);

    // Mutable access reaches only what has one owner.
    assert_eq!(mutable_parameters(&mut model), ["third.weight"]);
}

#[test]
fn the_mutable_walk_shows_the_same_names_in_the_same_order() {
    let mut model = Residual { inner: linear(2), stack: vec![linear(1), linear(3)] };
    let names: Vec<String> = named_parameters(&model).into_iter().map(|(name, _)| name).collect();
    assert_eq!(
        names,
        ["inner.weight", "inner.bias", "stack.0.weight", "stack.1.weight", "stack.1.bias"]
    );
    assert_eq!(mutable_parameters(&mut model), names);
}

fn mutable_parameters(model: &mut dyn Module) -> Vec<String> {
    #[derive(Default)]
    struct Names {
        path: Vec<String>,
        found: Vec<String>,
    }
    impl VisitorMut for Names {
        fn module(&mut self, name: &str, module: &mut dyn Module) {
            self.path.push(name.to_owned());
            module.visit_mut(self);
            self.path.pop();
        }
        fn slot(&mut self, _name: &str, _slot: &mut QuantizerSlot) {}
        fn parameter(&mut self, name: &str, _parameter: &mut dyn Parameter) {
            let mut full = self.path.clone();
            full.push(name.to_owned());
            self.found.push(full.join("."));
        }
    }
    let mut names = Names::default();
    model.visit_mut(&mut names);
    names.found
}

#[derive(Module)]
struct Parameters {
    first: Weight,
    list: Vec<Weight>,
    array: [Weight; 1],
    some: Vec<Option<Weight>>,
    map: BTreeMap<&'static str, Weight>,
    insertion: indexmap::IndexMap<String, Arc<Weight>>,
    absent: Vec<Option<Weight>>,
    last: Option<Box<dyn Parameter>>,
}

fn weight(n: usize) -> Weight {
    Weight { shape: vec![n] }
}

#[test]
fn lists_and_maps_of_parameters_are_parameters_in_declaration_order() {
    let mut model = Parameters {
        first: weight(1),
        list: vec![weight(2), weight(3)],
        array: [weight(4)],
        some: vec![None, Some(weight(5))],
        map: BTreeMap::from([("up", weight(7)), ("down", weight(6))]),
        insertion: [("up", 8), ("down", 9)]
            .into_iter()
            .map(|(name, n)| (name.to_owned(), Arc::new(weight(n))))
            .collect(),
        absent: vec![None],
        last: Some(Box::new(weight(10))),
    };
    assert_eq!(model.absent.len(), 1);
    check(
        &model,
        "
Parameters
  first: f32 [1]
  list.0: f32 [2]
  list.1: f32 [3]
  array.0: f32 [4]
  some.1: f32 [5]
  map.down: f32 [6]
  map.up: f32 [7]
  insertion.up: f32 [8]
  insertion.down: f32 [9]
  last: f32 [10]
",
    );
    let names: Vec<String> = named_parameters(&model).into_iter().map(|(name, _)| name).collect();
    assert_eq!(mutable_parameters(&mut model), names);
}

/// Bounds before and behind, several parameters, a constant, a default.
#[derive(Module)]
struct Generic<A, B: Module = Relu, const N: usize = 2>
where
    A: Layer,
    Vec<A>: Module,
{
    maybe: Option<A>,
    pair: [B; N],
    all: Vec<Option<Box<A>>>,
    marker: std::marker::PhantomData<fn(A) -> B>,
}

#[derive(Module)]
enum Choice<L: Layer>
where
    L: Clone,
{
    One(L),
    Two { left: L, right: Option<L> },
    Three(L, Box<dyn Layer>, #[module(rename = "last")] Arc<dyn Layer>),
}

impl Clone for Relu {
    fn clone(&self) -> Self {
        Relu
    }
}

#[derive(Module)]
struct Tuple(Relu, #[module(skip)] std::sync::Mutex<u8>, u8, #[module(rename = "act")] Arc<Relu>);

#[test]
fn generics_with_bounds_anywhere_enums_and_tuple_structs() {
    let generic: Generic<Relu> = Generic {
        maybe: Some(Relu),
        pair: [Relu, Relu],
        all: vec![Some(Box::new(Relu)), None],
        marker: std::marker::PhantomData,
    };
    check(
        &generic,
        "
Generic
  maybe: Relu
  pair: ModuleList
    0: Relu
    1: Relu
  all: ModuleList
    0: Relu
",
    );
    check(
        &vec![
            Choice::One(Relu),
            Choice::Two { left: Relu, right: None },
            Choice::Three(Relu, Box::new(Relu), Arc::new(Relu)),
        ],
        "
ModuleList
  0: Relu
  1: Choice
    left: Relu
  2: Choice
    0: Relu
    1: Relu
    last: Relu
",
    );
    let tuple = Tuple(Relu, std::sync::Mutex::new(1), 2, Arc::new(Relu));
    assert_eq!((*tuple.1.lock().unwrap(), tuple.2), (1, 2));
    check(
        &tuple,
        "
Tuple
  0: Relu
  act: Relu
",
    );
}

#[derive(Module)]
#[module(class = classes::linear())]
struct OwnLinear;

#[derive(Module)]
#[module(extends = [classes::linear(), base()], extends = classes::relu())]
struct Fused;

#[test]
fn a_class_may_be_one_that_exists_or_extend_several() {
    assert_eq!(OwnLinear.class(), classes::linear());
    let ancestors = Fused.class().ancestors();
    assert_eq!(ancestors[..4], [classes::linear(), base(), classes::relu(), classes::module()]);
    assert_eq!(Fused.class().path(), "derive::Fused");
}

#[derive(Module)]
enum Aliased {
    Inner(HasAliases),
    Own {
        #[module(aliases)]
        names: Option<Aliases>,
    },
    Without,
}

#[derive(Module)]
struct HasAliases {
    child: Relu,
    #[module(aliases)]
    short: Aliases,
}

#[test]
fn aliases_are_those_of_the_field_that_is_marked() {
    let one = Aliases::parse(&Context::new(), [("a", "child")]).unwrap();
    let has = || HasAliases { child: Relu, short: one.clone() };
    check(&has(), "HasAliases\n  child: Relu\n");
    assert_eq!(has().aliases().map(|aliases| aliases.iter().count()), Some(1));
    assert!(Relu.aliases().is_none());
    for (model, expected) in [
        (Aliased::Inner(has()), true),
        (Aliased::Own { names: Some(one.clone()) }, true),
        (Aliased::Own { names: None }, false),
        (Aliased::Without, false),
    ] {
        assert_eq!(model.aliases().is_some(), expected);
        assert_eq!(Arc::new(model).aliases().is_some(), expected);
    }
}

#[test]
fn a_module_written_by_hand_mixes_with_derived_ones() {
    struct ByHand(Relu);
    impl Module for ByHand {
        fn class(&self) -> Class {
            Class::define("ByHand", "derive::ByHand", &[classes::module()])
        }
        fn visit<'a>(&'a self, visitor: &mut dyn Visitor<'a>) {
            visitor.module("act", &self.0);
        }
        fn visit_mut(&mut self, visitor: &mut dyn VisitorMut) {
            visitor.module("act", &mut self.0);
        }
    }
    check(
        &Residual { inner: ByHand(Relu), stack: vec![] },
        "
Residual
  inner: ByHand
    act: Relu
  stack: ModuleList
",
    );
}
