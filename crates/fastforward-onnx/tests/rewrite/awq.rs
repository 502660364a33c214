//! Activation-aware weight quantization: the same floats, and layers that err less once their weights are rounded.

use std::sync::Arc;

use fastforward_core::algorithms::ScaleRounding;
use fastforward_core::quantization::quantizer::Quantizer;
use fastforward_core::quantization::{Granularity, LinearQuantizer, LinearQuantizerConfig};
use fastforward_onnx::Result;
use fastforward_onnx::calibrate::{Batch, RunOptions, SiteObserver, Watched, calibrate};
use fastforward_onnx::graph::{Model, tensor_from_f32};
use fastforward_onnx::proto::{NodeProto, TensorProto, node};
use fastforward_onnx::rewrite::{AwqOptions, AwqReport, Executed, awq};
use fastforward_onnx::simulate::{SimulateOptions, simulate};
use fastforward_onnx::tensor::Tensor;
use fastforward_onnx::tree::{Role, Tree};

use crate::support::{bits, graph_with, numbers, output, with};

const CHANNELS: usize = 48;

/// A constant with numbers between -1 and 1.
fn constant(name: &str, shape: &[usize], seed: u64) -> TensorProto {
    tensor_from_f32(name, shape, &numbers(seed, shape.iter().product()))
}

/// Whether a channel is larger than the others, and what reads it smaller: as channels are that a network relies on.
fn is_salient(channel: usize) -> bool {
    channel.is_multiple_of(12)
}

/// A weight `[CHANNELS, outputs]`.
fn reader(name: &str, seed: u64) -> TensorProto {
    let outputs = 24;
    let weight = numbers(seed, CHANNELS * outputs).into_iter().enumerate();
    let weight = weight.map(|(at, w)| if is_salient(at / outputs) { 0.2 * w } else { w });
    tensor_from_f32(name, &[CHANNELS, outputs], &weight.collect::<Vec<f32>>())
}

/// One number for each channel, 25 times as large for some.
fn salient(name: &str) -> TensorProto {
    let scale = |channel: usize| if is_salient(channel) { 25.0 } else { 1.0 };
    tensor_from_f32(name, &[CHANNELS], &(0..CHANNELS).map(scale).collect::<Vec<f32>>())
}

/// What `before` makes, `v`, is multiplied twice.
fn products(before: Vec<NodeProto>) -> Model {
    let mut nodes = before;
    nodes.push(node("MatMul", "query", &["v", "w1"], &["p"]));
    nodes.push(node("MatMul", "key", &["v", "w2"], &["q"]));
    nodes.push(node("Add", "sum", &["p", "q"], &["y"]));
    let constants = vec![
        constant("w0", &[CHANNELS, CHANNELS], 2),
        reader("w1", 3),
        reader("w2", 4),
        constant("shift", &[CHANNELS], 5),
        salient("scale"),
    ];
    graph_with(&[64, CHANNELS], nodes, &[], constants)
}

fn normalized() -> Model {
    products(vec![node("LayerNormalization", "norm", &["x", "scale", "shift"], &["v"])])
}

/// The model's tree with 3-bit weights, one scale for each output channel or with this granularity.
fn three_bits(model: &Model, granularity: Option<Granularity>) -> Tree {
    let tree = Tree::new(model);
    for site in tree.sites().iter().filter(|site| site.role == Role::Weight) {
        // The scale of a normalization has none.
        let Some(axis) = site.channel_axis else { continue };
        let own = Granularity::per_channel(axis as isize);
        let granularity = granularity.clone().unwrap_or(own);
        let config = LinearQuantizerConfig::new(3).with_granularity(granularity);
        site.slot.replace(Arc::new(LinearQuantizer::new(config).unwrap()));
    }
    tree
}

fn slots(tree: &Tree) -> Vec<String> {
    tree.set_sites().map(|site| site.name.clone()).collect()
}

fn data(model: &Model) -> impl Iterator<Item = Result<Batch>> + use<> {
    let shape = model.inputs()[0].fixed_shape().unwrap();
    let batch = move |seed| {
        let x = numbers(seed, shape.iter().product());
        Ok(vec![("x".to_owned(), Tensor::from_f32(shape.clone(), x).unwrap())])
    };
    [77, 78].into_iter().map(batch)
}

