//! The files that are written.

use std::fs;

use serde_json::Value;

use crate::bench::Bench;

const QUANTIZE: [&str; 6] =
    ["quantize", "digits_cnn.onnx", "--config", "w8a8.toml", "--out", "out"];

#[test]
fn the_same_command_writes_the_same_bytes_with_any_number_of_threads() {
    let first = Bench::new();
    let stdout = first.run(&[&QUANTIZE[..], &["--threads", "1"]].concat()).stdout;
    let expected = first.contents("out");
    assert_eq!(
        expected.keys().collect::<Vec<_>>(),
        ["digits_cnn.qdq.onnx", "report.json", "state/state.json", "state/state.safetensors"]
    );
    // Again in the same folder, and in another one: neither leaves a trace in the files.
    for (bench, threads) in [(&first, "1"), (&first, "2"), (&Bench::new(), "2")] {
        let again = bench.run(&[&QUANTIZE[..], &["--threads", threads]].concat());
        assert_eq!(again.stdout, stdout);
        assert!(bench.contents("out") == expected, "{threads} threads");
    }
}

#[test]
fn no_input_is_changed() {
    let bench = Bench::new();
    let before = bench.contents(".");
    assert!(bench.run(&QUANTIZE).status.success());
    let after = bench.contents(".");
    assert!(before.iter().all(|(file, bytes)| after.get(file) == Some(bytes)));
    assert_eq!(after.len(), before.len() + 4);
}

#[test]
fn the_report_names_everything_by_its_hash() {
    let bench = Bench::new();
    assert!(bench.run(&QUANTIZE).status.success());
    let text = fs::read_to_string(bench.path("out/report.json")).unwrap();
    assert!(!text.contains(bench.path("").to_str().unwrap()), "a path of this machine");
    let report: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(report["schema_version"], 1);
    assert_eq!(report["data"]["calibration"]["samples"], 512);
    for (entry, file) in [
        (&report["model"], "digits_cnn.onnx"),
        (&report["config"], "w8a8.toml"),
        (&report["data"]["evaluation"]["files"][0], "digits.safetensors"),
        (&report["files"][0], "out/digits_cnn.qdq.onnx"),
        (&report["files"][2], "out/state/state.safetensors"),
    ] {
        let hash = fastforward_core::files::sha256(&bench.path(file)).unwrap();
        assert_eq!(entry["sha256"], hash, "{file}");
    }
    let slot = &report["slots"][0];
    assert_eq!((&slot["names"][0], &slot["rule"]), (&"c1.input_quantizer".into(), &1.into()));
    assert_eq!((&slot["range"]["min"], &slot["range"]["max"]), (&0.0.into(), &1.0.into()));
    let sqnr: Vec<f64> = report["layers"]["differences"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|layer| layer["sqnr_db"].as_f64())
        .collect();
    assert!(sqnr.len() > 10 && sqnr.is_sorted(), "{sqnr:?}");
}

#[test]
fn a_floor_that_does_not_hold_is_told_after_everything_is_written() {
    let bench = Bench::new();
    bench.edit_config("metric = \"top1\"", "metric = \"top1\"\nmin_metric = 99.5");
    let output = bench.run(&QUANTIZE);
    assert_eq!(output.status.code(), Some(1));
    let shown = String::from_utf8(output.stderr).unwrap();
    assert!(shown.contains("check failed: min_metric = 99.5, found 9"), "{shown}");
    let report: Value =
        serde_json::from_slice(&fs::read(bench.path("out/report.json")).unwrap()).unwrap();
    assert_eq!(report["checks"][0]["holds"], false);
}

#[test]
fn weights_alone_need_no_data() {
    let bench = Bench::new();
    bench.write(
        "w4.toml",
        "schema_version = 1\n[[rule]]\nquery = '**/[quantizer:parameter/weight]'\n\
         quantizer = { type = 'linear', num_bits = 4, granularity = 'per_output_channel' }\n",
    );
    let args = ["quantize", "digits_cnn.onnx", "-c", "w4.toml", "-o", "out"];
    let shown = bench.transcript(&args);
    assert!(shown.contains("opset      13 -> 21") && shown.ends_with("-- exit 0\n"), "{shown}");
}

#[test]
fn activations_are_signed_when_asked() {
    let bench = Bench::new();
    let output = bench.run(&[&QUANTIZE[..], &["--activations", "s8"]].concat());
    assert!(output.status.success());
    let report: Value =
        serde_json::from_slice(&fs::read(bench.path("out/report.json")).unwrap()).unwrap();
    assert_eq!(report["options"]["activations"], "s8");
    assert_eq!(report["export"]["activations"][0]["dtype"], "int8");
}

#[test]
fn predictions_are_those_of_the_accuracy() {
    let bench = Bench::new();
    let args = ["evaluate", "digits_cnn.onnx", "-c", "w8a8.toml", "--predictions", "p.safetensors"];
    let scores: Value =
        serde_json::from_slice(&bench.run(&[&args[..], &["--json"]].concat()).stdout).unwrap();
    let bytes = fs::read(bench.path("p.safetensors")).unwrap();
    let predictions = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    assert_eq!(predictions.tensor("outputs").unwrap().shape(), [500, 10]);
    let top1 = predictions.tensor("top1").unwrap();
    let data = fs::read(bench.path("digits.safetensors")).unwrap();
    let data = safetensors::SafeTensors::deserialize(&data).unwrap();
    let labels = data.tensor("labels").unwrap();
    let right = top1
        .data()
        .chunks_exact(8)
        .zip(&labels.data()[1297..])
        .filter(|(class, label)| class[0] == **label && class[1..].iter().all(|&byte| byte == 0))
        .count();
    let expected = scores["models"][0]["metrics"][0]["value"].as_f64().unwrap();
    assert_eq!(100.0 * right as f64 / 500.0, expected);
}
