//! Samples from files as what a graph takes.

use std::path::PathBuf;

use indexmap::IndexMap;

use fastforward_core::data::{
    ArrayData, Batch, DataSpec, Dataset, InputSpec, InputType, ModelInput, NamedArray,
};
use serde::Serialize;

use super::summary::file_name;
use crate::dtype::DType;
use crate::error::{Error, ErrorKind, Result};
use crate::graph::{Model, ValueInfo};
use crate::tensor::{Tensor, TensorData};

/// Samples for a model, read batch by batch.
#[derive(Debug)]
pub struct Samples {
    dataset: Dataset,
    batch_size: usize,
    /// What messages call the set.
    place: &'static str,
}

/// A file that data was read from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct DataFile {
    /// The file's name, without its folder.
    pub file: String,
    /// Its length.
    pub size_bytes: u64,
    /// The SHA-256 of its bytes.
    pub sha256: String,
}

/// Some samples, ready to be computed.
#[derive(Debug)]
pub struct SampleBatch<'a> {
    /// The position of the first sample.
    pub first: usize,
    /// One tensor per input.
    pub inputs: Vec<(String, Tensor)>,
    /// One class index per sample, if there are labels.
    pub labels: Option<&'a [u64]>,
}

impl SampleBatch<'_> {
    /// The number of samples.
    pub fn len(&self) -> usize {
        self.inputs.first().and_then(|(_, tensor)| tensor.shape().first().copied()).unwrap_or(0)
    }

    /// Whether there is no sample.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The inputs as [`Engine::run`](crate::engine::Engine::run) takes them.
    pub fn feed(&self) -> Vec<(&str, &Tensor)> {
        self.inputs.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect()
    }
}

impl Samples {
    /// Opens the files of `spec` for the inputs of `model`, and checks what can be checked without reading samples.
    /// Messages begin with `place`.
    ///
    /// # Errors
    /// As [`Dataset::open`]; `Unsupported` for an input whose element type no data has.
    pub fn open(
        spec: &DataSpec,
        inputs: &IndexMap<String, InputSpec>,
        model: &Model,
        batch_size: usize,
        place: &'static str,
    ) -> Result<Self> {
        let model_inputs = model_inputs(model, inputs).map_err(|error| error.within(place))?;
        let dataset = Dataset::open(spec, inputs, &model_inputs)
            .map_err(|error| Error::from(error).within(place))?;
        Ok(Self { dataset, batch_size, place })
    }

    /// The number of samples, at least one.
    pub fn len(&self) -> usize {
        self.dataset.num_samples()
    }

    /// Never: a set without samples is not opened.
    pub fn is_empty(&self) -> bool {
        false
    }

    /// The most samples in a batch.
    pub fn batch_size(&self) -> usize {
        self.dataset.fixed_batch_size().unwrap_or(self.batch_size)
    }

    /// The label of each sample, if there are labels.
    pub fn labels(&self) -> Option<&[u64]> {
        self.dataset.labels()
    }

    /// The samples in their order.
    pub fn batches(&self) -> impl Iterator<Item = Result<SampleBatch<'_>>> {
        self.dataset.batches(self.batch_size).map(|batch| {
            let batch = batch.map_err(|error| Error::from(error).within(self.place))?;
            let Batch { first, inputs, labels } = batch;
            let inputs = inputs
                .into_iter()
                .map(|array| Ok((array.name.clone(), tensor(array)?)))
                .collect::<Result<_>>()?;
            Ok(SampleBatch { first, inputs, labels })
        })
    }

    /// The files that were opened, with their hashes.
    ///
    /// # Errors
    /// `Core` when a file can no longer be read.
    pub fn files(&self) -> Result<Vec<DataFile>> {
        let digests = self.dataset.digests()?;
        Ok(digests
            .into_iter()
            .map(|digest| DataFile {
                file: file_name(&digest.path),
                size_bytes: digest.size_bytes,
                sha256: digest.sha256,
            })
            .collect())
    }

    /// The files that were opened.
    ///
    /// # Errors
    /// As [`Samples::files`].
    pub(crate) fn paths(&self) -> Result<Vec<PathBuf>> {
        Ok(self.dataset.digests()?.into_iter().map(|digest| digest.path).collect())
    }
}

/// What the data must feed.
fn model_inputs(model: &Model, specs: &IndexMap<String, InputSpec>) -> Result<Vec<ModelInput>> {
    let mut problems = Vec::new();
    let mut inputs = Vec::new();
    for ValueInfo { name, dtype, shape } in model.inputs() {
        let stated = specs.get(&name).and_then(|spec| spec.dtype);
        let dtype = match (dtype.and_then(input_type), stated) {
            (Some(dtype), _) | (None, Some(dtype)) => dtype,
            (None, None) => {
                problems.push(match dtype {
                    Some(dtype) => format!("input `{name}` has type {dtype}, which no data can feed"),
                    None => format!(
                        "the model does not say which type input `{name}` has; set `dtype` in [inputs.{name}]"
                    ),
                });
                continue;
            }
        };
        let shape = shape.map(|dims| dims.iter().map(|dim| dim.fixed()).collect());
        inputs.push(ModelInput { name, dtype, shape });
    }
    if problems.is_empty() {
        Ok(inputs)
    } else {
        Err(Error::many(ErrorKind::Unsupported, problems))
    }
}

fn input_type(dtype: DType) -> Option<InputType> {
    let name = match dtype {
        DType::F32 => "f32",
        DType::F16 => "f16",
        DType::BF16 => "bf16",
        DType::F64 => "f64",
        DType::I8 => "i8",
        DType::U8 => "u8",
        DType::I16 => "i16",
        DType::U16 => "u16",
        DType::I32 => "i32",
        DType::I64 => "i64",
        DType::Bool => "bool",
        _ => return None,
    };
    InputType::NAMES.iter().find(|(known, _)| *known == name).map(|(_, known)| *known)
}

fn tensor(array: NamedArray) -> Result<Tensor> {
    let NamedArray { dtype, shape, data, .. } = array;
    let data = match data {
        ArrayData::Float(values) => TensorData::F32(values),
        // The data set keeps integers within the range of the type.
        ArrayData::Integer(values) => match dtype {
            InputType::I8 => TensorData::I8(values.into_iter().map(|x| x as i8).collect()),
            InputType::U8 => TensorData::U8(values.into_iter().map(|x| x as u8).collect()),
            InputType::I16 => TensorData::I16(values.into_iter().map(|x| x as i16).collect()),
            InputType::U16 => TensorData::U16(values.into_iter().map(|x| x as u16).collect()),
            InputType::I32 => TensorData::I32(values.into_iter().map(|x| x as i32).collect()),
            InputType::Bool => TensorData::Bool(values.into_iter().map(|x| x != 0).collect()),
            _ => TensorData::I64(values),
        },
    };
    Tensor::new(shape, data)
}
