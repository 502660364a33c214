//! One call of an operator: arguments in, checks, a kernel or the float operator, the output quantizer.

use std::any::Any;
use std::fmt;

use candle_core::Tensor;

use super::dispatch;
use super::spec::{OperatorSpec, Role};
use crate::quantization::quantizer::QuantizerSlot;
use crate::tensor::apply::apply_own;
use crate::tensor::view::memory_of;
use crate::tensor::{Apply, Error, Result, Value, probe, record};
use crate::{ErrorKind, flags};

/// Where the output goes: through a slot, or nowhere; and whether strict mode holds for this call.
///
/// Functions take `impl Into<Output>`: a slot, or [`Output::none`].
#[derive(Clone, Copy, Debug, Default)]
pub struct Output<'a> {
    slot: Option<&'a QuantizerSlot>,
    strict: Option<bool>,
}

impl<'a> Output<'a> {
    /// No output quantizer.
    pub fn none() -> Self {
        Self::default()
    }

    /// The same call, strict or not, whatever the thread's switch says.
    pub fn strict(mut self, strict: bool) -> Self {
        self.strict = Some(strict);
        self
    }

    /// The output slot.
    pub fn slot(&self) -> Option<&'a QuantizerSlot> {
        self.slot
    }

    /// Whether the output is left as it is: there is no slot, or a stub in it.
    pub fn is_stub(&self) -> bool {
        self.slot.is_none_or(QuantizerSlot::is_stub)
    }

    /// Whether strict mode has nothing to say against a missing output quantizer.
    pub(super) fn allows_any(&self) -> bool {
        self.slot.is_some() || !self.is_strict()
    }

    /// Whether strict mode holds: as the call says, else the slot, else the thread. There is none in export mode.
    pub(super) fn is_strict(&self) -> bool {
        let slot = || self.slot.and_then(QuantizerSlot::strictness);
        !flags::exporting() && self.strict.or_else(slot).unwrap_or_else(flags::strict)
    }

    /// Where the call stands in the model: the path of the module that holds the output slot.
    fn module(&self) -> Option<String> {
        let label = self.slot?.label()?;
        Some(label.rsplit_once('.').map_or_else(String::new, |(module, _)| module.to_owned()))
    }
}

impl<'a> From<&'a QuantizerSlot> for Output<'a> {
    fn from(slot: &'a QuantizerSlot) -> Self {
        Self { slot: Some(slot), strict: None }
    }
}

impl<'a> From<Option<&'a QuantizerSlot>> for Output<'a> {
    fn from(slot: Option<&'a QuantizerSlot>) -> Self {
        Self { slot, strict: None }
    }
}

/// A second operand that may be a number.
#[derive(Clone, Copy, Debug)]
pub enum ValueOrNumber<'a> {
    /// A value.
    Value(&'a Value),
    /// A number.
    Number(f64),
    /// An integer, which keeps integer tensors integers.
    Integer(i64),
}

impl<'a> From<&'a Value> for ValueOrNumber<'a> {
    fn from(value: &'a Value) -> Self {
        Self::Value(value)
    }
}

impl From<f64> for ValueOrNumber<'_> {
    fn from(number: f64) -> Self {
        Self::Number(number)
    }
}

impl From<i64> for ValueOrNumber<'_> {
    fn from(number: i64) -> Self {
        Self::Integer(number)
    }
}

/// What was given for one operand.
#[derive(Clone, Copy, Debug)]
pub enum Argument<'a> {
    /// Nothing, for an operand that may be absent.
    Absent,
    /// A value.
    Value(&'a Value),
    /// A number.
    Number(f64),
    /// A plain tensor.
    Plain(&'a Tensor),
    /// Several values.
    Sequence(&'a [Value]),
}

/// A setting of an operator as a kernel sees it: any type.
pub trait Attribute {
    /// The setting, to be downcast.
    fn as_any(&self) -> &dyn Any;
}

macro_rules! plain_attributes {
    ($($ty:ty),*) => { $(impl Attribute for $ty { fn as_any(&self) -> &dyn Any { self } })* };
}

plain_attributes!(
    bool,
    f64,
    isize,
    usize,
    u64,
    Option<isize>,
    Option<f64>,
    Option<usize>,
    Option<candle_core::DType>,
    Vec<usize>,
    Vec<isize>,
    super::super::float::GeluApproximation
);

impl<T: Any> Attribute for &T {
    fn as_any(&self) -> &dyn Any {
        *self
    }
}

/// A call of an operator, as predicates and kernels see it.
pub struct Call<'a> {
    /// The operator.
    pub operator: &'static OperatorSpec,
    /// One argument per operand of the table.
    pub arguments: &'a [Argument<'a>],
    /// One setting per attribute of the table.
    pub attributes: &'a [&'a dyn Attribute],
    /// Where the output goes.
    pub output: Output<'a>,
}

