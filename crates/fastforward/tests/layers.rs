//! The walls of the house: what ARCHITECTURE.md says about crates, dependencies and side effects, read from the
//! manifests and sources themselves.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Each crate of the workspace with the crates of ours that it may use. A crate that is not listed here fails the test:
/// its place in the layers has to be decided first.
const LAYERS: [(&str, &[&str]); 7] = [
    ("mpath", &[]),
    ("ff-kernels", &[]),
    ("fastforward-macros", &[]),
    ("fastforward-core", &["mpath", "ff-kernels", "fastforward-macros"]),
    ("fastforward-onnx", &["fastforward-core", "mpath", "ff-kernels", "fastforward-macros"]),
    (
        "fastforward-rs",
        &["fastforward-onnx", "fastforward-core", "mpath", "ff-kernels", "fastforward-macros"],
    ),
    (
        "fastforward-cli",
        &[
            "fastforward-rs",
            "fastforward-onnx",
            "fastforward-core",
            "mpath",
            "ff-kernels",
            "fastforward-macros",
        ],
    ),
];

/// The program: it alone prints, exits and reads the environment.
const PROGRAM: &str = "fastforward-cli";
/// The arithmetic: it alone may hold `unsafe`.
const UNSAFE_ALLOWED: &str = "ff-kernels";

/// What only the program does. `compile_time` macros such as `env!` are not among them.
const SIDE_EFFECTS: [&str; 12] = [
    "println!",
    "print!",
    "eprintln!",
    "eprint!",
    "dbg!",
    "process::exit",
    "process::abort",
    "env::var",
    "env::args",
    "env::current_dir",
    "io::stdout",
    "io::stderr",
];

#[test]
fn crates_use_only_crates_below_them() {
    let mut problems = vec![];
    for krate in crates() {
        let Some((_, allowed)) = LAYERS.iter().find(|(name, _)| *name == krate.name) else {
            problems.push(format!("{} has no place in LAYERS", krate.name));
            continue;
        };
        for used in krate.dependencies.iter().filter(|used| is_ours(used)) {
            if !allowed.contains(&used.as_str()) {
                problems.push(format!("{} uses {used}, which is not below it", krate.name));
            }
        }
    }
    report(&problems);
}

#[test]
fn every_dependency_has_its_reason_in_the_architecture() {
    let architecture = read(&root().join("ARCHITECTURE.md"));
    // Rows such as "| `serde`, `serde_json` | core, fastforward (feature `eager`) | manifests |".
    let mut stated: BTreeMap<(String, String), bool> = BTreeMap::new();
    let table = architecture.split("## Dependencies").nth(1).expect("a chapter on dependencies");
    for row in table.lines().filter(|line| line.starts_with("| `")) {
        let mut cells = row.split('|').skip(1);
        let (packages, users) = (cells.next().unwrap_or(""), cells.next().unwrap_or(""));
        for package in packages.split('`').skip(1).step_by(2) {
            for user in users.split(',').filter_map(|user| user.split_whitespace().next()) {
                stated.insert((package.to_owned(), user.to_owned()), false);
            }
        }
    }
    let mut problems = vec![];
    for krate in crates() {
        for used in krate.dependencies.iter().filter(|used| !is_ours(used)) {
            let user = short_name(&krate.name);
            match stated.get_mut(&(used.clone(), user.to_owned())) {
                Some(is_true) => *is_true = true,
                None => problems.push(format!(
                    "{} uses {used}: say why in ARCHITECTURE.md, as `{used}`, used by {user}",
                    krate.name
                )),
            }
        }
    }
    for ((package, user), is_true) in stated {
        // What benches alone use is not looked at.
        if !is_true && user != "benches" {
            problems.push(format!("ARCHITECTURE.md says that {user} uses {package}; it does not"));
        }
    }
    report(&problems);
}

