//! Reductions: one accumulator per tile, the same bytes for any number of threads.

use std::ops::Range;

use rayon::prelude::*;

use crate::affine::Affine;
use crate::map::{BLOCK, LaneTable, Step, Steps, gather};
use crate::simd::{Level, Vectorized, dispatch, level};
use crate::stream;
use crate::tiling::{Piece, Plan, Tiles, Tiling, Walk};

/// A reduction over tiles, which may also write one output per element. `segment` and `lanes` must
/// be `#[inline(always)]`.
///
/// The partial results of a tile are merged in a fixed order, so `merge` may be any function that
/// is exact enough in that order; it need not be associative.
pub(crate) trait Fold: Sync {
    /// What is known of a tile.
    type Acc: Copy + Send + Sync;
    /// Accumulators side by side, as vector instructions want them, and whatever else is worth keeping between calls.
    type Lanes;
    /// Whether `out` holds one element per input element; else it is empty.
    const HAS_OUTPUT: bool;

    fn empty(&self) -> Self::Acc;
    fn merge(&self, a: Self::Acc, b: Self::Acc) -> Self::Acc;
    /// Reduces a row of one tile, of up to [`MAX_SEGMENT`] elements if there is output.
    fn segment(&self, lanes: &mut Self::Lanes, row: Row<'_>, step: Step) -> Self::Acc;

    fn new_lanes(&self, len: usize) -> Self::Lanes;
    /// Adds elements `i` of all rows, which have parameters `i`, to lane `at + i`.
    fn lanes<const R: usize>(
        &self,
        lanes: &mut Self::Lanes,
        at: usize,
        rows: [Row<'_>; R],
        steps: Steps<'_>,
    );
    /// Reads a lane and empties it.
    fn take_lane(&self, lanes: &mut Self::Lanes, at: usize) -> Self::Acc;
}

/// Neighbouring elements, and where their output goes.
pub(crate) struct Row<'a> {
    pub(crate) x: &'a [f32],
    /// Number of the first one.
    pub(crate) pos: usize,
    /// Empty or as long as `x`.
    pub(crate) out: &'a mut [f32],
}

/// Most elements of a segment with output, which is collected before it is written, see [`stream`].
pub(crate) const MAX_SEGMENT: usize = 512;
/// Rows of lanes that are reduced together, so that accumulators are read and written once for all of them.
const ROWS: usize = 8;
/// Fewest elements per chunk.
const MIN_CHUNK: usize = 1 << 16;

/// Chunks whose partial results are held at a time. Where tiles are columns, each chunk has a result for all of them.
const CHUNKS_TOGETHER: usize = 64;

/// Reduces every tile; lengths have been checked. `out` is as long as the data or, without output,
/// empty. Reductions that need no parameters give `None`, and see scale 1 and offset 0.
pub(crate) fn fold<F: Fold>(
    fold: &F,
    tiling: &Tiling,
    affine: Option<Affine<'_>>,
    x: &[f32],
    out: &mut [f32],
) -> Vec<F::Acc> {
    let plan = tiling.plan();
    let mut accs = vec![fold.empty(); tiling.num_tiles()];
    if tiling.is_empty() {
        return accs;
    }
    let chunk = plan.reduction_chunk(MIN_CHUNK);
    let n_chunks = tiling.num_chunks(chunk);
    let mut merge = |(span, part): (Range<usize>, Vec<F::Acc>)| {
        for (acc, part) in accs[span].iter_mut().zip(part) {
            *acc = fold.merge(*acc, part);
        }
    };
    let streaming = F::HAS_OUTPUT && stream::worthwhile::<f32>(out.len());
    let run = |number: usize, out: &mut [f32]| {
        let range = tiling.chunk_range(chunk, number);
        dispatch(FoldChunk { fold, plan, affine, x, out, range, streaming })
    };
    if n_chunks == 1 || rayon::current_num_threads() == 1 {
        for number in 0..n_chunks {
            let range = if F::HAS_OUTPUT { tiling.chunk_range(chunk, number) } else { 0..0 };
            merge(run(number, &mut out[range]));
        }
    } else {
        let mut outs = out.chunks_mut(chunk);
        for first in (0..n_chunks).step_by(CHUNKS_TOGETHER) {
            let group: Vec<(usize, &mut [f32])> = (first..n_chunks)
                .take(CHUNKS_TOGETHER)
                .map(|number| (number, outs.next().unwrap_or_default()))
                .collect();
            let parts: Vec<_> =
                group.into_par_iter().map(|(number, out)| run(number, out)).collect();
            parts.into_iter().for_each(&mut merge);
        }
    }
    accs
}

struct FoldChunk<'a, F> {
    fold: &'a F,
    plan: &'a Plan,
    affine: Option<Affine<'a>>,
    x: &'a [f32],
    out: &'a mut [f32],
    range: Range<usize>,
    streaming: bool,
}

