//! The smallest and largest value of all batches.

use super::estimator::{RangeEstimator, TileRanges, Unread, bad_values, tile_ranges};
use crate::quantization::Granularity;
use crate::quantization::affine::parts;
use crate::quantization::quantizer::RangeSettable;
use crate::{ArrayView, Error};

/// Running minimum and maximum (spec §6.4): the range of all data so far, tile by tile.
///
/// ```text
/// min := min(min, min(batch))      max := max(max, max(batch))
/// ```
///
/// Infinite values are refused: they would stretch the range to where no value has a code. Merging is exact.
#[derive(Clone, Debug, Default)]
pub struct RunningMinMax {
    range: Option<TileRanges>,
}

/// Elements that are read at a time.
const ELEMENTS_TOGETHER: usize = 1 << 21;

impl RunningMinMax {
    /// An estimator that has seen nothing.
    pub fn new() -> Self {
        Self::default()
    }

    fn widen(&mut self, found: TileRanges) -> Result<(), Error> {
        match &mut self.range {
            Some(range) => range.widen(&found)?,
            None => self.range = Some(found),
        }
        Ok(())
    }
}

impl RangeEstimator for RunningMinMax {
    fn name(&self) -> &str {
        "running_minmax"
    }

    fn observe(&mut self, x: ArrayView<'_>, quantizer: &dyn RangeSettable) -> Result<(), Error> {
        let found = tile_ranges(x, quantizer.granularity())?;
        if !found.is_finite() {
            return Err(bad_values(x, "infinite", f32::is_infinite));
        }
        self.widen(found)
    }

    fn needs_ranges_only(&self) -> bool {
        true
    }

    fn observe_ranges(&mut self, ranges: TileRanges) -> Result<(), Error> {
        self.widen(ranges)
    }

    fn range(&self) -> Option<TileRanges> {
        self.range.clone()
    }

    /// Holds the range once.
    fn range_of_whole(
        &self,
        x: ArrayView<'_>,
        quantizer: &dyn RangeSettable,
    ) -> Result<Option<TileRanges>, Error> {
        let mut estimator = Self::new();
        estimator.observe(x, quantizer)?;
        Ok(estimator.range)
    }

    /// Reads some megabytes at a time.
    fn range_of_unread(
        &self,
        mut x: Unread<'_>,
        quantizer: &dyn RangeSettable,
    ) -> Result<Option<TileRanges>, Error> {
        let tile = quantizer.granularity().tile_shape(x.shape)?;
        let tiles = x.shape.iter().zip(&tile).map(|(size, tile)| size / (*tile).max(1)).product();
        let mut range =
            TileRanges { min: vec![f32::INFINITY; tiles], max: vec![f32::NEG_INFINITY; tiles] };
        let parts = parts(x.shape, &tile, ELEMENTS_TOGETHER);
        let has_data = !parts.is_empty();
        for part in parts {
            let some = ArrayView::new(x.read(part.elements)?, &part.shape)?;
            match tile_ranges(some, &Granularity::per_tile(&part.tile)) {
                Ok(found) if found.is_finite() => {
                    let (min, max) =
                        (&mut range.min[part.tiles.clone()], &mut range.max[part.tiles]);
                    min.iter_mut().zip(found.min).for_each(|(min, found)| *min = min.min(found));
                    max.iter_mut().zip(found.max).for_each(|(max, found)| *max = max.max(found));
                }
                // The error for all of the data, with positions in it.
                _ => return self.range_of_whole(x.whole()?, quantizer),
            }
        }
        if has_data { Ok(Some(range)) } else { self.range_of_whole(x.whole()?, quantizer) }
    }

    fn start_from(&mut self, range: TileRanges) -> Result<(), Error> {
        self.widen(range)
    }

    fn merge(&mut self, later: &dyn RangeEstimator) -> Result<(), Error> {
        match &self.same_kind(later)?.range {
            Some(range) => self.widen(range.clone()),
            None => Ok(()),
        }
    }

