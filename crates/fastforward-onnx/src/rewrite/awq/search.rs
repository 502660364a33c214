//! The exponent for which the layers that read a value err least.

use std::fmt::Display;

use fastforward_core::algorithms::ScaleRounding;
use fastforward_core::algorithms::smoothing::smoothing_scales;
use fastforward_core::quantization::LinearQuantizer;
use fastforward_core::quantization::quantizer::RangeSettable;
use ff_kernels::{LayerMoments, Tiling, fake_quantize, min_max, reconstruction_losses};

use super::own_quantizer;
use crate::error::{Error, ErrorKind, Result};
use crate::graph::Model;
use crate::layerwise::LinearLayer;

/// The smallest mean magnitude that counts, as a part of the largest: the paper's program bounds factors so.
const LEAST: f64 = 1e-4;

/// A layer whose output's error counts.
pub(super) struct Judged<'m> {
    slot: String,
    quantizer: LinearQuantizer,
    /// The weight in float, `[rows, columns]`, groups one after another.
    weight: Vec<f32>,
    tiling: Tiling,
    columns: usize,
    /// Of each group.
    moments: &'m [LayerMoments],
    /// The channel of the value of each column of each group, `[groups, columns]`.
    channels: Vec<usize>,
}

impl<'m> Judged<'m> {
    pub(super) fn new(
        model: &Model,
        layer: &LinearLayer,
        moments: &'m [LayerMoments],
        n_channels: usize,
    ) -> Result<Self> {
        let slot = layer.weight.name.clone();
        let wrong = |reason: &dyn Display| quantizer_error(&slot, reason);
        let constant = model
            .constant(&layer.weight.value)
            .ok_or_else(|| wrong(&format!("the graph has no constant `{}`", layer.weight.value)))?;
        let quantizer = own_quantizer(&layer.weight)?;
        let tile = quantizer.granularity().tile_shape(layer.shape()).map_err(|e| wrong(&e))?;
        let tiles = layer.tiles(&tile)?;
        let per_group = n_channels / layer.groups;
        let taps = layer.columns / per_group.max(1);
        let channel = |at: usize| at / layer.columns * per_group + at % layer.columns / taps.max(1);
        Ok(Self {
            weight: layer.to_matrix(&constant.to_f32()?),
            tiling: Tiling::new(&[layer.rows, layer.columns], &tiles.tile)
                .map_err(|e| wrong(&e))?,
            channels: (0..layer.groups * layer.columns).map(channel).collect(),
            columns: layer.columns,
            slot,
            quantizer,
            moments,
        })
    }

    /// `E‖W x‖²`
    pub(super) fn signal(&self) -> Result<f64> {
        self.loss_of(&vec![0.0; self.weight.len()])
    }

    /// `E‖W x - Q(W diag(s)) diag(s)⁻¹ x‖²`
    fn loss(&self, scales: &[f64]) -> Result<f64> {
        let wrong = |error: &dyn Display| quantizer_error(&self.slot, error);
        let factors: Vec<f32> =
            self.channels.iter().map(|&channel| scales[channel] as f32).collect();
        let per_group = self.weight.len() / self.moments.len().max(1);
        let factor = |at: usize| factors[at / per_group * self.columns + at % self.columns];
        let scaled: Vec<f32> =
            self.weight.iter().enumerate().map(|(at, w)| w * factor(at)).collect();
        let own = min_max(&scaled, &self.tiling).map_err(|error| wrong(&error))?;
        let parameters = self.quantizer.parameters_for_range(&own.min, &own.max)?;
        let (affine, grid) = (parameters.affine(), parameters.grid()?);
        let mut rounded = vec![0.0; scaled.len()];
        fake_quantize(&scaled, &self.tiling, affine, grid, &mut rounded)
            .map_err(|error| wrong(&error))?;
        rounded.iter_mut().enumerate().for_each(|(at, w)| *w /= factor(at));
        self.loss_of(&rounded)
    }

