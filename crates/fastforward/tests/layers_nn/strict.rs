//! What strict mode says of a model with layers in it.

use fastforward::module::name_slots;
use fastforward::nn::*;
use fastforward::quantization::DynamicLinearQuantizerConfig;
use fastforward::quantization::quant_init::{InitializeOptions, QuantizationConfig, QuantizerSpec};
use fastforward::tensor::{Apply, Result};
use fastforward::{ErrorKind, Module};

use crate::common::{check_close, noise};

fn dynamic() -> QuantizerSpec {
    QuantizerSpec::DynamicLinear(DynamicLinearQuantizerConfig::new(8))
}

#[derive(Module)]
struct Block {
    layers: Sequential,
}

fn block() -> Result<Block> {
    let layers = Sequential::new()
        .add(Linear::from_tensors(noise(&[4, 3]), Some(noise(&[4])))?)
        .add(ReLU::new())
        .add_named("norm", LayerNorm::from_tensors(&[4], Some(noise(&[4])), None, 1e-5)?)?;
    Ok(Block { layers })
}

#[test]
fn an_error_names_the_module_the_operator_and_every_operand() -> Result<()> {
    let model = block()?;
    name_slots(&model);
    let error = model.layers.forward_tensor(&noise(&[2, 3])).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Strict);
    assert_eq!(
        error.to_string(),
        "`layers.0`: linear in strict mode: operand `input` is a float tensor of shape [2, 3], operand `weight` is a float \
         tensor of shape [4, 3]; fill the quantizer slots, or turn strict mode off for this thread with \
         `flags::strict_quantization(false)`"
    );
    Ok(())
}

#[test]
fn a_filled_model_runs_in_strict_mode() -> Result<()> {
    let model = block()?;
    let mut config = QuantizationConfig::for_model(&model);
    for query in [
        "**/[quantizer:parameter/weight]",
        "**/[quantizer:activation/output]",
        "layers/0/[quantizer:activation/input]",
    ] {
        config.add_rule(query, dynamic())?;
    }
    config.initialize(&model, InitializeOptions::default())?;
    let y = model.layers.forward_tensor(&noise(&[2, 3]))?;
    assert!(y.is_quantized());
    let _lenient = fastforward::flags::strict_quantization(false);
    let float = block()?.layers.forward_tensor(&noise(&[2, 3]))?.dequantize()?;
    check_close(&y.dequantize()?, &float, 0.05);
    Ok(())
}

#[test]
fn what_passes_through_keeps_its_grid() -> Result<()> {
    let slot = fastforward::quantization::QuantizerSlot::output();
    let holder = vec![slot.clone()];
    let mut config = QuantizationConfig::for_model(&holder);
    config.add_rule("**", dynamic())?;
    config.initialize(&holder, InitializeOptions::default())?;
    let x = slot.apply(&(&noise(&[2, 3, 4])).into())?;
    let model: Sequential = (Identity, Flatten::default()).into();
    let y = model.forward(&x)?;
    assert!(y.is_quantized());
    assert_eq!(y.dims(), [2, 12]);
    Ok(())
}
