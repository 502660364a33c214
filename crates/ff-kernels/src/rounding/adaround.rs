//! AdaRound: whether each weight is rounded down or up, learned by gradient descent on a relaxed choice.

mod soft;

use rayon::prelude::*;

use super::Rounded;
use super::descent::descend;
use super::layer::{Judge, Layer};
use super::math::{exp2, log2};
use super::moments::LayerMoments;
use crate::affine::Affine;
use crate::error::{KernelError, KernelErrorKind};
use crate::grid::IntegerGrid;
use crate::product::{Lane, Panels, WIDTH, lanes_of, rows_of};
use crate::simd::{Vectorized, dispatch};
use crate::tiling::Tiling;

pub use soft::SoftRounding;

/// How [`adaround`] searches. The defaults of `beta` and `warm_up` are the paper's; the others are for exact gradients,
/// which need a tenth of the steps of sampled ones.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdaRoundOptions {
    /// Steps of gradient descent, at least 1.
    pub iterations: usize,
    /// Adam's learning rate, positive.
    pub learning_rate: f32,
    /// `λ`, the weight of the regularizer, not negative. Losses are measured in units of the mean loss that a rounding
    /// error of one step in a single weight would make, so that one `λ` suits all layers.
    pub regularizer: f32,
    /// `β` when the regularizer sets in, and at the end; each at least 1. While it is large only weights that are nearly
    /// decided feel the regularizer; it falls like half a cosine.
    pub beta: (f32, f32),
    /// The share of iterations without regularizer, in `0..=1`.
    pub warm_up: f32,
    /// Whether [`coordinate_descent`](crate::coordinate_descent) follows, which takes a few of the decisions back.
    pub descent: bool,
}

impl Default for AdaRoundOptions {
    fn default() -> Self {
        Self {
            iterations: 1000,
            learning_rate: 0.03,
            regularizer: 0.5,
            beta: (20.0, 2.0),
            warm_up: 0.2,
            descent: true,
        }
    }
}

/// Rounds each weight down or up so that the layer's output changes least: AdaRound (Nagel et al. 2020, arXiv 2004.10568)
/// with exact gradients.
///
/// For each row, over `V` of the same shape as the row, Adam minimises
///
/// ```text
/// (d G dᵀ + 2 d·b) / u + λ Σ_j (1 - |2 h_j - 1|^β)
///     d = w - s (f + h + o),  f = clamp(⌊w/s - o⌋, lo, hi - 1),  h = clamp(1.2 σ(V) - 0.1, 0, 1)
/// ```
///
/// with `G` and `b` of [`reconstruction_losses`](crate::reconstruction_losses), which hold all calibration data, and `u`
/// the mean of `s_j² G_jj`. `h` starts where `d = 0`. The paper estimates the gradient `-2 s_j (G d + b)_j / u · h'(V_j)`
/// from a few samples per step; here it is exact, so no samples need be kept and nothing is random. In the end `h` is
/// rounded; a row whose loss is not below that of rounding to nearest is rounded to nearest ([`Rounded::rows_kept`]).
///
/// `tiling` describes the weight with its first dimension the rows (outputs) and all others together the inputs, in the
/// order of the moments; a strided view is read as such. The result is `[rows, columns]`, on the grid bit for bit:
/// fake-quantized with the same parameters it stays the same.
///
/// Takes `iterations` products of the weight with `G`: `2 · iterations · rows · columns²` operations. Sums of gradients are
/// f32, losses f64. The same bytes for any number of threads, and on all machines with fused multiplication (x86-64 with
/// AVX2 or AVX-512, aarch64).
///
/// # Errors
/// Another number of inputs than the moments have; weights that are not finite; parameters that
/// [`fake_quantize`](crate::fake_quantize) refuses; options outside their domain.
///
/// ```
/// use ff_kernels::*;
/// let mut sums = MomentSums::new(2);
/// sums.add(&[1.0, 1.0, 2.0, 2.0])?; // two inputs that are always the same
/// let tiling = Tiling::whole(&[1, 2])?;
/// let affine = Affine { scale: &[1.0], offset: None };
/// let options = AdaRoundOptions::default();
/// let grid = IntegerGrid::signed(4)?;
/// // Only the sum of both weights counts: 0.8 is nearer to 1 than to 0.
/// let rounded = adaround(&[0.4, 0.4], &sums.finish(), &tiling, affine, grid, &options)?;
/// assert_eq!(rounded.weight.iter().sum::<f32>(), 1.0);
/// assert!(rounded.loss_after() < 0.07 * rounded.loss_before());
/// # Ok::<(), KernelError>(())
/// ```
pub fn adaround(
    weight: &[f32],
    moments: &LayerMoments,
    tiling: &Tiling,
    affine: Affine<'_>,
    grid: IntegerGrid,
    options: &AdaRoundOptions,
) -> Result<Rounded, KernelError> {
    options.check()?;
    let layer = Layer::new(weight, moments, tiling, affine, grid)?;
    let judge = Judge::new(moments);
    let mut found = search(&layer, moments, &judge, options);
    if options.descent {
        descend(&layer, moments, &judge, &mut found);
    }
    Ok(layer.finish(&judge, found))
}

