//! The working copy: a graph in the words that the execution engine knows.
//!
//! The engine (rten) lacks types and layouts that files use: integers other
//! than 8 and 32 bits, blocked quantization, `bfloat16`, integer convolution
//! with its own requantization. [`lower`] expresses them by plain nodes, in a
//! copy that is executed and never written. Names of values do not change, so
//! whatever can be asked of the file can be asked of the copy.
//!
//! | in the file | in the copy |
//! |---|---|
//! | `QuantizeLinear`, `DequantizeLinear` of constants | the constant result, by the arithmetic of [`crate::qdq`] |
//! | `QuantizeLinear` | `Div`, `Round`, `Add` (zero point), `Clip` |
//! | `DequantizeLinear` | `Sub` (zero point), `Mul` |
//! | `QLinearConv`, `QLinearMatMul` | `DequantizeLinear` of the operands, `Conv` or `MatMul`, `QuantizeLinear` |
//! | `ConvInteger`, `MatMulInteger` | `Cast`, `Sub` (zero point), `Conv` or `MatMul`, `Cast`, without rounding |
//! | `Constant` nodes | initializers |
//! | `float16`, `bfloat16`, `float64` constants | `float32` |
//! | `Dropout` | `Identity` |
//!
//! An 8-bit `QuantizeLinear` that only `DequantizeLinear` reads is expressed by
//! plain nodes too, because the engine multiplies by `1 / scale` where ONNX
//! divides: the results can differ by one step.
//! What such a `QuantizeLinear` produces is held as floats with integer values;
//! [`Lowered::codes`] tells the type it stands for. NaN becomes an integer there
//! too, one end of the range.
//!
//! `float16` graphs are computed in `float32`, which is more precise than what
//! the file asks for.

use std::collections::{BTreeMap, HashMap, HashSet};

use crate::dtype::DType;
use crate::error::{Error, ErrorKind, Result};
use crate::graph::{
    Model, ValueInfo, captured_names, check_describe as describe, data, tensor_from_f32,
    tensor_from_i64,
};
use crate::proto;
use crate::proto::{
    AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, attribute_int,
    attribute_ints, node, type_proto,
};
use crate::qdq;
use crate::rounding;

mod integer_product;
mod quantize;

/// A graph that the engine can execute; see the [module](self).
#[derive(Clone, Debug)]
pub struct Lowered {
    /// The working copy. All tensor data is inline.
    pub proto: ModelProto,
    /// Values held as floats although the file says integers, with that type.
    pub codes: BTreeMap<String, DType>,
}

/// Makes the working copy of `model`.
///
/// # Errors
/// `Unsupported` naming each operator or constant that neither the engine knows
/// nor this module can express; the errors of [`qdq::evaluate`] for quantized
/// constants; `ExternalData` when a data file cannot be read.
pub fn lower(model: &Model) -> Result<Lowered> {
    let mut lowering = Lowering {
        model,
        names: Names::of(model.graph()),
        codes: BTreeMap::new(),
        problems: Vec::new(),
    };
    let mut proto = ModelProto {
        graph: None,
        functions: model.proto().functions.clone(),
        ir_version: model.proto().ir_version,
        opset_import: model.proto().opset_import.clone(),
        ..ModelProto::default()
    };
    let graph = lowering.graph(model.graph(), &HashMap::new())?;
    lowering.refuse_unknown_constants(&graph);
    if !lowering.problems.is_empty() {
        return Err(Error::many(ErrorKind::Unsupported, lowering.problems));
    }
    proto.graph = Some(graph);
    Ok(Lowered { proto, codes: lowering.codes })
}

/// Whether [`lower`] expresses the node by others, where it can.
pub(crate) fn is_expressed(node: &NodeProto) -> bool {
    const EXPRESSED: [&str; 5] =
        ["QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger", "Dropout"];
    let is_listed = EXPRESSED.iter().any(|op_type| node.is_standard(op_type));
    is_listed || qdq::is_quantize(node) || qdq::is_dequantize(node)
}

