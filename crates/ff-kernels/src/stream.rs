//! Output that goes past the caches.
//!
//! A store into memory that is not in cache first reads the line it belongs to. For output much larger than the caches
//! that is a third of all traffic, and it drives out what is worth keeping. [`Sink`] collects output in a small buffer
//! and writes whole lines without reading them, as a large `memcpy` does; small output is written in place.

use crate::simd::{Level, level};

/// Output of at least this many bytes is written past the caches: several times what a core has for itself. Tests, which
/// compare what instruction sets give, stream most of what they write.
const STREAM_FROM: usize = if cfg!(test) { 1 << 9 } else { 8 << 20 };
/// Bytes collected at once. Longer runs of stores without loads between them leave the memory half idle.
const STAGE_BYTES: usize = 2048;
/// Bytes of a cache line.
const LINE: usize = 64;
/// Numbers in the buffer of [`Stage`], all of which are used where they take one byte, and the first of which elsewhere.
const STAGE: usize = STAGE_BYTES;

/// Whether output of that many elements is to be written past the caches.
pub(crate) fn worthwhile<T>(len: usize) -> bool {
    cfg!(target_arch = "x86_64") && len.saturating_mul(size_of::<T>()) >= STREAM_FROM
}

/// A place for output, filled from the front.
pub(crate) struct Sink<'a, T> {
    /// Where output goes that was not written yet.
    rest: &'a mut [T],
    /// Output on its way, if it goes past the caches.
    stage: Option<Stage<T>>,
}

#[repr(align(64))]
struct Aligned<T>([T; STAGE]);

struct Stage<T> {
    buffer: Aligned<T>,
    /// Elements waiting.
    filled: usize,
    /// Elements to wait for.
    capacity: usize,
    level: Level,
}

impl<'a, T: Copy + Default> Sink<'a, T> {
    /// Output into `out`, past the caches if `streaming`.
    #[inline(always)]
    pub(crate) fn new(out: &'a mut [T], streaming: bool) -> Self {
        let stage = streaming.then(|| Stage {
            buffer: Aligned([T::default(); STAGE]),
            filled: 0,
            // The first batch is shorter, so that all others begin with a line.
            capacity: (STAGE_BYTES - out.as_ptr().addr() % LINE) / size_of::<T>(),
            level: level(),
        });
        Sink { rest: out, stage }
    }

    /// Where the next elements are to be written: at least one, unless all were.
    #[inline(always)]
    pub(crate) fn room(&mut self) -> &mut [T] {
        match &mut self.stage {
            Some(stage) => {
                let room = stage.capacity.min(self.rest.len());
                &mut stage.buffer.0[stage.filled..room]
            }
            None => self.rest,
        }
    }

    /// Says that the first `len` elements of [`Self::room`] have been written.
    #[inline(always)]
    pub(crate) fn advance(&mut self, len: usize) {
        match &mut self.stage {
            Some(stage) => {
                stage.filled += len;
                if stage.filled == stage.capacity {
                    self.flush();
                }
            }
            None => self.rest = &mut std::mem::take(&mut self.rest)[len..],
        }
    }

    /// Writes what is waiting. Must be called at the end, or output is lost.
    #[inline(always)]
    pub(crate) fn finish(mut self) {
        if self.stage.is_some() {
            self.flush();
            fence();
        }
        debug_assert!(self.rest.is_empty(), "output was forgotten");
    }

    #[inline(always)]
    fn flush(&mut self) {
        if let Some(stage) = &mut self.stage {
            let (to, rest) = std::mem::take(&mut self.rest).split_at_mut(stage.filled);
            copy(stage.level, &stage.buffer.0[..stage.filled], to);
            self.rest = rest;
            stage.filled = 0;
            stage.capacity = STAGE_BYTES / size_of::<T>();
        }
    }
}

