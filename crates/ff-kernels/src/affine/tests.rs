use super::*;
use crate::range::{RangeOptions, min_max, parameters_for_range, quantization_range};

/// The 4x6 input of spec Appendix A.
fn appendix_input() -> Vec<f32> {
    (0..24).map(|i| ((37 * i) % 101 - 50) as f32 / 25.0).collect()
}

struct Appendix {
    name: &'static str,
    tile: [usize; 2],
    bits: u32,
    symmetric: bool,
    scale: &'static [f32],
    offset: Option<&'static [f32]>,
    codes: [i8; 24],
    error: f32,
}

#[test]
fn appendix_a1() {
    let cases = [
        Appendix {
            name: "per tensor, symmetric",
            tile: [4, 6],
            bits: 4,
            symmetric: true,
            scale: &[0.268_571_4],
            offset: None,
            codes: [
                -7, -2, 4, -6, 0, 5, -4, 1, 7, -3, 3, -7, -1, 4, -6, 0, 6, -4, 1, 7, -3, 3, -7, -1,
            ],
            error: 1.588572,
        },
        Appendix {
            name: "per tensor, asymmetric",
            tile: [4, 6],
            bits: 4,
            symmetric: false,
            scale: &[0.258_666_7],
            offset: Some(&[0.268_041_1]),
            codes: [
                -8, -2, 4, -6, 0, 5, -5, 1, 7, -3, 3, -7, -2, 4, -6, 0, 6, -4, 2, 7, -3, 3, -7, -1,
            ],
            error: 1.466667,
        },
        Appendix {
            name: "channel 0, symmetric",
            tile: [1, 6],
            bits: 4,
            symmetric: true,
            scale: &[0.25, 0.251_428_6, 0.211_428_6, 0.268_571_4],
            offset: None,
            codes: [
                -8, -2, 4, -6, 0, 5, -5, 1, 7, -3, 3, -7, -2, 5, -7, 0, 7, -5, 1, 7, -3, 3, -7, -1,
            ],
            error: 1.178572,
        },
        Appendix {
            name: "channel 1, asymmetric",
            tile: [4, 1],
            bits: 3,
            symmetric: false,
            scale: &[0.342_857_2, 0.342_857_2, 0.462_857_2, 0.342_857_2, 0.462_857_2, 0.462_857_2],
            offset: Some(&[
                -1.833_333,
                2.483_333_6,
                0.802_469_3,
                -0.666_666_5,
                0.197_531,
                -0.061_728_5,
            ]),
            codes: [
                -4, -4, 1, -4, 0, 3, -2, -1, 3, -1, 1, -4, 1, 1, -4, 1, 3, -2, 3, 3, -2, 3, -4, -1,
            ],
            error: 2.48,
        },
        Appendix {
            name: "blocks of 3 along axis 1",
            tile: [1, 3],
            bits: 4,
            symmetric: false,
            scale: &[
                0.197_333_3,
                0.197_333_3,
                0.197_333_3,
                0.170_666_7,
                0.170_666_7,
                0.170_666_7,
                0.170_666_7,
                0.170_666_7,
            ],
            offset: Some(&[
                -2.135_134_7,
                -0.108_108_1,
                1.918_918_6,
                -3.015_625,
                -0.671_875,
                1.671_874_5,
                4.015_625,
                -2.3125,
            ]),
            codes: [
                -8, -1, 7, -8, -1, 7, -8, -1, 7, -2, 7, -8, -1, 7, -8, -2, 7, -8, -2, 7, -8, 7, -8,
                0,
            ],
            error: 0.933334,
        },
        Appendix {
            name: "tiles of 2x3, symmetric",
            tile: [2, 3],
            bits: 2,
            symmetric: true,
            scale: &[1.76, 1.36, 1.88, 1.48],
            offset: None,
            codes: [-1, 0, 1, -1, 0, 1, -1, 0, 1, -1, 0, -1, 0, 1, -1, 0, 1, -1, 0, 1, 0, 1, -1, 0],
            error: 8.84,
        },
    ];
    let x = appendix_input();
    for case in cases {
        let name = case.name;
        let tiling = Tiling::new(&[4, 6], &case.tile).unwrap();
        let grid = IntegerGrid::signed(case.bits).unwrap();
        let range = min_max(&x, &tiling).unwrap();
        let options = RangeOptions { symmetric: case.symmetric, ..Default::default() };
        let p = parameters_for_range(&range.min, &range.max, grid, &options).unwrap();
        let close = |a: &[f32], b: &[f32]| {
            a.len() == b.len() && a.iter().zip(b).all(|(a, b)| (a - b).abs() <= 2e-6)
        };
        assert!(close(&p.scale, case.scale), "{name}: {p:?}");
        match (&p.offset, case.offset) {
            (Some(a), Some(b)) => assert!(close(a, b), "{name}: {p:?}"),
            (a, b) => assert_eq!(a.is_some(), b.is_some(), "{name}"),
        }
        let mut codes = [0i8; 24];
        quantize(&x, &tiling, p.affine(), grid, &mut codes).unwrap();
        assert_eq!(codes, case.codes, "{name}");
        let mut values = [0.0; 24];
        dequantize(&codes, &tiling, p.affine(), &mut values).unwrap();
        let error: f32 = x.iter().zip(&values).map(|(a, b)| (a - b).abs()).sum();
        assert!((error - case.error).abs() < 2e-5, "{name}: {error}");
    }
}