/// Why the engine would pad a node wrongly: it takes `SAME_LOWER` for `SAME_UPPER`, which is the same only where the padding
/// is even, as with an odd window that moves by one.
fn uneven_lower_padding(node: &NodeProto) -> Option<String> {
    let auto = node.find_attribute("auto_pad")?;
    if auto.s() != b"SAME_LOWER" {
        return None;
    }
    let list = |name: &str| node.find_attribute(name).map(|one| one.ints.clone());
    let moves_by_one = list("strides").is_none_or(|all| all.iter().all(|&stride| stride == 1));
    let dilations = list("dilations").unwrap_or_default();
    let is_odd = |(axis, &extent): (usize, &i64)| {
        (extent - 1) * dilations.get(axis).copied().unwrap_or(1) % 2 == 0
    };
    let is_even =
        moves_by_one && list("kernel_shape").is_some_and(|all| all.iter().enumerate().all(is_odd));
    (!is_even).then(|| {
        format!(
            "{}: `auto_pad` is `SAME_LOWER`, and the execution engine knows only `SAME_UPPER` where padding is uneven; state \
             `pads`",
            describe(node)
        )
    })
}

/// State while a model is rewritten.
struct Lowering<'m> {
    model: &'m Model,
    names: Names,
    codes: BTreeMap<String, DType>,
    problems: Vec<String>,
}

/// The constants that a graph sees, its own and those of the graphs around it.
type Constants = HashMap<String, TensorProto>;

