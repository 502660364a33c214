//! Quantizers whose scales and offsets learn by gradient descent.

use std::any::Any;
use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use candle_core::{Device, Tensor, Var};
use mpath::Class;

use crate::module::classes;
use crate::quantization::affine::{
    AffineGrid, AffineParameters, QuantizedArray, RangeSettings, SavedQuantizer,
};
use crate::quantization::quantizer::{Flow, Quantizer, RangeSettable, SlotUpdate, apply_updates};
use crate::quantization::{Granularity, LinearQuantizer, LinearQuantizerConfig};
use crate::range_setting::SlotSource;
use crate::tensor::{QuantizedTensor, Result};
use crate::{ArrayView, Error, ErrorKind};

/// Makes the ranges of linear quantizers trainable: every [`LinearQuantizer`] that has a range is replaced by a
/// [`TrainableQuantizer`] with the same settings and parameters, all or none. Stubs and dynamic quantizers stay; quantizers
/// that are trainable already are returned as they are; one quantizer in several slots stays one.
///
/// ```
/// use candle_core::{Device, Tensor};
/// use candle_nn::{AdamW, Optimizer, ParamsAdamW};
/// use fastforward::module::SlotEntry;
/// use fastforward::quantization::quantizer::RangeSettable;
/// use fastforward::quantization::{LinearQuantizer, LinearQuantizerConfig, QuantizerSlot, TrainableOptions, trainable};
/// use fastforward::tensor::{Apply, Value};
///
/// let quantizer = LinearQuantizer::new(LinearQuantizerConfig::new(3))?;
/// quantizer.set_quantization_range(&[-4.0], &[4.0])?;
/// let slot = QuantizerSlot::input();
/// slot.replace(std::sync::Arc::new(quantizer));
/// let slots = vec![SlotEntry { names: vec!["x".into()], slot: slot.clone() }];
///
/// let learned = trainable(&slots, TrainableOptions::default())?;
/// let mut optimizer = AdamW::new(learned.vars(), ParamsAdamW { lr: 0.05, weight_decay: 0.0, ..Default::default() })?;
/// let x = Tensor::new(&[-0.9f32, -0.1, 0.4, 0.8], &Device::Cpu)?;
/// let error = |y: &Value| -> fastforward::tensor::Result<_> { Ok((y.dequantize()? - &x)?.sqr()?.sum_all()?) };
/// let before = error(&slot.apply(&Value::from(&x))?)?;
/// for _ in 0..50 {
///     optimizer.backward_step(&error(&slot.apply(&Value::from(&x))?)?)?;
/// }
/// let after = error(&slot.apply(&Value::from(&x))?)?;
/// assert!(after.to_scalar::<f32>()? < 0.2 * before.to_scalar::<f32>()?);
/// learned.finish()?; // plain linear quantizers again, with what was learned
/// assert!(!slot.quantizer().to_string().is_empty());
/// # Ok::<(), fastforward::tensor::Error>(())
/// ```
///
/// # Errors
/// [`ErrorKind::UnsetQuantizer`] naming every linear quantizer without a range: calibrate first.
pub fn trainable<S: SlotSource + ?Sized>(
    source: &S,
    options: TrainableOptions,
) -> Result<TrainableParameters> {
    let mut made: HashMap<usize, Arc<TrainableQuantizer>> = HashMap::new();
    let (mut updates, mut quantizers, mut unset) = (Vec::new(), Vec::new(), Vec::new());
    for entry in source.slot_entries() {
        let standing = entry.slot.quantizer();
        let key = Arc::as_ptr(&standing).cast::<()>() as usize;
        let any: Arc<dyn Any + Send + Sync> = standing.clone();
        let new = if let Some(known) = made.get(&key) {
            Arc::clone(known)
        } else if let Ok(already) = any.clone().downcast::<TrainableQuantizer>() {
            quantizers.push((entry.name().to_owned(), Arc::clone(&already)));
            made.insert(key, already);
            continue;
        } else if let Ok(linear) = any.downcast::<LinearQuantizer>() {
            let Some(parameters) = linear.shared_parameters() else {
                unset.push(format!(
                    "`{}`: {linear} has no range yet; calibrate it before training",
                    entry.name()
                ));
                continue;
            };
            let new =
                Arc::new(TrainableQuantizer::new(linear.config().clone(), &parameters, options)?);
            quantizers.push((entry.name().to_owned(), Arc::clone(&new)));
            made.insert(key, Arc::clone(&new));
            new
        } else {
            continue;
        };
        if !entry.slot.holds(&(new.clone() as Arc<dyn Quantizer>)) {
            updates.push(SlotUpdate {
                name: entry.name().to_owned(),
                slot: entry.slot.clone(),
                expected: Some(standing),
                new,
            });
        }
    }
    if !unset.is_empty() {
        return Err(Error::of_problems(
            ErrorKind::UnsetQuantizer,
            "quantizers cannot be trained",
            &unset,
        )
        .into());
    }
    apply_updates(updates)?;
    Ok(TrainableParameters { slots: source.slot_entries(), quantizers })
}

