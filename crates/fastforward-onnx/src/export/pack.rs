//! Codes as bytes, piece by piece.

use ff_kernels::{Code, Packed, pack};

use super::storage::Storage;
use super::store::Put;
use crate::dtype::DType;
use crate::error::{Error, ErrorKind, Result};
use crate::placement::SomeCodes;

/// Packs codes that come in pieces: pieces need not end where bytes do.
pub(super) struct Packer<'p> {
    storage: Storage,
    put: Put<'p>,
    /// The codes of a byte that is not full, shifted.
    rest: Vec<i32>,
    bytes: Vec<u8>,
}

impl<'p> Packer<'p> {
    pub(super) fn new(storage: Storage, put: Put<'p>) -> Self {
        Self { storage, put, rest: Vec::new(), bytes: Vec::new() }
    }

    /// Takes the next codes.
    pub(super) fn push(&mut self, codes: SomeCodes<'_>) -> Result<()> {
        let shift = self.storage.shift as i32;
        let dtype = self.storage.dtype;
        match (codes, packed(dtype)) {
            // Where codes have as many bits as the shift is high, the sum wraps to the right bits.
            (SomeCodes::I8(codes), None) if dtype.bits() == 8 => {
                self.bytes.clear();
                let shift = shift as i8;
                self.bytes.extend(codes.iter().map(|&code| code.wrapping_add(shift) as u8));
                (self.put)(&self.bytes)
            }
            (SomeCodes::I8(codes), Some(packed)) if shift == 0 && self.rest.is_empty() => {
                let whole = codes.len() - codes.len() % packed.per_byte();
                self.pack(&codes[..whole], packed)?;
                self.rest.extend(codes[whole..].iter().map(|&code| i32::from(code)));
                Ok(())
            }
            (SomeCodes::I8(codes), _) => {
                let codes: Vec<i32> = codes.iter().map(|&code| i32::from(code)).collect();
                self.push(SomeCodes::I32(&codes))
            }
            (SomeCodes::I32(codes), Some(packed)) => {
                let mut all = std::mem::take(&mut self.rest);
                all.extend(codes.iter().map(|&code| code + shift));
                self.rest = all.split_off(all.len() - all.len() % packed.per_byte());
                self.pack(&all, packed)
            }
            (SomeCodes::I32(codes), None) => {
                let n_bytes = dtype.bits() as usize / 8;
                self.bytes.clear();
                let bytes =
                    |&code: &i32| code.wrapping_add(shift).to_le_bytes().into_iter().take(n_bytes);
                self.bytes.extend(codes.iter().flat_map(bytes));
                (self.put)(&self.bytes)
            }
        }
    }

    /// Writes the last byte, where it is not full.
    pub(super) fn finish(mut self) -> Result<()> {
        let rest = std::mem::take(&mut self.rest);
        match packed(self.storage.dtype) {
            Some(packed) if !rest.is_empty() => self.pack(&rest, packed),
            _ => Ok(()),
        }
    }

    fn pack<C: Code>(&mut self, codes: &[C], packed: Packed) -> Result<()> {
        self.bytes.resize(packed.packed_len(codes.len()), 0);
        pack(codes, packed, &mut self.bytes).map_err(|error| {
            Error::new(ErrorKind::Quantizer, error.to_string()).caused_by(error)
        })?;
        (self.put)(&self.bytes)
    }
}

fn packed(dtype: DType) -> Option<Packed> {
    match dtype {
        DType::I4 => Some(Packed::Int4),
        DType::U4 => Some(Packed::Uint4),
        DType::I2 => Some(Packed::Int2),
        DType::U2 => Some(Packed::Uint2),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::data::pack_codes;

    #[test]
    fn pieces_of_any_length_give_the_bytes_of_the_whole() {
        for (dtype, low, shift) in [
            (DType::I2, -2, 0),
            (DType::U2, -2, 2),
            (DType::I4, -8, 0),
            (DType::U4, -8, 8),
            (DType::I8, -128, 0),
            (DType::U8, -128, 128),
            (DType::I16, -128, 0),
            (DType::U16, -128, 1 << 15),
            (DType::I32, -128, 0),
        ] {
            let codes: Vec<i8> = (0..37).map(|at| (low + at * 5 % (-2 * low)) as i8).collect();
            let shifted: Vec<i64> = codes.iter().map(|&code| i64::from(code) + shift).collect();
            let expected = pack_codes(dtype, &shifted);
            for (piece, wide) in [(1, false), (3, true), (4, false), (5, true), (37, false)] {
                let mut bytes = Vec::new();
                let mut put = |some: &[u8]| {
                    bytes.extend_from_slice(some);
                    Ok(())
                };
                let mut packer = Packer::new(Storage { dtype, shift }, &mut put);
                for some in codes.chunks(piece) {
                    let widened: Vec<i32> = some.iter().map(|&code| code.into()).collect();
                    let some = if wide { SomeCodes::I32(&widened) } else { SomeCodes::I8(some) };
                    packer.push(some).unwrap();
                }
                packer.finish().unwrap();
                assert_eq!(bytes, expected, "{dtype} in pieces of {piece}");
            }
        }
    }

    #[test]
    fn codes_that_do_not_fit_are_refused() {
        let mut put = |_: &[u8]| Ok(());
        let mut packer = Packer::new(Storage { dtype: DType::I4, shift: 0 }, &mut put);
        assert!(packer.push(SomeCodes::I8(&[8, 0])).is_err());
    }
}
