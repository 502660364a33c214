//! Coordinate descent: one weight after the other moved to where the layer's output error is least.

use rayon::prelude::*;

use super::Rounded;
use super::layer::{Judge, Layer};
use super::moments::LayerMoments;
use crate::affine::Affine;
use crate::error::{KernelError, check_finite, check_len};
use crate::grid::IntegerGrid;
use crate::product::{Lane, WIDTH, lanes_of, rows_of};
use crate::simd::{Vectorized, dispatch};
use crate::tiling::Tiling;

/// Rounds a weight, then changes one code at a time, always the one that lowers its row's output error most, until no
/// single change lowers it.
///
/// With `a = G d + b` (see [`reconstruction_losses`](crate::reconstruction_losses)), moving weight `j` of a row by `k` of
/// its steps `s` changes the row's loss by `k s (k s G_jj - 2 a_j)`, which is least at the code nearest to `code + a_j / (s
/// G_jj)`: every change is the best one there is for its weight, over the whole grid and not only to a neighbour. The
/// loss falls with each change and is known exactly, so the result is never worse than the start.
/// (Gauss-Southwell rule; for weights: CDQuant, Nair & Suggala 2024, arXiv 2406.17542.)
///
/// `start` is a quantized weight, `[rows, columns]`, for example of [`adaround`](crate::adaround) or of GPTQ, which is
/// rounded to the grid first; without it the weight rounded to nearest. Weight, tiling and errors are as for
/// [`adaround`](crate::adaround).
///
/// A product with `G` for each row, then time proportional to the columns for each change; about one weight in 20
/// changes. Decisions and sums are f64: the same bytes for any number of threads, and on all machines with fused
/// multiplication.
///
/// ```
/// use ff_kernels::*;
/// let mut sums = MomentSums::new(2);
/// sums.add(&[1.0, 1.0, 2.0, 2.0])?; // two inputs that are always the same
/// let tiling = Tiling::whole(&[1, 2])?;
/// let affine = Affine { scale: &[1.0], offset: None };
/// let grid = IntegerGrid::signed(4)?;
/// // Only the sum of both weights counts: 0.8 is nearer to 1 than to 0.
/// let rounded = coordinate_descent(&[0.4, 0.4], None, &sums.finish(), &tiling, affine, grid)?;
/// assert_eq!(rounded.weight.iter().sum::<f32>(), 1.0);
/// assert!(rounded.loss_after() < 0.07 * rounded.loss_before());
/// # Ok::<(), KernelError>(())
/// ```
pub fn coordinate_descent(
    weight: &[f32],
    start: Option<&[f32]>,
    moments: &LayerMoments,
    tiling: &Tiling,
    affine: Affine<'_>,
    grid: IntegerGrid,
) -> Result<Rounded, KernelError> {
    let layer = Layer::new(weight, moments, tiling, affine, grid)?;
    let judge = Judge::new(moments);
    let mut found = match start {
        Some(start) => {
            check_len("start", layer.weight.len(), start.len())?;
            check_finite(start.iter().map(|w| w.is_finite()))?;
            layer.round(start)
        }
        None => layer.nearest.clone(),
    };
    descend(&layer, moments, &judge, &mut found);
    Ok(layer.finish(&judge, found))
}

/// Lowers the loss of a weight that lies on its grid.
pub(super) fn descend(layer: &Layer, moments: &LayerMoments, judge: &Judge, found: &mut [f32]) {
    let n = layer.columns;
    found.par_chunks_mut((WIDTH * n).max(1)).enumerate().for_each(|(strip, found)| {
        let first = strip * WIDTH;
        let (w, q) = (lanes_of(&layer.weight, n, first), lanes_of(found, n, 0));
        let mut errors = vec![Lane([0.0; WIDTH]); n];
        for ((errors, w), q) in errors.iter_mut().zip(&w).zip(&q) {
            *errors = Lane::from_fn(|r| f64::from(w[r]) - f64::from(q[r]));
        }
        let (linear, _) = judge.shift(&w);
        let mut slopes: Vec<Lane<f64>> =
            if linear.is_empty() { vec![Lane([0.0; WIDTH]); n] } else { linear };
        judge.gram.multiply_add(&errors, &mut slopes);
        let mut slopes_of_rows = vec![0.0; found.len()];
        rows_of(&slopes, &mut slopes_of_rows);
        let rows = found.chunks_mut(n.max(1)).zip(slopes_of_rows.chunks_mut(n.max(1)));
        for (row, (found, slopes)) in (first..).zip(rows) {
            Row::new(layer, row, &moments.gram, found, slopes).descend();
        }
    });
}

/// One row while it descends; all `[columns]`.
struct Row<'a> {
    /// `[columns, columns]`
    gram: &'a [f64],
    found: &'a mut [f32],
    /// `a = G d + b`: minus half of the loss's gradient with respect to the quantized weight.
    slopes: &'a mut [f64],
    scale: &'a [f32],
    offset: &'a [f32],
    lo: f64,
    hi: f64,
    code: Vec<f64>,
    /// `1 / (s G_jj)`, or 0 for inputs that are always zero.
    reach: Vec<f64>,
    /// `s² G_jj`
    curvature: Vec<f64>,
}

