//! Wrong inputs, as a new user would have them: one clear message, one exit code, and no file left behind.

use expect_test::{Expect, expect};
use safetensors::tensor::{Dtype, TensorView, serialize};

use crate::bench::Bench;

const QUANTIZE: [&str; 6] =
    ["quantize", "digits_cnn.onnx", "--config", "w8a8.toml", "--out", "out"];

/// The main job fails like this and leaves nothing.
#[track_caller]
fn check(bench: &Bench, expected: Expect) {
    expected.assert_eq(&bench.transcript(&QUANTIZE));
    assert!(!bench.path("out").exists(), "something was left behind");
}

#[test]
fn missing_model() {
    let bench = Bench::new();
    std::fs::remove_file(bench.path("digits_cnn.onnx")).unwrap();
    check(
        &bench,
        expect![[r#"
        -- stderr
        error: cannot read `digits_cnn.onnx`: No such file or directory (os error 2)
        -- exit 2
    "#]],
    );
}

#[test]
fn missing_configuration_and_model() {
    let bench = Bench::new();
    std::fs::remove_file(bench.path("digits_cnn.onnx")).unwrap();
    std::fs::remove_file(bench.path("w8a8.toml")).unwrap();
    check(
        &bench,
        expect![[r#"
        -- stderr
        error: 2 problems
          cannot read `digits_cnn.onnx`: No such file or directory (os error 2)
          w8a8.toml cannot be read: no such file
        -- exit 2
    "#]],
    );
}

#[test]
fn truncated_model() {
    let bench = Bench::new();
    let bytes = std::fs::read(bench.path("digits_cnn.onnx")).unwrap();
    bench.write("digits_cnn.onnx", &bytes[..9000]);
    check(
        &bench,
        expect![[r#"
        -- stderr
        error: in `digits_cnn.onnx`: not an ONNX file, or cut short: failed to decode Protobuf message: ModelProto.graph: buffer underflow
        -- exit 2
    "#]],
    );
}

#[test]
fn not_a_model() {
    let bench = Bench::new();
    bench.write("digits_cnn.onnx", "schema_version = 1\n");
    check(
        &bench,
        expect![[r#"
        -- stderr
        error: in `digits_cnn.onnx`: not an ONNX file, or cut short: failed to decode Protobuf message: ModelProto.metadata_props: invalid wire type: StartGroup (expected LengthDelimited)
        -- exit 2
    "#]],
    );
}

#[test]
fn missing_data() {
    let bench = Bench::new();
    std::fs::remove_file(bench.path("digits.safetensors")).unwrap();
    check(
        &bench,
        expect![[r#"
        -- stderr
        error: 2 problems
          in [calibration]: digits.safetensors cannot be opened: no such file
          in [evaluation]: digits.safetensors cannot be opened: no such file
        -- exit 2
    "#]],
    );
}

#[test]
fn truncated_data() {
    let bench = Bench::new();
    let bytes = std::fs::read(bench.path("digits.safetensors")).unwrap();
    bench.write("digits.safetensors", &bytes[..5000]);
    check(
        &bench,
        expect![[r#"
        -- stderr
        error: 2 problems
          in [calibration]: digits.safetensors: truncated: tensor `images` ends at byte 115008 of the data, 4848 are there
          in [evaluation]: digits.safetensors: truncated: tensor `images` ends at byte 115008 of the data, 4848 are there
        -- exit 2
    "#]],
    );
}

#[test]
fn wrong_dtype_in_the_data() {
    let bench = Bench::new();
    bench.edit_config("skip = 1297", "");
    bench.edit_config("samples = 512", "");
    // Eight-bit floats are no images, and floats are no labels.
    let tensors = [
        ("images", TensorView::new(Dtype::F8_E4M3, vec![2, 1, 8, 8], &[1; 128]).unwrap()),
        ("labels", TensorView::new(Dtype::F32, vec![2], &[0; 8]).unwrap()),
    ];
    bench.write("digits.safetensors", serialize(tensors, None).unwrap());
    check(
        &bench,
        expect![[r#"
        -- stderr
        error: 2 problems
          in [calibration]: input `image`: no tensor `images`; digits.safetensors holds `labels`; not usable: `images` (F8_E4M3)
          in [evaluation]: input `image`: no tensor `images`; digits.safetensors holds `labels`; not usable: `images` (F8_E4M3)
        -- exit 2
    "#]],
    );
}

#[test]
fn wrong_shape_in_the_data() {
    let bench = Bench::new();
    bench.edit_config("skip = 1297", "");
    bench.edit_config("samples = 512", "");
    bench.write_data("digits.safetensors", Dtype::U8, &[2, 8, 9], &[1; 144], 2);
    check(
        &bench,
        expect![[r#"
        -- stderr
        error: 2 problems
          in [calibration]: input `image` takes [?, 1, 8, 8], samples of tensor `images` of digits.safetensors have shape [8, 9]
          in [evaluation]: input `image` takes [?, 1, 8, 8], samples of tensor `images` of digits.safetensors have shape [8, 9]
        -- exit 2
    "#]],
    );
}

#[test]
fn empty_calibration_set() {
    let bench = Bench::new();
    bench.write_data("empty.safetensors", Dtype::U8, &[0, 1, 8, 8], &[], 0);
    bench.edit_config(
        "data = \"digits.safetensors\"\nsamples = 512",
        "data = \"empty.safetensors\"",
    );
    check(
        &bench,
        expect![[r#"
        -- stderr
        error: in [calibration]: empty.safetensors: it holds no sample
        -- exit 2
    "#]],
    );
}

#[test]
fn no_calibration_section() {
    let bench = Bench::new();
    bench.edit_config("[calibration]\ndata = \"digits.safetensors\"\nsamples = 512", "");
    check(
        &bench,
        expect![[r#"
        -- stderr
        error: w8a8.toml: the range of `c1.input_quantizer` comes from data, but there is no [calibration] that says where it is
        -- exit 2
    "#]],
    );
}

#[test]
fn nan_in_the_data() {
    let bench = Bench::new();
    let mut values = vec![0.5f32; 128];
    values[100] = f32::NAN;
    let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    bench.write_data("nan.safetensors", Dtype::F32, &[2, 1, 8, 8], &bytes, 2);
    bench.edit_config("data = \"digits.safetensors\"\nsamples = 512", "data = \"nan.safetensors\"");
    check(
        &bench,
        expect![[r#"
        -- stderr
        error: in [calibration]: tensor `images` of nan.safetensors: sample 1 has NaN at element [0, 4, 4]
        -- exit 2
    "#]],
    );
}

#[test]
fn labels_of_another_length() {
    let bench = Bench::new();
    bench.edit_config("skip = 1297", "");
    bench.edit_config("samples = 512", "");
    bench.write_data("digits.safetensors", Dtype::U8, &[2, 1, 8, 8], &[1; 128], 3);
    check(
        &bench,
        expect![[r#"
        -- stderr
        error: in [evaluation]: labels: tensor `labels` of digits.safetensors has 3 labels for 2 samples of tensor `images` of digits.safetensors
        -- exit 2
    "#]],
    );
}

#[test]
fn calibration_and_evaluation_are_checked_together() {
    let bench = Bench::new();
    bench.edit_config("samples = 512", "samples = 5120");
    bench.edit_config("skip = 1297", "skip = 5000");
    check(
        &bench,
        expect![[r#"
        -- stderr
        error: 2 problems
          in [calibration]: digits.safetensors: 5120 samples are asked for, it holds 1797
          in [evaluation]: digits.safetensors: skipping 5000 of 1797 samples leaves none
        -- exit 2
    "#]],
    );
}

#[test]
fn an_output_folder_that_is_a_file() {
    let bench = Bench::new();
    bench.write("out", "mine");
    expect![[r#"
        -- stderr
        error: cannot write into the output folder `out`: Not a directory (os error 20)
        -- exit 2
    "#]]
    .assert_eq(&bench.transcript(&QUANTIZE));
    assert_eq!(std::fs::read(bench.path("out")).unwrap(), b"mine");
}

/// The superuser may write anywhere, so a folder that refuses everybody is used.
#[cfg(target_os = "linux")]
#[test]
fn an_output_folder_that_cannot_be_written() {
    let bench = Bench::new();
    let mut args = QUANTIZE;
    args[5] = "/proc/self/out";
    expect![[r#"
        -- stderr
        error: cannot write into the output folder `/proc/self/out`: No such file or directory (os error 2)
        -- exit 2
    "#]].assert_eq(&bench.transcript(&args));
}

#[test]
fn an_input_is_never_replaced() {
    let bench = Bench::new();
    let model = std::fs::read(bench.path("digits_cnn.onnx")).unwrap();
    std::fs::create_dir(bench.path("out")).unwrap();
    bench.write("out/report.json", "schema_version = 1\n");
    bench.edit_config("schema_version = 1", "schema_version = 1\n# out");
    std::fs::rename(bench.path("w8a8.toml"), bench.path("out/report.json")).unwrap();
    std::fs::rename(bench.path("digits.safetensors"), bench.path("out/digits.safetensors"))
        .unwrap();
    let config = std::fs::read(bench.path("out/report.json")).unwrap();
    let args = ["quantize", "digits_cnn.onnx", "--config", "out/report.json", "--out", "out"];
    expect![[r#"
        -- stderr
        error: `out/report.json` is read by this job and would be replaced
        -- exit 2
    "#]]
    .assert_eq(&bench.transcript(&args));
    assert_eq!(std::fs::read(bench.path("out/report.json")).unwrap(), config);
    assert_eq!(std::fs::read(bench.path("digits_cnn.onnx")).unwrap(), model);
    assert_eq!(bench.contents("out").len(), 2);
}

#[test]
fn what_stands_where_a_result_belongs_is_refused_before_any_computing() {
    let bench = Bench::new();
    std::fs::create_dir_all(bench.path("out/report.json")).unwrap();
    bench.write("out/state", "mine");
    let args = ["quantize", "digits_cnn.onnx", "--config", "w8a8.toml", "--out", "out"];
    expect![[r#"
        -- stderr
        error: 2 problems
          `out/report.json` is a folder; a file is written there
          `out/state` is a file; a folder is made there
        -- exit 2
    "#]]
    .assert_eq(&bench.transcript(&args));
    assert_eq!(std::fs::read(bench.path("out/state")).unwrap(), b"mine");
    assert!(!bench.path("out/digits_cnn.qdq.onnx").exists());
}

#[test]
fn unknown_key() {
    let bench = Bench::new();
    bench.edit_config("num_bits = 8, symmetric = true", "num_bit = 8, symmetric = true");
    check(
        &bench,
        expect![[r#"
        -- stderr
        error: 2 problems in w8a8.toml:

        w8a8.toml:23:13: `quantizer` has no `num_bits`
           |
        23 | quantizer = { type = "linear", num_bit = 8, symmetric = true, granularity = "per_output_channel" }
           |             ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^ add `num_bits = 8`

        w8a8.toml:23:32: unknown key `num_bit` in `quantizer`
           |
        23 | quantizer = { type = "linear", num_bit = 8, symmetric = true, granularity = "per_output_channel" }
           |                                ^^^^^^^ did you mean `num_bits`?
        -- exit 2
    "#]],
    );
}

#[test]
fn unknown_output() {
    let bench = Bench::new();
    bench.edit_config("metric = \"top1\"", "metric = \"top1\"\noutput = \"logit\"");
    check(
        &bench,
        expect![[r#"
        -- stderr
        error: [evaluation]: the model has no output `logit`; did you mean `logits`?
        -- exit 2
    "#]],
    );
}

#[test]
fn unknown_input() {
    let bench = Bench::new();
    bench.edit_config("[inputs.image]", "[inputs.imago]");
    check(
        &bench,
        expect![[r#"
        -- stderr
        error: 2 problems
          in [calibration]: 2 problems with the data:
            - [inputs.imago]: the model has no input `imago`; did you mean `image`?
            - input `image`: no tensor feeds it; digits.safetensors holds `images`, `labels`; name one with `tensor = "..."` in [inputs.image]
          in [evaluation]: [inputs.imago]: the model has no input `imago`; did you mean `image`?
        -- exit 2
    "#]],
    );
}

#[test]
fn a_width_that_no_type_holds() {
    let bench = Bench::new();
    bench.edit_config("num_bits = 8, symmetric = false", "num_bits = 7, symmetric = false");
    check(
        &bench,
        expect![[r#"
        -- stderr
        error: 4 problems
          `c1.input_quantizer`: activations of 7 bits cannot be written; ONNX has types of 2, 4, 8 and 16 bits
          `c2.input_quantizer`: activations of 7 bits cannot be written; ONNX has types of 2, 4, 8 and 16 bits
          `g1.input_quantizer`: activations of 7 bits cannot be written; ONNX has types of 2, 4, 8 and 16 bits
          `logits.input_quantizer`: activations of 7 bits cannot be written; ONNX has types of 2, 4, 8 and 16 bits
        -- exit 3
    "#]],
    );
}

#[test]
fn a_missing_argument() {
    let bench = Bench::new();
    let shown = bench.transcript(&["quantize", "digits_cnn.onnx", "--out", "out"]);
    assert!(shown.contains("--config <FILE>") && shown.ends_with("-- exit 2\n"), "{shown}");
}

#[test]
fn predictions_of_several_models() {
    let bench = Bench::new();
    expect![[r#"
        -- stderr
        error: predictions are written of one model, 2 are given
        -- exit 2
    "#]]
    .assert_eq(&bench.transcript(&[
        "evaluate",
        "digits_cnn.onnx",
        "digits_cnn.onnx",
        "-c",
        "w8a8.toml",
        "--predictions",
        "p.safetensors",
    ]));
    assert!(!bench.path("p.safetensors").exists());
}

#[test]
fn a_metric_that_compares_needs_a_second_model() {
    let bench = Bench::new();
    bench.edit_config("labels = \"labels\"\nmetric = \"top1\"", "metric = \"sqnr\"");
    let shown = bench.transcript(&["evaluate", "digits_cnn.onnx", "--config", "w8a8.toml"]);
    assert_eq!(
        shown,
        "-- stderr\nerror: metric `sqnr` compares models with the first one, and only one is given; name a second, or \
         choose a metric of labels such as `top1`\n-- exit 2\n"
    );
}
