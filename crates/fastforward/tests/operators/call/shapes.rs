//! Arrangement, reductions, creation, look-ups.

use fastforward::tensor::Result;
use fastforward::tensor::float::{self, Embedding};

use super::Outcome;
use crate::arguments::Arguments;

pub fn call(op: &str, a: &Arguments) -> Option<Result<Outcome>> {
    let input = || a.tensor("input");
    let dim = || a.integer("dim");
    let result = match op {
        "permute" => float::permute(input(), &a.integers("dims").expect("given")),
        "cat" => {
            let tensors: Vec<_> = a.tensors("tensors").iter().collect();
            float::cat(&tensors, dim().unwrap_or(0))
        }
        "index_add" => float::index_add(
            input(),
            dim().expect("given"),
            a.tensor("index"),
            a.tensor("source"),
            a.number("alpha").unwrap_or(1.0),
        ),
        "sum" => float::sum(input(), dim(), false),
        "cumsum" => float::cumsum(input(), dim().expect("given")),
        "ones_like" => float::ones_like(input(), a.dtype("dtype")),
        "zeros_like" => float::zeros_like(input(), a.dtype("dtype")),
        "empty_like" => float::empty_like(input(), a.dtype("dtype")),
        "full_like" => {
            float::full_like(input(), a.number("fill_value").expect("given"), a.dtype("dtype"))
        }
        "embedding" => return Some(embedding(a)),
        _ => return None,
    };
    Some(result.map(Outcome::from))
}

/// The table is changed in place where rows are longer than `max_norm`.
fn embedding(a: &Arguments) -> Result<Outcome> {
    let (options, weight) = (embedding_options(a), a.tensor("weight"));
    let mut outcome = Outcome::from(float::embedding(a.tensor("input"), weight, &options)?);
    if options.max_norm.is_some() {
        outcome.updated.insert("weight", weight.clone());
    }
    Ok(outcome)
}

/// The settings of a look-up.
pub fn embedding_options(a: &Arguments) -> Embedding {
    let default = Embedding::default();
    Embedding {
        padding_idx: a.integer("padding_idx"),
        max_norm: a.number("max_norm"),
        norm_type: a.number("norm_type").unwrap_or(default.norm_type),
        scale_grad_by_freq: a.flag("scale_grad_by_freq").unwrap_or(default.scale_grad_by_freq),
        sparse: a.flag("sparse").unwrap_or(default.sparse),
    }
}
