//! The graph with its quantizers written as `QuantizeLinear` and `DequantizeLinear`.

mod layout;
mod pack;
mod storage;
mod store;
mod summary;
mod weights;

use std::collections::HashSet;
use std::ops::Range;
use std::path::Path;

use fastforward_core::quantization::Granularity;

use crate::dtype::DType;
use crate::edit::{Edits, Names};
use crate::error::{Error, ErrorKind, Result};
use crate::graph::{Model, Saved, tensor_from_codes, tensor_from_f32};
use crate::opset;
use crate::placement::{Grid, PlacedActivation, PlacedConstant, SomeCodes, place};
use crate::proto::{attribute_int, node};
use crate::simulate::{Wiring, rewired, wire_activations};
use crate::tree::{Role, Site, Tree};

use layout::Written;
use pack::Packer;
pub use storage::Signedness;
use storage::Storage;
use store::Store;
pub use summary::{ExportSummary, OpsetChange, SizeChange, WrittenActivation, WrittenConstant};
pub(crate) use weights::{CONFIG_FILE, export_weights, problem as weights_problem, verify_weights};

/// How to write quantizers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExportOptions {
    /// The codes of activations: `uint8` is what x86 kernels want, `int8` what most accelerators do.
    pub activations: Signedness,
    /// The codes of weights.
    pub weights: Signedness,
    /// The newest operator set that the target knows. Weights of 2 and 4 bits are then stored in the narrowest type it
    /// has; what it cannot hold at all is an error.
    pub max_opset: i64,
}

impl Default for ExportOptions {
    /// Unsigned activations, signed weights, any operator set.
    fn default() -> Self {
        Self {
            activations: Signedness::Unsigned,
            weights: Signedness::Signed,
            max_opset: opset::MAX_TARGET,
        }
    }
}

/// The type of codes, and the first operator set that knows them in their layout.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoredAs {
    /// The type.
    pub dtype: DType,
    /// The operator set.
    pub opset: i64,
}

impl ExportOptions {
    /// How [`export`] will store the codes of the quantizer at a site, as far as that follows from its settings.
    ///
    /// # Errors
    /// `Quantizer` for a width that no type holds, and for a type that the target does not know.
    pub fn stored_as(&self, site: &Site) -> Result<StoredAs> {
        let quantizer = site.slot.quantizer();
        let num_bits = quantizer.num_bits().unwrap_or(0);
        let storage = match site.role {
            Role::Input | Role::Output => Storage::of_activation(num_bits, self, &site.name)?,
            Role::Weight | Role::Bias | Role::Constant => {
                Storage::of_weight(num_bits, self, &site.name)?
            }
        };
        let granularity = quantizer.as_range_settable().map(|settable| settable.granularity());
        let (per_axis, blocked) = match granularity {
            None | Some(Granularity::PerTensor) => (false, false),
            Some(Granularity::PerChannel { axes }) => (!axes.is_empty(), axes.len() > 1),
            Some(Granularity::PerBlock { .. } | Granularity::PerTile { .. }) => (true, true),
        };
        let (opset, _) = needed_opset(storage.dtype, per_axis, blocked);
        Ok(StoredAs { dtype: storage.dtype, opset })
    }
}

/// The numbers of parameters, those of each piece that is written at a time.
fn pieces(len: usize) -> impl Iterator<Item = Range<usize>> {
    const PIECE: usize = 1 << 16;
    (0..len).step_by(PIECE).map(move |start| start..len.min(start + PIECE))
}

/// The first operator set that knows codes of this type in this layout, and what needs it.
fn needed_opset(dtype: DType, per_axis: bool, blocked: bool) -> (i64, &'static str) {
    match dtype {
        DType::I2 | DType::U2 => (25, "2-bit codes"),
        DType::I4 | DType::U4 => (21, "4-bit codes"),
        DType::I16 | DType::U16 => (21, "16-bit codes"),
        _ if blocked => (21, "blocks"),
        _ if per_axis => (13, "parameters per channel"),
        _ => (10, "quantized values"),
    }
}

/// A quantized model, ready to be [saved](Model::save), and what stands in it.
#[derive(Clone, Debug)]
pub struct Exported {
    /// The model.
    pub model: Model,
    /// What was written where, and why.
    pub summary: ExportSummary,
}

