//! Parameters replaced by their quantized values: what is written, what is left alone, what is refused before.

use std::sync::Arc;

use candle_core::{DType, Device, Tensor, Var};
use fastforward::nn::{Layer, Linear, Param};
use fastforward::quantization::quantizer::{Quantizer, RangeSettable};
use fastforward::quantization::{
    Granularity, LinearQuantizer, LinearQuantizerConfig, QuantizerSlot, disable_quantization,
    freeze_parameters, fuse_qdq_weights, stub_weight_quantizers,
};
use fastforward::tensor::Value;
use fastforward::{ErrorKind, Module, flags};

#[derive(Module)]
struct Pair {
    a: Linear,
    b: Linear,
}

const A: [[f32; 2]; 2] = [[0.31, -0.9], [0.07, 0.55]];
const B: [[f32; 2]; 2] = [[-0.22, 0.4], [0.9, -0.61]];

fn pair() -> Pair {
    let param = |values: [[f32; 2]; 2]| Param::new(Tensor::new(&values, &Device::Cpu).unwrap());
    let bias = || Param::new(Tensor::new(&[0.13f32, -0.4], &Device::Cpu).unwrap());
    Pair {
        a: Linear::from_params(param(A), Some(bias())).unwrap(),
        b: Linear::from_params(param(B), None).unwrap(),
    }
}

/// Steps of `1 / 2^(bits - 1)` from -1.
fn quantizer(num_bits: u32) -> Arc<LinearQuantizer> {
    let quantizer = LinearQuantizer::new(LinearQuantizerConfig::new(num_bits)).unwrap();
    let half = 2f32.powi(num_bits as i32 - 1);
    quantizer.set_quantization_range(&[-1.0], &[(half - 1.0) / half]).unwrap();
    Arc::new(quantizer)
}

/// The values nearest to these on the grid of `quantizer`.
fn on_grid(values: [[f32; 2]; 2], num_bits: u32) -> Vec<Vec<f32>> {
    let half = 2f32.powi(num_bits as i32 - 1);
    let snap = |x: f32| (x * half).round_ties_even().clamp(-half, half - 1.0) / half;
    values.iter().map(|row| row.iter().map(|&x| snap(x)).collect()).collect()
}

fn rows(param: &Param) -> Vec<Vec<f32>> {
    param.tensor().to_vec2::<f32>().unwrap()
}

#[test]
fn a_quantizer_held_by_two_slots_fuses_both_weights() {
    let model = pair();
    let shared = quantizer(3);
    model.a.weight_quantizer.replace(shared.clone());
    model.b.weight_quantizer.replace(shared);
    assert_eq!(fuse_qdq_weights(&model, true).unwrap(), ["a.weight", "b.weight"]);
    assert_eq!(rows(&model.a.weight), on_grid(A, 3));
    assert_eq!(rows(&model.b.weight), on_grid(B, 3));
    assert!(model.a.weight_quantizer.is_stub() && model.b.weight_quantizer.is_stub());
}

#[test]
fn a_slot_shared_by_two_layers_fuses_both_weights() {
    let mut model = pair();
    model.b.weight_quantizer = model.a.weight_quantizer.clone();
    model.a.weight_quantizer.replace(quantizer(3));
    assert_eq!(fuse_qdq_weights(&model, true).unwrap(), ["a.weight", "b.weight"]);
    assert_eq!(rows(&model.b.weight), on_grid(B, 3));
    assert!(model.b.weight_quantizer.is_stub());
}

