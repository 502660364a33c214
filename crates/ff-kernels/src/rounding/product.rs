//! Products of a matrix with columns of numbers, one column per row of a weight.
//!
//! Everything in this folder is done for 32 rows of a weight at a time, lying side by side: number `k` of all of them is
//! one [`Lane`]. A matrix is cut into strips of 32 columns, each stored row after row.

use crate::lanes::{Fused, Lanes, Real, dispatch_fused};

/// Rows of a weight side by side, and columns of a strip.
pub(super) const WIDTH: usize = 32;
/// The same entry of 32 rows.
pub(super) type Lane<T> = [T; WIDTH];

/// Columns of the matrix in one tile of sums.
const TILE: usize = 8;
/// Rows of the matrix that are multiplied at once: a strip of them stays in the second cache.
const DEPTH: usize = 1024;

/// A matrix `[depth, columns]` in strips of 32 columns.
pub(super) struct Strips<T> {
    depth: usize,
    columns: usize,
    /// `[strips, depth]`; columns that do not exist are zero.
    lanes: Vec<Lane<T>>,
}

impl<T: Real> Strips<T> {
    pub(super) fn new(depth: usize, columns: usize, at: impl Fn(usize, usize) -> T) -> Self {
        let mut lanes = vec![[T::default(); WIDTH]; columns.div_ceil(WIDTH) * depth];
        for (strip, lanes) in lanes.chunks_exact_mut(depth.max(1)).enumerate() {
            let first = strip * WIDTH;
            for (k, lane) in lanes.iter_mut().enumerate() {
                for (column, out) in (first..columns).zip(lane) {
                    *out = at(k, column);
                }
            }
        }
        Self { depth, columns, lanes }
    }

    /// `out[c][j][r] += Σ_k matrix[k][j] · x[c][k][r]` for every `c`, with `x` of `[chunks, depth]` and `out` of
    /// `[chunks, columns]`.
    ///
    /// The terms of a sum are added one after the other in ascending order, whatever the number of chunks and the width
    /// of registers; multiplications and additions are fused where the machine can.
    pub(super) fn multiply_add(&self, x: &[Lane<T>], out: &mut [Lane<T>]) {
        debug_assert_eq!(x.len() * self.columns, out.len() * self.depth);
        if !x.is_empty() && !out.is_empty() {
            dispatch_fused::<T, _>(MultiplyAdd { matrix: self, x, out });
        }
    }
}

struct MultiplyAdd<'a, T> {
    matrix: &'a Strips<T>,
    x: &'a [Lane<T>],
    out: &'a mut [Lane<T>],
}

impl<T: Real> Fused<T> for MultiplyAdd<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes<T>>(self, lanes: L) {
        let Self { matrix: &Strips { depth, columns, lanes: ref strips }, x, out } = self;
        for from in (0..depth).step_by(DEPTH) {
            let rows = from..depth.min(from + DEPTH);
            for (strip, left) in strips.chunks_exact(depth).enumerate() {
                let left = &left[rows.clone()];
                let first = strip * WIDTH;
                let last = columns.min(first + WIDTH);
                for (x, out) in x.chunks_exact(depth).zip(out.chunks_exact_mut(columns)) {
                    let x = &x[rows.clone()];
                    for (at, out) in out[first..last].chunks_mut(TILE).enumerate() {
                        tile(lanes, left, at * TILE, x, out);
                    }
                }
            }
        }
    }
}

/// `out[m][r] += Σ_k left[k][at + m] · x[k][r]`
#[inline(always)]
fn tile<T: Real, L: Lanes<T>>(
    lanes: L,
    left: &[Lane<T>],
    at: usize,
    x: &[Lane<T>],
    out: &mut [Lane<T>],
) {
    let mut sums = [[T::default(); WIDTH]; TILE];
    sums[..out.len()].copy_from_slice(out);
    for from in (0..WIDTH).step_by(2 * L::COUNT) {
        if L::COUNT * size_of::<T>() == 64 {
            part::<T, L, TILE>(lanes, left, at, x, from, &mut sums);
        } else {
            let (low, high) = sums.split_at_mut(TILE / 2);
            part::<T, L, { TILE / 2 }>(lanes, left, at, x, from, low);
            part::<T, L, { TILE / 2 }>(lanes, left, at + TILE / 2, x, from, high);
        }
    }
    out.copy_from_slice(&sums[..out.len()]);
}

/// As many sums as there are registers for: `M` columns of the matrix with two registers of `x`.
#[inline(always)]
fn part<T: Real, L: Lanes<T>, const M: usize>(
    lanes: L,
    left: &[Lane<T>],
    at: usize,
    x: &[Lane<T>],
    from: usize,
    out: &mut [Lane<T>],
) {
    let mut sums = [[lanes.splat(T::default()); 2]; M];
    for (sums, out) in sums.iter_mut().zip(&*out) {
        *sums = [lanes.load(&out[from..]), lanes.load(&out[from + L::COUNT..])];
    }
    for (left, x) in left.iter().zip(x) {
        let left: &[T; M] = left[at..].first_chunk().expect("the tile lies inside its strip");
        let x = &x[from..];
        let (a, b) = (lanes.load(x), lanes.load(&x[L::COUNT..]));
        for (sums, left) in sums.iter_mut().zip(left) {
            let left = lanes.splat(*left);
            sums[0] = lanes.multiply_add(left, a, sums[0]);
            sums[1] = lanes.multiply_add(left, b, sums[1]);
        }
    }
    for (out, sums) in out.iter_mut().zip(sums) {
        lanes.store(sums[0], &mut out[from..]);
        lanes.store(sums[1], &mut out[from + L::COUNT..]);
    }
}

/// 32 rows of `[rows, columns]` from row `first` on, side by side; rows that do not exist are zero.
pub(super) fn lanes_of<T: Copy + Default>(
    rows: &[T],
    columns: usize,
    first: usize,
) -> Vec<Lane<T>> {
    let mut lanes = vec![[T::default(); WIDTH]; columns];
    for (r, row) in rows.chunks_exact(columns.max(1)).skip(first).take(WIDTH).enumerate() {
        lanes.iter_mut().zip(row).for_each(|(lane, value)| lane[r] = *value);
    }
    lanes
}

/// The inverse of [`lanes_of`]: writes to `rows` of `[≤ 32, columns]`.
pub(super) fn rows_of<T: Copy>(lanes: &[Lane<T>], rows: &mut [T]) {
    for (r, row) in rows.chunks_exact_mut(lanes.len().max(1)).enumerate() {
        row.iter_mut().zip(lanes).for_each(|(out, lane)| *out = lane[r]);
    }
}
