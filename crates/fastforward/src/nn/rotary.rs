//! Rotation of pairs of features by their position.

use candle_core::{DType, Device, Tensor};

use super::{Layer, functional as F};
use crate::Module;
use crate::quantization::QuantizerSlot;
use crate::tensor::{Apply, Error, Result, Value};

/// Turns the pairs of the last axis of `[.., length, width]` by angles that grow with the position, with slots for input and
/// output.
///
/// At position `p` pair `i` is turned by `p · base^(-2 i / width)`. Pairs are `(x[i], x[i + width / 2])`, as in LLaMA of
/// Hugging Face, or, `interleaved`, `(x[2 i], x[2 i + 1])`, as in the paper (Su et al., "RoFormer: Enhanced Transformer with
/// Rotary Position Embedding", 2021). The angles are computed in `f64`; they are no parameters.
///
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use fastforward::nn::{Layer, RotaryEmbedding};
///
/// let rotary = RotaryEmbedding::new(4, 16, 10_000.0, false, &Device::Cpu)?;
/// let x = Tensor::ones((1, 3, 4), DType::F32, &Device::Cpu)?;
/// let _lenient = fastforward::flags::strict_quantization(false); // no quantizers yet
/// let all = rotary.forward_tensor(&x)?.dequantize()?;
/// assert_eq!(all.get(0)?.get(0)?.to_vec1::<f32>()?, [1.0; 4]); // position 0 stays
/// let last = rotary.forward_at(&x.narrow(1, 2, 1)?.into(), 2)?.dequantize()?; // one more token
/// assert_eq!(last.flatten_all()?.to_vec1::<f32>()?, all.get(0)?.get(2)?.to_vec1::<f32>()?);
/// # Ok::<(), fastforward::tensor::Error>(())
/// ```
#[derive(Module, Debug)]
#[module(class = fastforward::module::classes::rotary_embedding())]
pub struct RotaryEmbedding {
    /// Cosines and sines of the angles, `[positions, width / 2]` in `f64`.
    #[module(skip)]
    angles: [Tensor; 2],
    /// Whether a pair are neighbours.
    pub interleaved: bool,
    /// `activation/input`
    pub input_quantizer: QuantizerSlot,
    /// `activation/output`
    pub output_quantizer: QuantizerSlot,
}

impl RotaryEmbedding {
    /// The rotation of features of this width at positions `0..max_positions`; `base` is 10 000 in the paper.
    ///
    /// # Errors
    /// [`ErrorKind::Operator`](crate::ErrorKind::Operator) when the width is odd or zero, or the base not positive.
    pub fn new(
        width: usize,
        max_positions: usize,
        base: f64,
        interleaved: bool,
        device: &Device,
    ) -> Result<Self> {
        if width == 0 || !width.is_multiple_of(2) || base <= 0.0 || base.is_nan() {
            let what = format!(
                "width is {width}, base {base}; expected an even width and a positive base"
            );
            return Err(Error::operator("RotaryEmbedding", what));
        }
        let frequency = |pair: usize| base.powf(-((2 * pair) as f64) / width as f64);
        let frequencies: Vec<f64> = (0..width / 2).map(frequency).collect();
        Self::from_frequencies(&frequencies, max_positions, interleaved, device)
    }

    /// The rotation with these angles per position, one for each pair: for models that stretch some of them.
    ///
    /// # Errors
    /// [`ErrorKind::Tensor`](crate::ErrorKind::Tensor) from candle.
    pub fn from_frequencies(
        frequencies: &[f64],
        max_positions: usize,
        interleaved: bool,
        device: &Device,
    ) -> Result<Self> {
        let table = |f: fn(f64) -> f64| {
            let row = |position: usize| frequencies.iter().map(move |w| f(position as f64 * w));
            let values: Vec<f64> = (0..max_positions).flat_map(row).collect();
            Tensor::from_vec(values, (max_positions, frequencies.len()), device)
        };
        Ok(Self {
            angles: [table(f64::cos)?, table(f64::sin)?],
            interleaved,
            input_quantizer: QuantizerSlot::input(),
            output_quantizer: QuantizerSlot::output(),
        })
    }

    /// The rotation of `[.., length, width]` whose first row stands at position `start`.
    ///
    /// # Errors
    /// [`ErrorKind::Operator`](crate::ErrorKind::Operator) when there are no angles for these positions or this width, and what
    /// the slots report.
    pub fn forward_at(&self, x: &Value, start: usize) -> Result<Value> {
        let positions = self.angles[0].dims()[0];
        let length = x.rank().checked_sub(2).map_or(0, |axis| x.dims()[axis]);
        if start.checked_add(length).is_none_or(|end| end > positions) {
            let what = format!(
                "there are angles for {positions} positions, asked for are {length} from {start} on, for an input of shape {:?}",
                x.dims()
            );
            return Err(Error::operator("RotaryEmbedding", what));
        }
        let x = self.input_quantizer.apply(x)?;
        // Narrow types take angles in f32.
        let dtype = if x.dtype() == DType::F64 { DType::F64 } else { DType::F32 };
        let [cos, sin] = [0, 1].map(|at: usize| -> Result<Tensor> {
            Ok(self.angles[at].narrow(0, start, length)?.to_dtype(dtype)?)
        });
        F::rotary(&x, &cos?, &sin?, self.interleaved, &self.output_quantizer)
    }
}

impl Layer for RotaryEmbedding {
    /// The rotation from position 0 on.
    fn forward(&self, x: &Value) -> Result<Value> {
        self.forward_at(x, 0)
    }
}
