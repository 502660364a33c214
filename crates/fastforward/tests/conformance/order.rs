//! The order of children, which the golden files' trees have lost.
//!
//! The trees were written with sorted keys, but the answers were computed on trees whose children had an order of their
//! own. The answers show it: `final` (family `config`) lists slots in tree order, and where one step of a search matches
//! several children of a node they stand in order, while of results deeper in the subtrees of two children those of the
//! later child stand first (spec §1.10). Queries that end in their only `**` match all children of a node in one step, so
//! they decide; other answers fill the gaps, those to groups, which take several steps on one node, last.

use std::collections::HashMap;

use serde_json::{Map, Value};

use crate::golden::texts;

/// For each pair of siblings, how often the one stood before the other.
type Votes = HashMap<(String, String), u64>;

/// The trees of a family, children in their order.
pub fn ordered_trees(file: &Value) -> Value {
    let mut votes: HashMap<&str, Votes> = HashMap::new();
    for case in file["cases"].as_array().expect("cases") {
        let votes = votes.entry(case["tree"].as_str().expect("a tree")).or_default();
        if let Some(slots) = case["final"].as_object() {
            let names: Vec<&str> = slots.keys().map(String::as_str).collect();
            vote_siblings(&with_ancestors(&names), CERTAIN, votes);
        }
        if let (Some(query), Some(names)) = (case["query"].as_str(), case.get("ok")) {
            let weight = match query.matches("**").count() {
                _ if query.contains('{') => 1,
                1 if query.ends_with("**") => CERTAIN,
                _ => LIKELY,
            };
            vote_results(&texts(names), weight, votes);
        }
    }
    let none = Votes::new();
    let trees = file["trees"].as_object().expect("trees");
    let sorted = trees
        .iter()
        .map(|(id, tree)| (id.clone(), sorted(tree, "", votes.get(id.as_str()).unwrap_or(&none))));
    Value::Object(sorted.collect())
}

const CERTAIN: u64 = 1 << 40;
const LIKELY: u64 = 1 << 20;

/// Names in tree order, each preceded by those of its ancestors that did not stand there before.
fn with_ancestors<'n>(names: &[&'n str]) -> Vec<&'n str> {
    let mut seen = std::collections::HashSet::new();
    let levels = names
        .iter()
        .flat_map(|name| name.match_indices('.').map(|(at, _)| &name[..at]).chain([*name]));
    levels.filter(|level| seen.insert(*level)).collect()
}

/// Votes by names in tree order.
fn vote_siblings(names: &[&str], weight: u64, votes: &mut Votes) {
    let parent = |name: &str| name.rfind('.').map_or(0, |dot| dot + 1);
    let mut siblings: HashMap<&str, Vec<&str>> = HashMap::new();
    for &name in names {
        let earlier = siblings.entry(&name[..parent(name)]).or_default();
        for &before in earlier.iter() {
            *votes.entry((before.to_owned(), name.to_owned())).or_default() += weight;
        }
        earlier.push(name);
    }
}

/// Votes by names in the order of results.
fn vote_results(names: &[&str], weight: u64, votes: &mut Votes) {
    for (i, first) in names.iter().enumerate() {
        for second in &names[i + 1..] {
            let parts = first.split('.').zip(second.split('.'));
            let same: usize = parts.take_while(|(a, b)| a == b).map(|(a, _)| a.len() + 1).sum();
            if same > first.len() || same > second.len() {
                continue;
            }
            // The children of their last common ancestor, and whether something lies below them.
            let child = |name: &str| match name[same..].find('.') {
                Some(len) => (name[..same + len].to_owned(), true),
                None => (name.to_owned(), false),
            };
            let pair = match (child(first), child(second)) {
                ((first, false), (second, false)) => (first, second),
                ((first, true), (second, true)) => (second, first),
                _ => continue,
            };
            *votes.entry(pair).or_default() += weight;
        }
    }
}

fn sorted(node: &Value, path: &str, votes: &Votes) -> Value {
    let children = node["children"].as_object().expect("children");
    let full =
        |name: &String| if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
    let count = |a: &String, b: &String| votes.get(&(full(a), full(b))).copied().unwrap_or(0);
    let precedes = |a: &String, b: &String| count(a, b) > count(b, a);
    let mut left: Vec<&String> = children.keys().collect();
    let mut names: Vec<&String> = Vec::new();
    while !left.is_empty() {
        // The first before which nothing has to stand; where nothing is known the order of the file stays.
        let first = left.iter().position(|name| !left.iter().any(|other| precedes(other, name)));
        names.push(left.remove(first.unwrap_or(0)));
    }
    let children: Map<String, Value> = names
        .into_iter()
        .map(|name| (name.clone(), sorted(&children[name], &full(name), votes)))
        .collect();
    let mut node = node.clone();
    node["children"] = Value::Object(children);
    node
}

/// Moves siblings of a tree so that answers on it come nearer to those of the golden file, where votes left the order
/// open: in a few cases there may be no certain ones. `distance` says how far the answers are away; when it cannot be
/// made 0 by moving one child after another, the cases contradict each other or us.
pub fn refine(tree: &mut Value, mut distance: impl FnMut(&Value) -> usize) {
    let mut least = distance(tree);
    let mut parents = Vec::new();
    parents_of_several(tree, &mut Vec::new(), &mut parents);
    let mut is_better = true;
    while is_better && least > 0 {
        is_better = false;
        for parent in &parents {
            let len = children_at(tree, parent).len();
            for (from, to) in (0..len).flat_map(|from| (0..len).map(move |to| (from, to))) {
                if from == to || least == 0 {
                    continue;
                }
                let before = children_at(tree, parent).clone();
                let mut moved: Vec<(String, Value)> = before.clone().into_iter().collect();
                let child = moved.remove(from);
                moved.insert(to, child);
                *children_at(tree, parent) = moved.into_iter().collect();
                let now = distance(tree);
                if now < least {
                    (least, is_better) = (now, true);
                } else {
                    *children_at(tree, parent) = before;
                }
            }
        }
    }
}

fn parents_of_several(node: &Value, path: &mut Vec<String>, found: &mut Vec<Vec<String>>) {
    let children = node["children"].as_object().expect("children");
    if children.len() > 1 {
        found.push(path.clone());
    }
    for (name, child) in children {
        path.push(name.clone());
        parents_of_several(child, path, found);
        path.pop();
    }
}

fn children_at<'t>(tree: &'t mut Value, path: &[String]) -> &'t mut Map<String, Value> {
    let node = path.iter().fold(tree, |node, name| &mut node["children"][name]);
    node["children"].as_object_mut().expect("children")
}
