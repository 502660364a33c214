//! `u8 × i8 → i32`, exact on every machine.

use std::rc::Rc;

use rten_gemm::{GemmExecutor, GemmInputA, GemmInputB, GemmOptions, PackedAMatrix, PackedBMatrix};
use rten_tensor::NdTensorView;

use super::buffer::Buffer;
use super::view::CodeView;

/// The longest sum of products that 32 bits always hold: `65536·255·128 < 2^31`.
pub(super) const MAX_TERMS: usize = 1 << 16;

/// Right codes up to this magnitude need no splitting: `2·255·64 < 2^15`.
const SAFE_RIGHT: u8 = 64;

/// Left codes up to this need no splitting: `2·127·128 < 2^15`.
const SAFE_LEFT: u8 = 127;

/// The product of one machine.
pub(super) struct Product {
    executor: GemmExecutor<u8, i8, i32>,
    /// Pairs of products are added in 16 bits with saturation.
    saturates: bool,
}

/// Columns of a right operand as the product wants them.
#[derive(Clone)]
pub(super) struct PackedRight {
    packed: PackedBMatrix<i8>,
    depth: usize,
    largest: u8,
}

/// Rows of a left operand as the product wants them: `low + 128·high`.
#[derive(Clone)]
pub(super) struct PackedLeft {
    low: PackedAMatrix<u8>,
    high: Option<PackedAMatrix<u8>>,
}

impl Product {
    /// This thread's product: asking a virtual machine for its features takes as long as a small layer.
    pub(super) fn shared() -> Rc<Self> {
        thread_local!(static PRODUCT: Rc<Product> = Rc::new(Product::new()));
        PRODUCT.with(Rc::clone)
    }

    fn new() -> Self {
        let executor = GemmExecutor::<u8, i8, i32>::default();
        let saturates = executor.may_saturate();
        Product { executor, saturates }
    }

    /// The product as it runs on a machine that saturates.
    #[cfg(test)]
    pub(super) fn saturating() -> Self {
        Product { saturates: true, ..Product::new() }
    }

    /// Packs `right` (`[depth, columns]`, both at least 1, depth at most [`MAX_TERMS`]), whose codes
    /// are at most `largest` in magnitude.
    pub(super) fn pack_right(&self, right: CodeView<'_, 2>, largest: u8) -> PackedRight {
        let [depth, columns] = right.shape();
        assert!((1..=MAX_TERMS).contains(&depth) && columns > 0);
        let matrix =
            NdTensorView::from_slice_with_strides(right.shape(), right.memory(), right.strides())
                .expect("a CodeView lies inside of its memory");
        PackedRight { packed: self.executor.prepack_b(matrix), depth, largest }
    }

    /// Packs `left` (`[rows, depth]`, strided; both at least 1, depth at most [`MAX_TERMS`]).
    pub(super) fn pack_left(&self, left: &[u8], shape: [usize; 2], stride: usize) -> PackedLeft {
        let [rows, depth] = shape;
        assert!((1..=MAX_TERMS).contains(&depth) && rows > 0);
        let pack = |bytes: &[u8], stride| {
            let matrix = NdTensorView::from_slice_with_strides(shape, bytes, [stride, 1])
                .expect("the rows lie inside of the bytes");
            self.executor.prepack_a(matrix)
        };
        let largest = left.chunks(stride).take(rows).flat_map(|row| &row[..depth]).max();
        let fits = largest.is_some_and(|&u| u <= SAFE_LEFT);
        if !self.saturates || fits {
            return PackedLeft { low: pack(left, stride), high: None };
        }
        let mut part = Buffer::<u8>::take(rows * depth);
        fill(&mut part, left, depth, stride, |byte| byte >> 7);
        let high = Some(pack(&part, depth));
        fill(&mut part, left, depth, stride, |byte| byte & 127);
        PackedLeft { low: pack(&part, depth), high }
    }

    /// Writes `Σ_k left[i, k]·right[k, j]` into `out` (`[rows, columns]`).
    pub(super) fn multiply_packed(
        &self,
        left: &PackedLeft,
        right: CodeView<'_, 2>,
        out: &mut [i32],
    ) {
        let right =
            NdTensorView::from_slice_with_strides(right.shape(), right.memory(), right.strides())
                .expect("a CodeView lies inside of its memory");
        let gemm = |left: &PackedAMatrix<u8>, out: &mut [i32]| {
            let (left, right) = (GemmInputA::Packed(left), GemmInputB::Unpacked(right));
            self.executor
                .gemm(out, left, right, GemmOptions::default())
                .expect("shapes agree, and the left side was packed by the same kernel");
        };
        gemm(&left.low, out);
        if let Some(left) = &left.high {
            let mut high = Buffer::<i32>::take(out.len());
            gemm(left, &mut high);
            for (out, high) in out.iter_mut().zip(high.iter()) {
                *out += 128 * high;
            }
        }
    }

    /// Writes `Σ_k left[i, first + k]·right[k, j]` into `out` (`[rows, columns]`), where `left` holds
    /// `[rows, stride]` bytes.
    pub(super) fn multiply(
        &self,
        left: &[u8],
        (rows, stride, first): (usize, usize, usize),
        right: &PackedRight,
        out: &mut [i32],
    ) {
        let depth = right.depth;
        assert!(first + depth <= stride && rows * stride <= left.len());
        if rows == 0 {
            return;
        }
        let left = &left[first..];
        if !self.saturates || right.largest <= SAFE_RIGHT {
            return self.gemm(left, [rows, depth], stride, right, out);
        }
        // left = (left & 127) + 128·(left >> 7); pairs are at most 2·127·128 < 2^15.
        let mut part = Buffer::<u8>::take(rows * depth);
        let mut high = Buffer::<i32>::take(out.len());
        fill(&mut part, left, depth, stride, |byte| byte >> 7);
        self.gemm(&part, [rows, depth], depth, right, &mut high);
        fill(&mut part, left, depth, stride, |byte| byte & 127);
        self.gemm(&part, [rows, depth], depth, right, out);
        for (out, high) in out.iter_mut().zip(high.iter()) {
            *out += 128 * high;
        }
    }

    fn gemm(
        &self,
        left: &[u8],
        shape: [usize; 2],
        stride: usize,
        right: &PackedRight,
        out: &mut [i32],
    ) {
        let left = NdTensorView::from_slice_with_strides(shape, left, [stride, 1])
            .expect("the caller checked that the rows lie inside");
        // Zero points would be lost here: some kernels take those of packing time.
        self.executor
            .gemm(
                out,
                GemmInputA::Unpacked(left),
                GemmInputB::Packed(&right.packed),
                GemmOptions::default(),
            )
            .expect("shapes agree, and the right side was packed by the same kernel");
    }
}

impl PackedRight {
    pub(super) fn depth(&self) -> usize {
        self.depth
    }
}

/// Writes a function of the first `depth` bytes of each row.
fn fill(part: &mut [u8], left: &[u8], depth: usize, stride: usize, of: impl Fn(u8) -> u8) {
    for (part, row) in part.chunks_exact_mut(depth).zip(left.chunks(stride)) {
        for (part, &byte) in part.iter_mut().zip(&row[..depth]) {
            *part = of(byte);
        }
    }
}