impl Lowering<'_> {
    fn graph(&mut self, source: &GraphProto, outer: &Constants) -> Result<GraphProto> {
        let mut scope = Scope::new(source, outer);
        for tensor in &source.initializer {
            scope.constants.insert(tensor.name().to_owned(), tensor.clone());
        }
        self.note_inputs(source);

        for original in &source.node {
            if let Some(value) = data::constant_node_value(original) {
                let mut value = value.into_owned();
                value.name = original.output.first().cloned();
                scope.constants.insert(value.name().to_owned(), value);
                continue;
            }
            let mut rewritten = original.clone();
            for attribute in &mut rewritten.attribute {
                for nested in attribute.g.iter_mut().chain(&mut attribute.graphs) {
                    *nested = self.graph(nested, &scope.constants)?;
                }
            }
            self.node(rewritten, &mut scope)?;
        }

        let own: HashSet<&str> = source.initializer.iter().map(|t| t.name()).collect();
        let made = |name: &str| own.contains(name) || !outer.contains_key(name);
        let used = used_names(&scope.nodes, source);
        let mut initializer: Vec<TensorProto> = Vec::new();
        for (name, tensor) in scope.constants {
            if made(&name) && used.contains(&name) {
                initializer.push(self.plain_constant(tensor)?);
            }
        }
        initializer.sort_unstable_by(|a, b| a.name().cmp(b.name()));
        let codes = &self.codes;
        let keep = |value: &&ValueInfoProto| !codes.contains_key(value.name());
        Ok(GraphProto {
            name: source.name.clone(),
            node: scope.nodes,
            initializer,
            input: source.input.iter().map(|value| retyped(value, codes)).collect(),
            output: source.output.iter().map(|value| retyped(value, codes)).collect(),
            value_info: source.value_info.iter().filter(keep).cloned().collect(),
            sparse_initializer: source.sparse_initializer.clone(),
            ..GraphProto::default()
        })
    }

    /// Narrow integer inputs are fed as floats; other types that the engine
    /// lacks are refused.
    fn note_inputs(&mut self, source: &GraphProto) {
        for input in source.input.iter().map(ValueInfo::of) {
            let Some(dtype) = input.dtype else { continue };
            if is_simulated(dtype) {
                self.codes.insert(input.name, dtype);
            } else if !is_readable(dtype) {
                self.problems.push(format!(
                    "graph input `{}` has type {dtype}, which the execution engine lacks",
                    input.name
                ));
            }
        }
    }

    fn node(&mut self, mut node: NodeProto, scope: &mut Scope<'_>) -> Result<()> {
        if qdq::is_quantize(&node) || qdq::is_dequantize(&node) {
            return self.quantize_or_dequantize(node, scope);
        }
        if let Some(problem) = uneven_lower_padding(&node) {
            self.problems.push(problem);
        }
        match node.op_type() {
            "QLinearConv" | "QLinearMatMul" if matches!(node.domain(), "" | "ai.onnx") => {
                return self.integer_operator(node, scope);
            }
            "Dropout" if node.is_standard("Dropout") && node.output.len() == 1 => {
                // At inference it passes its input on; the engine lacks it.
                node.op_type = Some("Identity".to_owned());
                node.input.truncate(1);
                node.attribute.clear();
            }
            "ConvInteger" | "MatMulInteger" if matches!(node.domain(), "" | "ai.onnx") => {
                return self.integer_product(node, scope);
            }
            "Conv" | "ConvTranspose" => {
                if let Some(weight) = node.input_at(1).map(str::to_owned) {
                    state_kernel_shape(&mut node, &weight, scope);
                }
            }
            _ => {}
        }
        self.spread_codes(&node, scope);
        scope.nodes.push(node);
        Ok(())
    }

    /// Marks the outputs of nodes that only move elements around; other nodes
    /// cannot read integers that are held as floats.
    fn spread_codes(&mut self, node: &NodeProto, scope: &Scope<'_>) {
        let held_as_float = |input: &String| {
            let constant = scope.constant(input).and_then(|t| DType::from_onnx(t.data_type()).ok());
            constant.filter(|&dtype| is_simulated(dtype)).or_else(|| self.codes.get(input).copied())
        };
        let found = node.input.iter().find_map(|input| Some((input, held_as_float(input)?)));
        let Some((input, dtype)) = found else {
            return;
        };
        if matches!(node.op_type(), "Shape" | "Size" | "Cast") {
            return;
        }
        if only_moves(node.op_type()) {
            for output in &node.output {
                self.codes.insert(output.clone(), dtype);
            }
            return;
        }
        self.problems.push(format!(
            "{} takes `{input}` of type {dtype}, which the execution engine lacks",
            describe(node)
        ));
    }

    /// A constant as the engine can read it.
    fn plain_constant(&mut self, tensor: TensorProto) -> Result<TensorProto> {
        let place = |error: Error| error.within(format_args!("constant `{}`", tensor.name()));
        let (dtype, shape) = data::dtype_and_shape(&tensor).map_err(place)?;
        let folder = self.model.folder();
        let name = tensor.name();
        match dtype {
            dtype if is_widened(dtype) => {
                Ok(tensor_from_f32(name, &shape, &data::to_f32(&tensor, folder).map_err(place)?))
            }
            dtype if is_readable(dtype) => {
                let raw = data::packed_bytes(&tensor, folder).map_err(place)?;
                Ok(data::raw_tensor(name, dtype, &shape, raw))
            }
            dtype if is_simulated(dtype) => {
                Ok(tensor_from_f32(name, &shape, &data::to_f32(&tensor, folder).map_err(place)?))
            }
            _ => Ok(tensor),
        }
    }

    /// Constants of a type that nothing above could translate.
    fn refuse_unknown_constants(&mut self, graph: &GraphProto) {
        for tensor in &graph.initializer {
            let dtype = DType::from_onnx(tensor.data_type());
            if let Ok(dtype) = dtype
                && (!is_readable(dtype) || is_widened(dtype))
            {
                let reader =
                    graph.node.iter().find(|node| node.input.iter().any(|i| i == tensor.name()));
                let reader =
                    reader.map_or(String::new(), |node| format!("{} takes ", describe(node)));
                self.problems.push(format!(
                    "{reader}constant `{}` of type {dtype}, which the execution engine lacks",
                    tensor.name()
                ));
            }
        }
        for (_, nested) in graph.node.iter().flat_map(NodeProto::subgraphs) {
            self.refuse_unknown_constants(nested);
        }
    }
}

/// Adds `kernel_shape`, which the file may leave to the shape of
/// `weight`: the
/// engine takes the defaults of `strides` and `pads` from it.
fn state_kernel_shape(node: &mut NodeProto, weight: &str, scope: &Scope<'_>) {
    if node.find_attribute("kernel_shape").is_some() {
        return;
    }
    let dims = match scope.constant(weight) {
        Some(tensor) => Some(tensor.dims.clone()),
        None => scope
            .infos
            .get(weight)
            .and_then(ValueInfo::fixed_shape)
            .map(|shape| shape.iter().map(|&size| size as i64).collect()),
    };
    if let Some(kernel) = dims.as_deref().and_then(|dims| dims.get(2..)) {
        node.attribute.push(attribute_ints("kernel_shape", kernel));
    }
}

