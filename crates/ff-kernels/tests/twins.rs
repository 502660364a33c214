//! Fast kernels against their reference twins, over random shapes, strides, tiles and data.

use ff_kernels::*;
use proptest::prelude::*;

/// A shape with a tile that divides it, strides, and what lies in memory under them.
#[derive(Debug, Clone)]
struct Case {
    shape: Vec<usize>,
    tile: Vec<usize>,
    strides: Option<Vec<usize>>,
    memory: Vec<f32>,
    scale: Vec<f32>,
    offset: Option<Vec<f32>>,
    bits: u32,
}

impl Case {
    fn tiling(&self) -> Tiling {
        match &self.strides {
            Some(strides) => Tiling::strided(&self.shape, strides, &self.tile).unwrap(),
            None => Tiling::new(&self.shape, &self.tile).unwrap(),
        }
    }

    fn affine(&self) -> Affine<'_> {
        Affine { scale: &self.scale, offset: self.offset.as_deref() }
    }

    fn grid(&self) -> IntegerGrid {
        IntegerGrid::signed(self.bits).unwrap()
    }
}

/// One axis: tiles along it and extent of a tile. Now and then long enough for every fast path.
fn axis() -> impl Strategy<Value = (usize, usize)> {
    prop_oneof![
        4 => (1usize..5, 1usize..5),
        1 => (1usize..3, 15usize..70),
        1 => (15usize..70, 1usize..3),
        1 => prop_oneof![Just((0usize, 3usize)), Just((1, 1))],
    ]
}

/// Multiples of a half, where ties happen, beside anything else.
fn value() -> impl Strategy<Value = f32> {
    prop_oneof![
        4 => (-20i32..20).prop_map(|k| k as f32 * 0.25),
        4 => -8f32..8.0,
        1 => prop_oneof![
            Just(0.0), Just(-0.0), Just(f32::MAX), Just(f32::MIN), Just(1e-40), Just(-1e30),
            Just(f32::INFINITY), Just(f32::NEG_INFINITY),
        ],
    ]
}

fn case() -> impl Strategy<Value = Case> {
    (prop::collection::vec(axis(), 0..5), any::<u8>(), any::<bool>(), 1u32..26).prop_flat_map(
        |(mut axes, view, with_offset, bits)| {
            // Two long axes reach every path; four would only take long.
            let mut len = 1;
            axes.retain(|&(n, t)| {
                let keep = len * (n * t).max(1) <= 20_000;
                len *= if keep { (n * t).max(1) } else { 1 };
                keep
            });
            let tile: Vec<usize> = axes.iter().map(|a| a.1).collect();
            let shape: Vec<usize> = axes.iter().map(|a| a.0 * a.1).collect();
            let num_tiles: usize = axes.iter().map(|a| a.0).product();
            let strides = strides(&shape, view);
            let extent = match &strides {
                _ if shape.contains(&0) => 0,
                None => shape.iter().product(),
                Some(s) => shape.iter().zip(s).map(|(d, s)| (d - 1) * s).sum::<usize>() + 1,
            };
            // Long memory is one short random stretch, repeated with a drift.
            let stretch = prop::collection::vec(value(), extent.clamp(1, 257));
            let scale = prop::collection::vec(
                prop_oneof![Just(0.5f32), Just(1.0), 0.01f32..3.0, Just(1e-12), Just(1e6)],
                num_tiles,
            );
            let offset = prop::collection::vec(-9f32..9.0, num_tiles);
            (stretch, scale, offset).prop_map(move |(stretch, scale, offset)| Case {
                shape: shape.clone(),
                tile: tile.clone(),
                strides: strides.clone(),
                memory: (0..extent)
                    .map(|i| stretch[i % stretch.len()] * (1.0 + (i / stretch.len()) as f32))
                    .collect(),
                scale,
                offset: with_offset.then_some(offset),
                bits,
            })
        },
    )
}

