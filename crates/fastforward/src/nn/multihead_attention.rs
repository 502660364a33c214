//! Attention by several heads, with its projections.

use std::sync::{Mutex, PoisonError};

use candle_nn::{Init, VarBuilder};

use super::attention::{
    AttentionDropout, AttentionMask, AttentionOptions, ScaledDotProductAttention,
};
use super::check::Problems;
use super::{Dropout, Layer, Linear, Param, functional as F};
use crate::Module;
use crate::flags;
use crate::quantization::QuantizerSlot;
use crate::tensor::{Apply, Error, QuantizedTensor, Result, Value};

/// The settings of [`MultiheadAttention::new`]; [`Default`] is torch's, with the seed 0.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MultiheadAttentionOptions {
    /// Whether the projections have biases.
    pub bias: bool,
    /// The probability with which a key is dropped while training.
    pub dropout: f64,
    /// The seed of what is dropped.
    pub seed: u64,
    /// The width of the keys, if not that of the queries.
    pub kdim: Option<usize>,
    /// The width of the values, if not that of the queries.
    pub vdim: Option<usize>,
}

impl Default for MultiheadAttentionOptions {
    fn default() -> Self {
        Self { bias: true, dropout: 0.0, seed: 0, kdim: None, vdim: None }
    }
}

/// The weights that make queries, keys and values of what comes in.
#[derive(Clone, Debug)]
pub enum InProjection {
    /// All three below each other, `[3 · embed, embed]`: `in_proj_weight` of torch.
    Packed(Param),
    /// Each by itself, where keys or values have widths of their own: `q_proj_weight` `[embed, embed]`, `k_proj_weight` `[embed,
    /// kdim]`, `v_proj_weight` `[embed, vdim]`.
    Separate([Param; 3]),
}

