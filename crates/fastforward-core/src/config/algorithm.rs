//! `[[algorithm]]`: what prepares a network for few bits, and what chooses its weights.

use std::fmt;

use ff_kernels::{AdaRoundOptions, DeadColumns, FactorOptions, GptqOptions, HqqOptions};
use toml::de::DeValue;

use super::QueryText;
use super::diagnostic::SourceText;
use super::reader::{Fields, Problems, Value, report_unknown};
use crate::algorithms::ScaleRounding;
use crate::algorithms::absorption::Absorption;
use crate::algorithms::equalization::Relu6;

/// An algorithm as the file states it.
#[derive(Clone, Debug, PartialEq)]
pub struct AlgorithmEntry {
    /// What is done.
    pub algorithm: Algorithm,
    /// Which slots of weights it is for; `None` for all that have a quantizer. Always `None` for
    /// algorithms that look at the whole network.
    pub query: Option<QueryText>,
    /// Whether the bias of each layer is corrected as soon as its weight is chosen, before the next layer is looked at.
    /// Always false for algorithms of other stages than [`AlgorithmStage::Weights`].
    pub correct_bias: bool,
    /// File and line, `w4a8.toml:12`.
    pub source: String,
    /// The line, counted from 1.
    pub line: usize,
}

/// What an algorithm does, with its options.
#[derive(Clone, Debug, PartialEq)]
pub enum Algorithm {
    /// `equalize`: ranges of weights of layers that follow each other made equal (Nagel et al. 2019, arXiv 1906.04721).
    Equalize {
        /// `rounding`
        rounding: ScaleRounding,
        /// `relu6`
        relu6: Relu6,
        /// `bound_biases`
        bound_biases: bool,
    },
    /// `absorb_bias`: what channels never fall below, moved to the next layer's bias (the same paper).
    AbsorbBias {
        /// `amount`
        amount: Absorption,
    },
    /// `smooth`: ranges moved from activations to weights (SmoothQuant, arXiv 2211.10438).
    Smooth {
        /// `alpha`
        alpha: f64,
        /// `rounding`
        rounding: ScaleRounding,
    },
    /// `awq`: inputs that matter made small and their weights large, by the error of the layers' outputs (arXiv 2306.00978).
    Awq {
        /// `steps`: exponents that are tried beside 0.
        steps: usize,
        /// `rounding`
        rounding: ScaleRounding,
    },
    /// `join_ranges`: one range for what targets compute on one grid.
    JoinRanges {
        /// `concatenations`: the inputs and the output of each `Concat`.
        concatenations: bool,
        /// `additions`: the operands of each `Add` and `Sum`.
        additions: bool,
    },
    /// `sequential_mse`: ranges of weights by the error of the layer's output.
    SequentialMse {
        /// `candidates`: ranges that are tried for each tile.
        candidates: usize,
        /// `inputs`
        inputs: LayerInputs,
    },
    /// `activation_weighted_mse`: ranges of weights by their error, each weight's multiplied by the mean square of its input.
    ActivationWeightedMse {
        /// `candidates`: ranges that are tried for each tile.
        candidates: usize,
        /// `inputs`
        inputs: LayerInputs,
    },
    /// `gptq`: rounding column by column (arXiv 2210.17323).
    Gptq {
        /// `damping`, `max_damping`, `act_order`
        factor: FactorOptions,
        /// `block_size`, `static_groups`, `dead_columns`
        options: GptqOptions,
        /// `inputs`
        inputs: LayerInputs,
    },
    /// `adaround`: rounding learned by gradient descent (arXiv 2004.10568).
    AdaRound {
        /// `iterations`, `learning_rate`, `regularizer`, `warm_up`, `descent`
        options: AdaRoundOptions,
        /// `inputs`
        inputs: LayerInputs,
        /// `block_layers`: the least number of layers whose weights are then rounded together, by the error of the output of
        /// the block they make up (arXiv 2102.05426); 1 for each by itself.
        block_layers: usize,
    },
    /// `coordinate_descent`: rounding changed code by code while the output's error falls.
    CoordinateDescent {
        /// `inputs`
        inputs: LayerInputs,
    },
    /// `hqq`: offsets of weights by a sparse error, without data (Badri and Shaji 2023).
    Hqq {
        /// `norm`, `beta`, `kappa`, `iterations`
        options: HqqOptions,
    },
    /// `bias_correction`: the mean error of each layer taken off its bias (arXiv 1906.04721).
    BiasCorrection {
        /// `method`
        method: BiasMethod,
    },
}

