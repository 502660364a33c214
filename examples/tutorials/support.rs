//! What the tutorials share: data of the repository as tensors, and a way to count right answers.
#![allow(missing_docs, unreachable_pub, reason = "tests run this file as a module")]
#![allow(dead_code, reason = "each tutorial uses a part")]

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use fastforward::ArrayView;
use fastforward::metrics::{Batch, Metric};

pub type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// The folder `examples` of the repository.
pub fn examples() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples")
}

fn tensors(file: &str) -> Result<HashMap<String, Tensor>> {
    Ok(candle_core::safetensors::load(examples().join(file), &Device::Cpu)?)
}

fn tensor(file: &str, name: &str) -> Result<Tensor> {
    tensors(file)?.remove(name).ok_or_else(|| format!("{file} has no tensor `{name}`").into())
}

/// Trained weights of a file, as a `VarBuilder`.
pub fn weights(file: &str) -> Result<VarBuilder<'static>> {
    Ok(VarBuilder::from_tensors(tensors(file)?, DType::F32, &Device::Cpu))
}

/// Images of handwritten digits, 8 by 8, and which digits they are; 0 to 1296 are for training, the rest for testing.
pub mod digits {
    use std::ops::Range;

    use super::*;

    pub const FILE: &str = "digits/digits.safetensors";
    pub const TEST: Range<usize> = 1297..1797;

    pub fn weights() -> Result<VarBuilder<'static>> {
        super::weights("digits/digits_mlp.safetensors")
    }

    pub fn cnn_weights() -> Result<VarBuilder<'static>> {
        super::weights("digits/digits_cnn.safetensors")
    }

    /// `[n, 64]`, 0 to 1.
    pub fn images(rows: Range<usize>) -> Result<Tensor> {
        let images = tensor(FILE, "images")?.narrow(0, rows.start, rows.len())?;
        Ok((images.to_dtype(DType::F32)?.flatten_from(1)? / 16.0)?)
    }

    pub fn labels(rows: Range<usize>) -> Result<Vec<u64>> {
        super::labels(FILE, rows)
    }
}

/// Images of clothes, 28 by 28, and what they show.
pub mod fashion {
    use super::*;

    pub const CALIBRATION: &str = "fashion/calib512.safetensors";
    pub const TEST: &str = "fashion/test2000.safetensors";

    pub fn weights() -> Result<VarBuilder<'static>> {
        super::weights("fashion/fashion_cnn.safetensors")
    }

    /// `[n, 1, 28, 28]`, 0 to 1.
    pub fn images(file: &str) -> Result<Tensor> {
        let images = tensor(file, "images")?.to_dtype(DType::F32)?;
        Ok((images.unsqueeze(1)? / 255.0)?)
    }

    pub fn labels(file: &str) -> Result<Vec<u64>> {
        let count = tensor(file, "labels")?.elem_count();
        super::labels(file, 0..count)
    }
}

fn labels(file: &str, rows: std::ops::Range<usize>) -> Result<Vec<u64>> {
    let labels = tensor(file, "labels")?.narrow(0, rows.start, rows.len())?;
    Ok(labels.to_dtype(DType::U32)?.to_vec1::<u32>()?.into_iter().map(u64::from).collect())
}

/// A metric of outputs `[n, classes]` against labels or the outputs of another model.
pub fn measure(
    metric: Metric,
    output: &Tensor,
    reference: Option<&Tensor>,
    labels: Option<&[u64]>,
) -> Result<f64> {
    let data = |x: &Tensor| x.flatten_all()?.to_vec1::<f32>();
    let values = data(output)?;
    let others = reference.map(data).transpose()?;
    let shape = output.dims();
    let reference = others.as_ref().map(|others| ArrayView::new(others, shape)).transpose()?;
    let mut accumulator = metric.accumulator();
    accumulator.update(&Batch { output: ArrayView::new(&values, shape)?, reference, labels })?;
    accumulator.value().ok_or_else(|| "nothing was measured".into())
}
