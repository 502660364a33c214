//! Values on their way into the engine and out of it.

use std::collections::HashMap;
use std::ops::Range;

use rten::Value;
use rten_tensor::Layout;

use super::BatchInput;
use crate::dtype::DType;
use crate::error::{Error, ErrorKind, Result};
use crate::graph::{Dim, ShapeText, ValueInfo};
use crate::tensor::{Tensor, TensorData};

/// Compares what is fed with what the graph states; reports every difference.
pub(super) fn check_inputs(stated: &[ValueInfo], fed: &[(&str, &Tensor)]) -> Result<()> {
    let mut problems = Vec::new();
    let names: Vec<&str> = stated.iter().map(|info| info.name.as_str()).collect();
    for (position, (name, _)) in fed.iter().enumerate() {
        if !names.contains(name) {
            problems.push(format!("the graph has no input `{name}`, expected {}", list(&names)));
        }
        if fed[..position].iter().any(|(other, _)| other == name) {
            problems.push(format!("input `{name}` is given twice"));
        }
    }
    let mut symbols: HashMap<&str, (usize, &str)> = HashMap::new();
    for info in stated {
        let Some((_, tensor)) = fed.iter().find(|(name, _)| *name == info.name) else {
            problems.push(format!("input `{}` is missing", info.name));
            continue;
        };
        if let Some(expected) = info.dtype
            && !accepts(expected, tensor.dtype())
        {
            problems.push(format!(
                "input `{}` has type {}, expected {expected}",
                info.name,
                tensor.dtype()
            ));
        }
        let Some(dims) = &info.shape else { continue };
        let fits = dims.len() == tensor.shape().len()
            && dims
                .iter()
                .zip(tensor.shape())
                .all(|(dim, &size)| dim.fixed().is_none_or(|n| n == size));
        if !fits {
            problems.push(format!(
                "input `{}` has shape {:?}, expected {}",
                info.name,
                tensor.shape(),
                ShapeText(Some(dims))
            ));
            continue;
        }
        for (dim, &size) in dims.iter().zip(tensor.shape()) {
            let Dim::Symbolic(symbol) = dim else { continue };
            let &mut (known, first) = symbols.entry(symbol).or_insert((size, &info.name));
            if known != size {
                problems.push(format!(
                    "inputs `{first}` and `{}` have {known} and {size} for the axis `{symbol}`, expected the same",
                    info.name
                ));
            }
        }
    }
    if problems.is_empty() { Ok(()) } else { Err(Error::many(ErrorKind::Input, problems)) }
}

/// Whether a tensor of type `found` can be fed where the graph states `expected`.
fn accepts(expected: DType, found: DType) -> bool {
    let held_as = match expected {
        DType::F16 | DType::BF16 => DType::F32,
        DType::I2 | DType::I4 => DType::I8,
        DType::U2 | DType::U4 => DType::U8,
        other => other,
    };
    found == held_as || (held_as == DType::F64 && found == DType::F32)
}

fn list(names: &[&str]) -> String {
    match names {
        [] => "none".to_owned(),
        names => names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", "),
    }
}

/// `tensor` in a type of the engine: 64-bit integers must fit 32 bits.
pub(super) fn to_value(name: &str, tensor: &Tensor, as_float: bool) -> Result<Value> {
    let shape = tensor.shape();
    if as_float {
        return pack(name, shape, tensor.to_f32());
    }
    match tensor.data() {
        TensorData::F32(values) => pack(name, shape, values.clone()),
        TensorData::F64(values) => pack(name, shape, values.iter().map(|&x| x as f32).collect()),
        TensorData::I8(values) => pack(name, shape, values.clone()),
        TensorData::U8(values) => pack(name, shape, values.clone()),
        TensorData::I16(values) => {
            pack(name, shape, values.iter().map(|&x| i32::from(x)).collect())
        }
        TensorData::U16(values) => {
            pack(name, shape, values.iter().map(|&x| i32::from(x)).collect())
        }
        TensorData::I32(values) => pack(name, shape, values.clone()),
        TensorData::Bool(values) => {
            pack(name, shape, values.iter().map(|&x| i32::from(x)).collect())
        }
        TensorData::I64(values) => {
            let narrow: Vec<i32> = values.iter().filter_map(|&x| i32::try_from(x).ok()).collect();
            if narrow.len() != values.len() {
                return Err(Error::new(
                    ErrorKind::Input,
                    format!(
                        "input `{name}` holds an integer beyond 32 bits, which the execution engine lacks"
                    ),
                ));
            }
            pack(name, shape, narrow)
        }
    }
}

