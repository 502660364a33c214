//! The products that GPTQ and rounding by output error are made of, on matrices cut into pieces.
//!
//! One side lies in lanes: 32 of its columns (or rows of a weight) side by side, entry after entry. The other lies in
//! panels: 8 of its columns, row after row. The 8 × 32 sums of a panel with lanes stay in registers over all rows. Sums run
//! over the rows in ascending order, one term after the other; multiplications and additions are fused where the machine
//! can, so the last bits depend on the instruction set.

use std::ops::{Deref, DerefMut};

use crate::lanes::{Fused, Lanes, Real, dispatch_fused};

/// Numbers of a lane.
pub(crate) const WIDTH: usize = 32;
/// Numbers of a row of a panel.
pub(crate) const PANEL: usize = 8;

/// One entry of 32 columns. It begins on a line of the cache, so that no register is loaded from two.
#[derive(Debug, Clone, Copy, PartialEq)]
#[repr(align(64))]
pub(crate) struct Lane<T>(pub(crate) [T; WIDTH]);

impl<T> Deref for Lane<T> {
    type Target = [T; WIDTH];

    #[inline(always)]
    fn deref(&self) -> &[T; WIDTH] {
        &self.0
    }
}

impl<T> DerefMut for Lane<T> {
    #[inline(always)]
    fn deref_mut(&mut self) -> &mut [T; WIDTH] {
        &mut self.0
    }
}

impl<'a, T> IntoIterator for &'a Lane<T> {
    type Item = &'a T;
    type IntoIter = std::slice::Iter<'a, T>;

    #[inline(always)]
    fn into_iter(self) -> Self::IntoIter {
        self.0.iter()
    }
}

impl<T: Real> Default for Lane<T> {
    /// Zeros.
    #[inline(always)]
    fn default() -> Self {
        Lane([T::default(); WIDTH])
    }
}

impl<T> Lane<T> {
    /// The numbers that `f` gives for 0 to 31.
    #[inline(always)]
    pub(crate) fn from_fn(f: impl FnMut(usize) -> T) -> Self {
        Lane(std::array::from_fn(f))
    }
}

/// Sums of the columns of a panel with those of a lane.
pub(crate) type Tile<T> = [Lane<T>; PANEL];

/// `out[m][r] += Σ_k left[k][m] · right[k][r]`: the sum is made first, then added.
#[inline(always)]
pub(crate) fn add_product<T: Real, L: Lanes<T>>(
    lanes: L,
    left: &[[T; PANEL]],
    right: &[Lane<T>],
    out: &mut Tile<T>,
) {
    tile(
        lanes,
        left,
        right,
        #[inline(always)]
        |m, at, sum| {
            let out = &mut out[m][at..];
            lanes.store(lanes.add(sum, lanes.load(out)), out);
        },
    );
}

/// [`add_product`] to sums in double precision.
#[inline(always)]
pub(crate) fn add_product_wide<T: Real, L: Lanes<T>>(
    lanes: L,
    left: &[[T; PANEL]],
    right: &[Lane<T>],
    out: &mut Tile<f64>,
) {
    tile(
        lanes,
        left,
        right,
        #[inline(always)]
        |m, at, sum| lanes.add_wide(sum, &mut out[m][at..]),
    );
}

/// Gives the sums of a panel with lanes to `add`: the column of the panel, where in the lane, and a register of sums.
#[inline(always)]
fn tile<T: Real, L: Lanes<T>>(
    lanes: L,
    left: &[[T; PANEL]],
    right: &[Lane<T>],
    mut add: impl FnMut(usize, usize, L::Register),
) {
    for from in (0..WIDTH).step_by(2 * L::COUNT) {
        if L::COUNT * size_of::<T>() == 64 {
            part::<T, L, PANEL>(lanes, left, 0, right, from, &mut add);
        } else {
            part::<T, L, { PANEL / 2 }>(lanes, left, 0, right, from, &mut add);
            part::<T, L, { PANEL / 2 }>(lanes, left, PANEL / 2, right, from, &mut add);
        }
    }
}

/// Rows of a panel that are asked for ahead of their use; the lanes were used just before.
const AHEAD: usize = 24;

