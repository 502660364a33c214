//! What a range estimator is.

use std::any::Any;
use std::fmt;
use std::ops::Range;

use ff_kernels::{Tiling, min_max};
use serde::Serialize;

use crate::quantization::Granularity;
use crate::quantization::affine::tiling;
use crate::quantization::quantizer::RangeSettable;
use crate::{ArrayView, Error, ErrorKind};

/// The streaming statistics of one quantizer: sees batches, names a range per tile.
///
/// Memory does not grow with the number of batches. Two estimators of a kind that saw different batches merge into one
/// that saw both, so that workers can share the data. The same batches in the same order give the same range, bit by bit,
/// for any number of threads.
///
/// An estimator of your own is used through an [`EstimatorFactory`](super::EstimatorFactory):
///
/// ```
/// use fastforward_core::quantization::quantizer::RangeSettable;
/// use fastforward_core::range_setting::{EstimatorFactory, RangeEstimator, TileRanges, tile_ranges};
/// use fastforward_core::{ArrayView, Error};
///
/// /// The range of the last batch, doubled.
/// #[derive(Clone, Debug, Default)]
/// struct Doubled(Option<TileRanges>);
///
/// impl RangeEstimator for Doubled {
///     fn name(&self) -> &str {
///         "doubled"
///     }
///     fn observe(&mut self, x: ArrayView<'_>, quantizer: &dyn RangeSettable) -> Result<(), Error> {
///         let mut range = tile_ranges(x, quantizer.granularity())?;
///         range.min.iter_mut().chain(&mut range.max).for_each(|bound| *bound *= 2.0);
///         self.0 = Some(range);
///         Ok(())
///     }
///     fn range(&self) -> Option<TileRanges> {
///         self.0.clone()
///     }
///     fn merge(&mut self, later: &dyn RangeEstimator) -> Result<(), Error> {
///         if let Some(range) = &self.same_kind(later)?.0 {
///             self.0 = Some(range.clone());
///         }
///         Ok(())
///     }
///     fn fork(&self) -> Box<dyn RangeEstimator> {
///         Box::new(Doubled(None))
///     }
/// }
/// let factory = EstimatorFactory::new(|_slot| Ok(Box::new(Doubled::default())));
/// # let _ = factory;
/// ```
pub trait RangeEstimator: Any + fmt::Debug + Send {
    /// The name by which a configuration and a report call it.
    fn name(&self) -> &str;