impl AdaRoundOptions {
    fn check(&self) -> Result<(), KernelError> {
        let option = |what, must_be, good: bool, found: f64| {
            if good { Ok(()) } else { Err(KernelErrorKind::Option { what, must_be, found }.into()) }
        };
        let Self { iterations, learning_rate: rate, regularizer, beta, warm_up, .. } = *self;
        option("number of iterations", "at least 1", iterations > 0, iterations as f64)?;
        option(
            "learning rate",
            "positive and finite",
            rate > 0.0 && rate.is_finite(),
            rate.into(),
        )?;
        let good = regularizer >= 0.0 && regularizer.is_finite();
        option("regularizer", "finite and not negative", good, regularizer.into())?;
        for beta in [beta.0, beta.1] {
            option("beta", "finite and at least 1", beta >= 1.0 && beta.is_finite(), beta.into())?;
        }
        option("warm-up", "in 0..=1", (0.0..=1.0).contains(&warm_up), warm_up.into())
    }

    /// `λ` and `β` of an iteration.
    fn regularizer_at(&self, iteration: usize) -> (f32, f32) {
        let (total, at) = (self.iterations as f64, iteration as f64);
        let warm_up = f64::from(self.warm_up * self.iterations as f32);
        let (start, end) = self.beta;
        if at < warm_up {
            return (0.0, start);
        }
        let done = (at - warm_up) / (total - warm_up).max(1.0);
        let share = 0.5 * (1.0 + (done * std::f64::consts::PI).cos());
        (self.regularizer, end + (start - end) * share as f32)
    }
}

/// Ends of the stretched sigmoid.
const ZETA: f32 = 1.1;
const GAMMA: f32 = -0.1;
/// Adam's decay of the mean gradient and of the mean square.
const DECAY: [f32; 2] = [0.9, 0.999];
/// Adam's ε.
const EPSILON: f32 = 1e-8;

/// The weights found, on the grid.
fn search(
    layer: &Layer,
    moments: &LayerMoments,
    judge: &Judge,
    options: &AdaRoundOptions,
) -> Vec<f32> {
    let n = layer.columns;
    let gram = Panels::new(n, n, |k, j| moments.gram[k * n + j] as f32);
    // Strips of one unit share the reading of `G`; no result depends on how many there are.
    let strips = layer.rows.div_ceil(WIDTH);
    let unit = strips.div_ceil(rayon::current_num_threads()).clamp(1, 4);
    let mut found = vec![0.0; layer.weight.len()];
    found.par_chunks_mut((unit * WIDTH * n).max(1)).enumerate().for_each(|(number, found)| {
        let mut state = State::new(layer, moments, judge, number * unit * WIDTH, found.len() / n);
        for iteration in 0..options.iterations {
            state.forward();
            state.multiply(&gram);
            state.backward(Step::new(options, iteration));
        }
        for (hard, rows) in state.hard().chunks(n).zip(found.chunks_mut(WIDTH * n)) {
            rows_of(hard, rows);
        }
    });
    found
}

