//! Smoothing of a graph: ranges moved from activations to weights.

use std::collections::BTreeMap;
use std::fmt;

use fastforward_core::algorithms::ScaleRounding;
use fastforward_core::algorithms::smoothing::smoothing_scales;
use serde::Serialize;

use super::layer::{
    Bias, Layer, add_constant, free_name, is_read_once, layer_at, own_bias, scaled, set_bias,
};
use crate::dtype::DType;
use crate::error::Result;
use crate::graph::{GraphIndex, Model, data};
use crate::proto::node;
use crate::shapes::ShapeTable;

/// Divides the channels of activations by factors and multiplies the weights that read them, so that both are easy to
/// quantize (SmoothQuant).
///
/// `activation_max` holds the largest magnitude of each channel of the values to smooth, by name:
/// [`smoothable_values`] says which there are, [`channel_statistics`](super::channel_statistics) measures them, in float.
/// The factors are those of [`smoothing_scales`], with the largest weight among all layers that read a value. They go
/// into what computes the value: the scale and shift of a normalization, the constant of a product, the weight and bias
/// of a layer, also through additions of constants and `Relu`. Where none of these is there, and `insert` is set, a
/// product with their reciprocals is inserted.
///
/// With powers of two, which are the default, the graph computes the very same floats as before, where no value leaves the
/// range of normal floats. A channel whose parameters a factor would push beyond the range of their type keeps its
/// factor at 1. Values are changed one after another, so that a weight that several factors reach has them all. Nested
/// graphs are left alone.
///
/// # Errors
/// `ExternalData` when a constant cannot be read; `Core` when `alpha` is out of bounds, or the maxima do not fit the
/// channels of a value. Values that cannot be smoothed are no error; the report says why.
pub fn smooth(
    model: &mut Model,
    activation_max: &BTreeMap<String, Vec<f32>>,
    options: &SmoothOptions,
) -> Result<SmoothReport> {
    let mut report = SmoothReport::default();
    let stated = ShapeTable::stated(model);
    let shapes = if options.shapes.iter().next().is_some() { &options.shapes } else { &stated };
    for (value, _) in read_by_layers(model, shapes)? {
        let keep = |reason: String| KeptValue { value: value.clone(), reason };
        let Some(maxima) = activation_max.get(&value) else {
            report.kept.push(keep("its maxima are not given".to_owned()));
            continue;
        };
        let index = model.index();
        let readers = match readers(model, &index, shapes, &value)? {
            Ok(readers) => readers,
            Err(reason) => {
                report.kept.push(keep(reason));
                continue;
            }
        };
        let n_channels = readers[0].layout.inputs();
        let source = match source(model, &index, shapes, &value, &readers[0], n_channels)? {
            Ok(source) => source,
            Err(_) if options.insert => Source::default(),
            Err(reason) => {
                report.kept.push(keep(reason));
                continue;
            }
        };
        report.smoothed.push(apply(model, &value, maxima, &readers, source, options)?);
    }
    Ok(report)
}

/// The values that layers with constant weights read, with the axis of their channels, in the order of the graph.
///
/// # Errors
/// `ExternalData` when a constant cannot be read.
///
/// ```
/// use fastforward_onnx::{graph::Model, rewrite::smoothable_values, shapes::ShapeTable};
/// # let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/digits/digits_mlp.onnx");
///
/// let model = Model::load(path.as_ref())?;
/// let values = smoothable_values(&model, &ShapeTable::default())?;
/// assert_eq!(values[1..], [("r1".to_owned(), -1), ("r2".to_owned(), -1)]);
/// # Ok::<(), fastforward_onnx::Error>(())
/// ```
pub fn smoothable_values(model: &Model, shapes: &ShapeTable) -> Result<Vec<(String, isize)>> {
    let stated = ShapeTable::stated(model);
    read_by_layers(model, if shapes.iter().next().is_some() { shapes } else { &stated })
}

/// How to smooth.
#[derive(Clone, Debug)]
pub struct SmoothOptions {
    /// How much of the ranges goes to the weights: 0 nothing that the activations have, 1 all.
    pub alpha: f64,
    /// Which factors are used.
    pub rounding: ScaleRounding,
    /// Whether a product may be inserted where no parameters can take the factors.
    pub insert: bool,
    /// The shapes of activations, beside those that the file states.
    pub shapes: ShapeTable,
}

impl Default for SmoothOptions {
    /// Half and half, powers of two, nothing inserted.
    fn default() -> Self {
        Self {
            alpha: 0.5,
            rounding: ScaleRounding::default(),
            insert: false,
            shapes: ShapeTable::default(),
        }
    }
}

/// What smoothing did, in the order of the graph.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct SmoothReport {
    /// The values whose channels were divided.
    pub smoothed: Vec<SmoothedValue>,
    /// The values that stay as they are.
    pub kept: Vec<KeptValue>,
}

