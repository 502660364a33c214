//! Handing weights to the engine without another copy.

use rten::ModelOptions;

use crate::dtype::DType;
use crate::proto::{GraphProto, StringStringEntryProto, tensor_proto};

/// Smaller constants stay in the message.
const MIN_BYTES: usize = 4096;

/// Moves the large constants of `graph` out of the message into buffers of
/// their own. The engine uses such a buffer as it is, and the message stays
/// below the 2 GiB that its encoding allows.
pub(super) fn move_weights(graph: &mut GraphProto, options: &mut ModelOptions) {
    let mut count = 0;
    move_from(graph, options, &mut count);
}

fn move_from(graph: &mut GraphProto, options: &mut ModelOptions, count: &mut usize) {
    for tensor in &mut graph.initializer {
        let is_plain = [DType::F32, DType::I32, DType::U8, DType::I8]
            .iter()
            .any(|dtype| dtype.to_onnx() == tensor.data_type());
        let Some(raw) = tensor.raw_data.take_if(|raw| is_plain && raw.len() >= MIN_BYTES) else {
            continue;
        };
        // The engine takes nothing but names that end so.
        let location = format!("weight{count}.data");
        *count += 1;
        let entry = |key: &str, value: String| StringStringEntryProto {
            key: Some(key.to_owned()),
            value: Some(value),
        };
        tensor.external_data = vec![
            entry("location", location.clone()),
            entry("offset", "0".to_owned()),
            entry("length", raw.len().to_string()),
        ];
        tensor.data_location = Some(tensor_proto::DataLocation::External as i32);
        options.external_data(&location, Vec::from(raw));
    }
    for attribute in graph.node.iter_mut().flat_map(|node| &mut node.attribute) {
        for nested in attribute.g.iter_mut().chain(&mut attribute.graphs) {
            move_from(nested, options, count);
        }
    }
}
