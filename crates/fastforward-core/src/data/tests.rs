use std::fs;
use std::io::Write;
use std::path::PathBuf;

use npyz::zip::write::FileOptions;
use npyz::zip::{CompressionMethod, ZipWriter};
use safetensors::{Dtype, tensor::TensorView};

use super::*;

mod reading;
mod refusals;
mod transforms;

/// The bytes of a NumPy array.
fn npy(descr: &str, shape: &str, data: &[u8]) -> Vec<u8> {
    let mut header = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}");
    while !(10 + header.len() + 1).is_multiple_of(64) {
        header.push(' ');
    }
    header.push('\n');
    let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
    bytes.extend((header.len() as u16).to_le_bytes());
    bytes.extend(header.as_bytes());
    bytes.extend(data);
    bytes
}

fn npz(members: &[(&str, Vec<u8>)], method: CompressionMethod) -> Vec<u8> {
    let mut zip = ZipWriter::new(std::io::Cursor::new(vec![]));
    for (name, bytes) in members {
        zip.start_file(*name, FileOptions::default().compression_method(method)).unwrap();
        zip.write_all(bytes).unwrap();
    }
    zip.finish().unwrap().into_inner()
}

fn safetensors(tensors: &[(&str, Dtype, &[usize], &[u8])]) -> Vec<u8> {
    let views = tensors.iter().map(|(name, dtype, shape, data)| {
        (*name, TensorView::new(*dtype, shape.to_vec(), data).unwrap())
    });
    safetensors::serialize(views, None).unwrap()
}

fn le<T: Copy, const N: usize>(values: &[T], bytes: impl Fn(T) -> [u8; N]) -> Vec<u8> {
    values.iter().flat_map(|&value| bytes(value)).collect()
}

fn floats(values: &[f32]) -> Vec<u8> {
    le(values, f32::to_le_bytes)
}

/// A folder with files, and the messages that name them.
struct Files(tempfile::TempDir);

impl Files {
    fn new(files: &[(&str, Vec<u8>)]) -> Self {
        let folder = Self(tempfile::tempdir().unwrap());
        for (name, bytes) in files {
            folder.write(name, bytes);
        }
        folder
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, bytes: &[u8]) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }

    fn spec(&self, name: &str) -> DataSpec {
        DataSpec::new(DataPath::One(self.path(name)))
    }

    /// The message with the folder's name replaced by `.`.
    fn message(&self, error: &Error) -> String {
        error.to_string().replace(&format!("{}", self.0.path().display()), ".")
    }
}

fn input(name: &str) -> ModelInput {
    ModelInput { name: name.to_owned(), dtype: InputType::F32, shape: None }
}

fn shaped(name: &str, shape: &[usize]) -> ModelInput {
    let shape = std::iter::once(None).chain(shape.iter().copied().map(Some)).collect();
    ModelInput { shape: Some(shape), ..input(name) }
}

fn of_type(name: &str, dtype: InputType) -> ModelInput {
    ModelInput { dtype, ..input(name) }
}

fn no_inputs() -> IndexMap<String, InputSpec> {
    IndexMap::new()
}

fn with(name: &str, spec: InputSpec) -> IndexMap<String, InputSpec> {
    [(name.to_owned(), spec)].into()
}

/// Every batch's elements of every input.
fn elements(dataset: &Dataset, batch_size: usize) -> Result<Vec<Vec<ArrayData>>, Error> {
    dataset
        .batches(batch_size)
        .map(|batch| batch.map(|batch| batch.inputs.into_iter().map(|input| input.data).collect()))
        .collect()
}

fn float(values: &[f32]) -> Vec<ArrayData> {
    vec![ArrayData::Float(values.to_vec())]
}

/// Opens `data.safetensors` with f32 `images` [2, 4], f32 `more` [2, 3], u8 `labels` [2], and says why that fails.
#[track_caller]
fn refused(
    labels: Option<&str>,
    inputs: &IndexMap<String, InputSpec>,
    model: &[ModelInput],
    expected: &str,
) {
    let files = Files::new(&[(
        "data.safetensors",
        safetensors(&[
            ("images", Dtype::F32, &[2, 4], &floats(&[0.0; 8])),
            ("more", Dtype::F32, &[2, 3], &floats(&[0.0; 6])),
            ("short", Dtype::F32, &[1], &floats(&[0.0])),
            ("scalar", Dtype::F32, &[], &floats(&[0.0])),
            ("labels", Dtype::U8, &[2], &[0, 1]),
            ("negative", Dtype::I8, &[2], &[0, 255]),
            ("odd", Dtype::F8_E4M3, &[2], &[0, 0]),
        ]),
    )]);
    let spec = DataSpec { labels: labels.map(str::to_owned), ..files.spec("data.safetensors") };
    let error = Dataset::open(&spec, inputs, model).unwrap_err();
    assert_eq!(files.message(&error), expected);
    assert_eq!(error.kind(), ErrorKind::InvalidData);
}
