use std::path::{Path, PathBuf};

use expect_test::{Expect as Expected, expect};

use super::*;
use crate::data::{ArrayData, DataPath, Dataset, EachFile, InputType, ModelInput};
use crate::quantization::affine::{OneSided, RangeSettings};
use crate::quantization::quant_init::{ChannelAxis, Expect, QuantizerSpec, default_context};
use crate::quantization::{DynamicLinearQuantizerConfig, Granularity, LinearQuantizerConfig};
use crate::range_setting::EstimatorConfig;

fn parse(text: &str) -> Result<QuantConfigFile, Error> {
    QuantConfigFile::parse(text, "w8a8.toml", Path::new("folder"))
}

/// The whole message of a text that is refused; the version stands in the first line.
#[track_caller]
fn refused(text: &str, expected: Expected) {
    let error = parse(&format!("schema_version = 1\n{text}")).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Config);
    expected.assert_eq(&error.to_string());
}

/// The rule with this quantizer.
#[track_caller]
fn quantizer(text: &str) -> RuleEntry {
    let text = format!("schema_version = 1\n[[rule]]\nquery = '**'\nquantizer = {text}\n");
    parse(&text).unwrap_or_else(|error| panic!("{error}")).rules.remove(0)
}

/// Why the rule with this quantizer is refused, without the excerpt.
#[track_caller]
fn refused_quantizer(text: &str, expected: &str) {
    let text = format!("schema_version = 1\n[[rule]]\nquery = '**'\nquantizer = {text}\n");
    let message = parse(&text).unwrap_err().to_string();
    let first = message.lines().next().unwrap_or_default();
    let help = message.lines().last().unwrap_or_default();
    let help = help.trim_start_matches([' ', '|', '^']);
    assert_eq!(format!("{first}; {help}").trim_end_matches("; "), expected);
}

const WHOLE: &str = r#"
schema_version = 1

[model]
fold_batch_norm = true

[inputs.image]
tensor = "images"
dtype = "f32"
divide_by = 255
mean = [0.5, 0.25]
std = 2
channel_axis = -3
reshape = [2, 28, 28]
transpose = [0, 2, 1]

[inputs.ids]

[calibration]
data = "calib.safetensors"
samples = 512
batch_size = 32

[evaluation]
data = { image = "images.npy", ids = "/abs/ids" }
each_file = "batch"
skip = 3
labels = "labels"
metric = "top5"
output = "logits"
min_metric = 90.5
max_drop = 1

[export]
activations = "s8"

[aliases]
weights = "**/[quantizer:parameter/weight]"
attention = "&weights"

[[rule]]
name = "weights"
query = "&weights"
quantizer = { type = "linear", num_bits = 4, granularity = { per_channel = 0 } }
range = { estimator = "min_error_grid", num_candidates = 50 }
expect = ">=1"

[[rule]]
query = 'head/**'
quantizer = "none"
optional = true
priority = 7
"#;

