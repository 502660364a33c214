//! Products of codes: against their twins, against the simulation, for any number of threads.

use ff_kernels::*;
use proptest::prelude::*;

fn affine<'a>(scale: &'a [f32], offset: &'a Option<Vec<f32>>) -> Affine<'a> {
    Affine { scale, offset: offset.as_deref() }
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| v.to_bits()).collect()
}

fn code() -> impl Strategy<Value = i8> {
    prop_oneof![2 => any::<i8>(), 1 => Just(-128i8), 1 => Just(127i8), 1 => -8i8..8]
}

/// Codes of one kind for a whole operand: all of them, extremes only, or a narrow grid.
fn codes(len: usize) -> impl Strategy<Value = Vec<i8>> {
    let any = prop::collection::vec(code(), len);
    prop_oneof![
        4 => any,
        1 => Just(vec![-128i8; len]),
        1 => Just(vec![127i8; len]),
        1 => prop::collection::vec(-8i8..8, len),
    ]
}

fn size() -> impl Strategy<Value = usize> {
    prop_oneof![6 => 1usize..20, 2 => 20usize..140, 1 => Just(0usize), 1 => Just(1usize)]
}

fn offset() -> impl Strategy<Value = f32> {
    prop_oneof![
        4 => -200f32..200.0,
        2 => Just(128.0f32),
        1 => prop_oneof![Just(0.5f32), Just(1.5), Just(-2.5)],
        1 => -1e6f32..1e6,
        1 => prop_oneof![Just(MAX_OFFSET), Just(-MAX_OFFSET)],
    ]
}

fn scale() -> impl Strategy<Value = f32> {
    prop_oneof![4 => 1e-3f32..2.0, 1 => Just(1.0f32), 1 => Just(1e-12f32), 1 => Just(3e7f32)]
}

/// One set of parameters, or `count`; with offsets or without.
fn parameters(count: usize) -> impl Strategy<Value = (Vec<f32>, Option<Vec<f32>>)> {
    prop_oneof![Just(1), Just(count)].prop_flat_map(|n| {
        (prop::collection::vec(scale(), n), prop::option::of(prop::collection::vec(offset(), n)))
    })
}

#[derive(Debug, Clone)]
struct Linear {
    rows: usize,
    n_in: usize,
    n_out: usize,
    gap: usize,
    by_columns: bool,
    a: Vec<i8>,
    w: Vec<i8>,
    a_params: (Vec<f32>, Option<Vec<f32>>),
    w_params: (Vec<f32>, Option<Vec<f32>>),
    bias: Option<Vec<f32>>,
}

fn linear() -> impl Strategy<Value = Linear> {
    (size(), size(), size(), 0usize..3, any::<bool>()).prop_flat_map(
        |(rows, n_in, n_out, gap, by_columns)| {
            let memory = rows * (n_in + gap) + n_in * (rows + gap);
            let bias = prop::option::of(prop::collection::vec(-9f32..9.0, n_out));
            let params = (parameters(rows), parameters(n_out));
            (codes(memory), codes(n_out * n_in), params, bias).prop_map(
                move |(a, w, (a_params, w_params), bias)| Linear {
                    rows,
                    n_in,
                    n_out,
                    gap,
                    by_columns,
                    a,
                    w,
                    a_params,
                    w_params,
                    bias,
                },
            )
        },
    )
}

