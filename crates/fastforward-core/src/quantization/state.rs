//! Quantizers on disk: `state.json` and `state.safetensors` (spec §7).
//!
//! The manifest names every slot that holds a quantizer: its names (a shared slot is one entry with several names), the
//! class and settings of the quantizer, its tags, and the rule that put it there. The tensors file holds the parameters as
//! `<slot>.scale` and `<slot>.offset`. A quantizer that several slots hold is stored once, with the first of them; the
//! others name that slot as `quantizer_of`, and after loading they hold one quantizer again. Nothing in either file is
//! executed.
//!
//! Version 1 of the format has no `quantizer_of`; it is written where none is needed.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use safetensors::tensor::{Dtype, TensorView};
use safetensors::{SafeTensors, serialize};
use serde::{Deserialize, Serialize};

use crate::files::{sha256_of, write_whole};
use crate::module::{Module, SlotEntry, named_slots};
use crate::quantization::Granularity;
use crate::quantization::affine::{
    AffineParameters, LinearQuantizer, LinearQuantizerConfig, SavedQuantizer,
};
use crate::quantization::dynamic::{DynamicLinearQuantizer, DynamicLinearQuantizerConfig};
use crate::quantization::quant_init::{
    InitializeOptions, OverwritePolicy, Resolution, SlotResolution,
};
use crate::quantization::quantizer::{Quantizer, SlotUpdate, apply_updates};
use crate::{Error, ErrorKind};

/// The newest version of the format. All before it are read too, and written where they can hold the state.
pub const STATE_VERSION: u32 = 2;

const MANIFEST: &str = "state.json";
const TENSORS: &str = "state.safetensors";

/// What a state is for, besides its quantizers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StateInfo {
    /// What the model is called; loading compares it.
    pub model: String,
    /// The SHA-256 of the model's file, if there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model_sha256: Option<String>,
    /// Which rule put a quantizer into a slot, by the slot's first name.
    #[serde(skip)]
    pub rules: HashMap<String, String>,
}

impl StateInfo {
    /// The state of a model of this name, made by no rules.
    pub fn new(model: impl Into<String>) -> Self {
        Self { model: model.into(), ..Self::default() }
    }

    /// The same with the rules of a resolution: of each slot the one that decides it.
    #[must_use]
    pub fn with_rules(mut self, resolution: &Resolution) -> Self {
        let winner = |slot: SlotResolution<'_>| {
            let rule = resolution.rules.get(slot.winner?.rule)?;
            Some((slot.name().to_owned(), rule.label.clone()))
        };
        self.rules.extend(resolution.slots().filter_map(winner));
        self
    }
}

