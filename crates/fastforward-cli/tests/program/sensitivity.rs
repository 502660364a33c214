//! `sensitivity`: prices of widths, what budgets buy, and the rules that are written.

use std::fs;

use expect_test::{Expect, expect};
use serde_json::Value;

use crate::bench::{Bench, examples};

const SWEEP: [&str; 8] =
    ["sensitivity", "digits_cnn.onnx", "-c", "w8a8.toml", "--samples", "64", "--bits", "2,4,8"];

/// Rules for weights, and no data.
const WEIGHTS: &str = "\
schema_version = 1
[[rule]]
query = '**/[quantizer:parameter/weight]'
quantizer = { type = 'linear', num_bits = 4 }
";

fn with<'a>(more: &[&'a str]) -> Vec<&'a str> {
    [&SWEEP[..], more].concat()
}

#[track_caller]
fn json(bench: &Bench, args: &[&str]) -> Value {
    let output = bench.run(&[args, &["--json", "--quiet"]].concat());
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{args:?}: {stderr}");
    serde_json::from_slice(&output.stdout).unwrap()
}

/// The widths that a plan gives the weights.
fn planned(bench: &Bench, model: &str, config: &str) -> Vec<u64> {
    planned_for(bench, model, config, "weight")
}

fn planned_for(bench: &Bench, model: &str, config: &str, role: &str) -> Vec<u64> {
    let plan = json(bench, &["plan", model, "-c", config]);
    let slots = plan["slots"].as_array().unwrap().iter().filter(|slot| slot["role"] == role);
    slots.filter_map(|slot| slot["quantizer"]["num_bits"].as_u64()).collect()
}

fn widths(point: &Value) -> Vec<u64> {
    point["bits"].as_array().unwrap().iter().map(|bits| bits.as_u64().unwrap()).collect()
}

/// The network of clothes with min-max ranges and weights of 4 bits.
fn fashion() -> Bench {
    let bench = Bench::new();
    let folder = examples().join("fashion");
    for file in ["fashion_cnn.onnx", "calib512.safetensors", "test2000.safetensors"] {
        fs::copy(folder.join(file), bench.path(file)).unwrap();
    }
    let text = fs::read_to_string(folder.join("layers.toml")).unwrap();
    assert!(text.contains("num_bits = 8, symmetric = true"), "{text}");
    bench.write(
        "w4.toml",
        text.replace("num_bits = 8, symmetric = true", "num_bits = 4, symmetric = true")
            .replace("batch_size = 100", "batch_size = 100\nsamples = 1000"),
    );
    bench
}

/// Chosen on calibration images, judged on others: in the simulation, and by the file that `quantize` writes.
#[test]
fn four_bits_on_average_beat_four_bits_everywhere() {
    let bench = fashion();
    let model = "fashion_cnn.onnx";
    let found = json(
        &bench,
        &[
            "sensitivity",
            model,
            "-c",
            "w4.toml",
            "--on",
            "calibration",
            "--samples",
            "256",
            "--bits",
            "3,4,8",
            "--budget",
            "4bits",
            "--measure",
            "--write",
            "mixed.toml",
        ],
    );
    let point = &found["allocation"]["point"];
    assert!(point["average_bits"].as_f64().unwrap() <= 4.0);
    assert_eq!(found["curves"][0]["is_exact"], true);
    let uniform = &found["curves"][0]["uniform"][1];
    assert_eq!(uniform["average_bits"], 4.0);
    assert!(point["loss"].as_f64() < uniform["loss"].as_f64());
    let [mixed, four] = [point, uniform].map(|point| point["metric"].as_f64().unwrap());
    assert!(mixed > four, "{mixed} % with mixed widths, {four} % with 4 bits");

    assert_eq!(planned(&bench, model, "mixed.toml"), widths(point));
    assert_eq!(planned(&bench, model, "w4.toml"), [4; 8]);
    let report = json(&bench, &["quantize", model, "-c", "mixed.toml", "-o", "out"]);
    // The simulation that was measured rounds ties as the file does.
    assert_eq!(report["evaluation"]["models"][1]["metrics"][0]["value"], mixed);
}

#[test]
fn prices_and_rules_are_the_same_for_any_number_of_threads() {
    let bench = Bench::new();
    let run = |threads: &str, file: &str| {
        let args = with(&[
            "--budget",
            "4bits",
            "--budget",
            "activation_bits<=6",
            "--measure",
            "--write",
            file,
            "--json",
            "-j",
            threads,
        ]);
        let output = bench.run(&args);
        (output.stdout, fs::read(bench.path(file)).unwrap())
    };
    let (one, four) = (run("1", "one.toml"), run("4", "four.toml"));
    assert!(one == four && !one.0.is_empty());
}

