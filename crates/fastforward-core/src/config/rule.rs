//! Rules: a query, and the quantizer that its matches get.

use std::ops::Range;

use toml::de::DeValue;

use super::diagnostic::SourceText;
use super::estimator::read_estimator;
use super::reader::{Fields, Problems, Value, integer, integers, wrong_type};
use crate::quantization::affine::{OneSided, RangeSettings};
use crate::quantization::quant_init::{ChannelAxis, Expect, QuantizerSpec};
use crate::quantization::{
    DynamicLinearQuantizer, DynamicLinearQuantizerConfig, Granularity, LinearQuantizer,
    LinearQuantizerConfig,
};
use crate::range_setting::EstimatorConfig;

/// A rule as the file states it.
#[derive(Clone, Debug, PartialEq)]
pub struct RuleEntry {
    /// A name for reports.
    pub name: Option<String>,
    /// Which slots the rule is for.
    pub query: QueryText,
    /// What they get; [`QuantizerSpec::None`] leaves them in float.
    pub quantizer: QuantizerSpec,
    /// How ranges are found, running min-max if the rule does not say; `None` when the quantizer has no range to set.
    pub estimator: Option<EstimatorConfig>,
    /// Whether the rule may match nothing, or never win.
    pub optional: bool,
    /// How many slots the rule must match.
    pub expect: Option<Expect>,
    /// The precedence score: the highest wins, of equal ones the last rule.
    pub priority: i64,
    /// File and line of the rule, `w8a8.toml:12`.
    pub source: String,
    /// The line of the rule, counted from 1.
    pub line: usize,
}

/// The text of a query, and where it stands.
#[derive(Clone, Debug, PartialEq)]
pub struct QueryText {
    /// The query.
    pub text: String,
    /// The line of its first character, counted from 1.
    pub line: usize,
    /// The column of its opening quote, counted from 1.
    pub column: usize,
    /// The bytes of the file that hold it, quotes included.
    pub(super) span: Range<usize>,
}

impl QueryText {
    pub(super) fn new(value: &Value<'_>, source: &SourceText) -> Option<Self> {
        let span = value.span();
        let (line, column) = source.position(span.start);
        Some(Self { text: value.get_ref().as_str()?.to_owned(), line, column, span })
    }
}

const RULE_KEYS: [&str; 7] =
    ["query", "quantizer", "range", "optional", "expect", "name", "priority"];

pub(super) fn read_rule(
    value: &Value<'_>,
    source: &SourceText,
    problems: &Problems,
) -> Option<RuleEntry> {
    let rule = Fields::of_value(value, "[[rule]]", &RULE_KEYS, problems)?;
    rule.require("query", "\"**/[quantizer:parameter/weight]\"");
    rule.require("quantizer", "{ type = \"linear\", num_bits = 8 }");
    let query = rule.string("query").and_then(|_| QueryText::new(rule.get("query")?, source));
    if let Some(query) = &query
        && query.text.trim().is_empty()
    {
        problems.add(query.span.clone(), "`query` is empty", "`**` matches everything");
    }
    let quantizer = rule.get("quantizer").and_then(|value| read_quantizer(value, problems));
    let estimator = match (&quantizer, rule.get("range")) {
        (Some(QuantizerSpec::None), Some(range)) => {
            problems.add(range.span(), "a slot without a quantizer has no range", "remove `range`");
            None
        }
        (Some(QuantizerSpec::DynamicLinear(_)), Some(range)) => {
            problems.add(
                range.span(),
                "a dynamic quantizer takes its range from each tensor",
                "remove `range`",
            );
            None
        }
        (Some(QuantizerSpec::Linear { .. }), None) => Some(EstimatorConfig::RunningMinmax),
        (_, Some(range)) => read_estimator(range, problems),
        (_, None) => None,
    };
    let optional = rule.boolean("optional").unwrap_or(false);
    let expect = rule.get("expect").and_then(|value| read_expect(value, problems));
    if let (true, Some(_)) = (optional, expect) {
        problems.add(
            rule.span_of("expect"),
            "`expect` says how many slots must match, `optional = true` that none need to",
            "remove one of them",
        );
    }
    let name = rule.string("name").map(str::to_owned);
    let priority = rule.integer("priority", i64::MIN..=i64::MAX).unwrap_or(1);
    let line = source.position(value.span().start).0;
    Some(RuleEntry {
        name,
        query: query?,
        quantizer: quantizer?,
        estimator,
        optional,
        expect,
        priority,
        source: format!("{}:{line}", source.name),
        line,
    })
}