/// Attention by several heads: queries, keys and values are projected, cut into heads, and what the heads attend to is
/// joined and projected again (Vaswani et al., "Attention Is All You Need", 2017, §3.2.2).
///
/// Parameters are named as in torch: `in_proj_weight` (or `q_proj_weight`, `k_proj_weight`, `v_proj_weight`), `in_proj_bias`,
/// `out_proj.weight`, `out_proj.bias`. What comes in is `[.., length, width]`: the batch comes first. The slots are
///
/// | slot | tags |
/// |---|---|
/// | `in_proj_weight_quantizer`, or `q_proj_weight_quantizer` and so on | `parameter/weight` |
/// | `in_proj_bias_quantizer` | `parameter/bias` |
/// | `query_quantizer`, `key_quantizer`, `value_quantizer` | `activation/input` |
/// | `projected_query_quantizer`, `projected_key_quantizer`, `projected_value_quantizer` | `activation/input`, `activation/output` |
/// | those of `attention`: a [`ScaledDotProductAttention`] | |
/// | those of `out_proj`: a [`Linear`] | |
///
/// `attention.output_quantizer` and `out_proj.input_quantizer` are one place in the data, and so one slot with two names, which
/// answers to rules for inputs and for outputs alike. So do the projections.
///
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use candle_nn::{VarBuilder, VarMap};
/// use fastforward::nn::{AttentionMask, MultiheadAttention, MultiheadAttentionOptions};
///
/// let weights = VarMap::new();
/// let vb = VarBuilder::from_varmap(&weights, DType::F32, &Device::Cpu);
/// let layer = MultiheadAttention::new(8, 2, MultiheadAttentionOptions::default(), vb)?;
/// let x = Tensor::zeros((3, 5, 8), DType::F32, &Device::Cpu)?.into(); // [batch, length, width]
/// let memory = Tensor::zeros((3, 7, 8), DType::F32, &Device::Cpu)?.into();
/// let _lenient = fastforward::flags::strict_quantization(false); // no quantizers yet
/// let y = layer.attend(&x, &x, &x, &AttentionMask::Causal)?;
/// let y = layer.attend(&y, &memory, &memory, &AttentionMask::None)?;
/// assert_eq!(y.dims(), [3, 5, 8]);
/// # Ok::<(), fastforward::tensor::Error>(())
/// ```
#[derive(Module, Debug)]
#[module(class = fastforward::module::classes::multihead_attention())]
pub struct MultiheadAttention {
    num_heads: usize,
    /// `[3 · embed, embed]`, unless keys or values have widths of their own.
    pub in_proj_weight: Option<Param>,
    /// `[embed, embed]`, if so.
    pub q_proj_weight: Option<Param>,
    /// `[embed, kdim]`, if so.
    pub k_proj_weight: Option<Param>,
    /// `[embed, vdim]`, if so.
    pub v_proj_weight: Option<Param>,
    /// `[3 · embed]`
    pub in_proj_bias: Option<Param>,
    /// `parameter/weight`
    pub in_proj_weight_quantizer: Option<QuantizerSlot>,
    /// `parameter/weight`
    pub q_proj_weight_quantizer: Option<QuantizerSlot>,
    /// `parameter/weight`
    pub k_proj_weight_quantizer: Option<QuantizerSlot>,
    /// `parameter/weight`
    pub v_proj_weight_quantizer: Option<QuantizerSlot>,
    /// `parameter/bias`; absent without a bias.
    pub in_proj_bias_quantizer: Option<QuantizerSlot>,
    /// `activation/input`
    pub query_quantizer: QuantizerSlot,
    /// `activation/input`
    pub key_quantizer: QuantizerSlot,
    /// `activation/input`
    pub value_quantizer: QuantizerSlot,
    /// `activation/input`, `activation/output`
    pub projected_query_quantizer: QuantizerSlot,
    /// `activation/input`, `activation/output`
    pub projected_key_quantizer: QuantizerSlot,
    /// `activation/input`, `activation/output`
    pub projected_value_quantizer: QuantizerSlot,
    /// What each head does.
    pub attention: ScaledDotProductAttention,
    /// The projection of what the heads found.
    pub out_proj: Linear,
    /// What is dropped while training: its probability, seed and mode. Its slots are not used; `attention` has one.
    #[module(skip)]
    pub dropout: Dropout,
    #[module(skip)]
    parts: Mutex<Option<Parts>>,
}

/// The three parts of a quantized weight that was packed, and the weight: while that is kept, so are they, with what is made of
/// them for integer products.
#[derive(Debug)]
struct Parts {
    of: QuantizedTensor,
    parts: [Value; 3],
}

impl MultiheadAttention {
    /// A layer whose parameters come from, or are made by, a `VarBuilder`, under torch's names and initialized as in torch.
    ///
    /// # Errors
    /// [`ErrorKind::Tensor`](crate::ErrorKind::Tensor) when the builder has no such tensors of these shapes, otherwise as for
    /// [`from_params`](Self::from_params).
    pub fn new(
        embed_dim: usize,
        num_heads: usize,
        options: MultiheadAttentionOptions,
        vb: VarBuilder<'_>,
    ) -> Result<Self> {
        // Xavier's: the variance that keeps both what goes in and what goes back.
        let xavier = |name: &str, rows: usize, columns: usize| -> Result<Param> {
            let bound = (6.0 / (rows + columns).max(1) as f64).sqrt();
            let init = Init::Uniform { lo: -bound, up: bound };
            Ok(vb.get_with_hints((rows, columns), name, init)?.into())
        };
        let zeros = candle_nn::init::ZERO;
        let widths = [None, options.kdim, options.vdim].map(|width| width.unwrap_or(embed_dim));
        let projection = if widths == [embed_dim; 3] {
            InProjection::Packed(xavier("in_proj_weight", 3 * embed_dim, embed_dim)?)
        } else {
            InProjection::Separate([
                xavier("q_proj_weight", embed_dim, widths[0])?,
                xavier("k_proj_weight", embed_dim, widths[1])?,
                xavier("v_proj_weight", embed_dim, widths[2])?,
            ])
        };
        let bias = || vb.get_with_hints(3 * embed_dim, "in_proj_bias", zeros);
        let bias = options.bias.then(bias).transpose()?.map(Param::new);

        let vb = vb.pp("out_proj");
        let bound = 1.0 / (embed_dim.max(1) as f64).sqrt();
        let uniform = Init::Uniform { lo: -bound, up: bound };
        let weight = vb.get_with_hints((embed_dim, embed_dim), "weight", uniform)?;
        let out_bias = || vb.get_with_hints(embed_dim, "bias", zeros);
        let out_proj = Linear::from_tensors(weight, options.bias.then(out_bias).transpose()?)?;
        let mut layer = Self::from_params(num_heads, projection, bias, out_proj)?;
        layer.dropout = Dropout::new(options.dropout, options.seed)?;
        Ok(layer)
    }

