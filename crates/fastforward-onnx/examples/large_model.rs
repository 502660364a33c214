//! Writes the same synthetic network twice, as safetensors and as ONNX with external data: something to measure memory and
//! time with.
//!
//! ```sh
//! cargo run --release -p fastforward-onnx --example large_model -- 2GiB target/large
//! ```
//!
//! An embedding and two layers as language models have them, in float32, for 2 GiB with 4,096 channels, 11,008 inner ones
//! and 32,000 words; for other sizes all three are scaled. The contents are the same on every machine.

#![allow(clippy::print_stdout, reason = "an example is there to be seen")]

use std::error::Error;
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::Path;

use fastforward_onnx::dtype::DType;
use fastforward_onnx::graph::{Dim, Model, ValueInfo};
use fastforward_onnx::proto::{
    GraphProto, ModelProto, NodeProto, OperatorSetIdProto, StringStringEntryProto, TensorProto,
    node, tensor_proto,
};

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [bytes, folder] = arguments.as_slice() else {
        return Err("usage: large_model BYTES FOLDER, such as `2GiB target/large`".into());
    };
    let (network, folder) = (Network::of(parse_bytes(bytes)?), Path::new(folder));
    fs::create_dir_all(folder)?;
    network.write_safetensors(&folder.join("model.safetensors"))?;
    network.write_onnx(folder)?;
    let tensors = network.tensors();
    let largest = tensors.iter().map(|tensor| tensor.rows * tensor.columns).max().unwrap_or(0);
    println!(
        "{} tensors, {} bytes, the largest {}",
        tensors.len(),
        network.size_bytes(),
        4 * largest
    );
    Ok(())
}

/// `2GiB`, `64MiB`, `1000000`.
fn parse_bytes(text: &str) -> Result<u64, Box<dyn Error>> {
    let units = [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10), ("", 1)];
    let (number, unit) = units
        .iter()
        .find_map(|(name, unit)| Some((text.strip_suffix(name)?, unit)))
        .unwrap_or((text, &1));
    let number: u64 = number.parse().map_err(|error| format!("`{text}`: {error}"))?;
    number.checked_mul(*unit).ok_or_else(|| format!("`{text}` is too much").into())
}

const LAYERS: usize = 2;

/// The sizes of the network.
struct Network {
    channels: usize,
    inner: usize,
    words: usize,
}

/// A weight, `[out, in]`, or a gain of one row.
struct Weight {
    name: String,
    rows: usize,
    columns: usize,
    seed: u64,
}

impl Network {
    fn of(bytes: u64) -> Self {
        let factor = (bytes as f64 / f64::from(1u32 << 31)).sqrt();
        let scaled =
            |size: f64, step: usize| ((size * factor / step as f64).round() as usize).max(1) * step;
        Self {
            channels: scaled(4096.0, 128),
            inner: scaled(11008.0, 128),
            words: scaled(32000.0, 8),
        }
    }

    /// In the order of their names, as safetensors files have them.
    fn tensors(&self) -> Vec<Weight> {
        let Self { channels, inner, words } = *self;
        let mut tensors = vec![("model.embed_tokens.weight".to_owned(), words, channels)];
        for layer in 0..LAYERS {
            for (name, rows, columns) in [
                ("input_layernorm", 1, channels),
                ("mlp.down_proj", channels, inner),
                ("mlp.gate_proj", inner, channels),
                ("mlp.up_proj", inner, channels),
                ("self_attn.k_proj", channels, channels),
                ("self_attn.o_proj", channels, channels),
                ("self_attn.q_proj", channels, channels),
                ("self_attn.v_proj", channels, channels),
            ] {
                tensors.push((format!("model.layers.{layer}.{name}.weight"), rows, columns));
            }
        }
        let weight = |(at, (name, rows, columns))| Weight { name, rows, columns, seed: at as u64 };
        tensors.into_iter().enumerate().map(weight).collect()
    }

    fn size_bytes(&self) -> usize {
        self.tensors().iter().map(|tensor| 4 * tensor.rows * tensor.columns).sum()
    }

    fn write_safetensors(&self, path: &Path) -> Result<(), Box<dyn Error>> {
        let mut header = String::from("{\"__metadata__\":{\"format\":\"pt\"}");
        let mut at = 0;
        for tensor in self.tensors() {
            let end = at + 4 * tensor.rows * tensor.columns;
            let shape = match tensor.rows {
                1 => format!("[{}]", tensor.columns),
                rows => format!("[{rows},{}]", tensor.columns),
            };
            header += &format!(
                ",\"{}\":{{\"dtype\":\"F32\",\"shape\":{shape},\"data_offsets\":[{at},{end}]}}",
                tensor.name
            );
            at = end;
        }
        header.push('}');
        while !header.len().is_multiple_of(8) {
            header.push(' ');
        }
        let mut file = BufWriter::new(File::create(path)?);
        file.write_all(&(header.len() as u64).to_le_bytes())?;
        file.write_all(header.as_bytes())?;
        for tensor in self.tensors() {
            tensor.write(&mut file)?;
        }
        Ok(file.into_inner()?.sync_all()?)
    }

