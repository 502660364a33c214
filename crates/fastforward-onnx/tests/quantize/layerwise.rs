//! Weights chosen layer by layer, on the example network.

use std::cell::Cell;
use std::rc::Rc;

use fastforward_core::config::{Algorithm, LayerInputs};
use fastforward_onnx::Result;
use fastforward_onnx::calibrate::{Batch, RunOptions};
use fastforward_onnx::engine::EngineOptions;
use fastforward_onnx::graph::Model;
use fastforward_onnx::layerwise::{
    BiasStep, BlockOutcome, BlockTask, Context, Journal, LayerOutcome, LayerProgress, LayerTask,
    Outcome, Task, blocks, choose_weights, linear_layers,
};
use fastforward_onnx::rewrite::fold_batch_norm;
use fastforward_onnx::simulate::{SimulateOptions, simulate};
use fastforward_onnx::tree::Tree;

use crate::data::{Images, example, images};
use crate::way::{Recipe, engine, per_channel, quantize, w8a8};

fn three_bits() -> Recipe {
    Recipe { name: "w3", weights: |site| per_channel(site, 3), ..w8a8() }
}

fn float() -> Model {
    let mut model = example("fashion/fashion_cnn.onnx");
    fold_batch_norm(&mut model).unwrap();
    model
}

fn calibration() -> Images {
    images("fashion/calib512.safetensors", 255.0).rows(0..256)
}

/// The float model, and its tree with calibrated quantizers.
fn prepared() -> (Model, Tree) {
    let model = float();
    let tree = Tree::new(&model);
    quantize(&model, &tree, &three_bits(), &calibration(), &EngineOptions::default());
    (model, tree)
}

fn tasks(model: &Model, tree: &Tree, correct_bias: bool) -> Vec<Task> {
    let (layers, others) = linear_layers(model, tree).unwrap();
    assert_eq!(others, []);
    let gptq = Algorithm::Gptq {
        factor: Default::default(),
        options: Default::default(),
        inputs: LayerInputs::Quantized,
    };
    let ranges = Algorithm::ActivationWeightedMse { candidates: 50, inputs: LayerInputs::Original };
    let descent = Algorithm::CoordinateDescent { inputs: LayerInputs::Quantized };
    let algorithms = vec![ranges, gptq, descent];
    layers
        .into_iter()
        .map(|layer| LayerTask { layer, algorithms: algorithms.clone(), correct_bias })
        .map(|task| Task::Layer(Box::new(task)))
        .collect()
}

fn layers(outcomes: Vec<Outcome>) -> Vec<LayerOutcome> {
    let layer = |outcome| match outcome {
        Outcome::Layer(outcome) => outcome,
        Outcome::Block(outcome) => panic!("{outcome:?}"),
    };
    outcomes.into_iter().map(layer).collect()
}

fn choose(
    model: &mut Model,
    tree: &Tree,
    batches: impl Fn() -> Box<dyn Iterator<Item = Result<Batch>>>,
    correct_bias: bool,
    journal: &Journal,
    progress: &mut dyn LayerProgress,
) -> Result<Vec<LayerOutcome>> {
    let context =
        Context { simulation: SimulateOptions::default(), run: RunOptions::default(), journal };
    let tasks = tasks(model, tree, correct_bias);
    Ok(layers(choose_weights(model, tree, &tasks, batches, &context, progress)?))
}

fn data() -> Box<dyn Iterator<Item = Result<Batch>>> {
    let batches: Vec<_> = calibration().batches(128).collect();
    Box::new(batches.into_iter())
}

#[test]
fn choosing_weights_regains_what_three_bits_lose() {
    let folder = tempfile::tempdir().unwrap();
    let test = images("fashion/test2000.safetensors", 255.0);
    let (mut model, tree) = prepared();
    let simulated = |model: &Model| {
        let simulated = simulate(model, &tree, &SimulateOptions::default()).unwrap();
        test.correct(&engine(&simulated.model))
    };
    let nearest = simulated(&model);
    let journal = Journal::open(&folder.path().join("journal"), "job").unwrap();
    let outcomes = choose(&mut model, &tree, data, false, &journal, &mut ()).unwrap();
    let found = simulated(&model);
    assert_eq!(outcomes.len(), 8);
    for step in outcomes.iter().flat_map(|outcome| &outcome.steps) {
        assert!(step.loss <= step.loss_before && step.loss_before < step.signal, "{step:?}");
    }
    assert!(found >= nearest + 20, "{nearest} {found}");
}

