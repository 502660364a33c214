//! A block as a list of steps that runs forward, and backward for gradients.

use std::collections::HashMap;

use fastforward_core::quantization::affine::AffineParameters;
use ff_kernels::{Tiling, fake_quantize, fake_quantize_backward};

use super::Block;
use super::operation::Operation;
use super::value::Value;
use crate::graph::{GraphIndex, Model};
use crate::placement::PlacedActivation;
use crate::simulate::{Simulated, SimulatedActivation};

/// The arithmetic of a block in the simulated network.
pub(super) struct Tape {
    steps: Vec<Step>,
    /// How many values there are; the first is the input.
    n_values: usize,
    output: Operand,
    constants: Vec<Value>,
    /// Which constants are the weights of the block's layers.
    weights: Vec<usize>,
    /// Of each value, whether it depends on one of these weights.
    depends: Vec<bool>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Operand {
    Value(usize),
    Constant(usize),
}

struct Step {
    what: What,
    operands: Vec<Operand>,
    output: usize,
    /// How messages name it.
    label: String,
}

enum What {
    Node(Operation),
    Quantizer(ActivationQuantizer),
}

/// Fake quantization of an activation, through which gradients pass where nothing is clipped.
struct ActivationQuantizer {
    parameters: AffineParameters,
    axis: Option<isize>,
}

/// The values of a block for one batch.
pub(super) struct Values<'v> {
    input: &'v Value,
    made: Vec<Option<Value>>,
}

impl Tape {
    /// The steps of `block` in a simulation of `model`, whose quantized activations are `placed`; those are quantized on the
    /// tape if `quantized` says so.
    ///
    /// # Errors
    /// Why the block has no gradient.
    pub(super) fn new(
        (model, simulated): (&Model, &Simulated),
        placed: &[PlacedActivation],
        block: &Block,
        quantized: bool,
    ) -> Result<Self, String> {
        let raw = |value: &str| simulated.unquantized(value).to_owned();
        let mut targets = HashMap::new();
        for (number, layer) in block.layers.iter().enumerate() {
            let node = model.graph().node.get(layer.weight.node.index);
            let output = node.and_then(|node| node.output.first());
            let output = output.ok_or_else(|| format!("`{}` is no node", layer.name))?;
            targets.insert(raw(output), number);
        }
        let input = raw(&block.input);
        let mut builder = Builder {
            model: &simulated.model,
            index: simulated.model.index(),
            activations: simulated.activations.iter().zip(placed).collect(),
            quantized,
            targets,
            operands: HashMap::from([(input, Operand::Value(0))]),
            tape: Self {
                steps: Vec::new(),
                n_values: 1,
                output: Operand::Value(0),
                constants: Vec::new(),
                weights: vec![usize::MAX; block.layers.len()],
                depends: vec![false],
            },
        };
        builder.tape.output = builder.operand(&raw(&block.output))?;
        let tape = builder.tape;
        match tape.weights.iter().position(|&at| at == usize::MAX) {
            Some(number) => {
                Err(format!("`{}` is not on the way to its output", block.layers[number].name))
            }
            None => Ok(tape),
        }
    }

    /// The weights of the block's layers as the simulation has them.
    pub(super) fn weights(&self) -> Vec<Vec<f32>> {
        self.weights.iter().map(|&at| self.constants[at].data.clone()).collect()
    }

    /// Puts other weights in their place.
    pub(super) fn set_weights(&mut self, weights: &[Vec<f32>]) {
        for (&at, weight) in self.weights.iter().zip(weights) {
            self.constants[at].data.clone_from(weight);
        }
    }

