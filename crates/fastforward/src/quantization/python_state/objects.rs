//! The objects that a state of the Python library may hold, read from their written form. Names are compared, never imported.

use std::sync::Arc;

use super::yaml::{Content, Node, Problem};
use crate::quantization::affine::RangeSettings;
use crate::quantization::{DynamicLinearQuantizerConfig, Granularity, LinearQuantizerConfig};

const OBJECT: &str = "!ff.obj";
const TUPLE: &str = "tag:yaml.org,2002:python/tuple";
/// How PyYAML writes a `torch.Size`: the name, and the tuple that it is made of.
const SIZE: &str = "tag:yaml.org,2002:python/object/apply:torch.Size";

/// A quantizer as it was written down, without its tensors.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum PythonQuantizer {
    /// With whether it has an offset: asymmetric ones do, and symmetric ones that may become one-sided (spec §3.7).
    Linear(LinearQuantizerConfig, bool),
    Dynamic(DynamicLinearQuantizerConfig),
}

type Pairs<'n> = Vec<(&'n str, &'n Arc<Node>)>;

/// `!ff.obj {name, newargs, initargs, state}`.
struct Object<'n> {
    node: &'n Node,
    /// The import path.
    name: &'n str,
    positional: Vec<&'n Arc<Node>>,
    keywords: Pairs<'n>,
    state: Option<Pairs<'n>>,
}

/// Reads a quantizer, or says everything that is wrong with it.
pub(super) fn quantizer(node: &Node) -> Result<PythonQuantizer, Vec<Problem>> {
    let object = Object::read(node).map_err(|problem| vec![problem])?;
    let class = object.class_of("fastforward").map_err(|problem| vec![problem])?;
    let mut settings = Settings::default();
    match class {
        "LinearQuantizer" => settings.range.symmetric = true,
        "DynamicLinearQuantizer" => settings.range.symmetric = false,
        _ => {
            return Err(vec![node.problem(format!(
                "`{}` is not supported; LinearQuantizer and DynamicLinearQuantizer are",
                object.name
            ))]);
        }
    }
    let is_dynamic = class == "DynamicLinearQuantizer";
    let mut problems = Vec::new();
    match object.positional.as_slice() {
        [] => {}
        [num_bits] => settings.set("num_bits", num_bits, is_dynamic, &mut problems),
        [_, second, ..] => problems.push(second.problem(format!(
            "{class} takes one positional argument, found {}",
            object.positional.len()
        ))),
    }
    for (name, value) in &object.keywords {
        match *name {
            "symmetric" => {
                read_into(&mut settings.range.symmetric, boolean(value), &mut problems);
            }
            // Where the parameters were, and of which type: the tensors say the latter themselves.
            "device" if !is_dynamic && value.text().is_some() => {}
            "param_dtype" if !is_dynamic => problems.extend(dtype(value).err()),
            _ => settings.set(name, value, is_dynamic, &mut problems),
        }
    }
    let has_offset = !settings.range.symmetric || settings.range.allow_one_sided;
    // The library makes the object from its arguments and then sets these attributes.
    for (name, value) in object.state.iter().flatten() {
        match *name {
            "symmetric" if is_dynamic => {
                read_into(&mut settings.range.symmetric, boolean(value), &mut problems);
            }
            _ => settings.set(name, value, is_dynamic, &mut problems),
        }
    }
    let Some(num_bits) = settings.num_bits else {
        if problems.is_empty() {
            problems.push(node.problem(format!("{class} has no `num_bits`")));
        }
        return Err(problems);
    };
    if let Some((name, line)) = &settings.dtype
        && let Err(what) = check_storage(name, num_bits)
    {
        problems.push(Problem { line: *line, what });
    }
    if !problems.is_empty() {
        return Err(problems);
    }
    let (granularity, range) = (settings.granularity, settings.range);
    Ok(if is_dynamic {
        PythonQuantizer::Dynamic(DynamicLinearQuantizerConfig { num_bits, granularity, range })
    } else {
        let config = LinearQuantizerConfig { num_bits, granularity, range };
        PythonQuantizer::Linear(config, has_offset)
    })
}

/// What arguments and attributes say.
struct Settings {
    num_bits: Option<u32>,
    granularity: Granularity,
    range: RangeSettings,
    /// The type in which the library stores codes, and the line that says so.
    dtype: Option<(String, usize)>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            num_bits: None,
            granularity: Granularity::PerTensor,
            range: RangeSettings::reference(),
            dtype: None,
        }
    }
}

