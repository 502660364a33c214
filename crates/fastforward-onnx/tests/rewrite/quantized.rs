//! What the rewrites gain on the example networks with 8 bits per tensor.

use std::sync::Arc;

use fastforward_core::ArrayView;
use fastforward_core::algorithms::ScaleRounding;
use fastforward_core::algorithms::equalization::EqualizationOptions;
use fastforward_core::quantization::{LinearQuantizer, LinearQuantizerConfig};
use fastforward_onnx::calibrate::{RunOptions, Watched, calibrate};
use fastforward_onnx::engine::{Engine, EngineOptions};
use fastforward_onnx::graph::{Model, tensor_from_f32};
use fastforward_onnx::rewrite::{EqualizeOptions, Relu6, equalize, fold_batch_norm};
use fastforward_onnx::simulate::{SimulateOptions, simulate};
use fastforward_onnx::tree::{Role, Site, Tree};

use crate::data::{Images, example, images};
use crate::support::bits;

/// A network, the images it is calibrated with, and those it is judged by.
pub(crate) struct Case {
    pub(crate) model: Model,
    pub(crate) calibration: Images,
    pub(crate) test: Images,
}

pub(crate) fn fashion() -> Case {
    let mut model = example("fashion/fashion_cnn.onnx");
    fold_batch_norm(&mut model).unwrap();
    Case {
        model,
        calibration: images("fashion/calib512.safetensors", 255.0),
        test: images("fashion/test2000.safetensors", 255.0),
    }
}

pub(crate) fn digits(file: &str) -> Case {
    let all = images("digits/digits.safetensors", 16.0);
    Case { model: example(file), calibration: all.rows(0..512), test: all.rows(1297..1797) }
}

/// A tree with one 8-bit range for each weight and each activation, minimum and maximum of what was seen.
pub(crate) fn quantized_per_tensor(model: &Model, calibration: &Images, n_bits: u32) -> Tree {
    let tree = Tree::new(model);
    for site in tree.sites() {
        let config = match site.role {
            Role::Weight => LinearQuantizerConfig::new(n_bits),
            Role::Input | Role::Output => LinearQuantizerConfig::new(8).asymmetric(),
            Role::Bias | Role::Constant => continue,
        };
        site.slot.replace(Arc::new(LinearQuantizer::new(config).unwrap()));
    }
    let sites: Vec<&Site> = tree.set_slots().collect();
    let mut ranges = vec![(0.0f32, 0.0f32); sites.len()];
    let mut observers: Vec<_> = ranges
        .iter_mut()
        .map(|(min, max)| {
            |x: ArrayView<'_>| -> Result<(), fastforward_core::Error> {
                *min = x.data().iter().copied().fold(*min, f32::min);
                *max = x.data().iter().copied().fold(*max, f32::max);
                Ok(())
            }
        })
        .collect();
    let watched = sites.iter().zip(&mut observers);
    let watched = watched.map(|(&site, observer)| Watched { site, observer }).collect();
    let batches = calibration.batches(128);
    calibrate(model, watched, batches, &RunOptions::default(), &mut ()).unwrap();
    drop(observers);
    for (site, (min, max)) in sites.iter().zip(ranges) {
        let quantizer = site.slot.quantizer();
        quantizer.as_range_settable().unwrap().set_quantization_range(&[min], &[max]).unwrap();
    }
    tree
}

pub(crate) fn engine(model: &Model) -> Engine {
    Engine::new(model, &EngineOptions::default()).unwrap()
}

impl Case {
    /// How many test images get their label with 8 bits per tensor.
    pub(crate) fn quantized(&self, model: &Model) -> usize {
        let tree = quantized_per_tensor(model, &self.calibration, 8);
        let simulated = simulate(model, &tree, &SimulateOptions::default()).unwrap();
        self.test.correct(&engine(&simulated.model))
    }

    pub(crate) fn logits(&self, model: &Model) -> Vec<u32> {
        let batch = self.test.batches(100).next().unwrap().unwrap();
        let images = ("image", &batch[0].1);
        bits(engine(model).run(&[images], &["logits"]).unwrap()[0].as_f32().unwrap())
    }
}

/// Multiplies what a layer writes by factors that differ a thousandfold from channel to channel, and divides what the
/// next one reads. Weights are `[out, in, ..]`, and a depthwise reader's `[channels, 1, ..]`.
fn scale_badly(model: &mut Model, written: [&str; 2], read: &str) {
    let factor = |channel: usize| if channel.is_multiple_of(2) { 32.0 } else { 1.0 / 32.0 };
    let n_channels = model.constant(written[1]).unwrap().info().unwrap().shape[0];
    for name in written {
        change(model, name, |channel, _| factor(channel));
    }
    let shape = model.constant(read).unwrap().info().unwrap().shape;
    let is_depthwise = shape[0] == n_channels && shape[1] == 1;
    // A flattened map has several columns for each channel.
    let block = (shape[1] / n_channels).max(1);
    let channel = |output, input| if is_depthwise { output } else { input / block };
    change(model, read, |output, input| 1.0 / factor(channel(output, input)));
}

