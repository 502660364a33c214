//! Integer codes with the parameters that decode them.

use super::AffineParameters;
use crate::quantization::Granularity;
use crate::{Array, Error, ErrorKind};

/// Integer codes in the smallest type that holds them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Codes {
    /// Up to 8 bits.
    I8(Vec<i8>),
    /// 9 to 16 bits.
    I16(Vec<i16>),
    /// 17 to 32 bits.
    I32(Vec<i32>),
}

impl Codes {
    /// The number of codes.
    pub fn len(&self) -> usize {
        match self {
            Codes::I8(codes) => codes.len(),
            Codes::I16(codes) => codes.len(),
            Codes::I32(codes) => codes.len(),
        }
    }

    /// Whether there is no code.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The codes, widened.
    pub fn to_i32(&self) -> Vec<i32> {
        match self {
            Codes::I8(codes) => codes.iter().map(|&code| i32::from(code)).collect(),
            Codes::I16(codes) => codes.iter().map(|&code| i32::from(code)).collect(),
            Codes::I32(codes) => codes.clone(),
        }
    }

    /// The codes of a `num_bits` wide grid, narrowed to the smallest type that holds every code of that grid.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidData`] naming the first code that the grid does not have.
    pub fn from_i32(codes: Vec<i32>, num_bits: u32) -> Result<Self, Error> {
        let grid = -(1i64 << (num_bits - 1))..1i64 << (num_bits - 1);
        if let Some(at) = codes.iter().position(|&code| !grid.contains(&i64::from(code))) {
            return Err(Error::new(
                ErrorKind::InvalidData,
                format!("code {} at index {at} does not fit {num_bits} bits", codes[at]),
            ));
        }
        // Each cast is exact: the check above bounds every code.
        Ok(match num_bits {
            ..=8 => Codes::I8(codes.into_iter().map(|code| code as i8).collect()),
            9..=16 => Codes::I16(codes.into_iter().map(|code| code as i16).collect()),
            _ => Codes::I32(codes),
        })
    }
}

/// Quantized data: codes, their shape, and how to decode them.
#[derive(Clone, Debug, PartialEq)]
pub struct QuantizedArray {
    /// One code per element, row-major.
    pub codes: Codes,
    /// The shape of the data.
    pub shape: Vec<usize>,
    /// How the data is cut into tiles.
    pub granularity: Granularity,
    /// One scale and offset per tile.
    pub parameters: AffineParameters,
}

impl QuantizedArray {
    /// `(q + round(offset)) * scale`, element by element.
    ///
    /// # Errors
    /// [`ErrorKind::Granularity`] when shape, granularity and parameters do not belong together.
    pub fn dequantize(&self) -> Result<Array, Error> {
        super::arithmetic::dequantize(self)
    }
}
