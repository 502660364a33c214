//! Dropout without hidden state.

use candle_core::Tensor;

use super::custom::{Kernel, apply};
use super::parallel::fill_rows;
use super::real::Real;
use super::shape::check_float;
use crate::tensor::{Error, Result};

/// `x` with each element set to zero with probability `p`, the others multiplied by `1 / (1 - p)`.
///
/// What is dropped depends on `seed` and the element's place alone: the same for any number of threads, and again in the
/// backward pass. Without `training` it is `x` itself
/// (Srivastava et al., "Dropout: A Simple Way to Prevent Neural Networks from Overfitting", 2014).
///
/// # Errors
///
/// `p` is no probability; `x` does not hold floats, or is not on the CPU.
pub fn dropout(x: &Tensor, p: f64, training: bool, seed: u64) -> Result<Tensor> {
    if !(0.0..=1.0).contains(&p) {
        return Err(Error::operator("dropout", format!("p is {p}; it must lie in 0..=1")));
    }
    check_float("dropout", "the input", x)?;
    if !training || p == 0.0 {
        return Ok(x.clone());
    }
    apply(Dropout { p, seed }, [x], x.shape())
}

struct Dropout {
    p: f64,
    seed: u64,
}

impl Dropout {
    fn run<T: Real>(&self, x: &[T]) -> Vec<T> {
        let scale = if self.p < 1.0 { T::of(1.0 / (1.0 - self.p)) } else { T::ZERO };
        // An element is dropped if its random number of 53 bits is below this.
        let border = (self.p * (1u64 << 53) as f64) as u64;
        let start = mix(self.seed);
        fill_rows(
            x.len(),
            1,
            #[inline(always)]
            |i, out| {
                let random = mix(start ^ i as u64) >> 11;
                out[0] = x[i] * if random < border { T::ZERO } else { scale };
            },
        )
    }
}

/// The finalizer of SplitMix64 (Steele, Lea and Flood, "Fast Splittable Pseudorandom Number Generators", 2014) after a
/// step of its sequence.
#[inline(always)]
fn mix(x: u64) -> u64 {
    let x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

impl Kernel<1> for Dropout {
    fn name(&self) -> &'static str {
        "dropout"
    }

    fn forward<T: Real>(&self, [x]: [&[T]; 1]) -> Vec<T> {
        self.run(x)
    }

    fn backward<T: Real>(
        &self,
        _x: [&[T]; 1],
        _y: &[T],
        g: &[T],
        [wanted]: [bool; 1],
    ) -> [Option<Vec<T>>; 1] {
        [wanted.then(|| self.run(g))]
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};

    use super::super::testing::*;
    use super::*;

    #[test]
    fn elements_are_dropped_by_seed_and_place() {
        let x = Tensor::ones((100, 300), DType::F32, &Device::Cpu).unwrap();
        let y = dropout(&x, 0.25, true, 7).unwrap();
        let zeros = values(&y).iter().filter(|&&v| v == 0.0).count();
        assert!((7200..7800).contains(&zeros), "{zeros} of 30000");
        assert!(values(&y).iter().all(|&v| v == 0.0 || v == f64::from(1f32 / 0.75)));
        assert_eq!(bits(&y), bits(&dropout(&x, 0.25, true, 7).unwrap()));
        assert_ne!(bits(&y), bits(&dropout(&x, 0.25, true, 8).unwrap()));
        assert_eq!(bits(&dropout(&x, 0.25, false, 7).unwrap()), bits(&x));
        assert_close(&dropout(&numbers(&[3], 1), 1.0, true, 7).unwrap(), &[0.0; 3], 0.0);
        check_threads(|| bits(&dropout(&x, 0.25, true, 7).unwrap()));
        check_gradients(&[numbers(&[4, 5], 1)], |t| dropout(&t[0], 0.5, true, 3));
        assert_eq!(
            dropout(&x, 1.5, true, 0).unwrap_err().to_string(),
            "dropout: p is 1.5; it must lie in 0..=1"
        );
    }
}
