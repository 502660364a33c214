//! The element types of ONNX tensors.

use std::fmt;

use crate::error::{Error, ErrorKind, Result};
use crate::proto::tensor_proto::DataType;

/// The element type of a tensor, named as numpy and ONNX name it.
///
/// ```
/// use fastforward_onnx::dtype::DType;
///
/// assert_eq!(DType::I4.name(), "int4");
/// assert_eq!(DType::I4.bits(), 4);
/// assert_eq!(DType::I4.int_range(), Some((-8, 7)));
/// assert_eq!(DType::I4.size_bytes(3), Some(2)); // two in a byte
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[allow(missing_docs)] // The names say what they are; `name` gives the usual one.
pub enum DType {
    F32,
    U8,
    I8,
    U16,
    I16,
    I32,
    I64,
    String,
    Bool,
    F16,
    F64,
    U32,
    U64,
    Complex64,
    Complex128,
    BF16,
    F8E4M3FN,
    F8E4M3FNUZ,
    F8E5M2,
    F8E5M2FNUZ,
    U4,
    I4,
    F4E2M1,
    F8E8M0,
    U2,
    I2,
    F6E2M3,
    F6E3M2,
}

/// Type, name, bits of one element (0 where they vary), number in the format.
const TABLE: [(DType, &str, u32, DataType); 28] = [
    (DType::F32, "float32", 32, DataType::Float),
    (DType::U8, "uint8", 8, DataType::Uint8),
    (DType::I8, "int8", 8, DataType::Int8),
    (DType::U16, "uint16", 16, DataType::Uint16),
    (DType::I16, "int16", 16, DataType::Int16),
    (DType::I32, "int32", 32, DataType::Int32),
    (DType::I64, "int64", 64, DataType::Int64),
    (DType::String, "string", 0, DataType::String),
    (DType::Bool, "bool", 8, DataType::Bool),
    (DType::F16, "float16", 16, DataType::Float16),
    (DType::F64, "float64", 64, DataType::Double),
    (DType::U32, "uint32", 32, DataType::Uint32),
    (DType::U64, "uint64", 64, DataType::Uint64),
    (DType::Complex64, "complex64", 64, DataType::Complex64),
    (DType::Complex128, "complex128", 128, DataType::Complex128),
    (DType::BF16, "bfloat16", 16, DataType::Bfloat16),
    (DType::F8E4M3FN, "float8e4m3fn", 8, DataType::Float8e4m3fn),
    (DType::F8E4M3FNUZ, "float8e4m3fnuz", 8, DataType::Float8e4m3fnuz),
    (DType::F8E5M2, "float8e5m2", 8, DataType::Float8e5m2),
    (DType::F8E5M2FNUZ, "float8e5m2fnuz", 8, DataType::Float8e5m2fnuz),
    (DType::U4, "uint4", 4, DataType::Uint4),
    (DType::I4, "int4", 4, DataType::Int4),
    (DType::F4E2M1, "float4e2m1", 4, DataType::Float4e2m1),
    (DType::F8E8M0, "float8e8m0", 8, DataType::Float8e8m0),
    (DType::U2, "uint2", 2, DataType::Uint2),
    (DType::I2, "int2", 2, DataType::Int2),
    (DType::F6E2M3, "float6e2m3", 6, DataType::Float6e2m3),
    (DType::F6E3M2, "float6e3m2", 6, DataType::Float6e3m2),
];

impl DType {
    /// The type with this number in the format.
    ///
    /// # Errors
    /// `Unsupported` for 0 (undefined) and for numbers that the schema lacks.
    pub fn from_onnx(number: i32) -> Result<Self> {
        TABLE.iter().find(|row| row.3 as i32 == number).map(|row| row.0).ok_or_else(|| {
            Error::new(ErrorKind::Unsupported, format!("element type number {number} is unknown"))
        })
    }

    /// The number of this type in the format.
    pub fn to_onnx(self) -> i32 {
        self.row().3 as i32
    }

    /// The type called `name`, as [`DType::name`] gives it.
    pub fn from_name(name: &str) -> Option<Self> {
        TABLE.iter().find(|row| row.1 == name).map(|row| row.0)
    }

    /// The usual name: `float32`, `int4`, `float8e4m3fn`.
    pub fn name(self) -> &'static str {
        self.row().1
    }

    /// Bits of one element; 0 for strings.
    pub fn bits(self) -> u32 {
        self.row().2
    }

    /// Bytes of `n_elements` packed elements, or `None` where that overflows.
    pub fn size_bytes(self, n_elements: usize) -> Option<usize> {
        Some(n_elements.checked_mul(self.bits() as usize)?.div_ceil(8))
    }

    /// Whether it is an integer type (`bool` is none).
    pub fn is_int(self) -> bool {
        self.int_range().is_some()
    }

    /// Whether it is a real floating-point type.
    pub fn is_float(self) -> bool {
        matches!(self, Self::F32 | Self::F16 | Self::F64 | Self::BF16 | Self::F8E8M0)
            || self.is_minifloat()
    }

    /// Whether it is a 4-, 6- or 8-bit float with a sign.
    pub fn is_minifloat(self) -> bool {
        matches!(
            self,
            Self::F8E4M3FN
                | Self::F8E4M3FNUZ
                | Self::F8E5M2
                | Self::F8E5M2FNUZ
                | Self::F6E2M3
                | Self::F6E3M2
                | Self::F4E2M1
        )
    }

    /// Whether it is an integer type with a sign.
    pub fn is_signed_int(self) -> bool {
        self.int_range().is_some_and(|(low, _)| low < 0)
    }

    /// The smallest and the largest integer; `None` for what is no integer.
    /// The upper end of `uint64` is given as `i64::MAX`.
    pub fn int_range(self) -> Option<(i64, i64)> {
        let bits = self.bits();
        match self {
            Self::U64 => Some((0, i64::MAX)),
            Self::U2 | Self::U4 | Self::U8 | Self::U16 | Self::U32 => Some((0, (1 << bits) - 1)),
            Self::I64 => Some((i64::MIN, i64::MAX)),
            Self::I2 | Self::I4 | Self::I8 | Self::I16 | Self::I32 => {
                Some((-(1 << (bits - 1)), (1 << (bits - 1)) - 1))
            }
            _ => None,
        }
    }

    fn row(self) -> &'static (DType, &'static str, u32, DataType) {
        // The table stands in the order of the enum; `table_is_in_order` checks it.
        &TABLE[self as usize]
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table_is_in_order() {
        for (position, row) in TABLE.iter().enumerate() {
            assert_eq!(row.0 as usize, position);
            assert_eq!(DType::from_onnx(row.0.to_onnx()).unwrap(), row.0);
            assert_eq!(DType::from_name(row.1), Some(row.0));
        }
        // Every type of the schema is here, and no number beyond it is taken.
        assert_eq!((1..=64).filter(|&n| DataType::try_from(n).is_ok()).count(), TABLE.len());
        assert!(DType::from_onnx(0).is_err());
        assert!(DType::from_onnx(1000).is_err());
    }
}
