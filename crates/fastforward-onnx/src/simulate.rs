//! The graph with quantization in it, computed in float: what the file that is exported will mean.

use std::collections::HashSet;

use fastforward_core::quantization::affine::AffineParameters;

use crate::edit::{Edits, Names, remove_unused_constants};
use crate::error::{Error, ErrorKind, Result};
use crate::graph::{Dim, Model, tensor_from_f32};
use crate::placement::{ActivationKind, PlacedActivation, Placement, place};
use crate::proto::{GraphProto, NodeProto, TensorProto, node};
use crate::rounding;
use crate::shapes::ShapeTable;
use crate::tree::Tree;

pub use crate::placement::BiasOutcome;

/// A working copy of a model in which every quantizer of its tree is at work.
///
/// Quantized constants are replaced by what their quantizers make of them. Quantized activations go through plain nodes
/// with the arithmetic of the quantizer, `(clamp(round(x / s - round(o)), lo, hi) + round(o)) · s` (spec §4.2). A bias
/// between a quantized input and a quantized weight is rounded to multiples of the product of their scales, as it will be
/// in the exported file (see [`BiasOutcome`]).
///
/// The copy is made to be executed. It is never what is written: [`export`](crate::export::export) writes the same
/// quantizers as `QuantizeLinear` and `DequantizeLinear`.
///
/// ```
/// use std::sync::Arc;
/// use fastforward_core::quantization::quantizer::RangeSettable;
/// use fastforward_core::quantization::{LinearQuantizer, LinearQuantizerConfig};
/// use fastforward_onnx::engine::{Engine, EngineOptions};
/// use fastforward_onnx::simulate::{SimulateOptions, simulate};
/// use fastforward_onnx::{graph::Model, tensor::Tensor, tree::Tree};
/// # let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/digits/digits_mlp.onnx");
///
/// let model = Model::load(path.as_ref())?;
/// let tree = Tree::new(&model);
/// let site = tree.sites().iter().find(|site| site.name == "r1.output_quantizer").unwrap();
/// let quantizer = LinearQuantizer::new(LinearQuantizerConfig::new(2)).unwrap();
/// quantizer.set_quantization_range(&[0.0], &[3.0]).unwrap();
/// site.slot.replace(Arc::new(quantizer));
///
/// let simulated = simulate(&model, &tree, &SimulateOptions::default())?;
/// let engine = Engine::new(&simulated.model, &EngineOptions::default())?;
/// let images = Tensor::from_f32(vec![1, 1, 8, 8], vec![0.5; 64])?;
/// let r1 = &engine.run(&[("image", &images)], &[&simulated.activations[0].after])?[0];
/// assert!(r1.as_f32().unwrap().iter().all(|value| [0.0, 1.0, 2.0, 3.0].contains(value)));
/// # Ok::<(), fastforward_onnx::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Simulated {
    /// The working copy. Values that are not quantized keep their names.
    pub model: Model,
    /// The quantized activations, in the order in which they are computed in the tree.
    pub activations: Vec<SimulatedActivation>,
    /// What became of the biases between quantized weights and inputs.
    pub biases: Vec<BiasOutcome>,
}

impl Simulated {
    /// The name, in the working copy, of a value of the model before it is quantized.
    pub(crate) fn unquantized<'s>(&'s self, value: &'s str) -> &'s str {
        let own = self.activations.iter().find(|one| one.is_output && one.value == value);
        own.map_or(value, |one| &one.before)
    }
}

/// Where a quantized activation is found in [`Simulated::model`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SimulatedActivation {
    /// The sites that ask for it.
    pub sites: Vec<String>,
    /// The value's name in the model.
    pub value: String,
    /// The name of what is quantized.
    pub before: String,
    /// The name of what comes out, on the grid of the quantizer.
    pub after: String,
    /// Whether everything that reads the value sees it quantized, not only some readers.
    pub is_output: bool,
}

/// How to simulate.
#[derive(Clone, Debug, Default)]
pub struct SimulateOptions {
    /// Where activations are rounded.
    pub rounding: Rounding,
    /// The shapes of activations, beside those that the file states. They are needed where an activation is quantized per
    /// channel and the axis is counted from the first.
    pub shapes: ShapeTable,
}