    /// Adds a batch that flowed past `quantizer`.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidData`] for data that has no range, such as NaN, with its position;
    /// [`ErrorKind::Granularity`] when the data has other tiles than earlier batches. The statistics are then as before.
    fn observe(&mut self, x: ArrayView<'_>, quantizer: &dyn RangeSettable) -> Result<(), Error>;

    /// Whether the range of each tile is all it asks of a batch: [`observe_ranges`](Self::observe_ranges) may then take the
    /// place of [`observe`](Self::observe).
    fn needs_ranges_only(&self) -> bool {
        false
    }

    /// Adds a batch of finite data with this range in each tile: what [`observe`](Self::observe) of the data does.
    ///
    /// # Errors
    /// [`ErrorKind::Granularity`] when earlier batches had other tiles. [`ErrorKind::Unsupported`], which is the default, when
    /// the estimator needs more than ranges.
    fn observe_ranges(&mut self, ranges: TileRanges) -> Result<(), Error> {
        let _ = ranges;
        Err(Error::new(
            ErrorKind::Unsupported,
            format!("estimator `{}` needs the data, not its ranges alone", self.name()),
        ))
    }

    /// The range that the batches so far ask for; `None` before the first one.
    fn range(&self) -> Option<TileRanges>;

    /// The range of data that is there as a whole, such as a weight: that of an estimator with these settings that sees
    /// nothing else. What this estimator has seen plays no part.
    ///
    /// An estimator overrides this where it needs less memory for one batch than for many.
    ///
    /// # Errors
    /// As [`observe`](RangeEstimator::observe).
    fn range_of_whole(
        &self,
        x: ArrayView<'_>,
        quantizer: &dyn RangeSettable,
    ) -> Result<Option<TileRanges>, Error> {
        let mut estimator = self.fork();
        estimator.observe(x, quantizer)?;
        Ok(estimator.range())
    }

    /// [`range_of_whole`](RangeEstimator::range_of_whole) of data that is not in memory yet.
    ///
    /// An estimator overrides this where it need not hold all of the data at a time.
    ///
    /// # Errors
    /// As [`observe`](RangeEstimator::observe), and what goes wrong while reading.
    fn range_of_unread(
        &self,
        mut x: Unread<'_>,
        quantizer: &dyn RangeSettable,
    ) -> Result<Option<TileRanges>, Error> {
        self.range_of_whole(x.whole()?, quantizer)
    }

    /// Starts from a range that the quantizer has already, before the first batch.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`], which is the default, when the estimator has no use for one.
    fn start_from(&mut self, range: TileRanges) -> Result<(), Error> {
        let _ = range;
        Err(Error::new(
            ErrorKind::Unsupported,
            format!(
                "estimator `{}` cannot continue from an existing range; start anew",
                self.name()
            ),
        ))
    }

    /// Adds what another estimator of this kind saw after this one.
    ///
    /// # Errors
    /// [`ErrorKind::Estimator`] when the other is of another kind or has other settings.
    fn merge(&mut self, later: &dyn RangeEstimator) -> Result<(), Error>;

    /// An estimator with the same settings that has seen nothing: one for another worker, to be merged later.
    ///
    /// What the first batch fixes for all others (a grid of candidates) is shared, so fork after it.
    fn fork(&self) -> Box<dyn RangeEstimator>;

    /// The other estimator as one of this type: what an implementation of [`merge`](RangeEstimator::merge) begins with.
    ///
    /// # Errors
    /// [`ErrorKind::Estimator`] when the other is of another type.
    fn same_kind<'a>(&self, other: &'a dyn RangeEstimator) -> Result<&'a Self, Error>
    where
        Self: Sized,
    {
        (other as &dyn Any).downcast_ref().ok_or_else(|| {
            Error::new(
                ErrorKind::Estimator,
                format!("estimator `{}` cannot merge with `{}`", self.name(), other.name()),
            )
        })
    }
}

/// One minimum and maximum per tile, in tile order.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TileRanges {
    /// The smallest value of each tile.
    pub min: Vec<f32>,
    /// The largest value of each tile.
    pub max: Vec<f32>,
}

impl TileRanges {
    /// The number of tiles.
    pub fn len(&self) -> usize {
        self.min.len()
    }

    /// Whether there is no tile.
    pub fn is_empty(&self) -> bool {
        self.min.is_empty()
    }

    /// Whether every bound is a number a quantizer can take: neither infinite nor NaN.
    pub fn is_finite(&self) -> bool {
        self.min.iter().chain(&self.max).all(|bound| bound.is_finite())
    }

    /// The smallest range that covers both, tile by tile.
    ///
    /// # Errors
    /// [`ErrorKind::Granularity`] when the numbers of tiles differ; nothing is changed then.
    pub fn widen(&mut self, other: &TileRanges) -> Result<(), Error> {
        self.check_tiles(other)?;
        for (min, &other) in self.min.iter_mut().zip(&other.min) {
            *min = min.min(other);
        }
        for (max, &other) in self.max.iter_mut().zip(&other.max) {
            *max = max.max(other);
        }
        Ok(())
    }

    /// Fails unless both have as many tiles.
    pub(super) fn check_tiles(&self, other: &TileRanges) -> Result<(), Error> {
        check_tiles(self.len(), other.len())
    }
}

/// Fails unless data has as many tiles as the data before it.
pub(super) fn check_tiles(before: usize, found: usize) -> Result<(), Error> {
    if before == found {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::Granularity,
        format!("data has {found} tiles where the range has {before}; every batch needs the same"),
    ))
}

/// Fills a slice with the elements from a number on.
pub type ReadElements<'a> = dyn FnMut(usize, &mut [f32]) -> Result<(), Error> + 'a;

