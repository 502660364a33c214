//! Where samples come from: calibration and evaluation data in files.
//!
//! A [`Dataset`] binds the tensors of some files to the inputs of a model and hands them out in batches. Headers are
//! read and everything that can be checked without reading elements is checked when it is opened; elements are read
//! batch by batch, in the order of the files, so memory is bounded by the batch.
//!
//! ```
//! use fastforward_core::data::{DataPath, DataSpec, Dataset, InputSpec, InputType, ModelInput};
//! # let folder = tempfile::tempdir()?;
//! # let file = folder.path().join("images.npy");
//! # let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
//! # let header = b"{'descr': '|u1', 'fortran_order': False, 'shape': (5, 2, 2)}\n";
//! # bytes.extend((header.len() as u16).to_le_bytes());
//! # bytes.extend(header);
//! # bytes.extend(0..20);
//! # std::fs::write(&file, bytes)?;
//! let spec = DataSpec::new(DataPath::One(file)); // u8 [5, 2, 2]
//! let input = InputSpec { divide_by: Some(255.0), reshape: Some(vec![1, 2, 2]), ..InputSpec::default() };
//! let model_input = ModelInput {
//!     name: "image".to_owned(),
//!     dtype: InputType::F32,
//!     shape: Some(vec![None, Some(1), Some(2), Some(2)]),
//! };
//! let dataset = Dataset::open(&spec, &[("image".to_owned(), input)].into(), &[model_input])?;
//! let shapes: Vec<_> = dataset.batches(2).map(|batch| batch.map(|batch| batch.inputs[0].shape.clone())).collect::<Result<_, _>>()?;
//! assert_eq!(shapes, [[2, 1, 2, 2], [2, 1, 2, 2], [1, 1, 2, 2]]);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod element;
mod input;
mod npy;
mod npz;
mod safetensors_file;
mod source;
mod tensor;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::ops::Range;
use std::path::{Path, PathBuf};

use indexmap::IndexMap;
use mpath::suggest::nearest;

pub use element::{ElementType, InputType};
pub use input::{InputSpec, ModelInput};
pub use source::{DataPath, EachFile, FileDigest};
pub use tensor::StoredTensor;

use crate::{Error, ErrorKind};
use input::BoundInput;
use source::Source;
use tensor::Place;

/// Which samples to read.
#[derive(Clone, Debug, PartialEq)]
pub struct DataSpec {
    /// The files.
    pub data: DataPath,
    /// What each file of a folder holds.
    pub each_file: EachFile,
    /// The tensor that holds one class index per sample.
    pub labels: Option<String>,
    /// How many samples to leave out at the beginning.
    pub skip: usize,
    /// How many samples to read after those; `None` for all.
    pub samples: Option<usize>,
}

impl DataSpec {
    /// All samples, without labels.
    pub fn new(data: DataPath) -> Self {
        Self { data, each_file: EachFile::Sample, labels: None, skip: 0, samples: None }
    }
}

/// Samples for a model, in a fixed order: that of the files.
#[derive(Clone, Debug)]
pub struct Dataset {
    inputs: Vec<BoundInput>,
    labels: Option<Vec<u64>>,
    /// The samples of the files that belong to the set.
    samples: Range<usize>,
    fixed_batch_size: Option<usize>,
    files: BTreeSet<PathBuf>,
}

/// Some consecutive samples.
#[derive(Clone, Debug, PartialEq)]
pub struct Batch<'a> {
    /// The position of the first sample in the set.
    pub first: usize,
    /// One array per input of the model, in the model's order; the first axis counts the samples.
    pub inputs: Vec<NamedArray>,
    /// One class index per sample, if the set has labels.
    pub labels: Option<&'a [u64]>,
}

/// An input array.
#[derive(Clone, Debug, PartialEq)]
pub struct NamedArray {
    /// The model's input.
    pub name: String,
    /// The element type the model takes.
    pub dtype: InputType,
    /// One extent per dimension.
    pub shape: Vec<usize>,
    /// The elements in row-major order.
    pub data: ArrayData,
}

