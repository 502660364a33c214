//! What the table says of an operator.

use std::fmt::Write;

use super::OPERATORS;

/// One row of the operator table.
#[derive(Debug)]
pub struct OperatorSpec {
    /// The name of its function.
    pub name: &'static str,
    /// What it computes.
    pub summary: &'static str,
    /// The names torch has for it, `F.` standing for `torch.nn.functional.`.
    pub torch: &'static [&'static str],
    /// The operands, in order.
    pub operands: &'static [OperandSpec],
    /// The names of its other settings, in order.
    pub attributes: &'static [&'static str],
    /// Whether the table of the reference has it too.
    pub in_reference: bool,
}

/// One operand.
#[derive(Debug)]
pub struct OperandSpec {
    /// Its name.
    pub name: &'static str,
    /// What it may be.
    pub role: Role,
}

/// What an operand may be, and what strict mode asks of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Quantized in strict mode.
    Quantized,
    /// Quantized in strict mode, if it is there.
    OptionalQuantized,
    /// May be absent, and float even in strict mode: a bias, which is added in high precision.
    MaybeQuantized,
    /// A number, or a value that is quantized in strict mode.
    QuantizedOrNumber,
    /// Values that are all quantized in strict mode.
    Sequence,
    /// A plain tensor: indices.
    Plain,
}

impl OperatorSpec {
    /// Whether torch knows the operator under this name.
    pub fn answers_to(&self, name: &str) -> bool {
        self.torch.iter().any(|torch| {
            *torch == name
                || torch
                    .strip_prefix("F.")
                    .is_some_and(|rest| name.strip_prefix("torch.nn.functional.") == Some(rest))
        })
    }
}

/// The whole table as Markdown, as it stands in the project's documentation.
pub fn markdown() -> String {
    let mut text = String::from("| operator | operands | settings | torch |\n|---|---|---|---|\n");
    for operator in OPERATORS {
        let operands: Vec<String> = operator
            .operands
            .iter()
            .map(|operand| {
                let role = match operand.role {
                    Role::Quantized => "Q",
                    Role::OptionalQuantized => "Q?",
                    Role::MaybeQuantized => "M?",
                    Role::QuantizedOrNumber => "Q or number",
                    Role::Sequence => "Q...",
                    Role::Plain => "plain",
                };
                format!("{} {role}", operand.name)
            })
            .collect();
        let mark = if operator.in_reference { "" } else { " (ours)" };
        // Writing to a string cannot fail.
        let _ = writeln!(
            text,
            "| `{}`{mark} | {} | {} | {} |",
            operator.name,
            operands.join(", "),
            operator.attributes.join(", "),
            operator.torch.join(", ")
        );
    }
    text
}