/// When an algorithm runs, whatever its place in the file. Those of one stage run in the order of the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum AlgorithmStage {
    /// On the float network, before ranges are found.
    Prepare,
    /// Without data, when ranges are known.
    Ranges,
    /// Layer by layer, after that.
    Weights,
    /// On the network with its final weights.
    Correct,
}

/// Whose activations a layer is judged by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LayerInputs {
    /// Those of the float network.
    Original,
    /// Those of the network as far as it is quantized by then, so that a layer makes up for the errors before it.
    Quantized,
}

impl LayerInputs {
    /// Both with the names a configuration uses.
    pub const NAMES: [(&'static str, Self); 2] =
        [("original", Self::Original), ("quantized", Self::Quantized)];
}

/// How the mean error of a layer is found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BiasMethod {
    /// Measured on data, layer by layer, with all layers before quantized and corrected.
    #[default]
    Measured,
    /// The error of the weights times the mean of their inputs in float.
    Analytic,
}

impl BiasMethod {
    /// Both with the names a configuration uses.
    pub const NAMES: [(&'static str, Self); 2] =
        [("measured", Self::Measured), ("analytic", Self::Analytic)];
}

pub(super) const ROUNDINGS: [(&str, ScaleRounding); 2] =
    [("power_of_two", ScaleRounding::PowerOfTwo), ("unrounded", ScaleRounding::Unrounded)];
pub(super) const RELU6: [(&str, Relu6); 3] =
    [("keep", Relu6::Keep), ("per_channel", Relu6::PerChannel), ("relu", Relu6::Relu)];
pub(super) const AMOUNTS: [(&str, Absorption); 2] =
    [("minimum", Absorption::Minimum), ("three_sigma", Absorption::ThreeSigma)];
pub(super) const DEAD_COLUMNS: [(&str, DeadColumns); 2] =
    [("keep", DeadColumns::Keep), ("zero", DeadColumns::Zero)];

/// How many ranges are tried where the file does not say.
pub(super) const CANDIDATES: usize = 100;
/// The most ranges that can be tried: a step of the finest is below what a float resolves long before.
const MAX_CANDIDATES: i64 = 10_000;
/// How many exponents are tried where the file does not say, as in the paper's program.
pub(super) const STEPS: usize = 20;
/// The most exponents that can be tried: factors of neighbours differ by less than rounding long before.
const MAX_STEPS: i64 = 1_000;

impl Algorithm {
    /// The name in a configuration and in reports.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Equalize { .. } => "equalize",
            Self::AbsorbBias { .. } => "absorb_bias",
            Self::Smooth { .. } => "smooth",
            Self::Awq { .. } => "awq",
            Self::JoinRanges { .. } => "join_ranges",
            Self::SequentialMse { .. } => "sequential_mse",
            Self::ActivationWeightedMse { .. } => "activation_weighted_mse",
            Self::Gptq { .. } => "gptq",
            Self::AdaRound { .. } => "adaround",
            Self::CoordinateDescent { .. } => "coordinate_descent",
            Self::Hqq { .. } => "hqq",
            Self::BiasCorrection { .. } => "bias_correction",
        }
    }

    /// When it runs.
    pub fn stage(&self) -> AlgorithmStage {
        match self {
            Self::Equalize { .. }
            | Self::AbsorbBias { .. }
            | Self::Smooth { .. }
            | Self::Awq { .. } => AlgorithmStage::Prepare,
            Self::JoinRanges { .. } | Self::Hqq { .. } => AlgorithmStage::Ranges,
            Self::BiasCorrection { .. } => AlgorithmStage::Correct,
            _ => AlgorithmStage::Weights,
        }
    }

    /// Whether it looks at calibration data.
    pub fn needs_data(&self) -> bool {
        !matches!(self, Self::Equalize { .. } | Self::JoinRanges { .. } | Self::Hqq { .. })
    }

