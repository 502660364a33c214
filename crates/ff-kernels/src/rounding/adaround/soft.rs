//! A weight between its two roundings, for a loss whose gradient comes from elsewhere.

use super::{AdaRoundOptions, Step, adam, gradient, rectified_sigmoid, stretched_logit};
use crate::affine::{Affine, Bounds};
use crate::error::{KernelError, check_len};
use crate::grid::IntegerGrid;
use crate::rounding::layer::{expand, matrix};
use crate::simd::{Vectorized, dispatch};
use crate::tiling::Tiling;

/// A weight whose elements are each rounded down or up, the choice relaxed as in [`adaround`](crate::adaround):
///
/// ```text
/// ŵ = s (f + h + o),  f = clamp(⌊w/s - o⌋, lo, hi - 1),  h = clamp(1.2 σ(V) - 0.1, 0, 1)
/// ```
///
/// Where the loss is that of a whole block of layers (BRECQ, Li et al. 2021, arXiv 2102.05426) its gradient `∂L/∂ŵ` comes
/// from backpropagation; [`step`](Self::step) adds that of the regularizer and moves `V` by a step of Adam.
///
/// ```
/// use ff_kernels::{AdaRoundOptions, Affine, IntegerGrid, SoftRounding, Tiling};
///
/// let (weight, tiling) = ([0.4, 0.4], Tiling::whole(&[2])?);
/// let affine = Affine { scale: &[1.0], offset: None };
/// let mut soft = SoftRounding::new(&weight, None, &tiling, affine, IntegerGrid::signed(4)?)?;
/// let options = AdaRoundOptions { iterations: 300, ..AdaRoundOptions::default() };
/// let mut now = [0.0; 2];
/// for iteration in 0..options.iterations {
///     soft.weight(&mut now)?;
///     // Only the sum counts: (Σ (ŵ - w))².
///     let error: f32 = now.iter().zip(&weight).map(|(now, weight)| now - weight).sum();
///     soft.step(&[24.0 * error + 0.01, 24.0 * error - 0.01], &options, iteration)?;
/// }
/// soft.rounded(&mut now)?;
/// assert_eq!(now, [0.0, 1.0]);
/// # Ok::<(), ff_kernels::KernelError>(())
/// ```
#[derive(Clone, Debug)]
pub struct SoftRounding {
    /// The lower of the two multiples of the scale: `f + o`.
    base: Vec<f32>,
    scale: Vec<f32>,
    /// `V`
    v: Vec<f32>,
    /// Adam's means of gradients and of their squares.
    mean: Vec<f32>,
    square: Vec<f32>,
}

impl SoftRounding {
    /// `h` starts where `ŵ` is `weight`, as far as the grid reaches; beside `chosen`, which is on the grid, halfway from
    /// there to its code, which then is one of the two.
    ///
    /// # Errors
    /// Slices of the wrong length; weights that are not finite; parameters that
    /// [`fake_quantize`](crate::fake_quantize) refuses.
    pub fn new(
        weight: &[f32],
        chosen: Option<&[f32]>,
        tiling: &Tiling,
        affine: Affine<'_>,
        grid: IntegerGrid,
    ) -> Result<Self, KernelError> {
        let tiling = affine.check(tiling)?;
        let (_, _, weight) = matrix(weight, &tiling)?;
        let chosen = chosen.map(|chosen| matrix(chosen, &tiling)).transpose()?;
        let scale = expand(&tiling, affine.scale);
        let offsets: Vec<f32> =
            affine.offset.unwrap_or(&[0.0]).iter().map(|offset| offset.round_ties_even()).collect();
        let offset = match offsets.as_slice() {
            [single] => vec![*single; weight.len()],
            all => expand(&tiling, all),
        };
        let grid = Bounds::new(grid);
        let most = (grid.hi - 1.0).max(grid.lo);
        let mut soft = Self {
            base: Vec::with_capacity(weight.len()),
            v: Vec::with_capacity(weight.len()),
            mean: vec![0.0; weight.len()],
            square: vec![0.0; weight.len()],
            scale,
        };
        for (at, weight) in weight.iter().enumerate() {
            let position = weight / soft.scale[at] - offset[at];
            let mut base = position.floor().clamp(grid.lo, most);
            let mut h = (position - base).clamp(0.0, 1.0);
            if let Some((_, _, chosen)) = &chosen {
                let code = (chosen[at] / soft.scale[at] - offset[at]).round_ties_even();
                let code = grid.clamp(code);
                base = base.clamp(code - 1.0, code).clamp(grid.lo, most);
                h = 0.5 * ((position - base).clamp(0.0, 1.0) + (code - base).clamp(0.0, 1.0));
            }
            soft.base.push(base + offset[at]);
            soft.v.push(stretched_logit(h));
        }
        Ok(soft)
    }

