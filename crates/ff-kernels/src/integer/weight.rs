//! Weights made ready once for many products.

use std::fmt;

use rayon::prelude::*;

use super::product::{MAX_TERMS, PackedRight, Product};
use super::view::CodeView;
use crate::simd::{Vectorized, dispatch};

/// Weight codes `[out, in]`, packed for [`integer_linear`](super::integer_linear).
///
/// Packing costs about as much as the product with a few rows, so layers keep one of these as long
/// as their codes stay the same. It holds no scales: the same codes may be used with any.
#[derive(Clone)]
pub struct PackedWeight {
    n_out: usize,
    n_in: usize,
    /// Columns of `[in, out]` in bundles of [`PANEL`]; each cut along `in` at [`MAX_TERMS`].
    panels: Vec<Panel>,
    /// Sum of the codes of each output channel.
    sums: Vec<i64>,
    /// Lowest and highest code.
    range: (i8, i8),
}

/// Neighbouring output channels.
#[derive(Clone)]
pub(super) struct Panel {
    pub(super) width: usize,
    /// Cut along `in`.
    pub(super) blocks: Vec<PackedRight>,
}

/// Output channels that are worked on together: their sums stay in the cache.
const PANEL: usize = 1024;

impl PackedWeight {
    /// Packs the codes of a weight, `[out, in]` with any strides.
    ///
    /// ```
    /// use ff_kernels::{Affine, CodeView, PackedWeight, integer_linear};
    /// let weight = PackedWeight::new(CodeView::new(&[1, -2, 3, 4, 0, -1], [2, 3])?);
    /// let x = CodeView::new(&[10, 20, 30], [1, 3])?;
    /// let (x_affine, w_affine) =
    ///     (Affine { scale: &[0.5], offset: Some(&[2.0]) }, Affine { scale: &[0.25, 1.0], offset: None });
    /// let mut out = [0.0; 2];
    /// integer_linear(x, x_affine, &weight, w_affine, Some(&[0.0, 1.0]), &mut out)?;
    /// // 0.5·0.25·(12·1 - 22·2 + 32·3) and 0.5·(12·4 - 32·1) + 1
    /// assert_eq!(out, [8.0, 9.0]);
    /// # Ok::<(), ff_kernels::KernelError>(())
    /// ```
    pub fn new(weight: CodeView<'_, 2>) -> Self {
        Self::pack(&Product::shared(), weight)
    }

    pub(super) fn pack(product: &Product, weight: CodeView<'_, 2>) -> Self {
        let [n_out, n_in] = weight.shape();
        let right = weight.transposed();
        let (range, sums) = survey(right);
        let largest = range.0.unsigned_abs().max(range.1.unsigned_abs());
        let panels = (0..n_out).step_by(PANEL).collect::<Vec<_>>().into_par_iter().map(|first| {
            let width = PANEL.min(n_out - first);
            let panel = right.columns(first, width);
            let block = |at: usize| panel.rows(at, MAX_TERMS.min(n_in - at));
            let blocks = (0..n_in).step_by(MAX_TERMS).map(block);
            let blocks = blocks.map(|block| product.pack_right(block, largest));
            Panel { width, blocks: blocks.collect() }
        });
        PackedWeight { n_out, n_in, panels: panels.collect(), sums, range }
    }

    /// Output channels and input features, `[out, in]`.
    pub fn shape(&self) -> [usize; 2] {
        [self.n_out, self.n_in]
    }

    /// Sum of the codes of each output channel. `[out]`
    pub fn sums(&self) -> &[i64] {
        &self.sums
    }

    pub(super) fn panels(&self) -> &[Panel] {
        &self.panels
    }

    pub(super) fn range(&self) -> (i8, i8) {
        self.range
    }
}

impl fmt::Debug for PackedWeight {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PackedWeight")
            .field("shape", &self.shape())
            .field("range", &self.range)
            .finish_non_exhaustive()
    }
}

/// The lowest and highest code of a right operand (`[depth, columns]`), and the sum of each column.
pub(super) fn survey(right: CodeView<'_, 2>) -> ((i8, i8), Vec<i64>) {
    dispatch(Survey(right))
}

struct Survey<'a>(CodeView<'a, 2>);

impl Vectorized for Survey<'_> {
    type Output = ((i8, i8), Vec<i64>);

    #[inline(always)]
    fn run(self) -> Self::Output {
        let [depth, columns] = self.0.shape();
        let [down, across] = self.0.strides();
        let mut sums = vec![0i64; columns];
        if depth == 0 || columns == 0 {
            return ((0, 0), sums);
        }
        let memory = self.0.memory();
        let (mut lo, mut hi) = (i8::MAX, i8::MIN);
        if across == 1 {
            let mut narrow = vec![0i32; columns];
            for k in 0..depth {
                let row = &memory[k * down..][..columns];
                lo = row.iter().fold(lo, |lo, &code| lo.min(code));
                hi = row.iter().fold(hi, |hi, &code| hi.max(code));
                for (sum, &code) in narrow.iter_mut().zip(row) {
                    *sum += i32::from(code);
                }
                // Sums of 2^23 codes are at most 2^30.
                if k + 1 == depth || (k + 1).is_multiple_of(1 << 23) {
                    for (sum, narrow) in sums.iter_mut().zip(&mut narrow) {
                        *sum += i64::from(std::mem::take(narrow));
                    }
                }
            }
        } else if down == 1 {
            for (j, sum) in sums.iter_mut().enumerate() {
                for column in memory[j * across..][..depth].chunks(1 << 16) {
                    lo = column.iter().fold(lo, |lo, &code| lo.min(code));
                    hi = column.iter().fold(hi, |hi, &code| hi.max(code));
                    *sum += i64::from(column.iter().map(|&code| i32::from(code)).sum::<i32>());
                }
            }
        } else {
            for (j, sum) in sums.iter_mut().enumerate() {
                for k in 0..depth {
                    let code = memory[k * down + j * across];
                    *sum += i64::from(code);
                    (lo, hi) = (lo.min(code), hi.max(code));
                }
            }
        }
        ((lo, hi), sums)
    }
}
