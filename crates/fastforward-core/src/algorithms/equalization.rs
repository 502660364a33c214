//! Cross-layer equalization: ranges of weights that match from channel to channel.

use serde::Serialize;

use super::ScaleRounding;
use crate::{Error, ErrorKind};

/// Finds the factors that equalize the ranges of layers which follow each other.
///
/// A joint is the value between two layers, of which each channel `c` may be divided by a factor `s_c > 0` behind the
/// one and multiplied by it before the other, because nothing between them minds. With `r1_c` the largest magnitude
/// among the weights that lead to the channel, and `r2_c` among those that read it, the factor
///
/// ```text
/// s_c = sqrt(r1_c * r2_c) / r2_c
/// ```
///
/// makes both `sqrt(r1_c * r2_c)`, which lets all channels use one common grid best (Nagel et al. 2019,
/// [arXiv 1906.04721](https://arxiv.org/abs/1906.04721), section 4.1). A layer between two joints changes with both, so
/// the joints are visited in their order until no factor changes by more than `tolerance` any more. A depthwise layer has
/// one range per channel; it and its neighbours come to `cbrt(r1_c * r2_c * r3_c)` each.
///
/// A channel that no weight leads to, or none reads, keeps the factor 1. The weights change as
/// `w[o, i] * s_in[i] / s_out[o]`, the biases as `b[o] / s_out[o]`.
///
/// Everything is computed in 64-bit floats and in a fixed order. Factors are rounded at the end, joint by joint, see
/// [`ScaleRounding::round_together`].
///
/// # Errors
/// [`ErrorKind::InvalidSettings`] for a tolerance that is not positive; [`ErrorKind::InvalidData`] for a joint whose
/// layers do not exist, differ in channels, or have another joint on that side already, and for magnitudes that are
/// negative or not finite.
///
/// ```
/// use fastforward_core::algorithms::equalization::{Channels, EqualizationOptions, Joint, equalize};
///
/// // Two matrices: the first leads to channels of ranges 8 and 1/2, which the second reads with 2 and 2.
/// let layers = [
///     Channels::new(vec![8.0, 1.0, 0.5, 0.25], 2, 1)?, // [out, in]
///     Channels::new(vec![2.0, 2.0], 1, 1)?,
/// ];
/// let joints = [Joint::new(0, 1)];
/// let result = equalize(&layers, &joints, &EqualizationOptions::default())?;
/// assert_eq!(result.scales, [[2.0, 0.5]]);
/// assert_eq!(result.spreads[0].producer_before, 16.0);
/// assert_eq!(result.spreads[0].producer_after, 4.0);
/// # Ok::<(), fastforward_core::Error>(())
/// ```
pub fn equalize(
    layers: &[Channels],
    joints: &[Joint],
    options: &EqualizationOptions,
) -> Result<Equalization, Error> {
    if options.tolerance.is_nan() || options.tolerance <= 0.0 {
        return Err(Error::new(
            ErrorKind::InvalidSettings,
            format!("tolerance must be positive, found {}", options.tolerance),
        ));
    }
    let mut state = State::new(layers, joints)?;
    let spreads_before: Vec<[f64; 2]> = (0..joints.len()).map(|at| state.spreads(at)).collect();
    let mut iterations = 0;
    let mut converged = joints.is_empty();
    while !converged && iterations < options.max_iterations {
        converged = true;
        for at in 0..joints.len() {
            converged &= state.visit(at) <= options.tolerance;
        }
        iterations += 1;
    }
    state.round(options.rounding);
    let spreads = spreads_before.into_iter().enumerate().map(|(at, before)| {
        let after = state.spreads(at);
        Spread {
            producer_before: before[0],
            producer_after: after[0],
            consumer_before: before[1],
            consumer_after: after[1],
        }
    });
    let spreads = spreads.collect();
    Ok(Equalization { scales: state.scales, spreads, iterations, converged })
}

/// The magnitudes of a layer's weights by channel.
///
/// Where a weight has more than one element between two channels (a kernel, or the columns of a flattened map), the
/// largest magnitude counts.
#[derive(Clone, Debug, PartialEq)]
pub struct Channels {
    magnitudes: Vec<f32>, // [outputs, inputs / groups]
    outputs: usize,
    groups: usize,
}