/// Contiguous, transposed, spaced out, or broadcast along one axis.
fn strides(shape: &[usize], view: u8) -> Option<Vec<usize>> {
    let rank = shape.len();
    let mut strides = vec![1; rank];
    match view % 4 {
        1 => (1..rank).for_each(|d| strides[d] = strides[d - 1] * shape[d - 1].max(1)),
        2 | 3 => {
            let gap = if view % 4 == 2 { 2 } else { 1 };
            let mut step = gap;
            for d in (0..rank).rev() {
                strides[d] = step;
                step *= shape[d].max(1);
            }
            if view % 4 == 3 && rank > 0 {
                strides[usize::from(view / 4) % rank] = 0;
            }
        }
        _ => return None,
    }
    Some(strides)
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| v.to_bits()).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn quantize_and_dequantize(case in case()) {
        let (tiling, affine, grid) = (case.tiling(), case.affine(), case.grid());
        let expected = quantize_reference(&case.memory, &tiling, affine, grid).unwrap();
        let expected: Vec<i32> = expected.into_iter().map(Option::unwrap).collect();
        let mut codes = vec![0i32; tiling.len()];
        quantize(&case.memory, &tiling, affine, grid, &mut codes).unwrap();
        prop_assert_eq!(&codes, &expected);

        let mut small = vec![0i8; tiling.len()];
        let result = quantize(&case.memory, &tiling, affine, grid, &mut small);
        prop_assert_eq!(result.is_ok(), case.bits <= 8);
        if result.is_ok() {
            prop_assert!(small.iter().zip(&codes).all(|(&a, &b)| i32::from(a) == b));
        }
        let mut middle = vec![0i16; tiling.len()];
        let result = quantize(&case.memory, &tiling, affine, grid, &mut middle);
        prop_assert_eq!(result.is_ok(), case.bits <= 16);
        if result.is_ok() {
            prop_assert!(middle.iter().zip(&codes).all(|(&a, &b)| i32::from(a) == b));
        }

        // Codes are contiguous.
        let plain = Tiling::new(&case.shape, &case.tile).unwrap();
        let mut values = vec![0.0; tiling.len()];
        dequantize(&codes, &plain, affine, &mut values).unwrap();
        prop_assert_eq!(bits(&values), bits(&dequantize_reference(&codes, &plain, affine).unwrap()));
        let mut fused = vec![0.0; tiling.len()];
        fake_quantize(&case.memory, &tiling, affine, grid, &mut fused).unwrap();
        prop_assert!(fused.iter().zip(&values).all(|(a, b)| a == b));
    }

    #[test]
    fn packed_codes_are_those_of_two_passes(case in case(), which in 0usize..4, drop in any::<bool>()) {
        let packed = [Packed::Int4, Packed::Uint4, Packed::Int2, Packed::Uint2][which];
        let grid = IntegerGrid::new(packed.lo() + i32::from(drop), packed.hi()).unwrap();
        let (tiling, affine) = (case.tiling(), case.affine());
        let codes: Vec<i32> = quantize_reference(&case.memory, &tiling, affine, grid)
            .unwrap()
            .into_iter()
            .map(Option::unwrap)
            .collect();
        let mut expected = vec![0; packed.packed_len(codes.len())];
        pack(&codes, packed, &mut expected).unwrap();
        let mut bytes = vec![0xff; expected.len()];
        quantize_packed(&case.memory, &tiling, affine, grid, packed, &mut bytes).unwrap();
        prop_assert_eq!(&bytes, &expected);

        let plain = Tiling::new(&case.shape, &case.tile).unwrap();
        let mut values = vec![9.0; codes.len()];
        dequantize_packed(&bytes, packed, &plain, affine, &mut values).unwrap();
        prop_assert_eq!(bits(&values), bits(&dequantize_reference(&codes, &plain, affine).unwrap()));
    }

    #[test]
    fn strided_codes_dequantize(case in case()) {
        let codes: Vec<i16> = case.memory.iter().map(|v| *v as i16).collect();
        let (tiling, affine) = (case.tiling(), case.affine());
        let mut values = vec![0.0; tiling.len()];
        dequantize(&codes, &tiling, affine, &mut values).unwrap();
        prop_assert_eq!(bits(&values), bits(&dequantize_reference(&codes, &tiling, affine).unwrap()));
    }

    #[test]
    fn fake_quantize_keeps_nan(case in case(), nan_at in any::<prop::sample::Index>()) {
        let mut memory = case.memory.clone();
        if !memory.is_empty() {
            let at = nan_at.index(memory.len());
            memory[at] = f32::NAN;
        }
        let (tiling, affine, grid) = (case.tiling(), case.affine(), case.grid());
        let mut out = vec![0.0; tiling.len()];
        fake_quantize(&memory, &tiling, affine, grid, &mut out).unwrap();
        let expected = fake_quantize_reference(&memory, &tiling, affine, grid).unwrap();
        for (a, b) in out.iter().zip(&expected) {
            prop_assert!(a.to_bits() == b.to_bits() || (a.is_nan() && b.is_nan()));
        }
        // The codes of the same data are refused exactly if a NaN is in the view.
        let nan: Vec<usize> = (0..expected.len()).filter(|&i| expected[i].is_nan()).collect();
        let mut codes = vec![0i32; tiling.len()];
        match quantize(&memory, &tiling, affine, grid, &mut codes) {
            Ok(()) => prop_assert!(nan.is_empty()),
            Err(err) => {
                let KernelErrorKind::NotANumber { count, first } = err.kind() else { panic!("{err}") };
                prop_assert_eq!(*count, nan.len());
                prop_assert_eq!(first, &nan[..first.len()]);
            }
        }
    }

    #[test]
    fn backward(case in case()) {
        let (tiling, affine, grid) = (case.tiling(), case.affine(), case.grid());
        let grad_out: Vec<f32> = (0..tiling.len()).map(|i| (i * 7 % 5) as f32 - 2.0).collect();
        let mut grad_x = vec![9.0; tiling.len()];
        let grads =
            fake_quantize_backward(&case.memory, &tiling, affine, grid, &grad_out, &mut grad_x).unwrap();
        let (expected_x, expected) =
            fake_quantize_backward_reference(&case.memory, &tiling, affine, grid, &grad_out).unwrap();
        prop_assert_eq!(bits(&grad_x), bits(&expected_x));
        // Bounds on the sums of absolute terms: 3 · |bound| or 3 · s per element.
        let reach = 3.0 * tiling.tile_len() as f64;
        for tile in 0..tiling.num_tiles() {
            let o = affine.offset.map_or(0.0, |o| o[tile].abs() + 1.0);
            let limit = reach * (f64::from(-grid.lo()) + f64::from(o)) * 1e-7;
            prop_assert!((f64::from(grads.scale[tile]) - f64::from(expected.scale[tile])).abs() <= limit);
            if let (Some(a), Some(b)) = (&grads.offset, &expected.offset) {
                let limit = reach * f64::from(affine.scale[tile]) * 1e-7;
                prop_assert!((f64::from(a[tile]) - f64::from(b[tile])).abs() <= limit);
            }
        }
        prop_assert_eq!(grads.offset.is_some(), expected.offset.is_some());
    }

    #[test]
    fn minimum_and_maximum(case in case(), nan_at in any::<prop::sample::Index>(), nan in any::<bool>()) {
        let mut memory = case.memory.clone();
        if nan && !memory.is_empty() {
            let at = nan_at.index(memory.len());
            memory[at] = f32::NAN;
        }
        let tiling = case.tiling();
        let got = min_max(&memory, &tiling).unwrap();
        let expected = min_max_reference(&memory, &tiling).unwrap();
        prop_assert_eq!(bits(&got.min), bits(&expected.min));
        prop_assert_eq!(bits(&got.max), bits(&expected.max));
        prop_assert_eq!(got.nan_tiles, expected.nan_tiles);
    }

    #[test]
    fn sums_and_sums_of_squares(case in case()) {
        let tiling = case.tiling();
        let got = moments(&case.memory, &tiling).unwrap();
        let expected = moments_reference(&case.memory, &tiling).unwrap();
        for (got, expected) in got.iter().zip(&expected) {
            prop_assert_eq!(got.len, expected.len);
            // Opposite infinities are NaN, and so are their sums in any order.
            let close = |a: f64, b: f64, reach: f64| {
                a == b || (a.is_nan() && b.is_nan()) || (a - b).abs() <= 1e-12 * reach
            };
            prop_assert!(close(got.sum_squared, expected.sum_squared, expected.sum_squared));
            let reach = (expected.sum_squared * expected.len as f64).sqrt();
            prop_assert!(close(got.sum, expected.sum, reach));
        }
    }
}