/// The elements of an input array.
#[derive(Clone, Debug, PartialEq)]
pub enum ArrayData {
    /// For every floating-point input type. Finite.
    Float(Vec<f32>),
    /// For every integer input type and `bool`. Within the type's range.
    Integer(Vec<i64>),
}

impl Dataset {
    /// Opens the files and binds their tensors to the inputs of a model.
    ///
    /// An input is fed by the tensor that its entry in `inputs` names, else by the tensor of the same name, else, for the
    /// one input that is left, by the one tensor that is left.
    ///
    /// # Errors
    /// [`ErrorKind::Io`] when a file cannot be read; [`ErrorKind::InvalidData`] when one is malformed or truncated, a
    /// tensor is missing or has a type or shape that does not fit, there is no sample, or the labels do not fit the
    /// samples. Everything that is wrong is named.
    pub fn open(
        spec: &DataSpec,
        inputs: &IndexMap<String, InputSpec>,
        model_inputs: &[ModelInput],
    ) -> Result<Self, Error> {
        let source = Source::open(&spec.data, spec.each_file)?;
        let mut problems = unknown_inputs(inputs, model_inputs);
        let no_spec = InputSpec::default();
        let mut bound = vec![];
        for (input, found) in
            model_inputs.iter().zip(bind(&source, spec.labels.as_deref(), inputs, model_inputs))
        {
            let input_spec = inputs.get(&input.name).unwrap_or(&no_spec);
            match found.and_then(|tensor| BoundInput::new(input, input_spec, tensor.clone())) {
                Ok(input) => bound.push(input),
                Err(more) => problems.extend(more),
            }
        }
        let label_tensor = match spec.labels.as_deref().map(|name| find(&source, name)).transpose()
        {
            Ok(tensor) => tensor,
            Err(what) => {
                problems.push(format!("labels: {what}"));
                None
            }
        };
        let fail = |problems: &[String]| {
            Error::of_problems(ErrorKind::InvalidData, "problems with the data", problems)
        };
        if !problems.is_empty() {
            return Err(fail(&problems));
        }

        let available = match bound.first() {
            Some(first) => first.tensor.num_samples(),
            None => {
                return Err(fail(&[
                    "the model takes no input, so there is nothing to feed".to_owned()
                ]));
            }
        };
        for other in &bound[1..] {
            let count = other.tensor.num_samples();
            if count != available {
                problems.push(format!(
                    "{} has {count} samples, {} has {available}",
                    other.tensor, bound[0].tensor
                ));
            }
        }
        if let Some(labels) = label_tensor
            && labels.num_samples() != available
        {
            problems.push(format!(
                "labels: {labels} has {} labels for {available} samples of {}",
                labels.num_samples(),
                bound[0].tensor
            ));
        }
        match select(spec, available) {
            Ok(samples) if problems.is_empty() => {
                let labels =
                    label_tensor.map(|tensor| read_labels(tensor, samples.clone())).transpose()?;
                let fixed_batch_size = fixed_batch_size(model_inputs, samples.len())?;
                let files = bound
                    .iter()
                    .map(|input| &input.tensor)
                    .chain(label_tensor)
                    .flat_map(files_of)
                    .map(Path::to_path_buf)
                    .collect();
                Ok(Self { inputs: bound, labels, samples, fixed_batch_size, files })
            }
            Ok(_) => Err(fail(&problems)),
            Err(what) => {
                problems.insert(0, format!("{}: {what}", source.name));
                Err(fail(&problems))
            }
        }
    }

    /// The number of samples, at least one.
    pub fn num_samples(&self) -> usize {
        self.samples.len()
    }

    /// One class index per sample, if the set has labels.
    pub fn labels(&self) -> Option<&[u64]> {
        self.labels.as_deref()
    }