impl Linear {
    fn a(&self) -> CodeView<'_, 2> {
        let strides =
            if self.by_columns { [1, self.rows + self.gap] } else { [self.n_in + self.gap, 1] };
        CodeView::strided(&self.a, [self.rows, self.n_in], strides).unwrap()
    }

    fn w(&self) -> CodeView<'_, 2> {
        CodeView::new(&self.w, [self.n_out, self.n_in]).unwrap()
    }

    fn fast(&self) -> Vec<f32> {
        let mut out = vec![f32::NAN; self.rows * self.n_out];
        let (a_affine, w_affine) = (
            affine(&self.a_params.0, &self.a_params.1),
            affine(&self.w_params.0, &self.w_params.1),
        );
        let weight = PackedWeight::new(self.w());
        integer_linear(self.a(), a_affine, &weight, w_affine, self.bias.as_deref(), &mut out)
            .unwrap();
        out
    }

    fn reference(&self) -> Vec<f32> {
        let mut out = vec![f32::NAN; self.rows * self.n_out];
        let (a_affine, w_affine) = (
            affine(&self.a_params.0, &self.a_params.1),
            affine(&self.w_params.0, &self.w_params.1),
        );
        let bias = self.bias.as_deref();
        integer_linear_reference(self.a(), a_affine, self.w(), w_affine, bias, &mut out).unwrap();
        out
    }

    /// Dequantized operands, as the quantizers compute them.
    fn dequantized(&self) -> (Vec<f32>, Vec<f32>) {
        let value = |q: i8, (scale, offset): &(Vec<f32>, Option<Vec<f32>>), i: usize| {
            let i = if scale.len() == 1 { 0 } else { i };
            let offset = offset.as_ref().map_or(0.0, |o| o[i].round_ties_even());
            (f32::from(q) + offset) * scale[i]
        };
        let (a, w) = (self.a(), self.w());
        let a = (0..self.rows * self.n_in).map(|at| {
            let (i, k) = (at / self.n_in, at % self.n_in);
            value(a.get([i, k]), &self.a_params, i)
        });
        let w = (0..self.n_out * self.n_in).map(|at| {
            let (j, k) = (at / self.n_in, at % self.n_in);
            value(w.get([j, k]), &self.w_params, j)
        });
        (a.collect(), w.collect())
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn linear_equals_its_twin(case in linear()) {
        prop_assert_eq!(bits(&case.fast()), bits(&case.reference()));
    }

    /// Codes made on the way are those of the floats, whatever happens at the edges of the grid.
    #[test]
    fn linear_makes_the_codes_of_its_results(
        case in linear(), scale in scale(), offset in offset(), infinite in any::<bool>()
    ) {
        let mut case = case;
        if let (Some(bias), true) = (&mut case.bias, infinite) {
            bias.iter_mut().take(1).for_each(|bias| *bias = f32::INFINITY);
        }
        let to = Affine { scale: &[scale], offset: Some(&[offset]) };
        let grid = IntegerGrid::signed(7).unwrap();
        let (a_affine, w_affine) = (
            affine(&case.a_params.0, &case.a_params.1),
            affine(&case.w_params.0, &case.w_params.1),
        );
        let weight = PackedWeight::new(case.w());
        let mut codes = vec![0; case.rows * case.n_out];
        let uniform = Uniform::new(to, grid).unwrap();
        let bias = case.bias.as_deref();
        let nan = integer_linear_codes(
            case.a(), a_affine, &weight, w_affine, bias, &uniform, &mut codes,
        )
        .unwrap();
        let tiling = Tiling::whole(&[codes.len()]).unwrap();
        let expected = quantize_reference(&case.reference(), &tiling, to, grid).unwrap();
        prop_assert_eq!(nan, expected.iter().any(Option::is_none));
        for (code, expected) in codes.iter().zip(expected) {
            prop_assert!(expected.is_none_or(|expected| expected == i32::from(*code)));
        }
    }

    #[test]
    fn linear_is_within_the_bound_of_the_simulation(case in linear()) {
        let (a, w) = case.dequantized();
        let fast = case.fast();
        for i in 0..case.rows {
            for j in 0..case.n_out {
                let (a, w) = (&a[i * case.n_in..][..case.n_in], &w[j * case.n_in..][..case.n_in]);
                let bias = case.bias.as_ref().map_or(0.0, |b| b[j]);
                let terms = || a.iter().zip(w);
                let magnitude: f64 =
                    terms().map(|(&a, &w)| (f64::from(a) * f64::from(w)).abs()).sum();
                let bound = simulation_bound(case.n_in, magnitude + f64::from(bias).abs());
                let forward = terms().fold(0.0f32, |sum, (a, w)| sum + a * w) + bias;
                let backward = terms().rev().fold(bias, |sum, (a, w)| sum + a * w);
                let fused = terms().fold(0.0f32, |sum, (a, w)| a.mul_add(*w, sum)) + bias;
                for simulated in [forward, backward, fused] {
                    let difference = (f64::from(fast[i * case.n_out + j]) - f64::from(simulated)).abs();
                    prop_assert!(difference <= bound, "{difference} > {bound} at {i}, {j}");
                }
            }
        }
    }
}

