//! Quantization states that the Python library wrote (spec §7.1), read without executing anything.
//!
//! Its `config.yaml` names classes to import and arguments to call them with; its own loader does both, and so runs whatever
//! a file says. Here the text is parsed into a tree, names are compared with those of the classes below, and anything else is
//! an error that gives its line:
//!
//! | in the file | here |
//! |---|---|
//! | `LinearQuantizer` | [`LinearQuantizer`] with [`RangeSettings::reference`](crate::quantization::affine::RangeSettings::reference) |
//! | `DynamicLinearQuantizer` | [`DynamicLinearQuantizer`], unless its parameters come from a Python function |
//! | `PerTensor`, `PerChannel`, `PerBlock`, `PerTile` | [`Granularity`](crate::quantization::Granularity) |
//! | `torch.int8`, ... | checked: codes are held in the smallest type that holds them, so a type that would wrap is refused |
//! | an anchor | one quantizer in several slots |

mod objects;
mod yaml;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use objects::PythonQuantizer;
use safetensors::{Dtype, SafeTensors};
use yaml::Node;

use super::model_state::check_set;
use crate::module::{Module, named_slots};
use crate::quantization::affine::AffineParameters;
use crate::quantization::quantizer::Quantizer;
use crate::quantization::state::{StateInfo, StatePlan};
use crate::quantization::{
    DynamicLinearQuantizer, LinearQuantizer, LinearQuantizerConfig, LoadOptions,
};
use crate::tensor::Result;
use crate::{Error, ErrorKind};

const CONFIG: &str = "config.yaml";
/// The tensors beside it: of a state that stands alone, or of one that is part of a saved model.
const TENSORS: [&str; 2] = ["model.safetensors", "quantizer_state.safetensors"];
const VERSION: &str = "1.0";
/// What stands in the header of a tensors file without tensors.
const EMPTY: &str = "__ff_empty_quantizer_state__";

/// Puts the quantizers of a state that the Python library saved into the slots of a model: all, or none.
///
/// `folder` holds `config.yaml` and `model.safetensors` (or `quantizer_state.safetensors`, as in a saved model, whose weights
/// are not read here: they are an ordinary safetensors file). Slots have the paths that the modules have in Python. A
/// quantizer that several paths share is shared again. Settings and parameters are those of the file, to the bit; types
/// narrower than `f32` are widened, exactly.
///
/// ```no_run
/// # use fastforward::nn::Linear;
/// # fn example(model: &Linear) -> fastforward::tensor::Result<()> {
/// use std::path::Path;
/// use fastforward::quantization::{LoadOptions, load_python_quantization_state};
/// let folder = Path::new("quantization-state--org--model/main");
/// let info = load_python_quantization_state(model, folder, Some("org/model"), LoadOptions::default())?;
/// assert_eq!(info.model, "org/model");
/// # Ok(())
/// # }
/// ```
///
/// # Errors
/// [`ErrorKind::Io`] for a missing file; [`ErrorKind::State`] for another version or model, for objects that are not supported
/// and damaged files, naming line and object, for missing and unexpected tensors and slots, and tensors that do not fit;
/// [`ErrorKind::UnsetQuantizer`] for quantizers without a range, unless allowed; [`ErrorKind::AlreadySet`] as the policy says.
/// Every problem of a kind is named.
pub fn load_python_quantization_state(
    model: &dyn Module,
    folder: &Path,
    expected_model: Option<&str>,
    options: impl Into<LoadOptions>,
) -> Result<StateInfo> {
    let options = options.into();
    let at_folder = |error: Error| error.at(format_args!("`{}`", folder.display()));
    let text = read(&folder.join(CONFIG))?;
    let tensors = read(&tensors_path(folder))?;
    let config = Config::read(&text, expected_model).map_err(at_folder)?;
    let file = Tensors::read(&tensors).map_err(at_folder)?;
    let mut problems = file.unexpected(&config);
    // One quantizer for all that are one node of the file.
    let mut made: HashMap<*const Node, Option<Arc<dyn Quantizer>>> = HashMap::new();
    let mut first_names: HashMap<*const Node, &str> = HashMap::new();
    let mut wanted: Vec<(Vec<String>, Arc<dyn Quantizer>)> = Vec::new();
    let slot_ids: HashMap<String, usize> = named_slots(model)
        .into_iter()
        .flat_map(|entry| {
            let id = entry.slot.id();
            entry.names.into_iter().map(move |name| (name, id))
        })
        .collect();
    let mut places: HashMap<(*const Node, usize), usize> = HashMap::new();
    for (name, node) in &config.quantizers {
        let key = Arc::as_ptr(node);
        if let Some(first) = first_names.get(&key) {
            if file.mapping(name) != file.mapping(first) {
                problems.push(format!(
                    "`{name}` and `{first}` are one quantizer in `{CONFIG}`, with different tensors"
                ));
            }
        } else {
            first_names.insert(key, name);
            made.insert(key, file.quantizer(name, node, &mut problems));
        }
        let Some(Some(quantizer)) = made.get(&key) else { continue };
        // Paths to one slot of the model are one entry.
        let place = slot_ids.get(name).map(|id| (key, *id));
        match place.and_then(|place| places.get(&place)) {
            Some(&at) => wanted[at].0.push(name.clone()),
            None => {
                places.extend(place.map(|place| (place, wanted.len())));
                wanted.push((vec![name.clone()], Arc::clone(quantizer)));
            }
        }
    }
    let info = StateInfo::new(config.model.clone());
    let plan = match StatePlan::new(model, info, &wanted, options.initialize) {
        Ok(plan) if problems.is_empty() => plan,
        Err(error) if problems.is_empty() => return Err(at_folder(error).into()),
        plan => {
            problems.extend(plan.err().map(|error| error.to_string()));
            let error = Error::of_problems(ErrorKind::State, "problems in the state", &problems);
            return Err(at_folder(error).into());
        }
    };
    if !options.allow_unset {
        check_set(plan.unset().to_vec())?;
    }
    Ok(plan.apply()?)
}

