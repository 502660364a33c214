//! Family `dynamic`: parameters that come from the data.

use fastforward::ArrayView;
use fastforward::quantization::affine::RangeSettings;
use fastforward::quantization::{DynamicLinearQuantizer, DynamicLinearQuantizerConfig, Quantizer};
use serde_json::{Value, json};

use crate::differences::{Difference, judge, run};
use crate::golden::{Family, integers};
use crate::granularity::granularity;

#[test]
fn conformance_dynamic() {
    let family = Family::read("dynamic");
    run("dynamic", family.cases(), |case| {
        let tensor = |name: &str| family.tensor(case, name).expect("the case has this tensor");
        let shape: Vec<usize> = integers(&case["shape"]);
        let flag = |name: &str| case[name].as_bool().expect("a flag");
        let quantizer = DynamicLinearQuantizer::new(DynamicLinearQuantizerConfig {
            num_bits: case["num_bits"].as_u64().expect("bits") as u32,
            granularity: granularity(&case["granularity"]),
            range: RangeSettings {
                symmetric: flag("symmetric"),
                allow_one_sided: flag("allow_one_sided"),
                zero_in_range: false,
                ..RangeSettings::default()
            },
        })
        .expect("the golden settings exist");
        let view = ArrayView::new(tensor("x").f32(), &shape).unwrap();
        let quantized = quantizer.quantize(view).map_err(|e| e.to_string())?;
        let dequantized = quantized.dequantize().map_err(|e| e.to_string())?.data;
        let fake = quantizer.forward(view).map_err(|e| e.to_string())?.into_array(view).data;
        let scale = &quantized.parameters.scale;
        let offset = quantized.parameters.offset.clone().unwrap_or_else(|| vec![0.0; scale.len()]);
        let ours = json!({
            "is_finite": dequantized.iter().chain(scale).all(|value| value.is_finite()),
            "all_zero": dequantized.iter().all(|&value| value == 0.0),
        });
        judge("dynamic", case, &ours, || match () {
            () if scale != tensor("scale").f32() => Err("other scales".into()),
            () if offset != tensor("offset").f32() => Err("other offsets".into()),
            () if fake != dequantized => Err("fake quantization differs from the two steps".into()),
            () if !flag("finite") => Err("the oracle has NaN".into()),
            () if quantized.codes.to_i32() != tensor("q").i32() => Err("other codes".into()),
            () if dequantized != tensor("deq").f32() => Err("other dequantized values".into()),
            () => Ok(()),
        })
    });
}

pub const DIFFERENCES: &[Difference] = &[Difference {
    family: "dynamic",
    when: "the oracle produces NaN: constant zero data, symmetric",
    reason: "a scale of zero makes NaN of harmless data; the scale floor gives zeros",
    applies: |case| case["finite"] == Value::Bool(false),
    check: |case, ours| match (&ours["is_finite"], &case["data"]) {
        (Value::Bool(true), Value::String(data))
            if data.contains("zero") && ours["all_zero"] != true =>
        {
            Err("zeros do not stay zeros".into())
        }
        (Value::Bool(true), _) => Ok(()),
        _ => Err("our result is not finite either".into()),
    },
}];