/// Some strips of 32 rows while they are optimised. All are `[strips, columns]` unless said otherwise; rows that do not exist
/// have scale zero.
struct State {
    columns: usize,
    /// The lower of the two multiples of the scale: `f + o`.
    base: Vec<Lane<f32>>,
    scale: Vec<Lane<f32>>,
    /// Where the weight lies between both, or beyond: `w/s - o - f`.
    fraction: Vec<Lane<f32>>,
    /// `V`
    v: Vec<Lane<f32>>,
    /// Adam's means of gradients and of their squares.
    mean: Vec<Lane<f32>>,
    square: Vec<Lane<f32>>,
    h: Vec<Lane<f32>>,
    /// `d`
    error: Vec<Lane<f32>>,
    /// `b`, or nothing if it is zero.
    linear: Vec<Lane<f32>>,
    /// `G d + b`
    slope: Vec<Lane<f32>>,
    /// `1/u`, or zero where `u` is; `[strips]`.
    unit: Vec<Lane<f32>>,
}

/// What changes from one iteration to the next.
#[derive(Clone, Copy)]
struct Step {
    lambda: f32,
    beta: f32,
    /// The learning rate, and a factor for the mean square, that make up for means that started from zero.
    rate: f32,
    square: f32,
}

impl Step {
    fn new(options: &AdaRoundOptions, iteration: usize) -> Self {
        let (lambda, beta) = options.regularizer_at(iteration);
        let number = i32::try_from(iteration + 1).unwrap_or(i32::MAX);
        let [mean, square] = DECAY.map(|decay| (1.0 - f64::from(decay).powi(number)) as f32);
        Self { lambda, beta, rate: options.learning_rate / mean, square: 1.0 / square }
    }
}

impl State {
    /// The state of rows `first..first + rows` before the first iteration.
    fn new(
        layer: &Layer,
        moments: &LayerMoments,
        judge: &Judge,
        first: usize,
        rows: usize,
    ) -> Self {
        let n = layer.columns;
        let strips = rows.div_ceil(WIDTH);
        let zeros = || vec![Lane([0.0f32; WIDTH]); strips * n];
        let mut state = Self {
            columns: n,
            base: zeros(),
            scale: zeros(),
            fraction: zeros(),
            v: zeros(),
            mean: zeros(),
            square: zeros(),
            h: zeros(),
            error: zeros(),
            linear: Vec::new(),
            slope: zeros(),
            unit: vec![Lane([0.0; WIDTH]); strips],
        };
        for strip in 0..strips {
            let from = first + strip * WIDTH;
            let (linear, _) = judge.shift(&lanes_of(&layer.weight, n, from));
            state.linear.extend(linear.iter().map(|lane| Lane(lane.map(|b| b as f32))));
            for (r, row) in (from..(first + rows).min(from + WIDTH)).enumerate() {
                let mut unit = 0.0;
                for j in 0..n {
                    let (at, of) = (strip * n + j, row * n + j);
                    let (scale, offset) = (layer.scale[of], layer.offset[of]);
                    let position = layer.weight[of] / scale - offset;
                    let base = position.floor().clamp(layer.grid.lo, layer.grid.hi - 1.0);
                    let fraction = position - base;
                    // Beyond the grid the weight starts at its end.
                    let h = fraction.clamp(0.0, 1.0);
                    state.base[at][r] = base + offset;
                    state.scale[at][r] = scale;
                    state.fraction[at][r] = fraction;
                    state.v[at][r] = stretched_logit(h);
                    unit += f64::from(scale).powi(2) * moments.gram[j * n + j];
                }
                let inverse = (n as f64 / unit) as f32;
                state.unit[strip][r] = if inverse.is_finite() { inverse } else { 0.0 };
            }
        }
        state
    }