#[test]
fn every_section_is_read() {
    let config = parse(WHOLE).unwrap_or_else(|error| panic!("{error}"));
    assert!(config.model.fold_batch_norm);
    assert_eq!(config.inputs.keys().collect::<Vec<_>>(), ["image", "ids"]);
    assert_eq!(
        config.inputs["image"],
        InputSpec {
            tensor: Some("images".to_owned()),
            dtype: Some(InputType::F32),
            scale: None,
            divide_by: Some(255.0),
            mean: vec![0.5, 0.25],
            std: vec![2.0],
            channel_axis: Some(-3),
            reshape: Some(vec![2, 28, 28]),
            transpose: Some(vec![0, 2, 1]),
        }
    );
    assert_eq!(config.inputs["ids"], InputSpec::default());

    let calibration = config.calibration.unwrap();
    assert_eq!(calibration.data.data, DataPath::One(PathBuf::from("folder/calib.safetensors")));
    assert_eq!((calibration.data.samples, calibration.batch_size), (Some(512), 32));

    let evaluation = config.evaluation.unwrap();
    let files = [("image", "folder/images.npy"), ("ids", "/abs/ids")];
    let files = files.map(|(name, path)| (name.to_owned(), PathBuf::from(path)));
    assert_eq!(evaluation.data.data, DataPath::Several(files.into_iter().collect()));
    assert_eq!(evaluation.data.each_file, EachFile::Batch);
    assert_eq!((evaluation.data.skip, evaluation.data.samples), (3, None));
    assert_eq!(evaluation.data.labels.as_deref(), Some("labels"));
    assert_eq!((evaluation.metric, evaluation.output.as_deref()), (Metric::Top5, Some("logits")));
    assert_eq!((evaluation.min_metric, evaluation.max_drop), (Some(90.5), Some(1.0)));
    assert_eq!(config.export.activations, Some(ActivationType::Signed));

    let aliases: Vec<_> =
        config.aliases.iter().map(|alias| (&*alias.name, &*alias.query.text)).collect();
    let expected = [("weights", "**/[quantizer:parameter/weight]"), ("attention", "&weights")];
    assert_eq!(aliases, expected);

    let [weights, head] = &config.rules[..] else { panic!("{:?}", config.rules) };
    assert_eq!(
        (weights.name.as_deref(), weights.query.text.as_str()),
        (Some("weights"), "&weights")
    );
    assert_eq!((&*weights.source, weights.line, weights.query.line), ("w8a8.toml:41", 41, 43));
    assert_eq!((weights.query.column, weights.expect), (9, Some(Expect::AtLeast(1))));
    assert_eq!(
        weights.quantizer,
        QuantizerSpec::Linear {
            config: LinearQuantizerConfig::new(4).with_granularity(Granularity::per_channel(0)),
            channel: ChannelAxis::AsGiven,
        }
    );
    assert_eq!((weights.optional, weights.priority), (false, 1));
    assert_eq!((&head.quantizer, &head.estimator), (&QuantizerSpec::None, &None));
    assert_eq!((head.optional, head.priority, head.line), (true, 7, 48));
}

/// What a configuration says, without where it says it.
fn content(config: &QuantConfigFile) -> impl PartialEq + std::fmt::Debug {
    let QuantConfigFile { model, inputs, calibration, evaluation, export, aliases, rules, .. } =
        config.clone();
    let aliases: Vec<_> = aliases.into_iter().map(|alias| (alias.name, alias.query.text)).collect();
    let rules: Vec<_> = rules
        .into_iter()
        .map(|rule| {
            let RuleEntry { name, query, quantizer, estimator, optional, expect, priority, .. } =
                rule;
            (name, query.text, quantizer, estimator, optional, expect, priority)
        })
        .collect();
    (model, inputs, calibration, evaluation, export, aliases, rules)
}

#[track_caller]
fn round_trips(config: &QuantConfigFile, folder: &Path) {
    let text = config.to_toml(folder);
    let again = QuantConfigFile::parse(&text, "again.toml", folder)
        .unwrap_or_else(|error| panic!("{text}\n{error}"));
    assert_eq!(content(&again), content(config), "{text}");
    assert_eq!(again.to_toml(folder), text);
}

#[test]
fn what_is_written_reads_back_the_same() {
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples");
    for file in ["fashion/w8a8.toml", "fashion/w4a8.toml", "digits/w8a8.toml"] {
        let path = examples.join(file);
        round_trips(&QuantConfigFile::load(&path).unwrap(), path.parent().unwrap());
    }
    round_trips(&parse(WHOLE).unwrap(), Path::new("folder"));
    for text in QUANTIZERS {
        let text = format!("schema_version = 1\n[[rule]]\nquery = '**'\nquantizer = {text}\n");
        round_trips(&parse(&text).unwrap(), Path::new("folder"));
    }
    for range in ESTIMATORS {
        let quantizer = "{ type = 'linear', num_bits = 8 }";
        let text = format!(
            "schema_version = 1\n[[rule]]\nquery = '**'\nquantizer = {quantizer}\nrange = {range}\n"
        );
        round_trips(&parse(&text).unwrap(), Path::new("folder"));
    }
    // Names and texts that must be quoted and escaped.
    let odd = r#"
schema_version = 1
[inputs."a.b \"c\" \\ \n"]
tensor = "tab\t quote\" newline\n é"
[calibration]
data = { "x/y" = "/abs/é.npy", z = "sub folder/z.npy" }
[[rule]]
query = """
a/[re:"\\]"]
"""
quantizer = "none"
"#;
    round_trips(&parse(odd).unwrap(), Path::new("folder"));
}

