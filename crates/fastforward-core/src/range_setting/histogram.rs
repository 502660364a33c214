//! What estimators that count share: a histogram per tile.

use ff_kernels::{Histogram, KernelError, histograms};

use super::estimator::{bad_values, check_memory, check_tiles, tile_ranges, tiling_of};
use crate::quantization::quantizer::RangeSettable;
use crate::{ArrayView, Error, ErrorKind};

/// The values of each tile, counted in bins whose width, a power of two, is the smallest that covers the tile's data with
/// as many bins as there may be.
///
/// The counts depend on the data alone: any order of the batches and any way of merging gives the same.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct TileHistograms {
    num_bins: usize,
    tiles: Vec<Histogram>,
}

impl TileHistograms {
    /// Nothing counted.
    pub(super) fn new(num_bins: usize) -> Self {
        Self { num_bins, tiles: Vec::new() }
    }

    /// One histogram per tile; none before the first batch.
    pub(super) fn tiles(&self) -> &[Histogram] {
        &self.tiles
    }

    /// Counts a batch.
    ///
    /// # Errors
    /// `InvalidData` naming values that are not finite, `Granularity` for other tiles than before, `InvalidSettings` for
    /// more bins than memory may hold; nothing is counted then.
    pub(super) fn observe(
        &mut self,
        x: ArrayView<'_>,
        quantizer: &dyn RangeSettable,
    ) -> Result<(), Error> {
        if !tile_ranges(x, quantizer.granularity())?.is_finite() {
            return Err(bad_values(x, "infinite", f32::is_infinite));
        }
        let tiling = tiling_of(x, quantizer.granularity())?;
        if self.tiles.is_empty() {
            check_memory(tiling.num_tiles(), self.num_bins, "bins")?;
            let empty = Histogram::new(self.num_bins).map_err(kernel_error)?;
            let mut tiles = vec![empty; tiling.num_tiles()];
            histograms(x.data(), &tiling, &mut tiles).map_err(kernel_error)?;
            self.tiles = tiles;
            return Ok(());
        }
        check_tiles(self.tiles.len(), tiling.num_tiles())?;
        histograms(x.data(), &tiling, &mut self.tiles).map_err(kernel_error)
    }

    /// Adds what another one counted.
    ///
    /// # Errors
    /// `Granularity` for another number of tiles.
    pub(super) fn merge(&mut self, later: &Self) -> Result<(), Error> {
        if later.tiles.is_empty() {
            return Ok(());
        }
        if self.tiles.is_empty() {
            self.tiles.clone_from(&later.tiles);
            return Ok(());
        }
        check_tiles(self.tiles.len(), later.tiles.len())?;
        for (tile, later) in self.tiles.iter_mut().zip(&later.tiles) {
            tile.merge(later).map_err(kernel_error)?;
        }
        Ok(())
    }
}

/// What is wrong with a number of bins.
pub(super) fn check_bins(num_bins: usize, wrong: &mut Vec<String>) {
    if !(16..=1 << 16).contains(&num_bins) {
        wrong.push(format!("num_bins must be 16 to 65536, found {num_bins}"));
    }
}

pub(super) fn kernel_error(error: KernelError) -> Error {
    Error::new(ErrorKind::InvalidData, error.to_string()).with_source(error)
}
