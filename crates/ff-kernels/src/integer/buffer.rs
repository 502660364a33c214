//! Memory that a thread keeps between calls.

use std::cell::RefCell;
use std::ops::{Deref, DerefMut};
use std::thread::LocalKey;

/// A slice of this thread's memory, handed back on drop: fresh pages cost more than the arithmetic.
///
/// Holders may overlap (rayon may start other work while one waits), each has memory of its own.
pub(super) struct Buffer<T: Pooled>(Vec<T>);

/// Element types with a pool.
pub(super) trait Pooled: Copy + Default + 'static {
    fn pool() -> &'static LocalKey<RefCell<Vec<Vec<Self>>>>;
}

/// Buffers that a thread keeps.
const KEPT: usize = 4;

impl<T: Pooled> Buffer<T> {
    /// `len` elements with whatever their last holder left in them.
    pub(super) fn take(len: usize) -> Self {
        let mut memory = T::pool().with_borrow_mut(Vec::pop).unwrap_or_default();
        memory.resize(len, T::default());
        Buffer(memory)
    }

    /// `len` zeros.
    pub(super) fn zeros(len: usize) -> Self {
        let mut buffer = Self::take(len);
        buffer.fill(T::default());
        buffer
    }
}

impl<T: Pooled> Drop for Buffer<T> {
    fn drop(&mut self) {
        let memory = std::mem::take(&mut self.0);
        // A thread that ends has no pool any more; the memory is then freed.
        let _ = T::pool().try_with(|pool| {
            let mut pool = pool.borrow_mut();
            if pool.len() < KEPT {
                pool.push(memory);
            }
        });
    }
}

impl<T: Pooled> Deref for Buffer<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        &self.0
    }
}

impl<T: Pooled> DerefMut for Buffer<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        &mut self.0
    }
}

macro_rules! pooled {
    ($($type:ty),*) => {$(
        impl Pooled for $type {
            fn pool() -> &'static LocalKey<RefCell<Vec<Vec<Self>>>> {
                thread_local! {
                    static POOL: RefCell<Vec<Vec<$type>>> = const { RefCell::new(Vec::new()) };
                }
                &POOL
            }
        }
    )*};
}
pooled!(u8, i8, i32, i64, f32);