impl Channels {
    /// A layer whose `outputs` channels read `inputs / groups` channels each, those of their group; `magnitudes` has the
    /// shape `[outputs, inputs / groups]`.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidData`] when the shapes do not fit, or a magnitude is negative or not finite.
    pub fn new(magnitudes: Vec<f32>, outputs: usize, groups: usize) -> Result<Self, Error> {
        let wrong = |problem: String| Err(Error::new(ErrorKind::InvalidData, problem));
        if outputs == 0 || groups == 0 || !outputs.is_multiple_of(groups) {
            return wrong(format!("{outputs} output channels do not make {groups} groups"));
        }
        if magnitudes.is_empty() || !magnitudes.len().is_multiple_of(outputs) {
            return wrong(format!(
                "{} magnitudes do not make a row for each of {outputs} output channels",
                magnitudes.len()
            ));
        }
        if let Some(at) = magnitudes.iter().position(|value| !(value.is_finite() && *value >= 0.0))
        {
            return wrong(format!("magnitude {at} is {}, expected 0 or more", magnitudes[at]));
        }
        Ok(Self { magnitudes, outputs, groups })
    }

    /// How many channels the layer produces.
    pub fn outputs(&self) -> usize {
        self.outputs
    }

    /// How many channels the layer reads.
    pub fn inputs(&self) -> usize {
        self.columns() * self.groups
    }

    /// Channels that one output channel reads.
    fn columns(&self) -> usize {
        self.magnitudes.len() / self.outputs
    }

    /// The largest magnitude of each output channel and of each input channel, with factors on both sides.
    fn ranges(&self, before: Option<&[f64]>, behind: Option<&[f64]>) -> [Vec<f64>; 2] {
        let columns = self.columns();
        let rows_per_group = self.outputs / self.groups;
        let mut of_outputs = vec![0.0f64; self.outputs];
        let mut of_inputs = vec![0.0f64; self.inputs()];
        for (row, magnitudes) in self.magnitudes.chunks_exact(columns).enumerate() {
            let first = row / rows_per_group * columns;
            let divisor = behind.map_or(1.0, |scales| scales[row]);
            for (column, &magnitude) in magnitudes.iter().enumerate() {
                let input = first + column;
                let factor = before.map_or(1.0, |scales| scales[input]);
                let value = f64::from(magnitude) * factor / divisor;
                of_outputs[row] = of_outputs[row].max(value);
                of_inputs[input] = of_inputs[input].max(value);
            }
        }
        [of_outputs, of_inputs]
    }
}

/// The value between two layers.
#[derive(Clone, Debug, PartialEq)]
pub struct Joint {
    /// The layer that computes it.
    pub producer: usize,
    /// The layer that reads it.
    pub consumer: usize,
    /// The smallest factor of each channel; empty for none. See [`bias_bounds`].
    pub least: Vec<f64>,
}

impl Joint {
    /// A joint with any factors.
    pub fn new(producer: usize, consumer: usize) -> Self {
        Self { producer, consumer, least: Vec::new() }
    }
}

/// The factors under which no bias becomes larger than the largest that the layer has: `|b_c| / max |b|`.
///
/// Weights that are almost zero would otherwise get a factor that is almost zero, and the bias beside them, divided by
/// it, becomes a value that no common range of activations can hold. Where biases are as badly scaled as weights, the
/// bound does not bind.
pub fn bias_bounds(bias: &[f32]) -> Vec<f64> {
    let largest = bias.iter().fold(0.0f32, |largest, value| largest.max(value.abs()));
    let bound = |value: &f32| f64::from(value.abs()) / f64::from(largest);
    if largest > 0.0 { bias.iter().map(bound).collect() } else { Vec::new() }
}

/// How to equalize.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct EqualizationOptions {
    /// Which factors are used.
    pub rounding: ScaleRounding,
    /// The most rounds over all joints.
    pub max_iterations: usize,
    /// The largest relative change of a factor at which the rounds end.
    pub tolerance: f64,
}

impl Default for EqualizationOptions {
    /// Powers of two, at most 20 rounds, until factors change by less than a thousandth.
    fn default() -> Self {
        Self { rounding: ScaleRounding::default(), max_iterations: 20, tolerance: 1e-3 }
    }
}

/// What becomes of a `Clip` from 0 to a bound between two layers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Relu6 {
    /// It stays as it is, and keeps the layers around it from being equalized.
    #[default]
    Keep,
    /// A `Relu` and a `Min` with a bound for each channel take its place. The graph computes the same as before.
    PerChannel,
    /// A `Relu` takes its place, as in the paper. The graph computes the same only for data that stay below the bound.
    Relu,
}

/// What [`equalize`] found.
#[derive(Clone, Debug, PartialEq)]
pub struct Equalization {
    /// The factor of each channel of each joint.
    pub scales: Vec<Vec<f64>>,
    /// How far the channels of each joint lie apart.
    pub spreads: Vec<Spread>,
    /// How many rounds there were.
    pub iterations: usize,
    /// Whether the last round changed no factor by more than the tolerance.
    pub converged: bool,
}

/// How far the ranges of channels lie apart: the largest divided by the smallest that is not 0; 1 where all are 0.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Spread {
    /// Among the output channels of the layer that produces.
    pub producer_before: f64,
    /// The same, after.
    pub producer_after: f64,
    /// Among the input channels of the layer that reads.
    pub consumer_before: f64,
    /// The same, after.
    pub consumer_after: f64,
}

