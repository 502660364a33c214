//! `[[algorithm]]`: what prepares a network, and what chooses its weights.

use std::fs;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde_json::Value;

use safetensors::tensor::{Dtype, TensorView, serialize};

use crate::bench::{Bench, examples};

const QUANTIZE: [&str; 6] = ["quantize", "digits_cnn.onnx", "--config", "w2.toml", "--out", "out"];

/// A bench with the example at two bits, and these algorithms.
fn two_bits(algorithms: &str) -> Bench {
    let bench = Bench::new();
    let text = fs::read_to_string(bench.path("w8a8.toml")).unwrap();
    let weights = "quantizer = { type = \"linear\", num_bits = 8, symmetric = true, \
                   granularity = \"per_output_channel\" }";
    assert!(text.contains(weights), "{text}");
    let text = text.replace(weights, &weights.replace('8', "2"));
    bench.write("w2.toml", format!("{text}\n{algorithms}"));
    bench
}

fn report(bench: &Bench) -> Value {
    serde_json::from_slice(&fs::read(bench.path("out/report.json")).unwrap()).unwrap()
}

fn top1(report: &Value) -> f64 {
    let models = report["evaluation"]["models"].as_array().unwrap();
    models[1]["metrics"][0]["value"].as_f64().unwrap_or_else(|| panic!("{models:#?}"))
}

const ALL: &str = r#"
[[algorithm]]
type = "equalize"
[[algorithm]]
type = "activation_weighted_mse"
[[algorithm]]
type = "gptq"
query = "**/[cls:Conv]"
correct_bias = true
[[algorithm]]
type = "adaround"
query = "**/[cls:Gemm]/[quantizer:parameter/weight]"
iterations = 200
block_layers = 2
[[algorithm]]
type = "bias_correction"
"#;

#[test]
fn algorithms_regain_what_two_bits_lose() {
    let bench = two_bits("");
    let output = bench.run(&QUANTIZE);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let nearest = report(&bench);
    assert!(nearest.get("algorithms").is_none());

    let bench = two_bits(ALL);
    let output = bench.run(&QUANTIZE);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let found = report(&bench);
    let (before, after) = (top1(&nearest), top1(&found));
    assert!(after >= before + 0.1, "{before} {after}");

    let algorithms = found["algorithms"].as_array().unwrap();
    let names: Vec<&str> =
        algorithms.iter().map(|one| one["algorithm"].as_str().unwrap()).collect();
    assert_eq!(
        names,
        ["equalize", "activation_weighted_mse", "gptq", "adaround", "bias_correction"]
    );
    for one in &algorithms[1..4] {
        let changes = one["changes"].as_array().unwrap();
        assert!(!changes.is_empty());
        for change in changes {
            let (before, after) = (&change["before"], &change["after"]);
            assert!(after.as_f64() <= before.as_f64(), "{change}");
        }
        let biases =
            changes.iter().filter(|one| one["name"].as_str().unwrap().ends_with(" (bias)"));
        assert_eq!(biases.count() == 2, one["algorithm"] == "gptq", "{one}");
        let blocks = changes.iter().filter(|one| one["name"] == "g1, logits (block)");
        assert_eq!(blocks.count() == 1, one["algorithm"] == "adaround", "{one}");
        assert!(one["moment_bytes"].as_u64().unwrap() > 0);
    }
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("gptq (line "), "{text}");
    let times = String::from_utf8(output.stderr).unwrap();
    assert!(times.lines().any(|line| line.starts_with("adaround (line ")), "{times}");
    // Nothing is left that another job could take up.
    let files: Vec<_> = bench.contents("out").into_keys().collect();
    assert_eq!(
        files,
        ["digits_cnn.qdq.onnx", "report.json", "state/state.json", "state/state.safetensors"]
    );
}

