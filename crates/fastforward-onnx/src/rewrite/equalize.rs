//! Cross-layer equalization of a graph.

mod apply;

use std::collections::BTreeMap;
use std::fmt;

pub use fastforward_core::algorithms::equalization::Relu6;
use fastforward_core::algorithms::equalization::{
    self, Channels, Equalization, EqualizationOptions, Joint, Spread, bias_bounds,
};
use serde::Serialize;

use super::layer::{Bias, Layer, is_read_once, layer_at, own_bias};
use super::path::{Path, follow};
use crate::dtype::DType;
use crate::error::Result;
use crate::graph::{GraphIndex, Model};
use crate::shapes::ShapeTable;

/// Equalizes the ranges of weights of layers that follow each other, without a change of what the graph computes.
///
/// Layers are `Conv` (grouped and depthwise, too), `ConvTranspose`, `Gemm` and `MatMul` with constant weights that nothing
/// else reads. Two of them are joined where the first one's result has one reader, is not returned, and passes only
/// through operations that keep a positive factor for each channel: `Relu`, `LeakyRelu`, `PRelu`, pooling, padding with 0,
/// `Flatten` and other changes of shape that keep channels apart, additions of a constant for each channel (which is
/// divided along), products with constants, and the like. The factors come from
/// [`equalization::equalize`]; each chain of joined layers is equalized as one.
///
/// With powers of two, which are the default, the graph computes the very same floats as before (where no value leaves
/// the range of normal floats). With [`ScaleRounding::Unrounded`](fastforward_core::algorithms::ScaleRounding::Unrounded)
/// each weight and bias is rounded once, to a relative error of `2^-24` (`float32`), `2^-11` (`float16`) or `2^-8`
/// (`bfloat16`); the input of the next layer's channels and its weights then differ by at most that each, beside the
/// rounding of the sums. A channel whose parameters a factor would push beyond that keeps the factor 1.
///
/// Batch normalization has to be [folded](super::fold_batch_norm) before. Nested graphs are left alone.
///
/// # Errors
/// `ExternalData` when a constant cannot be read; `Core` when an option is out of bounds. Layers that cannot be joined are
/// no error; the report says why.
///
/// ```
/// use fastforward_onnx::graph::Model;
/// use fastforward_onnx::rewrite::{EqualizeOptions, equalize};
/// # let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/digits/digits_mlp.onnx");
///
/// let mut model = Model::load(path.as_ref())?;
/// let report = equalize(&mut model, &EqualizeOptions::default())?;
/// assert_eq!(report.chains[0].layers, ["g1", "g2", "logits"]);
/// assert_eq!(report.kept[0].reason, "its result `logits` is returned by the graph");
/// # Ok::<(), fastforward_onnx::Error>(())
/// ```
pub fn equalize(model: &mut Model, options: &EqualizeOptions) -> Result<EqualizeReport> {
    let mut report = EqualizeReport::default();
    let Found { layers, joints } = find(model, options, &mut report.kept)?;
    let mut scales: Vec<Vec<f64>> = joints.iter().map(|_| Vec::new()).collect();
    for chain in chains(&joints) {
        let core_joints: Vec<Joint> = (chain.joints.iter().enumerate())
            .map(|(at, &joint)| Joint {
                producer: at,
                consumer: at + 1,
                least: if options.bound_biases { joints[joint].bias_bounds() } else { Vec::new() },
            })
            .collect();
        let magnitudes = chain.magnitudes(model, &layers, &joints)?;
        let mut result = equalization::equalize(&magnitudes, &core_joints, &options.equalization)?;
        let rounding = options.equalization.rounding;
        let out_of_range =
            apply::apply(model, &chain, &layers, &joints, &mut result.scales, rounding)?;
        report.chains.push(chain.report(model, &joints, &result, &out_of_range));
        for (joint, found) in chain.joints.iter().zip(result.scales) {
            scales[*joint] = found;
        }
    }
    for clip in joints.iter().flat_map(|joint| &joint.path.clips) {
        let node = model.graph().node[clip.node].label().to_owned();
        report.clips.push(RewrittenClip { node, bound: clip.bound });
    }
    let dtypes: Vec<DType> = joints.iter().map(|joint| layers[&joint.producer].dtype).collect();
    apply::rewrite_clips(model, &joints, &dtypes, &scales, options.relu6);
    Ok(report)
}

