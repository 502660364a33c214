//! Families `affine` and `dynamic` once more, through tensors: codes, values, and the gradients of data, scales and offsets.

use candle_core::{Device, Tensor, Var};
use fastforward::flags;
use fastforward::quantization::affine::{AffineParameters, RangeSettings};
use fastforward::quantization::{
    DynamicLinearQuantizer, DynamicLinearQuantizerConfig, LinearQuantizerConfig, QuantizerSlot,
    TrainableOptions, TrainableQuantizer,
};
use fastforward::tensor::{Apply, QuantizedTensor, Value as Flow};
use serde_json::{Value, json};

use crate::differences::{judge, run};
use crate::golden::{Family, integers};
use crate::granularity::granularity;

/// Fails unless each sum is within rounding of the expected one, `reach` being the sum of the magnitudes of its terms.
fn close(what: &str, found: &[f32], expected: &[f32], reach: &[f32]) -> Result<(), String> {
    for ((a, b), reach) in found.iter().zip(expected).zip(reach) {
        if (a - b).abs() > 2e-6 * reach {
            return Err(format!("gradient {a} of the {what}, expected {b}"));
        }
    }
    if found.len() == expected.len() {
        Ok(())
    } else {
        Err(format!("{} gradients of the {what}", found.len()))
    }
}

fn numbers(x: &Tensor) -> Vec<f32> {
    x.flatten_all().unwrap().to_vec1().unwrap()
}

fn quantized(slot: &QuantizerSlot, x: &Tensor) -> Result<QuantizedTensor, String> {
    match slot.apply(&x.into()).map_err(|error| error.to_string())? {
        Flow::Quantized(quantized) => Ok(quantized),
        Flow::Float(_) => Err("nothing was quantized".into()),
    }
}

#[test]
fn conformance_affine_through_tensors() {
    let family = Family::read("affine");
    run("affine", family.cases(), |case| {
        let tensor = |name: &str| family.tensor(case, name).expect("the case has this tensor");
        let shape: Vec<usize> = integers(&case["shape"]);
        let num_bits = case["num_bits"].as_u64().expect("bits") as u32;
        let offset = family.tensor(case, "offset").map(|offset| offset.f32().to_vec());
        let mut config = LinearQuantizerConfig::new(num_bits)
            .with_granularity(granularity(&case["granularity"]));
        config.range.symmetric = offset.is_none();
        config.range.allow_one_sided = false;
        let scale = tensor("scale").f32().to_vec();
        let start = AffineParameters { num_bits, narrow_range: false, scale, offset };
        let quantizer =
            TrainableQuantizer::new(config, &start, TrainableOptions::default()).unwrap();
        let quantizer = std::sync::Arc::new(quantizer);
        let slot = QuantizerSlot::input();
        slot.replace(quantizer.clone());
        let x = Tensor::from_slice(tensor("x").f32(), shape.as_slice(), &Device::Cpu).unwrap();

        let codes = |quantized: &QuantizedTensor| {
            quantized.codes().map(|c| c.to_i32()).map_err(|e| e.to_string())
        };
        let inferred = {
            let _constants = flags::inference();
            quantized(&slot, &x)?
        };
        let var = Var::from_tensor(&x).unwrap();
        let learned = quantized(&slot, var.as_tensor())?;
        let values = learned.dequantize().unwrap();
        judge("affine", case, &Value::Null, || {
            let (q, expected) = (tensor("q").i32(), tensor("deq").f32());
            if codes(&inferred)? != q || codes(&learned)? != q {
                return Err("other codes".into());
            }
            if numbers(&inferred.dequantize().unwrap()) != expected || numbers(&values) != expected
            {
                return Err("other dequantized values".into());
            }
            let Some(upstream) = family.tensor(case, "grad_out") else { return Ok(()) };
            let upstream =
                Tensor::from_slice(upstream.f32(), shape.as_slice(), &Device::Cpu).unwrap();
            let gradients = (&values * &upstream).unwrap().sum_all().unwrap().backward().unwrap();
            let found = |of: &Tensor| gradients.get(of).map(numbers);
            if found(&var).as_deref() != Some(tensor("grad_x").f32()) {
                return Err("other gradient of the data".into());
            }
            // Sums may be added in another order than PyTorch's: the golden file's README says how far that reaches.
            let found = |of: Option<&Var>, what: &str| {
                of.and_then(|var| found(var)).ok_or(format!("no gradient of the {what}"))
            };
            let scales = found(Some(quantizer.scale()), "scale")?;
            let reach = tensor("grad_scale_abs").f32().to_vec();
            close("scale", &scales, tensor("grad_scale").f32(), &reach)?;
            if let Some(expected) = family.tensor(case, "grad_offset") {
                let tile: Vec<usize> = integers(&case["tile_size"]);
                let tiling = ff_kernels::Tiling::new(&shape, &tile).unwrap();
                let (g, grad_x) = (numbers(&upstream), tensor("grad_x").f32());
                let scale = tensor("scale").f32();
                let clipped = |tile: usize| {
                    let elements = tiling.tile_elements(tile).filter(|e| grad_x[e.output] == 0.0);
                    elements.map(|e| (scale[tile] * g[e.output]).abs()).sum::<f32>()
                };
                let reach: Vec<f32> = (0..scale.len()).map(clipped).collect();
                close("offset", &found(quantizer.offset(), "offset")?, expected.f32(), &reach)?;
            }
            Ok(())
        })
    });
}

#[test]
fn conformance_dynamic_through_tensors() {
    let family = Family::read("dynamic");
    run("dynamic", family.cases(), |case| {
        let tensor = |name: &str| family.tensor(case, name).expect("the case has this tensor");
        let shape: Vec<usize> = integers(&case["shape"]);
        let flag = |name: &str| case[name].as_bool().expect("a flag");
        let config = DynamicLinearQuantizerConfig {
            num_bits: case["num_bits"].as_u64().expect("bits") as u32,
            granularity: granularity(&case["granularity"]),
            range: RangeSettings {
                symmetric: flag("symmetric"),
                allow_one_sided: flag("allow_one_sided"),
                zero_in_range: false,
                ..RangeSettings::default()
            },
        };
        let slot = QuantizerSlot::input();
        slot.replace(std::sync::Arc::new(DynamicLinearQuantizer::new(config).unwrap()));
        let x = Tensor::from_slice(tensor("x").f32(), shape.as_slice(), &Device::Cpu).unwrap();
        let found = quantized(&slot, &x)?;
        let values = numbers(&found.dequantize().unwrap());
        let parameters = found.context().parameters();
        let scale = &parameters.scale;
        let offset = parameters.offset.clone().unwrap_or_else(|| vec![0.0; scale.len()]);
        let ours = json!({
            "is_finite": values.iter().chain(scale).all(|value| value.is_finite()),
            "all_zero": values.iter().all(|&value| value == 0.0),
        });
        judge("dynamic", case, &ours, || match () {
            () if scale != tensor("scale").f32() => Err("other scales".into()),
            () if offset != tensor("offset").f32() => Err("other offsets".into()),
            () if !flag("finite") => Err("the oracle has NaN".into()),
            () if found.codes().unwrap().to_i32() != tensor("q").i32() => Err("other codes".into()),
            () if values != tensor("deq").f32() => Err("other dequantized values".into()),
            () => Ok(()),
        })
    });
}
