//! How far two slices are apart.

use rayon::prelude::*;

use crate::error::{KernelError, KernelErrorKind, check_len};
use crate::reduce::{add, by_halves};
use crate::simd::{Vectorized, dispatch};

/// Sums over pairs `(a, b)` of a reference and what stands for it, from which every metric follows.
///
/// Sums are f64, added in an order that depends on the length only. Statistics of parts are merged
/// with [`Difference::merge`].
///
/// ```
/// use ff_kernels::Difference;
/// let d = Difference::of(&[1.0, 2.0, 3.0], &[1.0, 2.5, 3.0])?;
/// assert_eq!(d.mse(), 0.25 / 3.0);
/// assert_eq!(d.max_abs, 0.5);
/// # Ok::<(), ff_kernels::KernelError>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Difference {
    /// Number of pairs.
    pub len: usize,
    /// `Σ a²`
    pub sum_reference_squared: f64,
    /// `Σ b²`
    pub sum_other_squared: f64,
    /// `Σ a·b`
    pub sum_product: f64,
    /// `Σ (a - b)²`
    pub sum_error_squared: f64,
    /// `max |a - b|`, NaN if any difference is NaN; 0 without pairs.
    pub max_abs: f64,
}

/// Pairs per unit of work.
const CHUNK: usize = 1 << 15;

impl Difference {
    /// The statistics of two slices of the same length.
    ///
    /// # Errors
    /// Slices of different length.
    pub fn of(reference: &[f32], other: &[f32]) -> Result<Self, KernelError> {
        check_len("slice to compare", reference.len(), other.len())?;
        let parts = |(a, b)| dispatch(Sums { a, b });
        let all = if reference.len() <= CHUNK {
            parts((reference, other))
        } else {
            let chunks = reference.par_chunks(CHUNK).zip(other.par_chunks(CHUNK));
            let parts: Vec<Difference> = chunks.map(parts).collect();
            parts.iter().fold(Difference::default(), |all, part| all.merge(part))
        };
        Ok(all)
    }

    /// The statistics of both parts together.
    #[must_use]
    pub fn merge(&self, other: &Difference) -> Difference {
        let max = if self.max_abs.is_nan() || self.max_abs > other.max_abs {
            self.max_abs
        } else {
            other.max_abs
        };
        Difference {
            len: self.len + other.len,
            sum_reference_squared: self.sum_reference_squared + other.sum_reference_squared,
            sum_other_squared: self.sum_other_squared + other.sum_other_squared,
            sum_product: self.sum_product + other.sum_product,
            sum_error_squared: self.sum_error_squared + other.sum_error_squared,
            max_abs: max,
        }
    }

    /// Mean squared error; NaN without pairs.
    pub fn mse(&self) -> f64 {
        self.sum_error_squared / self.len as f64
    }

    /// Mean squared reference; NaN without pairs.
    pub fn mean_reference_squared(&self) -> f64 {
        self.sum_reference_squared / self.len as f64
    }

    /// Cosine of the angle between the slices as vectors. Two zero vectors are alike (1), a zero
    /// and another one are not (0).
    pub fn cosine(&self) -> f64 {
        let norms = self.sum_reference_squared.sqrt() * self.sum_other_squared.sqrt();
        if norms == 0.0 {
            let both = self.sum_reference_squared == 0.0 && self.sum_other_squared == 0.0;
            return if both { 1.0 } else { 0.0 };
        }
        self.sum_product / norms
    }
}

/// Added to the noise of [`sqnr_db`] by the reference.
pub const SQNR_EPSILON: f64 = 1e-15;

/// Signal to quantization noise in decibels, over the samples along the first axis (spec §13).
///
/// For each of `samples` equal parts: `mean(reference²) / (mean((reference - other)²) + 1e-15)`; the
/// ratios are averaged before the logarithm, `10 · log10(mean)`. All sums are f64.
///
/// # Errors
/// Slices of different length; no samples, or a number of samples that does not divide the length;
/// no data.
///
/// ```
/// use ff_kernels::sqnr_db;
/// let db = sqnr_db(&[1.0; 6], &[0.9; 6], 2)?;
/// assert!((db - 20.0).abs() < 1e-5);
/// # Ok::<(), ff_kernels::KernelError>(())
/// ```
pub fn sqnr_db(reference: &[f32], other: &[f32], samples: usize) -> Result<f64, KernelError> {
    check_len("slice to compare", reference.len(), other.len())?;
    if reference.is_empty() {
        return Err(KernelErrorKind::NoData.into());
    }
    if samples == 0 || !reference.len().is_multiple_of(samples) {
        return Err(KernelErrorKind::Option {
            what: "number of samples",
            must_be: "a divisor of the number of elements",
            found: samples as f64,
        }
        .into());
    }
    let sample_len = reference.len() / samples;
    let mut ratios = 0.0;
    for (a, b) in reference.chunks_exact(sample_len).zip(other.chunks_exact(sample_len)) {
        let d = Difference::of(a, b)?;
        ratios += d.mean_reference_squared() / (d.mse() + SQNR_EPSILON);
    }
    Ok(10.0 * (ratios / samples as f64).log10())
}

struct Sums<'a> {
    a: &'a [f32],
    b: &'a [f32],
}

const WIDTH: usize = 16;

