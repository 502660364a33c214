//! How data is cut into tiles with parameters of their own.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{Error, ErrorKind};

/// A tiling of data: each tile has its own scale and offset (spec §4.1).
///
/// Parameters are numbered by the position of their tile in row-major order of the grid of tiles. Equality is
/// structural: two granularities are equal when they are declared with the same settings.
///
/// ```
/// use fastforward_core::quantization::Granularity;
/// let blocks = Granularity::per_block(&[1], &[32], &[0]);
/// assert_eq!(blocks.tile_shape(&[8, 64])?, [1, 32]);
/// assert_eq!(blocks.num_parameters(&[8, 64])?, 16);
/// assert_ne!(blocks, Granularity::per_block(&[1], &[16], &[0]));
/// # Ok::<(), fastforward_core::Error>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Granularity {
    /// One tile: the whole tensor.
    #[default]
    PerTensor,
    /// One tile per index of one or several axes.
    PerChannel {
        /// The axes, negative ones counted from the last. No axes at all mean one tile.
        axes: Vec<isize>,
    },
    /// Blocks along some axes, single indices of others.
    PerBlock {
        /// The axes that are cut into blocks.
        dims: Vec<isize>,
        /// The block size along each of `dims`.
        sizes: Vec<usize>,
        /// The axes of which each index has tiles of its own.
        #[serde(default)]
        per_channel_dims: Vec<isize>,
    },
    /// Tiles of a given shape.
    PerTile {
        /// One extent per dimension, each a divisor of the data's.
        shape: Vec<usize>,
    },
}

impl Granularity {
    /// One tile per index of one axis.
    pub fn per_channel(axis: isize) -> Self {
        Self::PerChannel { axes: vec![axis] }
    }

    /// Blocks of `sizes` along `dims`, each index of `per_channel_dims` apart.
    pub fn per_block(dims: &[isize], sizes: &[usize], per_channel_dims: &[isize]) -> Self {
        Self::PerBlock {
            dims: dims.to_vec(),
            sizes: sizes.to_vec(),
            per_channel_dims: per_channel_dims.to_vec(),
        }
    }

    /// Tiles of a given shape.
    pub fn per_tile(shape: &[usize]) -> Self {
        Self::PerTile { shape: shape.to_vec() }
    }

    /// The shape of one tile of data of this shape.
    ///
    /// # Errors
    /// [`ErrorKind::Granularity`] when an axis does not exist, a tile does not divide the data, or ranks differ; every
    /// axis that is wrong is named.
    pub fn tile_shape(&self, data_shape: &[usize]) -> Result<Vec<usize>, Error> {
        let wrong = |what: String| {
            Error::new(
                ErrorKind::Granularity,
                format!("{self} on data of shape {data_shape:?}: {what}"),
            )
        };
        let mut tile = data_shape.to_vec();
        match self {
            Self::PerTensor => {}
            Self::PerChannel { axes } => {
                for axis in resolve_axes(axes, data_shape.len()).map_err(wrong)? {
                    tile[axis] = 1;
                }
            }
            Self::PerBlock { dims, sizes, per_channel_dims } => {
                if dims.len() != sizes.len() {
                    return Err(wrong(format!(
                        "{} dims need as many sizes, found {}",
                        dims.len(),
                        sizes.len()
                    )));
                }
                for axis in resolve_axes(per_channel_dims, data_shape.len()).map_err(wrong)? {
                    tile[axis] = 1;
                }
                // A dim in both lists is cut into blocks.
                let axes = resolve_axes(dims, data_shape.len()).map_err(wrong)?;
                if let Some(twice) = (1..axes.len()).find(|&at| axes[..at].contains(&axes[at])) {
                    return Err(wrong(format!("axis {} is cut into blocks twice", axes[twice])));
                }
                for (axis, &size) in axes.into_iter().zip(sizes) {
                    tile[axis] = size;
                }
            }
            Self::PerTile { shape } => {
                if shape.len() != data_shape.len() {
                    return Err(wrong(format!(
                        "the tile has {} dimensions, the data {}",
                        shape.len(),
                        data_shape.len()
                    )));
                }
                tile.clone_from(shape);
            }
        }
        let ragged: Vec<String> = (0..tile.len())
            .filter(|&axis| {
                tile[axis] == 0 && data_shape[axis] != 0
                    || tile[axis] != 0 && !data_shape[axis].is_multiple_of(tile[axis])
            })
            .map(|axis| {
                format!("{} does not divide {} on axis {axis}", tile[axis], data_shape[axis])
            })
            .collect();
        if ragged.is_empty() { Ok(tile) } else { Err(wrong(ragged.join(", "))) }
    }