    /// How many weights there are.
    pub fn len(&self) -> usize {
        self.v.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.v.is_empty()
    }

    /// `ŵ`, in C order.
    ///
    /// # Errors
    /// `out` of another length.
    pub fn weight(&self, out: &mut [f32]) -> Result<(), KernelError> {
        check_len("weight", self.len(), out.len())?;
        dispatch(Soften(self, out));
        Ok(())
    }

    /// The mean over the weights of `s_j² e_j`. With the square `e = ‖J‖²` of the derivative `J` of an output by a weight it
    /// is the squared error that a step of a single weight makes in this output: what losses are measured in units of.
    ///
    /// # Errors
    /// Squares of another number of weights.
    pub fn unit(&self, energies: &[f64]) -> Result<f64, KernelError> {
        check_len("energies", self.len(), energies.len())?;
        let terms = self.scale.iter().zip(energies);
        let sum: f64 = terms.map(|(scale, energy)| f64::from(*scale).powi(2) * energy).sum();
        Ok(sum / self.len().max(1) as f64)
    }

    /// Goes down `slope`, the gradient of the loss by `ŵ`, and that of the regularizer, as [`adaround`](crate::adaround)
    /// does in this iteration; losses are in units of the one that an error of a step in a single weight would make.
    ///
    /// # Errors
    /// A gradient of another length; options outside their domain.
    pub fn step(
        &mut self,
        slope: &[f32],
        options: &AdaRoundOptions,
        iteration: usize,
    ) -> Result<(), KernelError> {
        options.check()?;
        check_len("gradient", self.len(), slope.len())?;
        dispatch(Descend(self, slope, Step::new(options, iteration)));
        Ok(())
    }

    /// Each weight at the nearer of its two roundings, on the grid bit for bit.
    ///
    /// # Errors
    /// `out` of another length.
    pub fn rounded(&self, out: &mut [f32]) -> Result<(), KernelError> {
        check_len("weight", self.len(), out.len())?;
        for (((out, base), scale), v) in
            out.iter_mut().zip(&self.base).zip(&self.scale).zip(&self.v)
        {
            *out = (base + if *v >= 0.0 { 1.0 } else { 0.0 }) * scale;
        }
        Ok(())
    }

    /// The other of the two roundings of each weight of `rounded`, on the grid bit for bit.
    ///
    /// # Errors
    /// Slices of another length.
    pub fn others(&self, rounded: &[f32], out: &mut [f32]) -> Result<(), KernelError> {
        check_len("weight", self.len(), rounded.len())?;
        check_len("weight", self.len(), out.len())?;
        let grid = self.base.iter().zip(&self.scale);
        for ((out, now), (base, scale)) in out.iter_mut().zip(rounded).zip(grid) {
            let [down, up] = [base * scale, (base + 1.0) * scale];
            *out = if *now == up { down } else { up };
        }
        Ok(())
    }
}

struct Soften<'a>(&'a SoftRounding, &'a mut [f32]);

impl Vectorized for Soften<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let Self(SoftRounding { base, scale, v, .. }, out) = self;
        for (((out, base), scale), v) in out.iter_mut().zip(base).zip(scale).zip(v) {
            *out = (base + rectified_sigmoid(*v)) * scale;
        }
    }
}

struct Descend<'a>(&'a mut SoftRounding, &'a [f32], Step);

