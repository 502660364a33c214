//! The layers of a model that multiply with a weight.

use std::any::Any;
use std::collections::HashMap;

use candle_core::DType;

use crate::algorithms::layerwise::{InputRows, MatrixTiles, WindowPadding, Windows, calibrated};
use crate::module::{Module, Parameter, SlotEntry, Visitor, named_shared_parameters, named_slots};
use crate::nn::{Conv1d, Conv2d, Conv3d, Linear, Param};
use crate::quantization::affine::{AffineParameters, LinearQuantizerConfig};
use crate::quantization::quantizer::default_tags;
use crate::quantization::{QuantizerSlot, TrainableQuantizer};
use crate::tensor::float::{Conv, Padding};
use crate::tensor::{Error, Result};

/// A layer of the library with a quantizer for its weight: `groups` products `Y = X · Wᵀ`.
#[derive(Clone, Debug)]
pub(super) struct Layer {
    /// The module's name, `encoder.0.fc1`.
    pub(super) name: String,
    /// The name of the weight's slot.
    pub(super) slot_name: String,
    pub(super) weight: Param,
    pub(super) weight_slot: QuantizerSlot,
    pub(super) bias: Option<Param>,
    pub(super) bias_slot: Option<QuantizerSlot>,
    /// By which its operator is known.
    pub(super) output_slot: QuantizerSlot,
    pub(super) rows: InputRows,
    /// The axis of channels of input and output, counted from the end.
    pub(super) channel_axis: isize,
}

/// A slot of a weight, and why that is no layer's.
#[derive(Clone, Debug)]
pub(super) struct NoLayer {
    pub(super) slot_name: String,
    pub(super) reason: String,
}

/// The layers whose weights have a quantizer, and the other weights that have one, in declaration order.
pub(super) fn layers(model: &dyn Module) -> (Vec<Layer>, Vec<NoLayer>) {
    let mut finder = Finder { path: String::new(), layers: Vec::new(), others: Vec::new() };
    finder.walk(model);
    let Finder { layers, mut others, .. } = finder;
    let owners = Owners::of(model);
    let mut good = Vec::new();
    for layer in layers {
        match owners.problem(&layer) {
            None => good.push(layer),
            Some(reason) => others.push(NoLayer { slot_name: layer.slot_name, reason }),
        }
    }
    (good, others)
}

impl Layer {
    /// Output channels of all groups.
    pub(super) fn outputs(&self) -> usize {
        self.weight.dims()[0]
    }

    /// Inputs of one output.
    pub(super) fn columns(&self) -> usize {
        self.rows.columns()
    }

    /// How many products the layer is.
    pub(super) fn groups(&self) -> usize {
        self.rows.groups()
    }

    /// The settings and parameters of the weight's quantizer, and how its tiles lie on the layer's matrix.
    pub(super) fn quantizer(
        &self,
    ) -> std::result::Result<(LinearQuantizerConfig, AffineParameters, MatrixTiles), crate::Error>
    {
        let (config, parameters) = of_slot(&self.weight_slot)?;
        let tile = config.granularity.tile_shape(self.weight.dims())?;
        let tiles = MatrixTiles::new(self.weight.dims(), &tile, false).ok_or_else(|| {
            crate::Error::new(
                crate::ErrorKind::Granularity,
                format!(
                    "tiles of {tile:?} on a weight of {:?} are no rectangles of output channels and inputs; use per tensor, \
                     per channel, or blocks of input channels",
                    self.weight.dims()
                ),
            )
        })?;
        Ok((config, parameters, tiles))
    }

    /// An error about this layer.
    pub(super) fn error(&self, kind: crate::ErrorKind, reason: impl std::fmt::Display) -> Error {
        Error::new(kind, format!("`{}`: {reason}", self.name))
    }

    /// Adds what the layer is fed, sample by sample beside what it is fed in float where that is another.
    pub(super) fn add(
        &self,
        sums: &mut [ff_kernels::MomentSums],
        x: &Fed,
        float: Option<&Fed>,
    ) -> Result<()> {
        let wrong = |reason: String| self.error(crate::ErrorKind::InvalidData, reason);
        if let Some(float) = float
            && float.shape != x.shape
        {
            let (found, expected) = (&float.shape, &x.shape);
            return Err(wrong(format!(
                "its input has shape {found:?} in float and {expected:?} quantized"
            )));
        }
        let float = float.map(|float| &float.data[..]);
        self.rows.add(sums, &self.batched(&x.shape), &x.data, float).map_err(wrong)
    }