    /// Whose activations it judges layers by; `None` for one that judges no layers.
    pub fn inputs(&self) -> Option<LayerInputs> {
        match *self {
            Self::SequentialMse { inputs, .. }
            | Self::ActivationWeightedMse { inputs, .. }
            | Self::Gptq { inputs, .. }
            | Self::AdaRound { inputs, .. }
            | Self::CoordinateDescent { inputs } => Some(inputs),
            _ => None,
        }
    }
}

impl fmt::Display for Algorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

pub(super) const TYPES: [&str; 12] = [
    "equalize",
    "absorb_bias",
    "smooth",
    "awq",
    "join_ranges",
    "sequential_mse",
    "activation_weighted_mse",
    "gptq",
    "adaround",
    "coordinate_descent",
    "hqq",
    "bias_correction",
];

/// The keys that a type has beside `type`.
fn keys_of(name: &str) -> &'static [&'static str] {
    match name {
        "equalize" => &["rounding", "relu6", "bound_biases"],
        "absorb_bias" => &["amount"],
        "smooth" => &["alpha", "rounding"],
        "awq" => &["query", "steps", "rounding"],
        "join_ranges" => &["concatenations", "additions"],
        "sequential_mse" | "activation_weighted_mse" => {
            &["query", "inputs", "correct_bias", "candidates"]
        }
        "gptq" => &[
            "query",
            "inputs",
            "correct_bias",
            "block_size",
            "damping",
            "max_damping",
            "act_order",
            "static_groups",
            "dead_columns",
        ],
        "adaround" => &[
            "query",
            "inputs",
            "correct_bias",
            "iterations",
            "learning_rate",
            "regularizer",
            "warm_up",
            "descent",
            "block_layers",
        ],
        "coordinate_descent" => &["query", "inputs", "correct_bias"],
        "hqq" => &["query", "norm", "beta", "kappa", "iterations"],
        "bias_correction" => &["method"],
        _ => &[],
    }
}

pub(super) fn read_algorithms(root: &Fields<'_, '_>, source: &SourceText) -> Vec<AlgorithmEntry> {
    let Some(value) = root.get("algorithm") else { return vec![] };
    let DeValue::Array(array) = value.get_ref() else {
        let message = "`algorithm` must be a list of tables";
        root.problems.add(value.span(), message, "write [[algorithm]] with two brackets");
        return vec![];
    };
    array.iter().filter_map(|value| read_algorithm(value, source, root.problems)).collect()
}

fn read_algorithm(
    value: &Value<'_>,
    source: &SourceText,
    problems: &Problems,
) -> Option<AlgorithmEntry> {
    const PLACE: &str = "[[algorithm]]";
    let kind = match value.get_ref() {
        DeValue::Table(table) => table.get("type"),
        _ => None,
    };
    let Some(kind) = kind else {
        let fields = Fields::of_value(value, PLACE, &["type"], problems)?;
        fields.require("type", "\"gptq\"");
        return None;
    };
    let Some(name) = kind.get_ref().as_str() else {
        super::reader::wrong_type(problems, kind.span(), "`type`", "a string", kind.get_ref());
        return None;
    };
    if !TYPES.contains(&name) {
        report_unknown(problems, kind.span(), "type", name, PLACE, &TYPES);
        return None;
    }
    let known = [&["type"], keys_of(name)].concat();
    let place = format!("{PLACE} of type `{name}`");
    let fields = Fields::of_value(value, place, &known, problems)?;
    let algorithm = read_options(name, &fields)?;
    let query = fields.string("query").and_then(|_| QueryText::new(fields.get("query")?, source));
    let correct_bias = fields.boolean("correct_bias").unwrap_or(false);
    let line = source.position(value.span().start).0;
    Some(AlgorithmEntry {
        algorithm,
        query,
        correct_bias,
        source: format!("{}:{line}", source.name),
        line,
    })
}

