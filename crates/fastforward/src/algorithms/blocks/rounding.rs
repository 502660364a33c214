//! Weights between their two roundings, as variables.

use candle_core::backprop::GradStore;
use candle_core::{Device, Tensor, Var};

use super::BlockOptions;
use crate::algorithms::layer::Layer;
use crate::algorithms::layerwise::MatrixTiles;
use crate::algorithms::network::values;
use crate::quantization::affine::AffineParameters;
use crate::tensor::Result;

/// Ends of the stretched sigmoid.
const ZETA: f32 = 1.1;
const GAMMA: f32 = -0.1;
/// Adam's decay of the mean gradient and of the mean square.
const DECAY: [f32; 2] = [0.9, 0.999];
/// Adam's ε.
const EPSILON: f32 = 1e-8;

/// The weight of one layer, `ŵ = s (f + h + o)`.
pub(super) struct SoftRounding {
    /// `s (f + o)`, in the weight's shape.
    base: Tensor,
    /// `s`, in the weight's shape.
    scale: Tensor,
    /// `h`
    h: Var,
    /// The type of the parameter.
    dtype: candle_core::DType,
    lower: Vec<f32>,
    step: Vec<f32>,
    v: Vec<f32>,
    /// Adam's means of gradients and of their squares.
    mean: Vec<f32>,
    square: Vec<f32>,
}

/// One step of Adam.
pub(super) struct Adam {
    lambda: f32,
    beta: f32,
    /// The learning rate, and a factor for the mean square, that make up for means that started from zero.
    rate: f32,
    square: f32,
}

impl Adam {
    pub(super) fn new(options: &BlockOptions, iteration: usize) -> Self {
        let (lambda, beta) = options.regularizer_at(iteration);
        let number = i32::try_from(iteration + 1).unwrap_or(i32::MAX);
        let [mean, square] = DECAY.map(|decay| (1.0 - f64::from(decay).powi(number)) as f32);
        Self { lambda, beta, rate: options.learning_rate / mean, square: 1.0 / square }
    }
}

impl SoftRounding {
    /// `h` starts where `ŵ` is the float weight, as far as the grid reaches; beside a `chosen` weight, which is on the grid,
    /// halfway from there to its code.
    pub(super) fn new(
        layer: &Layer,
        (float, chosen): (&[f32], Option<&[f32]>),
        parameters: &AffineParameters,
        tiles: &MatrixTiles,
    ) -> Result<Self> {
        let grid = parameters.grid()?;
        let (lo, hi) = (grid.lo() as f32, grid.hi() as f32);
        let scales = tiles.to_matrix(&parameters.scale);
        let n_tiles = parameters.scale.len();
        let rounded: Vec<f32> = (0..n_tiles).map(|tile| parameters.rounded_offset(tile)).collect();
        let offsets = tiles.to_matrix(&rounded);
        let columns = layer.columns();
        let [tile_rows, tile_columns] = tiles.tile;
        let across = columns / tile_columns;
        let (mut lower, mut step, mut v) = (Vec::new(), Vec::new(), Vec::new());
        for (at, &weight) in float.iter().enumerate() {
            let tile = at / columns / tile_rows * across + at % columns / tile_columns;
            let (scale, offset) = (scales[tile], offsets[tile]);
            let position = weight / scale - offset;
            let most = (hi - 1.0).max(lo);
            let mut floor = position.floor().clamp(lo, most);
            let mut h = (position - floor).clamp(0.0, 1.0);
            if let Some(chosen) = chosen {
                // Which may be neither of the two beside the float weight.
                let code = (chosen[at] / scale - offset).round_ties_even();
                floor = floor.clamp(code - 1.0, code).clamp(lo, most);
                h = 0.5 * ((position - floor).clamp(0.0, 1.0) + (code - floor).clamp(0.0, 1.0));
            }
            lower.push((floor + offset) * scale);
            step.push(scale);
            v.push(-((ZETA - GAMMA) / (h - GAMMA) - 1.0).ln());
        }
        let shape = layer.weight.dims();
        let tensor = |data: &[f32]| Tensor::from_slice(data, shape, &Device::Cpu);
        let h: Vec<f32> = v.iter().map(|&v| stretched(v)).collect();
        Ok(Self {
            base: tensor(&lower)?,
            scale: tensor(&step)?,
            h: Var::from_slice(&h, shape, &Device::Cpu)?,
            dtype: layer.weight.dtype(),
            mean: vec![0.0; v.len()],
            square: vec![0.0; v.len()],
            lower,
            step,
            v,
        })
    }

