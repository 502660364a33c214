//! Where a quantizer stands, and how it is replaced, observed and switched off.

mod face;
mod strictness;

use std::any::Any;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use mpath::{Class, Kind, Tag, TagSet};

use face::Face;
pub use strictness::StrictnessGuard;

use super::{Flow, Quantizer, QuantizerMetadata, stub};
use crate::{ArrayView, Error, ErrorKind};

/// A place for a quantizer in a model.
///
/// The slot owns the tags, so they survive the replacement of the quantizer. A clone is the *same* slot: that is how two
/// modules share a quantizer.
///
/// ```
/// use std::sync::Arc;
/// use fastforward_core::quantization::{LinearQuantizer, LinearQuantizerConfig, QuantizerSlot};
/// let slot = QuantizerSlot::weight(&[8, 4]);
/// assert!(slot.is_stub());
/// slot.replace(Arc::new(LinearQuantizer::new(LinearQuantizerConfig::new(4))?));
/// assert_eq!(slot.class().name(), "LinearQuantizer");
/// assert!(slot.metadata().is_weight_quantizer());
/// # Ok::<(), fastforward_core::Error>(())
/// ```
#[derive(Clone)]
pub struct QuantizerSlot {
    inner: Arc<SlotInner>,
    /// That of `inner`, here so that it can be seen without a look there.
    face: &'static Face,
}

struct SlotInner {
    content: RwLock<Content>,
    /// Oldest first; the newest runs first.
    overrides: RwLock<Vec<(u64, Arc<dyn QuantizerOverride>)>>,
    label: RwLock<Option<Arc<str>>>,
    /// Oldest first; the newest wins.
    strictness: RwLock<Vec<(u64, bool)>>,
    /// What `content` shows of itself.
    face: &'static Face,
}

impl Drop for SlotInner {
    fn drop(&mut self) {
        self.face.retire();
    }
}

struct Content {
    quantizer: Arc<dyn Quantizer>,
    metadata: QuantizerMetadata,
}

impl Content {
    fn kind(&self) -> Kind {
        Kind::new(self.quantizer.class(), Some(self.metadata.tags()))
    }
}

/// Tells what guards have put on slots apart.
static NEXT_ID: AtomicU64 = AtomicU64::new(0);

/// Something that runs in place of a slot's quantizer and decides whether to call it: an estimator that looks at the
/// data, a switch that turns quantization off (spec §3.4).
pub trait QuantizerOverride: Any + Send + Sync {
    /// Handles `x`. Calling `next` runs the next older override, and finally the quantizer; it may be called any number
    /// of times, or never.
    ///
    /// # Errors
    /// Whatever the override or the quantizer finds wrong.
    fn call(
        &self,
        quantizer: &dyn Quantizer,
        next: &dyn Fn(ArrayView<'_>) -> Result<Flow, Error>,
        x: ArrayView<'_>,
    ) -> Result<Flow, Error>;

    /// This override as one that only looks, if it is one. [`call`](Self::call) must then do what [`Onlooker::look`] says.
    fn as_onlooker(&self) -> Option<&dyn Onlooker> {
        None
    }
}

/// An override that looks at data and leaves it as it is: a statistic, a switch. An engine that quantizes by itself shows it
/// the data where they lie, and needs no copy.
pub trait Onlooker {
    /// Looks at `x`, and says where it goes. The memory of `x` may be locked for reading: a tensor must not be changed from here.
    ///
    /// # Errors
    /// Whatever is wrong with the data.
    fn look(&self, quantizer: &dyn Quantizer, x: ArrayView<'_>) -> Result<Onward, Error>;

    /// This one as an onlooker that asks no more of data than the range of each tile, if it is one: what makes the data then
    /// finds the ranges while they are in the cache, and those of a weight need to be found once.
    fn as_range_onlooker(&self) -> Option<&dyn RangeOnlooker> {
        None
    }
}

/// An [`Onlooker`] for which the smallest and largest value of each tile say all there is to know.
pub trait RangeOnlooker {
    /// What [`Onlooker::look`] does with `n_elements` finite values, of which those in tile `i` (tiles being as the quantizer's
    /// granularity says) lie between `min[i]` and `max[i]` and reach both. `bounds` are these two.
    ///
    /// # Errors
    /// Those of [`Onlooker::look`].
    fn look_at_ranges(
        &self,
        quantizer: &dyn Quantizer,
        bounds: (&[f32], &[f32]),
        n_elements: usize,
    ) -> Result<Onward, Error>;
}

/// Where data goes that an [`Onlooker`] saw.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Onward {
    /// To the next older override, and finally to the quantizer.
    Next,
    /// Out of the slot as it came.
    Out,
}

impl QuantizerSlot {
    /// An empty slot: a stub with this metadata.
    pub fn new(metadata: QuantizerMetadata) -> Self {
        let content = Content { quantizer: Arc::clone(stub()), metadata };
        let face = Face::new(&content);
        let inner = SlotInner {
            content: RwLock::new(content),
            overrides: RwLock::new(Vec::new()),
            label: RwLock::new(None),
            strictness: RwLock::new(Vec::new()),
            face,
        };
        Self { inner: Arc::new(inner), face }
    }

