//! The memory that weights without data take.

use std::fs;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use safetensors::tensor::{Dtype, TensorView, serialize};

use crate::bench::Bench;

const RULES: &str = "\
schema_version = 1

[[rule]]
query = \"**/[quantizer:parameter/weight]\"
quantizer = { type = \"linear\", num_bits = 8, granularity = \"per_output_channel\" }
range = { estimator = \"running_minmax\" }
";

/// Kibibytes of the largest resident set so far of a process; `None` when it has ended.
fn peak(process: u32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
    line.split_whitespace().nth(1)?.parse().ok()
}

/// The peak is read while the program runs, so what is found is never more than what it was, whatever else the machine
/// does. Holding all weights, or all codes in a wide type, would show for most of the time.
#[test]
fn weights_are_not_held_together() {
    const TENSORS: usize = 32;
    const SIDE: usize = 1024;
    let bench = Bench::new();
    let names: Vec<String> = (0..TENSORS).map(|at| format!("layers.{at}.proj.weight")).collect();
    let bytes: Vec<u8> = (0..SIDE * SIDE)
        .flat_map(|at| ((at * 37 % 101) as f32 / 64.0 - 0.75).to_le_bytes())
        .collect();
    let views = names.iter().map(|name| {
        (name.as_str(), TensorView::new(Dtype::F32, vec![SIDE, SIDE], &bytes).unwrap())
    });
    bench.write("model.safetensors", serialize(views, None).unwrap());
    bench.write("rules.toml", RULES);
    let mut child = Command::new(assert_cmd::cargo::cargo_bin("fastforward"))
        .args(["quantize", "model.safetensors", "--config", "rules.toml", "--out", "out"])
        .current_dir(bench.path(""))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut highest = 0;
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        highest = highest.max(peak(child.id()).unwrap_or(0));
        thread::sleep(Duration::from_millis(2));
    };
    assert!(status.success());
    let tensor = (4 * SIDE * SIDE / 1024) as u64;
    let bound = tensor + 64 * 1024;
    assert!(bound < TENSORS as u64 * tensor);
    assert!(highest > tensor, "the peak of {highest} kB was not seen");
    assert!(highest <= bound, "{highest} kB, expected at most {bound}");
}
