//! The weights of a block, rounded by what they do to its output together.

use fastforward_core::algorithms::layerwise::BlockOutcome;
use ff_kernels::{AdaRoundOptions, SoftRounding, Tiling};

use super::super::layer::LinearLayer;
use super::super::run::calibrated;
use super::Block;
use super::refine::refine;
use super::tape::{Tape, Values};
use super::value::Value;
use crate::calibrate::Batch;
use crate::engine::Engine;
use crate::error::{Error, ErrorKind, Result};
use crate::graph::Model;
use crate::placement::place;
use crate::simulate::simulate;
use crate::tensor::Tensor;
use crate::tree::Tree;

/// The networks a block stands in, and how they are executed.
pub(in crate::layerwise) struct Networks<'n> {
    /// As it is by then.
    pub(in crate::layerwise) model: &'n Model,
    pub(in crate::layerwise) tree: &'n Tree,
    /// Before weights were chosen, and what executes it.
    pub(in crate::layerwise) float: (&'n Model, &'n Engine),
    pub(in crate::layerwise) context: &'n super::super::Context<'n>,
    /// Whether the block reads what the quantized network gives it, and quantizes its activations.
    pub(in crate::layerwise) quantized: bool,
}

/// What a block reads, and what it is to give, for the batches that fit a bound; others are computed when they are asked for.
pub(super) struct Pairs<'p, F> {
    pub(super) block: &'p Block,
    float: &'p Engine,
    /// What computes the inputs, and their name there.
    source: (&'p Engine, &'p str),
    batches: F,
    kept: Vec<[Value; 2]>,
    left: usize,
    pub(super) n_batches: usize,
}

/// Rounds the weights of `block` so that its output changes least, by `options.iterations` steps with one batch each: see
/// [`SoftRounding`]; with `options.descent` codes are then changed a few at a time while the error falls, which looks at as
/// many batches again, or twice as many, at most. Returns them in the order of its layers and the layouts of the graph, or
/// nothing where none that were tried are better than those it has.
///
/// What the block reads and shall give is held for as many batches as fit `max_bytes` and computed anew for the others, in
/// each step; beside that its values and their gradients for one batch, and about twenty numbers for each weight.
///
/// # Errors
/// `Input` for data that is not finite, and when there is none; those of [`simulate`], of the engine and of `batches`.
pub(in crate::layerwise) fn reconstruct<B: Iterator<Item = Result<Batch>>>(
    networks: &Networks<'_>,
    block: &Block,
    options: &AdaRoundOptions,
    batches: impl Fn() -> B,
    mut progress: impl FnMut(),
) -> Result<(BlockOutcome, Option<Vec<Vec<f32>>>)> {
    let Networks { model, tree, float, context, quantized } = *networks;
    let simulated = simulate(model, tree, &context.simulation)?;
    let mut outcome = BlockOutcome {
        name: block.name.clone(),
        output: block.output.clone(),
        signal: 0.0,
        loss_before: 0.0,
        loss: 0.0,
        kept_because: None,
    };
    let placed = place(model, tree)?.activations;
    let mut tape = match Tape::new((model, &simulated), &placed, block, quantized) {
        Ok(tape) => tape,
        Err(reason) => {
            outcome.kept_because = Some(reason);
            return Ok((outcome, None));
        }
    };
    let engine = Engine::new(&simulated.model, &context.run.engine)?;
    let source = match quantized {
        true => (&engine, simulated.unquantized(&block.input)),
        false => (float.1, block.input.as_str()),
    };
    let mut pairs = Pairs {
        block,
        float: float.1,
        source,
        batches,
        kept: Vec::new(),
        left: context.run.max_bytes,
        n_batches: 0,
    };
    let found = tape.weights();
    (outcome.signal, outcome.loss_before) = match error(&tape, &mut pairs, &mut progress) {
        // Shapes that no tape of it fits.
        Err(error) if error.kind() == ErrorKind::Unsupported => {
            outcome.kept_because = Some(error.to_string());
            return Ok((outcome, None));
        }
        other => other?,
    };
    outcome.loss = outcome.loss_before;
    let mut soft = Vec::new();
    for (layer, found) in block.layers.iter().zip(&found) {
        soft.push(softened(float.0, layer, found)?);
    }
    if outcome.loss_before == 0.0 {
        return Ok((outcome, None));
    }
    let energies = descend(&mut tape, &mut soft, options, &mut pairs, &mut progress)?;
    let mut rounded = found.clone();
    for (soft, rounded) in soft.iter().zip(&mut rounded) {
        soft.rounded(rounded).map_err(|error| wrong(block, &error))?;
    }
    tape.set_weights(&rounded);
    let (_, loss) = error(&tape, &mut pairs, &mut progress)?;
    let mut best = (rounded, loss);
    if options.descent {
        // What gradients found first; what was there before where that does not become better.
        for (mut weights, loss) in [best.clone(), (found.clone(), outcome.loss_before)] {
            let steps = (&soft[..], &energies[..]);
            let start = (&mut weights[..], loss);
            let budget = options.iterations;
            let loss = refine(&mut tape, steps, start, &mut pairs, budget, &mut progress)?;
            best = (weights, loss);
            if loss < outcome.loss_before {
                break;
            }
        }
    }
    let (chosen, loss) = best;
    if loss >= outcome.loss_before {
        return Ok((outcome, None));
    }
    outcome.loss = loss;
    Ok((outcome, Some(chosen)))
}