/// `config.yaml` down to the quantizers.
struct Config {
    model: String,
    quantizers: Vec<(String, Arc<Node>)>,
}

impl Config {
    fn read(text: &[u8], expected_model: Option<&str>) -> std::result::Result<Self, Error> {
        let wrong = |what: String| Error::new(ErrorKind::State, format!("`{CONFIG}`{what}"));
        let at =
            |problem: yaml::Problem| wrong(format!(" line {}: {}", problem.line, problem.what));
        let text = std::str::from_utf8(text).map_err(|error| wrong(format!(": {error}")))?;
        let root = yaml::parse(text).map_err(at)?;
        let parts = root
            .as_mapping()
            .ok_or_else(|| at(root.problem(format!("{}, expected a mapping", root.kind()))))?;
        let known = [
            "version",
            "name_or_path",
            "transformers_version",
            "fastforward_version",
            "quantizers",
        ];
        let unknown: Vec<String> = parts
            .iter()
            .filter(|(name, _)| !known.contains(&name.as_str()))
            .map(|(name, node)| format!("line {}: `{name}` is no part of a state", node.line))
            .collect();
        if !unknown.is_empty() {
            let error = Error::of_problems(ErrorKind::State, "unknown parts", &unknown);
            return Err(error.at(format_args!("`{CONFIG}`")));
        }
        let part = |name: &str| {
            let found = parts.iter().find(|(part, _)| part == name).map(|(_, node)| node);
            found.ok_or_else(|| wrong(format!(" has no `{name}`")))
        };
        let text_of = |name: &str| {
            let node = part(name)?;
            let text = node.text().map(str::to_owned);
            text.ok_or_else(|| at(node.problem(format!("`{name}` is {}", node.kind()))))
        };
        let version = text_of("version")?;
        if version != VERSION {
            return Err(wrong(format!(": version {version} of the format, expected {VERSION}")));
        }
        let model = text_of("name_or_path")?;
        if let Some(expected) = expected_model
            && expected != model
        {
            return Err(wrong(format!(
                ": the state is for model `{model}`, expected `{expected}`"
            )));
        }
        let node = part("quantizers")?;
        let quantizers = node
            .as_mapping()
            .ok_or_else(|| at(node.problem(format!("`quantizers` is {}", node.kind()))))?;
        Ok(Self { model, quantizers: quantizers.to_vec() })
    }
}

