//! Codes of 2 and 4 bits, packed into bytes.

use crate::error::{KernelError, KernelErrorKind, SITES_SHOWN, check_len};
use crate::grid::{Code, IntegerGrid};
use crate::simd::{Vectorized, dispatch};

/// An integer type narrower than a byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Packed {
    /// `-8..=7`, two per byte.
    Int4,
    /// `0..=15`, two per byte.
    Uint4,
    /// `-2..=1`, four per byte.
    Int2,
    /// `0..=3`, four per byte.
    Uint2,
}

impl Packed {
    /// Bits of one code.
    pub fn bits(self) -> u32 {
        match self {
            Packed::Int4 | Packed::Uint4 => 4,
            Packed::Int2 | Packed::Uint2 => 2,
        }
    }

    /// Lowest code.
    pub fn lo(self) -> i32 {
        match self {
            Packed::Int4 => -8,
            Packed::Int2 => -2,
            Packed::Uint4 | Packed::Uint2 => 0,
        }
    }

    /// Highest code.
    pub fn hi(self) -> i32 {
        self.lo() + (1 << self.bits()) - 1
    }

    /// Codes in one byte.
    pub fn per_byte(self) -> usize {
        8 / self.bits() as usize
    }

    /// The narrowest of the types that hold every code of a grid, if one does.
    pub fn smallest(grid: IntegerGrid) -> Option<Self> {
        [Packed::Uint2, Packed::Int2, Packed::Uint4, Packed::Int4]
            .into_iter()
            .find(|packed| packed.lo() <= grid.lo() && grid.hi() <= packed.hi())
    }

    /// The type as ONNX names it.
    pub fn name(self) -> &'static str {
        match self {
            Packed::Int4 => "int4",
            Packed::Uint4 => "uint4",
            Packed::Int2 => "int2",
            Packed::Uint2 => "uint2",
        }
    }

    /// Bytes that `len` codes take; the last one may be partly used.
    pub fn packed_len(self, len: usize) -> usize {
        len.div_ceil(self.per_byte())
    }
}

/// Packs codes, the first one into the lowest bits of the first byte, as ONNX stores them. Unused
/// bits of the last byte are zero.
///
/// # Errors
/// Codes outside the type; an output of another length than [`Packed::packed_len`].
///
/// ```
/// use ff_kernels::{Packed, pack, unpack};
/// let mut bytes = [0; 2];
/// pack(&[1i8, -2, 7], Packed::Int4, &mut bytes)?;
/// assert_eq!(bytes, [0xe1, 0x07]);
/// let mut codes = [0i8; 3];
/// unpack(&bytes, Packed::Int4, &mut codes)?;
/// assert_eq!(codes, [1, -2, 7]);
/// assert!(pack(&[8i8], Packed::Int4, &mut [0]).is_err());
/// # Ok::<(), ff_kernels::KernelError>(())
/// ```
pub fn pack<C: Code>(codes: &[C], packed: Packed, out: &mut [u8]) -> Result<(), KernelError> {
    check_len("packed output", packed.packed_len(codes.len()), out.len())?;
    let (lo, hi) = (packed.lo(), packed.hi());
    let fits = match packed.bits() {
        4 => dispatch(Pack::<C, 4, 2> { codes, out, lo, hi }),
        _ => dispatch(Pack::<C, 2, 4> { codes, out, lo, hi }),
    };
    if fits {
        return Ok(());
    }
    let bad = codes.iter().map(|c| c.to_i32()).enumerate().filter(|(_, c)| !(lo..=hi).contains(c));
    let first = bad.clone().take(SITES_SHOWN).map(|(at, c)| (at, c.into())).collect();
    let count = bad.count();
    Err(KernelErrorKind::CodeOutOfRange { first, count, lo: lo.into(), hi: hi.into() }.into())
}

