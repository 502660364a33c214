//! The tree of a network, as it is printed.

use fastforward_core::module::Outline;
use fastforward_onnx::tree::{Role, Tree};

use crate::data::example;

#[test]
fn fashion_cnn() {
    let tree = Tree::new(&example("fashion/fashion_cnn.onnx"));
    // Where this fails and the new tree is right, write it to the file.
    let outline = Outline::new(tree.root()).to_string();
    assert!(outline == include_str!("fashion_cnn.outline"), "the tree is now:\n{outline}");
}

#[test]
fn every_example_has_slots_on_its_weights() {
    for (path, weights, biases) in [
        ("fashion/fashion_cnn.onnx", 8, 2),
        ("digits/digits_cnn.onnx", 4, 4),
        ("digits/digits_mlp.onnx", 3, 3),
    ] {
        let tree = Tree::new(&example(path));
        let count = |role| tree.sites().iter().filter(|site| site.role == role).count();
        assert_eq!((count(Role::Weight), count(Role::Bias)), (weights, biases), "{path}");
        let channels = tree.sites().iter().filter(|site| site.role == Role::Weight);
        assert!(channels.into_iter().all(|site| site.channel_axis == Some(0)), "{path}");
    }
}
