//! Family `ranges`: from a range to a scale and an offset, and back.

use fastforward::ErrorKind;
use fastforward::quantization::affine::RangeSettings;
use fastforward::quantization::quantizer::RangeSettable;
use fastforward::quantization::{LinearQuantizer, LinearQuantizerConfig};
use serde_json::{Value, json};

use crate::differences::{Difference, judge, run};
use crate::golden::{Family, floats};

/// What a quantizer makes of a range: its parameters and the range read back.
fn answer(case: &Value, settings: RangeSettings) -> Value {
    let flag = |name: &str| case[name].as_bool().expect("a flag");
    let range = RangeSettings {
        symmetric: flag("symmetric"),
        allow_one_sided: flag("allow_one_sided"),
        ..settings
    };
    let mut config = LinearQuantizerConfig::new(case["num_bits"].as_u64().expect("bits") as u32);
    config.range = range;
    let quantizer = LinearQuantizer::new(config).expect("the golden settings exist");
    let (min, max) = (floats(&case["min"]), floats(&case["max"]));
    let parameters = match quantizer.parameters_for_range(&min, &max) {
        Ok(parameters) => parameters,
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::InvalidRange, "{error}");
            return json!({ "refused": error.to_string() });
        }
    };
    let (lo, hi) = parameters.quantization_range();
    json!({
        "scale": texts(&parameters.scale),
        "offset": parameters.offset.as_deref().map(texts),
        "range_min": texts(&lo),
        "range_max": texts(&hi),
    })
}

/// Every bit of the numbers, infinities and NaN included; zero without its sign.
fn texts(values: &[f32]) -> Vec<String> {
    values.iter().map(|value| format!("{:?}", value + 0.0)).collect()
}

fn expected(case: &Value) -> Value {
    let field = |name: &str| match &case[name] {
        Value::Null => Value::Null,
        values => json!(texts(&floats(values))),
    };
    json!({
        "scale": field("scale"),
        "offset": field("offset"),
        "range_min": field("range_min"),
        "range_max": field("range_max"),
    })
}

#[test]
fn conformance_ranges() {
    let family = Family::read("ranges");
    run("ranges", family.cases(), |case| {
        let ours = answer(case, RangeSettings::reference());
        judge("ranges", case, &ours, || {
            let expected = expected(case);
            if ours == expected { Ok(()) } else { Err(format!("{ours}, expected {expected}")) }
        })
    });
}

/// The defaults differ from the reference in what `RangeSettings` says, and in nothing else.
#[test]
fn conformance_ranges_by_default() {
    let family = Family::read("ranges");
    run("ranges_by_default", family.cases(), |case| {
        let ours = answer(case, RangeSettings::default());
        judge("ranges_by_default", case, &ours, || {
            let expected = expected(case);
            if ours == expected { Ok(()) } else { Err(format!("{ours}, expected {expected}")) }
        })
    });
}

fn numbers(value: &Value) -> Vec<f32> {
    let text = |value: &Value| value.as_str().and_then(|text| text.parse().ok());
    value.as_array().map(|list| list.iter().filter_map(text).collect()).unwrap_or_default()
}

pub const DIFFERENCES: &[Difference] = &[
    Difference {
        family: "ranges_by_default",
        when: "an asymmetric range does not contain zero",
        reason: "padding, ReLU and every exported zero point need an exact zero: the range is widened to contain it",
        applies: |case| {
            case["symmetric"] == false
                && floats(&case["min"])
                    .iter()
                    .zip(floats(&case["max"]))
                    .any(|(&min, max)| min > 0.0 || max < 0.0)
        },
        check: |_, ours| {
            let (lo, hi, scale) =
                (numbers(&ours["range_min"]), numbers(&ours["range_max"]), numbers(&ours["scale"]));
            let tiles = lo.iter().zip(&hi).zip(&scale);
            match tiles.enumerate().find(|(_, ((lo, hi), s))| **lo > **s * 0.5 || **hi < -**s * 0.5)
            {
                None if !lo.is_empty() => Ok(()),
                Some((tile, ((lo, hi), _))) => {
                    Err(format!("tile {tile} covers {lo}..{hi}, without zero"))
                }
                None => Err(format!("{ours} has no range")),
            }
        },
    },
    Difference {
        family: "ranges_by_default",
        when: "the reference's scale is zero or infinite",
        reason: "a degenerate or overflowing range must not make NaN of data: it gets the smallest, or the largest, usable scale",
        applies: |case| {
            floats(&case["scale"]).iter().any(|scale| *scale == 0.0 || !scale.is_finite())
        },
        check: |_, ours| {
            let scale = numbers(&ours["scale"]);
            if !scale.is_empty() && scale.iter().all(|scale| *scale > 0.0 && scale.is_finite()) {
                Ok(())
            } else {
                Err(format!("scale {scale:?}"))
            }
        },
    },
];
