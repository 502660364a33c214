//! One file of weights, as it is written.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::Path;

use fastforward_core::files::{CopyError, NewFile, ReadAt};
use serde_json::{Value, json};

use super::Packed;
use super::words::{Words, pack_rows};
use crate::dtype::DType;
use crate::error::{Error, ErrorKind, Result};
use crate::graph::{Constant, Model, dtype_name};

/// A tensor to be written.
pub(super) struct Output<'p, 'm> {
    pub(super) name: String,
    dtype: DType,
    shape: Vec<usize>,
    content: Content<'p, 'm>,
}

enum Content<'p, 'm> {
    /// The bytes as they are.
    Copy(Box<Constant<'m>>),
    Codes(&'p Packed<'m>),
    Scales(&'p Packed<'m>),
    ZeroPoints(&'p Packed<'m>),
    /// The rows and columns.
    Shape(&'p Packed<'m>),
}

/// What a file will hold, in the order in which it is written: wide elements first, so that all are aligned, then by name.
pub(super) fn outputs<'p, 'm>(
    model: &'m Model,
    file: &str,
    packed: &'p BTreeMap<String, Packed<'m>>,
) -> Result<Vec<Output<'p, 'm>>> {
    let mut outputs = Vec::new();
    for constant in model.constants() {
        if Model::location(constant.proto()) != Some(file) {
            continue;
        }
        let info = constant.info()?;
        let Some(one) = packed.get(constant.name()) else {
            outputs.push(Output {
                name: constant.name().to_owned(),
                dtype: info.dtype,
                shape: info.shape,
                content: Content::Copy(Box::new(constant)),
            });
            continue;
        };
        let mut add = |what: &str, dtype, shape: &[usize], content| {
            outputs.push(Output { name: one.name(what), dtype, shape: shape.to_vec(), content });
        };
        let scales = one.scales();
        add("packed", DType::I32, &[one.shape()[0], one.words()], Content::Codes(one));
        let scale_shape = if one.group.is_some() { &scales[..] } else { &scales[..1] };
        add("scale", DType::F32, scale_shape, Content::Scales(one));
        add("shape", DType::I64, &[2], Content::Shape(one));
        if !one.is_symmetric() {
            let per_word = 32 / one.bits() as usize;
            let shape = [scales[0].div_ceil(per_word), scales[1]];
            add("zero_point", DType::I32, &shape, Content::ZeroPoints(one));
        }
    }
    let wide = |output: &Output<'_, '_>| std::cmp::Reverse(output.dtype.bits());
    outputs.sort_by(|a, b| (wide(a), &a.name).cmp(&(wide(b), &b.name)));
    let twice: Vec<String> = {
        let mut names: Vec<&str> = outputs.iter().map(|output| output.name.as_str()).collect();
        names.sort_unstable();
        let same = names.windows(2).filter(|pair| pair[0] == pair[1]);
        same.map(|pair| format!("tensor `{}` exists, and would be written too", pair[0])).collect()
    };
    if twice.is_empty() { Ok(outputs) } else { Err(Error::many(ErrorKind::InvalidGraph, twice)) }
}

/// Scales that are turned into bytes at a time.
const PIECE: usize = 1 << 16;

/// Writes a file and gives its length.
pub(super) fn write_file(
    path: &Path,
    outputs: &[Output<'_, '_>],
    metadata: &BTreeMap<String, String>,
) -> Result<u64> {
    let mut header = serde_json::Map::new();
    if !metadata.is_empty() {
        header.insert("__metadata__".to_owned(), json!(metadata));
    }
    let mut at = 0;
    for output in outputs {
        let end = at + output.size_bytes();
        let dtype = dtype_name(output.dtype).ok_or_else(|| {
            let text = format!("tensor `{}`: {} has no name", output.name, output.dtype);
            Error::new(ErrorKind::Unsupported, text)
        })?;
        let entry = json!({ "dtype": dtype, "shape": output.shape, "data_offsets": [at, end] });
        header.insert(output.name.clone(), entry);
        at = end;
    }
    let mut text = Value::Object(header).to_string();
    while !text.len().is_multiple_of(8) {
        text.push(' ');
    }
    let mut file = NewFile::create(path)?;
    file.will_take((8 + text.len() + at) as u64);
    let head = [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat();
    file.write_all(&head).map_err(|error| file.failed(error))?;
    for output in outputs {
        output.write(&mut file).map_err(|error| match error {
            Failed::Write(error) => file.failed(error).into(),
            Failed::Other(error) => error,
        })?;
    }
    Ok(file.finish()?)
}

/// What went wrong with a tensor: the file that is written, or anything else.
enum Failed {
    Write(io::Error),
    Other(Error),
}

impl Output<'_, '_> {
    pub(super) fn size_bytes(&self) -> usize {
        self.dtype.size_bytes(self.shape.iter().product()).unwrap_or(0)
    }

    fn write(&self, out: &mut NewFile) -> Result<(), Failed> {
        match &self.content {
            Content::Shape(packed) => {
                let bytes = packed.shape().map(|size| (size as i64).to_le_bytes());
                out.write_all(bytes.as_flattened()).map_err(Failed::Write)
            }
            Content::Scales(packed) => {
                let mut pieces = packed.coded.parameters.scale.chunks(PIECE);
                pieces.try_for_each(|scales| {
                    let bytes: Vec<u8> = scales.iter().flat_map(|s| s.to_le_bytes()).collect();
                    out.write_all(&bytes).map_err(Failed::Write)
                })
            }
            Content::ZeroPoints(packed) => {
                let point = |at| packed.zero_point(at) as i32;
                let mut rows = pack_rows(point, packed.scales(), packed.bits());
                rows.try_for_each(|words| out.write_all(&words).map_err(Failed::Write))
            }
            Content::Copy(constant) => {
                let stored = constant.stored().map_err(Failed::Other)?;
                stored.copy_to(out).map_err(|error| match error {
                    CopyError::Read(error) => Failed::Other(error.into()),
                    CopyError::Write(error) => Failed::Write(error),
                })
            }
            Content::Codes(packed) => {
                let mut words = Words::new(packed.shape()[1], packed.bits());
                let mut failed = None;
                let result = packed.placed.write_codes(&packed.coded, &mut |codes| {
                    words.push(codes);
                    out.write_all(&words.bytes).map_err(|error| {
                        failed = Some(error);
                        Error::new(ErrorKind::Io, "cannot write codes")
                    })?;
                    words.bytes.clear();
                    Ok(())
                });
                match (failed, result) {
                    (Some(error), _) => Err(Failed::Write(error)),
                    (None, result) => result.map_err(Failed::Other),
                }
            }
        }
    }
}