#[derive(Debug, Clone)]
struct Matmul {
    shape: [usize; 4], // [batch, m, k, n]
    transposed: bool,
    shared: bool,
    left: Vec<i8>,
    right: Vec<i8>,
    params: [(f32, f32); 2],
}

fn matmul() -> impl Strategy<Value = Matmul> {
    let sizes = (0usize..4, size(), size(), size());
    (sizes, any::<bool>(), any::<bool>()).prop_flat_map(|((batch, m, k, n), transposed, shared)| {
        let params = ((scale(), offset()), (scale(), offset()));
        (codes(batch * m * k), codes(batch.max(1) * k * n), params).prop_map(
            move |(left, right, (p, q))| Matmul {
                shape: [batch, m, k, n],
                transposed,
                shared,
                left,
                right,
                params: [p, q],
            },
        )
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn matmul_equals_its_twin(case in matmul()) {
        let [batch, m, k, n] = case.shape;
        let left = CodeView::new(&case.left, [batch, m, k]).unwrap();
        let matrix = if case.shared { 0 } else { k * n };
        let strides = if case.transposed { [matrix, 1, k] } else { [matrix, n, 1] };
        let right = CodeView::strided(&case.right, [batch, k, n], strides).unwrap();
        let [(s_l, o_l), (s_r, o_r)] = case.params;
        let left_affine = Affine { scale: &[s_l], offset: Some(&[o_l]) };
        let right_affine = Affine { scale: &[s_r], offset: Some(&[o_r]) };
        let mut fast = vec![f32::NAN; batch * m * n];
        let mut plain = fast.clone();
        integer_matmul(left, left_affine, right, right_affine, &mut fast).unwrap();
        integer_matmul_reference(left, left_affine, right, right_affine, &mut plain).unwrap();
        prop_assert_eq!(bits(&fast), bits(&plain));

        let (to, grid) = (left_affine, IntegerGrid::signed(8).unwrap());
        let mut codes = vec![0; batch * m * n];
        let uniform = Uniform::new(to, grid).unwrap();
        let nan =
            integer_matmul_codes(left, left_affine, right, right_affine, &uniform, &mut codes);
        prop_assert!(!nan.unwrap());
        let tiling = Tiling::whole(&[codes.len()]).unwrap();
        let expected = quantize_reference(&plain, &tiling, to, grid).unwrap();
        prop_assert_eq!(codes.into_iter().map(|q| Some(i32::from(q))).collect::<Vec<_>>(), expected);
    }
}

#[derive(Debug, Clone)]
struct Conv {
    batch: usize,
    groups: usize,
    depth: usize,
    n_out: usize,
    size: [usize; 2],
    kernel: [usize; 2],
    window: ConvWindow,
    channels_last: bool,
    x: Vec<i8>,
    w: Vec<i8>,
    x_params: (f32, f32),
    w_params: (Vec<f32>, Option<Vec<f32>>),
    bias: Option<Vec<f32>>,
}

fn conv() -> impl Strategy<Value = Conv> {
    let counts = (0usize..3, 1usize..4, 0usize..9, 0usize..10);
    let pair = |range: std::ops::Range<usize>| [range.clone(), range];
    let sizes = (prop_oneof![8 => pair(1..14), 1 => Just([1, 90]), 1 => pair(0..3)], pair(1..5));
    let padding = [pair(0..4), pair(0..4)];
    let padding = prop_oneof![2 => padding, 1 => Just([[0; 2]; 2]), 1 => Just([[1; 2]; 2])];
    let window = (pair(1..4), padding, prop_oneof![2 => Just([1; 2]), 1 => pair(1..4)]);
    let window = prop_oneof![
        3 => window,
        1 => Just(([1; 2], [[0; 2]; 2], [1; 2])),
    ];
    (counts, sizes, window, any::<bool>()).prop_flat_map(
        |((batch, groups, depth, per_group), (size, kernel), (stride, padding, dilation), last)| {
            let n_out = groups * per_group;
            let x = codes(batch * groups * depth * size[0] * size[1]);
            let w = codes(n_out * depth * kernel[0] * kernel[1]);
            let bias = prop::option::of(prop::collection::vec(-9f32..9.0, n_out));
            (x, w, (scale(), offset()), parameters(n_out), bias).prop_map(
                move |(x, w, x_params, w_params, bias)| Conv {
                    batch,
                    groups,
                    depth,
                    n_out,
                    size,
                    kernel,
                    window: ConvWindow { stride, padding, dilation },
                    channels_last: last,
                    x,
                    w,
                    x_params,
                    w_params,
                    bias,
                },
            )
        },
    )
}

impl Conv {
    /// The fast and the plain result, or the error of both.
    fn run(&self) -> (Result<Vec<u32>, KernelError>, Result<Vec<u32>, KernelError>) {
        let channels = self.groups * self.depth;
        let [height, width] = self.size;
        let strides = if self.channels_last {
            [height * width * channels, 1, width * channels, channels]
        } else {
            [height * width * channels, height * width, width, 1]
        };
        let x = CodeView::strided(&self.x, [self.batch, channels, height, width], strides).unwrap();
        let filter = [self.n_out, self.depth, self.kernel[0], self.kernel[1]];
        let filter = CodeView::new(&self.w, filter).unwrap();
        let packed = PackedFilter::new(filter, self.groups).unwrap();
        let x_affine = Affine { scale: &[self.x_params.0], offset: Some(&[self.x_params.1]) };
        let w_affine = affine(&self.w_params.0, &self.w_params.1);
        let size = self.window.output_size(self.size, self.kernel).unwrap_or([0; 2]);
        let mut fast = vec![f32::NAN; self.batch * self.n_out * size[0] * size[1]];
        let mut plain = fast.clone();
        let (window, bias) = (self.window, self.bias.as_deref());
        let fast_result = integer_conv(x, x_affine, &packed, w_affine, window, bias, &mut fast);
        let plain_result =
            integer_conv_reference(x, x_affine, filter, w_affine, window, bias, &mut plain);
        (fast_result.map(|()| bits(&fast)), plain_result.map(|()| bits(&plain)))
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 600, ..ProptestConfig::default() })]

    #[test]
    fn conv_equals_its_twin(case in conv()) {
        // Without channels the twin cannot tell groups.
        prop_assume!(case.depth > 0 || case.groups == 1);
        let (fast, plain) = case.run();
        prop_assert_eq!(fast, plain);
    }
}

