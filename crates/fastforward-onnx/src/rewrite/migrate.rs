//! Factors moved from the channels of a value into the parameters before it and the weights behind it.

use fastforward_core::algorithms::ScaleRounding;

use super::layer::{
    Bias, Layer, add_constant, free_name, is_read_once, layer_at, own_bias, scaled, set_bias,
};
use crate::dtype::DType;
use crate::error::Result;
use crate::graph::{GraphIndex, Model, data};
use crate::proto::node;
use crate::shapes::ShapeTable;

/// What moving factors did.
pub(super) struct Moved {
    /// The node whose parameters took them; the product that was inserted.
    pub(super) producer: String,
    /// How many channels kept the factor 1, because another would have pushed a parameter out of its type's range.
    pub(super) out_of_range: usize,
}

/// Divides the channels of `value` by `scales` and multiplies the weights that read it. Where `source` has no node, a product
/// with the reciprocals is inserted. A channel whose parameters a factor would push beyond the range of their type has
/// its factor set to 1.
///
/// # Errors
/// `ExternalData` when a constant cannot be read.
pub(super) fn move_factors(
    model: &mut Model,
    value: &str,
    readers: &[Layer],
    source: &Source,
    scales: &mut [f64],
    rounding: ScaleRounding,
) -> Result<Moved> {
    let n_channels = scales.len();
    let mut out_of_range = 0;
    // Everything that changes: weights with their layers, constants, and the reciprocals to insert.
    let (new_weights, constants, reciprocals) = loop {
        let mut bad = vec![false; n_channels];
        let mut new_weights = Vec::new();
        let each = readers.iter().map(|layer| (layer, true));
        for (layer, is_reader) in each.chain(source.layer.iter().map(|layer| (layer, false))) {
            let mut weight = weight_of(model, layer)?;
            layer.layout.for_each(|at, output, input| {
                let channel = if is_reader { input } else { output };
                let factor = if is_reader { scales[channel] } else { 1.0 / scales[channel] };
                match scaled(weight[at], factor, layer.dtype, rounding) {
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
                match scaled(*value, 1.0 / scales[channel], *dtype, rounding) {
                    Some(new) => *value = new,
                    None => bad[channel] = true,
                }
            }
            constants.push((bias, *dtype));
        }
        let mut reciprocals = vec![1.0; n_channels];
        for (channel, reciprocal) in reciprocals.iter_mut().enumerate() {
            match scaled(1.0, 1.0 / scales[channel], readers[0].dtype, rounding) {
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
        if let Some(new) =
            data::tensor_from_floats(&layer.weight, layer.dtype, &layer.shape, &weight)
        {
            model.set_constant(new);
        }
    }
    for (bias, dtype) in constants {
        set_bias(model, dtype, &bias);
    }
    let producer = match source.node {
        Some(node) => model.graph().node[node].label().to_owned(),
        None => insert(model, value, readers, &reciprocals),
    };
    Ok(Moved { producer, out_of_range })
}

/// The weight of a layer as the model has it now.
pub(super) fn weight_of(model: &Model, layer: &Layer) -> Result<Vec<f32>> {
    Ok(model.constant(&layer.weight).map(|one| one.to_f32()).transpose()?.unwrap_or_default())
}

/// The values that layers with constant weights read, with the axis of their channels, in the order of the graph.
pub(super) fn read_by_layers(model: &Model, shapes: &ShapeTable) -> Result<Vec<(String, isize)>> {
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
pub(super) fn readers(
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
pub(super) struct Source {
    /// The node at the beginning; `None` where it has to be inserted.
    pub(super) node: Option<usize>,
    /// The layer that it is, if it is one.
    pub(super) layer: Option<Layer>,
    /// Constants with a value for each channel, with their types.
    pub(super) constants: Vec<(Bias, DType)>,
}

/// What computes a value up to factors for each channel, or why there is nothing.
pub(super) fn source(
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
        let is_second = reader.axis.index() == Some(1);
        match node.op_type() {
            "Relu" | "LeakyRelu" | "Identity" => {
                value = node.input_at(0).unwrap_or("").to_owned();
                continue;
            }
            // Each channel by itself, and twice as much of what is twice as large.
            "MaxPool" | "AveragePool" | "GlobalMaxPool" | "GlobalAveragePool" if is_second => {
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

/// Puts a product before the readers of a value; returns its name.
fn insert(model: &mut Model, value: &str, readers: &[Layer], reciprocals: &[f32]) -> String {
    let first = readers.iter().map(|layer| layer.node).min().unwrap_or(0);
    let mut shape = vec![1; readers[0].axis.from_end + 1];
    shape[0] = reciprocals.len();
    let constant = free_name(model, &format!("{value}_smoothing"));
    if let Some(tensor) = data::tensor_from_floats(&constant, readers[0].dtype, &shape, reciprocals)
    {
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
