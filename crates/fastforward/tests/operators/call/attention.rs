//! Attention and rotary embedding.

use candle_core::Tensor;
use fastforward::flags;
use fastforward::nn::functional::{
    AttentionMask, AttentionOptions, AttentionSlots, scaled_dot_product_attention,
};
use fastforward::tensor::{Result, Value, float};

use super::Outcome;
use crate::arguments::Arguments;

pub fn call(op: &str, a: &Arguments) -> Option<Result<Outcome>> {
    let result = match op {
        "rotary_embedding" => {
            let interleaved = a.flag("interleaved").expect("given");
            float::rotary(a.tensor("input"), a.tensor("cos"), a.tensor("sin"), interleaved)
        }
        "scaled_dot_product_attention" => attention(a),
        _ => return None,
    };
    Some(result.map(Outcome::from))
}

/// Boolean masks are integers in the data.
fn attention(a: &Arguments) -> Result<Tensor> {
    let [query, key, value] = ["query", "key", "value"].map(|name| Value::from(a.tensor(name)));
    let mask = match a.optional("attn_mask") {
        Some(mask) if mask.dtype().is_int() => AttentionMask::Keep(mask.clone()),
        Some(mask) => AttentionMask::Add(mask.clone()),
        None if a.flag("is_causal") == Some(true) => AttentionMask::Causal,
        None => AttentionMask::None,
    };
    let options = AttentionOptions {
        mask,
        scale: a.number("scale"),
        enable_gqa: a.flag("enable_gqa").unwrap_or(false),
        ..AttentionOptions::default()
    };
    let _lenient = flags::strict_quantization(false);
    let slots = AttentionSlots::default();
    scaled_dot_product_attention(&query, &key, &value, &options, &slots)?.dequantize()
}
