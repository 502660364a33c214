//! What layers read in float, for rewrites that come before quantization.

use fastforward_core::algorithms::layerwise::Seen;
use ff_kernels::LayerMoments;

use super::gather::{Network, bytes, gather};
use super::layer::LinearLayer;
use crate::calibrate::{Batch, RunOptions};
use crate::engine::Engine;
use crate::error::Result;
use crate::graph::Model;

/// The moments of the inputs of some layers, in one pass over the data: of each layer those of each group.
///
/// # Errors
/// Those of the engine and of `batches`; `Input` when there is no batch, and for data that is not finite.
pub(crate) fn float_moments(
    model: &Model,
    layers: &[&LinearLayer],
    batches: impl IntoIterator<Item = Result<Batch>>,
    run: &RunOptions,
) -> Result<Vec<Vec<LayerMoments>>> {
    let engine = Engine::new(model, &run.engine)?;
    let values = layers.iter().map(|layer| layer.value.clone()).collect();
    let network = Network { engine: &engine, values };
    gather((&network, None), layers, batches, run, || ())
}

/// The bytes that the sums over a layer's inputs take at their most.
pub(crate) fn float_moments_bytes(layer: &LinearLayer) -> u64 {
    bytes(layer, Seen::Original)
}
