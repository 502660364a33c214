//! Every kernel beside a copy of the same bytes into a given buffer, which is what memory allows.
//!
//! `cargo bench -p ff-kernels` runs single-threaded; `FF_BENCH_THREADS=2` sets the threads.

use std::cell::RefCell;

use divan::Bencher;
use divan::counter::BytesCount;
use ff_kernels::*;
use matrix::{BATCH, N, Tile, batches, copy, data, grid, read, start_threads};

#[path = "support/matrix.rs"]
mod matrix;

fn main() {
    start_threads();
    divan::main();
}

thread_local! {
    static X: RefCell<Vec<f32>> = RefCell::new(data());
    static OUT: RefCell<Vec<f32>> = RefCell::new(vec![0.0; N * N]);
    static CODES: RefCell<Vec<i8>> = RefCell::new(vec![0; N * N]);
}

use Tile::*;

const ALL: [Tile; 6] = [Tensor, Rows, Columns, Block32, Block128, Block32Down];

fn with_buffers(f: impl FnOnce(&[f32], &mut [f32], &mut [i8])) {
    X.with_borrow(|x| OUT.with_borrow_mut(|out| CODES.with_borrow_mut(|codes| f(x, out, codes))));
}

#[divan::bench]
fn copy_f32(bencher: Bencher) {
    with_buffers(|x, out, _| {
        bencher.counter(BytesCount::of_slice(x)).bench_local(|| copy(out, divan::black_box(x)));
    });
}

#[divan::bench]
fn read_f32(bencher: Bencher) {
    with_buffers(|x, _, _| {
        bencher.counter(BytesCount::of_slice(x)).bench_local(|| read(divan::black_box(x)));
    });
}

#[divan::bench(args = ALL)]
fn fake_quantize_f32(bencher: Bencher, tile: Tile) {
    let (tiling, p) = (tile.tiling(), tile.parameters());
    with_buffers(|x, out, _| {
        bencher.counter(BytesCount::of_slice(x)).bench_local(|| {
            fake_quantize(divan::black_box(x), &tiling, p.affine(), grid(), out).unwrap();
        });
    });
}

#[divan::bench(args = ALL)]
fn quantize_i8(bencher: Bencher, tile: Tile) {
    let (tiling, p) = (tile.tiling(), tile.parameters());
    with_buffers(|x, _, codes| {
        bencher.counter(BytesCount::of_slice(x)).bench_local(|| {
            quantize(divan::black_box(x), &tiling, p.affine(), grid(), codes).unwrap();
        });
    });
}

/// To wider codes, per tensor.
#[divan::bench(types = [i16, i32])]
fn quantize_wide<C: Code>(bencher: Bencher) {
    let (tiling, p) = (Tensor.tiling(), Tensor.parameters());
    let mut codes = vec![C::default(); N * N];
    with_buffers(|x, _, _| {
        bencher.counter(BytesCount::of_slice(x)).bench_local(|| {
            quantize(divan::black_box(x), &tiling, p.affine(), grid(), &mut codes).unwrap();
        });
    });
}

#[divan::bench(args = ALL)]
fn quantize_int4(bencher: Bencher, tile: Tile) {
    let (tiling, p) = (tile.tiling(), tile.parameters());
    let grid = IntegerGrid::signed(4).unwrap();
    let mut bytes = vec![0u8; N * N / 2];
    with_buffers(|x, _, _| {
        bencher.counter(BytesCount::of_slice(x)).bench_local(|| {
            let x = divan::black_box(x);
            quantize_packed(x, &tiling, p.affine(), grid, Packed::Int4, &mut bytes).unwrap();
        });
    });
}

#[divan::bench(args = [Tensor, Rows, Block32])]
fn dequantize_int4(bencher: Bencher, tile: Tile) {
    let (tiling, p) = (tile.tiling(), tile.parameters());
    let bytes: Vec<u8> = (0..N * N / 2).map(|i| i as u8).collect();
    with_buffers(|_, out, _| {
        bencher.counter(BytesCount::of_slice(out)).bench_local(|| {
            let bytes = divan::black_box(&bytes);
            dequantize_packed(bytes, Packed::Int4, &tiling, p.affine(), out).unwrap();
        });
    });
}

#[divan::bench(args = ALL)]
fn dequantize_i8(bencher: Bencher, tile: Tile) {
    let (tiling, p) = (tile.tiling(), tile.parameters());
    with_buffers(|x, out, codes| {
        bencher.counter(BytesCount::of_slice(x)).bench_local(|| {
            dequantize(divan::black_box(codes), &tiling, p.affine(), out).unwrap();
        });
    });
}

#[divan::bench(args = ALL)]
fn backward(bencher: Bencher, tile: Tile) {
    let (tiling, p) = (tile.tiling(), tile.parameters());
    let g = data();
    with_buffers(|x, out, _| {
        bencher.counter(BytesCount::of_slice(x)).bench_local(|| {
            fake_quantize_backward(divan::black_box(x), &tiling, p.affine(), grid(), &g, out)
                .unwrap()
        });
    });
}