#[test]
fn each_slot_has_a_price_that_falls_with_its_width() {
    for score in ["sqnr", "kl"] {
        let found = json(&Bench::new(), &with(&["--score", score]));
        let slots = found["slots"].as_array().unwrap();
        let roles: Vec<&Value> = slots.iter().map(|slot| &slot["role"]).collect();
        assert_eq!(roles, [["weight"; 4], ["input"; 4]].concat());
        for slot in slots {
            let losses: Vec<f64> = slot["prices"]
                .as_array()
                .unwrap()
                .iter()
                .map(|price| price["loss"].as_f64().unwrap())
                .collect();
            assert!(losses[0] > losses[1] && losses[1] > losses[2] && losses[2] > 0.0, "{slot}");
        }
        assert_eq!(found.get("allocation"), None);
    }
    let found = json(&Bench::new(), &with(&["--score", "metric"]));
    assert_eq!(
        (&found["scored"]["metric"], &found["scored"]["samples"]),
        (&"top1".into(), &64.into())
    );
}

#[test]
fn a_query_chooses_what_is_swept() {
    let found = json(&Bench::new(), &with(&["--query", "{c1, g1}"]));
    let names: Vec<&Value> =
        found["slots"].as_array().unwrap().iter().map(|one| &one["names"][0]).collect();
    assert_eq!(
        names,
        ["c1.weight_quantizer", "g1.weight_quantizer", "c1.input_quantizer", "g1.input_quantizer"]
    );
}

#[test]
fn a_budget_in_bytes_holds_for_the_plan_of_what_is_written() {
    let bench = Bench::new();
    let found = json(&bench, &with(&["--budget", "3kB", "--write", "mixed.toml"]));
    let plan = json(&bench, &["plan", "digits_cnn.onnx", "-c", "mixed.toml"]);
    assert_eq!(plan["constants"]["after"], found["allocation"]["point"]["bytes"]);
    assert!(plan["constants"]["after"].as_u64().unwrap() <= 3000);
    assert_eq!(
        planned(&bench, "digits_cnn.onnx", "mixed.toml"),
        widths(&found["allocation"]["point"])
    );
}

#[test]
fn weights_and_activations_have_a_budget_each() {
    let bench = Bench::new();
    let args = ["--activation-bits", "4,8,16", "--budget", "activation_bits<=6", "--budget"];
    let found = json(
        &bench,
        &with(&[&args[..], &["3.5bits", "--measure", "--write", "mixed.toml"]].concat()),
    );
    let point = &found["allocation"]["point"];
    assert!(point["average_bits"].as_f64().unwrap() <= 3.5);
    // Elements of one sample count: 64, 128, 64 and 32.
    let elements = [64.0, 128.0, 64.0, 32.0];
    let chosen = widths(point);
    let bits = chosen[4..].iter().zip(elements).map(|(&bits, n)| bits as f64 * n).sum::<f64>();
    assert_eq!(point["activation_bits"].as_f64().unwrap(), bits / 288.0);
    assert!(bits / 288.0 <= 6.0 && chosen[4..].contains(&8), "{chosen:?}");
    // The choice for both is the choice for each alone.
    for (budget, expected) in [("3.5bits", &chosen[..4]), ("activation_bits<=6", &chosen[4..])] {
        let kind =
            if budget == "3.5bits" { ("--bits", "2,4,8") } else { ("--activation-bits", "4,8,16") };
        let sweep = ["sensitivity", "digits_cnn.onnx", "-c", "w8a8.toml", "--samples", "64"];
        let alone = json(&bench, &[&sweep[..], &[kind.0, kind.1, "--budget", budget]].concat());
        assert_eq!(widths(&alone["allocation"]["point"]), expected);
    }
    let stored: Vec<&Value> = found["activation_widths"]
        .as_array()
        .unwrap()
        .iter()
        .map(|one| &one["stored_as"])
        .collect();
    assert_eq!(stored, ["uint4", "uint8", "uint16"]);

    let plans =
        ["weight", "input"].map(|role| planned_for(&bench, "digits_cnn.onnx", "mixed.toml", role));
    assert_eq!(plans.concat(), chosen);
    let report = json(&bench, &["quantize", "digits_cnn.onnx", "-c", "mixed.toml", "-o", "out"]);
    assert_eq!(report["evaluation"]["models"][1]["metrics"][0]["value"], point["metric"]);
}

