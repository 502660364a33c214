//! Granularities as the golden files write them.

use fastforward::quantization::Granularity;
use serde_json::Value;

use crate::golden::integers;

/// Reads a granularity object.
pub fn granularity(value: &Value) -> Granularity {
    match value["kind"].as_str() {
        Some("per_tensor") => Granularity::PerTensor,
        Some("per_channel") => Granularity::PerChannel { axes: integers(&value["axes"]) },
        Some("per_block") => Granularity::PerBlock {
            dims: integers(&value["block_dims"]),
            sizes: integers(&value["block_sizes"]),
            per_channel_dims: integers(&value["per_channel_dims"]),
        },
        Some("per_tile") => Granularity::PerTile { shape: integers(&value["tile_shape"]) },
        other => panic!("granularity {other:?}"),
    }
}
