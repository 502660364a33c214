//! Elementwise passes: one input element and its tile's parameters make one output element.

use rayon::prelude::*;

use crate::affine::Affine;
use crate::simd::{Vectorized, dispatch};
use crate::stream::{self, Sink};
use crate::tiling::{Plan, Tiles, Tiling, Walk};

/// An elementwise kernel. All methods must be `#[inline(always)]`.
pub(crate) trait Map: Sync {
    type In: Copy + Default + Send + Sync;
    type Out: Copy + Default + Send;
    /// Whether [`Step::inverse`] is needed.
    const BY_INVERSE: bool = false;
    /// Whether there is so little to do that the compiler would unroll the loop over a short tile, not vectorize it.
    const SIMPLE: bool = false;
    /// The output of an element.
    fn one(&self, x: Self::In, step: Step) -> Self::Out;
    /// Whether the caller must look into this element (a NaN); the pass goes on.
    fn odd(&self, x: Self::In) -> bool {
        let _ = x;
        false
    }
    /// The outputs of elements that share their parameters, as [`Self::one`] makes them. Whether one was odd.
    #[inline(always)]
    fn alike(&self, x: &[Self::In], step: Step, out: &mut [Self::Out]) -> bool {
        one_by_one(self, x, step, out)
    }
}

/// [`Map::alike`] for all kernels.
#[inline(always)]
pub(crate) fn one_by_one<M: Map + ?Sized>(
    kernel: &M,
    x: &[M::In],
    step: Step,
    out: &mut [M::Out],
) -> bool {
    let mut odd = false;
    for (out, &x) in out.iter_mut().zip(x) {
        odd |= kernel.odd(x);
        *out = kernel.one(x, step);
    }
    odd
}

/// The parameters of an element.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Step {
    pub(crate) scale: f32,
    /// `1 / scale`, for those who say that they need it.
    pub(crate) inverse: f32,
    /// Not rounded yet.
    pub(crate) offset: f32,
}

/// The parameters of neighbouring elements, side by side.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Steps<'a> {
    pub(crate) scale: &'a [f32],
    pub(crate) inverse: &'a [f32],
    pub(crate) offset: &'a [f32],
}

/// Below this many elements threads cost more than they save.
const MIN_PARALLEL: usize = 1 << 17;
/// Elements per unit of parallel work.
const CHUNK: usize = 1 << 16;
/// Elements handled at once where parameters or inputs are gathered first.
pub(crate) const BLOCK: usize = 1024;
static NO_OFFSET: [f32; BLOCK] = [0.0; BLOCK];

/// Runs the kernel over all elements; lengths have been checked. Whether one was odd.
pub(crate) fn map<M: Map>(
    kernel: &M,
    tiling: &Tiling,
    affine: Affine<'_>,
    x: &[M::In],
    out: &mut [M::Out],
) -> bool {
    let parameters = Parameters::new::<M>(tiling.plan(), affine);
    let streaming = stream::worthwhile::<M::Out>(out.len());
    in_parallel(out, 1, |start, out| {
        dispatch(MapChunk { kernel, parameters: &parameters, x, out, start, streaming })
    })
}

/// Runs `f` on chunks of the output, each with the number of its first element, where `per_out` elements make one of the
/// output's.
pub(crate) fn in_parallel<T: Send>(
    out: &mut [T],
    per_out: usize,
    f: impl Fn(usize, &mut [T]) -> bool + Sync,
) -> bool {
    if out.len() < MIN_PARALLEL / per_out || rayon::current_num_threads() == 1 {
        return f(0, out);
    }
    out.par_chunks_mut(CHUNK / per_out)
        .enumerate()
        .map(|(i, out)| f(i * CHUNK, out))
        .reduce(|| false, |a, b| a | b)
}

/// Parameters as passes read them.
pub(crate) struct Parameters<'a> {
    plan: &'a Plan,
    affine: Affine<'a>,
    /// Inverses of the scales, where lanes are tiles and the kernel needs them.
    inverse: Vec<f32>,
}

impl<'a> Parameters<'a> {
    pub(crate) fn new<M: Map>(plan: &'a Plan, affine: Affine<'a>) -> Self {
        let wanted = M::BY_INVERSE && plan.lanes_are_tiles();
        let inverse = if wanted { inverses(affine.scale) } else { Vec::new() };
        Parameters { plan, affine, inverse }
    }
}

fn inverses(scale: &[f32]) -> Vec<f32> {
    scale.iter().map(|s| 1.0 / s).collect()
}

struct MapChunk<'a, M: Map> {
    kernel: &'a M,
    parameters: &'a Parameters<'a>,
    x: &'a [M::In],
    out: &'a mut [M::Out],
    start: usize,
    streaming: bool,
}

