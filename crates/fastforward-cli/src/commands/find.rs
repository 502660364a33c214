//! `find`: what a query matches, and where it stops.

use std::collections::HashMap;
use std::fmt::Write;
use std::ops::Range;

use fastforward_core::module::NodeRef;
use fastforward_onnx::graph::Model;
use fastforward_onnx::pipeline::Stop;
use fastforward_onnx::tree::Tree;
use mpath::{Aliases, Facts, QuerySet, SearchOptions, Selector};
use serde::Serialize;

use crate::args::Find;
use crate::output::{Exit, Outcome, line_width};
use crate::table::{Column, Table};
use crate::text::many;

/// A node that the query matches.
#[derive(Serialize)]
struct Match {
    names: Vec<String>,
    kind: &'static str,
    class: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tags: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    shape: Option<Vec<usize>>,
}

#[derive(Serialize)]
struct Found {
    query: String,
    matches: Vec<Match>,
    /// Where matching ended, if nothing matches.
    #[serde(skip_serializing_if = "Option::is_none")]
    diagnosis: Option<String>,
}

#[derive(Serialize)]
struct Asked {
    query: String,
    path: String,
    matches: bool,
    stops: Option<Stop>,
}

pub(super) fn run(args: &Find) -> anyhow::Result<Outcome> {
    let model = Model::load(&args.model)?;
    let tree = Tree::new(&model);
    let context = tree.context();
    let aliases =
        Aliases::parse(&context, args.alias.iter().map(|(name, query)| (&**name, &**query)))?;
    let query = context.query_with(&args.query, &aliases)?;
    let root = NodeRef::Module(tree.root());
    match &args.why {
        Some(path) => why(&query, root, path),
        None => {
            let options = SearchOptions::new(&context).with_aliases(&aliases);
            find(&query, root, &options, args.slots)
        }
    }
}

fn find(
    query: &Selector,
    root: NodeRef<'_>,
    options: &SearchOptions<'_>,
    only_slots: bool,
) -> anyhow::Result<Outcome> {
    let found = mpath::search(query, root, options)?;
    // Printed in the order of the model, not in that of the search.
    let mut position = HashMap::new();
    QuerySet::new([query])?.walk_matches(root, |visit| {
        let next = position.len();
        position.entry(visit.path.full_name().to_owned()).or_insert(next);
    })?;
    let mut results: Vec<_> = found.iter().collect();
    results.sort_by_key(|result| position.get(result.full_name()));
    let mut matches = Vec::new();
    for result in results {
        let slot = result.node.as_slot();
        if only_slots && slot.is_none() {
            continue;
        }
        let metadata = slot.map(|slot| slot.metadata());
        let tags = metadata.as_ref().map(|metadata| metadata.leaf_tags()).unwrap_or_default();
        matches.push(Match {
            names: result.full_names().map(str::to_owned).collect(),
            kind: if slot.is_some() { "slot" } else { "module" },
            class: result.node.class().name().to_owned(),
            tags: tags.iter().map(ToString::to_string).collect(),
            shape: metadata.and_then(|metadata| metadata.shape().map(<[usize]>::to_vec)),
        });
    }
    let mut table = Table::new([
        Column::name("name"),
        Column::left("kind"),
        Column::left("class"),
        Column::left("shape"),
        Column::flexible("tags"),
    ]);
    for one in &matches {
        table.row([
            one.names.join(" = "),
            one.kind.to_owned(),
            one.class.clone(),
            one.shape.as_ref().map_or_else(String::new, |shape| format!("{shape:?}")),
            one.tags.join(" "),
        ]);
    }
    let diagnosis = match matches.is_empty() {
        true => Some(diagnosis(query, root, found.len())?),
        false => None,
    };
    let text = if matches.is_empty() { String::new() } else { table.render(line_width()) };
    let (modules, slots) = (
        matches.iter().filter(|one| one.kind == "module").count(),
        matches.iter().filter(|one| one.kind == "slot").count(),
    );
    let found = Found { query: query.to_string(), matches, diagnosis: diagnosis.clone() };
    let outcome = Outcome::done(text, &found)?;
    Ok(match diagnosis {
        Some(diagnosis) => outcome.with_note(diagnosis, Exit::CheckFailed),
        None => {
            let note = format!("{} and {}", many(modules, "module"), many(slots, "slot"));
            outcome.with_note(note, Exit::Done)
        }
    })
}

fn diagnosis(query: &Selector, root: NodeRef<'_>, found: usize) -> anyhow::Result<String> {
    if found > 0 {
        let what = many(found, "module");
        return Ok(format!("`{query}` matches {what} and no slot; add `/*` for their slots"));
    }
    Ok(match mpath::diagnose(query, root)? {
        Some(diagnosis) => diagnosis.to_string(),
        None => format!("`{query}` matches nothing"),
    })
}

fn why(query: &Selector, root: NodeRef<'_>, path: &str) -> anyhow::Result<Outcome> {
    let stops = Stop::of(query, root, path)?;
    let text = match &stops {
        None => format!("`{path}` matches\n"),
        Some(stop) => stop_text(stop, 0),
    };
    let exit = if stops.is_none() { Exit::Done } else { Exit::CheckFailed };
    let asked =
        Asked { query: query.to_string(), path: path.to_owned(), matches: stops.is_none(), stops };
    Ok(Outcome { exit, ..Outcome::done(text, &asked)? })
}

/// Where a query stops, with a mark under the step, and what would have been there.
pub(super) fn stop_text(stop: &Stop, indent: usize) -> String {
    let mut text = format!("{:indent$}{}\n", "", stop.text);
    if let (Some(query), Some(span)) = (&stop.query, &stop.span) {
        let _ = writeln!(text, "{:indent$}    {query}", "");
        let _ = writeln!(text, "{:indent$}    {}", "", carets(query, span));
    }
    if !stop.children.is_empty() {
        const MAX_LISTED: usize = 12;
        let mut names: Vec<&str> =
            stop.children.iter().take(MAX_LISTED).map(String::as_str).collect();
        let more = format!("and {} more", stop.children.len().saturating_sub(MAX_LISTED));
        if stop.children.len() > MAX_LISTED {
            names.push(&more);
        }
        let place = match stop.matched.join(".") {
            empty if empty.is_empty() => "at the top".to_owned(),
            path => format!("in `{path}`"),
        };
        let _ = writeln!(text, "{:indent$}{place} there are {}", "", names.join(", "));
    }
    text
}

/// `^^^` under some bytes of a text.
fn carets(text: &str, span: &Range<usize>) -> String {
    let before = text.get(..span.start).map_or(0, |text| text.chars().count());
    let marked = text.get(span.clone()).map_or(1, |text| text.chars().count().max(1));
    format!("{:before$}{}", "", "^".repeat(marked))
}
