//! A folder to work in, and the program to run there.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Output;

use assert_cmd::Command;
use safetensors::tensor::{Dtype, TensorView, serialize};
use tempfile::TempDir;

/// A folder with the digits example: `digits_cnn.onnx`, `digits.safetensors` and `w8a8.toml`.
pub(crate) struct Bench(TempDir);

impl Bench {
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        for file in ["digits_cnn.onnx", "digits.safetensors", "w8a8.toml"] {
            fs::copy(examples().join("digits").join(file), folder.path().join(file)).unwrap();
        }
        Self(folder)
    }

    pub(crate) fn path(&self, file: &str) -> PathBuf {
        self.0.path().join(file)
    }

    /// Writes a configuration: the head of the example with other sections.
    pub(crate) fn write(&self, file: &str, text: impl AsRef<[u8]>) {
        fs::write(self.path(file), text).unwrap();
    }

    /// The example's configuration with a part replaced.
    pub(crate) fn edit_config(&self, from: &str, to: &str) {
        let text = fs::read_to_string(self.path("w8a8.toml")).unwrap();
        assert!(text.contains(from), "{from}");
        self.write("w8a8.toml", text.replace(from, to));
    }

    /// A data file with a tensor `images` and the labels 0, 1, 2, .., modulo 10.
    pub(crate) fn write_data(
        &self,
        file: &str,
        dtype: Dtype,
        shape: &[usize],
        bytes: &[u8],
        labels: usize,
    ) {
        let labels: Vec<u8> = (0..labels).map(|at| (at % 10) as u8).collect();
        let tensors = [
            ("images", TensorView::new(dtype, shape.to_vec(), bytes).unwrap()),
            ("labels", TensorView::new(Dtype::U8, vec![labels.len()], &labels).unwrap()),
        ];
        self.write(file, serialize(tensors, None).unwrap());
    }

    pub(crate) fn run(&self, args: &[&str]) -> Output {
        let mut command = Command::cargo_bin("fastforward").unwrap();
        command.current_dir(self.0.path()).args(args).output().unwrap()
    }

    /// What the program printed on both streams, and its exit code.
    pub(crate) fn transcript(&self, args: &[&str]) -> String {
        Self::told(&self.run(args))
    }

    /// The transcript of a run in which no file can get larger than `half_kilobytes`, as on a disk that is full.
    #[cfg(unix)]
    pub(crate) fn transcript_with_room(&self, half_kilobytes: usize, args: &[&str]) -> String {
        // Without the trap a signal would end the program where a full disk gives an error.
        let script = format!("trap '' XFSZ; ulimit -f {half_kilobytes}; exec \"$0\" \"$@\"");
        let mut command = std::process::Command::new("sh");
        command.args(["-c", &script]).arg(assert_cmd::cargo::cargo_bin("fastforward"));
        Self::told(&command.args(args).current_dir(self.0.path()).output().unwrap())
    }

    fn told(output: &Output) -> String {
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        // The one line that tells of time.
        let stderr: String = text(&output.stderr)
            .lines()
            .filter(|line| !line.starts_with("done in "))
            .map(|line| format!("{line}\n"))
            .collect();
        let mut out = text(&output.stdout);
        if !stderr.is_empty() {
            out.push_str("-- stderr\n");
            out.push_str(&stderr);
        }
        format!("{out}-- exit {}\n", output.status.code().unwrap())
    }

    /// Every file below a folder, by its name there.
    pub(crate) fn contents(&self, folder: &str) -> BTreeMap<String, Vec<u8>> {
        fn add(folder: &Path, below: &str, found: &mut BTreeMap<String, Vec<u8>>) {
            for entry in fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                let name = format!("{below}{}", path.file_name().unwrap().to_str().unwrap());
                if path.is_dir() {
                    add(&path, &format!("{name}/"), found);
                } else {
                    found.insert(name, fs::read(&path).unwrap());
                }
            }
        }
        let mut found = BTreeMap::new();
        add(&self.path(folder), "", &mut found);
        found
    }
}

pub(crate) fn examples() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples")
}
