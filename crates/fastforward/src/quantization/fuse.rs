//! Parameters replaced by their quantized values (spec §8.1, §8.2).

use std::collections::HashMap;
use std::sync::Arc;

use candle_core::Tensor;
use mpath::Tag;

use crate::module::{Module, Parameter, Visitor};
use crate::nn::Param;
use crate::quantization::QuantizerStub;
use crate::quantization::quantizer::{QuantizerSlot, SlotUpdate, apply_updates, default_tags};
use crate::tensor::{Apply, Result, Value};
use crate::{Error, ErrorKind, flags};

/// Writes every weight as its quantizer sees it: `weight := dequantize(quantize(weight))`, in place, type kept. Returns the
/// names of the weights that were written.
///
/// With `stub_quantizers` the slots become stubs again, tags kept, and the model runs on the written weights as before;
/// otherwise the quantizers stay, and find the same codes again. A quantizer that is switched off changes nothing and stays. A
/// quantizer shared by several weights is applied to each of them.
///
/// ```
/// use candle_core::{Device, Tensor};
/// use fastforward::nn::Linear;
/// use fastforward::quantization::quantizer::RangeSettable;
/// use fastforward::quantization::{LinearQuantizer, LinearQuantizerConfig, fuse_qdq_weights};
///
/// let layer = Linear::from_tensors(Tensor::new(&[[0.3f32, -0.9]], &Device::Cpu)?, None)?;
/// let quantizer = LinearQuantizer::new(LinearQuantizerConfig::new(2))?;
/// quantizer.set_quantization_range(&[-1.0], &[0.5])?;
/// layer.weight_quantizer.replace(std::sync::Arc::new(quantizer));
/// assert_eq!(fuse_qdq_weights(&layer, true)?, ["weight"]);
/// assert_eq!(layer.weight.tensor().to_vec2::<f32>()?, [[0.5, -1.0]]);
/// assert!(layer.weight_quantizer.is_stub());
/// # Ok::<(), fastforward::tensor::Error>(())
/// ```
///
/// # Errors
/// [`ErrorKind::UnsetQuantizer`] naming every weight whose quantizer has no range; [`ErrorKind::InvalidSettings`] when one
/// parameter has quantizers that make different values of it, naming them. Nothing is written then.
pub fn fuse_qdq_weights(model: &dyn Module, stub_quantizers: bool) -> Result<Vec<String>> {
    fuse(&find_parameter_quantizers(model, default_tags::weight())?, stub_quantizers)
}

/// Writes every parameter, weights and biases, as its quantizer sees it, and empties exactly the slots of those quantizers.
/// Quantizers of activations stay. Returns the names of the parameters that were written.
///
/// # Errors
/// As for [`fuse_qdq_weights`].
pub fn freeze_parameters(model: &dyn Module) -> Result<Vec<String>> {
    fuse(&find_parameter_quantizers(model, default_tags::parameter())?, true)
}

/// Empties the slots of weights, without writing them. Returns their names.
///
/// # Errors
/// As for [`find_parameter_quantizers`].
pub fn stub_weight_quantizers(model: &dyn Module) -> Result<Vec<String>> {
    let found = find_parameter_quantizers(model, default_tags::weight())?;
    for one in &found {
        one.slot.replace(Arc::new(QuantizerStub));
    }
    Ok(found.into_iter().map(|one| one.parameter_name).collect())
}

/// A parameter and the slot of its quantizer.
#[derive(Clone, Debug)]
pub struct ParameterQuantizer {
    /// The full name of the parameter.
    pub parameter_name: String,
    /// The parameter.
    pub parameter: Param,
    /// The full name of the slot.
    pub slot_name: String,
    /// The slot.
    pub slot: QuantizerSlot,
}

/// The parameters that have a quantizer of their own: a slot with this tag, not a stub, called `<name>_quantizer` beside a
/// parameter called `<name>`; in declaration order.
///
/// # Errors
/// [`ErrorKind::Unsupported`] naming every such parameter that is not a [`Param`].
pub fn find_parameter_quantizers(model: &dyn Module, tag: Tag) -> Result<Vec<ParameterQuantizer>> {
    let mut finder = Finder { tag, path: String::new(), found: Vec::new(), foreign: Vec::new() };
    finder.walk(model);
    if !finder.foreign.is_empty() {
        let summary = "parameters cannot be written";
        return Err(Error::of_problems(ErrorKind::Unsupported, summary, &finder.foreign).into());
    }
    Ok(finder.found)
}

struct Finder {
    tag: Tag,
    path: String,
    found: Vec<ParameterQuantizer>,
    foreign: Vec<String>,
}

