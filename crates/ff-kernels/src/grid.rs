//! Integer grids and the integer types that hold their codes.

use std::fmt;

use crate::error::{KernelError, KernelErrorKind};

/// The integers `lo..=hi` that a quantizer rounds to.
///
/// ```
/// use ff_kernels::IntegerGrid;
/// let grid = IntegerGrid::signed(4)?;
/// assert_eq!((grid.lo(), grid.hi()), (-8, 7));
/// assert_eq!(grid.to_string(), "-8..=7");
/// let narrow = IntegerGrid::narrow(8)?;
/// assert_eq!((narrow.lo(), narrow.hi()), (-127, 127));
/// assert!(IntegerGrid::signed(26).is_err()); // not exact in f32 arithmetic
/// # Ok::<(), ff_kernels::KernelError>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct IntegerGrid {
    lo: i32,
    hi: i32,
}

impl IntegerGrid {
    /// The widest grid: 25 bits is the last width whose bounds, and so whose codes, are all exact
    /// in f32.
    pub const MAX_BITS: u32 = 25;

    /// The signed grid `-2^(bits-1) ..= 2^(bits-1)-1` (spec §4.2), for 1 to 25 bits.
    pub fn signed(bits: u32) -> Result<Self, KernelError> {
        check_bits(bits, 1, Self::MAX_BITS)?;
        Ok(IntegerGrid { lo: -(1 << (bits - 1)), hi: (1 << (bits - 1)) - 1 })
    }

    /// The signed grid without its lowest code, `-(2^(bits-1)-1) ..= 2^(bits-1)-1`, for 2 to 25
    /// bits: symmetric around zero, as some integer kernels need their weights.
    pub fn narrow(bits: u32) -> Result<Self, KernelError> {
        check_bits(bits, 2, Self::MAX_BITS)?;
        let hi = (1 << (bits - 1)) - 1;
        Ok(IntegerGrid { lo: -hi, hi })
    }

    /// The unsigned grid `0 ..= 2^bits-1`, for 1 to 24 bits.
    pub fn unsigned(bits: u32) -> Result<Self, KernelError> {
        check_bits(bits, 1, Self::MAX_BITS - 1)?;
        Ok(IntegerGrid { lo: 0, hi: (1 << bits) - 1 })
    }

    /// Any grid of at least two codes whose bounds lie within `-2^24 ..= 2^24`.
    pub fn new(lo: i32, hi: i32) -> Result<Self, KernelError> {
        const LIMIT: i32 = 1 << (IntegerGrid::MAX_BITS - 1);
        let reason = if lo >= hi {
            "needs at least two codes, in ascending order"
        } else if lo < -LIMIT || hi > LIMIT {
            "bounds beyond 2^24 are not exact in f32"
        } else {
            return Ok(IntegerGrid { lo, hi });
        };
        Err(KernelErrorKind::Grid { lo: lo.into(), hi: hi.into(), reason }.into())
    }

    /// The lowest code.
    pub fn lo(self) -> i32 {
        self.lo
    }

    /// The highest code.
    pub fn hi(self) -> i32 {
        self.hi
    }

    /// The distance from the lowest to the highest code: one less than the number of codes.
    pub fn steps(self) -> i32 {
        self.hi - self.lo
    }

    /// Whether every code of the grid is a value of `C`.
    pub fn fits<C: Code>(self) -> bool {
        C::MIN <= self.lo && self.hi <= C::MAX
    }

    /// Fails unless every code of the grid is a value of `C`.
    pub fn check_fits<C: Code>(self) -> Result<(), KernelError> {
        if self.fits::<C>() {
            return Ok(());
        }
        Err(KernelErrorKind::CodeType {
            lo: self.lo.into(),
            hi: self.hi.into(),
            code: C::NAME,
            smallest: self.smallest_code(),
        }
        .into())
    }

    /// The name of the smallest of `i8`, `u8`, `i16`, `u16`, `i32` that holds every code.
    pub fn smallest_code(self) -> &'static str {
        if self.fits::<i8>() {
            i8::NAME
        } else if self.fits::<u8>() {
            u8::NAME
        } else if self.fits::<i16>() {
            i16::NAME
        } else if self.fits::<u16>() {
            u16::NAME
        } else {
            i32::NAME
        }
    }
}

impl fmt::Display for IntegerGrid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}..={}", self.lo, self.hi)
    }
}

/// An integer type that stores codes: `i8`, `u8`, `i16`, `u16` or `i32`.
pub trait Code:
    Copy + Default + PartialEq + fmt::Debug + Send + Sync + 'static + sealed::Sealed
{
    /// Lowest value.
    const MIN: i32;
    /// Highest value.
    const MAX: i32;
    /// The type as written in Rust.
    const NAME: &'static str;
    /// The code of a value known to lie within `MIN..=MAX`.
    fn from_i32(value: i32) -> Self;
    /// The value of a code.
    fn to_i32(self) -> i32;
}

mod sealed {
    pub trait Sealed {}
}

macro_rules! code {
    ($($ty:ident),*) => {$(
        impl sealed::Sealed for $ty {}
        impl Code for $ty {
            const MIN: i32 = $ty::MIN as i32;
            const MAX: i32 = $ty::MAX as i32;
            const NAME: &'static str = stringify!($ty);
            #[inline(always)]
            fn from_i32(value: i32) -> Self {
                value as $ty
            }
            #[inline(always)]
            fn to_i32(self) -> i32 {
                self as i32
            }
        }
    )*};
}
code!(i8, u8, i16, u16, i32);

fn check_bits(bits: u32, min: u32, max: u32) -> Result<(), KernelError> {
    if (min..=max).contains(&bits) {
        Ok(())
    } else {
        Err(KernelErrorKind::Bits { bits, min, max }.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_refused_exactly_when_they_do_not_fit() {
        for bits in 1..=25 {
            let grid = IntegerGrid::signed(bits).unwrap();
            assert_eq!(grid.fits::<i8>(), bits <= 8, "{bits}");
            assert_eq!(grid.fits::<i16>(), bits <= 16, "{bits}");
            assert!(grid.fits::<i32>());
            assert!(!grid.fits::<u8>() && !grid.fits::<u16>());
        }
        assert!(IntegerGrid::unsigned(8).unwrap().fits::<u8>());
        assert!(!IntegerGrid::unsigned(8).unwrap().fits::<i8>());
        let err = IntegerGrid::signed(10).unwrap().check_fits::<i8>().unwrap_err();
        assert_eq!(
            err.to_string(),
            "codes -512..=511 do not fit i8, the smallest type that holds them is i16"
        );
    }

    #[test]
    fn nonsense_widths_are_refused() {
        assert!(IntegerGrid::signed(0).is_err());
        assert!(IntegerGrid::signed(26).is_err());
        assert!(IntegerGrid::narrow(1).is_err());
        assert!(IntegerGrid::unsigned(25).is_err());
        assert!(IntegerGrid::new(3, 3).is_err());
        assert!(IntegerGrid::new(0, (1 << 24) + 1).is_err());
    }
}
