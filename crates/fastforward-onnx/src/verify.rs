//! Reading an exported file back and proving that it means what its quantizers say.

use std::collections::HashMap;
use std::path::Path;

use fastforward_core::quantization::affine::Part;
use ff_kernels::Difference;
use serde::Serialize;

use crate::calibrate::{Batch, Progress};
use crate::compare::{LayerDifference, constant_row, difference, sqnr_db};
use crate::dtype::DType;
use crate::engine::{Engine, EngineOptions, check_operators};
use crate::error::{Error, ErrorKind, Result};
use crate::export::{ExportSummary, WrittenActivation, WrittenConstant};
use crate::graph::{Model, constants_of};
use crate::placement::{Mismatch, PlacedActivation, PlacedConstant, place};
use crate::proto::{GraphProto, NodeProto, TensorProto};
use crate::qdq::Decoder;
use crate::shapes::ShapeTable;
use crate::simulate::{Rounding, SimulateOptions, simulate};
use crate::tensor::Tensor;
use crate::tree::Tree;

/// How to verify.
#[derive(Clone, Debug, Default)]
pub struct VerifyOptions {
    /// The engine.
    pub engine: EngineOptions,
    /// The shapes of activations, as in [`SimulateOptions::shapes`].
    pub shapes: ShapeTable,
}

/// What was found equal, and how far what may differ does.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Verification {
    /// Constants whose codes decode to exactly what their quantizers make of them.
    pub constants: usize,
    /// Activations whose nodes stand in the file with exactly the parameters of their quantizers.
    pub activations: usize,
    /// Batches that went through the file and the simulation.
    pub batches: usize,
    /// One per float output of the graph; empty where nothing was executed.
    pub outputs: Vec<OutputAgreement>,
    /// Why nothing was executed, each reason a phrase; empty where something was.
    pub not_executed: Vec<String>,
}

/// An output of the file beside that of the simulation.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct OutputAgreement {
    /// The output.
    pub name: String,
    /// The file against the simulation that rounds as `QuantizeLinear` does ([`Rounding::BeforeOffset`]): both compute
    /// the same in the same order, so this is expected to be exact, and has a bound.
    pub same_rounding: Agreement,
    /// The file against the simulation proper ([`Rounding::AfterOffset`]). It differs where `x / s` is a tie and the
    /// offset odd, by one step each; what follows from that is for the user to judge, and usually nothing.
    pub simulation: Agreement,
    /// The simulation proper against the float graph: the quantization noise, for comparison.
    pub float: Agreement,
    /// The largest noise power at which `same_rounding` holds: a hundredth of the quantization noise.
    pub allowed_noise_power: f64,
}

/// How far two tensors are apart.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Agreement {
    /// `max |a - b|`, 0 where they are equal.
    pub max_abs_difference: f64,
    /// `Σ (a - b)²`.
    pub noise_power: f64,
    /// `10 · log10(Σ a² / Σ (a - b)²)`, infinite where they are equal.
    pub sqnr_db: f64,
    /// The share of rows along the last axis whose largest element stands at the same place; `None` for outputs of fewer
    /// than two axes, or with a last axis of one element.
    pub same_top1: Option<f64>,
}

/// Loads the file at `path` anew and compares it with the model and the quantizers it was exported from.
///
/// 1. Every quantized constant is decoded as [`qdq::evaluate`](crate::qdq::evaluate) does and must equal, bit for bit but for the sign of zero, what
///    its quantizer makes of the float constant.
/// 2. Every pair must stand between the values that the summary names, with scale and zero point equal to the
///    quantizer's.
/// 3. The file is executed on `batches` beside the simulation. Rounding ties the way `QuantizeLinear` does, both must
///    give the same; where nodes were rewritten for a newer operator set, floating-point order may differ, and the noise
///    power of the difference must stay below a hundredth of that of quantization.
///
/// The third step is left out, and [`Verification::not_executed`] says why, without batches; and where the engine lacks an
/// operator and no activation is quantized: the constants are proven by the first step.
///
/// # Errors
/// `Verification` with everything that differs; the errors of [`Model::load`], of [`Engine::new`] and of
/// [`Engine::run`].
pub fn verify(
    path: &Path,
    model: &Model,
    tree: &Tree,
    summary: &ExportSummary,
    batches: impl IntoIterator<Item = Result<Batch>>,
    options: &VerifyOptions,
    progress: &mut dyn Progress,
) -> Result<Verification> {
    let verified = verify_and_compare(path, model, tree, summary, batches, options, progress);
    verified.map(|(verification, _)| verification)
}

