//! Putting factors into the parameters of a graph.

use std::collections::{BTreeMap, HashSet};

use fastforward_core::algorithms::ScaleRounding;

use super::{Between, Chain, Relu6, weight_values};
use crate::dtype::DType;
use crate::edit::{Edits, Names, remove_unused_constants};
use crate::error::Result;
use crate::graph::{Model, data};
use crate::proto::node;
use crate::rewrite::layer::{Bias, Layer, add_constant, scaled, set_bias};

/// Divides what each joint's producer writes by the factors and multiplies what its consumer reads.
///
/// Factors that would push a parameter out of the range in which `rounding` keeps its promise become 1 in `scales`;
/// returns how many for each joint.
pub(super) fn apply(
    model: &mut Model,
    chain: &Chain,
    layers: &BTreeMap<usize, Layer>,
    joints: &[Between],
    scales: &mut [Vec<f64>],
    rounding: ScaleRounding,
) -> Result<Vec<usize>> {
    let mut weights = Vec::new();
    for node in &chain.layers {
        weights.push(weight_values(model, &layers[node])?);
    }
    let mut out_of_range = vec![0; chain.joints.len()];
    let (weights, biases) = loop {
        let mut bad: HashSet<(usize, usize)> = HashSet::new();
        let mut changed = Vec::new();
        for (at, node) in chain.layers.iter().enumerate() {
            let layer = &layers[node];
            let before = at.checked_sub(1);
            let behind = (at < chain.joints.len()).then_some(at);
            let block = before.map_or(1, |joint| layer.layout.inputs() / scales[joint].len());
            let mut values = vec![0.0; weights[at].len()];
            layer.layout.for_each(|position, output, input| {
                let read = before.map_or(1.0, |joint| scales[joint][input / block]);
                let written = behind.map_or(1.0, |joint| scales[joint][output]);
                let factor = read / written;
                match scaled(weights[at][position], factor, layer.dtype, rounding) {
                    Some(value) => values[position] = value,
                    None => {
                        bad.extend(before.map(|joint| (joint, input / block)));
                        bad.extend(behind.map(|joint| (joint, output)));
                    }
                }
            });
            changed.push(values);
        }
        let mut biases: Vec<(DType, Bias)> = Vec::new();
        for (at, &joint) in chain.joints.iter().enumerate() {
            let dtype = layers[&joints[joint].producer].dtype;
            for bias in joints[joint].bias.iter().chain(&joints[joint].added) {
                let block = bias.values.len() / joints[joint].n_channels;
                let mut bias = bias.clone();
                for (position, value) in bias.values.iter_mut().enumerate() {
                    let channel = position / block;
                    match scaled(*value, 1.0 / scales[at][channel], dtype, rounding) {
                        Some(new) => *value = new,
                        None => drop(bad.insert((at, channel))),
                    }
                }
                biases.push((dtype, bias));
            }
            for clip in &joints[joint].path.clips {
                for (channel, factor) in scales[at].iter().enumerate() {
                    if scaled(clip.bound, 1.0 / factor, dtype, rounding).is_none() {
                        bad.insert((at, channel));
                    }
                }
            }
        }
        // A factor of 1 harms nothing; what is left to blame is the other side's.
        bad.retain(|&(joint, channel)| scales[joint][channel] != 1.0);
        if bad.is_empty() {
            break (changed, biases);
        }
        for (joint, channel) in bad {
            scales[joint][channel] = 1.0;
            out_of_range[joint] += 1;
        }
    };
    for (node, values) in chain.layers.iter().zip(weights) {
        let layer = &layers[node];
        if let Some(tensor) =
            data::tensor_from_floats(&layer.weight, layer.dtype, &layer.shape, &values)
        {
            model.set_constant(tensor);
        }
    }
    for (dtype, bias) in biases {
        set_bias(model, dtype, &bias);
    }
    Ok(out_of_range)
}

/// Puts what `relu6` says in the place of the `Clip` nodes between equalized layers.
pub(super) fn rewrite_clips(
    model: &mut Model,
    joints: &[Between],
    dtypes: &[DType],
    scales: &[Vec<f64>],
    relu6: Relu6,
) {
    let mut names = Names::of(model.graph());
    let mut edits = Edits::default();
    let mut bounds = HashSet::new();
    for (at, joint) in joints.iter().enumerate() {
        for clip in &joint.path.clips {
            let relu = &mut model.graph_mut().node[clip.node];
            bounds.extend(relu.input.drain(1..));
            relu.attribute.clear();
            relu.op_type = Some("Relu".to_owned());
            if relu6 != Relu6::PerChannel {
                continue;
            }
            let relu = relu.clone();
            let value = &relu.output[0];
            let open = names.fresh(&format!("{value}_unclipped"));
            let constant = names.fresh(&format!("{value}_bound"));
            let mut shape = vec![1; clip.from_end + 1];
            shape[0] = joint.n_channels;
            let values: Vec<f32> =
                scales[at].iter().map(|scale| (f64::from(clip.bound) / scale) as f32).collect();
            if let Some(tensor) = data::tensor_from_floats(&constant, dtypes[at], &shape, &values) {
                add_constant(model, tensor);
            }
            let graph = edits.graph(&[]);
            graph.set_output(clip.node, 0, &open);
            let name = names.fresh(&format!("{}_bound", relu.label()));
            graph.insert(clip.node + 1, node("Min", &name, &[&open, &constant], &[value]));
        }
    }
    edits.apply(model.graph_mut());
    remove_unused_constants(model.graph_mut(), &bounds);
}
