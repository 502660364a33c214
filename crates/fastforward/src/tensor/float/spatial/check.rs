//! Gradient checks for tests.

use candle_core::{DType, Device, Tensor, Var};

use crate::tensor::Result;

/// Numbers without pattern, no two of them near each other: the same for the same seed.
pub(in crate::tensor::float) fn noise(shape: &[usize], seed: u64) -> Tensor {
    let n = shape.iter().product::<usize>();
    let golden = 0.618_033_988_749_894_8;
    let values: Vec<f64> =
        (0..n).map(|i| ((i as f64 + 0.37 * seed as f64) * golden).fract() * 2.0 - 1.0).collect();
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
}

/// Compares the gradients of `operator` by each input with central differences in double precision.
#[track_caller]
pub(in crate::tensor::float) fn gradients(
    inputs: &[Tensor],
    operator: impl Fn(&[Tensor]) -> Result<Tensor>,
) {
    let out_shape = operator(inputs).unwrap().dims().to_vec();
    let direction = noise(&out_shape, 77);
    let value = |inputs: &[Tensor]| -> f64 {
        let out = operator(inputs).unwrap();
        (out * &direction).unwrap().sum_all().unwrap().to_scalar().unwrap()
    };
    for (i, input) in inputs.iter().enumerate() {
        // Only one input tracks, and it is a view with other strides than its neighbours.
        let transposed = input.flatten_all().unwrap();
        let var = Var::from_tensor(&transposed).unwrap();
        let mut tracked = inputs.to_vec();
        tracked[i] = strided(&var.as_tensor().reshape(input.dims()).unwrap());
        let out = operator(&tracked).unwrap();
        let grads = (out * &direction).unwrap().sum_all().unwrap().backward().unwrap();
        let grad = grads.get(&var).expect("the input tracks gradients");
        assert_eq!(grad.dtype(), DType::F64);
        let grad = grad.to_vec1::<f64>().unwrap();
        let at = transposed.to_vec1::<f64>().unwrap();
        let step = 1e-5;
        for (k, grad) in grad.iter().enumerate() {
            let moved = |by: f64| {
                let mut at = at.clone();
                at[k] += by;
                let mut inputs = inputs.to_vec();
                inputs[i] = Tensor::from_vec(at, input.dims(), &Device::Cpu).unwrap();
                value(&inputs)
            };
            let difference = (moved(step) - moved(-step)) / (2.0 * step);
            assert!(
                (grad - difference).abs() <= 1e-7 * (1.0 + difference.abs()),
                "input {i}, element {k}: gradient {grad}, difference {difference}"
            );
        }
    }
}

/// The same tensor with its axes the other way round in memory.
fn strided(tensor: &Tensor) -> Tensor {
    let reversed: Vec<usize> = (0..tensor.rank()).rev().collect();
    tensor.permute(reversed.clone()).unwrap().contiguous().unwrap().permute(reversed).unwrap()
}
