//! Loops over large slices: vector instructions inside, threads outside.
//!
//! Work is cut into blocks whose size depends on the data alone, and partial results are combined in the order of the
//! blocks: any number of threads gives the same bytes.

use std::array;

use ff_kernels::simd::{Vectorized, dispatch};
use rayon::prelude::*;

use super::real::Real;

/// Elements handled by one call of an elementwise loop.
const BLOCK: usize = 256;
/// Below this many elements threads cost more than they save.
const MIN_PARALLEL: usize = 1 << 15;
/// Elements per unit of parallel work, about.
const CHUNK: usize = 1 << 14;

/// `f` of the elements at each position. All inputs are equally long.
///
/// `f` must be `#[inline(always)]` for vector instructions to be used.
pub(super) fn map<T: Real, const N: usize>(
    inputs: [&[T]; N],
    f: impl Fn([T; N]) -> T + Sync,
) -> Vec<T> {
    map_then(
        inputs,
        f,
        #[inline(always)]
        |_| {},
    )
}

/// [`map`], and then something done with the results block by block, while each is in the cache. `then` must be
/// `#[inline(always)]`, too.
pub(super) fn map_then<T: Real, const N: usize>(
    inputs: [&[T]; N],
    f: impl Fn([T; N]) -> T + Sync,
    then: impl Fn(&mut [T]) + Sync,
) -> Vec<T> {
    let len = inputs[0].len();
    let whole = inputs.map(|input| input.as_chunks::<BLOCK>().0);
    let block = |i: usize| match i * BLOCK {
        start if start + BLOCK <= len => {
            dispatch(MapBlock { inputs: whole.map(|w| &w[i]), len: BLOCK, f: &f, then: &then })
        }
        start => {
            let padded = inputs.map(|input| {
                let mut padded = [T::ZERO; BLOCK];
                padded[..len - start].copy_from_slice(&input[start..len]);
                padded
            });
            dispatch(MapBlock { inputs: padded.each_ref(), len: len - start, f: &f, then: &then })
        }
    };
    let mut out =
        collect(len.div_ceil(BLOCK), CHUNK / BLOCK, len >= MIN_PARALLEL, &block).into_flattened();
    out.truncate(len);
    out
}

// The two below take their work as `dyn`: the loops over threads are compiled once for each type of element, not once
// for each operator, which is most of the machine code otherwise.

/// `f(0), f(1), ...` in this order, computed by threads if `parallel`, at least `min` calls in each.
fn collect<R: Send>(
    n: usize,
    min: usize,
    parallel: bool,
    f: &(dyn Fn(usize) -> R + Sync),
) -> Vec<R> {
    match parallel {
        true => (0..n).into_par_iter().with_min_len(min).map(f).collect(),
        false => (0..n).map(f).collect(),
    }
}

/// `f(i, chunk)` for the `i`-th `len` elements of `out`, by threads where there are many elements.
pub(super) fn for_each_chunk<T: Send>(
    out: &mut [T],
    len: usize,
    f: &(dyn Fn(usize, &mut [T]) + Sync),
) {
    if out.len() < MIN_PARALLEL {
        out.chunks_mut(len).enumerate().for_each(|(i, chunk)| f(i, chunk));
    } else {
        out.par_chunks_mut(len).enumerate().for_each(|(i, chunk)| f(i, chunk));
    }
}

struct MapBlock<'a, T, F, G, const N: usize> {
    inputs: [&'a [T; BLOCK]; N],
    /// How many of the elements are there; the others fill up the last block.
    len: usize,
    f: &'a F,
    then: &'a G,
}

impl<T: Real, F: Fn([T; N]) -> T, G: Fn(&mut [T]), const N: usize> Vectorized
    for MapBlock<'_, T, F, G, N>
{
    type Output = [T; BLOCK];

    #[inline(always)]
    fn run(self) -> [T; BLOCK] {
        let mut out = [T::ZERO; BLOCK];
        for (i, out) in out.iter_mut().enumerate() {
            *out = (self.f)(array::from_fn(
                #[inline(always)]
                |k| self.inputs[k][i],
            ));
        }
        match self.len {
            BLOCK => (self.then)(&mut out),
            len => (self.then)(&mut out[..len]),
        }
        out
    }
}

