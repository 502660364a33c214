//! What the operators refuse although PyTorch computes it: one table, each row with its reason.

use candle_core::Tensor;

use crate::cases::{Case, Tensors};

/// Cases of an operator that end in an error.
pub struct Refusal {
    pub op: &'static str,
    /// A property of the case, never its name.
    pub when: fn(&Arguments) -> bool,
    pub reason: &'static str,
    /// What the error says among other things.
    pub message: &'static str,
}

/// What a [`Refusal`] may look at.
pub struct Arguments<'a> {
    pub case: &'a Case,
    tensors: &'a Tensors,
}

/// Rows whose case does not end in such an error, or that meet no case, fail the test.
pub const TABLE: &[Refusal] = &[
    Refusal {
        op: "matmul",
        when: |a| a.is_integer("input"),
        reason: "products of integers are those of codes, which are no candle tensors",
        message: "an operand has dtype i64",
    },
    Refusal {
        op: "embedding",
        when: |a| a.case.attributes.contains_key("sparse"),
        reason: "candle has no sparse tensors, hence no sparse gradients",
        message: "sparse gradients are not supported",
    },
    Refusal {
        op: "relu",
        when: |a| a.is_integer("input"),
        reason: "activations are of floats",
        message: "an operand has dtype i64",
    },
];

impl Refusal {
    pub fn covers(&self, case: &Case, tensors: &Tensors) -> bool {
        self.op == case.op && (self.when)(&Arguments { case, tensors })
    }
}

impl Arguments<'_> {
    /// The tensor of an operand, or the first of a sequence.
    pub fn operand(&self, name: &str) -> Option<&Tensor> {
        let keys = self.case.operands.get(name)?;
        keys.list().first().map(|key| self.tensors.get(key))
    }

    /// Whether an operand holds integers.
    pub fn is_integer(&self, name: &str) -> bool {
        self.operand(name).is_some_and(|tensor| tensor.dtype().is_int())
    }
}
