//! Weights as they stand in the files that were written, against what their quantizers say.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

use fastforward_core::files::ReadAt;
use fastforward_core::quantization::affine::Part;
use ff_kernels::Difference;

use super::BITS;
use super::words::unpack;
use crate::error::{Error, ErrorKind, Result};
use crate::graph::{self, Constant, Model};
use crate::placement::{Decode, Mismatch, PlacedConstant, place};
use crate::tree::Tree;

/// Reads what was written into `folder` back: every file anew, its tensors against those of `model`. Gives how many weights
/// decode to exactly what their quantizers make of them, and how far each is moved.
pub(crate) fn verify_weights(
    model: &Model,
    tree: &Tree,
    folder: &Path,
    moved: &mut dyn FnMut(&PlacedConstant<'_>, &Difference),
) -> Result<usize> {
    let placement = place(model, tree)?;
    let mut problems = Vec::new();
    let placed: BTreeMap<&str, &PlacedConstant<'_>> =
        placement.constants.iter().map(|placed| (placed.constant.name(), placed)).collect();
    let files = model.weight_files().map(|weights| &weights.files);
    for name in files.into_iter().flatten().map(|(name, _)| name) {
        let path = folder.join(name);
        let file = Model::load(&path)?;
        let found: BTreeMap<&str, Constant<'_>> =
            file.constants().map(|constant| (constant.name(), constant)).collect();
        let mut known = 0;
        for constant in model.constants() {
            if Model::location(constant.proto()) != Some(name) {
                continue;
            }
            let result = match placed.get(constant.name()) {
                None => {
                    known += 1;
                    check_copy(&constant, &found).map(|()| None)
                }
                Some(placed) => {
                    let stored = Stored::of(constant.name(), &found, &mut known);
                    stored.and_then(|stored| stored.check(placed)).map(Some)
                }
            };
            match result {
                Ok(None) => {}
                Ok(Some(difference)) => moved(placed[constant.name()], &difference),
                Err(problem) => problems.push(format!("`{}`: {problem}", constant.name())),
            }
        }
        if known != found.len() {
            problems.push(format!("`{name}` has {} tensors, expected {known}", found.len()));
        }
    }
    if problems.is_empty() {
        return Ok(placed.len());
    }
    Err(Error::many(ErrorKind::Verification, problems))
}

/// Whether a tensor stands in the file byte for byte.
fn check_copy(expected: &Constant<'_>, found: &BTreeMap<&str, Constant<'_>>) -> Result<(), String> {
    const PIECE: usize = 1 << 18;
    let text = |error: Error| error.to_string();
    let core = |error: fastforward_core::Error| error.to_string();
    let found = found.get(expected.name()).ok_or("it is missing")?;
    if found.info().map_err(text)? != expected.info().map_err(text)? {
        return Err("it has another type or shape".to_owned());
    }
    let (a, b) = (expected.stored().map_err(text)?, found.stored().map_err(text)?);
    let (mut x, mut y) = (vec![0; PIECE], vec![0; PIECE]);
    let mut at = 0;
    while at < a.len() {
        let len = (a.len() - at).min(PIECE as u64) as usize;
        a.read_at(at, &mut x[..len]).map_err(core)?;
        b.read_at(at, &mut y[..len]).map_err(core)?;
        if x[..len] != y[..len] {
            return Err(format!("its bytes from {at} on are others than those that were read"));
        }
        at += len as u64;
    }
    Ok(())
}

/// A packed weight as it stands in a file.
struct Stored {
    words: graph::Stored,
    rows: usize,
    columns: usize,
    words_per_row: usize,
    bits: u32,
    scale: Vec<f32>,
    zero_point: Option<Vec<i32>>,
    /// Scales in each row, 0 where there is one for all.
    groups: usize,
}

impl Stored {
    /// Finds the tensors of the weight `name`, and counts them.
    fn of(
        name: &str,
        found: &BTreeMap<&str, Constant<'_>>,
        known: &mut usize,
    ) -> Result<Self, String> {
        let text = |error: Error| error.to_string();
        let mut get = |what: &str| {
            let tensor = found.get(format!("{name}_{what}").as_str());
            *known += usize::from(tensor.is_some());
            tensor
        };
        let missing = |what: &str| format!("`{name}_{what}` is missing");
        let packed = get("packed").ok_or_else(|| missing("packed"))?;
        let scale = get("scale").ok_or_else(|| missing("scale"))?;
        let shape = get("shape").ok_or_else(|| missing("shape"))?;
        let zero_point = get("zero_point");
        let shape = shape.to_i64().map_err(text)?;
        let &[rows, columns] = shape.as_slice() else {
            return Err(format!("`{name}_shape` holds {shape:?}, expected two sizes"));
        };
        let (rows, columns) = (rows as usize, columns as usize);
        let packed_shape = packed.info().map_err(text)?.shape;
        let [packed_rows, words_per_row] = packed_shape[..] else {
            return Err(format!("`{name}_packed` has shape {packed_shape:?}"));
        };
        let scale_shape = scale.info().map_err(text)?.shape;
        let (scale_rows, groups) = match scale_shape[..] {
            [1] => (1, 0),
            [scale_rows, groups] if scale_rows == rows && groups > 0 => (rows, groups),
            _ => return Err(format!("`{name}_scale` has shape {scale_shape:?}")),
        };
        // The only width that gives rows of so many words.
        let bits =
            BITS.into_iter().find(|bits| columns.div_ceil(32 / *bits as usize) == words_per_row);
        let bits = bits.filter(|_| packed_rows == rows);
        let bits = bits.ok_or_else(|| format!("`{name}_packed` has shape {packed_shape:?}"))?;
        let zero_point = match zero_point {
            None => None,
            Some(tensor) => {
                let words = tensor.to_i64().map_err(text)?;
                let width = groups.max(1);
                let per_word = 32 / bits as usize;
                if words.len() != scale_rows.div_ceil(per_word) * width {
                    return Err(format!("`{name}_zero_point` has {} words", words.len()));
                }
                let point = |at: usize| {
                    let (row, group) = (at / width, at % width);
                    unpack(words[row / per_word * width + group] as u32, row % per_word, bits)
                };
                Some((0..scale_rows * width).map(point).collect())
            }
        };
        Ok(Self {
            words: packed.stored().map_err(text)?,
            rows,
            columns,
            words_per_row,
            bits,
            scale: scale.to_f32().map_err(text)?,
            zero_point,
            groups,
        })
    }

    fn check(mut self, placed: &PlacedConstant<'_>) -> Result<Difference, String> {
        let text = |error: Error| error.to_string();
        let info = placed.constant.info().map_err(text)?;
        if info.shape != [self.rows, self.columns] {
            return Err(format!(
                "it has shape {:?}, expected {:?}",
                [self.rows, self.columns],
                info.shape
            ));
        }
        // Rows so short that widths cannot be told apart have the quantizer's.
        let bits = placed.grid_bits().unwrap_or(self.bits);
        if self.columns.div_ceil(32 / bits as usize) != self.words_per_row {
            return Err(format!("it has codes of {} bits, expected {bits}", self.bits));
        }
        self.bits = bits;
        let decode = |part: &Part, out: &mut Vec<f32>| self.decode(part.elements.clone(), out);
        let decode: Decode<'_> = &decode;
        match placed.compare(Some(decode)).map_err(text)? {
            (difference, None) => Ok(difference),
            (_, Some(Mismatch { element, found, expected })) => {
                Err(format!("element {element} decodes to {found}, expected {expected}"))
            }
        }
    }

    /// `(code - zero point) * scale` of some elements.
    fn decode(&self, elements: Range<usize>, out: &mut Vec<f32>) -> Result<()> {
        let (columns, per_word) = (self.columns, 32 / self.bits as usize);
        let rows = elements.start / columns..(elements.end - 1) / columns + 1;
        let mut bytes = vec![0; rows.len() * self.words_per_row * 4];
        self.words.read_at((rows.start * self.words_per_row * 4) as u64, &mut bytes)?;
        let words = bytes.as_chunks::<4>().0;
        let group_len = columns.checked_div(self.groups).unwrap_or(columns);
        out.clear();
        for row in rows.clone() {
            let line = &words[(row - rows.start) * self.words_per_row..][..self.words_per_row];
            let first = elements.start.saturating_sub(row * columns);
            let end = (elements.end - row * columns).min(columns);
            let mut column = first;
            while column < end {
                let group = column / group_len;
                let tile = if self.groups == 0 { 0 } else { row * self.groups + group };
                let scale = self.scale[tile];
                let zero_point = self.zero_point.as_ref().map_or(0, |points| points[tile]);
                let stop = ((group + 1) * group_len).min(end);
                out.extend((column..stop).map(|column| {
                    let word = u32::from_le_bytes(line[column / per_word]);
                    let code = unpack(word, column % per_word, self.bits);
                    (code - zero_point) as f32 * scale
                }));
                column = stop;
            }
        }
        Ok(())
    }
}