/// What learns, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TrainableOptions {
    /// Whether scales learn.
    pub scale: bool,
    /// Whether the offsets of asymmetric quantizers learn. Those of one-sided symmetric ones are constants (spec §3.7).
    pub offset: bool,
    /// Whether the gradient of each scale is multiplied by `1 / sqrt(n · hi)`, for tiles of `n` elements and the largest
    /// code `hi`: the scales then learn at the pace of the weights (LSQ, Esser et al., 2020, §2.2). The reference has no such
    /// factor.
    pub lsq_gradient_scaling: bool,
}

impl Default for TrainableOptions {
    /// Scales and offsets learn, without gradient scaling, as in the reference.
    fn default() -> Self {
        Self { scale: true, offset: true, lsq_gradient_scaling: false }
    }
}

/// The quantizers that learn, and their variables.
#[derive(Debug)]
pub struct TrainableParameters {
    slots: Vec<crate::module::SlotEntry>,
    quantizers: Vec<(String, Arc<TrainableQuantizer>)>,
}

impl TrainableParameters {
    /// The variables with their names, `<slot>.scale` and `<slot>.offset`, in declaration order.
    pub fn named_vars(&self) -> Vec<(String, Var)> {
        let mut all = Vec::new();
        for (name, quantizer) in &self.quantizers {
            let mut add = |what: &str, learned: &Learned| {
                if learned.learns {
                    all.push((format!("{name}.{what}"), learned.var.clone()));
                }
            };
            add("scale", &quantizer.scale);
            quantizer.offset.iter().for_each(|offset| add("offset", offset));
        }
        all
    }

    /// The variables, for an optimizer.
    pub fn vars(&self) -> Vec<Var> {
        self.named_vars().into_iter().map(|(_, var)| var).collect()
    }

    /// Puts plain [`LinearQuantizer`]s with the learned parameters in the place of the trainable ones, wherever these still
    /// stand: a slot that holds something else by now keeps it.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidRange`] naming every quantizer whose scale or offset training left without meaning;
    /// [`ErrorKind::UnsafeUpdate`] when another thread changes a slot meanwhile. Nothing is replaced then.
    pub fn finish(self) -> Result<()> {
        let mut made: HashMap<usize, Arc<dyn Quantizer>> = HashMap::new();
        let mut problems = Vec::new();
        for (name, quantizer) in &self.quantizers {
            match quantizer.finished() {
                Ok(linear) => {
                    made.insert(Arc::as_ptr(quantizer).cast::<()>() as usize, Arc::new(linear));
                }
                Err(error) => problems.push(error.at(format_args!("`{name}`")).to_string()),
            }
        }
        if !problems.is_empty() {
            let summary = "quantizers have no range any more";
            return Err(Error::of_problems(ErrorKind::InvalidRange, summary, &problems).into());
        }
        let mut updates = Vec::new();
        for entry in &self.slots {
            let standing = entry.slot.quantizer();
            if let Some(new) = made.get(&(Arc::as_ptr(&standing).cast::<()>() as usize)) {
                updates.push(SlotUpdate {
                    name: entry.name().to_owned(),
                    slot: entry.slot.clone(),
                    expected: Some(standing),
                    new: Arc::clone(new),
                });
            }
        }
        Ok(apply_updates(updates)?)
    }
}

