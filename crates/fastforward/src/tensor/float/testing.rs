//! What the tests of operators share: numbers, twins, gradients by finite differences.

use candle_core::{DType, Device, Tensor, Var};

use crate::tensor::Result;

/// Numbers in about -2..2 that repeat for nobody: the same for each run.
pub(super) fn numbers(dims: &[usize], seed: u64) -> Tensor {
    let n = dims.iter().product::<usize>();
    let value = |i: usize| {
        let mut z = (i as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(seed << 32);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64 * 4.0 - 2.0
    };
    Tensor::from_vec((0..n).map(value).collect::<Vec<f64>>(), dims, &Device::Cpu).unwrap()
}

/// The elements in row-major order.
pub(super) fn values(x: &Tensor) -> Vec<f64> {
    x.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

/// The bits of an `f32` tensor.
pub(super) fn bits(x: &Tensor) -> Vec<u32> {
    x.flatten_all().unwrap().to_vec1::<f32>().unwrap().iter().map(|v| v.to_bits()).collect()
}

/// A view with these elements that is not contiguous: the first and last axis are exchanged in memory.
pub(super) fn strided(x: &Tensor) -> Tensor {
    if x.rank() < 2 {
        // Every other element of a longer tensor.
        let n = x.elem_count();
        let wide = Tensor::stack(&[x.flatten_all().unwrap(), x.flatten_all().unwrap()], 1).unwrap();
        let view = wide.narrow(1, 1, 1).unwrap();
        return if x.rank() == 0 {
            view.reshape(()).unwrap()
        } else {
            view.reshape(n).unwrap_or(view)
        };
    }
    x.transpose(0, x.rank() - 1).unwrap().contiguous().unwrap().transpose(0, x.rank() - 1).unwrap()
}

#[track_caller]
pub(super) fn assert_close(found: &Tensor, expected: &[f64], tolerance: f64) {
    let found = values(found);
    assert_eq!(found.len(), expected.len());
    for (i, (a, b)) in found.iter().zip(expected).enumerate() {
        let near = (a - b).abs() <= tolerance * (1.0 + b.abs());
        assert!(near || (a.is_nan() && b.is_nan()) || a == b, "at {i}: {a}, expected {b}");
    }
}

/// Compares the gradient of each operand with central differences, in `f64`, for dense and for strided operands, and
/// for each operand alone: the others are constants and get no gradient.
#[track_caller]
pub(super) fn check_gradients(inputs: &[Tensor], f: impl Fn(&[Tensor]) -> Result<Tensor>) {
    let weights = {
        let y = f(inputs).unwrap();
        numbers(y.dims(), 99)
    };
    let loss = |inputs: &[Tensor]| {
        let y = f(inputs).unwrap();
        let y: Vec<f64> = values(&y);
        y.iter().zip(values(&weights)).map(|(y, w)| y * w).sum::<f64>()
    };
    for (k, input) in inputs.iter().enumerate() {
        let exact = values(input);
        let numeric: Vec<f64> = (0..exact.len())
            .map(|i| {
                let h = 1e-5;
                let moved = |by: f64| {
                    let mut values = exact.clone();
                    values[i] += by;
                    let mut inputs = inputs.to_vec();
                    inputs[k] = Tensor::from_vec(values, input.dims(), &Device::Cpu).unwrap();
                    loss(&inputs)
                };
                (moved(h) - moved(-h)) / (2.0 * h)
            })
            .collect();
        for dense in [true, false] {
            for all_track in [true, false] {
                let view = |x: &Tensor| if dense { x.clone() } else { strided(x) };
                // The leaf holds the elements in memory order; the operand is a view of it.
                let variables: Vec<Var> =
                    inputs.iter().map(|x| Var::from_tensor(x).unwrap()).collect();
                let operands: Vec<Tensor> = variables
                    .iter()
                    .enumerate()
                    .map(|(i, v)| {
                        let x = view(v.as_tensor());
                        if all_track || i == k { x } else { x.detach() }
                    })
                    .collect();
                let y = f(&operands).unwrap();
                let grads = (y * &weights).unwrap().sum_all().unwrap().backward().unwrap();
                let found = grads.get(&variables[k]).expect("the operand gets a gradient");
                assert_close(found, &numeric, 1e-7);
                if !all_track {
                    for (i, variable) in variables.iter().enumerate() {
                        assert_eq!(grads.get(variable).is_some(), i == k);
                    }
                }
            }
        }
    }
}

/// Runs `f` with one thread and with several, and expects the same bytes.
#[track_caller]
pub(super) fn check_threads(f: impl Fn() -> Vec<u32> + Send + Sync) {
    let run =
        |n: usize| rayon::ThreadPoolBuilder::new().num_threads(n).build().unwrap().install(&f);
    let one = run(1);
    for n in [2, 5] {
        assert!(run(n) == one, "{n} threads give other bytes than one");
    }
}
