//! How kernels walk over a tiling: long rows, cut into pieces that share parameters.

use std::ops::Range;

/// A tiling reduced to its walk: outer dimensions, and one row made of as many inner dimensions as
/// can be merged.
///
/// Elements are numbered in C order of the data. Inside a row element `j` lies at input offset
/// `j * stride` and belongs to tile `(j % period) / tile` of the row: `period` is smaller than the
/// row where rows of tiles repeat (channels on the last axis, blocks along it), so that most
/// tilings, whatever their rank, are one single row.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    /// Dimensions outside the row, outermost first.
    outer: Vec<OuterDim>,
    row_len: usize,
    stride: usize,
    period: usize,
    tile: usize,
    mode: Mode,
    /// Whether no two rows share a tile.
    rows_own_tiles: bool,
    num_tiles: usize,
}

#[derive(Debug, Clone, Copy)]
struct OuterDim {
    size: usize,
    stride: usize,
    /// How far the tile number moves with one step; 0 inside a tile.
    tile_stride: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    /// Pieces of one tile each.
    Uniform,
    /// Tiles of one element along the row: parameters are read side by side with the data.
    Direct,
    /// Short tiles along the row that repeat: parameters are read from a table of this length (a
    /// multiple of the period) that spells them out per element.
    Table(usize),
}

/// Tiles of at least this many elements along a row are handled one by one.
const MIN_UNIFORM: usize = 16;
/// Longest period that is worth a table.
const MAX_TABLE: usize = 8192;
/// Shortest table; short periods are repeated up to it.
const MIN_TABLE: usize = 512;

/// Consecutive elements of a row.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Piece {
    /// Number of the first element, in C order of the data.
    pub(crate) pos: usize,
    /// Input offset of the first element.
    pub(crate) input: usize,
    pub(crate) len: usize,
    /// How often the piece's lanes come, each time right after the last; 1 unless asked for by [`Walk::Repeats`].
    pub(crate) repeat: usize,
    pub(crate) tiles: Tiles,
}

/// The tiles of a piece.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Tiles {
    /// All elements belong to this tile.
    One(usize),
    /// Element `i` has the parameters of lane `phase + i`, where lane `l` belongs to tile
    /// `base + plan.lane_tile(l)`; `phase + len <= plan.lanes()`.
    Lanes { base: usize, phase: usize },
    /// Element `i` belongs to tile `base + (phase + i) % plan.period() / plan.tile()`. Only for [`Walk::Short`].
    Short { base: usize, phase: usize },
}

/// What pieces are wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Walk {
    /// In order, of one tile or one row of lanes.
    Plain,
    /// All rows of lanes that follow one another as one piece.
    Repeats,
    /// Neighbouring tiles of up to [`MAX_SHORT`] elements along the row as one piece.
    Short,
}

/// Longest tile that is not worth a loop of its own.
const MAX_SHORT: usize = 128;

impl Plan {
    pub(crate) fn empty() -> Self {
        Plan {
            outer: Vec::new(),
            row_len: 1,
            stride: 1,
            period: 1,
            tile: 1,
            mode: Mode::Uniform,
            rows_own_tiles: true,
            num_tiles: 0,
        }
    }

    /// For non-empty data with a tile that divides it.
    pub(crate) fn new(shape: &[usize], tile: &[usize], grid: &[usize], strides: &[usize]) -> Self {
        let mut last = None;
        let mut outer: Vec<OuterDim> = Vec::new(); // innermost first
        let mut tile_stride = 1;
        for d in (0..shape.len()).rev() {
            let (size, t, n, stride) = (shape[d], tile[d], grid[d], strides[d]);
            if size == 1 {
                continue;
            }
            if last.is_none() {
                last = Some((size, t, stride));
            } else {
                if t > 1 {
                    outer.push(OuterDim { size: t, stride, tile_stride: 0 });
                }
                if n > 1 {
                    outer.push(OuterDim { size: n, stride: stride * t, tile_stride });
                }
            }
            tile_stride *= n;
        }
        let num_tiles = tile_stride;
        let (mut period, mut tile, stride) = last.unwrap_or((1, 1, 1));
        let mut row_len = period;

        let mut taken = 0;
        for dim in &outer {
            if dim.stride != stride * row_len {
                break;
            }
            if dim.tile_stride == 0 {
                // More of the same tiles.
                row_len *= dim.size;
                if tile == period && period * dim.size == row_len {
                    (tile, period) = (row_len, row_len);
                }
            } else if row_len == period && dim.tile_stride == period / tile {
                // The next tiles follow on from those of the row.
                row_len *= dim.size;
                period = row_len;
            } else {
                break;
            }
            taken += 1;
        }
        outer.drain(..taken);
        // Neighbours that step alike are one dimension.
        let mut merged: Vec<OuterDim> = Vec::new(); // innermost first
        for dim in outer {
            match merged.last_mut() {
                Some(inner)
                    if dim.stride == inner.stride * inner.size
                        && dim.tile_stride == inner.tile_stride * inner.size =>
                {
                    inner.size *= dim.size;
                }
                _ => merged.push(dim),
            }
        }
        merged.reverse();

        let repeats = row_len > period;
        let mode = if tile == 1 && (period >= MIN_TABLE || !repeats) {
            Mode::Direct
        } else if tile < MIN_UNIFORM && period <= MAX_TABLE && repeats {
            Mode::Table(period * MIN_TABLE.div_ceil(period))
        } else {
            Mode::Uniform
        };
        let rows_own_tiles = merged.iter().all(|d| d.tile_stride > 0);
        Plan { outer: merged, row_len, stride, period, tile, mode, rows_own_tiles, num_tiles }
    }

