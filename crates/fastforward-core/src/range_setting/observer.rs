//! One slot under observation.

use std::fmt;
use std::sync::Arc;

use super::estimate::SlotEstimate;
use super::estimator::{RangeEstimator, TileRanges, Unread};
use crate::module::SlotEntry;
use crate::quantization::quantizer::{Quantizer, RangeSettable};
use crate::{ArrayView, Error, ErrorKind};

/// An estimator at work on the quantizer of one slot: counts what it sees and writes the range.
///
/// [`estimate_ranges`](super::estimate_ranges) makes one per slot and feeds it from the data that flows through. An engine
/// whose values do not pass slots feeds it directly:
///
/// ```
/// use std::sync::Arc;
/// use fastforward_core::ArrayView;
/// use fastforward_core::module::SlotEntry;
/// use fastforward_core::quantization::{LinearQuantizer, LinearQuantizerConfig, QuantizerSlot};
/// use fastforward_core::range_setting::{EstimatorConfig, ObserverOptions, RangeObserver, UpdatePolicy};
///
/// let slot = QuantizerSlot::output();
/// slot.replace(Arc::new(LinearQuantizer::new(LinearQuantizerConfig::new(8))?));
/// let entry = SlotEntry { names: vec!["conv.output_quantizer".into()], slot };
/// let options = ObserverOptions { update: UpdatePolicy::AtEnd, ..ObserverOptions::default() };
/// let mut observer = RangeObserver::new(entry, EstimatorConfig::running_minmax().build()?, options)?;
/// observer.observe(ArrayView::new(&[-1.0, 2.0], &[2])?)?;
/// assert_eq!(observer.finish()?.elements, 2);
/// # Ok::<(), fastforward_core::Error>(())
/// ```
#[derive(Debug)]
pub struct RangeObserver {
    entry: SlotEntry,
    quantizer: Arc<dyn Quantizer>,
    estimator: Box<dyn RangeEstimator>,
    options: ObserverOptions,
    batches: u64,
    elements: u64,
    has_range: bool,
    /// The range that was written last, and after how many batches: a search is not repeated to tell of it.
    written: Option<(u64, TileRanges)>,
}

/// How a [`RangeObserver`] treats the range of its quantizer.
#[derive(Clone, Debug, Default)]
pub struct ObserverOptions {
    /// When the range is written.
    pub update: UpdatePolicy,
    /// Whether a range that is there already takes part.
    pub initial: InitialRange,
}

/// When a range is written to the quantizer. The end of the observation always writes the last one.
#[derive(Clone, Default)]
pub enum UpdatePolicy {
    /// After every batch, so that later layers see data that is quantized with the newest ranges, as in the reference.
    #[default]
    EveryStep,
    /// At the end only.
    AtEnd,
    /// After the batches for whose number, counted from 1, the function says so.
    When(Arc<dyn Fn(u64) -> bool + Send + Sync>),
}

impl UpdatePolicy {
    /// Whether the range is written after batch number `step`.
    pub fn updates_at(&self, step: u64) -> bool {
        match self {
            Self::EveryStep => true,
            Self::AtEnd => false,
            Self::When(policy) => policy(step),
        }
    }
}

impl fmt::Debug for UpdatePolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::EveryStep => "EveryStep",
            Self::AtEnd => "AtEnd",
            Self::When(_) => "When(..)",
        })
    }
}

/// What becomes of a range that a quantizer has before it is calibrated (again).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum InitialRange {
    /// It is forgotten with the first batch, so a range can shrink.
    #[default]
    StartAnew,
    /// The estimator starts from it, as the reference's min-max estimators do: a running range then only widens.
    Continue,
}

impl RangeObserver {
    /// An observer of the quantizer that stands in the slot now.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] when that quantizer has no range to set, or it has one to continue from and the estimator
    /// cannot.
    pub fn new(
        entry: SlotEntry,
        mut estimator: Box<dyn RangeEstimator>,
        options: ObserverOptions,
    ) -> Result<Self, Error> {
        let quantizer = entry.slot.quantizer();
        let range = settable(&*quantizer)
            .map_err(|error| error.at(format_args!("`{}`", entry.name())))?
            .quantization_range();
        let has_range = range.is_some();
        if let (InitialRange::Continue, Some((min, max))) = (options.initial, range) {
            estimator
                .start_from(TileRanges { min, max })
                .map_err(|error| error.at(format_args!("`{}`", entry.name())))?;
        }
        Ok(Self {
            entry,
            quantizer,
            estimator,
            options,
            batches: 0,
            elements: 0,
            has_range,
            written: None,
        })
    }

    /// Adds a batch, and writes the range if the policy says so.
    ///
    /// # Errors
    /// What the estimator finds wrong with the data, or the quantizer with the range. The message names the slot and the
    /// number of the batch.
    pub fn observe(&mut self, x: ArrayView<'_>) -> Result<(), Error> {
        let result =
            settable(&*self.quantizer).and_then(|quantizer| self.estimator.observe(x, quantizer));
        self.observed(result, x.len())
    }

    /// Whether [`observe_ranges`](Self::observe_ranges) can take the place of [`observe`](Self::observe).
    pub fn needs_ranges_only(&self) -> bool {
        self.estimator.needs_ranges_only()
    }

    /// Adds a batch of `n_elements` finite values with these ranges, tile by tile, and writes the range if the policy says so.
    ///
    /// # Errors
    /// As for [`observe`](Self::observe); [`ErrorKind::Unsupported`] unless [ranges are
    /// enough](Self::needs_ranges_only).
    pub fn observe_ranges(&mut self, ranges: TileRanges, n_elements: usize) -> Result<(), Error> {
        let result = self.estimator.observe_ranges(ranges);
        self.observed(result, n_elements)
    }