/// The tensors file: the parameters, and which quantizer has which of them.
struct Tensors<'f> {
    file: SafeTensors<'f>,
    /// By the path of the quantizer: `scale=owner.scale,offset=owner.offset`.
    mappings: BTreeMap<String, String>,
}

impl<'f> Tensors<'f> {
    fn read(bytes: &'f [u8]) -> std::result::Result<Self, Error> {
        let wrong = |source: safetensors::SafeTensorError| {
            Error::new(ErrorKind::State, format!("the tensors: {source}")).with_source(source)
        };
        let (_, header) = SafeTensors::read_metadata(bytes).map_err(wrong)?;
        let file = SafeTensors::deserialize(bytes).map_err(wrong)?;
        let mut mappings: BTreeMap<String, String> =
            header.metadata().iter().flatten().map(|(k, v)| (k.clone(), v.clone())).collect();
        mappings.remove(EMPTY);
        mappings.remove("format");
        Ok(Self { file, mappings })
    }

    fn mapping(&self, name: &str) -> Option<&str> {
        self.mappings.get(name).map(String::as_str)
    }

    /// What no quantizer of the configuration asks for.
    fn unexpected(&self, config: &Config) -> Vec<String> {
        let quantizers: BTreeSet<&str> =
            config.quantizers.iter().map(|(name, _)| name.as_str()).collect();
        let unknown = self.mappings.keys().filter(|name| !quantizers.contains(name.as_str()));
        let mut problems: Vec<String> = unknown
            .map(|name| format!("unexpected tensors of `{name}`, which `{CONFIG}` does not have"))
            .collect();
        let used: BTreeSet<&str> = self
            .mappings
            .values()
            .flat_map(|mapping| mapping.split(','))
            .filter_map(|pair| Some(pair.split_once('=')?.1))
            .collect();
        let stored: BTreeSet<&str> = self.file.names().into_iter().collect();
        problems.extend(stored.difference(&used).map(|name| format!("unexpected tensor `{name}`")));
        problems
    }

    /// The quantizer of a path. `None` when something is wrong with it, which is then said.
    fn quantizer(
        &self,
        name: &str,
        node: &Node,
        problems: &mut Vec<String>,
    ) -> Option<Arc<dyn Quantizer>> {
        let read = objects::quantizer(node).map_err(|found| {
            let text =
                |p: &yaml::Problem| format!("`{CONFIG}` line {}: `{name}`: {}", p.line, p.what);
            problems.extend(found.iter().map(text));
        });
        let parameters = self
            .parameters(name)
            .map_err(|found| problems.extend(found.iter().map(|what| format!("`{name}`: {what}"))));
        let made = match (read.ok()?, parameters.ok()?) {
            (PythonQuantizer::Linear(config, has_offset), parameters) => {
                linear(config, has_offset, parameters)
            }
            (PythonQuantizer::Dynamic(config), parameters) => no_more(&parameters).and_then(|()| {
                let quantizer = DynamicLinearQuantizer::new(config);
                Ok(Arc::new(quantizer.map_err(|error| error.to_string())?) as Arc<dyn Quantizer>)
            }),
        };
        made.map_err(|what| problems.push(format!("`{name}`: {what}"))).ok()
    }

    /// The parameters of a quantizer by name; a lazy one has no values.
    fn parameters(&self, name: &str) -> std::result::Result<Parameters, Vec<String>> {
        let Some(mapping) = self.mapping(name) else {
            return Err(vec!["the header of the tensors does not list it".to_owned()]);
        };
        let (mut found, mut problems) = (BTreeMap::new(), Vec::new());
        for pair in mapping.split(',').filter(|pair| !pair.is_empty()) {
            let Some((parameter, key)) = pair.split_once('=') else {
                problems.push(format!("`{pair}` does not say `parameter=tensor`"));
                continue;
            };
            let values = match key.strip_suffix("::lazy") {
                Some(_) => Ok(None),
                None => self.values(key).map(Some),
            };
            match values {
                Ok(values) => {
                    if found.insert(parameter.to_owned(), values).is_some() {
                        problems.push(format!("`{parameter}` is given twice"));
                    }
                }
                Err(what) => problems.push(what),
            }
        }
        if problems.is_empty() { Ok(found) } else { Err(problems) }
    }

