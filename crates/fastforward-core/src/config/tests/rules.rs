//! Quantizers and estimators of rules.

use super::reading::WHOLE;
use super::*;
use crate::range_setting::HistogramGridConfig;

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
        ("'entropy'", EstimatorConfig::Entropy(HistogramGridConfig::default())),
        (
            "{ estimator = 'histogram_mse', num_bins = 512 }",
            EstimatorConfig::HistogramMse(HistogramGridConfig {
                num_bins: 512,
                ..Default::default()
            }),
        ),
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
            "w8a8.toml:5:9: no `estimator` is named, expected one of `running_minmax`, `smoothed_minmax`, `min_error_grid`, `percentile`, `histogram_mse`, `entropy`",
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
fn rules_become_rules_of_the_library() {
    let config = parse(WHOLE).unwrap().quantization_config(default_context()).unwrap();
    let [weights, head] = config.rules() else { panic!("{config:?}") };
    assert_eq!(weights.query.to_string(), "**/[quantizer:parameter/weight]");
    assert_eq!(weights.label(), "`weights` (w8a8.toml:41)");
    assert_eq!((weights.expect, weights.priority), (Some(Expect::AtLeast(1)), 1));
    assert_eq!((head.optional, head.priority), (true, 7));
    assert_eq!(head.factory.spec(), Some(&QuantizerSpec::None));
}