fn read_expect(value: &Value<'_>, problems: &Problems) -> Option<Expect> {
    let expect = match value.get_ref() {
        number @ DeValue::Integer(_) => {
            integer(number).and_then(|count| usize::try_from(count).ok()).map(Expect::Exactly)
        }
        DeValue::String(text) => text.parse().ok(),
        _ => None,
    };
    // A count that no match at all satisfies contradicts that a rule must decide something.
    let expect = expect.filter(|expect| {
        !matches!(expect, Expect::Exactly(0) | Expect::AtLeast(0) | Expect::AtMost(0))
    });
    if expect.is_none() {
        problems.add(
            value.span(),
            "`expect` must be a positive number of matches",
            "write `expect = 32` or `expect = \">=1\"`",
        );
    }
    expect
}

const KINDS: [(&str, bool); 2] = [("linear", false), ("dynamic_linear", true)];

const QUANTIZER_KEYS: [&str; 10] = [
    "type",
    "num_bits",
    "symmetric",
    "allow_one_sided",
    "one_sided",
    "zero_in_range",
    "narrow_range",
    "scale_floor",
    "power_of_two",
    "granularity",
];

fn read_quantizer(value: &Value<'_>, problems: &Problems) -> Option<QuantizerSpec> {
    match value.get_ref() {
        DeValue::String(text) if text == "none" => return Some(QuantizerSpec::None),
        DeValue::String(text) => {
            problems.add(
                value.span(),
                format!("unknown quantizer `{text}`"),
                "write \"none\" or a table such as { type = \"linear\", num_bits = 8 }",
            );
            return None;
        }
        DeValue::Table(_) => {}
        other => {
            wrong_type(problems, value.span(), "`quantizer`", "\"none\" or a table", other);
            return None;
        }
    }
    let fields = Fields::of_value(value, "`quantizer`", &QUANTIZER_KEYS, problems)?;
    fields.require("type", "\"linear\"");
    fields.require("num_bits", "8");
    let dynamic = fields.one_of("type", &KINDS);
    let num_bits = fields.integer("num_bits", 1..=25).and_then(|bits| u32::try_from(bits).ok());
    // The two kinds of quantizer have opposite defaults (spec §3.7, §3.8).
    let symmetric = fields.boolean("symmetric").unwrap_or(dynamic != Some(true));
    let defaults = RangeSettings::default();
    let range = RangeSettings {
        symmetric,
        allow_one_sided: fields.boolean("allow_one_sided").unwrap_or(defaults.allow_one_sided),
        one_sided: fields
            .one_of(
                "one_sided",
                &[("per_tensor", OneSided::PerTensor), ("per_tile", OneSided::PerTile)],
            )
            .unwrap_or(defaults.one_sided),
        zero_in_range: fields.boolean("zero_in_range").unwrap_or(defaults.zero_in_range),
        narrow_range: fields.boolean("narrow_range").unwrap_or(defaults.narrow_range),
        scale_floor: fields.boolean("scale_floor").unwrap_or(defaults.scale_floor),
        power_of_two: fields.boolean("power_of_two").unwrap_or(defaults.power_of_two),
    };
    let granularity = match fields.get("granularity") {
        None => Some(TileChoice::Fixed(Granularity::PerTensor)),
        Some(value) => read_granularity(value, problems),
    };
    let (dynamic, num_bits, granularity) = (dynamic?, num_bits?, granularity?);
    let refused = |error: crate::Error| {
        problems.add(fields.span_of("num_bits"), error.to_string(), "");
        None
    };
    let (granularity, channel) = match granularity {
        TileChoice::Fixed(granularity) => (granularity, ChannelAxis::AsGiven),
        // The axis is filled in for each slot.
        TileChoice::PerOutputChannel => (Granularity::PerTensor, ChannelAxis::OfOutput),
    };
    if dynamic {
        if channel == ChannelAxis::OfOutput {
            problems.add(
                fields.span_of("granularity"),
                "only weights have output channels, and weights are not quantized dynamically",
                "write { per_channel = 0 }",
            );
            return None;
        }
        let config = DynamicLinearQuantizerConfig { num_bits, granularity, range };
        DynamicLinearQuantizer::new(config.clone())
            .map_or_else(refused, |_| Some(QuantizerSpec::DynamicLinear(config)))
    } else {
        let config = LinearQuantizerConfig { num_bits, granularity, range };
        LinearQuantizer::new(config.clone())
            .map_or_else(refused, |_| Some(QuantizerSpec::Linear { config, channel }))
    }
}

/// A granularity, or the wish for one that depends on the slot.
enum TileChoice {
    Fixed(Granularity),
    PerOutputChannel,
}