#[test]
fn conflicting_quantizers_of_a_tied_weight_are_refused_before_anything_is_written() {
    let mut model = pair();
    model.b.weight = model.a.weight.clone();
    let other = pair();
    model.a.weight_quantizer.replace(quantizer(3));
    model.b.weight_quantizer.replace(quantizer(4));
    other.a.weight_quantizer.replace(quantizer(2));
    let both = vec![other, model];
    let error = fuse_qdq_weights(&both, true).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidSettings);
    let text = error.to_string();
    assert!(
        text.contains("`1.a.weight_quantizer` and `1.b.weight_quantizer` make different values"),
        "{text}"
    );
    // Neither the tied weight nor the sound one before it has changed, nor any slot.
    assert_eq!((rows(&both[0].a.weight), rows(&both[1].a.weight)), (rows_of(A), rows_of(A)));
    assert!(!both[0].a.weight_quantizer.is_stub() && !both[1].b.weight_quantizer.is_stub());

    // Two quantizers that agree on every value are no conflict; the weight is written once.
    both[1].b.weight_quantizer.replace(quantizer(3));
    assert_eq!(fuse_qdq_weights(&both, true).unwrap(), ["0.a.weight", "1.a.weight"]);
    assert_eq!(rows(&both[1].b.weight), on_grid(A, 3));
    assert!(both[1].a.weight_quantizer.is_stub() && both[1].b.weight_quantizer.is_stub());
}

fn rows_of(values: [[f32; 2]; 2]) -> Vec<Vec<f32>> {
    values.iter().map(|row| row.to_vec()).collect()
}

#[test]
fn freezing_writes_weights_and_biases_and_leaves_activations() {
    let model = pair();
    model.a.weight_quantizer.replace(quantizer(3));
    model.a.bias_quantizer.as_ref().unwrap().replace(quantizer(4));
    let activation = quantizer(8);
    model.a.input_quantizer.replace(activation.clone());
    model.a.output_quantizer.replace(activation.clone());
    assert_eq!(freeze_parameters(&model).unwrap(), ["a.weight", "a.bias"]);
    assert_eq!(model.a.bias.as_ref().unwrap().tensor().to_vec1::<f32>().unwrap(), [0.125, -0.375]);
    assert!(
        model.a.weight_quantizer.is_stub() && model.a.bias_quantizer.as_ref().unwrap().is_stub()
    );
    let held: Arc<dyn Quantizer> = activation;
    assert!(model.a.input_quantizer.holds(&held) && model.a.output_quantizer.holds(&held));
    // The tags are still there, so the same rules can fill the slots again.
    assert!(model.a.weight_quantizer.metadata().is_weight_quantizer());
}

#[test]
fn quantizers_that_are_switched_off_write_nothing_and_stay() {
    let model = pair();
    model.a.weight_quantizer.replace(quantizer(3));
    model.b.weight_quantizer.replace(quantizer(3));
    {
        let _off = disable_quantization(&model);
        assert!(fuse_qdq_weights(&model, true).unwrap().is_empty());
    }
    {
        let _half = disable_quantization(&model.a);
        assert_eq!(fuse_qdq_weights(&model, true).unwrap(), ["b.weight"]);
    }
    assert_eq!(rows(&model.a.weight), rows_of(A));
    assert_eq!(rows(&model.b.weight), on_grid(B, 3));
    assert!(!model.a.weight_quantizer.is_stub() && model.b.weight_quantizer.is_stub());
}

#[test]
fn export_mode_does_not_keep_weights_from_being_fused() {
    let model = pair();
    model.a.weight_quantizer.replace(quantizer(3));
    let _export = flags::export_mode(true);
    assert_eq!(fuse_qdq_weights(&model, true).unwrap(), ["a.weight"]);
    assert_eq!(rows(&model.a.weight), on_grid(A, 3));
}

#[test]
fn fusing_keeps_what_the_model_computes_and_a_second_time_changes_nothing() {
    let model = pair();
    let config = LinearQuantizerConfig::new(4).with_granularity(Granularity::per_channel(0));
    let weight = LinearQuantizer::new(config).unwrap();
    weight.set_quantization_range(&[-0.93, -0.2], &[0.4, 0.57]).unwrap();
    model.a.weight_quantizer.replace(Arc::new(weight));
    model.a.input_quantizer.replace(quantizer(8));
    let x = Value::from(Tensor::new(&[[0.3f32, -0.7], [0.9, 0.2]], &Device::Cpu).unwrap());
    let run = || {
        let _lenient = flags::strict_quantization(false);
        let _simulated = flags::integer_execution_mode(false);
        model.a.forward(&x).unwrap().dequantize().unwrap().to_vec2::<f32>().unwrap()
    };
    let quantized = run();
    assert_eq!(fuse_qdq_weights(&model, false).unwrap(), ["a.weight"]);
    let fused = rows(&model.a.weight);
    assert_ne!(fused, rows_of(A));
    assert_eq!(run(), quantized);
    assert_eq!(fuse_qdq_weights(&model, true).unwrap(), ["a.weight"]);
    assert_eq!((rows(&model.a.weight), run()), (fused, quantized));
}

