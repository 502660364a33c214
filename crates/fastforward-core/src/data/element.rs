//! Element types of stored data, and their conversion.

use std::fmt;

use half::{bf16, f16};
use serde::{Deserialize, Serialize};

/// The element type of a tensor in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum ElementType {
    Bool,
    U8,
    I8,
    U16,
    I16,
    U32,
    I32,
    U64,
    I64,
    F16,
    Bf16,
    F32,
    F64,
}

impl ElementType {
    /// The bytes of one element.
    pub fn size_bytes(self) -> usize {
        match self {
            Self::Bool | Self::U8 | Self::I8 => 1,
            Self::U16 | Self::I16 | Self::F16 | Self::Bf16 => 2,
            Self::U32 | Self::I32 | Self::F32 => 4,
            Self::U64 | Self::I64 | Self::F64 => 8,
        }
    }

    /// Whether the elements are floating-point numbers.
    pub fn is_float(self) -> bool {
        matches!(self, Self::F16 | Self::Bf16 | Self::F32 | Self::F64)
    }

    /// The type a safetensors header names, `F32`.
    pub(super) fn from_safetensors(name: &str) -> Option<Self> {
        Some(match name {
            "BOOL" => Self::Bool,
            "U8" => Self::U8,
            "I8" => Self::I8,
            "U16" => Self::U16,
            "I16" => Self::I16,
            "U32" => Self::U32,
            "I32" => Self::I32,
            "U64" => Self::U64,
            "I64" => Self::I64,
            "F16" => Self::F16,
            "BF16" => Self::Bf16,
            "F32" => Self::F32,
            "F64" => Self::F64,
            _ => return None,
        })
    }

    /// The type a NumPy type string names without its byte order, `f4`.
    pub(super) fn from_numpy(name: &str) -> Option<Self> {
        Some(match name {
            "b1" | "?" => Self::Bool,
            "u1" => Self::U8,
            "i1" => Self::I8,
            "u2" => Self::U16,
            "i2" => Self::I16,
            "u4" => Self::U32,
            "i4" => Self::I32,
            "u8" => Self::U64,
            "i8" => Self::I64,
            "f2" => Self::F16,
            "f4" => Self::F32,
            "f8" => Self::F64,
            _ => return None,
        })
    }

    /// Little-endian elements as floating-point numbers. Integers beyond 2^53 are rounded to nearest.
    pub(super) fn to_f64(self, bytes: &[u8]) -> Vec<f64> {
        match self {
            Self::Bool => map(bytes, |[byte]| f64::from(u8::from(byte != 0))),
            Self::U8 => map(bytes, |b| f64::from(u8::from_le_bytes(b))),
            Self::I8 => map(bytes, |b| f64::from(i8::from_le_bytes(b))),
            Self::U16 => map(bytes, |b| f64::from(u16::from_le_bytes(b))),
            Self::I16 => map(bytes, |b| f64::from(i16::from_le_bytes(b))),
            Self::U32 => map(bytes, |b| f64::from(u32::from_le_bytes(b))),
            Self::I32 => map(bytes, |b| f64::from(i32::from_le_bytes(b))),
            Self::U64 => map(bytes, |b| u64::from_le_bytes(b) as f64),
            Self::I64 => map(bytes, |b| i64::from_le_bytes(b) as f64),
            Self::F16 => map(bytes, |b| f16::from_le_bytes(b).to_f64()),
            Self::Bf16 => map(bytes, |b| bf16::from_le_bytes(b).to_f64()),
            Self::F32 => map(bytes, |b| f64::from(f32::from_le_bytes(b))),
            Self::F64 => map(bytes, f64::from_le_bytes),
        }
    }

    /// Little-endian integers, exactly; `None` for floating-point types.
    pub(super) fn to_i128(self, bytes: &[u8]) -> Option<Vec<i128>> {
        Some(match self {
            Self::Bool => map(bytes, |[byte]| i128::from(byte != 0)),
            Self::U8 => map(bytes, |b| u8::from_le_bytes(b).into()),
            Self::I8 => map(bytes, |b| i8::from_le_bytes(b).into()),
            Self::U16 => map(bytes, |b| u16::from_le_bytes(b).into()),
            Self::I16 => map(bytes, |b| i16::from_le_bytes(b).into()),
            Self::U32 => map(bytes, |b| u32::from_le_bytes(b).into()),
            Self::I32 => map(bytes, |b| i32::from_le_bytes(b).into()),
            Self::U64 => map(bytes, |b| u64::from_le_bytes(b).into()),
            Self::I64 => map(bytes, |b| i64::from_le_bytes(b).into()),
            Self::F16 | Self::Bf16 | Self::F32 | Self::F64 => return None,
        })
    }
}

impl fmt::Display for ElementType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Bool => "bool",
            Self::U8 => "u8",
            Self::I8 => "i8",
            Self::U16 => "u16",
            Self::I16 => "i16",
            Self::U32 => "u32",
            Self::I32 => "i32",
            Self::U64 => "u64",
            Self::I64 => "i64",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
            Self::F32 => "f32",
            Self::F64 => "f64",
        })
    }
}

/// The element type a model's input takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs)]
pub enum InputType {
    Bool,
    U8,
    I8,
    U16,
    I16,
    U32,
    I32,
    I64,
    F16,
    #[default]
    F32,
    F64,
}

impl InputType {
    /// Every type with the name a configuration uses for it.
    pub const NAMES: [(&'static str, Self); 11] = [
        ("f32", Self::F32),
        ("f16", Self::F16),
        ("f64", Self::F64),
        ("i64", Self::I64),
        ("i32", Self::I32),
        ("i16", Self::I16),
        ("i8", Self::I8),
        ("u32", Self::U32),
        ("u16", Self::U16),
        ("u8", Self::U8),
        ("bool", Self::Bool),
    ];

    /// Whether the model wants floating-point numbers.
    pub fn is_float(self) -> bool {
        self.integer_range().is_none()
    }

    /// The smallest and largest value of an integer type, `None` for floating-point types.
    pub fn integer_range(self) -> Option<(i64, i64)> {
        Some(match self {
            Self::Bool => (0, 1),
            Self::U8 => (0, u8::MAX.into()),
            Self::I8 => (i8::MIN.into(), i8::MAX.into()),
            Self::U16 => (0, u16::MAX.into()),
            Self::I16 => (i16::MIN.into(), i16::MAX.into()),
            Self::U32 => (0, u32::MAX.into()),
            Self::I32 => (i32::MIN.into(), i32::MAX.into()),
            Self::I64 => (i64::MIN, i64::MAX),
            Self::F16 | Self::F32 | Self::F64 => return None,
        })
    }

    /// The largest finite value of a floating-point type as far as `f32` holds it.
    pub(super) fn float_limit(self) -> f32 {
        if self == Self::F16 { f16::MAX.to_f32() } else { f32::MAX }
    }
}

impl fmt::Display for InputType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = Self::NAMES.iter().find(|(_, kind)| kind == self).map_or("", |(name, _)| name);
        f.write_str(name)
    }
}

fn map<T, const N: usize>(bytes: &[u8], convert: impl Fn([u8; N]) -> T) -> Vec<T> {
    bytes.as_chunks().0.iter().map(|&chunk| convert(chunk)).collect()
}
