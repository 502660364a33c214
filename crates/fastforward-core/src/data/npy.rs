//! Reading the header of a NumPy array.
//!
//! The magic bytes, a version, a header length, and a header that is a Python dictionary:
//! `{'descr': '<f4', 'fortran_order': False, 'shape': (512, 28, 28), }`.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use std::sync::Arc;

use super::ElementType;
use super::tensor::{Place, StoredTensor, format_error, io_error, size_bytes};
use crate::Error;

/// What the header of an array says.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Header {
    pub(super) element: ElementType,
    pub(super) big_endian: bool,
    pub(super) shape: Vec<usize>,
    /// The bytes before the first element.
    pub(super) bytes: u64,
}

impl Header {
    /// The bytes the elements take.
    pub(super) fn data_bytes(&self) -> u64 {
        size_bytes(self.element, &self.shape).map_or(u64::MAX, |size| size as u64)
    }
}

/// One array in a file, named like the file.
pub(super) fn open(path: &Path) -> Result<StoredTensor, Error> {
    let mut file = File::open(path).map_err(|e| io_error(path, "cannot be opened", e))?;
    let length = file.metadata().map_err(|e| io_error(path, "cannot be read", e))?.len();
    let header = read_header(&mut file).map_err(|what| format_error(path, what))?;
    let there = length.saturating_sub(header.bytes);
    if header.data_bytes() > there {
        return Err(format_error(
            path,
            format!(
                "truncated: {} of shape {:?} needs {} bytes, {there} are there",
                header.element,
                header.shape,
                header.data_bytes()
            ),
        ));
    }
    let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let place = Place::File { path: Arc::from(path), offset: header.bytes };
    let Header { element, shape, big_endian, .. } = header;
    Ok(StoredTensor::in_one_place(name, element, shape, path, place, big_endian))
}

/// Reads a header, or says what is wrong with it.
pub(super) fn read_header(mut from: impl Read) -> Result<Header, String> {
    let read_error = |error: io::Error| match error.kind() {
        io::ErrorKind::UnexpectedEof => "truncated: the array's header is cut off".to_owned(),
        _ => error.to_string(),
    };
    let mut prefix = [0; 8];
    from.read_exact(&mut prefix).map_err(read_error)?;
    let [magic @ .., major, minor] = prefix;
    if magic != *b"\x93NUMPY" {
        return Err("not a NumPy array: it does not start with `\\x93NUMPY`".to_owned());
    }
    let (length_bytes, length) = match major {
        1 => {
            let mut length = [0; 2];
            from.read_exact(&mut length).map_err(read_error)?;
            (2, u32::from(u16::from_le_bytes(length)))
        }
        2 | 3 => {
            let mut length = [0; 4];
            from.read_exact(&mut length).map_err(read_error)?;
            (4, u32::from_le_bytes(length))
        }
        _ => return Err(format!("version {major}.{minor} of the NumPy format is not supported")),
    };
    let mut text = vec![];
    from.take(length.into()).read_to_end(&mut text).map_err(read_error)?;
    if text.len() < length as usize {
        return Err("truncated: the array's header is cut off".to_owned());
    }
    let text = String::from_utf8(text).map_err(|_| "the array's header is no text".to_owned())?;
    let bytes = 8 + length_bytes + u64::from(length);
    parse_header(&text, bytes).map_err(|what| format!("in the array's header: {what}"))
}

fn parse_header(text: &str, bytes: u64) -> Result<Header, String> {
    let mut rest = text.trim();
    let mut descr = None;
    let mut fortran_order = None;
    let mut shape = None;
    eat(&mut rest, "{")?;
    while !rest.starts_with('}') {
        let key = quoted(&mut rest)?;
        eat(&mut rest, ":")?;
        match key {
            "descr" => {
                if rest.starts_with('[') {
                    return Err("structured types (`descr` is a list) are not supported; save one array per field"
                        .to_owned());
                }
                descr = Some(quoted(&mut rest)?);
            }
            "fortran_order" => {
                fortran_order = Some(if rest.starts_with("True") {
                    eat(&mut rest, "True")?;
                    true
                } else {
                    eat(&mut rest, "False")?;
                    false
                });
            }
            "shape" => shape = Some(tuple(&mut rest)?),
            other => return Err(format!("unknown key `{other}`")),
        }
        if !rest.starts_with('}') {
            eat(&mut rest, ",")?;
        }
    }
    let missing = |key: &str| format!("`{key}` is missing");
    let descr = descr.ok_or_else(|| missing("descr"))?;
    let fortran_order = fortran_order.ok_or_else(|| missing("fortran_order"))?;
    let shape = shape.ok_or_else(|| missing("shape"))?;

    let (order, kind) = match descr.as_bytes().first() {
        Some(b'<' | b'>' | b'|' | b'=') => descr.split_at(1),
        _ => ("|", descr),
    };
    let element = ElementType::from_numpy(kind).ok_or_else(|| {
        format!("type `{descr}` is not supported; convert with `.astype(numpy.float32)`")
    })?;
    if size_bytes(element, &shape).is_none() {
        return Err(format!("shape {shape:?} has too many elements"));
    }
    if fortran_order && shape.iter().filter(|&&extent| extent != 1).count() > 1 {
        return Err(
            "the array is stored in Fortran order; save `numpy.ascontiguousarray(x)` instead"
                .to_owned(),
        );
    }
    Ok(Header { element, big_endian: order == ">", shape, bytes })
}

fn eat(rest: &mut &str, expected: &str) -> Result<(), String> {
    let after = rest
        .strip_prefix(expected)
        .ok_or_else(|| format!("expected `{expected}`, found `{}`", shortened(rest)))?;
    *rest = after.trim_start();
    Ok(())
}

fn quoted<'a>(rest: &mut &'a str) -> Result<&'a str, String> {
    let text: &'a str = rest;
    let quote = text
        .chars()
        .next()
        .filter(|&first| first == '\'' || first == '"')
        .ok_or_else(|| format!("expected a quoted text, found `{}`", shortened(text)))?;
    let (inside, after) =
        text[1..].split_once(quote).ok_or_else(|| "a quote is not closed".to_owned())?;
    *rest = after.trim_start();
    Ok(inside)
}

fn tuple(rest: &mut &str) -> Result<Vec<usize>, String> {
    eat(rest, "(")?;
    let mut values = vec![];
    while !rest.starts_with(')') {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        let (number, after) = rest.split_at(digits);
        values.push(
            number
                .parse()
                .map_err(|_| format!("expected an extent, found `{}`", shortened(rest)))?,
        );
        // Python 2 wrote long integers with a suffix.
        *rest = after.strip_prefix('L').unwrap_or(after).trim_start();
        if !rest.starts_with(')') {
            eat(rest, ",")?;
        }
    }
    eat(rest, ")")?;
    Ok(values)
}

fn shortened(text: &str) -> String {
    text.chars().take(20).collect()
}
