//! Bias correction of a graph.

use std::collections::BTreeMap;
use std::fmt;

use fastforward_core::algorithms::bias_correction::{correction, correction_from_inputs};
use serde::Serialize;

use super::channels::channel_statistics;
use super::layer::{Bias, Layer, add_bias_node, bias_of, layer_at, set_bias};
use crate::calibrate::{Batch, Progress, RunOptions};
use crate::error::Result;
use crate::graph::Model;
use crate::placement::place;
use crate::shapes::ShapeTable;
use crate::simulate::{SimulateOptions, Simulated, simulate};
use crate::tree::{Role, Tree};

/// Takes the mean error of each layer with a quantized weight off its bias, as measured on data.
///
/// Layer by layer in the order of the graph, `b_c += E[y_c] - E[y^_c]`: `y` is what the layer and its bias give in
/// `float`, `y^` what they give in the simulation in which all layers before are quantized and corrected (see
/// [`correction`]). `batches` is called for each of the passes over the data: two, one for each layer, and one that
/// measures what is left. `progress` counts the layers.
///
/// `float` is the network before weights were chosen: `model` itself, as it was read, where its quantizers round to
/// nearest; where its weights are on their grids already they are no measure of what rounding did. Both have the same
/// nodes.
///
/// A convolution or `Gemm` without a bias gets one. A `MatMul` needs an addition of a constant behind it, see
/// [`add_missing_biases`]. Nodes keep their positions, so that `tree` stays a tree of `model`. Ranges of activations move
/// with the biases: calibrate them again where that matters.
///
/// # Errors
/// Those of [`simulate`] and [`channel_statistics`].
pub fn correct_biases<I: IntoIterator<Item = Result<Batch>>>(
    model: &mut Model,
    float: &Model,
    tree: &Tree,
    mut batches: impl FnMut() -> I,
    options: &CorrectOptions,
    progress: &mut dyn Progress,
) -> Result<BiasReport> {
    let mut report = BiasReport::default();
    let mut corrected = find(model, tree, &options.simulate.shapes, &mut report.kept)?;
    if corrected.is_empty() {
        return Ok(report);
    }
    let values: Vec<(&str, isize)> =
        corrected.iter().map(|one| (one.value.as_str(), one.axis)).collect();
    let float = channel_statistics(float, &values, batches(), &options.run)?;
    let mut working = simulate(model, tree, &options.simulate)?;
    let places = simulated_values(&working, &corrected);
    let all: Vec<(&str, isize)> =
        places.iter().zip(&corrected).map(|(name, one)| (name.as_str(), one.axis)).collect();
    let before = channel_statistics(&working.model, &all, batches(), &options.run)?;
    let total = Some(corrected.len());
    for (at, one) in corrected.iter_mut().enumerate() {
        // Nothing before the first layer has changed since `before` was measured.
        let now = match at {
            0 => vec![before[0].clone()],
            _ => channel_statistics(&working.model, &all[at..=at], batches(), &options.run)?,
        };
        let change = correction(&float[at], &now[0])?;
        one.apply(model, &change);
        one.apply_to_simulation(&mut working.model, &places[at], &change);
        progress.batch(at + 1, total);
    }
    let last = simulate(model, tree, &options.simulate)?;
    let places = simulated_values(&last, &corrected);
    let all: Vec<(&str, isize)> =
        places.iter().zip(&corrected).map(|(name, one)| (name.as_str(), one.axis)).collect();
    let after = channel_statistics(&last.model, &all, batches(), &options.run)?;
    for (at, one) in corrected.into_iter().enumerate() {
        let [before, after] = [&before[at], &after[at]].map(|seen| correction(&float[at], seen));
        let (before, after) = (rms(&before?), rms(&after?));
        report.corrected.push(one.reported(model, before, Some(after)));
    }
    Ok(report)
}