/// Unpacks the first `out.len()` codes of `bytes`; the inverse of [`pack`]. Unused bits of the last
/// byte may be anything.
///
/// # Errors
/// A type that does not hold every code (`u8` for signed codes); bytes of another length than
/// [`Packed::packed_len`] of `out.len()`.
pub fn unpack<C: Code>(bytes: &[u8], packed: Packed, out: &mut [C]) -> Result<(), KernelError> {
    check_len("packed input", packed.packed_len(out.len()), bytes.len())?;
    if C::MIN > packed.lo() {
        return Err(KernelErrorKind::CodeType {
            lo: packed.lo().into(),
            hi: packed.hi().into(),
            code: C::NAME,
            smallest: i8::NAME,
        }
        .into());
    }
    let lo = packed.lo();
    match packed.bits() {
        4 => dispatch(Unpack::<C, 4, 2> { bytes, out, lo }),
        _ => dispatch(Unpack::<C, 2, 4> { bytes, out, lo }),
    }
    Ok(())
}

/// Packs codes that are known to be of the type.
#[inline(always)]
pub(crate) fn pack_known(codes: &[i8], packed: Packed, out: &mut [u8]) {
    // Shifts of all codes of a byte at once move each to its place.
    let rest = match packed.bits() {
        4 => {
            let (pairs, rest) = codes.as_chunks::<2>();
            for (byte, &[a, b]) in out.iter_mut().zip(pairs) {
                let codes = u16::from_le_bytes([a as u8, b as u8]) & 0x0f0f;
                *byte = (codes | codes >> 4) as u8;
            }
            rest
        }
        _ => {
            let (fours, rest) = codes.as_chunks::<4>();
            for (byte, &[a, b, c, d]) in out.iter_mut().zip(fours) {
                let codes = u32::from_le_bytes([a as u8, b as u8, c as u8, d as u8]) & 0x0303_0303;
                let pairs = codes | codes >> 6;
                *byte = (pairs | pairs >> 12) as u8;
            }
            rest
        }
    };
    if let Some(last) = out.get_mut(codes.len() / packed.per_byte()) {
        let (bits, mask) = (packed.bits(), (1 << packed.bits()) - 1);
        *last =
            (0..).zip(rest).fold(0, |byte, (i, &code)| byte | (code as u8 & mask) << (i * bits));
    }
}

/// Unpacks the first `out.len()` codes of `bytes`.
#[inline(always)]
pub(crate) fn unpack_into<C: Code>(bytes: &[u8], packed: Packed, out: &mut [C]) {
    let lo = packed.lo();
    match packed.bits() {
        4 => Unpack::<C, 4, 2> { bytes, out, lo }.run(),
        _ => Unpack::<C, 2, 4> { bytes, out, lo }.run(),
    }
}

/// `BITS` bits per code, `N` codes per byte.
struct Pack<'a, C, const BITS: u32, const N: usize> {
    codes: &'a [C],
    out: &'a mut [u8],
    lo: i32,
    hi: i32,
}

impl<C: Code, const BITS: u32, const N: usize> Vectorized for Pack<'_, C, BITS, N> {
    type Output = bool;

    #[inline(always)]
    fn run(self) -> bool {
        let Pack { codes, out, lo, hi } = self;
        let mask = (1 << BITS) - 1;
        let mut bad = false;
        let (groups, rest) = codes.as_chunks::<N>();
        for (byte, group) in out.iter_mut().zip(groups) {
            let mut bits = 0;
            for (i, code) in group.iter().enumerate() {
                let code = code.to_i32();
                bad |= (code < lo) | (code > hi);
                bits |= (code & mask) << (i as u32 * BITS);
            }
            *byte = bits as u8;
        }
        if let Some(byte) = out.get_mut(groups.len()) {
            *byte = 0;
            for (i, code) in rest.iter().enumerate() {
                let code = code.to_i32();
                bad |= (code < lo) | (code > hi);
                *byte |= ((code & mask) << (i as u32 * BITS)) as u8;
            }
        }
        !bad
    }
}

struct Unpack<'a, C, const BITS: u32, const N: usize> {
    bytes: &'a [u8],
    out: &'a mut [C],
    lo: i32,
}

