//! Random zeros while training.

use std::sync::atomic::{AtomicU64, Ordering};

use super::mode::Mode;
use super::{Layer, functional as F};
use crate::Module;
use crate::quantization::QuantizerSlot;
use crate::tensor::{Apply, Error, Result, Value};

/// Sets each element to zero with probability `p` and multiplies the others by `1 / (1 - p)`, while training; with slots for
/// input and output.
///
/// A layer trains where [`flags::training_mode`](crate::flags::training_mode) says so, unless its mode is
/// [fixed](Self::set_training). Which elements are dropped follows from the seed and from how many forwards there were in
/// training before: a run is repeated by making the layer anew, or by setting the [counter](Self::set_counter) back.
/// Outside of training what comes in quantized goes out quantized, unless the output slot is filled.
///
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use fastforward::flags;
/// use fastforward::nn::{Dropout, Layer};
///
/// let layer = Dropout::new(0.5, 7)?;
/// let x = Tensor::ones(1000, DType::F32, &Device::Cpu)?;
/// let _lenient = flags::strict_quantization(false); // no quantizers yet
/// let sum = |y: Tensor| y.sum_all().and_then(|sum| sum.to_scalar::<f32>());
/// assert_eq!(sum(layer.forward_tensor(&x)?.dequantize()?)?, 1000.0);
/// let _training = flags::training_mode(true);
/// let dropped = sum(layer.forward_tensor(&x)?.dequantize()?)?;
/// assert!(dropped != 1000.0 && (dropped - 1000.0).abs() < 100.0);
/// # Ok::<(), fastforward::tensor::Error>(())
/// ```
#[derive(Module, Debug)]
#[module(class = fastforward::module::classes::dropout())]
pub struct Dropout {
    p: f64,
    seed: u64,
    #[module(skip)]
    counter: AtomicU64,
    mode: Mode,
    /// `activation/input`
    pub input_quantizer: QuantizerSlot,
    /// `activation/output`
    pub output_quantizer: QuantizerSlot,
}

impl Dropout {
    /// A layer that drops with probability `p`. Layers of one model should have different seeds.
    ///
    /// # Errors
    /// [`ErrorKind::Operator`](crate::ErrorKind::Operator) when `p` does not lie in `0..=1`.
    pub fn new(p: f64, seed: u64) -> Result<Self> {
        if !(0.0..=1.0).contains(&p) {
            return Err(Error::operator("Dropout", format!("p is {p}, expected one in 0..=1")));
        }
        Ok(Self {
            p,
            seed,
            counter: AtomicU64::new(0),
            mode: Mode::default(),
            input_quantizer: QuantizerSlot::input(),
            output_quantizer: QuantizerSlot::output(),
        })
    }

    /// The probability of a zero.
    pub fn p(&self) -> f64 {
        self.p
    }

    /// How many forwards there were in training.
    pub fn counter(&self) -> u64 {
        self.counter.load(Ordering::Relaxed)
    }

    /// Makes the next forward in training the one with this number.
    pub fn set_counter(&self, counter: u64) {
        self.counter.store(counter, Ordering::Relaxed);
    }

    /// Fixes whether the layer trains, or, with `None`, leaves it to the thread.
    pub fn set_training(&self, training: Option<bool>) {
        self.mode.set(training);
    }

    /// The seed of this forward, if anything is to be dropped in it; it is counted.
    pub(super) fn next_seed(&self) -> Option<u64> {
        if self.p == 0.0 || !self.mode.is_training() {
            return None;
        }
        let forward = self.counter.fetch_add(1, Ordering::Relaxed);
        // The odd factor, 2^64 over the golden ratio, keeps the forwards of neighbouring seeds apart.
        Some(self.seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(forward))
    }
}

impl Layer for Dropout {
    fn forward(&self, x: &Value) -> Result<Value> {
        let x = self.input_quantizer.apply(x)?;
        let output = &self.output_quantizer;
        match self.next_seed() {
            Some(seed) => F::dropout(&x, self.p, true, seed, output),
            None if output.is_stub() => output.apply(&x),
            None => F::dropout(&x, self.p, false, self.seed, output),
        }
    }
}
