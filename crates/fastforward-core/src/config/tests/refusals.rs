//! Keys, values and texts that are refused.

use super::*;

#[test]
fn unknown_keys_are_refused_everywhere_at_once() {
    refused(
        r#"
modle = 1
[model]
fold_batch_norms = true
[inputs.image]
tensr = "x"
[calibration]
data = "c.npy"
sample = 3
[evaluation]
data = "e.npy"
labels = "y"
metric = "top2"
[export]
activation = "u8"
[[rule]]
quary = "**"
query = "**"
quantizer = "none"
"#,
        expect![[r#"
            7 problems in w8a8.toml:

            w8a8.toml:3:1: unknown key `modle` in the file
              |
            3 | modle = 1
              | ^^^^^ did you mean `model`?

            w8a8.toml:5:1: unknown key `fold_batch_norms` in [model]
              |
            5 | fold_batch_norms = true
              | ^^^^^^^^^^^^^^^^ did you mean `fold_batch_norm`?

            w8a8.toml:7:1: unknown key `tensr` in [inputs.image]
              |
            7 | tensr = "x"
              | ^^^^^ did you mean `tensor`?

            w8a8.toml:10:1: unknown key `sample` in [calibration]
               |
            10 | sample = 3
               | ^^^^^^ did you mean `samples`?

            w8a8.toml:14:10: unknown metric `top2` in [evaluation]
               |
            14 | metric = "top2"
               |          ^^^^^^ did you mean `top1`?

            w8a8.toml:16:1: unknown key `activation` in [export]
               |
            16 | activation = "u8"
               | ^^^^^^^^^^ did you mean `activations`?

            w8a8.toml:18:1: unknown key `quary` in [[rule]]
               |
            18 | quary = "**"
               | ^^^^^ did you mean `query`?"#]],
    );
}

#[test]
fn a_missing_key_is_reported_where_it_belongs() {
    refused(
        "[calibration]\nsamples = 3\n\n[[rule]]\noptional = true\n",
        expect![[r#"
        3 problems in w8a8.toml:

        w8a8.toml:2:1: [calibration] has no `data`
          |
        2 | [calibration]
          | ^^^^^^^^^^^^^ add `data = "samples.safetensors"`

        w8a8.toml:5:1: [[rule]] has no `query`
          |
        5 | [[rule]]
          | ^^^^^^^^ add `query = "**/[quantizer:parameter/weight]"`

        w8a8.toml:5:1: [[rule]] has no `quantizer`
          |
        5 | [[rule]]
          | ^^^^^^^^ add `quantizer = { type = "linear", num_bits = 8 }`"#]],
    );
}

#[test]
fn values_that_contradict_each_other() {
    refused(
        r#"
[inputs.ids]
dtype = "i64"
divide_by = 255
[inputs.image]
scale = 2
divide_by = 2
mean = [1, 2]
std = [1, 2, 3]
reshape = [-1, 28, 28]
[inputs.other]
channel_axis = 1
[evaluation]
data = "e.npy"
metric = "top1"
max_metric = 3
[[rule]]
query = "a"
name = "same"
quantizer = "none"
optional = true
expect = 0
[[rule]]
query = " "
name = "same"
quantizer = "none"
optional = true
expect = 3
"#,
        expect![[r#"
            11 problems in w8a8.toml:

            w8a8.toml:5:13: [inputs.ids] has dtype i64, integers cannot be scaled or normalized
              |
            5 | divide_by = 255
              |             ^^^ remove `divide_by`

            w8a8.toml:8:13: [inputs.image] has `scale` and `divide_by`
              |
            8 | divide_by = 2
              |             ^ remove one of them

            w8a8.toml:10:7: `mean` has 2 values, `std` has 3
               |
            10 | std = [1, 2, 3]
               |       ^^^^^^^^^ give one per channel

            w8a8.toml:11:11: `reshape` must be the shape of one sample, in positive numbers
               |
            11 | reshape = [-1, 28, 28]
               |           ^^^^^^^^^^^^ leave out the batch axis: [28, 28]

            w8a8.toml:13:16: `channel_axis` needs `mean` or `std`
               |
            13 | channel_axis = 1
               |                ^

            w8a8.toml:16:10: metric `top1` compares with labels
               |
            16 | metric = "top1"
               |          ^^^^^^ add `labels = "..."`, the name of a tensor with one class index per sample

            w8a8.toml:17:14: for metric `top1` larger is better
               |
            17 | max_metric = 3
               |              ^ use `min_metric`

            w8a8.toml:23:10: `expect` must be a positive number of matches
               |
            23 | expect = 0
               |          ^ write `expect = 32` or `expect = ">=1"`

            w8a8.toml:25:9: `query` is empty
               |
            25 | query = " "
               |         ^^^ `**` matches everything

            w8a8.toml:26:8: the rule of line 18 has this name already
               |
            26 | name = "same"
               |        ^^^^^^

            w8a8.toml:29:10: `expect` says how many slots must match, `optional = true` that none need to
               |
            29 | expect = 3
               |          ^ remove one of them"#]],
    );
    refused(
        "[evaluation]\ndata = 'e'\nmetric = 'mse'\nmin_metric = 1\nmax_drop = 1\n",
        expect![[r#"
            2 problems in w8a8.toml:

            w8a8.toml:5:14: metric `mse` measures an error, which has no floor
              |
            5 | min_metric = 1
              |              ^ use `max_metric`

            w8a8.toml:6:12: metric `mse` compares with the float model, which has no value to drop from
              |
            6 | max_drop = 1
              |            ^ use `max_metric`"#]],
    );
}

#[test]
fn values_of_the_wrong_type() {
    refused(
        r#"
aliases = 3
inputs = []
rule = { query = "**" }
[calibration]
data = 3
samples = 0
batch_size = -1
[evaluation]
data = { x = 1 }
labels = ["y"]
"#,
        expect![[r#"
            8 problems in w8a8.toml:

            w8a8.toml:3:11: [aliases] must be a table, found an integer
              |
            3 | aliases = 3
              |           ^

            w8a8.toml:4:10: [inputs] must be a table, found a list
              |
            4 | inputs = []
              |          ^^

            w8a8.toml:5:8: `rule` must be a list of tables
              |
            5 | rule = { query = "**" }
              |        ^^^^^^^^^^^^^^^^ write [[rule]] with two brackets

            w8a8.toml:7:8: `data` must be the path of a file or folder, found an integer
              |
            7 | data = 3
              |        ^

            w8a8.toml:8:11: `samples` must be at least 1
              |
            8 | samples = 0
              |           ^

            w8a8.toml:9:14: `batch_size` must be at least 1
              |
            9 | batch_size = -1
              |              ^^

            w8a8.toml:11:14: `data.x` must be the path of a file or folder, found an integer
               |
            11 | data = { x = 1 }
               |              ^

            w8a8.toml:12:10: `labels` must be a string, found a list
               |
            12 | labels = ["y"]
               |          ^^^^^"#]],
    );
}

#[test]
fn text_that_is_no_toml() {
    refused(
        "[[rule]\nquery = \"**\"\n",
        expect![[r#"
        w8a8.toml:2:8: not valid TOML: unclosed array table, expected `]`
          |
        2 | [[rule]
          |        ^"#]],
    );
    refused(
        "a = \n[model]\nfold_batch_norm = treu\n",
        expect![[r#"
            2 problems in w8a8.toml:

            w8a8.toml:2:5: not valid TOML: a value is missing
              |
            2 | a =
              |     ^

            w8a8.toml:4:19: not valid TOML: invalid boolean, expected `true`
              |
            4 | fold_batch_norm = treu
              |                   ^^^^ did you mean `true`?"#]],
    );
    refused(
        "[model]\n[model]\n",
        expect![[r#"
        w8a8.toml:3:2: not valid TOML: duplicate key
          |
        3 | [model]
          |  ^^^^^"#]],
    );
    refused(
        "[rule]\n[[rule]]\n",
        expect![[r#"
        w8a8.toml:3:3: not valid TOML: duplicate key
          |
        3 | [[rule]]
          |   ^^^^"#]],
    );
    // What follows on the line is the parser looking for its way back.
    refused(
        "a = { b = \"\"c\", d = 8 }\n",
        expect![[r#"
        w8a8.toml:2:13: not valid TOML: missing comma between key-value pairs, expected `,`
          |
        2 | a = { b = ""c", d = 8 }
          |             ^"#]],
    );
    refused(
        "query = \"unclosed",
        expect![[r#"
        w8a8.toml:2:18: not valid TOML: invalid basic string, expected `"`
          |
        2 | query = "unclosed
          |                  ^"#]],
    );
}

#[test]
fn another_schema_version_is_refused_by_that_alone() {
    for (text, expected) in [
        (
            "",
            "w8a8.toml:1:1: the file has no `schema_version`\n  |\n1 |\n  | ^ this program reads `schema_version = 1`",
        ),
        (
            "schema_verson = 1\n",
            "w8a8.toml:1:1: unknown key `schema_verson` in the file\n  |\n1 | schema_verson = 1\n  | ^^^^^^^^^^^^^ did you mean `schema_version`?",
        ),
        (
            "a = 1\nschema_version = 2\n",
            "w8a8.toml:2:18: schema version 2 is not supported\n  |\n2 | schema_version = 2\n  |                  ^ this program reads `schema_version = 1`",
        ),
        (
            "schema_version = '1'\n",
            "w8a8.toml:1:18: `schema_version` must be an integer\n  |\n1 | schema_version = '1'\n  |                  ^^^ this program reads `schema_version = 1`",
        ),
    ] {
        assert_eq!(parse(text).unwrap_err().to_string(), expected);
    }
}

#[test]
fn files_that_cannot_be_read() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("no.toml");
    let message = QuantConfigFile::load(&path).unwrap_err().to_string();
    assert_eq!(message, format!("{} cannot be read: no such file", path.display()));
    std::fs::write(&path, b"a = \xff").unwrap();
    let message = QuantConfigFile::load(&path).unwrap_err().to_string();
    assert_eq!(message, format!("{} is not UTF-8 text: byte 4 is none", path.display()));
    std::fs::write(&path, "schema_version = 1\n[calibration]\ndata = 'c.npy'\n").unwrap();
    let data = QuantConfigFile::load(&path).unwrap().calibration.unwrap().data.data;
    assert_eq!(data, DataPath::One(folder.path().join("c.npy")));
}
