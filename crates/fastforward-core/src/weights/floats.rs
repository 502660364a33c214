//! Floats as files hold them.

use half::{bf16, f16};
use rayon::prelude::*;

use crate::Error;
use crate::files::ReadAt;

/// How a file holds floats: little-endian, as they are or narrower.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FloatType {
    /// 32 bits.
    F32,
    /// 16 bits, as IEEE 754 has them.
    F16,
    /// The upper 16 bits of 32.
    BF16,
    /// 64 bits, rounded to 32 when they are read.
    F64,
}

/// Elements that one thread reads at a time.
const TOGETHER: usize = 1 << 18;
/// Bytes that are read before they are decoded: they stay in cache.
const PIECE: usize = 1 << 16;

impl FloatType {
    /// Bytes of an element.
    pub fn size_bytes(self) -> usize {
        match self {
            Self::F64 => 8,
            Self::F32 => 4,
            Self::F16 | Self::BF16 => 2,
        }
    }

    /// Reads the elements from number `first` on into `out`, as many as it holds.
    ///
    /// Beside `out` it takes some kilobytes for each thread.
    ///
    /// # Errors
    /// As [`ReadAt::read_at`].
    ///
    /// ```
    /// use fastforward_core::weights::FloatType;
    /// let bytes = [0, 0x3c, 0, 0xc0, 0, 0x38];
    /// let mut floats = [0.0; 2];
    /// FloatType::F16.read(&bytes[..], 1, &mut floats)?;
    /// assert_eq!(floats, [-2.0, 0.5]);
    /// # Ok::<(), fastforward_core::Error>(())
    /// ```
    pub fn read<S: ReadAt + ?Sized>(
        self,
        source: &S,
        first: usize,
        out: &mut [f32],
    ) -> Result<(), Error> {
        if out.len() <= TOGETHER {
            return self.read_here(source, first, out);
        }
        let pieces: Vec<Result<(), Error>> = out
            .par_chunks_mut(TOGETHER)
            .enumerate()
            .map(|(at, out)| self.read_here(source, first + at * TOGETHER, out))
            .collect();
        // The first error in the order of the elements, whichever thread met one first.
        pieces.into_iter().collect()
    }

    fn read_here<S: ReadAt + ?Sized>(
        self,
        source: &S,
        first: usize,
        out: &mut [f32],
    ) -> Result<(), Error> {
        let size = self.size_bytes();
        let mut piece = vec![0; PIECE.min(out.len() * size)];
        for (at, out) in out.chunks_mut(PIECE / size).enumerate() {
            let bytes = &mut piece[..out.len() * size];
            let position = (first + at * (PIECE / size)) as u64 * size as u64;
            source.read_at(position, bytes)?;
            self.decode(bytes, out);
        }
        Ok(())
    }

    /// The floats that bytes hold. `bytes` has those of the elements of `out`; what is longer is left alone.
    fn decode(self, bytes: &[u8], out: &mut [f32]) {
        fn each<const N: usize>(bytes: &[u8], out: &mut [f32], decode: impl Fn([u8; N]) -> f32) {
            for (out, bytes) in out.iter_mut().zip(bytes.as_chunks::<N>().0) {
                *out = decode(*bytes);
            }
        }
        match self {
            Self::F32 => each(bytes, out, f32::from_le_bytes),
            Self::F64 => each(bytes, out, |bytes| f64::from_le_bytes(bytes) as f32),
            Self::F16 => each(bytes, out, |bytes| f16::from_le_bytes(bytes).to_f32()),
            Self::BF16 => each(bytes, out, |bytes| bf16::from_le_bytes(bytes).to_f32()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Longer than what one thread reads, and no multiple of it.
    const LEN: usize = 2 * TOGETHER + 777;

    #[test]
    fn every_type_is_read_at_any_place() {
        let value = |at: usize| (at % 251) as f32 - 125.0;
        for float in [FloatType::F32, FloatType::F16, FloatType::BF16, FloatType::F64] {
            let bytes: Vec<u8> = (0..LEN)
                .flat_map(|at| match float {
                    FloatType::F32 => value(at).to_le_bytes().to_vec(),
                    FloatType::F64 => f64::from(value(at)).to_le_bytes().to_vec(),
                    FloatType::F16 => f16::from_f32(value(at)).to_le_bytes().to_vec(),
                    FloatType::BF16 => bf16::from_f32(value(at)).to_le_bytes().to_vec(),
                })
                .collect();
            for (first, len) in [(0, LEN), (5, LEN - 5), (TOGETHER, 3), (LEN, 0)] {
                let mut out = vec![0.0; len];
                float.read(&bytes[..], first, &mut out).unwrap();
                let expected: Vec<f32> = (first..first + len).map(value).collect();
                assert!(out == expected, "{float:?} from {first}");
            }
            assert!(float.read(&bytes[..], 1, &mut vec![0.0; LEN]).is_err());
        }
    }
}
