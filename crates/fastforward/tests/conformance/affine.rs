//! Family `affine`: quantizing and dequantizing with given parameters.
//!
//! Gradients are judged where they are computed, in `crates/ff-kernels/tests/conformance.rs`.

use fastforward::ArrayView;
use fastforward::quantization::affine::AffineParameters;
use fastforward::quantization::{Granularity, LinearQuantizer, LinearQuantizerConfig, Quantizer};
use serde_json::{Value, json};

use crate::differences::{Difference, judge, run};
use crate::golden::{Family, integers};
use crate::granularity::granularity;

fn quantizer(
    num_bits: u32,
    granularity: Granularity,
    scale: Vec<f32>,
    offset: Option<Vec<f32>>,
) -> LinearQuantizer {
    let config = LinearQuantizerConfig::new(num_bits).with_granularity(granularity);
    let quantizer = LinearQuantizer::new(config).expect("the golden bit widths exist");
    let parameters = AffineParameters { num_bits, narrow_range: false, scale, offset };
    quantizer.set_parameters(parameters).expect("the golden parameters are sound");
    quantizer
}

#[test]
fn conformance_affine() {
    let family = Family::read("affine");
    run("affine", family.cases(), |case| {
        let tensor = |name: &str| family.tensor(case, name).expect("the case has this tensor");
        let (x, shape) = (tensor("x").f32(), integers::<usize>(&case["shape"]));
        let granularity = granularity(&case["granularity"]);
        assert_eq!(granularity.tile_shape(&shape).unwrap(), integers::<usize>(&case["tile_size"]));
        assert_eq!(granularity.num_parameters(&shape).unwrap() as u64, case["num_params"]);
        let quantizer = quantizer(
            case["num_bits"].as_u64().expect("bits") as u32,
            granularity,
            tensor("scale").f32().to_vec(),
            family.tensor(case, "offset").map(|offset| offset.f32().to_vec()),
        );
        let view = ArrayView::new(x, &shape).unwrap();
        let codes = quantizer.quantize(view).map_err(|e| e.to_string())?;
        let dequantized = codes.dequantize().map_err(|e| e.to_string())?.data;
        let fake = quantizer.forward(view).map_err(|e| e.to_string())?.into_array(view).data;
        judge("affine", case, &Value::Null, || {
            let expected = tensor("deq").f32();
            match () {
                () if codes.codes.to_i32() != tensor("q").i32() => Err("other codes".into()),
                () if dequantized != expected => Err("other dequantized values".into()),
                () if fake != expected => {
                    Err("fake quantization differs from the two steps".into())
                }
                () => Ok(()),
            }
        })
    });
}

#[test]
fn conformance_affine_misuse() {
    let mut family = Family::read("affine");
    let mut cases = family.file["misuse"].as_array_mut().expect("a list").clone();
    for (at, case) in cases.iter_mut().enumerate() {
        case["id"] = json!(format!("misuse {at}"));
    }
    run("affine_misuse", &cases, |case| {
        let shape: Vec<usize> = integers(&case["shape"]);
        let declared = &case["granularity"];
        let granularity = granularity(declared);
        let ours = match granularity.num_parameters(&shape) {
            Err(_) => json!({ "refused": true }),
            Ok(count) => {
                let num_scales = declared["num_scales"].as_u64().map_or(count, |n| n as usize);
                let bits = case["num_bits"].as_u64().expect("bits") as u32;
                let quantizer = quantizer(bits, granularity.clone(), vec![0.5; num_scales], None);
                let ones = vec![1.0; shape.iter().product()];
                match quantizer.quantize(ArrayView::new(&ones, &shape).unwrap()) {
                    Err(_) => json!({ "refused": true }),
                    Ok(codes) => json!({
                        "tile_size": granularity.tile_shape(&shape).unwrap(),
                        "num_scales": num_scales,
                        "q_first": f64::from(codes.codes.to_i32()[0]),
                    }),
                }
            }
        };
        judge("affine_misuse", case, &ours, || {
            let expected = case.get("ok").cloned().unwrap_or_else(|| json!({ "refused": true }));
            if ours == expected { Ok(()) } else { Err(format!("{ours}, expected {expected}")) }
        })
    });
}

pub const DIFFERENCES: &[Difference] = &[Difference {
    family: "affine_misuse",
    when: "a granularity of several tiles gets one scale",
    reason: "a single scale for several tiles is a mistake far more often than a wish, and the reference spreads it without \
             a word; per tensor says the same on purpose",
    applies: |case| case["granularity"]["num_scales"] == 1,
    check: |_, ours| {
        if ours["refused"] == true { Ok(()) } else { Err(format!("{ours} is not refused")) }
    },
}];