/// Multiplies each element by what `factor` says of its first two indices.
pub(crate) fn change(model: &mut Model, name: &str, factor: impl Fn(usize, usize) -> f32) {
    let constant = model.constant(name).unwrap();
    let shape = constant.info().unwrap().shape;
    let columns = shape.get(1).copied().unwrap_or(1);
    let kernel: usize = shape.iter().skip(2).product();
    let values: Vec<f32> = (constant.to_f32().unwrap().iter().enumerate())
        .map(|(at, value)| value * factor(at / kernel / columns, at / kernel % columns))
        .collect();
    model.set_constant(tensor_from_f32(name, &shape, &values));
}

/// The numbers of right images beside the tests are those of a machine with AVX-512; others sum in another order.
///
/// Scales badly, equalizes: the same floats throughout, and how many images each is right about with 8 bits per tensor:
/// as it was, scaled badly, equalized after that, and equalized as it was.
fn check(case: &Case, pairs: &[([&str; 2], &str)], options: &EqualizeOptions) -> [usize; 4] {
    let mut bad = case.model.clone();
    for (written, read) in pairs {
        scale_badly(&mut bad, *written, read);
    }
    let mut mended = bad.clone();
    let report = equalize(&mut mended, options).unwrap();
    let joints: Vec<_> = report.chains.iter().flat_map(|chain| &chain.joints).collect();
    assert_eq!(joints.len(), pairs.len());
    for joint in joints {
        assert!(joint.spread.producer_before > 1000.0, "{joint}");
        assert!(joint.spread.producer_after < joint.spread.producer_before / 4.0, "{joint}");
    }
    let mut equalized = case.model.clone();
    equalize(&mut equalized, options).unwrap();
    if options.equalization.rounding == ScaleRounding::PowerOfTwo {
        let before = case.logits(&case.model);
        for (name, model) in [("bad", &bad), ("mended", &mended), ("equalized", &equalized)] {
            assert!(case.logits(model) == before, "{name}");
        }
    }
    [&case.model, &bad, &mended, &equalized].map(|model| case.quantized(model))
}

const FASHION: [([&str; 2], &str); 4] = [
    (["conv1.weight", "conv1.bias"], "dw.weight"),
    (["res1.weight", "res1.bias"], "res2.weight"),
    (["conv2.weight", "conv2.bias"], "fc1.weight"),
    (["fc1.weight", "fc1.bias"], "fc2.weight"),
];

#[test]
fn equalization_mends_a_badly_scaled_network() {
    let case = fashion();
    let [before, bad, mended, equalized] = check(&case, &FASHION, &EqualizeOptions::default());
    // 1822, 197, 1825, 1826 of 2000; 1825 in float.
    assert!(bad < 1000, "{bad}");
    assert!(mended + 10 >= before && equalized + 10 >= before, "{before} {mended} {equalized}");
}

#[test]
fn factors_as_they_are_mend_it_as_well() {
    let case = fashion();
    let rounding = ScaleRounding::Unrounded;
    let equalization = EqualizationOptions { rounding, ..Default::default() };
    let mut model = case.model.clone();
    for (written, read) in FASHION {
        scale_badly(&mut model, written, read);
    }
    equalize(&mut model, &EqualizeOptions { equalization, ..Default::default() }).unwrap();
    let mended = case.quantized(&model);
    assert!(mended > 1810, "{mended}");
}

#[test]
fn clips_can_go_along() {
    let case = fashion();
    for relu6 in [Relu6::PerChannel, Relu6::Relu] {
        let options = EqualizeOptions { relu6, ..Default::default() };
        let mut model = case.model.clone();
        let report = equalize(&mut model, &options).unwrap();
        assert_eq!(report.chains[0].layers, ["conv1", "dw", "pw"]);
        assert_eq!(report.clips.len(), 1);
        if relu6 == Relu6::PerChannel {
            assert!(case.logits(&model) == case.logits(&case.model));
        }
        let (float, quantized) = (case.test.correct(&engine(&model)), case.quantized(&model));
        // 1825 and 1823 with bounds per channel, 1823 and 1823 as a Relu.
        assert!(float > 1815 && quantized > 1805, "{float} {quantized}");
    }
}

#[test]
fn a_channel_that_is_almost_only_bias_does_not_ruin_its_layer() {
    let mut case = fashion();
    change(&mut case.model, "conv1.weight", |channel, _| if channel == 3 { 1e-9 } else { 1.0 });
    let [paper, bounded] = [false, true].map(|bound_biases| {
        let mut model = case.model.clone();
        equalize(&mut model, &EqualizeOptions { bound_biases, ..Default::default() }).unwrap();
        case.quantized(&model)
    });
    let before = case.quantized(&case.model);
    // 1751, 274, 1767.
    assert!(paper < 1000 && bounded + 10 >= before, "{before} {paper} {bounded}");
}

#[test]
fn equalization_mends_the_digits_networks() {
    let pairs = [
        (["conv1.weight", "conv1.bias"], "conv2.weight"),
        (["conv2.weight", "conv2.bias"], "fc1.weight"),
        (["fc1.weight", "fc1.bias"], "fc2.weight"),
        (["fc2.weight", "fc2.bias"], "fc3.weight"),
    ];
    for (file, pairs) in
        [("digits/digits_cnn.onnx", &pairs[..3]), ("digits/digits_mlp.onnx", &pairs[2..])]
    {
        let case = digits(file);
        let [before, bad, mended, _] = check(&case, pairs, &EqualizeOptions::default());
        // 472, 50, 473; 464, 51, 464 of 500.
        assert!(bad < 250 && mended + 5 >= before, "{before} {bad} {mended}");
    }
}
