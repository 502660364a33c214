//! The 2,000 test images of `examples/fashion`.

use fastforward_onnx::engine::{BatchInput, Engine};
use fastforward_onnx::tensor::Tensor;
use safetensors::SafeTensors;

/// The images as the network wants them, pixel / 255, and their labels.
pub(crate) fn test_images() -> (Tensor, Vec<u8>) {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/fashion/test2000.safetensors");
    let bytes = std::fs::read(path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let images = file.tensor("images").unwrap();
    let pixels: Vec<f32> = images.data().iter().map(|&pixel| f32::from(pixel) / 255.0).collect();
    let n = images.shape()[0];
    let labels = file.tensor("labels").unwrap().data().to_vec();
    assert_eq!(labels.len(), n);
    (Tensor::from_f32(vec![n, 1, 28, 28], pixels).unwrap(), labels)
}

/// How many of the test images get their label.
pub(crate) fn correct(engine: &Engine) -> usize {
    let (images, labels) = test_images();
    let inputs = [BatchInput { name: "image", tensor: &images, shared: false }];
    let mut correct = 0;
    engine
        .run_batches(&inputs, 250, &["logits"], |rows, values| {
            let logits = values[0].as_f32().unwrap().chunks(10);
            for (scores, &label) in logits.zip(&labels[rows]) {
                let best = (0..10).max_by(|&a, &b| scores[a].total_cmp(&scores[b])).unwrap();
                correct += usize::from(best == usize::from(label));
            }
            Ok::<(), fastforward_onnx::Error>(())
        })
        .unwrap();
    correct
}
