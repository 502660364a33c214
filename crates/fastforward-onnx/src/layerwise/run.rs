//! Layer by layer: gather what a layer sees, choose its weight, put it in place, go on.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use fastforward_core::algorithms::layerwise::{
    Finished, FinishedBlock, Journal, LayerProblem, Seen, calibrated as calibrated_slot,
};
use fastforward_core::config::{Algorithm, LayerInputs};
use fastforward_core::quantization::LinearQuantizer;
use fastforward_core::quantization::affine::{AffineParameters, LinearQuantizerConfig};
use ff_kernels::{AdaRoundOptions, LayerMoments};

use super::blocks::{Block, Networks, reconstruct};
use super::gather::{Network, bytes, gather};
use super::layer::LinearLayer;
use super::{BiasStep, BlockOutcome, LayerOutcome, StepOutcome};
use crate::calibrate::{Batch, RunOptions};
use crate::engine::Engine;
use crate::error::{Error, ErrorKind, Result};
use crate::graph::{Model, data};
use crate::rewrite::correctable;
use crate::simulate::{SimulateOptions, Simulated, simulate};
use crate::tree::Tree;

/// A layer and the algorithms that work on it, one after the other.
///
/// Algorithms that choose ranges come before those that choose codes, as these begin with the ranges they find.
#[derive(Clone, Debug)]
pub struct LayerTask {
    /// The layer.
    pub layer: LinearLayer,
    /// Of [`AlgorithmStage::Weights`](fastforward_core::config::AlgorithmStage::Weights).
    pub algorithms: Vec<Algorithm>,
    /// Whether the mean error of its output is then taken off its bias, before the next layer is looked at.
    pub correct_bias: bool,
}

/// A block whose weights are rounded together, once algorithms chose those of its layers.
#[derive(Clone, Debug)]
pub struct BlockTask {
    /// The block.
    pub block: Block,
    /// How its weights are rounded.
    pub options: AdaRoundOptions,
    /// Whose activations it reads and has inside.
    pub inputs: LayerInputs,
}

/// One step of [`choose_weights`].
#[derive(Clone, Debug)]
pub enum Task {
    /// A layer's weight.
    Layer(Box<LayerTask>),
    /// The weights of several layers that were chosen.
    Block(BlockTask),
}

/// What a [`Task`] did.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// To a layer.
    Layer(LayerOutcome),
    /// To a block.
    Block(BlockOutcome),
}

/// What [`choose_weights`] works with.
#[derive(Debug)]
pub struct Context<'c> {
    /// How the quantized network is simulated.
    pub simulation: SimulateOptions,
    /// How graphs are executed. Twice `max_bytes` is about what sums over the inputs of several layers may take together; one
    /// layer's own are held whatever they take.
    pub run: RunOptions,
    /// Where finished layers are kept.
    pub journal: &'c Journal,
}

/// Is told how far [`choose_weights`] is.
pub trait LayerProgress {
    /// Another batch is through.
    fn batch(&mut self) {}
    /// A layer is done. `seconds` holds what each of its algorithms took, without the time for gathering what it sees;
    /// `None` if an earlier run had finished the layer.
    fn layer(&mut self, outcome: &LayerOutcome, seconds: Option<&[f64]>) {
        let _ = (outcome, seconds);
    }
    /// A block is done, in so many seconds; `None` if an earlier run had finished it.
    fn block(&mut self, outcome: &BlockOutcome, seconds: Option<f64>) {
        let _ = (outcome, seconds);
    }
}

/// Nobody listens.
impl LayerProgress for () {}

/// Chooses the weights of all tasks, in their order, which is that of the graph, and puts them into `model`; `tree` is its
/// tree, with calibrated quantizers, whose parameters change where an algorithm changes them.
///
/// A layer that sees quantized inputs sees those of the network as it is by then: all weights and activations quantized,
/// earlier layers as they were chosen. What a layer sees in float depends on no choice, so it is gathered for several layers
/// at once. Of a layer's activations none are kept; of a block's, what fits `max_bytes`. `batches` is asked for the data anew
/// for each pass. Finished tasks are in the journal before the next begins, and are taken from there if an earlier run
/// finished them: whether it was interrupted or not, the same bytes come out.
///
/// # Errors
/// `Quantizer` for a weight quantizer that is not linear, not calibrated, or has tiles that an algorithm cannot work on;
/// `Input` for data that is not finite; `Io` when the journal cannot be written; those of [`simulate`], of the engine and of
/// `batches`.
pub fn choose_weights<B: Iterator<Item = Result<Batch>>>(
    model: &mut Model,
    tree: &Tree,
    tasks: &[Task],
    batches: impl Fn() -> B,
    context: &Context<'_>,
    progress: &mut dyn LayerProgress,
) -> Result<Vec<Outcome>> {
    // Later layers change nothing in the float graph, whose inputs the original ones are.
    let mut moments =
        Moments { float: model.clone(), engine: None, original: BTreeMap::new(), context, batches };
    let mut outcomes = Vec::new();
    for (number, task) in tasks.iter().enumerate() {
        outcomes.push(match task {
            Task::Layer(task) => {
                let all = (&mut *model, tree, tasks);
                Outcome::Layer(choose_layer(all, (number, &**task), &mut moments, progress)?)
            }
            Task::Block(task) => {
                let all = (&mut *model, tree);
                Outcome::Block(choose_block(all, (number, task), &mut moments, progress)?)
            }
        });
    }
    Ok(outcomes)
}

