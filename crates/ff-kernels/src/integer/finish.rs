//! From integer sums to floats.

use super::buffer::Pooled;
use super::operand::Operand;
use crate::simd::{Vectorized, dispatch};

/// Integers that hold complete sums. Arithmetic wraps: the steps to a sum that fits may leave the
/// range and come back, which is exact modulo `2^n`.
pub(super) trait Sum: Pooled + From<i32> + Send + Sync {
    fn of(value: i64) -> Self;
    fn plus(self, other: Self) -> Self;
    fn times(self, other: Self) -> Self;
    /// The nearest float, ties to even.
    fn to_f32(self) -> f32;
}

macro_rules! sum {
    ($type:ty) => {
        impl Sum for $type {
            #[inline(always)]
            fn of(value: i64) -> Self {
                value as $type
            }
            #[inline(always)]
            fn plus(self, other: Self) -> Self {
                self.wrapping_add(other)
            }
            #[inline(always)]
            fn times(self, other: Self) -> Self {
                self.wrapping_mul(other)
            }
            #[inline(always)]
            fn to_f32(self) -> f32 {
                self as f32
            }
        }
    };
}
sum!(i32);
sum!(i64);

/// What is needed of each right column to finish the sums of a row. `[columns]` each
pub(super) struct Columns<'a, S> {
    /// Sums of the codes.
    sums: Vec<S>,
    /// Offsets; none if all are zero.
    offset: Vec<S>,
    scale: Vec<f32>,
    bias: Option<&'a [f32]>,
}

impl<'a, S: Sum> Columns<'a, S> {
    pub(super) fn new(sums: &[i64], right: &Operand, bias: Option<&'a [f32]>) -> Self {
        let n = sums.len();
        let offset = if right.is_symmetric() { 0 } else { n };
        Columns {
            sums: sums.iter().map(|&sum| S::of(sum)).collect(),
            offset: (0..offset).map(|j| S::of(right.offset(j))).collect(),
            scale: (0..n).map(|j| right.scale(j)).collect(),
            bias,
        }
    }

    /// Whether rows must be summed.
    pub(super) fn need_row_sums(&self) -> bool {
        !self.offset.is_empty()
    }
}

/// What is needed of each left row to finish its sums.
pub(super) struct Row<S> {
    pub(super) scale: f32,
    /// The offset `o_a` less the 128 that `u` has too much.
    pub(super) zero: S,
    /// `Σ (q_a + o_a)`, if the columns need it.
    pub(super) sum: S,
}

/// Writes `s_a·s_w·Σ (q_a + o_a)(q_w + o_w) + bias` for rows of sums side by side.
///
/// With `u = q_a + 128`, the sum is `Σ u·q_w + (o_a - 128)·Σ q_w + o_w·Σ (q_a + o_a)`. It is
/// rounded to f32 once, multiplied with the rounded product of the scales, and the bias added.
pub(super) struct Finish<'a, R, S> {
    /// Sums `Σ u·q_w` with `u = q_a + 128`. `[rows, width]`
    pub(super) raw: &'a [R],
    pub(super) rows: &'a [Row<S>],
    pub(super) columns: &'a Columns<'a, S>,
    /// The columns `first..first + width` of all are those of `raw`.
    pub(super) first: usize,
    pub(super) width: usize,
    /// `[rows, columns]`
    pub(super) out: &'a mut [f32],
}

impl<R: Copy + Into<S>, S: Sum> Finish<'_, R, S> {
    pub(super) fn apply(self) {
        dispatch(self);
    }
}

impl<R: Copy + Into<S>, S: Sum> Vectorized for Finish<'_, R, S> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let range = self.first..self.first + self.width;
        let sums = &self.columns.sums[range.clone()];
        let scales = &self.columns.scale[range.clone()];
        let bias = self.columns.bias.map(|bias| &bias[range.clone()]);
        let rows =
            self.raw.chunks_exact(self.width).zip(self.out.chunks_mut(self.columns.sums.len()));
        for ((raw, out), row) in rows.zip(self.rows) {
            let out = &mut out[range.clone()];
            if self.columns.offset.is_empty() {
                for (((out, &raw), &sum), &scale) in out.iter_mut().zip(raw).zip(sums).zip(scales) {
                    *out = raw.into().plus(row.zero.times(sum)).to_f32() * (row.scale * scale);
                }
            } else {
                let offsets = &self.columns.offset[range.clone()];
                let columns = sums.iter().zip(offsets).zip(scales);
                for ((out, &raw), ((&sum, &offset), &scale)) in out.iter_mut().zip(raw).zip(columns)
                {
                    let sum = raw.into().plus(row.zero.times(sum)).plus(row.sum.times(offset));
                    *out = sum.to_f32() * (row.scale * scale);
                }
            }
            if let Some(bias) = bias {
                for (out, bias) in out.iter_mut().zip(bias) {
                    *out += bias;
                }
            }
        }
    }
}
