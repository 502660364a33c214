//! Whether strict mode holds at one slot.

use std::fmt;

use super::{NEXT_ID, Ordering, QuantizerSlot, read, write};

impl QuantizerSlot {
    /// Decides strict mode at this slot, whatever holds elsewhere, until the guard is dropped, also by a panic or an early
    /// return. The newest decision wins. It belongs to the slot, so it holds for every thread that uses the model.
    ///
    /// ```
    /// use fastforward_core::quantization::QuantizerSlot;
    /// let slot = QuantizerSlot::output();
    /// let outer = slot.push_strictness(true);
    /// let inner = slot.push_strictness(false);
    /// assert_eq!(slot.strictness(), Some(false));
    /// drop(inner);
    /// assert_eq!(slot.strictness(), Some(true));
    /// drop(outer);
    /// assert_eq!(slot.strictness(), None);
    /// ```
    pub fn push_strictness(&self, strict: bool) -> StrictnessGuard {
        let id = NEXT_ID.fetch_add(1, Ordering::Relaxed);
        write(&self.inner.strictness).push((id, strict));
        StrictnessGuard { slot: self.clone(), id }
    }

    /// What was decided for this slot; `None` leaves it to the thread.
    pub fn strictness(&self) -> Option<bool> {
        read(&self.inner.strictness).last().map(|&(_, strict)| strict)
    }
}

/// Removes a decision about strict mode from its slot when dropped.
#[must_use = "the decision is removed when the guard is dropped"]
pub struct StrictnessGuard {
    slot: QuantizerSlot,
    id: u64,
}

impl Drop for StrictnessGuard {
    fn drop(&mut self) {
        write(&self.slot.inner.strictness).retain(|&(id, _)| id != self.id);
    }
}

impl fmt::Debug for StrictnessGuard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StrictnessGuard").field("slot", &self.slot).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guards_dropped_out_of_order_remove_exactly_theirs() {
        let slot = QuantizerSlot::input();
        let first = slot.push_strictness(true);
        let second = slot.clone().push_strictness(false);
        drop(first);
        assert_eq!(slot.strictness(), Some(false));
        drop(second);
        assert_eq!(slot.strictness(), None);
    }

    #[test]
    fn a_panic_removes_the_decision() {
        let slot = QuantizerSlot::input();
        let copy = slot.clone();
        let result = std::panic::catch_unwind(move || {
            let _guard = copy.push_strictness(false);
            panic!("unwinds through the guard");
        });
        assert!(result.is_err());
        assert_eq!(slot.strictness(), None);
    }
}
