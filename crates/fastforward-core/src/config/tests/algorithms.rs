//! `[[algorithm]]`.

use std::path::Path;

use super::parse;
use crate::algorithms::ScaleRounding;
use crate::algorithms::equalization::Relu6;
use crate::config::{Algorithm, AlgorithmStage, BiasMethod, LayerInputs, Preset, QuantConfigFile};

/// The message of a text that is refused.
#[track_caller]
fn errors(text: &str) -> String {
    parse(text).unwrap_err().to_string()
}

fn algorithms(text: &str) -> Vec<Algorithm> {
    let config = parse(&format!("schema_version = 1\n{text}")).unwrap();
    config.algorithms.into_iter().map(|entry| entry.algorithm).collect()
}

const ALL: &str = r#"
[[algorithm]]
type = "equalize"
rounding = "unrounded"
relu6 = "per_channel"
bound_biases = false
[[algorithm]]
type = "absorb_bias"
amount = "three_sigma"
[[algorithm]]
type = "smooth"
alpha = 0.75
[[algorithm]]
type = "awq"
query = "**/[cls:MatMul]"
steps = 10
rounding = "unrounded"
[[algorithm]]
type = "join_ranges"
additions = true
[[algorithm]]
type = "sequential_mse"
candidates = 40
inputs = "quantized"
[[algorithm]]
type = "activation_weighted_mse"
query = "conv1/[quantizer:parameter/weight]"
[[algorithm]]
type = "gptq"
block_size = 64
damping = 0.1
act_order = true
static_groups = true
dead_columns = "zero"
inputs = "original"
[[algorithm]]
type = "adaround"
iterations = 200
learning_rate = 0.1
regularizer = 0
warm_up = 0.3
descent = false
block_layers = 3
correct_bias = true
[[algorithm]]
type = "coordinate_descent"
[[algorithm]]
type = "hqq"
norm = 0.9
[[algorithm]]
type = "bias_correction"
method = "analytic"
"#;

#[test]
fn every_type_with_its_options() {
    let found = algorithms(ALL);
    assert_eq!(
        found[0],
        Algorithm::Equalize {
            rounding: ScaleRounding::Unrounded,
            relu6: Relu6::PerChannel,
            bound_biases: false
        }
    );
    assert_eq!(found[3], Algorithm::Awq { steps: 10, rounding: ScaleRounding::Unrounded });
    let Algorithm::Gptq { factor, options, inputs } = &found[7] else { panic!("{:?}", found[7]) };
    assert_eq!((factor.perc_damp, factor.act_order, options.block_size), (0.1, true, 64));
    assert!(options.static_groups);
    assert_eq!(*inputs, LayerInputs::Original);
    let Algorithm::AdaRound { options, inputs, block_layers } = &found[8] else {
        panic!("{:?}", found[8])
    };
    assert_eq!((options.iterations, options.learning_rate, options.descent), (200, 0.1, false));
    assert_eq!((*inputs, *block_layers), (LayerInputs::Quantized, 3));
    assert_eq!(found[11], Algorithm::BiasCorrection { method: BiasMethod::Analytic });
    let names: Vec<&str> = found.iter().map(Algorithm::name).collect();
    assert_eq!(names, super::super::algorithm::TYPES);
    let stages: Vec<AlgorithmStage> = found.iter().map(Algorithm::stage).collect();
    assert_eq!(
        stages[9..],
        [AlgorithmStage::Weights, AlgorithmStage::Ranges, AlgorithmStage::Correct]
    );
    let silent: Vec<&str> =
        found.iter().filter(|one| !one.needs_data()).map(Algorithm::name).collect();
    assert_eq!(silent, ["equalize", "join_ranges", "hqq"]);
}

#[test]
fn defaults_are_those_of_the_arithmetic() {
    let found = algorithms("[[algorithm]]\ntype = \"gptq\"\n[[algorithm]]\ntype = \"adaround\"\n");
    assert_eq!(
        found,
        [
            Algorithm::Gptq {
                factor: Default::default(),
                options: Default::default(),
                inputs: LayerInputs::Quantized
            },
            Algorithm::AdaRound {
                options: Default::default(),
                inputs: LayerInputs::Quantized,
                block_layers: 1,
            },
        ]
    );
}