/// Codes without a pattern that the test could share with the code.
fn noise(len: usize, mut seed: u64) -> Vec<i8> {
    let mut next = || {
        seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (seed >> 56) as u8 as i8
    };
    (0..len).map(|_| next()).collect()
}

fn with_threads<T: Send>(threads: usize, f: impl FnOnce() -> T + Send) -> T {
    rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap().install(f)
}

/// Sizes that are cut into several chunks and panels.
#[test]
fn large_products_equal_their_twins() {
    let (rows, n_in, n_out) = (150, 37, 1100);
    let (a, w) = (noise(rows * n_in, 3), noise(n_out * n_in, 4));
    let (a, w) =
        (CodeView::new(&a, [rows, n_in]).unwrap(), CodeView::new(&w, [n_out, n_in]).unwrap());
    let affine = Affine { scale: &[0.1], offset: Some(&[40.0]) };
    let mut fast = vec![0.0; rows * n_out];
    let mut plain = fast.clone();
    integer_linear(a, affine, &PackedWeight::new(w), affine, None, &mut fast).unwrap();
    integer_linear_reference(a, affine, w, affine, None, &mut plain).unwrap();
    assert_eq!(bits(&fast), bits(&plain));

    let (x, w) = (noise(32 * 30 * 31, 5), noise(8 * 32 * 9, 6));
    let x = CodeView::new(&x, [1, 32, 30, 31]).unwrap();
    let w = CodeView::new(&w, [8, 32, 3, 3]).unwrap();
    let window = ConvWindow { padding: [[1; 2]; 2], ..Default::default() };
    let far = Affine { scale: &[0.1], offset: Some(&[300.0]) };
    for x_affine in [affine, far] {
        let mut fast = vec![0.0; 8 * 30 * 31];
        let mut plain = fast.clone();
        let filter = PackedFilter::new(w, 1).unwrap();
        integer_conv(x, x_affine, &filter, affine, window, None, &mut fast).unwrap();
        integer_conv_reference(x, x_affine, w, affine, window, None, &mut plain).unwrap();
        assert_eq!(bits(&fast), bits(&plain));
    }
}

