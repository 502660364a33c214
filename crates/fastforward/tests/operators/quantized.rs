//! The functional API on quantized operands: the float result, and the codes behind an output quantizer, simulated and
//! in integers.

use std::collections::BTreeMap;
use std::sync::Arc;

use candle_core::DType;
use fastforward::flags;
use fastforward::nn::functional as F;
use fastforward::quantization::affine::{AffineGrid, AffineParameters, Codes};
use fastforward::quantization::{
    Granularity, LinearQuantizer, LinearQuantizerConfig, QuantizerSlot,
};
use fastforward::tensor::operator::Output;
use fastforward::tensor::{CodeTensor, QuantizationContext, QuantizedTensor, Result, Value};
use serde::Deserialize;
use serde_json::Map;

use crate::arguments::Arguments;
use crate::call::{shapes, spatial};
use crate::cases::{Tensors, read_json};
use crate::compare::Tolerance;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Case {
    op: String,
    id: String,
    operands: BTreeMap<String, Operand>,
    attributes: Map<String, serde_json::Value>,
    float: String,
    float_tolerance: String,
    output: Option<ExpectedOutput>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Operand {
    Plain {
        tensor: String,
    },
    Quantized {
        codes: String,
        #[serde(flatten)]
        grid: Grid,
    },
}

#[derive(Deserialize)]
struct ExpectedOutput {
    codes: String,
    values: String,
    #[serde(flatten)]
    grid: Grid,
}

/// A grid as the data files spell it.
#[derive(Deserialize)]
pub struct Grid {
    pub num_bits: u32,
    pub granularity: Kind,
    pub scale: String,
    pub offset: Option<String>,
}

/// A granularity as the data files spell it.
#[derive(Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Kind {
    PerTensor,
    PerChannel { axes: [isize; 1] },
}

impl Kind {
    pub fn granularity(&self) -> Granularity {
        match self {
            Self::PerTensor => Granularity::PerTensor,
            Self::PerChannel { axes: [axis] } => Granularity::per_channel(*axis),
        }
    }
}

impl Grid {
    fn parameters(&self, tensors: &Tensors) -> AffineParameters {
        let vector = |key: &String| tensors.get(key).to_vec1::<f32>().expect("an f32 vector");
        AffineParameters {
            num_bits: self.num_bits,
            narrow_range: false,
            scale: vector(&self.scale),
            offset: self.offset.as_ref().map(vector),
        }
    }

    fn slot(&self, tensors: &Tensors) -> QuantizerSlot {
        let config = LinearQuantizerConfig::new(self.num_bits)
            .with_granularity(self.granularity.granularity());
        let quantizer = LinearQuantizer::new(config).expect("the bits of the data exist");
        quantizer.set_parameters(self.parameters(tensors)).expect("the parameters are sound");
        let slot = QuantizerSlot::output();
        slot.replace(Arc::new(quantizer));
        slot
    }
}

impl Operand {
    fn value(&self, tensors: &Tensors) -> Value {
        match self {
            Self::Plain { tensor } => Value::from(tensors.get(tensor).clone()),
            Self::Quantized { codes, grid } => {
                let codes = tensors.get(codes);
                let values = codes.flatten_all().and_then(|c| c.to_vec1::<i32>()).expect("i32");
                let values = Codes::from_i32(&values, grid.num_bits).expect("codes of these bits");
                let parameters = Arc::new(grid.parameters(tensors));
                let grid = AffineGrid { granularity: grid.granularity.granularity(), parameters };
                let context = QuantizationContext::new(&grid, codes.dims(), DType::F32);
                let codes = CodeTensor::new(values, codes.dims()).expect("of this shape");
                let quantized = context.and_then(|c| QuantizedTensor::from_codes(codes, c));
                Value::from(quantized.expect("the codes are on the grid"))
            }
        }
    }
}

#[test]
fn conformance_quantized() {
    #[derive(Deserialize)]
    struct File {
        cases: Vec<Case>,
    }
    let File { cases } = read_json("quantized.json");
    let tensors = Tensors::read("quantized");
    assert!(cases.len() >= 18, "only {} cases", cases.len());
    let mut failures = Vec::new();
    for case in &cases {
        for integer in [false, true] {
            let _mode = flags::integer_execution_mode(integer);
            if let Err(problem) = check(case, &tensors, integer) {
                let mode = if integer { "in integers" } else { "simulated" };
                failures.push(format!("{} ({mode}): {problem}", case.id));
            }
        }
    }
    assert!(failures.is_empty(), "{} failures:\n{}", failures.len(), failures.join("\n"));
}

fn check(case: &Case, tensors: &Tensors, integer: bool) -> std::result::Result<(), String> {
    let operands: BTreeMap<_, _> =
        case.operands.iter().map(|(name, o)| (name.as_str(), o.value(tensors))).collect();
    let attributes = Arguments::new(BTreeMap::new(), &case.attributes);
    if !integer {
        let output = Output::none().strict(false);
        let result = call(&case.op, &operands, &attributes, output).map_err(|e| e.to_string())?;
        let result = result.dequantize().map_err(|e| e.to_string())?;
        let tolerance = Tolerance::parse(&case.float_tolerance, None)?;
        tolerance.check(&result, tensors.get(&case.float)).map_err(|e| format!("float: {e}"))?;
        if let Some(name) = attributes.unused().first() {
            return Err(format!("`{name}` of the case is not used"));
        }
    }
    let Some(expected) = &case.output else { return Ok(()) };
    // Strict mode is on: quantized operands and an output quantizer are all it asks for.
    let slot = expected.grid.slot(tensors);
    let result =
        call(&case.op, &operands, &attributes, Output::from(&slot)).map_err(|e| e.to_string())?;
    let quantized = result.as_quantized().ok_or("the result is not quantized")?;
    let codes = quantized.codes().map_err(|e| e.to_string())?.to_i32();
    let wanted = tensors.get(&expected.codes).flatten_all().and_then(|c| c.to_vec1::<i32>());
    let wanted = wanted.expect("i32 codes");
    if codes != wanted {
        return Err(format!("codes {codes:?}, wanted {wanted:?}"));
    }
    let values = result.dequantize().map_err(|e| e.to_string())?;
    Tolerance::Exact.check(&values, tensors.get(&expected.values))
}

/// Calls the function of the functional API of this name.
fn call(
    op: &str,
    operands: &BTreeMap<&str, Value>,
    a: &Arguments,
    output: Output<'_>,
) -> Result<Value> {
    let input = &operands["input"];
    let optional = |name: &str| operands.get(name);
    match op {
        "linear" => F::linear(input, &operands["weight"], optional("bias"), output),
        "conv2d" => {
            let options = spatial::conv_options(a);
            F::conv2d(input, &operands["weight"], optional("bias"), &options, output)
        }
        "embedding" => {
            let ids = input.as_float().expect("indices are plain");
            F::embedding(ids, &operands["weight"], &shapes::embedding_options(a), output)
        }
        "matmul" => F::matmul(input, &operands["other"], output),
        "add" => F::add(input, &operands["other"], a.number("alpha").unwrap_or(1.0), output),
        "softmax" => F::softmax(input, a.integer("dim").expect("given") as isize, None, output),
        "layer_norm" => {
            let shape = a.integers("normalized_shape").expect("given");
            let shape = shape.iter().map(|&extent| extent as usize).collect();
            let eps = a.number("eps").expect("given");
            F::layer_norm(input, optional("weight"), optional("bias"), shape, eps, output)
        }
        _ => panic!("no arm calls `{op}`"),
    }
}
