//! The images of the examples, as the networks want them.

use fastforward_onnx::calibrate::Batch;
use fastforward_onnx::engine::{BatchInput, Engine};
use fastforward_onnx::graph::Model;
use fastforward_onnx::tensor::Tensor;
use fastforward_onnx::{Error, Result};
use safetensors::SafeTensors;

/// Images and their labels.
pub(crate) struct Images {
    pub(crate) images: Tensor, // [N, 1, height, width]
    pub(crate) labels: Vec<u8>,
}

pub(crate) fn example(path: &str) -> Model {
    Model::load(format!("{}/../../examples/{path}", env!("CARGO_MANIFEST_DIR")).as_ref()).unwrap()
}

/// The pixels of a file divided by `divisor`.
pub(crate) fn images(path: &str, divisor: f32) -> Images {
    let path = format!("{}/../../examples/{path}", env!("CARGO_MANIFEST_DIR"));
    let bytes = std::fs::read(path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let images = file.tensor("images").unwrap();
    let pixels = images.data().iter().map(|&pixel| f32::from(pixel) / divisor).collect();
    let (n, size) = (images.shape()[0], images.shape()[images.shape().len() - 1]);
    Images {
        images: Tensor::from_f32(vec![n, 1, size, size], pixels).unwrap(),
        labels: file.tensor("labels").unwrap().data().to_vec(),
    }
}

impl Images {
    pub(crate) fn rows(&self, rows: std::ops::Range<usize>) -> Self {
        Self { images: self.images.rows(rows.clone()).unwrap(), labels: self.labels[rows].to_vec() }
    }

    /// Batches of `size`, the last one shorter.
    pub(crate) fn batches(&self, size: usize) -> impl Iterator<Item = Result<Batch>> {
        let n = self.labels.len();
        (0..n.div_ceil(size)).map(move |at| {
            let images = self.images.rows(at * size..n.min((at + 1) * size))?;
            Ok(vec![("image".to_owned(), images)])
        })
    }

    /// How many images get their label.
    pub(crate) fn correct(&self, engine: &Engine) -> usize {
        let inputs = [BatchInput { name: "image", tensor: &self.images, shared: false }];
        let mut correct = 0;
        engine
            .run_batches(&inputs, 250, &["logits"], |rows, values| {
                let logits = values[0].as_f32().unwrap().chunks(10);
                for (scores, &label) in logits.zip(&self.labels[rows]) {
                    // Codes are often equal: the first of the largest, as other judges take it.
                    let better = |&a: &usize, &b: &usize| scores[a].total_cmp(&scores[b]);
                    let best = (0..10).rev().max_by(better).unwrap();
                    correct += usize::from(best == usize::from(label));
                }
                Ok::<(), Error>(())
            })
            .unwrap();
        correct
    }
}