    /// `h` and `d` of `V`.
    fn forward(&mut self) {
        dispatch(Forward(self));
    }

    /// `G d + b`
    fn multiply(&mut self, gram: &Panels<f32>) {
        if self.linear.is_empty() {
            self.slope.fill(Lane([0.0; WIDTH]));
        } else {
            self.slope.copy_from_slice(&self.linear);
        }
        gram.multiply_add(&self.error, &mut self.slope);
    }

    /// A step of Adam.
    fn backward(&mut self, step: Step) {
        dispatch(Backward(self, step));
    }

    /// The quantized weight, every choice made.
    fn hard(&self) -> Vec<Lane<f32>> {
        let value = |at: usize, r: usize| {
            let up = if self.v[at][r] >= 0.0 { 1.0 } else { 0.0 };
            (self.base[at][r] + up) * self.scale[at][r]
        };
        (0..self.v.len()).map(|at| Lane::from_fn(|r| value(at, r))).collect()
    }
}

/// `h` for `V`.
#[inline(always)]
fn rectified_sigmoid(v: f32) -> f32 {
    let sigmoid = 1.0 / (1.0 + exp2(-std::f32::consts::LOG2_E * v));
    (sigmoid * (ZETA - GAMMA) + GAMMA).clamp(0.0, 1.0)
}

/// The `V` of an `h` in `0..=1`.
#[inline(always)]
fn stretched_logit(h: f32) -> f32 {
    std::f32::consts::LN_2 * log2((h - GAMMA) / (ZETA - h))
}

/// A step of Adam.
#[inline(always)]
fn adam(v: &mut f32, mean: &mut f32, square: &mut f32, gradient: f32, step: Step) {
    *mean = DECAY[0] * *mean + (1.0 - DECAY[0]) * gradient;
    *square = DECAY[1] * *square + (1.0 - DECAY[1]) * gradient * gradient;
    let deviation = (*square * step.square).sqrt() + EPSILON;
    *v -= step.rate * *mean / deviation;
}

/// The gradient with respect to `V` of what is minimised; `slope` is `(G d + b) / u`.
#[inline(always)]
fn gradient(h: f32, scale: f32, slope: f32, Step { lambda, beta, .. }: Step) -> f32 {
    let loss = -2.0 * scale * slope;
    let t = 2.0 * h - 1.0;
    let pull = 2.0 * lambda * beta * exp2((beta - 1.0) * log2(t.abs().max(f32::MIN_POSITIVE)));
    let by_h = if t < 0.0 { loss + pull } else { loss - pull };
    // σ is known from h; where h is clipped, V does nothing.
    let sigmoid = (h - GAMMA) * (1.0 / (ZETA - GAMMA));
    let h_by_v = (ZETA - GAMMA) * sigmoid * (1.0 - sigmoid);
    if h > 0.0 && h < 1.0 { by_h * h_by_v } else { 0.0 }
}

struct Forward<'a>(&'a mut State);

impl Vectorized for Forward<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let State { v, h, fraction, scale, error, .. } = self.0;
        let lanes = v.iter().zip(h).zip(fraction).zip(scale).zip(error);
        for ((((v, h), fraction), scale), error) in lanes {
            for r in 0..WIDTH {
                h[r] = rectified_sigmoid(v[r]);
                error[r] = scale[r] * (fraction[r] - h[r]);
            }
        }
    }
}

struct Backward<'a>(&'a mut State, Step);

impl Vectorized for Backward<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let Self(State { columns, v, mean, square, h, scale, slope, unit, .. }, step) = self;
        for (strip, unit) in unit.iter().enumerate() {
            for at in strip * *columns..(strip + 1) * *columns {
                let (v, mean, square) = (&mut v[at], &mut mean[at], &mut square[at]);
                let (h, scale, slope) = (&h[at], &scale[at], &slope[at]);
                for r in 0..WIDTH {
                    let gradient = gradient(h[r], scale[r], slope[r] * unit[r], step);
                    adam(&mut v[r], &mut mean[r], &mut square[r], gradient, step);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