#[test]
fn appendix_a2_ties_shift_with_the_offset() {
    let x = [0.5, 1.5, 2.5, 3.5, -0.5, -1.5];
    let tiling = Tiling::whole(&[6]).unwrap();
    let grid = IntegerGrid::signed(8).unwrap();
    let mut codes = [0i8; 6];
    quantize(&x, &tiling, Affine { scale: &[1.0], offset: None }, grid, &mut codes).unwrap();
    assert_eq!(codes, [0, 2, 2, 4, 0, -2]);
    let shifted = Affine { scale: &[1.0], offset: Some(&[1.0]) };
    quantize(&x, &tiling, shifted, grid, &mut codes).unwrap();
    assert_eq!(codes, [0, 0, 2, 2, -2, -2]);
}

#[test]
fn appendix_a5_gradients() {
    let x = appendix_input();
    let tiling = Tiling::new(&[4, 6], &[1, 6]).unwrap();
    let affine = Affine { scale: &[0.3, 0.4, 0.2, 0.5], offset: Some(&[0.0, 1.2, -0.6, 2.5]) };
    let grid = IntegerGrid::signed(3).unwrap();
    let g: Vec<f32> = (0..24).map(|i| ((7 * i) % 5 - 2) as f32 / 2.0).collect();
    let mut codes = [0i8; 24];
    quantize(&x, &tiling, affine, grid, &mut codes).unwrap();
    assert_eq!(
        codes,
        [-4, -2, 3, -4, 0, 3, -4, 0, 3, -3, 1, -4, -1, 3, -4, 1, 3, -4, -1, 2, -3, 0, -4, -3]
    );
    let mut grad_x = [0.0; 24];
    let grads = fake_quantize_backward(&x, &tiling, affine, grid, &g, &mut grad_x).unwrap();
    assert_eq!(
        grad_x,
        [
            0.0, 0.0, 1.0, 0.0, 0.5, 0.0, 0.0, 1.0, -0.5, 0.5, -1.0, 0.0, 1.0, 0.0, 0.0, -1.0, 0.0,
            1.0, -0.5, 0.5, -1.0, 0.0, 0.0, -0.5
        ]
    );
    for (got, expected) in grads.scale.iter().zip([3.0, 0.2, -3.1, -2.12]) {
        assert!((got - expected).abs() < 1e-5, "{got} {expected}");
    }
    assert_eq!(grads.offset.unwrap(), [-0.75, 0.0, 0.0, 0.5]);
}

#[test]
fn appendix_a9_ranges() {
    let grid = IntegerGrid::signed(8).unwrap();
    let symmetric = RangeOptions::default();
    let asymmetric = RangeOptions { symmetric: false, ..symmetric };
    let two_sided = RangeOptions { one_sided: crate::range::OneSided::Never, ..symmetric };
    for (options, range, scale, offset, reported) in [
        (symmetric, (-1.0, 2.0), 0.015748031, None, (-2.015748, 2.0)),
        (symmetric, (0.0, 2.0), 0.007_843_138, Some(128.0), (0.0, 2.0)),
        (asymmetric, (1.0, 2.0), 0.0039215686, Some(383.0), (1.0, 2.0)),
        (asymmetric, (0.0, 0.0), f32::EPSILON, Some(128.0), (0.0, 3.0398e-05)),
        (two_sided, (1.0, 2.0), 0.015748031, None, (-2.015748, 2.0)),
        (symmetric, (-3.0, -1.0), 0.0234375, None, (-3.0, 2.976_562_5)),
    ] {
        let p = parameters_for_range(&[range.0], &[range.1], grid, &options).unwrap();
        // The appendix prints eight digits.
        assert!((p.scale[0] - scale).abs() <= 2e-7 * scale, "{range:?}: {p:?}");
        assert_eq!(p.offset.as_ref().map(|o| o[0]), offset, "{range:?}");
        let (lo, hi) = quantization_range(p.affine(), grid).unwrap();
        assert!((lo[0] - reported.0).abs() < 1e-6, "{range:?}: {lo:?}");
        assert!((hi[0] - reported.1).abs() < 1e-6, "{range:?}: {hi:?}");
    }
}

