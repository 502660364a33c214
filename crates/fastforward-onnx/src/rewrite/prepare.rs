//! One algorithm that comes before ranges, carried out on a graph, and what it says it did.

use std::collections::BTreeMap;

use fastforward_core::algorithms::ChannelStatistics;
use fastforward_core::algorithms::equalization::EqualizationOptions;
use fastforward_core::config::Algorithm;
use ff_kernels::LayerMoments;

use super::{
    AbsorbOptions, AwqOptions, EqualizeOptions, SmoothOptions, absorb_biases, absorbable_values,
    awq, channel_statistics, equalize, smooth, smoothable_values,
};
use crate::calibrate::{Batch, RunOptions};
use crate::error::{Error, Result};
use crate::graph::Model;
use crate::layerwise::{LinearLayer, float_moments};
use crate::shapes::ShapeTable;
use crate::tree::Tree;

/// What flows through the float network, for algorithms that ask.
///
/// [`Executed`] computes a graph. A graph that was read off a program is asked of that program.
pub trait Activations {
    /// What goes wrong where data comes from.
    type Error: From<Error>;

    /// What the channels of values hold over all batches; values come with the axis of their channels, counted from the last
    /// one where it is negative.
    ///
    /// # Errors
    /// Whatever the data and its way through the network report.
    fn statistics(
        &mut self,
        model: &Model,
        values: &[(String, isize)],
    ) -> std::result::Result<Vec<ChannelStatistics>, Self::Error>;

    /// The moments of what layers are fed over all batches: of each layer those of each group.
    ///
    /// # Errors
    /// As for [`statistics`](Self::statistics).
    fn moments(
        &mut self,
        model: &Model,
        layers: &[&LinearLayer],
    ) -> std::result::Result<Vec<Vec<LayerMoments>>, Self::Error>;
}

/// The graph computed by the engine, on batches that are asked for anew for each pass over them.
pub struct Executed<G> {
    batches: G,
    run: RunOptions,
}

impl<G, B> Executed<G>
where
    G: Fn() -> B,
    B: Iterator<Item = Result<Batch>>,
{
    /// The graph on these batches.
    pub fn new(batches: G, run: RunOptions) -> Self {
        Self { batches, run }
    }
}

impl<G, B> Activations for Executed<G>
where
    G: Fn() -> B,
    B: Iterator<Item = Result<Batch>>,
{
    type Error = Error;

    fn statistics(
        &mut self,
        model: &Model,
        values: &[(String, isize)],
    ) -> Result<Vec<ChannelStatistics>> {
        let named: Vec<(&str, isize)> =
            values.iter().map(|(name, axis)| (name.as_str(), *axis)).collect();
        channel_statistics(model, &named, (self.batches)(), &self.run)
    }

    fn moments(
        &mut self,
        model: &Model,
        layers: &[&LinearLayer],
    ) -> Result<Vec<Vec<LayerMoments>>> {
        float_moments(model, layers, (self.batches)(), &self.run)
    }
}

/// What [`prepare`] may do, and what it knows.
pub struct PrepareOptions<'a> {
    /// The shapes of activations, beside those that the file states.
    pub shapes: &'a ShapeTable,
    /// The quantizers of the graph, and the slots of the weights that are meant: for `awq`.
    pub meant: (&'a Tree, &'a [String]),
    /// About how many bytes the sums over the inputs of several layers may take, which are then gathered in one pass.
    pub max_moment_bytes: u64,
    /// Whether a layer without a bias may get one.
    pub add_missing_biases: bool,
}

/// What an algorithm did.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Prepared {
    /// What the numbers of its changes say, in words.
    pub measure: &'static str,
    /// What it changed, in the order of the graph: a name, and the measure before and after.
    pub changes: Vec<(String, f64, f64)>,
    /// What it left as it was, and why.
    pub kept: Vec<String>,
    /// Bytes of the sums over inputs, at their most; `None` for what keeps none.
    pub moment_bytes: Option<u64>,
}