/// A linear quantizer whose scale, and offset if it is asymmetric, are variables (spec §4.5).
///
/// To queries, printing and saved states it is a [`LinearQuantizer`].
pub struct TrainableQuantizer {
    config: LinearQuantizerConfig,
    scale: Learned,
    offset: Option<Learned>,
    set: AtomicBool,
    lsq: bool,
}

/// `[tiles]`, `f32`: a variable, which can be set, whether it learns or not.
struct Learned {
    var: Var,
    learns: bool,
}

impl Learned {
    fn new(values: &[f32], learns: bool) -> Result<Self> {
        Ok(Self { var: Var::from_slice(values, values.len(), &Device::Cpu)?, learns })
    }

    /// What operators see: only what learns has a gradient.
    fn tensor(&self) -> Tensor {
        if self.learns { self.var.as_tensor().clone() } else { self.var.as_detached_tensor() }
    }

    fn values(&self) -> std::result::Result<Vec<f32>, Error> {
        Ok(self.var.to_vec1::<f32>().map_err(crate::tensor::Error::from)?)
    }

    fn set(&self, values: Vec<f32>) -> Result<()> {
        Ok(self.var.set(&Tensor::from_vec(values, self.var.shape(), &Device::Cpu)?)?)
    }
}

impl TrainableQuantizer {
    /// A quantizer with these settings that starts from these parameters.
    ///
    /// # Errors
    /// [`ErrorKind::Tensor`] from candle.
    pub fn new(
        config: LinearQuantizerConfig,
        start: &AffineParameters,
        options: TrainableOptions,
    ) -> Result<Self> {
        let scale = Learned::new(&start.scale, options.scale)?;
        // A symmetric range may become one-sided later, and then needs an offset.
        let zeros = (!config.range.symmetric || config.range.allow_one_sided)
            .then(|| vec![0.0; start.scale.len()]);
        let learns = options.offset && !config.range.symmetric;
        let offset =
            start.offset.clone().or(zeros).map(|o| Learned::new(&o, learns)).transpose()?;
        let lsq = options.lsq_gradient_scaling;
        Ok(Self { config, scale, offset, set: AtomicBool::new(true), lsq })
    }

    /// The scales, one per tile.
    pub fn scale(&self) -> &Var {
        &self.scale.var
    }

    /// The offsets, one per tile, if there are any.
    pub fn offset(&self) -> Option<&Var> {
        self.offset.as_ref().map(|offset| &offset.var)
    }

    /// The parameters as they stand.
    ///
    /// # Errors
    /// [`ErrorKind::UnsetQuantizer`] after [`reset_parameters`](RangeSettable::reset_parameters).
    pub fn parameters(&self) -> std::result::Result<AffineParameters, Error> {
        if !self.is_set() {
            return Err(Error::new(
                ErrorKind::UnsetQuantizer,
                format!("{self} has no range yet; set one or calibrate"),
            ));
        }
        Ok(AffineParameters {
            num_bits: self.config.num_bits,
            narrow_range: self.config.range.narrow_range,
            scale: self.scale.values()?,
            offset: self.offset.as_ref().map(Learned::values).transpose()?,
        })
    }

    fn is_set(&self) -> bool {
        self.set.load(Ordering::Acquire)
    }

    fn grid(&self) -> std::result::Result<AffineGrid, Error> {
        Ok(AffineGrid {
            granularity: self.config.granularity.clone(),
            parameters: Arc::new(self.parameters()?),
        })
    }