impl<F: Fold> Vectorized for FoldChunk<'_, F> {
    type Output = (Range<usize>, Vec<F::Acc>);

    #[inline(always)]
    fn run(self) -> Self::Output {
        let FoldChunk { fold, plan, affine, x, out, range, streaming } = self;
        let start = range.start;
        let span = plan.tile_span(range.clone());
        let mut accs = vec![fold.empty(); span.len()];
        let stride = plan.stride();
        let mut gathered = [0.0; BLOCK];
        let in_place = plan.lanes_are_tiles();
        let n_lanes = if in_place { span.len() } else { plan.lanes() };
        let mut lanes = fold.new_lanes(n_lanes);
        let mut lanes_base = None;
        let mut table = LaneTable::default();
        let mut outputs = Outputs::new(out, start, F::HAS_OUTPUT, streaming);
        plan.walk(
            range,
            Walk::Repeats,
            #[inline(always)]
            |piece: Piece| match piece.tiles {
                Tiles::One(tile) => {
                    let (scale, offset) = affine
                        .map_or((1.0, 0.0), |a| (a.scale[tile], a.offset.map_or(0.0, |o| o[tile])));
                    let inverse = 1.0 / scale;
                    let block = match (F::HAS_OUTPUT, stride) {
                        (true, _) => MAX_SEGMENT,
                        (false, 1) => piece.len,
                        (false, _) => BLOCK,
                    };
                    let acc = &mut accs[tile - span.start];
                    for done in (0..piece.len).step_by(block) {
                        let len = block.min(piece.len - done);
                        let (pos, input) = (piece.pos + done, piece.input + done * stride);
                        let x = if stride == 1 {
                            &x[input..][..len]
                        } else {
                            gather(x, input, stride, len, &mut gathered)
                        };
                        let step = Step { scale, inverse, offset };
                        let [out] = outputs.rows([pos], len);
                        *acc =
                            fold.merge(*acc, fold.segment(&mut lanes, Row { x, pos, out }, step));
                        outputs.written([pos], len);
                    }
                }
                Tiles::Short { .. } => unreachable!("nobody asked for short tiles"),
                Tiles::Lanes { base, phase } => {
                    if !in_place && lanes_base != Some(base) {
                        if let Some(old) = lanes_base {
                            flush(fold, plan, &mut lanes, &mut accs, old - span.start);
                        }
                        lanes_base = Some(base);
                    }
                    let at = if in_place { base + phase - span.start } else { phase };
                    let mut row = 0;
                    while row < piece.repeat {
                        let together = stride == 1 && row + ROWS <= piece.repeat;
                        let block = match (F::HAS_OUTPUT, together) {
                            (true, true) => MAX_SEGMENT / ROWS * 2,
                            (true, false) => MAX_SEGMENT,
                            (false, _) => BLOCK,
                        };
                        for done in (0..piece.len).step_by(block) {
                            let len = block.min(piece.len - done);
                            let first = row * piece.len + done;
                            let steps = match affine {
                                Some(affine) => {
                                    table.steps(plan, affine, &[], base, phase + done, len)
                                }
                                None => Steps { scale: &[], inverse: &[], offset: &[] },
                            };
                            if together {
                                let mut nth = first;
                                let pos =
                                    std::array::from_fn(|r| piece.pos + first + r * piece.len);
                                let rows: [_; ROWS] = outputs.rows(pos, len).map(|out| {
                                    let x = &x[piece.input + nth..][..len];
                                    let row = Row { x, pos: piece.pos + nth, out };
                                    nth += piece.len;
                                    row
                                });
                                fold.lanes(&mut lanes, at + done, rows, steps);
                                outputs.written(pos, len);
                            } else {
                                let (pos, input) =
                                    (piece.pos + first, piece.input + first * stride);
                                let x = if stride == 1 {
                                    &x[input..][..len]
                                } else {
                                    gather(x, input, stride, len, &mut gathered)
                                };
                                let [out] = outputs.rows([pos], len);
                                fold.lanes(&mut lanes, at + done, [Row { x, pos, out }], steps);
                                outputs.written([pos], len);
                            }
                        }
                        row += if together { ROWS } else { 1 };
                    }
                }
            },
        );
        if streaming {
            stream::fence();
        }
        if in_place {
            for (i, acc) in accs.iter_mut().enumerate() {
                *acc = fold.merge(*acc, fold.take_lane(&mut lanes, i));
            }
        } else if let Some(base) = lanes_base {
            flush(fold, plan, &mut lanes, &mut accs, base - span.start);
        }
        (span, accs)
    }
}

