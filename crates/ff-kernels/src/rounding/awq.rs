//! AWQ: inputs that matter are made small and their weights large, so that these are rounded more finely.

use super::layer::{matrix, reconstruction_losses};
use super::math::{exp2, log2};
use super::moments::LayerMoments;
use super::ranges::sequential_mse;
use crate::affine::fake_quantize;
use crate::error::{KernelError, KernelErrorKind, check_len};
use crate::grid::IntegerGrid;
use crate::range::{
    CandidateLayout, Candidates, Parameters, RangeOptions, min_max, parameters_for_range,
};
use crate::tiling::Tiling;

/// How [`awq`] searches.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AwqOptions {
    /// `α` takes the values `0, 1/steps, ..., 1`; at least 1.
    pub steps: usize,
    /// How many ranges, down to half of the weights' own, are tried for each tile once the scales are found, by
    /// [`sequential_mse`]; 0 for none.
    pub clip_candidates: usize,
}

impl Default for AwqOptions {
    fn default() -> Self {
        Self { steps: 20, clip_candidates: 0 }
    }
}

/// The scales of a layer's inputs, and what they gain.
#[derive(Debug, Clone, PartialEq)]
pub struct Awq {
    /// What each input is to be divided by and its weights multiplied by: `s`, `[features]`.
    pub scale: Vec<f32>,
    /// The exponent chosen.
    pub alpha: f32,
    /// The loss of all rows for each `α`, ascending.
    pub curve: Vec<f64>,
    /// Scale and offset of each tile of the scaled weight.
    pub parameters: Parameters,
    /// The scaled weight, quantized: `Q(W diag(s))`, `[rows, columns]`. What it stands for is `Q(W diag(s)) diag(s)⁻¹`.
    pub weight: Vec<f32>,
    /// The loss of each row without scales: for `α = 0`, and with the tiles' own ranges.
    pub before: Vec<f64>,
    /// The loss of each row.
    pub after: Vec<f64>,
}

impl Awq {
    /// The loss of all rows without scales.
    pub fn loss_before(&self) -> f64 {
        self.before.iter().sum()
    }

    /// The loss of all rows.
    pub fn loss_after(&self) -> f64 {
        self.after.iter().sum()
    }
}

/// Scales of inputs by activation-aware weight quantization (Lin et al. 2023, arXiv 2306.00978).
///
/// For each `α` of the grid, with the means of [`LayerMoments::mean_abs`],
///
/// ```text
/// s_j = max((E|x̂_j|)^α, 1e-4) / √(max s · min s)        Ŵ = Q(W diag(s)) diag(s)⁻¹
/// ```
///
/// `Q` rounds to nearest with the range of each tile's own weights, and the exact loss of
/// [`reconstruction_losses`](crate::reconstruction_losses) decides; the first of equals wins. `α = 0` changes nothing, so the loss is
/// never above that of plain rounding. The paper's second step, ranges clipped by the output's error, is done if
/// [`AwqOptions::clip_candidates`] says so, with errors of tiles that add up taken into account.
///
/// For layers that share their inputs (queries, keys and values) stack the rows of their weights. Afterwards the weight
/// `W diag(s)` with the moments [`LayerMoments::divided_by`] `s` is a layer like any other, for example for
/// [`adaround`](crate::adaround). `tiling` is as there.
///
/// # Errors
/// Another number of inputs than the moments have; weights that are not finite; what [`parameters_for_range`] refuses; no
/// steps.
///
/// ```
/// use ff_kernels::*;
/// let mut sums = MomentSums::new(4);
/// sums.add(&[9.0, 1.0, 1.0, 1.0, 12.0, -1.0, 1.0, -1.0])?; // the first input matters most
/// let weight = [0.11, 0.9, -0.7, 0.3];
/// let tiling = Tiling::whole(&[1, 4])?;
/// let (grid, range) = (IntegerGrid::signed(3)?, RangeOptions::default());
/// let found = awq(&weight, &sums.finish(), &tiling, grid, &range, &AwqOptions::default())?;
/// assert!(found.scale[0] > found.scale[1]);
/// assert!(found.loss_after() < 0.5 * found.loss_before());
/// # Ok::<(), KernelError>(())
/// ```
pub fn awq(
    weight: &[f32],
    moments: &LayerMoments,
    tiling: &Tiling,
    grid: IntegerGrid,
    range: &RangeOptions,
    options: &AwqOptions,
) -> Result<Awq, KernelError> {
    if options.steps == 0 {
        let (what, must_be) = ("number of steps", "at least 1");
        return Err(KernelErrorKind::Option { what, must_be, found: 0.0 }.into());
    }
    let (_, columns, weight) = matrix(weight, tiling)?;
    check_len("inputs of the weight", moments.features, columns)?;
    let tiling = &Tiling::new(tiling.shape(), tiling.tile_shape())?;
    let mut curve = Vec::new();
    let mut best: Option<Awq> = None;
    for step in 0..=options.steps {
        let alpha = step as f32 / options.steps as f32;
        let scale = scales(moments, alpha);
        let scaled = multiplied(&weight, &scale);
        let parameters = own_parameters(&scaled, tiling, grid, range)?;
        let mut quantized = vec![0.0; weight.len()];
        fake_quantize(&scaled, tiling, parameters.affine(), grid, &mut quantized)?;
        let losses = reconstruction_losses(&weight, &divided(&quantized, &scale), moments)?;
        let loss: f64 = losses.iter().sum();
        curve.push(loss);
        if best.as_ref().is_none_or(|best| loss < best.loss_after()) {
            let before = best.map_or_else(|| losses.clone(), |best| best.before);
            let (weight, after, curve) = (quantized, losses, Vec::new());
            best = Some(Awq { scale, alpha, curve, parameters, weight, before, after });
        }
    }
    let mut best = best.expect("there is at least one step, and the first is the best so far");
    best.curve = curve;
    if options.clip_candidates > 0 && !weight.is_empty() {
        clip(&mut best, &weight, moments, tiling, grid, range, options.clip_candidates)?;
    }
    Ok(best)
}