#[test]
fn awq_says_what_each_layer_gains_and_what_cannot_move() {
    let text = "[[algorithm]]\ntype = \"awq\"\nquery = \"**/[cls:Gemm]\"\nsteps = 10";
    let bench = two_bits(text);
    let model = examples().join("digits/digits_mlp.onnx");
    let model = model.to_str().unwrap();
    let output = bench.run(&["quantize", model, "--config", "w2.toml", "--out", "out"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let report = report(&bench);
    let awq = &report["algorithms"][0];
    let changes = awq["changes"].as_array().unwrap();
    assert!(!changes.is_empty(), "{awq}");
    for change in changes {
        assert!(change["after"].as_f64() < change["before"].as_f64(), "{change}");
    }
    let kept = awq["kept"].as_array().unwrap();
    assert!(kept.iter().any(|one| one.as_str().unwrap().contains("(Flatten)")), "{awq}");
    // The float network is the one that was given: powers of two change no number.
    let models = report["evaluation"]["models"].as_array().unwrap();
    assert!(models[0]["metrics"][0]["value"].as_f64() > Some(0.9), "{models:#?}");
    let plan = bench.run(&["plan", model, "--config", "w2.toml"]);
    let plan = String::from_utf8(plan.stdout).unwrap();
    assert!(plan.lines().any(|line| line.contains("awq") && line.contains("3")), "{plan}");
}

#[test]
fn the_same_bytes_with_any_number_of_threads() {
    let bench = two_bits(ALL);
    let run = |threads: &str| {
        let output = bench.run(&[&QUANTIZE[..], &["--threads", threads]].concat());
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        bench.contents("out")
    };
    assert!(run("1") == run("3"), "other bytes");
}

/// Starts the program; it writes to nobody.
fn start(bench: &Bench) -> Child {
    Command::new(assert_cmd::cargo::cargo_bin("fastforward"))
        .current_dir(bench.path(""))
        .args(QUANTIZE)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

#[test]
fn killed_at_any_moment_it_goes_on_to_the_same_bytes() {
    let whole = two_bits(ALL);
    let started = Instant::now();
    assert!(whole.run(&QUANTIZE).status.success());
    let took = started.elapsed();
    let expected = whole.contents("out");

    let mut random = 11u64;
    let mut resumed = 0;
    for round in 0..10 {
        let bench = two_bits(ALL);
        let mut child = start(&bench);
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let part = 0.1 + 0.9 * (random >> 11) as f64 / (1u64 << 53) as f64;
        sleep(took.mul_f64(part));
        child.kill().unwrap();
        child.wait().unwrap();
        let journal = bench.path("out/.fastforward-journal");
        let has_layers =
            ["job.json", "00000.safetensors"].iter().all(|f| journal.join(f).is_file());
        let output = bench.run(&QUANTIZE);
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success(), "round {round}: {said}");
        assert_eq!(said.contains("was finished by an earlier run"), has_layers, "{said}");
        resumed += usize::from(has_layers);
        let mut found = bench.contents("out");
        // What the killed process was writing lies beside, under a name of its own.
        found.retain(|file, _| !file.contains(".part/"));
        assert!(found == expected, "round {round}: other bytes");
    }
    assert!(resumed > 0, "no kill came between the first and the last layer");
}

#[test]
fn another_job_does_not_take_up_what_was_left() {
    let bench = two_bits(ALL);
    let mut child = start(&bench);
    let journal = bench.path("out/.fastforward-journal/00000.safetensors");
    let started = Instant::now();
    while !journal.exists() && started.elapsed() < Duration::from_secs(60) {
        if child.try_wait().unwrap().is_some() {
            break;
        }
        sleep(Duration::from_millis(1));
    }
    let _killed = child.kill();
    child.wait().unwrap();
    bench.write("w2.toml", fs::read_to_string(bench.path("w2.toml")).unwrap() + "# another\n");
    let output = bench.run(&QUANTIZE);
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success() && !said.contains("earlier run"), "{said}");
}

/// What the program says to these algorithms.
fn refused(algorithms: &str) -> String {
    let bench = two_bits(algorithms);
    let output = bench.run(&QUANTIZE);
    assert!(!output.status.success());
    assert!(!bench.path("out").exists());
    String::from_utf8(output.stderr).unwrap()
}

#[test]
fn what_cannot_work_is_refused_before_anything_is_computed() {
    for (algorithms, expected) in [
        ("[[algorithm]]\ntype = \"gptq\"\nquery = \"c9\"", "`c9` matches nothing"),
        (
            "[[algorithm]]\ntype = \"gptq\"\nquery = \"**/[cls:Relu]\"",
            "matches no weight that `gptq` can work on",
        ),
        ("[[algorithm]]\ntype = \"hqq\"", "symmetric = false"),
        (
            "[[algorithm]]\ntype = \"awq\"\nquery = \"**/[cls:Relu]\"",
            "matches no weight that `awq` can work on",
        ),
        (
            "[[algorithm]]\ntype = \"gptq\"\n[[algorithm]]\ntype = \"sequential_mse\"",
            "chooses ranges of weights whose codes `gptq`",
        ),
        ("[[algorithm]]\ntype = \"gptk\"", "did you mean `gptq`?"),
    ] {
        let said = refused(algorithms);
        assert!(said.contains(expected), "{algorithms}\n{said}");
    }
}

#[test]
fn the_plan_shows_what_algorithms_work_on() {
    let bench = two_bits(ALL);
    let output = bench.run(&["plan", "digits_cnn.onnx", "--config", "w2.toml"]);
    let text = String::from_utf8(output.stdout).unwrap();
    let line = text.lines().find(|line| line.contains("gptq")).unwrap();
    assert!(line.contains("**/[cls:Conv]"), "{text}");
}

#[test]
fn presets_fit_a_graph_once_they_know_its_data() {
    let bench = Bench::new();
    let listed = bench.transcript(&["presets"]);
    for name in ["w8a8", "w4a8", "w8a16", "w2a8-qat"] {
        assert!(listed.contains(name), "{listed}");
        let output = bench.run(&["presets", name]);
        let text = String::from_utf8(output.stdout).unwrap();
        let known = text
            .replace("calibration.safetensors\"", "digits.safetensors\"\nsamples = 128")
            + "\n[inputs.image]\ntensor = \"images\"\ndivide_by = 16\n";
        bench.write("preset.toml", known);
        for model in ["digits_cnn.onnx", "digits_mlp.onnx"] {
            let file = examples().join("digits").join(model);
            let out = format!("out-{name}-{model}");
            let file = file.to_str().unwrap();
            let args = ["quantize", file, "--config", "preset.toml", "--out", &out];
            let output = bench.run(&args);
            let said = String::from_utf8(output.stderr).unwrap();
            assert!(output.status.success(), "{name} {model}: {said}");
        }
    }
    let wrong = bench.transcript(&["presets", "w4a9"]);
    assert!(wrong.contains("did you mean `w4a8`?") && wrong.ends_with("-- exit 2\n"), "{wrong}");
}

#[test]
fn the_preset_for_language_models_takes_weights_without_a_graph() {
    let bench = Bench::new();
    let (rows, columns) = (4, 256);
    let bytes: Vec<u8> = (0..rows * columns)
        .flat_map(|at: usize| ((at as f32 * 0.37).sin().powi(9) + 0.1).to_le_bytes())
        .collect();
    let view = || TensorView::new(Dtype::F32, vec![rows, columns], &bytes).unwrap();
    let tensors = [("model.layers.0.proj.weight", view()), ("lm_head.weight", view())];
    bench.write("model.safetensors", serialize(tensors, None).unwrap());
    let text = bench.run(&["presets", "w4a16-g128"]).stdout;
    bench.write("preset.toml", text);
    let args = ["quantize", "model.safetensors", "--config", "preset.toml", "--out", "out"];
    let output = bench.run(&args);
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{said}");
    let report = report(&bench);
    let hqq = &report["algorithms"][0];
    assert_eq!(hqq["changes"].as_array().unwrap().len(), 1, "{hqq}");
    let change = &hqq["changes"][0];
    assert_eq!(change["name"], "model.layers.0.proj.weight_quantizer");
    assert!(change["after"].as_f64() <= change["before"].as_f64(), "{change}");
}