fn read_options(name: &str, fields: &Fields<'_, '_>) -> Option<Algorithm> {
    let inputs = |default| fields.one_of("inputs", &LayerInputs::NAMES).unwrap_or(default);
    let rounding = || fields.one_of("rounding", &ROUNDINGS).unwrap_or_default();
    let flag = |key: &str, default| fields.boolean(key).unwrap_or(default);
    let count = |key: &str, default: usize| fields.count(key, 1).unwrap_or(default);
    let number = |key: &str, default: f64, expected: &str, fits: fn(f64) -> bool| {
        fields.number(key, expected, fits).unwrap_or(default)
    };
    let up_to = |key: &str, most: i64, default: usize| {
        let found = fields.integer(key, 1..=most);
        found.and_then(|count| usize::try_from(count).ok()).unwrap_or(default)
    };
    let candidates = || up_to("candidates", MAX_CANDIDATES, CANDIDATES);
    let narrow = |key: &str, default: f32, expected: &str, fits: fn(f32) -> bool| {
        let fits = |x: f64| (x as f32).is_finite() && fits(x as f32);
        fields.number(key, expected, fits).map_or(default, |value| value as f32)
    };
    Some(match name {
        "equalize" => Algorithm::Equalize {
            rounding: rounding(),
            relu6: fields.one_of("relu6", &RELU6).unwrap_or_default(),
            bound_biases: flag("bound_biases", true),
        },
        "absorb_bias" => {
            Algorithm::AbsorbBias { amount: fields.one_of("amount", &AMOUNTS).unwrap_or_default() }
        }
        "smooth" => Algorithm::Smooth {
            alpha: number("alpha", 0.5, "from 0 to 1", |x| (0.0..=1.0).contains(&x)),
            rounding: rounding(),
        },
        "awq" => Algorithm::Awq { steps: up_to("steps", MAX_STEPS, STEPS), rounding: rounding() },
        "join_ranges" => Algorithm::JoinRanges {
            concatenations: flag("concatenations", true),
            additions: flag("additions", false),
        },
        "sequential_mse" => Algorithm::SequentialMse {
            candidates: candidates(),
            inputs: inputs(LayerInputs::Original),
        },
        "activation_weighted_mse" => Algorithm::ActivationWeightedMse {
            candidates: candidates(),
            inputs: inputs(LayerInputs::Original),
        },
        "gptq" => {
            let (factor, options) = (FactorOptions::default(), GptqOptions::default());
            let perc_damp = number("damping", factor.perc_damp, "not negative", |x| x >= 0.0);
            let least = factor.max_perc_damp.max(perc_damp);
            let max_perc_damp = number("max_damping", least, "not negative", |x| x >= 0.0);
            if max_perc_damp < perc_damp {
                let span = fields.span_of("max_damping");
                let message = format!("`max_damping` is below `damping`, which is {perc_damp}");
                fields.problems.add(span, message, "");
            }
            Algorithm::Gptq {
                factor: FactorOptions {
                    perc_damp,
                    max_perc_damp,
                    act_order: flag("act_order", factor.act_order),
                },
                options: GptqOptions {
                    block_size: count("block_size", options.block_size),
                    static_groups: flag("static_groups", options.static_groups),
                    dead_columns: fields
                        .one_of("dead_columns", &DEAD_COLUMNS)
                        .unwrap_or(options.dead_columns),
                    ..options
                },
                inputs: inputs(LayerInputs::Quantized),
            }
        }
        "adaround" => {
            let default = AdaRoundOptions::default();
            Algorithm::AdaRound {
                options: AdaRoundOptions {
                    iterations: count("iterations", default.iterations),
                    learning_rate: narrow(
                        "learning_rate",
                        default.learning_rate,
                        "positive",
                        |x| x > 0.0,
                    ),
                    regularizer: narrow("regularizer", default.regularizer, "not negative", |x| {
                        x >= 0.0
                    }),
                    warm_up: narrow("warm_up", default.warm_up, "from 0 to 1", |x| {
                        (0.0..=1.0).contains(&x)
                    }),
                    descent: flag("descent", default.descent),
                    ..default
                },
                inputs: inputs(LayerInputs::Quantized),
                block_layers: count("block_layers", 1),
            }
        }
        "coordinate_descent" => {
            Algorithm::CoordinateDescent { inputs: inputs(LayerInputs::Quantized) }
        }
        "hqq" => {
            let default = HqqOptions::default();
            Algorithm::Hqq {
                options: HqqOptions {
                    norm: narrow("norm", default.norm, "above 0 and at most 1", |x| {
                        x > 0.0 && x <= 1.0
                    }),
                    beta: narrow("beta", default.beta, "positive", |x| x > 0.0),
                    kappa: narrow("kappa", default.kappa, "at least 1", |x| x >= 1.0),
                    iterations: count("iterations", default.iterations),
                    ..default
                },
            }
        }
        "bias_correction" => Algorithm::BiasCorrection {
            method: fields.one_of("method", &BiasMethod::NAMES).unwrap_or_default(),
        },
        _ => return None,
    })
}
