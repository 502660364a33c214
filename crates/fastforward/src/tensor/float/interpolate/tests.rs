use candle_core::Device;
use proptest::prelude::*;

use super::super::testing::{check_gradients, numbers, values};
use super::InterpolateMode::*;
use super::*;

/// Sines of multiples of the element number.
fn wave() -> Tensor {
    let values: Vec<f32> = (0..70).map(|i| (i as f32 * 0.37).sin()).collect();
    Tensor::from_vec(values, (1, 2, 5, 7), &Device::Cpu).unwrap()
}

#[track_caller]
fn check(x: &Tensor, options: &Interpolate, shape: &[usize], every: usize, expected: &[f64]) {
    let y = interpolate(x, options).unwrap();
    assert_eq!(y.dims(), shape);
    let y = values(&y);
    for (i, expected) in expected.iter().enumerate() {
        let found = y[i * every];
        assert!(
            (found - expected).abs() < 3e-6,
            "{options:?} at {}: {found} for {expected}",
            i * every
        );
    }
}

/// Values of `torch.nn.functional` 2.15.
#[test]
fn results_are_those_of_pytorch() {
    let x = wave();
    let factor = [1.7, 0.6];
    let big = [1, 2, 8, 4];
    let expected = [0.0, 0.524044, -0.892648, 0.996476, 0.374288, 0.167175, -0.65905, 0.95544];
    check(&x, &Interpolate::scale(factor, Nearest), &big, 8, &expected);
    let expected = [0.0, 0.524044, -0.892648, -0.804731, 0.374288, 0.167175, -0.65905, -0.968429];
    check(&x, &Interpolate::size([8, 4], NearestExact), &big, 8, &expected);
    let expected =
        [0.120538, 0.401061, -0.553136, 0.388089, 0.477622, 0.057299, -0.340022, 0.291709];
    check(&x, &Interpolate::scale(factor, Bilinear), &big, 8, &expected);
    let recomputed =
        Interpolate { recompute_scale_factor: Some(true), ..Interpolate::scale(factor, Bilinear) };
    let expected =
        [0.135606, 0.319994, -0.249047, -0.056585, 0.490539, -0.006363, -0.092992, -0.160048];
    check(&x, &recomputed, &big, 8, &expected);
    let aligned = Interpolate { align_corners: Some(true), ..Interpolate::size([8, 4], Bilinear) };
    let expected = [0.0, 0.32166, -0.352898, 0.224529, 0.374288, 0.049143, -0.197767, 0.130924];
    check(&x, &aligned, &big, 8, &expected);
    let expected =
        [0.08047, 0.370016, -0.344618, 0.084148, 0.510156, 0.004832, -0.109802, -0.04982];
    check(&x, &Interpolate::size([8, 4], Bicubic), &big, 8, &expected);
    let aligned = Interpolate { align_corners: Some(true), ..Interpolate::size([3, 15], Bicubic) };
    let expected = [0.0, 0.992795, 0.006815, -0.994862, 0.013629, 0.920528, 0.225571, -0.998705];
    check(&x, &aligned, &[1, 2, 3, 15], 11, &expected);

    let smooth = |options| Interpolate { antialias: true, ..options };
    let small = [1, 2, 3, 4];
    let expected =
        [0.253898, 0.084278, 0.058261, -0.227114, 0.293773, -0.028798, 0.11434, -0.281226];
    check(&x, &smooth(Interpolate::size([3, 4], Bilinear)), &small, 3, &expected);
    let expected =
        [0.050698, 0.111151, 0.048547, -0.00269, -0.042961, 0.109517, 0.053432, 0.000929];
    check(&x, &smooth(Interpolate::scale([0.45, 1.6], Bilinear)), &[1, 2, 2, 11], 5, &expected);
    let expected =
        [0.087927, 0.131589, 0.090901, -0.092222, -0.13155, -0.086553, 0.119051, 0.122764];
    check(&x, &smooth(Interpolate::size([2, 3], Bicubic)), &[1, 2, 2, 3], 1, &expected);
    let expected =
        [0.266564, -0.050133, -0.08238, -0.096503, 0.256272, -0.1449, -0.15431, -0.179863];
    check(&x, &Interpolate::size([3, 4], Area), &small, 3, &expected);

    let expected = [0.0, 0.147152, -0.223592, 0.299104, -0.377537, 0.512388, -0.515155, 0.58221];
    check(&x.squeeze(0).unwrap(), &Interpolate::size([11], Linear), &[2, 5, 11], 13, &expected);
    let expected =
        [0.065506, -0.328592, 0.002264, 0.666269, -0.287201, -0.744409, 0.632791, 0.357732];
    let x = x.unsqueeze(1).unwrap();
    check(&x, &Interpolate::size([3, 4, 9], Trilinear), &[1, 1, 3, 4, 9], 13, &expected);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]
    #[test]
    fn gradients_are_differences(
        input in [1usize..6, 1usize..6],
        output in [1usize..8, 1usize..8],
        align: bool,
        antialias: bool,
    ) {
        let x = [numbers(&[1, 2, input[0], input[1]], 1)];
        for mode in [Nearest, NearestExact, Bilinear, Bicubic, Area] {
            let options = Interpolate::size(output, mode);
            check_gradients(&x, |t| interpolate(&t[0], &options));
        }
        for mode in [Bilinear, Bicubic] {
            let aligned = (align && !antialias).then_some(true);
            let options = Interpolate { align_corners: aligned, antialias, ..Interpolate::size(output, mode) };
            check_gradients(&x, |t| interpolate(&t[0], &options));
            // A constant stays what it is.
            let ones = x[0].ones_like().unwrap();
            for y in values(&interpolate(&ones, &options).unwrap()) {
                prop_assert!((y - 1.0).abs() < 1e-12);
            }
        }
        let x = [numbers(&[1, 1, 2, input[0], input[1]], 1)];
        let options = Interpolate::size([3, output[0], output[1]], Trilinear);
        check_gradients(&x, |t| interpolate(&t[0], &options));
        let x = [numbers(&[2, 1, input[0]], 1)];
        check_gradients(&x, |t| interpolate(&t[0], &Interpolate::size([output[0]], Linear)));
    }
}

