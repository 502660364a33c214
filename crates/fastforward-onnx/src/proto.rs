//! The messages of an ONNX file, generated from the official schema.
//!
//! The schema is `onnx-ml.proto` of the PyPI package `onnx` 1.23.2 (IR version
//! 14); `scripts/generate-onnx-proto` wrote the file. It knows every field of
//! the format: functions, training information, sparse tensors, device
//! placement, quantization annotations and metadata come through unchanged.
//!
//! What does not survive reading and writing: a field *number* that this
//! schema does not have (one that a newer IR version added), and an encoding
//! that differs from the canonical one (fields out of order, a `packed` field
//! written unpacked). [`Model::is_canonical`](crate::graph::Model::is_canonical)
//! tells whether a file had either.

#[allow(missing_docs, clippy::all)]
mod onnx;

pub use onnx::*;
pub use prost::Message;

/// An attribute holding one integer.
pub fn attribute_int(name: &str, value: i64) -> AttributeProto {
    AttributeProto {
        name: Some(name.to_owned()),
        r#type: Some(attribute_proto::AttributeType::Int as i32),
        i: Some(value),
        ..AttributeProto::default()
    }
}

/// An attribute holding a list of integers.
pub fn attribute_ints(name: &str, values: &[i64]) -> AttributeProto {
    AttributeProto {
        name: Some(name.to_owned()),
        r#type: Some(attribute_proto::AttributeType::Ints as i32),
        ints: values.to_vec(),
        ..AttributeProto::default()
    }
}

/// An attribute holding one float.
pub fn attribute_float(name: &str, value: f32) -> AttributeProto {
    AttributeProto {
        name: Some(name.to_owned()),
        r#type: Some(attribute_proto::AttributeType::Float as i32),
        f: Some(value),
        ..AttributeProto::default()
    }
}

/// An attribute holding text.
pub fn attribute_string(name: &str, value: &str) -> AttributeProto {
    AttributeProto {
        name: Some(name.to_owned()),
        r#type: Some(attribute_proto::AttributeType::String as i32),
        s: Some(value.as_bytes().to_vec()),
        ..AttributeProto::default()
    }
}

/// A node of the default operator set without attributes.
///
/// ```
/// use fastforward_onnx::proto::node;
/// let relu = node("Relu", "relu1", &["x"], &["y"]);
/// assert_eq!(relu.input, ["x"]);
/// ```
pub fn node(op_type: &str, name: &str, inputs: &[&str], outputs: &[&str]) -> NodeProto {
    NodeProto {
        op_type: Some(op_type.to_owned()),
        name: Some(name.to_owned()),
        input: inputs.iter().map(|&input| input.to_owned()).collect(),
        output: outputs.iter().map(|&output| output.to_owned()).collect(),
        ..NodeProto::default()
    }
}

impl NodeProto {
    /// The attribute called `name`.
    pub fn find_attribute(&self, name: &str) -> Option<&AttributeProto> {
        self.attribute.iter().find(|attribute| attribute.name() == name)
    }

    /// The integer attribute `name`, or `default` where it is absent.
    pub fn int_or(&self, name: &str, default: i64) -> i64 {
        self.find_attribute(name).map_or(default, |attribute| attribute.i())
    }

    /// The float attribute `name`, or `default` where it is absent.
    pub fn float_or(&self, name: &str, default: f32) -> f32 {
        self.find_attribute(name).map_or(default, |attribute| attribute.f())
    }

    /// The input at `position`, unless it is absent or left out as optional.
    pub fn input_at(&self, position: usize) -> Option<&str> {
        self.input.get(position).map(String::as_str).filter(|name| !name.is_empty())
    }

    /// Whether this is the operator `op_type` of the standard operator set.
    pub fn is_standard(&self, op_type: &str) -> bool {
        self.op_type() == op_type && matches!(self.domain(), "" | "ai.onnx")
    }

    /// How a message names this node: its name, or its first output.
    pub fn label(&self) -> &str {
        match self.name() {
            "" => {
                self.output.iter().map(String::as_str).find(|name| !name.is_empty()).unwrap_or("")
            }
            name => name,
        }
    }

    /// The graphs nested in this node, with the attribute each stands in
    /// (`then_branch` and `else_branch` of `If`, `body` of `Loop` and `Scan`).
    pub fn subgraphs(&self) -> impl Iterator<Item = (&str, &GraphProto)> {
        self.attribute.iter().flat_map(|attribute| {
            attribute.g.iter().chain(&attribute.graphs).map(|graph| (attribute.name(), graph))
        })
    }
}
