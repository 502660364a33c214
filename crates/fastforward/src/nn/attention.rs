//! Scaled dot-product attention with a quantizer at every step.

use candle_core::{D, DType, Tensor};

use super::functional as F;
use crate::Module;
use crate::quantization::quantizer::{QuantizerMetadata, QuantizerSlot};
use crate::tensor::{Apply, Error, Output, Result, Value};

/// Which keys a query may attend to.
#[derive(Clone, Debug, Default)]
pub enum AttentionMask {
    /// All of them.
    #[default]
    None,
    /// Those at its own position and before: key `j` for query `i` if `j <= i`.
    Causal,
    /// Those where an integer tensor, which broadcasts to `[.., queries, keys]`, is not zero. This is a boolean mask of torch's
    /// `scaled_dot_product_attention`; the masks of its `MultiheadAttention` say the opposite.
    Keep(Tensor),
    /// All of them, with a float tensor, which broadcasts to `[.., queries, keys]`, added to the scores.
    Add(Tensor),
}

/// The settings of [`scaled_dot_product_attention`]; [`Default`] is torch's.
#[derive(Clone, Debug)]
pub struct AttentionOptions {
    /// Which keys a query may attend to.
    pub mask: AttentionMask,
    /// The factor of the scores; `None` is one over the root of the width of a query.
    pub scale: Option<f64>,
    /// Zeros at random among the weights of the keys, if any.
    pub dropout: Option<AttentionDropout>,
    /// Whether keys and values may have fewer heads (axis -3) than the queries, each serving as many queries in a row.
    pub enable_gqa: bool,
    /// What stands for minus infinity in the mask. A finite number, if the mask or the masked scores are quantized.
    pub neg_inf: f64,
    /// The type that `f16` and `bf16` are computed in; `None` is their own.
    pub upcast: Option<DType>,
}

/// Which keys are dropped: each with probability `p`, by this seed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AttentionDropout {
    /// The probability.
    pub p: f64,
    /// Says together with the place which are dropped.
    pub seed: u64,
}

impl Default for AttentionOptions {
    fn default() -> Self {
        Self {
            mask: AttentionMask::None,
            scale: None,
            dropout: None,
            enable_gqa: false,
            neg_inf: f64::NEG_INFINITY,
            upcast: Some(DType::F32),
        }
    }
}

/// The places for quantizers in [`scaled_dot_product_attention`]; those left out do nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct AttentionSlots<'a> {
    /// The queries times the root of the scale.
    pub scaled_query: Option<&'a QuantizerSlot>,
    /// The keys, transposed, times the root of the scale.
    pub scaled_key: Option<&'a QuantizerSlot>,
    /// Queries times keys.
    pub attn_scores: Option<&'a QuantizerSlot>,
    /// The mask as it is added to the scores.
    pub attn_mask: Option<&'a QuantizerSlot>,
    /// Their sum.
    pub masked_scores: Option<&'a QuantizerSlot>,
    /// Its softmax: the probabilities of the keys.
    pub attn_weights: Option<&'a QuantizerSlot>,
    /// The same after dropout.
    pub dropout: Option<&'a QuantizerSlot>,
    /// What comes out.
    pub output: Option<&'a QuantizerSlot>,
}