impl<'a> Call<'a> {
    /// The argument of this name.
    pub fn argument(&self, name: &str) -> Argument<'a> {
        let at = self.operator.operands.iter().position(|operand| operand.name == name);
        at.and_then(|at| self.arguments.get(at)).copied().unwrap_or(Argument::Absent)
    }

    /// The value of this name, if it is one.
    pub fn value(&self, name: &str) -> Option<&'a Value> {
        match self.argument(name) {
            Argument::Value(value) => Some(value),
            _ => None,
        }
    }

    /// The setting of this name, if the operator has it and it is of this type.
    pub fn attribute<T: Any>(&self, name: &str) -> Option<&T> {
        let at = self.operator.attributes.iter().position(|attribute| *attribute == name)?;
        let attribute: &dyn Attribute = *self.attributes.get(at)?;
        attribute.as_any().downcast_ref()
    }

    /// Every value among the arguments.
    pub fn values(&self) -> impl Iterator<Item = &'a Value> {
        self.arguments.iter().flat_map(|argument| match *argument {
            Argument::Value(value) => std::slice::from_ref(value),
            Argument::Sequence(values) => values,
            Argument::Absent | Argument::Number(_) | Argument::Plain(_) => &[],
        })
    }

    /// The error of a built-in kernel that is given what its predicate does not accept, or accepts no more since another
    /// thread changed the output slot: [`run`](Self::run) goes on with the float operator then.
    pub(super) fn mismatch(&self) -> Error {
        Error::declined(self.operator.name)
    }

    /// Sends what a kernel computed through the output slot, if there is one.
    ///
    /// # Errors
    /// As for [`Apply::apply`].
    pub fn finish(&self, result: impl Into<Value>) -> Result<Value> {
        match self.output.slot {
            Some(slot) => slot.apply(&result.into()),
            None => Ok(result.into()),
        }
    }

    /// Runs the call: a registered kernel, or `float` after the checks of strict mode.
    pub(super) fn run(&self, float: impl FnOnce() -> Result<Tensor>) -> Result<Value> {
        let probe = probe::current();
        if let Some(probe) = &probe {
            probe.operands(self)?;
        }
        let result = match dispatch::find(self) {
            Some(kernel) => match kernel(self) {
                Err(error) if error.is_declined() => self.run_float(float),
                result => result.map_err(|error| self.placed(error)),
            },
            None => self.run_float(float),
        }?;
        if let Some(probe) = &probe {
            probe.result(self, &result)?;
        }
        Ok(result)
    }

    /// Runs `float` after the checks of strict mode, whatever kernels there are.
    pub(crate) fn run_float(&self, float: impl FnOnce() -> Result<Tensor>) -> Result<Value> {
        self.checked(float).map_err(|error| self.placed(error))
    }

    /// The error with the path of the module before it, where its message does not have it already.
    fn placed(&self, error: Error) -> Error {
        match self.output.module() {
            Some(module) if error.kind() != ErrorKind::Strict && !module.is_empty() => {
                error.at(format_args!("`{module}`"))
            }
            _ => error,
        }
    }

    fn checked(&self, float: impl FnOnce() -> Result<Tensor>) -> Result<Value> {
        if self.output.is_strict() {
            self.check_strict()?;
        }
        let name = self.operator.name;
        self.values().for_each(|value| record::into_operator(name, value));
        let result = float()?;
        let slot = self.output.slot.filter(|slot| !slot.is_stub());
        if let Some(slot) = slot.filter(|_| !record::is_recording() && self.is_new(&result)) {
            return apply_own(slot, result);
        }
        let result = Value::from(result);
        record::out_of_operator(name, &result);
        self.finish(result)
    }

    /// Whether a result lies in memory that no operand has: some operators give a view of what they took, or that itself.
    fn is_new(&self, result: &Tensor) -> bool {
        let Some(memory) = memory_of(result) else { return false };
        let is_elsewhere = |tensor: &Tensor| memory_of(tensor) != Some(memory);
        let values = self.values().all(|value| match value {
            Value::Float(tensor) => is_elsewhere(tensor),
            Value::Quantized(tensor) => tensor.ready_values().is_none_or(is_elsewhere),
        });
        let plain = self.arguments.iter().all(|argument| match argument {
            Argument::Plain(tensor) => is_elsewhere(tensor),
            _ => true,
        });
        values && plain
    }

    /// Fails with every operand that strict mode refuses.
    fn check_strict(&self) -> Result<()> {
        let mut problems = Vec::new();
        if self.output.slot.is_none() {
            problems.push("it has no output quantizer (a stub will do)".to_owned());
        }
        for (operand, argument) in self.operator.operands.iter().zip(self.arguments) {
            let name = operand.name;
            let is_float = |value: &&Value| !value.is_quantized();
            match (operand.role, argument) {
                (Role::Plain | Role::MaybeQuantized, _) => {}
                (_, Argument::Value(value)) if is_float(value) => {
                    problems.push(format!(
                        "operand `{name}` is a float tensor of shape {:?}",
                        value.dims()
                    ));
                }
                (_, Argument::Sequence(values)) => problems.extend(
                    values
                        .iter()
                        .enumerate()
                        .filter(|(_, value)| is_float(value))
                        .map(|(at, _)| format!("operand `{name}[{at}]` is a float tensor")),
                ),
                _ => {}
            }
        }
        if problems.is_empty() {
            return Ok(());
        }
        let place = match self.output.module() {
            Some(module) if !module.is_empty() => format!("`{module}`: "),
            _ => String::new(),
        };
        Err(Error::new(
            ErrorKind::Strict,
            format!(
                "{place}{} in strict mode: {}; fill the quantizer slots, or turn strict mode off for this thread with \
                 `flags::strict_quantization(false)`",
                self.operator.name,
                problems.join(", ")
            ),
        ))
    }
}

impl fmt::Debug for Call<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Call")
            .field("operator", &self.operator.name)
            .field("arguments", &self.arguments)
            .field("output", &self.output)
            .finish_non_exhaustive()
    }
}