/// The most changes for each weight of a row: a bound that no row comes near, for sums that overflow.
const MOST_CHANGES: usize = 16;

impl<'a> Row<'a> {
    fn new(
        layer: &'a Layer,
        row: usize,
        gram: &'a [f64],
        found: &'a mut [f32],
        slopes: &'a mut [f64],
    ) -> Self {
        let n = layer.columns;
        let (scale, offset) = (&layer.scale[row * n..][..n], &layer.offset[row * n..][..n]);
        let mut curvature = vec![0.0; n];
        let mut reach = vec![0.0; n];
        let mut code = vec![0.0; n];
        for j in 0..n {
            let (s, g) = (f64::from(scale[j]), gram[j * n + j]);
            curvature[j] = s * s * g;
            if g > 0.0 && curvature[j] > 0.0 {
                reach[j] = 1.0 / (s * g);
            }
            code[j] = f64::from((found[j] / scale[j] - offset[j]).round_ties_even());
        }
        let (lo, hi) = (f64::from(layer.grid.lo), f64::from(layer.grid.hi));
        Self { gram, found, slopes, scale, offset, lo, hi, code, reach, curvature }
    }

    fn descend(&mut self) {
        let n = self.found.len();
        let mut moved = (0, 0.0);
        for _ in 0..MOST_CHANGES * n {
            let Some(j) = dispatch(Next { row: self, moved }) else {
                return;
            };
            let (slope, reach, curvature) = (self.slopes[j], self.reach[j], self.curvature[j]);
            let bounds = (self.lo, self.hi);
            self.code[j] +=
                step_and_gain(self.code[j], slope, reach, curvature, self.scale[j], bounds).0;
            let new = (self.code[j] as f32 + self.offset[j]) * self.scale[j];
            moved = (j, f64::from(self.found[j]) - f64::from(new));
            self.found[j] = new;
        }
    }
}

/// Makes up for a weight that was moved, `a += change · G_j`, and finds the weight whose best move gains most, if one
/// gains at all; the first of equals.
struct Next<'a, 'b> {
    row: &'a mut Row<'b>,
    /// The weight and its change.
    moved: (usize, f64),
}

/// Weights looked at side by side.
const SIDE: usize = 8;

impl Vectorized for Next<'_, '_> {
    type Output = Option<usize>;

    #[inline(always)]
    fn run(self) -> Option<usize> {
        let Self { row, moved: (j, change) } = self;
        let n = row.found.len();
        let (gram, scale) = (&row.gram[j * n..][..n], &row.scale[..n]);
        let (code, reach, curvature) = (&row.code[..n], &row.reach[..n], &row.curvature[..n]);
        let slopes = &mut row.slopes[..n];
        let (lo, hi) = (row.lo, row.hi);
        let mut gains = [0.0f64; SIDE];
        let mut places = [u64::MAX; SIDE];
        let whole = n / SIDE * SIDE;
        for from in (0..whole).step_by(SIDE) {
            let slopes: &mut [f64; SIDE] =
                slopes[from..].first_chunk_mut().expect("the piece is whole");
            let gram: &[f64; SIDE] = gram[from..].first_chunk().expect("the piece is whole");
            let code: &[f64; SIDE] = code[from..].first_chunk().expect("the piece is whole");
            let reach: &[f64; SIDE] = reach[from..].first_chunk().expect("the piece is whole");
            let scale: &[f32; SIDE] = scale[from..].first_chunk().expect("the piece is whole");
            let curvature: &[f64; SIDE] =
                curvature[from..].first_chunk().expect("the piece is whole");
            for i in 0..SIDE {
                slopes[i] += change * gram[i];
                let (_, gain) =
                    step_and_gain(code[i], slopes[i], reach[i], curvature[i], scale[i], (lo, hi));
                let more = gain > gains[i];
                gains[i] = if more { gain } else { gains[i] };
                places[i] = if more { (from + i) as u64 } else { places[i] };
            }
        }
        for at in whole..n {
            slopes[at] += change * gram[at];
            let (_, gain) =
                step_and_gain(code[at], slopes[at], reach[at], curvature[at], scale[at], (lo, hi));
            if gain > gains[at - whole] {
                (gains[at - whole], places[at - whole]) = (gain, at as u64);
            }
        }
        let mut best = (0.0, u64::MAX);
        for (gain, place) in gains.into_iter().zip(places) {
            if gain > best.0 || (gain == best.0 && place < best.1) {
                best = (gain, place);
            }
        }
        (best.0 > 0.0).then_some(best.1 as usize)
    }
}

/// By how many steps to move a weight, and what the loss gains by it.
#[inline(always)]
fn step_and_gain(
    code: f64,
    slope: f64,
    reach: f64,
    curvature: f64,
    scale: f32,
    (lo, hi): (f64, f64),
) -> (f64, f64) {
    let target = (code + slope * reach).round_ties_even();
    let target = if target < lo { lo } else { target };
    let target = if target > hi { hi } else { target };
    let k = target - code;
    let bend = k * curvature;
    // A gain must be more than what rounding could make of a tie.
    (k, k * (2.0 * f64::from(scale) * slope - bend) - 1e-9 * k * bend)
}
