//! What `#[derive(Module)]` refuses, and in which words.
//!
//! `TRYBUILD=overwrite cargo test -p fastforward-core --test derive_errors` writes the expected messages anew.

use std::process::Command;

/// The compiler whose wording `derive_errors/types.stderr` holds. Others frame the same words differently.
const RUSTC_OF_SNAPSHOTS: &str = "rustc 1.95.";

#[test]
fn mistakes_are_reported_at_the_field_in_words() {
    let cases = trybuild::TestCases::new();
    cases.compile_fail("tests/derive_errors/attributes.rs");
    if rustc_version().starts_with(RUSTC_OF_SNAPSHOTS) {
        cases.compile_fail("tests/derive_errors/types.rs");
    }
}

fn rustc_version() -> String {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let output = Command::new(rustc)
        .arg("--version")
        .output()
        .expect("the compiler that built this test runs");
    String::from_utf8_lossy(&output.stdout).into_owned()
}
