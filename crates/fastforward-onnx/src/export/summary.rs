//! What an export wrote.

use serde::{Serialize, Serializer};

use crate::graph::Model;
use crate::placement::BiasOutcome;
use crate::proto::Message;
use crate::tree::NestedGraph;

/// What was written where, and why.
#[derive(Clone, Debug, Serialize)]
pub struct ExportSummary {
    /// Bytes before and after.
    pub size: SizeChange,
    /// The constants that became integers, biases last.
    pub constants: Vec<WrittenConstant>,
    /// The activations that got a pair of nodes.
    pub activations: Vec<WrittenActivation>,
    /// What became of the biases between quantized weights and inputs.
    pub biases: Vec<BiasOutcome>,
    /// The operator set; `None` for weights without a graph.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub opset: Option<OpsetChange>,
}

/// A constant in the written file.
#[derive(Clone, Debug, Serialize)]
pub struct WrittenConstant {
    /// The sites it is quantized for.
    pub sites: Vec<String>,
    /// Its name in the model.
    pub value: String,
    /// `weight`, `bias` or `constant`.
    pub role: &'static str,
    /// The nested graphs around it, outermost first.
    #[serde(serialize_with = "as_text", skip_serializing_if = "Vec::is_empty")]
    pub graph: Vec<NestedGraph>,
    /// The name of the codes.
    pub codes: String,
    /// The name of the scale.
    pub scale: String,
    /// The name of the zero point; `None` where it is 0 and left out.
    pub zero_point: Option<String>,
    /// The name of the floats that are computed from them.
    pub dequantized: String,
    /// The type of the codes, `int8`.
    pub dtype: &'static str,
    /// The bits of the quantizer, at most those of the type.
    pub bits: u32,
    /// How many scales were written.
    pub scales: usize,
    /// The axis of the scales, where there are several.
    pub axis: Option<usize>,
    /// The size of blocks along the axis, 0 where there are none.
    pub block_size: usize,
}

/// An activation in the written file.
#[derive(Clone, Debug, Serialize)]
pub struct WrittenActivation {
    /// The sites it is quantized for.
    pub sites: Vec<String>,
    /// The value's name in the model.
    pub value: String,
    /// The name of what is quantized.
    pub source: String,
    /// The name of the codes.
    pub codes: String,
    /// The name of the scale.
    pub scale: String,
    /// The name of the zero point.
    pub zero_point: String,
    /// The name of the floats that come out.
    pub dequantized: String,
    /// The type of the codes, `uint8`.
    pub dtype: &'static str,
    /// The bits of the quantizer.
    pub bits: u32,
    /// How many scales were written.
    pub scales: usize,
    /// The axis of the scales, where there are several.
    pub axis: Option<isize>,
}

/// The operator set of a model before and after.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct OpsetChange {
    /// Of the model that was given.
    pub before: i64,
    /// Of the model that was written.
    pub after: i64,
    /// What needs the new one; empty where it did not change.
    pub reasons: Vec<String>,
    /// The nodes that were rewritten because the new set defines their operators otherwise.
    pub rewritten: Vec<String>,
}

/// Bytes of a model before and after.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct SizeChange {
    /// Bytes of all constants of the model that was given, nested graphs included.
    pub constant_bytes_before: u64,
    /// The same of the model that was written: codes, scales, zero points and what stayed in float.
    pub constant_bytes_after: u64,
    /// Bytes of the model that was given, without external data.
    pub file_bytes_before: u64,
    /// Bytes of the model that was written, without external data.
    pub file_bytes_after: u64,
}

impl SizeChange {
    pub(super) fn between(before: &Model, after: &Model) -> Self {
        Self {
            constant_bytes_before: constant_bytes(before),
            constant_bytes_after: constant_bytes(after),
            file_bytes_before: before.proto().encoded_len() as u64,
            file_bytes_after: after.proto().encoded_len() as u64,
        }
    }
}

fn constant_bytes(model: &Model) -> u64 {
    let infos = model.all_constants().filter_map(|constant| constant.info().ok());
    infos.map(|info| info.size_bytes as u64).sum()
}

fn as_text<S: Serializer>(path: &[NestedGraph], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(path.iter().map(|step| format!("{}:{}", step.node, step.attribute)))
}
