//! `weights.safetensors`: the elements of every parameter.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::path::Path;

use candle_core::{DType, Tensor};
use safetensors::tensor::TensorInfo;
use safetensors::{Dtype, SafeTensors};

use super::manifest::{SavedWeight, WEIGHTS};
use crate::files::write_whole;
use crate::module::{Module, named_shared_parameters};
use crate::mpath::suggest;
use crate::nn::Param;
use crate::tensor::Result;
use crate::{Error, ErrorKind};

/// A parameter of a model, with all its names in declaration order.
pub(super) struct Weight<'m> {
    names: Vec<String>,
    param: &'m Param,
}

/// The parameters of a model, each once, in declaration order.
///
/// Fails naming every parameter that is no [`Param`], every type that cannot be stored, and every name that two have.
pub(super) fn of_model(model: &dyn Module) -> Result<Vec<Weight<'_>>> {
    let (mut weights, mut problems) = (Vec::new(), Vec::new());
    let mut taken = BTreeSet::new();
    for entry in named_shared_parameters(model) {
        for name in &entry.names {
            if !taken.insert(name.clone()) || name == "__metadata__" {
                problems.push(format!("`{name}` is no name that tells a parameter from others"));
            }
        }
        let Some(param) = entry.parameter.downcast_ref::<Param>() else {
            problems
                .push(format!("`{}` is no `nn::Param`, whose elements are known", entry.name()));
            continue;
        };
        if stored_dtype(param.dtype()).is_none() {
            problems.push(format!("`{}` has the type {:?}", entry.name(), param.dtype()));
        }
        weights.push(Weight { names: entry.names, param });
    }
    if problems.is_empty() {
        return Ok(weights);
    }
    let summary = "parameters have no saved form";
    Err(Error::of_problems(ErrorKind::Unsupported, summary, &problems).into())
}

impl Weight<'_> {
    pub(super) fn saved(&self) -> SavedWeight {
        SavedWeight {
            names: self.names.clone(),
            dtype: dtype_name(self.param.dtype()),
            shape: self.param.dims().to_vec(),
        }
    }
}

/// Writes the elements of each parameter under its first name, one after the other: larger types first, so that each
/// tensor starts at a multiple of its element's size, then by name.
pub(super) fn write(weights: &[Weight<'_>], path: &Path) -> std::result::Result<(), Error> {
    let size = |weight: &Weight<'_>| weight.param.dtype().size_in_bytes();
    let mut order: Vec<&Weight<'_>> = weights.iter().collect();
    order.sort_by(|a, b| size(b).cmp(&size(a)).then_with(|| a.names[0].cmp(&b.names[0])));
    let mut header = serde_json::Map::new();
    let mut end = 0;
    for weight in &order {
        let start = end;
        end += weight.param.dims().iter().product::<usize>() * size(weight);
        let info = TensorInfo {
            dtype: weight.param.dtype().into(),
            shape: weight.param.dims().to_vec(),
            data_offsets: (start, end),
        };
        let info = serde_json::to_value(info).map_err(|source| {
            Error::new(ErrorKind::State, source.to_string()).with_source(source)
        })?;
        header.insert(weight.names[0].clone(), info);
    }
    let mut header = serde_json::Value::Object(header).to_string();
    while !header.len().is_multiple_of(8) {
        header.push(' ');
    }
    write_whole(path, |out| {
        out.write_all(&(header.len() as u64).to_le_bytes())?;
        out.write_all(header.as_bytes())?;
        for weight in &order {
            out.write_all(&elements(&weight.param.tensor()).map_err(io::Error::other)?)?;
        }
        Ok(())
    })
}

/// The saved values for each parameter of a model, checked and on its device, and what does not fit.
pub(super) struct Values<'m> {
    pub(super) values: Vec<(&'m Param, Tensor)>,
    pub(super) problems: Vec<String>,
}

/// Compares what was saved with what the model has.
///
/// Fails when the file is damaged, or does not hold what the manifest says.
pub(super) fn read<'m>(
    weights: Vec<Weight<'m>>,
    saved: &[SavedWeight],
    bytes: &[u8],
) -> Result<Values<'m>> {
    let file = SafeTensors::deserialize(bytes)
        .map_err(|e| Error::new(ErrorKind::State, format!("`{WEIGHTS}`: {e}")).with_source(e))?;
    let mut problems = check_file(saved, &file);
    let by_name: HashMap<&str, &SavedWeight> = saved
        .iter()
        .flat_map(|one| one.names.iter().map(move |name| (name.as_str(), one)))
        .collect();
    let known: BTreeSet<&str> =
        weights.iter().flat_map(|weight| &weight.names).map(String::as_str).collect();
    let unexpected: BTreeSet<&str> =
        by_name.keys().copied().filter(|name| !known.contains(name)).collect();
    let missing: BTreeSet<&str> =
        known.iter().copied().filter(|name| !by_name.contains_key(name)).collect();
    let near = |name: &str, among: &BTreeSet<&str>, what: &str| {
        let nearest = suggest::nearest(name, among.iter().copied());
        nearest.map_or_else(String::new, |nearest| format!("; {what} `{nearest}`"))
    };
    for name in &missing {
        let hint = near(name, &unexpected, "the file has");
        problems.push(format!("missing: the model's parameter `{name}` is not in the file{hint}"));
    }
    for name in &unexpected {
        let hint = near(name, &missing, "the model has");
        problems.push(format!("unexpected: the model has no parameter `{name}`{hint}"));
    }
    let mut tied: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for weight in &weights {
        let owners: BTreeSet<&str> = weight
            .names
            .iter()
            .filter_map(|name| by_name.get(name.as_str()))
            .map(|one| one.names[0].as_str())
            .collect();
        if owners.len() > 1 {
            problems.push(format!(
                "`{}` are one tied parameter in the model, and {} in the file",
                weight.names.join("`, `"),
                owners.len()
            ));
        }
        for owner in owners {
            tied.entry(owner).or_default().push(&weight.names[0]);
        }
    }
    for (owner, parameters) in tied.iter().filter(|(_, parameters)| parameters.len() > 1) {
        problems.push(format!(
            "`{}` are {} parameters in the model, and one tied parameter, `{owner}`, in the file",
            parameters.join("`, `"),
            parameters.len()
        ));
    }
    let mut values = Vec::with_capacity(weights.len());
    for weight in &weights {
        let Some(one) = weight.names.iter().find_map(|name| by_name.get(name.as_str())) else {
            continue;
        };
        let expected = weight.saved();
        if (&one.dtype, &one.shape) != (&expected.dtype, &expected.shape) {
            problems.push(format!(
                "`{}` is {} {:?} in the file, {} {:?} in the model",
                weight.names[0], one.dtype, one.shape, expected.dtype, expected.shape
            ));
        } else if problems.is_empty() {
            let view = file.tensor(&one.names[0]).map_err(|source| {
                Error::new(ErrorKind::State, format!("`{WEIGHTS}`: {source}")).with_source(source)
            })?;
            let device = weight.param.tensor().device().clone();
            let (dtype, shape) = (weight.param.dtype(), weight.param.dims());
            values
                .push((weight.param, Tensor::from_raw_buffer(view.data(), dtype, shape, &device)?));
        }
    }
    Ok(Values { values, problems })
}