const QUANTIZERS: [&str; 6] = [
    "{ type = 'linear', num_bits = 4, symmetric = false, granularity = 'per_output_channel' }",
    "{ type = 'linear', num_bits = 8, allow_one_sided = false, zero_in_range = false, granularity = { per_channel = [0, -1] } }",
    "{ type = 'linear', num_bits = 8, narrow_range = true, scale_floor = false, granularity = { per_channel = [] } }",
    "{ type = 'linear', num_bits = 8, power_of_two = true, one_sided = 'per_tile', granularity = { per_tile = [1, 32] } }",
    "{ type = 'linear', num_bits = 8, granularity = { per_block = { dims = [1], sizes = [32], per_channel_dims = [0] } } }",
    "{ type = 'dynamic_linear', num_bits = 8, symmetric = true, granularity = { per_channel = 1 } }",
];

const ESTIMATORS: [&str; 4] = [
    "{ estimator = 'running_minmax' }",
    "{ estimator = 'smoothed_minmax', gamma = 0.1 }",
    "{ estimator = 'min_error_grid', num_candidates = 7 }",
    "{ estimator = 'percentile', percentile = 99.99 }",
];

#[test]
fn what_is_left_out_has_a_default() {
    let config =
        parse("schema_version = 1\n[calibration]\ndata = 'c.npy'\n[evaluation]\ndata = 'e.npy'\n")
            .unwrap();
    assert_eq!((config.model, config.export), (ModelSection::default(), ExportSection::default()));
    assert_eq!(config.calibration.unwrap().batch_size, 64);
    let evaluation = config.evaluation.unwrap();
    assert_eq!((evaluation.metric, evaluation.output), (Metric::Sqnr, None));
    assert!(config.rules.is_empty() && config.inputs.is_empty());
    let labelled = "schema_version = 1\n[evaluation]\ndata = 'e.npy'\nlabels = 'y'\n";
    assert_eq!(parse(labelled).unwrap().evaluation.unwrap().metric, Metric::Top1);
}

#[test]
fn quantizers() {
    let linear = |change: fn(&mut LinearQuantizerConfig)| {
        let mut config = LinearQuantizerConfig::new(8);
        change(&mut config);
        QuantizerSpec::Linear { config, channel: ChannelAxis::AsGiven }
    };
    let cases: [(&str, QuantizerSpec); 14] = [
        (
            "{ type = 'linear', num_bits = 8, granularity = 'per_output_channel' }",
            QuantizerSpec::Linear {
                config: LinearQuantizerConfig::new(8),
                channel: ChannelAxis::OfOutput,
            },
        ),
        ("{ type = 'linear', num_bits = 8 }", linear(|_| {})),
        (
            "{ type = 'linear', num_bits = 8, symmetric = false }",
            linear(|c| c.range.symmetric = false),
        ),
        (
            "{ type = 'linear', num_bits = 8, allow_one_sided = false }",
            linear(|c| c.range.allow_one_sided = false),
        ),
        (
            "{ type = 'linear', num_bits = 8, one_sided = 'per_tile' }",
            linear(|c| c.range.one_sided = OneSided::PerTile),
        ),
        (
            "{ type = 'linear', num_bits = 8, zero_in_range = false, scale_floor = false }",
            linear(|c| c.range = RangeSettings::reference()),
        ),
        (
            "{ type = 'linear', num_bits = 8, narrow_range = true }",
            linear(|c| c.range.narrow_range = true),
        ),
        ("{ type = 'linear', num_bits = 8, granularity = 'per_tensor' }", linear(|_| {})),
        (
            "{ type = 'linear', num_bits = 8, granularity = { per_channel = -1 } }",
            linear(|c| c.granularity = Granularity::per_channel(-1)),
        ),
        (
            "{ type = 'linear', num_bits = 8, granularity = { per_channel = [0, 2] } }",
            linear(|c| c.granularity = Granularity::PerChannel { axes: vec![0, 2] }),
        ),
        (
            "{ type = 'linear', num_bits = 8, granularity = { per_channel = { axes = [1] } } }",
            linear(|c| c.granularity = Granularity::per_channel(1)),
        ),
        (
            "{ type = 'linear', num_bits = 8, granularity = { per_block = { dims = [1], sizes = [32], per_channel_dims = [0] } } }",
            linear(|c| c.granularity = Granularity::per_block(&[1], &[32], &[0])),
        ),
        (
            "{ type = 'linear', num_bits = 8, granularity = { per_tile = [1, 32] } }",
            linear(|c| c.granularity = Granularity::per_tile(&[1, 32])),
        ),
        (
            "{ type = 'dynamic_linear', num_bits = 8 }",
            QuantizerSpec::DynamicLinear(DynamicLinearQuantizerConfig::new(8)),
        ),
    ];
    for (text, expected) in cases {
        let rule = quantizer(text);
        assert_eq!(rule.quantizer, expected, "{text}");
        let has_range = matches!(expected, QuantizerSpec::Linear { .. });
        assert_eq!(rule.estimator, has_range.then(EstimatorConfig::running_minmax), "{text}");
    }
}