#[test]
fn biases_corrected_on_the_way_bring_the_output_nearer() {
    let folder = tempfile::tempdir().unwrap();
    let test = images("fashion/test2000.safetensors", 255.0).rows(0..200);
    let batch = || test.batches(200).next().unwrap().unwrap();
    let logits = |model: &Model| {
        let batch = batch();
        engine(model).run(&[("image", &batch[0].1)], &["logits"]).unwrap()[0].to_f32()
    };
    let expected = logits(&float());
    let error = |correct_bias: bool| {
        let (mut model, tree) = prepared();
        let journal = Journal::open(&folder.path().join("journal"), &format!("{correct_bias}"));
        let journal = journal.unwrap();
        let found = choose(&mut model, &tree, data, correct_bias, &journal, &mut ()).unwrap();
        for outcome in found {
            match outcome.bias {
                Some(BiasStep::Corrected { signal, loss_before, loss }) => {
                    assert!(loss < loss_before && loss_before < signal, "{}", outcome.layer);
                }
                other => assert!(other.is_none() && !correct_bias, "{}: {other:?}", outcome.layer),
            }
        }
        let simulated = simulate(&model, &tree, &SimulateOptions::default()).unwrap();
        let square = |(a, b): (&f32, &f32)| f64::from(a - b).powi(2);
        logits(&simulated.model).iter().zip(&expected).map(square).sum::<f64>()
    };
    let [without, with] = [false, true].map(error);
    assert!(with < without, "{without} {with}");
}

/// The bytes of all constants and parameters.
fn state(model: &Model, tree: &Tree) -> Vec<u8> {
    let simulated = simulate(model, tree, &SimulateOptions::default()).unwrap();
    simulated.model.to_bytes()
}

#[test]
fn a_run_that_was_interrupted_goes_on_to_the_same_bytes() {
    interrupted(false);
}

#[test]
fn so_does_one_that_corrects_biases_on_the_way() {
    interrupted(true);
}

fn interrupted(correct_bias: bool) {
    let folder = tempfile::tempdir().unwrap();
    let open = |name: &str| Journal::open(&folder.path().join(name), "job").unwrap();
    let (mut model, tree) = prepared();
    choose(&mut model, &tree, data, correct_bias, &open("whole"), &mut ()).unwrap();
    let whole = state(&model, &tree);

    // The data ends in an error when so many batches were read; the next run goes on where that was. The first layer takes
    // three passes of two batches, one of them for all, the others two: 0, 2 and 3 more layers are done.
    for stop in [5, 11, 16] {
        let (mut model, tree) = prepared();
        let read = Rc::new(Cell::new(0));
        let broken = || -> Box<dyn Iterator<Item = Result<Batch>>> {
            let read = read.clone();
            Box::new(data().map(move |batch| {
                read.set(read.get() + 1);
                if read.get() == stop {
                    return Err(Model::load("power.onnx".as_ref()).unwrap_err());
                }
                batch
            }))
        };
        let error =
            choose(&mut model, &tree, broken, correct_bias, &open("parts"), &mut ()).unwrap_err();
        assert!(error.to_string().contains("power"), "{error}");
    }
    #[derive(Default)]
    struct Resumed(Vec<bool>);
    impl LayerProgress for Resumed {
        fn layer(&mut self, _outcome: &LayerOutcome, seconds: Option<&[f64]>) {
            self.0.push(seconds.is_none());
        }
    }
    let (mut model, tree) = prepared();
    let mut progress = Resumed::default();
    choose(&mut model, &tree, data, correct_bias, &open("parts"), &mut progress).unwrap();
    assert_eq!(progress.0, [true, true, true, true, true, false, false, false]);
    assert!(state(&model, &tree) == whole, "another result after resuming");
}

/// Layers by coordinate descent, each block after its last layer.
fn tasks_with_blocks(model: &Model, tree: &Tree, iterations: usize) -> Vec<Task> {
    let (layers, _) = linear_layers(model, tree).unwrap();
    let (found, kept) = blocks(model, &layers, 2);
    assert_eq!((found.len(), kept), (3, vec![]));
    let options = ff_kernels::AdaRoundOptions { iterations, ..Default::default() };
    let inputs = LayerInputs::Quantized;
    let mut tasks = Vec::new();
    for layer in layers {
        let name = layer.name.clone();
        let algorithms = vec![Algorithm::CoordinateDescent { inputs }];
        tasks.push(Task::Layer(Box::new(LayerTask { layer, algorithms, correct_bias: false })));
        let ended = found.iter().filter(|block| block.layers.last().unwrap().name == name);
        tasks.extend(
            ended.map(|block| Task::Block(BlockTask { block: block.clone(), options, inputs })),
        );
    }
    tasks
}