fn choose_layer<B: Iterator<Item = Result<Batch>>, F: Fn() -> B>(
    (model, tree, tasks): (&mut Model, &Tree, &[Task]),
    (number, task): (usize, &LayerTask),
    moments: &mut Moments<'_, '_, F>,
    progress: &mut dyn LayerProgress,
) -> Result<LayerOutcome> {
    let context = moments.context;
    let layer = &task.layer;
    if let Some(finished) = context.journal.read(number, &layer.weight.name) {
        put(model, tree, layer, &finished, context)?;
        progress.layer(&finished.outcome, None);
        return Ok(finished.outcome);
    }
    let mut problem = problem(model, layer)?;
    let mut outcome = LayerOutcome {
        layer: layer.name.clone(),
        slot: layer.weight.name.clone(),
        rows: layer.rows,
        columns: layer.columns,
        groups: layer.groups,
        moment_bytes: 0,
        steps: Vec::new(),
        bias: None,
    };
    let mut layer_bias = None;
    if task.correct_bias {
        let shapes = &context.simulation.shapes;
        match correctable(model, tree, layer.weight.node.index, shapes)? {
            Some(Ok(found)) => layer_bias = Some(found),
            Some(Err(reason)) => outcome.bias = Some(BiasStep::Kept(reason)),
            None => {}
        }
    }
    let mut seconds = Vec::new();
    // One kind of moments at a time.
    let mut held: Option<(Seen, Vec<LayerMoments>)> = None;
    for (at, algorithm) in task.algorithms.iter().enumerate() {
        let Some(seen) = Seen::of(algorithm) else { continue };
        let found = match held.take() {
            Some((same, found)) if same == seen => found,
            _ => moments.of((model, tree), tasks, (number, layer), seen, progress)?,
        };
        // What the bias will take off is no error of the weight.
        let centered: Option<Vec<LayerMoments>> =
            layer_bias.is_some().then(|| found.iter().map(LayerMoments::centered).collect());
        // A copy of three matrices is more than becoming moments takes beside them, one of one is not.
        let copied = match centered.is_some() && seen == Seen::Paired {
            true => bytes(layer, seen) / 5,
            false => 0,
        };
        outcome.moment_bytes = outcome.moment_bytes.max(bytes(layer, seen) + copied);
        let started = Instant::now();
        let wrong = |error: &dyn std::fmt::Display| {
            let text = format!("`{}`: {algorithm}: {error}", layer.weight.name);
            Error::new(ErrorKind::Quantizer, text)
        };
        let step = problem
            .apply(algorithm, centered.as_ref().unwrap_or(&found))
            .map_err(|error| wrong(&error))?;
        seconds.push(started.elapsed().as_secs_f64());
        outcome.steps.push(StepOutcome {
            algorithm: at,
            signal: problem.signal(&found).map_err(|error| wrong(&error))?,
            loss_before: step.loss_before,
            loss: step.loss,
            samples: found.iter().map(LayerMoments::count).sum(),
            rows_kept: step.rows_kept,
        });
        held = Some((seen, found));
    }
    let mut bias = None;
    if let Some(layer_bias) = layer_bias {
        let found = match held.take() {
            Some((Seen::Paired, found)) => found,
            _ => moments.of((model, tree), tasks, (number, layer), Seen::Paired, progress)?,
        };
        outcome.moment_bytes = outcome.moment_bytes.max(bytes(layer, Seen::Paired));
        let wrong = |error: &dyn std::fmt::Display| wrong_at(layer, error);
        let (change, loss_before, loss) =
            problem.bias_correction(&found).map_err(|error| wrong(&error))?;
        let signal = problem.signal(&found).map_err(|error| wrong(&error))?;
        outcome.bias = Some(BiasStep::Corrected { signal, loss_before, loss });
        bias = Some(layer_bias.corrected(model, &change));
    }
    let finished = Finished { bias, ..finish(layer, problem, outcome)? };
    context.journal.write(number, &finished)?;
    put(model, tree, layer, &finished, context)?;
    progress.layer(&finished.outcome, Some(&seconds));
    Ok(finished.outcome)
}