#[test]
fn quantizers_that_are_refused() {
    for (text, expected) in [
        (
            "'linear'",
            "w8a8.toml:4:13: unknown quantizer `linear`; write \"none\" or a table such as { type = \"linear\", num_bits = 8 }",
        ),
        ("8", "w8a8.toml:4:13: `quantizer` must be \"none\" or a table, found an integer"),
        (
            "{ type = 'linaer', num_bits = 8 }",
            "w8a8.toml:4:22: unknown type `linaer` in `quantizer`; did you mean `linear`?",
        ),
        (
            "{ type = 'linear' }",
            "w8a8.toml:4:13: `quantizer` has no `num_bits`; add `num_bits = 8`",
        ),
        ("{ num_bits = 8 }", "w8a8.toml:4:13: `quantizer` has no `type`; add `type = \"linear\"`"),
        ("{ type = 'linear', num_bits = 33 }", "w8a8.toml:4:43: `num_bits` must be 1 to 25"),
        (
            "{ type = 'linear', num_bits = '8' }",
            "w8a8.toml:4:43: `num_bits` must be an integer, found a string",
        ),
        (
            "{ type = 'linear', num_bits = 8, symetric = true }",
            "w8a8.toml:4:46: unknown key `symetric` in `quantizer`; did you mean `symmetric`?",
        ),
        (
            "{ type = 'linear', num_bits = 8, symmetric = 1 }",
            "w8a8.toml:4:58: `symmetric` must be true or false, found an integer",
        ),
        (
            "{ type = 'linear', num_bits = 1, narrow_range = true }",
            "w8a8.toml:4:43: num_bits: 1 bits asked for, expected 2 to 25",
        ),
        (
            "{ type = 'linear', num_bits = 8, granularity = 'per_chanel' }",
            "w8a8.toml:4:60: unknown granularity `per_chanel` in `quantizer`; did you mean `per_channel`?",
        ),
        (
            "{ type = 'linear', num_bits = 8, granularity = 'per_channel' }",
            "w8a8.toml:4:60: `per_channel` needs an axis; write { per_channel = 0 }, or \"per_output_channel\" for weights",
        ),
        (
            "{ type = 'linear', num_bits = 8, granularity = { per_chanel = 0 } }",
            "w8a8.toml:4:62: unknown key `per_chanel` in `granularity`; did you mean `per_channel`?",
        ),
        (
            "{ type = 'linear', num_bits = 8, granularity = {} }",
            "w8a8.toml:4:60: `granularity` must name one way to cut the data, found none; write { per_channel = 0 }",
        ),
        (
            "{ type = 'linear', num_bits = 8, granularity = { per_channel = 0, per_tile = [1] } }",
            "w8a8.toml:4:60: `granularity` must name one way to cut the data, found several; write { per_channel = 0 }",
        ),
        (
            "{ type = 'linear', num_bits = 8, granularity = { per_channel = 'x' } }",
            "w8a8.toml:4:76: `per_channel` must be an axis or a list of axes, found a string",
        ),
        (
            "{ type = 'linear', num_bits = 8, granularity = { per_channel = [0, 'x'] } }",
            "w8a8.toml:4:80: `per_channel` must be an axis or a list of axes",
        ),
        (
            "{ type = 'linear', num_bits = 8, granularity = { per_block = { dims = [1], sizes = [1, 2] } } }",
            "w8a8.toml:4:74: 1 dims need as many sizes, found 2",
        ),
        (
            "{ type = 'linear', num_bits = 8, granularity = { per_block = { dims = [1], sizes = [0] } } }",
            "w8a8.toml:4:96: `sizes` must be positive",
        ),
        (
            "{ type = 'linear', num_bits = 8, granularity = { per_tile = [1, -3] } }",
            "w8a8.toml:4:77: `per_tile` must be a tile shape, such as [1, 32]",
        ),
        (
            "\"none\"\nrange = { estimator = 'running_minmax' }",
            "w8a8.toml:5:9: a slot without a quantizer has no range; remove `range`",
        ),
        (
            "{ type = 'dynamic_linear', num_bits = 8 }\nrange = { estimator = 'running_minmax' }",
            "w8a8.toml:5:9: a dynamic quantizer takes its range from each tensor; remove `range`",
        ),
    ] {
        refused_quantizer(text, expected);
    }
}

