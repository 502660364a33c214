//! One forward of a model in code, read off as a graph.

use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::rc::Rc;

use candle_core::{Tensor, TensorId};
use fastforward_onnx::dtype::DType;
use fastforward_onnx::graph::{Dim, Model, ValueInfo, tensor_from_f32, tensor_from_floats};
use fastforward_onnx::proto::{
    GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorProto, ValueInfoProto, node,
};

use super::nodes::{Described, describe, describe_shape};
use crate::algorithms::data::{Data, no_batch};
use crate::algorithms::network::{Network, values};
use crate::module::{Module, named_shared_parameters, named_slots};
use crate::nn::Param;
use crate::quantization::disable_quantization;
use crate::tensor::operator::{Argument, Call};
use crate::tensor::probe::{Probe, Reshaping, probe};
use crate::tensor::{Result, Value};

/// The set of operators that are none of ONNX.
pub(super) const DOMAIN: &str = "fastforward";

/// What a forward does, as far as operators show it: nodes are called after the modules whose output slots they have, and
/// so are their results; constants after the parameters.
///
/// A value that comes from elsewhere is an input of the graph. One that no operator reads, and that is not returned, is read
/// by a node of its own, so that nothing takes it for unused.
pub(in crate::algorithms) struct Trace {
    pub(in crate::algorithms) graph: Model,
    /// The parameters that operators read, by the names of their constants.
    pub(super) parameters: Vec<(String, Param)>,
    /// The operators in the order of their calls.
    pub(super) calls: Rc<Vec<&'static str>>,
    /// Where each value is seen.
    pub(super) places: HashMap<String, Place>,
    /// The nodes whose results go through each slot, by its id.
    pub(in crate::algorithms) outputs: HashMap<usize, Vec<usize>>,
}

/// A value as a call shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Place {
    /// The number of the call.
    pub(super) call: usize,
    /// The number of the value among its operands; `None` for its result.
    pub(super) operand: Option<usize>,
}

impl Trace {
    /// Reads off the forward of the first batch, in float. `outputs` tells, after it, what it returned.
    pub(in crate::algorithms) fn of(
        model: &dyn Module,
        data: &dyn Data,
        outputs: &RefCell<Vec<Value>>,
    ) -> Result<Self> {
        // Constants, so that each has one tensor by which it is known.
        let mut network = Network::new(model);
        let mut known = HashMap::new();
        for entry in named_shared_parameters(model) {
            let Some(parameter) = entry.parameter.downcast_ref::<Param>() else { continue };
            let tensor = parameter.tensor().detach();
            network.set_tensor(parameter, tensor.clone());
            known.insert(tensor.id(), (entry.names[0].clone(), parameter.clone()));
        }
        let modules = named_slots(model).into_iter().map(|entry| {
            let module = entry.name().rsplit_once('.').map_or("", |(module, _)| module);
            (entry.slot.id(), module.to_owned())
        });
        let reader = Rc::new(RefCell::new(Reader::new(known, modules.collect())));
        let count = data.each(1, &mut |forward| {
            let _float = disable_quantization(model);
            probe(Rc::new(Recorder(Rc::clone(&reader))), forward)
        })?;
        drop(network);
        if count == 0 {
            return Err(no_batch("the forward of a batch shows how layers follow each other"));
        }
        let returned = outputs.borrow();
        reader.take().finish(&returned)
    }
}

/// Hands a reader what operators do.
struct Recorder(Rc<RefCell<Reader>>);

impl Probe for Recorder {
    fn operands(&self, _call: &Call<'_>) -> Result<()> {
        Ok(())
    }

    fn result(&self, call: &Call<'_>, result: &Value) -> Result<()> {
        self.0.borrow_mut().operator(call, result)
    }

    fn reshaped(&self, how: &Reshaping<'_>, input: &Value, result: &Value) -> Result<()> {
        self.0.borrow_mut().shape(how, input, result)
    }
}

