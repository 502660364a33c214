//! Filters made ready once for many convolutions.

use std::fmt;

use super::at_least_one;
use crate::error::{KernelError, KernelErrorKind};
use crate::integer::product::{MAX_TERMS, PackedLeft, Product};
use crate::integer::view::{CodeView, elements};

/// Filter codes `[out, channels / groups, height, width]`, ready for
/// [`integer_conv`](super::integer_conv).
///
/// Layers keep one of these as long as their codes stay the same. It holds no scales: the same codes
/// may be used with any.
#[derive(Clone)]
pub struct PackedFilter {
    kind: Kind,
    /// Sum of the codes of each output channel at each element of the window. `[out, height, width]`
    taps: Vec<i64>,
    form: Form,
}

/// What there is to know of a filter but its codes.
#[derive(Debug, Clone, Copy)]
pub(in crate::integer) struct Kind {
    pub(super) shape: [usize; 4],
    pub(super) groups: usize,
    /// Lowest and highest code.
    pub(super) range: (i8, i8),
}

/// How the filter is applied.
#[derive(Clone)]
pub(super) enum Form {
    /// As a product with unfolded input: for each group, `code - lowest` packed, cut along the terms.
    Product(Vec<Vec<PackedLeft>>),
    /// Element by element, on the codes in C order: too few output channels in a group to fill the
    /// product's registers, such as one.
    Direct(Vec<i8>),
}

/// Output channels per group from which on unfolding pays.
const MIN_PRODUCT: usize = 4;

impl PackedFilter {
    /// Packs the codes of a filter, with any strides, for a convolution in `groups` groups.
    ///
    /// # Errors
    /// Output channels that are not a multiple of the groups; no group.
    pub fn new(filter: CodeView<'_, 4>, groups: usize) -> Result<Self, KernelError> {
        Self::pack(&Product::shared(), filter, groups)
    }

    pub(in crate::integer) fn pack(
        product: &Product,
        filter: CodeView<'_, 4>,
        groups: usize,
    ) -> Result<Self, KernelError> {
        let shape = filter.shape();
        check_groups(shape, groups)?;
        let [n_out, depth, height, width] = shape;
        let window = height * width;
        let codes = codes(filter);
        let mut taps = vec![0; elements(&[n_out, height, width])?];
        let range = range(filter);
        if !codes.is_empty() {
            for (taps, codes) in taps.chunks_mut(window).zip(codes.chunks(depth * window)) {
                for codes in codes.chunks(window) {
                    for (tap, &code) in taps.iter_mut().zip(codes) {
                        *tap += i64::from(code);
                    }
                }
            }
        }
        let (per_group, terms) = (n_out / groups, depth * window);
        let form = if per_group < MIN_PRODUCT {
            Form::Direct(codes)
        } else {
            let lowest = range.0;
            let bytes: Vec<u8> =
                codes.iter().map(|&code| code.wrapping_sub(lowest).cast_unsigned()).collect();
            let group = |g: usize| {
                let bytes = bytes.get(g * per_group * terms..).unwrap_or(&[]);
                let blocks = (0..terms).step_by(MAX_TERMS);
                blocks
                    .map(|at| {
                        let shape = [per_group, MAX_TERMS.min(terms - at)];
                        product.pack_left(&bytes[at..], shape, terms)
                    })
                    .collect()
            };
            Form::Product((0..groups).map(group).collect())
        };
        Ok(PackedFilter { kind: Kind { shape, groups, range }, taps, form })
    }

    /// Output channels, channels per group, height and width.
    pub fn shape(&self) -> [usize; 4] {
        self.kind.shape
    }

    /// Groups of channels that know nothing of each other.
    pub fn groups(&self) -> usize {
        self.kind.groups
    }

    pub(in crate::integer) fn kind(&self) -> Kind {
        self.kind
    }

    /// The lowest code.
    pub(super) fn lowest(&self) -> i64 {
        self.kind.range.0.into()
    }

    pub(super) fn form(&self) -> &Form {
        &self.form
    }

    /// Sums of the codes of an output channel at the elements of the window.
    pub(super) fn taps(&self, channel: usize) -> &[i64] {
        let [_, _, height, width] = self.kind.shape;
        let window = height * width;
        &self.taps[channel * window..][..window]
    }
}

impl fmt::Debug for PackedFilter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PackedFilter").field("kind", &self.kind).finish_non_exhaustive()
    }
}

pub(super) fn check_groups(
    [n_out, depth, ..]: [usize; 4],
    groups: usize,
) -> Result<(), KernelError> {
    at_least_one("number of groups", groups)?;
    if !n_out.is_multiple_of(groups) {
        let what = "output channels";
        return Err(KernelErrorKind::Groups { what, channels: n_out, groups }.into());
    }
    if groups.checked_mul(depth).is_none() {
        return Err(KernelErrorKind::TooLarge { shape: vec![groups, depth] }.into());
    }
    Ok(())
}

/// The codes in C order.
fn codes(filter: CodeView<'_, 4>) -> Vec<i8> {
    let [n_out, depth, height, width] = filter.shape();
    let mut codes = Vec::with_capacity(n_out * depth * height * width);
    for j in 0..n_out {
        for c in 0..depth {
            for y in 0..height {
                codes.extend((0..width).map(|x| filter.memory()[filter.at([j, c, y, x])]));
            }
        }
    }
    codes
}

/// The lowest and highest code; zeros if there are none.
pub(super) fn range(filter: CodeView<'_, 4>) -> (i8, i8) {
    let codes = codes(filter);
    let (lo, hi) = (codes.iter().min(), codes.iter().max());
    (lo.copied().unwrap_or(0), hi.copied().unwrap_or(0))
}