/// [`verify`], and how far each constant is moved, which the first step shows by the way.
pub(crate) fn verify_and_compare(
    path: &Path,
    model: &Model,
    tree: &Tree,
    summary: &ExportSummary,
    batches: impl IntoIterator<Item = Result<Batch>>,
    options: &VerifyOptions,
    progress: &mut dyn Progress,
) -> Result<(Verification, Vec<LayerDifference>)> {
    let file = Model::load(path)?;
    let placement = place(model, tree)?;
    let mut problems = Vec::new();
    let mut moved = Vec::new();
    if placement.constants.len() != summary.constants.len()
        || placement.activations.len() != summary.activations.len()
    {
        problems.push("the summary is that of other quantizers than the tree holds now".to_owned());
    }
    let contents = Contents::of(&file);
    for (placed, written) in placement.constants.iter().zip(&summary.constants) {
        match contents.check_constant(placed, written) {
            Ok(difference) => moved.push(constant_row(placed, &difference)),
            Err(problem) => problems.push(format!("`{}`: {problem}", placed.place())),
        }
    }
    for (placed, written) in placement.activations.iter().zip(&summary.activations) {
        if let Err(problem) = contents.check_activation(placed, written) {
            problems.push(format!("`{}`: {problem}", placed.sites[0]));
        }
    }
    if !problems.is_empty() {
        return Err(failed(path, problems));
    }

    let has_odd_offsets = placement.activations.iter().any(|one| {
        (0..one.parameters.scale.len()).any(|tile| one.parameters.rounded_offset(tile) % 2.0 != 0.0)
    });
    let mut verification = Verification {
        constants: placement.constants.len(),
        activations: placement.activations.len(),
        batches: 0,
        outputs: Vec::new(),
        not_executed: Vec::new(),
    };
    let mut batches = batches.into_iter().peekable();
    if let Err(error) = check_operators(model)
        && (placement.activations.is_empty() || batches.peek().is_none())
    {
        verification.not_executed = error.problems().to_vec();
        return Ok((verification, moved));
    }
    if batches.peek().is_none() {
        verification.not_executed.push("there are no samples".to_owned());
        return Ok((verification, moved));
    }
    let (count, outputs) = run(&file, model, tree, has_odd_offsets, batches, options, progress)?;
    let problems: Vec<String> = outputs.iter().filter_map(OutputAgreement::problem).collect();
    if !problems.is_empty() {
        return Err(failed(path, problems));
    }
    Ok((Verification { batches: count, outputs, ..verification }, moved))
}

fn failed(path: &Path, problems: Vec<String>) -> Error {
    Error::many(ErrorKind::Verification, problems).within(format_args!("`{}`", path.display()))
}

impl OutputAgreement {
    /// Whether the file does what it should.
    pub fn holds(&self) -> bool {
        // Written so that NaN does not hold.
        self.same_rounding.max_abs_difference == 0.0
            || self.same_rounding.noise_power <= self.allowed_noise_power
    }

    fn problem(&self) -> Option<String> {
        (!self.holds()).then(|| {
            format!(
                "output `{}` differs from the simulation by up to {:.3e} ({:.1} dB): noise power {:.3e}, expected at \
                 most {:.3e}",
                self.name,
                self.same_rounding.max_abs_difference,
                self.same_rounding.sqnr_db,
                self.same_rounding.noise_power,
                self.allowed_noise_power
            )
        })
    }
}

/// The nodes and constants of a file, nested graphs included; names are unique in all of it.
struct Contents<'f> {
    file: &'f Model,
    producers: HashMap<&'f str, &'f NodeProto>,
    constants: HashMap<&'f str, TensorProto>,
}

impl<'f> Contents<'f> {
    fn of(file: &'f Model) -> Self {
        let mut contents = Self { file, producers: HashMap::new(), constants: HashMap::new() };
        contents.collect(file.graph());
        contents
    }

