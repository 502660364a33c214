use super::*;
use crate::Array;
use crate::quantization::affine::RangeSettings;
use crate::quantization::quantizer::Quantizer;
use crate::quantization::{Granularity, LinearQuantizer, LinearQuantizerConfig};

/// The input of spec appendix A.
fn spec_input() -> Array {
    let data = (0..24).map(|i| (((37 * i) % 101) as f32 - 50.0) / 25.0).collect();
    Array::new(data, vec![4, 6]).unwrap()
}

fn quantizer(num_bits: u32, symmetric: bool, granularity: Granularity) -> LinearQuantizer {
    LinearQuantizer::new(LinearQuantizerConfig {
        num_bits,
        granularity,
        range: RangeSettings { symmetric, ..RangeSettings::reference() },
    })
    .unwrap()
}

fn estimator(num_candidates: usize, grid: CandidateGrid) -> MinErrorGrid {
    MinErrorGrid::new(MinErrorGridConfig { num_candidates, grid, ..Default::default() }).unwrap()
}

fn first_batch(
    grid: CandidateGrid,
    n: usize,
    x: &Array,
    quantizer: &LinearQuantizer,
) -> MinErrorGrid {
    let mut estimator = estimator(n, grid);
    estimator.observe(x.view(), quantizer).unwrap();
    estimator
}

#[track_caller]
fn assert_close(found: &[f32], expected: &[f32]) {
    assert_eq!(found.len(), expected.len());
    for (a, b) in found.iter().zip(expected) {
        assert!((a - b).abs() <= 1e-6 * b.abs().max(1.0), "found {found:?}, expected {expected:?}");
    }
}

/// The lower and upper ends of the candidates of the first tile.
fn ends(estimator: &MinErrorGrid) -> (Vec<f32>, Vec<f32>) {
    let candidates = estimator.candidates().unwrap();
    (0..candidates.num_candidates()).map(|at| candidates.range(at, 0)).unzip()
}

/// Spec A.4: the grids of all of `x` as one row.
#[test]
fn the_references_grids() {
    let x = spec_input();
    let grid = |symmetric, x: &Array| {
        let quantizer = quantizer(3, symmetric, Granularity::PerTensor);
        ends(&first_batch(CandidateGrid::Reference, 4, x, &quantizer))
    };
    let (min, max) = grid(false, &x);
    assert_close(&min, &[-2.0, -1.2, -2.0, -1.2]);
    assert_close(&max, &[1.728, 1.728, 2.88, 2.88]);
    let (min, max) = grid(true, &x);
    assert_close(&min, &[-0.625, -1.25, -1.875, -2.5]);
    assert_close(&max, &[0.625, 1.25, 1.875, 2.5]);
    let shifted = Array { data: x.data.iter().map(|x| x.abs() + 1.0).collect(), shape: x.shape };
    let (min, max) = grid(true, &shifted);
    assert_close(&min, &[0.0; 4]);
    assert_close(&max, &[0.875, 1.75, 2.625, 3.5]);
}

/// Spec A.4: 16 candidates, 3 bits, one range per row.
#[test]
fn the_references_choice() {
    let x = spec_input();
    let search = |symmetric| {
        let quantizer = quantizer(3, symmetric, Granularity::per_channel(0));
        let range = first_batch(CandidateGrid::Reference, 16, &x, &quantizer).range().unwrap();
        quantizer.set_quantization_range(&range.min, &range.max).unwrap();
        // What the quantizer makes of it: symmetric ranges reach one step further down.
        (quantizer.quantization_range().unwrap(), quantizer.parameters().unwrap().scale)
    };
    let ((min, _), scale) = search(true);
    assert_close(&min, &[-2.0833333, -2.38, -1.98, -2.38]);
    assert_close(&scale, &[0.5208333, 0.595, 0.495, 0.595]);
    let ((min, max), scale) = search(false);
    assert_close(&min, &[-1.7333333, -1.88, -1.2826667, -1.76]);
    assert_close(&max, &[1.7306668, 2.3920002, 2.1493335, 2.4959996]);
    assert_close(&scale, &[0.4948572, 0.6102858, 0.4902857, 0.608]);
}

/// Ten candidates make a product of twelve, the last two of which the reference never evaluates and always takes.
#[test]
fn every_candidate_of_a_ragged_product_is_evaluated() {
    let quantizer = quantizer(3, false, Granularity::per_channel(0));
    let estimator = first_batch(CandidateGrid::Reference, 10, &spec_input(), &quantizer);
    let errors = estimator.errors().unwrap();
    assert_eq!(errors.len(), 4 * 12);
    assert!(errors.iter().all(|&error| error > 0.0));
}