/// A value whose channels were divided.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SmoothedValue {
    /// The value.
    pub value: String,
    /// The node whose parameters took the factors; the node that was inserted.
    pub producer: String,
    /// Whether the producer was inserted.
    pub is_inserted: bool,
    /// The layers whose weights were multiplied.
    pub consumers: Vec<String>,
    /// How many channels it has.
    pub channels: usize,
    /// The largest magnitude of the value divided by the mean one of its channels: how much of a common grid one channel
    /// takes from the others.
    pub outlier_before: f64,
    /// The same, after.
    pub outlier_after: f64,
    /// The smallest factor by which a channel was divided.
    pub min_scale: f64,
    /// The largest.
    pub max_scale: f64,
    /// How many channels kept the factor 1, because another would have pushed a parameter out of its type's range.
    pub out_of_range: usize,
}

/// A value that stays as it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct KeptValue {
    /// The value.
    pub value: String,
    /// Why.
    pub reason: String,
}

impl fmt::Display for SmoothedValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "`{}` between `{}` and `{}`: largest channel {:.1} -> {:.1} times the mean",
            self.value,
            self.producer,
            self.consumers.join("`, `"),
            self.outlier_before,
            self.outlier_after
        )
    }
}

impl fmt::Display for KeptValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}` not smoothed: {}", self.value, self.reason)
    }
}

fn read_by_layers(model: &Model, shapes: &ShapeTable) -> Result<Vec<(String, isize)>> {
    let mut values: Vec<(String, isize)> = Vec::new();
    for node in 0..model.graph().node.len() {
        if let Some(Ok(layer)) = layer_at(model, node, shapes)? {
            let Some(value) = model.graph().node[node].input_at(0) else { continue };
            if values.iter().all(|(known, _)| known != value) && model.constant(value).is_none() {
                values.push((value.to_owned(), -(layer.axis.from_end as isize) - 1));
            }
        }
    }
    Ok(values)
}

/// The layers that read a value, if they are all that do and agree on its channels.
fn readers(
    model: &Model,
    index: &GraphIndex,
    shapes: &ShapeTable,
    value: &str,
) -> Result<std::result::Result<Vec<Layer>, String>> {
    if index.is_output(value) {
        return Ok(Err("the graph returns it".to_owned()));
    }
    let mut readers: Vec<Layer> = Vec::new();
    for reader in index.consumers(value) {
        let node = &model.graph().node[reader.node];
        let layer = match layer_at(model, reader.node, shapes)? {
            Some(Ok(layer)) if reader.input == Some(0) => layer,
            Some(Err(reason)) => return Ok(Err(format!("`{}` reads it: {reason}", node.label()))),
            _ => {
                return Ok(Err(format!("`{}` ({}) reads it, too", node.label(), node.op_type())));
            }
        };
        if !is_read_once(index, &layer.weight) {
            return Ok(Err(format!("the weight `{}` is used elsewhere too", layer.weight)));
        }
        let weight = model.constant(&layer.weight).map(|one| one.to_f32()).transpose()?;
        if !weight.unwrap_or_default().iter().all(|value| value.is_finite()) {
            return Ok(Err(format!("the weight `{}` is not finite", layer.weight)));
        }
        if let Some(first) = readers.first()
            && (first.axis.from_end, first.layout.inputs())
                != (layer.axis.from_end, layer.layout.inputs())
        {
            return Ok(Err("its readers differ in what a channel is".to_owned()));
        }
        readers.push(layer);
    }
    Ok(Ok(readers))
}

/// Parameters that take the factors of a value.
#[derive(Default)]
struct Source {
    /// The node at the beginning; `None` where it has to be inserted.
    node: Option<usize>,
    /// The layer that it is, if it is one.
    layer: Option<Layer>,
    /// Constants with a value for each channel, with their types.
    constants: Vec<(Bias, DType)>,
}

/// What computes a value up to factors for each channel, or why there is nothing.
fn source(
    model: &Model,
    index: &GraphIndex,
    shapes: &ShapeTable,
    value: &str,
    reader: &Layer,
    n_channels: usize,
) -> Result<std::result::Result<Source, String>> {
    let graph = model.graph();
    let from_end = reader.axis.from_end;
    let mut source = Source::default();
    let mut value = value.to_owned();
    let mut is_first = true;
    loop {
        let Some(position) = index.producer(&value) else {
            return Ok(Err(format!("`{value}` is computed by no node")));
        };
        // What the layers read has been checked already; what leads to it must lead nowhere else.
        if !is_first && (index.consumers(&value).len() != 1 || index.is_output(&value)) {
            return Ok(Err(format!("`{value}` is used elsewhere too")));
        }
        is_first = false;
        let node = &graph.node[position];
        let place = format!("`{}` ({})", node.label(), node.op_type());
        let is_standard = matches!(node.domain(), "" | "ai.onnx");
        if node.output.first() != Some(&value) || !is_standard {
            return Ok(Err(format!("{place} has no parameters that could take the factors")));
        }
        match node.op_type() {
            "Relu" | "LeakyRelu" | "Identity" => {
                value = node.input_at(0).unwrap_or("").to_owned();
                continue;
            }
            "Conv" | "ConvTranspose" | "Gemm" | "MatMul" => {
                let layer = match layer_at(model, position, shapes)? {
                    Some(Ok(layer)) => layer,
                    Some(Err(reason)) => return Ok(Err(format!("{place}: {reason}"))),
                    None => return Ok(Err(place)),
                };
                let fits = layer.layout.outputs() == n_channels && layer.axis.from_end == from_end;
                if !fits || !is_read_once(index, &layer.weight) {
                    return Ok(Err(format!(
                        "{place} has no weight of its own with {n_channels} channels"
                    )));
                }
                match own_bias(model, &layer)? {
                    Ok(bias) => {
                        let named = bias.filter(|bias| bias.name.is_some());
                        source.constants.extend(named.map(|bias| (bias, layer.dtype)));
                    }
                    Err(reason) => return Ok(Err(format!("{place}: {reason}"))),
                }
                source.layer = Some(layer);
                source.node = Some(position);
                return Ok(Ok(source));
            }
            _ => {}
        }
        let parameter = |input: usize| per_channel(model, position, input, from_end, n_channels);
        let is_second = reader.axis.index() == Some(1);
        let last_axis = matches!(node.int_or("axis", -1), -1) && from_end == 0;
        let needed: &[usize] = match node.op_type() {
            "LayerNormalization" if last_axis => &[1, 2],
            "RMSNormalization" if last_axis => &[1],
            "BatchNormalization" if is_second && node.int_or("training_mode", 0) == 0 => &[1, 2],
            "InstanceNormalization" if is_second => &[1, 2],
            // Before, there is one number for each group.
            "GroupNormalization" if is_second && model.opset("") >= Some(21) => &[1, 2],
            "Add" | "Sub" | "Mul" => {
                let constant = [1, 0].into_iter().find(|&input| {
                    node.input_at(input).is_some_and(|name| model.constant(name).is_some())
                });
                let found = match constant {
                    Some(input) => parameter(input)?.map(|found| (input, found)),
                    None => None,
                };
                let Some((input, found)) = found else {
                    return Ok(Err(format!("{place} has no constant for each channel")));
                };
                source.constants.push(found);
                if node.op_type() == "Mul" {
                    source.node = Some(position);
                    return Ok(Ok(source));
                }
                value = node.input_at(1 - input).unwrap_or("").to_owned();
                continue;
            }
            _ => {
                return Ok(Err(format!("{place} has no parameters that could take the factors")));
            }
        };
        for &input in needed {
            if node.input_at(input).is_none() {
                continue; // A normalization without a shift.
            }
            match parameter(input)? {
                Some(found) => source.constants.push(found),
                None => {
                    return Ok(Err(format!("{place} has parameters that are not constant")));
                }
            }
        }
        source.node = Some(position);
        return Ok(Ok(source));
    }
}

/// The constant that a node reads, if it holds one number for each channel and nothing else.
fn per_channel(
    model: &Model,
    position: usize,
    input: usize,
    from_end: usize,
    n_channels: usize,
) -> Result<Option<(Bias, DType)>> {
    let node = &model.graph().node[position];
    let name = node.input_at(input).unwrap_or("");
    let Some(constant) = model.constant(name) else { return Ok(None) };
    let info = constant.info()?;
    let is_norm = node.op_type().ends_with("Normalization");
    let axis = match is_norm {
        true => Some(0), // Parameters of normalizations have one axis, that of channels.
        false => info.shape.len().checked_sub(from_end + 1),
    };
    let len: usize = info.shape.iter().product();
    if len != n_channels || axis.and_then(|axis| info.shape.get(axis)) != Some(&n_channels) {
        return Ok(None);
    }
    if !matches!(info.dtype, DType::F32 | DType::F16 | DType::BF16) {
        return Ok(None);
    }
    let bias = Bias {
        node: position,
        input,
        name: Some(name.to_owned()),
        shape: info.shape,
        values: constant.to_f32()?,
        factor: 1.0,
    };
    Ok(Some((bias, info.dtype)))
}

fn apply(
    model: &mut Model,
    value: &str,
    maxima: &[f32],
    readers: &[Layer],
    source: Source,
    options: &SmoothOptions,
) -> Result<SmoothedValue> {
    let weights = |layer: &Layer, model: &Model| -> Result<Vec<f32>> {
        Ok(model.constant(&layer.weight).map(|one| one.to_f32()).transpose()?.unwrap_or_default())
    };
    let n_channels = readers[0].layout.inputs();
    let mut weight_max = vec![0.0f32; n_channels];
    for layer in readers {
        let weight = weights(layer, model)?;
        layer.layout.for_each(|at, _, input| {
            weight_max[input] = weight_max[input].max(weight[at].abs());
        });
    }
    let mut scales = smoothing_scales(maxima, &weight_max, options.alpha, options.rounding)?;
    let mut out_of_range = 0;
    // Everything that changes: weights with their layers, constants, and the reciprocals to insert.
    let (new_weights, constants, reciprocals) = loop {
        let mut bad = vec![false; n_channels];
        let mut new_weights = Vec::new();
        let each = readers.iter().map(|layer| (layer, true));
        for (layer, is_reader) in each.chain(source.layer.iter().map(|layer| (layer, false))) {
            let mut weight = weights(layer, model)?;
            layer.layout.for_each(|at, output, input| {
                let channel = if is_reader { input } else { output };
                let factor = if is_reader { scales[channel] } else { 1.0 / scales[channel] };
                match scaled(weight[at], factor, layer.dtype, options.rounding) {
                    Some(new) => weight[at] = new,
                    None => bad[channel] = true,
                }
            });
            new_weights.push((layer, weight));
        }
        let mut constants = Vec::new();
        for (bias, dtype) in &source.constants {
            let mut bias = bias.clone();
            for (channel, value) in bias.values.iter_mut().enumerate() {
                match scaled(*value, 1.0 / scales[channel], *dtype, options.rounding) {
                    Some(new) => *value = new,
                    None => bad[channel] = true,
                }
            }
            constants.push((bias, *dtype));
        }
        let mut reciprocals = vec![1.0; n_channels];
        for (channel, reciprocal) in reciprocals.iter_mut().enumerate() {
            match scaled(1.0, 1.0 / scales[channel], readers[0].dtype, options.rounding) {
                Some(new) => *reciprocal = new,
                None => bad[channel] |= source.node.is_none(),
            }
        }
        let mut n_bad = 0;
        for (channel, scale) in scales.iter_mut().enumerate() {
            if bad[channel] && *scale != 1.0 {
                *scale = 1.0;
                n_bad += 1;
            }
        }
        if n_bad == 0 {
            break (new_weights, constants, reciprocals);
        }
        out_of_range += n_bad;
    };
    for (layer, weight) in new_weights {
        if let Some(new) = data::float_tensor(&layer.weight, layer.dtype, &layer.shape, &weight) {
            model.set_constant(new);
        }
    }
    for (bias, dtype) in constants {
        set_bias(model, dtype, &bias);
    }
    let consumers =
        readers.iter().map(|layer| model.graph().node[layer.node].label().to_owned()).collect();
    let producer = match source.node {
        Some(node) => model.graph().node[node].label().to_owned(),
        None => insert(model, value, readers, &reciprocals),
    };
    let outlier = |scales: &dyn Fn(usize) -> f64| {
        let of_channel = |(channel, max): (usize, &f32)| f64::from(*max) / scales(channel);
        let values = || maxima.iter().enumerate().map(of_channel);
        let mean = values().sum::<f64>() / n_channels as f64;
        if mean > 0.0 { values().fold(0.0, f64::max) / mean } else { 1.0 }
    };
    Ok(SmoothedValue {
        value: value.to_owned(),
        producer,
        is_inserted: source.node.is_none(),
        consumers,
        channels: n_channels,
        outlier_before: outlier(&|_| 1.0),
        outlier_after: outlier(&|channel| scales[channel]),
        min_scale: scales.iter().copied().fold(f64::INFINITY, f64::min),
        max_scale: scales.iter().copied().fold(0.0, f64::max),
        out_of_range,
    })
}

/// Puts a product before the readers of a value; returns its name.
fn insert(model: &mut Model, value: &str, readers: &[Layer], reciprocals: &[f32]) -> String {
    let first = readers.iter().map(|layer| layer.node).min().unwrap_or(0);
    let mut shape = vec![1; readers[0].axis.from_end + 1];
    shape[0] = reciprocals.len();
    let constant = free_name(model, &format!("{value}_smoothing"));
    if let Some(tensor) = data::float_tensor(&constant, readers[0].dtype, &shape, reciprocals) {
        add_constant(model, tensor);
    }
    let smoothed = free_name(model, &format!("{value}_smoothed"));
    let name = free_name(model, &format!("{value}_smooth"));
    for layer in readers {
        model.graph_mut().node[layer.node].input[0].clone_from(&smoothed);
    }
    let product = node("Mul", &name, &[value, &constant], &[&smoothed]);
    model.graph_mut().node.insert(first, product);
    name
}