#[derive(Serialize, Deserialize)]
struct Manifest {
    version: u32,
    fastforward_version: String,
    #[serde(flatten)]
    info: StateInfo,
    /// The SHA-256 of the tensors file: the two files belong together.
    tensors_sha256: String,
    slots: Vec<SlotState>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SlotState {
    names: Vec<String>,
    tags: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    rule: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    quantizer: Option<QuantizerState>,
    /// The first name of the slot whose quantizer this one holds too, in place of `quantizer`.
    #[serde(skip_serializing_if = "Option::is_none")]
    quantizer_of: Option<String>,
}

#[derive(Serialize, Deserialize)]
#[serde(tag = "class", deny_unknown_fields)]
enum QuantizerState {
    LinearQuantizer { settings: LinearQuantizerConfig, is_set: bool, has_offset: bool },
    DynamicLinearQuantizer { settings: DynamicLinearQuantizerConfig },
}

/// Writes the quantizers of a model into a folder, which is made if it is missing.
///
/// # Errors
/// [`ErrorKind::State`] naming every quantizer that has no range yet (unless `allow_unset`) or cannot be saved, and every
/// name that two slots have;
/// [`ErrorKind::Io`].
pub fn save_quantization_state(
    model: &dyn Module,
    folder: &Path,
    info: &StateInfo,
    allow_unset: bool,
) -> Result<(), Error> {
    let mut problems = Vec::new();
    let mut slots = Vec::new();
    let mut tensors: BTreeMap<String, Vec<f32>> = BTreeMap::new();
    let mut taken: HashSet<String> = HashSet::new();
    // The slots that quantizers were met in first.
    let mut owners: HashMap<*const (), String> = HashMap::new();
    for entry in named_slots(model) {
        let quantizer = entry.slot.quantizer();
        if quantizer.is_stub() {
            continue;
        }
        let name = entry.name().to_owned();
        if !taken.insert(name.clone()) {
            problems
                .push(format!("`{name}` is the name of two slots, which could not be told apart"));
            continue;
        }
        let mut slot = SlotState {
            tags: entry.slot.metadata().leaf_tags().iter().map(|t| t.as_str().to_owned()).collect(),
            rule: info.rules.get(&name).cloned(),
            names: entry.names,
            quantizer: None,
            quantizer_of: None,
        };
        match owners.entry(Arc::as_ptr(&quantizer).cast()) {
            Entry::Occupied(owner) => slot.quantizer_of = Some(owner.get().clone()),
            Entry::Vacant(unowned) => {
                match QuantizerState::of(&name, &*quantizer, allow_unset, &mut tensors) {
                    Ok(state) => slot.quantizer = Some(state),
                    Err(problem) => problems.push(problem),
                }
                unowned.insert(name);
            }
        }
        slots.push(slot);
    }
    if !problems.is_empty() {
        return Err(Error::of_problems(ErrorKind::State, "quantizers cannot be saved", &problems));
    }
    let bytes = tensor_bytes(&tensors)?;
    let manifest = Manifest {
        tensors_sha256: sha256_of(&bytes),
        version: if slots.iter().any(|slot| slot.quantizer_of.is_some()) {
            STATE_VERSION
        } else {
            1
        },
        fastforward_version: env!("CARGO_PKG_VERSION").to_owned(),
        info: info.clone(),
        slots,
    };
    fs::create_dir_all(folder).map_err(|source| {
        Error::new(ErrorKind::Io, format!("cannot make folder `{}`: {source}", folder.display()))
            .with_source(source)
    })?;
    // The manifest comes last: where it is, the tensors are there too.
    write_whole(&folder.join(TENSORS), |out| out.write_all(&bytes))?;
    let mut text = serde_json::to_string_pretty(&manifest)
        .map_err(|source| Error::new(ErrorKind::State, source.to_string()).with_source(source))?;
    text.push('\n');
    write_whole(&folder.join(MANIFEST), |out| out.write_all(text.as_bytes()))
}

impl QuantizerState {
    /// What is saved of the quantizer of a slot; its parameters go to `tensors`. Fails with a problem that names the slot.
    fn of(
        name: &str,
        quantizer: &dyn Quantizer,
        allow_unset: bool,
        tensors: &mut BTreeMap<String, Vec<f32>>,
    ) -> Result<Self, String> {
        match quantizer.to_saved() {
            None => Err(format!("`{name}`: {quantizer} has no saved form")),
            Some(SavedQuantizer::Linear(_, None)) if !allow_unset => {
                Err(format!("`{name}`: {quantizer} has no range yet"))
            }
            Some(SavedQuantizer::Linear(settings, parameters)) => {
                let (is_set, has_offset) = match &parameters {
                    Some(parameters) => (true, parameters.offset.is_some()),
                    None => (false, false),
                };
                if let Some(AffineParameters { scale, offset, .. }) = parameters {
                    tensors.insert(format!("{name}.scale"), scale);
                    if let Some(offset) = offset {
                        tensors.insert(format!("{name}.offset"), offset);
                    }
                }
                Ok(Self::LinearQuantizer { settings, is_set, has_offset })
            }
            Some(SavedQuantizer::DynamicLinear(settings)) => {
                Ok(Self::DynamicLinearQuantizer { settings })
            }
        }
    }
}

fn tensor_bytes(tensors: &BTreeMap<String, Vec<f32>>) -> Result<Vec<u8>, Error> {
    let failed = |source: safetensors::SafeTensorError| {
        Error::new(ErrorKind::State, format!("cannot store the parameters: {source}"))
            .with_source(source)
    };
    let raw: Vec<(&String, Vec<u8>)> = tensors
        .iter()
        .map(|(name, values)| (name, values.iter().flat_map(|value| value.to_le_bytes()).collect()))
        .collect();
    let views = raw
        .iter()
        .map(|(name, bytes)| {
            TensorView::new(Dtype::F32, vec![bytes.len() / 4], bytes).map(|view| (*name, view))
        })
        .collect::<Result<Vec<_>, _>>()
        .map_err(failed)?;
    serialize(views, None).map_err(failed)
}

/// Puts saved quantizers into the slots of a model: all, or none.
///
/// # Errors
/// [`ErrorKind::Io`] for a missing file; [`ErrorKind::State`] for another version, another model, slots that the model
/// lacks, missing or unexpected tensors, tensors that do not fit the shape that a slot is known to see, damaged files; [`ErrorKind::AlreadySet`] as the policy says. Every problem of
/// a kind is named.
pub fn load_quantization_state(
    model: &dyn Module,
    folder: &Path,
    expected_model: Option<&str>,
    options: InitializeOptions,
) -> Result<StateInfo, Error> {
    plan_quantization_state(model, folder, expected_model, options)?.apply()
}

/// Reads and checks a saved state as [`load_quantization_state`] does, and changes nothing yet: for what has to be loaded
/// together with other things, or not at all.
///
/// # Errors
/// As for [`load_quantization_state`].
pub fn plan_quantization_state(
    model: &dyn Module,
    folder: &Path,
    expected_model: Option<&str>,
    options: InitializeOptions,
) -> Result<StatePlan, Error> {
    let manifest_path = folder.join(MANIFEST);
    let wrong = |what: String| {
        Error::new(ErrorKind::State, format!("`{}`: {what}", manifest_path.display()))
    };
    let text = read(&manifest_path)?;
    let version: Version =
        serde_json::from_slice(&text).map_err(|source| wrong(source.to_string()))?;
    if !(1..=STATE_VERSION).contains(&version.version) {
        return Err(wrong(format!(
            "version {} of the format, expected 1 to {STATE_VERSION}",
            version.version
        )));
    }
    let manifest: Manifest =
        serde_json::from_slice(&text).map_err(|source| wrong(source.to_string()))?;
    if let Some(expected) = expected_model
        && expected != manifest.info.model
    {
        return Err(wrong(format!(
            "the state is for model `{}`, expected `{expected}`",
            manifest.info.model
        )));
    }

    let tensors_path = folder.join(TENSORS);
    let bytes = read(&tensors_path)?;
    let mut tensors = read_tensors(&tensors_path, &bytes)?;
    let slots = named_slots(model);
    let (mut problems, mut wanted) = (Vec::new(), Vec::new());
    let owned = restore_owned(&manifest.slots, &mut tensors, &mut problems);
    for saved in &manifest.slots {
        let Some(name) = saved.names.first() else {
            problems.push("a slot has no name".to_owned());
            continue;
        };
        let owner = match (&saved.quantizer, &saved.quantizer_of) {
            (Some(_), None) => name,
            (None, Some(owner)) if manifest.version > 1 => owner,
            (None, Some(_)) => {
                problems.push(format!("`{name}`: version 1 of the format has no `quantizer_of`"));
                continue;
            }
            (None, None) => {
                problems.push(format!("`{name}` has neither `quantizer` nor `quantizer_of`"));
                continue;
            }
            (Some(_), Some(_)) => {
                problems.push(format!("`{name}` has both `quantizer` and `quantizer_of`"));
                continue;
            }
        };
        let quantizer = match owned.get(owner.as_str()) {
            Some(Some(quantizer)) => Arc::clone(quantizer),
            // What is wrong with it is said already.
            Some(None) => continue,
            None => {
                problems.push(format!(
                    "`{name}` holds the quantizer of `{owner}`, which the state does not hold"
                ));
                continue;
            }
        };
        wanted.push((saved.names.as_slice(), quantizer));
    }
    let (updates, occupied) = place(&slots, &wanted, options, &mut problems);
    problems.extend(tensors.keys().map(|name| format!("unexpected tensor `{name}`")));
    check_placed(&problems, &occupied).map_err(|error| match error.kind() {
        ErrorKind::State => error.at(format!("`{}`", folder.display())),
        _ => error,
    })?;
    if sha256_of(&bytes) != manifest.tensors_sha256 {
        return Err(wrong(format!(
            "`{TENSORS}` is not the file that was saved with this manifest; the two belong together"
        )));
    }
    let unset = manifest.slots.iter().filter_map(|slot| match &slot.quantizer {
        Some(QuantizerState::LinearQuantizer { is_set: false, .. }) => slot.names.first().cloned(),
        _ => None,
    });
    let unset = unset.collect();
    let rules = manifest
        .slots
        .into_iter()
        .filter_map(|slot| Some((slot.names.into_iter().next()?, slot.rule?)))
        .collect();
    Ok(StatePlan { updates, slots, unset, info: StateInfo { rules, ..manifest.info } })
}

/// A saved state that fits a model and is not in it yet; made by [`plan_quantization_state`].
pub struct StatePlan {
    updates: Vec<SlotUpdate>,
    slots: Vec<SlotEntry>,
    unset: Vec<String>,
    info: StateInfo,
}

impl StatePlan {
    /// A plan to put quantizers that were read elsewhere, from a file of another library, into the slots of these names. Where
    /// a quantizer has several names, they must be those of one slot; one quantizer may come several times.
    ///
    /// # Errors
    /// [`ErrorKind::State`] naming every slot that the model lacks, that comes twice, or whose shape does not fit;
    /// [`ErrorKind::AlreadySet`] as the policy says.
    pub fn new(
        model: &dyn Module,
        info: StateInfo,
        quantizers: &[(Vec<String>, Arc<dyn Quantizer>)],
        options: InitializeOptions,
    ) -> Result<Self, Error> {
        let slots = named_slots(model);
        let wanted: Vec<(&[String], Arc<dyn Quantizer>)> = quantizers
            .iter()
            .map(|(names, quantizer)| (names.as_slice(), Arc::clone(quantizer)))
            .collect();
        let mut problems = Vec::new();
        let (updates, occupied) = place(&slots, &wanted, options, &mut problems);
        check_placed(&problems, &occupied)?;
        let is_unset = |quantizer: &Arc<dyn Quantizer>| {
            matches!(quantizer.to_saved(), Some(SavedQuantizer::Linear(_, None)))
        };
        let unset = quantizers.iter().filter(|(_, quantizer)| is_unset(quantizer));
        let unset = unset.filter_map(|(names, _)| names.first().cloned()).collect();
        Ok(Self { updates, slots, unset, info })
    }

