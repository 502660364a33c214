//! Bias absorption in a graph.

use std::collections::BTreeMap;
use std::fmt;

use fastforward_core::algorithms::ChannelStatistics;
use fastforward_core::algorithms::absorption::Absorption;
use serde::Serialize;

use super::layer::{Bias, Layer, bias_of, layer_at, set_bias};
use super::path::{Path, follow};
use crate::error::Result;
use crate::graph::{GraphIndex, Model};
use crate::proto::NodeProto;
use crate::shapes::ShapeTable;

/// Moves what channels never fall below from one layer's bias to the next one's, so that the activation between them
/// needs a smaller range.
///
/// `statistics` holds what was seen, in float, of the values before activations: [`absorbable_values`] says which,
/// [`channel_statistics`](super::channel_statistics) measures them. `c` of each channel is that of [`Absorption`]; the
/// layer gets the bias `b - c`, the layer that reads it `b + sum of W c`. Between them may stand one `Relu`, `LeakyRelu`
/// or `PRelu`, and what shifts along: pooling without padding, changes of shape, additions of constants. A convolution
/// that pads its input is no reader: at the border it reads 0 in the place of `c`.
///
/// The graph computes the same, up to the rounding of two biases, for data whose channels do not fall below their `c`.
///
/// # Errors
/// `ExternalData` when a constant cannot be read. What cannot be absorbed is no error; the report says why.
pub fn absorb_biases(
    model: &mut Model,
    statistics: &BTreeMap<String, ChannelStatistics>,
    options: &AbsorbOptions,
) -> Result<AbsorbReport> {
    let mut report = AbsorbReport::default();
    let stated = ShapeTable::stated(model);
    let shapes = if options.shapes.iter().next().is_some() { &options.shapes } else { &stated };
    for found in find(model, shapes)? {
        let label = |node: usize| model.graph().node[node].label().to_owned();
        let pair = match found.pair {
            Ok(pair) => pair,
            Err(reason) => {
                report.kept.push(KeptBiasPair { layer: label(found.layer), reason });
                continue;
            }
        };
        if !options.add_missing_biases
            && let Some(layer) = pair.without_bias(model)
        {
            let reason = format!("`{}` adds no bias", label(layer));
            report.kept.push(KeptBiasPair { layer: label(found.layer), reason });
            continue;
        }
        let Some(seen) = statistics.get(&pair.value) else {
            let reason = format!("no statistics of `{}` are given", pair.value);
            report.kept.push(KeptBiasPair { layer: label(found.layer), reason });
            continue;
        };
        let amounts = options.absorption.amounts(seen);
        if amounts.len() != pair.producer.layout.outputs() {
            let reason = format!(
                "`{}` has {} channels, its statistics {}",
                pair.value,
                pair.producer.layout.outputs(),
                amounts.len()
            );
            report.kept.push(KeptBiasPair { layer: label(found.layer), reason });
            continue;
        }
        let absorbed = AbsorbedBias {
            producer: label(pair.producer.node),
            consumer: label(pair.consumer.node),
            value: pair.value.clone(),
            channels: amounts.iter().filter(|&&amount| amount > 0.0).count(),
            largest: amounts.iter().copied().fold(0.0, f64::max),
        };
        if absorbed.channels > 0 {
            apply(model, pair, &amounts)?;
        }
        report.absorbed.push(absorbed);
    }
    Ok(report)
}

/// The values from which biases can be absorbed, with the axis of their channels, in the order of the graph.
///
/// # Errors
/// `ExternalData` when a constant cannot be read.
///
/// ```
/// use fastforward_onnx::{graph::Model, rewrite::absorbable_values, shapes::ShapeTable};
/// # let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/digits/digits_mlp.onnx");
///
/// let model = Model::load(path.as_ref())?;
/// let values = absorbable_values(&model, &ShapeTable::default())?;
/// assert_eq!(values, [("g1".to_owned(), -1), ("g2".to_owned(), -1)]);
/// # Ok::<(), fastforward_onnx::Error>(())
/// ```
pub fn absorbable_values(model: &Model, shapes: &ShapeTable) -> Result<Vec<(String, isize)>> {
    let stated = ShapeTable::stated(model);
    let shapes = if shapes.iter().next().is_some() { shapes } else { &stated };
    let pairs = find(model, shapes)?.into_iter().filter_map(|found| found.pair.ok());
    Ok(pairs.map(|pair| (pair.value, -(pair.producer.axis.from_end as isize) - 1)).collect())
}

