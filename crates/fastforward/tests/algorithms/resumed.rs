//! An interrupted run goes on where it stopped, and ends with the same bytes.

use std::cell::Cell;
use std::path::Path;

use candle_core::Tensor;
use fastforward::ErrorKind;
use fastforward::algorithms::{Resume, TuneOptions, tune};
use fastforward::nn::{Layer, Sequential};
use fastforward::tensor::Error;

use crate::common::*;

const ALGORITHMS: &str = "
[[algorithm]]
type = \"activation_weighted_mse\"
[[algorithm]]
type = \"gptq\"
[[algorithm]]
type = \"bias_correction\"
";

/// Runs until `calls` forwards are through. Says whether it is done, how many there were, and the weights.
fn attempt(folder: &Path, data: &[Tensor], name: &str, calls: usize) -> (bool, usize, Vec<f32>) {
    let model = network();
    let targets = quantize(&model, &configuration(3, true, ALGORITHMS), data);
    let resume = Some(Resume { folder: folder.to_owned(), data: name.to_owned() });
    let options = TuneOptions { resume, ..TuneOptions::default() };
    let count = Cell::new(0);
    let forward = |model: &Sequential, x: &&Tensor| {
        count.set(count.get() + 1);
        if count.get() > calls {
            return Err(Error::new(ErrorKind::Io, "power is out"));
        }
        model.forward_tensor(x)
    };
    let _lenient = fastforward::flags::strict_quantization(false);
    let done = tune(&model, &targets, || data.iter().map(Ok), forward, &options);
    (done.is_ok(), count.get(), weights(&model))
}

#[test]
fn stopped_anywhere_it_ends_with_the_same_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let journal = folder.path().join("journal");
    let data = batches(2);
    let (done, whole, expected) = attempt(&journal, &data, "data", usize::MAX);
    assert!(done && !journal.exists());
    for calls in 1..whole {
        let (done, _, _) = attempt(&journal, &data, "data", calls);
        assert!(!done);
        let (done, rest, found) = attempt(&journal, &data, "data", usize::MAX);
        assert!(done && !journal.exists());
        assert_eq!(found, expected, "stopped after {calls} of {whole}");
        // Finished layers are not gathered for again.
        assert!(
            rest <= whole && (calls < whole / 2 || rest < whole),
            "{rest} of {whole} after {calls}"
        );
    }
}

#[test]
fn a_journal_of_other_data_is_not_used() {
    let folder = tempfile::tempdir().unwrap();
    let (data, other) = (batches(2), batches(4)[2..].to_vec());
    let (_, whole, expected) = attempt(&folder.path().join("a"), &data, "data", usize::MAX);
    // By name, and by what layers are fed.
    for (data_before, name) in [(&data, "other data"), (&other, "data")] {
        let journal = folder.path().join("b");
        let (done, ..) = attempt(&journal, data_before, name, whole - 1);
        assert!(!done && journal.exists());
        let (done, calls, found) = attempt(&journal, &data, "data", usize::MAX);
        assert!(done && calls == whole);
        assert_eq!(found, expected);
    }
}