/// Whether the file holds exactly what the manifest says, each name once.
fn check_file(saved: &[SavedWeight], file: &SafeTensors<'_>) -> Vec<String> {
    let mut problems = Vec::new();
    let mut taken = BTreeSet::new();
    let mut stored = BTreeSet::new();
    for one in saved {
        let Some(first) = one.names.first() else {
            problems.push("the manifest lists a parameter without a name".to_owned());
            continue;
        };
        for name in one.names.iter().filter(|name| !taken.insert(name.as_str())) {
            problems.push(format!("the manifest lists `{name}` twice"));
        }
        stored.insert(first.as_str());
        match file.tensor(first) {
            Ok(view)
                if safetensors_name(view.dtype()) == one.dtype && view.shape() == one.shape => {}
            Ok(view) => problems.push(format!(
                "`{first}` is {} {:?} in `{WEIGHTS}`, {} {:?} in the manifest",
                safetensors_name(view.dtype()),
                view.shape(),
                one.dtype,
                one.shape
            )),
            Err(_) => {
                problems.push(format!("`{WEIGHTS}` lacks `{first}`, which the manifest lists"))
            }
        }
    }
    let names: BTreeSet<&str> = file.names().into_iter().collect();
    for name in names.difference(&stored) {
        problems.push(format!("`{WEIGHTS}` holds `{name}`, which the manifest does not list"));
    }
    problems
}

/// The type under which elements are stored, for those that can be.
fn stored_dtype(dtype: DType) -> Option<Dtype> {
    match dtype {
        DType::U8
        | DType::U32
        | DType::I16
        | DType::I32
        | DType::I64
        | DType::BF16
        | DType::F16
        | DType::F32
        | DType::F64 => Some(dtype.into()),
        _ => None,
    }
}

fn dtype_name(dtype: DType) -> String {
    safetensors_name(dtype.into())
}

/// `F32`: safetensors has names for its types where it writes them, only.
fn safetensors_name(dtype: Dtype) -> String {
    format!("{dtype:?}")
}

/// The elements of a tensor, little-endian, row-major.
fn elements(tensor: &Tensor) -> Result<Vec<u8>> {
    let tensor = tensor.to_device(&candle_core::Device::Cpu)?.flatten_all()?;
    macro_rules! bytes {
        ($ty:ty) => {
            tensor.to_vec1::<$ty>()?.into_iter().flat_map(|x| x.to_le_bytes()).collect()
        };
    }
    Ok(match tensor.dtype() {
        DType::U8 => tensor.to_vec1::<u8>()?,
        DType::U32 => bytes!(u32),
        DType::I16 => bytes!(i16),
        DType::I32 => bytes!(i32),
        DType::I64 => bytes!(i64),
        DType::BF16 => bytes!(half::bf16),
        DType::F16 => bytes!(half::f16),
        DType::F32 => bytes!(f32),
        DType::F64 => bytes!(f64),
        other => {
            let text = format!("elements of type {other:?} cannot be stored");
            return Err(Error::new(ErrorKind::Unsupported, text).into());
        }
    })
}