    /// `x` on the grid, with gradients for `x`, the scale and the offset.
    pub(crate) fn quantize_tensor(&self, x: &Tensor) -> Result<QuantizedTensor> {
        let offset = self.offset.as_ref().map(Learned::tensor);
        let scale = self.scale.tensor();
        QuantizedTensor::quantize_learned(x, &self.grid()?, &scale, offset.as_ref(), self.lsq)
    }

    /// The quantizer of the core that takes its place after training: without a range if it has none, and without the zeros
    /// that a symmetric quantizer has for offsets here.
    fn finished(&self) -> std::result::Result<LinearQuantizer, Error> {
        let linear = LinearQuantizer::new(self.config.clone())?;
        if self.is_set() {
            let mut parameters = self.parameters()?;
            if self.config.range.symmetric {
                parameters.offset = parameters.offset.filter(|all| all.iter().any(|&o| o != 0.0));
            }
            linear.set_parameters(parameters)?;
        }
        Ok(linear)
    }

    /// The same settings and parameters as a quantizer of the core.
    fn frozen(&self) -> std::result::Result<LinearQuantizer, Error> {
        let linear = LinearQuantizer::new(self.config.clone())?;
        linear.set_parameters(self.parameters()?)?;
        Ok(linear)
    }
}

impl Quantizer for TrainableQuantizer {
    fn class(&self) -> Class {
        classes::linear_quantizer()
    }

    fn quantize(&self, x: ArrayView<'_>) -> std::result::Result<QuantizedArray, Error> {
        self.frozen()?.quantize(x)
    }

    fn forward(&self, x: ArrayView<'_>) -> std::result::Result<Flow, Error> {
        self.frozen()?.forward(x)
    }

    fn affine_grid(&self, _x: ArrayView<'_>) -> std::result::Result<Option<AffineGrid>, Error> {
        self.grid().map(Some)
    }

    fn num_bits(&self) -> Option<u32> {
        Some(self.config.num_bits)
    }

    fn as_range_settable(&self) -> Option<&dyn RangeSettable> {
        Some(self)
    }

    fn to_saved(&self) -> Option<SavedQuantizer> {
        Some(SavedQuantizer::Linear(self.config.clone(), self.parameters().ok()))
    }
}

impl RangeSettable for TrainableQuantizer {
    fn granularity(&self) -> &Granularity {
        &self.config.granularity
    }

    fn range_settings(&self) -> RangeSettings {
        self.config.range
    }

    fn quantization_range(&self) -> Option<(Vec<f32>, Vec<f32>)> {
        self.parameters().ok().map(|parameters| parameters.quantization_range())
    }

    fn set_quantization_range(&self, min: &[f32], max: &[f32]) -> std::result::Result<(), Error> {
        let new = self.parameters_for_range(min, max)?;
        let expected = self.scale.var.elem_count();
        if new.scale.len() != expected {
            return Err(Error::new(
                ErrorKind::InvalidRange,
                format!("a range of {} tiles for a quantizer with {expected}", new.scale.len()),
            ));
        }
        let zeros = vec![0.0; new.scale.len()];
        self.scale.set(new.scale)?;
        if let Some(offset) = &self.offset {
            offset.set(new.offset.unwrap_or(zeros))?;
        }
        self.set.store(true, Ordering::Release);
        Ok(())
    }

    fn reset_parameters(&self) {
        self.set.store(false, Ordering::Release);
    }

    fn parameters_for_range(
        &self,
        min: &[f32],
        max: &[f32],
    ) -> std::result::Result<AffineParameters, Error> {
        LinearQuantizer::new(self.config.clone())?.parameters_for_range(min, max)
    }
}

impl fmt::Debug for TrainableQuantizer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TrainableQuantizer")
            .field("config", &self.config)
            .field("lsq", &self.lsq)
            .finish_non_exhaustive()
    }
}

/// As the linear quantizer that it is.
impl fmt::Display for TrainableQuantizer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match LinearQuantizer::new(self.config.clone()) {
            Ok(linear) => linear.fmt(f),
            Err(_) => f.write_str("LinearQuantizer"),
        }
    }
}