/// Writes the quantizers of `tree` into a copy of `model`, whose tree it is.
///
/// A constant becomes an integer initializer and a `DequantizeLinear`; an activation a `QuantizeLinear` and a
/// `DequantizeLinear`; a bias between a quantized input and a quantized weight `int32` codes at the product of their
/// scales. The zero point is `-round(offset)`, and `2^(b-1)` more where codes are unsigned.
///
/// - Nothing that exists is renamed. New values are called `<value>_quantized`, `<value>_dequantized`, `<value>_scale`
///   and `<value>_zero_point`, with a number where that is taken. A quantized value that the graph returns keeps its
///   name, and its producer writes `<value>_unquantized`.
/// - Inputs of several nodes with the same parameters share a pair, and an input with the very parameters of its
///   producer's output adds none.
/// - Constants that nothing reads any more are removed.
/// - Codes of 2, 4, 8 and 16 bits have types of their own. Weights of other widths go into the next wider one.
/// - The operator set is the lowest that suffices: 10 per tensor, 13 per axis, 21 for blocks and for 4 and 16 bits, 25
///   for 2 bits; the model is brought there by [`opset::upgrade`].
///
/// All codes are held in memory, and in float a part of one tensor at a time. [`export_to`] holds no codes.
///
/// # Errors
/// `Quantizer` naming each site whose quantizer has no range, has a zero point that its type does not hold, or has a
/// width or tiles that ONNX cannot express where it stands; `Unsupported` naming each node that cannot be brought to the
/// operator set that is needed, and what needs it.
pub fn export(model: &Model, tree: &Tree, options: &ExportOptions) -> Result<Exported> {
    let exported = write_quantizers(model, tree, options, &mut Store::Inline)?;
    exported.model.check()?;
    Ok(exported)
}

/// [`export`] and [`Model::save`] in one, for models that are larger than memory: each tensor is read, quantized and
/// written to the data file beside `path` before the next one is read.
///
/// Everything of more than a kilobyte goes to the data file, which is called `<name of the file>.data`. Constants that are
/// not quantized are copied there from the files that they lie in. The parameters of quantizers are held in memory, and of
/// tensors a part of fixed size.
///
/// # Errors
/// As [`export`] and [`Model::save`].
pub fn export_to(
    model: &Model,
    tree: &Tree,
    options: &ExportOptions,
    path: &Path,
) -> Result<(Saved, ExportSummary)> {
    let (mut data, mut stored) = (model.data_file(path)?, HashSet::new());
    let mut store = Store::Beside { data: &mut data, stored: &mut stored };
    let Exported { model, summary } = write_quantizers(model, tree, options, &mut store)?;
    let saved = model.save_beside(path, data, &stored)?;
    Ok((saved, summary))
}

fn write_quantizers(
    model: &Model,
    tree: &Tree,
    options: &ExportOptions,
    store: &mut Store<'_>,
) -> Result<Exported> {
    let placement = place(model, tree)?;
    let mut writer = Writer {
        options,
        store,
        names: Names::of(model.graph()),
        edits: Edits::default(),
        needs: Vec::new(),
        constants: Vec::new(),
        activations: Vec::new(),
        problems: Vec::new(),
    };
    for placed in &placement.constants {
        match writer.constant(placed) {
            Ok(()) => {}
            // Files that cannot be read or written are no fault of a quantizer.
            Err(error) if error.is_of_files() => return Err(error),
            Err(error) => writer.problems.extend(error.problems().iter().cloned()),
        }
    }
    wire_activations(model, &placement.activations, "_dequantized", &mut writer);
    if !writer.problems.is_empty() {
        return Err(Error::many(ErrorKind::Quantizer, writer.problems));
    }

    let mut written = rewired(model, writer.edits, &placement);
    let opset = raise_opset(&mut written, &writer.needs)?;
    let summary = ExportSummary {
        size: SizeChange::between(model, &written),
        constants: writer.constants,
        activations: writer.activations,
        biases: placement.biases,
        opset: Some(opset),
    };
    Ok(Exported { model: written, summary })
}

/// Brings the model to the highest of the operator sets that sites need.
fn raise_opset(model: &mut Model, needs: &[Need]) -> Result<OpsetChange> {
    let before = model.opset("").unwrap_or(1);
    let after = needs.iter().map(|need| need.version).fold(before, i64::max);
    // One reason for each kind of need, with the first site that has it.
    let mut kinds: Vec<(&str, &str, usize)> = Vec::new();
    for need in needs.iter().filter(|need| need.version == after && after > before) {
        match kinds.iter_mut().find(|(what, ..)| *what == need.what) {
            Some((_, _, others)) => *others += 1,
            None => kinds.push((need.what, &need.site, 0)),
        }
    }
    let reasons: Vec<String> = kinds
        .into_iter()
        .map(|(what, site, others)| match others {
            0 => format!("{what} of `{site}`"),
            1 => format!("{what} of `{site}` and 1 other site"),
            n => format!("{what} of `{site}` and {n} other sites"),
        })
        .collect();
    let rewritten = opset::upgrade(model, after).map_err(|error| match reasons.first() {
        Some(reason) => error.within(format_args!("operator set {after}, needed for {reason}")),
        None => error,
    })?;
    Ok(OpsetChange { before, after, reasons, rewritten })
}