/// The same from the error of the weights and the means of what each layer reads, without executing anything.
///
/// A bias becomes that of `float`, the network before weights were chosen, and the error that the weights of `model` have
/// against those of `float`, as quantized by `tree`: what was taken off before is not taken off twice. `input_means` holds
/// the mean of each channel of the values that the layers read, in float; see [`correction_from_inputs`] for what this
/// leaves out. A layer whose input is not among them is kept.
///
/// # Errors
/// `Quantizer` where a quantizer of `tree` has no range or does not fit; `ExternalData` when a constant cannot be read;
/// `Core` for means that do not fit a layer.
pub fn correct_biases_from_inputs(
    model: &mut Model,
    float: &Model,
    tree: &Tree,
    input_means: &BTreeMap<String, Vec<f64>>,
    shapes: &ShapeTable,
) -> Result<BiasReport> {
    let mut report = BiasReport::default();
    let found = find(model, tree, shapes, &mut report.kept)?;
    let mut changes = Vec::new();
    let placement = place(model, tree)?;
    for one in found {
        let node = &model.graph().node[one.layer.node];
        let input = node.input_at(0).unwrap_or("");
        let is_weight = |reader: &crate::placement::Reader| {
            reader.node.graph.is_empty()
                && reader.node.index == one.layer.node
                && reader.position == 1
        };
        let placed = placement.constants.iter().find(|placed| placed.readers.iter().any(is_weight));
        let kept = |reason: String| KeptBias { layer: node.label().to_owned(), reason };
        let (Some(means), Some(placed)) = (input_means.get(input), placed) else {
            report.kept.push(kept(format!("no means of its input `{input}` are given")));
            continue;
        };
        let quantized = placed.fake_quantized()?;
        let original = correctable(float, tree, one.layer.node, shapes)?.and_then(Result::ok);
        let weight = float.constant(placed.constant.name()).map(|weight| weight.to_f32());
        let (Some(original), Some(weight)) = (original, weight.transpose()?) else {
            report.kept.push(kept("the float network has no such layer".to_owned()));
            continue;
        };
        if weight.len() != quantized.len() || original.bias.values.len() != one.bias.values.len() {
            report.kept.push(kept("the float network has another shape there".to_owned()));
            continue;
        }
        let layout = one.layer.layout;
        let columns = layout.inputs() / layout.groups;
        let mut error = vec![0.0; layout.outputs() * columns];
        layout.for_each(|at, output, input| {
            error[output * columns + input % columns] +=
                f64::from(weight[at]) - f64::from(quantized[at]);
        });
        error.iter_mut().for_each(|error| *error *= one.alpha(model));
        let change = correction_from_inputs(&error, layout.outputs(), layout.groups, means)?;
        let bias = Bias { values: original.bias.values, ..one.bias };
        changes.push((Correctable { bias, ..one }, change));
    }
    drop(placement);
    for (mut one, change) in changes {
        one.apply(model, &change);
        report.corrected.push(one.reported(model, rms(&change), None));
    }
    Ok(report)
}

/// Gives each layer that adds no bias one of zeros, so that biases can be corrected: a third input, or an `Add` behind a
/// `MatMul`. Returns the names of the biases.
///
/// Call it before a tree is made of the model: nodes may move.
///
/// # Errors
/// `ExternalData` when a constant cannot be read.
///
/// ```
/// use fastforward_onnx::{graph::Model, rewrite::add_missing_biases};
/// # let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/fashion/fashion_cnn.onnx");
///
/// let mut model = Model::load(path.as_ref())?; // Its convolutions leave biases to batch normalizations.
/// assert_eq!(add_missing_biases(&mut model)?[..2], ["conv1.bias", "dw.bias"]);
/// # Ok::<(), fastforward_onnx::Error>(())
/// ```
pub fn add_missing_biases(model: &mut Model) -> Result<Vec<String>> {
    let mut added = Vec::new();
    let mut node = 0;
    while node < model.graph().node.len() {
        let stated = ShapeTable::stated(model);
        if let Some(Ok(layer)) = layer_at(model, node, &stated)? {
            let index = model.index();
            match bias_of(model, &index, &layer)? {
                Ok(Some(bias)) if bias.name.is_none() => {
                    added.extend(set_bias(model, layer.dtype, &bias));
                }
                Ok(None) => added.extend(add_bias_node(model, &layer)),
                Ok(Some(_)) | Err(_) => {}
            }
        }
        node += 1;
    }
    Ok(added)
}

/// How to correct biases.
#[derive(Clone, Debug, Default)]
pub struct CorrectOptions {
    /// How the quantized graph is simulated; its shapes are used to find channels, too.
    pub simulate: SimulateOptions,
    /// How graphs are executed.
    pub run: RunOptions,
}

/// What bias correction did, in the order of the graph.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct BiasReport {
    /// The layers whose bias was changed.
    pub corrected: Vec<CorrectedBias>,
    /// The layers with a quantized weight whose bias was not changed.
    pub kept: Vec<KeptBias>,
}

/// A bias that was changed.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct CorrectedBias {
    /// The node of the layer.
    pub layer: String,
    /// The constant.
    pub bias: String,
    /// The root of the mean square, over channels, of the error of the mean of the layer's result: before any bias was
    /// changed, or as the weights' error has it where nothing is executed.
    pub shift_before: f64,
    /// The same with all biases changed; `None` where nothing is executed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shift_after: Option<f64>,
}

/// A layer whose bias stays as it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct KeptBias {
    /// The node of the layer.
    pub layer: String,
    /// Why.
    pub reason: String,
}

impl fmt::Display for CorrectedBias {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}`: mean off by {:.2e}", self.layer, self.shift_before)?;
        match self.shift_after {
            Some(after) => write!(f, ", {after:.2e} after"),
            None => f.write_str(", taken off"),
        }
    }
}

impl fmt::Display for KeptBias {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}` not corrected: {}", self.layer, self.reason)
    }
}

/// A layer to correct.
pub(crate) struct Correctable {
    layer: Layer,
    bias: Bias,
    /// What the layer and its bias give, and the axis of its channels.
    value: String,
    axis: isize,
}

impl Correctable {
    /// The bias of each output channel when `change` is added to the products with the weight.
    pub(crate) fn corrected(&self, model: &Model, change: &[f32]) -> Vec<f32> {
        let factor = self.alpha(model) / self.bias.factor;
        let values = self.bias.values.iter().zip(change);
        values
            .map(|(value, change)| (f64::from(*value) + f64::from(*change) * factor) as f32)
            .collect()
    }