impl Settings {
    fn set(&mut self, name: &str, value: &Node, is_dynamic: bool, problems: &mut Vec<Problem>) {
        match name {
            "num_bits" => {
                let bits = value.as_integer().and_then(|bits| u32::try_from(bits).ok());
                let wrong = || {
                    value.problem(format!("`num_bits` is {}, expected an integer", value.kind()))
                };
                let mut found = 0;
                read_into(&mut found, bits.ok_or_else(wrong), problems);
                self.num_bits = Some(found);
            }
            "granularity" => read_into(&mut self.granularity, granularity(value), problems),
            "allow_one_sided" => {
                read_into(&mut self.range.allow_one_sided, boolean(value), problems);
            }
            "quantized_dtype" => {
                let found = dtype(value);
                let line = value.line;
                read_into(
                    &mut self.dtype,
                    found.map(|name| name.map(|name| (name, line))),
                    problems,
                );
            }
            "parameter_inference_fn" if is_dynamic && value.is_null() => {}
            "parameter_inference_fn" if is_dynamic => problems.push(
                value.problem("`parameter_inference_fn` is a Python function, which is not read"),
            ),
            _ => problems.push(value.problem(format!("`{name}` is no setting that is known"))),
        }
    }
}

fn read_into<T>(place: &mut T, found: Result<T, Problem>, problems: &mut Vec<Problem>) {
    match found {
        Ok(value) => *place = value,
        Err(problem) => problems.push(problem),
    }
}

impl<'n> Object<'n> {
    fn read(node: &'n Node) -> Result<Self, Problem> {
        let Content::Mapping(children) = &node.content else {
            return Err(node.problem(format!("{}, expected `{OBJECT}`", node.kind())));
        };
        if node.tag.as_deref() != Some(OBJECT) {
            return Err(node.problem(format!("{}, expected `{OBJECT}`", node.kind())));
        }
        let mut object =
            Self { node, name: "", positional: Vec::new(), keywords: Vec::new(), state: None };
        for (key, value) in children {
            match key.as_str() {
                "name" => {
                    let wrong =
                        || value.problem(format!("a name is {}, expected text", value.kind()));
                    object.name = value.text().ok_or_else(wrong)?;
                }
                // For `__new__`, which none of the classes here has.
                "newargs" => drop(arguments(value)?),
                "initargs" => (object.positional, object.keywords) = arguments(value)?,
                "state" => object.state = Some(pairs(value)?),
                other => {
                    return Err(value.problem(format!("`{other}` is no part of an object")));
                }
            }
        }
        if object.name.is_empty() {
            return Err(node.problem("an object without a name"));
        }
        Ok(object)
    }

    /// The last part of the name, which must belong to this package.
    fn class_of(&self, package: &str) -> Result<&'n str, Problem> {
        match (self.name.split('.').next(), self.name.rsplit_once('.')) {
            (Some(first), Some((_, class))) if first == package => Ok(class),
            _ => Err(self.node.problem(format!("`{}` is not supported", self.name))),
        }
    }
}

/// `((positional, ..), {keyword: ..})`.
fn arguments(node: &Node) -> Result<(Vec<&Arc<Node>>, Pairs<'_>), Problem> {
    match sequence(node)?.as_slice() {
        [positional, keywords] => Ok((sequence(positional)?, pairs(keywords)?)),
        other => Err(node.problem(format!(
            "arguments have {} parts, expected positional ones and a mapping",
            other.len()
        ))),
    }
}

fn pairs(node: &Node) -> Result<Pairs<'_>, Problem> {
    let wrong = || node.problem(format!("{}, expected a mapping", node.kind()));
    let children = node.as_mapping().ok_or_else(wrong)?;
    Ok(children.iter().map(|(key, value)| (key.as_str(), value)).collect())
}

fn sequence(node: &Node) -> Result<Vec<&Arc<Node>>, Problem> {
    let Content::Sequence(items) = &node.content else {
        return Err(node.problem(format!("{}, expected a sequence", node.kind())));
    };
    match node.tag.as_deref() {
        None | Some(TUPLE) => Ok(items.iter().collect()),
        Some(SIZE) => match items.as_slice() {
            [one] if one.tag.as_deref() != Some(SIZE) => sequence(one),
            _ => Err(node.problem("a `torch.Size` is made of one tuple")),
        },
        Some(_) => Err(node.problem(format!("{} is not supported", node.kind()))),
    }
}

fn boolean(node: &Node) -> Result<bool, Problem> {
    node.as_bool()
        .ok_or_else(|| node.problem(format!("{}, expected `true` or `false`", node.kind())))
}

/// An integer, or a sequence of them.
fn integers(node: &Node) -> Result<Vec<i64>, Problem> {
    let one = |node: &Node| {
        node.as_integer()
            .ok_or_else(|| node.problem(format!("{}, expected an integer", node.kind())))
    };
    match node.content {
        Content::Sequence(_) => sequence(node)?.into_iter().map(|item| one(item)).collect(),
        _ => Ok(vec![one(node)?]),
    }
}

/// Numbers of another type, each checked.
fn numbers<T: TryFrom<i64>>(node: &Node) -> Result<Vec<T>, Problem> {
    let fit = |value: i64| {
        T::try_from(value).map_err(|_| node.problem(format!("{value} is out of range here")))
    };
    integers(node)?.into_iter().map(fit).collect()
}

