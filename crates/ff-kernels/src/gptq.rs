//! GPTQ: weights rounded column by column, each column making up for the errors of those before it.

mod factor;
mod hessian;
mod layer;
mod nearest;
mod reference;
mod update;

#[cfg(test)]
mod tests;

pub use factor::{FactorOptions, HessianFactor};
pub use hessian::Hessian;
pub use reference::{gptq_reference, hessian_loss};

use crate::affine::Affine;
use crate::error::{KernelError, check_len};
use crate::grid::IntegerGrid;
use crate::range::{Parameters, RangeOptions};
use crate::tiling::Tiling;
use layer::Layer;

/// How [`gptq`] rounds. The default is the reference's (spec §10.1), with a guard that it lacks.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct GptqOptions {
    /// Columns whose corrections become visible together to the ranges of groups that are computed anew. This is all
    /// that it changes: otherwise columns go in pieces that suit the machine. At least 1; default 128.
    pub block_size: usize,
    /// Groups of columns keep the ranges of the weights as they came, rather than of the weights corrected for the
    /// columns before. Always so if the factor goes by act-order. Default `false`.
    pub static_groups: bool,
    /// What becomes of weights whose input was never seen other than zero.
    pub dead_columns: DeadColumns,
    /// How ranges become parameters.
    pub range: RangeOptions,
    /// What is done about weights that nearest rounding would serve better.
    pub nearest: NearestRounding,
}

impl Default for GptqOptions {
    fn default() -> Self {
        GptqOptions {
            block_size: 128,
            static_groups: false,
            dead_columns: DeadColumns::Keep,
            range: RangeOptions::default(),
            nearest: NearestRounding::Guard,
        }
    }
}

/// Weights whose input was zero in every sample. They do not matter to the samples; to other inputs they may.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeadColumns {
    /// They are rounded like others, as the reference does: what the samples missed still works. The default.
    Keep,
    /// They become the grid's value nearest to zero, as in the paper's code.
    Zero,
}

/// Whether a row that nearest rounding would serve better gets it.
///
/// GPTQ is greedy: it has no smaller loss than nearest rounding on every row, only on nearly all. Comparing costs up to
/// as much again as rounding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NearestRounding {
    /// No comparison: what the reference does.
    Ignore,
    /// Rows that would lose less, or all but as little, are rounded to nearest. The comparison of a row ends as soon as
    /// it is decided. The default.
    Guard,
    /// As [`NearestRounding::Guard`], with every comparison brought to its end: the result has
    /// [`GptqResult::nearest_loss`].
    Report,
}

/// What [`gptq`] gives back.
#[derive(Debug, Clone, PartialEq)]
pub struct GptqResult {
    /// The weight, on the grid: [`quantize`](crate::quantize) with the same parameters gives its codes. Contiguous.
    /// `[rows, columns]`
    pub weight: Vec<f32>,
    /// The parameters of each tile.
    pub parameters: Parameters,
    /// `tr((W - Q) H (W - Q)ᵀ)`: twice the squared error of the outputs, averaged over samples. `H` is what the samples
    /// give, without damping. Sums of f32 products: with relative errors of about 1e-4 of the damped loss.
    pub loss: f64,
    /// The same for rounding every weight to nearest on the grid of the weight's own ranges; only with
    /// [`NearestRounding::Report`].
    pub nearest_loss: Option<f64>,
    /// Rows for which nearest rounding was taken and differs.
    pub nearest_rows: usize,
    /// Of each column, what GPTQ's rounding of it adds to the loss (with damping) once the later columns have made up
    /// for what they can, before any row was rounded to nearest. `[columns]`
    pub column_error: Vec<f64>,
}

/// Rounds a weight to the grid so that the output of its layer changes little (Frantar et al., GPTQ, 2023; spec §10.1).
///
/// The weight is `[rows, columns]`, a row for each output, as `tiling` says; it may be a strided view. A tile's range is
/// that of its weights. Columns are rounded one after the other, each corrected so that it makes up for what rounding
/// took from the columns before. Where tiles are groups of columns, wider than one and narrower than the weight, a
/// group's range is computed anew from corrected weights when rounding reaches it; see [`GptqOptions::static_groups`].
///
/// Rows do not depend on each other, except through groups' ranges; the result is the same for any number of threads.
/// Sums are of fused multiplications where the machine has them, so a weight near the middle of two values may go either
/// way on another machine.
///
/// What is lost is summed and corrected weights are not stored, so nothing is rounded between corrections. The reference
/// rounds every weight to f32 after each column; that shows where scales are a few units of the weights' last place, as
/// with a tile for each weight, and there only.
///
/// # Errors
/// A tiling that is not of a matrix, or of another number of columns than the factor's; a slice of the wrong length;
/// weights that are not finite; a block size of 0; whatever [`parameters_for_range`](crate::parameters_for_range) refuses.
///
/// ```
/// use ff_kernels::{FactorOptions, GptqOptions, Hessian, HessianFactor, IntegerGrid, Tiling, gptq};
/// let mut hessian = Hessian::new(2)?;
/// hessian.add(&[1.0, 0.9, -0.5, -0.6, 0.2, 0.3])?; // three samples, the two inputs nearly alike
/// let factor = HessianFactor::new(&mut hessian, &FactorOptions::default())?;
/// let weight = [0.34, 1.4]; // on the grid of steps of 0.2: 0.4 and 1.4
/// let options = GptqOptions::default();
/// let result = gptq(&weight, &Tiling::whole(&[1, 2])?, IntegerGrid::signed(4)?, &factor, &options)?;
/// assert!(result.loss < 0.01);
/// # Ok::<(), ff_kernels::KernelError>(())
/// ```
pub fn gptq(
    weight: &[f32],
    tiling: &Tiling,
    grid: IntegerGrid,
    factor: &HessianFactor,
    options: &GptqOptions,
) -> Result<GptqResult, KernelError> {
    let layer = Layer::new(weight, tiling, grid, factor, options)?;
    layer.solve(layer.initial()?)
}

/// As [`gptq`] with [static groups](GptqOptions::static_groups), but with parameters from elsewhere, such as a search for
/// ranges, in place of those for the smallest and largest weights.
///
/// # Errors
/// As [`gptq`]; parameters of the wrong number, scales that are not positive and finite, offsets that are not finite.
pub fn gptq_with_parameters(
    weight: &[f32],
    tiling: &Tiling,
    affine: Affine<'_>,
    grid: IntegerGrid,
    factor: &HessianFactor,
    options: &GptqOptions,
) -> Result<GptqResult, KernelError> {
    let options = GptqOptions { static_groups: true, ..*options };
    let layer = Layer::new(weight, tiling, grid, factor, &options)?;
    check_len("scale", tiling.num_tiles(), affine.scale.len())?;
    affine.check(tiling)?;
    layer.solve(layer.tiles(affine.scale, affine.offset))
}
