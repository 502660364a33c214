//! Queries that do not parse, shown in the file.

use super::*;

#[test]
fn an_error_in_a_query_points_into_the_file() {
    let text = "schema_version = 1\n[[rule]]\nquery = \"**/[cls:Covn]\"\nquantizer = \"none\"\n";
    let config = parse(text).unwrap();
    let error = config.query_error(
        &config.rules[0].query,
        8..12,
        "unknown class `Covn`",
        "did you mean `Conv`?",
    );
    expect![[r#"
        w8a8.toml:3:18: unknown class `Covn`
          |
        3 | query = "**/[cls:Covn]"
          |                  ^^^^ did you mean `Conv`?"#]]
    .assert_eq(&error.to_string());

    // With escapes the place inside is not known: the whole string is marked.
    let text =
        "schema_version = 1\n[[rule]]\nquery = \"**\\u002F[cls:Covn]\"\nquantizer = \"none\"\n";
    let config = parse(text).unwrap();
    assert_eq!(config.rules[0].query.text, "**/[cls:Covn]");
    let error = config.query_error(
        &config.rules[0].query,
        8..12,
        "unknown class `Covn`",
        "did you mean `Conv`?",
    );
    expect![[r#"
        w8a8.toml:3:9: unknown class `Covn`
          |
        3 | query = "**\u002F[cls:Covn]"
          |         ^^^^^^^^^^^^^^^^^^^^ did you mean `Conv`?"#]]
    .assert_eq(&error.to_string());
}

#[test]
fn every_query_that_does_not_parse_is_shown_in_the_file() {
    let text = r#"schema_version = 1
[aliases]
compute = "[cls:Covn]"
inner = "&compute/x"
[[rule]]
query = "**/&compute/[quantizer:parameter/weight]"
quantizer = "none"
[[rule]]
query = "**/[quantzer:parameter/weight]"
quantizer = "none"
[[rule]]
query = "**/&compte"
quantizer = "none"
[[rule]]
query = "head/[cls:Conv"
quantizer = "none"
"#;
    let module = mpath::Class::define("Module", "config::tests::Module", &[]);
    let mut context = default_context();
    context.register_class("Conv", mpath::Class::define("Conv", "config::tests::Conv", &[module]));
    let error = parse(text).unwrap().quantization_config(context).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Config);
    expect![[r#"
        4 problems in w8a8.toml:

        w8a8.toml:3:17: in the query: unknown class `Covn`
          |
        3 | compute = "[cls:Covn]"
          |                 ^^^^ did you mean `Conv` or `Conv1d` or `Conv2d`?

        w8a8.toml:9:14: in the query: `quantzer` is not a known extension
          |
        9 | query = "**/[quantzer:parameter/weight]"
          |              ^^^^^^^^ did you mean `quantizer`?

        w8a8.toml:12:14: in the query: `compte` is not a known alias
           |
        12 | query = "**/&compte"
           |              ^^^^^^ did you mean `compute`?

        w8a8.toml:15:15: in the query: unclosed `[`, expected `]`
           |
        15 | query = "head/[cls:Conv"
           |               ^"#]]
    .assert_eq(&error.to_string());
}