    /// An empty slot for a weight of this shape whose first axis counts output channels.
    pub fn weight(shape: &[usize]) -> Self {
        Self::weight_along(shape, 0)
    }

    /// An empty slot for a weight of this shape whose output channels lie along `channel_axis`: what a rule means by
    /// `per_output_channel`.
    pub fn weight_along(shape: &[usize], channel_axis: usize) -> Self {
        let axis = channel_axis.to_string();
        let metadata = QuantizerMetadata::weight().with_shape(shape);
        Self::new(metadata.with_attribute(crate::quantization::quant_init::CHANNEL_AXIS, axis))
    }

    /// An empty slot for a bias of this shape.
    pub fn bias(shape: &[usize]) -> Self {
        Self::new(QuantizerMetadata::bias().with_shape(shape))
    }

    /// An empty slot for an input.
    pub fn input() -> Self {
        Self::new(QuantizerMetadata::input())
    }

    /// An empty slot for an output.
    pub fn output() -> Self {
        Self::new(QuantizerMetadata::output())
    }

    /// The quantizer that stands in the slot now.
    pub fn quantizer(&self) -> Arc<dyn Quantizer> {
        Arc::clone(&read(&self.inner.content).quantizer)
    }

    /// Puts another quantizer into the slot and returns the one that stood there. The tags stay.
    pub fn replace(&self, quantizer: Arc<dyn Quantizer>) -> Arc<dyn Quantizer> {
        let mut content = write(&self.inner.content);
        let previous = std::mem::replace(&mut content.quantizer, quantizer);
        self.face.show(&content);
        previous
    }

    /// Whether a stub stands in the slot.
    pub fn is_stub(&self) -> bool {
        self.face.is_stub()
    }

    /// The class of the quantizer that stands in the slot.
    pub fn class(&self) -> Class {
        read(&self.inner.content).quantizer.class()
    }

    /// What the slot is for.
    pub fn metadata(&self) -> QuantizerMetadata {
        read(&self.inner.content).metadata.clone()
    }

    /// The tags of the slot, prefixes included.
    pub fn tags(&self) -> TagSet {
        read(&self.inner.content).metadata.tags()
    }

    /// The class of the quantizer and the tags of the slot, as one number.
    #[inline]
    pub(crate) fn kind(&self) -> Kind {
        self.face.kind()
    }

    /// Adds a tag to the slot.
    pub fn add_tag(&self, tag: impl Into<Tag>) {
        let mut content = write(&self.inner.content);
        content.metadata.add_tag(tag);
        self.face.show(&content);
    }

    /// A number that two slots share exactly when they are the same slot.
    pub fn id(&self) -> usize {
        Arc::as_ptr(&self.inner) as usize
    }

    /// The full name under which a model that holds the slot was last named, `encoder.0.fc1.weight_quantizer`, so that
    /// an error in the middle of a model can say where it happened. `None` until
    /// [`name_slots`](crate::module::name_slots), or what calls it, has seen the model.
    pub fn label(&self) -> Option<Arc<str>> {
        read(&self.inner.label).clone()
    }

    /// Gives the slot this label. Allocates only if it has another.
    pub(crate) fn set_label(&self, full_name: &str) {
        if read(&self.inner.label).as_deref() != Some(full_name) {
            *write(&self.inner.label) = Some(full_name.into());
        }
    }

    /// Whether `quantizer` is the very one that stands in the slot.
    pub fn holds(&self, quantizer: &Arc<dyn Quantizer>) -> bool {
        same(&read(&self.inner.content).quantizer, quantizer)
    }

    /// Sends data through the overrides, newest first, and the quantizer.
    ///
    /// # Errors
    /// What the quantizer or an override reports.
    pub fn forward(&self, x: ArrayView<'_>) -> Result<Flow, Error> {
        let quantizer = self.quantizer();
        self.forward_with(&*quantizer, &|x| quantizer.forward(x), x)
    }

