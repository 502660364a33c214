//! From nodes to modules.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::rc::Rc;

use fastforward_core::quantization::{QuantizerMetadata, QuantizerSlot};
use mpath::Tag;

use super::roles::{self, Role};
use super::{Child, ConstantInfo, GraphModule, NestedGraph, NodeId, Site, Tree, classes, dtypes};
use crate::dtype::DType;
use crate::graph::{GraphIndex, Model, TensorInfo, constants_of};
use crate::proto::{GraphProto, NodeProto};

/// Scopes and nested graphs deeper than this are flattened into the name of the last level.
pub(super) const MAX_DEPTH: usize = 64;

pub(super) fn build(model: &Model) -> Tree {
    let mut builder = Builder {
        model,
        sites: Vec::new(),
        shared: HashMap::new(),
        root: GraphModule::new(classes::graph()),
    };
    let mut dtypes = HashMap::new();
    for info in model.inputs() {
        if let Some(dtype) = info.dtype {
            dtypes.insert(info.name, dtype);
        }
    }
    builder.graph(model.graph(), &Scope::default(), &dtypes, &[], &[]);
    Tree { root: builder.root, sites: builder.sites }
}

struct Builder<'m> {
    model: &'m Model,
    sites: Vec<Site>,
    /// One slot per constant and role. Constants are told apart by the graph that defines them.
    shared: HashMap<(Rc<str>, String, Role), QuantizerSlot>,
    root: GraphModule,
}

/// The constants that a graph sees: its own, and those of the graphs around it.
#[derive(Clone, Default)]
struct Scope {
    constants: HashMap<String, (Rc<str>, TensorInfo)>,
}

impl Builder<'_> {
    fn graph(
        &mut self,
        graph: &GraphProto,
        outer: &Scope,
        outer_dtypes: &HashMap<String, DType>,
        path: &[String],
        nested: &[NestedGraph],
    ) {
        let mut scope = outer.clone();
        let graph_key: Rc<str> = path.join(".").into();
        for constant in constants_of(graph, self.model.folder()) {
            if let Ok(info) = constant.info() {
                scope.constants.insert(constant.name().to_owned(), (graph_key.clone(), info));
            }
        }
        let mut known = outer_dtypes.clone();
        known.extend(scope.constants.iter().map(|(name, (_, info))| (name.clone(), info.dtype)));
        if nested.is_empty() {
            for (name, info) in self.model.value_infos() {
                if let Some(dtype) = info.dtype {
                    known.insert(name, dtype);
                }
            }
        }
        dtypes::infer(graph, &mut known);

        let index = GraphIndex::new(graph);
        let mut taken = HashSet::new();
        for (position, node) in graph.node.iter().enumerate() {
            if node.is_standard("Constant") {
                continue;
            }
            let path = unique_path(path, node, position, &mut taken);
            let id = NodeId { graph: nested.to_vec(), index: position };
            let context = NodeContext { graph, index: &index, scope: &scope, dtypes: &known };
            self.node(node, &id, &path, &context);
            for attribute in &node.attribute {
                // An attribute with a list of graphs exists in no standard operator.
                let Some(inner) = &attribute.g else { continue };
                let attribute = attribute.name();
                let mut inner_path = path.clone();
                inner_path.push(attribute.to_owned());
                let mut inner_nested = nested.to_vec();
                inner_nested.push(NestedGraph { node: position, attribute: attribute.to_owned() });
                if inner_nested.len() < MAX_DEPTH {
                    self.graph(inner, &scope, &known, &inner_path, &inner_nested);
                }
            }
        }
    }

    fn node(&mut self, node: &NodeProto, id: &NodeId, path: &[String], context: &NodeContext<'_>) {
        let operands = context.operands(node, id);
        let weight_rank = operands
            .iter()
            .find(|operand| operand.role == Role::Weight)
            .and_then(|operand| Some(context.constant(&operand.value)?.1.shape.len()));
        let module = descend(&mut self.root, path, classes::of_node(node, weight_rank));
        for (name, info) in context.parameters(node, &operands) {
            module.children.push((name, Child::Parameter(info)));
        }
        let mut counts: BTreeMap<Role, usize> = BTreeMap::new();
        for operand in operands {
            let count = counts.entry(operand.role).or_default();
            let slot_name = match *count {
                0 => format!("{}_quantizer", operand.role.name()),
                n => format!("{}_quantizer_{n}", operand.role.name()),
            };
            *count += 1;
            let info = context.constant(&operand.value);
            let channel_axis = info.and_then(|(_, info)| {
                (operand.role == Role::Weight)
                    .then(|| roles::channel_axis(node, operand.position, info.shape.len()))?
            });
            let make = || {
                let mut metadata = QuantizerMetadata::new([role_tag(operand.role)]);
                if let Some((_, info)) = info {
                    metadata = metadata.with_shape(&info.shape);
                }
                if let Some(axis) = channel_axis {
                    metadata = metadata.with_attribute(CHANNEL_AXIS, axis.to_string());
                }
                QuantizerSlot::new(metadata)
            };
            let slot = match info {
                Some((owner, _)) => self
                    .shared
                    .entry((owner.clone(), operand.value.clone(), operand.role))
                    .or_insert_with(make)
                    .clone(),
                None => make(),
            };
            for tag in context.neighbour_tags(node, &operand) {
                slot.add_tag(tag);
            }
            self.sites.push(Site {
                name: format!("{}.{slot_name}", path.join(".")),
                slot: slot.clone(),
                role: operand.role,
                node: id.clone(),
                position: operand.position,
                value: operand.value,
                channel_axis,
            });
            module.children.push((slot_name, Child::Slot(slot)));
        }
    }
}