    /// What was saved beside the quantizers.
    pub fn info(&self) -> &StateInfo {
        &self.info
    }

    /// The slots whose quantizers were saved without a range.
    pub fn unset(&self) -> &[String] {
        &self.unset
    }

    /// Puts the quantizers into their slots: all, or none.
    ///
    /// # Errors
    /// [`ErrorKind::UnsafeUpdate`] when a slot has changed since the plan was made, unless it was made with `safe = false`.
    pub fn apply(self) -> Result<StateInfo, Error> {
        apply_updates(self.updates)?;
        self.slots.iter().for_each(|entry| entry.slot.set_label(entry.name()));
        Ok(self.info)
    }
}

/// What has to be replaced so that each quantizer stands in the slot of its names, and the slots that are not to be filled.
fn place(
    slots: &[SlotEntry],
    wanted: &[(&[String], Arc<dyn Quantizer>)],
    options: InitializeOptions,
    problems: &mut Vec<String>,
) -> (Vec<SlotUpdate>, Vec<String>) {
    let by_name: HashMap<&str, usize> = slots
        .iter()
        .enumerate()
        .flat_map(|(at, entry)| entry.names.iter().map(move |name| (name.as_str(), at)))
        .collect();
    let (mut occupied, mut updates) = (Vec::new(), Vec::new());
    let mut filled: HashSet<usize> = HashSet::new();
    for (names, quantizer) in wanted {
        let Some(name) = names.first() else { continue };
        let Some(&at) = by_name.get(name.as_str()) else {
            problems.push(format!("the model has no slot `{name}`"));
            continue;
        };
        let missing: Vec<&String> =
            names.iter().filter(|name| by_name.get(name.as_str()) != Some(&at)).collect();
        if !missing.is_empty() {
            problems.push(format!(
                "`{name}` is shared with {missing:?} in the state, but not in the model"
            ));
            continue;
        }
        let slot = slots[at].slot.clone();
        if !filled.insert(at) {
            problems.push(format!("slot `{name}` occurs twice"));
            continue;
        }
        if let Err(error) = check_tiles(quantizer, slot.metadata().shape()) {
            problems.push(error.at(format!("`{name}`")).to_string());
            continue;
        }
        let current = slot.quantizer();
        match options.overwrite_policy {
            OverwritePolicy::Skip if !current.is_stub() => continue,
            OverwritePolicy::Error if !current.is_stub() => {
                occupied.push(format!("`{name}` already holds {current}"));
                continue;
            }
            _ => {}
        }
        updates.push(SlotUpdate {
            name: name.clone(),
            slot,
            expected: options.safe.then_some(current),
            new: Arc::clone(quantizer),
        });
    }
    (updates, occupied)
}

fn check_placed(problems: &[String], occupied: &[String]) -> Result<(), Error> {
    if !problems.is_empty() {
        return Err(Error::of_problems(ErrorKind::State, "problems in the state", problems));
    }
    if !occupied.is_empty() {
        return Err(Error::of_problems(ErrorKind::AlreadySet, "slots cannot be filled", occupied));
    }
    Ok(())
}

#[derive(Deserialize)]
struct Version {
    version: u32,
}

fn read(path: &PathBuf) -> Result<Vec<u8>, Error> {
    fs::read(path).map_err(|source| {
        Error::new(ErrorKind::Io, format!("cannot read `{}`: {source}", path.display()))
            .with_source(source)
    })
}

fn read_tensors(path: &Path, bytes: &[u8]) -> Result<BTreeMap<String, Vec<f32>>, Error> {
    let wrong =
        |what: String| Error::new(ErrorKind::State, format!("`{}`: {what}", path.display()));
    let file = SafeTensors::deserialize(bytes).map_err(|source| wrong(source.to_string()))?;
    file.iter()
        .map(|(name, view)| {
            if view.dtype() != Dtype::F32 {
                return Err(wrong(format!("tensor `{name}` is {:?}, expected F32", view.dtype())));
            }
            let values = view.data().as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b));
            Ok((name.to_owned(), values.collect()))
        })
        .collect()
}

