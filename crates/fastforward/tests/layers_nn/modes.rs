//! Dropout, embeddings and rotary embeddings.

use std::collections::HashMap;

use candle_core::{DType, Tensor};
use candle_nn::{Module as _, VarBuilder};
use fastforward::nn::*;
use fastforward::quantization::quant_init::{InitializeOptions, QuantizationConfig, QuantizerSpec};
use fastforward::quantization::{DynamicLinearQuantizerConfig, QuantizerSlot};
use fastforward::tensor::float::Embedding as EmbeddingOptions;
use fastforward::tensor::{Apply, Result, Value};
use fastforward::{ErrorKind, flags};

use crate::common::{CPU, Weights, check_close, check_numbers, float, noise, numbers};

fn fill(model: &dyn fastforward::Module, query: &str) -> Result<()> {
    let mut config = QuantizationConfig::for_model(model);
    let dynamic = QuantizerSpec::DynamicLinear(DynamicLinearQuantizerConfig::new(8));
    config.add_rule(query, dynamic)?;
    config.initialize(model, InitializeOptions::default())?;
    Ok(())
}

#[test]
fn dropout_repeats_a_forward_by_its_number() -> Result<()> {
    let layer = Dropout::new(0.3, 5)?;
    let x = (noise(&[40, 50]).abs()? + 1.0)?;
    let _training = flags::training_mode(true);
    let (first, second) = (float(&layer, &x)?, float(&layer, &x)?);
    assert_eq!(layer.counter(), 2);
    assert_ne!(numbers(&first), numbers(&second));
    layer.set_counter(0);
    check_close(&float(&layer, &x)?, &first, 0.0);
    check_close(&float(&Dropout::new(0.3, 5)?, &x)?, &first, 0.0);
    assert_ne!(numbers(&float(&Dropout::new(0.3, 6)?, &x)?), numbers(&first));

    let kept = numbers(&first).iter().filter(|y| **y != 0.0).count();
    assert!((1300..1500).contains(&kept), "{kept} of 2000 kept");
    let ratios = numbers(&(first / x)?);
    assert!(ratios.iter().all(|r| *r == 0.0 || (r - 1.0 / 0.7).abs() < 1e-6));
    Ok(())
}

#[test]
fn dropout_does_nothing_in_evaluation() -> Result<()> {
    let layer = Dropout::new(0.3, 5)?;
    let x = noise(&[4, 5]);
    check_close(&float(&layer, &x)?, &x, 0.0);
    assert_eq!(layer.counter(), 0);
    layer.set_training(Some(true));
    assert_ne!(numbers(&float(&layer, &x)?), numbers(&x));
    let _training = flags::training_mode(true);
    layer.set_training(Some(false));
    check_close(&float(&layer, &x)?, &x, 0.0);

    // What comes in quantized goes out quantized, through an output quantizer too.
    let slot = QuantizerSlot::output();
    fill(&vec![slot.clone()], "**")?;
    let quantized = slot.apply(&x.into())?;
    assert!(layer.forward(&quantized)?.is_quantized());
    fill(&layer, "output_quantizer")?;
    assert!(layer.forward(&quantized)?.is_quantized());
    Ok(())
}

#[test]
fn dropout_by_what_is_no_probability_is_refused() {
    for p in [-0.1, 1.5, f64::NAN] {
        let error = Dropout::new(p, 0).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Operator);
        assert_eq!(error.to_string(), format!("Dropout: p is {p}, expected one in 0..=1"));
    }
}

#[test]
fn an_embedding_gives_rows_and_learns_them() -> Result<()> {
    let weights = Weights::new();
    let layer = Embedding::new(5, 3, EmbeddingOptions::default(), weights.vb())?;
    let ids = Tensor::new(&[[1u32, 4], [1, 0]], CPU)?;
    let _lenient = flags::strict_quantization(false);
    let theirs = candle_nn::Embedding::new(layer.weight.tensor(), 3);
    let y = layer.forward(&ids)?.dequantize()?;
    check_close(&y, &theirs.forward(&ids)?, 0.0);
    let copied = Embedding::from_candle(&theirs)?;
    check_close(&copied.forward(&ids)?.dequantize()?, &y, 0.0);
    let gradients = y.sum_all()?.backward()?;
    let gradient = gradients.get(&layer.weight.var().unwrap()).unwrap();
    let row = |times: f64| [times; 3];
    let expected = [row(1.0), row(2.0), row(0.0), row(0.0), row(1.0)].concat();
    check_numbers(gradient, &expected, 0.0);
    Ok(())
}