    /// The batch size that the model demands, if it does.
    pub fn fixed_batch_size(&self) -> Option<usize> {
        self.fixed_batch_size
    }

    /// The samples in batches of this size, or of the model's [fixed size](Self::fixed_batch_size); the last batch may
    /// be smaller. A size of zero counts as one.
    ///
    /// Each batch is read when the iterator reaches it. An error ends the iteration: [`ErrorKind::InvalidData`] for NaN
    /// and infinity and for integers that the input's type does not hold, with the sample and the element.
    pub fn batches(&self, batch_size: usize) -> Batches<'_> {
        let batch_size = self.fixed_batch_size.unwrap_or(batch_size).max(1);
        Batches { dataset: self, batch_size, next: 0 }
    }

    /// The files that were opened for the set, with their hashes, sorted by path.
    ///
    /// # Errors
    /// [`ErrorKind::Io`] when a file can no longer be read.
    pub fn digests(&self) -> Result<Vec<FileDigest>, Error> {
        self.files.iter().map(|path| FileDigest::of(path)).collect()
    }
}

/// The batches of a [`Dataset`].
#[derive(Clone, Debug)]
pub struct Batches<'a> {
    dataset: &'a Dataset,
    batch_size: usize,
    next: usize,
}

impl<'a> Iterator for Batches<'a> {
    type Item = Result<Batch<'a>, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        let Dataset { inputs, labels, samples, .. } = self.dataset;
        let first = self.next;
        if first >= samples.len() {
            return None;
        }
        let last = first.saturating_add(self.batch_size).min(samples.len());
        let stored = samples.start + first..samples.start + last;
        let read: Result<Vec<NamedArray>, Error> =
            inputs.iter().map(|input| input.read(stored.clone())).collect();
        self.next = if read.is_ok() { last } else { samples.len() };
        Some(read.map(|inputs| Batch {
            first,
            inputs,
            labels: labels.as_ref().map(|labels| &labels[first..last]),
        }))
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let left = (self.dataset.num_samples() - self.next).div_ceil(self.batch_size);
        (usize::from(left > 0), Some(left))
    }
}

/// The tensors of one data file or folder, as a listing shows them.
///
/// # Errors
/// As for [`Dataset::open`].
pub fn stored_tensors(data: &DataPath, each_file: EachFile) -> Result<Vec<StoredTensor>, Error> {
    Source::open(data, each_file).map(|source| source.tensors)
}

fn unknown_inputs(inputs: &IndexMap<String, InputSpec>, model: &[ModelInput]) -> Vec<String> {
    let known = || model.iter().map(|input| input.name.as_str());
    inputs
        .keys()
        .filter(|name| !known().any(|known| known == *name))
        .map(|name| {
            let hint = match nearest(name, known()) {
                Some(near) => format!("; did you mean `{near}`?"),
                None => {
                    let names: Vec<String> = known().map(|known| format!("`{known}`")).collect();
                    format!("; it has {}", names.join(", "))
                }
            };
            format!("[inputs.{name}]: the model has no input `{name}`{hint}")
        })
        .collect()
}

/// The tensor that feeds each input, or why none does.
fn bind<'s>(
    source: &'s Source,
    labels: Option<&str>,
    inputs: &IndexMap<String, InputSpec>,
    model_inputs: &[ModelInput],
) -> Vec<Result<&'s StoredTensor, Vec<String>>> {
    let mut found: Vec<Option<Result<&StoredTensor, String>>> = model_inputs
        .iter()
        .map(|input| match inputs.get(&input.name).and_then(|spec| spec.tensor.as_deref()) {
            Some(named) => Some(find(source, named)),
            None => source.tensors.iter().find(|tensor| tensor.name == input.name).map(Ok),
        })
        .collect();
    let taken: Vec<&str> = found
        .iter()
        .filter_map(|found| found.as_ref()?.as_ref().ok().map(|tensor| tensor.name.as_str()))
        .chain(labels)
        .collect();
    let left: Vec<&StoredTensor> = source
        .tensors
        .iter()
        .filter(|tensor| !taken.contains(&tensor.name.as_str()) && !tensor.shape.is_empty())
        .collect();
    if found.iter().filter(|found| found.is_none()).count() == 1
        && let [only] = left[..]
        && let Some(open) = found.iter_mut().find(|found| found.is_none())
    {
        *open = Some(Ok(only));
    }
    found
        .into_iter()
        .zip(model_inputs)
        .map(|(found, input)| {
            let name = &input.name;
            found
                .unwrap_or_else(|| {
                    Err(format!(
                        "no tensor feeds it; {}; name one with `tensor = \"...\"` in [inputs.{name}]",
                        source.holds()
                    ))
                })
                .map_err(|what| vec![format!("input `{name}`: {what}")])
        })
        .collect()
}