fn choose_block<B: Iterator<Item = Result<Batch>>, F: Fn() -> B>(
    (model, tree): (&mut Model, &Tree),
    (number, task): (usize, &BlockTask),
    moments: &mut Moments<'_, '_, F>,
    progress: &mut dyn LayerProgress,
) -> Result<BlockOutcome> {
    let (block, journal) = (&task.block, moments.context.journal);
    let run = &moments.context.run.engine;
    if let Some(finished) = journal.read_block(number, &block.name) {
        put_block(model, block, &finished)?;
        progress.block(&finished.outcome, None);
        return Ok(finished.outcome);
    }
    let started = Instant::now();
    let float = moments.engine.take();
    let float = float.map_or_else(|| Engine::new(&moments.float, run), Ok)?;
    let networks = Networks {
        model,
        tree,
        float: (&moments.float, &float),
        context: moments.context,
        quantized: task.inputs == LayerInputs::Quantized,
    };
    let batches = &moments.batches;
    let (outcome, weights) =
        reconstruct(&networks, block, &task.options, batches, || progress.batch())?;
    moments.engine = Some(float);
    let finished = FinishedBlock { weights, outcome };
    journal.write_block(number, &finished)?;
    put_block(model, block, &finished)?;
    progress.block(&finished.outcome, Some(started.elapsed().as_secs_f64()));
    Ok(finished.outcome)
}

/// Gathers moments, those of float inputs ahead.
struct Moments<'c, 'j, F> {
    float: Model,
    engine: Option<Engine>,
    /// By the number of the task.
    original: BTreeMap<usize, Vec<LayerMoments>>,
    context: &'c Context<'j>,
    batches: F,
}

impl<B: Iterator<Item = Result<Batch>>, F: Fn() -> B> Moments<'_, '_, F> {
    /// What the layer of task `number` sees.
    fn of(
        &mut self,
        (model, tree): (&Model, &Tree),
        tasks: &[Task],
        (number, layer): (usize, &LinearLayer),
        seen: Seen,
        progress: &mut dyn LayerProgress,
    ) -> Result<Vec<LayerMoments>> {
        if seen == Seen::Original
            && let Some(found) = self.original.remove(&number)
        {
            return Ok(found);
        }
        let ahead = self.ahead(tasks, number);
        let run = &self.context.run;
        let float = match &self.engine {
            Some(engine) => engine,
            None => self.engine.insert(Engine::new(&self.float, &run.engine)?),
        };
        let original = |layers: &[&LinearLayer]| Network {
            engine: float,
            values: layers.iter().map(|layer| layer.value.clone()).collect(),
        };
        let listen = || progress.batch();
        let mut found = if seen == Seen::Original {
            let layers: Vec<&LinearLayer> = ahead.iter().map(|(_, layer)| *layer).collect();
            let network = original(&layers);
            let mut found = gather((&network, None), &layers, (self.batches)(), run, listen)?;
            let own = found.remove(0);
            self.original.extend(ahead[1..].iter().map(|(at, _)| *at).zip(found));
            vec![own]
        } else {
            let simulated = simulate(model, tree, &self.context.simulation)?;
            let engine = Engine::new(&simulated.model, &run.engine)?;
            let quantized =
                Network { engine: &engine, values: vec![simulated_input(&simulated, layer)] };
            let network = original(&[layer]);
            let networks = match seen {
                Seen::Paired => (&network, Some(&quantized)),
                _ => (&quantized, None),
            };
            gather(networks, &[layer], (self.batches)(), run, listen)?
        };
        found.pop().ok_or_else(|| {
            Error::new(ErrorKind::Input, format!("`{}`: no data was seen", layer.name))
        })
    }

    /// This task and those after it whose float inputs are gathered in the same pass.
    fn ahead<'t>(&self, tasks: &'t [Task], number: usize) -> Vec<(usize, &'t LinearLayer)> {
        let mut ahead = Vec::new();
        let mut left = 2 * self.context.run.max_bytes as u64;
        for (at, task) in tasks.iter().enumerate().skip(number) {
            let Task::Layer(task) = task else { continue };
            left = left.saturating_sub(bytes(&task.layer, Seen::Original));
            let needs = task.algorithms.iter().any(|one| Seen::of(one) == Some(Seen::Original));
            if at == number || (left > 0 && needs && !self.context.journal.has(at)) {
                ahead.push((at, &task.layer));
            }
            if left == 0 {
                break;
            }
        }
        ahead
    }
}