/// What ARCHITECTURE.md calls a crate.
fn short_name(krate: &str) -> &str {
    match krate {
        "fastforward-rs" => "fastforward",
        _ => krate.strip_prefix("fastforward-").unwrap_or(krate),
    }
}

#[test]
fn only_the_program_prints_exits_and_reads_the_environment() {
    let mut problems = vec![];
    for krate in crates().into_iter().filter(|krate| krate.name != PROGRAM) {
        for source in krate.sources() {
            let code = code_without_tests(&read(&source));
            for (line, effect) in occurrences(&code, &SIDE_EFFECTS) {
                problems.push(format!(
                    "{}:{line}: `{effect}` belongs to {PROGRAM} alone",
                    shown(&source)
                ));
            }
        }
    }
    report(&problems);
}

#[test]
fn unsafe_stands_in_the_kernels_alone_each_block_with_its_reason() {
    let mut problems = vec![];
    for krate in crates() {
        let library = krate.folder.join("src/lib.rs");
        if krate.name != UNSAFE_ALLOWED {
            let entry = if library.exists() { library } else { krate.folder.join("src/main.rs") };
            if !blank(&read(&entry)).contains("#![forbid(unsafe_code)]") {
                problems.push(format!("{} does not say `#![forbid(unsafe_code)]`", shown(&entry)));
            }
            continue;
        }
        for source in krate.sources() {
            let text = read(&source);
            let lines: Vec<&str> = text.lines().collect();
            for (line, _) in occurrences(&blank(&text), &["unsafe"]) {
                // The reason stands above, with at most attributes and the rest of a statement between.
                let above = &lines[line.saturating_sub(9)..line - 1];
                if !above.iter().any(|text| text.contains("SAFETY:") || text.contains("# Safety")) {
                    problems
                        .push(format!("{}:{line}: `unsafe` without `// SAFETY:`", shown(&source)));
                }
            }
        }
    }
    report(&problems);
}

#[test]
fn nothing_refers_to_paths_outside_the_repository() {
    // Spelled in parts, so that this file does not match itself.
    let outside = [["../", "shared"].concat(), ["/wo", "rk/"].concat(), ["/ho", "me/"].concat()];
    let mut problems = vec![];
    for file in repository_files() {
        // Binary files (models, data) hold no paths that anyone reads.
        let Ok(text) = fs::read_to_string(&file) else { continue };
        for (index, line) in text.lines().enumerate() {
            for path in outside.iter().filter(|path| line.contains(path.as_str())) {
                problems.push(format!(
                    "{}:{}: `{path}` is outside the repository",
                    shown(&file),
                    index + 1
                ));
            }
        }
    }
    report(&problems);
}

#[test]
fn the_scanner_sees_code_and_nothing_else() {
    #[track_caller]
    fn check(source: &str, expected: &[(usize, &str)]) {
        let found = occurrences(&code_without_tests(source), &SIDE_EFFECTS);
        assert_eq!(found, expected, "{source}");
    }
    check("fn f() {\n    println!(\"x\");\n}", &[(2, "println!")]);
    check("std::env::var(\"X\"); std::env::var_os(\"Y\");", &[(1, "env::var"), (1, "env::var")]);
    check("// println!\n/* print! /* dbg! */ eprint! */\n/// eprintln!\n", &[]);
    check("let s = \"println!(\\\"x\\\")\"; let r = r#\"dbg!\"#;", &[]);
    check("let quote = '\"'; println!(\"{}\", '\\'');", &[(1, "println!")]);
    check("fn f<'a>(x: &'a str) { eprintln!(\"{x}\") }", &[(1, "eprintln!")]);
    check("my_println!(); sprint!(); concat_env::variable();", &[]);
    check(
        "#[cfg(test)]\nmod tests {\n    fn f() { println!(\"}\"); }\n}\nfn g() { dbg!(1); }",
        &[(5, "dbg!")],
    );
    check("let _ = env!(\"CARGO_PKG_VERSION\");", &[]);
}

