//! The one error type of the crate.

use std::fmt;

/// Why a kernel refused its input.
///
/// Kernels check everything they need before they write, with one exception: a NaN found while
/// integer codes are made is reported after the pass, so the output buffer is then unspecified.
#[derive(Debug, Clone, PartialEq)]
pub struct KernelError {
    kind: KernelErrorKind,
}

/// What exactly was wrong; see [`KernelError::kind`].
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum KernelErrorKind {
    /// The tile, or the strides, have another number of dimensions than the data.
    RankMismatch {
        /// What has the wrong rank: `"tile"` or `"strides"`.
        what: &'static str,
        /// Dimensions of the data.
        data: usize,
        /// Dimensions found.
        found: usize,
    },
    /// Tile dimensions that do not divide their data dimension; all of them.
    TileDoesNotDivide {
        /// One entry per offending axis, in order.
        axes: Vec<AxisMismatch>,
    },
    /// The shape holds more elements than `usize` can count.
    TooLarge {
        /// The shape as given.
        shape: Vec<usize>,
    },
    /// A slice has another length than the tiling or its partner needs.
    Length {
        /// Which slice.
        what: &'static str,
        /// The length that would have been right.
        expected: usize,
        /// The length found.
        found: usize,
    },
    /// A strided view reaches past the end of its slice.
    OutOfBounds {
        /// The length the view needs.
        needed: usize,
        /// The length of the slice.
        found: usize,
    },
    /// A strided view where elements must follow one another.
    Strided {
        /// Which slice.
        what: &'static str,
    },
    /// Parameters (one per tile) that cannot be used, for example a scale of zero.
    Parameter {
        /// Which parameter.
        what: &'static str,
        /// What it must be.
        must_be: &'static str,
        /// The tiles concerned, ascending, each with the value found.
        tiles: Vec<(usize, f32)>,
    },
    /// A bit width that this function cannot work with.
    Bits {
        /// The width asked for.
        bits: u32,
        /// The smallest width allowed.
        min: u32,
        /// The largest width allowed.
        max: u32,
    },
    /// An integer grid on which the requested parameters do not exist.
    Grid {
        /// Lowest code.
        lo: i64,
        /// Highest code.
        hi: i64,
        /// Why it cannot be used.
        reason: &'static str,
    },
    /// The codes of a grid do not fit the integer type that should hold them.
    CodeType {
        /// Lowest code of the grid.
        lo: i64,
        /// Highest code of the grid.
        hi: i64,
        /// The type, as written in Rust.
        code: &'static str,
        /// The smallest type that holds the grid.
        smallest: &'static str,
    },
    /// Elements that are not a number, where integer codes or statistics were asked for.
    NotANumber {
        /// How many there are.
        count: usize,
        /// Element numbers (in C order of the data) of the first few.
        first: Vec<usize>,
    },
    /// Elements that are NaN or infinite, where only finite ones can be counted.
    NotFinite {
        /// How many there are.
        count: usize,
        /// Element numbers of the first few.
        first: Vec<usize>,
    },
    /// Tiles whose minimum or maximum is not finite.
    NonFiniteRange {
        /// The tiles concerned, ascending, each with its minimum and maximum.
        tiles: Vec<(usize, f32, f32)>,
    },
    /// Tiles without elements, from which nothing can be learned.
    NoData,
    /// A packed byte string holds a code outside the requested width, or vice versa.
    CodeOutOfRange {
        /// Positions of the offending codes (the first few) with their value.
        first: Vec<(usize, i64)>,
        /// How many there are.
        count: usize,
        /// Lowest code allowed.
        lo: i64,
        /// Highest code allowed.
        hi: i64,
    },
    /// A convolution's window that is larger than its padded input.
    Window {
        /// `"height"` or `"width"`.
        axis: &'static str,
        /// Extent of the window, dilation included.
        window: usize,
        /// Extent of the input, padding included.
        input: usize,
    },
    /// Channels that cannot be dealt out to the groups.
    Groups {
        /// Which channels.
        what: &'static str,
        /// How many there are.
        channels: usize,
        /// How many groups.
        groups: usize,
    },
    /// A sum of integer products that the widest accumulator might not hold.
    SumTooLarge {
        /// Number of products in the sum.
        terms: usize,
        /// The largest magnitude of a left factor.
        left: u64,
        /// The largest magnitude of a right factor.
        right: u64,
    },
    /// A Hessian that has no usable triangular factor.
    NotPositiveDefinite {
        /// The largest damping tried, as a part of the diagonal's mean.
        damping: f64,
    },
    /// An option outside its domain.
    Option {
        /// Which option.
        what: &'static str,
        /// What it must be.
        must_be: &'static str,
        /// The value found.
        found: f64,
    },
}

/// One axis on which the tile does not divide the data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AxisMismatch {
    /// The axis, counted from 0.
    pub axis: usize,
    /// Extent of the data along it.
    pub size: usize,
    /// Extent of the tile along it.
    pub tile: usize,
}