#[test]
fn a_floor_on_the_metric_decides_activations_if_asked_to() {
    let bench = Bench::new();
    let args = ["--slots", "all", "--budget", "metric>=92", "--write", "mixed.toml"];
    let found = json(&bench, &with(&args));
    let point = &found["allocation"]["point"];
    assert!(point["metric"].as_f64().unwrap() >= 92.0);
    assert_eq!(found["curves"][0]["slots"], "all");
    assert_eq!(found["curves"][0]["uniform"].as_array().unwrap().len(), 9);
    let report = json(&bench, &["quantize", "digits_cnn.onnx", "-c", "mixed.toml", "-o", "out"]);
    assert_eq!(report["evaluation"]["models"][1]["metrics"][0]["value"], point["metric"]);
}

#[test]
fn a_floor_on_the_metric_is_kept_by_what_quantize_writes() {
    let bench = Bench::new();
    let found = json(&bench, &with(&["--budget", "metric>=90", "--write", "mixed.toml"]));
    let point = &found["allocation"]["point"];
    let metric = point["metric"].as_f64().unwrap();
    assert!(metric >= 90.0 && point["average_bits"].as_f64().unwrap() < 8.0, "{point}");
    // Something smaller was tried, and did not hold.
    let curve = found["curves"][0]["points"].as_array().unwrap();
    assert!(curve.iter().any(|one| one["metric"].as_f64().is_some_and(|value| value < 90.0)));
    let report = json(&bench, &["quantize", "digits_cnn.onnx", "-c", "mixed.toml", "-o", "out"]);
    assert_eq!(report["evaluation"]["models"][1]["metrics"][0]["value"], metric);
}