/// Carries out `equalize`, `absorb_bias`, `smooth` or `awq` on a graph; algorithms of other stages change nothing.
///
/// # Errors
/// Those of the algorithm's own function and of `activations`.
pub fn prepare<A: Activations>(
    model: &mut Model,
    algorithm: &Algorithm,
    activations: &mut A,
    options: &PrepareOptions<'_>,
) -> std::result::Result<Prepared, A::Error> {
    let shapes = options.shapes.clone();
    let mut done = Prepared::default();
    match *algorithm {
        Algorithm::Equalize { rounding, relu6, bound_biases } => {
            done.measure = "largest range of a layer's output channels over the smallest";
            let equalization = EqualizationOptions { rounding, ..Default::default() };
            let options = EqualizeOptions { equalization, relu6, bound_biases, shapes };
            let found = equalize(model, &options)?;
            for joint in found.chains.iter().flat_map(|chain| &chain.joints) {
                let name = format!("{} -> {}", joint.producer, joint.consumer);
                let spread = joint.spread;
                done.changes.push((name, spread.producer_before, spread.producer_after));
            }
            let kept = found.kept.iter().filter(|one| !one.ends_chain);
            done.kept.extend(kept.map(|one| format!("`{}`: {}", one.layer, one.reason)));
        }
        Algorithm::AbsorbBias { amount } => {
            done.measure = "most that a channel never falls below";
            let values = absorbable_values(model, &shapes)?;
            let seen = named(&values, activations.statistics(model, &values)?);
            let add_missing_biases = options.add_missing_biases;
            let options = AbsorbOptions { absorption: amount, add_missing_biases, shapes };
            let found = absorb_biases(model, &seen, &options)?;
            for one in found.absorbed.iter().filter(|one| one.channels > 0) {
                done.changes.push((
                    format!("{} -> {}", one.producer, one.consumer),
                    one.largest,
                    0.0,
                ));
            }
            let idle = found.absorbed.iter().filter(|one| one.channels == 0);
            done.kept.extend(idle.map(|one| {
                format!("`{}`: no channel of `{}` stays above 0", one.producer, one.value)
            }));
            let kept = found.kept.iter();
            done.kept.extend(kept.map(|one| format!("`{}`: {}", one.layer, one.reason)));
        }
        Algorithm::Smooth { alpha, rounding } => {
            done.measure = "largest magnitude of an activation over the mean one of its channels";
            let values = smoothable_values(model, &shapes)?;
            let largest = |seen: ChannelStatistics| -> Vec<f32> {
                let (min, max) = (seen.min(), seen.max());
                min.iter().zip(&max).map(|(min, max)| min.abs().max(max.abs())).collect()
            };
            let seen = activations.statistics(model, &values)?;
            let maxima = named(&values, seen.into_iter().map(largest).collect());
            let options = SmoothOptions { alpha, rounding, insert: false, shapes };
            let found = smooth(model, &maxima, &options)?;
            let smoothed = found.smoothed.into_iter();
            done.changes.extend(smoothed.map(|o| (o.value, o.outlier_before, o.outlier_after)));
            let kept = found.kept.iter();
            done.kept.extend(kept.map(|one| format!("`{}`: {}", one.value, one.reason)));
        }
        Algorithm::Awq { steps, rounding } => {
            done.measure = "error of a layer's output rounded to nearest, as part of its power";
            let (tree, slots) = options.meant;
            let max_moment_bytes = options.max_moment_bytes;
            let options = AwqOptions { steps, rounding, shapes, max_moment_bytes };
            let found = awq(model, tree, slots, activations, &options)?;
            for one in found.scaled.iter().flat_map(|one| &one.layers) {
                let [before, after] = [one.loss_before, one.loss].map(|loss| one.share(loss));
                done.changes.push((one.layer.clone(), before, after));
            }
            let kept = found.kept.iter();
            done.kept.extend(kept.map(|one| format!("`{}`: {}", one.value, one.reason)));
            done.moment_bytes = Some(found.moment_bytes);
        }
        _ => {}
    }
    Ok(done)
}

/// Values by name, with what is known of each.
fn named<T>(values: &[(String, isize)], known: Vec<T>) -> BTreeMap<String, T> {
    values.iter().map(|(name, _)| name.clone()).zip(known).collect()
}
