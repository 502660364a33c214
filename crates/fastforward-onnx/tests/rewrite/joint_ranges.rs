//! Quantizers that share one range.

use std::sync::Arc;

use fastforward_core::quantization::{LinearQuantizer, LinearQuantizerConfig};
use fastforward_onnx::graph::Model;
use fastforward_onnx::joint_ranges::{JoinOptions, JoinReport, join_ranges};
use fastforward_onnx::proto::node;
use fastforward_onnx::tree::Tree;

use crate::support::{graph, with};

/// Two branches that are joined, once more with the input, and added to it.
fn model() -> Model {
    let nodes = vec![
        node("Relu", "r1", &["x"], &["a"]),
        node("Sigmoid", "s1", &["x"], &["b"]),
        node("Identity", "i", &["b"], &["c"]),
        with(node("Concat", "cat1", &["a", "c"], &["d"]), "axis", 0),
        with(node("Concat", "cat2", &["d", "d"], &["e"]), "axis", 0),
        node("Add", "add", &["e", "e2"], &["f"]),
        node("Tanh", "t", &["e"], &["e2"]),
        node("Relu", "last", &["f"], &["y"]),
    ];
    let mut nodes = nodes;
    nodes.swap(5, 6);
    graph(&[2, 3], nodes, &[])
}

/// Quantizers at these slots, with ranges.
fn tree(model: &Model, slots: &[(&str, LinearQuantizerConfig, Option<[f32; 2]>)]) -> Tree {
    let tree = Tree::new(model);
    for (name, config, range) in slots {
        let site = tree.sites().iter().find(|site| site.name == *name);
        let site = site.unwrap_or_else(|| panic!("{name}: {:?}", tree.sites()));
        site.slot.replace(Arc::new(LinearQuantizer::new(config.clone()).unwrap()));
        if let Some([min, max]) = range {
            let quantizer = site.slot.quantizer();
            let settable = quantizer.as_range_settable().unwrap();
            settable.set_quantization_range(&[*min], &[*max]).unwrap();
        }
    }
    tree
}

fn range(tree: &Tree, name: &str) -> (f32, f32) {
    let site = tree.sites().iter().find(|site| site.name == name).unwrap();
    let (min, max) =
        site.slot.quantizer().as_range_settable().unwrap().quantization_range().unwrap();
    (min[0], max[0])
}

fn join(model: &Model, tree: &Tree, additions: bool) -> JoinReport {
    join_ranges(model, tree, &JoinOptions { concatenations: true, additions }).unwrap()
}

fn eight() -> LinearQuantizerConfig {
    LinearQuantizerConfig::new(8).asymmetric()
}

#[test]
fn inputs_and_output_of_concatenations_get_one_range() {
    let model = model();
    let slots = [
        ("r1.output_quantizer", eight(), Some([0.0, 2.0])),
        ("s1.output_quantizer", eight(), Some([0.0, 1.0])), // Seen through `i`.
        ("cat1.output_quantizer", eight(), Some([-1.0, 1.5])),
        ("cat2.output_quantizer", eight(), Some([0.0, 1.5])),
        ("t.output_quantizer", eight(), Some([-4.0, 4.0])),
    ];
    let tree = tree(&model, &slots);
    let report = join(&model, &tree, false);
    assert_eq!(report.kept, []);
    assert_eq!(report.joined.len(), 1, "{report:?}");
    assert_eq!(report.joined[0].nodes, ["cat1", "cat2"]); // They share a quantizer.
    assert_eq!(report.joined[0].slots.len(), 4);
    let common = range(&tree, "r1.output_quantizer");
    assert!(common.0 <= -1.0 && common.1 >= 1.99, "{common:?}");
    for slot in ["s1.output_quantizer", "cat1.output_quantizer", "cat2.output_quantizer"] {
        assert_eq!(range(&tree, slot), common);
    }
    assert_ne!(range(&tree, "t.output_quantizer"), common);

    // Again: nothing changes.
    join(&model, &tree, false);
    let again = range(&tree, "r1.output_quantizer");
    assert!((again.0 - common.0).abs() < 1e-6 && (again.1 - common.1).abs() < 1e-6);

    // With additions, the operands of `add` join as well.
    let report = join(&model, &tree, true);
    assert_eq!(report.joined[0].nodes, ["cat1", "cat2", "add"]);
    assert_eq!(range(&tree, "t.output_quantizer"), range(&tree, "cat1.output_quantizer"));
}

#[test]
fn quantizers_that_differ_keep_their_ranges() {
    let model = model();
    let check = |other: LinearQuantizerConfig, set: Option<[f32; 2]>, reason: &str| {
        let slots = [
            ("r1.output_quantizer", eight(), Some([0.0, 2.0])),
            ("s1.output_quantizer", other, set),
        ];
        let tree = tree(&model, &slots);
        let before = range(&tree, "r1.output_quantizer");
        let report = join(&model, &tree, false);
        assert_eq!(report.kept[0].reason, reason);
        assert_eq!(range(&tree, "r1.output_quantizer"), before);
    };
    check(
        LinearQuantizerConfig::new(4).asymmetric(),
        Some([0.0, 1.0]),
        "`r1.output_quantizer` and `s1.output_quantizer` differ in more than their ranges",
    );
    let unset = LinearQuantizer::new(eight()).unwrap();
    let reason = format!("`s1.output_quantizer`: {unset} has no range yet");
    check(eight(), None, &reason);
}

#[test]
fn a_quantizer_alone_has_nothing_to_share() {
    let model = model();
    let tree = tree(&model, &[("r1.output_quantizer", eight(), Some([0.0, 2.0]))]);
    assert_eq!(join(&model, &tree, true), JoinReport::default());
}