/// How to equalize.
#[derive(Clone, Debug)]
pub struct EqualizeOptions {
    /// Which factors are used, and when the rounds end.
    pub equalization: EqualizationOptions,
    /// What becomes of `Clip` from 0 to a bound, which is no longer the same bound for each channel.
    pub relu6: Relu6,
    /// Whether factors are bounded so that no bias becomes larger than the largest of its layer: see
    /// [`bias_bounds`](equalization::bias_bounds). The paper has no such bound.
    pub bound_biases: bool,
    /// The shapes of activations, beside those that the file states. They are needed to see channels through `Reshape`.
    pub shapes: ShapeTable,
}

impl Default for EqualizeOptions {
    /// The same floats: powers of two, `Clip` kept. Biases are bounded.
    fn default() -> Self {
        Self {
            equalization: EqualizationOptions::default(),
            relu6: Relu6::Keep,
            bound_biases: true,
            shapes: ShapeTable::default(),
        }
    }
}

/// What [`equalize`] did, in the order of the graph.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct EqualizeReport {
    /// The layers that were equalized together.
    pub chains: Vec<EqualizedChain>,
    /// The `Clip` nodes that were rewritten.
    pub clips: Vec<RewrittenClip>,
    /// The layers whose result was not equalized with what reads it.
    pub kept: Vec<KeptLayer>,
}

/// Layers that were equalized together.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct EqualizedChain {
    /// Their nodes.
    pub layers: Vec<String>,
    /// What lies between each of them and the next.
    pub joints: Vec<EqualizedJoint>,
    /// How many rounds there were.
    pub iterations: usize,
    /// Whether the last round changed no factor by more than the tolerance.
    pub converged: bool,
}

/// Two layers whose ranges were made to match.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct EqualizedJoint {
    /// The layer that computes the value.
    pub producer: String,
    /// The layer that reads it.
    pub consumer: String,
    /// How many channels it has.
    pub channels: usize,
    /// How far the ranges of the channels lie apart.
    #[serde(flatten)]
    pub spread: Spread,
    /// The smallest factor by which a channel was divided.
    pub min_scale: f64,
    /// The largest.
    pub max_scale: f64,
    /// How many channels kept the factor 1, because another would have pushed a parameter out of its type's range.
    pub out_of_range: usize,
}

/// A `Clip` that no longer is one.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RewrittenClip {
    /// Its node.
    pub node: String,
    /// Where it clipped.
    pub bound: f32,
}

/// A layer whose result was not equalized with what reads it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct KeptLayer {
    /// Its node.
    pub layer: String,
    /// Why.
    pub reason: String,
    /// Whether a chain ends with it.
    pub ends_chain: bool,
}

impl fmt::Display for EqualizedJoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "`{}` and `{}`: {} channels, ranges apart by {:.1} -> {:.1} and {:.1} -> {:.1}",
            self.producer,
            self.consumer,
            self.channels,
            self.spread.producer_before,
            self.spread.producer_after,
            self.spread.consumer_before,
            self.spread.consumer_after
        )
    }
}

impl fmt::Display for KeptLayer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = if self.ends_chain { "is the end of a chain" } else { "not equalized" };
        write!(f, "`{}` {what}: {}", self.layer, self.reason)
    }
}

/// The layers of a graph by their nodes, and the joints between them in the order of the graph.
struct Found {
    layers: BTreeMap<usize, Layer>,
    joints: Vec<Between>,
}

/// Two layers and what lies between them.
struct Between {
    producer: usize,
    consumer: usize,
    path: Path,
    /// The producer's own bias, and where it is read.
    bias: Option<Bias>,
    /// Constants added on the way.
    added: Vec<Bias>,
    n_channels: usize,
}

