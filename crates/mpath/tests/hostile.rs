//! No text and no tree makes a query panic, hang or exhaust the stack.

mod outline;

use std::time::{Duration, Instant};

use mpath::limits::{MAX_DEPTH, MAX_NESTING, MAX_QUERY_BYTES};
use mpath::{Aliases, ErrorKind, QuerySet, SearchOptions, Selector, diagnose, search, why};
use outline::{Tree, class, context};
use proptest::prelude::*;

/// Parses and, if it is a query, uses it in every way.
fn try_everything(text: &str) {
    let context = context();
    let aliases = Aliases::parse(&context, [("x", "{a, b}"), ("y", "~a")]).unwrap();
    match context.query_with(text, &aliases) {
        Ok(selector) => {
            let printed = selector.to_string();
            assert_eq!(context.query(&printed).unwrap_or_else(|e| panic!("{e}")), selector);
            let tree = Tree::parse("a\n  b: L\n  a\n    c: L #p\nb\n  0: M\n");
            let options = SearchOptions::new(&context);
            search(&selector, tree.root(), &options).unwrap();
            diagnose(&selector, tree.root()).unwrap();
            why(&selector, tree.root(), "a.a.c").unwrap();
        }
        Err(error) => {
            let shown = error.to_string();
            assert!(!shown.is_empty() && !shown.ends_with('.'), "{shown}");
            let span = error.span().unwrap();
            assert!(text.get(span).is_some());
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4000, ..ProptestConfig::default() })]

    #[test]
    fn any_text(text in ".{0,40}") {
        try_everything(&text);
    }

    #[test]
    fn any_signs(text in "[ab0/*~&{},:\\[\\]\\\\\"xre. \n]{0,30}") {
        try_everything(&text);
    }

    #[test]
    fn changed_queries(
        query in prop::sample::select(vec![
            "layers/*/{attn, mlp}/[quantizer:parameter/weight]", "**/[re:[qk\\]_proj]/~bias", "&x/**/{**, ~a}/&y",
            "{**/a, **/b}/[cls:L]/{a/{b, c}, **}", "[name:a\\]b\\u{22}]/[regex:\"x]\"]",
        ]),
        at in 0usize..50,
        what in "[/*~&{},:\\[\\]\\\\\"a1é]{0,2}",
        drop in 0usize..3,
    ) {
        let mut chars: Vec<char> = query.chars().collect();
        let at = at.min(chars.len());
        let end = (at + drop).min(chars.len());
        chars.splice(at..end, what.chars());
        try_everything(&chars.into_iter().collect::<String>());
    }
}

/// The kind of error that a text gives, in good time.
#[track_caller]
fn check_text(text: &str, expected: Option<ErrorKind>) {
    let start = Instant::now();
    let kind = context().query(text).err().map(|error| {
        assert!(error.to_string().len() < 1000, "the message shows an excerpt");
        error.kind()
    });
    assert_eq!(kind, expected);
    assert!(start.elapsed() < Duration::from_secs(5));
}

#[test]
fn long_and_deep_texts() {
    check_text(&"{".repeat(10_000), Some(ErrorKind::QueryTooLarge));
    let nested = |depth| format!("{}a{}", "{".repeat(depth), "}".repeat(depth));
    check_text(&nested(MAX_NESTING), None);
    check_text(&nested(MAX_NESTING + 1), Some(ErrorKind::QueryTooLarge));
    check_text(&format!("{}a", "~".repeat(60_000)), None);
    check_text(&"a/".repeat(4000), None);
    check_text(&"a/".repeat(5000), Some(ErrorKind::QueryTooLarge));
    check_text(&"a".repeat(MAX_QUERY_BYTES + 1), Some(ErrorKind::QueryTooLarge));
    check_text(&"\"\\".repeat(30_000), Some(ErrorKind::Syntax));
    check_text(&format!("[re:{}]", "(".repeat(10_000)), Some(ErrorKind::ExtensionFailed));
    check_text(&format!("[re:{}]", "(a{1000}){1000}"), Some(ErrorKind::ExtensionFailed));
    check_text(&format!("{}]", "[re:".repeat(10_000)), Some(ErrorKind::ExtensionFailed));
}

