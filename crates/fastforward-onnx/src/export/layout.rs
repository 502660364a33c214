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
    /// How often tiles repeat along each axis of `shape`; empty where each scale is that of the tile of its number.
    repeats: Vec<Repeat>,
}

/// One axis of the written scales.
#[derive(Debug, PartialEq, Eq)]
struct Repeat {
    /// Scales along the axis.
    scales: usize,
    /// Neighbours of the same tile.
    times: usize,
    /// Tiles from one index to the next, in row-major order of the grid of tiles.
    stride: usize,
}

impl Written {
    pub(super) fn of(coded: &Coded) -> Self {
        let (shape, tile) = (&coded.shape, &coded.tile);
        let split: Vec<usize> =
            (0..shape.len()).filter(|&axis| tile[axis] != shape[axis]).collect();
        match split.as_slice() {
            _ if coded.parameters.scale.len() == 1 => {
                Self { shape: vec![], axis: None, block_size: 0, repeats: Vec::new() }
            }
            &[axis] if tile[axis] == 1 => Self {
                shape: vec![shape[axis]],
                axis: Some(axis),
                block_size: 0,
                repeats: Vec::new(),
            },
            _ => Self::blocked(shape, tile),
        }
    }

    fn blocked(shape: &[usize], tile: &[usize]) -> Self {
        let axis = (0..tile.len()).max_by_key(|&axis| tile[axis]).unwrap_or(0);
        let mut scales = shape.to_vec();
        scales[axis] = shape[axis] / tile[axis].max(1);
        let mut repeats = Vec::with_capacity(shape.len());
        let mut stride = 1;
        for dim in (0..shape.len()).rev() {
            let times = if dim == axis { 1 } else { tile[dim] };
            repeats.push(Repeat { scales: scales[dim], times, stride });
            stride *= shape[dim] / tile[dim];
        }
        if repeats.iter().all(|axis| axis.times == 1) {
            repeats.clear();
        }
        repeats.reverse();
        Self { shape: scales, axis: Some(axis), block_size: tile[axis], repeats }
    }

    /// How many scales are written.
    pub(super) fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// The tile that the written scale of this number belongs to.
    pub(super) fn tile_of(&self, mut scale: usize) -> usize {
        if self.repeats.is_empty() {
            return scale;
        }
        self.repeats.iter().rev().fold(0, |tile, axis| {
            let position = scale % axis.scales;
            scale /= axis.scales;
            tile + position / axis.times * axis.stride
        })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use fastforward_core::quantization::affine::AffineParameters;

    use super::*;
    use crate::placement::CodesOf;

    fn coded(shape: &[usize], tile: &[usize]) -> Coded {
        let tiles: usize = shape.iter().zip(tile).map(|(size, tile)| size / tile).product();
        Coded {
            shape: shape.to_vec(),
            tile: tile.to_vec(),
            codes: CodesOf::Whole(Vec::new()),
            parameters: Arc::new(AffineParameters {
                num_bits: 4,
                narrow_range: false,
                scale: vec![1.0; tiles],
                offset: None,
            }),
        }
    }

    /// Every element finds the scale of its tile.
    #[track_caller]
    fn check(shape: &[usize], tile: &[usize], expected: (&[usize], Option<usize>, usize)) {
        let coded = coded(shape, tile);
        let written = Written::of(&coded);
        assert_eq!((written.shape.as_slice(), written.axis, written.block_size), expected);
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
            assert_eq!(written.tile_of(layout.scale_of(at)), index, "element {at}");
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