/// A crate of the workspace, as its manifest tells.
struct Crate {
    name: String,
    folder: PathBuf,
    /// Names of packages in `[dependencies]`, `[build-dependencies]` and their per-target forms; not those of tests.
    dependencies: Vec<String>,
}

impl Crate {
    fn sources(&self) -> Vec<PathBuf> {
        let mut found = vec![];
        files_below(&self.folder.join("src"), &mut found);
        found.retain(|file| file.extension().is_some_and(|extension| extension == "rs"));
        found
    }
}

fn crates() -> Vec<Crate> {
    let mut found: BTreeMap<String, Crate> = BTreeMap::new();
    for entry in fs::read_dir(root().join("crates")).expect("the folder of crates is there") {
        let folder = entry.expect("the folder of crates can be listed").path();
        if !folder.join("Cargo.toml").exists() {
            continue;
        }
        let manifest: toml::Table =
            read(&folder.join("Cargo.toml")).parse().expect("manifests are TOML");
        let name = manifest["package"]["name"].as_str().expect("a package has a name").to_owned();
        let mut dependencies = vec![];
        collect_dependencies(&manifest, &mut dependencies);
        for target in manifest
            .get("target")
            .and_then(toml::Value::as_table)
            .into_iter()
            .flat_map(toml::Table::values)
        {
            collect_dependencies(
                target.as_table().expect("a target is a table"),
                &mut dependencies,
            );
        }
        found.insert(name.clone(), Crate { name, folder, dependencies });
    }
    assert_eq!(found.len(), LAYERS.len(), "crates: {:?}", found.keys());
    found.into_values().collect()
}

fn collect_dependencies(table: &toml::Table, into: &mut Vec<String>) {
    for section in ["dependencies", "build-dependencies"] {
        let Some(entries) = table.get(section).and_then(toml::Value::as_table) else { continue };
        for (key, value) in entries {
            let renamed = value.get("package").and_then(toml::Value::as_str);
            into.push(renamed.unwrap_or(key).to_owned());
        }
    }
}

fn is_ours(package: &str) -> bool {
    LAYERS.iter().any(|(name, _)| *name == package)
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../..")
        .canonicalize()
        .expect("the workspace is there")
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn shown(path: &Path) -> String {
    path.strip_prefix(root()).unwrap_or(path).display().to_string()
}

#[track_caller]
fn report(problems: &[String]) {
    assert!(problems.is_empty(), "\n  {}\n", problems.join("\n  "));
}

/// Every file of the repository: all but build outputs, version control and hidden folders of tools. `.ci` is ours.
fn repository_files() -> Vec<PathBuf> {
    let mut found = vec![];
    files_below(&root(), &mut found);
    found
}

fn files_below(folder: &Path, found: &mut Vec<PathBuf>) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    let mut paths: Vec<PathBuf> =
        entries.map(|entry| entry.expect("folders can be listed").path()).collect();
    paths.sort();
    for path in paths {
        let name =
            path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        if path.is_symlink() || name == ".git" {
            continue;
        }
        if !path.is_dir() {
            found.push(path);
        } else if name != "target" && (!name.starts_with('.') || name == ".ci") {
            files_below(&path, found);
        }
    }
}

/// Where any of the words stands as a word of its own, with its line, in order.
fn occurrences<'w>(code: &str, words: &[&'w str]) -> Vec<(usize, &'w str)> {
    let mut found = vec![];
    for (index, line) in code.lines().enumerate() {
        for word in words {
            for (at, _) in line.match_indices(word) {
                // `env::var` is meant to match `env::var_os` too, so only the start is a border.
                let before = line[..at].chars().next_back();
                if !before.is_some_and(|c| c.is_alphanumeric() || c == '_')
                    && !is_longer_word(line, at, word)
                {
                    found.push((index + 1, at, *word));
                }
            }
        }
    }
    found.sort();
    found.into_iter().map(|(line, _, word)| (line, word)).collect()
}

