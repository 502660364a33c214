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
