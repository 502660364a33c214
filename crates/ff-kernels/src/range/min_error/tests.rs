use super::*;
use crate::range::Degenerate;

fn appendix_input() -> Vec<f32> {
    (0..24).map(|i| ((37 * i) % 101 - 50) as f32 / 25.0).collect()
}

fn reference(min: f32, max: f32, symmetric: bool, n: usize) -> Candidates {
    Candidates::new(&[min], &[max], symmetric, n, CandidateLayout::REFERENCE).unwrap()
}

#[track_caller]
fn check_ranges(candidates: &Candidates, expected: &[(f32, f32)]) {
    assert_eq!(candidates.num_candidates(), expected.len());
    for (i, &(lo, hi)) in expected.iter().enumerate() {
        let (min, max) = candidates.range(i, 0);
        assert!((min - lo).abs() < 1e-6 && (max - hi).abs() < 1e-6, "{i}: {min} {max}");
    }
}

#[test]
fn appendix_a4_uniform_grid() {
    // Minimum -2, maximum 1.88 of the whole input.
    let asymmetric = [(-2.0, 1.728), (-1.2, 1.728), (-2.0, 2.88), (-1.2, 2.88)];
    check_ranges(&reference(-2.0, 1.88, false, 4), &asymmetric);
    let symmetric = [(-0.625, 0.625), (-1.25, 1.25), (-1.875, 1.875), (-2.5, 2.5)];
    check_ranges(&reference(-2.0, 1.88, true, 4), &symmetric);
    let positive = [(0.0, 0.875), (0.0, 1.75), (0.0, 2.625), (0.0, 3.5)];
    check_ranges(&reference(1.0, 3.0, true, 4), &positive);
}

#[test]
fn appendix_a4_search() {
    let x = appendix_input();
    let tiling = Tiling::new(&[4, 6], &[1, 6]).unwrap();
    let grid = IntegerGrid::signed(3).unwrap();
    let range = min_max(&x, &tiling).unwrap();
    for (symmetric, min, max, scale) in [
        (
            true,
            [-2.0833333, -2.38, -1.98, -2.38],
            [2.0833333, 2.38, 1.98, 2.38].map(|m: f32| m * 0.75),
            [0.5208333, 0.595, 0.495, 0.595],
        ),
        (
            false,
            [-1.7333333, -1.88, -1.2826667, -1.76],
            [1.7306668, 2.3920002, 2.1493335, 2.4959996],
            [0.4948572, 0.6102858, 0.4902857, 0.608],
        ),
    ] {
        let options = RangeOptions { symmetric, ..Default::default() };
        let candidates =
            Candidates::new(&range.min, &range.max, symmetric, 16, CandidateLayout::REFERENCE)
                .unwrap();
        let best = search_min_error(&x, &tiling, &candidates, grid, &options).unwrap();
        let (lo, hi) = candidates.ranges(&best).unwrap();
        let p = parameters_for_range(&lo, &hi, grid, &options).unwrap();
        let (lo, hi) = crate::quantization_range(p.affine(), grid).unwrap();
        for tile in 0..4 {
            assert!((p.scale[tile] - scale[tile]).abs() < 2e-6, "{symmetric} {:?}", p.scale);
            assert!((lo[tile] - min[tile]).abs() < 5e-6, "{symmetric} {lo:?}");
            assert!((hi[tile] - max[tile]).abs() < 5e-6, "{symmetric} {hi:?}");
        }
    }
}

#[test]
fn fast_errors_agree_with_the_twin() {
    let x: Vec<f32> = (0..6000).map(|i| ((i * 37) % 1009) as f32 / 250.0 - 2.0).collect();
    for (shape, tile) in [
        ([60, 100], [60, 100]),
        ([60, 100], [1, 100]),
        ([60, 100], [60, 1]),
        ([60, 100], [20, 25]),
        ([60, 100], [60, 20]),
        ([100, 60], [2, 1]),
    ] {
        let transposed = [1, shape[0]];
        for tiling in [
            Tiling::new(&shape, &tile).unwrap(),
            Tiling::strided(&shape, &transposed, &tile).unwrap(),
        ] {
            let range = min_max(&x, &tiling).unwrap();
            for (symmetric, layout) in [
                (true, CandidateLayout::default()),
                (false, CandidateLayout::default()),
                (false, CandidateLayout::REFERENCE),
            ] {
                let options = RangeOptions { symmetric, ..Default::default() };
                let grid = IntegerGrid::signed(3).unwrap();
                let candidates =
                    Candidates::new(&range.min, &range.max, symmetric, 20, layout).unwrap();
                let n = candidates.num_candidates();
                let expected =
                    candidate_errors_reference(&x, &tiling, &candidates, grid, &options).unwrap();
                let mut errors = vec![0.0; expected.len()];
                for _ in 0..2 {
                    candidate_errors(&x, &tiling, &candidates, grid, &options, &mut errors)
                        .unwrap();
                }
                for (got, expected) in errors.iter().zip(&expected) {
                    // Both round each difference to f32, in units of up to 2: 2·d·1e-7·2.
                    let limit = 4e-6 * expected + 5e-7 * expected.sqrt() + 1e-12;
                    assert!((got / 2.0 - expected).abs() <= limit, "{got} {expected}");
                }
                let best = search_min_error(&x, &tiling, &candidates, grid, &options).unwrap();
                assert_eq!(best, best_candidates(&errors, n).unwrap());
            }
        }
    }
}

