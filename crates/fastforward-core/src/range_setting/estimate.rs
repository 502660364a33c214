//! Estimating the ranges of a whole model.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard};

use mpath::FilterResult;
use serde::Serialize;

use super::config::EstimatorFactory;
use super::estimator::TileRanges;
use super::observer::{InitialRange, ObserverOptions, RangeObserver, UpdatePolicy, settable};
use crate::module::{Module, NodeRef, SlotEntry, named_slots};
use crate::quantization::quant_init::QuantizerCollection;
use crate::quantization::quantizer::{
    Flow, Onlooker, Onward, OverrideGuard, Quantizer, QuantizerOverride, QuantizerSlot,
    RangeOnlooker,
};
use crate::{ArrayView, Error, ErrorKind};

/// Puts an estimator on every quantizer of a model, of several modules, or of a list of slots (spec §6.2).
///
/// While the guard lives, data that flows through a slot is seen by its estimator and then quantized with the range found
/// so far, or goes on unchanged (see [`EstimationOptions::disable_quantization`]). Stubs are left alone. A quantizer that
/// is reached under several names, because slots are shared or several hold it, has one estimator, which sees the data of
/// all its uses.
///
/// Dropping the guard removes the estimators, also when a panic or an early return does it; ranges that were written stay.
/// [`EstimationGuard::finish`] writes the final ranges and reports.
///
/// See the [module's example](super).
///
/// # Errors
/// [`ErrorKind::Unsupported`] naming every quantizer that has no range to set, unless they are to be skipped;
/// [`ErrorKind::InvalidSettings`] when the estimator's settings make no sense. No slot is changed then.
pub fn estimate_ranges<S: SlotSource + ?Sized>(
    source: &S,
    estimator: impl Into<EstimatorFactory>,
    options: EstimationOptions,
) -> Result<EstimationGuard, Error> {
    let factory = estimator.into();
    let slots = source.slot_entries().into_iter().map(|entry| (entry, factory.clone())).collect();
    estimate_ranges_with(slots, options)
}

/// The same with an estimator for each slot, as rules give them.
///
/// # Errors
/// As for [`estimate_ranges`]; and [`ErrorKind::InvalidSettings`] when one quantizer is to have two different estimators.
pub fn estimate_ranges_with(
    slots: Vec<(SlotEntry, EstimatorFactory)>,
    options: EstimationOptions,
) -> Result<EstimationGuard, Error> {
    let mut observers = Vec::new();
    let mut skipped = Vec::new();
    let mut problems: Vec<Error> = Vec::new();
    // A part of a model may be calibrated on its own: a name given from further out says more.
    for (entry, _) in slots.iter().filter(|(entry, _)| entry.slot.label().is_none()) {
        entry.slot.set_label(entry.name());
    }
    for Estimated { quantizer, entry, slots, factory } in distinct(slots)? {
        let name = entry.name().to_owned();
        if let Err(error) = settable(&*quantizer) {
            if options.skip_unsupported {
                skipped.push(SkippedSlot { names: entry.names, reason: error.to_string() });
            } else {
                let message = format!("`{name}`: {error}; `skip_unsupported` leaves it as it is");
                problems.push(Error::new(error.kind(), message));
            }
            continue;
        }
        let observer = factory
            .build(&entry)
            .map_err(|error| error.at(format_args!("`{name}`")))
            .and_then(|estimator| RangeObserver::new(entry, estimator, options.observer()));
        match observer {
            Ok(observer) => observers.push((Arc::new(Mutex::new(observer)), slots)),
            Err(error) => problems.push(error),
        }
    }
    if let Some(first) = problems.first() {
        let kind = first.kind();
        let problems: Vec<String> = problems.iter().map(Error::to_string).collect();
        return Err(Error::of_problems(kind, "quantizers cannot be estimated", &problems));
    }
    let overrides = observers
        .iter()
        .flat_map(|(observer, slots)| slots.iter().map(move |slot| (observer, slot)))
        .map(|(observer, slot)| {
            Ok(slot.push_override(Arc::new(Observing {
                observer: Arc::clone(observer),
                disable_quantization: options.disable_quantization,
                needs_ranges_only: lock(observer)?.needs_ranges_only(),
            })))
        })
        .collect::<Result<_, Error>>()?;
    Ok(EstimationGuard { overrides, observers, skipped, no_data: options.no_data })
}

/// How [`estimate_ranges`] works.
#[derive(Clone, Debug, Default)]
pub struct EstimationOptions {
    /// Whether data flows on as it came, so that every layer calibrates on float activations. Otherwise it goes on to older
    /// overrides and the quantizer, as in the reference, and layers calibrate on quantized activations; as long as a
    /// quantizer has no range its data flows on as it came.
    pub disable_quantization: bool,
    /// Whether quantizers without a range are left alone and reported, instead of being an error.
    pub skip_unsupported: bool,
    /// What it means when a quantizer saw no data.
    pub no_data: NoData,
    /// When ranges are written.
    pub update: UpdatePolicy,
    /// Whether ranges that are there already take part.
    pub initial: InitialRange,
}

