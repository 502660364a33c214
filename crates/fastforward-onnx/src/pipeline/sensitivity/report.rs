//! What a sweep found.

use serde::{Serialize, Serializer};

use super::{Budget, ScoreData, SensitivityScore};

/// The prices of all weights at all widths, and what can be bought.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Sensitivity {
    /// The model's file name.
    pub model: String,
    /// The configuration's file name.
    pub config: String,
    /// What losses are, and of what.
    pub scored: ScoredBy,
    /// The widths, ascending.
    pub bits: Vec<u32>,
    /// The weights, in the order of the graph.
    pub weights: Vec<WeightPrices>,
    /// All weights at one width, for each width.
    pub uniform: Vec<Point>,
    /// What no other choice of widths beats in both size and sum of losses: the corners of the Pareto front, by rising size,
    /// with the points that were measured. Sizes are bytes if the budget is, else bits.
    pub curve: Vec<Point>,
    /// Whether the front is complete; else the choices are good, but better ones may be missed.
    pub is_exact: bool,
    /// What was measured of whole networks, where anything was.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub measured: Option<MeasuredBy>,
    /// What the budget buys, where there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub allocation: Option<Allocation>,
    /// What should be known beside the numbers.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}

/// What losses are, and of what.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ScoredBy {
    /// The measure.
    pub score: SensitivityScore,
    /// The metric, where that is the measure.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub metric: Option<String>,
    /// Where the samples come from.
    pub data: ScoreData,
    /// How many there are.
    pub samples: usize,
    /// The outputs that are judged.
    pub outputs: Vec<String>,
}

/// What a weight costs at each width.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct WeightPrices {
    /// Every full name of the slot; the first is the one that is shown.
    pub names: Vec<String>,
    /// The position of the rule that decides it.
    pub rule: usize,
    /// Elements of the weight.
    pub elements: u64,
    /// The width that the rule gives it.
    pub num_bits: u32,
    /// One per width.
    pub prices: Vec<WeightPrice>,
}

/// What a weight costs at one width.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct WeightPrice {
    /// The width.
    pub bits: u32,
    /// Bytes of codes, scales and zero points.
    pub bytes: u64,
    /// What the network loses with this weight alone quantized.
    pub loss: f64,
}

/// A width for each weight.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Point {
    /// The mean over the elements of the weights.
    pub average_bits: f64,
    /// Bytes of all constants of the model, as a plan counts them.
    pub bytes: u64,
    /// The sum of the losses.
    pub loss: f64,
    /// The metric of the whole simulated network, with all quantizers of the rules, where it was measured.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub metric: Option<f64>,
    /// The widths, in the order of the weights.
    pub bits: Vec<u32>,
}

/// What was measured of whole networks.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct MeasuredBy {
    /// The metric, by its name in configurations.
    pub metric: String,
    /// Its unit.
    pub unit: &'static str,
    /// Samples of `[evaluation]`.
    pub samples: usize,
    /// The value of the float network; `None` for metrics that compare with it.
    pub float: Option<f64>,
}

/// What a budget buys.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Allocation {
    /// The budget.
    #[serde(serialize_with = "as_text")]
    pub budget: Budget,
    /// The widths.
    pub point: Point,
}

fn as_text<S: Serializer>(budget: &Budget, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(budget)
}
