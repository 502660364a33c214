//! Data large enough for several threads: the same bytes for any number of them, equal to the twins.

use ff_kernels::*;

/// Deterministic values with ties, clamped ones and both signs.
fn data(len: usize) -> Vec<f32> {
    let mut state = 0x2545_f491_4f6c_dd1du64;
    (0..len)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            ((state >> 40) as f32 / (1 << 20) as f32 - 8.0) * 1.25
        })
        .collect()
}

fn with_threads<T: Send>(n: usize, f: impl FnOnce() -> T + Send) -> T {
    rayon::ThreadPoolBuilder::new().num_threads(n).build().unwrap().install(f)
}

const SHAPES: [(&str, &[usize], &[usize]); 9] = [
    ("per tensor", &[600, 1000], &[600, 1000]),
    ("rows", &[600, 1000], &[1, 1000]),
    ("columns", &[600, 1000], &[600, 1]),
    ("few columns", &[200_000, 3], &[200_000, 1]),
    ("blocks along the row", &[600, 1024], &[1, 32]),
    ("blocks of all rows", &[600, 1024], &[600, 32]),
    ("blocks down the column", &[640, 1000], &[32, 1]),
    ("convolution inputs", &[256, 128, 3, 3], &[256, 1, 3, 3]),
    ("small tiles", &[512, 512], &[4, 4]),
];

/// Output of more than 8 MiB is written past the caches, in whole lines and what is left at both ends.
#[test]
fn output_past_the_caches_agrees_with_the_twins() {
    let grid = IntegerGrid::signed(4).unwrap();
    let shape = [1056, 2048];
    for tile in [[1056, 2048], [1, 2048], [1056, 1], [1, 32], [1, 64], [1, 128], [33, 16]] {
        let tiling = Tiling::new(&shape, &tile).unwrap();
        let x = data(tiling.len());
        let g = data(tiling.len() + 1)[1..].to_vec();
        let n = tiling.num_tiles();
        let scale: Vec<f32> = (0..n).map(|i| 0.5 + (i % 13) as f32 * 0.125).collect();
        let affine = Affine { scale: &scale, offset: None };
        let fake = fake_quantize_reference(&x, &tiling, affine, grid).unwrap();
        let (grad_x, grads) =
            fake_quantize_backward_reference(&x, &tiling, affine, grid, &g).unwrap();
        let mut sums = None;
        for (threads, start) in [(1, 0), (1, 1), (2, 3)] {
            with_threads(threads, || {
                let mut memory = vec![9.0; start + tiling.len() + 1];
                let out = &mut memory[start..][..tiling.len()];
                fake_quantize(&x, &tiling, affine, grid, out).unwrap();
                assert!(out == fake, "{tile:?} {start}");
                let found = fake_quantize_backward(&x, &tiling, affine, grid, &g, out).unwrap();
                assert!(out == grad_x, "{tile:?} {start}");
                assert!(memory[..start].iter().chain(memory.last()).all(|&around| around == 9.0));
                for (a, b) in found.scale.iter().zip(&grads.scale) {
                    assert!((a - b).abs() <= 1e-6 * b.abs().max(1.0), "{tile:?}: {a} {b}");
                }
                // Where the output lies must not show in the sums.
                assert_eq!(*sums.get_or_insert(found.clone()), found, "{tile:?} {start}");
            });
        }
    }
}

#[test]
fn large_data_agrees_with_the_twins_for_any_number_of_threads() {
    let grid = IntegerGrid::signed(4).unwrap();
    for (name, shape, tile) in SHAPES {
        for transposed in [false, true] {
            let mut strides = vec![1; shape.len()];
            (1..shape.len()).for_each(|d| strides[d] = strides[d - 1] * shape[d - 1]);
            let tiling = if transposed {
                Tiling::strided(shape, &strides, tile).unwrap()
            } else {
                Tiling::new(shape, tile).unwrap()
            };
            let x = data(tiling.len());
            let g = data(tiling.len() + 1)[1..].to_vec();
            let n = tiling.num_tiles();
            let scale: Vec<f32> = (0..n).map(|i| 0.5 + (i % 13) as f32 * 0.125).collect();
            let offset: Vec<f32> = (0..n).map(|i| (i % 7) as f32 - 3.3).collect();
            let affine = Affine { scale: &scale, offset: Some(&offset) };
            let run = || {
                let mut codes = vec![0i8; tiling.len()];
                quantize(&x, &tiling, affine, grid, &mut codes).unwrap();
                let mut fake = vec![0.0; tiling.len()];
                fake_quantize(&x, &tiling, affine, grid, &mut fake).unwrap();
                let mut grad_x = vec![0.0; tiling.len()];
                let grads =
                    fake_quantize_backward(&x, &tiling, affine, grid, &g, &mut grad_x).unwrap();
                (codes, fake, grad_x, grads, min_max(&x, &tiling).unwrap())
            };
            let one = with_threads(1, run);
            for threads in [2, 3, 8] {
                assert!(with_threads(threads, run) == one, "{name}: {threads} threads differ");
            }
            let (codes, fake, grad_x, grads, range) = one;
            let expected = quantize_reference(&x, &tiling, affine, grid).unwrap();
            assert!(codes.iter().zip(&expected).all(|(&a, b)| Some(i32::from(a)) == *b), "{name}");
            assert!(fake == fake_quantize_reference(&x, &tiling, affine, grid).unwrap(), "{name}");
            let (expected_x, expected) =
                fake_quantize_backward_reference(&x, &tiling, affine, grid, &g).unwrap();
            assert!(grad_x == expected_x, "{name}");
            for (a, b) in grads.scale.iter().zip(&expected.scale) {
                assert!((a - b).abs() <= 1e-6 * b.abs().max(1.0), "{name}: {a} {b}");
            }
            assert_eq!(range, min_max_reference(&x, &tiling).unwrap(), "{name}");
        }
    }
}
