//! A quantized model in a folder: its quantizers and its weights (spec §7.3, §7.4).
//!
//! | file | what it holds |
//! |---|---|
//! | `manifest.json` | format and version, the model's name and class, the SHA-256 of the other files, every parameter: names, type, shape |
//! | `weights.safetensors` | the elements of every parameter, tied ones once |
//! | `state.json`, `state.safetensors` | the [quantization state](crate::quantization::state): every quantizer with its settings, tags, sharing, the rule that made it, and its scales and offsets |
//!
//! Nothing in a file is executed. The same model gives the same bytes.

mod manifest;
mod weights;

use std::collections::BTreeMap;
use std::path::Path;

use manifest::{BOUND, FILES, Manifest, WEIGHTS};

use crate::files::{sha256, write_folder_whole};
use crate::module::{Module, named_slots};
use crate::quantization::affine::SavedQuantizer;
use crate::quantization::quant_init::InitializeOptions;
use crate::quantization::state::{StateInfo, plan_quantization_state, save_quantization_state};
use crate::tensor::Result;
use crate::{Error, ErrorKind};

/// Writes a model into a folder: every quantizer, and every [`Param`](crate::nn::Param) under its full name, weights as well
/// as buffers such as running means.
///
/// It is a snapshot: weights are written as they stand, latent or [fused](crate::quantization::fuse_qdq_weights), and nothing
/// about the model changes. A tied parameter, one [`Param`](crate::nn::Param) under several names, is stored once, and so
/// is a quantizer that several slots hold. The folder appears whole: until everything is written there is none, or the one
/// that was there before.
///
/// ```
/// use candle_core::{Device, Tensor};
/// use fastforward::nn::Linear;
/// use fastforward::quantization::quant_init::{InitializeOptions, QuantizationConfig, QuantizerSpec};
/// use fastforward::quantization::quantizer::RangeSettable;
/// use fastforward::quantization::state::StateInfo;
/// use fastforward::quantization::{SaveOptions, load_quantized_model, save_quantized_model};
///
/// let layer = |values: [f32; 2]| Linear::from_tensors(Tensor::new(&[values], &Device::Cpu)?, None);
/// let model = layer([0.3, -0.9])?;
/// let mut config = QuantizationConfig::for_model(&model);
/// config.add_rule("**/[quantizer:parameter/weight]", QuantizerSpec::linear(4))?;
/// let done = config.initialize(&model, InitializeOptions::default())?;
/// let quantizer = model.weight_quantizer.quantizer();
/// quantizer.as_range_settable().unwrap().set_quantization_range(&[-1.0], &[1.0])?;
///
/// let folder = std::env::temp_dir().join(format!("ff-model-{}", std::process::id()));
/// let info = StateInfo::new("one layer").with_rules(&done.resolution);
/// save_quantized_model(&model, &folder, &info, SaveOptions { replace: true, ..Default::default() })?;
///
/// let other = layer([0.0, 0.0])?;
/// let info = load_quantized_model(&other, &folder, Some("one layer"), InitializeOptions::default())?;
/// assert_eq!(other.weight.tensor().to_vec2::<f32>()?, [[0.3, -0.9]]);
/// assert_eq!(other.weight_quantizer.quantizer().num_bits(), Some(4));
/// assert_eq!(info.rules["weight_quantizer"], "`**/[quantizer:parameter/weight]`");
/// # std::fs::remove_dir_all(&folder).unwrap();
/// # Ok::<(), fastforward::tensor::Error>(())
/// ```
///
/// # Errors
/// [`ErrorKind::UnsetQuantizer`] naming every quantizer without a range, unless allowed; [`ErrorKind::Unsupported`] naming
/// every parameter that is no [`Param`](crate::nn::Param), or whose type or name cannot be stored; [`ErrorKind::State`] naming
/// every quantizer without a saved form; [`ErrorKind::Io`] when the folder exists and is not to be replaced, holds files of
/// somebody else, or cannot be written.
pub fn save_quantized_model(
    model: &dyn Module,
    folder: &Path,
    info: &StateInfo,
    options: SaveOptions,
) -> Result<()> {
    if !options.allow_unset {
        check_set(unset_slots(model))?;
    }
    let weights = weights::of_model(model)?;
    write_folder_whole(folder, &FILES, options.replace, |aside| {
        save_quantization_state(model, aside, info, options.allow_unset)?;
        weights::write(&weights, &aside.join(WEIGHTS))?;
        let mut files = BTreeMap::new();
        for name in BOUND {
            files.insert(name.to_owned(), sha256(&aside.join(name))?);
        }
        let saved = weights.iter().map(weights::Weight::saved).collect();
        Manifest::new(&info.model, model.class().path(), files, saved).write(aside)?;
        Ok(())
    })
}

