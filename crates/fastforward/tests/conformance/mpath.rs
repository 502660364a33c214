//! Family `mpath`: the names that queries match, in order; errors; how queries print.

use std::cell::RefCell;
use std::collections::BTreeSet;

use fastforward::module::NodeRef;
use fastforward::mpath::{
    Aliases, Context, Error, Node, SearchOptions, Segment, SegmentKind, Selector, search,
};
use fastforward::quantization::quant_init::QuantizerTagSelectorFragment;
use serde_json::{Value, json};

use crate::differences::{Difference, judge, run};
use crate::golden::{Family, texts};
use crate::order::{ordered_trees, refine};
use crate::tree::{Classes, Tree};

#[test]
fn conformance_mpath() {
    let family = Family::read("mpath");
    let (classes, with_defaults) = Classes::read(&family.file["class_table"]);
    let context = context(&family.file["class_table"], &with_defaults);
    let mut trees = ordered_trees(&family.file);
    for (id, tree) in trees.as_object_mut().expect("trees") {
        let cases = family.cases().iter().filter(|case| text(case, "tree") == id);
        let cases: Vec<&Value> = cases.filter(|case| case.get("ok").is_some()).collect();
        refine(tree, |tree| {
            let built = Tree::build(tree, &classes);
            cases.iter().map(|case| displaced(case, &built, &context)).sum()
        });
    }
    CONTEXT.set(context.clone());
    run("mpath", family.cases(), |case| {
        let tree = Tree::build(&trees[text(case, "tree")], &classes);
        let ours = answer(case, &tree, &context);
        judge("mpath", case, &ours, || {
            let differing = ["error", "ok", "selector"].into_iter().find(|f| case[f] != ours[f]);
            match differing {
                Some(field) => Err(format!(
                    "`{}` gives {field} {}, expected {}",
                    text(case, "query"),
                    ours[field],
                    case[field]
                )),
                None => Ok(()),
            }
        })
    });
}

thread_local! {
    /// What the names in the family's queries mean, for the entries of the table.
    static CONTEXT: RefCell<Context> = RefCell::default();
}

/// What we differ in.
pub const DIFFERENCES: &[Difference] = &[
    Difference {
        family: "mpath",
        when: "a group of which one alternative is `**` stands where the reference loses it",
        reason: "the reference drops such alternatives when it simplifies, and does not see that they may match nothing",
        applies: |case| {
            let selector = CONTEXT.with_borrow(|context| parse(case, context));
            selector.is_ok_and(|selector| loses_any_path(selector.segments()))
        },
        check: |case, ours| {
            let (found, theirs) = (texts(&ours["ok"]), texts(&case["ok"]));
            let sorted: BTreeSet<&str> = found.iter().copied().collect();
            let by_definition = texts(&ours["by_definition"]);
            if !sorted.iter().eq(&by_definition) {
                return Err(format!("found {found:?}, by definition {by_definition:?}"));
            }
            match theirs.iter().find(|name| !sorted.contains(*name)) {
                Some(name) => Err(format!("`{name}` is not found")),
                None => Ok(()),
            }
        },
    },
    Difference {
        family: "mpath",
        when: "a regular expression has a bracket, or a quote that it does not close",
        reason: "printed as the reference prints it, the query would not parse, or not wherever it is put",
        applies: |case| {
            let printed = case["selector"].as_str().unwrap_or_default();
            patterns(printed).any(|body| {
                // Every second piece stands between quotes, which hide brackets.
                let pieces: Vec<&str> = body.split('"').collect();
                pieces.len().is_multiple_of(2)
                    || pieces.iter().step_by(2).any(|piece| piece.contains(']'))
            })
        },
        check: |case, ours| {
            if ours["ok"] != case["ok"] {
                return Err(format!("found {}, expected {}", ours["ok"], case["ok"]));
            }
            let (printed, theirs) = (text(ours, "selector"), text(case, "selector"));
            let unescaped =
                printed.replace(r"\]", "]").replace(r"\x22", "\"").replace(r"\x5c", r"\\");
            if printed == theirs || unescaped != theirs {
                return Err(format!("prints `{printed}`, the reference `{theirs}`"));
            }
            Ok(())
        },
    },
];

/// How many pairs of the names that a case expects are found in the wrong order.
fn displaced(case: &Value, tree: &Tree, context: &Context) -> usize {
    let Ok(selector) = parse(case, context) else { return 0 };
    let root = NodeRef::Module(tree);
    let Ok(found) = search(&selector, root, &SearchOptions::new(context)) else { return 0 };
    let place = |name: &&str| found.iter().position(|result| result.full_name() == *name);
    let places: Vec<usize> = texts(&case["ok"]).iter().filter_map(place).collect();
    let later = |i: usize| places[i + 1..].iter().filter(|&&place| place < places[i]).count();
    (0..places.len()).map(later).sum()
}