#[test]
fn written_and_read_again_it_is_the_same() {
    let config = parse(&format!("schema_version = 1\n{ALL}")).unwrap();
    let text = config.to_toml(Path::new("."));
    let again = QuantConfigFile::parse(&text, "quant.toml", Path::new(".")).unwrap();
    let kept = |config: &QuantConfigFile| -> Vec<(Algorithm, Option<String>, bool)> {
        let of = |entry: &crate::config::AlgorithmEntry| {
            let query = entry.query.as_ref().map(|query| query.text.clone());
            (entry.algorithm.clone(), query, entry.correct_bias)
        };
        config.algorithms.iter().map(of).collect()
    };
    assert_eq!(kept(&again), kept(&config), "{text}");
    assert_eq!(again.to_toml(Path::new(".")), text);
    let corrected = config.algorithms.iter().filter(|entry| entry.correct_bias);
    assert_eq!(corrected.map(|entry| entry.algorithm.name()).collect::<Vec<_>>(), ["adaround"]);
}

#[test]
fn mistakes_are_shown_at_their_place() {
    let refused = |text: &str| errors(&format!("schema_version = 1\n[[algorithm]]\n{text}\n"));
    for (text, expected) in [
        ("type = \"gptk\"", "unknown type `gptk` in [[algorithm]]"),
        ("type = \"gptk\"", "did you mean `gptq`?"),
        ("query = \"**\"", "[[algorithm]] has no `type`"),
        ("type = 4", "`type` must be a string, found an integer"),
        (
            "type = \"gptq\"\ndampening = 0.1",
            "unknown key `dampening` in [[algorithm]] of type `gptq`",
        ),
        ("type = \"gptq\"\ndamping = -1", "`damping` must be not negative"),
        (
            "type = \"gptq\"\ndamping = 1\nmax_damping = 0.5",
            "`max_damping` is below `damping`, which is 1",
        ),
        ("type = \"gptq\"\nblock_size = 0", "`block_size` must be at least 1"),
        ("type = \"adaround\"\nlearning_rate = 1e-60", "`learning_rate` must be positive"),
        ("type = \"adaround\"\nlearning_rate = 1e60", "`learning_rate` must be positive"),
        ("type = \"adaround\"\ninputs = \"float\"", "unknown inputs `float`"),
        ("type = \"smooth\"\nalpha = 1.5", "`alpha` must be from 0 to 1"),
        (
            "type = \"hqq\"\ncorrect_bias = true",
            "unknown key `correct_bias` in [[algorithm]] of type `hqq`",
        ),
        ("type = \"gptq\"\ncorrect_bias = 1", "`correct_bias` must be true or false"),
        ("type = \"adaround\"\nblock_layers = 0", "`block_layers` must be at least 1"),
        ("type = \"awq\"\nsteps = 0", "`steps` must be 1 to 1000"),
        ("type = \"awq\"\nsteps = 1001", "`steps` must be 1 to 1000"),
        ("type = \"awq\"\nalpha = 0.5", "unknown key `alpha` in [[algorithm]] of type `awq`"),
        ("type = \"hqq\"\nkappa = 0.5", "`kappa` must be at least 1"),
        (
            "type = \"equalize\"\nquery = \"**\"",
            "unknown key `query` in [[algorithm]] of type `equalize`",
        ),
    ] {
        let found = refused(text);
        assert!(found.contains(expected), "{text}\n{found}");
    }
    let found = errors("schema_version = 1\n[algorithm]\ntype = \"gptq\"\n");
    assert!(found.contains("write [[algorithm]] with two brackets"), "{found}");
}

#[test]
fn queries_are_checked_with_those_of_rules() {
    let config = parse(
        "schema_version = 1\n[[rule]]\nquery = \"a/[clss:Linear]\"\nquantizer = \"none\"\n\
         [[algorithm]]\ntype = \"gptq\"\nquery = \"[quantizr:activation]\"\n",
    )
    .unwrap();
    let error = config.queries(mpath::Context::new()).unwrap_err().to_string();
    assert!(error.contains("w8a8.toml:3") && error.contains("w8a8.toml:7"), "{error}");
}

#[test]
fn presets_are_configurations() {
    for preset in Preset::ALL {
        let config = QuantConfigFile::parse(preset.text, preset.name, Path::new("."))
            .unwrap_or_else(|error| panic!("{error}"));
        config.queries(crate::quantization::quant_init::default_context()).unwrap();
        assert!(!config.rules.is_empty());
        assert!(preset.summary().ends_with('.'), "{}", preset.summary());
    }
    assert!(Preset::ALL.is_sorted_by_key(|preset| preset.name));
}