/// Data that is not in memory yet, such as a weight in a file.
pub struct Unread<'a> {
    /// Its shape.
    pub shape: &'a [usize],
    /// Fills a slice with the elements from a number on, in row-major order.
    pub read: &'a mut ReadElements<'a>,
    /// Room for as many elements as the data has, or more.
    pub buffer: &'a mut [f32],
}

impl Unread<'_> {
    /// All of the data.
    ///
    /// # Errors
    /// What goes wrong while reading; [`ErrorKind::InvalidData`] when the buffer is too small.
    pub fn whole(&mut self) -> Result<ArrayView<'_>, Error> {
        let shape = self.shape;
        ArrayView::new(self.read(0..shape.iter().product())?, shape)
    }

    /// Some elements.
    pub(super) fn read(&mut self, elements: Range<usize>) -> Result<&[f32], Error> {
        let room = self.buffer.len();
        let some = self.buffer.get_mut(..elements.len()).ok_or_else(|| {
            let text = format!("a buffer of {room} elements cannot hold {}", elements.len());
            Error::new(ErrorKind::InvalidData, text)
        })?;
        (self.read)(elements.start, some)?;
        Ok(some)
    }
}

impl fmt::Debug for Unread<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Unread").field("shape", &self.shape).finish_non_exhaustive()
    }
}

/// The minimum and maximum of each tile of `x`.
///
/// # Errors
/// [`ErrorKind::Granularity`] when the tiles do not fit the data, [`ErrorKind::InvalidData`] when there is no element or
/// NaN is among them; the message names positions. Infinities are values like any other.
pub fn tile_ranges(x: ArrayView<'_>, granularity: &Granularity) -> Result<TileRanges, Error> {
    let tiling = tiling_of(x, granularity)?;
    let found = min_max(x.data(), &tiling).map_err(|error| {
        Error::new(ErrorKind::InvalidData, error.to_string()).with_source(error)
    })?;
    if !found.nan_tiles.is_empty() {
        return Err(bad_values(x, "NaN", f32::is_nan));
    }
    Ok(TileRanges { min: found.min, max: found.max })
}

/// The tiles of data that has elements.
pub(super) fn tiling_of(x: ArrayView<'_>, granularity: &Granularity) -> Result<Tiling, Error> {
    if x.is_empty() {
        return Err(Error::new(
            ErrorKind::InvalidData,
            format!("data of shape {:?} has no element to take a range from", x.shape()),
        ));
    }
    tiling(x, granularity)
}

/// The most numbers that the statistics of one quantizer may hold: 2 GiB of them.
const MAX_STATISTICS: usize = 1 << 28;

/// Fails if statistics of this many numbers per tile do not fit in memory that can be spared.
pub(super) fn check_memory(tiles: usize, per_tile: usize, what: &str) -> Result<(), Error> {
    if tiles.checked_mul(per_tile).is_some_and(|total| total <= MAX_STATISTICS) {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::InvalidSettings,
        format!(
            "{per_tile} {what} for each of {tiles} tiles are more than {MAX_STATISTICS} numbers; ask for fewer {what}, or \
             take larger tiles"
        ),
    ))
}

/// The error for values that an estimator refuses: how many, and where the first ones are.
pub(super) fn bad_values(x: ArrayView<'_>, what: &str, is_bad: fn(f32) -> bool) -> Error {
    const SHOWN: usize = 4;
    let array = x.to_array();
    let bad: Vec<usize> = (0..array.data.len()).filter(|&at| is_bad(array.data[at])).collect();
    let mut places: Vec<String> =
        bad.iter().take(SHOWN).map(|&at| format!("{:?}", index_of(at, &array.shape))).collect();
    if bad.len() > SHOWN {
        places.push("..".to_owned());
    }
    Error::new(
        ErrorKind::InvalidData,
        format!(
            "{} of {} values are {what}, at {} in data of shape {:?}",
            bad.len(),
            array.data.len(),
            places.join(", "),
            array.shape
        ),
    )
}

/// The coordinates of the element with this number in row-major order.
fn index_of(mut number: usize, shape: &[usize]) -> Vec<usize> {
    let mut index = vec![0; shape.len()];
    for (at, &extent) in index.iter_mut().zip(shape).rev() {
        *at = number % extent;
        number /= extent;
    }
    index
}
