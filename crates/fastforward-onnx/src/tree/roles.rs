//! What each operator does with its inputs, as data.

use crate::proto::NodeProto;

/// What a value is to the node that reads or writes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Role {
    /// A constant that the operator multiplies with: `parameter/weight`.
    Weight,
    /// A constant that is added to the result: `parameter/bias`.
    Bias,
    /// Another constant operand: `parameter/constant`.
    Constant,
    /// A computed operand: `activation/input`.
    Input,
    /// A result: `activation/output`.
    Output,
}

impl Role {
    /// `weight`, `bias`, `constant`, `input` or `output`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Weight => "weight",
            Self::Bias => "bias",
            Self::Constant => "constant",
            Self::Input => "input",
            Self::Output => "output",
        }
    }
}

/// The quantizable inputs and outputs of one operator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct OpRoles {
    /// What input `i` is; inputs beyond the list are `rest`.
    inputs: &'static [Option<OperandRole>],
    rest: Option<OperandRole>,
    /// Whether output 0 can be quantized.
    pub(super) output: bool,
}

/// What an operand is, depending on whether it is a constant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct OperandRole {
    computed: Option<Role>,
    constant: Option<Role>,
}

impl OperandRole {
    pub(super) fn of(self, is_constant: bool) -> Option<Role> {
        if is_constant { self.constant } else { self.computed }
    }
}

const DATA: Option<OperandRole> =
    Some(OperandRole { computed: Some(Role::Input), constant: Some(Role::Constant) });
/// A weight if constant, else an operand like any other (`MatMul` of two activations).
const WEIGHT: Option<OperandRole> =
    Some(OperandRole { computed: Some(Role::Input), constant: Some(Role::Weight) });
/// A weight if constant; computed weights are left alone.
const ONLY_WEIGHT: Option<OperandRole> =
    Some(OperandRole { computed: None, constant: Some(Role::Weight) });
const BIAS: Option<OperandRole> = Some(OperandRole { computed: None, constant: Some(Role::Bias) });
/// Data that is quantized only where it is computed.
const ACTIVATION: Option<OperandRole> =
    Some(OperandRole { computed: Some(Role::Input), constant: None });

const fn op(inputs: &'static [Option<OperandRole>], output: bool) -> OpRoles {
    OpRoles { inputs, rest: None, output }
}

/// The roles of an operator's operands; `None` for operators that move data, compute shapes, or are unknown. Their
/// values are carried through untouched.
pub(super) fn roles(node: &NodeProto) -> Option<OpRoles> {
    if !matches!(node.domain(), "" | "ai.onnx") {
        return None;
    }
    Some(match node.op_type() {
        "Conv" | "ConvTranspose" => op(&[ACTIVATION, ONLY_WEIGHT, BIAS], true),
        "Gemm" => op(&[ACTIVATION, WEIGHT, BIAS], true),
        "MatMul" => op(&[WEIGHT, WEIGHT], true),
        "LayerNormalization"
        | "GroupNormalization"
        | "InstanceNormalization"
        | "RMSNormalization" => op(&[ACTIVATION, ONLY_WEIGHT, BIAS], true),
        // The statistics are not quantized: fold the normalization, or leave it in float.
        "BatchNormalization" => op(&[ACTIVATION], true),
        "PRelu" => op(&[ACTIVATION, ONLY_WEIGHT], true),
        "LSTM" | "GRU" | "RNN" => op(&[ACTIVATION, ONLY_WEIGHT, ONLY_WEIGHT, BIAS], true),
        // An embedding: the table is the weight. Gathering from computed data only moves it.
        "Gather" => op(&[ONLY_WEIGHT], false),
        "Add" | "Sub" | "Mul" | "Div" | "Max" | "Min" | "Sum" | "Mean" | "Concat" => {
            OpRoles { inputs: &[], rest: DATA, output: true }
        }
        "Pow" => op(&[ACTIVATION], true),
        "Einsum" => OpRoles { inputs: &[], rest: WEIGHT, output: true },
        "Relu" | "LeakyRelu" | "Clip" | "Sigmoid" | "HardSigmoid" | "HardSwish" | "Tanh"
        | "Elu" | "Celu" | "Selu" | "Softplus" | "Softsign" | "ThresholdedRelu" | "Gelu"
        | "Mish" | "Swish" | "Erf" | "Exp" | "Log" | "Sqrt" | "Reciprocal" | "Neg" | "Abs"
        | "Sin" | "Cos" | "Softmax" | "LogSoftmax" | "MaxPool" | "AveragePool"
        | "GlobalAveragePool" | "GlobalMaxPool" | "LpPool" | "ReduceMean" | "ReduceSum"
        | "ReduceMax" | "ReduceMin" | "ReduceL2" | "Resize" | "Upsample" | "Pad" => {
            op(&[ACTIVATION], true)
        }
        _ => return None,
    })
}

