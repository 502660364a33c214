//! AWQ of a graph: inputs that matter made small and their weights large, so that these are rounded more finely.

use std::fmt;

use fastforward_core::algorithms::ScaleRounding;
use fastforward_core::quantization::LinearQuantizer;
use fastforward_core::quantization::affine::SavedQuantizer;
use serde::Serialize;

use super::KeptValue;
use super::layer::Layer;
use super::migrate::{Source, move_factors, read_by_layers, readers, source};
use super::prepare::Activations;
use crate::error::{Error, ErrorKind, Result};
use crate::graph::{GraphIndex, Model};
use crate::layerwise::{LinearLayer, float_moments_bytes, linear_layers};
use crate::shapes::ShapeTable;
use crate::tree::{Role, Site, Tree};

mod search;

use search::{Judged, Search};

/// Divides the channels of values by factors and multiplies the weights that read them, where their quantizers then err less:
/// activation-aware weight quantization (Lin et al. 2023, [arXiv 2306.00978](https://arxiv.org/abs/2306.00978)).
///
/// For a value that only layers with constant weights `W` read, of which those in `slots` (names of slots of `tree`) are
/// quantized, the factors of its channels `x_j` are, for each exponent `alpha` of `0, 1/steps, .., 1`,
///
/// ```text
/// s_j = (max(E|x_j|, 1e-4 · max E|x|) / m)^alpha        m = √(max E|x| · min E|x|)
/// ```
///
/// rounded as [`AwqOptions::rounding`] says; a channel that is always 0 keeps the factor 1. The exponent is chosen for which
/// `Σ E‖W x - Q(W diag(s)) diag(s)⁻¹ x‖²` over all these layers is least, exactly, from the second moments of what each
/// reads in float. `Q` rounds to nearest with bits, granularity and symmetry of the weight's own quantizer, in the range of
/// each tile's own weights. The first of equals wins, and it begins with 0, which changes nothing: no value's layers become
/// worse together, and what does not gain is left alone.
///
/// Factors go where [`smooth`](super::smooth()) puts them: into the parameters of what computes the value. With powers of
/// two, the default, the graph computes the very same floats as before. A value is kept, with the reason, where there are
/// no such parameters; where a reader has a quantizer and is not in `slots`; and where the layer before shares scales
/// between its output channels, which the factors would spread. Sums take 16 bytes for each pair of a layer's inputs and
/// group; several values share a pass over the data as far as [`AwqOptions::max_moment_bytes`] reach.
///
/// Quantizers need no ranges yet. Calibrate afterwards: ranges of weights and activations move.
///
/// # Errors
/// `Quantizer` for a weight whose tiles are no rectangles of its matrix; `ExternalData` when a constant cannot be read;
/// those of `activations`.
pub fn awq<A: Activations>(
    model: &mut Model,
    tree: &Tree,
    slots: &[String],
    activations: &mut A,
    options: &AwqOptions,
) -> std::result::Result<AwqReport, A::Error> {
    let stated = ShapeTable::stated(model);
    let shapes = if options.shapes.iter().next().is_some() { &options.shapes } else { &stated };
    let (layers, _) = linear_layers(model, tree)?;
    let layers = Layers { tree, layers, slots };
    let mut report = AwqReport::default();
    let mut values = Vec::new();
    for (value, _) in read_by_layers(model, shapes)? {
        match layers.reading(model, shapes, &value)? {
            Some(Ok(reading)) => values.push(Reading { value, quantized: reading }),
            Some(Err(reason)) => report.kept.push(KeptValue { value, reason }),
            None => {}
        }
    }
    let mut rest = values.as_slice();
    while !rest.is_empty() {
        let (now, later) = rest.split_at(together(rest, options.max_moment_bytes));
        rest = later;
        let seen: Vec<&LinearLayer> = now.iter().flat_map(|one| one.distinct()).collect();
        let bytes = seen.iter().map(|layer| float_moments_bytes(layer)).sum();
        report.moment_bytes = report.moment_bytes.max(bytes);
        let mut moments = activations.moments(model, &seen)?.into_iter();
        for one in now {
            let own: Vec<_> = moments.by_ref().take(one.distinct().len()).collect();
            match one.scale(model, shapes, &own, options)? {
                Ok(scaled) => report.scaled.push(scaled),
                Err(reason) => report.kept.push(KeptValue { value: one.value.clone(), reason }),
            }
        }
    }
    Ok(report)
}

/// How factors are searched.
#[derive(Clone, Debug)]
pub struct AwqOptions {
    /// How many exponents are tried beside 0.
    pub steps: usize,
    /// Which factors are used.
    pub rounding: ScaleRounding,
    /// The shapes of activations, beside those that the file states.
    pub shapes: ShapeTable,
    /// About how many bytes the sums over the inputs of several layers may take, which are then gathered in one pass; one
    /// value's own are held whatever they take.
    pub max_moment_bytes: u64,
}

