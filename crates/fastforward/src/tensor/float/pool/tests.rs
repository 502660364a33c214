use candle_core::{DType, Device, Var};
use proptest::prelude::*;

use super::super::testing::{check_gradients, numbers};
use super::*;

/// Sines of multiples of the element number.
fn wave(shape: &[usize]) -> Tensor {
    let n = shape.iter().product::<usize>();
    let values: Vec<f32> = (0..n).map(|i| (i as f32 * 0.37).sin()).collect();
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
}

#[track_caller]
fn close(found: &Tensor, shape: &[usize], at: std::ops::Range<usize>, expected: &[f32]) {
    assert_eq!(found.dims(), shape);
    let found = found.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    for (found, expected) in found[at].iter().zip(expected) {
        assert!((found - expected).abs() < 1e-6, "{found} for {expected}");
    }
}

/// Values of `torch.nn.functional` 2.15.
#[test]
fn results_are_those_of_pytorch() {
    let x = wave(&[1, 2, 5, 7]);
    let options =
        AvgPool { stride: Some([2, 3]), padding: [1, 1], ceil_mode: true, ..AvgPool::new([3, 2]) };
    let shape = [1, 2, 3, 3];
    close(&avg_pool2d(&x, &options).unwrap(), &shape, 6..9, &[0.031957, -0.095575, -0.177472]);
    let without = AvgPool { count_include_pad: false, ..options };
    close(&avg_pool2d(&x, &without).unwrap(), &shape, 6..9, &[0.095872, -0.143363, -0.266208]);
    let wide = AvgPool { stride: Some([2, 2]), padding: [0, 1], ..AvgPool::new([2, 3]) };
    let expected = [0.177709, 0.232511, 0.093203, -0.033422, 0.065661, 0.208725];
    close(&avg_pool2d(&x, &wide).unwrap(), &[1, 2, 2, 4], 0..6, &expected);
    let expected = [0.256272, 0.172037, -0.00443, -0.1449, 0.11741, -0.004577, -0.15431];
    let adaptive = adaptive_avg_pool2d(&x, [Some(3), Some(4)]).unwrap();
    close(&adaptive, &[1, 2, 3, 4], 12..19, &expected);
    let options = MaxPool2d {
        stride: Some([2, 2]),
        padding: [1, 1],
        dilation: [1, 2],
        ceil_mode: true,
        ..MaxPool2d::new([3, 2])
    };
    let expected = [0.361615, 0.895699, 0.961275, 0.961275, 0.959375, 0.959375, 0.679305];
    close(&max_pool2d(&x, &options).unwrap(), &[1, 2, 3, 4], 0..4, &expected[..4]);
    let one = AvgPool { stride: Some([2]), padding: [1], ceil_mode: true, ..AvgPool::new([3]) };
    assert_eq!(avg_pool1d(&x.squeeze(0).unwrap(), &one).unwrap().dims(), [2, 5, 4]);
    let three = AvgPool { stride: Some([1; 3]), ..AvgPool::new([2; 3]) };
    assert_eq!(avg_pool3d(&x, &three).unwrap().dims(), [1, 1, 4, 6]);
}

