//! What each command prints. The transcript is the specification.

use expect_test::{Expect, expect};
use serde_json::Value;

use crate::bench::Bench;

#[track_caller]
fn check(args: &[&str], expected: Expect) {
    expected.assert_eq(&Bench::new().transcript(args));
}

#[test]
fn inspect_shows_modules_and_parameters() {
    check(
        &["inspect", "digits_cnn.onnx"],
        expect![[r#"
        digits_cnn.onnx: 15.4 kB, opset 13, IR 8
          input      image: float32 [N, 1, 8, 8]
          output     logits: float32 [N, 10]
          nodes      10
          parameters 3,658 in 8 tensors, 14.6 kB
          slots      26

        c1: Conv
          weight: float32 [8, 1, 3, 3]  288 B
          bias: float32 [8]  32 B
        r1: Relu
        p1: MaxPool
        c2: Conv
          weight: float32 [16, 8, 3, 3]  4.6 kB
          bias: float32 [16]  64 B
        r2: Relu
        p2: MaxPool
        f: Flatten
        g1: Gemm
          weight: float32 [32, 64]  8.2 kB
          bias: float32 [32]  128 B
        r3: Relu
        logits: Gemm
          weight: float32 [10, 32]  1.3 kB
          bias: float32 [10]  40 B
        -- exit 0
    "#]],
    );
}

#[test]
fn inspect_shows_slots_when_asked() {
    check(
        &["inspect", "digits_cnn.onnx", "--slots", "--depth", "1"],
        expect![[r#"
        digits_cnn.onnx: 15.4 kB, opset 13, IR 8
          input      image: float32 [N, 1, 8, 8]
          output     logits: float32 [N, 10]
          nodes      10
          parameters 3,658 in 8 tensors, 14.6 kB
          slots      26

        c1: Conv
        r1: Relu
        p1: MaxPool
        c2: Conv
        r2: Relu
        p2: MaxPool
        f: Flatten
        g1: Gemm
        r3: Relu
        logits: Gemm
        -- stderr
        34 lines below are not shown
        -- exit 0
    "#]],
    );
}

#[test]
fn find_lists_matches_in_the_order_of_the_model() {
    check(
        &["find", "digits_cnn.onnx", "{c1, g1}/**/[quantizer:parameter]"],
        expect![[r#"
        name                 kind  class          shape         tags
        c1.weight_quantizer  slot  QuantizerStub  [8, 1, 3, 3]  #before/conv #parameter/weight
        c1.bias_quantizer    slot  QuantizerStub  [8]           #before/conv #parameter/bias
        g1.weight_quantizer  slot  QuantizerStub  [32, 64]      #before/gemm #parameter/weight
        g1.bias_quantizer    slot  QuantizerStub  [32]          #before/gemm #parameter/bias
        -- stderr
        0 modules and 4 slots
        -- exit 0
    "#]],
    );
}

#[test]
fn find_knows_aliases() {
    check(
        &["find", "digits_cnn.onnx", "**/&conv", "--alias", "conv=[cls:Conv]", "--quiet"],
        expect![[r#"
            name  kind    class
            c1    module  Conv
            c2    module  Conv
            -- exit 0
        "#]],
    );
}

#[test]
fn find_says_why_nothing_matches() {
    check(
        &["find", "digits_cnn.onnx", "**/[quantizer:paramter/weight]"],
        expect![[r#"
        -- stderr
        `**/[quantizer:paramter/weight]` matches nothing: no child of 37 nodes, such as `c1`, matches step 2, `[quantizer:paramter/weight]`; the children of the latter are `input_quantizer`, `weight_quantizer`, `bias_quantizer`, `output_quantizer`; did you mean `**/[quantizer:parameter/weight]`?
        -- exit 1
    "#]],
    );
}

#[test]
fn find_points_at_a_mistake_in_the_query() {
    check(
        &["find", "digits_cnn.onnx", "**/[quantizer:parameter/weight"],
        expect![[r#"
        -- stderr
        error: query parse error:
            **/[quantizer:parameter/weight
               ^
        error: unclosed `[`, expected `]`
        -- exit 2
    "#]],
    );
}

#[test]
fn find_suggests_the_nearest_class() {
    check(
        &["find", "digits_cnn.onnx", "**/[cls:Convv]"],
        expect![[r#"
        -- stderr
        error: query parse error:
            **/[cls:Convv]
                    ^^^^^
        error: unknown class `Convv`
        help: did you mean `Conv`, `Conv1d` or `Conv2d`?
        -- exit 2
    "#]],
    );
}

#[test]
fn why_shows_the_step_at_which_a_path_stops_matching() {
    check(
        &["find", "digits_cnn.onnx", "c1/[quantizer:parameter]", "--why", "c1.input_quantizer"],
        expect![[r#"
            `c1.input_quantizer` does not match: step 2, `[quantizer:parameter]`, does not match `input_quantizer`
                c1/[quantizer:parameter]
                   ^^^^^^^^^^^^^^^^^^^^^
            in `c1` there are input_quantizer, weight_quantizer, bias_quantizer, output_quantizer
            -- exit 1
        "#]],
    );
}

#[test]
fn why_suggests_paths() {
    check(
        &["find", "digits_cnn.onnx", "**", "--why", "c1.wieght_quantizer"],
        expect![[r#"
        -- stderr
        error: `c1.wieght_quantizer` names no node: `c1` has no child `wieght_quantizer`; did you mean `weight_quantizer`, `input_quantizer` or `bias_quantizer`?
        -- exit 2
    "#]],
    );
}

#[test]
fn plan_shows_every_slot_and_touches_no_data() {
    let bench = Bench::new();
    std::fs::remove_file(bench.path("digits.safetensors")).unwrap();
    expect![[r#"
        digits_cnn.onnx: 15.4 kB, opset 13, IR 8
          input      image: float32 [N, 1, 8, 8]
          output     logits: float32 [N, 10]
          nodes      10
          parameters 3,658 in 8 tensors, 14.6 kB
          slots      26

        line  rule     query                                                     matches  decides
          20  weights  **/[quantizer:parameter/weight]                                 4        4
          26  inputs   **/{[cls:Conv], [cls:Gemm]}/[quantizer:activation/input]        4        4

        slot                     rule     bits  per        range
        c1.input_quantizer       inputs      8  tensor     min-max
        c1.weight_quantizer      weights     8  channel 0  min-max
        c1.bias_quantizer        -           -
        c1.output_quantizer      -           -
        r1.input_quantizer       -           -
        r1.output_quantizer      -           -
        p1.input_quantizer       -           -
        p1.output_quantizer      -           -
        c2.input_quantizer       inputs      8  tensor     min-max
        c2.weight_quantizer      weights     8  channel 0  min-max
        c2.bias_quantizer        -           -
        c2.output_quantizer      -           -
        r2.input_quantizer       -           -
        r2.output_quantizer      -           -
        p2.input_quantizer       -           -
        p2.output_quantizer      -           -
        g1.input_quantizer       inputs      8  tensor     min-max
        g1.weight_quantizer      weights     8  channel 0  min-max
        g1.bias_quantizer        -           -
        g1.output_quantizer      -           -
        r3.input_quantizer       -           -
        r3.output_quantizer      -           -
        logits.input_quantizer   inputs      8  tensor     min-max
        logits.weight_quantizer  weights     8  channel 0  min-max
        logits.bias_quantizer    -           -
        logits.output_quantizer  -           -

        8 of 26 slots get a quantizer; constants 14.6 kB -> 4.2 kB (28.6 %)
        -- exit 0
    "#]]
    .assert_eq(&bench.transcript(&["plan", "digits_cnn.onnx", "-c", "w8a8.toml"]));
}

#[test]
fn plan_shows_losers() {
    let bench = Bench::new();
    bench.write(
        "two.toml",
        "schema_version = 1\n\
         [[rule]]\nname = 'all'\nquery = '**/[quantizer:parameter/weight]'\n\
         quantizer = { type = 'linear', num_bits = 8 }\n\
         [[rule]]\nquery = '{c1, g1}/[quantizer:parameter/weight]'\nquantizer = 'none'\n",
    );
    let shown = bench.transcript(&["plan", "digits_cnn.onnx", "-c", "two.toml"]);
    let lines: Vec<&str> = shown.lines().filter(|line| line.contains("weight_quantizer")).collect();
    expect![[r#"
        c1.weight_quantizer      line 6     -                   all
        c2.weight_quantizer      all        8  tensor  min-max
        g1.weight_quantizer      line 6     -                   all
        logits.weight_quantizer  all        8  tensor  min-max"#]]
    .assert_eq(&lines.join("\n"));
}

#[test]
fn explain_tells_the_story_of_a_slot() {
    check(
        &["explain", "digits_cnn.onnx", "-c", "w8a8.toml", "c1.weight_quantizer"],
        expect![[r#"
            c1.weight_quantizer
              stands at    weight of a Conv, value `conv1.weight`
              tags         #before/conv #parameter/weight
              shape        [8, 1, 3, 3], output channels on axis 0
              quantizer    LinearQuantizer(num_bits=8, symmetric=True, granularity=PerChannel(channel=0))
              range        min-max
              exported as  int8 codes, operator set 13 or newer
              bytes        288 B -> 112 B (38.9 %)

            line 20 `weights`: decides, score 1
              **/[quantizer:parameter/weight] => LinearQuantizer(num_bits=8, symmetric=True, granularity=PerChannel(channel=output))
            line 26 `inputs`: does not match
              `c1.weight_quantizer` does not match: step 3, `[quantizer:activation/input]`, does not match `weight_quantizer`
                  **/{[cls:Conv], [cls:Gemm]}/[quantizer:activation/input]
                                              ^^^^^^^^^^^^^^^^^^^^^^^^^^^^
              in `c1` there are input_quantizer, weight_quantizer, bias_quantizer, output_quantizer
            -- exit 0
        "#]],
    );
}

#[test]
fn explain_knows_slots_by_slashes_too() {
    let args = |path| ["explain", "digits_cnn.onnx", "-c", "w8a8.toml", path];
    let bench = Bench::new();
    assert_eq!(
        bench.transcript(&args("c1/weight_quantizer")),
        bench.transcript(&args("c1.weight_quantizer"))
    );
}

#[test]
fn explain_suggests_slots() {
    check(
        &["explain", "digits_cnn.onnx", "-c", "w8a8.toml", "c1.wieght_quantizer"],
        expect![[r#"
        -- stderr
        error: the model has no slot `c1.wieght_quantizer`; did you mean `c1.weight_quantizer` or `c2.weight_quantizer` or `g1.weight_quantizer`?
        -- exit 2
    "#]],
    );
    check(
        &["explain", "digits_cnn.onnx", "-c", "w8a8.toml", "c1"],
        expect![[r#"
        -- stderr
        error: the model has no slot `c1`; it is a module, its slots are `c1.input_quantizer`, `c1.weight_quantizer`, `c1.bias_quantizer`, `c1.output_quantizer`
        -- exit 2
    "#]],
    );
}

#[test]
fn dry_run_says_what_would_be_done() {
    let bench = Bench::new();
    let shown = bench.transcript(&[
        "quantize",
        "digits_cnn.onnx",
        "-c",
        "w8a8.toml",
        "-o",
        "out",
        "--dry-run",
    ]);
    let end: Vec<&str> = shown.lines().skip_while(|line| !line.starts_with("8 of 26")).collect();
    expect![[r#"
        8 of 26 slots get a quantizer; constants 14.6 kB -> 4.2 kB (28.6 %)
        calibration: 512 samples in batches of 64
        evaluation: 500 samples in batches of 64
        would write
          out/digits_cnn.qdq.onnx
          out/report.json
          out/state/state.json
          out/state/state.safetensors
        -- stderr
        nothing was computed, nothing was written
        -- exit 0"#]]
    .assert_eq(&end.join("\n"));
    assert!(!bench.path("out").exists());
}

/// Decibels and divergences depend on the vector instructions of the machine, so only what does not is compared.
#[test]
fn quantize_shows_float_beside_quantized_and_what_was_verified() {
    let bench = Bench::new();
    let args = ["quantize", "digits_cnn.onnx", "--config", "w8a8.toml", "--out", "out"];
    let shown = bench.transcript(&args);
    let facts: Vec<String> = shown
        .lines()
        .filter(|line| !line.contains("quantizer ") && !line.starts_with("quantized"))
        .map(|line| {
            line.chars().take_while(|c| *c != '(').collect::<String>().trim_end().to_owned()
        })
        .collect();
    assert!(facts[0].starts_with("model"), "{shown}");
    assert!(facts[1].starts_with("float") && facts[1].contains("95.00"), "{shown}");
    let end: Vec<&str> = facts
        .iter()
        .map(String::as_str)
        .skip_while(|line| !line.starts_with("constants"))
        .collect();
    expect![[r#"
        constants  14.6 kB -> 4.5 kB
        file       15.4 kB -> 7.8 kB
        opset      13, as before
        verified   8 constants and 4 activations read back exactly
        verified   `logits` computed from the file is equal to the simulation
        written    out/digits_cnn.qdq.onnx
                   out/report.json
        -- exit 0"#]]
    .assert_eq(&end.join("\n"));
}

#[test]
fn json_holds_what_the_text_says() {
    let bench = Bench::new();
    let json = |args: &[&str]| -> Value {
        let output = bench.run(args);
        serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{args:?}: {error}"))
    };
    let job = ["digits_cnn.onnx", "--config", "w8a8.toml", "--json"];
    let inspected = json(&["inspect", "digits_cnn.onnx", "--json"]);
    assert_eq!(inspected["parameters"]["elements"], 3658);
    let found = json(&["find", "digits_cnn.onnx", "**/[quantizer:parameter]", "--json"]);
    assert_eq!(found["matches"].as_array().unwrap().len(), 8);
    let why = json(&["find", "digits_cnn.onnx", "c1", "--why", "c2", "--json"]);
    assert_eq!((&why["matches"], &why["stops"]["span"]["end"]), (&false.into(), &2.into()));
    let plan = json(&[&["plan"], &job[..]].concat());
    assert_eq!(plan["slots"].as_array().unwrap().len(), 26);
    assert_eq!(plan["slots"][1]["quantizer"]["num_bits"], 8);
    let story = json(&[&["explain"], &job[..], &["c1.weight_quantizer"]].concat());
    assert_eq!(story["verdicts"][0]["verdict"], "wins");
    let report = json(&[&["quantize"], &job[..], &["--out", "out"]].concat());
    let written: Value =
        serde_json::from_slice(&std::fs::read(bench.path("out/report.json")).unwrap()).unwrap();
    assert_eq!(report, written);
    let models = ["digits_cnn.onnx", "out/digits_cnn.qdq.onnx"];
    let scores = json(&[&["evaluate"], &models[..], &job[1..]].concat());
    assert_eq!(scores["models"], report["evaluation"]["models"]);
}

#[test]
fn help_documents_exit_codes() {
    let shown = Bench::new().transcript(&["--help"]);
    for line in ["Exit codes:", "  3  the rules are wrong"] {
        assert!(shown.contains(line), "{shown}");
    }
    assert!(shown.ends_with("-- exit 0\n"));
}

#[test]
fn completions_are_written_for_every_shell() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let output = Bench::new().run(&["completions", shell]);
        let script = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success() && script.contains("all-layers"), "{shell}: {script}");
    }
}