    /// The graph and `model.onnx.data`. `MatMul` has its weights the other way round, `[in, out]`.
    fn write_onnx(&self, folder: &Path) -> Result<(), Box<dyn Error>> {
        let mut file = BufWriter::new(File::create(folder.join("model.onnx.data"))?);
        let mut initializer = Vec::new();
        let mut at = 0;
        for tensor in self.tensors() {
            let shape: &[usize] = match (tensor.rows, tensor.name.contains("_proj")) {
                (1, _) => &[tensor.columns],
                (rows, true) => &[tensor.columns, rows],
                (rows, false) => &[rows, tensor.columns],
            };
            let length = 4 * tensor.rows * tensor.columns;
            initializer.push(external(&tensor.name, shape, at, length));
            tensor.write(&mut file)?;
            at += length;
        }
        file.into_inner()?.sync_all()?;

        let input = |name: &str, dtype, shape: &[Dim]| {
            let shape = Some(shape.to_vec());
            ValueInfo { name: name.to_owned(), dtype: Some(dtype), shape }.to_proto()
        };
        let dims = [Dim::Symbolic("batch".to_owned()), Dim::Symbolic("words".to_owned())];
        let last = format!("model.layers.{}.output", LAYERS - 1);
        let states = [&dims[..], &[Dim::Fixed(self.channels)]].concat();
        let graph = GraphProto {
            name: Some("large".to_owned()),
            node: self.nodes(),
            initializer,
            input: vec![input("ids", DType::I64, &dims)],
            output: vec![input(&last, DType::F32, &states)],
            ..GraphProto::default()
        };
        let model = ModelProto {
            ir_version: Some(8),
            producer_name: Some("large_model".to_owned()),
            opset_import: vec![OperatorSetIdProto {
                domain: Some(String::new()),
                version: Some(17),
            }],
            graph: Some(graph),
            ..ModelProto::default()
        };
        let model = Model::from_proto(model, Some(folder))?;
        Ok(fs::write(folder.join("model.onnx"), model.to_bytes())?)
    }

    fn nodes(&self) -> Vec<NodeProto> {
        let embedded = "/model/embed_tokens";
        let weight = "model.embed_tokens.weight";
        let mut nodes = vec![node("Gather", embedded, &[weight, "ids"], &["embedded"])];
        let mut before = "embedded".to_owned();
        for layer in 0..LAYERS {
            let place = format!("model.layers.{layer}");
            let output = format!("{place}.output");
            let values = |names: &[&str]| -> Vec<String> {
                names
                    .iter()
                    .map(|&name| match name {
                        "before" => before.clone(),
                        "output" => output.clone(),
                        name => format!("{place}.{name}"),
                    })
                    .collect()
            };
            let mut add = |op: &str, name: &str, inputs: &[&str], output: &str| {
                let name = format!("/{}/{}", place.replace("model.layers.", "model/layers."), name);
                let (inputs, outputs) = (values(inputs), values(&[output]));
                let inputs: Vec<&str> = inputs.iter().map(String::as_str).collect();
                nodes.push(node(op, &name, &inputs, &[&outputs[0]]));
            };
            add("Mul", "input_layernorm/Mul", &["before", "input_layernorm.weight"], "normed");
            for which in ["q", "k", "v"] {
                let weight = format!("self_attn.{which}_proj.weight");
                let name = format!("self_attn/{which}_proj/MatMul");
                add("MatMul", &name, &["normed", &weight], which);
            }
            add("Add", "self_attn/Add", &["q", "k"], "qk");
            add("Mul", "self_attn/Mul", &["qk", "v"], "mixed");
            let weight = "self_attn.o_proj.weight";
            add("MatMul", "self_attn/o_proj/MatMul", &["mixed", weight], "attended");
            add("Add", "Add", &["before", "attended"], "middle");
            add("MatMul", "mlp/gate_proj/MatMul", &["middle", "mlp.gate_proj.weight"], "gate");
            add("MatMul", "mlp/up_proj/MatMul", &["middle", "mlp.up_proj.weight"], "up");
            add("Sigmoid", "mlp/Sigmoid", &["gate"], "open");
            add("Mul", "mlp/Mul", &["open", "up"], "inner");
            add("MatMul", "mlp/down_proj/MatMul", &["inner", "mlp.down_proj.weight"], "down");
            add("Add", "Add_1", &["middle", "down"], "output");
            before = output;
        }
        nodes
    }
}

impl Weight {
    /// Numbers around zero, in `-1/16..1/16`: the sum of two that are equally likely.
    fn write(&self, out: &mut impl Write) -> std::io::Result<()> {
        let mut state = self.seed.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let mut row = Vec::with_capacity(4 * self.columns);
        for _ in 0..self.rows {
            row.clear();
            for _ in 0..self.columns {
                // Xorshift, Marsaglia 2003.
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                let sum = (state >> 40) as i32 + ((state >> 8) & 0xff_ffff) as i32 - (1 << 24);
                row.extend_from_slice(&(sum as f32 / (1 << 28) as f32).to_le_bytes());
            }
            out.write_all(&row)?;
        }
        Ok(())
    }
}

fn external(name: &str, shape: &[usize], offset: usize, length: usize) -> TensorProto {
    let entry = |key: &str, value: String| StringStringEntryProto {
        key: Some(key.to_owned()),
        value: Some(value),
    };
    TensorProto {
        name: Some(name.to_owned()),
        data_type: Some(DType::F32.to_onnx()),
        dims: shape.iter().map(|&size| size as i64).collect(),
        data_location: Some(tensor_proto::DataLocation::External as i32),
        external_data: vec![
            entry("location", "model.onnx.data".to_owned()),
            entry("offset", offset.to_string()),
            entry("length", length.to_string()),
        ],
        ..TensorProto::default()
    }
}