#[test]
fn ties_go_to_the_first_and_nan_wins() {
    let options = MaxPool2d { stride: Some([1, 1]), ..MaxPool2d::new([3, 3]) };
    let x = Var::zeros((1, 4, 4), DType::F32, &Device::Cpu).unwrap();
    let grads = max_pool2d(&x, &options).unwrap().backward().unwrap();
    let grad = grads.get(&x).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
    let ones: Vec<usize> = (0..16).filter(|i| grad[*i] == 1.0).collect();
    assert_eq!((ones, grad.iter().sum::<f32>()), (vec![0, 1, 4, 5], 4.0));

    let mut values = wave(&[35]).to_vec1::<f32>().unwrap();
    values[2 * 7 + 2] = f32::NAN;
    let x = Var::from_vec(values, (1, 5, 7), &Device::Cpu).unwrap();
    let y = max_pool2d(&x, &options).unwrap();
    let nans = y.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    assert_eq!(nans.iter().filter(|y| y.is_nan()).count(), 9);
    let grads = y.backward().unwrap();
    let grad = grads.get(&x).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
    let expected = [(4, 2.0), (16, 9.0), (19, 2.0), (20, 2.0)]; // torch's
    for (i, grad) in grad.iter().enumerate() {
        let expected = expected.iter().find(|(at, _)| *at == i).map_or(0.0, |(_, grad)| *grad);
        assert_eq!(*grad, expected, "element {i}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]
    #[test]
    fn gradients_are_differences(
        size in [4usize..7, 4usize..7],
        kernel in [1usize..4, 1usize..4],
        stride in [1usize..4, 1usize..4],
        ceil_mode: bool,
        count_include_pad: bool,
        padded: bool,
        out in [1usize..6, 1usize..6],
    ) {
        let inputs = [numbers(&[2, 2, size[0], size[1]], 1)];
        let padding = kernel.map(|k| if padded { k / 2 } else { 0 });
        let stride = Some(stride);
        let options = AvgPool { kernel_size: kernel, stride, padding, ceil_mode, count_include_pad };
        check_gradients(&inputs, |t| avg_pool2d(&t[0], &options));
        let options = MaxPool2d { kernel_size: kernel, stride, padding, dilation: [1, 1], ceil_mode };
        check_gradients(&inputs, |t| max_pool2d(&t[0], &options));
        check_gradients(&inputs, |t| adaptive_avg_pool2d(&t[0], [Some(out[0]), None]));
        let inputs = [numbers(&[3, size[0], size[1]], 1)];
        check_gradients(&inputs, |t| avg_pool1d(&t[0], &AvgPool::new([kernel[0]])));
        check_gradients(&inputs, |t| adaptive_avg_pool1d(&t[0], [Some(out[1])]));
        let inputs = [numbers(&[2, 2, size[0], size[1]], 1)];
        check_gradients(&inputs, |t| avg_pool3d(&t[0], &AvgPool::new([2, kernel[0], kernel[1]])));
        check_gradients(&inputs, |t| adaptive_avg_pool3d(&t[0], [Some(1), Some(out[0]), Some(out[1])]));
    }
}

#[test]
fn half_precision_is_rounded_once() {
    let x = numbers(&[1, 2, 6, 6], 1).to_dtype(DType::BF16).unwrap();
    let options = AvgPool::new([3, 3]);
    let wide = avg_pool2d(&x.to_dtype(DType::F32).unwrap(), &options).unwrap();
    let found = avg_pool2d(&x, &options).unwrap();
    assert_eq!(found.dtype(), DType::BF16);
    let list = |t: &Tensor| t.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1::<f32>();
    assert_eq!(list(&found).unwrap(), list(&wide.to_dtype(DType::BF16).unwrap()).unwrap());
}

#[test]
fn whatever_does_not_fit_is_said() {
    let say = |result: Result<Tensor>| result.unwrap_err().to_string();
    let x = numbers(&[1, 2, 5, 5], 1);
    assert_eq!(
        say(avg_pool2d(&x, &AvgPool { stride: Some([1, 0]), ..AvgPool::new([0, 2]) })),
        "avg_pool2d: kernel_size must be positive, found [0, 2]; stride must be positive, found [1, 0]"
    );
    assert_eq!(
        say(avg_pool2d(&x, &AvgPool::new([2, 6]))),
        "avg_pool2d: along spatial axis 1 the kernel reaches over 6 positions, more than the input \
         of 5 with its padding of 0 on both sides"
    );
    let padded = MaxPool2d { padding: [2, 0], ..MaxPool2d::new([3, 3]) };
    assert_eq!(
        say(max_pool2d(&x, &padded)),
        "max_pool2d: padding 2 along spatial axis 0 must be at most half the kernel, which reaches over 3"
    );
    let huge = MaxPool2d { dilation: [usize::MAX, 1], ..MaxPool2d::new([3, 3]) };
    assert!(say(max_pool2d(&x, &huge)).contains("overflow"));
    assert!(say(adaptive_avg_pool2d(&x, [Some(usize::MAX), None])).contains("overflows"));
    let whole = x.to_dtype(DType::I64).unwrap();
    assert_eq!(
        say(max_pool2d(&whole, &MaxPool2d::new([2, 2]))),
        "max_pool2d: an operand has dtype i64; it works on f32, f64, f16 and bf16"
    );
    assert_eq!(
        say(avg_pool1d(&x, &AvgPool::new([2]))),
        "avg_pool1d: input must have 3 axes, or 2 without the batch, found [1, 2, 5, 5]"
    );
}