    fn fork(&self) -> Box<dyn RangeEstimator> {
        Box::new(Self::new())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ErrorKind;
    use crate::quantization::{LinearQuantizer, LinearQuantizerConfig};

    fn quantizer(granularity: Granularity) -> LinearQuantizer {
        LinearQuantizer::new(LinearQuantizerConfig::new(8).with_granularity(granularity)).unwrap()
    }

    #[track_caller]
    fn check(
        granularity: Granularity,
        batches: &[([f32; 4], [usize; 2])],
        min: &[f32],
        max: &[f32],
    ) {
        let quantizer = quantizer(granularity);
        let mut estimator = RunningMinMax::new();
        for (data, shape) in batches {
            estimator.observe(ArrayView::new(data, shape).unwrap(), &quantizer).unwrap();
        }
        let range = estimator.range().unwrap();
        assert_eq!((range.min.as_slice(), range.max.as_slice()), (min, max));
    }

    #[test]
    fn ranges_cover_all_batches() {
        let first = ([1.0, -2.0, 0.5, 3.0], [2, 2]);
        let second = ([-1.0, -1.0, 7.0, 0.0], [2, 2]);
        check(Granularity::PerTensor, &[first], &[-2.0], &[3.0]);
        check(Granularity::PerTensor, &[first, second], &[-2.0], &[7.0]);
        check(Granularity::per_channel(0), &[first, second], &[-2.0, 0.0], &[1.0, 7.0]);
        check(Granularity::per_channel(1), &[first, second], &[-1.0, -2.0], &[7.0, 3.0]);
        // Batches of other shapes are fine as long as the tiles are as many.
        let wide = ([9.0, 0.0, 0.0, 0.0], [1, 4]);
        check(Granularity::PerTensor, &[first, wide], &[-2.0], &[9.0]);
        // All zero, all equal: a range of one point.
        check(Granularity::PerTensor, &[([0.0; 4], [2, 2])], &[0.0], &[0.0]);
        check(Granularity::PerTensor, &[([2.5; 4], [2, 2])], &[2.5], &[2.5]);
    }

    #[test]
    fn data_that_is_read_in_parts_has_the_range_of_the_whole() {
        // More rows than are read at a time, and rows that are longer.
        for (shape, granularity) in [
            (vec![ELEMENTS_TOGETHER / 100 + 3, 150], Granularity::per_channel(0)),
            (vec![ELEMENTS_TOGETHER / 100 + 3, 150], Granularity::per_channel(1)),
            (vec![ELEMENTS_TOGETHER / 100 + 3, 150], Granularity::per_block(&[1], &[50], &[0])),
            (vec![3, ELEMENTS_TOGETHER + 8], Granularity::per_block(&[1], &[4], &[0])),
            (vec![3, ELEMENTS_TOGETHER + 8], Granularity::PerTensor),
            (vec![], Granularity::PerTensor),
        ] {
            let len: usize = shape.iter().product();
            let mut data: Vec<f32> = (0..len).map(|at| (at * 7919 % 20_011) as f32 - 9e3).collect();
            let quantizer = quantizer(granularity);
            let of_unread = |data: &[f32]| {
                let mut read = |first: usize, out: &mut [f32]| {
                    out.copy_from_slice(&data[first..first + out.len()]);
                    Ok(())
                };
                let mut buffer = vec![0.0; len];
                let x = Unread { shape: &shape, read: &mut read, buffer: &mut buffer };
                RunningMinMax::new().range_of_unread(x, &quantizer)
            };
            let of_whole = |data: &[f32]| {
                let view = ArrayView::new(data, &shape).unwrap();
                RunningMinMax::new().range_of_whole(view, &quantizer)
            };
            assert_eq!(of_unread(&data).unwrap(), of_whole(&data).unwrap(), "{shape:?}");
            data[len - 1] = f32::NAN;
            let error = of_unread(&data).unwrap_err().to_string();
            assert_eq!(error, of_whole(&data).unwrap_err().to_string());
        }
        let x = Unread { shape: &[2, 0], read: &mut |_, _| Ok(()), buffer: &mut [] };
        let error = RunningMinMax::new().range_of_unread(x, &quantizer(Granularity::PerTensor));
        assert_eq!(error.unwrap_err().kind(), ErrorKind::InvalidData);
        let mut read = |_: usize, _: &mut [f32]| Err(Error::new(ErrorKind::Io, "unplugged"));
        let x = Unread { shape: &[2], read: &mut read, buffer: &mut [0.0; 2] };
        let error = RunningMinMax::new().range_of_unread(x, &quantizer(Granularity::PerTensor));
        assert_eq!(error.unwrap_err().to_string(), "unplugged");
    }

    #[test]
    fn data_without_a_range_is_refused_and_leaves_the_statistics() {
        let quantizer = quantizer(Granularity::per_channel(0));
        let mut estimator = RunningMinMax::new();
        let mut observe = |data: &[f32], shape: &[usize]| {
            estimator
                .observe(ArrayView::new(data, shape).unwrap(), &quantizer)
                .map_err(|error| (error.kind(), error.to_string()))
        };
        observe(&[1.0, 2.0, 3.0, 4.0], &[2, 2]).unwrap();
        assert_eq!(
            observe(&[1.0, 2.0, f32::NAN, 99.0], &[2, 2]).unwrap_err(),
            (
                ErrorKind::InvalidData,
                "1 of 4 values are NaN, at [1, 0] in data of shape [2, 2]".to_owned()
            )
        );
        assert_eq!(
            observe(&[f32::INFINITY, 99.0, 0.0, f32::NEG_INFINITY], &[2, 2]).unwrap_err().1,
            "2 of 4 values are infinite, at [0, 0], [1, 1] in data of shape [2, 2]"
        );
        assert_eq!(observe(&[], &[2, 0]).unwrap_err().0, ErrorKind::InvalidData);
        assert_eq!(observe(&[9.0; 3], &[3, 1]).unwrap_err().0, ErrorKind::Granularity);
        assert_eq!(observe(&[9.0], &[1, 1]).unwrap_err().0, ErrorKind::Granularity);
        let range = estimator.range().unwrap();
        assert_eq!((range.min, range.max), (vec![1.0, 3.0], vec![2.0, 4.0]));
    }

    #[test]
    fn strided_data_is_tiled_by_its_shape() {
        let data = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0];
        let transposed = ArrayView::with_strides(&data, &[3, 2], &[1, 3]).unwrap();
        let range = tile_ranges(transposed, &Granularity::per_channel(0)).unwrap();
        assert_eq!((range.min, range.max), (vec![1.0, 2.0, 3.0], vec![4.0, 5.0, 6.0]));
    }
}
