//! One file of rules, one network twice: as a graph file and as a model in code. Both get the same quantizers, ranges and
//! accuracy.
//!
//! Batch normalization is folded in both. What remains of a difference comes from the order in which floats are summed: the
//! engine of graphs and the library's convolutions cut sums differently.

#[path = "../../../examples/tutorials/fashion_cnn.rs"]
mod fashion_cnn;
#[path = "../../../examples/tutorials/support.rs"]
mod support;

use std::collections::HashMap;
use std::path::Path;
use std::process::Command;

use assert_cmd::cargo::CommandCargoExt;
use candle_core::Tensor;
use fashion_cnn::{BatchNorms, FashionCnn};
use fastforward::algorithms::{PrepareOptions, TuneOptions, prepare, targets, tune};
use fastforward::config::QuantConfigFile;
use fastforward::data::{Dataset, InputType, ModelInput};
use fastforward::flags;
use fastforward::metrics::Metric;
use fastforward::module::named_slots;
use fastforward::nn::{Layer, Param};
use fastforward::quantization::affine::{AffineParameters, SavedQuantizer};
use fastforward::quantization::quant_init::{InitializeOptions, model_context};
use fastforward::quantization::quantizer::default_tags;
use fastforward::quantization::state::load_quantization_state;
use fastforward::quantization::{ParameterQuantizer, find_parameter_quantizers};
use fastforward::range_setting::{EstimationOptions, UpdatePolicy, estimate_ranges_with};
use fastforward::tensor::tensor_from;
use fastforward_onnx::calibrate::RunOptions;
use fastforward_onnx::engine::{BatchInput, Engine, EngineOptions};
use fastforward_onnx::graph::Model;
use fastforward_onnx::rewrite;
use fastforward_onnx::shapes::ShapeTable;
use fastforward_onnx::tree::{Role, Tree};
use support::{Result, examples, fashion, measure};

/// Relative difference of scales that float sums in another order may make.
const SUM_ORDER: f32 = 2e-6;