/// Whether the offset is subtracted before or after rounding. The two differ at ties only, by one step, and only where
/// the offset is odd.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Rounding {
    /// `round(x / s - round(o))`: the quantizers' own arithmetic (spec §4.2).
    #[default]
    AfterOffset,
    /// `round(x / s) - round(o)`: what `QuantizeLinear` does.
    BeforeOffset,
}

/// Makes the working copy of `model` with the quantizers of `tree`, which is its tree.
///
/// # Errors
/// `Quantizer` naming each site whose quantizer has no range, does not fit the constant it stands at, or cannot be
/// expressed on an activation: per channel where the rank is unknown, per block, with parameters from the data.
pub fn simulate(model: &Model, tree: &Tree, options: &SimulateOptions) -> Result<Simulated> {
    let placement = place(model, tree)?;
    let mut builder = Builder {
        rounding: options.rounding,
        names: Names::of(model.graph()),
        edits: Edits::default(),
        stated: ShapeTable::stated(model),
        recorded: &options.shapes,
        problems: Vec::new(),
    };
    builder.constants(&placement);
    let activations =
        wire_activations(model, &placement.activations, "_fake_quantized", &mut builder);
    if !builder.problems.is_empty() {
        return Err(Error::many(ErrorKind::Quantizer, builder.problems));
    }
    let working = rewired(model, builder.edits, &placement);
    Ok(Simulated { model: working, activations, biases: placement.biases })
}

/// A copy of the model with edits, without the constants that only quantized readers had.
pub(crate) fn rewired(model: &Model, edits: Edits, placement: &Placement<'_>) -> Model {
    let mut model = model.clone();
    edits.apply(model.graph_mut());
    let names: HashSet<String> =
        placement.constants.iter().map(|one| one.constant.name().to_owned()).collect();
    for_each_graph(model.graph_mut(), &mut |graph| remove_unused_constants(graph, &names));
    model
}

fn for_each_graph(graph: &mut GraphProto, visit: &mut dyn FnMut(&mut GraphProto)) {
    for attribute in graph.node.iter_mut().flat_map(|node| &mut node.attribute) {
        attribute.g.iter_mut().chain(&mut attribute.graphs).for_each(|g| for_each_graph(g, visit));
    }
    visit(graph);
}

/// Puts something between producers and readers.
pub(crate) trait Wiring {
    /// Makes the nodes that quantize `source` into `target`, to stand before the node at `position`.
    fn quantize(
        &mut self,
        activation: &PlacedActivation,
        source: &str,
        target: &str,
        position: usize,
    );
    /// The changes so far.
    fn edits(&mut self) -> &mut Edits;
    /// The names that are free.
    fn names(&mut self) -> &mut Names;
}

/// Decides which name is read where, and has the nodes between made.
///
/// A value that the graph returns keeps its name for the quantized form: its producer then writes
/// `<value>_unquantized`. Any other keeps it for the unquantized form.
pub(crate) fn wire_activations(
    model: &Model,
    activations: &[PlacedActivation],
    suffix: &str,
    wiring: &mut dyn Wiring,
) -> Vec<SimulatedActivation> {
    let index = model.index();
    let mut wired: Vec<SimulatedActivation> = Vec::new();
    for activation in activations {
        let value = activation.value.as_str();
        let (before, after) = match &activation.kind {
            ActivationKind::Output(node, position) => {
                let (before, after) = if index.is_output(value) {
                    let before = wiring.names().fresh(&format!("{value}_unquantized"));
                    wiring.edits().graph(&[]).set_output(*node, *position, &before);
                    (before, value.to_owned())
                } else {
                    let after = wiring.names().fresh(&format!("{value}{suffix}"));
                    for reader in index.consumers(value) {
                        let edits = wiring.edits().graph(&[]);
                        match reader.input {
                            Some(input) => edits.set_input(reader.node, input, &after),
                            None => edits.set_captured(value, &after),
                        }
                    }
                    (value.to_owned(), after)
                };
                wiring.quantize(activation, &before, &after, node + 1);
                (before, after)
            }
            ActivationKind::Inputs(readers) => {
                // The producer's quantizer, if there is one, was wired before.
                let produced = wired.iter().find(|one| one.is_output && one.value == value);
                let before = produced.map_or(value, |one| one.after.as_str()).to_owned();
                let after = wiring.names().fresh(&format!("{value}{suffix}"));
                for reader in readers {
                    let edits = wiring.edits().graph(&[]);
                    edits.set_input(reader.node.index, reader.position, &after);
                }
                let first = readers.iter().map(|reader| reader.node.index).min().unwrap_or(0);
                wiring.quantize(activation, &before, &after, first);
                (before, after)
            }
        };
        wired.push(SimulatedActivation {
            sites: activation.sites.clone(),
            value: value.to_owned(),
            before,
            after,
            is_output: matches!(activation.kind, ActivationKind::Output(..)),
        });
    }
    wired
}