    fn collect(&mut self, graph: &'f GraphProto) {
        for constant in constants_of(graph, self.file.folder()) {
            self.constants.insert(constant.name(), constant.proto().clone());
        }
        for node in &graph.node {
            for output in &node.output {
                self.producers.insert(output, node);
            }
            for (_, nested) in node.subgraphs() {
                self.collect(nested);
            }
        }
    }

    fn node(&self, op_type: &str, output: &str) -> Result<&'f NodeProto, String> {
        match self.producers.get(output) {
            Some(node) if node.is_standard(op_type) => Ok(node),
            Some(node) => {
                Err(format!("`{output}` comes from {}, expected {op_type}", node.op_type()))
            }
            None => Err(format!("nothing computes `{output}`")),
        }
    }

    fn constant(&self, name: &str) -> Result<&TensorProto, String> {
        self.constants.get(name).ok_or_else(|| format!("constant `{name}` is missing"))
    }

    fn check_constant(
        &self,
        placed: &PlacedConstant<'_>,
        written: &WrittenConstant,
    ) -> Result<Difference, String> {
        let node = self.node("DequantizeLinear", &written.dequantized)?;
        let inputs: Vec<Option<&TensorProto>> = node
            .input
            .iter()
            .map(|name| self.constant(name).map(Some))
            .collect::<Result<_, String>>()?;
        let text = |error: Error| error.to_string();
        let decoder = Decoder::new(node, &inputs, self.file.folder()).map_err(text)?;
        let shape = placed.constant.info().map_err(text)?.shape;
        if decoder.shape() != shape {
            return Err(format!("codes of shape {:?}, expected {shape:?}", decoder.shape()));
        }
        let decode = |part: &Part, out: &mut Vec<f32>| {
            *out = decoder.decode(part)?;
            Ok(())
        };
        match placed.compare(Some(&decode)).map_err(text)? {
            (difference, None) => Ok(difference),
            (_, Some(Mismatch { element, found, expected })) => Err(format!(
                "element {element} of `{}` decodes to {found}, expected {expected}",
                written.codes
            )),
        }
    }

    fn check_activation(
        &self,
        placed: &PlacedActivation,
        written: &WrittenActivation,
    ) -> Result<(), String> {
        let quantize = self.node("QuantizeLinear", &written.codes)?;
        let dequantize = self.node("DequantizeLinear", &written.dequantized)?;
        let names =
            |first: &str| [first.to_owned(), written.scale.clone(), written.zero_point.clone()];
        if quantize.input != names(&written.source) || dequantize.input != names(&written.codes) {
            return Err(format!(
                "the pair reads {:?} and {:?}, expected `{}` and `{}` with `{}` and `{}`",
                quantize.input,
                dequantize.input,
                written.source,
                written.codes,
                written.scale,
                written.zero_point
            ));
        }
        let axis = placed.axis.map_or(1, |axis| axis as i64);
        for node in [quantize, dequantize] {
            if node.int_or("axis", 1) != axis || node.int_or("block_size", 0) != 0 {
                return Err(format!("`{}` has another axis than {axis}", node.label()));
            }
        }
        let parameters = &placed.parameters;
        let text = |error: Error| error.to_string();
        let scale = self.constant(&written.scale)?;
        let scale = crate::graph::data::to_f32(scale, self.file.folder()).map_err(text)?;
        if scale != parameters.scale {
            return Err(format!("scale {scale:?}, expected {:?}", parameters.scale));
        }
        let zero_point = self.constant(&written.zero_point)?;
        let dtype = DType::from_onnx(zero_point.data_type()).map_err(text)?;
        if dtype.bits() != parameters.num_bits {
            return Err(format!("codes of type {dtype}, expected {} bits", parameters.num_bits));
        }
        let shift = if dtype.is_signed_int() { 0 } else { 1i64 << (parameters.num_bits - 1) };
        let expected: Vec<i64> = (0..parameters.scale.len())
            .map(|tile| shift - parameters.rounded_offset(tile) as i64)
            .collect();
        let found = crate::graph::data::to_i64(zero_point, self.file.folder()).map_err(text)?;
        if found == expected {
            Ok(())
        } else {
            Err(format!("zero point {found:?}, expected {expected:?}"))
        }
    }
}

/// The sums of one output over all batches.
#[derive(Default)]
struct Sums {
    same_rounding: Pair,
    simulation: Pair,
    float: Pair,
}

