use super::*;
use crate::Array;

fn array(data: &[f32], shape: &[usize]) -> Array {
    Array::new(data.to_vec(), shape.to_vec()).unwrap()
}

/// Outputs of two models with labels, in which each metric has something to see.
fn samples() -> (Array, Array, Vec<u64>) {
    let wave = |i: usize, step: usize| ((i * step) % 17) as f32 / 4.0 - 2.0;
    let reference: Vec<f32> = (0..120).map(|i| wave(i, 5)).collect();
    let output: Vec<f32> =
        reference.iter().enumerate().map(|(i, x)| x + 0.1 * wave(i, 7)).collect();
    (array(&reference, &[20, 6]), array(&output, &[20, 6]), (0..20).map(|i| i * 5 % 6).collect())
}

#[track_caller]
fn value(metric: &str, reference: &Array, output: &Array) -> f64 {
    let mut accumulator = metric.parse::<Metric>().unwrap().accumulator();
    let batch = Batch { output: output.view(), reference: Some(reference.view()), labels: None };
    accumulator.update(&batch).unwrap();
    accumulator.value().unwrap()
}

#[track_caller]
fn assert_close(found: f64, expected: f64) {
    assert!((found - expected).abs() <= 1e-9 * expected.abs().max(1.0), "{found} {expected}");
}

#[test]
fn names_parse_and_print() {
    for (name, metric) in Metric::NAMES {
        assert_eq!(name.parse::<Metric>().unwrap(), metric);
        assert_eq!(metric.to_string(), name);
        assert_eq!(metric.accumulator().metric(), metric);
        assert_eq!(metric.accumulator().value(), None);
    }
    assert_eq!("top10".parse::<Metric>().unwrap(), Metric::TopK(10));
    assert_eq!(Metric::TopK(10).name(), "top10");
    for (wrong, message) in [
        ("sqrn", "unknown metric `sqrn`; did you mean `sqnr`?"),
        ("tpo1", "unknown metric `tpo1`; did you mean `top1`?"),
        ("top0", "unknown metric `top0`; did you mean `top1`?"),
        ("top+3", "unknown metric `top+3`; did you mean `top1`?"),
        (
            "bleu",
            "unknown metric `bleu`, expected one of `top1`, `top5`, `agreement`, `sqnr`, `mse`, `max_abs`, `cosine`, `kl`",
        ),
    ] {
        let error = wrong.parse::<Metric>().unwrap_err();
        assert_eq!(
            (error.kind(), error.to_string().as_str()),
            (ErrorKind::InvalidSettings, message)
        );
    }
}

/// Spec A.12, and ratios that are averaged before the logarithm.
#[test]
fn sqnr_in_decibels() {
    assert!(
        (value("sqnr", &array(&[1.0; 6], &[2, 3]), &array(&[0.9; 6], &[2, 3])) - 20.0).abs() < 1e-5
    );
    let reference = array(&[10.0, 10.0, 5.0, 5.0], &[2, 2]);
    let output = array(&[9.0, 11.0, 4.0, 6.0], &[2, 2]);
    assert_close(value("sqnr", &reference, &output), 10.0 * 62.5f64.log10());
    // The same four values as one sample: 62.5 is again the mean power over noise 1.
    let whole = |x: &Array| array(&x.data, &[1, 4]);
    assert_close(value("sqnr", &whole(&reference), &whole(&output)), 10.0 * 62.5f64.log10());
    let zeros = array(&[0.0; 2], &[2]);
    assert_eq!(value("sqnr", &zeros, &array(&[1.0; 2], &[2])), f64::NEG_INFINITY);
    assert_close(value("sqnr", &array(&[1.0], &[1]), &array(&[1.0], &[1])), 150.0);
}

#[test]
fn differences() {
    let reference = array(&[1.0, 2.0, 3.0, 4.0], &[2, 2]);
    let output = array(&[1.0, 2.5, 3.0, 1.0], &[2, 2]);
    assert_close(value("mse", &reference, &output), 9.25 / 4.0);
    assert_close(value("max_abs", &reference, &output), 3.0);
    let cosine = |a: [f64; 2], b: [f64; 2]| {
        (a[0] * b[0] + a[1] * b[1]) / (a[0].hypot(a[1]) * b[0].hypot(b[1]))
    };
    let expected = (cosine([1.0, 2.0], [1.0, 2.5]) + cosine([3.0, 4.0], [3.0, 1.0])) / 2.0;
    assert_close(value("cosine", &reference, &output), expected);
    let zeros = array(&[0.0; 4], &[2, 2]);
    assert_eq!(value("cosine", &zeros, &zeros), 1.0);
    assert_eq!(value("cosine", &zeros, &output), 0.0);
}

