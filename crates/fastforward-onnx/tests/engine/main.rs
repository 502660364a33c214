//! The engine on the example networks: accuracy, names, threads, mistakes.

use std::path::PathBuf;

use fastforward_onnx::ErrorKind;
use fastforward_onnx::engine::{BatchInput, Engine, EngineOptions};
use fastforward_onnx::graph::Model;
use fastforward_onnx::tensor::Tensor;

mod fashion;

fn example(path: &str) -> Model {
    let path: PathBuf = [env!("CARGO_MANIFEST_DIR"), "../../examples", path].iter().collect();
    Model::load(&path).unwrap()
}

fn engine(model: &Model) -> Engine {
    Engine::new(model, &EngineOptions::default()).unwrap()
}

#[test]
fn fashion_cnn_reaches_its_known_accuracy() {
    let engine = engine(&example("fashion/fashion_cnn.onnx"));
    assert_eq!(fashion::correct(&engine), 1825); // 91.25 % of 2,000
}

#[test]
fn every_intermediate_value_can_be_asked_for() {
    let model = example("fashion/fashion_cnn.onnx");
    let engine = engine(&model);
    let (images, _) = fashion::test_images();
    let image = images.rows(0..3).unwrap();
    let names: Vec<&str> = model.graph().node.iter().map(|n| n.output[0].as_str()).collect();
    let at_once = engine.run(&[("image", &image)], &names).unwrap();
    assert_eq!(at_once.len(), names.len());
    assert!(at_once.iter().all(|value| value.shape()[0] == 3));

    // In small groups: the same values, in the same order.
    let mut grouped = Vec::new();
    for max_bytes in [1, 100_000] {
        grouped.clear();
        engine
            .run_bounded(&[("image", &image)], &names, max_bytes, |name, value| {
                grouped.push((name.to_owned(), value));
                Ok::<(), fastforward_onnx::Error>(())
            })
            .unwrap();
        assert!(grouped.iter().map(|(name, _)| name.as_str()).eq(names.iter().copied()));
        assert!(grouped.iter().map(|(_, value)| value).eq(&at_once));
    }
    // An input and a weight are values too.
    let back = engine.run(&[("image", &image)], &["image", "fc2.bias", "image"]).unwrap();
    assert_eq!((&back[0], &back[2]), (&image, &image));
    assert_eq!(back[1].as_f32().unwrap(), model.constant("fc2.bias").unwrap().to_f32().unwrap());
}

#[test]
fn the_number_of_threads_does_not_change_a_bit() {
    let model = example("fashion/fashion_cnn.onnx");
    let (images, _) = fashion::test_images();
    let images = [images.rows(0..64).unwrap(), images.rows(64..65).unwrap()];
    let names: Vec<&str> = model.graph().node.iter().map(|n| n.output[0].as_str()).collect();
    let run = |n_threads| {
        let options = EngineOptions { n_threads, ..EngineOptions::default() };
        let engine = Engine::new(&model, &options).unwrap();
        images.each_ref().map(|images| engine.run(&[("image", images)], &names).unwrap())
    };
    let one = run(Some(1));
    assert_eq!(one, run(Some(2)));
    assert_eq!(one, run(Some(5)));
    assert_eq!(one, run(None));
}

#[test]
fn batches_give_what_one_run_gives() {
    let engine = engine(&example("digits/digits_mlp.onnx"));
    let pixels: Vec<f32> = (0..7 * 64).map(|i| (i % 17) as f32).collect();
    let images = Tensor::from_f32(vec![7, 1, 8, 8], pixels).unwrap();
    let whole = engine.run(&[("image", &images)], &["logits"]).unwrap();
    let inputs = [BatchInput { name: "image", tensor: &images, shared: false }];
    let mut seen = Vec::new();
    engine
        .run_batches(&inputs, 3, &["logits"], |rows, values| {
            // A matrix of few rows is multiplied in another order of summation.
            let expected = whole[0].rows(rows.clone())?;
            let pairs = values[0].as_f32().unwrap().iter().zip(expected.as_f32().unwrap());
            for (found, expected) in pairs {
                assert!((found - expected).abs() < 1e-4, "{found} {expected}");
            }
            seen.push(rows);
            Ok::<(), fastforward_onnx::Error>(())
        })
        .unwrap();
    assert_eq!(seen, [0..3, 3..6, 6..7]);
    assert_eq!(engine.batches(&inputs, 0).unwrap_err().kind(), ErrorKind::Input);
}

#[test]
fn wrong_inputs_are_named_with_what_was_expected() {
    let engine = engine(&example("digits/digits_mlp.onnx"));
    let right = Tensor::from_f32(vec![1, 1, 8, 8], vec![0.0; 64]).unwrap();
    let flat = Tensor::from_f32(vec![1, 64], vec![0.0; 64]).unwrap();
    let bytes =
        Tensor::new(vec![1, 1, 8, 8], fastforward_onnx::tensor::TensorData::U8(vec![0; 64]))
            .unwrap();
    let message = |inputs: &[(&str, &Tensor)], outputs: &[&str]| {
        engine.run(inputs, outputs).unwrap_err().to_string()
    };
    assert_eq!(
        message(&[("image", &flat)], &["logits"]),
        "input `image` has shape [1, 64], expected [N, 1, 8, 8]"
    );
    assert_eq!(
        message(&[("image", &bytes)], &["logits"]),
        "input `image` has type uint8, expected float32"
    );
    assert_eq!(
        message(&[("imagee", &right)], &["logits"]),
        "2 problems\n  the graph has no input `imagee`, expected `image`\n  input `image` is missing"
    );
    assert_eq!(
        message(&[("image", &right)], &["logit"]),
        "the graph has no value `logit` that can be computed"
    );
}

#[test]
fn nan_and_infinity_are_results_like_any_other() {
    let engine = engine(&example("digits/digits_mlp.onnx"));
    let image = Tensor::from_f32(vec![1, 1, 8, 8], vec![f32::NAN; 64]).unwrap();
    let values = engine.run(&[("image", &image)], &["g1"]).unwrap();
    assert!(values[0].as_f32().unwrap().iter().all(|value| value.is_nan()));
}

#[test]
fn unknown_operators_are_named_all_at_once() {
    let mut model = example("digits/digits_mlp.onnx");
    model.graph_mut().node[2].op_type = Some("Rectify".to_owned());
    model.graph_mut().node[4].op_type = Some("Rectify".to_owned());
    model.graph_mut().node[4].name = None;
    let error = Engine::new(&model, &EngineOptions::default()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert_eq!(
        error.problems(),
        [
            "operator `Rectify` (node `r1`) is not supported by the execution engine",
            "operator `Rectify` (node `r2`) is not supported by the execution engine",
        ]
    );
}

#[test]
fn a_node_that_fails_is_named() {
    let mut model = example("digits/digits_mlp.onnx");
    // 8x8 images against a weight of another size.
    model.set_constant(fastforward_onnx::graph::tensor_from_f32("fc2.weight", &[2, 3], &[0.0; 6]));
    let engine = Engine::new(&model, &EngineOptions::default()).unwrap();
    let image = Tensor::from_f32(vec![1, 1, 8, 8], vec![0.0; 64]).unwrap();
    let error = engine.run(&[("image", &image)], &["logits"]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Execution);
    assert!(error.to_string().starts_with("operator `Gemm` (node `g2`) failed: "), "{error}");
}