/// A layer's weight between its float values and the codes it has.
fn softened(float: &Model, layer: &LinearLayer, found: &[f32]) -> Result<SoftRounding> {
    let wrong = |reason: &dyn std::fmt::Display| {
        Error::new(ErrorKind::Quantizer, format!("`{}`: {reason}", layer.weight.name))
    };
    let (config, parameters) = calibrated(layer)?;
    let constant = float.constant(&layer.weight.value);
    let constant = constant.ok_or_else(|| wrong(&"the float graph has no such constant"))?;
    let tile = config.granularity.tile_shape(layer.shape()).map_err(|error| wrong(&error))?;
    let grid = parameters.grid().map_err(|error| wrong(&error))?;
    let tiling = Tiling::new(layer.shape(), &tile).map_err(|error| wrong(&error))?;
    SoftRounding::new(&constant.to_f32()?, Some(found), &tiling, parameters.affine(), grid)
        .map_err(|error| wrong(&error))
}

/// `Σ ‖y‖²` and `Σ ‖y - ŷ‖²` over all batches.
pub(super) fn error<B: Iterator<Item = Result<Batch>>, F: Fn() -> B>(
    tape: &Tape,
    pairs: &mut Pairs<'_, F>,
    progress: &mut dyn FnMut(),
) -> Result<(f64, f64)> {
    let (mut signal, mut error) = (0.0, 0.0);
    let block = pairs.block;
    pairs.each(usize::MAX, progress, &mut |x, y| {
        let values = tape.forward(x).map_err(|reason| unsupported(&reason))?;
        let found = tape.output(&values).map_err(|reason| unsupported(&reason))?;
        if found.shape != y.shape {
            let (a, b) = (&found.shape, &y.shape);
            return Err(unsupported(&format!("it gives {a:?}, and {b:?} in float")));
        }
        for (y, found) in y.data.iter().zip(&found.data) {
            signal += f64::from(*y).powi(2);
            error += (f64::from(*y) - f64::from(*found)).powi(2);
        }
        Ok(())
    })?;
    if !(f64::is_finite(signal) && f64::is_finite(error)) {
        return Err(wrong(block, &"its output is not finite"));
    }
    Ok((signal, error))
}

/// Learns which way to round; returns [`energies`] of the first batch.
fn descend<B: Iterator<Item = Result<Batch>>, F: Fn() -> B>(
    tape: &mut Tape,
    soft: &mut [SoftRounding],
    options: &AdaRoundOptions,
    pairs: &mut Pairs<'_, F>,
    progress: &mut dyn FnMut(),
) -> Result<Vec<Vec<f64>>> {
    let block = pairs.block;
    let mut weights = tape.weights();
    let (mut energies, mut units) = (Vec::new(), Vec::new());
    let mut iteration = 0;
    while iteration < options.iterations {
        pairs.each(options.iterations - iteration, progress, &mut |x, y| {
            for (soft, weight) in soft.iter().zip(&mut weights) {
                soft.weight(weight).map_err(|error| wrong(block, &error))?;
            }
            tape.set_weights(&weights);
            let values = tape.forward(x).map_err(|reason| unsupported(&reason))?;
            if energies.is_empty() {
                energies = self::energies(tape, &values).map_err(|reason| unsupported(&reason))?;
                for (soft, energies) in soft.iter().zip(&energies) {
                    units.push(soft.unit(energies).map_err(|error| wrong(block, &error))?);
                }
            }
            let slopes = gradient(tape, &values, y).map_err(|reason| unsupported(&reason))?;
            for ((soft, mut slope), unit) in soft.iter_mut().zip(slopes).zip(&units) {
                // What the output does not depend on has no unit.
                let factor = if *unit > 0.0 { 1.0 / unit } else { 0.0 };
                slope.iter_mut().for_each(|g| *g = (f64::from(*g) * factor) as f32);
                soft.step(&slope, options, iteration).map_err(|error| wrong(block, &error))?;
            }
            iteration += 1;
            Ok(())
        })?;
    }
    Ok(energies)
}

