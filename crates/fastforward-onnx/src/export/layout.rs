//! Tiles as the operators can say them: one scale, one per index of an axis, or blocks along one axis.

use crate::placement::Coded;

/// The scales of a tensor in the layout of `DequantizeLinear`.
///
/// Blocks run along one axis only, and every index of the other axes has scales of its own. A tile that spans several
/// indices of other axes is written by repeating its scale there, so every tiling can be written; the axis is the one
/// that needs the fewest scales.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Written {
    /// The shape of scale and zero point.
    pub(super) shape: Vec<usize>,
    pub(super) axis: Option<usize>,
    /// 0 unless blocked.
    pub(super) block_size: usize,
    /// For each scale that is written, the tile it belongs to.
    tiles: Vec<usize>,
}

impl Written {
    pub(super) fn of(coded: &Coded) -> Self {
        let (shape, tile) = (&coded.shape, &coded.tile);
        let split: Vec<usize> =
            (0..shape.len()).filter(|&axis| tile[axis] != shape[axis]).collect();
        match split.as_slice() {
            _ if coded.scale.len() == 1 => {
                Self { shape: vec![], axis: None, block_size: 0, tiles: vec![0] }
            }
            &[axis] if tile[axis] == 1 => Self {
                shape: vec![shape[axis]],
                axis: Some(axis),
                block_size: 0,
                tiles: (0..shape[axis]).collect(),
            },
            _ => Self::blocked(shape, tile),
        }
    }

    fn blocked(shape: &[usize], tile: &[usize]) -> Self {
        let axis = (0..tile.len()).max_by_key(|&axis| tile[axis]).unwrap_or(0);
        let mut scales = shape.to_vec();
        scales[axis] = shape[axis] / tile[axis].max(1);
        // The index of a scale in `scales`, turned into the index of its tile in the grid of tiles.
        let count: usize = scales.iter().product();
        let tiles = (0..count).map(|mut at| {
            let (mut index, mut stride) = (0, 1);
            for dim in (0..shape.len()).rev() {
                let position = at % scales[dim];
                at /= scales[dim];
                let block = if dim == axis { position } else { position / tile[dim] };
                index += block * stride;
                stride *= shape[dim] / tile[dim];
            }
            index
        });
        let tiles = tiles.collect();
        Self { shape: scales, axis: Some(axis), block_size: tile[axis], tiles }
    }

    /// One value per tile, repeated to one per written scale.
    pub(super) fn spread<T: Copy>(&self, per_tile: &[T]) -> Vec<T> {
        self.tiles.iter().map(|&tile| per_tile[tile]).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::placement::CodesOf;

    fn coded(shape: &[usize], tile: &[usize]) -> Coded {
        let tiles: usize = shape.iter().zip(tile).map(|(size, tile)| size / tile).product();
        Coded {
            shape: shape.to_vec(),
            tile: tile.to_vec(),
            codes: CodesOf::Whole(Vec::new()),
            num_bits: 4,
            scale: (0..tiles).map(|at| at as f32).collect(),
            offset: vec![0.0; tiles],
        }
    }

    /// Every element finds the scale of its tile.
    #[track_caller]
    fn check(shape: &[usize], tile: &[usize], expected: (&[usize], Option<usize>, usize)) {
        let coded = coded(shape, tile);
        let written = Written::of(&coded);
        assert_eq!((written.shape.as_slice(), written.axis, written.block_size), expected);
        let scale = written.spread(&coded.scale);
        let layout = crate::qdq::Layout::new(
            shape,
            &written.shape,
            written.axis.unwrap_or(1) as i64,
            written.block_size as i64,
        )
        .unwrap();
        for at in 0..shape.iter().product() {
            let (mut rest, mut index, mut stride) = (at, 0, 1);
            for dim in (0..shape.len()).rev() {
                index += rest % shape[dim] / tile[dim] * stride;
                rest /= shape[dim];
                stride *= shape[dim] / tile[dim];
            }
            assert_eq!(scale[layout.scale_of(at)], index as f32, "element {at}");
        }
    }

    #[test]
    fn every_tiling_can_be_written() {
        check(&[4, 6], &[4, 6], (&[], None, 0));
        check(&[4, 6], &[1, 6], (&[4], Some(0), 0));
        check(&[4, 6], &[4, 1], (&[6], Some(1), 0));
        check(&[4, 6], &[1, 3], (&[4, 2], Some(1), 3));
        check(&[4, 6], &[2, 3], (&[4, 2], Some(1), 3));
        check(&[4, 6], &[4, 3], (&[1, 6], Some(0), 4));
        check(&[2, 4, 3, 3], &[1, 2, 3, 3], (&[2, 4, 3, 1], Some(3), 3));
        check(&[2, 64, 3, 3], &[1, 32, 3, 3], (&[2, 2, 3, 3], Some(1), 32));
        check(&[4, 6], &[1, 1], (&[4, 6], Some(1), 1));
    }
}
