//! What queries match, and in which order.

mod outline;

use mpath::{SearchOptions, search};
use outline::Tree;

/// The names that a query matches in the tree, in order.
#[track_caller]
fn check(outline: &str, query: &str, expected: &[&str]) {
    let tree = Tree::parse(outline);
    let found = match search(query, tree.root(), &SearchOptions::new(&outline::context())) {
        Ok(found) => found,
        Err(error) => panic!("{error}"),
    };
    let names: Vec<&str> = found.iter().map(|result| result.full_name()).collect();
    assert_eq!(names, expected, "{query}");
}

/// The tree of the table in spec §1.10: x, y and c are leaves of class `L`.
const TABLE: &str = "
a
  x: L
  y: L
b
  x: L
  z
    x: L
c: L
";

#[test]
fn the_reference_explores_the_last_sibling_first() {
    check(TABLE, "**", &["a", "b", "c", "b.x", "b.z", "b.z.x", "a.x", "a.y"]);
    check(TABLE, "*", &["a", "b", "c"]);
    check(TABLE, "a/**", &["a", "a.x", "a.y"]);
    check(TABLE, "**/x", &["b.x", "b.z.x", "a.x"]);
    check(TABLE, "b/**/x", &["b.z.x", "b.x"]);
    check(TABLE, "*/*", &["b.x", "b.z", "a.x", "a.y"]);
    check(TABLE, "~a/x", &["b.x"]);
    check(TABLE, "{a,b}/x", &["b.x", "a.x"]);
    check(TABLE, "{a/**,b/**}", &["a", "b", "b.x", "b.z", "b.z.x", "a.x", "a.y"]);
    check(TABLE, "**/~[cls:L]", &["b.z", "a", "b"]);
}

#[test]
fn groups_with_a_bare_double_star_end_and_mean_what_they_say() {
    check(TABLE, "a/{**,x}", &["a", "a.x", "a.y"]);
    check(TABLE, "a/{x,**}", &["a", "a.x", "a.y"]);
    check(TABLE, "a/{**}", &["a", "a.x", "a.y"]);
    let all = ["a", "b", "c", "b.x", "b.z", "b.z.x", "a.x", "a.y"];
    for query in ["{**}", "{**,**}", "{**,**/a}", "{**/a,**}", "{{**},{**}}", "**/{a,**}"] {
        check(TABLE, query, &all);
    }
    check(TABLE, "a/{**,**}/x", &["a.x"]);
    check(TABLE, "a/{**,x}/x", &["a.x"]);
    check(TABLE, "b/{**,y}/{**,q}/x", &["b.z.x", "b.x"]);
    check(TABLE, "a/{**,**}/b", &[]);
}

#[test]
fn inverted_wildcards() {
    check(TABLE, "~**", &[]);
    check(TABLE, "~*", &[]);
    check(TABLE, "a/~**", &[]);
    check(TABLE, "~**/a", &[]);
    check(TABLE, "~~a", &["a"]);
    check(TABLE, "a/~~**", &["a", "a.x", "a.y"]);
}

#[test]
fn the_root_is_never_matched() {
    check("", "**", &[]);
}

#[test]
fn a_shared_node_is_found_once_and_knows_its_names() {
    let tree = Tree::parse(
        "
a
  s: L =1
    w
b
  s: L =1
    w
",
    );
    let found =
        search("**/[cls:L]", tree.root(), &SearchOptions::new(&outline::context())).unwrap();
    assert_eq!(found.len(), 1);
    let names: Vec<&str> = found[0].full_names().collect();
    assert_eq!(names, ["b.s", "a.s"]);
    // What lies below has several names, too.
    let found = search("**/w", tree.root(), &SearchOptions::new(&outline::context())).unwrap();
    assert_eq!(found[0].full_names().collect::<Vec<_>>(), ["b.s.w", "a.s.w"]);
}

#[test]
fn a_second_name_in_the_same_parent_is_not_seen_by_queries() {
    let outline = "
b
  s: L =1
  t: L =1
";
    check(outline, "b/t", &[]);
    check(outline, "b/*", &["b.s"]);
    let tree = Tree::parse(outline);
    let found = search("b/s", tree.root(), &SearchOptions::new(&outline::context())).unwrap();
    assert_eq!(found[0].full_names().collect::<Vec<_>>(), ["b.s", "b.t"]);
}
