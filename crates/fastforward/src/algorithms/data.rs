//! Calibration data through a model, and what its layers are fed.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;

use ff_kernels::{LayerMoments, MomentSums};

use super::layer::{Fed, Layer};
use super::network::{Network, values};
use crate::ErrorKind;
use crate::algorithms::layerwise::Seen;
use crate::tensor::operator::Call;
use crate::tensor::probe::{Probe, probe};
use crate::tensor::{Error, Result};

/// Runs the model on one batch.
pub(super) type Forward<'f> = &'f mut dyn FnMut() -> Result<()>;

/// Calibration data and the model it is for.
pub(super) trait Data {
    /// Hands `run` the forward of each batch, of the first `limit` ones. Returns how many there were.
    fn each(&self, limit: usize, run: &mut dyn FnMut(Forward<'_>) -> Result<()>) -> Result<usize>;
}

/// Data as the caller says it: batches, and how the model runs on one.
pub(super) struct Feed<'a, M, G, F> {
    pub(super) model: &'a M,
    pub(super) batches: G,
    pub(super) forward: F,
}

impl<M, B, I, R, G, F> Data for Feed<'_, M, G, F>
where
    I: IntoIterator<Item = Result<B>>,
    G: Fn() -> I,
    F: Fn(&M, &B) -> Result<R>,
{
    fn each(&self, limit: usize, run: &mut dyn FnMut(Forward<'_>) -> Result<()>) -> Result<usize> {
        let mut count = 0;
        for batch in (self.batches)().into_iter().take(limit) {
            let batch = batch?;
            run(&mut || (self.forward)(self.model, &batch).map(drop))?;
            count += 1;
        }
        Ok(count)
    }
}

/// All batches.
pub(super) const ALL: usize = usize::MAX;

/// Takes what layers are fed: the number of the layer, then that.
type Take = Box<dyn FnMut(usize, Fed) -> Result<()>>;

/// Looks at the operators of layers.
struct Inputs {
    /// The number of each layer, by its output slot.
    layers: HashMap<usize, usize>,
    take: RefCell<Take>,
}

impl Probe for Inputs {
    fn operands(&self, call: &Call<'_>) -> Result<()> {
        let Some(at) = layer_called(&self.layers, call) else { return Ok(()) };
        let Some(x) = call.value("input") else { return Ok(()) };
        let fed = Fed { shape: x.dims().to_vec(), data: values(&x.dequantize()?)? };
        (self.take.borrow_mut())(at, fed)
    }
}

/// Which layer calls its operator.
pub(super) fn layer_called(layers: &HashMap<usize, usize>, call: &Call<'_>) -> Option<usize> {
    let is_product = matches!(call.operator.name, "linear" | "conv1d" | "conv2d" | "conv3d");
    let slot = call.output.slot().filter(|_| is_product)?;
    layers.get(&slot.id()).copied()
}

/// The number of each layer, by its output slot.
pub(super) fn by_slot<'l>(layers: impl IntoIterator<Item = &'l Layer>) -> HashMap<usize, usize> {
    let ids = layers.into_iter().map(|layer| layer.output_slot.id());
    ids.enumerate().map(|(at, id)| (id, at)).collect()
}

/// Runs `forward` while `take` is handed what these layers are fed.
pub(super) fn with_inputs(
    layers: &[&Layer],
    take: impl FnMut(usize, Fed) -> Result<()> + 'static,
    forward: Forward<'_>,
) -> Result<()> {
    let layers = by_slot(layers.iter().copied());
    probe(Rc::new(Inputs { layers, take: RefCell::new(Box::new(take)) }), forward)
}

/// The layers that the forward of the first batch reaches, in the order in which it does, in float; and a digest of what
/// they are fed.
pub(super) fn reached(
    network: &Network<'_>,
    layers: &[Layer],
    data: &dyn Data,
) -> Result<(Vec<usize>, String)> {
    let seen = Rc::new(RefCell::new((Vec::new(), Vec::new())));
    let all: Vec<&Layer> = layers.iter().collect();
    let count = data.each(1, &mut |forward| {
        let _float = network.in_float();
        let seen = Rc::clone(&seen);
        let take = move |at, fed: Fed| {
            let (order, digests) = &mut *seen.borrow_mut();
            if !order.contains(&at) {
                order.push(at);
            }
            let bytes: Vec<u8> = fed.data.iter().flat_map(|v| v.to_le_bytes()).collect();
            digests.push(crate::files::sha256_of(&bytes));
            Ok(())
        };
        with_inputs(&all, take, forward)
    })?;
    if count == 0 {
        return Err(no_data(layers.len()));
    }
    let (order, digests) = seen.take();
    Ok((order, crate::files::sha256_of(digests.join(" ").as_bytes())))
}

fn no_data(layers: usize) -> Error {
    no_batch(format_args!("{layers} layers whose inputs are needed"))
}

/// An error about data of which there is none, but a reason to need some.
pub(super) fn no_batch(why: impl std::fmt::Display) -> Error {
    Error::new(ErrorKind::NoData, format!("no calibration data, but {why}"))
}

/// Adds up what layers are fed over all batches: for each layer the moments of each of its groups.
///
/// Inputs are held for one layer's calls of one batch at a time, and only where two networks are compared.
pub(super) fn gather(
    network: &Network<'_>,
    layers: &[&Layer],
    seen: Seen,
    data: &dyn Data,
) -> Result<Vec<Vec<LayerMoments>>> {
    let owned: Rc<Vec<Layer>> = Rc::new(layers.iter().map(|&layer| layer.clone()).collect());
    let empty = |layer: &Layer| -> Vec<MomentSums> {
        (0..layer.groups()).map(|_| MomentSums::new(layer.columns())).collect()
    };
    let sums: Rc<RefCell<Vec<Vec<MomentSums>>>> =
        Rc::new(RefCell::new(owned.iter().map(empty).collect()));
    let float: Rc<RefCell<Vec<Vec<Fed>>>> = Rc::new(RefCell::new(vec![Vec::new(); layers.len()]));
    let count = data.each(ALL, &mut |forward| {
        if seen == Seen::Paired {
            let _float = network.in_float();
            let float = Rc::clone(&float);
            let hold = move |at: usize, fed| {
                float.borrow_mut()[at].push(fed);
                Ok(())
            };
            with_inputs(layers, hold, forward)?;
            // The first call comes off first.
        }
        float.borrow_mut().iter_mut().for_each(|calls| calls.reverse());
        let (layer, sums, held) = (Rc::clone(&owned), Rc::clone(&sums), Rc::clone(&float));
        let add = move |at: usize, fed: Fed| {
            let layer = &layer[at];
            let pair = match seen {
                Seen::Paired => Some(held.borrow_mut()[at].pop().ok_or_else(|| calls(layer))?),
                _ => None,
            };
            layer.add(&mut sums.borrow_mut()[at], &fed, pair.as_ref())
        };
        if seen == Seen::Original {
            let _float = network.in_float();
            with_inputs(layers, add, forward)?;
        } else {
            with_inputs(layers, add, forward)?;
        }
        match float.borrow().iter().position(|calls| !calls.is_empty()) {
            Some(at) => Err(calls(layers[at])),
            None => Ok(()),
        }
    })?;
    if count == 0 {
        return Err(no_data(layers.len()));
    }
    let sums = sums.take();
    let moments: Vec<Vec<LayerMoments>> = sums
        .into_iter()
        .map(|groups| groups.into_iter().map(MomentSums::finish).collect())
        .collect();
    for (layer, groups) in layers.iter().zip(&moments) {
        if groups.iter().all(|moments| moments.count() == 0) {
            return Err(layer.error(ErrorKind::NoData, "no batch reaches it"));
        }
    }
    Ok(moments)
}

fn calls(layer: &Layer) -> Error {
    layer.error(
        ErrorKind::InvalidData,
        "the forward calls it more or less often in float than quantized, so that inputs cannot be compared; use `inputs = \
         \"original\"`",
    )
}
