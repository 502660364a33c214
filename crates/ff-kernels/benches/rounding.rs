//! Rounding by output error: a convolution of 32 to 64 channels, and linear layers of two sizes.
//!
//! AdaRound's time is proportional to its iterations: the names say how many are run.

use divan::{Bencher, black_box};
use ff_kernels::{
    AdaRoundOptions, Affine, AwqOptions, CandidateLayout, Candidates, HqqOptions, IntegerGrid,
    LayerMoments, MomentSums, Parameters, RangeOptions, Tiling, activation_weighted_mse, adaround,
    awq, coordinate_descent, hqq, min_max, parameters_for_range, reconstruction_losses,
    sequential_mse,
};

fn main() {
    divan::main();
}

/// Name, rows, columns, iterations of AdaRound.
const CASES: [(&str, usize, usize, usize); 3] =
    [("64x288", 64, 288, 1000), ("1024x1024", 1024, 1024, 50), ("4096x4096", 4096, 4096, 3)];

const NAMES: [&str; 3] = [CASES[0].0, CASES[1].0, CASES[2].0];

struct Layer {
    weight: Vec<f32>,
    moments: LayerMoments,
    tiling: Tiling,
    parameters: Parameters,
    grid: IntegerGrid,
    iterations: usize,
}

impl Layer {
    /// Inputs that depend on each other; 4-bit weights per channel.
    fn new(name: &str) -> Self {
        let (_, rows, columns, iterations) =
            *CASES.iter().find(|case| case.0 == name).expect("one of the names above");
        let mut state = 1u64;
        let mut noise = || {
            state =
                state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963);
            (state >> 40) as f32 / (1 << 23) as f32 - 1.0
        };
        let mut sums = MomentSums::new(columns);
        let mut inputs = vec![0.0; 2 * columns * columns.min(1024)];
        for sample in inputs.chunks_exact_mut(columns) {
            let mut last = 0.0;
            for x in sample {
                // Neighbours are alike, as in images, and never negative.
                last = 0.8 * last + noise();
                *x = f32::max(last, 0.0);
            }
        }
        sums.add(&inputs).unwrap();
        let weight: Vec<f32> = (0..rows * columns).map(|_| noise() * noise()).collect();
        let tiling = Tiling::new(&[rows, columns], &[1, columns]).unwrap();
        let grid = IntegerGrid::signed(4).unwrap();
        let range = min_max(&weight, &tiling).unwrap();
        let options = RangeOptions::default();
        let parameters = parameters_for_range(&range.min, &range.max, grid, &options).unwrap();
        Self { weight, moments: sums.finish(), tiling, parameters, grid, iterations }
    }

    fn affine(&self) -> Affine<'_> {
        self.parameters.affine()
    }

    fn candidates(&self, count: usize) -> Candidates {
        let range = min_max(&self.weight, &self.tiling).unwrap();
        let layout = CandidateLayout::default();
        Candidates::new(&range.min, &range.max, true, count, layout).unwrap()
    }
}

#[divan::bench(args = NAMES, sample_count = 3, sample_size = 1)]
fn adaround_iterations(bencher: Bencher<'_, '_>, name: &str) {
    let layer = Layer::new(name);
    let Layer { weight, moments, tiling, grid, iterations, .. } = &layer;
    let options = AdaRoundOptions { iterations: *iterations, descent: false, ..Default::default() };
    bencher.counter(divan::counter::ItemsCount::new(*iterations)).bench_local(|| {
        adaround(black_box(weight), moments, tiling, layer.affine(), *grid, &options).unwrap()
    });
}

#[divan::bench(args = NAMES, sample_count = 3, sample_size = 1)]
fn descent(bencher: Bencher<'_, '_>, name: &str) {
    let layer = Layer::new(name);
    let Layer { weight, moments, tiling, grid, .. } = &layer;
    bencher.bench_local(|| {
        coordinate_descent(black_box(weight), None, moments, tiling, layer.affine(), *grid).unwrap()
    });
}

#[divan::bench(args = NAMES, sample_count = 3, sample_size = 1)]
fn losses(bencher: Bencher<'_, '_>, name: &str) {
    let Layer { weight, moments, .. } = Layer::new(name);
    let other: Vec<f32> = weight.iter().map(|w| w * 0.9).collect();
    bencher.bench_local(|| reconstruction_losses(black_box(&weight), &other, &moments).unwrap());
}

#[divan::bench(args = [NAMES[0], NAMES[1]], sample_count = 3, sample_size = 1)]
fn sequential_mse_32_candidates(bencher: Bencher<'_, '_>, name: &str) {
    let layer = Layer::new(name);
    let candidates = layer.candidates(32);
    let Layer { weight, moments, tiling, grid, .. } = &layer;
    let options = RangeOptions::default();
    bencher.bench_local(|| {
        sequential_mse(black_box(weight), moments, tiling, &candidates, *grid, &options).unwrap()
    });
}

#[divan::bench(args = NAMES, sample_count = 3, sample_size = 1)]
fn weighted_mse_32_candidates(bencher: Bencher<'_, '_>, name: &str) {
    let layer = Layer::new(name);
    let candidates = layer.candidates(32);
    let Layer { weight, moments, tiling, grid, .. } = &layer;
    let options = RangeOptions::default();
    bencher.bench_local(|| {
        activation_weighted_mse(black_box(weight), moments, tiling, &candidates, *grid, &options)
            .unwrap()
    });
}

#[divan::bench(args = [NAMES[0], NAMES[1]], sample_count = 3, sample_size = 1)]
fn awq_20_steps(bencher: Bencher<'_, '_>, name: &str) {
    let Layer { weight, moments, tiling, grid, .. } = Layer::new(name);
    let (range, options) = (RangeOptions::default(), AwqOptions::default());
    bencher.bench_local(|| {
        awq(black_box(&weight), &moments, &tiling, grid, &range, &options).unwrap()
    });
}

#[divan::bench(args = NAMES, sample_count = 3, sample_size = 1)]
fn hqq_blocks_of_32(bencher: Bencher<'_, '_>, name: &str) {
    let Layer { weight, tiling, grid, .. } = Layer::new(name);
    let tiling = Tiling::new(tiling.shape(), &[1, 32]).unwrap();
    let range = min_max(&weight, &tiling).unwrap();
    let asymmetric = RangeOptions { symmetric: false, ..Default::default() };
    let parameters = parameters_for_range(&range.min, &range.max, grid, &asymmetric).unwrap();
    let options = HqqOptions { whole_offsets: false, ..Default::default() };
    bencher.bench_local(|| {
        hqq(black_box(&weight), &tiling, parameters.affine(), grid, &options).unwrap()
    });
}