/// The outcomes of the blocks, and all constants afterwards.
fn reconstructed(
    (images, iterations, max_bytes): (usize, usize, usize),
    journal: &Journal,
    stop: Option<usize>,
    progress: &mut dyn LayerProgress,
) -> Result<(Vec<BlockOutcome>, Model, Vec<u8>)> {
    let (mut model, tree) = prepared();
    let tasks = tasks_with_blocks(&model, &tree, iterations);
    let run = RunOptions { max_bytes, ..RunOptions::default() };
    let context = Context { simulation: SimulateOptions::default(), run, journal };
    let read = Rc::new(Cell::new(0));
    let batches = || {
        let read = read.clone();
        let batches: Vec<_> = calibration().rows(0..images).batches(images / 2).collect();
        batches.into_iter().map(move |batch| {
            read.set(read.get() + 1);
            match Some(read.get()) == stop {
                true => Err(Model::load("power.onnx".as_ref()).unwrap_err()),
                false => batch,
            }
        })
    };
    let outcomes = choose_weights(&mut model, &tree, &tasks, batches, &context, progress)?;
    let blocks = outcomes.into_iter().filter_map(|outcome| match outcome {
        Outcome::Block(outcome) => Some(outcome),
        Outcome::Layer(_) => None,
    });
    let bytes = state(&model, &tree);
    let simulated = simulate(&model, &tree, &SimulateOptions::default()).unwrap();
    Ok((blocks.collect(), simulated.model, bytes))
}

const FITS: usize = 1 << 29;

#[test]
fn blocks_bring_their_outputs_nearer() {
    let folder = tempfile::tempdir().unwrap();
    let open = |name: &str| Journal::open(&folder.path().join(name), "job").unwrap();
    let (blocks, model, bytes) =
        reconstructed((32, 40, FITS), &open("whole"), None, &mut ()).unwrap();
    let names: Vec<&str> = blocks.iter().map(|block| block.name.as_str()).collect();
    assert_eq!(names, ["conv1, dw", "pw, res1, res2", "conv2, fc1, logits"]);
    for block in &blocks {
        assert_eq!(block.kept_because, None);
        assert!(block.loss < block.loss_before, "{block:?}");
        assert!(block.loss_before < block.signal, "{block:?}");
    }
    // The last block's output is that of the network: what is reported is what the engine computes.
    let images = calibration().rows(0..32);
    let batch = images.batches(32).next().unwrap().unwrap();
    let logits = |model: &Model| {
        engine(model).run(&[("image", &batch[0].1)], &["logits"]).unwrap()[0].to_f32()
    };
    let square = |(a, b): (&f32, &f32)| f64::from(a - b).powi(2);
    let error: f64 = logits(&float()).iter().zip(&logits(&model)).map(square).sum();
    assert!((error / blocks[2].loss - 1.0).abs() < 0.02, "{error} {:?}", blocks[2]);

    // The data ends in an error when so many batches were read: before the first block, and in each.
    #[derive(Default)]
    struct Resumed(Vec<&'static str>);
    impl LayerProgress for Resumed {
        fn layer(&mut self, _outcome: &LayerOutcome, seconds: Option<&[f64]>) {
            self.0.push(if seconds.is_none() { "found" } else { "layer" });
        }
        fn block(&mut self, _outcome: &BlockOutcome, seconds: Option<f64>) {
            self.0.push(if seconds.is_none() { "found block" } else { "block" });
        }
    }
    let mut progress = Resumed::default();
    for stop in [Some(4), Some(4), Some(8), None] {
        progress = Resumed::default();
        let found = reconstructed((32, 40, FITS), &open("parts"), stop, &mut progress);
        match (found, stop) {
            (Err(error), Some(_)) => assert!(error.to_string().contains("power"), "{error}"),
            (Ok((_, _, found)), None) => assert!(found == bytes, "another result after resuming"),
            (other, stop) => panic!("{stop:?}: {:?}", other.map(|found| found.0)),
        }
    }
    let expected = ["found", "found", "found block", "found", "found", "layer", "block"];
    assert_eq!(progress.0[..7], expected, "{:?}", progress.0);
}

#[test]
fn what_does_not_fit_the_bound_is_computed_anew_to_the_same_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let run = |name: &str, max_bytes: usize, n_threads: usize| {
        let journal = Journal::open(&folder.path().join(name), "job").unwrap();
        let pool = rayon::ThreadPoolBuilder::new().num_threads(n_threads).build().unwrap();
        let found = pool.install(|| reconstructed((16, 6, max_bytes), &journal, None, &mut ()));
        found.unwrap().2
    };
    let bytes = run("all", FITS, 1);
    assert!(run("none", 1, 3) == bytes, "other bytes");
}