impl Between {
    /// What the largest of all that is added to each channel allows.
    fn bias_bounds(&self) -> Vec<f64> {
        let mut largest = vec![0.0f32; self.n_channels];
        for bias in self.bias.iter().chain(&self.added) {
            let block = bias.values.len() / self.n_channels;
            for (at, value) in bias.values.iter().enumerate() {
                largest[at / block] = largest[at / block].max(value.abs());
            }
        }
        bias_bounds(&largest)
    }
}

fn find(model: &Model, options: &EqualizeOptions, kept: &mut Vec<KeptLayer>) -> Result<Found> {
    let index = model.index();
    let stated = ShapeTable::stated(model);
    let shapes = match options.shapes.iter().next() {
        Some(_) => &options.shapes, // Holds what the file states, too.
        None => &stated,
    };
    let mut layers = BTreeMap::new();
    let mut unusable = BTreeMap::new();
    for node in 0..model.graph().node.len() {
        match layer_at(model, node, shapes)? {
            Some(Ok(layer)) => drop(layers.insert(node, layer)),
            Some(Err(reason)) => drop(unusable.insert(node, reason)),
            None => {}
        }
    }
    let mut joints: Vec<Between> = Vec::new();
    let is_layer = |node: usize| layers.contains_key(&node) || unusable.contains_key(&node);
    for node in (0..model.graph().node.len()).filter(|&node| is_layer(node)) {
        let found = match layers.get(&node) {
            None => Err(unusable[&node].clone()),
            Some(layer) => match follow(model, &index, shapes, layer, &is_layer) {
                Err(reason) => Err(reason),
                Ok(path) => match (layers.get(&path.reader), unusable.get(&path.reader)) {
                    (Some(reader), _) => join(model, &index, layer, reader, path, options.relu6)?,
                    (None, reason) => Err(format!(
                        "`{}` reads its result: {}",
                        model.graph().node[path.reader].label(),
                        reason.map_or("", String::as_str)
                    )),
                },
            },
        };
        match found {
            Ok(joint) => joints.push(joint),
            Err(reason) => kept.push(KeptLayer {
                layer: model.graph().node[node].label().to_owned(),
                reason,
                ends_chain: joints.iter().any(|joint| joint.consumer == node),
            }),
        }
    }
    Ok(Found { layers, joints })
}

/// Checks that both ends of a path can be scaled.
fn join(
    model: &Model,
    index: &GraphIndex,
    producer: &Layer,
    consumer: &Layer,
    path: Path,
    relu6: Relu6,
) -> Result<std::result::Result<Between, String>> {
    let graph = model.graph();
    macro_rules! keep {
        ($($reason:tt)*) => { return Ok(Err(format!($($reason)*))) };
    }
    for layer in [producer, consumer] {
        if !is_read_once(index, &layer.weight) {
            keep!("the weight `{}` is used elsewhere too", layer.weight);
        }
        let values = model.constant(&layer.weight).map(|constant| constant.to_f32()).transpose()?;
        if !values.unwrap_or_default().iter().all(|value| value.is_finite()) {
            keep!("the weight `{}` is not finite", layer.weight);
        }
    }
    let label = graph.node[consumer.node].label();
    let ends_at_channels = match (path.axis, consumer.axis) {
        (Some(found), wanted) => {
            found.from_end == wanted.from_end
                && found.rank.is_none_or(|rank| wanted.rank.is_none_or(|other| rank == other))
        }
        (None, _) => false,
    };
    if !ends_at_channels {
        keep!("`{label}` does not read channels as channels");
    }
    let n_channels = producer.layout.outputs();
    let n_inputs = consumer.layout.inputs();
    let per_group = n_inputs / consumer.layout.groups;
    let block = n_inputs / n_channels;
    if block == 0 || !n_inputs.is_multiple_of(n_channels) || !per_group.is_multiple_of(block) {
        keep!(
            "it has {n_channels} channels, but `{label}` reads {n_inputs} in groups of {per_group}"
        );
    }
    for clip in &path.clips {
        let label = graph.node[clip.node].label();
        match relu6 {
            Relu6::Keep => keep!(
                "`{label}` clips all channels at {}; `relu6` can make it a bound per channel, or a Relu",
                clip.bound
            ),
            Relu6::PerChannel if clip.in_blocks => {
                keep!("`{label}` clips channels that were flattened")
            }
            Relu6::PerChannel if model.opset("").is_some_and(|version| version < 8) => {
                keep!("a bound per channel for `{label}` needs operator set 8")
            }
            Relu6::PerChannel | Relu6::Relu => {}
        }
    }
    let bias = match own_bias(model, producer)? {
        Ok(bias) => bias.filter(|bias| bias.name.is_some()),
        Err(reason) => return Ok(Err(reason)),
    };
    let mut added = Vec::new();
    for &(node, input) in &path.added {
        let name = graph.node[node].input_at(input).unwrap_or("").to_owned();
        let Some(constant) = model.constant(&name) else { keep!("`{name}` is not constant") };
        let (shape, values) = (constant.info()?.shape, constant.to_f32()?);
        added.push(Bias { node, input, name: Some(name), shape, values, factor: 1.0 });
    }
    Ok(Ok(Between {
        producer: producer.node,
        consumer: consumer.node,
        path,
        bias,
        added,
        n_channels,
    }))
}