fn find<'s>(source: &'s Source, name: &str) -> Result<&'s StoredTensor, String> {
    source.tensors.iter().find(|tensor| tensor.name == name).ok_or_else(|| {
        let near = nearest(name, source.tensors.iter().map(|tensor| tensor.name.as_str()))
            .map_or_else(String::new, |near| format!("; did you mean `{near}`?"));
        format!("no tensor `{name}`; {}{near}", source.holds())
    })
}

fn select(spec: &DataSpec, available: usize) -> Result<Range<usize>, String> {
    let DataSpec { skip, samples, .. } = *spec;
    if available == 0 {
        return Err("it holds no sample".to_owned());
    }
    let left = available.saturating_sub(skip);
    match samples {
        Some(0) => Err("`samples = 0` leaves no sample".to_owned()),
        _ if left == 0 => Err(format!("skipping {skip} of {available} samples leaves none")),
        Some(wanted) if wanted > left => Err(match skip {
            0 => format!("{wanted} samples are asked for, it holds {available}"),
            _ => format!("{wanted} samples after {skip} are asked for, it holds {available}"),
        }),
        wanted => Ok(skip..skip + wanted.unwrap_or(left)),
    }
}

fn fixed_batch_size(inputs: &[ModelInput], samples: usize) -> Result<Option<usize>, Error> {
    let fixed = inputs.iter().find_map(|input| {
        let extent = input.shape.as_ref()?.first().copied().flatten()?;
        Some((&input.name, extent))
    });
    let Some((name, size)) = fixed else { return Ok(None) };
    if size == 0 || !samples.is_multiple_of(size) {
        return Err(Error::new(
            ErrorKind::InvalidData,
            format!(
                "input `{name}` takes batches of exactly {size}, and {samples} samples are no multiple of it; set \
                 `samples`"
            ),
        ));
    }
    Ok(Some(size))
}

fn read_labels(tensor: &StoredTensor, samples: Range<usize>) -> Result<Vec<u64>, Error> {
    let wrong =
        |what: String| Error::new(ErrorKind::InvalidData, format!("labels: {tensor} {what}"));
    if tensor.sample_shape().iter().any(|&extent| extent != 1) {
        return Err(wrong(format!(
            "has shape {:?}; one class index per sample is needed",
            tensor.shape
        )));
    }
    let first = samples.start;
    let values = tensor.element.to_i128(&tensor.read(samples)?).ok_or_else(|| {
        wrong(format!("holds {}; class indices must be integers", tensor.element))
    })?;
    let mut labels = Vec::with_capacity(values.len());
    for (at, value) in values.into_iter().enumerate() {
        let label = u64::try_from(value).map_err(|_| {
            wrong(format!("has the negative label {value} at sample {}", first + at))
        })?;
        labels.push(label);
    }
    Ok(labels)
}

fn files_of(tensor: &StoredTensor) -> impl Iterator<Item = &Path> {
    tensor.segments.iter().map(|segment| match &segment.place {
        Place::File { path, .. } => &**path,
        Place::Memory(_) => tensor.file.as_path(),
    })
}
