//! One way from a float model to a verified file, with a few knobs.

use std::path::PathBuf;
use std::sync::Arc;

use fastforward_core::ArrayView;
use fastforward_core::quantization::quantizer::Quantizer;
use fastforward_core::quantization::{Granularity, LinearQuantizer, LinearQuantizerConfig};
use fastforward_onnx::calibrate::{RunOptions, SiteObserver, Watched, calibrate};
use fastforward_onnx::engine::{Engine, EngineOptions};
use fastforward_onnx::export::{ExportOptions, Exported, export};
use fastforward_onnx::graph::Model;
use fastforward_onnx::simulate::{SimulateOptions, Simulated, simulate};
use fastforward_onnx::tree::{Role, Site, Tree};
use fastforward_onnx::verify::{Verification, VerifyOptions, verify};

use crate::data::Images;

/// The quantizer of a weight, given its site.
pub(crate) type WeightRule = fn(&Site) -> Option<LinearQuantizerConfig>;

/// How to quantize.
#[derive(Clone)]
pub(crate) struct Recipe {
    pub(crate) name: &'static str,
    pub(crate) weights: WeightRule,
    /// At every input and output.
    pub(crate) activations: Option<LinearQuantizerConfig>,
    pub(crate) options: ExportOptions,
}

pub(crate) fn per_channel(site: &Site, num_bits: u32) -> Option<LinearQuantizerConfig> {
    let granularity = site
        .channel_axis
        .map_or(Granularity::PerTensor, |axis| Granularity::per_channel(axis as isize));
    Some(LinearQuantizerConfig::new(num_bits).with_granularity(granularity))
}

pub(crate) fn w8a8() -> Recipe {
    Recipe {
        name: "w8a8",
        weights: |site| per_channel(site, 8),
        activations: Some(LinearQuantizerConfig::new(8).asymmetric()),
        options: ExportOptions::default(),
    }
}

/// What came out of a recipe.
pub(crate) struct Outcome {
    pub(crate) tree: Tree,
    pub(crate) simulated: Simulated,
    pub(crate) exported: Exported,
    pub(crate) verification: Verification,
    pub(crate) path: PathBuf,
}

/// Fills the slots of `tree` and sets their ranges from what `images` make of them.
pub(crate) fn quantize(
    model: &Model,
    tree: &Tree,
    recipe: &Recipe,
    images: &Images,
    engine: &EngineOptions,
) {
    for site in tree.sites() {
        let config = match site.role {
            Role::Weight => (recipe.weights)(site),
            Role::Input | Role::Output => recipe.activations.clone(),
            Role::Bias | Role::Constant => None,
        };
        if let Some(config) = config {
            site.slot.replace(Arc::new(LinearQuantizer::new(config).unwrap()));
        }
    }
    let mut observers: Vec<(&Site, MinMax)> =
        tree.set_slots().map(|site| (site, MinMax::new(site.slot.quantizer()))).collect();
    let watched = observers.iter_mut().map(|(site, observer)| Watched { site, observer }).collect();
    let options = RunOptions { engine: engine.clone(), ..RunOptions::default() };
    calibrate(model, watched, images.batches(128), &options, &mut ()).unwrap();
    for (_, observer) in observers {
        observer.finish();
    }
}

/// The whole way; the file stays in `target/tmp/exports`.
pub(crate) fn run(model: &Model, recipe: &Recipe, calibration: &Images, check: &Images) -> Outcome {
    let tree = Tree::new(model);
    quantize(model, &tree, recipe, calibration, &EngineOptions::default());
    let simulated = simulate(model, &tree, &SimulateOptions::default()).unwrap();
    let exported = export(model, &tree, &recipe.options).unwrap();
    let path = folder().join(format!("{}.onnx", recipe.name));
    exported.model.save(&path).unwrap();
    let options = VerifyOptions::default();
    let batches = check.batches(100);
    let verification =
        verify(&path, model, &tree, &exported.summary, batches, &options, &mut ()).unwrap();
    Outcome { tree, simulated, exported, verification, path }
}

pub(crate) fn folder() -> PathBuf {
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("exports");
    std::fs::create_dir_all(&folder).unwrap();
    folder
}

pub(crate) fn engine(model: &Model) -> Engine {
    Engine::new(model, &EngineOptions::default()).unwrap()
}

/// The smallest and largest value of each tile.
pub(crate) struct MinMax {
    quantizer: Arc<dyn Quantizer>,
    range: Option<(Vec<f32>, Vec<f32>)>,
}

impl MinMax {
    pub(crate) fn new(quantizer: Arc<dyn Quantizer>) -> Self {
        Self { quantizer, range: None }
    }

    pub(crate) fn finish(self) {
        let (min, max) = self.range.unwrap();
        self.quantizer.as_range_settable().unwrap().set_quantization_range(&min, &max).unwrap();
    }
}

impl SiteObserver for MinMax {
    fn observe(&mut self, x: ArrayView<'_>) -> Result<(), fastforward_core::Error> {
        let granularity = self.quantizer.as_range_settable().unwrap().granularity();
        let tile = granularity.tile_shape(x.shape())?;
        let tiles = granularity.num_parameters(x.shape())?;
        let (min, max) = self
            .range
            .get_or_insert_with(|| (vec![f32::INFINITY; tiles], vec![f32::NEG_INFINITY; tiles]));
        for (at, &value) in x.data().iter().enumerate() {
            let (mut rest, mut index, mut stride) = (at, 0, 1);
            for axis in (0..tile.len()).rev() {
                index += rest % x.shape()[axis] / tile[axis] * stride;
                rest /= x.shape()[axis];
                stride *= x.shape()[axis] / tile[axis];
            }
            min[index] = min[index].min(value);
            max[index] = max[index].max(value);
        }
        Ok(())
    }
}
