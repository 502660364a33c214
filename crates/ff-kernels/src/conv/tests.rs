use proptest::prelude::*;

use super::*;

/// The definition: calls `visit(x index, weight index, y index)` for every product that occurs.
fn products(shape: &ConvShape, mut visit: impl FnMut(usize, usize, usize)) {
    let (in_group, out_group) = shape.group_channels();
    let ConvShape { input, output, kernel, .. } = shape;
    let positions = |size: [usize; 3]| {
        (0..size[0])
            .flat_map(move |d| (0..size[1]).flat_map(move |h| (0..size[2]).map(move |w| [d, h, w])))
    };
    let flat = |at: [usize; 3], size: &[usize; 3]| (at[0] * size[1] + at[1]) * size[2] + at[2];
    let volume = |size: &[usize; 3]| size.iter().product::<usize>();
    for n in 0..shape.batch {
        for o in 0..shape.out_channels {
            for c in 0..in_group {
                let channel = o / out_group * in_group + c;
                for p in positions(*output) {
                    for t in positions(*kernel) {
                        let at: [isize; 3] = std::array::from_fn(|a| {
                            (p[a] * shape.stride[a] + t[a] * shape.dilation[a]) as isize
                                - shape.padding[a] as isize
                        });
                        if (0..3).all(|a| at[a] >= 0 && (at[a] as usize) < input[a]) {
                            visit(
                                (n * shape.in_channels + channel) * volume(input)
                                    + flat(at.map(|a| a as usize), input),
                                (o * in_group + c) * volume(kernel) + flat(t, kernel),
                                (n * shape.out_channels + o) * volume(output) + flat(p, output),
                            );
                        }
                    }
                }
            }
        }
    }
}

/// Small integers, so that every sum is exact in any order.
fn values<T: From<i8>>(n: usize, seed: usize) -> Vec<T> {
    (0..n).map(|i| T::from((((i + seed) * 7919 + seed * 31) % 17) as i8 - 8)).collect()
}

fn check<T: Real + From<i8> + Into<f64> + std::fmt::Debug>(shape: &ConvShape) {
    let sizes = shape.check().unwrap();
    let x: Vec<T> = values(sizes.x, 1);
    let weight: Vec<T> = values(sizes.weight, 2);
    let y: Vec<T> = values(sizes.y, 3);
    let out_bias: Vec<T> = values(shape.out_channels, 4);
    let in_bias: Vec<T> = values(shape.in_channels, 5);
    let plane = |channels: usize, all: usize| (all / (shape.batch * channels)).max(1);
    let spread = |bias: &[T], all: usize| -> Vec<T> {
        (0..all).map(|i| bias[i / plane(bias.len(), all) % bias.len()]).collect()
    };
    let mut expected_y = spread(&out_bias, sizes.y);
    let mut expected_x = spread(&in_bias, sizes.x);
    let mut expected_weight = vec![T::default(); sizes.weight];
    products(shape, |i, k, o| {
        expected_y[o] += x[i] * weight[k];
        expected_x[i] += y[o] * weight[k];
        expected_weight[k] += x[i] * y[o];
    });
    // Buffers start with other numbers: a kernel owns what it writes.
    let mut out = vec![T::from(99); sizes.y];
    conv(shape, &x, &weight, Some(&out_bias), &mut out).unwrap();
    assert_eq!(out, expected_y, "conv {shape:?}");
    let mut out = vec![T::from(99); sizes.x];
    conv_transposed(shape, &y, &weight, Some(&in_bias), &mut out).unwrap();
    assert_eq!(out, expected_x, "transposed {shape:?}");
    let mut out = vec![T::from(99); sizes.weight];
    conv_weight_gradient(shape, &x, &y, &mut out).unwrap();
    assert_eq!(out, expected_weight, "weight {shape:?}");
}

