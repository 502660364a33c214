//! Codes of a block changed a few at a time while the error of its output falls.

use ff_kernels::SoftRounding;

use super::reconstruct::{Pairs, error, gradient, unsupported, wrong};
use super::tape::Tape;
use crate::calibrate::Batch;
use crate::error::Result;

/// Changes weights to the other of their two roundings while the error of the output falls: those first that gain most by the
/// gradient `g` of the error and its curvature, `-(g δ + ‖J‖² δ²)` for a step `δ`. As many at a time as turn out to gain
/// together, twice as many after they did, half as many after they did not; a single one that does not is left out.
///
/// `weights` are on their grids and have the error `loss`; `energies` holds `‖J‖²` of each weight for one batch. At most
/// `budget` batches are looked at. Returns the error that is left.
pub(super) fn refine<B: Iterator<Item = Result<Batch>>, F: Fn() -> B>(
    tape: &mut Tape,
    (soft, energies): (&[SoftRounding], &[Vec<f64>]),
    (weights, mut loss): (&mut [Vec<f32>], f64),
    pairs: &mut Pairs<'_, F>,
    budget: usize,
    progress: &mut dyn FnMut(),
) -> Result<f64> {
    let n_batches = pairs.n_batches;
    let mut left = budget;
    let mut count = 64;
    while left >= 2 * n_batches && loss > 0.0 {
        tape.set_weights(weights);
        let slopes = slopes(tape, pairs, progress)?;
        left -= n_batches;
        let mut others = weights.to_vec();
        for ((soft, weight), other) in soft.iter().zip(&*weights).zip(&mut others) {
            soft.others(weight, other).map_err(|error| wrong(pairs.block, &error))?;
        }
        let mut gains: Vec<(f64, usize, usize)> = Vec::new();
        for layer in 0..weights.len() {
            for at in 0..weights[layer].len() {
                let step = f64::from(others[layer][at]) - f64::from(weights[layer][at]);
                let curve = energies[layer][at] * n_batches as f64;
                let gain = -(slopes[layer][at] * step + curve * step * step);
                if gain > 0.0 {
                    gains.push((gain, layer, at));
                }
            }
        }
        gains.sort_by(|a, b| b.0.total_cmp(&a.0).then((a.1, a.2).cmp(&(b.1, b.2))));
        let (mut gained, mut first) = (false, 0);
        count = count.max(1);
        while first < gains.len() && left >= n_batches && !gained {
            count = count.min(gains.len() - first);
            let mut tried = weights.to_vec();
            for &(_, layer, at) in &gains[first..first + count] {
                tried[layer][at] = others[layer][at];
            }
            tape.set_weights(&tried);
            let (_, now) = error(tape, pairs, progress)?;
            left -= n_batches;
            gained = now < loss;
            if gained {
                weights.clone_from_slice(&tried);
                loss = now;
                count *= 2;
            } else if count > 1 {
                count /= 2;
            } else {
                first += 1;
            }
        }
        if !gained {
            break;
        }
    }
    tape.set_weights(weights);
    Ok(loss)
}

/// The gradient of the error over all batches.
fn slopes<B: Iterator<Item = Result<Batch>>, F: Fn() -> B>(
    tape: &Tape,
    pairs: &mut Pairs<'_, F>,
    progress: &mut dyn FnMut(),
) -> Result<Vec<Vec<f64>>> {
    let mut sums: Vec<Vec<f64>> =
        tape.weights().iter().map(|weight| vec![0.0; weight.len()]).collect();
    pairs.each(usize::MAX, progress, &mut |x, y| {
        let values = tape.forward(x).map_err(|reason| unsupported(&reason))?;
        let slopes = gradient(tape, &values, y).map_err(|reason| unsupported(&reason))?;
        for (sum, slope) in sums.iter_mut().zip(&slopes) {
            sum.iter_mut().zip(slope).for_each(|(sum, slope)| *sum += f64::from(*slope));
        }
        Ok(())
    })?;
    Ok(sums)
}