impl Default for AwqOptions {
    /// Twenty exponents, powers of two, 1 GiB of sums.
    fn default() -> Self {
        Self {
            steps: 20,
            rounding: ScaleRounding::default(),
            shapes: ShapeTable::default(),
            max_moment_bytes: 1 << 30,
        }
    }
}

/// What scaling did, in the order of the graph.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct AwqReport {
    /// The values whose channels were divided.
    pub scaled: Vec<ScaledValue>,
    /// The values that stay as they are.
    pub kept: Vec<KeptValue>,
    /// Bytes of the sums over inputs, at their most.
    pub moment_bytes: u64,
}

/// A value whose channels were divided.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ScaledValue {
    /// The value.
    pub value: String,
    /// The node whose parameters took the factors.
    pub producer: String,
    /// The exponent.
    pub alpha: f64,
    /// The smallest factor by which a channel was divided.
    pub min_scale: f64,
    /// The largest.
    pub max_scale: f64,
    /// How many channels kept the factor 1, because another would have pushed a parameter out of its type's range.
    pub out_of_range: usize,
    /// The quantized layers that read it.
    pub layers: Vec<ScaledLayer>,
}

/// What a layer's rounding to nearest costs.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ScaledLayer {
    /// The layer.
    pub layer: String,
    /// The slot of its weight.
    pub slot: String,
    /// `E‖W x‖²`
    pub signal: f64,
    /// `E‖W x - Ŵ x‖²` without factors.
    pub loss_before: f64,
    /// The same with them.
    pub loss: f64,
}

impl ScaledLayer {
    /// A loss as a part of the power of the layer's output.
    pub(super) fn share(&self, loss: f64) -> f64 {
        if self.signal > 0.0 { loss / self.signal } else { loss }
    }
}

impl fmt::Display for ScaledValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let layers: Vec<&str> = self.layers.iter().map(|one| one.layer.as_str()).collect();
        write!(
            f,
            "`{}` between `{}` and `{}`: divided by {:.3} to {:.3}, exponent {:.2}",
            self.value,
            self.producer,
            layers.join("`, `"),
            self.min_scale,
            self.max_scale,
            self.alpha
        )
    }
}

/// The layers of a model, and which of them are meant.
struct Layers<'a> {
    tree: &'a Tree,
    layers: Vec<LinearLayer>,
    slots: &'a [String],
}

impl Layers<'_> {
    /// The quantized layers that read a value; `None` where none of them is meant; the reason where factors cannot move.
    fn reading(
        &self,
        model: &Model,
        shapes: &ShapeTable,
        value: &str,
    ) -> Result<Option<std::result::Result<Vec<LinearLayer>, String>>> {
        let index = model.index();
        let sites: Vec<&Site> = index
            .consumers(value)
            .iter()
            .filter_map(|reader| self.weight_of(reader.node))
            .collect();
        if !sites.iter().any(|site| self.slots.contains(&site.name)) {
            return Ok(None);
        }
        let other = sites.iter().find(|site| !self.slots.contains(&site.name));
        if let Some(other) = other {
            let reason =
                format!("the weight of `{}` is quantized and not among those meant", other.name);
            return Ok(Some(Err(reason)));
        }
        let mut quantized = Vec::new();
        for site in sites {
            let layer = self.layers.iter().find(|layer| layer.weight.name == site.name);
            quantized.extend(layer.cloned());
        }
        let found = match moving(model, &index, shapes, value)? {
            Ok((_, source)) => match self.spread_by(&source) {
                Some(slot) => Err(format!(
                    "scales at `{slot}` are shared by channels, whose ranges the factors would spread"
                )),
                None => Ok(quantized),
            },
            Err(reason) => Err(reason),
        };
        Ok(Some(found))
    }

    /// The slot of a node's weight, where it holds a quantizer.
    fn weight_of(&self, node: usize) -> Option<&Site> {
        self.tree.set_sites().find(|site| {
            site.role == Role::Weight && site.node.graph.is_empty() && site.node.index == node
        })
    }

    /// The slot of a parameter that takes the factors of several channels within one scale.
    fn spread_by(&self, source: &Source) -> Option<&str> {
        let weight = source.layer.as_ref().and_then(|layer| {
            let site = self.weight_of(layer.node)?;
            let axis = site.channel_axis?;
            let tile = tile_of(site, &layer.shape)?;
            // In a transposed convolution with groups an index stands for one channel of each.
            let is_own = tile[axis] == 1 && layer.layout.outputs() == layer.shape[axis];
            (!is_own).then_some(site.name.as_str())
        });
        let mut constants = source.constants.iter().filter_map(|(one, _)| {
            let site = self.tree.set_sites().find(|site| {
                let is_constant = !matches!(site.role, Role::Input | Role::Output);
                is_constant
                    && site.node.graph.is_empty()
                    && (site.node.index, site.position) == (one.node, one.input)
            })?;
            let tile = tile_of(site, &one.shape)?;
            tile.iter().any(|&extent| extent > 1).then_some(site.name.as_str())
        });
        weight.or_else(|| constants.next())
    }
}

