//! Operators on float tensors, forward and with their backward pass.
//!
//! `cargo bench -p fastforward-rs` runs single-threaded; `FF_BENCH_THREADS=2` sets the threads. The allocator is that of the
//! program `fastforward`: with the system's, fresh pages cost more than the arithmetic.

use candle_core::{DType, Device, Tensor, Var};
use divan::Bencher;
use fastforward::tensor::Result;
use fastforward::tensor::float::*;

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

/// Rows as long as a feed-forward layer is wide.
fn data(dims: &[usize]) -> Tensor {
    let n: usize = dims.iter().product();
    let value = |i: usize| ((i * 7919) % 10_007) as f32 / 2500.0 - 2.0;
    Tensor::from_vec((0..n).map(value).collect::<Vec<_>>(), dims, &Device::Cpu)
        .expect("as many values as elements")
}

const SHAPE: [usize; 2] = [512, 4096];

/// The operator alone, where nothing tracks gradients.
fn forward(bencher: Bencher, operator: impl Fn(&Tensor) -> Result<Tensor> + Sync) {
    let x = data(&SHAPE);
    bencher.bench(|| operator(&x).expect("the operands fit"));
}

/// The operator and its backward pass, without the sum over the result that a loss would take.
fn backward(bencher: Bencher, operator: impl Fn(&Tensor) -> Result<Tensor> + Sync) {
    let x = Var::from_tensor(&data(&SHAPE)).expect("a copy");
    bencher.bench(|| operator(&x).expect("the operands fit").backward().expect("a gradient"));
}

macro_rules! benches {
    ($($name:ident: $operator:expr;)*) => {$(
        mod $name {
            use super::*;

            #[divan::bench]
            fn forward(bencher: Bencher) {
                super::forward(bencher, $operator);
            }

            #[divan::bench]
            fn with_backward(bencher: Bencher) {
                super::backward(bencher, $operator);
            }
        }
    )*};
}

fn parameters() -> (Tensor, Tensor) {
    (data(&[SHAPE[1]]), data(&[SHAPE[1]]))
}

benches! {
    gelu_erf: |x| gelu(x, GeluApproximation::None);
    gelu_tanh: |x| gelu(x, GeluApproximation::Tanh);
    silu_: silu;
    exp_: exp;
    relu_: relu;
    add_: |x| add(x, x, 1.0);
    add_row: |x| add(x, &parameters().0, 1.0);
    softmax_rows: |x| softmax(x, -1, None);
    softmax_columns: |x| softmax(x, 0, None);
    layer_norm_: |x| {
        let (weight, bias) = parameters();
        layer_norm(x, &SHAPE[1..], Some(&weight), Some(&bias), 1e-5)
    };
    rms_norm_: |x| rms_norm(x, &SHAPE[1..], Some(&parameters().0), None);
    batch_norm_: |x| Ok(batch_norm_training(&x.reshape((8, 64, 4096))?, None, None, 1e-5)?.0);
    sum_rows: |x| sum(x, Some(1), false);
    sum_columns: |x| sum(x, Some(0), false);
}

#[divan::bench]
fn linear_512x1024x1024(bencher: Bencher) {
    let (x, weight, bias) = (data(&[512, 1024]), data(&[1024, 1024]), data(&[1024]));
    bencher.bench(|| linear(&x, &weight, Some(&bias)).expect("the operands fit"));
}

#[divan::bench]
fn narrow_gelu(bencher: Bencher) {
    let x = data(&SHAPE).to_dtype(DType::BF16).expect("a float type");
    bencher.bench(|| gelu(&x, GeluApproximation::None).expect("the operands fit"));
}
