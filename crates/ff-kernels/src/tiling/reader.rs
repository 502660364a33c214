//! Reading one tile after the other, where a kernel wants all of a tile at once.

use super::Tiling;

/// The elements of tiles, in C order of the tile, gathered block by block.
#[derive(Debug)]
pub(crate) struct TileReader<'a> {
    tiling: &'a Tiling,
    /// Extent and stride of the tile's dimensions, merged where they are evenly spaced; innermost
    /// first.
    dims: Vec<(usize, usize)>,
}

impl<'a> TileReader<'a> {
    pub(super) fn new(tiling: &'a Tiling) -> Self {
        let mut dims: Vec<(usize, usize)> = Vec::new();
        for (&size, &stride) in tiling.tile.iter().zip(&tiling.strides).rev() {
            match dims.last_mut() {
                _ if size == 1 => {}
                Some((inner, step)) if stride == *step * *inner => *inner *= size,
                _ => dims.push((size, stride)),
            }
        }
        if dims.is_empty() {
            dims.push((1, 1));
        }
        TileReader { tiling, dims }
    }

    /// Elements `from..from + len` of a tile: in place if they lie side by side, else gathered into
    /// `buffer`, which must be long enough.
    #[inline(always)]
    pub(crate) fn read<'b>(
        &self,
        x: &'b [f32],
        tile: usize,
        from: usize,
        len: usize,
        buffer: &'b mut [f32],
    ) -> &'b [f32] {
        let mut origin = 0;
        let mut rest = tile;
        for axis in (0..self.tiling.shape.len()).rev() {
            let at = rest % self.tiling.grid[axis] * self.tiling.tile[axis];
            origin += at * self.tiling.strides[axis];
            rest /= self.tiling.grid[axis];
        }
        let (run, step) = self.dims[0];
        if self.dims.len() == 1 && step == 1 {
            return &x[origin + from..][..len];
        }
        let mut done = 0;
        while done < len {
            let number = from + done;
            let mut input = origin;
            let mut rest = number;
            for &(size, stride) in &self.dims {
                input += rest % size * stride;
                rest /= size;
            }
            let n = (run - number % run).min(len - done);
            let out = &mut buffer[done..][..n];
            if step == 1 {
                out.copy_from_slice(&x[input..][..n]);
            } else {
                for (i, out) in out.iter_mut().enumerate() {
                    *out = x[input + i * step];
                }
            }
            done += n;
        }
        &buffer[..len]
    }
}
