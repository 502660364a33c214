//! Parameters of layers.

use std::any::Any;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use candle_core::{DType, Tensor, Var};

use crate::module::Parameter;
use crate::quantization::affine::AffineParameters;
use crate::quantization::quantizer::{Onward, Quantizer, QuantizerSlot};
use crate::quantization::{DynamicLinearQuantizer, Granularity, LinearQuantizer};
use crate::range_setting::{TileRanges, tile_ranges};
use crate::tensor::{Apply, Error, RangeWatch, Result, Value, quantize_alone, record, with_view};
use crate::{ErrorKind, flags};

/// A parameter: a tensor that can be trained, set, and shared between layers.
///
/// A clone is the *same* parameter: that is how layers tie their weights, and why tied weights are saved once. Under
/// [`flags::inference`] the quantized form is made once and kept until the parameter or its quantizer changes.
///
/// ```
/// use candle_core::{Device, Tensor};
/// use fastforward::nn::Param;
/// let weight = Param::new(Tensor::new(&[[1f32, 2.0]], &Device::Cpu)?);
/// let tied = weight.clone();
/// weight.set(&Tensor::new(&[[3f32, 4.0]], &Device::Cpu)?)?;
/// assert_eq!(tied.tensor().to_vec2::<f32>()?, [[3.0, 4.0]]);
/// assert!(weight.set(&Tensor::new(&[3f32], &Device::Cpu)?).is_err());
/// # Ok::<(), fastforward::tensor::Error>(())
/// ```
#[derive(Clone)]
pub struct Param(Arc<Inner>);

struct Inner {
    shape: Vec<usize>,
    dtype: DType,
    tensor: RwLock<Tensor>,
    /// Counts the changes made through this parameter.
    version: AtomicU64,
    kept: Mutex<Option<Kept>>,
    ranges: Mutex<Option<KeptRanges>>,
}

/// A quantized form, and what it was made of.
struct Kept {
    value: Value,
    version: u64,
    /// The inference guard under which it was made. Without one nothing is kept: a variable, or a constant that shares its
    /// storage, may be stepped by an optimizer at any time.
    scope: u64,
    quantizer: Arc<dyn Quantizer>,
    parameters: Option<Arc<AffineParameters>>,
    mode: (bool, bool),
}

/// The range of each tile, and of which tiles of what.
struct KeptRanges {
    ranges: Arc<TileRanges>,
    version: u64,
    scope: u64,
    granularity: Granularity,
}

impl Param {
    /// A parameter with these values: trainable if the tensor is a variable, as those of a `VarMap` are.
    pub fn new(tensor: Tensor) -> Self {
        Self(Arc::new(Inner {
            shape: tensor.dims().to_vec(),
            dtype: tensor.dtype(),
            tensor: RwLock::new(tensor),
            version: AtomicU64::new(0),
            kept: Mutex::new(None),
            ranges: Mutex::new(None),
        }))
    }

    /// The values; a variable if the parameter is trainable, a constant under [`flags::inference`].
    pub fn tensor(&self) -> Tensor {
        let tensor = self.0.tensor.read().unwrap_or_else(PoisonError::into_inner);
        if flags::is_inference() { tensor.detach() } else { tensor.clone() }
    }

    /// One extent per dimension.
    pub fn dims(&self) -> &[usize] {
        &self.0.shape
    }

    /// The element type.
    pub fn dtype(&self) -> DType {
        self.0.dtype
    }

    /// The variable, if the parameter is trainable.
    pub fn var(&self) -> Option<Var> {
        let tensor = self.0.tensor.read().unwrap_or_else(PoisonError::into_inner);
        if tensor.is_variable() { Var::from_tensor(&tensor).ok() } else { None }
    }

    /// Makes the parameter trainable and returns its variable.
    ///
    /// # Errors
    /// [`ErrorKind::Tensor`] from candle.
    pub fn make_trainable(&self) -> Result<Var> {
        let mut tensor = self.0.tensor.write().unwrap_or_else(PoisonError::into_inner);
        let var = Var::from_tensor(&tensor)?;
        *tensor = var.as_tensor().clone();
        drop(tensor);
        self.forget();
        Ok(var)
    }

    /// Makes the parameter a constant: gradients end here, and an optimizer that knows its variable no longer changes it.
    ///
    /// # Errors
    /// [`ErrorKind::Tensor`] from candle.
    pub fn make_constant(&self) -> Result<()> {
        let mut tensor = self.0.tensor.write().unwrap_or_else(PoisonError::into_inner);
        if tensor.is_variable() {
            *tensor = tensor.copy()?.detach();
        }
        drop(tensor);
        self.forget();
        Ok(())
    }

    /// Writes other values, in place: all owners see them, and a trainable parameter keeps its variable.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidData`] when shape or type differ.
    pub fn set(&self, values: &Tensor) -> Result<()> {
        if values.dims() != self.dims() || values.dtype() != self.dtype() {
            return Err(Error::new(
                ErrorKind::InvalidData,
                format!(
                    "a parameter of shape {:?} and type {:?} cannot take values of shape {:?} and type {:?}",
                    self.dims(),
                    self.dtype(),
                    values.dims(),
                    values.dtype()
                ),
            ));
        }
        let mut tensor = self.0.tensor.write().unwrap_or_else(PoisonError::into_inner);
        if tensor.is_variable() {
            // A copy: candle refuses to write a variable from a view of itself.
            Var::from_tensor(&tensor)?.set(&values.copy()?)?;
        } else {
            *tensor = values.copy()?.detach();
        }
        drop(tensor);
        self.forget();
        Ok(())
    }

