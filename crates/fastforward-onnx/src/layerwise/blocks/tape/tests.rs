use std::sync::Arc;

use fastforward_core::quantization::{LinearQuantizer, LinearQuantizerConfig};

use super::*;
use crate::engine::{Engine, EngineOptions};
use crate::layerwise::blocks::blocks;
use crate::layerwise::blocks::tests::{everything, numbers, with_layers};
use crate::placement::place;
use crate::simulate::{SimulateOptions, simulate};
use crate::tensor::Tensor;
use crate::tree::Role;

const SHAPE: [usize; 4] = [2, 4, 8, 8];

fn input() -> Value {
    Value { shape: SHAPE.to_vec(), data: numbers(91, SHAPE.iter().product()) }
}

/// The tape of the whole graph of [`everything`], with quantized activations or without, and what the engine makes of it.
fn tape(quantized: bool) -> (Tape, Vec<f32>) {
    let model = everything();
    let (tree, layers) = with_layers(&model, 6);
    if quantized {
        for site in
            tree.sites().iter().filter(|site| matches!(site.role, Role::Input | Role::Output))
        {
            // Some values at their producer, others at their readers.
            let is_meant = match site.role {
                Role::Output => ["v2", "v7", "y"].contains(&site.value.as_str()),
                _ => site.name.starts_with('c') || site.name.starts_with("fc"),
            };
            if !is_meant {
                continue;
            }
            site.slot
                .replace(Arc::new(LinearQuantizer::new(LinearQuantizerConfig::new(5)).unwrap()));
            let quantizer = site.slot.quantizer();
            let settable = quantizer.as_range_settable().unwrap();
            settable.set_quantization_range(&[-1.1], &[1.3]).unwrap();
        }
    }
    let simulated = simulate(&model, &tree, &SimulateOptions::default()).unwrap();
    let (mut found, _) = blocks(&model, &layers, 6);
    let block = found.remove(0);
    assert_eq!((block.layers.len(), found.len()), (6, 0));
    let placed = place(&model, &tree).unwrap().activations;
    assert_eq!(!placed.is_empty(), quantized);
    let tape = Tape::new((&model, &simulated), &placed, &block, quantized).unwrap();
    let engine = Engine::new(&simulated.model, &EngineOptions::default()).unwrap();
    let x = Tensor::from_f32(SHAPE.to_vec(), input().data).unwrap();
    let output = simulated.unquantized("y");
    let expected = engine.run(&[("x", &x)], &[output]).unwrap()[0].to_f32();
    (tape, expected)
}

#[test]
fn it_computes_what_the_engine_does() {
    for quantized in [false, true] {
        let (tape, expected) = tape(quantized);
        let input = input();
        let values = tape.forward(&input).unwrap();
        let found = tape.output(&values).unwrap();
        assert_eq!(found.shape, [2, 2, 3]);
        for (found, expected) in found.data.iter().zip(&expected) {
            assert!((found - expected).abs() < 1e-5, "{quantized}: {found} {expected}");
        }
    }
}

/// `Σ g·y` for some `g`.
fn loss(tape: &Tape, input: &Value, gradient: &[f32]) -> f64 {
    let values = tape.forward(input).unwrap();
    let output = tape.output(&values).unwrap();
    output.data.iter().zip(gradient).map(|(y, g)| f64::from(*y) * f64::from(*g)).sum()
}

#[test]
fn gradients_are_those_of_small_differences() {
    let (mut tape, expected) = tape(false);
    let input = input();
    let gradient = numbers(17, expected.len());
    let found = {
        let values = tape.forward(&input).unwrap();
        tape.backward(&values, gradient.clone()).unwrap()
    };
    let weights = tape.weights();
    for (layer, found) in found.iter().enumerate() {
        assert_eq!(found.len(), weights[layer].len());
        let largest = found.iter().fold(0.0f32, |largest, g| largest.max(g.abs()));
        assert!(largest > 1e-3, "layer {layer} has no gradient");
        // A corner of a `Relu`, or another maximum, between the two points bends a few.
        let mut bent = 0;
        for at in 0..found.len() {
            let mut moved = |step: f32| {
                let mut weights = weights.clone();
                weights[layer][at] += step;
                tape.set_weights(&weights);
                loss(&tape, &input, &gradient)
            };
            let step = 1e-3;
            let numeric = (moved(step) - moved(-step)) / (2.0 * f64::from(step));
            let error = (f64::from(found[at]) - numeric).abs();
            bent += usize::from(error > 0.01 * f64::from(largest));
        }
        assert!(bent * 20 <= found.len(), "layer {layer}: {bent} of {} differ", found.len());
    }
}

#[test]
fn gradients_pass_quantizers_where_nothing_is_clipped() {
    let quantizer = ActivationQuantizer {
        parameters: AffineParameters { scale: vec![0.5, 0.25], ..parameters() },
        axis: Some(1),
    };
    let x = Value { shape: vec![1, 2, 2], data: vec![0.6, -9.0, 0.6, 9.0] };
    // Codes from -8 to 7.
    assert_eq!(quantizer.forward(&x).unwrap().data, [0.5, -4.0, 0.5, 1.75]);
    assert_eq!(quantizer.backward(&x, &[1.0, 2.0, 3.0, 4.0]).unwrap(), [1.0, 0.0, 3.0, 0.0]);
    let last = ActivationQuantizer { axis: Some(-2), parameters: quantizer.parameters.clone() };
    assert_eq!(last.forward(&x).unwrap(), quantizer.forward(&x).unwrap());
}

/// Those of four bits.
fn parameters() -> AffineParameters {
    let quantizer = LinearQuantizer::new(LinearQuantizerConfig::new(4)).unwrap();
    use fastforward_core::quantization::quantizer::{Quantizer, RangeSettable};
    quantizer.set_quantization_range(&[-1.0], &[1.0]).unwrap();
    match quantizer.to_saved() {
        Some(fastforward_core::quantization::affine::SavedQuantizer::Linear(_, Some(found))) => {
            found
        }
        other => panic!("{other:?}"),
    }
}
