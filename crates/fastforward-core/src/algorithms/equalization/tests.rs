use super::*;

/// Numbers between 0 and 1, different for each seed.
fn numbers(seed: u64, n: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 40) as f32 / (1 << 24) as f32
    };
    (0..n).map(|_| next()).collect()
}

fn exact() -> EqualizationOptions {
    EqualizationOptions {
        rounding: ScaleRounding::Unrounded,
        max_iterations: 100,
        tolerance: 1e-12,
    }
}

#[track_caller]
fn assert_close(found: f64, expected: f64) {
    assert!((found / expected - 1.0).abs() < 1e-9, "found {found}, expected {expected}");
}

#[test]
fn both_sides_of_a_joint_meet_in_the_middle() {
    let layers = [
        Channels::new(numbers(1, 60), 6, 1).unwrap(),
        Channels::new(numbers(2, 42), 7, 1).unwrap(),
    ];
    let result = equalize(&layers, &[Joint::new(0, 1)], &exact()).unwrap();
    let [written, _] = layers[0].ranges(None, Some(&result.scales[0]));
    let [_, read] = layers[1].ranges(Some(&result.scales[0]), None);
    for (written, read) in written.iter().zip(&read) {
        assert_close(*written, *read);
    }
    assert!(result.converged);
    assert_eq!(result.iterations, 2); // The second finds nothing to do.
}

#[test]
fn a_depthwise_layer_and_its_neighbours_come_to_the_cubic_root() {
    let depthwise = numbers(5, 4);
    let layers = [
        Channels::new(numbers(3, 12), 4, 1).unwrap(),
        Channels::new(depthwise.clone(), 4, 4).unwrap(),
        Channels::new(numbers(4, 8), 2, 1).unwrap(),
    ];
    let [first, _] = layers[0].ranges(None, None);
    let [_, third] = layers[2].ranges(None, None);
    let joints = [Joint::new(0, 1), Joint::new(1, 2)];
    let result = equalize(&layers, &joints, &exact()).unwrap();
    for channel in 0..4 {
        let wanted = (first[channel] * f64::from(depthwise[channel]) * third[channel]).cbrt();
        assert_close(first[channel] / result.scales[0][channel], wanted);
        assert_close(third[channel] * result.scales[1][channel], wanted);
    }
}

#[test]
fn groups_read_their_own_channels() {
    // [4 outputs, 3 of 6 inputs]: the second group reads large ones.
    let magnitudes = vec![1.0, 2.0, 3.0, 1.0, 1.0, 1.0, 10.0, 20.0, 30.0, 10.0, 10.0, 40.0];
    let layer = Channels::new(magnitudes, 4, 2).unwrap();
    assert_eq!((layer.outputs(), layer.inputs()), (4, 6));
    let [outputs, inputs] = layer.ranges(None, None);
    assert_eq!(outputs, [3.0, 1.0, 30.0, 40.0]);
    assert_eq!(inputs, [1.0, 2.0, 3.0, 10.0, 20.0, 40.0]);
}

#[test]
fn dead_channels_keep_the_factor_one() {
    // Channel 0 is never written, channel 1 never read.
    let layers = [
        Channels::new(vec![0.0, 8.0, 8.0], 3, 1).unwrap(),
        Channels::new(vec![2.0, 0.0, 2.0], 1, 1).unwrap(),
    ];
    let result = equalize(&layers, &[Joint::new(0, 1)], &EqualizationOptions::default()).unwrap();
    assert_eq!(result.scales[0], [1.0, 1.0, 2.0]);
    assert_eq!(result.spreads[0].producer_before, 1.0); // 0 is no range.

    let silent = [Channels::new(vec![0.0; 3], 3, 1).unwrap(), layers[1].clone()];
    let result = equalize(&silent, &[Joint::new(0, 1)], &EqualizationOptions::default()).unwrap();
    assert_eq!(result.scales[0], [1.0; 3]);
    assert!(result.converged);
}