/// `softmax(scale · query · keyᵀ + mask) · value`, with a quantizer at every step (spec §5.6).
///
/// `query` is `[.., queries, width]`, `key` is `[.., keys, width]`, `value` is `[.., keys, out]`, and the output is
/// `[.., queries, out]`; leading axes broadcast. The steps are:
///
/// 1. `f16` and `bf16` become [`upcast`](AttentionOptions::upcast), and what comes out is cast back before it is quantized.
/// 2. `query` and `keyᵀ` are each multiplied by the root of the scale, then with each other: the scores.
/// 3. The mask is added: 0 where a key may be attended to, [`neg_inf`](AttentionOptions::neg_inf) where not. Without a mask
///    nothing is added, unless a slot for the mask or the masked scores is filled: then zeros are.
/// 4. Softmax over the keys. A query that may attend to no key has the probability 0 for each, and so an output of 0, not NaN.
/// 5. Dropout, if asked for; then the product with `value`.
///
/// All of it is differentiable. In strict mode the products take quantized operands; mask and softmax do not ask for any, so
/// that the minus infinity of a mask need not fit on a grid. Beyond the reference, a query whose whole mask is `neg_inf` also
/// attends to nothing where quantized scores or a finite `neg_inf` hide that, and keys shared by several heads stay quantized
/// if their granularity allows.
///
/// ```
/// use candle_core::{Device, Tensor};
/// use fastforward::nn::functional::{AttentionMask, AttentionOptions, AttentionSlots, scaled_dot_product_attention};
/// use fastforward::tensor::Value;
///
/// let x = Value::from(Tensor::new(&[[1f32, 0.0], [0.0, 1.0]], &Device::Cpu)?);
/// let nothing = Tensor::new(&[[1u8, 0], [0, 0]], &Device::Cpu)?; // the second query attends to nothing
/// let options = AttentionOptions { mask: AttentionMask::Keep(nothing), ..Default::default() };
/// let _lenient = fastforward::flags::strict_quantization(false); // no quantizers
/// let y = scaled_dot_product_attention(&x, &x, &x, &options, &AttentionSlots::default())?;
/// assert_eq!(y.dequantize()?.to_vec2::<f32>()?, [[1.0, 0.0], [0.0, 0.0]]);
/// # Ok::<(), fastforward::tensor::Error>(())
/// ```
///
/// # Errors
/// [`ErrorKind::Operator`](crate::ErrorKind::Operator) when shapes or types do not fit, or the scale is negative;
/// [`ErrorKind::Strict`](crate::ErrorKind::Strict) as strict mode says; what a quantizer reports.
pub fn scaled_dot_product_attention(
    query: &Value,
    key: &Value,
    value: &Value,
    options: &AttentionOptions,
    slots: &AttentionSlots<'_>,
) -> Result<Value> {
    let scale = check(query, key, value, options)?;
    let narrow = matches!(query.dtype(), DType::F16 | DType::BF16).then(|| query.dtype());
    let wide = narrow.and(options.upcast).filter(|wide| Some(*wide) != narrow);
    let [query, key, value] = match wide {
        Some(wide) => {
            [query.to_dtype(wide)?.into(), key.to_dtype(wide)?.into(), value.to_dtype(wide)?.into()]
        }
        None => [query.clone(), key.clone(), value.clone()],
    };
    let (key, value) = match options.enable_gqa {
        true => (repeat_heads(&key, &query)?, repeat_heads(&value, &query)?),
        false => (key, value),
    };

    let query = F::mul(&query, scale.sqrt(), slots.scaled_query)?;
    let key = F::mul(&key.transpose(-2, -1)?, scale.sqrt(), slots.scaled_key)?;
    let scores = F::matmul(&query, &key, slots.attn_scores)?;
    let (masked, mask) = add_mask(scores, options, slots)?;
    let weights = safe_softmax(&masked, mask.as_ref(), options.neg_inf, slots.attn_weights)?;
    let weights = match &options.dropout {
        Some(dropout) => F::dropout(&weights, dropout.p, true, dropout.seed, slots.dropout)?,
        None => weights,
    };
    let (Some(narrow), Some(_)) = (narrow, wide) else {
        return F::matmul(&weights, &value, slots.output);
    };
    // Cast before it is quantized, so that what comes out is quantized if the slot is filled.
    let strict = slots.output.and_then(QuantizerSlot::strictness);
    let place = QuantizerSlot::output();
    let output = strict.map_or(Output::from(&place), |strict| Output::from(&place).strict(strict));
    let product: Value = F::matmul(&weights, &value, output)?.to_dtype(narrow)?.into();
    slots.output.map_or(Ok(product.clone()), |slot| slot.apply(&product))
}

/// Checks shapes, types and settings; returns the scale.
fn check(query: &Value, key: &Value, value: &Value, options: &AttentionOptions) -> Result<f64> {
    let wrong = |what: String| Err(Error::operator("scaled_dot_product_attention", what));
    let (q, k, v) = (query.dims(), key.dims(), value.dims());
    let ([.., width], [.., n_keys, key_width], [.., n_values, _], true) = (q, k, v, q.len() > 1)
    else {
        return wrong(format!("query {q:?}, key {k:?} and value {v:?} must have two axes or more"));
    };
    if width != key_width || n_keys != n_values {
        return wrong(format!(
            "query {q:?}, key {k:?} and value {v:?} do not fit: query and key must have the same last axis, key and value the \
             same one before it"
        ));
    }
    let types = [query.dtype(), key.dtype(), value.dtype()];
    if types.iter().any(|dtype| *dtype != types[0]) {
        return wrong(format!("query, key and value have types {types:?}, expected one"));
    }
    let scale = options.scale.unwrap_or_else(|| 1.0 / (*width as f64).sqrt());
    if scale < 0.0 || scale.is_nan() {
        return wrong(format!("the scale is {scale}, expected a number that is not negative"));
    }
    Ok(scale)
}