#[test]
fn kl_of_known_distributions() {
    let logits = |p: [f64; 2]| p.map(|p| p.ln() as f32);
    let reference = array(&logits([0.25, 0.75]), &[1, 2]);
    let output = array(&logits([0.5, 0.5]), &[1, 2]);
    let expected = 0.25 * (0.25f64 / 0.5).ln() + 0.75 * (0.75f64 / 0.5).ln();
    assert!((value("kl", &reference, &output) - expected).abs() < 1e-6);
    assert_eq!(value("kl", &reference, &reference), 0.0);
    // A constant added to all scores changes nothing, and large scores do not overflow.
    let shifted = array(&[1000.0, 1001.0], &[1, 2]);
    let same = array(&[0.0, 1.0], &[1, 2]);
    assert!(value("kl", &shifted, &same) < 1e-9);
    let sure = array(&[3e38, -3e38], &[1, 2]);
    assert_eq!(value("kl", &sure, &sure), 0.0);
}

#[track_caller]
fn top(k: usize, scores: &Array, labels: &[u64]) -> f64 {
    let mut top = TopK::new(k);
    top.update(scores.view(), labels).unwrap();
    top.accuracy().unwrap()
}

#[test]
fn top_k_counts_labels_among_the_highest() {
    let scores = array(&[0.1, 0.7, 0.2, 0.9, 0.0, 0.1], &[2, 3]);
    assert_eq!(top(1, &scores, &[1, 0]), 1.0);
    assert_eq!(top(1, &scores, &[2, 0]), 0.5);
    assert_eq!(top(2, &scores, &[2, 1]), 0.5);
    assert_eq!(top(3, &scores, &[0, 1]), 1.0);
    // Of equal scores the first class is the higher one.
    let ties = array(&[1.0, 1.0, 1.0], &[1, 3]);
    assert_eq!([0, 1, 2].map(|label| top(1, &ties, &[label])), [1.0, 0.0, 0.0]);
    assert_eq!([0, 1, 2].map(|label| top(2, &ties, &[label])), [1.0, 1.0, 0.0]);
    // Axes of extent 1 behind the classes, one sample, one class.
    assert_eq!(top(1, &array(&scores.data, &[2, 3, 1, 1]), &[1, 0]), 1.0);
    assert_eq!(top(1, &array(&scores.data[..3], &[1, 3]), &[1]), 1.0);
    assert_eq!(top(1, &array(&[5.0, 6.0], &[2, 1]), &[0, 0]), 1.0);
    assert_eq!(top(1, &array(&[f32::NEG_INFINITY, f32::INFINITY], &[1, 2]), &[1]), 1.0);
    // Several positions per sample, as in language models.
    assert_eq!(top(1, &array(&scores.data, &[1, 2, 3]), &[1, 0]), 1.0);
}

#[test]
fn strided_outputs_are_read_in_their_shape() {
    let data = [0.1, 0.9, 0.7, 0.0, 0.2, 0.1];
    let transposed = ArrayView::with_strides(&data, &[2, 3], &[1, 2]).unwrap();
    let mut top = TopK::new(1);
    top.update(transposed, &[1, 0]).unwrap();
    assert_eq!(top.right(), 2);
}

#[test]
fn agreement_compares_the_highest_scores() {
    let reference = array(&[0.1, 0.7, 0.2, 0.9, 0.0, 0.1], &[2, 3]);
    let output = array(&[0.3, 0.6, 0.2, 0.0, 0.1, 0.2], &[2, 3]);
    assert_eq!(value("agreement", &reference, &output), 50.0);
    assert_eq!(value("agreement", &reference, &reference), 100.0);
}