    /// Puts another tensor in the place of the one that is there, which comes back: a variable stays itself.
    ///
    /// The caller sees to it that shape and type are the same.
    pub(crate) fn exchange(&self, other: Tensor) -> Tensor {
        let mut tensor = self.0.tensor.write().unwrap_or_else(PoisonError::into_inner);
        let before = std::mem::replace(&mut *tensor, other);
        drop(tensor);
        self.forget();
        before
    }

    /// The parameter through its slot.
    ///
    /// # Errors
    /// As for [`Apply::apply`].
    pub fn quantized(&self, slot: &QuantizerSlot) -> Result<Value> {
        // Who asks for the range of a weight only, such as most estimators, need not have it found for every batch.
        let watch = RangeWatch::of(slot);
        let is_seen = watch.is_none() && slot.override_count() > 0;
        let quantizer =
            watch.as_ref().map_or_else(|| slot.quantizer(), |watch| Arc::clone(watch.quantizer()));
        let any: &dyn Any = &*quantizer;
        let linear = any.downcast_ref::<LinearQuantizer>();
        // A slot that is being recorded passes the floats on, as a value of its own each time.
        let is_known =
            (linear.is_some() || any.is::<DynamicLinearQuantizer>()) && !record::is_recording();
        let version = self.0.version.load(Ordering::Acquire);
        let tensor = self.tensor();
        let Some(scope) = flags::inference_scope().filter(|_| is_known && !is_seen) else {
            return slot.apply(&tensor.into());
        };
        if let Some(watch) = &watch {
            let Some(ranges) = self.ranges(&tensor, watch.granularity(), (version, scope)) else {
                // The error is the slot's to report.
                return slot.apply(&tensor.into());
            };
            if watch.look(&ranges, tensor.elem_count())? == Onward::Out {
                return Ok(tensor.into());
            }
        }
        let parameters = linear.and_then(LinearQuantizer::shared_parameters);
        let mode = (flags::exporting(), flags::integer_execution());
        let same_parameters = |other: &Option<Arc<AffineParameters>>| match (other, &parameters) {
            (Some(a), Some(b)) => Arc::ptr_eq(a, b),
            (a, b) => a.is_none() && b.is_none(),
        };
        if let Some(kept) = &*self.kept()
            && (kept.version, kept.scope, kept.mode) == (version, scope, mode)
            && Arc::ptr_eq(&kept.quantizer, &quantizer)
            && same_parameters(&kept.parameters)
        {
            return Ok(kept.value.clone());
        }
        // By the quantizer that was looked up: the slot may hold another one by now.
        let value = quantize_alone(slot, &*quantizer, &tensor)?;
        // Unless its parameters were set in between: nobody knows then which of them were used.
        if same_parameters(&linear.and_then(LinearQuantizer::shared_parameters)) {
            let kept = Kept {
                value: value.clone(),
                version,
                scope,
                quantizer: Arc::clone(&quantizer),
                parameters,
                mode,
            };
            *self.kept() = Some(kept);
        }
        Ok(value)
    }

    /// A parameter that may be absent, through a slot that may be absent.
    ///
    /// # Errors
    /// As for [`quantized`](Self::quantized).
    pub fn quantized_option(
        parameter: Option<&Self>,
        slot: Option<&QuantizerSlot>,
    ) -> Result<Option<Value>> {
        match (parameter, slot) {
            (Some(parameter), Some(slot)) => parameter.quantized(slot).map(Some),
            (Some(parameter), None) => Ok(Some(parameter.tensor().into())),
            (None, _) => Ok(None),
        }
    }

    /// The range of each tile, found once for as long as the values are the same; `None` if one is not finite.
    fn ranges(
        &self,
        tensor: &Tensor,
        granularity: Granularity,
        (version, scope): (u64, u64),
    ) -> Option<Arc<TileRanges>> {
        let lock = || self.0.ranges.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(kept) = &*lock()
            && (kept.version, kept.scope) == (version, scope)
            && kept.granularity == granularity
        {
            return Some(Arc::clone(&kept.ranges));
        }
        // Without the lock: finding ranges may run on threads that come here themselves.
        let ranges = with_view(tensor, |view| tile_ranges(view, &granularity)).ok()?;
        if !ranges.is_finite() {
            return None;
        }
        let ranges = Arc::new(ranges);
        let found = KeptRanges { ranges: Arc::clone(&ranges), version, scope, granularity };
        *lock() = Some(found);
        Some(ranges)
    }

    fn kept(&self) -> MutexGuard<'_, Option<Kept>> {
        self.0.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn forget(&self) {
        self.0.version.fetch_add(1, Ordering::AcqRel);
        *self.kept() = None;
        *self.0.ranges.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

impl From<Tensor> for Param {
    fn from(tensor: Tensor) -> Self {
        Self::new(tensor)
    }
}

impl Parameter for Param {
    fn shape(&self) -> &[usize] {
        self.dims()
    }

    fn dtype(&self) -> &str {
        self.0.dtype.as_str()
    }

    fn size_bytes(&self) -> usize {
        self.0.shape.iter().product::<usize>() * self.0.dtype.size_in_bytes()
    }

    fn identity(&self) -> Option<usize> {
        Some(Arc::as_ptr(&self.0) as usize)
    }
}

impl fmt::Debug for Param {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Param({:?}, {:?})", self.dims(), self.dtype())
    }
}