    /// Input stride inside a row.
    pub(crate) fn stride(&self) -> usize {
        self.stride
    }

    /// How many lanes [`Tiles::Lanes`] refers to; 0 if the walk never yields it.
    pub(crate) fn lanes(&self) -> usize {
        match self.mode {
            Mode::Uniform => 0,
            Mode::Direct => self.period,
            Mode::Table(len) => len,
        }
    }

    /// Whether lane `l` is tile `base + l`, so that parameters can be read in place.
    pub(crate) fn lanes_are_tiles(&self) -> bool {
        self.mode == Mode::Direct
    }

    /// The tile of a lane, relative to the base.
    #[inline(always)]
    pub(crate) fn lane_tile(&self, lane: usize) -> usize {
        lane % self.period / self.tile
    }

    /// Elements per chunk for reductions, at least `min`: so many that the partial results of all
    /// chunks together stay small beside the data. Depends on the tiling only, so that sums are
    /// added in the same order for any number of threads.
    pub(crate) fn reduction_chunk(&self, min: usize) -> usize {
        if self.outer.is_empty() && self.period == self.row_len {
            // Contiguous tiles. Whole tiles per chunk where they are short.
            return if self.tile < min { min / self.tile * self.tile } else { min };
        }
        let shared = if self.rows_own_tiles { self.period / self.tile } else { self.num_tiles };
        min.max(64 * shared)
    }

    /// The tiles that elements `range` belong to, as a range that covers them.
    pub(crate) fn tile_span(&self, range: Range<usize>) -> Range<usize> {
        let (mut first, mut end) = (usize::MAX, 0);
        let rows = range.start / self.row_len..(range.end - 1) / self.row_len + 1;
        for row in rows {
            let (_, base) = self.row_start(row);
            let j0 = range.start.max(row * self.row_len) - row * self.row_len;
            let j1 = range.end.min((row + 1) * self.row_len) - row * self.row_len;
            let (p0, p1) = (j0 % self.period, (j1 - 1) % self.period);
            // A table of lanes is emptied into all tiles of its row.
            let table = matches!(self.mode, Mode::Table(_));
            if table || j1 - j0 >= self.period || p1 < p0 {
                (first, end) = (first.min(base), end.max(base + self.period / self.tile));
            } else {
                first = first.min(base + p0 / self.tile);
                end = end.max(base + p1 / self.tile + 1);
            }
        }
        first..end
    }

    /// Input offset and tile number at the start of a row.
    #[inline(always)]
    fn row_start(&self, row: usize) -> (usize, usize) {
        let (mut input, mut base, mut rest) = (0, 0, row);
        for dim in self.outer.iter().rev() {
            let at = rest % dim.size;
            rest /= dim.size;
            input += at * dim.stride;
            base += at * dim.tile_stride;
        }
        (input, base)
    }

    /// Elements after which the tiles of a row repeat.
    pub(crate) fn period(&self) -> usize {
        self.period
    }

    /// Elements of a tile that follow one another in a row.
    pub(crate) fn tile(&self) -> usize {
        self.tile
    }

    /// Visits elements `range` in order, in pieces.
    #[inline(always)]
    pub(crate) fn walk(&self, range: Range<usize>, walk: Walk, mut visit: impl FnMut(Piece)) {
        let short = walk == Walk::Short && self.mode == Mode::Uniform && self.tile <= MAX_SHORT;
        let mut pos = range.start;
        while pos < range.end {
            let row = pos / self.row_len;
            let row_pos = row * self.row_len;
            let (row_input, base) = self.row_start(row);
            let j1 = (range.end - row_pos).min(self.row_len);
            let mut j = pos - row_pos;
            match self.mode {
                Mode::Uniform if short => visit(Piece {
                    pos,
                    input: row_input + j * self.stride,
                    len: j1 - j,
                    repeat: 1,
                    tiles: Tiles::Short { base, phase: j % self.period },
                }),
                Mode::Uniform => {
                    let n = self.period / self.tile;
                    let mut number = j % self.period / self.tile;
                    let mut left = self.tile - j % self.tile;
                    while j < j1 {
                        let len = left.min(j1 - j);
                        visit(Piece {
                            pos: row_pos + j,
                            input: row_input + j * self.stride,
                            len,
                            repeat: 1,
                            tiles: Tiles::One(base + number),
                        });
                        j += len;
                        left = self.tile;
                        number += 1;
                        if number == n {
                            number = 0;
                        }
                    }
                }
                Mode::Direct | Mode::Table(_) => {
                    let lanes = self.lanes();
                    let mut phase = j % self.period;
                    while j < j1 {
                        let len = (lanes - phase).min(j1 - j);
                        let repeats = walk == Walk::Repeats && len == lanes;
                        let repeat = if repeats { (j1 - j) / lanes } else { 1 };
                        visit(Piece {
                            pos: row_pos + j,
                            input: row_input + j * self.stride,
                            len,
                            repeat,
                            tiles: Tiles::Lanes { base, phase },
                        });
                        j += len * repeat;
                        phase = 0;
                    }
                }
            }
            pos = row_pos + j1;
        }
    }
}