#[test]
fn errors_are_those_of_fake_quantization() {
    let x = spec_input();
    for (symmetric, granularity) in [
        (true, Granularity::PerTensor),
        (false, Granularity::per_channel(1)),
        (true, Granularity::per_block(&[1], &[3], &[0])),
    ] {
        let quantizer = quantizer(4, symmetric, granularity.clone());
        let mut estimator = first_batch(CandidateGrid::Standard, 9, &x, &quantizer);
        let doubled =
            Array { data: x.data.iter().map(|x| 2.0 * x).collect(), shape: x.shape.clone() };
        estimator.observe(doubled.view(), &quantizer).unwrap();
        let tiling = tiling_of(x.view(), &granularity).unwrap();
        let candidates = estimator.candidates().unwrap().clone();
        let n = candidates.num_candidates();
        for (at, &error) in estimator.errors().unwrap().iter().enumerate() {
            let (tile, candidate) = (at / n, at % n);
            let (min, max) = candidates.ranges(&vec![candidate; candidates.num_tiles()]).unwrap();
            quantizer.set_quantization_range(&min, &max).unwrap();
            let mut expected = 0.0;
            for batch in [&x, &doubled] {
                let rounded = quantizer.forward(batch.view()).unwrap().into_array(batch.view());
                let squares = tiling
                    .tile_elements(tile)
                    .map(|at| f64::from(batch.data[at.input] - rounded.data[at.input]).powi(2));
                expected += squares.sum::<f64>() / tiling.tile_len() as f64;
            }
            assert!((error - expected).abs() <= 1e-5 * expected + 1e-12, "{error} {expected}");
        }
    }
}

/// Pseudo-random data of several kinds: both signs, one sign, one tile of zeros, an outlier.
fn data(seed: u32) -> Array {
    let mut state = seed.wrapping_mul(2654435761).wrapping_add(12345);
    let mut data: Vec<f32> = (0..48)
        .map(|_| {
            state = state.wrapping_mul(1664525).wrapping_add(1013904223);
            (state >> 8) as f32 / (1 << 23) as f32 - 1.0
        })
        .collect();
    match seed % 4 {
        1 => data.iter_mut().for_each(|x| *x = x.abs()),
        2 => data[..12].fill(0.0),
        3 => data[20] *= 30.0,
        _ => {}
    }
    Array::new(data, vec![4, 12]).unwrap()
}

fn best_error(estimator: &MinErrorGrid, tile: usize) -> f64 {
    let n = estimator.candidates().unwrap().num_candidates();
    estimator.errors().unwrap()[tile * n + estimator.best().unwrap()[tile]]
}

#[test]
fn more_candidates_never_increase_the_error() {
    for seed in 0..40 {
        let x = data(seed);
        for symmetric in [true, false] {
            for one_sided in [true, false] {
                let settings = RangeSettings {
                    symmetric,
                    allow_one_sided: one_sided,
                    ..RangeSettings::default()
                };
                let quantizer = LinearQuantizer::new(LinearQuantizerConfig {
                    num_bits: 2 + seed % 5,
                    granularity: Granularity::per_channel(0),
                    range: settings,
                })
                .unwrap();
                // Each grid holds the one before, up to rounding: multiples where one factor is searched, squares of
                // 3, 9 and 17 where each end has an evenly spaced one.
                let mut before = [f64::INFINITY; 4];
                for n in if symmetric { [9, 81, 324] } else { [9, 81, 289] } {
                    let estimator = first_batch(CandidateGrid::Standard, n, &x, &quantizer);
                    for (tile, before) in before.iter_mut().enumerate() {
                        let error = best_error(&estimator, tile);
                        let bound = *before * (1.0 + 1e-4) + 1e-12;
                        assert!(error <= bound, "seed {seed}, {n} candidates, tile {tile}");
                        *before = error;
                    }
                }
            }
        }
    }
}

#[test]
fn the_range_of_the_first_batch_is_a_candidate_and_margins_widen_it() {
    for seed in 0..12 {
        let x = data(seed);
        let found = tile_ranges(x.view(), &Granularity::PerTensor).unwrap();
        let (min, max) = (found.min[0], found.max[0]);
        for (symmetric, n) in [(true, 100), (true, 7), (false, 100), (false, 9)] {
            let quantizer = quantizer(8, symmetric, Granularity::PerTensor);
            let widest = |config: MinErrorGridConfig| {
                let mut estimator = MinErrorGrid::new(config).unwrap();
                estimator.observe(x.view(), &quantizer).unwrap();
                let (lower, upper) = ends(&estimator);
                assert!(lower.len() <= n);
                lower.iter().zip(&upper).fold((0f32, 0f32), |(a, b), (&c, &d)| (a.min(c), b.max(d)))
            };
            let config = MinErrorGridConfig { num_candidates: n, ..Default::default() };
            let expected = match symmetric {
                true if min < 0.0 => (-max.max(-min), max.max(-min)),
                _ => (min.min(0.0), max.max(0.0)),
            };
            let close = |found: (f32, f32), expected: (f32, f32)| {
                assert_close(&[found.0, found.1], &[expected.0, expected.1]);
            };
            close(widest(config.clone()), expected);
            let relative_margin = Some(1.5);
            let wide = MinErrorGridConfig { relative_margin, ..config };
            close(widest(wide), (1.5 * expected.0, 1.5 * expected.1));
        }
    }
}