    /// A shape with the axis of the batch that convolutions may be called without.
    fn batched(&self, shape: &[usize]) -> Vec<usize> {
        match &self.rows {
            InputRows::Windows(windows) if shape.len() == windows.kernel.len() + 1 => {
                [&[1], shape].concat()
            }
            _ => shape.to_vec(),
        }
    }
}

/// The settings and parameters of the quantizer of a weight, which another one of these settings may take the place of.
pub(super) fn of_slot(
    slot: &QuantizerSlot,
) -> std::result::Result<(LinearQuantizerConfig, AffineParameters), crate::Error> {
    let quantizer = slot.quantizer();
    let any: &dyn Any = &*quantizer;
    if any.is::<TrainableQuantizer>() {
        return Err(crate::Error::new(
            crate::ErrorKind::Unsupported,
            "its quantizer is being trained; `finish` the training first",
        ));
    }
    calibrated(slot)
}

/// What a layer is fed by one call.
#[derive(Clone, Debug)]
pub(super) struct Fed {
    pub(super) shape: Vec<usize>,
    pub(super) data: Vec<f32>,
}

struct Finder {
    path: String,
    layers: Vec<Layer>,
    others: Vec<NoLayer>,
}

#[derive(Default)]
struct Children<'a> {
    modules: Vec<(String, &'a dyn Module)>,
    slots: Vec<(String, &'a QuantizerSlot)>,
}

impl<'a> Visitor<'a> for Children<'a> {
    fn module(&mut self, name: &str, module: &'a dyn Module) {
        self.modules.push((name.to_owned(), module));
    }

    fn slot(&mut self, name: &str, slot: &'a QuantizerSlot) {
        self.slots.push((name.to_owned(), slot));
    }
}

impl Finder {
    fn walk(&mut self, module: &dyn Module) {
        let mut children = Children::default();
        module.visit(&mut children);
        let name = self.path.strip_suffix('.').unwrap_or(&self.path);
        let layer = layer_of(module, name);
        for (slot_name, slot) in &children.slots {
            let is_known = |known: &Layer| known.weight_slot.id() == slot.id();
            if slot.is_stub() || !slot.tags().contains(default_tags::weight()) {
                continue;
            }
            let slot_name = format!("{}{slot_name}", self.path);
            match &layer {
                // A shared module comes again under its other names.
                Some(layer) if is_known(layer) => {
                    let same = |known: &Layer| {
                        is_known(known) && known.weight.identity() == layer.weight.identity()
                    };
                    if !self.layers.iter().any(same) {
                        self.layers.push(Layer { slot_name, ..layer.clone() });
                    }
                }
                _ => {
                    let class = module.class();
                    let reason = format!(
                        "a `{}` is no matrix product; layers are `Linear`, `Conv1d`, `Conv2d` and `Conv3d`",
                        class.name()
                    );
                    self.others.push(NoLayer { slot_name, reason });
                }
            }
        }
        for (name, child) in children.modules {
            let length = self.path.len();
            self.path.push_str(&name);
            self.path.push('.');
            self.walk(child);
            self.path.truncate(length);
        }
    }
}

/// The layer that a module is.
fn layer_of(module: &dyn Module, name: &str) -> Option<Layer> {
    let any: &dyn Any = module;
    macro_rules! layer {
        ($one:expr, $rows:expr, $axis:expr) => {
            Layer {
                name: name.to_owned(),
                slot_name: String::new(),
                weight: $one.weight.clone(),
                weight_slot: $one.weight_quantizer.clone(),
                bias: $one.bias.clone(),
                bias_slot: $one.bias_quantizer.clone(),
                output_slot: $one.output_quantizer.clone(),
                rows: $rows,
                channel_axis: $axis,
            }
        };
    }
    if let Some(one) = any.downcast_ref::<Linear>() {
        let rows = InputRows::Dense { columns: one.weight.dims()[1] };
        return Some(layer!(one, rows, -1));
    }
    macro_rules! convolutions {
        ($($class:ty),*) => { $(
            if let Some(one) = any.downcast_ref::<$class>() {
                let windows = windows(&one.options, one.weight.dims());
                let axis = -(windows.kernel.len() as isize) - 1;
                return Some(layer!(one, InputRows::Windows(windows), axis));
            }
        )* };
    }
    convolutions!(Conv1d, Conv2d, Conv3d);
    None
}

