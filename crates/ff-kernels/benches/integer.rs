//! Products of codes beside f32 products of the same shapes; items are multiplications and additions.
//!
//! `cargo bench -p ff-kernels --bench integer` runs single-threaded; `FF_BENCH_THREADS=2` sets the
//! threads.

use divan::counter::ItemsCount;
use divan::{Bencher, black_box};
use ff_kernels::*;
use rten_gemm::{GemmExecutor, GemmInputA, GemmInputB, GemmOptions};
use rten_tensor::NdTensorView;

fn main() {
    let threads = std::env::var("FF_BENCH_THREADS").ok().and_then(|n| n.parse().ok()).unwrap_or(1);
    rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .build_global()
        .expect("no pool was started before");
    divan::main();
}

#[derive(Debug, Clone, Copy)]
struct Shape {
    rows: usize,
    n_in: usize,
    n_out: usize,
}

const SHAPES: [Shape; 4] = [
    Shape { rows: 512, n_in: 512, n_out: 512 },
    Shape { rows: 1024, n_in: 1024, n_out: 1024 },
    Shape { rows: 8 * 128, n_in: 256, n_out: 1024 },
    Shape { rows: 1, n_in: 1024, n_out: 1024 },
];

impl std::fmt::Display for Shape {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}x{}x{}", self.rows, self.n_in, self.n_out)
    }
}

impl Shape {
    fn operations(self) -> ItemsCount {
        ItemsCount::new(2 * self.rows * self.n_in * self.n_out)
    }
}

fn codes(len: usize) -> Vec<i8> {
    (0..len).map(|i| (i * 7919 % 255) as u8 as i8).collect()
}

fn floats(len: usize) -> Vec<f32> {
    (0..len).map(|i| (i * 7919 % 255) as f32 - 127.0).collect()
}

const ACTIVATION: Affine<'_> = Affine { scale: &[0.02], offset: Some(&[13.0]) };

#[divan::bench(args = SHAPES)]
fn linear_i8(bencher: Bencher, shape: Shape) {
    let (a, w) = (codes(shape.rows * shape.n_in), codes(shape.n_out * shape.n_in));
    let weight = PackedWeight::new(CodeView::new(&w, [shape.n_out, shape.n_in]).unwrap());
    let (scale, bias) = (vec![0.01; shape.n_out], vec![1.0; shape.n_out]);
    let mut out = vec![0.0; shape.rows * shape.n_out];
    bencher.counter(shape.operations()).bench_local(|| {
        let a = CodeView::new(black_box(&a), [shape.rows, shape.n_in]).unwrap();
        let affine = Affine { scale: &scale, offset: None };
        integer_linear(a, ACTIVATION, &weight, affine, Some(&bias), &mut out).unwrap();
    });
}

#[divan::bench(args = SHAPES)]
fn matmul_i8(bencher: Bencher, shape: Shape) {
    let (a, b) = (codes(shape.rows * shape.n_in), codes(shape.n_in * shape.n_out));
    let mut out = vec![0.0; shape.rows * shape.n_out];
    bencher.counter(shape.operations()).bench_local(|| {
        let a = CodeView::new(black_box(&a), [1, shape.rows, shape.n_in]).unwrap();
        let b = CodeView::new(black_box(&b), [1, shape.n_in, shape.n_out]).unwrap();
        integer_matmul(a, ACTIVATION, b, ACTIVATION, &mut out).unwrap();
    });
}

/// The bare product of [`linear_i8`], without finishing: its ceiling.
#[divan::bench(args = SHAPES)]
fn product_u8_rten(bencher: Bencher, shape: Shape) {
    let a: Vec<u8> = codes(shape.rows * shape.n_in).into_iter().map(i8::cast_unsigned).collect();
    let w = codes(shape.n_out * shape.n_in);
    let executor = GemmExecutor::<u8, i8, i32>::default();
    let weight = NdTensorView::from_data([shape.n_out, shape.n_in], &w[..]);
    let packed = executor.prepack_b(weight.transposed());
    let mut out = vec![0; shape.rows * shape.n_out];
    bencher.counter(shape.operations()).bench_local(|| {
        let a = NdTensorView::from_data([shape.rows, shape.n_in], black_box(&a[..]));
        let (a, weight) = (GemmInputA::Unpacked(a), GemmInputB::Packed(&packed));
        executor.gemm(&mut out, a, weight, GemmOptions::default()).unwrap();
    });
}

#[divan::bench(args = SHAPES)]
fn linear_f32_rten(bencher: Bencher, shape: Shape) {
    let (a, w) = (floats(shape.rows * shape.n_in), floats(shape.n_out * shape.n_in));
    let executor = GemmExecutor::<f32, f32, f32>::default();
    let weight = NdTensorView::from_data([shape.n_out, shape.n_in], &w[..]);
    let packed = executor.prepack_b(weight.transposed());
    let mut out = vec![0.0; shape.rows * shape.n_out];
    bencher.counter(shape.operations()).bench_local(|| {
        let a = NdTensorView::from_data([shape.rows, shape.n_in], black_box(&a[..]));
        let (a, weight) = (GemmInputA::Unpacked(a), GemmInputB::Packed(&packed));
        executor.gemm(&mut out, a, weight, GemmOptions::default()).unwrap();
    });
}

/// The product that candle uses, with the same AVX-512 feature.
#[divan::bench(args = SHAPES)]
fn linear_f32_gemm(bencher: Bencher, shape: Shape) {
    let (a, w) = (floats(shape.rows * shape.n_in), floats(shape.n_out * shape.n_in));
    let mut out = vec![0.0f32; shape.rows * shape.n_out];
    let threads = rayon::current_num_threads();
    let parallelism =
        if threads == 1 { gemm::Parallelism::None } else { gemm::Parallelism::Rayon(threads) };
    let Shape { rows, n_in, n_out } = shape;
    bencher.counter(shape.operations()).bench_local(|| {
        let a = black_box(&a);
        // SAFETY: the strides are those of contiguous matrices: `a` [rows, in], `out` [rows, out],
        // and `w` [out, in] read as its transpose.
        unsafe {
            gemm::gemm(
                rows,
                n_out,
                n_in,
                out.as_mut_ptr(),
                1,
                n_out as isize,
                false,
                a.as_ptr(),
                1,
                n_in as isize,
                w.as_ptr(),
                n_in as isize,
                1,
                0.0,
                1.0,
                false,
                false,
                false,
                parallelism,
            );
        }
    });
}
