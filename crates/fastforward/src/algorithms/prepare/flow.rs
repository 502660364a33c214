//! What flows through a model in code, for algorithms that see its graph.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;

use fastforward_onnx::graph::Model;
use fastforward_onnx::layerwise::LinearLayer;
use fastforward_onnx::rewrite::Activations;
use ff_kernels::LayerMoments;

use super::Parameters;
use super::trace::{Place, Trace};
use crate::algorithms::ChannelStatistics;
use crate::algorithms::data::{ALL, Data, gather, no_batch};
use crate::algorithms::layer::Layer;
use crate::algorithms::layerwise::Seen;
use crate::algorithms::network::{Network, values};
use crate::module::{Module, Parameter};
use crate::quantization::disable_quantization;
use crate::tensor::operator::Call;
use crate::tensor::probe::{Probe, Reshaping, probe};
use crate::tensor::{Error, Result, Value};
use crate::{ArrayView, ErrorKind};

/// The model that a graph was read off, run on batches with the parameters that the graph has by then.
pub(super) struct Flow<'a, 'm> {
    pub(super) model: &'m dyn Module,
    pub(super) trace: &'a Trace,
    pub(super) data: &'a dyn Data,
    /// The layers whose weights have a quantizer.
    pub(super) layers: &'a [Layer],
    pub(super) parameters: &'a mut Parameters<'m>,
}

impl Activations for Flow<'_, '_> {
    type Error = FlowError;

    fn statistics(
        &mut self,
        graph: &Model,
        values: &[(String, isize)],
    ) -> std::result::Result<Vec<ChannelStatistics>, FlowError> {
        self.parameters.set(self.trace, graph)?;
        let mut wanted: HashMap<Place, Vec<usize>> = HashMap::new();
        for (at, (name, _)) in values.iter().enumerate() {
            let place = self.trace.places.get(name).ok_or_else(|| {
                Error::new(ErrorKind::InvalidData, format!("`{name}` is no value of the forward"))
            })?;
            wanted.entry(*place).or_default().push(at);
        }
        let seen = values.iter().map(|(_, axis)| ChannelStatistics::new(*axis)).collect();
        let watch = Rc::new(Watch {
            calls: Rc::clone(&self.trace.calls),
            at: Cell::new(0),
            wanted,
            seen: RefCell::new(seen),
        });
        let count = self.data.each(ALL, &mut |forward| {
            let _float = disable_quantization(self.model);
            watch.at.set(0);
            probe(Rc::clone(&watch) as _, forward)?;
            watch.is_through()
        })?;
        match count {
            0 => Err(no_batch("activations are needed").into()),
            _ => Ok(watch.seen.take()),
        }
    }

    fn moments(
        &mut self,
        graph: &Model,
        layers: &[&LinearLayer],
    ) -> std::result::Result<Vec<Vec<LayerMoments>>, FlowError> {
        self.parameters.set(self.trace, graph)?;
        let own = layers.iter().map(|layer| {
            let weight = &layer.weight.value;
            let parameter = self.trace.parameters.iter().find(|(name, _)| name == weight);
            let identity = parameter.and_then(|(_, parameter)| parameter.identity());
            let found = self.layers.iter().find(|own| own.weight.identity() == identity);
            found.ok_or_else(|| {
                let text = format!("`{weight}` is the weight of no layer");
                Error::new(ErrorKind::InvalidData, text)
            })
        });
        let own: Vec<&Layer> = own.collect::<Result<_>>()?;
        // Parameters as they are now are those of the float network.
        Ok(gather(&Network::new(self.model), &own, Seen::Original, self.data)?)
    }
}

/// Looks at the values of a forward.
struct Watch {
    calls: Rc<Vec<&'static str>>,
    /// The number of the next call.
    at: Cell<usize>,
    /// Which statistics see each place.
    wanted: HashMap<Place, Vec<usize>>,
    seen: RefCell<Vec<ChannelStatistics>>,
}

impl Watch {
    fn call<'v>(
        &self,
        name: &'static str,
        operands: impl Iterator<Item = &'v Value>,
        result: &Value,
    ) -> Result<()> {
        let call = self.at.replace(self.at.get() + 1);
        if self.calls.get(call) != Some(&name) {
            return Err(another(format_args!("its operator {call} is `{name}`")));
        }
        for (at, operand) in operands.enumerate() {
            self.look(Place { call, operand: Some(at) }, operand)?;
        }
        self.look(Place { call, operand: None }, result)
    }

    fn look(&self, place: Place, value: &Value) -> Result<()> {
        let Some(wanted) = self.wanted.get(&place) else { return Ok(()) };
        let data = values(&value.dequantize()?)?;
        let x = ArrayView::new(&data, value.dims())?;
        let mut seen = self.seen.borrow_mut();
        wanted.iter().try_for_each(|&at| Ok(seen[at].observe(x)?))
    }

    /// Whether the forward called as many operators as that of the first batch.
    fn is_through(&self) -> Result<()> {
        match self.at.get() == self.calls.len() {
            true => Ok(()),
            false => Err(another(format_args!("it calls {} operators", self.at.get()))),
        }
    }
}

impl Probe for Watch {
    fn operands(&self, _call: &Call<'_>) -> Result<()> {
        Ok(())
    }

    fn result(&self, call: &Call<'_>, result: &Value) -> Result<()> {
        self.call(call.operator.name, call.values(), result)
    }

    fn reshaped(&self, how: &Reshaping<'_>, input: &Value, result: &Value) -> Result<()> {
        self.call(how.name, std::iter::once(input), result)
    }
}

fn another(what: std::fmt::Arguments<'_>) -> Error {
    let text = format!(
        "the forward of this batch is not that of the first one: {what}; what comes before ranges needs a forward that does \
         the same for every batch"
    );
    Error::new(ErrorKind::InvalidData, text)
}

/// An error of the model's forward or of the graph.
#[derive(Debug)]
pub(super) struct FlowError(pub(super) Error);

impl<E: Into<Error>> From<E> for FlowError {
    fn from(error: E) -> Self {
        Self(error.into())
    }
}
