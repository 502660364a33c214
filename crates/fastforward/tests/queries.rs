//! The queries of the reference's documentation, unchanged, on models like the ones it uses.

use fastforward::Module;
use fastforward::module::{NodeRef, classes, name_slots};
use fastforward::mpath::{Aliases, Context, SearchOptions, search};
use fastforward::quantization::quant_init::{default_context, find_quantizers};
use fastforward::quantization::{QuantizerMetadata, QuantizerSlot};
use indexmap::IndexMap;

/// A layer with the slots of the reference's linear and convolution layers.
#[derive(Module)]
#[module(class = classes::linear())]
struct Linear {
    input_quantizer: QuantizerSlot,
    weight_quantizer: QuantizerSlot,
    bias_quantizer: QuantizerSlot,
    output_quantizer: QuantizerSlot,
}

#[derive(Module)]
#[module(class = classes::conv2d())]
struct Conv2d {
    input_quantizer: QuantizerSlot,
    weight_quantizer: QuantizerSlot,
    bias_quantizer: QuantizerSlot,
    output_quantizer: QuantizerSlot,
}

#[derive(Module)]
#[module(class = classes::relu())]
struct ReLU {
    input_quantizer: QuantizerSlot,
    output_quantizer: QuantizerSlot,
}

/// `torch.nn.ModuleDict`.
type Dict = IndexMap<&'static str, Box<dyn Module>>;

fn linear() -> Box<dyn Module> {
    Box::new(Linear {
        input_quantizer: QuantizerSlot::input(),
        weight_quantizer: QuantizerSlot::weight(&[10, 10]),
        bias_quantizer: QuantizerSlot::bias(&[10]),
        output_quantizer: QuantizerSlot::output(),
    })
}

fn conv() -> Box<dyn Module> {
    Box::new(Conv2d {
        input_quantizer: QuantizerSlot::input(),
        weight_quantizer: QuantizerSlot::weight(&[3, 3, 3, 3]),
        bias_quantizer: QuantizerSlot::bias(&[3]),
        output_quantizer: QuantizerSlot::output(),
    })
}

fn relu() -> Box<dyn Module> {
    Box::new(ReLU {
        input_quantizer: QuantizerSlot::input(),
        output_quantizer: QuantizerSlot::output(),
    })
}