#[test]
fn aliases_that_double_end_in_an_error() {
    let context = context();
    let mut aliases = Aliases::parse(&context, [("a0", "x/y")]).unwrap();
    for i in 0..40 {
        let query = format!("&a{i}/&a{i}");
        match context.query_with(&query, &aliases) {
            Ok(selector) => aliases.define(&format!("a{}", i + 1), selector).unwrap(),
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::QueryTooLarge);
                return;
            }
        }
    }
    panic!("grew without end");
}

fn chain(levels: usize) -> Tree {
    let mut tree = Tree::new();
    let mut parent = 0;
    for _ in 0..levels {
        parent = tree.add(Some(parent), "a", class("L"));
    }
    tree
}

#[test]
fn deep_trees() {
    let context = context();
    let options = SearchOptions::new(&context);
    let query = context.query("**/a/**/a/{**, a}/**").unwrap();
    let tree = chain(MAX_DEPTH);
    assert_eq!(search(&query, tree.root(), &options).unwrap().len(), MAX_DEPTH - 1);
    let tree = chain(MAX_DEPTH + 10);
    let error = search(&query, tree.root(), &options).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TreeTooDeep);
    let error = QuerySet::new([&query]).unwrap().walk(tree.root(), |_| ()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TreeTooDeep);
}

#[test]
fn cycles() {
    let mut tree = Tree::parse("a =1\n  b =2\n    c\n");
    tree.entry(2).children.push(("up".to_owned(), 1));
    tree.entry(2).children.push(("self".to_owned(), 2));
    let context = context();
    let options = SearchOptions::new(&context);
    let found = search("**", tree.root(), &options).unwrap();
    let names: Vec<&str> = found.iter().map(|result| result.full_name()).collect();
    assert_eq!(names, ["a", "a.b", "a.b.c"]);
    let mut visited = Vec::new();
    let queries = QuerySet::new([&Selector::root()]).unwrap();
    queries.walk(tree.root(), |visit| visited.push(visit.path.full_name())).unwrap();
    assert_eq!(visited, ["a", "a.b", "a.b.c", "a.b.up", "a.b.self"]);
}

#[test]
fn queries_with_many_ways_to_match_take_linear_time() {
    let start = Instant::now();
    let context = context();
    let options = SearchOptions::new(&context);
    let tree = chain(300);
    for query in [
        format!("{}b", "**/a/".repeat(100)),
        format!("{}b", "{**, a, **/a}/".repeat(100)),
        format!("{}b", "{a/a, a/a/a, **/a}/".repeat(100)),
        "{**, ".repeat(60) + "a" + &"}/**/b".repeat(60),
    ] {
        assert!(search(&*query, tree.root(), &options).unwrap().is_empty());
        let selector = context.query(&query).unwrap();
        assert!(diagnose(&selector, tree.root()).unwrap().is_some());
    }
    assert!(start.elapsed() < Duration::from_secs(20));
}

#[test]
fn names_of_many_paths_are_cut() {
    // A ladder: two names on every rung, so the last node has 2^20 names.
    let mut tree = Tree::new();
    let mut at = 0;
    for rung in 0..20 {
        let left = tree.add(Some(at), "l", class("L"));
        let right = tree.add(Some(at), "r", class("L"));
        let next = tree.add(Some(left), "x", class("L"));
        tree.entry(next).identity = Some(rung);
        tree.entry(right).children.push(("x".to_owned(), next));
        at = next;
    }
    let context = context();
    let found = search("**", tree.root(), &SearchOptions::new(&context)).unwrap();
    assert_eq!(found.len(), 60);
    assert!(found.iter().all(|result| result.full_names().len() <= mpath::limits::MAX_NAMES + 1));
}