impl<C: Code, const BITS: u32, const N: usize> Unpack<'_, C, BITS, N> {
    #[inline(always)]
    fn one(byte: u8, i: usize, lo: i32) -> C {
        let bits = i32::from(byte) >> (i as u32 * BITS) & ((1 << BITS) - 1);
        // Adding and taking away half the codes, modulo all of them, extends the sign.
        C::from_i32(((bits - lo) & ((1 << BITS) - 1)) + lo)
    }
}

impl<C: Code, const BITS: u32, const N: usize> Vectorized for Unpack<'_, C, BITS, N> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let Unpack { bytes, out, lo } = self;
        let (groups, rest) = out.as_chunks_mut::<N>();
        let full = groups.len();
        for (group, &byte) in groups.iter_mut().zip(bytes) {
            for (i, code) in group.iter_mut().enumerate() {
                *code = Self::one(byte, i, lo);
            }
        }
        for (i, code) in rest.iter_mut().enumerate() {
            *code = Self::one(bytes[full], i, lo);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ALL: [Packed; 4] = [Packed::Int4, Packed::Uint4, Packed::Int2, Packed::Uint2];

    proptest! {
        #[test]
        fn round_trips(raw in prop::collection::vec(any::<u8>(), 0..200), which in 0usize..4) {
            let packed = ALL[which];
            let span = packed.hi() - packed.lo() + 1;
            let codes: Vec<i8> =
                raw.iter().map(|&r| (i32::from(r) % span + packed.lo()) as i8).collect();
            let mut bytes = vec![0xff; packed.packed_len(codes.len())];
            pack(&codes, packed, &mut bytes).unwrap();
            for (at, &code) in codes.iter().enumerate() {
                let byte = bytes[at / packed.per_byte()];
                let shift = (at % packed.per_byte()) as u32 * packed.bits();
                let mask = (1u8 << packed.bits()) - 1;
                prop_assert_eq!(byte >> shift & mask, code as u8 & mask);
            }
            let mut back = vec![0i8; codes.len()];
            unpack(&bytes, packed, &mut back).unwrap();
            prop_assert_eq!(&back, &codes);
            let mut wide = vec![0i32; codes.len()];
            unpack(&bytes, packed, &mut wide).unwrap();
            prop_assert!(wide.iter().zip(&codes).all(|(&a, &b)| a == i32::from(b)));
        }
    }

    #[test]
    fn codes_outside_are_listed() {
        let err = pack(&[1i8, -2, 0, 2, -1], Packed::Int2, &mut [0; 2]).unwrap_err();
        assert_eq!(err.to_string(), "1 codes outside -2..=1: 2 at 3");
        let err = pack(&[20i16; 9], Packed::Uint4, &mut [0; 5]).unwrap_err();
        assert!(err.to_string().starts_with("9 codes outside 0..=15: 20 at 0, 20 at 1"), "{err}");
        assert!(err.to_string().ends_with(", ..."), "{err}");
    }

    #[test]
    fn wrong_lengths_and_types_are_refused() {
        assert!(pack(&[0i8; 3], Packed::Int4, &mut [0; 1]).is_err());
        assert!(pack(&[0i8; 3], Packed::Int4, &mut [0; 3]).is_err());
        assert!(unpack(&[0; 2], Packed::Int4, &mut [0i8; 5]).is_err());
        assert!(unpack(&[0; 2], Packed::Int4, &mut [0i8; 2]).is_err());
        assert!(unpack(&[0; 1], Packed::Int4, &mut [0u8; 2]).is_err());
        unpack(&[0x21; 1], Packed::Uint4, &mut [0u8; 2]).unwrap();
        pack::<i8>(&[], Packed::Int2, &mut []).unwrap();
    }

    #[test]
    fn onnx_order_is_low_bits_first() {
        let mut bytes = [0; 1];
        pack(&[0u8, 1, 2, 3], Packed::Uint2, &mut bytes).unwrap();
        assert_eq!(bytes, [0b11_10_01_00]);
    }
}
