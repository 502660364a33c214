//! Rounding a layer's weight by what it does to the layer's output.
//!
//! For a linear layer (a convolution unfolded to a matrix, each group apart) the error of the output over all calibration
//! data depends on second moments of the inputs alone, see [`reconstruction_losses`]. So data is seen once, memory does
//! not grow with it, and every algorithm works with exact losses:
//!
//! 1. [`MomentSums`] take in what the layer is fed, batch by batch, from the quantized network and from the float one, and
//!    become [`LayerMoments`].
//! 2. Ranges: [`sequential_mse`], [`activation_weighted_mse`]. Scales of inputs: [`awq`].
//! 3. Codes: [`adaround`], [`coordinate_descent`], and with [`LayerMoments::hessian`] [`gptq`](crate::gptq), all for any
//!    [`Tiling`](crate::Tiling), [`Affine`](crate::Affine) and [`IntegerGrid`](crate::IntegerGrid).
//!    Where the loss is that of several layers together, [`SoftRounding`] takes its gradient from elsewhere.
//! 4. [`bias_correction`] for what is left on average.
//!
//! [`hqq`] alone needs no data. Everything reports losses before and after, and never makes them worse.
//!
//! Per channel, on the layers of `examples/fashion`, the loss of rounding to nearest is brought down to (geometric mean; 4,
//! 3, 2 bits): GPTQ .29, .21, .20; coordinate descent .31, .25, .22; GPTQ with descent .26, .19, .19; AdaRound .27, .20, .18;
//! AdaRound with descent .25, .19, .17; the same on ranges of `activation_weighted_mse` .21, .12, .06. Coordinate descent takes
//! a twentieth of AdaRound's time. The program `examples/rounding.rs` of this crate prints the table.

mod adaround;
mod awq;
mod bias;
mod descent;
mod hqq;
mod layer;
mod math;
mod moments;
mod ranges;

#[cfg(test)]
mod tests;

pub use adaround::{AdaRoundOptions, SoftRounding, adaround};
pub use awq::{Awq, AwqOptions, awq};
pub use bias::{BiasCorrection, bias_correction};
pub use descent::coordinate_descent;
pub use hqq::{Hqq, HqqOffsets, HqqOptions, hqq, hqq_offsets};
pub use layer::{reconstruction_losses, reconstruction_losses_reference};
pub use moments::{LayerMoments, MomentSums};
pub use ranges::{RangeChoice, activation_weighted_mse, sequential_mse};

/// A weight on its grid, and what that costs.
#[derive(Debug, Clone, PartialEq)]
pub struct Rounded {
    /// The quantized weight, `[rows, columns]`: fake-quantized with the same parameters it stays the same.
    pub weight: Vec<f32>,
    /// The loss of each row rounded to nearest, see [`reconstruction_losses`].
    pub before: Vec<f64>,
    /// The loss of each row of `weight`, never above that before.
    pub after: Vec<f64>,
    /// Rows that are rounded to nearest, because nothing better was found.
    pub rows_kept: usize,
}

impl Rounded {
    /// The loss of all rows rounded to nearest.
    pub fn loss_before(&self) -> f64 {
        self.before.iter().sum()
    }

    /// The loss of all rows of `weight`.
    pub fn loss_after(&self) -> f64 {
        self.after.iter().sum()
    }
}