/// Fails unless a quantizer has as many parameters as data of this shape has tiles.
fn check_tiles(quantizer: &Arc<dyn Quantizer>, shape: Option<&[usize]>) -> Result<(), Error> {
    let (granularity, found) = match quantizer.to_saved() {
        Some(SavedQuantizer::Linear(config, parameters)) => {
            (config.granularity, parameters.map(|parameters| parameters.scale.len()))
        }
        Some(SavedQuantizer::DynamicLinear(config)) => (config.granularity, None),
        None => return Ok(()),
    };
    let expected = match (shape, &granularity) {
        (Some(shape), granularity) => granularity.num_parameters(shape)?,
        (None, Granularity::PerTensor) => 1,
        (None, _) => return Ok(()),
    };
    match found {
        Some(found) if found != expected => Err(Error::new(
            ErrorKind::State,
            format!("{granularity} needs {expected} scales, found {found}"),
        )),
        _ => Ok(()),
    }
}

/// The quantizers in a manifest by the names of the slots they are stored with, `None` for one that is damaged.
fn restore_owned<'s>(
    slots: &'s [SlotState],
    tensors: &mut BTreeMap<String, Vec<f32>>,
    problems: &mut Vec<String>,
) -> HashMap<&'s str, Option<Arc<dyn Quantizer>>> {
    let mut owned = HashMap::new();
    for slot in slots {
        let (Some(name), Some(state)) = (slot.names.first(), &slot.quantizer) else { continue };
        if owned.contains_key(name.as_str()) {
            // That the slot occurs twice is found when it is to be filled.
            continue;
        }
        let restored = restore(name, state, tensors);
        let quantizer = restored.map_err(|error| problems.push(error.to_string())).ok();
        owned.insert(name.as_str(), quantizer);
    }
    owned
}

