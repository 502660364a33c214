use candle_core::{DType, Device, Tensor, Var};
use proptest::prelude::*;

use super::super::testing::{check_gradients, numbers};
use super::*;

fn close(found: &Tensor, expected: &[f64], every: usize) {
    let found: Vec<f64> =
        found.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1().unwrap();
    let found: Vec<f64> = found.into_iter().step_by(every).collect();
    assert_eq!(found.len(), expected.len());
    for (found, expected) in found.iter().zip(expected) {
        assert!((found - expected).abs() < 2e-6 * (1.0 + expected.abs()), "{found} for {expected}");
    }
}

fn wave(shape: &[usize], step: f64, f: fn(f32) -> f32) -> Tensor {
    let n = shape.iter().product::<usize>();
    let values: Vec<f32> = (0..n).map(|i| f(i as f32 * step as f32)).collect();
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
}

/// Values of `torch.nn.functional` 2.15: inputs are sines, weights cosines of multiples of their element numbers.
#[test]
fn results_are_those_of_pytorch() {
    let x = wave(&[2, 4, 5, 6], 0.37, f32::sin);
    let weight = wave(&[6, 2, 3, 2], 0.71, f32::cos);
    let bias = Tensor::new(&[0.1f32, 0.2, 0.3, 0.4, 0.5, 0.6], &Device::Cpu).unwrap();
    let options =
        Conv { stride: [2, 1], padding: Padding::Explicit([1, 2]), dilation: [1, 2], groups: 2 };
    let y = conv2d(&x, &weight, Some(&bias), &options).unwrap();
    assert_eq!(y.dims(), [2, 6, 3, 8]);
    let expected = [
        -1.5898493528366089,
        4.141977310180664,
        3.234792947769165,
        -0.5701701641082764,
        1.5501967668533325,
        -1.4554598331451416,
        -0.9617229700088501,
        2.618856191635132,
    ];
    close(&y, &expected, 37);

    let options = Conv { padding: Padding::Same, dilation: [1, 3], groups: 2, ..Conv::default() };
    let y = conv2d(&x, &weight, Some(&bias), &options).unwrap();
    assert_eq!(y.dims(), [2, 6, 5, 6]);
    let expected = [
        -1.039999008178711,
        0.6767094135284424,
        -4.1020402908325195,
        2.7577319145202637,
        -1.3668677806854248,
        -0.14851737022399902,
    ];
    close(&y, &expected, 67);

    let weight = wave(&[4, 3, 3, 2], 0.71, f32::cos);
    let options = ConvTranspose {
        stride: [3, 2],
        padding: [1, 2],
        output_padding: [2, 1],
        groups: 2,
        dilation: [2, 1],
    };
    let y = conv_transpose2d(&x, &weight, Some(&bias), &options).unwrap();
    assert_eq!(y.dims(), [2, 6, 17, 9]);
    let expected = [
        0.10000000149011612,
        0.10000000149011612,
        0.34113824367523193,
        -0.3548218607902527,
        -0.14418134093284607,
        0.625619649887085,
        1.467799425125122,
        0.6000000238418579,
        0.10000000149011612,
        0.6758869290351868,
        -0.911814272403717,
        -0.9116861820220947,
        1.1346745491027832,
        1.041046142578125,
        0.6000000238418579,
    ];
    close(&y, &expected, 131);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn gradients_are_differences(
        size in [3usize..6, 3usize..6],
        kernel in [1usize..4, 1usize..3],
        stride in [1usize..4, 1usize..3],
        padding in [0usize..3, 0usize..2],
        dilation in [1usize..2, 1usize..3],
        groups in 1usize..3,
    ) {
        let inputs = [
            numbers(&[2, 2 * groups, size[0], size[1]], 1),
            numbers(&[2 * groups, 2, kernel[0], kernel[1]], 2),
            numbers(&[2 * groups], 3),
        ];
        let explicit = Padding::Explicit(padding);
        let options = Conv { stride, padding: explicit, dilation, groups };
        check_gradients(&inputs, |t| conv2d(&t[0], &t[1], Some(&t[2]), &options));
        check_gradients(&inputs[..2], |t| conv2d(&t[0], &t[1], None, &options));
        let padding = [0, 1].map(|a| padding[a].min((size[a] - 1) * stride[a] / 2));
        let output_padding = [stride[0] - 1, stride[1].max(dilation[1]) - 1];
        let options = ConvTranspose { stride, padding, output_padding, groups, dilation };
        // The weight of the transpose: [in, out / groups, ..]; two outputs per group as well.
        check_gradients(&inputs, |t| conv_transpose2d(&t[0], &t[1], Some(&t[2]), &options));
    }
}

