//! The product of a matrix with a column matrix whose rows are slices of one buffer.

use std::ops::Range;

use rayon::prelude::*;

use crate::lanes::{Fused, Lanes, MAX_LANES, Real, dispatch_fused, many_registers};

/// `out[row, store(p)] = start[row] + Σ_k weights[row, k] · source[offsets[k] + p]` for all `p < positions`.
#[derive(Clone, Copy)]
pub(super) struct Product<'a, T> {
    pub(super) weights: &'a Packed<T>,
    pub(super) offsets: &'a [usize],
    /// Long enough for every position at every offset.
    pub(super) source: &'a [T],
    pub(super) positions: usize,
    pub(super) store: &'a Store,
    pub(super) start: Start<'a, T>,
}

/// What the sums start from.
#[derive(Clone, Copy)]
pub(super) enum Start<'a, T> {
    /// Zero; the output need not hold anything before.
    Zero,
    /// One number per row; the output need not hold anything before.
    Bias(&'a [T]),
    /// What the output holds.
    Output,
}

impl<'a, T> Start<'a, T> {
    /// The biases of a group of `channels`.
    pub(super) fn of(bias: Option<&'a [T]>, group: usize, channels: usize) -> Self {
        bias.map_or(Self::Zero, |bias| Self::Bias(&bias[group * channels..][..channels]))
    }
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

/// Rows of a register tile, with 32 registers and with 16: the tile takes two registers per row.
const ROWS: [usize; 2] = [12, 6];
/// From so many blocks of rows on, the slices they read are copied side by side first.
const MANY_BLOCKS: usize = 3;
/// Columns of the matrix done at once: the slices that they read stay in the first cache for all rows.
const DEPTH: usize = 256;

impl<T: Real> Packed<T> {
    pub(super) fn new(rows: usize, depth: usize, at: impl Fn(usize, usize) -> T + Sync) -> Self {
        let block = if many_registers() { ROWS[0] } else { ROWS[1] };
        let mut packed = Self { data: Vec::new(), rows, depth, block };
        let blocks: Vec<(usize, usize, usize)> = std::iter::successors(Some(0), |first| {
            let (_, live) = packed.block_rows(*first);
            Some(first + live).filter(|next| *next < rows)
        })
        .map(|first| {
            let (padded, live) = packed.block_rows(first);
            (first, padded, live)
        })
        .collect();
        packed.data = vec![T::default(); blocks.iter().map(|(_, padded, _)| padded * depth).sum()];
        let mut rest = &mut packed.data[..];
        for (first, padded, live) in blocks {
            let (data, others) = rest.split_at_mut(padded * depth);
            rest = others;
            for (k, column) in data.chunks_exact_mut(padded).enumerate() {
                for (row, slot) in column[..live].iter_mut().enumerate() {
                    *slot = at(first + row, k);
                }
            }
        }
        packed
    }