#[test]
fn batches_and_merging_give_the_same_as_all_at_once() {
    let (reference, output, labels) = samples();
    for (name, metric) in Metric::NAMES {
        let part = |range: std::ops::Range<usize>| {
            let mut accumulator = metric.accumulator();
            for at in range.step_by(4) {
                let shape = [4, 6];
                let rows = at * 6..(at + 4) * 6;
                let batch = Batch {
                    output: ArrayView::new(&output.data[rows.clone()], &shape).unwrap(),
                    reference: Some(ArrayView::new(&reference.data[rows], &shape).unwrap()),
                    labels: Some(&labels[at..at + 4]),
                };
                accumulator.update(&batch).unwrap();
            }
            accumulator
        };
        let mut whole = metric.accumulator();
        let batch = Batch {
            output: output.view(),
            reference: Some(reference.view()),
            labels: Some(&labels),
        };
        whole.update(&batch).unwrap();
        let mut merged = part(0..8);
        merged.merge(&part(8..20)).unwrap();
        merged.merge(&metric.accumulator()).unwrap();
        assert_close(merged.value().unwrap(), whole.value().unwrap());
        assert!(whole.value().unwrap() > 0.0, "{name} sees something");
    }
    let mut mse = Metric::Mse.accumulator();
    assert!(mse.merge(&Metric::Kl.accumulator()).is_err());
    assert!(Metric::TOP1.accumulator().merge(&Metric::TOP5.accumulator()).is_err());
}

#[test]
fn what_does_not_fit_is_refused_and_not_counted() {
    let two = array(&[0.1, 0.7, 0.2, 0.9, 0.0, 0.1], &[2, 3]);
    let nan = array(&[0.1, 0.7, 0.2, 0.9, f32::NAN, 0.1], &[2, 3]);
    let flat = array(&two.data, &[6]);
    let empty = array(&[], &[0, 3]);
    let scalar = array(&[1.0], &[]);
    #[track_caller]
    fn check(
        metric: &str,
        output: &Array,
        reference: Option<&Array>,
        labels: Option<&[u64]>,
        expected: &str,
    ) {
        let mut accumulator = metric.parse::<Metric>().unwrap().accumulator();
        let reference = reference.map(Array::view);
        let batch = Batch { output: output.view(), reference, labels };
        let error = accumulator.update(&batch).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidData);
        assert_eq!(error.to_string(), expected);
        assert_eq!(accumulator.value(), None);
    }
    check("top1", &two, None, None, "metric `top1` needs labels");
    check("mse", &two, None, None, "metric `mse` needs the outputs of a reference");
    check("top1", &two, None, Some(&[1]), "2 samples need as many labels, found 1");
    check("top5", &two, None, Some(&[1, 1]), "top5 needs 5 classes, found 3");
    check(
        "top1",
        &two,
        None,
        Some(&[3, 7]),
        "2 of 2 labels are no class: label 3 of sample 0, expected 0 to 2",
    );
    check("top1", &nan, None, Some(&[0, 0]), "the score of sample 1 for class 1 is NaN");
    check("top1", &empty, None, Some(&[]), "output of shape [0, 3] has no samples");
    for metric in ["sqnr", "mse", "max_abs", "cosine", "kl", "agreement"] {
        check(
            metric,
            &two,
            Some(&flat),
            None,
            "output of shape [2, 3] cannot be compared with a reference of shape [6]",
        );
        check(metric, &empty, Some(&empty), None, "output of shape [0, 3] has no samples");
        check(metric, &scalar, Some(&scalar), None, "output of shape [] has no samples");
    }
    check("sqnr", &nan, Some(&two), None, "sample 1: value 1 of the output is NaN");
    check("mse", &two, Some(&nan), None, "value 4 of the reference is NaN");
    check("kl", &nan, Some(&two), None, "the output's score of sample 1 for class 1 is NaN");
    check(
        "agreement",
        &two,
        Some(&nan),
        None,
        "the reference's score of sample 1 for class 1 is NaN",
    );
}

#[test]
fn likelihood_of_texts() {
    let mut text = Likelihood::default();
    assert_eq!((text.perplexity(), text.bits_per_byte()), (None, None));
    for wrong in [f64::NAN, 0.5] {
        assert!(text.update(&[-1.0, wrong], 3).is_err());
    }
    text.update(&[-1.0, -3.0], 4).unwrap();
    let mut rest = Likelihood::default();
    rest.update(&[-2.0], 2).unwrap();
    text.merge(&rest);
    assert_close(text.perplexity().unwrap(), 2f64.exp());
    assert_close(text.bits_per_byte().unwrap(), 6.0 / std::f64::consts::LN_2 / 6.0);
}