    /// A layer with these parameters, which it may share with others. It drops nothing.
    ///
    /// # Errors
    /// [`ErrorKind::Operator`](crate::ErrorKind::Operator) when shapes do not fit each other, or the heads do not divide the
    /// width.
    pub fn from_params(
        num_heads: usize,
        in_projection: InProjection,
        in_proj_bias: Option<Param>,
        out_proj: Linear,
    ) -> Result<Self> {
        let embed = out_proj.weight.dims()[0];
        let mut problems = Problems::new("MultiheadAttention");
        problems.check(num_heads > 0 && embed.is_multiple_of(num_heads), || {
            format!("{num_heads} heads do not divide a width of {embed}")
        });
        problems.shape("out_proj.weight", &out_proj.weight, &[embed, embed]);
        problems.shape("in_proj_bias", &in_proj_bias, &[3 * embed]);
        let (packed, separate) = match in_projection {
            InProjection::Packed(weight) => {
                problems.shape("in_proj_weight", &weight, &[3 * embed, embed]);
                (Some(weight), [None, None, None])
            }
            InProjection::Separate(weights) => {
                let [query, key, value] = &weights;
                problems.shape("q_proj_weight", query, &[embed, embed]);
                for (name, weight) in [("k_proj_weight", key), ("v_proj_weight", value)] {
                    let &[.., width] = weight.dims() else {
                        problems.shape(name, weight, &[embed, embed]);
                        continue;
                    };
                    problems.shape(name, weight, &[embed, width]);
                }
                (None, weights.map(Some))
            }
        };
        problems.stop()?;

        let slot_of =
            |weight: &Option<Param>| weight.as_ref().map(|w| QuantizerSlot::weight(w.dims()));
        let both = || {
            let slot = QuantizerSlot::output();
            slot.add_tag(crate::quantization::quantizer::default_tags::input());
            slot
        };
        let attention = ScaledDotProductAttention {
            output_quantizer: both(),
            ..ScaledDotProductAttention::new()
        };
        let [q_proj_weight, k_proj_weight, v_proj_weight] = separate;
        Ok(Self {
            num_heads,
            in_proj_weight_quantizer: slot_of(&packed),
            q_proj_weight_quantizer: slot_of(&q_proj_weight),
            k_proj_weight_quantizer: slot_of(&k_proj_weight),
            v_proj_weight_quantizer: slot_of(&v_proj_weight),
            in_proj_bias_quantizer: in_proj_bias.as_ref().map(|b| QuantizerSlot::bias(b.dims())),
            in_proj_weight: packed,
            q_proj_weight,
            k_proj_weight,
            v_proj_weight,
            in_proj_bias,
            query_quantizer: QuantizerSlot::input(),
            key_quantizer: QuantizerSlot::input(),
            value_quantizer: QuantizerSlot::input(),
            projected_query_quantizer: both(),
            projected_key_quantizer: both(),
            projected_value_quantizer: both(),
            out_proj: Linear { input_quantizer: attention.output_quantizer.clone(), ..out_proj },
            attention,
            dropout: Dropout::new(0.0, 0)?,
            parts: Mutex::new(None),
        })
    }