/// The gradients of the weights, of the error that the output has.
pub(super) fn gradient(
    tape: &Tape,
    values: &Values<'_>,
    y: &Value,
) -> Result<Vec<Vec<f32>>, String> {
    let found = tape.output(values)?;
    let slopes = y.data.iter().zip(&found.data).map(|(y, found)| 2.0 * (found - y));
    tape.backward(values, slopes.collect())
}

/// How many outputs with random signs energies are taken from.
const PROBES: u64 = 8;

/// `‖J‖²` of each weight, with the derivative `J` of the output of one batch by it: the mean square of `Jᵀ r` for random
/// signs `r`.
fn energies(tape: &Tape, values: &Values<'_>) -> Result<Vec<Vec<f64>>, String> {
    let len = tape.output(values)?.data.len() as u64;
    let mut sums: Vec<Vec<f64>> =
        tape.weights().iter().map(|weight| vec![0.0; weight.len()]).collect();
    for probe in 0..PROBES {
        let signs = (0..len).map(|at| sign(at * PROBES + probe)).collect();
        let slopes = tape.backward(values, signs)?;
        for (sum, slope) in sums.iter_mut().zip(&slopes) {
            let terms = slope.iter().map(|g| f64::from(*g).powi(2) / PROBES as f64);
            sum.iter_mut().zip(terms).for_each(|(sum, term)| *sum += term);
        }
    }
    Ok(sums)
}

/// 1 or -1, by the bits of a number well mixed (splitmix64).
fn sign(number: u64) -> f32 {
    let mut bits = number.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    if (bits ^ (bits >> 31)) & 1 == 0 { 1.0 } else { -1.0 }
}

impl<B: Iterator<Item = Result<Batch>>, F: Fn() -> B> Pairs<'_, F> {
    /// Hands what the block reads, and shall give, to `visit`: the first `limit` batches, or all if there are fewer.
    pub(super) fn each(
        &mut self,
        limit: usize,
        progress: &mut dyn FnMut(),
        visit: &mut dyn FnMut(&Value, &Value) -> Result<()>,
    ) -> Result<()> {
        for [x, y] in self.kept.iter().take(limit) {
            visit(x, y)?;
        }
        let is_first = self.n_batches == 0;
        let held = self.kept.len();
        if !is_first && held == self.n_batches {
            return Ok(());
        }
        for batch in (self.batches)().skip(held).take(limit.saturating_sub(held)) {
            let pair = self.pair(&batch?)?;
            progress();
            visit(&pair[0], &pair[1])?;
            if is_first {
                self.n_batches += 1;
                let bytes = pair.iter().map(Value::bytes).sum();
                self.left = self.left.saturating_sub(bytes);
                if self.left > 0 {
                    self.kept.push(pair);
                }
            }
        }
        match self.n_batches {
            0 => {
                let text = format!(
                    "no calibration data, but the output of `{}` is needed",
                    self.block.name
                );
                Err(Error::new(ErrorKind::Input, text))
            }
            _ => Ok(()),
        }
    }

    fn pair(&self, batch: &Batch) -> Result<[Value; 2]> {
        let inputs: Vec<(&str, &Tensor)> =
            batch.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
        let value = |engine: &Engine, name: &str| {
            let tensor = engine.run(&inputs, &[name])?.pop();
            let floats = tensor.as_ref().and_then(|tensor| {
                Some(Value { shape: tensor.shape().to_vec(), data: tensor.as_f32()?.to_vec() })
            });
            floats.ok_or_else(|| wrong(self.block, &format!("`{name}` holds no 32-bit floats")))
        };
        Ok([value(self.source.0, self.source.1)?, value(self.float, &self.block.output)?])
    }
}

pub(super) fn wrong(block: &Block, reason: &dyn std::fmt::Display) -> Error {
    Error::new(ErrorKind::Input, format!("block of `{}`: {reason}", block.name))
}

pub(super) fn unsupported(reason: &str) -> Error {
    Error::new(ErrorKind::Unsupported, reason.to_owned())
}
