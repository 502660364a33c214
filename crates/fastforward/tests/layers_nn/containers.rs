//! Layers that hold layers.

use std::sync::Arc;

use fastforward::ErrorKind;
use fastforward::module::{Module, VisitorMut, named_slots};
use fastforward::nn::*;
use fastforward::quantization::QuantizerSlot;
use fastforward::tensor::Result;

use crate::common::{check_numbers, float, noise};

#[test]
fn a_sequence_computes_one_layer_after_the_other() -> Result<()> {
    let model: Sequential = (LeakyReLU::new(-1.0), Softmax::new(0), Flatten::new(0, -1)).into();
    let x = candle_core::Tensor::new(&[[3f32], [-3.0]], crate::common::CPU)?;
    check_numbers(&float(&model, &x)?, &[0.5, 0.5], 0.0);
    assert_eq!(float(&model, &x)?.dims(), [2]);
    Ok(())
}

#[test]
fn an_empty_sequence_gives_what_it_gets() -> Result<()> {
    let x = noise(&[2, 3]);
    assert_eq!(float(&Sequential::new(), &x)?.to_vec2::<f32>()?, x.to_vec2::<f32>()?);
    Ok(())
}

#[test]
fn layers_are_named_by_place_or_by_name() -> Result<()> {
    let model = Sequential::new()
        .add(ReLU::new())
        .add_named("act", Tanh::new())?
        .add(Sequential::new().add(Sigmoid::new()));
    let slots = named_slots(&model);
    let names: Vec<&str> =
        slots.iter().map(|slot| slot.name()).filter(|n| n.contains("in")).collect();
    assert_eq!(names, ["0.input_quantizer", "act.input_quantizer", "2.0.input_quantizer"]);
    assert_eq!(model.get("act").map(|layer| layer.class().name()), Some("Tanh"));
    assert!(model.get("1").is_none());
    assert_eq!(model.iter().map(|(name, _)| name).collect::<Vec<_>>(), ["0", "act", "2"]);
    assert_eq!(
        format!("{:?}", Sequential::new().add(ReLU::new())),
        format!("Sequential {{\"0\": {:?}}}", ReLU::new().class())
    );
    Ok(())
}

#[test]
fn names_that_would_be_ambiguous_are_refused() {
    for (name, problem) in [
        ("", "`` is no name for a layer: it is empty, or has a `.` in it"),
        ("a.b", "`a.b` is no name for a layer: it is empty, or has a `.` in it"),
        ("act", "there is a layer `act` already"),
        ("7", "`7` would name the layer at place 1; a number is the name of its place"),
    ] {
        let model = Sequential::new().add_named("act", ReLU::new()).unwrap();
        let error = model.add_named(name, ReLU::new()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Operator);
        assert_eq!(error.to_string(), format!("Sequential: {problem}"));
    }
    assert!(Sequential::new().add_named("0", ReLU::new()).is_ok());
}

#[test]
fn boxed_and_shared_layers_are_layers() -> Result<()> {
    let shared = Arc::new(ReLU::new());
    let boxed: Box<dyn Layer> = Box::new(Arc::clone(&shared));
    let model = Sequential::new().add(boxed).add(Arc::clone(&shared));
    let slots = named_slots(&model);
    assert_eq!(slots[0].names, ["0.input_quantizer", "1.input_quantizer"]);
    check_numbers(&float(&model, &(noise(&[3]).abs()? * -1.0)?)?, &[0.0; 3], 0.0);
    Ok(())
}

#[test]
fn mutable_visitors_reach_the_layers() {
    struct Count(usize);
    impl VisitorMut for Count {
        fn module(&mut self, _: &str, module: &mut dyn Module) {
            module.visit_mut(self);
        }
        fn slot(&mut self, _: &str, _: &mut QuantizerSlot) {
            self.0 += 1;
        }
    }
    let mut model: Sequential = (ReLU::new(), Identity, Softmax::new(0)).into();
    let mut count = Count(0);
    model.visit_mut(&mut count);
    assert_eq!(count.0, 4);
}