/// Clips the ranges of tiles where the output gains by it.
fn clip(
    found: &mut Awq,
    weight: &[f32],
    moments: &LayerMoments,
    tiling: &Tiling,
    grid: IntegerGrid,
    range: &RangeOptions,
    candidates: usize,
) -> Result<(), KernelError> {
    let scaled = multiplied(weight, &found.scale);
    let own = min_max(&scaled, tiling)?;
    let layout = CandidateLayout::Fitted { smallest: 0.5, one_sided: range.one_sided };
    // Symmetric layouts reach down to nothing: twice as many candidates have as many in the upper half.
    let count = if range.symmetric { 2 * candidates } else { candidates };
    let candidates = Candidates::new(&own.min, &own.max, range.symmetric, count, layout)?;
    let scaled_moments = moments.divided_by(&found.scale)?;
    let choice = sequential_mse(&scaled, &scaled_moments, tiling, &candidates, grid, range)?;
    let mut quantized = vec![0.0; weight.len()];
    fake_quantize(&scaled, tiling, choice.parameters.affine(), grid, &mut quantized)?;
    let after = reconstruction_losses(weight, &divided(&quantized, &found.scale), moments)?;
    if after.iter().sum::<f64>() < found.loss_after() {
        (found.weight, found.parameters, found.after) = (quantized, choice.parameters, after);
    }
    Ok(())
}

/// `s` for an exponent.
fn scales(moments: &LayerMoments, alpha: f32) -> Vec<f32> {
    let power = |mean: &f64| {
        let mean = (*mean as f32).max(f32::MIN_POSITIVE);
        exp2(alpha * log2(mean)).max(1e-4)
    };
    let scale: Vec<f32> = moments.mean_abs.iter().map(power).collect();
    let most = scale.iter().fold(0.0f32, |a, b| a.max(*b));
    let least = scale.iter().fold(f32::INFINITY, |a, b| a.min(*b));
    let middle = (most * least).sqrt();
    scale.iter().map(|s| s / middle).collect()
}

fn own_parameters(
    weight: &[f32],
    tiling: &Tiling,
    grid: IntegerGrid,
    range: &RangeOptions,
) -> Result<Parameters, KernelError> {
    let own = min_max(weight, tiling)?;
    parameters_for_range(&own.min, &own.max, grid, range)
}

fn multiplied(weight: &[f32], scale: &[f32]) -> Vec<f32> {
    weight.iter().zip(scale.iter().cycle()).map(|(w, s)| w * s).collect()
}

fn divided(weight: &[f32], scale: &[f32]) -> Vec<f32> {
    weight.iter().zip(scale.iter().cycle()).map(|(w, s)| w / s).collect()
}