fn restore(
    name: &str,
    state: &QuantizerState,
    tensors: &mut BTreeMap<String, Vec<f32>>,
) -> Result<Arc<dyn Quantizer>, Error> {
    let mut take = |what: &str| {
        tensors.remove(&format!("{name}.{what}")).ok_or_else(|| {
            Error::new(ErrorKind::State, format!("tensor `{name}.{what}` is missing"))
        })
    };
    match state {
        QuantizerState::LinearQuantizer { settings, is_set, has_offset } => {
            let quantizer =
                LinearQuantizer::new(settings.clone()).map_err(|e| e.at(format!("`{name}`")))?;
            if *is_set {
                let scale = take("scale")?;
                let offset = if *has_offset { Some(take("offset")?) } else { None };
                quantizer
                    .set_parameters(AffineParameters {
                        num_bits: settings.num_bits,
                        narrow_range: settings.range.narrow_range,
                        scale,
                        offset,
                    })
                    .map_err(|error| error.at(format!("`{name}`")))?;
            }
            Ok(Arc::new(quantizer))
        }
        QuantizerState::DynamicLinearQuantizer { settings } => {
            let quantizer = DynamicLinearQuantizer::new(settings.clone());
            Ok(Arc::new(quantizer.map_err(|error| error.at(format!("`{name}`")))?))
        }
    }
}

#[cfg(test)]
mod tests;