/// Layers that follow each other: by node, with the joints between them.
struct Chain {
    layers: Vec<usize>,
    joints: Vec<usize>,
}

/// The joints as chains, in the order of their first layers. No layer has two joints on one side: a value is one input.
fn chains(joints: &[Between]) -> Vec<Chain> {
    let after = |node: usize| joints.iter().position(|joint| joint.producer == node);
    let mut chains = Vec::new();
    for (at, first) in joints.iter().enumerate() {
        if joints.iter().any(|joint| joint.consumer == first.producer) {
            continue;
        }
        let mut chain = Chain { layers: vec![first.producer], joints: Vec::new() };
        let mut next = Some(at);
        while let Some(joint) = next {
            chain.joints.push(joint);
            chain.layers.push(joints[joint].consumer);
            next = after(joints[joint].consumer);
        }
        chains.push(chain);
    }
    chains
}

impl Chain {
    /// The magnitudes of each layer's weight, input channels in the blocks that the joint before it has.
    fn magnitudes(
        &self,
        model: &Model,
        layers: &BTreeMap<usize, Layer>,
        joints: &[Between],
    ) -> Result<Vec<Channels>> {
        let magnitudes = self.layers.iter().enumerate().map(|(at, node)| {
            let layer = &layers[node];
            let block = match at.checked_sub(1) {
                Some(before) => layer.layout.inputs() / joints[self.joints[before]].n_channels,
                None => 1,
            };
            let weight = weight_values(model, layer)?;
            let values = layer.layout.magnitudes(&weight, block).unwrap_or_default();
            Ok(Channels::new(values, layer.layout.outputs(), layer.layout.groups)?)
        });
        magnitudes.collect()
    }

    fn report(
        &self,
        model: &Model,
        joints: &[Between],
        result: &Equalization,
        out_of_range: &[usize],
    ) -> EqualizedChain {
        let label = |node: usize| model.graph().node[node].label().to_owned();
        let joints = self.joints.iter().enumerate().map(|(at, &joint)| {
            let scales = || result.scales[at].iter().copied();
            EqualizedJoint {
                producer: label(joints[joint].producer),
                consumer: label(joints[joint].consumer),
                channels: joints[joint].n_channels,
                spread: result.spreads[at],
                min_scale: scales().fold(f64::INFINITY, f64::min),
                max_scale: scales().fold(0.0, f64::max),
                out_of_range: out_of_range[at],
            }
        });
        EqualizedChain {
            joints: joints.collect(),
            layers: self.layers.iter().map(|&node| label(node)).collect(),
            iterations: result.iterations,
            converged: result.converged,
        }
    }
}

fn weight_values(model: &Model, layer: &Layer) -> Result<Vec<f32>> {
    Ok(model.constant(&layer.weight).map(|one| one.to_f32()).transpose()?.unwrap_or_default())
}
