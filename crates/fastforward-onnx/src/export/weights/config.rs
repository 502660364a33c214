//! What loaders of compressed-tensors are told about the weights.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::Packed;
use crate::tree::{Role, Site, Tree};

/// What `config.json` shall say: a group of modules for each way to quantize, and the linear layers that stay in float.
pub(super) fn config(tree: &Tree, packed: &BTreeMap<String, Packed<'_>>) -> Value {
    let module = |name: &str| name.rsplit_once('.').map_or(name, |(module, _)| module).to_owned();
    let mut groups: BTreeMap<(u32, bool, Option<usize>, bool), Vec<String>> = BTreeMap::new();
    for (name, one) in packed {
        let columns = one.shape()[1];
        let group = one.group.filter(|&group| group != columns);
        let key = (one.bits(), one.is_symmetric(), group, one.group.is_none());
        groups.entry(key).or_default().push(module(name));
    }
    let groups: serde_json::Map<String, Value> = groups
        .into_iter()
        .enumerate()
        .map(|(at, ((num_bits, symmetric, group_size, per_tensor), targets))| {
            let strategy = match (per_tensor, group_size) {
                (true, _) => "tensor",
                (false, None) => "channel",
                (false, Some(_)) => "group",
            };
            let weights = json!({
                "num_bits": num_bits,
                "type": "int",
                "symmetric": symmetric,
                "strategy": strategy,
                "group_size": group_size,
                "dynamic": false,
            });
            let group = json!({
                "targets": targets,
                "weights": weights,
                "input_activations": null,
                "output_activations": null,
            });
            (format!("group_{at}"), group)
        })
        .collect();
    let stays = |site: &&Site| {
        site.slot.is_stub()
            && site.role == Role::Weight
            && site.slot.metadata().shape().is_some_and(|shape| shape.len() == 2)
    };
    let ignore: Vec<String> =
        tree.sites().iter().filter(stays).map(|site| module(&site.value)).collect();
    json!({
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "config_groups": groups,
        "ignore": ignore,
        "kv_cache_scheme": null,
    })
}