/// How a model is saved.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SaveOptions {
    /// Whether a saved model that is in the folder already is replaced. A folder that holds anything else is refused in any
    /// case.
    pub replace: bool,
    /// Whether quantizers without a range are saved too. Loading refuses them in its turn unless told otherwise.
    pub allow_unset: bool,
}

/// Reads what [`save_quantized_model`] wrote into a model of the same structure: all of it, or nothing.
///
/// Quantizers are put into their slots as the policy says; weights are set in place, so that variables stay those an
/// optimizer knows. Slots that held no quantizer when the model was saved are left as they are. The name of the model is
/// compared if one is expected.
///
/// Everything is checked before anything changes, and no more memory is taken than the files have bytes, twice over.
///
/// # Errors
/// - [`ErrorKind::Io`]: a file is missing or cannot be read.
/// - [`ErrorKind::State`]: another format or version, another model or class, a file that is damaged or of another save,
///   parameters or slots that are missing or unexpected (with the nearest names), other shapes or types, parameters that are
///   tied on one side only.
/// - [`ErrorKind::UnsetQuantizer`]: quantizers were saved without a range, and that is not allowed.
/// - [`ErrorKind::AlreadySet`], [`ErrorKind::UnsafeUpdate`]: slots that are not to be filled.
/// - [`ErrorKind::Unsupported`]: parameters that are no [`Param`](crate::nn::Param).
///
/// Every problem of a kind is named.
pub fn load_quantized_model(
    model: &dyn Module,
    folder: &Path,
    expected_model: Option<&str>,
    options: impl Into<LoadOptions>,
) -> Result<StateInfo> {
    let options = options.into();
    let manifest = Manifest::read(folder)?;
    check_model(&manifest, model, expected_model)
        .map_err(|error| error.at(format_args!("`{}`", folder.display())))?;
    let bytes = manifest.read_bound(folder)?;
    let weights = weights::of_model(model)?;
    let weights::Values { values, mut problems } =
        weights::read(weights, &manifest.weights, &bytes)?;
    drop(bytes);
    let plan = plan_quantization_state(model, folder, Some(&manifest.model), options.initialize);
    let plan = match plan {
        Ok(plan) if problems.is_empty() => plan,
        Err(error) if problems.is_empty() => return Err(error.into()),
        plan => {
            problems.extend(plan.err().map(|error| error.to_string()));
            let summary = "problems in the saved model";
            let error = Error::of_problems(ErrorKind::State, summary, &problems);
            return Err(error.at(format_args!("`{}`", folder.display())).into());
        }
    };
    if !options.allow_unset {
        check_set(plan.unset().to_vec())?;
    }
    let info = plan.apply()?;
    // From here on only a device can fail: shapes and types are checked, and the values are on the parameter's device.
    for (param, values) in values {
        param.set(&values)?;
    }
    Ok(info)
}

/// How a model is loaded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LoadOptions {
    /// How slots are filled.
    pub initialize: InitializeOptions,
    /// Whether quantizers that were saved without a range are loaded without one.
    pub allow_unset: bool,
}

impl From<InitializeOptions> for LoadOptions {
    fn from(initialize: InitializeOptions) -> Self {
        Self { initialize, ..Self::default() }
    }
}

fn check_model(
    manifest: &Manifest,
    model: &dyn Module,
    expected_model: Option<&str>,
) -> std::result::Result<(), Error> {
    let mut problems = Vec::new();
    if let Some(expected) = expected_model
        && expected != manifest.model
    {
        problems.push(format!("this is model `{}`, expected `{expected}`", manifest.model));
    }
    // A path starts with the crate in which the model is written, and the same model may be part of several programs.
    let name = |path: &str| path.rsplit("::").next().unwrap_or_default().to_owned();
    let class = model.class();
    if name(&manifest.class) != name(class.path()) {
        let path = class.path();
        problems.push(format!("it was saved from a `{}`, the model is a `{path}`", manifest.class));
    }
    if problems.is_empty() {
        return Ok(());
    }
    Err(Error::of_problems(ErrorKind::State, "signs of another model", &problems))
}

/// The slots whose quantizers have no range.
fn unset_slots(model: &dyn Module) -> Vec<String> {
    let is_unset = |quantizer: &dyn crate::quantization::Quantizer| {
        matches!(quantizer.to_saved(), Some(SavedQuantizer::Linear(_, None)))
    };
    named_slots(model)
        .into_iter()
        .filter(|entry| is_unset(&*entry.slot.quantizer()))
        .map(|entry| entry.name().to_owned())
        .collect()
}

pub(super) fn check_set(unset: Vec<String>) -> std::result::Result<(), Error> {
    if unset.is_empty() {
        return Ok(());
    }
    let problem = |name: &String| {
        format!("`{name}` has no range yet; calibrate it, or allow it with `allow_unset`")
    };
    let problems: Vec<String> = unset.iter().map(problem).collect();
    Err(Error::of_problems(ErrorKind::UnsetQuantizer, "quantizers have no range", &problems))
}
