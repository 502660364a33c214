//! The product of a matrix with a column matrix whose rows are slices of one buffer.

use std::ops::Range;

use rayon::prelude::*;

use super::num::{Real, multiply_add};
use crate::simd::{Fused, dispatch_fused, many_registers};

/// `out[row, store(p)] += Σ_k weights[row, k] · source[offsets[k] + p]` for all `p < positions`.
#[derive(Clone, Copy)]
pub(super) struct Product<'a, T> {
    pub(super) weights: &'a Packed<T>,
    pub(super) offsets: &'a [usize],
    /// Long enough for every position at every offset.
    pub(super) source: &'a [T],
    pub(super) positions: usize,
    pub(super) store: &'a Store,
}

/// A matrix in blocks of rows, each stored column by column.
pub(super) struct Packed<T> {
    data: Vec<T>,
    rows: usize,
    depth: usize,
    /// Rows of a block where enough are left.
    block: usize,
}

/// Where positions go in a plane of the output.
pub(super) struct Store {
    /// Positions from one row of the grid to the next.
    pub(super) pitch: usize,
    /// For each row of the grid, where the first of `columns` goes, if the row is kept.
    pub(super) rows: Vec<Option<usize>>,
    /// The positions of a row that are kept.
    pub(super) columns: Range<usize>,
    /// Elements from one kept position of a row to the next.
    pub(super) stride: usize,
    /// Elements of a plane of the output.
    pub(super) plane: usize,
}

/// Rows of a register tile, with 32 registers and with 16.
const ROWS: [usize; 2] = [12, 6];
/// Positions of a register tile, with 32 registers and with 16.
const POSITIONS: [usize; 2] = [32, 16];
/// Columns of the matrix done at once: the slices that they read stay in the first cache for all rows.
const DEPTH: usize = 256;

impl<T: Real> Packed<T> {
    pub(super) fn new(rows: usize, depth: usize, at: impl Fn(usize, usize) -> T) -> Self {
        let block = if many_registers() { ROWS[0] } else { ROWS[1] };
        let mut packed = Self { data: Vec::new(), rows, depth, block };
        packed.data.reserve_exact(rows.next_multiple_of(block) * depth);
        let mut first = 0;
        while first < rows {
            let (padded, live) = packed.block_rows(first);
            for k in 0..depth {
                packed.data.extend((0..live).map(|row| at(first + row, k)));
                packed.data.extend(std::iter::repeat_n(T::default(), padded - live));
            }
            first += live;
        }
        packed
    }

    /// Rows of the block that starts at this row: with those of padding, which only the last block has, and without.
    fn block_rows(&self, first: usize) -> (usize, usize) {
        let left = self.rows - first;
        let padded = match left {
            1 => 1,
            2 => 2,
            3 | 4 | 7 | 8 => 4,
            9.. if left + 1 >= self.block => self.block,
            _ => 6,
        };
        (padded, left.min(padded))
    }

    /// Some columns of the block that starts at this row.
    fn columns(&self, first: usize, columns: Range<usize>) -> &[T] {
        let (padded, _) = self.block_rows(first);
        &self.data[first * self.depth..][columns.start * padded..columns.end * padded]
    }
}

/// Computes the product into the planes of `out`, one per row.
pub(super) fn product<T: Real>(product: Product<'_, T>, out: &mut [T], parallel: bool) {
    let Packed { rows, block, .. } = *product.weights;
    if !parallel {
        return dispatch_fused(Rows { product, first: 0, out });
    }
    // At most eight pieces: each reads all of the source.
    let rows_each = rows.div_ceil(block).div_ceil(8) * block;
    out.par_chunks_mut(rows_each * product.store.plane)
        .enumerate()
        .for_each(|(i, out)| dispatch_fused(Rows { product, first: i * rows_each, out }));
}

/// The product of some rows.
struct Rows<'a, T> {
    product: Product<'a, T>,
    /// The first row, which begins a block.
    first: usize,
    /// The planes of the rows.
    out: &'a mut [T],
}

impl<T: Real> Fused for Rows<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<const FUSED: bool>(self) {
        if self.product.weights.block == ROWS[0] {
            self.tiles::<{ POSITIONS[0] }, FUSED>();
        } else {
            self.tiles::<{ POSITIONS[1] }, FUSED>();
        }
    }
}