/// The mean square of what rounding the weights does to `y`.
fn error(model: &Model, granularity: Option<Granularity>) -> f64 {
    struct Range(Arc<dyn Quantizer>);
    impl SiteObserver for Range {
        fn observe(
            &mut self,
            x: fastforward_core::ArrayView<'_>,
        ) -> std::result::Result<(), fastforward_core::Error> {
            let settable = self.0.as_range_settable().unwrap();
            let tile = settable.granularity().tile_shape(x.shape()).unwrap();
            let tiling = ff_kernels::Tiling::new(x.shape(), &tile).unwrap();
            let own = ff_kernels::min_max(x.data(), &tiling).unwrap();
            settable.set_quantization_range(&own.min, &own.max)
        }
    }
    let tree = three_bits(model, granularity);
    let mut ranges: Vec<_> =
        tree.set_slots().map(|site| (site, Range(site.slot.quantizer()))).collect();
    let watched = ranges.iter_mut().map(|(site, observer)| Watched { site, observer }).collect();
    calibrate(model, watched, data(model), &RunOptions::default(), &mut ()).unwrap();
    let simulated = simulate(model, &tree, &SimulateOptions::default()).unwrap();
    let (float, rounded) = (output(model), output(&simulated.model));
    let square = |(a, b): (&f32, &f32)| f64::from(a - b).powi(2);
    float.iter().zip(&rounded).map(square).sum::<f64>() / float.len() as f64
}

fn options() -> AwqOptions {
    AwqOptions::default()
}

#[track_caller]
fn scaled(model: &mut Model, tree: &Tree, slots: &[String], options: &AwqOptions) -> AwqReport {
    let before = model.clone();
    let mut data = Executed::new(|| data(&before), RunOptions::default());
    let report = awq(model, tree, slots, &mut data, options).unwrap();
    model.check().unwrap();
    report
}

#[test]
fn salient_channels_are_rounded_more_finely_and_floats_stay_the_same() {
    let sources = [
        vec![node("LayerNormalization", "source", &["x", "scale", "shift"], &["v"])],
        vec![
            node("Mul", "source", &["x", "scale"], &["a"]),
            node("Add", "add", &["a", "shift"], &["b"]),
            node("Relu", "relu", &["b"], &["v"]),
        ],
    ];
    for before in sources {
        for granularity in [None, Some(Granularity::PerTensor)] {
            let mut model = products(before.clone());
            let tree = three_bits(&model, granularity.clone());
            let (floats, rounded) = (output(&model), error(&model, granularity.clone()));
            let report = scaled(&mut model, &tree, &slots(&tree), &options());
            assert_eq!((report.kept.as_slice(), report.scaled.len()), (&[][..], 1), "{report:?}");
            let one = &report.scaled[0];
            assert_eq!((one.value.as_str(), one.producer.as_str()), ("v", "source"));
            let names: Vec<&str> = one.layers.iter().map(|layer| layer.layer.as_str()).collect();
            assert_eq!(names, ["query", "key"]);
            assert!(one.max_scale >= 4.0 * one.min_scale && one.alpha > 0.0, "{one}");
            for layer in &one.layers {
                assert!(layer.loss < 0.6 * layer.loss_before, "{layer:?}");
                assert!(layer.loss_before < layer.signal, "{layer:?}");
            }
            assert_eq!(bits(&floats), bits(&output(&model)));
            let after = error(&model, granularity);
            assert!(after < 0.6 * rounded, "{rounded} {after}");
            // One pass over the data for both layers: they read the same.
            assert_eq!(report.moment_bytes, 16 * (CHANNELS * CHANNELS) as u64);
        }
    }
}

#[test]
fn unrounded_factors_gain_at_least_as_much() {
    let loss = |rounding| {
        let mut model = normalized();
        let tree = three_bits(&model, None);
        let report =
            scaled(&mut model, &tree, &slots(&tree), &AwqOptions { rounding, ..options() });
        report.scaled[0].layers.iter().map(|layer| layer.loss).sum::<f64>()
    };
    let [powers, unrounded] = [ScaleRounding::PowerOfTwo, ScaleRounding::Unrounded].map(loss);
    assert!(unrounded < 1.1 * powers, "{powers} {unrounded}");
}

#[test]
fn the_report_says_what_the_rewritten_weights_cost() {
    // Without anything else to quantize, the loss of both layers' outputs is found again in the rewritten graph, where
    // the search for factors begins with none.
    let mut model = normalized();
    let tree = three_bits(&model, None);
    let first = scaled(&mut model, &tree, &slots(&tree), &options());
    let again =
        scaled(&mut model.clone(), &tree, &slots(&tree), &AwqOptions { steps: 1, ..options() });
    let before = |report: &AwqReport| -> Option<Vec<f64>> {
        Some(report.scaled.first()?.layers.iter().map(|layer| layer.loss_before).collect())
    };
    let found: Vec<f64> = first.scaled[0].layers.iter().map(|layer| layer.loss).collect();
    match before(&again) {
        Some(before) => {
            for (found, before) in found.iter().zip(before) {
                assert!((found / before - 1.0).abs() < 1e-9, "{found} {before}");
            }
        }
        None => assert_eq!(again.kept[0].reason, "no factors make the error of its layers smaller"),
    }
}