#[test]
fn one_and_three_axes_have_gradients_too() {
    let options = Conv::<1> { padding: Padding::Same, groups: 2, ..Conv::default() };
    let inputs = [numbers(&[4, 7], 1), numbers(&[6, 2, 4], 2), numbers(&[6], 3)];
    check_gradients(&inputs, |t| conv1d(&t[0], &t[1], Some(&t[2]), &options));
    let options = ConvTranspose::<1> { stride: [2], ..ConvTranspose::default() };
    let inputs = [numbers(&[2, 4, 3], 1), numbers(&[4, 3, 3], 2), numbers(&[3], 3)];
    check_gradients(&inputs, |t| conv_transpose1d(&t[0], &t[1], Some(&t[2]), &options));
    let options =
        Conv::<3> { stride: [1, 2, 1], padding: Padding::Explicit([1, 0, 1]), ..Conv::default() };
    let inputs = [numbers(&[1, 2, 3, 4, 3], 1), numbers(&[2, 2, 2, 2, 3], 2), numbers(&[2], 3)];
    check_gradients(&inputs, |t| conv3d(&t[0], &t[1], Some(&t[2]), &options));
    let options = ConvTranspose::<3> { stride: [1, 2, 2], ..ConvTranspose::default() };
    check_gradients(&inputs, |t| conv_transpose3d(&t[0], &t[1], Some(&t[2]), &options));
}

#[test]
fn an_input_without_batch_gives_an_output_without() {
    let (x, weight) = (numbers(&[2, 5, 5], 1), numbers(&[3, 2, 3, 3], 2));
    let one = conv2d(&x, &weight, None, &Conv::default()).unwrap();
    assert_eq!(one.dims(), [3, 3, 3]);
    let batch = conv2d(&x.unsqueeze(0).unwrap(), &weight, None, &Conv::default()).unwrap();
    assert_eq!(
        one.flatten_all().unwrap().to_vec1::<f64>().unwrap(),
        batch.flatten_all().unwrap().to_vec1::<f64>().unwrap()
    );
}

#[test]
fn half_precision_is_rounded_once() {
    let (x, weight) = (numbers(&[1, 64, 5], 1), numbers(&[2, 64, 3], 2));
    for dtype in [DType::F16, DType::BF16] {
        let [x, weight] = [&x, &weight].map(|t| t.to_dtype(dtype).unwrap());
        let wide = [&x, &weight].map(|t| t.to_dtype(DType::F32).unwrap());
        let expected = conv1d(&wide[0], &wide[1], None, &Conv::default()).unwrap();
        let expected = expected.to_dtype(dtype).unwrap();
        let found = conv1d(&x, &weight, None, &Conv::default()).unwrap();
        assert_eq!(found.dtype(), dtype);
        let bits = |t: &Tensor| t.to_dtype(DType::F32).unwrap().to_vec3::<f32>().unwrap();
        assert_eq!(bits(&found), bits(&expected));
        // Gradients come back in the dtype of the operand.
        let var = Var::from_tensor(&weight).unwrap();
        let grads = conv1d(&x, &var, None, &Conv::default()).unwrap().backward().unwrap();
        assert_eq!(grads.get(&var).unwrap().dtype(), dtype);
    }
}

#[test]
fn operands_that_do_not_learn_get_no_gradient() {
    let x = Var::from_tensor(&numbers(&[1, 2, 5, 5], 1)).unwrap();
    let weight = numbers(&[3, 2, 3, 3], 2);
    let grads = conv2d(&x, &weight, None, &Conv::default()).unwrap().backward().unwrap();
    assert!(grads.get(&x).is_some());
    assert!(grads.get(&weight).is_none());
    let out = conv2d(&numbers(&[1, 2, 5, 5], 1), &weight, None, &Conv::default()).unwrap();
    assert!(!out.track_op(), "nothing to differentiate, nothing kept");
}