    /// Counts a batch that the estimator took.
    fn observed(&mut self, result: Result<(), Error>, n_elements: usize) -> Result<(), Error> {
        let step = self.batches + 1;
        result.map_err(|error| error.at(format_args!("`{}`, batch {step}", self.name())))?;
        self.batches = step;
        self.elements += n_elements as u64;
        if self.options.update.updates_at(step) { self.write_range() } else { Ok(()) }
    }

    /// Sets the range of data that there is no more of, such as a weight, and says what was seen: what a new observer says
    /// that [observes](RangeObserver::observe) it and [finishes](RangeObserver::finish), in less memory.
    ///
    /// # Errors
    /// As [`observe`](RangeObserver::observe), and what goes wrong while reading. The message does not name the slot: who
    /// reads knows where.
    pub fn observe_unread(&mut self, x: Unread<'_>) -> Result<SlotEstimate, Error> {
        let elements = x.shape.iter().map(|&size| size as u64).product();
        let range = settable(&*self.quantizer).and_then(|quantizer| {
            let range = self.estimator.range_of_unread(x, quantizer)?;
            if let Some(TileRanges { min, max }) = &range {
                quantizer.set_quantization_range(min, max)?;
            }
            Ok(range)
        });
        let range = range?;
        self.has_range = range.is_some();
        Ok(SlotEstimate {
            names: self.entry.names.clone(),
            estimator: self.estimator.name().to_owned(),
            batches: 1,
            elements,
            range,
        })
    }

    /// Adds what another observer of the same slot saw after this one.
    ///
    /// # Errors
    /// [`ErrorKind::Estimator`] when the estimators do not merge.
    pub fn merge(&mut self, later: &RangeObserver) -> Result<(), Error> {
        self.estimator
            .merge(&*later.estimator)
            .map_err(|error| error.at(format_args!("`{}`", self.name())))?;
        self.batches += later.batches;
        self.elements += later.elements;
        Ok(())
    }

    /// An observer of the same slot for another worker: same settings, nothing seen, and it writes no range before the end.
    ///
    /// Merge it into this one instead of finishing it.
    pub fn fork(&self) -> Self {
        Self {
            entry: self.entry.clone(),
            quantizer: Arc::clone(&self.quantizer),
            estimator: self.estimator.fork(),
            options: ObserverOptions { update: UpdatePolicy::AtEnd, ..self.options.clone() },
            batches: 0,
            elements: 0,
            has_range: self.has_range,
            written: None,
        }
    }

    /// Writes the range of all batches and says what was seen. Observing may go on afterwards.
    ///
    /// # Errors
    /// [`ErrorKind::NoData`] when there was no batch; [`ErrorKind::InvalidRange`] when the quantizer refuses the range.
    pub fn finish(&mut self) -> Result<SlotEstimate, Error> {
        if self.batches == 0 {
            return Err(Error::new(
                ErrorKind::NoData,
                format!("{} saw no data, so it has no range", self.names()),
            ));
        }
        self.write_range()?;
        Ok(self.estimate())
    }

    /// What was seen so far; the range is `None` before the first batch.
    pub fn estimate(&self) -> SlotEstimate {
        SlotEstimate {
            names: self.entry.names.clone(),
            estimator: self.estimator.name().to_owned(),
            batches: self.batches,
            elements: self.elements,
            range: self.range(),
        }
    }

    /// The name of the slot that is shown.
    pub fn name(&self) -> &str {
        self.entry.name()
    }

    /// The slot with all its names.
    pub fn entry(&self) -> &SlotEntry {
        &self.entry
    }

    /// The estimator.
    pub fn estimator(&self) -> &dyn RangeEstimator {
        &*self.estimator
    }

    /// How many batches were seen.
    pub fn batches(&self) -> u64 {
        self.batches
    }

    /// Whether the quantizer has a range: an older one, or one that was written here.
    pub fn has_range(&self) -> bool {
        self.has_range
    }

    /// Every name of the slot, quoted.
    pub(super) fn names(&self) -> String {
        let quoted: Vec<String> = self.entry.names.iter().map(|name| format!("`{name}`")).collect();
        quoted.join(" = ")
    }

    /// Fails if data flows through another quantizer than the one whose range is being set.
    pub(super) fn check_quantizer(&self, found: &dyn Quantizer) -> Result<(), Error> {
        if std::ptr::addr_eq(found, &*self.quantizer) {
            return Ok(());
        }
        Err(Error::new(
            ErrorKind::UnsafeUpdate,
            format!(
                "`{}`: {} was replaced by {found} while its range was being estimated",
                self.name(),
                self.quantizer
            ),
        ))
    }

    /// The range of all batches: the one that was written after the last of them, or found now.
    fn range(&self) -> Option<TileRanges> {
        match &self.written {
            Some((batches, range)) if *batches == self.batches => Some(range.clone()),
            _ if self.batches == 0 => None,
            _ => self.estimator.range(),
        }
    }

    fn write_range(&mut self) -> Result<(), Error> {
        let Some(range) = self.range() else { return Ok(()) };
        settable(&*self.quantizer)
            .and_then(|quantizer| quantizer.set_quantization_range(&range.min, &range.max))
            .map_err(|error| error.at(format_args!("`{}`", self.name())))?;
        self.has_range = true;
        self.written = Some((self.batches, range));
        Ok(())
    }
}

/// The quantizer as one whose range can be set.
pub(super) fn settable(quantizer: &dyn Quantizer) -> Result<&dyn RangeSettable, Error> {
    quantizer.as_range_settable().ok_or_else(|| {
        Error::new(ErrorKind::Unsupported, format!("{quantizer} has no range to set"))
    })
}