fn granularity(node: &Node) -> Result<Granularity, Problem> {
    if node.is_null() {
        return Ok(Granularity::PerTensor);
    }
    let object = Object::read(node)?;
    let class = object.class_of("fastforward")?;
    if object.state.as_ref().is_some_and(|state| !state.is_empty()) {
        return Err(node.problem(format!("{class} has a `state`, which is not supported")));
    }
    let parameters: &[&[&str]] = match class {
        "PerTensor" => &[],
        "PerChannel" => &[&["channel_dim", "dim"]],
        "PerBlock" => {
            &[&["block_dims"], &["block_sizes"], &["per_channel_dims"], &["strict_blocks"]]
        }
        "PerTile" => &[&["tile_shape", "shape"]],
        _ => {
            return Err(node.problem(format!(
                "granularity `{}` is not supported; PerTensor, PerChannel, PerBlock and PerTile are",
                object.name
            )));
        }
    };
    let given = object.bind(class, parameters)?;
    let missing = |name: &str| node.problem(format!("{class} has no `{name}`"));
    Ok(match class {
        "PerTensor" => Granularity::PerTensor,
        "PerChannel" => {
            let axes = given[0].map_or_else(|| Ok(vec![0]), |axes| numbers(axes))?;
            Granularity::PerChannel { axes }
        }
        "PerBlock" => {
            let dims = numbers(given[0].ok_or_else(|| missing("block_dims"))?)?;
            let sizes: Vec<usize> = numbers(given[1].ok_or_else(|| missing("block_sizes"))?)?;
            let per_channel_dims = given[2].map_or_else(|| Ok(Vec::new()), |dims| numbers(dims))?;
            // Blocks that do not fill the data are refused either way (spec §4.1).
            given[3].map(|strict| boolean(strict)).transpose()?;
            if dims.len() != sizes.len() {
                return Err(node.problem(format!(
                    "PerBlock has {} dims and {} sizes",
                    dims.len(),
                    sizes.len()
                )));
            }
            Granularity::PerBlock { dims, sizes, per_channel_dims }
        }
        _ => {
            let shape = numbers(given[0].ok_or_else(|| missing("tile_shape"))?)?;
            Granularity::PerTile { shape }
        }
    })
}

impl<'n> Object<'n> {
    /// The arguments in the order of the parameters, each of which may have several names.
    fn bind(
        &self,
        class: &str,
        parameters: &[&[&str]],
    ) -> Result<Vec<Option<&'n Arc<Node>>>, Problem> {
        if let Some(extra) = self.positional.get(parameters.len()) {
            return Err(extra.problem(format!(
                "{class} takes {} arguments, found {}",
                parameters.len(),
                self.positional.len()
            )));
        }
        let mut given: Vec<Option<&Arc<Node>>> =
            self.positional.iter().copied().map(Some).collect();
        given.resize(parameters.len(), None);
        for (name, value) in &self.keywords {
            let Some(at) = parameters.iter().position(|names| names.contains(name)) else {
                return Err(value.problem(format!("{class} has no argument `{name}`")));
            };
            if given[at].replace(value).is_some() {
                return Err(value.problem(format!("{class} has `{name}` twice")));
            }
        }
        Ok(given)
    }
}

/// The name of a torch dtype without `torch.`, or nothing.
fn dtype(node: &Node) -> Result<Option<String>, Problem> {
    if node.is_null() {
        return Ok(None);
    }
    let object = Object::read(node)?;
    let name = object.class_of("torch")?;
    let has_arguments = !object.positional.is_empty() || !object.keywords.is_empty();
    if has_arguments || object.state.is_some() || object.name != format!("torch.{name}") {
        return Err(node.problem(format!("`{}` is no dtype", object.name)));
    }
    storage_bits(name)
        .map(|_| Some(name.to_owned()))
        .ok_or_else(|| node.problem(format!("dtype `{}` is not supported", object.name)))
}

/// How many bits of a signed code a type holds exactly.
fn storage_bits(dtype: &str) -> Option<u32> {
    Some(match dtype {
        "int8" => 8,
        "int16" => 16,
        "int32" => 32,
        "int64" => 64,
        "float8_e5m2" => 4,
        "float8_e4m3fn" => 5,
        "bfloat16" => 9,
        "float16" | "half" => 12,
        "float32" | "float" => 25,
        "float64" | "double" => 54,
        _ => return None,
    })
}

/// Here codes are held in the smallest type that holds all of them; the library's may wrap instead (spec §4.2).
fn check_storage(dtype: &str, num_bits: u32) -> Result<(), String> {
    match storage_bits(dtype) {
        Some(bits) if bits < num_bits => Err(format!(
            "codes of {num_bits} bits do not fit `torch.{dtype}`: what the library computes with them is not what was meant"
        )),
        _ => Ok(()),
    }
}