/// A forward and a backward pass with a scale that learns: five passes over 64 MiB, as much as two and a half copies.
#[divan::bench(args = ALL)]
fn forward_backward(bencher: Bencher, tile: Tile) {
    let (tiling, p) = (tile.tiling(), tile.parameters());
    let symmetric = Affine { scale: &p.scale, offset: None };
    let g = data();
    let mut grad = vec![0.0; N * N];
    with_buffers(|x, out, _| {
        bencher.counter(BytesCount::new(5 * size_of_val(x))).bench_local(|| {
            fake_quantize(divan::black_box(x), &tiling, symmetric, grid(), out).unwrap();
            fake_quantize_backward(x, &tiling, symmetric, grid(), &g, &mut grad).unwrap()
        });
    });
}

/// Reads all batches once.
#[divan::bench(sample_count = 10)]
fn batches_read(bencher: Bencher) {
    let x = batches();
    bencher.counter(BytesCount::of_slice(&x)).bench_local(|| read(divan::black_box(&x)));
}

/// Minimum and maximum over all batches, merged as they come; per channel on the last axis, or per tensor.
#[divan::bench(args = [false, true], sample_count = 10)]
fn batches_min_max(bencher: Bencher, per_channel: bool) {
    let x = batches();
    let tile = if per_channel { [BATCH[0], BATCH[1], 1] } else { BATCH };
    let tiling = Tiling::new(&BATCH, &tile).unwrap();
    bencher.counter(BytesCount::of_slice(&x)).bench_local(|| {
        let mut seen = MinMax::empty(tiling.num_tiles());
        for batch in divan::black_box(&x).chunks(tiling.len()) {
            seen.merge(&min_max(batch, &tiling).unwrap()).unwrap();
        }
        seen
    });
}

#[divan::bench(args = ALL)]
fn min_max_f32(bencher: Bencher, tile: Tile) {
    let tiling = tile.tiling();
    with_buffers(|x, _, _| {
        bencher
            .counter(BytesCount::of_slice(x))
            .bench_local(|| min_max(divan::black_box(x), &tiling).unwrap());
    });
}

#[divan::bench(args = ALL)]
fn moments_f32(bencher: Bencher, tile: Tile) {
    let tiling = tile.tiling();
    with_buffers(|x, _, _| {
        bencher
            .counter(BytesCount::of_slice(x))
            .bench_local(|| moments(divan::black_box(x), &tiling).unwrap());
    });
}

#[divan::bench(args = ALL)]
fn dynamic_i8(bencher: Bencher, tile: Tile) {
    let tiling = tile.tiling();
    let options = RangeOptions { symmetric: false, ..Default::default() };
    with_buffers(|x, _, codes| {
        bencher.counter(BytesCount::of_slice(x)).bench_local(|| {
            dynamic_quantize(divan::black_box(x), &tiling, grid(), &options, codes).unwrap()
        });
    });
}

/// 100 candidates, 4 bits.
#[divan::bench(args = [(Rows, true), (Rows, false), (Columns, true), (Tensor, true), (Block128, true)], sample_count = 3)]
fn min_error_grid(bencher: Bencher, (tile, symmetric): (Tile, bool)) {
    let tiling = tile.tiling();
    let grid = IntegerGrid::signed(4).unwrap();
    let options = RangeOptions { symmetric, ..Default::default() };
    with_buffers(|x, _, _| {
        let range = min_max(x, &tiling).unwrap();
        let layout = CandidateLayout::REFERENCE;
        let candidates = Candidates::new(&range.min, &range.max, symmetric, 100, layout).unwrap();
        bencher.counter(BytesCount::of_slice(x)).bench_local(|| {
            search_min_error(divan::black_box(x), &tiling, &candidates, grid, &options).unwrap()
        });
    });
}

#[divan::bench(args = [Tensor, Rows, Columns], sample_count = 10)]
fn histogram_2048(bencher: Bencher, tile: Tile) {
    let tiling = tile.tiling();
    with_buffers(|x, _, _| {
        let empty = vec![Histogram::new(2048).unwrap(); tiling.num_tiles()];
        bencher.counter(BytesCount::of_slice(x)).with_inputs(|| empty.clone()).bench_local_values(
            |mut seen| {
                histograms(divan::black_box(x), &tiling, &mut seen).unwrap();
                seen
            },
        );
    });
}

#[divan::bench]
fn pack_int4(bencher: Bencher) {
    let codes: Vec<i8> = (0..N * N).map(|i| (i % 16) as i8 - 8).collect();
    let mut bytes = vec![0u8; N * N / 2];
    bencher.counter(BytesCount::of_slice(&codes)).bench_local(|| {
        pack(divan::black_box(&codes), Packed::Int4, &mut bytes).unwrap();
    });
}

#[divan::bench]
fn unpack_int4(bencher: Bencher) {
    let bytes: Vec<u8> = (0..N * N / 2).map(|i| i as u8).collect();
    let mut codes = vec![0i8; N * N];
    bencher.counter(BytesCount::of_slice(&codes)).bench_local(|| {
        unpack(divan::black_box(&bytes), Packed::Int4, &mut codes).unwrap();
    });
}

#[divan::bench]
fn copy_i8(bencher: Bencher) {
    with_buffers(|_, _, codes| {
        let from = vec![1i8; N * N];
        bencher
            .counter(BytesCount::of_slice(&from))
            .bench_local(|| copy(codes, divan::black_box(&from)));
    });
}

#[divan::bench]
fn difference(bencher: Bencher) {
    let other = data();
    with_buffers(|x, _, _| {
        bencher
            .counter(BytesCount::of_slice(x))
            .bench_local(|| Difference::of(divan::black_box(x), &other).unwrap());
    });
}
