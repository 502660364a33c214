//! A model in two states: in float, and quantized as far as algorithms have come.

use std::sync::Arc;

use candle_core::{Device, Tensor};

use crate::module::{Module, Parameter};
use crate::nn::Param;
use crate::quantization::affine::{AffineParameters, LinearQuantizerConfig};
use crate::quantization::quantizer::{Quantizer, QuantizerSlot};
use crate::quantization::{DisableGuard, LinearQuantizer, disable_quantization};
use crate::tensor::{Result, with_view};

/// A model whose parameters and quantizers are changed: dropped, it is as it was; [kept](Self::keep), as it was made.
pub(super) struct Network<'m> {
    pub(super) model: &'m dyn Module,
    /// The parameters that hold other values, and what they held.
    parameters: Vec<(Param, Tensor)>,
    /// The slots that hold other quantizers, and what they held.
    slots: Vec<(QuantizerSlot, Arc<dyn Quantizer>)>,
}

impl<'m> Network<'m> {
    pub(super) fn new(model: &'m dyn Module) -> Self {
        Self { model, parameters: Vec::new(), slots: Vec::new() }
    }

    /// Gives a parameter other values in the quantized network; in the float one it keeps its own.
    pub(super) fn set(&mut self, parameter: &Param, values: Vec<f32>) -> Result<()> {
        let values = Tensor::from_vec(values, parameter.dims(), &Device::Cpu)?;
        self.set_tensor(parameter, values.to_dtype(parameter.dtype())?);
        Ok(())
    }

    /// The same with a tensor of the parameter's shape and type.
    pub(super) fn set_tensor(&mut self, parameter: &Param, values: Tensor) {
        let before = parameter.exchange(values);
        if self.original(parameter).is_none() {
            self.parameters.push((parameter.clone(), before));
        }
    }

    /// Puts a linear quantizer with other parameters into a slot.
    pub(super) fn set_quantizer(
        &mut self,
        slot: &QuantizerSlot,
        config: LinearQuantizerConfig,
        parameters: AffineParameters,
    ) -> Result<()> {
        let quantizer = LinearQuantizer::new(config)?;
        quantizer.set_parameters(parameters)?;
        let before = slot.replace(Arc::new(quantizer));
        if !self.slots.iter().any(|(known, _)| known.id() == slot.id()) {
            self.slots.push((slot.clone(), before));
        }
        Ok(())
    }

    /// The values of a parameter in the float network.
    pub(super) fn float_values(&self, parameter: &Param) -> Result<Vec<f32>> {
        let tensor = self.original(parameter).map_or_else(|| parameter.tensor(), Tensor::clone);
        values(&tensor)
    }

    /// The float network, until the guard is dropped: the values that parameters had, quantizers off.
    pub(super) fn in_float(&self) -> InFloat<'_> {
        let exchange =
            |(parameter, original): &(Param, Tensor)| parameter.exchange(original.clone());
        let chosen = self.parameters.iter().map(exchange).collect();
        InFloat { network: self, chosen, _off: disable_quantization(self.model) }
    }

    /// Leaves the model as it is now. A variable stays the variable it was, with other values.
    pub(super) fn keep(mut self) -> Result<()> {
        for (parameter, original) in std::mem::take(&mut self.parameters) {
            let chosen = parameter.exchange(original);
            parameter.set(&chosen)?;
        }
        self.slots.clear();
        Ok(())
    }

    fn original(&self, parameter: &Param) -> Option<&Tensor> {
        let same = |(known, _): &&(Param, Tensor)| known.identity() == parameter.identity();
        self.parameters.iter().find(same).map(|(_, original)| original)
    }
}

impl Drop for Network<'_> {
    fn drop(&mut self) {
        for (parameter, original) in self.parameters.drain(..) {
            parameter.exchange(original);
        }
        for (slot, quantizer) in self.slots.drain(..) {
            slot.replace(quantizer);
        }
    }
}

/// Keeps a network in float.
pub(super) struct InFloat<'n> {
    network: &'n Network<'n>,
    /// What the changed parameters hold in the quantized network.
    chosen: Vec<Tensor>,
    _off: DisableGuard,
}

impl Drop for InFloat<'_> {
    fn drop(&mut self) {
        for ((parameter, _), chosen) in self.network.parameters.iter().zip(self.chosen.drain(..)) {
            parameter.exchange(chosen);
        }
    }
}

/// The numbers of a tensor of floats, row by row.
pub(super) fn values(tensor: &Tensor) -> Result<Vec<f32>> {
    with_view(tensor, |view| Ok(view.to_array().data))
}