#[test]
fn convolutions_have_one_factor_for_each_channel_of_each_group() {
    let nodes = vec![
        node("Conv", "source", &["x", "w0", "scale"], &["a"]),
        node("Relu", "relu", &["a"], &["v"]),
        with(node("Conv", "grouped", &["v", "w1"], &["y"]), "group", 2),
    ];
    let mut source = numbers(2, CHANNELS * 3);
    for channel in (0..CHANNELS).filter(|&channel| is_salient(channel)) {
        source[channel * 3..(channel + 1) * 3].iter_mut().for_each(|w| *w *= 25.0);
    }
    let mut grouped = numbers(3, 8 * CHANNELS / 2 * 9);
    for (at, w) in grouped.iter_mut().enumerate() {
        if is_salient(at / 9 % (CHANNELS / 2)) {
            *w *= 0.2;
        }
    }
    let constants = vec![
        tensor_from_f32("w0", &[CHANNELS, 3, 1, 1], &source),
        tensor_from_f32("w1", &[8, CHANNELS / 2, 3, 3], &grouped),
        salient("scale"),
    ];
    let mut model = graph_with(&[2, 3, 8, 8], nodes, &[], constants);
    let tree = three_bits(&model, None);
    let (floats, rounded) = (output(&model), error(&model, None));
    let report = scaled(&mut model, &tree, &slots(&tree), &options());
    assert_eq!(report.scaled.len(), 1, "{report:?}");
    assert_eq!(bits(&floats), bits(&output(&model)));
    let after = error(&model, None);
    assert!(after < 0.9 * rounded, "{rounded} {after}");
    assert!(report.kept[0].reason.contains("computed by no node"), "{report:?}");
}

#[test]
fn what_cannot_be_scaled_stays_with_a_reason() {
    #[track_caller]
    fn check_kept(mut model: Model, tree: &Tree, slots: &[String], reason: &str) {
        let bytes = model.to_bytes();
        let report = scaled(&mut model, tree, slots, &options());
        let kept = report.kept.iter().find(|kept| kept.value == "v");
        assert_eq!(kept.map(|kept| kept.reason.as_str()), Some(reason), "{report:?}");
        assert!(report.scaled.is_empty());
        assert!(model.to_bytes() == bytes);
    }
    let model = normalized();
    let tree = three_bits(&model, None);
    let half = ["query.weight_quantizer".to_owned()];
    let reason = "the weight of `key.weight_quantizer` is quantized and not among those meant";
    check_kept(model, &tree, &half, reason);

    let free = products(vec![node("Sigmoid", "free", &["x"], &["v"])]);
    let tree = three_bits(&free, None);
    let reason = "`free` (Sigmoid) has no parameters that could take the factors";
    check_kept(free, &tree, &slots(&tree), reason);

    let dense = products(vec![node("MatMul", "source", &["x", "w0"], &["v"])]);
    let tree = three_bits(&dense, Some(Granularity::PerTensor));
    let reason = "scales at `source.weight_quantizer` are shared by channels, whose ranges the factors would spread";
    check_kept(dense, &tree, &slots(&tree), reason);

    let norm = normalized();
    let tree = three_bits(&norm, None);
    let parameter = tree.sites().iter().find(|site| site.value == "shift").unwrap();
    parameter.slot.replace(Arc::new(LinearQuantizer::new(LinearQuantizerConfig::new(8)).unwrap()));
    let reason = format!(
        "scales at `{}` are shared by channels, whose ranges the factors would spread",
        parameter.name
    );
    let meant = ["query.weight_quantizer".to_owned(), "key.weight_quantizer".to_owned()];
    check_kept(norm, &tree, &meant, &reason);

    // Weights that are on the grid already: nothing to gain.
    let mut exact = normalized();
    for name in ["w1", "w2"] {
        let signs: Vec<f32> = numbers(9, CHANNELS * 24).iter().map(|w| w.signum()).collect();
        exact.set_constant(tensor_from_f32(name, &[CHANNELS, 24], &signs));
    }
    let tree = three_bits(&exact, None);
    let meant = slots(&tree);
    check_kept(exact, &tree, &meant, "no factors make the error of its layers smaller");
}

#[test]
fn layers_that_are_not_meant_are_not_mentioned() {
    let mut model = normalized();
    let tree = three_bits(&model, None);
    let report = scaled(&mut model, &tree, &[], &options());
    assert_eq!(report, AwqReport::default());
}
