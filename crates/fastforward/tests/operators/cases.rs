//! Reading conformance/operators.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};
use serde::Deserialize;
use serde_json::{Map, Value};

/// One operator on given operands and attributes.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Case {
    pub op: String,
    pub id: String,
    pub group: String,
    pub operands: BTreeMap<String, Keys>,
    pub attributes: Map<String, Value>,
    pub result: String,
    pub tolerance: String,
    #[serde(default)]
    pub updated: BTreeMap<String, String>,
    pub upstream: Option<String>,
    #[serde(default)]
    pub gradients: BTreeMap<String, Keys>,
    pub gradient_tolerance: Option<String>,
}

/// The tensor of an operand, or the tensors of a sequence.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
pub enum Keys {
    One(String),
    Several(Vec<String>),
}

impl Keys {
    pub fn list(&self) -> &[String] {
        match self {
            Self::One(key) => std::slice::from_ref(key),
            Self::Several(keys) => keys,
        }
    }
}

/// Every case of every group.
pub fn all() -> Vec<Case> {
    #[derive(Deserialize)]
    struct File {
        cases: Vec<Case>,
    }
    let file: File = read_json("cases.json");
    file.cases
}

/// One JSON file of the folder.
pub fn read_json<T: serde::de::DeserializeOwned>(name: &str) -> T {
    let path = folder().join(name);
    let text = std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    serde_json::from_slice(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// The tensors of one file.
pub struct Tensors(HashMap<String, Tensor>);

impl Tensors {
    pub fn read(name: &str) -> Self {
        let path = folder().join(format!("{name}.safetensors"));
        let tensors = candle_core::safetensors::load(&path, &Device::Cpu);
        Self(tensors.unwrap_or_else(|e| panic!("{}: {e}", path.display())))
    }

    #[track_caller]
    pub fn get(&self, key: &str) -> &Tensor {
        self.0.get(key).unwrap_or_else(|| panic!("no tensor `{key}`"))
    }
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../conformance/operators")
}
