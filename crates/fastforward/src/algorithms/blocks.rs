//! Weights rounded by what they do to the output of a block of layers together.

mod output;
mod rounding;

use std::cell::Cell;
use std::collections::HashSet;

use candle_core::Tensor;
use mpath::Selector;

use super::data::{ALL, Data, Feed, Forward};
use super::layer::{Layer, layers};
use super::network::{Network, values};
use super::plan::{Target, matches};
use super::report::{AlgorithmChange, AlgorithmReport};
use super::tune::{Run, TuneOptions};
use crate::module::{Module, SlotEntry, Visitor, name_slots, named_shared_parameters, named_slots};
use crate::nn::Param;
use crate::quantization::{QuantizerSlot, disable_quantization};
use crate::tensor::{Error, Result};
use crate::{ErrorKind, flags};
use output::{Outputs, output_of};
use rounding::{Adam, SoftRounding};

/// Rounds the weights of blocks so that the output of each block changes least: AdaRound with the reconstruction of a whole
/// block (BRECQ, Li et al. 2021, [arXiv 2102.05426](https://arxiv.org/abs/2102.05426)), with gradients by backpropagation.
///
/// For the weights `w` of all layers of a block together, with scales `s` and offsets `o` as they are, Adam minimises over `V`
///
/// ```text
/// ‖y - ŷ(V)‖² / u + λ Σ (1 - |2h - 1|^β)
///     ŵ = s (f + h + o),  f = clamp(⌊w/s - o⌋, lo, hi - 1),  h = clamp(1.2 σ(V) - 0.1, 0, 1)
/// ```
///
/// where `y` is what the block gives in float, and `ŷ` what it gives with `ŵ` in the quantized network: all activations
/// quantized, blocks before it as they were chosen. `u` is such that the error found at first counts `1/12` for each weight,
/// as in [`adaround`](ff_kernels::adaround), so that one `λ` suits all blocks. One batch is looked at in each iteration, the
/// first one again after the last. In the end each `h` is rounded; a block whose error over all batches is not less than it was
/// found keeps the weights it had.
///
/// `first` is what is done as by [`tune`](super::tune): layer by layer until the layers of a block are through, then the block,
/// then the next layers, which see the block as it is by then; biases in the end. Where it chooses codes, `h` starts halfway
/// between them and the float weights: blocks go on from what layers found. Without algorithms, and where these choose ranges
/// only, `h` starts at the float weights. Unlike `tune` followed by this function, this knows the float network throughout.
///
/// The output of a block is that of the last operator that the forward calls with an output slot in one of its modules; what
/// the forward does behind it is not executed. Blocks are worked on in the order in which their outputs come. Memory is held
/// for one batch: the activations between the beginning of the block and its output, and five numbers for each of its weights.
/// Time is `iterations` times a forward in float up to the block's output, and one with gradients.
///
/// `batches` and `forward` are those of [`tune`](super::tune), and so is what is said there of the parameters that change, and
/// of errors. Reports are those of `first`, then one for the blocks.
///
/// ```
/// use candle_core::{Device, Tensor};
/// use fastforward as ff;
/// use ff::algorithms::{reconstruct_blocks, Block, BlockOptions};
/// use ff::nn::{Layer, Linear, ReLU, Sequential};
/// use ff::quantization::quant_init::{InitializeOptions, QuantizationConfig, QuantizerSpec};
/// use ff::range_setting::{estimate_ranges, EstimationOptions, EstimatorConfig};
///
/// let weight = |seed: f32| Tensor::arange(0f32, 16., &Device::Cpu)?.affine(1.7, seed.into())?.sin()?.reshape((4, 4));
/// let block = Sequential::new()
///     .add(Linear::from_tensors(weight(1.)?, None)?)
///     .add(ReLU::new())
///     .add(Linear::from_tensors(weight(2.)?, None)?);
/// let model = Sequential::new().add(block);
/// let mut config = QuantizationConfig::for_model(&model);
/// config.add_rule("**/[quantizer:parameter/weight]", QuantizerSpec::linear(3))?;
/// config.initialize(&model, InitializeOptions::default())?;
/// let _lenient = ff::flags::strict_quantization(false); // activations stay floats
/// let x = Tensor::arange(0f32, 128., &Device::Cpu)?.sin()?.reshape((32, 4))?;
/// let ranges = estimate_ranges(&model, EstimatorConfig::running_minmax(), EstimationOptions::default())?;
/// model.forward_tensor(&x)?;
/// ranges.finish()?;
///
/// let query = ff::quantization::quant_init::model_context(&model).query("*")?;
/// let blocks = Block::each(&model, &query)?;
/// let options = BlockOptions { iterations: 200, ..BlockOptions::default() };
/// let reports = reconstruct_blocks(&model, &[], &blocks, || [Ok(&x)], |model, x| model.forward_tensor(x), &options)?;
/// let change = &reports[0].changes[0];
/// assert!(change.after.unwrap() < 0.8 * change.before);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
/// [`ErrorKind::Rule`] with every block that has no module of this name, no layer to work on, or a module in common with
/// another one; [`ErrorKind::InvalidSettings`] for options outside of their domain; [`ErrorKind::NoData`] without a batch;
/// [`ErrorKind::InvalidData`] for a block whose operators are called more or less often from batch to batch, or whose output
/// is not finite; what `batches` and `forward` report.
pub fn reconstruct_blocks<M, B, I, R>(
    model: &M,
    first: &[Target],
    blocks: &[Block],
    batches: impl Fn() -> I,
    forward: impl Fn(&M, &B) -> Result<R>,
    options: &BlockOptions,
) -> Result<Vec<AlgorithmReport>>
where
    M: Module,
    I: IntoIterator<Item = Result<B>>,
{
    reconstruct(model, (first, blocks), &Feed { model, batches, forward }, options)
}