/// Each head of `x` (axis -3) as often in a row as `query` has heads for it.
fn repeat_heads(x: &Value, query: &Value) -> Result<Value> {
    let (dims, q) = (x.dims(), query.dims());
    let wrong = || {
        Error::operator(
            "scaled_dot_product_attention",
            format!(
                "the heads of {dims:?} do not divide those of the query {q:?}, axis -3 of both"
            ),
        )
    };
    let ([leading @ .., heads, length, width], [.., n_query_heads, _, _]) = (dims, q) else {
        return Err(wrong());
    };
    if *heads == 0 || !n_query_heads.is_multiple_of(*heads) {
        return Err(wrong());
    }
    let times = n_query_heads / heads;
    if times == 1 {
        return Ok(x.clone());
    }
    let repeated = [leading, &[*heads, times, *length, *width]].concat();
    let joined = [leading, &[*n_query_heads, *length, *width]].concat();
    x.unsqueeze(leading.len() as isize + 1)?.expand(&repeated)?.reshape(&joined)
}

/// The scores with the mask added, and the mask.
fn add_mask(
    scores: Value,
    options: &AttentionOptions,
    slots: &AttentionSlots<'_>,
) -> Result<(Value, Option<Tensor>)> {
    let Some(mask) = mask_to_add(&scores, options)? else {
        let idle = |slot: Option<&QuantizerSlot>| {
            slot.is_none_or(|slot| slot.is_stub() && slot.override_count() == 0)
        };
        if idle(slots.attn_mask) && idle(slots.masked_scores) {
            return Ok((scores, None));
        }
        let zeros = zeros_like(&scores.dequantize()?)?;
        return Ok((add_through_slots(&scores, &zeros, slots)?, None));
    };
    Ok((add_through_slots(&scores, &mask, slots)?, Some(mask)))
}

fn add_through_slots(scores: &Value, mask: &Tensor, slots: &AttentionSlots<'_>) -> Result<Value> {
    let mask = match slots.attn_mask {
        Some(slot) => slot.apply(&mask.into())?,
        None => mask.into(),
    };
    F::add(scores, &mask, 1.0, Output::from(slots.masked_scores).strict(false))
}

/// What is added to the scores, if there is a mask.
fn mask_to_add(scores: &Value, options: &AttentionOptions) -> Result<Option<Tensor>> {
    let dtype = scores.dtype();
    let &[.., n_queries, n_keys] = scores.dims() else { return Ok(None) };
    let keep = match &options.mask {
        AttentionMask::None => return Ok(None),
        AttentionMask::Add(mask) => return Ok(Some(mask.to_dtype(dtype)?)),
        AttentionMask::Keep(keep) if keep.dtype().is_int() => keep.ne(0.0)?,
        AttentionMask::Keep(keep) => {
            let what = format!(
                "a mask that says which keys to keep must be of integers, found {:?}; one to add to the scores is \
                 `AttentionMask::Add`",
                keep.dtype()
            );
            return Err(Error::operator("scaled_dot_product_attention", what));
        }
        AttentionMask::Causal => {
            let of = |query: usize| (0..n_keys).map(move |key| u8::from(key <= query));
            let keep: Vec<u8> = (0..n_queries).flat_map(of).collect();
            Tensor::from_vec(keep, (n_queries, n_keys), &device(scores)?)?
        }
    };
    let number = |number: f64| -> Result<Tensor> {
        Ok(Tensor::new(number, keep.device())?.to_dtype(dtype)?.broadcast_as(keep.shape())?)
    };
    Ok(Some(keep.where_cond(&number(0.0)?, &number(options.neg_inf)?)?))
}

/// Softmax over the last axis, with zeros in the rows that are masked altogether.
fn safe_softmax(
    masked: &Value,
    mask: Option<&Tensor>,
    neg_inf: f64,
    slot: Option<&QuantizerSlot>,
) -> Result<Value> {
    let scores = masked.dequantize()?;
    let Some(dead) = masked_rows(&scores, mask, neg_inf)? else {
        return F::softmax(masked, -1, None, Output::from(slot).strict(false));
    };
    let dead = dead.broadcast_as(scores.shape())?;
    let zeros = zeros_like(&scores)?;
    // Zeros go in too: the gradient of a row of minus infinities would be NaN.
    let live = dead.where_cond(&zeros, &scores)?;
    let weights = F::softmax(&live.into(), -1, None, Output::none().strict(false))?.dequantize()?;
    let weights: Value = dead.where_cond(&zeros, &weights)?.into();
    slot.map_or(Ok(weights.clone()), |slot| slot.apply(&weights))
}

