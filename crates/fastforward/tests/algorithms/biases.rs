//! Biases corrected.

use crate::common::*;

/// Means of each of three outputs.
fn means(values: &[f32]) -> [f64; 3] {
    let rows = (values.len() / 3) as f64;
    std::array::from_fn(|at| {
        values[at..].iter().step_by(3).map(|&v| f64::from(v)).sum::<f64>() / rows
    })
}

#[test]
fn measured_correction_leaves_no_mean_error() {
    for choose in ["", "[[algorithm]]\ntype = \"gptq\"\n"] {
        let (model, float, data) = (network(), network(), batches(3));
        let text = format!("{choose}[[algorithm]]\ntype = \"bias_correction\"\n");
        let targets = quantize(&model, &configuration(3, true, &text), &data);
        let reports = run(&model, &targets, &data).unwrap();
        let report = reports.last().unwrap();
        assert_eq!(report.changes.len(), 4);
        let total = |f: fn(&fastforward::algorithms::AlgorithmChange) -> f64| -> f64 {
            report.changes.iter().map(f).sum()
        };
        let (before, after) = (total(|one| one.before), total(|one| one.after.unwrap()));
        assert!(after < 1e-3 * before, "{report}");
        // Against the float network as it was before weights were chosen.
        let (expected, found) = (means(&outputs(&float, &data)), means(&outputs(&model, &data)));
        for (expected, found) in expected.iter().zip(&found) {
            assert!((expected - found).abs() < 1e-3, "{expected} {found}");
        }
    }
}

#[test]
fn the_analytic_correction_is_that_of_the_weights_error() {
    let (model, float, data) = (network(), network(), batches(3));
    let text = "[[algorithm]]\ntype = \"bias_correction\"\nmethod = \"analytic\"\n";
    let targets = quantize(&model, &configuration(2, true, text), &data);
    let before = means(&outputs(&model, &data));
    run(&model, &targets, &data).unwrap();
    let (expected, after) = (means(&outputs(&float, &data)), means(&outputs(&model, &data)));
    let distance =
        |a: [f64; 3]| a.iter().zip(expected).map(|(a, b)| (a - b).powi(2)).sum::<f64>().sqrt();
    assert!(distance(after) < 0.6 * distance(before), "{before:?} {after:?} {expected:?}");
}

#[test]
fn a_layer_without_a_bias_is_kept_and_named() {
    let model = fastforward::nn::Sequential::new()
        .add(fastforward::nn::Linear::from_tensors(noise(&[4, 5], 1), None).unwrap())
        .add(
            fastforward::nn::Linear::from_tensors(noise(&[3, 4], 2), Some(noise(&[3], 3))).unwrap(),
        );
    let data = [noise(&[32, 5], 4)];
    let text = "[[algorithm]]\ntype = \"bias_correction\"\n";
    let targets = quantize(&model, &configuration(3, true, text), &data);
    let reports = run(&model, &targets, &data).unwrap();
    assert_eq!(reports[0].kept, ["`0`: it adds no bias; make it with one of zeros"]);
    assert_eq!(reports[0].changes[0].name, "1");
    assert!(fastforward::flags::strict(), "switches are as they were");
}
