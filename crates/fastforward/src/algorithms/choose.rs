//! Layer by layer: gather what a layer is fed, choose its weight, put it in place, go on.

use std::collections::BTreeMap;

use ff_kernels::LayerMoments;

use super::data::{Data, gather};
use super::layer::Layer;
use super::network::{Network, values};
use crate::ErrorKind;
use crate::algorithms::layerwise::{
    Finished, Journal, LayerOutcome, LayerProblem, Seen, StepOutcome,
};
use crate::config::Algorithm;
use crate::quantization::affine::AffineParameters;
use crate::tensor::Result;

/// A layer and the algorithms that work on it, one after the other, each with its place among the targets.
pub(super) struct Task<'t> {
    pub(super) layer: &'t Layer,
    pub(super) algorithms: Vec<(usize, &'t Algorithm)>,
}

/// Chooses the weights of all tasks, in their order, which is that in which the forward reaches the layers.
///
/// What a layer is fed in float depends on no choice, so it is gathered for several layers at once, as many as `max_bytes`
/// hold.
pub(super) fn choose(
    network: &mut Network<'_>,
    tasks: &[Task<'_>],
    data: &dyn Data,
    journal: Option<&Journal>,
    max_bytes: u64,
) -> Result<Vec<LayerOutcome>> {
    let mut ahead: BTreeMap<usize, Vec<LayerMoments>> = BTreeMap::new();
    let mut outcomes = Vec::new();
    for (number, task) in tasks.iter().enumerate() {
        let layer = task.layer;
        if let Some(finished) = journal.and_then(|one| one.read(number, &layer.slot_name)) {
            put(network, layer, &finished)?;
            outcomes.push(finished.outcome);
            continue;
        }
        let wrong = |error: &dyn std::fmt::Display| layer.error(ErrorKind::InvalidData, error);
        let (config, parameters, tiles) =
            layer.quantizer().map_err(|error| layer.error(error.kind(), error))?;
        let sizes = (layer.groups(), layer.columns());
        let weight = values(&layer.weight.tensor())?;
        let mut problem = LayerProblem::new((&config, &parameters), &tiles, sizes, weight)
            .map_err(|error| wrong(&error))?;
        let mut outcome = LayerOutcome {
            layer: layer.name.clone(),
            slot: layer.slot_name.clone(),
            rows: layer.outputs(),
            columns: layer.columns(),
            groups: layer.groups(),
            moment_bytes: 0,
            steps: Vec::new(),
            bias: None,
        };
        // One kind of moments at a time.
        let mut held: Option<(Seen, Vec<LayerMoments>)> = None;
        for &(_, algorithm) in &task.algorithms {
            let Some(seen) = Seen::of(algorithm) else { continue };
            let found = match held.take() {
                Some((same, found)) if same == seen => found,
                _ if seen == Seen::Original => match ahead.remove(&number) {
                    Some(found) => found,
                    None => {
                        let together = original_ones(tasks, number, journal, max_bytes);
                        let layers: Vec<&Layer> =
                            together.iter().map(|&at| tasks[at].layer).collect();
                        let mut all = gather(network, &layers, seen, data)?;
                        let own = all.remove(0);
                        ahead.extend(together[1..].iter().copied().zip(all));
                        own
                    }
                },
                _ => gather(network, &[layer], seen, data)?.remove(0),
            };
            let bytes = seen.moment_bytes(layer.columns(), layer.groups());
            outcome.moment_bytes = outcome.moment_bytes.max(bytes);
            let step = problem
                .apply(algorithm, &found)
                .map_err(|error| wrong(&format_args!("{algorithm}: {error}")))?;
            outcome.steps.push(StepOutcome {
                algorithm: outcome.steps.len(),
                signal: problem.signal(&found).map_err(|error| wrong(&error))?,
                loss_before: step.loss_before,
                loss: step.loss,
                samples: found.iter().map(LayerMoments::count).sum(),
                rows_kept: step.rows_kept,
            });
            held = Some((seen, found));
        }
        let finished = Finished {
            weight: problem.codes().map(<[f32]>::to_vec),
            scale: tiles.from_matrix(problem.scale()),
            offset: problem.offset().map(|offset| tiles.from_matrix(offset)),
            bias: None,
            outcome,
        };
        if let Some(journal) = journal {
            journal.write(number, &finished)?;
        }
        put(network, layer, &finished)?;
        outcomes.push(finished.outcome);
    }
    Ok(outcomes)
}

/// This task and those after it whose float inputs are gathered in the same pass.
fn original_ones(
    tasks: &[Task<'_>],
    number: usize,
    journal: Option<&Journal>,
    max_bytes: u64,
) -> Vec<usize> {
    let mut together = vec![number];
    let mut left = max_bytes;
    for (at, task) in tasks.iter().enumerate().skip(number) {
        let layer = task.layer;
        left = left.saturating_sub(Seen::Original.moment_bytes(layer.columns(), layer.groups()));
        if left == 0 {
            break;
        }
        let needs = task.algorithms.iter().any(|(_, one)| Seen::of(one) == Some(Seen::Original));
        if at > number && needs && !journal.is_some_and(|one| one.has(at)) {
            together.push(at);
        }
    }
    together
}

/// Puts a chosen weight into the quantized network, and its parameters into the quantizer.
fn put(network: &mut Network<'_>, layer: &Layer, finished: &Finished) -> Result<()> {
    let wrong = |error: &dyn std::fmt::Display| layer.error(ErrorKind::InvalidData, error);
    let (config, before, _) =
        layer.quantizer().map_err(|error| layer.error(error.kind(), error))?;
    let (scale, offset) = (finished.scale.clone(), finished.offset.clone());
    let parameters = AffineParameters { scale, offset, ..before };
    network.set_quantizer(&layer.weight_slot, config, parameters).map_err(|error| wrong(&error))?;
    let Some(weight) = &finished.weight else { return Ok(()) };
    if weight.len() != layer.weight.dims().iter().product::<usize>() {
        return Err(wrong(&"the journal holds a weight of another shape; remove it"));
    }
    network.set(&layer.weight, weight.clone())
}