/// Copies numbers past the caches where whole lines are written; [`fence`] must follow before another thread reads them.
#[inline(always)]
pub(crate) fn copy<T: Copy>(level: Level, from: &[T], to: &mut [T]) {
    #[cfg(target_arch = "x86_64")]
    {
        let head = (to.as_ptr().addr().wrapping_neg() % LINE / size_of::<T>()).min(to.len());
        let lines = (to.len() - head) * size_of::<T>() / LINE;
        let body = lines * (LINE / size_of::<T>());
        if lines > 0 && LINE.is_multiple_of(size_of::<T>()) {
            let (from_body, to_body) = (&from[head..][..body], &mut to[head..][..body]);
            // SAFETY: both hold `lines` lines of plain numbers, and the second begins at a multiple of a line: elements are
            // aligned to their size, which divides a line, so `head` elements reach one exactly.
            unsafe {
                x86::lines(level, from_body.as_ptr().cast(), to_body.as_mut_ptr().cast(), lines)
            };
            to[..head].copy_from_slice(&from[..head]);
            to[head + body..].copy_from_slice(&from[head + body..]);
            return;
        }
    }
    let _ = level;
    to.copy_from_slice(from);
}

/// Makes what was written past the caches visible before anything written later.
#[inline(always)]
pub(crate) fn fence() {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: every x86-64 machine has the instruction; it touches no memory of ours.
    unsafe {
        std::arch::x86_64::_mm_sfence()
    };
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::LINE;
    use crate::simd::Level;

    /// Copies whole lines.
    ///
    /// # Safety
    /// `from` and `to` hold that many lines and do not overlap, `to` is aligned to a line, and the machine has the
    /// instructions of `level`.
    #[inline(always)]
    pub(super) unsafe fn lines(level: Level, from: *const u8, to: *mut u8, lines: usize) {
        for at in (0..lines).map(|line| line * LINE) {
            // SAFETY: within both, by the caller's promise; loads may be unaligned.
            unsafe {
                let (from, to) = (from.add(at), to.add(at));
                match level {
                    Level::Plain => plain(from, to),
                    Level::Avx2 => avx2(from, to),
                    Level::Avx512 => avx512(from, to),
                }
            }
        }
    }

    /// # Safety
    /// As [`lines`], for one.
    #[inline(always)]
    unsafe fn plain(from: *const u8, to: *mut u8) {
        for at in (0..LINE).step_by(16) {
            // SAFETY: the caller's promise; SSE2 is part of x86-64.
            unsafe { _mm_stream_si128(to.add(at).cast(), _mm_loadu_si128(from.add(at).cast())) };
        }
    }

    /// # Safety
    /// As [`lines`], for one.
    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn avx2(from: *const u8, to: *mut u8) {
        for at in [0, 32] {
            // SAFETY: the caller's promise.
            unsafe {
                _mm256_stream_si256(to.add(at).cast(), _mm256_loadu_si256(from.add(at).cast()));
            }
        }
    }

    /// # Safety
    /// As [`lines`], for one.
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn avx512(from: *const u8, to: *mut u8) {
        // SAFETY: the caller's promise.
        unsafe { _mm512_stream_si512(to.cast(), _mm512_loadu_si512(from.cast())) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::tests::{HIGHEST, LEVELS};

    /// Writes `0, 1, 2, …` in pieces of `step`, at every alignment, and looks around what was written.
    fn check<T: Copy + Default + PartialEq + std::fmt::Debug>(number: impl Fn(usize) -> T) {
        let before = HIGHEST.get();
        for level in LEVELS {
            HIGHEST.set(level);
            for len in [0, 1, 15, 16, 17, 63, 64, 65, 511, 513, 2049, 5000] {
                for offset in 0..=LINE / size_of::<T>() {
                    for step in [1, 7, 64, 5000] {
                        for streaming in [false, true] {
                            let mut memory = vec![T::default(); len + 200];
                            let mut sink = Sink::new(&mut memory[offset..][..len], streaming);
                            let mut at = 0;
                            while at < len {
                                let room = sink.room();
                                let n = room.len().min(step).min(len - at);
                                assert!(n > 0);
                                for (i, slot) in room[..n].iter_mut().enumerate() {
                                    *slot = number(at + i);
                                }
                                sink.advance(n);
                                at += n;
                            }
                            sink.finish();
                            for (i, &found) in memory.iter().enumerate() {
                                let inside = (offset..offset + len).contains(&i);
                                let expected =
                                    if inside { number(i - offset) } else { T::default() };
                                assert_eq!(found, expected, "{len} {offset} {step} {streaming}");
                            }
                        }
                    }
                }
            }
        }
        HIGHEST.set(before);
    }

    #[test]
    fn everything_arrives_and_nothing_else_is_touched() {
        check(|i| i as f32 + 1.0);
        check(|i| (i % 100) as i8 + 1);
        check(|i| (i % 1000) as i16 + 1);
    }
}