fn shapes() -> impl Strategy<Value = ConvShape> {
    let axis = (1usize..=12, 1usize..=4, 1usize..=3, 1usize..=3, 0usize..=4, 0usize..=3);
    (
        1usize..=3,
        1usize..=3,
        1usize..=5,
        1usize..=11,
        [axis.clone(), axis.clone(), axis],
        1usize..=3,
    )
        .prop_map(|(batch, groups, in_group, out_group, axes, rank)| {
            let mut shape = ConvShape {
                batch,
                in_channels: groups * in_group,
                out_channels: groups * out_group,
                groups,
                input: [1; 3],
                output: [1; 3],
                kernel: [1; 3],
                stride: [1; 3],
                dilation: [1; 3],
                padding: [0; 3],
            };
            for (a, axis) in axes.into_iter().enumerate().skip(3 - rank) {
                let (input, kernel, stride, dilation, padding, after) = axis;
                let reach = dilation * (kernel - 1) + 1;
                shape.kernel[a] = kernel;
                shape.stride[a] = stride;
                shape.dilation[a] = dilation;
                shape.padding[a] = padding;
                shape.input[a] = input.max(reach.saturating_sub(padding + after)).max(1);
                // An output past the end of the input, as a transposed convolution may have, is allowed.
                shape.output[a] = (shape.input[a] + padding + after - reach) / stride + 1;
            }
            shape
        })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]
    #[test]
    fn all_three_maps_are_their_definition(shape in shapes()) {
        check::<f32>(&shape);
        check::<f64>(&shape);
    }
}

const BASE: ConvShape = ConvShape {
    batch: 1,
    in_channels: 1,
    out_channels: 1,
    groups: 1,
    input: [1; 3],
    output: [1; 3],
    kernel: [1; 3],
    stride: [1; 3],
    dilation: [1; 3],
    padding: [0; 3],
};

#[test]
fn large_shapes_take_the_blocked_and_parallel_paths() {
    // Deeper than one block of columns, several blocks of rows, more than one unit.
    let deep = ConvShape {
        batch: 2,
        in_channels: 70,
        out_channels: 21,
        input: [1, 9, 40],
        output: [1, 9, 40],
        kernel: [1, 3, 3],
        padding: [0, 1, 1],
        ..BASE
    };
    check::<f32>(&deep);
    // Many units, depthwise with a multiplier, rows longer than a span of inner products.
    let depthwise = ConvShape {
        batch: 2,
        in_channels: 9,
        out_channels: 18,
        groups: 9,
        input: [1, 1, 5000],
        output: [1, 1, 2500],
        kernel: [1, 1, 5],
        stride: [1, 1, 2],
        padding: [0, 0, 2],
        ..BASE
    };
    check::<f32>(&depthwise);
    // In place, and planes that would share their places in the cache.
    for side in [16, 15] {
        let size = [1, side, side];
        let pointwise =
            ConvShape { in_channels: 300, out_channels: 33, input: size, output: size, ..BASE };
        check::<f32>(&pointwise);
    }
}

#[test]
fn the_number_of_threads_changes_no_bit() {
    let shape = ConvShape {
        batch: 3,
        in_channels: 40,
        out_channels: 40,
        input: [1, 17, 19],
        output: [1, 9, 10],
        kernel: [1, 3, 3],
        stride: [1, 2, 2],
        padding: [0, 1, 1],
        ..BASE
    };
    let sizes = shape.check().unwrap();
    let noise =
        |n: usize| -> Vec<f32> { (0..n).map(|i| ((i * 7919 % 1009) as f32).sin()).collect() };
    let (x, weight, y) = (noise(sizes.x), noise(sizes.weight), noise(sizes.y));
    let run = || {
        let (mut a, mut b, mut c) = (y.clone(), x.clone(), weight.clone());
        conv(&shape, &x, &weight, None, &mut a).unwrap();
        conv_transposed(&shape, &y, &weight, None, &mut b).unwrap();
        conv_weight_gradient(&shape, &x, &y, &mut c).unwrap();
        let all = a.into_iter().chain(b).chain(c);
        all.map(f32::to_bits).collect::<Vec<_>>()
    };
    let [one, three] = [1, 3]
        .map(|n| rayon::ThreadPoolBuilder::new().num_threads(n).build().unwrap().install(run));
    assert_eq!(one, three);
}

