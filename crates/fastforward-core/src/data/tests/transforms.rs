//! What is done to samples before the model sees them.

use super::*;

#[test]
fn images_are_scaled_as_training_did() {
    let pixels: Vec<u8> = (0..=255).collect();
    let files = Files::new(&[("x.npy", npy("|u1", "(1, 16, 16)", &pixels))]);
    let spec = InputSpec {
        divide_by: Some(255.0),
        reshape: Some(vec![1, 16, 16]),
        ..InputSpec::default()
    };
    let model = [shaped("image", &[1, 16, 16])];
    let dataset = Dataset::open(&files.spec("x.npy"), &with("image", spec), &model).unwrap();
    let expected: Vec<f32> = (0..=255).map(|pixel| pixel as f32 / 255.0).collect();
    assert_eq!(elements(&dataset, 1).unwrap(), [float(&expected)]);
}

#[test]
fn transforms() {
    // Two samples of 2 × 3: [0 1 2; 3 4 5] and [6 7 8; 9 10 11].
    let data: Vec<f32> = (0..12).map(|x| x as f32).collect();
    let files = Files::new(&[("x.npy", npy("<f4", "(2, 2, 3)", &floats(&data)))]);
    let spec = InputSpec::default();
    let cases: [(InputSpec, &[usize], &[f32]); 7] = [
        (spec.clone(), &[2, 3], &[0.0, 1.0, 2.0, 3.0, 4.0, 5.0]),
        (
            InputSpec { scale: Some(2.0), mean: vec![1.0], std: vec![2.0], ..spec.clone() },
            &[2, 3],
            &[-0.5, 0.5, 1.5, 2.5, 3.5, 4.5],
        ),
        (
            InputSpec { mean: vec![0.0, 3.0], ..spec.clone() },
            &[2, 3],
            &[0.0, 1.0, 2.0, 0.0, 1.0, 2.0],
        ),
        (
            InputSpec {
                mean: vec![1.0],
                std: vec![1.0, 2.0, 4.0],
                channel_axis: Some(-1),
                ..spec.clone()
            },
            &[2, 3],
            &[-1.0, 0.0, 0.25, 2.0, 1.5, 1.0],
        ),
        (
            InputSpec { reshape: Some(vec![6]), ..spec.clone() },
            &[6],
            &[0.0, 1.0, 2.0, 3.0, 4.0, 5.0],
        ),
        (
            InputSpec { transpose: Some(vec![1, 0]), ..spec.clone() },
            &[3, 2],
            &[0.0, 3.0, 1.0, 4.0, 2.0, 5.0],
        ),
        // Channels are those of the transposed sample.
        (
            InputSpec {
                reshape: Some(vec![1, 2, 3]),
                transpose: Some(vec![2, 0, 1]),
                mean: vec![0.0, 1.0, 2.0],
                ..spec.clone()
            },
            &[3, 1, 2],
            &[0.0, 3.0, 0.0, 3.0, 0.0, 3.0],
        ),
    ];
    for (spec, shape, expected) in cases {
        let model = [shaped("x", shape)];
        let dataset = Dataset::open(&files.spec("x.npy"), &with("x", spec.clone()), &model)
            .unwrap_or_else(|error| panic!("{error}"));
        let batch = dataset.batches(1).next().unwrap().unwrap();
        assert_eq!(batch.inputs[0].shape[1..], *shape);
        assert_eq!(batch.inputs[0].data, ArrayData::Float(expected.to_vec()), "{spec:?}");
    }
}

#[test]
fn a_fixed_batch_size_of_the_model_is_kept() {
    let files = Files::new(&[("x.npy", npy("|u1", "(6,)", &[0; 6]))]);
    let fixed = |size| [ModelInput { shape: Some(vec![Some(size)]), ..input("x") }];
    let dataset = Dataset::open(&files.spec("x.npy"), &no_inputs(), &fixed(2)).unwrap();
    assert_eq!(dataset.fixed_batch_size(), Some(2));
    assert_eq!(dataset.batches(100).count(), 3);
    let error = Dataset::open(&files.spec("x.npy"), &no_inputs(), &fixed(4)).unwrap_err();
    assert_eq!(
        error.to_string(),
        "input `x` takes batches of exactly 4, and 6 samples are no multiple of it; set `samples`"
    );
}