    /// How many heads there are.
    pub fn num_heads(&self) -> usize {
        self.num_heads
    }

    /// The width of what comes out.
    pub fn embed_dim(&self) -> usize {
        self.out_proj.weight.dims()[0]
    }

    /// What each of the `query` finds among the `key`, taken from the `value`: `[.., queries, embed]` of `[.., queries, embed]`,
    /// `[.., keys, kdim]` and `[.., keys, vdim]`. The mask broadcasts to `[.., heads, queries, keys]`. With the same value three
    /// times it is self-attention.
    ///
    /// # Errors
    /// [`ErrorKind::Operator`](crate::ErrorKind::Operator) when shapes or types do not fit, and what the slots report.
    pub fn attend(
        &self,
        query: &Value,
        key: &Value,
        value: &Value,
        mask: &AttentionMask,
    ) -> Result<Value> {
        for (name, x) in [("query", query), ("key", key), ("value", value)] {
            if x.rank() < 2 {
                let what = format!("{name} has shape {:?}, expected [.., length, width]", x.dims());
                return Err(Error::operator("MultiheadAttention", what));
            }
        }
        let [query, key, value] = self.project(
            self.query_quantizer.apply(query)?,
            self.key_quantizer.apply(key)?,
            self.value_quantizer.apply(value)?,
        )?;
        let options = AttentionOptions {
            mask: mask.clone(),
            dropout: self
                .dropout
                .next_seed()
                .map(|seed| AttentionDropout { p: self.dropout.p(), seed }),
            ..AttentionOptions::default()
        };
        let found = self.attention.forward(
            &self.split(&query)?,
            &self.split(&key)?,
            &self.split(&value)?,
            &options,
        )?;
        let joined = join(&found)?;
        if self.out_proj.input_quantizer.id() == self.attention.output_quantizer.id() {
            self.out_proj.forward_quantized(&joined)
        } else {
            self.out_proj.forward(&joined)
        }
    }

    /// Queries, keys and values of what came in.
    fn project(&self, query: Value, key: Value, value: Value) -> Result<[Value; 3]> {
        let embed = self.embed_dim();
        let weights = self.weights()?;
        let bias = self.in_proj_bias.as_ref();
        let bias = Param::quantized_option(bias, self.in_proj_bias_quantizer.as_ref())?;
        let linear = |at: usize, x: &Value, slot: &QuantizerSlot| {
            let bias = bias.as_ref().map(|bias| bias.narrow(0, at * embed, embed)).transpose()?;
            F::linear(x, &weights[at], bias.as_ref(), slot)
        };
        Ok([
            linear(0, &query, &self.projected_query_quantizer)?,
            linear(1, &key, &self.projected_key_quantizer)?,
            linear(2, &value, &self.projected_value_quantizer)?,
        ])
    }

    fn weights(&self) -> Result<[Value; 3]> {
        let through = |weight: &Option<Param>, slot: &Option<QuantizerSlot>| {
            Param::quantized_option(weight.as_ref(), slot.as_ref())
        };
        if let Some(packed) = through(&self.in_proj_weight, &self.in_proj_weight_quantizer)? {
            return self.parts(&packed);
        }
        let query = through(&self.q_proj_weight, &self.q_proj_weight_quantizer)?;
        let key = through(&self.k_proj_weight, &self.k_proj_weight_quantizer)?;
        let value = through(&self.v_proj_weight, &self.v_proj_weight_quantizer)?;
        match (query, key, value) {
            (Some(query), Some(key), Some(value)) => Ok([query, key, value]),
            _ => {
                let what = "needs `in_proj_weight`, or all of `q_proj_weight`, `k_proj_weight` and `v_proj_weight`";
                Err(Error::operator("MultiheadAttention", what))
            }
        }
    }