    /// The same with `innermost` in the place of the quantizer's own [`forward`](Quantizer::forward): how an engine that
    /// quantizes by itself runs the overrides. They are shown `quantizer`.
    ///
    /// # Errors
    /// What `innermost` or an override reports.
    pub fn forward_with(
        &self,
        quantizer: &dyn Quantizer,
        innermost: &dyn Fn(ArrayView<'_>) -> Result<Flow, Error>,
        x: ArrayView<'_>,
    ) -> Result<Flow, Error> {
        run(&self.overrides(), quantizer, innermost, x)
    }

    /// Puts an override on the slot until the guard is dropped, also by a panic or an early return.
    pub fn push_override(&self, one: Arc<dyn QuantizerOverride>) -> OverrideGuard {
        let id = NEXT_ID.fetch_add(1, Ordering::Relaxed);
        write(&self.inner.overrides).push((id, one));
        OverrideGuard { slot: self.clone(), id }
    }

    /// The overrides on the slot, oldest first.
    pub fn overrides(&self) -> Vec<Arc<dyn QuantizerOverride>> {
        read(&self.inner.overrides).iter().map(|(_, one)| Arc::clone(one)).collect()
    }

    /// How many overrides are on the slot.
    pub fn override_count(&self) -> usize {
        read(&self.inner.overrides).len()
    }
}

fn run(
    overrides: &[Arc<dyn QuantizerOverride>],
    quantizer: &dyn Quantizer,
    innermost: &dyn Fn(ArrayView<'_>) -> Result<Flow, Error>,
    x: ArrayView<'_>,
) -> Result<Flow, Error> {
    match overrides.split_last() {
        None => innermost(x),
        Some((newest, older)) => {
            newest.call(quantizer, &|x| run(older, quantizer, innermost, x), x)
        }
    }
}

// Under the locks, values are only copied, swapped and asked for their class: a panic there leaves sound data.
fn read<T>(lock: &RwLock<T>) -> RwLockReadGuard<'_, T> {
    lock.read().unwrap_or_else(PoisonError::into_inner)
}

fn write<T>(lock: &RwLock<T>) -> RwLockWriteGuard<'_, T> {
    lock.write().unwrap_or_else(PoisonError::into_inner)
}

/// Whether two handles are the very same quantizer. Stubs carry nothing, so one stub is as good as another.
fn same(a: &Arc<dyn Quantizer>, b: &Arc<dyn Quantizer>) -> bool {
    Arc::ptr_eq(a, b) || (a.is_stub() && b.is_stub())
}

impl fmt::Debug for QuantizerSlot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("QuantizerSlot")
            .field("label", &self.label())
            .field("quantizer", &self.quantizer())
            .field("tags", &self.tags())
            .finish()
    }
}

/// Removes an override from its slot when dropped.
#[must_use = "the override is removed when the guard is dropped"]
#[derive(Debug)]
pub struct OverrideGuard {
    slot: QuantizerSlot,
    id: u64,
}

impl Drop for OverrideGuard {
    fn drop(&mut self) {
        let mut overrides = write(&self.slot.inner.overrides);
        let removed = overrides
            .iter()
            .position(|(id, _)| *id == self.id)
            .map(|position| overrides.remove(position));
        // The override may hold anything, also what comes back to this slot when it is dropped: unlock first.
        drop(overrides);
        drop(removed);
    }
}

/// The replacement of one slot's quantizer.
pub struct SlotUpdate {
    /// The name to show when something is wrong.
    pub name: String,
    /// The slot.
    pub slot: QuantizerSlot,
    /// The quantizer that the slot must still hold; `None` replaces whatever is there.
    pub expected: Option<Arc<dyn Quantizer>>,
    /// The quantizer to put there.
    pub new: Arc<dyn Quantizer>,
}

/// Makes every update, or none.
///
/// # Errors
/// [`ErrorKind::UnsafeUpdate`] naming each slot that does not hold the expected quantizer. All slots are then as before.
pub fn apply_updates(updates: Vec<SlotUpdate>) -> Result<(), Error> {
    let problems: Vec<String> = updates.iter().filter_map(SlotUpdate::problem).collect();
    if !problems.is_empty() {
        return Err(Error::of_problems(
            ErrorKind::UnsafeUpdate,
            "slots were changed in the meantime",
            &problems,
        ));
    }
    let mut done: Vec<(QuantizerSlot, Arc<dyn Quantizer>)> = Vec::with_capacity(updates.len());
    for update in updates {
        let mut place = write(&update.slot.inner.content);
        if update.expected.as_ref().is_some_and(|expected| !same(expected, &place.quantizer)) {
            // Another thread was faster than the check above: put everything back.
            drop(place);
            let problem = update.problem().unwrap_or_else(|| format!("`{}` changed", update.name));
            for (slot, previous) in done.into_iter().rev() {
                slot.replace(previous);
            }
            return Err(Error::new(ErrorKind::UnsafeUpdate, problem));
        }
        let previous = std::mem::replace(&mut place.quantizer, update.new);
        update.slot.face.show(&place);
        drop(place);
        done.push((update.slot, previous));
    }
    Ok(())
}

