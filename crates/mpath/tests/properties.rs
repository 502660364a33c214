//! Search, query sets and a matcher that tries everything agree; queries print as themselves.

mod outline;

use std::collections::BTreeSet;

use mpath::{
    Facts, Node, QuerySet, SearchOptions, Segment, SegmentKind, Selector, Tag, TagSet, search, why,
};
use outline::{Handle, Tree, class, context};
use proptest::prelude::*;

/// Tries every way to match the names from the root to a node.
fn matches(segments: &[Segment], path: &[(String, Handle<'_>)]) -> bool {
    let Some((first, rest)) = segments.split_first() else { return path.is_empty() };
    match first.kind() {
        SegmentKind::Group(alternatives) => alternatives.iter().any(|alternative| {
            let longer: Vec<Segment> = alternative.segments().iter().chain(rest).cloned().collect();
            matches(&longer, path)
        }),
        SegmentKind::Fragment(fragment) => {
            let here = path.split_first().filter(|((name, node), _)| fragment.matches(name, node));
            if fragment.repeats() {
                matches(rest, path) || here.is_some_and(|(_, below)| matches(segments, below))
            } else {
                here.is_some_and(|(_, below)| matches(rest, below))
            }
        }
    }
}

/// Every path of the tree, in order; a second name in the same parent is left out.
fn paths<'t>(
    node: Handle<'t>,
    path: &mut Vec<(String, Handle<'t>)>,
    all: &mut Vec<Vec<(String, Handle<'t>)>>,
) {
    let mut children = Vec::new();
    node.for_each_child(&mut |name, child| children.push((name.to_owned(), child)));
    let mut seen = BTreeSet::new();
    for (name, child) in children {
        if child.identity().is_some_and(|identity| !seen.insert(identity)) {
            continue;
        }
        path.push((name, child));
        all.push(path.clone());
        paths(child, path, all);
        path.pop();
    }
}

fn joined(path: &[(String, Handle<'_>)]) -> String {
    path.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>().join(".")
}

#[derive(Debug, Clone)]
struct Plan {
    name: &'static str,
    class: &'static str,
    tags: Option<Vec<&'static str>>,
    /// With others of the same number this is one node, if it has no children.
    shared: Option<usize>,
    children: Vec<Plan>,
}

fn trees() -> impl Strategy<Value = Vec<Plan>> {
    let tag = prop::sample::select(vec!["p", "p/w", "p/b", "o"]);
    let node = (
        prop::sample::select(vec!["a", "b", "c", "x.y", "0", "ab"]),
        prop::sample::select(vec!["L", "M", "Sub", "Module"]),
        prop::option::of(prop::collection::vec(tag, 0..3)),
        prop::option::weighted(0.2, 0usize..2),
    );
    let leaf = node.clone().prop_map(|(name, class, tags, shared)| Plan {
        name,
        class,
        tags,
        shared,
        children: Vec::new(),
    });
    leaf.prop_recursive(5, 40, 4, move |inner| {
        (node.clone(), prop::collection::vec(inner, 0..4)).prop_map(
            |((name, class, tags, shared), children)| Plan { name, class, tags, shared, children },
        )
    })
    .prop_map(|root| root.children)
}

fn add(tree: &mut Tree, parent: usize, plans: &[Plan], shared: &mut [Option<usize>]) {
    let mut names = BTreeSet::new();
    for plan in plans {
        if !names.insert(plan.name) {
            continue;
        }
        let slot = plan.shared.filter(|slot| plan.children.is_empty() && *slot < shared.len());
        if let Some(index) = slot.and_then(|slot| shared[slot]) {
            tree.entry(parent).children.push((plan.name.to_owned(), index));
            continue;
        }
        let index = tree.add(Some(parent), plan.name, class(plan.class));
        tree.entry(index).tags =
            plan.tags.as_ref().map(|tags| TagSet::new(tags.iter().map(|tag| Tag::new(tag))));
        if let Some(slot) = slot {
            tree.entry(index).identity = Some(slot);
            shared[slot] = Some(index);
        }
        add(tree, index, &plan.children, shared);
    }
}

fn build(plans: &[Plan], with_sharing: bool) -> Tree {
    let mut tree = Tree::new();
    let mut shared = vec![None; if with_sharing { 2 } else { 0 }];
    add(&mut tree, 0, plans, &mut shared);
    tree
}

/// The first and the last plan around a node with a child for each of the others.
fn wide(plans: &[Vec<Plan>], with_sharing: bool) -> Tree {
    let mut tree = Tree::new();
    let mut shared = vec![None; if with_sharing { 2 } else { 0 }];
    let [first, middle @ .., last] = plans else { return tree };
    add(&mut tree, 0, first, &mut shared);
    let above = tree.add(Some(0), "layers", class("M"));
    for (at, plans) in middle.iter().enumerate() {
        let child = tree.add(Some(above), &at.to_string(), class("L"));
        add(&mut tree, child, plans, &mut shared);
    }
    // A shared node has to be met under the wide one, too, and behind it.
    add(&mut tree, above, first, &mut shared);
    let below = tree.add(Some(0), "below", class("Sub"));
    add(&mut tree, below, last, &mut shared);
    tree
}

fn queries() -> impl Strategy<Value = String> {
    let fragment = prop_oneof![
        3 => prop::sample::select(vec!["a", "b", "c", "0", "ab"]),
        2 => Just("*"),
        3 => Just("**"),
        2 => prop::sample::select(vec![
            "[re:a.?]", "[regex:[ab\\]]", "[cls:L]", "[class:Sub]", "[quantizer:p]", "[qtag:p/w, p]", "[name:x.y]",
            "[re:\"a]\"]", "[re: a]",
        ]),
    ]
    .prop_map(str::to_owned);
    let inverted = (fragment, prop::sample::select(vec!["", "", "", "~", "~~", "~~~"]))
        .prop_map(|(fragment, signs)| format!("{signs}{fragment}"));
    let chain = |part: BoxedStrategy<String>| {
        prop::collection::vec(part, 1..5).prop_map(|parts| parts.join("/")).boxed()
    };
    chain(inverted.boxed()).prop_recursive(3, 12, 3, move |inner| {
        let group = prop::collection::vec(inner.clone(), 1..4)
            .prop_map(|alternatives| format!("{{{}}}", alternatives.join(", ")));
        chain(prop_oneof![1 => group, 1 => inner].boxed())
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3000, ..ProptestConfig::default() })]

    #[test]
    fn all_ways_to_match_agree(plans in trees(), texts in prop::collection::vec(queries(), 1..5), sharing: bool) {
        let tree = build(&plans, sharing);
        let context = context();
        let mut all = Vec::new();
        paths(tree.root(), &mut Vec::new(), &mut all);
        let selectors: Vec<Selector> = texts.iter().map(|text| context.query(text).unwrap()).collect();

        let mut walked = Vec::new();
        QuerySet::new(&selectors).unwrap().walk(tree.root(), |visit| {
            walked.push((visit.path.names().map(str::to_owned).collect::<Vec<_>>(), visit.node.index, visit.matches.to_vec()));
            assert_eq!(visit.path.names().last(), Some(visit.path.name()));
            assert_eq!(visit.path.names().collect::<Vec<_>>().join("."), visit.path.full_name());
        }).unwrap();
        prop_assert_eq!(walked.len(), all.len());

        let options = SearchOptions::new(&context);
        for (query, selector) in (0u32..).zip(&selectors) {
            let mut expected = BTreeSet::new();
            let mut expected_names = BTreeSet::new();
            for (path, (names, index, found)) in all.iter().zip(&walked) {
                prop_assert!(names.iter().eq(path.iter().map(|(name, _)| name)));
                let is_match = matches(selector.segments(), path);
                prop_assert_eq!(found.contains(&query), is_match, "{} at {:?}", selector, names);
                prop_assert_eq!(matches(selector.simplify().segments(), path), is_match, "{}", selector.simplify());
                if is_match {
                    expected.insert(*index);
                    expected_names.insert(joined(path));
                }
            }
            let found = search(selector, tree.root(), &options).unwrap();
            let nodes: Vec<usize> = found.modules().map(|node| node.index).collect();
            prop_assert_eq!(nodes.iter().copied().collect::<BTreeSet<_>>(), expected, "{}", selector);
            prop_assert_eq!(nodes.len(), found.iter().map(|r| r.node.index).collect::<BTreeSet<_>>().len());
            for result in &found {
                prop_assert!(expected_names.contains(result.full_name()));
                prop_assert_eq!(result.fragment_matches().len(), all.iter().find(|path| joined(path) == result.full_name()).unwrap().len());
            }
            let mut matched = BTreeSet::new();
            QuerySet::new([selector]).unwrap().walk_matches(tree.root(), |visit| {
                assert_eq!(visit.matches, [0]);
                matched.insert(visit.path.full_name());
            }).unwrap();
            prop_assert_eq!(&matched, &expected_names);
            let diagnosis = mpath::diagnose(selector, tree.root()).unwrap();
            prop_assert_eq!(diagnosis.is_none(), !matched.is_empty());
            for path in all.iter().take(5) {
                let verdict = why(selector, tree.root(), &joined(path)).unwrap().verdict;
                prop_assert_eq!(verdict == mpath::Verdict::Matches, matches(selector.segments(), path));
            }
        }
    }

    #[test]
    fn queries_print_as_themselves(text in queries()) {
        let context = context();
        let selector = context.query(&text).unwrap();
        let printed = selector.to_string();
        let again = context.query(&printed).map_err(|error| TestCaseError::fail(error.to_string()))?;
        prop_assert_eq!(&again, &selector);
        prop_assert_eq!(again.to_string(), printed);
    }

    #[test]
    fn any_name_can_be_written(name in ".{0,12}", other in "[a\\]\"\\[\\\\{}/,~ ]{0,8}") {
        let context = context();
        let selector = Selector::name(&name) / Selector::name(&other) / (!Selector::name(&name)).unwrap();
        let again = context.query(&selector.to_string()).map_err(|error| TestCaseError::fail(error.to_string()))?;
        prop_assert_eq!(again, selector);
    }

    #[test]
    fn any_pattern_prints_as_itself(pattern in "[ab\"\\]\\[\\\\.|()]{0,8}", next in "[\"\\\\\\]a]{0,4}") {
        let Ok(fragment) = mpath::PatternFragment::new(&pattern) else { return Ok(()) };
        let Ok(next) = mpath::PatternFragment::new(&next) else { return Ok(()) };
        let selector = Selector::from_fragment(fragment.clone()) / Selector::from_fragment(next);
        let again = context().query(&selector.to_string()).map_err(|error| TestCaseError::fail(error.to_string()))?;
        prop_assert_eq!(&again, &selector);
        let SegmentKind::Fragment(read) = again.segments()[0].kind().clone() else { panic!() };
        let tree = Tree::new();
        for name in ["", "a", "b", "ab", "\"", "]", "[", "\\", "a]", "\"a", "."] {
            prop_assert_eq!(read.matches(name, &tree.root()), mpath::Fragment::matches(&fragment, name, &tree.root()));
        }
        let _ = tree.root().class();
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn parts_make_up_the_walk(
        plans in prop::collection::vec(trees(), 18..40),
        texts in prop::collection::vec(queries(), 1..5),
        sharing: bool,
        count in 2usize..6,
    ) {
        let tree = wide(&plans, sharing);
        let context = context();
        let selectors: Vec<Selector> = texts.iter().map(|text| context.query(text).unwrap()).collect();
        let set = QuerySet::new(&selectors).unwrap();
        let mut whole = Vec::new();
        set.walk(tree.root(), |visit| whole.push((visit.path.full_name(), visit.matches.to_vec()))).unwrap();
        let parts = set.parts(tree.root(), count, 1);
        prop_assert_eq!(parts.len(), count);
        let (mut found, mut visited) = (Vec::new(), 0);
        for part in &parts {
            visited += set
                .walk_part(tree.root(), part, |visit| found.push((visit.path.full_name(), visit.matches.to_vec())))
                .unwrap();
        }
        prop_assert_eq!(&found, &whole);
        prop_assert_eq!(visited, whole.len());
    }
}
