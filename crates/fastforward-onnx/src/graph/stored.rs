//! The data of a constant where it lies, read piece by piece.

use bytes::Bytes;
use fastforward_core::files::{FileRange, ReadAt};
use fastforward_core::weights::FloatType;

use super::Constant;
use super::constant::{packed_bytes, unpack_into};
use super::external::{self, is_external};
use crate::dtype::DType;
use crate::error::{Error, ErrorKind, Result};
use crate::proto::TensorProto;

/// The packed bytes of a tensor: in the message that holds them, or in a file.
#[derive(Debug)]
pub(crate) enum Stored {
    Memory(Bytes),
    File(FileRange),
}

impl ReadAt for Stored {
    fn len(&self) -> u64 {
        match self {
            Self::Memory(bytes) => ReadAt::len(&bytes[..]),
            Self::File(range) => range.len(),
        }
    }

    fn read_at(&self, offset: u64, out: &mut [u8]) -> Result<(), fastforward_core::Error> {
        match self {
            Self::Memory(bytes) => bytes[..].read_at(offset, out),
            Self::File(range) => range.read_at(offset, out),
        }
    }
}

/// The elements of a constant as 32-bit floats, read where they are needed.
#[derive(Debug)]
pub(crate) enum Floats {
    /// Floats that are converted while they are read.
    Stored(FloatType, Stored),
    /// What else has a real value, converted at once.
    Converted(Vec<f32>),
}

impl Floats {
    /// Fills `out` with the elements from number `first` on.
    pub(crate) fn read(&self, first: usize, out: &mut [f32]) -> Result<()> {
        match self {
            Self::Stored(float, stored) => Ok(float.read(stored, first, out)?),
            Self::Converted(values) => {
                let some = values.get(first..).and_then(|values| values.get(..out.len()));
                let some = some.ok_or_else(|| {
                    let text = format!("{} elements from {first} on are wanted", out.len());
                    Error::new(ErrorKind::Input, text)
                })?;
                out.copy_from_slice(some);
                Ok(())
            }
        }
    }
}

impl Constant<'_> {
    /// The packed bytes, where they lie.
    pub(crate) fn stored(&self) -> Result<Stored> {
        stored(self.proto(), self.folder()).map_err(|error| self.in_place(error))
    }

    /// The elements as 32-bit floats, where they lie.
    pub(crate) fn floats(&self) -> Result<Floats> {
        let float = match self.info()?.dtype {
            DType::F32 => FloatType::F32,
            DType::F16 => FloatType::F16,
            DType::BF16 => FloatType::BF16,
            DType::F64 => FloatType::F64,
            _ => return Ok(Floats::Converted(self.to_f32()?)),
        };
        Ok(Floats::Stored(float, self.stored()?))
    }

    /// Fills `out` with integers of at most 32 bits from number `first` on, out of `stored`, which is this constant's.
    pub(crate) fn read_codes(
        &self,
        dtype: DType,
        stored: &Stored,
        first: usize,
        bytes: &mut Vec<u8>,
        out: &mut [i32],
    ) -> Result<()> {
        let bits = dtype.bits() as usize;
        let start = first * bits / 8;
        let end = ((first + out.len()) * bits).div_ceil(8);
        bytes.resize(end - start, 0);
        stored.read_at(start as u64, bytes)?;
        unpack_into(dtype, bytes, first * bits % 8, out);
        Ok(())
    }
}

/// The packed bytes of `tensor`, where they lie; see [`Constant::stored`].
pub(super) fn stored(tensor: &TensorProto, folder: Option<&std::path::Path>) -> Result<Stored> {
    if !is_external(tensor) {
        return packed_bytes(tensor, folder).map(Stored::Memory);
    }
    let (_, _, size_bytes) = super::check::checked_size(tensor)?;
    let range = external::locate(tensor, size_bytes, folder)?;
    let file = FileRange::open(&range.path, range.offset, range.length);
    let file = file
        .map_err(|error| Error::new(ErrorKind::ExternalData, error.to_string()).caused_by(error))?;
    Ok(Stored::File(file))
}