    /// How many weights there are.
    pub(super) fn len(&self) -> usize {
        self.v.len()
    }

    /// The weight as it is now, with a history that ends in `h`.
    pub(super) fn weight(&self) -> Result<Tensor> {
        let weight = (&self.base + (&self.scale * self.h.as_tensor())?)?;
        Ok(weight.to_dtype(self.dtype)?)
    }

    /// Each weight at the nearer of its two roundings.
    pub(super) fn hard(&self) -> Vec<f32> {
        let all = self.lower.iter().zip(&self.step).zip(&self.v);
        all.map(|((lower, step), &v)| if v >= 0.0 { lower + step } else { *lower }).collect()
    }

    /// Goes down the gradient of the loss, which is taken with respect to `h`, and of the regularizer.
    pub(super) fn step(&mut self, gradients: &GradStore, adam: &Adam) -> Result<()> {
        // Without one, the output does not depend on this weight.
        let gradient = gradients.get(self.h.as_tensor()).map(values).transpose()?;
        let mut h = Vec::with_capacity(self.v.len());
        for at in 0..self.v.len() {
            let v = self.v[at];
            let slope = gradient.as_ref().map_or(0.0, |gradient| gradient[at]);
            let toward = 2.0 * stretched(v) - 1.0;
            let pull = -2.0 * adam.beta * toward.signum() * toward.abs().powf(adam.beta - 1.0);
            let gradient = (slope + adam.lambda * pull) * stretched_slope(v);
            let mean = &mut self.mean[at];
            *mean += (1.0 - DECAY[0]) * (gradient - *mean);
            let square = &mut self.square[at];
            *square += (1.0 - DECAY[1]) * (gradient * gradient - *square);
            let v = v - adam.rate * *mean / ((*square * adam.square).sqrt() + EPSILON);
            self.v[at] = v;
            h.push(stretched(v));
        }
        self.h.set(&Tensor::from_vec(h, self.h.shape(), &Device::Cpu)?)?;
        Ok(())
    }
}

/// `clamp(1.2 σ(v) - 0.1, 0, 1)`
fn stretched(v: f32) -> f32 {
    ((ZETA - GAMMA) / (1.0 + (-v).exp()) + GAMMA).clamp(0.0, 1.0)
}

/// Its derivative; zero where it is clamped.
fn stretched_slope(v: f32) -> f32 {
    let sigmoid = 1.0 / (1.0 + (-v).exp());
    let h = (ZETA - GAMMA) * sigmoid + GAMMA;
    if (0.0..=1.0).contains(&h) { (ZETA - GAMMA) * sigmoid * (1.0 - sigmoid) } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_slope_is_that_of_the_stretched_sigmoid() {
        for at in -30..=30 {
            let v = at as f32 * 0.1 + 0.013;
            let numeric = (stretched(v + 1e-2) - stretched(v - 1e-2)) / 2e-2;
            assert!((numeric - stretched_slope(v)).abs() < 2e-3, "{v}");
        }
    }

    #[test]
    fn what_begins_as_the_float_weight_ends_beside_it() {
        for h in [0.0f32, 0.2, 0.5, 0.8, 1.0] {
            let v = -((ZETA - GAMMA) / (h - GAMMA) - 1.0).ln();
            assert!((stretched(v) - h).abs() < 1e-6);
            assert_eq!(v >= 0.0, h >= 0.5);
        }
    }
}
