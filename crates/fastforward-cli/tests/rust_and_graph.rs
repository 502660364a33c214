//! One file of rules, one network twice: as a graph file and as a model in code. Both get the same quantizers, ranges and
//! accuracy.
//!
//! Batch normalization is folded in both. What remains of a difference comes from the order in which floats are summed: the
//! engine of graphs and the library's convolutions cut sums differently.

#[path = "../../../examples/tutorials/fashion_cnn.rs"]
mod fashion_cnn;
#[path = "../../../examples/tutorials/support.rs"]
mod support;

use std::path::Path;
use std::process::Command;

use assert_cmd::cargo::CommandCargoExt;
use candle_core::Tensor;
use fashion_cnn::{BatchNorms, FashionCnn};
use fastforward::config::QuantConfigFile;
use fastforward::data::{Dataset, InputType, ModelInput};
use fastforward::flags;
use fastforward::metrics::Metric;
use fastforward::module::named_slots;
use fastforward::nn::Layer;
use fastforward::quantization::affine::{AffineParameters, SavedQuantizer};
use fastforward::quantization::quant_init::{InitializeOptions, model_context};
use fastforward::quantization::state::load_quantization_state;
use fastforward::range_setting::{EstimationOptions, UpdatePolicy, estimate_ranges_with};
use fastforward::tensor::tensor_from;
use support::{Result, examples, fashion, measure};

/// Relative difference of scales that float sums in another order may make.
const SUM_ORDER: f32 = 2e-6;

#[test]
fn the_same_rules_quantize_the_graph_and_the_model_in_code() -> Result<()> {
    let rules = examples().join("fashion/layers.toml");
    let graph = from_graph(&rules)?;

    let config = QuantConfigFile::load(&rules)?;
    let model = FashionCnn::new(&fashion::weights()?, BatchNorms::Folded)?;
    let done = config
        .quantization_config(model_context(&model))?
        .initialize(&model, InitializeOptions::default())?;
    done.resolution.check()?;
    let _lenient = flags::strict_quantization(false);
    let _constants = flags::inference();

    let options = EstimationOptions {
        disable_quantization: true,
        update: UpdatePolicy::AtEnd,
        ..EstimationOptions::default()
    };
    let estimation = estimate_ranges_with(config.estimators(&done.resolution)?, options)?;
    let input = ModelInput {
        name: "image".into(),
        dtype: InputType::F32,
        shape: Some(vec![None, Some(1), Some(28), Some(28)]),
    };
    let calibration = config.calibration.as_ref().ok_or("there is a calibration section")?;
    let data = Dataset::open(&calibration.data, &config.inputs, std::slice::from_ref(&input))?;
    for batch in data.batches(64) {
        model.forward_tensor(&tensor_from(&batch?.inputs[0])?)?;
    }
    assert_eq!(estimation.finish()?.slots.len(), 19);

    // The same slots under the same names, with the same grids.
    let found = parameters(&model);
    let expected = parameters(&graph.model);
    assert_eq!(found.len(), 19);
    for ((name, found), (other, expected)) in found.iter().zip(&expected) {
        assert_eq!(name, other);
        assert_eq!(
            (found.num_bits, found.offset.is_some()),
            (expected.num_bits, expected.offset.is_some())
        );
        for (a, b) in found.scale.iter().zip(&expected.scale) {
            assert!((a - b).abs() <= SUM_ORDER * b.abs(), "`{name}`: scale {a}, in the graph {b}");
        }
        for tile in 0..found.scale.len() {
            assert_eq!(found.rounded_offset(tile), expected.rounded_offset(tile), "`{name}`");
        }
    }

    // The same answers: an image may fall on the other side of a tie, no more.
    let images = fashion::images(fashion::TEST)?;
    let labels = fashion::labels(fashion::TEST)?;
    let outputs = run(&model, &images)?;
    let top1 = measure(Metric::TOP1, &outputs, None, Some(&labels))?;
    assert!((top1 - graph.top1).abs() <= 0.1, "{top1} % in code, {} % in the graph", graph.top1);

    // The state that the graph left is the state of the model in code.
    let agreement = measure(Metric::Agreement, &outputs, Some(&run(&graph.model, &images)?), None)?;
    assert!(agreement >= 99.8, "{agreement}");
    Ok(())
}

/// What the program made of the graph.
struct Graph {
    /// The model in code with the quantizers that the program saved.
    model: FashionCnn,
    top1: f64,
}

fn from_graph(rules: &Path) -> Result<Graph> {
    let folder = tempfile::tempdir()?;
    let mut command = Command::cargo_bin("fastforward")?;
    command.args(["quantize", "--json"]).arg(examples().join("fashion/fashion_cnn.onnx"));
    let output = command.arg("--config").arg(rules).arg("--out").arg(folder.path()).output()?;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let report: serde_json::Value =
        serde_json::from_slice(&std::fs::read(folder.path().join("report.json"))?)?;
    let metric = &report["evaluation"]["models"][1]["metrics"][0];
    assert_eq!(metric["metric"], "top1");
    let model = FashionCnn::new(&fashion::weights()?, BatchNorms::Folded)?;
    let state = folder.path().join("state");
    load_quantization_state(&model, &state, None, InitializeOptions::default())?;
    Ok(Graph { model, top1: metric["value"].as_f64().ok_or("top1 is a number")? })
}

/// The parameters of each quantizer, by the name of its slot.
fn parameters(model: &FashionCnn) -> Vec<(String, AffineParameters)> {
    let mut all = Vec::new();
    for entry in named_slots(model) {
        if let Some(SavedQuantizer::Linear(_, Some(parameters))) = entry.slot.quantizer().to_saved()
        {
            all.push((entry.name().to_owned(), parameters));
        }
    }
    all
}

fn run(model: &FashionCnn, images: &Tensor) -> Result<Tensor> {
    let batches = (0..images.dim(0)?).step_by(100);
    let outputs = batches
        .map(|first| model.forward_tensor(&images.narrow(0, first, 100)?)?.dequantize())
        .collect::<fastforward::tensor::Result<Vec<_>>>()?;
    Ok(Tensor::cat(&outputs, 0)?)
}