#[test]
fn usual_suspects() {
    let grid = IntegerGrid::signed(3).unwrap();
    let affine = Affine { scale: &[0.5], offset: None };
    let check = |x: &[f32], expected: &[i8]| {
        let tiling = Tiling::whole(&[x.len()]).unwrap();
        let mut codes = vec![0i8; x.len()];
        quantize(x, &tiling, affine, grid, &mut codes).unwrap();
        assert_eq!(codes, expected, "{x:?}");
    };
    check(&[], &[]);
    check(&[0.6], &[1]);
    check(&[0.0, -0.0, 0.0], &[0, 0, 0]);
    check(&[0.7; 5], &[1; 5]);
    check(&[f32::INFINITY, f32::NEG_INFINITY], &[3, -4]);
    check(&[f32::MAX, f32::MIN, 1e-45, -1e-45], &[3, -4, 0, 0]);
    check(&[0.1, 0.2, 1e30], &[0, 0, 3]); // one outlier
    check(&[0.25, 0.75, -0.25, -0.75], &[0, 2, 0, -2]); // ties
}

#[test]
fn nan_is_kept_in_floats_and_located_for_codes() {
    let mut x = vec![1.0f32; 40];
    for at in [3, 17, 39] {
        x[at] = f32::NAN;
    }
    let tiling = Tiling::new(&[40], &[8]).unwrap();
    let affine = Affine { scale: &[0.5; 5], offset: None };
    let grid = IntegerGrid::signed(8).unwrap();
    let mut out = vec![0.0; 40];
    fake_quantize(&x, &tiling, affine, grid, &mut out).unwrap();
    assert!(out.iter().zip(&x).all(|(a, b)| a.is_nan() == b.is_nan()));
    let err = quantize(&x, &tiling, affine, grid, &mut [0i8; 40]).unwrap_err();
    assert_eq!(err.to_string(), "3 NaN in the data, at element 3, element 17, element 39");
}

#[test]
fn unusable_parameters_are_all_reported() {
    let tiling = Tiling::new(&[4], &[1]).unwrap();
    let grid = IntegerGrid::signed(8).unwrap();
    let bad = Affine { scale: &[1.0, 0.0, -2.0, f32::NAN], offset: None };
    let err = fake_quantize(&[0.0; 4], &tiling, bad, grid, &mut [0.0; 4]).unwrap_err();
    assert_eq!(
        err.to_string(),
        "scale must be positive and finite: tile 1 has 0, tile 2 has -2, tile 3 has NaN"
    );
    let bad = Affine { scale: &[1.0; 4], offset: Some(&[0.0, 0.0, f32::INFINITY, 0.0]) };
    let err = fake_quantize(&[0.0; 4], &tiling, bad, grid, &mut [0.0; 4]).unwrap_err();
    assert_eq!(err.to_string(), "offset must be finite: tile 2 has inf");
    for (scale, offset) in [(3, None), (4, Some(3)), (0, None)] {
        let (scale, offset) = (vec![1.0; scale], offset.map(|n| vec![0.0; n]));
        let affine = Affine { scale: &scale, offset: offset.as_deref() };
        assert!(fake_quantize(&[0.0; 4], &tiling, affine, grid, &mut [0.0; 4]).is_err());
    }
    let good = Affine { scale: &[1.0; 4], offset: None };
    assert!(fake_quantize(&[0.0; 3], &tiling, good, grid, &mut [0.0; 4]).is_err());
    assert!(fake_quantize(&[0.0; 4], &tiling, good, grid, &mut [0.0; 5]).is_err());
}

