//! Elementwise passes: one input element and its tile's parameters make one output element.

use rayon::prelude::*;

use crate::affine::Affine;
use crate::simd::{Vectorized, dispatch};
use crate::tiling::{Plan, Tiles, Tiling};

/// An elementwise kernel. Both methods must be `#[inline(always)]`.
///
/// They return whether something was met that the caller must look into (a NaN); the pass goes on.
pub(crate) trait Map: Sync {
    type In: Copy + Default + Send + Sync;
    type Out: Send;
    /// All elements share scale and offset; the offset is not rounded yet.
    fn uniform(&self, x: &[Self::In], out: &mut [Self::Out], scale: f32, offset: f32) -> bool;
    /// Element `i` has `scale[i]` and `offset[i]`; the offsets are not rounded yet.
    fn lanes(&self, x: &[Self::In], out: &mut [Self::Out], scale: &[f32], offset: &[f32]) -> bool;
}

/// Below this many elements threads cost more than they save.
const MIN_PARALLEL: usize = 1 << 17;
/// Elements per unit of parallel work.
const CHUNK: usize = 1 << 15;
/// Elements handled at once where parameters or inputs are gathered first.
pub(crate) const BLOCK: usize = 1024;
static NO_OFFSET: [f32; BLOCK] = [0.0; BLOCK];

/// Runs the kernel over all elements; lengths have been checked.
pub(crate) fn map<M: Map>(
    kernel: &M,
    tiling: &Tiling,
    affine: Affine<'_>,
    x: &[M::In],
    out: &mut [M::Out],
) -> bool {
    let plan = tiling.plan();
    if out.len() < MIN_PARALLEL || rayon::current_num_threads() == 1 {
        return dispatch(MapChunk { kernel, plan, affine, x, out, start: 0 });
    }
    out.par_chunks_mut(CHUNK)
        .enumerate()
        .map(|(i, out)| dispatch(MapChunk { kernel, plan, affine, x, out, start: i * CHUNK }))
        .reduce(|| false, |a, b| a | b)
}

struct MapChunk<'a, M: Map> {
    kernel: &'a M,
    plan: &'a Plan,
    affine: Affine<'a>,
    x: &'a [M::In],
    out: &'a mut [M::Out],
    start: usize,
}

impl<M: Map> Vectorized for MapChunk<'_, M> {
    type Output = bool;

    #[inline(always)]
    fn run(self) -> bool {
        let MapChunk { kernel, plan, affine, x, out, start } = self;
        let Affine { scale, offset } = affine;
        let stride = plan.stride();
        let mut gathered = [M::In::default(); BLOCK];
        let mut table = LaneTable::default();
        let mut found = false;
        plan.walk(
            start..start + out.len(),
            #[inline(always)]
            |piece| {
                let out = &mut out[piece.pos - start..][..piece.len];
                match piece.tiles {
                    Tiles::One(tile) if stride == 1 => {
                        let offset = offset.map_or(0.0, |o| o[tile]);
                        found |= kernel.uniform(
                            &x[piece.input..][..piece.len],
                            out,
                            scale[tile],
                            offset,
                        );
                    }
                    Tiles::One(tile) => {
                        let offset = offset.map_or(0.0, |o| o[tile]);
                        for (i, out) in out.chunks_mut(BLOCK).enumerate() {
                            let x = gather(
                                x,
                                piece.input + i * BLOCK * stride,
                                stride,
                                out.len(),
                                &mut gathered,
                            );
                            found |= kernel.uniform(x, out, scale[tile], offset);
                        }
                    }
                    Tiles::Lanes { base, phase } => {
                        for (i, out) in out.chunks_mut(BLOCK).enumerate() {
                            let len = out.len();
                            let input = piece.input + i * BLOCK * stride;
                            let x = if stride == 1 {
                                &x[input..][..len]
                            } else {
                                gather(x, input, stride, len, &mut gathered)
                            };
                            let lane = phase + i * BLOCK;
                            let (scale, offset) = table.params(plan, affine, base, lane, len);
                            found |= kernel.lanes(x, out, scale, offset);
                        }
                    }
                }
            },
        );
        found
    }
}

/// Copies `len <= BLOCK` elements of a strided row side by side.
#[inline(always)]
pub(crate) fn gather<'a, T: Copy>(
    x: &[T],
    input: usize,
    stride: usize,
    len: usize,
    gathered: &'a mut [T],
) -> &'a [T] {
    for (i, slot) in gathered[..len].iter_mut().enumerate() {
        *slot = x[input + i * stride];
    }
    &gathered[..len]
}

/// Parameters side by side with the elements of a row whose tiles are too short to handle one by
/// one: in place where each lane is a tile, else spelled out in a table.
#[derive(Default)]
pub(crate) struct LaneTable {
    base: Option<usize>,
    scale: Vec<f32>,
    offset: Vec<f32>,
}

impl LaneTable {
    /// Scales and offsets (zero if there are none) of lanes `lane..lane + len`, `len <= BLOCK`.
    #[inline(always)]
    pub(crate) fn params<'a>(
        &'a mut self,
        plan: &Plan,
        affine: Affine<'a>,
        base: usize,
        lane: usize,
        len: usize,
    ) -> (&'a [f32], &'a [f32]) {
        let (scale, offset) = if plan.lanes_are_tiles() {
            (&affine.scale[base..], affine.offset.map(|o| &o[base..]))
        } else {
            if self.base != Some(base) {
                self.fill(plan, affine, base);
            }
            (&self.scale[..], affine.offset.map(|_| &self.offset[..]))
        };
        (&scale[lane..][..len], offset.map_or(&NO_OFFSET[..len], |o| &o[lane..][..len]))
    }

    #[inline(never)]
    fn fill(&mut self, plan: &Plan, affine: Affine<'_>, base: usize) {
        self.base = Some(base);
        let tiles = || (0..plan.lanes()).map(|l| base + plan.lane_tile(l));
        self.scale.clear();
        self.scale.extend(tiles().map(|tile| affine.scale[tile]));
        if let Some(offset) = affine.offset {
            self.offset.clear();
            self.offset.extend(tiles().map(|tile| offset[tile]));
        }
    }
}
