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
    /// 17 to 25 bits.
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

    /// `len` zeros in the smallest type that holds every code of `num_bits` bits.
    pub fn zeros(num_bits: u32, len: usize) -> Self {
        match num_bits {
            ..=8 => Codes::I8(vec![0; len]),
            9..=16 => Codes::I16(vec![0; len]),
            _ => Codes::I32(vec![0; len]),
        }
    }

    /// Codes of `num_bits` bits, narrowed to the smallest type that holds them.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidData`] naming the first code that `num_bits` bits do not hold.
    pub fn from_i32(codes: &[i32], num_bits: u32) -> Result<Self, Error> {
        let grid = super::integer_grid(num_bits, false)?;
        if let Some(at) = codes.iter().position(|code| !(grid.lo()..=grid.hi()).contains(code)) {
            return Err(Error::new(
                ErrorKind::InvalidData,
                format!("code {} at index {at} does not fit {num_bits} bits ({grid})", codes[at]),
            ));
        }
        // Each cast is exact: the check above bounds every code.
        Ok(match num_bits {
            ..=8 => Codes::I8(codes.iter().map(|&code| code as i8).collect()),
            9..=16 => Codes::I16(codes.iter().map(|&code| code as i16).collect()),
            _ => Codes::I32(codes.to_vec()),
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