#[test]
fn threads_change_no_byte() {
    let (rows, n_in, n_out) = (300, 1100, 1300); // several chunks, panels, and blocks inside
    let (a, w) = (noise(rows * n_in, 1), noise(n_out * n_in, 2));
    let scale: Vec<f32> = (0..n_out).map(|j| 0.01 + j as f32 * 1e-5).collect();
    let offset: Vec<f32> = (0..n_out).map(|j| (j % 5) as f32).collect();
    let run = || {
        let weight = PackedWeight::new(CodeView::new(&w, [n_out, n_in]).unwrap());
        let rows_of_a = CodeView::new(&a, [rows, n_in]).unwrap();
        let a_affine = Affine { scale: &[0.02], offset: Some(&[3.0]) };
        let w_affine = Affine { scale: &scale, offset: Some(&offset) };
        let mut out = vec![0.0; rows * n_out];
        integer_linear(rows_of_a, a_affine, &weight, w_affine, None, &mut out).unwrap();
        let b = CodeView::strided(&w, [2, n_in, 300], [300 * n_in, 1, n_in]).unwrap();
        let a = CodeView::new(&a, [2, 150, n_in]).unwrap();
        let mut product = vec![0.0; 2 * 150 * 300];
        integer_matmul(a, a_affine, b, a_affine, &mut product).unwrap();
        let to = Affine { scale: &[0.7], offset: Some(&[2.0]) };
        let to = Uniform::new(to, IntegerGrid::signed(8).unwrap()).unwrap();
        let mut codes = [vec![0; out.len()], vec![0; product.len()]];
        integer_linear_codes(rows_of_a, a_affine, &weight, w_affine, None, &to, &mut codes[0])
            .unwrap();
        integer_matmul_codes(a, a_affine, b, a_affine, &to, &mut codes[1]).unwrap();
        let filter = CodeView::new(&w[..16 * 64 * 9], [16, 64, 3, 3]).unwrap();
        let filter = PackedFilter::new(filter, 1).unwrap();
        let depthwise = CodeView::new(&w[..64 * 9], [64, 1, 3, 3]).unwrap();
        let depthwise = PackedFilter::new(depthwise, 64).unwrap();
        let x = CodeView::new(&w[..2 * 64 * 40 * 40], [2, 64, 40, 40]).unwrap();
        let window = ConvWindow { padding: [[1; 2]; 2], ..Default::default() };
        let far = Affine { scale: &[0.1], offset: Some(&[300.0]) };
        let mut conv = vec![0.0; 2 * (16 + 64) * 40 * 40];
        let (full, deep) = conv.split_at_mut(2 * 16 * 40 * 40);
        integer_conv(x, far, &filter, a_affine, window, None, full).unwrap();
        integer_conv(x, far, &depthwise, a_affine, window, None, deep).unwrap();
        (bits(&out), bits(&product), bits(&conv), codes)
    };
    let one = with_threads(1, run);
    assert_eq!(one, with_threads(2, run));
    assert_eq!(one, with_threads(5, run));
}