/// An operator set that a site needs, and for what.
struct Need {
    version: i64,
    what: &'static str,
    site: String,
}

struct Writer<'o, 's> {
    options: &'o ExportOptions,
    store: &'o mut Store<'s>,
    names: Names,
    edits: Edits,
    needs: Vec<Need>,
    constants: Vec<WrittenConstant>,
    activations: Vec<WrittenActivation>,
    problems: Vec<String>,
}

impl Writer<'_, '_> {
    fn constant(&mut self, placed: &PlacedConstant<'_>) -> Result<()> {
        let coded = placed.coded()?;
        let written = Written::of(&coded);
        let storage = match &placed.grid {
            Grid::Bias { .. } => Storage::bias(),
            Grid::Quantizer(_) => {
                Storage::of_weight(coded.parameters.num_bits, self.options, placed.place())?
            }
        };
        let is_blocked = written.block_size != 0;
        self.need(storage.dtype, written.axis.is_some(), is_blocked, placed.place())?;
        let parameters = &*coded.parameters;
        storage.check_zero_points(parameters, placed.place())?;
        let value = placed.constant.name();
        let [codes_name, scale_name, zero_name, target] =
            ["quantized", "scale", "zero_point", "dequantized"]
                .map(|what| self.names.fresh(&format!("{value}_{what}")));
        // Zero points of blocks take room, and 0 is what a missing one means. int32 has none.
        let has_zero_point = storage.dtype != DType::I32
            && (!is_blocked
                || (0..parameters.scale.len())
                    .any(|tile| storage.zero_point(parameters, tile) != 0));
        let codes = self.store.store(&codes_name, storage.dtype, &coded.shape, &mut |put| {
            let mut packer = Packer::new(storage, put);
            placed.write_codes(&coded, &mut |codes| packer.push(codes))?;
            packer.finish()
        })?;
        let mut tensors = vec![codes];
        tensors.push(self.store.store(&scale_name, DType::F32, &written.shape, &mut |put| {
            let scale = |at| parameters.scale[written.tile_of(at)];
            pieces(written.len()).try_for_each(|piece| {
                put(&piece.flat_map(|at| scale(at).to_le_bytes()).collect::<Vec<u8>>())
            })
        })?);
        let mut inputs = vec![codes_name.as_str(), &scale_name];
        if has_zero_point {
            // They are in the type's range, as was checked.
            let plain = Storage { shift: 0, ..storage };
            let (name, shape) = (&zero_name, &written.shape);
            tensors.push(self.store.store(name, storage.dtype, shape, &mut |put| {
                let mut packer = Packer::new(plain, put);
                let zero_point = |at| storage.zero_point(parameters, written.tile_of(at)) as i32;
                pieces(written.len()).try_for_each(|piece| {
                    packer.push(SomeCodes::I32(&piece.map(zero_point).collect::<Vec<i32>>()))
                })?;
                packer.finish()
            })?);
            inputs.push(&zero_name);
        }
        let edits = self.edits.graph(&placed.owner);
        tensors.into_iter().for_each(|tensor| edits.add_initializer(tensor));
        let node_name = self.names.fresh(&format!("{value}_DequantizeLinear"));
        let mut dequantize = node("DequantizeLinear", &node_name, &inputs, &[&target]);
        if let Some(axis) = written.axis {
            dequantize.attribute.push(attribute_int("axis", axis as i64));
        }
        if is_blocked {
            dequantize.attribute.push(attribute_int("block_size", written.block_size as i64));
        }
        edits.insert(placed.first_reader(), dequantize);
        for reader in &placed.readers {
            let edits = self.edits.graph(&reader.node.graph);
            edits.set_input(reader.node.index, reader.position, &target);
        }
        self.constants.push(WrittenConstant {
            sites: placed.sites.clone(),
            value: value.to_owned(),
            role: placed.role.name(),
            graph: placed.owner.clone(),
            codes: codes_name,
            scale: scale_name,
            zero_point: has_zero_point.then_some(zero_name),
            dequantized: target,
            dtype: storage.dtype.name(),
            bits: parameters.num_bits,
            scales: written.len(),
            axis: written.axis,
            block_size: written.block_size,
        });
        Ok(())
    }