#[test]
fn variables_and_types_are_kept() {
    let var = Var::new(&A, &Device::Cpu).unwrap();
    let a = Linear::from_params(Param::new(var.as_tensor().clone()), None).unwrap();
    let half = Tensor::new(&B, &Device::Cpu).unwrap().to_dtype(DType::F16).unwrap();
    let model = Pair { a, b: Linear::from_tensors(half, None).unwrap() };
    model.a.weight_quantizer.replace(quantizer(3));
    model.b.weight_quantizer.replace(quantizer(3));
    fuse_qdq_weights(&model, true).unwrap();
    assert_eq!(var.as_tensor().to_vec2::<f32>().unwrap(), on_grid(A, 3));
    assert_eq!(model.a.weight.var().unwrap().as_tensor().id(), var.as_tensor().id());
    let half = model.b.weight.tensor();
    assert_eq!(half.dtype(), DType::F16);
    assert_eq!(half.to_dtype(DType::F32).unwrap().to_vec2::<f32>().unwrap(), on_grid(B, 3));
}

#[test]
fn every_quantizer_without_a_range_is_named() {
    let model = pair();
    let unset = || Arc::new(LinearQuantizer::new(LinearQuantizerConfig::new(4)).unwrap());
    model.a.weight_quantizer.replace(unset());
    model.a.bias_quantizer.as_ref().unwrap().replace(quantizer(4));
    model.b.weight_quantizer.replace(unset());
    fastforward::module::name_slots(&model);
    let error = freeze_parameters(&model).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::UnsetQuantizer);
    for name in ["`a.weight_quantizer`", "`b.weight_quantizer`"] {
        assert!(error.to_string().contains(name), "{error}");
    }
    assert_eq!(model.a.bias.as_ref().unwrap().tensor().to_vec1::<f32>().unwrap(), [0.13, -0.4]);
}

#[test]
fn emptying_weight_slots_writes_nothing() {
    let model = pair();
    model.a.weight_quantizer.replace(quantizer(2));
    model.a.input_quantizer.replace(quantizer(8));
    assert_eq!(stub_weight_quantizers(&model).unwrap(), ["a.weight"]);
    assert_eq!(rows(&model.a.weight), rows_of(A));
    assert!(model.a.weight_quantizer.is_stub() && !model.a.input_quantizer.is_stub());
}

/// A parameter whose elements nobody but its layer knows.
struct Foreign;

impl fastforward::module::Parameter for Foreign {
    fn shape(&self) -> &[usize] {
        &[2]
    }
    fn dtype(&self) -> &str {
        "f32"
    }
    fn size_bytes(&self) -> usize {
        8
    }
}

#[derive(Module)]
struct Owned {
    weight: Arc<Param>,
    weight_quantizer: QuantizerSlot,
}

#[derive(Module)]
struct Strange {
    weight: Foreign,
    weight_quantizer: QuantizerSlot,
}

#[test]
fn a_parameter_behind_a_pointer_is_fused_and_a_foreign_one_is_named() {
    let weight = Arc::new(Param::new(Tensor::new(&[0.31f32, -0.9], &Device::Cpu).unwrap()));
    let owned = Owned { weight, weight_quantizer: QuantizerSlot::weight(&[2]) };
    owned.weight_quantizer.replace(quantizer(3));
    assert_eq!(fuse_qdq_weights(&owned, true).unwrap(), ["weight"]);
    assert_eq!(owned.weight.tensor().to_vec1::<f32>().unwrap(), [0.25, -1.0]);
    let strange = Strange { weight: Foreign, weight_quantizer: QuantizerSlot::weight(&[2]) };
    strange.weight_quantizer.replace(quantizer(3));
    let error = fuse_qdq_weights(&strange, true).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert!(error.to_string().contains("`weight` is no `nn::Param`"), "{error}");
}