impl KernelError {
    /// What exactly was wrong.
    pub fn kind(&self) -> &KernelErrorKind {
        &self.kind
    }
}

impl From<KernelErrorKind> for KernelError {
    fn from(kind: KernelErrorKind) -> Self {
        KernelError { kind }
    }
}

impl std::error::Error for KernelError {}

impl fmt::Display for KernelError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use KernelErrorKind::*;
        match &self.kind {
            RankMismatch { what, data, found } => {
                write!(f, "{what} has {found} dimensions where the data has {data}")
            }
            TileDoesNotDivide { axes } => {
                f.write_str("tile does not divide the data: ")?;
                list(f, axes, |f, a| write!(f, "axis {} has {} by {}", a.axis, a.size, a.tile))
            }
            TooLarge { shape } => write!(f, "shape {shape:?} has more elements than memory can"),
            Length { what, expected, found } => {
                write!(f, "{what} has {found} elements, expected {expected}")
            }
            OutOfBounds { needed, found } => {
                write!(f, "strided view needs {needed} elements, the slice has {found}")
            }
            Strided { what } => write!(f, "{what} must be contiguous, the tiling has strides"),
            Parameter { what, must_be, tiles } => {
                write!(f, "{what} must be {must_be}: ")?;
                list(f, tiles, |f, (tile, value)| write!(f, "tile {tile} has {value}"))
            }
            Bits { bits, min, max } => {
                write!(f, "{bits} bits asked for, expected {min} to {max}")
            }
            Grid { lo, hi, reason } => write!(f, "grid {lo}..={hi}: {reason}"),
            CodeType { lo, hi, code, smallest } => write!(
                f,
                "codes {lo}..={hi} do not fit {code}, the smallest type that holds them is {smallest}"
            ),
            NotANumber { count, first } => {
                write!(f, "{count} NaN in the data, at ")?;
                list(f, first, |f, at| write!(f, "element {at}"))?;
                if *count > first.len() { f.write_str(", ...") } else { Ok(()) }
            }
            NotFinite { count, first } => {
                write!(f, "{count} values are not finite, at ")?;
                list(f, first, |f, at| write!(f, "element {at}"))?;
                if *count > first.len() { f.write_str(", ...") } else { Ok(()) }
            }
            NonFiniteRange { tiles } => {
                f.write_str("range is not finite: ")?;
                list(f, tiles, |f, (tile, lo, hi)| write!(f, "tile {tile} has {lo} to {hi}"))
            }
            NoData => f.write_str("tile without elements has no range"),
            CodeOutOfRange { first, count, lo, hi } => {
                write!(f, "{count} codes outside {lo}..={hi}: ")?;
                list(f, first, |f, (at, code)| write!(f, "{code} at {at}"))?;
                if *count > first.len() { f.write_str(", ...") } else { Ok(()) }
            }
            Window { axis, window, input } => write!(
                f,
                "window of {window} along the {axis} does not fit the padded input of {input}"
            ),
            Groups { what, channels, groups } => {
                write!(f, "{channels} {what} cannot be dealt out to {groups} groups")
            }
            SumTooLarge { terms, left, right } => write!(
                f,
                "sum of {terms} products of up to {left} by {right} may not fit 64-bit integers, \
                 needs fewer terms or smaller offsets"
            ),
            NotPositiveDefinite { damping } => write!(
                f,
                "hessian is not positive definite with {damping} of its mean diagonal added, \
                 allow more damping or add samples"
            ),
            Option { what, must_be, found } => write!(f, "{what} is {found}, must be {must_be}"),
        }
    }
}

/// Longest list of sites that a message spells out; [`KernelErrorKind`] holds the rest.
pub(crate) const SITES_SHOWN: usize = 8;

fn list<T>(
    f: &mut fmt::Formatter<'_>,
    items: &[T],
    each: impl Fn(&mut fmt::Formatter<'_>, &T) -> fmt::Result,
) -> fmt::Result {
    for (i, item) in items.iter().take(SITES_SHOWN).enumerate() {
        if i > 0 {
            f.write_str(", ")?;
        }
        each(f, item)?;
    }
    if items.len() > SITES_SHOWN {
        write!(f, ", and {} more", items.len() - SITES_SHOWN)?;
    }
    Ok(())
}

/// Fails unless all values are finite.
pub(crate) fn check_finite(finite: impl Iterator<Item = bool>) -> Result<(), KernelError> {
    let (mut count, mut first) = (0, Vec::new());
    for (at, _) in finite.enumerate().filter(|(_, finite)| !finite) {
        count += 1;
        if first.len() < SITES_SHOWN {
            first.push(at);
        }
    }
    if count == 0 { Ok(()) } else { Err(KernelErrorKind::NotFinite { count, first }.into()) }
}

/// Fails unless `found == expected`.
pub(crate) fn check_len(
    what: &'static str,
    expected: usize,
    found: usize,
) -> Result<(), KernelError> {
    if expected == found {
        Ok(())
    } else {
        Err(KernelErrorKind::Length { what, expected, found }.into())
    }
}