impl<M: Map> Vectorized for MapChunk<'_, M> {
    type Output = bool;

    #[inline(always)]
    fn run(self) -> bool {
        let range = self.start..self.start + self.out.len();
        let mut sink = Sink::new(self.out, self.streaming);
        let odd = Pass::new(self.kernel, self.parameters).run(range, self.x, 0, &mut sink);
        sink.finish();
        odd
    }
}

/// A kernel on its way over the data.
pub(crate) struct Pass<'a, M: Map> {
    kernel: &'a M,
    parameters: &'a Parameters<'a>,
    gathered: [M::In; BLOCK],
    table: LaneTable,
    short: ShortTiles,
}

impl<'a, M: Map> Pass<'a, M> {
    #[inline(always)]
    pub(crate) fn new(kernel: &'a M, parameters: &'a Parameters<'a>) -> Self {
        let gathered = [M::In::default(); BLOCK];
        let short = ShortTiles([[0.0; BLOCK + WIDTH]; 3]);
        Pass { kernel, parameters, gathered, table: LaneTable::default(), short }
    }

    /// Writes what becomes of elements `range`, `x` being the input from `x_start` on. Whether one was odd.
    #[inline(always)]
    pub(crate) fn run(
        &mut self,
        range: std::ops::Range<usize>,
        x: &[M::In],
        x_start: usize,
        sink: &mut Sink<'_, M::Out>,
    ) -> bool {
        let Pass { kernel, parameters, gathered, table, short } = self;
        let Parameters { plan, affine, inverse } = parameters;
        let stride = plan.stride();
        let mut odd = false;
        plan.walk(
            range,
            Walk::Short,
            #[inline(always)]
            |piece| {
                let mut done = 0;
                while done < piece.len {
                    let room = sink.room();
                    let mut len = room.len().min(piece.len - done);
                    if stride != 1 || !matches!(piece.tiles, Tiles::One(_)) {
                        len = len.min(BLOCK);
                    }
                    let out = &mut room[..len];
                    let input = piece.input + done * stride - x_start;
                    let x = if stride == 1 {
                        &x[input..][..len]
                    } else {
                        gather(x, input, stride, len, gathered)
                    };
                    match piece.tiles {
                        Tiles::One(tile) => odd |= one_tile::<M>(kernel, x, out, *affine, tile),
                        Tiles::Lanes { base, phase } => {
                            let lane = phase + done;
                            let steps = table.steps(plan, *affine, inverse, base, lane, len);
                            odd |= side_by_side(*kernel, x, out, steps);
                        }
                        Tiles::Short { base, phase } => {
                            let phase = (phase + done) % plan.period();
                            let first = base + phase / plan.tile();
                            let tile = plan.tile();
                            if matches!(tile, 64 | 128) || tile == 32 && !M::SIMPLE {
                                // Output ends where it must, often in a tile.
                                let begun = phase % tile;
                                if begun > 0 || len < tile {
                                    len = len.min(tile - begun);
                                    let (x, out) = (&x[..len], &mut out[..len]);
                                    odd |= one_tile::<M>(kernel, x, out, *affine, first);
                                } else {
                                    len = tile * (len / tile).min((plan.period() - phase) / tile);
                                    let (x, out) = (&x[..len], &mut out[..len]);
                                    odd |= match tile {
                                        32 => whole_tiles::<M, 32>(kernel, x, out, *affine, first),
                                        64 => whole_tiles::<M, 64>(kernel, x, out, *affine, first),
                                        _ => whole_tiles::<M, 128>(kernel, x, out, *affine, first),
                                    };
                                }
                                sink.advance(len);
                                done += len;
                                continue;
                            }
                            let steps = short.spell_out(plan, *affine, base, phase, len);
                            odd |= side_by_side(*kernel, x, out, steps);
                        }
                    }
                    sink.advance(len);
                    done += len;
                }
            },
        );
        odd
    }
}

/// The outputs of elements of one tile. Whether one was odd.
#[inline(always)]
fn one_tile<M: Map>(
    kernel: &M,
    x: &[M::In],
    out: &mut [M::Out],
    affine: Affine<'_>,
    tile: usize,
) -> bool {
    let scale = affine.scale[tile];
    let inverse = if M::BY_INVERSE { 1.0 / scale } else { 0.0 };
    let offset = affine.offset.map_or(0.0, |o| o[tile]);
    kernel.alike(x, Step { scale, inverse, offset }, out)
}

