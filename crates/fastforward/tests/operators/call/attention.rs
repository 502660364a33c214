//! Rotary embedding.

use fastforward::tensor::Result;
use fastforward::tensor::float;

use super::Outcome;
use crate::arguments::Arguments;

pub fn call(op: &str, a: &Arguments) -> Option<Result<Outcome>> {
    let result = match op {
        "rotary_embedding" => {
            let interleaved = a.flag("interleaved").expect("given");
            float::rotary(a.tensor("input"), a.tensor("cos"), a.tensor("sin"), interleaved)
        }
        _ => return None,
    };
    Some(result.map(Outcome::from))
}
