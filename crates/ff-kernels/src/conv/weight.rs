//! The gradient of the weight: inner products over the positions of all images.

use std::ops::Range;

use rayon::prelude::*;

use super::grid::{self, Grid};
use super::{ConvShape, MANY_UNITS, MIN_PARALLEL};
use crate::lanes::{Fused, Lanes, MAX_LANES, Real, count, dispatch_fused, many_registers};

/// Adds the gradient of every image to `grad`; lengths have been checked and nothing is empty.
pub(super) fn gradient<T: Real>(shape: &ConvShape, x: &[T], y: &[T], grad: &mut [T]) {
    let grid = Grid::new(shape);
    let (in_group, out_group) = shape.group_channels();
    let work = Work {
        shape,
        offsets: (0..in_group)
            .flat_map(|c| grid.taps.iter().map(move |tap| (c, tap)))
            .map(|(c, tap)| (c * grid.phases.len() + tap.phase) * grid.plane + tap.shift)
            .collect(),
        grid,
        x,
        y,
    };
    let group_len = out_group * work.offsets.len();
    let unit_work = shape.unit_work();
    let all_work = (shape.groups * shape.batch).saturating_mul(unit_work);
    if shape.groups >= MANY_UNITS && all_work >= MIN_PARALLEL {
        grad.par_chunks_mut(group_len)
            .enumerate()
            .for_each(|(group, grad)| work.group(group, grad, false));
    } else {
        for (group, grad) in grad.chunks_mut(group_len).enumerate() {
            work.group(group, grad, unit_work >= MIN_PARALLEL);
        }
    }
}

struct Work<'a, T> {
    shape: &'a ConvShape,
    grid: Grid,
    /// Where column `k = (channel, tap)` begins in the laid out input.
    offsets: Vec<usize>,
    x: &'a [T],
    y: &'a [T],
}

/// From so many output channels on, their gradients at one position fill registers well enough.
const MIN_CHANNELS: usize = 4;
/// Columns of a register tile, where there are 32 registers; else half as many.
const BLOCK: usize = 12;
/// Positions done at once: the outputs at these stay in the cache for all columns.
const SPAN: usize = 256;

impl<T: Real> Work<'_, T> {
    /// Images one after the other, so that the order of additions does not depend on threads.
    fn group(&self, group: usize, grad: &mut [T], parallel: bool) {
        let Self { shape, grid, offsets, x, y } = self;
        let (in_group, out_group) = shape.group_channels();
        let x_unit = in_group * shape.input.iter().product::<usize>();
        let y_unit = out_group * shape.output.iter().product::<usize>();
        let images = (0..shape.batch).map(|image| {
            let unit = image * shape.groups + group;
            (&x[unit * x_unit..][..x_unit], &y[unit * y_unit..][..y_unit])
        });
        let depth = offsets.len();
        let (mut x_grid, mut y_grid) = (Vec::new(), Vec::new());
        if out_group < MIN_CHANNELS {
            let y_plane = grid::pitch(grid.extent());
            for (x, y) in images {
                grid.lay_out_input(shape, x, &mut x_grid, parallel);
                grid.lay_out_output(shape, y, 0, y_plane, &mut y_grid, parallel);
                for (grad, y) in grad.chunks_mut(depth).zip(y_grid.chunks(y_plane)) {
                    let y = &y[..grid.positions];
                    dispatch_fused(Dots { x: &x_grid, offsets, y, grad });
                }
            }
            return;
        }
        // Panels of channels, and in each the channels of one position side by side: `[panel][position][channel]`; sums
        // likewise: `[panel][column][channel]`.
        let lanes = count::<T>();
        let width = if out_group <= lanes { lanes } else { 2 * lanes };
        let panels = out_group.div_ceil(width);
        let mut sums = vec![T::default(); panels * depth * width];
        // Columns of one unit of parallel work.
        let columns = if parallel { depth.div_ceil(BLOCK).div_ceil(8) * BLOCK } else { depth };
        for (x, y) in images {
            grid.lay_out_input(shape, x, &mut x_grid, parallel);
            grid.lay_out_panels(shape, y, width, &mut y_grid, parallel);
            let panel = |(sums, y): (&mut [T], &[T])| {
                let outer = |(i, sums): (usize, &mut [T])| {
                    let offsets = &offsets[i * columns..][..sums.len() / width];
                    let positions = grid.positions;
                    dispatch_fused(Outer { x: &x_grid, offsets, y, width, positions, sums });
                };
                if parallel {
                    sums.par_chunks_mut(columns * width).enumerate().for_each(outer);
                } else {
                    outer((0, sums));
                }
            };
            let y_panel = grid.extent() * width;
            if parallel {
                sums.par_chunks_mut(depth * width).zip(y_grid.par_chunks(y_panel)).for_each(panel);
            } else {
                sums.chunks_mut(depth * width).zip(y_grid.chunks(y_panel)).for_each(panel);
            }
        }
        for (o, grad) in grad.chunks_mut(depth).enumerate() {
            let sums = &sums[o / width * depth * width + o % width..];
            for (grad, sum) in grad.iter_mut().zip(sums.iter().step_by(width)) {
                *grad = *sum;
            }
        }
    }
}