    /// Computes the values of the block.
    ///
    /// # Errors
    /// Shapes that do not fit, with the node.
    pub(super) fn forward<'v>(&self, input: &'v Value) -> Result<Values<'v>, String> {
        let mut values = Values { input, made: (0..self.n_values).map(|_| None).collect() };
        for step in &self.steps {
            let operands = self.operands(step, &values)?;
            let found = match &step.what {
                What::Node(operation) => operation.forward(&operands),
                What::Quantizer(quantizer) => quantizer.forward(operands[0]),
            };
            values.made[step.output] =
                Some(found.map_err(|reason| format!("`{}`: {reason}", step.label))?);
        }
        Ok(values)
    }

    /// The block's output.
    ///
    /// # Errors
    /// Where [`forward`](Self::forward) did not make these values.
    pub(super) fn output<'v>(&'v self, values: &'v Values<'_>) -> Result<&'v Value, String> {
        self.operand(self.output, values)
    }

    /// The gradients of the weights, of which the loss has `gradient` by the output.
    ///
    /// # Errors
    /// As for [`forward`](Self::forward).
    pub(super) fn backward(
        &self,
        values: &Values<'_>,
        gradient: Vec<f32>,
    ) -> Result<Vec<Vec<f32>>, String> {
        let mut by_value: Vec<Option<Vec<f32>>> = (0..self.n_values).map(|_| None).collect();
        let zeros = |at: &usize| vec![0.0; self.constants[*at].data.len()];
        let mut by_weight: Vec<Vec<f32>> = self.weights.iter().map(zeros).collect();
        if let Operand::Value(output) = self.output {
            by_value[output] = Some(gradient);
        }
        for step in self.steps.iter().rev() {
            let Some(gradient) = by_value[step.output].take() else { continue };
            let wrong = |reason: String| format!("`{}`: {reason}", step.label);
            let operands = self.operands(step, values)?;
            for (at, operand) in step.operands.iter().enumerate() {
                let target = match operand {
                    Operand::Value(value) if self.depends[*value] => None,
                    Operand::Constant(at) => match self.weights.iter().position(|one| one == at) {
                        Some(number) => Some(number),
                        None => continue,
                    },
                    Operand::Value(_) => continue,
                };
                let found = match &step.what {
                    What::Node(operation) => operation.backward(&operands, at, &gradient),
                    What::Quantizer(quantizer) => quantizer.backward(operands[0], &gradient),
                };
                let found = found.map_err(wrong)?;
                match (target, operand) {
                    (Some(number), _) => add(&mut by_weight[number], &found),
                    (None, Operand::Value(value)) => match &mut by_value[*value] {
                        Some(sum) => add(sum, &found),
                        empty => *empty = Some(found),
                    },
                    (None, Operand::Constant(_)) => {}
                }
            }
        }
        Ok(by_weight)
    }

    fn operands<'v>(
        &'v self,
        step: &Step,
        values: &'v Values<'_>,
    ) -> Result<Vec<&'v Value>, String> {
        step.operands.iter().map(|&operand| self.operand(operand, values)).collect()
    }

    fn operand<'v>(
        &'v self,
        operand: Operand,
        values: &'v Values<'_>,
    ) -> Result<&'v Value, String> {
        match operand {
            Operand::Constant(at) => Ok(&self.constants[at]),
            Operand::Value(0) => Ok(values.input),
            Operand::Value(at) => values.made.get(at).and_then(Option::as_ref).ok_or_else(|| {
                "a value is read before it is computed; the nodes have no order".to_owned()
            }),
        }
    }
}

fn add(sum: &mut [f32], more: &[f32]) {
    sum.iter_mut().zip(more).for_each(|(sum, more)| *sum += more);
}

/// Follows the simulated graph from the block's output to its input.
struct Builder<'b> {
    model: &'b Model,
    index: GraphIndex,
    activations: Vec<(&'b SimulatedActivation, &'b PlacedActivation)>,
    quantized: bool,
    /// The layer whose result a value is.
    targets: HashMap<String, usize>,
    /// What was found already.
    operands: HashMap<String, Operand>,
    tape: Tape,
}

