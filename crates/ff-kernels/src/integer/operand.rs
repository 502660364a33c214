//! Scales and offsets of the operands, and how large their sums can become.

use crate::affine::{Affine, check_each};
use crate::error::{KernelError, KernelErrorKind, check_len};

/// The largest magnitude of a rounded offset that integer products take: with it, `q + round(o)`
/// is exact in f32 for every 8-bit code, as the simulation computes it.
pub const MAX_OFFSET: f32 = ((1 << 24) - 128) as f32;

/// What an operand's parameters are called in errors.
pub(super) struct Side {
    scale: &'static str,
    offset: &'static str,
}

pub(super) const ACTIVATION: Side = Side { scale: "activation scale", offset: "activation offset" };
pub(super) const WEIGHT: Side = Side { scale: "weight scale", offset: "weight offset" };
pub(super) const LEFT: Side = Side { scale: "left scale", offset: "left offset" };
pub(super) const RIGHT: Side = Side { scale: "right scale", offset: "right offset" };

/// Scales and rounded offsets, one for all or one each.
#[derive(Debug)]
pub(super) struct Operand {
    scale: Vec<f32>,
    offset: Vec<i64>,
}

impl Operand {
    /// Checks parameters of `count` rows, columns or channels, of which there may also be one set.
    pub(super) fn new(side: &Side, affine: Affine<'_>, count: usize) -> Result<Self, KernelError> {
        let Affine { scale, offset } = affine;
        if scale.len() != 1 {
            check_len(side.scale, count, scale.len())?;
        }
        check_each(side.scale, "positive and finite", scale, |s| s > 0.0 && s < f32::INFINITY)?;
        let offset = match offset {
            None => vec![0; scale.len()],
            Some(offset) => {
                check_len(side.offset, scale.len(), offset.len())?;
                check_each(side.offset, "at most 16777088 in magnitude", offset, |o| {
                    o.round_ties_even().abs() <= MAX_OFFSET
                })?;
                offset.iter().map(|o| o.round_ties_even() as i64).collect()
            }
        };
        Ok(Operand { scale: scale.to_vec(), offset })
    }

    #[inline(always)]
    pub(super) fn scale(&self, index: usize) -> f32 {
        if self.scale.len() == 1 { self.scale[0] } else { self.scale[index] }
    }

    #[inline(always)]
    pub(super) fn offset(&self, index: usize) -> i64 {
        if self.offset.len() == 1 { self.offset[0] } else { self.offset[index] }
    }

    pub(super) fn is_symmetric(&self) -> bool {
        self.offset.iter().all(|&o| o == 0)
    }

    /// The largest `|q + o|` of codes `lo..=hi`.
    fn largest(&self, (lo, hi): (i8, i8)) -> u64 {
        let of =
            |&o: &i64| (o + i64::from(lo)).unsigned_abs().max((o + i64::from(hi)).unsigned_abs());
        self.offset.iter().map(of).max().unwrap_or(0)
    }
}

/// The range of codes that were not looked at.
pub(super) const ANY_CODE: (i8, i8) = (i8::MIN, i8::MAX);

/// Which integers hold the sums.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Width {
    /// Every complete sum fits 32 bits; what is added and taken away on the way may wrap.
    Narrow,
    /// Every complete sum fits 64 bits.
    Wide,
}

impl Width {
    /// The width for `terms` products of codes in the given ranges.
    pub(super) fn of(
        terms: usize,
        (left, left_codes): (&Operand, (i8, i8)),
        (right, right_codes): (&Operand, (i8, i8)),
    ) -> Result<Width, KernelError> {
        finite_scales(left, right)?;
        let (left, right) = (left.largest(left_codes), right.largest(right_codes));
        let sum = terms as u128 * u128::from(left) * u128::from(right);
        if sum <= i32::MAX as u128 && terms <= super::product::MAX_TERMS {
            Ok(Width::Narrow)
        } else if sum <= i64::MAX as u128 {
            Ok(Width::Wide)
        } else {
            Err(KernelErrorKind::SumTooLarge { terms, left, right }.into())
        }
    }
}

/// Fails where a product of scales is infinite: it would turn a sum of zero into NaN.
fn finite_scales(left: &Operand, right: &Operand) -> Result<(), KernelError> {
    let largest = left.scale.iter().copied().fold(0.0, f32::max);
    let products = right.scale.iter().map(|s| s * largest).enumerate();
    let tiles: Vec<_> = products.filter(|(_, s)| s.is_infinite()).collect();
    if tiles.is_empty() {
        return Ok(());
    }
    Err(KernelErrorKind::Parameter { what: "product of scales", must_be: "finite", tiles }.into())
}
