//! What a user reads when a query is wrong.

mod outline;

use mpath::{Aliases, ErrorKind, diagnose, why};
use outline::{Tree, context};

#[track_caller]
fn check(query: &str, kind: ErrorKind, expected: &str) {
    let context = context();
    let aliases =
        Aliases::parse(&context, [("attn", "layers/*/attn"), ("both", "{a, b}")]).unwrap();
    let error = context.query_with(query, &aliases).unwrap_err();
    assert_eq!(error.kind(), kind, "{error}");
    assert_eq!(error.to_string(), expected.trim_start_matches('\n'));
}

#[test]
fn misspelt_names_are_recognised() {
    check(
        "**/[quantiser:a]",
        ErrorKind::UnknownExtension,
        "
query parse error:
    **/[quantiser:a]
        ^^^^^^^^^
error: `quantiser` is not a known extension
help: did you mean `quantizer`?",
    );
    check(
        "&atn/x",
        ErrorKind::UnknownAlias,
        "
query parse error:
    &atn/x
     ^^^
error: `atn` is not a known alias
help: did you mean `attn`?",
    );
    check(
        "**/[cls:Modul]",
        ErrorKind::UnknownClass,
        "
query parse error:
    **/[cls:Modul]
            ^^^^^
error: unknown class `Modul`
help: did you mean `Module`?",
    );
    check(
        "[cls: L]",
        ErrorKind::UnknownClass,
        "
query parse error:
    [cls: L]
         ^^
error: unknown class ` L`
help: did you mean `L`?
note: white space is part of the name",
    );
}

