//! What every section says, and its defaults.

use super::*;

pub(super) const WHOLE: &str = r#"
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
    for file in ["fashion/w8a8.toml", "fashion/w4a8.toml", "fashion/w3a8.toml", "digits/w8a8.toml"]
    {
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

const ESTIMATORS: [&str; 6] = [
    "{ estimator = 'running_minmax' }",
    "{ estimator = 'smoothed_minmax', gamma = 0.1 }",
    "{ estimator = 'min_error_grid', num_candidates = 7 }",
    "{ estimator = 'percentile', percentile = 99.99 }",
    "{ estimator = 'histogram_mse', num_candidates = 64 }",
    "{ estimator = 'entropy', num_bins = 8192 }",
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