impl Builder<'_> {
    fn operand(&mut self, name: &str) -> Result<Operand, String> {
        if let Some(&found) = self.operands.get(name) {
            return Ok(found);
        }
        let found = self.find(name)?;
        self.operands.insert(name.to_owned(), found);
        Ok(found)
    }

    fn find(&mut self, name: &str) -> Result<Operand, String> {
        let activation = self.activations.iter().find(|(one, _)| one.after == name).copied();
        if let Some((simulated, placed)) = activation {
            let before = self.operand(&simulated.before)?;
            if !self.quantized {
                return Ok(before);
            }
            let quantizer =
                ActivationQuantizer { parameters: placed.parameters.clone(), axis: placed.axis };
            return Ok(self.step(What::Quantizer(quantizer), vec![before], name.to_owned()));
        }
        if let Some(constant) = self.model.constant(name) {
            let wrong = |error: crate::error::Error| format!("constant `{name}`: {error}");
            let shape = constant.info().map_err(wrong)?.shape;
            let data = constant.to_f32().map_err(wrong)?;
            self.tape.constants.push(Value { shape, data });
            return Ok(Operand::Constant(self.tape.constants.len() - 1));
        }
        let producer = self.index.producer(name);
        let node = producer.map(|at| &self.model.graph().node[at]);
        let Some(node) = node else {
            return Err(format!("it reads `{name}` from outside"));
        };
        let model = self.model;
        let is_varying = |value: &str| model.constant(value).is_none();
        let operation = Operation::of(node, model, &is_varying)
            .map_err(|reason| format!("`{}` ({}): {reason}", node.label(), node.op_type()))?;
        let names: Vec<String> = (0..operation.operands())
            .filter_map(|at| node.input_at(at).map(str::to_owned))
            .collect();
        let label = node.label().to_owned();
        let operands =
            names.iter().map(|name| self.operand(name)).collect::<Result<Vec<_>, String>>()?;
        if let Some(&number) = self.targets.get(name) {
            match operands.get(1) {
                Some(Operand::Constant(at)) => self.tape.weights[number] = *at,
                _ => return Err(format!("`{label}`: its weight is no constant")),
            }
        }
        Ok(self.step(What::Node(operation), operands, label))
    }

    fn step(&mut self, what: What, operands: Vec<Operand>, label: String) -> Operand {
        let tape = &mut self.tape;
        let output = tape.n_values;
        let depends = operands.iter().any(|operand| match operand {
            Operand::Value(value) => tape.depends[*value],
            Operand::Constant(at) => tape.weights.contains(at),
        });
        tape.n_values += 1;
        tape.depends.push(depends);
        tape.steps.push(Step { what, operands, output, label });
        Operand::Value(output)
    }
}

impl ActivationQuantizer {
    fn tiling(&self, x: &Value) -> Result<Tiling, String> {
        let mut tile = x.shape.clone();
        if let Some(axis) = self.axis {
            let rank = tile.len() as isize;
            let at = usize::try_from(if axis < 0 { axis + rank } else { axis }).ok();
            let size = at.and_then(|at| tile.get_mut(at));
            *size.ok_or_else(|| format!("{:?} has no axis {axis}", x.shape))? = 1;
        }
        Tiling::new(&x.shape, &tile).map_err(|error| error.to_string())
    }

    fn forward(&self, x: &Value) -> Result<Value, String> {
        let grid = self.parameters.grid().map_err(|error| error.to_string())?;
        let mut data = vec![0.0; x.data.len()];
        let affine = self.parameters.affine();
        fake_quantize(&x.data, &self.tiling(x)?, affine, grid, &mut data)
            .map_err(|error| error.to_string())?;
        Ok(Value { shape: x.shape.clone(), data })
    }

    fn backward(&self, x: &Value, gradient: &[f32]) -> Result<Vec<f32>, String> {
        let grid = self.parameters.grid().map_err(|error| error.to_string())?;
        let mut found = vec![0.0; x.data.len()];
        let affine = self.parameters.affine();
        fake_quantize_backward(&x.data, &self.tiling(x)?, affine, grid, gradient, &mut found)
            .map_err(|error| error.to_string())?;
        Ok(found)
    }
}

#[cfg(test)]
mod tests;