/// Where a chunk's output goes: nowhere, in place, or past the caches by way of a small buffer.
struct Outputs<'a> {
    out: &'a mut [f32],
    /// Number of the first element.
    start: usize,
    stage: Option<(Level, [f32; MAX_SEGMENT * 2])>,
    wanted: bool,
}

impl<'a> Outputs<'a> {
    #[inline(always)]
    fn new(out: &'a mut [f32], start: usize, wanted: bool, streaming: bool) -> Self {
        let stage = streaming.then(|| (level(), [0.0; MAX_SEGMENT * 2]));
        Outputs { out, start, stage, wanted }
    }

    /// Where to write the outputs of elements `pos..pos + len` of each row; rows do not overlap and come in order.
    #[inline(always)]
    fn rows<const R: usize>(&mut self, pos: [usize; R], len: usize) -> [&mut [f32]; R] {
        if !self.wanted {
            return [(); R].map(|()| Default::default());
        }
        match &mut self.stage {
            Some((_, stage)) => {
                let mut rows = stage.chunks_mut(len);
                pos.map(|_| rows.next().expect("the buffer holds all rows"))
            }
            None => {
                let mut rest = &mut *self.out;
                let mut at = self.start;
                pos.map(|pos| {
                    let (row, after) = std::mem::take(&mut rest)[pos - at..].split_at_mut(len);
                    (rest, at) = (after, pos + len);
                    row
                })
            }
        }
    }

    /// Says that rows have been written.
    #[inline(always)]
    fn written<const R: usize>(&mut self, pos: [usize; R], len: usize) {
        if let Some((level, stage)) = &mut self.stage {
            for (pos, row) in pos.into_iter().zip(stage.chunks(len)) {
                stream::copy(*level, row, &mut self.out[pos - self.start..][..len]);
            }
        }
    }
}

/// Adds the lanes of a table to the tiles they belong to and empties them.
fn flush<F: Fold>(fold: &F, plan: &Plan, lanes: &mut F::Lanes, accs: &mut [F::Acc], first: usize) {
    for lane in 0..plan.lanes() {
        let acc = &mut accs[first + plan.lane_tile(lane)];
        *acc = fold.merge(*acc, fold.take_lane(lanes, lane));
    }
}

/// The sum of numbers, in f64.
#[inline(always)]
pub(crate) fn total(values: &[f32]) -> f64 {
    total_of(values, |x| x)
}

/// The sum of `f` of numbers, in f64; `f(0)` must be 0.
#[inline(always)]
pub(crate) fn total_of(values: &[f32], f: impl Fn(f64) -> f64) -> f64 {
    const WIDTH: usize = 32;
    let mut sums = [0.0f64; WIDTH];
    let (chunks, rest) = values.as_chunks::<WIDTH>();
    let mut last = [0.0; WIDTH];
    last[..rest.len()].copy_from_slice(rest);
    let last = if rest.is_empty() { &[][..] } else { std::slice::from_ref(&last) };
    for chunk in chunks.iter().chain(last) {
        for (sum, &x) in sums.iter_mut().zip(chunk) {
            *sum += f(f64::from(x));
        }
    }
    by_halves(sums, add)
}

/// Reduces lanes by halves, which takes few steps and always the same ones. `N` is a power of two.
#[inline(always)]
pub(crate) fn by_halves<T: Copy, const N: usize>(
    mut lanes: [T; N],
    merge: impl Fn(T, T) -> T,
) -> T {
    let mut width = N / 2;
    while width > 0 {
        for i in 0..width {
            lanes[i] = merge(lanes[i], lanes[i + width]);
        }
        width /= 2;
    }
    lanes[0]
}

/// `a + b`, to be passed by name.
#[inline(always)]
pub(crate) fn add<T: std::ops::Add<Output = T>>(a: T, b: T) -> T {
    a + b
}