/// Modules whose weights are rounded together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Block {
    /// What reports call it.
    pub name: String,
    /// The full names of its modules, `encoder.layers.0`. What is below them belongs to the block, too.
    pub modules: Vec<String>,
}

impl Block {
    /// A block for each module that a query matches, by the names of these: `encoder/layers/*`.
    ///
    /// # Errors
    /// [`ErrorKind::Rule`] when it matches nothing, and why.
    pub fn each(model: &dyn Module, query: &Selector) -> Result<Vec<Self>> {
        let names = modules(model, query)?;
        Ok(names.into_iter().map(|name| Self { modules: vec![name.clone()], name }).collect())
    }

    /// One block of all modules that a query matches: `{conv1, relu1, conv2}`.
    ///
    /// # Errors
    /// As for [`each`](Self::each).
    pub fn together(name: &str, model: &dyn Module, query: &Selector) -> Result<Self> {
        Ok(Self { name: name.to_owned(), modules: modules(model, query)? })
    }

    fn holds(&self, full_name: &str) -> bool {
        self.modules.iter().any(|module| {
            full_name
                .strip_prefix(module.as_str())
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
        })
    }
}

fn modules(model: &dyn Module, query: &Selector) -> Result<Vec<String>> {
    let mut names: Vec<String> = matches(model, query)
        .map_err(|problem| Error::new(ErrorKind::Rule, problem))?
        .into_iter()
        .collect();
    names.sort();
    Ok(names)
}

/// How [`reconstruct_blocks`] searches.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BlockOptions {
    /// Steps of gradient descent for each block, at least 1.
    pub iterations: usize,
    /// Adam's learning rate, positive.
    pub learning_rate: f32,
    /// `λ`, the weight of the regularizer, not negative.
    pub regularizer: f32,
    /// `β` when the regularizer sets in, and at the end; each at least 1. It falls like half a cosine.
    pub beta: (f32, f32),
    /// The share of iterations without regularizer, in `0..=1`.
    pub warm_up: f32,
}

impl Default for BlockOptions {
    /// Those of [`AdaRoundOptions`](ff_kernels::AdaRoundOptions).
    fn default() -> Self {
        let ff_kernels::AdaRoundOptions {
            iterations,
            learning_rate,
            regularizer,
            beta,
            warm_up,
            ..
        } = ff_kernels::AdaRoundOptions::default();
        Self { iterations, learning_rate, regularizer, beta, warm_up }
    }
}