/// How the windows of a convolution lie.
pub(super) fn windows<const N: usize>(options: &Conv<N>, weight: &[usize]) -> Windows {
    let kernel = &weight[2..];
    let zeros = |at: usize| match options.padding {
        Padding::Explicit(pads) => [pads[at], pads[at]],
        Padding::Valid => [0, 0],
        // For a stride of 1, the only one it is for, it does not depend on the input; the odd one stands at the end.
        Padding::Same => {
            let total = kernel[at].saturating_sub(1) * options.dilation[at];
            [total / 2, total.div_ceil(2)]
        }
    };
    let side = |side: usize| (0..N).map(move |at| zeros(at)[side] as i64);
    Windows {
        channels: weight[1],
        groups: options.groups,
        kernel: kernel.to_vec(),
        strides: options.stride.to_vec(),
        dilations: options.dilation.to_vec(),
        padding: WindowPadding::Explicit(side(0).chain(side(1)).collect()),
    }
}

/// Who owns parameters and slots.
struct Owners {
    /// All names of a parameter, by its identity.
    parameters: HashMap<usize, Vec<String>>,
    /// The slot of each name, and all names of each slot.
    slots: HashMap<String, usize>,
    entries: HashMap<usize, SlotEntry>,
}

impl Owners {
    fn of(model: &dyn Module) -> Self {
        let mut owners =
            Self { parameters: HashMap::new(), slots: HashMap::new(), entries: HashMap::new() };
        for entry in named_shared_parameters(model) {
            if let Some(identity) = entry.parameter.identity() {
                owners.parameters.insert(identity, entry.names);
            }
        }
        for entry in named_slots(model) {
            let id = entry.slot.id();
            for name in &entry.names {
                owners.slots.insert(name.clone(), id);
            }
            owners.entries.insert(id, entry);
        }
        owners
    }

    /// Why a layer's weight cannot be chosen for it alone.
    fn problem(&self, layer: &Layer) -> Option<String> {
        let dtype = layer.weight.dtype();
        if !matches!(dtype, DType::F32 | DType::F16 | DType::BF16) {
            return Some(format!("its weight holds {dtype:?}, expected F32, F16 or BF16"));
        }
        if layer.weight.dims().contains(&0) {
            return Some("its weight is empty".to_owned());
        }
        // A name belongs to the same module under another name if the slot beside it is the same.
        let beside = |name: &str, what: &str| {
            let prefix = name.rsplit_once('.').map_or("", |(module, _)| module);
            let full = if prefix.is_empty() { what.to_owned() } else { format!("{prefix}.{what}") };
            self.slots.get(&full).copied()
        };
        let identity = layer.weight.identity().and_then(|one| self.parameters.get(&one));
        let others = identity.into_iter().flatten();
        let mut others =
            others.filter(|name| beside(name, "weight_quantizer") != Some(layer.weight_slot.id()));
        if let Some(other) = others.next() {
            return Some(format!("its weight is also `{other}`"));
        }
        for (what, slot) in
            [("weight_quantizer", &layer.weight_slot), ("output_quantizer", &layer.output_slot)]
        {
            let names = self.entries.get(&slot.id()).map_or(&[][..], |entry| &entry.names[..]);
            let own = |name: &&String| {
                beside(name, "weight_quantizer") == Some(layer.weight_slot.id())
                    && beside(name, "output_quantizer") == Some(layer.output_slot.id())
            };
            if let Some(other) = names.iter().find(|name| !own(name)) {
                return Some(format!("its `{what}` is also `{other}`"));
            }
        }
        None
    }
}
