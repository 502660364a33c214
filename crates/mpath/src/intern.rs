//! A table of values that live as long as the process, so that equal values share one address.

use std::collections::HashSet;
use std::hash::Hash;
use std::sync::{Mutex, PoisonError};

/// Values interned so far. Equal values get the same reference.
///
/// Interned values are never freed: the table is for the few names a program works with (classes, tags), not for data.
pub(crate) struct Interner<T: ?Sized + 'static> {
    table: Mutex<Option<HashSet<&'static T>>>,
}

impl<T: ?Sized + Hash + Eq + 'static> Interner<T> {
    pub(crate) const fn new() -> Self {
        Self { table: Mutex::new(None) }
    }

    /// The one reference for `value`; `leak` makes it when the value is new.
    pub(crate) fn intern(&self, value: &T, leak: impl FnOnce() -> &'static T) -> &'static T {
        // A panic while the lock is held cannot leave the set inconsistent: insertion is the last step.
        let mut guard = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        let table = guard.get_or_insert_default();
        if let Some(found) = table.get(value) {
            return found;
        }
        let leaked = leak();
        table.insert(leaked);
        leaked
    }
}
