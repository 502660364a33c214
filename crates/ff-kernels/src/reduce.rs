//! Reductions: one accumulator per tile, the same bytes for any number of threads.

use std::ops::Range;

use rayon::prelude::*;

use crate::affine::Affine;
use crate::map::{BLOCK, LaneTable, gather};
use crate::simd::{Vectorized, dispatch};
use crate::tiling::{Plan, Tiles, Tiling};

/// A reduction over tiles, which may also write one output per element. `segment` and `lanes` must
/// be `#[inline(always)]`.
///
/// The partial results of a tile are merged in a fixed order, so `merge` may be any function that
/// is exact enough in that order; it need not be associative.
pub(crate) trait Fold: Sync {
    /// What is known of a tile.
    type Acc: Copy + Send + Sync;
    /// Accumulators side by side, as vector instructions want them.
    type Lanes;
    /// Whether `out` holds one element per input element; else it is empty.
    const HAS_OUTPUT: bool;

    fn empty(&self) -> Self::Acc;
    fn merge(&self, a: Self::Acc, b: Self::Acc) -> Self::Acc;
    /// Reduces elements `pos..pos + x.len()`, all of one tile with this scale and (not yet rounded)
    /// offset.
    fn segment(&self, x: &[f32], scale: f32, offset: f32, pos: usize, out: &mut [f32])
    -> Self::Acc;

    fn new_lanes(&self, len: usize) -> Self::Lanes;
    /// Adds element `pos + i`, which has scale `params.0[i]` and offset `params.1[i]`, to lane
    /// `at + i`.
    fn lanes(
        &self,
        lanes: &mut Self::Lanes,
        at: usize,
        x: &[f32],
        params: (&[f32], &[f32]),
        pos: usize,
        out: &mut [f32],
    );
    /// Reads a lane and empties it.
    fn take_lane(&self, lanes: &mut Self::Lanes, at: usize) -> Self::Acc;
}

/// Fewest elements per chunk.
const MIN_CHUNK: usize = 1 << 16;

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
    let run = |number: usize, out: &mut [f32]| {
        dispatch(FoldChunk { fold, plan, affine, x, out, range: tiling.chunk_range(chunk, number) })
    };
    if n_chunks == 1 || rayon::current_num_threads() == 1 {
        for number in 0..n_chunks {
            let range = if F::HAS_OUTPUT { tiling.chunk_range(chunk, number) } else { 0..0 };
            merge(run(number, &mut out[range]));
        }
    } else {
        let outs: Vec<&mut [f32]> = if F::HAS_OUTPUT {
            out.chunks_mut(chunk).collect()
        } else {
            (0..n_chunks).map(|_| Default::default()).collect()
        };
        let parts: Vec<_> =
            outs.into_par_iter().enumerate().map(|(number, out)| run(number, out)).collect();
        parts.into_iter().for_each(merge);
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
}

impl<F: Fold> Vectorized for FoldChunk<'_, F> {
    type Output = (Range<usize>, Vec<F::Acc>);

    #[inline(always)]
    fn run(self) -> Self::Output {
        let FoldChunk { fold, plan, affine, x, out, range } = self;
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
        plan.walk(
            range,
            #[inline(always)]
            |piece| {
                let out: &mut [f32] = if F::HAS_OUTPUT {
                    &mut out[piece.pos - start..][..piece.len]
                } else {
                    &mut []
                };
                // Contiguous rows of one tile in one go, others block by block.
                let one = matches!(piece.tiles, Tiles::One(_));
                let block = if stride == 1 && one { piece.len } else { BLOCK };
                let mut done = 0;
                while done < piece.len {
                    let len = block.min(piece.len - done);
                    let pos = piece.pos + done;
                    let input = piece.input + done * stride;
                    let x = if stride == 1 {
                        &x[input..][..len]
                    } else {
                        gather(x, input, stride, len, &mut gathered)
                    };
                    let out = if F::HAS_OUTPUT { &mut out[done..][..len] } else { &mut *out };
                    match piece.tiles {
                        Tiles::One(tile) => {
                            let (scale, offset) = affine.map_or((1.0, 0.0), |a| {
                                (a.scale[tile], a.offset.map_or(0.0, |o| o[tile]))
                            });
                            let acc = &mut accs[tile - span.start];
                            *acc = fold.merge(*acc, fold.segment(x, scale, offset, pos, out));
                        }
                        Tiles::Lanes { base, phase } => {
                            let lane = phase + done;
                            let params = match affine {
                                Some(affine) => table.params(plan, affine, base, lane, len),
                                None => (&[][..], &[][..]),
                            };
                            let at = if in_place {
                                base + lane - span.start
                            } else {
                                if lanes_base != Some(base) {
                                    if let Some(old) = lanes_base {
                                        flush(fold, plan, &mut lanes, &mut accs, old - span.start);
                                    }
                                    lanes_base = Some(base);
                                }
                                lane
                            };
                            fold.lanes(&mut lanes, at, x, params, pos, out);
                        }
                    }
                    done += len;
                }
            },
        );
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

/// Adds the lanes of a table to the tiles they belong to and empties them.
fn flush<F: Fold>(fold: &F, plan: &Plan, lanes: &mut F::Lanes, accs: &mut [F::Acc], first: usize) {
    for lane in 0..plan.lanes() {
        let acc = &mut accs[first + plan.lane_tile(lane)];
        *acc = fold.merge(*acc, fold.take_lane(lanes, lane));
    }
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
