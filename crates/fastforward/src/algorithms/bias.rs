//! Biases corrected for the mean error of quantized layers.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};

use super::data::{ALL, Data, with_inputs};
use super::layer::{Fed, Layer};
use super::network::{Network, values};
use super::report::AlgorithmChange;
use crate::algorithms::ChannelStatistics;
use crate::algorithms::bias_correction::{correction, correction_from_inputs};
use crate::nn::Param;
use crate::quantization::quantizer::{
    Flow, Onlooker, Onward, OverrideGuard, Quantizer, QuantizerOverride,
};
use crate::tensor::Result;
use crate::{ArrayView, ErrorKind};

/// Why a layer's bias cannot be corrected; else the bias.
pub(super) fn bias_of(layer: &Layer) -> std::result::Result<&Param, String> {
    match &layer.bias {
        None => Err("it adds no bias; make it with one of zeros".to_owned()),
        Some(_) if layer.bias_slot.as_ref().is_some_and(|slot| !slot.is_stub()) => {
            Err("its bias has a quantizer of its own".to_owned())
        }
        Some(bias) => Ok(bias),
    }
}

/// Takes the mean error of each layer off its bias, as measured: layer by layer in the order of the forward,
/// `b_c += E[y_c] - E[y^_c]` with `y` what the layer gives in float, `y^` what it gives when all before it are quantized and
/// corrected.
pub(super) fn measured(
    network: &mut Network<'_>,
    layers: &[(&Layer, &Param)],
    data: &dyn Data,
) -> Result<Vec<AlgorithmChange>> {
    let all: Vec<&Layer> = layers.iter().map(|(layer, _)| *layer).collect();
    let float = {
        let _float = network.in_float();
        outputs(&all, data)?
    };
    let before = outputs(&all, data)?;
    for (at, (layer, bias)) in layers.iter().enumerate() {
        // Nothing before the first layer has changed since `before` was measured.
        let now = match at {
            0 => before[0].clone(),
            _ => outputs(&[layer], data)?.remove(0),
        };
        add(network, bias, &correction(&float[at], &now)?)?;
    }
    let after = outputs(&all, data)?;
    let mut changes = Vec::new();
    for (at, layer) in all.iter().enumerate() {
        let shift = |seen: &[ChannelStatistics]| {
            Ok::<_, crate::Error>(rms(&correction(&float[at], &seen[at])?))
        };
        changes.push(AlgorithmChange {
            name: layer.name.clone(),
            before: shift(&before)?,
            after: Some(shift(&after)?),
            rows_kept: None,
        });
    }
    Ok(changes)
}

/// The same from the error of the weights and the means of what each layer is fed in float.
pub(super) fn analytic(
    network: &mut Network<'_>,
    layers: &[(&Layer, &Param)],
    data: &dyn Data,
) -> Result<Vec<AlgorithmChange>> {
    let all: Vec<&Layer> = layers.iter().map(|(layer, _)| *layer).collect();
    let means = inputs(network, &all, data)?;
    let mut changes = Vec::new();
    for ((layer, bias), seen) in layers.iter().zip(&means) {
        let float = network.float_values(&layer.weight)?;
        let quantized = values(&layer.weight.quantized(&layer.weight_slot)?.dequantize()?)?;
        let kernel: usize = layer.weight.dims()[2..].iter().product();
        let windows = float.chunks_exact(kernel).zip(quantized.chunks_exact(kernel));
        let error: Vec<f64> = windows
            .map(|(a, b)| a.iter().zip(b).map(|(a, b)| f64::from(*a) - f64::from(*b)).sum())
            .collect();
        let change = correction_from_inputs(&error, layer.outputs(), layer.groups(), &seen.mean())?;
        add(network, bias, &change)?;
        changes.push(AlgorithmChange {
            name: layer.name.clone(),
            before: rms(&change),
            after: None,
            rows_kept: None,
        });
    }
    Ok(changes)
}

fn add(network: &mut Network<'_>, bias: &Param, change: &[f64]) -> Result<()> {
    let now = values(&bias.tensor())?;
    let new = now.iter().zip(change).map(|(now, change)| (f64::from(*now) + change) as f32);
    network.set(bias, new.collect())
}

/// What layers give before it is quantized, channel by channel.
fn outputs(layers: &[&Layer], data: &dyn Data) -> Result<Vec<ChannelStatistics>> {
    let watches: Vec<Arc<Watch>> = layers
        .iter()
        .map(|layer| Arc::new(Watch(Mutex::new(ChannelStatistics::new(layer.channel_axis)))))
        .collect();
    data.each(ALL, &mut |forward| {
        let _guards: Vec<OverrideGuard> = layers
            .iter()
            .zip(&watches)
            .map(|(layer, watch)| layer.output_slot.push_override(Arc::clone(watch) as _))
            .collect();
        forward()
    })?;
    let found = watches.iter().map(|watch| watch.statistics());
    check(layers, found.collect())
}

/// What layers are fed in float, channel by channel.
fn inputs(
    network: &Network<'_>,
    layers: &[&Layer],
    data: &dyn Data,
) -> Result<Vec<ChannelStatistics>> {
    let empty = |layer: &&Layer| ChannelStatistics::new(layer.channel_axis);
    let seen: Rc<RefCell<Vec<ChannelStatistics>>> =
        Rc::new(RefCell::new(layers.iter().map(empty).collect()));
    data.each(ALL, &mut |forward| {
        let _float = network.in_float();
        let seen = Rc::clone(&seen);
        let take = move |at: usize, fed: Fed| {
            let x = ArrayView::new(&fed.data, &fed.shape)?;
            Ok(seen.borrow_mut()[at].observe(x)?)
        };
        with_inputs(layers, take, forward)
    })?;
    check(layers, seen.take())
}

fn check(layers: &[&Layer], seen: Vec<ChannelStatistics>) -> Result<Vec<ChannelStatistics>> {
    for (layer, seen) in layers.iter().zip(&seen) {
        if seen.count() == 0 {
            return Err(layer.error(ErrorKind::NoData, "no batch reaches it"));
        }
    }
    Ok(seen)
}

/// Looks at what goes into an output slot.
struct Watch(Mutex<ChannelStatistics>);

impl Watch {
    fn statistics(&self) -> ChannelStatistics {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl QuantizerOverride for Watch {
    fn call(
        &self,
        quantizer: &dyn Quantizer,
        next: &dyn Fn(ArrayView<'_>) -> std::result::Result<Flow, crate::Error>,
        x: ArrayView<'_>,
    ) -> std::result::Result<Flow, crate::Error> {
        self.look(quantizer, x)?;
        next(x)
    }

    fn as_onlooker(&self) -> Option<&dyn Onlooker> {
        Some(self)
    }
}

impl Onlooker for Watch {
    fn look(
        &self,
        _quantizer: &dyn Quantizer,
        x: ArrayView<'_>,
    ) -> std::result::Result<Onward, crate::Error> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).observe(x)?;
        Ok(Onward::Next)
    }
}

fn rms(values: &[f64]) -> f64 {
    let sum: f64 = values.iter().map(|value| value * value).sum();
    (sum / values.len().max(1) as f64).sqrt()
}