impl Vectorized for Descend<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let Self(SoftRounding { scale, v, mean, square, .. }, slope, step) = self;
        let state = v.iter_mut().zip(mean).zip(square);
        for (((v, mean), square), (scale, slope)) in state.zip(scale.iter().zip(slope)) {
            // By ŵ; there the gradient is by the error, whose sign is the other one, and half of it.
            let gradient = gradient(rectified_sigmoid(*v), *scale, -0.5 * slope, step);
            adam(v, mean, square, gradient, step);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake_quantize;

    const SCALE: [f32; 2] = [0.25, 0.5];

    fn affine() -> Affine<'static> {
        Affine { scale: &SCALE, offset: Some(&[1.0, -2.3]) }
    }

    fn grid() -> IntegerGrid {
        IntegerGrid::signed(3).unwrap()
    }

    fn tiling() -> Tiling {
        Tiling::new(&[2, 3], &[1, 3]).unwrap()
    }

    const WEIGHT: [f32; 6] = [0.3, -0.61, 9.0, 0.1, -0.9, -7.0];

    #[test]
    fn it_starts_at_the_weight_as_far_as_the_grid_reaches() {
        let soft = SoftRounding::new(&WEIGHT, None, &tiling(), affine(), grid()).unwrap();
        let (mut now, mut hard, mut expected) = ([0.0; 6], [0.0; 6], [0.0; 6]);
        soft.weight(&mut now).unwrap();
        for at in [0, 1, 3, 4] {
            assert!((now[at] - WEIGHT[at]).abs() < 1e-5, "{now:?}");
        }
        // The largest code of the first row is 3, the smallest of the second -4.
        assert!((now[2] - 1.0).abs() < 1e-5 && (now[5] + 3.0).abs() < 1e-5, "{now:?}");
        // Of a step of a single weight: a quarter of it in the first row, half of it in the second.
        let unit = soft.unit(&[1.0, 1.0, 1.0, 2.0, 2.0, 2.0]).unwrap();
        assert!((unit - (0.0625 + 0.5) / 2.0).abs() < 1e-9);
        // Without a step, the nearer rounding is rounding to nearest.
        soft.rounded(&mut hard).unwrap();
        fake_quantize(&WEIGHT, &tiling(), affine(), grid(), &mut expected).unwrap();
        assert_eq!(hard, expected);
        let (mut others, mut again) = ([0.0; 6], [0.0; 6]);
        soft.others(&hard, &mut others).unwrap();
        assert_eq!(others, [0.5, -0.75, 0.75, 0.5, -0.5, -2.5]);
        soft.others(&others, &mut again).unwrap();
        assert_eq!(again, hard);
    }

    #[test]
    fn what_was_chosen_is_one_of_the_two_and_halfway() {
        let mut chosen = [0.0; 6];
        fake_quantize(&WEIGHT, &tiling(), affine(), grid(), &mut chosen).unwrap();
        chosen[0] = 0.75; // Two steps above the nearest.
        let soft = SoftRounding::new(&WEIGHT, Some(&chosen), &tiling(), affine(), grid()).unwrap();
        let mut hard = [0.0; 6];
        soft.rounded(&mut hard).unwrap();
        assert_eq!(hard[1..], chosen[1..]);
        let mut now = [0.0; 6];
        soft.weight(&mut now).unwrap();
        assert!((now[1] - 0.5 * (WEIGHT[1] + chosen[1])).abs() < 1e-5, "{now:?}");
        // Between 0.5 and 0.75, as near to both: the float weight is below, the choice above.
        assert!((now[0] - 0.625).abs() < 1e-5, "{now:?}");
    }

    #[test]
    fn the_gradient_is_that_of_loss_and_regularizer() {
        let soft = SoftRounding::new(&WEIGHT, None, &tiling(), affine(), grid()).unwrap();
        let slope = [0.7, -1.3, 0.2, 0.9, -0.4, 0.1];
        let step = Step { lambda: 0.3, beta: 3.0, rate: 1.0, square: 1.0 };
        for at in [0, 1, 3, 4] {
            let value = |v: f32| {
                let h = f64::from(rectified_sigmoid(v));
                let pull = 0.3 * (1.0 - (2.0 * h - 1.0).abs().powi(3));
                f64::from(slope[at]) * f64::from(soft.scale[at]) * h + pull
            };
            let v = soft.v[at];
            let numeric = (value(v + 5e-3) - value(v - 5e-3)) / 1e-2;
            let h = rectified_sigmoid(v);
            let found = f64::from(gradient(h, soft.scale[at], -0.5 * slope[at], step));
            assert!((found - numeric).abs() < 1e-4, "{found} {numeric}");
        }
    }

    #[test]
    fn it_descends_to_what_a_gradient_asks_for_and_ends_on_the_grid() {
        let mut soft = SoftRounding::new(&WEIGHT, None, &tiling(), affine(), grid()).unwrap();
        let options = AdaRoundOptions { iterations: 400, ..AdaRoundOptions::default() };
        let slope = [9.0, -9.0, -9.0, -9.0, 9.0, 9.0];
        for iteration in 0..options.iterations {
            soft.step(&slope, &options, iteration).unwrap();
        }
        let (mut hard, mut again, mut now) = ([0.0; 6], [0.0; 6], [0.0; 6]);
        soft.rounded(&mut hard).unwrap();
        soft.weight(&mut now).unwrap();
        // Down where the slope is positive; what lies beyond the grid stays at its end.
        assert_eq!(hard, [0.25, -0.5, 1.0, 0.5, -1.0, -3.0]);
        assert!(now.iter().zip(hard).all(|(now, hard)| (now - hard).abs() < 1e-3), "{now:?}");
        fake_quantize(&hard, &tiling(), affine(), grid(), &mut again).unwrap();
        assert_eq!(again, hard);
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let make = |weight: &[f32]| SoftRounding::new(weight, None, &tiling(), affine(), grid());
        assert!(make(&[0.0; 5]).is_err() && make(&[f32::NAN; 6]).is_err());
        let mut soft = make(&WEIGHT).unwrap();
        let options = AdaRoundOptions::default();
        assert!(soft.step(&[0.0; 5], &options, 0).is_err() && soft.weight(&mut []).is_err());
        let options = AdaRoundOptions { iterations: 0, ..options };
        assert!(soft.step(&[0.0; 6], &options, 0).is_err());
    }
}