fn pack<T>(name: &str, shape: &[usize], values: Vec<T>) -> Result<Value>
where
    Value: From<rten_tensor::Tensor<T>>,
{
    Value::from_shape(shape, values)
        .map_err(|error| Error::new(ErrorKind::Input, format!("input `{name}`: {error}")))
}

/// The engine's `value` in the type that the file states.
pub(super) fn from_value(name: &str, value: Value, stated: Option<DType>) -> Result<Tensor> {
    let (shape, data) = match value {
        Value::FloatTensor(tensor) => {
            (tensor.shape().to_vec(), TensorData::F32(tensor.into_data()))
        }
        Value::Int32Tensor(tensor) => {
            (tensor.shape().to_vec(), TensorData::I32(tensor.into_data()))
        }
        Value::Int8Tensor(tensor) => (tensor.shape().to_vec(), TensorData::I8(tensor.into_data())),
        Value::UInt8Tensor(tensor) => (tensor.shape().to_vec(), TensorData::U8(tensor.into_data())),
        _ => {
            return Err(Error::new(ErrorKind::Unsupported, format!("value `{name}` is no tensor")));
        }
    };
    let data = match (data, stated) {
        (TensorData::I32(values), Some(DType::I64)) => {
            TensorData::I64(values.into_iter().map(i64::from).collect())
        }
        (TensorData::I32(values), Some(DType::Bool)) => {
            TensorData::Bool(values.into_iter().map(|x| x != 0).collect())
        }
        // Codes held as floats: whole numbers within the type's range.
        (TensorData::F32(values), Some(DType::I8 | DType::I4 | DType::I2)) => {
            TensorData::I8(values.into_iter().map(|x| x as i8).collect())
        }
        (TensorData::F32(values), Some(DType::U8 | DType::U4 | DType::U2)) => {
            TensorData::U8(values.into_iter().map(|x| x as u8).collect())
        }
        (TensorData::F32(values), Some(DType::I16)) => {
            TensorData::I16(values.into_iter().map(|x| x as i16).collect())
        }
        (TensorData::F32(values), Some(DType::U16)) => {
            TensorData::U16(values.into_iter().map(|x| x as u16).collect())
        }
        (data, _) => data,
    };
    Tensor::new(shape, data)
}

/// The rows of each batch; see [`super::Engine::run_batches`].
pub(super) fn plan_batches(
    stated: &[ValueInfo],
    inputs: &[BatchInput<'_>],
    batch_size: usize,
) -> Result<Vec<Range<usize>>> {
    let wrong = |problem: String| Error::new(ErrorKind::Input, problem);
    let mut n_samples: Option<(usize, &str)> = None;
    let mut fixed: Option<(usize, &str)> = None;
    for input in inputs.iter().filter(|input| !input.shared) {
        let Some(&n) = input.tensor.shape().first() else {
            return Err(wrong(format!(
                "input `{}` is a scalar, expected one row for each sample",
                input.name
            )));
        };
        match n_samples {
            Some((known, first)) if known != n => {
                return Err(wrong(format!(
                    "inputs `{first}` and `{}` have {known} and {n} samples, expected the same",
                    input.name
                )));
            }
            _ => n_samples = Some((n, input.name)),
        }
        let info = stated.iter().find(|info| info.name == input.name);
        let first = info.and_then(|info| info.shape.as_ref()?.first()?.fixed());
        if let Some(size) = first {
            match fixed {
                Some((known, other)) if known != size => {
                    return Err(wrong(format!(
                        "inputs `{other}` and `{}` take {known} and {size} rows at a time: \
                         one of them does not count samples, mark it as shared",
                        input.name
                    )));
                }
                _ => fixed = Some((size, input.name)),
            }
        }
    }
    let Some((n_samples, name)) = n_samples else {
        return Err(wrong("no input has samples, all are shared".to_owned()));
    };
    if n_samples == 0 {
        return Err(wrong(format!("input `{name}` has no samples")));
    }
    let batch_size = match fixed {
        Some((size, name)) if size == 0 || n_samples % size != 0 => {
            return Err(wrong(format!(
                "{n_samples} samples do not fill batches of {size}, the only size that input `{name}` takes"
            )));
        }
        Some((size, _)) => size,
        None if batch_size == 0 => {
            return Err(wrong("the batch size is 0, expected at least 1".to_owned()));
        }
        None => batch_size,
    };
    Ok((0..n_samples)
        .step_by(batch_size)
        .map(|start| start..n_samples.min(start + batch_size))
        .collect())
}
