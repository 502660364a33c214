//! Disks without room for what is to be written.

use std::fs;

use crate::bench::Bench;
use crate::{external_data, weight_files};

/// Runs with less and less room, so that each file is once the first that does not fit. Whatever does not fit is named, with
/// what it takes; nothing is left, and what was there is as it was.
#[track_caller]
fn check(bench: &Bench, args: &[&str], files: &[&str]) {
    let sizes = {
        assert!(bench.transcript(args).ends_with("-- exit 0\n"));
        let sizes = files.iter().map(|file| fs::metadata(bench.path(file)).unwrap().len());
        sizes.collect::<Vec<_>>()
    };
    fs::remove_dir_all(bench.path("out")).unwrap();
    let before = bench.contents("");
    for (file, size) in files.iter().zip(sizes) {
        // Half a kilobyte or a whole one, as the shell counts: too little for this file in either case.
        let room = (size - 1) / 1024;
        assert!(room > 0, "{file} has {size} bytes only");
        let transcript = bench.transcript_with_room(room as usize, args);
        let told = format!(
            "error: cannot write `{file}`: File too large (os error 27); the file takes at least "
        );
        let Some((_, rest)) = transcript.split_once(&told) else { panic!("{transcript}") };
        let bytes: u64 = rest.split(' ').next().unwrap().parse().unwrap();
        assert!(bytes > 512 * room && bytes <= size, "{file} has {size} bytes: {transcript}");
        assert!(transcript.ends_with(" bytes\n-- exit 2\n"), "{transcript}");
        assert!(bench.contents("") == before, "{file}");
        assert!(!bench.path("out").exists());
    }
}

#[test]
fn weights_that_do_not_fit_are_named_and_leave_nothing() {
    let bench = weight_files::bench(false);
    check(&bench, &weight_files::QUANTIZE, &["out/model.safetensors"]);
}

#[test]
fn data_beside_a_graph_that_does_not_fit_is_named_and_leaves_nothing() {
    let bench = external_data::bench("weights.bin");
    let args = ["quantize", "digits_cnn.onnx", "--config", "weights-only.toml", "--out", "out"];
    check(&bench, &args, &["out/digits_cnn.qdq.onnx.data"]);
}

#[test]
fn a_graph_that_does_not_fit_is_named_and_leaves_nothing() {
    let bench = Bench::new();
    let args = ["quantize", "digits_cnn.onnx", "--config", "w8a8.toml", "--out", "out"];
    check(&bench, &args, &["out/digits_cnn.qdq.onnx"]);
}

/// An older result stays whole when there is no room for the new one.
#[test]
fn an_older_result_stays() {
    let bench = weight_files::bench(false);
    assert!(bench.transcript(&weight_files::QUANTIZE).ends_with("-- exit 0\n"));
    let before = bench.contents("");
    let transcript = bench.transcript_with_room(1, &weight_files::QUANTIZE);
    assert!(transcript.ends_with("-- exit 2\n"), "{transcript}");
    assert!(bench.contents("") == before);
}