impl OpRoles {
    pub(super) fn input(self, position: usize) -> Option<OperandRole> {
        self.inputs.get(position).copied().unwrap_or(self.rest)
    }
}

/// The axis of a weight along which output channels lie, if the operator has such.
pub(super) fn channel_axis(node: &NodeProto, position: usize, rank: usize) -> Option<usize> {
    match (node.op_type(), position) {
        ("Conv", 1) if rank > 0 => Some(0),
        // [in, out / group, ..]: with groups an index of axis 1 stands for one channel of each group.
        ("ConvTranspose", 1) if rank > 1 => Some(1),
        ("Gemm", 1) if rank == 2 => Some(if node.int_or("transB", 0) != 0 { 0 } else { 1 }),
        ("MatMul", 1) if rank > 1 => Some(rank - 1),
        ("MatMul", 0) if rank > 1 => Some(rank - 2),
        ("Gather", 0) if rank > 0 => Some(0),
        // [directions, gates * hidden, ..].
        ("LSTM" | "GRU" | "RNN", 1 | 2) if rank == 3 => Some(1),
        _ => None,
    }
}

/// The name of an operator in the tags `before/<op>` and `after/<op>`: `global_average_pool`.
pub(super) fn op_tag_name(op_type: &str) -> String {
    match op_type {
        "MatMul" => return "matmul".to_owned(),
        "PRelu" => return "prelu".to_owned(),
        "LSTM" | "GRU" | "RNN" => return op_type.to_lowercase(),
        _ => {}
    }
    let mut name = String::with_capacity(op_type.len() + 4);
    let mut previous_is_lower = false;
    for letter in op_type.chars() {
        if letter.is_uppercase() && previous_is_lower {
            name.push('_');
        }
        previous_is_lower = letter.is_lowercase() || letter.is_numeric();
        name.extend(letter.to_lowercase());
    }
    name
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto;

    #[test]
    fn tag_names_are_snake_case() {
        for (op, name) in [
            ("Conv", "conv"),
            ("GlobalAveragePool", "global_average_pool"),
            ("MatMul", "matmul"),
            ("LSTM", "lstm"),
            ("RMSNormalization", "rmsnormalization"),
            ("ReduceL2", "reduce_l2"),
        ] {
            assert_eq!(op_tag_name(op), name);
        }
    }

    #[test]
    fn constants_and_computed_operands_differ() {
        let add = roles(&proto::node("Add", "", &["a", "b"], &["c"])).unwrap();
        assert_eq!(add.input(7).and_then(|operand| operand.of(true)), Some(Role::Constant));
        assert_eq!(add.input(0).and_then(|operand| operand.of(false)), Some(Role::Input));
        let conv = roles(&proto::node("Conv", "", &["x", "w"], &["y"])).unwrap();
        assert_eq!(conv.input(1).and_then(|operand| operand.of(false)), None);
        assert_eq!(conv.input(3), None);
        assert!(roles(&proto::node("Reshape", "", &["x", "s"], &["y"])).is_none());
    }
}