/// What a case gives, in the layout of the golden file.
fn answer(case: &Value, tree: &Tree, context: &Context) -> Value {
    let selector = match parse(case, context) {
        Ok(selector) => selector,
        Err((stage, error)) => {
            return json!({"error": {"type": error_type(&error), "stage": stage}});
        }
    };
    let again = parse(&json!({"query": selector.to_string()}), context);
    assert!(again.is_ok_and(|again| again == selector), "`{selector}` does not print as itself");
    let root = NodeRef::Module(tree);
    match search(&selector, root, &SearchOptions::new(context)) {
        Err(error) => json!({"error": {"type": error_type(&error), "stage": "search"}}),
        Ok(found) => {
            let names: Vec<&str> = found.iter().map(|result| result.full_name()).collect();
            let mut by_definition = BTreeSet::new();
            all_matches(selector.segments(), root, &mut Vec::new(), &mut by_definition);
            json!({"ok": names, "selector": selector.to_string(), "by_definition": by_definition})
        }
    }
}

fn parse(case: &Value, context: &Context) -> Result<Selector, (&'static str, Error)> {
    let definitions = case["aliases"].as_object().into_iter().flatten();
    let definitions = definitions.map(|(name, query)| (&**name, query.as_str().expect("a query")));
    let aliases = Aliases::parse(context, definitions).map_err(|error| ("aliases", error))?;
    context.query_with(text(case, "query"), &aliases).map_err(|error| ("parse", error))
}

fn error_type(error: &Error) -> &'static str {
    match (error.is_parse_error(), error.is_query_error()) {
        (true, _) => "MPathParseError",
        (_, true) => "MPathQueryError",
        _ => "other",
    }
}

/// Whether a group has `**` as an alternative and stands after `**`, consists of alternatives that all begin with `**`,
/// or may match nothing at the end of the query.
fn loses_any_path(segments: &[Segment]) -> bool {
    let alternatives = |segment: &Segment| match segment.kind() {
        SegmentKind::Group(alternatives) => alternatives.to_vec(),
        SegmentKind::Fragment(_) => Vec::new(),
    };
    let has_bare = |segment: &Segment| {
        alternatives(segment).iter().any(|selector| selector.segments().iter().all(is_any_path))
    };
    segments.iter().enumerate().any(|(i, segment)| {
        let all_begin = alternatives(segment).iter().all(|s| is_any_path(&s.segments()[0]));
        let ends = segments[i + 1..].iter().all(|later| is_any_path(later) || has_bare(later));
        has_bare(segment) && (all_begin || ends || i > 0 && is_any_path(&segments[i - 1]))
            || alternatives(segment).iter().any(|selector| loses_any_path(selector.segments()))
    })
}

fn is_any_path(segment: &Segment) -> bool {
    segment.to_string() == "**"
}

/// The bodies of the regular expressions in what the reference prints.
fn patterns(printed: &str) -> impl Iterator<Item = &str> {
    printed.split("[re:").skip(1).map(|rest| {
        // The reference does not escape brackets: the body ends at the last that a slash, a brace or the end follows.
        let ends = ["]/", "],", "]}"].into_iter().filter_map(|end| rest.find(end));
        &rest[..ends.min().unwrap_or(rest.len() - 1)]
    })
}

/// Finds the paths that match, trying every way.
fn all_matches<'t>(
    segments: &[Segment],
    node: NodeRef<'t>,
    path: &mut Vec<(String, NodeRef<'t>)>,
    found: &mut BTreeSet<String>,
) {
    node.for_each_child(&mut |name, child| {
        path.push((name.to_owned(), child));
        if matches(segments, path) {
            let names: Vec<&str> = path.iter().map(|(name, _)| &**name).collect();
            found.insert(names.join("."));
        }
        all_matches(segments, child, path, found);
        path.pop();
    });
}

fn matches(segments: &[Segment], path: &[(String, NodeRef<'_>)]) -> bool {
    let Some((first, rest)) = segments.split_first() else { return path.is_empty() };
    match first.kind() {
        SegmentKind::Group(alternatives) => alternatives
            .iter()
            .any(|alternative| matches(&[alternative.segments(), rest].concat(), path)),
        SegmentKind::Fragment(fragment) => {
            let below = path.split_first().filter(|((name, node), _)| fragment.matches(name, node));
            if fragment.repeats() {
                matches(rest, path) || below.is_some_and(|(_, below)| matches(segments, below))
            } else {
                below.is_some_and(|(_, below)| matches(rest, below))
            }
        }
    }
}

/// The names of the family, without those that our library adds, and the extensions of quantizer initialization.
fn context(class_table: &Value, with_defaults: &Context) -> Context {
    let mut context = Context::new();
    for name in class_table["context"].as_object().expect("a table of names").keys() {
        context.register_class(name, with_defaults.class(name).expect("every name is registered"));
    }
    for tag in ["quantizer", "qtag"] {
        let build = |body: &str, _: &Context| {
            Ok(Selector::from_fragment(QuantizerTagSelectorFragment::from_raw_string(body)))
        };
        context.register_extension(tag, build).expect("the tag is new");
    }
    context
}

#[track_caller]
fn text<'v>(value: &'v Value, field: &str) -> &'v str {
    value[field].as_str().unwrap_or_else(|| panic!("`{field}` is no text in {value}"))
}