/// Reads calls, one after the other.
#[derive(Default)]
pub(super) struct Reader {
    /// The parameters by their tensors.
    parameters: HashMap<TensorId, (String, Param)>,
    /// The modules by their slots.
    modules: HashMap<usize, String>,
    graph: GraphProto,
    /// The names of values.
    names: HashMap<TensorId, String>,
    /// Ids are only told apart while their tensors live.
    alive: Vec<Tensor>,
    read: HashSet<String>,
    taken: HashSet<String>,
    used: Vec<(String, Param)>,
    calls: Vec<&'static str>,
    places: HashMap<String, Place>,
    outputs: HashMap<usize, Vec<usize>>,
}

impl Reader {
    fn new(
        parameters: HashMap<TensorId, (String, Param)>,
        modules: HashMap<usize, String>,
    ) -> Self {
        let taken = parameters.values().map(|(name, _)| name.clone()).collect();
        Self { parameters, modules, taken, ..Self::default() }
    }

    fn operator(&mut self, call: &Call<'_>, result: &Value) -> Result<()> {
        let operands: Vec<String> = call
            .values()
            .enumerate()
            .map(|(at, value)| self.value(value, at))
            .collect::<Result<_>>()?;
        let name = call.operator.name;
        if !self.begins(name, result) {
            return Ok(());
        }
        let module = call.output.slot().and_then(|slot| self.modules.get(&slot.id()).cloned());
        let label = self.free(module.filter(|name| !name.is_empty()).as_deref().unwrap_or(name));
        let mut next = operands.iter();
        let mut inputs = Vec::new();
        for argument in call.arguments {
            let input = match argument {
                Argument::Absent => String::new(),
                Argument::Value(_) => next.next().cloned().unwrap_or_default(),
                Argument::Sequence(several) => {
                    inputs.extend(next.by_ref().take(several.len()).cloned());
                    continue;
                }
                Argument::Number(number) => self.constant(&label, *number as f32),
                Argument::Plain(tensor) => self.plain(tensor)?,
            };
            inputs.push(input);
        }
        if let Some(slot) = call.output.slot() {
            self.outputs.entry(slot.id()).or_default().push(self.graph.node.len());
        }
        let described = describe(call, inputs, |number| self.constant(&label, number));
        self.push(label, described, result);
        Ok(())
    }

    fn shape(&mut self, how: &Reshaping<'_>, input: &Value, result: &Value) -> Result<()> {
        let operand = self.value(input, 0)?;
        if self.begins(how.name, result) {
            let label = self.free(how.name);
            self.push(label, describe_shape(how, operand), result);
        }
        Ok(())
    }

    /// Counts a call; false where it returns a value that is known: an operator that does nothing, or a view of all of it.
    fn begins(&mut self, name: &'static str, result: &Value) -> bool {
        self.calls.push(name);
        result.as_float().is_none_or(|tensor| {
            !self.names.contains_key(&tensor.id()) && !self.parameters.contains_key(&tensor.id())
        })
    }

    fn push(&mut self, label: String, described: Described, result: &Value) {
        let Described { op_type, domain, inputs, attributes } = described;
        self.read.extend(inputs.iter().cloned());
        let place = Place { call: self.calls.len() - 1, operand: None };
        self.note(&label, result, place);
        let inputs: Vec<&str> = inputs.iter().map(String::as_str).collect();
        let domain = (!domain.is_empty()).then(|| domain.to_owned());
        let node = node(op_type, &label, &inputs, &[&label]);
        self.graph.node.push(NodeProto { domain, attribute: attributes, ..node });
    }

    /// The name of a value that an operator reads.
    fn value(&mut self, value: &Value, operand: usize) -> Result<String> {
        let place = Place { call: self.calls.len(), operand: Some(operand) };
        let Some(tensor) = value.as_float() else {
            let name = self.free("codes");
            self.outside(&name, value, place);
            return Ok(name);
        };
        if let Some(name) = self.names.get(&tensor.id()) {
            return Ok(name.clone());
        }
        if let Some(name) = self.parameter(tensor)? {
            return Ok(name);
        }
        let name = self.free("outside");
        self.outside(&name, value, place);
        Ok(name)
    }

    /// The name of a tensor that is no value: a parameter, or something from elsewhere.
    fn plain(&mut self, tensor: &Tensor) -> Result<String> {
        match self.parameter(tensor)? {
            Some(name) => Ok(name),
            None => {
                let name = self.free("outside");
                self.graph.input.push(info(&name, tensor.dims(), None));
                Ok(name)
            }
        }
    }

