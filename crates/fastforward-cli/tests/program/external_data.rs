//! Models whose data lies in other files.

use std::collections::BTreeMap;
use std::fs;

use fastforward_onnx::graph::Model;
use fastforward_onnx::proto::{StringStringEntryProto, tensor_proto};

use crate::bench::{Bench, examples};

/// The digits example, its weights in `file` beside it, and the configurations for weights only, per channel and in blocks.
pub(crate) fn bench(file: &str) -> Bench {
    let bench = Bench::new();
    let mut model = Model::load(&bench.path("digits_cnn.onnx")).unwrap();
    let mut data: Vec<u8> = vec![0xaa; 24];
    for tensor in &mut model.graph_mut().initializer {
        let Some(raw) = tensor.raw_data.take() else { continue };
        let entry = |key: &str, value: String| StringStringEntryProto {
            key: Some(key.to_owned()),
            value: Some(value),
        };
        tensor.data_location = Some(tensor_proto::DataLocation::External as i32);
        tensor.external_data = vec![
            entry("location", file.to_owned()),
            entry("offset", data.len().to_string()),
            entry("length", raw.len().to_string()),
        ];
        data.extend(raw);
    }
    fs::write(bench.path(file), data).unwrap();
    let inline = fs::read(bench.path("digits_cnn.onnx")).unwrap();
    fs::create_dir(bench.path("inline")).unwrap();
    bench.write("inline/digits_cnn.onnx", inline);
    bench.write("digits_cnn.onnx", model.to_bytes());
    let config = fs::read_to_string(examples().join("weights-only.toml")).unwrap();
    let blocks = config
        .replacen("num_bits = 8", "num_bits = 4", 1)
        .replacen(
            "\"per_output_channel\"",
            "{ per_block = { dims = [0], sizes = [2], per_channel_dims = [1] } }",
            1,
        )
        .replacen("symmetric = true", "symmetric = false", 1);
    assert!(blocks.contains("per_block"));
    bench.write("weights-only.toml", config);
    bench.write("blocks.toml", blocks);
    bench
}

fn quantize<'a>(model: &'a str, config: &'a str, out: &'a str) -> Vec<&'a str> {
    vec!["quantize", model, "--config", config, "--out", out]
}

/// Every constant of a model, by its name.
fn constants(model: &Model) -> BTreeMap<String, Vec<u8>> {
    let bytes = |constant: fastforward_onnx::graph::Constant<'_>| {
        (constant.name().to_owned(), constant.bytes().unwrap().to_vec())
    };
    model.all_constants().map(bytes).collect()
}

#[test]
fn the_same_is_written_as_of_a_model_in_one_file() {
    for config in ["weights-only.toml", "w8a8.toml"] {
        let bench = bench("weights.bin");
        let before = fs::read(bench.path("weights.bin")).unwrap();
        let beside = bench.transcript(&quantize("digits_cnn.onnx", config, "out"));
        assert!(beside.ends_with("-- exit 0\n"), "{beside}");
        let inline = bench.transcript(&quantize("inline/digits_cnn.onnx", config, "inline/out"));
        assert!(inline.ends_with("-- exit 0\n"), "{inline}");
        let [beside, inline] = ["out", "inline/out"]
            .map(|out| Model::load(&bench.path(&format!("{out}/digits_cnn.qdq.onnx"))).unwrap());
        assert_eq!(beside.data_files().unwrap(), [bench.path("out/digits_cnn.qdq.onnx.data")]);
        assert!(!inline.has_external_data());
        assert!(constants(&beside) == constants(&inline), "{config}");
        assert_eq!(beside.graph().node, inline.graph().node);
        assert!(fs::read(bench.path("weights.bin")).unwrap() == before);

        let report = fs::read_to_string(bench.path("out/report.json")).unwrap();
        let report: serde_json::Value = serde_json::from_str(&report).unwrap();
        assert_eq!(report["model"]["data"][0]["file"], "weights.bin");
        assert_eq!(report["model"]["data"][0]["size_bytes"], before.len());
        let files: Vec<&str> = report["files"]
            .as_array()
            .unwrap()
            .iter()
            .map(|f| f["file"].as_str().unwrap())
            .collect();
        assert!(files.contains(&"digits_cnn.qdq.onnx.data"), "{files:?}");
    }
}

#[test]
fn the_bytes_do_not_depend_on_the_number_of_threads() {
    let bench = bench("weights.bin");
    for config in ["weights-only.toml", "blocks.toml"] {
        for (threads, out) in [("1", "one"), ("3", "three")] {
            let mut args = quantize("digits_cnn.onnx", config, out);
            args.extend(["--threads", threads]);
            let transcript = bench.transcript(&args);
            assert!(transcript.ends_with("-- exit 0\n"), "{transcript}");
        }
        assert!(bench.contents("one") == bench.contents("three"), "{config}");
    }
}

#[test]
fn nothing_but_quantize_needs_the_data() {
    let bench = bench("weights.bin");
    let len = fs::metadata(bench.path("weights.bin")).unwrap().len();
    // As long as before, without a single number in it.
    fs::write(bench.path("weights.bin"), vec![0xff; len as usize]).unwrap();
    let config = ["--config", "weights-only.toml"];
    for args in [
        vec!["inspect", "digits_cnn.onnx", "--slots"],
        vec!["find", "digits_cnn.onnx", "**/[quantizer:parameter/weight]"],
        [&["plan", "digits_cnn.onnx"], &config[..]].concat(),
        [&["explain", "digits_cnn.onnx", "c1.weight_quantizer"], &config[..]].concat(),
        [&["quantize", "digits_cnn.onnx", "--out", "out", "--dry-run"], &config[..]].concat(),
    ] {
        let transcript = bench.transcript(&args);
        assert!(transcript.ends_with("-- exit 0\n"), "{transcript}");
    }
    let transcript = bench.transcript(&quantize("digits_cnn.onnx", "weights-only.toml", "out"));
    assert!(transcript.contains("NaN"), "{transcript}");
    assert!(transcript.ends_with("-- exit 2\n"), "{transcript}");
    assert!(!bench.path("out").exists());
}

#[test]
fn data_that_is_read_is_not_replaced() {
    let bench = bench("digits_cnn.qdq.onnx.data");
    let before = bench.contents("");
    let transcript = bench.transcript(&quantize("digits_cnn.onnx", "weights-only.toml", "."));
    assert!(
        transcript
            .contains("`./digits_cnn.qdq.onnx.data` is read by this job and would be replaced"),
        "{transcript}"
    );
    assert!(transcript.ends_with("-- exit 2\n"), "{transcript}");
    assert!(bench.contents("") == before);
}

#[test]
fn data_that_is_cut_short_is_an_error() {
    let bench = bench("weights.bin");
    let data = fs::read(bench.path("weights.bin")).unwrap();
    fs::write(bench.path("weights.bin"), &data[..data.len() - 1]).unwrap();
    let transcript = bench.transcript(&quantize("digits_cnn.onnx", "weights-only.toml", "out"));
    assert!(
        transcript.contains("`./weights.bin` has") || transcript.contains("weights.bin` has"),
        "{transcript}"
    );
    assert!(transcript.ends_with("-- exit 2\n"), "{transcript}");
    assert!(!bench.path("out").exists());
}