/// How to absorb biases.
#[derive(Clone, Debug)]
pub struct AbsorbOptions {
    /// How much is absorbed.
    pub absorption: Absorption,
    /// Whether a `Conv` or `Gemm` without a bias may get one.
    pub add_missing_biases: bool,
    /// The shapes of activations, beside those that the file states.
    pub shapes: ShapeTable,
}

impl Default for AbsorbOptions {
    /// What was never undercut, with new biases where there are none.
    fn default() -> Self {
        Self {
            absorption: Absorption::default(),
            add_missing_biases: true,
            shapes: ShapeTable::default(),
        }
    }
}

/// What bias absorption did, in the order of the graph.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct AbsorbReport {
    /// The pairs of layers between which biases can move.
    pub absorbed: Vec<AbsorbedBias>,
    /// The layers whose bias stays.
    pub kept: Vec<KeptBiasPair>,
}

/// A bias that moved from a layer to the next.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct AbsorbedBias {
    /// The layer whose bias became smaller.
    pub producer: String,
    /// The layer whose bias took it.
    pub consumer: String,
    /// The value that was observed.
    pub value: String,
    /// How many channels had something to absorb.
    pub channels: usize,
    /// The most that was absorbed from a channel.
    pub largest: f64,
}

/// A layer whose bias stays.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct KeptBiasPair {
    /// Its node.
    pub layer: String,
    /// Why.
    pub reason: String,
}

impl fmt::Display for AbsorbedBias {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "`{}` to `{}`: {} channels, up to {:.3}",
            self.producer, self.consumer, self.channels, self.largest
        )
    }
}

impl fmt::Display for KeptBiasPair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "bias of `{}` not absorbed: {}", self.layer, self.reason)
    }
}

struct Found {
    layer: usize,
    pair: std::result::Result<Pair, String>,
}

/// Two layers between which a bias may move.
struct Pair {
    producer: Layer,
    consumer: Layer,
    /// What the producer and its bias give, before the activation.
    value: String,
}

impl Pair {
    /// The node of a layer that would need a bias of its own first.
    fn without_bias(&self, model: &Model) -> Option<usize> {
        let nodes = [self.producer.node, self.consumer.node];
        let adds_none = |&node: &usize| {
            let node = &model.graph().node[node];
            !node.is_standard("MatMul") && node.input_at(2).is_none()
        };
        nodes.into_iter().find(adds_none)
    }
}

fn find(model: &Model, shapes: &ShapeTable) -> Result<Vec<Found>> {
    let index = model.index();
    let mut layers = BTreeMap::new();
    let mut found = Vec::new();
    for node in 0..model.graph().node.len() {
        if let Some(layer) = layer_at(model, node, shapes)? {
            layers.insert(node, layer);
        }
    }
    let is_layer = |node: usize| layers.contains_key(&node);
    for (&node, layer) in &layers {
        let pair = match layer {
            Err(reason) => Err(reason.clone()),
            Ok(layer) => match follow(model, &index, shapes, layer, &is_layer) {
                Err(reason) => Err(reason),
                Ok(path) => match &layers[&path.reader] {
                    Ok(reader) => pair(model, &index, layer, reader, &path)?,
                    Err(reason) => Err(reason.clone()),
                },
            },
        };
        found.push(Found { layer: node, pair });
    }
    Ok(found)
}