/// The attribute of a slot's metadata that holds the axis of output channels of a weight.
pub(super) use fastforward_core::quantization::quant_init::CHANNEL_AXIS;

/// What is known around a node.
struct NodeContext<'g> {
    graph: &'g GraphProto,
    index: &'g GraphIndex,
    scope: &'g Scope,
    dtypes: &'g HashMap<String, DType>,
}

/// A quantizable operand of a node.
struct Operand {
    role: Role,
    position: usize,
    value: String,
}

impl NodeContext<'_> {
    fn constant(&self, name: &str) -> Option<&(Rc<str>, TensorInfo)> {
        self.scope.constants.get(name)
    }

    fn is_float(&self, name: &str) -> bool {
        self.dtypes.get(name) == Some(&DType::F32)
    }

    /// Inputs in their order, then the output.
    fn operands(&self, node: &NodeProto, id: &NodeId) -> Vec<Operand> {
        let Some(roles) = roles::roles(node) else { return Vec::new() };
        let in_main_graph = id.graph.is_empty();
        let mut operands = Vec::new();
        for (position, value) in node.input.iter().enumerate() {
            if value.is_empty() || !self.is_float(value) {
                continue;
            }
            let is_constant = self.constant(value).is_some();
            let role = roles.input(position).and_then(|operand| operand.of(is_constant));
            let role = match role {
                Some(Role::Constant) if self.is_bias_of_matmul(node, position) => Some(Role::Bias),
                role => role,
            };
            // Scalars, such as the exponent or the limits of a clip, are settings rather than data.
            let is_scalar = role == Some(Role::Constant)
                && self
                    .constant(value)
                    .is_some_and(|(_, info)| info.shape.iter().product::<usize>() <= 1);
            if let Some(role) = role
                .filter(|&role| !is_scalar && (is_constant || in_main_graph || role != Role::Input))
            {
                operands.push(Operand { role, position, value: value.clone() });
            }
        }
        if roles.output
            && in_main_graph
            && let Some(value) = node.output.first().filter(|value| self.is_float(value))
        {
            operands.push(Operand { role: Role::Output, position: 0, value: value.clone() });
        }
        operands
    }

    /// `MatMul` followed by `Add` of a vector is how a linear layer with a bias is written down.
    fn is_bias_of_matmul(&self, node: &NodeProto, position: usize) -> bool {
        let is_vector = node
            .input_at(position)
            .and_then(|name| self.constant(name))
            .is_some_and(|(_, info)| info.shape.len() == 1);
        node.op_type() == "Add"
            && node.input.len() == 2
            && is_vector
            && node
                .input_at(1 - position)
                .and_then(|other| self.index.producer(other))
                .is_some_and(|producer| self.graph.node[producer].is_standard("MatMul"))
    }

    /// The constants of a node, named after their role, else after their own name.
    fn parameters(&self, node: &NodeProto, operands: &[Operand]) -> Vec<(String, ConstantInfo)> {
        let mut names = HashSet::new();
        let mut parameters = Vec::new();
        for (position, value) in node.input.iter().enumerate() {
            let Some((_, info)) = self.constant(value) else { continue };
            let role = operands.iter().find(|operand| operand.position == position);
            let wanted = match role.map(|operand| operand.role) {
                Some(Role::Weight) => "weight",
                Some(Role::Bias) => "bias",
                _ => value.rsplit(['.', '/']).next().unwrap_or(value),
            };
            let mut name = wanted.to_owned();
            let mut suffix = 1;
            while !names.insert(name.clone()) {
                name = format!("{wanted}_{suffix}");
                suffix += 1;
            }
            let info = ConstantInfo {
                shape: info.shape.clone(),
                dtype: info.dtype.name(),
                size_bytes: info.size_bytes,
            };
            parameters.push((name, info));
        }
        parameters
    }

    /// `after/<op>` for the operator that computes the operand, `before/<op>` for those that read it.
    fn neighbour_tags(&self, node: &NodeProto, operand: &Operand) -> Vec<Tag> {
        let mut tags = Vec::new();
        let mut add = |prefix: &str, node: &NodeProto| {
            tags.push(Tag::new(prefix) / roles::op_tag_name(node.op_type()).as_str());
        };
        if operand.role == Role::Output {
            add("after", node);
            for consumer in self.index.consumers(&operand.value) {
                add("before", &self.graph.node[consumer.node]);
            }
        } else {
            add("before", node);
            if let Some(producer) = self.index.producer(&operand.value)
                && self.constant(&operand.value).is_none()
            {
                add("after", &self.graph.node[producer]);
            }
        }
        tags
    }
}