    fn loss_of(&self, rounded: &[f32]) -> Result<f64> {
        let per_group = (self.weight.len() / self.moments.len().max(1)).max(1);
        let groups = self.weight.chunks(per_group).zip(rounded.chunks(per_group));
        let mut sum = 0.0;
        for ((weight, rounded), moments) in groups.zip(self.moments) {
            let losses = reconstruction_losses(weight, rounded, moments)
                .map_err(|error| quantizer_error(&self.slot, &error))?;
            sum += losses.iter().sum::<f64>();
        }
        Ok(sum)
    }

    /// `E|x|` of each channel, of the mean over the positions of a window.
    fn mean_magnitudes(&self, n_channels: usize) -> Vec<f64> {
        let (mut sums, mut counts) = (vec![0.0; n_channels], vec![0usize; n_channels]);
        let columns = self.moments.iter().flat_map(LayerMoments::mean_abs);
        for (channel, mean) in self.channels.iter().zip(columns) {
            sums[*channel] += mean;
            counts[*channel] += 1;
        }
        sums.iter().zip(&counts).map(|(sum, count)| sum / (*count).max(1) as f64).collect()
    }
}

/// Layers that read one value.
pub(super) struct Search<'a> {
    pub(super) layers: &'a [Judged<'a>],
    pub(super) rounding: ScaleRounding,
}

impl Search<'_> {
    /// The loss of each layer with these factors.
    pub(super) fn losses(&self, scales: &[f64]) -> Result<Vec<f64>> {
        self.layers.iter().map(|layer| layer.loss(scales)).collect()
    }

    /// The exponent and the factors with the least loss of all layers together; `None` where none is below `before`, that
    /// without factors.
    pub(super) fn best(
        &self,
        steps: usize,
        n_channels: usize,
        before: &[f64],
    ) -> Result<Option<(f64, Vec<f64>)>> {
        let Some(first) = self.layers.first() else { return Ok(None) };
        let means = normalized(&first.mean_magnitudes(n_channels));
        let ones = vec![1.0; n_channels];
        let mut least: f64 = before.iter().sum();
        let mut best = None;
        let mut tried = ones.iter().map(|&one| f64::from(one)).collect::<Vec<f64>>();
        for step in 1..=steps {
            let alpha = step as f64 / steps as f64;
            let scales = smoothing_scales(&means, &ones, alpha, self.rounding)?;
            // Neighbours are often the same powers of two.
            if scales == tried {
                continue;
            }
            let loss: f64 = self.losses(&scales)?.iter().sum();
            if loss < least {
                least = loss;
                best = Some((alpha, scales.clone()));
            }
            tried = scales;
        }
        Ok(best)
    }
}

/// Magnitudes around 1: over the geometric mean of the largest and the smallest, channels that are always 0 left out.
fn normalized(means: &[f64]) -> Vec<f32> {
    let most = means.iter().copied().fold(0.0, f64::max);
    let raised = |mean: f64| if mean > 0.0 { mean.max(LEAST * most) } else { 0.0 };
    let live = means.iter().map(|&mean| raised(mean)).filter(|&mean| mean > 0.0);
    let middle = (most * live.fold(most, f64::min)).sqrt();
    let part = |mean: f64| if middle > 0.0 { (raised(mean) / middle) as f32 } else { 0.0 };
    means.iter().map(|&mean| part(mean)).collect()
}

fn quantizer_error(slot: &str, reason: &dyn Display) -> Error {
    Error::new(ErrorKind::Quantizer, format!("`{slot}`: {reason}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn magnitudes_lie_around_one() {
        assert_eq!(normalized(&[16.0, 1.0, 4.0, 0.0]), [4.0, 0.25, 1.0, 0.0]);
        // What is hardly ever seen counts as a ten-thousandth of the largest.
        assert_eq!(normalized(&[1e4, 1e-9]), [100.0, 0.01]);
        assert_eq!(normalized(&[0.0; 2]), [0.0; 2]);
        assert_eq!(normalized(&[]), Vec::<f32>::new());
    }
}