    fn values(&self, key: &str) -> std::result::Result<Vec<f32>, String> {
        let view = self.file.tensor(key).map_err(|_| format!("tensor `{key}` is missing"))?;
        if view.shape().len() > 1 {
            return Err(format!("tensor `{key}` has shape {:?}, expected one axis", view.shape()));
        }
        let bytes = view.data();
        match view.dtype() {
            Dtype::F32 => Ok(bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect()),
            Dtype::F16 => Ok(bytes
                .as_chunks()
                .0
                .iter()
                .map(|b| half::f16::from_le_bytes(*b).to_f32())
                .collect()),
            Dtype::BF16 => Ok(bytes
                .as_chunks()
                .0
                .iter()
                .map(|b| half::bf16::from_le_bytes(*b).to_f32())
                .collect()),
            Dtype::F64 => {
                let wide = bytes.as_chunks().0.iter().map(|b| f64::from_le_bytes(*b));
                let exact = |x: f64| (f64::from(x as f32) == x).then_some(x as f32);
                wide.map(exact).collect::<Option<Vec<f32>>>().ok_or_else(|| {
                    format!("tensor `{key}` is of 64-bit floats that 32 bits do not hold exactly")
                })
            }
            other => Err(format!("tensor `{key}` is {other:?}, expected floats")),
        }
    }
}

/// Parameters by name; a lazy one has no values.
type Parameters = BTreeMap<String, Option<Vec<f32>>>;

fn linear(
    config: LinearQuantizerConfig,
    has_offset: bool,
    mut parameters: Parameters,
) -> std::result::Result<Arc<dyn Quantizer>, String> {
    let scale = parameters.remove("scale").ok_or("it has no `scale`")?;
    let offset = parameters.remove("offset");
    no_more(&parameters)?;
    if offset.is_some() != has_offset {
        let what = if has_offset { "has no `offset`" } else { "has an `offset`" };
        return Err(format!("it {what}, unlike a quantizer with its settings"));
    }
    let (num_bits, range) = (config.num_bits, config.range);
    let quantizer = LinearQuantizer::new(config).map_err(|error| error.to_string())?;
    let (scale, offset) = match (scale, offset) {
        (Some(scale), None) => (scale, None),
        (Some(scale), Some(Some(offset))) => (scale, Some(offset)),
        (None, None | Some(None)) => return Ok(Arc::new(quantizer)),
        _ => return Err("only one of `scale` and `offset` is lazy".to_owned()),
    };
    // A symmetric quantizer of the library keeps zeros while it is two-sided; here that is no offset.
    let offset = offset.filter(|all| !range.symmetric || all.iter().any(|&offset| offset != 0.0));
    let narrow_range = range.narrow_range;
    let parameters = AffineParameters { num_bits, narrow_range, scale, offset };
    quantizer.set_parameters(parameters).map_err(|error| error.to_string())?;
    Ok(Arc::new(quantizer))
}

fn no_more(parameters: &Parameters) -> std::result::Result<(), String> {
    let names: Vec<String> = parameters.keys().map(|name| format!("`{name}`")).collect();
    if names.is_empty() { Ok(()) } else { Err(format!("it has no parameter {}", names.join(", "))) }
}

fn tensors_path(folder: &Path) -> PathBuf {
    let [state, model] = TENSORS.map(|name| folder.join(name));
    // A saved model has its weights in another file; `model.safetensors` is of a state alone.
    if model.is_file() { model } else { state }
}

fn read(path: &PathBuf) -> std::result::Result<Vec<u8>, Error> {
    fs::read(path).map_err(|source| {
        Error::new(ErrorKind::Io, format!("cannot read `{}`: {source}", path.display()))
            .with_source(source)
    })
}