#[test]
fn one_parameter_stands_for_all_tiles() {
    let tiling = Tiling::new(&[2, 3], &[1, 3]).unwrap();
    let mut codes = [0i8; 6];
    let affine = Affine { scale: &[0.5], offset: Some(&[1.0]) };
    let grid = IntegerGrid::signed(4).unwrap();
    quantize(&[1.0; 6], &tiling, affine, grid, &mut codes).unwrap();
    assert_eq!(codes, [1; 6]);
    let grads =
        fake_quantize_backward(&[1e9; 6], &tiling, affine, grid, &[1.0; 6], &mut [0.0; 6]).unwrap();
    assert_eq!(grads, Gradients { scale: vec![48.0], offset: Some(vec![3.0]) });
}

#[test]
fn empty_data_is_fine() {
    let grid = IntegerGrid::signed(8).unwrap();
    for (shape, tile, n) in [([0, 4], [0, 1], 4), ([0, 4], [0, 4], 1), ([0, 4], [1, 4], 1)] {
        let tiling = Tiling::new(&shape, &tile).unwrap();
        let scale = vec![1.0; n];
        let affine = Affine { scale: &scale, offset: None };
        quantize::<i8>(&[], &tiling, affine, grid, &mut []).unwrap();
        let grads = fake_quantize_backward(&[], &tiling, affine, grid, &[], &mut []).unwrap();
        assert_eq!(grads.scale, vec![0.0; n]);
    }
    let tiling = Tiling::whole(&[0]).unwrap();
    assert_eq!(min_max(&[], &tiling).unwrap().tiles_without_data(), [0]);
}

/// Inputs around the ties and the ends of a grid, and those no code is near, in one tile.
#[test]
fn long_tiles_have_the_codes_of_each_element() {
    let mut state = 0x2545_f491_4f6c_dd1du64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let mut ends = [0usize; 2];
    for _ in 0..if cfg!(debug_assertions) { 300 } else { 3000 } {
        let grid = IntegerGrid::signed(2 + (next() % 22) as u32).unwrap();
        let scale = f32::from_bits(next() as u32 & 0x007f_ffff | 0x3f80_0000)
            * 2f32.powi((next() % 120) as i32 - 60);
        // Offsets near the grid, and some so large that quotients lose their last bits.
        let offset = (next() % 4096) as f32 / 16.0 - 128.0;
        let offset = if next().is_multiple_of(4) { offset * 65_536.0 } else { offset };
        let mut x = vec![0.0, -0.0, f32::INFINITY, f32::NEG_INFINITY, f32::MAX, f32::MIN, 1e-45];
        while x.len() < 600 {
            let code = match next() % 4 {
                0 => grid.lo(),
                1 => grid.hi(),
                _ => grid.lo() + (next() % (grid.hi() - grid.lo() + 1) as u64) as i32,
            };
            let half = (next() % 5) as f32 * 0.5 - 1.0;
            let at = (code as f32 + half + offset.round_ties_even()) * scale;
            x.extend([at, at.next_up(), at.next_down(), at.next_up().next_up()]);
        }
        let tiling = Tiling::whole(&[x.len()]).unwrap();
        let affine = Affine { scale: &[scale], offset: Some(&[offset]) };
        let expected = quantize_reference(&x, &tiling, affine, grid).unwrap();
        let mut codes = vec![0i32; x.len()];
        quantize(&x, &tiling, affine, grid, &mut codes).unwrap();
        for ((x, code), expected) in x.iter().zip(&codes).zip(&expected) {
            assert_eq!(Some(*code), *expected, "{x:e} / {scale:e} - {offset}, {grid:?}");
            ends[0] += usize::from(*code == grid.lo());
            ends[1] += usize::from(*code == grid.hi());
        }
        // The reach is used: everything above would hold without it, too.
        if grid.hi() < 1 << 15 && offset.abs() < 256.0 {
            let step = Step { scale, inverse: 1.0 / scale, offset };
            assert!(Reach::new(Bounds::new(grid), step).is_some(), "{scale:e} {offset} {grid:?}");
        }
        let at = next() as usize % x.len();
        x[at] = f32::from_bits(0x7f80_0001 | next() as u32 & 0x807f_ffff);
        let error = quantize(&x, &tiling, affine, grid, &mut codes).unwrap_err();
        assert_eq!(error.to_string(), format!("1 NaN in the data, at element {at}"));
    }
    assert!(ends.iter().all(|&n| n > 10_000), "{ends:?}");
}