#[test]
fn half_precision_is_rounded_once() {
    let x = wave().to_dtype(DType::BF16).unwrap();
    let options = Interpolate::size([9, 9], Bicubic);
    let wide = interpolate(&x.to_dtype(DType::F32).unwrap(), &options).unwrap();
    let found = interpolate(&x, &options).unwrap();
    assert_eq!(found.dtype(), DType::BF16);
    assert_eq!(values(&found), values(&wide.to_dtype(DType::BF16).unwrap()));
}

#[test]
fn whatever_does_not_fit_is_said() {
    let x = wave();
    let say = |options: Interpolate| interpolate(&x, &options).unwrap_err().to_string();
    assert!(
        say(Interpolate::size([3], Linear))
            .contains("mode `linear` is for another number of spatial axes")
    );
    let both = Interpolate {
        align_corners: Some(true),
        antialias: true,
        ..Interpolate::size([3], Nearest)
    };
    assert_eq!(
        say(both),
        "interpolate: align_corners belongs to the modes linear, bilinear, bicubic and trilinear, found `nearest`; \
         antialias belongs to the modes bilinear and bicubic, found `nearest`; \
         antialias together with align_corners is not supported; leave one of them out"
    );
    assert_eq!(
        say(Interpolate::size([3, 4, 5], Nearest)),
        "interpolate: size must hold one number, or one for each of the 2 spatial axes, found 3"
    );
    assert!(say(Interpolate::size([0], Nearest)).contains("no positions left"));
    assert!(
        say(Interpolate::scale([0.1], Nearest))
            .contains("spatial axis 0 of 5 would have no positions left")
    );
    for factor in [-1.0, 0.0, f64::NAN, f64::INFINITY, 1e300] {
        assert!(say(Interpolate::scale([factor], Nearest)).contains("must be positive and finite"));
    }
    assert!(
        say(Interpolate::size([usize::MAX / 2], Nearest)).contains("more than memory can hold")
    );
    let sized =
        Interpolate { recompute_scale_factor: Some(true), ..Interpolate::size([3], Nearest) };
    assert!(say(sized).contains("recompute_scale_factor means nothing with a size"));
    let flat = interpolate(&numbers(&[3, 3], 1), &Interpolate::size([3], Nearest)).unwrap_err();
    assert!(flat.to_string().contains("1 to 3 spatial axes, found [3, 3]"));
}