#[test]
fn the_row_of_padding_begins_with_zeros_unless_it_was_loaded() -> Result<()> {
    let options = EmbeddingOptions { padding_idx: Some(-2), ..Default::default() };
    let weights = Weights::new();
    let layer = Embedding::new(4, 3, options.clone(), weights.vb())?;
    let row = |layer: &Embedding, at: usize| numbers(&layer.weight.tensor().get(at).unwrap());
    assert_eq!(row(&layer, 2), [0.0; 3]);
    assert!(row(&layer, 1).iter().all(|x| *x != 0.0));
    assert!(layer.weight.var().is_some());

    let table = noise(&[4, 3]);
    let tensors = HashMap::from([("weight".to_owned(), table.clone())]);
    let loaded = VarBuilder::from_tensors(tensors, DType::F32, CPU);
    let layer = Embedding::new(4, 3, options, loaded)?;
    check_close(&layer.weight.tensor(), &table, 0.0);

    let options = EmbeddingOptions { padding_idx: Some(4), ..Default::default() };
    let error = Embedding::from_tensors(table, options).unwrap_err();
    assert_eq!(error.to_string(), "Embedding: the row of padding is 4, the table has 4 rows");
    Ok(())
}

#[test]
fn an_embedding_with_both_slots_filled_is_quantized() -> Result<()> {
    let layer = Embedding::from_tensors(noise(&[5, 3]), EmbeddingOptions::default())?;
    let ids = Tensor::new(&[1u32, 4], CPU)?;
    let error = layer.forward(&ids).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Strict);
    assert!(error.to_string().contains("operand `weight` is a float tensor"), "{error}");
    fill(&layer, "**")?;
    let y = layer.forward(&ids)?;
    assert!(y.is_quantized());
    let rows = noise(&[5, 3]).index_select(&ids, 0)?;
    check_close(&y.dequantize()?, &rows, 0.05);
    Ok(())
}

#[test]
fn rotary_embeddings_turn_pairs_as_candles_do() -> Result<()> {
    let x = noise(&[2, 3, 5, 8]);
    for interleaved in [false, true] {
        let layer = RotaryEmbedding::new(8, 7, 100.0, interleaved, CPU)?;
        // Positions 2..7.
        let angle =
            |position: usize, pair: usize| position as f64 * 100f64.powf(-(pair as f64) / 4.0);
        let angles: Vec<f64> =
            (2..7).flat_map(|position| (0..4).map(move |pair| angle(position, pair))).collect();
        let angles = Tensor::from_vec(angles, (5, 4), CPU)?;
        let (cos, sin) = (angles.cos()?.to_dtype(DType::F32)?, angles.sin()?.to_dtype(DType::F32)?);
        let expected = match interleaved {
            false => candle_nn::rotary_emb::rope_slow(&x, &cos, &sin)?,
            true => candle_nn::rotary_emb::rope_i_slow(&x, &cos, &sin)?,
        };
        let _lenient = flags::strict_quantization(false);
        let value: Value = x.clone().into();
        check_close(&layer.forward_at(&value, 2)?.dequantize()?, &expected, 1e-5);
        let half: Value = x.to_dtype(DType::F16)?.into();
        assert_eq!(layer.forward_at(&half, 2)?.dtype(), DType::F16);
        let error = layer.forward_at(&value, 3).unwrap_err();
        assert_eq!(
            error.to_string(),
            "RotaryEmbedding: there are angles for 7 positions, asked for are 5 from 3 on, for an input of shape [2, 3, 5, 8]"
        );
    }
    Ok(())
}

#[test]
fn rotary_embeddings_with_frequencies_of_ones_own() -> Result<()> {
    let layer = RotaryEmbedding::from_frequencies(&[std::f64::consts::FRAC_PI_2], 2, false, CPU)?;
    let x = Tensor::new(&[[1f32, 2.0], [1.0, 2.0]], CPU)?;
    check_numbers(&float(&layer, &x)?, &[1.0, 2.0, -2.0, 1.0], 1e-6);
    for (width, base) in [(3, 10.0), (0, 10.0), (4, 0.0), (4, f64::NAN)] {
        let error = RotaryEmbedding::new(width, 2, base, false, CPU).unwrap_err();
        assert_eq!(
            error.to_string(),
            format!(
                "RotaryEmbedding: width is {width}, base {base}; expected an even width and a positive base"
            )
        );
    }
    Ok(())
}