struct Builder<'o> {
    rounding: Rounding,
    names: Names,
    edits: Edits,
    stated: ShapeTable,
    recorded: &'o ShapeTable,
    problems: Vec<String>,
}

impl Builder<'_> {
    fn constants(&mut self, placement: &Placement<'_>) {
        for placed in &placement.constants {
            let made = placed.fake_quantized().and_then(|values| {
                let shape = placed.constant.info()?.shape;
                let name = self.names.fresh(&format!("{}_fake_quantized", placed.constant.name()));
                Ok(tensor_from_f32(&name, &shape, &values))
            });
            match made {
                Ok(tensor) => {
                    for reader in &placed.readers {
                        let edits = self.edits.graph(&reader.node.graph);
                        edits.set_input(reader.node.index, reader.position, tensor.name());
                    }
                    self.edits.graph(&placed.owner).add_initializer(tensor);
                }
                Err(error) => self.problems.push(error.to_string()),
            }
        }
    }

    fn shape(&self, value: &str) -> Option<&[Dim]> {
        self.recorded.get(value).or_else(|| self.stated.get(value))
    }

    fn constant(&mut self, base: &str, shape: &[usize], values: &[f32]) -> String {
        let name = self.names.fresh(base);
        self.add(tensor_from_f32(&name, shape, values));
        name
    }

    fn add(&mut self, tensor: TensorProto) {
        self.edits.graph(&[]).add_initializer(tensor);
    }

    /// The shape with which one parameter per index of `axis` broadcasts over a value.
    fn aligned(&self, activation: &PlacedActivation, n: usize) -> Result<Vec<usize>, String> {
        let Some(axis) = activation.axis else { return Ok(Vec::new()) };
        let rank = self.shape(&activation.value).map(<[Dim]>::len);
        let trailing = match (usize::try_from(axis), rank) {
            (Err(_), _) => axis.unsigned_abs() - 1,
            (Ok(axis), Some(rank)) if axis < rank => rank - axis - 1,
            (Ok(axis), Some(rank)) => {
                return Err(format!(
                    "`{}`: axis {axis} does not exist in `{}` of rank {rank}",
                    activation.sites[0], activation.value
                ));
            }
            (Ok(axis), None) => {
                return Err(format!(
                    "`{}`: the rank of `{}` is unknown, so axis {axis} cannot be placed; count the axis from the \
                     last, as a negative number, or give the shapes of activations (`SimulateOptions::shapes`)",
                    activation.sites[0], activation.value
                ));
            }
        };
        let mut shape = vec![1; trailing + 1];
        shape[0] = n;
        Ok(shape)
    }

    /// The scale as a divisor that the engine really divides by: it multiplies by the reciprocal of a divisor of one
    /// element, which differs unless that is a power of two.
    fn divisor(&mut self, chain: &mut Chain<'_>, scale: &str, scales: &[f32]) -> String {
        let [single] = scales else { return scale.to_owned() };
        if single.is_normal() && single.to_bits() & 0x007f_ffff == 0 {
            return scale.to_owned();
        }
        let last = self.shape(chain.base).and_then(<[Dim]>::last).cloned();
        let base = format!("{}_divisor", chain.base);
        if let Some(Dim::Fixed(last @ 2..=65_536)) = last {
            return self.constant(&base, &[last], &vec![*single; last]);
        }
        let shape = self.names.fresh(&format!("{}_shape", chain.base));
        let divisor = self.names.fresh(&base);
        chain.nodes.push(node("Shape", "", &[&chain.value], &[&shape]));
        chain.nodes.push(node("Expand", "", &[scale, &shape], &[&divisor]));
        divisor
    }

    fn step(&mut self, chain: &mut Chain<'_>, op_type: &str, others: &[&str]) {
        let output = self.names.fresh(&format!("{}_{}", chain.base, op_type.to_lowercase()));
        let mut inputs = vec![chain.value.as_str()];
        inputs.extend_from_slice(others);
        let made = node(op_type, "", &inputs, &[&output]);
        chain.nodes.push(made);
        chain.value = output;
    }

    fn chain(
        &mut self,
        activation: &PlacedActivation,
        source: &str,
    ) -> Result<Vec<NodeProto>, String> {
        let parameters: &AffineParameters = &activation.parameters;
        let shape = self.aligned(activation, parameters.scale.len())?;
        let base = activation.value.as_str();
        let mut chain = Chain { base, value: source.to_owned(), nodes: Vec::new() };
        let scale = self.constant(&format!("{base}_scale"), &shape, &parameters.scale);
        let offsets: Vec<f32> =
            (0..parameters.scale.len()).map(|tile| parameters.rounded_offset(tile)).collect();
        let has_offset = offsets.iter().any(|&offset| offset != 0.0);
        let bounds = [parameters.lo() as f32, parameters.hi() as f32];

        let divisor = self.divisor(&mut chain, &scale, &parameters.scale);
        self.step(&mut chain, "Div", &[&divisor]);
        match (self.rounding, rounding::one_of(&offsets)) {
            _ if !has_offset => self.round_and_clip(&mut chain, bounds, &[], &[0.0]),
            // Codes and offset are whole numbers: the offset may as well be added to the bounds.
            (Rounding::BeforeOffset, Some(offset)) => {
                self.round_and_clip(&mut chain, bounds.map(|bound| bound + offset), &[], &[0.0]);
            }
            (Rounding::BeforeOffset, None) => {
                let offset = self.constant(&format!("{base}_offset"), &shape, &offsets);
                self.step(&mut chain, "Round", &[]);
                self.step(&mut chain, "Sub", &[&offset]);
                self.clip(&mut chain, bounds);
                self.step(&mut chain, "Add", &[&offset]);
            }
            (Rounding::AfterOffset, _) => {
                let offset = self.constant(&format!("{base}_offset"), &shape, &offsets);
                self.step(&mut chain, "Sub", &[&offset]);
                self.round_and_clip(&mut chain, bounds, &shape, &offsets);
            }
        }
        self.step(&mut chain, "Mul", &[&scale]);
        Ok(chain.nodes)
    }

    fn clip(&mut self, chain: &mut Chain<'_>, bounds: [f32; 2]) {
        let names = ["lo", "hi"].map(|name| format!("{}_{name}", chain.base));
        let [lo, hi] = [0, 1].map(|at| self.constant(&names[at], &[], &bounds[at..=at]));
        self.step(chain, "Clip", &[&lo, &hi]);
    }

    /// `clamp(round(x), bounds) + offset` for whole bounds and offsets, the latter in the given shape.
    fn round_and_clip(
        &mut self,
        chain: &mut Chain<'_>,
        bounds: [f32; 2],
        shape: &[usize],
        offsets: &[f32],
    ) {
        if let Some(constants) = rounding::by_adding(bounds, offsets) {
            // Between whole bounds it is the same whether rounding or clipping comes first.
            self.clip(chain, bounds);
            let added = self.constant(&format!("{}_whole", chain.base), &[], &[constants.added]);
            self.step(chain, "Add", &[&added]);
            let name = format!("{}_rest", chain.base);
            let subtracted = self.constant(&name, shape, &constants.subtracted);
            self.step(chain, "Sub", &[&subtracted]);
            return;
        }
        self.step(chain, "Round", &[]);
        self.clip(chain, bounds);
        if offsets.iter().any(|&offset| offset != 0.0) {
            let offset = self.constant(&format!("{}_offset", chain.base), shape, offsets);
            self.step(chain, "Add", &[&offset]);
        }
    }
}

/// A value on its way through the nodes that quantize it.
struct Chain<'a> {
    /// What new names start with.
    base: &'a str,
    value: String,
    nodes: Vec<NodeProto>,
}

impl Wiring for Builder<'_> {
    fn quantize(
        &mut self,
        activation: &PlacedActivation,
        source: &str,
        target: &str,
        position: usize,
    ) {
        match self.chain(activation, source) {
            Ok(mut nodes) => {
                if let Some(output) = nodes.last_mut().and_then(|last| last.output.first_mut()) {
                    target.clone_into(output);
                }
                for node in nodes {
                    self.edits.graph(&[]).insert(position, node);
                }
            }
            Err(problem) => self.problems.push(problem),
        }
    }

    fn edits(&mut self) -> &mut Edits {
        &mut self.edits
    }

    fn names(&mut self) -> &mut Names {
        &mut self.names
    }
}
