//! Rounding by output error on a trained network with its data.

#[path = "support/fashion.rs"]
mod fashion;

use fashion::{Fashion, images};
use ff_kernels::{
    AdaRoundOptions, IntegerGrid, RangeOptions, Tiling, adaround, bias_correction,
    coordinate_descent, fake_quantize, min_max, parameters_for_range,
};

/// A trained network with three-bit weights: what is left of the output error of rounding to nearest on the layers with
/// hundreds of inputs, and what is classified correctly.
#[test]
fn three_bits_suffice_for_a_trained_network() {
    let float = Fashion::new();
    let moments = float.moments(&images("calib512.safetensors", 64).0);
    let (test, labels) = images("test2000.safetensors", 500);
    let grid = IntegerGrid::signed(3).unwrap();
    let [mut nearest, mut descended, mut learned] = [float.clone(), float.clone(), float.clone()];
    for (at, layer) in float.layers.iter().enumerate() {
        let [rows, columns] = layer.matrix();
        let tiling = Tiling::new(&[rows, columns], &[1, columns]).unwrap();
        for (group, moments) in moments[at].iter().enumerate() {
            let part = group * rows * columns..(group + 1) * rows * columns;
            let weight = &layer.weight[part.clone()];
            let range = min_max(weight, &tiling).unwrap();
            let options = RangeOptions::default();
            let parameters = parameters_for_range(&range.min, &range.max, grid, &options).unwrap();
            let affine = parameters.affine();
            let descent = coordinate_descent(weight, None, moments, &tiling, affine, grid).unwrap();
            let options =
                AdaRoundOptions { iterations: 400, learning_rate: 0.1, ..Default::default() };
            let ada = adaround(weight, moments, &tiling, affine, grid, &options).unwrap();
            if columns >= 64 {
                let name = layer.name;
                let shares = [&descent, &ada].map(|r| r.loss_after() / r.loss_before());
                assert!(shares[0] < 0.4, "{name}: coordinate descent leaves {}", shares[0]);
                assert!(shares[1] < 0.35, "{name}: adaround leaves {}", shares[1]);
                assert!(ada.loss_after() < descent.loss_after(), "{name}");
            }
            let plain = &mut nearest.layers[at].weight[part.clone()];
            fake_quantize(weight, &tiling, affine, grid, plain).unwrap();
            for (network, rounded) in [(&mut descended, descent), (&mut learned, ada)] {
                let layer = &mut network.layers[at];
                let correction = bias_correction(weight, &rounded.weight, moments).unwrap();
                let biases = layer.bias[group * rows..].iter_mut();
                biases.zip(correction.bias).for_each(|(bias, by)| *bias += by);
                layer.weight[part.clone()].copy_from_slice(&rounded.weight);
            }
        }
    }
    let [float, nearest, descended, learned] =
        [float, nearest, descended, learned].map(|network| network.accuracy(&test, &labels));
    assert!(nearest < float - 0.1, "{nearest} {float}");
    assert!(descended > float - 0.04, "{descended} {float}");
    assert!(learned > float - 0.03, "{learned} {float}");
}
