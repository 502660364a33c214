//! Weights chosen layer by layer, on the example network.

use std::cell::Cell;
use std::rc::Rc;

use fastforward_core::config::{Algorithm, LayerInputs};
use fastforward_onnx::Result;
use fastforward_onnx::calibrate::{Batch, RunOptions};
use fastforward_onnx::engine::EngineOptions;
use fastforward_onnx::graph::Model;
use fastforward_onnx::layerwise::{
    BiasStep, Context, Journal, LayerOutcome, LayerProgress, LayerTask, choose_weights,
    linear_layers,
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

fn tasks(model: &Model, tree: &Tree, correct_bias: bool) -> Vec<LayerTask> {
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
        .collect()
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
    choose_weights(model, tree, &tasks, batches, &context, progress)
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