impl EstimationOptions {
    fn observer(&self) -> ObserverOptions {
        ObserverOptions { update: self.update.clone(), initial: self.initial }
    }
}

/// What it means when a quantizer saw no data.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum NoData {
    /// [`EstimationGuard::finish`] fails and names them all.
    #[default]
    Error,
    /// They stand in the report without a range, and keep the one they have, if any.
    Report,
}

/// Something with quantizer slots: a module, several, or slots that were found by a query.
pub trait SlotSource {
    /// The slots with their names, in declaration order. One slot may come several times.
    fn slot_entries(&self) -> Vec<SlotEntry>;
}

impl<M: Module> SlotSource for M {
    fn slot_entries(&self) -> Vec<SlotEntry> {
        named_slots(self)
    }
}

impl SlotSource for dyn Module {
    fn slot_entries(&self) -> Vec<SlotEntry> {
        named_slots(self)
    }
}

/// The slots of each module; names start with the name given here.
impl SlotSource for [(&str, &dyn Module)] {
    fn slot_entries(&self) -> Vec<SlotEntry> {
        let mut entries = Vec::new();
        for &(prefix, module) in self {
            for mut entry in named_slots(module) {
                for name in &mut entry.names {
                    *name = format!("{prefix}.{name}");
                }
                entries.push(entry);
            }
        }
        entries
    }
}

/// What a query found, in the order of the collection.
impl SlotSource for QuantizerCollection<'_> {
    fn slot_entries(&self) -> Vec<SlotEntry> {
        let entry = |(result, slot): (&FilterResult<NodeRef<'_>>, &QuantizerSlot)| SlotEntry {
            names: result.full_names().map(str::to_owned).collect(),
            slot: slot.clone(),
        };
        self.results().iter().zip(self.slots()).map(entry).collect()
    }
}

impl SlotSource for [SlotEntry] {
    fn slot_entries(&self) -> Vec<SlotEntry> {
        self.to_vec()
    }
}

impl SlotSource for Vec<SlotEntry> {
    fn slot_entries(&self) -> Vec<SlotEntry> {
        self.clone()
    }
}

/// Keeps estimators on slots; made by [`estimate_ranges`].
#[must_use = "estimation ends when the guard is dropped"]
pub struct EstimationGuard {
    overrides: Vec<OverrideGuard>,
    /// Each with the slots that hold its quantizer.
    observers: Vec<(Arc<Mutex<RangeObserver>>, Vec<QuantizerSlot>)>,
    skipped: Vec<SkippedSlot>,
    no_data: NoData,
}

impl EstimationGuard {
    /// The quantizers that were skipped because they have no range to set.
    pub fn skipped(&self) -> &[SkippedSlot] {
        &self.skipped
    }

    /// Writes the final ranges, removes the estimators and says what each one saw.
    ///
    /// # Errors
    /// [`ErrorKind::NoData`] naming every quantizer that saw no data, unless they are to be reported only; before that,
    /// any error of a quantizer that refuses its range or no longer stands in its slot, or of an estimator that panicked.
    /// All ranges that can be written are, also then.
    pub fn finish(mut self) -> Result<EstimationReport, Error> {
        self.overrides.clear();
        let mut slots = Vec::with_capacity(self.observers.len());
        let mut problems: Vec<Error> = Vec::new();
        let mut unseen = Vec::new();
        for (observer, held_by) in &self.observers {
            let mut observer = match lock(observer) {
                Ok(observer) => observer,
                Err(error) => {
                    problems.push(error);
                    continue;
                }
            };
            let mut standing = held_by.iter().map(QuantizerSlot::quantizer);
            if let Err(error) = standing.try_for_each(|found| observer.check_quantizer(&*found)) {
                problems.push(error);
                continue;
            }
            if observer.batches() == 0 {
                unseen.push(format!(
                    "{} saw no data, so calibration found no range for it",
                    observer.names()
                ));
                slots.push(observer.estimate());
                continue;
            }
            match observer.finish() {
                Ok(estimate) => slots.push(estimate),
                Err(error) => problems.push(error),
            }
        }
        if let Some(first) = problems.first() {
            let kind = first.kind();
            let mut problems: Vec<String> = problems.iter().map(Error::to_string).collect();
            if self.no_data == NoData::Error {
                problems.append(&mut unseen);
            }
            return Err(Error::of_problems(kind, "ranges cannot be set", &problems));
        }
        if !unseen.is_empty() && self.no_data == NoData::Error {
            return Err(Error::of_problems(
                ErrorKind::NoData,
                "quantizers were left without data",
                &unseen,
            ));
        }
        Ok(EstimationReport { slots, skipped: self.skipped })
    }
}

impl fmt::Debug for EstimationGuard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EstimationGuard")
            .field("observers", &self.observers.len())
            .field("skipped", &self.skipped)
            .finish_non_exhaustive()
    }
}

/// What a calibration found.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct EstimationReport {
    /// One entry per quantizer, in declaration order.
    pub slots: Vec<SlotEstimate>,
    /// The quantizers that have no range to set.
    pub skipped: Vec<SkippedSlot>,
}

