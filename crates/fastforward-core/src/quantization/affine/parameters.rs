//! A scale and an offset per tile.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::quantization::Granularity;

/// The parameters of an affine grid: `x ≈ (q + round(offset)) * scale` for codes `q` in `lo..=hi`.
///
/// One scale, and one offset if there are any, per tile in row-major order of the grid of tiles. `lo` is `-2^(bits-1)`,
/// one more with a narrow range; `hi` is `2^(bits-1) - 1`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AffineParameters {
    /// The bits of one code.
    pub num_bits: u32,
    /// Whether the lowest code is left out.
    pub narrow_range: bool,
    /// The distance of two neighbouring grid points, per tile.
    pub scale: Vec<f32>,
    /// Minus the code of zero, per tile; `None` means zero throughout. It need not be an integer: it is rounded, half to
    /// even, where it is used.
    pub offset: Option<Vec<f32>>,
}

/// A grid laid over data: how the data is cut into tiles, and the parameters of each.
#[derive(Clone, Debug, PartialEq)]
pub struct AffineGrid {
    /// How the data is cut into tiles.
    pub granularity: Granularity,
    /// One scale and offset per tile.
    pub parameters: Arc<AffineParameters>,
}

impl AffineParameters {
    /// The smallest code. Bits outside of 1 to 25, which no quantizer has, count as the nearest.
    pub fn lo(&self) -> i64 {
        i64::from(self.narrow_range) - self.half()
    }

    /// The largest code; bits as for [`lo`](Self::lo).
    pub fn hi(&self) -> i64 {
        self.half() - 1
    }

    fn half(&self) -> i64 {
        1 << (self.num_bits.clamp(1, 25) - 1)
    }

    /// The offset of a tile as it stands, 0 if there is none.
    fn offset(&self, tile: usize) -> f32 {
        self.offset.as_ref().and_then(|offset| offset.get(tile)).copied().unwrap_or(0.0)
    }

    /// The range that each tile represents: `((lo + offset) * scale, (hi + offset) * scale)`, with the offset as it is,
    /// not rounded (spec §3.7).
    pub fn quantization_range(&self) -> (Vec<f32>, Vec<f32>) {
        let bound = |code: i64| {
            self.scale
                .iter()
                .enumerate()
                .map(|(tile, &scale)| (code as f32 + self.offset(tile)) * scale)
                .collect()
        };
        (bound(self.lo()), bound(self.hi()))
    }

    /// The offset of a tile as it is used: rounded half to even, 0 if there is none.
    pub fn rounded_offset(&self, tile: usize) -> f32 {
        self.offset(tile).round_ties_even()
    }

    /// Whether these are the same numbers, bit by bit.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        let same = |a: &[f32], b: &[f32]| {
            a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.to_bits() == b.to_bits())
        };
        let same_offsets = match (&self.offset, &other.offset) {
            (Some(a), Some(b)) => same(a, b),
            (a, b) => a.is_none() && b.is_none(),
        };
        (self.num_bits, self.narrow_range) == (other.num_bits, other.narrow_range)
            && same(&self.scale, &other.scale)
            && same_offsets
    }

    /// Whether zero is a grid point of every tile with code 0: no offset rounds to anything but zero.
    pub fn is_symmetric(&self) -> bool {
        (0..self.scale.len()).all(|tile| self.rounded_offset(tile) == 0.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_that_no_quantizer_has_do_not_panic() {
        for num_bits in [0, 1, 32, 33, u32::MAX] {
            let parameters = AffineParameters {
                num_bits,
                narrow_range: false,
                scale: vec![1.0, 2.0],
                offset: Some(vec![]),
            };
            assert!(parameters.lo() < 0 && parameters.hi() >= 0);
            assert_eq!(parameters.quantization_range().0.len(), 2);
            assert_eq!(parameters.rounded_offset(7), 0.0);
        }
    }
}
