//! Wrong rules: refused before any computing, with an exit code of their own.

use std::fs;
use std::path::Path;

use expect_test::{Expect, expect};
use fastforward_onnx::pipeline::{Job, JobOptions};

use crate::bench::{Bench, examples};

/// Rules that follow the example's data sections are refused like this, whatever the data.
#[track_caller]
fn check(from: &str, to: &str, expected: Expect) {
    let bench = Bench::new();
    bench.edit_config(from, to);
    // Data that is not there shows that it is not looked for.
    fs::remove_file(bench.path("digits.safetensors")).unwrap();
    let args = ["quantize", "digits_cnn.onnx", "-c", "w8a8.toml", "-o", "out"];
    expected.assert_eq(&bench.transcript(&args));
    assert!(!bench.path("out").exists());
    let planned = bench.run(&["plan", "digits_cnn.onnx", "-c", "w8a8.toml"]);
    assert_eq!(planned.status.code(), Some(3));
}

#[test]
fn a_mistake_in_a_tag() {
    check(
        "[quantizer:parameter/weight]",
        "[quantizer:parameter/wieght]",
        expect![[r#"
        -- stderr
        error: rule `weights` (w8a8.toml:20) matches no quantizer slot: `**/[quantizer:parameter/wieght]` matches nothing: no child of 37 nodes, such as `c1`, matches step 2, `[quantizer:parameter/wieght]`; the children of the latter are `input_quantizer`, `weight_quantizer`, `bias_quantizer`, `output_quantizer`; did you mean `**/[quantizer:parameter/weight]`?
        -- exit 3
    "#]],
    );
}

#[test]
fn a_mistake_in_a_class() {
    check(
        "[cls:Gemm]",
        "[cls:Germ]",
        expect![[r#"
        -- stderr
        error: w8a8.toml:28:31: in the query: unknown class `Germ`
           |
        28 | query = "**/{[cls:Conv], [cls:Germ]}/[quantizer:activation/input]"
           |                               ^^^^ did you mean `Gemm` or `Erf` or `GELU`?
        -- exit 3
    "#]],
    );
}

#[test]
fn a_mistake_in_an_extension() {
    check(
        "[quantizer:activation/input]",
        "[quantiser:activation/input]",
        expect![[r#"
        -- stderr
        error: w8a8.toml:28:39: in the query: `quantiser` is not a known extension
           |
        28 | query = "**/{[cls:Conv], [cls:Gemm]}/[quantiser:activation/input]"
           |                                       ^^^^^^^^^ did you mean `quantizer`?
        -- exit 3
    "#]],
    );
}

#[test]
fn a_mistake_in_the_syntax() {
    check(
        "{[cls:Conv], [cls:Gemm]}",
        "{[cls:Conv], [cls:Gemm]",
        expect![[r#"
        -- stderr
        error: w8a8.toml:28:13: in the query: unclosed `{`, expected `,` or `}`
           |
        28 | query = "**/{[cls:Conv], [cls:Gemm]/[quantizer:activation/input]"
           |             ^
        -- exit 3
    "#]],
    );
}

#[test]
fn a_rule_that_never_wins() {
    check(
        "[[rule]]\nname = \"weights\"",
        "[[rule]]\nname = \"early\"\nquery = \"c1/weight_quantizer\"\nquantizer = \"none\"\n\n[[rule]]\nname = \"weights\"",
        expect![[r#"
            -- stderr
            error: rule `early` (w8a8.toml:20) never wins: the only slot it matches is decided by `weights` (w8a8.toml:25); move it after them, raise its priority, or remove it
            -- exit 3
        "#]],
    );
}

#[test]
fn a_rule_that_matches_too_few() {
    check(
        "name = \"weights\"",
        "name = \"weights\"\nexpect = 5",
        expect![[r#"
        -- stderr
        error: rule `weights` (w8a8.toml:20) matches 4 slots, expected 5
        -- exit 3
    "#]],
    );
}

#[test]
fn a_granularity_that_does_not_fit() {
    check(
        "granularity = \"per_output_channel\"",
        "granularity = { per_channel = 3 }",
        expect![[r#"
        -- stderr
        error: 2 quantizers cannot be made:
          - `g1.weight_quantizer`: PerChannel(channel=3) on data of shape [32, 64]: no axis 3 in 2 dimensions
          - `logits.weight_quantizer`: PerChannel(channel=3) on data of shape [10, 32]: no axis 3 in 2 dimensions
        -- exit 3
    "#]],
    );
}

#[test]
fn a_rule_that_matches_nothing_is_told_once() {
    let bench = Bench::new();
    bench.edit_config("name = \"weights\"", "name = \"weights\"\nexpect = 4");
    bench.edit_config("parameter/weight", "parameter/wieght");
    let shown = bench.transcript(&["plan", "digits_cnn.onnx", "-c", "w8a8.toml", "--quiet"]);
    assert_eq!(shown.matches("error: ").count(), 1, "{shown}");
}

#[test]
fn an_alternative_that_matches_nothing_is_told_where_a_number_is_expected() {
    let bench = Bench::new();
    bench.edit_config("{[cls:Conv], [cls:Gemm]}", "{c1, c2, g1, logit}");
    bench.edit_config("name = \"inputs\"", "name = \"inputs\"\nexpect = 4");
    let shown = bench.transcript(&["plan", "digits_cnn.onnx", "-c", "w8a8.toml", "--quiet"]);
    assert!(
        shown.contains("matches 3 slots, expected 4; ") && shown.contains("`**/logits/"),
        "{shown}"
    );
}

#[test]
fn several_mistakes_are_told_at_once() {
    let bench = Bench::new();
    bench.edit_config("parameter/weight", "parameter/wieght");
    bench.edit_config("activation/input", "activation/inptu");
    let shown = bench.transcript(&["plan", "digits_cnn.onnx", "-c", "w8a8.toml", "--quiet"]);
    let errors: Vec<&str> = shown.lines().filter(|line| line.starts_with("error: ")).collect();
    assert_eq!(errors.len(), 2, "{shown}");
    assert!(shown.ends_with("-- exit 3\n"));
}

/// Every letter of every rule of the examples, wrong once, is refused without any computing, and what was meant is in
/// the message.
#[test]
fn every_one_letter_mistake_in_the_examples_is_refused() {
    for (model, config) in [
        ("digits/digits_cnn.onnx", "digits/w8a8.toml"),
        ("fashion/fashion_cnn.onnx", "fashion/w8a8.toml"),
        ("fashion/fashion_cnn.onnx", "fashion/w4a8.toml"),
    ] {
        one_letter_mistakes(&examples().join(model), &examples().join(config));
    }
}

fn one_letter_mistakes(model: &Path, config: &Path) {
    let text = fs::read_to_string(config).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let edited = folder.path().join("quant.toml");
    let mut tried = 0;
    let mut wrong = Vec::new();
    let mut in_rules = false;
    let mut line_start = 0;
    for line in text.split_inclusive('\n') {
        let start = line_start;
        line_start += line.len();
        in_rules |= line.starts_with("[[rule]]");
        let code = line.split(" #").next().unwrap_or("");
        if !in_rules || code.starts_with('#') || code.starts_with("name") {
            continue;
        }
        for (at, letter) in
            code.char_indices().filter(|(_, c)| c.is_ascii_lowercase() || c.is_ascii_uppercase())
        {
            let word = word_at(code, at);
            // A mistake in one letter of one is any word.
            if word.len() < 3 {
                continue;
            }
            let other = if letter == 'x' { 'y' } else { 'x' };
            let mut mistaken = text.clone();
            mistaken.replace_range(start + at..start + at + 1, &other.to_string());
            fs::write(&edited, &mistaken).unwrap();
            let refused =
                Job::open(model, &edited, &JobOptions::default()).and_then(|job| job.check());
            tried += 1;
            match refused {
                Ok(()) => {
                    wrong.push(format!("accepted: {}", mistaken[start..].lines().next().unwrap()))
                }
                Err(error) if !error.to_string().contains(word) => {
                    wrong.push(format!("no word of `{word}`: {error}"));
                }
                Err(_) => {}
            }
        }
    }
    assert!(tried > 50, "{tried}");
    assert!(wrong.is_empty(), "{} of {tried}:\n{}", wrong.len(), wrong.join("\n\n"));
}

/// The identifier around a letter.
fn word_at(text: &str, at: usize) -> &str {
    let is_part = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let start = text[..at].rfind(|c| !is_part(c)).map_or(0, |before| before + 1);
    let end = text[at..].find(|c| !is_part(c)).map_or(text.len(), |after| at + after);
    &text[start..end]
}