impl BlockOptions {
    fn check(&self) -> Result<()> {
        let Self { iterations, learning_rate, regularizer, beta, warm_up } = *self;
        let is_beta = |beta: f32| beta >= 1.0 && beta.is_finite();
        let checks = [
            (iterations > 0, format!("`iterations` is {iterations}, expected at least 1")),
            (
                learning_rate > 0.0 && learning_rate.is_finite(),
                format!("`learning_rate` is {learning_rate}, expected a positive number"),
            ),
            (
                regularizer >= 0.0 && regularizer.is_finite(),
                format!("`regularizer` is {regularizer}, expected a number that is not negative"),
            ),
            (
                is_beta(beta.0) && is_beta(beta.1),
                format!("`beta` is {beta:?}, expected numbers that are at least 1"),
            ),
            (
                (0.0..=1.0).contains(&warm_up),
                format!("`warm_up` is {warm_up}, expected a number from 0 to 1"),
            ),
        ];
        let problems: Vec<String> =
            checks.into_iter().filter(|(good, _)| !good).map(|(_, problem)| problem).collect();
        if problems.is_empty() {
            return Ok(());
        }
        let summary = "options of a reconstruction are wrong";
        Err(crate::Error::of_problems(ErrorKind::InvalidSettings, summary, &problems).into())
    }

    /// `λ` and `β` of an iteration.
    fn regularizer_at(&self, iteration: usize) -> (f32, f32) {
        let (total, at) = (self.iterations as f64, iteration as f64);
        let warm_up = f64::from(self.warm_up) * total;
        let (start, end) = self.beta;
        if at < warm_up {
            return (0.0, start);
        }
        let done = (at - warm_up) / (total - warm_up).max(1.0);
        let share = 0.5 * (1.0 + (done * std::f64::consts::PI).cos());
        (self.regularizer, end + (start - end) * share as f32)
    }
}

/// A block with what belongs to it.
struct Part<'b> {
    block: &'b Block,
    layers: Vec<Layer>,
    /// Where its output comes from.
    outputs: Outputs,
}

fn reconstruct(
    model: &dyn Module,
    (first, blocks): (&[Target], &[Block]),
    data: &dyn Data,
    options: &BlockOptions,
) -> Result<Vec<AlgorithmReport>> {
    options.check()?;
    name_slots(model);
    let mut report = AlgorithmReport {
        source: "reconstruct_blocks".to_owned(),
        algorithm: "block_reconstruction",
        measure: "error of a block's output, as part of its power",
        changes: Vec::new(),
        kept: Vec::new(),
        moment_bytes: None,
    };
    let mut parts = parts(model, blocks, &mut report.kept)?;
    let mut network = Network::new(model);
    // Gradients are for the rounding alone, whatever the caller trains.
    for entry in named_shared_parameters(model) {
        if let Some(parameter) = entry.parameter.downcast_ref::<Param>()
            && parameter.var().is_some()
        {
            network.set_tensor(parameter, parameter.tensor().copy()?.detach());
        }
    }
    let _constants = flags::inference();
    let mut run = Run::new(&network, first, data)?;
    let order = {
        let all: Vec<&Outputs> = parts.iter().map(|part| &part.outputs).collect();
        output::count(&network, &all, data)?
    };
    for (part, (number, _)) in parts.iter_mut().zip(&order) {
        part.outputs.last.set(*number);
        if *number == 0 {
            let text = format!(
                "`{}`: the forward of the first batch calls no operator with an output slot in it",
                part.block.name
            );
            return Err(Error::new(ErrorKind::Rule, text));
        }
    }
    run.refine(&mut network, data)?;
    let tuning = TuneOptions::default();
    let mut numbered: Vec<usize> = (0..parts.len()).collect();
    numbered.sort_by_key(|&at| order[at].1);
    for at in numbered {
        let until = run.reached_after(&parts[at].layers);
        run.choose(&mut network, data, None, &tuning, until)?;
        let change = parts[at].reconstruct(&mut network, data, options)?;
        report.changes.push(change);
    }
    run.choose(&mut network, data, None, &tuning, usize::MAX)?;
    run.correct(&mut network, data)?;
    network.keep()?;
    let mut reports = run.reports;
    reports.push(report);
    Ok(reports)
}