/// `unsafe_code` is not `unsafe`, but `env::var_os` and `env::vars` are ways to read the environment.
fn is_longer_word(line: &str, at: usize, word: &str) -> bool {
    !word.contains("::")
        && line[at + word.len()..].starts_with(|c: char| c.is_alphanumeric() || c == '_')
}

/// The code of a file without the modules that only tests see; lines keep their numbers.
fn code_without_tests(source: &str) -> String {
    let mut code = blank(source);
    while let Some(start) = code.find("#[cfg(test)]") {
        let rest = &code[start..];
        let end = match (rest.find('{'), rest.find(';')) {
            (Some(open), semicolon) if semicolon.is_none_or(|semicolon| open < semicolon) => {
                let mut depth = 0usize;
                let close = rest[open..].char_indices().find(|(_, c)| {
                    depth += usize::from(*c == '{');
                    depth -= usize::from(*c == '}');
                    depth == 0
                });
                close.map_or(rest.len(), |(at, _)| open + at + 1)
            }
            (_, Some(semicolon)) => semicolon + 1,
            _ => rest.len(),
        };
        let blanked: String =
            rest[..end].chars().map(|c| if c == '\n' { '\n' } else { ' ' }).collect();
        code.replace_range(start..start + end, &blanked);
    }
    code
}

/// The source with comments and the contents of strings and characters made blank; lines keep their numbers.
fn blank(source: &str) -> String {
    let chars: Vec<char> = source.chars().collect();
    let mut out = String::with_capacity(source.len());
    let mut at = 0;
    while at < chars.len() {
        let end = comment_end(&chars, at).or_else(|| literal_end(&chars, at));
        match end {
            Some(end) => {
                out.extend(chars[at..end].iter().map(|&c| if c == '\n' { '\n' } else { ' ' }));
                at = end;
            }
            None => {
                out.push(chars[at]);
                at += 1;
            }
        }
    }
    out
}

fn comment_end(chars: &[char], at: usize) -> Option<usize> {
    match chars[at..] {
        ['/', '/', ..] => {
            Some(chars[at..].iter().position(|&c| c == '\n').map_or(chars.len(), |n| at + n))
        }
        ['/', '*', ..] => {
            let (mut depth, mut end) = (1, at + 2);
            while depth > 0 && end < chars.len() {
                match chars[end..] {
                    ['/', '*', ..] => (depth, end) = (depth + 1, end + 2),
                    ['*', '/', ..] => (depth, end) = (depth - 1, end + 2),
                    _ => end += 1,
                }
            }
            Some(end)
        }
        _ => None,
    }
}

fn literal_end(chars: &[char], at: usize) -> Option<usize> {
    let in_word = at > 0 && (chars[at - 1].is_alphanumeric() || chars[at - 1] == '_');
    match chars[at] {
        '"' => Some(quoted_end(chars, at, '"')),
        // A character, not a lifetime: it is escaped, or closes after one.
        '\'' if chars.get(at + 1) == Some(&'\\') || chars.get(at + 2) == Some(&'\'') => {
            Some(quoted_end(chars, at, '\''))
        }
        'r' if !in_word || (at > 0 && chars[at - 1] == 'b') => {
            let hashes = chars[at + 1..].iter().take_while(|&&c| c == '#').count();
            let open = at + 1 + hashes;
            if chars.get(open) != Some(&'"') {
                return None;
            }
            let closing: Vec<char> =
                std::iter::once('"').chain(std::iter::repeat_n('#', hashes)).collect();
            let length =
                chars[open + 1..].windows(closing.len()).position(|window| window == closing);
            Some(length.map_or(chars.len(), |n| open + 1 + n + closing.len()))
        }
        _ => None,
    }
}

fn quoted_end(chars: &[char], at: usize, quote: char) -> usize {
    let mut end = at + 1;
    while end < chars.len() && chars[end] != quote {
        end += if chars[end] == '\\' { 2 } else { 1 };
    }
    (end + 1).min(chars.len())
}
