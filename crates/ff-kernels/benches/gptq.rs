//! GPTQ's parts beside the matrix products that they cannot do without.
//!
//! Every row shows the multiplications and additions that the work needs (a symmetric product needs half of a full one,
//! a triangular factor a third of a cube), so rows are compared by their rate. `FF_BENCH_THREADS=2` sets the threads.

use divan::counter::ItemsCount;
use divan::{Bencher, black_box};
use ff_kernels::*;

/// The program's allocator: results of earlier runs are not paged in again.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() {
    let threads = std::env::var("FF_BENCH_THREADS").ok().and_then(|n| n.parse().ok()).unwrap_or(1);
    rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .build_global()
        .expect("no pool was started before");
    divan::main();
}

/// Roughly normal numbers, deviation `0.5`.
fn noise(len: usize, seed: u64) -> Vec<f32> {
    let mut state = 0x2545_f491_4f6c_dd1d ^ (seed << 17);
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1 << 24) as f32 - 0.5
    };
    (0..len).map(|_| next() + next() + next()).collect()
}

/// The limit: a square product of floats.
#[divan::bench(args = [1024, 2048])]
fn gemm_limit(bencher: Bencher<'_, '_>, n: usize) {
    let (a, b, mut c) = (noise(n * n, 1), noise(n * n, 2), vec![0.0; n * n]);
    let step = n as isize;
    let parallelism = match rayon::current_num_threads() {
        1 => gemm::Parallelism::None,
        n => gemm::Parallelism::Rayon(n),
    };
    bencher.counter(ItemsCount::new(2 * n * n * n)).bench_local(|| {
        let (a, b) = (black_box(&a).as_ptr(), b.as_ptr());
        // SAFETY: three square matrices of n rows, as long as the buffers.
        unsafe {
            gemm::gemm(
                n,
                n,
                n,
                c.as_mut_ptr(),
                1,
                step,
                false,
                a,
                1,
                step,
                b,
                1,
                step,
                0.0,
                1.0,
                false,
                false,
                false,
                parallelism,
            );
        }
    });
}

/// Samples of a batch.
const BATCH: usize = 512;

#[divan::bench(args = [(1024, 65536), (2048, 32768), (4096, 16384)])]
fn hessian(bencher: Bencher<'_, '_>, (features, samples): (usize, usize)) {
    let batch = noise(BATCH * features, 3);
    bencher.counter(ItemsCount::new(samples * features * features)).bench_local(|| {
        let mut hessian = Hessian::new(features).unwrap();
        for _ in 0..samples / BATCH {
            hessian.add(black_box(&batch)).unwrap();
        }
        hessian.count()
    });
}

/// The size of a large layer's calibration, once.
#[divan::bench(args = [(4096, 65536)], sample_count = 1, sample_size = 1)]
fn hessian_once(bencher: Bencher<'_, '_>, (features, samples): (usize, usize)) {
    let batches: Vec<Vec<f32>> = (0..8).map(|seed| noise(BATCH * features, seed)).collect();
    bencher.counter(ItemsCount::new(samples * features * features)).bench_local(|| {
        let mut hessian = Hessian::new(features).unwrap();
        for batch in batches.iter().cycle().take(samples / BATCH) {
            hessian.add(black_box(batch)).unwrap();
        }
        hessian.count()
    });
}

/// A Hessian of inputs that are related, as those of real layers are.
fn related(features: usize) -> Hessian {
    let samples = features / 2 + 256;
    let mut x = noise(samples * features, 5);
    for x in x.chunks_exact_mut(features) {
        for i in 1..features {
            x[i] += 0.5 * x[i - 1];
        }
    }
    let mut hessian = Hessian::new(features).unwrap();
    hessian.add(&x).unwrap();
    hessian
}

/// A third of a cube multiplications and additions, in f64: half the limit's rate at best.
#[divan::bench(args = [1024, 2048, 4096])]
fn factor(bencher: Bencher<'_, '_>, n: usize) {
    let mut hessian = related(n);
    let options = FactorOptions::default();
    bencher
        .counter(ItemsCount::new(n * n * n / 3))
        .bench_local(|| HessianFactor::new(black_box(&mut hessian), &options).unwrap());
}

#[derive(Debug, Clone, Copy)]
enum Kind {
    Channel,
    ActOrder,
    Block128,
}

/// The products of the trailing columns, `rows · columns²`.
fn update(bencher: Bencher<'_, '_>, n: usize, kind: Kind, nearest: NearestRounding) {
    let act_order = matches!(kind, Kind::ActOrder);
    let damping = FactorOptions { act_order, ..Default::default() };
    let factor = HessianFactor::new(&mut related(n), &damping).unwrap();
    let weight = noise(n * n, 9);
    let tile = if matches!(kind, Kind::Block128) { [1, 128] } else { [1, n] };
    let tiling = Tiling::new(&[n, n], &tile).unwrap();
    let grid = IntegerGrid::signed(4).unwrap();
    let options = GptqOptions { nearest, ..Default::default() };
    bencher
        .counter(ItemsCount::new(n * n * n))
        .bench_local(|| gptq(black_box(&weight), &tiling, grid, &factor, &options).unwrap());
}

const CASES: [(usize, Kind); 9] = [
    (1024, Kind::Channel),
    (1024, Kind::ActOrder),
    (1024, Kind::Block128),
    (2048, Kind::Channel),
    (2048, Kind::ActOrder),
    (2048, Kind::Block128),
    (4096, Kind::Channel),
    (4096, Kind::ActOrder),
    (4096, Kind::Block128),
];

/// The reference's algorithm.
#[divan::bench(args = CASES)]
fn update_plain(bencher: Bencher<'_, '_>, (n, kind): (usize, Kind)) {
    update(bencher, n, kind, NearestRounding::Ignore);
}

/// With the comparison that keeps every row from losing more than nearest rounding.
#[divan::bench(args = CASES)]
fn update_guarded(bencher: Bencher<'_, '_>, (n, kind): (usize, Kind)) {
    update(bencher, n, kind, NearestRounding::Guard);
}

/// With that comparison brought to its end.
#[divan::bench(args = CASES)]
fn update_reported(bencher: Bencher<'_, '_>, (n, kind): (usize, Kind)) {
    update(bencher, n, kind, NearestRounding::Report);
}
