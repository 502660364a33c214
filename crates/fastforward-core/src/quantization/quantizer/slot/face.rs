//! What a walk of a model asks of every slot, side by side in memory.
//!
//! Slots lie scattered, each a few hundred bytes from the next, so looking into a hundred thousand of them is mostly
//! waiting for memory. Their faces are eight bytes each and stand in rows.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use mpath::{AtomicKind, Kind};

use super::Content;

/// The class of the quantizer and the tags of a slot as a number, and whether the quantizer is a stub, to be read without
/// the lock of the slot's content.
pub(super) struct Face {
    kind: AtomicKind,
    is_stub: AtomicBool,
}

/// Faces of slots that are gone, for new slots. There are never more faces than there once were slots.
static FREE: Mutex<Vec<&'static Face>> = Mutex::new(Vec::new());

/// How many faces stand in a row: a page of memory.
const ROW: usize = 512;

impl Face {
    /// A face that no other slot has, showing this.
    pub(super) fn new(content: &Content) -> &'static Self {
        let kind = content.kind();
        // A panic while the lock is held cannot leave the list inconsistent: faces are only put into it and taken out.
        let mut free = FREE.lock().unwrap_or_else(PoisonError::into_inner);
        let face = free.pop().unwrap_or_else(|| {
            let blank = || Face { kind: AtomicKind::new(kind), is_stub: AtomicBool::new(true) };
            let row: &'static [Face] = Vec::leak(std::iter::repeat_with(blank).take(ROW).collect());
            // So that they are taken in order.
            free.extend(row[1..].iter().rev());
            &row[0]
        });
        drop(free);
        face.show(content);
        face
    }

    /// Makes a change of the content, whose lock is held, known to those that do not lock it.
    pub(super) fn show(&self, content: &Content) {
        self.kind.set(content.kind());
        self.is_stub.store(content.quantizer.is_stub(), Ordering::Release);
    }

    /// Gives the face to another slot. Nothing asks it any more about this one.
    pub(super) fn retire(&'static self) {
        FREE.lock().unwrap_or_else(PoisonError::into_inner).push(self);
    }

    #[inline]
    pub(super) fn kind(&self) -> Kind {
        self.kind.get()
    }

    #[inline]
    pub(super) fn is_stub(&self) -> bool {
        self.is_stub.load(Ordering::Acquire)
    }
}