fn module<const N: usize>(children: [(&'static str, Box<dyn Module>); N]) -> Box<dyn Module> {
    let dict: Dict = children.into_iter().collect();
    Box::new(dict)
}

fn list<const N: usize>(children: [Box<dyn Module>; N]) -> Box<dyn Module> {
    Box::new(Vec::from(children))
}

/// The model of the reference's tour of mpath.
fn my_module() -> Box<dyn Module> {
    module([
        ("layer1", module([("sublayer1", linear()), ("sublayer2", conv())])),
        (
            "layer2",
            module([("sublayer1", linear()), ("activation", relu()), ("sublayer2", conv())]),
        ),
        ("layer3", module([("sublayer1", linear()), ("sublayer2", conv())])),
        (
            "layer4",
            module([
                ("sublayer1", linear()),
                (
                    "sublayer2",
                    module([
                        ("first", linear()),
                        ("second", conv()),
                        ("last", module([("only", linear())])),
                    ]),
                ),
            ]),
        ),
    ])
}

/// The parts of a language model that the reference's quick start addresses.
fn language_model() -> Box<dyn Module> {
    let layer = || {
        module([
            ("self_attn", module([("q_proj", linear()), ("o_proj", linear())])),
            ("mlp", module([("up_proj", linear()), ("down_proj", linear())])),
        ])
    };
    module([("model", module([("layers", list([layer(), layer()]))])), ("lm_head", linear())])
}

fn names_of(model: &dyn Module, query: &str) -> Vec<String> {
    let context = default_context();
    let found = search(query, NodeRef::Module(model), &SearchOptions::new(&context));
    let found = found.unwrap_or_else(|error| panic!("{error}"));
    let mut names: Vec<String> = found.iter().map(|result| result.full_name().to_owned()).collect();
    names.sort();
    names
}

/// What a query finds, sorted.
#[track_caller]
fn check(model: &dyn Module, query: &str, expected: &[&str]) {
    assert_eq!(names_of(model, query), expected, "{query}");
}

#[test]
fn the_tour_of_mpath() {
    let model = my_module();
    let model = &*model;
    let all = [
        "layer1.sublayer1",
        "layer2.sublayer1",
        "layer3.sublayer1",
        "layer4.sublayer1",
        "layer4.sublayer2.first",
        "layer4.sublayer2.last.only",
    ];
    check(model, "**/[cls:torch.nn.Linear]", &all);
    check(model, "layer4/**/[cls:torch.nn.Linear]", &all[3..]);
    check(model, "layer4/*/[cls:torch.nn.Linear]", &all[4..5]);
    check(model, "layer4/[cls:torch.nn.Linear]", &all[3..4]);
    check(model, r"[re:layer[12\]]/sublayer1", &all[..2]);
    check(model, r"[regex:layer[12\]]/sublayer1", &all[..2]);
    check(model, "layer2/~[cls:torch.nn.Linear]", &["layer2.activation", "layer2.sublayer2"]);
    check(model, "layer2/[class:torch.nn.ReLU]", &["layer2.activation"]);
    check(
        model,
        "*/{activation, sublayer2}/[quantizer:activation/output]",
        &[
            "layer1.sublayer2.output_quantizer",
            "layer2.activation.output_quantizer",
            "layer2.sublayer2.output_quantizer",
            "layer3.sublayer2.output_quantizer",
        ],
    );
}

#[test]
fn quantizers_of_the_tour() {
    let model = my_module();
    let find = |query: &str| {
        let found = find_quantizers(&*model, query, None).unwrap_or_else(|error| panic!("{error}"));
        found.names().into_iter().map(str::to_owned).collect::<Vec<_>>()
    };
    let outputs = find("**/[cls:torch.nn.Linear]/[quantizer:activation/output]");
    assert_eq!(outputs.len(), 6);
    assert!(outputs.iter().all(|name| name.ends_with("output_quantizer")), "{outputs:?}");
    // The quantized class of the reference, under each of its names, is the same class.
    for class in [
        "QuantizedLinear",
        "ff.nn.QuantizedLinear",
        "fastforward.nn.QuantizedLinear",
        "fastforward.nn.linear.QuantizedLinear",
        "torch.nn.modules.linear.Linear",
        "nn.Linear",
        "Linear",
        "fastforward::nn::Linear",
        "ff::nn::Linear",
    ] {
        assert_eq!(find(&format!("**/[cls:{class}]/[quantizer:activation/output]")), outputs);
    }
    assert_eq!(find("**/[cls:ff.nn.QuantizedLinear]/[qtag:parameter/weight]").len(), 6);
    assert_eq!(find("**/[quantizer:parameter]").len(), 20);
    assert_eq!(find("**/[cls:ff.nn.QuantizedModule]/[quantizer:parameter/bias]").len(), 10);
    assert_eq!(find("**/[cls:ff.nn.QuantizerStub]").len(), 42);
    assert_eq!(find("**").len(), 42);
    assert_eq!(find("layer1/*/[quantizer:activation/output]").len(), 2);
    assert_eq!(find("layer1/**").len(), 8);
}

#[test]
fn tags_of_a_users_module_form_a_hierarchy() {
    #[derive(Module)]
    struct MyModule {
        input_quantizer: QuantizerSlot,
        output_quantizer: QuantizerSlot,
    }
    let slot = |tag: &str| QuantizerSlot::new(QuantizerMetadata::default().with_tag(tag));
    let model = MyModule {
        input_quantizer: slot("my_tag_hierarchy/my_tag/input"),
        output_quantizer: slot("my_tag_hierarchy/my_tag/output"),
    };
    let both = ["input_quantizer", "output_quantizer"];
    check(&model, "**/[quantizer:my_tag_hierarchy/my_tag]", &both);
    check(&model, "**/[quantizer:my_tag_hierarchy]", &both);
    check(&model, "**/[quantizer:my_tag_hierarchy/my_tag/input]", &both[..1]);
    check(&model, "**/[quantizer:input]", &[]);
}

#[test]
fn the_quick_start_for_language_models() {
    let model = language_model();
    let model = &*model;
    let projections = |group: &str, projections: [&str; 2], slot: &str| -> Vec<String> {
        [0, 1]
            .into_iter()
            .flat_map(|layer| {
                projections.map(|name| format!("model.layers.{layer}.{group}.{name}.{slot}"))
            })
            .collect()
    };
    let mut attention = projections("self_attn", ["o_proj", "q_proj"], "weight_quantizer");
    let mlp = projections("mlp", ["down_proj", "up_proj"], "weight_quantizer");
    assert_eq!(names_of(model, "**/layers/*/self_attn/*/[quantizer:parameter/weight]"), attention);
    assert_eq!(names_of(model, "**/layers/*/mlp/*/[quantizer:parameter/weight]"), mlp);
    attention.extend(mlp);
    attention.sort();
    let inputs: Vec<String> =
        attention.iter().map(|name| name.replace("weight_quantizer", "input_quantizer")).collect();
    let query = "**/layers/**/[cls:torch.nn.Linear]/[quantizer:activation/input]";
    assert_eq!(names_of(model, query), inputs);
    let heads = ["lm_head.weight_quantizer"];
    check(model, "~model/[quantizer:parameter/weight]", &heads);
    // In the union of collections everything stands once.
    let find = |query: &str| find_quantizers(model, query, None).unwrap();
    let union = find("**/layers/*/self_attn/*/[quantizer:parameter/weight]")
        .union(&find("**/layers/**/[quantizer:parameter/weight]"))
        .unwrap();
    assert_eq!(union.len(), attention.len());
    // What a query finds is what errors will call it.
    name_slots(model);
    assert!(
        union
            .names()
            .iter()
            .zip(union.slots())
            .all(|(name, slot)| { slot.label().as_deref() == Some(name) })
    );
}

#[test]
fn aliases_of_the_model_are_used_when_none_are_given() {
    #[derive(Module)]
    struct Network {
        layers: Vec<Box<dyn Module>>,
        #[module(aliases)]
        aliases: Aliases,
    }
    let context: Context = default_context();
    let aliases = [("first", "layers/0"), ("weights", "&first/[quantizer:parameter/weight]")];
    let model = Network {
        layers: vec![linear(), linear()],
        aliases: Aliases::parse(&context, aliases).unwrap(),
    };
    let names = |aliases: Option<&Aliases>| {
        find_quantizers(&model, "&weights", aliases)
            .map(|found| found.names().join(" "))
            .map_err(|error| error.to_string())
    };
    assert_eq!(names(None).unwrap(), "layers.0.weight_quantizer");
    // Given ones replace those of the model.
    assert!(names(Some(&Aliases::new())).unwrap_err().contains("`weights` is not a known alias"));
    let other = Aliases::parse(&context, [("weights", "layers/1/weight_quantizer")]).unwrap();
    assert_eq!(names(Some(&other)).unwrap(), "layers.1.weight_quantizer");
}