#[test]
fn estimators() {
    for (text, expected) in [
        ("{ estimator = 'running_minmax' }", EstimatorConfig::RunningMinmax),
        ("{ estimator = 'smoothed_minmax', gamma = 0.1 }", EstimatorConfig::smoothed_minmax(0.1)),
        ("{ estimator = 'min_error_grid' }", EstimatorConfig::min_error_grid(100)),
        ("{ estimator = 'percentile', percentile = 99.9 }", EstimatorConfig::percentile(99.9)),
    ] {
        let rule = quantizer(&format!("{{ type = 'linear', num_bits = 8 }}\nrange = {text}"));
        assert_eq!(rule.estimator, Some(expected), "{text}");
    }
    for (text, expected) in [
        (
            "{ estimator = 'runing_minmax' }",
            "w8a8.toml:5:23: unknown estimator `runing_minmax`; did you mean `running_minmax`?",
        ),
        ("'percentil'", "w8a8.toml:5:9: unknown estimator `percentil`; did you mean `percentile`?"),
        (
            "{ estimator = 'running_minmax', gamma = 1 }",
            "w8a8.toml:5:41: estimator `running_minmax` has no option `gamma`; `smoothed_minmax` has",
        ),
        (
            "{ estimator = 'smoothed_minmax', gama = 1 }",
            "w8a8.toml:5:42: estimator `smoothed_minmax` has no option `gama`; did you mean `gamma`?",
        ),
        (
            "{ estimator = 'smoothed_minmax', gamma = 0 }",
            "w8a8.toml:5:9: gamma must be above 0 and at most 1, found 0",
        ),
        (
            "{ estimator = 'min_error_grid', num_candidates = 'x' }",
            "w8a8.toml:5:58: invalid type: string \"x\", expected usize",
        ),
        (
            "{ gamma = 0.5 }",
            "w8a8.toml:5:9: no `estimator` is named, expected one of `running_minmax`, `smoothed_minmax`, `min_error_grid`, `percentile`",
        ),
        (
            "3",
            "w8a8.toml:5:9: invalid type: integer `3`, expected the name of an estimator, or a table with `estimator` and its options",
        ),
    ] {
        refused_quantizer(
            &format!("{{ type = 'linear', num_bits = 8 }}\nrange = {text}"),
            expected,
        );
    }
}

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
fn an_error_in_a_query_points_into_the_file() {
    let text = "schema_version = 1\n[[rule]]\nquery = \"**/[cls:Covn]\"\nquantizer = \"none\"\n";
    let config = parse(text).unwrap();
    let error = config.query_error(
        &config.rules[0].query,
        8..12,
        "unknown class `Covn`",
        "did you mean `Conv`?",
    );
    expect![[r#"
        w8a8.toml:3:18: unknown class `Covn`
          |
        3 | query = "**/[cls:Covn]"
          |                  ^^^^ did you mean `Conv`?"#]]
    .assert_eq(&error.to_string());

    // With escapes the place inside is not known: the whole string is marked.
    let text =
        "schema_version = 1\n[[rule]]\nquery = \"**\\u002F[cls:Covn]\"\nquantizer = \"none\"\n";
    let config = parse(text).unwrap();
    assert_eq!(config.rules[0].query.text, "**/[cls:Covn]");
    let error = config.query_error(
        &config.rules[0].query,
        8..12,
        "unknown class `Covn`",
        "did you mean `Conv`?",
    );
    expect![[r#"
        w8a8.toml:3:9: unknown class `Covn`
          |
        3 | query = "**\u002F[cls:Covn]"
          |         ^^^^^^^^^^^^^^^^^^^^ did you mean `Conv`?"#]]
    .assert_eq(&error.to_string());
}

#[test]
fn every_query_that_does_not_parse_is_shown_in_the_file() {
    let text = r#"schema_version = 1
[aliases]
compute = "[cls:Covn]"
inner = "&compute/x"
[[rule]]
query = "**/&compute/[quantizer:parameter/weight]"
quantizer = "none"
[[rule]]
query = "**/[quantzer:parameter/weight]"
quantizer = "none"
[[rule]]
query = "**/&compte"
quantizer = "none"
[[rule]]
query = "head/[cls:Conv"
quantizer = "none"
"#;
    let module = mpath::Class::define("Module", "config::tests::Module", &[]);
    let mut context = default_context();
    context.register_class("Conv", mpath::Class::define("Conv", "config::tests::Conv", &[module]));
    let error = parse(text).unwrap().quantization_config(context).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Config);
    expect![[r#"
        4 problems in w8a8.toml:

        w8a8.toml:3:17: in the query: unknown class `Covn`
          |
        3 | compute = "[cls:Covn]"
          |                 ^^^^ did you mean `Conv` or `Conv1d` or `Conv2d`?

        w8a8.toml:9:14: in the query: `quantzer` is not a known extension
          |
        9 | query = "**/[quantzer:parameter/weight]"
          |              ^^^^^^^^ did you mean `quantizer`?

        w8a8.toml:12:14: in the query: `compte` is not a known alias
           |
        12 | query = "**/&compte"
           |              ^^^^^^ did you mean `compute`?

        w8a8.toml:15:15: in the query: unclosed `[`, expected `]`
           |
        15 | query = "head/[cls:Conv"
           |               ^"#]]
    .assert_eq(&error.to_string());
}

#[test]
fn rules_become_rules_of_the_library() {
    let config = parse(WHOLE).unwrap().quantization_config(default_context()).unwrap();
    let [weights, head] = config.rules() else { panic!("{config:?}") };
    assert_eq!(weights.query.to_string(), "**/[quantizer:parameter/weight]");
    assert_eq!(weights.label(), "`weights` (w8a8.toml:41)");
    assert_eq!((weights.expect, weights.priority), (Some(Expect::AtLeast(1)), 1));
    assert_eq!((head.optional, head.priority), (true, 7));
    assert_eq!(head.factory.spec(), Some(&QuantizerSpec::None));
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

/// Every truncation and every changed byte is read or refused, never a panic.
#[test]
fn damaged_files_never_panic() {
    for cut in 0..WHOLE.len() {
        let _ = parse(&WHOLE[..cut]);
    }
    for at in 0..WHOLE.len() {
        for replacement in ["\"", "[", "=", "\n", "é", "0", "-", "{"] {
            let mut text = WHOLE.to_owned();
            text.replace_range(at..at + 1, replacement);
            let _ = parse(&text).map_err(|error| error.to_string());
        }
    }
}

/// The configurations that the quick start uses: they are read, and their data fits the models' inputs.
#[test]
fn the_examples_fit_their_data() {
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples");
    for (file, sample, counts) in [
        ("fashion/w8a8.toml", [1, 28, 28], (512, 2000)),
        ("fashion/w4a8.toml", [1, 28, 28], (512, 2000)),
        ("digits/w8a8.toml", [1, 8, 8], (512, 500)),
    ] {
        let config = QuantConfigFile::load(&examples.join(file)).unwrap_or_else(|e| panic!("{e}"));
        let shape = [None].into_iter().chain(sample.map(Some)).collect();
        let input =
            ModelInput { name: "image".to_owned(), dtype: InputType::F32, shape: Some(shape) };
        let open = |data| Dataset::open(data, &config.inputs, std::slice::from_ref(&input));
        let calibration = open(&config.calibration.as_ref().unwrap().data).unwrap();
        let evaluation = open(&config.evaluation.as_ref().unwrap().data).unwrap();
        assert_eq!((calibration.num_samples(), evaluation.num_samples()), counts, "{file}");
        assert!(evaluation.labels().is_some_and(|labels| labels.iter().all(|&label| label < 10)));
        let batch = evaluation.batches(50).next().unwrap().unwrap();
        let ArrayData::Float(values) = &batch.inputs[0].data else { panic!("{batch:?}") };
        let largest = values.iter().fold(0f32, |most, &value| most.max(value));
        assert_eq!(largest, 1.0, "{file}");
    }
}

/// Any word of a rule with a letter missing, changed or swapped is refused with the right word. Queries are checked
/// where they are parsed; names and comments are free.
#[test]
fn one_letter_mistakes_in_a_rule_are_corrected() {
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples");
    for file in ["fashion/w8a8.toml", "fashion/w4a8.toml"] {
        let mistakes = try_slips(&std::fs::read_to_string(examples.join(file)).unwrap());
        assert!(mistakes > 500, "{file}: {mistakes}");
    }
}

/// Makes every slip in every word of the rules, and counts them.
#[track_caller]
fn try_slips(text: &str) -> usize {
    let mut mistakes = 0;
    let mut start = text.find("[[rule]]").unwrap();
    for line in text[start..].split_inclusive('\n') {
        let is_free = line.starts_with("name") || line.starts_with("query");
        let checked = line.split(if is_free { '=' } else { '#' }).next().unwrap();
        let words = checked.split_inclusive(|c: char| !(c.is_alphanumeric() || c == '_'));
        let mut at = start;
        for piece in words {
            let word = piece.trim_end_matches(|c: char| !(c.is_alphanumeric() || c == '_'));
            if word.starts_with(|c: char| c.is_ascii_alphabetic()) {
                for letter in 0..word.len() {
                    for wrong in slips(word, letter) {
                        let mut text = text.to_owned();
                        text.replace_range(at..at + word.len(), &wrong);
                        let error = parse(&text).err();
                        let message = error.map_or_else(String::new, |error| error.to_string());
                        assert!(message.contains(&format!("`{word}`")), "{wrong}: {message}");
                        mistakes += 1;
                    }
                }
            }
            at += piece.len();
        }
        start += line.len();
    }
    mistakes
}

/// The word with one letter dropped, doubled, changed, or swapped with the next one.
fn slips(word: &str, at: usize) -> Vec<String> {
    let mut letters: Vec<char> = word.chars().collect();
    let mut slips = vec![];
    let mut add = |letters: &[char]| slips.push(letters.iter().collect::<String>());
    add(&[&letters[..at], &letters[at + 1..]].concat());
    add(&[&letters[..=at], &letters[at..]].concat());
    if at + 1 < letters.len() {
        letters.swap(at, at + 1);
        add(&letters);
        letters.swap(at, at + 1);
    }
    letters[at] = if letters[at] == 'x' { 'y' } else { 'x' };
    add(&letters);
    slips.retain(|slip| slip != word);
    slips
}