/// Factors beyond these change nothing that a float could show, and would leave the range of floats in products.
const LARGEST_SCALE: f64 = 1e30;

struct State<'a> {
    layers: &'a [Channels],
    joints: &'a [Joint],
    scales: Vec<Vec<f64>>,
    /// For each layer, the joints before and behind it.
    around: Vec<[Option<usize>; 2]>,
}

impl<'a> State<'a> {
    fn new(layers: &'a [Channels], joints: &'a [Joint]) -> Result<Self, Error> {
        let wrong = |problem: String| Err(Error::new(ErrorKind::InvalidData, problem));
        let mut around = vec![[None; 2]; layers.len()];
        let mut scales = Vec::with_capacity(joints.len());
        for (at, joint) in joints.iter().enumerate() {
            let both = (layers.get(joint.producer), layers.get(joint.consumer));
            let (Some(producer), Some(consumer)) = both else {
                return wrong(format!(
                    "joint {at} lies between the layers {} and {}, but there are {}",
                    joint.producer,
                    joint.consumer,
                    layers.len()
                ));
            };
            if producer.outputs() != consumer.inputs() {
                return wrong(format!(
                    "joint {at} has {} channels on one side and {} on the other",
                    producer.outputs(),
                    consumer.inputs()
                ));
            }
            let is_bound = |&least: &f64| (0.0..=LARGEST_SCALE).contains(&least);
            let n_bounds = joint.least.len();
            if n_bounds != 0 && n_bounds != producer.outputs() || !joint.least.iter().all(is_bound)
            {
                return wrong(format!(
                    "joint {at} needs no bounds, or a finite one for each of {} channels",
                    producer.outputs()
                ));
            }
            for (layer, side) in [(joint.consumer, 0), (joint.producer, 1)] {
                if around[layer][side].replace(at).is_some() {
                    return wrong(format!("two joints lie on the same side of layer {layer}"));
                }
            }
            scales.push(vec![1.0; producer.outputs()]);
        }
        Ok(Self { layers, joints, scales, around })
    }

    fn ranges(&self, layer: usize) -> [Vec<f64>; 2] {
        let [before, behind] =
            self.around[layer].map(|joint| joint.map(|joint| self.scales[joint].as_slice()));
        self.layers[layer].ranges(before, behind)
    }

    /// The ranges of the channels of a joint: how its producer writes them, how its consumer reads them.
    fn sides(&self, at: usize) -> [Vec<f64>; 2] {
        let [written, _] = self.ranges(self.joints[at].producer);
        let [_, read] = self.ranges(self.joints[at].consumer);
        [written, read]
    }

    /// Sets the factors of one joint; the largest relative change.
    fn visit(&mut self, at: usize) -> f64 {
        let [written, read] = self.sides(at);
        let least = &self.joints[at].least;
        let mut largest_change = 0.0f64;
        for (channel, scale) in self.scales[at].iter_mut().enumerate() {
            let change = (written[channel] / read[channel]).sqrt();
            if !change.is_normal() {
                continue; // One side is zero.
            }
            let least = least.get(channel).copied().unwrap_or(0.0).max(1.0 / LARGEST_SCALE);
            let new = (*scale * change).clamp(least, LARGEST_SCALE);
            largest_change = largest_change.max((new / *scale).max(*scale / new) - 1.0);
            *scale = new;
        }
        largest_change
    }

    /// Rounds the factors of each joint, and lets the next joint take up what that left.
    fn round(&mut self, rounding: ScaleRounding) {
        for at in 0..self.joints.len() {
            let [written, read] = self.sides(at);
            let is_live = |channel: &usize| written[*channel] > 0.0 && read[*channel] > 0.0;
            let live: Vec<usize> = (0..written.len()).filter(is_live).collect();
            let mut scales: Vec<f64> =
                live.iter().map(|&channel| self.scales[at][channel]).collect();
            rounding.round_together(&mut scales);
            for (&channel, rounded) in live.iter().zip(scales) {
                let least = self.joints[at].least.get(channel).copied().unwrap_or(0.0);
                let scale = &mut self.scales[at][channel];
                *scale = if rounded < least { rounding.round_up(*scale) } else { rounded };
            }
            if at + 1 < self.joints.len() {
                self.visit(at + 1);
            }
        }
    }

    fn spreads(&self, at: usize) -> [f64; 2] {
        self.sides(at).map(|ranges| {
            let live = || ranges.iter().copied().filter(|&range| range > 0.0);
            let largest = live().fold(0.0, f64::max);
            let smallest = live().fold(f64::INFINITY, f64::min);
            if largest > 0.0 { largest / smallest } else { 1.0 }
        })
    }
}

#[cfg(test)]
mod tests;
