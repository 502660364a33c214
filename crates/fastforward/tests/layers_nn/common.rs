//! What the tests share.

use candle_core::{DType, Device, Tensor};
use candle_nn::{VarBuilder, VarMap};
use fastforward::nn::Layer;
use fastforward::tensor::Result;

pub(crate) const CPU: &Device = &Device::Cpu;

/// Makes layers whose parameters are variables of one map.
pub(crate) struct Weights(pub(crate) VarMap);

impl Weights {
    pub(crate) fn new() -> Self {
        Self(VarMap::new())
    }

    pub(crate) fn vb(&self) -> VarBuilder<'_> {
        VarBuilder::from_varmap(&self.0, DType::F32, CPU)
    }
}

/// Numbers between -2 and 2 without pattern, the same on every run.
pub(crate) fn noise(shape: &[usize]) -> Tensor {
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let values: Vec<f32> = (0..shape.iter().product::<usize>())
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 40) as f32 / (1 << 24) as f32 * 4.0 - 2.0
        })
        .collect();
    Tensor::from_vec(values, shape, CPU).unwrap()
}

/// What a layer computes in float, with strict mode off.
pub(crate) fn float(layer: &dyn Layer, x: &Tensor) -> Result<Tensor> {
    let _lenient = fastforward::flags::strict_quantization(false);
    layer.forward_tensor(x)?.dequantize()
}

/// The numbers in row-major order.
pub(crate) fn numbers(tensor: &Tensor) -> Vec<f64> {
    tensor.flatten_all().unwrap().to_dtype(DType::F64).unwrap().to_vec1().unwrap()
}

/// Same shape, and numbers no further apart than `tolerance`.
#[track_caller]
pub(crate) fn check_close(found: &Tensor, expected: &Tensor, tolerance: f64) {
    assert_eq!(found.dims(), expected.dims());
    check_numbers(found, &numbers(expected), tolerance);
}

/// Numbers no further apart than `tolerance`.
#[track_caller]
pub(crate) fn check_numbers(found: &Tensor, expected: &[f64], tolerance: f64) {
    let found = numbers(found);
    assert_eq!(found.len(), expected.len());
    let apart =
        found.iter().zip(expected).position(|(a, b)| (a - b).abs() > tolerance || a.is_nan());
    assert!(
        apart.is_none(),
        "at {apart:?} more than {tolerance} apart:\nfound    {found:?}\nexpected {expected:?}"
    );
}
