//! The moments of layers' inputs over batches of data.

use fastforward_core::algorithms::layerwise::Seen;
use ff_kernels::{LayerMoments, MomentSums};

use super::layer::LinearLayer;
use crate::calibrate::{Batch, RunOptions};
use crate::engine::Engine;
use crate::error::{Error, ErrorKind, Result};
use crate::tensor::Tensor;

/// A graph that is executed, and the name under which each layer's input is found in it.
pub(super) struct Network<'e> {
    pub(super) engine: &'e Engine,
    /// For each of the layers.
    pub(super) values: Vec<String>,
}

/// Bytes of the sums over one layer's inputs, at their most: while they become moments.
pub(super) fn bytes(layer: &LinearLayer, seen: Seen) -> u64 {
    seen.moment_bytes(layer.columns, layer.groups)
}

/// Adds up the inputs of `layers` over all batches: for each layer the moments of each of its groups.
///
/// With one network its inputs are taken; with two, those of the second beside those of the first, sample by sample.
/// Values are held for one batch at a time, and not all of them where they do not fit `options.max_bytes`.
///
/// # Errors
/// Those of [`Engine::run`] and of `batches`; `Input` when there is no batch, and for data that is not finite.
pub(super) fn gather(
    (network, quantized): (&Network<'_>, Option<&Network<'_>>),
    layers: &[&LinearLayer],
    batches: impl IntoIterator<Item = Result<Batch>>,
    options: &RunOptions,
    mut progress: impl FnMut(),
) -> Result<Vec<Vec<LayerMoments>>> {
    let empty = |layer: &&LinearLayer| -> Vec<MomentSums> {
        (0..layer.groups).map(|_| MomentSums::new(layer.columns)).collect()
    };
    let mut sums: Vec<Vec<MomentSums>> = layers.iter().map(empty).collect();
    let mut is_empty = true;
    for batch in batches {
        let batch = batch?;
        let inputs: Vec<(&str, &Tensor)> = batch.iter().map(|(n, t)| (n.as_str(), t)).collect();
        let Some(second) = quantized else {
            let mut values: Vec<&str> = network.values.iter().map(String::as_str).collect();
            values.sort_unstable();
            values.dedup();
            network.engine.run_bounded(&inputs, &values, options.max_bytes, |value, tensor| {
                for (at, layer) in layers.iter().enumerate() {
                    if network.values[at] == value {
                        add(layer, &mut sums[at], &tensor, None)?;
                    }
                }
                Ok::<(), Error>(())
            })?;
            is_empty = false;
            progress();
            continue;
        };
        // Layers that read the same value follow each other mostly.
        let mut last: Option<([&str; 2], [Tensor; 2])> = None;
        for (at, layer) in layers.iter().enumerate() {
            let names = [second.values[at].as_str(), network.values[at].as_str()];
            let pair = match last.take() {
                Some((same, pair)) if same == names => pair,
                _ => [value_of(second, &inputs, names[0])?, value_of(network, &inputs, names[1])?],
            };
            add(layer, &mut sums[at], &pair[0], Some(&pair[1]))?;
            last = Some((names, pair));
        }
        is_empty = false;
        progress();
    }
    if is_empty && !layers.is_empty() {
        return Err(Error::new(
            ErrorKind::Input,
            format!("no calibration data, but {} layers whose inputs are needed", layers.len()),
        ));
    }
    Ok(sums
        .into_iter()
        .map(|groups| groups.into_iter().map(MomentSums::finish).collect())
        .collect())
}

fn value_of(network: &Network<'_>, inputs: &[(&str, &Tensor)], name: &str) -> Result<Tensor> {
    network
        .engine
        .run(inputs, &[name])?
        .into_iter()
        .next()
        .ok_or_else(|| Error::new(ErrorKind::NotFound, format!("the graph computes no `{name}`")))
}

/// Adds a layer's input of one batch; that of the float network too, where it is another.
fn add(
    layer: &LinearLayer,
    sums: &mut [MomentSums],
    x: &Tensor,
    float: Option<&Tensor>,
) -> Result<()> {
    let floats = |x: &'_ Tensor| -> Result<Vec<f32>> {
        x.as_f32().map(<[f32]>::to_vec).ok_or_else(|| {
            let found = x.dtype();
            input_error(layer, format!("its input holds {found}, expected float32"))
        })
    };
    let data = floats(x)?;
    let float = match float {
        Some(float) if float.shape() != x.shape() => {
            let (found, expected) = (float.shape(), x.shape());
            return Err(input_error(
                layer,
                format!("its input has shape {found:?} in float and {expected:?} quantized"),
            ));
        }
        Some(float) => Some(floats(float)?),
        None => None,
    };
    layer
        .input_rows()
        .add(sums, x.shape(), &data, float.as_deref())
        .map_err(|reason| input_error(layer, reason))
}

fn input_error(layer: &LinearLayer, reason: String) -> Error {
    Error::new(ErrorKind::Input, format!("`{}` (value `{}`): {reason}", layer.name, layer.value))
}

#[cfg(test)]
mod tests;
