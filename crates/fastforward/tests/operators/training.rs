//! Learned scales: a linear layer's loss, gradients and parameters over three steps of AdamW.

use std::collections::BTreeMap;
use std::sync::Arc;

use candle_core::{Tensor, Var};
use candle_nn::{AdamW, Optimizer, ParamsAdamW};
use fastforward::nn::{Layer, Linear};
use fastforward::quantization::affine::AffineParameters;
use fastforward::quantization::{
    LinearQuantizer, LinearQuantizerConfig, QuantizerSlot, TrainableOptions, trainable,
};
use fastforward::tensor::Value;
use serde::Deserialize;

use crate::cases::{Tensors, read_json};
use crate::compare::Tolerance;
use crate::quantized::Kind;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Case {
    id: String,
    weight_quantizer: Settings,
    input_quantizer: Settings,
    optimizer: Adam,
    initial: BTreeMap<String, String>,
    steps: Vec<Step>,
    gradient_tolerance: String,
    parameter_tolerance: String,
}

#[derive(Deserialize)]
struct Settings {
    num_bits: u32,
    granularity: Kind,
    elements_per_scale: usize,
    scale_gradient_factor: f64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Adam {
    name: String,
    lr: f64,
    betas: [f64; 2],
    eps: f64,
    weight_decay: f64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Step {
    input: String,
    target: String,
    output: String,
    loss: String,
    gradients: BTreeMap<String, String>,
    after: BTreeMap<String, String>,
}

impl Settings {
    /// Puts a quantizer with these settings and parameters into a slot.
    fn fill(&self, slot: &QuantizerSlot, scale: &Tensor, offset: Option<&Tensor>) {
        let config = LinearQuantizerConfig::new(self.num_bits)
            .with_granularity(self.granularity.granularity());
        let config = if offset.is_some() { config.asymmetric() } else { config };
        let quantizer = LinearQuantizer::new(config).expect("the bits of the data exist");
        let vector = |tensor: &Tensor| tensor.to_vec1::<f32>().expect("an f32 vector");
        let parameters = AffineParameters {
            num_bits: self.num_bits,
            narrow_range: false,
            scale: vector(scale),
            offset: offset.map(vector),
        };
        quantizer.set_parameters(parameters).expect("the parameters are sound");
        slot.replace(Arc::new(quantizer));
    }

    /// Whether the factor is LSQ's, which it must be if it is not 1.
    fn lsq(&self) -> bool {
        let largest = (1u32 << (self.num_bits - 1)) - 1;
        let factor = 1.0 / (self.elements_per_scale as f64 * f64::from(largest)).sqrt();
        assert!(self.scale_gradient_factor == 1.0 || self.scale_gradient_factor == factor);
        self.scale_gradient_factor != 1.0
    }
}

#[test]
fn conformance_training() {
    #[derive(Deserialize)]
    struct File {
        cases: Vec<Case>,
    }
    let File { cases } = read_json("training.json");
    let tensors = Tensors::read("training");
    assert_eq!(cases.iter().map(|case| case.id.as_str()).collect::<Vec<_>>(), ["plain", "lsq"]);
    let failures: Vec<_> = cases.iter().flat_map(|case| check(case, &tensors)).collect();
    assert!(failures.is_empty(), "{} failures:\n{}", failures.len(), failures.join("\n"));
}

fn check(case: &Case, tensors: &Tensors) -> Vec<String> {
    let initial = |name: &str| tensors.get(&case.initial[name]);
    let (weight, bias) = (initial("weight").clone(), initial("bias").clone());
    let layer = Linear::from_tensors(weight, Some(bias)).unwrap();
    case.weight_quantizer.fill(&layer.weight_quantizer, initial("weight_scale"), None);
    let offset = initial("input_offset");
    case.input_quantizer.fill(&layer.input_quantizer, initial("input_scale"), Some(offset));
    let lsq = case.weight_quantizer.lsq();
    assert_eq!(lsq, case.input_quantizer.lsq());
    let options = TrainableOptions { lsq_gradient_scaling: lsq, ..TrainableOptions::default() };
    let learned: BTreeMap<_, _> =
        trainable(&layer, options).unwrap().named_vars().into_iter().collect();
    let vars: BTreeMap<&str, Var> = BTreeMap::from([
        ("weight", layer.weight.make_trainable().unwrap()),
        ("bias", layer.bias.as_ref().unwrap().make_trainable().unwrap()),
        ("weight_scale", learned["weight_quantizer.scale"].clone()),
        ("input_scale", learned["input_quantizer.scale"].clone()),
        ("input_offset", learned["input_quantizer.offset"].clone()),
    ]);
    assert_eq!(learned.len(), 3, "what learns: {:?}", learned.keys());

    let adam = &case.optimizer;
    assert_eq!(adam.name, "AdamW");
    let settings = ParamsAdamW {
        lr: adam.lr,
        beta1: adam.betas[0],
        beta2: adam.betas[1],
        eps: adam.eps,
        weight_decay: adam.weight_decay,
    };
    let mut optimizer = AdamW::new(vars.values().cloned().collect(), settings).unwrap();
    let gradient_tolerance = Tolerance::parse(&case.gradient_tolerance, None).unwrap();
    let parameter_tolerance = Tolerance::parse(&case.parameter_tolerance, None).unwrap();
    let mut failures = Vec::new();
    for (i, step) in case.steps.iter().enumerate() {
        let mut compare = |part: &str, tolerance: Tolerance, got: &Tensor, key: &String| {
            if let Err(problem) = tolerance.check(got, tensors.get(key)) {
                failures.push(format!("{}: step {i}: {part}: {problem}", case.id));
            }
        };
        let input = Var::from_tensor(tensors.get(&step.input)).unwrap();
        let output = layer.forward(&Value::from(input.as_tensor())).unwrap().dequantize().unwrap();
        let error = (&output - tensors.get(&step.target)).unwrap();
        let loss = error.sqr().unwrap().mean_all().unwrap();
        let gradients = loss.backward().unwrap();
        compare("output", gradient_tolerance, &output, &step.output);
        compare("loss", gradient_tolerance, &loss.reshape(1).unwrap(), &step.loss);
        for (name, key) in &step.gradients {
            let var = if name == "input" { &input } else { &vars[name.as_str()] };
            let gradient = gradients.get(var).unwrap_or_else(|| panic!("no gradient of {name}"));
            compare(&format!("gradient of {name}"), gradient_tolerance, gradient, key);
        }
        optimizer.step(&gradients).unwrap();
        for (name, key) in &step.after {
            compare(&format!("{name} after"), parameter_tolerance, &vars[name.as_str()], key);
        }
    }
    failures
}