fn pair(
    model: &Model,
    index: &GraphIndex,
    producer: &Layer,
    consumer: &Layer,
    path: &Path,
) -> Result<std::result::Result<Pair, String>> {
    let graph = model.graph();
    let place = |node: &NodeProto| format!("`{}` ({})", node.label(), node.op_type());
    let mut value = graph.node[producer.node].output.first().cloned().unwrap_or_default();
    let (mut is_at_value, mut is_activated) = (true, false);
    for &position in &path.nodes {
        let node = &graph.node[position];
        let is_sum = match node.op_type() {
            "Add" => true,
            // A constant minus the value turns its sign.
            "Sub" => node.input_at(0).is_some_and(|name| model.constant(name).is_none()),
            _ => false,
        };
        // What is added before the activation decides with the bias what falls below 0: it is part of the value.
        if is_sum && is_at_value {
            value = node.output.first().cloned().unwrap_or_default();
            continue;
        }
        is_at_value = false;
        let passes = match node.op_type() {
            "Relu" | "LeakyRelu" | "PRelu" => !std::mem::replace(&mut is_activated, true),
            "Identity" | "Dropout" | "MaxPool" | "GlobalAveragePool" | "GlobalMaxPool"
            | "Flatten" | "Reshape" | "Squeeze" | "Unsqueeze" | "Transpose" | "ReduceMean"
            | "ReduceMax" | "ReduceMin" => true,
            "AveragePool" => !pads(node) || node.int_or("count_include_pad", 0) == 0,
            _ => is_sum && is_activated,
        };
        if !passes {
            return Ok(Err(format!("{} does not let a constant pass", place(node))));
        }
    }
    let reader = &graph.node[consumer.node];
    match reader.op_type() {
        "Conv" if pads(reader) => {
            return Ok(Err(format!(
                "{} pads its input with 0, which is no constant of the channel",
                place(reader)
            )));
        }
        "ConvTranspose" => {
            return Ok(Err(format!("{} reads less of it at the border", place(reader))));
        }
        _ => {}
    }
    let n_channels = producer.layout.outputs();
    let n_inputs = consumer.layout.inputs();
    let fits = path.axis.is_some_and(|axis| axis.from_end == consumer.axis.from_end);
    if !fits || !n_inputs.is_multiple_of(n_channels) {
        return Ok(Err(format!("{} does not read channels as channels", place(reader))));
    }
    for layer in [producer, consumer] {
        let label = graph.node[layer.node].label();
        match bias_of(model, index, layer)? {
            Ok(Some(_)) => {}
            Ok(None) => {
                return Ok(Err(format!(
                    "`{label}` adds no bias; `add_missing_biases` gives it one"
                )));
            }
            Err(reason) => return Ok(Err(format!("`{label}`: {reason}"))),
        }
    }
    Ok(Ok(Pair { producer: producer.clone(), consumer: consumer.clone(), value }))
}

/// Whether a window reads beyond the edges of its input.
fn pads(node: &NodeProto) -> bool {
    let is_automatic = node
        .find_attribute("auto_pad")
        .is_some_and(|mode| !matches!(mode.s(), b"" | b"NOTSET" | b"VALID"));
    let explicit =
        node.find_attribute("pads").is_some_and(|pads| pads.ints.iter().any(|&n| n != 0));
    is_automatic || explicit || node.int_or("ceil_mode", 0) != 0
}

fn apply(model: &mut Model, pair: Pair, amounts: &[f64]) -> Result<()> {
    let Pair { producer, consumer, .. } = pair;
    let change = |bias: &mut Bias, by: &dyn Fn(usize) -> f64| {
        for (channel, value) in bias.values.iter_mut().enumerate() {
            *value = (f64::from(*value) + by(channel) / bias.factor) as f32;
        }
    };
    let weight =
        model.constant(&consumer.weight).map(|one| one.to_f32()).transpose()?.unwrap_or_default();
    let block = consumer.layout.inputs() / amounts.len();
    let mut taken = vec![0.0; consumer.layout.outputs()];
    consumer.layout.for_each(|at, output, input| {
        taken[output] += f64::from(weight[at]) * amounts[input / block];
    });
    let node = &model.graph().node[consumer.node];
    let alpha = if node.is_standard("Gemm") { node.float_or("alpha", 1.0) } else { 1.0 };
    if let Ok(Some(mut bias)) = bias_of(model, &model.index(), &producer)? {
        change(&mut bias, &|channel| -amounts[channel]);
        set_bias(model, producer.dtype, &bias);
    }
    if let Ok(Some(mut bias)) = bias_of(model, &model.index(), &consumer)? {
        change(&mut bias, &|channel| f64::from(alpha) * taken[channel]);
        set_bias(model, consumer.dtype, &bias);
    }
    Ok(())
}