    /// The name of a parameter, which the graph has as a constant where it holds floats of up to 32 bits.
    fn parameter(&mut self, tensor: &Tensor) -> Result<Option<String>> {
        let Some((name, parameter)) = self.parameters.get(&tensor.id()).cloned() else {
            return Ok(None);
        };
        if self.used.iter().any(|(known, _)| *known == name) {
            return Ok(Some(name));
        }
        match constant(&name, tensor)? {
            Some(constant) => self.graph.initializer.push(constant),
            None => self.graph.input.push(info(&name, tensor.dims(), None)),
        }
        self.used.push((name.clone(), parameter));
        Ok(Some(name))
    }

    /// A constant for a node.
    fn constant(&mut self, label: &str, number: f32) -> String {
        let name = self.free(&format!("{label}.number"));
        self.graph.initializer.push(tensor_from_f32(&name, &[], &[number]));
        name
    }

    fn outside(&mut self, name: &str, value: &Value, place: Place) {
        self.graph.input.push(info(name, value.dims(), float_of(value.dtype())));
        self.note(name, value, place);
    }

    fn note(&mut self, name: &str, value: &Value, place: Place) {
        self.graph.value_info.push(info(name, value.dims(), float_of(value.dtype())));
        self.places.insert(name.to_owned(), place);
        if let Some(tensor) = value.as_float() {
            self.names.insert(tensor.id(), name.to_owned());
            self.alive.push(tensor.clone());
        }
    }

    /// A name that nothing has.
    fn free(&mut self, base: &str) -> String {
        let numbered = (2..).map(|number| format!("{base}_{number}"));
        let mut names = std::iter::once(base.to_owned()).chain(numbered);
        let name = names.find(|name| !self.taken.contains(name)).unwrap_or_default();
        self.taken.insert(name.clone());
        name
    }

    fn finish(mut self, returned: &[Value]) -> Result<Trace> {
        let returned: Vec<String> = returned
            .iter()
            .filter_map(|value| self.names.get(&value.as_float()?.id()).cloned())
            .collect();
        self.graph.output = returned.iter().map(|name| info(name, &[], None)).collect();
        let open: Vec<String> = (self.graph.node.iter().flat_map(|node| &node.output))
            .filter(|name| !self.read.contains(*name) && !returned.contains(name))
            .cloned()
            .collect();
        for value in open {
            let label = self.free("code behind");
            let reader = node("code", &label, &[&value], &[&label]);
            self.graph.node.push(NodeProto { domain: Some(DOMAIN.to_owned()), ..reader });
        }
        let set = |domain: &str, version| OperatorSetIdProto {
            domain: Some(domain.to_owned()),
            version: Some(version),
        };
        let proto = ModelProto {
            ir_version: Some(10),
            opset_import: vec![set("", 23), set(DOMAIN, 1)],
            graph: Some(self.graph),
            ..ModelProto::default()
        };
        let graph = Model::from_proto(proto, None).map_err(super::of_graph)?;
        let (parameters, calls) = (self.used, Rc::new(self.calls));
        Ok(Trace { graph, parameters, calls, places: self.places, outputs: self.outputs })
    }
}

fn info(name: &str, dims: &[usize], dtype: Option<DType>) -> ValueInfoProto {
    let shape = dims.iter().map(|&size| Dim::Fixed(size)).collect();
    ValueInfo { name: name.to_owned(), dtype, shape: Some(shape) }.to_proto()
}

/// The constant of a parameter; `None` where it does not hold floats of up to 32 bits.
fn constant(name: &str, tensor: &Tensor) -> Result<Option<TensorProto>> {
    let Some(dtype) = float_of(tensor.dtype()) else { return Ok(None) };
    Ok(tensor_from_floats(name, dtype, tensor.dims(), &values(tensor)?))
}

/// The type of floats of up to 32 bits.
fn float_of(dtype: candle_core::DType) -> Option<DType> {
    match dtype {
        candle_core::DType::F32 => Some(DType::F32),
        candle_core::DType::F16 => Some(DType::F16),
        candle_core::DType::BF16 => Some(DType::BF16),
        _ => None,
    }
}