    /// The parts of a packed weight for queries, keys and values.
    fn parts(&self, packed: &Value) -> Result<[Value; 3]> {
        let embed = self.embed_dim();
        let lock = || self.parts.lock().unwrap_or_else(PoisonError::into_inner);
        if let (Value::Quantized(packed), Some(kept)) = (packed, &*lock())
            && kept.of.is_same(packed)
        {
            return Ok(kept.parts.clone());
        }
        let part = |at: usize| packed.narrow(0, at * embed, embed);
        let parts = [part(0)?, part(1)?, part(2)?];
        *lock() = match packed {
            Value::Quantized(packed) if flags::is_inference() => {
                Some(Parts { of: packed.clone(), parts: parts.clone() })
            }
            _ => None,
        };
        Ok(parts)
    }

    /// `[.., length, embed]` as `[.., heads, length, embed / heads]`.
    fn split(&self, x: &Value) -> Result<Value> {
        let width = self.embed_dim() / self.num_heads;
        let mut shape = x.dims().to_vec();
        shape.pop();
        shape.extend([self.num_heads, width]);
        x.reshape(&shape)?.transpose(-3, -2)
    }
}

/// `[.., heads, length, width]` as `[.., length, heads · width]`.
fn join(x: &Value) -> Result<Value> {
    let x = x.transpose(-3, -2)?;
    let mut shape = x.dims().to_vec();
    let width = shape.pop().unwrap_or(1);
    let heads = shape.pop().unwrap_or(1);
    shape.push(heads * width);
    x.reshape(&shape)
}

impl Layer for MultiheadAttention {
    /// Self-attention without a mask.
    fn forward(&self, x: &Value) -> Result<Value> {
        self.attend(x, x, x, &AttentionMask::None)
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device, Tensor};

    use super::*;
    use crate::quantization::{LinearQuantizer, LinearQuantizerConfig};
    use crate::range_setting::{EstimationOptions, EstimatorConfig, estimate_ranges};

    #[test]
    fn parts_of_a_packed_weight_are_kept_as_long_as_the_weight() {
        let matrix = |rows: usize| {
            let values = (0..rows * 4).map(|i| (i as f32 * 0.7).sin()).collect::<Vec<_>>();
            Tensor::from_vec(values, (rows, 4), &Device::Cpu).unwrap()
        };
        let out_proj = Linear::from_tensors(matrix(4), None).unwrap();
        let weight = Param::new(matrix(12));
        let packed = InProjection::Packed(weight.clone());
        let layer = MultiheadAttention::from_params(2, packed, None, out_proj).unwrap();
        let slot = layer.in_proj_weight_quantizer.clone().unwrap();
        let quantizer = LinearQuantizer::new(LinearQuantizerConfig::new(8)).unwrap();
        slot.replace(std::sync::Arc::new(quantizer));
        {
            let options = EstimationOptions::default();
            let config = EstimatorConfig::running_minmax();
            let guard = estimate_ranges(&layer, config, options).unwrap();
            layer.weights().unwrap();
            guard.finish().unwrap();
        }
        let parts = || layer.weights().unwrap().map(|part| part.as_quantized().unwrap().clone());
        let same = |a: &[QuantizedTensor; 3], b: &[QuantizedTensor; 3]| {
            a.iter().zip(b).all(|(a, b)| a.is_same(b))
        };
        assert!(!same(&parts(), &parts()), "nothing is kept while gradients are recorded");
        let _constants = flags::inference();
        let first = parts();
        assert!(same(&first, &parts()));
        let whole = weight.quantized(&slot).unwrap().dequantize().unwrap();
        for (at, part) in first.iter().enumerate() {
            let expected = whole.narrow(0, at * 4, 4).unwrap().to_vec2::<f32>().unwrap();
            assert_eq!(part.dequantize().unwrap().to_vec2::<f32>().unwrap(), expected);
        }
        weight.set(&Tensor::zeros((12, 4), DType::F32, &Device::Cpu).unwrap()).unwrap();
        let zeros = parts();
        assert!(!same(&first, &zeros));
        assert!(zeros[2].dequantize().unwrap().to_vec2::<f32>().unwrap() == [[0.0; 4]; 4]);
    }
}
