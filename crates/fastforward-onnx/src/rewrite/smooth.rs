//! Smoothing of a graph: ranges moved from activations to weights.

use std::collections::BTreeMap;
use std::fmt;

use fastforward_core::algorithms::ScaleRounding;
use fastforward_core::algorithms::smoothing::smoothing_scales;
use serde::Serialize;

use super::layer::Layer;
use super::migrate::{Source, move_factors, read_by_layers, readers, source, weight_of};
use crate::error::Result;
use crate::graph::Model;
use crate::shapes::ShapeTable;

/// Divides the channels of activations by factors and multiplies the weights that read them, so that both are easy to
/// quantize (SmoothQuant).
///
/// `activation_max` holds the largest magnitude of each channel of the values to smooth, by name:
/// [`smoothable_values`] says which there are, [`channel_statistics`](super::channel_statistics) measures them, in float.
/// The factors are those of [`smoothing_scales`], with the largest weight among all layers that read a value. They go
/// into what computes the value: the scale and shift of a normalization, the constant of a product, the weight and bias
/// of a layer, also through additions of constants, `Relu` and pooling. Where none of these is there, and `insert` is set, a
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
        report.smoothed.push(apply(model, &value, maxima, &readers, &source, options)?);
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

fn apply(
    model: &mut Model,
    value: &str,
    maxima: &[f32],
    readers: &[Layer],
    source: &Source,
    options: &SmoothOptions,
) -> Result<SmoothedValue> {
    let n_channels = readers[0].layout.inputs();
    let mut weight_max = vec![0.0f32; n_channels];
    for layer in readers {
        let weight = weight_of(model, layer)?;
        layer.layout.for_each(|at, _, input| {
            weight_max[input] = weight_max[input].max(weight[at].abs());
        });
    }
    let mut scales = smoothing_scales(maxima, &weight_max, options.alpha, options.rounding)?;
    let consumers =
        readers.iter().map(|layer| model.graph().node[layer.node].label().to_owned()).collect();
    let moved = move_factors(model, value, readers, source, &mut scales, options.rounding)?;
    let outlier = |scales: &dyn Fn(usize) -> f64| {
        let of_channel = |(channel, max): (usize, &f32)| f64::from(*max) / scales(channel);
        let values = || maxima.iter().enumerate().map(of_channel);
        let mean = values().sum::<f64>() / n_channels as f64;
        if mean > 0.0 { values().fold(0.0, f64::max) / mean } else { 1.0 }
    };
    Ok(SmoothedValue {
        value: value.to_owned(),
        producer: moved.producer,
        is_inserted: source.node.is_none(),
        consumers,
        channels: n_channels,
        outlier_before: outlier(&|_| 1.0),
        outlier_after: outlier(&|channel| scales[channel]),
        min_scale: scales.iter().copied().fold(f64::INFINITY, f64::min),
        max_scale: scales.iter().copied().fold(0.0, f64::max),
        out_of_range: moved.out_of_range,
    })
}
