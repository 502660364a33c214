//! The three maps of a convolution at sizes of published networks, beside the multiplications that they need.

use divan::counter::ItemsCount;
use divan::{Bencher, black_box};
use ff_kernels::{ConvShape, conv, conv_transposed, conv_weight_gradient};

fn main() {
    divan::main();
}

/// Name, batch, channels in and out, groups, side, kernel, stride.
const CASES: [(&str, [usize; 7]); 5] = [
    ("7x7 s2 3-64 @224 b1", [1, 3, 64, 1, 224, 7, 2]),
    ("3x3 64-64 @56 b8", [8, 64, 64, 1, 56, 3, 1]),
    ("1x1 64-256 @56 b8", [8, 64, 256, 1, 56, 1, 1]),
    ("depthwise 3x3 144 @56 b8", [8, 144, 144, 144, 56, 3, 1]),
    ("3x3 g32 256 @28 b8", [8, 256, 256, 32, 28, 3, 1]),
];

fn setup(case: &[usize; 7]) -> (ConvShape, [Vec<f32>; 3], ItemsCount) {
    let [batch, in_channels, out_channels, groups, side, kernel, stride] = *case;
    let out = (side + kernel / 2 * 2 - kernel) / stride + 1;
    let shape = ConvShape {
        batch,
        in_channels,
        out_channels,
        groups,
        input: [1, side, side],
        output: [1, out, out],
        kernel: [1, kernel, kernel],
        stride: [1, stride, stride],
        dilation: [1; 3],
        padding: [0, kernel / 2, kernel / 2],
    };
    let noise = |n: usize| (0..n).map(|i| (i * 7919 % 1009) as f32 / 500.0 - 1.0).collect();
    let x = batch * in_channels * side * side;
    let weight = out_channels * in_channels / groups * kernel * kernel;
    let y = batch * out_channels * out * out;
    let work = weight * batch * out * out;
    (shape, [noise(x), noise(weight), noise(y)], ItemsCount::new(work))
}

#[divan::bench(args = CASES.map(|(name, _)| name))]
fn forward(bencher: Bencher<'_, '_>, name: &str) {
    let (shape, [x, weight, mut y], work) = setup(find(name));
    bencher
        .counter(work)
        .bench_local(|| conv(&shape, black_box(&x), &weight, None, &mut y).unwrap());
}

#[divan::bench(args = CASES.map(|(name, _)| name))]
fn input_gradient(bencher: Bencher<'_, '_>, name: &str) {
    let (shape, [mut x, weight, y], work) = setup(find(name));
    bencher
        .counter(work)
        .bench_local(|| conv_transposed(&shape, black_box(&y), &weight, None, &mut x).unwrap());
}

#[divan::bench(args = CASES.map(|(name, _)| name))]
fn weight_gradient(bencher: Bencher<'_, '_>, name: &str) {
    let (shape, [x, mut weight, y], work) = setup(find(name));
    bencher
        .counter(work)
        .bench_local(|| conv_weight_gradient(&shape, black_box(&x), &y, &mut weight).unwrap());
}

fn find(name: &str) -> &'static [usize; 7] {
    &CASES.iter().find(|(case, _)| *case == name).expect("one of the names above").1
}