#[derive(Default)]
struct Pair {
    difference: Difference,
    rows: usize,
    same_rows: usize,
}

impl Pair {
    fn add(&mut self, reference: &Tensor, other: &Tensor) -> Result<()> {
        if reference.shape() != other.shape() {
            return Err(Error::new(
                ErrorKind::Verification,
                format!("shape {:?}, expected {:?}", other.shape(), reference.shape()),
            ));
        }
        let (a, b) = (reference.floats(), other.floats());
        self.difference = self.difference.merge(&difference(&a, &b)?);
        let last = reference.shape().last().copied().unwrap_or(0);
        if reference.shape().len() > 1 && last > 1 {
            let rows = a.chunks_exact(last).zip(b.chunks_exact(last));
            self.rows += a.len() / last;
            self.same_rows += rows.filter(|(a, b)| top1(a) == top1(b)).count();
        }
        Ok(())
    }

    fn agreement(&self) -> Agreement {
        let d = &self.difference;
        Agreement {
            max_abs_difference: d.max_abs,
            noise_power: d.sum_error_squared,
            sqnr_db: sqnr_db(d),
            same_top1: (self.rows > 0).then(|| self.same_rows as f64 / self.rows as f64),
        }
    }
}

/// The place of the largest element, the first of equal ones.
fn top1(row: &[f32]) -> usize {
    let better = |best: usize, at: usize| if row[at] > row[best] { at } else { best };
    (1..row.len()).fold(0, better)
}

fn run(
    file: &Model,
    model: &Model,
    tree: &Tree,
    has_odd_offsets: bool,
    batches: impl Iterator<Item = Result<Batch>>,
    options: &VerifyOptions,
    progress: &mut dyn Progress,
) -> Result<(usize, Vec<OutputAgreement>)> {
    let total = batches.size_hint().1;
    let engine = |rounding| -> Result<Engine> {
        let simulated =
            simulate(model, tree, &SimulateOptions { rounding, shapes: options.shapes.clone() })?;
        Engine::new(&simulated.model, &options.engine)
    };
    let written = Engine::new(file, &options.engine)?;
    let same_rounding = engine(Rounding::BeforeOffset)?;
    let simulation = has_odd_offsets.then(|| engine(Rounding::AfterOffset)).transpose()?;
    let float = Engine::new(model, &options.engine)?;

    let names: Vec<String> = model
        .outputs()
        .into_iter()
        .filter(|output| output.dtype.is_none_or(DType::is_float))
        .map(|output| output.name)
        .collect();
    let outputs: Vec<&str> = names.iter().map(String::as_str).collect();
    let mut sums: Vec<Sums> = names.iter().map(|_| Sums::default()).collect();
    let mut count = 0;
    for batch in batches {
        let batch = batch?;
        let inputs: Vec<(&str, &Tensor)> = batch.iter().map(|(n, t)| (n.as_str(), t)).collect();
        let engines = [Some(&written), Some(&same_rounding), Some(&float), simulation.as_ref()];
        let runs: Vec<(&Engine, &[&str])> =
            engines.into_iter().flatten().map(|engine| (engine, &outputs[..])).collect();
        let values: Vec<Vec<Tensor>> =
            Engine::run_side_by_side(&inputs, &runs).into_iter().collect::<Result<_>>()?;
        let [found, before, floats] = [0, 1, 2].map(|at| &values[at]);
        let after = values.get(3).unwrap_or(before);
        for (at, sums) in sums.iter_mut().enumerate() {
            let place = |error: Error| error.within(format_args!("output `{}`", names[at]));
            sums.same_rounding.add(&before[at], &found[at]).map_err(place)?;
            sums.simulation.add(&after[at], &found[at]).map_err(place)?;
            sums.float.add(&floats[at], &after[at]).map_err(place)?;
        }
        count += 1;
        progress.batch(count, total);
    }
    let agreements = names.into_iter().zip(sums).map(|(name, sums)| {
        let float = sums.float.agreement();
        OutputAgreement {
            name,
            same_rounding: sums.same_rounding.agreement(),
            simulation: sums.simulation.agreement(),
            allowed_noise_power: float.noise_power / 100.0,
            float,
        }
    });
    Ok((count, agreements.collect()))
}
