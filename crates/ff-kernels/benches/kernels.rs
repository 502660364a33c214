//! Every kernel beside a copy of the same bytes into a given buffer, which is what memory allows.
//!
//! `cargo bench -p ff-kernels` runs single-threaded; `FF_BENCH_THREADS=2` sets the threads.

use std::cell::RefCell;

use divan::Bencher;
use divan::counter::BytesCount;
use ff_kernels::*;

fn main() {
    let threads = std::env::var("FF_BENCH_THREADS").ok().and_then(|n| n.parse().ok()).unwrap_or(1);
    rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .build_global()
        .expect("no pool was started before");
    divan::main();
}

const N: usize = 4096;

/// Values like weights: roughly normal, mean 0, deviation 1.
fn data() -> Vec<f32> {
    let mut state = 0x2545_f491_4f6c_dd1du64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1 << 24) as f32 - 0.5
    };
    (0..N * N).map(|_| (next() + next() + next() + next()) * 1.7).collect()
}

thread_local! {
    static X: RefCell<Vec<f32>> = RefCell::new(data());
    static OUT: RefCell<Vec<f32>> = RefCell::new(vec![0.0; N * N]);
    static CODES: RefCell<Vec<i8>> = RefCell::new(vec![0; N * N]);
}

#[derive(Debug, Clone, Copy)]
enum Tile {
    Tensor,
    Rows,
    Columns,
    Block32,
    Block128,
    Block32Down,
}
use Tile::*;

const ALL: [Tile; 6] = [Tensor, Rows, Columns, Block32, Block128, Block32Down];

impl std::fmt::Display for Tile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::Debug::fmt(self, f)
    }
}

impl Tile {
    fn tiling(self) -> Tiling {
        let tile = match self {
            Tensor => [N, N],
            Rows => [1, N],
            Columns => [N, 1],
            Block32 => [1, 32],
            Block128 => [1, 128],
            Block32Down => [32, 1],
        };
        Tiling::new(&[N, N], &tile).unwrap()
    }

    fn parameters(self) -> Parameters {
        let n = self.tiling().num_tiles();
        Parameters {
            scale: (0..n).map(|i| 0.02 + (i % 17) as f32 * 0.001).collect(),
            offset: Some((0..n).map(|i| (i % 7) as f32 - 3.0).collect()),
        }
    }
}

fn grid() -> IntegerGrid {
    IntegerGrid::signed(8).unwrap()
}

fn with_buffers(f: impl FnOnce(&[f32], &mut [f32], &mut [i8])) {
    X.with_borrow(|x| OUT.with_borrow_mut(|out| CODES.with_borrow_mut(|codes| f(x, out, codes))));
}

#[divan::bench]
fn copy_f32(bencher: Bencher) {
    with_buffers(|x, out, _| {
        bencher
            .counter(BytesCount::of_slice(x))
            .bench_local(|| out.copy_from_slice(divan::black_box(x)));
    });
}

#[divan::bench]
fn read_f32(bencher: Bencher) {
    with_buffers(|x, _, _| {
        bencher.counter(BytesCount::of_slice(x)).bench_local(|| {
            let mut sums = [0u32; 64];
            for chunk in divan::black_box(x).as_chunks::<64>().0 {
                for (sum, x) in sums.iter_mut().zip(chunk) {
                    *sum ^= x.to_bits();
                }
            }
            sums
        });
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
            .bench_local(|| codes.copy_from_slice(divan::black_box(&from)));
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
