//! Weights without a graph, written as safetensors in the layout `pack-quantized` of compressed-tensors.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use fastforward_core::files::{CopyError, ReadAt, write_whole};
use fastforward_core::quantization::Granularity;
use serde_json::{Value, json};

use super::summary::{self, ExportSummary, SizeChange, WrittenConstant};
use crate::dtype::DType;
use crate::error::{Error, ErrorKind, Result};
use crate::graph::{Constant, Model, dtype_name};
use crate::placement::{Coded, Decode, Mismatch, PlacedConstant, SomeCodes, place};
use crate::tree::{Role, Site, Tree};

/// The bits that codes may have: those that fill a word.
const BITS: [u32; 3] = [2, 4, 8];

/// The file that holds what `config.json` shall say under `quantization_config`.
pub(crate) const CONFIG_FILE: &str = "quantization_config.json";

/// Why the quantizer at a site cannot be written, as far as its settings tell.
pub(crate) fn problem(site: &Site) -> Option<String> {
    let quantizer = site.slot.quantizer();
    let shape = site.slot.metadata().shape().map(<[usize]>::to_vec).unwrap_or_default();
    let wrong = |what: String| Some(format!("`{}`: {what}", site.name));
    if site.role != Role::Weight || shape.len() != 2 {
        return wrong(format!(
            "only weights with two axes are written as codes, this is a {} of shape {shape:?}; leave it out of the query, \
             or set `quantizer = \"none\"` for it",
            summary::role_name(site.role)
        ));
    }
    let num_bits = quantizer.num_bits().unwrap_or(0);
    if !BITS.contains(&num_bits) {
        return wrong(format!(
            "codes of {num_bits} bits do not fill 32-bit words; use 2, 4 or 8 bits"
        ));
    }
    let granularity = quantizer.as_range_settable()?.granularity().clone();
    match groups(&granularity, &shape) {
        Ok(_) => None,
        Err(what) => wrong(what),
    }
}

/// The columns that share a scale in each row; `None` where the whole tensor shares one.
fn groups(granularity: &Granularity, shape: &[usize]) -> Result<Option<usize>, String> {
    let tile = granularity.tile_shape(shape).map_err(|error| error.to_string())?;
    match (shape, tile.as_slice()) {
        (shape, tile) if shape == tile => Ok(None),
        ([_, _], &[1, columns]) => Ok(Some(columns)),
        _ => Err(format!(
            "tiles of {tile:?} on shape {shape:?} have no place in the layout; use \"per_tensor\", \
             {{ per_channel = 0 }}, or blocks along axis 1 with axis 0 per channel"
        )),
    }
}

/// A quantized weight and the tensors that it becomes.
struct Packed<'m> {
    placed: &'m PlacedConstant<'m>,
    coded: Coded,
    /// Columns that share a scale.
    group: Option<usize>,
}

impl Packed<'_> {
    fn words(&self) -> usize {
        self.coded.shape[1].div_ceil(32 / self.coded.num_bits as usize)
    }

    /// The shape of the scales.
    fn scales(&self) -> [usize; 2] {
        match self.group {
            None => [1, 1],
            Some(group) => [self.coded.shape[0], self.coded.shape[1] / group],
        }
    }

    fn is_symmetric(&self) -> bool {
        self.coded.offset.iter().all(|&offset| offset == 0.0)
    }

    /// `-round(offset)`, one for each scale.
    fn zero_points(&self) -> Result<Vec<i8>> {
        let half = 1i64 << (self.coded.num_bits - 1);
        let point = |&offset: &f32| {
            let point = -(offset as i64);
            if (-half..half).contains(&point) { Ok(point as i8) } else { Err(point) }
        };
        let points: Result<Vec<i8>, i64> = self.coded.offset.iter().map(point).collect();
        points.map_err(|point| {
            let place = self.placed.place();
            Error::new(
                ErrorKind::Quantizer,
                format!(
                    "`{place}`: the zero point {point} is outside of {} to {}, because its range does not contain zero; \
                     set `zero_in_range = true`",
                    -half,
                    half - 1
                ),
            )
        })
    }

    fn name(&self, what: &str) -> String {
        format!("{}_{what}", self.placed.constant.name())
    }
}