pub(super) fn role_tag(role: Role) -> Tag {
    match role {
        Role::Weight => Tag::new("parameter/weight"),
        Role::Bias => Tag::new("parameter/bias"),
        Role::Constant => Tag::new("parameter/constant"),
        Role::Input => Tag::new("activation/input"),
        Role::Output => Tag::new("activation/output"),
    }
}

/// The path of a node below `outer`: its name cut at `/`, made unique.
fn unique_path(
    outer: &[String],
    node: &NodeProto,
    position: usize,
    taken: &mut HashSet<Vec<String>>,
) -> Vec<String> {
    let mut own: Vec<String> =
        node.name().split('/').filter(|part| !part.is_empty()).map(str::to_owned).collect();
    if own.is_empty() {
        own.push(format!("{}_{position}", node.op_type()));
    }
    if own.len() > MAX_DEPTH {
        let tail = own.split_off(MAX_DEPTH - 1).join("/");
        own.push(tail);
    }
    let last = own.len() - 1;
    let wanted = own[last].clone();
    let mut suffix = 1;
    while !taken.insert(own.clone()) {
        own[last] = format!("{wanted}_{suffix}");
        suffix += 1;
    }
    outer.iter().cloned().chain(own).collect()
}

/// The module at `path`, made with the scopes on the way to it where they are missing.
pub(super) fn descend<'t>(
    root: &'t mut GraphModule,
    path: &[String],
    class: mpath::Class,
) -> &'t mut GraphModule {
    let mut module = root;
    for (depth, name) in path.iter().enumerate() {
        let at = match module.modules.get(name) {
            Some(&at) => at,
            None => {
                let scope = Child::Module(GraphModule::new(classes::scope()));
                module.modules.insert(name.clone(), module.children.len());
                module.children.push((name.clone(), scope));
                module.children.len() - 1
            }
        };
        let Child::Module(child) = &mut module.children[at].1 else {
            unreachable!("the index holds positions of modules only")
        };
        if depth + 1 == path.len() {
            child.class = class;
        }
        module = child;
    }
    module
}

