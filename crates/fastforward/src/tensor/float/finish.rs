//! What is done with results while they are in the cache.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};

use ff_kernels::Uniform;

/// What becomes of each block of results before the next one is made.
#[derive(Clone, Debug)]
pub(crate) enum Finish {
    /// It is put on this grid.
    Grid(Uniform),
    /// It stays as it is, and its smallest and largest value are noted.
    Range(Arc<Extremes>),
}

impl Finish {
    /// Does it. A loop that is compiled for an instruction set calls this with each block.
    #[inline(always)]
    pub(super) fn block(&self, values: &mut [f32]) {
        match self {
            Self::Grid(to) => to.fake_quantize_block(values),
            Self::Range(extremes) => extremes.add(values),
        }
    }
}

/// The smallest and largest of values that come in blocks, from any thread and in any order.
#[derive(Debug)]
pub(crate) struct Extremes {
    /// As [`key`].
    min: AtomicI32,
    max: AtomicI32,
    /// Whether there was NaN.
    nan: AtomicBool,
}

/// Values that are compared side by side.
const WIDTH: usize = 32;

impl Extremes {
    /// Of no value yet.
    pub(crate) fn new() -> Self {
        let (min, max) = (key(f32::INFINITY), key(f32::NEG_INFINITY));
        Self { min: min.into(), max: max.into(), nan: false.into() }
    }

    /// The smallest and the largest, zeros as `+0`; `None` where a value is infinite or NaN, or there is none.
    pub(crate) fn finite(&self) -> Option<(f32, f32)> {
        let bound = |at: &AtomicI32| value(at.load(Ordering::Relaxed)) + 0.0;
        let (min, max) = (bound(&self.min), bound(&self.max));
        let is_finite = min.is_finite() && max.is_finite() && !self.nan.load(Ordering::Relaxed);
        is_finite.then_some((min, max))
    }

    #[inline(always)]
    fn add(&self, values: &[f32]) {
        let mut lanes = Lanes {
            min: [f32::INFINITY; WIDTH],
            max: [f32::NEG_INFINITY; WIDTH],
            magnitude: [0; WIDTH],
        };
        let (blocks, rest) = values.as_chunks::<WIDTH>();
        for block in blocks {
            lanes.add(block);
        }
        if let [first, ..] = rest {
            // Filled up with a value that is there.
            let mut block = [*first; WIDTH];
            block[..rest.len()].copy_from_slice(rest);
            lanes.add(&block);
        }
        let least = by_halves(
            lanes.min,
            #[inline(always)]
            |a, b| if b < a { b } else { a },
        );
        let most = by_halves(
            lanes.max,
            #[inline(always)]
            |a, b| if b > a { b } else { a },
        );
        // What is looked up first is seldom changed, so that threads do not take the line from each other.
        if key(least) < self.min.load(Ordering::Relaxed) {
            self.min.fetch_min(key(least), Ordering::Relaxed);
        }
        if key(most) > self.max.load(Ordering::Relaxed) {
            self.max.fetch_max(key(most), Ordering::Relaxed);
        }
        if by_halves(lanes.magnitude, u32::max) > f32::INFINITY.to_bits() {
            self.nan.store(true, Ordering::Relaxed);
        }
    }
}

struct Lanes {
    min: [f32; WIDTH],
    max: [f32; WIDTH],
    /// The largest magnitude, as bits: those of NaN are above those of infinity.
    magnitude: [u32; WIDTH],
}

impl Lanes {
    /// Adds a value to each lane. As many as there are lanes, so that these stay in registers.
    #[inline(always)]
    fn add(&mut self, values: &[f32; WIDTH]) {
        for (i, &x) in values.iter().enumerate() {
            self.min[i] = if x < self.min[i] { x } else { self.min[i] };
            self.max[i] = if x > self.max[i] { x } else { self.max[i] };
            self.magnitude[i] = self.magnitude[i].max(x.to_bits() & 0x7fff_ffff);
        }
    }
}

#[inline(always)]
fn by_halves<T: Copy>(mut lanes: [T; WIDTH], merge: impl Fn(T, T) -> T) -> T {
    let mut width = WIDTH / 2;
    while width > 0 {
        for i in 0..width {
            lanes[i] = merge(lanes[i], lanes[i + width]);
        }
        width /= 2;
    }
    lanes[0]
}

/// An integer that is ordered as the number is; not for NaN.
#[inline(always)]
fn key(x: f32) -> i32 {
    let bits = x.to_bits().cast_signed();
    bits ^ ((bits >> 31) & i32::MAX)
}

fn value(key: i32) -> f32 {
    f32::from_bits((key ^ ((key >> 31) & i32::MAX)).cast_unsigned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(blocks: &[&[f32]], expected: Option<(f32, f32)>) {
        let extremes = Arc::new(Extremes::new());
        for block in blocks {
            let mut own = block.to_vec();
            Finish::Range(Arc::clone(&extremes)).block(&mut own);
            let bits = |x: &[f32]| x.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
            assert_eq!(bits(&own), bits(block), "values stay as they are");
        }
        let bits = |found: Option<(f32, f32)>| found.map(|(a, b)| (a.to_bits(), b.to_bits()));
        assert_eq!(bits(extremes.finite()), bits(expected), "{blocks:?}");
    }

    #[test]
    fn extremes_of_blocks() {
        check(&[], None);
        check(&[&[]], None);
        check(&[&[1.5]], Some((1.5, 1.5)));
        check(&[&[-1.0, -3.0], &[-2.0]], Some((-3.0, -1.0)));
        check(&[&[-0.0], &[0.0]], Some((0.0, 0.0)));
        check(&[&[f32::MIN, f32::MAX, 1e-45, -1e-45]], Some((f32::MIN, f32::MAX)));
        for len in [31, 32, 33, 100] {
            for at in 0..len {
                let block = |x: f32| {
                    let mut block = vec![0.5; len];
                    block[at] = x;
                    block
                };
                check(&[&block(7.0), &block(-7.0)], Some((-7.0, 7.0)));
                for odd in [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                    check(&[&block(odd)], None);
                }
            }
        }
    }
}