impl<T: Real> Rows<'_, T> {
    #[inline(always)]
    fn tiles<const N: usize, const FUSED: bool>(self) {
        let Self { product, first, out } = self;
        let Product { weights, offsets, source, positions, store } = product;
        let last = first + out.len() / store.plane;
        // Slices for positions past the end of the source, copied side by side.
        let mut copy: Vec<T> = Vec::new();
        let side_by_side: Vec<usize> = (0..DEPTH.min(offsets.len())).map(|k| k * N).collect();
        for from in (0..offsets.len()).step_by(DEPTH) {
            let columns = from..(from + DEPTH).min(offsets.len());
            let offsets = &offsets[columns.clone()];
            let reach = offsets.iter().max().map_or(0, |offset| offset + N);
            for start in (0..positions).step_by(N) {
                let (source, offsets) = if start + reach <= source.len() {
                    (&source[start..], offsets)
                } else {
                    copy.clear();
                    for offset in offsets {
                        let slice = &source[offset + start..];
                        let slice = &slice[..slice.len().min(N)];
                        copy.extend_from_slice(slice);
                        copy.resize(copy.len() + N - slice.len(), T::default());
                    }
                    (&copy[..], &side_by_side[..offsets.len()])
                };
                let span = start..(start + N).min(positions);
                let mut row = first;
                while row < last {
                    let (padded, live) = weights.block_rows(row);
                    let weights = weights.columns(row, columns.clone());
                    let out = &mut out[(row - first) * store.plane..][..live * store.plane];
                    match padded {
                        1 => add(
                            &tile::<T, 1, N, FUSED>(weights, offsets, source),
                            &span,
                            store,
                            out,
                        ),
                        2 => add(
                            &tile::<T, 2, N, FUSED>(weights, offsets, source),
                            &span,
                            store,
                            out,
                        ),
                        4 => add(
                            &tile::<T, 4, N, FUSED>(weights, offsets, source),
                            &span,
                            store,
                            out,
                        ),
                        6 => add(
                            &tile::<T, 6, N, FUSED>(weights, offsets, source),
                            &span,
                            store,
                            out,
                        ),
                        _ => add(
                            &tile::<T, 12, N, FUSED>(weights, offsets, source),
                            &span,
                            store,
                            out,
                        ),
                    }
                    row += live;
                }
            }
        }
    }
}

/// One register tile: `M` rows at `N` positions.
#[inline(always)]
fn tile<T: Real, const M: usize, const N: usize, const FUSED: bool>(
    weights: &[T],
    offsets: &[usize],
    source: &[T],
) -> [[T; N]; M] {
    let mut sums = [[T::default(); N]; M];
    for (weights, offset) in weights.as_chunks::<M>().0.iter().zip(offsets) {
        let values: [T; N] =
            *source[*offset..].first_chunk().expect("the caller checked the reach");
        for (sums, weight) in sums.iter_mut().zip(weights) {
            for (sum, value) in sums.iter_mut().zip(&values) {
                *sum = multiply_add::<T, FUSED>(*weight, *value, *sum);
            }
        }
    }
    sums
}

/// Adds what is kept of a tile to the output.
#[inline(always)]
fn add<T: Real, const M: usize, const N: usize>(
    tile: &[[T; N]; M],
    span: &Range<usize>,
    store: &Store,
    out: &mut [T],
) {
    let mut at = span.start;
    while at < span.end {
        let row = at / store.pitch;
        let row_start = row * store.pitch;
        let row_end = (row_start + store.pitch).min(span.end);
        let from = (at - row_start).max(store.columns.start);
        let to = (row_end - row_start).min(store.columns.end);
        if let Some(base) = store.rows[row]
            && from < to
        {
            let base = base + (from - store.columns.start) * store.stride;
            let kept = row_start + from - span.start..row_start + to - span.start;
            for (tile, out) in tile.iter().zip(out.chunks_mut(store.plane)) {
                let tile = &tile[kept.clone()];
                if store.stride == 1 {
                    for (out, value) in out[base..][..tile.len()].iter_mut().zip(tile) {
                        *out += *value;
                    }
                } else {
                    for (out, value) in out[base..].iter_mut().step_by(store.stride).zip(tile) {
                        *out += *value;
                    }
                }
            }
        }
        at = row_end;
    }
}