#[test]
fn long_tiles_are_the_same_for_any_number_of_threads() {
    let x: Vec<f32> = (0..300_000).map(|i| ((i * 37) % 1009) as f32 / 250.0 - 2.0).collect();
    let tiling = Tiling::new(&[3, 100_000], &[1, 100_000]).unwrap();
    let range = min_max(&x, &tiling).unwrap();
    let candidates =
        Candidates::new(&range.min, &range.max, true, 7, CandidateLayout::default()).unwrap();
    let run = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let mut errors = vec![0.0; 21];
        let grid = IntegerGrid::signed(4).unwrap();
        let options = RangeOptions::default();
        pool.install(|| candidate_errors(&x, &tiling, &candidates, grid, &options, &mut errors))
            .unwrap();
        errors
    };
    assert!(run(1) == run(2) && run(1) == run(5));
}

#[test]
fn every_candidate_is_evaluated_and_squares_are_not_special() {
    // With 10 candidates the reference makes 12, evaluates 10, and chooses the 11th.
    let candidates = reference(-2.0, 1.88, false, 10);
    assert_eq!(candidates.num_candidates(), 12);
    let x = appendix_input();
    let tiling = Tiling::whole(&[24]).unwrap();
    let grid = IntegerGrid::signed(3).unwrap();
    let options = RangeOptions { symmetric: false, ..Default::default() };
    let mut errors = vec![0.0; 12];
    candidate_errors(&x, &tiling, &candidates, grid, &options, &mut errors).unwrap();
    assert!(errors.iter().all(|&e| e > 0.0));
    let fitted = Candidates::new(&[-2.0], &[1.88], false, 10, CandidateLayout::default()).unwrap();
    assert_eq!(fitted.num_candidates(), 9);
    assert_eq!(fitted.range(6, 0), (-2.0, 1.88));
}

#[test]
fn fitted_candidates_of_data_away_from_zero_stay_inside() {
    for (min, max) in [(5.0, 6.0), (-6.0, -5.0), (-1.0, 3.0), (0.0, 0.0)] {
        let c = Candidates::new(&[min], &[max], false, 25, CandidateLayout::default()).unwrap();
        for i in 0..c.num_candidates() {
            let (lo, hi) = c.range(i, 0);
            assert!(min <= lo && lo <= hi && hi <= max, "{lo} {hi}");
        }
    }
}

#[test]
fn never_negative_data_gets_one_sided_candidates() {
    let make = |min: &[f32], one_sided| {
        let layout = CandidateLayout::Fitted { smallest: 0.2, one_sided };
        let c = Candidates::new(min, &[1.0, 2.0], true, 4, layout).unwrap();
        [c.range(1, 0), c.range(1, 1)]
    };
    assert_eq!(make(&[0.0, 0.5], OneSided::Global), [(0.0, 0.5), (0.0, 1.0)]);
    assert_eq!(make(&[-0.5, 0.5], OneSided::Global), [(-0.5, 0.5), (-1.0, 1.0)]);
    assert_eq!(make(&[-0.5, 0.5], OneSided::PerTile), [(-0.5, 0.5), (0.0, 1.0)]);
    assert_eq!(make(&[0.0, 0.5], OneSided::Never), [(-0.5, 0.5), (-1.0, 1.0)]);
}

#[test]
fn degenerate_data_and_wrong_input() {
    let grid = IntegerGrid::signed(4).unwrap();
    let tiling = Tiling::whole(&[4]).unwrap();
    let zeros = Candidates::new(&[0.0], &[0.0], true, 5, CandidateLayout::default()).unwrap();
    for degenerate in [Degenerate::Repair, Degenerate::Reference] {
        let options = RangeOptions { one_sided: OneSided::Never, degenerate, ..Default::default() };
        assert_eq!(search_min_error(&[0.0; 4], &tiling, &zeros, grid, &options).unwrap(), [0]);
    }
    let options = RangeOptions::default();
    let nan = search_min_error(&[0.0, f32::NAN, 1.0, 2.0], &tiling, &zeros, grid, &options);
    assert_eq!(nan.unwrap_err().to_string(), "range is not finite: tile 0 has NaN to NaN");
    let tiles = Tiling::new(&[4], &[2]).unwrap();
    assert!(search_min_error(&[0.0; 4], &tiles, &zeros, grid, &options).is_err());
    assert!(candidate_errors(&[0.0; 4], &tiling, &zeros, grid, &options, &mut [0.0; 4]).is_err());
    let empty = Tiling::whole(&[0]).unwrap();
    assert_eq!(search_min_error(&[], &empty, &zeros, grid, &options).unwrap(), [0]);
    let layout = CandidateLayout::default();
    assert!(Candidates::new(&[0.0], &[1.0], true, 0, layout).is_err());
    assert!(Candidates::new(&[0.0], &[f32::NAN], true, 5, layout).is_err());
    assert!(best_candidates(&[0.0; 5], 2).is_err());
    assert!(best_candidates(&[0.0; 5], 0).is_err());
    assert_eq!(best_candidates(&[3.0, 1.0, 1.0, 0.0, 0.0, 2.0], 3).unwrap(), [1, 0]);
    assert!(zeros.ranges(&[5]).is_err());
}