/// `grad[k] += Σ_p y[p] · x[offsets[k] + p]`: for few channels.
struct Dots<'a, T> {
    x: &'a [T],
    offsets: &'a [usize],
    y: &'a [T],
    grad: &'a mut [T],
}

impl<T: Real> Fused<T> for Dots<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes<T>>(self, lanes: L) {
        let Self { x, offsets, y, grad } = self;
        for (grad, offset) in grad.iter_mut().zip(offsets) {
            let x = &x[*offset..][..y.len()];
            // Four registers, so that additions need not wait for each other.
            let mut sums = [lanes.splat(T::default()); 4];
            let wide = 4 * L::COUNT;
            for (y, x) in y.chunks_exact(wide).zip(x.chunks_exact(wide)) {
                for (i, sum) in sums.iter_mut().enumerate() {
                    let (y, x) = (lanes.load(&y[i * L::COUNT..]), lanes.load(&x[i * L::COUNT..]));
                    *sum = lanes.multiply_add(y, x, *sum);
                }
            }
            let mut spread = [T::default(); 4 * MAX_LANES];
            for (i, sum) in sums.into_iter().enumerate() {
                lanes.store(sum, &mut spread[i * L::COUNT..]);
            }
            let done = y.len() / wide * wide;
            let mut total = T::default();
            for sum in spread {
                total += sum;
            }
            for (y, x) in y[done..].iter().zip(&x[done..]) {
                total += *y * *x;
            }
            *grad += total;
        }
    }
}

/// `sums[k, o] += Σ_p x[offsets[k] + p] · y[p, o]` for a panel of channels.
struct Outer<'a, T> {
    x: &'a [T],
    offsets: &'a [usize],
    y: &'a [T],
    /// Channels of the panel: one register, or two.
    width: usize,
    positions: usize,
    sums: &'a mut [T],
}

impl<T: Real> Fused<T> for Outer<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes<T>>(self, lanes: L) {
        if self.width == L::COUNT {
            self.spans::<L, 1>(lanes);
        } else {
            self.spans::<L, 2>(lanes);
        }
    }
}

impl<T: Real> Outer<'_, T> {
    #[inline(always)]
    fn spans<L: Lanes<T>, const W: usize>(self, lanes: L) {
        let Self { x, offsets, y, width, positions, sums } = self;
        let block = if many_registers() { BLOCK } else { BLOCK / 2 };
        for start in (0..positions).step_by(SPAN) {
            let span = start..(start + SPAN).min(positions);
            let mut k = 0;
            while k < offsets.len() {
                let rows = match offsets.len() - k {
                    left if left >= block => block,
                    6.. => 6,
                    4 | 5 => 4,
                    2 | 3 => 2,
                    _ => 1,
                };
                let tile = Tile { x, offsets: &offsets[k..k + rows], y, span: span.clone() };
                let sums = &mut sums[k * width..][..rows * width];
                match rows {
                    1 => tile.add::<L, 1, W>(lanes, sums),
                    2 => tile.add::<L, 2, W>(lanes, sums),
                    4 => tile.add::<L, 4, W>(lanes, sums),
                    6 => tile.add::<L, 6, W>(lanes, sums),
                    _ => tile.add::<L, BLOCK, W>(lanes, sums),
                }
                k += rows;
            }
        }
    }
}

/// Some columns at some positions.
struct Tile<'a, T> {
    x: &'a [T],
    offsets: &'a [usize],
    y: &'a [T],
    span: Range<usize>,
}

impl<T: Real> Tile<'_, T> {
    /// Adds `M` columns for the channels of `W` registers.
    #[inline(always)]
    fn add<L: Lanes<T>, const M: usize, const W: usize>(self, lanes: L, sums: &mut [T]) {
        let Self { x, offsets, y, span } = self;
        let width = W * L::COUNT;
        let x: [&[T]; M] = std::array::from_fn(|m| &x[offsets[m] + span.start..][..span.len()]);
        let y = &y[span.start * width..span.end * width];
        let mut tile: [[L::Register; W]; M] = std::array::from_fn(|m| {
            std::array::from_fn(|w| lanes.load(&sums[m * width + w * L::COUNT..]))
        });
        for (p, y) in y.chunks_exact(width).enumerate() {
            let y: [L::Register; W] = std::array::from_fn(|w| lanes.load(&y[w * L::COUNT..]));
            for (sums, x) in tile.iter_mut().zip(&x) {
                let x = lanes.splat(x[p]);
                for (sum, y) in sums.iter_mut().zip(&y) {
                    *sum = lanes.multiply_add(x, *y, *sum);
                }
            }
        }
        for (registers, sums) in tile.into_iter().zip(sums.chunks_exact_mut(width)) {
            for (w, register) in registers.into_iter().enumerate() {
                lanes.store(register, &mut sums[w * L::COUNT..]);
            }
        }
    }
}
