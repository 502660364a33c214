//! Weights without a graph: safetensors, read, quantized tensor by tensor, read back.

use std::collections::BTreeMap;
use std::fs;

use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView, serialize};
use serde_json::Value;

use crate::bench::Bench;

const RULES: &str = "\
schema_version = 1

[[rule]]
name = \"linear\"
query = \"**/[cls:Linear]/[quantizer:parameter/weight]\"
quantizer = { type = \"linear\", num_bits = 4, symmetric = true, granularity = { per_block = { dims = [1], sizes = [8], per_channel_dims = [0] } } }
range = { estimator = \"running_minmax\" }
";

pub(crate) const QUANTIZE: [&str; 6] =
    ["quantize", "model.safetensors", "--config", "rules.toml", "--out", "out"];

/// Numbers that an element of 16 bits holds as well.
fn value(at: usize) -> f32 {
    ((at * 37 % 101) as f32 - 50.0) / 64.0
}

fn bytes(dtype: Dtype, len: usize) -> Vec<u8> {
    (0..len)
        .flat_map(|at| match dtype {
            Dtype::BF16 => (value(at).to_bits() >> 16).to_le_bytes()[..2].to_vec(),
            _ => value(at).to_le_bytes().to_vec(),
        })
        .collect()
}

/// A model of an embedding, two layers and a normalization, in a file of its own or in two with an index.
pub(crate) fn bench(sharded: bool) -> Bench {
    let bench = Bench::new();
    let tensors: [(&str, Dtype, &[usize]); 7] = [
        ("model.embed_tokens.weight", Dtype::F32, &[11, 16]),
        ("model.layers.0.mlp.down_proj.weight", Dtype::F32, &[6, 24]),
        ("model.layers.0.mlp.down_proj.bias", Dtype::F32, &[6]),
        ("model.layers.10.mlp.down_proj.weight", Dtype::BF16, &[5, 40]),
        ("model.layers.2.mlp.down_proj.weight", Dtype::F32, &[6, 24]),
        ("model.norm.weight", Dtype::F32, &[16]),
        ("positions", Dtype::I64, &[3]),
    ];
    let data: Vec<Vec<u8>> = tensors
        .iter()
        .map(|(_, dtype, shape)| match dtype {
            Dtype::I64 => (0..3i64).flat_map(i64::to_le_bytes).collect(),
            dtype => bytes(*dtype, shape.iter().product()),
        })
        .collect();
    let views: Vec<(&str, TensorView<'_>)> = tensors
        .iter()
        .zip(&data)
        .map(|((name, dtype, shape), data)| {
            (*name, TensorView::new(*dtype, shape.to_vec(), data).unwrap())
        })
        .collect();
    let metadata = Some([("format".to_owned(), "pt".to_owned())].into());
    if sharded {
        let mut map = BTreeMap::new();
        for (name, views) in [("one.safetensors", &views[..3]), ("two.safetensors", &views[3..])] {
            bench.write(name, serialize(views.to_vec(), metadata.clone()).unwrap());
            map.extend(views.iter().map(|(tensor, _)| (*tensor, name)));
        }
        let index = serde_json::json!({ "metadata": {}, "weight_map": map });
        bench.write("model.safetensors.index.json", index.to_string());
    } else {
        bench.write("model.safetensors", serialize(views, metadata).unwrap());
    }
    bench.write("rules.toml", RULES);
    bench
}

fn json(bench: &Bench, file: &str) -> Value {
    serde_json::from_slice(&fs::read(bench.path(file)).unwrap()).unwrap()
}

/// The floats of a weight of 4 bits in blocks of 8, decoded as the documentation says, not as the program does.
fn decode(file: &SafeTensors<'_>, name: &str) -> Vec<f32> {
    let get = |what: &str| file.tensor(&format!("{name}_{what}")).unwrap();
    let shape: Vec<usize> = get("shape")
        .data()
        .chunks(8)
        .map(|bytes| i64::from_le_bytes(bytes.try_into().unwrap()) as usize)
        .collect();
    let packed = get("packed");
    assert_eq!((packed.dtype(), packed.shape()[0]), (Dtype::I32, shape[0]));
    let scale: Vec<f32> = get("scale")
        .data()
        .chunks(4)
        .map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap()))
        .collect();
    let mut floats = Vec::new();
    for row in 0..shape[0] {
        for column in 0..shape[1] {
            let word = row * packed.shape()[1] + column / 8;
            let word = u32::from_le_bytes(packed.data()[4 * word..][..4].try_into().unwrap());
            let code = (word >> (4 * (column % 8)) & 15) as i32 - 8;
            floats.push(code as f32 * scale[row * shape[1] / 8 + column / 8]);
        }
    }
    floats
}

#[test]
fn weights_are_packed_and_the_rest_is_as_it_was() {
    let bench = bench(false);
    let before = fs::read(bench.path("model.safetensors")).unwrap();
    let transcript = bench.transcript(&QUANTIZE);
    let end = "\
verified   3 constants and 0 activations read back exactly
verified   outputs not compared: there is no graph
written    out/model.safetensors
           out/report.json
-- exit 0
";
    assert!(transcript.ends_with(end), "{transcript}");
    assert!(fs::read(bench.path("model.safetensors")).unwrap() == before);
    let after = fs::read(bench.path("out/model.safetensors")).unwrap();
    let (source, file) =
        (SafeTensors::deserialize(&before).unwrap(), SafeTensors::deserialize(&after).unwrap());
    for name in [
        "model.embed_tokens.weight",
        "model.layers.0.mlp.down_proj.bias",
        "model.norm.weight",
        "positions",
    ] {
        assert_eq!(file.tensor(name).unwrap(), source.tensor(name).unwrap());
    }
    for (name, len) in [
        ("model.layers.0.mlp.down_proj.weight", 6 * 24),
        ("model.layers.10.mlp.down_proj.weight", 5 * 40),
    ] {
        assert!(file.tensor(name).is_err());
        let floats = decode(&file, name);
        assert_eq!(floats.len(), len);
        // Blocks reach from -0.78 to 0.78 at most: a step is 0.11, and rounding moves by half of it.
        for (at, found) in floats.into_iter().enumerate() {
            assert!((found - value(at)).abs() <= 0.06, "{name}: element {at} is {found}");
        }
    }
    let names = bench.contents("out").into_keys().collect::<Vec<_>>();
    let expected = [
        "model.safetensors",
        "quantization_config.json",
        "report.json",
        "state/state.json",
        "state/state.safetensors",
    ];
    assert_eq!(names, expected);

    let config = json(&bench, "out/quantization_config.json");
    assert_eq!(config["format"], "pack-quantized");
    let group = &config["config_groups"]["group_0"];
    assert_eq!(group["weights"]["strategy"], "group");
    assert_eq!(group["weights"]["group_size"], 8);
    assert_eq!(group["targets"].as_array().unwrap().len(), 3);
    assert_eq!(config["ignore"], serde_json::json!(["model.embed_tokens"]));

    let report = json(&bench, "out/report.json");
    assert_eq!(report["model"]["format"], "safetensors");
    assert_eq!(report["model"]["sha256"], report["model"]["data"][0]["sha256"]);
    assert_eq!(report["files"][0]["file"], "model.safetensors");
}

#[test]
fn several_files_stay_several() {
    let (whole, shards) = (bench(false), bench(true));
    assert!(whole.transcript(&QUANTIZE).ends_with("-- exit 0\n"));
    let mut args = QUANTIZE;
    args[1] = "model.safetensors.index.json";
    let transcript = shards.transcript(&args);
    assert!(transcript.ends_with("-- exit 0\n"), "{transcript}");
    let whole = whole.contents("out");
    let whole = SafeTensors::deserialize(&whole["model.safetensors"]).unwrap();
    let written = shards.contents("out");
    let index = json(&shards, "out/model.safetensors.index.json");
    let map = index["weight_map"].as_object().unwrap();
    assert_eq!(map.len(), whole.len());
    for (name, file) in map {
        let bytes = &written[file.as_str().unwrap()];
        let file = SafeTensors::deserialize(bytes).unwrap();
        assert_eq!(file.tensor(name).unwrap(), whole.tensor(name).unwrap(), "{name}");
    }
}

#[test]
fn every_granularity_and_offset_reads_back() {
    let bench = bench(false);
    for granularity in ["\"per_tensor\"", "\"per_output_channel\"", "{ per_channel = 0 }"] {
        for (bits, symmetric) in [(2, true), (4, false), (8, true), (8, false)] {
            let rules = RULES
                .replace(
                    "{ per_block = { dims = [1], sizes = [8], per_channel_dims = [0] } }",
                    granularity,
                )
                .replace("num_bits = 4", &format!("num_bits = {bits}"))
                .replace("symmetric = true", &format!("symmetric = {symmetric}"));
            bench.write("rules.toml", rules);
            for threads in ["1", "2"] {
                let mut args = QUANTIZE.to_vec();
                args[5] = threads;
                args.extend(["--threads", threads]);
                let transcript = bench.transcript(&args);
                assert!(transcript.ends_with("-- exit 0\n"), "{transcript}");
            }
            assert!(bench.contents("1") == bench.contents("2"), "{granularity} {bits} {symmetric}");
        }
    }
}

#[test]
fn the_tree_is_that_of_the_names() {
    let bench = bench(false);
    let transcript = bench.transcript(&["inspect", "model.safetensors", "--slots"]);
    assert_eq!(
        transcript,
        "\
model.safetensors: 3.0 kB, safetensors
  parameters 689 in 7 tensors, 2.4 kB
  slots      6

positions: int64 [3]  24 B
model: Scope
  embed_tokens: Embedding
    weight: float32 [11, 16]  704 B
    weight_quantizer: QuantizerStub [11, 16] #parameter/weight
  layers: Scope
    0: Scope
      mlp: Scope
        down_proj: Linear
          bias: float32 [6]  24 B
          weight: float32 [6, 24]  576 B
          bias_quantizer: QuantizerStub [6] #parameter/bias
          weight_quantizer: QuantizerStub [6, 24] #parameter/weight
    2: Scope
      mlp: Scope
        down_proj: Linear
          weight: float32 [6, 24]  576 B
          weight_quantizer: QuantizerStub [6, 24] #parameter/weight
    10: Scope
      mlp: Scope
        down_proj: Linear
          weight: bfloat16 [5, 40]  400 B
          weight_quantizer: QuantizerStub [5, 40] #parameter/weight
  norm: RmsNorm
    weight: float32 [16]  64 B
    weight_quantizer: QuantizerStub [16] #parameter/weight
-- exit 0
"
    );
}

#[test]
fn rules_that_cannot_be_written_are_refused_with_every_slot() {
    let bench = bench(false);
    let everywhere = RULES.replace("[cls:Linear]/", "").replace("num_bits = 4", "num_bits = 3");
    let blocks = "{ per_block = { dims = [1], sizes = [8], per_channel_dims = [0] } }";
    bench.write("rules.toml", everywhere.replace(blocks, "\"per_tensor\""));
    let transcript = bench.transcript(&QUANTIZE);
    assert!(transcript.ends_with("-- exit 3\n"), "{transcript}");
    assert!(transcript.contains("`model.norm.weight_quantizer`: "), "{transcript}");
    assert!(transcript.contains("codes of 3 bits do not fill 32-bit words"), "{transcript}");

    bench.write("rules.toml", RULES.replace(blocks, "{ per_channel = 1 }"));
    let transcript = bench.transcript(&QUANTIZE);
    assert!(transcript.contains("have no place in the layout"), "{transcript}");
    assert!(transcript.ends_with("-- exit 3\n"), "{transcript}");

    bench.write("rules.toml", RULES.replace("cls:Linear", "cls:Conv2d"));
    let transcript = bench.transcript(&QUANTIZE);
    assert!(transcript.ends_with("-- exit 3\n"), "{transcript}");
    assert!(!bench.path("out").exists());

    bench.write(
        "rules.toml",
        format!("{RULES}\n[evaluation]\ndata = \"digits.safetensors\"\nmetric = \"sqnr\"\n"),
    );
    let transcript = bench.transcript(&QUANTIZE);
    assert!(transcript.contains("a file of weights has no graph"), "{transcript}");
    assert!(transcript.ends_with("-- exit 2\n"), "{transcript}");
}

#[test]
fn damaged_files_are_errors() {
    let bench = bench(false);
    let whole = fs::read(bench.path("model.safetensors")).unwrap();
    let lengths = [0, 4, 8, 100, whole.len() - 2500, whole.len() - 1];
    for len in lengths {
        bench.write("model.safetensors", &whole[..len]);
        let transcript = bench.transcript(&QUANTIZE);
        assert!(transcript.ends_with("-- exit 2\n"), "{transcript}");
        assert!(transcript.contains("cut short"), "{transcript}");
        assert!(!bench.path("out").exists());
    }
    for at in (0..whole.len() - 2448).step_by(7) {
        let mut damaged = whole.clone();
        damaged[at] ^= 0x11;
        bench.write("model.safetensors", &damaged);
        // Whatever it means now, it is an answer and no panic.
        let transcript = bench.transcript(&["plan", "model.safetensors", "--config", "rules.toml"]);
        assert!(!transcript.contains("panicked"), "{transcript}");
    }
}

#[test]
fn the_file_that_is_read_is_not_replaced() {
    let bench = bench(false);
    let mut args = QUANTIZE;
    args[5] = ".";
    let transcript = bench.transcript(&args);
    assert!(transcript.contains("`./model.safetensors` is read by this job"), "{transcript}");
    assert!(transcript.ends_with("-- exit 2\n"), "{transcript}");
}

/// A file of one tensor.
fn write_one(bench: &Bench, file: &str, name: &str, dtype: Dtype, shape: &[usize], data: &[u8]) {
    let view = TensorView::new(dtype, shape.to_vec(), data).unwrap();
    bench.write(file, serialize([(name, view)], None).unwrap());
}

/// The transcript of quantizing `model.safetensors`, which is to fail.
#[track_caller]
fn check_refused(bench: &Bench, file: &str, expected: &str) {
    let before = bench.contents("");
    let mut args = QUANTIZE;
    args[1] = file;
    assert_eq!(bench.transcript(&args), format!("-- stderr\n{expected}"));
    assert!(bench.contents("") == before);
    assert!(!bench.path("out").exists());
}

#[test]
fn data_of_no_tensor_is_an_error() {
    let bench = bench(false);
    let mut bytes = fs::read(bench.path("model.safetensors")).unwrap();
    bytes.extend([0; 5]);
    bench.write("model.safetensors", &bytes);
    check_refused(
        &bench,
        "model.safetensors",
        "error: in `./model.safetensors`: bytes 2368 to 2373 of its data belong to no tensor\n-- exit 2\n",
    );
}

#[test]
fn an_index_that_names_a_tensor_of_another_file_is_an_error() {
    let bench = bench(true);
    let index = fs::read_to_string(bench.path("model.safetensors.index.json")).unwrap();
    let index = index
        .replace("\"model.norm.weight\":\"two", "\"model.norm.weight\":\"one")
        .replace("\"positions\"", "\"position\"");
    bench.write("model.safetensors.index.json", index);
    check_refused(
        &bench,
        "model.safetensors.index.json",
        "\
error: in `model.safetensors.index.json`: 2 problems
  tensor `model.norm.weight` is not in `one.safetensors`, where it should be
  tensor `position` is not in `two.safetensors`, where it should be
-- exit 2
",
    );
}

#[test]
fn values_without_a_range_are_named_once() {
    let bench = bench(false);
    let mut data = bytes(Dtype::F32, 32);
    data[4 * 11..][..4].copy_from_slice(&f32::NAN.to_le_bytes());
    write_one(&bench, "model.safetensors", "a.weight", Dtype::F32, &[4, 8], &data);
    check_refused(
        &bench,
        "model.safetensors",
        "error: `a.weight_quantizer` (constant `a.weight`): 1 of 32 values are NaN, at [1, 3] in data of shape [4, 8]\n\
         -- exit 2\n",
    );
}

#[test]
fn files_without_floats_are_refused_with_what_they_hold() {
    let bench = bench(false);
    for (name, dtype, expected) in [
        (
            "a.weight",
            Dtype::I8,
            "  `model.safetensors` holds no weight in float16, bfloat16, float32 or float64; its tensors are: 1 of int8\n",
        ),
        (
            "a.weight_packed",
            Dtype::I8,
            "  `model.safetensors` holds codes already: `a.weight_packed`\n",
        ),
    ] {
        write_one(&bench, "model.safetensors", name, dtype, &[4, 8], &[0; 32]);
        let transcript = bench.transcript(&QUANTIZE);
        assert!(
            transcript.starts_with("-- stderr\nerror: 2 problems\n  rule `linear`"),
            "{transcript}"
        );
        assert!(transcript.ends_with(&format!("{expected}-- exit 3\n")), "{transcript}");
    }
}

#[test]
fn weights_under_another_name_are_recognized() {
    let bench = bench(false);
    fs::rename(bench.path("model.safetensors"), bench.path("model.bin")).unwrap();
    check_refused(
        &bench,
        "model.bin",
        "error: in `model.bin`: not an ONNX file; it begins as safetensors do, whose names end with `.safetensors`\n\
         -- exit 2\n",
    );
}
