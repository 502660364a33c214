//! Reading the golden cases.

use std::collections::HashMap;
use std::path::PathBuf;

use serde_json::Value;

/// The folder that holds the cases.
pub fn folder() -> PathBuf {
    match std::env::var_os("FF_GOLDEN_DIR") {
        Some(folder) => folder.into(),
        None => PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../conformance/golden")),
    }
}

/// One family of cases.
pub struct Family {
    /// The whole file: family-wide extras stand beside the cases.
    pub file: Value,
    tensors: HashMap<String, Tensor>,
}

/// A tensor of a case.
#[derive(Clone, Debug, PartialEq)]
pub struct Tensor {
    pub shape: Vec<usize>,
    pub data: Numbers,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Numbers {
    F32(Vec<f32>),
    I32(Vec<i32>),
}

impl Tensor {
    #[track_caller]
    pub fn f32(&self) -> &[f32] {
        match &self.data {
            Numbers::F32(values) => values,
            Numbers::I32(_) => panic!("expected floats"),
        }
    }

    #[track_caller]
    pub fn i32(&self) -> &[i32] {
        match &self.data {
            Numbers::I32(values) => values,
            Numbers::F32(_) => panic!("expected integers"),
        }
    }
}

impl Family {
    /// Reads `<name>.json` and its tensor file, if it names one.
    pub fn read(name: &str) -> Self {
        let folder = folder();
        let path = folder.join(format!("{name}.json"));
        let text = std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let file: Value =
            serde_json::from_slice(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let mut tensors = HashMap::new();
        if let Some(tensor_file) = file["tensor_file"].as_str() {
            let bytes = std::fs::read(folder.join(tensor_file)).expect("the tensor file is there");
            let parsed = safetensors::SafeTensors::deserialize(&bytes).expect("is safetensors");
            for (name, view) in parsed.iter() {
                let words = view.data().as_chunks::<4>().0;
                let data = match view.dtype() {
                    safetensors::Dtype::F32 => {
                        Numbers::F32(words.iter().map(|word| f32::from_le_bytes(*word)).collect())
                    }
                    safetensors::Dtype::I32 => {
                        Numbers::I32(words.iter().map(|word| i32::from_le_bytes(*word)).collect())
                    }
                    other => panic!("{name}: {other:?}"),
                };
                tensors.insert(name.to_owned(), Tensor { shape: view.shape().to_vec(), data });
            }
        }
        let family = Self { file, tensors };
        assert!(!family.cases().is_empty(), "{}: no cases", path.display());
        family
    }

    pub fn cases(&self) -> &[Value] {
        self.file["cases"].as_array().expect("a list of cases")
    }

    /// The tensor `name` of a case, if it has one.
    pub fn tensor(&self, case: &Value, name: &str) -> Option<&Tensor> {
        self.tensors.get(&format!("{}/{name}", id(case)))
    }
}

/// The name of a case.
pub fn id(case: &Value) -> &str {
    case["id"].as_str().expect("every case has an id")
}

/// A list of `f32`, where infinities and NaN are text.
pub fn floats(value: &Value) -> Vec<f32> {
    let number = |value: &Value| match value {
        Value::String(text) => match text.as_str() {
            "inf" => f32::INFINITY,
            "-inf" => f32::NEG_INFINITY,
            "nan" => f32::NAN,
            other => panic!("not a number: {other}"),
        },
        value => value.as_f64().expect("a number") as f32,
    };
    value.as_array().expect("a list").iter().map(number).collect()
}

/// A list of integers.
pub fn integers<T: TryFrom<i64>>(value: &Value) -> Vec<T> {
    let integer = |value: &Value| value.as_i64().and_then(|n| T::try_from(n).ok());
    value.as_array().expect("a list").iter().map(|v| integer(v).expect("an integer")).collect()
}

/// A list of texts.
pub fn texts(value: &Value) -> Vec<&str> {
    value.as_array().expect("a list").iter().map(|text| text.as_str().expect("a text")).collect()
}