/// A tensor to be written.
struct Output<'p, 'm> {
    name: String,
    dtype: DType,
    shape: Vec<usize>,
    content: Content<'p, 'm>,
}

enum Content<'p, 'm> {
    /// The bytes as they are.
    Copy(Box<Constant<'m>>),
    Codes(&'p Packed<'m>),
    Bytes(Vec<u8>),
}

/// Writes the weights of `model`, whose tree is `tree`, into `folder`, file by file under their names: quantized ones packed,
/// the others as they are, byte for byte.
pub(crate) fn export_weights(model: &Model, tree: &Tree, folder: &Path) -> Result<ExportSummary> {
    let placement = place(model, tree)?;
    let packed = pack_all(&placement.constants)?;
    let files = model.weight_files().map(|weights| &weights.files);
    let mut after = 0;
    let mut file_bytes = 0;
    let mut map = BTreeMap::new();
    for (name, file) in files.into_iter().flatten() {
        let outputs = outputs(model, name, &packed)?;
        for output in &outputs {
            map.insert(output.name.clone(), name.clone());
            after += bytes_of(output) as u64;
        }
        file_bytes += write_file(&folder.join(name), &outputs, &file.metadata)?;
    }
    if let (Some(weights), Some(path)) = (model.weight_files(), model.path())
        && weights.has_index
    {
        let index = json!({ "metadata": { "total_size": after }, "weight_map": map });
        write_json(&folder.join(path.file_name().unwrap_or_default()), &index)?;
    }
    write_json(&folder.join(CONFIG_FILE), &config(tree, &packed))?;
    let file_bytes_before = model.data_files()?.iter().try_fold(0, |sum, path| {
        path.metadata().map(|file| sum + file.len()).map_err(|e| Error::io("read", path, e))
    })?;
    Ok(ExportSummary {
        size: SizeChange {
            constant_bytes_before: model.weight_bytes(),
            constant_bytes_after: after,
            file_bytes_before,
            file_bytes_after: file_bytes,
        },
        constants: packed.values().map(written).collect(),
        activations: Vec::new(),
        biases: Vec::new(),
        opset: None,
    })
}

fn pack_all<'m>(constants: &'m [PlacedConstant<'m>]) -> Result<BTreeMap<String, Packed<'m>>> {
    let mut packed = BTreeMap::new();
    let mut problems = Vec::new();
    for placed in constants {
        let coded = placed.coded()?;
        let group = (coded.tile != coded.shape).then(|| coded.tile[1]);
        let one = Packed { placed, coded, group };
        if let Err(error) = one.zero_points() {
            problems.push(error.to_string());
        }
        packed.insert(placed.constant.name().to_owned(), one);
    }
    if problems.is_empty() { Ok(packed) } else { Err(Error::many(ErrorKind::Quantizer, problems)) }
}

fn written(packed: &Packed<'_>) -> WrittenConstant {
    let (placed, scales) = (packed.placed, packed.scales());
    WrittenConstant {
        sites: placed.sites.clone(),
        value: placed.constant.name().to_owned(),
        role: summary::role_name(placed.role),
        graph: Vec::new(),
        codes: packed.name("packed"),
        scale: packed.name("scale"),
        zero_point: (!packed.is_symmetric()).then(|| packed.name("zero_point")),
        dequantized: placed.constant.name().to_owned(),
        dtype: DType::I32.name(),
        bits: packed.coded.num_bits,
        scales: scales[0] * scales[1],
        axis: packed.group.map(|group| usize::from(group < packed.coded.shape[1])),
        block_size: packed.group.filter(|&group| group < packed.coded.shape[1]).unwrap_or(0),
    }
}

/// What a file will hold, in the order in which it is written: wide elements first, so that all are aligned, then by name.
fn outputs<'p, 'm>(
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
        let shape: Vec<u8> =
            one.coded.shape.iter().flat_map(|&size| (size as i64).to_le_bytes()).collect();
        add("packed", DType::I32, &[one.coded.shape[0], one.words()], Content::Codes(one));
        let scale = one.coded.scale.iter().flat_map(|scale| scale.to_le_bytes()).collect();
        let scale_shape = if one.group.is_some() { &scales[..] } else { &scales[..1] };
        add("scale", DType::F32, scale_shape, Content::Bytes(scale));
        add("shape", DType::I64, &[2], Content::Bytes(shape));
        if !one.is_symmetric() {
            let per_word = 32 / one.coded.num_bits as usize;
            let points = pack_rows(&one.zero_points()?, scales[1], one.coded.num_bits);
            let shape = [scales[0].div_ceil(per_word), scales[1]];
            add("zero_point", DType::I32, &shape, Content::Bytes(points));
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

/// Codes in rows of `columns`, packed along the rows: word `r` of a column holds its codes from `r * 32 / bits` on, the first
/// in the lowest bits, each `2^(bits - 1)` higher.
fn pack_rows(codes: &[i8], columns: usize, bits: u32) -> Vec<u8> {
    let per_word = 32 / bits as usize;
    let rows = codes.len() / columns.max(1);
    let mut words = vec![0u32; rows.div_ceil(per_word) * columns];
    for (at, &code) in codes.iter().enumerate() {
        let (row, column) = (at / columns, at % columns);
        let shifted = (i32::from(code) + (1 << (bits - 1))) as u32;
        words[row / per_word * columns + column] |= shifted << (row % per_word * bits as usize);
    }
    words.into_iter().flat_map(u32::to_le_bytes).collect()
}

fn bytes_of(output: &Output<'_, '_>) -> usize {
    let count: usize = output.shape.iter().product();
    output.dtype.size_bytes(count).unwrap_or(0)
}

/// Writes a file and gives its length.
fn write_file(
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
        let end = at + bytes_of(output);
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
    let mut failed = None;
    let result = write_whole(path, |out| {
        out.write_all(&(text.len() as u64).to_le_bytes())?;
        out.write_all(text.as_bytes())?;
        for output in outputs {
            output.write(out).map_err(|error| match error {
                CopyErrorOf::Write(error) => error,
                CopyErrorOf::Other(error) => {
                    failed = Some(error);
                    io::Error::other("a tensor cannot be quantized")
                }
            })?;
        }
        Ok(())
    });
    match failed {
        Some(error) => Err(error),
        None => result.map_err(Error::from).map(|()| (8 + text.len() + at) as u64),
    }
}

/// What went wrong with a tensor: the file that is written, or anything else.
enum CopyErrorOf {
    Write(io::Error),
    Other(Error),
}

impl Output<'_, '_> {
    fn write(&self, out: &mut dyn Write) -> Result<(), CopyErrorOf> {
        match &self.content {
            Content::Bytes(bytes) => out.write_all(bytes).map_err(CopyErrorOf::Write),
            Content::Copy(constant) => {
                let stored = constant.stored().map_err(CopyErrorOf::Other)?;
                stored.copy_to(out).map_err(|error| match error {
                    CopyError::Read(error) => CopyErrorOf::Other(error.into()),
                    CopyError::Write(error) => CopyErrorOf::Write(error),
                })
            }
            Content::Codes(packed) => {
                let columns = packed.coded.shape[1];
                let mut words = Words::new(columns, packed.coded.num_bits);
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
                    (Some(error), _) => Err(CopyErrorOf::Write(error)),
                    (None, result) => result.map_err(CopyErrorOf::Other),
                }
            }
        }
    }
}

/// Packs codes along the columns into words, each row beginning a new one.
struct Words {
    columns: usize,
    bits: u32,
    column: usize,
    word: u32,
    bytes: Vec<u8>,
}

impl Words {
    fn new(columns: usize, bits: u32) -> Self {
        Self { columns, bits, column: 0, word: 0, bytes: Vec::new() }
    }

    fn push(&mut self, codes: SomeCodes<'_>) {
        match codes {
            SomeCodes::I8(codes) => self.push_narrow(codes),
            SomeCodes::I32(codes) => {
                // Codes of at most 8 bits, whatever they come in.
                let codes: Vec<i8> = codes.iter().map(|&code| code as i8).collect();
                self.push_narrow(&codes);
            }
        }
    }

    fn push_narrow(&mut self, codes: &[i8]) {
        let per_word = 32 / self.bits as usize;
        let starts_word = self.column.is_multiple_of(per_word);
        if self.columns.is_multiple_of(per_word) && starts_word {
            // No word is cut by the end of a row.
            let whole = codes.len() - codes.len() % per_word;
            self.whole_words(&codes[..whole]);
            self.column = (self.column + whole) % self.columns;
            return self.push_each(&codes[whole..]);
        }
        self.push_each(codes);
    }

    fn whole_words(&mut self, codes: &[i8]) {
        match self.bits {
            8 => self.bytes.extend(codes.iter().map(|&code| code as u8 ^ 0x80)),
            4 => self.bytes.extend(
                codes
                    .as_chunks::<2>()
                    .0
                    .iter()
                    .map(|&[low, high]| ((low as u8 ^ 8) & 15) | ((high as u8 ^ 8) << 4)),
            ),
            _ => self.bytes.extend(codes.as_chunks::<4>().0.iter().map(|codes| {
                let two = |at: usize| ((codes[at] as u8 ^ 2) & 3) << (2 * at);
                two(0) | two(1) | two(2) | two(3)
            })),
        }
    }

    fn push_each(&mut self, codes: &[i8]) {
        let per_word = 32 / self.bits as usize;
        for &code in codes {
            let shifted = (i32::from(code) + (1 << (self.bits - 1))) as u32;
            self.word |= shifted << (self.column % per_word * self.bits as usize);
            self.column += 1;
            if self.column == self.columns || self.column.is_multiple_of(per_word) {
                self.bytes.extend_from_slice(&self.word.to_le_bytes());
                self.word = 0;
            }
            if self.column == self.columns {
                self.column = 0;
            }
        }
    }
}

fn write_json(path: &Path, value: &Value) -> Result<()> {
    let text = format!("{value:#}\n");
    Ok(write_whole(path, |out| out.write_all(text.as_bytes()))?)
}

/// What `config.json` shall say: a group of modules for each way to quantize, and the linear layers that stay in float.
fn config(tree: &Tree, packed: &BTreeMap<String, Packed<'_>>) -> Value {
    let module = |name: &str| name.rsplit_once('.').map_or(name, |(module, _)| module).to_owned();
    let mut groups: BTreeMap<(u32, bool, Option<usize>, bool), Vec<String>> = BTreeMap::new();
    for (name, one) in packed {
        let columns = one.coded.shape[1];
        let group = one.group.filter(|&group| group != columns);
        let key = (one.coded.num_bits, one.is_symmetric(), group, one.group.is_none());
        groups.entry(key).or_default().push(module(name));
    }
    let groups: serde_json::Map<String, Value> = groups
        .into_iter()
        .enumerate()
        .map(|(at, ((num_bits, symmetric, group_size, per_tensor), targets))| {
            let strategy = match (per_tensor, group_size) {
                (true, _) => "tensor",
                (false, None) => "channel",
                (false, Some(_)) => "group",
            };
            let weights = json!({
                "num_bits": num_bits,
                "type": "int",
                "symmetric": symmetric,
                "strategy": strategy,
                "group_size": group_size,
                "dynamic": false,
            });
            let group = json!({
                "targets": targets,
                "weights": weights,
                "input_activations": null,
                "output_activations": null,
            });
            (format!("group_{at}"), group)
        })
        .collect();
    let stays = |site: &&Site| {
        site.slot.is_stub()
            && site.role == Role::Weight
            && site.slot.metadata().shape().is_some_and(|shape| shape.len() == 2)
    };
    let ignore: Vec<String> =
        tree.sites().iter().filter(stays).map(|site| module(&site.value)).collect();
    json!({
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "config_groups": groups,
        "ignore": ignore,
        "kv_cache_scheme": null,
    })
}

/// Reads what was written into `folder` back: every file anew, its tensors against those of `model`. Gives how many weights
/// decode to exactly what their quantizers make of them, and how far each is moved.
pub(crate) fn verify_weights(
    model: &Model,
    tree: &Tree,
    folder: &Path,
    moved: &mut dyn FnMut(&PlacedConstant<'_>, &ff_kernels::Difference),
) -> Result<usize> {
    let placement = place(model, tree)?;
    let mut problems = Vec::new();
    let placed: BTreeMap<&str, &PlacedConstant<'_>> =
        placement.constants.iter().map(|placed| (placed.constant.name(), placed)).collect();
    let files = model.weight_files().map(|weights| &weights.files);
    for name in files.into_iter().flatten().map(|(name, _)| name) {
        let path: PathBuf = folder.join(name);
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
    words: crate::graph::Stored,
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

    fn check(mut self, placed: &PlacedConstant<'_>) -> Result<ff_kernels::Difference, String> {
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
        let decode = |part: &fastforward_core::quantization::affine::Part, out: &mut Vec<f32>| {
            self.decode(part.elements.clone(), out)
        };
        let decode: Decode<'_> = &decode;
        match placed.compare(Some(decode)).map_err(text)? {
            (difference, None) => Ok(difference),
            (_, Some(Mismatch { element, found, expected })) => {
                Err(format!("element {element} decodes to {found}, expected {expected}"))
            }
        }
    }

    /// `(code - zero point) * scale` of some elements.
    fn decode(&self, elements: std::ops::Range<usize>, out: &mut Vec<f32>) -> Result<()> {
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

/// A code in a word.
fn unpack(word: u32, at: usize, bits: u32) -> i32 {
    let code = word >> (at * bits as usize) & ((1 << bits) - 1);
    code as i32 - (1 << (bits - 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_hold_codes_from_their_lowest_bits_on() {
        // -8 is 0, 7 is 15, 0 is 8; the second row begins a word.
        let codes: [i8; 18] = [-8, 7, 0, 1, -1, 2, -2, 3, 4, 0, 0, 0, 0, 0, 0, 0, 0, -3];
        let expected = [0xb6a7_98f0u32, 0x0000_000c, 0x8888_8888, 0x0000_0005];
        let expected: Vec<u8> = expected.into_iter().flat_map(u32::to_le_bytes).collect();
        for piece in [1, 2, 5, 9, 18] {
            let mut words = Words::new(9, 4);
            codes.chunks(piece).for_each(|codes| words.push(SomeCodes::I8(codes)));
            assert_eq!(words.bytes, expected);
        }
    }

    #[test]
    fn rows_of_whole_words_are_packed_alike() {
        for bits in BITS {
            let half = 1i32 << (bits - 1);
            let codes: Vec<i8> = (0..96).map(|at| (at * 7 % (2 * half) - half) as i8).collect();
            let mut fast = Words::new(32, bits);
            fast.push(SomeCodes::I8(&codes));
            let mut slow = Words::new(32, bits);
            slow.push_each(&codes);
            assert_eq!(fast.bytes, slow.bytes, "{bits} bits");
            let per_word = 32 / bits as usize;
            for (at, &code) in codes.iter().enumerate() {
                let word = u32::from_le_bytes(fast.bytes.as_chunks::<4>().0[at / per_word]);
                assert_eq!(unpack(word, at % per_word, bits), i32::from(code));
            }
        }
    }

    #[test]
    fn zero_points_are_packed_along_the_rows() {
        // Three rows of two columns.
        let bytes = pack_rows(&[-8, 7, 0, 1, -1, 2], 2, 4);
        let words: Vec<u32> =
            bytes.as_chunks::<4>().0.iter().map(|bytes| u32::from_le_bytes(*bytes)).collect();
        assert_eq!(words, [0x0000_0780, 0x0000_0a9f]);
    }
}