#[test]
fn empty_batches_are_fine() {
    let (x, weight) = (numbers(&[0, 2, 5], 1), numbers(&[3, 2, 3], 2));
    assert_eq!(conv1d(&x, &weight, None, &Conv::default()).unwrap().dims(), [0, 3, 3]);
    let x = numbers(&[0, 3, 5], 1);
    assert_eq!(
        conv_transpose1d(&x, &weight, None, &ConvTranspose::default()).unwrap().dims(),
        [0, 2, 7]
    );
}

#[test]
fn whatever_does_not_fit_is_said() {
    let say = |result: Result<Tensor>| result.unwrap_err().to_string();
    let (x, weight) = (numbers(&[1, 4, 5, 5], 1), numbers(&[4, 4, 3, 3], 2));
    let with = |options: &Conv<2>| say(conv2d(&x, &weight, None, options));
    let base = Conv::<2>::default;
    let zero = Conv { stride: [0, 1], groups: 0, dilation: [1, 0], ..base() };
    assert_eq!(
        with(&zero),
        "conv2d: groups must be positive, found [0]; stride must be positive, found [0, 1]; \
         dilation must be positive, found [1, 0]"
    );
    assert!(with(&Conv { groups: 2, ..base() }).contains("wants 8"), "channels");
    let three = Conv { groups: 3, ..base() };
    assert!(with(&three).contains("3 groups do not divide the 4 output channels"));
    let large = Conv { dilation: [3, 1], ..base() };
    assert_eq!(
        with(&large),
        "conv2d: along spatial axis 0 the kernel reaches over 7 positions (kernel 3, dilation 3), \
         more than the padded input of 5"
    );
    let same = Conv { padding: Padding::Same, stride: [1, 2], ..base() };
    assert!(with(&same).contains("padding `same` needs a stride of 1"));
    let huge = Conv { padding: Padding::Explicit([usize::MAX, 0]), ..base() };
    assert!(with(&huge).contains("overflow"));
    let huge = Conv { dilation: [usize::MAX, 1], ..base() };
    assert!(with(&huge).contains("overflow"));
    let bias = numbers(&[3], 3);
    let message = say(conv2d(&x, &weight, Some(&bias), &base()));
    assert_eq!(message, "conv2d: bias must be [4], one number per output channel, found [3]");
    let message = say(conv2d(&numbers(&[5, 5], 1), &weight, None, &base()));
    assert_eq!(message, "conv2d: input must have 4 axes, or 3 without the batch, found [5, 5]");
    let message = say(conv2d(&x, &numbers(&[4, 4, 3], 1), None, &base()));
    assert_eq!(message, "conv2d: weight must have 4 axes, found [4, 4, 3]");
    let single = weight.to_dtype(DType::F32).unwrap();
    let message = say(conv2d(&x, &single, None, &base()));
    assert_eq!(message, "conv2d: operands have dtypes f64, f32; convert them to one");
    let whole = [&x, &weight].map(|t| t.to_dtype(DType::U8).unwrap());
    let message = say(conv2d(&whole[0], &whole[1], None, &base()));
    assert_eq!(message, "conv2d: an operand has dtype u8; it works on f32, f64, f16 and bf16");

    let transposed = |options: &ConvTranspose<2>| say(conv_transpose2d(&x, &weight, None, options));
    let base = ConvTranspose::<2>::default;
    let extra = ConvTranspose { output_padding: [1, 0], ..base() };
    assert_eq!(
        transposed(&extra),
        "conv_transpose2d: output_padding 1 along spatial axis 0 must be less than the stride 1 or \
         the dilation 1"
    );
    let cut = ConvTranspose { padding: [4, 0], ..base() };
    assert!(transposed(&cut).contains("cuts away all 7 positions"));
    let huge = ConvTranspose { stride: [usize::MAX, 1], ..base() };
    assert!(transposed(&huge).contains("overflow"));
    let three = ConvTranspose { groups: 3, ..base() };
    assert!(transposed(&three).contains("3 groups do not divide the 4 channels"));
    let wrong = say(conv_transpose2d(&numbers(&[1, 3, 5, 5], 1), &weight, None, &base()));
    assert!(wrong.contains("the weight [4, 4, 3, 3] wants 4"));
}