/// More terms than 32 bits hold, at the extremes of codes, exactly.
#[test]
fn long_sums_go_on_in_64_bits() {
    let n_in = 3 * 65536 + 17;
    for (qa, qw) in [(-128, -128), (127, -128), (-128, 127), (127, 127)] {
        let (a, w) = (vec![qa; 2 * n_in], vec![qw; 3 * n_in]);
        let weight = PackedWeight::new(CodeView::new(&w, [3, n_in]).unwrap());
        let a = CodeView::new(&a, [2, n_in]).unwrap();
        let (a_affine, w_affine) = (
            Affine { scale: &[1.0], offset: Some(&[-127.0]) },
            Affine { scale: &[1.0], offset: Some(&[-5.0]) },
        );
        let mut out = [0.0; 6];
        integer_linear(a, a_affine, &weight, w_affine, None, &mut out).unwrap();
        let exact = n_in as i64 * (i64::from(qa) - 127) * (i64::from(qw) - 5);
        assert_eq!(out, [exact as f32; 6], "{qa} {qw}");
    }
}

#[test]
fn long_sums_of_convolutions_go_on_in_64_bits() {
    let depth = 2 * 65536 + 5;
    let (x, w) = (vec![-128; depth * 2], vec![-128; depth * 5]);
    let x = CodeView::new(&x, [1, depth, 1, 2]).unwrap();
    let filter = CodeView::new(&w, [5, depth, 1, 1]).unwrap();
    let filter = PackedFilter::new(filter, 1).unwrap();
    let affine = Affine { scale: &[1.0], offset: Some(&[-9.0]) };
    let window = ConvWindow { padding: [[0, 0], [1, 0]], ..Default::default() };
    let mut out = [7.0; 15];
    integer_conv(x, affine, &filter, affine, window, None, &mut out).unwrap();
    let exact = (depth * 137 * 137) as f32;
    assert_eq!(out, [0.0, exact, exact].repeat(5)[..]);
}

/// The largest sums that are finished in 32 bits, and the smallest that are not.
#[test]
fn sums_at_the_edge_of_32_bits_are_exact() {
    for n_in in [65535, 65536, 65537, 131071, 131072] {
        for (qa, qw) in [(-128, -128), (-128, 127)] {
            let (a, w) = (vec![qa; n_in], vec![qw; n_in]);
            let weight = PackedWeight::new(CodeView::new(&w, [1, n_in]).unwrap());
            let one = Affine { scale: &[1.0], offset: None };
            let (a, mut out) = (CodeView::new(&a, [1, n_in]).unwrap(), [0.0]);
            integer_linear(a, one, &weight, one, None, &mut out).unwrap();
            let exact = n_in as i64 * i64::from(qa) * i64::from(qw);
            assert_eq!(out, [exact as f32], "{n_in} {qa} {qw}");
        }
    }
}

#[track_caller]
fn check_refused(result: Result<(), KernelError>, message: &str) {
    assert_eq!(result.unwrap_err().to_string(), message);
}