/// Types that the engine computes with, itself or after conversion.
fn is_readable(dtype: DType) -> bool {
    is_widened(dtype)
        || matches!(
            dtype,
            DType::F32 | DType::U8 | DType::I8 | DType::I32 | DType::I64 | DType::Bool
        )
}

/// Floats that are computed in `float32`.
fn is_widened(dtype: DType) -> bool {
    matches!(dtype, DType::F16 | DType::BF16 | DType::F64)
}

/// Operators whose outputs hold elements of their inputs, chosen without arithmetic.
fn only_moves(op_type: &str) -> bool {
    const MOVES: [&str; 20] = [
        "Concat",
        "DepthToSpace",
        "Expand",
        "Flatten",
        "Gather",
        "GatherElements",
        "GatherND",
        "GlobalMaxPool",
        "Identity",
        "MaxPool",
        "Pad",
        "Relu",
        "Reshape",
        "Slice",
        "SpaceToDepth",
        "Split",
        "Squeeze",
        "Tile",
        "Transpose",
        "Unsqueeze",
    ];
    MOVES.contains(&op_type)
}

/// Integer types that the engine lacks and floats can stand for.
fn is_simulated(dtype: DType) -> bool {
    matches!(dtype, DType::I2 | DType::U2 | DType::I4 | DType::U4 | DType::I16 | DType::U16)
}

/// One graph while it is rewritten.
struct Scope<'g> {
    constants: Constants,
    nodes: Vec<NodeProto>,
    infos: HashMap<&'g str, ValueInfo>,
    /// Values whose readers need integers: all but `DequantizeLinear` and what
    /// only moves elements on their way to it.
    read_as_integers: HashSet<String>,
}

impl<'g> Scope<'g> {
    fn new(source: &'g GraphProto, outer: &Constants) -> Self {
        let stated = source.value_info.iter().chain(&source.input).chain(&source.output);
        let infos = stated.map(|value| (value.name(), ValueInfo::of(value))).collect();
        let mut read_as_integers: HashSet<String> = HashSet::new();
        // Readers stand after what they read, so their own needs are known.
        for node in source.node.iter().rev() {
            let moves = only_moves(node.op_type())
                && !node.output.iter().any(|output| read_as_integers.contains(output));
            if !moves {
                let skipped = usize::from(qdq::is_dequantize(node));
                read_as_integers.extend(node.input.iter().skip(skipped).cloned());
            }
            read_as_integers.extend(captured_names(node));
        }
        Self { constants: outer.clone(), nodes: Vec::new(), infos, read_as_integers }
    }

    fn constant(&self, name: &str) -> Option<&TensorProto> {
        self.constants.get(name)
    }
}

/// The names that `nodes`, the rewritten nodes of `source`, and its outputs read.
fn used_names(nodes: &[NodeProto], source: &GraphProto) -> HashSet<String> {
    let outputs = source.output.iter().map(|output| output.name().to_owned());
    let read = nodes.iter().flat_map(|node| node.input.iter().cloned().chain(captured_names(node)));
    outputs.chain(read).collect()
}

/// Names that are not taken anywhere in the model.
struct Names {
    taken: HashSet<String>,
    next: usize,
}

impl Names {
    fn of(graph: &GraphProto) -> Self {
        fn collect(graph: &GraphProto, taken: &mut HashSet<String>) {
            taken.extend(crate::graph::defined_names(graph).map(str::to_owned));
            for (_, nested) in graph.node.iter().flat_map(NodeProto::subgraphs) {
                collect(nested, taken);
            }
        }
        let mut taken = HashSet::new();
        collect(graph, &mut taken);
        Self { taken, next: 0 }
    }

    fn fresh(&mut self, base: &str) -> String {
        loop {
            self.next += 1;
            let name = format!("{base}#{}", self.next);
            if self.taken.insert(name.clone()) {
                return name;
            }
        }
    }
}

/// `value` without a type that the engine would refuse or misread.
fn retyped(value: &ValueInfoProto, codes: &BTreeMap<String, DType>) -> ValueInfoProto {
    let mut value = value.clone();
    if codes.contains_key(value.name())
        && let Some(type_proto::Value::TensorType(tensor)) =
            value.r#type.as_mut().and_then(|kind| kind.value.as_mut())
    {
        tensor.elem_type = Some(DType::F32.to_onnx());
    }
    value
}