/// Each block with its layers; all problems at once.
fn parts<'b>(
    model: &dyn Module,
    blocks: &'b [Block],
    kept: &mut Vec<String>,
) -> Result<Vec<Part<'b>>> {
    let (layers, others) = layers(model);
    let slots = named_slots(model);
    let mut names = HashSet::new();
    module_names(model, "", &mut names);
    let (mut parts, mut problems) = (Vec::new(), Vec::new());
    for (at, block) in blocks.iter().enumerate() {
        let name = &block.name;
        let holds = |names: &[String]| names.iter().any(|name| block.holds(name));
        let own: Vec<&SlotEntry> = slots.iter().filter(|entry| holds(&entry.names)).collect();
        let known = |module: &&String| names.contains(*module);
        for module in block.modules.iter().filter(|module| !known(module)) {
            problems.push(format!("`{name}`: there is no module `{module}`"));
        }
        let before = blocks[..at]
            .iter()
            .find(|other| own.iter().any(|entry| entry.names.iter().any(|name| other.holds(name))));
        if let Some(other) = before {
            problems.push(format!("`{name}` has modules in common with `{}`", other.name));
        }
        let mut good = Vec::new();
        for layer in layers.iter().filter(|layer| block.holds(&layer.slot_name)) {
            match layer.quantizer() {
                Ok(_) => good.push(layer.clone()),
                Err(error) => kept.push(format!("`{}`: {error}", layer.slot_name)),
            }
        }
        let others = others.iter().filter(|other| block.holds(&other.slot_name));
        kept.extend(others.map(|one| format!("`{}`: {}", one.slot_name, one.reason)));
        if good.is_empty() {
            let reasons = kept.iter().filter(|one| {
                let slot = one.trim_start_matches('`');
                slot.split_once('`').is_some_and(|(slot, _)| block.holds(slot))
            });
            let reasons: Vec<&str> = reasons.map(String::as_str).collect();
            let reasons = match reasons.as_slice() {
                [] => "none of its weights has a quantizer".to_owned(),
                some => some.join("; "),
            };
            problems.push(format!("`{name}` has no weight to round: {reasons}"));
        }
        let outputs = Outputs {
            name: name.clone(),
            slots: own.iter().map(|entry| entry.slot.id()).collect(),
            last: Cell::new(0),
        };
        parts.push(Part { block, layers: good, outputs });
    }
    if blocks.is_empty() {
        problems.push("there is no block".to_owned());
    }
    if !problems.is_empty() {
        let summary = "blocks cannot be reconstructed";
        return Err(crate::Error::of_problems(ErrorKind::Rule, summary, &problems).into());
    }
    Ok(parts)
}

/// The full names of all modules below one.
fn module_names(module: &dyn Module, path: &str, names: &mut HashSet<String>) {
    struct Children<'n>(&'n str, &'n mut HashSet<String>);
    impl<'a> Visitor<'a> for Children<'_> {
        fn module(&mut self, name: &str, module: &'a dyn Module) {
            let full =
                if self.0.is_empty() { name.to_owned() } else { format!("{}.{name}", self.0) };
            module_names(module, &full, self.1);
            self.1.insert(full);
        }

        fn slot(&mut self, _name: &str, _slot: &'a QuantizerSlot) {}
    }
    module.visit(&mut Children(path, names));
}

