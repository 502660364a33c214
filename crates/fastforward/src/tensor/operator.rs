//! Operators on [values](super::Value): one table, from which the functions, their checks, their dispatch and their
//! documentation are made (spec §5.2 to §5.5).
//!
//! Every function of [`functional`] does the same three things:
//!
//! 1. A [kernel](dispatch) that is registered for the operator and accepts the arguments runs, the newest first: joining
//!    tensors that share a grid, multiplying codes in integers, or one of yours.
//! 2. Otherwise, in [strict mode](crate::flags), operands that should be quantized and are not, or a missing output
//!    quantizer, are an error that names operator, operand and module.
//! 3. Quantized operands are dequantized, the float operator of [`super::float`] runs, and the output goes through the output
//!    quantizer.

mod call;
mod codes;
pub mod dispatch;
mod integer;
mod kernels;
mod simulated;
mod spec;
mod table;

pub use call::{Argument, Attribute, Call, Output, ValueOrNumber};
pub use spec::{OperandSpec, OperatorSpec, Role, markdown};
pub use table::{OPERATORS, functional};

/// The operator of this name, ours or torch's (`linear`, `F.linear`, `torch.nn.functional.linear`), if the table has it.
///
/// ```
/// use fastforward::tensor::operator;
/// assert_eq!(operator::find("torch.nn.functional.linear").unwrap().name, "linear");
/// assert!(operator::find("einsum").is_none());
/// ```
pub fn find(name: &str) -> Option<&'static OperatorSpec> {
    OPERATORS.iter().find(|operator| operator.name == name || operator.answers_to(name))
}