/// What an estimator found for one quantizer.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SlotEstimate {
    /// Every name of the slot.
    pub names: Vec<String>,
    /// The name of the estimator.
    pub estimator: String,
    /// How many batches it saw.
    pub batches: u64,
    /// How many values these had.
    pub elements: u64,
    /// The range it gave the quantizer, `None` if it saw no data.
    pub range: Option<TileRanges>,
}

/// A quantizer that was left as it is.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SkippedSlot {
    /// Every name of the slot.
    pub names: Vec<String>,
    /// Why.
    pub reason: String,
}

/// A quantizer to be estimated, with every slot that holds it.
struct Estimated {
    quantizer: Arc<dyn Quantizer>,
    /// The first of the slots, with the names of all.
    entry: SlotEntry,
    slots: Vec<QuantizerSlot>,
    factory: EstimatorFactory,
}

/// Each quantizer once, stubs left out. Two estimators of one quantizer would overwrite each other's ranges.
fn distinct(slots: Vec<(SlotEntry, EstimatorFactory)>) -> Result<Vec<Estimated>, Error> {
    let mut index: HashMap<*const (), usize> = HashMap::new();
    let mut slots_seen: HashSet<usize> = HashSet::new();
    let mut names_seen: HashSet<(usize, String)> = HashSet::new();
    let mut found: Vec<Estimated> = Vec::with_capacity(slots.len());
    let mut conflicts = Vec::new();
    for (entry, factory) in slots {
        let quantizer = entry.slot.quantizer();
        if quantizer.is_stub() {
            continue;
        }
        let at = *index.entry(Arc::as_ptr(&quantizer).cast()).or_insert(found.len());
        let is_new_slot = slots_seen.insert(entry.slot.id());
        let mut is_new_name = |name: &String| names_seen.insert((at, name.clone()));
        let Some(known) = found.get_mut(at) else {
            entry.names.iter().for_each(|name| {
                is_new_name(name);
            });
            let slots = vec![entry.slot.clone()];
            found.push(Estimated { quantizer, entry, slots, factory });
            continue;
        };
        if !known.factory.is_same(&factory) {
            conflicts.push(format!(
                "`{}` and `{}` are one quantizer and cannot have two estimators",
                known.entry.name(),
                entry.name()
            ));
        }
        if is_new_slot {
            known.slots.push(entry.slot.clone());
        }
        known.entry.names.extend(entry.names.into_iter().filter(is_new_name));
    }
    if conflicts.is_empty() {
        Ok(found)
    } else {
        let summary = "quantizers have two estimators";
        Err(Error::of_problems(ErrorKind::InvalidSettings, summary, &conflicts))
    }
}

/// Shows the data of a slot to its observer.
struct Observing {
    observer: Arc<Mutex<RangeObserver>>,
    disable_quantization: bool,
    /// What the observer says of itself.
    needs_ranges_only: bool,
}

impl QuantizerOverride for Observing {
    fn call(
        &self,
        quantizer: &dyn Quantizer,
        next: &dyn Fn(ArrayView<'_>) -> Result<Flow, Error>,
        x: ArrayView<'_>,
    ) -> Result<Flow, Error> {
        match self.look(quantizer, x)? {
            Onward::Next => next(x),
            Onward::Out => Ok(Flow::Unchanged),
        }
    }

    fn as_onlooker(&self) -> Option<&dyn Onlooker> {
        Some(self)
    }
}

impl Observing {
    /// Adds what was seen to the statistics.
    fn observe(
        &self,
        quantizer: &dyn Quantizer,
        add: impl FnOnce(&mut RangeObserver) -> Result<(), Error>,
    ) -> Result<Onward, Error> {
        // Not held while the data flows on: a slot may be reached again from there.
        let mut observer = lock(&self.observer)?;
        observer.check_quantizer(quantizer)?;
        add(&mut observer)?;
        let goes_on = !self.disable_quantization && observer.has_range();
        Ok(if goes_on { Onward::Next } else { Onward::Out })
    }
}

impl Onlooker for Observing {
    fn look(&self, quantizer: &dyn Quantizer, x: ArrayView<'_>) -> Result<Onward, Error> {
        self.observe(quantizer, |observer| observer.observe(x))
    }

    fn as_range_onlooker(&self) -> Option<&dyn RangeOnlooker> {
        self.needs_ranges_only.then_some(self)
    }
}

impl RangeOnlooker for Observing {
    fn look_at_ranges(
        &self,
        quantizer: &dyn Quantizer,
        (min, max): (&[f32], &[f32]),
        n_elements: usize,
    ) -> Result<Onward, Error> {
        let ranges = TileRanges { min: min.to_vec(), max: max.to_vec() };
        self.observe(quantizer, |observer| observer.observe_ranges(ranges, n_elements))
    }
}

fn lock(observer: &Mutex<RangeObserver>) -> Result<MutexGuard<'_, RangeObserver>, Error> {
    observer.lock().map_err(|poisoned| {
        Error::new(
            ErrorKind::Estimator,
            format!("{}: the estimator panicked on an earlier batch", poisoned.get_ref().names()),
        )
    })
}

#[cfg(test)]
mod tests;