impl Part<'_> {
    fn reconstruct(
        &self,
        network: &mut Network<'_>,
        data: &dyn Data,
        options: &BlockOptions,
    ) -> Result<AlgorithmChange> {
        let (signal, before, n_batches) = self.error(network, data)?;
        let share = |error: f64| if signal > 0.0 { error / signal } else { error };
        let change = |after: f64| AlgorithmChange {
            name: self.block.name.clone(),
            before: share(before),
            after: Some(share(after)),
            rows_kept: None,
        };
        if before == 0.0 {
            return Ok(change(before));
        }
        let mut soft = Vec::new();
        for layer in &self.layers {
            let float = network.float_values(&layer.weight)?;
            let (_, parameters, tiles) = layer.quantizer()?;
            let now = values(&layer.weight.tensor())?;
            let chosen = (now != float).then_some(&now[..]);
            soft.push(SoftRounding::new(layer, (&float, chosen), &parameters, &tiles)?);
        }
        let n_weights: usize = soft.iter().map(SoftRounding::len).sum();
        // The error of one batch, found at first, counts a twelfth for each weight.
        let unit = before / n_batches as f64 * 12.0 / n_weights as f64;
        self.descend(network, &mut soft, data, options, unit)?;

        let found: Vec<Tensor> = self.layers.iter().map(|layer| layer.weight.tensor()).collect();
        for (layer, soft) in self.layers.iter().zip(&soft) {
            network.set(&layer.weight, soft.hard())?;
            // On the grid to the last bit, as the quantizer has it.
            let quantized = layer.weight.quantized(&layer.weight_slot)?.dequantize()?;
            network.set(&layer.weight, values(&quantized)?)?;
        }
        let (_, after, _) = self.error(network, data)?;
        if after < before {
            return Ok(change(after));
        }
        for (layer, found) in self.layers.iter().zip(found) {
            network.set_tensor(&layer.weight, found);
        }
        Ok(change(before))
    }

    /// `Σ ‖y‖²`, `Σ ‖y - ŷ‖²` and the number of batches.
    fn error(&self, network: &Network<'_>, data: &dyn Data) -> Result<(f64, f64, usize)> {
        let (mut signal, mut error) = (0.0, 0.0);
        let count = data.each(ALL, &mut |forward| {
            let float = self.float_output(network, forward)?;
            let quantized = values(&output_of(&self.outputs, forward)?)?;
            let float = values(&float)?;
            if float.len() != quantized.len() {
                return Err(self.wrong("its output has another shape in float than quantized"));
            }
            for (float, quantized) in float.iter().zip(&quantized) {
                signal += f64::from(*float).powi(2);
                error += (f64::from(*float) - f64::from(*quantized)).powi(2);
            }
            Ok(())
        })?;
        if count == 0 {
            let text =
                format!("no calibration data, but the output of `{}` is needed", self.block.name);
            return Err(Error::new(ErrorKind::NoData, text));
        }
        if !(signal.is_finite() && error.is_finite()) {
            return Err(self.wrong("its output is not finite"));
        }
        Ok((signal, error, count))
    }

    fn float_output(&self, network: &Network<'_>, forward: Forward<'_>) -> Result<Tensor> {
        let _float = network.in_float();
        output_of(&self.outputs, forward)
    }

    fn wrong(&self, reason: &str) -> Error {
        Error::new(ErrorKind::InvalidData, format!("`{}`: {reason}", self.block.name))
    }

    /// Learns which way to round.
    fn descend(
        &self,
        network: &mut Network<'_>,
        soft: &mut [SoftRounding],
        data: &dyn Data,
        options: &BlockOptions,
        unit: f64,
    ) -> Result<()> {
        let mut iteration = 0;
        let found: Vec<Tensor> = self.layers.iter().map(|layer| layer.weight.tensor()).collect();
        let slots: Vec<SlotEntry> = self
            .layers
            .iter()
            .map(|layer| SlotEntry {
                names: vec![layer.slot_name.clone()],
                slot: layer.weight_slot.clone(),
            })
            .collect();
        while iteration < options.iterations {
            data.each(options.iterations - iteration, &mut |forward| {
                let target = self.float_output(network, forward)?;
                for (layer, soft) in self.layers.iter().zip(&*soft) {
                    network.set_tensor(&layer.weight, soft.weight()?);
                }
                let output = {
                    let _gradients = flags::recording();
                    let _off = disable_quantization(&slots);
                    output_of(&self.outputs, forward)?
                };
                let loss = ((output - target)?.sqr()?.sum_all()? / unit)?;
                let gradients = loss.backward()?;
                let step = Adam::new(options, iteration);
                for soft in soft.iter_mut() {
                    soft.step(&gradients, &step)?;
                }
                iteration += 1;
                Ok(())
            })?;
        }
        for (layer, found) in self.layers.iter().zip(found) {
            network.set_tensor(&layer.weight, found);
        }
        Ok(())
    }
}
