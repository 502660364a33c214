//! Rows of a table by their numbers.

use candle_core::{IndexOp, Tensor};
use candle_nn::{Init, VarBuilder};

use super::{Param, functional as F};
use crate::Module;
use crate::quantization::QuantizerSlot;
use crate::tensor::float::Embedding as EmbeddingOptions;
use crate::tensor::{Error, Result, Value};

/// The rows of a table that integers number, with slots for weight and output (spec §5.7).
///
/// It takes a plain tensor, so it is no [`Layer`](super::Layer): numbers of rows are not quantized.
///
/// ```
/// use candle_core::{Device, Tensor};
/// use fastforward::nn::Embedding;
/// use fastforward::tensor::float::Embedding as Options;
///
/// let table = Tensor::new(&[[1f32, 2.0], [3.0, 4.0]], &Device::Cpu)?;
/// let layer = Embedding::from_tensors(table, Options::default())?;
/// let ids = Tensor::new(&[1u32, 1, 0], &Device::Cpu)?;
/// let _lenient = fastforward::flags::strict_quantization(false); // no quantizers yet
/// let rows = layer.forward(&ids)?.dequantize()?;
/// assert_eq!(rows.to_vec2::<f32>()?, [[3.0, 4.0], [3.0, 4.0], [1.0, 2.0]]);
/// # Ok::<(), fastforward::tensor::Error>(())
/// ```
#[derive(Module, Debug)]
#[module(class = fastforward::module::classes::embedding())]
pub struct Embedding {
    /// The row of padding, and limits to the norm of rows.
    #[module(skip)]
    pub options: EmbeddingOptions,
    /// `[rows, width]`
    pub weight: Param,
    /// `parameter/weight`
    pub weight_quantizer: QuantizerSlot,
    /// `activation/output`
    pub output_quantizer: QuantizerSlot,
}

impl Embedding {
    /// A layer whose table comes from, or is made by, a `VarBuilder`: `weight`, initialized as in torch, with zeros in the row
    /// of padding.
    ///
    /// # Errors
    /// [`ErrorKind::Tensor`](crate::ErrorKind::Tensor) when the builder has no such tensor of this shape, otherwise as for
    /// [`from_params`](Self::from_params).
    pub fn new(
        num_embeddings: usize,
        embedding_dim: usize,
        options: EmbeddingOptions,
        vb: VarBuilder<'_>,
    ) -> Result<Self> {
        let is_new = !vb.contains_tensor("weight");
        let normal = Init::Randn { mean: 0.0, stdev: 1.0 };
        let weight = vb.get_with_hints((num_embeddings, embedding_dim), "weight", normal)?;
        let layer = Self::from_tensors(weight, options)?;
        if let (Some(row), true) = (layer.padding_row(), is_new) {
            let weight = layer.weight.tensor().detach();
            let zeros = weight.i(row..row + 1)?.zeros_like()?;
            layer.weight.set(&weight.slice_assign(&[row..row + 1, 0..embedding_dim], &zeros)?)?;
        }
        Ok(layer)
    }

    /// A layer with this table.
    ///
    /// # Errors
    /// As for [`from_params`](Self::from_params).
    pub fn from_tensors(weight: Tensor, options: EmbeddingOptions) -> Result<Self> {
        Self::from_params(weight.into(), options)
    }

    /// A layer with this table, which it may share with others.
    ///
    /// # Errors
    /// [`ErrorKind::Operator`](crate::ErrorKind::Operator) when the table is not `[rows, width]`, or has no row of padding.
    pub fn from_params(weight: Param, options: EmbeddingOptions) -> Result<Self> {
        let &[rows, _] = weight.dims() else {
            let what = format!("weight has shape {:?}, expected [rows, width]", weight.dims());
            return Err(Error::operator("Embedding", what));
        };
        let layer = Self {
            options,
            weight_quantizer: QuantizerSlot::weight(weight.dims()),
            output_quantizer: QuantizerSlot::output(),
            weight,
        };
        if let (Some(row), None) = (layer.options.padding_idx, layer.padding_row()) {
            let what = format!("the row of padding is {row}, the table has {rows} rows");
            return Err(Error::operator("Embedding", what));
        }
        Ok(layer)
    }

    /// The same layer as one of candle's.
    ///
    /// # Errors
    /// As for [`from_params`](Self::from_params).
    pub fn from_candle(layer: &candle_nn::Embedding) -> Result<Self> {
        Self::from_tensors(layer.embeddings().clone(), EmbeddingOptions::default())
    }

    /// The rows with these numbers: `[.., width]` for integers of shape `[..]`.
    ///
    /// # Errors
    /// [`ErrorKind::Operator`](crate::ErrorKind::Operator) when `ids` are no integers or number no rows, and what the slots
    /// report.
    pub fn forward(&self, ids: &Tensor) -> Result<Value> {
        let weight = self.weight.quantized(&self.weight_quantizer)?;
        F::embedding(ids, &weight, &self.options, &self.output_quantizer)
    }

    /// The row of padding counted from the first, if there is one.
    fn padding_row(&self) -> Option<usize> {
        let rows = self.weight.dims()[0];
        let row = self.options.padding_idx?;
        let row = if row < 0 { row + rows as i64 } else { row };
        usize::try_from(row).ok().filter(|&row| row < rows)
    }
}
