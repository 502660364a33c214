//! Weights without a graph, written as safetensors in the layout `pack-quantized` of compressed-tensors.

mod config;
mod file;
mod read_back;
mod words;

use std::collections::BTreeMap;
use std::path::Path;

use fastforward_core::files::write_whole;
use fastforward_core::quantization::Granularity;
use serde_json::{Value, json};

use super::summary::{ExportSummary, SizeChange, WrittenConstant};
use crate::dtype::DType;
use crate::error::{Error, ErrorKind, Result};
use crate::graph::Model;
use crate::placement::{Coded, PlacedConstant, place};
use crate::tree::{Role, Site, Tree};

use config::config;
use file::{outputs, write_file};
pub(crate) use read_back::verify_weights;

/// The bits that codes may have: those that fill a word.
const BITS: [u32; 3] = [2, 4, 8];

/// The file that holds what `config.json` shall say under `quantization_config`.
pub(crate) const CONFIG_FILE: &str = "quantization_config.json";

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
            after += output.size_bytes() as u64;
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
        problems.extend(one.problem());
        packed.insert(placed.constant.name().to_owned(), one);
    }
    if problems.is_empty() { Ok(packed) } else { Err(Error::many(ErrorKind::Quantizer, problems)) }
}

fn written(packed: &Packed<'_>) -> WrittenConstant {
    let (placed, scales) = (packed.placed, packed.scales());
    WrittenConstant {
        sites: placed.sites.clone(),
        value: placed.constant.name().to_owned(),
        role: placed.role.name(),
        graph: Vec::new(),
        codes: packed.name("packed"),
        scale: packed.name("scale"),
        zero_point: (!packed.is_symmetric()).then(|| packed.name("zero_point")),
        dequantized: placed.constant.name().to_owned(),
        dtype: DType::I32.name(),
        bits: packed.bits(),
        scales: scales[0] * scales[1],
        axis: packed.group.map(|group| usize::from(group < packed.shape()[1])),
        block_size: packed.group.filter(|&group| group < packed.shape()[1]).unwrap_or(0),
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
    /// The rows and columns.
    fn shape(&self) -> [usize; 2] {
        [self.coded.shape[0], self.coded.shape[1]]
    }

    fn bits(&self) -> u32 {
        self.coded.parameters.num_bits
    }

    /// The words of a row.
    fn words(&self) -> usize {
        self.shape()[1].div_ceil(32 / self.bits() as usize)
    }

    /// The shape of the scales.
    fn scales(&self) -> [usize; 2] {
        let [rows, columns] = self.shape();
        self.group.map_or([1, 1], |group| [rows, columns / group])
    }

    fn is_symmetric(&self) -> bool {
        self.coded.parameters.is_symmetric()
    }

    /// `-round(offset)` of a scale.
    fn zero_point(&self, scale: usize) -> i64 {
        -(self.coded.parameters.rounded_offset(scale) as i64)
    }

    /// A zero point that has no code.
    fn problem(&self) -> Option<String> {
        let half = 1i64 << (self.bits() - 1);
        let mut points = (0..self.coded.parameters.scale.len()).map(|at| self.zero_point(at));
        let point = points.find(|point| !(-half..half).contains(point))?;
        Some(format!(
            "`{}`: the zero point {point} is outside of {} to {}, because its range does not contain zero; set \
             `zero_in_range = true`",
            self.placed.place(),
            -half,
            half - 1
        ))
    }

    fn name(&self, what: &str) -> String {
        format!("{}_{what}", self.placed.constant.name())
    }
}

/// Why the quantizer at a site cannot be written, as far as its settings tell.
pub(crate) fn problem(site: &Site) -> Option<String> {
    let quantizer = site.slot.quantizer();
    let shape = site.slot.metadata().shape().map(<[usize]>::to_vec).unwrap_or_default();
    let wrong = |what: String| Some(format!("`{}`: {what}", site.name));
    if site.role != Role::Weight || shape.len() != 2 {
        return wrong(format!(
            "only weights with two axes are written as codes, this is a {} of shape {shape:?}; leave it out of the query, \
             or set `quantizer = \"none\"` for it",
            site.role.name()
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

fn write_json(path: &Path, value: &Value) -> Result<()> {
    let text = format!("{value:#}\n");
    Ok(write_whole(path, |out| out.write_all(text.as_bytes()))?)
}