/// Which rows are masked altogether, not zero where they are; `None` if there are none. Rows with a NaN are not.
fn masked_rows(scores: &Tensor, mask: Option<&Tensor>, neg_inf: f64) -> Result<Option<Tensor>> {
    if scores.elem_count() == 0 {
        return Ok(None);
    }
    let whole_rows = |x: &Tensor| x.detach().le(neg_inf)?.min_keepdim(D::Minus1);
    let mut dead = whole_rows(scores)?;
    if let Some(mask) = mask.filter(|mask| mask.rank() > 0) {
        dead = dead.broadcast_add(&whole_rows(mask)?)?;
    }
    let any = dead.flatten_all()?.max(0)?.to_scalar::<u8>()? > 0;
    Ok(any.then_some(dead))
}

fn zeros_like(x: &Tensor) -> Result<Tensor> {
    Ok(Tensor::zeros(x.shape(), x.dtype(), x.device())?)
}

fn device(x: &Value) -> Result<candle_core::Device> {
    Ok(match x {
        Value::Float(tensor) => tensor.device().clone(),
        Value::Quantized(tensor) => tensor.device().clone(),
    })
}

/// [`scaled_dot_product_attention`](super::functional::scaled_dot_product_attention) as a module with a slot for each of its
/// steps: what a model with projections of its own holds.
///
/// What the steps produce is in turn an operand of the next, so that rules for inputs as well as for outputs should reach it:
/// scores, probabilities and output answer to both. The slots that few need answer to neither.
///
/// | slot | tags |
/// |---|---|
/// | `scaled_query_quantizer`, `scaled_key_quantizer` | `attention/scaled` |
/// | `attn_scores_quantizer` | `activation/output`, `attention/scores` |
/// | `attn_mask_quantizer` | `attention/mask` |
/// | `masked_scores_quantizer` | `attention/masked_scores` |
/// | `attn_weights_quantizer` | `activation/input`, `activation/output`, `attention/probabilities` |
/// | `dropout_quantizer` | `attention/dropout` |
/// | `output_quantizer` | `activation/output` |
#[derive(Module, Debug)]
#[module(class = fastforward::module::classes::scaled_dot_product_attention())]
pub struct ScaledDotProductAttention {
    /// For the queries times the root of the scale.
    pub scaled_query_quantizer: QuantizerSlot,
    /// For the transposed keys times the root of the scale.
    pub scaled_key_quantizer: QuantizerSlot,
    /// For queries times keys.
    pub attn_scores_quantizer: QuantizerSlot,
    /// For the mask as it is added to the scores.
    pub attn_mask_quantizer: QuantizerSlot,
    /// For scores and mask added.
    pub masked_scores_quantizer: QuantizerSlot,
    /// For the probabilities of the keys.
    pub attn_weights_quantizer: QuantizerSlot,
    /// For the same after dropout.
    pub dropout_quantizer: QuantizerSlot,
    /// `activation/output`
    pub output_quantizer: QuantizerSlot,
}

impl ScaledDotProductAttention {
    /// Attention with empty slots.
    pub fn new() -> Self {
        let slot = |tags: &[&str]| {
            let tags = tags
                .iter()
                .fold(QuantizerMetadata::default(), |metadata, tag| metadata.with_tag(*tag));
            QuantizerSlot::new(tags)
        };
        Self {
            scaled_query_quantizer: slot(&["attention/scaled"]),
            scaled_key_quantizer: slot(&["attention/scaled"]),
            attn_scores_quantizer: slot(&["activation/output", "attention/scores"]),
            attn_mask_quantizer: slot(&["attention/mask"]),
            masked_scores_quantizer: slot(&["attention/masked_scores"]),
            attn_weights_quantizer: slot(&[
                "activation/input",
                "activation/output",
                "attention/probabilities",
            ]),
            dropout_quantizer: slot(&["attention/dropout"]),
            output_quantizer: QuantizerSlot::output(),
        }
    }

    /// The slots as the function takes them.
    pub fn slots(&self) -> AttentionSlots<'_> {
        AttentionSlots {
            scaled_query: Some(&self.scaled_query_quantizer),
            scaled_key: Some(&self.scaled_key_quantizer),
            attn_scores: Some(&self.attn_scores_quantizer),
            attn_mask: Some(&self.attn_mask_quantizer),
            masked_scores: Some(&self.masked_scores_quantizer),
            attn_weights: Some(&self.attn_weights_quantizer),
            dropout: Some(&self.dropout_quantizer),
            output: Some(&self.output_quantizer),
        }
    }

    /// [`scaled_dot_product_attention`](super::functional::scaled_dot_product_attention) through these slots.
    ///
    /// # Errors
    /// Those of the function.
    pub fn forward(
        &self,
        query: &Value,
        key: &Value,
        value: &Value,
        options: &AttentionOptions,
    ) -> Result<Value> {
        scaled_dot_product_attention(query, key, value, options, &self.slots())
    }
}

impl Default for ScaledDotProductAttention {
    fn default() -> Self {
        Self::new()
    }
}