    /// Rows of the block that starts at this row: with those of padding, which only the last block has, and without. Blocks
    /// begin at all multiples of [`Self::block`], where [`product`] cuts.
    fn block_rows(&self, first: usize) -> (usize, usize) {
        let left = self.rows - first;
        let padded = match left {
            1 => 1,
            2 => 2,
            3 | 4 => 4,
            7 | 8 if self.block > 6 => 4,
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

impl<T: Real> Fused<T> for Rows<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes<T>>(self, lanes: L) {
        let Self { product, first, out } = self;
        let Product { weights, offsets, source, positions, store, start: begin } = product;
        let width = 2 * L::COUNT;
        let last = first + out.len() / store.plane;
        // Slices that many rows read are better copied side by side once; those that end too early must be.
        let many_rows = last - first >= MANY_BLOCKS * weights.block;
        let side_by_side: Vec<usize> = (0..DEPTH.min(offsets.len())).map(|k| k * width).collect();
        let mut copy: Vec<T> = Vec::new();
        for from in (0..offsets.len()).step_by(DEPTH) {
            let columns = from..(from + DEPTH).min(offsets.len());
            let offsets = &offsets[columns.clone()];
            let reach = offsets.iter().max().map_or(0, |offset| offset + width);
            for start in (0..positions).step_by(width) {
                let (source, offsets) = if !many_rows && start + reach <= source.len() {
                    (&source[start..], offsets)
                } else {
                    copy.clear();
                    for offset in offsets {
                        let slice = &source[offset + start..];
                        let slice = &slice[..slice.len().min(width)];
                        copy.extend_from_slice(slice);
                        copy.resize(copy.len() + width - slice.len(), T::default());
                    }
                    (&copy[..], &side_by_side[..offsets.len()])
                };
                let span = start..(start + width).min(positions);
                let mut row = first;
                while row < last {
                    let (padded, live) = weights.block_rows(row);
                    let weights = weights.columns(row, columns.clone());
                    let out = &mut out[(row - first) * store.plane..][..live * store.plane];
                    let begin = match begin {
                        _ if from > 0 => Start::Output,
                        Start::Bias(bias) => Start::Bias(&bias[row..row + live]),
                        other => other,
                    };
                    let place = Place { span: &span, store, begin };
                    match padded {
                        1 => {
                            place.put(lanes, tile::<T, L, 1>(lanes, weights, offsets, source), out)
                        }
                        2 => {
                            place.put(lanes, tile::<T, L, 2>(lanes, weights, offsets, source), out)
                        }
                        4 => {
                            place.put(lanes, tile::<T, L, 4>(lanes, weights, offsets, source), out)
                        }
                        6 => {
                            place.put(lanes, tile::<T, L, 6>(lanes, weights, offsets, source), out)
                        }
                        _ => {
                            place.put(lanes, tile::<T, L, 12>(lanes, weights, offsets, source), out)
                        }
                    }
                    row += live;
                }
            }
        }
    }
}

/// Sums of `M` rows at the positions of two registers.
type Tile<T, L, const M: usize> = [[<L as Lanes<T>>::Register; 2]; M];

#[inline(always)]
fn tile<T: Real, L: Lanes<T>, const M: usize>(
    lanes: L,
    weights: &[T],
    offsets: &[usize],
    source: &[T],
) -> Tile<T, L, M> {
    let mut sums = [[lanes.splat(T::default()); 2]; M];
    for (weights, offset) in weights.as_chunks::<M>().0.iter().zip(offsets) {
        let values = &source[*offset..];
        let (a, b) = (lanes.load(values), lanes.load(&values[L::COUNT..]));
        for (sums, weight) in sums.iter_mut().zip(weights) {
            let weight = lanes.splat(*weight);
            sums[0] = lanes.multiply_add(weight, a, sums[0]);
            sums[1] = lanes.multiply_add(weight, b, sums[1]);
        }
    }
    sums
}

/// Where the sums of a tile go.
struct Place<'a, T> {
    span: &'a Range<usize>,
    store: &'a Store,
    /// Of the tile's rows.
    begin: Start<'a, T>,
}

impl<T: Real> Place<'_, T> {
    #[inline(always)]
    fn put<L: Lanes<T>, const M: usize>(self, lanes: L, tile: Tile<T, L, M>, out: &mut [T]) {
        let Self { span, store, begin } = self;
        let row = span.start / store.pitch;
        let column = span.start - row * store.pitch;
        let columns = &store.columns;
        let one_piece = column >= columns.start && column + 2 * L::COUNT <= columns.end;
        if one_piece && store.stride == 1 {
            let Some(base) = store.rows[row] else { return };
            let at = base + column - columns.start;
            for (m, (sums, out)) in
                tile.into_iter().zip(out.chunks_exact_mut(store.plane)).enumerate()
            {
                let out = &mut out[at..][..2 * L::COUNT];
                let (a, b) = match begin {
                    Start::Zero => (lanes.splat(T::default()), lanes.splat(T::default())),
                    Start::Bias(bias) => (lanes.splat(bias[m]), lanes.splat(bias[m])),
                    Start::Output => (lanes.load(out), lanes.load(&out[L::COUNT..])),
                };
                let one = lanes.splat(T::UNIT);
                lanes.store(lanes.multiply_add(one, sums[0], a), out);
                lanes.store(lanes.multiply_add(one, sums[1], b), &mut out[L::COUNT..]);
            }
            return;
        }
        let mut spread = [[T::default(); 2 * MAX_LANES]; M];
        for (out, sums) in spread.iter_mut().zip(tile) {
            lanes.store(sums[0], out);
            lanes.store(sums[1], &mut out[L::COUNT..]);
        }
        Place { span, store, begin }.put_pieces(&spread, out);
    }

    /// The general case: rows of the grid end inside the tile, or leave gaps in the output.
    #[inline(always)]
    fn put_pieces(self, tile: &[[T; 2 * MAX_LANES]], out: &mut [T]) {
        let Self { span, store, begin } = self;
        let mut at = span.start;
        while at < span.end {
            let row = at / store.pitch;
            let row_start = row * store.pitch;
            let row_end = (row_start + store.pitch).min(span.end);
            let from = (at - row_start).max(store.columns.start);
            let to = (row_end - row_start).min(store.columns.end);
            at = row_end;
            let Some(base) = store.rows[row].filter(|_| from < to) else { continue };
            let base = base + (from - store.columns.start) * store.stride;
            let kept = row_start + from - span.start..row_start + to - span.start;
            for (m, (tile, out)) in tile.iter().zip(out.chunks_exact_mut(store.plane)).enumerate() {
                let tile = &tile[kept.clone()];
                let slots = out[base..].iter_mut();
                let bias = match begin {
                    Start::Zero => T::default(),
                    Start::Bias(bias) => bias[m],
                    Start::Output => {
                        let add = |(out, value): (&mut T, &T)| *out += *value;
                        match store.stride {
                            1 => slots.zip(tile).for_each(add),
                            stride => slots.step_by(stride).zip(tile).for_each(add),
                        }
                        continue;
                    }
                };
                let set = |(out, value): (&mut T, &T)| *out = bias + *value;
                match store.stride {
                    1 => slots.zip(tile).for_each(set),
                    stride => slots.step_by(stride).zip(tile).for_each(set),
                }
            }
        }
    }
}