    /// How many tiles data of this shape has: the number of scales.
    ///
    /// # Errors
    /// As for [`tile_shape`](Self::tile_shape).
    pub fn num_parameters(&self, data_shape: &[usize]) -> Result<usize, Error> {
        let tile = self.tile_shape(data_shape)?;
        let count = data_shape.iter().zip(&tile).try_fold(1usize, |count, (&extent, &size)| {
            count.checked_mul(extent.checked_div(size).unwrap_or(1))
        });
        count.ok_or_else(|| {
            let message = format!("{self} on data of shape {data_shape:?}: too many tiles");
            Error::new(ErrorKind::Granularity, message)
        })
    }

    /// The simplest granularity whose tile on data of this shape is `tile`: per tensor if it is the whole, per channel
    /// if every axis is whole or single, else per block.
    ///
    /// # Errors
    /// [`ErrorKind::Granularity`] when the tile does not divide the data.
    pub fn from_sizes(data_shape: &[usize], tile: &[usize]) -> Result<Self, Error> {
        Self::per_tile(tile).tile_shape(data_shape)?;
        if tile == data_shape {
            return Ok(Self::PerTensor);
        }
        let channels: Vec<isize> = (0..tile.len())
            .filter(|&axis| tile[axis] == 1 && data_shape[axis] > 1)
            .map(|axis| axis as isize)
            .collect();
        let blocks: Vec<usize> = (0..tile.len())
            .filter(|&axis| tile[axis] != 1 && tile[axis] != data_shape[axis])
            .collect();
        if blocks.is_empty() {
            return Ok(Self::PerChannel { axes: channels });
        }
        Ok(Self::PerBlock {
            sizes: blocks.iter().map(|&axis| tile[axis]).collect(),
            dims: blocks.into_iter().map(|axis| axis as isize).collect(),
            per_channel_dims: channels,
        })
    }
}

/// Axes counted from the first, or what is wrong with them.
fn resolve_axes(axes: &[isize], rank: usize) -> Result<Vec<usize>, String> {
    let resolved: Vec<Option<usize>> = axes
        .iter()
        .map(|&axis| {
            let from_first = if axis < 0 { axis.checked_add(rank as isize)? } else { axis };
            usize::try_from(from_first).ok().filter(|&axis| axis < rank)
        })
        .collect();
    let wrong: Vec<String> = axes
        .iter()
        .zip(&resolved)
        .filter(|(_, found)| found.is_none())
        .map(|(axis, _)| axis.to_string())
        .collect();
    if wrong.is_empty() {
        Ok(resolved.into_iter().flatten().collect())
    } else {
        Err(format!("no axis {} in {rank} dimensions", wrong.join(", ")))
    }
}

/// As the reference prints it: `PerChannel(channel=0)`.
impl fmt::Display for Granularity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PerTensor => f.write_str("PerTensor()"),
            Self::PerChannel { axes } => match axes.as_slice() {
                [axis] => write!(f, "PerChannel(channel={axis})"),
                many => write!(f, "PerChannel(channel={})", Tuple(many)),
            },
            Self::PerBlock { dims, sizes, per_channel_dims } => write!(
                f,
                "PerBlock(block_dims={}, block_sizes={}, per_channel_dims={})",
                Tuple(dims),
                Tuple(sizes),
                Tuple(per_channel_dims)
            ),
            Self::PerTile { shape } => write!(f, "PerTile(tile_shape={shape:?})"),
        }
    }
}

