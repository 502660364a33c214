//! The gradient of the weight: inner products of shifted slices.

use rayon::prelude::*;

use super::grid::{self, Grid};
use super::num::{Real, multiply_add};
use super::{ConvShape, MANY_UNITS, MIN_PARALLEL};
use crate::simd::{Fused, dispatch_fused, many_registers};

/// Adds the gradient of every image to `grad`; lengths have been checked and nothing is empty.
pub(super) fn gradient<T: Real>(shape: &ConvShape, x: &[T], y: &[T], grad: &mut [T]) {
    let grid = Grid::new(shape);
    let (in_group, out_group) = shape.group_channels();
    let in_place = grid.reads_in_place(shape);
    let x_plane = if in_place { grid.extent() } else { grid.plane };
    let y_plane = if in_place { grid.extent() } else { grid::pitch(grid.extent()) };
    let offsets: Vec<usize> = (0..in_group)
        .flat_map(|c| grid.taps.iter().map(move |tap| (c, tap)))
        .map(|(c, tap)| (c * grid.phases.len() + tap.phase) * x_plane + tap.shift)
        .collect();
    let depth = offsets.len();
    let x_unit = in_group * shape.input.iter().product::<usize>();
    let y_unit = out_group * shape.output.iter().product::<usize>();

    // Images one after the other, so that the order of additions does not depend on threads.
    let one_group = |group: usize, grad: &mut [T], parallel: bool| {
        let (mut x_grid, mut y_grid) = (Vec::new(), Vec::new());
        for image in 0..shape.batch {
            let unit = image * shape.groups + group;
            let (mut x, mut y) = (&x[unit * x_unit..][..x_unit], &y[unit * y_unit..][..y_unit]);
            if !in_place {
                grid.lay_out_input(shape, x, &mut x_grid, parallel);
                grid.lay_out_output(shape, y, 0, y_plane, &mut y_grid, parallel);
                (x, y) = (&x_grid, &y_grid);
            }
            let positions = grid.positions;
            let dots = |first: usize, grad: &mut [T]| {
                let y = &y[first * y_plane..];
                dispatch_fused(Dots { x, offsets: &offsets, y, y_plane, positions, grad });
            };
            if parallel {
                let rows = out_group.div_ceil(TILE).div_ceil(8) * TILE;
                grad.par_chunks_mut(rows * depth)
                    .enumerate()
                    .for_each(|(i, grad)| dots(i * rows, grad));
            } else {
                dots(0, grad);
            }
        }
    };
    let work = shape.unit_work();
    if shape.groups >= MANY_UNITS
        && (shape.groups * shape.batch).saturating_mul(work) >= MIN_PARALLEL
    {
        grad.par_chunks_mut(out_group * depth)
            .enumerate()
            .for_each(|(group, grad)| one_group(group, grad, false));
    } else {
        for (group, grad) in grad.chunks_mut(out_group * depth).enumerate() {
            one_group(group, grad, work >= MIN_PARALLEL);
        }
    }
}

/// Rows, and columns, of a tile of inner products.
const TILE: usize = 4;
/// Positions summed at once: a tile's rows stay in the first cache for all columns.
const SPAN: usize = 2048;

/// `grad[row, k] += Σ_p y[row · y_plane + p] · x[offsets[k] + p]`.
struct Dots<'a, T> {
    x: &'a [T],
    offsets: &'a [usize],
    y: &'a [T],
    y_plane: usize,
    positions: usize,
    grad: &'a mut [T],
}

impl<T: Real> Fused for Dots<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<const FUSED: bool>(self) {
        if many_registers() { self.tiles::<16, FUSED>() } else { self.tiles::<8, FUSED>() }
    }
}

impl<T: Real> Dots<'_, T> {
    #[inline(always)]
    fn tiles<const L: usize, const FUSED: bool>(self) {
        let Self { x, offsets, y, y_plane, positions, grad } = self;
        let depth = offsets.len();
        let rows = grad.len() / depth;
        for start in (0..positions).step_by(SPAN) {
            let len = SPAN.min(positions - start);
            for row in (0..rows).step_by(TILE) {
                for k in (0..depth).step_by(TILE) {
                    // Past the end a tile repeats its last row or column, and drops the result.
                    let x: [&[T]; TILE] = std::array::from_fn(|i| {
                        &x[offsets[(k + i).min(depth - 1)] + start..][..len]
                    });
                    let y = |i: usize| &y[(row + i).min(rows - 1) * y_plane + start..][..len];
                    if row + 1 < rows {
                        let y: [&[T]; TILE] = std::array::from_fn(y);
                        keep(&dots::<T, TILE, L, FUSED>(y, x), row, k, depth, grad);
                    } else {
                        keep(&dots::<T, 1, L, FUSED>([y(0)], x), row, k, depth, grad);
                    }
                }
            }
        }
    }
}

/// Inner products of `R` slices with `TILE` slices, all of one length.
#[inline(always)]
fn dots<T: Real, const R: usize, const L: usize, const FUSED: bool>(
    y: [&[T]; R],
    x: [&[T]; TILE],
) -> [[T; TILE]; R] {
    let mut sums = [[[T::default(); L]; TILE]; R];
    let y_lanes = y.map(|y| y.as_chunks::<L>());
    let x_lanes = x.map(|x| x.as_chunks::<L>());
    let chunks = x_lanes[0].0.len();
    for i in 0..chunks {
        let x = x_lanes.map(|(x, _)| x[i]);
        for (sums, (y, _)) in sums.iter_mut().zip(&y_lanes) {
            let y = y[i];
            for (sums, x) in sums.iter_mut().zip(&x) {
                for ((sum, y), x) in sums.iter_mut().zip(&y).zip(x) {
                    *sum = multiply_add::<T, FUSED>(*y, *x, *sum);
                }
            }
        }
    }
    let mut totals = [[T::default(); TILE]; R];
    for (r, (totals, sums)) in totals.iter_mut().zip(&sums).enumerate() {
        for (c, (total, sums)) in totals.iter_mut().zip(sums).enumerate() {
            let mut sum = fold(sums);
            for (y, x) in y_lanes[r].1.iter().zip(x_lanes[c].1) {
                sum = multiply_add::<T, FUSED>(*y, *x, sum);
            }
            *total = sum;
        }
    }
    totals
}

/// The sum of all lanes, halves first.
#[inline(always)]
fn fold<T: Real, const L: usize>(lanes: &[T; L]) -> T {
    let mut lanes = *lanes;
    let mut half = L / 2;
    while half > 0 {
        for i in 0..half {
            lanes[i] = lanes[i] + lanes[i + half];
        }
        half /= 2;
    }
    lanes[0]
}

#[inline(always)]
fn keep<T: Real, const R: usize>(
    sums: &[[T; TILE]; R],
    row: usize,
    k: usize,
    depth: usize,
    grad: &mut [T],
) {
    let columns = TILE.min(depth - k);
    for (grad, sums) in grad[row * depth..].chunks_mut(depth).zip(sums) {
        for (grad, sum) in grad[k..k + columns].iter_mut().zip(sums) {
            *grad += *sum;
        }
    }
}