#[cfg(test)]
mod tests {
    use fastforward_core::module::{Outline, named_slots};

    use super::*;
    use crate::graph::tensor_from_f32;
    use crate::proto::{self, ModelProto, OperatorSetIdProto, ValueInfoProto};

    fn model(nodes: Vec<NodeProto>, constants: &[(&str, &[usize])]) -> Model {
        let graph = GraphProto {
            node: nodes,
            name: Some("g".into()),
            initializer: constants
                .iter()
                .map(|(name, shape)| {
                    tensor_from_f32(name, shape, &vec![0.5; shape.iter().product()])
                })
                .collect(),
            input: vec![float_input("x")],
            ..GraphProto::default()
        };
        let proto = ModelProto {
            ir_version: Some(8),
            graph: Some(graph),
            opset_import: vec![OperatorSetIdProto { domain: None, version: Some(13) }],
            ..ModelProto::default()
        };
        Model::from_proto(proto, None).unwrap()
    }

    fn float_input(name: &str) -> ValueInfoProto {
        use crate::proto::{TypeProto, type_proto};
        ValueInfoProto {
            name: Some(name.into()),
            r#type: Some(TypeProto {
                value: Some(type_proto::Value::TensorType(type_proto::Tensor {
                    elem_type: Some(DType::F32.to_onnx()),
                    shape: None,
                })),
                ..TypeProto::default()
            }),
            ..ValueInfoProto::default()
        }
    }

    #[test]
    fn names_become_paths_and_roles_become_slots() {
        let tree = Tree::new(&model(
            vec![
                proto::node("MatMul", "/enc/query/MatMul", &["x", "w"], &["a"]),
                proto::node("Add", "/enc/query/Add", &["b", "a"], &["c"]),
                proto::node("Relu", "", &["c"], &["d"]),
                proto::node("Reshape", "r", &["d", "s"], &["e"]),
            ],
            &[("w", &[4, 3]), ("b", &[3]), ("s", &[1])],
        ));
        let outline = Outline::new(tree.root()).to_string();
        assert_eq!(
            outline,
            "\
Graph
  enc: Scope
    query: Scope
      MatMul: MatMul
        weight: float32 [4, 3]
        input_quantizer: QuantizerStub #activation/input #before/matmul
        weight_quantizer: QuantizerStub [4, 3] #before/matmul #parameter/weight
        output_quantizer: QuantizerStub #activation/output #after/matmul #before/add
      Add: Add
        bias: float32 [3]
        bias_quantizer: QuantizerStub [3] #before/add #parameter/bias
        input_quantizer: QuantizerStub #activation/input #after/matmul #before/add
        output_quantizer: QuantizerStub #activation/output #after/add #before/relu
  Relu_2: Relu
    input_quantizer: QuantizerStub #activation/input #after/add #before/relu
    output_quantizer: QuantizerStub #activation/output #after/relu #before/reshape
  r: Reshape
    s: float32 [1]
"
        );
        let weight = &tree.sites()[1];
        assert_eq!(
            (weight.name.as_str(), weight.channel_axis),
            ("enc.query.MatMul.weight_quantizer", Some(1))
        );
    }

    #[test]
    fn tied_weights_share_one_slot_and_equal_names_are_told_apart() {
        let tree = Tree::new(&model(
            vec![
                proto::node("MatMul", "m", &["x", "w"], &["a"]),
                proto::node("MatMul", "m", &["a", "w"], &["b"]),
            ],
            &[("w", &[4, 4])],
        ));
        let slots = named_slots(tree.root());
        let shared = slots.iter().find(|entry| entry.names.len() == 2).unwrap();
        assert_eq!(shared.names, ["m.weight_quantizer", "m_1.weight_quantizer"]);
    }

    #[test]
    fn integers_have_no_slots() {
        let tree = Tree::new(&model(
            vec![
                proto::node("Shape", "shape", &["x"], &["s"]),
                proto::node("Mul", "twice", &["s", "s"], &["t"]),
            ],
            &[],
        ));
        assert!(tree.sites().is_empty());
    }
}