#[test]
fn doing_it_again_changes_nothing() {
    for seed in 0..50 {
        for rounding in [ScaleRounding::PowerOfTwo, ScaleRounding::Unrounded] {
            let options = EqualizationOptions { rounding, ..exact() };
            let spread = |values: Vec<f32>| -> Vec<f32> {
                let exponents = numbers(seed + 900, values.len());
                values.iter().zip(exponents).map(|(v, e)| v * (20.0 * e - 10.0).exp2()).collect()
            };
            let first = spread(numbers(seed, 40));
            let second = spread(numbers(seed + 100, 24));
            let layers = [
                Channels::new(first.clone(), 8, 1).unwrap(),
                Channels::new(second.clone(), 3, 1).unwrap(),
            ];
            let joint = [Joint::new(0, 1)];
            let once = equalize(&layers, &joint, &options).unwrap();
            let scales = &once.scales[0];
            let scaled = |value: f32, factor: f64| (f64::from(value) * factor) as f32;
            let first = first.iter().enumerate().map(|(at, &v)| scaled(v, 1.0 / scales[at / 5]));
            let second = second.iter().enumerate().map(|(at, &v)| scaled(v, scales[at % 8]));
            let layers = [
                Channels::new(first.collect(), 8, 1).unwrap(),
                Channels::new(second.collect(), 3, 1).unwrap(),
            ];
            let twice = equalize(&layers, &joint, &options).unwrap();
            for scale in &twice.scales[0] {
                assert!((scale - 1.0).abs() < 1e-6, "{rounding:?} {scale}");
            }
        }
    }
}

#[test]
fn powers_of_two_are_off_by_no_more_than_the_root_of_two() {
    for exponent in -40..40 {
        for fraction in [1.0, 1.2, 1.41, 1.4143, 1.9] {
            let scale = fraction * 2f64.powi(exponent);
            let rounded = ScaleRounding::PowerOfTwo.round(scale);
            assert_eq!(rounded.log2().fract(), 0.0);
            let off = (rounded / scale).max(scale / rounded);
            assert!(off <= 2f64.sqrt() * (1.0 + 1e-12), "{scale} {rounded}");
        }
    }
}

#[test]
fn a_bias_does_not_outgrow_its_layer() {
    // Channel 1 has almost no weight, but a large bias.
    let layers = [
        Channels::new(vec![1.0, 1e-12, 1.0], 3, 1).unwrap(),
        Channels::new(vec![1.0, 1.0, 1.0], 1, 1).unwrap(),
    ];
    let bias = [0.1, -0.3, 0.4];
    let joint = Joint { producer: 0, consumer: 1, least: bias_bounds(&bias) };
    let bounded = |rounding| {
        let options = EqualizationOptions { rounding, ..exact() };
        equalize(&layers, std::slice::from_ref(&joint), &options).unwrap().scales[0][1]
    };
    assert_close(bounded(ScaleRounding::Unrounded), f64::from(0.3f32) / f64::from(0.4f32));
    assert_eq!(bounded(ScaleRounding::PowerOfTwo), 1.0);
    let free = equalize(&layers, &[Joint::new(0, 1)], &exact()).unwrap();
    assert_close(free.scales[0][1], f64::from(1e-12f32).sqrt());
    assert!(bias_bounds(&[0.0, 0.0]).is_empty());
}

#[test]
fn what_does_not_fit_is_refused() {
    let layers =
        [Channels::new(vec![1.0; 6], 3, 1).unwrap(), Channels::new(vec![1.0; 6], 2, 1).unwrap()];
    let check = |joints: &[Joint], options: EqualizationOptions, message: &str| {
        let error = equalize(&layers, joints, &options).unwrap_err();
        assert_eq!(error.to_string(), message);
    };
    let default = EqualizationOptions::default;
    check(
        &[Joint::new(0, 2)],
        default(),
        "joint 0 lies between the layers 0 and 2, but there are 2",
    );
    let narrow = [layers[0].clone(), Channels::new(vec![1.0; 4], 2, 1).unwrap()];
    let error = equalize(&narrow, &[Joint::new(0, 1)], &default()).unwrap_err();
    assert_eq!(error.to_string(), "joint 0 has 3 channels on one side and 2 on the other");
    check(
        &[Joint::new(0, 1), Joint::new(0, 1)],
        default(),
        "two joints lie on the same side of layer 1",
    );
    check(
        &[Joint { least: vec![1.0], ..Joint::new(0, 1) }],
        default(),
        "joint 0 needs no bounds, or a finite one for each of 3 channels",
    );
    check(
        &[],
        EqualizationOptions { tolerance: f64::NAN, ..default() },
        "tolerance must be positive, found NaN",
    );
    for (magnitudes, outputs, groups, message) in [
        (vec![1.0; 6], 3, 2, "3 output channels do not make 2 groups"),
        (vec![1.0; 5], 3, 1, "5 magnitudes do not make a row for each of 3 output channels"),
        (vec![1.0, f32::NAN], 2, 1, "magnitude 1 is NaN, expected 0 or more"),
        (vec![-1.0, 1.0], 2, 1, "magnitude 0 is -1, expected 0 or more"),
    ] {
        let error = Channels::new(magnitudes, outputs, groups).unwrap_err();
        assert_eq!(error.to_string(), message);
    }
}