/// The sums of [`Difference`], side by side.
#[derive(Default)]
struct Lanes {
    sums: [[f64; WIDTH]; 4],
    max: [f32; WIDTH],
    nan: [u32; WIDTH],
}

impl Lanes {
    #[inline(always)]
    fn add(&mut self, i: usize, a: f32, b: f32) {
        let d = (a - b).abs();
        self.max[i] = if d > self.max[i] { d } else { self.max[i] };
        self.nan[i] |= u32::from(d.is_nan());
        let (a, b) = (f64::from(a), f64::from(b));
        self.sums[0][i] += a * a;
        self.sums[1][i] += b * b;
        self.sums[2][i] += a * b;
        self.sums[3][i] += (a - b) * (a - b);
    }
}

impl Vectorized for Sums<'_> {
    type Output = Difference;

    #[inline(always)]
    fn run(self) -> Difference {
        let mut lanes = Lanes::default();
        let (a, a_rest) = self.a.as_chunks::<WIDTH>();
        let (b, b_rest) = self.b.as_chunks::<WIDTH>();
        for (a, b) in a.iter().zip(b) {
            for i in 0..WIDTH {
                lanes.add(i, a[i], b[i]);
            }
        }
        for (i, (&a, &b)) in a_rest.iter().zip(b_rest).enumerate() {
            lanes.add(i, a, b);
        }
        let total = lanes.sums.map(|lanes| by_halves(lanes, add));
        let max = lanes.max.into_iter().fold(0.0, f32::max);
        let nan = lanes.nan.iter().any(|&n| n != 0);
        Difference {
            len: self.a.len(),
            sum_reference_squared: total[0],
            sum_other_squared: total[1],
            sum_product: total[2],
            sum_error_squared: total[3],
            max_abs: if nan { f64::NAN } else { max.into() },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agrees_with_plain_sums() {
        for len in [0, 1, 15, 16, 17, 1000, 70_000] {
            let a: Vec<f32> = (0..len).map(|i| ((i * 37) % 101) as f32 / 25.0 - 2.0).collect();
            let b: Vec<f32> = a.iter().map(|a| (a * 8.0).round() / 8.0).collect();
            let d = Difference::of(&a, &b).unwrap();
            let sum = |f: fn(f64, f64) -> f64| -> f64 {
                a.iter().zip(&b).map(|(&a, &b)| f(a.into(), b.into())).sum()
            };
            let close = |x: f64, y: f64| (x - y).abs() <= 1e-12 * y.abs();
            assert_eq!(d.len, len);
            assert!(close(d.sum_reference_squared, sum(|a, _| a * a)));
            assert!(close(d.sum_other_squared, sum(|_, b| b * b)));
            assert!(close(d.sum_product, sum(|a, b| a * b)));
            assert!(close(d.sum_error_squared, sum(|a, b| (a - b) * (a - b))));
            let max = a.iter().zip(&b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert_eq!(d.max_abs, f64::from(max));
        }
    }

    #[test]
    fn same_bytes_for_any_number_of_threads() {
        let a: Vec<f32> = (0..200_000).map(|i| ((i * 37) % 101) as f32 / 7.0).collect();
        let b: Vec<f32> = a.iter().map(|a| a.round()).collect();
        let run = |n| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(n).build().unwrap();
            pool.install(|| Difference::of(&a, &b).unwrap())
        };
        assert_eq!(run(1), run(4));
    }

    #[test]
    fn nan_shows() {
        let d = Difference::of(&[1.0, f32::NAN, 3.0], &[1.0, 2.0, 9.0]).unwrap();
        assert!(d.max_abs.is_nan() && d.mse().is_nan());
        let clean = Difference::of(&[1.0], &[2.0]).unwrap();
        assert!(d.merge(&clean).max_abs.is_nan() && clean.merge(&d).max_abs.is_nan());
    }

    #[test]
    fn cosine_of_zero_vectors() {
        let cosine = |a: &[f32], b: &[f32]| Difference::of(a, b).unwrap().cosine();
        assert_eq!(cosine(&[0.0; 2], &[0.0; 2]), 1.0);
        assert_eq!(cosine(&[0.0; 2], &[1.0; 2]), 0.0);
        assert_eq!(cosine(&[1.0, 0.0], &[0.0, 1.0]), 0.0);
        assert!((cosine(&[1.0, 2.0], &[-2.0, -4.0]) + 1.0).abs() < 1e-15);
    }

    #[test]
    fn sqnr_averages_ratios_per_sample() {
        // Sample ratios 100 and 25: 10·log10(62.5).
        let db = sqnr_db(&[10.0, 10.0, 5.0, 5.0], &[9.0, 11.0, 4.0, 6.0], 2).unwrap();
        assert!((db - 10.0 * 62.5f64.log10()).abs() < 1e-9);
        let exact = sqnr_db(&[1.0; 4], &[1.0; 4], 1).unwrap();
        assert!((exact - 150.0).abs() < 1e-9);
        assert!(sqnr_db(&[1.0; 4], &[1.0; 3], 1).is_err());
        assert!(sqnr_db(&[1.0; 4], &[1.0; 4], 3).is_err());
        assert!(sqnr_db(&[1.0; 4], &[1.0; 4], 0).is_err());
        assert!(sqnr_db(&[], &[], 1).is_err());
    }
}