/// The tile of a quantizer, where it has one that fits.
fn tile_of(site: &Site, shape: &[usize]) -> Option<Vec<usize>> {
    let granularity = match site.slot.quantizer().to_saved()? {
        SavedQuantizer::Linear(config, _) => config.granularity,
        SavedQuantizer::DynamicLinear(config) => config.granularity,
    };
    granularity.tile_shape(shape).ok()
}

type Moving = (Vec<Layer>, Source);

/// What reads a value and what takes its factors, or why none can move.
fn moving(
    model: &Model,
    index: &GraphIndex,
    shapes: &ShapeTable,
    value: &str,
) -> Result<std::result::Result<Moving, String>> {
    let readers = match readers(model, index, shapes, value)? {
        Ok(readers) => readers,
        Err(reason) => return Ok(Err(reason)),
    };
    let n_channels = readers[0].layout.inputs();
    let source = source(model, index, shapes, value, &readers[0], n_channels)?;
    Ok(source.map(|source| (readers, source)))
}

/// How many of the values, from the first, are looked at in one pass over the data.
fn together(values: &[Reading], max_moment_bytes: u64) -> usize {
    let mut left = max_moment_bytes;
    let fits = |one: &&Reading| {
        let bytes: u64 = one.distinct().iter().map(|layer| float_moments_bytes(layer)).sum();
        let fits = bytes <= left;
        left = left.saturating_sub(bytes);
        fits
    };
    values.iter().take_while(fits).count().max(1)
}

/// A value and the quantized layers that read it.
struct Reading {
    value: String,
    quantized: Vec<LinearLayer>,
}

impl Reading {
    /// Layers that see different rows of the value: most see the same.
    fn distinct(&self) -> Vec<&LinearLayer> {
        let mut distinct: Vec<&LinearLayer> = Vec::new();
        for layer in &self.quantized {
            if !distinct.iter().any(|known| known.sees_the_same(layer)) {
                distinct.push(layer);
            }
        }
        distinct
    }

    /// Finds the factors and moves them; `moments` are those of the distinct layers.
    fn scale(
        &self,
        model: &mut Model,
        shapes: &ShapeTable,
        moments: &[Vec<ff_kernels::LayerMoments>],
        options: &AwqOptions,
    ) -> Result<std::result::Result<ScaledValue, String>> {
        // Weights may have changed since the value was found, nodes have not.
        let (readers, source) = match moving(model, &model.index(), shapes, &self.value)? {
            Ok(moving) => moving,
            Err(reason) => return Ok(Err(reason)),
        };
        let n_channels = readers[0].layout.inputs();
        let distinct = self.distinct();
        let mut judged = Vec::new();
        for layer in &self.quantized {
            let at = distinct.iter().position(|known| known.sees_the_same(layer)).unwrap_or(0);
            judged.push(Judged::new(model, layer, &moments[at], n_channels)?);
        }
        let search = Search { layers: &judged, rounding: options.rounding };
        let before = search.losses(&vec![1.0; n_channels])?;
        let Some((alpha, mut scales)) = search.best(options.steps, n_channels, &before)? else {
            return Ok(Err("no factors make the error of its layers smaller".to_owned()));
        };
        let unscaled = model.clone();
        let rounding = options.rounding;
        let moved = move_factors(model, &self.value, &readers, &source, &mut scales, rounding)?;
        let after = search.losses(&scales)?;
        if moved.out_of_range > 0 && after.iter().sum::<f64>() >= before.iter().sum() {
            *model = unscaled;
            let reason = "the factors that its parameters can take make no error smaller";
            return Ok(Err(reason.to_owned()));
        }
        let mut layers = Vec::new();
        for ((layer, judged), (before, after)) in
            self.quantized.iter().zip(&judged).zip(before.iter().zip(&after))
        {
            layers.push(ScaledLayer {
                layer: layer.name.clone(),
                slot: layer.weight.name.clone(),
                signal: judged.signal()?,
                loss_before: *before,
                loss: *after,
            });
        }
        Ok(Ok(ScaledValue {
            value: self.value.clone(),
            producer: moved.producer,
            alpha,
            min_scale: scales.iter().copied().fold(f64::INFINITY, f64::min),
            max_scale: scales.iter().copied().fold(0.0, f64::max),
            out_of_range: moved.out_of_range,
            layers,
        }))
    }
}

/// The quantizer of a weight, without the range it may have.
fn own_quantizer(site: &Site) -> Result<LinearQuantizer> {
    let wrong = |reason: &dyn fmt::Display| {
        Error::new(ErrorKind::Quantizer, format!("`{}`: {reason}", site.name))
    };
    match site.slot.quantizer().to_saved() {
        Some(SavedQuantizer::Linear(config, _)) => {
            LinearQuantizer::new(config).map_err(|error| wrong(&error))
        }
        _ => Err(wrong(&"its quantizer is none with scales that are set before")),
    }
}