/// The reference's margin makes such data look negative and wastes half the codes.
#[test]
fn non_negative_data_is_searched_one_sided() {
    let x = Array { data: (0..100).map(|i| i as f32 / 400.0).collect(), shape: vec![100] };
    let quantizer = quantizer(4, true, Granularity::PerTensor);
    let standard = first_batch(CandidateGrid::Standard, 100, &x, &quantizer);
    assert!(ends(&standard).0.iter().all(|&min| min == 0.0));
    let reference = first_batch(CandidateGrid::Reference, 100, &x, &quantizer);
    assert!(ends(&reference).0.iter().all(|&min| min < 0.0));
    assert!(best_error(&standard, 0) < 0.3 * best_error(&reference, 0));
}

#[test]
fn the_lowest_index_wins_ties() {
    // Every candidate range of zeros is the same.
    let zeros = Array { data: vec![0.0; 4], shape: vec![4] };
    let config = LinearQuantizerConfig::new(4);
    let quantizer = LinearQuantizer::new(config).unwrap();
    let estimator = first_batch(CandidateGrid::Standard, 10, &zeros, &quantizer);
    assert_eq!(estimator.best().unwrap(), [0]);
    assert_eq!(estimator.range().unwrap(), TileRanges { min: vec![0.0], max: vec![0.0] });
}

#[test]
fn forks_share_the_grid_and_merge() {
    let quantizer = quantizer(3, false, Granularity::per_channel(0));
    let mut whole = estimator(25, CandidateGrid::Standard);
    for seed in 0..5 {
        whole.observe(data(seed).view(), &quantizer).unwrap();
    }
    let mut first = estimator(25, CandidateGrid::Standard);
    first.observe(data(0).view(), &quantizer).unwrap();
    let mut second = first.fork();
    assert_eq!(second.range(), None);
    first.observe(data(1).view(), &quantizer).unwrap();
    for seed in 2..5 {
        second.observe(data(seed).view(), &quantizer).unwrap();
    }
    first.merge(&*second).unwrap();
    assert_eq!(first.candidates(), whole.candidates());
    assert_eq!(first.best(), whole.best());
    for (a, b) in first.errors().unwrap().iter().zip(whole.errors().unwrap()) {
        assert!((a - b).abs() <= 1e-12 * b);
    }
    // A stranger with a grid of its own cannot join.
    let stranger = first_batch(CandidateGrid::Standard, 25, &data(3), &quantizer);
    assert_eq!(first.merge(&stranger).unwrap_err().kind(), ErrorKind::Estimator);
    // The first to see anything may.
    let mut empty = estimator(25, CandidateGrid::Standard);
    empty.merge(&first).unwrap();
    assert_eq!(empty.range(), first.range());
}

#[test]
fn a_refused_batch_leaves_the_statistics() {
    let quantizer = quantizer(4, true, Granularity::PerTensor);
    let mut estimator = estimator(4, CandidateGrid::Standard);
    for bad in [f32::NAN, f32::INFINITY] {
        let x = [1.0, bad];
        let error = estimator.observe(ArrayView::new(&x, &[2]).unwrap(), &quantizer).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidData);
        assert!(estimator.candidates().is_none());
    }
    estimator.observe(data(0).view(), &quantizer).unwrap();
    let before = estimator.errors().unwrap().to_vec();
    let x = [1.0, f32::NAN];
    assert!(estimator.observe(ArrayView::new(&x, &[2]).unwrap(), &quantizer).is_err());
    assert_eq!(estimator.errors().unwrap(), before);
}

#[test]
fn wrong_settings_are_all_named() {
    let config = MinErrorGridConfig {
        num_candidates: 0,
        absolute_margin: Some(-1.0),
        relative_margin: Some(f64::NAN),
        ..Default::default()
    };
    let message = MinErrorGrid::new(config).unwrap_err().to_string();
    for option in ["num_candidates", "absolute_margin", "relative_margin"] {
        assert!(message.contains(option), "{message}");
    }
}

#[test]
fn data_that_is_there_as_a_whole_has_the_range_of_one_batch() {
    let x = spec_input();
    for grid in [CandidateGrid::Standard, CandidateGrid::Reference] {
        for symmetric in [true, false] {
            for granularity in [Granularity::PerTensor, Granularity::per_channel(0)] {
                let quantizer = quantizer(3, symmetric, granularity);
                let seen = first_batch(grid, 50, &x, &quantizer).range();
                let whole = estimator(50, grid).range_of_whole(x.view(), &quantizer).unwrap();
                assert_eq!(whole, seen);
            }
        }
    }
    let quantizer = quantizer(3, true, Granularity::PerTensor);
    let bad = Array::new(vec![1.0, f32::INFINITY], vec![2]).unwrap();
    assert!(estimator(50, CandidateGrid::Standard).range_of_whole(bad.view(), &quantizer).is_err());
}
