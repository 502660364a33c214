//! Names of tensors as modules.

use std::collections::{BTreeMap, HashSet};

use fastforward_core::module::classes as layers;
use fastforward_core::quantization::quant_init::CHANNEL_AXIS;
use fastforward_core::quantization::{QuantizerMetadata, QuantizerSlot};
use mpath::Class;

use super::build::{MAX_DEPTH, descend, role_tag};
use super::{Child, ConstantInfo, GraphModule, NodeId, Role, Site, Tree, classes};
use crate::dtype::DType;
use crate::graph::{Model, TensorInfo};

/// The tree of a model without a graph: `layers.0.q_proj.weight` is the parameter `weight` of the module `layers.0.q_proj`,
/// whose slot is `weight_quantizer`.
pub(super) fn build(model: &Model) -> Tree {
    let mut modules: BTreeMap<Vec<NamePart>, Vec<(String, String, TensorInfo)>> = BTreeMap::new();
    for constant in model.constants() {
        let Ok(info) = constant.info() else { continue };
        let mut path: Vec<&str> = constant.name().split('.').collect();
        let parameter = path.pop().unwrap_or_default().to_owned();
        // Deeper names are one level: who wrote them did not mean a tree.
        let joined = path.join(".");
        if path.len() > MAX_DEPTH {
            path = vec![&joined];
        }
        let path = path.into_iter().map(NamePart::of).collect();
        modules.entry(path).or_default().push((parameter, constant.name().to_owned(), info));
    }
    let mut root = GraphModule::new(classes::weights());
    let mut sites = Vec::new();
    for (path, parameters) in modules {
        let path: Vec<String> = path.into_iter().map(|part| part.text).collect();
        let class = class_of(path.last().map_or("", String::as_str), &parameters);
        // Parameters without a module stand in the root.
        let module = match path.is_empty() {
            true => &mut root,
            false => descend(&mut root, &path, class),
        };
        let mut taken: HashSet<String> = HashSet::new();
        for (parameter, _, info) in &parameters {
            taken.insert(parameter.clone());
            let (shape, dtype) = (info.shape.clone(), info.dtype.name());
            let constant = ConstantInfo { shape, dtype, size_bytes: info.size_bytes };
            module.children.push((parameter.clone(), Child::Parameter(constant)));
        }
        for (parameter, value, info) in parameters {
            if !matches!(info.dtype, DType::F32 | DType::F16 | DType::BF16 | DType::F64) {
                continue;
            }
            let role = role_of(&parameter, &info);
            let channel_axis =
                (role == Role::Weight && info.shape.len() > 1 && class != classes::scope())
                    .then_some(0);
            let mut metadata = QuantizerMetadata::new([role_tag(role)]).with_shape(&info.shape);
            if let Some(axis) = channel_axis {
                metadata = metadata.with_attribute(CHANNEL_AXIS, axis.to_string());
            }
            let slot_name = format!("{parameter}_quantizer");
            if !taken.insert(slot_name.clone()) {
                continue;
            }
            let slot = QuantizerSlot::new(metadata);
            let name = [path.as_slice(), std::slice::from_ref(&slot_name)].concat().join(".");
            sites.push(Site {
                name,
                slot: slot.clone(),
                role,
                node: NodeId::default(),
                position: 0,
                value,
                channel_axis,
            });
            module.children.push((slot_name, Child::Slot(slot)));
        }
    }
    Tree { root, sites }
}

/// A part of a name; numbers come in their order, before words.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct NamePart {
    is_word: bool,
    number: u64,
    text: String,
}

impl NamePart {
    fn of(text: &str) -> Self {
        let number = text.parse();
        Self { is_word: number.is_err(), number: number.unwrap_or(0), text: text.to_owned() }
    }
}

/// What a parameter is, by its name, which is all there is.
fn role_of(parameter: &str, info: &TensorInfo) -> Role {
    match parameter {
        _ if parameter.ends_with("bias") => Role::Bias,
        "gamma" => Role::Weight,
        "beta" => Role::Bias,
        _ if parameter.ends_with("weight") && !info.shape.is_empty() => Role::Weight,
        _ => Role::Constant,
    }
}

/// Parts of the names of modules that are embeddings wherever they are met.
const EMBEDDINGS: [&str; 6] =
    ["embed", "wte", "wpe", "tok_emb", "pos_emb", "relative_attention_bias"];

/// The class of a module, as far as the ranks of its parameters and its name tell. A file of weights does not say more.
fn class_of(name: &str, parameters: &[(String, String, TensorInfo)]) -> Class {
    let rank = |wanted: &str| {
        let found = parameters.iter().find(|(parameter, ..)| parameter == wanted);
        found.map(|(_, _, info)| info.shape.len())
    };
    let lower = name.to_lowercase();
    match rank("weight") {
        Some(1) if rank("running_mean").is_some() => layers::batch_norm(),
        Some(1) if lower.contains("norm") || lower.starts_with("ln") => {
            if rank("bias").is_some() {
                layers::layer_norm()
            } else {
                layers::rms_norm()
            }
        }
        Some(2) if EMBEDDINGS.iter().any(|part| lower.contains(part)) => layers::embedding(),
        Some(2) => layers::linear(),
        Some(3) => layers::conv1d(),
        Some(4) => layers::conv2d(),
        Some(5) => layers::conv3d(),
        _ => classes::scope(),
    }
}