    fn activation(
        &mut self,
        activation: &PlacedActivation,
        source: &str,
        target: &str,
        position: usize,
    ) -> Result<()> {
        let place = activation.sites[0].as_str();
        let parameters = &activation.parameters;
        let storage = Storage::of_activation(parameters.num_bits, self.options, place)?;
        self.need(storage.dtype, activation.axis.is_some(), false, place)?;
        storage.check_zero_points(parameters, place)?;
        let zero_points: Vec<i64> =
            (0..parameters.scale.len()).map(|tile| storage.zero_point(parameters, tile)).collect();
        let shape: &[usize] =
            if activation.axis.is_some() { &[parameters.scale.len()] } else { &[] };

        let value = activation.value.as_str();
        let [codes, scale, zero_point] = ["quantized", "scale", "zero_point"]
            .map(|what| self.names.fresh(&format!("{value}_{what}")));
        let mut source = source.to_owned();
        if parameters.narrow_range {
            source = self.clip(activation, &source, position)?;
        }
        let edits = self.edits.graph(&[]);
        edits.add_initializer(tensor_from_f32(&scale, shape, &parameters.scale));
        edits.add_initializer(tensor_from_codes(&zero_point, storage.dtype, shape, &zero_points)?);
        for (op, from, to) in
            [("QuantizeLinear", &*source, &*codes), ("DequantizeLinear", &codes, target)]
        {
            let name = self.names.fresh(&format!("{value}_{op}"));
            let mut made = node(op, &name, &[from, &scale, &zero_point], &[to]);
            if let Some(axis) = activation.axis {
                made.attribute.push(attribute_int("axis", axis as i64));
            }
            self.edits.graph(&[]).insert(position, made);
        }
        self.activations.push(WrittenActivation {
            sites: activation.sites.clone(),
            value: value.to_owned(),
            source,
            codes,
            scale,
            zero_point,
            dequantized: target.to_owned(),
            dtype: storage.dtype.name(),
            bits: parameters.num_bits,
            scales: parameters.scale.len(),
            axis: activation.axis,
        });
        Ok(())
    }

    /// Keeps a narrow grid narrow: `QuantizeLinear` saturates where its type ends, one code below.
    fn clip(
        &mut self,
        activation: &PlacedActivation,
        source: &str,
        position: usize,
    ) -> Result<String> {
        let parameters = &activation.parameters;
        if activation.axis.is_some() {
            return Err(Error::new(
                ErrorKind::Quantizer,
                format!(
                    "`{}`: a narrow range per channel cannot be written for an activation; use \
                     `narrow_range = false`, or per tensor",
                    activation.sites[0]
                ),
            ));
        }
        let value = activation.value.as_str();
        let bound = |code: i64| (code as f32 + parameters.rounded_offset(0)) * parameters.scale[0];
        let [low, high, clipped, name] = ["_clip_min", "_clip_max", "_clipped", "_Clip"]
            .map(|what| self.names.fresh(&format!("{value}{what}")));
        let edits = self.edits.graph(&[]);
        edits.add_initializer(tensor_from_f32(&low, &[], &[bound(parameters.lo())]));
        edits.add_initializer(tensor_from_f32(&high, &[], &[bound(parameters.hi())]));
        edits.insert(position, node("Clip", &name, &[source, &low, &high], &[&clipped]));
        self.needs.push(Need {
            version: 11,
            what: "the narrow range",
            site: activation.sites[0].clone(),
        });
        Ok(clipped)
    }

    /// Notes the operator set that a pair needs.
    fn need(&mut self, dtype: DType, per_axis: bool, blocked: bool, place: &str) -> Result<()> {
        let (version, what) = needed_opset(dtype, per_axis, blocked);
        if version > self.options.max_opset {
            return Err(Error::new(
                ErrorKind::Quantizer,
                format!(
                    "`{place}`: {what} need operator set {version}, the target knows {} at most",
                    self.options.max_opset
                ),
            ));
        }
        self.needs.push(Need { version, what, site: place.to_owned() });
        Ok(())
    }
}

impl Wiring for Writer<'_, '_> {
    fn quantize(
        &mut self,
        activation: &PlacedActivation,
        source: &str,
        target: &str,
        position: usize,
    ) {
        if let Err(error) = self.activation(activation, source, target, position) {
            self.problems.extend(error.problems().iter().cloned());
        }
    }

    fn edits(&mut self) -> &mut Edits {
        &mut self.edits
    }

    fn names(&mut self) -> &mut Names {
        &mut self.names
    }
}