const GRANULARITIES: [&str; 5] =
    ["per_tensor", "per_output_channel", "per_channel", "per_block", "per_tile"];
const AXES: &str = "a list of axes, such as [0]";
const SIZES: &str = "a list of positive sizes, such as [32]";

fn read_granularity(value: &Value<'_>, problems: &Problems) -> Option<TileChoice> {
    let table = match value.get_ref() {
        DeValue::String(text) if text == "per_tensor" => {
            return Some(TileChoice::Fixed(Granularity::PerTensor));
        }
        DeValue::String(text) if text == "per_output_channel" => {
            return Some(TileChoice::PerOutputChannel);
        }
        DeValue::String(text) => {
            let (message, help) = match text.as_ref() {
                "per_channel" => (
                    "`per_channel` needs an axis",
                    "write { per_channel = 0 }, or \"per_output_channel\" for weights",
                ),
                "per_tile" => ("`per_tile` needs a tile shape", "write { per_tile = [1, 32] }"),
                "per_block" => (
                    "`per_block` needs axes and sizes",
                    "write { per_block = { dims = [1], sizes = [32], per_channel_dims = [0] } }",
                ),
                other => {
                    let place = "`quantizer`";
                    let span = value.span();
                    super::reader::report_unknown(
                        problems,
                        span,
                        "granularity",
                        other,
                        place,
                        &GRANULARITIES,
                    );
                    return None;
                }
            };
            problems.add(value.span(), message, help);
            return None;
        }
        DeValue::Table(table) => table,
        other => {
            wrong_type(problems, value.span(), "`granularity`", "\"per_tensor\" or a table", other);
            return None;
        }
    };
    let fields = Fields::of_value(value, "`granularity`", &GRANULARITIES[2..], problems)?;
    if table.len() != 1 {
        let found = if table.is_empty() { "none" } else { "several" };
        problems.add(
            value.span(),
            format!("`granularity` must name one way to cut the data, found {found}"),
            "write { per_channel = 0 }",
        );
        return None;
    }
    if let Some(value) = fields.get("per_channel") {
        return read_per_channel(value, problems).map(TileChoice::Fixed);
    }
    if let Some(value) = fields.get("per_block") {
        let keys = ["dims", "sizes", "per_channel_dims"];
        let block = Fields::of_value(value, "`per_block`", &keys, problems)?;
        block.require("dims", "[1]");
        block.require("sizes", "[32]");
        let dims: Option<Vec<isize>> = block.integers("dims", AXES);
        let sizes = block.integers("sizes", SIZES).and_then(|sizes: Vec<usize>| {
            all_positive(sizes, block.span_of("sizes"), "`sizes`", problems)
        });
        let per_channel_dims = match block.get("per_channel_dims") {
            None => Some(vec![]),
            Some(_) => block.integers("per_channel_dims", AXES),
        };
        let (dims, sizes, per_channel_dims) = (dims?, sizes?, per_channel_dims?);
        if dims.len() != sizes.len() {
            problems.add(
                value.span(),
                format!("{} dims need as many sizes, found {}", dims.len(), sizes.len()),
                "",
            );
            return None;
        }
        let granularity = Granularity::PerBlock { dims, sizes, per_channel_dims };
        return Some(TileChoice::Fixed(granularity));
    }
    let value = fields.get("per_tile")?;
    let shape = integers(value, "`per_tile`", "a tile shape, such as [1, 32]", problems)?;
    let shape = all_positive(shape, value.span(), "`per_tile`", problems)?;
    Some(TileChoice::Fixed(Granularity::PerTile { shape }))
}

fn read_per_channel(value: &Value<'_>, problems: &Problems) -> Option<Granularity> {
    let axes = match value.get_ref() {
        number @ DeValue::Integer(_) => {
            integer(number).and_then(|axis| isize::try_from(axis).ok()).map(|axis| vec![axis])
        }
        DeValue::Array(_) => {
            integers(value, "`per_channel`", "an axis or a list of axes", problems)
        }
        DeValue::Table(_) => {
            let fields = Fields::of_value(value, "`per_channel`", &["axes"], problems)?;
            fields.require("axes", "[0]");
            fields.integers("axes", AXES)
        }
        other => {
            wrong_type(problems, value.span(), "`per_channel`", "an axis or a list of axes", other);
            None
        }
    };
    Some(Granularity::PerChannel { axes: axes? })
}

fn all_positive(
    sizes: Vec<usize>,
    span: Range<usize>,
    place: &str,
    problems: &Problems,
) -> Option<Vec<usize>> {
    if sizes.contains(&0) {
        problems.add(span, format!("{place} must be positive"), "");
        return None;
    }
    Some(sizes)
}
