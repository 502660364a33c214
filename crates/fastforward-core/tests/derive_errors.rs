//! What `#[derive(Module)]` refuses, and in which words.
//!
//! The compiler that built this test compiles the mistakes against the library it built, and nothing else.
//! `UPDATE_EXPECT=1 cargo test -p fastforward-core --test derive_errors` writes the expected messages anew.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::SystemTime;

use expect_test::{ExpectFile, expect_file};
use serde_json::Value;

/// The compiler whose wording `derive_errors/types.txt` holds. Others say the same in other words.
const RUSTC_OF_SNAPSHOTS: &str = "rustc 1.95.";

#[test]
fn mistakes_in_attributes_are_reported_at_the_field_in_words() {
    check("attributes.rs", &expect_file!["derive_errors/attributes.txt"]);
}

#[test]
fn fields_that_a_module_cannot_show_are_reported_with_what_to_do() {
    if rustc(&["--version"]).0.starts_with(RUSTC_OF_SNAPSHOTS) {
        check("types.rs", &expect_file!["derive_errors/types.txt"]);
    }
}

/// The errors of the compiler for one file, against the expected text.
fn check(file: &str, expected: &ExpectFile) {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/derive_errors").join(file);
    let (folder, library) = library();
    let out = tempfile::tempdir().expect("a temporary folder");
    let (_, errors) = rustc(&[
        "--edition=2024",
        "--crate-type=bin",
        "--emit=metadata",
        "--error-format=json",
        "--out-dir",
        text(out.path()),
        "-L",
        &format!("dependency={}", text(&folder)),
        "--extern",
        &format!("fastforward_core={}", text(&library)),
        text(&source),
    ]);
    expected.assert_eq(&errors.lines().filter_map(diagnostic).collect::<String>());
}

/// One error as text: where, what, the label beneath the place, and the notes. `None` for warnings and for the count
/// of errors at the end.
fn diagnostic(line: &str) -> Option<String> {
    let error: Value =
        serde_json::from_str(line).unwrap_or_else(|_| panic!("the compiler said: {line}"));
    let spans = error["spans"].as_array()?;
    let place = spans.iter().find(|span| span["is_primary"] == true)?;
    if error["level"] != "error" {
        return None;
    }
    let mut said = format!(
        "{}:{}: {}\n",
        place["line_start"],
        place["column_start"],
        error["message"].as_str()?
    );
    if let Some(label) = place["label"].as_str() {
        said += &format!("  here: {label}\n");
    }
    for note in error["children"].as_array()?.iter().filter(|child| child["level"] == "note") {
        said += &format!("  note: {}\n", note["message"].as_str()?);
    }
    Some(said)
}

/// The folder of built libraries, and this package's among them: the newest, since builds with other settings lie
/// beside it and a test runs after its library was built.
fn library() -> (PathBuf, PathBuf) {
    let test = std::env::current_exe().expect("the path of this test");
    let folder = test.parent().expect("a test lies in a folder");
    let built = |path: &Path| {
        path.metadata().and_then(|data| data.modified()).unwrap_or(SystemTime::UNIX_EPOCH)
    };
    let files = std::fs::read_dir(folder).expect("the folder of this test can be listed");
    let library = files
        .filter_map(|file| Some(file.ok()?.path()))
        .filter(|path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            name.starts_with("libfastforward_core-") && name.ends_with(".rlib")
        })
        .max_by_key(|path| built(path))
        .expect("the library lies beside its tests");
    (folder.to_owned(), library)
}

/// What the compiler writes on its output and on its error output.
fn rustc(arguments: &[&str]) -> (String, String) {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let output = Command::new(rustc)
        .args(arguments)
        .output()
        .expect("the compiler that built this test runs");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (text(&output.stdout), text(&output.stderr))
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a path in UTF-8")
}