/// As many sums as there are registers for: `M` columns of a panel with two registers of a lane.
#[inline(always)]
fn part<T: Real, L: Lanes<T>, const M: usize>(
    lanes: L,
    left: &[[T; PANEL]],
    first: usize,
    right: &[Lane<T>],
    from: usize,
    add: &mut impl FnMut(usize, usize, L::Register),
) {
    let mut sums = [[lanes.splat(T::default()); 2]; M];
    for (left, right) in left.iter().zip(right) {
        lanes.prefetch(left.as_ptr().wrapping_add(AHEAD * PANEL));
        let left: &[T; M] = left[first..].first_chunk().expect("the columns are in the panel");
        let right = &right[from..];
        let (a, b) = (lanes.load(right), lanes.load(&right[L::COUNT..]));
        for (sums, left) in sums.iter_mut().zip(left) {
            let left = lanes.splat(*left);
            sums[0] = lanes.multiply_add(left, a, sums[0]);
            sums[1] = lanes.multiply_add(left, b, sums[1]);
        }
    }
    for (m, sums) in sums.iter().enumerate() {
        add(first + m, from, sums[0]);
        add(first + m, from + L::COUNT, sums[1]);
    }
}

/// Rows of a matrix that are multiplied at once: of that many, lanes of f32 stay in the first cache.
pub(crate) const DEPTH: usize = 256;

/// A matrix `[depth, columns]` in panels.
pub(crate) struct Panels<T> {
    depth: usize,
    columns: usize,
    /// `[panels, depth]`; columns that do not exist are zero.
    rows: Vec<[T; PANEL]>,
}

impl<T: Real> Panels<T> {
    pub(crate) fn new(depth: usize, columns: usize, at: impl Fn(usize, usize) -> T) -> Self {
        let mut rows = vec![[T::default(); PANEL]; columns.div_ceil(PANEL) * depth];
        for (panel, rows) in rows.chunks_exact_mut(depth.max(1)).enumerate() {
            let first = panel * PANEL;
            for (k, row) in rows.iter_mut().enumerate() {
                for (column, out) in (first..columns).zip(row) {
                    *out = at(k, column);
                }
            }
        }
        Self { depth, columns, rows }
    }

    /// `out[c][j][r] += Σ_k matrix[k][j] · x[c][k][r]` for every `c`, with `x` of `[chunks, depth]` and `out` of
    /// `[chunks, columns]`.
    ///
    /// Sums are made of 256 rows at a time and added in ascending order, whatever the number of chunks and the width of
    /// registers; multiplications and additions are fused where the machine can.
    pub(crate) fn multiply_add(&self, x: &[Lane<T>], out: &mut [Lane<T>]) {
        debug_assert_eq!(x.len() * self.columns, out.len() * self.depth);
        if !x.is_empty() && !out.is_empty() {
            dispatch_fused::<T, _>(MultiplyAdd { matrix: self, x, out });
        }
    }
}

struct MultiplyAdd<'a, T> {
    matrix: &'a Panels<T>,
    x: &'a [Lane<T>],
    out: &'a mut [Lane<T>],
}

impl<T: Real> Fused<T> for MultiplyAdd<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes<T>>(self, lanes: L) {
        let Self { matrix: &Panels { depth, columns, ref rows }, x, out } = self;
        for from in (0..depth).step_by(DEPTH) {
            let part = from..depth.min(from + DEPTH);
            for (x, out) in x.chunks_exact(depth).zip(out.chunks_exact_mut(columns)) {
                let x = &x[part.clone()];
                for (panel, out) in rows.chunks_exact(depth).zip(out.chunks_mut(PANEL)) {
                    let panel = &panel[part.clone()];
                    if let Some(out) = out.as_mut_array() {
                        add_product(lanes, panel, x, out);
                    } else {
                        let mut sums = [Lane::default(); PANEL];
                        sums[..out.len()].copy_from_slice(out);
                        add_product(lanes, panel, x, &mut sums);
                        out.copy_from_slice(&sums[..out.len()]);
                    }
                }
            }
        }
    }
}

/// 32 rows of `[rows, columns]` from row `first` on, side by side; rows that do not exist are zero.
pub(crate) fn lanes_of<T: Real>(rows: &[T], columns: usize, first: usize) -> Vec<Lane<T>> {
    let mut lanes = vec![Lane::default(); columns];
    for (r, row) in rows.chunks_exact(columns.max(1)).skip(first).take(WIDTH).enumerate() {
        lanes.iter_mut().zip(row).for_each(|(lane, value)| lane[r] = *value);
    }
    lanes
}

/// The inverse of [`lanes_of`]: writes to `rows` of `[≤ 32, columns]`.
pub(crate) fn rows_of<T: Copy>(lanes: &[Lane<T>], rows: &mut [T]) {
    for (r, row) in rows.chunks_exact_mut(lanes.len().max(1)).enumerate() {
        row.iter_mut().zip(lanes).for_each(|(out, lane)| *out = lane[r]);
    }
}