#[test]
fn what_was_expected_is_said() {
    check(
        "a/[re:x",
        ErrorKind::Syntax,
        "
query parse error:
    a/[re:x
      ^
error: unclosed `[`, expected `]`",
    );
    check(
        "{a, b",
        ErrorKind::Syntax,
        "
query parse error:
    {a, b
    ^
error: unclosed `{`, expected `,` or `}`",
    );
    check(
        "a//b",
        ErrorKind::Syntax,
        "
query parse error:
    a//b
      ^
error: expected a name, `*`, `**`, `[...]`, `{...}`, `~` or `&`, found `/`",
    );
    check(
        "",
        ErrorKind::Syntax,
        "
query parse error:
    
    ^
error: expected a name, `*`, `**`, `[...]`, `{...}`, `~` or `&`, found the end of the query",
    );
    check(
        "layer.0",
        ErrorKind::Syntax,
        "
query parse error:
    layer.0
         ^
error: expected `/` or the end of the query, found `.`
note: names other than identifiers and numbers are written `[name:...]`, patterns `[re:...]`",
    );
    check(
        "a|b",
        ErrorKind::Syntax,
        "
query parse error:
    a|b
     ^
error: expected `/` or the end of the query, found `|`
note: alternatives are written `{a, b}`",
    );
}

#[test]
fn only_single_fragments_are_inverted() {
    check(
        "a/~{b, c}/d",
        ErrorKind::Composition,
        "
query error:
    a/~{b, c}/d
       ^^^^^^
error: `~` needs a single fragment, found a group",
    );
    check(
        "~&attn",
        ErrorKind::Composition,
        "
query error:
    ~&attn
     ^^^^^
error: `~` needs a single fragment, found several",
    );
}

#[test]
fn bad_patterns_are_refused() {
    check(
        "[re:(]",
        ErrorKind::ExtensionFailed,
        "
query parse error:
    [re:(]
        ^
error: invalid regular expression: unclosed group",
    );
    check("[re:(?!a)b]", ErrorKind::ExtensionFailed, "
query parse error:
    [re:(?!a)b]
        ^^^^^^
error: invalid regular expression: look-around, including look-ahead and look-behind, is not supported
note: what must not match can be said with `~[re:...]`");
}

#[test]
fn long_queries_are_cut_around_the_place() {
    let query = format!("{}ö/é!/{}", "a/".repeat(100), "b/".repeat(100));
    let error = context().query(&query).unwrap_err().to_string();
    let lines: Vec<&str> = error.lines().collect();
    let caret = lines[2].chars().position(|c| c == '^').unwrap();
    assert_eq!(lines[1].chars().nth(caret), Some('!'));
    assert!(lines[1].chars().count() < 120);
}

#[test]
fn errors_in_several_lines_show_the_line() {
    let error = context().query("a/\n\tb/\n c d/\ne").unwrap_err();
    assert!(error.to_string().starts_with("query parse error:\n     c d/\n       ^\n"), "{error}");
}

const MODEL: &str = "
layers
  0
    attn
      q_proj: L
        weight #parameter/weight
      k_proj: L
        weight #parameter/weight
    mlp
      up: L
        weight #parameter/weight
head: L
  weight #parameter/weight
";

#[track_caller]
fn check_diagnosis(query: &str, expected: &str) {
    let tree = Tree::parse(MODEL);
    let selector = context().query(query).unwrap();
    let diagnosis = diagnose(&selector, tree.root()).unwrap();
    assert_eq!(diagnosis.map_or("matches".to_owned(), |d| d.to_string()), expected);
}

#[test]
fn the_step_at_which_matching_died_is_found() {
    check_diagnosis(
        "layers/0/atn/q_proj",
        "`layers/0/atn/q_proj` matches nothing: no child of `layers.0` matches \
        step 3, `atn`; its children are `attn`, `mlp`; did you mean `layers/0/attn/q_proj`?",
    );
    check_diagnosis(
        "**/q_porj/weight",
        "`**/q_porj/weight` matches nothing: no child of 13 nodes, such as \
        `layers.0.attn`, matches step 2, `q_porj`; the children of the latter are `q_proj`, `k_proj`; did you mean \
        `**/q_proj/weight`?",
    );
    check_diagnosis(
        "head/[quantizer:paramter/weight]",
        "`head/[quantizer:paramter/weight]` matches nothing: no child \
        of `head` matches step 2, `[quantizer:paramter/weight]`; its children are `weight`; did you mean \
        `head/[quantizer:parameter/weight]`?",
    );
    check_diagnosis(
        "haed/**",
        "`haed/**` matches nothing: no child of the root matches step 1, `haed`; its children \
        are `layers`, `head`; did you mean `head/**`?",
    );
    check_diagnosis(
        "**/{q_porj, x}/weight",
        "`**/{q_porj, x}/weight` matches nothing: no child of 13 nodes, such as \
        `layers.0.attn`, matches step 2, `{q_porj, x}`; the children of the latter are `q_proj`, `k_proj`; did you mean \
        `**/{q_proj, x}/weight`?",
    );
    check_diagnosis(
        "head/weight/x",
        "`head/weight/x` matches nothing: no child of `head.weight` matches step 3, `x`; \
        it has no children",
    );
    check_diagnosis("**/weight", "matches");
    // One star where two were meant.
    check_diagnosis(
        "*/q_proj/weight",
        "`*/q_proj/weight` matches nothing: no child of 2 nodes, such as `layers`, matches step 2, `q_proj`; \
        the children of the latter are `0`; did you mean `**/q_proj/weight`?",
    );
}

#[track_caller]
fn check_why(query: &str, path: &str, expected: &str) {
    let tree = Tree::parse(MODEL);
    let selector = context().query(query).unwrap();
    let answer =
        why(&selector, tree.root(), path).map_or_else(|e| e.to_string(), |w| w.to_string());
    assert_eq!(answer, expected);
}

#[test]
fn why_a_path_does_not_match() {
    check_why("**/[cls:L]/weight", "layers.0.mlp.up.weight", "`layers.0.mlp.up.weight` matches");
    check_why(
        "layers/*/attn/**/weight",
        "layers/0/mlp/up/weight",
        "`layers.0.mlp.up.weight` does not match: step 3, \
        `attn`, does not match `mlp`",
    );
    check_why(
        "layers/*/mlp",
        "layers.0.mlp.up.weight",
        "`layers.0.mlp.up.weight` does not match: the query ends at \
        `layers.0.mlp`, above `up`",
    );
    check_why(
        "head/weight/x",
        "head.weight",
        "`head.weight` does not match: it ends before step 3, `x`",
    );
    check_why(
        "**",
        "layers.0.atn",
        "`layers.0.atn` names no node: `layers.0` has no child `atn`; did you mean `attn`?",
    );
    check_why("**", "", "`` names no node: the root has no child ``");
}

#[test]
fn names_with_dots_are_found() {
    let tree = Tree::parse("a\n  b\na.b\n  c.d\n    e\n");
    let selector = context().query("[name:a.b]/[name:c.d]/e").unwrap();
    let answer = why(&selector, tree.root(), "a.b.c.d.e").unwrap();
    assert_eq!(answer.names, ["a.b", "c.d", "e"]);
    assert_eq!(answer.verdict, mpath::Verdict::Matches);
}