#[test]
fn what_does_not_fit_is_named() {
    let weight = PackedWeight::new(CodeView::new(&[1; 6], [2, 3]).unwrap());
    let one = Affine { scale: &[1.0], offset: None };
    let linear = |columns, a_affine, w_affine, bias: Option<&[f32]>, len| {
        let codes = vec![1; 4 * columns];
        let a = CodeView::new(&codes, [4, columns]).unwrap();
        let mut out = vec![7.0; len];
        let result = integer_linear(a, a_affine, &weight, w_affine, bias, &mut out);
        assert!(result.is_ok() || out.iter().all(|&v| v == 7.0), "written before it was checked");
        result
    };
    linear(3, one, one, None, 8).unwrap();
    check_refused(
        linear(2, one, one, None, 8),
        "row of activation codes has 2 elements, expected 3",
    );
    check_refused(linear(3, one, one, None, 9), "output has 9 elements, expected 8");
    check_refused(linear(3, one, one, Some(&[1.0]), 8), "bias has 1 elements, expected 2");
    let two = Affine { scale: &[1.0, 2.0], offset: None };
    check_refused(linear(3, two, one, None, 8), "activation scale has 2 elements, expected 4");
    linear(3, one, two, None, 8).unwrap();
    let zero = Affine { scale: &[1.0, 0.0], offset: None };
    check_refused(
        linear(3, one, zero, None, 8),
        "weight scale must be positive and finite: tile 1 has 0",
    );
    let huge = Affine { scale: &[1e20, 1e30], offset: None };
    let big = Affine { scale: &[1e15], offset: None };
    check_refused(
        linear(3, big, huge, None, 8),
        "product of scales must be finite: tile 1 has inf",
    );
    let lone = Affine { scale: &[1.0, 2.0], offset: Some(&[1.0]) };
    check_refused(linear(3, one, lone, None, 8), "weight offset has 1 elements, expected 2");
    for offset in [&[16777090.0], &[f32::NAN], &[f32::NEG_INFINITY]] {
        let far = Affine { scale: &[1.0], offset: Some(offset) };
        check_refused(
            linear(3, far, one, None, 8),
            &format!(
                "activation offset must be at most 16777088 in magnitude: tile 0 has {}",
                offset[0]
            ),
        );
    }
    let (long, mut out) = (vec![1; 40000], [0.0]);
    let far = Affine { scale: &[1.0], offset: Some(&[MAX_OFFSET]) };
    let weight = PackedWeight::new(CodeView::new(&long, [1, 40000]).unwrap());
    let a = CodeView::new(&long, [1, 40000]).unwrap();
    check_refused(
        integer_linear(a, far, &weight, far, None, &mut out),
        "sum of 40000 products of up to 16777215 by 16777089 may not fit 64-bit integers, needs \
         fewer terms or smaller offsets",
    );
    let x = CodeView::new(&[1; 8], [1, 2, 2, 2]).unwrap();
    let filter = CodeView::new(&[1; 18], [1, 2, 3, 3]).unwrap();
    let filter = PackedFilter::new(filter, 1).unwrap();
    let conv = |window, len| integer_conv(x, one, &filter, one, window, None, &mut vec![0.0; len]);
    let padded = ConvWindow { padding: [[1, 1], [1, 0]], ..ConvWindow::default() };
    conv(padded, 2).unwrap();
    check_refused(conv(padded, 3), "output has 3 elements, expected 2");
    check_refused(
        conv(ConvWindow { padding: [[1, 1], [0, 0]], ..ConvWindow::default() }, 2),
        "window of 3 along the width does not fit the padded input of 2",
    );
    check_refused(
        conv(ConvWindow { stride: [1, 0], ..padded }, 2),
        "stride is 0, must be at least 1",
    );
    let groups = |groups| {
        PackedFilter::new(CodeView::new(&[1; 6], [6, 1, 1, 1]).unwrap(), groups).map(|_| ())
    };
    groups(3).unwrap();
    check_refused(groups(4), "6 output channels cannot be dealt out to 4 groups");
    check_refused(groups(0), "number of groups is 0, must be at least 1");
    let (x, y) = (CodeView::new(&[1; 6], [1, 2, 3]), CodeView::new(&[1; 6], [1, 2, 3]));
    check_refused(
        integer_matmul(x.unwrap(), one, y.unwrap(), one, &mut [0.0; 6]),
        "column of the right codes has 2 elements, expected 3",
    );
}