/// The name under which a layer's input is found in the simulation.
fn simulated_input(simulated: &Simulated, layer: &LinearLayer) -> String {
    let own = simulated
        .activations
        .iter()
        .find(|one| layer.input.as_ref().is_some_and(|input| one.sites.contains(input)));
    let produced = || {
        let mut outputs = simulated.activations.iter().filter(|one| one.is_output);
        outputs.find(|one| one.value == layer.value)
    };
    own.or_else(produced).map_or(layer.value.as_str(), |one| &one.after).to_owned()
}

/// The settings and parameters of a layer's quantizer.
pub(super) fn calibrated(layer: &LinearLayer) -> Result<(LinearQuantizerConfig, AffineParameters)> {
    calibrated_slot(&layer.weight.slot).map_err(|error| {
        Error::new(ErrorKind::Quantizer, format!("`{}`: {error}", layer.weight.name))
    })
}

fn problem(model: &Model, layer: &LinearLayer) -> Result<LayerProblem> {
    let wrong = |reason: &dyn std::fmt::Display| {
        Error::new(ErrorKind::Quantizer, format!("`{}`: {reason}", layer.weight.name))
    };
    let (config, parameters) = calibrated(layer)?;
    let constant = model
        .constant(&layer.weight.value)
        .ok_or_else(|| wrong(&format!("the graph has no constant `{}`", layer.weight.value)))?;
    let tile = config.granularity.tile_shape(layer.shape()).map_err(|error| wrong(&error))?;
    let tiles = layer.tiles(&tile)?;
    let weight = layer.to_matrix(&constant.to_f32()?);
    LayerProblem::new((&config, &parameters), &tiles, (layer.groups, layer.columns), weight)
        .map_err(|error| wrong(&error))
}

/// What was found, in the graph's layout.
fn finish(layer: &LinearLayer, problem: LayerProblem, outcome: LayerOutcome) -> Result<Finished> {
    let (config, _) = calibrated(layer)?;
    let tile = config.granularity.tile_shape(layer.shape())?;
    let tiles = layer.tiles(&tile)?;
    Ok(Finished {
        weight: problem.codes().map(|codes| layer.from_matrix(codes)),
        scale: tiles.from_matrix(problem.scale()),
        offset: problem.offset().map(|offset| tiles.from_matrix(offset)),
        bias: None,
        outcome,
    })
}

fn wrong_at(layer: &LinearLayer, error: &dyn std::fmt::Display) -> Error {
    Error::new(ErrorKind::Quantizer, format!("`{}`: {error}", layer.weight.name))
}

/// Puts a chosen weight and a corrected bias into the model, and the weight's parameters into the quantizer.
fn put(
    model: &mut Model,
    tree: &Tree,
    layer: &LinearLayer,
    finished: &Finished,
    context: &Context<'_>,
) -> Result<()> {
    let wrong = |error: &dyn std::fmt::Display| wrong_at(layer, error);
    if let Some(bias) = &finished.bias {
        let node = layer.weight.node.index;
        match correctable(model, tree, node, &context.simulation.shapes)? {
            Some(Ok(own)) if bias.len() == layer.rows => own.set(model, bias),
            _ => return Err(wrong(&"the journal holds a bias of another shape; remove it")),
        };
    }
    let (config, before) = calibrated(layer)?;
    let quantizer = LinearQuantizer::new(config).map_err(|error| wrong(&error))?;
    let (scale, offset) = (finished.scale.clone(), finished.offset.clone());
    quantizer
        .set_parameters(AffineParameters { scale, offset, ..before })
        .map_err(|error| wrong(&error))?;
    layer.weight.slot.replace(Arc::new(quantizer));
    finished.weight.as_ref().map_or(Ok(()), |weight| put_weight(model, layer, weight))
}

/// Puts the weights of a block's layers into the model.
fn put_block(model: &mut Model, block: &Block, finished: &FinishedBlock) -> Result<()> {
    let Some(weights) = &finished.weights else { return Ok(()) };
    if weights.len() != block.layers.len() {
        let text = "the journal holds a block of other layers; remove it";
        return Err(Error::new(ErrorKind::Quantizer, format!("`{}`: {text}", block.name)));
    }
    block
        .layers
        .iter()
        .zip(weights)
        .try_for_each(|(layer, weight)| put_weight(model, layer, weight))
}

fn put_weight(model: &mut Model, layer: &LinearLayer, weight: &[f32]) -> Result<()> {
    let wrong = |error: &dyn std::fmt::Display| wrong_at(layer, error);
    if weight.len() != layer.shape().iter().product::<usize>() {
        return Err(wrong(&"the journal holds a weight of another shape; remove it"));
    }
    let tensor = data::tensor_from_floats(&layer.weight.value, layer.dtype, layer.shape(), weight)
        .ok_or_else(|| wrong(&format!("its weight holds {}", layer.dtype)))?;
    model.set_constant(tensor);
    Ok(())
}
