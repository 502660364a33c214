//! Changes of shape: codes, floats and scales agree after each.

use candle_core::{DType, Tensor, Var};
use fastforward::ErrorKind;
use fastforward::flags;
use fastforward::quantization::Granularity;
use fastforward::tensor::{QuantizedTensor, Result};

use super::{quantized, tensor, values};

/// What a change of shape makes of a quantized tensor, started from codes and from floats with history, is what it makes of
/// its floats.
fn check(
    shape: &[usize],
    granularity: &Granularity,
    change: impl Fn(&QuantizedTensor) -> Result<QuantizedTensor>,
    same: impl Fn(&Tensor) -> candle_core::Result<Tensor>,
) {
    let x = tensor(shape, 7);
    let from_codes = quantized(&x, 8, granularity.clone()).unwrap();
    let expected = same(&from_codes.dequantize().unwrap()).unwrap();
    let changed = change(&from_codes).unwrap();
    assert_eq!(changed.dims(), expected.dims());
    assert_eq!(values(&changed.dequantize().unwrap()), values(&expected), "codes, {granularity}");

    let var = Var::from_tensor(&x).unwrap();
    let tracked = quantized(var.as_tensor(), 8, granularity.clone()).unwrap();
    let changed = change(&tracked).unwrap();
    let floats = changed.dequantize().unwrap();
    assert_eq!(values(&floats), values(&expected), "floats, {granularity}");
    let from_floats = change(&tracked).unwrap().codes().unwrap().to_i32();
    assert_eq!(from_floats, change(&from_codes).unwrap().codes().unwrap().to_i32());
    let gradients = floats.sum_all().unwrap().backward().unwrap();
    assert!(gradients.get(&var).is_some(), "the gradient is cut, {granularity}");
}

#[test]
fn scales_follow_every_change_of_shape() {
    let all = [
        Granularity::PerTensor,
        Granularity::per_channel(0),
        Granularity::per_channel(1),
        Granularity::per_channel(-1),
        Granularity::PerChannel { axes: vec![0, 2] },
        Granularity::per_block(&[2], &[3], &[0, 1]),
        Granularity::per_tile(&[2, 1, 2]),
    ];
    let shape = [4, 3, 6];
    for granularity in &all {
        check(&shape, granularity, |q| q.transpose(0, -1), |x| x.transpose(0, 2));
        check(&shape, granularity, |q| q.permute(&[1, 2, 0]), |x| x.permute((1, 2, 0)));
        check(&shape, granularity, |q| q.unsqueeze(1)?.squeeze(1), |x| Ok(x.clone()));
        check(&shape, granularity, |q| q.select(1, 2), |x| x.get_on_dim(1, 2));
        check(&shape, granularity, |q| q.transpose(1, 2)?.contiguous(), |x| x.transpose(1, 2));
        check(&shape, granularity, |q| q.narrow(0, 2, 2), |x| x.narrow(0, 2, 2));
        check(
            &shape,
            granularity,
            |q| q.narrow(1, 1, 1)?.expand(&[2, 4, 5, 6]),
            |x| x.narrow(1, 1, 1)?.broadcast_as((2, 4, 5, 6)),
        );
    }
    for granularity in &all[..4] {
        check(
            &shape,
            granularity,
            |q| q.slice(1, 0..3, 2),
            |x| x.index_select(&Tensor::new(&[0u32, 2], x.device())?, 1),
        );
        check(&shape, granularity, |q| q.reshape(&[4, 3, 2, 3]), |x| x.reshape((4, 3, 2, 3)));
    }
    check(&shape, &all[1], |q| q.flatten(1, -1), |x| x.flatten(1, 2));
}

#[test]
fn what_leaves_the_grid_is_refused() {
    let x = tensor(&[4, 6], 1);
    let columns = quantized(&x, 8, Granularity::per_channel(1)).unwrap();
    let error = columns.reshape(&[24]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Operator);
    assert!(error.to_string().contains("PerChannel(channel=1) of data of shape [4, 6]"), "{error}");
    assert!(columns.reshape(&[5, 5]).is_err());
    let blocks = quantized(&x, 8, Granularity::per_block(&[1], &[3], &[])).unwrap();
    assert!(blocks.slice(1, 2..5, 1).is_err());
    assert!(blocks.slice(1, 0..6, 2).is_err());
    let other = quantized(&x, 8, Granularity::PerTensor).unwrap();
    assert!(QuantizedTensor::cat(&[&columns, &other], 0).is_err());
    assert!(columns.transpose(0, 2).is_err() && columns.permute(&[0, 0]).is_err());
    assert!(columns.mul_scalar(0.0).is_err());
}

#[test]
fn a_factor_moves_into_the_scales() {
    let x = tensor(&[4, 6], 3);
    for granularity in [Granularity::PerTensor, Granularity::per_channel(0)] {
        let q = quantized(&x, 8, granularity).unwrap();
        for factor in [2.5, -0.75] {
            let scaled = q.mul_scalar(factor).unwrap();
            let expected = values(&q.dequantize().unwrap());
            for (found, expected) in values(&scaled.dequantize().unwrap()).iter().zip(expected) {
                let expected = expected * factor as f32;
                assert!((found - expected).abs() <= 1e-6 * expected.abs(), "{found} {expected}");
            }
        }
    }
}

#[test]
fn every_float_type_keeps_its_type() {
    for dtype in [DType::F32, DType::F16, DType::BF16] {
        let x = tensor(&[3, 4], 2).to_dtype(dtype).unwrap();
        let q = quantized(&x, 4, Granularity::per_channel(0)).unwrap();
        assert_eq!(q.dequantize().unwrap().dtype(), dtype);
        let var = Var::from_tensor(&x).unwrap();
        let tracked = quantized(var.as_tensor(), 4, Granularity::per_channel(0)).unwrap();
        assert_eq!(tracked.codes().unwrap().to_i32(), q.codes().unwrap().to_i32());
        assert_eq!(
            values(&tracked.dequantize().unwrap().to_dtype(DType::F32).unwrap()),
            values(&q.dequantize().unwrap().to_dtype(DType::F32).unwrap())
        );
    }
    let wide = tensor(&[2], 2).to_dtype(DType::F64).unwrap();
    let error = quantized(&wide, 4, Granularity::PerTensor).unwrap_err();
    assert!(error.to_string().contains("F64"), "{error}");
}

#[test]
fn codes_and_simulation_are_the_same_numbers() {
    let x = tensor(&[5, 7], 11);
    let integers = quantized(&x, 8, Granularity::per_channel(1)).unwrap();
    let _simulated = flags::integer_execution_mode(false);
    let floats = quantized(&x, 8, Granularity::per_channel(1)).unwrap();
    assert_eq!(values(&integers.dequantize().unwrap()), values(&floats.dequantize().unwrap()));
}

#[test]
fn printing_shows_values_and_context() {
    let q = quantized(&tensor(&[2], 1), 8, Granularity::PerTensor).unwrap();
    let text = q.to_string();
    assert!(
        text.ends_with(
            "QuantizedTensor([2], num_bits=8, granularity=PerTensor(), scale=0.01, offset=-1, F32)"
        ),
        "{text}"
    );
}