#[test]
fn the_same_rules_quantize_the_graph_and_the_model_in_code() -> Result<()> {
    let rules = examples().join("fashion/layers.toml");
    let graph = from_graph(&rules)?;

    let _lenient = flags::strict_quantization(false);
    let _constants = flags::inference();
    let (model, _) = in_code(&rules)?;

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

/// The same lines of a file choose the same codes in code as on the graph.
///
/// With inputs in float what a layer is fed differs by float sums in another order, some 1e-7 of it, which moves a code only if
/// its weight lies on the edge. With quantized inputs such a difference makes some activations round to the other side, and what
/// follows is judged by other inputs: the codes of later layers then differ here and there, with the same error of the outputs.
#[test]
fn the_same_algorithms_choose_the_same_codes() -> Result<()> {
    let adaround = std::fs::read_to_string(examples().join("fashion/low_bits.toml"))?;
    let gptq = "type = \"gptq\"\ninputs = \"original\"";
    let gptq = adaround.replace("type = \"adaround\"", gptq);
    assert_ne!(gptq, adaround);
    let _lenient = flags::strict_quantization(false);
    let _constants = flags::inference();
    let _simulated = flags::integer_execution_mode(false);
    for (name, text, least_same) in [("gptq", &gptq, 0.995), ("adaround", &adaround, 0.85)] {
        let folder = tempfile::tempdir()?;
        for file in ["calib512.safetensors", "test2000.safetensors"] {
            std::fs::copy(examples().join("fashion").join(file), folder.path().join(file))?;
        }
        let rules = folder.path().join("rules.toml");
        std::fs::write(&rules, text)?;
        let graph = from_graph(&rules)?;

        let (model, data) = in_code(&rules)?;
        let config = QuantConfigFile::load(&rules)?;
        let reports = tune(
            &model,
            &targets(&config, &model)?,
            || data.iter().map(Ok),
            |model, x| model.forward_tensor(x),
            &TuneOptions::default(),
        )?;
        for (found, expected) in reports.iter().zip(&graph.algorithms) {
            assert_eq!(expected["algorithm"], found.algorithm);
            let expected = expected["changes"].as_array().ok_or("there are changes")?;
            assert_eq!(found.changes.len(), 8);
            for (found, expected) in found.changes.iter().zip(expected) {
                assert_eq!(expected["name"], found.name.as_str());
                for (key, found) in [("before", Some(found.before)), ("after", found.after)] {
                    let expected = expected[key].as_f64().ok_or("a number")?;
                    let found = found.ok_or("a number")?;
                    let off = (found / expected - 1.0).abs();
                    assert!(off < 0.05, "{name} {key}: {found}, in the graph {expected}");
                }
            }
        }
        let (mut same, mut all) = (0, 0);
        for weight in find_parameter_quantizers(&model, default_tags::weight())? {
            let found = codes(&weight)?;
            let expected = &graph.codes[weight.parameter_name.as_str()];
            assert_eq!(found.len(), expected.len());
            let equal = found.iter().zip(expected).filter(|(a, b)| a == b).count();
            // Both are fed the very same images.
            assert!(weight.parameter_name != "conv1.weight" || equal == found.len());
            (same, all) = (same + equal, all + found.len());
        }
        let same = same as f64 / all as f64;
        assert!(same >= least_same, "{name}: {same} of {all} codes are the same");

        let outputs = run(&model, &fashion::images(fashion::TEST)?)?;
        let labels = fashion::labels(fashion::TEST)?;
        let top1 = measure(Metric::TOP1, &outputs, None, Some(&labels))?;
        let off = (top1 - graph.top1).abs();
        assert!(off <= 1.5, "{name}: {top1} % in code, {} % in the graph", graph.top1);
    }
    Ok(())
}

/// What comes before ranges makes the same parameters in code as on the graph: the very same where weights decide, and where
/// what flows decides, too, as it is rounded to powers of two.
#[test]
fn the_same_preparation_makes_the_same_parameters() -> Result<()> {
    let text = std::fs::read_to_string(examples().join("fashion/layers.toml"))?;
    let folder = tempfile::tempdir()?;
    for file in ["calib512.safetensors", "test2000.safetensors"] {
        std::fs::copy(examples().join("fashion").join(file), folder.path().join(file))?;
    }
    let rules = folder.path().join("rules.toml");
    let types = ["equalize", "absorb_bias", "smooth", "awq"];
    let sections = types.map(|name| format!("\n[[algorithm]]\ntype = \"{name}\"\n"));
    std::fs::write(&rules, text + &sections.concat())?;
    let _lenient = flags::strict_quantization(false);
    let _constants = flags::inference();
    let config = QuantConfigFile::load(&rules)?;
    let model = FashionCnn::new(&fashion::weights()?, BatchNorms::Folded)?;
    let rules = config.quantization_config(model_context(&model))?;
    rules.initialize(&model, InitializeOptions::default())?;
    let data = calibration(&config)?;
    let targets = targets(&config, &model)?;
    let reports = prepare(
        &model,
        &targets,
        || data.iter().map(Ok),
        |model, x| model.forward_tensor(x),
        &PrepareOptions::default(),
    )?;

    let mut graph = Model::load(&examples().join("fashion/fashion_cnn.onnx"))?;
    rewrite::fold_batch_norm(&mut graph)?;
    let image = |x: &Tensor| -> Result<_> {
        let values: Vec<f32> = x.flatten_all()?.to_vec1()?;
        Ok(fastforward_onnx::tensor::Tensor::from_f32(x.dims().to_vec(), values)?)
    };
    let images = data.iter().map(image).collect::<Result<Vec<_>>>()?;
    let engine = Engine::new(&graph, &EngineOptions::default())?;
    let first = BatchInput { name: "image", tensor: &images[0], shared: false };
    let shapes = ShapeTable::recorded(&graph, &engine, &[first])?;
    let batches = || images.iter().map(|image| Ok(vec![("image".to_owned(), image.clone())]));
    let mut activations = rewrite::Executed::new(batches, RunOptions::default());
    let tree = Tree::new(&graph);
    for site in tree.sites().iter().filter(|site| site.role == Role::Weight) {
        let own = named_slots(&model).into_iter().find(|entry| entry.names.contains(&site.name));
        site.slot.replace(own.ok_or("the model has the slots of the graph")?.slot.quantizer());
    }
    let slots: Vec<String> = tree.set_sites().map(|site| site.name.clone()).collect();
    for (target, found) in targets.iter().zip(&reports) {
        let options = rewrite::PrepareOptions {
            shapes: &shapes,
            meant: (&tree, &slots),
            max_moment_bytes: 1 << 30,
            add_missing_biases: false,
        };
        let done = rewrite::prepare(&mut graph, &target.algorithm, &mut activations, &options)?;
        assert_eq!(found.changes.len(), done.changes.len(), "{found}");
        for (found, (name, before, after)) in found.changes.iter().zip(&done.changes) {
            let is_close = |a: f64, b: f64| (a - b).abs() <= 1e-4 * b.abs();
            assert!(found.name == *name || target.algorithm.name() == "smooth", "{name}");
            assert!(is_close(found.before, *before), "{name}: {} {before}", found.before);
            assert!(is_close(found.after.unwrap_or(f64::NAN), *after), "{name}");
        }
    }
    let all = fastforward::module::named_shared_parameters(&model);
    let mut compared = 0;
    for entry in &all {
        let Some(parameter) = entry.parameter.downcast_ref::<Param>() else { continue };
        let (layer, what) = entry.names[0].rsplit_once('.').ok_or("a layer's parameter")?;
        let node = graph.graph().node.iter().find(|node| node.label() == layer);
        let input = if what == "weight" { 1 } else { 2 };
        let name = node.and_then(|node| node.input_at(input)).ok_or("the graph has the layer")?;
        let expected = graph.constant(name).ok_or("the layer has the constant")?.to_f32()?;
        let found: Vec<f32> = parameter.tensor().flatten_all()?.to_vec1()?;
        // Folding and absorbing round in another order here and there.
        for (a, b) in found.iter().zip(&expected) {
            assert!((a - b).abs() <= 1e-5 * (1.0 + b.abs()), "`{}`: {a}, {b}", entry.names[0]);
        }
        compared += 1;
    }
    assert_eq!(compared, 16);
    Ok(())
}

/// The codes of a weight.
fn codes(weight: &ParameterQuantizer) -> Result<Vec<i64>> {
    let value = weight.parameter.quantized(&weight.slot)?;
    let quantized = value.as_quantized().ok_or("the weight is quantized")?;
    Ok(quantized.codes()?.to_i32().into_iter().map(i64::from).collect())
}

/// The model in code with the quantizers that rules give it and ranges from calibration; and the batches that these are from.
fn in_code(rules: &Path) -> Result<(FashionCnn, Vec<Tensor>)> {
    let config = QuantConfigFile::load(rules)?;
    let model = FashionCnn::new(&fashion::weights()?, BatchNorms::Folded)?;
    let done = config
        .quantization_config(model_context(&model))?
        .initialize(&model, InitializeOptions::default())?;
    done.resolution.check()?;

    let options = EstimationOptions {
        disable_quantization: true,
        update: UpdatePolicy::AtEnd,
        ..EstimationOptions::default()
    };
    let estimation = estimate_ranges_with(config.estimators(&done.resolution)?, options)?;
    let batches = calibration(&config)?;
    for batch in &batches {
        model.forward_tensor(batch)?;
    }
    assert_eq!(estimation.finish()?.slots.len(), 19);
    Ok((model, batches))
}

/// The calibration data of a configuration.
fn calibration(config: &QuantConfigFile) -> Result<Vec<Tensor>> {
    let input = ModelInput {
        name: "image".into(),
        dtype: InputType::F32,
        shape: Some(vec![None, Some(1), Some(28), Some(28)]),
    };
    let calibration = config.calibration.as_ref().ok_or("there is a calibration section")?;
    let data = Dataset::open(&calibration.data, &config.inputs, std::slice::from_ref(&input))?;
    data.batches(64).map(|batch| Ok(tensor_from(&batch?.inputs[0])?)).collect()
}

/// What the program made of the graph.
struct Graph {
    /// The model in code with the quantizers that the program saved.
    model: FashionCnn,
    top1: f64,
    /// The codes of each weight in the file, by the name of the parameter.
    codes: HashMap<String, Vec<i64>>,
    /// What the report says of each algorithm.
    algorithms: Vec<serde_json::Value>,
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
    let file = folder.path().join("fashion_cnn.qdq.onnx");
    let file = Model::load(&file)?;
    let mut codes = HashMap::new();
    // Of the weights, which are no vectors of biases.
    for node in file.graph().node.iter().filter(|node| node.op_type() == "DequantizeLinear") {
        let weight = node.input_at(0).and_then(|name| file.constant(name));
        let Some(weight) = weight.filter(|one| one.info().is_ok_and(|info| info.shape.len() > 1))
        else {
            continue;
        };
        let reader = file
            .graph()
            .node
            .iter()
            .find(|one| one.input_at(1) == node.output.first().map(String::as_str));
        let layer = reader.ok_or("a layer reads each weight")?.label().to_owned();
        codes.insert(format!("{layer}.weight"), weight.to_i64()?);
    }
    let algorithms = report["algorithms"].as_array().cloned().unwrap_or_default();
    let top1 = metric["value"].as_f64().ok_or("top1 is a number")?;
    Ok(Graph { model, top1, codes, algorithms })
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