#[test]
fn every_instruction_set_computes_the_same_sums() {
    let shape = ConvShape {
        batch: 2,
        in_channels: 10,
        out_channels: 38,
        groups: 2,
        input: [1, 9, 11],
        output: [1, 5, 12],
        kernel: [1, 3, 2],
        stride: [1, 2, 1],
        padding: [0, 1, 1],
        ..BASE
    };
    for level in crate::simd::tests::LEVELS {
        let limit = move |_| crate::simd::tests::HIGHEST.set(level);
        let pool = rayon::ThreadPoolBuilder::new().num_threads(2).start_handler(limit).build();
        pool.unwrap().install(|| {
            check::<f32>(&shape);
            check::<f64>(&shape);
        });
    }
}

#[test]
fn work_is_cut_between_blocks_of_rows() {
    // One image, so that channels are what threads share.
    for out_channels in [7, 8, 13, 14, 20, 32, 128] {
        let shape = ConvShape {
            in_channels: 16,
            out_channels,
            input: [1, 40, 40],
            output: [1, 40, 40],
            kernel: [1, 3, 3],
            padding: [0, 1, 1],
            ..BASE
        };
        let x: Vec<f32> = (0..16 * 1600).map(|i| ((i * 37) % 101) as f32 / 50.0 - 1.0).collect();
        let weight: Vec<f32> =
            (0..out_channels * 144).map(|i| ((i * 53) % 89) as f32 / 44.0 - 1.0).collect();
        for level in crate::simd::tests::LEVELS {
            let run = |threads| {
                let limit = move |_| crate::simd::tests::HIGHEST.set(level);
                let pool = rayon::ThreadPoolBuilder::new();
                let pool = pool.num_threads(threads).start_handler(limit).build();
                let mut out = vec![0.0; out_channels * 1600];
                pool.unwrap().install(|| conv(&shape, &x, &weight, None, &mut out)).unwrap();
                out
            };
            assert_eq!(run(1), run(2), "{out_channels} channels, {level:?}");
        }
    }
}

#[test]
fn what_is_no_convolution_is_an_error() {
    let say =
        |shape: &ConvShape| conv(shape, &[1.0], &[1.0], None, &mut [0.0]).unwrap_err().to_string();
    assert!(say(&ConvShape { stride: [1, 0, 1], ..BASE }).contains("stride"));
    assert!(say(&ConvShape { groups: 2, ..BASE }).contains("in_channels"));
    assert!(say(&ConvShape { batch: 2, ..BASE }).contains("input"));
    let huge = ConvShape { dilation: [usize::MAX; 3], kernel: [2; 3], ..BASE };
    assert!(!say(&huge).is_empty());
    assert!(conv(&BASE, &[1.0], &[1.0], Some(&[1.0, 2.0]), &mut [0.0]).is_err());
}

#[test]
fn nothing_in_makes_the_bias() {
    let shape =
        ConvShape { in_channels: 0, out_channels: 2, output: [1, 1, 2], input: [1, 1, 2], ..BASE };
    let mut out = [9.0f32; 4];
    conv(&shape, &[], &[], Some(&[1.0, 2.0]), &mut out).unwrap();
    assert_eq!(out, [1.0, 1.0, 2.0, 2.0]);
}

#[test]
fn channel_sums_add_up() {
    let y: Vec<f32> = (0..2 * 3 * 35).map(|i| i as f32).collect();
    let sums = channel_sums(&y, 2, 3, 35).unwrap();
    let expected: Vec<f64> = (0..3)
        .map(|c| (0..2 * 3 * 35).filter(|i| i / 35 % 3 == c).map(|i| i as f64).sum())
        .collect();
    assert_eq!(sums, expected);
}