impl SlotUpdate {
    fn problem(&self) -> Option<String> {
        let expected = self.expected.as_ref()?;
        let current = self.slot.quantizer();
        (!same(expected, &current)).then(|| {
            format!(
                "`{}` held {expected} when it was looked up and holds {current} now; look it up again, or pass \
                 `safe = false` to replace what is there",
                self.name
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Array;
    use crate::quantization::quantizer::QuantizerStub;

    struct Add(f32);
    impl QuantizerOverride for Add {
        fn call(
            &self,
            _quantizer: &dyn Quantizer,
            next: &dyn Fn(ArrayView<'_>) -> Result<Flow, Error>,
            x: ArrayView<'_>,
        ) -> Result<Flow, Error> {
            let mut array = next(x)?.into_array(x);
            array.data.iter_mut().for_each(|value| *value = *value * 10.0 + self.0);
            Ok(Flow::Changed(array))
        }
    }

    /// Calls `next` twice and adds what both gave.
    struct Twice;
    impl QuantizerOverride for Twice {
        fn call(
            &self,
            _quantizer: &dyn Quantizer,
            next: &dyn Fn(ArrayView<'_>) -> Result<Flow, Error>,
            x: ArrayView<'_>,
        ) -> Result<Flow, Error> {
            let mut first = next(x)?.into_array(x);
            let second = next(x)?.into_array(x);
            first.data.iter_mut().zip(second.data).for_each(|(a, b)| *a += b);
            Ok(Flow::Changed(first))
        }
    }

    fn through(slot: &QuantizerSlot, value: f32) -> f32 {
        let x = Array { data: vec![value], shape: vec![1] };
        slot.forward(x.view()).unwrap().into_array(x.view()).data[0]
    }

    #[test]
    fn the_newest_override_runs_first_and_guards_remove_exactly_theirs() {
        let slot = QuantizerSlot::input();
        let oldest = slot.push_override(Arc::new(Add(1.0)));
        let newest = slot.push_override(Arc::new(Add(2.0)));
        assert_eq!(through(&slot, 0.0), 12.0);
        drop(oldest);
        assert_eq!(through(&slot, 0.0), 2.0);
        drop(newest);
        assert_eq!((through(&slot, 7.0), slot.override_count()), (7.0, 0));
    }

    #[test]
    fn next_may_be_called_twice() {
        let slot = QuantizerSlot::input();
        let _add = slot.push_override(Arc::new(Add(1.0)));
        let _twice = slot.push_override(Arc::new(Twice));
        assert_eq!(through(&slot, 0.0), 2.0);
    }

    #[test]
    fn an_override_may_come_back_to_its_slot_when_it_is_dropped() {
        struct Returns(QuantizerSlot);
        impl QuantizerOverride for Returns {
            fn call(
                &self,
                _: &dyn Quantizer,
                next: &dyn Fn(ArrayView<'_>) -> Result<Flow, Error>,
                x: ArrayView<'_>,
            ) -> Result<Flow, Error> {
                next(x)
            }
        }
        impl Drop for Returns {
            fn drop(&mut self) {
                assert_eq!(self.0.override_count(), 0);
            }
        }
        let slot = QuantizerSlot::input();
        drop(slot.push_override(Arc::new(Returns(slot.clone()))));
    }

    #[test]
    fn a_panic_removes_the_override() {
        let slot = QuantizerSlot::input();
        let copy = slot.clone();
        let result = std::panic::catch_unwind(move || {
            let _guard = copy.push_override(Arc::new(Twice));
            panic!("unwinds through the guard");
        });
        assert!(result.is_err());
        assert_eq!(slot.override_count(), 0);
    }

    #[test]
    fn updates_are_all_or_none() {
        let (a, b) = (QuantizerSlot::input(), QuantizerSlot::output());
        let update = |name: &str, slot: &QuantizerSlot, expected| SlotUpdate {
            name: name.into(),
            slot: slot.clone(),
            expected,
            new: quantizer(4),
        };
        b.replace(quantizer(8));
        let stub: Arc<dyn Quantizer> = Arc::new(QuantizerStub);
        let error = apply_updates(vec![
            update("a", &a, Some(stub.clone())),
            update("b", &b, Some(stub.clone())),
        ])
        .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::UnsafeUpdate);
        assert!(error.to_string().starts_with("`b` held QuantizerStub() when"), "{error}");
        assert!(a.is_stub());
        apply_updates(vec![update("a", &a, Some(stub)), update("b", &b, None)]).unwrap();
        assert_eq!((a.quantizer().num_bits(), b.quantizer().num_bits()), (Some(4), Some(4)));
    }

    fn quantizer(num_bits: u32) -> Arc<dyn Quantizer> {
        use crate::quantization::{LinearQuantizer, LinearQuantizerConfig};
        Arc::new(LinearQuantizer::new(LinearQuantizerConfig::new(num_bits)).unwrap())
    }
}