#[test]
fn a_budget_that_cannot_be_met_is_refused_with_the_nearest_that_can() {
    let bench = Bench::new();
    let check = |budget: &str, expected: Expect| {
        let args = with(&["--budget", budget, "--write", "mixed.toml"]);
        let shown = bench.transcript(&args);
        expected.assert_eq(&shown);
        assert!(!bench.path("mixed.toml").exists());
        let at = shown.find("can be met is `").unwrap() + "can be met is `".len();
        let nearest = shown[at..].split('`').next().unwrap();
        assert!(json(&bench, &with(&["--budget", nearest]))["allocation"]["point"].is_object());
    };
    check(
        "1.5bits",
        expect![[r#"
        -- stderr
        error: budget `1.5 bits` cannot be met: the narrowest width is 2; the nearest budget that can be met is `2bits`
        -- exit 2
    "#]],
    );
    check(
        "1kB",
        expect![[r#"
        -- stderr
        error: budget `1000 B` cannot be met: with each weight as small as the widths allow, the constants take 1443 B, 264 B of them not swept; the nearest budget that can be met is `1443B`
        -- exit 2
    "#]],
    );
    check(
        "metric>=99.5",
        expect![[r#"
        -- stderr
        error: budget `metric>=99.5` cannot be met: with the least loss that the widths allow, `top1` is 95.19999999999999; the nearest budget that can be met is `metric>=95.19999999999999`
        -- exit 2
    "#]],
    );
}

#[test]
fn the_file_is_the_old_one_with_rules_and_prices() {
    let bench = Bench::new();
    let text = fs::read_to_string(bench.path("w8a8.toml")).unwrap();
    bench.write(
        "rules.toml",
        text.replace(
            "query = \"**/[quantizer:parameter/weight]\"",
            "query = \"**/[quantizer:parameter/weight]\"\nexpect = 4\npriority = 7",
        ),
    );
    let args = ["--bits", "2,4", "--samples", "64", "--budget", "3.5bits", "--write", "mixed.toml"];
    json(&bench, &[&["sensitivity", "digits_cnn.onnx", "-c", "rules.toml"], &args[..]].concat());
    let mixed = fs::read_to_string(bench.path("mixed.toml")).unwrap();
    let old = fs::read_to_string(bench.path("rules.toml")).unwrap();
    let at = mixed.find("\n# Mixed precision").unwrap();
    // No weight keeps 8 bits, so their rule decides nothing any more.
    let kept: String = mixed[..at]
        .lines()
        .filter(|line| !line.starts_with("optional = true"))
        .map(|line| format!("{}\n", line.replace("# expect", "expect")))
        .collect();
    assert_eq!(kept, old);
    // Prices depend on the vector instructions of the machine in their last digits, and so are left out here.
    let rules: Vec<&str> =
        mixed[at..].lines().filter(|line| !line.starts_with('#') && !line.is_empty()).collect();
    expect![[r#"
        [[rule]]
        name = "weights at 2 bits"
        query = "g1/weight_quantizer"
        quantizer = { type = "linear", num_bits = 2, symmetric = true, granularity = "per_output_channel" }
        range = { estimator = "running_minmax" }
        expect = 1
        priority = 7
        [[rule]]
        name = "weights at 4 bits"
        query = "{c1, c2, logits}/weight_quantizer"
        quantizer = { type = "linear", num_bits = 4, symmetric = true, granularity = "per_output_channel" }
        range = { estimator = "running_minmax" }
        expect = 3
        priority = 7"#]].assert_eq(&rules.join("\n"));
    // What was written can be swept again, and edited.
    let again =
        ["--bits", "2,4,8", "--samples", "64", "--budget", "6bits", "--write", "again.toml"];
    let found = json(
        &bench,
        &[&["sensitivity", "digits_cnn.onnx", "-c", "mixed.toml"], &again[..]].concat(),
    );
    assert_eq!(
        planned(&bench, "digits_cnn.onnx", "again.toml"),
        widths(&found["allocation"]["point"])
    );
}

#[track_caller]
fn refused(bench: &Bench, args: &[&str], expected: Expect) {
    expected.assert_eq(&bench.transcript(args));
    assert!(!bench.path("mixed.toml").exists());
}

#[test]
fn what_is_no_width_or_budget_is_refused() {
    let bench = Bench::new();
    let sweep =
        ["sensitivity", "digits_cnn.onnx", "-c", "w8a8.toml", "--write", "mixed.toml", "--budget"];
    refused(
        &bench,
        &[&sweep[..], &["4bits", "--bits", "0,4,32"]].concat(),
        expect![[r#"
        -- stderr
        error: 2 problems
          codes of 0 bits are not swept, expected 1 to 16
          codes of 32 bits are not swept, expected 1 to 16
        -- exit 2
    "#]],
    );
    refused(
        &bench,
        &[&sweep[..], &["four"]].concat(),
        expect![[r#"
        -- stderr
        error: budget `four` is none; write average bits of the weights (`4bits`), bytes of the constants (`30kB`, `120MiB`), average bits of the activations (`activation_bits<=8`), or a bound on the metric (`metric>=90`)
        -- exit 2
    "#]],
    );
    refused(
        &bench,
        &[&sweep[..], &["metric>=0.9"]].concat(),
        expect![[r#"
        -- stderr
        error: budget `metric>=0.9`: `top1` is in percent; write `metric>=90`
        -- exit 2
    "#]],
    );
    refused(
        &bench,
        &[&sweep[..], &["metric<=90"]].concat(),
        expect![[r#"
        -- stderr
        error: budget `metric<=90`: of `top1` more is better; write `metric>=...`
        -- exit 2
    "#]],
    );
    refused(
        &bench,
        &[&sweep[..], &["activation_bits<=8", "--activation-bits", "6,8,12"]].concat(),
        expect![[r#"
        -- stderr
        error: 2 problems
          `c1.input_quantizer`: activations of 6 bits cannot be written; ONNX has types of 2, 4, 8 and 16 bits
          `c1.input_quantizer`: activations of 12 bits cannot be written; ONNX has types of 2, 4, 8 and 16 bits
        -- exit 2
    "#]],
    );
    refused(
        &bench,
        &[&sweep[..], &["activation_bits<=3"]].concat(),
        expect![[r#"
        -- stderr
        error: budget `activation_bits<=3` cannot be met: the narrowest width is 4; the nearest budget that can be met is `activation_bits<=4`
        -- exit 2
    "#]],
    );
    refused(
        &bench,
        &[&sweep[..], &["4bits", "--activation-bits", "8"]].concat(),
        expect![[r#"
        -- stderr
        error: there are widths to try for activations, but no activations are swept; leave the widths out, or sweep them with --slots activations or --slots all
        -- exit 2
    "#]],
    );
    refused(
        &bench,
        &[&sweep[..], &["4bits", "--slots", "all"]].concat(),
        expect![[r#"
        -- stderr
        error: --slots all does not fit the budget `4 bits`, which decides weights only; leave --slots out, or give weights (`4bits`) and activations (`activation_bits<=8`) a budget each
        -- exit 2
    "#]],
    );
    refused(
        &bench,
        &[&sweep[..], &["4bits", "--budget", "metric>=90"]].concat(),
        expect![[r#"
        -- stderr
        error: budgets `4 bits` and `metric>=90`: a bound on the metric decides all widths that are swept, so it stands alone
        -- exit 2
    "#]],
    );
    let shown = bench.transcript(&[&sweep[..], &["4bits", "--bits", "4,x"]].concat());
    assert!(
        shown.contains("invalid value 'x' for '--bits") && shown.ends_with("-- exit 2\n"),
        "{shown}"
    );
    let shown = bench.transcript(&with(&["--write", "mixed.toml"]));
    assert!(shown.contains("--budget <BUDGET>") && shown.ends_with("-- exit 2\n"), "{shown}");
}

#[test]
fn weights_and_samples_that_are_not_there_are_refused() {
    let bench = Bench::new();
    bench.write("nodata.toml", WEIGHTS);
    let sweep = |config| ["sensitivity", "digits_cnn.onnx", "-c", config];
    refused(
        &bench,
        &sweep("nodata.toml"),
        expect![[r#"
        -- stderr
        error: nodata.toml: sensitivity is found on samples, and there is neither [evaluation] nor [calibration] that says where they are
        -- exit 2
    "#]],
    );
    let text = fs::read_to_string(bench.path("w8a8.toml")).unwrap();
    let at = text.find("quantizer = ").unwrap();
    let end = at + text[at..].find("\n\n").unwrap();
    bench.write("none.toml", format!("{}quantizer = \"none\"{}", &text[..at], &text[end..]));
    refused(
        &bench,
        &[&sweep("none.toml")[..], &["--slots", "weights"]].concat(),
        expect![[r#"
        -- stderr
        error: the rules give no weight a linear quantizer, so there is nothing to sweep
        -- exit 2
    "#]],
    );
    refused(
        &bench,
        &with(&["--slots", "weights", "--query", "**/[quantizer:activation/input]"]),
        expect![[r#"
        -- stderr
        error: `**/[quantizer:activation/input]` matches no weight with a linear quantizer, so there is nothing to sweep: `c1.input_quantizer` is an activation, `c2.input_quantizer` is an activation, `g1.input_quantizer` is an activation
        -- exit 2
    "#]],
    );
    refused(
        &bench,
        &[
            "sensitivity",
            "digits_cnn.onnx",
            "-c",
            "nodata.toml",
            "--on",
            "calibration",
            "--slots",
            "activations",
        ],
        expect![[r#"
        -- stderr
        error: nodata.toml: --on calibration needs [calibration], which says where the samples are
        -- exit 2
    "#]],
    );
    refused(
        &bench,
        &with(&["--query", "c9"]),
        expect![[r#"
        -- stderr
        error: --query: `c9` matches nothing: no child of the root matches step 1, `c9`; its children are `c1`, `r1`, `p1`, `c2`, `r2`, `p2`, `f`, `g1`, `r3`, `logits`; did you mean `c1`?
        -- exit 2
    "#]],
    );
}

#[test]
fn weights_without_a_graph_are_refused() {
    let bench = Bench::new();
    fs::copy(examples().join("digits/digits_cnn.safetensors"), bench.path("weights.safetensors"))
        .unwrap();
    bench.write("rules.toml", WEIGHTS);
    refused(
        &bench,
        &["sensitivity", "weights.safetensors", "-c", "rules.toml"],
        expect![[r#"
        -- stderr
        error: sensitivity is found by executing the network, and a file of weights has no graph that says how
        -- exit 2
    "#]],
    );
}

#[test]
fn a_file_that_is_read_is_not_replaced() {
    let bench = Bench::new();
    let before = bench.contents(".");
    for (file, why) in [
        ("w8a8.toml", "is read by this job and would be replaced"),
        ("digits_cnn.onnx", "is read by this job and would be replaced"),
        ("digits.safetensors", "is read by this job and would be replaced"),
        ("nowhere/mixed.toml", "there is no folder `nowhere`"),
        (".", "is a folder"),
        ("../mixed.toml", "the paths of data in `w8a8.toml` are relative to its folder"),
    ] {
        let shown = bench.transcript(&with(&["--budget", "4bits", "--write", file]));
        assert!(shown.contains(why) && shown.ends_with("-- exit 2\n"), "{file}: {shown}");
    }
    assert_eq!(bench.contents("."), before);
}