/// The direct children of one module.
#[derive(Default)]
struct Children<'a> {
    modules: Vec<(String, &'a dyn Module)>,
    slots: Vec<(String, &'a QuantizerSlot)>,
    parameters: Vec<(String, &'a dyn Parameter)>,
}

impl<'a> Visitor<'a> for Children<'a> {
    fn module(&mut self, name: &str, module: &'a dyn Module) {
        self.modules.push((name.to_owned(), module));
    }

    fn slot(&mut self, name: &str, slot: &'a QuantizerSlot) {
        self.slots.push((name.to_owned(), slot));
    }

    fn parameter(&mut self, name: &str, parameter: &'a dyn Parameter) {
        self.parameters.push((name.to_owned(), parameter));
    }
}

impl Finder {
    fn walk(&mut self, module: &dyn Module) {
        let mut children = Children::default();
        module.visit(&mut children);
        for (slot_name, slot) in &children.slots {
            if slot.is_stub() || !slot.tags().contains(self.tag) {
                continue;
            }
            let Some(name) = slot_name.strip_suffix("_quantizer") else { continue };
            let Some((_, parameter)) = children.parameters.iter().find(|(one, _)| one == name)
            else {
                continue;
            };
            let parameter_name = format!("{}{name}", self.path);
            match parameter.downcast_ref::<Param>() {
                Some(parameter) => self.found.push(ParameterQuantizer {
                    parameter_name,
                    parameter: parameter.clone(),
                    slot_name: format!("{}{slot_name}", self.path),
                    slot: (*slot).clone(),
                }),
                None => self.foreign.push(format!("`{parameter_name}` is no `nn::Param`")),
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

fn fuse(found: &[ParameterQuantizer], stub_quantizers: bool) -> Result<Vec<String>> {
    let _constants = flags::inference();
    // In export mode quantizers return floats, as if they were switched off.
    let _codes = flags::export_mode(false);
    // The values each parameter is to get, by the parameter's identity, with the name of the slot they come from.
    let mut values: HashMap<Option<usize>, (Tensor, &str)> = HashMap::new();
    let mut written: Vec<(&ParameterQuantizer, Tensor)> = Vec::new();
    let (mut problems, mut conflicts) = (Vec::new(), Vec::new());
    let mut emptied: Vec<&ParameterQuantizer> = Vec::new();
    for one in found {
        let before = Value::from(one.parameter.tensor());
        let quantized = match one.slot.apply(&before) {
            Ok(Value::Quantized(quantized)) => quantized.dequantize()?,
            // Switched off, or an override that decides otherwise: the parameter is not this quantizer's.
            Ok(Value::Float(_)) if one.slot.override_count() > 0 => continue,
            // A quantizer without an affine grid makes floats.
            Ok(Value::Float(quantized)) => quantized,
            Err(error) => {
                problems.push(error.into_inner());
                continue;
            }
        };
        emptied.push(one);
        match values.get(&one.parameter.identity()) {
            None => {
                values.insert(one.parameter.identity(), (quantized.clone(), &one.slot_name));
                written.push((one, quantized));
            }
            Some((first, _)) if same_bits(first, &quantized)? => {}
            Some((_, first)) => conflicts.push(format!(
                "`{}` and `{}` make different values of one parameter, `{}`; give both the same quantizer",
                first, one.slot_name, one.parameter_name
            )),
        }
    }
    if let Some(first) = problems.first() {
        let kind = first.kind();
        let problems: Vec<String> = problems.iter().map(ToString::to_string).collect();
        return Err(Error::of_problems(kind, "parameters cannot be written", &problems).into());
    }
    if !conflicts.is_empty() {
        let summary = "parameters have conflicting quantizers";
        return Err(Error::of_problems(ErrorKind::InvalidSettings, summary, &conflicts).into());
    }
    for (one, values) in &written {
        one.parameter.set(values)?;
    }
    if stub_quantizers {
        let update = |one: &&ParameterQuantizer| SlotUpdate {
            name: one.slot_name.clone(),
            slot: one.slot.clone(),
            expected: None,
            new: Arc::new(QuantizerStub),
        };
        apply_updates(emptied.iter().map(update).collect())?;
    }
    Ok(written.into_iter().map(|(one, _)| one.parameter_name.clone()).collect())
}

fn same_bits(a: &Tensor, b: &Tensor) -> Result<bool> {
    let bits = |x: &Tensor| -> Result<Vec<u64>> {
        let x = x.to_dtype(candle_core::DType::F64)?.flatten_all()?;
        Ok(x.to_vec1::<f64>()?.into_iter().map(f64::to_bits).collect())
    };
    Ok(bits(a)? == bits(b)?)
}