    /// What the node multiplies its products with: the `alpha` of a `Gemm`.
    fn alpha(&self, model: &Model) -> f64 {
        let node = &model.graph().node[self.layer.node];
        f64::from(if node.is_standard("Gemm") { node.float_or("alpha", 1.0) } else { 1.0 })
    }

    /// The constant that holds the bias, if there is one.
    pub(crate) fn constant(&self) -> Option<&str> {
        self.bias.name.as_deref()
    }

    /// Gives the layer this bias; returns the name of the constant.
    pub(crate) fn set(mut self, model: &mut Model, values: &[f32]) -> Option<String> {
        self.bias.values = values.to_vec();
        set_bias(model, self.layer.dtype, &self.bias)
    }

    fn apply(&mut self, model: &mut Model, change: &[f64]) {
        let factor = self.bias.factor;
        for (value, change) in self.bias.values.iter_mut().zip(change) {
            *value = (f64::from(*value) + change / factor) as f32;
        }
        if let Some(name) = set_bias(model, self.layer.dtype, &self.bias) {
            self.bias.name = Some(name);
        }
    }

    /// Changes the bias as the simulation has it; `value` is its name for the result before it is quantized.
    fn apply_to_simulation(&self, simulated: &mut Model, value: &str, change: &[f64]) {
        let Some(node) = simulated.index().producer(value) else { return };
        let name = simulated.graph().node[node].input_at(self.bias.input).map(str::to_owned);
        let current = name.as_deref().and_then(|name| simulated.constant(name)?.to_f32().ok());
        let n_channels = self.bias.values.len();
        let mut values = match current.as_deref() {
            Some([single]) => vec![*single; n_channels],
            Some(values) => values.to_vec(),
            None => vec![0.0; n_channels],
        };
        for (value, change) in values.iter_mut().zip(change) {
            *value = (f64::from(*value) + change / self.bias.factor) as f32;
        }
        let bias = Bias { node, name, values, ..self.bias.clone() };
        set_bias(simulated, self.layer.dtype, &bias);
    }

    fn reported(self, model: &Model, before: f64, after: Option<f64>) -> CorrectedBias {
        CorrectedBias {
            layer: model.graph().node[self.layer.node].label().to_owned(),
            bias: self.bias.name.unwrap_or_default(),
            shift_before: before,
            shift_after: after,
        }
    }
}

/// The layers of the main graph with a quantized weight and a bias that can be changed.
fn find(
    model: &Model,
    tree: &Tree,
    shapes: &ShapeTable,
    kept: &mut Vec<KeptBias>,
) -> Result<Vec<Correctable>> {
    let mut found = Vec::new();
    for site in tree.set_sites() {
        if site.role != Role::Weight || !site.node.graph.is_empty() {
            continue;
        }
        match correctable(model, tree, site.node.index, shapes)? {
            Some(Ok(one)) => found.push(one),
            Some(Err(reason)) => {
                let layer = model.graph().node[site.node.index].label().to_owned();
                kept.push(KeptBias { layer, reason });
            }
            None => {}
        }
    }
    Ok(found)
}

/// The layer at a node of the main graph with a bias that can be changed, or why it cannot be; `None` where no layer is.
pub(crate) fn correctable(
    model: &Model,
    tree: &Tree,
    node: usize,
    shapes: &ShapeTable,
) -> Result<Option<std::result::Result<Correctable, String>>> {
    let stated = ShapeTable::stated(model);
    let shapes = if shapes.iter().next().is_some() { shapes } else { &stated };
    let layer = match layer_at(model, node, shapes)? {
        None => return Ok(None),
        Some(Err(reason)) => return Ok(Some(Err(reason))),
        Some(Ok(layer)) => layer,
    };
    let bias = match bias_of(model, &model.index(), &layer)? {
        Ok(Some(bias)) => bias,
        Ok(None) => {
            let reason = "it adds no bias; `add_missing_biases` gives it one";
            return Ok(Some(Err(reason.to_owned())));
        }
        Err(reason) => return Ok(Some(Err(reason))),
    };
    let has_quantizer = tree.set_sites().any(|other| {
        other.node.graph.is_empty()
            && other.node.index == bias.node
            && other.position == bias.input
            && matches!(other.role, Role::Bias | Role::Constant)
    });
    if has_quantizer {
        return Ok(Some(Err("its bias has a quantizer of its own".to_owned())));
    }
    let value = model.graph().node[bias.node].output[0].clone();
    let axis = -(layer.axis.from_end as isize) - 1;
    Ok(Some(Ok(Correctable { layer, bias, value, axis })))
}

/// What the simulation calls the results before they are quantized.
fn simulated_values(simulated: &Simulated, corrected: &[Correctable]) -> Vec<String> {
    corrected.iter().map(|one| simulated.unquantized(&one.value).to_owned()).collect()
}

fn rms(values: &[f64]) -> f64 {
    let sum: f64 = values.iter().map(|value| value * value).sum();
    (sum / values.len().max(1) as f64).sqrt()
}
