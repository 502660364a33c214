//! The arguments of a case, by name; remembers which were asked for.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};

use candle_core::{DType, Tensor};
use serde_json::{Map, Value};

/// A tensor, or the tensors of a sequence.
pub enum Operand {
    One(Tensor),
    Several(Vec<Tensor>),
}

/// Operands and attributes. An operator's arm asks for each by name; what it never asks for is [`unused`](Self::unused).
pub struct Arguments<'a> {
    operands: BTreeMap<&'a str, Operand>,
    attributes: &'a Map<String, Value>,
    asked: RefCell<BTreeSet<&'a str>>,
}

impl<'a> Arguments<'a> {
    pub fn new(operands: BTreeMap<&'a str, Operand>, attributes: &'a Map<String, Value>) -> Self {
        Self { operands, attributes, asked: RefCell::default() }
    }

    pub fn unused(&self) -> Vec<&str> {
        let given = self.operands.keys().copied().chain(self.attributes.keys().map(String::as_str));
        given.filter(|name| !self.asked.borrow().contains(name)).collect()
    }

    #[track_caller]
    pub fn tensor(&self, name: &'static str) -> &Tensor {
        self.optional(name).unwrap_or_else(|| panic!("no operand `{name}`"))
    }

    pub fn optional(&self, name: &'static str) -> Option<&Tensor> {
        self.asked.borrow_mut().insert(name);
        match self.operands.get(name) {
            Some(Operand::One(tensor)) => Some(tensor),
            _ => None,
        }
    }

    #[track_caller]
    pub fn tensors(&self, name: &'static str) -> &[Tensor] {
        self.asked.borrow_mut().insert(name);
        match self.operands.get(name) {
            Some(Operand::Several(tensors)) => tensors,
            _ => panic!("no operand `{name}` that is a sequence"),
        }
    }

    pub fn attribute(&self, name: &'static str) -> Option<&Value> {
        self.asked.borrow_mut().insert(name);
        self.attributes.get(name).filter(|value| !value.is_null())
    }

    /// A number, which may be spelled `inf` or `-inf`.
    #[track_caller]
    pub fn number(&self, name: &'static str) -> Option<f64> {
        self.attribute(name).map(|value| match value.as_str() {
            Some(text) => text.parse().unwrap_or_else(|_| panic!("`{name}` is no number: {text}")),
            None => value.as_f64().unwrap_or_else(|| panic!("`{name}` is no number: {value}")),
        })
    }

    #[track_caller]
    pub fn integer(&self, name: &'static str) -> Option<i64> {
        self.attribute(name).map(|value| {
            value.as_i64().unwrap_or_else(|| panic!("`{name}` is no integer: {value}"))
        })
    }

    #[track_caller]
    pub fn flag(&self, name: &'static str) -> Option<bool> {
        self.attribute(name)
            .map(|value| value.as_bool().unwrap_or_else(|| panic!("`{name}` is no flag: {value}")))
    }

    #[track_caller]
    pub fn text(&self, name: &'static str) -> Option<&str> {
        self.attribute(name)
            .map(|value| value.as_str().unwrap_or_else(|| panic!("`{name}` is no text: {value}")))
    }

    /// A list of numbers; a single one is a list of one.
    #[track_caller]
    pub fn numbers(&self, name: &'static str) -> Option<Vec<f64>> {
        let number = |value: &Value| value.as_f64().unwrap_or_else(|| panic!("`{name}`: {value}"));
        self.attribute(name).map(|value| match value.as_array() {
            Some(list) => list.iter().map(number).collect(),
            None => vec![number(value)],
        })
    }

    /// A list of integers; a single one is a list of one.
    #[track_caller]
    pub fn integers(&self, name: &'static str) -> Option<Vec<i64>> {
        self.numbers(name).map(|list| list.iter().map(|x| *x as i64).collect())
    }

    /// An extent per axis; a single one holds for each axis.
    #[track_caller]
    pub fn per_axis<const N: usize>(&self, name: &'static str) -> Option<[usize; N]> {
        self.integers(name).map(|list| match list[..] {
            [one] => [one as usize; N],
            _ => std::array::from_fn(|i| list[i] as usize),
        })
    }

    /// The same where an axis may be `null`; a single extent holds for each axis.
    #[track_caller]
    pub fn optional_per_axis<const N: usize>(&self, name: &'static str) -> [Option<usize>; N] {
        let extent = |value: &Value| value.as_u64().map(|extent| extent as usize);
        match self.attribute(name).unwrap_or_else(|| panic!("no `{name}`")) {
            Value::Array(list) => std::array::from_fn(|i| extent(&list[i])),
            one => [extent(one); N],
        }
    }

    #[track_caller]
    pub fn dtype(&self, name: &'static str) -> Option<DType> {
        self.text(name).map(|text| match text {
            "f32" => DType::F32,
            "f64" => DType::F64,
            "f16" => DType::F16,
            "bf16" => DType::BF16,
            "i64" => DType::I64,
            "u8" => DType::U8,
            _ => panic!("`{name}` is no dtype: {text}"),
        })
    }
}