struct Tuple<'a, T>(&'a [T]);

impl<T: fmt::Display> fmt::Display for Tuple<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(")?;
        for (at, value) in self.0.iter().enumerate() {
            if at > 0 {
                f.write_str(", ")?;
            }
            write!(f, "{value}")?;
        }
        f.write_str(if self.0.len() == 1 { ",)" } else { ")" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(granularity: Granularity, data: &[usize], tile: &[usize], parameters: usize) {
        assert_eq!(granularity.tile_shape(data).unwrap(), tile);
        assert_eq!(granularity.num_parameters(data).unwrap(), parameters);
    }

    #[test]
    fn tiles() {
        check(Granularity::PerTensor, &[4, 6], &[4, 6], 1);
        check(Granularity::per_channel(0), &[4, 6], &[1, 6], 4);
        check(Granularity::per_channel(-1), &[4, 6], &[4, 1], 6);
        check(Granularity::PerChannel { axes: vec![2, 0] }, &[2, 3, 5], &[1, 3, 1], 10);
        check(Granularity::PerChannel { axes: vec![] }, &[4, 6], &[4, 6], 1);
        check(Granularity::per_block(&[1], &[3], &[0]), &[4, 6], &[1, 3], 8);
        // A dim in both lists is treated as a block dim.
        check(Granularity::per_block(&[1], &[2], &[1]), &[6, 4], &[6, 2], 2);
        check(Granularity::per_tile(&[2, 3]), &[4, 6], &[2, 3], 4);
        check(Granularity::PerTensor, &[], &[], 1);
        check(Granularity::PerTensor, &[0, 3], &[0, 3], 1);
    }

    #[test]
    fn every_wrong_axis_is_named() {
        let message = Granularity::per_tile(&[4, 5]).tile_shape(&[6, 7]).unwrap_err().to_string();
        assert_eq!(
            message,
            "PerTile(tile_shape=[4, 5]) on data of shape [6, 7]: 4 does not divide 6 on axis 0, 5 does not divide 7 on axis 1"
        );
        let all = Granularity::PerChannel { axes: vec![0, 1] };
        assert!(all.num_parameters(&[usize::MAX, 2]).is_err());
        for wrong in [
            Granularity::PerChannel { axes: vec![2, -3] },
            Granularity::per_tile(&[6]),
            Granularity::per_block(&[1], &[3], &[]),
            Granularity::per_block(&[0, 1], &[2], &[]),
            Granularity::per_block(&[0], &[0], &[]),
            Granularity::per_block(&[1, -1], &[2, 4], &[]),
        ] {
            let error = wrong.tile_shape(&[6, 4]).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Granularity, "{error}");
        }
    }

    /// Spec A.10.
    #[test]
    fn the_simplest_granularity_of_a_tile() {
        for (data, tile, expected) in [
            (&[4, 6][..], &[4, 6][..], Granularity::PerTensor),
            (&[4, 6], &[1, 6], Granularity::per_channel(0)),
            (&[4, 6], &[1, 1], Granularity::PerChannel { axes: vec![0, 1] }),
            (&[4, 6], &[2, 6], Granularity::per_block(&[0], &[2], &[])),
            (&[4, 6], &[1, 3], Granularity::per_block(&[1], &[3], &[0])),
            (&[1, 6], &[1, 3], Granularity::per_block(&[1], &[3], &[])),
            (&[4, 1], &[1, 1], Granularity::per_channel(0)),
            (&[1, 1], &[1, 1], Granularity::PerTensor),
            (&[4, 6, 2], &[1, 3, 2], Granularity::per_block(&[1], &[3], &[0])),
            (&[16, 16, 1, 1], &[1, 16, 1, 1], Granularity::per_channel(0)),
        ] {
            assert_eq!(Granularity::from_sizes(data, tile).unwrap(), expected, "{data:?} {tile:?}");
        }
        assert!(Granularity::from_sizes(&[4], &[3]).is_err());
    }
}