/// The outputs of elements that have parameters of their own. Whether one was odd.
#[inline(always)]
fn side_by_side<M: Map>(kernel: &M, x: &[M::In], out: &mut [M::Out], steps: Steps<'_>) -> bool {
    let len = x.len();
    let (out, Steps { scale, inverse, offset }) = (&mut out[..len], steps);
    let (scale, inverse, offset) = (&scale[..len], &inverse[..len], &offset[..len]);
    let mut odd = false;
    for i in 0..len {
        let step = Step { scale: scale[i], inverse: inverse[i], offset: offset[i] };
        odd |= kernel.odd(x[i]);
        out[i] = kernel.one(x[i], step);
    }
    odd
}

/// The outputs of whole tiles of `T` elements: for usual blocks, loops whose length the compiler knows. Whether one was odd.
#[inline(always)]
fn whole_tiles<M: Map, const T: usize>(
    kernel: &M,
    x: &[M::In],
    out: &mut [M::Out],
    affine: Affine<'_>,
    first: usize,
) -> bool {
    let (xs, outs) = (x.as_chunks::<T>().0, out.as_chunks_mut::<T>().0);
    let mut odd = false;
    for (tile, (x, out)) in (first..).zip(xs.iter().zip(outs)) {
        odd |= one_tile::<M>(kernel, x, out, affine, tile);
    }
    odd
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

/// Scales, inverses and offsets of the elements of neighbouring short tiles.
struct ShortTiles([[f32; BLOCK + WIDTH]; 3]);

/// Parameters are written in steps of this many, past the end of their tile if need be.
const WIDTH: usize = 16;

impl ShortTiles {
    /// The parameters of `len <= BLOCK` elements from `phase` of a period on.
    #[inline(always)]
    fn spell_out(
        &mut self,
        plan: &Plan,
        affine: Affine<'_>,
        base: usize,
        phase: usize,
        len: usize,
    ) -> Steps<'_> {
        let ShortTiles([scales, inverses, offsets]) = self;
        let (tile, period) = (plan.tile(), plan.period());
        let mut number = base + phase / tile;
        let mut end = tile - phase % tile;
        let mut at = 0;
        while at < len {
            let scale = affine.scale[number];
            let inverse = 1.0 / scale;
            let offset = affine.offset.map_or(0.0, |o| o[number]);
            for at in (at..end.min(len)).step_by(WIDTH) {
                scales[at..][..WIDTH].fill(scale);
                inverses[at..][..WIDTH].fill(inverse);
                offsets[at..][..WIDTH].fill(offset);
            }
            at = end;
            end += tile;
            number += 1;
            if number == base + period / tile {
                number = base;
            }
        }
        Steps { scale: &scales[..len], inverse: &inverses[..len], offset: &offsets[..len] }
    }
}

/// Parameters side by side with the elements of a row whose tiles are too short to handle one by
/// one: in place where each lane is a tile, else spelled out in a table.
#[derive(Default)]
pub(crate) struct LaneTable {
    base: Option<usize>,
    scale: Vec<f32>,
    inverse: Vec<f32>,
    offset: Vec<f32>,
}

impl LaneTable {
    /// Parameters of lanes `lane..lane + len`, `len <= BLOCK`; offsets are zero if there are none. `inverse` holds those of
    /// all scales where lanes are tiles, or nothing if nobody needs them.
    #[inline(always)]
    pub(crate) fn steps<'a>(
        &'a mut self,
        plan: &Plan,
        affine: Affine<'a>,
        inverse: &'a [f32],
        base: usize,
        lane: usize,
        len: usize,
    ) -> Steps<'a> {
        let (scale, inverse, offset) = if plan.lanes_are_tiles() {
            let scale = &affine.scale[base..];
            let inverse = if inverse.is_empty() { scale } else { &inverse[base..] };
            (scale, inverse, affine.offset.map(|o| &o[base..]))
        } else {
            if self.base != Some(base) {
                self.fill(plan, affine, base);
            }
            (&self.scale[..], &self.inverse[..], affine.offset.map(|_| &self.offset[..]))
        };
        Steps {
            scale: &scale[lane..][..len],
            inverse: &inverse[lane..][..len],
            offset: offset.map_or(&NO_OFFSET[..len], |o| &o[lane..][..len]),
        }
    }

    #[inline(never)]
    fn fill(&mut self, plan: &Plan, affine: Affine<'_>, base: usize) {
        self.base = Some(base);
        let tiles = || (0..plan.lanes()).map(|l| base + plan.lane_tile(l));
        self.scale.clear();
        self.scale.extend(tiles().map(|tile| affine.scale[tile]));
        self.inverse = inverses(&self.scale);
        if let Some(offset) = affine.offset {
            self.offset.clear();
            self.offset.extend(tiles().map(|tile| offset[tile]));
        }
    }
}
