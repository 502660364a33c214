//! What a sweep found.

use serde::{Serialize, Serializer};

use super::{Budget, ScoreData, SensitivityScore, SweptSlots};

/// The prices of all slots at all widths, and what can be bought.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Sensitivity {
    /// The model's file name.
    pub model: String,
    /// The configuration's file name.
    pub config: String,
    /// What losses are, and of what.
    pub scored: ScoredBy,
    /// The widths of weights, ascending; empty where none are swept.
    pub weight_widths: Vec<SweptWidth>,
    /// The widths of activations, ascending; empty where none are swept.
    pub activation_widths: Vec<SweptWidth>,
    /// The slots: weights in the order of the graph, then activations.
    pub slots: Vec<SlotPrices>,
    /// What can be bought: for weights and for activations apart, or for both where a bound on the metric decides both.
    pub curves: Vec<Curve>,
    /// What was measured of whole networks, where anything was.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub measured: Option<MeasuredBy>,
    /// What the budgets buy, where there are any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub allocation: Option<Allocation>,
    /// What should be known beside the numbers.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}

impl Sensitivity {
    /// The widths of the allocation for the slots of one of its curves.
    pub fn chosen(&self, curve: &Curve) -> Option<&[u32]> {
        let bits = self.allocation.as_ref()?.point.bits.as_slice();
        let n_weights = self.slots.iter().filter(|slot| !slot.is_activation()).count();
        match curve.slots {
            SweptSlots::Weights => bits.get(..n_weights),
            SweptSlots::Activations => bits.get(n_weights..),
            SweptSlots::All => Some(bits),
        }
    }
}

/// A width, and what the exported file holds codes of it in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct SweptWidth {
    /// The width.
    pub bits: u32,
    /// The type of ONNX: the narrowest that holds codes of a constant, the one of just this width for activations.
    pub stored_as: &'static str,
    /// The first operator set that has it, in the layout of all these slots.
    pub opset: i64,
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

/// What a slot costs at each width.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SlotPrices {
    /// Every full name of the slot; the first is the one that is shown.
    pub names: Vec<String>,
    /// What stands there: `weight`, `bias`, `constant`, `input` or `output`.
    pub role: &'static str,
    /// The position of the rule that decides it.
    pub rule: usize,
    /// Elements: of a constant all, of an activation those of one sample.
    pub elements: u64,
    /// The width that the rule gives it.
    pub num_bits: u32,
    /// One per width.
    pub prices: Vec<SlotPrice>,
}

impl SlotPrices {
    /// Whether an activation stands there.
    pub fn is_activation(&self) -> bool {
        matches!(self.role, "input" | "output")
    }
}

/// What a slot costs at one width.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct SlotPrice {
    /// The width.
    pub bits: u32,
    /// Bytes of codes, scales and zero points of a constant; 0 for activations, which no file holds.
    pub bytes: u64,
    /// What the network loses with this slot alone quantized.
    pub loss: f64,
}

/// Sizes against losses.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Curve {
    /// The slots whose widths are chosen together.
    pub slots: SweptSlots,
    /// All slots of a kind at one width, for each width; of two kinds, for each pair of widths.
    pub uniform: Vec<Point>,
    /// What no other choice of widths beats in both size and sum of losses: the corners of the Pareto front, by rising size,
    /// with the points that were measured. Sizes are bytes if the budget is, else the bits of the constants and of the
    /// activations of one sample.
    pub points: Vec<Point>,
    /// Whether the front is complete; else the choices are good, but better ones may be missed.
    pub is_exact: bool,
}

/// A width for each slot.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Point {
    /// The mean over the elements of the weights, if any are among the slots.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub average_bits: Option<f64>,
    /// The mean over the elements of the activations of one sample, if any are among the slots.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub activation_bits: Option<f64>,
    /// Bytes of all constants of the model, as a plan counts them.
    pub bytes: u64,
    /// The sum of the losses.
    pub loss: f64,
    /// The metric of the whole simulated network, with all quantizers of the rules, where it was measured.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub metric: Option<f64>,
    /// The widths, in the order of the slots.
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

/// What budgets buy.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Allocation {
    /// The budgets.
    #[serde(serialize_with = "as_texts")]
    pub budgets: Vec<Budget>,
    /// The widths of all slots.
    pub point: Point,
}

fn as_texts<S: Serializer>(budgets: &[Budget], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(budgets.iter().map(ToString::to_string))
}