/// Makes `n_rows` rows of `n_columns`, each filled by `f(row, values)`, which starts from zeros.
///
/// `f` must be `#[inline(always)]` for vector instructions to be used.
pub(super) fn fill_rows<T: Real>(
    n_rows: usize,
    n_columns: usize,
    f: impl Fn(usize, &mut [T]) + Sync,
) -> Vec<T> {
    let mut out = vec![T::ZERO; n_rows * n_columns];
    if out.is_empty() {
        return out;
    }
    let rows = (CHUNK / n_columns).max(1);
    for_each_chunk(&mut out, rows * n_columns, &|i, out| {
        dispatch(FillRows { first_row: i * rows, n_columns, out, f: &f });
    });
    out
}

struct FillRows<'a, T, F> {
    first_row: usize,
    n_columns: usize,
    out: &'a mut [T],
    f: &'a F,
}

impl<T: Real, F: Fn(usize, &mut [T])> Vectorized for FillRows<'_, T, F> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        for (i, row) in self.out.chunks_mut(self.n_columns).enumerate() {
            (self.f)(self.first_row + i, row);
        }
    }
}

/// Sums over rows: `add(row, sums)` adds what a row has to give to `sums`, which hold `width` values.
///
/// `n_elements` is how many elements all rows have together. `add` must be `#[inline(always)]`.
pub(super) fn sum_rows<T: Real>(
    n_rows: usize,
    width: usize,
    n_elements: usize,
    add: impl Fn(usize, &mut [T]) + Sync,
) -> Vec<T> {
    // Few enough blocks for their sums to be small beside the data, short enough blocks for f32 to stay exact.
    let rows = n_rows.div_ceil(256).clamp(16, 1024);
    let sums = |block: usize| {
        let mut sums = vec![T::ZERO; width];
        let range = block * rows..n_rows.min((block + 1) * rows);
        dispatch(SumRows { range, sums: &mut sums, add: &add });
        sums
    };
    let partial = collect(n_rows.div_ceil(rows), 1, n_elements >= MIN_PARALLEL, &sums);
    if let [sums] = &partial[..] {
        return sums.clone();
    }
    let mut total = vec![0.0; width];
    for sums in &partial {
        for (total, sum) in total.iter_mut().zip(sums) {
            *total += sum.to_f64();
        }
    }
    total.into_iter().map(T::of).collect()
}

struct SumRows<'a, T, F> {
    range: std::ops::Range<usize>,
    sums: &'a mut [T],
    add: &'a F,
}

impl<T: Real, F: Fn(usize, &mut [T])> Vectorized for SumRows<'_, T, F> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        for row in self.range {
            (self.add)(row, self.sums);
        }
    }
}

/// Partial sums that are added independently of each other, for vector instructions.
const LANES: usize = 32;

/// `Σ f(x_i)` over equally long slices, in a fixed order that vector instructions can follow.
#[inline(always)]
pub(super) fn sum_of<T: Real, const N: usize>(inputs: [&[T]; N], f: impl Fn([T; N]) -> T) -> T {
    let len = inputs[0].len();
    let mut lanes = [T::ZERO; LANES];
    let whole = len / LANES * LANES;
    let mut start = 0;
    while start < whole {
        let block: [&[T]; N] = array::from_fn(
            #[inline(always)]
            |k| &inputs[k][start..start + LANES],
        );
        for (i, lane) in lanes.iter_mut().enumerate() {
            *lane += f(array::from_fn(
                #[inline(always)]
                |k| block[k][i],
            ));
        }
        start += LANES;
    }
    for i in whole..len {
        lanes[i - whole] += f(array::from_fn(
            #[inline(always)]
            |k| inputs[k][i],
        ));
    }
    let mut width = LANES / 2;
    while width > 0 {
        for i in 0..width {
            let other = lanes[i + width];
            lanes[i] += other;
        }
        width /= 2;
    }
    lanes[0]
}

/// The largest element; NaN if there is one; minus infinity of nothing.
#[inline(always)]
pub(super) fn max_of<T: Real>(values: &[T]) -> T {
    let mut lanes = [-T::INFINITY; LANES];
    let (whole, rest) = values.as_chunks::<LANES>();
    for block in whole {
        for (lane, &value) in lanes.iter_mut().zip(block) {
            *lane = value.larger(*lane);
        }
    }
    for (lane, &value) in lanes.iter_mut().zip(rest) {
        *lane = value.larger(*lane);
    }
    lanes.iter().fold(-T::INFINITY, |max, &lane| lane.larger(max))
}
